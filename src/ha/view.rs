//! What the shared directory says about epochs, in one fresh look that changes nothing.
//!
//! Two of these looks make a claim: one before it, to find the next number, and one after its block is durable, to
//! see whether anybody is higher and what the lower ones were.
//!
//! **A block that is torn** is never skipped: it counts as an epoch that wrote one, and its claim says whose. Where the
//! claim is not whole either, the directory is damaged: a claim is made durable before the block is written, so a
//! crash cannot tear both.
//!
//! **A claim without a block** belongs to an epoch that never served and never will: every claimer writes its block
//! before it looks a second time, and only then touches anything else. If this look, which came after the block of a
//! higher epoch was durable, does not find the lower one's block, then the lower one's second look comes later still
//! and finds the higher one. So such an epoch needs no answer to whether its process is dead.
//!
//! **The store** is the one that the highest block names which is not [`State::Founding`]. A founder serves only
//! after it made its block active; and one that does so after a higher epoch's second look missed it is fenced before
//! it confirms anything.

use std::path::Path;

use uuid::Uuid;

use super::block::{Block, State};
use super::control::{Control, ControlError, Found};
use super::epochs::{Epochs, highest_name};
use super::identity::{Here, IdentityError};
use super::lock::LockFile;
use crate::model::id::Epoch;
use crate::model::mode::Mode;

/// What is known of how an epoch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its owner released it.
    Released,
    /// Its owner is certainly dead.
    Dead,
    /// Its owner may still run somewhere. It had the lock that this process has, and has lost it: where the storage lets
    /// nobody write who has lost a lock, nothing of it is written any more.
    LostLock,
    /// Its owner may still run somewhere.
    Unknown,
}

/// One look at the epochs of a shared directory.
#[derive(Clone, Debug)]
pub struct View {
    /// The epochs that wrote a block, lowest first; a torn block is replaced by its claim.
    blocks: Vec<Block>,
    /// Those of them whose block is torn.
    torn: Vec<Epoch>,
    /// The highest of all that were looked at. 0 where there is none.
    highest: Epoch,
}

impl View {
    /// Looks at the control file and the claims in the shared directory `dir`, and at nothing else.
    ///
    /// # Errors
    /// Where something cannot be read, is damaged, or was written by a newer version.
    pub fn of(dir: &Path) -> Result<Self, ControlError> {
        let (control, epochs) = (Control::of(dir), Epochs::of(dir));
        let found = control.read()?;
        let highest = epochs.highest()?.max(found.last().map(|found| found.epoch)).unwrap_or(Epoch(0));
        let mut view = Self { blocks: Vec::with_capacity(found.len()), torn: Vec::new(), highest };
        for found in found {
            if found.block.is_err() {
                view.torn.push(found.epoch);
            }
            view.blocks.push(whole(found, &control, &epochs)?);
        }
        Ok(view)
    }

    /// Looks at the manifests too, for a claim: their epochs count as claimed. A standby that only looks has no
    /// business with them.
    ///
    /// # Errors
    /// As for [`of`](Self::of).
    pub fn for_claim(dir: &Path) -> Result<Self, ControlError> {
        let view = Self::of(dir)?;
        let highest =
            highest_name(&dir.join("manifest"))?.map_or(view.highest, |named| named.max(view.highest));
        Ok(Self { highest, ..view })
    }

    /// The highest epoch of all claims and blocks, and of the manifests where they were looked at; 0 where there is
    /// none.
    #[must_use]
    pub fn highest(&self) -> Epoch {
        self.highest
    }

    /// The epochs whose block is torn.
    #[must_use]
    pub fn torn(&self) -> &[Epoch] {
        &self.torn
    }

    /// The block of `epoch`.
    #[must_use]
    pub fn block(&self, epoch: Epoch) -> Option<&Block> {
        let at = self.blocks.binary_search_by_key(&epoch, |block| block.epoch).ok()?;
        Some(&self.blocks[at])
    }

    /// The store and its mode, as the epochs below `epoch` have them; `None` where none of them ever served one.
    #[must_use]
    pub fn store_below(&self, epoch: Epoch) -> Option<(Uuid, Mode)> {
        let mut lower = self.blocks.iter().rev().filter(|block| block.epoch < epoch);
        lower.find(|block| block.state != State::Founding).map(|block| (block.store_id, block.mode))
    }

