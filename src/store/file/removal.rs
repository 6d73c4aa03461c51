//! The removal of files that nobody needs any more.
//!
//! Whoever orders one has checked the fence after what made it right: that the own manifest, a checkpoint, or the
//! commit that took the last message out of a file is durable.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::checkpoint::CheckpointId;
use super::file_id::FileId;
use super::folder::Folder;
use super::{Shared, remove};
use crate::model::id::Epoch;
use crate::store::StoreError;
use crate::store::manifest::{Manifest, sync_dir};

/// Files of one kind that are removed at a time.
pub const REMOVALS_MAX: usize = 16;

/// Files that are to be removed.
#[derive(Debug)]
pub struct Removal {
    /// Files that held messages once. The store has forgotten them.
    pub dead: Vec<FileId>,
    /// What else there may be.
    pub strays: Option<Strays>,
}

/// Which other files count, so that all others may go.
#[derive(Debug)]
pub struct Strays {
    /// The shared directory.
    pub dir: PathBuf,
    /// The own epoch, whose manifest is durable.
    pub epoch: Epoch,
    /// The checkpoints that are kept; empty where too few are.
    pub kept: BTreeSet<CheckpointId>,
}

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Whether there are other files that do not count and are still there.
    pub rest: Rest,
}

/// Whether something is left to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Perhaps.
    Possible,
    /// Nothing is.
    None,
}

impl Removal {
    /// Removes them, a few at a time. Step `Remove` of `tests/ha_model`.
    ///
    /// # Errors
    /// Where one cannot be removed.
    pub fn run(self, shared: &Arc<Shared>) -> Result<Removed, StoreError> {
        let strays = self.strays.as_ref().map_or(Ok(Vec::new()), |strays| strays.find(shared))?;
        let dead = self.dead.iter().map(|file| file.path(&shared.journal));
        let paths: Vec<PathBuf> = strays.iter().take(REMOVALS_MAX).cloned().chain(dead).collect();
        if !paths.is_empty() {
            paths.iter().try_for_each(|path| remove(path))?;
            sync_dir(&shared.journal)?;
        }
        Ok(Removed { rest: if strays.len() > REMOVALS_MAX { Rest::Possible } else { Rest::None } })
    }
}

impl Strays {
    /// Files of the folder, and manifests, that do not count: checkpoints before those that are kept, and what lower
    /// epochs left that is not accepted.
    fn find(&self, shared: &Shared) -> Result<Vec<PathBuf>, StoreError> {
        let folder = Folder::list(&shared.journal)?;
        let mut strays = Vec::new();
        if let Some(&newest) = self.kept.last() {
            let others = folder.checkpoints.iter().filter(|&&id| id < newest && !self.kept.contains(&id));
            strays.extend(others.map(|id| id.path(&shared.journal)));
        }
        let files = folder.segments.iter().map(|&segment| segment.into()).chain(folder.packs.iter().copied());
        // Asked one by one: a commit does not wait for all of a large folder.
        let is_unknown = |id: FileId| shared.places().files().get(id).is_none();
        let lower = files.filter(|&id: &FileId| id.epoch < self.epoch && is_unknown(id));
        strays.extend(lower.map(|id| id.path(&shared.journal)));
        let unfinished = folder.unfinished.into_iter().filter(|(epoch, _)| *epoch < self.epoch);
        strays.extend(unfinished.map(|(_, path)| path));
        strays.extend(Manifest::older(&self.dir, self.epoch)?);
        Ok(strays)
    }
}
