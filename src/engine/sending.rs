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
/// Bytes after which a piece that is written is finished: its memory is held until the client has taken all of it.
const PIECE_BYTES_MAX: usize = 256 << 10;
/// Memory for pieces that are larger than this is not kept for the next ones, or each session would hold as much as it
/// ever needed.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// The sessions and what goes out to them.
#[derive(Default)]
pub(super) struct Sending {
    sessions: HashMap<SessionId, Session>,
    /// Sessions with frames in this cycle.
    touched: Vec<SessionId>,
}

struct Session {
    outbox: Arc<Outbox>,
    pieces: Pieces,
}

/// What goes out in this cycle.
#[derive(Default)]
struct Pieces {
    /// Finished ones, in order.
    finished: Vec<Bytes>,
    /// The one that is being written.
    tail: BytesMut,
}

impl Sending {
    pub(super) fn begin(&mut self, id: SessionId, outbox: Arc<Outbox>) {
        self.sessions.insert(id, Session { outbox, pieces: Pieces::default() });
    }

    pub(super) fn end(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(&id) {
            session.outbox.close_when_sent();
        }
    }

    /// Bytes for which there is memory on their way to the sessions, which share it.
    pub(super) fn room(&self) -> u64 {
        self.sessions.values().next().map_or(u64::MAX, |session| session.outbox.room())
    }

    /// Whether a session takes nothing more for now.
    pub(super) fn is_full(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.outbox.is_full())
    }

    /// All sessions, in order.
    pub(super) fn ids(&self) -> Vec<SessionId> {
        let mut ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Writes the frames of an effect. It is sent with [`flush`](Self::flush).
    pub(super) fn put(&mut self, effect: Effect) {
        let Some(session) = self.sessions.get_mut(&effect.session) else {
            return;
        };
        let pieces = &mut session.pieces;
        if pieces.finished.is_empty() && pieces.tail.is_empty() {
            self.touched.push(effect.session);
        }
        match effect.content {
            Content::Deliver(delivery) => pieces.deliver(delivery),
            Content::Browsed(browsed) => pieces.browsed(browsed),
            Content::Reply(request, result) => Response::Reply(request, result).encode(&mut pieces.tail),
            Content::Confirm(confirm) => Response::Confirm(confirm).encode(&mut pieces.tail),
            Content::PublishRefused(refused) => Response::PublishRefused(refused).encode(&mut pieces.tail),
            Content::PublishReady(ready) => Response::PublishReady(ready).encode(&mut pieces.tail),
            Content::ConsumerClosed(closed) => Response::ConsumerClosed(closed).encode(&mut pieces.tail),
            Content::ConsumerTopic(named) => Response::ConsumerTopic(named).encode(&mut pieces.tail),
            Content::ConsumerTopicGone(gone) => Response::ConsumerTopicGone(gone).encode(&mut pieces.tail),
            Content::ConsumerRole(role) => Response::ConsumerRole(role).encode(&mut pieces.tail),
            Content::ConsumerRecalled(recalled) => {
                Response::ConsumerRecalled(recalled).encode(&mut pieces.tail);
            }
        }
    }

    /// Sends what was put. Adds the sessions that are full now to `full`.
    pub(super) fn flush(&mut self, full: &mut Vec<SessionId>) {
        for id in self.touched.drain(..) {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.pieces.cut();
            if session.outbox.send(&mut session.pieces.finished) == Sent::Full {
                full.push(id);
            }
        }
    }

    /// Tells every session to go elsewhere, and ends it.
    pub(super) fn goodbye(&mut self, refusal: &Refusal) {
        for (_, mut session) in self.sessions.drain() {
            Response::Goodbye(refusal.clone()).encode(&mut session.pieces.tail);
            session.pieces.cut();
            session.outbox.send(&mut session.pieces.finished);
            session.outbox.close_when_sent();
        }
    }
}

impl Pieces {
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
                if self.tail.len() >= PIECE_BYTES_MAX {
                    self.cut();
                }
            } else {
                self.cut();
                self.finished.push(piece);
            }
        }
    }

    fn cut(&mut self) {
        let piece = match self.tail.len() {
            0 => return,
            1..=KEPT_BYTES_MAX => self.tail.split(),
            _ => std::mem::take(&mut self.tail),
        };
        self.finished.push(piece.freeze());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session held as much memory as it had ever needed at once, and a slow client all that one cycle had for it.
    #[test]
    fn pieces_are_of_bounded_size_and_large_ones_are_not_kept() {
        let (small, large) = (Bytes::from(vec![1; 1_000]), Bytes::from(vec![2; 4_000]));
        let mut pieces = Pieces::default();
        for count in [1, 15, 100, 3_000] {
            let messages = [vec![small.clone(); count], vec![large.clone()]].concat();
            let expected = messages.concat();
            pieces.put_messages(messages);
            pieces.put_messages(vec![small.clone()]);
            pieces.cut();
            let sent: Vec<Bytes> = std::mem::take(&mut pieces.finished);
            assert_eq!(sent.concat(), [expected.as_slice(), &small].concat());
            assert!(sent.iter().all(|piece| piece.len() < PIECE_BYTES_MAX + PIECE_BYTES_MIN));
            assert!(sent.iter().any(|piece| piece.as_ptr() == large.as_ptr()), "it is not copied");
            drop(sent);
            // All of what the buffer is part of.
            pieces.tail.reserve(KEPT_BYTES_MAX / 2);
            assert!(pieces.tail.capacity() <= 2 * KEPT_BYTES_MAX, "{}", pieces.tail.capacity());
        }
    }
}
