//! Values of flags that are more than a text or a number.

use std::time::Duration;

use batonmq::config::value;
use batonmq::model::filter::{Filter, FilterError};
use batonmq::model::id::Offset;
use batonmq::model::limits::PRIORITY_MAX;
use batonmq::model::name::Name;
use batonmq::model::position::Position;
use batonmq::model::settings::{Lifetime, Start};
use batonmq::model::time::Timestamp;
use bytes::Bytes;

/// A duration with its unit.
pub fn duration(text: &str) -> Result<Duration, value::ValueError> {
    value::duration(text)
}

/// A duration above zero.
pub fn duration_above_zero(text: &str) -> Result<Duration, value::ValueError> {
    let time = value::duration(text)?;
    if time.is_zero() { Err(value::ValueError::new(text, "longer than nothing")) } else { Ok(time) }
}

/// A size in bytes, with or without a unit; fits into memory.
pub fn size(text: &str) -> Result<usize, value::ValueError> {
    let size = value::size(text)?;
    usize::try_from(size).map_err(|_| value::ValueError::new(text, "a size that fits into memory"))
}

/// A factor or share, in percent.
pub fn percent(text: &str) -> Result<u32, value::ValueError> {
    value::percent(text)
}

/// One address of a node.
pub fn server(text: &str) -> Result<String, value::ValueError> {
    value::host_port(text)
}

/// A name of a topic, group or producer.
pub fn name(text: &str) -> Result<Name, batonmq::model::name::NameError> {
    Name::new(text)
}

/// A name of a topic, or a pattern of such names.
pub fn topic(text: &str) -> Result<Name, batonmq::model::name::NameError> {
    Name::try_from(text.to_owned())
}

/// When a group goes by itself.
pub fn lifetime(text: &str) -> Result<Lifetime, value::ValueError> {
    let wrong = || value::ValueError::new(text, "durable, ephemeral or idle=DURATION as in idle=30m");
    match text.split_once('=') {
        None if text == "durable" => Ok(Lifetime::Durable),
        None if text == "ephemeral" => Ok(Lifetime::Ephemeral),
        Some(("idle", time)) => {
            let time = value::duration(time)?;
            Ok(Lifetime::Idle(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
        }
        _ => Err(wrong()),
    }
}

/// Where a group begins.
pub fn start(text: &str) -> Result<Start, value::ValueError> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        _ => value::integer(text)
            .map(|offset| Start::Offset(Offset(offset)))
            .or_else(|_| time(text).map(Start::Time))
            .map_err(|_| {
                value::ValueError::new(
                    text,
                    "earliest, latest, an offset, or a time such as 2026-11-26T12:00:00Z",
                )
            }),
    }
}

/// A point in time, in UTC: RFC 3339, of which the time of day may be shortened and the zone left out.
pub fn time(text: &str) -> Result<Timestamp, value::ValueError> {
    let known = humantime::parse_rfc3339_weak(text).ok();
    let known = known.or_else(|| humantime::parse_rfc3339_weak(&format!("{text} 00:00:00")).ok());
    known
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .map(Timestamp)
        .ok_or_else(|| {
            value::ValueError::new(text, "a time in UTC such as 2026-11-26T12:00:00Z or 2026-11-26")
        })
}

/// A priority.
pub fn priority(text: &str) -> Result<u8, value::ValueError> {
    let known = text.parse().ok().filter(|priority| *priority <= PRIORITY_MAX);
    known.ok_or_else(|| value::ValueError::new(text, "a priority from 0, the lowest, to 9"))
}

/// A filter: what is wrong with one, and where, is shown below it.
pub fn filter(text: &str) -> Result<Filter, FilterPicture> {
    Filter::parse(text).map_err(FilterPicture)
}

/// Why a text is no filter, with the text and a caret at the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {}\n\n{}", .0.column(), .0.picture())]
pub struct FilterPicture(FilterError);

/// A position in a topic or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The oldest message that is still there.
    Earliest,
    /// This message, or the next one that is still there.
    Position(Position),
    /// What was published at this time or later.
    Time(Timestamp),
}

/// Where to begin to look.
pub fn from(text: &str) -> Result<From, value::ValueError> {
    if text == "earliest" {
        return Ok(From::Earliest);
    }
    let position = text.parse().map(From::Position).ok();
    position.or_else(|| time(text).ok().map(From::Time)).ok_or_else(|| {
        let wanted = "earliest, an offset such as 17 or 9:17, or a time such as 2026-11-26T12:00:00Z";
        value::ValueError::new(text, wanted)
    })
}

/// A header, `NAME=VALUE`.
pub fn header(text: &str) -> Result<(String, Bytes), value::ValueError> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok((name.to_owned(), Bytes::copy_from_slice(value.as_bytes())))
        }
        _ => Err(value::ValueError::new(text, "a header NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_utc() {
        for text in ["2026-11-26", "2026-11-26 00:00:00", "2026-11-26T00:00:00Z"] {
            assert_eq!(time(text), Ok(Timestamp(1_795_651_200_000)), "{text}");
        }
        assert_eq!(start("2026-11-26"), Ok(Start::Time(Timestamp(1_795_651_200_000))));
        assert!(time("1969-01-01").is_err() && time("noon").is_err());
    }

    #[test]
    fn one_begins_to_look_at_a_word_a_position_or_a_time() {
        assert_eq!(from("earliest"), Ok(From::Earliest));
        assert_eq!(from("17"), Ok(From::Position(Position::from(Offset(17)))));
        assert_eq!(from("9:17"), Ok(From::Position(Position { priority: 9, offset: Offset(17) })));
        assert_eq!(from("2026-11-26"), Ok(From::Time(Timestamp(1_795_651_200_000))));
        assert!(from("latest").unwrap_err().to_string().contains("an offset such as 17"));
    }

    #[test]
    fn a_filter_that_is_wrong_is_shown_with_a_caret() {
        let picture = "column 5\n\nn > = 4\n    ^ expected a value, such as price, 'text' or 3, found \"=\"";
        assert_eq!(filter("n > = 4").unwrap_err().to_string(), picture);
    }

    #[test]
    fn a_group_starts_at_a_word_or_an_offset() {
        assert_eq!(start("earliest"), Ok(Start::Earliest));
        assert_eq!(start("17"), Ok(Start::Offset(Offset(17))));
        assert!(start("yesterday").unwrap_err().to_string().contains("earliest, latest, an offset"));
    }

    #[test]
    fn a_lifetime_is_a_word_or_a_time() {
        assert_eq!(lifetime("durable"), Ok(Lifetime::Durable));
        assert_eq!(lifetime("ephemeral"), Ok(Lifetime::Ephemeral));
        assert_eq!(lifetime("idle=30m"), Ok(Lifetime::Idle(30 * 60_000)));
        for text in ["idle", "idle=", "idle=soon", "30m", "durable=1s"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_value_of_a_header_may_contain_the_sign() {
        assert_eq!(header("a=b=c").unwrap(), ("a".to_owned(), Bytes::from("b=c")));
        assert_eq!(header("a=").unwrap().1.len(), 0);
        assert!(header("=b").is_err() && header("a").is_err());
    }
}
