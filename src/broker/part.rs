//! What a consumer group has of one topic: its durable progress there, and what of it waits to be handed out again.
//!
//! Every offset of the topic is, for the part, exactly one of: settled; in flight to one consumer; waiting to be
//! handed out again (`ready` now, `due` later); `dying`, on its way to the dead letters; parked behind a key, in a
//! group that hands out by key; or not handed out yet by this broker, which is what lies at and above `cursor` and is
//! none of the others.

use std::collections::BTreeSet;

use super::keys::Keys;
use super::lineup::Place;
use super::redelivery::{Dead, Redelivery};
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::ranges::RangeSet;
use crate::model::record::Record;
use crate::model::retry::Retry;
use crate::model::settings::{GroupSettings, Policy};
use crate::model::snapshot::GroupState;
use crate::model::time::Timestamp;

/// Offsets by which the mark "may have been handed out" runs ahead, so that it is rarely written.
const HANDED_OUT_STEP: u64 = 8192;

/// What a part has asked the store for.
#[derive(Debug, Default)]
pub(super) struct Wants {
    /// The read that goes on at the cursor.
    pub cursor: Option<Offset>,
    /// Reads of single messages that wait for another attempt or die.
    pub retries: BTreeSet<Offset>,
    /// Offset up to which the cache has been looked through.
    pub ahead: Offset,
    /// After a read in vain: not asked again before this.
    pub not_before: Option<Timestamp>,
}

impl Wants {
    /// Whether something is being read.
    pub fn any(&self) -> bool {
        self.cursor.is_some() || !self.retries.is_empty()
    }
}

/// What a group has of one topic.
#[derive(Debug)]
pub(super) struct Part {
    /// Its own number; of the part with the group's own topic, that of the group.
    pub id: GroupId,
    /// What is durable. `settling` is not in it until the cycle ends.
    pub state: GroupState,
    /// Priority of the messages of the topic.
    pub priority: u8,
    /// Next offset that this broker has not handed out.
    pub cursor: Offset,
    /// Offsets below may have been handed out by a broker before this one, or be settled.
    pub fresh_from: Offset,
    /// Offsets below may have been handed out by a broker before this one.
    pub known_from: Offset,
    /// What is below was there before, or the filter was asked about it when it was published.
    pub judged: Offset,
    pub redelivery: Redelivery,
    /// What is known of keys, where the group hands out by key.
    pub keys: Option<Keys>,
    /// Settled in this cycle; not in order.
    settling: Vec<OffsetRange>,
    pub wants: Wants,
    /// After a dead letter that could not be written: not tried again before this.
    pub dying_not_before: Option<Timestamp>,
    /// When it is to be looked at though nothing happens to it.
    pub wake: Option<Timestamp>,
    /// Its place in the line of its group, while it may have something to hand out.
    pub place: Option<Place>,
    /// Whether it is on the list of those that something happened to in this cycle.
    pub touched: bool,
    /// Messages that wait for another attempt, and that are parked, as they are in the totals of the group.
    pub counted: (u64, u64),
}

impl Part {
    /// A part as a broker before this one left it. `end` is that of its topic.
    pub fn recover(id: GroupId, state: GroupState, priority: u8, end: Offset) -> Self {
        let settled_end = state.settled.iter().last().map_or(Offset(0), |range| range.end);
        let retries_end = state.retries.last().map_or(Offset(0), |(range, _)| range.end);
        let known_from = state.handed_out.min(end);
        let fresh_from = known_from.max(settled_end).max(retries_end);
        Self {
            id,
            priority,
            cursor: state.floor,
            fresh_from,
            known_from,
            judged: end,
            redelivery: Redelivery::default(),
            keys: None,
            settling: Vec::new(),
            wants: Wants::default(),
            dying_not_before: None,
            wake: None,
            place: None,
            touched: false,
            counted: (0, 0),
            state,
        }
    }

    /// Goes through everything from the floor on again, to be handed out by this policy. Nothing of it is in flight.
    pub fn rewind(&mut self, policy: Policy) {
        for range in self.aside() {
            self.redelivery.take_ready(range);
        }
        self.fresh_from = self.fresh_from.max(self.cursor);
        self.cursor = self.state.floor;
        self.wants.ahead = Offset(0);
        self.keys = (policy == Policy::Key).then(Keys::default);
    }

