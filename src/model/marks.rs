//! A sparse history of a topic's growth, from which sizes and times of parts of it are estimated without reading
//! messages.
//!
//! Does not know where the topic starts and ends: its owner does, and says so with each question. A pure function of
//! the calls that change it: whoever makes the same ones in the same order holds the same marks. Where blocks begin and
//! when the topic was trimmed are part of that: a block that is appended in two parts may leave one mark more.
//!
//! How good the estimates are: an answer lies between the two neighbouring marks around what was asked for, or between
//! the last mark and the end of the topic, and so does the truth. So the error is at most the gap between the two. Let
//! `L` be the most bytes there ever were from the first mark to the end, and `B` the bytes of the largest block. Then
//! no gap is larger than
//!
//! ```text
//! max(L / 16, max(64 KiB, L / 64) + B)
//! ```
//!
//! Proof. Before a block is counted, the last mark is less than `max(64 KiB, L / 64)` behind, or the block gets a mark.
//! So a gap that lies between two marks as they were set, or after the last one, is at most that and one block. Any
//! other gap came about by forgetting a mark. There were 65 then, with 64 gaps, which make 32 pairs that share no gap.
//! Their shares of the bytes add up to 1 at most, and so do their shares of the time. So in one pair both shares
//! together are at most 2 / 32, and the mark that went joined a pair whose larger share is no larger than that:
//! `L / 16`. Where bytes and time do not compete, as they grow alike or one stands still, it is `L / 32`.
//!
//! For times the same holds with the longest time from the first mark to the end as `L`, one second in place of 64 KiB
//! and the longest pause between two blocks as `B`.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::id::Offset;
use super::time::Timestamp;

/// Marks of one topic. With their names they take some 4 KiB at most where they are stored.
pub const MARKS_MAX: usize = 64;

/// Bytes between two marks below which a further one would tell nothing worth its place.
const GAP_BYTES_MIN: u64 = 64 << 10;

/// Time between two marks below which a further one would tell nothing worth its place.
const GAP_TIME_MIN: Duration = Duration::from_secs(1);

/// A mark is set where this part of the bytes or of the time was added since the last one: fine enough that marks
/// which are joined later are still small, coarse enough that a long history does not set them for nothing.
const GAP_PART: u32 = 64;

/// What was known when one message was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The message, the first of its block.
    #[serde(rename = "o")]
    pub offset: Offset,
    /// When it was published.
    #[serde(rename = "t")]
    pub at: Timestamp,
    /// Bytes that had ever been appended before it.
    #[serde(rename = "b")]
    pub bytes: u64,
}

/// Why marks are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarksError {
    /// There are more than [`MARKS_MAX`].
    #[error("{0} marks, more than {MARKS_MAX}")]
    TooMany(usize),
    /// Estimates between them would make no sense.
    #[error("marks that are out of order")]
    OutOfOrder,
}

/// The marks of one topic, at most [`MARKS_MAX`].
///
/// Offsets of marks grow; their bytes and times do not fall. Marks are exact; what lies between two is estimated as if
/// the topic had grown evenly there. All bytes count from the beginning of the topic, trimmed ones too.
///
/// `end` is the offset that the next message gets. Every estimate is monotonic: a larger offset or a later time
/// never gives a lower answer, more bytes left never a higher one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Marks {
    #[serde(rename = "m")]
    list: Vec<Mark>,
    /// Bytes ever appended.
    #[serde(rename = "b")]
    bytes: u64,
    /// When the last message was published.
    #[serde(rename = "t")]
    last_at: Timestamp,
}

/// Refuses marks that are out of order: estimates between them would make no sense.
impl<'de> Deserialize<'de> for Marks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            m: Vec<Mark>,
            b: u64,
            t: Timestamp,
        }
        let Fields { m: list, b: bytes, t: last_at } = Fields::deserialize(deserializer)?;
        Self::of(list, bytes, last_at).map_err(D::Error::custom)
    }
}

impl Marks {
    /// The history of a topic to which nothing was appended.
    #[must_use]
    pub const fn new() -> Self {
        Self { list: Vec::new(), bytes: 0, last_at: Timestamp(0) }
    }

