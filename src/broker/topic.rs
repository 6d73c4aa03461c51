//! Topics: creating and finding them, appending to them, dropping what every group is done with.

use std::collections::{BTreeMap, BTreeSet};

use super::garbage::Garbage;
use super::holdings::Holdings;
use super::machine::{AutoCreate, Broker};
use super::rate::Rate;
use super::refusals;
use super::waiting_line::WaitingLine;
use super::{Content, Output};
use crate::model::chunk::Stamp;
use crate::model::header::REPLY_TOPIC_PREFIX;
use crate::model::id::{GroupId, Offset, OffsetRange, SessionId, TopicId};
use crate::model::message::MessageBlock;
use crate::model::name::Name;
use crate::model::pattern::is_pattern;
use crate::model::record::{Published, Record, Source};
use crate::model::settings::TopicSettings;
use crate::model::snapshot::{GroupState, TopicState};
use crate::model::time::Timestamp;
use crate::model::topic_kind::TopicKind;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::FindTopic;
use crate::protocol::response::Reply;

/// Messages that are dropped together, unless none is left.
const TRIM_STEP: u64 = 256;

/// Bytes that a store may need for a message beside what it is.
pub(super) const MESSAGE_COST: u64 = 64;
/// Bytes that a store may need for what is appended together.
pub(super) const APPEND_COST: u64 = 256;

/// Bytes of a note of messages that will expire.
const NOTE_BYTES: u64 = 64;

/// Bytes that a store may need for the messages.
pub(super) fn stored_bytes(block: &MessageBlock) -> u64 {
    block.bytes().len() as u64 + block.count() as u64 * MESSAGE_COST + APPEND_COST
}

/// Bytes that a store may need for one message of so many bytes that is appended by itself.
pub(super) fn appended_bytes(bytes: usize) -> u64 {
    bytes as u64 + MESSAGE_COST + APPEND_COST
}

/// Bytes that a store may need beside that for messages that go to different places, and for what is noted of them: at
/// worst each of them, and a note of each, is appended by itself.
pub(super) fn scattered_bytes(block: &MessageBlock) -> u64 {
    if !block.is_scheduled() {
        return 0;
    }
    block.count() as u64 * (2 * APPEND_COST + MESSAGE_COST + NOTE_BYTES)
}

/// Whether messages that are appended are held in memory for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    InMemory,
    /// They will be read when they are wanted.
    OnDisk,
}

/// A topic.
#[derive(Debug)]
pub(super) struct Topic {
    /// What is durable.
    pub state: TopicState,
    /// Its groups.
    pub groups: BTreeMap<Name, GroupId>,
    /// Groups that get its messages: its own, and those of which it is one topic among others.
    pub holders: BTreeSet<GroupId>,
    /// The topics with its messages of each priority but 0.
    pub lanes: BTreeMap<u8, TopicId>,
    /// The topics with what of it waits for a time.
    pub slots: BTreeSet<TopicId>,
    /// Every group is done with what is below; the lowest floor of all groups when it was last looked at.
    pub floor: Offset,
    /// What was settled since the middle was last looked at.
    pub garbage: Garbage,
    /// Messages appended to it.
    pub published: Rate,
    /// Whether it is on the list of topics that got messages in this cycle.
    pub fresh: bool,
    /// Whether it is on the list of topics whose lowest floor may have changed in this cycle.
    pub floor_moved: bool,
    /// Messages that are there.
    pub messages: u64,
    /// What of it is in the total of the topic that it is, or is a part of.
    pub counted: Holdings,
    /// What it holds with its parts. Of a part, nothing.
    pub total: Holdings,
    /// Whether it is on the list of topics to look at: what they hold has changed, or time has passed.
    pub to_look_at: bool,
    /// Producers that wait for room in it.
    pub line: WaitingLine,
    /// When it is looked at by itself.
    pub timer: Option<Timestamp>,
    /// Before this no message is looked for that is too old.
    pub next_look: Option<Timestamp>,
    /// When the message at this offset was published, where that came up.
    pub oldest: Option<(Offset, Timestamp)>,
    /// Whether messages that are too old are being looked for.
    pub is_searched: bool,
    /// When it was made, or a producer last published to it.
    pub used_at: Timestamp,
    /// Whether its last group is gone.
    pub was_left: bool,
}

impl Topic {
    pub fn new(state: TopicState) -> Self {
        let (floor, garbage) = (state.start, Garbage::default());
        Self {
            messages: state.message_count(),
            used_at: state.marks.last_at(),
            state,
            groups: BTreeMap::new(),
            holders: BTreeSet::new(),
            lanes: BTreeMap::new(),
            slots: BTreeSet::new(),
            floor,
            garbage,
            published: Rate::default(),
            fresh: false,
            floor_moved: false,
            counted: Holdings::default(),
            total: Holdings::default(),
            to_look_at: false,
            line: WaitingLine::default(),
            timer: None,
            next_look: None,
            oldest: None,
            is_searched: false,
            was_left: false,
        }
    }

