//! Frames from the node to the client.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::error::{DecodeError, Refusal};
use super::frame::{RawFrame, put_head};
use super::growing;
use super::request::{Handle, RequestId, Window};
use crate::model::chunk::Origin;
use crate::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, Sequence, TopicId};
use crate::model::retry::Failure;
use crate::model::route::RouteMode;
use crate::model::settings::{GroupSettings, TopicSettings};
use crate::model::table::Table;
use crate::model::time::Timestamp;
use crate::model::version::VersionRange;

/// Answer of a master to [`Hello`](super::request::Hello).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The node's epoch. A client refuses one lower than it has seen.
    pub epoch: Epoch,
    /// Name of the node.
    pub node: String,
    /// Identity of the store.
    pub store_id: String,
    /// Program and version of the node, for people.
    pub server: String,
    /// How often either side sends something, in milliseconds. Silence for three times as long ends the connection.
    pub heartbeat_ms: u32,
    /// Longest frame the node takes, in bytes.
    pub frame_bytes_max: u64,
    /// Longest body the node takes, in bytes.
    pub body_bytes_max: u64,
    /// Most bytes of headers in a message that the node takes.
    pub header_bytes_max: u64,
    /// Most bytes of encoded messages in a transaction that the node takes.
    pub transaction_bytes_max: u64,
    /// Store time; 0 from a node that is older than this field.
    #[serde(default, deserialize_with = "growing::added")]
    pub time: Timestamp,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Serves clients.
    Master,
    /// Waits for the lock.
    Standby,
    /// Has the lock and does not serve: it reads the store, or the store does not answer.
    Recovering,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Master => "master",
            Self::Standby => "standby",
            Self::Recovering => "recovering",
        })
    }
}

/// Answer of a node that is not master to [`Hello`](super::request::Hello). Only the status may be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotMaster {
    /// What the node is.
    pub role: Role,
    /// Address of the master, where it is known.
    pub master: Option<String>,
}

/// Sign of life of a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Its epoch.
    pub epoch: Epoch,
    /// How long ago its fence held, in milliseconds.
    pub fence_age_ms: u32,
}

/// Everything of a producer up to this sequence is durable: messages, and transactions with all that is in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirm {
    /// The producer.
    pub producer: Handle,
    /// Sequence of the last message or transaction that is confirmed.
    pub sequence: Sequence,
}

/// Nothing of a producer from this sequence on was taken, until it starts again with this sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRefused {
    /// The producer.
    pub producer: Handle,
    /// Sequence of the first message of the frame that was refused.
    pub sequence: Sequence,
    /// The sequence that the node expects next; what is below is stored, and was confirmed before this frame. A
    /// frame that begins above it is refused as out of sequence. The client goes on by sending again from here; a
    /// message that it gives up leaves its number to the next one.
    pub expected: Sequence,
    /// Why.
    pub refusal: Refusal,
}

/// There is room again in a topic that was full: the producer, refused with `topic-blocked`, sends again from what
/// the refusal said is expected. Comes once after each such refusal; nobody else gets the room for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishReady {
    /// The producer.
    pub producer: Handle,
}

/// Consecutive messages of one delivery frame that have the rest in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Offset of the first.
    pub offset: Offset,
    /// How many.
    pub count: u32,
    /// Number of this attempt: 1 plus the attempts that failed.
    pub attempt: u32,
    /// Number of this hand-over, as far as is known: 1 plus those that came back, failed or untouched.
    pub delivery: u32,
    /// Whether it may have been handed out before, counted as an attempt or not (after a takeover for example).
    pub redelivered: bool,
    /// When they were published.
    pub published_at: Timestamp,
    /// Origin of the first; the others follow in sequence. `None` for what the broker itself published.
    pub origin: Option<Origin>,
}

/// Messages for a consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deliver {
    /// The consumer.
    pub consumer: Handle,
    /// The topic that the messages are in: that of the group, or one that [`ConsumerTopic`] has named before.
    pub topic: TopicId,
    /// The pull that this answers; 0 where the node pushes.
    pub request: RequestId,
    /// What the messages behind the head are, in their order.
    pub runs: Vec<Run>,
    /// How the last attempt failed, for those of which that is known, in their order.
    pub failures: Vec<FailureRun>,
}

