//! Publishing: the handle that applications use, and its state across connections.
//!
//! Publishing puts the encoded message into the producer's outbox and returns; nothing is allocated per message. The
//! frame leaves when it is full, when somebody waits for a confirm and nothing else is under way, or when the writer
//! task comes around, whichever is first. What the node has not confirmed is sent again after a reconnect, under the
//! same sequences, so that it is stored once.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::Alive;
use super::error::{ClientError, Failure};
use super::options::{FAILURES_MAX, ProducerOptions, TRANSACTION_WITHIN};
use super::outbox::Settling;
use super::producer_core::{Decided, Phase, ProducerCore, Urgency, wait_with};
use super::shared::{Shared, locked};
use super::topic::Topic;
use super::transaction::Transaction;
use crate::model::id::{Sequence, TopicId};
use crate::model::limits::Limits;
use crate::model::message::Message;
use crate::protocol::error::Refusal;

/// Number of a message within its producer, counted from 1 in the order of publishing.
///
/// Valid for the life of the producer, whatever happens to connections and to other messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Publishes messages. Made by [`Client::producer`](super::Client::producer); clones are the same producer.
///
/// Messages of one producer are stored in the order in which they were published. When the last clone is dropped
/// the producer is closed: what is not confirmed then may or may not be stored, so [`flush`](Self::flush) first.
#[derive(Clone, Debug)]
pub struct Producer(Arc<Open>);

/// Closes the producer when nobody has it any more.
#[derive(Debug)]
struct Open {
    alive: Alive,
    core: Arc<ProducerCore>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.core.close(&self.alive);
    }
}

impl Producer {
    /// Registers a producer and waits until it is open.
    pub(super) async fn open(alive: Alive, options: ProducerOptions) -> Result<Self, ClientError> {
        options.check()?;
        let name = match &options.name {
            Some(name) => crate::model::name::Name::new(name)?.as_str().to_owned(),
            None => uuid::Uuid::now_v7().to_string(),
        };
        let core = {
            let mut registry = locked(&alive.registry);
            let handle = registry.next_handle();
            let core = Arc::new(ProducerCore::new(handle, name, options));
            registry.producers.insert(handle, core.clone());
            core
        };
        core.reopen(&alive, alive.session());
        let producer = Self(Arc::new(Open { alive, core }));
        let opened = timeout(producer.shared().options.timeout, producer.opened());
        tokio::select! {
            opened = opened => match opened {
                Ok(result) => result?,
                Err(_) => return Err(producer.shared().no_answer()),
            },
            error = producer.shared().given_up() => return Err(error),
        }
        Ok(producer)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core().name
    }

    /// Publishes a message and waits until it is confirmed: until then it is durable.
    ///
    /// If the future is dropped, the message may or may not be stored: it stays in the producer and is still sent, and
    /// a refusal of it is reported to the next call that reports refusals.
    ///
    /// # Errors
    /// As [`publish`](Self::publish), and where the message was refused or is not confirmed within the timeout of
    /// the client. Its refusal is reported here and nowhere else; those of other messages are not.
    pub async fn send(&self, topic: &Topic, message: &Message) -> Result<(), ClientError> {
        let ticket = self.take_in(topic, message, Intake::Send).await?;
        let claim = Claim { core: self.core(), ticket };
        self.waited_for(ticket).await?;
        match claim.take() {
            Some(failure) => Err(ClientError::MessagesRefused(vec![failure])),
            None => Ok(()),
        }
    }

    /// Publishes a message; waits only where as much is in flight as may be.
    ///
    /// If the future is dropped, the message is published or not at all known to the producer.
    ///
    /// # Errors
    /// Where the message passes a limit, no room comes free within the timeout of the client, the producer has
    /// ended, or so many refusals have not been asked for that they are reported here.
    pub async fn publish(&self, topic: &Topic, message: &Message) -> Result<Ticket, ClientError> {
        self.take_in(topic, message, Intake::Publish).await
    }

