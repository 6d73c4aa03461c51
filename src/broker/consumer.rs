//! A consumer: its credit, what is in flight to it, the pulls it waits for, and what this cycle hands out to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::cache::CachedChunk;
use super::flights::{Flights, Lease};
use super::turns::Turn;
use super::{Content, Delivery, Effect};
use crate::model::chunk::Origin;
use crate::model::id::{Offset, OffsetRange, Sequence, SessionId, TopicId};
use crate::model::retry::Retry;
use crate::model::time::Timestamp;
use crate::protocol::request::{Handle, RequestId, Window};
use crate::protocol::response::{Activity, ConsumerRecalled, FailureRun, Reply, Run};

/// Bytes of messages after which a delivery is sent and the next one begun; a larger message goes alone.
pub(super) const DELIVERY_BYTES: u64 = 1 << 20;
/// Runs after which a delivery is sent and the next one begun.
const DELIVERY_RUNS: usize = 4096;

/// One question for messages.
#[derive(Debug)]
pub(super) struct Pull {
    /// Number of the pull within the broker.
    pub id: u64,
    pub request: RequestId,
    pub window: Window,
    /// When it is answered though nothing came.
    pub until: Timestamp,
    /// Messages and bytes it has got.
    pub got: u32,
    pub got_bytes: u64,
}

/// How much may be handed out now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// The pull that it is for; 0 for a push.
    pub request: RequestId,
    pub messages: u64,
    pub bytes: u64,
    /// Whether one message may be handed out whatever its size.
    pub any_size: bool,
}

impl Room {
    /// Whether there is room for a message at all.
    pub fn has_any(&self) -> bool {
        self.messages > 0 && (self.bytes > 0 || self.any_size)
    }
}

/// Messages picked for a consumer that have not been sent yet.
#[derive(Debug, Default)]
struct Outbox {
    request: RequestId,
    topic: TopicId,
    runs: Vec<Run>,
    failures: Vec<FailureRun>,
    messages: Vec<Bytes>,
    bytes: u64,
}

/// What is handed out: consecutive messages of a chunk, with what is the same for all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandOut<'a> {
    pub topic: TopicId,
    pub index: usize,
    pub count: usize,
    /// What is known of earlier attempts.
    pub retry: Option<&'a Retry>,
    pub redelivered: Redelivered,
    pub lease: Lease,
}

/// Whether messages may have been handed out before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redelivered {
    Yes,
    No,
}

/// A consumer of a group.
#[derive(Debug)]
pub(super) struct Consumer {
    pub session: SessionId,
    pub handle: Handle,
    /// Its number among the consumers of its group, in the order in which they joined.
    pub number: u64,
    /// Its priority among the consumers of its group.
    pub priority: u8,
    /// The role that it was told.
    pub told: Option<Activity>,
    /// What may be in flight to it.
    pub window: Window,
    /// Its session cannot take more.
    pub paused: bool,
    /// The next message did not fit into the bytes left: no credit until something is settled.
    pub stuck: bool,
    /// Number of the last hand-over to it within its group.
    pub served: u64,
    /// When it last acknowledged something.
    pub last_ack_at: Option<Timestamp>,
    /// Its turn, while it has credit.
    pub turn: Option<Turn>,
    pub flights: Flights,
    pub pulls: VecDeque<Pull>,
    /// Topics that it was told the names of.
    pub known_topics: BTreeSet<TopicId>,
    /// How often what it had of a topic was recalled, where it was.
    recalls: BTreeMap<TopicId, u32>,
    outbox: Outbox,
}

impl Consumer {
    pub fn new(session: SessionId, handle: Handle, priority: u8, window: Window) -> Self {
        Self {
            session,
            handle,
            number: 0,
            priority,
            told: None,
            window,
            paused: false,
            stuck: false,
            served: 0,
            last_ack_at: None,
            turn: None,
            flights: Flights::default(),
            pulls: VecDeque::new(),
            known_topics: BTreeSet::new(),
            recalls: BTreeMap::new(),
            outbox: Outbox::default(),
        }
    }

    /// What may be handed out to it now: for its oldest pull if there is one, otherwise within its window.
    pub fn room(&self) -> Room {
        if let Some(pull) = self.pulls.front() {
            return Room {
                request: pull.request,
                messages: u64::from(pull.window.messages - pull.got),
                bytes: pull.window.bytes.saturating_sub(pull.got_bytes),
                any_size: pull.got == 0,
            };
        }
        Room {
            request: 0,
            messages: u64::from(self.window.messages).saturating_sub(self.flights.count()),
            bytes: self.window.bytes.saturating_sub(self.flights.bytes()),
            any_size: self.flights.count() == 0,
        }
    }

    /// Whether it can be handed something at all.
    pub fn has_credit(&self) -> bool {
        if self.paused || (self.stuck && self.pulls.is_empty()) {
            return false;
        }
        self.room().has_any()
    }

