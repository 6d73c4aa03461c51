//! The broker itself: its state, what the engine calls, and the order of things within a cycle.
//!
//! A cycle is [`Broker::begin_cycle`], any number of [`Broker::handle`] and [`Broker::loaded`], and one
//! [`Broker::finish`]. Everything that a cycle puts out is one commit. Handing out, confirming, moving to dead
//! letters and dropping old messages happen once per cycle, in `finish`, and only for what the cycle has touched.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::browse::Browses;
use super::cache::Cache;
use super::group::Group;
use super::last_value::LastValues;
use super::producer::Producers;
use super::reading::{READ_BYTES, Reads};
use super::replay::Replays;
use super::routes::Routes;
use super::schedule::Schedule;
use super::seek::Seeks;
use super::session::Session;
use super::time_search::Searches;
use super::topic::Topic;
use super::turns::Slot;
use super::unreadable::Unreadable;
use super::{Command, Output, Read};
use crate::model::chunk::Chunk;
use crate::model::id::{GroupId, ProducerId, SessionId, TopicId};
use crate::model::limits::Limits;
use crate::model::name::Name;
use crate::model::snapshot::{NextIds, Snapshot};
use crate::model::time::Timestamp;
use crate::model::topic_kind::{TopicKind, Waiting};

/// Whether topics and groups come into being when they are first used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCreate {
    /// They do.
    #[default]
    Allowed,
    /// Only an administrator makes them.
    Refused,
}

/// Totals for the status, as of the last cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Topics.
    pub topics: u64,
    /// Groups.
    pub groups: u64,
    /// Producers that are remembered, open or not.
    pub producers: u64,
    /// Consumers.
    pub consumers: u64,
    /// Messages in the topics, of all priorities.
    pub messages: u64,
    /// Messages that are to be delivered later; they are not in the topics yet.
    pub delayed: u64,
    /// Deliveries handed out and not settled, over all groups.
    pub in_flight: u64,
    /// Messages that wait for another attempt or for their place in the dead letters, over all groups.
    pub retries: u64,
    /// Bytes of messages held in memory for delivery.
    pub cache_bytes: u64,
    /// Publishes that were refused because there was no space for them.
    pub refused_for_space: u64,
    /// Messages that the store could not read when they were last asked for.
    pub unreadable: u64,
}

impl Counts {
    /// Notes that a topic of this kind has so many messages more.
    pub(super) fn add(&mut self, kind: TopicKind, count: u64) {
        if let Some(total) = self.of(kind) {
            *total += count;
        }
    }

    /// Notes that a topic of this kind has so many messages fewer.
    pub(super) fn take(&mut self, kind: TopicKind, count: u64) {
        if let Some(total) = self.of(kind) {
            *total -= count;
        }
    }

    /// What the messages of a topic count as. Notes of messages are none.
    fn of(&mut self, kind: TopicKind) -> Option<&mut u64> {
        match kind {
            TopicKind::Named | TopicKind::Pattern | TopicKind::Lane { .. } => Some(&mut self.messages),
            TopicKind::Slot { waiting: Waiting::Delayed, .. } => Some(&mut self.delayed),
            TopicKind::Slot { waiting: Waiting::Expiring, .. } => None,
        }
    }
}

/// What the current cycle has touched.
#[derive(Debug, Default)]
pub(super) struct Cycle {
    /// Topics that got messages.
    pub fresh_topics: Vec<TopicId>,
    /// Topics whose lowest floor may have changed.
    pub floor_moved: Vec<TopicId>,
    /// Groups that may have something to hand out, or whose settled messages are to be made known.
    dirty_groups: Vec<GroupId>,
    /// Groups that may have something to hand out, in the order of their turns.
    pub line: VecDeque<GroupId>,
    /// Groups with filters, and topics that they got messages of.
    pub unjudged: Vec<(GroupId, TopicId)>,
    /// Producers to be confirmed.
    pub unconfirmed: Vec<ProducerId>,
    /// Bytes of messages that may still be handed out.
    pub bytes_left: u64,
    /// Topics whose messages, number of messages or producers in line may have to be seen to.
    pub topics_to_look_at: Vec<TopicId>,
}

impl Cycle {
    /// Has what a group has of a topic looked at when the cycle ends.
    pub fn mark(&mut self, group: &mut Group, topic: TopicId) {
        group.touch(topic);
        self.mark_consumers(group);
    }

