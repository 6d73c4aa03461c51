//! The fence: does a higher epoch exist? Asked after every sync and before every effect.
//!
//! A check opens the control file, asks the file system for its length, reads from the block of its own epoch to the
//! end, and closes it. It fails if its own block is not there, or if any byte behind it is not zero: a block of a
//! higher epoch counts even where it is torn. What a check says holds for the moment at which it was *called*, so it
//! proves something about a record only if the record's sync came before. No answer is kept.
//!
//! The path is looked up each time. A kept handle of the directory would save a part of a microsecond, and would go on
//! answering from a file system that was unmounted or replaced under the path.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::block::{BLOCK_BYTES, Block, HEAD_BYTES, head, is_zero};
use super::control::{epoch_at, position_of};
use crate::disk::{File, Opening};
use crate::model::id::Epoch;

/// How a check gets at bytes that another host may just have written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FenceRead {
    /// Opens the file anew. Right where an open drops what the page cache has of the file (NFS, FUSE), and on a file
    /// system of this host.
    #[default]
    Reopen,
    /// Opens it anew and reads past the page cache. Some file systems refuse that, with an error.
    Direct,
}

impl FenceRead {
    fn open(self, path: &Path) -> io::Result<File> {
        let opening = match self {
            Self::Reopen => Opening::Read,
            Self::Direct => Opening::ReadDirect,
        };
        File::open(path, opening)
    }

    /// Reads up to a block from `at` on, in the way in which a check reads the control file: what makes the one stale
    /// makes the other stale. Shorter where the file ends.
    ///
    /// # Errors
    /// Where the file cannot be read, or not in this way.
    pub fn block(self, path: &Path, at: u64) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let length = file.length()?;
        let mut buffer = Buffer::new();
        let filled = buffer.fill(&file, at, length)?;
        Ok(buffer.window()[..filled.min(BLOCK_BYTES)].to_vec())
    }
}

/// What a check found. In each case the process must end without touching the store.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// A higher epoch exists.
    #[error("epoch {0} has taken over")]
    Superseded(Epoch),
    /// The control file cannot be read.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "open".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The block of the own epoch is not what this process wrote.
    #[error("{}: damaged at offset {position}: the block of this epoch is not its own any more", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes.
        position: u64,
    },
}

/// Checks the fence of one epoch.
#[derive(Debug)]
pub struct Fence {
    path: PathBuf,
    position: u64,
    head: [u8; HEAD_BYTES],
    read: FenceRead,
    buffer: Buffer,
}

impl Fence {
    /// The fence of `block`'s epoch, whose block is durable in the control file at `path`.
    #[must_use]
    pub fn new(path: &Path, block: &Block, read: FenceRead) -> Self {
        Self {
            path: path.to_owned(),
            position: position_of(block.epoch),
            head: head(&block.encode()),
            read,
            buffer: Buffer::new(),
        }
    }

    /// Makes sure that no higher epoch existed when it was called. Step `Check` of `tests/ha_model`.
    ///
    /// # Errors
    /// Where one exists, or that cannot be found out.
    pub fn check(&mut self) -> Result<(), FenceError> {
        let file = self.read.open(&self.path).map_err(|source| self.io("open", source))?;
        // The length first: it also makes a mount forget what it holds of an older, shorter file.
        let length = file.length().map_err(|source| self.io("look at", source))?;
        let mut at = self.position;
        let mut filled = self.fill(&file, at, length)?;
        let (mine, behind) = self.buffer.window()[..filled].split_at(BLOCK_BYTES.min(filled));
        match mine.try_into() {
            Ok(mine) if head(mine) == self.head => {}
            _ => return Err(self.damaged()),
        }
        let mut higher = (!is_zero(behind)).then(|| epoch_at(at).next());
        // More than one block behind the own one is rare: then the rest tells the highest of them.
        while filled == WINDOW_BYTES {
            at += WINDOW_BYTES as u64;
            filled = self.fill(&file, at, length)?;
            for (block, epoch) in self.buffer.window()[..filled].chunks(BLOCK_BYTES).zip(epoch_at(at).0..) {
                if !is_zero(block) {
                    higher = Some(Epoch(epoch));
                }
            }
        }
        higher.map_or(Ok(()), |epoch| Err(FenceError::Superseded(epoch)))
    }

    fn fill(&mut self, file: &File, at: u64, length: u64) -> Result<usize, FenceError> {
        self.buffer.fill(file, at, length).map_err(|source| self.io("read", source))
    }

    fn damaged(&self) -> FenceError {
        FenceError::Damaged { path: self.path.clone(), position: self.position }
    }

    fn io(&self, action: &'static str, source: io::Error) -> FenceError {
        FenceError::Io { action, path: self.path.clone(), source }
    }
}

/// Bytes that are read at once: the own block and the place of the next one.
const WINDOW_BYTES: usize = 2 * BLOCK_BYTES;

