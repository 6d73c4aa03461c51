//! At most one process of a host deals with a floating address: a node, or the command that clears up behind it.
//!
//! The lock is a name among the sockets of the host's network. It is of the same scope as the address, the kernel gives
//! it back with the process, and there is no file that could be left.

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use super::AddressError;
use crate::config::floating::FloatingAddress;

/// The right to deal with addresses, until it is dropped.
#[derive(Debug)]
pub struct HostLock {
    _sockets: Vec<UnixDatagram>,
}

impl HostLock {
    /// Takes the right to deal with all of these.
    ///
    /// # Errors
    /// [`AddressError::InUse`] where another process deals with one of them.
    pub fn take(addresses: &[FloatingAddress]) -> Result<Self, AddressError> {
        let sockets = addresses.iter().map(|address| {
            let ip = address.ip();
            bind(ip).map_err(|source| match source.kind() {
                ErrorKind::AddrInUse => AddressError::InUse(ip),
                _ => AddressError::System { action: "lock the address on this host", source },
            })
        });
        Ok(Self { _sockets: sockets.collect::<Result<_, _>>()? })
    }
}

fn bind(ip: IpAddr) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(format!("baton/address/{ip}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_has_an_address_until_it_lets_go() {
        let [one, other] = ["198.51.100.77", "2001:db8::77"].map(|text| text.parse().unwrap());
        let lock = HostLock::take(&[one, other]).unwrap();
        assert!(matches!(HostLock::take(&[other]), Err(AddressError::InUse(ip)) if ip == other.ip()));
        drop(lock);
        HostLock::take(&[other]).unwrap();
    }
}
