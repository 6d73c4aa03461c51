//! A node: from the lock to the release, with the steps of the real one in their order.
//!
//! Lock, claim, fence, store, engine and broker are the real ones; the engine goes round on the thread of the node, which
//! decides nothing but when. What goes before it, from the lock to the open store, and the release behind it, are written
//! anew here: in one thread what `node` does with tasks, and in its order.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use batonmq::broker::{AutoCreate, Command};
use batonmq::disk;
use batonmq::engine::{Budget, Course, Engine, EngineError, Guard, Memory, Parts};
use batonmq::ha::block::{Address, State};
use batonmq::ha::claim::{Candidate, ClaimError, LateWrites, Mastership, ReleaseError, claim, predecessors};
use batonmq::ha::directory::{Create, Directory};
use batonmq::ha::fence::{Fence, FenceError, FenceRead};
use batonmq::ha::identity::Identity;
use batonmq::ha::lock::{LockAttempt, StoreLock};
use batonmq::model::free_min::FreeMin;
use batonmq::model::limits::Limits;
use batonmq::model::name::Name;
use batonmq::model::snapshot::Snapshot;
use batonmq::store::manifest::Manifest;
use batonmq::store::{self, Fenced, Mode, OpenOptions, Store, StoreError, conversion};
use uuid::Uuid;

use crate::clients::Node;
use crate::scheduler::{Simulation, quietly};
use crate::setting::MS;
use crate::world::{Master, World};

