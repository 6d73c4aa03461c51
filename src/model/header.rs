//! Names of headers, and of topics, that mean the same to everybody. What the node adds to dead letters is in
//! `broker::dead_letter`.

/// In a request and its reply: tells the requester which of its requests the reply answers. A text or bytes of its
/// choice, which the reply repeats.
pub const CORRELATION_ID: &str = "baton.correlation-id";
/// In a request: the name of the topic where the reply is wanted.
pub const REPLY_TO: &str = "baton.reply-to";
/// What names of temporary reply topics begin with. Such a topic is made by whoever waits for replies, never by using
/// it: a reply that comes when nobody waits any more has nowhere to go.
pub const REPLY_TOPIC_PREFIX: &str = "baton.reply.";
