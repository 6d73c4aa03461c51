//! What the client, its producers and its consumers can be told, and the bounds of their buffers.

use std::time::Duration;

use super::error::ClientError;
use crate::model::limits::PUBLISH_PARTS_MAX;
use crate::model::settings::{GroupSettings, Start};

/// Bytes of messages that the client puts into one publish frame; one larger message goes alone.
pub const PUBLISH_FRAME_BYTES: usize = 256 << 10;
/// Messages that the client puts into one publish frame.
pub const PUBLISH_FRAME_MESSAGES: u32 = 16 << 10;
const _: () = assert!(PUBLISH_FRAME_MESSAGES as usize <= PUBLISH_PARTS_MAX, "each may go to another topic");
/// Refusals of messages that a producer keeps until somebody asks; with more, publishing reports them.
pub const FAILURES_MAX: usize = 1024;
/// Time that a transaction has until its commit where nothing else is said: the lease of a group that was not told
/// otherwise.
pub const TRANSACTION_WITHIN: Duration = Duration::from_secs(30);
/// Longest time that a settlement waits in the client for others to go with it.
pub const SETTLE_DELAY: Duration = Duration::from_millis(1);
/// Settlements that wait in the client at most; fewer where the prefetch is small.
pub const SETTLE_BATCH_MAX: u32 = 1024;
/// Bytes of settlements and the like that wait for the socket before more of them are held back.
pub const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// Bytes that one read of the socket asks for.
pub const READ_BYTES: usize = 128 << 10;

/// Shortest wait between attempts to connect to one address.
pub const BACKOFF_MIN: Duration = Duration::from_millis(1);
/// Longest wait between attempts to connect to one address.
pub const BACKOFF_MAX: Duration = Duration::from_secs(3600);

/// How a client finds its node and how patient it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Addresses of the nodes, `host:port`. All are tried at once, and of a name all that it stands for; whichever is
    /// master is used.
    pub servers: Vec<String>,
    /// What the client calls itself, for people who look at the node.
    pub name: String,
    /// How often either side sends something. Silence for three times as long is a lost connection.
    pub heartbeat: Duration,
    /// How long a call keeps trying without any progress; `Duration::MAX` for ever.
    pub timeout: Duration,
    /// How long one attempt to connect to one address may take, greeting included.
    pub attempt_timeout: Duration,
    /// How attempts follow each other.
    pub backoff: ReconnectBackoff,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            servers: vec![format!("127.0.0.1:{}", crate::protocol::CLIENT_PORT)],
            name: concat!("batonmq-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            heartbeat: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(2),
            backoff: ReconnectBackoff::default(),
        }
    }
}

impl ClientOptions {
    /// Options for these nodes, separated by commas: `a:7470,b:7470`.
    #[must_use]
    pub fn servers(list: &str) -> Self {
        let servers = list.split(',').map(|server| server.trim().to_owned()).filter(|s| !s.is_empty());
        Self { servers: servers.collect(), ..Self::default() }
    }

    /// # Errors
    /// Names the first option that makes no sense.
    pub(super) fn check(&self) -> Result<(), ClientError> {
        let fail = |option, what| Err(ClientError::Option { option, what });
        if self.servers.is_empty() {
            return fail("servers", "name at least one node as host:port");
        }
        if self.servers.iter().any(|server| !server.contains(':')) {
            return fail("servers", "every node must be given as host:port");
        }
        if self.heartbeat < Duration::from_millis(10) || self.heartbeat > Duration::from_secs(3600) {
            return fail("heartbeat", "must be between 10 ms and 1 h");
        }
        if self.timeout.is_zero() || self.attempt_timeout.is_zero() {
            return fail("timeout", "must not be zero");
        }
        let ReconnectBackoff { first, maximum, .. } = self.backoff;
        if first < BACKOFF_MIN || maximum > BACKOFF_MAX {
            return fail("backoff", "first and maximum must be between 1 ms and 1 h");
        }
        if first > maximum {
            return fail("backoff", "first must not be longer than maximum");
        }
        Ok(())
    }
}

/// How attempts to one address follow each other while no master is found.
///
/// The first goes out at once, unless the connection before was one that the node ended without having done anything
/// for the client: then it has a wait, which doubles from one to the next. For the time `eager`, when a takeover is likely to be going on, the wait is
/// `first`; then it doubles up to `maximum`. Every wait is changed by up to half of itself, by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconnectBackoff {
    /// Wait in the beginning; at least [`BACKOFF_MIN`].
    pub first: Duration,
    /// How long the wait stays that short.
    pub eager: Duration,
    /// Longest wait; at least `first`, at most [`BACKOFF_MAX`].
    pub maximum: Duration,
}

impl Default for ReconnectBackoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(10),
            eager: Duration::from_secs(1),
            maximum: Duration::from_millis(500),
        }
    }
}

impl ReconnectBackoff {
    /// The wait before the next attempt, `since` the search began and after a wait of `last`; before chance.
    pub(super) fn wait(&self, since: Duration, last: Duration) -> Duration {
        if since < self.eager { self.first } else { self.longer(last) }
    }

    /// The wait that follows on a wait of `last`, where waits become longer; before chance.
    pub(super) fn longer(&self, last: Duration) -> Duration {
        (last * 2).clamp(self.first, self.maximum)
    }
}

/// How a producer is called and how much it may have unconfirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerOptions {
    /// Its name; `None` for a new unique one. A producer that comes back under its old name after a restart of the
    /// program continues where its last confirmed message was.
    pub name: Option<String>,
    /// Messages that may be unconfirmed; publishing waits beyond.
    pub in_flight_messages: u64,
    /// Encoded bytes that may be unconfirmed; publishing waits beyond. One larger message may go alone.
    pub in_flight_bytes: u64,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self { name: None, in_flight_messages: 10_000, in_flight_bytes: 32 << 20 }
    }
}

impl ProducerOptions {
    pub(super) fn check(&self) -> Result<(), ClientError> {
        if self.in_flight_messages == 0 {
            return Err(ClientError::Option { option: "in_flight_messages", what: "must be at least 1" });
        }
        Ok(())
    }
}

/// What a consumer reads, and how much at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerOptions {
    /// Name of the topic, or a [pattern](crate::model::pattern) of names.
    pub topic: String,
    /// Name of the group.
    pub group: String,
    /// Where the group begins if this creates it.
    pub start: Start,
    /// Settings of the group if this creates it; a group that exists keeps its own.
    pub settings: Option<GroupSettings>,
    /// Consumers of a higher priority get messages first, as long as they have credit. 0 is the lowest.
    pub priority: u8,
    /// Messages that may be with the consumer and not settled.
    pub prefetch: u32,
    /// Encoded bytes that may be with the consumer and not settled. One larger message comes alone.
    pub prefetch_bytes: u64,
}

impl ConsumerOptions {
    /// Options for a group of a topic, with a prefetch of 1000 messages or 8 MiB.
    pub fn new(topic: impl Into<String>, group: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            group: group.into(),
            start: Start::Earliest,
            settings: None,
            priority: 0,
            prefetch: 1000,
            prefetch_bytes: 8 << 20,
        }
    }

    pub(super) fn check(&self) -> Result<(), ClientError> {
        if self.prefetch == 0 {
            return Err(ClientError::Option {
                option: "prefetch",
                what: "must be at least 1; use a pull consumer to get nothing unasked",
            });
        }
        Ok(())
    }
}
