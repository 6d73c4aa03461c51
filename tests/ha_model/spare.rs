//! What a rule does not do: rules that could be broken without loss, because another one stands behind them, and what a
//! lock that excludes hides.

use super::MODES;
use super::exploring::assert_is_spare;
use super::setting::{Locks, Mode, Rules, Size};

const SIZE: Size = Size { takers: 2, records: [0, 1, 1, 0, 0] };

/// Whoever looks at claims from before finds the number taken, since a claim is made by an exclusive creation.
#[test]
fn a_stale_first_look_costs_another_look() {
    for mode in MODES {
        assert_is_spare(mode, Locks::Lie, SIZE, Rules::StaleLook);
    }
}

/// Nobody writes to the file of another epoch, readers follow the newest manifest, and the fence keeps confirms back.
#[test]
fn files_are_safe_without_the_second_look() {
    for rules in [Rules::NoSecondLook, Rules::StaleSecondLook] {
        assert_is_spare(Mode::File, Locks::Lie, SIZE, rules);
    }
}

/// A manifest of a lower epoch is one that nobody follows.
#[test]
fn a_copy_is_safe_without_the_check_before_its_manifest() {
    assert_is_spare(Mode::Database, Locks::Lie, SIZE, Rules::NoCheckBeforeManifest);
}

/// As long as the lock keeps its word, no wrong order shows: a test on one host says nothing about them.
#[test]
fn a_lock_that_excludes_hides_every_wrong_order() {
    for mode in MODES {
        for rules in [Rules::NoFence, Rules::CheckBeforeWrite, Rules::CheckOnATimer, Rules::ScanBeforeClaim] {
            assert_is_spare(mode, Locks::Exclude, SIZE, rules);
        }
    }
}
