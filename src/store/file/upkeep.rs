//! Checkpoints when they are due, and the removal of files that nobody needs any more.
//!
//! A segment goes when all its messages are trimmed and it lies before the older of the two checkpoints that are
//! kept, so that recovery from either does not need it. Files of lower epochs go when the own manifest, which is
//! durable, does not accept them. Every removal comes after a fence check that began after what made it right.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::checkpoint::{CheckpointBody, CheckpointId};
use super::folder::Folder;
use super::journal::Journal;
use super::segment::{Position, SegmentId};
use super::{Shared, io_error, remove};
use crate::model::id::Epoch;
use crate::model::snapshot::Snapshot;
use crate::store::manifest::sync_dir;
use crate::store::{FenceCheck, StoreError};

/// Bytes of commits after which a checkpoint is due, where segments are not smaller.
pub const CHECKPOINT_BYTES: u64 = 16 << 20;
/// A checkpoint is not due before so many times its own bytes were committed.
pub const CHECKPOINT_RATIO: u64 = 4;
/// Files removed by one call.
pub const REMOVALS_MAX: usize = 16;

/// How many checkpoints are kept: one to use and one in case it is damaged.
const CHECKPOINTS_KEPT: usize = 2;

/// What is due, and what is kept.
#[derive(Debug)]
pub struct Upkeep {
    dir: PathBuf,
    epoch: Epoch,
    interval: u64,
    /// Bytes committed since the last checkpoint.
    pending: u64,
    /// Bytes at which the next checkpoint is due.
    due_at: u64,
    /// Number of the next checkpoint.
    next: u32,
    /// The newest checkpoints with their positions, oldest first.
    kept: Vec<(CheckpointId, Position)>,
    /// Whether the folder may have files to be removed that are not known here.
    strays: Strays,
    /// Whether the last checkpoint found space.
    space: Space,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    Enough,
    Short,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strays {
    Possible,
    Gone,
}

impl Upkeep {
    /// Begins with the checkpoint that recovery used, and the bytes that it read behind that.
    #[must_use]
    pub fn new(
        dir: &Path,
        epoch: Epoch,
        segment_bytes: u64,
        checkpoint: Option<(CheckpointId, Position)>,
        tail_bytes: u64,
    ) -> Self {
        let interval = segment_bytes.min(CHECKPOINT_BYTES);
        Self {
            dir: dir.to_owned(),
            epoch,
            interval,
            pending: tail_bytes,
            due_at: interval,
            next: 1,
            kept: checkpoint.into_iter().collect(),
            strays: Strays::Possible,
            space: Space::Enough,
        }
    }

    /// Counts what was committed.
    pub const fn committed(&mut self, bytes: u64) {
        self.pending += bytes;
    }

    /// Whether something can be done now.
    #[must_use]
    pub fn is_due(&self, shared: &Shared) -> bool {
        let dead = shared.places().dead().next();
        self.strays == Strays::Possible
            || self.is_checkpoint_due(shared)
            || dead.is_some_and(|dead| self.is_removable(dead))
    }

    /// Whether a checkpoint is to be written: enough was committed, or a segment could go once two checkpoints lie
    /// behind it.
    #[must_use]
    pub fn is_checkpoint_due(&self, shared: &Shared) -> bool {
        let dead = shared.places().dead().next();
        self.pending >= self.due_at
            || (self.space == Space::Enough && dead.is_some_and(|dead| !self.is_removable(dead)))
    }

    fn is_removable(&self, segment: SegmentId) -> bool {
        self.kept.len() == CHECKPOINTS_KEPT && segment < self.kept[0].1.segment
    }

    fn due_after(&self, checkpoint_bytes: u64) -> u64 {
        self.interval.max(CHECKPOINT_RATIO * checkpoint_bytes)
    }

