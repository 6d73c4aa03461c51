//! The durable state without the messages: what a store recovers and the broker starts from.
//!
//! A snapshot is the fold of all records ([`Snapshot::apply`]). It holds catalog, progress and producers, and no
//! body: its size depends on what exists and what is in flight, not on the backlog.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::chunk::Origin;
use super::id::{GroupId, Offset, OffsetRange, ProducerId, Sequence, TopicId};
use super::name::Name;
use super::ranges::RangeSet;
use super::record::{Published, Record, Retry};
use super::settings::{GroupSettings, TopicSettings};
use super::time::Timestamp;

/// The durable state of a store, without messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Living topics.
    pub topics: BTreeMap<TopicId, TopicState>,
    /// Living groups.
    pub groups: BTreeMap<GroupId, GroupState>,
    /// Producers that are remembered.
    pub producers: BTreeMap<ProducerId, ProducerState>,
    /// The ids that the next topic, group and producer get.
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
}

/// Durable state of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicState {
    /// Its name.
    pub name: Name,
    /// Its settings.
    pub settings: TopicSettings,
    /// First offset that is still there.
    pub start: Offset,
    /// Offset that the next message gets.
    pub end: Offset,
    /// What is gone above the start.
    pub removed: RangeSet,
}

/// Durable state of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// The topic whose messages it gets.
    pub topic: TopicId,
    /// Its name.
    pub name: Name,
    /// Its settings.
    pub settings: GroupSettings,
    /// Every offset below is settled; the offset itself is not.
    pub floor: Offset,
    /// What is settled above the floor.
    pub settled: RangeSet,
    /// What was handed out in vain and is not settled.
    pub retries: BTreeMap<Offset, Retry>,
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
        /// Topic, group or producer.
        kind: &'static str,
        /// Its id.
        id: u64,
    },
    /// The record creates something under an id that is not the next one.
    #[error("record creates {kind} {id} where {expected} is next")]
    NotNext {
        /// Topic, group or producer.
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
            Record::TopicCreated { topic, name, settings } => {
                expect_next("topic", u64::from(topic.0), u64::from(self.next.topic.0))?;
                self.next.topic = topic.next();
                let (name, settings) = (name.clone(), settings.clone());
                self.topics.insert(*topic, TopicState::new(name, settings));
            }
            Record::TopicDeleted { topic } => {
                self.topics.remove(topic).ok_or_else(|| unknown("topic", topic.0))?;
            }
            Record::GroupCreated { group, topic, name, settings, floor } => {
                expect_next("group", u64::from(group.0), u64::from(self.next.group.0))?;
                let removed = &self.topic(*topic)?.removed;
                let state = GroupState::new(*topic, name.clone(), settings.clone(), *floor, removed);
                self.next.group = group.next();
                self.groups.insert(*group, state);
            }
            Record::GroupChanged { group, settings } => self.group(*group)?.settings = settings.clone(),
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
            Record::Published(Published { targets, origin, at, block }) => {
                self.apply_published(targets, *origin, *at, block.count() as u64)?;
            }
            Record::Settled { group, ranges } => {
                for range in ranges {
                    self.check_range(*group, *range)?;
                    self.group(*group)?.settle(*range);
                }
            }
            Record::Returned { group, range, retry } => {
                self.check_range(*group, *range)?;
                let state = self.group(*group)?;
                for offset in range.start.0..range.end.0 {
                    state.retries.insert(Offset(offset), *retry);
                }
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
        }
        Ok(())
    }

    /// Changes the state as a [`Published`] record with `count` messages says, for a store that recovers without
    /// loading the messages.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply).
    pub fn apply_published(
        &mut self,
        targets: &[(TopicId, Offset)],
        origin: Option<Origin>,
        at: Timestamp,
        count: u64,
    ) -> Result<(), SnapshotError> {
        for &(topic, first) in targets {
            let state = self.topic(topic)?;
            if first != state.end {
                return Err(SnapshotError::OffsetGap { topic, first, expected: state.end });
            }
            state.end.0 += count;
        }
        if let Some(origin) = origin {
            let state = self
                .producers
                .get_mut(&origin.producer)
                .ok_or_else(|| unknown("producer", origin.producer.0))?;
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
    pub const fn new(name: Name, settings: TopicSettings) -> Self {
        Self { name, settings, start: Offset(0), end: Offset(0), removed: RangeSet::new() }
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
        let (settled, retries) = (removed.clone(), BTreeMap::new());
        let mut state = Self { topic, name, settings, floor, settled, retries, handed_out: floor };
        state.settled.remove_below(floor);
        state.raise_floor();
        state
    }

    /// Marks the offsets settled and raises the floor as far as that allows.
    pub fn settle(&mut self, range: OffsetRange) {
        let gone: Vec<Offset> =
            self.retries.range(range.start..range.end).map(|(offset, _)| *offset).collect();
        for offset in gone {
            self.retries.remove(&offset);
        }
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

fn expect_next(kind: &'static str, id: u64, expected: u64) -> Result<(), SnapshotError> {
    if id == expected { Ok(()) } else { Err(SnapshotError::NotNext { kind, id, expected }) }
}
