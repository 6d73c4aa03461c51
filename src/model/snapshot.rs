//! The durable state without the messages: what a store recovers and the broker starts from.
//!
//! A snapshot is the fold of all records ([`Snapshot::apply`]). It holds catalog, progress and producers, and no
//! body: its size depends on what exists and what is in flight, not on the backlog.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::id::{GroupId, Offset, OffsetRange, ProducerId, RouteId, Sequence, TopicId};
use super::marks::Marks;
use super::name::Name;
use super::range_map::RangeMap;
use super::ranges::RangeSet;
use super::record::{Published, Record, Source};
use super::retry::Retry;
use super::route::Route;
use super::settings::{GroupSettings, TopicSettings};
use super::time::Timestamp;
use super::topic_kind::TopicKind;

/// The durable state of a store, without messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Living topics.
    pub topics: BTreeMap<TopicId, TopicState>,
    /// Living groups.
    pub groups: BTreeMap<GroupId, GroupState>,
    /// Producers that are remembered.
    pub producers: BTreeMap<ProducerId, ProducerState>,
    /// Living routes.
    pub routes: BTreeMap<RouteId, Route>,
    /// The ids that the next topic, group, producer and route get.
    pub next: NextIds,
    /// Highest store time in any record.
    pub time: Timestamp,
}

/// The ids that are handed out next. Kept apart from what exists, so that no id is used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextIds {
    /// Id of the next topic.
    pub topic: TopicId,
    /// Id of the next group.
    pub group: GroupId,
    /// Id of the next producer.
    pub producer: ProducerId,
    /// Id of the next route.
    pub route: RouteId,
}

/// Durable state of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicState {
    /// Its name; of a part, that of the topic it is a part of.
    pub name: Name,
    /// What it is.
    pub kind: TopicKind,
    /// Its settings; of a part, what its topic had when it was made, and of no meaning.
    pub settings: TopicSettings,
    /// First offset that is still there.
    pub start: Offset,
    /// Offset that the next message gets.
    pub end: Offset,
    /// What is gone above the start.
    pub removed: RangeSet,
    /// How it has grown.
    pub marks: Marks,
}

/// Durable state of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// The topic whose messages it gets.
    pub topic: TopicId,
    /// Its name; of a part, that of the group it is a part of.
    pub name: Name,
    /// The group that this is a part of, where it is one: what that has of another topic.
    pub part_of: Option<GroupId>,
    /// Its settings; of a part, what its group had when it was made, and of no meaning.
    pub settings: GroupSettings,
    /// Every offset below is settled; the offset itself is not.
    pub floor: Offset,
    /// What is settled above the floor.
    pub settled: RangeSet,
    /// What was handed out in vain and is not settled.
    pub retries: RangeMap<Retry>,
    /// First offset that was certainly not handed out.
    pub handed_out: Offset,
}

/// Durable state of a producer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerState {
    /// Its name.
    pub name: Name,
    /// Number of its last message in the store; 0 for none.
    pub last: Sequence,
    /// When it was opened or last published.
    pub seen_at: Timestamp,
}

/// A record that does not fit the state before it. The store that holds it is damaged, or there is a bug.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The record speaks of something that does not exist.
    #[error("record names a {kind} {id} that does not exist")]
    Unknown {
        /// Topic, group, producer or route.
        kind: &'static str,
        /// Its id.
        id: u64,
    },
    /// The record creates something under an id that is not the next one.
    #[error("record creates {kind} {id} where {expected} is next")]
    NotNext {
        /// Topic, group, producer or route.
        kind: &'static str,
        /// The id in the record.
        id: u64,
        /// The id that is next.
        expected: u64,
    },
    /// Messages do not follow the end of their topic.
    #[error("messages of topic {topic} start at offset {first} where {expected} is next")]
    OffsetGap {
        /// The topic.
        topic: TopicId,
        /// Offset of the first message.
        first: Offset,
        /// End of the topic.
        expected: Offset,
    },
    /// Messages do not follow the producer's last one.
    #[error("messages of producer {producer} start with sequence {first} where {expected} is next")]
    SequenceGap {
        /// The producer.
        producer: ProducerId,
        /// Sequence of the first message.
        first: Sequence,
        /// The sequence that is next.
        expected: Sequence,
    },
    /// An offset is not one that the topic has.
    #[error("record of group {group} names offsets {range}, its topic ends at {end}")]
    BeyondEnd {
        /// The group.
        group: GroupId,
        /// The offsets.
        range: OffsetRange,
        /// End of the topic.
        end: Offset,
    },
    /// It is not said of each message who published it.
    #[error("a record has {count} messages, and says of others where they come from")]
    Source {
        /// Messages of the record.
        count: u64,
    },
    /// What is to be used for other times is no slot, or holds something.
    #[error("record uses topic {topic} for other times, which is no slot without messages")]
    NoEmptySlot {
        /// The topic.
        topic: TopicId,
    },
    /// Messages that are to be removed are not in the topic.
    #[error("record removes messages {range} of topic {topic}, which has {start} to {end}")]
    NotThere {
        /// The topic.
        topic: TopicId,
        /// The offsets.
        range: OffsetRange,
        /// Start of the topic.
        start: Offset,
        /// End of the topic.
        end: Offset,
    },
}

