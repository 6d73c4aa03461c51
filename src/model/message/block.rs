//! Encoded messages, one behind the other, as they travel through the process.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::parts::FLAGS_SCHEDULE;
use super::{FLAG_EXPIRES_AT, Message, MessageError, Parts};
use crate::model::header::is_set_by_node;
use crate::model::limits::{HEADER_COUNT_MAX, Limits};

/// Of the memory that a block keeps alive, the part that it has itself where it is worth to keep as it is.
const OWN_FRACTION: usize = 4;

/// Encoded messages, one behind the other in one piece of memory, known to be valid. Cloning shares the memory.
#[derive(Clone, Debug)]
pub struct MessageBlock {
    bytes: Bytes,
    /// Bytes of the memory that they are in, with what else is there: as long as a block lives, all of it is held.
    held: usize,
    /// Where each message ends, counted from the start of the block.
    ends: Arc<[u32]>,
    /// Whether a message has `deliver_at`, `expires_at` or a priority.
    scheduled: bool,
}

/// Blocks are the same where their messages are.
impl PartialEq for MessageBlock {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for MessageBlock {}

impl MessageBlock {
    /// Checks bytes that somebody publishes and makes them a block.
    ///
    /// # Errors
    /// The first message that is not valid, passes a limit or has a header that only the node sets.
    pub fn parse(bytes: Bytes, limits: &Limits) -> Result<Self, MessageError> {
        Self::split(bytes, |encoded, index| {
            // The common message, a body and nothing else, needs no closer look.
            let too_large = encoded.len() as u64 > limits.body_bytes_max;
            if encoded.get(4) == Some(&0) && !too_large {
                return Ok(());
            }
            let parts = Parts::read(encoded, index)?;
            // As a publisher counts them: the lengths between them are not theirs.
            let (mut header_count, mut header_bytes) = (0, 0);
            for (name, value) in parts.headers() {
                if is_set_by_node(name) {
                    return Err(MessageError::Reserved { index, name: name.to_owned() });
                }
                header_count += 1;
                header_bytes += name.len() + value.len();
            }
            for (field, len, max) in [
                ("header count", header_count, HEADER_COUNT_MAX as u64),
                ("headers", header_bytes, limits.header_bytes_max),
                ("body", parts.body.len(), limits.body_bytes_max),
            ] {
                if len as u64 > max {
                    return Err(MessageError::TooLarge { index, field, len: len as u64, max });
                }
            }
            Ok(())
        })
    }

    /// Makes bytes that the process itself stored, and whose checksum was right, a block.
    ///
    /// # Errors
    /// Where the lengths do not add up: the store was written by something else.
    pub fn from_store(bytes: Bytes) -> Result<Self, MessageError> {
        Self::split(bytes, |_, _| Ok(()))
    }

    /// Encodes messages that have been [checked](Message::check).
    #[must_use]
    pub fn encode<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Self {
        let mut bytes = BytesMut::new();
        let mut ends = Vec::new();
        let mut scheduled = false;
        for message in messages {
            message.encode(&mut bytes);
            ends.push(bytes.len() as u32);
            scheduled |= message.deliver_at.is_some() || message.expires_at.is_some() || message.priority > 0;
        }
        Self::new(bytes.freeze(), ends.into(), scheduled)
    }

    /// A block with memory of its own.
    fn new(bytes: Bytes, ends: Arc<[u32]>, scheduled: bool) -> Self {
        Self { held: bytes.len(), bytes, ends, scheduled }
    }

    /// The same block, whose bytes are in memory of `held` bytes together with others.
    #[must_use]
    pub fn within(self, held: usize) -> Self {
        Self { held: held.max(self.bytes.len()), ..self }
    }

    /// The same block to be kept for long: in memory of its own where it is a small part of the memory that it would
    /// hold.
    #[must_use]
    pub fn to_keep(self) -> Self {
        if self.bytes.len() >= self.held / OWN_FRACTION {
            return self;
        }
        Self::new(Bytes::copy_from_slice(&self.bytes), self.ends, self.scheduled)
    }

    fn split(
        bytes: Bytes,
        mut check: impl FnMut(&[u8], usize) -> Result<(), MessageError>,
    ) -> Result<Self, MessageError> {
        let mut ends = Vec::with_capacity(Self::count_estimate(&bytes));
        let mut flags = 0;
        let mut at = 0;
        while at < bytes.len() {
            let index = ends.len();
            let rest = &bytes[at..];
            let truncated = MessageError::Truncated { index, field: "length" };
            let Some(len) = rest.first_chunk().map(|len| u32::from_le_bytes(*len) as usize) else {
                return Err(truncated);
            };
            if len == 0 || len > rest.len() - 4 {
                return Err(truncated);
            }
            check(&rest[..4 + len], index)?;
            flags |= rest[4];
            at += 4 + len;
            ends.push(u32::try_from(at).map_err(|_| MessageError::Invalid { index, field: "block" })?);
        }
        Ok(Self::new(bytes, ends.into(), flags & FLAGS_SCHEDULE != 0))
    }

    /// How many messages there would be if all were like the first: never more than the bytes allow.
    fn count_estimate(bytes: &Bytes) -> usize {
        match bytes.first_chunk().map(|len| u32::from_le_bytes(*len) as usize) {
            Some(len) if len > 0 => bytes.len() / (len + 4) + 1,
            _ => 0,
        }
    }