    /// Whether clients may publish to it.
    pub fn takes_messages(&self) -> bool {
        self.state.kind == TopicKind::Named
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
        if let Some(id) = self.topic_names.get(name)
            && self.topics.get(id).is_some_and(Topic::takes_messages)
        {
            return Ok(*id);
        }
        if is_pattern(name) {
            let text = format!("{name} is a pattern: publish to a topic by its own name");
            return Err(Refusal::new(ErrorCode::Invalid, text));
        }
        let name = Name::new(name).map_err(|error| refusals::invalid(&error))?;
        match self.creation {
            _ if name.as_str().starts_with(REPLY_TOPIC_PREFIX) => Err(refusals::unknown_topic(name.as_str())),
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
        self.check_pattern_room(&[&name])?;
        let id = self.create_topic_of_kind(TopicKind::Named, name.clone(), settings, out)?;
        self.add_to_patterns(id, &name, out);
        Ok(id)
    }

    /// Makes a topic that has a name of its own; there is none of that name.
    pub(super) fn create_topic_of_kind(
        &mut self,
        kind: TopicKind,
        name: Name,
        settings: TopicSettings,
        out: &mut Output,
    ) -> Result<TopicId, Refusal> {
        debug_assert!(!self.topic_names.contains_key(&name));
        let max = self.limits.topics_max;
        if self.topic_names.len() as u64 >= max {
            return Err(refusals::limit("topics_max", max, "topics"));
        }
        let id = self.next.topic;
        self.next.topic = id.next();
        let state = TopicState::new(name.clone(), kind, settings.clone());
        out.records.push(Record::TopicCreated { topic: id, name: name.clone(), kind, settings });
        let mut topic = Topic::new(state);
        topic.used_at = self.now;
        let is_temporary = topic.state.settings.temporary;
        self.topics.insert(id, topic);
        self.topic_names.insert(name, id);
        if is_temporary {
            self.look_at_topic(id);
        }
        Ok(id)
    }

    /// Deletes a topic with its groups and messages.
    pub(super) fn delete_topic(&mut self, id: TopicId, out: &mut Output) {
        let Some(topic) = self.topics.get_mut(&id) else { return };
        let groups: Vec<GroupId> = topic.groups.values().copied().collect();
        let name = topic.state.name.clone();
        let parts: Vec<TopicId> = topic.lanes.values().chain(&topic.slots).copied().collect();
        for group in groups {
            self.delete_group(group, out);
        }
        if !self.topics.contains_key(&id) {
            // A pattern goes with its last group.
            return;
        }
        for part in parts {
            self.delete_topic_part(part, out);
        }
        self.forget_parts_of(id, out);
        self.forget_routes_of(id, out);
        self.topic_names.remove(&name);
        if self.patterns.remove(&id).is_none() {
            self.remove_from_patterns(&name);
        }
        self.call_all_producers(id, out);
        if let Some(topic) = self.topics.remove(&id) {
            self.totals.take(topic.state.kind, topic.messages);
            if let Some(timer) = topic.timer {
                self.topic_timers.remove(&(timer, id));
            }
        }
        self.cache.remove_topic(id);
        out.records.push(Record::TopicDeleted { topic: id });
    }

    /// Why messages for this topic cannot be taken.
    pub(super) fn missing_topic(&self, id: TopicId) -> Refusal {
        if self.topics.contains_key(&id) {
            let text = format!("topic {id} is no topic to publish to; ask for the name of one");
            return Refusal::new(ErrorCode::Invalid, text);
        }
        if id < self.next.topic {
            return Refusal::new(
                ErrorCode::Deleted,
                format!("topic {id} was deleted; ask for its name again"),
            );
        }
        Refusal::new(ErrorCode::UnknownTopic, format!("there is no topic {id}; ask for its name first"))
    }

    /// Appends messages to a topic. Nothing happens where it is gone.
    pub(super) fn append(&mut self, id: TopicId, block: MessageBlock, source: Source, out: &mut Output) {
        self.append_to(&[id], block, source, Keep::InMemory, out);
    }

    /// Appends the same messages to several topics, which share them, and says whether they are wanted soon. Those that
    /// are gone get none.
    pub(super) fn append_to(
        &mut self,
        ids: &[TopicId],
        block: MessageBlock,
        source: Source,
        keep: Keep,
        out: &mut Output,
    ) {
        for &id in ids {
            if let Some(topic) = self.topics.get(&id).filter(|topic| topic.keeps_last_values()) {
                self.last_values.published(id, topic.state.end, &block, self.now);
            }
        }
        self.append_kept(ids, block, source, keep, out);
    }

    /// Appends messages that are in the topic already, and are dropped where they are.
    pub(super) fn append_again(
        &mut self,
        id: TopicId,
        block: MessageBlock,
        source: Source,
        out: &mut Output,
    ) {
        self.append_kept(&[id], block, source, Keep::InMemory, out);
    }

    fn append_kept(
        &mut self,
        ids: &[TopicId],
        block: MessageBlock,
        source: Source,
        keep: Keep,
        out: &mut Output,
    ) {
        let (count, published_at) = (block.count() as u64, self.now);
        let origins = source.origins(count as u32);
        let stamps: Vec<Stamp> =
            origins.map(|(count, origin)| Stamp { count, published_at, origin }).collect();
        let mut targets = Vec::with_capacity(ids.len());
        for &id in ids {
            let Some(topic) = self.topics.get_mut(&id) else { continue };
            let first = topic.state.end;
            topic.state.append(count, block.bytes().len() as u64, self.now);
            topic.garbage.seen(&block);
            topic.published.add(self.now, count);
            topic.messages += count;
            self.totals.add(topic.state.kind, count);
            if !topic.fresh {
                topic.fresh = true;
                self.cycle.fresh_topics.push(id);
            }
            if keep == Keep::InMemory {
                self.cache.insert(id, first, block.clone(), &stamps);
            }
            targets.push((id, first));
        }
        if targets.is_empty() {
            return;
        }
        self.time = self.time.max(self.now);
        targets.iter().for_each(|(id, _)| self.recount(*id));
        out.records.push(Record::Published(Published { targets, source, at: self.now, block }));
    }

    /// Drops messages of a topic that nobody is to get any more. The ranges are there, in order and apart.
    pub(super) fn drop_messages(&mut self, id: TopicId, ranges: Vec<OffsetRange>, out: &mut Output) {
        let Some(topic) = self.topics.get_mut(&id) else { return };
        if ranges.is_empty() {
            return;
        }
        let mut merged: Vec<OffsetRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            self.totals.take(topic.state.kind, range.len());
            topic.messages -= range.len();
            topic.state.removed.insert(range);
            match merged.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => merged.push(range),
            }
        }
        let start =
            topic.state.removed.range_at(topic.state.start).map_or(topic.state.start, |range| range.end);
        merged.retain(|range| range.start >= start);
        if !merged.is_empty() {
            out.records.push(Record::Removed { topic: id, ranges: merged });
        }
        if start > topic.state.start {
            topic.state.trim(start);
            self.cache.trim(id, start);
            out.records.push(Record::Trimmed { topic: id, start });
        }
        self.recount(id);
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

