//! Topics that keep the newest message of each key: what there is a newer one of is dropped.
//!
//! A topic is cleaned in rounds. A round goes through the topic as it is when it begins, in stretches of so many keys
//! as are known at a time; a [pass] over a stretch finds out which of its messages are the newest of their key, and the
//! others are dropped. Memory depends on that number of keys and not on the topic, and one pass is under way at a time
//! over all topics. What a round left behind has no two messages of one key, so the next one reads only what came since
//! for each stretch. Nothing of this is durable: after a start, a topic is as one that was never cleaned, and nothing
//! can be in disagreement with it. An index on the disk would have to be written with every publish, in both stores.
//!
//! Dropping leaves a gap for each key, and every gap is known one by one. Where there are too many, the oldest stretch is
//! *moved*: its newest messages are appended again, and all of it goes, with its gaps. A group that was done with a
//! message is done with the moved one. As a log that is twice as long as what it keeps is cleaned from its old end, few
//! of the messages there are still the newest, and little has to be moved.
//!
//! What a consumer has in flight, and what is on its way to the dead letters, stays until a later round.

mod clean;
mod drop;
mod pass;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::machine::Broker;
use super::refusals;
use super::routes::Ways;
use super::topic::Topic;
use crate::model::id::{Offset, TopicId};
use crate::model::limits::{LAST_VALUE_FRESH_MIN, LAST_VALUE_FRESH_MS};
use crate::model::message::{MessageBlock, Parts};
use crate::model::time::Timestamp;
use crate::model::topic_kind::TopicKind;
use crate::protocol::error::Refusal;
use pass::{Keeps, Pass};

/// Messages that a round reads for each millisecond that the topic is left alone after it, unless very much is
/// published to it: reading them takes a few percent of that time.
const READ_PER_MS: u64 = 20;

/// Messages that are read at most, in a full topic, for each that was published since it was clean and may make room.
/// Where a topic may hold hardly more messages than it has keys, reading all of it for each update would never end.
const READ_FOR_ROOM: u64 = 4096;

/// How the messages of a stretch are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The newest stay where they are.
    Stay,
    /// The newest are moved to the end.
    Move,
}

impl Mode {
    fn keeps(self) -> Keeps {
        match self {
            Self::Stay => Keeps::Superseded,
            Self::Move => Keeps::Newest,
        }
    }
}

/// A round under way.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// Where the next stretch begins.
    cursor: Offset,
    /// Where the round ends.
    to: Offset,
    mode: Mode,
    /// Of the messages that had to stay although there are newer ones, the lowest of the newer ones.
    left: Option<Offset>,
    /// When a tombstone that it came by will be old.
    tombstone_due: Option<Timestamp>,
    /// Messages that it has read.
    seen: u64,
}

impl Round {
    /// Notes that a message had to stay of which this is a newer one, or which itself cannot be told from the newest.
    fn leave(&mut self, newer: Option<Offset>) {
        self.left = self.left.into_iter().chain(newer).min();
    }
}

/// A topic that keeps the newest message of each key.
#[derive(Debug)]
struct Table {
    /// No two messages below have one key.
    clean_to: Offset,
    /// Messages published since the last round began.
    fresh: u64,
    /// So many are reason enough for a round.
    fresh_max: u64,
    /// Since when there has been something to do.
    since: Option<Timestamp>,
    /// No round begins before this for less than that.
    quiet_until: Timestamp,
    round: Option<Round>,
    in_line: bool,
    timer: Option<Timestamp>,
}

impl Table {
    fn new() -> Self {
        Self {
            clean_to: Offset(0),
            fresh: 0,
            fresh_max: LAST_VALUE_FRESH_MIN,
            since: None,
            quiet_until: Timestamp(0),
            round: None,
            in_line: false,
            timer: None,
        }
    }

    /// Notes that there is something to do, or will be: a tombstone has its time.
    fn has_work_since(&mut self, at: Timestamp) {
        self.since = Some(self.since.map_or(at, |since| since.min(at)));
    }
}

/// What is known of all topics that keep the newest message of each key.
#[derive(Debug, Default)]
pub(super) struct LastValues {
    tables: BTreeMap<TopicId, Table>,
    /// Topics that wait for a pass.
    line: VecDeque<TopicId>,
    pass: Option<Pass>,
    timers: BTreeSet<(Timestamp, TopicId)>,
}

impl LastValues {
    /// A topic is there whose messages may never have been looked at.
    pub fn appeared(&mut self, id: TopicId, now: Timestamp) {
        self.tables.entry(id).or_insert_with(Table::new).has_work_since(now);
        self.arm(id);
    }

    /// Messages were published to a topic.
    pub fn published(&mut self, id: TopicId, first: Offset, block: &MessageBlock, now: Timestamp) {
        let table = self.tables.entry(id).or_insert_with(Table::new);
        table.fresh += block.count() as u64;
        table.has_work_since(now);
        if let Some(pass) = self.pass.as_mut().filter(|pass| pass.topic == id)
            && let Some(round) = table.round
        {
            pass.see_published(first, block, round.mode.keeps());
        }
        self.arm(id);
    }

