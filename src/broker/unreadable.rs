//! Messages that the store could not read, and when each is asked for again.
//!
//! Only who needs such a message waits for it, as long as it takes: nothing is skipped for good. A storage may come to
//! itself, so it is asked for again, after a wait that doubles each time. What waits besides is told here once for all
//! who need the message: groups, the schedule, a replay, a pass over last values.
//!
//! A bounded number of ranges is remembered. Messages side by side that came up together take one place, however many
//! they are; when its time comes each of them is asked for by itself, for one may be readable and its neighbour not.
//! What cannot be read beyond that is asked for again at short intervals by each that needs it, and nothing overtakes it
//! there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::machine::Broker;
use super::topic::Topic;
use super::{Output, Read};
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::limits::UNREADABLE_RANGES_MAX;
use crate::model::time::Timestamp;
use crate::model::topic_kind::{TopicKind, Waiting};

/// The first wait, and the longest one.
const WAIT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(64)];

/// Messages that could not be read.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// By their topic and the first of them; no two overlap.
    ranges: BTreeMap<(TopicId, Offset), Known>,
    /// When each comes up.
    due: BTreeSet<(Timestamp, TopicId, Offset)>,
}

/// What is known of messages that could not be read.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub range: OffsetRange,
    /// When that came up.
    pub since: Timestamp,
    /// They are not asked for before this.
    pub again_at: Timestamp,
    wait: Duration,
    /// When they come up next.
    due_at: Timestamp,
    /// What the store says.
    pub why: String,
}

/// Whether something was known before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Yes,
    No,
    /// There is no room to remember it.
    Forgotten,
}

impl Unreadable {
    /// What is known of a message that could not be read.
    pub fn find(&self, topic: TopicId, offset: Offset) -> Option<&Known> {
        let (_, known) = self.ranges.range((topic, Offset(0))..=(topic, offset)).next_back()?;
        known.range.contains(offset).then_some(known)
    }

    /// Where the messages end that are not to be asked for now, if this is one of them.
    pub fn held_to(&self, topic: TopicId, offset: Offset, now: Timestamp) -> Option<Offset> {
        self.find(topic, offset).filter(|known| known.again_at > now).map(|known| known.range.end)
    }

    /// Messages that could not be read, some of which may be gone.
    pub fn count(&self) -> u64 {
        self.ranges.values().map(|known| known.range.len()).sum()
    }

