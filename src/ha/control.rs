//! The control file: block n, at `(n - 1) * BLOCK_BYTES`, belongs to epoch n alone and is never reused.
//!
//! Only the owner of an epoch writes its block: when it claims, when it has founded a store or changed its mode, when
//! it begins, and when it releases. The file only ever grows. A block that is all zero was never written: its claimer
//! died between its claim and its block, or has not come so far.
//!
//! Reads are [fresh](crate::disk). No handle is kept.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::block::{BLOCK_BYTES, Block, BlockError, is_zero};
use crate::disk::{self, File, Opening};
use crate::model::id::Epoch;
use crate::model::version::FORMATS_READ;

/// The highest epoch there can be: it bounds the control file to 64 GiB, most of which would be a hole.
pub const EPOCH_MAX: Epoch = Epoch(1 << 24);

/// Blocks that are read at once.
const BLOCKS_PER_READ: usize = 64;

/// How often a torn block is read again, since a block that is just being written may be seen half-way.
const TORN_READS_MAX: usize = 8;

/// What goes wrong with the control file. A node that has not claimed yet refuses to; a master ends.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A system call failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "write to".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Bytes are not what was written.
    #[error("{}: damaged at offset {position}: {what}; if this is a store of baton, restore a backup, or copy it with `baton store salvage`, which can do without; else correct `store`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes.
        position: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A newer version wrote it.
    #[error("{}: format {found}, this version knows up to {max}; run the newer baton on both nodes", path.display(), max = FORMATS_READ.max)]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A name or block of an epoch beyond [`EPOCH_MAX`].
    #[error("{}: epoch {epoch} is beyond the highest there can be, {EPOCH_MAX}; move it away if it is not baton's", path.display())]
    BeyondMax {
        /// The file.
        path: PathBuf,
        /// The epoch.
        epoch: Epoch,
    },
}

/// A block that was written, in one piece or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The epoch that the place belongs to.
    pub epoch: Epoch,
    /// What stands there, or what is wrong with it.
    pub block: Result<Block, &'static str>,
}