/// How often a standby tries the lock, and an idle master checks.
const POLL_US: u64 = 100 * MS;
/// A check that is older than this does not make a master healthy.
const FENCE_AGE_MAX_US: u64 = 1000 * MS;
/// How long a drain takes at the most.
const DRAIN_TIME: Duration = Duration::from_millis(500);

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
        match error {
            StoreError::Fenced(_) => Self::Lost(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<Fenced> for End {
    fn from(error: Fenced) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<EngineError> for End {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(error) => error.into(),
            EngineError::Fenced(error) => error.into(),
            other => Self::Failed(other.to_string()),
        }
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
        let mounted = self.dir.parent().unwrap_or(&self.dir).to_string_lossy();
        let text = format!("{end:?}").replace(&*mounted, "");
        world.note(format_args!("ends: {text}"));
        let superseded = self.is_superseded(&world);
        match end {
            Err(End::Failed(what)) => {
                // One that has lost may find anything. Errors that were made to happen are what they are.
                let is_expected = superseded || world.has_errors() || is_space(&what);
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
        world.masters[self.host].is_some_and(|master| world.claims.has_higher(master.epoch))
    }

    fn live(&self) -> Result<End, End> {
        let directory = Directory::open(&self.dir, Create::Allowed, None).map_err(failed)?;
        let lock = self.stand_by(&directory)?;
        let mastership = self.claim(lock)?;
        let (store, snapshot) = self.open(&mastership)?;
        let mut mastership = Arc::into_inner(mastership).expect("the store is open");
        let mode = mastership.mode();
        self.unless_lost("begun", || mastership.begin(mode, FenceRead::Reopen))?;
        let mastership = Arc::new(mastership);
        self.check_takeover();
        let guard = self.guard(&mastership);
        self.serve(&mastership, store, snapshot, guard)?;
        let mastership = Arc::into_inner(mastership).expect("the engine has ended");
        self.unless_lost("been released", || mastership.release(FenceRead::Reopen))?;
        Ok(End::Released)
    }

    /// Has the own block written, which must fail where a higher epoch had been claimed before.
    fn unless_lost(
        &self,
        what: &str,
        write: impl FnOnce() -> Result<(), ReleaseError>,
    ) -> Result<(), ReleaseError> {
        let was_superseded = self.is_superseded(&self.simulation.lock());
        write()?;
        if was_superseded {
            let mut world = self.simulation.lock();
            world.fail(format!("an epoch has {what} after a higher one was claimed"));
        }
        Ok(())
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
        let is_reachable = world.hosts[other].paused_until <= world.clock && world.cut_until <= world.clock;
        let is_healthy = |master: Master| {
            let age_max = if master.is_serving { FENCE_AGE_MAX_US } else { 60 * FENCE_AGE_MAX_US };
            master.epoch >= epoch && world.clock <= master.checked_at + age_max
        };
        is_reachable && world.masters[other].is_some_and(is_healthy)
    }

    fn claim(&self, lock: StoreLock) -> Result<Arc<Mastership>, End> {
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
            let found = mastership.lower().iter().map(|(lower, _)| lower.0).collect();
            if let Err(what) = world.claims.add(epoch, self.process, found) {
                world.fail(what);
            }
            let checked_at = world.clock;
            world.masters[self.host] = Some(Master { epoch, checked_at, is_serving: false });
        }
        if let Some(newest) = Manifest::newest(&self.dir, mastership.epoch())? {
            mastership.note_mode(newest.mode, FenceRead::Reopen)?;
        }
        Ok(Arc::new(mastership))
    }

    fn guard(&self, mastership: &Arc<Mastership>) -> MastershipGuard {
        MastershipGuard {
            simulation: Arc::clone(&self.simulation),
            host: self.host,
            mastership: Arc::clone(mastership),
            fence: mastership.fence(FenceRead::Reopen),
        }
    }

    fn open(&self, mastership: &Arc<Mastership>) -> Result<(Box<dyn Store>, Snapshot), End> {
        let mut guard = self.guard(mastership);
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

    /// Serves until the node is to hand over and has drained; the store is closed then.
    fn serve(
        &self,
        mastership: &Arc<Mastership>,
        store: Box<dyn Store>,
        snapshot: Snapshot,
        guard: MastershipGuard,
    ) -> Result<(), End> {
        let parts = Parts {
            store,
            snapshot,
            place: self.dir.clone(),
            seen: None,
            guard: Box::new(guard),
            poll_interval: Duration::from_micros(POLL_US),
            limits: Limits::default(),
            auto_create: AutoCreate::Allowed,
            free_min: FreeMin::Bytes(0),
        };
        let (engine, mut turns) = Engine::without_thread(parts)?;
        let node = Node { process: self.process, epoch: mastership.epoch().0 };
        let budget = Budget::new(u64::MAX, &Memory::new(u64::MAX));
        let mut is_draining = false;
        let failed = loop {
            self.submit(&engine, node, &budget);
            match turns.take() {
                Ok(Course::GoesOn) => {}
                Ok(Course::Drained) => break None,
                Err(error) => break Some(error),
            }
            let (is_told, rest) = {
                let mut world = self.simulation.lock();
                world.hear(self.process);
                let rate = world.setting.handover_rate;
                let is_asked = world.chance.one_in(rate) && world.faults_left > 0;
                (world.handing_over[self.host] || is_asked, world.chance.between(1, 10) * MS)
            };
            let now = disk::world::now(&self.dir);
            if is_told && !is_draining {
                is_draining = true;
                engine.drain(now + DRAIN_TIME);
            }
            let due = turns.due_at().saturating_duration_since(now);
            disk::world::pause(&self.dir, due.min(Duration::from_micros(rest)));
        };
        self.simulation.lock().closing[self.host] = failed.is_none();
        turns.end(failed)?;
        self.simulation.lock().hear(self.process);
        Ok(())
    }

    /// Hands over what clients want.
    fn submit(&self, engine: &Engine, node: Node, budget: &Arc<Budget>) {
        let mut world = self.simulation.lock();
        let World { clients, chance, history, clock, .. } = &mut *world;
        for (session, command) in clients.commands(node, *clock, chance, history) {
            match command {
                Command::Begin => {
                    let outbox = clients.outbox(session).expect("it has just connected");
                    engine.begin(session, outbox);
                }
                command => engine.submit(session, vec![command], 1, budget),
            }
        }
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

/// The check of a mastership, as `node::guard` has it.
struct MastershipGuard {
    simulation: Arc<Simulation>,
    host: usize,
    mastership: Arc<Mastership>,
    fence: Fence,
}

impl Guard for MastershipGuard {
    fn check(&mut self) -> Result<(), Fenced> {
        let began_at = self.simulation.lock().clock;
        self.fence.check().map_err(|error| match error {
            FenceError::Superseded(epoch) => Fenced::Superseded(epoch),
            other => Fenced::Unknown(other.to_string()),
        })?;
        if let Some(master) = &mut self.simulation.lock().masters[self.host] {
            master.checked_at = began_at;
        }
        Ok(())
    }

    fn check_lock(&mut self) -> Result<(), Fenced> {
        self.mastership.lock().verify().map_err(|error| Fenced::Unknown(error.to_string()))?;
        self.check()
    }
}
