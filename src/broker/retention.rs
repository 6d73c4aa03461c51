//! What a topic keeps: messages go when they are too old, too many or too large, settled or not.
//!
//! A topic is looked at when what it holds has changed, and by itself when its oldest message will be too old; of those
//! that are looked at by themselves, and after a start that is all of them, so many in a cycle. Number
//! and bytes are those of the topic with all its priorities: what is too much goes from the lowest priority first, and
//! the oldest first. What waits for its time counts and does not go.
//!
//! For every group what goes is settled. What a consumer has in flight stays with it, and is settled when it comes
//! back in whatever way: nobody is handed it again.

use super::Output;
use super::holdings::Holdings;
use super::machine::Broker;
use super::time_search::{Found, Purpose};
use super::topic::Topic;
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::record::Record;
use crate::model::settings::{Overflow, TEMPORARY_IDLE_MS, TopicSettings};
use crate::model::time::Timestamp;

/// Of its age, a part by which a message may go late, so that a topic is not looked at for each message.
const AGE_PARTS: u64 = 64;
/// Milliseconds by which a message may go late where that part is less.
const AGE_STEP_MS_MIN: u64 = 1_000;
/// Topics that are looked at by themselves in one cycle.
const TIMERS_PER_CYCLE: usize = 256;

/// What a topic keeps at most; with `drop-oldest` that is what it holds at most.
fn kept_max(settings: &TopicSettings) -> Holdings {
    let dropping = settings.overflow == Overflow::DropOldest;
    let least = |kept: Option<u64>, full: Option<u64>| {
        [kept, full.filter(|_| dropping)].into_iter().flatten().min().unwrap_or(u64::MAX)
    };
    Holdings {
        messages: least(settings.retention.max_messages, settings.max_messages),
        bytes: least(settings.retention.max_bytes, settings.max_bytes),
    }
}

impl Broker {
    /// Drops what topics are not to keep, as far as something has changed or time has passed.
    pub(super) fn keep_retention(&mut self, out: &mut Output) {
        self.tidy_lines();
        for _ in 0..TIMERS_PER_CYCLE {
            let Some(&(at, id)) = self.topic_timers.first().filter(|(at, _)| *at <= self.now) else { break };
            self.topic_timers.remove(&(at, id));
            if let Some(topic) = self.topics.get_mut(&id) {
                topic.timer = None;
            }
            self.look_at_topic(id);
        }
        let mut topics = std::mem::take(&mut self.cycle.topics_to_look_at);
        for &id in &topics {
            self.look_at(id, out);
            if let Some(topic) = self.topics.get_mut(&id) {
                topic.to_look_at = false;
            }
        }
        topics.clear();
        let marked = std::mem::replace(&mut self.cycle.topics_to_look_at, topics);
        self.cycle.topics_to_look_at.extend(marked);
    }

    /// Has topics that are on the list looked at by and by, as if their time had come: a start has all of them there, and
    /// nobody waits for it.
    pub(super) fn spread_looks(&mut self) {
        for id in std::mem::take(&mut self.cycle.topics_to_look_at) {
            let Some(topic) = self.topics.get_mut(&id) else { continue };
            topic.to_look_at = false;
            topic.timer = Some(self.now);
            self.topic_timers.insert((self.now, id));
        }
    }

    /// Drops what a topic is not to keep, or the topic itself where it is not needed any more.
    fn look_at(&mut self, id: TopicId, out: &mut Output) {
        let Some(topic) = self.topics.get(&id) else { return };
        let settings = topic.state.settings.clone();
        if settings.temporary
            && topic.groups.is_empty()
            && (topic.was_left || self.unused_until(topic) <= self.now)
        {
            self.delete_topic(id, out);
            return;
        }
        self.keep_amount(id, kept_max(&settings), out);
        if let Some(age_ms) = settings.retention.max_age_ms {
            self.keep_young(id, age_ms, out);
        }
        self.call_producers(id, out);
        self.arm_topic(id);
    }

    /// When a temporary topic goes that never had a group. After a start of the broker the time begins anew.
    fn unused_until(&self, topic: &Topic) -> Timestamp {
        let used_at = topic.used_at.max(self.producers.started_at(self.now));
        Timestamp(used_at.0.saturating_add(TEMPORARY_IDLE_MS))
    }

    /// Drops the oldest until no more is there than may be.
    fn keep_amount(&mut self, id: TopicId, max: Holdings, out: &mut Output) {
        for log in self.logs_of(id) {
            // Of what a cut in bytes goes by some may be gone already: what is left then is known better.
            while let Some(cut) = self.cut_for(id, log, max) {
                self.cut(log, cut, out);
            }
        }
    }

