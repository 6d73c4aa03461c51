//! Consumers joining and leaving groups, and groups coming and going.

use std::collections::BTreeMap;

use super::consumer::Consumer;
use super::group::Group;
use super::machine::Broker;
use super::part::Part;
use super::topic_parts::floor_at;
use super::{Content, Ending, Output, dead_letter, refusals};
use crate::model::filter::Filter;
use crate::model::id::{GroupId, Offset, OffsetRange, SessionId, TopicId};
use crate::model::name::Name;
use crate::model::record::Record;
use crate::model::settings::{
    GroupSettings, IDLE_MS_MIN, JITTER_PERCENT_MAX, LEASE_MS_MIN, Lifetime, MULTIPLIER_PERCENT_MAX,
    MULTIPLIER_PERCENT_MIN, PRIORITY_SHARE_MIN, Start, WAIT_MS_MAX,
};
use crate::model::snapshot::GroupState;
use crate::model::topic_kind::TopicKind;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{Flow, Subscribe, Unsubscribe, Window};
use crate::protocol::response::{ConsumerClosed, Reply};

impl Broker {
    pub(super) fn subscribe(&mut self, session: SessionId, request: Subscribe, out: &mut Output) {
        let id = request.request;
        let subscribed = self.try_subscribe(session, request, out);
        out.effect(session, Content::Reply(id, subscribed));
    }

    fn try_subscribe(
        &mut self,
        session: SessionId,
        request: Subscribe,
        out: &mut Output,
    ) -> Result<Reply, Refusal> {
        let state = self.sessions.get(&session).ok_or_else(refusals::no_session)?;
        let paused = state.paused;
        if state.consumers.contains_key(&request.consumer) {
            return Err(refusals::handle_in_use("consumer", request.consumer));
        }
        let max = self.limits.consumers_per_connection_max;
        if state.consumers.len() as u64 >= max {
            return Err(refusals::limit("consumers_per_connection_max", max, "consumers on this connection"));
        }
        // All that can be refused is, before anything is created.
        let name = Name::new(&request.group).map_err(|error| refusals::invalid(&error))?;
        let id = match self.group_on_use(&request.topic, &name)? {
            Some(id) => id,
            None => {
                let settings = request.settings.unwrap_or_default();
                check_settings(&settings)?;
                self.create_group_on_use(&request.topic, name, settings, request.start, out)?
            }
        };
        let window = self.capped(request.window);
        let group = self.groups.get_mut(&id).ok_or_else(refusals::no_session)?;
        group.ends_at = None;
        let topic = group.topic;
        let mut consumer = Consumer::new(session, request.consumer, request.priority, window);
        consumer.paused = paused;
        let slot = group.members.join(consumer);
        self.cycle.mark_consumers(group);
        self.totals.consumers += 1;
        let settings = group.settings.clone();
        if let Some(state) = self.sessions.get_mut(&session) {
            state.consumers.insert(request.consumer, (id, slot));
        }
        Ok(Reply::Subscribed { group: id, topic, settings })
    }

    /// The window, as far as the limits allow it.
    pub(super) fn capped(&self, window: Window) -> Window {
        let most = u32::try_from(self.limits.prefetch_max).unwrap_or(u32::MAX);
        Window { messages: window.messages.min(most), ..window }
    }

    /// Changes a window. A consumer that is gone is passed over: the node may have ended it meanwhile.
    pub(super) fn change_window(&mut self, session: SessionId, request: &Flow) {
        let window = self.capped(request.window);
        let Some(state) = self.sessions.get(&session) else { return };
        let Some(&(id, slot)) = state.consumers.get(&request.consumer) else { return };
        let Some(group) = self.groups.get_mut(&id) else { return };
        if let Some(consumer) = group.members.get_mut(slot) {
            consumer.window = window;
            consumer.stuck = false;
        }
        group.members.refresh(slot);
        self.cycle.mark_consumers(group);
    }

    pub(super) fn unsubscribe(&mut self, session: SessionId, request: &Unsubscribe, out: &mut Output) {
        let removed =
            self.sessions.get_mut(&session).and_then(|state| state.consumers.remove(&request.consumer));
        let done = match removed {
            Some((id, slot)) => {
                // Pulls still waiting are over.
                if let Some(consumer) = self.groups.get(&id).and_then(|group| group.members.get(slot)) {
                    for pull in &consumer.pulls {
                        consumer.answer_pull(pull, &mut out.effects);
                    }
                }
                self.remove_consumer(id, slot, Ending::Closed, out);
                Ok(Reply::Done)
            }
            None => Err(refusals::unknown_handle("consumer", request.consumer)),
        };
        out.effect(session, Content::Reply(request.request, done));
    }