/// The control file of a shared directory.
#[derive(Clone, Debug)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// The control file of the shared directory `dir`. It need not exist.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        Self { path: dir.join("control") }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every block that was written, lowest epoch first. A file that does not exist has none.
    ///
    /// # Errors
    /// Where the file cannot be read, or a newer version wrote a block.
    pub fn read(&self) -> Result<Vec<Found>, ControlError> {
        let Some((file, length)) = self.open_to_read()? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let mut buffer = vec![0; BLOCKS_PER_READ * BLOCK_BYTES];
        let mut position = 0;
        while position < length {
            let bytes = self.read_at(&file, &mut buffer, position)?;
            for block in blocks(&buffer[..bytes]) {
                if !is_zero(block) {
                    found.push(self.examine(block, epoch_at(position))?);
                }
                position += BLOCK_BYTES as u64;
            }
        }
        Ok(found)
    }

    /// The block of the highest epoch that wrote one, whole or torn.
    ///
    /// # Errors
    /// Where the file cannot be read, or that block is of a newer version.
    pub fn newest(&self) -> Result<Option<Found>, ControlError> {
        let Some((file, length)) = self.open_to_read()? else {
            return Ok(None);
        };
        let mut buffer = vec![0; BLOCK_BYTES];
        for epoch in (1..=length.div_ceil(BLOCK_BYTES as u64)).rev().map(Epoch) {
            let bytes = self.read_at(&file, &mut buffer, position_of(epoch))?;
            if is_zero(&buffer[..bytes]) {
                continue;
            }
            let block = blocks(&buffer[..bytes]).next().expect("a read gives at least one block");
            return self.examine(block, epoch).map(Some);
        }
        Ok(None)
    }

    /// Makes the file, without blocks, where it does not exist. The name is durable once the directory is synced,
    /// which the claim does that follows.
    ///
    /// # Errors
    /// Where it cannot be made or written to.
    pub fn create(&self) -> Result<(), ControlError> {
        File::open(&self.path, Opening::Make).map(drop).map_err(|source| self.io("create", source))
    }

    /// Writes the block of `block.epoch`; when it returns the block is durable. Only the owner of the epoch may. A
    /// file that vanished is not made again. Step `WriteBlock` of `tests/ha_model`.
    ///
    /// # Errors
    /// Where it cannot be written; what is on disk is then not known and the process must end.
    pub fn write(&self, block: &Block) -> Result<(), ControlError> {
        if block.epoch == Epoch(0) || block.epoch > EPOCH_MAX {
            return Err(ControlError::BeyondMax { path: self.path.clone(), epoch: block.epoch });
        }
        let file = File::open(&self.path, Opening::Write).map_err(|source| self.io("open", source))?;
        file.write_all_at(block.encode().as_slice(), position_of(block.epoch))
            .map_err(|source| self.io("write to", source))?;
        file.sync_all().map_err(|source| self.io("sync", source))
    }

    /// Says that the block of `epoch` is damaged.
    #[must_use]
    pub fn damaged(&self, epoch: Epoch, what: &'static str) -> ControlError {
        ControlError::Damaged { path: self.path.clone(), position: position_of(epoch), what }
    }

    fn open_to_read(&self) -> Result<Option<(File, u64)>, ControlError> {
        let file = match disk::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.io("open", source)),
        };
        let length = file.length().map_err(|source| self.io("look at", source))?;
        let last = epoch_at(length.saturating_sub(1));
        if last > EPOCH_MAX {
            return Err(ControlError::BeyondMax { path: self.path.clone(), epoch: last });
        }
        Ok(Some((file, length)))
    }

    /// Fills `buffer` from `position` on, up to the end of the file; what stands behind the end reads as zero.
    /// Returns the bytes that count, at least one block.
    fn read_at(&self, file: &File, buffer: &mut [u8], position: u64) -> Result<usize, ControlError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], position + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.io("read", source)),
            }
        }
        let end = filled.next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
        buffer[filled..end].fill(0);
        Ok(end)
    }

    /// Reads a block that has bytes, some times again where it is torn.
    fn examine(&self, bytes: &[u8; BLOCK_BYTES], epoch: Epoch) -> Result<Found, ControlError> {
        let mut decoded = Block::decode(bytes);
        let mut again = Box::new([0; BLOCK_BYTES]);
        for _ in 0..TORN_READS_MAX {
            if !matches!(decoded, Err(BlockError::Damaged(_))) {
                break;
            }
            std::thread::yield_now();
            let file = disk::open(&self.path).map_err(|source| self.io("open", source))?;
            self.read_at(&file, again.as_mut_slice(), position_of(epoch))?;
            decoded = Block::decode(&again);
        }
        let block = match decoded {
            Ok(block) if block.epoch == epoch => Ok(block),
            Ok(_) => Err("the block of another epoch"),
            Err(BlockError::Damaged(what)) => Err(what),
            Err(BlockError::Empty) => Err("the block vanished while it was read"),
            Err(BlockError::Newer(found)) => {
                return Err(ControlError::NewerFormat { path: self.path.clone(), found });
            }
        };
        Ok(Found { epoch, block })
    }

    fn io(&self, action: &'static str, source: io::Error) -> ControlError {
        ControlError::Io { action, path: self.path.clone(), source }
    }
}

/// Where the block of an epoch is. Epochs start at 1.
#[must_use]
pub const fn position_of(epoch: Epoch) -> u64 {
    (epoch.0 - 1) * BLOCK_BYTES as u64
}

/// The epoch that the byte at `position` belongs to.
#[must_use]
pub const fn epoch_at(position: u64) -> Epoch {
    Epoch(position / BLOCK_BYTES as u64 + 1)
}

