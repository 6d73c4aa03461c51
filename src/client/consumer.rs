//! Consuming: the handles that applications use, and the state of a subscription across connections.
//!
//! The task that reads the socket unpacks a whole frame and hands it over under one lock; `next` takes everything
//! that has arrived at once, so that neither side pays per message for the other.
//!
//! Delivery is at least once. When the connection is lost, the node takes back whatever was not settled and delivers
//! it again. The client therefore drops what it had not handed to the application, forgets settlements that were not
//! sent, and does not send those of a delivery of an earlier connection: sent on the new one, they could settle a
//! hand-over to somebody else. All of them are reported as lost.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Alive;
use super::consumer_core::{ConsumerCore, Phase};
use super::delivery::{Delivery, DeliveryId};
use super::error::ClientError;
use super::link::{Session, Written};
use super::options::{ConsumerOptions, OUTPUT_BYTES_MAX, SETTLE_DELAY};
use super::producer::Producer;
use super::settlements::{up_to, weight};
use super::shared::{Repeat, after, locked, unexpected};
use super::wait::{RETRY_WAIT, by_chance};
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::limits::REASON_BYTES_MAX;
use crate::model::name::Name;
use crate::model::pattern::is_pattern;
use crate::model::settings::GroupSettings;
use crate::protocol::error::ErrorCode;
use crate::protocol::request::{Pull, Request, Settlement, Unsubscribe, Window};
use crate::protocol::response::{Activity, Reply};

/// What a consumer has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Id of the group.
    pub group: GroupId,
    /// Id of the topic.
    pub topic: TopicId,
    /// Settings of the group, as they are.
    pub settings: GroupSettings,
}

/// Gets the messages of a group as they come. Made by [`Client::consumer`](super::Client::consumer).
///
/// What it has been handed it settles, through the methods of its [`Settler`], to which it dereferences. When it is
/// dropped, unsettled deliveries go back to the group at once and uncounted.
#[derive(Debug)]
pub struct Consumer {
    member: Member,
    subscription: Subscription,
    /// What has been taken over from the reader and not been handed out.
    local: VecDeque<Delivery>,
    /// Recalls up to this one have been seen to.
    recalls_seen: u32,
}

/// Keeps the subscription of a consumer, from before the node has answered; leaves the group when dropped.
#[derive(Debug)]
struct Member {
    settler: Settler,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.settler.core.close(&self.settler.alive);
    }
}

impl std::ops::Deref for Member {
    type Target = Settler;

    fn deref(&self) -> &Settler {
        &self.settler
    }
}

/// Gets messages of a group when it asks for them. Made by
/// [`Client::pull_consumer`](super::Client::pull_consumer).
#[derive(Debug)]
pub struct PullConsumer {
    consumer: Consumer,
}

/// Settles deliveries of one consumer, from any task. Clones belong to the same consumer.
///
/// Settling does not wait: settlements are collected for up to a millisecond and sent together.
/// [`flush`](Self::flush) waits until they are durable. A delivery of another consumer is not settled.
#[derive(Clone, Debug)]
pub struct Settler {
    alive: Alive,
    core: Arc<ConsumerCore>,
}

impl Consumer {
    pub(super) async fn open(alive: Alive, options: ConsumerOptions) -> Result<Self, ClientError> {
        options.check()?;
        let window = Window { messages: options.prefetch, bytes: options.prefetch_bytes };
        Self::open_with(alive, options, window).await
    }

    async fn open_with(alive: Alive, options: ConsumerOptions, window: Window) -> Result<Self, ClientError> {
        if is_pattern(&options.topic) { Name::pattern(&options.topic) } else { Name::new(&options.topic) }?;
        Name::new(&options.group)?;
        let core = {
            let mut registry = locked(&alive.registry);
            let handle = registry.next_handle();
            let core = Arc::new(ConsumerCore::new(handle, options, window));
            registry.consumers.insert(handle, core.clone());
            core
        };
        core.subscribe(&alive, alive.session());
        let member = Member { settler: Settler { alive, core } };
        let opened = async {
            tokio::select! {
                opened = member.core.active() => opened,
                error = member.alive.given_up() => Err(error),
            }
        };
        let opened = timeout(member.alive.options.timeout, opened).await;
        let subscription = opened.unwrap_or_else(|_| Err(member.alive.no_answer()))?;
        Ok(Self { member, subscription, local: VecDeque::new(), recalls_seen: 0 })
    }