/// How the last attempt of consecutive messages failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureRun {
    /// The messages.
    pub range: OffsetRange,
    /// The failure.
    pub failure: Failure,
}

/// Messages of another topic come to a consumer: its group has several, or they have a priority. Comes before them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerTopic {
    /// The consumer.
    pub consumer: Handle,
    /// The number by which deliveries call the topic.
    pub topic: TopicId,
    /// Its name.
    pub name: String,
    /// The priority of its messages: those of each but 0 have offsets of their own.
    pub priority: u8,
}

/// A topic that was [named](ConsumerTopic) to a consumer is gone, and with it what the consumer has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerTopicGone {
    /// The consumer.
    pub consumer: Handle,
    /// The topic. Its number will not come again.
    pub topic: TopicId,
}

/// Whether a consumer of an exclusive group gets messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// It does.
    Active,
    /// It waits for the active one to go.
    Waiting,
}

/// A consumer of an exclusive group has another role from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerRole {
    /// The consumer.
    pub consumer: Handle,
    /// Its role.
    pub activity: Activity,
}

/// What a consumer was handed of a topic and has not settled is not its any more: the group was set to another place,
/// or its messages were purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerRecalled {
    /// The consumer.
    pub consumer: Handle,
    /// The topic.
    pub topic: TopicId,
    /// How often that has happened to this consumer and topic. Settlements of what comes from now on name it, so that
    /// one that was on its way settles nothing that is handed out again.
    pub generation: u32,
}

/// A consumer was ended by the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerClosed {
    /// The consumer.
    pub consumer: Handle,
    /// Why.
    pub refusal: Refusal,
}

/// What there is to know of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// What it is.
    pub role: Role,
    /// Its epoch; of a standby, the one of the master it knows.
    pub epoch: Epoch,
    /// The mode of the store.
    pub mode: String,
    /// Identity of the store; empty where there is none yet.
    pub store_id: String,
    /// Address of the master, where it is known.
    pub master: Option<String>,
    /// Program and version.
    pub version: String,
    /// Seconds since it has this role.
    pub role_seconds: u64,
    /// Client connections.
    pub connections: u64,
    /// Topics.
    pub topics: u64,
    /// Groups.
    pub groups: u64,
    /// Messages in the topics: what some group still waits for, and what no group has asked for yet.
    pub messages: u64,
    /// Messages that are to be delivered later; they are not in the topics yet.
    pub delayed: u64,
    /// The floating addresses that the node has while it is master.
    #[serde(with = "growing::list")]
    pub addresses: Vec<FloatingStatus>,
    /// The versions of the protocol that it speaks.
    pub protocol: VersionRange,
    /// The formats of a store that it reads.
    pub store_formats: VersionRange,
    /// The format in which it writes a store.
    pub store_format: u32,
    /// Messages that it could not read from the store when they were last asked for; 0 from a node that is older than this
    /// field.
    #[serde(default, deserialize_with = "growing::added")]
    pub unreadable: u64,
}

/// A floating address of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingStatus {
    /// The address, with the length of its prefix.
    pub address: String,
    /// Whether the node has it.
    pub here: bool,
}

/// What there is to know of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicInfo {
    /// Its id.
    pub topic: TopicId,
    /// Its name.
    pub name: String,
    /// Its settings.
    pub settings: TopicSettings,
    /// First offset of priority 0 that is still there.
    pub start: Offset,
    /// Offset that the next message of priority 0 gets.
    pub end: Offset,
    /// Messages of all priorities that are there: what is settled by all groups may be gone between start and end too.
    pub messages: u64,
    /// Messages that are to be delivered later, and are not in the topic yet.
    pub delayed: u64,
    /// Number of its groups.
    pub groups: u32,
    /// Of a pattern, the number of topics that it stands for.
    pub matching: Option<u64>,
}

