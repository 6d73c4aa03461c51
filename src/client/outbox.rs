//! What a producer has published and the node has not confirmed: numbering, resending, refusals.
//!
//! Pure: no socket, no task, no clock.
//!
//! A message has two numbers. Its **ticket** counts what the application published through this producer, from 1;
//! it is given once and never changes. Its **sequence** counts what is *stored* of the producer, without gaps; the
//! node drops what it has by it. They part as soon as a message is refused for good: it has a ticket but never a
//! place in the store, so all later messages move up in sequence.
//!
//! Messages lie encoded in *chunks*; a chunk is what goes into one publish frame. From front to back the queue is
//!
//! ```text
//! numbered and sent on this connection | numbered on an earlier one | not numbered | the open chunk
//! ```
//!
//! Rules that keep "stored once" true:
//! * A chunk that was numbered keeps its sequences until it is decided, over any number of connections, because
//!   the node may have taken it. Only a refusal, which says that nothing from `expected` on was taken, frees them.
//! * One refusal leads to exactly one new start at `expected`. Frames that were already on their way then are
//!   dropped by the node, and its `out-of-sequence` answers to them are *stale*: they must not lead to another
//!   start, or a frame could be refused twice and the second refusal taken for that of the next one.
//! * A refusal of a frame concerns one message or one topic of it: the frame is split until it is known which,
//!   so that nobody's message fails because of its neighbour's.
//!
//! A **transaction** is a chunk that is carried out or not as a whole. It has a ticket and a sequence for each message
//! and one of each for itself, behind them; its fate is that of this last ticket. What it settles was delivered by one
//! connection: on another one it is not sent, but fails. A refusal of it is for good, unless it says that the node will
//! call: what it settles is wanted back rather than kept waiting.
//!
//! A refusal is reported once. Where somebody waits for the fate of one message, it has *claimed* its ticket, and the
//! refusal is kept for it; all others go to whoever asks next.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::error::Failure;
use super::link::Session;
use super::options::{PUBLISH_FRAME_BYTES, PUBLISH_FRAME_MESSAGES};
use super::producer::Ticket;
use crate::model::id::{Sequence, TopicId};
use crate::model::message::Message;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{Handle, Publish, Settlement, Transact, TransactSettle};

/// Smallest piece of memory that an open chunk starts with.
const CHUNK_BYTES_MIN: usize = 4 << 10;
/// Bytes that the head of a publish frame needs at most beside its parts.
const HEAD_BYTES: u64 = 64;
/// Bytes that one part needs at most in the head of a publish frame.
const PART_BYTES: u64 = 10;
/// Bytes that a settlement needs at most in the head of a transaction frame, beside its reason and its ranges.
const SETTLEMENT_BYTES: u64 = 40;
/// Bytes that a range needs at most in the head of a transaction frame.
const RANGE_BYTES: u64 = 18;

/// The head of a frame with messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Publish(Publish),
    Transact(Transact),
}

/// What a transaction does beside publishing.
#[derive(Clone, Debug, Default)]
pub(super) struct Settling {
    pub(super) settlements: Vec<TransactSettle>,
    /// The connection by which that was delivered.
    pub(super) session: Session,
}

impl Settling {
    /// Bytes that it needs at most in the head of a frame.
    fn bytes(&self) -> u64 {
        let bytes_of = |settle: &TransactSettle| {
            let reason = match &settle.settlement {
                Settlement::Nack { reason, .. } | Settlement::Reject { reason } => {
                    reason.as_ref().map_or(0, String::len)
                }
                Settlement::Ack | Settlement::Release | Settlement::Extend => 0,
            };
            SETTLEMENT_BYTES + reason as u64 + RANGE_BYTES * settle.ranges.len() as u64
        };
        self.settlements.iter().map(bytes_of).sum()
    }
}

/// Encoded messages that share a frame.
#[derive(Debug)]
struct Chunk {
    /// Ticket of the first message; the others follow.
    ticket: u64,
    /// Sequence of the first message, where the chunk is numbered.
    sequence: u64,
    /// Messages; and the transaction itself, where it is one.
    count: u64,
    parts: Vec<(TopicId, u32)>,
    bytes: Bytes,
    /// What makes it a transaction.
    transaction: Option<Settling>,
}

