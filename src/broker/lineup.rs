//! From which of its parts a group hands out next.
//!
//! Higher priorities first, and among parts of one priority the one that was served least recently. While messages
//! of several priorities wait, one of so many is of a lower one: which, takes turns. So a lower priority is slow,
//! and never starves.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::model::id::TopicId;

/// Messages in a row from one part while another one of the same priority has some too.
const QUANTUM: u64 = 256;

/// The place of a part that may have something to hand out. The lowest is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    priority: Reverse<u8>,
    /// Number of the last time that it was served.
    served: u64,
    pub topic: TopicId,
}

/// The parts of a group that may have something to hand out.
#[derive(Debug, Default)]
pub(super) struct Lineup {
    order: BTreeSet<Place>,
    /// Times that a part was served.
    served: u64,
    /// Messages handed out since the last one of a lower priority, while there were some.
    since_lower: u64,
}

impl Lineup {
    /// Puts a part into the line if it is not there.
    pub fn enter(&mut self, place: &mut Option<Place>, priority: u8, topic: TopicId) {
        let priority = Reverse(priority);
        let place = place.get_or_insert(Place { priority, served: self.served, topic });
        self.order.insert(*place);
    }

    /// Takes a part out.
    pub fn leave(&mut self, place: &mut Option<Place>) {
        if let Some(place) = place.take() {
            self.order.remove(&place);
        }
    }

    /// Puts a part back into the line where it was before it was taken out.
    pub fn put_back(&mut self, place: &mut Option<Place>, was: Place) {
        self.order.insert(*place.insert(was));
    }

    /// The part that is next and at most how many messages it may hand out, if of `share` messages one at least is to
    /// be of a lower priority.
    pub fn next(&self, share: u32) -> Option<(TopicId, u64)> {
        let first = *self.order.first()?;
        let mut others = self.order.iter().skip(1);
        let alone = others.next().is_none_or(|next| next.priority != first.priority);
        let quantum = if alone { u64::MAX } else { QUANTUM };
        let Some(lower) = self.lower(first) else { return Some((first.topic, quantum)) };
        match u64::from(share).saturating_sub(1).saturating_sub(self.since_lower) {
            0 => Some((lower.topic, 1)),
            left => Some((first.topic, quantum.min(left))),
        }
    }

    /// Of the parts with a lower priority, the one that was served least recently.
    fn lower(&self, first: Place) -> Option<Place> {
        let mut least: Option<Place> = None;
        let mut above = first.priority;
        loop {
            let last = Place { priority: above, served: u64::MAX, topic: TopicId(u32::MAX) };
            let Some(&place) = self.order.range(last..).next() else { return least };
            least =
                Some(least.map_or(place, |least| if place.served < least.served { place } else { least }));
            above = place.priority;
        }
    }

    /// Notes that a part in the line has handed out so many messages: it goes to the end. Where it has handed out
    /// nothing, because it has to be read first, its turn is not over: would it go to another one, and from there to the
    /// next, what was read could be gone again when the turn comes back.
    pub fn handed(&mut self, place: &mut Option<Place>, count: u64) {
        let Some(part) = place.as_mut().filter(|_| count > 0) else { return };
        let Some(&first) = self.order.first() else { return };
        let is_lower = part.priority != first.priority;
        if is_lower || self.lower(first).is_none() {
            self.since_lower = 0;
        } else {
            self.since_lower = self.since_lower.saturating_add(count);
        }
        self.order.remove(part);
        self.served += 1;
        part.served = self.served;
        self.order.insert(*part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts that always have something, by topic: hands out `count` messages one by one, and counts for each topic.
    fn served(priorities: &[u8], share: u32, count: usize) -> Vec<u64> {
        let mut lineup = Lineup::default();
        let mut places = vec![None; priorities.len()];
        for (topic, priority) in priorities.iter().enumerate() {
            lineup.enter(&mut places[topic], *priority, TopicId(topic as u32));
        }
        let mut counts = vec![0; priorities.len()];
        for _ in 0..count {
            let (topic, most) = lineup.next(share).unwrap();
            assert!(most > 0);
            counts[topic.0 as usize] += 1;
            lineup.handed(&mut places[topic.0 as usize], 1);
        }
        counts
    }

    #[test]
    fn a_higher_priority_goes_first_and_a_lower_one_does_not_starve() {
        assert_eq!(served(&[0, 9], 10, 1_000), [100, 900]);
        assert_eq!(served(&[0, 5, 9], 10, 1_000), [50, 50, 900]);
        assert_eq!(served(&[0, 0, 9], 2, 1_000), [250, 250, 500]);
        assert_eq!(served(&[3, 3], 10, 1_000), [500, 500]);
        assert_eq!(served(&[3], 10, 10), [10]);
    }

    /// A message of a low priority that had to be read from the disk lost its turn each time.
    #[test]
    fn a_lower_priority_that_has_to_be_read_first_keeps_its_turn() {
        let mut lineup = Lineup::default();
        let (mut low, mut high) = (None, None);
        lineup.enter(&mut low, 0, TopicId(1));
        lineup.enter(&mut high, 1, TopicId(2));
        lineup.handed(&mut high, 9);
        assert_eq!(lineup.next(10), Some((TopicId(1), 1)));
        lineup.handed(&mut low, 0);
        assert_eq!(lineup.next(10), Some((TopicId(1), 1)));
        lineup.handed(&mut low, 1);
        assert_eq!(lineup.next(10), Some((TopicId(2), 9)));
    }

    /// What was read for a lower priority was gone from the cache when its turn came again, as the turn had gone round
    /// all the others meanwhile.
    #[test]
    fn of_several_lower_ones_the_one_that_has_to_be_read_is_next() {
        let mut lineup = Lineup::default();
        let (mut low, mut middle, mut high) = (None, None, None);
        lineup.enter(&mut low, 0, TopicId(1));
        lineup.enter(&mut middle, 1, TopicId(2));
        lineup.enter(&mut high, 2, TopicId(3));
        lineup.handed(&mut high, 9);
        let (first, _) = lineup.next(10).unwrap();
        let place = if first == TopicId(1) { &mut low } else { &mut middle };
        lineup.handed(place, 0);
        let was = place.unwrap();
        lineup.leave(place);
        assert_ne!(lineup.next(10).unwrap().0, first);
        lineup.put_back(place, was);
        assert_eq!(lineup.next(10), Some((first, 1)));
    }

    #[test]
    fn who_has_nothing_is_passed_over() {
        let mut lineup = Lineup::default();
        let (mut low, mut high) = (None, None);
        assert_eq!(lineup.next(10), None);
        lineup.enter(&mut low, 0, TopicId(1));
        assert_eq!(lineup.next(10), Some((TopicId(1), u64::MAX)));
        lineup.enter(&mut high, 1, TopicId(2));
        assert_eq!(lineup.next(10), Some((TopicId(2), 9)));
        lineup.handed(&mut high, 9);
        assert_eq!(lineup.next(10), Some((TopicId(1), 1)));
        lineup.leave(&mut low);
        assert_eq!(lineup.next(10), Some((TopicId(2), u64::MAX)));
    }
}
