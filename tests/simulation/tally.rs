//! What has happened in simulations, so that one sees that they try something.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use crate::setting::Fault;

#[derive(Clone, Debug, Default)]
pub struct Tally {
    faults: BTreeMap<Fault, u64>,
    /// Faults at operations of the thread that writes checkpoints and packs and removes files.
    pub in_upkeep: u64,
    pub operations: u64,
    pub claims: u64,
    pub takeovers: u64,
    pub releases: u64,
    /// Nodes that ended because they had lost.
    pub fenced: u64,
    pub late_writes: u64,
    pub late_names: u64,
    pub checkpoints: u64,
    pub packs: u64,
    pub removals: u64,
    pub confirmed: u64,
    pub delivered: u64,
    pub acked: u64,
    /// Writes into blocks that were there for which there was no space.
    pub full_writes: u64,
    pub damaged_checkpoints: u64,
    /// Takeovers from a lock whose holder was alive.
    pub expired_locks: u64,
}

impl Tally {
    pub fn count(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains_key(&fault)
    }

    pub fn add(&mut self, other: &Self) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        self.in_upkeep += other.in_upkeep;
        self.operations += other.operations;
        self.claims += other.claims;
        self.takeovers += other.takeovers;
        self.releases += other.releases;
        self.fenced += other.fenced;
        self.late_writes += other.late_writes;
        self.late_names += other.late_names;
        self.checkpoints += other.checkpoints;
        self.packs += other.packs;
        self.removals += other.removals;
        self.confirmed += other.confirmed;
        self.delivered += other.delivered;
        self.acked += other.acked;
        self.full_writes += other.full_writes;
        self.damaged_checkpoints += other.damaged_checkpoints;
        self.expired_locks += other.expired_locks;
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> =
            self.faults.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        writeln!(f, "faults: {}; {} of them in upkeep", faults.join(", "), self.in_upkeep)?;
        writeln!(
            f,
            "epochs: {} claimed, {} served, {} released, {} nodes fenced, {} locks taken from a living holder",
            self.claims, self.takeovers, self.releases, self.fenced, self.expired_locks
        )?;
        writeln!(
            f,
            "disk: {} operations, {} late writes and {} late changes of names arrived, {} overwrites without space",
            self.operations, self.late_writes, self.late_names, self.full_writes
        )?;
        writeln!(
            f,
            "store: {} checkpoints, {} of them damaged, {} packs, {} files removed",
            self.checkpoints, self.damaged_checkpoints, self.packs, self.removals
        )?;
        write!(
            f,
            "messages: {} confirmed, {} delivered, {} acked",
            self.confirmed, self.delivered, self.acked
        )
    }
}
