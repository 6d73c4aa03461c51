//! Dead letters that are published once more, and messages that are taken out of their topic on request.
//!
//! A dead letter is published and taken out of its topic in one commit, so it is in one of both places whenever the node
//! dies. A request names what it means by offsets, which are never used again: asked twice, what the first one has done
//! is found done. Requests are worked at one after the other, a bounded part of one in each cycle; what is not in memory
//! is read. What is with a consumer of the dead-letter topic stays: it may be at work on it.

use std::collections::{BTreeMap, VecDeque};

use super::dead_letter::Revived;
use super::effort::Effort;
use super::home::{Home, Stay};
use super::machine::Broker;
use super::topic::{scattered_bytes, stored_bytes};
use super::{Content, Output, refusals};
use crate::model::chunk::Origin;
use crate::model::id::{GroupId, Offset, OffsetRange, SessionId, TopicId};
use crate::model::limits::{LETTERS_MAX, REPLAYS_MAX};
use crate::model::message::{Message, MessageBlock};
use crate::model::ranges::RangeSet;
use crate::model::record::Source;
use crate::model::time::Timestamp;
use crate::model::topic_kind::TopicKind;
use crate::protocol::error::Refusal;
use crate::protocol::request::{ReplayTo, RequestId};
use crate::protocol::response::{Replayed, Reply};

/// Letters and bytes that are replayed in one cycle.
const REPLAYED_PER_CYCLE: usize = 256;
const REPLAYED_BYTES_PER_CYCLE: usize = 1 << 20;
/// After a read in vain, milliseconds until the next one.
const READ_AGAIN_MS: u64 = 100;

/// What somebody asks for.
pub(super) struct Ask {
    pub request: RequestId,
    pub topic: TopicId,
    pub offsets: Vec<Offset>,
    pub to: ReplayTo,
}

/// A request that is not answered yet.
#[derive(Debug)]
struct Replay {
    session: SessionId,
    request: RequestId,
    topic: TopicId,
    to: ReplayTo,
    /// What is left, in order.
    left: VecDeque<Offset>,
    done: Replayed,
}

/// Requests in line.
#[derive(Debug, Default)]
pub(super) struct Replays {
    line: VecDeque<Replay>,
    /// Whether something is being read for the first one.
    reading: bool,
    /// After a read in vain: nothing is read before this.
    not_before: Option<Timestamp>,
}

impl Replays {
    /// Forgets what a session has asked for. What was done stays done.
    pub fn end_session(&mut self, session: SessionId) {
        self.line.retain(|replay| replay.session != session);
    }

    /// What was wanted has been read, or was not there.
    pub fn loaded(&mut self, now: Timestamp, in_vain: bool) {
        self.reading = false;
        self.not_before = in_vain.then(|| Timestamp(now.0.saturating_add(READ_AGAIN_MS)));
    }

    /// When they are to be looked at though nothing happens.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        self.not_before.filter(|_| !self.line.is_empty())
    }
}

/// Letters on their way to one topic, or one group of it.
#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    origins: Vec<(u32, Option<Origin>)>,
    offsets: Vec<OffsetRange>,
}

impl Broker {
    /// Puts a request in line.
    pub(super) fn replay(&mut self, session: SessionId, ask: Ask, out: &mut Output) {
        let Ask { request, topic, offsets, to } = ask;
        let left = self.named_offsets(topic, offsets).and_then(|offsets| {
            if self.replays.line.len() >= REPLAYS_MAX {
                return Err(refusals::limit("replays_max", REPLAYS_MAX as u64, "replays waiting"));
            }
            if let ReplayTo::Topic(to) = &to {
                self.topic_on_use(to, out)?;
            }
            Ok(offsets)
        });
        match left {
            Ok(left) => {
                let (left, done) = (left.into(), Replayed::default());
                self.replays.line.push_back(Replay { session, request, topic, to, left, done });
            }
            Err(refusal) => out.effect(session, Content::Reply(request, Err(refusal))),
        }
    }

    /// Takes messages out of a topic.
    pub(super) fn drop_asked(
        &mut self,
        topic: TopicId,
        offsets: Vec<Offset>,
        out: &mut Output,
    ) -> Result<Reply, Refusal> {
        let offsets = self.named_offsets(topic, offsets)?;
        let held = self.held_of(topic);
        let there = |offset: &Offset| {
            !held.contains(*offset)
                && self.topics.get(&topic).is_some_and(|topic| topic.state.run_at(*offset).is_some())
        };
        let ranges: Vec<OffsetRange> = offsets.into_iter().filter(there).map(OffsetRange::one).collect();
        let count = ranges.len() as u64;
        self.take_out(topic, ranges, out);
        Ok(Reply::Dropped { count })
    }

    /// The offsets that a request names, in order, each once; where there is no such topic, why.
    fn named_offsets(&self, topic: TopicId, mut offsets: Vec<Offset>) -> Result<Vec<Offset>, Refusal> {
        if self.topics.get(&topic).is_none_or(|topic| topic.state.kind != TopicKind::Named) {
            return Err(self.missing_topic(topic));
        }
        if offsets.len() > LETTERS_MAX {
            let text = format!("{} offsets in one request, the limit is {LETTERS_MAX}", offsets.len());
            return Err(refusals::invalid(&text));
        }
        offsets.sort_unstable();
        offsets.dedup();
        Ok(offsets)
    }

