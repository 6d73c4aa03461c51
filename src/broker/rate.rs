//! How many messages a second, lately.

use crate::model::time::Timestamp;

/// The time over which is counted, in milliseconds.
pub(super) const WINDOW_MS: u64 = 10_000;

/// Counts events, and says how many there were a second over the last ten seconds that are over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    /// The window that is being counted: time divided by its length.
    window: u64,
    count: u64,
    /// Events of the window before it.
    last: u64,
}

impl Rate {
    /// Counts events.
    pub fn add(&mut self, now: Timestamp, count: u64) {
        self.turn(now);
        self.count += count;
    }

    /// Events per second.
    pub fn per_second(&self, now: Timestamp) -> f64 {
        let mut turned = *self;
        turned.turn(now);
        turned.last as f64 * 1000.0 / WINDOW_MS as f64
    }

    fn turn(&mut self, now: Timestamp) {
        let window = now.0 / WINDOW_MS;
        if window > self.window {
            let last = if window == self.window + 1 { self.count } else { 0 };
            *self = Self { window, count: 0, last };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_the_last_window_that_is_over() {
        let mut rate = Rate::default();
        rate.add(Timestamp(100_000), 30);
        rate.add(Timestamp(109_999), 20);
        assert_eq!(rate.per_second(Timestamp(109_999)), 0.0);
        assert_eq!(rate.per_second(Timestamp(110_000)), 5.0);
        rate.add(Timestamp(112_000), 70);
        assert_eq!(rate.per_second(Timestamp(119_999)), 5.0);
        assert_eq!(rate.per_second(Timestamp(120_000)), 7.0);
        assert_eq!(rate.per_second(Timestamp(130_000)), 0.0);
    }
}
