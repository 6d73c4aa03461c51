//! A subscription as the tasks of the client know it: what has arrived, what is to be settled, and on which
//! connection it is valid.
//!
//! Whatever belongs to one connection goes with it: deliveries, waiting settlements, and answers to settlements.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::consumer::Subscription;
use super::delivery::{DeliveredTo, Delivery, DeliveryId, delivery, unpack};
use super::error::ClientError;
use super::link::{Link, Session, Written};
use super::options::{ConsumerOptions, SETTLE_BATCH_MAX};
use super::settlements::{Settlements, Taken};
use super::shared::{Shared, Waiting, locked, unexpected};
use super::topic_names::TopicNames;
use super::wait::{after_refusal, by_chance};
use crate::model::id::TopicId;
use crate::model::message::MessageError;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{Handle, Request, RequestId, Settle, Subscribe, Unsubscribe, Window};
use crate::protocol::response::{Activity, ConsumerRecalled, ConsumerTopic, Deliver, Reply};

/// Ranges in one settle frame.
const SETTLE_RANGES_MAX: usize = 16 << 10;

/// A subscription as the tasks of the client know it.
#[derive(Debug)]
pub(super) struct ConsumerCore {
    pub(super) handle: Handle,
    pub(super) options: ConsumerOptions,
    pub(super) window: Window,
    /// Settlements that are sent at once when there are so many.
    pub(super) settle_batch: u32,
    /// The connection whose deliveries are valid; 0 for none.
    pub(super) current: AtomicU32,
    /// Counts up whenever deliveries are recalled.
    pub(super) recalls: AtomicU32,
    pub(super) state: Mutex<State>,
    pub(super) settled: Notify,
    /// Whether it gets messages, in an exclusive group. Told again when the consumer ends.
    pub(super) activity: watch::Sender<Option<Activity>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) session: Session,
    pub(super) subscription: Option<Subscription>,
    /// Names of the topics whose messages come, but for the one that was subscribed.
    pub(super) topics: TopicNames,
    /// How often what it had of a topic was recalled on this connection, where it was.
    pub(super) generations: HashMap<TopicId, u32>,
    /// The wait after the last refusal to let it join, before chance.
    put_off: Option<Duration>,
    pub(super) arrived: VecDeque<Delivery>,
    pub(super) waker: Option<Waker>,
    pub(super) settlements: Settlements,
    /// Waiting settlements from which on they are merged while the socket takes nothing.
    pub(super) merge_at: u32,
    /// The pull that waits for its answer.
    pub(super) pull: RequestId,
    /// Whether messages of an earlier pull have come, one that nobody waits for any more.
    pub(super) late: bool,
    pub(super) with_writer: bool,
    /// Settle frames sent and answered.
    pub(super) frames_sent: u64,
    pub(super) frames_answered: u64,
    pub(super) calls_unanswered: u64,
    /// Not reported yet: settlements that the node confirmed, and that were lost.
    pub(super) confirmed: u64,
    pub(super) lost: u64,
}

impl State {
    /// How often what the consumer had of a topic was recalled.
    pub(super) fn generation(&self, topic: TopicId) -> u32 {
        self.generations.get(&topic).copied().unwrap_or(0)
    }

    /// Whether a delivery is still with the consumer, as far as it was told.
    pub(super) fn holds(&self, delivery: DeliveryId) -> bool {
        let DeliveryId { session, topic, generation, .. } = delivery;
        let is_own = self.subscription.as_ref().is_some_and(|subscription| subscription.topic == topic);
        session == self.session && generation == self.generation(topic) && (is_own || self.topics.has(topic))
    }

    /// Whether a consumer that the node did not let join may join a moment later. A limit is told to whoever joins
    /// first; one that had joined before waits until there is room again.
    fn may_join_later(&self, code: ErrorCode) -> bool {
        match code {
            ErrorCode::Draining | ErrorCode::NotMaster => true,
            ErrorCode::Limit => self.subscription.is_some(),
            _ => false,
        }
    }
}

#[derive(Debug)]
pub(super) enum Phase {
    Opening,
    /// Subscribed, without a break.
    Active {
        since: Instant,
    },
    Ended(ClientError),
}

