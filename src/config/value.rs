//! Texts of single settings and what they mean: durations, sizes, addresses, numbers, switches.
//!
//! Knows no key and no file; an error says what the text should have been, and the caller names the key.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use uuid::Uuid;

use crate::model::free_min::FreeMin;
use crate::protocol::CLIENT_PORT;

/// A text that does not mean what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct ValueError {
    /// The text.
    pub text: String,
    /// What it should have been, with an example.
    pub wanted: String,
}

impl ValueError {
    /// `text` is not `wanted`.
    pub fn new(text: &str, wanted: impl Into<String>) -> Self {
        Self { text: text.to_owned(), wanted: wanted.into() }
    }
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Reads a duration with its unit: `100ms`, `30s`, `1m 30s`, `2h`, `7d`.
///
/// # Errors
/// Where the unit is missing or unknown.
pub fn duration(text: &str) -> Result<Duration, ValueError> {
    humantime::parse_duration(text.trim())
        .map_err(|_| ValueError::new(text, "a duration with a unit, such as 100ms, 30s or 5m"))
}

/// Reads a size in bytes: a whole number, alone or with one of `B`, `KiB`, `MiB`, `GiB`, `TiB`, `kB`, `MB`, `GB`, `TB`.
///
/// # Errors
/// Where it is something else, or more than 64 bits.
pub fn size(text: &str) -> Result<u64, ValueError> {
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &trimmed[digits.len()..];
    let factor = match unit {
        "" => Some(1),
        unit => SIZE_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor),
    };
    let value = digits.trim_end().parse::<u64>().ok();
    value
        .zip(factor)
        .and_then(|(value, factor)| value.checked_mul(factor))
        .ok_or_else(|| ValueError::new(text, "a size, such as 64MiB, 512KiB or a number of bytes"))
}

/// Reads how much is kept free: a size, or a part of the disk such as `10%`.
///
/// # Errors
/// Where it is something else, or all of the disk.
pub fn free_min(text: &str) -> Result<FreeMin, ValueError> {
    let Some(percent) = text.trim().strip_suffix('%') else { return size(text).map(FreeMin::Bytes) };
    let percent = percent.trim_end().parse().ok().filter(|percent| *percent < 100);
    percent
        .map(FreeMin::Percent)
        .ok_or_else(|| ValueError::new(text, "a size, or a part of the disk from 0% to 99%"))
}

/// Writes a size with the largest binary unit in which it is whole.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let units = &SIZE_UNITS[..4];
    match units.iter().rev().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => bytes.to_string(),
    }
}

/// Reads an address to listen on: `IP:PORT`, or an IP address alone for `port`.
///
/// # Errors
/// Where it is something else; host names are, since what they resolve to may change.
pub fn listen(text: &str, port: u16) -> Result<SocketAddr, ValueError> {
    let trimmed = text.trim();
    let wrong =
        |_| ValueError::new(text, format!("an address IP:PORT, such as 127.0.0.1:{port} or [::1]:{port}"));
    let ip = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = ip.filter(|ip| ip.contains(':')).unwrap_or(trimmed);
    trimmed.parse().or_else(|_| ip.parse().map(|ip: IpAddr| SocketAddr::new(ip, port))).map_err(wrong)
}

/// As [`listen`], where an empty text is nowhere.
///
/// # Errors
/// As [`listen`].
pub fn listen_if_any(text: &str, port: u16) -> Result<Option<SocketAddr>, ValueError> {
    if text.trim().is_empty() { Ok(None) } else { listen(text, port).map(Some) }
}

/// An address to connect to, whose port may be left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The name or IP address, an IPv6 address in brackets.
    name: String,
    /// The port, if one was named.
    port: Option<u16>,
}

impl Host {
    /// The address, with `port` where none was named.
    #[must_use]
    pub fn or_port(&self, port: u16) -> String {
        format!("{}:{}", self.name, self.port.unwrap_or(port))
    }
}

/// Reads an address to connect to: `HOST:PORT`, or a host alone for the port of Baton.
///
/// # Errors
/// As [`host`].
pub fn host_port(text: &str) -> Result<String, ValueError> {
    Ok(host(text)?.or_port(CLIENT_PORT))
}

