//! A shared disk that is full: what the log says of it, and how often a commit that waits for space is tried.

use std::time::{Duration, Instant};

use super::clock::Clock;
use crate::disk::world;

/// How long a commit that found no space waits before it is tried again, where the poll interval is not shorter.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two warnings: the first one says what to do, the others that it is still so.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Publishes that are refused because they would take what settling needs.
#[derive(Debug, Default)]
pub(super) struct Refusing {
    told: u64,
    warned_at: Option<Instant>,
}

impl Refusing {
    /// Says that publishes are refused where `count` of them have been by now: at once, and then now and then.
    pub(super) fn note(&mut self, count: u64) {
        if count == self.told || self.warned_at.is_some_and(|at| at.elapsed() < WARN_INTERVAL) {
            return;
        }
        tracing::warn!(
            publishes = count - self.told,
            "no space left on the shared disk for messages, beside what is kept free: publishes are refused, consuming \
             goes on; consume what waits, make the disk larger, or lower disk_free_min, and publishing goes on by itself"
        );
        (self.told, self.warned_at) = (count, Some(Instant::now()));
    }
}

/// One wait, from the first attempt that found no space on.
#[derive(Debug)]
pub(super) struct SpaceWait {
    began_at: Instant,
    warned_at: Option<Instant>,
}

impl SpaceWait {
    pub(super) fn begin() -> Self {
        Self { began_at: Instant::now(), warned_at: None }
    }

    /// Says that there is no space for a commit of so many bytes: at once, and then now and then.
    pub(super) fn warn(&mut self, bytes: u64) {
        if self.warned_at.is_some_and(|at| at.elapsed() < WARN_INTERVAL) {
            return;
        }
        self.warned_at = Some(Instant::now());
        tracing::warn!(
            bytes,
            since = ?self.began_at.elapsed(),
            "no space left on the shared disk for a commit: nothing is confirmed or delivered until there is; remove \
             what does not belong to the store, or make the disk larger, and it goes on by itself"
        );
    }

    /// Waits before the next attempt, not beyond `until`.
    pub(super) fn pause(clock: &Clock, poll_interval: Duration, until: Option<Instant>) {
        let pause = RETRY_INTERVAL.min(poll_interval);
        let left = until.map(|until| until.saturating_duration_since(clock.instant()));
        world::pause(clock.place(), left.map_or(pause, |left| pause.min(left)));
    }

    /// Says that it is over.
    pub(super) fn over(self) {
        tracing::info!(after = ?self.began_at.elapsed(), "there is space again: going on");
    }
}
