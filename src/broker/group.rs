//! A consumer group: its durable progress, its consumers, and what waits to be handed out again.
//!
//! Every offset of the topic is, for a group, exactly one of: settled; in flight to one consumer; waiting to be
//! handed out again (`ready` now, `due` later); `dying`, on its way to the dead letters; or not handed out yet by
//! this broker, which is what lies at and above `cursor` and is none of the others.
//!
//! Deciding who gets what is in `dispatch`, what comes back is in `settle`.

use std::collections::{BTreeMap, BTreeSet};

use super::consumer::Consumer;
use super::turns::{Slot, Turn, Turns};
use crate::model::id::{GroupId, Offset, OffsetRange};
use crate::model::ranges::RangeSet;
use crate::model::record::{Record, Retry, ReturnReason};
use crate::model::settings::Policy;
use crate::model::snapshot::GroupState;
use crate::model::time::Timestamp;

/// What waits for another attempt.
#[derive(Debug, Default)]
pub(super) struct Redelivery {
    /// To be handed out as soon as someone has credit.
    pub ready: RangeSet,
    ready_count: u64,
    /// To be handed out from a point of time on.
    pub due: BTreeSet<(Timestamp, Offset)>,
    /// To be moved to the dead letters.
    pub dying: BTreeSet<Offset>,
}

impl Redelivery {
    /// Messages that wait, in whatever way.
    pub fn count(&self) -> u64 {
        self.ready_count + (self.due.len() + self.dying.len()) as u64
    }

    /// Has a range handed out as soon as possible. None of it is ready yet.
    pub fn make_ready(&mut self, range: OffsetRange) {
        self.ready_count += range.len();
        self.ready.insert(range);
    }

    /// Takes a range out of what is ready. All of it is.
    pub fn take_ready(&mut self, range: OffsetRange) {
        self.ready_count -= range.len();
        self.ready.remove(range);
    }

    /// Makes ready what is due.
    pub fn advance(&mut self, now: Timestamp) {
        while let Some(&(due_at, offset)) = self.due.first() {
            if due_at > now {
                break;
            }
            self.due.pop_first();
            self.make_ready(OffsetRange::one(offset));
        }
    }
}

/// What the group has asked the store for.
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

/// A consumer group.
#[derive(Debug)]
pub(super) struct Group {
    pub id: GroupId,
    /// What is durable. `settling` is not in it until the cycle ends.
    pub state: GroupState,
    consumers: Vec<Option<Consumer>>,
    vacant: Vec<Slot>,
    pub turns: Turns,
    /// Hand-overs so far.
    pub served: u64,
    /// Next offset that this broker has not handed out.
    pub cursor: Offset,
    /// Offsets below may have been handed out by a broker before this one, or be settled.
    pub fresh_from: Offset,
    /// Offsets below may have been handed out by a broker before this one.
    pub known_from: Offset,
    /// Messages in flight to all consumers.
    pub in_flight: u64,
    pub redelivery: Redelivery,
    /// Settled in this cycle; not in order.
    settling: Vec<OffsetRange>,
    pub wants: Wants,
    /// No lease ends before this.
    pub lease_check: Option<Timestamp>,
    /// After a dead letter that could not be written: not tried again before this.
    pub dying_not_before: Option<Timestamp>,
    /// When the broker will look at the group by itself.
    pub timer: Option<Timestamp>,
    /// Whether it is on the list of groups to look at in this cycle.
    pub dirty: bool,
    pub pulls_waiting: u64,
    /// Pulls whose time is over, by their number.
    pub overdue: BTreeMap<u64, Slot>,
    /// What of this group is in the totals of the broker: in flight, waiting for another attempt.
    pub counted: (u64, u64),
}

impl Group {
    /// A group as a broker before this one left it. `end` is that of its topic.
    pub fn recover(id: GroupId, state: GroupState, end: Offset) -> Self {
        let settled_end = state.settled.iter().last().map_or(Offset(0), |range| range.end);
        let retries_end = state.retries.last_key_value().map_or(Offset(0), |(offset, _)| offset.next());
        let known_from = state.handed_out.min(end);
        let fresh_from = known_from.max(settled_end).max(retries_end);
        Self {
            id,
            consumers: Vec::new(),
            vacant: Vec::new(),
            turns: Turns::default(),
            served: 0,
            cursor: state.floor,
            fresh_from,
            known_from,
            in_flight: 0,
            redelivery: Redelivery::default(),
            settling: Vec::new(),
            wants: Wants::default(),
            lease_check: None,
            dying_not_before: None,
            timer: None,
            dirty: false,
            pulls_waiting: 0,
            overdue: BTreeMap::new(),
            counted: (0, 0),
            state,
        }
    }