/// What there is to know of a topic, its groups and their consumers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicDescription {
    /// The topic.
    #[serde(with = "growing")]
    pub topic: TopicInfo,
    /// Bytes of its messages, about.
    pub bytes: u64,
    /// Messages of each priority but 0 for which there were any.
    pub lanes: Vec<(u8, u64)>,
    /// How long ago its oldest message was published, in milliseconds, about; `None` where there is none.
    pub oldest_age_ms: Option<u64>,
    /// Messages published in 1000 seconds, by the last ten.
    pub published_per_kilosecond: u64,
    /// Its groups, in the order of their ids, as many as fit.
    #[serde(with = "growing::list")]
    pub groups: Vec<GroupDescription>,
}

/// What there is to know of a group and its consumers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDescription {
    /// The group.
    #[serde(with = "growing")]
    pub group: GroupInfo,
    /// How long ago the oldest message was published that it has not settled, in milliseconds, about; `None` where
    /// there is none.
    pub lag_ms: Option<u64>,
    /// Messages handed out in 1000 seconds, by the last ten.
    pub delivered_per_kilosecond: u64,
    /// Messages acknowledged in 1000 seconds, by the last ten.
    pub acked_per_kilosecond: u64,
    /// Its consumers, as many as fit.
    #[serde(with = "growing::list")]
    pub consumers: Vec<ConsumerDescription>,
}

/// What there is to know of a consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerDescription {
    /// Its client, and from where.
    pub client: String,
    /// Number of its connection.
    pub connection: u64,
    /// The number by which the connection calls it.
    pub consumer: Handle,
    /// Its priority.
    pub priority: u8,
    /// Messages in flight to it.
    pub in_flight: u64,
    /// What may be in flight to it.
    pub window: Window,
    /// Pulls that wait.
    pub pulls: u32,
    /// When it last acknowledged something.
    pub last_ack_at: Option<Timestamp>,
    /// In an exclusive group, whether it gets messages.
    pub activity: Option<Activity>,
}

/// What becomes of a message for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MessageState {
    /// There is none of that offset yet.
    NotPublished,
    /// It is not there any more.
    Gone,
    /// The group is done with it.
    Settled,
    /// A consumer has it.
    InFlight,
    /// It waits for the time of another attempt.
    Delayed,
    /// It is on its way to the dead letters.
    Dying,
    /// Its time is over.
    Expired,
    /// The filter of the group does not match it.
    Filtered,
    /// Another message with its key comes first.
    BehindKey,
    /// Group or topic are paused.
    Paused,
    /// Nobody can take it.
    NoCredit,
    /// A limit of the group is reached.
    Limited,
    /// Others come first.
    Waiting,
    /// It is about to be handed out.
    Ready,
    /// The store cannot read it.
    Unreadable,
    /// It is among the dead letters. Nodes say that it is settled, or gone; whoever asks may look for its letter.
    Dead,
}

impl MessageState {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotPublished => "not-published",
            Self::Gone => "gone",
            Self::Settled => "settled",
            Self::InFlight => "in-flight",
            Self::Delayed => "delayed",
            Self::Dying => "dying",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::Filtered => "filtered",
            Self::BehindKey => "behind-key",
            Self::Paused => "paused",
            Self::NoCredit => "no-credit",
            Self::Limited => "limited",
            Self::Waiting => "waiting",
            Self::Ready => "ready",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Why a message is, or is not, being delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// In a word.
    pub state: MessageState,
    /// In a sentence.
    pub text: String,
}

/// What there is to know of a slot: a log of messages that are due at about the same time. When the time comes, they
/// are moved to their topic, or before that to other slots. Once its time is over it may hold messages that are due at
/// other times, under further offsets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotInfo {
    /// Its number.
    pub slot: TopicId,
    /// The earliest time at which any of its messages is due.
    pub from: Timestamp,
    /// The first time at which none is due any more.
    pub until: Timestamp,
    /// First offset that is still there.
    pub start: Offset,
    /// Offset that the next message gets.
    pub end: Offset,
    /// Messages in it.
    pub messages: u64,
}

