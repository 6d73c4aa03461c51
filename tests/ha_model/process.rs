//! A process that is master or wants to be: which step it takes next, and what it has in memory.
//!
//! A paused process is one that takes no step while the others do, before any of its steps and for as long as they like;
//! so whatever it writes, removes or confirms may come late. A process whose host has died is one that is never resumed.
//! What dies beside it is known to be dead, as on the same host.

use super::disk::Manifest;
use super::epochs::PerEpoch;

/// The steps, in the order of the rules as written. `docs/architecture.md` says which function takes which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    TryLock,
    /// Looks for the highest epoch.
    Look,
    Claim,
    WriteBlock,
    /// Looks whether its epoch is still the highest, and how the lower ones have ended.
    SecondLook,
    /// File mode: which files and checkpoints there are.
    ListFolder,
    ReadManifest,
    /// File mode: how much there is of the epoch that wrote the manifest. Makes it durable.
    ApplyEpoch,
    /// Only with a rule broken.
    CutTail,
    /// Database mode.
    CheckAbandoned,
    /// Database mode: removes copies that never served.
    RemoveAbandoned,
    /// Database mode: copies what somebody may still write.
    Copy,
    /// Database mode: goes on with what nobody else can write.
    Recover,
    /// Database mode.
    CheckManifest,
    WriteManifest,
    /// File mode: makes the file that it will append to.
    MakeSegment,
    /// Says in its block that what is there from the beginning is there.
    Begin,
    /// Between two rounds of the engine.
    Idle,
    Append,
    Sync,
    Check,
    /// Tells whoever waits, and whoever sends again what is stored already.
    Confirm,
    /// File mode.
    WriteCheckpoint,
    CheckRemoval,
    /// Removes files that nobody needs; in database mode it writes the log back, too.
    Remove,
    /// Database mode.
    CheckClose,
    /// Database mode: writes the log back for the last time.
    Close,
    CheckRelease,
    Release,
    /// It has ended by itself and takes no step any more.
    Ended,
    /// It takes the store for damaged.
    Refused,
}

impl Step {
    /// The steps that functions of the code take.
    pub const IN_THE_CODE: [Self; 27] = [
        Self::TryLock,
        Self::Look,
        Self::Claim,
        Self::WriteBlock,
        Self::SecondLook,
        Self::ListFolder,
        Self::ReadManifest,
        Self::ApplyEpoch,
        Self::CheckAbandoned,
        Self::RemoveAbandoned,
        Self::Copy,
        Self::Recover,
        Self::CheckManifest,
        Self::WriteManifest,
        Self::MakeSegment,
        Self::Begin,
        Self::Append,
        Self::Sync,
        Self::Check,
        Self::Confirm,
        Self::WriteCheckpoint,
        Self::CheckRemoval,
        Self::Remove,
        Self::CheckClose,
        Self::Close,
        Self::CheckRelease,
        Self::Release,
    ];
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    pub is_alive: bool,
    pub step: Step,
    pub epoch: usize,
    /// The lower epochs whose owner is not known to be gone.
    pub unknown: PerEpoch<bool>,
    /// The highest lower epoch that has begun.
    pub begun: usize,
    /// The checkpoints that it has listed.
    pub checkpoints: PerEpoch<u8>,
    /// The highest epoch of the files that it has listed.
    pub listed: usize,
    /// The manifest that it read; from then on the one that it writes.
    pub manifest: Manifest,
    /// The epoch of the manifest that it read, or, in database mode, of the maker of the database that this named.
    pub source: usize,
    /// Records of lower epochs that it has in memory.
    pub known: PerEpoch<u8>,
}

impl Process {
    pub const NEW: Self = Self {
        is_alive: true,
        step: Step::TryLock,
        epoch: 0,
        unknown: [false; _],
        begun: 0,
        checkpoints: [0; _],
        listed: 0,
        manifest: Manifest { epoch: 0, sealed: [0; _], file: 0 },
        source: 0,
        known: [0; _],
    };

    /// The master of epoch 1.
    pub fn first_master() -> Self {
        let manifest = Manifest { epoch: 1, file: 1, ..Self::NEW.manifest };
        Self { step: Step::Idle, epoch: 1, manifest, ..Self::NEW }
    }

    pub fn is_over(&self) -> bool {
        !self.is_alive || matches!(self.step, Step::Ended | Step::Refused)
    }

    /// It takes its epoch for its own.
    pub fn owns_its_epoch(&self) -> bool {
        !self.is_over() && self.step > Step::Claim
    }

    /// It may write to its file.
    pub fn has_file_open(&self) -> bool {
        !self.is_over() && (Step::Recover..=Step::Close).contains(&self.step)
    }

    /// Forgets what it does not use any more, so that states that differ only in that are one.
    pub fn tidy(&mut self) {
        if self.is_over() {
            let (is_alive, step, epoch) = (self.is_alive, self.step, self.epoch);
            *self = Self { is_alive, step: if is_alive { step } else { Step::Ended }, ..Self::NEW };
            if step == Step::Refused {
                self.epoch = epoch;
            }
        }
        if self.step > Step::CutTail {
            (self.begun, self.checkpoints, self.listed) = (0, [0; _], 0);
        }
        if self.step > Step::Copy {
            self.unknown = [false; _];
        }
        if self.step > Step::WriteManifest {
            self.source = 0;
        }
    }
}
