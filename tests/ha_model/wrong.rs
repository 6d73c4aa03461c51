//! The wrong orders, and each guard taken away: what the model finds to be broken then.

use super::SMALL;
use super::exploring::assert_breaks;
use super::properties::{
    CONFIRMED_HAS_BEGUN, CONFIRMED_IS_SEALED, LOG_IS_WHOLE, NOT_TAKEN_FOR_DAMAGED, NOTHING_OVERWRITTEN,
    ONE_OWNER, ONE_WRITER,
};
use super::setting::{Mode, Rules, Size};

fn breaks_files(rules: Rules, property: &'static str) {
    assert_breaks(Mode::File, SMALL, rules, property);
}

fn breaks_databases(rules: Rules, property: &'static str) {
    assert_breaks(Mode::Database, SMALL, rules, property);
}

fn breaks_both(rules: Rules, property: &'static str) {
    breaks_files(rules, property);
    breaks_databases(rules, property);
}

// The order of a confirm.

#[test]
fn without_a_fence_confirmed_records_are_lost() {
    breaks_both(Rules::NoFence, CONFIRMED_IS_SEALED);
}

#[test]
fn a_check_before_the_write_loses_confirmed_records() {
    breaks_both(Rules::CheckBeforeWrite, CONFIRMED_IS_SEALED);
}

#[test]
fn a_check_before_the_sync_is_over_loses_confirmed_records() {
    breaks_both(Rules::CheckBeforeSync, CONFIRMED_IS_SEALED);
}

#[test]
fn a_check_on_a_timer_loses_confirmed_records() {
    breaks_both(Rules::CheckOnATimer, CONFIRMED_IS_SEALED);
}

#[test]
fn a_duplicate_answered_from_memory_before_the_check_confirms_what_is_lost() {
    breaks_both(Rules::DuplicateBeforeCheck, CONFIRMED_IS_SEALED);
}

#[test]
fn what_was_recovered_and_is_told_before_the_check_is_lost() {
    breaks_both(Rules::RecoveredBeforeCheck, CONFIRMED_IS_SEALED);
}

// The claim.

#[test]
fn a_scan_before_the_claim_loses_confirmed_records() {
    breaks_both(Rules::ScanBeforeClaim, CONFIRMED_IS_SEALED);
}

#[test]
fn a_scan_before_the_block_loses_confirmed_records() {
    breaks_both(Rules::ScanBeforeBlock, CONFIRMED_IS_SEALED);
}

#[test]
fn the_next_epoch_from_control_alone_gives_one_epoch_two_owners() {
    breaks_both(Rules::NextEpochFromControlAlone, ONE_OWNER);
}

#[test]
fn a_claim_that_excludes_nobody_gives_one_epoch_two_owners() {
    breaks_both(Rules::ClaimWithoutExclusion, ONE_OWNER);
}

#[test]
fn without_the_second_look_two_write_one_database() {
    breaks_databases(Rules::NoSecondLook, ONE_WRITER);
}

#[test]
fn asking_for_predecessors_before_the_claim_lets_two_write_one_database() {
    breaks_databases(Rules::PredecessorsFromTheFirstLook, ONE_WRITER);
}

#[test]
fn asking_only_the_last_predecessor_lets_two_write_one_database() {
    breaks_databases(Rules::OnlyTheLastPredecessor, ONE_WRITER);
}

// The control file.

#[test]
fn one_block_for_all_is_overwritten_by_a_late_release_and_loses_confirmed_records() {
    breaks_files(Rules::OneBlockForAll, NOTHING_OVERWRITTEN);
    breaks_files(Rules::OneBlockForAll, CONFIRMED_IS_SEALED);
}

#[test]
fn two_blocks_in_turns_are_overwritten_and_lose_confirmed_records() {
    breaks_files(Rules::TwoBlocksInTurns, NOTHING_OVERWRITTEN);
    breaks_files(Rules::TwoBlocksInTurns, CONFIRMED_IS_SEALED);
}

// The seal.

#[test]
fn sealing_only_the_epoch_in_control_loses_confirmed_records() {
    breaks_files(Rules::SealOnlyTheEpochInControl, CONFIRMED_IS_SEALED);
}

