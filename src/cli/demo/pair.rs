//! Two nodes as processes of their own, on one store in a temporary directory.
//!
//! The processes end and the directory goes with the value, whatever happens.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use batonmq::client::status_of;
use batonmq::protocol::response::Role;
use batonmq::store::Mode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

/// How long a node may take to start, to take its role, or to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Wait between two looks at a node.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Two nodes and their store. The nodes are dropped first: one that runs would write into the directory as it goes.
pub struct Pair {
    nodes: Vec<Node>,
    dir: Directory,
}

struct Node {
    name: &'static str,
    log: PathBuf,
    process: Child,
    address: String,
}

impl Pair {
    /// Starts two nodes and waits until one is master and the other standby.
    pub async fn start(mode: Mode) -> anyhow::Result<Self> {
        let dir = Directory::new(mode)?;
        let mut pair = Self { nodes: Vec::new(), dir };
        for (name, role) in [("a", Role::Master), ("b", Role::Standby)] {
            let node = Node::start(name, mode, &pair.dir.0).await?;
            pair.nodes.push(node);
            pair.wait_for(name, role).await?;
        }
        Ok(pair)
    }

    /// Addresses of both nodes.
    pub fn servers(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// Where the store is.
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// Kills a node with SIGKILL and waits until it is gone.
    pub fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let node = self.node(name)?;
        node.process.kill()?;
        node.process.wait()?;
        Ok(())
    }

    /// Ends a node with SIGTERM, as an operator would.
    pub async fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let node = self.node(name)?;
        kill_process(Pid::from_child(&node.process), Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = node.process.try_wait()? {
                anyhow::ensure!(status.success(), "node {name} has ended with {status}:\n{}", node.log_end());
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "node {name} does not end:\n{}", node.log_end());
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until a node has a role.
    async fn wait_for(&mut self, name: &str, role: Role) -> anyhow::Result<()> {
        let node = self.node(name)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = status_of(&node.address, PATIENCE).await;
            if status.is_ok_and(|status| status.role == role) {
                return Ok(());
            }
            node.ensure_running()?;
            let log = || node.log_end();
            anyhow::ensure!(Instant::now() < deadline, "node {name} does not become {role}:\n{}", log());
            sleep(LOOK_EVERY).await;
        }
    }

    /// What the nodes have logged last, for a report on a failure.
    pub fn logs(&self) -> String {
        self.nodes.iter().map(|node| format!("node {}:\n{}", node.name, node.log_end())).collect()
    }

    fn node(&mut self, name: &str) -> anyhow::Result<&mut Node> {
        self.nodes
            .iter_mut()
            .find(|node| node.name == name)
            .with_context(|| format!("there is no node {name}"))
    }
}

impl Node {
    async fn start(name: &'static str, mode: Mode, dir: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let log = dir.join(format!("{name}.log"));
        let mode = mode.to_string();
        let mut command = Command::new(program);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("BATON_") {
                command.env_remove(variable);
            }
        }
        let process = command
            .args(["serve", "--node", name, "--mode", &mode, "--listen", "127.0.0.1:0"])
            .args(["--log", "info", "--log-format", "json", "--store"])
            .arg(dir.join("store"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start a node")?;
        let mut node = Self { name, log, process, address: String::new() };
        let deadline = Instant::now() + PATIENCE;
        while node.address.is_empty() {
            node.ensure_running()?;
            anyhow::ensure!(Instant::now() < deadline, "node {name} does not listen:\n{}", node.log_end());
            sleep(LOOK_EVERY).await;
            node.address = node.listening_on().unwrap_or_default();
        }
        Ok(node)
    }

    /// The address that the node says it listens on.
    fn listening_on(&self) -> Option<String> {
        let log = fs::read_to_string(&self.log).ok()?;
        let events = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let listening =
            events.map(|mut event| event["fields"].take()).find(|it| it["message"] == "listening")?;
        listening["address"].as_str().map(str::to_owned)
    }

    fn ensure_running(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.process.try_wait()? {
            anyhow::bail!("node {} has ended with {status}:\n{}", self.name, self.log_end());
        }
        Ok(())
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n") + "\n"
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A process that has ended already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A directory that goes when it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(mode: Mode) -> anyhow::Result<Self> {
        let name = format!("baton-demo-{mode}-{}", uuid::Uuid::now_v7().simple());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}
