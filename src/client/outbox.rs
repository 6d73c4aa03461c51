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
//! A refusal is reported once. Where somebody waits for the fate of one message, it has *claimed* its ticket, and the
//! refusal is kept for it; all others go to whoever asks next.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::error::Failure;
use super::options::{PUBLISH_FRAME_BYTES, PUBLISH_FRAME_MESSAGES};
use super::producer::Ticket;
use crate::model::id::{Sequence, TopicId};
use crate::model::message::Message;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{Handle, Publish};

/// Smallest piece of memory that an open chunk starts with.
const CHUNK_BYTES_MIN: usize = 4 << 10;
/// Bytes that the head of a publish frame needs at most beside its parts.
const HEAD_BYTES: u64 = 64;
/// Bytes that one part needs at most in the head of a publish frame.
const PART_BYTES: u64 = 10;

/// Encoded messages that share a frame.
#[derive(Debug)]
struct Chunk {
    /// Ticket of the first message; the others follow.
    ticket: u64,
    /// Sequence of the first message, where the chunk is numbered.
    sequence: u64,
    count: u64,
    parts: Vec<(TopicId, u32)>,
    bytes: Bytes,
}

impl Chunk {
    fn end_sequence(&self) -> u64 {
        self.sequence + self.count
    }

    fn frame_bytes(&self) -> u64 {
        self.bytes.len() as u64 + HEAD_BYTES + PART_BYTES * self.parts.len() as u64
    }

