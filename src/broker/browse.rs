//! Browsing: messages of a topic shown to somebody, without any effect on topic or groups.
//!
//! A question of a few bytes has an answer as large as the largest message, so browses wait in line. Few of them read
//! at a time; nothing is read for a session that does not take what it has, and nothing at all while sessions that do
//! not hold much. Answers share the memory of what they show.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::cache::{CachedChunk, TopicCache};
use super::machine::Broker;
use super::session::Session;
use super::{Browsed, Content, Output, Read, refusals};
use crate::model::chunk::{Chunk, Origin};
use crate::model::id::{Offset, Sequence, SessionId, TopicId};
use crate::model::limits::{BROWSED_BYTES_MAX, BROWSES_MAX, BROWSES_PER_CONNECTION_MAX};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::RequestId;
use crate::protocol::response::Run;

/// Bytes of an answer, with what is said about its messages; one larger message comes alone.
const BROWSE_BYTES: usize = 1 << 20;

/// Somebody who waits for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Browse {
    pub session: SessionId,
    pub request: RequestId,
    pub topic: TopicId,
    pub from: Offset,
    pub messages_max: u32,
}

/// Browses in line, and what was answered and may not have been taken yet.
#[derive(Debug, Default)]
pub(super) struct Browses {
    line: VecDeque<Browse>,
    held: Vec<Held>,
}

/// An answer that its session may not have taken yet.
#[derive(Debug)]
struct Held {
    session: SessionId,
    bytes: usize,
    /// It was answered in this cycle: whether it is taken at once will be known in the next.
    fresh: bool,
}

impl Browses {
    fn held_bytes(&self) -> usize {
        self.held.iter().map(|held| held.bytes).sum()
    }

    /// Forgets what a session waits for and holds.
    pub fn end_session(&mut self, session: SessionId) {
        self.line.retain(|browse| browse.session != session);
        self.held.retain(|held| held.session != session);
    }
}

/// An answer as it is put together.
#[derive(Default)]
struct Answer {
    runs: Vec<Run>,
    messages: Vec<Bytes>,
    bytes: usize,
    count: u32,
}

impl Answer {
    /// Adds `count` messages of one origin.
    fn add(&mut self, run: Run, encoded: Bytes) {
        self.count += run.count;
        self.bytes += encoded.len() + size_of::<Run>() + size_of::<Bytes>();
        self.runs.push(run);
        self.messages.push(encoded);
    }

    /// How many more messages fit, and how many more bytes.
    fn room(&self, messages_max: u32) -> (usize, u64) {
        let messages = messages_max - self.count;
        (messages as usize, (BROWSE_BYTES - self.bytes.min(BROWSE_BYTES)) as u64)
    }

    fn add_cached(&mut self, chunk: &CachedChunk, from: Offset, messages_max: u32) -> Offset {
        let first = (from.0 - chunk.first.0) as usize;
        let (messages, bytes) = self.room(messages_max);
        let last = chunk.block.count().min(first + messages);
        let mut count = chunk.block.count_within(first, last, bytes);
        if count == 0 && self.count == 0 && first < last {
            count = 1;
        }
        let mut index = first;
        while index < first + count {
            let source = chunk.source(index);
            let next = (index + source.count as usize).min(first + count);
            let run = Run {
                offset: Offset(chunk.first.0 + index as u64),
                count: (next - index) as u32,
                attempt: 0,
                delivery: 0,
                redelivered: false,
                published_at: source.published_at,
                origin: source.origin,
            };
            self.add(run, chunk.block.slice(index, next));
            index = next;
        }
        Offset(from.0 + count as u64)
    }

    fn add_cached_from(&mut self, cached: &TopicCache, from: Offset, messages_max: u32) {
        let mut at = from;
        while let Some(chunk) = cached.at(at) {
            let next = self.add_cached(chunk, at, messages_max);
            if next < chunk.end() {
                break;
            }
            at = next;
        }
    }

    fn add_chunk(&mut self, chunk: &Chunk, messages_max: u32) {
        let mut index = 0;
        for stamp in &chunk.stamps {
            let end = (index + stamp.count as usize).min(chunk.block.count());
            let (messages, bytes) = self.room(messages_max);
            let mut count = chunk.block.count_within(index, end.min(index + messages), bytes);
            if count == 0 && self.count == 0 && messages > 0 && index < end {
                count = 1;
            }
            if count == 0 {
                break;
            }
            let run = Run {
                offset: Offset(chunk.first.0 + index as u64),
                count: count as u32,
                attempt: 0,
                delivery: 0,
                redelivered: false,
                published_at: stamp.published_at,
                origin: stamp.origin.map(|origin| Origin { sequence: Sequence(origin.sequence.0), ..origin }),
            };
            self.add(run, chunk.block.slice(index, index + count));
            if index + count < end {
                break;
            }
            index = end;
        }
    }

