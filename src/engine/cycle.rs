//! The engine's thread: one cycle after the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::clock::Clock;
use super::inbox::{ImageSender, Input};
use super::querying::{Querying, refusal};
use super::reading::Reading;
use super::sending::Sending;
use super::space_wait::{Refusing, SpaceWait};
use super::staging::{Batch, Staging, Waiting};
use super::{EngineError, Guard, Parts, Shared};
use crate::broker::{Broker, Command, Content, Output};
use crate::model::free_min::FreeMin;
use crate::model::id::SessionId;
use crate::model::message::MessageBlock;
use crate::model::settings::LEASE_MS_MIN;
use crate::model::time::Timestamp;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{Admin, AdminCommand};
use crate::protocol::response::Reply;
use crate::store::{Store, StoreError, Unreadable};

/// A turn that takes so long counts as a stall: no lease runs meanwhile. Less than the shortest lease.
const STALL_MIN: Duration = Duration::from_millis(50);
const _: () = assert!(STALL_MIN.as_millis() < LEASE_MS_MIN as u128, "no lease is over before it is a stall");

/// How long the engine waits for something to arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Until something is due.
    UntilDue,
    /// Not at all.
    None,
}

/// What comes after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Another turn.
    GoesOn,
    /// Nothing but the end: a drain is over.
    Drained,
}

/// The state of the engine's thread.
pub(super) struct Cycle {
    shared: Arc<Shared>,
    broker: Broker,
    store: Box<dyn Store>,
    guard: Box<dyn Guard>,
    clock: Clock,
    reading: Reading,
    querying: Querying,
    /// Who waits for an image.
    images: Vec<ImageSender>,
    sending: Sending,
    staging: Staging,
    /// Blocks that this cycle's commit finds on the disk.
    staged: Vec<Bytes>,
    /// Bytes of messages for which this cycle's commit finds space.
    space: u64,
    /// What is kept free on the disk.
    free_min: FreeMin,
    refusing: Refusing,
    output: Output,
    poll_interval: Duration,
    commit_bytes_max: u64,
    /// Taken from the inbox and not worked on yet, last one first.
    backlog: Vec<Input>,
    /// Empty; kept for its memory.
    taken: Vec<Input>,
    /// When the guard last looked at fence and lock.
    lock_checked_at: Instant,
    /// Sessions that ended in this cycle: they still get what came of their last commands.
    ended: Vec<SessionId>,
    /// Set by a drain: when it ends at the latest.
    drain_until: Option<Instant>,
}

impl Cycle {
    /// Puts the parts together and starts the readers.
    pub(super) fn new(shared: Arc<Shared>, parts: Parts) -> Result<Self, EngineError> {
        let Parts { store, snapshot, place, seen, guard, poll_interval, limits, auto_create, free_min } =
            parts;
        let mut clock = Clock::starting_after(snapshot.time, seen, &place);
        shared.vitals.tell_time(clock.now());
        Ok(Self {
            reading: Reading::start(store.as_ref(), &place, &shared.inbox)?,
            querying: Querying::start(store.as_ref(), &shared.inbox)?,
            images: Vec::new(),
            commit_bytes_max: limits.commit_bytes_max,
            broker: Broker::new(snapshot, limits, auto_create),
            shared,
            store,
            guard,
            sending: Sending::default(),
            staging: Staging::new(),
            staged: Vec::new(),
            space: 0,
            free_min,
            refusing: Refusing::default(),
            output: Output::default(),
            poll_interval,
            backlog: Vec::new(),
            lock_checked_at: clock.instant(),
            clock,
            taken: Vec::new(),
            ended: Vec::new(),
            drain_until: None,
        })
    }

    /// Goes round until a drain is over or something fails.
    pub(super) fn run(mut self) -> Result<(), EngineError> {
        loop {
            self.take(Patience::UntilDue);
            match self.turn() {
                Ok(Course::GoesOn) => {}
                Ok(Course::Drained) => return self.end(),
                Err(error) => return self.fail(error),
            }
        }
    }

