//! Checkpoints: the state at one position of the journal, so that recovery reads only what follows.
//!
//! # Format, version 1
//!
//! ```text
//! journal/checkpoint-<epoch, 20 digits>-<number, 10 digits>
//!       0  "batonchk"
//!       8  u32  CRC32C of the rest
//!      12  u32  version
//!      16       bincode: CheckpointBody
//! ```
//!
//! Written under the name `.new`, synced, renamed, and the directory synced. A checkpoint is valid if and only if the
//! checksum is right and its position is in the epoch of its name; it is used if and only if the newest manifest
//! accepts that position. One that is torn or late is passed over for the one before.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::places::PlacesKept;
use super::segment::{Position, u32_at};
use super::{damaged, io_error, is_full};
use crate::disk::{self, File, Opening};
use crate::model::id::Epoch;
use crate::model::snapshot::Snapshot;
use crate::store::manifest::sync_dir;
use crate::store::{StoreError, codec};

/// Version of the format that is written.
pub const CHECKPOINT_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"batonchk";
const HEAD_BYTES: usize = 16;

/// Which checkpoint: ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckpointId {
    /// The epoch that wrote it.
    pub epoch: Epoch,
    /// Its number in the epoch, from 1.
    pub number: u32,
}

impl CheckpointId {
    /// The file in the folder `journal`.
    #[must_use]
    pub fn path(self, journal: &Path) -> PathBuf {
        journal.join(format!("checkpoint-{:020}-{:010}", self.epoch.0, self.number))
    }

    /// The checkpoint that a file name stands for.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (epoch, number) = name.strip_prefix("checkpoint-")?.split_once('-')?;
        if epoch.len() != 20 || number.len() != 10 {
            return None;
        }
        Some(Self { epoch: Epoch(epoch.parse().ok()?), number: number.parse().ok()? })
    }
}

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointBody {
    /// The records before this position are in it.
    pub position: Position,
    /// The chain that the next entry of the epoch has.
    pub chain: u32,
    /// Where the messages are.
    pub places: PlacesKept,
    /// The state.
    pub snapshot: Snapshot,
}

impl CheckpointBody {
    /// Writes the checkpoint. When it returns, it is durable. Answers its bytes. Step `WriteCheckpoint` of
    /// `tests/ha_model`.
    ///
    /// # Errors
    /// [`StoreError::Full`] where there is no space, with nothing left behind.
    pub fn write(&self, journal: &Path, id: CheckpointId) -> Result<u64, StoreError> {
        let path = id.path(journal);
        let temporary = path.with_extension("new");
        let bytes = self.encode(&path)?;
        let write = || {
            let file = File::open(&temporary, Opening::Replace)?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
            disk::rename(&temporary, &path)
        };
        match write() {
            Ok(()) => sync_dir(journal).map(|()| bytes.len() as u64),
            Err(error) if is_full(&error) => {
                super::remove(&temporary)?;
                Err(StoreError::Full(bytes.len() as u64))
            }
            Err(error) => Err(io_error("write to", &temporary)(error)),
        }
    }

