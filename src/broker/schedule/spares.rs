//! Slots that are over, kept to be used again.
//!
//! Ids of topics are never used twice, and while there is much to wait for every topic needs another slot each second.
//! So a slot that is over is used again for what is due at other times. Its offsets go on: what was read of it before, or
//! named by a client, is never taken for something else.
//!
//! How many are kept is bounded. A topic that is over the bounds still keeps one of a kind, which is what it needs while
//! one slot after the other is over; only when several are over at once do ids go.

use std::collections::BTreeSet;

use super::super::Output;
use super::super::machine::Broker;
use super::Schedule;
use super::window::Window;
use crate::model::id::TopicId;
use crate::model::record::Record;
use crate::model::topic_kind::{TopicKind, Waiting};

/// Slots of a topic and kind that are kept: as many as there are of one width.
const PER_TOPIC_MAX: usize = 64;
/// Slots that are kept, of all topics, but for the last one of each topic and kind. Each takes about a kilobyte of memory.
const SPARES_MAX: usize = 4096;

/// Slots that are over: the topic they are parts of, what waited in them, and they themselves.
#[derive(Debug, Default)]
pub(super) struct Spares {
    slots: BTreeSet<(TopicId, Waiting, TopicId)>,
}

impl Spares {
    /// Keeps a slot of a topic. Answers whether there is room for it.
    fn keep(&mut self, of: TopicId, waiting: Waiting, slot: TopicId) -> bool {
        let has_room = match self.of(of, waiting).count() {
            0 => true,
            count => count < PER_TOPIC_MAX && self.slots.len() < SPARES_MAX,
        };
        has_room && self.slots.insert((of, waiting, slot))
    }

    /// Takes one of a topic.
    fn take(&mut self, of: TopicId, waiting: Waiting) -> Option<TopicId> {
        let spare = *self.of(of, waiting).next()?;
        self.slots.remove(&spare);
        Some(spare.2)
    }

    /// Forgets a slot.
    pub fn remove(&mut self, of: TopicId, waiting: Waiting, slot: TopicId) {
        self.slots.remove(&(of, waiting, slot));
    }

    fn of(&self, of: TopicId, waiting: Waiting) -> impl Iterator<Item = &(TopicId, Waiting, TopicId)> {
        self.slots.range((of, waiting, TopicId(0))..=(of, waiting, TopicId(u32::MAX)))
    }
}

impl Schedule {
    /// Keeps a slot that is over. Answers whether there is room for it.
    fn spare(&mut self, id: TopicId) -> bool {
        let Some(slot) = self.slots.get(&id) else { return false };
        let is_kept = self.spares.keep(slot.of, slot.waiting, id);
        if is_kept {
            self.remove_slot(id);
        }
        is_kept
    }
}

impl Broker {
    /// A slot of a topic for what is due within a window, for which there is none: one that is over, or another one.
    pub(super) fn slot_for(
        &mut self,
        of: TopicId,
        waiting: Waiting,
        window: Window,
        out: &mut Output,
    ) -> Option<TopicId> {
        let kind = TopicKind::Slot { of, waiting, from: window.from, until: window.until };
        let Some(slot) = self.schedule.spares.take(of, waiting) else {
            return self.create_topic_part(kind, out);
        };
        self.topics.get_mut(&slot)?.state.kind = kind;
        out.records.push(Record::SlotMoved { slot, from: window.from, until: window.until });
        self.schedule.add_slot(slot, kind);
        Some(slot)
    }

    /// Is done with a slot that is empty and over.
    pub(super) fn retire_slot(&mut self, slot: TopicId, out: &mut Output) {
        if !self.schedule.spare(slot) {
            self.delete_topic_part(slot, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(spares: &mut Spares, of: u32, waiting: Waiting, slots: std::ops::Range<u32>) -> usize {
        slots.filter(|slot| spares.keep(TopicId(of), waiting, TopicId(*slot))).count()
    }

    #[test]
    fn a_spare_is_of_its_topic_and_kind() {
        let mut spares = Spares::default();
        assert_eq!(kept(&mut spares, 1, Waiting::Delayed, 10..12), 2);
        assert_eq!(spares.take(TopicId(0), Waiting::Delayed), None);
        assert_eq!(spares.take(TopicId(2), Waiting::Delayed), None);
        assert_eq!(spares.take(TopicId(1), Waiting::Expiring), None);
        spares.remove(TopicId(1), Waiting::Delayed, TopicId(10));
        assert_eq!(spares.take(TopicId(1), Waiting::Delayed), Some(TopicId(11)));
        assert_eq!(spares.take(TopicId(1), Waiting::Delayed), None, "taken once");
    }

    #[test]
    fn no_more_are_kept_than_the_bounds_and_one_of_each() {
        let mut spares = Spares::default();
        let each = PER_TOPIC_MAX as u32;
        assert_eq!(kept(&mut spares, 0, Waiting::Delayed, 0..2 * each), PER_TOPIC_MAX);
        let mut next = 2 * each;
        for of in 1..(SPARES_MAX / PER_TOPIC_MAX) as u32 {
            assert_eq!(kept(&mut spares, of, Waiting::Expiring, next..next + each), PER_TOPIC_MAX);
            next += each;
        }
        assert_eq!(spares.slots.len(), SPARES_MAX);
        for of in 1_000..1_010 {
            assert_eq!(kept(&mut spares, of, Waiting::Delayed, next..next + 9), 1, "the only one");
            next += 9;
        }
    }
}
