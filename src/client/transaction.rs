//! Transactions: messages and settlements that are collected here and carried out by the node together, or not at all.
//!
//! Nothing reaches the node before the commit, so a transaction that is dropped, or whose program dies, has never been.
//! What it would settle stays in flight to its consumer until then, and goes back where it is rolled back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Settler;
use super::delivery::DeliveryId;
use super::error::ClientError;
use super::link::Session;
use super::outbox::Settling;
use super::producer::{Producer, Ticket};
use super::settlements::merge;
use super::shared::{after, locked};
use super::topic::Topic;
use super::wait::{PUT_OFF_MAX, by_chance};
use crate::model::id::{OffsetRange, TopicId};
use crate::model::message::Message;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{Settlement, TransactSettle};

/// Messages to any topics and settlements of any consumers of one client, carried out together. Made by
/// [`Producer::transaction`].
///
/// Each delivery that it settles must still be with its consumer, under a lease that has not ended, when the node
/// carries it out; otherwise nothing of the transaction is. So of what is consumed in transactions the results are
/// stored exactly once, whatever dies at whatever moment, as long as they are results of nothing else.
///
/// Its messages have places among those of its producer: behind everything published before the commit. They and the
/// commit itself take [tickets](Ticket).
///
/// When it is dropped before [`commit`](Self::commit), or not committed in its time, it is rolled back: its messages are
/// forgotten, and its deliveries released.
#[derive(Debug)]
pub struct Transaction {
    producer: Producer,
    state: Arc<Mutex<State>>,
    within: Duration,
    timer: AbortHandle,
    when_refused: WhenRefused,
}

/// What becomes of the deliveries of a transaction that the node refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhenRefused {
    Release,
    /// They stay with their consumers, and whoever committed it settles them.
    Keep,
}

#[derive(Debug)]
enum State {
    /// It can be added to.
    Open(Contents),
    /// It is with the producer.
    Sent(Sent),
    Ended(Result<(), ClientError>),
}

/// What was added to a transaction.
#[derive(Debug, Default)]
struct Contents {
    parts: Vec<(Topic, u32)>,
    bytes: BytesMut,
    settled: Vec<Settled>,
}

/// A transaction whose fate is not known yet.
#[derive(Debug)]
struct Sent {
    ticket: Ticket,
    /// Its topics, by the numbers under which they were named.
    topics: Vec<(Topic, TopicId)>,
    /// What is to be released where it is refused.
    settled: Vec<Settled>,
}

impl Sent {
    /// It was refused: its topics are looked up again where that may be why.
    fn refused(&self, refusal: &Refusal) {
        if matches!(refusal.code, ErrorCode::UnknownTopic | ErrorCode::Deleted) {
            // Which of them it is does not stand in the refusal. The others are found again.
            self.topics.iter().for_each(|(topic, id)| topic.0.gone(*id));
        }
    }
}

/// A delivery that a transaction settles.
#[derive(Clone, Debug)]
struct Settled {
    settler: Settler,
    delivery: DeliveryId,
    settlement: Settlement,
}

/// Gives deliveries back, as far as they are still with their consumers.
fn release(settled: &[Settled]) {
    for Settled { settler, delivery, .. } in settled {
        // What an earlier connection delivered has gone back with it.
        if settler.session() == delivery.session {
            settler.release(*delivery);
        }
    }
}

impl Transaction {
    pub(super) fn begin(producer: Producer, within: Duration) -> Self {
        let state = Arc::new(Mutex::new(State::Open(Contents::default())));
        let (timed, deadline) = (Arc::clone(&state), after(Instant::now(), within));
        let timer = tokio::spawn(async move {
            tokio::time::sleep_until(deadline).await;
            end_open(&timed, Err(ClientError::TransactionTimedOut { within }), WhenRefused::Release);
        });
        let when_refused = WhenRefused::Release;
        Self { producer, state, within, timer: timer.abort_handle(), when_refused }
    }

    /// Leaves its deliveries with their consumers where the node refuses it.
    pub(super) fn keeping_deliveries(mut self) -> Self {
        self.when_refused = WhenRefused::Keep;
        self
    }

