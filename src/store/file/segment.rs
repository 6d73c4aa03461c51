//! One file of the journal that commits go to: its name, its head, how it is made.
//!
//! # Format, version 1
//!
//! ```text
//! journal/<epoch, 20 digits>-<number, 6 digits>.log
//!       0  "batonlog"
//!       8  u32  CRC32C of bytes 12 to 64
//!      12  u32  version
//!      16  u64  epoch
//!      24  u32  number of the segment in its epoch, from 1
//!      28  u32  seed of the epoch, chosen at random: where its chain of checksums starts
//!      32  u64  the position that the epoch continues: its epoch, 0 for an empty store, its own and segment 0 where
//!               the epoch was filled, and begins with its checkpoint
//!      40  u32      segment
//!      44  u32      0
//!      48  u64      bytes of that segment
//!      56       zeros
//!    1024  u64  first reach      1032  u32  its CRC32C, begun with the seed
//!    2048  u64  second reach     2056  u32  its CRC32C, begun with the seed
//!    4096       entries, then zeros up to the end of the file
//! ```
//!
//! Numbers are little-endian. The file is made under the name `.new` with its head and zeros, synced and renamed, so
//! one called `.log` has a whole head, and commits go into blocks that the file system has already written.
//!
//! No entry begins at or after the *reach*: the higher of the two that are valid, [`REACH_STEP`] bytes of entries
//! where none is. It is raised in the same sync as an entry that comes near it. So a search for entries behind the
//! last valid one need not read all the zeros.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::entry::Marks;
use super::{io_error, is_full};
use crate::disk::{self, File, Opening};
use crate::model::id::Epoch;
use crate::store::StoreError;
use crate::store::manifest::sync_dir;

/// Version of the format that is written.
pub const SEGMENT_VERSION: u32 = 1;
/// Where the entries of a segment begin.
pub const ENTRIES_START: u64 = 4096;
/// How far the reach is set ahead of the last entry.
pub const REACH_STEP: u64 = 4 << 20;

const MAGIC: &[u8; 8] = b"batonlog";
const REACH_AT: [u64; 2] = [1024, 2048];
const ZEROS: &[u8] = &[0; 1 << 20];

/// Which segment: ordered as the journal is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentId {
    /// The epoch that writes it.
    pub epoch: Epoch,
    /// Its number in the epoch, from 1.
    pub number: u32,
}

impl SegmentId {
    /// The next segment of the same epoch.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { epoch: self.epoch, number: self.number + 1 }
    }

    /// The file in the folder `journal`.
    #[must_use]
    pub fn path(self, journal: &Path) -> PathBuf {
        journal.join(format!("{:020}-{:06}.log", self.epoch.0, self.number))
    }

    /// The segment that a file name without its ending stands for.
    #[must_use]
    pub fn parse(stem: &str) -> Option<Self> {
        let (epoch, number) = stem.split_once('-')?;
        if epoch.len() != 20 || number.len() < 6 {
            return None;
        }
        Some(Self { epoch: Epoch(epoch.parse().ok()?), number: number.parse().ok()? })
    }
}

/// A place in the journal: ordered as the journal is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The segment.
    pub segment: SegmentId,
    /// Bytes from the start of its file.
    pub at: u64,
}

impl Position {
    /// Where the entries of a segment begin.
    #[must_use]
    pub const fn start_of(segment: SegmentId) -> Self {
        Self { segment, at: ENTRIES_START }
    }
}

/// The head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// Which segment it is.
    pub id: SegmentId,
    /// The seed of the epoch.
    pub seed: u32,
    /// The end of the journal before this epoch; all zero for an empty store, segment 0 of its own epoch for one that
    /// was filled.
    pub continues: Position,
}