    /// The highest epoch below `epoch` that has [begun](Block::has_begun); 0 where there is none. One whose block is torn
    /// may have, and is passed over.
    #[must_use]
    pub fn begun_below(&self, epoch: Epoch) -> Epoch {
        let mut lower = self.blocks.iter().rev().filter(|block| block.epoch < epoch);
        lower.find(|block| block.has_begun).map_or(Epoch(0), |block| block.epoch)
    }

    /// How each epoch below `epoch` that wrote a block has ended, lowest first. `held` is the file whose lock this process
    /// has, where that is to be considered.
    ///
    /// # Errors
    /// Where `/proc` is not as expected.
    pub fn ends_below(
        &self,
        epoch: Epoch,
        held: Option<LockFile>,
    ) -> Result<Vec<(Epoch, Ended)>, IdentityError> {
        let here = Here::look()?;
        let lower = self.blocks.iter().filter(|block| block.epoch < epoch);
        Ok(lower
            .map(|block| {
                let ended = match block.state {
                    State::Released => Ended::Released,
                    _ if here.knows_dead(&block.owner) => Ended::Dead,
                    _ if held == Some(block.lock_file) => Ended::LostLock,
                    _ => Ended::Unknown,
                };
                (block.epoch, ended)
            })
            .collect())
    }
}

/// The block of the highest epoch that wrote one; a torn block is replaced by its claim. `None` where there is none.
///
/// # Errors
/// As for [`View::of`].
pub fn newest(dir: &Path) -> Result<Option<Block>, ControlError> {
    let (control, epochs) = (Control::of(dir), Epochs::of(dir));
    control.newest()?.map(|found| whole(found, &control, &epochs)).transpose()
}

