//! The packets that tell neighbours where a floating address is, and ask who has it. Pure functions.
//!
//! ```text
//! Ethernet      destination 6, source 6, type 2: 0x0806 ARP, 0x86DD IPv6
//! ARP           hardware 2: 1, protocol 2: 0x0800, lengths 1 1: 6 4, operation 2: 1 request, 2 reply,
//!               sender's hardware 6 and protocol address 4, target's hardware 6 and protocol address 4
//! IPv6          version, class, flow 4: 0x60000000, length 2, next header 1: 58, hop limit 1: 255,
//!               source 16, destination 16
//! solicitation  type 1: 135, code 1: 0, checksum 2, reserved 4, target 16
//! advertisement type 1: 136, code 1: 0, checksum 2, flags 1: 0x80 router, 0x20 override, reserved 3, target 16,
//!               option: type 1: 2, length in eights 1: 1, hardware address 6
//! ```
//!
//! All numbers are big-endian. An address is announced in IPv4 by a request and by a reply, both of which name it as
//! sender and as target: some neighbours go by the one, some by the other. In IPv6 by an advertisement that overrides
//! what neighbours know. An IPv4 probe is a request that names no sender's protocol address (RFC 5227); an IPv6 probe
//! a solicitation from the unspecified address (RFC 4862): neither changes what neighbours know.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address of an Ethernet interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Whether a host passes packets on. Its neighbours forget that it is a router when it does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// It is a router.
    Router,
    /// It is none.
    Host,
}

/// Somebody says that it has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub ip: IpAddr,
    /// Who says so.
    pub mac: Mac,
}

const EVERYBODY: Mac = Mac([0xFF; 6]);
const NOBODY: Mac = Mac([0; 6]);
const TYPE_ARP: u16 = 0x0806;
const TYPE_IPV6: u16 = 0x86DD;
const ETHERNET_BYTES: usize = 14;
const ARP_BYTES: usize = 28;
/// Hardware, protocol and lengths of all ARP packets for IPv4 over Ethernet.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const FLAG_ROUTER: u8 = 0x80;
const FLAG_OVERRIDE: u8 = 0x20;
const OPTION_TARGET_ADDRESS: u8 = 2;
/// Bytes of a solicitation, and of an advertisement without options.
const DISCOVERY_BYTES: usize = 24;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xFF02, 0, 0, 0, 0, 0, 0, 1);

/// The frames that announce an address at `mac`.
#[must_use]
pub fn announcements(ip: IpAddr, mac: Mac, forwarding: Forwarding) -> Vec<Vec<u8>> {
    match ip {
        IpAddr::V4(ip) => vec![
            arp(ARP_REQUEST, mac, (mac, ip), (NOBODY, ip)),
            // The target's hardware address is the sender's too: RFC 5944, 4.6.
            arp(ARP_REPLY, mac, (mac, ip), (mac, ip)),
        ],
        IpAddr::V6(ip) => {
            let router = if forwarding == Forwarding::Router { FLAG_ROUTER } else { 0 };
            let mut body = vec![ADVERTISEMENT, 0, 0, 0, router | FLAG_OVERRIDE, 0, 0, 0];
            body.extend(ip.octets());
            body.extend([OPTION_TARGET_ADDRESS, 1]);
            body.extend(mac.0);
            vec![icmpv6(mac, ip, ALL_NODES, body)]
        }
    }
}

/// The frame that asks, from `mac`, whether anybody has an address.
#[must_use]
pub fn probe(ip: IpAddr, mac: Mac) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => arp(ARP_REQUEST, mac, (mac, Ipv4Addr::UNSPECIFIED), (NOBODY, ip)),
        IpAddr::V6(ip) => {
            let mut body = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            body.extend(ip.octets());
            icmpv6(mac, Ipv6Addr::UNSPECIFIED, solicited(ip), body)
        }
    }
}

/// Who says in this frame, an ARP packet with its Ethernet header, that it has which address.
#[must_use]
pub fn claim_of_arp(frame: &[u8]) -> Option<Claim> {
    let packet = frame.get(ETHERNET_BYTES..ETHERNET_BYTES + ARP_BYTES)?;
    if packet[..6] != ARP_HEAD {
        return None;
    }
    let mac = Mac(packet[8..14].try_into().ok()?);
    let ip = Ipv4Addr::from(<[u8; 4]>::try_from(&packet[14..18]).ok()?);
    // A probe names no address.
    (!ip.is_unspecified()).then_some(Claim { ip: ip.into(), mac })
}

/// Who says in this ICMPv6 message that it has which address.
#[must_use]
pub fn claim_of_icmpv6(message: &[u8]) -> Option<Claim> {
    let (head, mut options) = message.split_at_checked(DISCOVERY_BYTES)?;
    if head[..2] != [ADVERTISEMENT, 0] {
        return None;
    }
    let ip = Ipv6Addr::from(<[u8; 16]>::try_from(&head[8..24]).ok()?);
    while let [kind, eights, ..] = options {
        let (option, rest) = options.split_at_checked(usize::from(*eights) * 8)?;
        if let (OPTION_TARGET_ADDRESS, Some(mac)) = (*kind, option.get(2..8)) {
            return Some(Claim { ip: ip.into(), mac: Mac(mac.try_into().ok()?) });
        }
        // One without a length would be there for ever.
        if option.is_empty() {
            return None;
        }
        options = rest;
    }
    None
}

