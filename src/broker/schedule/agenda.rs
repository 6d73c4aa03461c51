//! What of one kind is due soon, known one by one, and what is being done to know more.
//!
//! How much is known is bounded. Most of the room is for what is due within seconds: what is due later may only take
//! what that leaves. What is due already may go over the bound by a little: it is fired next, so it takes no room for
//! long, and must not wait behind what is due later.
//!
//! What is known is *seen to* shortly before it is due: what is not in memory is read then, so that nothing waits for a
//! read when its time comes. How much of that there is, is bounded in bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::model::id::{Offset, TopicId};
use crate::model::time::Timestamp;

/// What is known of a message or note: when it is due, its slot, its place there.
pub(super) type Known = (Timestamp, TopicId, Offset);

/// Messages that may be known beyond the bound, because they are due.
const DUE_RESERVE: usize = 4096;
/// The part of the room that what is not due within seconds may take.
const LATER_PART: usize = 4;
/// The part of the cache that is being read at a time, about, so that it is used before it goes.
const READING_PART: u64 = 4;
/// What a read of one message counts as: many may be under way.
const READ_COST_MIN: usize = 4 << 10;
/// What is due so many milliseconds ahead is seen to.
const AHEAD_MS: u64 = 250;
/// What is due so many milliseconds ahead must have been: so that it is many at a time, of which some lie close together.
const AHEAD_MS_MIN: u64 = AHEAD_MS / 2;
/// The part of the cache that what was seen to and is not fired yet may take: it must still be there when it is due.
const AHEAD_PART: u64 = 4;

/// A read under way.
#[derive(Clone, Copy, Debug)]
struct Want {
    /// Where it ends, probably.
    end: Offset,
    /// What it counts as.
    cost: usize,
}

/// What of one kind is due soon.
#[derive(Debug)]
pub(super) struct Agenda {
    /// What is known, with the bytes of what was seen to.
    known: BTreeMap<Known, usize>,
    known_max: usize,
    /// What is known up to here was in memory when it was last looked at, or is being read.
    seen_to: Option<Known>,
    ahead_bytes: usize,
    ahead_bytes_max: usize,
    /// That ended there because as much as may waits for its time already.
    is_ahead_full: bool,
    /// When slots are to be opened, or looked at again.
    pub opening: BTreeSet<(Timestamp, TopicId)>,
    /// Slots that are open and not read to their end, by the beginning of their windows.
    pub reading: BTreeSet<(Timestamp, TopicId)>,
    /// Reads under way.
    wants: BTreeMap<(TopicId, Offset), Want>,
    reading_bytes: usize,
    reading_bytes_max: usize,
    /// When what was due was last fired.
    fired_at: Timestamp,
    /// All that was due then waits for reads.
    is_held_up: bool,
    /// After a lack of space or a read in vain: nothing is done before this.
    not_before: Option<Timestamp>,
}

impl Agenda {
    pub fn new(known_max: u64, cache_bytes_max: u64) -> Self {
        let part = |part| usize::try_from(cache_bytes_max / part).unwrap_or(usize::MAX);
        Self {
            known: BTreeMap::new(),
            known_max: usize::try_from(known_max).unwrap_or(usize::MAX),
            seen_to: None,
            ahead_bytes: 0,
            ahead_bytes_max: part(AHEAD_PART),
            is_ahead_full: false,
            opening: BTreeSet::new(),
            reading: BTreeSet::new(),
            wants: BTreeMap::new(),
            reading_bytes: 0,
            reading_bytes_max: part(READING_PART),
            fired_at: Timestamp(0),
            is_held_up: false,
            not_before: None,
        }
    }

    /// How many more can be known that are due soon.
    pub fn room(&self) -> usize {
        self.known_max.saturating_sub(self.known.len())
    }

    /// How many more can be known that are due later.
    pub fn room_for_later(&self) -> usize {
        self.few().saturating_sub(self.known.len())
    }

    /// Whether one more can be known that is due already.
    pub fn has_room_for_due(&self) -> bool {
        self.known.len() < self.known_max.saturating_add(DUE_RESERVE)
    }

    /// Messages of a slot above which they are moved on into finer ones rather than known one by one: they would take
    /// much of the room, and what is due would have to be read from all over the slot.
    pub fn few(&self) -> usize {
        self.known_max.div_ceil(LATER_PART)
    }

    /// Notes what is in memory now.
    pub fn learn(&mut self, known: Known) {
        self.known.entry(known).or_default();
    }

    pub fn forget(&mut self, known: &Known) {
        self.ahead_bytes -= self.known.remove(known).unwrap_or_default();
    }

    /// What is due by `now`, in the order of its times, at most `count_max`.
    pub fn due(&self, now: Timestamp, count_max: usize) -> Vec<Known> {
        self.known.keys().take(count_max).take_while(|(at, ..)| *at <= now).copied().collect()
    }

