//! What is persisted: every change of state is a [`Record`], and a commit is a batch of them made durable together.
//!
//! The broker makes records, the engine has them committed, the stores keep them. Each store has its own form for
//! them; folding them into a [`Snapshot`](super::snapshot::Snapshot) gives the same state whatever the store.

use serde::{Deserialize, Serialize};

use super::chunk::Origin;
use super::id::{GroupId, Offset, OffsetRange, ProducerId, RouteId, Sequence, TopicId};
use super::message::MessageBlock;
use super::name::Name;
use super::retry::Retry;
use super::route::Route;
use super::settings::{GroupSettings, TopicSettings};
use super::time::Timestamp;
use super::topic_kind::TopicKind;

/// One change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A topic was created, empty.
    TopicCreated {
        /// Its id, the next one free.
        topic: TopicId,
        /// Its name; no other topic that is not a part of another has it.
        name: Name,
        /// What it is.
        kind: TopicKind,
        /// Its settings.
        settings: TopicSettings,
    },
    /// A topic has other settings from now on.
    TopicChanged {
        /// The topic.
        topic: TopicId,
        /// The settings.
        settings: TopicSettings,
    },
    /// A slot without messages is used for what is due at other times. Its offsets go on.
    SlotMoved {
        /// The slot.
        slot: TopicId,
        /// The earliest time at which any of it is due.
        from: Timestamp,
        /// The first time at which none of it is due any more.
        until: Timestamp,
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
        /// The group that this is a part of, if it is one.
        part_of: Option<GroupId>,
    },
    /// A group has other settings from now on.
    GroupChanged {
        /// The group.
        group: GroupId,
        /// The settings.
        settings: GroupSettings,
    },
    /// A group was set to another place: everything below is settled, and nothing from there on but what is removed
    /// from the topic.
    GroupSought {
        /// The group.
        group: GroupId,
        /// The place.
        floor: Offset,
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
    /// A producer has published up to this sequence, in records of which none says so by itself, or has taken numbers
    /// for what is no message.
    ProducerAdvanced {
        /// The producer.
        producer: ProducerId,
        /// Its last sequence.
        last: Sequence,
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
    /// Deliveries came back.
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
    /// A route was made.
    RouteCreated {
        /// Its id, the next one free.
        route: RouteId,
        /// What it is.
        rule: Route,
    },
    /// A route is gone.
    RouteDeleted {
        /// The route.
        route: RouteId,
    },
}

/// Messages that were appended together: one block, appended to every target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where the first message went, for each topic: its offset there is the topic's end. At least one, no topic
    /// twice.
    pub targets: Vec<(TopicId, Offset)>,
    /// Who published them.
    pub source: Source,
    /// When it was accepted.
    pub at: Timestamp,
    /// The messages; at least one.
    pub block: MessageBlock,
}

/// Where the messages of a block come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The broker itself.
    Broker,
    /// A producer: the first message is the next of its sequence, and the others follow.
    Producer(Origin),
    /// Messages that are not what comes next from one producer: they were picked out of a publish, or have stood
    /// elsewhere before. How many in a row have which origin; of those with one the first has it, and the others
    /// follow. The counts add up to that of the block.
    Mixed(Vec<(u32, Option<Origin>)>),
}

impl Source {
    /// Messages in a row that have this origin, from their producer or from the broker.
    #[must_use]
    pub fn of(origin: Option<Origin>) -> Self {
        origin.map_or(Self::Broker, Self::Producer)
    }

    /// The origins of `count` messages: how many in a row have which.
    pub fn origins(&self, count: u32) -> impl Iterator<Item = (u32, Option<Origin>)> + '_ {
        let (one, many): (_, &[_]) = match self {
            Self::Broker => (Some((count, None)), &[]),
            Self::Producer(origin) => (Some((count, Some(*origin))), &[]),
            Self::Mixed(origins) => (None, origins),
        };
        one.into_iter().chain(many.iter().copied())
    }

    /// Whether it says of each of `count` messages where it comes from, and of no others.
    #[must_use]
    pub fn covers(&self, count: u64) -> bool {
        match self {
            Self::Broker | Self::Producer(_) => true,
            Self::Mixed(origins) => {
                let counts = || origins.iter().map(|&(count, _)| u64::from(count));
                counts().all(|count| count > 0) && counts().sum::<u64>() == count
            }
        }
    }
}
