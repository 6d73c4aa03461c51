//! What a user can set on a topic and on a group. Stored with them, in the records that create them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::Offset;
use super::name::Name;
use super::time::Timestamp;

/// Shortest lease, in milliseconds.
pub const LEASE_MS_MIN: u64 = 100;
/// Longest lease and longest wait between attempts, in milliseconds: 30 days.
pub const WAIT_MS_MAX: u64 = 30 * 86_400_000;
/// Smallest factor from one wait to the next, in percent: it stays the same.
pub const MULTIPLIER_PERCENT_MIN: u32 = 100;
/// Largest factor from one wait to the next, in percent.
pub const MULTIPLIER_PERCENT_MAX: u32 = 10_000;
/// Largest change of a wait by chance, in percent of it.
pub const JITTER_PERCENT_MAX: u32 = 100;
/// Shortest age at which messages go, in milliseconds.
pub const AGE_MS_MIN: u64 = 1_000;
/// Longest age at which messages go, in milliseconds: 100 years.
pub const AGE_MS_MAX: u64 = 36_500 * 86_400_000;
/// How long a temporary topic that never had a group stays without anything published to it, in milliseconds.
pub const TEMPORARY_IDLE_MS: u64 = 60_000;
/// Shortest time without a consumer after which a group goes, in milliseconds.
pub const IDLE_MS_MIN: u64 = 1_000;
/// How long an ephemeral group whose last consumer was lost waits for it to come back, in milliseconds.
pub const EPHEMERAL_GRACE_MS: u64 = 30_000;
/// Of so many messages that a group hands out, one at least is not of the highest priority that waits.
pub const PRIORITY_SHARE_DEFAULT: u32 = 100;
/// Least value of [`GroupSettings::priority_share`]: every second one.
pub const PRIORITY_SHARE_MIN: u32 = 2;

/// When the messages of a topic go: as soon as one of these says so. Where none is set, they stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// As soon as every group of the topic has settled them. A topic without a group keeps its messages.
    pub acked: bool,
    /// When they are older than this, in milliseconds, settled or not; [`AGE_MS_MIN`] to [`AGE_MS_MAX`].
    pub max_age_ms: Option<u64>,
    /// When newer ones take so many bytes, settled or not, about.
    pub max_bytes: Option<u64>,
    /// When there are so many newer ones, settled or not.
    pub max_messages: Option<u64>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { acked: true, max_age_ms: None, max_bytes: None, max_messages: None }
    }
}

/// What happens to messages for a topic that is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// Their producer waits until there is room. Others do not.
    #[default]
    Block,
    /// They are refused with `topic-full`.
    Reject,
    /// The oldest of the topic go, settled or not.
    DropOldest,
}

/// Settings of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopicSettings {
    /// When its messages go.
    pub retention: Retention,
    /// It is full with so many messages, those that wait for their time included. What is published to it while it is
    /// not full is taken whole.
    pub max_messages: Option<u64>,
    /// It is full with so many bytes of messages, about.
    pub max_bytes: Option<u64>,
    /// What happens when it is full.
    pub overflow: Overflow,
    /// Of several messages with one key only the newest stays.
    pub last_value: bool,
    /// Nothing of it is handed out, to no group.
    pub paused: bool,
    /// It goes with its last group. One that never had a group goes when nothing was published to it for
    /// [`TEMPORARY_IDLE_MS`].
    pub temporary: bool,
}

impl TopicSettings {
    /// Whether anything depends on how many messages there are, or how old.
    #[must_use]
    pub const fn is_bounded(&self) -> bool {
        let Retention { max_age_ms, max_bytes, max_messages, .. } = self.retention;
        max_age_ms.is_some()
            || max_bytes.is_some()
            || max_messages.is_some()
            || self.max_bytes.is_some()
            || self.max_messages.is_some()
    }
}

/// How a group shares its messages among its consumers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Strict turn among the consumers that have credit.
    #[default]
    RoundRobin,
    /// To the consumer with the fewest messages in flight.
    Fair,
    /// To one consumer only; the others wait to take over from it.
    Exclusive,
    /// Messages with the same key to the same consumer, one at a time.
    Key,
}

impl Policy {
    /// Whether a message waits for those before it, or some of them, to be done with.
    #[must_use]
    pub const fn keeps_order(self) -> bool {
        matches!(self, Self::Exclusive | Self::Key)
    }
}

