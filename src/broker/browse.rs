//! Browsing: messages of a topic shown to somebody, without any effect on topic or groups.
//!
//! A question of a few bytes has an answer as large as the largest message, so browses wait in line. Few of them read
//! at a time; nothing is read for a session that does not take what it has, and nothing at all while sessions that do
//! not hold much. Answers share the memory of what they show.

use std::collections::{BTreeMap, VecDeque};

use super::cache::CachedChunk;
use super::effort::Effort;
use super::looking::{Answer, Look, Seen};
use super::machine::Broker;
use super::session::Session;
use super::{Browsed, Content, Output, Read, refusals};
use crate::model::chunk::Chunk;
use crate::model::id::SessionId;
use crate::model::limits::{BROWSED_BYTES_MAX, BROWSES_MAX, BROWSES_PER_CONNECTION_MAX};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::RequestId;

/// Bytes of an answer, with what is said about its messages; one larger message comes alone.
pub(super) const BROWSE_BYTES: usize = 1 << 20;

/// Somebody who waits for messages.
#[derive(Clone, Debug)]
pub(super) struct Browse {
    pub session: SessionId,
    pub request: RequestId,
    /// What is asked for, and from where on.
    pub look: Look,
    pub messages_max: u32,
}

/// Browses in line, and what was answered and may not have been taken yet.
#[derive(Debug, Default)]
pub(super) struct Browses {
    line: VecDeque<Browse>,
    held: Vec<Held>,
    /// What filters may still be asked in this cycle.
    effort: Effort,
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
        browses.effort = Effort::CYCLE;
        let mut index = 0;
        while let Some(browse) = self.browses.line.get(index).cloned() {
            let Self { browses, sessions, .. } = self;
            if browses.held_bytes() >= BROWSED_BYTES_MAX {
                // What was taken at once makes room in the next cycle; the rest when its session goes on.
                self.work_left |= browses.held.iter().any(|held| !is_paused(sessions, held.session));
                return;
            }
            if browses.effort.is_spent() {
                self.work_left = true;
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
        if let Some(refusal) = self.unseen(&browse.look) {
            out.effect(browse.session, Content::Reply(browse.request, Err(refusal)));
            return true;
        }
        let place = self.next_seen(&browse.look).filter(|_| browse.messages_max > 0);
        let Some(place) = place else {
            self.answer_browse(browse, Answer::default(), out);
            return true;
        };
        let cached = self.cache.topic(place.topic).is_some_and(|cached| cached.at(place.offset).is_some());
        let mut browse = browse;
        browse.look.at = place;
        if !cached {
            let read = Read { topic: place.topic, from: place.offset, bytes_max: BROWSE_BYTES };
            return self.reads.browse(read, browse, &mut out.reads);
        }
        self.answer_from_memory(browse, out);
        true
    }

    /// Answers with what is in memory from where a browse is on.
    fn answer_from_memory(&mut self, mut browse: Browse, out: &mut Output) {
        let topic = browse.look.at.topic;
        let (mut answer, mut effort) = (Answer::default(), self.browses.effort);
        while !effort.is_spent()
            && let Some(place) = self.next_seen(&browse.look)
            && place.topic == topic
            && let Some(chunk) = self.cache.topic(topic).and_then(|cached| cached.at(place.offset))
        {
            browse.look.at = place;
            let next =
                self.see(&browse.look, chunk, place.offset, browse.messages_max, &mut answer, &mut effort);
            browse.look.at.offset = next;
            if next == place.offset {
                break;
            }
        }
        self.browses.effort = effort;
        self.answer_browse(browse, answer, out);
    }

    /// Answers with what was read.
    pub(super) fn browsed(
        &mut self,
        read: Read,
        mut browse: Browse,
        chunk: Option<&Chunk>,
        out: &mut Output,
    ) {
        let place = self.next_seen(&browse.look);
        let is_there = self.unseen(&browse.look).is_none() && place == Some(browse.look.at);
        match chunk {
            Some(chunk) if is_there && !self.browses.effort.is_spent() => {
                let (mut answer, mut effort) = (Answer::default(), self.browses.effort);
                let chunk = CachedChunk::of(chunk);
                let (from, max) = (browse.look.at.offset, browse.messages_max);
                let next = self.see(&browse.look, &chunk, from, max, &mut answer, &mut effort);
                browse.look.at.offset = next;
                self.browses.effort = effort;
                self.answer_browse(browse, answer, out);
            }
            None if is_there => {
                let why = self.unreadable.find(read.topic, read.from).map(|known| known.why.as_str());
                let text = match why {
                    Some(why) => format!("offset {} cannot be read, go on behind it: {why}", read.from),
                    None => format!("offset {} cannot be read now; ask again", read.from),
                };
                let refusal = Refusal::new(ErrorCode::Unreadable, text);
                out.effect(browse.session, Content::Reply(browse.request, Err(refusal)));
            }
            // Dropped or settled meanwhile, the whole topic is gone, or others have used up what may be done.
            _ => self.browses.line.push_back(browse),
        }
    }

    /// Why nothing can be seen any more.
    fn unseen(&self, look: &Look) -> Option<Refusal> {
        match look.seen {
            Seen::Topic(topic) if !self.topics.contains_key(&topic) => Some(self.missing_topic(topic)),
            Seen::Group(group) if !self.groups.contains_key(&group) => {
                Some(Refusal::new(ErrorCode::Deleted, "the group was deleted"))
            }
            _ if !self.topics.contains_key(&look.at.topic) => Some(self.missing_topic(look.at.topic)),
            _ => None,
        }
    }

    /// Answers a browse that goes on where it is now.
    fn answer_browse(&mut self, browse: Browse, answer: Answer, out: &mut Output) {
        let Browse { session, request, look, messages_max } = browse;
        let next = if messages_max == 0 { Some(look.at) } else { self.next_seen(&look) };
        let Some(topic) = self.topics.get(&look.at.topic) else { return };
        self.browses.held.push(Held { session, bytes: answer.bytes, fresh: true });
        let (answer, messages) = answer.reply(topic, next);
        out.effect(session, Content::Browsed(Browsed { request, answer, messages }));
    }
}

/// Whether a session takes nothing for now.
fn is_paused(sessions: &BTreeMap<SessionId, Session>, id: SessionId) -> bool {
    sessions.get(&id).is_some_and(|session| session.paused)
}
