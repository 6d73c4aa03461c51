//! The claim of an epoch: from the lock to a mastership, and its release.
//!
//! # Sequence
//!
//! 1. The lock is held (the caller's). Where locks lie it may be held twice; nothing below depends on it.
//! 2. Look: the next epoch is 1 + the highest of all claims, blocks and manifests. Claim it with O_EXCL; if another
//!    process was quicker, look again. Then write its block, durably.
//! 3. Look again, afresh. Anything higher than mine: lost. What the lower epochs are is taken from this look.
//!
//! Only then may the records of older epochs be read. A process that lost, or failed on the way, has written nothing
//! but its own claim and its own block, and the lock is let go with the error, so that nobody holds it who does not
//! serve. Dropping a [`Mastership`] writes nothing; only [`Mastership::begin`], [`Mastership::note_mode`] and the
//! releases do, into its own block.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::block::{Address, Block, State};
use super::control::{Control, ControlError, EPOCH_MAX};
use super::directory::DirectoryError;
use super::epochs::{Attempt, Epochs};
use super::fence::{Fence, FenceError, FenceRead};
use super::identity::{Identity, IdentityError};
use super::lock::{LockError, StoreLock};
use super::view::{Ended, View};
use crate::model::id::Epoch;
use crate::model::mode::Mode;
use crate::model::predecessor::{Predecessor, Predecessors};
use crate::model::time::Timestamp;

/// How often a claim is tried again because another process was quicker.
const CLAIMS_MAX: usize = 64;

/// Who wants to be master.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// This process.
    pub identity: Identity,
    /// Where clients will reach it.
    pub address: Address,
    /// The mode of the store, if this process makes a new one. An existing store keeps its own.
    pub mode: Mode,
}

/// Why a claim did not make a master. The process must end, or begin again as a standby.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process claimed a higher epoch.
    #[error("epoch {mine} is lost: epoch {higher} was claimed")]
    Lost {
        /// The epoch that this process claimed.
        mine: Epoch,
        /// The higher one.
        higher: Epoch,
    },
    /// Other processes were quicker each time.
    #[error(
        "no epoch claimed in {CLAIMS_MAX} attempts, others were quicker: how many nodes use this directory?"
    )]
    Contended,
    /// The block of this process's own epoch is not what it wrote.
    #[error("{0}; epoch {1} was claimed by this process alone")]
    Foreign(ControlError, Epoch),
    /// The lock is not what it was.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The directory is not to be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The control file or the claims cannot be read or written.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It cannot be found out which processes are dead.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why an epoch was not released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The fence is broken. Nothing was written.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// The block cannot be written.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// What becomes of the writes of a host that has lost the lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LateWrites {
    /// None of them arrives.
    Fail,
    /// They may arrive.
    #[default]
    MayArrive,
}

/// An epoch that this process owns, with the lock.
#[derive(Debug)]
pub struct Mastership {
    lock: StoreLock,
    control: Control,
    block: Block,
    lower: Vec<(Epoch, Ended)>,
    /// The highest lower epoch that has begun.
    begun: Epoch,
    late_writes: LateWrites,
    torn: Vec<Epoch>,
}

/// How the epochs so far have ended, as far as it shows before a claim of whom holds the lock. What counts after it is
/// what [`Mastership::predecessors`] says.
///
/// # Errors
/// Where that cannot be read, or is damaged.
pub fn predecessors(lock: &StoreLock, late_writes: LateWrites) -> Result<Predecessors, ClaimError> {
    let view = View::of(lock.directory().path())?;
    let all = EPOCH_MAX.next();
    let lower = view.ends_below(all, Some(lock.lock_file()?))?;
    Ok(known_ends(&lower, view.begun_below(all), late_writes))
}

/// What a store makes of the ends of epochs.
fn known_ends(lower: &[(Epoch, Ended)], begun: Epoch, late_writes: LateWrites) -> Predecessors {
    let end = |&(epoch, ended)| match (ended, late_writes) {
        (Ended::Released | Ended::Dead, _) | (Ended::LostLock, LateWrites::Fail) => {
            (epoch, Predecessor::Gone)
        }
        (Ended::LostLock, LateWrites::MayArrive) | (Ended::Unknown, _) => (epoch, Predecessor::MayWrite),
    };
    Predecessors::new(lower.iter().map(end).collect()).begun_up_to(begun)
}

