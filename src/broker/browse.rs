//! Browsing: messages of a topic shown to somebody, without any effect on topic or groups.

use super::cache::{CachedChunk, TopicCache};
use super::machine::Broker;
use super::{Content, Output, Read, refusals};
use crate::model::chunk::{Chunk, Origin};
use crate::model::id::{Offset, Sequence, SessionId, TopicId};
use crate::model::limits::BROWSES_MAX;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::RequestId;
use crate::protocol::response::{Reply, Run};

/// Bytes of messages in an answer; one larger message comes alone.
const BROWSE_BYTES: usize = 1 << 20;

/// Somebody who waits for messages to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Browse {
    pub session: SessionId,
    pub request: RequestId,
    pub messages_max: u32,
}

/// An answer as it is put together.
#[derive(Default)]
struct Answer {
    runs: Vec<Run>,
    messages: Vec<u8>,
    count: u32,
}

impl Answer {
    /// Adds `count` messages of one origin.
    fn add(&mut self, run: Run, encoded: &[u8]) {
        self.count += run.count;
        self.runs.push(run);
        self.messages.extend_from_slice(encoded);
    }

    /// How many more messages fit, and how many more bytes.
    fn room(&self, messages_max: u32) -> (usize, u64) {
        let messages = messages_max - self.count;
        (messages as usize, (BROWSE_BYTES - self.messages.len().min(BROWSE_BYTES)) as u64)
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
                redelivered: false,
                published_at: source.published_at,
                origin: source.origin,
            };
            self.add(run, &chunk.block.slice(index, next));
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
                redelivered: false,
                published_at: stamp.published_at,
                origin: stamp.origin.map(|origin| Origin { sequence: Sequence(origin.sequence.0), ..origin }),
            };
            self.add(run, &chunk.block.slice(index, index + count));
            if index + count < end {
                break;
            }
            index = end;
        }
    }

    fn send(self, browse: Browse, out: &mut Output) {
        let reply = Reply::Browsed { runs: self.runs, messages: self.messages.into() };
        out.effect(browse.session, Content::Reply(browse.request, Ok(reply)));
    }
}

impl Broker {
    /// Answers with messages from `from` on, or the nearest ones that are still there; reads them where needed.
    pub(super) fn browse(&mut self, id: TopicId, from: Offset, browse: Browse, out: &mut Output) {
        let Some(topic) = self.topics.get(&id) else {
            let refusal = self.missing_topic(id);
            out.effect(browse.session, Content::Reply(browse.request, Err(refusal)));
            return;
        };
        let from = from.max(topic.state.start);
        if from >= topic.state.end || browse.messages_max == 0 {
            Answer::default().send(browse, out);
            return;
        }
        if let Some(cached) = self.cache.topic(id)
            && cached.at(from).is_some()
        {
            let mut answer = Answer::default();
            answer.add_cached_from(cached, from, browse.messages_max);
            answer.send(browse, out);
        } else if self.reads.browse_count() >= BROWSES_MAX {
            let refusal =
                refusals::limit("browses_max", BROWSES_MAX as u64, "browses that read from the store");
            out.effect(browse.session, Content::Reply(browse.request, Err(refusal)));
        } else {
            self.reads.browse(Read { topic: id, from, bytes_max: BROWSE_BYTES }, browse, &mut out.reads);
        }
    }

    /// Answers with what was read.
    pub(super) fn browsed(&mut self, read: Read, browse: Browse, chunk: Option<&Chunk>, out: &mut Output) {
        let start = self.topics.get(&read.topic).map(|topic| topic.state.start);
        match (chunk, start) {
            (Some(chunk), Some(_)) => {
                let mut answer = Answer::default();
                answer.add_chunk(chunk, browse.messages_max);
                answer.send(browse, out);
            }
            (None, Some(start)) if read.from >= start => {
                let text = format!("offset {} cannot be read now; ask again", read.from);
                let refusal = Refusal::new(ErrorCode::Invalid, text);
                out.effect(browse.session, Content::Reply(browse.request, Err(refusal)));
            }
            // Dropped meanwhile, or the whole topic is gone.
            _ => self.browse(read.topic, read.from, browse, out),
        }
    }
}
