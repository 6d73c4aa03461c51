//! What the broker has stored, checked record by record against what the model knows.

use std::collections::BTreeSet;

use batonmq::model::chunk::Origin;
use batonmq::model::id::{GroupId, Offset, Sequence, TopicId};
use batonmq::model::message::Message;
use batonmq::model::position::Position;
use batonmq::model::record::{Published, Record};
use batonmq::model::retry::{Retry, ReturnReason};
use batonmq::model::settings::{GroupSettings, Lifetime, Policy};
use batonmq::model::snapshot::{GroupState, TopicState};
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::TopicKind;

use super::{Known, Stored, World};

impl World {
    pub fn note_removed(&mut self, records: &[Record]) {
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
    pub fn check_slots_stay(&self, records: &[Record]) {
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
    pub fn check_lifetime(&self, record: &Record) {
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

    pub fn check_record(&mut self, record: &Record, dead_now: &mut BTreeSet<(GroupId, u64)>) {
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
                self.sizes.remove(topic);
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
    pub fn is_replayed_elsewhere(&self, part: GroupId, offset: u64) -> bool {
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
    pub fn is_dropped(&self, group: GroupId, offset: u64) -> bool {
        offset < self.fold.topics[&self.fold.groups[&group].topic].start.0
    }

    /// A group is done with a message that is gone: it was not in flight, or came back, or was recalled.
    pub fn forget_dropped(&mut self, group: GroupId, offset: u64) {
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

    /// What goes from the front of a topic is settled by all, or more than the topic is to keep.
    pub fn check_trimmed(&self, topic: TopicId, start: Offset) {
        let whole = self.whole_topic(topic);
        let settings = &self.fold.topics[&whole].settings;
        let groups: Vec<_> = self.fold.groups.iter().filter(|(_, group)| group.topic == topic).collect();
        let gone: Vec<_> = self.store.get(&topic).into_iter().flat_map(|all| all.range(..start.0)).collect();
        let too_much = self.is_too_much(whole, gone.iter().map(|(_, stored)| *stored));
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

    pub fn check_published(&mut self, published: &Published, dead_now: &mut BTreeSet<(GroupId, u64)>) {
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
                self.sizes.entry(*topic).or_default().insert(message.encoded_len() as u64);
                let stored = Stored { message: message.clone(), published_at: published.at, origin };
                self.store.entry(*topic).or_default().insert(first.0 + index as u64, stored);
            }
        }
    }

    pub fn check_dead(&mut self, message: &Message, dead_now: &mut BTreeSet<(GroupId, u64)>) {
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
        // Letters lie in one order; the priority is kept for the replay.
        let priority = message.header("baton.dead.priority").map(|_| text("baton.dead.priority"));
        let had = (position.priority > 0).then(|| position.priority.to_string());
        assert_eq!((message.priority, priority), (0, had));
        assert_eq!(text("baton.dead.published-at"), original.published_at.to_string());
        assert!(self.dead.insert((*group, offset)), "dead twice: {group} {offset}");
        dead_now.insert((*group, offset));
    }

    pub fn check_returned(&mut self, group: GroupId, offset: u64, retry: &Retry) {
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

    pub fn first_below(&self, topic: TopicId, start: u64) -> Option<u64> {
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
    pub fn is_superseded(&self, topic: TopicId, offset: u64) -> bool {
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
    pub fn is_superseded_for(&self, group: GroupId, offset: u64) -> bool {
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
    pub fn is_expired(&self, group: GroupId, offset: u64) -> bool {
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
    pub fn is_unwanted(&self, part: GroupId, offset: u64) -> bool {
        let Some(filters) = self.filters_had.get(&self.whole(part)) else { return false };
        let topic = self.fold.groups[&part].topic;
        let stored = self.store.get(&topic).and_then(|stored| stored.get(&offset));
        let Some(message) = stored.map(|stored| &stored.message) else { return false };
        filters.iter().any(|text| self.filters.get(text).is_none_or(|matches| !matches(message)))
    }

    /// Takes note of the filter that a group has from now on.
    pub fn note_filter(&mut self, group: GroupId, settings: &GroupSettings) {
        self.filters_had.entry(group).or_default().extend(settings.filter.clone());
    }

    pub fn is_settled(&self, group: GroupId, offset: u64) -> bool {
        self.fold
            .groups
            .get(&group)
            .is_some_and(|state| offset < state.floor.0 || state.settled.contains(Offset(offset)))
    }
}
