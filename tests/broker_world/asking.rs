//! What clients and operators ask of the broker in the world, and what becomes of it in the model at once.

use std::collections::BTreeSet;

use batonmq::broker::{Browsed, Command, Content, Ending};
use batonmq::model::id::{GroupId, Offset, OffsetRange, ProducerId, Sequence, SessionId, TopicId};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::record::{Published, Record, Source};
use batonmq::model::retry::ReturnReason;
use batonmq::model::settings::{GroupSettings, TopicSettings};
use batonmq::model::snapshot::TopicState;
use batonmq::model::topic_kind::TopicKind;
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::*;
use batonmq::protocol::response::Reply;

use super::{World, told_apart};

impl World {
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

    pub fn give_back(&mut self, session: SessionId, handle: Handle, group: GroupId, ending: Ending) {
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
    pub fn collect_replies(&mut self) {
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
    pub fn take_back_recalled(&mut self, session: SessionId, handle: Handle, topic: TopicId) {
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
}
