//! Where in a topic the first message is that was published at a time or later, exactly.
//!
//! The [marks](crate::model::marks) say between which offsets to look; the rest is found by halving, with a read of one
//! message for each step that is not in memory. Times of a topic do not fall. Only so many searches read at a time,
//! each one message; the others wait in line, those first for which somebody waits.

use std::collections::VecDeque;

use super::machine::Broker;
use super::reading::READ_ONE_BYTES;
use super::{Output, Read};
use crate::model::chunk::Chunk;
use crate::model::id::{Offset, TopicId};
use crate::model::time::Timestamp;

/// Searches that leave the line in one cycle: each may be over without a read.
const SEARCHES_PER_CYCLE: usize = 256;

/// Whom a search is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Retention by age.
    Age,
    /// The seek of this number.
    Seek(u64),
}

/// A search that goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub topic: TopicId,
    pub purpose: Purpose,
    time: Timestamp,
    /// Nothing below was published at the time or later.
    low: Offset,
    /// Everything from here on was.
    high: Offset,
    /// When the first message from there on was published, where that is known.
    high_at: Option<Timestamp>,
}

/// What came of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The first message that was published at the time or later; the end of the topic where there is none. With when
    /// it was published, where that came up.
    At(Offset, Option<Timestamp>),
    /// A message could not be read, or the topic is gone.
    Nothing,
}

/// Searches that wait for their turn to read.
#[derive(Debug, Default)]
pub(super) struct Searches {
    /// Those of seeks, which are few.
    seeks: VecDeque<Search>,
    /// Those of retention; there may be one for each topic.
    others: VecDeque<Search>,
}

impl Searches {
    fn push(&mut self, search: Search) {
        match search.purpose {
            Purpose::Seek(_) => self.seeks.push_back(search),
            Purpose::Age => self.others.push_back(search),
        }
    }

    fn pop(&mut self) -> Option<Search> {
        self.seeks.pop_front().or_else(|| self.others.pop_front())
    }

    fn is_empty(&self) -> bool {
        self.seeks.is_empty() && self.others.is_empty()
    }
}

impl Broker {
    /// Looks for the first message of a topic that was published at `time` or later. Answers what it has found, or
    /// nothing yet: it comes later, for its purpose.
    pub(super) fn search_time(
        &mut self,
        topic_id: TopicId,
        time: Timestamp,
        purpose: Purpose,
        out: &mut Output,
    ) -> Option<Found> {
        let Some(topic) = self.topics.get(&topic_id) else { return Some(Found::Nothing) };
        let state = &topic.state;
        let (high, high_at) = state.marks.offset_reached(time, state.end);
        let low = state.marks.offset_about(time, state.end);
        self.search(Search { topic: topic_id, purpose, time, low, high, high_at }, out)
    }

    /// Takes a search as far as it gets without a read.
    fn search(&mut self, mut search: Search, out: &mut Output) -> Option<Found> {
        loop {
            let Some(topic) = self.topics.get(&search.topic) else { return Some(Found::Nothing) };
            let state = &topic.state;
            search.low = search.low.max(state.start);
            if search.low >= search.high {
                let at = search.high_at.filter(|_| search.low == search.high);
                return Some(Found::At(search.low, at));
            }
            let middle = Offset(search.low.0 + (search.high.0 - search.low.0) / 2);
            let probe = state.next_run(middle).start;
            if probe >= search.high {
                search.high = middle;
                continue;
            }
            if let Some(chunk) = self.cache.topic(search.topic).and_then(|cached| cached.at(probe)) {
                let at = chunk.source((probe.0 - chunk.first.0) as usize).published_at;
                search.narrow(middle, probe, at);
                continue;
            }
            let read = Read { topic: search.topic, from: probe, bytes_max: READ_ONE_BYTES };
            if !self.reads.search(read, search, &mut out.reads) {
                self.searches.push(search);
            }
            return None;
        }
    }

    /// Goes on with a search whose message was read.
    pub(super) fn searched(
        &mut self,
        read: Read,
        mut search: Search,
        chunk: Option<&Chunk>,
        out: &mut Output,
    ) {
        let stamp = chunk.filter(|chunk| chunk.first == read.from).and_then(|chunk| chunk.stamps.first());
        let there =
            self.topics.get(&search.topic).is_some_and(|topic| topic.state.run_at(read.from).is_some());
        let found = match stamp {
            Some(stamp) => {
                search.narrow(read.from, read.from, stamp.published_at);
                self.search(search, out)
            }
            // It is gone meanwhile: on with what is left.
            None if !there => self.search(search, out),
            // It may be as late as any: what is before it is looked at.
            None if self.unreadable.find(read.topic, read.from).is_some() => {
                (search.high, search.high_at) = (read.from, None);
                self.search(search, out)
            }
            None => Some(Found::Nothing),
        };
        self.found(search, found, out);
    }

    /// Lets searches that wait in line read, as far as they may.
    pub(super) fn start_next_searches(&mut self, out: &mut Output) {
        for _ in 0..SEARCHES_PER_CYCLE {
            if !self.reads.may_search() {
                return;
            }
            let Some(search) = self.searches.pop() else { return };
            let found = self.search(search, out);
            self.found(search, found, out);
        }
        self.work_left |= self.reads.may_search() && !self.searches.is_empty();
    }

    fn found(&mut self, search: Search, found: Option<Found>, out: &mut Output) {
        let Some(found) = found else { return };
        match search.purpose {
            Purpose::Age => self.found_old(search.topic, search.time, found, out),
            Purpose::Seek(number) => self.found_place(number, search.topic, found, out),
        }
    }
}

impl Search {
    /// The message `probe`, before which from `middle` on there is none, was published `at`.
    fn narrow(&mut self, middle: Offset, probe: Offset, at: Timestamp) {
        if at < self.time {
            self.low = probe.next();
        } else {
            (self.high, self.high_at) = (middle, Some(at));
        }
    }
}
