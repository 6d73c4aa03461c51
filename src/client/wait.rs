//! Waits before something that was refused for now is tried again. Pure, but for the chance in it.
//!
//! All clients of a node are put off at the same moment, when it drains or is full. They must not come back at the same
//! moment, so every wait is changed by chance, and grows while the refusals go on.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Wait before a request of which nothing depends on the order is made again.
pub(super) const RETRY_WAIT: Duration = Duration::from_millis(20);
/// First and longest wait after refusals in a row.
const PUT_OFF_FIRST: Duration = Duration::from_millis(10);
pub(super) const PUT_OFF_MAX: Duration = Duration::from_secs(1);

/// The wait after a refusal, `last` being the one after the refusal before it; before chance.
pub(super) fn after_refusal(last: Option<Duration>) -> Duration {
    last.map_or(PUT_OFF_FIRST, |last| (last * 2).min(PUT_OFF_MAX))
}

/// A wait, shorter or longer by up to half of itself.
pub(super) fn by_chance(wait: Duration) -> Duration {
    // Each state has keys of its own.
    let percent = 50 + (RandomState::new().hash_one(()) % 101) as u32;
    wait * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_differ_by_up_to_half_of_what_is_meant() {
        let meant = Duration::from_secs(100);
        let waits: Vec<_> = (0..1000).map(|_| by_chance(meant)).collect();
        assert!(waits.iter().all(|wait| (meant / 2..=meant * 3 / 2).contains(wait)));
        assert!(waits.iter().any(|wait| *wait < meant * 6 / 10));
        assert!(waits.iter().any(|wait| *wait > meant * 14 / 10));
    }

    #[test]
    fn refusals_in_a_row_are_answered_with_longer_waits() {
        let mut wait = None;
        let waits: Vec<_> = (0..9)
            .map(|_| {
                wait = Some(after_refusal(wait));
                wait.map_or(0, |wait| wait.as_millis())
            })
            .collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }
}
