//! Handing out: first what waits for another attempt, in the order of offsets, then what is new. Policies that keep
//! an order do it in ways of their own: [`exclusive`](super::in_order), [`key`](super::keyed).
//!
//! Whose turn it is says [`Turns`](super::turns::Turns); as much as that allows is handed out in one piece. A message
//! whose body is not in memory is read first; what stands behind it in the line of retries does not wait for that,
//! and neither does what is new.
//!
//! A cycle hands out about as much as there is memory for, and the next one goes on with those whose turn did not come:
//! only between cycles it is seen who takes what it gets, and how much all connections hold together.

use std::collections::BTreeMap;

use super::cache::{CachedChunk, TopicCache};
use super::consumer::{DELIVERY_BYTES, HandOut, Redelivered};
use super::flights::Lease;
use super::group::Group;
use super::machine::Broker;
use super::members::Members;
use super::part::Part;
use super::reading::{READ_BYTES, READ_ONE_BYTES, RETRY_READS_MAX, Reads, Want};
use super::sieve::{Sieve, Verdict};
use super::topic::Topic;
use super::turns::{Slot, Turn};
use super::{Content, Effect, Output, Read, dead_letter};
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::limits::Limits;
use crate::model::record::Record;
use crate::model::retry::Retry;
use crate::model::settings::{GroupSettings, Policy};
use crate::model::time::Timestamp;
use crate::protocol::response::ConsumerTopic;

/// Messages that a group passes over in one cycle.
const PASSED_PER_CYCLE: u64 = 64 << 10;

/// What there is of a topic.
#[derive(Clone, Copy)]
pub(super) struct Log<'a> {
    pub topic: TopicId,
    name: &'a str,
    priority: u8,
    /// End of the topic.
    pub end: Offset,
    pub cached: Option<&'a TopicCache>,
    /// Whether dead letters have a place to go.
    mortal: bool,
}

/// One group's turn to hand out.
pub(super) struct Dispatch<'a> {
    now: Timestamp,
    limits: &'a Limits,
    group: GroupId,
    /// The topic that it is a group of.
    own_topic: TopicId,
    settings: &'a GroupSettings,
    pub members: &'a mut Members,
    pub sieve: Sieve<'a>,
    reads: &'a mut Reads,
    records: &'a mut Vec<Record>,
    effects: &'a mut Vec<Effect>,
    read_list: &'a mut Vec<Read>,
    /// Messages that may still be handed out of the part whose turn it is.
    pub budget: u64,
    /// The lease of what is handed out.
    lease: Lease,
    /// Whether something is being read for the group.
    reading: bool,
    /// Bytes that may still be handed out in this cycle.
    bytes_left: &'a mut u64,
    /// Messages that may still be passed over in this cycle.
    pub passes_left: u64,
    /// Messages that may still be parked behind keys.
    pub parks_left: u64,
    /// Topics of which something was passed over.
    pub passed: Vec<TopicId>,
    /// Consumers that got something, some more than once.
    served: Vec<Slot>,
    /// Numbers of the pulls that were answered, with the time their timers stand at.
    answered: Vec<(Timestamp, u64)>,
}

impl Broker {
    /// Makes what was settled in this cycle known.
    pub(super) fn make_settled_known(&mut self, id: GroupId, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut moved_floors = Vec::new();
        for topic_id in &group.touched {
            let Some(part) = group.parts.get_mut(topic_id) else { continue };
            let before = part.state.floor;
            let Some(record) = part.flush_settled() else { continue };
            let moved = part.state.floor > before;
            if let Some(topic) = self.topics.get_mut(topic_id) {
                topic.garbage.settled(&record);
                if (moved && before <= topic.floor) || topic.garbage.may_be_much(self.limits.pinned_bytes_max)
                {
                    moved_floors.push(*topic_id);
                }
            }
            out.records.push(record);
        }
        for topic in moved_floors {
            self.check_floor(topic);
        }
    }

    /// Takes note of what became of a group in this cycle. Puts it in line if somebody may take what it has.
    pub(super) fn look_at_group(&mut self, id: GroupId, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.dirty = false;
        group.members.tell_roles(&mut out.effects);
        group.change_policy();
        for topic in std::mem::take(&mut group.touched) {
            let Some(part) = group.parts.get_mut(&topic) else { continue };
            part.touched = false;
            part.advance(self.now);
            if part.wants.not_before.is_some_and(|at| at <= self.now) {
                part.wants.not_before = None;
            }
            if !is_paused(&self.topics, group.topic, topic)
                && self.topics.get(&topic).is_some_and(|topic| part.has_more(topic.state.end))
            {
                group.lineup.enter(&mut part.place, part.priority, topic);
            }
            group.note(topic);
        }
        let may_be_taken = !group.members.turns.is_empty() || !group.members.overdue.is_empty();
        if may_be_taken {
            self.line_up(id);
        }
        self.note(id);
    }

