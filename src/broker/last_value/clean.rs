//! Going through topics: which stretch is next, what is read for it, and what becomes of it.

use super::super::Output;
use super::super::cache::CachedChunk;
use super::super::machine::Broker;
use super::super::reading::READ_BYTES;
use super::pass::{Pass, Phase, Value};
use super::{Mode, Round};
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::limits::{LAST_VALUE_RANGES_MAX, LAST_VALUE_TOMBSTONE_MS};
use crate::model::ranges::RangeSet;
use crate::model::time::Timestamp;

/// Messages that are looked at in one cycle.
const SEEN_PER_CYCLE: u64 = 4096;
/// Messages that could be looked at in the time that beginning and ending a pass takes.
const PASS_COST: u64 = 64;
/// Messages that are dropped together. Each may be a range of its own.
const DROPPED_TOGETHER: usize = 1024;

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is more to do at once.
    More,
    /// Something is being read, or there is no space.
    Waiting,
}

/// What a step is about.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub topic: TopicId,
    /// The messages that are there from where the pass stands on, up to the first gap; empty at the end.
    pub run: OffsetRange,
    end: Offset,
    range_count: u64,
}

impl Broker {
    /// Goes on dropping what there are newer messages of.
    pub(in crate::broker) fn keep_last_values(&mut self, out: &mut Output) {
        self.last_values.wake(self.now);
        let mut left = SEEN_PER_CYCLE;
        while left > 0 {
            if self.last_values.pass.is_none() {
                if !self.begin_pass() {
                    return;
                }
                left = left.saturating_sub(PASS_COST);
            }
            if self.go_on_with_pass(&mut left, out) == Progress::Waiting {
                return;
            }
        }
        self.work_left |= self.last_values.pass.is_some() || !self.last_values.line.is_empty();
    }

    /// Gaps of a topic above which its messages are moved: all groups may have to know of each.
    fn ranges_max(&self) -> u64 {
        (LAST_VALUE_RANGES_MAX as u64).min(self.limits.settled_ranges_max / 2)
    }

    /// Begins a pass over the next stretch of the topic whose turn it is, if there is one.
    fn begin_pass(&mut self) -> bool {
        while let Some(id) = self.last_values.line.pop_front() {
            let topic = self.topics.get(&id).filter(|topic| topic.keeps_last_values());
            let (Some(topic), Some(table)) = (topic, self.last_values.tables.get_mut(&id)) else {
                self.last_values.forget(id);
                continue;
            };
            table.in_line = false;
            let (start, to) = (topic.state.start, topic.state.end);
            let round = table.round.get_or_insert_with(|| {
                (table.fresh, table.since) = (0, None);
                let (mode, left, tombstone_due) = (Mode::Stay, None, None);
                Round { cursor: start, to, mode, left, tombstone_due, seen: 0 }
            });
            let stretch = OffsetRange { start: round.cursor.max(start), end: round.to };
            self.last_values.pass = Some(Pass::new(id, stretch));
            return true;
        }
        false
    }

    fn go_on_with_pass(&mut self, left: &mut u64, out: &mut Output) -> Progress {
        let Some(pass) = &mut self.last_values.pass else { return Progress::More };
        let id = pass.topic;
        let topic = self.topics.get(&id).filter(|topic| topic.keeps_last_values());
        let round = self.last_values.tables.get(&id).and_then(|table| table.round);
        let (Some(topic), Some(round)) = (topic, round) else {
            self.last_values.forget(id);
            return Progress::More;
        };
        if pass.reading.is_some() || pass.not_before.is_some_and(|at| at > self.now) {
            return Progress::Waiting;
        }
        pass.not_before = None;
        let (mut run, end) = (topic.state.next_run(pass.at), topic.state.end);
        while let Some(held_to) = self.unreadable.held_to(id, run.start, self.now) {
            // Its key is not known: it stays, and so do tombstones, of which one may be its key's.
            let table = self.last_values.tables.get_mut(&id);
            if let Some(round) = table.and_then(|table| table.round.as_mut()) {
                round.leave(Some(run.start));
            }
            pass.at = held_to.min(run.end);
            pass.blind_to = pass.blind_to.max(pass.at);
            run = topic.state.next_run(pass.at);
        }
        let range_count = topic.state.removed.range_count() as u64;
        let at = At { topic: id, run, end, range_count };
        match pass.phase {
            Phase::Stretch => self.read_stretch(at, round.mode, left, out),
            Phase::Rest { to } => self.read_rest(at, to, round.mode, left, out),
            Phase::Drop => self.drop_rest(at, left, out),
            Phase::Move => self.move_stretch(at, left, out),
        }
    }