    /// When something is to be asked for again.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, ..)| *at)
    }

    /// Notes that messages could not be read.
    fn note(&mut self, topic: TopicId, range: OffsetRange, why: &str, now: Timestamp) -> News {
        let known_within = || self.ranges.range((topic, range.start)..(topic, range.end)).next();
        let before =
            self.find(topic, range.start).or_else(|| known_within().map(|(_, known)| known)).cloned();
        if let Some(known) = before.as_ref().filter(|known| known.again_at > now)
            && known.range.start <= range.start
            && range.end <= known.range.end
        {
            // Asked for by somebody who does not wait: all else stays as it is.
            let first = known.range.start;
            if let Some(known) = self.ranges.get_mut(&(topic, first)) {
                why.clone_into(&mut known.why);
            }
            return News::No;
        }
        let is_known = before.is_some();
        let mut known = match before {
            // Where there is no place to tell them apart, what is known of one is known of all.
            Some(known) if self.is_full() => {
                let start = known.range.start.min(range.start);
                let range = OffsetRange { start, end: known.range.end.max(range.end) };
                Known { range, ..known }
            }
            Some(known) => Known { range, ..known },
            None => {
                let (since, wait) = (now, WAIT[0] / 2);
                Known { range, since, again_at: now, wait, due_at: now, why: String::new() }
            }
        };
        self.cut(topic, known.range, None);
        why.clone_into(&mut known.why);
        if known.again_at <= now {
            known.wait = (known.wait * 2).min(WAIT[1]);
            known.again_at = now.after(known.wait);
        }
        let has_joined = self.join_neighbours(topic, &mut known, now);
        if !is_known && !has_joined && self.is_full() {
            return News::Forgotten;
        }
        let is_news = !is_known && (!has_joined || known.range.len().is_power_of_two());
        known.due_at = known.again_at;
        self.insert(topic, known);
        if is_news { News::Yes } else { News::No }
    }

    fn is_full(&self) -> bool {
        self.ranges.len() >= UNREADABLE_RANGES_MAX
    }

    /// Takes in what is known of the messages just before and just behind, where those wait as long. Answers whether there
    /// were any.
    fn join_neighbours(&mut self, topic: TopicId, known: &mut Known, now: Timestamp) -> bool {
        let before = known.range.start.0.checked_sub(1).and_then(|at| self.find(topic, Offset(at)));
        let behind = self.find(topic, known.range.end);
        let neighbours = before.into_iter().chain(behind);
        let alike = neighbours.filter(|other| other.again_at > now && other.wait == known.wait);
        let firsts: Vec<Offset> = alike.map(|other| other.range.start).collect();
        for first in &firsts {
            let Some(other) = self.remove(topic, *first) else { continue };
            known.range.start = known.range.start.min(other.range.start);
            known.range.end = known.range.end.max(other.range.end);
            known.since = known.since.min(other.since);
            known.again_at = known.again_at.min(other.again_at);
        }
        !firsts.is_empty()
    }

    fn insert(&mut self, topic: TopicId, known: Known) {
        self.due.insert((known.due_at, topic, known.range.start));
        self.ranges.insert((topic, known.range.start), known);
    }

    fn remove(&mut self, topic: TopicId, first: Offset) -> Option<Known> {
        let known = self.ranges.remove(&(topic, first))?;
        self.due.remove(&(known.due_at, topic, first));
        Some(known)
    }

    /// Forgets messages: they could be read, or are gone. Those around them may be asked for from `again_at` on, where
    /// that is given. Answers where the first of the ranges begins that this concerns.
    fn cut(&mut self, topic: TopicId, range: OffsetRange, again_at: Option<Timestamp>) -> Option<Offset> {
        if self.ranges.is_empty() {
            return None;
        }
        let first = self.find(topic, range.start).map_or(range.start, |known| known.range.start);
        let known = self.ranges.range((topic, first)..(topic, range.end.max(first)));
        let firsts: Vec<Offset> = known.map(|((_, first), _)| *first).collect();
        for first in &firsts {
            let Some(known) = self.remove(topic, *first) else { continue };
            let again_at = again_at.unwrap_or(known.again_at);
            let left = OffsetRange { start: known.range.start, end: range.start };
            let right = OffsetRange { start: range.end, end: known.range.end };
            for range in [left, right] {
                // What has no place is asked for when it is looked for.
                if range.start < range.end && !self.is_full() {
                    self.insert(topic, Known { range, again_at, ..known.clone() });
                }
            }
        }
        firsts.first().copied()
    }

    /// What may be asked for again. Where nobody does, it comes up once more after the longest wait.
    fn wake(&mut self, now: Timestamp) -> Vec<(TopicId, OffsetRange)> {
        let mut woken = Vec::new();
        while let Some(&(at, topic, first)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            let Some(known) = self.ranges.get_mut(&(topic, first)) else { continue };
            known.due_at = now.after(WAIT[1]);
            self.due.insert((known.due_at, topic, first));
            woken.push((topic, known.range));
        }
        woken
    }
}

impl Broker {
    /// Takes the answer to one [`Read`] that messages cannot be read, and why: as far as is known, those of `range`. What
    /// needs them waits, and they are asked for again later. Answers what is to be told about it, where that is news.
    pub fn could_not_read(
        &mut self,
        now: Timestamp,
        read: Read,
        range: OffsetRange,
        why: &str,
        out: &mut Output,
    ) -> Option<String> {
        self.set_time(now);
        let is_there =
            self.topics.get(&read.topic).is_some_and(|topic| topic.state.run_at(read.from).is_some());
        let news = if is_there { self.unreadable.note(read.topic, range, why, now) } else { News::No };
        self.take_chunk(read, None, out);
        (news == News::Yes).then(|| {
            let known = self.unreadable.find(read.topic, range.start).map_or(range, |known| known.range);
            let which = self.name_of(read.topic, known);
            format!("{which} cannot be read, and whoever needs that waits: {why}")
        })
    }

