//! Numbers with a meaning: what identifies a topic, a group, a producer, a place in a log, a mastership.
//!
//! Each is a type of its own, so that two of them are never swapped. None is ever reused: ids are handed out
//! upwards by the broker, epochs by the claim on the shared directory.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number that follows this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A topic, for the life of the store. Never reused after the topic was deleted.
    TopicId(u32)
}
number! {
    /// A consumer group, for the life of the store. Never reused after the group was deleted.
    GroupId(u32)
}
number! {
    /// A route, for the life of the store. Never reused after the route was deleted.
    RouteId(u32)
}
number! {
    /// One incarnation of a named producer. A name that expired and comes back gets a new id.
    ProducerId(u64)
}
number! {
    /// Number of a message within its producer. The first message has 1; 0 means "none yet".
    Sequence(u64)
}
number! {
    /// Place of a message in its topic. The first message has 0; offsets are never reused.
    Offset(u64)
}
number! {
    /// Number of a mastership. Claimed once, only ever grows; 0 means "no master yet".
    Epoch(u64)
}
number! {
    /// One client connection, within the life of the process.
    SessionId(u64)
}

/// A half-open range of offsets: `start` is in it, `end` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OffsetRange {
    /// First offset of the range.
    pub start: Offset,
    /// First offset after the range.
    pub end: Offset,
}

impl OffsetRange {
    /// All offsets that a message can have.
    pub const ALL: Self = Self::new(0, u64::MAX);

    /// The range from `start` up to, not including, `end`.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start: Offset(start), end: Offset(end) }
    }

    /// The range that holds one offset.
    #[must_use]
    pub const fn one(offset: Offset) -> Self {
        Self { start: offset, end: Offset(offset.0 + 1) }
    }

    /// How many offsets are in the range; 0 where `end` is not after `start`.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether no offset is in the range.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.end.0 <= self.start.0
    }

    /// Whether `offset` is in the range.
    #[must_use]
    pub const fn contains(self, offset: Offset) -> bool {
        self.start.0 <= offset.0 && offset.0 < self.end.0
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}