    /// Reads the stretch itself.
    fn read_stretch(&mut self, at: At, mode: Mode, left: &mut u64, out: &mut Output) -> Progress {
        let keys_max = usize::try_from(self.limits.last_value_keys_max).unwrap_or(usize::MAX);
        let old_before = Timestamp(self.now.0.saturating_sub(LAST_VALUE_TOMBSTONE_MS));
        let table = self.last_values.tables.get(&at.topic);
        let clean_to = table.map_or(Offset(0), |table| table.clean_to);
        let Some(pass) = &mut self.last_values.pass else { return Progress::More };
        if at.run.start >= pass.stretch.end || pass.key_count() >= keys_max {
            if at.run.start < pass.stretch.end {
                pass.stretch.end = pass.at;
            }
            pass.at = pass.stretch.end.max(clean_to);
            pass.phase = Phase::Rest { to: at.end };
            return Progress::More;
        }
        let end = at.run.end.min(pass.stretch.end);
        let progress = self.look_through(at, end, left, out, |pass, offset, value| {
            pass.see(offset, value, old_before, mode.keeps());
            pass.key_count() < keys_max
        });
        self.drop_if_many(at, out);
        progress
    }

    /// Reads what is behind the stretch.
    fn read_rest(&mut self, at: At, to: Offset, mode: Mode, left: &mut u64, out: &mut Output) -> Progress {
        let Some(pass) = &mut self.last_values.pass else { return Progress::More };
        if at.run.start >= to || pass.key_count() == 0 {
            (pass.at, pass.phase) = match mode {
                Mode::Stay => (pass.at, Phase::Drop),
                Mode::Move => (pass.stretch.start, Phase::Move),
            };
            return Progress::More;
        }
        let progress = self.look_through(at, at.run.end.min(to), left, out, |pass, offset, value| {
            pass.see_newer(offset, value.key, mode.keeps());
            true
        });
        self.drop_if_many(at, out);
        progress
    }

    /// Looks at the messages from where the pass stands up to `end`, as far as they are in memory, until `look` says
    /// that it is enough; has them read where they are not.
    fn look_through(
        &mut self,
        at: At,
        end: Offset,
        left: &mut u64,
        out: &mut Output,
        mut look: impl FnMut(&mut Pass, Offset, Value) -> bool,
    ) -> Progress {
        let Some(chunk) = self.take_chunk_at(at, out) else { return Progress::Waiting };
        let Some(pass) = &mut self.last_values.pass else { return Progress::More };
        let end = end.min(chunk.end());
        let mut offset = at.run.start;
        let mut goes_on = true;
        while offset < end && *left > 0 && goes_on {
            let index = (offset.0 - chunk.first.0) as usize;
            let stored_at = chunk.source(index).published_at;
            if let Some(value) = Value::read(chunk.block.encoded(index), stored_at) {
                goes_on = look(pass, offset, value);
            }
            offset = offset.next();
            *left -= 1;
            pass.seen += 1;
        }
        pass.at = offset;
        pass.chunk = Some(chunk);
        Progress::More
    }

    /// The messages from where the pass stands on, if they are in memory; has them read otherwise.
    pub(super) fn take_chunk_at(&mut self, at: At, out: &mut Output) -> Option<CachedChunk> {
        let pass = self.last_values.pass.as_mut()?;
        let held = pass.chunk.take().filter(|chunk| chunk.holds(at.run.start));
        let cached = || self.cache.topic(at.topic)?.at(at.run.start).cloned();
        let found = held.or_else(cached);
        if found.is_none() {
            pass.reading = Some(at.run.start);
            self.reads.want_for_cleaning(at.topic, at.run.start, READ_BYTES, &mut out.reads);
        }
        found
    }

    /// Drops what was found, where that is much.
    fn drop_if_many(&mut self, at: At, out: &mut Output) {
        if self.last_values.pass.as_ref().is_some_and(|pass| pass.superseded.len() >= DROPPED_TOGETHER) {
            self.drop_some(at, out);
        }
    }

