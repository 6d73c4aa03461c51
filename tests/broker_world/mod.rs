//! A broker between a store and clients that live in memory, watched by a naive model.
//!
//! The model knows every message of every group by itself: who has it, how often it failed, when it is due. Whatever
//! the broker puts out is checked against it, record by record and message by message, and the fold of the records
//! against the broker's own snapshot after each cycle.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod explain;
mod order;
mod transact;

use std::collections::{BTreeMap, BTreeSet};

use batonmq::broker::{AutoCreate, Broker, Browsed, Command, Content, Ending, Output, Read};
use batonmq::model::chunk::{Chunk, Origin, Stamp};
use batonmq::model::id::{GroupId, Offset, OffsetRange, ProducerId, Sequence, SessionId, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::position::Position;
use batonmq::model::record::{Published, Record, Source};
use batonmq::model::retry::{Retry, ReturnReason};
use batonmq::model::settings::{GroupSettings, Lifetime, Overflow, Policy, TopicSettings};
use batonmq::model::snapshot::{GroupState, Snapshot, TopicState};
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::*;
use batonmq::protocol::response::{Confirm, Reply};
use order::Order;

/// Messages that say who publishes them, and as which of its messages.
fn told_apart(session: SessionId, handle: Handle, sequence: u64, count: u32) -> Vec<Message> {
    (0..u64::from(count))
        .map(|index| Message::new(format!("{:>8}:{handle:>4}:{:>6}", session.0, sequence + index)))
        .collect()
}

/// A message as the store has it.
#[derive(Clone)]
pub struct Stored {
    pub message: Message,
    pub published_at: Timestamp,
    pub origin: Option<Origin>,
}

/// A message as a group knows it.
#[derive(Clone, Default)]
pub struct Known {
    /// Attempts that failed.
    pub attempts: u32,
    /// Hand-overs that came back.
    pub returns: u32,
    pub due_at: Timestamp,
    pub holder: Option<(SessionId, Handle)>,
    pub deadline: Timestamp,
    /// Handed out by any broker so far.
    pub handed: bool,
    pub rejected: bool,
}

#[derive(Default)]
pub struct Client {
    pub producers: BTreeMap<Handle, ProducerId>,
    pub consumers: BTreeMap<Handle, GroupId>,
    /// The topic of each consumer's group.
    pub topics: BTreeMap<Handle, TopicId>,
    pub windows: BTreeMap<Handle, Window>,
    /// Pulls that were not answered yet, with what each has got.
    pub pulls: BTreeMap<RequestId, (Handle, Window, u32, u64)>,
    /// How often what a consumer had of a topic was recalled.
    pub generations: BTreeMap<(Handle, TopicId), u32>,
    pub full: bool,
}

/// A question for the messages of a topic from an offset on.
pub fn browse(topic: &str, from: u64, messages_max: u32) -> AdminCommand {
    AdminCommand::Browse {
        topic: topic.into(),
        group: None,
        from: BrowseFrom::Position(Offset(from).into()),
        since: Timestamp(0),
        filter: None,
        messages_max,
    }
}

pub struct World {
    pub broker: Broker,
    pub limits: Limits,
    pub creation: AutoCreate,
    /// Bytes for which there is memory on their way to consumers.
    pub output_max: u64,
    pub now: Timestamp,
    pub fold: Snapshot,
    pub store: BTreeMap<TopicId, BTreeMap<u64, Stored>>,
    pub groups: BTreeMap<GroupId, BTreeMap<u64, Known>>,
    /// Up to where each group may have handed out before the broker was started anew.
    pub fresh_from: BTreeMap<GroupId, u64>,
    pub clients: BTreeMap<SessionId, Client>,
    pub owners: BTreeMap<ProducerId, (SessionId, Handle)>,
    pub reads: Vec<Read>,
    pub out: Output,
    /// Acked in this cycle: must become known in it.
    acked: BTreeSet<(GroupId, u64)>,
    /// Returned in this cycle: must be recorded in it. Why it failed, if it did, and the wait that was asked for.
    returned: BTreeMap<(GroupId, u64), (Option<ReturnReason>, Option<u64>)>,
    /// To be confirmed in this cycle.
    confirms: BTreeMap<(SessionId, Handle), Sequence>,
    /// What an administrator wants taken out of topics.
    pub taken_out: BTreeSet<(TopicId, u64)>,
    /// Whether dead letters are replayed for the groups in which they died only.
    pub replays_to_group: bool,
    /// What the commit that is looked at removes. A commit takes effect as one, whatever the order of its records.
    removed_now: BTreeSet<(TopicId, u64)>,
    /// Dead letters so far.
    pub dead: BTreeSet<(GroupId, u64)>,
    next_request: RequestId,
    pub replies: Vec<(SessionId, RequestId, Result<Reply, Refusal>)>,
    pub refused: Vec<(SessionId, Handle, ErrorCode, Sequence)>,
    /// Deliveries of the last cycle: who, group, offset, whether it was new to the group.
    pub delivered: Vec<(SessionId, Handle, GroupId, u64, bool)>,
    /// Producers that were told that there is room, so far.
    pub ready: Vec<(SessionId, Handle)>,
    /// Topics purged in this cycle, groups ever set to another place.
    pub purged: BTreeSet<TopicId>,
    pub sought: BTreeSet<GroupId>,
    pub checks_bytes: bool,
    pub order: Order,
    /// Topics that consumers were told the names of.
    pub named: BTreeSet<(SessionId, Handle, TopicId)>,
    /// Groups that somebody has deleted, or whose topic, in this cycle.
    deleting: bool,
    /// Filters that groups may have, and what each of them is. Others are not checked.
    pub filters: BTreeMap<String, fn(&Message) -> bool>,
    filters_had: BTreeMap<GroupId, BTreeSet<String>>,
    /// Slots that were over when the broker last rested: they are to be used before others are made.
    spares: BTreeSet<TopicId>,
}

impl World {
    pub fn new(limits: Limits, creation: AutoCreate) -> Self {
        Self {
            broker: Broker::new(Snapshot::default(), limits.clone(), creation),
            limits,
            creation,
            output_max: u64::MAX,
            now: Timestamp(1_000_000),
            fold: Snapshot::default(),
            store: BTreeMap::new(),
            groups: BTreeMap::new(),
            fresh_from: BTreeMap::new(),
            clients: BTreeMap::new(),
            owners: BTreeMap::new(),
            reads: Vec::new(),
            out: Output::default(),
            acked: BTreeSet::new(),
            returned: BTreeMap::new(),
            confirms: BTreeMap::new(),
            taken_out: BTreeSet::new(),
            replays_to_group: false,
            removed_now: BTreeSet::new(),
            dead: BTreeSet::new(),
            next_request: 1,
            replies: Vec::new(),
            refused: Vec::new(),
            delivered: Vec::new(),
            ready: Vec::new(),
            purged: BTreeSet::new(),
            sought: BTreeSet::new(),
            checks_bytes: true,
            order: Order::default(),
            named: BTreeSet::new(),
            deleting: false,
            filters: BTreeMap::new(),
            filters_had: BTreeMap::new(),
            spares: BTreeSet::new(),
        }
    }

    pub fn request(&mut self) -> RequestId {
        self.next_request += 1;
        self.next_request
    }

    pub fn handle(&mut self, session: SessionId, command: Command) {
        self.broker.handle(self.now, session, command, &mut self.out);
    }

    pub fn begin(&mut self, session: u64) {
        let session = SessionId(session);
        self.clients.entry(session).or_default();
        self.handle(session, Command::Begin);
    }

    pub fn end(&mut self, session: u64, ending: Ending) {
        let session = SessionId(session);
        self.handle(session, Command::End(ending));
        self.collect_replies();
        self.owners.retain(|_, owner| owner.0 != session);
        self.confirms.retain(|owner, _| owner.0 != session);
        if let Some(client) = self.clients.remove(&session) {
            for (handle, group) in client.consumers {
                self.left((session, handle));
                self.give_back(session, handle, group, ending);
            }
        }
    }

    fn give_back(&mut self, session: SessionId, handle: Handle, group: GroupId, ending: Ending) {
        for part in self.parts(group) {
            let messages = self.groups.get_mut(&part).unwrap();
            let held = messages.iter_mut().filter(|(_, known)| known.holder == Some((session, handle)));
            for (offset, known) in held {
                known.holder = None;
                let reason = (ending == Ending::Lost).then_some(ReturnReason::ConsumerLost);
                self.returned.insert((part, *offset), (reason, None));
            }
        }
    }

    pub fn open(&mut self, session: u64, handle: Handle, name: &str) -> RequestId {
        let request = self.request();
        let open = OpenProducer { request, producer: handle, name: name.into(), resume: None };
        self.handle(SessionId(session), Command::OpenProducer(open));
        self.collect_replies();
        let answer = self.replies.iter().rev().find(|reply| reply.1 == request).map(|reply| reply.2.clone());
        if let Some(Ok(Reply::Producer { id, .. })) = answer {
            // Whoever had it before was confirmed what it had, or never will be.
            if let Some(owner) = self.owners.insert(id, (SessionId(session), handle)) {
                self.confirms.remove(&owner);
            }
            self.clients.get_mut(&SessionId(session)).unwrap().producers.insert(handle, id);
        }
        request
    }

    pub fn close_producer(&mut self, session: u64, handle: Handle) {
        let session = SessionId(session);
        self.handle(session, Command::CloseProducer(CloseProducer { producer: handle }));
        self.collect_replies();
        self.confirms.remove(&(session, handle));
        if let Some(id) = self.clients.get_mut(&session).and_then(|client| client.producers.remove(&handle))
            && self.owners.get(&id) == Some(&(session, handle))
        {
            self.owners.remove(&id);
        }
    }

    /// The last sequence of a producer, with what this cycle has published so far.
    pub fn last_of(&self, id: ProducerId) -> Option<Sequence> {
        let mut last = self.fold.producers.get(&id).map(|producer| producer.last);
        for record in &self.out.records {
            match record {
                Record::ProducerOpened { producer, .. } if *producer == id => last = Some(Sequence(0)),
                Record::Published(Published { source: Source::Producer(origin), block, .. })
                    if origin.producer == id =>
                {
                    last = Some(Sequence(origin.sequence.0 + block.count() as u64 - 1));
                }
                Record::ProducerAdvanced { producer, last: now, .. } if *producer == id => last = Some(*now),
                Record::ProducerExpired { producer } if *producer == id => last = None,
                _ => {}
            }
        }
        last
    }

    /// Publishes what comes next for a producer. Answers why it was refused, if it was.
    pub fn try_publish(
        &mut self,
        session: u64,
        handle: Handle,
        sequence: u64,
        messages: &[Message],
        parts: Vec<(TopicId, u32)>,
    ) -> Option<ErrorCode> {
        let session = SessionId(session);
        let block = MessageBlock::encode(messages);
        let publish = Publish { producer: handle, sequence: Sequence(sequence), parts };
        self.collect_replies();
        let refused_before = self.refused.len();
        self.handle(session, Command::Publish(publish, block));
        self.collect_replies();
        let refused = self.refused.get(refused_before).map(|refused| refused.2);
        if refused.is_none() {
            let end = Sequence(sequence + messages.len() as u64 - 1);
            self.confirms.insert((session, handle), end);
        }
        refused
    }

    /// Publishes, and foretells what comes of it.
    pub fn publish(&mut self, session: u64, handle: Handle, sequence: u64, parts: Vec<(TopicId, u32)>) {
        let count: u32 = parts.iter().map(|part| part.1).sum();
        let messages = told_apart(SessionId(session), handle, sequence, count);
        self.publish_messages(session, handle, sequence, parts, &messages);
    }

    /// Publishes these messages, and foretells what comes of it.
    pub fn publish_messages(
        &mut self,
        session: u64,
        handle: Handle,
        sequence: u64,
        parts: Vec<(TopicId, u32)>,
        messages: &[Message],
    ) {
        let session = SessionId(session);
        let count = messages.len();
        let producer = self.clients.get(&session).and_then(|client| client.producers.get(&handle)).copied();
        let owned = producer.filter(|id| self.owners.get(id) == Some(&(session, handle)));
        let last = owned.and_then(|id| self.last_of(id));
        let topics: BTreeSet<TopicId> = self.topics_now();
        let block = MessageBlock::encode(messages);
        let publish = Publish { producer: handle, sequence: Sequence(sequence), parts: parts.clone() };
        self.collect_replies();
        let refused_before = self.refused.len();
        self.handle(session, Command::Publish(publish, block));
        self.collect_replies();
        let refusals: Vec<_> = self.refused[refused_before..].to_vec();
        let end = sequence + count as u64 - 1;
        let expected = match last {
            None => Some(None),
            Some(last) if end <= last.0 => None,
            Some(last) if sequence > last.0 + 1 => Some(Some(ErrorCode::OutOfSequence)),
            Some(last) => {
                let mut index = 0;
                let known = last.0 + 1 - sequence;
                let missing = parts.iter().any(|(topic, count)| {
                    index += u64::from(*count);
                    index > known && !topics.contains(topic)
                });
                missing.then_some(None)
            }
        };
        match expected {
            Some(code) => {
                assert_eq!(refusals.len(), 1, "one refusal");
                assert_eq!(refusals[0].1, handle);
                if let Some(code) = code {
                    assert_eq!(refusals[0].2, code);
                }
                if let Some(last) = last {
                    assert_eq!(refusals[0].3, last.next(), "the sequence that is expected");
                }
            }
            None if last.is_some_and(|last| end > last.0)
                && let [refused] = &refusals[..] =>
            {
                assert!(self.is_held_up(&parts, refused.2), "refused without need: {:?}", refused.2);
            }
            None => {
                assert_eq!(refusals, vec![]);
                self.confirms.insert((session, handle), Sequence(end));
            }
        }
    }

    /// The topics there are, with what this cycle has changed so far.
    pub fn topics_now(&self) -> BTreeSet<TopicId> {
        let mut topics: BTreeSet<TopicId> = self.fold.topics.keys().copied().collect();
        for record in &self.out.records {
            match record {
                Record::TopicCreated { topic, .. } => topics.insert(*topic),
                Record::TopicDeleted { topic } => topics.remove(topic),
                _ => false,
            };
        }
        topics
    }

    pub fn find_topic(&mut self, session: u64, name: &str) -> Option<TopicId> {
        let request = self.request();
        self.handle(SessionId(session), Command::FindTopic(FindTopic { request, name: name.into() }));
        self.collect_replies();
        match self.replies.iter().rev().find(|reply| reply.1 == request) {
            Some((_, _, Ok(Reply::Topic { id }))) => Some(*id),
            _ => None,
        }
    }

    pub fn subscribe(
        &mut self,
        session: u64,
        handle: Handle,
        topic: &str,
        group: &str,
        window: Window,
        settings: Option<GroupSettings>,
    ) -> Option<GroupId> {
        self.subscribe_as(session, handle, topic, group, window, settings, 0)
    }

    /// Subscribes with a priority.
    #[allow(clippy::too_many_arguments, reason = "so many has the request")]
    pub fn subscribe_as(
        &mut self,
        session: u64,
        handle: Handle,
        topic: &str,
        group: &str,
        window: Window,
        settings: Option<GroupSettings>,
        priority: u8,
    ) -> Option<GroupId> {
        let request = self.request();
        let subscribe = Subscribe {
            request,
            consumer: handle,
            topic: topic.into(),
            group: group.into(),
            start: batonmq::model::settings::Start::Earliest,
            priority,
            settings,
            window,
        };
        self.handle(SessionId(session), Command::Subscribe(subscribe));
        self.collect_replies();
        match self.replies.iter().rev().find(|reply| reply.1 == request).map(|reply| reply.2.clone()) {
            Some(Ok(Reply::Subscribed { group, topic, .. })) => {
                let client = self.clients.get_mut(&SessionId(session)).unwrap();
                client.consumers.insert(handle, group);
                client.generations.retain(|(known, _), _| *known != handle);
                client.topics.insert(handle, topic);
                client.windows.insert(handle, window);
                self.groups.entry(group).or_default();
                self.joined((SessionId(session), handle), group, priority);
                Some(group)
            }
            _ => None,
        }
    }

    pub fn unsubscribe(&mut self, session: u64, handle: Handle) {
        let request = self.request();
        let session = SessionId(session);
        self.handle(session, Command::Unsubscribe(Unsubscribe { request, consumer: handle }));
        let Some(client) = self.clients.get_mut(&session) else { return };
        client.windows.remove(&handle);
        if let Some(group) = client.consumers.remove(&handle) {
            self.left((session, handle));
            self.give_back(session, handle, group, Ending::Closed);
        }
    }

    pub fn flow(&mut self, session: u64, handle: Handle, window: Window) {
        let session = SessionId(session);
        self.handle(session, Command::Flow(Flow { consumer: handle, window }));
        if let Some(client) = self.clients.get_mut(&session)
            && let Some(known) = client.windows.get_mut(&handle)
        {
            *known = window;
        }
    }

    pub fn pull(&mut self, session: u64, handle: Handle, window: Window, wait_ms: u64) {
        let request = self.request();
        let id = SessionId(session);
        if let Some(client) = self.clients.get_mut(&id)
            && client.consumers.contains_key(&handle)
        {
            client.pulls.insert(request, (handle, window, 0, 0));
        }
        self.handle(id, Command::Pull(Pull { request, consumer: handle, window, wait_ms }));
    }

    pub fn full(&mut self, session: u64, full: bool) {
        let id = SessionId(session);
        if let Some(client) = self.clients.get_mut(&id) {
            client.full = full;
        }
        self.handle(id, if full { Command::OutputFull } else { Command::OutputReady });
    }

    /// Settles, and foretells what comes of it.
    pub fn settle(
        &mut self,
        session: u64,
        handle: Handle,
        settlement: Settlement,
        ranges: Vec<OffsetRange>,
    ) -> u64 {
        let session = SessionId(session);
        let client = self.clients.get(&session);
        let topic = client.and_then(|client| client.topics.get(&handle)).copied().unwrap_or_default();
        self.settle_in(session.0, handle, topic, settlement, ranges)
    }

    /// Settles what is in a topic, and foretells what comes of it.
    pub fn settle_in(
        &mut self,
        session: u64,
        handle: Handle,
        topic: TopicId,
        settlement: Settlement,
        ranges: Vec<OffsetRange>,
    ) -> u64 {
        let (request, session) = (self.request(), SessionId(session));
        let generations = self.clients.get(&session).map(|client| &client.generations);
        let generation = generations.and_then(|known| known.get(&(handle, topic))).copied().unwrap_or(0);
        let settle = Settle {
            request,
            consumer: handle,
            topic,
            generation,
            settlement: settlement.clone(),
            ranges: ranges.clone(),
        };
        self.handle(session, Command::Settle(settle));
        self.collect_replies();
        let answer = self.replies.iter().rev().find(|reply| reply.1 == request).map(|reply| reply.2.clone());
        let group = self.clients.get(&session).and_then(|client| client.consumers.get(&handle)).copied();
        let Some(group) = group else {
            assert!(matches!(answer, Some(Err(_))), "settling without being a consumer is refused");
            return 0;
        };
        let lease = self.settings(group).lease();
        let mut count = 0;
        let group = self.part(group, topic).unwrap_or(group);
        let messages = self.groups.entry(group).or_default();
        for (offset, known) in messages.iter_mut() {
            let within = ranges.iter().any(|range| range.contains(Offset(*offset)));
            if known.holder != Some((session, handle)) || !within {
                continue;
            }
            count += 1;
            if settlement == Settlement::Extend {
                known.deadline = self.now.after(lease);
                continue;
            }
            known.holder = None;
            let back = match settlement {
                Settlement::Ack => {
                    self.acked.insert((group, *offset));
                    continue;
                }
                Settlement::Nack { delay_ms, .. } => (Some(ReturnReason::Nacked), delay_ms),
                Settlement::Reject { .. } => (Some(ReturnReason::Rejected), None),
                Settlement::Release | Settlement::Extend => (None, None),
            };
            self.returned.insert((group, *offset), back);
        }
        match answer {
            Some(Ok(Reply::Settled { count: answered })) => assert_eq!(answered, count, "settled"),
            other => panic!("answer to a settlement: {other:?}"),
        }
        count
    }

    /// What a group has of a topic, with what this cycle has changed so far.
    pub fn part(&self, group: GroupId, topic: TopicId) -> Option<GroupId> {
        let is_part = |id: GroupId, of: TopicId, part_of: Option<GroupId>| {
            of == topic && (id == group || part_of == Some(group))
        };
        let known = self.fold.groups.iter().find(|(id, state)| is_part(**id, state.topic, state.part_of));
        let created = self.out.records.iter().find_map(|record| match record {
            Record::GroupCreated { group: id, topic: of, part_of, .. } if is_part(*id, *of, *part_of) => {
                Some(*id)
            }
            _ => None,
        });
        known.map(|(id, _)| *id).or(created)
    }

    /// The group that a part belongs to.
    pub fn whole(&self, part: GroupId) -> GroupId {
        self.fold.groups.get(&part).and_then(|state| state.part_of).unwrap_or(part)
    }

    /// The parts of a group.
    pub fn parts(&self, group: GroupId) -> Vec<GroupId> {
        self.groups.keys().copied().filter(|part| self.whole(*part) == group).collect()
    }

    /// The groups there are, with what this cycle has changed so far.
    pub fn groups_now(&self) -> BTreeSet<GroupId> {
        let whole = self.fold.groups.iter().filter(|(_, state)| state.part_of.is_none());
        let mut groups: BTreeSet<GroupId> = whole.map(|(id, _)| *id).collect();
        for record in &self.out.records {
            match record {
                Record::GroupCreated { group, part_of: None, .. } => groups.insert(*group),
                Record::GroupDeleted { group } => groups.remove(group),
                _ => false,
            };
        }
        groups
    }

    /// The settings of a group, with what this cycle has changed so far.
    pub fn settings(&self, group: GroupId) -> GroupSettings {
        let mut settings = self.fold.groups.get(&group).map(|group| group.settings.clone());
        for record in &self.out.records {
            match record {
                Record::GroupCreated { group: id, settings: new, .. }
                | Record::GroupChanged { group: id, settings: new }
                    if *id == group =>
                {
                    settings = Some(new.clone());
                }
                _ => {}
            }
        }
        settings.expect("the group is there")
    }

    pub fn admin(&mut self, session: u64, command: AdminCommand) -> RequestId {
        let request = self.request();
        let changes = matches!(command, AdminCommand::ChangeGroup { .. });
        self.deleting |=
            matches!(command, AdminCommand::DeleteGroup { .. } | AdminCommand::DeleteTopic { .. });
        self.handle(SessionId(session), Command::Admin(Admin { request, command }));
        self.collect_replies();
        if changes {
            let groups: Vec<GroupId> = self.groups_now().into_iter().collect();
            groups.into_iter().for_each(|group| self.elect(group));
        }
        request
    }

    /// Takes everything but deliveries out of the effects; those stay for the end of the cycle.
    fn collect_replies(&mut self) {
        let mut rest = Vec::new();
        for effect in std::mem::take(&mut self.out.effects) {
            match effect.content {
                Content::Reply(request, result) => {
                    if let Some(client) = self.clients.get_mut(&effect.session)
                        && let Some((handle, window, got, _)) = client.pulls.remove(&request)
                    {
                        if let Ok(Reply::Pulled { count }) = &result {
                            assert_eq!(*count, got, "a pull is answered with what it got");
                        }
                        let _ = (handle, window);
                    }
                    self.replies.push((effect.session, request, result));
                }
                Content::PublishRefused(refused) => {
                    let waits = self.confirms.contains_key(&(effect.session, refused.producer));
                    assert!(!waits, "a refusal does not overtake the confirm of what came before");
                    let (code, expected) = (refused.refusal.code, refused.expected);
                    self.refused.push((effect.session, refused.producer, code, expected));
                }
                Content::PublishReady(ready) => self.ready.push((effect.session, ready.producer)),
                Content::ConsumerRecalled(recalled) => {
                    if let Some(client) = self.clients.get_mut(&effect.session) {
                        let key = (recalled.consumer, recalled.topic);
                        client.generations.insert(key, recalled.generation);
                    }
                    self.take_back_recalled(effect.session, recalled.consumer, recalled.topic);
                }
                Content::ConsumerTopicGone(gone) => {
                    if let Some(client) = self.clients.get_mut(&effect.session) {
                        client.generations.remove(&(gone.consumer, gone.topic));
                    }
                    self.take_back_recalled(effect.session, gone.consumer, gone.topic);
                    let known = self.named.remove(&(effect.session, gone.consumer, gone.topic));
                    assert!(known, "a consumer is told of the end of what it was told of");
                }
                Content::ConsumerClosed(closed) => {
                    self.order.members.remove(&(effect.session, closed.consumer));
                    self.forget_named((effect.session, closed.consumer));
                    if let Some(client) = self.clients.get_mut(&effect.session) {
                        client.consumers.remove(&closed.consumer);
                        client.windows.remove(&closed.consumer);
                    }
                }
                Content::ConsumerRole(role) => {
                    if let Some(member) = self.order.members.get_mut(&(effect.session, role.consumer)) {
                        assert_ne!(member.role, Some(role.activity), "told twice");
                        member.role = Some(role.activity);
                    }
                }
                Content::ConsumerTopic(named) => {
                    let told = self.named.insert((effect.session, named.consumer, named.topic));
                    assert!(told, "a topic is named once to a consumer");
                }
                Content::Confirm(confirm) => self.check_confirm(effect.session, confirm),
                Content::Browsed(Browsed { request, mut answer, messages }) => {
                    if let Reply::Browsed { messages: behind, .. } = &mut answer {
                        *behind = messages.concat().into();
                    }
                    self.replies.push((effect.session, request, Ok(answer)));
                }
                content => rest.push(batonmq::broker::Effect { session: effect.session, content }),
            }
        }
        self.out.effects = rest;
    }

    /// What a consumer had of a topic is with nobody.
    fn take_back_recalled(&mut self, session: SessionId, handle: Handle, topic: TopicId) {
        let group = self.clients.get(&session).and_then(|client| client.consumers.get(&handle)).copied();
        let Some(part) = group.and_then(|group| self.part(group, topic)) else { return };
        for known in self.groups.get_mut(&part).into_iter().flat_map(|messages| messages.values_mut()) {
            if known.holder == Some((session, handle)) {
                known.holder = None;
            }
        }
    }

    /// A topic that clients name, with what this cycle has changed so far.
    pub fn topic_named(&self, name: &str) -> Option<TopicId> {
        let named = |state: &TopicState| state.name.as_str() == name && state.kind == TopicKind::Named;
        let mut found = self.fold.topics.iter().find(|(_, state)| named(state)).map(|(id, _)| *id);
        for record in &self.out.records {
            match record {
                Record::TopicCreated { topic, name: new, kind: TopicKind::Named, .. }
                    if new.as_str() == name =>
                {
                    found = Some(*topic);
                }
                Record::TopicDeleted { topic } if found == Some(*topic) => found = None,
                _ => {}
            }
        }
        found
    }

    /// The settings of a topic, with what this cycle has changed so far.
    pub fn topic_settings(&self, id: TopicId) -> Option<TopicSettings> {
        let mut settings = self.fold.topics.get(&id).map(|state| state.settings.clone());
        for record in &self.out.records {
            match record {
                Record::TopicCreated { topic, settings: new, .. }
                | Record::TopicChanged { topic, settings: new }
                    if *topic == id =>
                {
                    settings = Some(new.clone());
                }
                _ => {}
            }
        }
        settings
    }

    /// Whether a refusal of a publish to these topics is right: one of them is full, or others wait for it.
    pub fn is_held_up(&self, parts: &[(TopicId, u32)], code: ErrorCode) -> bool {
        parts.iter().any(|(topic, _)| {
            let Some(settings) = self.topic_settings(*topic) else { return false };
            let published = self.out.records.iter().filter_map(|record| match record {
                Record::Published(published) if published.targets[0].0 == *topic => {
                    Some(published.block.count() as u64)
                }
                _ => None,
            });
            let held = self.fold.topics.contains_key(topic).then(|| self.held_by(*topic).0);
            let held = held.unwrap_or(0) + published.sum::<u64>();
            let full = settings.max_messages.is_some_and(|max| held >= max);
            match code {
                ErrorCode::TopicFull => settings.overflow == Overflow::Reject && full,
                // Others may wait for room that they are called for.
                ErrorCode::TopicBlocked => {
                    settings.overflow == Overflow::Block && settings.max_messages.is_some()
                }
                _ => false,
            }
        })
    }

    fn check_confirm(&mut self, session: SessionId, confirm: Confirm) {
        let Some(client) = self.clients.get(&session) else { return };
        let last = client.producers.get(&confirm.producer).and_then(|id| self.last_of(*id));
        assert!(last.is_some_and(|last| confirm.sequence <= last), "what is confirmed is stored");
        if let Some(end) = self.confirms.get(&(session, confirm.producer))
            && *end <= confirm.sequence
        {
            self.confirms.remove(&(session, confirm.producer));
        }
    }

    /// Ends the cycle and checks all of it.
    pub fn finish(&mut self) {
        self.collect_replies();
        self.broker.limit_output(self.output_max);
        self.broker.finish(self.now, &mut self.out);
        self.delivered.clear();
        let mut dead_now = BTreeSet::new();
        let records = std::mem::take(&mut self.out.records);
        self.note_removed(&records);
        self.check_slots_stay(&records);
        for record in records {
            self.check_record(&record, &mut dead_now);
            self.check_lifetime(&record);
            self.fold.apply(&record).expect("every record fits");
            if let Record::GroupDeleted { group } = record {
                self.groups.remove(&group);
                self.acked.retain(|(id, _)| *id != group);
                self.returned.retain(|(id, _), _| *id != group);
            }
        }
        assert!(self.acked.is_empty(), "acked, but not recorded: {:?}", self.acked);
        assert!(self.returned.is_empty(), "returned, but not recorded: {:?}", self.returned);
        assert!(dead_now.is_empty(), "dead letters of messages that are not settled: {dead_now:?}");
        assert_eq!(self.broker.snapshot(), self.fold, "the snapshot is the fold of the records");
        for effect in std::mem::take(&mut self.out.effects) {
            self.check_effect(effect.session, effect.content);
        }
        self.deleting = false;
        self.check_roles();
        let unanswered: Vec<_> = self.confirms.keys().collect();
        assert!(unanswered.is_empty(), "published, but neither confirmed nor refused: {unanswered:?}");
        self.reads.append(&mut self.out.reads);
        self.purged.clear();
        self.check_bounds();
        self.check_kept();
    }

    fn note_removed(&mut self, records: &[Record]) {
        self.removed_now.clear();
        for record in records {
            let (topic, offsets): (_, Vec<u64>) = match record {
                Record::Removed { topic, ranges } => {
                    (*topic, ranges.iter().flat_map(|range| range.start.0..range.end.0).collect())
                }
                Record::Trimmed { topic, start } => {
                    let messages =
                        self.store.get(topic).into_iter().flat_map(|messages| messages.range(..start.0));
                    (*topic, messages.map(|(offset, _)| *offset).collect())
                }
                _ => continue,
            };
            self.removed_now.extend(offsets.into_iter().map(|offset| (topic, offset)));
        }
    }

    /// A slot goes with its topic or with all that is in it; otherwise it is kept to be used again.
    fn check_slots_stay(&self, records: &[Record]) {
        let gone: BTreeSet<TopicId> = records
            .iter()
            .filter_map(|record| match record {
                Record::TopicDeleted { topic } => Some(*topic),
                _ => None,
            })
            .collect();
        for slot in gone.iter().filter(|topic| self.is_slot(**topic)) {
            let whole = self.whole_topic(*slot);
            assert!(gone.contains(&whole) || self.purged.contains(&whole), "slot {slot} is deleted");
        }
    }

    /// A group goes because somebody wants it, or because of its lifetime while it has no consumer.
    fn check_lifetime(&self, record: &Record) {
        let Record::GroupDeleted { group } = record else { return };
        let state = &self.fold.groups[group];
        if self.deleting || state.part_of.is_some() {
            return;
        }
        assert_ne!(state.settings.lifetime, Lifetime::Durable, "a durable group stays");
        assert!(
            self.order.members.values().all(|member| member.group != *group),
            "a group with consumers stays"
        );
    }

    fn check_record(&mut self, record: &Record, dead_now: &mut BTreeSet<(GroupId, u64)>) {
        match record {
            Record::TopicCreated { kind: TopicKind::Slot { of, waiting, .. }, .. } => {
                let of_slot = |id: &TopicId| match self.fold.topics[id].kind {
                    TopicKind::Slot { of, waiting, .. } => Some((of, waiting)),
                    _ => None,
                };
                let spare = self.spares.iter().find(|spare| of_slot(spare) == Some((*of, *waiting)));
                assert_eq!(spare, None, "a slot is made though there is one that is over");
            }
            Record::SlotMoved { slot, .. } => {
                let holds = self.store.get(slot).is_some_and(|messages| !messages.is_empty());
                assert!(self.is_slot(*slot) && !holds, "what is moved is a slot without messages: {slot}");
                self.spares.remove(slot);
            }
            Record::TopicDeleted { topic } => {
                self.spares.remove(topic);
                self.store.remove(topic);
                self.named.retain(|(_, _, named)| named != topic);
            }
            Record::GroupChanged { group, settings } => self.note_filter(*group, settings),
            Record::GroupCreated { group, settings, .. } => {
                self.note_filter(*group, settings);
                self.groups.entry(*group).or_default();
            }
            Record::ProducerExpired { producer } => {
                assert!(!self.owners.contains_key(producer), "an open producer does not expire");
            }
            Record::Published(published) => self.check_published(published, dead_now),
            Record::Settled { group, ranges } => {
                assert!(!ranges.is_empty());
                for offset in ranges.iter().flat_map(|range| range.start.0..range.end.0) {
                    assert!(!self.is_settled(*group, offset), "settled twice: {group} {offset}");
                    let acked = self.acked.remove(&(*group, offset));
                    let died = dead_now.remove(&(*group, offset));
                    let topic = self.fold.groups[group].topic;
                    let expired =
                        self.is_expired(*group, offset) || self.taken_out.contains(&(topic, offset));
                    if !acked && !died && !expired && self.is_dropped(*group, offset) {
                        self.forget_dropped(*group, offset);
                        continue;
                    }
                    let unwanted = self.is_unwanted(*group, offset);
                    let superseded = self.is_superseded_for(*group, offset);
                    let elsewhere = self.is_replayed_elsewhere(*group, offset);
                    let reason = acked || died || expired || unwanted || superseded || elsewhere;
                    assert!(reason, "settled for a reason: {group} {offset}");
                    assert!(!(acked && died), "settled for one reason: {group} {offset}");
                }
            }
            Record::GroupSought { group, .. } => {
                self.sought.insert(*group);
                self.dead.retain(|(id, _)| id != group);
                for known in self.groups.get_mut(group).unwrap().values_mut() {
                    *known = Known { handed: known.handed, ..Known::default() };
                }
            }
            Record::Returned { group, range, retry } => {
                for offset in range.start.0..range.end.0 {
                    self.check_returned(*group, offset, retry);
                }
            }
            Record::Removed { topic, ranges } if self.is_slot(*topic) => {
                for offset in ranges.iter().flat_map(|range| range.start.0..range.end.0) {
                    self.store.get_mut(topic).unwrap().remove(&offset).expect("removed once");
                }
            }
            Record::Trimmed { topic, start } if self.is_slot(*topic) => {
                self.store.get_mut(topic).unwrap().retain(|offset, _| *offset >= start.0);
            }
            Record::Removed { topic, ranges } => {
                let groups = self.fold.groups.values().filter(|group| group.topic == *topic);
                let groups: Vec<_> = groups.collect();
                assert!(!ranges.is_empty());
                for offset in ranges.iter().flat_map(|range| range.start.0..range.end.0) {
                    let settled = |group: &&GroupState| {
                        offset < group.floor.0 || group.settled.contains(Offset(offset))
                    };
                    assert!(groups.iter().all(settled), "removed too early: {offset}");
                    let superseded = self.is_superseded(*topic, offset);
                    assert!(superseded || !self.keeps_last_values(*topic), "the newest goes: {offset}");
                    let was_there = self.store.get_mut(topic).and_then(|messages| messages.remove(&offset));
                    let stored = was_there.expect("removed once");
                    let expired = stored.message.expires_at.is_some_and(|at| at <= self.now);
                    let expired = expired || self.taken_out.contains(&(*topic, offset));
                    assert!(
                        !groups.is_empty() || expired || superseded,
                        "removed before a group had it: {offset}"
                    );
                }
            }
            Record::Trimmed { topic, start } => {
                // One after the other: what makes the one superfluous may go with it.
                while let Some(offset) = self.first_below(*topic, start.0)
                    && self.is_superseded(*topic, offset)
                {
                    self.store.get_mut(topic).and_then(|messages| messages.remove(&offset));
                }
                self.check_trimmed(*topic, *start);
                if let Some(messages) = self.store.get_mut(topic) {
                    messages.retain(|offset, _| *offset >= start.0);
                }
            }
            _ => {}
        }
    }

    /// The pattern that a group is a group of, where it is.
    pub fn pattern_of(&self, part: GroupId) -> Option<String> {
        let own = &self.fold.topics[&self.fold.groups[&self.whole(part)].topic];
        (own.kind == TopicKind::Pattern).then(|| own.name.to_string())
    }

    /// Whether a message was replayed in this cycle for a group that it is not.
    fn is_replayed_elsewhere(&self, part: GroupId, offset: u64) -> bool {
        let topic = self.fold.groups[&part].topic;
        let stored = self.store.get(&topic).and_then(|stored| stored.get(&offset));
        let Some(stored) = stored.filter(|stored| stored.published_at == self.now) else { return false };
        let Some(history) = stored.message.header("baton.dead.history") else { return false };
        let pattern = self.pattern_of(part).map_or_else(String::new, |pattern| format!(" pattern={pattern}"));
        let own = format!(" group={}{pattern} attempts=", self.fold.groups[&part].name);
        let history = std::str::from_utf8(history).unwrap();
        self.replays_to_group && !history.lines().last().unwrap().contains(&own)
    }

    /// A message whose topic has dropped it.
    fn is_dropped(&self, group: GroupId, offset: u64) -> bool {
        offset < self.fold.topics[&self.fold.groups[&group].topic].start.0
    }

    /// A group is done with a message that is gone: it was not in flight, or came back, or was recalled.
    fn forget_dropped(&mut self, group: GroupId, offset: u64) {
        let came_back = self.returned.remove(&(group, offset)).is_some();
        let purged = self.purged.contains(&self.whole_topic(self.fold.groups[&group].topic));
        let now = self.now;
        let Some(known) = self.groups.get_mut(&group).unwrap().get_mut(&offset) else { return };
        let held = known.holder.take().is_some() && known.deadline > now;
        assert!(!held || came_back || purged, "what is in flight stays: {group} {offset}");
    }

    /// The topic of a part, or the topic itself.
    pub fn whole_topic(&self, id: TopicId) -> TopicId {
        self.fold.topics[&id].kind.part_of().unwrap_or(id)
    }

    /// The messages of a topic with its parts: how many, and their bytes.
    pub fn held_by(&self, whole: TopicId) -> (u64, u64) {
        let mut held = (0, 0);
        for (id, state) in &self.fold.topics {
            let notes = matches!(state.kind, TopicKind::Slot { waiting: Waiting::Expiring, .. });
            if self.whole_topic(*id) == whole && !notes {
                for stored in self.store.get(id).into_iter().flat_map(|messages| messages.values()) {
                    held.0 += 1;
                    held.1 += stored.message.encoded_len() as u64;
                }
            }
        }
        held
    }

    /// What goes from the front of a topic is settled by all, or more than the topic is to keep.
    fn check_trimmed(&self, topic: TopicId, start: Offset) {
        let whole = self.whole_topic(topic);
        let settings = &self.fold.topics[&whole].settings;
        let groups: Vec<_> = self.fold.groups.iter().filter(|(_, group)| group.topic == topic).collect();
        let gone: Vec<_> = self.store.get(&topic).into_iter().flat_map(|all| all.range(..start.0)).collect();
        let (messages, bytes) = self.held_by(whole);
        let gone_bytes: u64 = gone.iter().map(|(_, stored)| stored.message.encoded_len() as u64).sum();
        let dropping = settings.overflow == Overflow::DropOldest;
        let limits = |kept: Option<u64>, full: Option<u64>| {
            [kept, full.filter(|_| dropping)].into_iter().flatten().min().unwrap_or(u64::MAX)
        };
        let messages_max = limits(settings.retention.max_messages, settings.max_messages);
        let bytes_max = limits(settings.retention.max_bytes, settings.max_bytes);
        // As far as the estimate of bytes may be off.
        let slack = (bytes / 16).max(64 << 10) + gone_bytes / gone.len().max(1) as u64;
        let too_much =
            messages - gone.len() as u64 >= messages_max || bytes - gone_bytes + slack >= bytes_max;
        for (offset, stored) in gone {
            let settled = settings.retention.acked
                && !groups.is_empty()
                && groups.iter().all(|(id, _)| self.is_settled(**id, *offset));
            let age = settings.retention.max_age_ms;
            let old = age.is_some_and(|age| stored.published_at.0 + age < self.now.0);
            let expired = stored.message.expires_at.is_some_and(|at| at <= self.now);
            let slot = matches!(self.fold.topics[&topic].kind, TopicKind::Slot { .. });
            let purged = self.purged.contains(&whole);
            let taken_out = self.taken_out.contains(&(topic, *offset));
            assert!(
                settled || old || expired || slot || too_much || purged || taken_out,
                "trimmed too early: {topic} {offset}"
            );
        }
    }

    fn check_published(&mut self, published: &Published, dead_now: &mut BTreeSet<(GroupId, u64)>) {
        assert!(!published.targets.is_empty() && published.block.count() > 0);
        assert_eq!(published.at, self.now);
        let origins = published.source.origins(published.block.count() as u32).flat_map(|(count, first)| {
            (0..u64::from(count)).map(move |at| {
                first.map(|first| Origin { sequence: Sequence(first.sequence.0 + at), ..first })
            })
        });
        for (index, origin) in origins.enumerate() {
            let message = published.block.message(index).unwrap();
            // A letter in a table may be moved to its end: it died before.
            if message.header("baton.dead.topic").is_some() && message.header("baton.published-at").is_none()
            {
                self.check_dead(&message, dead_now);
            }
            for (topic, first) in &published.targets {
                if let TopicKind::Slot { from, until, .. } = self.fold.topics[topic].kind {
                    let due = message.deliver_at.unwrap();
                    let is_before_end = due < until || until.0 == u64::MAX;
                    assert!(from <= due && is_before_end, "what is due at {due} is in the slot for it");
                }
                let stored = Stored { message: message.clone(), published_at: published.at, origin };
                self.store.entry(*topic).or_default().insert(first.0 + index as u64, stored);
            }
        }
    }

    fn check_dead(&mut self, message: &Message, dead_now: &mut BTreeSet<(GroupId, u64)>) {
        let text = |name: &str| String::from_utf8(message.header(name).unwrap().to_vec()).unwrap();
        let topic = text("baton.dead.topic");
        let position: Position = text("baton.dead.offset").parse().unwrap();
        let is_origin = |state: &TopicState| {
            state.name.as_str() == topic
                && state.kind.priority() == position.priority
                && !matches!(state.kind, TopicKind::Slot { .. })
        };
        let (topic, _) = self.fold.topics.iter().find(|(_, state)| is_origin(state)).unwrap();
        let name = text("baton.dead.group");
        let pattern = message.header("baton.dead.pattern").map(|_| text("baton.dead.pattern"));
        let is_group = |id: GroupId, state: &GroupState| {
            state.name.as_str() == name && state.topic == *topic && self.pattern_of(id) == pattern
        };
        let (group, _) = self.fold.groups.iter().find(|(id, state)| is_group(**id, state)).unwrap();
        let offset = position.offset.0;
        let settings = &self.fold.groups[&self.whole(*group)].settings;
        let known = &self.groups[group][&offset];
        assert_eq!(known.holder, None, "what is in flight does not die");
        assert_eq!(text("baton.dead.attempts"), known.attempts.to_string());
        assert_eq!(text("baton.dead.deliveries"), known.returns.to_string());
        let max = settings.max_attempts;
        assert!(
            known.rejected || (max > 0 && known.attempts >= max),
            "dead before its time: {} of {max}",
            known.attempts
        );
        let original = &self.store[topic][&offset];
        assert_eq!(message.body, original.message.body);
        assert_eq!(text("baton.dead.published-at"), original.published_at.to_string());
        assert!(self.dead.insert((*group, offset)), "dead twice: {group} {offset}");
        dead_now.insert((*group, offset));
    }

    fn check_returned(&mut self, group: GroupId, offset: u64, retry: &Retry) {
        let settings = self.fold.groups[&self.whole(group)].settings.clone();
        let now = self.now;
        let known = self.groups.get_mut(&group).unwrap().entry(offset).or_default();
        if retry.last_failure().is_some_and(|failure| failure.reason == ReturnReason::Expired) {
            assert_eq!(known.holder, None, "what is in flight does not expire");
            assert_eq!((retry.failed, retry.handed_out), (known.attempts, known.returns));
            known.rejected = true;
            return;
        }
        let failure =
            retry.last_failure().filter(|failure| retry.failed > known.attempts && failure.at == now);
        let (reason, wait) = match self.returned.remove(&(group, offset)) {
            Some(expected) => expected,
            None => {
                assert_eq!(failure.map(|failure| failure.reason), Some(ReturnReason::LeaseExpired));
                assert!(known.holder.take().is_some(), "a lease ends of what is in flight");
                assert!(known.deadline <= now, "a lease ends in time");
                (Some(ReturnReason::LeaseExpired), None)
            }
        };
        known.returns += 1;
        known.attempts += u32::from(reason.is_some());
        known.rejected |= reason == Some(ReturnReason::Rejected);
        assert_eq!(failure.map(|failure| failure.reason), reason);
        assert_eq!((retry.failed, retry.handed_out), (known.attempts, known.returns));
        let waited = retry.due_at.0 - now.0;
        match (reason, wait) {
            (None, _) => assert_eq!(waited, 0, "what was not touched is handed out again at once"),
            (_, Some(wait)) => assert_eq!(waited, wait),
            (Some(ReturnReason::ConsumerLost), None) if settings.policy == Policy::Exclusive => {
                assert_eq!(waited, 0, "the next one takes over at once");
            }
            (_, None) => {
                let wait = settings.backoff.wait_ms(known.attempts);
                let span = wait * u64::from(settings.backoff.jitter_percent) / 100;
                assert!((wait - span..=wait + span).contains(&waited), "back-off {waited} of {wait}");
            }
        }
        known.due_at = retry.due_at;
    }

    /// Whether a topic keeps the newest message of each key.
    pub fn keeps_last_values(&self, topic: TopicId) -> bool {
        self.fold.topics.get(&topic).is_some_and(|topic| topic.settings.last_value)
    }

    fn first_below(&self, topic: TopicId, start: u64) -> Option<u64> {
        let (&first, _) = self.store.get(&topic)?.first_key_value()?;
        (first < start).then_some(first)
    }

    /// When a message was published first.
    pub fn first_published_at(stored: &Stored) -> Timestamp {
        let Some(value) = stored.message.header("baton.published-at") else { return stored.published_at };
        let time = humantime::parse_rfc3339(std::str::from_utf8(value).unwrap()).unwrap();
        Timestamp(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64)
    }

    /// Whether a message may go because there is a newer one of its key, or because it has said for a day that its key
    /// is gone, and nothing older is there.
    fn is_superseded(&self, topic: TopicId, offset: u64) -> bool {
        if !self.keeps_last_values(topic) {
            return false;
        }
        let messages = &self.store[&topic];
        let stored = &messages[&offset];
        let Some(key) = &stored.message.key else {
            // It stays for good, and may be moved with all others.
            let is_it = |other: &Stored| {
                let moved = other.message.header("baton.published-at").is_some();
                moved && other.message.key.is_none() && other.message.body == stored.message.body
            };
            return messages.range(offset + 1..).any(|(_, other)| is_it(other));
        };
        let has_key = |(_, other): &(&u64, &Stored)| other.message.key.as_ref() == Some(key);
        let is_newest = !messages.range(offset + 1..).any(|other| has_key(&other));
        let goes = |other: u64| self.removed_now.contains(&(topic, other));
        let is_oldest = !messages.range(..offset).any(|other| has_key(&other) && !goes(*other.0));
        let published_at = Self::first_published_at(stored);
        let is_old = stored.message.body.is_empty() && published_at.0 + 86_400_000 <= self.now.0;
        !is_newest || (is_old && is_oldest)
    }

    /// Whether a group may be done with a message that it has not got: because it may go, or because it was moved from
    /// where the group was done with it.
    fn is_superseded_for(&self, group: GroupId, offset: u64) -> bool {
        let Some(state) = self.fold.groups.get(&group) else { return false };
        if !self.keeps_last_values(state.topic) {
            return false;
        }
        let held = self.groups.get(&group).and_then(|known| known.get(&offset));
        if held.is_some_and(|known| known.holder.is_some()) {
            return false;
        }
        let messages = &self.store[&state.topic];
        let moved = &messages[&offset].message;
        let was_done = moved.header("baton.published-at").is_some()
            && messages.range(..offset).any(|(&old, other)| {
                other.message.key == moved.key
                    && other.message.body == moved.body
                    && self.is_settled(group, old)
            });
        was_done || self.is_superseded(state.topic, offset)
    }

    /// Whether a topic is a slot that is empty and that nothing is put into any more, for its time is over.
    pub fn is_over(&self, topic: TopicId) -> bool {
        let state = &self.fold.topics[&topic];
        let TopicKind::Slot { from, until, .. } = state.kind else { return false };
        // What is due in a wide one goes into finer ones from its beginning on.
        let closes_at = if until.0 - from.0 > 1 << 10 { from } else { until };
        // The one from 0 to the end of time is for what is due soon.
        state.message_count() == 0 && closes_at <= self.now && until != Timestamp(u64::MAX)
    }

    /// Takes note of the slots that are over, when there is nothing left for the broker to do.
    pub fn note_spares(&mut self) {
        let over = self.fold.topics.keys().copied().filter(|topic| self.is_over(*topic));
        self.spares = over.collect();
    }

    /// Whether a topic holds what waits for a time.
    pub fn is_slot(&self, topic: TopicId) -> bool {
        self.fold.topics.get(&topic).is_some_and(|topic| matches!(topic.kind, TopicKind::Slot { .. }))
    }

    /// Whether the time of a message is over that nobody has.
    fn is_expired(&self, group: GroupId, offset: u64) -> bool {
        let Some(state) = self.fold.groups.get(&group) else { return false };
        let held = self
            .groups
            .get(&group)
            .and_then(|known| known.get(&offset))
            .is_some_and(|known| known.holder.is_some());
        let stored = self.store.get(&state.topic).and_then(|stored| stored.get(&offset));
        !held && stored.is_some_and(|stored| stored.message.expires_at.is_some_and(|at| at <= self.now))
    }

    /// Whether a filter that the group has had does not match.
    fn is_unwanted(&self, part: GroupId, offset: u64) -> bool {
        let Some(filters) = self.filters_had.get(&self.whole(part)) else { return false };
        let topic = self.fold.groups[&part].topic;
        let stored = self.store.get(&topic).and_then(|stored| stored.get(&offset));
        let Some(message) = stored.map(|stored| &stored.message) else { return false };
        filters.iter().any(|text| self.filters.get(text).is_none_or(|matches| !matches(message)))
    }

    /// Takes note of the filter that a group has from now on.
    fn note_filter(&mut self, group: GroupId, settings: &GroupSettings) {
        self.filters_had.entry(group).or_default().extend(settings.filter.clone());
    }

    pub fn is_settled(&self, group: GroupId, offset: u64) -> bool {
        self.fold
            .groups
            .get(&group)
            .is_some_and(|state| offset < state.floor.0 || state.settled.contains(Offset(offset)))
    }

    fn check_effect(&mut self, session: SessionId, content: Content) {
        match content {
            Content::Deliver(delivery) => self.check_delivery(session, delivery),
            content => {
                self.out.effects.push(batonmq::broker::Effect { session, content });
                self.collect_replies();
            }
        }
    }

    fn check_delivery(&mut self, session: SessionId, delivery: batonmq::broker::Delivery) {
        let client = self.clients.get_mut(&session).expect("deliveries go to living sessions");
        assert!(!client.full, "nothing is handed out to a session that cannot take it");
        let group = *client.consumers.get(&delivery.consumer).expect("deliveries go to consumers");
        let holder = Some((session, delivery.consumer));
        let lease = self.fold.groups[&group].settings.lease();
        let topic = delivery.topic;
        let whole = group;
        let group = self.part(group, topic).expect("a delivery is of a topic that the group has");
        let bytes: Vec<u8> = delivery.messages.iter().flat_map(|piece| piece.to_vec()).collect();
        let block = MessageBlock::from_store(bytes.into()).unwrap();
        assert_eq!(block.count() as u32, delivery.runs.iter().map(|run| run.count).sum::<u32>());
        let mut index = 0;
        for run in &delivery.runs {
            for position in 0..u64::from(run.count) {
                let offset = run.offset.0 + position;
                assert!(!self.is_settled(group, offset), "settled and delivered: {group} {offset}");
                let stored = &self.store[&topic][&offset];
                let filter = self.fold.groups[&whole].settings.filter.as_ref();
                let filter = filter.and_then(|text| self.filters.get(text));
                assert!(filter.is_none_or(|matches| matches(&stored.message)), "unwanted: {offset}");
                assert_eq!(block.message(index).unwrap(), stored.message);
                assert!(stored.message.deliver_at.is_none_or(|at| at <= self.now), "delivered too early");
                assert!(stored.message.expires_at.is_none_or(|at| at > self.now), "delivered too late");
                assert!(!self.is_slot(topic), "what waits for a time is not delivered");
                index += 1;
                assert_eq!(run.published_at, stored.published_at);
                let origin = run
                    .origin
                    .map(|origin| Origin { sequence: Sequence(origin.sequence.0 + position), ..origin });
                assert_eq!(origin, stored.origin);
                self.check_order((session, delivery.consumer), whole, group, offset);
                let own = self.fold.groups[&whole].topic == topic;
                let named = self.named.contains(&(session, delivery.consumer, topic));
                assert!(own || named, "the topic is not known to the consumer");
                let fresh_from = self.fresh_from.get(&group).copied().unwrap_or(0);
                let known = self.groups.get_mut(&group).unwrap().entry(offset).or_default();
                assert_eq!(known.holder, None, "in flight twice: {group} {offset}");
                assert!(!self.dead.contains(&(group, offset)), "dead and delivered: {group} {offset}");
                assert!(known.due_at <= self.now, "handed out before it is due");
                assert_eq!(run.attempt, known.attempts + 1, "number of the attempt");
                assert_eq!(run.delivery, known.returns + 1, "number of the hand-over");
                let redelivered = known.handed || offset < fresh_from;
                // After a seek it may be said of what was passed over too.
                let sought = self.sought.contains(&group) && run.redelivered;
                assert!(sought || run.redelivered == redelivered, "redelivered: {offset}");
                let new = !known.handed;
                known.holder = holder;
                known.handed = true;
                known.deadline = self.now.after(lease);
                self.delivered.push((session, delivery.consumer, group, offset, new));
            }
        }
        let (count, bytes) = (block.count() as u32, block.bytes().len() as u64);
        let client = self.clients.get_mut(&session).unwrap();
        if delivery.request != 0 {
            let pull = client.pulls.get_mut(&delivery.request).expect("a pull is answered once");
            assert_eq!(pull.0, delivery.consumer);
            pull.2 += count;
            pull.3 += bytes;
            assert!(pull.2 <= pull.1.messages, "a pull gets no more messages than it asked for");
            assert!(pull.3 <= pull.1.bytes || pull.2 == 1, "a pull gets no more bytes than it asked for");
            return;
        }
        let window = client.windows[&delivery.consumer];
        let mut held: Vec<(TopicId, u64)> = Vec::new();
        for part in self.parts(whole) {
            let topic = self.fold.groups[&part].topic;
            let of_part = self.groups[&part].iter().filter(|(_, known)| known.holder == holder);
            held.extend(of_part.map(|(offset, _)| (topic, *offset)));
        }
        assert!(held.len() as u32 <= window.messages, "more messages than the window allows");
        if self.checks_bytes {
            // What is gone from the topic while it is in flight is not counted.
            let size = |(topic, offset): &(TopicId, u64)| {
                self.store[topic].get(offset).map_or(0, |stored| stored.message.encoded_len() as u64)
            };
            let bytes: u64 = held.iter().map(size).sum();
            assert!(bytes <= window.bytes || held.len() == 1, "more bytes than the window allows");
        }
    }

    /// No topic keeps more messages than it is to keep, but those that wait for their time.
    fn check_kept(&self) {
        for (id, state) in self.fold.topics.iter().filter(|(_, state)| state.kind.part_of().is_none()) {
            let dropping = state.settings.overflow == Overflow::DropOldest;
            let full = state.settings.max_messages.filter(|_| dropping);
            let max = [state.settings.retention.max_messages, full].into_iter().flatten().min();
            let lanes = self.fold.topics.iter().filter(|(lane, state)| {
                self.whole_topic(**lane) == *id && !matches!(state.kind, TopicKind::Slot { .. })
            });
            let there: u64 = lanes.map(|(_, lane)| lane.message_count()).sum();
            assert!(there == 0 || max.is_none_or(|max| self.held_by(*id).0 <= max), "too many in {id}");
        }
    }

    fn check_bounds(&self) {
        for (id, messages) in &self.groups {
            if !self.fold.groups.contains_key(id) {
                continue;
            }
            let held: Vec<&Known> = messages.values().filter(|known| known.holder.is_some()).collect();
            assert!(held.len() as u64 <= self.limits.in_flight_max);
            let late = self.fold.groups[&self.whole(*id)].settings.lease_ms / 32;
            for known in held {
                assert!(known.deadline.0 + late >= self.now.0, "a lease that has ended is noticed");
            }
        }
        let in_flight: usize =
            self.groups.values().flat_map(BTreeMap::values).filter(|known| known.holder.is_some()).count();
        let counts = self.broker.counts();
        assert_eq!(counts.in_flight, in_flight as u64);
        assert!(counts.cache_bytes <= self.limits.cache_bytes_max);
        let named = self.fold.topics.values().filter(|topic| topic.kind.part_of().is_none());
        assert_eq!(counts.topics, named.count() as u64);
        let whole = self.fold.groups.values().filter(|group| group.part_of.is_none());
        assert_eq!(counts.groups, whole.count() as u64);
        // What waits for its time is counted apart, and notes of messages are none.
        let count = |is_counted: fn(TopicKind) -> bool| -> u64 {
            let logs = self.fold.topics.values().filter(|topic| is_counted(topic.kind));
            logs.map(TopicState::message_count).sum()
        };
        assert_eq!(counts.messages, count(|kind| !matches!(kind, TopicKind::Slot { .. })));
        let delayed = |kind| matches!(kind, TopicKind::Slot { waiting: Waiting::Delayed, .. });
        assert_eq!(counts.delayed, count(delayed));
        let consumers: usize = self.clients.values().map(|client| client.consumers.len()).sum();
        assert_eq!(counts.consumers, consumers as u64);
    }

    /// Answers a read.
    pub fn answer(&mut self, index: usize) {
        let read = self.reads.remove(index);
        let mut messages = Vec::new();
        let mut bytes = 0;
        let stored = self.store.get(&read.topic);
        while let Some(stored) = stored.and_then(|stored| stored.get(&(read.from.0 + messages.len() as u64)))
        {
            bytes += stored.message.encoded_len();
            if bytes > read.bytes_max && !messages.is_empty() {
                break;
            }
            messages.push(stored.clone());
        }
        let chunk = (!messages.is_empty()).then(|| Chunk {
            first: read.from,
            block: MessageBlock::encode(messages.iter().map(|stored| &stored.message)),
            stamps: messages
                .iter()
                .map(|stored| Stamp { count: 1, published_at: stored.published_at, origin: stored.origin })
                .collect(),
        });
        self.broker.loaded(self.now, read, chunk, &mut self.out);
    }

    pub fn answer_all(&mut self) {
        while !self.reads.is_empty() {
            self.answer(0);
        }
    }

    /// The process ends, and another broker goes on from what is durable. What this cycle has done is gone.
    pub fn restart(&mut self) {
        self.out = Output::default();
        self.acked.clear();
        self.returned.clear();
        let Self { groups, fold, .. } = self;
        groups.retain(|id, _| fold.groups.contains_key(id));
        self.reads.clear();
        self.spares.clear();
        self.clients.clear();
        self.owners.clear();
        self.confirms.clear();
        self.named.clear();
        self.order = Order::default();
        for (id, messages) in &mut self.groups {
            let state = &self.fold.groups[id];
            let end = self.fold.topics[&state.topic].end;
            let fresh_from = state.handed_out.min(end).0;
            self.fresh_from.insert(*id, fresh_from);
            for (offset, known) in messages {
                assert!(!known.handed || *offset < fresh_from, "handed out, but not marked as such");
                known.holder = None;
            }
        }
        self.broker = Broker::new(self.fold.clone(), self.limits.clone(), self.creation);
    }
}
