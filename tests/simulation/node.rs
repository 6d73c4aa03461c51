//! A node: from the lock to the release, with the steps of the real one in their order.
//!
//! Lock, claim, fence, store and broker are the real ones. What goes between them is written anew here: it does in one
//! thread and with virtual time what `node` and `engine` do, in the same order.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use batonmq::broker::{AutoCreate, Broker, Command, Output, Read};
use batonmq::disk;
use batonmq::ha::block::{Address, State};
use batonmq::ha::claim::{Candidate, ClaimError, LateWrites, Mastership, ReleaseError, claim, predecessors};
use batonmq::ha::directory::{Create, Directory};
use batonmq::ha::fence::{Fence, FenceError, FenceRead};
use batonmq::ha::identity::Identity;
use batonmq::ha::lock::{LockAttempt, StoreLock};
use batonmq::model::free_min::FreeMin;
use batonmq::model::id::SessionId;
use batonmq::model::limits::Limits;
use batonmq::model::message::MessageBlock;
use batonmq::model::name::Name;
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::store::manifest::Manifest;
use batonmq::store::{self, Fenced, Mode, OpenOptions, Reader, Store, StoreError, conversion};
use uuid::Uuid;

use crate::clients::{Node, Notes};
use crate::history::has_lost;
use crate::scheduler::{Simulation, quietly};
use crate::setting::MS;
use crate::world::{Master, World};

/// How often a standby tries the lock, and an idle master checks.
const POLL_US: u64 = 100 * MS;
/// A check that is older than this does not make a master healthy.
const FENCE_AGE_MAX_US: u64 = 1000 * MS;
/// Turns that a drain takes at the most.
const DRAIN_TURNS: u32 = 40;

/// How a node has ended.
#[derive(Debug)]
pub enum End {
    Released,
    /// Another one is higher, or it cannot be known.
    Lost(#[expect(dead_code, reason = "shown in events")] String),
    Failed(String),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        let is_fenced = matches!(error, StoreError::Fenced(_)) || has_lost(&error);
        if is_fenced { Self::Lost(error.to_string()) } else { Self::Failed(error.to_string()) }
    }
}

