//! The pair: two nodes, each on a host of its own, over a small disk that can fail; and whoever starts a node that has
//! ended, as systemd does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use batonmq::model::id::Epoch;
use batonmq::node::EXIT_FENCED;
use batonmq::protocol::response::{NodeStatus, Role};

use crate::clock::Clock;
use crate::network::{HOSTS, Network};
use crate::plan::View;
use crate::support::faulty::FaultyDisk;
use crate::support::mount::SmallDisk;
use crate::support::pair::Node;

/// Size of the disk. A store that does not give back what is settled fills it within minutes.
const DISK_MEBIBYTES: u32 = 768;
/// How long a pair may take until it has a master and a standby, once nothing is wrong any more.
pub const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// Heartbeat of the nodes. One that is silent for three of them is taken for dead.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// Time between two looks at the nodes.
const LOOK: Duration = Duration::from_millis(20);

/// Something that must not be, in words.
pub type Trouble = String;

/// What is counted about the nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    /// A node ended because it was told to, or had handed over.
    pub clean: u64,
    /// A node ended because it had lost its mastership, its lock or its storage.
    pub fenced: u64,
    /// A node ended because there was no space to take over.
    pub refused: u64,
}

pub struct World {
    // The order matters: the nodes end, then what they run on goes.
    pub nodes: [Node; 2],
    /// Nodes that are not to be started now.
    pub kept_down: [bool; 2],
    pub clocks: Option<[Clock; 2]>,
    pub network: Network,
    pub shared: FaultyDisk,
    pub apart: [FaultyDisk; 2],
    pub view: View,
    pub mode: &'static str,
    pub ends: Ends,
    /// Something has taken all of the disk, so a node may end rather than take over.
    pub is_full: bool,
    /// Highest epoch that was seen.
    pub epoch: Epoch,
    running: [bool; 2],
    disk: SmallDisk,
    /// Of the run.
    dir: PathBuf,
}

impl World {
    /// A pair that is not started yet. `library` shifts clocks.
    pub fn new(dir: &Path, mode: &'static str, library: Option<&Path>) -> Self {
        let network = Network::new();
        let disk = SmallDisk::new(&dir.join("disk"), DISK_MEBIBYTES);
        let real = disk.path.join("real");
        fs::create_dir(&real).unwrap();
        let shared = FaultyDisk::of(&real, &dir.join("shared"));
        let apart = HOSTS.map(|host| FaultyDisk::of(&real, &dir.join(format!("apart-{host}"))));
        let clocks = library.map(|library| HOSTS.map(|host| Clock::new(library, dir, host)));
        let nodes = [0, 1].map(|host| {
            let wrapper = network.wrapper(host);
            let mut node = Node::new(HOSTS[host], &shared.path.join("store"), mode, dir)
                .within(&wrapper.each_ref().map(String::as_str), &Network::address(host))
                .set("BATON_ALLOW_ANONYMOUS", "true")
                // Small, so that much is removed, moved and written back.
                .set("BATON_SEGMENT_BYTES", 1 << 20)
                .set("BATON_HEARTBEAT", format!("{}ms", HEARTBEAT.as_millis()))
                .set("BATON_DRAIN_TIMEOUT", "1s");
            for (variable, value) in clocks.iter().flat_map(|clocks| clocks[host].environment()) {
                node = node.set(variable, value);
            }
            node
        });
        let (view, ends, epoch) = (View::Shared, Ends::default(), Epoch(0));
        let (kept_down, running) = ([false; 2], [false; 2]);
        Self {
            nodes,
            kept_down,
            clocks,
            network,
            shared,
            apart,
            view,
            mode,
            ends,
            is_full: false,
            epoch,
            running,
            disk,
            dir: dir.to_owned(),
        }
    }

    /// The addresses of both, for clients.
    pub fn servers() -> String {
        [0, 1].map(Network::address).join(",")
    }

    /// The mount through which a node sees the store.
    pub fn disk_of(&self, node: usize) -> &FaultyDisk {
        match self.view {
            View::Shared => &self.shared,
            View::Apart => &self.apart[node],
        }
    }

