//! What is known of a message that a group has handed out in vain.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// Failures of a message that are kept, the newest ones.
pub const FAILURES_KEPT: usize = 8;

/// Why a delivery came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReturnReason {
    /// The consumer gave it back to be tried again.
    Nacked,
    /// The consumer held it for longer than the lease.
    LeaseExpired,
    /// The consumer's connection ended.
    ConsumerLost,
    /// The consumer wants it dead-lettered.
    Rejected,
    /// Its time was over before anybody got it.
    Expired,
}

impl ReturnReason {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nacked => "nacked",
            Self::LeaseExpired => "lease-expired",
            Self::ConsumerLost => "consumer-lost",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
        }
    }
}

/// One attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When it came back.
    pub at: Timestamp,
    /// Why.
    pub reason: ReturnReason,
    /// What the consumer said about it, at most [`REASON_BYTES_MAX`](super::limits::REASON_BYTES_MAX) bytes.
    pub text: Option<Arc<str>>,
}

/// What is known of a message that was handed out in vain. Cloning shares the failures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// How often it was handed out and came back; at least 1.
    pub handed_out: u32,
    /// How many of these attempts failed. What was given back untouched is not among them.
    pub failed: u32,
    /// Not handed out again before this.
    pub due_at: Timestamp,
    /// The last failures, at most [`FAILURES_KEPT`], oldest first.
    pub failures: Arc<[Failure]>,
}

impl Retry {
    /// Notes that the message came back untouched.
    #[must_use]
    pub fn released(&self, now: Timestamp) -> Self {
        Self { handed_out: self.handed_out.saturating_add(1), due_at: now, ..self.clone() }
    }

    /// Notes a failed attempt; the next one is due at `due_at`.
    #[must_use]
    pub fn failed(&self, failure: Failure, due_at: Timestamp) -> Self {
        let skipped = (self.failures.len() + 1).saturating_sub(FAILURES_KEPT);
        let failures = self.failures.iter().skip(skipped).cloned().chain([failure]);
        Self {
            handed_out: self.handed_out.saturating_add(1),
            failed: self.failed.saturating_add(1),
            due_at,
            failures: failures.collect(),
        }
    }

    /// Notes that its time is over: no further attempt, and none that failed.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> Self {
        let failure = Failure { at: now, reason: ReturnReason::Expired, text: None };
        let Self { handed_out, failed, .. } = *self;
        Self { handed_out, failed, ..self.failed(failure, now) }
    }

    /// The last failure.
    #[must_use]
    pub fn last_failure(&self) -> Option<&Failure> {
        self.failures.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_failures_are_kept() {
        let mut retry = Retry::default();
        for at in 0..20 {
            let failure = Failure { at: Timestamp(at), reason: ReturnReason::Nacked, text: None };
            retry = retry.failed(failure, Timestamp(at + 1)).released(Timestamp(at + 2));
        }
        assert_eq!((retry.handed_out, retry.failed, retry.due_at), (40, 20, Timestamp(21)));
        let kept: Vec<u64> = retry.failures.iter().map(|failure| failure.at.0).collect();
        assert_eq!(kept, (20 - FAILURES_KEPT as u64..20).collect::<Vec<u64>>());
    }
}
