//! When neighbours are told where a floating address is. Pure: time is an argument.

use std::time::{Duration, Instant};

use super::packet::Claim;

/// When neighbours are told after an address was added, before the configured interval begins. Two are more than a
/// second apart: some kernels take no change of an entry that is younger than that.
const TOLD_AFTER: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1_500),
    Duration::from_millis(3_000),
];
/// Least time between two answers to a host that says that it has the address as well.
const DEFENCE_INTERVAL: Duration = Duration::from_secs(1);

/// When neighbours are told.
#[derive(Debug)]
pub(super) struct Telling {
    interval: Duration,
    begun_at: Instant,
    /// How often since then.
    count: usize,
    told_at: Option<Instant>,
}

impl Telling {
    pub(super) fn new(now: Instant, interval: Duration) -> Self {
        Self { interval, begun_at: now, count: 0, told_at: None }
    }

    /// From now on it is told as after an address was added.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.begun_at, self.count) = (now, 0);
    }

    /// Whether it is time; then it counts as told. `heard` are those who say otherwise.
    pub(super) fn is_due(&mut self, now: Instant, heard: &[Claim]) -> bool {
        let scheduled = match (TOLD_AFTER.get(self.count), self.told_at) {
            (Some(after), _) => now >= self.begun_at + *after,
            (None, Some(told_at)) => now >= told_at + self.interval,
            (None, None) => true,
        };
        let contested = !heard.is_empty() && self.told_at.is_none_or(|at| now >= at + DEFENCE_INTERVAL);
        if scheduled {
            self.count += 1;
        }
        if scheduled || contested {
            self.told_at = Some(now);
        }
        scheduled || contested
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::Mac;
    use super::*;

    fn told(telling: &mut Telling, start: Instant, until_ms: u64, heard: &[Claim]) -> Vec<u64> {
        (0..until_ms).filter(|ms| telling.is_due(start + Duration::from_millis(*ms), heard)).collect()
    }

    #[test]
    fn neighbours_are_told_often_at_first_and_then_in_the_interval() {
        let start = Instant::now();
        let mut telling = Telling::new(start, Duration::from_secs(5));
        let all = told(&mut telling, start, 20_000, &[]);
        assert_eq!(all, [0, 100, 400, 1_500, 3_000, 8_000, 13_000, 18_000]);
        let later = start + Duration::from_secs(20);
        telling.begin(later);
        assert_eq!(told(&mut telling, later, 500, &[]), [0, 100, 400]);
    }

    #[test]
    fn a_rival_is_answered_at_once_and_not_more_than_once_a_second() {
        let start = Instant::now();
        let mut telling = Telling::new(start, Duration::from_secs(3_600));
        told(&mut telling, start, 4_000, &[]);
        let rival = Claim { ip: [192, 0, 2, 10].into(), mac: Mac([1; 6]) };
        let later = start + Duration::from_secs(10);
        assert_eq!(told(&mut telling, later, 2_500, &[rival]), [0, 1_000, 2_000]);
    }
}
