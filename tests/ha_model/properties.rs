//! What must hold in every state, and what must be reached in some, or the model would say nothing.

use stateright::Property;

use super::disk::{Disk, Stage};
use super::epochs::highest_of;
use super::process::{Process, Step};
use super::setting::{Locks, Mode, Setting};
use super::state::State;

/// Whether a world must come to certain states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Asked,
    /// With a rule broken, it may not.
    NotAsked,
}

pub const CONFIRMED_IS_SEALED: &str = "every confirmed record is in the log that readers follow";
pub const LOG_IS_WHOLE: &str = "every file that readers need is there";
pub const ONE_OWNER: &str = "an epoch has one owner";
pub const ONE_WRITER: &str = "a file has one living writer";
pub const NOTHING_OVERWRITTEN: &str = "nothing of a later epoch is overwritten";
pub const CONFIRMED_HAS_BEGUN: &str = "of what was confirmed something says that it must be there";
pub const NOT_TAKEN_FOR_DAMAGED: &str = "nobody takes a sound store for damaged";

pub fn of(setting: &Setting) -> Vec<Property<Setting>> {
    let mut properties = vec![
        Property::always(CONFIRMED_IS_SEALED, |setting: &Setting, state: &State| {
            let Some(newest) = state.disk.newest_manifest() else { return false };
            let is_there = |(epoch, &confirmed): (usize, &u8)| {
                confirmed <= state.disk.found_for_sure(newest, epoch, setting.mode)
            };
            state.confirmed.iter().enumerate().all(is_there)
        }),
        Property::always(LOG_IS_WHOLE, |setting: &Setting, state: &State| {
            let Disk { checkpoints, .. } = &state.disk;
            let newest = state.disk.newest_manifest();
            newest.is_some_and(|newest| {
                state.disk.is_whole(newest, Disk::accepted(newest, checkpoints), setting.mode)
            })
        }),
        Property::always(ONE_OWNER, |_, state: &State| {
            let same = |one: &Process, other: &Process| one.epoch == other.epoch;
            all_differ(state, Process::owns_its_epoch, same)
        }),
        Property::always(ONE_WRITER, |_, state: &State| {
            let same = |one: &Process, other: &Process| one.manifest.file == other.manifest.file;
            all_differ(state, Process::has_file_open, same)
        }),
        Property::always(NOTHING_OVERWRITTEN, |_, state: &State| !state.disk.is_overwritten),
        Property::always(CONFIRMED_HAS_BEGUN, |_, state: &State| {
            let newest = state.disk.newest_manifest().map_or(0, |manifest| manifest.epoch);
            state.confirmed[newest] == 0 || state.disk.begun_below(newest + 1) == newest
        }),
        Property::always(NOT_TAKEN_FOR_DAMAGED, |_, state: &State| {
            state.processes.iter().all(|process| process.step != Step::Refused)
        }),
    ];
    if setting.reach == Reach::Asked {
        properties.extend(reached(setting));
    }
    properties
}

/// What must be reached.
fn reached(setting: &Setting) -> Vec<Property<Setting>> {
    let mut properties = vec![
        Property::sometimes("every epoch serves and confirms all", |setting: &Setting, state: &State| {
            let written = 1..=setting.size.takers + 1;
            state.confirmed[written.clone()] == setting.size.records[written]
        }),
        Property::sometimes("an epoch follows one that was released", |_, state: &State| {
            state.disk.block(1).is_some_and(|block| block.stage == Stage::Released) && state.confirmed[2] > 0
        }),
    ];
    properties.extend(match setting.mode {
        Mode::File => of_files(),
        Mode::Database => of_databases(),
    });
    if setting.locks != Locks::Exclude {
        properties.extend(of_zombies());
        properties.extend(match setting.mode {
            Mode::File => of_zombies_with_files(),
            Mode::Database => of_zombies_with_databases(),
        });
    }
    properties
}

/// Whether no two of the processes that are `meant` are the same.
fn all_differ(state: &State, is_meant: fn(&Process) -> bool, same: fn(&Process, &Process) -> bool) -> bool {
    let meant: Vec<_> = state.processes.iter().filter(|process| is_meant(process)).collect();
    let pairs = (0..meant.len()).flat_map(|one| (0..one).map(move |other| (one, other)));
    pairs.into_iter().all(|(one, other)| !same(meant[one], meant[other]))
}

