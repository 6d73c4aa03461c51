//! Every order of the steps of a takeover: a master and two takers, each paused or dead anywhere.
//!
//! The steps are those of `batonmq::ha` and of a store that is opened with an epoch, named like its functions. The
//! lock is left out, as on storage where locks do not exclude. A paused process is one that takes no step while the
//! others do; a dead one is known to be dead, as on the same host, so that the next master may recover in place.
//!
//! What must hold in every state: each confirmed record is in the log that readers follow; an epoch has one owner;
//! and no two living processes recover or write one database in place.
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Look,
    Claim,
    WriteBlock,
    SecondLook,
    ReadManifest,
    /// Reads how much there is of this epoch.
    ReadTail(usize),
    WriteManifest,
    Append,
    Sync,
    Check,
    Confirm,
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
            Step::ReadTail(lower) => self.read_tail(index, lower, tail, rules),
            Step::WriteManifest => {
                self.disk.manifests[epoch] = Some(self.processes[index].manifest);
                first_step_of_a_commit(rules)
            }
            Step::Append => {
                self.disk.written[epoch] += 1;
                Step::Sync
            }
            Step::Sync => {
                self.disk.durable[epoch] = self.disk.written[epoch];
                if rules == Rules::CheckBeforeWrite { Step::Confirm } else { Step::Check }
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
                first_step_of_a_commit(rules)
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
        if rules == Rules::ScanBeforeClaim { Step::WriteManifest } else { Step::ReadManifest }
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
        Step::ReadTail(newest)
    }

    fn read_tail(&mut self, index: usize, lower: usize, tail: u8, rules: Rules) -> Step {
        let process = &mut self.processes[index];
        let named = highest_of(&self.disk.blocks[..process.epoch]);
        let is_left_out = rules == Rules::SealOnlyTheEpochInControl && lower != named;
        process.manifest.sealed[lower] = if is_left_out { 0 } else { tail };
        match (lower + 1 < process.epoch, rules) {
            (true, _) => Step::ReadTail(lower + 1),
            (false, Rules::ScanBeforeClaim) => Step::Claim,
            (false, _) => Step::WriteManifest,
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
        checked: 0,
    };

    /// It has opened the store and may write to it.
    fn has_store_open(&self) -> bool {
        use Step::{Append, Check, Confirm, ReleaseCheck, Sync, WriteManifest};
        let opened = matches!(self.step, WriteManifest | Append | Sync | Check | Confirm | ReleaseCheck);
        self.is_alive && opened
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
    assert!(checker.unique_state_count() > 8_000, "the model became too small to say anything");
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
