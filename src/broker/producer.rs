//! Producers: who owns a name, which sequence is next, and when one is forgotten.
//!
//! A message is stored once because a producer's last sequence is part of the state: what is not above it is there
//! already and only confirmed again. A name belongs to the connection that opened it last. Confirms of a producer
//! are one per cycle, and a refusal never overtakes a confirm of what came before it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::machine::Broker;
use super::refusals;
use super::routes::{Ways, copied_bytes};
use super::topic::{scattered_bytes, stored_bytes};
use super::{Content, Effect, Output};
use crate::model::chunk::Origin;
use crate::model::id::{ProducerId, Sequence, SessionId, TopicId};
use crate::model::limits::PUBLISH_PARTS_MAX;
use crate::model::message::MessageBlock;
use crate::model::name::Name;
use crate::model::record::Record;
use crate::model::snapshot::ProducerState;
use crate::model::time::Timestamp;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{CloseProducer, Handle, OpenProducer, Publish};
use crate::protocol::response::{Confirm, PublishRefused, Reply};

/// Producers that are forgotten in one cycle at most.
const EXPIRED_PER_CYCLE: usize = 256;
/// After a start nobody is forgotten for so long: producers that were open before it must be able to come back.
const GRACE: Duration = Duration::from_secs(600);

/// A producer that is remembered.
#[derive(Debug)]
pub(super) struct Producer {
    /// What is durable.
    pub state: ProducerState,
    /// The connection that has it open, and under which number.
    pub owner: Option<(SessionId, Handle)>,
    /// Since when it is not open.
    idle_since: Timestamp,
    /// Whether its owner is to get a confirm when the cycle ends.
    unconfirmed: bool,
    /// The topic in whose line it is, for room.
    waits_for: Option<TopicId>,
}

impl Producer {
    /// One that is not open.
    fn new(state: ProducerState, idle_since: Timestamp) -> Self {
        Self { state, owner: None, idle_since, unconfirmed: false, waits_for: None }
    }
}

/// All producers that are remembered.
#[derive(Debug, Default)]
pub(super) struct Producers {
    pub by_id: BTreeMap<ProducerId, Producer>,
    names: BTreeMap<Name, ProducerId>,
    /// Those that are not open, the one that is idle longest first.
    idle: BTreeSet<(Timestamp, ProducerId)>,
    /// When the first command came.
    started_at: Option<Timestamp>,
    /// Those that wait for room no more, with the topic in whose line each was.
    left: Vec<(TopicId, ProducerId)>,
}

impl Producers {
    /// The producers as a broker before this one left them; none is open.
    pub fn recover(states: BTreeMap<ProducerId, ProducerState>) -> Self {
        let mut producers = Self::default();
        for (id, state) in states {
            producers.names.insert(state.name.clone(), id);
            producers.idle.insert((state.seen_at, id));
            let idle_since = state.seen_at;
            producers.by_id.insert(id, Producer::new(state, idle_since));
        }
        producers
    }

    /// Notes that the broker has begun to work.
    pub fn start(&mut self, now: Timestamp) {
        self.started_at.get_or_insert(now);
    }

    /// When the broker has begun to work.
    pub fn started_at(&self, now: Timestamp) -> Timestamp {
        self.started_at.unwrap_or(now)
    }

    /// The connection that has a producer open, and under which number.
    pub fn owner(&self, id: ProducerId) -> Option<(SessionId, Handle)> {
        self.by_id.get(&id)?.owner
    }

    /// Notes that a producer is in the line of a topic, and in no other.
    pub fn wait(&mut self, id: ProducerId, topic: TopicId) {
        let Some(producer) = self.by_id.get_mut(&id) else { return };
        let before = producer.waits_for.replace(topic).filter(|before| *before != topic);
        self.left.extend(before.map(|before| (before, id)));
    }

    /// Notes that a producer is to be in no line.
    pub fn stop_waiting(&mut self, id: ProducerId) {
        let before = self.by_id.get_mut(&id).and_then(|producer| producer.waits_for.take());
        self.left.extend(before.map(|before| (before, id)));
    }

    /// Takes those that are to be in no line any more, with the topic in whose line each was.
    pub fn take_left(&mut self) -> Vec<(TopicId, ProducerId)> {
        std::mem::take(&mut self.left)
    }