    /// Adds a message.
    ///
    /// # Errors
    /// Where the message passes a limit, or the transaction would with it; it stays as it was. Where it is over.
    pub fn send(&mut self, topic: &Topic, message: &Message) -> Result<(), ClientError> {
        let limits = self.producer.limits();
        message.check(&limits)?;
        self.add(|contents| {
            let (bytes, max) = (contents.bytes.len() + message.encoded_len(), limits.transaction_bytes_max);
            if bytes as u64 > max {
                return Err(ClientError::TransactionTooLarge { bytes: bytes as u64, max });
            }
            message.encode(&mut contents.bytes);
            match contents.parts.last_mut() {
                Some((last, count)) if last.is(topic) => *count += 1,
                _ => contents.parts.push((topic.clone(), 1)),
            }
            Ok(())
        })
    }

    /// Adds that a delivery is done: its group will never get the message again.
    ///
    /// # Errors
    /// Where the transaction is over.
    pub fn ack(&mut self, settler: &Settler, delivery: impl Into<DeliveryId>) -> Result<(), ClientError> {
        self.settle(settler, delivery.into(), Settlement::Ack)
    }

    /// Adds that a delivery failed: again after `delay`, or after the back-off of the group where that is `None`.
    /// Counts as an attempt. `reason` says in a few words what went wrong.
    ///
    /// # Errors
    /// Where the transaction is over.
    pub fn nack(
        &mut self,
        settler: &Settler,
        delivery: impl Into<DeliveryId>,
        delay: Option<Duration>,
        reason: Option<&str>,
    ) -> Result<(), ClientError> {
        self.settle(settler, delivery.into(), Settler::nack_settlement(delay, reason))
    }

    /// Adds that a delivery is not to be tried again: to the dead-letter topic. `reason` says in a few words what is
    /// wrong with it.
    ///
    /// # Errors
    /// Where the transaction is over.
    pub fn reject(
        &mut self,
        settler: &Settler,
        delivery: impl Into<DeliveryId>,
        reason: Option<&str>,
    ) -> Result<(), ClientError> {
        self.settle(settler, delivery.into(), Settler::reject_settlement(reason))
    }

    fn settle(
        &mut self,
        settler: &Settler,
        delivery: DeliveryId,
        settlement: Settlement,
    ) -> Result<(), ClientError> {
        self.add(|contents| {
            contents.settled.push(Settled { settler: settler.clone(), delivery, settlement });
            Ok(())
        })
    }

    fn add(&self, to: impl FnOnce(&mut Contents) -> Result<(), ClientError>) -> Result<(), ClientError> {
        match &mut *locked(&self.state) {
            State::Open(contents) => to(contents),
            State::Ended(Err(error)) => Err(error.clone()),
            State::Sent(_) | State::Ended(Ok(())) => Err(ClientError::TransactionOver),
        }
    }

    /// Has the node carry it out, and waits until it is known whether that was done: over a takeover, and over any
    /// number of reconnects.
    ///
    /// A transaction that settles something is not sent on another connection than the one that delivered it. Where the
    /// connection was lost, the next one tells whether it had been carried out.
    ///
    /// If the future is dropped, the transaction may be carried out all the same; called again, this goes on waiting.
    /// What was released or refused then goes back when its lease ends.
    ///
    /// Where there is no room, it ends and gives back after a second only: what comes again would be refused again.
    ///
    /// # Errors
    /// [`ClientError::TransactionAborted`] where nothing of it was carried out: its deliveries go back.
    /// [`ClientError::TransactionTimedOut`] where its time was over before. [`ClientError::Unconfirmed`] and
    /// [`ClientError::NoMaster`] where nothing moved within the timeout of the client: it is still being tried, and the
    /// call may be made again. [`ClientError::ProducerEnded`] where the producer has expired or was opened by somebody
    /// else: whether it was carried out cannot be told.
    pub async fn commit(&mut self) -> Result<(), ClientError> {
        let ticket = loop {
            match &*locked(&self.state) {
                State::Open(_) => {}
                State::Sent(sent) => break sent.ticket,
                State::Ended(result) => return result.clone(),
            }
            match self.topics().await {
                Ok(ids) => {
                    self.producer.room().await?;
                    self.hand_over(ids);
                }
                // Nothing of it has left.
                Err(ClientError::Refused(refusal)) => {
                    end_open(&self.state, Err(ClientError::TransactionAborted(refusal)), self.when_refused);
                }
                Err(error) => return Err(error),
            }
        };
        let result = match self.producer.waited_for(ticket).await {
            Ok(()) => match self.producer.take_refusal(ticket) {
                Some(refusal) => Err(ClientError::TransactionAborted(refusal)),
                None => Ok(()),
            },
            Err(error @ ClientError::ProducerEnded { .. }) => Err(error),
            // Still being tried.
            Err(error) => return Err(error),
        };
        let sent = std::mem::replace(&mut *locked(&self.state), State::Ended(result.clone()));
        if let (State::Sent(sent), Err(ClientError::TransactionAborted(refusal))) = (&sent, &result) {
            sent.refused(refusal);
            if matches!(refusal.code, ErrorCode::StoreFull | ErrorCode::TopicFull) {
                tokio::time::sleep(by_chance(PUT_OFF_MAX)).await;
            }
            if self.when_refused == WhenRefused::Release {
                release(&sent.settled);
            }
        }
        result
    }

