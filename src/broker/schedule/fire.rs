//! What is due: delayed messages go to their topic, messages whose time is over are given up.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::super::machine::Broker;
use super::super::reading::{READ_BYTES, READ_ONE_BYTES};
use super::super::topic::{scattered_bytes, stored_bytes};
use super::super::{Output, dead_letter};
use super::Note;
use crate::model::chunk::Origin;
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::message::{Message, MessageBlock};
use crate::model::time::Timestamp;
use crate::model::topic_kind::Waiting;

/// Messages that are fired in one cycle, and their bytes.
const FIRED_PER_CYCLE: usize = 1024;
const FIRED_BYTES_PER_CYCLE: usize = 1 << 20;
/// Reads of one slot for what is due.
const READS_MAX: usize = 16;
/// Offsets between two messages that are due within which one read brings both.
const NEAR: u64 = 64;
/// Milliseconds until what had no space is tried again.
const TRY_AGAIN_MS: u64 = 1_000;
/// Messages of a group that die at a time, above which no more expire into its dead letters for a while.
const DYING_MAX: usize = 4096;
/// How long that is, in milliseconds.
const DYING_WAIT_MS: u64 = 20;

/// What of a slot is due and in memory, in the order of its times.
#[derive(Default)]
struct Due {
    encoded: BytesMut,
    origins: Vec<(u32, Option<Origin>)>,
    known: Vec<(Timestamp, Offset)>,
    missing: Vec<Offset>,
}

impl Broker {
    /// Fires what is due, as far as it is in memory; the rest is read.
    pub(super) fn fire(&mut self, out: &mut Output) {
        let mut due: BTreeMap<TopicId, Vec<(Timestamp, Offset)>> = BTreeMap::new();
        for &(at, slot, offset) in self.schedule.known.iter().take(FIRED_PER_CYCLE) {
            if at > self.now {
                break;
            }
            due.entry(slot).or_default().push((at, offset));
        }
        for (slot, known) in due {
            let Some(state) = self.schedule.slots.get(&slot) else {
                for (at, offset) in known {
                    self.schedule.known.remove(&(at, slot, offset));
                }
                continue;
            };
            let (of, waiting) = (state.of, state.waiting);
            let due = self.take_due(slot, &known);
            for &from in &due.missing {
                let near = known.iter().any(|(_, other)| *other > from && other.0 - from.0 <= NEAR);
                self.want_scheduled(slot, from, if near { READ_BYTES } else { READ_ONE_BYTES }, out);
            }
            if due.known.is_empty() {
                continue;
            }
            match waiting {
                Waiting::Delayed => self.fire_delayed(of, slot, due, out),
                Waiting::Expiring => self.fire_expiring(slot, due, out),
            }
            self.delete_if_over(slot, out);
        }
        self.work_left |= self.schedule.not_before.is_none()
            && self.schedule.wants.is_empty()
            && self.schedule.known.first().is_some_and(|(at, ..)| *at <= self.now);
    }

    /// What of the known messages of a slot is in memory, up to the first that is not. What is not there any more is
    /// forgotten.
    fn take_due(&mut self, slot: TopicId, known: &[(Timestamp, Offset)]) -> Due {
        let mut due = Due::default();
        let Some(topic) = self.topics.get(&slot) else { return due };
        let cached = self.cache.topic(slot);
        for &(at, offset) in known {
            if due.encoded.len() >= FIRED_BYTES_PER_CYCLE || due.missing.len() >= READS_MAX {
                break;
            }
            if topic.state.run_at(offset).is_none() {
                self.schedule.known.remove(&(at, slot, offset));
                continue;
            }
            match cached.and_then(|cached| cached.at(offset)) {
                Some(chunk) if due.missing.is_empty() => {
                    let index = (offset.0 - chunk.first.0) as usize;
                    due.encoded.extend_from_slice(chunk.block.encoded(index));
                    due.origins.push((1, chunk.source(index).origin));
                    due.known.push((at, offset));
                }
                Some(_) => {}
                None => due.missing.push(offset),
            }
        }
        due
    }