    /// A topic of so many messages takes none because it is full: it is cleaned at once, if what was published since that
    /// was last done is worth reading all of it.
    pub fn make_room(&mut self, id: TopicId, messages: u64) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        let worth_it = messages <= table.fresh.saturating_mul(READ_FOR_ROOM);
        if worth_it && !table.in_line && table.round.is_none() {
            table.in_line = true;
            self.line.push_back(id);
        }
    }

    /// A read has been answered. Where it brought nothing, nothing is read before `again`.
    pub fn loaded(
        &mut self,
        id: TopicId,
        from: Offset,
        chunk: Option<super::cache::CachedChunk>,
        again: Option<Timestamp>,
    ) {
        let Some(pass) = self.pass.as_mut().filter(|pass| pass.topic == id) else { return };
        if pass.reading == Some(from) {
            pass.reading = None;
            pass.not_before = again.filter(|_| chunk.is_none());
            pass.chunk = chunk;
        }
    }

    /// When something is to be done though nothing happens.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let again = self.pass.as_ref().and_then(|pass| pass.not_before);
        timer.into_iter().chain(again).min()
    }

    /// Puts topics in line whose time has come.
    fn wake(&mut self, now: Timestamp) {
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            let Some(table) = self.tables.get_mut(&id) else { continue };
            table.timer = None;
            if !table.in_line && table.round.is_none() {
                table.in_line = true;
                self.line.push_back(id);
            }
        }
    }

    /// Puts a topic in line where there is enough to do, or sees to it that this is looked at in time.
    fn arm(&mut self, id: TopicId) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        if table.in_line || table.round.is_some() {
            return;
        }
        if table.fresh >= table.fresh_max {
            table.in_line = true;
            self.line.push_back(id);
            return;
        }
        let Some(since) = table.since else { return };
        let at = Timestamp(since.0.saturating_add(LAST_VALUE_FRESH_MS)).max(table.quiet_until);
        if table.timer.is_none_or(|timer| at < timer) {
            if let Some(timer) = table.timer.replace(at) {
                self.timers.remove(&(timer, id));
            }
            self.timers.insert((at, id));
        }
    }

    /// Forgets a topic.
    fn forget(&mut self, id: TopicId) {
        if let Some(timer) = self.tables.remove(&id).and_then(|table| table.timer) {
            self.timers.remove(&(timer, id));
        }
        if self.pass.as_ref().is_some_and(|pass| pass.topic == id) {
            self.pass = None;
        }
    }

    /// Ends a round. `living` messages are there now.
    fn end_round(&mut self, id: TopicId, living: u64, now: Timestamp) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        let Some(round) = table.round.take() else { return };
        table.clean_to = round.left.map_or(round.to, |left| left.min(round.to));
        table.fresh_max = (living / 2).max(LAST_VALUE_FRESH_MIN);
        let pause = (round.seen / READ_PER_MS).max(LAST_VALUE_FRESH_MS);
        table.quiet_until = Timestamp(now.0.saturating_add(pause));
        if round.left.is_some() {
            table.has_work_since(now);
        } else if let Some(due) = round.tombstone_due {
            table.has_work_since(Timestamp(due.0.saturating_sub(LAST_VALUE_FRESH_MS)));
        }
        self.arm(id);
    }
}

impl Broker {
    /// Notes a topic that keeps last values, and may have some.
    pub(super) fn note_values(&mut self, id: TopicId) {
        let topic = self.topics.get(&id).filter(|topic| topic.keeps_last_values());
        if topic.is_some_and(|topic| topic.state.start < topic.state.end) {
            self.last_values.appeared(id, self.now);
        }
    }
}

impl Broker {
    /// Whether the messages of a publish from `known` on can go where routes take them: what goes to a topic that keeps
    /// the newest message of each key must be fit for it.
    pub(super) fn check_routed_values(
        &self,
        parts: &[(TopicId, u32)],
        ways: &Ways,
        block: &MessageBlock,
        known: usize,
    ) -> Result<(), Refusal> {
        let (mut start, mut ways) = (0, ways.iter());
        for &(_, count) in parts {
            let (from, end) = (known.max(start), start + count as usize);
            start = end;
            if from >= end {
                continue;
            }
            for way in ways.next().and_then(Option::as_ref).into_iter().flatten() {
                for topic in way.topics.iter().filter_map(|topic| self.topics.get(topic)) {
                    for &(first, behind) in way.picked.runs() {
                        topic.check_values(block, from + first, from + behind)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Topic {
    /// Whether only the newest message of each key stays.
    pub(super) fn keeps_last_values(&self) -> bool {
        self.state.settings.last_value && self.state.kind == TopicKind::Named
    }

    /// Whether messages `start` to `end` of a block may be published to it.
    pub(super) fn check_values(&self, block: &MessageBlock, start: usize, end: usize) -> Result<(), Refusal> {
        if !self.keeps_last_values() {
            return Ok(());
        }
        for index in start..end {
            let name = &self.state.name;
            let parts =
                Parts::read(block.encoded(index), index).map_err(|error| refusals::invalid(&error))?;
            if parts.key.is_none() {
                let text = format!(
                    "message {index}: topic {name} keeps the newest message of each key: give it a key"
                );
                return Err(refusals::invalid(&text));
            }
            if parts.deliver_at.is_some() || parts.expires_at.is_some() || parts.priority > 0 {
                let text = format!(
                    "message {index}: topic {name} keeps the newest message of each key: no priority, no time to be \
                     delivered at and none to expire at can be given"
                );
                return Err(refusals::invalid(&text));
            }
        }
        Ok(())
    }
}
