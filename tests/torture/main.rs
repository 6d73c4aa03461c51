//! Torture: a pair of nodes under load, faults one after the other for as long as it is told, and a checker that says
//! whether what clients saw may be.
//!
//!     cargo test --locked --test torture -- --minutes 10 --mode both --seed 7
//!
//! Time is cut into windows. In each of them publishers, consumers and transactions are at work while faults strike; then
//! the publishers stop, everything must be drained, and the window is checked: so memory is bounded however long it runs.
//! The nodes and the store go on from window to window.
//!
//! It runs in namespaces of its own for processes, mounts and the network: whatever happens to it, nothing of it stays
//! but the folder of a run that has failed. Needs root, `/dev/fuse`, `iproute2`, and `libfaketime` for clocks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arguments;
mod consumers;
mod faults;
mod lanes;
mod network;
mod plan;
mod publisher;
mod run;
#[path = "../support/mod.rs"]
mod support;
mod verdict;
mod workload;
mod world;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;

use arguments::Arguments;
use support::clock;
use support::namespaces::enter;
use verdict::Verdict;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(failure) = enter() {
        return failure;
    }
    // Shared memory of what shifts clocks lies there, and stays where a process is killed.
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/dev/shm"]).status();
    assert!(mounted.is_ok_and(|status| status.success()), "no file system in memory: this needs root");
    let made_up = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = arguments.seed.unwrap_or_else(made_up);
    eprintln!("seed {seed}");
    let interrupted = Arc::new(AtomicBool::new(false));
    let mut verdicts = Vec::new();
    for mode in arguments.mode.list() {
        let verdict = run::run(&arguments, mode, seed, &interrupted);
        eprintln!("{}", verdict.text());
        let failed = verdict.failure.is_some();
        verdicts.push(verdict);
        if failed || interrupted.load(Ordering::Relaxed) {
            break;
        }
    }
    if arguments.json {
        println!("{}", serde_json::Value::Array(verdicts.iter().map(Verdict::json).collect()));
    }
    if verdicts.iter().all(|verdict| verdict.failure.is_none()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