/// Reads an address to connect to: `HOST:PORT`, or a host alone.
///
/// # Errors
/// Where there is no host, or the port is not one that can be connected to.
pub fn host(text: &str) -> Result<Host, ValueError> {
    let wrong = || ValueError::new(text, "an address HOST:PORT, such as broker-a:7470 or [::1]:7470");
    let trimmed = text.trim();
    if trimmed.is_empty() || trimmed.contains(char::is_whitespace) {
        return Err(wrong());
    }
    let named = |name: &str, port| Host { name: name.to_owned(), port };
    match trimmed.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => return Ok(named(&format!("[{ip}]"), None)),
        Ok(IpAddr::V4(_)) => return Ok(named(trimmed, None)),
        Err(_) => {}
    }
    match trimmed.rsplit_once(':') {
        None => Ok(named(trimmed, None)),
        Some((name, port)) => {
            let bracketed = name.starts_with('[') && name.ends_with(']');
            let name_fits = !name.is_empty() && (bracketed || !name.contains(':'));
            let port = port.parse::<u16>().ok().filter(|port| *port > 0);
            port.filter(|_| name_fits).map(|port| named(name, Some(port))).ok_or_else(wrong)
        }
    }
}

/// Reads the identity of a store.
///
/// # Errors
/// Where it is not one.
pub fn id(text: &str) -> Result<Uuid, ValueError> {
    let wanted = "the id of a store as `baton status` shows it, such as 019ab5c2-7d1e-7a44-9c0f-3f1b2a6d5e88";
    text.trim().parse().map_err(|_| ValueError::new(text, wanted))
}

/// Reads a whole number.
///
/// # Errors
/// Where it is not one, or more than 64 bits.
pub fn integer(text: &str) -> Result<u64, ValueError> {
    text.trim().parse().map_err(|_| ValueError::new(text, "a whole number"))
}

/// Reads a factor or share with up to two places and answers it in percent: `2` is 200, `0.25` is 25.
///
/// # Errors
/// Where it is not such a number.
pub fn percent(text: &str) -> Result<u32, ValueError> {
    let wrong = || ValueError::new(text, "a number with at most two places, such as 2.0 or 0.25");
    let (whole, places) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    if places.len() > 2 || ![whole, places].iter().all(|part| part.bytes().all(|b| b.is_ascii_digit())) {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let places: u32 = format!("{places:0<2}").parse().map_err(|_| wrong())?;
    whole.checked_mul(100).and_then(|whole| whole.checked_add(places)).ok_or_else(wrong)
}

/// Reads a switch: `true` or `false`.
///
/// # Errors
/// Where it is neither.
pub fn switch(text: &str) -> Result<bool, ValueError> {
    text.trim().parse().map_err(|_| ValueError::new(text, "true or false"))
}

/// Reads one of several words.
///
/// # Errors
/// Where it is none of them; the error lists them.
pub fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, ValueError> {
    choices.iter().find(|(word, _)| *word == text.trim()).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        ValueError::new(text, format!("one of {}", words.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        for text in ["100", "", "fast", "-1s", "5 parsecs"] {
            assert!(duration(text).unwrap_err().to_string().contains("a duration with a unit"), "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("5 kB"), Ok(5_000));
        assert_eq!(size("17"), Ok(17));
        for text in ["", "MiB", "1.5MiB", "64M", "-1", "99999999999TiB", "64 MiB extra"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(size_text(64 << 20), "64MiB");
        assert_eq!(size_text(1000), "1000");
        assert_eq!(size_text(0), "0");
    }

    #[test]
    fn an_address_without_a_port_gets_the_port_of_baton() {
        assert_eq!(listen("127.0.0.1", CLIENT_PORT).unwrap().to_string(), "127.0.0.1:7470");
        assert_eq!(listen("[::1]:0", CLIENT_PORT).unwrap().to_string(), "[::1]:0");
        assert!(listen("localhost:7470", CLIENT_PORT).is_err());
        assert_eq!(listen("[::]", CLIENT_PORT).unwrap().to_string(), "[::]:7470");
        assert!(listen("[127.0.0.1]", CLIENT_PORT).is_err());
        assert_eq!(listen_if_any(" ", 7471), Ok(None));
        assert_eq!(host_port("broker-a").unwrap(), "broker-a:7470");
        assert_eq!(host_port("::1").unwrap(), "[::1]:7470");
        assert_eq!(host_port("[::1]:7").unwrap(), "[::1]:7");
        for text in ["", ":7470", "a:0", "a:99999", "a:b:7", "a b:1"] {
            assert!(host_port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn factors_become_percent() {
        for (text, value) in [("2", 200), ("1.5", 150), ("0.25", 25), ("0", 0)] {
            assert_eq!(percent(text), Ok(value));
        }
        for text in ["", "-1", "0.125", "1e3", "99999999", "+1", "."] {
            assert!(percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_right_ones() {
        let error = choice("sqlite", &[("database", 1), ("file", 2)]).unwrap_err();
        assert_eq!(error.to_string(), r#""sqlite" is not one of database, file"#);
    }
}