impl From<Fenced> for End {
    fn from(error: Fenced) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<ClaimError> for End {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Lost { .. } | ClaimError::Contended => Self::Lost(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<ReleaseError> for End {
    fn from(error: ReleaseError) -> Self {
        match error {
            ReleaseError::Fence(FenceError::Superseded(_)) => Self::Lost(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

fn failed(error: impl std::fmt::Display) -> End {
    End::Failed(error.to_string())
}

/// A process of a host.
pub struct Process {
    pub simulation: Arc<Simulation>,
    pub host: usize,
    pub process: u64,
    /// The shared directory, as this host has it mounted.
    pub dir: std::path::PathBuf,
    /// The same, as the checker has it.
    pub checked_dir: std::path::PathBuf,
}

impl Process {
    /// Runs until the node ends; the process ends with it.
    pub fn run(self) {
        let end = self.live();
        let mut world = self.simulation.lock();
        // The same in every run, wherever it is mounted.
        let text = format!("{end:?}").replace(&*self.dir.to_string_lossy(), "store");
        world.note(format_args!("ends: {text}"));
        let superseded = self.is_superseded(&world);
        match end {
            Err(End::Failed(what)) => {
                // One that has lost may find anything. Errors that were made to happen are what they are.
                let is_expected = superseded || world.tally_errors() || is_space(&what);
                if !is_expected {
                    world.fail(format!("a node has failed for no reason: {what}"));
                }
            }
            Err(End::Lost(_)) => world.tally.fenced += 1,
            Ok(End::Released) => world.tally.releases += 1,
            Ok(_) | Err(End::Released) => {}
        }
        drop(world);
        self.simulation.exit(self.host);
    }

    fn is_superseded(&self, world: &World) -> bool {
        let mine = world.masters[self.host].map(|master| master.epoch);
        mine.is_some_and(|mine| {
            world.history.owners.keys().next_back().is_some_and(|&highest| highest > mine)
        })
    }

    fn live(&self) -> Result<End, End> {
        let directory = Directory::open(&self.dir, Create::Allowed, None).map_err(failed)?;
        let lock = self.stand_by(&directory)?;
        let mastership = self.claim(lock)?;
        let mut guard = Guard::new(self, &mastership);
        let (store, snapshot) = self.open(&mastership, &mut guard)?;
        self.check_takeover();
        self.serve(&mastership, store, snapshot, &mut guard)?;
        mastership.release(FenceRead::Reopen)?;
        Ok(End::Released)
    }

    fn pause(&self, us: u64) {
        disk::world::pause(&self.dir, Duration::from_micros(us));
    }

    fn stand_by(&self, directory: &Directory) -> Result<StoreLock, End> {
        loop {
            if let LockAttempt::Acquired(lock) = directory.try_lock().map_err(failed)? {
                let master = directory.status().map_err(failed)?;
                let epoch = master.filter(|block| block.state != State::Released).map(|block| block.epoch.0);
                if !epoch.is_some_and(|epoch| self.is_healthy_elsewhere(epoch)) {
                    return Ok(lock);
                }
            }
            self.pause(POLL_US);
        }
    }

    /// What the standby's connection to the master tells it.
    fn is_healthy_elsewhere(&self, epoch: u64) -> bool {
        let world = self.simulation.lock();
        let other = 1 - self.host;
        let is_reachable = world.hosts[other].paused_until <= world.clock;
        let is_healthy = |master: Master| {
            let age_max = if master.is_serving { FENCE_AGE_MAX_US } else { 60 * FENCE_AGE_MAX_US };
            master.epoch >= epoch && world.clock <= master.checked_at + age_max
        };
        is_reachable && world.masters[other].is_some_and(is_healthy)
    }

    fn claim(&self, lock: StoreLock) -> Result<Mastership, End> {
        store::check::check(&self.dir, &predecessors(&lock, LateWrites::MayArrive)?)?;
        let boot = Uuid::from_u128(u128::from(self.simulation.lock().chance.next()));
        let identity = Identity {
            node: Name::new(["a", "b"][self.host]).expect("a name"),
            incarnation: boot,
            boot,
            pid_namespace: 1,
            time_namespace: 1,
            pid: 1,
            started: 1,
        };
        let address = Address::new("").expect("a short address");
        let mut mastership = claim(lock, Candidate { identity, address, mode: Mode::File })?;
        let epoch = mastership.epoch().0;
        {
            let mut world = self.simulation.lock();
            world.tally.claims += 1;
            world.note(format_args!("has claimed epoch {epoch}"));
            if let Some(other) = world.history.owners.insert(epoch, self.process) {
                world.fail(format!("epoch {epoch} has two owners, {other} and {}", self.process));
            }
            let checked_at = world.clock;
            world.masters[self.host] = Some(Master { epoch, checked_at, is_serving: false });
        }
        if let Some(newest) = Manifest::newest(&self.dir, mastership.epoch())? {
            mastership.note_mode(newest.mode, FenceRead::Reopen)?;
        }
        Ok(mastership)
    }

    fn open(
        &self,
        mastership: &Mastership,
        guard: &mut Guard<'_>,
    ) -> Result<(Box<dyn Store>, Snapshot), End> {
        let options = OpenOptions {
            dir: self.dir.clone(),
            mode: Mode::File,
            epoch: mastership.epoch(),
            predecessors: mastership.predecessors(),
            segment_bytes: self.simulation.lock().setting.segment_bytes,
        };
        conversion::clear(&options.dir, options.epoch, &mut || guard.check())?;
        Ok(store::open(&options, &mut || guard.check())?)
    }

    /// Everything that was promised is there, as soon as the store is sealed.
    fn check_takeover(&self) {
        let mut world = self.simulation.lock();
        world.tally.takeovers += 1;
        world.note(format_args!("serves"));
        if let Some(master) = &mut world.masters[self.host] {
            master.is_serving = true;
        }
        drop(world);
        check_store(&self.simulation, &self.checked_dir, "after a takeover");
    }

    fn serve(
        &self,
        mastership: &Mastership,
        store: Box<dyn Store>,
        snapshot: Snapshot,
        guard: &mut Guard<'_>,
    ) -> Result<(), End> {
        let time = snapshot.time;
        let reader = store.reader()?;
        let broker = Broker::new(snapshot, Limits::default(), AutoCreate::Allowed);
        let node = Node { process: self.process, epoch: mastership.epoch().0 };
        let mut serving = Serving {
            process: self,
            node,
            broker,
            store,
            reader,
            time,
            output: Output::default(),
            reads: Vec::new(),
            sessions: Vec::new(),
            staged: None,
            idle_since: 0,
        };
        serving.run(guard)?;
        let Serving { broker, store, reader, .. } = serving;
        drop(reader);
        store.close(&mut || broker.snapshot(), &mut || guard.check())?;
        Ok(())
    }
}

/// Checks that a store has what was promised.
pub fn check_store(simulation: &Simulation, dir: &Path, when: &str) {
    let history = std::mem::take(&mut simulation.lock().history);
    let checked = quietly(|| history.check(dir));
    let mut world = simulation.lock();
    world.history = history;
    if let Err(what) = checked {
        world.fail(format!("{when}: {what}"));
    }
}

fn is_space(what: &str) -> bool {
    what.contains("no space") || what.contains("No space") || what.contains("before it can serve")
}

/// The check of a mastership.
struct Guard<'a> {
    process: &'a Process,
    mastership: &'a Mastership,
    fence: Fence,
}

impl<'a> Guard<'a> {
    fn new(process: &'a Process, mastership: &'a Mastership) -> Self {
        let fence = mastership.fence(FenceRead::Reopen);
        Self { process, mastership, fence }
    }

    fn check(&mut self) -> Result<(), Fenced> {
        let began_at = self.process.simulation.lock().clock;
        self.fence.check().map_err(|error| match error {
            FenceError::Superseded(epoch) => Fenced::Superseded(epoch),
            other => Fenced::Unknown(other.to_string()),
        })?;
        if let Some(master) = &mut self.process.simulation.lock().masters[self.process.host] {
            master.checked_at = began_at;
        }
        Ok(())
    }

    fn check_lock(&mut self) -> Result<(), Fenced> {
        self.mastership.lock().verify().map_err(|error| Fenced::Unknown(error.to_string()))?;
        self.check()
    }
}

/// A publish whose block is being written ahead.
struct Staged {
    session: SessionId,
    command: Command,
    block: MessageBlock,
    is_done: Arc<AtomicBool>,
    /// What the session wants behind it.
    behind: Vec<Command>,
}

struct Serving<'a> {
    process: &'a Process,
    node: Node,
    broker: Broker,
    store: Box<dyn Store>,
    reader: Box<dyn Reader>,
    time: Timestamp,
    output: Output,
    reads: Vec<Read>,
    sessions: Vec<SessionId>,
    staged: Option<Staged>,
    idle_since: u64,
}

impl Serving<'_> {
    /// Goes round until the node is to hand over and has drained.
    fn run(&mut self, guard: &mut Guard<'_>) -> Result<(), End> {
        let mut draining = None;
        loop {
            let ended = self.round(guard, draining.is_some())?;
            if self.store.maintenance_due() {
                let Self { broker, store, .. } = self;
                store.maintain(&mut || broker.snapshot(), &mut || guard.check())?;
            }
            let is_told = self.process.simulation.lock().handing_over[self.process.host];
            match &mut draining {
                None if is_told => draining = Some(DRAIN_TURNS),
                None => {}
                Some(0) => return Ok(()),
                Some(_) if ended && self.staged.is_none() => return Ok(()),
                Some(turns) => *turns -= 1,
            }
        }
    }

    fn now(&mut self) -> Timestamp {
        let clock = self.process.simulation.lock().clock;
        self.time = self.time.max(Timestamp(1_000_000 + clock / MS));
        self.time
    }

    /// One cycle. Answers whether nothing is in flight.
    fn round(&mut self, guard: &mut Guard<'_>, draining: bool) -> Result<bool, End> {
        let now = self.now();
        let space = self.store.space(FreeMin::Bytes(0))?;
        self.broker.begin_cycle(space);
        let used = self.work(now, draining)?;
        self.broker.finish(now, &mut self.output);
        self.commit(guard)?;
        if let Some(block) = used {
            self.store.unstage(block.bytes())?;
        }
        self.release(guard)?;
        Ok(self.broker.counts().in_flight == 0)
    }

    /// Lets the broker work. Answers the block that its commit finds written ahead.
    fn work(&mut self, now: Timestamp, draining: bool) -> Result<Option<MessageBlock>, End> {
        for read in std::mem::take(&mut self.reads) {
            let chunk = self.reader.read(read.topic, read.from, read.bytes_max)?;
            self.broker.loaded(now, read, chunk, &mut self.output);
        }
        let (commands, stages) = {
            let mut world = self.process.simulation.lock();
            let World { clients, chance, history, clock, .. } = &mut *world;
            let commands = clients.commands(self.node, *clock, chance, history);
            (commands, chance.one_in(8))
        };
        if draining {
            for &session in &self.sessions {
                self.broker.handle(now, session, Command::OutputFull, &mut self.output);
            }
        }
        for (session, command) in commands {
            if matches!(command, Command::Begin) {
                self.sessions.push(session);
            }
            match (&mut self.staged, command) {
                (Some(staged), command) if staged.session == session => staged.behind.push(command),
                (staged @ None, Command::Publish(publish, block)) if stages => {
                    let is_done = Arc::new(AtomicBool::new(false));
                    let told = Arc::clone(&is_done);
                    let word = Box::new(move || told.store(true, Ordering::Release));
                    self.store.stage(block.bytes().clone(), word);
                    let command = Command::Publish(publish, block.clone());
                    *staged = Some(Staged { session, command, block, is_done, behind: Vec::new() });
                }
                (_, command) => self.broker.handle(now, session, command, &mut self.output),
            }
        }
        let Some(staged) = self.staged.take_if(|staged| staged.is_done.load(Ordering::Acquire)) else {
            return Ok(None);
        };
        self.broker.grant(self.store.staged_bytes(staged.block.bytes()));
        for command in std::iter::once(staged.command).chain(staged.behind) {
            self.broker.handle(now, staged.session, command, &mut self.output);
        }
        Ok(Some(staged.block))
    }

    /// Makes the records durable; holds them as long as there is no space.
    fn commit(&mut self, guard: &mut Guard<'_>) -> Result<(), End> {
        if self.output.records.is_empty() {
            return Ok(());
        }
        loop {
            match self.store.commit(&self.output.records) {
                Err(StoreError::Full(_)) => {
                    self.process.simulation.lock().tally.held_commits += 1;
                    guard.check_lock()?;
                    self.store.make_space(&mut || guard.check())?;
                    self.process.pause(POLL_US);
                }
                committed => break committed?,
            }
        }
        self.output.records.clear();
        Ok(())
    }

    /// Lets out what depends on the commit, after a check that began after it.
    fn release(&mut self, guard: &mut Guard<'_>) -> Result<(), End> {
        let idle = self.output.effects.is_empty() && self.output.reads.is_empty();
        let clock = self.process.simulation.lock().clock;
        if self.idle_since + POLL_US <= clock {
            guard.check_lock()?;
            self.idle_since = clock;
        } else if !idle {
            guard.check()?;
        }
        let mut world = self.process.simulation.lock();
        let World { clients, history, tally, clock, .. } = &mut *world;
        let mut wrong = None;
        let mut notes = Notes { history, tally, wrong: &mut wrong };
        for effect in self.output.effects.drain(..) {
            clients.told(effect.session, effect.content, *clock, &mut notes);
        }
        if let Some(what) = wrong {
            world.fail(what);
        }
        let pause = world.chance.between(1, if idle { 20 } else { 2 }) * MS;
        drop(world);
        self.reads.append(&mut self.output.reads);
        self.process.pause(pause);
        Ok(())
    }
}
