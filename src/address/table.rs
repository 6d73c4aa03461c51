//! The kernel's table of addresses, by netlink: what is in it, adding with a lifetime, removing.
//!
//! An address that Baton adds is known by its lifetime alone: nobody else gives an address less than a minute. What was
//! configured has no end, and a lease is longer. So an address of the host that is named as a floating one by mistake
//! is never taken away from it.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::config::floating::FloatingAddress;

/// Longest lifetime of an address that is taken for one of Baton's.
pub const LIFETIME_MAX: Duration = Duration::from_secs(60);

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    /// The address.
    pub ip: IpAddr,
    /// Bits of its prefix.
    pub prefix: u8,
    /// Seconds that are left of its lifetime; all bits of one that has no end.
    valid_seconds: u32,
}

impl Present {
    /// Whether Baton has added it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        u64::from(self.valid_seconds) <= LIFETIME_MAX.as_secs()
    }
}

/// The table.
pub struct Table {
    socket: Socket,
    sequence: u32,
}

impl Table {
    /// Opens it. That needs no right.
    ///
    /// # Errors
    /// Where the system has no resources for it.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The addresses of the interface with this number.
    ///
    /// # Errors
    /// Where the kernel does not answer.
    pub fn list(&mut self, index: u32) -> io::Result<Vec<Present>> {
        let answers = self.ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let of_interface = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => present(&message),
            _ => None,
        });
        Ok(of_interface.collect())
    }

    /// Adds an address for a while, or extends its lifetime.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn put(&mut self, index: u32, address: FloatingAddress, lifetime: Duration) -> io::Result<()> {
        let mut message = message(index, address.ip(), address.prefix());
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let mut times = CacheInfo::default();
        times.ifa_valid = seconds;
        // The host never chooses an address as its own that is not preferred: what it begins itself must not break when
        // the address goes. In IPv4 an address that was there before is chosen, or one of another prefix.
        times.ifa_preferred = if address.ip().is_ipv4() { seconds } else { 0 };
        message.attributes.push(AddressAttribute::CacheInfo(times));
        if address.ip().is_ipv6() {
            // Whoever else has it is found by a probe, and does not keep the master from having it.
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)?;
        Ok(())
    }

    /// Removes an address, if it is there.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn remove(&mut self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        match self.ask(RouteNetlinkMessage::DelAddress(message(index, ip, prefix)), NLM_F_ACK) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(()),
            removed => removed.map(|_| ()),
        }
    }

    /// Sends a request and gathers its answers.
    fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                // Each begins at a multiple of four.
                let length = (answer.header.length as usize).next_multiple_of(4).clamp(4, rest.len());
                rest = &rest[length..];
                // What is left of a request that failed half-way is of no use to anybody.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

fn message(index: u32, ip: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    message
}

fn present(message: &AddressMessage) -> Option<Present> {
    let (mut local, mut address, mut valid_seconds) = (None, None, u32::MAX);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::CacheInfo(times) => valid_seconds = times.ifa_valid,
            _ => {}
        }
    }
    // In IPv6 there is but the one; in IPv4 the other is the far end where a line has two.
    Some(Present { ip: local.or(address)?, prefix: message.header.prefix_len, valid_seconds })
}