fn ethernet(destination: Mac, source: Mac, kind: u16) -> Vec<u8> {
    [&destination.0[..], &source.0, &kind.to_be_bytes()].concat()
}

fn arp(operation: u16, source: Mac, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut frame = ethernet(EVERYBODY, source, TYPE_ARP);
    frame.extend(ARP_HEAD);
    frame.extend(operation.to_be_bytes());
    for (mac, ip) in [sender, target] {
        frame.extend(mac.0);
        frame.extend(ip.octets());
    }
    frame
}

/// A message whose checksum is left open, with everything around it.
fn icmpv6(source_mac: Mac, source: Ipv6Addr, destination: Ipv6Addr, mut body: Vec<u8>) -> Vec<u8> {
    let sum = checksum(source, destination, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    // The group's Ethernet address has the last four bytes of the group's.
    let [.., a, b, c, d] = destination.octets();
    let mut frame = ethernet(Mac([0x33, 0x33, a, b, c, d]), source_mac, TYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((body.len() as u16).to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(body);
    frame
}

/// The group in which whoever has the address listens.
fn solicited(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = ip.segments();
    Ipv6Addr::new(0xFF02, 0, 0, 0, 0, 1, 0xFF00 | (high & 0xFF), low)
}

/// The checksum of RFC 4443, 2.3, of a message of an even length in which it is 0.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, body: &[u8]) -> u16 {
    let length = (body.len() as u32).to_be_bytes();
    let pseudo = [&source.octets()[..], &destination.octets(), &length, &[0, 0, 0, ICMPV6]].concat();
    let words = pseudo.chunks_exact(2).chain(body.chunks_exact(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0xAA, 0xBB, 0xCC]);
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xDB8, 0, 0, 0, 0, 0x12, 0x3456));

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn an_address_of_ipv4_is_announced_by_a_request_and_by_a_reply() {
        let frames = announcements(V4, MAC, Forwarding::Router);
        let frames: Vec<String> = frames.iter().map(|frame| hex(frame)).collect();
        assert_eq!(
            frames,
            [
                "ffffffffffff020000aabbcc0806000108000604\
                 0001020000aabbccc000020a000000000000c000020a",
                "ffffffffffff020000aabbcc0806000108000604\
                 0002020000aabbccc000020a020000aabbccc000020a",
            ]
        );
    }

    #[test]
    fn an_address_of_ipv6_is_announced_by_an_advertisement_that_overrides() {
        let [frame] = &announcements(V6, MAC, Forwarding::Host)[..] else { panic!("one frame") };
        assert_eq!(
            hex(frame),
            "333300000001020000aabbcc86dd600000000020 3aff\
             20010db8000000000000000000123456ff020000000000000000000000000001\
             8800d3e62000000020010db80000000000000000001234560201020000aabbcc"
                .replace(' ', "")
        );
        let [router] = &announcements(V6, MAC, Forwarding::Router)[..] else { panic!("one frame") };
        assert_eq!(router[58], 0xA0);
    }

    #[test]
    fn a_probe_names_no_sender() {
        assert_eq!(
            hex(&probe(V4, MAC)),
            "ffffffffffff020000aabbcc0806000108000604\
             0001020000aabbcc00000000000000000000c000020a"
        );
        assert_eq!(
            hex(&probe(V6, MAC)),
            "3333ff123456020000aabbcc86dd6000000000183aff\
             00000000000000000000000000000000ff0200000000000000000001ff123456\
             8700e41e0000000020010db8000000000000000000123456"
        );
        assert_eq!(claim_of_arp(&probe(V4, MAC)), None);
    }

    #[test]
    fn a_checksum_makes_the_sum_of_all_words_one() {
        for frame in [&announcements(V6, MAC, Forwarding::Host)[0], &probe(V6, MAC)] {
            let mut sum: u32 = u32::from(ICMPV6) + (frame.len() - 54) as u32;
            for word in frame[22..].chunks_exact(2) {
                sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
            }
            assert_eq!((sum & 0xFFFF) + (sum >> 16), 0xFFFF);
        }
    }

    #[test]
    fn what_is_announced_is_heard() {
        for frame in announcements(V4, MAC, Forwarding::Host) {
            assert_eq!(claim_of_arp(&frame), Some(Claim { ip: V4, mac: MAC }));
            for length in 0..frame.len() {
                assert_eq!(claim_of_arp(&frame[..length]), None);
            }
        }
        let message = &announcements(V6, MAC, Forwarding::Host)[0][54..];
        assert_eq!(claim_of_icmpv6(message), Some(Claim { ip: V6, mac: MAC }));
        for length in 0..message.len() {
            assert_eq!(claim_of_icmpv6(&message[..length]), None);
        }
        let other = [&message[..24], &[1, 1, 0, 0, 0, 0, 0, 0], &message[24..]].concat();
        assert_eq!(claim_of_icmpv6(&other), Some(Claim { ip: V6, mac: MAC }));
        let endless = [&message[..24], &[1, 0, 0, 0, 0, 0, 0, 0], &message[24..]].concat();
        assert_eq!(claim_of_icmpv6(&endless), None);
    }
}
