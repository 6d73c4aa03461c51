//! The broker: topics, groups, consumers and producers as a pure state machine.
//!
//! Commands and the time go in; records, effects and wishes to read come out ([`Output`]). No I/O, no clock, no
//! tasks, no randomness: the same inputs give the same outputs. The state changes at once; the engine makes the
//! records durable, checks the fence, and only then lets the effects out and starts the reads. Nothing is ever
//! rolled back: if the records cannot be made durable, the process ends.
//!
//! It does not know how records are kept, what a connection is, or who is master.

mod admin;
mod assignment;
mod browse;
mod cache;
mod consumer;
pub mod dead_letter;
mod describe;
mod dispatch;
mod effort;
mod explain;
mod flights;
mod garbage;
mod group;
mod handing_out;
mod holdings;
mod home;
mod in_order;
mod judging;
mod keyed;
mod keys;
mod last_value;
mod lifetime;
mod lineup;
mod looking;
mod machine;
mod members;
mod overflow;
mod part;
mod pattern;
mod placing;
mod producer;
mod pull;
mod rate;
mod reading;
mod redelivery;
mod refusals;
mod replay;
mod retention;
mod routes;
mod routing;
mod schedule;
mod seek;
mod session;
mod settle;
mod sieve;
mod subscription;
mod time_search;
mod topic;
mod topic_admin;
mod topic_parts;
mod transaction;
mod turns;
mod unreadable;
mod waiting_line;

pub use machine::{AutoCreate, Broker, Counts};

use bytes::Bytes;

use crate::model::id::{Offset, SessionId, TopicId};
use crate::model::message::MessageBlock;
use crate::model::record::Record;
use crate::protocol::error::Refusal;
use crate::protocol::request::{
    Admin, CloseProducer, FindTopic, Flow, Handle, OpenProducer, Publish, Pull, RequestId, Settle, Subscribe,
    Transact, Unsubscribe,
};
use crate::protocol::response::{
    Confirm, ConsumerClosed, ConsumerRecalled, ConsumerRole, ConsumerTopic, ConsumerTopicGone, FailureRun,
    PublishReady, PublishRefused, Reply, Run,
};

/// What a session wants. The session is named beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The session begins.
    Begin,
    /// Who is behind the session, for people.
    Introduce(String),
    /// The session ends.
    End(Ending),
    /// As much is waiting to be read by the client as may: hand out nothing more to it.
    OutputFull,
    /// The client has read: go on.
    OutputReady,
    /// See [`OpenProducer`].
    OpenProducer(OpenProducer),
    /// See [`Publish`]; the counts of its parts add up to that of the block, or it is refused.
    Publish(Publish, MessageBlock),
    /// See [`Transact`]; the counts of its parts add up to that of the block, or it is refused.
    Transact(Transact, MessageBlock),
    /// A publish or transaction whose messages are not taken, for this reason: refused in its turn, so that refusals
    /// and confirms of a producer keep their order.
    PublishUnfit(Publish, Refusal),
    /// See [`CloseProducer`].
    CloseProducer(CloseProducer),
    /// See [`Subscribe`].
    Subscribe(Subscribe),
    /// See [`Flow`].
    Flow(Flow),
    /// See [`Settle`].
    Settle(Settle),
    /// See [`Unsubscribe`].
    Unsubscribe(Unsubscribe),
    /// See [`Pull`].
    Pull(Pull),
    /// See [`FindTopic`].
    FindTopic(FindTopic),
    /// See [`Admin`]. `Status` and `Switchover` concern the node and are refused here.
    Admin(Admin),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client said goodbye, or the node did: what is in flight goes back uncounted.
    Closed,
    /// The connection broke: what is in flight counts as an attempt.
    Lost,
}

/// Something that leaves the broker for a session, once everything before it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// For whom.
    pub session: SessionId,
    /// What.
    pub content: Content,
}

/// What leaves the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Answer to a request.
    Reply(RequestId, Result<Reply, Refusal>),
    /// Messages are durable.
    Confirm(Confirm),
    /// Messages were not taken.
    PublishRefused(PublishRefused),
    /// There is room again for a producer whose messages were not taken.
    PublishReady(PublishReady),
    /// Messages for a consumer.
    Deliver(Delivery),
    /// Messages for somebody who browses.
    Browsed(Browsed),
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

/// Messages for a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The consumer.
    pub consumer: Handle,
    /// The topic that the messages are in.
    pub topic: TopicId,
    /// The pull that this answers; 0 for a push.
    pub request: RequestId,
    /// What the messages are.
    pub runs: Vec<Run>,
    /// How the last attempt failed, for those of which that is known.
    pub failures: Vec<FailureRun>,
    /// The encoded messages of the runs, in their order; the pieces are not aligned with the runs.
    pub messages: Vec<Bytes>,
}

/// Messages for somebody who browses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Browsed {
    /// The request that this answers.
    pub request: RequestId,
    /// A [`Reply::Browsed`] without its messages.
    pub answer: Reply,
    /// The encoded messages of its runs, in their order.
    pub messages: Vec<Bytes>,
}

/// Messages that the broker needs from the store. Answered by exactly one [`Broker::loaded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Read {
    /// The topic.
    pub topic: TopicId,
    /// The first message wanted.
    pub from: Offset,
    /// Bytes wanted; at least one message comes whatever its size.
    pub bytes_max: usize,
}

/// What comes out of the broker. The engine takes the lists and hands the emptied buffers back.
#[derive(Debug, Default)]
pub struct Output {
    /// To be made durable, in this order, in one commit.
    pub records: Vec<Record>,
    /// To be let out after that, in this order.
    pub effects: Vec<Effect>,
    /// To be started after that.
    pub reads: Vec<Read>,
}

impl Output {
    /// Adds an effect.
    pub fn effect(&mut self, session: SessionId, content: Content) {
        self.effects.push(Effect { session, content });
    }
}
