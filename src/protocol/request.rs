//! Frames from the client to the node.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::error::DecodeError;
use super::frame::{RawFrame, put_head};
use super::response::{Place, RouteInfo};
use crate::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, Sequence, TopicId};
use crate::model::position::Position;
use crate::model::settings::{GroupSettings, Start, TopicSettings};
use crate::model::time::Timestamp;

/// Number that the client gives a request, and the node repeats in its answer.
pub type RequestId = u32;
/// Number that the client gives a producer or consumer of its connection.
pub type Handle = u32;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// A client: publishes, consumes, administers.
    Client,
    /// The other node: wants heartbeats, to know at once when the master is gone.
    Watch,
}

/// First frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the connection is for.
    pub purpose: Purpose,
    /// Name and version of the client, for people.
    pub client: String,
    /// Highest epoch the client has seen. A node of a lower one is no master to this client.
    pub epoch_seen: Epoch,
    /// How often the client wants to hear from the node, in milliseconds; it sends as often as
    /// [`Welcome`](super::response::Welcome) then says.
    pub heartbeat_ms: u32,
    /// How the client shows who it is; `anonymous` with nothing behind it where it does not.
    pub auth_mechanism: String,
    /// What the mechanism wants.
    pub auth_data: Vec<u8>,
}

/// Opens a producer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenProducer {
    /// Answered with [`Reply::Producer`](super::response::Reply::Producer).
    pub request: RequestId,
    /// The number by which this connection will call it.
    pub producer: Handle,
    /// Its name. Whoever opens a name last has it.
    pub name: String,
    /// The id of the producer as the client knows it: refused with `producer-expired` where the node does not.
    pub resume: Option<ProducerId>,
}

/// Publishes messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The producer.
    pub producer: Handle,
    /// Number of the first message; the others follow. It must be the one after the producer's last.
    pub sequence: Sequence,
    /// To which topics, in the order of the messages: how many of them go to which.
    pub parts: Vec<(TopicId, u32)>,
}

/// Publishes and settles: all of it, in one commit, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transact {
    /// The messages, in any number. The commit itself takes the sequence behind that of the last one, so that the last
    /// sequence of the producer tells whether it took place.
    pub publish: Publish,
    /// The settlements, at most
    /// [`TRANSACTION_SETTLEMENTS_MAX`](crate::model::limits::TRANSACTION_SETTLEMENTS_MAX) with together
    /// [`TRANSACTION_RANGES_MAX`](crate::model::limits::TRANSACTION_RANGES_MAX) ranges; no offset stands in two of
    /// them.
    pub settlements: Vec<TransactSettle>,
}

/// Settles deliveries of a consumer in a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactSettle {
    /// The consumer; one of this connection.
    pub consumer: Handle,
    /// The topic, as the deliveries named it.
    pub topic: TopicId,
    /// As for [`Settle::generation`].
    pub generation: u32,
    /// What to do: an ack, a nack or a reject.
    pub settlement: Settlement,
    /// Which offsets. Each of them must be in flight to this consumer, and its lease not over.
    pub ranges: Vec<OffsetRange>,
}

/// Closes a producer of this connection. What it published stays, and so does its sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseProducer {
    /// The producer.
    pub producer: Handle,
}

/// Makes the connection a consumer of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// Answered with [`Reply::Subscribed`](super::response::Reply::Subscribed).
    pub request: RequestId,
    /// The number by which this connection will call it.
    pub consumer: Handle,
    /// Name of the topic, or a pattern of such names.
    pub topic: String,
    /// Name of the group.
    pub group: String,
    /// Where the group begins if this creates it.
    pub start: Start,
    /// Consumers of a higher priority get messages first, as long as they have credit. 0 is the lowest.
    pub priority: u8,
    /// Settings of the group if this creates it. A group that exists keeps its own.
    pub settings: Option<GroupSettings>,
    /// How much may be in flight to this consumer; 0 messages for one that pulls.
    pub window: Window,
}

/// How much may be in flight to a consumer: its credit. What it settles comes back as credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Messages.
    pub messages: u32,
    /// Bytes of encoded messages. One message is handed out even where it is larger.
    pub bytes: u64,
}

/// Changes the window of a consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The consumer.
    pub consumer: Handle,
    /// Its window from now on.
    pub window: Window,
}

