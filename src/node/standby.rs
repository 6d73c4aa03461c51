//! The standby: polls the lock, watches the master, and answers clients that they are at the wrong node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::task::AbortOnDropHandle;

use super::service_manager::{Watchdog, tell};
use super::watch::Watch;
use super::{Arrival, Node, NodeError};
use crate::ha::block::{Block, State};
use crate::ha::lock::{LockAttempt, StoreLock};

/// Interval of the polls right after the watched master is gone.
const EAGER_INTERVAL: Duration = Duration::from_millis(2);
/// How long they go on.
const EAGER_FOR: Duration = Duration::from_secs(1);
/// Least time between two warnings of the same kind.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

impl Node {
    /// Waits until the lock is this process's; `None` where the node is told to stop before.
    pub(super) async fn stand_by(&self) -> Result<Option<(StoreLock, Arrival)>, NodeError> {
        // A lock that is acquired by a poll nobody waits for any more is let go at once.
        tokio::select! {
            locked = self.wait_for_lock() => locked.map(Some),
            () = self.shutdown.cancelled() => Ok(None),
        }
    }

    async fn wait_for_lock(&self) -> Result<(StoreLock, Arrival), NodeError> {
        tracing::info!(node = %self.config.node, store = %self.directory.path().display(), "standby");
        tell(&[NotifyState::Ready, NotifyState::Status("standby")]);
        let watch = Watch::new(self.config.poll_interval);
        let mut following = Following::default();
        let mut watchdog = Watchdog::new();
        let mut eager_until = Instant::now();
        let mut warned_at: Option<Instant> = None;
        let mut arrival = Arrival::FoundFree;
        loop {
            let began = Instant::now();
            let (attempt, master) = self.look().await?;
            self.server.looked(began);
            watchdog.feed();
            if let LockAttempt::Acquired(lock) = attempt {
                // The master as it is now that the lock is held; a look from before may be outdated.
                let master = self.look_at_master().await?;
                match self.healthy_elsewhere(&watch, master.as_ref()).await {
                    None => return Ok((lock, arrival)),
                    Some(address) => {
                        if warned_at.is_none_or(|at| at.elapsed() > WARN_INTERVAL) {
                            tracing::error!(
                                master = address,
                                "the lock could be taken although the master answers: locks do not lock on this \
                                 storage; not claiming while it is healthy"
                            );
                            warned_at = Some(Instant::now());
                        }
                    }
                }
                drop(lock);
            }
            arrival = Arrival::TookOver;
            self.note_master(master.as_ref());
            following.follow(&watch, master.as_ref().filter(|block| !self.is_own(block)));
            let pause = if Instant::now() < eager_until { EAGER_INTERVAL } else { self.config.poll_interval };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = watch.lost.notified() => {
                    tracing::info!("the master does not answer any more");
                    eager_until = Instant::now() + EAGER_FOR;
                }
            }
        }
    }

    /// One attempt at the lock, and who the master is.
    async fn look(&self) -> Result<(LockAttempt, Option<Block>), NodeError> {
        let directory = self.directory.clone();
        let looked = spawn_blocking(move || {
            let attempt = directory.try_lock()?;
            Ok::<_, NodeError>((attempt, directory.status()?))
        });
        looked.await.map_err(|_| NodeError::Panicked)?
    }

    async fn look_at_master(&self) -> Result<Option<Block>, NodeError> {
        let directory = self.directory.clone();
        Ok(spawn_blocking(move || directory.status()).await.map_err(|_| NodeError::Panicked)??)
    }

    /// The address of a master that is alive and well although this process holds the lock.
    async fn healthy_elsewhere(&self, watch: &Watch, master: Option<&Block>) -> Option<String> {
        let master = master.filter(|block| block.state != State::Released)?;
        let address = master.address.as_str();
        if address.is_empty() || self.is_own(master) || master.owner.is_dead_here() {
            return None;
        }
        let epoch = match watch.healthy() {
            Some(epoch) => Some(epoch),
            None => watch.probe(address).await,
        };
        (epoch? >= master.epoch).then(|| address.to_owned())
    }

    /// Whether the block is of this process, or of one before it of the same node: that one is gone, since this one
    /// has its address.
    fn is_own(&self, block: &Block) -> bool {
        block.owner.incarnation == self.identity.incarnation
            || (block.owner.node == self.identity.node && block.address == self.advertised)
    }

    /// Lets clients know where the master is.
    fn note_master(&self, master: Option<&Block>) {
        let Some(block) = master else { return };
        let address = (block.state != State::Released && !self.is_own(block))
            .then(|| block.address.as_str().to_owned())
            .filter(|address| !address.is_empty());
        let known = self.server.standing.borrow();
        if known.epoch == block.epoch && known.master == address {
            return;
        }
        drop(known);
        if block.address == self.advertised && !self.is_own(block) {
            tracing::error!(
                address = %block.address,
                other = %block.owner.node,
                "both nodes have the same address: set `advertise` of each to one that leads to it alone, or the \
                 standby may not see whether the master is healthy"
            );
        }
        self.set_standing(|standing| {
            standing.epoch = block.epoch;
            standing.master = address;
            standing.mode = block.mode;
            standing.store_id = block.store_id.to_string();
        });
    }
}

/// The task that follows the master.
#[derive(Default)]
struct Following {
    task: Option<AbortOnDropHandle<()>>,
}

impl Following {
    /// Sees to it that the master is followed, if there is one.
    fn follow(&mut self, watch: &Arc<Watch>, master: Option<&Block>) {
        if self.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Some(block) = master.filter(|block| block.state != State::Released) else { return };
        let address = block.address.as_str().to_owned();
        if address.is_empty() {
            return;
        }
        let watch = Arc::clone(watch);
        let task: JoinHandle<()> = tokio::spawn(async move { watch.follow(&address).await });
        self.task = Some(AbortOnDropHandle::new(task));
    }
}