    /// Whether messages that wait for another attempt lie before the cursor, as after a start: an order cannot be
    /// kept until it has passed them.
    pub fn has_retries_ahead(&self) -> bool {
        let ahead = OffsetRange { start: self.cursor, end: OffsetRange::ALL.end };
        self.redelivery.ready.range_from(self.cursor).is_some()
            || self.redelivery.due.within(ahead).next().is_some()
    }

    /// Notes that messages have been handed out up to this offset, so far that this is rarely durable news.
    pub fn note_handed_out(&mut self, end: Offset) {
        if end > self.state.handed_out {
            self.state.handed_out = Offset((end.0 / HANDED_OUT_STEP + 1) * HANDED_OUT_STEP);
        }
    }

    /// Makes ready what is due.
    pub fn advance(&mut self, now: Timestamp) {
        while let Some(offset) = self.redelivery.due.pop(now) {
            self.redelivery.make_ready(OffsetRange::one(offset));
            self.offer_again(OffsetRange::one(offset));
        }
    }

    /// Puts messages that came back where they wait.
    pub fn put_back(&mut self, range: OffsetRange, retry: &Retry, dead: Dead, now: Timestamp) {
        self.redelivery.put(range, retry, dead, now);
        if dead == Dead::No && retry.due_at <= now {
            self.offer_again(range);
        }
    }

    /// Offers what is ready to the consumers of its keys. What the cursor has not come by is offered when it does.
    fn offer_again(&mut self, range: OffsetRange) {
        if let Some(keys) = &mut self.keys {
            let passed = range.start.0..range.end.0.min(self.cursor.0);
            passed.for_each(|offset| keys.offer_again(Offset(offset)));
        }
    }

    /// The topic.
    pub fn topic(&self) -> TopicId {
        self.state.topic
    }

    /// Puts what waited for another attempt where it belongs. `mortal` is whether dead letters have a place to go.
    pub fn resume_retries(&mut self, mortal: bool, settings: &GroupSettings) {
        for (range, retry) in self.state.retries.iter() {
            // What is due is made ready when somebody first looks.
            self.redelivery.put(range, retry, Dead::after(retry, mortal, settings), Timestamp(0));
        }
    }

    /// Lets changed settings hold for what already waits: buries what has failed too often by now, and spares what
    /// was dying and has not. `mortal` is whether dead letters have a place to go.
    pub fn sort_retries(&mut self, mortal: bool, settings: &GroupSettings) {
        let Self { state, redelivery, .. } = self;
        let retry_of = |offset: Offset| state.retries.get(offset);
        let dead = |offset: &Offset| {
            retry_of(*offset).is_some_and(|retry| Dead::after(retry, mortal, settings) == Dead::Yes)
        };
        let mut buried: Vec<Offset> = redelivery.due.within(OffsetRange::ALL).filter(dead).collect();
        buried.iter().for_each(|offset| redelivery.due.remove(*offset));
        let ready: Vec<OffsetRange> = redelivery
            .ready
            .iter()
            .flat_map(|range| state.retries.within(range))
            .filter(|(_, retry)| Dead::after(retry, mortal, settings) == Dead::Yes)
            .map(|(range, _)| range)
            .collect();
        for &range in &ready {
            redelivery.take_ready(range);
            buried.extend((range.start.0..range.end.0).map(Offset));
        }
        let spared: Vec<Offset> = redelivery.dying.iter().filter(|offset| !dead(offset)).copied().collect();
        for offset in spared {
            redelivery.dying.remove(&offset);
            let due_at = retry_of(offset).map_or(Timestamp(0), |retry| retry.due_at);
            redelivery.due.insert(due_at, offset);
        }
        redelivery.dying.extend(buried);
    }

    /// Moves the cursor on if it stands on what is settled. Answers whether it has.
    pub fn skip_settled(&mut self) -> bool {
        let before = self.cursor;
        if self.cursor < self.fresh_from {
            self.cursor = self.cursor.max(self.state.floor);
            if let Some(settled) = self.state.settled.range_at(self.cursor) {
                self.cursor = settled.end;
            }
        }
        self.cursor > before
    }

