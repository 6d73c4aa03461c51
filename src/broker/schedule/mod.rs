//! What waits for a time: messages that are to be delivered later, and notes of messages that will expire.
//!
//! All of it lies on the disk, in slots (see [`window`]): topics that are parts of the topic that it is about. What is
//! due soon is known one by one, by its time; how much, is bounded (see [`agenda`]). When its time has come, a delayed
//! message is appended to its topic and dropped from its slot, in one commit, and gets its offset by that.
//!
//! A note says which messages of a topic expire at a time. Who has not got them by then does not get them any more:
//! they are settled, or dead-lettered, wherever they stand. A group with very many gaps already is left alone: there
//! they are passed over when their turn comes.
//!
//! Messages and notes do not wait for each other: a group whose dead letters cannot be written makes no delayed message
//! late.

mod agenda;
mod ahead;
mod expire;
mod fire;
mod listing;
mod note;
mod open;
mod spares;
pub(super) mod window;

use std::collections::BTreeMap;

use super::Output;
use super::machine::Broker;
use super::topic::Keep;
use crate::model::id::{Offset, TopicId};
use crate::model::message::{MessageBlock, Parts};
use crate::model::record::Source;
use crate::model::time::Timestamp;
use crate::model::topic_kind::{TopicKind, Waiting};
use agenda::Agenda;
pub(super) use note::Note;
use spares::Spares;
use window::{NEAR_MS, Window};

/// Milliseconds until what had no space is tried again.
const TRY_AGAIN_MS: u64 = 1_000;
/// After a read in vain, milliseconds until anything is read again.
const READ_AGAIN_MS: u64 = 100;

/// A slot.
#[derive(Debug)]
struct Slot {
    /// The topic that it is a part of.
    of: TopicId,
    waiting: Waiting,
    window: Window,
    /// What of it is known one by one, or was moved on, ends here; `None` before its time comes.
    read_to: Option<Offset>,
    /// When it is opened, or looked at again; `None` while it is open.
    opens_at: Option<Timestamp>,
}

/// What waits for a time.
#[derive(Debug)]
pub(super) struct Schedule {
    slots: BTreeMap<TopicId, Slot>,
    by_window: BTreeMap<(TopicId, Waiting, Window), TopicId>,
    spares: Spares,
    delayed: Agenda,
    expiring: Agenda,
}

impl Schedule {
    pub fn new(known_max: u64, cache_bytes_max: u64) -> Self {
        Self {
            slots: BTreeMap::new(),
            by_window: BTreeMap::new(),
            spares: Spares::default(),
            delayed: Agenda::new(known_max, cache_bytes_max),
            expiring: Agenda::new(known_max, cache_bytes_max),
        }
    }

    fn agenda(&mut self, waiting: Waiting) -> &mut Agenda {
        match waiting {
            Waiting::Delayed => &mut self.delayed,
            Waiting::Expiring => &mut self.expiring,
        }
    }

    /// Where what is due at `due` goes.
    pub fn window(&mut self, waiting: Waiting, now: Timestamp, due: Timestamp) -> Window {
        if due.0.saturating_sub(now.0) < NEAR_MS && self.agenda(waiting).room_for_later() > 0 {
            Window::NEAR
        } else {
            Window::of(now, due)
        }
    }

    /// Takes note of a slot.
    pub fn add_slot(&mut self, id: TopicId, kind: TopicKind) {
        let TopicKind::Slot { of, waiting, from, until } = kind else { return };
        let window = Window { from, until };
        let opens_at = window.opens_at();
        self.slots.insert(id, Slot { of, waiting, window, read_to: None, opens_at: Some(opens_at) });
        self.by_window.insert((of, waiting, window), id);
        self.agenda(waiting).opening.insert((opens_at, id));
    }

    /// Takes a slot out. What is known of it is passed over when its time comes.
    fn remove_slot(&mut self, id: TopicId) {
        let Some(slot) = self.slots.remove(&id) else { return };
        let window = (slot.of, slot.waiting, slot.window);
        // What had expired before it was published may be in another slot for a window that is over.
        if self.by_window.get(&window) == Some(&id) {
            self.by_window.remove(&window);
        }
        let agenda = self.agenda(slot.waiting);
        if let Some(at) = slot.opens_at {
            agenda.opening.remove(&(at, id));
        }
        agenda.reading.remove(&(slot.window.from, id));
    }

    /// Forgets a topic that is deleted, where it is a slot.
    pub fn forget(&mut self, id: TopicId, kind: TopicKind) {
        if let TopicKind::Slot { of, waiting, .. } = kind {
            self.spares.remove(of, waiting, id);
            self.remove_slot(id);
        }
    }

