//! Checkpoints when they are due, packs, and the removal of files that nobody needs any more: what is to be done next.
//!
//! A segment goes when none of its messages is needed there any more and it lies before the older of the two
//! checkpoints that are kept, so that recovery from either does not read it. A pack goes at once: it is never
//! replayed, and whichever checkpoint a recovery begins with, by its end it knows that the pack holds nothing. Files
//! that an image reads wait for it. Files of lower epochs go when the own manifest, which is durable, does not accept
//! them. Every removal comes after a fence check that began after what made it right.
//!
//! The work itself is done by the [`Worker`], one job at a time. Here is only what must be decided between two commits:
//! a checkpoint is of the state at that moment, and counts once it is known to be durable.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::Shared;
use super::checkpoint::{CheckpointBody, CheckpointId};
use super::compaction::Compaction;
use super::file_id::FileId;
use super::journal::Journal;
use super::removal::{REMOVALS_MAX, Removal, Rest, Strays};
use super::segment::Position;
use super::worker::{Done, Job, Progress, Worker};
use crate::disk;
use crate::model::id::Epoch;
use crate::model::snapshot::Snapshot;
use crate::store::{FenceCheck, OpenOptions, StoreError};

/// Bytes of commits after which a checkpoint is due, where segments are not smaller.
pub const CHECKPOINT_BYTES: u64 = 16 << 20;
/// A checkpoint is not due before so many times its own bytes were committed.
pub const CHECKPOINT_RATIO: u64 = 4;
/// How long a segment that nobody needs may wait for the checkpoints that let it go, where little is committed.
pub const REMOVAL_WAIT: Duration = Duration::from_secs(10);

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
    /// How many of these the checkpoint that is being written has.
    writing: u64,
    /// Bytes at which the next checkpoint is due.
    due_at: u64,
    /// Bytes at which it is due already where it helps to remove a segment.
    due_for_removal_at: u64,
    /// What the last checkpoint takes of the disk.
    checkpoint_bytes: u64,
    /// When the last checkpoint was written.
    written_at: Instant,
    /// Whether space is short in general.
    pressure: Pressure,
    /// Number of the next checkpoint.
    next: u32,
    /// The newest checkpoints with their positions, oldest first.
    kept: Vec<(CheckpointId, Position)>,
    /// Whether the folder may have files to be removed that are not known here.
    strays: Rest,
    /// When the last checkpoint was tried, where it found no space.
    refused_at: Option<Instant>,
    compaction: Compaction,
}

/// Whether there is space for what is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// There is.
    Low,
    /// There is none: publishing waits for segments to be removed.
    High,
}

impl Upkeep {
    /// Begins with the checkpoint that recovery used, the bytes of that, and those that it read behind it.
    #[must_use]
    pub fn new(
        options: &OpenOptions,
        checkpoint: Option<(CheckpointId, Position)>,
        checkpoint_bytes: u64,
        tail_bytes: u64,
    ) -> Self {
        let &OpenOptions { epoch, segment_bytes, .. } = options;
        let interval = segment_bytes.min(CHECKPOINT_BYTES);
        Self {
            dir: options.dir.clone(),
            epoch,
            interval,
            pending: tail_bytes,
            writing: 0,
            due_at: interval,
            due_for_removal_at: 0,
            checkpoint_bytes,
            written_at: disk::world::now(&options.dir),
            pressure: Pressure::Low,
            next: 1,
            kept: checkpoint.into_iter().collect(),
            strays: Rest::Possible,
            refused_at: None,
            compaction: Compaction::new(epoch, segment_bytes),
        }
    }

    /// Counts what was committed.
    pub const fn committed(&mut self, bytes: u64) {
        self.pending += bytes;
    }

    /// Whether something can be done now, or what was done is to be taken note of.
    #[must_use]
    pub fn is_due(&self, worker: &Worker, shared: &Shared) -> bool {
        match worker.progress() {
            Progress::Over => true,
            Progress::UnderWay => false,
            Progress::Idle => {
                self.is_checkpoint_due(shared)
                    || self.is_removal_due(shared)
                    || self.compaction.is_due(shared, self.pressure)
            }
        }
    }

    /// Bytes that checkpoints may need though the disk is full: a segment goes only once two more are written.
    #[must_use]
    pub const fn reserve_bytes(&self) -> u64 {
        CHECKPOINTS_KEPT as u64 * self.checkpoint_bytes
    }

    /// From now on removes segments as soon as it can, or only where it costs little.
    pub const fn be_under(&mut self, pressure: Pressure) {
        self.pressure = pressure;
    }

    /// Whether a checkpoint is to be written: enough was committed, or a segment could go once two checkpoints lie
    /// behind it, and that one costs little for what was committed, or has waited, or the space is needed. One that found
    /// no space is tried again after a while though nothing is committed: what it lets go may be all that makes space.
    fn is_checkpoint_due(&self, shared: &Shared) -> bool {
        let may_fit = self.refused_at.is_none_or(|refused_at| self.has_passed(refused_at));
        self.pending >= self.due_at || (may_fit && self.is_removal_waiting(shared))
    }

    fn is_removal_waiting(&self, shared: &Shared) -> bool {
        shared.places().files().dead().next().is_some_and(|dead| !self.is_unneeded(dead))
            && (self.pending >= self.due_for_removal_at
                || self.pressure == Pressure::High
                || self.has_passed(self.written_at))
    }

    /// Whether a removal has waited long enough since then.
    fn has_passed(&self, since: Instant) -> bool {
        disk::world::now(&self.dir).saturating_duration_since(since) >= REMOVAL_WAIT
    }