    /// Takes what has arrived, where nothing is left from before.
    pub(super) fn take(&mut self, patience: Patience) {
        if !self.backlog.is_empty() {
            return;
        }
        let mut taken = std::mem::take(&mut self.taken);
        match patience {
            Patience::UntilDue => {
                let deadline = self.due_at();
                self.shared.inbox.take(&mut taken, deadline);
            }
            Patience::None => self.shared.inbox.take_now(&mut taken),
        }
        taken.reverse();
        self.taken = std::mem::replace(&mut self.backlog, taken);
    }

    /// Goes round once.
    pub(super) fn turn(&mut self) -> Result<Course, EngineError> {
        let began = self.clock.instant();
        self.round()?;
        self.give_images()?;
        let counts = self.broker.counts();
        self.refusing.note(counts.refused_for_space);
        self.shared.vitals.count(counts);
        if self.store.maintenance_due() {
            let Self { broker, store, guard, .. } = &mut *self;
            store.maintain(&mut || broker.snapshot(), &mut || guard.check())?;
        }
        let took = self.clock.instant().saturating_duration_since(began);
        if took >= STALL_MIN {
            self.broker.stood_still(took);
        }
        Ok(if self.drained() { Course::Drained } else { Course::GoesOn })
    }

    /// Finishes what has arrived, once a drain is over, and closes the store.
    pub(super) fn end(mut self) -> Result<(), EngineError> {
        match self.finish() {
            Ok(()) => self.stop(),
            Err(error) => self.fail(error),
        }
    }

    fn finish(&mut self) -> Result<(), EngineError> {
        let mut taken = Vec::new();
        self.shared.inbox.take_now(&mut taken);
        taken.reverse();
        taken.append(&mut self.backlog);
        taken.append(&mut self.staging.close());
        self.backlog = taken;
        while !self.backlog.is_empty() {
            self.round()?;
        }
        Ok(())
    }

    /// Ends with an error, but for that of a drain that has waited for space as long as it may: without a drain nobody
    /// would notice that nobody is served.
    pub(super) fn fail(self, error: EngineError) -> Result<(), EngineError> {
        match error {
            EngineError::Store(StoreError::Full(bytes)) if self.drain_deadline().is_some() => {
                self.leave(bytes)
            }
            error => Err(error),
        }
    }

    /// When the thread must wake up though nothing arrives.
    pub(super) fn due_at(&mut self) -> Instant {
        let now = self.clock.instant();
        if self.store.maintenance_due() {
            return now;
        }
        let mut until = self.lock_checked_at + self.poll_interval;
        if let Some(timeout) = self.broker.next_timeout() {
            // One millisecond more, so that the clock has certainly reached it.
            until = until.min(now + timeout.since(self.clock.now()) + Duration::from_millis(1));
        }
        match self.drain_until {
            Some(drain_until) => until.min(drain_until),
            None => until,
        }
    }

    /// One cycle of the broker: a commit's worth of what was taken, durable, and its effects out.
    fn round(&mut self) -> Result<(), EngineError> {
        let now = self.clock.now();
        self.shared.vitals.tell_time(now);
        self.space = self.store.space(self.free_min)?;
        self.broker.begin_cycle(self.space);
        self.broker.limit_output(self.sending.room());
        self.work(now)?;
        self.broker.finish(now, &mut self.output);
        self.release()
    }

    /// Lets the broker work on what was taken, up to a commit's worth.
    fn work(&mut self, now: Timestamp) -> Result<(), EngineError> {
        let mut bytes = 0;
        while bytes < self.commit_bytes_max
            && let Some(input) = self.backlog.pop()
        {
            match input {
                Input::Begin(session, outbox) => {
                    self.sending.begin(session, outbox);
                    self.broker.handle(now, session, Command::Begin, &mut self.output);
                    if self.drain_until.is_some() {
                        self.broker.handle(now, session, Command::OutputFull, &mut self.output);
                    }
                }
                Input::Commands(session, commands, held) => {
                    bytes += held.bytes;
                    let batch = Batch { commands: commands.into_iter(), held };
                    if let Some(batch) = self.staging.put_behind(session, batch)
                        && let Some((command, block, rest)) = self.batch(now, session, batch)
                    {
                        self.stage(session, Waiting { command, block, batches: VecDeque::from([rest]) });
                    }
                }
                Input::Staged(session) => bytes += self.go_on(now, session),
                Input::Loaded(read, answer, loaded) => {
                    match answer? {
                        Ok(chunk) => self.broker.loaded(now, read, chunk, &mut self.output),
                        Err(Unreadable { range, error }) => {
                            let why = error.to_string();
                            let news = self.broker.could_not_read(now, read, range, &why, &mut self.output);
                            if let Some(news) = news {
                                tracing::error!("{news}");
                            }
                        }
                    }
                    drop(loaded);
                }
                Input::Answered(session, request, answer) => {
                    self.querying.answered();
                    let answer = answer.map(Reply::Table).map_err(|error| refusal(&error));
                    self.output.effect(session, Content::Reply(request, answer));
                }
                Input::Image(sender) => self.images.push(sender),
                Input::Drain(deadline) => self.drain(now, deadline),
            }
        }
        Ok(())
    }

