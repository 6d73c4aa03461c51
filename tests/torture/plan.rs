//! Which faults strike, in which order, and how: everything from the seed.

use std::time::Duration;

use clap::ValueEnum;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// The master is killed.
    KillMaster,
    /// The standby is killed.
    KillStandby,
    /// Both are killed at once.
    KillBoth,
    /// The master is killed, and soon after it the node that takes over, perhaps half-way.
    KillTaker,
    /// The master is paused for less time than a takeover takes.
    PauseShort,
    /// The master is paused for longer than that, and goes on.
    PauseLong,
    /// The master is told to stop.
    Stop,
    /// Both are told to stop at once.
    StopBoth,
    /// The nodes are asked to change places.
    Switchover,
    /// The network of the master's host is cut; its storage is not.
    LinkDown,
    /// Storage does not answer the master for a while.
    Stall,
    /// A write or a sync of the master fails.
    Error,
    /// Something else takes all of the disk for a while.
    FullDisk,
    /// The clock of a host is set.
    Clock,
    /// Both nodes are stopped, and started in the other mode.
    ModeChange,
    /// A node is stopped, and started with the other build.
    Upgrade,
}

impl Fault {
    /// Whether it lasts for a while, in which something else can happen.
    pub fn lasts(self) -> bool {
        matches!(self, Self::PauseLong | Self::LinkDown | Self::FullDisk)
    }

    /// As it is called on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// How the nodes see their storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Through one mount: the lock excludes, and a paused node keeps it.
    Shared,
    /// Each through a mount of its own: the lock excludes nobody.
    Apart,
}

/// What happens in the middle of a fault that lasts for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Besides {
    Nothing,
    /// The master is killed as well.
    KillMaster,
    /// The other node is killed as well; it may be master by then.
    KillStandby,
    /// Both are killed as well.
    KillBoth,
}

/// A fault that strikes.
#[derive(Clone, Copy, Debug)]
pub struct Strike {
    pub fault: Fault,
    /// Messages that are confirmed before it.
    pub after: u64,
    /// What happens besides, where the fault lasts for a while.
    pub besides: Besides,
    /// A place from 0 up to 1, where the fault has some freedom.
    pub place: f64,
    /// A number for further choices.
    pub choice: u64,
}

impl Strike {
    /// How long the fault lasts: between these.
    pub fn lasts(&self, shortest: Duration, longest: Duration) -> Duration {
        shortest + (longest - shortest).mul_f64(self.place)
    }
}

/// Numbers that look random, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// One for a purpose of its own.
    pub fn new(seed: u64, purpose: u64) -> Self {
        let mut random = Self(seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The faults to come.
pub struct Plan {
    random: Random,
    faults: Vec<Fault>,
    /// What is still to come of a round in which each fault comes once.
    round: Vec<Fault>,
    windows: u64,
}

impl Plan {
    /// A plan of these faults.
    pub fn new(seed: u64, faults: Vec<Fault>) -> Self {
        Self { random: Random::new(seed, 0), faults, round: Vec::new(), windows: 0 }
    }

    /// The view of the next window.
    pub fn view(&mut self) -> View {
        self.windows += 1;
        if self.windows.is_multiple_of(2) { View::Apart } else { View::Shared }
    }

    /// The next fault. Each has its turn once in a round, in an order of chance.
    pub fn strike(&mut self) -> Option<Strike> {
        if self.round.is_empty() {
            self.round.clone_from(&self.faults);
        }
        let left = self.round.len() as u64;
        if left == 0 {
            return None;
        }
        let fault = self.round.swap_remove(self.random.below(left) as usize);
        let after = 1 + self.random.below(400);
        let place = self.random.below(1_000) as f64 / 1_000.0;
        let besides = match self.random.below(7) {
            0 => Besides::KillMaster,
            1 => Besides::KillStandby,
            2 => Besides::KillBoth,
            _ => Besides::Nothing,
        };
        Some(Strike { fault, after, besides, place, choice: self.random.next() })
    }
}
