//! The outbox against a node that takes, refuses and forgets: messages are stored once or fail alone, transactions as a
//! whole.

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
    /// A transaction of so many good messages. One that settles belongs to the connection that is there.
    Commit {
        count: u32,
        settles: bool,
    },
    /// A transaction that the node refuses.
    BadCommit,
}

const GOOD_TOPIC: TopicId = TopicId(1);
const LOST_TOPIC: TopicId = TopicId(2);

/// The node's side of one producer: one store, one connection at a time.
#[derive(Default)]
struct Node {
    stored: Vec<u64>,
    /// Frames, each with the last ticket in it.
    input: VecDeque<(Head, Bytes, u64)>,
    output: VecDeque<Result<Sequence, PublishRefused>>,
}

impl Node {
    fn last(&self) -> u64 {
        self.stored.len() as u64
    }

    /// Takes the next frame, or puts it off.
    fn take(&mut self, full: bool) {
        let Some((head, messages, ticket)) = self.input.pop_front() else { return };
        let (head, own) = match head {
            Head::Publish(head) => (head, 0),
            Head::Transact(Transact { publish, .. }) => (publish, 1),
        };
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
        if own > 0 && known <= messages.len() {
            assert_eq!(known, 0, "a transaction is never known in part");
            self.stored.push(ticket);
        }
        self.output.push_back(Ok(Sequence(self.last())));
    }
}

struct Pair {
    outbox: Outbox,
    node: Node,
    /// What each ticket is.
    kinds: Vec<Kind>,
    /// Tickets of transactions, each that of the first message and its own.
    commits: Vec<(u64, u64)>,
    session: Session,
    failed: Vec<u64>,
}

impl Pair {
    fn new() -> Self {
        Self {
            outbox: Outbox::new(),
            node: Node::default(),
            kinds: Vec::new(),
            commits: Vec::new(),
            session: 1,
            failed: Vec::new(),
        }
    }

    fn push(&mut self, kind: Kind) {
        match kind {
            Kind::Commit { count, settles } => return self.commit(kind, count, settles),
            Kind::BadCommit => return self.commit(kind, 2, false),
            Kind::Good | Kind::Bad | Kind::Lost => self.kinds.push(kind),
        }
        let body = self.kinds.len().to_string();
        let key = (kind == Kind::Bad).then(Bytes::new);
        let topic = if kind == Kind::Lost { LOST_TOPIC } else { GOOD_TOPIC };
        let (ticket, _) = self.outbox.push(topic, &Message { key, ..Message::new(body) });
        assert_eq!(ticket, self.kinds.len() as u64);
    }

    fn commit(&mut self, kind: Kind, count: u32, settles: bool) {
        let first = self.kinds.len() as u64 + 1;
        let mut bytes = BytesMut::new();
        for ticket in first..first + u64::from(count) {
            let key = (kind == Kind::BadCommit).then(Bytes::new);
            Message { key, ..Message::new(ticket.to_string()) }.encode(&mut bytes);
        }
        self.kinds.extend(std::iter::repeat_n(kind, count as usize + 1));
        let parts = if count > 0 { vec![(GOOD_TOPIC, count)] } else { Vec::new() };
        let settle = TransactSettle {
            consumer: 1,
            topic: GOOD_TOPIC,
            generation: 0,
            settlement: Settlement::Ack,
            ranges: Vec::new(),
        };
        let settlements = if settles { vec![settle] } else { Vec::new() };
        let settling = Settling { settlements, session: self.session };
        let ticket = self.outbox.push_transaction(parts, bytes.freeze(), settling);
        assert_eq!(ticket, self.kinds.len() as u64);
        self.commits.push((first, ticket));
    }

