//! What is drawn once for each seed: what kind of world this is.

use clap::ValueEnum;

use crate::chance::Chance;

/// A millisecond, in the microseconds that time is counted in.
pub const MS: u64 = 1000;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// A host loses power at an operation: each block that it had not synced is lost, or arrives, or arrives late.
    PowerLoss,
    /// A process is killed at an operation; what it wrote arrives all the same, some time.
    Kill,
    /// A host stands still at an operation, and goes on after so long that the other one has taken over.
    Pause,
    /// One operation takes long; the other threads of its process go on.
    Stall,
    /// An operation fails with EIO; of a sync, what was to be synced may be gone.
    Error,
    /// Both hosts and the disk lose power.
    Blackout,
    /// Another program fills the disk, and makes space again.
    Full,
    /// The master is asked to hand over.
    Switchover,
}

/// What locks are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locks {
    /// They exclude, but for a holder that the disk has not heard of for so long, in microseconds. It is not told.
    Lease(u64),
    /// They exclude nobody.
    Lie,
}

/// What mounts keep in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caches {
    /// Nothing of what other hosts may change.
    Coherent,
    /// Attributes, listings, names that are and that are not, and pages of files that were not opened anew.
    Stale,
}

/// Which operations meet faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Focus {
    All,
    /// Those that change something.
    Changes,
    /// Those of the threads that work beside the engine.
    Upkeep,
}

#[derive(Clone, Debug)]
pub struct Setting {
    pub locks: Locks,
    pub caches: Caches,
    /// What may go wrong.
    pub faults: Vec<Fault>,
    /// How much does.
    pub faults_max: u64,
    /// One in so many operations meets a fault, as long as there are some left.
    pub fault_rate: u64,
    /// Which operations do.
    pub focus: Focus,
    /// One in so many operations is a moment at which something that was sent arrives.
    pub drift_rate: u64,
    /// Operations before faults cease.
    pub steps: u64,
    /// Percent of the steps at which the same thread goes on.
    pub steadiness: u64,
    /// Longest time that an operation takes by itself, in microseconds.
    pub operation_us: u64,
    /// `segment_bytes` of the nodes.
    pub segment_bytes: u64,
    /// Percent of the messages that stay for good, in old files too.
    pub kept_percent: u64,
    /// Largest message,
    pub body_bytes: u64,
    /// but for a few that are so large that they are written ahead of their commits.
    pub has_large: bool,
    /// By how much the clock of the second host is ahead, in milliseconds.
    pub skew_ms: u64,
}

impl Setting {
    pub fn draw(chance: &mut Chance, allowed: &[Fault]) -> Self {
        let locks =
            if chance.percent(25) { Locks::Lie } else { Locks::Lease(chance.between(200, 2000) * MS) };
        let caches = if chance.percent(50) { Caches::Stale } else { Caches::Coherent };
        // Some worlds have few kinds of faults, so that others do not hide what these do.
        let share = chance.pick(&[30, 60, 100]);
        let mut faults: Vec<Fault> = allowed.iter().copied().filter(|_| chance.percent(share)).collect();
        if faults.is_empty() && !allowed.is_empty() {
            faults.push(chance.pick(allowed));
        }
        Self {
            locks,
            caches,
            faults,
            faults_max: chance.between(1, 12),
            fault_rate: chance.pick(&[60, 150, 300, 600]),
            focus: chance.pick(&[Focus::All, Focus::Changes, Focus::Upkeep]),
            drift_rate: chance.pick(&[10, 50, 400]),
            steps: chance.pick(&[1500, 3000, 5000]),
            steadiness: chance.pick(&[30, 60, 90]),
            operation_us: chance.pick(&[100, 1000, 5000]),
            segment_bytes: chance.pick(&[8 << 10, 24 << 10, 64 << 10]),
            kept_percent: chance.pick(&[5, 20, 50]),
            body_bytes: chance.pick(&[200, 2000, 8000]),
            has_large: chance.one_in(10),
            skew_ms: chance.pick(&[0, 1000, 3_600_000]),
        }
    }
}