    /// When the first one is to be forgotten.
    pub fn next_expiry(&self, idle_max: Duration) -> Option<Timestamp> {
        let (idle_since, _) = self.idle.first()?;
        Some(idle_since.after(idle_max).max(self.grace_end(idle_max)?))
    }

    /// Until when those may come back that were open before the start.
    fn grace_end(&self, idle_max: Duration) -> Option<Timestamp> {
        Some(self.started_at?.after(GRACE.min(idle_max)))
    }

    /// The one that gives its place to a new one: whoever is idle longest, of those that need not come back first.
    fn dispensable(&self, now: Timestamp, idle_max: Duration) -> Option<ProducerId> {
        let first = match (self.started_at, self.grace_end(idle_max)) {
            (Some(started_at), Some(end)) if now < end => {
                let after_start = (Bound::Excluded((started_at, ProducerId(u64::MAX))), Bound::Unbounded);
                self.idle.range(after_start).next()
            }
            _ => self.idle.first(),
        };
        first.map(|(_, id)| *id)
    }

    fn expire(&mut self, id: ProducerId, out: &mut Output) {
        if let Some(producer) = self.by_id.remove(&id) {
            self.names.remove(&producer.state.name);
            self.idle.remove(&(producer.idle_since, id));
            out.records.push(Record::ProducerExpired { producer: id });
        }
    }

    /// Forgets those that were idle for too long, some at a time.
    pub fn expire_idle(&mut self, now: Timestamp, idle_max: Duration, out: &mut Output) {
        for _ in 0..EXPIRED_PER_CYCLE {
            match (self.next_expiry(idle_max), self.idle.first()) {
                (Some(at), Some(&(_, id))) if at <= now => self.expire(id, out),
                _ => break,
            }
        }
    }

    /// Takes a producer from whoever has it open. What was not confirmed yet is confirmed before that.
    fn disown(&mut self, id: ProducerId, now: Timestamp, out: &mut Output) {
        self.confirm(id, out);
        self.stop_waiting(id);
        if let Some(producer) = self.by_id.get_mut(&id)
            && producer.owner.take().is_some()
        {
            producer.idle_since = now.max(producer.state.seen_at);
            self.idle.insert((producer.idle_since, id));
        }
    }

    /// Closes a producer if it is still the one that this connection opened.
    pub fn close(&mut self, id: ProducerId, owner: (SessionId, Handle), now: Timestamp, out: &mut Output) {
        if self.by_id.get(&id).is_some_and(|producer| producer.owner == Some(owner)) {
            self.disown(id, now, out);
        }
    }

    /// Sends the confirm that a producer waits for, if it does.
    pub fn confirm(&mut self, id: ProducerId, out: &mut Output) {
        let Some(producer) = self.by_id.get_mut(&id) else { return };
        if std::mem::take(&mut producer.unconfirmed)
            && let Some((session, handle)) = producer.owner
        {
            let confirm = Confirm { producer: handle, sequence: producer.state.last };
            out.effects.push(Effect { session, content: Content::Confirm(confirm) });
        }
    }
}

impl Broker {
    pub(super) fn open_producer(&mut self, session: SessionId, request: &OpenProducer, out: &mut Output) {
        let opened = self.try_open_producer(session, request, out);
        out.effect(session, Content::Reply(request.request, opened));
    }

    fn try_open_producer(
        &mut self,
        session: SessionId,
        request: &OpenProducer,
        out: &mut Output,
    ) -> Result<Reply, Refusal> {
        let name = Name::new(&request.name).map_err(|error| refusals::invalid(&error))?;
        let handles = &self.sessions.get(&session).ok_or_else(refusals::no_session)?.producers;
        if handles.contains_key(&request.producer) {
            return Err(refusals::handle_in_use("producer", request.producer));
        }
        let max = self.limits.producers_per_connection_max;
        if handles.len() as u64 >= max {
            return Err(refusals::limit("producers_per_connection_max", max, "producers on this connection"));
        }
        let known = self.producers.names.get(&name).copied();
        if let Some(resume) = request.resume
            && known != Some(resume)
        {
            let text = format!(
                "producer {name} is not known any more as number {resume}: whether what it published and was not \
                 confirmed is stored cannot be told"
            );
            return Err(Refusal::new(ErrorCode::ProducerExpired, text));
        }
        let id = match known {
            Some(id) => id,
            None => self.remember_producer(name, out)?,
        };
        self.producers.disown(id, self.now, out);
        let producer = self.producers.by_id.get_mut(&id).ok_or_else(refusals::no_session)?;
        self.producers.idle.remove(&(producer.idle_since, id));
        producer.owner = Some((session, request.producer));
        let last = producer.state.last;
        if let Some(session) = self.sessions.get_mut(&session) {
            session.producers.insert(request.producer, id);
        }
        Ok(Reply::Producer { id, last })
    }

