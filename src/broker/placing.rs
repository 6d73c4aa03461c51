//! Where the messages of a publish go: into their topic or those that [routes](super::routes) lead to, there into the
//! lane of their priority, or into the schedule until their time has come.
//!
//! Messages of a block that go to different places are picked out of it, in their order; those that go together stay
//! one block. The producer's sequence is advanced by a record of its own then, in the same commit.

use std::collections::BTreeMap;

use super::Output;
use super::holdings::Holdings;
use super::machine::Broker;
use super::routes::Way;
use super::schedule::Note;
use super::schedule::window::Window;
use super::topic::{APPEND_COST, Keep, MESSAGE_COST};
use crate::model::chunk::Origin;
use crate::model::id::{OffsetRange, Sequence, TopicId};
use crate::model::message::{MessageBlock, Parts};
use crate::model::record::{Record, Source};
use crate::model::time::Timestamp;
use crate::model::topic_kind::Waiting;

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// To those of its priority.
    Lane(u8),
    /// Into the schedule, to what is due at about the same time.
    Slot(Window),
}

/// Messages that are picked out of a block.
#[derive(Debug, Default)]
pub(super) struct Picked {
    /// What is consecutive in the block, as ranges of indexes.
    runs: Vec<(usize, usize)>,
    /// When messages expire: that many from that one on, counted from the first that was picked.
    expiries: Vec<(Timestamp, u64, u64)>,
    count: u64,
}

impl Picked {
    /// The messages of these ranges of indexes, which are in order and apart.
    pub fn of(runs: Vec<(usize, usize)>) -> Self {
        let count = runs.iter().map(|(start, end)| (end - start) as u64).sum();
        Self { runs, expiries: Vec::new(), count }
    }

    /// Picks the message at `index`, which is behind all that were picked before.
    pub fn add(&mut self, index: usize, expires_at: Option<Timestamp>) {
        match self.runs.last_mut() {
            Some((_, end)) if *end == index => *end += 1,
            _ => self.runs.push((index, index + 1)),
        }
        if let Some(at) = expires_at {
            match self.expiries.last_mut() {
                Some((known, first, count)) if *known == at && *first + *count == self.count => *count += 1,
                _ => self.expiries.push((at, self.count, 1)),
            }
        }
        self.count += 1;
    }

    /// Bytes that a store may need for the messages.
    pub fn stored_bytes(&self, block: &MessageBlock) -> u64 {
        let parts = if block.is_scheduled() { 1 + 2 * self.count } else { 1 };
        self.holdings(block).bytes + self.count * MESSAGE_COST + parts * APPEND_COST
    }

    /// How many messages, and how many bytes they have.
    pub fn holdings(&self, block: &MessageBlock) -> Holdings {
        let bytes: usize = self.runs.iter().map(|&(start, end)| block.byte_len(start, end)).sum();
        Holdings { messages: self.count, bytes: bytes as u64 }
    }

    /// What is consecutive in the block.
    pub fn runs(&self) -> &[(usize, usize)] {
        &self.runs
    }

    /// The messages; shares the memory of the block where they are consecutive.
    pub fn block(&self, block: &MessageBlock) -> MessageBlock {
        match self.runs[..] {
            [(start, end)] => block.part(start, end),
            _ => block.pick(&self.runs),
        }
    }

    /// Their origins, from those of the block.
    pub fn origins(&self, origins: &[(u32, Option<Origin>)]) -> Vec<(u32, Option<Origin>)> {
        let mut picked = Vec::new();
        let mut rest = origins.iter();
        let (mut first, mut current) = (0_usize, rest.next());
        for &(start, end) in &self.runs {
            let mut at = start;
            while at < end {
                let Some(&(count, origin)) = current else { return picked };
                let last = first + count as usize;
                if at >= last {
                    (first, current) = (last, rest.next());
                    continue;
                }
                let (taken, skipped) = (end.min(last) - at, (at - first) as u64);
                let origin =
                    origin.map(|origin| Origin { sequence: Sequence(origin.sequence.0 + skipped), ..origin });
                picked.push((taken as u32, origin));
                at += taken;
            }
        }
        picked
    }
}

