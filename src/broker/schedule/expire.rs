//! Messages whose time is over: no group gets them any more, but for what is in flight.

use super::super::machine::Broker;
use super::super::{Output, dead_letter};
use super::fire::Expiry;
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::ranges::RangeSet;

/// Messages that a group has of a topic and that die at a time, above which no more expire into its dead letters for a
/// while.
const DYING_MAX: usize = 4096;

impl Broker {
    /// Has no group get these messages of a topic, but for what is in flight.
    pub(super) fn expire(&mut self, topic_id: TopicId, ranges: &RangeSet, out: &mut Output) -> Expiry {
        let Some(topic) = self.topics.get(&topic_id) else { return Expiry::Done };
        let whole = OffsetRange { start: topic.state.start, end: topic.state.end };
        let there: Vec<OffsetRange> = ranges
            .iter()
            .map(|range| OffsetRange { start: range.start.max(whole.start), end: range.end.min(whole.end) })
            .filter(|range| range.start < range.end)
            .collect();
        let holders: Vec<GroupId> = topic.holders.iter().copied().collect();
        if holders.is_empty() {
            let dropped = there.iter().flat_map(|range| topic.state.removed.gaps(*range)).collect();
            self.drop_messages(topic_id, dropped, out);
            return Expiry::Done;
        }
        let mut expiry = Expiry::Done;
        for group in holders {
            if self.expire_for(group, topic_id, &there, out) == Expiry::Later {
                expiry = Expiry::Later;
            }
        }
        expiry
    }

    /// Has a group not get these messages of a topic.
    ///
    /// Where it has very many gaps, or its dead letters cannot be written, they are passed over when their turn comes:
    /// who waits here holds up what expires elsewhere.
    fn expire_for(
        &mut self,
        id: GroupId,
        topic_id: TopicId,
        ranges: &[OffsetRange],
        out: &mut Output,
    ) -> Expiry {
        let (Some(&last), Some(topic)) = (ranges.last(), self.topics.get(&topic_id)) else {
            return Expiry::Done;
        };
        let Some(group) = self.groups.get_mut(&id) else { return Expiry::Done };
        let Some(part) = group.parts.get_mut(&topic_id) else { return Expiry::Done };
        if part.state.settled.range_count() as u64 >= self.limits.settled_ranges_max / 2 {
            return Expiry::Done;
        }
        let is_buried = group.settings.dead_letter_expired
            && dead_letter::target(&topic.state.name, &group.settings).is_some();
        let mut room = match is_buried {
            true if part.dying_not_before.is_some() => return Expiry::Done,
            true => DYING_MAX.saturating_sub(part.redelivery.dying.len()) as u64,
            false => u64::MAX,
        };
        let mut expiry = Expiry::Done;
        let flights = group.members.iter().flat_map(|(_, consumer)| consumer.flights.of(topic_id));
        for gap in part.unheld_of(ranges, flights) {
            let taken =
                OffsetRange { start: gap.start, end: gap.end.min(Offset(gap.start.0.saturating_add(room))) };
            if taken.end < gap.end {
                expiry = Expiry::Later;
            }
            if taken.is_empty() {
                break;
            }
            part.redelivery.forget(taken);
            if is_buried {
                room -= taken.len();
                part.bury_expired(taken, self.now, &mut out.records);
                self.dying.insert((id, topic_id));
            } else {
                part.settle(taken);
            }
        }
        part.fresh_from = part.fresh_from.max(last.end);
        self.cycle.mark(group, topic_id);
        expiry
    }
}
