//! What waits for the engine: batches from connections, messages that were read, answers to queries, orders from the
//! node.
//!
//! Many threads put in, the engine takes out. What one connection may have in it is bounded by its [`Budget`]; the
//! rest of what can be in it is bounded by the number of connections, and of reads and queries under way.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::memory::{Holding, Memory};
use super::outbox::Outbox;
use super::reading::{Answer, Loaded};
use crate::broker::{Command, Read};
use crate::model::id::SessionId;
use crate::model::table::Table;
use crate::protocol::request::RequestId;
use crate::store::StoreError;
use crate::store::image::Image;
use crate::store::query::QueryError;

/// Where an image goes.
pub(super) type ImageSender = SyncSender<Result<Box<dyn Image>, StoreError>>;

/// How soon a connection that waits for its turn sees that memory is not scarce any more.
const SCARCE_AGAIN: Duration = Duration::from_millis(20);

/// Something for the engine to do.
#[derive(Debug)]
pub(super) enum Input {
    /// A session begins; its effects go to the outbox.
    Begin(SessionId, Arc<Outbox>),
    /// What a session wants, in order, and what it holds of the session's budget.
    Commands(SessionId, Vec<Command>, Held),
    /// The store has written the block that a session waits for.
    Staged(SessionId),
    /// A read is answered; what it brought is held against the readers until it is taken.
    Loaded(Read, Answer, Loaded),
    /// A query of a session is answered.
    Answered(SessionId, RequestId, Result<Table, QueryError>),
    /// Somebody wants an image of the store, as of the end of a cycle.
    Image(ImageSender),
    /// Hand out nothing more; stop when nothing is in flight, at the latest at this point.
    Drain(Instant),
}

impl Input {
    /// When a drain that this orders ends at the latest.
    pub(super) const fn drain_deadline(&self) -> Option<Instant> {
        match self {
            Self::Drain(deadline) => Some(*deadline),
            _ => None,
        }
    }
}

/// Bytes of one connection that the engine has not taken yet, and of a frame that has not come to its end.
#[derive(Debug)]
pub struct Budget {
    used: Holding,
    /// Of a frame, and what stands behind it.
    unfinished: Holding,
    max: u64,
    freed: Notify,
}

impl Budget {
    /// A budget of `max` bytes for a connection that shares `memory` with others. One batch may go over it.
    #[must_use]
    pub fn new(max: u64, memory: &Arc<Memory>) -> Arc<Self> {
        let used = Holding::of_connection(memory);
        Arc::new(Self { used, unfinished: Holding::of(memory), max, freed: Notify::new() })
    }

    /// Whether nothing more may be submitted.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.used.bytes() >= self.max || self.is_over_share()
    }

    /// Whether memory is scarce and the connection has more of it than its share.
    fn is_over_share(&self) -> bool {
        let held = self.used.bytes() + self.unfinished.bytes();
        held > 0 && held >= self.used.memory().bound(u64::MAX)
    }

    /// Waits until something may be read: less than the budget is used, and of scarce memory no more than a share, or
    /// it is the turn of this connection to have more. The turn is kept until it is not needed any more. Cancel-safe:
    /// nothing else is changed.
    pub async fn available(&self, turn: &mut Option<Turn>) {
        loop {
            let freed = self.freed.notified();
            if !self.is_used_up() {
                *turn = None;
                return;
            }
            if self.used.bytes() > 0 {
                // The engine will have taken it in a moment.
                freed.await;
                continue;
            }
            if turn.is_some() {
                return;
            }
            let next = Arc::clone(&self.used.memory().turn).acquire_owned();
            tokio::select! {
                permit = next => *turn = permit.ok().map(Turn),
                () = tokio::time::sleep(SCARCE_AGAIN) => {}
            }
        }
    }

    /// Notes how much has been read of a frame that is not complete.
    pub fn hold_unfinished(&self, bytes: usize) {
        self.unfinished.set(bytes as u64);
    }

    fn hold(self: &Arc<Self>, bytes: u64) -> Held {
        self.used.add(bytes);
        Held { budget: Arc::clone(self), bytes }
    }
}

/// The right to read more than a share of scarce memory, for one connection at a time.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "it is given back when it is dropped")] OwnedSemaphorePermit);

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    budget: Arc<Budget>,
    pub(super) bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.used.take(self.bytes);
        self.budget.freed.notify_one();
    }
}

