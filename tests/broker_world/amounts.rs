//! What topics hold, in messages and bytes, and how much they may: what goes because it is too much, and who is refused
//! because there is no room.
//!
//! The model knows the bytes exactly. The broker estimates them, exactly too where all messages of a topic had one size
//! and none is gone from the middle.

use std::collections::BTreeSet;

use batonmq::model::id::TopicId;
use batonmq::model::record::Record;
use batonmq::model::settings::{Overflow, TopicSettings};
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::protocol::error::ErrorCode;

use super::{Stored, World};

/// The most that a topic keeps, in messages and bytes; with `drop-oldest` that is what it holds at most.
fn kept_max(settings: &TopicSettings) -> (u64, u64) {
    let dropping = settings.overflow == Overflow::DropOldest;
    let least = |kept: Option<u64>, full: Option<u64>| {
        [kept, full.filter(|_| dropping)].into_iter().flatten().min().unwrap_or(u64::MAX)
    };
    let retention = &settings.retention;
    (least(retention.max_messages, settings.max_messages), least(retention.max_bytes, settings.max_bytes))
}

impl World {
    /// The logs in which messages of a topic are: itself and its parts.
    fn logs_of(&self, whole: TopicId) -> Vec<TopicId> {
        let is_note = |kind| matches!(kind, TopicKind::Slot { waiting: Waiting::Expiring, .. });
        let logs = self.fold.topics.iter().filter(|(_, state)| !is_note(state.kind));
        logs.map(|(id, _)| *id).filter(|id| self.whole_topic(*id) == whole).collect()
    }

    /// The messages of a topic with its parts: how many, and their bytes.
    pub fn held_by(&self, whole: TopicId) -> (u64, u64) {
        let logs = self.logs_of(whole).into_iter().filter_map(|log| self.store.get(&log));
        let stored = logs.flat_map(|messages| messages.values());
        stored.fold((0, 0), |held, stored| (held.0 + 1, held.1 + stored.message.encoded_len() as u64))
    }

    /// The sizes that messages in a log have ever had, with what this cycle has published so far.
    fn sizes_in(&self, log: TopicId) -> BTreeSet<u64> {
        let mut sizes = self.sizes.get(&log).cloned().unwrap_or_default();
        for record in &self.out.records {
            if let Record::Published(published) = record
                && published.targets.iter().any(|(target, _)| *target == log)
            {
                let messages = (0..published.block.count()).map(|at| published.block.message(at).unwrap());
                sizes.extend(messages.map(|message| message.encoded_len() as u64));
            }
        }
        sizes
    }

    /// Bytes by which the broker's estimate of what a topic holds may be off.
    pub fn bytes_slack(&self, whole: TopicId) -> u64 {
        let slack = self.logs_of(whole).into_iter().map(|log| {
            let (state, sizes) = (&self.fold.topics[&log], self.sizes_in(log));
            let largest = sizes.last().copied().unwrap_or(0);
            if sizes.len() > 1 {
                return (self.held_by(whole).1 / 16).max(64 << 10) + largest;
            }
            // Of those that are gone from the middle nobody knows how many lie in a part of it.
            (state.end.0 - state.start.0 - state.message_count()) * largest
        });
        slack.sum()
    }

    /// Whether a topic had as much as it keeps, or more, without all but the last of these, which go from its front.
    pub fn is_too_much<'a>(&self, whole: TopicId, gone: impl Iterator<Item = &'a Stored>) -> bool {
        let (messages_max, bytes_max) = kept_max(&self.fold.topics[&whole].settings);
        let (mut messages, mut bytes) = self.held_by(whole);
        let mut last = 0;
        for stored in gone {
            last = stored.message.encoded_len() as u64;
            messages -= 1;
            bytes -= last;
        }
        messages >= messages_max || bytes + last + self.bytes_slack(whole) > bytes_max
    }

    /// No topic keeps more than it may, but for what waits for its time, and the newest message of each priority,
    /// whatever its size.
    pub fn check_kept(&self) {
        for (id, state) in self.fold.topics.iter().filter(|(_, state)| state.kind.part_of().is_none()) {
            let (messages_max, bytes_max) = kept_max(&state.settings);
            let is_lane = |log: &TopicId| !matches!(self.fold.topics[log].kind, TopicKind::Slot { .. });
            let lanes = self.logs_of(*id).into_iter().filter(is_lane);
            let most = lanes.map(|lane| self.fold.topics[&lane].message_count()).max().unwrap_or(0);
            let (messages, bytes) = self.held_by(*id);
            assert!(most == 0 || messages <= messages_max, "too many in {id}");
            let slack = self.bytes_slack(*id);
            assert!(
                most <= 1 || bytes <= bytes_max.saturating_add(slack),
                "too much in {id}: {bytes} bytes of {bytes_max}, give or take {slack}"
            );
        }
    }

    /// Whether a refusal of a publish to these topics is right: one of them is full, or others wait for it.
    pub fn is_held_up(&self, parts: &[(TopicId, u32)], code: ErrorCode) -> bool {
        parts.iter().any(|(topic, _)| {
            let Some(settings) = self.topic_settings(*topic) else { return false };
            let held = self.fold.topics.contains_key(topic).then(|| self.held_by(*topic));
            let (mut messages, mut bytes) = held.unwrap_or_default();
            for record in &self.out.records {
                if let Record::Published(published) = record
                    && published.targets[0].0 == *topic
                {
                    messages += published.block.count() as u64;
                    bytes += published.block.bytes().len() as u64;
                }
            }
            let limited = settings.max_messages.is_some() || settings.max_bytes.is_some();
            let full = settings.max_messages.is_some_and(|max| messages >= max)
                || settings.max_bytes.is_some_and(|max| bytes + self.bytes_slack(*topic) >= max);
            match code {
                ErrorCode::TopicFull => settings.overflow == Overflow::Reject && full,
                // Others may wait for room that they are called for.
                ErrorCode::TopicBlocked => settings.overflow == Overflow::Block && limited,
                _ => false,
            }
        })
    }
}
