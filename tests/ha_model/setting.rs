//! What is checked: a mode of the store, a kind of lock, a size, and the rules, whole or with one of them broken.

use super::epochs::PerEpoch;
use super::properties::Reach;

/// Where the records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A file for each epoch, and the manifest says how much of each counts.
    File,
    /// One database, which a new master goes on with in place or copies.
    Database,
}

/// What the lock is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locks {
    /// It excludes, and is free only once its holder has ended.
    Exclude,
    /// It excludes, but a holder may lose it at any time and does not notice.
    GetLost,
    /// Everybody gets it.
    Lie,
}

/// How much there is to be tried.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Processes that want to be master after the first one; each claims at most once.
    pub takers: usize,
    /// Records that the master of each epoch writes.
    pub records: PerEpoch<u8>,
}

/// The rules, or the rules with one of them broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    AsWritten,

    // The claim.
    /// The next epoch is 1 + that of `control`, whatever was claimed, and a claim excludes nobody.
    NextEpochFromControlAlone,
    /// A claim does not fail where the epoch was claimed by another process meanwhile.
    ClaimWithoutExclusion,
    /// The records of older epochs are read, and then the epoch is claimed.
    ScanBeforeClaim,
    /// The epoch is claimed, the records of older epochs are read, and then the block is written.
    ScanBeforeBlock,
    NoSecondLook,
    /// Which lower epochs may write is taken from the look before the claim.
    PredecessorsFromTheFirstLook,
    /// Only the last epoch is asked whether its owner is dead.
    OnlyTheLastPredecessor,

    // The control file.
    /// One block for all epochs.
    OneBlockForAll,
    /// Two blocks, which the epochs use in turns.
    TwoBlocksInTurns,

    // The seal.
    /// Of the lower epochs only the one that `control` names is read.
    SealOnlyTheEpochInControl,
    /// What was read is not synced before it is sealed.
    SealWithoutSync,
    /// One manifest for all epochs, so that the last one that was written is followed.
    OneManifestForAll,
    /// What is not sealed of an older epoch's file is cut off.
    CutTheTail,
    /// One file for all epochs to append to.
    OneJournalForAll,
    /// The folder is listed after the manifest was read.
    ListAfterManifest,
    /// A recovery begins with the newest checkpoint there is, also where it has more than was sealed.
    AnyCheckpoint,
    /// An old database is used in place, whoever may still write it.
    AlwaysInPlace,
    /// No check between the last read of a copy and its manifest.
    NoCheckBeforeManifest,
    /// Copies that never served are removed without a check.
    NoCheckBeforeAbandoned,
    /// Before a copy, every database goes that the newest manifest does not name, whoever may be making it.
    RemoveCopiesOfTheLiving,

    // The beginning.
    /// An epoch says that it has begun before its file is made.
    BeginBeforeSegment,
    /// Which epoch has begun is looked for after the folder was listed.
    BegunAfterListing,
    /// No epoch says that it has begun.
    NobodyBegins,

    // The confirm.
    /// Only the lock keeps masters apart.
    NoFence,
    CheckBeforeWrite,
    /// The check starts after the write, but before the sync is over.
    CheckBeforeSync,
    /// The fence is checked from time to time, and not for each commit.
    CheckOnATimer,
    /// A resend of what was written is answered from memory, before the check.
    DuplicateBeforeCheck,
    /// What was recovered is told to those who send it again, before the check.
    RecoveredBeforeCheck,

    // The upkeep.
    /// Files are removed without a check after what makes that right.
    RemoveBeforeCheck,
    /// Files are removed before the checkpoint is durable that has what they held.
    RemoveBeforeCheckpoint,

    // Stale reads.
    /// The claimer's first look may show what it was before.
    StaleLook,
    StaleSecondLook,
    StaleManifest,
    StaleTail,
    StaleFence,
}

/// One world to be explored.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub mode: Mode,
    pub locks: Locks,
    pub size: Size,
    pub rules: Rules,
    pub reach: Reach,
}