impl ConsumerCore {
    pub(super) fn new(handle: Handle, options: ConsumerOptions, window: Window) -> Self {
        let settle_batch = (window.messages / 4).clamp(1, SETTLE_BATCH_MAX);
        let settle_batch = if window.messages == 0 { SETTLE_BATCH_MAX } else { settle_batch };
        let state = State {
            phase: Phase::Opening,
            session: 0,
            subscription: None,
            topics: TopicNames::default(),
            generations: HashMap::new(),
            put_off: None,
            arrived: VecDeque::new(),
            waker: None,
            settlements: Settlements::default(),
            merge_at: settle_batch,
            pull: 0,
            late: false,
            with_writer: false,
            frames_sent: 0,
            frames_answered: 0,
            calls_unanswered: 0,
            confirmed: 0,
            lost: 0,
        };
        Self {
            handle,
            options,
            window,
            settle_batch,
            current: AtomicU32::new(0),
            recalls: AtomicU32::new(0),
            state: Mutex::new(state),
            settled: Notify::new(),
            activity: watch::Sender::new(None),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Waits until it is subscribed on some connection.
    pub(super) async fn active(&self) -> Result<Subscription, ClientError> {
        poll_fn(|context| {
            let mut state = self.lock();
            match (&state.phase, &state.subscription) {
                (Phase::Ended(error), _) => Poll::Ready(Err(error.clone())),
                (Phase::Active { .. }, Some(subscription)) => Poll::Ready(Ok(subscription.clone())),
                _ => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Waits until messages have come for a pull that was dropped.
    pub(super) async fn late_arrival(&self) {
        poll_fn(|context| {
            let mut state = self.lock();
            if std::mem::take(&mut state.late) {
                return Poll::Ready(());
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Asks the node to subscribe on this connection, unless that was done.
    pub(super) fn subscribe(self: &Arc<Self>, shared: &Shared, session: Session) {
        let mut state = self.lock();
        let done = state.session == session || matches!(state.phase, Phase::Ended(_));
        // A connection that has ended meanwhile must not take the place of its successor.
        if done || session == 0 || shared.session() != session {
            return;
        }
        state.session = session;
        state.phase = Phase::Opening;
        self.ask(shared, session);
    }

    fn ask(self: &Arc<Self>, shared: &Shared, session: Session) {
        let request = locked(&shared.registry).expect(Waiting::Consumer(self.clone()));
        let subscribe = Subscribe {
            request,
            consumer: self.handle,
            topic: self.options.topic.clone(),
            group: self.options.group.clone(),
            start: self.options.start,
            priority: self.options.priority,
            settings: self.options.settings.clone(),
            window: self.window,
        };
        shared.send(session, &Request::Subscribe(subscribe));
    }

    /// The node answered the wish to subscribe.
    pub(super) fn answered(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        session: Session,
        answer: Result<Reply, Refusal>,
    ) {
        let mut state = self.lock();
        if state.session != session || !matches!(state.phase, Phase::Opening) {
            return;
        }
        match answer {
            Ok(Reply::Subscribed { group, topic, settings }) => {
                state.subscription = Some(Subscription { group, topic, settings });
                state.phase = Phase::Active { since: Instant::now() };
                state.put_off = None;
                self.current.store(session, Ordering::Release);
            }
            Ok(other) => state.phase = Phase::Ended(unexpected(&other)),
            Err(refusal) if state.may_join_later(refusal.code) => {
                let wait = after_refusal(state.put_off);
                state.put_off = Some(wait);
                let (core, shared) = (self.clone(), shared.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(by_chance(wait)).await;
                    let state = core.lock();
                    if state.session == session && matches!(state.phase, Phase::Opening) {
                        core.ask(&shared, session);
                    }
                });
            }
            Err(refusal) => state.phase = Phase::Ended(self.ended(refusal)),
        }
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Messages have come.
    pub(super) fn deliver(
        &self,
        session: Session,
        head: &Deliver,
        messages: Bytes,
    ) -> Result<(), MessageError> {
        let mut state = self.lock();
        if state.session != session || matches!(state.phase, Phase::Ended(_)) {
            return Ok(());
        }
        let handle = self.handle;
        let generation = state.generation(head.topic);
        let arrived = &mut state.arrived;
        unpack(&head.runs, messages, |run, at, message| {
            let to = DeliveredTo { consumer: handle, session, generation };
            arrived.push_back(delivery(to, head, run, at, message));
        })?;
        // The messages of a pull are taken when the pull is complete; those of a dropped one at once.
        state.late |= head.request != 0 && head.request != state.pull;
        let waker = if head.request == 0 || state.late { state.waker.take() } else { None };
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Messages of another topic will come.
    pub(super) fn topic_named(&self, session: Session, named: ConsumerTopic) {
        let mut state = self.lock();
        if state.session == session {
            state.topics.named(named.topic, named.name.into());
        }
    }

    /// A topic is gone, and what was handed out of it.
    pub(super) fn topic_gone(&self, session: Session, topic: TopicId) {
        let mut state = self.lock();
        if state.session == session {
            state.arrived.retain(|delivery| delivery.id.topic != topic);
            state.generations.remove(&topic);
            state.topics.gone(topic);
            self.recalls.fetch_add(1, Ordering::Release);
        }
    }

    /// The consumer of an exclusive group gets messages, or waits.
    pub(super) fn role_changed(&self, session: Session, activity: Activity) {
        let state = self.lock();
        if state.session == session {
            self.activity.send_replace(Some(activity));
        }
    }

    /// What was handed out of a topic and not settled is not the consumer's any more.
    pub(super) fn recalled(&self, session: Session, recalled: ConsumerRecalled) {
        let ConsumerRecalled { topic, generation, .. } = recalled;
        let mut state = self.lock();
        if state.session == session {
            state.arrived.retain(|delivery| delivery.id.topic != topic);
            state.generations.insert(topic, generation);
            self.recalls.fetch_add(1, Ordering::Release);
        }
    }

    /// The node answered a settle frame of so many calls.
    pub(super) fn settled(&self, session: Session, calls: u64, answer: &Result<Reply, Refusal>) {
        let mut state = self.lock();
        if state.session != session {
            return;
        }
        state.frames_answered += 1;
        state.calls_unanswered -= calls.min(state.calls_unanswered);
        match answer {
            Ok(Reply::Settled { count }) => state.confirmed += count,
            _ => state.lost += calls,
        }
        drop(state);
        self.settled.notify_waiters();
    }

    /// The connection is gone, and with it every delivery.
    pub(super) fn lost(&self) {
        let mut state = self.lock();
        self.void(&mut state);
        state.session = 0;
        if !matches!(state.phase, Phase::Ended(_)) {
            state.phase = Phase::Opening;
        }
        drop(state);
        self.settled.notify_waiters();
    }

    /// The node ended the consumer.
    pub(super) fn closed_by_node(&self, refusal: Refusal) {
        self.end(self.ended(refusal));
    }

    /// The client is closed.
    pub(super) fn client_closed(&self) {
        self.end(ClientError::Closed);
    }

    fn end(&self, error: ClientError) {
        let mut state = self.lock();
        self.void(&mut state);
        if !matches!(state.phase, Phase::Ended(_)) {
            state.phase = Phase::Ended(error);
        }
        let waker = state.waker.take();
        drop(state);
        self.activity.send_replace(None);
        waker.into_iter().for_each(Waker::wake);
        self.settled.notify_waiters();
    }

    /// Forgets deliveries and settlements of the connection.
    fn void(&self, state: &mut State) {
        self.current.store(0, Ordering::Release);
        self.activity.send_replace(None);
        state.generations.clear();
        state.topics.lost();
        state.arrived.clear();
        state.with_writer = false;
        state.lost += state.settlements.clear() + state.calls_unanswered;
        state.calls_unanswered = 0;
        state.frames_answered = state.frames_sent;
    }

    fn ended(&self, refusal: Refusal) -> ClientError {
        let (topic, group) = (self.options.topic.clone(), self.options.group.clone());
        ClientError::ConsumerEnded { topic, group, refusal }
    }

    /// Sends the settlements that wait.
    pub(super) fn send_settlements(self: &Arc<Self>, shared: &Shared) {
        let mut state = self.lock();
        if state.settlements.count() == 0 {
            state.with_writer = false;
            return;
        }
        let mut link = locked(&shared.link);
        self.put_settlements(shared, &mut state, &mut link);
        drop(state);
        if link.write() == Written::Blocked {
            shared.writer.notify_one();
        }
    }

    pub(super) fn put_settlements(self: &Arc<Self>, shared: &Shared, state: &mut State, link: &mut Link) {
        state.with_writer = false;
        state.merge_at = self.settle_batch;
        if !matches!(state.phase, Phase::Active { .. }) || link.session != state.session {
            return;
        }
        for Taken { topic, generation, settlement, ranges, calls } in state.settlements.take() {
            let last = ranges.len().div_ceil(SETTLE_RANGES_MAX) - 1;
            for (at, ranges) in ranges.chunks(SETTLE_RANGES_MAX).enumerate() {
                let calls = if at == last { calls } else { 0 };
                let waiting = Waiting::Settlement(self.clone(), calls);
                let request = locked(&shared.registry).expect(waiting);
                let (ranges, settlement) = (ranges.to_vec(), settlement.clone());
                let consumer = self.handle;
                let settle = Settle { request, consumer, topic, generation, settlement, ranges };
                link.put(&Request::Settle(settle));
                state.frames_sent += 1;
                state.calls_unanswered += calls;
            }
        }
    }

    /// Takes the consumer out of the client: nothing more comes. Answers the connection on which the node may have it,
    /// 0 where there is none; `None` where it is out already.
    pub(super) fn leave(self: &Arc<Self>, shared: &Shared) -> Option<Session> {
        locked(&shared.registry).consumers.remove(&self.handle)?;
        self.send_settlements(shared);
        let mut state = self.lock();
        state.phase = Phase::Ended(ClientError::Closed);
        state.arrived.clear();
        let session = state.session;
        drop(state);
        self.activity.send_replace(None);
        Some(session)
    }

    /// Nobody has the consumer any more.
    pub(super) fn close(self: &Arc<Self>, shared: &Shared) {
        let Some(session) = self.leave(shared) else { return };
        let request = locked(&shared.registry).unanswered();
        shared.send(session, &Request::Unsubscribe(Unsubscribe { request, consumer: self.handle }));
    }
}