    /// What is to be seen to at `now`, in the order of its times, at most `count_max`.
    pub fn unseen(&self, now: Timestamp, count_max: usize) -> Vec<Known> {
        if self.sees_next().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let until = now.0.saturating_add(AHEAD_MS);
        self.all_unseen().take(count_max).take_while(|(at, ..)| at.0 <= until).copied().collect()
    }

    fn all_unseen(&self) -> impl Iterator<Item = &Known> {
        let from = self.seen_to.map_or(Bound::Unbounded, Bound::Excluded);
        self.known.range((from, Bound::Unbounded)).map(|(known, _)| known)
    }

    /// When there is more to be seen to.
    fn sees_next(&self) -> Option<Timestamp> {
        let (at, ..) = self.all_unseen().next()?;
        // Once there is no more room it goes on when half of it is free, and not for each one that is fired.
        let is_full = self.is_ahead_full && self.ahead_bytes > self.ahead_bytes_max / 2;
        Some(if is_full { *at } else { Timestamp(at.0.saturating_sub(AHEAD_MS_MIN)) })
    }

    /// Whether what is due at `at` may be seen to, while reads for so many bytes are to be begun. What is due by `now`
    /// never waits for what is due later.
    pub fn may_see(&mut self, at: Timestamp, now: Timestamp, to_read: usize) -> bool {
        self.is_ahead_full = self.ahead_bytes >= self.ahead_bytes_max && at > now;
        !self.is_ahead_full && self.reading_bytes + to_read < self.reading_bytes_max
    }

    /// Whether one more read may be begun.
    pub fn may_read(&self) -> bool {
        self.reading_bytes < self.reading_bytes_max
    }

    /// Notes that something, the next one in the order of times, was seen to. It takes so many bytes of the cache.
    pub fn seen(&mut self, known: Known, bytes: usize) {
        if let Some(seen) = self.known.get_mut(&known) {
            self.ahead_bytes = self.ahead_bytes - *seen + bytes;
            *seen = bytes;
        }
        self.seen_to = Some(known);
    }

    /// Has what is known from this on seen to again: it is not in memory any more.
    pub fn look_again(&mut self, known: Known) {
        self.seen_to = self.known.range(..known).next_back().map(|(before, _)| *before);
    }

    /// Whether a message is being read.
    pub fn is_wanted(&self, slot: TopicId, offset: Offset) -> bool {
        let before = self.wants.range((slot, Offset(0))..=(slot, offset)).next_back();
        before.is_some_and(|(_, want)| offset < want.end)
    }

    /// Notes that messages from `from` to `end`, of so many bytes, are wanted. Answers whether they have to be read for
    /// that: the first is not on its way yet.
    pub fn want(&mut self, slot: TopicId, from: Offset, end: Offset, bytes: usize) -> bool {
        if self.is_wanted(slot, from) {
            return false;
        }
        let cost = bytes.max(READ_COST_MIN);
        self.reading_bytes += cost;
        self.wants.insert((slot, from), Want { end, cost });
        true
    }

    /// A read was answered.
    pub fn loaded(&mut self, slot: TopicId, from: Offset) {
        if let Some(want) = self.wants.remove(&(slot, from)) {
            self.reading_bytes -= want.cost;
        }
    }

    /// Does nothing for so many milliseconds.
    pub fn put_off(&mut self, now: Timestamp, wait_ms: u64) {
        self.not_before = Some(Timestamp(now.0.saturating_add(wait_ms)));
    }

    /// Whether something may be done now.
    pub fn may_go_on(&mut self, now: Timestamp) -> bool {
        if self.not_before.is_some_and(|at| at > now) {
            return false;
        }
        self.not_before = None;
        true
    }

    /// Notes that what was due by `now` was fired, or that all of it waits for reads. Answers whether more is due that
    /// waits for nothing.
    pub fn fired(&mut self, now: Timestamp, is_held_up: bool) -> bool {
        (self.fired_at, self.is_held_up) = (now, is_held_up);
        !is_held_up
            && self.not_before.is_none()
            && self.known.first_key_value().is_some_and(|((at, ..), _)| *at <= now)
    }