    /// Goes on with what is to be replayed, a cycle's worth.
    pub(super) fn serve_replays(&mut self, out: &mut Output) {
        let (mut count, mut bytes) = (REPLAYED_PER_CYCLE, REPLAYED_BYTES_PER_CYCLE);
        while let Some(mut replay) = self.replays.line.pop_front() {
            let finished = self.go_on_with(&mut replay, &mut count, &mut bytes, out);
            match finished {
                Ok(false) => {
                    self.replays.line.push_front(replay);
                    return;
                }
                Ok(true) => {
                    let reply = Ok(Reply::Replayed(replay.done));
                    out.effect(replay.session, Content::Reply(replay.request, reply));
                }
                Err(refusal) => out.effect(replay.session, Content::Reply(replay.request, Err(refusal))),
            }
        }
    }

    /// Goes on with one request. Answers whether it is finished.
    fn go_on_with(
        &mut self,
        replay: &mut Replay,
        count: &mut usize,
        bytes: &mut usize,
        out: &mut Output,
    ) -> Result<bool, Refusal> {
        let held = self.held_of(replay.topic);
        let mut batches: BTreeMap<Home, Batch> = BTreeMap::new();
        let mut effort = Effort::CYCLE;
        while let Some(&offset) = replay.left.front() {
            let Some(topic) = self.topics.get(&replay.topic) else {
                replay.done.gone += replay.left.len() as u64;
                replay.left.clear();
                break;
            };
            if topic.state.run_at(offset).is_none() {
                replay.done.gone += 1;
            } else if held.contains(offset) {
                replay.done.held += 1;
            } else if *count == 0 || *bytes == 0 || effort.is_spent() {
                self.work_left = true;
                break;
            } else {
                let cached = self.cache.topic(replay.topic).and_then(|cached| cached.at(offset));
                let Some(chunk) = cached else {
                    if self.unreadable.held_to(replay.topic, offset, self.now).is_some() {
                        replay.done.unreadable += 1;
                        replay.left.pop_front();
                        continue;
                    }
                    self.read_for_replay(replay.topic, offset, out);
                    break;
                };
                let index = (offset.0 - chunk.first.0) as usize;
                let encoded = chunk.block.slice(index, index + 1);
                let origin = chunk.source(index).origin;
                (*count, *bytes) = (*count - 1, bytes.saturating_sub(encoded.len()));
                // What cannot be read says nothing of where it came from.
                let letter = Message::decode(&encoded).ok().and_then(|letter| Revived::of(letter, self.now));
                let home = letter.ok_or(Stay::Homeless).and_then(|letter| {
                    let home = self.home(replay.topic, &letter, &replay.to, &mut effort, out)?;
                    Ok((home, letter.message))
                });
                match home {
                    Ok((home, message)) => {
                        let batch = batches.entry(home).or_default();
                        batch.messages.push(message);
                        batch.origins.push((1, origin));
                        batch.offsets.push(OffsetRange::one(offset));
                    }
                    Err(stay) => stay.count(&mut replay.done),
                }
            }
            replay.left.pop_front();
        }
        for (home, batch) in batches {
            replay.done.replayed += batch.messages.len() as u64;
            self.replay_batch(replay.topic, home, batch, out)?;
        }
        Ok(replay.left.is_empty())
    }

    /// Publishes letters where they go and takes them out of their topic.
    fn replay_batch(
        &mut self,
        from: TopicId,
        home: Home,
        batch: Batch,
        out: &mut Output,
    ) -> Result<(), Refusal> {
        let Batch { messages, origins, offsets } = batch;
        let block = MessageBlock::encode(&messages);
        let bytes = stored_bytes(&block) + scattered_bytes(&block);
        self.check_gaps(home)?;
        self.space = self.space.checked_sub(bytes).ok_or_else(|| refusals::store_full(bytes))?;
        let ends = self.ends_of(home.topic);
        if block.is_scheduled() {
            self.scatter(home.topic, &block, &origins, self.now, out);
        } else {
            self.append(home.topic, block, Source::Mixed(origins), out);
        }
        self.settle_for_others(home, &ends);
        self.take_out(from, offsets, out);
        Ok(())
    }

    fn read_for_replay(&mut self, topic: TopicId, from: Offset, out: &mut Output) {
        if !self.replays.reading && self.replays.not_before.is_none_or(|at| at <= self.now) {
            self.replays.reading = true;
            self.replays.not_before = None;
            self.reads.want_for_replay(topic, from, &mut out.reads);
        }
    }

    /// What consumers hold of a topic, in whatever group.
    fn held_of(&self, topic: TopicId) -> RangeSet {
        let mut held = RangeSet::new();
        let holders = self.topics.get(&topic).into_iter().flat_map(|topic| &topic.holders);
        let groups = holders.filter_map(|group| self.groups.get(group));
        let members = groups.flat_map(|group| group.members.iter());
        members.flat_map(|(_, consumer)| consumer.flights.of(topic)).for_each(|range| {
            held.insert(range);
        });
        held
    }

    /// Takes messages out of a topic: they are there, in order, and with no consumer. Its groups are done with them.
    fn take_out(&mut self, topic: TopicId, ranges: Vec<OffsetRange>, out: &mut Output) {
        let holders: Vec<GroupId> =
            self.topics.get(&topic).map(|topic| topic.holders.iter().copied().collect()).unwrap_or_default();
        for id in holders {
            // What the group has settled in this very cycle counts.
            self.make_settled_known(id, out);
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if let Some(part) = group.parts.get_mut(&topic) {
                part.settle_all(&ranges);
            }
            self.cycle.mark(group, topic);
            self.make_settled_known(id, out);
        }
        self.drop_messages(topic, ranges, out);
    }
}