    fn send(&mut self, frames: usize) {
        self.outbox.seal();
        for _ in 0..frames {
            let Some((head, bytes)) = self.outbox.next_frame(1, FRAME_BYTES_MAX, self.session) else {
                return;
            };
            let chunk = &self.outbox.chunks[self.outbox.sent - 1];
            self.node.input.push_back((head, bytes, chunk.ticket + chunk.count - 1));
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
        self.session += 1;
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
        for &(first, own) in &self.commits {
            let stored =
                self.node.stored.iter().filter(|ticket| (first..=own).contains(ticket)).count() as u64;
            let refused = self.outbox.take_claimed(own).is_some();
            assert_eq!(stored, if refused { 0 } else { own + 1 - first }, "all of it or nothing");
            assert!(refused || self.kinds[own as usize - 1] != Kind::BadCommit);
        }
        let single = |ticket: &u64| !self.commits.iter().any(|(first, own)| (*first..=*own).contains(ticket));
        assert!(self.node.stored.is_sorted(), "in the order of publishing");
        let stored: Vec<u64> = self.node.stored.iter().copied().filter(single).collect();
        assert_eq!(stored, of(|kind| kind == Kind::Good));
        self.failed.sort_unstable();
        assert_eq!(self.failed, of(|kind| matches!(kind, Kind::Bad | Kind::Lost)));
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
    let commit = (0_u32..4, any::<bool>()).prop_map(|(count, settles)| Kind::Commit { count, settles });
    let kind = prop_oneof![
        8 => Just(Kind::Good),
        1 => Just(Kind::Bad),
        1 => Just(Kind::Lost),
        2 => commit,
        1 => Just(Kind::BadCommit),
    ];
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
    let (_, bytes) = outbox.next_frame(1, FRAME_BYTES_MAX, 1).unwrap();
    assert!(bytes.len() <= PUBLISH_FRAME_BYTES);
}

/// What a transaction settles was delivered by one connection; on the next one nothing of that is in flight.
#[test]
fn a_transaction_that_settles_is_not_sent_on_another_connection() {
    let mut pair = Pair::new();
    pair.push(Kind::Commit { count: 1, settles: false });
    pair.push(Kind::Commit { count: 1, settles: true });
    pair.push(Kind::Good);
    pair.send(3);
    pair.reconnect();
    pair.send(3);
    assert_eq!(pair.node.input.len(), 2);
    assert_eq!(pair.outbox.take_claimed(4).unwrap().refusal.code, ErrorCode::TransactionAborted);
    (0..2).for_each(|_| pair.node.take(false));
    assert_eq!(pair.node.last(), 3);
}

/// The answer to a commit was lost with the connection: the next one tells that it took place.
#[test]
fn a_transaction_that_was_stored_before_the_connection_was_lost_is_decided_by_the_next_one() {
    let mut pair = Pair::new();
    pair.push(Kind::Commit { count: 2, settles: true });
    pair.send(1);
    pair.node.take(false);
    pair.reconnect();
    assert_eq!(pair.outbox.decided(), 3);
    assert!(pair.outbox.take_claimed(3).is_none());
    // The node has a part of it: whoever stored that is somebody else.
    pair.push(Kind::Commit { count: 2, settles: true });
    pair.send(1);
    pair.outbox.lost();
    assert_eq!(pair.outbox.resumed(Sequence(4)), Err(Mismatch::NotOurs));
}

/// A topic that is full and whose producers wait: the node calls when there is room.
#[test]
fn a_transaction_waits_for_room_like_any_publish() {
    let mut pair = Pair::new();
    pair.push(Kind::Commit { count: 1, settles: true });
    pair.send(1);
    let blocked = Refusal::new(ErrorCode::TopicBlocked, "");
    assert_eq!(pair.outbox.refuse(Sequence(1), Sequence(1), &blocked), Refused::WhenReady);
    assert!(pair.outbox.take_claimed(2).is_none());
    assert!(matches!(pair.outbox.next_frame(1, FRAME_BYTES_MAX, 1), Some((Head::Transact(_), _))));
}
