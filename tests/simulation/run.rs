//! One seed: a world with two hosts, from an empty disk to the last check.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use batonmq::disk::mount::{Installed, install};

use crate::history::verify;
use crate::mount::SimulatedMount;
use crate::node::{Process, check_store};
use crate::scheduler::{Simulation, quietly};
use crate::setting::{Fault, MS};
use crate::tally::Tally;
use crate::world::{CHECKER, HOSTS, World};

/// Steps within which a pair must have come to rest once faults have ceased.
const STEPS_TO_REST: u64 = 60_000;

/// What came of a seed.
pub struct Outcome {
    pub failure: Option<String>,
    pub tally: Tally,
    pub digest: u64,
    pub steps: u64,
    pub events: String,
    pub setting: String,
}

/// Paths of mounts in this process, so that several simulations can run at a time.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Runs a seed, with these faults; the outcome shows so many events at the most.
pub fn run(seed: u64, allowed: &[Fault], events_max: usize) -> Outcome {
    let simulation = Simulation::new(World::new(seed, allowed, events_max));
    let root = PathBuf::from(format!("/simulated/{}", RUNS.fetch_add(1, Ordering::Relaxed)));
    let paths: Vec<PathBuf> = (0..=CHECKER).map(|host| root.join(host.to_string())).collect();
    let mounted: Vec<Installed> = paths
        .iter()
        .enumerate()
        .map(|(host, path)| {
            let simulation = Arc::clone(&simulation);
            install(path, Arc::new(SimulatedMount { simulation, host, path: path.clone() }))
        })
        .collect();
    let pair = Pair { simulation: Arc::clone(&simulation), paths };
    pair.live();
    simulation.finish();
    if simulation.lock().failure.is_none() {
        check_store(&simulation, &pair.store(CHECKER), "in the end");
        pair.verify();
    }
    drop(mounted);
    let world = simulation.lock();
    Outcome {
        failure: world.failure.clone(),
        tally: world.tally.clone(),
        digest: world.digest(),
        steps: world.steps,
        events: world.last_events(),
        setting: format!("{:?}", world.setting),
    }
}

struct Pair {
    simulation: Arc<Simulation>,
    paths: Vec<PathBuf>,
}

impl Pair {
    fn store(&self, host: usize) -> PathBuf {
        self.paths[host].join("store")
    }

    /// Surveys the store in the end.
    fn verify(&self) {
        let damaged = self.simulation.lock().server.damaged_names();
        let is_known = |path: &Path| damaged.iter().any(|name| path.ends_with(name));
        if let Err(what) = quietly(|| verify(&self.store(CHECKER), is_known)) {
            self.simulation.lock().fail(format!("in the end {what}"));
        }
    }

    fn live(&self) {
        let mut start_at = [0; HOSTS];
        start_at[1] = self.simulation.lock().chance.below(200) * MS;
        let mut rest_by = None;
        loop {
            let mut world = self.simulation.lock();
            if world.failure.is_some() {
                return;
            }
            if rest_by.is_none() && world.steps >= world.setting.steps {
                world.note(format_args!("faults cease"));
                world.calm_down();
                world.clients.lose_patience();
                start_at = [world.clock; HOSTS];
                rest_by = Some(world.steps + STEPS_TO_REST);
            }
            if let Some(rest_by) = rest_by {
                let steps = world.steps;
                let is_serving = world.masters.iter().flatten().any(|master| master.is_serving);
                // Some time for those that are about to end, and then for what they have left to be sent again.
                world.clients.is_over |= steps + STEPS_TO_REST >= rest_by + 500 && is_serving;
                if world.clients.is_over && world.clients.all_confirmed(&world.history) {
                    return;
                }
                if steps > rest_by {
                    world.fail("the pair does not come to rest though nothing fails any more".to_owned());
                    return;
                }
            }
            let starting: Vec<usize> = (0..HOSTS)
                .filter(|&host| world.hosts[host].process.is_none() && start_at[host] <= world.clock)
                .collect();
            for &host in &starting {
                // When it is started again after its end.
                let rest = world.chance.pick(&[10, 200, 3000]);
                start_at[host] = world.clock + world.chance.below(rest) * MS;
            }
            if world.setting.faults.contains(&Fault::Full) && world.chance.one_in(10) {
                world.server.capacity = crate::world::DISK_BYTES;
            }
            let pause = world.chance.between(1, 40) * MS;
            drop(world);
            starting.into_iter().for_each(|host| self.start(host));
            self.simulation.pause(pause);
        }
    }

    fn start(&self, host: usize) {
        let process = {
            let mut world = self.simulation.lock();
            let process = world.new_process();
            world.hosts[host].process = Some(process);
            world.handing_over[host] = false;
            // The disk knows a host that has started anew.
            world.server.locks.values_mut().for_each(|locks| locks.retain(|lock| lock.host != host));
            process
        };
        let node = Process {
            simulation: Arc::clone(&self.simulation),
            host,
            process,
            dir: self.store(host),
            checked_dir: self.store(CHECKER),
        };
        self.simulation.start(Some((host, process)), "node", Box::new(move || node.run()));
    }
}
