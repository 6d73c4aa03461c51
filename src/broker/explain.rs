//! Why a message is, or is not, being delivered to a group: in a word, and in a sentence for a person.
//!
//! What is looked at first is what holds whoever consumes: that the message is not there, settled, in flight, waiting.
//! What depends on its content needs the message, which is read where it is not in memory. The last question is what
//! it waits for: credit, a limit, others before it.

use super::cache::CachedChunk;
use super::group::Group;
use super::machine::Broker;
use super::part::Part;
use super::sieve::{Sieve, Verdict};
use super::topic::Topic;
use super::{Content, Output, Read, refusals};
use crate::model::id::{GroupId, Offset, OffsetRange, SessionId, TopicId};
use crate::model::limits::BROWSES_MAX;
use crate::model::position::Position;
use crate::model::settings::Policy;
use crate::protocol::error::Refusal;
use crate::protocol::request::RequestId;
use crate::protocol::response::{Explanation, MessageState, Reply};

/// Somebody who wants to know why.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub session: SessionId,
    pub request: RequestId,
    pub group: GroupId,
    pub topic: TopicId,
    pub position: Position,
}

/// What is known of the message.
#[derive(Clone, Copy)]
enum Message<'a> {
    /// It has not been looked for.
    Unread,
    There(&'a CachedChunk),
    /// It could not be read.
    Missing,
}

/// Why, or that the message must be read first.
type Answer = Result<Explanation, Read>;

fn because(state: MessageState, text: impl Into<String>) -> Answer {
    Ok(Explanation { state, text: text.into() })
}

impl Broker {
    /// Answers a question, or has the message read for it first.
    pub(super) fn explain(&mut self, question: Question, out: &mut Output) {
        match self.explanation(question, false) {
            Ok(Ok(explanation)) => self.answer_question(question, Ok(Reply::Explanation(explanation)), out),
            Ok(Err(read)) if self.reads.question_count() < BROWSES_MAX => {
                self.reads.want_for_question(read, question, &mut out.reads);
            }
            Ok(Err(_)) => {
                let refusal = refusals::limit("browses_max", BROWSES_MAX as u64, "questions waiting");
                self.answer_question(question, Err(refusal), out);
            }
            Err(refusal) => self.answer_question(question, Err(refusal), out),
        }
    }

    /// Goes on with a question whose message was read, if it is there.
    pub(super) fn explain_read(&mut self, question: Question, out: &mut Output) {
        let answer = match self.explanation(question, true) {
            Ok(Ok(explanation)) => Ok(Reply::Explanation(explanation)),
            Ok(Err(_)) => Err(refusals::gone_meanwhile()),
            Err(refusal) => Err(refusal),
        };
        self.answer_question(question, answer, out);
    }

    fn answer_question(&self, question: Question, answer: Result<Reply, Refusal>, out: &mut Output) {
        out.effect(question.session, Content::Reply(question.request, answer));
    }

    fn explanation(&self, question: Question, was_read: bool) -> Result<Answer, Refusal> {
        let Question { group, topic, position, .. } = question;
        let whole = self.topics.get(&topic).ok_or_else(|| self.missing_topic(topic))?;
        let group = self.groups.get(&group).ok_or_else(refusals::gone_meanwhile)?;
        let lane = match position.priority {
            0 => topic,
            priority => match whole.lanes.get(&priority) {
                Some(lane) => *lane,
                None => {
                    let text = format!("no message of priority {priority} was ever published to the topic");
                    return Ok(because(MessageState::NotPublished, text));
                }
            },
        };
        let (Some(log), Some(part)) = (self.topics.get(&lane), group.parts.get(&lane)) else {
            return Err(refusals::gone_meanwhile());
        };
        if let Some(known) = self.whatever_it_is(whole, group, log, part, position) {
            return Ok(Ok(known));
        }
        let chunk = self.cache.topic(lane).and_then(|cached| cached.at(position.offset));
        let message = match chunk {
            Some(chunk) => Message::There(chunk),
            None if was_read => Message::Missing,
            None => Message::Unread,
        };
        Ok(self
            .by_content(group, part, position, message)
            .unwrap_or_else(|| Ok(self.what_it_waits_for(group, part, position))))
    }

