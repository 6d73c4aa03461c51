//! Turns effects into frames, per session, and sends them at the end of a cycle.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::outbox::{Outbox, Sent};
use crate::broker::{Browsed, Content, Delivery, Effect};
use crate::model::id::SessionId;
use crate::protocol::error::Refusal;
use crate::protocol::response::{Deliver, Response, put_browsed, put_deliver};

/// Messages of at least this size are sent from where they are; smaller ones are cheaper to copy together.
const PIECE_BYTES_MIN: usize = 2048;

/// The sessions and what goes out to them.
#[derive(Default)]
pub(super) struct Sending {
    sessions: HashMap<SessionId, Session>,
    /// Sessions with frames in this cycle.
    touched: Vec<SessionId>,
}

struct Session {
    outbox: Arc<Outbox>,
    /// Finished pieces of this cycle, in order.
    pieces: Vec<Bytes>,
    /// The piece that is being written.
    tail: BytesMut,
}

impl Sending {
    pub(super) fn begin(&mut self, id: SessionId, outbox: Arc<Outbox>) {
        self.sessions.insert(id, Session { outbox, pieces: Vec::new(), tail: BytesMut::new() });
    }

    pub(super) fn end(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(&id) {
            session.outbox.close_when_sent();
        }
    }

    /// Whether a session takes nothing more for now.
    pub(super) fn is_full(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.outbox.is_full())
    }

    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }

    /// Writes the frames of an effect. It is sent with [`flush`](Self::flush).
    pub(super) fn put(&mut self, effect: Effect) {
        let Some(session) = self.sessions.get_mut(&effect.session) else {
            return;
        };
        if session.pieces.is_empty() && session.tail.is_empty() {
            self.touched.push(effect.session);
        }
        match effect.content {
            Content::Deliver(delivery) => session.deliver(delivery),
            Content::Browsed(browsed) => session.browsed(browsed),
            Content::Reply(request, result) => Response::Reply(request, result).encode(&mut session.tail),
            Content::Confirm(confirm) => Response::Confirm(confirm).encode(&mut session.tail),
            Content::PublishRefused(refused) => Response::PublishRefused(refused).encode(&mut session.tail),
            Content::PublishReady(ready) => Response::PublishReady(ready).encode(&mut session.tail),
            Content::ConsumerClosed(closed) => Response::ConsumerClosed(closed).encode(&mut session.tail),
            Content::ConsumerTopic(named) => Response::ConsumerTopic(named).encode(&mut session.tail),
            Content::ConsumerTopicGone(gone) => Response::ConsumerTopicGone(gone).encode(&mut session.tail),
            Content::ConsumerRole(role) => Response::ConsumerRole(role).encode(&mut session.tail),
            Content::ConsumerRecalled(recalled) => {
                Response::ConsumerRecalled(recalled).encode(&mut session.tail);
            }
        }
    }

    /// Sends what was put. Adds the sessions that are full now to `full`.
    pub(super) fn flush(&mut self, full: &mut Vec<SessionId>) {
        for id in self.touched.drain(..) {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.cut();
            if session.outbox.send(&mut session.pieces) == Sent::Full {
                full.push(id);
            }
        }
    }

    /// Tells every session to go elsewhere, and ends it.
    pub(super) fn goodbye(&mut self, refusal: &Refusal) {
        for (_, mut session) in self.sessions.drain() {
            Response::Goodbye(refusal.clone()).encode(&mut session.tail);
            session.cut();
            session.outbox.send(&mut session.pieces);
            session.outbox.close_when_sent();
        }
    }
}

impl Session {
    fn deliver(&mut self, delivery: Delivery) {
        let Delivery { consumer, topic, request, runs, failures, messages } = delivery;
        let len = messages.iter().map(Bytes::len).sum();
        put_deliver(&mut self.tail, &Deliver { consumer, topic, request, runs, failures }, len);
        self.put_messages(messages);
    }

    fn browsed(&mut self, browsed: Browsed) {
        let Browsed { request, answer, messages } = browsed;
        let len = messages.iter().map(Bytes::len).sum();
        put_browsed(&mut self.tail, request, answer, len);
        self.put_messages(messages);
    }

    fn put_messages(&mut self, messages: Vec<Bytes>) {
        for piece in messages {
            if piece.len() < PIECE_BYTES_MIN {
                self.tail.extend_from_slice(&piece);
            } else {
                self.cut();
                self.pieces.push(piece);
            }
        }
    }

    fn cut(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
    }
}
