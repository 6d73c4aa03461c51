//! A rolling upgrade of a pair under load, from an older build of our own to this one, and the way back.
//!
//!     cargo test --locked --test upgrade [-- --older PATH --mode file]
//!
//! Without `--older` the commit that `tests/upgrade/older` names is built first, once.
//!
//! The order is that of `docs/operations.md`: the standby first, a switchover, the other node. In each state on the way,
//! clients of both builds publish and consume, and both nodes are killed. Throughout, publishers and consumers of this
//! build write down what they see, and a client of the older build publishes numbers: nothing may be lost, and nothing
//! be stored twice. In the end both builds must find the store whole.
//!
//! That a build which cannot read the store leaves it and its master alone is shown by
//! `bad_setup::a_store_of_a_newer_format_is_left_as_it_is`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cli;
mod older;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use batonmq::protocol::response::Role;
use clap::{Parser, ValueEnum};
use rustix::process::Signal;

use cli::{Cli, Counting, assert_counted, verify};
use support::history::check;
use support::load::{GROUPS, Load};
use support::pair::{Node, two};

/// Messages that are published by publishers of this build between two steps.
const BETWEEN: u64 = 500;

/// Upgrades a pair from an older build to this one and back, under load.
#[derive(Debug, Parser)]
#[command(name = "upgrade")]
struct Arguments {
    /// The older build; without it one of this repository's history
    #[arg(long, value_name = "PATH")]
    older: Option<PathBuf>,
    /// Mode of the store; both without it
    #[arg(long, value_enum)]
    mode: Option<Mode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    File,
    Database,
}

fn main() -> ExitCode {
    let Arguments { older, mode } = Arguments::parse();
    let older = match older.map_or_else(older::build, |older| Ok(older.canonicalize().unwrap_or(older))) {
        Ok(older) => older,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for mode in [Mode::File, Mode::Database].into_iter().filter(|one| mode.is_none_or(|mode| mode == *one)) {
        let word = if mode == Mode::File { "file" } else { "database" };
        runtime.block_on(Upgrade::goes_up_and_back_without_loss(word, &older));
    }
    ExitCode::SUCCESS
}

/// A pair on its way from one build to another.
struct Upgrade<'a> {
    nodes: [Node; 2],
    servers: String,
    older: &'a Path,
    newer: PathBuf,
    load: Load,
    /// Of the older build.
    counting: Counting,
    /// States that clients of both builds have met.
    states: usize,
    kills: usize,
}

/// The nodes by their places in the pair. The first one is master in the beginning.
const A: usize = 0;
const B: usize = 1;

impl<'a> Upgrade<'a> {
    async fn goes_up_and_back_without_loss(mode: &'static str, older: &'a Path) {
        let started = Instant::now();
        let dir = tempfile::tempdir().unwrap();
        // Small segments, so that rotation, checkpoints and reclaim happen all the time.
        let set = |node: Node| {
            let mut node = node.set("BATON_SEGMENT_BYTES", 1 << 20);
            older.clone_into(&mut node.program);
            node
        };
        let (nodes, servers) = two(mode, dir.path(), set).await;
        let load = Load::start(&servers, 100).await;
        let counting = Cli { program: older, servers: &servers }.start_publishing("numbers");
        let newer = PathBuf::from(env!("CARGO_BIN_EXE_baton"));
        let mut pair = Self { nodes, servers, older, newer, load, counting, states: 0, kills: 0 };
        pair.use_all().await;

        // The standby first.
        pair.restart_standby(B, pair.newer.clone()).await;
        pair.use_all().await;
        // Whatever fails half-way: each of the builds goes on with what the other one has left.
        pair.kill_standby(B).await;
        pair.kill_master(A).await;
        pair.use_all().await;
        pair.kill_standby(A).await;
        pair.kill_master(B).await;
        pair.use_all().await;
        // Then the other one.
        pair.switch_over(A, pair.newer.clone()).await;
        pair.use_all().await;

        // The way back.
        pair.restart_standby(A, older.to_owned()).await;
        pair.use_all().await;
        pair.switch_over(B, older.to_owned()).await;
        pair.use_all().await;
        pair.kill_master(A).await;
        pair.end(mode, started).await;
    }

