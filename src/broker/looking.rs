//! What somebody who browses sees: which messages, in which order, and what is said about each.
//!
//! A topic is looked at in the order of positions: its own messages, then those of each priority. A group is looked
//! at in the order in which it will get what it has not settled: the highest priority first, then by topic; what
//! waits for another attempt stands where it was published. What its filter does not match and what has expired is
//! not among it.

use bytes::Bytes;

use super::browse::BROWSE_BYTES;
use super::cache::CachedChunk;
use super::effort::Effort;
use super::group::Group;
use super::machine::Broker;
use super::part::Part;
use super::subscription::check_filter;
use super::topic::Topic;
use crate::model::filter::Filter;
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::limits::PRIORITY_MAX;
use crate::model::message::Parts;
use crate::model::position::Position;
use crate::model::ranges::RangeSet;
use crate::model::retry::Retry;
use crate::model::time::Timestamp;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::BrowseFrom;
use crate::protocol::response::{FailureRun, Place, Reply, Run, Standing, StateRun};

/// Whose messages are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Those of a topic.
    Topic(TopicId),
    /// Those that a group has not settled.
    Group(GroupId),
}

/// A look at messages.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub seen: Seen,
    /// Where it goes on.
    pub at: Place,
    /// Only what was published since.
    since: Timestamp,
    filter: Option<Filter>,
}

impl Look {
    /// A look at all there is from a place on.
    pub fn of(seen: Seen, at: Place) -> Self {
        Self { seen, at, since: Timestamp(0), filter: None }
    }
}

/// An answer as it is put together: messages of one topic.
#[derive(Default)]
pub(super) struct Answer {
    runs: Vec<Run>,
    states: Vec<StateRun>,
    failures: Vec<FailureRun>,
    pub messages: Vec<Bytes>,
    pub bytes: usize,
    count: u32,
}

impl Answer {
    /// How many more messages fit, and how many more bytes.
    fn room(&self, messages_max: u32) -> (usize, u64) {
        let messages = messages_max.saturating_sub(self.count);
        (messages as usize, (BROWSE_BYTES - self.bytes.min(BROWSE_BYTES)) as u64)
    }

    fn add(&mut self, run: Run, state: Option<Standing>, retry: Option<&Retry>, encoded: Bytes) {
        let range = OffsetRange::new(run.offset.0, run.offset.0 + u64::from(run.count));
        self.states.extend(state.map(|state| StateRun { range, state }));
        if let Some(failure) = retry.and_then(Retry::last_failure) {
            let failure = failure.clone();
            self.bytes += size_of::<FailureRun>() + failure.text.as_deref().map_or(0, str::len);
            self.failures.push(FailureRun { range, failure });
        }
        self.count += run.count;
        self.bytes += encoded.len() + size_of::<Run>() + size_of::<StateRun>() + size_of::<Bytes>();
        self.runs.push(run);
        self.messages.push(encoded);
    }

    /// The answer without its messages.
    pub fn reply(self, topic: &Topic, next: Option<Place>) -> (Reply, Vec<Bytes>) {
        let reply = Reply::Browsed {
            topic: topic.state.name.to_string(),
            priority: topic.state.kind.priority(),
            runs: self.runs,
            states: self.states,
            failures: self.failures,
            next,
            messages: Bytes::new(),
        };
        (reply, self.messages)
    }
}

/// What a group has of a topic, as somebody sees it who looks.
struct View<'a> {
    part: &'a Part,
    flights: RangeSet,
    filter: Option<&'a Filter>,
    now: Timestamp,
}

/// What is the same for consecutive messages.
struct Known<'a> {
    state: Option<Standing>,
    retry: Option<&'a Retry>,
    redelivered: bool,
    end: Offset,
}

impl<'a> View<'a> {
    fn new(group: &'a Group, topic: TopicId, from: Offset, now: Timestamp) -> Option<Self> {
        let mut flights = RangeSet::new();
        let of_topic = group.members.iter().flat_map(|(_, consumer)| consumer.flights.of(topic));
        of_topic.filter(|range| range.end > from).for_each(|range| {
            flights.insert(range);
        });
        Some(Self { part: group.parts.get(&topic)?, flights, filter: group.filter.as_ref(), now })
    }

