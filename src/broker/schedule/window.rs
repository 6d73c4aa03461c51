//! Which slot holds what is due when.
//!
//! Slots are as wide as what they hold is far away: those of the next minute are about a second wide, those of the
//! next hour a minute, and so on, 64 of each width. When the time of a slot comes, what is in it is known one by one,
//! or moved on into finer slots where it is too much for that. So a message is written once more for each factor of
//! 64 at most, and neither the number of slots nor what is known in memory grows with the number of messages. What is
//! due soon after a wide slot begins is put into that one, however near it is: the slot is open by then.
//!
//! This is a hierarchical timing wheel (Varghese and Lauck, "Hashed and hierarchical timing wheels", 1987), with logs
//! for slots.

use crate::model::time::Timestamp;

/// Width of the finest slots, as a power of two in milliseconds: 1024 ms.
const FINEST_BITS: u32 = 10;
/// Slots of one width in one of the next width, as a power of two.
const LEVEL_BITS: u32 = 6;
/// A slot is opened this part of its width before its time: what is in it may have to be moved on until then.
const LEAD_PART: u64 = 4;
/// And at least so many milliseconds before.
const LEAD_MS_MIN: u64 = 1 << FINEST_BITS;

/// What is due within this many milliseconds needs no slot of its own, as long as there is room to know it.
pub(super) const NEAR_MS: u64 = 60_000;

/// The times at which what is in a slot is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::broker) struct Window {
    pub from: Timestamp,
    /// The first time that is not in it.
    pub until: Timestamp,
}

impl Window {
    /// The slot for what is due soon, and known one by one.
    pub const NEAR: Self = Self { from: Timestamp(0), until: Timestamp(u64::MAX) };

    /// The slot for what is due at `due`, seen from `now`: of those widths at which both are in different slots of one
    /// wider slot the only one.
    pub fn of(now: Timestamp, due: Timestamp) -> Self {
        let (now, at) = (now.0 >> FINEST_BITS, due.0 >> FINEST_BITS);
        let level = (now ^ at).checked_ilog2().unwrap_or(0) / LEVEL_BITS;
        let bits = FINEST_BITS + LEVEL_BITS * level;
        let number = due.0 >> bits;
        let from = number << bits;
        let until = from.saturating_add(1 << bits);
        Self { from: Timestamp(from), until: Timestamp(until) }
    }

    /// When its slot is opened: a little before anything in it is due, because it may take a while to read it.
    pub fn opens_at(self) -> Timestamp {
        let lead = (self.until.0 - self.from.0) / LEAD_PART;
        Timestamp(self.from.0.saturating_sub(lead.max(LEAD_MS_MIN)))
    }

    /// From when on nothing is put into its slot any more: what is due in it goes into finer ones, or is due.
    pub fn closes_at(self) -> Timestamp {
        if self.is_coarse() { self.from } else { self.until }
    }

    /// Whether what is in it can go into finer slots.
    pub fn is_coarse(self) -> bool {
        self.until.0 - self.from.0 > 1 << FINEST_BITS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slot_is_as_wide_as_it_is_far_away() {
        let now = Timestamp(0);
        let width = |wait: u64| {
            let window = Window::of(now, Timestamp(now.0 + wait));
            window.until.0 - window.from.0
        };
        assert_eq!(width(0), 1 << 10);
        assert_eq!(width((1 << 16) - 1), 1 << 10, "almost a minute");
        assert_eq!(width(1 << 16), 1 << 16, "a minute");
        assert_eq!(width(1 << 22), 1 << 22, "an hour");
        assert_eq!(width(1 << 28), 1 << 28, "three days");
    }

    #[test]
    fn a_wide_slot_that_begins_just_ahead_is_open() {
        let now = Timestamp((1 << 34) - 1);
        let window = Window::of(now, Timestamp(1 << 34));
        assert_eq!(window, Window { from: Timestamp(1 << 34), until: Timestamp(2 << 34) });
        assert!(window.opens_at() <= now);
    }

    proptest! {
        #[test]
        fn what_is_due_is_in_its_slot_and_goes_into_finer_ones(now in 0_u64..1 << 45, wait in 0_u64..1 << 40) {
            let due = Timestamp(now + wait);
            let window = Window::of(Timestamp(now), due);
            prop_assert!(window.from <= due && due < window.until);
            // It is not much wider than what is in it is far away, or it is open: it begins just ahead.
            let is_narrow = window.until.0 - window.from.0 <= wait.max(1 << 10) * 64;
            prop_assert!(is_narrow || window.opens_at().0 <= now);
            // When the slot opens, what is in it is moved into a finer one.
            prop_assert!(window.opens_at() <= window.from && window.closes_at() <= window.until);
            if window.is_coarse() {
                let finer = Window::of(window.from, due);
                prop_assert!(finer.from >= window.from && finer.until <= window.until);
                prop_assert!(finer.until.0 - finer.from.0 < window.until.0 - window.from.0);
            }
        }

        #[test]
        fn there_are_64_slots_of_a_width_at_most(now in 0_u64..1 << 45, waits in prop::collection::vec(0_u64..1 << 40, 500)) {
            let windows: std::collections::BTreeSet<Window> =
                waits.iter().map(|wait| Window::of(Timestamp(now), Timestamp(now + wait))).collect();
            let mut of_width = std::collections::BTreeMap::new();
            for window in windows {
                *of_width.entry(window.until.0 - window.from.0).or_insert(0) += 1;
            }
            prop_assert!(of_width.values().all(|count| *count <= 64));
        }

        #[test]
        fn no_time_is_too_far(now in any::<u64>(), due in any::<u64>()) {
            let window = Window::of(Timestamp(now), Timestamp(due));
            prop_assert!(window.from.0 <= due && (due < window.until.0 || window.until.0 == u64::MAX));
        }
    }
}