    /// Drops what all groups of a topic are done with: in steps, or all there is. Without a group nothing goes, and
    /// where settled messages are kept.
    pub(super) fn trim(&mut self, id: TopicId, out: &mut Output) {
        let whole = self.whole_of(id);
        let goes = self.topics.get(&whole).is_some_and(|whole| whole.state.settings.retention.acked);
        let Some(topic) = self.topics.get_mut(&id) else { return };
        topic.floor_moved = false;
        let holders = topic.holders.iter().filter_map(|group| self.groups.get(group)?.parts.get(&id));
        let groups = holders.map(|part| &part.state);
        let groups: Vec<&GroupState> = groups.collect();
        let Some(floor) = groups.iter().map(|group| group.floor).min() else {
            topic.floor = topic.state.start;
            return;
        };
        topic.floor = floor;
        if !goes {
            topic.garbage.forget();
            return;
        }
        let pinned_max = self.limits.pinned_bytes_max;
        let mut ranges = if topic.garbage.may_be_much(pinned_max) {
            topic.garbage.find(pinned_max, &topic.state, &groups)
        } else {
            Vec::new()
        };
        let gone = floor.0.saturating_sub(topic.state.start.0);
        if gone >= TRIM_STEP || (gone > 0 && (floor == topic.state.end || !ranges.is_empty())) {
            let gone = topic.state.message_count_below(floor);
            topic.messages -= gone;
            self.totals.take(topic.state.kind, gone);
            topic.state.trim(floor);
            self.cache.trim(id, floor);
            out.records.push(Record::Trimmed { topic: id, start: floor });
            ranges.retain(|range| range.start >= floor);
        }
        if !ranges.is_empty() {
            for &range in &ranges {
                topic.state.removed.insert(range);
                topic.messages -= range.len();
                self.totals.take(topic.state.kind, range.len());
            }
            out.records.push(Record::Removed { topic: id, ranges });
        }
        if topic.garbage.may_be_much(pinned_max) {
            self.work_left = true;
            self.check_floor(id);
        }
        self.recount(id);
    }
}