    /// Puts what waited for another attempt where it belongs. `mortal` is whether dead letters have a place to go.
    pub fn resume_retries(&mut self, mortal: bool) {
        let max_attempts = self.state.settings.max_attempts;
        for (&offset, retry) in &self.state.retries {
            if mortal && is_dead(retry, max_attempts) {
                self.redelivery.dying.insert(offset);
            } else {
                self.redelivery.due.insert((retry.due_at, offset));
            }
        }
    }

    /// Lets changed settings hold for what already waits: buries what has failed too often by now, and spares what
    /// was dying and has not. `mortal` is whether dead letters have a place to go.
    pub fn sort_retries(&mut self, mortal: bool) {
        let Self { state, redelivery, .. } = self;
        let dead = |offset: &Offset| {
            let retry = state.retries.get(offset);
            mortal && retry.is_some_and(|retry| is_dead(retry, state.settings.max_attempts))
        };
        let mut buried: Vec<Offset> = Vec::new();
        redelivery.due.retain(|(_, offset)| {
            let dead = dead(offset);
            buried.extend(dead.then_some(*offset));
            !dead
        });
        let ready: Vec<Offset> = redelivery
            .ready
            .iter()
            .flat_map(|range| state.retries.range(range.start..range.end).map(|(offset, _)| *offset))
            .filter(dead)
            .collect();
        for &offset in &ready {
            redelivery.take_ready(OffsetRange::one(offset));
        }
        let spared: Vec<Offset> = redelivery.dying.iter().filter(|offset| !dead(offset)).copied().collect();
        for offset in spared {
            redelivery.dying.remove(&offset);
            let due_at = state.retries.get(&offset).map_or(Timestamp(0), |retry| retry.due_at);
            redelivery.due.insert((due_at, offset));
        }
        redelivery.dying.extend(buried);
        redelivery.dying.extend(ready);
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
        if let Some((&retry, _)) = self.state.retries.range(self.cursor..limit).next() {
            if retry == self.cursor {
                self.cursor = retry.next();
                return None;
            }
            stop = retry;
        }
        match self.state.settled.range_from(self.cursor) {
            Some(settled) => Some(stop.min(settled.start)),
            None => Some(stop),
        }
    }

    /// Settles what is below the start of the topic and not in flight: the messages are not there any more.
    pub fn pass_dropped(&mut self, start: Offset) {
        let mut passed = self.state.settled.clone();
        for range in &self.settling {
            passed.insert(*range);
        }
        for (_, consumer) in self.consumers() {
            for range in consumer.flights.iter() {
                passed.insert(range);
            }
        }
        let dropped = OffsetRange { start: self.state.floor, end: start };
        let gaps: Vec<OffsetRange> = passed.gaps(dropped).collect();
        for gap in gaps {
            self.settle(gap);
            while let Some(ready) = self.redelivery.ready.range_from(gap.start)
                && ready.start < gap.end
            {
                let end = ready.end.min(gap.end);
                self.redelivery.take_ready(OffsetRange { start: ready.start.max(gap.start), end });
            }
            self.redelivery.due.retain(|(_, offset)| !gap.contains(*offset));
            self.redelivery.dying.retain(|offset| !gap.contains(*offset));
        }
        self.cursor = self.cursor.max(start);
    }

    /// Failed attempts of the message at `at`, and up to where, at most `end`, the others have failed as often.
    pub fn attempts_run(&self, at: Offset, end: Offset) -> (u32, Offset) {
        let mut retries = self.state.retries.range(at..end);
        match retries.next() {
            Some((&offset, retry)) if offset == at => {
                let mut stop = at.next();
                for (&offset, next) in retries {
                    if offset != stop || next.attempts != retry.attempts {
                        break;
                    }
                    stop = stop.next();
                }
                (retry.attempts, stop)
            }
            Some((&offset, _)) => (0, offset),
            None => (0, end),
        }
    }

