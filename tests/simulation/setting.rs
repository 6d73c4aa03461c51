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
    /// The newest checkpoint is not what was written any more, as long as no other one is damaged.
    Damage,
    /// The hosts do not hear of each other for a while: where locks lie, a standby claims beside a living master.
    Cut,
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
    /// Attributes, listings, and names that are and that are not, for so long, in microseconds; and pages of files that
    /// were not opened anew.
    Stale(u64),
}

/// What is done with blocks that are written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwriting {
    /// They are overwritten.
    InPlace,
    /// What is written goes to other blocks, so that a full disk takes nothing at all.
    Copies,
}

/// Which operations meet faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Focus {
    All,
    /// Those that change something.
    Changes,
    /// Those of the threads that work beside the engine.
    Upkeep,
    /// Those on the control file and the claims.
    Claims,
    /// Commits right after a pack was made: once one has made it count, what it has replaced goes.
    Packs,
    /// Those of a master that hands over, from its last commit to its release.
    Handover,
}

#[derive(Clone, Debug)]
pub struct Setting {
    pub locks: Locks,
    pub caches: Caches,
    pub overwriting: Overwriting,
    /// What may go wrong.
    pub faults: Vec<Fault>,
    /// How much does.
    pub faults_max: u64,
    /// One in so many operations meets a fault, as long as there are some left.
    pub fault_rate: u64,
    /// How much more goes wrong behind a change of names, or of who is master: much depends on the order there.
    pub hot_factor: u64,
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
    /// One in so many cycles of a master is one in which it is asked to hand over.
    pub handover_rate: u64,
    /// By how much the clock of the second host is ahead, in milliseconds.
    pub skew_ms: u64,
}

impl Setting {
    pub fn draw(chance: &mut Chance, allowed: &[Fault]) -> Self {
        let locks =
            if chance.percent(25) { Locks::Lie } else { Locks::Lease(chance.between(200, 2000) * MS) };
        let caches = if chance.percent(50) {
            Caches::Stale(chance.pick(&[1000, 5000]) * MS)
        } else {
            Caches::Coherent
        };
        let overwriting = chance.pick(&[Overwriting::InPlace, Overwriting::Copies]);
        let focus = chance.pick(&[
            Focus::All,
            Focus::All,
            Focus::Changes,
            Focus::Changes,
            Focus::Upkeep,
            Focus::Claims,
            Focus::Packs,
            Focus::Handover,
        ]);
        // What counts there is that a master which goes on has lost meanwhile.
        let is_narrow = matches!(focus, Focus::Packs | Focus::Handover);
        // Some worlds have few kinds of faults, so that others do not hide what these do.
        let share = chance.pick(if is_narrow { &[0, 0, 30] } else { &[30, 60, 100] });
        let mut faults: Vec<Fault> = allowed.iter().copied().filter(|_| chance.percent(share)).collect();
        if is_narrow && allowed.contains(&Fault::Pause) {
            faults.push(Fault::Pause);
        }
        if faults.is_empty() && !allowed.is_empty() {
            faults.push(chance.pick(allowed));
        }
        // Packs come of segments of which a few large messages stay, where checkpoints leave time for them.
        let (segments, kept_percents, bodies): (&[u64], &[u64], &[u64]) = match focus {
            Focus::Packs => (&[64 << 10], &[10], &[12_000]),
            _ => (&[8 << 10, 24 << 10, 64 << 10], &[5, 20, 50], &[200, 2000, 8000]),
        };
        Self {
            locks,
            caches,
            overwriting,
            faults,
            faults_max: chance.between(1, 12),
            fault_rate: chance.pick(&[60, 150, 300, 600]),
            hot_factor: chance.pick(&[1, 8]),
            focus,
            drift_rate: chance.pick(&[10, 50, 400]),
            steps: if focus == Focus::Packs { 5000 } else { chance.pick(&[1500, 3000, 5000]) },
            steadiness: chance.pick(&[30, 60, 90]),
            operation_us: chance.pick(&[100, 1000, 5000]),
            segment_bytes: chance.pick(segments),
            kept_percent: chance.pick(kept_percents),
            body_bytes: chance.pick(bodies),
            has_large: chance.one_in(10),
            handover_rate: if focus == Focus::Handover { 30 } else { chance.pick(&[u64::MAX, 200, 30]) },
            skew_ms: chance.pick(&[0, 1000, 3_600_000]),
        }
    }
}
