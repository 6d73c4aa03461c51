//! A producer as the tasks of the client know it: its outbox, and on which connection it is open.
//!
//! Its [outbox](super::outbox) knows what to send; this knows whether it may be sent now, on which connection, and
//! who waits for what. It opens the producer on each new connection, from which on the outbox goes on.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::error::ClientError;
use super::link::{Link, Session, Written};
use super::options::{FAILURES_MAX, ProducerOptions};
use super::outbox::{Mismatch, Outbox, Refused};
use super::producer::Ticket;
use super::shared::{Shared, Waiting, locked};
use super::wait::{after_refusal, by_chance};
use crate::model::id::{ProducerId, Sequence};
use crate::model::limits::Limits;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{CloseProducer, Handle, OpenProducer, Request};
use crate::protocol::response::{PublishRefused, Reply};

/// A producer as the tasks of the client know it.
#[derive(Debug)]
pub(super) struct ProducerCore {
    pub(super) handle: Handle,
    pub(super) name: String,
    pub(super) options: ProducerOptions,
    pub(super) state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) outbox: Outbox,
    pub(super) phase: Phase,
    /// The connection on which it was opened, or is being opened.
    pub(super) session: Session,
    pub(super) id: Option<ProducerId>,
    pub(super) limits: Limits,
    /// Whether the writer task knows that there is something in the open chunk.
    pub(super) with_writer: bool,
    pub(super) put_off: Option<PutOff>,
    pub(super) waiters: BTreeMap<(u64, u64), Waker>,
    pub(super) last_waiter: u64,
    /// Who waits for room, or for the producer to be open.
    pub(super) other_waiters: Vec<Waker>,
}

/// The node does not take messages for now.
#[derive(Clone, Debug)]
pub(super) struct PutOff {
    pub(super) refusal: Refusal,
    /// The wait after it, before chance.
    wait: Duration,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Not open on the current connection.
    Opening,
    Open,
    /// Open, but the node wants nothing for now.
    Waiting,
    Ended(ClientError),
}

/// How soon a message is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Now: the frame is full, or nothing else will be published before it is confirmed.
    Now,
    /// Now where nothing is under way. While the node works on earlier frames, when the writer task comes around, so
    /// that all callers that are ready to publish share a frame.
    Shared,
    /// When the writer task comes around.
    Soon,
}

