//! Which segments exist, and which of them hold the messages of each topic: what readers and the writer share.
//!
//! Memory depends on the number of topics and segments, not on the backlog: for each topic a run per segment, and one more for each gap in it. Where
//! in a segment a message is stands in the segment's index. Only what is committed is in here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::index::SegmentIndex;
use super::segment::SegmentId;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::snapshot::Snapshot;

/// Consecutive messages that one segment has of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Their offsets.
    pub range: OffsetRange,
    /// The segment.
    pub segment: SegmentId,
}

/// What is known of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentPlace {
    /// Where its committed entries end.
    pub end: u64,
    /// Where its index is, once it is full.
    pub index: Option<u64>,
    /// How many runs are in it.
    #[serde(skip)]
    run_count: u32,
}

/// What is kept of it in a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacesKept {
    /// The segments.
    pub segments: Vec<(SegmentId, SegmentPlace)>,
    /// The runs of each topic, lowest first.
    pub topics: Vec<(TopicId, Vec<Run>)>,
}

/// Where a reader has to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The segment.
    pub segment: SegmentId,
    /// What is committed of it ends here, and so do its messages.
    pub limit: u64,
    /// Where its index is.
    pub index: IndexPlace,
    /// The offset after the topic's last message in the segment.
    pub end: Offset,
}

/// Where the index of a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexPlace {
    /// In memory; it says to begin at this entry.
    Memory(u64),
    /// In the segment, at this entry.
    Entry(u64),
    /// Nowhere: the segment was never filled up.
    None,
}

/// Topics, segments and the index of the segment that is being written.
#[derive(Debug, Default)]
pub struct Places {
    topics: HashMap<TopicId, TopicPlaces>,
    segments: BTreeMap<SegmentId, SegmentPlace>,
    /// Segments without any message that is not trimmed.
    dead: BTreeSet<SegmentId>,
    active: SegmentId,
    active_index: SegmentIndex,
}

#[derive(Debug, Default)]
struct TopicPlaces {
    start: Offset,
    runs: VecDeque<Run>,
}

impl Places {
    /// Adds a segment without messages; the next ones go into it.
    pub fn open_segment(&mut self, segment: SegmentId, end: u64) {
        self.segments.insert(segment, SegmentPlace { end, index: None, run_count: 0 });
        self.dead.insert(segment);
        self.active = segment;
        self.active_index = SegmentIndex::default();
    }

    /// The segment that is being written is full: its index is at `index`. Answers that index. One step for
    /// readers: they find it in memory before and in the segment after.
    pub fn seal(&mut self, index: u64, end: u64) -> SegmentIndex {
        if let Some(place) = self.segments.get_mut(&self.active) {
            (place.index, place.end) = (Some(index), end);
        }
        std::mem::take(&mut self.active_index)
    }

    /// What was written to the segment that is being written is committed up to `end`.
    pub fn extend(&mut self, end: u64) {
        if let Some(place) = self.segments.get_mut(&self.active) {
            place.end = end;
        }
    }

    /// Messages of a topic were committed, in the entry at `at`.
    pub fn publish(&mut self, topic: TopicId, range: OffsetRange, at: u64, bytes: u64) {
        self.active_index.add(topic, range, at, bytes);
        let places = self.topics.entry(topic).or_default();
        match places.runs.back_mut().filter(|run| run.segment == self.active) {
            Some(run) if run.range.end == range.start => run.range.end = range.end,
            _ => {
                places.runs.push_back(Run { range, segment: self.active });
                Self::hold(&mut self.segments, &mut self.dead, self.active);
            }
        }
    }

    /// The messages of a topic below `start` are gone.
    pub fn trim(&mut self, topic: TopicId, start: Offset) {
        let Some(places) = self.topics.get_mut(&topic) else { return };
        places.start = places.start.max(start);
        while let Some(run) = places.runs.pop_front_if(|run| run.range.end <= start) {
            Self::release(&mut self.segments, &mut self.dead, run.segment);
        }
    }

    /// Messages in the middle of a topic are gone. The ranges are in order.
    pub fn remove(&mut self, topic: TopicId, ranges: impl IntoIterator<Item = OffsetRange>) {
        let Some(places) = self.topics.get_mut(&topic) else { return };
        let runs = std::mem::take(&mut places.runs);
        let mut ranges = ranges.into_iter().peekable();
        for run in runs {
            let mut at = run.range.start;
            while ranges.next_if(|gone| gone.end <= at).is_some() {}
            let mut kept = Vec::new();
            while let Some(&gone) = ranges.peek().filter(|gone| gone.start < run.range.end) {
                kept.push(OffsetRange { start: at, end: gone.start });
                at = gone.end;
                if gone.end > run.range.end {
                    break;
                }
                ranges.next();
            }
            kept.push(OffsetRange { start: at, end: run.range.end });
            for range in kept.into_iter().filter(|range| !range.is_empty()) {
                places.runs.push_back(Run { range, segment: run.segment });
                Self::hold(&mut self.segments, &mut self.dead, run.segment);
            }
            Self::release(&mut self.segments, &mut self.dead, run.segment);
        }
    }