    fn encode(&self, path: &Path) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; HEAD_BYTES];
        codec::encode(self, &mut bytes)
            .map_err(|error| io_error("encode", path)(std::io::Error::other(error)))?;
        bytes[..8].copy_from_slice(MAGIC);
        bytes[12..16].copy_from_slice(&CHECKPOINT_VERSION.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        Ok(bytes)
    }

    /// Checks that a checkpoint is not of a newer format, by its first bytes. One that is gone or torn is not.
    ///
    /// # Errors
    /// Where it cannot be read or is of a newer format.
    pub fn check_format(journal: &Path, id: CheckpointId) -> Result<(), StoreError> {
        let path = id.path(journal);
        let mut head = [0; HEAD_BYTES];
        match disk::open(&path).and_then(|file| file.read_exact_at(&mut head, 0)) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {
                return Ok(());
            }
            read => read.map_err(io_error("read", &path))?,
        }
        let found = u32_at(&head, 12);
        if head.starts_with(MAGIC) && found > CHECKPOINT_VERSION {
            return Err(StoreError::NewerFormat { path, found, known: CHECKPOINT_VERSION });
        }
        Ok(())
    }

    /// Reads a checkpoint. `None` where it is gone or not valid.
    ///
    /// # Errors
    /// Where it cannot be read, is of a newer format, or has the right checksum and makes no sense: the checkpoint
    /// before it would go on as if this one had never been, though segments were removed since.
    pub fn read(journal: &Path, id: CheckpointId) -> Result<Option<Self>, StoreError> {
        let path = id.path(journal);
        let bytes = match disk::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(io_error("read", &path))?,
        };
        if bytes.len() < HEAD_BYTES
            || &bytes[..8] != MAGIC
            || u32_at(&bytes, 8) != crc32c::crc32c(&bytes[12..])
        {
            return Ok(None);
        }
        let version = u32_at(&bytes, 12);
        if version > CHECKPOINT_VERSION {
            return Err(StoreError::NewerFormat { path, found: version, known: CHECKPOINT_VERSION });
        }
        let body: Self = codec::decode(&bytes[HEAD_BYTES..])
            .map_err(|error| damaged(&path, HEAD_BYTES as u64, error.to_string()))?;
        Ok((body.position.segment.epoch == id.epoch).then_some(body))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::id::{OffsetRange, TopicId};
    use crate::store::file::places::Places;
    use crate::store::file::segment::SegmentId;

    fn body() -> CheckpointBody {
        let segment = SegmentId { epoch: Epoch(3), number: 1 };
        let mut places = Places::default();
        places.open_segment(segment, 4096, 8192);
        places.publish(TopicId(1), OffsetRange::new(0, 5), 4096, 100);
        places.extend(4200);
        let position = Position { segment, at: 4200 };
        CheckpointBody { position, chain: 9, places: places.keep(), snapshot: Snapshot::default() }
    }

    #[test]
    fn a_checkpoint_has_these_bytes() {
        let bytes = body().encode(Path::new("x")).unwrap();
        let rest: &[u8] =
            b"\x01\0\0\0\x03\x01\xfb\x68\x10\x09\x01\0\x03\x01\xfb\x68\x10\0\xfb\0\x20\x01\x01\x01\0\x05\0\x03\x01\x84\
            \0\0\0\0\0\0\0\0\0";
        assert_eq!(bytes[12..].escape_ascii().to_string(), rest.escape_ascii().to_string());
        assert_eq!(bytes[..8], *b"batonchk");
        assert_eq!(u32_at(&bytes, 8), crc32c::crc32c(rest));
    }

    #[test]
    fn a_checkpoint_that_is_whole_and_makes_no_sense_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let id = CheckpointId { epoch: Epoch(3), number: 1 };
        let mut bytes = body().encode(dir.path()).unwrap();
        bytes.push(0);
        fs::write(id.path(dir.path()), &bytes).unwrap();
        assert_eq!(CheckpointBody::read(dir.path(), id).unwrap(), None, "torn");
        let sum = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        fs::write(id.path(dir.path()), &bytes).unwrap();
        assert!(matches!(
            CheckpointBody::read(dir.path(), id),
            Err(StoreError::Damaged { position: 16, .. })
        ));
    }

    #[test]
    fn a_checkpoint_of_another_epoch_or_a_newer_format_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let id = CheckpointId { epoch: Epoch(3), number: 1 };
        body().write(dir.path(), id).unwrap();
        let read = CheckpointBody::read(dir.path(), id).unwrap().unwrap();
        assert_eq!(read.encode(dir.path()).unwrap(), body().encode(dir.path()).unwrap());
        let other = CheckpointId { epoch: Epoch(4), ..id };
        fs::copy(id.path(dir.path()), other.path(dir.path())).unwrap();
        assert_eq!(CheckpointBody::read(dir.path(), other).unwrap(), None);
        let mut bytes = fs::read(id.path(dir.path())).unwrap();
        bytes[12] = 2;
        let sum = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        fs::write(id.path(dir.path()), &bytes).unwrap();
        let read = CheckpointBody::read(dir.path(), id);
        assert!(matches!(read, Err(StoreError::NewerFormat { found: 2, known: 1, .. })));
    }
}
