//! Sending and hearing the packets of floating addresses on one interface.
//!
//! Open only while there is something to hear: what a socket has gathered unread would be taken for news.

use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use nix::sys::socket::{LinkAddr, MsgFlags, recvfrom, sendto};
use socket2::{Domain, Protocol, Socket, Type};

use super::interface::Interface;
use super::packet::{self, Claim};
use super::{AddressError, RIGHT_TO_SEND};
use crate::config::floating::FloatingAddress;

/// The kernel's number of ARP among kinds of packets.
const KIND_ARP: u16 = 0x0806;
/// Packets that are heard at a time: an interface on which more come is flooded, and the rest may wait.
const HEARD_MAX: usize = 256;
/// Bytes of a packet that are looked at.
const PACKET_BYTES: usize = 256;

/// An interface with its sockets.
#[derive(Debug)]
pub struct Link {
    interface: Interface,
    /// Sends frames of both kinds, and hears those of ARP.
    frames: Socket,
    /// Hears ICMPv6, where an address is of IPv6.
    icmpv6: Option<Socket>,
}

impl Link {
    /// Opens an interface for these addresses.
    ///
    /// # Errors
    /// Where the process has no right to, or the system no resources.
    pub fn open(interface: Interface, addresses: &[FloatingAddress]) -> Result<Self, AddressError> {
        let failed = AddressError::of("announce addresses", RIGHT_TO_SEND);
        let has_v4 = addresses.iter().any(|address| address.ip().is_ipv4());
        let has_v6 = addresses.iter().any(|address| address.ip().is_ipv6());
        let frames = frames(if has_v4 { KIND_ARP } else { 0 }).map_err(&failed)?;
        let icmpv6 = has_v6.then(|| icmpv6(&interface)).transpose().map_err(&failed)?;
        Ok(Self { interface, frames, icmpv6 })
    }

    /// The interface.
    #[must_use]
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Tells all neighbours that an address is here.
    ///
    /// # Errors
    /// Where the interface takes nothing.
    pub fn announce(&self, address: FloatingAddress) -> Result<(), AddressError> {
        let (mac, forwarding) = (self.interface.mac(), self.interface.forwarding());
        packet::announcements(address.ip(), mac, forwarding).iter().try_for_each(|frame| self.send(frame))
    }

    /// Asks all neighbours who has an address. What they answer is [heard](Self::heard).
    ///
    /// # Errors
    /// Where the interface takes nothing.
    pub fn probe(&self, address: FloatingAddress) -> Result<(), AddressError> {
        self.send(&packet::probe(address.ip(), self.interface.mac()))
    }

    /// Who else has said that it has one of these addresses. Waits for nothing.
    #[must_use]
    pub fn heard(&self, addresses: &[FloatingAddress]) -> Vec<Claim> {
        let arp = (0..HEARD_MAX).map_while(|_| self.next_frame().ok());
        let icmpv6 = (0..HEARD_MAX).map_while(|_| self.next_icmpv6().ok());
        let is_ours = |ip: IpAddr| addresses.iter().any(|address| address.ip() == ip);
        let claims = arp.chain(icmpv6).flatten();
        claims.filter(|claim| is_ours(claim.ip) && claim.mac != self.interface.mac()).collect()
    }

    fn send(&self, frame: &[u8]) -> Result<(), AddressError> {
        let sent = sendto(self.frames.as_raw_fd(), frame, self.interface.link(), MsgFlags::empty());
        sent.map(|_| ()).map_err(|error| AddressError::of("announce addresses", RIGHT_TO_SEND)(error.into()))
    }

    /// The next packet of ARP; an error where there is none.
    fn next_frame(&self) -> io::Result<Option<Claim>> {
        let mut bytes = [0; PACKET_BYTES];
        let (length, from) = recvfrom::<LinkAddr>(self.frames.as_raw_fd(), &mut bytes)?;
        let is_here = from.is_some_and(|from| from.ifindex() == self.interface.link().ifindex());
        Ok(packet::claim_of_arp(&bytes[..length]).filter(|_| is_here))
    }

    /// The next message of ICMPv6; an error where there is none.
    fn next_icmpv6(&self) -> io::Result<Option<Claim>> {
        let Some(mut socket) = self.icmpv6.as_ref() else { return Err(io::ErrorKind::WouldBlock.into()) };
        let mut bytes = [0; PACKET_BYTES];
        let length = socket.read(&mut bytes)?;
        Ok(packet::claim_of_icmpv6(&bytes[..length]))
    }
}

/// A socket for whole frames, which hears one kind of them; none where that is 0.
fn frames(kind: u16) -> io::Result<Socket> {
    let kind = Protocol::from(i32::from(kind.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(kind))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn icmpv6(interface: &Interface) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(interface.name().as_bytes()))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
