//! The engine: the one owner of broker and store.
//!
//! One thread takes what connections want, in batches, and goes round:
//!
//! 1. take everything that has arrived, up to a commit's worth, and let the broker work on it;
//! 2. commit the records: one write, one sync;
//! 3. check the fence, with a read that starts after that sync;
//! 4. let the effects out, straight into the sockets where they take them; start the reads;
//! 5. one bounded step of the store's upkeep, where there is something to do.
//!
//! While it syncs, the next batch gathers in the inbox: that is the group commit. No byte that depends on a record
//! leaves before step 4. The thread that syncs also checks and sends, because each change of thread would cost a
//! tenth of what a sync takes.
//!
//! A publish so large that its commit would take long is written to disk by the store ahead of it, beside other commits.
//! Its session waits for that, and nobody else does.
//!
//! A commit that finds no space on the disk is held: it is tried again and again, and everything behind it waits, until
//! there is space, the fence does not hold, or a drain has had its time. Only upkeep that makes space goes on.
//!
//! Any other error from store or fence ends the engine in the middle of whatever it does: nothing is sent, flushed or
//! closed, and the process is expected to end at once.

mod backup;
mod clock;
mod cycle;
mod inbox;
mod memory;
mod outbox;
mod querying;
mod reading;
mod sending;
mod space_wait;
mod staging;
#[cfg(test)]
mod tests;
mod turns;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use backup::{Backup, none_under_way};
pub use cycle::Course;
pub use inbox::{Budget, Turn};
pub use memory::Memory;
pub use outbox::{Outbox, Sent};
pub use turns::Turns;

use crate::broker::{AutoCreate, Command, Counts};
use crate::model::free_min::FreeMin;
use crate::model::id::SessionId;
use crate::model::limits::Limits;
use crate::model::snapshot::Snapshot;
use crate::model::time::{Sighting, Timestamp};
use crate::protocol::error::Refusal;
use crate::protocol::response::Response;
use crate::store::archive::Origin;
use crate::store::image::Image;
use crate::store::{Fenced, Mode, Store, StoreError};
use cycle::Cycle;
use inbox::{Inbox, Input};

/// What ends an engine against its will. The process must end at once, touching nothing of the store.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The mastership is lost or cannot be checked.
    #[error(transparent)]
    Fenced(#[from] Fenced),
    /// The thread could not be started.
    #[error("cannot start the engine's thread: {0}")]
    Thread(std::io::Error),
    /// The thread has panicked: a bug. What is in memory cannot be trusted any more; what is on disk can.
    #[error("the engine's thread has panicked: please report it with what stands above")]
    Panicked,
}

/// How long an image is waited for: a commit on storage that hangs may take this long.
const IMAGE_WAIT: Duration = Duration::from_secs(30);

/// Why there is no image of the store.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The store cannot give one.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node hands its mastership over.
    #[error("the node hands its mastership over: begin again at the next master")]
    Ending,
    /// The engine does not come round to it.
    #[error("the store does not answer within {0:?}: does the storage hang?")]
    Silent(Duration),
}

/// How an engine checks that it is still master: a fresh read that begins when it is called.
pub trait Guard: Send {
    /// Whether no higher epoch exists.
    ///
    /// # Errors
    /// What was found. The process must end.
    fn check(&mut self) -> Result<(), Fenced>;

    /// As [`check`](Self::check), and whether the lock is still this process's. Called when nothing else is to do.
    ///
    /// # Errors
    /// As for [`check`](Self::check).
    fn check_lock(&mut self) -> Result<(), Fenced>;
}

/// What an engine is made of.
pub struct Parts {
    /// The store, open for this epoch.
    pub store: Box<dyn Store>,
    /// What was recovered from it.
    pub snapshot: Snapshot,
    /// Where it is: the time that counts, and the threads that read, are those of this place.
    pub place: PathBuf,
    /// The store time of the master before, where this node has followed that.
    pub seen: Option<Sighting>,
    /// The check of the mastership.
    pub guard: Box<dyn Guard>,
    /// How often the guard is asked while nothing else happens.
    pub poll_interval: Duration,
    /// The limits.
    pub limits: Limits,
    /// Whether topics and groups come into being by being used.
    pub auto_create: AutoCreate,
    /// What is kept free on the disk of the store.
    pub free_min: FreeMin,
}

/// The way to a running engine. Cloning it is cheap.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    place: PathBuf,
    inbox: Arc<Inbox>,
    vitals: Vitals,
    /// Backups that are under way.
    backups: Arc<AtomicU64>,
}

/// What others may know of a running engine without asking it.
#[derive(Debug)]
pub struct Vitals {
    started: Instant,
    /// Microseconds from `started` to the last time the guard said yes.
    checked_us: AtomicU64,
    counts: Mutex<Counts>,
    /// Store time, in milliseconds since 1970.
    time_ms: AtomicU64,
}