impl Snapshot {
    /// Changes the state as the record says.
    ///
    /// # Errors
    /// Where the record does not fit; the state is then not to be used.
    pub fn apply(&mut self, record: &Record) -> Result<(), SnapshotError> {
        match record {
            Record::TopicCreated { topic, name, kind, settings } => {
                expect_next("topic", topic.0, self.next.topic.0)?;
                if let Some(whole) = kind.part_of() {
                    self.topic(whole)?;
                }
                self.next.topic = topic.next();
                let (name, settings) = (name.clone(), settings.clone());
                self.topics.insert(*topic, TopicState::new(name, *kind, settings));
            }
            Record::TopicChanged { topic, settings } => self.topic(*topic)?.settings = settings.clone(),
            Record::SlotMoved { slot, from, until } => {
                let state = self.topic(*slot)?;
                let moved = state.kind.moved_to(*from, *until).filter(|_| state.start == state.end);
                state.kind = moved.ok_or(SnapshotError::NoEmptySlot { topic: *slot })?;
            }
            Record::TopicDeleted { topic } => {
                self.topics.remove(topic).ok_or_else(|| unknown("topic", topic.0))?;
            }
            Record::GroupCreated { group, topic, name, settings, floor, part_of } => {
                expect_next("group", group.0, self.next.group.0)?;
                if let Some(whole) = part_of {
                    self.group(*whole)?;
                }
                let removed = &self.topic(*topic)?.removed;
                let mut state = GroupState::new(*topic, name.clone(), settings.clone(), *floor, removed);
                state.part_of = *part_of;
                self.next.group = group.next();
                self.groups.insert(*group, state);
            }
            Record::GroupChanged { group, settings } => self.group(*group)?.settings = settings.clone(),
            Record::GroupSought { group, floor } => {
                let topic = self.group(*group)?.topic;
                let (removed, end) = (self.topic(topic)?.removed.clone(), self.topic(topic)?.end);
                if *floor > end {
                    let range = OffsetRange { start: *floor, end: *floor };
                    return Err(SnapshotError::BeyondEnd { group: *group, range, end });
                }
                self.group(*group)?.seek(*floor, &removed);
            }
            Record::GroupDeleted { group } => {
                self.groups.remove(group).ok_or_else(|| unknown("group", group.0))?;
            }
            Record::ProducerOpened { producer, name, at } => {
                expect_next("producer", producer.0, self.next.producer.0)?;
                self.next.producer = producer.next();
                self.time = self.time.max(*at);
                let state = ProducerState { name: name.clone(), last: Sequence(0), seen_at: *at };
                self.producers.insert(*producer, state);
            }
            Record::ProducerExpired { producer } => {
                self.producers.remove(producer).ok_or_else(|| unknown("producer", producer.0))?;
            }
            Record::ProducerAdvanced { producer, last, at } => {
                let state = self.producer(*producer)?;
                (state.last, state.seen_at) = (state.last.max(*last), *at);
                self.time = self.time.max(*at);
            }
            Record::Published(Published { targets, source, at, block }) => {
                let (count, bytes) = (block.count() as u64, block.bytes().len() as u64);
                self.apply_published(targets, source, *at, count, bytes)?;
            }
            Record::Settled { group, ranges } => {
                for range in ranges {
                    self.check_range(*group, *range)?;
                    self.group(*group)?.settle(*range);
                }
            }
            Record::Returned { group, range, retry } => {
                self.check_range(*group, *range)?;
                self.group(*group)?.retries.insert(*range, retry.clone());
            }
            Record::HandedOut { group, end } => self.group(*group)?.handed_out = *end,
            Record::Removed { topic, ranges } => {
                let state = self.topic(*topic)?;
                for &range in ranges {
                    if range.start < state.start || range.end > state.end {
                        let (start, end) = (state.start, state.end);
                        return Err(SnapshotError::NotThere { topic: *topic, range, start, end });
                    }
                    state.removed.insert(range);
                }
            }
            Record::Trimmed { topic, start } => self.topic(*topic)?.trim(*start),
            Record::RouteCreated { route, rule } => {
                expect_next("route", route.0, self.next.route.0)?;
                for topic in [&[rule.from], &rule.to[..]].concat() {
                    self.topic(topic)?;
                }
                self.next.route = route.next();
                self.routes.insert(*route, rule.clone());
            }
            Record::RouteDeleted { route } => {
                self.routes.remove(route).ok_or_else(|| unknown("route", route.0))?;
            }
        }
        Ok(())
    }

