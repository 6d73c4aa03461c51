//! Every order of the steps of a takeover: a master and two takers, each paused or dead anywhere.
//!
//! The steps are those of `batonmq::ha` and of a store that is opened with an epoch, named like its functions. The
//! lock is left out, as on storage where locks do not exclude. A paused process is one that takes no step while the
//! others do; a dead one is known to be dead, as on the same host, so that the next master may recover in place.
//!
//! What must hold in every state: each confirmed record is in the log that readers follow; an epoch has one owner; no
//! two living processes recover or write one database in place; and nothing is removed that readers need.
//!
//! The first record of a master also settles everything before it: once it counts, the files of lower epochs may go.
//!
//! The same model, with one rule broken, must find a violation: so each rule is needed, and the model can see.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// The master has epoch 1, and each taker claims at most once.
const EPOCHS: usize = 3;

/// Processes. Number 0 is the master of epoch 1.
const PROCESSES: usize = 3;

/// Records that the master of each epoch writes.
const RECORDS: PerEpoch<u8> = [0, 2, 1, 1];

/// One value for each epoch; index 0 is not used.
type PerEpoch<T> = [T; EPOCHS + 1];

const FIRST_MANIFEST: Manifest = Manifest { sealed: [0; EPOCHS + 1], database: 1 };

