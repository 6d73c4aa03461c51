//! What the lead asks of the second, and what is answered.
//!
//! A question names one of a few things to do with files of the check; none has a path or an amount, so that somebody
//! who finds the port can do no harm with it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::coherence::Place;
use super::creating::Kind;
use super::late_write::Written;
use super::mount::Mount;
use super::options::LostLocks;
use super::report::Report;
use super::space::Space;
use super::sync::Times;
use crate::ha::fence::FenceRead;

/// A side, as it sees the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// The name of its host.
    pub host: String,
    /// The boot of its kernel.
    pub boot: Uuid,
    /// The number of the device that its kernel has for the file system.
    pub device: u64,
    /// How it has the directory mounted.
    pub mount: Mount,
    /// Space as it sees it.
    pub space: Space,
    /// What its NFS client does with files whose lock was lost.
    pub lost_locks: LostLocks,
}

/// What the lead asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", content = "with", rename_all = "kebab-case")]
pub enum Ask {
    /// First of all: who are you, and what do you see in the folder of this run?
    Meet {
        /// The run, which names the folder.
        run: Uuid,
    },
    /// Try to take the lock, once, and keep it.
    Lock,
    /// Let the lock go, or let a process that holds it for you go.
    Unlock,
    /// Take the lock as soon as it is free.
    AwaitLock,
    /// Let a process take the lock.
    Hold,
    /// Kill that process.
    Kill,
    /// Create what nobody else has created.
    Race(Kind),
    /// Write a block with this number, and sync it.
    Put {
        /// Where.
        place: Place,
        /// The number.
        number: u64,
    },
    /// Read the block afresh that has or ought to have this number.
    Get {
        /// Where.
        place: Place,
        /// The number.
        number: u64,
        /// How.
        read: FenceRead,
    },
    /// Make the name with this number.
    Name(u64),
    /// Is the name with this number listed?
    IsNamed(u64),
    /// Measure how long a write and a sync take.
    Sync,
    /// Write until the lock is lost, and then a few times more.
    WriteLate {
        /// How long at most, in milliseconds.
        within_ms: u64,
    },
    /// That is what came of it all.
    End(Box<Report>),
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", content = "with", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Ask::Meet`]: who it is, and the token that it has read in the folder of the run.
    Met {
        /// Who.
        side: Box<Side>,
        /// The token.
        token: Uuid,
    },
    /// It is done.
    Done,
    /// To [`Ask::Lock`]: whether the lock was had. An error is that of the system.
    Locked(Result<bool, String>),
    /// To [`Ask::AwaitLock`]: whether the lock was had in time.
    Awaited(bool),
    /// To [`Ask::Race`]: the rounds that it has won.
    Raced(Result<Vec<u32>, String>),
    /// To [`Ask::Get`]: the number of the block; `None` where there is no whole one.
    Block(Option<u64>),
    /// To [`Ask::IsNamed`].
    IsNamed(bool),
    /// To [`Ask::Sync`].
    Times(Times),
    /// To [`Ask::WriteLate`], after a [`Answer::Done`] when the writing has begun.
    Written(Written),
    /// What was asked for could not be done.
    Failed(String),
}
