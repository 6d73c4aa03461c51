//! Threads of which exactly one runs at a time, and the one who says which.
//!
//! Each thread of a simulation is a thread of the system that waits until it is its turn. It gives its turn away at each
//! operation on the disk, where it waits for another thread, and where it lets time pass; who goes on is drawn. So a seed
//! determines everything that happens. Time is virtual: an operation takes some, and where nobody can go on it jumps to
//! when the next one can.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::world::World;

/// Which thread of a simulation.
pub type TaskId = usize;

/// The thread that starts and ends the others.
pub const CONTROLLER: TaskId = 0;

/// How long a thread may really work before something of it waits outside of the simulation.
const REAL_TIME_MAX: Duration = Duration::from_secs(120);

/// Whether something is so that a thread waits for.
pub type Condition = Arc<dyn Fn() -> bool + Send + Sync>;

/// What a thread waits for.
pub enum Wait {
    /// Its turn.
    Turn,
    /// A time.
    Until(u64),
    /// What another thread brings about.
    For(Condition),
    /// Nothing any more.
    Ended,
}

pub struct Task {
    /// On which host, in which process.
    pub process: Option<(usize, u64)>,
    pub name: &'static str,
    pub wait: Wait,
    pub killed: bool,
    wake: Arc<Condvar>,
}

/// What a thread of a process that was killed unwinds with.
struct Killed;

/// A simulation, shared by its threads.
pub struct Simulation {
    world: Mutex<World>,
    /// Where virtual time begins.
    base: Instant,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

pub type Held<'a> = MutexGuard<'a, World>;

thread_local! {
    static TASK: Cell<TaskId> = const { Cell::new(CONTROLLER) };
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Does something on this thread during which nothing else happens in the world, and nothing goes wrong.
pub fn quietly<T>(what: impl FnOnce() -> T) -> T {
    let before = QUIET.replace(true);
    let done = what();
    QUIET.set(before);
    done
}

pub fn is_quiet() -> bool {
    QUIET.get()
}

/// The thread that runs.
pub fn current() -> TaskId {
    TASK.get()
}

impl Simulation {
    /// A world with its controller, who is the calling thread.
    pub fn new(mut world: World) -> Arc<Self> {
        TASK.set(CONTROLLER);
        world.tasks.push(Task {
            process: None,
            name: "controller",
            wait: Wait::Turn,
            killed: false,
            wake: Arc::default(),
        });
        Arc::new(Self { world: Mutex::new(world), base: Instant::now(), threads: Mutex::default() })
    }

    pub fn lock(&self) -> Held<'_> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time, as the code under simulation has it.
    pub fn now(&self) -> Instant {
        self.base + Duration::from_micros(self.lock().clock)
    }

    /// Starts a thread, which runs when it is its turn.
    pub fn start(
        self: &Arc<Self>,
        process: Option<(usize, u64)>,
        name: &'static str,
        work: Box<dyn FnOnce() + Send>,
    ) {
        let wake = Arc::new(Condvar::new());
        let id = {
            let mut world = self.lock();
            let task = Task { process, name, wait: Wait::Turn, killed: false, wake: Arc::clone(&wake) };
            world.tasks.push(task);
            world.tasks.len() - 1
        };
        let simulation = Arc::clone(self);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            TASK.set(id);
            let is_killed = simulation.wait_for_turn(id, simulation.lock()).tasks[id].killed;
            let end = if is_killed { Ok(()) } else { catch_unwind(AssertUnwindSafe(work)) };
            simulation.end(id, end.err());
        });
        let thread = thread.expect("there can be another thread");
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    fn end(&self, id: TaskId, panic: Option<Box<dyn Any + Send>>) {
        let mut world = self.lock();
        world.tasks[id].wait = Wait::Ended;
        if let Some(panic) = panic.filter(|panic| !panic.is::<Killed>()) {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text");
            let name = world.tasks[id].name;
            world.fail(format!("{name} has panicked: {text}"));
        }
        let next = world.next_task(None);
        world.running = next;
        world.tasks[next].wake.notify_one();
    }

    /// Gives the turn away and waits for the next one, or for more. A thread whose process is killed ends here.
    pub fn turn<'a>(&'a self, mut world: Held<'a>, wait: Wait) -> Held<'a> {
        let me = current();
        world.tasks[me].wait = wait;
        let next = world.next_task(Some(me));
        if next != me {
            world.running = next;
            world.tasks[next].wake.notify_one();
            world = self.wait_for_turn(me, world);
        }
        world.tasks[me].wait = Wait::Turn;
        if world.tasks[me].killed {
            drop(world);
            resume_unwind(Box::new(Killed));
        }
        world
    }

    fn wait_for_turn<'a>(&self, me: TaskId, world: Held<'a>) -> Held<'a> {
        let wake = Arc::clone(&world.tasks[me].wake);
        let waited = wake.wait_timeout_while(world, REAL_TIME_MAX, |world| world.running != me);
        let (world, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            eprintln!(
                "seed {}: {} waits outside of the simulation",
                world.seed, world.tasks[world.running].name
            );
            std::process::abort();
        }
        world
    }

    /// Lets time pass for this thread.
    pub fn pause(&self, us: u64) {
        if is_quiet() || std::thread::panicking() {
            return;
        }
        let world = self.lock();
        let until = world.clock + us;
        drop(self.turn(world, Wait::Until(until)));
    }

    /// Waits until something is so.
    pub fn wait(&self, condition: Condition) {
        if !std::thread::panicking() && !condition() {
            drop(self.turn(self.lock(), Wait::For(condition)));
        }
    }

    /// Ends the calling thread with its process, as a process that ends at once.
    pub fn exit(&self, host: usize) -> ! {
        let mut world = self.lock();
        world.end_process(host);
        drop(world);
        resume_unwind(Box::new(Killed))
    }

    /// Unwinds the calling thread, whose process was killed.
    pub fn die(world: Held<'_>) -> ! {
        drop(world);
        resume_unwind(Box::new(Killed))
    }

    /// Ends everything but the controller, who calls it.
    pub fn finish(&self) {
        let mut world = self.lock();
        world.tasks.iter_mut().skip(1).for_each(|task| task.killed = true);
        while world.tasks.iter().skip(1).any(|task| !matches!(task.wait, Wait::Ended)) {
            world = self.turn(world, Wait::Turn);
        }
        drop(world);
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            // How it ended is known.
            let _ = thread.join();
        }
    }
}