    /// What holds for the message, whatever it is and whoever consumes.
    fn whatever_it_is(
        &self,
        whole: &Topic,
        group: &Group,
        log: &Topic,
        part: &Part,
        position: Position,
    ) -> Option<Explanation> {
        use MessageState::*;
        let offset = position.offset;
        let (state, text) = if offset >= log.state.end {
            let delayed = self.delayed_count(whole);
            let hint = match delayed {
                0 => String::new(),
                count => {
                    format!("; {count} messages of the topic wait for their time, and get an offset then")
                }
            };
            (
                NotPublished,
                format!("there is no such message yet: the next one gets offset {}{hint}", log.state.end),
            )
        } else if log.state.run_at(offset).is_none() {
            (Gone, "it is gone: every group was done with it, or it expired or was dropped".to_owned())
        } else if offset < part.state.floor || part.state.settled.contains(offset) {
            (Settled, "it is settled: the group has acknowledged it or does not want it".to_owned())
        } else if let Some((consumer, until)) = group.members.holder(part.topic(), offset) {
            let client = self.sessions.get(&consumer.session).map_or("", |session| session.client.as_str());
            let (session, handle) = (consumer.session, consumer.handle);
            (
                InFlight,
                format!(
                    "consumer {handle} of connection {session} ({client}) has it; its lease ends at {until}"
                ),
            )
        } else if part.redelivery.dying.contains(&offset) {
            (Dying, format!("it is on its way to the dead letters: {}", history(part, offset)))
        } else if let Some(retry) = part.state.retries.get(offset).filter(|retry| retry.due_at > self.now) {
            (
                Delayed,
                format!(
                    "it waits for its next attempt, which is due at {}: {}",
                    retry.due_at,
                    history(part, offset)
                ),
            )
        } else if whole.state.settings.paused {
            (Paused, "the topic is paused: `baton topic resume` lets it go on".to_owned())
        } else if group.settings.paused {
            (Paused, "the group is paused: `baton group resume` lets it go on".to_owned())
        } else {
            return None;
        };
        Some(Explanation { state, text })
    }

    /// What follows from the content of the message.
    fn by_content(
        &self,
        group: &Group,
        part: &Part,
        position: Position,
        message: Message<'_>,
    ) -> Option<Answer> {
        let chunk = match message {
            Message::There(chunk) => chunk,
            Message::Missing => return None,
            Message::Unread => {
                let read = Read { topic: part.topic(), from: position.offset, bytes_max: 1 };
                return Some(Err(read));
            }
        };
        let mut sieve = Sieve::new(group.filter.as_ref(), self.now);
        let (verdict, _) = sieve.run(chunk, position.offset, position.offset.next(), 1);
        match verdict {
            Verdict::HandOut => None,
            Verdict::Expire => {
                let index = (position.offset.0 - chunk.first.0) as usize;
                let at = chunk.block.message(index).ok().and_then(|message| message.expires_at);
                let at = at.map_or(String::new(), |at| format!(" since {at}"));
                Some(because(MessageState::Expired, format!("it has expired{at}: nobody gets it any more")))
            }
            Verdict::Settle => {
                let filter = group.settings.filter.as_deref().unwrap_or_default();
                let text = format!("the filter of the group does not match it: {filter}");
                Some(because(MessageState::Filtered, text))
            }
        }
    }