    /// Writes a checkpoint where one is due. A full disk only puts it off.
    ///
    /// # Errors
    /// Where it cannot be written for another reason.
    pub fn checkpoint(
        &mut self,
        shared: &Shared,
        journal: &Journal,
        snapshot: &mut dyn FnMut() -> Snapshot,
    ) -> Result<(), StoreError> {
        tracing::debug!(number = self.next, "checkpoint begins");
        let written = self.write_checkpoint(shared, journal, snapshot);
        tracing::debug!(number = self.next, "checkpoint ends");
        written
    }

    fn write_checkpoint(
        &mut self,
        shared: &Shared,
        journal: &Journal,
        snapshot: &mut dyn FnMut() -> Snapshot,
    ) -> Result<(), StoreError> {
        let (position, chain) = journal.end();
        let id = CheckpointId { epoch: self.epoch, number: self.next };
        let body = CheckpointBody { position, chain, places: shared.places().keep(), snapshot: snapshot() };
        match body.write(&shared.journal, id) {
            Ok(bytes) => {
                self.next += 1;
                self.pending = 0;
                self.due_at = self.due_after(bytes);
                self.kept.push((id, position));
                let surplus = self.kept.len().saturating_sub(CHECKPOINTS_KEPT);
                self.kept.drain(..surplus);
                (self.strays, self.space) = (Strays::Possible, Space::Enough);
                Ok(())
            }
            Err(StoreError::Full(bytes)) => {
                tracing::warn!("no space for a checkpoint of {bytes} bytes, tried again later");
                (self.due_at, self.space) = (self.pending + self.interval, Space::Short);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Removes what nobody needs, a few files at a time.
    ///
    /// # Errors
    /// Where the fence is broken, or a file cannot be removed.
    pub fn remove(&mut self, shared: &Shared, fence: FenceCheck<'_>) -> Result<(), StoreError> {
        let dead: Vec<SegmentId> = {
            let places = shared.places();
            places.dead().take_while(|&segment| self.is_removable(segment)).take(REMOVALS_MAX).collect()
        };
        let strays = if self.strays == Strays::Possible { self.strays(shared)? } else { Vec::new() };
        if dead.is_empty() && strays.is_empty() {
            self.strays = Strays::Gone;
            return Ok(());
        }
        fence()?;
        for path in strays.iter().take(REMOVALS_MAX) {
            remove(path)?;
        }
        if strays.len() <= REMOVALS_MAX {
            self.strays = Strays::Gone;
        }
        for &segment in &dead {
            remove(&segment.path(&shared.journal))?;
            shared.forget(segment);
        }
        sync_dir(&shared.journal)
    }

    /// Files of the folder, and manifests, that do not count: checkpoints before those that are kept, and what
    /// lower epochs left that is not accepted.
    fn strays(&self, shared: &Shared) -> Result<Vec<PathBuf>, StoreError> {
        let folder = Folder::list(&shared.journal)?;
        let mut strays = Vec::new();
        if self.kept.len() == CHECKPOINTS_KEPT {
            let kept: BTreeSet<CheckpointId> = self.kept.iter().map(|(id, _)| *id).collect();
            let others = folder.checkpoints.iter().filter(|id| !kept.contains(id) && id.epoch <= self.epoch);
            strays.extend(others.map(|id| id.path(&shared.journal)));
        }
        let places = shared.places();
        let lower = folder.segments.iter().filter(|id| id.epoch < self.epoch && !places.contains(**id));
        strays.extend(lower.map(|id| id.path(&shared.journal)));
        let unfinished = folder.unfinished.into_iter().filter(|(epoch, _)| *epoch < self.epoch);
        strays.extend(unfinished.map(|(_, path)| path));
        strays.extend(self.older_manifests()?);
        Ok(strays)
    }

    fn older_manifests(&self) -> Result<Vec<PathBuf>, StoreError> {
        let folder = self.dir.join("manifest");
        let mut older = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
            let path = entry.map_err(io_error("list", &folder))?.path();
            let epoch = path.file_stem().and_then(|stem| stem.to_str()).filter(|stem| stem.len() == 20);
            if epoch.and_then(|epoch| epoch.parse().ok()).is_some_and(|epoch: u64| epoch < self.epoch.0) {
                older.push(path);
            }
        }
        Ok(older)
    }
}
