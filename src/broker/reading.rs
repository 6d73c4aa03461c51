//! Reads from the store: which are under way, who waits for them, and what becomes of the answer.
//!
//! Groups at the same place share a read. Only so many are under way that what they bring fits into the cache;
//! further ones wait in line. A read is only wanted for somebody who has credit, or a little ahead of that. Reads for
//! browses are few at a time; further browses wait in a line of [their own](super::browse).

use std::collections::{BTreeMap, VecDeque};

use super::browse::Browse;
use super::cache::CachedChunk;
use super::explain::Question;
use super::machine::Broker;
use super::time_search::Search;
use super::{Output, Read};
use crate::model::chunk::Chunk;
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::limits::BROWSE_READS_MAX;
use crate::model::time::Timestamp;

/// Bytes of a read that goes on at a group's cursor.
pub(super) const READ_BYTES: usize = 256 << 10;
/// Bytes of a read for one message: it comes whatever its size.
pub(super) const READ_ONE_BYTES: usize = 1;
/// Reads for retries and dead letters that a group has under way at a time.
pub(super) const RETRY_READS_MAX: usize = 16;
/// Searches for times that read at a time.
const SEARCH_READS_MAX: usize = 4;
/// Messages before a wanted one from which a read under way will probably reach it.
const NEAR: u64 = 512;
/// After a read in vain, milliseconds until the next one.
const READ_AGAIN_MS: u64 = 100;

/// What identifies a read.
type Key = (TopicId, Offset, usize);

/// Who waits for a read.
#[derive(Debug, Default)]
struct Waiters {
    groups: Vec<(GroupId, Offset)>,
    browses: Vec<Browse>,
    searches: Vec<Search>,
    /// Whether the schedule does.
    schedule: bool,
    /// Whether a pass over a topic that keeps last values does.
    cleaning: bool,
    questions: Vec<Question>,
    /// Whether a replay does.
    replay: bool,
}

/// A read that a group wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub topic: TopicId,
    pub from: Offset,
    pub bytes: usize,
    pub group: GroupId,
}

/// Reads under way and in line.
#[derive(Debug)]
pub(super) struct Reads {
    under_way: BTreeMap<Key, Waiters>,
    line: VecDeque<Want>,
    under_way_max: usize,
    browse_count: usize,
    /// Reads under way for which browses wait.
    browse_reads: usize,
    /// Questions under way.
    question_count: usize,
    /// Searches that read.
    search_count: usize,
}

impl Reads {
    pub fn new(under_way_max: usize) -> Self {
        Self {
            under_way: BTreeMap::new(),
            line: VecDeque::new(),
            under_way_max,
            browse_count: 0,
            browse_reads: 0,
            question_count: 0,
            search_count: 0,
        }
    }

    /// Browses under way.
    pub fn browse_count(&self) -> usize {
        self.browse_count
    }

    /// Has something read for a group. The group notes what it wants itself, and wants nothing twice.
    pub fn want(&mut self, want: Want, reads: &mut Vec<Read>) {
        let near = Offset(want.from.0.saturating_sub(NEAR));
        let shared = if want.bytes == READ_ONE_BYTES {
            self.under_way.get_mut(&(want.topic, want.from, want.bytes))
        } else {
            let to = (want.topic, want.from, usize::MAX);
            let near = self.under_way.range_mut((want.topic, near, 0)..=to);
            near.rev().find(|((_, _, bytes), _)| *bytes >= want.bytes).map(|(_, waiters)| waiters)
        };
        if let Some(waiters) = shared {
            waiters.groups.push((want.group, want.from));
        } else if self.under_way.len() < self.under_way_max {
            self.start(want, reads);
        } else {
            self.line.push_back(want);
        }
    }

    fn start(&mut self, want: Want, reads: &mut Vec<Read>) {
        let key = (want.topic, want.from, want.bytes);
        self.under_way.entry(key).or_default().groups.push((want.group, want.from));
        reads.push(Read { topic: want.topic, from: want.from, bytes_max: want.bytes });
    }

    /// Questions under way.
    pub fn question_count(&self) -> usize {
        self.question_count
    }

    /// Has a message read for a question about it.
    pub fn want_for_question(&mut self, read: Read, question: Question, reads: &mut Vec<Read>) {
        let waiters = self.under_way.entry((read.topic, read.from, read.bytes_max)).or_insert_with(|| {
            reads.push(read);
            Waiters::default()
        });
        waiters.questions.push(question);
        self.question_count += 1;
    }

    /// Has something read for the schedule, which wants nothing twice.
    pub fn want_for_schedule(&mut self, topic: TopicId, from: Offset, bytes: usize, reads: &mut Vec<Read>) {
        let waiters = self.under_way.entry((topic, from, bytes)).or_insert_with(|| {
            reads.push(Read { topic, from, bytes_max: bytes });
            Waiters::default()
        });
        waiters.schedule = true;
    }

    /// Whether one more search may read.
    pub fn may_search(&self) -> bool {
        self.search_count < SEARCH_READS_MAX
    }

    /// Has a message read for a search. Answers whether that is possible: few do so at a time.
    pub fn search(&mut self, read: Read, search: Search, reads: &mut Vec<Read>) -> bool {
        if !self.may_search() {
            return false;
        }
        let waiters = self.under_way.entry((read.topic, read.from, read.bytes_max)).or_insert_with(|| {
            reads.push(read);
            Waiters::default()
        });
        waiters.searches.push(search);
        self.search_count += 1;
        true
    }

