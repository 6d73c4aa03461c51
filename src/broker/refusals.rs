//! Refusals that several requests share: a code for programs, a text that says what to do.

use std::fmt::Display;

use crate::model::snapshot::TopicState;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::Handle;

/// The request makes no sense.
pub(super) fn invalid(what: &impl Display) -> Refusal {
    Refusal::new(ErrorCode::Invalid, what.to_string())
}

/// A limit was reached.
pub(super) fn limit(name: &str, max: u64, of_what: &str) -> Refusal {
    Refusal::new(ErrorCode::Limit, format!("there are {max} {of_what} already: the limit {name} is reached"))
}

/// There is no space for messages of so many bytes.
pub(super) fn store_full(bytes: u64) -> Refusal {
    let text = format!(
        "no space left for messages of {bytes} bytes beside what is kept free: free some on the shared disk, or \
         consume what waits; consuming goes on"
    );
    Refusal::new(ErrorCode::StoreFull, text)
}

/// A topic is full, and refuses what is published to it.
pub(super) fn topic_full(topic: &TopicState) -> Refusal {
    let text =
        format!("topic {} is full: {}; consume what waits, or raise the limit", topic.name, limits_of(topic));
    Refusal::new(ErrorCode::TopicFull, text)
}

/// A topic is full, and its producers wait.
pub(super) fn topic_blocked(topic: &TopicState) -> Refusal {
    let text = format!(
        "topic {} is full: {}; the producer waits until there is room: consume what waits, or raise the limit",
        topic.name,
        limits_of(topic)
    );
    Refusal::new(ErrorCode::TopicBlocked, text)
}

fn limits_of(topic: &TopicState) -> String {
    let settings = &topic.settings;
    let messages = settings.max_messages.map(|max| format!("max_messages is {max}"));
    let bytes = settings.max_bytes.map(|max| format!("max_bytes is {max}"));
    messages.into_iter().chain(bytes).collect::<Vec<_>>().join(", ")
}

/// No such topic, and it may not be created by using it.
pub(super) fn unknown_topic(name: &str) -> Refusal {
    Refusal::new(ErrorCode::UnknownTopic, format!("there is no topic {name:?}; create it first"))
}

/// No such group, and it may not be created by using it.
pub(super) fn unknown_group(topic: &str, name: &str) -> Refusal {
    let text = format!("topic {topic:?} has no group {name:?}; create it first");
    Refusal::new(ErrorCode::UnknownGroup, text)
}

/// The connection has no such producer or consumer.
pub(super) fn unknown_handle(kind: &str, handle: Handle) -> Refusal {
    Refusal::new(ErrorCode::UnknownHandle, format!("this connection has no {kind} {handle}"))
}

/// The connection uses this number already.
pub(super) fn handle_in_use(kind: &str, handle: Handle) -> Refusal {
    let text = format!("this connection has a {kind} {handle} already; choose another number");
    Refusal::new(ErrorCode::Invalid, text)
}

/// The session is not there any more.
pub(super) fn no_session() -> Refusal {
    Refusal::new(ErrorCode::Invalid, "the session has not begun or has ended")
}

/// The topic or group that a consumer was reading is gone.
pub(super) fn deleted(topic: &str, group: &str) -> Refusal {
    Refusal::new(ErrorCode::Deleted, format!("group {group:?} of topic {topic:?} was deleted"))
}

/// What a question is about is not there any more.
pub(super) fn gone_meanwhile() -> Refusal {
    Refusal::new(ErrorCode::Deleted, "what was asked about has gone meanwhile; ask again")
}