    /// Cuts the first `count` messages off into a chunk of their own.
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
        self.chunks.push_back(Chunk { ticket: self.next_ticket - count, sequence: 0, count, parts, bytes });
    }

    /// The next frame to be sent, if there is one. A message that no frame of this node can hold fails.
    pub(super) fn next_frame(&mut self, producer: Handle, frame_bytes_max: u64) -> Option<(Publish, Bytes)> {
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
            if self.sent >= self.numbered {
                chunk.sequence = sequence;
                self.numbered = self.sent + 1;
            }
            let head = Publish { producer, sequence: Sequence(chunk.sequence), parts: chunk.parts.clone() };
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
        if last.0 > sent_up_to {
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
        self.note_failure(chunk.ticket, chunk.ticket + chunk.count, refusal);
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::limits::Limits;
    use crate::model::message::MessageBlock;
    use crate::protocol::response::PublishRefused;

    const FRAME_BYTES_MAX: u64 = 1 << 20;

    /// What a message of the test is, beside its ticket.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        Good,
        Bad,
        /// To a topic that does not exist.
        Lost,
    }

    const GOOD_TOPIC: TopicId = TopicId(1);
    const LOST_TOPIC: TopicId = TopicId(2);

    /// The node's side of one producer: one store, one connection at a time.
    #[derive(Default)]
    struct Node {
        stored: Vec<u64>,
        input: VecDeque<(Publish, Bytes)>,
        output: VecDeque<Result<Sequence, PublishRefused>>,
    }

    impl Node {
        fn last(&self) -> u64 {
            self.stored.len() as u64
        }

        /// Takes the next frame, or puts it off.
        fn take(&mut self, full: bool) {
            let Some((head, messages)) = self.input.pop_front() else { return };
            let block = MessageBlock::parse(messages, &Limits::default()).unwrap();
            let messages: Vec<_> = (0..block.count()).map(|i| block.message(i).unwrap()).collect();
            let count: u32 = head.parts.iter().map(|(_, count)| count).sum();
            assert_eq!(count as usize, messages.len());
            let code = if head.sequence.0 > self.last() + 1 {
                Some(ErrorCode::OutOfSequence)
            } else if full {
                Some(ErrorCode::StoreFull)
            } else if messages.iter().any(|message| message.key.is_some()) {
                Some(ErrorCode::Invalid)
            } else if head.parts.iter().any(|(topic, _)| *topic == LOST_TOPIC) {
                Some(ErrorCode::UnknownTopic)
            } else {
                None
            };
            if let Some(code) = code {
                self.output.push_back(Err(PublishRefused {
                    producer: head.producer,
                    sequence: head.sequence,
                    expected: Sequence(self.last() + 1),
                    refusal: Refusal::new(code, ""),
                }));
                return;
            }
            let known = (self.last() + 1 - head.sequence.0) as usize;
            for message in messages.iter().skip(known) {
                self.stored.push(std::str::from_utf8(&message.body).unwrap().parse().unwrap());
            }
            self.output.push_back(Ok(Sequence(self.last())));
        }
    }

    struct Pair {
        outbox: Outbox,
        node: Node,
        kinds: Vec<Kind>,
        failed: Vec<u64>,
    }

    impl Pair {
        fn new() -> Self {
            Self { outbox: Outbox::new(), node: Node::default(), kinds: Vec::new(), failed: Vec::new() }
        }

        fn push(&mut self, kind: Kind) {
            self.kinds.push(kind);
            let body = self.kinds.len().to_string();
            let key = (kind == Kind::Bad).then(Bytes::new);
            let topic = if kind == Kind::Lost { LOST_TOPIC } else { GOOD_TOPIC };
            let (ticket, _) = self.outbox.push(topic, &Message { key, ..Message::new(body) });
            assert_eq!(ticket, self.kinds.len() as u64);
        }

        fn send(&mut self, frames: usize) {
            self.outbox.seal();
            for _ in 0..frames {
                let Some(frame) = self.outbox.next_frame(1, FRAME_BYTES_MAX) else { return };
                self.node.input.push_back(frame);
            }
        }

        fn hear(&mut self) {
            match self.node.output.pop_front() {
                Some(Ok(sequence)) => self.outbox.confirm(sequence),
                Some(Err(refused)) => {
                    let done = self.outbox.refuse(refused.sequence, refused.expected, &refused.refusal);
                    assert_ne!(done, Refused::Resync, "{refused:?}");
                }
                None => {}
            }
            self.note_failures();
        }

        fn note_failures(&mut self) {
            for failure in self.outbox.take_failures(u64::MAX) {
                self.failed.extend(failure.first.0..=failure.last.0);
            }
        }

        fn reconnect(&mut self) {
            self.node.input.clear();
            self.node.output.clear();
            self.outbox.lost();
            self.outbox.resumed(Sequence(self.node.last())).unwrap();
        }

        /// Lets everything come to its end and checks it.
        fn finish(mut self) {
            for _ in 0..20_000 {
                if self.outbox.in_flight_messages() == 0 {
                    break;
                }
                self.send(usize::MAX);
                self.node.take(false);
                self.hear();
            }
            let of = |wanted: fn(Kind) -> bool| -> Vec<u64> {
                (1..).zip(&self.kinds).filter(|(_, kind)| wanted(**kind)).map(|(ticket, _)| ticket).collect()
            };
            assert_eq!(self.node.stored, of(|kind| kind == Kind::Good));
            self.failed.sort_unstable();
            assert_eq!(self.failed, of(|kind| kind != Kind::Good));
            assert_eq!(self.outbox.decided(), self.kinds.len() as u64);
            assert_eq!(self.outbox.in_flight_bytes(), 0);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(Vec<Kind>),
        Send(usize),
        Take(bool),
        Hear,
        Reconnect,
    }

    fn step() -> impl Strategy<Value = Step> {
        let kind = prop_oneof![8 => Just(Kind::Good), 1 => Just(Kind::Bad), 1 => Just(Kind::Lost)];
        prop_oneof![
            4 => prop::collection::vec(kind, 1..6).prop_map(Step::Push),
            3 => (1..4_usize).prop_map(Step::Send),
            4 => prop::bool::weighted(0.2).prop_map(Step::Take),
            4 => Just(Step::Hear),
            1 => Just(Step::Reconnect),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn every_message_is_stored_once_in_order_or_fails_alone(steps in prop::collection::vec(step(), 1..60)) {
            let mut pair = Pair::new();
            let mut decided = 0;
            for step in steps {
                match step {
                    Step::Push(kinds) => kinds.into_iter().for_each(|kind| pair.push(kind)),
                    Step::Send(frames) => pair.send(frames),
                    Step::Take(full) => pair.node.take(full),
                    Step::Hear => pair.hear(),
                    Step::Reconnect => pair.reconnect(),
                }
                prop_assert!(pair.outbox.decided() >= decided, "what was decided is not any more");
                decided = pair.outbox.decided();
            }
            pair.finish();
        }
    }

    /// A frame was on its way when the one before it was refused. Its own refusal, `out-of-sequence`, must not start
    /// the producer again a second time: the frame that then took the number would be sent, and refused, twice, and
    /// the second refusal would hit the innocent frame after it.
    #[test]
    fn a_refusal_is_never_taken_for_that_of_another_frame() {
        let mut pair = Pair::new();
        for kind in [Kind::Bad, Kind::Bad, Kind::Good, Kind::Good] {
            pair.push(kind);
            pair.send(1);
        }
        pair.finish();
    }

    #[test]
    fn a_store_with_less_than_was_confirmed_is_noticed() {
        let mut pair = Pair::new();
        for _ in 0..3 {
            pair.push(Kind::Good);
            pair.send(1);
            pair.node.take(false);
            pair.hear();
        }
        pair.outbox.lost();
        assert_eq!(pair.outbox.resumed(Sequence(2)), Err(Mismatch::WentBack { confirmed: 3 }));
        assert_eq!(pair.outbox.resumed(Sequence(4)), Err(Mismatch::NotOurs));
    }

    /// The refusal of a message that somebody waits for was taken by whoever asked for all refusals first.
    #[test]
    fn the_failure_of_a_claimed_message_is_kept_for_its_claim() {
        let mut pair = Pair::new();
        (0..6).for_each(|_| pair.push(Kind::Lost));
        [3, 5].into_iter().for_each(|ticket| pair.outbox.claim(ticket));
        pair.send(1);
        pair.node.take(false);
        let refused = pair.node.output.pop_front().unwrap().unwrap_err();
        let done = pair.outbox.refuse(refused.sequence, refused.expected, &refused.refusal);
        assert_eq!(done, Refused::TopicGone(LOST_TOPIC));
        let ranges = |failures: Vec<Failure>| -> Vec<_> {
            failures.iter().map(|failure| (failure.first.0, failure.last.0)).collect()
        };
        assert_eq!(ranges(pair.outbox.take_failures(9)), [(1, 2), (4, 4), (6, 6)]);
        assert_eq!(pair.outbox.take_claimed(3).unwrap().first, Ticket(3));
        [3, 5].into_iter().for_each(|ticket| pair.outbox.release(ticket));
        assert_eq!(ranges(pair.outbox.take_failures(9)), [(5, 5)]);
    }

    #[test]
    fn a_full_chunk_is_closed() {
        let mut outbox = Outbox::new();
        let message = Message::new(vec![0; 1000]);
        let sealed = (0..300).filter(|_| outbox.push(GOOD_TOPIC, &message).1).count();
        assert_eq!(sealed, 300 * 1005 / PUBLISH_FRAME_BYTES);
        let (_, bytes) = outbox.next_frame(1, FRAME_BYTES_MAX).unwrap();
        assert!(bytes.len() <= PUBLISH_FRAME_BYTES);
    }
}
