//! What a topic holds: messages and bytes, with those of its parts.
//!
//! Counted as it changes, for topics where something depends on it. Messages are exact; bytes are estimated from the
//! [marks](crate::model::marks), and where messages are gone from the middle, by their share.

use super::machine::Broker;
use super::topic::Topic;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::time::Timestamp;
use crate::model::topic_kind::{TopicKind, Waiting};

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holdings {
    pub messages: u64,
    pub bytes: u64,
}

impl Holdings {
    pub fn plus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_add(other.messages),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    pub fn minus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(other.messages),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl Topic {
    /// What it holds itself. Notes stand for messages that are elsewhere, and are none.
    fn holdings(&self) -> Holdings {
        if matches!(self.state.kind, TopicKind::Slot { waiting: Waiting::Expiring, .. }) {
            return Holdings::default();
        }
        let state = &self.state;
        let span = state.end.0 - state.start.0;
        let bytes = match span {
            0 => 0,
            _ if self.messages == span => self.span_bytes(),
            _ => (u128::from(self.span_bytes()) * u128::from(self.messages) / u128::from(span)) as u64,
        };
        Holdings { messages: self.messages, bytes }
    }

    /// Bytes from its start to its end, with what is gone in between.
    fn span_bytes(&self) -> u64 {
        self.state.marks.bytes_ever() - self.state.marks.bytes_before(self.state.start, self.state.end)
    }

    /// The offset behind its `count` oldest messages.
    pub fn offset_behind(&self, mut count: u64) -> Offset {
        let all = OffsetRange { start: self.state.start, end: self.state.end };
        for run in self.state.removed.gaps(all) {
            if run.len() > count {
                return Offset(run.start.0 + count);
            }
            count -= run.len();
        }
        self.state.end
    }

    /// The offset of the oldest of its `count` newest messages; its start where it has no more.
    pub fn offset_of_newest(&self, mut count: u64) -> Offset {
        let mut end = self.state.end;
        for removed in self.state.removed.iter_down() {
            let run = end.0 - removed.end.0;
            if run >= count {
                break;
            }
            count -= run;
            end = removed.start;
        }
        self.state.start.max(Offset(end.0.saturating_sub(count)))
    }

    /// About the offset behind its oldest messages with so many bytes. The newest message stays, whatever its size.
    pub fn offset_behind_bytes(&self, bytes: u64) -> Offset {
        let (span, held) = (self.span_bytes(), self.holdings().bytes);
        // Of what is gone from the middle, a share lies among the oldest.
        let bytes = (u128::from(bytes) * u128::from(span)).div_ceil(u128::from(held.max(1)));
        let left = span.saturating_sub(u64::try_from(bytes).unwrap_or(u64::MAX));
        let cut = self.state.marks.offset_with_bytes_left(left, self.state.end);
        cut.min(Offset(self.state.end.0.saturating_sub(1)))
    }

    /// A time before which none of its messages was published; `None` where it has none.
    pub fn oldest_from(&self) -> Option<Timestamp> {
        let start = self.state.start;
        if start == self.state.end {
            return None;
        }
        let known = self.oldest.filter(|(offset, _)| *offset == start).map(|(_, at)| at);
        Some(known.unwrap_or_else(|| self.state.marks.published_from(start)))
    }
}

impl Broker {
    /// The topic that a part is a part of, or the topic itself.
    pub(super) fn whole_of(&self, id: TopicId) -> TopicId {
        self.topics.get(&id).and_then(|topic| topic.state.kind.part_of()).unwrap_or(id)
    }

    /// Notes that a topic, or a part of one, has more messages or fewer.
    pub(super) fn recount(&mut self, id: TopicId) {
        let whole_id = self.whole_of(id);
        let bounded = self.topics.get(&whole_id).is_some_and(|whole| whole.state.settings.is_bounded());
        if bounded {
            self.count(id, whole_id);
        }
    }

    /// Counts a topic with all its parts anew.
    pub(super) fn recount_all(&mut self, whole_id: TopicId) {
        let Some(whole) = self.topics.get(&whole_id) else { return };
        let logs: Vec<TopicId> =
            whole.lanes.values().chain(&whole.slots).copied().chain([whole_id]).collect();
        logs.into_iter().for_each(|log| self.count(log, whole_id));
    }

    fn count(&mut self, id: TopicId, whole_id: TopicId) {
        let Some(topic) = self.topics.get_mut(&id) else { return };
        let now = topic.holdings();
        let before = std::mem::replace(&mut topic.counted, now);
        self.add_to_total(whole_id, before, now);
    }

    /// Takes what a part that goes held out of what its topic holds.
    pub(super) fn uncount(&mut self, id: TopicId) {
        let whole_id = self.whole_of(id);
        let Some(topic) = self.topics.get_mut(&id) else { return };
        let before = std::mem::take(&mut topic.counted);
        if whole_id != id {
            self.add_to_total(whole_id, before, Holdings::default());
        }
    }

    fn add_to_total(&mut self, whole_id: TopicId, before: Holdings, now: Holdings) {
        let Some(whole) = self.topics.get_mut(&whole_id) else { return };
        whole.total = whole.total.plus(now).minus(before);
        self.look_at_topic(whole_id);
    }

    /// Has a topic looked at when the cycle ends: what it holds may be too much, or less than it was.
    pub(super) fn look_at_topic(&mut self, whole_id: TopicId) {
        if let Some(whole) = self.topics.get_mut(&whole_id)
            && !std::mem::replace(&mut whole.to_look_at, true)
        {
            self.cycle.topics_to_look_at.push(whole_id);
        }
    }
}
