//! Databases that a takeover began to make and that never served: whose they are, and when they may go.
//!
//! A database counts once a manifest names it. Until then it is only in the way: it may be as large as the store, and
//! a takeover that fails is tried again. The epoch that makes one removes it, if it comes to nothing; where the process
//! was killed, the next takeover that needs the space does.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::super::{FenceCheck, Predecessor, Predecessors, StoreError};
use super::files;
use crate::model::id::Epoch;

/// The files of a database that this epoch makes, until its manifest is about to name it. Removed where that never
/// comes: the disk would fill with each attempt.
///
/// Nobody but this process reads or writes them. A process is the only owner of its epoch and the only one that makes
/// files of its name; another epoch opens them only where it finds a manifest that names them, and none was written.
/// So it makes no difference whether this epoch is superseded when they go.
#[derive(Debug)]
pub(super) struct Unserved {
    path: Option<PathBuf>,
}

impl Unserved {
    /// Those of the database at `path`, which is not there yet.
    ///
    /// # Errors
    /// Where it is there.
    pub(super) fn new(path: &Path) -> Result<Self, StoreError> {
        let io = |action| move |source| StoreError::Io { action, path: path.to_owned(), source };
        if path.try_exists().map_err(io("look for"))? {
            return Err(io("copy to")(ErrorKind::AlreadyExists.into()));
        }
        Ok(Self { path: Some(path.to_owned()) })
    }

    /// From now on a manifest may name the database.
    pub(super) fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Unserved {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        tracing::info!(database = %path.display(), "removing a copy that comes to nothing");
        if let Err(error) = files::remove(&files::all_of(path)) {
            tracing::warn!(%error, "the next master removes it");
        }
    }
}

/// Files of lower epochs that a takeover which needs space may remove before it has a manifest: copies that were begun
/// and never served. `in_use` is the name of the database in the newest manifest, and that manifest was read after it
/// was known how the `predecessors` have ended.
///
/// Why that is right. Only a manifest makes a file count, and only the maker of a file, or an epoch that read the
/// maker's manifest, names it in one. The maker is gone, so it will write none; where it had written one, that is
/// older than the newest, whose database was complete before it was named. A lower epoch that read the older manifest
/// may still be copying the file. It cannot make an epoch of what it has: it asks the fence after its last read and
/// before its manifest, and this epoch's block was there before the removal.
///
/// # Errors
/// Where the directory cannot be listed.
pub(super) fn abandoned(
    dir: &Path,
    epoch: Epoch,
    in_use: &str,
    predecessors: &Predecessors,
) -> Result<Vec<PathBuf>, StoreError> {
    let in_use = files::epoch_of(in_use);
    let is_abandoned = |maker: &Epoch| in_use != Some(*maker) && predecessors.of(*maker) == Predecessor::Gone;
    let files = files::older(dir, epoch)?.into_iter().filter(|(maker, _)| is_abandoned(maker));
    let mut paths: Vec<_> = files.map(|(_, path)| path).collect();
    // A database before its log: whoever still copies it then misses the database, and not a part of it.
    paths.sort();
    Ok(paths)
}

/// Removes the copies of lower epochs that never served, which a killed takeover leaves behind: see [`abandoned`]. Steps
/// `CheckAbandoned` and `RemoveAbandoned` of `tests/ha_model`.
///
/// # Errors
/// Where the fence is broken, or the files cannot be removed.
pub(super) fn remove_abandoned(
    dir: &Path,
    epoch: Epoch,
    in_use: &str,
    predecessors: &Predecessors,
    fence: FenceCheck<'_>,
) -> Result<(), StoreError> {
    let abandoned = abandoned(dir, epoch, in_use, predecessors)?;
    if abandoned.is_empty() {
        return Ok(());
    }
    fence()?;
    tracing::info!(files = ?abandoned, "removing copies that never served");
    files::remove(&abandoned)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::super::Fenced;
    use super::*;
    use crate::disk;

    #[test]
    fn a_copy_never_overwrites_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("new.db");
        fs::write(&new, "somebody's").unwrap();
        assert!(matches!(Unserved::new(&new), Err(StoreError::Io { .. })));
        assert_eq!(fs::read(&new).unwrap(), b"somebody's");
    }

    #[test]
    fn only_copies_of_the_dead_that_no_manifest_names_are_abandoned() {
        let dir = tempfile::tempdir().unwrap();
        let ends = [
            (1, Predecessor::Gone),
            (2, Predecessor::Gone),
            (3, Predecessor::MayWrite),
            (4, Predecessor::Gone),
        ];
        let predecessors = Predecessors::new(ends.map(|(epoch, end)| (Epoch(epoch), end)).to_vec());
        for epoch in 1..=6 {
            for file in files::all_of(&dir.path().join(files::name(Epoch(epoch)))) {
                fs::write(file, [0; 1_000]).unwrap();
            }
        }
        let wanted = [2, 4].map(|epoch| files::all_of(&dir.path().join(files::name(Epoch(epoch)))));
        let mut wanted = wanted.concat();
        wanted.sort();
        let in_use = files::name(Epoch(1));
        assert_eq!(abandoned(dir.path(), Epoch(6), &in_use, &predecessors).unwrap(), wanted);

        let mut broken = || Err(Fenced::Superseded(Epoch(7)));
        let refused = remove_abandoned(dir.path(), Epoch(6), &in_use, &predecessors, &mut broken);
        assert!(matches!(refused, Err(StoreError::Fenced(_))));
        assert!(wanted.iter().all(|path| path.exists()));
        remove_abandoned(dir.path(), Epoch(6), &in_use, &predecessors, &mut || Ok(())).unwrap();
        assert!(!wanted.iter().any(|path| path.exists()));
        assert_eq!(disk::names(dir.path()).unwrap().len(), 16);
    }
}
