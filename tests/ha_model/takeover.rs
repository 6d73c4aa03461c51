//! The model: every order in which the processes of a setting can take their steps.

use stateright::{Model, Property};

use super::disk::Presence;
use super::process::{Process, Step};
use super::properties;
use super::setting::{Locks, Mode, Rules, Setting};
use super::state::State;
use super::steps::{Sight, Turn};

/// What may happen next, to the process of this number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It takes its next step.
    Go(usize, Sight),
    /// Between two rounds: it begins with this step.
    Begin(usize, Step),
    /// Nobody waits for what it has committed.
    Skip(usize),
    Die(usize),
    LoseLock(usize),
    /// Only with a rule broken: it is asked for something that it has in memory.
    Answer(usize),
    /// Only with a rule broken: its timer goes off, and it checks.
    Timer(usize),
}

impl Setting {
    /// Whether it makes a difference that a process is dead, and not paused for ever.
    fn is_asked_whether_dead(&self, state: &State, index: usize) -> bool {
        match self.mode {
            Mode::Database => state.disk.blocks.iter().flatten().any(|block| block.owner == index),
            // Nobody asks, but the lock may be free then.
            Mode::File => self.locks == Locks::Exclude && state.holder == Some(index),
        }
    }

    /// What a process may do that is between two rounds.
    fn rounds(&self, state: &State, process: &Process) -> Vec<Step> {
        let (written, durable) = state.own(process);
        let begins_with_check = self.rules == Rules::CheckBeforeWrite;
        let mut steps = Vec::new();
        if written < self.size.records[process.epoch] {
            steps.push(if begins_with_check { Step::Check } else { Step::Append });
        }
        if !begins_with_check && state.confirmed[process.epoch] < written {
            // Somebody sends it again, or asks what became of it.
            steps.push(Step::Check);
        }
        let is_last = process.epoch == self.size.takers + 1;
        match self.mode {
            Mode::File => {
                if durable > 0 && state.disk.checkpoints[process.epoch] & 1 << durable == 0 {
                    steps.push(Step::WriteCheckpoint);
                }
                let has_stray = (1..process.epoch).any(|lower| {
                    let is_there = state.disk.files[lower].presence == Presence::There;
                    (is_there && process.manifest.sealed[lower] == 0) || state.disk.manifests[lower].is_some()
                });
                if has_stray {
                    steps.push(Step::CheckRemoval);
                }
                if !is_last {
                    steps.push(Step::CheckRelease);
                }
            }
            Mode::Database => {
                steps.push(if self.rules == Rules::RemoveBeforeCheck {
                    Step::Remove
                } else {
                    Step::CheckRemoval
                });
                if !is_last {
                    steps.push(Step::CheckClose);
                }
            }
        }
        steps
    }

    /// How a process may see the disk in its next step.
    fn sights(&self, state: &State, process: &Process) -> Vec<Sight> {
        let unsynced = match process.step {
            Step::ApplyEpoch | Step::Copy | Step::Recover => {
                let file = &state.disk.files[process.source];
                let lost = file.written.iter().zip(file.durable).map(|(&written, durable)| written - durable);
                lost.max().unwrap_or(0)
            }
            _ => 0,
        };
        let mut sights: Vec<_> = (0..=unsynced).map(|lost| Sight::Fresh { lost }).collect();
        let is_stale = match self.rules {
            Rules::StaleLook => process.step == Step::Look,
            Rules::StaleSecondLook => process.step == Step::SecondLook,
            Rules::StaleManifest => process.step == Step::ReadManifest,
            Rules::StaleTail => matches!(process.step, Step::ApplyEpoch | Step::Copy | Step::Recover),
            Rules::StaleFence => matches!(
                process.step,
                Step::CheckAbandoned
                    | Step::CheckManifest
                    | Step::Check
                    | Step::CheckRemoval
                    | Step::CheckClose
                    | Step::CheckRelease
            ),
            _ => false,
        };
        if is_stale {
            sights.push(Sight::Stale);
        }
        sights
    }

    /// What only a broken rule lets a process do.
    fn broken(&self, index: usize, process: &Process) -> Option<Action> {
        match (self.rules, process.step) {
            (Rules::DuplicateBeforeCheck, Step::Sync | Step::Check) => Some(Action::Answer(index)),
            (Rules::CheckOnATimer, Step::Idle | Step::Sync | Step::Confirm) => Some(Action::Timer(index)),
            _ => None,
        }
    }
}

impl Model for Setting {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut first = State::first(self);
        first.tidy();
        vec![first]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if let (Locks::GetLost, Some(holder)) = (self.locks, state.holder) {
            actions.push(Action::LoseLock(holder));
        }
        for (index, process) in state.processes.iter().enumerate() {
            if process.is_over() {
                continue;
            }
            if self.is_asked_whether_dead(state, index) {
                actions.push(Action::Die(index));
            }
            match process.step {
                Step::TryLock if state.holder.is_some() => {}
                Step::Idle => {
                    let rounds = self.rounds(state, process);
                    actions.extend(rounds.into_iter().map(|step| Action::Begin(index, step)));
                }
                _ => {
                    let sights = self.sights(state, process);
                    actions.extend(sights.into_iter().map(|sight| Action::Go(index, sight)));
                }
            }
            if process.step == Step::Check && self.rules != Rules::CheckBeforeWrite {
                actions.push(Action::Skip(index));
            }
            actions.extend(self.broken(index, process));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut state = state.clone();
        let fresh = Sight::Fresh { lost: 0 };
        match action {
            Action::Go(index, sight) => Turn::of(self, &mut state, index, sight).take(),
            Action::Begin(index, step) => {
                state.processes[index].step = step;
                // The choice is no step of its own.
                Turn::of(self, &mut state, index, fresh).take();
            }
            Action::Skip(index) => state.processes[index].step = Step::Idle,
            Action::Die(index) => state.processes[index].is_alive = false,
            Action::LoseLock(_) => state.holder = None,
            Action::Answer(index) => Turn::of(self, &mut state, index, fresh).answer_from_memory(),
            Action::Timer(index) => Turn::of(self, &mut state, index, fresh).ask_fence(),
        }
        state.tidy();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(self)
    }
}