/// What a consumer does with deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settlement {
    /// Done. The group never gets the message again.
    Ack,
    /// Failed: again later. Counts as an attempt.
    Nack {
        /// Wait before the next attempt, in milliseconds; `None` for the back-off of the group.
        delay_ms: Option<u64>,
        /// What went wrong, for people; at most [`REASON_BYTES_MAX`](crate::model::limits::REASON_BYTES_MAX) bytes.
        reason: Option<String>,
    },
    /// Not touched: again at once, for whoever has credit. Does not count as a failure.
    Release,
    /// Not to be tried again: to the dead-letter topic.
    Reject {
        /// As for a nack.
        reason: Option<String>,
    },
    /// Still at work: the lease starts anew.
    Extend,
}

/// Settles deliveries of a consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settle {
    /// Answered with [`Reply::Settled`](super::response::Reply::Settled) when it is durable; 0 for no answer.
    pub request: RequestId,
    /// The consumer.
    pub consumer: Handle,
    /// The topic, as the deliveries named it.
    pub topic: TopicId,
    /// That of the last [`ConsumerRecalled`](super::response::ConsumerRecalled) of the topic before the deliveries; 0
    /// where there was none. With another one nothing is settled.
    pub generation: u32,
    /// What to do.
    pub settlement: Settlement,
    /// Everything within these ranges that is in flight to this consumer. A range from 0 settles cumulatively.
    pub ranges: Vec<OffsetRange>,
}

/// Ends a consumer. What is in flight to it goes back, uncounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsubscribe {
    /// Answered with [`Reply::Done`](super::response::Reply::Done).
    pub request: RequestId,
    /// The consumer.
    pub consumer: Handle,
}

/// Asks for messages once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// Repeated in the deliveries; [`Reply::Pulled`](super::response::Reply::Pulled) comes behind the last one.
    pub request: RequestId,
    /// The consumer.
    pub consumer: Handle,
    /// At most so many messages and bytes.
    pub window: Window,
    /// How long to wait for a first message, in milliseconds.
    pub wait_ms: u64,
}

/// Asks for the id of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindTopic {
    /// Answered with [`Reply::Topic`](super::response::Reply::Topic).
    pub request: RequestId,
    /// Its name.
    pub name: String,
}

/// Administers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    /// Repeated in the answer.
    pub request: RequestId,
    /// What to do.
    pub command: AdminCommand,
}

/// Where browsing begins, or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BrowseFrom {
    /// With what comes first.
    Beginning,
    /// With the message at this position, or the next one that is still there; not with a group.
    Position(Position),
    /// Where an answer said.
    Place(Place),
    /// With the newest messages of this priority, so many of them; with the next higher priority where there was never
    /// one of it. Not with a group.
    Newest {
        /// The priority.
        priority: u8,
        /// How many.
        count: u64,
    },
}

/// Where dead letters go when they are replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplayTo {
    /// To the group in which each died, in the topic that it came from: for the other groups it is settled.
    #[default]
    Group,
    /// To every group of the topic that each came from.
    AllGroups,
    /// To every group of this topic.
    Topic(String),
}