    /// Marks a range settled; it is made known with [`flush_settled`](Self::flush_settled).
    pub fn settle(&mut self, range: OffsetRange) {
        settle_into(&mut self.settling, range);
    }

    /// What `consumer` has in flight within `range` is settled. Answers how many messages that are.
    pub fn ack(&mut self, slot: Slot, ranges: &[OffsetRange]) -> u64 {
        let Some(consumer) = self.consumers.get_mut(slot as usize).and_then(Option::as_mut) else { return 0 };
        let before = consumer.flights.count();
        for range in ranges {
            consumer.flights.take(*range, |piece, _| settle_into(&mut self.settling, piece));
        }
        let count = before - consumer.flights.count();
        self.in_flight -= count;
        count
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

    /// Adds a consumer.
    pub fn join(&mut self, consumer: Consumer) -> Slot {
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.consumers[slot as usize] = Some(consumer);
                slot
            }
            None => {
                self.consumers.push(Some(consumer));
                (self.consumers.len() - 1) as Slot
            }
        };
        self.refresh(slot);
        slot
    }

    /// Takes a consumer out. What it has in flight goes with it.
    pub fn leave(&mut self, slot: Slot) -> Option<Consumer> {
        let consumer = self.consumers.get_mut(slot as usize)?.take()?;
        self.vacant.push(slot);
        self.turns.replace(consumer.turn, None);
        self.pulls_waiting -= consumer.pulls.len() as u64;
        for pull in &consumer.pulls {
            self.overdue.remove(&pull.id);
        }
        self.in_flight -= consumer.flights.count();
        Some(consumer)
    }

    pub fn consumer(&self, slot: Slot) -> Option<&Consumer> {
        self.consumers.get(slot as usize)?.as_ref()
    }

    pub fn consumer_mut(&mut self, slot: Slot) -> Option<&mut Consumer> {
        self.consumers.get_mut(slot as usize)?.as_mut()
    }

    /// The consumers with their places.
    pub fn consumers(&self) -> impl Iterator<Item = (Slot, &Consumer)> {
        (0..).zip(&self.consumers).filter_map(|(slot, consumer)| Some((slot, consumer.as_ref()?)))
    }

    /// The consumers with their places, to be changed.
    pub fn consumers_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Consumer)> {
        (0..).zip(&mut self.consumers).filter_map(|(slot, consumer)| Some((slot, consumer.as_mut()?)))
    }

    pub fn consumer_count(&self) -> usize {
        self.consumers.len() - self.vacant.len()
    }

    /// Gives a consumer the turn that it should have now.
    pub fn refresh(&mut self, slot: Slot) {
        let Some(consumer) = self.consumers.get_mut(slot as usize).and_then(Option::as_mut) else { return };
        let rank = match self.state.settings.policy {
            Policy::RoundRobin => 0,
            Policy::Fair => consumer.flights.count(),
        };
        let turn = consumer.has_credit().then_some(Turn { rank, served: consumer.served, slot });
        self.turns.replace(consumer.turn, turn);
        consumer.turn = turn;
    }

    /// Gives every consumer the turn that it should have now.
    pub fn refresh_all(&mut self) {
        for slot in 0..self.consumers.len() as Slot {
            self.refresh(slot);
        }
    }

    /// Has the leases looked at by `deadline` at the latest.
    pub fn check_leases_by(&mut self, deadline: Timestamp) {
        self.lease_check = Some(self.lease_check.map_or(deadline, |check| check.min(deadline)));
    }

    /// When the group must be looked at though nothing happens to it.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let due = self.redelivery.due.first().map(|(due_at, _)| *due_at);
        [self.lease_check, due, self.wants.not_before, self.dying_not_before].into_iter().flatten().min()
    }
}

/// Whether a message that came back goes to the dead letters.
pub(super) fn is_dead(retry: &Retry, max_attempts: u32) -> bool {
    retry.reason == ReturnReason::Rejected || (max_attempts != 0 && retry.attempts >= max_attempts)
}

/// Appends a range, to the last one where it goes on from there.
fn settle_into(ranges: &mut Vec<OffsetRange>, range: OffsetRange) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
