//! A message as a consumer gets it.

use bytes::{Buf, Bytes};

use super::link::Session;
use crate::model::chunk::Origin;
use crate::model::id::{Offset, TopicId};
use crate::model::message::{Message, MessageError};
use crate::model::position::Position;
use crate::model::retry::Failure;
use crate::model::time::Timestamp;
use crate::protocol::request::Handle;
use crate::protocol::response::{Deliver, Run, Standing};

/// One hand-over of a message to a consumer. It is settled by its [`id`](Self::id).
///
/// Key, header values and body share the memory of the frame in which they came: a body that is kept for long
/// should be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// What it is settled by.
    pub id: DeliveryId,
    /// Number of the attempt: 1 plus the attempts that failed.
    pub attempt: u32,
    /// Number of the hand-over, as far as is known: 1 plus those that came back, failed or untouched.
    pub number: u32,
    /// How the last attempt failed, where one is known.
    pub failure: Option<Failure>,
    /// Whether it may have been handed out before without that being counted.
    pub redelivered: bool,
    /// When it was published.
    pub published_at: Timestamp,
    /// Who published it; `None` for what the broker itself published.
    pub origin: Option<Origin>,
    /// The message.
    pub message: Message,
}

impl Delivery {
    /// Its offset in the topic.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.id.offset
    }
}

/// Names one delivery to one consumer over one connection.
///
/// When the connection is lost, the node takes the message back and will deliver it again; the old delivery can
/// then not be settled any more, and trying counts as a settlement that was lost. Where the node recalls what was
/// delivered, because the group was set to another place or purged, settling does nothing, and nothing was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeliveryId {
    pub(super) consumer: Handle,
    pub(super) session: Session,
    pub(super) topic: TopicId,
    /// How often what the consumer had of the topic had been recalled.
    pub(super) generation: u32,
    pub(super) offset: Offset,
}

impl DeliveryId {
    /// Offset of the message in the topic.
    #[must_use]
    pub const fn offset(self) -> Offset {
        self.offset
    }

    /// The topic that the message is in: that of the subscription, or one of a pattern, or one priority of them.
    #[must_use]
    pub const fn topic(self) -> TopicId {
        self.topic
    }
}

/// A message read without effect on any group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Browsed {
    /// Name of the topic it is in.
    pub topic: String,
    /// Its priority: the messages of each have offsets of their own.
    pub priority: u8,
    /// Its offset in the topic.
    pub offset: Offset,
    /// When it was published.
    pub published_at: Timestamp,
    /// Who published it; `None` for what the broker itself published.
    pub origin: Option<Origin>,
    /// What is to become of it, if a group was looked at.
    pub state: Option<Standing>,
    /// Number of the attempt that is under way or comes next: 1 plus the attempts that failed; 0 without a group.
    pub attempt: u32,
    /// How the last attempt failed, where one is known.
    pub failure: Option<Failure>,
    /// The message.
    pub message: Message,
}

impl Browsed {
    /// Its place in the topic, as people see it.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { priority: self.priority, offset: self.offset }
    }
}

/// Takes the messages behind a head apart: each with its run and its place in the run.
///
/// # Errors
/// Where they are not valid, or not as many as the runs say.
pub(super) fn unpack(
    runs: &[Run],
    mut messages: Bytes,
    mut each: impl FnMut(&Run, u64, Message),
) -> Result<(), MessageError> {
    let mut index = 0;
    for run in runs {
        for at in 0..u64::from(run.count) {
            let truncated = MessageError::Truncated { index, field: "length" };
            let len = messages.first_chunk().map(|len| u32::from_le_bytes(*len) as usize);
            let len = len.filter(|len| *len <= messages.remaining() - 4).ok_or(truncated)?;
            let encoded = messages.split_to(4 + len);
            each(run, at, Message::decode(&encoded)?);
            index += 1;
        }
    }
    if messages.has_remaining() {
        return Err(MessageError::Invalid { index, field: "count" });
    }
    Ok(())
}

/// To whom messages were delivered, over which connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeliveredTo {
    pub(super) consumer: Handle,
    pub(super) session: Session,
    /// That of the topic.
    pub(super) generation: u32,
}

/// The delivery that a run says message `at` of it is.
pub(super) fn delivery(to: DeliveredTo, head: &Deliver, run: &Run, at: u64, message: Message) -> Delivery {
    let offset = Offset(run.offset.0.saturating_add(at));
    let failed = head.failures.iter().find(|failed| failed.range.contains(offset));
    Delivery {
        id: DeliveryId {
            consumer: to.consumer,
            session: to.session,
            topic: head.topic,
            generation: to.generation,
            offset,
        },
        attempt: run.attempt,
        number: run.delivery,
        failure: failed.map(|failed| failed.failure.clone()),
        redelivered: run.redelivered,
        published_at: run.published_at,
        origin: origin(run, at),
        message,
    }
}

/// Origin of message `at` of a run.
pub(super) fn origin(run: &Run, at: u64) -> Option<Origin> {
    run.origin.map(|first| Origin {
        producer: first.producer,
        sequence: crate::model::id::Sequence(first.sequence.0.saturating_add(at)),
    })
}