impl ProducerCore {
    pub(super) fn new(handle: Handle, name: String, options: ProducerOptions) -> Self {
        let state = State {
            outbox: Outbox::new(),
            phase: Phase::Opening,
            session: 0,
            id: None,
            limits: Limits::default(),
            with_writer: false,
            put_off: None,
            waiters: BTreeMap::new(),
            last_waiter: 0,
            other_waiters: Vec::new(),
        };
        Self { handle, name, options, state: Mutex::new(state) }
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Sends what there is, or leaves it to the writer task.
    pub(super) fn pass_on(
        self: &Arc<Self>,
        shared: &Shared,
        mut state: std::sync::MutexGuard<'_, State>,
        urgency: Urgency,
    ) {
        if !matches!(state.phase, Phase::Open) {
            return;
        }
        let now = match urgency {
            Urgency::Now => true,
            Urgency::Shared => !state.outbox.is_waiting_for_node(),
            Urgency::Soon => false,
        };
        if now {
            let mut link = locked(&shared.link);
            self.put_frames(&mut state, &mut link);
            drop(state);
            let written = link.write();
            drop(link);
            if written == Written::Blocked {
                shared.writer.notify_one();
            }
        } else if !state.with_writer {
            state.with_writer = true;
            locked(&shared.link).producers.push(self.clone());
            drop(state);
            shared.writer.notify_one();
        }
    }

    /// Puts everything that may be sent into the link.
    pub(super) fn put_all(&self, shared: &Shared) {
        let mut state = self.lock();
        state.with_writer = false;
        self.put_frames(&mut state, &mut locked(&shared.link));
    }

    fn put_frames(&self, state: &mut State, link: &mut Link) {
        if !matches!(state.phase, Phase::Open) || link.session != state.session {
            return;
        }
        state.outbox.seal();
        let (frame_bytes_max, session) = (state.limits.frame_bytes_max, state.session);
        while let Some((head, messages)) = state.outbox.next_frame(self.handle, frame_bytes_max, session) {
            link.put_messages(&head, messages);
        }
    }

    /// Asks the node to open the producer on this connection, unless that was done.
    pub(super) fn reopen(self: &Arc<Self>, shared: &Shared, session: Session) {
        let mut state = self.lock();
        let done = state.session == session || matches!(state.phase, Phase::Ended(_));
        // A connection that has ended meanwhile must not take the place of its successor.
        if done || session == 0 || shared.session() != session {
            return;
        }
        state.session = session;
        self.ask_open(&mut state, shared);
    }

    fn ask_open(self: &Arc<Self>, state: &mut State, shared: &Shared) {
        state.phase = Phase::Opening;
        let request = locked(&shared.registry).expect(Waiting::Producer(self.clone()));
        let open = OpenProducer { request, producer: self.handle, name: self.name.clone(), resume: state.id };
        shared.send(state.session, &Request::OpenProducer(open));
    }

    /// The connection is gone.
    pub(super) fn lost(&self) {
        let mut state = self.lock();
        state.session = 0;
        state.with_writer = false;
        state.outbox.lost();
        if !matches!(state.phase, Phase::Ended(_)) {
            state.phase = Phase::Opening;
        }
    }

    /// The node answered the wish to open the producer.
    pub(super) fn answered(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        session: Session,
        limits: &Limits,
        answer: Result<Reply, Refusal>,
    ) {
        let mut state = self.lock();
        if state.session != session || !matches!(state.phase, Phase::Opening) {
            return;
        }
        match answer {
            Ok(Reply::Producer { id, last }) => match state.opened(id, last) {
                Ok(()) => {
                    state.limits = limits.clone();
                    state.phase = Phase::Open;
                    let mut link = locked(&shared.link);
                    self.put_frames(&mut state, &mut link);
                }
                Err(Mismatch::WentBack { confirmed }) => {
                    let error =
                        ClientError::StoreWentBack { name: self.name.clone(), stored: last.0, confirmed };
                    state.phase = Phase::Ended(error);
                }
                Err(Mismatch::NotOurs) => {
                    let text = "another client has published under the name of this producer";
                    self.end(&mut state, Refusal::new(ErrorCode::ProducerReplaced, text));
                }
            },
            Ok(other) => state.phase = Phase::Ended(super::shared::unexpected(&other)),
            // Nothing that may be stored is waiting for a confirm: a new one goes on where the old one ended.
            Err(refusal)
                if refusal.code == ErrorCode::ProducerExpired
                    && state.id.is_some()
                    && !state.outbox.is_anything_unknown() =>
            {
                state.id = None;
                self.ask_open(&mut state, shared);
            }
            Err(refusal) if state.may_open_later(refusal.code) => self.ask_later(&mut state, shared, refusal),
            Err(refusal) => self.end(&mut state, refusal),
        }
        let wakers = state.take_wakers();
        drop(state);
        shared.write();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Everything up to `sequence` is stored.
    pub(super) fn confirm(&self, sequence: Sequence) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Open | Phase::Waiting) {
            return;
        }
        state.outbox.confirm(sequence);
        state.put_off = None;
        let wakers = state.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The node did not take some messages.
    pub(super) fn refused(self: &Arc<Self>, shared: &Arc<Shared>, refused: PublishRefused) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Open | Phase::Waiting) {
            return;
        }
        let PublishRefused { sequence, expected, refusal, .. } = refused;
        if matches!(refusal.code, ErrorCode::ProducerExpired | ErrorCode::ProducerReplaced) {
            self.end(&mut state, refusal);
        } else {
            match state.outbox.refuse(sequence, expected, &refusal) {
                Refused::Stale => {}
                Refused::Again => self.put_frames(&mut state, &mut locked(&shared.link)),
                Refused::TopicGone(topic) => {
                    if let Some(gone) = locked(&shared.registry).topic(topic) {
                        gone.gone(topic);
                    }
                    self.put_frames(&mut state, &mut locked(&shared.link));
                }
                Refused::Later => {
                    state.phase = Phase::Waiting;
                    let wait = state.put_off(refusal);
                    self.later(shared, state.session, wait);
                }
                Refused::WhenReady => {
                    state.phase = Phase::Waiting;
                    state.put_off(refusal);
                }
                Refused::Resync => self.ask_later(&mut state, shared, refusal),
            }
        }
        let wakers = state.take_wakers();
        drop(state);
        shared.write();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Opens the producer anew after a wait, on the same connection.
    fn ask_later(self: &Arc<Self>, state: &mut State, shared: &Arc<Shared>, refusal: Refusal) {
        state.phase = Phase::Opening;
        state.outbox.lost();
        let wait = state.put_off(refusal);
        self.later(shared, state.session, wait);
    }

