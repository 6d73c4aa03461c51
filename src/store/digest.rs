//! What a store holds, in a few numbers: whether a copy has everything that its original has.
//!
//! A digest does not depend on the mode, on files, or on how the messages are cut into chunks. Two stores with the same
//! digest have the same state and the same messages at the same offsets.
//!
//! # What is summed
//!
//! The state: CRC32C of its encoded form. Each topic with messages: their count, the bytes of their encoded form, and
//! the CRC32C over all of them, for each message:
//!
//! ```text
//!      0  u64  offset
//!      8  u64  published_at
//!     16  u8   1 where it has an origin, else 0
//!     17  u64  producer, 0 for none
//!     25  u64  sequence, 0 for none
//!     33       the encoded message: see `model::message`
//! ```
//!
//! Numbers are little-endian.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::codec::{CodecError, encode};
use crate::model::chunk::{Chunk, Origin, Stamp};
use crate::model::id::{Sequence, TopicId};
use crate::model::snapshot::Snapshot;

/// Bytes before the encoded message.
const HEAD_BYTES: usize = 33;

/// What a store holds, in a few numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Checksum of the state.
    pub state: u32,
    /// The topics that have messages.
    pub topics: BTreeMap<TopicId, TopicDigest>,
}

/// What a topic holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicDigest {
    /// Messages.
    pub messages: u64,
    /// Bytes of their encoded form.
    pub bytes: u64,
    /// Checksum of all of them.
    pub checksum: u32,
}

impl Digest {
    /// That of a store with this state, no message counted yet.
    ///
    /// # Errors
    /// Where the state is too large to be encoded.
    pub fn begin(snapshot: &Snapshot) -> Result<Self, CodecError> {
        let mut bytes = Vec::new();
        encode(snapshot, &mut bytes)?;
        Ok(Self { state: crc32c::crc32c(&bytes), topics: BTreeMap::new() })
    }

    /// Counts the next messages of a topic.
    pub fn add(&mut self, topic: TopicId, chunk: &Chunk) {
        let sum = self.topics.entry(topic).or_default();
        for ((index, encoded), (published_at, origin)) in
            (0..).zip(chunk.block.iter()).zip(each(&chunk.stamps))
        {
            let mut head = [0; HEAD_BYTES];
            head[..8].copy_from_slice(&(chunk.first.0 + index).to_le_bytes());
            head[8..16].copy_from_slice(&published_at.to_le_bytes());
            if let Some(origin) = origin {
                head[16] = 1;
                head[17..25].copy_from_slice(&origin.producer.0.to_le_bytes());
                head[25..].copy_from_slice(&origin.sequence.0.to_le_bytes());
            }
            sum.checksum = crc32c::crc32c_append(crc32c::crc32c_append(sum.checksum, &head), &encoded);
            sum.messages += 1;
            sum.bytes += encoded.len() as u64;
        }
    }

    /// Messages of all topics.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.topics.values().map(|topic| topic.messages).sum()
    }

    /// Bytes of their encoded form.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.topics.values().map(|topic| topic.bytes).sum()
    }

    /// What the copy has in another way; `None` where it has all as it is here.
    #[must_use]
    pub fn difference(&self, copy: &Self) -> Option<String> {
        if self.state != copy.state {
            return Some("topics, groups or producers differ".to_owned());
        }
        let ids = self.topics.keys().chain(copy.topics.keys());
        let differing = ids.copied().find(|id| self.topics.get(id) != copy.topics.get(id))?;
        let count = |digest: &Self| digest.topics.get(&differing).map_or(0, |topic| topic.messages);
        Some(format!(
            "topic {differing}: {} messages in the original, {} in the copy, or others",
            count(self),
            count(copy)
        ))
    }
}

/// Time in milliseconds and origin of each message.
fn each(stamps: &[Stamp]) -> impl Iterator<Item = (u64, Option<Origin>)> + '_ {
    stamps.iter().flat_map(|stamp| {
        (0..u64::from(stamp.count)).map(|index| {
            let at = |origin: Origin| Origin { sequence: Sequence(origin.sequence.0 + index), ..origin };
            (stamp.published_at.0, stamp.origin.map(at))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Offset, ProducerId};
    use crate::model::message::{Message, MessageBlock};
    use crate::model::time::Timestamp;

    fn chunk(first: u64, bodies: &[&'static str], stamps: &[(u32, u64, Option<u64>)]) -> Chunk {
        let messages: Vec<Message> = bodies.iter().map(|body| Message::new(*body)).collect();
        let stamp = |&(count, at, sequence): &(u32, u64, Option<u64>)| Stamp {
            count,
            published_at: Timestamp(at),
            origin: sequence.map(|sequence| Origin { producer: ProducerId(1), sequence: Sequence(sequence) }),
        };
        Chunk {
            first: Offset(first),
            block: MessageBlock::encode(&messages),
            stamps: stamps.iter().map(stamp).collect(),
        }
    }

    fn digest(chunks: &[Chunk]) -> Digest {
        let mut digest = Digest::begin(&Snapshot::default()).unwrap();
        chunks.iter().for_each(|chunk| digest.add(TopicId(3), chunk));
        digest
    }

    #[test]
    fn a_digest_does_not_depend_on_how_messages_are_cut() {
        let whole = chunk(5, &["a", "b", "c"], &[(2, 9, Some(1)), (1, 9, None)]);
        let parts =
            [chunk(5, &["a"], &[(1, 9, Some(1))]), chunk(6, &["b", "c"], &[(1, 9, Some(2)), (1, 9, None)])];
        assert_eq!(digest(&[whole]), digest(&parts));
        assert_eq!((digest(&parts).messages(), digest(&parts).bytes()), (3, 18));
    }

    #[test]
    fn every_field_of_a_message_counts() {
        let one = digest(&[chunk(5, &["a"], &[(1, 9, Some(1))])]);
        for other in [
            chunk(6, &["a"], &[(1, 9, Some(1))]),
            chunk(5, &["b"], &[(1, 9, Some(1))]),
            chunk(5, &["a"], &[(1, 8, Some(1))]),
            chunk(5, &["a"], &[(1, 9, Some(2))]),
            chunk(5, &["a"], &[(1, 9, None)]),
        ] {
            let other = digest(&[other]);
            assert!(one.difference(&other).is_some_and(|text| text.starts_with("topic 3: 1 messages")));
        }
        assert_eq!(one.difference(&one), None);
        assert!(one.difference(&Digest { state: 0, ..one.clone() }).is_some());
    }

    #[test]
    fn the_sums_are_those_of_the_format() {
        let digest = digest(&[chunk(5, &["a"], &[(1, 9, Some(2))])]);
        let mut bytes = Vec::new();
        bytes.extend(5_u64.to_le_bytes());
        bytes.extend(9_u64.to_le_bytes());
        bytes.push(1);
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend([2, 0, 0, 0, 0, b'a']);
        assert_eq!(digest.topics[&TopicId(3)].checksum, crc32c::crc32c(&bytes));
    }
}