    /// Moves the cursor on if it stands on what is settled or waits for another attempt. Where it does not, answers
    /// up to where, at most `limit`, nothing of that kind follows.
    pub fn unsettled_before(&mut self, limit: Offset) -> Option<Offset> {
        if self.cursor < self.state.floor {
            self.cursor = self.state.floor;
            return None;
        }
        if let Some(settled) = self.state.settled.range_at(self.cursor) {
            self.cursor = settled.end;
            return None;
        }
        let mut stop = limit;
        if let Some((retry, _)) = self.state.retries.run_from(self.cursor) {
            if retry.start <= self.cursor {
                self.cursor = retry.end;
                return None;
            }
            stop = stop.min(retry.start);
        }
        match self.state.settled.range_from(self.cursor) {
            Some(settled) => Some(stop.min(settled.start)),
            None => Some(stop),
        }
    }

    /// What was [put aside](Self::put_aside): all else that is ready came back, and is known for that.
    fn aside(&self) -> Vec<OffsetRange> {
        let mut aside = Vec::new();
        for ready in self.redelivery.ready.iter() {
            let mut at = ready.start;
            for (came_back, _) in self.state.retries.within(ready) {
                aside.push(OffsetRange { start: at, end: came_back.start });
                at = came_back.end;
            }
            aside.push(OffsetRange { start: at, end: ready.end });
        }
        aside.retain(|range| !range.is_empty());
        aside
    }

    /// Passes what cannot be read now, from the cursor up to `end`, none of which is settled: it waits like what came back.
    pub fn put_aside(&mut self, end: Offset) {
        self.redelivery.make_ready(OffsetRange { start: self.cursor, end });
        self.cursor = end;
        self.note_handed_out(end);
    }

    /// What of `range` is neither settled yet, nor dying, nor among the `flights`, ranges in flight.
    pub fn unheld(&self, range: OffsetRange, flights: impl Iterator<Item = OffsetRange>) -> Vec<OffsetRange> {
        self.unheld_of(&[range], flights)
    }

