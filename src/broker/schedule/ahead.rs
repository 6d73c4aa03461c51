//! Reading what is due next, before it is due.
//!
//! What is known one by one lies all over its slot. So what is due within the next moment is looked at together: what
//! of it lies close together is read together.

use std::collections::BTreeSet;

use super::super::Output;
use super::super::machine::Broker;
use super::super::reading::{READ_BYTES, READ_ONE_BYTES};
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::topic_kind::Waiting;

/// Messages that are seen to in one cycle.
const SEEN_PER_CYCLE: usize = 1024;
/// Bytes that are read along with two messages that are wanted, between them: about what a read of its own costs.
const GAP_BYTES: usize = 4 << 10;
/// What a message in memory takes there beside its bytes: it may have been read alone.
const MESSAGE_COST: usize = 256;

impl Broker {
    /// Sees to what is due next: has read what of it is not in memory.
    pub(super) fn read_ahead(&mut self, waiting: Waiting, out: &mut Output) {
        let now = self.now;
        let unseen = self.schedule.agenda(waiting).unseen(now, SEEN_PER_CYCLE);
        self.work_left |= unseen.len() == SEEN_PER_CYCLE;
        let mut missing: BTreeSet<(TopicId, Offset)> = BTreeSet::new();
        let mut to_read = 0;
        for known in unseen {
            let (at, slot, offset) = known;
            if !self.schedule.agenda(waiting).may_see(at, now, to_read) {
                break;
            }
            let chunk = self.cache.topic(slot).and_then(|cached| cached.at(offset));
            let bytes = match chunk {
                Some(chunk) => chunk.block.encoded((offset.0 - chunk.first.0) as usize).len() + MESSAGE_COST,
                None if !self.is_scheduled(slot, offset) => 0,
                None => {
                    let bytes = self.scheduled_bytes(slot) + GAP_BYTES;
                    if !self.schedule.agenda(waiting).is_wanted(slot, offset) {
                        to_read += bytes;
                        missing.insert((slot, offset));
                    }
                    bytes
                }
            };
            self.schedule.agenda(waiting).seen(known, bytes);
        }
        self.read_missing(waiting, missing, out);
    }

    /// Reads these messages, those that lie close together at once.
    fn read_missing(&mut self, waiting: Waiting, missing: BTreeSet<(TopicId, Offset)>, out: &mut Output) {
        let mut missing = missing.into_iter().peekable();
        while let Some((slot, start)) = missing.next() {
            let run = self.topics.get(&slot).and_then(|topic| topic.state.run_at(start));
            // A read ends where messages are gone.
            let run_end = run.map_or(start, |run| run.end);
            let each = self.scheduled_bytes(slot);
            let (together, gap_max) = ((READ_BYTES / each) as u64, (GAP_BYTES / each) as u64);
            let mut end = start.next();
            while let Some((_, next)) = missing.next_if(|&(other, next)| {
                let is_near = other == slot && next.0.saturating_sub(end.0) <= gap_max;
                is_near && next < run_end && next.0 - start.0 < together
            }) {
                end = next.next();
            }
            self.read_scheduled(waiting, slot, OffsetRange { start, end }, out);
        }
    }

    /// Has messages of a slot read, as many of them as one read brings.
    pub(super) fn read_scheduled(
        &mut self,
        waiting: Waiting,
        slot: TopicId,
        range: OffsetRange,
        out: &mut Output,
    ) {
        let each = self.scheduled_bytes(slot);
        let count = range.len().min((READ_BYTES / each).max(1) as u64);
        // A little more, since they are not all of one size.
        let bytes = if count == 1 { READ_ONE_BYTES } else { (count + count / 4 + 1) as usize * each };
        let end = Offset(range.start.0 + count);
        if self.schedule.agenda(waiting).want(slot, range.start, end, bytes) {
            self.reads.want_for_schedule(slot, range.start, bytes, &mut out.reads);
        }
    }

    /// Bytes that a message of a slot has, on average.
    fn scheduled_bytes(&self, slot: TopicId) -> usize {
        let Some(topic) = self.topics.get(&slot) else { return 1 };
        topic.state.marks.bytes_ever().div_ceil(topic.state.end.0.max(1)).max(1) as usize
    }
}