    /// Has the commands of a batch worked on, up to one whose block is to be staged first. Answers that one, its block
    /// and what is left.
    fn batch(
        &mut self,
        now: Timestamp,
        session: SessionId,
        mut batch: Batch,
    ) -> Option<(Command, MessageBlock, Batch)> {
        while let Some(command) = batch.commands.next() {
            match self.staging.wanted(&command, self.space) {
                Some(block) => return Some((command, block, batch)),
                None => self.command(now, session, command),
            }
        }
        None
    }

    /// Has the block of a command staged; its session waits with what stands behind.
    fn stage(&mut self, session: SessionId, waiting: Waiting) {
        let inbox = Arc::clone(&self.shared.inbox);
        let staged = Box::new(move || inbox.put(Input::Staged(session)));
        self.store.stage(waiting.block.bytes().clone(), staged);
        self.staging.wait(session, waiting);
    }

    /// Goes on with a session whose block is staged. Answers how many bytes the commit has more by that: a store that
    /// writes nothing ahead has all of the block to write.
    fn go_on(&mut self, now: Timestamp, session: SessionId) -> u64 {
        let Some(Waiting { command, block, mut batches }) = self.staging.take(session) else {
            return 0;
        };
        let ahead = self.store.staged_bytes(block.bytes());
        self.broker.grant(ahead);
        let mut bytes = (block.bytes().len() as u64).saturating_sub(ahead);
        self.staged.push(block.bytes().clone());
        self.command(now, session, command);
        while let Some(batch) = batches.pop_front() {
            bytes += batch.held.bytes;
            if let Some((command, block, rest)) = self.batch(now, session, batch) {
                batches.push_front(rest);
                self.stage(session, Waiting { command, block, batches });
                break;
            }
        }
        bytes
    }

    fn command(&mut self, now: Timestamp, session: SessionId, command: Command) {
        let ends = matches!(command, Command::End(_));
        // What is ready may have become full again while the word was on its way; then another one follows.
        if matches!(command, Command::OutputReady)
            && (self.drain_until.is_some() || self.sending.is_full(session))
        {
            return;
        }
        let command = match command {
            // The broker knows nothing of the store.
            Command::Admin(Admin { request, command: AdminCommand::Query { text } }) => {
                if let Err(refusal) = self.querying.ask(session, request, text) {
                    self.output.effect(session, Content::Reply(request, Err(refusal)));
                }
                return;
            }
            command => command,
        };
        self.broker.handle(now, session, command, &mut self.output);
        if ends {
            self.ended.push(session);
        }
    }

    /// Makes the records durable, checks the fence, and lets out what depends on both.
    fn release(&mut self) -> Result<(), EngineError> {
        if !self.output.records.is_empty() {
            self.commit()?;
            self.output.records.clear();
        }
        for block in self.staged.drain(..) {
            self.store.unstage(&block)?;
        }
        let idle = self.output.effects.is_empty() && self.output.reads.is_empty();
        let started = self.clock.instant();
        if self.lock_checked_at + self.poll_interval <= started {
            self.check_lock()?;
        } else if !idle {
            self.guard.check()?;
            self.shared.vitals.checked(started);
        }
        if idle {
            self.end_sessions();
        } else {
            self.confirm();
        }
        Ok(())
    }

    /// Lets the effects out. Everything that they depend on is durable, and the fence was checked after that. Step
    /// `Confirm` of `tests/ha_model`.
    fn confirm(&mut self) {
        for effect in self.output.effects.drain(..) {
            self.sending.put(effect);
        }
        let mut full = Vec::new();
        self.sending.flush(&mut full);
        self.end_sessions();
        for read in self.output.reads.drain(..) {
            self.reading.start_read(read);
        }
        let now = self.clock.now();
        for session in full {
            self.broker.handle(now, session, Command::OutputFull, &mut self.output);
        }
    }

