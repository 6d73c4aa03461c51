//! Time and chance, as those have them who use the shared disk: the stores, and the engine that goes round over one. What
//! waits for a socket has nothing to do with it.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::mount;

/// The time at a path.
#[must_use]
pub fn now(path: &Path) -> Instant {
    mount::of(path).map_or_else(Instant::now, |mount| mount.now())
}

/// The time by the clock of the host, at a path.
#[must_use]
pub fn wall(path: &Path) -> SystemTime {
    mount::of(path).map_or_else(SystemTime::now, |mount| mount.wall())
}

/// Lets time pass at a path.
pub fn pause(path: &Path, time: Duration) {
    match mount::of(path) {
        None => std::thread::sleep(time),
        Some(mount) => mount.pause(time),
    }
}

/// A number by chance, for what is written at a path.
#[must_use]
pub fn chance(path: &Path) -> u64 {
    // A timestamped UUID has its random bits at the end.
    mount::of(path).map_or_else(|| uuid::Uuid::now_v7().as_u64_pair().1, |mount| mount.chance())
}
