//! A pair on two hosts that share a volume, clients at its floating address, and what happens to the hosts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use batonmq::node::EXIT_FENCED;
use batonmq::protocol::CLIENT_PORT;
use batonmq::protocol::response::Role;
use rustix::process::{Signal, kill_process};

use crate::hosts::{Host, Link, Wire, child_of, pid};
use crate::probe::Probe;
use crate::support::history::{Violation, check};
use crate::support::load::{GROUPS, Load};
use crate::support::pair::Node;
use crate::volume::{Volume, Way};

/// The floating address.
const FLOATING: &str = "10.77.0.50";
/// Where a node listens that has a floating address.
const EVERYWHERE: &str = "0.0.0.0";
/// Bytes of a message.
const BODY_BYTES: usize = 400;
/// Messages that are confirmed between two faults, at least.
const CONFIRMED_BETWEEN: u64 = 500;

/// What happens to the host of the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All of its processes are killed: the node, and the client of the file system.
    Kill,
    /// Its links are cut, to the clients and to the storage.
    CutAll,
    /// Its link to the storage is cut. Clients and the other host reach it.
    CutStorage,
    /// Its link to the clients is cut. It keeps the lock, until somebody stops the node.
    CutClients,
    /// The pair is asked to change places.
    Switchover,
    /// The link to the storage is cut of the *other* host. Clients see nothing of it.
    CutStandby,
}

impl Fault {
    pub const ALL: [Self; 6] =
        [Self::Kill, Self::CutAll, Self::CutStorage, Self::CutClients, Self::Switchover, Self::CutStandby];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "all processes of the host killed",
            Self::CutAll => "all links of the host cut",
            Self::CutStorage => "its link to the storage cut",
            Self::CutClients => "its link to the clients cut, node stopped",
            Self::Switchover => "switchover",
            Self::CutStandby => "the standby's link to the storage cut",
        }
    }
}

/// What a client saw of a fault.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub fault: Fault,
    /// The longest time between two confirms.
    pub longest: Duration,
    /// Messages that were confirmed from the fault until everything was as before.
    pub confirmed: u64,
}

/// What a run in one mode has come to.
pub struct Outcome {
    pub mode: &'static str,
    pub seen: Vec<Seen>,
    pub confirmed: u64,
    pub violations: Vec<Violation>,
}

pub struct Scene<'a> {
    hosts: &'a mut [Host; 2],
    volume: &'a Volume,
    point: &'a Path,
    nodes: [Node; 2],
    configs: [PathBuf; 2],
    mode: &'static str,
    master: usize,
}

impl<'a> Scene<'a> {
    /// A pair over an empty folder of the volume, and its logs in `dir`.
    pub fn new(
        hosts: &'a mut [Host; 2],
        volume: &'a Volume,
        point: &'a Path,
        mode: &'static str,
        store: &Path,
        dir: &Path,
    ) -> Self {
        let configs = hosts.each_ref().map(|host| config(host, dir));
        let nodes = [0, 1].map(|at| {
            let host = &hosts[at];
            let address = format!("{}:{CLIENT_PORT}", Wire::Clients.address(host.number));
            Node::new(host.name, store, mode, dir)
                .within(&host.wrapper().each_ref().map(String::as_str), &address)
                .listening(EVERYWHERE)
                .set("BATON_CONFIG", configs[at].display())
        });
        Self { hosts, volume, point, nodes, configs, mode, master: 0 }
    }

    /// Starts the pair, lets everything happen to it, and checks what came of it.
    pub async fn run(mut self, rounds: usize) -> Outcome {
        self.nodes[0].start();
        self.nodes[0].wait_for(Role::Master).await;
        self.nodes[1].start();
        self.nodes[1].wait_for(Role::Standby).await;
        for node in &self.nodes {
            let log = node.log();
            assert!(log.contains("the check found this storage (fuse.glusterfs) fit"), "{log}");
        }
        let server = format!("{FLOATING}:{CLIENT_PORT}");
        let load = Load::start(&server, BODY_BYTES).await;
        let probe = Probe::start(&server);
        let mut seen = Vec::new();
        for fault in std::iter::repeat_n(Fault::ALL, rounds).flatten() {
            load.confirmed_more(CONFIRMED_BETWEEN).await;
            let _ = probe.longest().await;
            let (before, began) = (confirmed(&load), Instant::now());
            self.strike(fault, &load).await;
            let longest = probe.longest().await;
            let confirmed = confirmed(&load) - before;
            eprintln!(
                "  {} mode, {}: {longest:.2?}; over after {:.1?}",
                self.mode,
                fault.name(),
                began.elapsed()
            );
            seen.push(Seen { fault, longest, confirmed });
        }
        let kept = probe.finish().await;
        let confirmed = confirmed(&load) + kept;
        let violations = check(&load.finish().await, &GROUPS);
        self.stop(kept);
        Outcome { mode: self.mode, seen, confirmed, violations }
    }