/// The engine's inbox.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Vec<Input>>,
    arrived: Condvar,
}

impl Inbox {
    /// Puts an input in.
    pub(super) fn put(&self, input: Input) {
        let mut waiting = self.lock();
        waiting.push(input);
        let first = waiting.len() == 1;
        drop(waiting);
        if first {
            self.arrived.notify_one();
        }
    }

    /// Puts a batch of commands in, held against the budget of their connection.
    pub(super) fn put_commands(
        &self,
        session: SessionId,
        commands: Vec<Command>,
        bytes: u64,
        budget: &Arc<Budget>,
    ) {
        self.put(Input::Commands(session, commands, budget.hold(bytes)));
    }

    /// Takes everything, waiting for something until `deadline`. `taken` is empty before; its memory is used again.
    pub(super) fn take(&self, taken: &mut Vec<Input>, deadline: Instant) {
        let mut waiting = self.lock();
        while waiting.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                return;
            };
            waiting = self.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut *waiting, taken);
    }

    /// Takes everything that is there. `taken` is empty before; its memory is used again.
    pub(super) fn take_now(&self, taken: &mut Vec<Input>) {
        std::mem::swap(&mut *self.lock(), taken);
    }

    /// When a drain whose order waits here ends at the latest.
    pub(super) fn drain_deadline(&self) -> Option<Instant> {
        self.lock().iter().filter_map(Input::drain_deadline).min()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Input>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::Ending;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn commands(session: u64) -> (SessionId, Vec<Command>) {
        (SessionId(session), vec![Command::OutputReady, Command::End(Ending::Lost)])
    }

    #[tokio::test]
    async fn a_budget_lets_one_batch_go_over_it_and_no_further_one() {
        let budget = Budget::new(100, &Memory::new(u64::MAX));
        let first = budget.hold(90);
        assert!(!budget.is_used_up());
        let second = budget.hold(90);
        assert!(budget.is_used_up());
        let waiting = Arc::clone(&budget);
        let waiter = tokio::spawn(async move { waiting.available(&mut None).await });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        drop(first);
        tokio::time::timeout(PATIENCE, waiter).await.unwrap().unwrap();
        assert!(!budget.is_used_up());
        drop(second);
        assert_eq!(budget.used.bytes(), 0);
    }

    /// Budgets are given back by the engine's thread at any moment, also right before somebody begins to wait.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_waits_for_a_budget_that_is_free() {
        let budget = Budget::new(1, &Memory::new(u64::MAX));
        for _ in 0..2_000 {
            let held = budget.hold(1);
            let free = std::thread::spawn(move || drop(held));
            tokio::time::timeout(PATIENCE, budget.available(&mut None)).await.expect("a wake-up was missed");
            free.join().unwrap();
        }
    }

    #[test]
    fn what_is_put_in_comes_out_in_order_and_frees_its_budget_when_it_is_dropped() {
        let (inbox, budget) = (Inbox::default(), Budget::new(100, &Memory::new(u64::MAX)));
        for session in 1..=3 {
            let (session, commands) = commands(session);
            inbox.put_commands(session, commands, 50, &budget);
        }
        assert!(budget.is_used_up());
        let mut taken = Vec::new();
        inbox.take(&mut taken, Instant::now());
        let sessions: Vec<u64> = taken
            .iter()
            .map(|input| if let Input::Commands(session, ..) = input { session.0 } else { 0 })
            .collect();
        assert_eq!(sessions, [1, 2, 3]);
        assert!(budget.is_used_up(), "what is taken is held until it is worked on");
        taken.clear();
        assert!(!budget.is_used_up());
    }

    #[test]
    fn taking_waits_for_the_first_input_and_no_longer_than_the_deadline() {
        let inbox = Arc::new(Inbox::default());
        let mut taken = Vec::new();
        inbox.take(&mut taken, Instant::now() + Duration::from_millis(1));
        assert!(taken.is_empty());
        for _ in 0..200 {
            let putting = Arc::clone(&inbox);
            let put = std::thread::spawn(move || putting.put(Input::Drain(Instant::now())));
            let started = Instant::now();
            inbox.take(&mut taken, started + PATIENCE);
            assert_eq!(taken.len(), 1);
            assert!(started.elapsed() < PATIENCE, "the wake-up was missed");
            taken.clear();
            put.join().unwrap();
        }
    }
}