    /// Up to where a log of a topic must go for the topic to hold no more than it may; `None` where nothing of it must,
    /// or can.
    fn cut_for(&self, id: TopicId, log: TopicId, max: Holdings) -> Option<Offset> {
        let excess = self.topics.get(&id)?.total.minus(max);
        let topic = self.topics.get(&log)?;
        let start = topic.state.start;
        let by_messages = (excess.messages > 0).then(|| topic.offset_behind(excess.messages));
        let by_bytes = (excess.bytes > 0).then(|| topic.offset_behind_bytes(excess.bytes));
        by_messages.max(by_bytes).filter(|cut| *cut > start)
    }

    /// The topic with its priorities, lowest first.
    pub(super) fn logs_of(&self, id: TopicId) -> Vec<TopicId> {
        let lanes = self.topics.get(&id).into_iter().flat_map(|whole| whole.lanes.values().copied());
        [id].into_iter().chain(lanes).collect()
    }

    /// Drops what is older than it may be, where it is time to look.
    fn keep_young(&mut self, id: TopicId, age_ms: u64, out: &mut Output) {
        if self.topics.get(&id).is_none_or(|whole| whole.next_look.is_some_and(|at| at > self.now)) {
            return;
        }
        let Some(before) = self.now.0.checked_sub(age_ms).map(Timestamp) else { return };
        for log in self.logs_of(id) {
            let Some(topic) = self.topics.get_mut(&log) else { continue };
            if topic.state.start == topic.state.end || std::mem::replace(&mut topic.is_searched, true) {
                continue;
            }
            if let Some(found) = self.search_time(log, before, Purpose::Age, out) {
                self.found_old(log, before, found, out);
            }
        }
    }

    /// Drops what was published before `before`, where that is too old still.
    pub(super) fn found_old(&mut self, log: TopicId, before: Timestamp, found: Found, out: &mut Output) {
        let whole = self.whole_of(log);
        let age_ms = self.topics.get(&whole).and_then(|whole| whole.state.settings.retention.max_age_ms);
        let Some(topic) = self.topics.get_mut(&log) else { return };
        topic.is_searched = false;
        if let Found::At(offset, at) = found
            && age_ms.is_some_and(|age_ms| before.0.saturating_add(age_ms) <= self.now.0)
        {
            topic.oldest = at.map(|at| (offset, at));
            self.cut(log, offset, out);
        }
        self.arm_topic(whole);
    }

    /// Drops what a topic has below `cut`, for all groups.
    pub(super) fn cut(&mut self, id: TopicId, cut: Offset, out: &mut Output) {
        let Some(topic) = self.topics.get_mut(&id) else { return };
        let range = OffsetRange { start: topic.state.start, end: cut.min(topic.state.end) };
        if range.start >= range.end {
            return;
        }
        let holders: Vec<GroupId> = topic.holders.iter().copied().collect();
        let gone = topic.state.message_count_below(range.end);
        topic.messages -= gone;
        topic.state.trim(range.end);
        topic.floor = topic.floor.max(range.end);
        self.totals.take(topic.state.kind, gone);
        self.cache.trim(id, range.end);
        out.records.push(Record::Trimmed { topic: id, start: range.end });
        for group in holders {
            let Some(group) = self.groups.get_mut(&group) else { continue };
            group.drop_below(id, range);
            self.cycle.mark(group, id);
        }
        self.recount(id);
    }

    /// Sets the timer of a topic to when it must be looked at by itself.
    pub(super) fn arm_topic(&mut self, id: TopicId) {
        let Some(whole) = self.topics.get(&id) else { return };
        let settings = &whole.state.settings;
        let look = settings.retention.max_age_ms.and_then(|age_ms| {
            let oldest = self.logs_of(id).into_iter().filter_map(|log| self.topics.get(&log)?.oldest_from());
            let due = Timestamp(oldest.min()?.0.saturating_add(age_ms).saturating_add(1));
            let step = (age_ms / AGE_PARTS).max(AGE_STEP_MS_MIN);
            Some(due.max(Timestamp(self.now.0.saturating_add(step))))
        });
        let unused = (settings.temporary && whole.groups.is_empty()).then(|| self.unused_until(whole));
        let timer = [look, unused, whole.line.next_timeout()].into_iter().flatten().min();
        let Some(whole) = self.topics.get_mut(&id) else { return };
        whole.next_look = look;
        if timer == whole.timer {
            return;
        }
        if let Some(before) = whole.timer {
            self.topic_timers.remove(&(before, id));
        }
        self.topic_timers.extend(timer.map(|at| (at, id)));
        whole.timer = timer;
    }
}