    /// Lets something happen, and restores everything: there are a master and a standby again.
    async fn strike(&mut self, fault: Fault, load: &Load) {
        match fault {
            Fault::Kill => self.all_processes_of_the_host_are_killed(load).await,
            Fault::CutAll => self.links_of_the_host_are_cut(&[Wire::Clients, Wire::Storage], load).await,
            Fault::CutStorage => self.links_of_the_host_are_cut(&[Wire::Storage], load).await,
            Fault::CutClients => self.clients_are_cut_off_and_the_node_is_stopped(load).await,
            Fault::Switchover => self.the_nodes_change_places(load).await,
            Fault::CutStandby => return self.the_standby_loses_its_storage(load).await,
        }
        let ended = self.master;
        self.master = 1 - ended;
        self.come_back(ended).await;
    }

    async fn all_processes_of_the_host_are_killed(&mut self, load: &Load) {
        self.hosts[self.master].kill();
        self.nodes[self.master].wait();
        self.taken_over(load).await;
        self.hosts[self.master].boot();
        self.volume.mount(&self.hosts[self.master], self.point, Way::Direct);
    }

    /// Until the other one serves and the node has ended by itself.
    async fn links_of_the_host_are_cut(&mut self, wires: &[Wire], load: &Load) {
        for wire in wires {
            self.hosts[self.master].set(*wire, Link::Down);
        }
        self.taken_over(load).await;
        self.ended(Some(EXIT_FENCED));
        for wire in wires {
            self.hosts[self.master].set(*wire, Link::Up);
        }
    }

    async fn clients_are_cut_off_and_the_node_is_stopped(&mut self, load: &Load) {
        self.hosts[self.master].set(Wire::Clients, Link::Down);
        let other = &self.nodes[1 - self.master];
        other.wait_for_log("the master does not answer any more");
        let role = other.status().await.map(|status| status.role);
        assert_eq!(role, Some(Role::Standby), "the master has the lock");
        self.signal(self.master, Signal::TERM);
        self.ended(Some(0));
        self.taken_over(load).await;
        self.hosts[self.master].set(Wire::Clients, Link::Up);
    }

    async fn the_nodes_change_places(&mut self, load: &Load) {
        let server = format!("{FLOATING}:{CLIENT_PORT}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
        let output = command.args(["switchover", "--server", &server]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        self.ended(Some(0));
        self.taken_over(load).await;
    }

    async fn the_standby_loses_its_storage(&mut self, load: &Load) {
        let standby = 1 - self.master;
        self.hosts[standby].set(Wire::Storage, Link::Down);
        let ended = self.nodes[standby].wait();
        assert!(!ended.success(), "{}", self.nodes[standby].log());
        load.confirmed_more(CONFIRMED_BETWEEN).await;
        self.hosts[standby].set(Wire::Storage, Link::Up);
        self.come_back(standby).await;
    }

    /// Waits until the node that was master has ended by itself, with this code.
    fn ended(&mut self, code: Option<i32>) {
        let node = &mut self.nodes[self.master];
        assert_eq!(node.wait().code(), code, "{}", node.log());
    }

    /// Waits until the other node serves.
    async fn taken_over(&mut self, load: &Load) {
        self.nodes[1 - self.master].wait_for(Role::Master).await;
        load.confirmed_more(CONFIRMED_BETWEEN).await;
    }

    /// Does what the service manager does when a node has ended, and waits until it stands by.
    async fn come_back(&mut self, node: usize) {
        let host = &self.hosts[node];
        self.volume.wait_for(host, self.point);
        let config = self.configs[node].display().to_string();
        host.run(env!("CARGO_BIN_EXE_baton"), &["address", "remove", "--config", &config]);
        self.nodes[node].start();
        self.nodes[node].wait_for(Role::Standby).await;
    }

    fn signal(&self, node: usize, signal: Signal) {
        let process = child_of(self.nodes[node].id()).expect("a node that runs");
        kill_process(pid(process), signal).unwrap();
    }

    /// Stops both, and looks through the store, in which so many messages are left.
    fn stop(&mut self, kept: u64) {
        for node in [1 - self.master, self.master] {
            self.signal(node, Signal::TERM);
            assert!(self.nodes[node].wait().success(), "{}", self.nodes[node].log());
        }
        let store = self.nodes[0].store.display().to_string();
        let verify = ["store", "verify", "--json", "--store", &store];
        let said = self.hosts[0].run(env!("CARGO_BIN_EXE_baton"), &verify);
        let found: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&found["messages"], &found["damages"]), (&kept.into(), &serde_json::json!([])), "{said}");
        eprintln!("  {} mode, store verify: {kept} messages, no damage", self.mode);
    }
}

fn confirmed(load: &Load) -> u64 {
    load.confirmed.load(std::sync::atomic::Ordering::Relaxed)
}

/// The configuration of the node of a host.
fn config(host: &Host, dir: &Path) -> PathBuf {
    let path = dir.join(format!("{}.toml", host.name));
    let text = format!(
        "create_store = true\nlisten = '{EVERYWHERE}'\nadvertise = '{}'\nallow_anonymous = true\n\n[address]\naddress = '{FLOATING}'\n\
         interface = '{}'\n",
        Wire::Clients.address(host.number),
        Wire::Clients.interface()
    );
    fs::write(&path, text).unwrap();
    path
}