    /// Has something read for the replay that is worked at, which wants one thing at a time.
    pub fn want_for_replay(&mut self, topic: TopicId, from: Offset, reads: &mut Vec<Read>) {
        let waiters = self.under_way.entry((topic, from, READ_BYTES)).or_insert_with(|| {
            reads.push(Read { topic, from, bytes_max: READ_BYTES });
            Waiters::default()
        });
        waiters.replay = true;
    }

    /// Has something read for a pass over a topic, which wants nothing twice.
    pub fn want_for_cleaning(&mut self, topic: TopicId, from: Offset, bytes: usize, reads: &mut Vec<Read>) {
        let waiters = self.under_way.entry((topic, from, bytes)).or_insert_with(|| {
            reads.push(Read { topic, from, bytes_max: bytes });
            Waiters::default()
        });
        waiters.cleaning = true;
    }

    /// Has something read for a browse. Answers whether that is possible: few reads bring what browses want.
    pub fn browse(&mut self, read: Read, browse: Browse, reads: &mut Vec<Read>) -> bool {
        let key = (read.topic, read.from, read.bytes_max);
        if self.browse_reads >= BROWSE_READS_MAX
            && self.under_way.get(&key).is_none_or(|waiters| waiters.browses.is_empty())
        {
            return false;
        }
        let waiters = self.under_way.entry(key).or_insert_with(|| {
            reads.push(read);
            Waiters::default()
        });
        self.browse_reads += usize::from(waiters.browses.is_empty());
        waiters.browses.push(browse);
        self.browse_count += 1;
        true
    }
}

impl Broker {
    /// Takes what was read: into the cache, and on to those who waited for it.
    pub(super) fn take_chunk(&mut self, read: Read, chunk: Option<Chunk>, out: &mut Output) {
        let key = (read.topic, read.from, read.bytes_max);
        let Some(waiters) = self.reads.under_way.remove(&key) else { return };
        self.reads.browse_count -= waiters.browses.len();
        self.reads.browse_reads -= usize::from(!waiters.browses.is_empty());
        for browse in waiters.browses {
            self.browsed(read, browse, chunk.as_ref(), out);
        }
        self.reads.search_count -= waiters.searches.len();
        for search in waiters.searches {
            self.searched(read, search, chunk.as_ref(), out);
        }
        // Of what could not be read it is known when it may be asked for again.
        let in_vain = chunk.is_none() && self.unreadable.find(read.topic, read.from).is_none();
        if waiters.schedule {
            self.loaded_for_schedule(read.topic, read.from, in_vain);
        }
        if waiters.replay {
            self.replays.loaded(self.now, in_vain);
            self.work_left = true;
        }
        if waiters.cleaning {
            let again = in_vain.then(|| Timestamp(self.now.0.saturating_add(READ_AGAIN_MS)));
            let chunk = chunk.as_ref().filter(|chunk| chunk.first == read.from && !chunk.block.is_empty());
            self.last_values.loaded(read.topic, read.from, chunk.map(CachedChunk::of), again);
            self.work_left = true;
        }
        debug_assert!(chunk.iter().all(|chunk| {
            chunk.stamps.iter().map(|stamp| stamp.count as usize).sum::<usize>() == chunk.block.count()
        }));
        if let Some(chunk) = &chunk {
            self.could_read(read.topic, chunk.range());
        }
        if let Some(chunk) = chunk
            && let Some(topic) = self.topics.get_mut(&read.topic)
            && !chunk.stamps.is_empty()
            && !chunk.block.is_empty()
            && chunk.first == read.from
        {
            topic.garbage.seen(&chunk.block);
            // What a pass reads is needed by nobody else, probably.
            let others = !waiters.groups.is_empty() || !waiters.questions.is_empty() || waiters.replay;
            if others || !waiters.cleaning {
                self.cache.insert(read.topic, chunk.first, chunk.block, &chunk.stamps);
            }
        }
        self.reads.question_count -= waiters.questions.len();
        for question in waiters.questions {
            self.explain_read(question, out);
        }
        for (id, from) in waiters.groups {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let Some(part) = group.parts.get_mut(&read.topic) else { continue };
            if part.wants.cursor == Some(from) {
                part.wants.cursor = None;
            }
            part.wants.retries.remove(&from);
            if in_vain {
                self.read_in_vain(id, read, from);
            }
            if let Some(group) = self.groups.get_mut(&id) {
                self.cycle.mark(group, read.topic);
            }
        }
        self.start_next_reads(out);
    }

    /// Where messages were dropped meanwhile, the group is done with them. Where the read began at one that is there, the
    /// group, which waited for it or for one behind it, asks again a little later.
    fn read_in_vain(&mut self, id: GroupId, read: Read, from: Offset) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(topic) = self.topics.get(&read.topic) else { return };
        let start = topic.state.start;
        if from < start {
            group.settle_unheld(read.topic, OffsetRange { start: Offset(0), end: start });
        }
        let Some(part) = group.parts.get_mut(&read.topic) else { return };
        if from < start {
            part.cursor = part.cursor.max(start);
        } else if read.from >= start && !topic.state.removed.contains(read.from) {
            part.wants.not_before = Some(Timestamp(self.now.0.saturating_add(READ_AGAIN_MS)));
        }
    }

    /// Starts reads that waited in line, as far as somebody still wants them.
    fn start_next_reads(&mut self, out: &mut Output) {
        while self.reads.under_way.len() < self.reads.under_way_max
            && let Some(want) = self.reads.line.pop_front()
        {
            let group = self.groups.get(&want.group);
            let Some(part) = group.and_then(|group| group.parts.get(&want.topic)) else { continue };
            if part.wants.cursor == Some(want.from) || part.wants.retries.contains(&want.from) {
                self.reads.want(want, &mut out.reads);
            }
        }
    }
}
