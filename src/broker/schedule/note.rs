//! Notes of messages that will expire.
//!
//! A note is a message of a slot: its `deliver_at` is when they expire, and its body is 16 bytes: u32 the topic they
//! are in, u64 the offset of the first, u32 how many; little-endian.

use bytes::{BufMut, BytesMut};

use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::message::Message;
use crate::model::time::Timestamp;

/// Consecutive messages that expire at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker) struct Note {
    pub at: Timestamp,
    pub topic: TopicId,
    pub range: OffsetRange,
}

impl Note {
    /// The note as a message.
    pub fn encode(self) -> Message {
        let mut body = BytesMut::with_capacity(16);
        body.put_u32_le(self.topic.0);
        body.put_u64_le(self.range.start.0);
        body.put_u32_le(u32::try_from(self.range.len()).unwrap_or(u32::MAX));
        Message { deliver_at: Some(self.at), body: body.freeze(), ..Message::default() }
    }

    /// Reads a note; `None` where it is none.
    pub fn decode(message: &Message) -> Option<Self> {
        let (topic, rest) = message.body.split_first_chunk()?;
        let (first, rest) = rest.split_first_chunk()?;
        let count: &[u8; 4] = rest.try_into().ok()?;
        let first = u64::from_le_bytes(*first);
        let end = first.checked_add(u64::from(u32::from_le_bytes(*count)))?;
        let range = OffsetRange { start: Offset(first), end: Offset(end) };
        Some(Self { at: message.deliver_at?, topic: TopicId(u32::from_le_bytes(*topic)), range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let note = Note { at: Timestamp(9), topic: TopicId(0x0102_0304), range: OffsetRange::new(258, 262) };
        let message = note.encode();
        assert_eq!(message.body[..], [4, 3, 2, 1, 2, 1, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(Note::decode(&message), Some(note));
        for len in 0..16 {
            let short = Message { body: message.body.slice(..len), ..message.clone() };
            assert_eq!(Note::decode(&short), None);
        }
    }
}