    /// A new producer, not open yet. Where there are too many, the one that was idle longest goes; not one that was
    /// there before the start and may be about to come back.
    fn remember_producer(&mut self, name: Name, out: &mut Output) -> Result<ProducerId, Refusal> {
        let max = self.limits.producers_max;
        if self.producers.by_id.len() as u64 >= max {
            let Some(dispensable) = self.producers.dispensable(self.now, self.producer_idle()) else {
                let which = "producers that are open or may come back after the start";
                return Err(refusals::limit("producers_max", max, which));
            };
            self.producers.expire(dispensable, out);
        }
        let (id, at) = (self.next.producer, self.now);
        self.next.producer = id.next();
        self.time = self.time.max(at);
        out.records.push(Record::ProducerOpened { producer: id, name: name.clone(), at });
        let state = ProducerState { name: name.clone(), last: Sequence(0), seen_at: at };
        self.producers.names.insert(name, id);
        self.producers.idle.insert((at, id));
        self.producers.by_id.insert(id, Producer::new(state, at));
        Ok(id)
    }

    pub(super) fn close_producer(&mut self, session: SessionId, request: &CloseProducer, out: &mut Output) {
        let handle = request.producer;
        let Some(state) = self.sessions.get_mut(&session) else { return };
        if let Some(id) = state.producers.remove(&handle) {
            self.producers.close(id, (session, handle), self.now, out);
        }
    }

    pub(super) fn publish(
        &mut self,
        session: SessionId,
        publish: &Publish,
        block: MessageBlock,
        out: &mut Output,
    ) {
        if let Err(refusal) = self.try_publish(session, publish, block, out) {
            self.refuse_publish(session, publish, refusal, out);
        }
    }

    /// Refuses a publish, behind the confirm of what came before it.
    pub(super) fn refuse_publish(
        &mut self,
        session: SessionId,
        publish: &Publish,
        refusal: Refusal,
        out: &mut Output,
    ) {
        let owner = (session, publish.producer);
        let id =
            self.sessions.get(&session).and_then(|state| state.producers.get(&publish.producer)).copied();
        let mut expected = publish.sequence;
        if let Some(id) = id
            && let Some(producer) = self.producers.by_id.get(&id)
            && producer.owner == Some(owner)
        {
            expected = producer.state.last.next();
            self.producers.confirm(id, out);
        }
        let refused =
            PublishRefused { producer: publish.producer, sequence: publish.sequence, expected, refusal };
        out.effect(session, Content::PublishRefused(refused));
    }

    fn try_publish(
        &mut self,
        session: SessionId,
        publish: &Publish,
        block: MessageBlock,
        out: &mut Output,
    ) -> Result<(), Refusal> {
        let id = self.producer_of(session, publish.producer)?;
        let end = check_publish(publish, &block)?;
        if block.is_empty() {
            return Err(refusals::invalid(&"a publish without a message"));
        }
        let known = self.known_of(id, publish.sequence, end)?;
        if known < block.count() {
            let ways = self.admit(id, &publish.parts, &block, known)?;
            self.store_parts(id, publish, &block, known, ways, out);
        }
        self.confirm_later(id);
        Ok(())
    }

    /// The producer that a connection has open under a number.
    pub(super) fn producer_of(&self, session: SessionId, handle: Handle) -> Result<ProducerId, Refusal> {
        let state = self.sessions.get(&session).ok_or_else(refusals::no_session)?;
        let id = state.producers.get(&handle).copied();
        let id = id.ok_or_else(|| refusals::unknown_handle("producer", handle))?;
        let producer = self.producers.by_id.get(&id).ok_or_else(|| {
            Refusal::new(ErrorCode::ProducerExpired, format!("producer {id} was idle for too long"))
        })?;
        if producer.owner != Some((session, handle)) {
            let text = format!("producer {} was opened by another connection", producer.state.name);
            return Err(Refusal::new(ErrorCode::ProducerReplaced, text));
        }
        Ok(id)
    }

