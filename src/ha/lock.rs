//! The lock: at most one process holds `baton.lock`, where the file system keeps its word.
//!
//! The lock makes takeovers quick and orderly; it is not what keeps two masters apart (the fence is). The file is made
//! where it is missing in a store, and after that never written, deleted or renamed, by anybody: a lock on a file
//! that was replaced excludes nobody, which is why the holder [verifies](StoreLock::verify) that the path still leads
//! to its file. Each attempt opens the file anew, for the same reason.
//!
//! Only `WouldBlock` means that another process holds the lock. Every other error is trouble with the storage, and
//! never "free" or "held".

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::directory::Directory;
use crate::disk::{self, File, LockKind, Opening};

/// Name of the lock file.
pub const LOCK_FILE: &str = "baton.lock";

/// What goes wrong with the lock. A master that meets one of these must end.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A system call failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "lock".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file that was locked is no longer at its path.
    #[error("{} was deleted: its lock excludes nobody any more", path.display())]
    Deleted {
        /// The path.
        path: PathBuf,
    },
    /// Another file is at the path.
    #[error("{} was replaced: its lock excludes nobody any more", path.display())]
    Replaced {
        /// The path.
        path: PathBuf,
    },
}

/// Which file is locked. The lock file is never changed, so another file, with a lock of its own, differs in one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockFile {
    /// Inode number.
    pub number: u64,
    /// When the inode was changed last, in nanoseconds since 1970, by the clock of the file system.
    pub changed_at: u64,
}

/// What became of an attempt to lock.
#[derive(Debug)]
pub enum LockAttempt {
    /// This process holds the lock.
    Acquired(StoreLock),
    /// Another process holds it.
    Held,
}

/// The lock, held until this is dropped.
#[derive(Debug)]
pub struct StoreLock {
    directory: Directory,
    file: File,
    path: PathBuf,
}

impl StoreLock {
    /// One attempt; never waits.
    pub(super) fn attempt(directory: &Directory) -> Result<LockAttempt, LockError> {
        let lock = Self::open(directory)?;
        if !try_exclusive(&lock.file, &lock.path)? {
            return Ok(LockAttempt::Held);
        }
        lock.verify()?;
        Ok(LockAttempt::Acquired(lock))
    }

    fn open(directory: &Directory) -> Result<Self, LockError> {
        let path = directory.path().join(LOCK_FILE);
        match File::open(&path, Opening::ReadWrite) {
            Ok(file) => Ok(Self { directory: directory.clone(), file, path }),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(LockError::Deleted { path }),
            Err(source) => Err(io("open", &path)(source)),
        }
    }

    /// The shared directory that is locked.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Checks that the path still leads to the file that is locked.
    ///
    /// # Errors
    /// Where it does not, or that cannot be found out.
    pub fn verify(&self) -> Result<(), LockError> {
        let mine = self.file.attributes().map_err(io("look at", &self.path))?.identity;
        let there = match disk::identity_at(&self.path) {
            Ok(there) => there,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(LockError::Deleted { path: self.path.clone() });
            }
            Err(source) => return Err(io("look at", &self.path)(source)),
        };
        if mine == there { Ok(()) } else { Err(LockError::Replaced { path: self.path.clone() }) }
    }

    /// Which file is locked.
    ///
    /// # Errors
    /// Where that cannot be found out.
    pub fn lock_file(&self) -> Result<LockFile, LockError> {
        let mine = self.file.attributes().map_err(io("look at", &self.path))?;
        Ok(LockFile { number: mine.identity.1, changed_at: mine.changed_at })
    }

    /// A lock that excludes nobody, as on storage whose locks lie.
    #[cfg(test)]
    pub(super) fn lying(directory: &Directory) -> Self {
        Self::open(directory).expect("the lock file exists")
    }
}

/// A lock of the same kind on any other file, to try out what locks are worth on a file system. Held until this is
/// dropped.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// One attempt to lock the file at `path`, which exists; never waits. `None` where another one holds its lock.
    ///
    /// # Errors
    /// Where it is not known whether the lock is free.
    pub fn attempt(path: &Path) -> Result<Option<Self>, LockError> {
        let file = File::open(path, Opening::ReadWrite).map_err(io("open", path))?;
        Ok(try_exclusive(&file, path)?.then_some(Self(file)))
    }

    /// The file whose lock is held, open for writing.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }
}

/// What became of an attempt to keep masters away.
#[derive(Debug)]
pub enum ReadLockAttempt {
    /// Nobody becomes master while this process holds it.
    Acquired(ReadLock),
    /// There is a master, or somebody who changes the store.
    Held,
    /// There is no lock file: a store that no node ever had, or part of one.
    NoFile,
}

