//! What a call of the client library can end with.
//!
//! Every variant says whether trying again makes sense. Nothing here closes the client: after an error the same
//! call may be made again, unless the variant says that something has ended.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::producer::Ticket;
use crate::model::id::Epoch;
use crate::model::message::MessageError;
use crate::model::name::NameError;
use crate::protocol::error::{DecodeError, ErrorCode, Refusal};
use crate::protocol::response::Role;

/// Why a call of the client library failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// An option makes no sense.
    #[error("client option {option}: {what}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A topic, group or producer cannot be called that.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A message passes a limit. Nothing of it was sent.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// No node was master for as long as the call was willing to wait. The client goes on looking.
    #[error("no master found at {servers} within {within:?}: {last}")]
    NoMaster {
        /// The addresses that were tried.
        servers: String,
        /// How long.
        within: Duration,
        /// What the last attempt at each address met.
        last: LastAttempts,
    },
    /// Every node refuses this client in a way that trying again does not change; told only by
    /// [`Client::connect`](super::Client::connect).
    #[error("no node can be used: {0}")]
    Unusable(LastAttempts),
    /// Connected, but the node did not answer for as long as the call was willing to wait.
    #[error("{node} did not answer within {within:?}")]
    NoAnswer {
        /// Address of the node.
        node: String,
        /// How long.
        within: Duration,
    },
    /// Messages are not confirmed yet, and nothing was confirmed for the time given. They are still being tried.
    #[error("messages {first} to {last} are not confirmed and nothing moved for {within:?}; they are still being tried{}", refused_for(.refusal))]
    Unconfirmed {
        /// First message that is not confirmed.
        first: Ticket,
        /// Last message that was waited for.
        last: Ticket,
        /// How long.
        within: Duration,
        /// Why the node puts them off, if it does.
        refusal: Option<Refusal>,
    },
    /// The node refused some messages for good. They are not stored; everything else that was waited for is.
    #[error("{}", failures_text(.0))]
    MessagesRefused(Vec<Failure>),
    /// The node refused the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The producer has ended. Whether its unconfirmed messages are stored is not known.
    #[error(
        "producer {name} has ended, it is not known whether {unknown} unconfirmed messages are stored: {refusal}"
    )]
    ProducerEnded {
        /// Its name.
        name: String,
        /// Messages whose fate is not known.
        unknown: u64,
        /// Why.
        refusal: Refusal,
    },
    /// The node remembers less of a producer than it had confirmed: confirmed messages are lost, or the store was
    /// replaced by an older copy.
    #[error(
        "producer {name}: the store ends with message {stored}, but {confirmed} was confirmed; was an old copy of the store put in place?"
    )]
    StoreWentBack {
        /// Name of the producer.
        name: String,
        /// Sequence that the store has.
        stored: u64,
        /// Sequence that had been confirmed.
        confirmed: u64,
    },
    /// A transaction was not carried out, nothing of it. What it would have settled is delivered again, so the work may
    /// be done once more.
    #[error("the transaction was not carried out: {0}")]
    TransactionAborted(Refusal),
    /// A transaction was not committed in its time and has been rolled back: what it would have settled is delivered
    /// again.
    #[error("the transaction was not committed within {within:?} and is rolled back")]
    TransactionTimedOut {
        /// Its time.
        within: Duration,
    },
    /// A transaction was committed, or is being committed: it can neither be added to nor rolled back.
    #[error("the transaction is committed or about to be: begin another one")]
    TransactionOver,
    /// A transaction would be larger than the node takes. Nothing was added to it.
    #[error(
        "a transaction with {bytes} bytes of messages, the limit transaction_bytes_max of the node is {max}: commit \
         earlier"
    )]
    TransactionTooLarge {
        /// Bytes of encoded messages that it would have.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// No reply to a request came in time. The request is stored and may still be answered; nobody will hear of it.
    #[error("no reply within {within:?}")]
    NoReply {
        /// How long it was waited for.
        within: Duration,
    },
    /// The node ended the consumer.
    #[error("consumer of group {group} on topic {topic} has ended: {refusal}")]
    ConsumerEnded {
        /// Name of the topic.
        topic: String,
        /// Name of the group.
        group: String,
        /// Why.
        refusal: Refusal,
    },
    /// The connection was lost before settlements were made or answered: what was not stored is delivered again.
    #[error(
        "the connection was lost before {count} settlements were answered: what is not stored will be delivered again"
    )]
    SettlementsLost {
        /// How many.
        count: u64,
    },
    /// The connection was lost before a request that must not be repeated was answered.
    #[error(
        "the connection was lost before the request was answered; it is not known whether it was carried out"
    )]
    ConnectionLost,
    /// The node answered with something that does not fit the question.
    #[error("the node answered {0} to another question; is it newer than this client?")]
    UnexpectedReply(String),
    /// A connection attempt failed, where only one address was to be tried.
    #[error(transparent)]
    Attempt(#[from] AttemptError),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

/// What the last attempts to find a master met: one error for each address, the latest at the end.
#[derive(Clone, Debug, Default)]
pub struct LastAttempts(pub Vec<AttemptError>);

impl LastAttempts {
    /// Puts an error in the place of the one before at the same address, and keeps at most `max`.
    pub(super) fn note(&mut self, error: AttemptError, max: usize) {
        self.0.retain(|before| before.address() != error.address());
        if self.0.len() >= max {
            self.0.remove(0);
        }
        self.0.push(error);
    }
}

impl fmt::Display for LastAttempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.0.split_first() else {
            return f.write_str("no attempt came to an end");
        };
        write!(f, "last error: {first}")?;
        others.iter().try_for_each(|error| write!(f, "; {error}"))
    }
}

