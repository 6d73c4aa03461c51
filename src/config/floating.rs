//! Floating addresses as they are configured: an IP address and the length of its prefix, and where to have them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use super::value::ValueError;

/// Shortest prefixes: the kernel routes all of a prefix to the interface, and a shorter one is no network of a host.
const PREFIX_MIN_V4: u8 = 8;
const PREFIX_MIN_V6: u8 = 16;

/// Floating addresses of a node.
pub const ADDRESSES_MAX: usize = 16;

/// The floating addresses of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloatingSettings {
    /// The addresses; none where there are none.
    pub addresses: Vec<FloatingAddress>,
    /// Name of the interface that has them.
    pub interface: String,
    /// How often a master tells its neighbours that it has them.
    pub announce_interval: Duration,
}

impl Default for FloatingSettings {
    fn default() -> Self {
        Self { addresses: Vec::new(), interface: String::new(), announce_interval: Duration::from_secs(5) }
    }
}

/// An address that the master of a pair has beside those of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FloatingAddress {
    ip: IpAddr,
    prefix: u8,
}

impl FloatingAddress {
    /// The address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Bits of its prefix: all of them, where none was named.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

impl fmt::Display for FloatingAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl FromStr for FloatingAddress {
    type Err = ValueError;

    /// Reads `IP` or `IP/PREFIX`.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = |wanted: &str| ValueError::new(text, wanted);
        let form = "an address with or without its prefix, such as 192.0.2.10/24 or 2001:db8::10";
        let (ip, prefix) = match text.trim().split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text.trim(), None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| wrong(form))?;
        let (prefix_min, prefix_max) = if ip.is_ipv4() { (PREFIX_MIN_V4, 32) } else { (PREFIX_MIN_V6, 128) };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| wrong(form))?,
            None => prefix_max,
        };
        if !(prefix_min..=prefix_max).contains(&prefix) {
            return Err(wrong(&format!("a prefix of {prefix_min} to {prefix_max} bits")));
        }
        let can_be_had = match ip {
            IpAddr::V4(ip) => is_of_a_host_v4(ip, prefix),
            IpAddr::V6(ip) => is_of_a_host_v6(ip),
        };
        if !can_be_had {
            return Err(wrong("an address that one host of a network can have and others can reach"));
        }
        Ok(Self { ip, prefix })
    }
}

fn is_of_a_host_v4(ip: Ipv4Addr, prefix: u8) -> bool {
    // The first and the last address of a network are that network and all of its hosts, unless it has only two.
    let host_bits = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    let host = ip.to_bits() & host_bits;
    let is_network = prefix < 31 && (host == 0 || host == host_bits);
    let is_special = ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_link_local();
    !is_network && !is_special
}

fn is_of_a_host_v6(ip: Ipv6Addr) -> bool {
    // A link-local address says nothing without an interface, which each client would have to name.
    let is_special = ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || ip.is_unicast_link_local()
        || ip.to_ipv4_mapped().is_some();
    !is_special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_prefix_is_a_network_of_its_own() {
        for (text, shown) in [
            ("192.0.2.10/24", "192.0.2.10/24"),
            ("192.0.2.10", "192.0.2.10/32"),
            (" 2001:db8::10/64", "2001:db8::10/64"),
            ("2001:db8::10", "2001:db8::10/128"),
            ("192.0.2.0/31", "192.0.2.0/31"),
            ("192.0.2.0/32", "192.0.2.0/32"),
        ] {
            assert_eq!(text.parse::<FloatingAddress>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn nonsense_is_refused_with_what_it_should_be() {
        for (text, wanted) in [
            ("", "with or without its prefix"),
            ("broker", "with or without its prefix"),
            ("192.0.2.10/", "with or without its prefix"),
            ("192.0.2.10/x", "with or without its prefix"),
            ("192.0.2.10/255.255.255.0", "with or without its prefix"),
            ("192.0.2.10/33", "a prefix of 8 to 32 bits"),
            ("192.0.2.10/0", "a prefix of 8 to 32 bits"),
            ("2001:db8::1/129", "a prefix of 16 to 128 bits"),
            ("192.0.2.0/24", "that one host of a network can have"),
            ("192.0.2.255/24", "that one host of a network can have"),
            ("127.0.0.1", "that one host of a network can have"),
            ("0.0.0.0", "that one host of a network can have"),
            ("224.0.0.1", "that one host of a network can have"),
            ("fe80::1", "that one host of a network can have"),
            ("::1", "that one host of a network can have"),
            ("ff02::1", "that one host of a network can have"),
            ("::ffff:192.0.2.1", "that one host of a network can have"),
        ] {
            let error = text.parse::<FloatingAddress>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
