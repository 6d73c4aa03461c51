//! Points in store time and their text forms. Reads no clock: the engine owns the clock.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A point in store time: milliseconds since 1970-01-01 UTC. Store time never runs backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

/// A store time, and when the node that has it said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The store time.
    pub time: Timestamp,
    /// When it was that, by the monotonic time of this host.
    pub at: Instant,
}

impl Sighting {
    /// The store time at a later point of monotonic time.
    #[must_use]
    pub fn at(self, now: Instant) -> Timestamp {
        self.time.after(now.saturating_duration_since(self.at))
    }
}

impl Timestamp {
    /// The point `duration` later; stays at the far end instead of wrapping.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this point; zero where `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::time::UNIX_EPOCH.checked_add(Duration::from_millis(self.0)) {
            Some(time) if self.0 < 253_402_300_800_000 => humantime::format_rfc3339_millis(time).fmt(f),
            _ => write!(f, "{} ms", self.0),
        }
    }
}