    /// Puts a group at the end of the line, unless it is there.
    fn line_up(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !std::mem::replace(&mut group.in_line, true) {
            self.cycle.line.push_back(id);
        }
    }

    /// Hands out what the groups in line can hand out, one after the other. Those that come behind as much as a cycle
    /// hands out are the first ones in the next cycle; the one that came to it may have more, and is the last.
    pub(super) fn dispatch(&mut self, out: &mut Output) {
        self.cycle.bytes_left = self.room_for_output.max(1);
        while self.cycle.bytes_left > 0
            && let Some(group) = self.cycle.line.pop_front()
        {
            self.hand_out(group, out);
            self.note(group);
            if self.cycle.bytes_left == 0 {
                self.line_up(group);
            }
        }
    }

    /// Hands out of the parts of a group in their turn.
    fn hand_out(&mut self, id: GroupId, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.in_line = false;
        let Group { lineup, parts, members, settings, filter, .. } = group;
        let lease = Lease { since: self.now, until: self.now.after(settings.lease()) };
        let mut dispatch = Dispatch {
            now: self.now,
            limits: &self.limits,
            group: id,
            own_topic: group.topic,
            settings,
            members,
            sieve: Sieve::new(filter.as_ref(), self.now),
            reads: &mut self.reads,
            records: &mut out.records,
            effects: &mut out.effects,
            read_list: &mut out.reads,
            budget: 0,
            lease,
            reading: false,
            bytes_left: &mut self.cycle.bytes_left,
            passes_left: PASSED_PER_CYCLE,
            parks_left: self.limits.parked_max.saturating_sub(group.parked),
            passed: Vec::new(),
            served: Vec::new(),
            answered: Vec::new(),
        };
        let (mut looked_at, mut put_aside) = (Vec::new(), Vec::new());
        let mut handed_out = 0;
        // The highest priority whose next message is being read: no lower one overtakes it.
        let mut awaited = 0;
        while dispatch.may_hand_out()
            && let Some((topic_id, budget)) = lineup.next(settings.priority_share)
        {
            let Some(part) = parts.get_mut(&topic_id) else { break };
            if part.priority < awaited {
                break;
            }
            let Some(topic) = self.topics.get(&topic_id) else { break };
            if is_paused(&self.topics, group.topic, topic_id) {
                lineup.leave(&mut part.place);
                continue;
            }
            let log = Log {
                topic: topic_id,
                name: topic.state.name.as_str(),
                priority: part.priority,
                end: topic.state.end,
                cached: self.cache.topic(topic_id),
                mortal: dead_letter::target(&topic.state.name, settings).is_some(),
            };
            dispatch.budget = budget;
            let mark = part.state.handed_out;
            match settings.policy {
                Policy::RoundRobin | Policy::Fair => {
                    dispatch.redeliver(part, log);
                    dispatch.hand_out_new(part, log, log.end);
                }
                Policy::Exclusive => dispatch.hand_out_in_order(part, log),
                Policy::Key => dispatch.hand_out_by_key(part, log),
            }
            dispatch.reading |= part.wants.any();
            if part.state.handed_out > mark {
                let end = part.state.handed_out;
                dispatch.records.push(Record::HandedOut { group: part.id, end });
            }
            let count = budget - dispatch.budget;
            lineup.handed(&mut part.place, count);
            handed_out += count;
            if !part.has_more(log.end) {
                lineup.leave(&mut part.place);
            } else if count == 0 {
                put_aside.extend(part.place);
                lineup.leave(&mut part.place);
                if part.wants.any() {
                    awaited = awaited.max(part.priority);
                }
            }
            looked_at.push(topic_id);
        }
        dispatch.complete_pulls();
        let is_spent = dispatch.sieve.effort.is_spent();
        let Dispatch { answered, passed, .. } = dispatch;
        for (until, pull) in answered {
            self.pull_timers.remove(&(until, pull));
        }
        for place in put_aside {
            if let Some(part) = parts.get_mut(&place.topic) {
                lineup.put_back(&mut part.place, place);
            }
        }
        if handed_out > 0 {
            group.delivered.add(self.now, handed_out);
            group.check_leases_by(lease.until);
        }
        if is_spent {
            self.cycle.mark_consumers(group);
        }
        for topic in passed {
            if !group.parts.get(&topic).is_none_or(|part| part.redelivery.dying.is_empty()) {
                self.dying.insert((id, topic));
            }
            self.cycle.mark(group, topic);
        }
        looked_at.into_iter().for_each(|topic| group.note(topic));
    }
}