    /// Has a group looked at when the cycle ends: who can take how much has changed.
    pub fn mark_consumers(&mut self, group: &mut Group) {
        if !group.dirty {
            group.dirty = true;
            self.dirty_groups.push(group.id);
        }
    }
}

/// Topics, groups, consumers and producers: the state machine that everything turns around.
#[derive(Debug)]
pub struct Broker {
    pub(super) limits: Limits,
    pub(super) creation: AutoCreate,
    /// The time of the current call. Never runs backwards.
    pub(super) now: Timestamp,
    /// The highest time in any record.
    pub(super) time: Timestamp,
    pub(super) next: NextIds,
    pub(super) topics: BTreeMap<TopicId, Topic>,
    pub(super) topic_names: BTreeMap<Name, TopicId>,
    pub(super) groups: BTreeMap<GroupId, Group>,
    /// The patterns, and for how many topics each stands.
    pub(super) patterns: BTreeMap<TopicId, u64>,
    /// Groups that go by themselves and were there before the start; none when the first cycle has ended.
    pub(super) recovered: Vec<GroupId>,
    pub(super) routes: Routes,
    pub(super) producers: Producers,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) cache: Cache,
    pub(super) reads: Reads,
    pub(super) unreadable: Unreadable,
    pub(super) browses: Browses,
    pub(super) replays: Replays,
    pub(super) schedule: Schedule,
    pub(super) last_values: LastValues,
    pub(super) cycle: Cycle,
    /// Bytes of messages that this cycle may still put out.
    pub(super) space: u64,
    /// Bytes of messages for which there is memory on their way to consumers.
    pub(super) room_for_output: u64,
    /// Searches for times that wait for their turn.
    pub(super) searches: Searches,
    pub(super) seeks: Seeks,
    /// When topics are to be looked at by themselves.
    pub(super) topic_timers: BTreeSet<(Timestamp, TopicId)>,
    /// When groups are to be looked at by themselves.
    timers: BTreeSet<(Timestamp, GroupId)>,
    /// When waiting pulls are to be answered in vain, by the number of the pull.
    pub(super) pull_timers: BTreeMap<(Timestamp, u64), (GroupId, Slot)>,
    /// Number of the next pull.
    pub(super) next_pull: u64,
    /// Groups with messages of topics on their way to the dead letters.
    pub(super) dying: BTreeSet<(GroupId, TopicId)>,
    /// A bounded step of this cycle left something to do.
    pub(super) work_left: bool,
    pub(super) totals: Counts,
}

impl Broker {
    /// A broker that goes on where `snapshot` ends. Nothing is in flight, nobody is connected.
    #[must_use]
    pub fn new(snapshot: Snapshot, limits: Limits, creation: AutoCreate) -> Self {
        let mut broker = Self {
            creation,
            now: snapshot.time,
            time: snapshot.time,
            next: snapshot.next,
            topics: BTreeMap::new(),
            topic_names: BTreeMap::new(),
            groups: BTreeMap::new(),
            patterns: BTreeMap::new(),
            recovered: Vec::new(),
            routes: Routes::recover(snapshot.routes),
            producers: Producers::recover(snapshot.producers),
            sessions: BTreeMap::new(),
            cache: Cache::new(limits.cache_bytes_max),
            reads: Reads::new((limits.cache_bytes_max / 2 / READ_BYTES as u64).clamp(2, 64) as usize),
            browses: Browses::default(),
            replays: Replays::default(),
            unreadable: Unreadable::default(),
            schedule: Schedule::new(limits.scheduled_known_max, limits.cache_bytes_max),
            last_values: LastValues::default(),
            cycle: Cycle::default(),
            space: u64::MAX,
            room_for_output: u64::MAX,
            searches: Searches::default(),
            seeks: Seeks::default(),
            topic_timers: BTreeSet::new(),
            timers: BTreeSet::new(),
            pull_timers: BTreeMap::new(),
            next_pull: 1,
            dying: BTreeSet::new(),
            work_left: false,
            totals: Counts::default(),
            limits,
        };
        for (id, state) in snapshot.topics {
            broker.totals.add(state.kind, state.message_count());
            if state.kind.part_of().is_none() {
                broker.topic_names.insert(state.name.clone(), id);
            }
            broker.topics.insert(id, Topic::new(state));
        }
        let topics: Vec<TopicId> = broker.topics.keys().copied().collect();
        topics.into_iter().for_each(|topic| broker.note_topic_part(topic));
        broker.recover_groups(snapshot.groups);
        broker.recover_patterns();
        let topics: Vec<TopicId> = broker.topics.keys().copied().collect();
        for topic in topics {
            broker.check_floor(topic);
            broker.recount(topic);
            if broker.topics.get(&topic).is_some_and(|topic| topic.state.settings.temporary) {
                broker.look_at_topic(topic);
            }
            broker.note_values(topic);
        }
        broker.spread_looks();
        broker.work_left = true;
        broker
    }

