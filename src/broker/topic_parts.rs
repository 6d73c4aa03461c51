//! Parts of topics that no client names: the lanes of priorities, and the slots of what waits for a time.
//!
//! A part is a topic in all respects but its name. Whoever gets the messages of a topic gets those of its lanes: each
//! group of it has a part of its own for each lane. Slots have no groups: only the [schedule](super::schedule) reads
//! them.

use super::machine::Broker;
use super::part::Part;
use super::topic::Topic;
use super::{Content, Output};
use crate::model::id::{GroupId, Offset, TopicId};
use crate::model::record::Record;
use crate::model::settings::Start;
use crate::model::snapshot::{GroupState, TopicState};
use crate::model::topic_kind::TopicKind;
use crate::protocol::response::ConsumerTopicGone;

impl Broker {
    /// Where the messages of a priority of a topic are. Makes the lane where there is none.
    pub(super) fn lane(&mut self, whole: TopicId, priority: u8, out: &mut Output) -> Option<TopicId> {
        let topic = self.topics.get(&whole)?;
        if priority == 0 {
            return Some(whole);
        }
        if let Some(lane) = topic.lanes.get(&priority) {
            return Some(*lane);
        }
        let holders: Vec<GroupId> = topic.holders.iter().copied().collect();
        let lane = self.create_topic_part(TopicKind::Lane { of: whole, priority }, out)?;
        for group in holders {
            self.add_group_part(group, lane, Start::Earliest, out);
        }
        Some(lane)
    }

    /// Makes a part of a topic, empty and without groups.
    pub(super) fn create_topic_part(&mut self, kind: TopicKind, out: &mut Output) -> Option<TopicId> {
        let whole = self.topics.get(&kind.part_of()?)?;
        let (name, settings) = (whole.state.name.clone(), whole.state.settings.clone());
        let id = self.next.topic;
        self.next.topic = id.next();
        let state = TopicState::new(name.clone(), kind, settings.clone());
        out.records.push(Record::TopicCreated { topic: id, name, kind, settings });
        self.topics.insert(id, Topic::new(state));
        self.note_topic_part(id);
        Some(id)
    }

    /// Tells a topic that another one is a part of it.
    pub(super) fn note_topic_part(&mut self, id: TopicId) {
        let Some(kind) = self.topics.get(&id).map(|topic| topic.state.kind) else { return };
        let Some(whole) = kind.part_of().and_then(|whole| self.topics.get_mut(&whole)) else { return };
        match kind {
            TopicKind::Lane { priority, .. } => {
                whole.lanes.insert(priority, id);
            }
            TopicKind::Slot { .. } => {
                whole.slots.insert(id);
                self.schedule.add_slot(id, kind);
            }
            TopicKind::Named | TopicKind::Pattern => {}
        }
    }

    /// Deletes a part of a topic. Groups that have it forget what they have of it.
    pub(super) fn delete_topic_part(&mut self, id: TopicId, out: &mut Output) {
        self.forget_parts_of(id, out);
        self.uncount(id);
        let Some(topic) = self.topics.remove(&id) else { return };
        self.totals.take(topic.state.kind, topic.messages);
        if let Some(whole) = topic.state.kind.part_of().and_then(|whole| self.topics.get_mut(&whole)) {
            whole.lanes.retain(|_, lane| *lane != id);
            whole.slots.remove(&id);
        }
        self.schedule.forget(id, topic.state.kind);
        self.cache.remove_topic(id);
        out.records.push(Record::TopicDeleted { topic: id });
    }

    /// Has every group that gets messages of a topic, and is not its own, forget what it has of it.
    pub(super) fn forget_parts_of(&mut self, topic_id: TopicId, out: &mut Output) {
        let Some(topic) = self.topics.get(&topic_id) else { return };
        let holders: Vec<GroupId> = topic.holders.iter().copied().collect();
        for id in holders {
            if let Some(mut group) = self.groups.remove(&id) {
                self.forget_part(&mut group, topic_id, out);
                for slot in group.members.forget_topic(topic_id) {
                    let Some(consumer) = group.members.get_mut(slot) else { continue };
                    let gone = ConsumerTopicGone { consumer: consumer.handle, topic: topic_id };
                    out.effect(consumer.session, Content::ConsumerTopicGone(gone));
                }
                self.cycle.mark_consumers(&mut group);
                self.groups.insert(id, group);
                self.note(id);
            }
        }
    }

    /// Lets a group have the messages of one more topic, of all priorities.
    pub(super) fn add_group_part_with_lanes(
        &mut self,
        group: GroupId,
        topic: TopicId,
        start: Start,
        out: &mut Output,
    ) {
        let lanes = self.topics.get(&topic).into_iter().flat_map(|topic| topic.lanes.values());
        for part in [topic].into_iter().chain(lanes.copied()).collect::<Vec<TopicId>>() {
            self.add_group_part(group, part, start, out);
        }
    }

    /// Lets a group have the messages of one more topic.
    pub(super) fn add_group_part(
        &mut self,
        group_id: GroupId,
        topic_id: TopicId,
        start: Start,
        out: &mut Output,
    ) {
        let Some(topic) = self.topics.get_mut(&topic_id) else { return };
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        if group.parts.contains_key(&topic_id) {
            return;
        }
        let Some(name) = group.main().map(|main| main.state.name.clone()) else { return };
        let floor = floor_at(start, &topic.state);
        let (id, settings) = (self.next.group, group.settings.clone());
        self.next.group = id.next();
        out.records.push(Record::GroupCreated {
            group: id,
            topic: topic_id,
            name: name.clone(),
            settings: settings.clone(),
            floor,
            part_of: Some(group_id),
        });
        let mut state = GroupState::new(topic_id, name, settings, floor, &topic.state.removed);
        state.part_of = Some(group_id);
        let priority = topic.state.kind.priority();
        let part = Part::recover(id, state, priority, topic.state.end);
        group.add_part(part);
        topic.holders.insert(group_id);
        self.cycle.mark(group, topic_id);
        self.check_floor(topic_id);
    }
}

/// Where a group begins in a topic.
pub(super) fn floor_at(start: Start, topic: &TopicState) -> Offset {
    match start {
        Start::Earliest => topic.start,
        Start::Latest => topic.end,
        // Offsets are those of priority 0: of the others nothing is left out.
        Start::Offset(_) if topic.kind != TopicKind::Named => topic.start,
        Start::Offset(offset) => offset.clamp(topic.start, topic.end),
        Start::Time(at) => topic.marks.offset_about(at, topic.end).max(topic.start),
    }
}
