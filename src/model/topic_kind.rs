//! What a topic is: one that clients name, or a part of another.
//!
//! Parts have no name of their own, and only the broker appends to them. They are how what would break the order of
//! a log is kept in logs all the same: priorities, and messages that wait for a time.

use serde::{Deserialize, Serialize};

use super::id::TopicId;
use super::time::Timestamp;

/// What a topic is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopicKind {
    /// Clients publish to it and consume from it by its name.
    #[default]
    Named,
    /// All topics whose names match its own, a pattern. It has groups and no messages.
    Pattern,
    /// The messages of one priority of another topic.
    Lane {
        /// The other topic.
        of: TopicId,
        /// The priority, 1 to 9: those of priority 0 are in the other topic itself.
        priority: u8,
    },
    /// What of another topic waits for a time.
    Slot {
        /// The other topic.
        of: TopicId,
        /// What waits.
        waiting: Waiting,
        /// The earliest time at which any of it is due.
        from: Timestamp,
        /// The first time at which none of it is due any more.
        until: Timestamp,
    },
}

/// What waits in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waiting {
    /// Messages that are to be delivered later.
    Delayed,
    /// Notes of messages that will expire.
    Expiring,
}

impl TopicKind {
    /// The topic that this one is a part of.
    #[must_use]
    pub const fn part_of(self) -> Option<TopicId> {
        match self {
            Self::Named | Self::Pattern => None,
            Self::Lane { of, .. } | Self::Slot { of, .. } => Some(of),
        }
    }

    /// The same slot, for what is due from `from` on and before `until`; `None` where it is no slot.
    #[must_use]
    pub const fn moved_to(self, from: Timestamp, until: Timestamp) -> Option<Self> {
        match self {
            Self::Slot { of, waiting, .. } => Some(Self::Slot { of, waiting, from, until }),
            _ => None,
        }
    }

    /// The priority of its messages, where they have one in common.
    #[must_use]
    pub const fn priority(self) -> u8 {
        match self {
            Self::Lane { priority, .. } => priority,
            _ => 0,
        }
    }
}