/// The blocks in `bytes`, whose length is a multiple of theirs.
fn blocks(bytes: &[u8]) -> impl Iterator<Item = &[u8; BLOCK_BYTES]> {
    bytes.as_chunks::<BLOCK_BYTES>().0.iter()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::os::unix::fs::FileExt;

    use super::super::block::tests::sample;
    use super::*;

    fn block(epoch: u64) -> Block {
        Block { epoch: Epoch(epoch), ..sample() }
    }

    fn whole(epoch: u64) -> Found {
        Found { epoch: Epoch(epoch), block: Ok(block(epoch)) }
    }

    fn control(dir: &tempfile::TempDir) -> Control {
        let control = Control::of(dir.path());
        control.create().unwrap();
        control
    }

    #[test]
    fn a_missing_file_has_no_blocks_and_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::of(dir.path());
        assert_eq!(control.read().unwrap(), []);
        assert_eq!(control.newest().unwrap(), None);
        assert!(control.write(&block(1)).is_err());
        assert!(!control.path().exists());
        control.create().unwrap();
        assert_eq!(control.read().unwrap(), []);
        assert_eq!(control.newest().unwrap(), None);
        control.write(&block(1)).unwrap();
        control.create().unwrap();
        assert_eq!(control.newest().unwrap(), Some(whole(1)), "an existing file stays as it is");
    }

    #[test]
    fn blocks_stand_where_their_epoch_says_and_gaps_were_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let control = control(&dir);
        for epoch in [3, 200, 66] {
            control.write(&block(epoch)).unwrap();
        }
        let found: Vec<_> = control.read().unwrap();
        assert_eq!(found, [3, 66, 200].map(whole));
        assert_eq!(control.newest().unwrap(), Some(whole(200)));
        assert_eq!(fs::metadata(control.path()).unwrap().len(), 200 * 4096);
    }

    #[test]
    fn a_lower_epoch_that_writes_late_changes_nothing_of_a_higher_one() {
        let dir = tempfile::tempdir().unwrap();
        let control = control(&dir);
        control.write(&block(2)).unwrap();
        control.write(&block(1)).unwrap();
        assert_eq!(control.newest().unwrap(), Some(whole(2)));
        assert_eq!(control.read().unwrap().len(), 2);
    }

    #[test]
    fn a_torn_block_is_found_and_not_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let control = control(&dir);
        control.write(&block(1)).unwrap();
        let whole = [block(1).encode().as_slice(), block(2).encode().as_slice()].concat();
        for length in (4097..8192).step_by(97).chain([4097, 8191]) {
            fs::write(control.path(), &whole[..length]).unwrap();
            let found = control.read().unwrap();
            assert_eq!((found.len(), found[1].epoch), (2, Epoch(2)), "{length} bytes");
            assert!(found[1].block.is_err());
            assert_eq!(control.newest().unwrap().as_ref(), Some(&found[1]), "{length} bytes");
        }
    }

    #[test]
    fn the_block_of_another_epoch_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::of(dir.path());
        fs::write(control.path(), block(2).encode().as_slice()).unwrap();
        assert_eq!(control.read().unwrap()[0].block, Err("the block of another epoch"));
        assert_eq!(control.newest().unwrap().unwrap().block, Err("the block of another epoch"));
    }

    #[test]
    fn a_newer_format_is_refused_wherever_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let control = control(&dir);
        control.write(&block(1)).unwrap();
        control.write(&block(3)).unwrap();
        let mut newer = block(2).encode();
        newer[8] = 9;
        let sum = crc32c::crc32c(&newer[..4092]);
        newer[4092..].copy_from_slice(&sum.to_le_bytes());
        let file = OpenOptions::new().write(true).open(control.path()).unwrap();
        file.write_all_at(newer.as_slice(), 4096).unwrap();
        assert!(matches!(control.read(), Err(ControlError::NewerFormat { found: 9, .. })));
    }

    #[test]
    fn an_absurd_length_is_refused_before_anything_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::of(dir.path());
        File::create(control.path()).unwrap().set_len(position_of(EPOCH_MAX) + 4097).unwrap();
        assert!(matches!(control.read(), Err(ControlError::BeyondMax { .. })));
        assert!(matches!(control.newest(), Err(ControlError::BeyondMax { .. })));
        assert!(matches!(control.write(&block(0)), Err(ControlError::BeyondMax { .. })));
        assert!(matches!(control.write(&block(EPOCH_MAX.0 + 1)), Err(ControlError::BeyondMax { .. })));
    }

    #[test]
    fn trouble_is_not_taken_for_an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("control")).unwrap();
        let control = Control::of(dir.path());
        assert!(matches!(control.read(), Err(ControlError::Io { .. })));
        assert!(matches!(control.newest(), Err(ControlError::Io { .. })));
    }
}
