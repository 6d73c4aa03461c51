//! Handing out: first what waits for another attempt, in the order of offsets, then what is new.
//!
//! Whose turn it is says [`Turns`](super::turns::Turns); as much as that allows is handed out in one piece. A message
//! whose body is not in memory is read first; what stands behind it in the line of retries does not wait for that,
//! and neither does what is new.

use super::cache::{CachedChunk, TopicCache};
use super::consumer::{DELIVERY_BYTES, HandOut};
use super::group::Group;
use super::machine::Broker;
use super::reading::{READ_BYTES, READ_ONE_BYTES, RETRY_READS_MAX, Reads, Want};
use super::turns::{Slot, Turn};
use super::{Effect, Output, Read};
use crate::model::id::{GroupId, Offset, OffsetRange};
use crate::model::limits::Limits;
use crate::model::record::Record;
use crate::model::settings::Policy;
use crate::model::time::Timestamp;

/// Offsets by which the mark "may have been handed out" runs ahead, so that it is rarely written.
const HANDED_OUT_STEP: u64 = 8192;

/// One group's turn to hand out.
struct Dispatch<'a> {
    now: Timestamp,
    limits: &'a Limits,
    group: &'a mut Group,
    /// End of the topic.
    end: Offset,
    cached: Option<&'a TopicCache>,
    reads: &'a mut Reads,
    effects: &'a mut Vec<Effect>,
    read_list: &'a mut Vec<Read>,
    /// Consumers that got something, some more than once.
    served: Vec<Slot>,
    /// Numbers of the pulls that were answered, with the time their timers stand at.
    answered: Vec<(Timestamp, u64)>,
}

impl Broker {
    /// Makes what was settled in this cycle known.
    pub(super) fn make_settled_known(&mut self, id: GroupId, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let before = group.state.floor;
        let Some(record) = group.flush_settled() else { return };
        let moved = group.state.floor > before;
        let id = group.state.topic;
        if let Some(topic) = self.topics.get_mut(&id) {
            topic.garbage.settled(&record);
            if (moved && before <= topic.floor) || topic.garbage.may_be_much(self.limits.pinned_bytes_max) {
                self.check_floor(id);
            }
        }
        out.records.push(record);
    }

    /// Hands out what a group can hand out.
    pub(super) fn dispatch(&mut self, id: GroupId, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.dirty = false;
        group.redelivery.advance(self.now);
        if group.wants.not_before.is_some_and(|at| at <= self.now) {
            group.wants.not_before = None;
        }
        let Some(topic) = self.topics.get(&group.state.topic) else { return };
        if !group.turns.is_empty() || !group.overdue.is_empty() {
            let handed_out = group.state.handed_out;
            let mut dispatch = Dispatch {
                now: self.now,
                limits: &self.limits,
                end: topic.state.end,
                cached: self.cache.topic(group.state.topic),
                group,
                reads: &mut self.reads,
                effects: &mut out.effects,
                read_list: &mut out.reads,
                served: Vec::new(),
                answered: Vec::new(),
            };
            dispatch.redeliver();
            dispatch.hand_out_new();
            dispatch.complete_pulls();
            for (until, pull) in dispatch.answered {
                self.pull_timers.remove(&(until, pull));
            }
            if group.state.handed_out > handed_out {
                out.records.push(Record::HandedOut { group: id, end: group.state.handed_out });
            }
        }
        self.note(id);
    }
}