impl SegmentHead {
    /// The first bytes of the file.
    #[must_use]
    pub fn encode(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[12..16].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.epoch.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.id.number.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.seed.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.continues.segment.epoch.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.continues.segment.number.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.continues.at.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the head of the segment `id` from its file.
    ///
    /// # Errors
    /// Where it cannot be read, or is not the head of that segment.
    pub fn read(file: &File, path: &Path, id: SegmentId) -> Result<Self, StoreError> {
        let damaged = |position, what: &str| StoreError::Damaged {
            path: path.to_owned(),
            position,
            what: what.to_owned(),
        };
        let mut bytes = [0; 64];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(damaged(0, "the head of the segment is cut off"));
            }
            read => read.map_err(io_error("read", path))?,
        }
        if &bytes[..8] != MAGIC {
            return Err(damaged(0, "not a segment of a journal"));
        }
        if u32_at(&bytes, 8) != crc32c::crc32c(&bytes[12..]) {
            return Err(damaged(8, "bad checksum of the head of the segment"));
        }
        let version = u32_at(&bytes, 12);
        if version > SEGMENT_VERSION {
            let path = path.to_owned();
            return Err(StoreError::NewerFormat { path, found: version, known: SEGMENT_VERSION });
        }
        let found = SegmentId { epoch: Epoch(u64_at(&bytes, 16)), number: u32_at(&bytes, 24) };
        if found != id {
            return Err(damaged(16, "the head is that of another segment"));
        }
        let before = SegmentId { epoch: Epoch(u64_at(&bytes, 32)), number: u32_at(&bytes, 40) };
        let continues = Position { segment: before, at: u64_at(&bytes, 48) };
        Ok(Self { id, seed: u32_at(&bytes, 28), continues })
    }

    /// What its entries have in common.
    #[must_use]
    pub const fn marks(&self) -> Marks {
        Marks { segment: self.id, seed: self.seed }
    }

    /// Makes the file, `bytes` long, ready for entries. When it returns, file and name are durable.
    ///
    /// # Errors
    /// [`StoreError::Full`] where there is no space, or less than `free_bytes` would be left, with nothing left
    /// behind.
    pub fn create(&self, journal: &Path, bytes: u64, free_bytes: u64) -> Result<File, StoreError> {
        let path = self.id.path(journal);
        let temporary = path.with_extension("new");
        let free = disk::free(journal).map_err(io_error("ask for the free space of", journal))?;
        if free < bytes.saturating_add(free_bytes) {
            return Err(StoreError::Full(bytes));
        }
        let made = self.fill(&temporary, bytes).and_then(|file| {
            disk::rename(&temporary, &path)?;
            Ok(file)
        });
        match made {
            Ok(file) => sync_dir(journal).map(|()| file),
            Err(error) if is_full(&error) => {
                super::remove(&temporary)?;
                Err(StoreError::Full(bytes))
            }
            Err(error) => Err(io_error("prepare", &temporary)(error)),
        }
    }

    fn fill(&self, temporary: &Path, bytes: u64) -> io::Result<File> {
        let file = File::open(temporary, Opening::Replace)?;
        write_zeros(&file, 0, bytes)?;
        file.write_all_at(&self.encode(), 0)?;
        file.sync_all()?;
        Ok(file)
    }
}

/// Writes zeros from `from` up to `to`. Not synced.
///
/// # Errors
/// Where they cannot be written.
pub fn write_zeros(file: &File, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let len = (to - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

/// The reach of a segment that is being written.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    bytes: u64,
    /// The highest that is synced.
    synced: u64,
    slot: usize,
}

impl Default for Reach {
    fn default() -> Self {
        let bytes = ENTRIES_START + REACH_STEP;
        Self { bytes, synced: bytes, slot: 0 }
    }
}

impl Reach {
    /// Called before each entry that is written and ends at `end`: raises the reach where the next entry would come
    /// near it.
    ///
    /// # Errors
    /// Where it cannot be written; the reach is as before then.
    pub fn cover(&mut self, file: &File, seed: u32, end: u64) -> io::Result<()> {
        if end + REACH_STEP / 2 <= self.bytes {
            return Ok(());
        }
        let bytes = end + REACH_STEP;
        let mut slot = [0; 12];
        slot[..8].copy_from_slice(&bytes.to_le_bytes());
        let sum = crc32c::crc32c_append(seed, &slot[..8]);
        slot[8..].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&slot, REACH_AT[self.slot])?;
        self.bytes = bytes;
        Ok(())
    }

    /// Called once what was written is synced. Until then the other slot is left alone, however often an entry is tried.
    pub const fn synced(&mut self) {
        if self.bytes > self.synced {
            (self.synced, self.slot) = (self.bytes, 1 - self.slot);
        }
    }

    /// Before which position every entry of a segment begins.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn read(file: &File, seed: u32) -> io::Result<u64> {
        let mut reach = Self::default().bytes;
        for at in REACH_AT {
            let mut slot = [0; 12];
            match file.read_exact_at(&mut slot, at) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => continue,
                read => read?,
            }
            if u32_at(&slot, 8) == crc32c::crc32c_append(seed, &slot[..8]) {
                reach = reach.max(u64_at(&slot, 0));
            }
        }
        Ok(reach)
    }
}

