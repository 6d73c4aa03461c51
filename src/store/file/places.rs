//! Which files exist, and which of them hold the messages of each topic: what readers and the writer share.
//!
//! Memory depends on the number of topics and files, not on the backlog: for each topic a run per file, and one more
//! for each gap in it. Where in a file a message is stands in the file's index. Only what is committed is in here.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::file_id::FileId;
use super::files::{Copies, FilePlace, Files};
use super::index::SegmentIndex;
use super::pack::{Pack, Packed};
use super::segment::SegmentId;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::snapshot::Snapshot;

/// What the head of each publish is taken to cost beside its messages, in bytes.
const HEAD_BYTES: u64 = 32;

/// What messages that were published together take in a file, from the bytes of their block.
#[must_use]
pub const fn run_bytes(block_bytes: u64) -> u64 {
    block_bytes + HEAD_BYTES
}

/// Consecutive messages that one file has of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Their offsets.
    pub range: OffsetRange,
    /// The file.
    pub file: FileId,
    /// What they take of it, in bytes.
    pub bytes: u64,
}

impl Run {
    /// The part of it within `range`, with its share of the bytes, and the parts before and behind.
    fn split(self, range: OffsetRange) -> [Self; 3] {
        let share =
            |count: u64| u128::from(self.bytes) * u128::from(count) / u128::from(self.range.len().max(1));
        let bytes_up_to = |at: Offset| share(at.0 - self.range.start.0) as u64;
        let (start, end) = (range.start.max(self.range.start), range.end.min(self.range.end));
        let part = |start: Offset, end: Offset| Self {
            range: OffsetRange { start, end },
            bytes: bytes_up_to(end) - bytes_up_to(start),
            ..self
        };
        [part(start, end), part(self.range.start, start), part(end, self.range.end)]
    }
}

/// What is kept of it in a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacesKept {
    /// The files.
    pub files: Vec<(FileId, FilePlace)>,
    /// The runs of each topic, lowest first.
    pub topics: Vec<(TopicId, Vec<Run>)>,
}

/// Where a reader has to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub file: FileId,
    /// What is committed of it ends here, and so do its messages.
    pub limit: u64,
    /// Where its index is.
    pub index: IndexPlace,
    /// The offset after the last message that is there and follows without a gap.
    pub end: Offset,
}

/// Where the index of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexPlace {
    /// In memory; it says to begin at this entry.
    Memory(u64),
    /// In the file, at this entry.
    Entry(u64),
    /// Nowhere: the segment was never filled up.
    None,
}

/// Topics, files and the index of the segment that is being written.
#[derive(Clone, Debug, Default)]
pub struct Places {
    topics: HashMap<TopicId, TopicPlaces>,
    files: Files,
    active_index: SegmentIndex,
}

#[derive(Clone, Debug, Default)]
struct TopicPlaces {
    start: Offset,
    /// By their first offsets.
    runs: BTreeMap<Offset, Run>,
}

impl TopicPlaces {
    /// Takes out what is within `range`, run by run. Parts of runs that are outside stay.
    fn take(&mut self, range: OffsetRange) -> Vec<Run> {
        let mut taken = Vec::new();
        while let Some((&start, run)) = self.runs.range(..range.end).next_back()
            && run.range.end > range.start
        {
            let [within, before, behind] = run.split(range);
            self.runs.remove(&start);
            for rest in [before, behind].into_iter().filter(|rest| !rest.range.is_empty()) {
                self.runs.insert(rest.range.start, rest);
            }
            taken.push(within);
        }
        taken
    }

    /// Adds a run where there is none, as a part of the one before it where that goes on in the same file.
    fn put(&mut self, run: Run) {
        let before = self.runs.range_mut(..run.range.start).next_back().map(|(_, before)| before);
        match before.filter(|before| before.file == run.file && before.range.end == run.range.start) {
            Some(before) => {
                before.range.end = run.range.end;
                before.bytes += run.bytes;
            }
            None => {
                self.runs.insert(run.range.start, run);
            }
        }
    }
}

impl Places {
    /// Adds a segment without messages, `bytes` long; the next ones go into it.
    pub fn open_segment(&mut self, segment: SegmentId, end: u64, bytes: u64) {
        self.files.activate(segment.into());
        self.files.add(segment.into(), FilePlace::new(end, None, bytes));
        self.active_index = SegmentIndex::default();
    }

    /// The segment that is being written is full: its index is at `index`. Answers that index. One step for
    /// readers: they find it in memory before and in the segment after.
    pub fn seal(&mut self, index: u64, end: u64) -> SegmentIndex {
        self.files.change(self.files.active(), |place| (place.index, place.end) = (Some(index), end));
        std::mem::take(&mut self.active_index)
    }

