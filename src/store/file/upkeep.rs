//! Checkpoints when they are due, and the removal of files that nobody needs any more.
//!
//! A segment goes when none of its messages is needed there any more and it lies before the older of the two
//! checkpoints that are kept, so that recovery from either does not read it. A pack goes at once: it is never replayed,
//! and whichever checkpoint a recovery begins with, by its end it knows that the pack holds nothing. Files of lower epochs go when the own manifest, which is
//! durable, does not accept them. Every removal comes after a fence check that began after what made it right.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::checkpoint::{CheckpointBody, CheckpointId};
use super::file_id::FileId;
use super::folder::Folder;
use super::journal::Journal;
use super::segment::Position;
use super::{Shared, remove};
use crate::model::id::Epoch;
use crate::model::snapshot::Snapshot;
use crate::store::manifest::{Manifest, sync_dir};
use crate::store::{FenceCheck, StoreError};

/// Bytes of commits after which a checkpoint is due, where segments are not smaller.
pub const CHECKPOINT_BYTES: u64 = 16 << 20;
/// A checkpoint is not due before so many times its own bytes were committed.
pub const CHECKPOINT_RATIO: u64 = 4;
/// How long a segment that nobody needs may wait for the checkpoints that let it go, where little is committed.
pub const REMOVAL_WAIT: Duration = Duration::from_secs(10);
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
    /// Bytes at which it is due already where it helps to remove a segment.
    due_for_removal_at: u64,
    /// When the last checkpoint was written.
    written_at: Instant,
    /// Whether space is short in general.
    pressure: Pressure,
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