    /// Kills a node, which stays down.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
        self.running[node] = false;
        self.kept_down[node] = true;
    }

    /// Starts nodes that have ended, but for those that are kept down.
    pub fn tend(&mut self) -> Result<(), Trouble> {
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            if self.running[index]
                && let Some(status) = node.wait_within(Duration::ZERO)
            {
                self.running[index] = false;
                match status.code() {
                    Some(0) => self.ends.clean += 1,
                    Some(EXIT_FENCED) => self.ends.fenced += 1,
                    Some(1) if self.is_full => self.ends.refused += 1,
                    _ => return Err(format!("node {} ended with {status}: {}", node.name, said_last(node))),
                }
            }
            if !self.running[index] && !self.kept_down[index] {
                node.start();
                self.running[index] = true;
            }
        }
        Ok(())
    }

    /// Lets a time pass, in which ended nodes are started.
    pub async fn pass(&mut self, time: Duration) -> Result<(), Trouble> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.tend()?;
            tokio::time::sleep(LOOK.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
        Ok(())
    }

    /// Waits until a node that was told to stop has ended.
    pub async fn ended(&mut self, node: usize) -> Result<(), Trouble> {
        let deadline = Instant::now() + RECOVERY_MAX;
        self.kept_down[node] = true;
        while self.running[node] {
            if Instant::now() >= deadline {
                return Err(format!("node {} does not end", self.nodes[node].name));
            }
            self.tend()?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// What both nodes say of themselves.
    pub async fn statuses(&self) -> [Option<NodeStatus>; 2] {
        let [a, b] = &self.nodes;
        let (a, b) = tokio::join!(a.status(), b.status());
        [a, b]
    }

    /// Waits until one node is master and the other one waits. Answers which is master.
    pub async fn settled(&mut self) -> Result<usize, Trouble> {
        let deadline = Instant::now() + RECOVERY_MAX;
        self.kept_down = [false; 2];
        loop {
            self.tend()?;
            let statuses = self.statuses().await;
            let is = |index: usize, role| statuses[index].as_ref().filter(|status| status.role == role);
            for master in 0..2 {
                if let (Some(status), Some(_)) = (is(master, Role::Master), is(1 - master, Role::Standby)) {
                    self.epoch = self.epoch.max(status.epoch);
                    return Ok(master);
                }
            }
            if Instant::now() >= deadline {
                let said = statuses.map(|status| status.map(|status| (status.role, status.epoch)));
                return Err(format!("no master and standby within {RECOVERY_MAX:?}: {said:?}"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops both, the standby first.
    pub async fn stop(&mut self) -> Result<(), Trouble> {
        let master = self.settled().await?;
        for node in [1 - master, master] {
            self.kept_down = [true; 2];
            self.nodes[node].signal(rustix::process::Signal::TERM);
            self.ended(node).await?;
        }
        Ok(())
    }

    /// Has both nodes see their storage in this way from now on.
    pub async fn look_through(&mut self, view: View) -> Result<(), Trouble> {
        if self.view == view {
            return Ok(());
        }
        self.stop().await?;
        self.view = view;
        for index in 0..2 {
            self.nodes[index].store = self.disk_of(index).path.join("store");
        }
        self.settled().await.map(drop)
    }

    /// Mebibytes of the disk that are in use.
    pub fn used_mebibytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.disk.path).unwrap();
        ((disk.f_blocks - disk.f_bfree) * disk.f_frsize) >> 20
    }

    /// Takes what is left of the disk, until what this answers is dropped.
    pub fn fill(&self) -> Ballast {
        let ballast = Ballast(self.disk.path.join("ballast"));
        let mut step = 64 << 20;
        let mut length = 0;
        while step >= 4096 {
            let taken = Command::new("fallocate")
                .args(["--offset", &length.to_string(), "--length", &step.to_string()])
                .arg(&ballast.0)
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            if taken.success() {
                length += step;
            } else {
                step /= 4;
            }
        }
        ballast
    }

    /// The store, not seen through any mount.
    fn real_store(&self) -> PathBuf {
        self.disk.path.join("real/store")
    }

    /// Copies the store from its disk, which goes with the run, to the folder of the run.
    pub fn keep_store(&self) {
        let copied = Command::new("cp").arg("-a").arg(self.real_store()).arg(self.dir.join("store")).status();
        if !copied.is_ok_and(|status| status.success()) {
            eprintln!("the store could not be kept");
        }
    }

    /// Looks through the whole store of a pair that is stopped.
    pub fn verify(&self) -> Result<(), Trouble> {
        let verified = Command::new(env!("CARGO_BIN_EXE_baton"))
            .args(["store", "verify", "--store"])
            .arg(self.real_store())
            .output()
            .unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if verified.status.success() {
            return Ok(());
        }
        Err(format!("store verify: {}{}", said(&verified.stdout), said(&verified.stderr)))
    }

    /// A panic in the log of a node.
    pub fn panicked(&self) -> Result<(), Trouble> {
        for node in &self.nodes {
            if let Some(line) = node.log().lines().find(|line| line.contains("panicked at")) {
                return Err(format!("node {}: {line}", node.name));
            }
        }
        Ok(())
    }
}

/// The last line of a node's log.
fn said_last(node: &Node) -> String {
    node.recent_log().lines().last().unwrap_or_default().to_owned()
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_store();
        }
    }
}

/// A file that takes the space of the disk.
pub struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
