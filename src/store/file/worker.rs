//! The thread that does the slow work of upkeep: what is encoded, written, synced and unlinked beside the commits.
//!
//! One job at a time. The store's own thread decides what is to be done, after a check of the fence, and takes note of
//! what was done at a later step of upkeep; nothing counts before that. Nobody waits for the thread but whoever
//! [ends](Worker::end) it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::checkpoint::{CheckpointBody, CheckpointId};
use super::file_id::FileId;
use super::packing::{Outcome, Packing};
use super::removal::{Removal, Removed};
use super::segment::Position;
use super::{Shared, io_error};
use crate::disk::helper::{Helper, Stage};
use crate::store::StoreError;

/// Something to be done.
#[derive(Debug)]
pub enum Job {
    /// Write a checkpoint.
    Checkpoint(CheckpointId, Box<CheckpointBody>),
    /// Copy messages into a pack.
    Pack(Packing),
    /// Remove files.
    Remove(Removal),
}

/// What was done.
#[derive(Debug)]
pub enum Done {
    /// A checkpoint of so many bytes is durable.
    Checkpoint(CheckpointId, Position, u64),
    /// There was no space for a checkpoint of so many bytes.
    NoSpaceForCheckpoint(u64),
    /// What came of the pack.
    Packing(FileId, Outcome),
    /// Files are gone.
    Removed(Removed),
}

impl Job {
    /// Does it. Copying ends early where `stop` says so.
    ///
    /// # Errors
    /// Any error is final.
    pub fn run(self, shared: &Arc<Shared>, stop: &AtomicBool) -> Result<Done, StoreError> {
        match self {
            Self::Checkpoint(id, body) => {
                tracing::debug!(number = id.number, "checkpoint begins");
                let written = body.write(&shared.journal, id);
                tracing::debug!(number = id.number, "checkpoint ends");
                match written {
                    Ok(bytes) => Ok(Done::Checkpoint(id, body.position, bytes)),
                    Err(StoreError::Full(bytes)) => Ok(Done::NoSpaceForCheckpoint(bytes)),
                    Err(error) => Err(error),
                }
            }
            Self::Pack(packing) => Ok(Done::Packing(packing.pack, packing.run(shared, stop)?)),
            Self::Remove(removal) => removal.run(shared).map(Done::Removed),
        }
    }
}

/// How far the thread is with the job that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has none.
    Idle,
    /// It works on it.
    UnderWay,
    /// It has done it, or has failed, and that waits to be taken.
    Over,
}

/// The thread, and what goes to it and comes back.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    thread: Helper<Job, Result<Done, StoreError>>,
    stop: StopWhenDropped,
}

/// Lets copying end early once nobody waits for what comes of it.
#[derive(Debug)]
struct StopWhenDropped(Arc<AtomicBool>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Worker {
    /// Starts the thread. Once this is dropped it ends after the job that it is at; copying ends early.
    ///
    /// # Errors
    /// Where there can be no further thread.
    pub fn start(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (its_shared, its_stop) = (Arc::clone(shared), Arc::clone(&stop));
        let work = move |job: Job| job.run(&its_shared, &its_stop);
        let thread = Helper::start(&shared.journal, "upkeep", work)
            .map_err(io_error("start a thread for", &shared.journal))?;
        Ok(Self { shared: Arc::clone(shared), thread, stop: StopWhenDropped(stop) })
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match self.thread.stage() {
            Stage::Idle => Progress::Idle,
            Stage::UnderWay => Progress::UnderWay,
            Stage::Answered | Stage::Gone => Progress::Over,
        }
    }

    /// Gives it something to do. It is idle.
    ///
    /// # Errors
    /// Where the thread is gone.
    pub fn begin(&self, job: Job) -> Result<(), StoreError> {
        self.thread.give(job).map_err(|_| self.is_gone())
    }

    /// What came of the job that it was given, if it is done with it.
    ///
    /// # Errors
    /// That of the job.
    pub fn take(&self) -> Result<Option<Done>, StoreError> {
        match self.progress() {
            Progress::Idle | Progress::UnderWay => Ok(None),
            Progress::Over => self.thread.try_take().unwrap_or_else(|| Err(self.is_gone())).map(Some),
        }
    }

    /// What has gone wrong, if something has; told once.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        match self.thread.stage() {
            Stage::Answered => self.thread.take_if(Result::is_err).and_then(Result::err),
            Stage::Gone => Some(self.is_gone()),
            Stage::Idle | Stage::UnderWay => None,
        }
    }

    /// Waits until the job that it is at is done and the thread has ended; copying ends early. Answers what came of it.
    ///
    /// # Errors
    /// That of the job.
    pub fn end(self) -> Result<Option<Done>, StoreError> {
        let Self { thread, stop, .. } = self;
        drop(stop);
        thread.end().pop_front().transpose()
    }

    fn is_gone(&self) -> StoreError {
        io_error("go on with", &self.shared.journal)(std::io::Error::other(
            "the thread of the upkeep is gone",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FileStore, first_options, open_file};
    use super::*;
    use crate::model::id::TopicId;
    use crate::model::name::Name;
    use crate::model::record::Record;
    use crate::model::settings::TopicSettings;
    use crate::model::snapshot::Snapshot;
    use crate::model::topic_kind::TopicKind;
    use crate::store::Store;

    fn created(topics: std::ops::Range<u32>) -> Vec<Record> {
        let created = topics.map(|topic| Record::TopicCreated {
            topic: TopicId(topic),
            name: Name::new(&format!("a-topic-with-a-long-name-{topic}")).unwrap(),
            kind: TopicKind::Named,
            settings: TopicSettings::default(),
        });
        created.collect()
    }

    /// A store of which a checkpoint is being written, or was just now.
    fn store() -> (tempfile::TempDir, FileStore, Snapshot) {
        let dir = tempfile::tempdir().unwrap();
        let options = first_options(dir.path(), 64 << 10);
        let (mut store, mut snapshot) = open_file(&options).unwrap();
        let records = created(0..5000);
        store.commit(&records).unwrap();
        records.iter().for_each(|record| snapshot.apply(record).unwrap());
        (dir, store, snapshot)
    }

    #[test]
    fn closing_waits_for_the_checkpoint_that_is_being_written() {
        let (dir, mut store, snapshot) = store();
        store.maintain(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
        Box::new(store).close(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
        let names = || std::fs::read_dir(dir.path().join("journal")).unwrap();
        let names: Vec<String> =
            names().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("checkpoint-")).count(), 2, "{names:?}");
        assert!(names.iter().all(|name| !name.ends_with(".new")), "{names:?}");
    }

    /// What fails beside the commits is told by the next of them, and ends them.
    #[test]
    fn an_error_in_the_background_is_final() {
        let (dir, mut store, snapshot) = store();
        std::fs::rename(dir.path().join("journal"), dir.path().join("elsewhere")).unwrap();
        store.maintain(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
        while store.maintenance_under_way() {
            std::thread::yield_now();
        }
        assert!(store.maintenance_due());
        let told = store.commit(&created(5000..5001));
        assert!(matches!(told, Err(StoreError::Io { action: "write to", .. })), "{told:?}");
        assert!(store.commit(&[]).is_err());
        assert!(store.maintain(&mut || snapshot.clone(), &mut || Ok(())).is_err());
    }
}
