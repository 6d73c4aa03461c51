//! The standby: polls the lock, watches the master, and answers clients that they are at the wrong node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::task::AbortOnDropHandle;

use super::service_manager::{Watchdog, tell};
use super::watch::{Heard, Watch};
use super::{Acquired, Arrival, Node, NodeError};
use crate::ha::block::{Block, State};
use crate::ha::lock::LockAttempt;

/// Interval of the polls right after the watched master is gone.
const EAGER_INTERVAL: Duration = Duration::from_millis(2);
/// How long they go on.
const EAGER_FOR: Duration = Duration::from_secs(1);
/// Least time between two warnings of the same kind.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// How long the lock may be held by one that says nothing before that is said, and how often it is said then. Longer
/// than a takeover and a restart take.
const SILENCE_MAX: Duration = Duration::from_secs(5);
const SILENCE_SAID_INTERVAL: Duration = Duration::from_secs(60);

impl Node {
    /// Waits until the lock is this process's; `None` where the node is told to stop before.
    pub(super) async fn stand_by(&self) -> Result<Option<Acquired>, NodeError> {
        // A lock that is acquired by a poll nobody waits for any more is let go at once.
        tokio::select! {
            locked = self.wait_for_lock() => locked.map(Some),
            () = self.shutdown.cancelled() => Ok(None),
        }
    }

    async fn wait_for_lock(&self) -> Result<Acquired, NodeError> {
        tracing::info!(node = %self.config.node, store = %self.directory.path().display(), "standby");
        tell(&[NotifyState::Ready, NotifyState::Status("standby")]);
        let watch = Watch::new(self.config.poll_interval);
        let mut following = Following::default();
        let mut watchdog = Watchdog::new();
        let mut eager_until = Instant::now();
        let mut warned_at: Option<Instant> = None;
        let mut silence = Silence::new(Instant::now());
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
                    None => return Ok(Acquired { lock, arrival, seen: watch.seen() }),
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
                arrival = Arrival::WithoutExclusion;
            } else if silence.is_to_be_said(Instant::now(), watch.hears()) {
                self.say_who_holds_the_lock(master.as_ref());
            }
            if arrival == Arrival::FoundFree {
                arrival = Arrival::TookOver;
            }
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

    /// Says that there is no takeover, and why: an operator sees two nodes that serve nobody.
    fn say_who_holds_the_lock(&self, master: Option<&Block>) {
        let master = master.filter(|block| block.state != State::Released && !self.is_own(block));
        let holder = master.map_or_else(|| "unknown".to_owned(), |block| block.owner.node.to_string());
        tracing::warn!(
            holder,
            address = master.map(|block| block.address.to_string()),
            "the lock is held, and nobody answers as master: this node takes over as soon as it is free; where the \
             holder's host is gone, the storage releases it; where it is not, end the process there"
        );
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

/// For how long nothing was heard of a master while the lock is held.
struct Silence {
    heard_at: Instant,
    said_at: Option<Instant>,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { heard_at: now, said_at: None }
    }

    /// Whether it is time to say so; then it counts as said.
    fn is_to_be_said(&mut self, now: Instant, heard: Heard) -> bool {
        if heard == Heard::Yes {
            *self = Self::new(now);
        }
        let is_due = now.duration_since(self.heard_at) >= SILENCE_MAX
            && self.said_at.is_none_or(|at| now.duration_since(at) >= SILENCE_SAID_INTERVAL);
        if is_due {
            self.said_at = Some(now);
        }
        is_due
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_said_when_it_has_lasted_and_then_once_a_minute() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        let mut said = |seconds: std::ops::Range<u64>, heard| -> Vec<u64> {
            seconds.filter(|s| silence.is_to_be_said(start + Duration::from_secs(*s), heard)).collect()
        };
        assert!(said(0..10, Heard::Yes).is_empty());
        assert_eq!(said(10..140, Heard::No), [14, 74, 134]);
        assert!(said(140..141, Heard::Yes).is_empty());
        assert_eq!(said(141..150, Heard::No), [145]);
    }
}
