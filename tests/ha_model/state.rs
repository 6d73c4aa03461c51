//! The whole world in one moment: the disk, the processes, and what somebody was told is stored.

use super::disk::{Block, Disk, Stage};
use super::epochs::PerEpoch;
use super::process::{Process, Step};
use super::setting::{Locks, Rules, Setting};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub disk: Disk,
    pub processes: Vec<Process>,
    /// Who holds the lock, as far as the lock itself knows.
    pub holder: Option<usize>,
    /// Records of each epoch that somebody was told are stored.
    pub confirmed: PerEpoch<u8>,
}

impl State {
    /// A master of epoch 1 and those that wait.
    pub fn first(setting: &Setting) -> Self {
        let (step, holder) = match setting.locks {
            Locks::Lie => (Step::Look, None),
            Locks::Exclude | Locks::GetLost => (Step::TryLock, Some(0)),
        };
        let mut processes = vec![Process { step, ..Process::NEW }; setting.size.takers];
        processes.insert(0, Process::first_master());
        Self { disk: Disk::founded(), processes, holder, confirmed: [0; _] }
    }

    /// Records of its own epoch that a process has written, and how many of them are durable.
    pub fn own(&self, process: &Process) -> (u8, u8) {
        let file = &self.disk.files[process.manifest.file];
        (file.written[process.epoch], file.durable[process.epoch])
    }

    /// The lower epochs that wrote a block and whose owner may write.
    pub fn unknown_below(&self, epoch: usize, rules: Rules) -> PerEpoch<bool> {
        let mut unknown = [false; _];
        let lower = || self.disk.blocks.iter().flatten().filter(|block| block.epoch < epoch);
        for block in lower() {
            unknown[block.epoch] = block.stage != Stage::Released && self.processes[block.owner].is_alive;
        }
        if rules == Rules::OnlyTheLastPredecessor {
            let last = lower().map(|block| block.epoch).max().unwrap_or(0);
            unknown[..last].fill(false);
        }
        unknown
    }

    /// Whether the fence of a process holds.
    pub fn passes(&self, index: usize, rules: Rules) -> bool {
        let epoch = self.processes[index].epoch;
        let is_own = rules == Rules::OneBlockForAll
            || self.disk.block(epoch).is_some_and(|block| block.owner == index);
        rules == Rules::NoFence || (is_own && self.disk.highest_block() <= epoch)
    }

    pub fn write_block(&mut self, index: usize, stage: Stage, rules: Rules) {
        let epoch = self.processes[index].epoch;
        self.disk.write_block(Block { epoch, owner: index, stage }, rules);
    }

    /// The same world with the takers in an order of their own: which of them is which makes no difference.
    pub fn with_takers_sorted(&self) -> Self {
        let mut order: Vec<usize> = (0..self.processes.len()).collect();
        order[1..].sort_by(|&one, &other| self.processes[one].cmp(&self.processes[other]));
        let mut sorted = self.clone();
        sorted.processes = order.iter().map(|&index| self.processes[index].clone()).collect();
        let new_index = |old| order.iter().position(|&index| index == old).unwrap_or(old);
        for block in sorted.disk.blocks.iter_mut().flatten() {
            block.owner = new_index(block.owner);
        }
        sorted.holder = self.holder.map(new_index);
        sorted
    }

    /// Lets go what those hold who have ended, and forgets what they knew.
    pub fn tidy(&mut self) {
        for (index, process) in self.processes.iter_mut().enumerate() {
            // Of those who found damage only one is of interest that nobody has taken over from meanwhile.
            if process.step == Step::Refused && self.disk.highest() > process.epoch {
                process.step = Step::Ended;
            }
            process.tidy();
            if process.is_over() && self.holder == Some(index) {
                self.holder = None;
            }
        }
    }
}
