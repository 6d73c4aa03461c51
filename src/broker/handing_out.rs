//! One group's turn to hand out: messages of one part after the other, to the consumers whose turn it is.
//!
//! A message whose body is not in memory is read first; what stands behind it in the line of retries does not wait for
//! that, and neither does what is new. One that the store [cannot read](super::unreadable) is put aside where the group
//! keeps no order, and waits as if it had come back.

use super::cache::{CachedChunk, TopicCache};
use super::consumer::{DELIVERY_BYTES, HandOut, Redelivered};
use super::flights::Lease;
use super::members::Members;
use super::part::Part;
use super::reading::{READ_BYTES, READ_ONE_BYTES, RETRY_READS_MAX, Reads, Want};
use super::sieve::{Sieve, Verdict};
use super::turns::{Slot, Turn};
use super::unreadable::Unreadable;
use super::{Content, Effect, Read};
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::limits::Limits;
use crate::model::record::Record;
use crate::model::retry::Retry;
use crate::model::settings::{GroupSettings, Policy};
use crate::model::time::Timestamp;
use crate::protocol::response::ConsumerTopic;

/// What there is of a topic.
#[derive(Clone, Copy)]
pub(super) struct Log<'a> {
    pub topic: TopicId,
    pub name: &'a str,
    pub priority: u8,
    /// End of the topic.
    pub end: Offset,
    pub cached: Option<&'a TopicCache>,
    /// Whether dead letters have a place to go.
    pub mortal: bool,
}

/// One group's turn to hand out.
pub(super) struct Dispatch<'a> {
    pub now: Timestamp,
    pub limits: &'a Limits,
    pub group: GroupId,
    /// The topic that it is a group of.
    pub own_topic: TopicId,
    pub settings: &'a GroupSettings,
    pub members: &'a mut Members,
    pub sieve: Sieve<'a>,
    pub reads: &'a mut Reads,
    pub unreadable: &'a Unreadable,
    pub records: &'a mut Vec<Record>,
    pub effects: &'a mut Vec<Effect>,
    pub read_list: &'a mut Vec<Read>,
    /// Messages that may still be handed out of the part whose turn it is.
    pub budget: u64,
    /// The lease of what is handed out.
    pub lease: Lease,
    /// Whether something is being read for the group.
    pub reading: bool,
    /// Bytes that may still be handed out in this cycle.
    pub bytes_left: &'a mut u64,
    /// Messages that may still be passed over in this cycle.
    pub passes_left: u64,
    /// Messages that may still be parked behind keys.
    pub parks_left: u64,
    /// Topics of which something was passed over.
    pub passed: Vec<TopicId>,
    /// Consumers that got something, some more than once.
    pub served: Vec<Slot>,
    /// Numbers of the pulls that were answered, with the time their timers stand at.
    pub answered: Vec<(Timestamp, u64)>,
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
        let keeps_order = self.settings.policy.keeps_order();
        let within_limits = waiting < self.limits.retries_max
            && ((part.state.settled.range_count() as u64) < self.limits.settled_ranges_max
                || oldest_at_cursor);
        self.budget > 0 && self.may_hand_out() && (within_limits || (keeps_order && part.has_retries_ahead()))
    }

    /// Hands out what is ready for another attempt.
    pub fn redeliver(&mut self, part: &mut Part, log: Log<'_>) {
        let mut at = Offset(0);
        while self.budget > 0
            && self.may_hand_out()
            && let Some(ready) = part.redelivery.ready.range_from(at)
        {
            let start = ready.start.max(at);
            let Some(chunk) = log.cached.and_then(|cached| cached.at(start)) else {
                if let Some(end) = self.held_to(part, start) {
                    at = end;
                    continue;
                }
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
        // What never came back was put aside.
        let (redelivered, end) = match retry {
            Some(_) => (Redelivered::Yes, end),
            None if start < part.known_from => (Redelivered::Yes, end.min(part.known_from)),
            None => (Redelivered::No, end),
        };
        let handed = self.hand_out(log, chunk, OffsetRange { start, end }, retry, redelivered);
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
                if let Some(end) = self.held_to(part, start)
                    && !self.settings.policy.keeps_order()
                {
                    part.put_aside(end.min(stop));
                    continue;
                }
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
    pub fn complete_pulls(&mut self) {
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

    /// Where the messages end that cannot be read for now, if this is one of them.
    fn held_to(&self, part: &Part, offset: Offset) -> Option<Offset> {
        self.unreadable.held_to(part.topic(), offset, self.now)
    }

    /// Has a message read that waits for another attempt, with its neighbours if they wait too. Answers whether the
    /// part may have more of that kind read.
    pub fn want_retry(&mut self, part: &mut Part, from: Offset, ready_end: Offset) -> bool {
        if self.held_to(part, from).is_some() {
            return true;
        }
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
        let may_be_read = part.wants.not_before.is_none() && self.held_to(part, from).is_none();
        if part.wants.cursor.is_none() && may_be_read {
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

/// How many messages in a row the consumer whose turn it is gets before somebody else's turn comes.
fn turn_len(policy: Policy, turn: Turn, next: Option<Turn>) -> u64 {
    match (policy, next) {
        (_, None) => u64::MAX,
        (_, Some(next)) if next.priority != turn.priority => u64::MAX,
        (Policy::Fair, Some(next)) => (next.rank - turn.rank).max(1),
        (_, Some(_)) => 1,
    }
}
