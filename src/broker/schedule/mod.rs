//! What waits for a time: messages that are to be delivered later, and notes of messages that will expire.
//!
//! All of it lies on the disk, in slots (see [`window`]): topics that are parts of the topic that it is about. What is
//! due soon is known one by one, by its time; how much, is bounded. When its time has come, a delayed message is
//! appended to its topic and dropped from its slot, in one commit, and gets its offset by that.
//!
//! A note says which messages of a topic expire at a time. Who has not got them by then does not get them any more:
//! they are settled, or dead-lettered, wherever they stand. A group with very many gaps already is left alone: there
//! they are passed over when their turn comes.

mod fire;
mod listing;
mod note;
mod open;
pub(super) mod window;

use std::collections::{BTreeMap, BTreeSet};

use super::Output;
use super::machine::Broker;
use crate::model::id::{Offset, TopicId};
use crate::model::message::{MessageBlock, Parts};
use crate::model::record::Source;
use crate::model::time::Timestamp;
use crate::model::topic_kind::{TopicKind, Waiting};
pub(super) use note::Note;
use window::{NEAR_MS, Window};

/// What is known one by one: when it is due, its slot, its place there.
type Known = (Timestamp, TopicId, Offset);

/// A slot.
#[derive(Debug)]
struct Slot {
    /// The topic that it is a part of.
    of: TopicId,
    waiting: Waiting,
    window: Window,
    /// What of it is known one by one, or was moved on, ends here; `None` before its time comes.
    read_to: Option<Offset>,
}

/// What waits for a time.
#[derive(Debug)]
pub(super) struct Schedule {
    slots: BTreeMap<TopicId, Slot>,
    by_window: BTreeMap<(TopicId, Waiting, Window), TopicId>,
    /// When slots are to be opened.
    opening: BTreeSet<(Timestamp, TopicId)>,
    /// Slots that are open and not read to their end.
    reading: BTreeSet<TopicId>,
    known: BTreeSet<Known>,
    known_max: usize,
    /// Reads under way.
    wants: BTreeSet<(TopicId, Offset)>,
    /// After a lack of space: nothing is fired before this.
    not_before: Option<Timestamp>,
}

impl Schedule {
    pub fn new(known_max: u64) -> Self {
        Self {
            slots: BTreeMap::new(),
            by_window: BTreeMap::new(),
            opening: BTreeSet::new(),
            reading: BTreeSet::new(),
            known: BTreeSet::new(),
            known_max: usize::try_from(known_max).unwrap_or(usize::MAX),
            wants: BTreeSet::new(),
            not_before: None,
        }
    }

    /// Where what is due at `due` goes.
    pub fn window(&self, now: Timestamp, due: Timestamp) -> Window {
        if due.0.saturating_sub(now.0) < NEAR_MS && self.has_room() {
            Window::NEAR
        } else {
            Window::of(now, due)
        }
    }

    fn has_room(&self) -> bool {
        self.known.len() < self.known_max
    }

    /// Takes note of a slot.
    pub fn add_slot(&mut self, id: TopicId, kind: TopicKind) {
        let TopicKind::Slot { of, waiting, from, until } = kind else { return };
        let window = Window { from, until };
        self.slots.insert(id, Slot { of, waiting, window, read_to: None });
        self.by_window.insert((of, waiting, window), id);
        self.opening.insert((from, id));
    }

    /// Forgets a slot. What is known of it is passed over when its time comes.
    pub fn remove_slot(&mut self, id: TopicId) {
        if let Some(slot) = self.slots.remove(&id) {
            self.by_window.remove(&(slot.of, slot.waiting, slot.window));
            self.opening.retain(|(_, opening)| *opening != id);
            self.reading.remove(&id);
        }
    }

    /// Whether a topic is a slot with delayed messages.
    pub fn is_delayed(&self, slot: TopicId) -> bool {
        self.slots.get(&slot).is_some_and(|slot| slot.waiting == Waiting::Delayed)
    }

    /// When something is to be done though nothing happens.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        // While something is read, it is gone on with when that has come.
        let known = self.known.first().filter(|_| self.wants.is_empty()).map(|(at, ..)| *at);
        let opening = self.opening.first().map(|(at, _)| *at);
        let next = known.into_iter().chain(opening).min()?;
        Some(self.not_before.map_or(next, |not_before| next.max(not_before)))
    }

    /// A read has been answered.
    pub fn loaded(&mut self, slot: TopicId, from: Offset) {
        self.wants.remove(&(slot, from));
    }
}

impl Broker {
    /// Puts messages, or notes, into a slot. All of them have `deliver_at`, within the window.
    pub(super) fn put_scheduled(
        &mut self,
        of: TopicId,
        waiting: Waiting,
        window: Window,
        block: MessageBlock,
        source: Source,
        out: &mut Output,
    ) {
        let known = self.schedule.by_window.get(&(of, waiting, window)).copied();
        let slot = known.or_else(|| {
            let kind = TopicKind::Slot { of, waiting, from: window.from, until: window.until };
            self.create_topic_part(kind, out)
        });
        let Some(slot) = slot else { return };
        let Some(first) = self.topics.get(&slot).map(|topic| topic.state.end) else { return };
        self.append(slot, block.clone(), source, out);
        let schedule = &mut self.schedule;
        let Some(state) = schedule.slots.get_mut(&slot) else { return };
        if state.read_to.is_none() && window == Window::NEAR && first == Offset(0) {
            // It is new, and there is nothing in it to be read.
            state.read_to = Some(first);
        }
        if state.read_to == Some(first) && schedule.known.len() + block.count() <= schedule.known_max {
            state.read_to = Some(Offset(first.0 + block.count() as u64));
            schedule.known.extend((0..block.count()).map(|index| {
                let due = due(block.encoded(index));
                (due, slot, Offset(first.0 + index as u64))
            }));
        } else if state.read_to.is_some() {
            schedule.reading.insert(slot);
        }
    }

    /// Does what is due by time: opens slots, and fires what is known.
    pub(super) fn advance_schedule(&mut self, out: &mut Output) {
        if self.schedule.not_before.is_some_and(|at| at > self.now) {
            return;
        }
        self.schedule.not_before = None;
        self.open_slots(out);
        self.fire(out);
    }
}

/// When an encoded message of a slot is due.
fn due(encoded: &[u8]) -> Timestamp {
    Parts::read(encoded, 0).ok().and_then(|parts| parts.deliver_at).unwrap_or_default()
}