impl Broker {
    /// Puts the messages that a producer has published to a topic where they belong: there, or where routes lead.
    pub(super) fn place(
        &mut self,
        topic: TopicId,
        block: MessageBlock,
        ways: Option<Vec<Way>>,
        origin: Origin,
        out: &mut Output,
    ) {
        let count = block.count();
        let ways = match ways {
            None if !block.is_scheduled() => {
                self.append(topic, block, Source::Producer(origin), out);
                return;
            }
            None => vec![(Picked::of(vec![(0, count)]), vec![topic])],
            Some(ways) => ways.into_iter().map(|way| (way.picked, way.topics)).collect(),
        };
        let mut is_told = false;
        for (picked, topics) in ways {
            let part = picked.block(&block);
            let origins = picked.origins(&[(count as u32, Some(origin))]);
            if part.is_scheduled() {
                for topic in topics {
                    self.scatter(topic, &part, &origins, self.now, out);
                }
            } else if picked.count == count as u64 && !is_told {
                is_told = true;
                self.append_to(&topics, part, Source::Producer(origin), Keep::InMemory, out);
            } else {
                self.append_to(&topics, part, Source::Mixed(origins), Keep::InMemory, out);
            }
        }
        if is_told {
            return;
        }
        let last = Sequence(origin.sequence.0 + count as u64 - 1);
        out.records.push(Record::ProducerAdvanced { producer: origin.producer, last, at: self.now });
        self.time = self.time.max(self.now);
    }

    /// Puts messages where they belong. Those that are due by `due_by` wait no longer.
    pub(super) fn scatter(
        &mut self,
        topic: TopicId,
        block: &MessageBlock,
        origins: &[(u32, Option<Origin>)],
        due_by: Timestamp,
        out: &mut Output,
    ) {
        let mut places: BTreeMap<Place, Picked> = BTreeMap::new();
        for index in 0..block.count() {
            // What cannot be read was checked by whoever took it in, and stays what it is.
            let parts = Parts::read(block.encoded(index), index).ok();
            let deliver_at = parts.and_then(|parts| parts.deliver_at).filter(|at| *at > due_by);
            let expires_at = parts.and_then(|parts| parts.expires_at);
            let place = match deliver_at {
                Some(at) => Place::Slot(self.schedule.window(Waiting::Delayed, self.now, at)),
                None => Place::Lane(parts.map_or(0, |parts| parts.priority)),
            };
            places.entry(place).or_default().add(index, expires_at);
        }
        for (place, picked) in places {
            let part = picked.block(block);
            let source = Source::Mixed(picked.origins(origins));
            match place {
                Place::Lane(priority) => {
                    let Some(lane) = self.lane(topic, priority, out) else { continue };
                    let Some(first) = self.topics.get(&lane).map(|lane| lane.state.end.0) else { continue };
                    self.append(lane, part, source, out);
                    let notes = picked.expiries.iter().map(|&(at, index, count)| {
                        let range = OffsetRange::new(first + index, first + index + count);
                        Note { at, topic: lane, range }
                    });
                    self.put_notes(topic, notes, out);
                }
                Place::Slot(window) => {
                    self.put_scheduled(topic, Waiting::Delayed, window, part, source, out);
                }
            }
        }
    }

    /// Takes note of messages that will expire.
    fn put_notes(&mut self, topic: TopicId, notes: impl Iterator<Item = Note>, out: &mut Output) {
        let mut by_window: BTreeMap<Window, Vec<_>> = BTreeMap::new();
        for note in notes {
            let window = self.schedule.window(Waiting::Expiring, self.now, note.at);
            by_window.entry(window).or_default().push(note.encode());
        }
        for (window, notes) in by_window {
            let block = MessageBlock::encode(&notes);
            self.put_scheduled(topic, Waiting::Expiring, window, block, Source::Broker, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::ProducerId;

    #[test]
    fn what_is_picked_keeps_its_origin() {
        let origin = |sequence| Some(Origin { producer: ProducerId(1), sequence: Sequence(sequence) });
        let origins = [(3, origin(10)), (2, None), (4, origin(50))];
        let mut picked = Picked::default();
        for index in [0, 2, 3, 6, 7] {
            picked.add(index, None);
        }
        assert_eq!(picked.runs(), [(0, 1), (2, 4), (6, 8)]);
        let expected = [(1, origin(10)), (1, origin(12)), (1, None), (2, origin(51))];
        assert_eq!(picked.origins(&origins), expected);
    }

    #[test]
    fn neighbours_that_expire_together_are_one_note() {
        let mut picked = Picked::default();
        for (index, at) in [(0, Some(5)), (4, Some(5)), (5, None), (6, Some(5)), (7, Some(6))] {
            picked.add(index, at.map(Timestamp));
        }
        assert_eq!(picked.expiries, [(Timestamp(5), 0, 2), (Timestamp(5), 3, 1), (Timestamp(6), 4, 1)]);
    }
}