impl Vitals {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            checked_us: AtomicU64::new(0),
            counts: Mutex::default(),
            time_ms: AtomicU64::new(0),
        }
    }

    fn tell_time(&self, time: Timestamp) {
        self.time_ms.store(time.0, Ordering::Relaxed);
    }

    fn checked(&self, at: Instant) {
        let us = at.duration_since(self.started).as_micros();
        self.checked_us.store(u64::try_from(us).unwrap_or(u64::MAX), Ordering::Release);
    }

    fn count(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// How long ago the guard last said yes.
    #[must_use]
    pub fn fence_age(&self) -> Duration {
        let checked = Duration::from_micros(self.checked_us.load(Ordering::Acquire));
        self.started.elapsed().saturating_sub(checked)
    }

    /// Store time, as of the last cycle: an idle engine has one each time that it asks its guard.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        Timestamp(self.time_ms.load(Ordering::Relaxed))
    }

    /// What there is, as of the last cycle.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Starts an engine. When it ends, `ended` is called on its thread: with `Ok` after a [drain](Self::drain), the
    /// store closed; with an error the process must end at once.
    ///
    /// # Errors
    /// Where readers or the thread cannot be started.
    pub fn start(
        parts: Parts,
        ended: impl FnOnce(Result<(), EngineError>) + Send + 'static,
    ) -> Result<Self, EngineError> {
        let (engine, cycle) = Self::new(parts)?;
        thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                // Nothing of the cycle is used again after a panic, and a store that is dropped writes nothing.
                let end = catch_unwind(AssertUnwindSafe(|| cycle.run()));
                ended(end.unwrap_or(Err(EngineError::Panicked)));
            })
            .map_err(EngineError::Thread)?;
        Ok(engine)
    }

    /// An engine without a thread of its own: it goes round when its [`Turns`] are taken.
    ///
    /// # Errors
    /// Where readers cannot be started.
    pub fn without_thread(parts: Parts) -> Result<(Self, Turns), EngineError> {
        let (engine, cycle) = Self::new(parts)?;
        Ok((engine, Turns::of(cycle)))
    }

    fn new(parts: Parts) -> Result<(Self, Cycle), EngineError> {
        let shared = Arc::new(Shared {
            place: parts.place.clone(),
            inbox: Arc::default(),
            vitals: Vitals::new(),
            backups: Arc::default(),
        });
        let cycle = Cycle::new(Arc::clone(&shared), parts)?;
        Ok((Self { shared }, cycle))
    }

    /// Begins a session whose effects go to `outbox`.
    pub fn begin(&self, session: SessionId, outbox: Arc<Outbox>) {
        self.shared.inbox.put(Input::Begin(session, outbox));
    }

    /// Hands a batch of commands over. `bytes` of the connection's budget are held until the engine takes it.
    pub fn submit(&self, session: SessionId, commands: Vec<Command>, bytes: u64, budget: &Arc<Budget>) {
        self.shared.inbox.put_commands(session, commands, bytes, budget);
    }

    /// What the store holds, as of the end of a cycle. Waits for that; not to be called on the engine's thread or in a
    /// task.
    ///
    /// # Errors
    /// Where the store has none to give, or the engine is ending.
    pub fn image(&self) -> Result<Box<dyn Image>, ImageError> {
        let (sender, receiver) = sync_channel(1);
        self.shared.inbox.put(Input::Image(sender));
        match receiver.recv_timeout(IMAGE_WAIT) {
            Ok(image) => Ok(image?),
            Err(RecvTimeoutError::Disconnected) => Err(ImageError::Ending),
            Err(RecvTimeoutError::Timeout) => Err(ImageError::Silent(IMAGE_WAIT)),
        }
    }

    /// Begins a backup of the store with this identity and mode; its answers go to `respond`. Nothing is read before it
    /// is [asked](Backup::ask).
    ///
    /// # Errors
    /// Where there are as many as there may be.
    pub fn back_up(
        &self,
        store_id: String,
        mode: Mode,
        respond: Box<dyn Fn(Response) + Send>,
    ) -> Result<Backup, Refusal> {
        let origin = Origin { store_id, mode, made_at: Timestamp(clock::wall_ms(&self.shared.place)) };
        Backup::begin(self.clone(), origin, &self.shared.backups, respond)
    }

    /// Stops handing out, waits until nothing is in flight, at the latest until `deadline`, then says goodbye to
    /// every session and closes the store.
    pub fn drain(&self, deadline: Instant) {
        self.shared.inbox.put(Input::Drain(deadline));
    }

    /// What can be known of the engine without asking it.
    #[must_use]
    pub fn vitals(&self) -> &Vitals {
        &self.shared.vitals
    }
}