/// When a group goes by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lifetime {
    /// Never.
    #[default]
    Durable,
    /// With its last consumer. Where that was lost, or its node, after [`EPHEMERAL_GRACE_MS`]: it may come back.
    Ephemeral,
    /// When it has had no consumer for so many milliseconds, [`IDLE_MS_MIN`] or more.
    Idle(u64),
}

/// How long a message waits before it is handed out again after a failed attempt.
///
/// The wait before attempt `n + 1` is `initial * multiplier^(n - 1)`, at most `maximum`, and then changed by up to
/// `jitter` of itself in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// Wait after the first failed attempt, in milliseconds; at most `maximum_ms`.
    pub initial_ms: u64,
    /// Factor from one attempt to the next, in percent, [`MULTIPLIER_PERCENT_MIN`] to [`MULTIPLIER_PERCENT_MAX`].
    pub multiplier_percent: u32,
    /// Longest wait, in milliseconds, at most [`WAIT_MS_MAX`].
    pub maximum_ms: u64,
    /// Largest change by chance, in percent of the wait, at most [`JITTER_PERCENT_MAX`].
    pub jitter_percent: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial_ms: 1_000, multiplier_percent: 200, maximum_ms: 60_000, jitter_percent: 20 }
    }
}

impl Backoff {
    /// The wait after `attempts` failed attempts, in milliseconds, before jitter.
    #[must_use]
    pub fn wait_ms(&self, attempts: u32) -> u64 {
        let mut wait = self.initial_ms.min(self.maximum_ms);
        for _ in 1..attempts {
            let next = u128::from(wait) * u128::from(self.multiplier_percent) / 100;
            let next = u64::try_from(next).unwrap_or(u64::MAX).min(self.maximum_ms);
            if next == wait {
                break;
            }
            wait = next;
        }
        wait
    }
}

/// Settings of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupSettings {
    /// How its messages are shared among its consumers.
    pub policy: Policy,
    /// How long a consumer may hold a delivery before it goes back, in milliseconds, [`LEASE_MS_MIN`] to
    /// [`WAIT_MS_MAX`].
    pub lease_ms: u64,
    /// After so many failed attempts a message goes to the dead-letter topic; 0 is "never".
    pub max_attempts: u32,
    /// Wait between attempts.
    pub backoff: Backoff,
    /// Where dead messages go; `None` is the topic's name with `.dead-letter` behind it.
    pub dead_letter: Option<Name>,
    /// Whether messages that expire go there too, rather than nowhere.
    pub dead_letter_expired: bool,
    /// Which messages it gets, an expression; all where there is none. The others are settled.
    pub filter: Option<String>,
    /// Of so many messages handed out, one at least is not of the highest priority that waits, if others wait.
    pub priority_share: u32,
    /// When it goes by itself.
    pub lifetime: Lifetime,
    /// Nothing is handed out.
    pub paused: bool,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            lease_ms: 30_000,
            max_attempts: 16,
            backoff: Backoff::default(),
            dead_letter: None,
            dead_letter_expired: false,
            filter: None,
            priority_share: PRIORITY_SHARE_DEFAULT,
            lifetime: Lifetime::default(),
            paused: false,
        }
    }
}

impl GroupSettings {
    /// How long a consumer may hold a delivery.
    #[must_use]
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
}

/// Where a new group begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// With the oldest message that is still there.
    #[default]
    Earliest,
    /// With the next message published.
    Latest,
    /// With this offset, or the nearest one that is still there.
    Offset(Offset),
    /// With the first message published at this time or later.
    Time(Timestamp),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_up_to_its_maximum() {
        let backoff =
            Backoff { initial_ms: 100, multiplier_percent: 300, maximum_ms: 1_000, jitter_percent: 0 };
        let waits: Vec<u64> = (1..=5).map(|attempts| backoff.wait_ms(attempts)).collect();
        assert_eq!(waits, [100, 300, 900, 1_000, 1_000]);
        assert_eq!(Backoff { initial_ms: 5_000, ..backoff }.wait_ms(1), 1_000);
        assert_eq!(Backoff { initial_ms: 0, ..backoff }.wait_ms(u32::MAX), 0);
        let endless = Backoff { maximum_ms: u64::MAX, multiplier_percent: u32::MAX, ..backoff };
        assert_eq!(endless.wait_ms(u32::MAX), u64::MAX);
    }
}