/// The block as it counts: where it is torn, what its claim says.
fn whole(found: Found, control: &Control, epochs: &Epochs) -> Result<Block, ControlError> {
    let Found { epoch, block } = found;
    match block {
        Ok(block) => Ok(block),
        Err(what) => {
            let claimer = epochs.claimer(epoch)?.ok_or_else(|| control.damaged(epoch, what))?;
            // Whatever it wrote last, it may have served. Its claim was written before it can have begun.
            Ok(Block { state: State::Active, ..claimer })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::FileExt;

    use super::super::block::tests::sample;
    use super::super::control::position_of;
    use super::super::identity::Identity;
    use super::*;
    use crate::model::name::Name;

    #[test]
    fn the_last_that_has_begun_is_the_highest_one_that_says_so() {
        let blocks = [
            Block { has_begun: true, ..block(1, State::Released, 1) },
            Block { has_begun: true, ..block(2, State::Active, 1) },
            Block { has_begun: false, ..block(3, State::Released, 1) },
        ];
        let dir = tempfile::tempdir().unwrap();
        Control::of(dir.path()).create().unwrap();
        for block in &blocks {
            Epochs::of(dir.path()).claim(&Block { has_begun: false, ..block.clone() }).unwrap();
            Control::of(dir.path()).write(block).unwrap();
        }
        let begun = |below| View::of(dir.path()).unwrap().begun_below(Epoch(below));
        assert_eq!([1, 2, 3, 9].map(begun), [0, 1, 2, 2].map(Epoch));
        tear(dir.path(), 2);
        assert_eq!(View::of(dir.path()).unwrap().begun_below(Epoch(9)), Epoch(1));
    }

    fn id(n: u8) -> Uuid {
        Uuid::from_bytes([n; 16])
    }

    fn block(epoch: u64, state: State, store: u8) -> Block {
        Block { epoch: Epoch(epoch), state, store_id: id(store), ..sample() }
    }

    /// A directory with these claims and blocks.
    fn directory(blocks: &[Block]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        Control::of(dir.path()).create().unwrap();
        for block in blocks {
            Epochs::of(dir.path()).claim(block).unwrap();
            Control::of(dir.path()).write(block).unwrap();
        }
        dir
    }

    fn tear(dir: &Path, epoch: u64) {
        let file = OpenOptions::new().write(true).open(dir.join("control")).unwrap();
        file.write_all_at(&[0xFF; 100], position_of(Epoch(epoch)) + 2000).unwrap();
    }

    #[test]
    fn the_highest_is_that_of_claims_blocks_and_manifests() {
        let dir = directory(&[]);
        assert_eq!(View::for_claim(dir.path()).unwrap().highest(), Epoch(0));
        let dir = directory(&[block(1, State::Active, 1), block(4, State::Active, 1)]);
        assert_eq!(View::for_claim(dir.path()).unwrap().highest(), Epoch(4));
        Epochs::of(dir.path()).claim(&block(6, State::Active, 1)).unwrap();
        assert_eq!(View::for_claim(dir.path()).unwrap().highest(), Epoch(6), "a claim without a block");
        fs::create_dir(dir.path().join("manifest")).unwrap();
        fs::write(dir.path().join("manifest/00000000000000000009"), b"").unwrap();
        fs::write(dir.path().join("manifest/00000000000000000077.new"), b"").unwrap();
        assert_eq!(View::for_claim(dir.path()).unwrap().highest(), Epoch(9), "a manifest without a claim");
        fs::remove_dir_all(dir.path().join("epochs")).unwrap();
        fs::remove_dir_all(dir.path().join("manifest")).unwrap();
        assert_eq!(View::for_claim(dir.path()).unwrap().highest(), Epoch(4), "a block without a claim");
    }

    #[test]
    fn the_store_is_that_of_the_highest_epoch_that_was_not_founding() {
        use State::{Active, Founding, Released};
        for (states, expected) in [
            (&[][..], None),
            (&[(1, Founding, 1)], None),
            (&[(1, Active, 1)], Some(1)),
            (&[(1, Released, 1), (2, Founding, 2)], Some(1)),
            (&[(1, Founding, 1), (2, Active, 2)], Some(2)),
            // The first founder came late and lost; the second one serves.
            (&[(1, Active, 1), (2, Active, 2)], Some(2)),
        ] {
            let blocks: Vec<_> = states.iter().map(|&(epoch, state, id)| block(epoch, state, id)).collect();
            let dir = directory(&blocks);
            let view = View::of(dir.path()).unwrap();
            assert_eq!(view.store_below(Epoch(9)).map(|(found, _)| found), expected.map(id), "{states:?}");
            assert_eq!(view.store_below(Epoch(1)), None);
        }
    }

    #[test]
    fn a_torn_block_is_told_by_its_claim_and_counts_as_one_that_may_write() {
        let dir = directory(&[block(1, State::Released, 1), block(2, State::Released, 1)]);
        tear(dir.path(), 2);
        let view = View::of(dir.path()).unwrap();
        assert_eq!((view.highest(), view.torn()), (Epoch(2), &[Epoch(2)][..]));
        assert_eq!(view.store_below(Epoch(3)), Some((id(1), Mode::File)));
        assert_eq!(newest(dir.path()).unwrap(), view.block(Epoch(2)).cloned());
        let ends = view.ends_below(Epoch(3), None).unwrap();
        assert_eq!(ends, [(Epoch(1), Ended::Released), (Epoch(2), Ended::Unknown)]);
    }

    #[test]
    fn a_torn_block_without_a_whole_claim_is_damage() {
        let dir = directory(&[block(1, State::Active, 1), block(2, State::Active, 1)]);
        tear(dir.path(), 1);
        fs::write(dir.path().join("epochs/00000000000000000001"), b"BATON").unwrap();
        let refused = View::of(dir.path());
        assert!(matches!(refused, Err(ControlError::Damaged { position: 0, .. })), "{refused:?}");
        assert_eq!(newest(dir.path()).unwrap(), Some(block(2, State::Active, 1)), "only the newest counts");
        tear(dir.path(), 2);
        fs::remove_file(dir.path().join("epochs/00000000000000000002")).unwrap();
        let refused = newest(dir.path());
        assert!(matches!(refused, Err(ControlError::Damaged { position: 4096, .. })), "{refused:?}");
    }

    #[test]
    fn the_worst_of_the_lower_epochs_counts_and_not_the_last() {
        let alive = Identity::of_this_process(Name::new("a").unwrap()).unwrap();
        let dead = Identity { started: alive.started - 1, ..alive.clone() };
        let blocks = [
            Block { owner: alive, ..block(1, State::Active, 1) },
            Block { owner: dead, ..block(2, State::Active, 1) },
            block(3, State::Released, 1),
        ];
        let view = View::of(directory(&blocks).path()).unwrap();
        let mine = blocks[0].lock_file;
        let others = [LockFile { number: 1, ..mine }, LockFile { changed_at: 1, ..mine }].map(Some);
        for (held, first) in [(Some(mine), Ended::LostLock), (None, Ended::Unknown)]
            .into_iter()
            .chain(others.map(|other| (other, Ended::Unknown)))
        {
            let ends = view.ends_below(Epoch(4), held).unwrap();
            assert_eq!(ends, [(Epoch(1), first), (Epoch(2), Ended::Dead), (Epoch(3), Ended::Released)]);
        }
    }
}
