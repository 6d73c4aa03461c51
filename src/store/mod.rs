//! Durable records: what a store can do, whichever mode it has.
//!
//! A store keeps [records](crate::model::record::Record) and gives them back: folded into a snapshot at recovery,
//! and as messages by topic and offset afterwards. It knows nothing of consumers, connections or the lock, and it
//! never decides what is delivered. It writes only to files named by its own epoch; what it may read of older
//! epochs stands in the newest manifest.
//!
//! Order of use: [`open`](crate::store) by a master that has claimed an epoch, then any number of
//! [`commit`](Store::commit) and [`maintain`](Store::maintain) by one thread, while [`Reader`]s read on others.
//! The first error of a write or a sync is final: the process ends without touching the store again. Only a write that
//! finds no space is none: see [`StoreError::Full`].
//!
//! [`image`] has what whole stores are; [`archive`], [`conversion`] and [`survey`] are built on it.

pub mod archive;
pub mod check;
pub mod codec;
pub mod conversion;
pub mod course;
pub mod database;
pub mod digest;
pub mod file;
pub mod guess;
pub mod image;
pub mod manifest;
pub mod orphans;
pub mod query;
pub mod source;
pub mod space;
pub mod survey;

use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use crate::model::chunk::Chunk;
use crate::model::free_min::FreeMin;
use crate::model::id::{Epoch, Offset, OffsetRange, TopicId};
pub use crate::model::mode::Mode;
pub use crate::model::predecessor::{Predecessor, Predecessors};
use crate::model::record::Record;
use crate::model::snapshot::{Snapshot, SnapshotError};
use manifest::Manifest;
use query::Inspector;

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The shared directory. It exists.
    pub dir: PathBuf,
    /// The mode of the store (for a new one, the configured mode).
    pub mode: Mode,
    /// The epoch that the caller has claimed; every file is named by it.
    pub epoch: Epoch,
    /// How the epochs before ended.
    pub predecessors: Predecessors,
    /// Bytes after which the journal starts a new segment, or the write-ahead log is checkpointed.
    pub segment_bytes: u64,
}

/// The fence does not hold. The process must end without touching the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fenced {
    /// A higher epoch exists.
    #[error("epoch {0} has taken over")]
    Superseded(Epoch),
    /// A lower epoch, which was thought dead, has converted the store since this one was claimed.
    #[error(
        "epoch {by} has converted the store to {to} mode after this one was claimed; the next one serves it"
    )]
    Converted {
        /// The epoch.
        by: Epoch,
        /// The mode that the store has.
        to: Mode,
    },
    /// Lock or control file cannot be read, or are not what they must be.
    #[error("{0}")]
    Unknown(String),
}

/// What goes wrong in a store. All of it ends the process but [`StoreError::Full`], and what concerns [reads](Reader).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "write to".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The database answered with an error.
    #[error("database: {action}: {message}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// The database's own words.
        message: String,
    },
    /// The database says that its file is not what it has written.
    #[error(
        "database: {action}: {message} (the file is damaged: see `baton store verify`, then restore a backup or `baton store salvage`)"
    )]
    DatabaseDamaged {
        /// What was tried.
        action: &'static str,
        /// The database's own words.
        message: String,
    },
    /// Bytes on disk are not what was written. The node refuses to serve incomplete data.
    #[error("{}: damaged{}: {what}; `baton store verify` lists all damage; then restore a backup, or copy what is left with `baton store salvage`", path.display(), at(*position))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes; 0 at its beginning, or where only `what` says where.
        position: u64,
        /// What is wrong.
        what: String,
    },
    /// The records do not fit together.
    #[error("{}: {source}", path.display())]
    Inconsistent {
        /// The file with the record.
        path: PathBuf,
        /// What does not fit.
        source: SnapshotError,
    },
    /// A file is of a format that this version does not know.
    #[error("{}: format {found}, this version knows up to {known}; run the newer baton on both nodes", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The highest format known here.
        known: u32,
    },
    /// A file that must be there is not.
    #[error("{} is missing: is the right file system mounted? If it is, `baton store verify` lists what is lost, and `baton store salvage` copies what is left", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file or folder may not be read and written by this process.
    #[error("{} cannot be read and written: {source}; is it mounted read-only, or another user's? The user of the node must own all of the store", path.display())]
    NoRights {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// There is no space for what a new master makes before it can serve. Nothing was claimed or written.
    #[error("{}: a master takes {needed} bytes before it can serve, and {free} are free; make space on the shared disk: what waits can be consumed then, which makes more", path.display())]
    NoSpaceToBegin {
        /// The shared directory.
        path: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// There is no space for the copy of a database that somebody may still write to. Nothing was claimed or written.
    #[error("{}: its old master may still write, so the database must be copied, which takes {needed} bytes, and {free} are free; make space on the shared disk, or start the node on the host of the old master, which needs no copy once that has ended there", path.display())]
    NoSpaceToCopy {
        /// The database.
        path: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free, with what a takeover would remove.
        free: u64,
    },
    /// A copy has not all that the original has. The original counts.
    #[error(
        "the copy is not what the original is: {0}; the original counts, and nothing of it was changed. Please report it"
    )]
    Differs(String),
    /// There is no space left for a commit, of about so many bytes. The store is as it was before, and the same commit
    /// may be tried again.
    #[error("no space left for a commit of {0} bytes")]
    Full(u64),
    /// The fence does not hold.
    #[error(transparent)]
    Fenced(#[from] Fenced),
}

