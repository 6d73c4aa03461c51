//! What to think of other hosts that say that they have a floating address. Pure: time is an argument.

use std::time::Instant;

use super::keeper::{EXTEND_INTERVAL, LIFETIME, WARN_INTERVAL};

/// What to think of another host that says that it has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rival {
    /// It was master before, and has not let go yet.
    Predecessor,
    /// It is none of the pair's masters.
    Stranger,
    /// That was said.
    Known,
}

/// Since when a host that has an address cannot be the last master any more, and what was said.
#[derive(Debug)]
pub(super) struct Rivals {
    /// Until then the last master may have the address.
    strange_from: Instant,
    predecessor: Rival,
    stranger_said_at: Option<Instant>,
    ask_at: Instant,
}

impl Rivals {
    pub(super) fn new(now: Instant) -> Self {
        let strange_from = now + LIFETIME + EXTEND_INTERVAL;
        Self { strange_from, predecessor: Rival::Predecessor, stranger_said_at: None, ask_at: strange_from }
    }

    /// The loan of the last master runs out from now on. What was said counts.
    pub(super) fn begin(&mut self, now: Instant) {
        *self = Self { predecessor: self.predecessor, ..Self::new(now) };
    }

    /// What to say of one that is heard.
    pub(super) fn judge(&mut self, now: Instant) -> Rival {
        if now < self.strange_from {
            return std::mem::replace(&mut self.predecessor, Rival::Known);
        }
        if self.stranger_said_at.is_some_and(|at| now < at + WARN_INTERVAL) {
            return Rival::Known;
        }
        self.stranger_said_at = Some(now);
        Rival::Stranger
    }

    /// Whether it is time to ask again who has the addresses; then it counts as asked.
    pub(super) fn is_to_ask(&mut self, now: Instant) -> bool {
        let due = now >= self.ask_at;
        if due {
            self.ask_at = now + WARN_INTERVAL;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_has_the_address_beyond_the_loan_of_the_last_master_is_a_stranger() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rivals = Rivals::new(start);
        let judged = [0, 5, 10, 11, 12, 70, 71].map(|seconds| rivals.judge(at(seconds)));
        use Rival::{Known, Predecessor, Stranger};
        assert_eq!(judged, [Predecessor, Known, Known, Stranger, Known, Known, Stranger]);
        let mut rivals = Rivals::new(start);
        let asked: Vec<u64> = (0..200).filter(|seconds| rivals.is_to_ask(at(*seconds))).collect();
        assert_eq!(asked, [11, 71, 131, 191]);
    }
}