/// Whether there is space for what is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// There is.
    Low,
    /// There is none: publishing waits for segments to be removed.
    High,
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
            due_for_removal_at: 0,
            written_at: Instant::now(),
            pressure: Pressure::Low,
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
        self.strays == Strays::Possible
            || self.is_checkpoint_due(shared)
            || shared.places().files().dead().any(|dead| self.is_removable(shared, dead))
    }

    /// From now on removes segments as soon as it can, or only where it costs little.
    pub const fn be_under(&mut self, pressure: Pressure) {
        self.pressure = pressure;
    }

    /// Whether a checkpoint is to be written: enough was committed, or a segment could go once two checkpoints lie
    /// behind it, and that one costs little for what was committed, or has waited, or the space is needed.
    #[must_use]
    pub fn is_checkpoint_due(&self, shared: &Shared) -> bool {
        self.pending >= self.due_at || (self.space == Space::Enough && self.is_removal_waiting(shared))
    }

    fn is_removal_waiting(&self, shared: &Shared) -> bool {
        let dead = shared.places().files().dead().next();
        dead.is_some_and(|dead| !self.is_unneeded(dead))
            && (self.pending >= self.due_for_removal_at
                || self.pressure == Pressure::High
                || self.written_at.elapsed() >= REMOVAL_WAIT)
    }

    fn is_removable(&self, shared: &Shared, file: FileId) -> bool {
        self.is_unneeded(file) && !shared.pins.hold(file)
    }

    fn is_unneeded(&self, file: FileId) -> bool {
        match file.segment() {
            // Recovery from the older of the checkpoints reads it.
            Some(segment) => self.kept.len() == CHECKPOINTS_KEPT && segment < self.kept[0].1.segment,
            // It is never replayed.
            None => true,
        }
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
                self.due_for_removal_at = CHECKPOINT_RATIO * bytes;
                self.written_at = Instant::now();
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
        let dead: Vec<FileId> = {
            let places = shared.places();
            places.files().dead().filter(|&file| self.is_removable(shared, file)).take(REMOVALS_MAX).collect()
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
        for &file in &dead {
            remove(&file.path(&shared.journal))?;
            shared.forget(file);
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
        let files = folder.segments.iter().map(|&segment| segment.into()).chain(folder.packs.iter().copied());
        let lower = files.filter(|id: &FileId| id.epoch < self.epoch && places.files().get(*id).is_none());
        strays.extend(lower.map(|id| id.path(&shared.journal)));
        let unfinished = folder.unfinished.into_iter().filter(|(epoch, _)| *epoch < self.epoch);
        strays.extend(unfinished.map(|(_, path)| path));
        strays.extend(Manifest::older(&self.dir, self.epoch)?);
        Ok(strays)
    }
}

#[cfg(test)]
mod tests {
    use super::super::open_file;
    use super::super::segment::SegmentId;
    use super::*;
    use crate::model::id::{Offset, TopicId};
    use crate::model::message::{Message, MessageBlock};
    use crate::model::name::Name;
    use crate::model::record::{Published, Record};
    use crate::model::settings::TopicSettings;
    use crate::model::time::Timestamp;
    use crate::store::file::FileStore;
    use crate::store::{Fenced, Mode, OpenOptions, Predecessors, Store};

    const TOPIC: TopicId = TopicId(0);

    /// A store with so many topics that a checkpoint is larger than a segment, and what it has committed.
    struct Scene {
        dir: tempfile::TempDir,
        store: FileStore,
        snapshot: Snapshot,
        end: u64,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = OpenOptions {
                dir: dir.path().to_owned(),
                mode: Mode::File,
                epoch: Epoch(1),
                predecessors: Predecessors::default(),
                segment_bytes: 64 << 10,
            };
            let (store, snapshot) = open_file(&options).unwrap();
            let mut scene = Self { dir, store, snapshot, end: 0 };
            let created: Vec<Record> = (0..4_000)
                .map(|topic| Record::TopicCreated {
                    topic: TopicId(topic),
                    name: Name::new(&format!("a-topic-with-a-long-name-{topic}")).unwrap(),
                    settings: TopicSettings::default(),
                })
                .collect();
            scene.commit(&created);
            scene
        }

        fn commit(&mut self, records: &[Record]) {
            self.store.commit(records).unwrap();
            records.iter().for_each(|record| self.snapshot.apply(record).unwrap());
        }

        /// Publishes and trims a quarter of a segment.
        fn publish(&mut self) {
            let block = MessageBlock::encode([&Message::new(vec![7; 16 << 10])]);
            let targets = vec![(TOPIC, Offset(self.end))];
            self.end += 1;
            let published = Published { targets, origin: None, at: Timestamp(1), block };
            let trimmed = Record::Trimmed { topic: TOPIC, start: Offset(self.end) };
            self.commit(&[Record::Published(published), trimmed]);
        }

        fn maintain(&mut self) {
            while self.store.maintenance_due() {
                self.store.maintain(&mut || self.snapshot.clone(), &mut || Ok(())).unwrap();
            }
        }

        fn checkpoint_count(&self) -> u64 {
            u64::from(self.store.upkeep.next - 1)
        }

        /// Names in the journal, but of what is still being made.
        fn finished_files(&self) -> BTreeSet<PathBuf> {
            let names = std::fs::read_dir(self.dir.path().join("journal")).unwrap();
            let paths = names.map(|entry| entry.unwrap().path());
            paths.filter(|path| path.extension().is_none_or(|extension| extension != "new")).collect()
        }

        fn first_is_there(&self) -> bool {
            SegmentId { epoch: Epoch(1), number: 1 }.path(&self.dir.path().join("journal")).exists()
        }
    }

    /// Each segment that died had two checkpoints written at once, however large they were for what it had held.
    #[test]
    fn removing_segments_does_not_cost_more_than_was_committed() {
        let mut scene = Scene::new();
        let begun = scene.store.journal.end().0;
        for _ in 0..200 {
            scene.publish();
            scene.maintain();
        }
        assert!(begun.segment < scene.store.journal.segment());
        let checkpoint_bytes = scene.store.upkeep.due_for_removal_at / CHECKPOINT_RATIO;
        assert!(checkpoint_bytes > 64 << 10, "{checkpoint_bytes}");
        let allowed = 200 * (17 << 10) / (CHECKPOINT_RATIO * checkpoint_bytes);
        assert!(scene.checkpoint_count() <= allowed + 2, "{} of {allowed}", scene.checkpoint_count());
        assert!(!scene.first_is_there());
    }

    /// The fence held when a checkpoint began, and no longer when it was written: what could go then is what the next
    /// master reads.
    #[test]
    fn a_mastership_that_is_lost_during_a_checkpoint_removes_nothing() {
        let mut scene = Scene::new();
        for _ in 0..200 {
            scene.publish();
            while scene.store.maintenance_due() {
                let before = scene.finished_files();
                let mut answers = [Ok(())].into_iter();
                let mut fence = || answers.next().unwrap_or(Err(Fenced::Superseded(Epoch(2))));
                let done = scene.store.maintain(&mut || scene.snapshot.clone(), &mut fence);
                let after = scene.finished_files();
                assert!(before.is_subset(&after), "removed unasked: {:?}", before.difference(&after));
                if let Err(error) = done {
                    assert!(matches!(error, StoreError::Fenced(_)), "{error}");
                    return;
                }
            }
        }
        panic!("nothing was to be removed");
    }

    #[test]
    fn segments_go_though_little_is_committed_once_they_have_waited_or_the_space_is_needed() {
        for waits in [true, false] {
            let mut scene = Scene::new();
            scene.maintain();
            for _ in 0..8 {
                scene.publish();
            }
            scene.maintain();
            assert!(scene.first_is_there());
            for _ in 0..2 {
                if waits {
                    scene.store.upkeep.written_at -= REMOVAL_WAIT;
                } else {
                    scene.store.upkeep.be_under(Pressure::High);
                }
                scene.maintain();
            }
            assert!(!scene.first_is_there());
            assert!(!scene.store.maintenance_due());
        }
    }
}