    fn is_removal_due(&self, shared: &Shared) -> bool {
        self.strays == Rest::Possible || shared.places().files().dead().any(|dead| self.is_unneeded(dead))
    }

    fn is_unneeded(&self, file: FileId) -> bool {
        match file.segment() {
            // Recovery from the older of the checkpoints reads it.
            Some(segment) => self.kept.len() == CHECKPOINTS_KEPT && segment < self.kept[0].1.segment,
            // It is never replayed.
            None => true,
        }
    }

    /// Takes note of what the thread has done, and gives it what is due. The fence was checked just now.
    ///
    /// # Errors
    /// Where the fence is broken, or something has failed.
    pub fn step(
        &mut self,
        worker: &Worker,
        shared: &Shared,
        journal: &mut Journal,
        snapshot: &mut dyn FnMut() -> Snapshot,
        fence: FenceCheck<'_>,
    ) -> Result<(), StoreError> {
        if let Some(done) = worker.take()? {
            self.note(done, shared, journal)?;
        }
        if worker.progress() != Progress::Idle {
            return Ok(());
        }
        if self.is_checkpoint_due(shared) {
            worker.begin(self.checkpoint(shared, journal, snapshot))
        } else if self.is_removal_due(shared) {
            // What makes it right may have been noted only after the last check. Step `CheckRemoval` of `tests/ha_model`.
            fence()?;
            worker.begin(self.removal(shared))
        } else if self.compaction.is_due(shared, self.pressure) {
            let packing = self.compaction.choose(shared)?;
            packing.map_or(Ok(()), |packing| worker.begin(Job::Pack(packing)))
        } else {
            Ok(())
        }
    }

    /// Takes note of what the thread has done, and removes what may go, while a commit is held for which there is no
    /// space. The state is ahead of the journal then, so nothing of it is written.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    pub fn make_space(
        &mut self,
        worker: &Worker,
        shared: &Shared,
        journal: &mut Journal,
        fence: FenceCheck<'_>,
    ) -> Result<(), StoreError> {
        if let Some(done) = worker.take()? {
            self.note(done, shared, journal)?;
        }
        if worker.progress() == Progress::Idle && self.is_removal_due(shared) {
            fence()?;
            worker.begin(self.removal(shared))?;
        }
        Ok(())
    }

    /// Ends the thread, writes a last checkpoint, and removes what can go then.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    pub fn close(
        mut self,
        worker: Worker,
        shared: &Arc<Shared>,
        journal: &mut Journal,
        snapshot: &mut dyn FnMut() -> Snapshot,
        fence: FenceCheck<'_>,
    ) -> Result<(), StoreError> {
        if let Some(done) = worker.end()? {
            self.note(done, shared, journal)?;
        }
        let go_on = AtomicBool::new(false);
        fence()?;
        let done = self.checkpoint(shared, journal, snapshot).run(shared, &go_on)?;
        self.note(done, shared, journal)?;
        fence()?;
        self.removal(shared).run(shared, &go_on).map(|_| ())
    }

    fn note(&mut self, done: Done, shared: &Shared, journal: &mut Journal) -> Result<(), StoreError> {
        match done {
            Done::Checkpoint(id, position, bytes) => {
                self.next += 1;
                self.pending -= self.writing;
                self.due_at = self.interval.max(CHECKPOINT_RATIO * bytes);
                self.due_for_removal_at = CHECKPOINT_RATIO * bytes;
                self.checkpoint_bytes = bytes;
                self.written_at = disk::world::now(&self.dir);
                self.kept.push((id, position));
                let surplus = self.kept.len().saturating_sub(CHECKPOINTS_KEPT);
                self.kept.drain(..surplus);
                (self.strays, self.refused_at) = (Rest::Possible, None);
            }
            Done::NoSpaceForCheckpoint(bytes) => {
                tracing::warn!("no space for a checkpoint of {bytes} bytes, tried again later");
                self.due_at = self.pending + self.interval;
                self.refused_at = Some(disk::world::now(&self.dir));
            }
            Done::Packing(pack, outcome) => {
                self.pending += self.compaction.note(pack, outcome, shared, journal)?;
            }
            Done::Removed(removed) => self.strays = removed.rest,
        }
        Ok(())
    }

    /// The state now, to be written.
    fn checkpoint(
        &mut self,
        shared: &Shared,
        journal: &Journal,
        snapshot: &mut dyn FnMut() -> Snapshot,
    ) -> Job {
        let (position, chain) = journal.end();
        let id = CheckpointId { epoch: self.epoch, number: self.next };
        self.writing = self.pending;
        let body = CheckpointBody { position, chain, places: shared.places().keep(), snapshot: snapshot() };
        Job::Checkpoint(id, Box::new(body))
    }

    /// The files that may go now. They are forgotten before they are gone: nobody looks for them.
    fn removal(&self, shared: &Shared) -> Job {
        let dead: Vec<FileId> = {
            let places = shared.places();
            places.files().dead().filter(|&file| self.is_unneeded(file)).take(REMOVALS_MAX).collect()
        };
        dead.iter().for_each(|&file| shared.forget(file));
        let is_kept = self.kept.len() == CHECKPOINTS_KEPT;
        let kept: BTreeSet<CheckpointId> = self.kept.iter().filter(|_| is_kept).map(|(id, _)| *id).collect();
        let strays = Strays { dir: self.dir.clone(), epoch: self.epoch, kept };
        Job::Remove(Removal { dead, strays: (self.strays == Rest::Possible).then_some(strays) })
    }
}

#[cfg(test)]
mod tests;