    /// Begins a cycle in which messages of at most `space` bytes can be stored, heads included; without a word, any
    /// number can. Publishes beyond it are refused, and dying messages wait.
    pub fn begin_cycle(&mut self, space: u64) {
        self.space = space;
    }

    /// From this cycle on there is memory for so many bytes of messages on their way to consumers. A cycle hands out no
    /// more, or one message that is larger, and the next one goes on; without a word, as much as can be handed out.
    pub fn limit_output(&mut self, bytes: u64) {
        self.room_for_output = bytes;
    }

    /// So many bytes more can be stored in this cycle: they are on the disk already.
    pub fn grant(&mut self, bytes: u64) {
        self.space = self.space.saturating_add(bytes);
    }

    /// Takes one command of a session.
    pub fn handle(&mut self, now: Timestamp, session: SessionId, command: Command, out: &mut Output) {
        self.set_time(now);
        match command {
            Command::Begin => self.begin_session(session),
            Command::Introduce(client) => self.introduce_session(session, client),
            Command::End(ending) => self.end_session(session, ending, out),
            Command::OutputFull => self.pause_session(session, true),
            Command::OutputReady => self.pause_session(session, false),
            Command::OpenProducer(request) => self.open_producer(session, &request, out),
            Command::Publish(publish, block) => self.publish(session, &publish, block, out),
            Command::Transact(transact, block) => self.transact(session, &transact, block, out),
            Command::PublishUnfit(publish, refusal) => self.refuse_publish(session, &publish, refusal, out),
            Command::CloseProducer(request) => self.close_producer(session, &request, out),
            Command::Subscribe(request) => self.subscribe(session, request, out),
            Command::Flow(request) => self.change_window(session, &request),
            Command::Settle(request) => self.settle(session, &request, out),
            Command::Unsubscribe(request) => self.unsubscribe(session, &request, out),
            Command::Pull(request) => self.pull(session, &request, out),
            Command::FindTopic(request) => self.find_topic(session, &request, out),
            Command::Admin(request) => self.administer(session, request, out),
        }
    }

    /// Takes the answer to one [`Read`]: messages from its first offset on, or `None` where they are not there.
    pub fn loaded(&mut self, now: Timestamp, read: Read, chunk: Option<Chunk>, out: &mut Output) {
        self.set_time(now);
        self.take_chunk(read, chunk, out);
    }

    /// Ends a cycle: what is due by time, what can be handed out, what is to be confirmed. Called once behind all
    /// [`handle`](Self::handle) and [`loaded`](Self::loaded) of the cycle; what all of them put out is one commit.
    pub fn finish(&mut self, now: Timestamp, out: &mut Output) {
        self.set_time(now);
        self.work_left = false;
        self.fire_timers(out);
        self.advance_schedule(out);
        self.move_dead(out);
        self.keep_retention(out);
        self.keep_last_values(out);
        self.serve_replays(out);
        self.mark_groups_of_fresh_topics();
        let groups = std::mem::take(&mut self.cycle.dirty_groups);
        for &group in &groups {
            self.make_settled_known(group, out);
            self.look_at_group(group, out);
        }
        self.dispatch(out);
        self.judge();
        self.work_left |= !self.cycle.dirty_groups.is_empty() || !self.cycle.line.is_empty();
        let marked = std::mem::replace(&mut self.cycle.dirty_groups, recycled(groups));
        self.cycle.dirty_groups.extend(marked);
        let topics = std::mem::take(&mut self.cycle.floor_moved);
        for &topic in &topics {
            self.trim(topic, out);
        }
        let moved = std::mem::replace(&mut self.cycle.floor_moved, recycled(topics));
        self.cycle.floor_moved.extend(moved);
        let producers = std::mem::take(&mut self.cycle.unconfirmed);
        for &producer in &producers {
            self.producers.confirm(producer, out);
        }
        self.cycle.unconfirmed = recycled(producers);
        self.start_next_searches(out);
        self.serve_browses(out);
        self.work_left |= !self.cycle.topics_to_look_at.is_empty();
        self.cache.evict();
    }

