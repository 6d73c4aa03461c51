//! What can go wrong between a client and a node.

use serde::{Deserialize, Serialize};

/// Why a request was refused. The numbers stand on the wire: never reordered, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u16", from = "u16")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The node is not master, or cannot make sure that it is. Try the other one.
    NotMaster,
    /// The node stops being master. Comes as its goodbye. Try again, there or at the other one.
    Draining,
    /// There is no such topic, and it may not be created by using it.
    UnknownTopic,
    /// There is no such group, and it may not be created by using it.
    UnknownGroup,
    /// The connection has no such producer or consumer.
    UnknownHandle,
    /// It exists already, with other settings.
    AlreadyExists,
    /// A limit of the node was reached; the text names it.
    Limit,
    /// A message passes a limit of size.
    MessageTooLarge,
    /// The request makes no sense; the text says why.
    Invalid,
    /// A sequence does not follow the last one of its producer. `docs/protocol.md` says how to go on.
    OutOfSequence,
    /// The producer was idle for too long and is forgotten: whether its unconfirmed messages are stored is not known.
    ProducerExpired,
    /// Another connection has opened the same producer.
    ProducerReplaced,
    /// The store has no space for more messages. Consuming goes on.
    StoreFull,
    /// The client is not known or may not do this.
    Unauthorized,
    /// The topic or group was deleted meanwhile.
    Deleted,
    /// The bytes are not a valid frame. The connection is closed.
    Protocol,
    /// A frame is longer than the node accepts. The connection is closed.
    FrameTooLarge,
    /// The node has as many connections as it accepts. The connection is closed.
    TooManyConnections,
    /// Nothing was heard from the client for too long. The connection is closed.
    HeartbeatMissed,
    /// A switchover was asked for, and no standby follows the node.
    NoStandby,
    /// A backup cannot go on; the text says why. The store goes on.
    BackupFailed,
    /// A topic is full and refuses what is published to it.
    TopicFull,
    /// A topic is full: the producer waits, and is told when there is room.
    TopicBlocked,
    /// A transaction was not carried out, nothing of it: what it settles is not, or not any more, with its consumer.
    TransactionAborted,
    /// There is no such route.
    UnknownRoute,
    /// A message is there and cannot be read from the store: it is damaged, or the storage fails. The text names the place.
    Unreadable,
    /// A code of a newer version.
    Other(u16),
}

impl From<ErrorCode> for u16 {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::NotMaster => 1,
            ErrorCode::Draining => 2,
            ErrorCode::UnknownTopic => 3,
            ErrorCode::UnknownGroup => 4,
            ErrorCode::UnknownHandle => 5,
            ErrorCode::AlreadyExists => 6,
            ErrorCode::Limit => 7,
            ErrorCode::MessageTooLarge => 8,
            ErrorCode::Invalid => 9,
            ErrorCode::OutOfSequence => 10,
            ErrorCode::ProducerExpired => 11,
            ErrorCode::ProducerReplaced => 12,
            ErrorCode::StoreFull => 13,
            ErrorCode::Unauthorized => 14,
            ErrorCode::Deleted => 15,
            ErrorCode::Protocol => 16,
            ErrorCode::FrameTooLarge => 17,
            ErrorCode::TooManyConnections => 18,
            ErrorCode::HeartbeatMissed => 19,
            ErrorCode::NoStandby => 20,
            ErrorCode::BackupFailed => 21,
            ErrorCode::TopicFull => 22,
            ErrorCode::TopicBlocked => 23,
            ErrorCode::TransactionAborted => 24,
            ErrorCode::UnknownRoute => 25,
            ErrorCode::Unreadable => 26,
            ErrorCode::Other(code) => code,
        }
    }
}

impl From<u16> for ErrorCode {
    fn from(code: u16) -> Self {
        match code {
            1 => Self::NotMaster,
            2 => Self::Draining,
            3 => Self::UnknownTopic,
            4 => Self::UnknownGroup,
            5 => Self::UnknownHandle,
            6 => Self::AlreadyExists,
            7 => Self::Limit,
            8 => Self::MessageTooLarge,
            9 => Self::Invalid,
            10 => Self::OutOfSequence,
            11 => Self::ProducerExpired,
            12 => Self::ProducerReplaced,
            13 => Self::StoreFull,
            14 => Self::Unauthorized,
            15 => Self::Deleted,
            16 => Self::Protocol,
            17 => Self::FrameTooLarge,
            18 => Self::TooManyConnections,
            19 => Self::HeartbeatMissed,
            20 => Self::NoStandby,
            21 => Self::BackupFailed,
            22 => Self::TopicFull,
            23 => Self::TopicBlocked,
            24 => Self::TransactionAborted,
            25 => Self::UnknownRoute,
            26 => Self::Unreadable,
            code => Self::Other(code),
        }
    }
}

impl std::fmt::Display for ErrorCode {
    /// The name that the documentation uses, as in `not-master`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::NotMaster => "not-master",
            Self::Draining => "draining",
            Self::UnknownTopic => "unknown-topic",
            Self::UnknownGroup => "unknown-group",
            Self::UnknownHandle => "unknown-handle",
            Self::AlreadyExists => "already-exists",
            Self::Limit => "limit",
            Self::MessageTooLarge => "message-too-large",
            Self::Invalid => "invalid",
            Self::OutOfSequence => "out-of-sequence",
            Self::ProducerExpired => "producer-expired",
            Self::ProducerReplaced => "producer-replaced",
            Self::StoreFull => "store-full",
            Self::Unauthorized => "unauthorized",
            Self::Deleted => "deleted",
            Self::Protocol => "protocol",
            Self::FrameTooLarge => "frame-too-large",
            Self::TooManyConnections => "too-many-connections",
            Self::HeartbeatMissed => "heartbeat-missed",
            Self::NoStandby => "no-standby",
            Self::BackupFailed => "backup-failed",
            Self::TopicFull => "topic-full",
            Self::TopicBlocked => "topic-blocked",
            Self::TransactionAborted => "transaction-aborted",
            Self::UnknownRoute => "unknown-route",
            Self::Unreadable => "unreadable",
            Self::Other(code) => return write!(f, "code-{code}"),
        })
    }
}

/// A refusal as it goes over the wire: a code for programs and a text for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// What a program decides by.
    pub code: ErrorCode,
    /// What is wrong and what to do.
    pub text: String,
}

impl Refusal {
    /// A refusal with a text.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// Bytes that are not of this protocol. The connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The connection does not begin with the magic.
    #[error("not a Baton connection: it starts with {0:02x?}")]
    Magic([u8; 8]),
    /// A frame is longer than agreed.
    #[error("frame of {len} bytes, the limit is {max}")]
    FrameTooLarge {
        /// Length that the frame claims.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// A frame has no room for its kind.
    #[error("frame without a kind")]
    Empty,
    /// A kind that this version does not know.
    #[error("unknown frame kind {0:#04x}")]
    UnknownKind(u8),
    /// The head of a frame cannot be read.
    #[error("bad head of a frame of kind {kind:#04x}: {what}")]
    Head {
        /// Kind of the frame.
        kind: u8,
        /// What the decoder says.
        what: String,
    },
    /// Bytes are left behind the head of a frame that carries no messages.
    #[error("frame of kind {kind:#04x} has {count} bytes too many")]
    Trailing {
        /// Kind of the frame.
        kind: u8,
        /// How many bytes are left.
        count: usize,
    },
}