    /// Changes the state as a [`Published`] record with `count` messages of `bytes` bytes says, for a store that
    /// recovers without loading the messages.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply).
    pub fn apply_published(
        &mut self,
        targets: &[(TopicId, Offset)],
        source: &Source,
        at: Timestamp,
        count: u64,
        bytes: u64,
    ) -> Result<(), SnapshotError> {
        if !source.covers(count) {
            return Err(SnapshotError::Source { count });
        }
        for &(topic, first) in targets {
            let state = self.topic(topic)?;
            if first != state.end {
                return Err(SnapshotError::OffsetGap { topic, first, expected: state.end });
            }
            state.append(count, bytes, at);
        }
        if let Source::Producer(origin) = source {
            let state = self.producer(origin.producer)?;
            if origin.sequence != state.last.next() {
                return Err(SnapshotError::SequenceGap {
                    producer: origin.producer,
                    first: origin.sequence,
                    expected: state.last.next(),
                });
            }
            state.last.0 += count;
            state.seen_at = at;
        }
        self.time = self.time.max(at);
        Ok(())
    }

    fn producer(&mut self, producer: ProducerId) -> Result<&mut ProducerState, SnapshotError> {
        self.producers.get_mut(&producer).ok_or_else(|| unknown("producer", producer.0))
    }

    fn topic(&mut self, topic: TopicId) -> Result<&mut TopicState, SnapshotError> {
        self.topics.get_mut(&topic).ok_or_else(|| unknown("topic", topic.0))
    }

    fn group(&mut self, group: GroupId) -> Result<&mut GroupState, SnapshotError> {
        self.groups.get_mut(&group).ok_or_else(|| unknown("group", group.0))
    }

    fn check_range(&mut self, group: GroupId, range: OffsetRange) -> Result<(), SnapshotError> {
        let topic = self.group(group)?.topic;
        let end = self.topic(topic)?.end;
        if range.end > end {
            return Err(SnapshotError::BeyondEnd { group, range, end });
        }
        Ok(())
    }
}

impl TopicState {
    /// A topic without messages.
    #[must_use]
    pub fn new(name: Name, kind: TopicKind, settings: TopicSettings) -> Self {
        let (start, end) = (Offset(0), Offset(0));
        Self { name, kind, settings, start, end, removed: RangeSet::new(), marks: Marks::default() }
    }

    /// Adds messages at the end.
    pub fn append(&mut self, count: u64, bytes: u64, at: Timestamp) {
        self.marks.appended(self.end, count, bytes, at);
        self.end.0 += count;
    }

    /// Messages that are there.
    #[must_use]
    pub fn message_count(&self) -> u64 {
        self.message_count_below(self.end)
    }

    /// The messages that are there from `offset` on, up to the first gap. Empty where there is none.
    #[must_use]
    pub fn next_run(&self, offset: Offset) -> OffsetRange {
        let from = OffsetRange { start: self.start.max(offset), end: self.end };
        self.removed.gaps(from).next().unwrap_or(OffsetRange { start: self.end, end: self.end })
    }

    /// The messages that are there from `offset` on, up to the first gap; `None` where that one is not there.
    #[must_use]
    pub fn run_at(&self, offset: Offset) -> Option<OffsetRange> {
        let run = self.next_run(offset);
        (run.start == offset && !run.is_empty()).then_some(run)
    }

