//! How old the last check of the fence may be while clients are served.
//!
//! Heartbeats come from the connections' tasks. Where the storage hangs, the engine's thread hangs in a commit or in a
//! check of the fence, and clients would stay for as long as the connection lives, although another node may be master
//! by now. So a master that has not been able to make sure of its mastership for too long sends its clients away, and
//! is no master to new ones until it has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::engine::Engine;

/// How old the last check of the fence may become beyond the interval in which an idle master checks it. Longer than
/// the stalls of a storage that clients should sit out.
pub const FENCE_AGE_MAX: Duration = Duration::from_secs(15);

/// The limit of one node, and whether it is passed.
pub(super) struct FenceAge {
    max: Duration,
    passed: AtomicBool,
}

impl FenceAge {
    pub(super) fn new(max: Duration) -> Self {
        Self { max, passed: AtomicBool::new(false) }
    }

    /// The age of the last check, where it is too old. Logs when that changes.
    pub(super) fn passed(&self, engine: &Engine) -> Option<Duration> {
        let age = engine.vitals().fence_age();
        let passed = age >= self.max;
        if self.passed.swap(passed, Ordering::Relaxed) != passed {
            if passed {
                tracing::warn!(?age, "the storage does not answer: clients are sent away until it does");
            } else {
                tracing::info!("the storage answers: clients are served again");
            }
        }
        passed.then_some(age)
    }

    /// Waits until the last check is too old. Cancel-safe.
    pub(super) async fn passing(&self, engine: &Engine) {
        while self.passed(engine).is_none() {
            let left = self.max.saturating_sub(engine.vitals().fence_age());
            // Timers have a resolution of a millisecond.
            tokio::time::sleep(left.max(Duration::from_millis(1))).await;
        }
    }
}
