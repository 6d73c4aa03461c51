//! Checksums of rows: how damage that the database does not see is noticed.
//!
//! The database trusts the bytes of its pages. A bit that flips in a column is another value, and a page that was
//! written to the wrong place is a page of valid rows. So every row of a message has a checksum of its own, which is
//! checked whenever it is read.
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
//! Numbers are little-endian. The row id is not in it: topic and offset are what a reader asks for, and a row that
//! stands elsewhere, or a stretch that belongs to another topic, does not have the checksum of what was asked for.

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
    let mut bytes = [0; HEAD_BYTES];
    bytes[..4].copy_from_slice(&head.topic.0.to_le_bytes());
    bytes[4..12].copy_from_slice(&head.offset.0.to_le_bytes());
    bytes[12..20].copy_from_slice(&head.published_at.to_le_bytes());
    bytes[20] = u8::from(head.producer.is_some()) | u8::from(head.sequence.is_some()) << 1;
    bytes[21..29].copy_from_slice(&head.producer.unwrap_or(0).to_le_bytes());
    bytes[29..].copy_from_slice(&head.sequence.unwrap_or(0).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&bytes), encoded).cast_signed()
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
    }

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
