//! Store time: a clock that never runs backwards and does not follow jumps of the host's clock.
//!
//! It runs with monotonic time. Where the host's clock is ahead by up to [`JUMP_MS_MAX`] it is followed at once;
//! where it is further ahead, only after monotonic time has passed for [`CONFIRM_MS`] with the clock still there.
//! Where it is behind, store time goes on at half speed until the host's clock has caught up.
//!
//! A takeover is no different: a standby that has followed the master knows about what store time it is, and a clock of its
//! own that is far ahead of that is a jump like any other. Where no master was followed the host's clock is all there is.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::disk::world;
use crate::model::time::{Sighting, Timestamp};

/// Largest step of the host's clock that is followed at once, in milliseconds.
const JUMP_MS_MAX: u64 = 60_000;
/// How long the host's clock must have been ahead by more than that before it is believed, in milliseconds.
const CONFIRM_MS: u64 = 300_000;

/// Store time of a master.
#[derive(Debug)]
pub struct Clock {
    /// Where the time is asked for.
    place: PathBuf,
    started: Instant,
    state: State,
}

/// The part that reads no clock.
#[derive(Debug)]
struct State {
    /// Store time, in milliseconds since 1970.
    time: u64,
    /// Monotonic time of the last step, in milliseconds.
    monotonic: u64,
    /// Since when the host's clock has been far ahead, in monotonic milliseconds.
    far_ahead_since: Option<u64>,
    /// A half millisecond left over from running at half speed.
    half: u64,
}

impl Clock {
    /// A clock that goes on from `last`, the highest store time in the store at `place`. `seen` is what the master before
    /// it had, where that is known.
    #[must_use]
    pub fn starting_after(last: Timestamp, seen: Option<Sighting>, place: &Path) -> Self {
        let started = world::now(place);
        let state = State::starting_after(last.0, seen.map(|seen| seen.at(started).0), wall_ms(place));
        if state.far_ahead_since.is_some() {
            let ahead = Duration::from_millis(wall_ms(place).saturating_sub(state.time));
            tracing::warn!(
                "the clock of this host is {ahead:?} ahead of that of the master before; it is believed in {:?}, if it \
                 still says so: correct it until then, or messages expire and delayed ones come early",
                Duration::from_millis(CONFIRM_MS)
            );
        }
        Self { place: place.to_owned(), started, state }
    }

    /// The store time.
    pub fn now(&mut self) -> Timestamp {
        let elapsed = self.instant().saturating_duration_since(self.started);
        let monotonic = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        self.state.step(monotonic, wall_ms(&self.place))
    }

    /// Monotonic time.
    pub fn instant(&self) -> Instant {
        world::now(&self.place)
    }

    /// Where the time is asked for.
    pub fn place(&self) -> &Path {
        &self.place
    }
}

impl State {
    /// Where the store time is at least `last`, and should be about `expected`.
    fn starting_after(last: u64, expected: Option<u64>, wall: u64) -> Self {
        let expected = expected.map(|expected| expected.max(last));
        let jumped = expected.filter(|expected| wall > expected.saturating_add(JUMP_MS_MAX));
        let time = jumped.unwrap_or_else(|| last.max(wall));
        Self { time, monotonic: 0, far_ahead_since: jumped.map(|_| 0), half: 0 }
    }

    fn step(&mut self, monotonic: u64, wall: u64) -> Timestamp {
        let elapsed = monotonic.saturating_sub(self.monotonic);
        self.monotonic = monotonic;
        let straight = self.time + elapsed;
        if wall > straight + JUMP_MS_MAX {
            let since = *self.far_ahead_since.get_or_insert(monotonic);
            self.time = if monotonic - since >= CONFIRM_MS { wall } else { straight };
        } else {
            self.far_ahead_since = None;
            if wall >= straight {
                self.time = wall;
            } else {
                let halves = elapsed + self.half;
                self.time += halves / 2;
                self.half = halves % 2;
            }
        }
        Timestamp(self.time)
    }
}

/// Milliseconds since 1970 by the clock of the host, as the store at `place` has it.
pub(super) fn wall_ms(place: &Path) -> u64 {
    let since = world::wall(place).duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State { time: 1_000_000, monotonic: 0, far_ahead_since: None, half: 0 }
    }

    /// A successor whose clock was two hours ahead let what was to expire within two hours expire at once.
    #[test]
    fn a_successor_whose_clock_is_far_ahead_waits_as_after_a_jump() {
        let day = 86_400_000;
        let mut ahead = State::starting_after(1_000_000, Some(1_005_000), 1_005_000 + day);
        assert_eq!(ahead.time, 1_005_000);
        assert_eq!(ahead.step(10, 1_005_010 + day), Timestamp(1_005_010));
        assert_eq!(
            ahead.step(CONFIRM_MS, 1_305_000 + day),
            Timestamp(1_305_000 + day),
            "it is believed in the end"
        );

        let near = State::starting_after(1_000_000, Some(1_005_000), 1_005_000 + JUMP_MS_MAX);
        assert_eq!((near.time, near.far_ahead_since), (1_005_000 + JUMP_MS_MAX, None));
        let behind = State::starting_after(1_000_000, Some(1_005_000), 900_000);
        assert_eq!((behind.time, behind.far_ahead_since), (1_000_000, None));
        let outdated = State::starting_after(2_000_000, Some(1_005_000), 2_000_001);
        assert_eq!((outdated.time, outdated.far_ahead_since), (2_000_001, None));
        let unknown = State::starting_after(1_000_000, None, 1_000_000 + day);
        assert_eq!((unknown.time, unknown.far_ahead_since), (1_000_000 + day, None));
    }

    #[test]
    fn store_time_follows_small_steps_forward() {
        let mut state = state();
        assert_eq!(state.step(10, 1_000_010), Timestamp(1_000_010));
        assert_eq!(state.step(20, 1_030_000), Timestamp(1_030_000));
    }

    #[test]
    fn a_clock_set_back_slows_store_time_and_never_turns_it() {
        let mut state = state();
        assert_eq!(state.step(1_000, 500_000), Timestamp(1_000_500));
        assert_eq!(state.step(1_001, 500_001), Timestamp(1_000_500));
        assert_eq!(state.step(1_002, 500_002), Timestamp(1_000_501));
    }

    #[test]
    fn a_jump_of_more_than_a_minute_waits_for_monotonic_time() {
        let mut state = state();
        let year = 365 * 86_400_000;
        assert_eq!(state.step(10, 1_000_010 + year), Timestamp(1_000_010));
        assert_eq!(state.step(10_000, 1_010_000 + year), Timestamp(1_010_000));
        assert_eq!(state.step(CONFIRM_MS + 10, 1_300_010 + year), Timestamp(1_300_010 + year));
    }

    #[test]
    fn a_jump_that_is_taken_back_changes_nothing() {
        let mut state = state();
        state.step(10, 9_000_000);
        assert_eq!(state.step(20, 1_000_020), Timestamp(1_000_020));
        assert_eq!(state.step(CONFIRM_MS + 20, 9_999_999), Timestamp(1_300_020));
    }
}
