//! Consumers joining and leaving groups, and groups coming and going.

use super::consumer::Consumer;
use super::group::Group;
use super::machine::{AutoCreate, Broker};
use super::{Content, Ending, Output, refusals};
use crate::model::id::{GroupId, Offset, SessionId, TopicId};
use crate::model::name::Name;
use crate::model::record::Record;
use crate::model::settings::{
    GroupSettings, JITTER_PERCENT_MAX, LEASE_MS_MIN, MULTIPLIER_PERCENT_MAX, MULTIPLIER_PERCENT_MIN, Start,
    WAIT_MS_MAX,
};
use crate::model::snapshot::GroupState;
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
        let known = self.topic_names.get(request.topic.as_str()).and_then(|topic| self.topics.get(topic));
        let known = known.and_then(|topic| topic.groups.get(&name)).copied();
        let settings = request.settings.unwrap_or_default();
        if known.is_none() && self.creation == AutoCreate::Allowed {
            check_settings(&settings)?;
        }
        let topic = self.topic_on_use(&request.topic, out)?;
        let id = match (known, self.creation) {
            (Some(id), _) => id,
            (None, AutoCreate::Allowed) => self.create_group(topic, name, settings, request.start, out)?,
            (None, AutoCreate::Refused) => {
                return Err(refusals::unknown_group(&request.topic, &request.group));
            }
        };
        let window = self.capped(request.window);
        let group = self.groups.get_mut(&id).ok_or_else(refusals::no_session)?;
        let mut consumer = Consumer::new(session, request.consumer, window);
        consumer.paused = paused;
        let slot = group.join(consumer);
        self.cycle.mark(group);
        self.totals.consumers += 1;
        let settings = group.state.settings.clone();
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
        if let Some(consumer) = group.consumer_mut(slot) {
            consumer.window = window;
            consumer.stuck = false;
        }
        group.refresh(slot);
        self.cycle.mark(group);
    }

    pub(super) fn unsubscribe(&mut self, session: SessionId, request: &Unsubscribe, out: &mut Output) {
        let removed =
            self.sessions.get_mut(&session).and_then(|state| state.consumers.remove(&request.consumer));
        let done = match removed {
            Some((id, slot)) => {
                // Pulls still waiting are over.
                if let Some(consumer) = self.groups.get(&id).and_then(|group| group.consumer(slot)) {
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
        let max = self.limits.groups_max;
        if self.groups.len() as u64 >= max {
            return Err(refusals::limit("groups_max", max, "groups"));
        }
        let topic = self.topics.get_mut(&topic_id).ok_or_else(refusals::no_session)?;
        let (first, end) = (topic.state.start, topic.state.end);
        let floor = match start {
            Start::Earliest => first,
            Start::Latest => end,
            Start::Offset(offset) => Offset(offset.0.clamp(first.0, end.0)),
        };
        let id = self.next.group;
        self.next.group = id.next();
        out.records.push(Record::GroupCreated {
            group: id,
            topic: topic_id,
            name: name.clone(),
            settings: settings.clone(),
            floor,
        });
        topic.groups.insert(name.clone(), id);
        let state = GroupState::new(topic_id, name, settings, floor, &topic.state.removed);
        self.groups.insert(id, Group::recover(id, state, end));
        self.check_floor(topic_id);
        Ok(id)
    }

    /// Deletes a group with its progress; its consumers are told.
    pub(super) fn delete_group(&mut self, id: GroupId, out: &mut Output) {
        let Some(group) = self.groups.remove(&id) else { return };
        let topic_id = group.state.topic;
        let mut topic_name = String::new();
        if let Some(topic) = self.topics.get_mut(&topic_id) {
            topic.groups.remove(&group.state.name);
            topic.garbage.group_gone();
            topic_name = topic.state.name.to_string();
        }
        let refusal = refusals::deleted(&topic_name, group.state.name.as_str());
        for (_, consumer) in group.consumers() {
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
        self.dying_groups.remove(&id);
        out.records.push(Record::GroupDeleted { group: id });
        self.check_floor(topic_id);
    }
}

/// Checks the settings that a group is to have.
pub(super) fn check_settings(settings: &GroupSettings) -> Result<(), Refusal> {
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
    } else if backoff.maximum_ms > WAIT_MS_MAX {
        format!("a longest back-off of {} ms: it must be at most {WAIT_MS_MAX} ms", backoff.maximum_ms)
    } else if backoff.initial_ms > backoff.maximum_ms {
        format!(
            "a first back-off of {} ms is above the longest, {} ms",
            backoff.initial_ms, backoff.maximum_ms
        )
    } else {
        return Ok(());
    };
    Err(Refusal::new(ErrorCode::Invalid, wrong))
}
