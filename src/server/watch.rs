//! The other node's connection: signs of life of a node that has claimed, while it recovers and while it serves.
//!
//! A sign of life says how long ago the fence last held. A master asks it all the time. A node that recovers asks it
//! after each piece of work, so that the other node can tell a recovery that takes long from one that hangs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::MissedTickBehavior;

use super::connection::{ConnectionError, FAREWELL_MAX};
use super::greeting::{FIRST_FRAME_BYTES_MAX, send};
use super::input::Input;
use super::{Server, Standing};
use crate::protocol::response::{Heartbeat, Response, Role};

/// How a recovery gets on. Shared with the thread that recovers.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    /// Microseconds from `started` to the last time the fence held.
    held_us: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// The progress of a recovery that begins now: its claim is as good as a fence that holds.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now(), held_us: AtomicU64::new(0) }
    }

    /// Notes that a check of the fence which began at `at` said yes.
    pub fn made(&self, at: Instant) {
        let us = at.saturating_duration_since(self.started).as_micros();
        self.held_us.store(u64::try_from(us).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// How long ago the last check began that said yes.
    #[must_use]
    pub fn fence_age(&self) -> Duration {
        let held = Duration::from_micros(self.held_us.load(Ordering::Acquire));
        self.started.elapsed().saturating_sub(held)
    }
}

impl Standing {
    /// A sign of life; `None` of a node that has not claimed.
    fn sign_of_life(&self) -> Option<Heartbeat> {
        let fence_age = match self.role {
            Role::Master => self.engine.as_ref()?.vitals().fence_age(),
            Role::Recovering => self.recovery.as_ref()?.fence_age(),
            Role::Standby => return None,
        };
        let fence_age_ms = u32::try_from(fence_age.as_millis()).unwrap_or(u32::MAX);
        Some(Heartbeat { epoch: self.epoch, fence_age_ms })
    }
}

/// A standby that follows a master, until it is dropped.
struct Follower<'a>(&'a AtomicU64);

impl<'a> Follower<'a> {
    fn new(followers: &'a AtomicU64) -> Self {
        followers.fetch_add(1, Ordering::Relaxed);
        Self(followers)
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Whether a standby follows this node as master: it would take over at once.
    pub(super) fn has_follower(&self) -> bool {
        self.followers.load(Ordering::Relaxed) > 0
    }
}

/// Sends signs of life while the node has `role`, with which it has greeted the other node.
pub(super) async fn run(
    server: &Server,
    role: Role,
    mut input: Input,
    mut write: OwnedWriteHalf,
    heartbeat: Duration,
) -> Result<(), ConnectionError> {
    let _follower = (role == Role::Master).then(|| Follower::new(&server.followers));
    let mut standing = server.standing.clone();
    // The first change that it tells of may be from before.
    standing.mark_changed();
    let mut beat = tokio::time::interval(heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Each branch is cancel-safe: it changes nothing before it is ready.
        tokio::select! {
            _ = beat.tick() => {
                let sign = standing.borrow().sign_of_life();
                let Some(sign) = sign else { return Ok(()) };
                // One that takes nothing for so long has no use for it.
                let sign = Response::Heartbeat(sign);
                match tokio::time::timeout(FAREWELL_MAX, send(&mut write, &sign)).await {
                    Ok(sent) => sent?,
                    Err(_) => return Ok(()),
                }
            }
            frame = input.frame(FIRST_FRAME_BYTES_MAX) => drop(frame?),
            changed = standing.changed() => {
                if changed.is_err() || standing.borrow().role != role {
                    return Ok(());
                }
            }
            () = server.shutdown.cancelled() => return Ok(()),
        }
    }
}
