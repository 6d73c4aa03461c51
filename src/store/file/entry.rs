//! One commit in the journal: the head of an entry, how it is checked and written.
//!
//! # Format, version 1
//!
//! ```text
//!       0  u32  CRC32C of bytes 4 to 64, begun with the seed of the epoch
//!       4  u32  kind: 1 commit, 2 index (the last entry of its file), 3 packed
//!       8  u64  epoch
//!      16  u32  number of this segment
//!      20  u32  chain: bytes 0 to 4 of the entry before, the seed for the first of the epoch
//!      24  u64  position of this entry in its segment
//!      32  u64  everything before this position was known to be synced: bytes
//!      40  u32      number of the segment, of the same epoch
//!      44  u32  CRC32C of the heads
//!      48  u32  bytes of the heads
//!      52  u32  0
//!      56  u64  bytes of the blocks, all together
//!      64       heads: see the record codec; for an index, see there; for packed, see the pack
//!               blocks: encoded messages of each publish, in the order of the heads
//!               zeros up to a multiple of 8
//! ```
//!
//! An entry is valid if and only if its head has the checksum, epoch, segment and position that it must have, its
//! chain is that of the entry before, the heads have their checksum and every block the one in its head. The head's
//! checksum covers the heads' checksum, these cover the blocks' checksums: so the chain covers everything.
//!
//! There is never more than one entry that is not synced, the last one. So a valid head names the entry before it
//! as synced; where one is found behind a bad entry, that one was durable once, and this is damage, not a torn tail.

use std::io::{self, IoSlice};

use bytes::Bytes;

use super::segment::{Position, SegmentId, u32_at, u64_at};
use crate::disk::File;
use crate::model::id::Epoch;

/// Bytes of the head of an entry.
pub const ENTRY_HEAD_BYTES: usize = 64;
/// Entries begin at multiples of this.
pub const ENTRY_ALIGNMENT: u64 = 8;

/// Most pieces that one call writes: the limit of the system.
const PIECES_MAX: usize = 1024;

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The records of a commit.
    Commit,
    /// The index of the file that it ends.
    Index,
    /// That messages were copied into a pack.
    Packed,
}

/// What all entries of one file have in their heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The segment; for a pack, its epoch and number.
    pub segment: SegmentId,
    /// What their checksums begin with.
    pub seed: u32,
}

/// The head of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHead {
    /// What the entry holds.
    pub kind: Kind,
    /// Where it stands.
    pub position: Position,
    /// The checksum of the head of the entry before.
    pub chain: u32,
    /// Everything before this is synced.
    pub synced: Position,
    /// CRC32C of the heads.
    pub heads_checksum: u32,
    /// Bytes of the heads.
    pub heads_bytes: u32,
    /// Bytes of the blocks.
    pub blocks_bytes: u64,
}

impl EntryHead {
    /// The first bytes of the entry, and the chain that the next entry has.
    #[must_use]
    pub fn encode(&self, seed: u32) -> ([u8; ENTRY_HEAD_BYTES], u32) {
        let mut bytes = [0; ENTRY_HEAD_BYTES];
        let kind: u32 = match self.kind {
            Kind::Commit => 1,
            Kind::Index => 2,
            Kind::Packed => 3,
        };
        bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.segment.epoch.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.position.segment.number.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.chain.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.position.at.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.synced.at.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.synced.segment.number.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.heads_checksum.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.heads_bytes.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.blocks_bytes.to_le_bytes());
        let sum = crc32c::crc32c_append(seed, &bytes[4..]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        (bytes, sum)
    }

    /// Reads the head of the entry at `position`, and the chain that the next entry has. `None` where there is none.
    #[must_use]
    pub fn decode(bytes: &[u8], seed: u32, position: Position) -> Option<(Self, u32)> {
        let bytes = bytes.get(..ENTRY_HEAD_BYTES)?;
        // Cheap and true for next to nothing else: this is asked at every place of a torn tail.
        if u64_at(bytes, 24) != position.at || u64_at(bytes, 8) != position.segment.epoch.0 {
            return None;
        }
        let sum = u32_at(bytes, 0);
        if u32_at(bytes, 16) != position.segment.number
            || sum != crc32c::crc32c_append(seed, &bytes[4..])
            || u32_at(bytes, 52) != 0
        {
            return None;
        }
        let kind = match u32_at(bytes, 4) {
            1 => Kind::Commit,
            2 => Kind::Index,
            3 => Kind::Packed,
            _ => return None,
        };
        let synced = SegmentId { epoch: position.segment.epoch, number: u32_at(bytes, 40) };
        let head = Self {
            kind,
            position,
            chain: u32_at(bytes, 20),
            synced: Position { segment: synced, at: u64_at(bytes, 32) },
            heads_checksum: u32_at(bytes, 44),
            heads_bytes: u32_at(bytes, 48),
            blocks_bytes: u64_at(bytes, 56),
        };
        Some((head, sum))
    }