    /// What of `ranges`, in order and apart, is neither settled yet, nor dying, nor among the `flights`.
    pub fn unheld_of(
        &self,
        ranges: &[OffsetRange],
        flights: impl Iterator<Item = OffsetRange>,
    ) -> Vec<OffsetRange> {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return Vec::new() };
        let from = first.start.max(self.state.floor);
        let mut held = RangeSet::new();
        let dying = self.redelivery.dying.range(from..last.end.max(from));
        let others =
            self.settling.iter().copied().chain(flights).chain(dying.map(|at| OffsetRange::one(*at)));
        others.for_each(|range| {
            held.insert(range);
        });
        let above = |range: &OffsetRange| OffsetRange { start: range.start.max(from), end: range.end };
        let open = ranges.iter().map(above).flat_map(|range| self.state.settled.gaps(range));
        open.flat_map(|gap| held.gaps(gap)).collect()
    }

    /// Settles what of `range` is neither settled yet nor among the `flights`: it will not be handed out (again).
    /// Answers the pieces.
    pub fn settle_unheld(
        &mut self,
        range: OffsetRange,
        flights: impl Iterator<Item = OffsetRange>,
    ) -> Vec<OffsetRange> {
        let mut pieces = self.unheld(range, flights);
        let dying: Vec<Offset> = self.redelivery.dying.range(range.start..range.end).copied().collect();
        pieces.extend(dying.into_iter().map(OffsetRange::one));
        for &piece in &pieces {
            self.settle(piece);
            self.redelivery.forget(piece);
        }
        pieces
    }

    /// Is done with what of `range` is not among the `flights`: those messages are gone, whatever they waited for.
    pub fn drop_below(&mut self, range: OffsetRange, flights: impl Iterator<Item = OffsetRange>) {
        let range = OffsetRange { start: range.start.max(self.state.floor), end: range.end };
        self.cursor = self.cursor.max(range.end);
        if range.start >= range.end {
            return;
        }
        let dying: Vec<Offset> = self.redelivery.dying.range(range.start..range.end).copied().collect();
        for piece in self.unheld(range, flights) {
            self.settle(piece);
        }
        for offset in dying {
            self.settle(OffsetRange::one(offset));
        }
        self.redelivery.forget(range);
    }

    /// Goes on at another place, where nothing is in flight: what is before it is settled, and what is from there on
    /// and not `removed` from the topic, which ends at `end`, is not.
    pub fn seek(&mut self, floor: Offset, removed: &RangeSet, end: Offset) {
        // The cursor may have gone back since, where the policy was changed.
        let handed_out = self.cursor.max(self.fresh_from);
        self.state.seek(floor, removed);
        self.cursor = self.state.floor;
        self.known_from = handed_out.min(end);
        let settled_end = self.state.settled.iter().last().map_or(Offset(0), |range| range.end);
        self.fresh_from = self.known_from.max(settled_end);
        self.redelivery = Redelivery::default();
        self.keys = self.keys.is_some().then(Keys::default);
        self.wants.ahead = Offset(0);
        (self.wants.not_before, self.dying_not_before) = (None, None);
    }

    /// Settles what of the ranges is not settled yet. None of it is in flight, and what was settled in this cycle is
    /// part of the state.
    pub fn settle_all(&mut self, ranges: &[OffsetRange]) {
        for range in ranges {
            let from = OffsetRange { start: range.start.max(self.state.floor), end: range.end };
            if from.is_empty() {
                continue;
            }
            let gaps: Vec<OffsetRange> = self.state.settled.gaps(from).collect();
            for gap in gaps {
                self.settle(gap);
                self.redelivery.forget(gap);
            }
            // The cursor may not have come by.
            self.fresh_from = self.fresh_from.max(range.end);
        }
    }

    /// What is known of the message at `at`, and up to where, at most `end`, the same is known of the others.
    pub fn retry_run(&self, at: Offset, end: Offset) -> (Option<&Retry>, Offset) {
        match self.state.retries.run_from(at) {
            Some((run, retry)) if run.start <= at => (Some(retry), run.end.min(end)),
            Some((run, _)) => (None, run.start.min(end)),
            None => (None, end),
        }
    }

    /// Has messages whose time is over moved to the dead letters. They are neither in flight nor waiting.
    pub fn bury_expired(&mut self, range: OffsetRange, now: Timestamp, records: &mut Vec<Record>) {
        let mut at = range.start;
        while at < range.end {
            let (known, end) = self.retry_run(at, range.end);
            let retry = known.cloned().unwrap_or_default().expired(now);
            let range = OffsetRange { start: at, end };
            self.state.retries.insert(range, retry.clone());
            self.redelivery.dying.extend((at.0..end.0).map(Offset));
            if let Some(keys) = &mut self.keys {
                keys.unpark_within(range);
            }
            records.push(Record::Returned { group: self.id, range, retry });
            at = end;
        }
    }

    /// Marks a range settled; it is made known with [`flush_settled`](Self::flush_settled).
    pub fn settle(&mut self, range: OffsetRange) {
        if let Some(keys) = &mut self.keys {
            keys.settled(range);
        }
        settle_into(&mut self.settling, range);
    }

    /// Ranges that are settled, known or not.
    pub fn settled_range_count(&self) -> usize {
        self.state.settled.range_count() + self.settling.len()
    }

    /// Makes what was settled in this cycle part of the state. Answers the record that says so.
    pub fn flush_settled(&mut self) -> Option<Record> {
        if self.settling.is_empty() {
            return None;
        }
        let mut settled = std::mem::take(&mut self.settling);
        // Each consumer settles upwards: the stable sort merges their runs.
        settled.sort();
        let mut ranges: Vec<OffsetRange> = Vec::with_capacity(settled.len().min(64));
        for range in settled {
            debug_assert!(ranges.last().is_none_or(|last| last.end <= range.start), "settled twice: {range}");
            settle_into(&mut ranges, range);
        }
        for range in &ranges {
            self.state.settle(*range);
        }
        Some(Record::Settled { group: self.id, ranges })
    }

    /// Whether there is, in a topic that ends at `end`, anything that could be handed out.
    pub fn has_more(&self, end: Offset) -> bool {
        self.cursor < end
            || !self.redelivery.ready.is_empty()
            || self.keys.as_ref().is_some_and(Keys::has_offers)
    }

    /// Messages that are parked behind a key.
    pub fn parked_count(&self) -> u64 {
        self.keys.as_ref().map_or(0, Keys::parked_count)
    }

    /// When it must be looked at though nothing happens to it.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let due = self.redelivery.due.next_at();
        [due, self.wants.not_before, self.dying_not_before].into_iter().flatten().min()
    }
}

/// Appends a range, to the last one where it goes on from there.
fn settle_into(ranges: &mut Vec<OffsetRange>, range: OffsetRange) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