    fn send(self, browse: Browse, browses: &mut Browses, out: &mut Output) {
        browses.held.push(Held { session: browse.session, bytes: self.bytes, fresh: true });
        let browsed = Browsed { request: browse.request, runs: self.runs, messages: self.messages };
        out.effect(browse.session, Content::Browsed(browsed));
    }
}

impl Broker {
    /// Puts a browse in line. It is answered with messages from where it asks on, or the nearest that are still there.
    pub(super) fn browse(&mut self, browse: Browse, out: &mut Output) {
        let line = &self.browses.line;
        let own = line.iter().filter(|waiting| waiting.session == browse.session).count();
        let refusal = if line.len() + self.reads.browse_count() >= BROWSES_MAX {
            refusals::limit("browses_max", BROWSES_MAX as u64, "browses waiting")
        } else if own >= BROWSES_PER_CONNECTION_MAX {
            let max = BROWSES_PER_CONNECTION_MAX as u64;
            refusals::limit("browses_per_connection_max", max, "browses of this connection waiting")
        } else {
            self.browses.line.push_back(browse);
            return;
        };
        out.effect(browse.session, Content::Reply(browse.request, Err(refusal)));
    }

    /// Answers or reads for those in line, as far as the bounds allow.
    pub(super) fn serve_browses(&mut self, out: &mut Output) {
        let Self { browses, sessions, .. } = self;
        browses.held.retain_mut(|held| std::mem::take(&mut held.fresh) || is_paused(sessions, held.session));
        let mut index = 0;
        while let Some(&browse) = self.browses.line.get(index) {
            let Self { browses, sessions, .. } = self;
            if browses.held_bytes() >= BROWSED_BYTES_MAX {
                // What was taken at once makes room in the next cycle; the rest when its session goes on.
                self.work_left |= browses.held.iter().any(|held| !is_paused(sessions, held.session));
                return;
            }
            if !is_paused(sessions, browse.session) && self.serve_browse(browse, out) {
                self.browses.line.remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// Answers a browse or has something read for it. Answers whether that was possible.
    fn serve_browse(&mut self, browse: Browse, out: &mut Output) -> bool {
        let Some(topic) = self.topics.get(&browse.topic) else {
            let refusal = self.missing_topic(browse.topic);
            out.effect(browse.session, Content::Reply(browse.request, Err(refusal)));
            return true;
        };
        let run = topic.state.next_run(browse.from);
        let from = run.start;
        let messages_max = browse.messages_max.min(u32::try_from(run.len()).unwrap_or(u32::MAX));
        let browse = Browse { messages_max, ..browse };
        let mut answer = Answer::default();
        if messages_max > 0 {
            let cached = self.cache.topic(browse.topic).filter(|cached| cached.at(from).is_some());
            let Some(cached) = cached else {
                let read = Read { topic: browse.topic, from, bytes_max: BROWSE_BYTES };
                return self.reads.browse(read, browse, &mut out.reads);
            };
            answer.add_cached_from(cached, from, messages_max);
        }
        answer.send(browse, &mut self.browses, out);
        true
    }

    /// Answers with what was read.
    pub(super) fn browsed(&mut self, read: Read, browse: Browse, chunk: Option<&Chunk>, out: &mut Output) {
        let nearest = self.topics.get(&read.topic).map(|topic| topic.state.next_run(read.from).start);
        match (chunk, nearest) {
            (Some(chunk), Some(_)) => {
                let mut answer = Answer::default();
                answer.add_chunk(chunk, browse.messages_max);
                answer.send(browse, &mut self.browses, out);
            }
            (None, Some(nearest)) if read.from == nearest => {
                let text = format!("offset {} cannot be read now; ask again", read.from);
                let refusal = Refusal::new(ErrorCode::Invalid, text);
                out.effect(browse.session, Content::Reply(browse.request, Err(refusal)));
            }
            // Dropped meanwhile, or the whole topic is gone.
            _ => self.browse(browse, out),
        }
    }
}

/// Whether a session takes nothing for now.
fn is_paused(sessions: &BTreeMap<SessionId, Session>, id: SessionId) -> bool {
    sessions.get(&id).is_some_and(|session| session.paused)
}
