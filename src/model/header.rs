//! Names of headers, and of topics, that mean the same to everybody. What the node adds to dead letters is in
//! `broker::dead_letter`.
//!
//! Names of headers that begin with [`RESERVED_PREFIX`] are Baton's. A publisher sets those of requests and no other, so
//! what a header says of where a message comes from is what the node has seen.

/// What names of headers begin with that are Baton's.
pub const RESERVED_PREFIX: &str = "baton.";

/// In a request and its reply: tells the requester which of its requests the reply answers. A text or bytes of its
/// choice, which the reply repeats.
pub const CORRELATION_ID: &str = "baton.correlation-id";
/// In a request: the name of the topic where the reply is wanted.
pub const REPLY_TO: &str = "baton.reply-to";
/// What names of temporary reply topics begin with. Such a topic is made by whoever waits for replies, never by using
/// it: a reply that comes when nobody waits any more has nowhere to go.
pub const REPLY_TOPIC_PREFIX: &str = "baton.reply.";

/// Whether a header of this name is set by the node and by nobody else.
#[must_use]
pub fn is_set_by_node(name: &str) -> bool {
    name.starts_with(RESERVED_PREFIX) && name != CORRELATION_ID && name != REPLY_TO
}
