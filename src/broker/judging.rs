//! Filters are asked when messages are published, whether anybody consumes or not: what a group does not want never
//! waits for it, nor keeps its place on the disk.
//!
//! What is handed out in the same cycle was asked about there. The work is bounded: what is left is asked about when
//! its turn to be handed out comes.

use super::effort::Effort;
use super::machine::Broker;
use super::sieve::{Sieve, Verdict};
use crate::model::id::{GroupId, OffsetRange, TopicId};

impl Broker {
    /// Settles what was published in this cycle, was not handed out, and is not what groups want.
    pub(super) fn judge(&mut self) {
        let mut effort = Effort::CYCLE;
        let mut unjudged = std::mem::take(&mut self.cycle.unjudged);
        for (group, topic) in unjudged.drain(..) {
            if effort.is_spent() {
                break;
            }
            effort = self.judge_part(group, topic, effort);
        }
        self.cycle.unjudged = unjudged;
    }

    /// Answers the effort that is left.
    fn judge_part(&mut self, id: GroupId, topic_id: TopicId, effort: Effort) -> Effort {
        let Some(group) = self.groups.get_mut(&id) else { return effort };
        let (Some(topic), Some(cached)) = (self.topics.get(&topic_id), self.cache.topic(topic_id)) else {
            return effort;
        };
        let Some(part) = group.parts.get_mut(&topic_id) else { return effort };
        let mut sieve = Sieve { effort, ..Sieve::new(group.filter.as_ref(), self.now) };
        let end = topic.state.end;
        let mut at = std::mem::replace(&mut part.judged, end).max(part.cursor).max(part.state.floor);
        let mut settled = false;
        while at < end
            && (part.settled_range_count() as u64) < self.limits.settled_ranges_max / 2
            && let Some(chunk) = cached.at(at)
        {
            // Some of it was settled when it was published: a letter for another group.
            let known = part.state.settled.range_from(at);
            if let Some(settled) = known.filter(|settled| settled.start <= at) {
                at = settled.end;
                continue;
            }
            let end = known.map_or(end, |settled| settled.start.min(end));
            let (verdict, next) = sieve.run(chunk, at, end.min(chunk.end()), u64::MAX);
            if verdict == Verdict::Settle {
                part.settle(OffsetRange { start: at, end: next });
                part.fresh_from = part.fresh_from.max(next);
                settled = true;
            }
            at = next;
            if sieve.effort.is_spent() {
                break;
            }
        }
        let left = sieve.effort;
        if settled {
            self.cycle.mark(group, topic_id);
        }
        left
    }
}