    /// Puts messages of a chunk into its hands; they leave with [`send`](Self::send) at the latest.
    pub fn hand_out(&mut self, chunk: &CachedChunk, what: HandOut<'_>, effects: &mut Vec<Effect>) {
        let request = self.room().request;
        if (self.outbox.request, self.outbox.topic) != (request, what.topic) {
            self.send(effects);
            (self.outbox.request, self.outbox.topic) = (request, what.topic);
        }
        let bytes = chunk.block.byte_len(what.index, what.index + what.count) as u64;
        if self.outbox.bytes + bytes > DELIVERY_BYTES {
            // A message as large as a frame can take goes alone.
            self.send(effects);
        }
        let start = chunk.first.0 + what.index as u64;
        let range = OffsetRange::new(start, start + what.count as u64);
        self.flights.add(what.topic, range, bytes, what.lease);
        if let Some(pull) = self.pulls.front_mut() {
            pull.got += what.count as u32;
            pull.got_bytes += bytes;
        }
        let (failed, handed_out) = what.retry.map_or((0, 0), |retry| (retry.failed, retry.handed_out));
        if let Some(failure) = what.retry.and_then(Retry::last_failure) {
            self.outbox.failures.push(FailureRun { range, failure: failure.clone() });
        }
        let mut index = what.index;
        while index < what.index + what.count {
            let source = chunk.source(index);
            let count = (source.count as usize).min(what.index + what.count - index);
            self.outbox.put_run(Run {
                offset: Offset(chunk.first.0 + index as u64),
                count: count as u32,
                attempt: failed.saturating_add(1),
                delivery: handed_out.saturating_add(1),
                redelivered: what.redelivered == Redelivered::Yes,
                published_at: source.published_at,
                origin: source.origin,
            });
            index += count;
        }
        self.outbox.messages.push(chunk.block.slice(what.index, what.index + what.count));
        self.outbox.bytes += bytes;
        let runs = self.outbox.runs.len().max(self.outbox.failures.len());
        if self.outbox.bytes >= DELIVERY_BYTES || runs >= DELIVERY_RUNS {
            self.send(effects);
        }
    }

    /// How often what it had of a topic was recalled.
    pub fn generation(&self, topic: TopicId) -> u32 {
        self.recalls.get(&topic).copied().unwrap_or(0)
    }

    /// Forgets a topic that is gone. Answers whether it was told its name.
    pub fn forget_topic(&mut self, topic: TopicId) -> bool {
        self.recalls.remove(&topic);
        self.known_topics.remove(&topic)
    }

    /// What it had of a topic is not its any more. Answers how it is told.
    pub fn recalled(&mut self, topic: TopicId) -> Effect {
        let generation = self.recalls.entry(topic).or_insert(0);
        *generation = generation.wrapping_add(1);
        let recalled = ConsumerRecalled { consumer: self.handle, topic, generation: *generation };
        Effect { session: self.session, content: Content::ConsumerRecalled(recalled) }
    }

    /// Whether nothing is in its hands that has not been sent.
    pub fn has_sent_all(&self) -> bool {
        self.outbox.runs.is_empty()
    }

    /// Sends what was put into its hands.
    pub fn send(&mut self, effects: &mut Vec<Effect>) {
        if self.outbox.runs.is_empty() {
            return;
        }
        let outbox = std::mem::take(&mut self.outbox);
        let delivery = Delivery {
            consumer: self.handle,
            topic: outbox.topic,
            request: outbox.request,
            runs: outbox.runs,
            failures: outbox.failures,
            messages: outbox.messages,
        };
        (self.outbox.request, self.outbox.topic) = (delivery.request, delivery.topic);
        effects.push(Effect { session: self.session, content: Content::Deliver(delivery) });
    }

    /// Sends what was put into its hands and completes its oldest pull. Answers that pull.
    pub fn complete_pull(&mut self, effects: &mut Vec<Effect>) -> Option<Pull> {
        self.send(effects);
        let pull = self.pulls.pop_front()?;
        self.answer_pull(&pull, effects);
        Some(pull)
    }

    /// Says that a pull is over.
    pub fn answer_pull(&self, pull: &Pull, effects: &mut Vec<Effect>) {
        let content = Content::Reply(pull.request, Ok(Reply::Pulled { count: pull.got }));
        effects.push(Effect { session: self.session, content });
    }
}

impl Outbox {
    /// Adds a run, to the last one where it goes on from there.
    fn put_run(&mut self, run: Run) {
        if let Some(last) = self.runs.last_mut() {
            let count = u64::from(last.count);
            let origin =
                last.origin.map(|origin| Origin { sequence: Sequence(origin.sequence.0 + count), ..origin });
            let next = Run { offset: Offset(last.offset.0 + count), count: run.count, origin, ..*last };
            if next == run
                && let Some(count) = last.count.checked_add(run.count)
            {
                last.count = count;
                return;
            }
        }
        self.runs.push(run);
    }
}
