//! What a killed process has left: addresses that are still on this host although no node here is master.
//!
//! They would be gone within ten seconds by themselves. Until then whoever connects to this host is refused at once,
//! and to a host that has the address no more not at all: so what is left stays until the other node announces that it
//! has the address now, if that is soon.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::host_lock::HostLock;
use super::interface::Interface;
use super::link::Link;
use super::table::{Present, Table};
use super::{AddressError, RIGHT_TO_CHANGE};
use crate::config::floating::{FloatingAddress, FloatingSettings};

/// How often it is looked whether the other node has announced the addresses.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// How long an address stays after that: packets of clients that have not been told yet are under way. One that is lost
/// is repeated after a second.
const UNDER_WAY: Duration = Duration::from_millis(100);

/// What became of an address.
#[derive(Debug)]
pub enum Cleared {
    /// It was here, and is no more.
    Removed(FloatingAddress),
    /// It was not here.
    NotHere(FloatingAddress),
    /// It stays: a node of this host runs, or Baton has not added it.
    Stays(FloatingAddress, AddressError),
}

/// Removes what a killed process of this host has left, after the other node has announced it or `patience` is over.
///
/// # Errors
/// Where a right is missing, or the kernel refuses.
pub fn clear(settings: &FloatingSettings, patience: Duration) -> Result<Vec<Cleared>, AddressError> {
    let interface = match Interface::find(&settings.interface) {
        Ok(interface) => interface,
        // The addresses have gone with it.
        Err(AddressError::NoInterface { .. }) => {
            return Ok(settings.addresses.iter().map(|address| Cleared::NotHere(*address)).collect());
        }
        Err(error) => return Err(error),
    };
    let mut table = open()?;
    let (mut cleared, mut left, mut locks) = (Vec::new(), Vec::new(), Vec::new());
    for &address in &settings.addresses {
        let found = match HostLock::take(&[address]) {
            Ok(lock) => {
                locks.push(lock);
                find(&mut table, &interface, address)
            }
            Err(error) => Err(error),
        };
        match found {
            Ok(Some(_)) => left.push(address),
            Ok(None) => cleared.push(Cleared::NotHere(address)),
            Err(error @ (AddressError::InUse(_) | AddressError::NotOurs { .. })) => {
                cleared.push(Cleared::Stays(address, error));
            }
            Err(error) => return Err(error),
        }
    }
    if let (false, Ok(link)) = (left.is_empty(), Link::open(interface.clone(), &left)) {
        wait_for_successor(&link, &left, patience);
    }
    for address in left {
        remove(&mut table, &interface, address)?;
        cleared.push(Cleared::Removed(address));
    }
    Ok(cleared)
}

/// Opens the table of addresses.
pub(super) fn open() -> Result<Table, AddressError> {
    Table::open().map_err(|source| AddressError::System { action: "ask the kernel for addresses", source })
}

/// Removes an address from an interface, whatever prefix it has there. Answers whether it was there.
///
/// # Errors
/// Where Baton has not added it, a right is missing, or the kernel refuses.
pub(super) fn remove(
    table: &mut Table,
    interface: &Interface,
    address: FloatingAddress,
) -> Result<bool, AddressError> {
    let found = find(table, interface, address)?;
    // Also where it is not there: a missing right shows now, and not when there is something to remove.
    let prefix = found.map_or(address.prefix(), |present| present.prefix);
    table
        .remove(interface.index(), address.ip(), prefix)
        .map_err(AddressError::of("remove an address", RIGHT_TO_CHANGE))?;
    Ok(found.is_some())
}

/// An address of Baton's as it is on an interface; `None` where it is not.
///
/// # Errors
/// Where somebody else has added it, or the kernel does not answer.
pub(super) fn find(
    table: &mut Table,
    interface: &Interface,
    address: FloatingAddress,
) -> Result<Option<Present>, AddressError> {
    let list = table
        .list(interface.index())
        .map_err(|source| AddressError::System { action: "list the addresses of this host", source })?;
    match list.into_iter().find(|present| present.ip == address.ip()) {
        Some(present) if !present.is_ours() => {
            Err(AddressError::NotOurs { ip: address.ip(), interface: interface.name().to_owned() })
        }
        found => Ok(found),
    }
}

/// Waits until another host has announced each of the addresses from now on, at most for `patience`, and a moment
/// longer where it has.
pub(super) fn wait_for_successor(link: &Link, addresses: &[FloatingAddress], patience: Duration) {
    let deadline = Instant::now() + patience;
    // What came before is from whoever had them before.
    let _ = link.heard(addresses);
    let mut waited_for: Vec<FloatingAddress> = addresses.to_vec();
    while !waited_for.is_empty() {
        if Instant::now() >= deadline {
            return;
        }
        sleep(LOOK_INTERVAL);
        for claim in link.heard(addresses) {
            waited_for.retain(|address| address.ip() != claim.ip);
        }
    }
    sleep(UNDER_WAY);
}