    /// What is known of the message at `at`, which is not settled, and of those behind it.
    fn known(&self, at: Offset, end: Offset) -> Known<'a> {
        let (retry, end) = self.part.retry_run(at, end);
        let settled = self.part.state.settled.range_from(at).map_or(end, |range| range.start.min(end));
        let flight = self.flights.range_from(at);
        let (state, end) = match flight {
            Some(flight) if flight.start <= at => (Standing::InFlight, flight.end.min(settled)),
            _ => {
                let end = flight.map_or(settled, |flight| flight.start.min(settled));
                match retry {
                    _ if self.part.redelivery.dying.contains(&at) => (Standing::Dying, at.next()),
                    Some(retry) if retry.due_at > self.now => {
                        (Standing::Returned { due_at: retry.due_at }, end)
                    }
                    _ => {
                        let dying = self.part.redelivery.dying.range(at..end).next();
                        (Standing::Waiting, dying.copied().unwrap_or(end))
                    }
                }
            }
        };
        let fresh = at >= self.part.known_from;
        let end = if fresh { end } else { end.min(self.part.known_from) };
        Known { state: Some(state), retry, redelivered: retry.is_some() || !fresh, end }
    }
}

impl Broker {
    /// Whose messages are meant.
    pub(super) fn seen_by(&self, topic: &str, group: Option<&str>) -> Result<Seen, Refusal> {
        match group {
            Some(group) => self.group_named(topic, group).map(Seen::Group),
            None => match self.topic_named(topic)? {
                id if self.patterns.contains_key(&id) => {
                    let text = "a pattern has no messages: browse one of its topics";
                    Err(Refusal::new(ErrorCode::Invalid, text))
                }
                id => Ok(Seen::Topic(id)),
            },
        }
    }

    /// Begins to look, or goes on.
    pub(super) fn begin_browse(
        &self,
        seen: Seen,
        from: BrowseFrom,
        since: Timestamp,
        filter: Option<&str>,
    ) -> Result<Look, Refusal> {
        let parts = self.parts_seen(seen);
        let first = parts.first().map_or(TopicId::default(), |(_, topic)| *topic);
        let at = match from {
            BrowseFrom::Beginning => Place { topic: first, offset: Offset(0) },
            BrowseFrom::Place(place) if parts.iter().any(|(_, topic)| *topic == place.topic) => place,
            BrowseFrom::Place(place) => {
                let text =
                    format!("topic {} is no part of what is looked at any more; begin again", place.topic);
                return Err(Refusal::new(ErrorCode::Deleted, text));
            }
            BrowseFrom::Position(Position { priority, .. }) | BrowseFrom::Newest { priority, .. }
                if matches!(seen, Seen::Topic(_)) =>
            {
                match (parts.iter().find(|(rank, _)| *rank >= priority), from) {
                    (Some((rank, topic)), BrowseFrom::Position(Position { offset, .. })) => {
                        Place { topic: *topic, offset: if *rank == priority { offset } else { Offset(0) } }
                    }
                    (Some((_, topic)), BrowseFrom::Newest { count, .. }) => {
                        let known = self.topics.get(topic);
                        let offset = known.map_or(Offset(0), |known| known.offset_of_newest(count));
                        Place { topic: *topic, offset }
                    }
                    // Behind all there is.
                    _ => Place {
                        topic: parts.last().map_or(first, |(_, last)| *last),
                        offset: Offset(u64::MAX),
                    },
                }
            }
            BrowseFrom::Position(_) | BrowseFrom::Newest { .. } => {
                let text = "what a group will get is looked at from its beginning; leave out the position";
                return Err(Refusal::new(ErrorCode::Invalid, text));
            }
        };
        Ok(Look { since, filter: filter.map(check_filter).transpose()?, ..Look::of(seen, at) })
    }

    /// The topics that are looked at, in their order, with what that goes by.
    fn parts_seen(&self, seen: Seen) -> Vec<(u8, TopicId)> {
        let mut parts: Vec<(u8, TopicId)> = match seen {
            Seen::Topic(id) => {
                let Some(topic) = self.topics.get(&id) else { return Vec::new() };
                let lanes = topic.lanes.iter().map(|(priority, lane)| (*priority, *lane));
                [(0, id)].into_iter().chain(lanes).collect()
            }
            Seen::Group(id) => {
                let parts = self.groups.get(&id).into_iter().flat_map(|group| &group.parts);
                parts.map(|(topic, part)| (PRIORITY_MAX.saturating_sub(part.priority), *topic)).collect()
            }
        };
        parts.sort_unstable();
        parts
    }

    /// Where the first message is that may be seen, from where a look goes on.
    pub(super) fn next_seen(&self, look: &Look) -> Option<Place> {
        if let Some(offset) = self.next_seen_in(look, look.at.topic, look.at.offset) {
            return Some(Place { offset, ..look.at });
        }
        let parts = self.parts_seen(look.seen);
        let at = parts.iter().position(|(_, topic)| *topic == look.at.topic)?;
        parts[at + 1..].iter().find_map(|&(_, topic)| {
            self.next_seen_in(look, topic, Offset(0)).map(|offset| Place { topic, offset })
        })
    }