    /// What was written to the segment that is being written is committed up to `end`.
    pub fn extend(&mut self, end: u64) {
        self.files.change(self.files.active(), |place| place.end = end);
    }

    /// Messages of a topic were committed, in the entry at `at`.
    pub fn publish(&mut self, topic: TopicId, range: OffsetRange, at: u64, bytes: u64) {
        self.active_index.add(topic, range, at, bytes);
        let (file, bytes) = (self.files.active(), run_bytes(bytes));
        self.topics.entry(topic).or_default().put(Run { range, file, bytes });
        self.files.hold(file, bytes);
    }

    /// The messages of a topic below `start` are gone.
    pub fn trim(&mut self, topic: TopicId, start: Offset) {
        if let Some(places) = self.topics.get_mut(&topic) {
            places.start = places.start.max(start);
            self.remove(topic, [OffsetRange { start: Offset(0), end: start }]);
        }
    }

    /// Messages in the middle of a topic are gone.
    pub fn remove(&mut self, topic: TopicId, ranges: impl IntoIterator<Item = OffsetRange>) {
        let Some(places) = self.topics.get_mut(&topic) else { return };
        for run in ranges.into_iter().flat_map(|range| places.take(range)) {
            self.files.release(run.file, run.bytes);
        }
    }

    /// A topic is gone.
    pub fn delete(&mut self, topic: TopicId) {
        for run in self.topics.remove(&topic).unwrap_or_default().runs.into_values() {
            self.files.release(run.file, run.bytes);
        }
    }

    /// Adds a pack with messages that are nowhere else.
    pub fn add_pack(&mut self, pack: &Pack) {
        self.add_packed_file(pack);
        for (topic, copies) in &pack.runs {
            let places = self.topics.entry(*topic).or_default();
            for copy in copies {
                places.put(Run { range: copy.range, file: pack.id, bytes: copy.bytes });
                self.files.hold(pack.id, copy.bytes);
            }
        }
    }

    fn add_packed_file(&mut self, pack: &Pack) {
        self.files.add(pack.id, FilePlace::new(pack.bytes, Some(pack.index), pack.bytes));
    }

    /// Messages were copied into a pack: those that are still in the files they were copied from are there now.
    pub fn pack(&mut self, packed: &Packed) {
        let Packed { pack, replaced } = packed;
        self.add_packed_file(pack);
        for (topic, copies) in &pack.runs {
            let Some(places) = self.topics.get_mut(topic) else { continue };
            for copy in copies {
                let copy = Run { range: copy.range, file: pack.id, bytes: copy.bytes };
                let mut taken = places.take(copy.range);
                while let Some(run) = taken.pop() {
                    let is_replaced = replaced.binary_search(&run.file).is_ok();
                    let run_then = if is_replaced { copy.split(run.range)[0] } else { run };
                    self.files.release(run.file, run.bytes);
                    self.files.hold(run_then.file, run_then.bytes);
                    places.put(run_then);
                }
            }
        }
    }

    /// Where message `offset` of a topic is. `None` where it is trimmed or not committed.
    #[must_use]
    pub fn find(&self, topic: TopicId, offset: Offset) -> Option<Found> {
        let places = self.topics.get(&topic).filter(|places| places.start <= offset)?;
        let (_, run) = places.runs.range(..=offset).next_back()?;
        if !run.range.contains(offset) {
            return None;
        }
        let place = self.files.get(run.file)?;
        let index = match place.index {
            Some(at) => IndexPlace::Entry(at),
            None if run.file == self.files.active() => {
                IndexPlace::Memory(self.active_index.find(topic, offset)?)
            }
            None => IndexPlace::None,
        };
        let limit = place.index.unwrap_or(place.end);
        Some(Found { file: run.file, limit, index, end: run.range.end })
    }

    /// The messages of a topic within `range` that are in `file`: the first runs of them, among `steps` runs of
    /// whatever file. Answers where to go on, too; `None` where that were all.
    #[must_use]
    pub fn held_by(
        &self,
        file: FileId,
        topic: TopicId,
        range: OffsetRange,
        steps: usize,
    ) -> (Vec<OffsetRange>, Option<Offset>) {
        let Some(places) = self.topics.get(&topic) else { return (Vec::new(), None) };
        let before =
            places.runs.range(..range.start).next_back().filter(|(_, run)| run.range.end > range.start);
        let mut runs = before.into_iter().chain(places.runs.range(range.start..range.end.max(range.start)));
        let within = runs.by_ref().take(steps).filter(|(_, run)| run.file == file);
        let held = within
            .map(|(_, run)| OffsetRange {
                start: run.range.start.max(range.start),
                end: run.range.end.min(range.end),
            })
            .collect();
        (held, runs.next().map(|(&start, _)| start))
    }

