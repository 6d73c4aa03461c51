//! Dropping messages that there are newer ones of, and moving the newest to the end of their topic.

use super::super::Output;
use super::super::cache::CachedChunk;
use super::super::machine::Broker;
use super::super::topic::stored_bytes;
use super::clean::{At, Progress};
use super::pass::{KeyHash, PUBLISHED_AT, Value};
use crate::model::chunk::Origin;
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::limits::LAST_VALUE_TOMBSTONE_MS;
use crate::model::message::{Message, MessageBlock};
use crate::model::ranges::RangeSet;
use crate::model::record::Source;
use crate::model::time::Timestamp;

/// Messages that are moved together.
const MOVED_TOGETHER: u64 = 1024;
/// Milliseconds until a move that had no space is tried again.
const TRY_AGAIN_MS: u64 = 1_000;

/// Messages on their way to the end of their topic.
#[derive(Default)]
struct Moving {
    messages: Vec<Message>,
    origins: Vec<(u32, Option<Origin>)>,
    /// Where each is.
    from: Vec<Offset>,
    /// Their keys, and those that go altogether.
    keys: Vec<KeyHash>,
    /// An offset that is above the first message that has to stay although there is a newer one, and not above that.
    left: Option<Offset>,
}

impl Moving {
    /// Adds a message. It says from now on when it was published.
    fn add(&mut self, offset: Offset, mut message: Message, origin: Option<Origin>, published_at: Timestamp) {
        if message.header(PUBLISHED_AT).is_none() {
            message.headers.push((PUBLISHED_AT.to_owned(), published_at.to_string().into()));
        }
        self.messages.push(message);
        self.origins.push((1, origin));
        self.from.push(offset);
    }
}

impl Broker {
    /// Drops messages of a topic that nobody needs any more, for every group. Answers which of them have to stay:
    /// somebody has them in flight, or they are on their way to the dead letters. The ranges are in order and apart.
    pub(super) fn drop_values(&mut self, id: TopicId, ranges: &[OffsetRange], out: &mut Output) -> RangeSet {
        self.settle_for_all(id, ranges, out);
        let kept = self.unsettled_by_any(id, ranges);
        let Some(topic) = self.topics.get(&id) else { return kept };
        let there = ranges.iter().flat_map(|range| {
            let range = OffsetRange { start: range.start.max(topic.state.start), ..*range };
            topic.state.removed.gaps(range)
        });
        let dropped: Vec<OffsetRange> =
            there.flat_map(|range| kept.gaps(range).collect::<Vec<_>>()).collect();
        self.drop_messages(id, dropped, out);
        kept
    }

    /// Settles for every group what it has not settled and nobody has in flight.
    fn settle_for_all(&mut self, id: TopicId, ranges: &[OffsetRange], out: &mut Output) {
        let (Some(last), holders) = (ranges.last().copied(), self.holders_of(id)) else { return };
        for holder in holders {
            let Some(group) = self.groups.get_mut(&holder) else { continue };
            let flights = group.members.iter().flat_map(|(_, consumer)| consumer.flights.of(id));
            let Some(part) = group.parts.get_mut(&id) else { continue };
            let free = part.unheld_of(ranges, flights);
            part.redelivery.forget_each(&free);
            free.into_iter().for_each(|range| part.settle(range));
            part.fresh_from = part.fresh_from.max(last.end);
            self.cycle.mark(group, id);
            self.make_settled_known(holder, out);
        }
    }

    /// What of these some group has not settled. What was settled in this cycle has been made known.
    fn unsettled_by_any(&self, id: TopicId, ranges: &[OffsetRange]) -> RangeSet {
        let mut unsettled = RangeSet::new();
        let holders = self.topics.get(&id).into_iter().flat_map(|topic| &topic.holders);
        for part in holders.filter_map(|holder| self.groups.get(holder)?.parts.get(&id)) {
            for range in ranges {
                let above = OffsetRange { start: range.start.max(part.state.floor), ..*range };
                part.state.settled.gaps(above).for_each(|gap| {
                    unsettled.insert(gap);
                });
            }
        }
        unsettled
    }

    /// What somebody has in flight, or is on its way to the dead letters.
    fn held_by_any(&self, id: TopicId, range: OffsetRange) -> RangeSet {
        let mut held = RangeSet::new();
        let holders = self.topics.get(&id).into_iter().flat_map(|topic| &topic.holders);
        for group in holders.filter_map(|holder| self.groups.get(holder)) {
            let flights = group.members.iter().flat_map(|(_, consumer)| consumer.flights.of(id));
            let Some(part) = group.parts.get(&id) else { continue };
            let mut free = RangeSet::new();
            part.unheld_of(&[range], flights).into_iter().for_each(|range| {
                free.insert(range);
            });
            let above = OffsetRange { start: range.start.max(part.state.floor), ..range };
            for gap in part.state.settled.gaps(above).flat_map(|gap| free.gaps(gap).collect::<Vec<_>>()) {
                held.insert(gap);
            }
        }
        held
    }

    fn holders_of(&self, id: TopicId) -> Vec<GroupId> {
        self.topics.get(&id).map(|topic| topic.holders.iter().copied().collect()).unwrap_or_default()
    }