/// The lock of one who only reads, held until this is dropped. Several may hold it at a time.
#[derive(Debug)]
pub struct ReadLock {
    _file: File,
}

impl ReadLock {
    /// One attempt in the directory `dir`; never waits. Nothing is written, so it may be mounted read-only.
    ///
    /// # Errors
    /// Where it is not known whether the lock is free.
    pub fn attempt(dir: &Path) -> Result<ReadLockAttempt, LockError> {
        let path = dir.join(LOCK_FILE);
        let file = match File::open(&path, Opening::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ReadLockAttempt::NoFile),
            Err(source) => return Err(io("open", &path)(source)),
        };
        match file.try_lock(LockKind::Shared).map_err(io("lock", &path))? {
            true => Ok(ReadLockAttempt::Acquired(Self { _file: file })),
            false => Ok(ReadLockAttempt::Held),
        }
    }
}

/// Makes the lock file where there is none.
pub(super) fn create(dir: &Path) -> Result<(), LockError> {
    let path = dir.join(LOCK_FILE);
    File::open(&path, Opening::Make).map(drop).map_err(io("open for writing", &path))
}

/// Whether the lock is held from now on; `false` where another process holds it.
fn try_exclusive(file: &File, path: &Path) -> Result<bool, LockError> {
    file.try_lock(LockKind::Exclusive).map_err(io("lock", path))
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LockError {
    move |source| LockError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::super::directory::Create;
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;

    fn directory(dir: &tempfile::TempDir) -> Directory {
        Directory::open(dir.path(), Create::Allowed, None).unwrap()
    }

    fn locked(directory: &Directory) -> StoreLock {
        match directory.try_lock().unwrap() {
            LockAttempt::Acquired(lock) => lock,
            LockAttempt::Held => panic!("the lock is held"),
        }
    }

    #[test]
    fn the_second_one_is_told_that_the_lock_is_held_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let directory = directory(&dir);
        let lock = locked(&directory);
        assert!(matches!(directory.try_lock(), Ok(LockAttempt::Held)));
        lock.verify().unwrap();
        drop(lock);
        locked(&directory);
    }

    #[test]
    fn readers_keep_masters_away_and_not_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let read = || ReadLock::attempt(dir.path()).unwrap();
        assert!(matches!(read(), ReadLockAttempt::NoFile));
        let directory = directory(&dir);
        let readers = [read(), read()];
        assert!(readers.iter().all(|reader| matches!(reader, ReadLockAttempt::Acquired(_))));
        assert!(matches!(directory.try_lock(), Ok(LockAttempt::Held)));
        drop(readers);
        let _master = locked(&directory);
        assert!(matches!(read(), ReadLockAttempt::Held));
    }

    #[test]
    fn letting_go_leaves_the_lock_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let directory = directory(&dir);
        let before = fs::metadata(dir.path().join(LOCK_FILE)).unwrap();
        let lock_file = locked(&directory).lock_file().unwrap();
        assert_eq!(locked(&directory).lock_file().unwrap(), lock_file, "the same for the next one");
        let after = fs::metadata(dir.path().join(LOCK_FILE)).unwrap();
        assert_eq!((before.ino(), before.len()), (after.ino(), after.len()));
        assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    }

    #[test]
    fn a_deleted_lock_file_is_noticed_by_its_holder_and_is_not_free_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let directory = directory(&dir);
        let lock = locked(&directory);
        fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
        assert!(matches!(lock.verify(), Err(LockError::Deleted { .. })));
        assert!(matches!(directory.try_lock(), Err(LockError::Deleted { .. })));
        assert!(!dir.path().join(LOCK_FILE).exists());
    }

    #[test]
    fn a_replaced_lock_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let directory = directory(&dir);
        let lock = locked(&directory);
        let path = dir.path().join(LOCK_FILE);
        let before = lock.lock_file().unwrap();
        fs::rename(&path, dir.path().join("old")).unwrap();
        File::create(&path).unwrap();
        assert!(matches!(lock.verify(), Err(LockError::Replaced { .. })));
        assert_ne!(locked(&directory).lock_file().unwrap(), before);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("old", &path).unwrap();
        assert!(
            matches!(lock.verify(), Err(LockError::Replaced { .. })),
            "a link to the file is not the file"
        );
    }

    #[test]
    fn trouble_is_neither_held_nor_free() {
        let dir = tempfile::tempdir().unwrap();
        let directory = directory(&dir);
        fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
        fs::create_dir(dir.path().join(LOCK_FILE)).unwrap();
        assert!(matches!(directory.try_lock(), Err(LockError::Io { .. })));
    }
}