    /// Where the blocks begin, in bytes of the segment.
    #[must_use]
    pub const fn blocks_at(&self) -> u64 {
        self.position.at + ENTRY_HEAD_BYTES as u64 + self.heads_bytes as u64
    }

    /// Where the next entry begins, in bytes of the segment; beyond every file where the lengths are absurd.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.blocks_at().saturating_add(self.blocks_bytes).saturating_add(ENTRY_ALIGNMENT - 1)
            / ENTRY_ALIGNMENT
            * ENTRY_ALIGNMENT
    }

    /// The epoch that wrote the entry.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.position.segment.epoch
    }
}

/// Writes `front` and the blocks, one behind the other, from `at` on. Not synced.
///
/// # Errors
/// Where not everything could be written.
pub fn write(file: &File, at: u64, front: &[u8], blocks: &[&Bytes]) -> io::Result<()> {
    let mut pieces = Vec::with_capacity(1 + blocks.len());
    pieces.push(IoSlice::new(front));
    pieces.extend(blocks.iter().map(|block| IoSlice::new(block)));
    let (mut pieces, mut at) = (pieces.as_mut_slice(), at);
    IoSlice::advance_slices(&mut pieces, 0);
    while !pieces.is_empty() {
        let now = &pieces[..pieces.len().min(PIECES_MAX)];
        match file.write_pieces_at(now, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                IoSlice::advance_slices(&mut pieces, written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u32 = 0x1234_5678;

    fn head() -> EntryHead {
        let segment = SegmentId { epoch: Epoch(9), number: 4 };
        EntryHead {
            kind: Kind::Commit,
            position: Position { segment, at: 4104 },
            chain: 0xa1a2_a3a4,
            synced: Position { segment: SegmentId { epoch: Epoch(9), number: 3 }, at: 77 },
            heads_checksum: 0xb1b2_b3b4,
            heads_bytes: 21,
            blocks_bytes: 500,
        }
    }

    #[test]
    fn an_entry_begins_with_these_bytes() {
        let (bytes, sum) = head().encode(SEED);
        assert_eq!(sum, crc32c::crc32c_append(SEED, &bytes[4..]));
        let expected: &[u8] = b"\x01\0\0\0\x09\0\0\0\0\0\0\0\x04\0\0\0\xa4\xa3\xa2\xa1\
            \x08\x10\0\0\0\0\0\0\x4d\0\0\0\0\0\0\0\x03\0\0\0\xb4\xb3\xb2\xb1\x15\0\0\0\0\0\0\0\xf4\x01\0\0\0\0\0\0";
        assert_eq!(&bytes[4..], expected);
        assert_eq!(bytes[..4], sum.to_le_bytes());
        assert_eq!((head().blocks_at(), head().end()), (4104 + 64 + 21, 4104 + 592));
    }

    #[test]
    fn a_head_is_read_only_where_it_was_written() {
        let (bytes, sum) = head().encode(SEED);
        assert_eq!(EntryHead::decode(&bytes, SEED, head().position), Some((head(), sum)));
        let elsewhere = Position { at: 4112, ..head().position };
        assert_eq!(EntryHead::decode(&bytes, SEED, elsewhere), None);
        assert_eq!(EntryHead::decode(&bytes, SEED + 1, head().position), None);
        assert_eq!(EntryHead::decode(&bytes[..63], SEED, head().position), None);
        for at in 0..bytes.len() {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(EntryHead::decode(&bad, SEED, head().position), None, "byte {at}");
        }
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_all_written() {
        let file = File::from(tempfile::tempfile().unwrap());
        let blocks: Vec<Bytes> =
            (0..3 * PIECES_MAX as u32).map(|n| n.to_le_bytes().to_vec().into()).collect();
        let blocks: Vec<&Bytes> = blocks.iter().collect();
        write(&file, 10, b"front", &blocks).unwrap();
        let mut found = vec![0; 5 + 4 * blocks.len()];
        file.read_exact_at(&mut found, 10).unwrap();
        let expected: Vec<u8> =
            b"front".iter().copied().chain(blocks.iter().flat_map(|b| b.to_vec())).collect();
        assert!(found == expected);
    }
}