/// What there is to know of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its id.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// Name of its topic.
    pub topic: String,
    /// Its settings.
    pub settings: GroupSettings,
    /// Everything below is settled.
    pub floor: Offset,
    /// Messages that it has not settled, those in flight included.
    pub waiting: u64,
    /// Messages handed out and not settled.
    pub in_flight: u64,
    /// Messages that wait for another attempt.
    pub retries: u64,
    /// Messages that are parked behind their key or for its consumer, in a group that hands out by key.
    pub parked: u64,
    /// Its consumers.
    pub consumers: u32,
}

/// What became of dead letters that were to be replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// They were published and taken out of their topic.
    pub replayed: u64,
    /// They were not there any more.
    pub gone: u64,
    /// They are with a consumer of their topic, and stay.
    pub held: u64,
    /// They do not say where they came from, or that topic is gone and may not be made by using it: they stay.
    pub homeless: u64,
    /// They were for the group in which they died, and that is gone: they stay.
    pub groupless: u64,
    /// They were for the group in which they died, and its filter does not match them: they stay.
    pub unwanted: u64,
    /// They were for the group in which they died, and the topic keeps last values, which are the same for all groups:
    /// they stay.
    pub last_values: u64,
    /// The store cannot read them: they stay. 0 from a node that is older than this field.
    #[serde(default, deserialize_with = "growing::added")]
    pub unreadable: u64,
}

/// Where browsing goes on: in this topic, with this offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The topic.
    pub topic: TopicId,
    /// The offset.
    pub offset: Offset,
}

/// What is to become of a message that a group has not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It waits for a consumer.
    Waiting,
    /// A consumer has it.
    InFlight,
    /// It waits for this time, and then for a consumer: an attempt has failed.
    Returned {
        /// The time.
        due_at: Timestamp,
    },
    /// It is on its way to the dead letters.
    Dying,
}

/// What is to become of consecutive messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRun {
    /// The messages.
    pub range: OffsetRange,
    /// What is to become of each.
    pub state: Standing,
}

/// A rule that passes messages of one topic on to others, in the commit in which they are published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteInfo {
    /// Its name.
    pub name: String,
    /// Name of the topic to which messages are published.
    pub from: String,
    /// Names of the topics that get them.
    pub to: Vec<String>,
    /// Which messages, an [expression](crate::model::filter); all where there is none.
    pub filter: Option<String>,
    /// What becomes of them in their own topic.
    pub mode: RouteMode,
}