    fn cli(&self, program: &'a Path) -> Cli<'_> {
        Cli { program, servers: &self.servers }
    }

    /// Lets clients of both builds use the pair as it is, and those that are at work go on.
    async fn use_all(&mut self) {
        self.go_on().await;
        let newer = self.newer.clone();
        let builds = [self.older, &newer].map(|program| Cli { program, servers: &self.servers });
        for (publisher, consumer) in [(0, 1), (1, 0)] {
            let topic = format!("state-{}-{publisher}", self.states);
            builds[publisher]
                .publish(&topic, &(0..50).map(|number| format!("{number}\n")).collect::<String>());
            assert_counted(&builds[consumer].consume(&topic, 50), 50);
        }
        for build in &builds {
            let answered = build.status();
            assert_eq!(answered.len(), 2);
            assert!(answered.iter().all(|node| node["agrees"] == true), "{answered:?}");
        }
        self.states += 1;
    }

    async fn go_on(&mut self) {
        self.counting.go_on();
        self.load.confirmed_more(BETWEEN).await;
        assert!(!self.load.has_gone_back(), "confirmed messages are gone: {}", self.said());
    }

    fn said(&self) -> String {
        self.nodes.iter().map(Node::log).collect()
    }

    /// Restarts the standby with another build.
    async fn restart_standby(&mut self, index: usize, program: PathBuf) {
        let node = &mut self.nodes[index];
        node.signal(Signal::TERM);
        assert!(node.wait().success(), "{}", node.log());
        node.program = program;
        node.start();
        node.wait_for(Role::Standby).await;
    }

    /// Lets the standby take over, and restarts the master that was with another build.
    async fn switch_over(&mut self, index: usize, program: PathBuf) {
        self.cli(self.older).switch_over();
        self.nodes[1 - index].wait_for(Role::Master).await;
        let node = &mut self.nodes[index];
        assert!(node.wait().success(), "{}", node.log());
        node.program = program;
        node.start();
        node.wait_for(Role::Standby).await;
    }

    async fn kill_standby(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.wait_for(Role::Standby).await;
        node.kill();
        self.go_on().await;
        self.nodes[index].start();
        self.nodes[index].wait_for(Role::Standby).await;
        self.kills += 1;
    }

    /// Kills the master; the other one takes over, and the killed one comes back as standby, of the same build.
    async fn kill_master(&mut self, index: usize) {
        self.nodes[index].wait_for(Role::Master).await;
        self.go_on().await;
        self.nodes[index].kill();
        self.nodes[1 - index].wait_for(Role::Master).await;
        self.go_on().await;
        self.nodes[index].start();
        self.nodes[index].wait_for(Role::Standby).await;
        self.kills += 1;
    }

    /// Checks what all clients saw, and what is left in the store.
    async fn end(mut self, mode: &str, started: Instant) {
        let count = self.counting.end();
        let lines = Cli { program: &self.newer, servers: &self.servers }.consume("numbers", count);
        assert_counted(&lines, count);
        let events = self.load.finish().await;
        let violations = check(&events, &GROUPS);
        assert!(violations.is_empty(), "{} violations: {:?}", violations.len(), violations.first());
        for index in [A, B] {
            // The standby first: the last kill has made the second one master.
            self.nodes[index].signal(Signal::TERM);
            assert!(self.nodes[index].wait().success(), "{}", self.nodes[index].log());
        }
        let store = self.nodes[A].store.clone();
        verify(self.older, &store);
        verify(&self.newer, &store);
        println!(
            "{mode}: up and back again in {:.1} s: {} states, {} kills, {} events, {count} numbers of the older client, \
             nothing lost, whole for both builds",
            started.elapsed().as_secs_f64(),
            self.states,
            self.kills,
            events.len()
        );
    }
}