    /// What it has joined.
    #[must_use]
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// Name of the topic, or the pattern, that it has subscribed.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.member.core.options.topic
    }

    /// Name of the topic that a delivery is from: that of the subscription, or one that its pattern stands for. It is
    /// kept for a while when the topic is deleted; that of the subscription is the answer where it is known no more.
    #[must_use]
    pub fn topic_of(&self, delivery: impl Into<DeliveryId>) -> Arc<str> {
        let state = self.member.core.lock();
        let named = state.topics.get(delivery.into().topic).cloned();
        named.unwrap_or_else(|| self.topic().into())
    }

    /// Name of the group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.member.core.options.group
    }

    /// A handle that settles the deliveries of this consumer from other tasks.
    #[must_use]
    pub fn settler(&self) -> Settler {
        self.member.settler.clone()
    }

    /// The next delivery; `None` when the client was closed. Sends waiting settlements before it waits.
    ///
    /// If the future is dropped, no delivery is lost.
    ///
    /// # Errors
    /// Where the consumer was ended by the node, or there was no master for the timeout of the client; after the
    /// latter the call may be made again.
    pub async fn next(&mut self) -> Result<Option<Delivery>, ClientError> {
        loop {
            if let Some(delivery) = self.try_next() {
                return Ok(Some(delivery));
            }
            match self.arrival().await {
                Ok(()) => {}
                Err(ClientError::Closed) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next deliveries, at most `max` of them and as many as are there; waits for a first one. None when the
    /// client was closed. Sends waiting settlements before it waits.
    ///
    /// If the future is dropped, no delivery is lost.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<Delivery>, ClientError> {
        let mut batch = Vec::new();
        if max == 0 {
            return Ok(batch);
        }
        let Some(first) = self.next().await? else {
            return Ok(batch);
        };
        batch.push(first);
        self.take_into(&mut batch, max);
        Ok(batch)
    }

    /// The next delivery, if one has arrived.
    pub fn try_next(&mut self) -> Option<Delivery> {
        loop {
            let current = self.member.core.current.load(Ordering::Acquire);
            self.drop_recalled();
            while let Some(delivery) = self.local.pop_front() {
                if delivery.id.session == current {
                    return Some(delivery);
                }
            }
            let mut state = self.member.core.lock();
            if state.arrived.is_empty() {
                return None;
            }
            std::mem::swap(&mut state.arrived, &mut self.local);
        }
    }

    /// Ends the consumer: sends waiting settlements, and gives unsettled deliveries back, uncounted.
    ///
    /// If the future is dropped, the consumer ends all the same.
    ///
    /// # Errors
    /// Where settlements were lost, or the node did not answer.
    pub async fn close(self) -> Result<(), ClientError> {
        let flushed = self.member.flush().await.map(|_| ());
        let (alive, core) = (&self.member.alive, &self.member.core);
        let Some(session) = core.leave(alive) else { return flushed };
        let make = |request| Request::Unsubscribe(Unsubscribe { request, consumer: core.handle });
        match alive.call_on(session, alive.deadline(), make).await {
            // A connection that is gone has taken the consumer with it.
            Ok(_) | Err(ClientError::ConnectionLost) => flushed,
            Err(ClientError::Refused(refusal)) if refusal.code == ErrorCode::UnknownHandle => flushed,
            Err(error) => flushed.and(Err(error)),
        }
    }

    /// Drops what was taken over from the reader and is recalled.
    fn drop_recalled(&mut self) {
        let core = &self.member.core;
        let recalls = core.recalls.load(Ordering::Acquire);
        if recalls != self.recalls_seen {
            self.recalls_seen = recalls;
            let state = core.lock();
            self.local.retain(|delivery| state.holds(delivery.id));
        }
    }

    fn take_into(&mut self, batch: &mut Vec<Delivery>, max: usize) {
        while batch.len() < max
            && let Some(delivery) = self.try_next()
        {
            batch.push(delivery);
        }
    }

    /// Waits until something has arrived.
    async fn arrival(&self) -> Result<(), ClientError> {
        let core = &self.member.core;
        core.send_settlements(&self.member.alive);
        let arrived = poll_fn(|context| {
            let mut state = core.lock();
            if !state.arrived.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Phase::Ended(error) = &state.phase {
                return Poll::Ready(Err(error.clone()));
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        });
        tokio::select! {
            biased;
            arrived = arrived => arrived,
            error = self.member.alive.given_up() => Err(error),
        }
    }
}

impl std::ops::Deref for Consumer {
    type Target = Settler;

    fn deref(&self) -> &Settler {
        &self.member
    }
}

impl PullConsumer {
    pub(super) async fn open(alive: Alive, options: ConsumerOptions) -> Result<Self, ClientError> {
        let window = Window { messages: 0, bytes: 0 };
        Ok(Self { consumer: Consumer::open_with(alive, options, window).await? })
    }

    /// What it has joined.
    #[must_use]
    pub fn subscription(&self) -> &Subscription {
        &self.consumer.subscription
    }

    /// Asks for at most `max` messages of together at most `bytes` encoded bytes (one larger message comes alone);
    /// waits at most `wait` for a first one. Answers none where none came in that time. Goes on over a reconnect.
    ///
    /// If the future is dropped, messages that the node had already sent for it are handed out by the next call.
    ///
    /// # Errors
    /// Where the consumer was ended by the node, or there is no master.
    pub async fn pull(&mut self, max: u32, bytes: u64, wait: Duration) -> Result<Vec<Delivery>, ClientError> {
        let until = after(Instant::now(), wait);
        let mut batch = Vec::new();
        if max == 0 {
            return Ok(batch);
        }
        loop {
            self.consumer.take_into(&mut batch, max as usize);
            if !batch.is_empty() {
                return Ok(batch);
            }
            let settler = &self.consumer.member;
            settler.core.send_settlements(&settler.alive);
            tokio::select! {
                active = settler.core.active() => { active?; }
                error = settler.alive.given_up() => return Err(error),
            }
            let left = until.saturating_duration_since(Instant::now());
            let make = |request| {
                let wait_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                let window = Window { messages: max, bytes };
                settler.core.lock().pull = request;
                Request::Pull(Pull { request, consumer: settler.core.handle, window, wait_ms })
            };
            let deadline = after(after(Instant::now(), left), settler.alive.options.timeout);
            let answer = tokio::select! {
                answer = settler.alive.call_until(deadline, Repeat::Never, make) => answer,
                () = settler.core.late_arrival() => continue,
            };
            let count = match answer {
                Ok(Reply::Pulled { count }) => count,
                Ok(other) => return Err(unexpected(&other)),
                Err(ClientError::ConnectionLost) => continue,
                Err(ClientError::Refused(refusal)) if refusal.code == ErrorCode::UnknownHandle => {
                    // The subscription was ended or is not renewed yet: its own state says which.
                    tokio::time::sleep(by_chance(RETRY_WAIT)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.consumer.take_into(&mut batch, max as usize);
            if !batch.is_empty() || count == 0 || Instant::now() >= until {
                return Ok(batch);
            }
        }
    }

    /// Name of the topic that a delivery is from; see [`Consumer::topic_of`].
    #[must_use]
    pub fn topic_of(&self, delivery: impl Into<DeliveryId>) -> Arc<str> {
        self.consumer.topic_of(delivery)
    }

    /// A handle that settles the deliveries of this consumer from other tasks.
    #[must_use]
    pub fn settler(&self) -> Settler {
        self.consumer.settler()
    }

    /// Ends the consumer; see [`Consumer::close`].
    ///
    /// # Errors
    /// As [`Consumer::close`].
    pub async fn close(self) -> Result<(), ClientError> {
        self.consumer.close().await
    }
}

impl std::ops::Deref for PullConsumer {
    type Target = Settler;

    fn deref(&self) -> &Settler {
        &self.consumer.member
    }
}

impl Settler {
    /// How long the consumer has been in its group without a break; `None` while it has no master or joins again.
    /// Silence means that there are no messages only as far as this goes back.
    #[must_use]
    pub fn subscribed_for(&self) -> Option<Duration> {
        match self.core.lock().phase {
            Phase::Active { since } => Some(since.elapsed()),
            Phase::Opening | Phase::Ended(_) => None,
        }
    }

    /// Whether the consumer gets messages, where its group is exclusive: [`Activity::Active`], or
    /// [`Activity::Waiting`] for the active one to go. `None` until the node has said so, while there is no
    /// connection, and in a group that never was exclusive.
    ///
    /// It says what was so when the node sent it. After a takeover two consumers may think that they are active for a
    /// moment, and an active one whose connection is dead does not know that yet.
    #[must_use]
    pub fn activity(&self) -> Option<Activity> {
        *self.core.activity.borrow()
    }

    /// Waits until [`activity`](Self::activity) is another than `known`, and answers it.
    ///
    /// # Errors
    /// Where the consumer has ended.
    pub async fn activity_after(&self, known: Option<Activity>) -> Result<Option<Activity>, ClientError> {
        let mut told = self.core.activity.subscribe();
        loop {
            let activity = *told.borrow_and_update();
            if let Phase::Ended(error) = &self.core.lock().phase {
                return Err(error.clone());
            }
            if activity != known {
                return Ok(activity);
            }
            if told.changed().await.is_err() {
                return Err(ClientError::Closed);
            }
        }
    }

    /// Done: the group never gets the message again.
    pub fn ack(&self, delivery: impl Into<DeliveryId>) {
        self.settle(delivery.into(), Settlement::Ack, OffsetRange::one);
    }

    /// Done with this delivery and every earlier one (lower offset) that is with this consumer.
    pub fn ack_up_to(&self, delivery: impl Into<DeliveryId>) {
        self.settle(delivery.into(), Settlement::Ack, up_to);
    }

    /// Failed: again after `delay`, or after the back-off of the group where that is `None`. Counts as an attempt.
    pub fn nack(&self, delivery: impl Into<DeliveryId>, delay: Option<Duration>) {
        self.settle(delivery.into(), Self::nack_settlement(delay, None), OffsetRange::one);
    }

    /// As [`nack`](Self::nack), with a few words on what went wrong: who gets the message next sees them, and they
    /// stand in its dead letter. Of a long text the beginning is kept.
    pub fn nack_because(&self, delivery: impl Into<DeliveryId>, delay: Option<Duration>, reason: &str) {
        self.settle(delivery.into(), Self::nack_settlement(delay, Some(reason)), OffsetRange::one);
    }

    /// Not touched: again at once, for whoever has credit. Does not count as an attempt.
    pub fn release(&self, delivery: impl Into<DeliveryId>) {
        self.settle(delivery.into(), Settlement::Release, OffsetRange::one);
    }

    /// Not to be tried again: to the dead-letter topic.
    pub fn reject(&self, delivery: impl Into<DeliveryId>) {
        self.settle(delivery.into(), Self::reject_settlement(None), OffsetRange::one);
    }

    /// As [`reject`](Self::reject), with a few words on what is wrong with it, as for
    /// [`nack_because`](Self::nack_because).
    pub fn reject_because(&self, delivery: impl Into<DeliveryId>, reason: &str) {
        self.settle(delivery.into(), Self::reject_settlement(Some(reason)), OffsetRange::one);
    }

    /// Still at work: the lease of the delivery starts anew.
    pub fn extend(&self, delivery: impl Into<DeliveryId>) {
        self.settle(delivery.into(), Settlement::Extend, OffsetRange::one);
    }

    /// Sends what waits and waits until everything settled before is durable. Answers how many deliveries the node
    /// has settled since this was last asked; a delivery whose lease had run out is not among them.
    ///
    /// If the future is dropped, the settlements are still sent.
    ///
    /// # Errors
    /// [`ClientError::SettlementsLost`] where, since this was last asked, the connection was lost before settlements
    /// were answered, or deliveries of an earlier connection were settled: their messages come again unless the
    /// settlements were stored.
    pub async fn flush(&self) -> Result<u64, ClientError> {
        self.core.send_settlements(&self.alive);
        let target = self.core.lock().frames_sent;
        let answered = async {
            loop {
                let mut notified = std::pin::pin!(self.core.settled.notified());
                notified.as_mut().enable();
                if self.core.lock().frames_answered >= target {
                    return;
                }
                notified.await;
            }
        };
        if timeout(self.alive.options.timeout, answered).await.is_err() {
            return Err(self.alive.no_answer());
        }
        let mut state = self.core.lock();
        if state.lost > 0 {
            return Err(ClientError::SettlementsLost { count: std::mem::take(&mut state.lost) });
        }
        Ok(std::mem::take(&mut state.confirmed))
    }

    /// A nack, as the node is told it.
    pub(super) fn nack_settlement(delay: Option<Duration>, reason: Option<&str>) -> Settlement {
        let delay_ms = delay.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        Settlement::Nack { delay_ms, reason: reason.map(shortened) }
    }

    /// A reject, as the node is told it.
    pub(super) fn reject_settlement(reason: Option<&str>) -> Settlement {
        Settlement::Reject { reason: reason.map(shortened) }
    }

    /// The connection on which it is subscribed; 0 for none.
    pub(super) fn session(&self) -> Session {
        self.core.current.load(Ordering::Acquire)
    }

    /// Whether it got this delivery.
    pub(super) fn has(&self, delivery: DeliveryId) -> bool {
        delivery.consumer == self.core.handle
    }

    /// Whether consumer and producer are of one client.
    pub(super) fn belongs_with(&self, producer: &Producer) -> bool {
        producer.is_of(&self.alive)
    }

    fn settle(&self, delivery: DeliveryId, settlement: Settlement, range: impl Fn(Offset) -> OffsetRange) {
        let core = &self.core;
        let mut state = core.lock();
        if delivery.consumer != core.handle {
            return;
        }
        if !matches!(state.phase, Phase::Active { .. }) || delivery.session != state.session {
            state.lost += weight(&settlement);
            return;
        }
        state.settlements.add((delivery.topic, delivery.generation), settlement, range(delivery.offset));
        if state.settlements.count() >= state.merge_at {
            let mut link = locked(&self.alive.link);
            if link.queued_bytes() > OUTPUT_BYTES_MAX {
                drop(link);
                state.settlements.merge();
                state.merge_at = core.settle_batch.max(state.settlements.count().saturating_mul(2));
            } else {
                core.put_settlements(&self.alive, &mut state, &mut link);
                drop(state);
                if link.write() == Written::Blocked {
                    self.alive.writer.notify_one();
                }
                return;
            }
        }
        if !state.with_writer {
            state.with_writer = true;
            let mut link = locked(&self.alive.link);
            link.consumers.push(core.clone());
            if link.settle_at.is_none() {
                link.settle_at = Some(Instant::now() + SETTLE_DELAY);
                self.alive.writer.notify_one();
            }
        }
    }
}

/// The beginning of what is said about a message, as much as a settlement may carry.
fn shortened(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned()
}

impl From<&Delivery> for DeliveryId {
    fn from(delivery: &Delivery) -> Self {
        delivery.id
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::CloseWhenDropped;
    use super::super::options::ClientOptions;
    use super::super::shared::Shared;
    use super::*;
    use crate::client::outbox::Head;
    use crate::model::id::Sequence;
    use crate::protocol::request::Publish;

    /// An application that settles without end while the node does not read must not fill the memory.
    #[test]
    fn settlements_are_held_back_and_merged_while_the_socket_takes_nothing() {
        let alive = Alive(Arc::new(CloseWhenDropped(Arc::new(Shared::new(ClientOptions::default())))));
        let window = Window { messages: 10, bytes: 1 << 20 };
        let core = Arc::new(ConsumerCore::new(1, ConsumerOptions::new("t", "g"), window));
        {
            let mut state = core.lock();
            state.phase = Phase::Active { since: Instant::now() };
            state.session = 1;
            let mut link = locked(&alive.link);
            link.session = 1;
            let head = Publish { producer: 1, sequence: Sequence(1), parts: Vec::new() };
            link.put_messages(&Head::Publish(head), Bytes::from(vec![0; OUTPUT_BYTES_MAX]));
        }
        let queued_bytes = || locked(&alive.link).queued_bytes();
        let before = queued_bytes();
        let settler = Settler { alive: alive.clone(), core };
        for offset in (0..1000).cycle().take(20_000) {
            let topic = TopicId(1);
            settler.extend(DeliveryId {
                consumer: 1,
                session: 1,
                topic,
                generation: 0,
                offset: Offset(offset),
            });
        }
        assert_eq!(queued_bytes(), before);
        assert!(settler.core.lock().settlements.count() <= 1000);
    }
}