/// A window of [`WINDOW_BYTES`] that starts at a multiple of [`BLOCK_BYTES`] in memory, as a read past the page cache
/// wants it: a part of a longer buffer, chosen where that one happens to lie. The heap block never moves.
#[derive(Debug)]
struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; WINDOW_BYTES + BLOCK_BYTES].into_boxed_slice();
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES);
        Self { bytes, start }
    }

    /// Reads from `at` on until the window is full or the file ends, at `length` or, where it grew, behind it.
    fn fill(&mut self, file: &File, at: u64, length: u64) -> io::Result<usize> {
        let mut filled = 0;
        loop {
            match file.read_at(&mut self.window_mut()[filled..], at + filled as u64) {
                Ok(0) => return Ok(filled),
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if filled == WINDOW_BYTES || at + filled as u64 >= length {
                return Ok(filled);
            }
        }
    }

    fn window(&self) -> &[u8] {
        &self.bytes[self.start..self.start + WINDOW_BYTES]
    }

    fn window_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + WINDOW_BYTES]
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::FileExt;

    use uuid::Uuid;

    use super::super::block::State;
    use super::super::block::tests::sample;
    use super::super::control::Control;
    use super::super::identity::Identity;
    use super::*;

    const BOTH: [FenceRead; 2] = [FenceRead::Reopen, FenceRead::Direct];

    fn block(epoch: u64) -> Block {
        Block { epoch: Epoch(epoch), ..sample() }
    }

    /// A control file with these blocks, beside the test program: a temporary directory may be on a file system that
    /// cannot be read past the page cache.
    fn control(epochs: &[u64]) -> (tempfile::TempDir, Control) {
        let program = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let control = Control::of(dir.path());
        control.create().unwrap();
        for &epoch in epochs {
            control.write(&block(epoch)).unwrap();
        }
        (dir, control)
    }

    fn check(control: &Control, epoch: u64, read: FenceRead) -> Result<(), FenceError> {
        Fence::new(control.path(), &block(epoch), read).check()
    }

    fn poke(control: &Control, position: u64, bytes: &[u8]) {
        OpenOptions::new().write(true).open(control.path()).unwrap().write_all_at(bytes, position).unwrap();
    }

    #[test]
    fn the_highest_epoch_passes_and_every_lower_one_is_told_the_highest() {
        for read in BOTH {
            for highest in [1, 2, 3, 4, 5, 9, 300] {
                let (_dir, control) = control(&[1, 2, highest]);
                check(&control, highest.max(2), read).unwrap();
                for lower in [1, 2].into_iter().filter(|&lower| lower < highest.max(2)) {
                    let found = check(&control, lower, read);
                    let expected = Epoch(highest.max(2));
                    assert!(
                        matches!(found, Err(FenceError::Superseded(epoch)) if epoch == expected),
                        "{read:?} {lower} of {highest}: {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn one_fence_sees_a_higher_epoch_come() {
        for read in BOTH {
            let (_dir, control) = control(&[1]);
            let mut fence = Fence::new(control.path(), &block(1), read);
            for _ in 0..3 {
                fence.check().unwrap();
            }
            control.write(&block(2)).unwrap();
            assert!(matches!(fence.check(), Err(FenceError::Superseded(Epoch(2)))));
        }
    }

    #[test]
    fn a_single_byte_behind_the_own_block_is_a_higher_epoch() {
        for read in BOTH {
            for at in [0, 1, 511, 4095, 4096, 8191, 8192, 40_000] {
                let (_dir, control) = control(&[1]);
                poke(&control, 4096 + at, &[1]);
                let expected = Epoch(2 + at / 4096);
                let found = check(&control, 1, read);
                assert!(
                    matches!(found, Err(FenceError::Superseded(epoch)) if epoch == expected),
                    "{at}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn zeros_behind_the_own_block_are_nobody() {
        for read in BOTH {
            for bytes in [1, 4096, 5000, 40_000] {
                let (_dir, control) = control(&[1]);
                poke(&control, 4096, &vec![0; bytes]);
                check(&control, 1, read).unwrap();
            }
        }
    }

    #[test]
    fn an_own_block_that_was_changed_cut_or_lost_is_damage() {
        for read in BOTH {
            let (_dir, control) = control(&[1, 2]);
            let other = Identity { incarnation: Uuid::nil(), ..sample().owner };
            control.write(&Block { owner: other, ..block(2) }).unwrap();
            assert!(matches!(check(&control, 2, read), Err(FenceError::Damaged { position: 4096, .. })));
            for length in [0, 4096, 4097, 8191] {
                control.write(&block(2)).unwrap();
                OpenOptions::new().write(true).open(control.path()).unwrap().set_len(length).unwrap();
                let found = check(&control, 2, read);
                assert!(matches!(found, Err(FenceError::Damaged { .. })), "{length}: {found:?}");
            }
        }
    }

    #[test]
    fn the_own_release_does_not_break_the_fence() {
        let (_dir, control) = control(&[1]);
        let mut fence = Fence::new(control.path(), &block(1), FenceRead::Reopen);
        control.write(&Block { state: State::Released, ..block(1) }).unwrap();
        fence.check().unwrap();
    }

    #[test]
    fn a_control_file_that_was_replaced_by_an_older_one_is_damage() {
        let (dir, control) = control(&[1, 2]);
        let mut fence = Fence::new(control.path(), &block(2), FenceRead::Reopen);
        fence.check().unwrap();
        let older = dir.path().join("older");
        fs::write(&older, block(1).encode().as_slice()).unwrap();
        fs::rename(&older, control.path()).unwrap();
        assert!(matches!(fence.check(), Err(FenceError::Damaged { .. })));
    }

    #[test]
    fn an_error_of_the_storage_is_never_a_yes() {
        for read in BOTH {
            let (_dir, control) = control(&[1]);
            let mut fence = Fence::new(control.path(), &block(1), read);
            fs::remove_file(control.path()).unwrap();
            assert!(matches!(fence.check(), Err(FenceError::Io { action: "open", .. })));
            fs::create_dir(control.path()).unwrap();
            assert!(matches!(fence.check(), Err(FenceError::Io { .. })));
        }
    }
}