impl Chunk {
    fn end_sequence(&self) -> u64 {
        self.sequence + self.count
    }

    fn frame_bytes(&self) -> u64 {
        let settling = self.transaction.as_ref().map_or(0, Settling::bytes);
        self.bytes.len() as u64 + HEAD_BYTES + PART_BYTES * self.parts.len() as u64 + settling
    }

    /// Cuts the first `count` messages off into a chunk of their own. It is no transaction.
    fn split_front(&mut self, count: u64) -> Self {
        let mut at = 0;
        for _ in 0..count {
            at += 4 + self.bytes[at..].first_chunk().map_or(0, |len| u32::from_le_bytes(*len) as usize);
        }
        let front_bytes = self.bytes.split_to(at);
        let mut front_parts = Vec::new();
        let mut left = count as u32;
        while left > 0 {
            let (topic, of_part) = &mut self.parts[0];
            let taken = left.min(*of_part);
            front_parts.push((*topic, taken));
            *of_part -= taken;
            left -= taken;
            if *of_part == 0 {
                self.parts.remove(0);
            }
        }
        let front = Self {
            ticket: self.ticket,
            sequence: self.sequence,
            count,
            parts: front_parts,
            bytes: front_bytes,
            transaction: None,
        };
        self.ticket += count;
        self.sequence += count;
        self.count -= count;
        front
    }
}

/// What is to be done about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It was expected and changes nothing.
    Stale,
    /// Messages failed or frames were split: send again at once.
    Again,
    /// The same, because this topic does not exist any more.
    TopicGone(TopicId),
    /// Nothing failed: send again after a wait.
    Later,
    /// Nothing failed: send again when the node says so.
    WhenReady,
    /// The two sides disagree: open the producer anew and go on from what the node says.
    Resync,
}