    /// The marks that a [list](Self::list) was of, with the bytes [ever](Self::bytes_ever) appended and when the
    /// [last](Self::last_at) message was published.
    ///
    /// # Errors
    /// Where there are no such marks.
    pub fn of(list: Vec<Mark>, bytes: u64, last_at: Timestamp) -> Result<Self, MarksError> {
        if list.len() > MARKS_MAX {
            return Err(MarksError::TooMany(list.len()));
        }
        let follows = list.windows(2).all(|pair| {
            pair[0].offset < pair[1].offset && pair[0].at <= pair[1].at && pair[0].bytes <= pair[1].bytes
        });
        let complete = match list.last() {
            Some(last) => last.at <= last_at && last.bytes <= bytes,
            None => bytes == 0 && last_at == Timestamp(0),
        };
        if follows && complete { Ok(Self { list, bytes, last_at }) } else { Err(MarksError::OutOfOrder) }
    }

    /// The marks, lowest first. Whenever one is set the last one is another, and whenever some are trimmed their
    /// number is.
    #[must_use]
    pub fn list(&self) -> &[Mark] {
        &self.list
    }

    /// When the last message was published; 0 where none ever was.
    #[must_use]
    pub const fn last_at(&self) -> Timestamp {
        self.last_at
    }

    /// Notes that a block of `count` messages from `first` on, `bytes` in all, was published `at`.
    ///
    /// A block of no messages changes nothing. A time before the last one counts as the last one. A block that does
    /// not begin after the last mark is counted without a mark of its own.
    pub fn appended(&mut self, first: Offset, count: u64, bytes: u64, at: Timestamp) {
        if count == 0 {
            return;
        }
        self.last_at = self.last_at.max(at);
        if self.is_due(first) {
            self.list.push(Mark { offset: first, at: self.last_at, bytes: self.bytes });
            if self.list.len() > MARKS_MAX {
                self.forget_least_missed();
            }
        }
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Forgets what is only needed to tell about messages before `start`. Estimates for others stay the same.
    pub fn trim(&mut self, start: Offset) {
        let needed_from = self.last_up_to(start).unwrap_or(0);
        self.list.drain(..needed_from);
    }

    /// Bytes that were ever appended; exact.
    #[must_use]
    pub const fn bytes_ever(&self) -> u64 {
        self.bytes
    }

    /// About how many bytes were ever appended before `offset`; exact at marks and from `end` on.
    ///
    /// Before the first mark, which [`trim`](Self::trim) may have moved, what holds at that mark.
    #[must_use]
    pub fn bytes_before(&self, offset: Offset, end: Offset) -> u64 {
        self.between(offset, end, |mark| mark.bytes)
    }

    /// About when the message `offset` was published; exact at marks, and the time of the last message from `end` on.
    ///
    /// Before the first mark, which [`trim`](Self::trim) may have moved, what holds at that mark.
    #[must_use]
    pub fn published_about(&self, offset: Offset, end: Offset) -> Timestamp {
        Timestamp(self.between(offset, end, |mark| mark.at.0))
    }

    /// The smallest offset from which on there are at most `bytes` bytes, going by [`bytes_before`](Self::bytes_before).
    ///
    /// Not below the first mark, and not above `end`.
    #[must_use]
    pub fn offset_with_bytes_left(&self, bytes: u64, end: Offset) -> Offset {
        let target = self.bytes.saturating_sub(bytes);
        let upper = self.list.partition_point(|mark| mark.bytes < target);
        let reached = self.list.get(upper).copied().unwrap_or_else(|| self.end_mark(end));
        let Some(lower) = upper.checked_sub(1).map(|before| self.list[before]) else {
            return reached.offset.min(end);
        };
        // The bytes grow from below the target to at least the target: they differ.
        let offsets = reached.offset.0.saturating_sub(lower.offset.0);
        let added = part_of(offsets, target - lower.bytes, reached.bytes - lower.bytes, u128::div_ceil);
        Offset(lower.offset.0.saturating_add(added)).min(end)
    }

    /// An offset before which no message was published at `time` or later; `end` where none was at all.
    ///
    /// It is the last mark before `time`, or the first mark: never too high, and too low by no more than the messages
    /// between two marks. By as much it may lie below the start of the topic.
    #[must_use]
    pub fn offset_about(&self, time: Timestamp, end: Offset) -> Offset {
        if self.last_at < time {
            return end;
        }
        let later = self.list.partition_point(|mark| mark.at < time);
        self.list.get(later.saturating_sub(1)).map_or(end, |mark| mark.offset.min(end))
    }

    /// The first offset known to be of a message published at `time` or later, with when that was; `end` and no time
    /// where none is known to be. Together with [`offset_about`](Self::offset_about) it says where to look for the first
    /// such message: not below that one and not above this one.
    #[must_use]
    pub fn offset_reached(&self, time: Timestamp, end: Offset) -> (Offset, Option<Timestamp>) {
        let later = self.list.partition_point(|mark| mark.at < time);
        self.list.get(later).map_or((end, None), |mark| (mark.offset.min(end), Some(mark.at)))
    }

    /// A time before which the message `offset` was certainly not published.
    #[must_use]
    pub fn published_from(&self, offset: Offset) -> Timestamp {
        let mark = self.last_up_to(offset).and_then(|index| self.list.get(index)).or(self.list.first());
        mark.map_or(self.last_at, |mark| mark.at)
    }

    /// Whether a block that begins at `first`, at the last time, is far enough from the last mark to get one.
    fn is_due(&self, first: Offset) -> bool {
        let (Some(oldest), Some(newest)) = (self.list.first(), self.list.last()) else {
            return true;
        };
        let gap_bytes = ((self.bytes - oldest.bytes) / u64::from(GAP_PART)).max(GAP_BYTES_MIN);
        let gap_time = (self.last_at.since(oldest.at) / GAP_PART).max(GAP_TIME_MIN);
        first > newest.offset
            && (self.bytes - newest.bytes >= gap_bytes || self.last_at.since(newest.at) >= gap_time)
    }

    /// Forgets the mark without which the gap is smallest that it leaves, by its share of the bytes or of the time,
    /// whichever is larger. Of several the oldest goes, the first and the last mark never.
    fn forget_least_missed(&mut self) {
        let (Some(oldest), Some(newest)) = (self.list.first(), self.list.last()) else {
            return;
        };
        // Shares are compared over a common denominator.
        let bytes_all = u128::from(newest.bytes - oldest.bytes).max(1);
        let time_all = u128::from(newest.at.0 - oldest.at.0).max(1);
        let share = |around: &[Mark]| {
            let bytes = u128::from(around[2].bytes - around[0].bytes) * time_all;
            let time = u128::from(around[2].at.0 - around[0].at.0) * bytes_all;
            bytes.max(time)
        };
        let least = self.list.windows(3).enumerate().min_by_key(|(_, around)| share(around));
        if let Some((before, _)) = least {
            self.list.remove(before + 1);
        }
    }

    /// Index of the last mark at `offset` or before it.
    fn last_up_to(&self, offset: Offset) -> Option<usize> {
        self.list.partition_point(|mark| mark.offset <= offset).checked_sub(1)
    }

    /// What is known about the end of the topic.
    const fn end_mark(&self, end: Offset) -> Mark {
        Mark { offset: end, at: self.last_at, bytes: self.bytes }
    }

    /// `value` at `offset`, as if it grew evenly between marks.
    fn between(&self, offset: Offset, end: Offset, value: impl Fn(Mark) -> u64) -> u64 {
        let at_end = self.end_mark(end);
        if offset >= end {
            return value(at_end);
        }
        let Some(index) = self.last_up_to(offset) else {
            return value(self.list.first().copied().unwrap_or(at_end));
        };
        let (lower, upper) = (self.list[index], self.list.get(index + 1).copied().unwrap_or(at_end));
        // `lower` is at `offset` or before it, and `upper` after it: their offsets differ.
        let (from, to) = (value(lower), value(upper));
        from + part_of(to - from, offset.0 - lower.offset.0, upper.offset.0 - lower.offset.0, |all, parts| {
            all / parts
        })
    }
}

/// The part of `whole` that `part` is of `parts`, which is not smaller; the division decides how it is rounded.
fn part_of(whole: u64, part: u64, parts: u64, divide: impl Fn(u128, u128) -> u128) -> u64 {
    let share = divide(u128::from(whole) * u128::from(part), u128::from(parts));
    // At most `whole`.
    u64::try_from(share).unwrap_or(whole)
}

#[cfg(test)]
mod tests;