impl StoreError {
    /// Whether what is on the disk is not what was written: it does not get better by trying again.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::DatabaseDamaged { .. } | Self::Inconsistent { .. })
    }

    /// Whether space was all that was missing. For whoever makes a store that does not count yet, where it is the same
    /// whether a commit, a sync or a new file has met it.
    #[must_use]
    pub fn is_lack_of_space(&self) -> bool {
        match self {
            Self::Full(_) | Self::NoSpaceToCopy { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// A place in a file, for people.
fn at(position: u64) -> String {
    if position == 0 { String::new() } else { format!(" at byte {position}") }
}

/// Opens the store in a shared directory for an epoch that the caller has claimed, and recovers its state. When it
/// returns, the store is sealed: nothing that an older epoch still writes counts.
///
/// `fence` is asked before anything is written, and again and again during work whose length has no bound. So each
/// time that it holds is progress, and an epoch that was superseded meanwhile ends early.
///
/// # Errors
/// Where the store is damaged, missing or of a newer format, a higher epoch exists, or files cannot be read and
/// written.
pub fn open(options: &OpenOptions, fence: FenceCheck<'_>) -> Result<(Box<dyn Store>, Snapshot), StoreError> {
    fence()?;
    open_sealing(options, fence).or_else(|error| {
        // A successor may have removed what was to be read: then that is what has happened, and nothing is wrong.
        fence()?;
        Err(error)
    })
}

fn open_sealing(
    options: &OpenOptions,
    fence: FenceCheck<'_>,
) -> Result<(Box<dyn Store>, Snapshot), StoreError> {
    let newest = Manifest::newest(&options.dir, options.epoch)?;
    check::check_begun(&options.dir, newest.as_ref(), options.predecessors.begun())?;
    match options.mode {
        Mode::Database => database::open_fenced(options, fence),
        Mode::File => file::open(options),
    }
}

/// Bytes from which a block of messages is worth being [staged](Store::stage): a commit of many small ones may be as
/// large.
pub const STAGED_BYTES_MIN: u64 = 4 << 20;

/// A check of the fence: a fresh read that begins when it is called.
pub type FenceCheck<'a> = &'a mut dyn FnMut() -> Result<(), Fenced>;

/// Durable records. Owned and used by one thread.
pub trait Store: Send {
    /// Makes the records durable, all or none of them. When it returns they survive a power loss.
    ///
    /// # Errors
    /// Any error but [`StoreError::Full`] is final: what is on disk is not known. After that one the store goes on
    /// with the same records, or is left.
    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError>;

    /// Begins to write a block of messages to the disk ahead of the commit that will hold it, beside other commits, so
    /// that this commit is as short as they are. `staged` is called, on whatever thread, once the commit may come; the
    /// commit finds the block by where it lies in memory. A block that finds no space is written by its commit; any
    /// other error is final and is told by the next call.
    fn stage(&mut self, block: Bytes, staged: Box<dyn FnOnce() + Send>);

    /// Bytes of a block that was staged which its commit finds on the disk.
    fn staged_bytes(&self, block: &Bytes) -> u64;

    /// Forgets a block that was staged: a commit has taken it, or none will.
    ///
    /// # Errors
    /// As for [`commit`](Self::commit).
    fn unstage(&mut self, block: &Bytes) -> Result<(), StoreError>;

    /// Bytes of messages, heads included, that the next commit may have: less than what is free, so that a full disk
    /// can be drained, and nothing of what the operator keeps free. Where that is little, the store gives back what it
    /// does not use. Another program that fills the disk meanwhile can make it wrong.
    ///
    /// # Errors
    /// Where the system does not say, or something has failed before.
    fn space(&mut self, free_min: FreeMin) -> Result<u64, StoreError>;

    /// A reader of committed messages, to be used on any other thread.
    ///
    /// # Errors
    /// Where it cannot be opened.
    fn reader(&self) -> Result<Box<dyn Reader>, StoreError>;

    /// What the store holds now. `snapshot` is the state after the last commit. What it needs stays on the disk until
    /// the image is dropped or the store closed, which ends it.
    ///
    /// # Errors
    /// Where it cannot be had. The store goes on.
    fn image(&mut self, snapshot: &mut dyn FnMut() -> Snapshot) -> Result<Box<dyn image::Image>, StoreError>;

    /// Answers queries about what is committed, on any other thread; `None` in a mode that cannot be asked.
    ///
    /// # Errors
    /// Where it cannot be opened.
    fn inspector(&self) -> Result<Option<Box<dyn Inspector>>, StoreError> {
        Ok(None)
    }

    /// Whether [`maintain`](Self::maintain) has something to do.
    fn maintenance_due(&self) -> bool;

    /// Whether what [`maintain`](Self::maintain) has begun goes on in the background. Once it is done, maintenance is
    /// due again; until then there is nothing to be done about it.
    fn maintenance_under_way(&self) -> bool {
        false
    }

    /// One bounded step of upkeep: a checkpoint, the removal of what was trimmed, or the beginning of such work in the
    /// background, of whose end a later step takes note. `snapshot` is the state after the last commit; `fence` must
    /// have said yes before anything is written, and once more after whatever makes a removal right.
    ///
    /// # Errors
    /// As for [`commit`](Self::commit), and where the fence is broken.
    fn maintain(
        &mut self,
        snapshot: &mut dyn FnMut() -> Snapshot,
        fence: FenceCheck<'_>,
    ) -> Result<(), StoreError>;

    /// As [`maintain`](Self::maintain) while a commit is held for want of space: only what can make some, and nothing
    /// that needs the state of the caller, which is ahead of what is committed.
    ///
    /// # Errors
    /// As for [`maintain`](Self::maintain).
    fn make_space(&mut self, fence: FenceCheck<'_>) -> Result<(), StoreError>;

    /// As [`close`](Self::close) while a commit is held: it does not count, and recovery reads what it would have read
    /// after a crash. Nothing is being written any more.
    ///
    /// # Errors
    /// As for [`maintain`](Self::maintain).
    fn leave(self: Box<Self>, fence: FenceCheck<'_>) -> Result<(), StoreError>;

    /// Leaves the store in a state that is quick to recover. The epoch is still held.
    ///
    /// # Errors
    /// As for [`maintain`](Self::maintain).
    fn close(
        self: Box<Self>,
        snapshot: &mut dyn FnMut() -> Snapshot,
        fence: FenceCheck<'_>,
    ) -> Result<(), StoreError>;
}

/// Reads committed messages beside the thread that commits.
pub trait Reader: Send {
    /// Messages of `topic` from offset `from` on: consecutive, the first one at `from`, up to `bytes_max` bytes of
    /// encoded messages but at least one message. `None` where that offset is trimmed, removed or not yet committed.
    ///
    /// # Errors
    /// Where the message at `from` cannot be read or is damaged. One behind it only ends what is read.
    fn read(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, Unreadable>;
}

/// Why messages could not be read, and which.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unreadable {
    /// The messages that cannot be read for this reason, as far as is known: the wanted one is among them, and of the
    /// others some may be gone.
    pub range: OffsetRange,
    /// The reason.
    pub error: StoreError,
}

impl Unreadable {
    /// For this reason the message at an offset cannot be read; nothing is known of others.
    #[must_use]
    pub const fn of_one(offset: Offset, error: StoreError) -> Self {
        Self { range: OffsetRange::one(offset), error }
    }
}

impl From<Unreadable> for StoreError {
    fn from(error: Unreadable) -> Self {
        error.error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A conversion that met a full disk with a sync, or a new file, and not with a commit, kept the node from starting.
    #[test]
    fn a_full_disk_is_lack_of_space_wherever_it_is_met() {
        let met = |source: io::ErrorKind| StoreError::Io {
            action: "sync",
            path: "f".into(),
            source: source.into(),
        };
        assert!(met(io::ErrorKind::StorageFull).is_lack_of_space());
        assert!(met(io::ErrorKind::QuotaExceeded).is_lack_of_space());
        assert!(StoreError::Full(1).is_lack_of_space());
        assert!(!met(io::ErrorKind::Other).is_lack_of_space());
    }
}
