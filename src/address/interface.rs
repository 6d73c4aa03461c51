//! What an interface is at the moment: its number, its Ethernet address, whether it is up.
//!
//! All of it may change while a node runs: an interface goes and comes back with another number, a bond takes the
//! address of another card. So it is asked anew each time.

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::LinkAddr;

use super::AddressError;
use super::packet::{Forwarding, Mac};

/// The kernel's number of Ethernet among kinds of hardware.
const ETHERNET: u16 = 1;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    name: String,
    link: LinkAddr,
    mac: Mac,
    state: State,
}

/// Whether packets go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// They do.
    Running,
    /// It is switched off, or its cable leads nowhere.
    Down,
}

impl Interface {
    /// The interface with this name.
    ///
    /// # Errors
    /// Where there is none, or none with neighbours.
    pub fn find(name: &str) -> Result<Self, AddressError> {
        let list = getifaddrs().map_err(|error| AddressError::System {
            action: "list the interfaces of this host",
            source: error.into(),
        })?;
        let mut present = Vec::new();
        for entry in list {
            let Some(link) = entry.address.as_ref().and_then(|address| address.as_link_addr()) else {
                continue;
            };
            if entry.interface_name != name {
                present.push(entry.interface_name);
                continue;
            }
            let mac = link.addr().filter(|_| link.hatype() == ETHERNET && link.halen() == 6);
            let Some(mac) = mac.map(Mac) else { return Err(AddressError::NotEthernet(name.to_owned())) };
            let running = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
            let state = if entry.flags.contains(running) { State::Running } else { State::Down };
            return Ok(Self { name: entry.interface_name, link: *link, mac, state });
        }
        Err(AddressError::NoInterface { name: name.to_owned(), present })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    #[must_use]
    pub fn index(&self) -> u32 {
        // The kernel has numbers of 31 bits.
        u32::try_from(self.link.ifindex()).unwrap_or(u32::MAX)
    }

    /// Its address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// It, as a destination.
    pub(super) fn link(&self) -> &LinkAddr {
        &self.link
    }

    /// Whether the host passes on packets of IPv6 that come from there.
    #[must_use]
    pub fn forwarding(&self) -> Forwarding {
        let path = format!("/proc/sys/net/ipv6/conf/{}/forwarding", self.name);
        match std::fs::read_to_string(path) {
            Ok(value) if value.trim() != "0" => Forwarding::Router,
            // Where there is no IPv6 nothing is announced in it.
            _ => Forwarding::Host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_does_not_exist_is_answered_with_those_that_do() {
        let error = Interface::find("eth-none").unwrap_err().to_string();
        assert!(
            error.starts_with("there is no interface eth-none; there are ") && error.contains("lo"),
            "{error}"
        );
    }

    #[test]
    fn an_interface_without_neighbours_is_refused() {
        assert!(matches!(Interface::find("lo"), Err(AddressError::NotEthernet(_))));
    }
}