/// What does not fit when a producer is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// The node has less than it had confirmed.
    WentBack {
        /// The sequence confirmed before.
        confirmed: u64,
    },
    /// The node has more than was sent: somebody else has published as this producer.
    NotOurs,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Outbox {
    next_ticket: u64,
    open: BytesMut,
    open_parts: Vec<(TopicId, u32)>,
    open_count: u32,
    chunk_bytes_next: usize,
    /// Sealed and not decided.
    chunks: VecDeque<Chunk>,
    /// How many of `chunks`, from the front, have sequences.
    numbered: usize,
    /// How many of `chunks`, from the front, were sent on this connection.
    sent: usize,
    /// Sequence of the last message known to be stored.
    confirmed: u64,
    /// Frames that are on their way though the node will drop them.
    stale: usize,
    in_flight_bytes: u64,
    in_flight_messages: u64,
    failures: Vec<Failure>,
    /// Tickets that somebody waits for, with their refusals.
    claims: BTreeMap<u64, Option<Refusal>>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            next_ticket: 1,
            open: BytesMut::new(),
            open_parts: Vec::new(),
            open_count: 0,
            chunk_bytes_next: CHUNK_BYTES_MIN,
            chunks: VecDeque::new(),
            numbered: 0,
            sent: 0,
            confirmed: 0,
            stale: 0,
            in_flight_bytes: 0,
            in_flight_messages: 0,
            failures: Vec::new(),
            claims: BTreeMap::new(),
        }
    }

    /// Sequence of the last message known to be stored.
    pub(super) fn last_stored(&self) -> Sequence {
        Sequence(self.confirmed)
    }

    /// Messages that are not decided.
    pub(super) fn in_flight_messages(&self) -> u64 {
        self.in_flight_messages
    }

    /// Their encoded bytes.
    pub(super) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Whether anything was sent on this connection and is not decided.
    pub(super) fn is_waiting_for_node(&self) -> bool {
        self.sent > 0
    }

    /// Whether the node may have stored anything that is not decided.
    pub(super) fn is_anything_unknown(&self) -> bool {
        self.numbered > 0
    }

    /// Ticket of the last message published.
    pub(super) fn last_ticket(&self) -> u64 {
        self.next_ticket - 1
    }

    /// Every ticket up to this one is confirmed or has failed.
    pub(super) fn decided(&self) -> u64 {
        match self.chunks.front() {
            Some(chunk) => chunk.ticket - 1,
            None => self.next_ticket - 1 - u64::from(self.open_count),
        }
    }

    /// Failures that nobody asked for yet.
    pub(super) fn failure_count(&self) -> usize {
        self.failures.len()
    }

    /// Takes the failures of messages up to `ticket`, but for those claimed.
    pub(super) fn take_failures(&mut self, ticket: u64) -> Vec<Failure> {
        if self.failures.is_empty() {
            return Vec::new();
        }
        let (mut taken, kept): (Vec<_>, Vec<_>) =
            self.failures.drain(..).partition(|failure| failure.first.0 <= ticket);
        self.failures = kept;
        taken.sort_by_key(|failure| failure.first);
        taken
    }

    /// Keeps the refusal of a message that is not decided yet for whoever will take it by its ticket.
    pub(super) fn claim(&mut self, ticket: u64) {
        self.claims.insert(ticket, None);
    }

    /// Takes the refusal of a message that was claimed, if it was refused.
    pub(super) fn take_claimed(&mut self, ticket: u64) -> Option<Failure> {
        let refusal = self.claims.get_mut(&ticket)?.take()?;
        Some(Failure { first: Ticket(ticket), last: Ticket(ticket), refusal })
    }

    /// Nobody waits for this message alone any more: a refusal that was not taken goes to whoever asks next.
    pub(super) fn release(&mut self, ticket: u64) {
        if let Some(Some(refusal)) = self.claims.remove(&ticket) {
            self.failures.push(Failure { first: Ticket(ticket), last: Ticket(ticket), refusal });
        }
    }

    /// Takes a message in. Answers its ticket, and whether a chunk has become full.
    pub(super) fn push(&mut self, topic: TopicId, message: &Message) -> (u64, bool) {
        let len = message.encoded_len();
        let mut sealed = false;
        if self.open_count > 0 && self.open.len() + len > PUBLISH_FRAME_BYTES {
            self.seal();
            sealed = true;
        }
        if self.open_count == 0 {
            self.open.reserve(self.chunk_bytes_next.max(len));
        }
        message.encode(&mut self.open);
        match self.open_parts.last_mut() {
            Some((last, count)) if *last == topic => *count += 1,
            _ => self.open_parts.push((topic, 1)),
        }
        self.open_count += 1;
        self.in_flight_messages += 1;
        self.in_flight_bytes += len as u64;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if self.open_count == PUBLISH_FRAME_MESSAGES || self.open.len() >= PUBLISH_FRAME_BYTES {
            self.seal();
            sealed = true;
        }
        (ticket, sealed)
    }

    /// Closes the open chunk, if there is something in it.
    pub(super) fn seal(&mut self) {
        if self.open_count == 0 {
            return;
        }
        let count = u64::from(std::mem::take(&mut self.open_count));
        let bytes = self.open.split().freeze();
        self.chunk_bytes_next = (bytes.len() * 2).clamp(CHUNK_BYTES_MIN, PUBLISH_FRAME_BYTES);
        let parts = std::mem::take(&mut self.open_parts);
        let ticket = self.next_ticket - count;
        self.chunks.push_back(Chunk { ticket, sequence: 0, count, parts, bytes, transaction: None });
    }

    /// Takes a transaction in, behind everything published before: its encoded messages by topic, and what it settles.
    /// Answers its ticket, which is claimed.
    pub(super) fn push_transaction(
        &mut self,
        parts: Vec<(TopicId, u32)>,
        bytes: Bytes,
        settling: Settling,
    ) -> u64 {
        self.seal();
        let messages: u64 = parts.iter().map(|(_, count)| u64::from(*count)).sum();
        let (first, count) = (self.next_ticket, messages + 1);
        self.next_ticket += count;
        self.in_flight_messages += count;
        self.in_flight_bytes += bytes.len() as u64;
        let transaction = Some(settling);
        self.chunks.push_back(Chunk { ticket: first, sequence: 0, count, parts, bytes, transaction });
        let ticket = self.last_ticket();
        self.claim(ticket);
        ticket
    }

    /// The next frame to be sent on a connection, if there is one. A message that no frame of this node can hold fails,
    /// and so does a transaction that settles deliveries of another connection.
    pub(super) fn next_frame(
        &mut self,
        producer: Handle,
        frame_bytes_max: u64,
        session: Session,
    ) -> Option<(Head, Bytes)> {
        loop {
            let sequence = match self.sent.checked_sub(1).map(|before| &self.chunks[before]) {
                Some(before) => before.end_sequence(),
                None => self.confirmed + 1,
            };
            let chunk = self.chunks.get_mut(self.sent)?;
            if chunk.frame_bytes() > frame_bytes_max {
                let len = chunk.bytes.len();
                let text = format!("{len} bytes do not fit into a frame of {frame_bytes_max} bytes");
                self.fail(self.sent, &Refusal::new(ErrorCode::MessageTooLarge, text));
                continue;
            }
            if let Some(Settling { settlements, session: of }) = &chunk.transaction
                && !settlements.is_empty()
                && *of != session
            {
                let text = "the connection was lost before the transaction was stored; what it settles is delivered again";
                self.fail(self.sent, &Refusal::new(ErrorCode::TransactionAborted, text));
                continue;
            }
            if self.sent >= self.numbered {
                chunk.sequence = sequence;
                self.numbered = self.sent + 1;
            }
            let publish =
                Publish { producer, sequence: Sequence(chunk.sequence), parts: chunk.parts.clone() };
            let head = match &chunk.transaction {
                None => Head::Publish(publish),
                Some(Settling { settlements, .. }) => {
                    Head::Transact(Transact { publish, settlements: settlements.clone() })
                }
            };
            let bytes = chunk.bytes.clone();
            self.sent += 1;
            return Some((head, bytes));
        }
    }

    /// The connection is gone: everything that is not decided is to be sent again.
    pub(super) fn lost(&mut self) {
        self.sent = 0;
        self.stale = 0;
    }

    /// The producer is open for the first time and has `last` messages in the store.
    pub(super) fn opened(&mut self, last: Sequence) {
        self.confirmed = last.0;
    }

    /// The producer is open again; the store has its messages up to `last`.
    pub(super) fn resumed(&mut self, last: Sequence) -> Result<(), Mismatch> {
        if last.0 < self.confirmed {
            return Err(Mismatch::WentBack { confirmed: self.confirmed });
        }
        let sent_up_to = match self.numbered.checked_sub(1) {
            Some(index) => self.chunks[index].end_sequence() - 1,
            None => self.confirmed,
        };
        let cuts_transaction = self.chunks.range(..self.numbered).any(|chunk| {
            chunk.transaction.is_some() && last.0 >= chunk.sequence && last.0 + 1 < chunk.end_sequence()
        });
        if last.0 > sent_up_to || cuts_transaction {
            return Err(Mismatch::NotOurs);
        }
        self.lost();
        self.confirm(last);
        Ok(())
    }

    /// Everything up to `sequence` is stored.
    pub(super) fn confirm(&mut self, sequence: Sequence) {
        if sequence.0 <= self.confirmed {
            return;
        }
        // The node has taken a frame after the new start: it has answered everything from before it.
        self.stale = 0;
        while self.numbered > 0 {
            let front = &mut self.chunks[0];
            if front.sequence > sequence.0 {
                break;
            }
            let whole = front.end_sequence() <= sequence.0 + 1;
            if !whole && front.transaction.is_some() {
                break;
            }
            let done = if whole {
                self.numbered -= 1;
                self.sent = self.sent.saturating_sub(1);
                match self.chunks.pop_front() {
                    Some(chunk) => chunk,
                    None => break,
                }
            } else {
                front.split_front(sequence.0 + 1 - front.sequence)
            };
            self.confirmed = done.end_sequence() - 1;
            self.in_flight_messages -= done.count;
            self.in_flight_bytes -= done.bytes.len() as u64;
        }
    }

    /// The node took nothing from `expected` on. Marks what failed, and numbers the rest anew.
    pub(super) fn refuse(&mut self, sequence: Sequence, expected: Sequence, refusal: &Refusal) -> Refused {
        if refusal.code == ErrorCode::OutOfSequence || sequence > expected {
            if self.stale > 0 {
                self.stale -= 1;
                return Refused::Stale;
            }
            return Refused::Resync;
        }
        let Some(at) = self.start_again_at(expected.0) else {
            return Refused::Resync;
        };
        let goes_on = matches!(refusal.code, ErrorCode::UnknownHandle | ErrorCode::TopicBlocked);
        if self.chunks[at].transaction.is_some() && !goes_on {
            self.fail(at, refusal);
            return Refused::Again;
        }
        match refusal.code {
            ErrorCode::UnknownHandle => return Refused::Resync,
            ErrorCode::StoreFull | ErrorCode::Limit | ErrorCode::Draining | ErrorCode::NotMaster => {
                return Refused::Later;
            }
            ErrorCode::TopicBlocked => return Refused::WhenReady,
            _ => {}
        }
        let chunk = &mut self.chunks[at];
        let one_topic = chunk.parts.len() == 1;
        let concerns_topic = matches!(
            refusal.code,
            ErrorCode::UnknownTopic | ErrorCode::Deleted | ErrorCode::Unauthorized | ErrorCode::TopicFull
        );
        if chunk.count == 1 || (one_topic && concerns_topic) {
            let topic = chunk.parts[0].0;
            self.fail(at, refusal);
            if matches!(refusal.code, ErrorCode::UnknownTopic | ErrorCode::Deleted) {
                return Refused::TopicGone(topic);
            }
        } else {
            let count = if one_topic { chunk.count / 2 } else { u64::from(chunk.parts[0].1) };
            let front = chunk.split_front(count);
            self.chunks.insert(at, front);
        }
        Refused::Again
    }

    /// Takes the numbers of everything from `expected` on back. Answers which chunk is the first of it.
    fn start_again_at(&mut self, expected: u64) -> Option<usize> {
        let at = self.chunks.range(..self.sent).position(|chunk| expected < chunk.end_sequence())?;
        let chunk = &mut self.chunks[at];
        let behind = self.sent - at - 1;
        if expected < chunk.sequence {
            return None;
        }
        if expected > chunk.sequence && chunk.transaction.is_some() {
            return None;
        }
        let at = if expected > chunk.sequence {
            // The front of the frame was stored before: it will be confirmed.
            let front = chunk.split_front(expected - chunk.sequence);
            self.chunks.insert(at, front);
            at + 1
        } else {
            at
        };
        self.sent = at;
        self.numbered = at;
        self.stale += behind;
        Some(at)
    }

    /// Takes chunk `at` out: its messages are refused for good.
    fn fail(&mut self, at: usize, refusal: &Refusal) {
        let Some(chunk) = self.chunks.remove(at) else { return };
        // Later chunks move up, so numbers that they may have from an earlier connection must have been free.
        self.numbered = self.numbered.min(at);
        self.in_flight_messages -= chunk.count;
        self.in_flight_bytes -= chunk.bytes.len() as u64;
        let end = chunk.ticket + chunk.count;
        let first = if chunk.transaction.is_some() { end - 1 } else { chunk.ticket };
        self.note_failure(first, end, refusal);
    }

    /// Keeps the refusal of the messages from ticket `first` on and before `end` for those who will ask for it.
    fn note_failure(&mut self, mut first: u64, end: u64, refusal: &Refusal) {
        let mut note = |first: u64, end: u64| {
            if first < end {
                let (first, last) = (Ticket(first), Ticket(end - 1));
                self.failures.push(Failure { first, last, refusal: refusal.clone() });
            }
        };
        for (&ticket, claim) in self.claims.range_mut(first..end) {
            *claim = Some(refusal.clone());
            note(first, ticket);
            first = ticket + 1;
        }
        note(first, end);
    }
}

#[cfg(test)]
mod tests;
