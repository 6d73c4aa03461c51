//! Claims: an epoch belongs to the process that created its file in `epochs/`.
//!
//! The file is created with O_EXCL, which excludes on every shared file system that is of any use, also where locks
//! do not. It is never written again, never deleted, and its content is the block that its claimer then writes to
//! the control file, so that a block torn later can still be told whose it was. An empty or torn claim is a claim
//! all the same: its number is used up.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::block::{BLOCK_BYTES, Block};
use super::control::{ControlError, EPOCH_MAX};
use crate::disk::{self, File, Opening};
use crate::model::id::Epoch;

/// Digits of an epoch in a file's name.
const EPOCH_DIGITS: usize = 20;

/// What became of an attempt to claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The epoch is this process's, durably.
    Mine,
    /// Another process has it.
    Taken,
}

/// The claims in a shared directory.
#[derive(Clone, Debug)]
pub struct Epochs {
    dir: PathBuf,
    folder: PathBuf,
}

impl Epochs {
    /// The claims in the shared directory `dir`. Their folder need not exist.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), folder: dir.join("epochs") }
    }

    /// The highest epoch that was claimed; `None` where there is none.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn highest(&self) -> Result<Option<Epoch>, ControlError> {
        highest_name(&self.folder)
    }

    /// Claims `block.epoch`. When it returns [`Attempt::Mine`] the claim is durable. Step `Claim` of `tests/ha_model`.
    ///
    /// # Errors
    /// Where a system call fails. The number is then used up or not; the next attempt takes a higher one.
    pub fn claim(&self, block: &Block) -> Result<Attempt, ControlError> {
        if block.epoch > EPOCH_MAX {
            return Err(ControlError::BeyondMax { path: self.path(block.epoch), epoch: block.epoch });
        }
        match disk::create_folder(&self.folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io("create", &self.folder)(error));
            }
            _ => {}
        }
        let path = self.path(block.epoch);
        let file = match File::open(&path, Opening::New) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(Attempt::Taken),
            Err(source) => return Err(io("create", &path)(source)),
        };
        file.write_all_at(block.encode().as_slice(), 0).map_err(io("write to", &path))?;
        file.sync_all().map_err(io("sync", &path))?;
        // Both, whoever made the folder: it may have died before it synced.
        sync(&self.folder)?;
        sync(&self.dir)?;
        Ok(Attempt::Mine)
    }

    /// What the claimer of `epoch` said about itself; `None` where that is missing or not whole.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn claimer(&self, epoch: Epoch) -> Result<Option<Block>, ControlError> {
        let path = self.path(epoch);
        let file = match disk::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io("open", &path)(source)),
        };
        let mut bytes = Vec::with_capacity(BLOCK_BYTES + 1);
        file.take(BLOCK_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(io("read", &path))?;
        let block = <&[u8; BLOCK_BYTES]>::try_from(bytes.as_slice()).ok().and_then(|b| Block::decode(b).ok());
        Ok(block.filter(|block| block.epoch == epoch))
    }

    fn path(&self, epoch: Epoch) -> PathBuf {
        self.folder.join(format!("{:0EPOCH_DIGITS$}", epoch.0))
    }
}

/// The highest epoch that names a file in `folder`; `None` where there is none. Other names do not count: file
/// systems leave some of their own.
///
/// # Errors
/// Where the folder cannot be read.
pub fn highest_name(folder: &Path) -> Result<Option<Epoch>, ControlError> {
    let names = match disk::names(folder) {
        Ok(names) => names,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io("list", folder)(source)),
    };
    let mut highest = None;
    for name in names {
        let digits = name.to_str().filter(|name| {
            name.len() == EPOCH_DIGITS && name.bytes().all(|character| character.is_ascii_digit())
        });
        if let Some(digits) = digits {
            // Twenty digits can be more than a u64 holds; then it is beyond the highest anyway.
            let epoch = Epoch(digits.parse().unwrap_or(u64::MAX));
            if epoch > EPOCH_MAX {
                return Err(ControlError::BeyondMax { path: folder.join(digits), epoch });
            }
            highest = highest.max(Some(epoch));
        }
    }
    Ok(highest)
}

fn sync(dir: &Path) -> Result<(), ControlError> {
    disk::sync_folder(dir).map_err(io("sync", dir))
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ControlError {
    move |source| ControlError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::thread;

    use super::super::block::tests::sample;
    use super::*;

    fn block(epoch: u64) -> Block {
        Block { epoch: Epoch(epoch), ..sample() }
    }

    #[test]
    fn an_epoch_is_claimed_once() {
        let dir = tempfile::tempdir().unwrap();
        let epochs = Epochs::of(dir.path());
        assert_eq!(epochs.highest().unwrap(), None);
        assert!(!dir.path().join("epochs").exists(), "a look creates nothing");
        assert_eq!(epochs.claim(&block(1)).unwrap(), Attempt::Mine);
        assert_eq!(epochs.claim(&block(1)).unwrap(), Attempt::Taken);
        assert_eq!(epochs.claim(&block(12)).unwrap(), Attempt::Mine);
        assert_eq!(epochs.highest().unwrap(), Some(Epoch(12)));
        assert_eq!(epochs.claimer(Epoch(12)).unwrap(), Some(block(12)));
        assert_eq!(epochs.claimer(Epoch(2)).unwrap(), None);
    }

    #[test]
    fn of_many_claimers_at_once_one_gets_each_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let claimers: Vec<_> = (0..8)
            .map(|_| {
                let epochs = Epochs::of(dir.path());
                thread::spawn(move || {
                    let mine = |epoch: &u64| epochs.claim(&block(*epoch)).unwrap() == Attempt::Mine;
                    (1..20).filter(mine).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut owned: Vec<u64> = claimers.into_iter().flat_map(|claimer| claimer.join().unwrap()).collect();
        owned.sort_unstable();
        assert_eq!(owned, (1..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_torn_claim_uses_its_number_up_and_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let epochs = Epochs::of(dir.path());
        epochs.claim(&block(1)).unwrap();
        let path = epochs.path(Epoch(1));
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(89).chain([4095]) {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(epochs.highest().unwrap(), Some(Epoch(1)));
            assert_eq!(epochs.claim(&block(1)).unwrap(), Attempt::Taken);
            assert_eq!(epochs.claimer(Epoch(1)).unwrap(), None, "{length} bytes");
        }
        fs::write(&path, block(2).encode().as_slice()).unwrap();
        assert_eq!(epochs.claimer(Epoch(1)).unwrap(), None, "the block of another epoch");
    }

    #[test]
    fn names_of_other_things_do_not_count_but_absurd_epochs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let epochs = Epochs::of(dir.path());
        epochs.claim(&block(3)).unwrap();
        for name in [".nfs0000000000000000001234", "9", "lost+found", "+0000000000000000009"] {
            File::create(dir.path().join("epochs").join(name)).unwrap();
        }
        assert_eq!(epochs.highest().unwrap(), Some(Epoch(3)));
        File::create(dir.path().join("epochs/99999999999999999999")).unwrap();
        assert!(matches!(epochs.highest(), Err(ControlError::BeyondMax { .. })));
    }

    #[test]
    fn trouble_is_not_taken_for_no_claims() {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("epochs")).unwrap();
        let epochs = Epochs::of(dir.path());
        assert!(matches!(epochs.highest(), Err(ControlError::Io { .. })));
        assert!(matches!(epochs.claim(&block(1)), Err(ControlError::Io { .. })));
    }
}