    /// Moves the next messages of the stretch that are the newest of their key to the end of the topic, and drops the
    /// others; ends the pass at the end of the stretch.
    pub(super) fn move_stretch(&mut self, at: At, left: &mut u64, out: &mut Output) -> Progress {
        let Some(stretch) = self.last_values.pass.as_ref().map(|pass| pass.stretch) else {
            return Progress::More;
        };
        if at.run.start >= stretch.end {
            self.end_pass();
            return Progress::More;
        }
        if self.stay_before_blind(at) {
            return Progress::More;
        }
        let Some(chunk) = self.take_chunk_at(at, out) else { return Progress::Waiting };
        let together = Offset(at.run.start.0 + MOVED_TOGETHER);
        let end = at.run.end.min(stretch.end).min(chunk.end()).min(together);
        let range = OffsetRange { start: at.run.start, end };
        // What was settled in this cycle is not held any more.
        for holder in self.holders_of(at.topic) {
            self.make_settled_known(holder, out);
        }
        let held = self.held_by_any(at.topic, range);
        let moving = self.pick_newest(at.topic, range, &chunk, &held);
        let block = MessageBlock::encode(&moving.messages);
        let space = if block.is_empty() { 0 } else { stored_bytes(&block) };
        let Some(pass) = &mut self.last_values.pass else { return Progress::More };
        pass.chunk = Some(chunk);
        let Some(space) = self.space.checked_sub(space) else {
            pass.not_before = Some(Timestamp(self.now.0.saturating_add(TRY_AGAIN_MS)));
            return Progress::Waiting;
        };
        self.space = space;
        pass.at = range.end;
        pass.seen += range.len();
        moving.keys.iter().for_each(|key| pass.forget(*key));
        *left = left.saturating_sub(range.len());
        let round = self.last_values.tables.get_mut(&at.topic).and_then(|table| table.round.as_mut());
        if let Some(round) = round {
            round.leave(moving.left);
        }
        if !block.is_empty() {
            self.append_moved(at.topic, &moving, block, out);
        }
        let dropped: Vec<OffsetRange> = held.gaps(range).collect();
        self.drop_values(at.topic, &dropped, out);
        Progress::More
    }

    /// Leaves what is before a message that cannot be read where it is: that one may be newer and of the same key, and what
    /// is moved comes behind it. Answers whether there is something of that kind.
    fn stay_before_blind(&mut self, at: At) -> bool {
        let Some(pass) = self.last_values.pass.as_mut().filter(|pass| at.run.start < pass.blind_to) else {
            return false;
        };
        pass.at = pass.blind_to.min(pass.stretch.end);
        let table = self.last_values.tables.get_mut(&at.topic);
        if let Some(round) = table.and_then(|table| table.round.as_mut()) {
            round.leave(Some(at.run.start));
        }
        true
    }

    /// What of a range is to be moved. What has no key that could be read is.
    fn pick_newest(&self, id: TopicId, range: OffsetRange, chunk: &CachedChunk, held: &RangeSet) -> Moving {
        let mut moving = Moving::default();
        let Some(pass) = &self.last_values.pass else { return moving };
        let round = self.last_values.tables.get(&id).and_then(|table| table.round);
        let mut any_left = round.is_none_or(|round| round.left.is_some());
        let old_before = Timestamp(self.now.0.saturating_sub(LAST_VALUE_TOMBSTONE_MS));
        for offset in (range.start.0..range.end.0).map(Offset) {
            let index = (offset.0 - chunk.first.0) as usize;
            let (encoded, source) = (chunk.block.slice(index, index + 1), chunk.source(index));
            let value = Value::read(&encoded, source.published_at);
            let is_newest = value.is_none_or(|value| pass.is_newest(offset, value.key));
            if held.contains(offset) {
                if !is_newest {
                    any_left = true;
                    moving.left = moving.left.or(Some(offset.next()));
                }
                continue;
            }
            if !is_newest {
                continue;
            }
            moving.keys.extend(value.map(|value| value.key));
            // Without its tombstone, an older message that had to stay would be the newest of its key again.
            let is_over = |value: &Value| value.is_tombstone && value.published_at <= old_before && !any_left;
            if !value.as_ref().is_some_and(is_over)
                && let Ok(message) = Message::decode(&encoded)
            {
                moving.add(offset, message, source.origin, source.published_at);
            }
        }
        moving
    }

    /// Appends moved messages. A group that has settled one has settled it where it is from now on.
    fn append_moved(&mut self, id: TopicId, moving: &Moving, block: MessageBlock, out: &mut Output) {
        let Some(first) = self.topics.get(&id).map(|topic| topic.state.end) else { return };
        let end = Offset(first.0 + block.count() as u64);
        self.append_again(id, block, Source::Mixed(moving.origins.clone()), out);
        for holder in self.holders_of(id) {
            let Some(group) = self.groups.get_mut(&holder) else { continue };
            let Some(part) = group.parts.get_mut(&id) else { continue };
            for (index, from) in moving.from.iter().enumerate() {
                // Nobody has it in flight.
                if *from < part.state.floor || part.state.settled.contains(*from) {
                    part.settle(OffsetRange::one(Offset(first.0 + index as u64)));
                }
            }
            part.fresh_from = part.fresh_from.max(end);
            self.cycle.mark(group, id);
        }
    }
}