/// Claims the next epoch of the locked directory.
///
/// # Errors
/// Where another process was quicker or is higher, or anything is not in order. The lock is then let go.
pub fn claim(lock: StoreLock, candidate: Candidate) -> Result<Mastership, ClaimError> {
    lock.verify()?;
    let block = claim_next(&lock, candidate)?;
    Control::of(lock.directory().path()).write(&block)?;
    second_look(lock, block)
}

/// The epoch in which a store is made that is whole from the beginning.
pub const FIRST_EPOCH: Epoch = Epoch(1);

/// Makes the locked directory a store, released by [`FIRST_EPOCH`], whose files were made beforehand: until this
/// returns they are no store, and no node makes one beside them. Answers the identity of the store, a new one.
///
/// # Errors
/// Where somebody else has claimed the epoch, or the files cannot be written.
pub fn found(lock: &StoreLock, candidate: Candidate) -> Result<Uuid, ClaimError> {
    lock.verify()?;
    let dir = lock.directory().path();
    let Candidate { identity: owner, address, mode } = candidate;
    let at = now().max(Timestamp(1));
    let block = Block {
        epoch: FIRST_EPOCH,
        state: State::Released,
        has_begun: true,
        owner,
        address,
        lock_file: lock.lock_file()?,
        store_id: Uuid::now_v7(),
        mode,
        claimed_at: at,
        released_at: at,
    };
    Control::of(dir).create()?;
    // A claim that is torn later is told by its file: that says that it founds.
    if Epochs::of(dir).claim(&Block { state: State::Founding, has_begun: false, ..block.clone() })?
        == Attempt::Taken
    {
        return Err(ClaimError::Contended);
    }
    Control::of(dir).write(&block)?;
    Ok(block.store_id)
}

/// Looks whether an epoch is still the highest now that its block is written, and how the lower ones have ended. Step
/// `SecondLook` of `tests/ha_model`.
fn second_look(lock: StoreLock, mut block: Block) -> Result<Mastership, ClaimError> {
    let dir = lock.directory().path();
    let control = Control::of(dir);
    let mine = block.epoch;
    let view = View::for_claim(dir)?;
    if view.highest() > mine {
        return Err(ClaimError::Lost { mine, higher: view.highest() });
    }
    if view.block(mine) != Some(&block) || view.torn().contains(&mine) {
        let damage = control.damaged(mine, "not the block that was written");
        return Err(ClaimError::Foreign(damage, mine));
    }
    // The store is settled by this look alone: a lower epoch that this one's first look missed may have founded it.
    let settled = match view.store_below(mine) {
        Some((store_id, mode)) => {
            lock.directory().check(&view, mine)?;
            Block { state: State::Active, store_id, mode, ..block.clone() }
        }
        None => Block { state: State::Active, ..block.clone() },
    };
    if settled != block {
        control.write(&settled)?;
        block = settled;
    }
    let (lower, begun) = (view.ends_below(mine, Some(block.lock_file))?, view.begun_below(mine));
    let torn = view.torn().to_vec();
    Ok(Mastership { lock, control, block, lower, begun, late_writes: LateWrites::MayArrive, torn })
}

/// Claims the number after the highest there is; the block is that of its claim.
fn claim_next(lock: &StoreLock, candidate: Candidate) -> Result<Block, ClaimError> {
    let dir = lock.directory().path();
    let Candidate { identity: owner, address, mode } = candidate;
    let mut block = Block {
        epoch: Epoch(0),
        state: State::Founding,
        has_begun: false,
        owner,
        address,
        lock_file: lock.lock_file()?,
        store_id: Uuid::now_v7(),
        mode,
        claimed_at: now(),
        released_at: Timestamp(0),
    };
    for _ in 0..CLAIMS_MAX {
        look(lock, &mut block)?;
        Control::of(dir).create()?;
        if Epochs::of(dir).claim(&block)? == Attempt::Mine {
            return Ok(block);
        }
    }
    Err(ClaimError::Contended)
}