/// Answers to requests. Append only: the order stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done, and durable.
    Done,
    /// A producer is open.
    Producer {
        /// Its id.
        id: ProducerId,
        /// Sequence of its last message in the store.
        last: Sequence,
    },
    /// A consumer is subscribed.
    Subscribed {
        /// Its group.
        group: GroupId,
        /// Its topic.
        topic: TopicId,
        /// Settings of the group, as they are.
        settings: GroupSettings,
    },
    /// Deliveries are settled, and that is durable.
    Settled {
        /// How many were in flight to the consumer and are settled now.
        count: u64,
    },
    /// A pull is complete.
    Pulled {
        /// How many messages it got.
        count: u32,
    },
    /// A topic.
    Topic {
        /// Its id.
        id: TopicId,
    },
    /// Status of the node.
    Status(#[serde(with = "growing")] Box<NodeStatus>),
    /// Topics.
    Topics {
        /// In the order of their names.
        #[serde(with = "growing::list")]
        topics: Vec<TopicInfo>,
        /// Whether more follow behind the last one.
        more: bool,
    },
    /// Groups.
    Groups {
        /// In the order of their ids.
        #[serde(with = "growing::list")]
        groups: Vec<GroupInfo>,
        /// Whether more follow behind the last one.
        more: bool,
    },
    /// Messages read without effect: each encoded message with its run. All are of one topic and one priority.
    Browsed {
        /// Name of their topic.
        topic: String,
        /// Their priority.
        priority: u8,
        /// What the messages are.
        runs: Vec<Run>,
        /// What is to become of them, where a group was named: all of them, in their order.
        states: Vec<StateRun>,
        /// How the last attempt failed, for those of which that is known, in their order.
        failures: Vec<FailureRun>,
        /// Where to go on; `None` behind the last message. What an answer may contain is looked for as far as a
        /// bounded amount of work goes, so one without messages may say where to go on.
        next: Option<Place>,
        /// The encoded messages, one behind the other. They stand behind the head of the frame.
        #[serde(skip)]
        messages: Bytes,
    },
    /// What a query is answered with.
    Table(Table),
    /// A part of a backup.
    BackupPart {
        /// Whether the archive ends with it.
        last: bool,
        /// The bytes. They stand behind the head of the frame.
        #[serde(skip)]
        bytes: Bytes,
    },
    /// Slots with delayed messages. Those without are left out.
    Slots {
        /// The one that is due first comes first.
        #[serde(with = "growing::list")]
        slots: Vec<SlotInfo>,
    },
    /// A topic, its groups and their consumers.
    Description(#[serde(with = "growing")] Box<TopicDescription>),
    /// Why a message is, or is not, being delivered.
    Explanation(#[serde(with = "growing")] Explanation),
    /// So many messages were dropped, or settled by a purge, and that is durable.
    Dropped {
        /// How many.
        count: u64,
    },
    /// What became of dead letters that were to be replayed; it is durable.
    Replayed(#[serde(with = "growing")] Replayed),
    /// Routes.
    Routes {
        /// In the order of their names.
        #[serde(with = "growing::list")]
        routes: Vec<RouteInfo>,
        /// Whether more follow behind the last one.
        more: bool,
    },
}

/// A frame to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The node is master.
    Welcome(Welcome),
    /// The node is not master.
    NotMaster(NotMaster),
    /// Sign of life.
    Heartbeat(Heartbeat),
    /// The node stops serving; nothing more comes. The client reconnects, to whichever node is master.
    Goodbye(Refusal),
    /// What the client did ends the connection.
    Failed(Refusal),
    /// Answer to a request.
    Reply(RequestId, Result<Reply, Refusal>),
    /// Messages are durable.
    Confirm(Confirm),
    /// Messages were not taken.
    PublishRefused(PublishRefused),
    /// There is room again for a producer.
    PublishReady(PublishReady),
    /// The encoded messages behind the head are for a consumer.
    Deliver(Deliver, Bytes),
    /// A consumer was ended.
    ConsumerClosed(ConsumerClosed),
    /// Messages of another topic come to a consumer.
    ConsumerTopic(ConsumerTopic),
    /// No more messages of a topic come to a consumer.
    ConsumerTopicGone(ConsumerTopicGone),
    /// A consumer has another role.
    ConsumerRole(ConsumerRole),
    /// Deliveries are not the consumer's any more.
    ConsumerRecalled(ConsumerRecalled),
}

impl Response {
    const WELCOME: u8 = 0x81;
    const NOT_MASTER: u8 = 0x82;
    const HEARTBEAT: u8 = 0x83;
    const GOODBYE: u8 = 0x84;
    const FAILED: u8 = 0x85;
    const REPLY: u8 = 0x90;
    const CONFIRM: u8 = 0x91;
    const PUBLISH_REFUSED: u8 = 0x92;
    const PUBLISH_READY: u8 = 0x93;
    const DELIVER: u8 = 0xa0;
    const CONSUMER_CLOSED: u8 = 0xa1;
    const CONSUMER_TOPIC: u8 = 0xa2;
    const CONSUMER_ROLE: u8 = 0xa3;
    const CONSUMER_RECALLED: u8 = 0xa4;
    const CONSUMER_TOPIC_GONE: u8 = 0xa5;

    /// Reads a frame.
    ///
    /// # Errors
    /// Where it is not one of these. The connection cannot go on.
    pub fn decode(frame: &RawFrame) -> Result<Self, DecodeError> {
        Ok(match frame.kind {
            Self::WELCOME => Self::Welcome(frame.growing()?),
            Self::NOT_MASTER => Self::NotMaster(frame.growing()?),
            Self::HEARTBEAT => Self::Heartbeat(frame.whole()?),
            Self::GOODBYE => Self::Goodbye(frame.whole()?),
            Self::FAILED => Self::Failed(frame.whole()?),
            Self::REPLY => {
                let ((request, mut result), rest) = frame.list_head()?;
                match &mut result {
                    Ok(Reply::Browsed { messages: behind, .. } | Reply::BackupPart { bytes: behind, .. }) => {
                        *behind = rest;
                    }
                    _ if rest.is_empty() => {}
                    _ => return Err(DecodeError::Trailing { kind: frame.kind, count: rest.len() }),
                }
                Self::Reply(request, result)
            }
            Self::CONFIRM => Self::Confirm(frame.whole()?),
            Self::PUBLISH_REFUSED => Self::PublishRefused(frame.whole()?),
            Self::PUBLISH_READY => Self::PublishReady(frame.whole()?),
            Self::DELIVER => {
                let (head, messages) = frame.list_head()?;
                Self::Deliver(head, messages)
            }
            Self::CONSUMER_CLOSED => Self::ConsumerClosed(frame.whole()?),
            Self::CONSUMER_TOPIC => Self::ConsumerTopic(frame.whole()?),
            Self::CONSUMER_ROLE => Self::ConsumerRole(frame.whole()?),
            Self::CONSUMER_RECALLED => Self::ConsumerRecalled(frame.whole()?),
            Self::CONSUMER_TOPIC_GONE => Self::ConsumerTopicGone(frame.whole()?),
            kind => return Err(DecodeError::UnknownKind(kind)),
        })
    }

    /// Appends the frame. Messages are copied; [`put_deliver`] and [`put_browsed`] do without that.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Welcome(head) => put_head(out, Self::WELCOME, head, 0),
            Self::NotMaster(head) => put_head(out, Self::NOT_MASTER, head, 0),
            Self::Heartbeat(head) => put_head(out, Self::HEARTBEAT, head, 0),
            Self::Goodbye(head) => put_head(out, Self::GOODBYE, head, 0),
            Self::Failed(head) => put_head(out, Self::FAILED, head, 0),
            Self::Reply(request, result) => {
                let messages = match result {
                    Ok(Reply::Browsed { messages: behind, .. } | Reply::BackupPart { bytes: behind, .. }) => {
                        behind.as_ref()
                    }
                    _ => &[],
                };
                put_head(out, Self::REPLY, &(request, result), messages.len());
                out.extend_from_slice(messages);
            }
            Self::Confirm(head) => put_head(out, Self::CONFIRM, head, 0),
            Self::PublishRefused(head) => put_head(out, Self::PUBLISH_REFUSED, head, 0),
            Self::PublishReady(head) => put_head(out, Self::PUBLISH_READY, head, 0),
            Self::Deliver(head, messages) => {
                put_deliver(out, head, messages.len());
                out.extend_from_slice(messages);
            }
            Self::ConsumerClosed(head) => put_head(out, Self::CONSUMER_CLOSED, head, 0),
            Self::ConsumerTopic(head) => put_head(out, Self::CONSUMER_TOPIC, head, 0),
            Self::ConsumerRole(head) => put_head(out, Self::CONSUMER_ROLE, head, 0),
            Self::ConsumerRecalled(head) => put_head(out, Self::CONSUMER_RECALLED, head, 0),
            Self::ConsumerTopicGone(head) => put_head(out, Self::CONSUMER_TOPIC_GONE, head, 0),
        }
    }
}

/// Appends the head of a delivery frame behind which `messages_len` bytes of messages will follow.
pub fn put_deliver(out: &mut BytesMut, head: &Deliver, messages_len: usize) {
    put_head(out, Response::DELIVER, head, messages_len);
}

/// Appends the head of an answer to a browse behind which `messages_len` bytes of messages will follow.
pub fn put_browsed(out: &mut BytesMut, request: RequestId, answer: Reply, messages_len: usize) {
    let answer: Result<Reply, Refusal> = Ok(answer);
    put_head(out, Response::REPLY, &(request, answer), messages_len);
}
