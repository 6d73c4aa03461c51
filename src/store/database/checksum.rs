//! Checksums of rows: how damage that the database does not see is noticed.
//!
//! The database trusts the bytes of its pages. A bit that flips in a column is another value, and a page that was
//! written to the wrong place is a page of valid rows. So every row has a checksum of its own: that of a message is
//! checked whenever it is read, those of all other tables when a master loads them.
//!
//! # Format
//!
//! CRC32C, kept as the signed number of the same 32 bits. That of a message covers where it stands and what it is:
//!
//! ```text
//!       0  u32  topic
//!       4  u64  offset
//!      12  u64  published_at
//!      20  u8   1 where there is a producer, and 2 where there is a sequence
//!      21  u64  producer, 0 for none
//!      29  u64  sequence, 0 for none
//!      37       the encoded message: see `model::message`
//! ```
//!
//! The row id is not in it: topic and offset are what a reader asks for, and a row that stands elsewhere, or a stretch
//! that belongs to another topic, does not have the checksum of what was asked for.
//!
//! That of a row of another table covers the name of the table and then the columns before the checksum, in the order
//! of the schema: an integer as i64, a text as u32 length and bytes, and so the table's name too, and NULL as the length
//! that no text has, u32::MAX.
//!
//! Numbers are little-endian.

use crate::model::id::{Offset, TopicId};

/// Bytes before the encoded message.
const HEAD_BYTES: usize = 37;

/// What stands beside a message in its row, as the database keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowHead {
    /// Its topic.
    pub(super) topic: TopicId,
    /// Its place in the topic.
    pub(super) offset: Offset,
    /// When it was accepted.
    pub(super) published_at: i64,
    /// Who published it.
    pub(super) producer: Option<i64>,
    /// The number that the producer gave it.
    pub(super) sequence: Option<i64>,
}

/// The checksum of a message's row.
pub(super) fn of_message(head: &RowHead, encoded: &[u8]) -> i32 {
    crc32c::crc32c_append(of_head(head), encoded).cast_signed()
}

/// As [`of_message`], for an encoded message of so many bytes whose own CRC32C is `sum`.
pub(super) fn of_summed(head: &RowHead, sum: u32, bytes: usize) -> i32 {
    crc32c::crc32c_combine(of_head(head), sum, bytes).cast_signed()
}

fn of_head(head: &RowHead) -> u32 {
    let mut bytes = [0; HEAD_BYTES];
    bytes[..4].copy_from_slice(&head.topic.0.to_le_bytes());
    bytes[4..12].copy_from_slice(&head.offset.0.to_le_bytes());
    bytes[12..20].copy_from_slice(&head.published_at.to_le_bytes());
    bytes[20] = u8::from(head.producer.is_some()) | u8::from(head.sequence.is_some()) << 1;
    bytes[21..29].copy_from_slice(&head.producer.unwrap_or(0).to_le_bytes());
    bytes[29..].copy_from_slice(&head.sequence.unwrap_or(0).to_le_bytes());
    crc32c::crc32c(&bytes)
}

/// The checksum of a row of any other table, as far as its columns were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OfRow(u32);

impl OfRow {
    /// That of a row of `table` without columns.
    pub(super) fn begin(table: &str) -> Self {
        Self(0).text(table)
    }

    /// With an integer.
    pub(super) fn number(self, number: i64) -> Self {
        Self(crc32c::crc32c_append(self.0, &number.to_le_bytes()))
    }

    /// With a text.
    pub(super) fn text(self, text: &str) -> Self {
        // The texts of a row are names and settings, far below what 32 bits can count.
        let len = crc32c::crc32c_append(self.0, &(text.len() as u32).to_le_bytes());
        Self(crc32c::crc32c_append(len, text.as_bytes()))
    }

    /// With NULL.
    pub(super) fn null(self) -> Self {
        Self(crc32c::crc32c_append(self.0, &u32::MAX.to_le_bytes()))
    }

    /// As it stands in the row.
    pub(super) const fn end(self) -> i32 {
        self.0.cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: RowHead = RowHead {
        topic: TopicId(3),
        offset: Offset(0x1_0000_0002),
        published_at: 1_790_000_000_000,
        producer: Some(5),
        sequence: Some(6),
    };

    const GOLDEN: i32 = 1_655_319_090;

    #[test]
    fn the_checksum_is_that_of_the_format() {
        let encoded = [5, 0, 0, 0, 0, b'b', b'o', b'd', b'y'];
        let mut bytes = vec![3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0];
        bytes.extend(1_790_000_000_000_i64.to_le_bytes());
        bytes.push(3);
        bytes.extend([5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(encoded);
        assert_eq!(of_message(&HEAD, &encoded), crc32c::crc32c(&bytes).cast_signed());
        assert_eq!(of_message(&HEAD, &encoded), GOLDEN);
        assert_eq!(of_summed(&HEAD, crc32c::crc32c(&encoded), encoded.len()), GOLDEN);
    }

    #[test]
    fn the_checksum_of_other_rows_is_that_of_the_format() {
        let mut bytes = vec![5, 0, 0, 0];
        bytes.extend(b"topic");
        bytes.extend((-7_i64).to_le_bytes());
        bytes.extend([2, 0, 0, 0]);
        bytes.extend(b"{}");
        bytes.extend([255; 4]);
        let sum = OfRow::begin("topic").number(-7).text("{}").null().end();
        assert_eq!(sum, crc32c::crc32c(&bytes).cast_signed());
        assert_eq!(sum, GOLDEN_ROW);
    }

    const GOLDEN_ROW: i32 = -2_002_917_974;

    #[test]
    fn every_field_counts() {
        let all = [
            HEAD,
            RowHead { topic: TopicId(4), ..HEAD },
            RowHead { offset: Offset(2), ..HEAD },
            RowHead { published_at: 0, ..HEAD },
            RowHead { producer: Some(0), ..HEAD },
            RowHead { producer: None, ..HEAD },
            RowHead { sequence: Some(0), ..HEAD },
            RowHead { sequence: None, ..HEAD },
        ];
        let mut sums = all.map(|head| of_message(&head, b"x")).to_vec();
        sums.push(of_message(&HEAD, b"y"));
        sums.sort_unstable();
        sums.dedup();
        assert_eq!(sums.len(), all.len() + 1);
    }
}
