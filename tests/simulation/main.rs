//! Two nodes over a shared disk that is simulated: everything that happens is decided by a seed.
//!
//!     cargo test --locked --release --test simulation -- --seeds 10000 --seed 1
//!
//! Lock, claim, fence, the file store with its threads, engine and broker are the real ones; they get to the disk through
//! `batonmq::disk`, where a mount takes the place of the system. The disk has leases for locks, or locks that lie; caches
//! on each host; writes that arrive in pieces or late; and faults, which the seed draws. At the end of each seed, and after
//! each takeover, everything that clients were promised must be in the store. What must not be at any time is said where it
//! is noted: in `claims`, `node` and `clients`.
//!
//! The failure of a seed is printed with the last events before it, and comes again each time that seed is run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arguments;
mod chance;
mod claims;
mod clients;
mod history;
mod host;
mod mount;
mod node;
mod run;
mod scheduler;
mod server;
mod setting;
mod tally;
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;

use arguments::Arguments;
use tally::Tally;

/// Seeds that every run of the tests tries.
const SEEDS: u64 = 40;
/// Events that are shown before a failure.
const EVENTS_SHOWN: usize = 120;
/// Seeds that have found something, run each time too: a name that a new master had accepted before it was durable.
const SEEDS_FOUND: &[u64] = &[30_676];
/// Seeds that are run twice, to show that they determine what happens.
const SEEDS_TWICE: u64 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.filter.as_ref().is_some_and(|filter| !"simulation".contains(filter.as_str())) {
        return ExitCode::SUCCESS;
    }
    let began = Instant::now();
    let faults = arguments.faults();
    let seeds = arguments.seeds.unwrap_or(SEEDS);
    let next = AtomicU64::new(arguments.seed);
    let end = arguments.seed + seeds;
    let result = Mutex::new((Tally::default(), Vec::new(), 0));
    let events_max = if arguments.trace { usize::MAX } else { EVENTS_SHOWN };
    let found = if arguments.seeds.is_none() { SEEDS_FOUND } else { &[] };
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let seed = number
                .checked_sub(end)
                .and_then(|index| found.get(index as usize).copied())
                .unwrap_or(number);
            if number >= end + found.len() as u64
                || (!arguments.keep_going && !result.lock().unwrap().1.is_empty())
            {
                break;
            }
            let outcome = run::run(seed, &faults, events_max);
            let mut same = true;
            if seed < arguments.seed + SEEDS_TWICE {
                let again = run::run(seed, &faults, events_max);
                same = (again.digest, again.steps) == (outcome.digest, outcome.steps);
            }
            let mut result = result.lock().unwrap();
            result.0.add(&outcome.tally);
            result.2 += 1;
            let failure =
                outcome.failure.or_else(|| (!same).then(|| "it is not the same each time".to_owned()));
            if arguments.trace || (failure.is_some() && result.1.is_empty()) {
                eprintln!("{}", outcome.events);
                eprintln!(
                    "seed {seed}, {} steps, digest {:016x}\n{}",
                    outcome.steps, outcome.digest, outcome.setting
                );
            }
            if let Some(failure) = failure {
                eprintln!("FAILED seed {seed}: {failure}");
                result.1.push(seed);
            }
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.unwrap_or(processors) {
            scope.spawn(work);
        }
    });
    let (tally, failed, count) = result.into_inner().unwrap();
    let took = began.elapsed();
    println!("{tally}");
    let speed = f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took.as_secs_f64();
    println!("simulation: {count} seeds in {took:.1?}, {speed:.1} a second, {} failed", failed.len());
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("again: cargo test --locked --test simulation -- --seeds 1 --seed {}", failed[0]);
    ExitCode::FAILURE
}