    /// Makes the records durable. The broker's state has changed already, so where there is no space they are neither
    /// refused nor dropped: they are held, and everything behind them waits.
    fn commit(&mut self) -> Result<(), EngineError> {
        let mut wait = None;
        loop {
            match self.store.commit(&self.output.records) {
                Err(StoreError::Full(bytes)) => {
                    self.wait_for_space(wait.get_or_insert_with(SpaceWait::begin), bytes)?;
                }
                committed => break committed?,
            }
        }
        if let Some(wait) = wait {
            wait.over();
        }
        Ok(())
    }

    /// Waits a moment for space for a commit that is held, making some where it can. Ends with the fence, so that a
    /// master that was superseded does not wait on, and with the time of a drain.
    fn wait_for_space(&mut self, wait: &mut SpaceWait, bytes: u64) -> Result<(), EngineError> {
        wait.warn(bytes);
        let until = self.drain_deadline();
        if until.is_some_and(|until| self.clock.instant() >= until) {
            return Err(StoreError::Full(bytes).into());
        }
        self.check_lock()?;
        let Self { store, guard, .. } = &mut *self;
        store.make_space(&mut || guard.check())?;
        SpaceWait::pause(&self.clock, self.poll_interval, until);
        Ok(())
    }

    fn check_lock(&mut self) -> Result<(), EngineError> {
        let started = self.clock.instant();
        self.guard.check_lock()?;
        self.lock_checked_at = started;
        self.shared.vitals.checked(started);
        Ok(())
    }

    /// When a drain ends at the latest, whether it has begun or its order still waits.
    fn drain_deadline(&self) -> Option<Instant> {
        let taken = self.backlog.iter().filter_map(Input::drain_deadline).min();
        [self.drain_until, taken, self.shared.inbox.drain_deadline()].into_iter().flatten().min()
    }

    /// Gives what the store holds now, after the commit, to whoever wants it. A master that has lost gives nothing.
    fn give_images(&mut self) -> Result<(), EngineError> {
        if self.images.is_empty() {
            return Ok(());
        }
        self.guard.check()?;
        for sender in self.images.drain(..) {
            // Whoever has gone does not need it.
            let _ = sender.send(self.store.image(&mut || self.broker.snapshot()));
        }
        Ok(())
    }

    fn end_sessions(&mut self) {
        for session in self.ended.drain(..) {
            self.sending.end(session);
        }
    }

    /// Hands out nothing more; publishing and settling go on until the end.
    fn drain(&mut self, now: Timestamp, deadline: Instant) {
        for session in self.sending.ids() {
            self.broker.handle(now, session, Command::OutputFull, &mut self.output);
        }
        self.drain_until = Some(self.drain_until.map_or(deadline, |until| until.min(deadline)));
    }

    fn drained(&self) -> bool {
        self.drain_until
            .is_some_and(|until| self.broker.counts().in_flight == 0 || self.clock.instant() >= until)
    }

    /// The end of a drain: every session is told to go elsewhere.
    fn stop(mut self) -> Result<(), EngineError> {
        self.say_goodbye();
        let Self { broker, store, mut guard, reading, querying, .. } = self;
        reading.stop();
        querying.stop();
        store.close(&mut || broker.snapshot(), &mut || guard.check())?;
        Ok(())
    }

    /// The end of a drain whose last commit found no space: nobody was told anything that depends on it.
    fn leave(mut self, bytes: u64) -> Result<(), EngineError> {
        tracing::warn!(
            bytes,
            "the drain is over and there is still no space for the last commit: what clients have not heard of does \
             not count, and they send it again"
        );
        self.say_goodbye();
        let Self { store, mut guard, reading, querying, .. } = self;
        reading.stop();
        querying.stop();
        store.leave(&mut || guard.check())?;
        Ok(())
    }

    fn say_goodbye(&mut self) {
        self.sending.goodbye(&Refusal::new(
            ErrorCode::Draining,
            "the node hands its mastership over; connect to the other one",
        ));
    }
}
