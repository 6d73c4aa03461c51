//! The shared directory: whether it is one, and the right one, before anything is claimed in it.
//!
//! Opening it changes nothing but that it makes `baton.lock` where that is missing, and the directory itself where a
//! store may be made. It is what every node does at its start, a standby too, so everything that can refuse refuses
//! here: a wrong mount, a read-only one, another pair's store, a format from the future.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use uuid::Uuid;

use super::block::Block;
use super::control::{ControlError, EPOCH_MAX};
use super::lock::{self, LOCK_FILE, LockAttempt, LockError, StoreLock};
use super::view::{self, View};
use crate::disk;
use crate::model::id::Epoch;

/// Names that may stand in a directory that is to become a store: left by a claim that died early, or by the file
/// system. Names that start with a dot may too.
const HARMLESS_NAMES: [&str; 4] = [LOCK_FILE, "control", "epochs", "lost+found"];

/// Whether a store may be made where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// An empty directory becomes a store.
    Allowed,
    /// There must be a store.
    Refused,
}

/// Why a directory is not used. The node does not start.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// There is nothing at the path.
    #[error("{} does not exist: is the shared file system mounted? For a new store make the directory and set create_store = true", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// There is no store, and none may be made.
    #[error("{} holds no store: is the shared file system mounted? For a new store set create_store = true, and no store_id, for the first start", path.display())]
    NoStore {
        /// The directory.
        path: PathBuf,
    },
    /// There is something else in a directory that was to become a store.
    #[error("{} holds {name:?} but no store: use an empty directory, or restore the control file if this was a store", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the names in it.
        name: String,
    },
    /// The store is another one than expected.
    #[error("{} holds the store {found}, not {expected}: is it another pair's, or another mount? Correct `store`, or `store_id`", path.display())]
    OtherStore {
        /// The directory.
        path: PathBuf,
        /// The store that was expected.
        expected: Uuid,
        /// The store that is there.
        found: Uuid,
    },
    /// The directory cannot be made.
    #[error("{} cannot be made (only the last part of a path is made, the rest must exist): {source}", path.display())]
    Create {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// There is something at the path, but not a directory.
    #[error("{} is not a directory: `store` names the directory that both nodes share", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The directory, or something in it, cannot be read.
    #[error(
        "cannot read {}: {source}; this process runs as user {user}, who must own the shared directory and all that is in it",
        path.display()
    )]
    NotReadable {
        /// The path.
        path: PathBuf,
        /// The number of the user of this process.
        user: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// The directory, or something in it, cannot be written to.
    #[error("cannot write in {}: {source}; is it mounted read-only, or another user's? The user of the node must own it", path.display())]
    ReadOnly {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The directory cannot be used.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "list".
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The lock file cannot be opened for writing.
    #[error("{0}; the user of the node must be able to write in the directory")]
    Lock(#[from] LockError),
    /// The control file or the claims are not in order.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// A shared directory that holds a store, or may become one.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    create: Create,
    expected: Option<Uuid>,
}

impl Directory {
    /// Checks the directory. With an `expected` store id no store is ever made.
    ///
    /// # Errors
    /// Where it is not to be used; the error says why and what to do.
    pub fn open(path: &Path, create: Create, expected: Option<Uuid>) -> Result<Self, DirectoryError> {
        let create = if expected.is_some() { Create::Refused } else { create };
        let io = |action| {
            let path = path.to_owned();
            move |source| DirectoryError::Io { action, path, source }
        };
        if create == Create::Allowed {
            match disk::create_folder(path) {
                Err(source) if source.kind() != ErrorKind::AlreadyExists => {
                    return Err(DirectoryError::Create { path: path.to_owned(), source });
                }
                _ => {}
            }
        }
        match disk::is_folder(path) {
            Ok(true) => {}
            Ok(false) => return Err(DirectoryError::NotADirectory { path: path.to_owned() }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(DirectoryError::Missing { path: path.to_owned() });
            }
            Err(source) => return Err(io("look at")(source)),
        }
        // Absolute, so that a later change of the working directory does not lead elsewhere.
        let path = disk::absolute(path).map_err(io("resolve"))?;
        if create == Create::Allowed {
            sync_name(&path)?;
        }
        let directory = Self { path, create, expected };
        directory.check_readable()?;
        directory.check(&View::of(&directory.path)?, EPOCH_MAX.next())?;
        directory.check_writable()?;
        lock::create(&directory.path)?;
        Ok(directory)
    }

    /// The directory's absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One attempt to lock the store; never waits, changes nothing. Step `TryLock` of `tests/ha_model`.
    ///
    /// # Errors
    /// Where it is not known whether the lock is free.
    pub fn try_lock(&self) -> Result<LockAttempt, LockError> {
        StoreLock::attempt(self)
    }

    /// Who claimed last, and whether that epoch was released; `None` where nobody has. Changes nothing. The owner need
    /// not be serving: it may have died, or be on its way.
    ///
    /// # Errors
    /// Where that cannot be read or is damaged.
    pub fn status(&self) -> Result<Option<Block>, ControlError> {
        status(&self.path)
    }

    /// Checks that `view` is of the store that is expected, going by the epochs below `epoch`.
    pub(super) fn check(&self, view: &View, epoch: Epoch) -> Result<(), DirectoryError> {
        if let Some((found, _)) = view.store_below(epoch) {
            return self.check_id(found);
        }
        match self.check_free() {
            Err(DirectoryError::NotEmpty { path, name }) => {
                // The files may be those of a node that has founded the store since `view`. It wrote its block
                // before them, so a look from now on finds it.
                match View::of(&self.path)?.store_below(EPOCH_MAX.next()) {
                    Some((found, _)) => self.check_id(found),
                    None => Err(DirectoryError::NotEmpty { path, name }),
                }
            }
            free => free,
        }
    }

    fn check_id(&self, found: Uuid) -> Result<(), DirectoryError> {
        match self.expected {
            Some(expected) if found != expected => {
                Err(DirectoryError::OtherStore { path: self.path.clone(), expected, found })
            }
            _ => Ok(()),
        }
    }

    /// Checks that this process may look at what every node looks at.
    fn check_readable(&self) -> Result<(), DirectoryError> {
        let folder = Access::READ_OK | Access::EXEC_OK;
        for (name, access) in [("", folder), ("epochs", folder), ("control", Access::READ_OK)] {
            let path = self.within(name);
            let user = rustix::process::geteuid().as_raw();
            disk::check_access(&path, access).map_err(|source| DirectoryError::NotReadable {
                path,
                user,
                source,
            })?;
        }
        Ok(())
    }

    /// Where a name in the directory is; the directory itself where that is empty.
    fn within(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.path.clone() } else { self.path.join(name) }
    }

    /// Checks that a master could write what it has to, as far as that shows without writing.
    fn check_writable(&self) -> Result<(), DirectoryError> {
        let folder = Access::WRITE_OK | Access::EXEC_OK;
        let wanted =
            [("", folder), ("epochs", folder), ("control", Access::WRITE_OK), (LOCK_FILE, Access::WRITE_OK)];
        for (name, access) in wanted {
            let path = self.within(name);
            disk::check_access(&path, access).map_err(|source| DirectoryError::ReadOnly { path, source })?;
        }
        Ok(())
    }

    /// Checks that a store may be made here.
    fn check_free(&self) -> Result<(), DirectoryError> {
        if self.create == Create::Refused {
            return Err(DirectoryError::NoStore { path: self.path.clone() });
        }
        let io = |source| DirectoryError::Io { action: "list", path: self.path.clone(), source };
        for name in disk::names(&self.path).map_err(io)? {
            let name = name.to_string_lossy().into_owned();
            if !name.starts_with('.') && !HARMLESS_NAMES.contains(&name.as_str()) {
                return Err(DirectoryError::NotEmpty { path: self.path.clone(), name });
            }
        }
        Ok(())
    }
}

/// Makes the name of a directory durable that may just have been made, here or by a node that died before it did so:
/// with the name would go all that was confirmed in it.
fn sync_name(path: &Path) -> Result<(), DirectoryError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    match disk::sync_folder(parent) {
        // One who may not read the parent was given the directory by somebody else.
        Err(source) if source.kind() != ErrorKind::PermissionDenied => {
            Err(DirectoryError::Io { action: "sync", path: parent.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Who claimed last in the shared directory `dir`, and whether that epoch was released; `None` where nobody has.
/// Changes nothing. Of an epoch whose block is torn its claim is answered: a master that died while it wrote its block
/// must not keep the next one from taking over.
///
/// # Errors
/// Where that cannot be read, or block and claim are both damaged.
pub fn status(dir: &Path) -> Result<Option<Block>, ControlError> {
    view::newest(dir)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::fs::File;

    use super::super::block::State;
    use super::super::block::tests::sample;
    use super::super::control::Control;
    use super::super::epochs::Epochs;
    use super::*;

    const ALLOWED: Create = Create::Allowed;
    const REFUSED: Create = Create::Refused;

    fn with_store(block: &Block) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        Control::of(dir.path()).create().unwrap();
        Epochs::of(dir.path()).claim(block).unwrap();
        Control::of(dir.path()).write(block).unwrap();
        dir
    }

    /// Name -> content of every file below `dir`.
    fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(contents(&path));
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
        found
    }

    /// A node that started while the other one founded the store took the database it had just made for foreign
    /// files, and ended.
    #[test]
    fn a_store_founded_between_the_look_and_the_listing_is_a_store() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path(), ALLOWED, None).unwrap();
        let before = View::of(dir.path()).unwrap();
        File::create(dir.path().join("baton-1.db-journal")).unwrap();
        let foreign = directory.check(&before, EPOCH_MAX.next());
        assert!(matches!(foreign, Err(DirectoryError::NotEmpty { .. })), "{foreign:?}");
        let block = sample();
        Control::of(dir.path()).create().unwrap();
        Epochs::of(dir.path()).claim(&block).unwrap();
        Control::of(dir.path()).write(&block).unwrap();
        directory.check(&before, EPOCH_MAX.next()).unwrap();
        directory.check(&before, block.epoch).unwrap();
    }

    #[test]
    fn an_empty_directory_becomes_a_store_only_where_that_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Directory::open(dir.path(), REFUSED, None);
        assert!(matches!(refused, Err(DirectoryError::NoStore { .. })), "{refused:?}");
        assert_eq!(contents(dir.path()).len(), 0, "a refusal leaves nothing behind");
        Directory::open(dir.path(), ALLOWED, None).unwrap();
        assert_eq!(contents(dir.path()).into_keys().collect::<Vec<_>>(), [dir.path().join(LOCK_FILE)]);
        let still = Directory::open(dir.path(), REFUSED, None);
        assert!(matches!(still, Err(DirectoryError::NoStore { .. })), "a lock file makes no store");
    }

    #[test]
    fn an_empty_directory_is_refused_where_a_certain_store_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Directory::open(dir.path(), ALLOWED, Some(sample().store_id));
        assert!(matches!(refused, Err(DirectoryError::NoStore { .. })));
        let missing = Directory::open(&dir.path().join("x"), ALLOWED, Some(sample().store_id));
        assert!(matches!(missing, Err(DirectoryError::Missing { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_made_only_where_that_is_allowed_and_never_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert!(matches!(Directory::open(&path, REFUSED, None), Err(DirectoryError::Missing { .. })));
        let deep = Directory::open(&path.join("b"), ALLOWED, None);
        assert!(matches!(deep, Err(DirectoryError::Create { .. })), "{deep:?}");
        assert!(!path.exists());
        assert_eq!(Directory::open(&path, ALLOWED, None).unwrap().path(), path.canonicalize().unwrap());
    }

    #[test]
    fn another_pairs_store_is_refused() {
        let dir = with_store(&sample());
        Directory::open(dir.path(), REFUSED, Some(sample().store_id)).unwrap();
        let refused = Directory::open(dir.path(), ALLOWED, Some(Uuid::nil()));
        assert!(
            matches!(refused, Err(DirectoryError::OtherStore { found, .. }) if found == sample().store_id)
        );
    }

    #[test]
    fn a_store_whose_founder_never_served_is_no_store() {
        let dir = with_store(&Block { state: State::Founding, ..sample() });
        assert!(matches!(Directory::open(dir.path(), REFUSED, None), Err(DirectoryError::NoStore { .. })));
        Directory::open(dir.path(), ALLOWED, None).unwrap();
    }

    #[test]
    fn a_directory_of_something_else_is_not_made_a_store() {
        for name in ["photos", "journal", "baton-1.db"] {
            let dir = tempfile::tempdir().unwrap();
            File::create(dir.path().join(name)).unwrap();
            let refused = Directory::open(dir.path(), ALLOWED, None);
            assert!(
                matches!(&refused, Err(DirectoryError::NotEmpty { name: found, .. }) if found == name),
                "{name}: {refused:?}"
            );
            assert_eq!(contents(dir.path()).len(), 1);
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        File::create(dir.path().join(".snapshot")).unwrap();
        Directory::open(dir.path(), ALLOWED, None).unwrap();
    }

    #[test]
    fn a_file_is_no_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            Directory::open(file.path(), ALLOWED, None),
            Err(DirectoryError::NotADirectory { .. })
        ));
    }

    #[test]
    fn a_lock_file_that_cannot_be_written_is_found_at_the_start() {
        let dir = with_store(&sample());
        fs::create_dir(dir.path().join(LOCK_FILE)).unwrap();
        let refused = Directory::open(dir.path(), REFUSED, None);
        assert!(matches!(refused, Err(DirectoryError::Lock(LockError::Io { .. }))), "{refused:?}");
    }

    /// A starting standby of another broker deleted the master's temporary files.
    #[test]
    fn a_standby_that_starts_polls_and_stops_changes_nothing() {
        let dir = with_store(&sample());
        let master = Directory::open(dir.path(), REFUSED, None).unwrap();
        let LockAttempt::Acquired(_lock) = master.try_lock().unwrap() else { panic!("the lock is free") };
        fs::create_dir(dir.path().join("journal")).unwrap();
        fs::write(dir.path().join("journal/1.new"), b"half").unwrap();
        // Whoever took it for a folder would fail.
        fs::write(dir.path().join("manifest"), b"").unwrap();
        let before = contents(dir.path());
        let standby = Directory::open(dir.path(), ALLOWED, Some(sample().store_id)).unwrap();
        for _ in 0..3 {
            assert!(matches!(standby.try_lock(), Ok(LockAttempt::Held)));
            assert_eq!(standby.status().unwrap(), Some(sample()));
        }
        drop(standby);
        assert_eq!(contents(dir.path()), before);
    }

    #[test]
    fn status_of_a_directory_without_a_store_is_nobody_and_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(status(dir.path()).unwrap(), None);
        assert_eq!(status(&dir.path().join("missing")).unwrap(), None);
        assert_eq!(contents(dir.path()).len(), 0);
    }
}
