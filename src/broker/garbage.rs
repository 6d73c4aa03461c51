//! Messages in the middle of a topic that every group is done with, while one before them is not settled.
//!
//! The start of a topic stays at its oldest message that somebody still needs. What is settled behind it would take
//! space for as long as that one waits, so from time to time it is looked for and removed. How often follows from how
//! much was settled and from how many ranges there were to look at, so that looking costs little for each message;
//! what is found is at most a bounded part of what a topic has.

use crate::model::id::{Offset, OffsetRange};
use crate::model::message::MessageBlock;
use crate::model::record::Record;
use crate::model::snapshot::{GroupState, TopicState};

/// Less than this part of it is not worth a record: it will probably be trimmed with what is before it.
const WORTH_FRACTION: u64 = 4;
/// Ranges that one record removes; where there are more, the next cycle goes on.
const RANGES_MAX: usize = 4096;
/// Ranges that are looked at for each message that was settled, at most.
const RANGES_PER_MESSAGE: u64 = 64;
/// Bytes of a message of a topic that nobody has read or written since the start.
const MESSAGE_BYTES: u64 = 128;

/// How much of a topic may be removed, by what was settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Garbage {
    /// Messages settled since the middle was last looked at, by any group.
    settled: u64,
    /// Messages that must be settled to be worth the time of a look, by the last one.
    settled_min: u64,
    /// Where the next look begins: where the last one found enough for a record, or the start.
    from: Offset,
    /// Bytes of a message, about: a moving mean of what came by.
    message_bytes: u64,
}

impl Default for Garbage {
    fn default() -> Self {
        Self { settled: 0, settled_min: 1, from: Offset(0), message_bytes: MESSAGE_BYTES }
    }
}

impl Garbage {
    /// Messages of the topic came by.
    pub fn seen(&mut self, block: &MessageBlock) {
        let mean = block.bytes().len() as u64 / (block.count() as u64).max(1);
        self.message_bytes = (7 * self.message_bytes + mean).div_ceil(8);
    }

    /// A group has settled messages.
    pub fn settled(&mut self, record: &Record) {
        if let Record::Settled { ranges, .. } = record {
            let count = ranges.iter().map(|range| range.len()).sum();
            self.settled = self.settled.saturating_add(count);
        }
    }

    /// A group is gone: what it alone had not settled may be anything.
    pub fn group_gone(&mut self) {
        (self.settled, self.from) = (u64::MAX, Offset(0));
    }

    /// Nothing is to be looked for: what is settled stays.
    pub fn forget(&mut self) {
        (self.settled, self.from) = (0, Offset(0));
    }

    /// Whether enough was settled to look.
    pub fn may_be_much(&self, bytes_max: u64) -> bool {
        self.settled >= self.messages_in(bytes_max).max(self.settled_min)
    }

    fn messages_in(&self, bytes: u64) -> u64 {
        (bytes / self.message_bytes.max(1)).max(1)
    }

    /// What all `groups` have settled and is still there, unless it is too little. Where it is more than a record
    /// holds, there [may be much](Self::may_be_much) still, and the next look goes on behind it.
    pub fn find(&mut self, bytes_max: u64, topic: &TopicState, groups: &[&GroupState]) -> Vec<OffsetRange> {
        let whole = self.from <= topic.start;
        let mut ranges = Vec::new();
        for range in settled_by_all(topic, groups, self.from) {
            if ranges.len() == RANGES_MAX {
                self.from = range.start;
                return ranges;
            }
            ranges.push(range);
        }
        let looked_at = topic.removed.range_count()
            + groups.iter().map(|group| group.settled.range_count()).sum::<usize>();
        self.settled_min = (looked_at as u64).div_ceil(RANGES_PER_MESSAGE).max(1);
        (self.settled, self.from) = (0, Offset(0));
        let count: u64 = ranges.iter().map(|range| range.len()).sum();
        if whole && count < self.messages_in(bytes_max).div_ceil(WORTH_FRACTION) {
            ranges.clear();
        }
        ranges
    }
}