impl Dispatch<'_> {
    fn may_hand_out(&self) -> bool {
        !self.group.turns.is_empty() && self.group.in_flight < self.limits.in_flight_max
    }

    /// Whether the group may take on anything that it has not had before.
    ///
    /// Where nothing is in flight or waits, the oldest message is what the cursor stands at: after a start it may be
    /// one that was handed out before, and only handing it out again brings the number of settled ranges down.
    fn may_go_on(&self) -> bool {
        let group = &self.group;
        let oldest_at_cursor = group.in_flight == 0 && group.redelivery.count() == 0;
        self.may_hand_out()
            && group.redelivery.count() < self.limits.retries_max
            && ((group.state.settled.range_count() as u64) < self.limits.settled_ranges_max
                || oldest_at_cursor)
    }

    /// Hands out what is ready for another attempt.
    fn redeliver(&mut self) {
        let mut at = Offset(0);
        while self.may_hand_out()
            && let Some(ready) = self.group.redelivery.ready.range_from(at)
        {
            let start = ready.start.max(at);
            let Some(chunk) = self.cached.and_then(|cached| cached.at(start)) else {
                if !self.want_retry(start, ready.end) {
                    break;
                }
                at = ready.end;
                continue;
            };
            let (attempts, end) = self.group.attempts_run(start, ready.end.min(chunk.end()));
            let handed = self.hand_out(chunk, OffsetRange { start, end }, attempts, Redelivered::Yes);
            self.group.redelivery.take_ready(OffsetRange { start, end: handed });
            at = handed;
        }
    }

    /// Hands out what was never handed out, or not by this broker.
    fn hand_out_new(&mut self) {
        while self.group.cursor < self.end && self.may_go_on() {
            let start = self.group.cursor;
            let stop = if start < self.group.fresh_from {
                match self.group.unsettled_before(self.group.fresh_from) {
                    Some(stop) => stop,
                    None => continue,
                }
            } else {
                self.end
            };
            let Some(chunk) = self.cached.and_then(|cached| cached.at(start)) else {
                self.want_at_cursor(start);
                return;
            };
            let (redelivered, stop) = if start < self.group.known_from {
                (Redelivered::Yes, stop.min(self.group.known_from))
            } else {
                (Redelivered::No, stop)
            };
            let range = OffsetRange { start, end: stop.min(chunk.end()) };
            let handed = self.hand_out(chunk, range, 0, redelivered);
            self.group.cursor = handed;
            if handed > self.group.state.handed_out {
                self.group.state.handed_out = Offset((handed.0 / HANDED_OUT_STEP + 1) * HANDED_OUT_STEP);
            }
        }
        if !self.served.is_empty() && self.group.cursor < self.end {
            self.read_ahead();
        }
    }

    /// Hands messages of a chunk out until somebody's turn is not to be had. Answers where it stopped.
    fn hand_out(
        &mut self,
        chunk: &CachedChunk,
        range: OffsetRange,
        attempts: u32,
        redelivered: Redelivered,
    ) -> Offset {
        let deadline = self.now.after(self.group.state.settings.lease());
        let mut at = range.start;
        while at < range.end && self.group.in_flight < self.limits.in_flight_max {
            let Some((turn, next)) = self.group.turns.next() else { break };
            let most = turn_len(self.group.state.settings.policy, turn, next)
                .min(range.end.0 - at.0)
                .min(self.limits.in_flight_max - self.group.in_flight);
            let Some(consumer) = self.group.consumer_mut(turn.slot) else { break };
            let room = consumer.room();
            let index = (at.0 - chunk.first.0) as usize;
            let last = index + most.min(room.messages) as usize;
            let mut count = chunk.block.count_within(index, last, room.bytes.min(DELIVERY_BYTES));
            if count == 0 {
                let size = chunk.block.byte_len(index, index + 1) as u64;
                if size > room.bytes && !room.any_size {
                    self.turn_over(turn.slot);
                    continue;
                }
                count = 1;
            }
            let redelivered = redelivered == Redelivered::Yes;
            if consumer.has_sent_all() {
                self.served.push(turn.slot);
            }
            consumer.hand_out(chunk, HandOut { index, count, attempts, redelivered, deadline }, self.effects);
            self.group.served += 1;
            self.group.in_flight += count as u64;
            let served = self.group.served;
            if let Some(consumer) = self.group.consumer_mut(turn.slot) {
                consumer.served = served;
            }
            self.next_turn(turn.slot);
            at.0 += count as u64;
        }
        if at > range.start {
            self.group.check_leases_by(deadline);
        }
        at
    }

    /// Ends the turn of a consumer for whom the next message is too large: its pull is complete, or it has no credit
    /// until it settles something.
    fn turn_over(&mut self, slot: Slot) {
        let Some(consumer) = self.group.consumer_mut(slot) else { return };
        if consumer.pulls.is_empty() {
            consumer.stuck = true;
            self.group.refresh(slot);
        } else {
            self.complete_pull(slot);
        }
    }

    /// Gives a consumer that got something its next turn. A pull that has all it asked for is complete.
    fn next_turn(&mut self, slot: Slot) {
        let Some(consumer) = self.group.consumer(slot) else { return };
        if !consumer.pulls.is_empty() && consumer.room().messages == 0 {
            self.complete_pull(slot);
        } else {
            self.group.refresh(slot);
        }
    }

    fn complete_pull(&mut self, slot: Slot) {
        let Some(consumer) = self.group.consumer_mut(slot) else { return };
        if let Some(pull) = consumer.complete_pull(self.effects) {
            self.group.pulls_waiting -= 1;
            self.group.overdue.remove(&pull.id);
            self.answered.push((pull.until, pull.id));
        }
        self.group.refresh(slot);
    }

    /// Sends what was handed out; answers pulls that got something, and those whose time is over.
    fn complete_pulls(&mut self) {
        for slot in std::mem::take(&mut self.served) {
            let Some(consumer) = self.group.consumer_mut(slot) else { continue };
            consumer.send(self.effects);
            if consumer.pulls.front().is_some_and(|pull| pull.got > 0) {
                self.complete_pull(slot);
            }
        }
        if self.group.overdue.is_empty() {
            return;
        }
        // While something is read for the group, there is something to come for whoever can take it.
        let coming = self.group.wants.any() && self.may_hand_out();
        for (id, slot) in std::mem::take(&mut self.group.overdue) {
            let Some(consumer) = self.group.consumer_mut(slot) else { continue };
            if coming && consumer.has_credit() {
                self.group.overdue.insert(id, slot);
                continue;
            }
            let Some(index) = consumer.pulls.iter().position(|pull| pull.id == id) else { continue };
            if let Some(pull) = consumer.pulls.remove(index) {
                consumer.answer_pull(&pull, self.effects);
                self.group.pulls_waiting -= 1;
            }
            self.group.refresh(slot);
        }
    }

    /// Has a message read that waits for another attempt, with its neighbours if they wait too. Answers whether the
    /// group may have more of that kind read.
    fn want_retry(&mut self, from: Offset, ready_end: Offset) -> bool {
        let wants = &mut self.group.wants;
        if wants.not_before.is_some() || wants.retries.len() >= RETRY_READS_MAX {
            return false;
        }
        if wants.retries.insert(from) {
            let bytes = if ready_end.0 - from.0 > 1 { READ_BYTES } else { READ_ONE_BYTES };
            self.want(from, bytes);
        }
        true
    }

    fn want_at_cursor(&mut self, from: Offset) {
        if self.group.wants.cursor.is_none() && self.group.wants.not_before.is_none() {
            self.group.wants.cursor = Some(from);
            self.want(from, READ_BYTES);
        }
    }

    fn want(&mut self, from: Offset, bytes: usize) {
        let want = Want { topic: self.group.state.topic, from, bytes, group: self.group.id };
        self.reads.want(want, self.read_list);
    }

    /// Has the next messages read before the ones in memory are used up.
    fn read_ahead(&mut self) {
        let Some(cached) = self.cached else { return };
        let mut at = self.group.cursor;
        let mut last = at;
        if let Some(chunk) = cached.at(at) {
            last = chunk.end();
            at = last.max(self.group.wants.ahead);
            while at < self.end
                && let Some(chunk) = cached.at(at)
            {
                at = chunk.end();
            }
            self.group.wants.ahead = at;
        }
        if at == last {
            // What is settled may not be there any more.
            let next = self.group.state.settled.range_at(at).map_or(at, |settled| settled.end);
            if next < self.end {
                self.want_at_cursor(next);
            }
        }
    }
}

/// How many messages in a row the consumer whose turn it is gets before somebody else's turn comes.
fn turn_len(policy: Policy, turn: Turn, next: Option<Turn>) -> u64 {
    match (policy, next) {
        (_, None) => u64::MAX,
        (Policy::RoundRobin, Some(_)) => 1,
        (Policy::Fair, Some(next)) => (next.rank - turn.rank).max(1),
    }
}

/// Whether messages may have been handed out before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Redelivered {
    Yes,
    No,
}