    /// Messages that are there below `offset`.
    #[must_use]
    pub fn message_count_below(&self, offset: Offset) -> u64 {
        let below = OffsetRange { start: self.start, end: offset };
        self.removed.gaps(below).map(OffsetRange::len).sum()
    }

    /// Takes away what is below `start`.
    pub fn trim(&mut self, start: Offset) {
        self.start = start;
        self.removed.remove_below(start);
        self.marks.trim(start);
    }
}

impl GroupState {
    /// A group that gets everything from `floor` on, but what is `removed` from the topic.
    #[must_use]
    pub fn new(
        topic: TopicId,
        name: Name,
        settings: GroupSettings,
        floor: Offset,
        removed: &RangeSet,
    ) -> Self {
        let mut state = Self {
            topic,
            name,
            part_of: None,
            settings,
            floor,
            settled: RangeSet::new(),
            retries: RangeMap::new(),
            handed_out: floor,
        };
        state.seek(floor, removed);
        state
    }

    /// Goes to `floor`: below everything is settled, from there on only what is `removed` from the topic. What may
    /// have been handed out before may still be.
    pub fn seek(&mut self, floor: Offset, removed: &RangeSet) {
        self.floor = floor;
        self.settled = removed.clone();
        self.settled.remove_below(floor);
        self.retries = RangeMap::new();
        self.handed_out = self.handed_out.max(floor);
        self.raise_floor();
    }

    /// Marks the offsets settled and raises the floor as far as that allows.
    pub fn settle(&mut self, range: OffsetRange) {
        self.retries.remove(range);
        self.settled.insert(range);
        self.raise_floor();
    }

    fn raise_floor(&mut self) {
        let first = self.settled.iter().next();
        if let Some(first) = first.filter(|first| first.start <= self.floor) {
            self.floor = self.floor.max(first.end);
            self.settled.remove_below(self.floor);
        }
    }
}

fn unknown(kind: &'static str, id: impl Into<u64>) -> SnapshotError {
    SnapshotError::Unknown { kind, id: id.into() }
}

fn expect_next(
    kind: &'static str,
    id: impl Into<u64>,
    expected: impl Into<u64>,
) -> Result<(), SnapshotError> {
    let (id, expected) = (id.into(), expected.into());
    if id == expected { Ok(()) } else { Err(SnapshotError::NotNext { kind, id, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topic_kind::Waiting;

    #[test]
    fn only_a_slot_that_is_empty_is_used_for_other_times() {
        let mut snapshot = Snapshot::default();
        let name = Name::new("t").unwrap();
        let slot = |from, until| TopicKind::Slot {
            of: TopicId(0),
            waiting: Waiting::Delayed,
            from: Timestamp(from),
            until: Timestamp(until),
        };
        for (topic, kind) in [(0, TopicKind::Named), (1, slot(8, 9))] {
            let (topic, name, settings) = (TopicId(topic), name.clone(), TopicSettings::default());
            snapshot.apply(&Record::TopicCreated { topic, name, kind, settings }).unwrap();
        }
        let moved = |slot| Record::SlotMoved { slot, from: Timestamp(10), until: Timestamp(20) };
        let refused = |topic| Err(SnapshotError::NoEmptySlot { topic });
        assert_eq!(snapshot.apply(&moved(TopicId(0))), refused(TopicId(0)), "no slot");
        let targets = [(TopicId(1), Offset(0))];
        snapshot.apply_published(&targets, &Source::Broker, Timestamp(3), 5, 50).unwrap();
        assert_eq!(snapshot.apply(&moved(TopicId(1))), refused(TopicId(1)), "not empty");
        assert_eq!(snapshot.topics[&TopicId(1)].kind, slot(8, 9));
        snapshot.apply(&Record::Trimmed { topic: TopicId(1), start: Offset(5) }).unwrap();
        snapshot.apply(&moved(TopicId(1))).unwrap();
        let state = &snapshot.topics[&TopicId(1)];
        assert_eq!((state.kind, state.start, state.end), (slot(10, 20), Offset(5), Offset(5)));
        let unknown = SnapshotError::Unknown { kind: "topic", id: 2 };
        assert_eq!(snapshot.apply(&moved(TopicId(2))), Err(unknown));
    }
}