/// What every group has settled and is still there, from an offset on. Takes time for each range that it passes, and
/// no memory.
fn settled_by_all<'a>(
    topic: &'a TopicState,
    groups: &'a [&GroupState],
    from: Offset,
) -> impl Iterator<Item = OffsetRange> + 'a {
    let mut at = topic.start.max(from);
    std::iter::from_fn(move || {
        'next: while at < topic.end {
            let mut end = topic.end;
            if let Some(removed) = topic.removed.range_from(at) {
                if removed.start <= at {
                    at = removed.end;
                    continue;
                }
                end = removed.start;
            }
            for group in groups {
                let settled = if at < group.floor {
                    OffsetRange { start: at, end: group.floor }
                } else {
                    group.settled.range_from(at).unwrap_or(OffsetRange { start: topic.end, end: topic.end })
                };
                if settled.start > at {
                    at = settled.start;
                    continue 'next;
                }
                end = end.min(settled.end);
            }
            let range = OffsetRange { start: at, end };
            at = end;
            return Some(range);
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Offset, TopicId};
    use crate::model::message::Message;
    use crate::model::name::Name;
    use crate::model::ranges::RangeSet;
    use crate::model::settings::{GroupSettings, TopicSettings};
    use crate::model::topic_kind::TopicKind;

    fn topic(end: u64) -> TopicState {
        let mut topic = TopicState::new(Name::new("t").unwrap(), TopicKind::Named, TopicSettings::default());
        topic.end = Offset(end);
        topic
    }

    fn group(settled: &[(u64, u64)]) -> GroupState {
        let name = Name::new("g").unwrap();
        let mut group =
            GroupState::new(TopicId(0), name, GroupSettings::default(), Offset(0), &RangeSet::new());
        settled.iter().for_each(|&(start, end)| group.settle(OffsetRange::new(start, end)));
        group
    }

    #[test]
    fn what_all_groups_have_settled_is_found() {
        let mut topic = topic(100);
        topic.removed.insert(OffsetRange::new(40, 50));
        let groups = [group(&[(0, 10), (20, 60), (90, 100)]), group(&[(5, 30), (35, 95)])];
        let groups: Vec<&GroupState> = groups.iter().collect();
        let found: Vec<OffsetRange> = settled_by_all(&topic, &groups, Offset(0)).collect();
        let expected = [(5, 10), (20, 30), (35, 40), (50, 60), (90, 95)];
        assert_eq!(found, expected.map(|(start, end)| OffsetRange::new(start, end)));
    }

    #[test]
    fn it_is_looked_for_after_so_many_bytes() {
        let settled = |count: u64| Record::Settled {
            group: crate::model::id::GroupId(0),
            ranges: vec![OffsetRange::new(1, 1 + count)],
        };
        let mut unknown = Garbage::default();
        unknown.settled(&settled(7));
        assert!(!unknown.may_be_much(8 * MESSAGE_BYTES));
        unknown.settled(&settled(1));
        assert!(unknown.may_be_much(8 * MESSAGE_BYTES));
        let mut large = Garbage::default();
        for _ in 0..100 {
            large.seen(&MessageBlock::encode([&Message::new(vec![0; 1 << 20])]));
        }
        let bytes_max = 8 << 20;
        large.settled(&settled(9));
        assert!(large.may_be_much(bytes_max));
        let topic = topic(20);
        assert_eq!(large.find(bytes_max, &topic, &[&group(&[(1, 10)])]), [OffsetRange::new(1, 10)]);
        assert!(!large.may_be_much(bytes_max), "looked at");
        large.settled(&settled(9));
        assert_eq!(large.find(bytes_max, &topic, &[&group(&[(1, 2)])]), [], "too little");
    }

    fn every_second(count: u64) -> Vec<(u64, u64)> {
        (0..count).map(|at| (2 * at + 1, 2 * at + 2)).collect()
    }

    #[test]
    fn more_than_a_record_holds_is_found_bit_by_bit() {
        const COUNT: u64 = 2 * RANGES_MAX as u64 + 100;
        let (mut topic, group) = (topic(3 * COUNT), group(&every_second(COUNT)));
        let mut garbage = Garbage::default();
        garbage.settled(&Record::Settled {
            group: crate::model::id::GroupId(0),
            ranges: vec![OffsetRange::new(1, 1 + COUNT)],
        });
        let mut counts = Vec::new();
        while garbage.may_be_much(MESSAGE_BYTES) {
            let found = garbage.find(MESSAGE_BYTES, &topic, &[&group]);
            counts.push(found.len());
            found.into_iter().for_each(|range| assert_eq!(topic.removed.insert(range), range));
        }
        assert_eq!(counts, [RANGES_MAX, RANGES_MAX, 100]);
        assert_eq!(topic.removed.range_count() as u64, COUNT);
    }

    /// With large messages every one that was settled was followed by a look at all ranges that there are.
    #[test]
    fn many_ranges_are_looked_at_rarely() {
        const COUNT: u64 = 6_400;
        let (mut topic, group) = (topic(3 * COUNT), group(&every_second(COUNT)));
        every_second(COUNT).into_iter().for_each(|(start, end)| {
            topic.removed.insert(OffsetRange::new(start, end));
        });
        let mut garbage = Garbage::default();
        garbage.group_gone();
        assert_eq!(garbage.find(1, &topic, &[&group]), []);
        let settle = |count| Record::Settled {
            group: crate::model::id::GroupId(0),
            ranges: vec![OffsetRange::new(1, 1 + count)],
        };
        garbage.settled(&settle(2 * COUNT / RANGES_PER_MESSAGE - 1));
        assert!(!garbage.may_be_much(1));
        garbage.settled(&settle(1));
        assert!(garbage.may_be_much(1));
    }
}
