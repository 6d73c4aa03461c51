//! Settlements that wait in the client, so that many of them leave in one frame. Pure.
//!
//! What was settled in which way stays in the order in which the application said it; within one way, ranges of
//! offsets are merged.

use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::protocol::request::Settlement;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Settlements {
    entries: Vec<Entry>,
    count: u32,
}

/// Offsets that are settled in the same way, one after the other.
#[derive(Debug)]
struct Entry {
    topic: TopicId,
    generation: u32,
    settlement: Settlement,
    ranges: Vec<OffsetRange>,
    /// Calls that made it, by their [`weight`].
    count: u64,
}

/// Settlements that leave together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) topic: TopicId,
    /// How often what the consumer had of the topic had been recalled when the messages came.
    pub(super) generation: u32,
    /// What to do,
    pub(super) settlement: Settlement,
    /// to which offsets,
    pub(super) ranges: Vec<OffsetRange>,
    /// by calls of which weight.
    pub(super) calls: u64,
}

/// What one call counts for among those settled or lost: an extension settles nothing, and nobody misses it.
pub(super) fn weight(settlement: &Settlement) -> u64 {
    u64::from(*settlement != Settlement::Extend)
}

impl Settlements {
    /// Calls that wait.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Adds a range of a topic, of messages that came in this generation.
    pub(super) fn add(
        &mut self,
        (topic, generation): (TopicId, u32),
        settlement: Settlement,
        range: OffsetRange,
    ) {
        self.count += 1;
        let count = weight(&settlement);
        if let Some(entry) = self.entries.last_mut()
            && (entry.topic, entry.generation, &entry.settlement) == (topic, generation, &settlement)
        {
            entry.count += count;
            match entry.ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => entry.ranges.push(range),
            }
            return;
        }
        self.entries.push(Entry { topic, generation, settlement, ranges: vec![range], count });
    }

    /// Makes it as small as it can be: what is there twice goes.
    pub(super) fn merge(&mut self) {
        for entry in &mut self.entries {
            merge(&mut entry.ranges);
        }
        self.count = 0;
        for entry in &self.entries {
            self.count += u32::try_from(entry.ranges.len()).unwrap_or(u32::MAX);
        }
    }

    /// Takes everything out, in order.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Taken> + use<> {
        self.count = 0;
        std::mem::take(&mut self.entries).into_iter().map(|mut entry| {
            merge(&mut entry.ranges);
            let Entry { topic, generation, settlement, ranges, count: calls } = entry;
            Taken { topic, generation, settlement, ranges, calls }
        })
    }

    /// Forgets everything. Answers how many calls it was, by their weight.
    pub(super) fn clear(&mut self) -> u64 {
        self.count = 0;
        self.entries.drain(..).map(|entry| entry.count).sum()
    }
}

/// Sorts ranges and joins what touches or overlaps.
pub(super) fn merge(ranges: &mut Vec<OffsetRange>) {
    if ranges.len() < 2 {
        return;
    }
    ranges.sort_unstable();
    let mut kept = 0;
    for at in 1..ranges.len() {
        if ranges[at].start <= ranges[kept].end {
            ranges[kept].end = ranges[kept].end.max(ranges[at].end);
        } else {
            kept += 1;
            ranges[kept] = ranges[at];
        }
    }
    ranges.truncate(kept + 1);
}

/// Everything up to and including `offset`.
pub(super) fn up_to(offset: Offset) -> OffsetRange {
    OffsetRange { start: Offset(0), end: offset.next() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: (TopicId, u32) = (TopicId(1), 0);

    #[test]
    fn acks_in_any_order_become_few_ranges() {
        let mut settlements = Settlements::default();
        for offset in [5, 3, 4, 9, 0, 1] {
            settlements.add(TOPIC, Settlement::Ack, OffsetRange::one(Offset(offset)));
        }
        let taken: Vec<_> = settlements.take().collect();
        let ranges = vec![OffsetRange::new(0, 2), OffsetRange::new(3, 6), OffsetRange::new(9, 10)];
        let (topic, generation) = TOPIC;
        assert_eq!(taken, [Taken { topic, generation, settlement: Settlement::Ack, ranges, calls: 6 }]);
        assert_eq!(settlements.take().count(), 0);
    }

    #[test]
    fn different_settlements_keep_their_order() {
        let mut settlements = Settlements::default();
        let one = |offset| OffsetRange::one(Offset(offset));
        settlements.add(TOPIC, Settlement::Extend, one(1));
        settlements.add(TOPIC, Settlement::Ack, one(1));
        settlements.add(TOPIC, Settlement::Extend, one(2));
        let kinds: Vec<_> = settlements.take().map(|taken| taken.settlement).collect();
        assert_eq!(kinds, [Settlement::Extend, Settlement::Ack, Settlement::Extend]);
    }

    #[test]
    fn merging_forgets_what_is_there_twice() {
        let mut settlements = Settlements::default();
        for _ in 0..10_000 {
            settlements.add(TOPIC, Settlement::Release, OffsetRange::one(Offset(7)));
        }
        settlements.merge();
        assert_eq!(settlements.count(), 1);
        assert_eq!(settlements.clear(), 10_000);
    }
}