    /// Opens a slot.
    fn open(&mut self, id: TopicId) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let waiting = slot.waiting;
        if let Some(at) = slot.opens_at.take() {
            self.agenda(waiting).opening.remove(&(at, id));
        }
    }

    /// Leaves a slot alone until then.
    fn close_until(&mut self, id: TopicId, at: Timestamp) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let (waiting, from, before) = (slot.waiting, slot.window.from, slot.opens_at.replace(at));
        let agenda = self.agenda(waiting);
        agenda.reading.remove(&(from, id));
        if let Some(before) = before {
            agenda.opening.remove(&(before, id));
        }
        agenda.opening.insert((at, id));
    }

    /// Has an open slot looked through again from an offset on: what is there could not be read, and may be now. What else
    /// of it is known already is learned once more.
    pub fn look_again(&mut self, id: TopicId, from: Offset) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let (waiting, begin) = (slot.waiting, slot.window.from);
        if slot.read_to.is_some_and(|read_to| read_to > from) {
            slot.read_to = Some(from);
            if slot.opens_at.is_none() {
                self.agenda(waiting).reading.insert((begin, id));
            }
        }
    }

    /// Whether a topic is a slot with delayed messages.
    pub fn is_delayed(&self, slot: TopicId) -> bool {
        self.slots.get(&slot).is_some_and(|slot| slot.waiting == Waiting::Delayed)
    }

    /// When something is to be done though nothing happens.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        self.delayed.next_timeout().into_iter().chain(self.expiring.next_timeout()).min()
    }
}

impl Broker {
    /// Whether a message still waits in a slot.
    fn is_scheduled(&self, slot: TopicId, offset: Offset) -> bool {
        self.topics.get(&slot).is_some_and(|topic| topic.state.run_at(offset).is_some())
    }

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
        let Some(slot) = known.or_else(|| self.slot_for(of, waiting, window, out)) else { return };
        let Some(topic) = self.topics.get(&slot) else { return };
        let (first, is_empty) = (topic.state.end, topic.state.start == topic.state.end);
        let schedule = &mut self.schedule;
        let Some(state) = schedule.slots.get_mut(&slot) else { return };
        if state.read_to.is_none() && window == Window::NEAR && is_empty {
            // There is nothing in it to be read.
            state.read_to = Some(first);
            schedule.open(slot);
        }
        let Some(state) = schedule.slots.get(&slot) else { return };
        let (read_to, opens_at, from) = (state.read_to, state.opens_at, state.window.from);
        let is_known = read_to == Some(first) && block.count() <= schedule.agenda(waiting).room();
        if is_known {
            let end = Offset(first.0 + block.count() as u64);
            if let Some(state) = schedule.slots.get_mut(&slot) {
                state.read_to = Some(end);
            }
            let agenda = schedule.agenda(waiting);
            for index in 0..block.count() {
                agenda.learn((due(block.encoded(index)), slot, Offset(first.0 + index as u64)));
            }
        } else if let Some(opens_at) = opens_at
            && read_to.is_some()
        {
            // It was open and is looked at when what was in it then is due, or later.
            let dues = (0..block.count()).map(|index| due(block.encoded(index)));
            schedule.close_until(slot, dues.fold(opens_at, Timestamp::min));
        } else if opens_at.is_none() {
            schedule.agenda(waiting).reading.insert((from, slot));
        }
        // What waits for long would only take the place of what is wanted soon.
        let keep = if is_known || opens_at.is_none() { Keep::InMemory } else { Keep::OnDisk };
        self.append_to(&[slot], block, source, keep, out);
    }

    /// Does what is due by time: opens slots, fires what is known, and has read what is due next.
    pub(super) fn advance_schedule(&mut self, out: &mut Output) {
        for waiting in [Waiting::Delayed, Waiting::Expiring] {
            if self.schedule.agenda(waiting).may_go_on(self.now) {
                self.open_slots(waiting, out);
                self.fire(waiting, out);
                self.read_ahead(waiting, out);
            }
        }
    }

    /// A read for the schedule was answered, perhaps in vain.
    pub(super) fn loaded_for_schedule(&mut self, slot: TopicId, from: Offset, in_vain: bool) {
        self.work_left = true;
        let Some(waiting) = self.schedule.slots.get(&slot).map(|slot| slot.waiting) else {
            self.schedule.delayed.loaded(slot, from);
            self.schedule.expiring.loaded(slot, from);
            return;
        };
        let (is_there, now) = (self.is_scheduled(slot, from), self.now);
        let agenda = self.schedule.agenda(waiting);
        agenda.loaded(slot, from);
        if in_vain && is_there {
            agenda.put_off(now, READ_AGAIN_MS);
        }
    }
}

/// When an encoded message of a slot is due.
fn due(encoded: &[u8]) -> Timestamp {
    Parts::read(encoded, 0).ok().and_then(|parts| parts.deliver_at).unwrap_or_default()
}