    /// Drops what was found and is not dropped yet; then old tombstones. Ends the pass.
    fn drop_rest(&mut self, at: At, left: &mut u64, out: &mut Output) -> Progress {
        let Some(pass) = &mut self.last_values.pass else { return Progress::More };
        *left = left.saturating_sub(pass.superseded.len().min(DROPPED_TOGETHER) as u64);
        if !pass.superseded.is_empty() {
            self.drop_some(at, out);
            return Progress::More;
        }
        let round = self.last_values.tables.get_mut(&at.topic).and_then(|table| table.round.as_mut());
        let Some(round) = round else { return Progress::More };
        // Without its tombstone, an older message that had to stay would be the newest of its key again.
        let tombstones =
            if round.left.is_none() { pass.take_tombstones(DROPPED_TOGETHER) } else { Vec::new() };
        if tombstones.is_empty() {
            self.end_pass();
        } else {
            *left = left.saturating_sub(tombstones.len() as u64);
            self.drop_or_move(at, &tombstones, out);
        }
        Progress::More
    }

    /// Drops some of what was found.
    fn drop_some(&mut self, at: At, out: &mut Output) {
        let Some(pass) = &mut self.last_values.pass else { return };
        let superseded = pass.take_superseded(DROPPED_TOGETHER);
        let mut ranges: Vec<OffsetRange> = Vec::with_capacity(superseded.len());
        for found in &superseded {
            match ranges.last_mut() {
                Some(last) if last.end == found.old => last.end = found.old.next(),
                _ => ranges.push(OffsetRange::one(found.old)),
            }
        }
        let kept = self.drop_or_move(at, &ranges, out);
        let by = superseded.iter().filter(|found| kept.contains(found.old)).map(|found| found.by).min();
        let round = self.last_values.tables.get_mut(&at.topic).and_then(|table| table.round.as_mut());
        if let Some(round) = round {
            round.leave(by);
        }
    }

    /// Drops messages and answers which have to stay, unless there are too many gaps for that: then the round begins anew,
    /// and moves.
    fn drop_or_move(&mut self, at: At, ranges: &[OffsetRange], out: &mut Output) -> RangeSet {
        if at.range_count + ranges.len() as u64 > self.ranges_max() {
            let blind_to = self.last_values.pass.as_ref().map_or(Offset(0), |pass| pass.blind_to);
            if ranges.last().is_some_and(|last| last.end <= blind_to) {
                // Nothing of it would be moved: it stays until it is known what is behind it.
                let mut kept = RangeSet::new();
                ranges.iter().for_each(|range| {
                    kept.insert(*range);
                });
                return kept;
            }
            self.move_from_start(at.topic);
            return RangeSet::new();
        }
        self.drop_values(at.topic, ranges, out)
    }

    /// Has the round begin anew at the start of the topic, where there are the most gaps, and move what it finds.
    fn move_from_start(&mut self, id: TopicId) {
        let start = self.topics.get(&id).map_or(Offset(0), |topic| topic.state.start);
        let table = self.last_values.tables.get_mut(&id);
        if let Some(round) = table.and_then(|table| table.round.as_mut()) {
            (round.cursor, round.mode, round.left) = (start, Mode::Move, None);
        }
        self.go_on_later(id);
    }

    /// Ends the pass, and the round if that was its last stretch.
    pub(super) fn end_pass(&mut self) {
        let ranges_max = self.ranges_max();
        let Some(pass) = &mut self.last_values.pass else { return };
        let id = pass.topic;
        let Some(topic) = self.topics.get(&id) else { return };
        let table = self.last_values.tables.get_mut(&id);
        let Some(round) = table.and_then(|table| table.round.as_mut()) else { return };
        round.cursor = pass.stretch.end;
        let due = |since: Timestamp| Timestamp(since.0.saturating_add(LAST_VALUE_TOMBSTONE_MS));
        round.tombstone_due = round.tombstone_due.into_iter().chain(pass.young_since.map(due)).min();
        if topic.state.removed.range_count() as u64 <= ranges_max / 2 {
            round.mode = Mode::Stay;
        }
        if round.cursor < round.to {
            self.go_on_later(id);
            return;
        }
        round.seen += pass.seen;
        self.last_values.pass = None;
        self.last_values.end_round(id, topic.state.message_count(), self.now);
    }

    /// Gives other topics their turn before the next pass over this one.
    fn go_on_later(&mut self, id: TopicId) {
        let seen = self.last_values.pass.take().map_or(0, |pass| pass.seen);
        if let Some(table) = self.last_values.tables.get_mut(&id) {
            table.in_line = true;
            if let Some(round) = &mut table.round {
                round.seen += seen;
            }
            self.last_values.line.push_back(id);
        }
    }
}
