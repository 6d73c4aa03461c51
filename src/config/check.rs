//! What does not fit together in a configuration: values out of bounds, and values that contradict each other.
//!
//! Knows the finished settings alone, not where they came from; the first problem found is the answer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Config;
use super::error::Problem;
use super::floating::ADDRESSES_MAX;
use super::key::{ADDRESS_TABLE, LIMITS_TABLE, joined};
use super::value::size_text;
use crate::ha::block::ADDRESS_BYTES_MAX;
use crate::model::limits::{HEADER_COUNT_MAX, KEY_BYTES_MAX, LIMITS, Limits};
use crate::model::settings::{
    JITTER_PERCENT_MAX, LEASE_MS_MIN, MULTIPLIER_PERCENT_MAX, MULTIPLIER_PERCENT_MIN, WAIT_MS_MAX,
};

/// Bytes that the heads of frames may need beside a message.
const FRAME_HEAD_BYTES: u64 = 64 << 10;
/// Bytes of the fields of an encoded message that are always there or have a fixed length.
const MESSAGE_FIXED_BYTES: u64 = 64;

/// The key of the number of connections.
pub const CONNECTIONS_KEY: &str = "limits.connections_max";

/// The first problem, and the key to look at.
///
/// # Errors
/// Where there is a problem.
pub fn check(config: &Config) -> Result<(), (String, Problem)> {
    if config.store.as_os_str().is_empty() {
        return Err(("store".to_owned(), Problem::NoStore));
    }
    let ms = Duration::from_millis;
    bounds("poll_interval", config.poll_interval, ms(1), ms(60_000))?;
    bounds("heartbeat", config.heartbeat, ms(10), ms(60_000))?;
    bounds("drain_timeout", config.drain_timeout, ms(0), ms(3_600_000))?;
    if !(64 << 10..=4 << 30).contains(&config.segment_bytes) {
        return Err((
            "segment_bytes".to_owned(),
            size_out_of_bounds(config.segment_bytes, 64 << 10, 4 << 30),
        ));
    }
    listen(config)?;
    address(config)?;
    group_defaults(config)?;
    limits(&config.limits)
}

fn listen(config: &Config) -> Result<(), (String, Problem)> {
    let Some(first) = config.listen.first() else {
        return Err(("listen".to_owned(), Problem::NothingToListenOn));
    };
    for (index, one) in config.listen.iter().enumerate() {
        if let Some(other) = config.listen[..index].iter().find(|other| overlap(one, other)) {
            return Err(("listen".to_owned(), Problem::SameAddress(*other, *one)));
        }
    }
    if let Some(open) = config.listen.iter().find(|address| !address.ip().to_canonical().is_loopback())
        && !config.allow_anonymous
    {
        return Err(("listen".to_owned(), Problem::OpenToAll(*open)));
    }
    if let Some(admin) = &config.admin
        && let Some(other) = config.listen.iter().find(|other| overlap(admin, other))
    {
        return Err(("admin".to_owned(), Problem::SameAddress(*other, *admin)));
    }
    match &config.advertise {
        None if first.ip().is_unspecified() => {
            Err(("listen".to_owned(), Problem::NoAddressForClients(first.to_string())))
        }
        Some(address) if address.len() > ADDRESS_BYTES_MAX => {
            Err(("advertise".to_owned(), Problem::AddressTooLong(address.len())))
        }
        Some(address) if leads_nowhere(address) => {
            Err(("advertise".to_owned(), Problem::NoAddressForClients(address.clone())))
        }
        _ => Ok(()),
    }
}

fn address(config: &Config) -> Result<(), (String, Problem)> {
    let floating = &config.address;
    let wrong = |key: &str, problem| Err((joined(ADDRESS_TABLE, key), problem));
    let ms = Duration::from_millis;
    let interval_key = joined(ADDRESS_TABLE, "announce_interval");
    bounds(&interval_key, floating.announce_interval, ms(100), ms(3_600_000))?;
    if !floating.addresses.is_empty() && floating.interface.is_empty() {
        return wrong("interface", Problem::NoInterface);
    }
    if floating.addresses.len() > ADDRESSES_MAX {
        let text = |number: usize| number.to_string();
        let (found, max) = (text(floating.addresses.len()), text(ADDRESSES_MAX));
        return wrong("address", Problem::OutOfBounds { found, min: text(0), max });
    }
    for (index, one) in floating.addresses.iter().enumerate() {
        let ip = one.ip();
        if floating.addresses[..index].iter().any(|other| other.ip() == ip) {
            return wrong("address", Problem::TwiceTheSame(ip));
        }
        if !config.listen.iter().any(|listen| takes(listen, ip)) {
            return wrong("address", Problem::NotListenedOn(ip));
        }
        let advertised = config.advertise.as_ref().and_then(|host| host.parse::<SocketAddr>().ok());
        if advertised.is_some_and(|advertised| advertised.ip() == ip) {
            return Err(("advertise".to_owned(), Problem::SharedByBoth(ip)));
        }
    }
    Ok(())
}

