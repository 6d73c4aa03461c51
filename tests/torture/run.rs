//! A run in one mode: windows until its time is over, and a verdict.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::arguments::Arguments;
use crate::clock;
use crate::faults::Scene;
use crate::lanes::{Checked, Found};
use crate::plan::{Besides, Fault, Plan};
use crate::support::history::Violation;
use crate::verdict::{Failure, Tally, Verdict};
use crate::workload::{self, Memory, Workload};
use crate::world::{Trouble, World};

/// Messages that must be confirmed after each fault.
const WORKS: u64 = 50;
/// Threads of clients and of what counts them.
const THREADS: usize = 4;

/// Faults that are asked for and can strike, and those that cannot.
fn faults(arguments: &Arguments) -> (Vec<Fault>, Vec<(Fault, &'static str)>) {
    let asked =
        if arguments.faults.is_empty() { Fault::value_variants().to_vec() } else { arguments.faults.clone() };
    let mut left_out = Vec::new();
    let able = asked.into_iter().filter(|fault| {
        let why = match fault {
            Fault::Upgrade if arguments.other.is_none() => "no other build: name one with --other",
            Fault::Clock if clock::library().is_none() => "libfaketime is not installed",
            _ => return true,
        };
        left_out.push((*fault, why));
        false
    });
    (able.collect(), left_out)
}

/// A run in one mode, in a folder that is kept if it fails.
pub fn run(arguments: &Arguments, mode: &'static str, seed: u64, interrupted: &Arc<AtomicBool>) -> Verdict {
    let dir = tempfile::Builder::new().prefix("baton-torture-").tempdir().unwrap();
    let began = Instant::now();
    let mut tally = Tally::default();
    let (faults, left_out) = faults(arguments);
    let plan = Plan::new(seed, faults);
    let tortured = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
        runtime.unwrap().block_on(async {
            tokio::spawn(heed(Arc::clone(interrupted)));
            let world = World::new(dir.path(), mode, clock::library().as_deref());
            let memory = Memory::default();
            let mut torture = Torture { arguments, seed, world, plan, tally: &mut tally, memory };
            let result = torture.run(interrupted).await;
            if result.is_err() {
                torture.world.keep_store();
            }
            result
        })
    }));
    let failure = match tortured {
        Ok(result) => result.err(),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
            Some(Failure::from(format!("panicked: {}", said.unwrap_or_default())))
        }
    };
    let kept = failure.is_some().then(|| dir.keep().display().to_string());
    Verdict { mode, seed, took: began.elapsed(), tally, left_out, failure, kept }
}

/// Ends the run early where somebody asks for that.
async fn heed(interrupted: Arc<AtomicBool>) {
    if tokio::signal::ctrl_c().await.is_ok() {
        eprintln!("interrupted: this window is brought to its end");
        interrupted.store(true, Ordering::Relaxed);
    }
}

struct Torture<'a> {
    arguments: &'a Arguments,
    seed: u64,
    world: World,
    plan: Plan,
    tally: &'a mut Tally,
    memory: Memory,
}

impl Torture<'_> {
    /// Windows until the time is over; then the pair is stopped and its store looked through.
    async fn run(&mut self, interrupted: &AtomicBool) -> Result<(), Failure> {
        let end = Instant::now() + self.arguments.minutes;
        self.world.settled().await?;
        workload::furnish().await?;
        while Instant::now() < end && !interrupted.load(Ordering::Relaxed) {
            self.window(end).await?;
        }
        self.close().await?;
        Ok(())
    }

    async fn close(&mut self) -> Result<(), Trouble> {
        self.world.settled().await?;
        self.world.stop().await?;
        self.world.panicked()?;
        self.world.verify()
    }

    async fn window(&mut self, end: Instant) -> Result<(), Failure> {
        let view = self.plan.view();
        self.world.look_through(view).await?;
        let workload = Workload::start(&mut self.memory, self.seed).await?;
        let struck = self.strikes(&workload, end).await;
        let mut trouble = struck.and_then(|()| self.world.panicked());
        if trouble.is_ok() {
            trouble = self.world.settled().await.map(drop);
        }
        if trouble.is_ok() {
            trouble = workload.finish(&mut self.memory).await;
        } else {
            workload.stop();
        }
        let checked = self.memory.lanes.check();
        self.count(&checked);
        let found = checked.found;
        match trouble {
            Ok(()) if found.is_empty() => Ok(()),
            Ok(()) => Err(Failure { trouble: None, found }),
            Err(trouble) => {
                // Messages are missing because the window came to no end.
                let is_missing = |found: &Found| matches!(found.violation, Violation::Lost { .. });
                let found = found.into_iter().filter(|found| !is_missing(found)).collect();
                Err(Failure { trouble: Some(trouble), found })
            }
        }
    }

    /// Faults until the window is over.
    async fn strikes(&mut self, workload: &Workload, end: Instant) -> Result<(), Trouble> {
        let end = end.min(Instant::now() + Duration::from_secs(self.arguments.window));
        let mut scene = Scene {
            world: &mut self.world,
            workload,
            tally: &mut *self.tally,
            other: self.arguments.other.as_ref(),
        };
        scene.works(WORKS).await?;
        while Instant::now() < end && !workload.is_full() {
            let Some(strike) = self.plan.strike() else {
                scene.world.pass(Duration::from_millis(100)).await?;
                continue;
            };
            scene.works(strike.after).await?;
            *scene.tally.faults.entry(strike.fault).or_default() += 1;
            let began = Instant::now();
            let struck = scene.strike(strike).await;
            let besides = if strike.fault.lasts() { strike.besides } else { Besides::Nothing };
            let (view, took) = (scene.world.view, began.elapsed());
            eprintln!("  {view:?}: {}, besides {besides:?}: {took:.1?}", strike.fault.name());
            struck.map_err(|trouble| format!("{strike:?}: {trouble}"))?;
            scene.works(WORKS).await?;
        }
        Ok(())
    }

    fn count(&mut self, checked: &Checked) {
        self.tally.windows += 1;
        self.tally.events += checked.events;
        self.tally.dead_letters += checked.dead_letters;
        self.tally.confirmed = self.memory.confirmed.load(Ordering::Relaxed);
        self.tally.delivered = self.memory.delivered.load(Ordering::Relaxed);
        self.tally.clean_ends = self.world.ends.clean;
        self.tally.fenced_ends = self.world.ends.fenced;
        self.tally.refused_ends = self.world.ends.refused;
        let used = self.world.used_mebibytes();
        self.tally.used_mebibytes_max = self.tally.used_mebibytes_max.max(used);
        eprintln!(
            "window {}, {:?}, {} mode: {} confirmed, {} delivered, {} events, epoch {}, {used} MiB used",
            self.tally.windows,
            self.world.view,
            self.world.mode,
            self.tally.confirmed,
            self.tally.delivered,
            checked.events,
            self.world.epoch
        );
    }
}
