//! Topics: creating and finding them, appending to them, dropping what every group is done with.

use std::collections::BTreeMap;

use super::garbage::Garbage;
use super::machine::{AutoCreate, Broker};
use super::refusals;
use super::{Content, Output};
use crate::model::chunk::{Origin, Stamp};
use crate::model::id::{GroupId, Offset, SessionId, TopicId};
use crate::model::message::MessageBlock;
use crate::model::name::Name;
use crate::model::record::{Published, Record};
use crate::model::settings::TopicSettings;
use crate::model::snapshot::{GroupState, TopicState};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::FindTopic;
use crate::protocol::response::Reply;

/// Messages that are dropped together, unless none is left.
const TRIM_STEP: u64 = 256;

/// Bytes that a store may need for a message beside what it is.
const MESSAGE_COST: u64 = 64;
/// Bytes that a store may need for what is appended together.
const APPEND_COST: u64 = 256;

/// Bytes that a store may need for the messages.
pub(super) fn stored_bytes(block: &MessageBlock) -> u64 {
    block.bytes().len() as u64 + block.count() as u64 * MESSAGE_COST + APPEND_COST
}

/// A topic.
#[derive(Debug)]
pub(super) struct Topic {
    /// What is durable.
    pub state: TopicState,
    /// Its groups.
    pub groups: BTreeMap<Name, GroupId>,
    /// Every group is done with what is below; the lowest floor of all groups when it was last looked at.
    pub floor: Offset,
    /// What was settled since the middle was last looked at.
    pub garbage: Garbage,
    /// Whether it is on the list of topics that got messages in this cycle.
    pub fresh: bool,
    /// Whether it is on the list of topics whose lowest floor may have changed in this cycle.
    pub floor_moved: bool,
}

impl Topic {
    pub fn new(state: TopicState) -> Self {
        let (floor, groups, garbage) = (state.start, BTreeMap::new(), Garbage::default());
        Self { state, groups, floor, garbage, fresh: false, floor_moved: false }
    }
}

impl Broker {
    /// The id of a topic, which is created if it may be.
    pub(super) fn find_topic(&mut self, session: SessionId, request: &FindTopic, out: &mut Output) {
        let found = self.topic_on_use(&request.name, out).map(|id| Reply::Topic { id });
        out.effect(session, Content::Reply(request.request, found));
    }

    /// The topic that somebody uses by its name.
    pub(super) fn topic_on_use(&mut self, name: &str, out: &mut Output) -> Result<TopicId, Refusal> {
        if let Some(id) = self.topic_names.get(name) {
            return Ok(*id);
        }
        let name = Name::new(name).map_err(|error| refusals::invalid(&error))?;
        match self.creation {
            AutoCreate::Allowed => self.create_topic(name, TopicSettings::default(), out),
            AutoCreate::Refused => Err(refusals::unknown_topic(name.as_str())),
        }
    }

    /// Makes a topic; there is none of that name.
    pub(super) fn create_topic(
        &mut self,
        name: Name,
        settings: TopicSettings,
        out: &mut Output,
    ) -> Result<TopicId, Refusal> {
        debug_assert!(!self.topic_names.contains_key(&name));
        let max = self.limits.topics_max;
        if self.topics.len() as u64 >= max {
            return Err(refusals::limit("topics_max", max, "topics"));
        }
        let id = self.next.topic;
        self.next.topic = id.next();
        out.records.push(Record::TopicCreated { topic: id, name: name.clone(), settings: settings.clone() });
        self.topics.insert(id, Topic::new(TopicState::new(name.clone(), settings)));
        self.topic_names.insert(name, id);
        Ok(id)
    }

    /// Deletes a topic with its groups and messages.
    pub(super) fn delete_topic(&mut self, id: TopicId, out: &mut Output) {
        let Some(topic) = self.topics.get_mut(&id) else { return };
        let groups: Vec<GroupId> = topic.groups.values().copied().collect();
        let name = topic.state.name.clone();
        for group in groups {
            self.delete_group(group, out);
        }
        self.topic_names.remove(&name);
        if let Some(topic) = self.topics.remove(&id) {
            self.totals.messages -= topic.state.message_count();
        }
        self.cache.remove_topic(id);
        out.records.push(Record::TopicDeleted { topic: id });
    }

    /// Why messages for this topic cannot be taken.
    pub(super) fn missing_topic(&self, id: TopicId) -> Refusal {
        if id < self.next.topic {
            return Refusal::new(
                ErrorCode::Deleted,
                format!("topic {id} was deleted; ask for its name again"),
            );
        }
        Refusal::new(ErrorCode::UnknownTopic, format!("there is no topic {id}; ask for its name first"))
    }

    /// Appends messages to a topic. Nothing happens where it is gone.
    pub(super) fn append(
        &mut self,
        id: TopicId,
        block: MessageBlock,
        origin: Option<Origin>,
        out: &mut Output,
    ) {
        let Some(topic) = self.topics.get_mut(&id) else { return };
        let (first, count) = (topic.state.end, block.count() as u64);
        topic.state.end.0 += count;
        topic.garbage.seen(&block);
        self.totals.messages += count;
        self.time = self.time.max(self.now);
        if !topic.fresh {
            topic.fresh = true;
            self.cycle.fresh_topics.push(id);
        }
        let stamp = Stamp { count: count as u32, published_at: self.now, origin };
        self.cache.insert(id, first, block.clone(), &[stamp]);
        let published = Published { targets: vec![(id, first)], origin, at: self.now, block };
        out.records.push(Record::Published(published));
    }

    /// Has the lowest floor of a topic's groups looked for when the cycle ends.
    pub(super) fn check_floor(&mut self, id: TopicId) {
        if let Some(topic) = self.topics.get_mut(&id)
            && !topic.floor_moved
        {
            topic.floor_moved = true;
            self.cycle.floor_moved.push(id);
        }
    }

    /// Drops what all groups of a topic are done with: in steps, or all there is. Without a group nothing goes.
    pub(super) fn trim(&mut self, id: TopicId, out: &mut Output) {
        let Some(topic) = self.topics.get_mut(&id) else { return };
        topic.floor_moved = false;
        let groups = topic.groups.values().filter_map(|group| Some(&self.groups.get(group)?.state));
        let groups: Vec<&GroupState> = groups.collect();
        let Some(floor) = groups.iter().map(|group| group.floor).min() else {
            topic.floor = topic.state.start;
            return;
        };
        topic.floor = floor;
        let pinned_max = self.limits.pinned_bytes_max;
        let mut ranges = if topic.garbage.may_be_much(pinned_max) {
            topic.garbage.find(pinned_max, &topic.state, &groups)
        } else {
            Vec::new()
        };
        let gone = floor.0.saturating_sub(topic.state.start.0);
        if gone >= TRIM_STEP || (gone > 0 && (floor == topic.state.end || !ranges.is_empty())) {
            self.totals.messages -= topic.state.message_count_below(floor);
            topic.state.trim(floor);
            self.cache.trim(id, floor);
            out.records.push(Record::Trimmed { topic: id, start: floor });
            ranges.retain(|range| range.start >= floor);
        }
        if !ranges.is_empty() {
            for &range in &ranges {
                topic.state.removed.insert(range);
                self.totals.messages -= range.len();
            }
            out.records.push(Record::Removed { topic: id, ranges });
        }
        if topic.garbage.may_be_much(pinned_max) {
            self.work_left = true;
            self.check_floor(id);
        }
    }
}
