//! What the service manager (systemd) is told: that the node is ready, what it is, and that it is alive.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// How often in the time after which the service manager takes a node for dead it hears that it is alive.
const FEEDS: u32 = 4;

/// Tells the service manager, where there is one. That it does not listen is no reason to stop.
pub(super) fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// How often the service manager wants to hear that the node is alive; `None` where nobody wants to.
pub(super) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / FEEDS)
}

/// Says that the node is alive, where the service manager wants to hear it (`WatchdogSec=`).
///
/// It is fed by whoever does what the node is there for, and by nobody else: as standby by each look at the lock, as
/// master by the thread that commits, each time that the fence holds. So a node whose storage does not answer, or whose
/// thread hangs, falls silent however lively the rest of it is.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// How often to say it; `None` where nobody wants to hear it.
    interval: Option<Duration>,
    said_at: Option<Instant>,
}

impl Watchdog {
    /// As the service manager wants it.
    pub fn new() -> Self {
        Self { interval: watchdog_interval(), said_at: None }
    }

    /// The node is alive.
    pub fn feed(&mut self) {
        if self.is_due(Instant::now()) {
            tell(&[NotifyState::Watchdog]);
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let Some(interval) = self.interval else { return false };
        let due = self.said_at.is_none_or(|at| now.duration_since(at) >= interval);
        if due {
            self.said_at = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_so_four_times_before_it_is_taken_for_dead() {
        let limit = Duration::from_secs(60);
        let mut watchdog = Watchdog { interval: Some(limit / FEEDS), said_at: None };
        let start = Instant::now();
        // It is fed with each commit.
        let said = (0..60_000).filter(|ms| watchdog.is_due(start + Duration::from_millis(*ms))).count();
        assert_eq!(said, 4);
        let mut unwatched = Watchdog { interval: None, said_at: None };
        assert!(!unwatched.is_due(start));
    }
}