    /// Publishes messages in their order; answers the ticket of the last one.
    ///
    /// If the future is dropped, some messages from the beginning are published and the others are not:
    /// [`last_ticket`](Self::last_ticket) says how many.
    ///
    /// # Errors
    /// As [`publish`](Self::publish), with the messages before the one in question published.
    pub async fn send_batch<'a>(
        &self,
        topic: &Topic,
        messages: impl IntoIterator<Item = &'a Message>,
    ) -> Result<Ticket, ClientError> {
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let id = self.id_of(topic).await?;
            self.room().await?;
            let mut full = false;
            let mut checked = Ok(());
            let mut state = self.core().lock();
            while let Some(message) = messages.peek() {
                if !state.has_room(&self.core().options) {
                    break;
                }
                checked = message.check(&state.limits);
                if checked.is_err() {
                    break;
                }
                full |= state.outbox.push(id, message).1;
                messages.next();
            }
            // Those before one that passes a limit are published and must not wait for another call.
            self.core().pass_on(self.shared(), state, if full { Urgency::Now } else { Urgency::Soon });
            checked?;
        }
        Ok(self.last_ticket())
    }

    /// Ticket of the last message published; 0 before the first.
    #[must_use]
    pub fn last_ticket(&self) -> Ticket {
        Ticket(self.core().lock().outbox.last_ticket())
    }

    /// Waits until everything up to `ticket` is decided: stored and durable, or refused for good.
    ///
    /// If the future is dropped, nothing is lost; refusals are reported to the next call.
    ///
    /// # Errors
    /// [`ClientError::MessagesRefused`] with all refused messages up to `ticket` that were not reported yet, but for
    /// those that a [`send`](Self::send) waits for; everything else up to it is stored.
    /// [`ClientError::Unconfirmed`] and [`ClientError::NoMaster`] where nothing moved within the timeout of the client:
    /// messages are still being tried, and the call may be made again.
    pub async fn confirmed(&self, ticket: Ticket) -> Result<(), ClientError> {
        self.decided(ticket).await?;
        let failures = self.core().lock().outbox.take_failures(ticket.0);
        if failures.is_empty() { Ok(()) } else { Err(ClientError::MessagesRefused(failures)) }
    }

    /// Waits until everything published so far is decided. The same as [`confirmed`](Self::confirmed) with the last
    /// ticket.
    ///
    /// # Errors
    /// As [`confirmed`](Self::confirmed).
    pub async fn flush(&self) -> Result<(), ClientError> {
        self.confirmed(self.last_ticket()).await
    }

    /// Everything up to this ticket is decided: stored, or refused.
    #[must_use]
    pub fn confirmed_up_to(&self) -> Ticket {
        Ticket(self.core().lock().outbox.decided())
    }

    /// Sequence of its last message that is known to be stored: right after opening, where a producer of this name
    /// ended before.
    #[must_use]
    pub fn last_stored(&self) -> Sequence {
        self.core().lock().outbox.last_stored()
    }

    /// Takes the refusals that were not reported yet, but for those that a [`send`](Self::send) waits for.
    #[must_use]
    pub fn failures(&self) -> Vec<Failure> {
        self.core().lock().outbox.take_failures(u64::MAX)
    }

    /// Begins a transaction of at most [`TRANSACTION_WITHIN`] until its commit. Others of the same producer may be
    /// open at the same time.
    ///
    /// # Panics
    /// Where there is no tokio runtime.
    #[must_use]
    pub fn transaction(&self) -> Transaction {
        self.transaction_within(TRANSACTION_WITHIN)
    }

    /// Begins a transaction that is rolled back by itself where it is not committed within this time. More than the
    /// lease of what it settles makes no sense, unless that is extended.
    ///
    /// # Panics
    /// Where there is no tokio runtime.
    #[must_use]
    pub fn transaction_within(&self, within: Duration) -> Transaction {
        Transaction::begin(self.clone(), within)
    }

    /// The limits of the node.
    pub(super) fn limits(&self) -> Limits {
        self.core().lock().limits.clone()
    }

    /// Takes a transaction in. Answers its ticket, which is claimed.
    pub(super) fn take_in_transaction(
        &self,
        parts: Vec<(TopicId, u32)>,
        bytes: Bytes,
        settling: Settling,
    ) -> Ticket {
        let mut state = self.core().lock();
        let ticket = state.outbox.push_transaction(parts, bytes, settling);
        self.core().pass_on(self.shared(), state, Urgency::Now);
        Ticket(ticket)
    }

    /// Why a claimed ticket was refused, if it was. Ends the claim.
    pub(super) fn take_refusal(&self, ticket: Ticket) -> Option<Refusal> {
        let failure = Claim { core: self.core(), ticket }.take();
        failure.map(|failure| failure.refusal)
    }

    /// Nobody waits for this ticket alone any more.
    pub(super) fn release_claim(&self, ticket: Ticket) {
        drop(Claim { core: self.core(), ticket });
    }

    /// Whether it is a producer of this client.
    pub(super) fn is_of(&self, alive: &Alive) -> bool {
        std::ptr::eq::<Shared>(&*self.0.alive, &**alive)
    }

    fn core(&self) -> &Arc<ProducerCore> {
        &self.0.core
    }

    fn shared(&self) -> &Shared {
        &self.0.alive
    }

    async fn take_in(&self, topic: &Topic, message: &Message, intake: Intake) -> Result<Ticket, ClientError> {
        let id = match topic.id() {
            Some(id) => id,
            None => self.id_of(topic).await?,
        };
        loop {
            if let Some(ticket) = self.try_take_in(id, message, intake)? {
                return Ok(ticket);
            }
            self.room().await?;
        }
    }

    /// Takes a message in if there is room.
    fn try_take_in(
        &self,
        topic: TopicId,
        message: &Message,
        intake: Intake,
    ) -> Result<Option<Ticket>, ClientError> {
        let mut state = self.core().lock();
        if !state.has_room(&self.core().options) {
            return Ok(None);
        }
        message.check(&state.limits)?;
        let (ticket, full) = state.outbox.push(topic, message);
        let urgency = match intake {
            Intake::Publish => Urgency::Soon,
            Intake::Send => {
                state.outbox.claim(ticket);
                Urgency::Shared
            }
        };
        self.core().pass_on(self.shared(), state, if full { Urgency::Now } else { urgency });
        Ok(Some(Ticket(ticket)))
    }

    pub(super) async fn id_of(&self, topic: &Topic) -> Result<TopicId, ClientError> {
        if let Some(id) = topic.id() {
            return Ok(id);
        }
        let id = self.shared().find_topic(topic.full_name()).await?;
        topic.found(id);
        locked(&self.shared().registry).remember_topic(id, &topic.0);
        Ok(id)
    }

    /// Waits until a message may be published.
    pub(super) async fn room(&self) -> Result<(), ClientError> {
        {
            let state = self.core().lock();
            if state.has_room(&self.core().options) {
                return Ok(());
            }
            self.core().pass_on(self.shared(), state, Urgency::Now);
        }
        let core = self.core();
        self.patiently(|| {
            poll_fn(|context| {
                let mut state = core.lock();
                if let Phase::Ended(error) = &state.phase {
                    return Poll::Ready(Err(error.clone()));
                }
                if state.outbox.failure_count() >= FAILURES_MAX {
                    let failures = state.outbox.take_failures(u64::MAX);
                    return Poll::Ready(Err(ClientError::MessagesRefused(failures)));
                }
                if state.has_room(&core.options) {
                    return Poll::Ready(Ok(()));
                }
                wait_with(&mut state.other_waiters, context.waker());
                Poll::Pending
            })
        })
        .await
    }

    /// Waits until the producer is open on some connection.
    async fn opened(&self) -> Result<(), ClientError> {
        poll_fn(|context| {
            let mut state = self.core().lock();
            match &state.phase {
                Phase::Ended(error) => Poll::Ready(Err(error.clone())),
                Phase::Open | Phase::Waiting => Poll::Ready(Ok(())),
                Phase::Opening => {
                    wait_with(&mut state.other_waiters, context.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Sends what there is and waits until everything up to `ticket` is decided.
    async fn decided(&self, ticket: Ticket) -> Result<(), ClientError> {
        {
            let state = self.core().lock();
            if state.outbox.decided() >= ticket.0 {
                return Ok(());
            }
            self.core().pass_on(self.shared(), state, Urgency::Now);
        }
        self.waited_for(ticket).await
    }

    /// Waits until everything up to `ticket` is decided; it leaves by itself.
    pub(super) async fn waited_for(&self, ticket: Ticket) -> Result<(), ClientError> {
        self.patiently(|| Decided { core: self.core(), ticket, registered: None }).await
    }

    /// Waits for `make()`, as long as the producer gets on in between.
    async fn patiently<F: Future<Output = Result<(), ClientError>>>(
        &self,
        make: impl Fn() -> F,
    ) -> Result<(), ClientError> {
        loop {
            let before = self.core().lock().outbox.decided();
            if let Ok(result) = timeout(self.shared().options.timeout, make()).await {
                return result;
            }
            let state = self.core().lock();
            if state.outbox.decided() == before {
                let refusal = state.put_off.as_ref().map(|put_off| put_off.refusal.clone());
                let last = Ticket(state.outbox.last_ticket());
                drop(state);
                return Err(self.stuck(Ticket(before + 1), last, refusal));
            }
        }
    }

    fn stuck(&self, first: Ticket, last: Ticket, refusal: Option<Refusal>) -> ClientError {
        let connection = self.shared().connection.borrow();
        let within = self.shared().options.timeout;
        match connection.session {
            _ if connection.closed => ClientError::Closed,
            0 if connection.since.elapsed() >= within => self.shared().no_master(&connection),
            _ => ClientError::Unconfirmed { first, last, within, refusal },
        }
    }
}

/// What becomes of a message that is taken in.
#[derive(Clone, Copy, Debug)]
enum Intake {
    /// It leaves with others; whoever asks for refusals learns of its own.
    Publish,
    /// Somebody waits for it alone, and makes a [`Claim`] of its ticket.
    Send,
}

/// The right to learn of the refusal of one message.
struct Claim<'a> {
    core: &'a ProducerCore,
    ticket: Ticket,
}

impl Claim<'_> {
    /// The refusal, where the message was refused.
    fn take(&self) -> Option<Failure> {
        self.core.lock().outbox.take_claimed(self.ticket.0)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.core.lock().outbox.release(self.ticket.0);
    }
}