    /// Number of messages.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether a message of the block has `deliver_at`, `expires_at` or a priority.
    #[must_use]
    pub fn is_scheduled(&self) -> bool {
        self.scheduled
    }

    /// The encoded messages.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Where message `index` begins, in bytes from the start of the block; the block's length for `count()`.
    ///
    /// # Panics
    /// Where `index` is above [`count`](Self::count).
    #[must_use]
    pub fn position(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.ends[index - 1] as usize }
    }

    /// Bytes of the messages from `start` up to, not including, `end`.
    ///
    /// # Panics
    /// Where the indexes are not in the block.
    #[must_use]
    pub fn byte_len(&self, start: usize, end: usize) -> usize {
        self.position(end) - self.position(start)
    }

    /// The encoded message at `index`, its length in front.
    ///
    /// # Panics
    /// Where the index is not in the block.
    #[must_use]
    pub fn encoded(&self, index: usize) -> &[u8] {
        &self.bytes[self.position(index)..self.position(index + 1)]
    }

    /// Whether the message at `index` has `expires_at`.
    ///
    /// # Panics
    /// Where the index is not in the block.
    #[must_use]
    pub fn may_expire(&self, index: usize) -> bool {
        self.scheduled && self.encoded(index)[4] & FLAG_EXPIRES_AT != 0
    }

    /// The encoded messages from `start` up to, not including, `end`; shares the memory.
    ///
    /// # Panics
    /// Where the indexes are not in the block.
    #[must_use]
    pub fn slice(&self, start: usize, end: usize) -> Bytes {
        self.bytes.slice(self.position(start)..self.position(end))
    }

    /// The block without its first `count` messages; shares the memory.
    ///
    /// # Panics
    /// Where the block has fewer messages.
    #[must_use]
    pub fn skip(&self, count: usize) -> Self {
        self.part(count, self.count())
    }

    /// The block of the messages from `start` up to, not including, `end`; shares the memory.
    ///
    /// # Panics
    /// Where the indexes are not in the block.
    #[must_use]
    pub fn part(&self, start: usize, end: usize) -> Self {
        if start == 0 && end == self.count() {
            return self.clone();
        }
        let cut = self.position(start);
        let ends: Arc<[u32]> = self.ends[start..end].iter().map(|end| end - cut as u32).collect();
        let bytes = self.slice(start, end);
        let flags_at = |index: usize| if index == 0 { 4 } else { ends[index - 1] as usize + 4 };
        let scheduled =
            self.scheduled && (0..ends.len()).any(|index| bytes[flags_at(index)] & FLAGS_SCHEDULE != 0);
        Self { bytes, held: self.held, ends, scheduled }
    }

    /// The block of the messages in these ranges of indexes, in their order; copies them.
    ///
    /// # Panics
    /// Where the indexes are not in the block.
    #[must_use]
    pub fn pick(&self, runs: &[(usize, usize)]) -> Self {
        let len = runs.iter().map(|&(start, end)| self.byte_len(start, end)).sum();
        let mut bytes = BytesMut::with_capacity(len);
        let mut ends = Vec::with_capacity(runs.iter().map(|(start, end)| end - start).sum());
        let mut flags = 0;
        for index in runs.iter().flat_map(|&(start, end)| start..end) {
            let encoded = self.encoded(index);
            bytes.put_slice(encoded);
            flags |= encoded[4];
            ends.push(bytes.len() as u32);
        }
        Self::new(bytes.freeze(), ends.into(), flags & FLAGS_SCHEDULE != 0)
    }

    /// How many messages from `start` on, and before `end`, have together at most `bytes_max` bytes.
    ///
    /// # Panics
    /// Where the indexes are not in the block.
    #[must_use]
    pub fn count_within(&self, start: usize, end: usize, bytes_max: u64) -> usize {
        let from = self.position(start) as u64;
        if self.position(end) as u64 - from <= bytes_max {
            return end - start;
        }
        self.ends[start..end].partition_point(|&end| u64::from(end) - from <= bytes_max)
    }

    /// The encoded messages, each with its length in front.
    pub fn iter(&self) -> impl Iterator<Item = Bytes> + '_ {
        (0..self.count()).map(|index| self.slice(index, index + 1))
    }

    /// Reads message `index`.
    ///
    /// # Errors
    /// Only where a block [from the store](Self::from_store) was written by something else.
    ///
    /// # Panics
    /// Where the index is not in the block.
    pub fn message(&self, index: usize) -> Result<Message, MessageError> {
        Message::decode(&self.slice(index, index + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_part_that_is_to_be_kept_gets_memory_of_its_own() {
        let messages: Vec<Message> = (0..16).map(|number: u8| Message::new(vec![number; 100])).collect();
        let block = MessageBlock::encode(&messages);
        let (large, small) = (block.part(0, 4), block.part(3, 6));
        let address = |block: &MessageBlock| block.bytes().as_ptr();
        assert_eq!(address(&large.clone().to_keep()), address(&large));
        let kept = small.clone().to_keep();
        assert_ne!(address(&kept), address(&small));
        assert_eq!((&kept, kept.message(2).unwrap()), (&small, Message::new(vec![5; 100])));
        assert_eq!(address(&kept.clone().to_keep()), address(&kept), "it is its own now");
        assert_ne!(address(&block.clone().within(1 << 20).to_keep()), address(&block));
    }
}