/// Whether a process is about to take this step although a successor has sealed the store.
fn comes_late(state: &State, step: Step) -> bool {
    let newest = state.disk.newest_manifest().map_or(0, |manifest| manifest.epoch);
    state.processes.iter().any(|process| process.step == step && process.epoch < newest)
}

fn of_zombies() -> Vec<Property<Setting>> {
    vec![
        Property::sometimes("late control", |_, state: &State| comes_late(state, Step::WriteBlock)),
        Property::sometimes("late seal", |_, state: &State| comes_late(state, Step::WriteManifest)),
        Property::sometimes("late beginning", |_, state: &State| comes_late(state, Step::Begin)),
        Property::sometimes("late sync", |_, state: &State| comes_late(state, Step::Sync)),
        Property::sometimes("late check", |_, state: &State| comes_late(state, Step::Check)),
        Property::sometimes("late confirm", |_, state: &State| comes_late(state, Step::Confirm)),
        Property::sometimes("late unlink", |_, state: &State| comes_late(state, Step::Remove)),
        Property::sometimes("late release", |_, state: &State| comes_late(state, Step::Release)),
        Property::sometimes("a claim without a block is passed over", |_, state: &State| {
            state.disk.claimed[2] && state.disk.block(2).is_none() && state.disk.manifests[3].is_some()
        }),
        Property::sometimes("an epoch that was never sealed is passed over", |_, state: &State| {
            let newest = state.disk.newest_manifest().map_or(0, |manifest| manifest.epoch);
            state.disk.block(2).is_some()
                && state.disk.manifests[2].is_none()
                && newest == 3
                && state.disk.manifests[1].is_some()
        }),
    ]
}

fn of_files() -> Vec<Property<Setting>> {
    vec![Property::sometimes("an epoch begins with the checkpoint of another", |_, state: &State| {
        let newest = highest_of(&state.disk.manifests);
        state.disk.checkpoints[..newest].iter().any(|&checkpoints| checkpoints > 0)
            && state.disk.files[..newest].iter().any(|file| file.is_removed())
    })]
}

fn of_zombies_with_files() -> Vec<Property<Setting>> {
    vec![
        Property::sometimes("a checkpoint of what was not sealed", |_, state: &State| {
            state.disk.newest_manifest().is_some_and(|newest| {
                let checkpoints = state.disk.checkpoints.iter().enumerate();
                let newest_of = |(epoch, records): (usize, &u8)| Some((epoch, records.checked_ilog2()?));
                checkpoints
                    .filter_map(newest_of)
                    .any(|(epoch, records)| !newest.accepts(epoch, records as u8))
            })
        }),
        Property::sometimes("a record behind what was sealed", |_, state: &State| {
            state.disk.newest_manifest().is_some_and(|newest| {
                let lower = 1..newest.epoch;
                lower.into_iter().any(|epoch| state.disk.files[epoch].written[epoch] > newest.sealed[epoch])
            })
        }),
        Property::sometimes("a tail that is not synced is read", |_, state: &State| {
            let is_unsynced = |process: &Process| {
                let file = &state.disk.files[process.source];
                process.step == Step::ApplyEpoch && file.written != file.durable
            };
            state.processes.iter().any(is_unsynced)
        }),
    ]
}

fn of_databases() -> Vec<Property<Setting>> {
    vec![
        Property::sometimes("an epoch follows one that died", |_, state: &State| {
            !state.processes[0].is_alive && state.confirmed[2] > 0
        }),
        Property::sometimes("a database is taken over in place", |_, state: &State| {
            state.disk.newest_manifest().is_some_and(|newest| newest.epoch > 2 && newest.file < newest.epoch)
        }),
    ]
}

fn of_zombies_with_databases() -> Vec<Property<Setting>> {
    vec![
        Property::sometimes("late log written back", |_, state: &State| comes_late(state, Step::Close)),
        Property::sometimes("a database is copied", |_, state: &State| {
            state.disk.newest_manifest().is_some_and(|newest| newest.epoch > 2 && newest.file == newest.epoch)
        }),
        Property::sometimes("a dead taker's copy is removed before the next copy", |_, state: &State| {
            state.disk.files[2].is_removed()
                && state.disk.manifests[2].is_none()
                && state.disk.manifests[3].is_some()
                && state.disk.manifests[1].is_some()
        }),
    ]
}