    /// How many of the sequences from `first` to `end` a producer has used already.
    pub(super) fn known_of(&self, id: ProducerId, first: Sequence, end: Sequence) -> Result<usize, Refusal> {
        let last = self.producers.by_id.get(&id).map_or(Sequence(0), |producer| producer.state.last);
        if first > last.next() {
            let text =
                format!("messages from {first} on, but {} comes next: go on with that one", last.next());
            return Err(Refusal::new(ErrorCode::OutOfSequence, text));
        }
        Ok((last.min(end).0 + 1 - first.0) as usize)
    }

    /// Whether the messages of a publish can be taken, but for the first `known`, which are there already. Takes the
    /// space for them. Answers where they go.
    pub(super) fn admit(
        &mut self,
        id: ProducerId,
        parts: &[(TopicId, u32)],
        block: &MessageBlock,
        known: usize,
    ) -> Result<Ways, Refusal> {
        let mut index = 0;
        for &(topic, count) in parts {
            let from = known.max(index);
            index += count as usize;
            if index > known {
                let topic_named = self.topics.get(&topic).filter(|topic| topic.takes_messages());
                let Some(topic) = topic_named else { return Err(self.missing_topic(topic)) };
                topic.check_values(block, from, index)?;
            }
        }
        let ways = self.routes.ways_of_parts(parts, known, block);
        self.check_routed_values(parts, &ways, block, known)?;
        self.check_room(id, parts, &ways, block, known)?;
        let bytes = stored_bytes(block) + scattered_bytes(block) + copied_bytes(&ways);
        let Some(left) = self.space.checked_sub(bytes) else {
            self.totals.refused_for_space += 1;
            return Err(refusals::store_full(bytes));
        };
        self.space = left;
        Ok(ways)
    }

    /// Stores the messages of a publish that was admitted, but for the first `known`, and notes their sequences.
    pub(super) fn store_parts(
        &mut self,
        id: ProducerId,
        publish: &Publish,
        block: &MessageBlock,
        known: usize,
        ways: Ways,
        out: &mut Output,
    ) {
        if let Some(producer) = self.producers.by_id.get_mut(&id) {
            producer.state.last = Sequence(publish.sequence.0 + block.count() as u64 - 1);
            producer.state.seen_at = self.now;
        }
        let mut start = 0;
        let mut ways = ways.into_iter();
        for &(topic, count) in &publish.parts {
            let end = start + count as usize;
            let from = start.max(known);
            if from < end {
                let sequence = Sequence(publish.sequence.0 + from as u64);
                let origin = Origin { producer: id, sequence };
                self.place(topic, block.part(from, end), ways.next().flatten(), origin, out);
            }
            start = end;
        }
    }

    /// Has what a producer has stored by the end of the cycle confirmed then.
    pub(super) fn confirm_later(&mut self, id: ProducerId) {
        if let Some(producer) = self.producers.by_id.get_mut(&id)
            && !std::mem::replace(&mut producer.unconfirmed, true)
        {
            self.cycle.unconfirmed.push(id);
        }
    }
}

/// Checks what does not depend on any state. Answers the sequence of the last message; that before the first where
/// there is none.
pub(super) fn check_publish(publish: &Publish, block: &MessageBlock) -> Result<Sequence, Refusal> {
    let invalid = |text: &str| Err(Refusal::new(ErrorCode::Invalid, text));
    if publish.parts.len() > PUBLISH_PARTS_MAX {
        let text = format!("a publish of {} parts, the limit is {PUBLISH_PARTS_MAX}", publish.parts.len());
        return invalid(&text);
    }
    if publish.parts.iter().any(|(_, count)| *count == 0) {
        return invalid("a part of a publish without a message");
    }
    let count: u64 = publish.parts.iter().map(|(_, count)| u64::from(*count)).sum();
    if count != block.count() as u64 {
        let text = format!("the parts have {count} messages, the frame has {}", block.count());
        return invalid(&text);
    }
    if publish.sequence == Sequence(0) {
        return invalid("sequences begin with 1");
    }
    let Some(end) = (publish.sequence.0 - 1).checked_add(count).filter(|end| *end < u64::MAX - 1) else {
        return invalid("the sequence is too high");
    };
    Ok(Sequence(end))
}