    fn next_seen_in(&self, look: &Look, topic: TopicId, from: Offset) -> Option<Offset> {
        let state = &self.topics.get(&topic)?.state;
        let part = match look.seen {
            Seen::Topic(_) => None,
            Seen::Group(id) => Some(&self.groups.get(&id)?.parts.get(&topic)?.state),
        };
        let mut at = from;
        if look.since > Timestamp(0) {
            at = at.max(state.marks.offset_about(look.since, state.end));
        }
        loop {
            let run = state.next_run(at);
            if run.is_empty() {
                return None;
            }
            let Some(part) = part else { return Some(run.start) };
            at = run.start.max(part.floor);
            match part.settled.range_at(at) {
                Some(settled) => at = settled.end,
                None if at < run.end => return Some(at),
                None => {}
            }
        }
    }

    /// Adds what is seen in a chunk from `from` on, which is there, as far as there is room and effort. Answers where
    /// to go on.
    pub(super) fn see(
        &self,
        look: &Look,
        chunk: &CachedChunk,
        from: Offset,
        messages_max: u32,
        answer: &mut Answer,
        effort: &mut Effort,
    ) -> Offset {
        let topic = look.at.topic;
        let Some(state) = self.topics.get(&topic).map(|topic| &topic.state) else { return from };
        let view = match look.seen {
            Seen::Topic(_) => None,
            Seen::Group(id) => self.groups.get(&id).and_then(|group| View::new(group, topic, from, self.now)),
        };
        let last = state.next_run(from).end.min(chunk.end());
        let mut at = from;
        while at < last {
            let index = (at.0 - chunk.first.0) as usize;
            let source = chunk.source(index);
            let end = last.min(Offset(at.0 + u64::from(source.count)));
            if let Some(view) = &view
                && let Some(settled) = view.part.state.settled.range_at(at)
            {
                at = settled.end.min(last);
                continue;
            }
            if source.published_at < look.since {
                at = end;
                continue;
            }
            let known = match &view {
                Some(view) => view.known(at, end),
                None => Known { state: None, retry: None, redelivered: false, end },
            };
            let (messages, bytes) = answer.room(messages_max);
            let most = known.end.min(Offset(at.0.saturating_add(messages as u64)));
            if most == at {
                break;
            }
            let wanted = Wanted { filter: look.filter.as_ref(), view: view.as_ref(), state: known.state };
            let (is_wanted, end) = wanted.run(chunk, at, most, effort);
            if is_wanted {
                let count = chunk.block.count_within(index, index + (end.0 - at.0) as usize, bytes);
                // One that is larger than an answer comes alone.
                let count = if count == 0 && answer.count == 0 { 1 } else { count };
                if count == 0 {
                    break;
                }
                let retry = known.retry;
                let run = Run {
                    offset: at,
                    count: count as u32,
                    attempt: known.state.map_or(0, |_| retry.map_or(0, |retry| retry.failed) + 1),
                    delivery: known.state.map_or(0, |_| retry.map_or(0, |retry| retry.handed_out) + 1),
                    redelivered: known.redelivered,
                    published_at: source.published_at,
                    origin: source.origin,
                };
                answer.add(run, known.state, retry, chunk.block.slice(index, index + count));
                at = Offset(at.0 + count as u64);
                if at < end {
                    break;
                }
            } else {
                at = end;
            }
            if effort.is_spent() {
                break;
            }
        }
        at
    }
}

/// What decides whether a message is seen.
struct Wanted<'a, 'b> {
    filter: Option<&'a Filter>,
    view: Option<&'a View<'b>>,
    state: Option<Standing>,
}

impl Wanted<'_, '_> {
    /// Whether the message at `start` is seen, and up to where, at most `end`, the others are or are not, as far as
    /// the effort goes.
    fn run(&self, chunk: &CachedChunk, start: Offset, end: Offset, effort: &mut Effort) -> (bool, Offset) {
        let asks = self.view.is_some_and(|view| view.filter.is_some() || chunk.block.is_scheduled());
        if self.filter.is_none() && !asks {
            return (true, end);
        }
        let first = self.is(chunk, start, effort);
        let mut at = start.next();
        while at < end && !effort.is_spent() && self.is(chunk, at, effort) == first {
            at = at.next();
        }
        (first, at)
    }

    fn is(&self, chunk: &CachedChunk, at: Offset, effort: &mut Effort) -> bool {
        let index = (at.0 - chunk.first.0) as usize;
        // What cannot be read is handed out as it is.
        let Ok(parts) = Parts::read(chunk.block.encoded(index), index) else { return self.filter.is_none() };
        // What a consumer has it has, whatever the filter says by now.
        let view = self.view.filter(|_| self.state != Some(Standing::InFlight));
        let is_due = view.is_none_or(|view| {
            parts.expires_at.is_none_or(|at| at > view.now)
                && view.filter.is_none_or(|filter| effort.matches(filter, &parts))
        });
        is_due && self.filter.is_none_or(|filter| effort.matches(filter, &parts))
    }
}