    /// A topic is gone.
    pub fn delete(&mut self, topic: TopicId) {
        for run in self.topics.remove(&topic).unwrap_or_default().runs {
            Self::release(&mut self.segments, &mut self.dead, run.segment);
        }
    }

    fn hold(
        segments: &mut BTreeMap<SegmentId, SegmentPlace>,
        dead: &mut BTreeSet<SegmentId>,
        segment: SegmentId,
    ) {
        if let Some(place) = segments.get_mut(&segment) {
            place.run_count += 1;
            dead.remove(&segment);
        }
    }

    fn release(
        segments: &mut BTreeMap<SegmentId, SegmentPlace>,
        dead: &mut BTreeSet<SegmentId>,
        segment: SegmentId,
    ) {
        if let Some(place) = segments.get_mut(&segment) {
            place.run_count -= 1;
            if place.run_count == 0 {
                dead.insert(segment);
            }
        }
    }

    /// Where message `offset` of a topic is. `None` where it is trimmed or not committed.
    #[must_use]
    pub fn find(&self, topic: TopicId, offset: Offset) -> Option<Found> {
        let places = self.topics.get(&topic).filter(|places| places.start <= offset)?;
        let run = places.runs.get(places.runs.partition_point(|run| run.range.end <= offset))?;
        if offset < run.range.start {
            return None;
        }
        let place = self.segments.get(&run.segment)?;
        let index = match place.index {
            Some(at) => IndexPlace::Entry(at),
            None if run.segment == self.active => IndexPlace::Memory(self.active_index.find(topic, offset)?),
            None => IndexPlace::None,
        };
        let limit = place.index.unwrap_or(place.end);
        Some(Found { segment: run.segment, limit, index, end: run.range.end })
    }

    /// The index of the segment that is being written.
    #[must_use]
    pub const fn active_index(&self) -> &SegmentIndex {
        &self.active_index
    }

    /// The segments that hold nothing any more, lowest first; the one that is being written is never among them.
    pub fn dead(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.dead.iter().copied().filter(|&segment| segment != self.active)
    }

    /// The segments.
    pub fn segments(&self) -> impl Iterator<Item = (SegmentId, SegmentPlace)> + '_ {
        self.segments.iter().map(|(&id, &place)| (id, place))
    }

    /// Whether the segment is one of the store.
    #[must_use]
    pub fn contains(&self, segment: SegmentId) -> bool {
        self.segments.contains_key(&segment)
    }

    /// Whether all messages of the segment are trimmed.
    #[must_use]
    pub fn is_dead(&self, segment: SegmentId) -> bool {
        self.dead.contains(&segment)
    }

    /// A segment was removed.
    pub fn forget(&mut self, segment: SegmentId) {
        self.segments.remove(&segment);
        self.dead.remove(&segment);
    }

    /// What goes into a checkpoint.
    #[must_use]
    pub fn keep(&self) -> PlacesKept {
        let mut topics: Vec<(TopicId, Vec<Run>)> = self
            .topics
            .iter()
            .filter(|(_, places)| !places.runs.is_empty())
            .map(|(&topic, places)| (topic, places.runs.iter().copied().collect()))
            .collect();
        topics.sort_unstable_by_key(|(topic, _)| *topic);
        PlacesKept { segments: self.segments().collect(), topics }
    }

    /// What was kept in a checkpoint. [`trim_all`](Self::trim_all) must follow.
    #[must_use]
    pub fn restore(kept: PlacesKept) -> Self {
        let mut places = Self::default();
        for (id, place) in kept.segments {
            places.segments.insert(id, SegmentPlace { run_count: 0, ..place });
            places.dead.insert(id);
        }
        for (topic, runs) in kept.topics {
            for run in &runs {
                Self::hold(&mut places.segments, &mut places.dead, run.segment);
            }
            places.topics.insert(topic, TopicPlaces { start: Offset(0), runs: runs.into() });
        }
        places
    }

    /// Goes on writing at the end of a segment that a checkpoint knew already.
    pub fn continue_segment(&mut self, segment: SegmentId) {
        self.active = segment;
        self.active_index = SegmentIndex::default();
    }

    /// The first message of the snapshot that no segment has.
    #[must_use]
    pub fn first_gap(&self, snapshot: &Snapshot) -> Option<(TopicId, Offset)> {
        snapshot.topics.iter().find_map(|(&topic, state)| {
            let mut next = state.start;
            for run in self.topics.get(&topic).into_iter().flat_map(|places| &places.runs) {
                next = state.removed.range_at(next).map_or(next, |gone| gone.end);
                if run.range.contains(next) {
                    next = run.range.end;
                }
            }
            next = state.removed.range_at(next).map_or(next, |gone| gone.end);
            (next < state.end).then_some((topic, next))
        })
    }

    /// Takes out what is not in the snapshot any more.
    pub fn trim_all(&mut self, snapshot: &Snapshot) {
        let topics: Vec<TopicId> = self.topics.keys().copied().collect();
        for topic in topics {
            match snapshot.topics.get(&topic) {
                Some(state) => {
                    self.trim(topic, state.start);
                    self.remove(topic, state.removed.iter());
                }
                None => self.delete(topic),
            }
        }
    }
}
