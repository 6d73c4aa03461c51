//! Floating addresses: the master has them beside the addresses of its host, and neighbours are told where they are.
//!
//! The address follows the lock, never the other way round: nothing here makes a node master, and nothing here decides
//! who may have an address but being master. Two hosts may both have it for a while, since a paused or cut-off master
//! cannot take its own away. So an address is a loan: it has a lifetime of ten seconds in the kernel, which the
//! keeper extends each second while the node is master. What nobody extends is gone by itself.
//!
//! * [`keeper`]: the thread that has the addresses, for as long as the node is master.
//! * `rivals`, `telling`, `trouble`: what it makes of other hosts that have them, when it tells the neighbours, and what it
//!   says of what fails.
//! * [`packet`]: the packets that announce and probe, as pure functions.
//! * [`interface`]: what an interface is at the moment.
//! * [`table`]: the kernel's table of addresses.
//! * [`link`]: sending and hearing the packets.
//! * [`host_lock`]: at most one process of a host deals with an address.
//! * [`left_over`]: what a killed process has left.

pub mod host_lock;
pub mod interface;
pub mod keeper;
pub mod left_over;
pub mod link;
pub mod packet;
mod rivals;
pub mod table;
mod telling;
mod trouble;

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::floating::FloatingAddress;

/// Why a floating address cannot be had, told or removed.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The interface does not exist.
    #[error("there is no interface {name}; there are {}: correct address.interface", present.join(", "))]
    NoInterface {
        /// The interface.
        name: String,
        /// Those that there are.
        present: Vec<String>,
    },
    /// The interface has no neighbours that could be told.
    #[error(
        "{0} is no Ethernet interface: neighbours cannot be told of an address there; correct address.interface"
    )]
    NotEthernet(String),
    /// The address was configured by somebody else.
    #[error(
        "{ip} is an address of {interface} already, and Baton has not added it: remove it from the network's \
         configuration of this host, or correct address.address"
    )]
    NotOurs {
        /// The address.
        ip: IpAddr,
        /// The interface.
        interface: String,
    },
    /// Another process of this host deals with the address.
    #[error("another process of this host has {0} in its hands: end that node first")]
    InUse(IpAddr),
    /// A right is missing.
    #[error(
        "cannot {action}: the process lacks {right}; let the service have it with AmbientCapabilities={right} and \
         CapabilityBoundingSet="
    )]
    NotAllowed {
        /// What was to be done.
        action: &'static str,
        /// The right.
        right: &'static str,
    },
    /// The system has refused.
    #[error("cannot {action}: {source}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl AddressError {
    /// The error of an action that needs `right`.
    fn of(action: &'static str, right: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NotAllowed { action, right },
            _ => Self::System { action, source },
        }
    }
}

/// The right to change addresses.
const RIGHT_TO_CHANGE: &str = "CAP_NET_ADMIN";
/// The right to send and hear packets of any kind.
const RIGHT_TO_SEND: &str = "CAP_NET_RAW";

/// The floating addresses of a node, and whether they are here. For everybody to see.
#[derive(Debug, Default)]
pub struct Holdings(Vec<(FloatingAddress, AtomicBool)>);

impl Holdings {
    /// None of these is here.
    #[must_use]
    pub fn new(addresses: &[FloatingAddress]) -> Self {
        Self(addresses.iter().map(|address| (*address, AtomicBool::new(false))).collect())
    }

    /// Each address, and whether it is here.
    pub fn iter(&self) -> impl Iterator<Item = (FloatingAddress, bool)> {
        self.0.iter().map(|(address, here)| (*address, here.load(Ordering::Relaxed)))
    }

    /// Notes that none is here.
    fn none_here(&self) {
        self.0.iter().for_each(|(_, here)| here.store(false, Ordering::Relaxed));
    }

    /// Notes whether an address is here. Answers whether it was.
    fn note(&self, address: FloatingAddress, here: Here) -> bool {
        let held = self.0.iter().find(|(other, _)| *other == address);
        held.is_some_and(|(_, was)| was.swap(here == Here::Yes, Ordering::Relaxed))
    }
}

/// Whether an address is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    Yes,
    No,
}