    /// Makes a group; the topic is there and has none of that name, and the settings were checked.
    pub(super) fn create_group(
        &mut self,
        topic_id: TopicId,
        name: Name,
        settings: GroupSettings,
        start: Start,
        out: &mut Output,
    ) -> Result<GroupId, Refusal> {
        self.check_group_room()?;
        let topic = self.topics.get_mut(&topic_id).ok_or_else(refusals::no_session)?;
        let end = topic.state.end;
        let floor = floor_at(start, &topic.state);
        let id = self.next.group;
        self.next.group = id.next();
        out.records.push(Record::GroupCreated {
            group: id,
            topic: topic_id,
            name: name.clone(),
            settings: settings.clone(),
            floor,
            part_of: None,
        });
        topic.groups.insert(name.clone(), id);
        topic.holders.insert(id);
        let state = GroupState::new(topic_id, name, settings, floor, &topic.state.removed);
        let mut group = Group::new(Part::recover(id, state, 0, end));
        self.cycle.mark(&mut group, topic_id);
        self.groups.insert(id, group);
        let lanes: Vec<TopicId> = topic.lanes.values().copied().collect();
        let is_pattern = topic.state.kind == TopicKind::Pattern;
        self.check_floor(topic_id);
        for lane in lanes {
            self.add_group_part(id, lane, start, out);
        }
        if is_pattern {
            self.add_topics_of_pattern(id, topic_id, start, out);
        }
        self.note_vacancy(id, Ending::Lost, out);
        Ok(id)
    }

    /// Whether one more group may be made.
    pub(super) fn check_group_room(&self) -> Result<(), Refusal> {
        let max = self.limits.groups_max;
        if self.groups.len() as u64 >= max {
            return Err(refusals::limit("groups_max", max, "groups"));
        }
        Ok(())
    }

    /// The groups as a broker before this one left them. The topics are there.
    pub(super) fn recover_groups(&mut self, states: BTreeMap<GroupId, GroupState>) {
        let (groups, parts): (Vec<_>, Vec<_>) =
            states.into_iter().partition(|(_, state)| state.part_of.is_none());
        for (id, state) in groups {
            let Some(topic) = self.topics.get_mut(&state.topic) else { continue };
            topic.groups.insert(state.name.clone(), id);
            topic.holders.insert(id);
            let part = Part::recover(id, state, 0, topic.state.end);
            self.groups.insert(id, Group::new(part));
        }
        for (id, state) in parts {
            let Some(group) = state.part_of.and_then(|whole| self.groups.get_mut(&whole)) else { continue };
            let Some(topic) = self.topics.get_mut(&state.topic) else { continue };
            topic.holders.insert(group.id);
            let priority = topic.state.kind.priority();
            group.add_part(Part::recover(id, state, priority, topic.state.end));
        }
        let Self { groups, topics, dying, cycle, recovered, .. } = self;
        for group in groups.values_mut() {
            for (topic, part) in &mut group.parts {
                let name = topics.get(topic).map(|topic| &topic.state.name);
                let mortal = name.is_some_and(|name| dead_letter::target(name, &group.settings).is_some());
                part.resume_retries(mortal, &group.settings);
                // What was dropped while it was in flight will not come back.
                let start = topics.get(topic).map_or(Offset(0), |topic| topic.state.start);
                part.drop_below(OffsetRange { start: Offset(0), end: start }, std::iter::empty());
                if !part.redelivery.dying.is_empty() {
                    dying.insert((group.id, *topic));
                }
            }
            let topics: Vec<TopicId> = group.parts.keys().copied().collect();
            topics.into_iter().for_each(|topic| cycle.mark(group, topic));
            if group.settings.lifetime != Lifetime::Durable {
                recovered.push(group.id);
            }
        }
    }