    /// Rolls it back: its messages are forgotten, its deliveries released. The same as dropping it.
    pub fn rollback(self) {}

    /// The ids of its topics, in the order of its parts.
    async fn topics(&self) -> Result<Vec<TopicId>, ClientError> {
        let topics: Vec<Topic> = match &*locked(&self.state) {
            State::Open(contents) => contents.parts.iter().map(|(topic, _)| topic.clone()).collect(),
            State::Sent(_) | State::Ended(_) => Vec::new(),
        };
        let mut ids = Vec::with_capacity(topics.len());
        for topic in &topics {
            ids.push(self.producer.id_of(topic).await?);
        }
        Ok(ids)
    }

    /// Gives it to its producer, where it is still open.
    fn hand_over(&self, ids: Vec<TopicId>) {
        let mut state = locked(&self.state);
        let State::Open(contents) = &mut *state else { return };
        let Contents { parts, bytes, settled } = std::mem::take(contents);
        let settling = match settling(&self.producer, &settled) {
            Ok(settling) => settling,
            Err(why) => {
                let error = ClientError::TransactionAborted(Refusal::new(ErrorCode::TransactionAborted, why));
                *state = State::Ended(Err(error));
                drop(state);
                release(&settled);
                return;
            }
        };
        let numbered: Vec<(TopicId, u32)> =
            ids.iter().copied().zip(parts.iter().map(|(_, count)| *count)).collect();
        let topics = parts.into_iter().map(|(topic, _)| topic).zip(ids).collect();
        let ticket = self.producer.take_in_transaction(numbered, bytes.freeze(), settling);
        *state = State::Sent(Sent { ticket, topics, settled });
    }

    /// Its time.
    #[must_use]
    pub fn within(&self) -> Duration {
        self.within
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.timer.abort();
        end_open(&self.state, Err(ClientError::TransactionOver), WhenRefused::Release);
        if let State::Sent(sent) = &*locked(&self.state) {
            self.producer.release_claim(sent.ticket);
        }
    }
}

/// Ends a transaction that is still open, and gives back what it would have settled unless it is to be kept.
fn end_open(state: &Mutex<State>, result: Result<(), ClientError>, deliveries: WhenRefused) {
    let mut state = locked(state);
    if !matches!(*state, State::Open(_)) {
        return;
    }
    let ended = std::mem::replace(&mut *state, State::Ended(result));
    drop(state);
    if let State::Open(contents) = ended
        && deliveries == WhenRefused::Release
    {
        release(&contents.settled);
    }
}

/// What a transaction settles, as the node is told it; or why it cannot be carried out.
fn settling(producer: &Producer, settled: &[Settled]) -> Result<Settling, &'static str> {
    let mut settling = Settling::default();
    for Settled { settler, delivery, settlement } in settled {
        if !settler.belongs_with(producer) {
            return Err("a consumer of another client cannot take part in the transaction");
        }
        if !settler.has(*delivery) {
            return Err("a delivery was to be settled by another consumer than the one that got it");
        }
        let session: Session = delivery.session;
        if settling.session != 0 && settling.session != session {
            return Err("the connection was lost between two of its deliveries; they are delivered again");
        }
        settling.session = session;
        let range = OffsetRange::one(delivery.offset);
        let known = settling.settlements.iter_mut().rev().find(|known| {
            (known.consumer, known.topic, known.generation, &known.settlement)
                == (delivery.consumer, delivery.topic, delivery.generation, settlement)
        });
        match known {
            Some(known) => known.ranges.push(range),
            None => settling.settlements.push(TransactSettle {
                consumer: delivery.consumer,
                topic: delivery.topic,
                generation: delivery.generation,
                settlement: settlement.clone(),
                ranges: vec![range],
            }),
        }
    }
    settling.settlements.iter_mut().for_each(|settle| merge(&mut settle.ranges));
    Ok(settling)
}