/// Messages that a node refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The first of them.
    pub first: Ticket,
    /// The last of them.
    pub last: Ticket,
    /// Why.
    pub refusal: Refusal,
}

impl Failure {
    /// How many messages were refused.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.last.0 - self.first.0 + 1
    }
}

/// Why one attempt to connect to one address did not find a master.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttemptError {
    /// A system call failed.
    #[error("{address}: {action}: {source}")]
    Io {
        /// The address.
        address: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// There was no answer.
    #[error("{address}: no answer within {within:?}")]
    Silent {
        /// The address.
        address: String,
        /// How long.
        within: Duration,
    },
    /// The node closed the connection in the middle of the greeting.
    #[error("{address}: closed the connection before it said what it is")]
    Hangup {
        /// The address.
        address: String,
    },
    /// What answers there does not speak the protocol.
    #[error("{address}: {source}")]
    NotBaton {
        /// The address.
        address: String,
        /// What is wrong.
        source: DecodeError,
    },
    /// The node speaks no version of the protocol that this client speaks.
    #[error(
        "{address}: speaks the protocol up to version {highest}, this client does not; use a client of the node's version"
    )]
    Version {
        /// The address.
        address: String,
        /// Highest version that the node speaks.
        highest: u8,
    },
    /// The node is not master.
    #[error("{address}: is {role}, not master{}", master_at(.master))]
    NotMaster {
        /// The address.
        address: String,
        /// What it is.
        role: Role,
        /// Where it says the master is.
        master: Option<String>,
    },
    /// The node's mastership is older than one that the client has seen: it has lost it and does not know yet.
    #[error("{address}: is master of epoch {epoch}, but epoch {seen} has begun")]
    OldEpoch {
        /// The address.
        address: String,
        /// Its epoch.
        epoch: Epoch,
        /// The highest epoch seen.
        seen: Epoch,
    },
    /// The node has been unable for long to make sure that it is master: its storage hangs, and the other node may have
    /// taken over.
    #[error("{address}: last made sure {age:?} ago that it is master; does its storage hang?")]
    FenceAge {
        /// The address.
        address: String,
        /// How long ago it made sure.
        age: Duration,
    },
    /// The node serves another store than the one that the client began with.
    #[error("{address}: serves store {found}, this client began with store {expected}")]
    OtherStore {
        /// The address.
        address: String,
        /// Identity of its store.
        found: String,
        /// Identity of the store that the client knows.
        expected: String,
    },
    /// The node refused the connection.
    #[error("{address}: {refusal}")]
    Refused {
        /// The address.
        address: String,
        /// Why.
        refusal: Refusal,
    },
}

impl AttemptError {
    /// The address that was tried.
    #[must_use]
    pub fn address(&self) -> &str {
        match self {
            Self::Io { address, .. }
            | Self::Silent { address, .. }
            | Self::Hangup { address }
            | Self::NotBaton { address, .. }
            | Self::Version { address, .. }
            | Self::NotMaster { address, .. }
            | Self::OldEpoch { address, .. }
            | Self::FenceAge { address, .. }
            | Self::OtherStore { address, .. }
            | Self::Refused { address, .. } => address,
        }
    }

    /// Whether trying again will meet the same until somebody changes the node or the client.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Version { .. } | Self::OtherStore { .. } => true,
            Self::Refused { refusal, .. } => refusal.code == ErrorCode::Unauthorized,
            _ => false,
        }
    }
}

fn master_at(master: &Option<String>) -> String {
    master.as_ref().map_or_else(String::new, |master| format!("; it says the master is {master}"))
}

fn refused_for(refusal: &Option<Refusal>) -> String {
    refusal.as_ref().map_or_else(String::new, |refusal| format!(": {refusal}"))
}

fn failures_text(failures: &[Failure]) -> String {
    let count: u64 = failures.iter().map(Failure::count).sum();
    match failures.first() {
        Some(failure) if count == 1 => format!("message {} was refused: {}", failure.first, failure.refusal),
        Some(failure) => format!(
            "{count} messages were refused; the first is message {}: {}",
            failure.first, failure.refusal
        ),
        None => "no message was refused".to_owned(),
    }
}
