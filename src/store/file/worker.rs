//! The thread that does the slow work of upkeep: what is encoded, written, synced and unlinked beside the commits.
//!
//! One job at a time. The store's own thread decides what is to be done, after a check of the fence, and takes note of
//! what was done at a later step of upkeep; nothing counts before that. Nobody waits for the thread but whoever
//! [ends](Worker::end) it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::checkpoint::{CheckpointBody, CheckpointId};
use super::file_id::FileId;
use super::packing::{Outcome, Packing};
use super::removal::{Removal, Removed};
use super::segment::Position;
use super::{Shared, io_error};
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
    /// It has done it, and the result waits.
    Done,
    /// It has failed, and the error waits.
    Failed,
}

/// What the two threads tell each other beside the channels.
#[derive(Debug, Default)]
struct Signals {
    progress: AtomicU8,
    stop: AtomicBool,
}

impl Signals {
    fn set(&self, progress: Progress) {
        self.progress.store(progress as u8, Ordering::Release);
    }

    fn progress(&self) -> Progress {
        match self.progress.load(Ordering::Acquire) {
            0 => Progress::Idle,
            1 => Progress::UnderWay,
            2 => Progress::Done,
            _ => Progress::Failed,
        }
    }
}

/// The thread, and what goes to it and comes back.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    signals: Arc<Signals>,
    jobs: SyncSender<Job>,
    answers: Receiver<Result<Done, StoreError>>,
    thread: JoinHandle<()>,
    stop: StopWhenDropped,
}

/// Lets copying end early once nobody waits for what comes of it.
#[derive(Debug)]
struct StopWhenDropped(Arc<Signals>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Worker {
    /// Starts the thread. Once this is dropped it ends after the job that it is at; copying ends early.
    ///
    /// # Errors
    /// Where there can be no further thread.
    pub fn start(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let (jobs, given) = sync_channel::<Job>(1);
        let (answer, answers) = sync_channel(1);
        let signals = Arc::new(Signals::default());
        let thread = std::thread::Builder::new().name("upkeep".into());
        let (its_shared, its_signals) = (Arc::clone(shared), Arc::clone(&signals));
        let work = move || {
            while let Ok(job) = given.recv() {
                let done = job.run(&its_shared, &its_signals.stop);
                let progress = if done.is_ok() { Progress::Done } else { Progress::Failed };
                if answer.send(done).is_err() {
                    break;
                }
                its_signals.set(progress);
            }
        };
        let thread = thread.spawn(work).map_err(io_error("start a thread for", &shared.journal))?;
        let stop = StopWhenDropped(Arc::clone(&signals));
        Ok(Self { shared: Arc::clone(shared), signals, jobs, answers, thread, stop })
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match self.signals.progress() {
            // It has panicked.
            Progress::UnderWay if self.thread.is_finished() => Progress::Failed,
            progress => progress,
        }
    }

    /// Gives it something to do. It is idle.
    ///
    /// # Errors
    /// Where the thread is gone.
    pub fn begin(&self, job: Job) -> Result<(), StoreError> {
        self.signals.set(Progress::UnderWay);
        self.jobs.send(job).map_err(|_| self.is_gone())
    }

    /// What came of the job that it was given, if it is done with it.
    ///
    /// # Errors
    /// That of the job.
    pub fn take(&self) -> Result<Option<Done>, StoreError> {
        match self.progress() {
            Progress::Idle | Progress::UnderWay => Ok(None),
            Progress::Done | Progress::Failed => {
                let done = self.answers.recv().unwrap_or_else(|_| Err(self.is_gone()))?;
                self.signals.set(Progress::Idle);
                Ok(Some(done))
            }
        }
    }

    /// Waits until the job that it is at is done and the thread has ended; copying ends early. Answers what came of it.
    ///
    /// # Errors
    /// That of the job.
    pub fn end(self) -> Result<Option<Done>, StoreError> {
        let Self { jobs, answers, thread, stop, .. } = self;
        drop((stop, jobs));
        let done = answers.recv().ok();
        // Where it has panicked there is no answer; nothing of it is under way any more.
        let _ = thread.join();
        done.transpose()
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
