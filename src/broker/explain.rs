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
use crate::model::retry::Retry;
use crate::model::settings::Policy;
use crate::model::time::Timestamp;
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
        let offset = position.offset;
        if let Some(known) = self.unless_there(whole, log, offset) {
            return Ok(Ok(known));
        }
        let chunk = self.cache.topic(lane).and_then(|cached| cached.at(offset));
        let message = match chunk {
            Some(chunk) => Message::There(chunk),
            None if was_read => Message::Missing,
            None => Message::Unread,
        };
        if offset < part.state.floor || part.state.settled.contains(offset) {
            return Ok(of_settled(group, part, offset, message, self.now));
        }
        let own = self.topics.get(&group.topic).unwrap_or(whole);
        let known = self.with_whom(group, part, offset).or_else(|| paused(whole, own, group));
        if let Some(known) = known {
            return Ok(Ok(known));
        }
        if let (Message::Missing, Some(known)) = (message, self.unreadable.find(lane, offset)) {
            let (since, again_at, why) = (known.since, known.again_at, &known.why);
            let text = format!("it cannot be read since {since}, and is tried again at {again_at}: {why}");
            return Ok(Ok(Explanation { state: MessageState::Unreadable, text }));
        }
        let by_content = by_content(group, part, offset, message, self.now);
        Ok(by_content.unwrap_or_else(|| Ok(self.what_it_waits_for(group, part, position))))
    }

    /// Where a topic does not have a message.
    fn unless_there(&self, whole: &Topic, log: &Topic, offset: Offset) -> Option<Explanation> {
        if offset >= log.state.end {
            let delayed = match self.delayed_count(whole) {
                0 => String::new(),
                count => {
                    format!("; {count} messages of the topic wait for their time, and get an offset then")
                }
            };
            let text =
                format!("there is no such message yet: the next one gets offset {}{delayed}", log.state.end);
            return Some(Explanation { state: MessageState::NotPublished, text });
        }
        let is_there = log.state.run_at(offset).is_some();
        let text = "it is gone: every group was done with it, or it expired or was dropped";
        (!is_there).then(|| Explanation { state: MessageState::Gone, text: text.to_owned() })
    }

    /// Who has a message, or what it waits for where nobody may have it.
    fn with_whom(&self, group: &Group, part: &Part, offset: Offset) -> Option<Explanation> {
        use MessageState::*;
        let retry = part.state.retries.get(offset);
        let (state, text) = if let Some((consumer, lease)) = group.members.holder(part.topic(), offset) {
            let client = self.sessions.get(&consumer.session).map_or("", |session| session.client.as_str());
            let (session, handle) = (consumer.session, consumer.handle);
            let (since, until) = (lease.since, lease.until);
            let text = format!(
                "consumer {handle} of connection {session} ({client}) has it since {since}; its lease ends at {until}"
            );
            (InFlight, text)
        } else if part.redelivery.dying.contains(&offset) {
            (Dying, format!("it is on its way to the dead letters: {}", history(retry)))
        } else if let Some(due_at) = retry.map(|retry| retry.due_at).filter(|due_at| *due_at > self.now) {
            let text = format!("it waits for its next attempt, which is due at {due_at}: {}", history(retry));
            (Delayed, text)
        } else {
            return None;
        };
        Some(Explanation { state, text })
    }

    /// What a message that can be handed out waits for.
    fn what_it_waits_for(&self, group: &Group, part: &Part, position: Position) -> Explanation {
        use MessageState::*;
        let members = &group.members;
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
        } else if let Some(first) = self.unreadable_before(group, part, position.offset) {
            (
                Waiting,
                format!("message {first} comes first and cannot be read, and the group keeps the order"),
            )
        } else if let Some(known) = self.by_key(group, part, position.offset) {
            return known;
        } else if members.turns.is_empty() {
            let text = format!(
                "none of the {} consumers of the group can take more: {} messages are in flight to them, up to their \
                 prefetch, or they do not read, or ask for nothing",
                members.count(),
                members.in_flight
            );
            (NoCredit, text)
        } else if let Some(text) = self.limit_reached(group, part, position.offset) {
            (Limited, text)
        } else {
            match self.before(group, part, position) {
                0 => (Ready, "it is the next that is handed out".to_owned()),
                before => (Waiting, format!("{before} messages come before it")),
            }
        };
        Explanation { state, text }
    }

    /// The message that keeps the group from coming to this one, because it cannot be read.
    fn unreadable_before(&self, group: &Group, part: &Part, offset: Offset) -> Option<Offset> {
        let next = part.cursor;
        let stands_before = next < offset && group.settings.policy.keeps_order();
        self.unreadable.find(part.topic(), next).filter(|_| stands_before).map(|_| next)
    }

    /// What a message waits for because of its key, as far as the group has come.
    fn by_key(&self, group: &Group, part: &Part, offset: Offset) -> Option<Explanation> {
        let keys = part.keys.as_ref()?;
        let key = keys.key_of(offset)?;
        if let Some(first) = keys.before(offset) {
            let text = format!("message {first} with the same key comes first, and is not settled");
            return Some(Explanation { state: MessageState::BehindKey, text });
        }
        let slot = group.members.assignment().owner(key).filter(|slot| !group.members.can_take(*slot))?;
        let owner = group.members.get(slot)?;
        let (consumer, session) = (owner.handle, owner.session);
        let text =
            format!("consumer {consumer} of connection {session}, to which its key goes, can take no more");
        Some(Explanation { state: MessageState::NoCredit, text })
    }

    /// The limit that keeps a message from being handed out.
    fn limit_reached(&self, group: &Group, part: &Part, offset: Offset) -> Option<String> {
        let limits = &self.limits;
        if group.members.in_flight >= limits.in_flight_max {
            let max = limits.in_flight_max;
            return Some(format!("the group has {max} messages in flight, the limit in_flight_max"));
        }
        if part.cursor > offset {
            return None;
        }
        let (waiting, ranges) = (part.redelivery.count(), part.state.settled.range_count() as u64);
        if waiting >= limits.retries_max {
            let max = limits.retries_max;
            Some(format!("{waiting} messages wait for another attempt, the limit retries_max is {max}"))
        } else if group.parked >= limits.parked_max {
            let max = limits.parked_max;
            Some(format!("{max} messages are parked behind keys, the limit parked_max"))
        } else if ranges >= limits.settled_ranges_max {
            let max = limits.settled_ranges_max;
            Some(format!(
                "there are {ranges} gaps behind messages that are not settled, the limit settled_ranges_max is {max}"
            ))
        } else {
            None
        }
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

/// What is known of a message that a group is done with.
fn of_settled(group: &Group, part: &Part, offset: Offset, message: Message<'_>, now: Timestamp) -> Answer {
    // Whatever its time: what the group does not want was settled for that.
    if let Some(answer) = by_content(group, part, offset, message, Timestamp(0)) {
        return answer;
    }
    // What has expired is settled by that, if nobody was done with it before.
    let expired = match message {
        Message::There(chunk) => expires_at(chunk, offset).filter(|at| *at <= now),
        Message::Unread | Message::Missing => None,
    };
    let text = match expired {
        Some(at) => format!(
            "it is settled: the group was done with it before it expired at {at}, or it expired first"
        ),
        None => "it is settled: the group is done with it".to_owned(),
    };
    because(MessageState::Settled, text)
}

fn expires_at(chunk: &CachedChunk, offset: Offset) -> Option<Timestamp> {
    let index = (offset.0 - chunk.first.0) as usize;
    chunk.block.message(index).ok().and_then(|message| message.expires_at)
}

/// Where the group, the topic, or the pattern that is the group's own are paused.
fn paused(topic: &Topic, own: &Topic, group: &Group) -> Option<Explanation> {
    let pausing = [topic, own].into_iter().find(|topic| topic.state.settings.paused);
    let text = if let Some(topic) = pausing {
        let name = &topic.state.name;
        format!("the topic {name} is paused: `baton topic resume` lets it go on")
    } else if group.settings.paused {
        "the group is paused: `baton group resume` lets it go on".to_owned()
    } else {
        return None;
    };
    Some(Explanation { state: MessageState::Paused, text })
}

/// What follows from the content of a message.
fn by_content(
    group: &Group,
    part: &Part,
    offset: Offset,
    message: Message<'_>,
    now: Timestamp,
) -> Option<Answer> {
    let chunk = match message {
        Message::There(chunk) => chunk,
        Message::Missing => return None,
        Message::Unread => return Some(Err(Read { topic: part.topic(), from: offset, bytes_max: 1 })),
    };
    let (verdict, _) = Sieve::new(group.filter.as_ref(), now).run(chunk, offset, offset.next(), 1);
    match verdict {
        Verdict::HandOut => None,
        Verdict::Expire => {
            let at = expires_at(chunk, offset).map_or(String::new(), |at| format!(" at {at}"));
            Some(because(MessageState::Expired, format!("it has expired{at}: nobody gets it any more")))
        }
        Verdict::Settle => {
            let filter = group.settings.filter.as_deref().unwrap_or_default();
            let text = format!("the filter of the group does not match it: {filter}");
            Some(because(MessageState::Filtered, text))
        }
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
fn history(retry: Option<&Retry>) -> String {
    let Some(retry) = retry else { return "never handed out".to_owned() };
    let last = retry.last_failure().map(|failure| {
        let text = failure.text.as_deref().map(|text| format!(" ({text})")).unwrap_or_default();
        format!(", the last time {}{text} at {}", failure.reason.word(), failure.at)
    });
    format!("handed out {} times, failed {}{}", retry.handed_out, retry.failed, last.unwrap_or_default())
}
