//! Messages in the middle of a topic that every group is done with, while one before them is not settled.
//!
//! The start of a topic stays at its oldest message that somebody still needs. What is settled behind it would take
//! space for as long as that one waits, so from time to time it is looked for and removed. How often follows from how
//! much was settled, so that looking costs little for each message; what is found is at most a bounded part of what a
//! topic has.

use crate::model::id::OffsetRange;
use crate::model::message::MessageBlock;
use crate::model::record::Record;
use crate::model::snapshot::{GroupState, TopicState};

/// Less than this part of it is not worth a record: it will probably be trimmed with what is before it.
const WORTH_FRACTION: u64 = 4;
/// Ranges that one record removes; where there are more, the next cycle goes on.
const RANGES_MAX: usize = 4096;
/// Bytes of a message of a topic that nobody has read or written since the start.
const MESSAGE_BYTES: u64 = 128;

/// How much of a topic may be removed, by what was settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Garbage {
    /// Messages settled since the middle was last looked at, by any group.
    settled: u64,
    /// Bytes of a message, about: a moving mean of what came by.
    message_bytes: u64,
}

impl Default for Garbage {
    fn default() -> Self {
        Self { settled: 0, message_bytes: MESSAGE_BYTES }
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
            self.settled += ranges.iter().map(|range| range.len()).sum::<u64>();
        }
    }

    /// Whether enough was settled to look.
    pub fn may_be_much(&self, bytes_max: u64) -> bool {
        self.settled >= self.messages_in(bytes_max)
    }

    fn messages_in(&self, bytes: u64) -> u64 {
        (bytes / self.message_bytes.max(1)).max(1)
    }

    /// What all `groups` have settled and is still there, unless it is too little.
    pub fn find<'a>(
        &mut self,
        bytes_max: u64,
        topic: &TopicState,
        groups: impl Iterator<Item = &'a GroupState>,
    ) -> Vec<OffsetRange> {
        let ranges = settled_by_all(topic, groups);
        if ranges.len() <= RANGES_MAX {
            self.settled = 0;
        }
        let count: u64 = ranges.iter().map(|range| range.len()).sum();
        if count < self.messages_in(bytes_max).div_ceil(WORTH_FRACTION) {
            self.settled = 0;
            return Vec::new();
        }
        ranges.into_iter().take(RANGES_MAX).collect()
    }
}

/// What every group has settled and is still there.
fn settled_by_all<'a>(topic: &TopicState, groups: impl Iterator<Item = &'a GroupState>) -> Vec<OffsetRange> {
    // What somebody needs is the union of what each needs: all the rest can go.
    let whole = OffsetRange { start: topic.start, end: topic.end };
    let mut kept = topic.removed.clone();
    for group in groups {
        let unsettled = OffsetRange { start: group.floor.max(topic.start), end: topic.end };
        for gap in group.settled.gaps(unsettled) {
            kept.insert(gap);
        }
    }
    kept.gaps(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Offset, TopicId};
    use crate::model::message::Message;
    use crate::model::name::Name;
    use crate::model::ranges::RangeSet;
    use crate::model::settings::{GroupSettings, TopicSettings};

    fn topic(end: u64) -> TopicState {
        let mut topic = TopicState::new(Name::new("t").unwrap(), TopicSettings::default());
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
        let found = settled_by_all(&topic, groups.iter());
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
        assert_eq!(large.find(bytes_max, &topic, [group(&[(1, 10)])].iter()), [OffsetRange::new(1, 10)]);
        assert!(!large.may_be_much(bytes_max), "looked at");
        large.settled(&settled(9));
        assert_eq!(large.find(bytes_max, &topic, [group(&[(1, 2)])].iter()), [], "too little");
    }
}