    /// Deletes a group with its progress; its consumers are told.
    pub(super) fn delete_group(&mut self, id: GroupId, out: &mut Output) {
        let Some(mut group) = self.groups.remove(&id) else { return };
        let name = group.main().map_or_else(String::new, |main| main.state.name.to_string());
        let topic_name = self.topics.get(&group.topic).map(|topic| topic.state.name.to_string());
        let refusal = refusals::deleted(&topic_name.unwrap_or_default(), &name);
        for (_, consumer) in group.members.iter() {
            self.totals.consumers -= 1;
            for pull in &consumer.pulls {
                self.pull_timers.remove(&(pull.until, pull.id));
                out.effect(consumer.session, Content::Reply(pull.request, Err(refusal.clone())));
            }
            if let Some(session) = self.sessions.get_mut(&consumer.session) {
                session.consumers.remove(&consumer.handle);
            }
            let closed = ConsumerClosed { consumer: consumer.handle, refusal: refusal.clone() };
            out.effect(consumer.session, Content::ConsumerClosed(closed));
        }
        self.unnote(&group);
        if let Some(topic) = self.topics.get_mut(&group.topic) {
            topic.groups.remove(name.as_str());
            topic.was_left = true;
            if topic.state.settings.temporary {
                self.look_at_topic(group.topic);
            }
        }
        // What it is a group of comes last: the others are its parts.
        let own = group.topic;
        let others: Vec<TopicId> = group.parts.keys().copied().filter(|topic| *topic != own).collect();
        for topic in others.into_iter().chain([own]) {
            self.forget_part(&mut group, topic, out);
        }
        let pattern = self.topics.get(&own).filter(|topic| topic.state.kind == TopicKind::Pattern);
        if pattern.is_some_and(|pattern| pattern.groups.is_empty()) {
            self.delete_topic(own, out);
        }
    }

    /// Forgets what a group has of a topic.
    pub(super) fn forget_part(&mut self, group: &mut Group, topic_id: TopicId, out: &mut Output) {
        let Some(part) = group.remove_part(topic_id) else { return };
        out.records.push(Record::GroupDeleted { group: part.id });
        self.dying.remove(&(group.id, topic_id));
        if let Some(topic) = self.topics.get_mut(&topic_id) {
            topic.holders.remove(&group.id);
            topic.garbage.group_gone();
            self.check_floor(topic_id);
        }
    }
}

/// Checks the settings that a group is to have.
pub(super) fn check_settings(settings: &GroupSettings) -> Result<(), Refusal> {
    if let Some(filter) = &settings.filter {
        check_filter(filter)?;
    }
    let backoff = &settings.backoff;
    let wrong = if !(LEASE_MS_MIN..=WAIT_MS_MAX).contains(&settings.lease_ms) {
        format!("a lease of {} ms: it must be {LEASE_MS_MIN} to {WAIT_MS_MAX} ms", settings.lease_ms)
    } else if !(MULTIPLIER_PERCENT_MIN..=MULTIPLIER_PERCENT_MAX).contains(&backoff.multiplier_percent) {
        format!(
            "a back-off multiplier of {} %: it must be {MULTIPLIER_PERCENT_MIN} to {MULTIPLIER_PERCENT_MAX} %",
            backoff.multiplier_percent
        )
    } else if backoff.jitter_percent > JITTER_PERCENT_MAX {
        format!(
            "a back-off jitter of {} %: it must be at most {JITTER_PERCENT_MAX} %",
            backoff.jitter_percent
        )
    } else if settings.priority_share < PRIORITY_SHARE_MIN {
        format!(
            "a priority share of {}: it must be at least {PRIORITY_SHARE_MIN}, which is every second message",
            settings.priority_share
        )
    } else if backoff.maximum_ms > WAIT_MS_MAX {
        format!("a longest back-off of {} ms: it must be at most {WAIT_MS_MAX} ms", backoff.maximum_ms)
    } else if backoff.initial_ms > backoff.maximum_ms {
        format!(
            "a first back-off of {} ms is above the longest, {} ms",
            backoff.initial_ms, backoff.maximum_ms
        )
    } else if let Lifetime::Idle(ms) = settings.lifetime
        && ms < IDLE_MS_MIN
    {
        format!("a group that goes after {ms} ms without a consumer: it must be at least {IDLE_MS_MIN} ms")
    } else {
        return Ok(());
    };
    Err(Refusal::new(ErrorCode::Invalid, wrong))
}

/// Reads a filter that somebody asks for.
pub(super) fn check_filter(text: &str) -> Result<Filter, Refusal> {
    Filter::parse(text).map_err(|error| refusals::invalid(&format!("the filter is wrong at {error}")))
}