/// What an administrator can ask for. Append only: the order stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminCommand {
    /// Role, epoch and so on of the node; answered by a standby too.
    Status,
    /// Drain and let the other node take over.
    Switchover,
    /// The topics in the order of their names, [`LISTED_MAX`](crate::model::limits::LISTED_MAX) at a time.
    ListTopics {
        /// The last name of the answer before; `None` for the first.
        after: Option<String>,
    },
    /// Makes a topic. It is no error if it exists with the same settings.
    CreateTopic {
        /// Its name.
        name: String,
        /// Its settings.
        settings: TopicSettings,
    },
    /// Deletes a topic with its messages and groups.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// All groups, or those of one topic, in the order of their ids,
    /// [`LISTED_MAX`](crate::model::limits::LISTED_MAX) at a time.
    ListGroups {
        /// The topic, or all.
        topic: Option<String>,
        /// The last group of the answer before; `None` for the first.
        after: Option<GroupId>,
    },
    /// Makes a group. It is no error if it exists with the same settings.
    CreateGroup {
        /// Its topic.
        topic: String,
        /// Its name.
        name: String,
        /// Its settings.
        settings: GroupSettings,
        /// Where it begins.
        start: Start,
    },
    /// Deletes a group with its progress.
    DeleteGroup {
        /// Its topic.
        topic: String,
        /// Its name.
        name: String,
    },
    /// Changes the settings of a group.
    ChangeGroup {
        /// Its topic.
        topic: String,
        /// Its name.
        name: String,
        /// The settings.
        settings: GroupSettings,
    },
    /// Reads messages of a topic without any effect on it, some at a time; [`Reply::Browsed`] says where to go on.
    ///
    /// [`Reply::Browsed`]: super::response::Reply::Browsed
    Browse {
        /// The topic, or a pattern of such names if a group of it is named.
        topic: String,
        /// Only what this group has not settled, with what is known of it: what it will get, the highest priority
        /// first.
        group: Option<String>,
        /// Where to begin, or to go on.
        from: BrowseFrom,
        /// Only messages that were published at this time or later.
        since: Timestamp,
        /// Only messages that match this, an [expression](crate::model::filter).
        filter: Option<String>,
        /// At most so many messages.
        messages_max: u32,
    },
    /// Asks the store, in a language of its own, without any effect on it.
    Query {
        /// The question.
        text: String,
    },
    /// Asks for the next part of a backup of the whole store, an archive.
    Backup {
        /// The byte of the archive at which the part begins: those that the client has so far. 0 begins a new backup.
        from: u64,
    },
    /// Which slots hold the delayed messages of a topic.
    ListSlots {
        /// The topic.
        topic: String,
    },
    /// Reads delayed messages without any effect on them.
    BrowseSlot {
        /// The slot.
        slot: TopicId,
        /// First offset wanted; the nearest one that is still there.
        from: Offset,
        /// At most so many messages.
        messages_max: u32,
    },
    /// Drops delayed messages. Those that are not there any more are passed over.
    CancelDelayed {
        /// The topic.
        topic: String,
        /// The messages: their slots and their offsets there, at most
        /// [`CANCELLED_MAX`](crate::model::limits::CANCELLED_MAX).
        messages: Vec<(TopicId, Offset)>,
    },
    /// What there is to know of a topic, its groups and their consumers.
    DescribeTopic {
        /// The topic.
        topic: String,
    },
    /// Why a message is, or is not, being delivered to a group.
    Explain {
        /// The topic.
        topic: String,
        /// The message.
        position: Position,
        /// The group.
        group: String,
    },
    /// Changes the settings of a topic.
    ChangeTopic {
        /// Its name.
        name: String,
        /// The settings.
        settings: TopicSettings,
    },
    /// Drops all messages of a topic, for all its groups.
    PurgeTopic {
        /// Its name.
        name: String,
    },
    /// Settles all that a group has not settled.
    PurgeGroup {
        /// Its topic.
        topic: String,
        /// Its name.
        name: String,
    },
    /// Sets a group to another place: what is before it is settled, and what is from there on and still there is not.
    Seek {
        /// Its topic.
        topic: String,
        /// Its name.
        name: String,
        /// The place.
        to: Start,
    },
    /// Publishes dead letters once more and takes them out of their topic: each in one commit, and those that go to the
    /// same topic and group in their order. Those that are not there any more are passed over, so asking twice has the
    /// effect of once.
    ReplayDeadLetters {
        /// The topic that they are in, as the list of topics numbers it.
        topic: TopicId,
        /// Their offsets, at most [`LETTERS_MAX`](crate::model::limits::LETTERS_MAX), in any order.
        offsets: Vec<Offset>,
        /// Where they go.
        to: ReplayTo,
    },
    /// Takes messages out of a topic, whichever of its groups have had them. Those that are not there any more are
    /// passed over.
    DropMessages {
        /// The topic, as the list of topics numbers it.
        topic: TopicId,
        /// Their offsets, at most [`LETTERS_MAX`](crate::model::limits::LETTERS_MAX), in any order.
        offsets: Vec<Offset>,
    },
    /// The routes in the order of their names, [`LISTED_MAX`](crate::model::limits::LISTED_MAX) at a time.
    ListRoutes {
        /// The last name of the answer before; `None` for the first.
        after: Option<String>,
    },
    /// Makes a route, and the topics that it leads to where they are missing. It is no error if it exists like this.
    CreateRoute {
        /// What it is.
        route: RouteInfo,
    },
    /// Deletes a route.
    DeleteRoute {
        /// Its name.
        name: String,
    },
}

/// A frame from the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// First frame of a connection.
    Hello(Hello),
    /// Nothing to say, but still there.
    Heartbeat,
    /// The client closes the connection; what is in flight goes back uncounted.
    Goodbye,
    /// Opens a producer.
    OpenProducer(OpenProducer),
    /// Publishes the encoded messages behind the head. They are not checked yet.
    Publish(Publish, Bytes),
    /// Publishes the encoded messages behind the head and settles, in one commit. They are not checked yet.
    Transact(Transact, Bytes),
    /// Closes a producer.
    CloseProducer(CloseProducer),
    /// Makes the connection a consumer.
    Subscribe(Subscribe),
    /// Changes the window of a consumer.
    Flow(Flow),
    /// Settles deliveries.
    Settle(Settle),
    /// Ends a consumer.
    Unsubscribe(Unsubscribe),
    /// Asks for messages once.
    Pull(Pull),
    /// Asks for the id of a topic.
    FindTopic(FindTopic),
    /// Administers.
    Admin(Admin),
}

