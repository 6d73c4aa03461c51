//! What is persisted: every change of state is a [`Record`], and a commit is a batch of them made durable together.
//!
//! The broker makes records, the engine has them committed, the stores keep them. Each store has its own form for
//! them; folding them into a [`Snapshot`](super::snapshot::Snapshot) gives the same state whatever the store.

use serde::{Deserialize, Serialize};

use super::chunk::Origin;
use super::id::{GroupId, Offset, OffsetRange, ProducerId, TopicId};
use super::message::MessageBlock;
use super::name::Name;
use super::settings::{GroupSettings, TopicSettings};
use super::time::Timestamp;

/// One change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A topic was created, empty.
    TopicCreated {
        /// Its id, the next one free.
        topic: TopicId,
        /// Its name; no other topic has it.
        name: Name,
        /// Its settings.
        settings: TopicSettings,
    },
    /// A topic is gone with all its messages. Its groups were deleted by records before this one.
    TopicDeleted {
        /// The topic.
        topic: TopicId,
    },
    /// A group was created.
    GroupCreated {
        /// Its id, the next one free.
        group: GroupId,
        /// The topic whose messages it gets.
        topic: TopicId,
        /// Its name; no other group of the topic has it.
        name: Name,
        /// Its settings.
        settings: GroupSettings,
        /// Everything below is settled from the start.
        floor: Offset,
    },
    /// A group has other settings from now on.
    GroupChanged {
        /// The group.
        group: GroupId,
        /// The settings.
        settings: GroupSettings,
    },
    /// A group is gone with its progress.
    GroupDeleted {
        /// The group.
        group: GroupId,
    },
    /// A producer was seen for the first time.
    ProducerOpened {
        /// Its id, the next one free.
        producer: ProducerId,
        /// Its name; no other living producer has it.
        name: Name,
        /// When.
        at: Timestamp,
    },
    /// A producer is forgotten.
    ProducerExpired {
        /// The producer.
        producer: ProducerId,
    },
    /// Messages were published.
    Published(Published),
    /// A group is done with these messages, in whatever way.
    Settled {
        /// The group.
        group: GroupId,
        /// The offsets; not empty, none settled before.
        ranges: Vec<OffsetRange>,
    },
    /// Deliveries came back and the attempt counts.
    Returned {
        /// The group.
        group: GroupId,
        /// The offsets; not empty.
        range: OffsetRange,
        /// What is known of each of them now.
        retry: Retry,
    },
    /// Deliveries below this offset may have been handed out. Written ahead of handing out, in steps, so that after
    /// a takeover only what may have been handed out is marked as redelivered.
    HandedOut {
        /// The group.
        group: GroupId,
        /// First offset that was certainly not handed out.
        end: Offset,
    },
    /// Messages in the middle of a topic are gone: every group has settled them, but not all that is before them.
    Removed {
        /// The topic.
        topic: TopicId,
        /// The offsets; not empty, none removed before.
        ranges: Vec<OffsetRange>,
    },
    /// The messages of a topic below this offset are gone.
    Trimmed {
        /// The topic.
        topic: TopicId,
        /// First offset that is still there.
        start: Offset,
    },
}

/// Messages that were published together: one block, appended to every target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where the first message went, for each topic: its offset there is the topic's end. At least one, no topic
    /// twice.
    pub targets: Vec<(TopicId, Offset)>,
    /// Origin of the first message; the others follow in sequence. `None` for what the broker itself publishes.
    pub origin: Option<Origin>,
    /// When it was accepted.
    pub at: Timestamp,
    /// The messages; at least one.
    pub block: MessageBlock,
}

/// Why a delivery came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReturnReason {
    /// The consumer gave it back to be tried again.
    Nacked,
    /// The consumer held it for longer than the lease.
    LeaseExpired,
    /// The consumer's connection ended.
    ConsumerLost,
    /// The consumer wants it dead-lettered.
    Rejected,
}

/// What is known of a message that was handed out in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Failed attempts so far; at least 1.
    pub attempts: u32,
    /// Not handed out again before this.
    pub due_at: Timestamp,
    /// Why it came back last.
    pub reason: ReturnReason,
}