#[test]
fn a_seal_of_what_is_not_synced_promises_what_may_vanish() {
    breaks_files(Rules::SealWithoutSync, CONFIRMED_IS_SEALED);
}

#[test]
fn one_manifest_for_all_is_overwritten_by_a_late_seal() {
    breaks_both(Rules::OneManifestForAll, NOTHING_OVERWRITTEN);
    breaks_files(Rules::OneManifestForAll, CONFIRMED_IS_SEALED);
}

#[test]
fn a_file_of_an_older_epoch_that_is_cut_late_loses_what_was_sealed() {
    breaks_files(Rules::CutTheTail, CONFIRMED_IS_SEALED);
}

#[test]
fn a_journal_without_the_epoch_in_its_name_is_overwritten() {
    breaks_files(Rules::OneJournalForAll, NOTHING_OVERWRITTEN);
}

#[test]
fn a_folder_that_is_listed_after_the_manifest_is_taken_for_damaged() {
    breaks_files(Rules::ListAfterManifest, NOT_TAKEN_FOR_DAMAGED);
}

#[test]
fn a_checkpoint_of_what_was_not_sealed_answers_for_records_that_are_lost() {
    breaks_files(Rules::AnyCheckpoint, CONFIRMED_IS_SEALED);
}

#[test]
fn a_database_used_in_place_beside_a_zombie_is_overwritten() {
    breaks_databases(Rules::AlwaysInPlace, ONE_WRITER);
    breaks_databases(Rules::AlwaysInPlace, NOTHING_OVERWRITTEN);
}

#[test]
fn removing_copies_of_the_living_removes_one_that_readers_follow() {
    breaks_databases(Rules::RemoveCopiesOfTheLiving, LOG_IS_WHOLE);
}

/// It takes three takers: one that seals late, one that then removes what that one copied, and one that copies it.
#[test]
fn removing_abandoned_copies_without_a_check_takes_a_database_from_under_a_successor() {
    let size = Size { takers: 3, records: [0; _] };
    assert_breaks(Mode::Database, size, Rules::NoCheckBeforeAbandoned, NOT_TAKEN_FOR_DAMAGED);
}

// The beginning.

#[test]
fn a_beginning_before_the_first_segment_is_taken_for_damage() {
    breaks_files(Rules::BeginBeforeSegment, NOT_TAKEN_FOR_DAMAGED);
}

#[test]
fn a_beginning_that_is_looked_for_after_the_list_is_taken_for_damage() {
    breaks_files(Rules::BegunAfterListing, NOT_TAKEN_FOR_DAMAGED);
}

#[test]
fn without_a_beginning_nothing_says_that_what_was_confirmed_must_be_there() {
    breaks_both(Rules::NobodyBegins, CONFIRMED_HAS_BEGUN);
}

// The upkeep.

#[test]
fn a_removal_without_a_check_takes_what_readers_need() {
    breaks_files(Rules::RemoveBeforeCheck, LOG_IS_WHOLE);
    breaks_databases(Rules::RemoveBeforeCheck, NOT_TAKEN_FOR_DAMAGED);
}

#[test]
fn a_removal_before_the_checkpoint_takes_what_readers_need() {
    breaks_files(Rules::RemoveBeforeCheckpoint, LOG_IS_WHOLE);
}

// Stale reads.

#[test]
fn a_stale_second_look_lets_two_write_one_database() {
    breaks_databases(Rules::StaleSecondLook, ONE_WRITER);
}

#[test]
fn a_stale_manifest_is_taken_for_damage() {
    // The block of an epoch that has begun, and in file mode its files, show that there must be a newer one.
    breaks_both(Rules::StaleManifest, NOT_TAKEN_FOR_DAMAGED);
}

#[test]
fn a_stale_tail_loses_confirmed_records() {
    breaks_both(Rules::StaleTail, CONFIRMED_IS_SEALED);
}

#[test]
fn a_stale_fence_loses_confirmed_records() {
    breaks_both(Rules::StaleFence, CONFIRMED_IS_SEALED);
}