    /// Appends delayed messages to their topic.
    fn fire_delayed(&mut self, of: TopicId, slot: TopicId, due: Due, out: &mut Output) {
        let Ok(block) = MessageBlock::from_store(due.encoded.freeze()) else { return };
        let Some(left) = self.space.checked_sub(stored_bytes(&block) + scattered_bytes(&block)) else {
            self.schedule.not_before = Some(Timestamp(self.now.0.saturating_add(TRY_AGAIN_MS)));
            return;
        };
        self.space = left;
        self.scatter(of, &block, &due.origins, self.now, out);
        self.forget_known(slot, &due.known, out);
    }

    /// Gives up messages whose time is over.
    fn fire_expiring(&mut self, slot: TopicId, due: Due, out: &mut Output) {
        let Ok(block) = MessageBlock::from_store(due.encoded.freeze()) else { return };
        let mut fired = Vec::new();
        for (encoded, &(at, offset)) in block.iter().zip(&due.known) {
            let note = Message::decode(&encoded).ok().and_then(|message| Note::decode(&message));
            if note.is_some_and(|note| self.expire(note, out) == Expiry::Later) {
                self.schedule.known.remove(&(at, slot, offset));
                let again = Timestamp(self.now.0.saturating_add(DYING_WAIT_MS));
                self.schedule.known.insert((again, slot, offset));
            } else {
                fired.push((at, offset));
            }
        }
        self.forget_known(slot, &fired, out);
    }

    fn forget_known(&mut self, slot: TopicId, known: &[(Timestamp, Offset)], out: &mut Output) {
        for &(at, offset) in known {
            self.schedule.known.remove(&(at, slot, offset));
        }
        let mut offsets: Vec<Offset> = known.iter().map(|(_, offset)| *offset).collect();
        offsets.sort_unstable();
        self.drop_messages(slot, offsets.into_iter().map(OffsetRange::one).collect(), out);
    }

    /// Has no group get messages whose time is over, but what is in flight.
    fn expire(&mut self, note: Note, out: &mut Output) -> Expiry {
        let Some(topic) = self.topics.get(&note.topic) else { return Expiry::Done };
        let range = OffsetRange {
            start: note.range.start.max(topic.state.start),
            end: note.range.end.min(topic.state.end),
        };
        let holders: Vec<GroupId> = topic.holders.iter().copied().collect();
        if holders.is_empty() {
            let there = topic.state.removed.gaps(range).collect();
            self.drop_messages(note.topic, there, out);
            return Expiry::Done;
        }
        let name = topic.state.name.clone();
        let buries = |broker: &Self, id: &GroupId| {
            let group = broker.groups.get(id)?;
            let buried =
                group.settings.dead_letter_expired && dead_letter::target(&name, &group.settings).is_some();
            buried.then(|| group.parts.get(&note.topic).map_or(0, |part| part.redelivery.dying.len()))
        };
        if holders.iter().any(|id| buries(self, id).is_some_and(|dying| dying >= DYING_MAX)) {
            return Expiry::Later;
        }
        for id in holders {
            let buried = buries(self, &id).is_some();
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let Some(part) = group.parts.get_mut(&note.topic) else { continue };
            if part.state.settled.range_count() as u64 >= self.limits.settled_ranges_max / 2 {
                continue;
            }
            let flights = group.members.iter().flat_map(|(_, consumer)| consumer.flights.of(note.topic));
            for gap in part.unheld(range, flights) {
                part.redelivery.forget(gap);
                if buried {
                    part.bury_expired(gap, self.now, &mut out.records);
                    self.dying.insert((id, note.topic));
                } else {
                    part.settle(gap);
                }
            }
            part.fresh_from = part.fresh_from.max(range.end);
            self.cycle.mark(group, note.topic);
        }
        Expiry::Done
    }
}

/// Whether messages have been given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    Done,
    /// Too many are dying.
    Later,
}
