//! Where the messages of each topic are within one file.
//!
//! An index has points, not every record: from the last point at or before an offset a reader walks the entries. A
//! topic gets a new point after [`POINT_BYTES`] of its own messages, or [`POINT_DISTANCE`] bytes of journal, so that
//! the walk is bounded and the index stays a small part of the segment. The index of the segment that is being
//! written is in memory; it is the last entry of the segment once that is full. That of a pack is its last entry.
//!
//! # Format, version 1
//!
//! The heads of an index entry are the `bincode` form of a list of [`TopicIndex`] with their topics, by topic.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::entry::ENTRY_HEAD_BYTES;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::store::codec::{self, CodecError};

/// Bytes of messages of a topic from one of its points to the next.
pub const POINT_BYTES: u64 = 16 << 10;
/// Bytes of journal from one point of a topic to the next, where the topic has few messages.
pub const POINT_DISTANCE: u64 = 256 << 10;

/// Most bytes that a topic takes in the encoded form, besides its points: five numbers.
const TOPIC_BYTES_MAX: u64 = 5 + 9 + 9 + 9;
/// Most bytes that a point takes: two numbers.
const POINT_BYTES_MAX: u64 = 9 + 9;

/// A message whose place is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its offset.
    pub offset: Offset,
    /// Where the entry that holds it begins, in bytes of the segment.
    pub at: u64,
}

/// Where the messages of one topic are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicIndex {
    /// Points, lowest first; at least one.
    pub points: Vec<Point>,
    /// The offset after the topic's last one in the segment.
    pub end: Offset,
    /// Bytes of the topic's messages since the last point.
    #[serde(skip)]
    pending: u64,
}

/// Where the messages of a segment are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentIndex {
    topics: HashMap<TopicId, TopicIndex>,
    point_count: u64,
}

impl SegmentIndex {
    /// Adds messages of a topic, `bytes` of them, that are in the entry at `at`.
    pub fn add(&mut self, topic: TopicId, range: OffsetRange, at: u64, bytes: u64) {
        let index = self.topics.entry(topic).or_default();
        let due = index
            .points
            .last()
            .is_none_or(|last| index.pending >= POINT_BYTES || at - last.at >= POINT_DISTANCE);
        if due {
            index.points.push(Point { offset: range.start, at });
            index.pending = 0;
            self.point_count += 1;
        }
        index.pending += bytes;
        index.end = range.end;
    }

    /// Where to begin walking for `offset`: an entry at or before the one that holds it. `None` where the segment
    /// does not have it.
    #[must_use]
    pub fn find(&self, topic: TopicId, offset: Offset) -> Option<u64> {
        let index = self.topics.get(&topic).filter(|index| offset < index.end)?;
        let after = index.points.partition_point(|point| point.offset <= offset);
        index.points[..after].last().map(|point| point.at)
    }

    /// The topics, each with offsets among which all its messages in the file are.
    pub fn topics(&self) -> impl Iterator<Item = (TopicId, OffsetRange)> + '_ {
        self.topics.iter().filter_map(|(&topic, index)| {
            let first = index.points.first()?;
            Some((topic, OffsetRange { start: first.offset, end: index.end }))
        })
    }

    /// Most bytes of the entry that this index becomes after `more` further calls of [`add`](Self::add).
    #[must_use]
    pub fn entry_bytes_max(&self, more: u64) -> u64 {
        let (topics, points) = (self.topics.len() as u64 + more, self.point_count + more);
        ENTRY_HEAD_BYTES as u64 + 16 + topics * TOPIC_BYTES_MAX + points * POINT_BYTES_MAX
    }

    /// Bytes of memory, about.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.topics.len() as u64 * 64 + self.point_count * 16
    }

    /// Appends the encoded form.
    ///
    /// # Errors
    /// As for [`codec::encode`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let mut topics: Vec<(TopicId, &TopicIndex)> =
            self.topics.iter().map(|(&id, index)| (id, index)).collect();
        topics.sort_unstable_by_key(|(id, _)| *id);
        codec::encode(&topics, out)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// As for [`codec::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let topics: Vec<(TopicId, TopicIndex)> = codec::decode(bytes)?;
        let point_count = topics.iter().map(|(_, index)| index.points.len() as u64).sum();
        Ok(Self { topics: topics.into_iter().collect(), point_count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> SegmentIndex {
        let mut index = SegmentIndex::default();
        for record in 0..1000 {
            let first = record * 10;
            index.add(TopicId(1), OffsetRange::new(first, first + 10), 4096 + record * 4096, 2000);
            if record % 100 == 0 {
                index.add(
                    TopicId(2),
                    OffsetRange::new(record / 100, record / 100 + 1),
                    4096 + record * 4096,
                    9,
                );
            }
        }
        index
    }

    #[test]
    fn an_offset_is_found_at_or_before_its_entry_and_not_far_before() {
        let index = filled();
        for offset in 0..10_000 {
            let (at, entry) = (index.find(TopicId(1), Offset(offset)).unwrap(), 4096 + offset / 10 * 4096);
            assert!(at <= entry && entry - at <= POINT_BYTES / 2000 * 4096 + 4096, "{offset}: {at} {entry}");
        }
        for offset in 0..10 {
            assert_eq!(index.find(TopicId(2), Offset(offset)), Some(4096 + offset * 100 * 4096));
        }
        assert_eq!(index.find(TopicId(1), Offset(10_000)), None);
        assert_eq!(index.find(TopicId(3), Offset(0)), None);
    }

    #[test]
    fn the_encoded_form_is_read_back_and_not_larger_than_said() {
        let index = filled();
        let mut bytes = Vec::new();
        index.encode(&mut bytes).unwrap();
        assert!(bytes.len() as u64 <= index.entry_bytes_max(0) - ENTRY_HEAD_BYTES as u64);
        let read = SegmentIndex::decode(&bytes).unwrap();
        for offset in 0..10_000 {
            assert_eq!(read.find(TopicId(1), Offset(offset)), index.find(TopicId(1), Offset(offset)));
        }
        assert_eq!(read.entry_bytes_max(3), index.entry_bytes_max(3));
    }

    #[test]
    fn an_index_has_these_bytes() {
        let mut index = SegmentIndex::default();
        index.add(TopicId(7), OffsetRange::new(3, 5), 4096, 100);
        let mut bytes = Vec::new();
        index.encode(&mut bytes).unwrap();
        assert_eq!(bytes, [1, 7, 1, 3, 251, 0, 16, 5]);
    }
}