/// The rules, or the rules with one of them broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    AsWritten,
    /// The next epoch is 1 + that of `control`, whatever was claimed.
    NextEpochFromControlAlone,
    /// Of the lower epochs only the one that `control` names is sealed.
    SealOnlyTheEpochInControl,
    NoSecondLook,
    /// One block for all, so that a late release lands on the successor's.
    ReleaseOverSuccessor,
    CheckBeforeWrite,
    /// The tails are read, and then the epoch is claimed.
    ScanBeforeClaim,
    /// Only the last epoch is asked whether its owner is dead.
    OnlyTheLastPredecessor,
    /// Which lower epochs may write is taken from the look before the claim.
    PredecessorFromTheFirstLook,
    /// What was recovered is told to those who send it again, before the fence was checked.
    AnswerBeforeCheck,
    /// Settled files are removed once that is durable, before the fence was checked.
    UnlinkBeforeCheck,
    /// Before a copy, every database goes that the newest manifest does not name, whoever may be making it.
    RemoveCopiesOfTheLiving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Look,
    Claim,
    WriteBlock,
    SecondLook,
    ReadManifest,
    /// Removes copies that never served, and will read tails from this epoch on.
    RemoveAbandoned(usize),
    /// Reads how much there is of this epoch. In place, the database is written meanwhile.
    ReadTail(usize),
    SealCheck,
    WriteManifest,
    AnswerCheck,
    /// Tells those who send records again that they are stored.
    Answer,
    Append,
    Sync,
    Check,
    Confirm,
    Unlink,
    ReleaseCheck,
    WriteRelease,
    /// It has ended by itself and takes no step any more.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Manifest {
    /// Records that count of each lower epoch.
    sealed: PerEpoch<u8>,
    /// The epoch that made the database which counts.
    database: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Block {
    owner: usize,
    is_released: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Disk {
    claimed: PerEpoch<bool>,
    blocks: PerEpoch<Option<Block>>,
    manifests: PerEpoch<Option<Manifest>>,
    /// Records of an epoch that were written, and those that survive anything.
    written: PerEpoch<u8>,
    durable: PerEpoch<u8>,
    /// Which epoch has settled and removed the records of an epoch; 0 where none has.
    unlinked: PerEpoch<usize>,
    /// The databases that were removed, by the epoch that made them.
    removed: PerEpoch<bool>,
    /// The one block of the rules that have one: whose epoch it names.
    slot: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    is_alive: bool,
    step: Step,
    epoch: usize,
    /// The lower epochs whose owner is not known to be gone.
    unknown: PerEpoch<bool>,
    /// What it will write as its manifest.
    manifest: Manifest,
    /// The database in the manifest that it read.
    source: usize,
    /// Its own records that were synced before its last check.
    checked: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    disk: Disk,
    processes: [Process; PROCESSES],
    /// Records of each epoch that somebody was told are stored.
    confirmed: PerEpoch<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Die(usize),
    /// The process takes its next step.
    Go(usize),
    /// The process reads a tail and finds this many records.
    Read(usize, u8),
    /// The process stops writing and begins to release.
    Drain(usize),
}

impl State {
    /// The highest epoch that has a block.
    fn highest_block(&self, rules: Rules) -> usize {
        match rules {
            Rules::ReleaseOverSuccessor => self.disk.slot,
            _ => highest_of(&self.disk.blocks),
        }
    }

    /// The highest epoch of all claims and blocks.
    fn highest(&self, rules: Rules) -> usize {
        let claimed = self.disk.claimed.iter().rposition(|&claimed| claimed).unwrap_or(0);
        claimed.max(self.highest_block(rules))
    }

    /// The lower epochs that wrote a block and whose owner may write.
    fn unknown_below(&self, epoch: usize, rules: Rules) -> PerEpoch<bool> {
        let mut unknown = [false; EPOCHS + 1];
        for (lower, unknown) in unknown.iter_mut().enumerate().take(epoch).skip(1) {
            *unknown = self.disk.blocks[lower]
                .is_some_and(|block| !block.is_released && self.processes[block.owner].is_alive);
        }
        if rules == Rules::OnlyTheLastPredecessor {
            unknown[..highest_of(&self.disk.blocks[..epoch])].fill(false);
        }
        unknown
    }

    /// Whether the fence of the process holds.
    fn passes(&self, index: usize, rules: Rules) -> bool {
        let epoch = self.processes[index].epoch;
        let is_own = rules == Rules::ReleaseOverSuccessor
            || self.disk.blocks[epoch].is_some_and(|block| block.owner == index);
        is_own && self.highest_block(rules) <= epoch
    }

    fn write_block(&mut self, index: usize, is_released: bool) {
        let epoch = self.processes[index].epoch;
        self.disk.blocks[epoch] = Some(Block { owner: index, is_released });
        self.disk.slot = epoch;
    }

    /// The process takes its next step; `tail` is what it finds where that is the reading of a tail.
    fn go(&mut self, index: usize, tail: u8, rules: Rules) {
        let epoch = self.processes[index].epoch;
        let next = match self.processes[index].step {
            Step::Look => self.look(index, rules),
            Step::Claim if self.disk.claimed[epoch] && rules != Rules::NextEpochFromControlAlone => {
                Step::Look
            }
            Step::Claim => {
                self.disk.claimed[epoch] = true;
                Step::WriteBlock
            }
            Step::WriteBlock => {
                self.write_block(index, false);
                Step::SecondLook
            }
            Step::SecondLook => self.second_look(index, rules),
            Step::ReadManifest => self.read_manifest(index),
            Step::RemoveAbandoned(newest) => {
                self.remove_abandoned(index, rules);
                Step::ReadTail(newest)
            }
            Step::ReadTail(lower) => self.read_tail(index, lower, tail, rules),
            Step::SealCheck if self.passes(index, rules) => Step::WriteManifest,
            Step::SealCheck => {
                // Its own copy, which no manifest will name.
                self.disk.removed[epoch] |= self.processes[index].manifest.database == epoch;
                Step::Ended
            }
            Step::WriteManifest => {
                self.disk.manifests[epoch] = Some(self.processes[index].manifest);
                if rules == Rules::AnswerBeforeCheck { Step::Answer } else { Step::AnswerCheck }
            }
            Step::AnswerCheck if self.passes(index, rules) => Step::Answer,
            Step::AnswerCheck => Step::Ended,
            Step::Answer => {
                for lower in 1..epoch {
                    let stored = self.processes[index].manifest.sealed[lower];
                    self.confirmed[lower] = self.confirmed[lower].max(stored);
                }
                first_step_of_a_commit(rules)
            }
            Step::Append => {
                self.disk.written[epoch] += 1;
                Step::Sync
            }
            Step::Sync => {
                self.disk.durable[epoch] = self.disk.written[epoch];
                match rules {
                    Rules::CheckBeforeWrite => Step::Confirm,
                    Rules::UnlinkBeforeCheck => Step::Unlink,
                    _ => Step::Check,
                }
            }
            Step::Check if !self.passes(index, rules) => Step::Ended,
            Step::Check => {
                self.processes[index].checked = self.disk.durable[epoch];
                if rules == Rules::CheckBeforeWrite { Step::Append } else { Step::Confirm }
            }
            Step::Confirm => {
                self.confirmed[epoch] = match rules {
                    Rules::CheckBeforeWrite => self.disk.durable[epoch],
                    _ => self.processes[index].checked,
                };
                if rules == Rules::UnlinkBeforeCheck { Step::Append } else { Step::Unlink }
            }
            Step::Unlink => {
                for lower in 1..epoch {
                    if self.disk.unlinked[lower] == 0 {
                        self.disk.unlinked[lower] = epoch;
                    }
                    self.disk.removed[lower] |= lower != self.processes[index].manifest.database;
                }
                if rules == Rules::UnlinkBeforeCheck { Step::Check } else { first_step_of_a_commit(rules) }
            }
            Step::ReleaseCheck if self.passes(index, rules) => Step::WriteRelease,
            Step::ReleaseCheck => Step::Ended,
            Step::WriteRelease => {
                self.write_block(index, true);
                Step::Ended
            }
            Step::Ended => Step::Ended,
        };
        self.processes[index].step = next;
    }

    fn look(&mut self, index: usize, rules: Rules) -> Step {
        let highest = match rules {
            Rules::NextEpochFromControlAlone => self.highest_block(rules),
            _ => self.highest(rules),
        };
        self.processes[index].epoch = highest + 1;
        self.processes[index].unknown = self.unknown_below(highest + 1, rules);
        if rules == Rules::ScanBeforeClaim { Step::ReadManifest } else { Step::Claim }
    }

    fn second_look(&mut self, index: usize, rules: Rules) -> Step {
        let epoch = self.processes[index].epoch;
        if rules != Rules::NoSecondLook && self.highest(rules) > epoch {
            return Step::Ended;
        }
        if rules != Rules::PredecessorFromTheFirstLook {
            self.processes[index].unknown = self.unknown_below(epoch, rules);
        }
        if rules == Rules::ScanBeforeClaim { Step::SealCheck } else { Step::ReadManifest }
    }

    fn read_manifest(&mut self, index: usize) -> Step {
        let process = &mut self.processes[index];
        let newest = highest_of(&self.disk.manifests);
        let Some(manifest) = self.disk.manifests[newest].filter(|_| newest < process.epoch) else {
            return Step::Ended;
        };
        // In place where nobody else can still write that database, into a copy otherwise.
        let may_write = process.unknown[manifest.database..].contains(&true);
        let database = if may_write { process.epoch } else { manifest.database };
        process.manifest = Manifest { database, ..manifest };
        process.source = manifest.database;
        if may_write { Step::RemoveAbandoned(newest) } else { Step::ReadTail(newest) }
    }

    fn remove_abandoned(&mut self, index: usize, rules: Rules) {
        let Process { epoch, source, unknown, .. } = self.processes[index];
        for (lower, removed) in self.disk.removed.iter_mut().enumerate().take(epoch).skip(1) {
            let is_gone = !unknown[lower] && self.disk.blocks[lower].is_some();
            *removed |= lower != source && (is_gone || rules == Rules::RemoveCopiesOfTheLiving);
        }
    }

    fn read_tail(&mut self, index: usize, lower: usize, tail: u8, rules: Rules) -> Step {
        let process = &mut self.processes[index];
        if self.disk.removed[process.source] {
            return Step::Ended;
        }
        let named = highest_of(&self.disk.blocks[..process.epoch]);
        let is_left_out = rules == Rules::SealOnlyTheEpochInControl && lower != named;
        process.manifest.sealed[lower] = if is_left_out { 0 } else { tail };
        match (lower + 1 < process.epoch, rules) {
            (true, _) => Step::ReadTail(lower + 1),
            (false, Rules::ScanBeforeClaim) => Step::Claim,
            (false, _) => Step::SealCheck,
        }
    }
}

impl Process {
    const NEW: Self = Self {
        is_alive: true,
        step: Step::Look,
        epoch: 0,
        unknown: [false; EPOCHS + 1],
        manifest: FIRST_MANIFEST,
        source: 1,
        checked: 0,
    };

    /// It has opened the store and may write to it.
    fn has_store_open(&self) -> bool {
        use Step::{Claim, Ended, Look, ReadManifest, RemoveAbandoned, SecondLook, WriteBlock};
        let is_before = matches!(
            self.step,
            Look | Claim
                | WriteBlock
                | SecondLook
                | ReadManifest
                | RemoveAbandoned(_)
                | Ended
                | Step::WriteRelease
        );
        self.is_alive && !is_before
    }
}

fn first_step_of_a_commit(rules: Rules) -> Step {
    if rules == Rules::CheckBeforeWrite { Step::Check } else { Step::Append }
}

/// The highest epoch that has a value, 0 where none has.
fn highest_of<T>(values: &[Option<T>]) -> usize {
    values.iter().rposition(Option::is_some).unwrap_or(0)
}

struct Takeover(Rules);

impl Model for Takeover {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let master = Process { step: first_step_of_a_commit(self.0), epoch: 1, ..Process::NEW };
        let disk = Disk {
            claimed: [false, true, false, false],
            blocks: [None, Some(Block { owner: 0, is_released: false }), None, None],
            manifests: [None, Some(FIRST_MANIFEST), None, None],
            written: [0; EPOCHS + 1],
            durable: [0; EPOCHS + 1],
            unlinked: [0; EPOCHS + 1],
            removed: [false; EPOCHS + 1],
            slot: 1,
        };
        vec![State { disk, processes: [master, Process::NEW, Process::NEW], confirmed: [0; EPOCHS + 1] }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, process) in state.processes.iter().enumerate() {
            if !process.is_alive || process.step == Step::Ended {
                continue;
            }
            // Without a block there is nobody who asks whether it is dead, and dead is the same as paused.
            if state.disk.blocks.iter().flatten().any(|block| block.owner == index) {
                actions.push(Action::Die(index));
            }
            let is_between_commits = process.step == first_step_of_a_commit(self.0);
            if is_between_commits {
                actions.push(Action::Drain(index));
            }
            if let Step::ReadTail(lower) = process.step {
                // What was not synced may be there or not.
                let found = state.disk.durable[lower]..=state.disk.written[lower];
                actions.extend(found.map(|tail| Action::Read(index, tail)));
            } else if !is_between_commits || state.disk.written[process.epoch] < RECORDS[process.epoch] {
                actions.push(Action::Go(index));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut state = state.clone();
        match action {
            Action::Die(index) => state.processes[index].is_alive = false,
            Action::Go(index) => state.go(index, 0, self.0),
            Action::Read(index, tail) => state.go(index, tail, self.0),
            Action::Drain(index) => state.processes[index].step = Step::ReleaseCheck,
        }
        for process in &mut state.processes {
            if !process.is_alive || process.step == Step::Ended {
                // What it knew is of no consequence: states that differ only in that are one.
                *process = Process { is_alive: process.is_alive, step: Step::Ended, ..Process::NEW };
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(CONFIRMED_IS_READ, |_, state: &State| {
                let newest = highest_of(&state.disk.manifests);
                let sealed = state.disk.manifests[newest].map_or([0; EPOCHS + 1], |manifest| manifest.sealed);
                (1..newest).all(|epoch| state.confirmed[epoch] <= sealed[epoch])
            }),
            Property::always(SETTLED_IS_KNOWN, |_, state: &State| {
                let newest = highest_of(&state.disk.manifests);
                let Some(manifest) = state.disk.manifests[newest] else { return true };
                let knows = |&by: &usize| by == 0 || by == newest || manifest.sealed[by] > 0;
                state.disk.unlinked.iter().all(knows)
            }),
            Property::always(DATABASE_IS_THERE, |_, state: &State| {
                let newest = highest_of(&state.disk.manifests);
                state.disk.manifests[newest].is_none_or(|manifest| !state.disk.removed[manifest.database])
            }),
            Property::always(ONE_OWNER, |_, state: &State| {
                at_most_one(state, |process, epoch| process.epoch == epoch)
            }),
            Property::always(ONE_WRITER_OF_A_DATABASE, |_, state: &State| {
                at_most_one(state, |process, epoch| process.manifest.database == epoch)
            }),
            Property::sometimes("all three serve and confirm everything", |_, state: &State| {
                state.confirmed == RECORDS
            }),
            Property::sometimes("a database is taken over in place", |_, state: &State| {
                state.disk.manifests[3].is_some_and(|manifest| manifest.database < 3)
            }),
            Property::sometimes("a database is copied", |_, state: &State| {
                state.disk.manifests[3].is_some_and(|manifest| manifest.database == 3)
            }),
            Property::sometimes("a dead taker's copy is removed before the next copy", |_, state: &State| {
                state.disk.removed[2]
                    && state.disk.manifests[2].is_none()
                    && state.disk.manifests[3].is_some()
            }),
            Property::sometimes("unsynced records are sealed", |_, state: &State| {
                state.disk.manifests[2].is_some_and(|manifest| manifest.sealed[1] > state.disk.durable[1])
            }),
        ]
    }
}

/// Whether for each epoch at most one living process with the store open fits it.
fn at_most_one(state: &State, fits: fn(&Process, usize) -> bool) -> bool {
    let open: Vec<_> = state.processes.iter().filter(|process| process.has_store_open()).collect();
    (1..=EPOCHS).all(|epoch| open.iter().filter(|process| fits(process, epoch)).count() <= 1)
}

const CONFIRMED_IS_READ: &str = "every confirmed record is in the log that readers follow";
const SETTLED_IS_KNOWN: &str = "what was settled and removed is settled for readers";
const DATABASE_IS_THERE: &str = "the database that readers follow is there";
const ONE_OWNER: &str = "an epoch has one owner";
const ONE_WRITER_OF_A_DATABASE: &str = "a database has one living writer";

/// Asserts that breaking a rule breaks this property.
fn breaks(rules: Rules, property: &'static str) {
    let wanted = HasDiscoveries::AllOf([property].into());
    let checker = Takeover(rules).checker().finish_when(wanted).spawn_bfs().join();
    let found = checker.discovery(property);
    assert!(found.is_some(), "{rules:?}: {} states and no violation of: {property}", checker.state_count());
}

#[test]
fn the_rules_as_written_lose_nothing_in_any_order() {
    let checker = Takeover(Rules::AsWritten).checker().spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 100_000, "the model became too small to say anything");
}

#[test]
fn the_next_epoch_from_control_alone_gives_one_epoch_two_owners() {
    breaks(Rules::NextEpochFromControlAlone, ONE_OWNER);
}

#[test]
fn sealing_only_the_epoch_in_control_loses_confirmed_records() {
    breaks(Rules::SealOnlyTheEpochInControl, CONFIRMED_IS_READ);
}

#[test]
fn without_the_second_look_two_write_one_database() {
    breaks(Rules::NoSecondLook, ONE_WRITER_OF_A_DATABASE);
}

#[test]
fn a_release_over_a_successor_loses_confirmed_records() {
    breaks(Rules::ReleaseOverSuccessor, CONFIRMED_IS_READ);
}

#[test]
fn a_check_before_the_write_loses_confirmed_records() {
    breaks(Rules::CheckBeforeWrite, CONFIRMED_IS_READ);
}

#[test]
fn a_scan_before_the_claim_loses_confirmed_records() {
    breaks(Rules::ScanBeforeClaim, CONFIRMED_IS_READ);
}

#[test]
fn asking_only_the_last_predecessor_lets_two_write_one_database() {
    breaks(Rules::OnlyTheLastPredecessor, ONE_WRITER_OF_A_DATABASE);
}

#[test]
fn asking_for_predecessors_before_the_claim_lets_two_write_one_database() {
    breaks(Rules::PredecessorFromTheFirstLook, ONE_WRITER_OF_A_DATABASE);
}

#[test]
fn an_answer_to_a_resend_before_the_check_confirms_what_is_lost() {
    breaks(Rules::AnswerBeforeCheck, CONFIRMED_IS_READ);
}

#[test]
fn an_unlink_before_the_check_removes_what_is_not_settled() {
    breaks(Rules::UnlinkBeforeCheck, SETTLED_IS_KNOWN);
}

#[test]
fn removing_copies_of_the_living_removes_one_that_readers_follow() {
    breaks(Rules::RemoveCopiesOfTheLiving, DATABASE_IS_THERE);
}