/// The little-endian number at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// The little-endian number at `at`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HEAD: SegmentHead = SegmentHead {
        id: SegmentId { epoch: Epoch(3), number: 2 },
        seed: 0xaabb_ccdd,
        continues: Position { segment: SegmentId { epoch: Epoch(1), number: 7 }, at: 4104 },
    };

    #[test]
    fn a_segment_begins_with_these_bytes() {
        let mut expected = [0; 64];
        expected[..8].copy_from_slice(b"batonlog");
        expected[8..16].copy_from_slice(&[163, 70, 1, 144, 1, 0, 0, 0]);
        expected[16..32].copy_from_slice(b"\x03\0\0\0\0\0\0\0\x02\0\0\0\xdd\xcc\xbb\xaa");
        expected[32..56].copy_from_slice(b"\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x08\x10\0\0\0\0\0\0");
        assert_eq!(HEAD.encode(), expected);
    }

    #[test]
    fn names_are_read_back() {
        let path = HEAD.id.path(Path::new("journal"));
        assert_eq!(path, Path::new("journal/00000000000000000003-000002.log"));
        assert_eq!(SegmentId::parse("00000000000000000003-000002"), Some(HEAD.id));
        let large = SegmentId { epoch: Epoch(u64::MAX), number: u32::MAX };
        let stem = large.path(Path::new("")).file_stem().unwrap().to_str().unwrap().to_owned();
        assert_eq!(SegmentId::parse(&stem), Some(large));
        for other in ["3-2", "checkpoint-00000000000000000003-0000000002", "00000000000000000003-00000x", ""]
        {
            assert_eq!(SegmentId::parse(other), None);
        }
    }

    #[test]
    fn a_made_segment_is_zeros_behind_its_head() {
        let dir = tempfile::tempdir().unwrap();
        let file = HEAD.create(dir.path(), 100_000, 0).unwrap();
        let path = HEAD.id.path(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(SegmentHead::read(&file_of(&path), &path, HEAD.id).unwrap(), HEAD);
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == 100_000 && bytes[64..].iter().all(|&byte| byte == 0));
        drop(file);
        let other = HEAD.id.next();
        assert!(matches!(SegmentHead::read(&file_of(&path), &path, other), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_segment_that_does_not_fit_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(HEAD.create(dir.path(), 1, u64::MAX), Err(StoreError::Full(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_reach_is_ahead_of_every_entry_and_survives_one_torn_write() {
        let dir = tempfile::tempdir().unwrap();
        HEAD.create(dir.path(), 100_000, 0).unwrap();
        let path = HEAD.id.path(dir.path());
        let file = File::open(&path, Opening::ReadWrite).unwrap();
        let mut reach = Reach::default();
        for end in [5000, REACH_STEP, 3 * REACH_STEP, 3 * REACH_STEP + 9, 90 * REACH_STEP] {
            reach.cover(&file, HEAD.seed, end).unwrap();
            reach.synced();
            let read = Reach::read(&file, HEAD.seed).unwrap();
            assert!(read >= end + REACH_STEP / 2, "{end}: {read}");
        }
        let whole = Reach::read(&file, HEAD.seed).unwrap();
        // The slot that is written next is the older one: it may be torn by that.
        file.write_all_at(&[0xff; 12], REACH_AT[reach.slot]).unwrap();
        assert_eq!(Reach::read(&file, HEAD.seed).unwrap(), whole);
        // And so may each attempt at an entry that was not synced.
        for steps in [200, 300] {
            reach.cover(&file, HEAD.seed, steps * REACH_STEP).unwrap();
        }
        file.write_all_at(&[0xff; 12], REACH_AT[reach.slot]).unwrap();
        assert_eq!(Reach::read(&file, HEAD.seed).unwrap(), whole);
    }

    /// The reach was taken for raised, so that an entry behind it could be passed over in silence.
    #[test]
    fn a_reach_that_found_no_space_is_written_with_the_next_attempt() {
        let dir = tempfile::tempdir().unwrap();
        HEAD.create(dir.path(), 100_000, 0).unwrap();
        let file = File::open(&HEAD.id.path(dir.path()), Opening::ReadWrite).unwrap();
        let full = File::open(Path::new("/dev/full"), Opening::Write).unwrap();
        let (mut reach, end) = (Reach::default(), 3 * REACH_STEP);
        assert!(is_full(&reach.cover(&full, HEAD.seed, end).unwrap_err()));
        reach.cover(&file, HEAD.seed, end).unwrap();
        assert!(Reach::read(&file, HEAD.seed).unwrap() >= end);
    }

    fn file_of(path: &Path) -> File {
        File::open(path, Opening::Read).unwrap()
    }
}