    fn later(self: &Arc<Self>, shared: &Arc<Shared>, session: Session, wait: Duration) {
        let (core, shared) = (self.clone(), shared.clone());
        let at = Instant::now() + wait;
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            core.again(&shared, session);
        });
    }

    /// The wait after a refusal is over.
    fn again(self: &Arc<Self>, shared: &Shared, session: Session) {
        let mut state = self.lock();
        if state.session != session {
            return;
        }
        match state.phase {
            Phase::Waiting => {
                state.phase = Phase::Open;
                self.put_frames(&mut state, &mut locked(&shared.link));
            }
            Phase::Opening => {
                // The node may still have it open under this handle.
                let close = CloseProducer { producer: self.handle };
                shared.send(session, &Request::CloseProducer(close));
                self.ask_open(&mut state, shared);
            }
            Phase::Open | Phase::Ended(_) => {}
        }
        drop(state);
        shared.write();
    }

    /// There is room again where there was none.
    pub(super) fn ready(&self, shared: &Shared, session: Session) {
        let mut state = self.lock();
        if state.session == session && matches!(state.phase, Phase::Waiting) {
            state.phase = Phase::Open;
            self.put_frames(&mut state, &mut locked(&shared.link));
        }
        drop(state);
        shared.write();
    }

    fn end(&self, state: &mut State, refusal: Refusal) {
        let unknown = state.outbox.in_flight_messages();
        let name = self.name.clone();
        state.phase = Phase::Ended(ClientError::ProducerEnded { name, unknown, refusal });
    }

    /// The client is closed.
    pub(super) fn client_closed(&self) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Ended(_)) {
            state.phase = Phase::Ended(ClientError::Closed);
        }
        let wakers = state.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Nobody has the producer any more.
    pub(super) fn close(&self, shared: &Shared) {
        locked(&shared.registry).producers.remove(&self.handle);
        let mut state = self.lock();
        self.put_frames(&mut state, &mut locked(&shared.link));
        let session = state.session;
        drop(state);
        shared.send(session, &Request::CloseProducer(CloseProducer { producer: self.handle }));
    }
}

impl State {
    pub(super) fn has_room(&self, options: &ProducerOptions) -> bool {
        !matches!(self.phase, Phase::Ended(_))
            && self.outbox.failure_count() < FAILURES_MAX
            && self.outbox.in_flight_messages() < options.in_flight_messages
            && (self.outbox.in_flight_bytes() < options.in_flight_bytes
                || self.outbox.in_flight_messages() == 0)
    }

    fn opened(&mut self, id: ProducerId, last: Sequence) -> Result<(), Mismatch> {
        if self.id.is_some() {
            return self.outbox.resumed(last);
        }
        self.id = Some(id);
        self.outbox.opened(last);
        Ok(())
    }

    /// Whether a producer that the node did not open may be opened a moment later. A limit is told to whoever opens a
    /// new one; one that was open before and has unconfirmed messages waits until there is room again.
    fn may_open_later(&self, code: ErrorCode) -> bool {
        match code {
            ErrorCode::StoreFull | ErrorCode::Draining | ErrorCode::NotMaster => true,
            ErrorCode::Limit => self.id.is_some(),
            _ => false,
        }
    }

    /// Notes why the node takes nothing. Answers how long to wait.
    fn put_off(&mut self, refusal: Refusal) -> Duration {
        let wait = after_refusal(self.put_off.as_ref().map(|before| before.wait));
        self.put_off = Some(PutOff { refusal, wait });
        by_chance(wait)
    }

    /// Takes the wakers of all whose wait is over.
    fn take_wakers(&mut self) -> Vec<Waker> {
        let mut wakers = std::mem::take(&mut self.other_waiters);
        if matches!(self.phase, Phase::Ended(_)) {
            wakers.extend(std::mem::take(&mut self.waiters).into_values());
            return wakers;
        }
        let decided = self.outbox.decided();
        while let Some(first) = self.waiters.first_entry() {
            if first.key().0 > decided {
                break;
            }
            wakers.push(first.remove());
        }
        wakers
    }
}

/// Notes a waker once.
pub(super) fn wait_with(waiters: &mut Vec<Waker>, waker: &Waker) {
    if !waiters.iter().any(|known| known.will_wake(waker)) {
        waiters.push(waker.clone());
    }
}

/// Waits until everything up to a ticket is decided.
pub(super) struct Decided<'a> {
    pub(super) core: &'a ProducerCore,
    pub(super) ticket: Ticket,
    pub(super) registered: Option<(u64, u64)>,
}

impl Future for Decided<'_> {
    type Output = Result<(), ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.core.lock();
        if state.outbox.decided() >= self.ticket.0 {
            return Poll::Ready(Ok(()));
        }
        if let Phase::Ended(error) = &state.phase {
            return Poll::Ready(Err(error.clone()));
        }
        let key = match self.registered {
            Some(key) => key,
            None => {
                state.last_waiter += 1;
                (self.ticket.0, state.last_waiter)
            }
        };
        state.waiters.insert(key, context.waker().clone());
        drop(state);
        self.registered = Some(key);
        Poll::Pending
    }
}

impl Drop for Decided<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.registered {
            self.core.lock().waiters.remove(&key);
        }
    }
}