    /// When [`finish`](Self::finish) must be called at the latest, though nothing came in.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Timestamp> {
        if self.work_left {
            return Some(self.now);
        }
        let group = self.timers.first().map(|(at, _)| *at);
        let pull = self.pull_timers.first_key_value().map(|((at, _), _)| *at);
        let producer = self.producers.next_expiry(self.producer_idle());
        let scheduled = self.schedule.next_timeout();
        let topic = self.topic_timers.first().map(|(at, _)| *at);
        let replay = self.replays.next_timeout();
        let last_values = self.last_values.next_timeout();
        let again = self.unreadable.next_timeout();
        [group, pull, producer, scheduled, topic, replay, last_values, again].into_iter().flatten().min()
    }

    /// The durable state: the fold of all records put out. To be asked for between cycles.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let producers = self.producers.by_id.iter();
        let parts = self.groups.values().flat_map(|group| group.parts.values());
        Snapshot {
            topics: self.topics.iter().map(|(id, topic)| (*id, topic.state.clone())).collect(),
            groups: parts.map(|part| (part.id, part.state.clone())).collect(),
            producers: producers.map(|(id, producer)| (*id, producer.state.clone())).collect(),
            routes: self.routes.state(),
            next: self.next,
            time: self.time,
        }
    }

    /// Totals for the status.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            topics: self.topic_names.len() as u64,
            groups: self.groups.len() as u64,
            producers: self.producers.by_id.len() as u64,
            cache_bytes: self.cache.bytes(),
            unreadable: self.unreadable.count(),
            ..self.totals
        }
    }

    pub(super) fn set_time(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        self.producers.start(self.now);
    }

    pub(super) fn producer_idle(&self) -> Duration {
        Duration::from_secs(self.limits.producer_idle_seconds)
    }

    /// Does what is due by time.
    fn fire_timers(&mut self, out: &mut Output) {
        self.note_vacancies(out);
        self.ask_again();
        while let Some(&(at, id)) = self.timers.first() {
            if at > self.now {
                break;
            }
            self.timers.pop_first();
            if let Some(group) = self.groups.get_mut(&id) {
                group.timer = None;
                self.cycle.mark_consumers(group);
                self.wake(id, out);
            }
        }
        while let Some(entry) = self.pull_timers.first_entry() {
            let (until, pull) = *entry.key();
            if until > self.now {
                break;
            }
            let (id, slot) = entry.remove();
            if let Some(group) = self.groups.get_mut(&id) {
                group.members.overdue.insert(pull, slot);
                self.cycle.mark_consumers(group);
            }
        }
        self.producers.expire_idle(self.now, self.producer_idle(), out);
    }

    fn mark_groups_of_fresh_topics(&mut self) {
        let topics = std::mem::take(&mut self.cycle.fresh_topics);
        for id in &topics {
            let Some(topic) = self.topics.get_mut(id) else { continue };
            topic.fresh = false;
            for group in &topic.holders {
                if let Some(group) = self.groups.get_mut(group) {
                    self.cycle.mark(group, *id);
                    if group.filter.is_some() {
                        self.cycle.unjudged.push((group.id, *id));
                    }
                }
            }
        }
        self.cycle.fresh_topics = recycled(topics);
    }

    /// Sets the timer of a group to when it must be looked at. One that is earlier stays: it costs one look.
    pub(super) fn arm(timers: &mut BTreeSet<(Timestamp, GroupId)>, group: &mut Group) {
        let Some(wake) = group.next_wake() else { return };
        if group.timer.is_some_and(|timer| timer <= wake) {
            return;
        }
        if let Some(timer) = group.timer {
            timers.remove(&(timer, group.id));
        }
        timers.insert((wake, group.id));
        group.timer = Some(wake);
    }

    /// Notes what has become of a group in this cycle: its timer, its share of the totals.
    pub(super) fn note(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        Self::arm(&mut self.timers, group);
        let counted = (group.members.in_flight, group.retries);
        self.totals.in_flight = self.totals.in_flight + counted.0 - group.counted.0;
        self.totals.retries = self.totals.retries + counted.1 - group.counted.1;
        group.counted = counted;
    }

    /// Forgets the timer and the totals of a group that is gone.
    pub(super) fn unnote(&mut self, group: &Group) {
        if let Some(timer) = group.timer {
            self.timers.remove(&(timer, group.id));
        }
        self.totals.in_flight -= group.counted.0;
        self.totals.retries -= group.counted.1;
    }
}

/// An empty list that keeps the memory of a used one.
fn recycled<T>(mut list: Vec<T>) -> Vec<T> {
    list.clear();
    list
}