    /// What to call messages of a topic, or of a part of one.
    fn name_of(&self, topic: TopicId, range: OffsetRange) -> String {
        let kind = self.topics.get(&topic).map_or(TopicKind::Named, |topic| topic.state.kind);
        let whole = kind.part_of().unwrap_or(topic);
        let name = self.topics.get(&whole).map_or("", |whole| whole.state.name.as_str());
        let which = match range.len() {
            1 => range.start.to_string(),
            _ => format!("{} to {}", range.start, range.end.0 - 1),
        };
        match kind {
            TopicKind::Named | TopicKind::Pattern => format!("message {which} of topic {name}"),
            TopicKind::Lane { priority, .. } => {
                format!("message {which} of priority {priority} of topic {name}")
            }
            TopicKind::Slot { waiting: Waiting::Delayed, .. } => {
                format!("message {which} of slot {topic} of what is to be delivered later to topic {name}")
            }
            TopicKind::Slot { waiting: Waiting::Expiring, .. } => {
                format!("note {which} of slot {topic} of what expires in topic {name}")
            }
        }
    }

    /// Has those look again that wait for messages which may be asked for again.
    pub(super) fn ask_again(&mut self) {
        for (id, range) in self.unreadable.wake(self.now) {
            let is_there = |topic: &Topic| topic.state.next_run(range.start).start < range.end;
            if !self.topics.get(&id).is_some_and(is_there) {
                self.unreadable.cut(id, range, None);
            }
            self.look_again(id, range.start);
        }
    }

    /// Takes note that messages could be read, whoever asked for them.
    pub(super) fn could_read(&mut self, topic: TopicId, range: OffsetRange) {
        if let Some(first) = self.unreadable.cut(topic, range, Some(self.now)) {
            self.look_again(topic, first);
        }
    }