impl Dispatch<'_> {
    /// What becomes of the messages of a chunk from `start` on, as far as whoever's turn it is can take them.
    fn sift(&mut self, chunk: &CachedChunk, start: Offset, end: Offset) -> (Verdict, Offset) {
        if !self.sieve.looks_at(chunk) {
            return (Verdict::HandOut, end);
        }
        let turn = self.members.turns.next();
        let consumer = turn.and_then(|(turn, _)| self.members.get(turn.slot));
        let most = consumer.map_or(0, |consumer| consumer.room().messages).min(self.budget);
        self.sieve.run(chunk, start, end, most)
    }

    pub fn may_hand_out(&self) -> bool {
        !self.settings.paused
            && *self.bytes_left > 0
            && self.passes_left > 0
            && !self.sieve.effort.is_spent()
            && !self.members.turns.is_empty()
            && self.members.in_flight < self.limits.in_flight_max
    }

    /// Whether a part may take on anything that it has not had before.
    ///
    /// Where nothing is in flight or waits, the oldest message is what the cursor stands at: after a start it may be
    /// one that was handed out before, and only handing it out again brings the number of settled ranges down.
    /// Where messages are kept in order, those that wait for another attempt cannot be handed out before the cursor
    /// has passed them.
    pub fn may_go_on(&self, part: &Part) -> bool {
        let waiting = part.redelivery.count();
        let oldest_at_cursor = self.members.in_flight == 0 && waiting == 0;
        let keeps_order = matches!(self.settings.policy, Policy::Exclusive | Policy::Key);
        let within_limits = waiting < self.limits.retries_max
            && ((part.state.settled.range_count() as u64) < self.limits.settled_ranges_max
                || oldest_at_cursor);
        self.budget > 0 && self.may_hand_out() && (within_limits || (keeps_order && part.has_retries_ahead()))
    }

    /// Hands out what is ready for another attempt.
    fn redeliver(&mut self, part: &mut Part, log: Log<'_>) {
        let mut at = Offset(0);
        while self.budget > 0
            && self.may_hand_out()
            && let Some(ready) = part.redelivery.ready.range_from(at)
        {
            let start = ready.start.max(at);
            let Some(chunk) = log.cached.and_then(|cached| cached.at(start)) else {
                if !self.want_retry(part, start, ready.end) {
                    break;
                }
                at = ready.end;
                continue;
            };
            at = self.redeliver_run(part, log, chunk, OffsetRange { start, end: ready.end });
        }
    }

    /// Hands out messages of a chunk that are ready for another attempt, or does what else is to be done with them.
    /// Answers where it stopped.
    pub fn redeliver_run(
        &mut self,
        part: &mut Part,
        log: Log<'_>,
        chunk: &CachedChunk,
        range: OffsetRange,
    ) -> Offset {
        let start = range.start;
        let (verdict, end) = self.sift(chunk, start, range.end.min(chunk.end()));
        if verdict != Verdict::HandOut {
            let range = OffsetRange { start, end };
            part.redelivery.take_ready(range);
            self.pass_over(part, log, range, verdict);
            return end;
        }
        let (retry, end) = part.retry_run(start, end);
        let handed = self.hand_out(log, chunk, OffsetRange { start, end }, retry, Redelivered::Yes);
        part.redelivery.take_ready(OffsetRange { start, end: handed });
        handed
    }

    /// Hands out what was never handed out, or not by this broker, up to `until`.
    pub fn hand_out_new(&mut self, part: &mut Part, log: Log<'_>, until: Offset) {
        while part.cursor < until && self.may_go_on(part) {
            let start = part.cursor;
            let stop = if start < part.fresh_from {
                match part.unsettled_before(part.fresh_from) {
                    Some(stop) => stop.min(until),
                    None => continue,
                }
            } else {
                until
            };
            let Some(chunk) = log.cached.and_then(|cached| cached.at(start)) else {
                self.want_at_cursor(part, start);
                return;
            };
            let (redelivered, stop) = if start < part.known_from {
                (Redelivered::Yes, stop.min(part.known_from))
            } else {
                (Redelivered::No, stop)
            };
            let (verdict, end) = self.sift(chunk, start, stop.min(chunk.end()));
            let range = OffsetRange { start, end };
            if verdict != Verdict::HandOut {
                self.pass_over(part, log, range, verdict);
                part.cursor = range.end;
                continue;
            }
            let handed = self.hand_out(log, chunk, range, None, redelivered);
            part.cursor = handed;
            part.note_handed_out(handed);
        }
        self.read_ahead_if_served(part, log);
    }

    /// Has the next messages read before the ones in memory are used up, where those were wanted.
    pub fn read_ahead_if_served(&mut self, part: &mut Part, log: Log<'_>) {
        if !self.served.is_empty() && part.cursor < log.end {
            self.read_ahead(part, log);
        }
    }

    /// Does what is to be done with messages that are not handed out.
    pub fn pass_over(&mut self, part: &mut Part, log: Log<'_>, range: OffsetRange, verdict: Verdict) {
        self.passes_left = self.passes_left.saturating_sub(range.len());
        if self.passed.last() != Some(&log.topic) {
            self.passed.push(log.topic);
        }
        let buried = verdict == Verdict::Expire && self.settings.dead_letter_expired && log.mortal;
        if !buried {
            part.settle(range);
            return;
        }
        part.bury_expired(range, self.now, self.records);
    }

    /// Hands messages of a chunk out until somebody's turn is not to be had. Answers where it stopped.
    fn hand_out(
        &mut self,
        log: Log<'_>,
        chunk: &CachedChunk,
        range: OffsetRange,
        retry: Option<&Retry>,
        redelivered: Redelivered,
    ) -> Offset {
        let mut at = range.start;
        while at < range.end
            && self.budget > 0
            && *self.bytes_left > 0
            && self.members.in_flight < self.limits.in_flight_max
        {
            let Some((turn, next)) = self.members.turns.next() else { break };
            let most = turn_len(self.members.policy(), turn, next);
            let piece = OffsetRange { start: at, end: Offset(range.end.0.min(at.0.saturating_add(most))) };
            at.0 += self.hand_to(turn.slot, log, chunk, piece, retry, redelivered);
        }
        at
    }

    /// Hands messages of a chunk out to a consumer whose turn it is: as many as it can take, the first ones. Where
    /// that is none, its turn is over.
    pub fn hand_to(
        &mut self,
        slot: Slot,
        log: Log<'_>,
        chunk: &CachedChunk,
        range: OffsetRange,
        retry: Option<&Retry>,
        redelivered: Redelivered,
    ) -> u64 {
        let number = self.members.served + 1;
        let allowed = self.budget.min(self.limits.in_flight_max.saturating_sub(self.members.in_flight));
        let Some(consumer) = self.members.get_mut(slot) else { return 0 };
        let room = consumer.room();
        let index = (range.start.0 - chunk.first.0) as usize;
        let last = index + range.len().min(allowed).min(room.messages) as usize;
        let bytes_max = room.bytes.min(DELIVERY_BYTES).min(*self.bytes_left);
        let mut count = chunk.block.count_within(index, last, bytes_max);
        if count == 0 {
            let size = chunk.block.byte_len(index, index + 1) as u64;
            if size > room.bytes && !room.any_size {
                self.turn_over(slot);
                return 0;
            }
            count = 1;
        }
        if consumer.has_sent_all() {
            self.served.push(slot);
        }
        if log.topic != self.own_topic && consumer.known_topics.insert(log.topic) {
            let named = ConsumerTopic {
                consumer: consumer.handle,
                topic: log.topic,
                name: log.name.to_owned(),
                priority: log.priority,
            };
            let content = Content::ConsumerTopic(named);
            self.effects.push(Effect { session: consumer.session, content });
        }
        let lease = self.lease;
        let what = HandOut { topic: log.topic, index, count, retry, redelivered, lease };
        consumer.hand_out(chunk, what, self.effects);
        consumer.served = number;
        self.members.served = number;
        self.members.in_flight += count as u64;
        self.budget -= count as u64;
        let bytes = chunk.block.byte_len(index, index + count) as u64;
        *self.bytes_left = self.bytes_left.saturating_sub(bytes);
        self.next_turn(slot);
        count as u64
    }

    /// Ends the turn of a consumer for whom the next message is too large: its pull is complete, or it has no credit
    /// until it settles something.
    fn turn_over(&mut self, slot: Slot) {
        let Some(consumer) = self.members.get_mut(slot) else { return };
        if consumer.pulls.is_empty() {
            consumer.stuck = true;
            self.members.refresh(slot);
        } else {
            self.complete_pull(slot);
        }
    }

    /// Gives a consumer that got something its next turn. A pull that has all it asked for, in messages or in bytes, is
    /// complete: what it leaves is for the next pull, or within the window.
    fn next_turn(&mut self, slot: Slot) {
        let Some(consumer) = self.members.get(slot) else { return };
        if !consumer.pulls.is_empty() && !consumer.room().has_any() {
            self.complete_pull(slot);
        } else {
            self.members.refresh(slot);
        }
    }

    fn complete_pull(&mut self, slot: Slot) {
        let Some(consumer) = self.members.get_mut(slot) else { return };
        if let Some(pull) = consumer.complete_pull(self.effects) {
            self.members.pulls_waiting -= 1;
            self.members.overdue.remove(&pull.id);
            self.answered.push((pull.until, pull.id));
        }
        self.members.refresh(slot);
    }

    /// Sends what was handed out; answers pulls that got something, and those whose time is over.
    fn complete_pulls(&mut self) {
        for slot in std::mem::take(&mut self.served) {
            let Some(consumer) = self.members.get_mut(slot) else { continue };
            consumer.send(self.effects);
            if consumer.pulls.front().is_some_and(|pull| pull.got > 0) {
                self.complete_pull(slot);
            }
        }
        if self.members.overdue.is_empty() {
            return;
        }
        // While something is read for the group, or is left to the next cycle, there is something to come for whoever can
        // take it.
        let coming = *self.bytes_left == 0 || (self.reading && self.may_hand_out());
        for (id, slot) in std::mem::take(&mut self.members.overdue) {
            let Some(consumer) = self.members.get_mut(slot) else { continue };
            if coming && consumer.turn.is_some() {
                self.members.overdue.insert(id, slot);
                continue;
            }
            let Some(index) = consumer.pulls.iter().position(|pull| pull.id == id) else { continue };
            if let Some(pull) = consumer.pulls.remove(index) {
                consumer.answer_pull(&pull, self.effects);
                self.members.pulls_waiting -= 1;
            }
            self.members.refresh(slot);
        }
    }

    /// Has a message read that waits for another attempt, with its neighbours if they wait too. Answers whether the
    /// part may have more of that kind read.
    pub fn want_retry(&mut self, part: &mut Part, from: Offset, ready_end: Offset) -> bool {
        if part.wants.not_before.is_some() || part.wants.retries.len() >= RETRY_READS_MAX {
            return false;
        }
        if part.wants.retries.insert(from) {
            let bytes = if ready_end.0 - from.0 > 1 { READ_BYTES } else { READ_ONE_BYTES };
            self.want(part.topic(), from, bytes);
        }
        true
    }

    pub fn want_at_cursor(&mut self, part: &mut Part, from: Offset) {
        if part.wants.cursor.is_none() && part.wants.not_before.is_none() {
            part.wants.cursor = Some(from);
            self.want(part.topic(), from, READ_BYTES);
        }
    }

    fn want(&mut self, topic: TopicId, from: Offset, bytes: usize) {
        self.reads.want(Want { topic, from, bytes, group: self.group }, self.read_list);
    }

    /// Has the next messages read before the ones in memory are used up.
    fn read_ahead(&mut self, part: &mut Part, log: Log<'_>) {
        let Some(cached) = log.cached else { return };
        let mut at = part.cursor;
        let mut last = at;
        if let Some(chunk) = cached.at(at) {
            last = chunk.end();
            at = last.max(part.wants.ahead);
            while at < log.end
                && let Some(chunk) = cached.at(at)
            {
                at = chunk.end();
            }
            part.wants.ahead = at;
        }
        if at == last {
            // What is settled may not be there any more.
            let next = part.state.settled.range_at(at).map_or(at, |settled| settled.end);
            if next < log.end {
                self.want_at_cursor(part, next);
            }
        }
    }
}

/// Whether nothing is handed out of a topic to a group of the topic `own`.
fn is_paused(topics: &BTreeMap<TopicId, Topic>, own: TopicId, id: TopicId) -> bool {
    let settings = |id| topics.get(&id).map(|topic| &topic.state.settings);
    let whole = topics.get(&id).and_then(|topic| topic.state.kind.part_of()).unwrap_or(id);
    settings(whole).is_some_and(|settings| settings.paused)
        || settings(own).is_some_and(|settings| settings.paused)
}

/// How many messages in a row the consumer whose turn it is gets before somebody else's turn comes.
fn turn_len(policy: Policy, turn: Turn, next: Option<Turn>) -> u64 {
    match (policy, next) {
        (_, None) => u64::MAX,
        (_, Some(next)) if next.priority != turn.priority => u64::MAX,
        (Policy::Fair, Some(next)) => (next.rank - turn.rank).max(1),
        (_, Some(_)) => 1,
    }
}