    /// What a message that can be handed out waits for.
    fn what_it_waits_for(&self, group: &Group, part: &Part, position: Position) -> Explanation {
        use MessageState::*;
        let members = &group.members;
        let waiting = part.redelivery.count();
        let ranges = part.state.settled.range_count() as u64;
        let (state, text) = if members.count() == 0 {
            (NoCredit, "no consumer of the group is connected".to_owned())
        } else if members.is_changing() {
            let text = format!(
                "the policy of the group was changed: the {} messages in flight come to an end first",
                members.in_flight
            );
            (Waiting, text)
        } else if let Some(first) = first_in_order(group, part, position.offset) {
            (
                Waiting,
                format!("message {first} waits for another attempt, and an exclusive group keeps the order"),
            )
        } else if let Some(first) = part.keys.as_ref().and_then(|keys| keys.before(position.offset)) {
            (BehindKey, format!("message {first} with the same key comes first, and is not settled"))
        } else if part.keys.as_ref().is_some_and(|keys| keys.is_parked(position.offset)) {
            (NoCredit, "the consumer of its key can take no more".to_owned())
        } else if members.turns.is_empty() {
            let text = format!(
                "none of the {} consumers of the group can take more: {} messages are in flight to them, up to their \
                 prefetch, or they do not read, or ask for nothing",
                members.count(),
                members.in_flight
            );
            (NoCredit, text)
        } else if members.in_flight >= self.limits.in_flight_max {
            let max = self.limits.in_flight_max;
            (Limited, format!("the group has {max} messages in flight, the limit in_flight_max"))
        } else if waiting >= self.limits.retries_max && part.cursor <= position.offset {
            let max = self.limits.retries_max;
            (Limited, format!("{waiting} messages wait for another attempt, the limit retries_max is {max}"))
        } else if group.parked >= self.limits.parked_max && part.cursor <= position.offset {
            let max = self.limits.parked_max;
            (Limited, format!("{max} messages are parked behind keys, the limit parked_max"))
        } else if ranges >= self.limits.settled_ranges_max && part.cursor <= position.offset {
            let max = self.limits.settled_ranges_max;
            (
                Limited,
                format!(
                    "there are {ranges} gaps behind messages that are not settled, the limit settled_ranges_max is {max}"
                ),
            )
        } else {
            match self.before(group, part, position) {
                0 => (Ready, "it is the next that is handed out".to_owned()),
                before => (Waiting, format!("{before} messages come before it")),
            }
        };
        Explanation { state, text }
    }

    /// Messages that are to be handed out before this one: of its priority those with lower offsets, and all of a
    /// higher one.
    fn before(&self, group: &Group, part: &Part, position: Position) -> u64 {
        let lower = OffsetRange { start: part.cursor, end: position.offset };
        let ready = part.redelivery.ready.iter().filter(|range| range.start < position.offset);
        let ready: u64 = ready.map(|range| range.end.min(position.offset).0 - range.start.0).sum();
        let higher = group.parts.values().filter(|other| other.priority > part.priority);
        let higher = higher.filter_map(|other| {
            let end = self.topics.get(&other.topic())?.state.end;
            Some(waiting_from(other, OffsetRange { start: other.cursor, end }))
        });
        waiting_from(part, lower) + ready + higher.sum::<u64>()
    }

    /// Messages of a topic that are to be delivered later.
    pub(super) fn delayed_count(&self, topic: &Topic) -> u64 {
        let slots = topic.slots.iter().filter(|slot| self.schedule.is_delayed(**slot));
        slots.filter_map(|slot| Some(self.topics.get(slot)?.state.message_count())).sum()
    }
}

/// The message that must come first in an exclusive group.
fn first_in_order(group: &Group, part: &Part, offset: Offset) -> Option<Offset> {
    let ordered = group.settings.policy == Policy::Exclusive;
    part.redelivery.lowest().filter(|first| ordered && *first < offset)
}

fn waiting_from(part: &Part, range: OffsetRange) -> u64 {
    part.state.settled.gaps(range).map(|gap| gap.len()).sum()
}

/// How often a message was handed out and what came of it.
fn history(part: &Part, offset: Offset) -> String {
    let Some(retry) = part.state.retries.get(offset) else { return "never handed out".to_owned() };
    let last = retry.last_failure().map(|failure| {
        let text = failure.text.as_deref().map(|text| format!(" ({text})")).unwrap_or_default();
        format!(", the last time {}{text} at {}", failure.reason.word(), failure.at)
    });
    format!("handed out {} times, failed {}{}", retry.handed_out, retry.failed, last.unwrap_or_default())
}