impl Request {
    const HELLO: u8 = 0x01;
    const HEARTBEAT: u8 = 0x02;
    const GOODBYE: u8 = 0x03;
    const OPEN_PRODUCER: u8 = 0x10;
    const PUBLISH: u8 = 0x11;
    const CLOSE_PRODUCER: u8 = 0x12;
    const TRANSACT: u8 = 0x13;
    const SUBSCRIBE: u8 = 0x20;
    const FLOW: u8 = 0x21;
    const SETTLE: u8 = 0x22;
    const UNSUBSCRIBE: u8 = 0x23;
    const PULL: u8 = 0x24;
    const FIND_TOPIC: u8 = 0x30;
    const ADMIN: u8 = 0x31;

    /// Reads a frame.
    ///
    /// # Errors
    /// Where it is not one of these. The connection cannot go on.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        Ok(match frame.kind {
            Self::HELLO => Self::Hello(frame.growing()?),
            Self::HEARTBEAT => frame.whole().map(|()| Self::Heartbeat)?,
            Self::GOODBYE => frame.whole().map(|()| Self::Goodbye)?,
            Self::OPEN_PRODUCER => Self::OpenProducer(frame.whole()?),
            Self::PUBLISH => {
                let (head, messages) = frame.head()?;
                Self::Publish(head, messages)
            }
            Self::TRANSACT => {
                let (head, messages) = frame.head()?;
                Self::Transact(head, messages)
            }
            Self::CLOSE_PRODUCER => Self::CloseProducer(frame.whole()?),
            Self::SUBSCRIBE => Self::Subscribe(frame.whole()?),
            Self::FLOW => Self::Flow(frame.whole()?),
            Self::SETTLE => Self::Settle(frame.whole()?),
            Self::UNSUBSCRIBE => Self::Unsubscribe(frame.whole()?),
            Self::PULL => Self::Pull(frame.whole()?),
            Self::FIND_TOPIC => Self::FindTopic(frame.whole()?),
            Self::ADMIN => Self::Admin(frame.whole()?),
            kind => return Err(DecodeError::UnknownKind(kind)),
        })
    }

    /// Appends the frame. Messages are copied; [`put_publish`] and [`put_transact`] do without that.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Hello(head) => put_head(out, Self::HELLO, head, 0),
            Self::Heartbeat => put_head(out, Self::HEARTBEAT, &(), 0),
            Self::Goodbye => put_head(out, Self::GOODBYE, &(), 0),
            Self::OpenProducer(head) => put_head(out, Self::OPEN_PRODUCER, head, 0),
            Self::Publish(head, messages) => {
                put_publish(out, head, messages.len());
                out.extend_from_slice(messages);
            }
            Self::Transact(head, messages) => {
                put_transact(out, head, messages.len());
                out.extend_from_slice(messages);
            }
            Self::CloseProducer(head) => put_head(out, Self::CLOSE_PRODUCER, head, 0),
            Self::Subscribe(head) => put_head(out, Self::SUBSCRIBE, head, 0),
            Self::Flow(head) => put_head(out, Self::FLOW, head, 0),
            Self::Settle(head) => put_head(out, Self::SETTLE, head, 0),
            Self::Unsubscribe(head) => put_head(out, Self::UNSUBSCRIBE, head, 0),
            Self::Pull(head) => put_head(out, Self::PULL, head, 0),
            Self::FindTopic(head) => put_head(out, Self::FIND_TOPIC, head, 0),
            Self::Admin(head) => put_head(out, Self::ADMIN, head, 0),
        }
    }
}

/// Appends the head of a publish frame behind which `messages_len` bytes of messages will follow.
pub fn put_publish(out: &mut BytesMut, head: &Publish, messages_len: usize) {
    put_head(out, Request::PUBLISH, head, messages_len);
}

/// Appends the head of a transaction frame behind which `messages_len` bytes of messages will follow.
pub fn put_transact(out: &mut BytesMut, head: &Transact, messages_len: usize) {
    put_head(out, Request::TRANSACT, head, messages_len);
}