    /// The index of the segment that is being written.
    #[must_use]
    pub const fn active_index(&self) -> &SegmentIndex {
        &self.active_index
    }

    /// The files.
    #[must_use]
    pub const fn files(&self) -> &Files {
        &self.files
    }

    /// Messages of the file are damaged: it stays as it is.
    pub fn exempt(&mut self, file: FileId) {
        self.files.change(file, |place| place.copies = Copies::Impossible);
    }

    /// An image reads these files from now on.
    pub fn pin(&mut self, files: &[FileId]) {
        files.iter().for_each(|&file| self.files.pin(file));
    }

    /// An image that has read these files does not any more.
    pub fn unpin(&mut self, files: &[FileId]) {
        files.iter().for_each(|&file| self.files.unpin(file));
    }

    /// A file was removed.
    pub fn forget(&mut self, file: FileId) {
        self.files.forget(file);
    }

    /// What goes into a checkpoint.
    #[must_use]
    pub fn keep(&self) -> PlacesKept {
        let mut topics: Vec<(TopicId, Vec<Run>)> = self
            .topics
            .iter()
            .filter(|(_, places)| !places.runs.is_empty())
            .map(|(&topic, places)| (topic, places.runs.values().copied().collect()))
            .collect();
        topics.sort_unstable_by_key(|(topic, _)| *topic);
        PlacesKept { files: self.files.iter().collect(), topics }
    }

    /// What was kept in a checkpoint. [`trim_all`](Self::trim_all) must follow.
    #[must_use]
    pub fn restore(kept: PlacesKept) -> Self {
        let mut places = Self::default();
        for (id, place) in kept.files {
            places.files.add(id, place);
        }
        for (topic, runs) in kept.topics {
            for run in &runs {
                places.files.hold(run.file, run.bytes);
            }
            let runs = runs.into_iter().map(|run| (run.range.start, run)).collect();
            places.topics.insert(topic, TopicPlaces { start: Offset(0), runs });
        }
        places
    }

    /// No segment is written from now on.
    pub fn end_writing(&mut self) {
        self.files.activate(FileId::default());
        self.active_index = SegmentIndex::default();
    }

    /// Goes on writing at the end of a segment that a checkpoint knew already.
    pub fn continue_segment(&mut self, segment: SegmentId) {
        self.files.activate(segment.into());
        self.active_index = SegmentIndex::default();
    }

    /// The first message of the snapshot that no file has.
    #[must_use]
    pub fn first_gap(&self, snapshot: &Snapshot) -> Option<(TopicId, Offset)> {
        snapshot.topics.iter().find_map(|(&topic, state)| {
            let mut next = state.start;
            for run in self.topics.get(&topic).into_iter().flat_map(|places| places.runs.values()) {
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

#[cfg(test)]
mod tests {
    use super::super::pack::PackRun;
    use super::super::segment::ENTRIES_START;
    use super::*;
    use crate::model::id::Epoch;

    const TOPIC: TopicId = TopicId(3);

    fn packed(number: u32, range: OffsetRange, replaced: FileId) -> Packed {
        let runs = vec![(TOPIC, vec![PackRun { range, bytes: 50 * range.len() }])];
        let pack = Pack { id: FileId::pack(Epoch(1), number), index: 9_000, bytes: 10_000, runs };
        Packed { pack, replaced: vec![replaced] }
    }

    /// A copy counts only for what is still where it was copied from: not for what is gone, and not for what has moved.
    #[test]
    fn a_pack_takes_over_what_the_replaced_files_still_hold() {
        let mut places = Places::default();
        let segment = SegmentId { epoch: Epoch(1), number: 1 };
        places.open_segment(segment, ENTRIES_START, 1 << 20);
        places.publish(TOPIC, OffsetRange::new(0, 100), ENTRIES_START, 4_000);
        places.end_writing();
        places.pack(&packed(1, OffsetRange::new(40, 60), segment.into()));
        places.remove(TOPIC, [OffsetRange::new(10, 20)]);
        places.pack(&packed(2, OffsetRange::new(0, 100), segment.into()));
        let file = |offset| places.find(TOPIC, Offset(offset)).map(|found| found.file.number);
        let expected = [(0, Some(2)), (9, Some(2)), (10, None), (19, None), (20, Some(2)), (39, Some(2))];
        assert_eq!(expected.map(|(offset, _)| (offset, file(offset))), expected);
        let expected = [(40, Some(1)), (59, Some(1)), (60, Some(2)), (99, Some(2)), (100, None)];
        assert_eq!(expected.map(|(offset, _)| (offset, file(offset))), expected);
        assert!(places.files().is_dead(segment.into()));
        let held = |number| places.files().get(FileId::pack(Epoch(1), number)).unwrap().held;
        assert_eq!((held(1), held(2)), (1_000, 50 * 70));
    }
}