impl World {
    /// Who goes on. Time jumps where nobody can.
    fn next_task(&mut self, me: Option<TaskId>) -> TaskId {
        self.steps += 1;
        let mut able = Vec::new();
        loop {
            for (id, task) in self.tasks.iter().enumerate() {
                if matches!(task.wait, Wait::Ended) {
                    continue;
                }
                if task.killed {
                    return id;
                }
                if self.is_paused(task) {
                    continue;
                }
                let is_able = match &task.wait {
                    Wait::Turn => true,
                    Wait::Until(time) => *time <= self.clock,
                    Wait::For(condition) => condition(),
                    Wait::Ended => false,
                };
                if is_able {
                    able.push(id);
                }
            }
            if !able.is_empty() {
                break;
            }
            match self.next_time() {
                Some(time) => self.clock = time,
                None => {
                    self.fail("nobody can go on".to_owned());
                    return CONTROLLER;
                }
            }
        }
        match me {
            Some(me) if able.contains(&me) && self.chance.percent(self.setting.steadiness) => me,
            _ => self.chance.pick(&able),
        }
    }

    fn is_paused(&self, task: &Task) -> bool {
        task.process.is_some_and(|(host, _)| self.hosts[host].paused_until > self.clock)
    }

    /// When somebody can go on who cannot now.
    fn next_time(&self) -> Option<u64> {
        let times = self.tasks.iter().filter(|task| !matches!(task.wait, Wait::Ended)).filter_map(|task| {
            let paused = task.process.map_or(0, |(host, _)| self.hosts[host].paused_until);
            match &task.wait {
                Wait::Until(time) => Some((*time).max(paused)),
                Wait::Turn => Some(paused),
                Wait::For(condition) => condition().then_some(paused),
                Wait::Ended => None,
            }
        });
        times.filter(|&time| time > self.clock).min()
    }
}
