//! The shared disk: claims, the control file, manifests, and the files that hold the records.
//!
//! What was written is seen by everybody who reads afresh. What was synced survives; what was only written may be found
//! or not.

use super::epochs::{EPOCHS_MAX, PerEpoch};
use super::setting::{Mode, Rules};

/// What a new master has fixed about the epochs before its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Manifest {
    pub epoch: usize,
    /// Records that count of each lower epoch. Not used in database mode, where all count that the database has.
    pub sealed: PerEpoch<u8>,
    /// The file that the epoch appends to: its own journal, or the database that counts.
    pub file: usize,
}

impl Manifest {
    /// Whether a checkpoint counts that was taken of the first so many records of an epoch.
    pub fn accepts(&self, epoch: usize, records: u8) -> bool {
        epoch == self.epoch || (epoch < self.epoch && records <= self.sealed[epoch])
    }
}

/// How far the owner of an epoch has come, as its block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Claimed,
    /// Its manifest is there and, in file mode, its file.
    Begun,
    Released,
}

/// The block of an epoch in the control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    pub epoch: usize,
    /// The process that wrote it.
    pub owner: usize,
    pub stage: Stage,
}

/// Whether a file is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Presence {
    #[default]
    NotMade,
    There,
    Removed,
}

/// A journal or a database, named by the epoch that made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct File {
    /// Records of each epoch that were written to it.
    pub written: PerEpoch<u8>,
    /// Those that survive anything.
    pub durable: PerEpoch<u8>,
    pub presence: Presence,
}

impl File {
    pub fn is_removed(&self) -> bool {
        self.presence == Presence::Removed
    }

    pub fn remove(&mut self) {
        if self.presence == Presence::There {
            self.presence = Presence::Removed;
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    pub claimed: PerEpoch<bool>,
    /// The places of the control file.
    pub blocks: PerEpoch<Option<Block>>,
    /// The places for manifests.
    pub manifests: PerEpoch<Option<Manifest>>,
    pub files: PerEpoch<File>,
    /// The checkpoints that each epoch has written: bit n for one of its first n records.
    pub checkpoints: PerEpoch<u8>,
    /// Whether an epoch has written to a file after a higher one had.
    pub is_overwritten: bool,
}

impl Disk {
    /// The disk with a master of epoch 1, that has not written a record yet.
    pub fn founded() -> Self {
        let (mut claimed, mut blocks, mut manifests) =
            ([false; _], [None::<Block>; _], [None::<Manifest>; _]);
        claimed[1] = true;
        blocks[1] = Some(Block { epoch: 1, owner: 0, stage: Stage::Begun });
        manifests[1] = Some(Manifest { epoch: 1, sealed: [0; _], file: 1 });
        let mut files = [File::default(); _];
        files[1].presence = Presence::There;
        Self { claimed, blocks, manifests, files, checkpoints: [0; _], is_overwritten: false }
    }

    /// The highest epoch that has a block.
    pub fn highest_block(&self) -> usize {
        self.blocks.iter().flatten().map(|block| block.epoch).max().unwrap_or(0)
    }

    /// The highest epoch below `epoch` that has begun, 0 where none has.
    pub fn begun_below(&self, epoch: usize) -> usize {
        let lower = self.blocks.iter().flatten().filter(|block| block.epoch < epoch);
        lower.filter(|block| block.stage >= Stage::Begun).map(|block| block.epoch).max().unwrap_or(0)
    }

    /// The highest epoch of all claims, blocks and manifests.
    pub fn highest(&self) -> usize {
        let claimed = self.claimed.iter().rposition(|&claimed| claimed).unwrap_or(0);
        let sealed = self.newest_manifest().map_or(0, |manifest| manifest.epoch);
        claimed.max(self.highest_block()).max(sealed)
    }

    pub fn block(&self, epoch: usize) -> Option<&Block> {
        self.blocks.iter().flatten().find(|block| block.epoch == epoch)
    }

    pub fn write_block(&mut self, block: Block, rules: Rules) {
        let place = match rules {
            Rules::OneBlockForAll => 1,
            Rules::TwoBlocksInTurns => 1 + block.epoch % 2,
            _ => block.epoch,
        };
        self.is_overwritten |= self.blocks[place].is_some_and(|there| there.epoch > block.epoch);
        self.blocks[place] = Some(block);
    }

    /// The manifest that readers follow.
    pub fn newest_manifest(&self) -> Option<&Manifest> {
        self.manifests.iter().rev().flatten().next()
    }

    pub fn write_manifest(&mut self, manifest: Manifest, rules: Rules) {
        let place = if rules == Rules::OneManifestForAll { EPOCHS_MAX } else { manifest.epoch };
        self.is_overwritten |= self.manifests[place].is_some_and(|there| there.epoch > manifest.epoch);
        self.manifests[place] = Some(manifest);
    }

    /// Notes that an epoch writes to a file.
    pub fn touch(&mut self, file: usize, epoch: usize) {
        self.is_overwritten |= self.files[file].written[epoch + 1..].iter().any(|&records| records > 0);
    }

    /// The newest of these checkpoints that a manifest accepts: its epoch, and how many records of that it has.
    pub fn accepted(manifest: &Manifest, checkpoints: &PerEpoch<u8>) -> Option<(usize, u8)> {
        let all = (1..=EPOCHS_MAX).rev().flat_map(|epoch| (1..8).rev().map(move |records| (epoch, records)));
        let mut there = all.filter(|&(epoch, records)| checkpoints[epoch] & 1 << records != 0);
        there.find(|&(epoch, records)| manifest.accepts(epoch, records))
    }

    /// Whether every file is there that is read by whoever follows this manifest and begins with this checkpoint.
    pub fn is_whole(&self, manifest: &Manifest, checkpoint: Option<(usize, u8)>, mode: Mode) -> bool {
        match mode {
            Mode::Database => !self.files[manifest.file].is_removed(),
            Mode::File => {
                let first = checkpoint.map_or(1, |(epoch, _)| epoch);
                let mut needed = (first..manifest.epoch).filter(|&epoch| manifest.sealed[epoch] > 0);
                needed.all(|epoch| !self.files[epoch].is_removed())
                    && !self.files[manifest.epoch].is_removed()
            }
        }
    }

    /// Records of an epoch that whoever follows this manifest finds in any case.
    pub fn found_for_sure(&self, manifest: &Manifest, epoch: usize, mode: Mode) -> u8 {
        match mode {
            Mode::Database => self.files[manifest.file].durable[epoch],
            Mode::File if epoch < manifest.epoch => {
                manifest.sealed[epoch].min(self.files[epoch].durable[epoch])
            }
            Mode::File if epoch == manifest.epoch => self.files[epoch].durable[epoch],
            Mode::File => 0,
        }
    }
}