/// Looks for the number after the highest there is, and for the store. Step `Look` of `tests/ha_model`.
fn look(lock: &StoreLock, block: &mut Block) -> Result<(), ClaimError> {
    let view = View::for_claim(lock.directory().path())?;
    block.epoch = view.highest().next();
    lock.directory().check(&view, block.epoch)?;
    if let Some((store_id, mode)) = view.store_below(block.epoch) {
        (block.state, block.store_id, block.mode) = (State::Active, store_id, mode);
    }
    Ok(())
}

impl Mastership {
    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.block.epoch
    }

    /// The store.
    #[must_use]
    pub fn store_id(&self) -> Uuid {
        self.block.store_id
    }

    /// The mode of the store as far as the epochs before tell, whatever the candidate wanted. What counts is in the
    /// store's manifest, where there is one.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.block.mode
    }

    /// The lock.
    #[must_use]
    pub fn lock(&self) -> &StoreLock {
        &self.lock
    }

    /// Epochs whose block is torn; worth a word in the log.
    #[must_use]
    pub fn torn(&self) -> &[Epoch] {
        &self.torn
    }

    /// How every lower epoch that wrote a block has ended, lowest first.
    #[must_use]
    pub fn lower(&self) -> &[(Epoch, Ended)] {
        &self.lower
    }

    /// How the epochs before this one ended and which has begun, for the store to know what may still be written and
    /// what must be there.
    #[must_use]
    pub fn predecessors(&self) -> Predecessors {
        known_ends(&self.lower, self.begun, self.late_writes)
    }

    /// Says what becomes on this storage of the writes of a host that has lost the lock; without it, they may arrive.
    pub fn note_late_writes(&mut self, late_writes: LateWrites) {
        self.late_writes = late_writes;
    }

    /// A fence of this epoch. Each thread that checks has its own.
    #[must_use]
    pub fn fence(&self, read: FenceRead) -> Fence {
        Fence::new(self.control.path(), &self.block, read)
    }

    /// How `epoch` has ended; `None` of one that never wrote a block.
    #[must_use]
    pub fn ended(&self, epoch: Epoch) -> Option<Ended> {
        let at = self.lower.binary_search_by_key(&epoch, |&(lower, _)| lower).ok()?;
        Some(self.lower[at].1)
    }

    /// Records which mode the store has, where that is another one than the block says: what counts is in the store
    /// itself, and the block is for those who only look. `read` is how the fence is read.
    ///
    /// # Errors
    /// Where the fence is broken or the block cannot be written; the process must end.
    pub fn note_mode(&mut self, mode: Mode, read: FenceRead) -> Result<(), ReleaseError> {
        if self.block.mode == mode {
            return Ok(());
        }
        self.rewrite(Block { mode, ..self.block.clone() }, read)
    }

    /// Says in its own block that the epoch has [begun](Block::has_begun), with a store of this mode. To be called when
    /// the store is open, or made whole, and before anything of it is confirmed. `read` is how the fence is read. Step
    /// `Begin` of `tests/ha_model`.
    ///
    /// # Errors
    /// Where the fence is broken or the block cannot be written; the process must end.
    pub fn begin(&mut self, mode: Mode, read: FenceRead) -> Result<(), ReleaseError> {
        self.rewrite(Block { mode, has_begun: true, ..self.block.clone() }, read)
    }

    /// Ends the mastership: says in its own block that nothing of this epoch will be written any more, durably, and
    /// lets the lock go. To be called when that is true: the store is closed. `read` is how the fence is read.
    ///
    /// # Errors
    /// Where the fence is broken or the block cannot be written. The lock is let go all the same.
    pub fn release(self, read: FenceRead) -> Result<(), ReleaseError> {
        self.release_epoch(read).map(drop)
    }

    /// As [`release`](Self::release), but keeps the lock: for the next epoch of this process. Steps `CheckRelease` and
    /// `Release` of `tests/ha_model`.
    ///
    /// # Errors
    /// As for [`release`](Self::release).
    pub fn release_epoch(mut self, read: FenceRead) -> Result<StoreLock, ReleaseError> {
        // 0 would mean that it is not released.
        let released_at = now().max(Timestamp(1));
        self.rewrite(Block { state: State::Released, released_at, ..self.block.clone() }, read)?;
        Ok(self.lock)
    }

    fn rewrite(&mut self, block: Block, read: FenceRead) -> Result<(), ReleaseError> {
        self.fence(read).check()?;
        self.control.write(&block)?;
        self.block = block;
        Ok(())
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::thread;

    use super::super::control::position_of;
    use super::super::directory::{Create, Directory};
    use super::super::lock::LockAttempt;
    use super::*;
    use crate::model::name::Name;

    fn candidate(mode: Mode) -> Candidate {
        let identity = Identity::of_this_process(Name::new("a").unwrap()).unwrap();
        Candidate { identity, address: Address::new("127.0.0.1:7470").unwrap(), mode }
    }

    /// A candidate whose process is certainly dead by now.
    fn dead_candidate() -> Candidate {
        let mut candidate = candidate(Mode::File);
        candidate.identity.started -= 1;
        candidate
    }

    fn open(dir: &tempfile::TempDir) -> Directory {
        Directory::open(dir.path(), Create::Allowed, None).unwrap()
    }

    fn locked(directory: &Directory) -> StoreLock {
        match directory.try_lock().unwrap() {
            LockAttempt::Acquired(lock) => lock,
            LockAttempt::Held => panic!("the lock is held"),
        }
    }

    /// A claim by somebody whose lock excludes nobody.
    fn claimed(dir: &tempfile::TempDir, candidate: Candidate) -> Mastership {
        claim(StoreLock::lying(&open(dir)), candidate).unwrap()
    }

    /// What follows on the claim of an epoch.
    fn write_block_and_look(lock: StoreLock, block: Block) -> Result<Mastership, ClaimError> {
        Control::of(lock.directory().path()).write(&block)?;
        second_look(lock, block)
    }

    fn is_superseded(mastership: &Mastership, by: u64) -> bool {
        let found = mastership.fence(FenceRead::Reopen).check();
        matches!(found, Err(FenceError::Superseded(epoch)) if epoch == Epoch(by))
    }

    fn block(dir: &Path, epoch: u64) -> Block {
        View::of(dir).unwrap().block(Epoch(epoch)).unwrap().clone()
    }

    #[test]
    fn a_store_that_is_founded_whole_is_released_and_the_next_epoch_goes_on_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = locked(&open(&dir));
        let id = found(&lock, candidate(Mode::Database)).unwrap();
        assert!(matches!(found(&lock, candidate(Mode::Database)), Err(ClaimError::Contended)));
        let next = claim(lock, candidate(Mode::File)).unwrap();
        assert_eq!((next.epoch(), next.store_id(), next.mode()), (Epoch(2), id, Mode::Database));
        assert_eq!(next.ended(FIRST_EPOCH), Some(Ended::Released));
        assert_eq!((next.ended(Epoch(2)), next.predecessors().all()), (None, Predecessor::Gone));
    }

    #[test]
    fn a_process_may_go_from_one_epoch_to_the_next_without_letting_the_lock_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = claim(locked(&open(&dir)), candidate(Mode::File)).unwrap();
        first.note_mode(Mode::Database, FenceRead::Reopen).unwrap();
        let lock = first.release_epoch(FenceRead::Reopen).unwrap();
        assert!(matches!(open(&dir).try_lock(), Ok(LockAttempt::Held)));
        let second = claim(lock, candidate(Mode::File)).unwrap();
        assert_eq!((second.epoch(), second.mode()), (Epoch(2), Mode::Database));
        assert_eq!(second.ended(Epoch(1)), Some(Ended::Released));
    }

    #[test]
    fn the_first_master_makes_the_store_and_the_next_ones_keep_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = claim(locked(&open(&dir)), candidate(Mode::File)).unwrap();
        assert_eq!((first.epoch(), first.mode()), (Epoch(1), Mode::File));
        assert_eq!(first.predecessors().all(), Predecessor::None);
        assert_eq!(first.store_id().get_version_num(), 7);
        let id = first.store_id();
        assert_eq!(open(&dir).status().unwrap(), Some(block(dir.path(), 1)));
        assert_eq!(block(dir.path(), 1).state, State::Active);
        first.release(FenceRead::Reopen).unwrap();
        assert_eq!(block(dir.path(), 1).state, State::Released);
        assert_ne!(block(dir.path(), 1).released_at, Timestamp(0));

        let directory = Directory::open(dir.path(), Create::Refused, Some(id)).unwrap();
        let second = claim(locked(&directory), candidate(Mode::Database)).unwrap();
        assert_eq!((second.epoch(), second.store_id(), second.mode()), (Epoch(2), id, Mode::File));
        assert_eq!(second.predecessors().all(), Predecessor::Gone);
        second.fence(FenceRead::Reopen).check().unwrap();
    }

    #[test]
    fn a_master_that_may_live_is_told_from_a_dead_and_a_released_one() {
        let dir = tempfile::tempdir().unwrap();
        drop(claimed(&dir, dead_candidate()));
        assert_eq!(claimed(&dir, candidate(Mode::File)).predecessors().all(), Predecessor::Gone);
        assert_eq!(claimed(&dir, candidate(Mode::File)).predecessors().all(), Predecessor::MayWrite);
        claimed(&dir, candidate(Mode::File)).release(FenceRead::Reopen).unwrap();
        let expected = predecessors(&StoreLock::lying(&open(&dir)), LateWrites::MayArrive).unwrap();
        let last = claimed(&dir, candidate(Mode::File));
        assert_eq!(format!("{:?}", last.predecessors()), format!("{expected:?}"));
        let ends = [Ended::Dead, Ended::LostLock, Ended::LostLock, Ended::Released];
        assert_eq!(last.lower(), (1..).map(Epoch).zip(ends).collect::<Vec<_>>());
        assert_eq!(last.predecessors().all(), Predecessor::MayWrite);
        assert_eq!(last.predecessors().since(Epoch(4)), Predecessor::Gone);
        assert_eq!(last.predecessors().since(Epoch(3)), Predecessor::MayWrite);
        assert_eq!(last.predecessors().since(Epoch(9)), Predecessor::MayWrite, "an epoch without a block");
    }

    #[test]
    fn one_that_lost_this_very_lock_is_gone_where_late_writes_fail() {
        let dir = tempfile::tempdir().unwrap();
        drop(claimed(&dir, candidate(Mode::Database)));
        let mut second = claimed(&dir, candidate(Mode::Database));
        assert_eq!(second.predecessors().all(), Predecessor::MayWrite, "as long as nothing is known");
        second.note_late_writes(LateWrites::Fail);
        assert_eq!(second.predecessors().all(), Predecessor::Gone);

        // Whoever has the lock of the file from before has lost nothing.
        fs::rename(dir.path().join("baton.lock"), dir.path().join("old")).unwrap();
        let mut third = claimed(&dir, candidate(Mode::Database));
        third.note_late_writes(LateWrites::Fail);
        assert_eq!(third.lower(), [(Epoch(1), Ended::Unknown), (Epoch(2), Ended::Unknown)]);
        assert_eq!(third.predecessors().all(), Predecessor::MayWrite);
        let before = predecessors(third.lock(), LateWrites::Fail).unwrap();
        assert_eq!((before.of(Epoch(2)), before.of(Epoch(3))), (Predecessor::MayWrite, Predecessor::Gone));
    }

    /// Another broker's node kept the lock after its start failed, and nobody served.
    #[test]
    fn a_claim_that_fails_lets_the_lock_go() {
        let dir = tempfile::tempdir().unwrap();
        claimed(&dir, candidate(Mode::File)).release(FenceRead::Reopen).unwrap();
        let directory = open(&dir);
        let lock = locked(&directory);
        fs::write(dir.path().join("epochs/99999999999999999999"), b"").unwrap();
        assert!(matches!(claim(lock, candidate(Mode::File)), Err(ClaimError::Control(_))));
        locked(&directory);
    }

    /// The lease of another broker was held by configured name: two nodes with one name were both master.
    #[test]
    fn two_nodes_of_one_name_are_two() {
        let dir = tempfile::tempdir().unwrap();
        let one = claimed(&dir, candidate(Mode::File));
        let two = claimed(&dir, candidate(Mode::File));
        assert_eq!((one.epoch(), two.epoch()), (Epoch(1), Epoch(2)));
        assert!(is_superseded(&one, 2));
        two.fence(FenceRead::Reopen).check().unwrap();
    }

    #[test]
    fn a_release_after_a_successor_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let one = claimed(&dir, candidate(Mode::File));
        let two = claimed(&dir, candidate(Mode::File));
        let before = fs::read(dir.path().join("control")).unwrap();
        assert!(matches!(
            one.release(FenceRead::Reopen),
            Err(ReleaseError::Fence(FenceError::Superseded(Epoch(2))))
        ));
        assert_eq!(fs::read(dir.path().join("control")).unwrap(), before);
        two.fence(FenceRead::Reopen).check().unwrap();
    }

    #[test]
    fn a_mastership_that_is_dropped_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let one = claimed(&dir, candidate(Mode::File));
        let before = fs::read(dir.path().join("control")).unwrap();
        drop(one);
        assert_eq!(fs::read(dir.path().join("control")).unwrap(), before);
        assert!(dir.path().join("baton.lock").exists());
    }

    #[test]
    fn a_converted_store_keeps_its_new_mode() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = claimed(&dir, candidate(Mode::File));
        one.note_mode(Mode::Database, FenceRead::Reopen).unwrap();
        one.fence(FenceRead::Reopen).check().unwrap();
        one.release(FenceRead::Reopen).unwrap();
        let mut two = claimed(&dir, candidate(Mode::File));
        assert_eq!(two.mode(), Mode::Database);
        let three = claimed(&dir, candidate(Mode::File));
        assert!(two.note_mode(Mode::File, FenceRead::Reopen).is_err());
        assert_eq!(three.mode(), Mode::Database);
    }

    /// A takeover that dies half-way leaves a claim alone, or a claim and a block.
    #[test]
    fn the_next_takeover_continues_after_one_that_died_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let id = claimed(&dir, dead_candidate()).store_id();
        let died = Block { epoch: Epoch(2), ..block(dir.path(), 1) };
        Epochs::of(dir.path()).claim(&died).unwrap();
        let third = claimed(&dir, dead_candidate());
        assert_eq!(
            (third.epoch(), third.store_id(), third.predecessors().all()),
            (Epoch(3), id, Predecessor::Gone)
        );
        // Torn within its block.
        let fourth = Block { epoch: Epoch(4), ..died };
        Epochs::of(dir.path()).claim(&fourth).unwrap();
        for length in [1, 13, 512, 2048, 4095] {
            let file = OpenOptions::new().write(true).open(dir.path().join("control")).unwrap();
            file.write_all_at(&fourth.encode()[..length], position_of(Epoch(4))).unwrap();
            assert!(is_superseded(&third, 4), "{length} bytes");
        }
        let fifth = claimed(&dir, candidate(Mode::Database));
        assert_eq!((fifth.epoch(), fifth.store_id(), fifth.mode()), (Epoch(5), id, Mode::File));
        assert_eq!((fifth.torn(), fifth.predecessors().all()), (&[Epoch(4)][..], Predecessor::Gone));
    }

    /// The first founder is overtaken between its claim and its block; it must lose, whatever it writes later.
    #[test]
    fn a_founder_that_comes_late_does_not_change_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let late = claim_next(&StoreLock::lying(&open(&dir)), candidate(Mode::Database)).unwrap();
        let second = claimed(&dir, candidate(Mode::File));
        assert_eq!(second.predecessors().all(), Predecessor::None, "a claim without a block never serves");
        assert_ne!(second.store_id(), late.store_id);
        Control::of(dir.path()).write(&late).unwrap();
        second.fence(FenceRead::Reopen).check().unwrap();
        assert_eq!(View::of(dir.path()).unwrap().highest(), Epoch(2), "the late one sees this and has lost");
        let third = claimed(&dir, candidate(Mode::Database));
        assert_eq!((third.store_id(), third.mode()), (second.store_id(), Mode::File));
    }

    /// The first look of the second founder misses the store that the first one then makes and serves.
    #[test]
    fn a_founder_that_finds_a_store_at_its_second_look_takes_it_over() {
        let dir = tempfile::tempdir().unwrap();
        let slow = claim_next(&StoreLock::lying(&open(&dir)), candidate(Mode::Database)).unwrap();
        assert_eq!(slow.state, State::Founding);
        let path = dir.path().join("epochs");
        fs::rename(path.join(format!("{:020}", 1)), path.join(format!("{:020}", 2))).unwrap();
        let first = Block { epoch: Epoch(1), state: State::Active, store_id: Uuid::nil(), ..slow.clone() };
        Epochs::of(dir.path()).claim(&first).unwrap();
        Control::of(dir.path()).write(&first).unwrap();
        let slow = Block { epoch: Epoch(2), ..slow };
        let mastership = write_block_and_look(StoreLock::lying(&open(&dir)), slow).unwrap();
        assert_eq!((mastership.epoch(), mastership.store_id()), (Epoch(2), Uuid::nil()));
        assert_eq!(block(dir.path(), 2).store_id, Uuid::nil());
        assert_eq!(block(dir.path(), 2).state, State::Active);
    }

    #[test]
    fn a_claimer_that_sees_anything_higher_has_lost() {
        for higher in ["epochs", "manifest"] {
            let dir = tempfile::tempdir().unwrap();
            let directory = open(&dir);
            let mine = claim_next(&StoreLock::lying(&directory), candidate(Mode::File)).unwrap();
            fs::create_dir_all(dir.path().join(higher)).unwrap();
            fs::write(dir.path().join(higher).join(format!("{:020}", 5)), b"").unwrap();
            let lost = write_block_and_look(StoreLock::lying(&directory), mine);
            assert!(matches!(lost, Err(ClaimError::Lost { mine: Epoch(1), higher: Epoch(5) })), "{lost:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mine = claim_next(&StoreLock::lying(&open(&dir)), candidate(Mode::File)).unwrap();
        Control::of(dir.path()).write(&Block { epoch: Epoch(3), ..mine.clone() }).unwrap();
        let lost = write_block_and_look(StoreLock::lying(&open(&dir)), mine);
        assert!(matches!(lost, Err(ClaimError::Lost { higher: Epoch(3), .. })), "{lost:?}");
    }

    #[test]
    fn a_lock_file_that_was_replaced_is_noticed_before_anything_is_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let lock = locked(&open(&dir));
        fs::remove_file(dir.path().join("baton.lock")).unwrap();
        assert!(matches!(
            claim(lock, candidate(Mode::File)),
            Err(ClaimError::Lock(LockError::Deleted { .. }))
        ));
        assert!(!dir.path().join("epochs").exists());
    }

    /// Nodes whose locks exclude nobody start at once, many times: whoever is master owns its epoch alone, all but
    /// the highest are fenced, and there is one store.
    #[test]
    fn of_claimers_whose_locks_lie_only_the_highest_passes_the_fence() {
        for _ in 0..30 {
            let dir = tempfile::tempdir().unwrap();
            let directory = open(&dir);
            let claimers: Vec<_> = (0..4)
                .map(|_| {
                    let lock = StoreLock::lying(&directory);
                    thread::spawn(move || claim(lock, candidate(Mode::File)))
                })
                .collect();
            let results: Vec<_> = claimers.into_iter().map(|claimer| claimer.join().unwrap()).collect();
            let lost = |error: &ClaimError| matches!(error, ClaimError::Lost { .. } | ClaimError::Contended);
            assert!(results.iter().flat_map(|result| result.as_ref().err()).all(lost), "{results:?}");
            let mut masters: Vec<_> = results.into_iter().flatten().collect();
            masters.sort_by_key(Mastership::epoch);
            let last = masters.pop().expect("the highest claimer always gets through");
            last.fence(FenceRead::Reopen).check().unwrap();
            assert!(masters.iter().all(|lower| lower.epoch() < last.epoch()));
            assert!(masters.iter().all(|lower| is_superseded(lower, last.epoch().0)));
            let store = View::of(dir.path()).unwrap().store_below(last.epoch().next());
            assert_eq!(store, Some((last.store_id(), Mode::File)));
        }
    }

    #[test]
    fn two_that_start_at_once_on_an_empty_directory_make_one_store() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let nodes: Vec<_> = (0..2)
                .map(|_| {
                    let path = dir.path().join("store");
                    thread::spawn(move || {
                        let directory = Directory::open(&path, Create::Allowed, None).unwrap();
                        match directory.try_lock().unwrap() {
                            LockAttempt::Acquired(lock) => Some(claim(lock, candidate(Mode::File)).unwrap()),
                            LockAttempt::Held => None,
                        }
                    })
                })
                .collect();
            // Both are kept, so that the second one never finds the lock free because the first is done.
            let masters: Vec<_> = nodes.into_iter().map(|node| node.join().unwrap()).collect();
            assert_eq!(masters.iter().flatten().count(), 1);
            assert_eq!(fs::read_dir(dir.path().join("store/epochs")).unwrap().count(), 1);
        }
    }
}