/// Whether a listener gets what comes to an address that the host has only at times.
fn takes(listen: &SocketAddr, ip: IpAddr) -> bool {
    // One for all addresses of IPv6 gets those of IPv4 too.
    listen.ip().is_unspecified() && (listen.is_ipv6() || ip.is_ipv4())
}

/// Whether nobody can connect to an address: it stands for any, or its port is still to be chosen.
fn leads_nowhere(address: &str) -> bool {
    address.ends_with(":0")
        || address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
}

/// Whether the system would refuse to listen on both.
fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    let same_family = one.is_ipv4() == other.is_ipv4();
    let covers = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && same_family && covers
}

fn group_defaults(config: &Config) -> Result<(), (String, Problem)> {
    let ms = Duration::from_millis;
    let group = &config.group_defaults;
    let backoff = &group.backoff;
    let longest = ms(WAIT_MS_MAX);
    bounds("group_defaults.lease", group.lease(), ms(LEASE_MS_MIN), longest)?;
    bounds("group_defaults.backoff_initial", ms(backoff.initial_ms), ms(0), longest)?;
    bounds("group_defaults.backoff_maximum", ms(backoff.maximum_ms), ms(0), longest)?;
    if backoff.initial_ms > backoff.maximum_ms {
        let text = |wait| humantime::format_duration(ms(wait)).to_string();
        let problem = Problem::BackoffBeyondMaximum {
            initial: text(backoff.initial_ms),
            maximum: text(backoff.maximum_ms),
        };
        return Err(("group_defaults.backoff_initial".to_owned(), problem));
    }
    for (key, percent, min, max) in [
        (
            "group_defaults.backoff_multiplier",
            backoff.multiplier_percent,
            MULTIPLIER_PERCENT_MIN,
            MULTIPLIER_PERCENT_MAX,
        ),
        ("group_defaults.backoff_jitter", backoff.jitter_percent, 0, JITTER_PERCENT_MAX),
    ] {
        if !(min..=max).contains(&percent) {
            let text = |percent: u32| format!("{}.{:02}", percent / 100, percent % 100);
            let problem = Problem::OutOfBounds { found: text(percent), min: text(min), max: text(max) };
            return Err((key.to_owned(), problem));
        }
    }
    Ok(())
}

fn limits(limits: &Limits) -> Result<(), (String, Problem)> {
    if let Some((row, value)) = limits.out_of_bounds() {
        let problem = if row.unit == "bytes" {
            size_out_of_bounds(value, row.min, row.max)
        } else {
            let text = |value: u64| value.to_string();
            Problem::OutOfBounds { found: text(value), min: text(row.min), max: text(row.max) }
        };
        return Err((joined(LIMITS_TABLE, row.name), problem));
    }
    let around = KEY_BYTES_MAX as u64
        + limits.header_bytes_max
        + 6 * HEADER_COUNT_MAX as u64
        + MESSAGE_FIXED_BYTES
        + FRAME_HEAD_BYTES;
    if limits.body_bytes_max + around > limits.frame_bytes_max {
        let problem = Problem::BodyBeyondFrame {
            body: size_text(limits.body_bytes_max),
            frame: size_text(limits.frame_bytes_max),
            around: size_text(around),
            needed: size_text((limits.body_bytes_max + around).next_multiple_of(1 << 20)),
        };
        return Err((joined(LIMITS_TABLE, "body_bytes_max"), problem));
    }
    Ok(())
}

/// The most connections that a node can serve which may have so many files open; `None` where that is too few for
/// any configuration.
#[must_use]
pub fn connections_within(open_files_max: u64) -> Option<u64> {
    let beside = Limits { connections_max: 0, ..Limits::default() }.open_files();
    let connections = open_files_max.checked_sub(beside)?;
    let row = LIMITS.iter().find(|row| row.name == "connections_max")?;
    (connections >= row.min).then_some(connections)
}

/// Whether the process may have as many files open as its connections need.
///
/// # Errors
/// Where it may not.
pub fn open_files(limits: &Limits, open_files_max: Option<u64>) -> Result<(), (String, Problem)> {
    let needed = limits.open_files();
    let Some(most) = open_files_max.filter(|most| *most < needed) else { return Ok(()) };
    let problem = Problem::FilesTooFew {
        connections: limits.connections_max,
        needed,
        most,
        fitting: connections_within(most),
    };
    Err((CONNECTIONS_KEY.to_owned(), problem))
}

fn bounds(key: &str, value: Duration, min: Duration, max: Duration) -> Result<(), (String, Problem)> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let text = |time| humantime::format_duration(time).to_string();
    Err((key.to_owned(), Problem::OutOfBounds { found: text(value), min: text(min), max: text(max) }))
}

fn size_out_of_bounds(value: u64, min: u64, max: u64) -> Problem {
    Problem::OutOfBounds { found: size_text(value), min: size_text(min), max: size_text(max) }
}
