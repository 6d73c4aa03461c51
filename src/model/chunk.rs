//! Consecutive messages of one topic, as they come from the store or from a publisher.

use super::id::{Offset, OffsetRange, ProducerId, Sequence};
use super::message::MessageBlock;
use super::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Who published a message, and as which of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The producer.
    pub producer: ProducerId,
    /// The number that the producer gave the message.
    pub sequence: Sequence,
}

/// What consecutive messages of a chunk have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// How many messages; at least 1.
    pub count: u32,
    /// When they were accepted.
    pub published_at: Timestamp,
    /// Origin of the first; the others follow it in sequence. `None` for what the broker itself published.
    pub origin: Option<Origin>,
}

/// Consecutive messages of one topic.
///
/// The counts of `stamps` add up to the count of `block`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Offset of the first message.
    pub first: Offset,
    /// The messages.
    pub block: MessageBlock,
    /// When and from whom they came, in order.
    pub stamps: Vec<Stamp>,
}

impl Chunk {
    /// The offsets of the messages.
    #[must_use]
    pub fn range(&self) -> OffsetRange {
        OffsetRange::new(self.first.0, self.first.0 + self.block.count() as u64)
    }

    /// The messages below `end`, which is behind the first.
    #[must_use]
    pub fn up_to(self, end: Offset) -> Self {
        let count =
            self.block.count().min(usize::try_from(end.0.saturating_sub(self.first.0)).unwrap_or(usize::MAX));
        if count == self.block.count() {
            return self;
        }
        let mut left = count as u64;
        let mut stamps = self.stamps;
        stamps.retain_mut(|stamp| {
            stamp.count = u32::try_from(left).map_or(stamp.count, |left| stamp.count.min(left));
            left -= u64::from(stamp.count);
            stamp.count > 0
        });
        Self { first: self.first, block: self.block.part(0, count), stamps }
    }
}