    /// When something is to be done though nothing happens.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        // What waits for a read is gone on with when that has come.
        let after = (Timestamp(self.fired_at.0.saturating_add(1)), TopicId(0), Offset(0));
        let due = match self.is_held_up {
            true => self.known.range(after..).next(),
            false => self.known.first_key_value(),
        };
        let due = due.map(|((at, ..), _)| *at);
        let unseen = self.sees_next().filter(|_| self.may_read());
        let opening = self.opening.first().map(|(at, _)| *at);
        let next = [due, unseen, opening].into_iter().flatten().min()?;
        Some(self.not_before.map_or(next, |not_before| next.max(not_before)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: TopicId = TopicId(1);

    fn known(at: u64) -> Known {
        (Timestamp(at), SLOT, Offset(at))
    }

    /// One that knows something for each of these times.
    fn agenda(known_max: u64, times: impl IntoIterator<Item = u64>) -> Agenda {
        let mut agenda = Agenda::new(known_max, 1 << 20);
        times.into_iter().for_each(|at| agenda.learn(known(at)));
        agenda
    }

    fn wakes_at(agenda: &Agenda) -> Option<u64> {
        agenda.next_timeout().map(|at| at.0)
    }

    #[test]
    fn what_is_due_later_leaves_most_of_the_room() {
        let agenda = agenda(100, 0..20);
        assert_eq!((agenda.room_for_later(), agenda.room()), (5, 80));
    }

    #[test]
    fn what_is_due_goes_over_the_bound_but_not_far() {
        let limit = 8 + DUE_RESERVE as u64;
        let mut agenda = agenda(8, 0..limit - 1);
        assert_eq!(agenda.room(), 0);
        assert!(agenda.has_room_for_due());
        agenda.learn(known(limit));
        assert!(!agenda.has_room_for_due());
    }

    #[test]
    fn what_is_due_comes_in_the_order_of_its_times_and_no_more_of_it_than_asked_for() {
        let agenda = agenda(100, [30, 10, 20, 40]);
        assert_eq!(agenda.due(Timestamp(30), 100), [10, 20, 30].map(known));
        assert_eq!(agenda.due(Timestamp(30), 2), [10, 20].map(known));
    }

    /// What is due and waits for reads is gone on with when they are answered: a time that has passed would wake the
    /// engine again and again.
    #[test]
    fn what_waits_for_reads_wakes_nobody() {
        let mut agenda = agenda(100, [10, 5_000]);
        assert_eq!(agenda.unseen(Timestamp(10), 10), [known(10)]);
        agenda.seen(known(10), 100);
        assert!(!agenda.fired(Timestamp(10), true), "nothing is left to be done now");
        assert_eq!(wakes_at(&agenda), Some(5_000 - AHEAD_MS_MIN));
        assert!(agenda.fired(Timestamp(10), false), "more is due, and waits for nothing");
        assert_eq!(wakes_at(&agenda), Some(10));
    }

    #[test]
    fn nothing_is_done_while_it_is_put_off() {
        let mut agenda = agenda(100, [10]);
        agenda.seen(known(10), 1);
        agenda.put_off(Timestamp(10), 1_000);
        assert!(!agenda.may_go_on(Timestamp(1_009)));
        assert!(!agenda.fired(Timestamp(10), false), "what is due waits");
        assert_eq!(wakes_at(&agenda), Some(1_010));
        assert!(agenda.may_go_on(Timestamp(1_010)));
        assert_eq!(wakes_at(&agenda), Some(10), "it is put off once");
    }

    #[test]
    fn what_is_read_ahead_is_bounded_but_what_is_due_does_not_wait_for_what_is_later() {
        let ahead_max = (1 << 20) / AHEAD_PART as usize;
        let mut agenda = agenda(100, [1_000, 1_001, 1_002]);
        agenda.seen(known(1_000), ahead_max);
        assert!(!agenda.may_see(Timestamp(1_001), Timestamp(900), 0), "enough waits for its time");
        assert!(agenda.may_see(Timestamp(1_001), Timestamp(1_001), 0), "it is due");
        assert!(!agenda.may_see(Timestamp(1_001), Timestamp(900), 0));
        assert_eq!(agenda.unseen(Timestamp(1_000), 10), [], "it goes on when half of it is free");
        agenda.forget(&known(1_000));
        assert_eq!(agenda.unseen(Timestamp(1_000), 10), [1_001, 1_002].map(known));
    }

    #[test]
    fn no_more_is_read_at_a_time_than_a_part_of_the_cache() {
        let reading_max = (1 << 20) / READING_PART as usize;
        let mut agenda = agenda(100, [1_000]);
        assert!(agenda.want(SLOT, Offset(0), Offset(10), reading_max));
        assert!(!agenda.want(SLOT, Offset(9), Offset(12), 1), "it is on its way");
        assert!(agenda.is_wanted(SLOT, Offset(9)) && !agenda.is_wanted(SLOT, Offset(10)));
        assert!(!agenda.may_read() && !agenda.may_see(Timestamp(1_000), Timestamp(1_000), 0));
        assert_eq!(wakes_at(&agenda), Some(1_000), "it is seen to when there is room for reads, or due");
        agenda.loaded(SLOT, Offset(0));
        assert!(agenda.may_read());
        assert_eq!(wakes_at(&agenda), Some(1_000 - AHEAD_MS_MIN));
    }

    #[test]
    fn what_is_not_in_memory_any_more_is_seen_to_again() {
        let mut agenda = agenda(100, [10, 20, 30]);
        for at in [10, 20, 30] {
            agenda.seen(known(at), 1);
        }
        assert_eq!(agenda.unseen(Timestamp(30), 10), []);
        agenda.look_again(known(20));
        assert_eq!(agenda.unseen(Timestamp(30), 10), [20, 30].map(known));
    }
}