    /// Has those look again that wait for messages of a topic from an offset on.
    fn look_again(&mut self, id: TopicId, from: Offset) {
        let Some(topic) = self.topics.get(&id) else { return };
        for group in &topic.holders {
            if let Some(group) = self.groups.get_mut(group) {
                self.cycle.mark(group, id);
            }
        }
        self.schedule.look_again(id, from);
        self.work_left = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: TopicId = TopicId(3);

    fn note(unreadable: &mut Unreadable, range: (u64, u64), now: u64) -> News {
        unreadable.note(TOPIC, OffsetRange::new(range.0, range.1), "damaged", Timestamp(now))
    }

    fn held_to(unreadable: &Unreadable, offset: u64, now: u64) -> Option<u64> {
        unreadable.held_to(TOPIC, Offset(offset), Timestamp(now)).map(|end| end.0)
    }

    #[test]
    fn the_wait_doubles_up_to_the_longest_one_and_begins_anew_with_the_next_damage() {
        let mut unreadable = Unreadable::default();
        let mut now = 0;
        for (round, wait) in [1, 2, 4, 8, 16, 32, 64, 64].into_iter().enumerate() {
            let news = if round == 0 { News::Yes } else { News::No };
            assert_eq!(note(&mut unreadable, (5, 9), now), news);
            assert_eq!(note(&mut unreadable, (5, 9), now), News::No, "asked by another meanwhile: no longer");
            assert_eq!(unreadable.next_timeout(), Some(Timestamp(now + wait * 1_000)));
            assert_eq!(held_to(&unreadable, 8, now + wait * 1_000 - 1), Some(9));
            now += wait * 1_000;
            assert_eq!(held_to(&unreadable, 8, now), None);
            assert_eq!(unreadable.wake(Timestamp(now)), [(TOPIC, OffsetRange::new(5, 9))]);
        }
        unreadable.cut(TOPIC, OffsetRange::new(5, 9), Some(Timestamp(now)));
        assert_eq!((unreadable.count(), unreadable.next_timeout()), (0, None));
        assert_eq!(note(&mut unreadable, (5, 9), now), News::Yes);
        assert_eq!(unreadable.next_timeout(), Some(Timestamp(now + 1_000)));
    }

    #[test]
    fn what_nobody_asks_for_again_comes_up_after_the_longest_wait() {
        let mut unreadable = Unreadable::default();
        note(&mut unreadable, (5, 9), 0);
        assert_eq!(unreadable.wake(Timestamp(1_000)).len(), 1);
        assert_eq!(unreadable.next_timeout(), Some(Timestamp(65_000)));
    }

    #[test]
    fn ranges_that_overlap_become_one_and_count_once() {
        let mut unreadable = Unreadable::default();
        for range in [(7, 8), (5, 6), (20, 21), (5, 9), (8, 12)] {
            note(&mut unreadable, range, 0);
        }
        assert_eq!(unreadable.count(), 7 + 1);
        let found = unreadable.find(TOPIC, Offset(11)).unwrap();
        assert_eq!(found.range, OffsetRange::new(5, 12));
        assert!(
            unreadable.find(TOPIC, Offset(12)).is_none() && unreadable.find(TopicId(4), Offset(11)).is_none()
        );
        assert_eq!(unreadable.due.len(), unreadable.ranges.len());
    }

    #[test]
    fn neighbours_that_wait_as_long_take_one_place_and_are_asked_for_one_by_one() {
        let mut unreadable = Unreadable::default();
        let news: Vec<News> = (0..6).map(|at| note(&mut unreadable, (at, at + 1), at)).collect();
        assert_eq!(news, [News::Yes, News::Yes, News::No, News::Yes, News::No, News::No], "1, 2 and 4");
        assert_eq!((unreadable.ranges.len(), held_to(&unreadable, 0, 999)), (1, Some(6)));
        unreadable.wake(Timestamp(1_000));
        assert_eq!(note(&mut unreadable, (0, 1), 1_000), News::No);
        assert_eq!([0, 1, 5].map(|at| held_to(&unreadable, at, 1_000)), [Some(1), None, None]);
        assert_eq!(note(&mut unreadable, (1, 2), 1_000), News::No);
        unreadable.cut(TOPIC, OffsetRange::new(2, 3), Some(Timestamp(1_000)));
        assert_eq!(note(&mut unreadable, (3, 4), 1_000), News::No);
        assert_eq!(
            [0, 1, 2, 3, 4].map(|at| held_to(&unreadable, at, 2_999)),
            [2, 2, 0, 4, 0].map(|end| { (end > 0).then_some(end) })
        );
        assert_eq!(unreadable.count(), 5);
        assert_eq!(unreadable.due.len(), unreadable.ranges.len());
    }

    #[test]
    fn what_can_be_read_has_those_around_it_asked_for_at_once() {
        let mut unreadable = Unreadable::default();
        note(&mut unreadable, (5, 9), 0);
        assert_eq!(unreadable.cut(TOPIC, OffsetRange::new(7, 8), Some(Timestamp(1))), Some(Offset(5)));
        assert_eq!([5, 6, 7, 8].map(|at| held_to(&unreadable, at, 1)), [None; 4]);
        assert_eq!((unreadable.count(), unreadable.ranges.len()), (3, 2));
        unreadable.cut(TOPIC, OffsetRange::new(5, 7), Some(Timestamp(1)));
        assert_eq!(note(&mut unreadable, (5, 9), 1), News::No, "of one of them it is known");
        assert_eq!(unreadable.next_timeout(), Some(Timestamp(2_001)));
    }

    #[test]
    fn a_bounded_number_of_ranges_is_remembered() {
        let mut unreadable = Unreadable::default();
        let max = UNREADABLE_RANGES_MAX as u64;
        for at in 0..max {
            assert_eq!(note(&mut unreadable, (at * 2, at * 2 + 1), 0), News::Yes);
        }
        assert_eq!(note(&mut unreadable, (max * 2, max * 2 + 1), 0), News::Forgotten);
        assert_eq!(note(&mut unreadable, (0, 1), 0), News::No);
        assert_eq!(unreadable.count(), max);
        // A range in pieces has no room.
        assert_eq!(note(&mut unreadable, (0, 9), 0), News::No);
        note(&mut unreadable, (20, 29), 0);
        for at in 0..max {
            note(&mut unreadable, (at * 2 + 3, at * 2 + 4), 1_000);
            unreadable.cut(TOPIC, OffsetRange::new(at * 2 + 4, at * 2 + 5), Some(Timestamp(1_000)));
            assert!(unreadable.ranges.len() <= UNREADABLE_RANGES_MAX);
            assert_eq!(unreadable.due.len(), unreadable.ranges.len());
        }
    }
}
