//! What is due: delayed messages go to their topic, messages whose time is over are given up.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::super::Output;
use super::super::machine::Broker;
use super::super::topic::{scattered_bytes, stored_bytes};
use super::agenda::Known;
use super::{Note, TRY_AGAIN_MS};
use crate::model::chunk::Origin;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::message::{Message, MessageBlock};
use crate::model::ranges::RangeSet;
use crate::model::topic_kind::Waiting;

/// Messages that are fired in one cycle, and their bytes, about.
const FIRED_PER_CYCLE: usize = 1024;
const FIRED_BYTES_PER_CYCLE: usize = 1 << 20;
/// Milliseconds until a note is looked at again while too many messages are dying.
const DYING_WAIT_MS: u64 = 20;

/// What of a topic is due and in memory, in the order of its times.
#[derive(Default)]
struct Due {
    encoded: BytesMut,
    origins: Vec<(u32, Option<Origin>)>,
    known: Vec<Known>,
    /// What is due next has to be read; nothing overtakes it.
    is_held_up: bool,
}

/// Whether messages have been given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    Done,
    /// Too many are dying.
    Later,
}

impl Broker {
    /// Fires what is due, as far as it is in memory; the rest is read.
    pub(super) fn fire(&mut self, waiting: Waiting, out: &mut Output) {
        let now = self.now;
        let due = self.schedule.agenda(waiting).due(now, FIRED_PER_CYCLE);
        let taken = self.take_due(waiting, due);
        let is_fired = taken.values().any(|due| !due.known.is_empty());
        let is_held_up = !is_fired && taken.values().any(|due| due.is_held_up);
        for (of, due) in taken.into_iter().filter(|(_, due)| !due.known.is_empty()) {
            match waiting {
                Waiting::Delayed => self.fire_delayed(of, due, out),
                Waiting::Expiring => self.fire_expiring(due, out),
            }
        }
        self.work_left |= self.schedule.agenda(waiting).fired(now, is_held_up);
    }

    /// What of this is in memory, by topic. What is not is seen to again, and what is not there any more is forgotten.
    fn take_due(&mut self, waiting: Waiting, due: Vec<Known>) -> BTreeMap<TopicId, Due> {
        let mut taken: BTreeMap<TopicId, Due> = BTreeMap::new();
        let mut missing: Option<Known> = None;
        let mut bytes = 0;
        for known in due {
            let (_, slot, offset) = known;
            let Some(of) = self.schedule.slots.get(&slot).map(|slot| slot.of) else {
                self.schedule.agenda(waiting).forget(&known);
                continue;
            };
            let due = taken.entry(of).or_default();
            if due.is_held_up || bytes >= FIRED_BYTES_PER_CYCLE {
                continue;
            }
            if !self.is_scheduled(slot, offset) {
                self.schedule.agenda(waiting).forget(&known);
                continue;
            }
            let Some(chunk) = self.cache.topic(slot).and_then(|cached| cached.at(offset)) else {
                if self.unreadable.held_to(slot, offset, self.now).is_some() {
                    // The slot is looked through again from there on when it may be asked for.
                    self.schedule.agenda(waiting).forget(&known);
                    continue;
                }
                due.is_held_up = true;
                if !self.schedule.agenda(waiting).is_wanted(slot, offset) {
                    missing.get_or_insert(known);
                }
                continue;
            };
            let index = (offset.0 - chunk.first.0) as usize;
            let encoded = chunk.block.encoded(index);
            bytes += encoded.len();
            due.encoded.extend_from_slice(encoded);
            due.origins.push((1, chunk.source(index).origin));
            due.known.push(known);
        }
        if let Some(missing) = missing {
            self.schedule.agenda(waiting).look_again(missing);
        }
        taken
    }

    /// Appends delayed messages to their topic.
    fn fire_delayed(&mut self, of: TopicId, due: Due, out: &mut Output) {
        let block = MessageBlock::from_store(due.encoded.freeze());
        let fitting = block.ok().and_then(|block| {
            let left = self.space.checked_sub(stored_bytes(&block) + scattered_bytes(&block))?;
            Some((block, left))
        });
        let Some((block, left)) = fitting else {
            let now = self.now;
            self.schedule.agenda(Waiting::Delayed).put_off(now, TRY_AGAIN_MS);
            return;
        };
        self.space = left;
        self.scatter(of, &block, &due.origins, self.now, out);
        self.forget_known(Waiting::Delayed, &due.known, out);
    }

    /// Gives up messages whose time is over.
    fn fire_expiring(&mut self, due: Due, out: &mut Output) {
        let Ok(block) = MessageBlock::from_store(due.encoded.freeze()) else { return };
        let mut fired: Vec<Known> = Vec::new();
        let mut by_topic: BTreeMap<TopicId, (RangeSet, Vec<Known>)> = BTreeMap::new();
        for (encoded, known) in block.iter().zip(due.known) {
            match Message::decode(&encoded).ok().and_then(|message| Note::decode(&message)) {
                Some(note) => {
                    let (ranges, notes) = by_topic.entry(note.topic).or_default();
                    ranges.insert(note.range);
                    notes.push(known);
                }
                None => fired.push(known),
            }
        }
        for (topic, (ranges, notes)) in by_topic {
            if self.expire(topic, &ranges, out) == Expiry::Done {
                fired.extend(notes);
                continue;
            }
            let again = self.now.after(std::time::Duration::from_millis(DYING_WAIT_MS));
            let agenda = self.schedule.agenda(Waiting::Expiring);
            for known in notes {
                agenda.forget(&known);
                agenda.learn((again, known.1, known.2));
            }
        }
        self.forget_known(Waiting::Expiring, &fired, out);
    }

    /// Drops what was fired from its slots.
    fn forget_known(&mut self, waiting: Waiting, fired: &[Known], out: &mut Output) {
        let mut by_slot: BTreeMap<TopicId, Vec<Offset>> = BTreeMap::new();
        for known in fired {
            self.schedule.agenda(waiting).forget(known);
            by_slot.entry(known.1).or_default().push(known.2);
        }
        for (slot, mut offsets) in by_slot {
            offsets.sort_unstable();
            // A note that was put off is known twice where its slot was looked through again.
            offsets.dedup();
            self.drop_messages(slot, offsets.into_iter().map(OffsetRange::one).collect(), out);
            self.delete_if_over(slot, out);
        }
    }
}
