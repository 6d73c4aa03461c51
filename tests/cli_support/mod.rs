//! The program as its users meet it: nodes and commands as processes, answers as exit code and text.

#![allow(dead_code, reason = "every test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a command has answered.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Answer {
    /// Standard output of a command that ended with 0.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        String::from_utf8(self.stdout).unwrap()
    }

    /// Standard error of a command that ended with `code`.
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.stderr
    }

    /// The JSON objects that a command that ended with 0 has written, one a line.
    pub fn json(self) -> Vec<Value> {
        self.ok().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

/// A command of this program, out of reach of the environment of the tests.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("BATON_") {
            command.env_remove(variable);
        }
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
pub fn run(args: &[&str]) -> Answer {
    answer(command(args).output().unwrap())
}

/// Runs a command that reads `input`.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Answer {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    answer(child.wait_with_output().unwrap())
}

fn answer(output: std::process::Output) -> Answer {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Answer { code: output.status.code(), stdout: output.stdout, stderr }
}

/// An address of this host that is free at the moment.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Nodes on one store in a temporary directory, and commands that talk to them.
pub struct Pair {
    pub dir: TempDir,
    pub servers: Vec<String>,
    pub nodes: Vec<Child>,
    mode: &'static str,
}

impl Pair {
    /// One node, which is master.
    pub fn single() -> Self {
        Self::start("file", &["master"])
    }

    /// One node, which is master of a store in database mode.
    pub fn database() -> Self {
        Self::start("database", &["master"])
    }

    /// Two nodes: the first is master, the second standby.
    pub fn both() -> Self {
        Self::both_in("file")
    }

    /// Two nodes on a store in this mode: the first is master, the second standby.
    pub fn both_in(mode: &'static str) -> Self {
        Self::start(mode, &["master", "standby"])
    }

    fn start(mode: &'static str, roles: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut pair = Self { dir, servers: Vec::new(), nodes: Vec::new(), mode };
        for (index, role) in roles.iter().enumerate() {
            pair.servers.push(free_address());
            let node = pair.spawn(index);
            pair.nodes.push(node);
            wait_until(|| pair.role(index).as_deref() == Some(role));
        }
        pair
    }

    /// Starts the process of a node.
    fn spawn(&self, index: usize) -> Child {
        let name = ["a", "b"][index];
        let (store, log) = (self.path("store"), self.path(&format!("{name}.log")));
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let (store, address) = (store.to_str().unwrap(), &self.servers[index]);
        command(&["serve", "--node", name, "--store", store, "--listen", address])
            .env("BATON_MODE", self.mode)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// The role of a node that answers.
    fn role(&self, index: usize) -> Option<String> {
        let answer = run(&["status", "--json", "--server", &self.servers[index]]);
        (answer.code == Some(0)).then(|| answer.json()[0]["role"].as_str().unwrap().to_owned())
    }

    /// Kills the master of two nodes. The other one takes over, and the killed one follows it.
    pub fn take_over(&mut self) {
        let killed = (0..2).find(|index| self.role(*index).as_deref() == Some("master")).unwrap();
        self.nodes[killed].kill().unwrap();
        self.nodes[killed].wait().unwrap();
        wait_until(|| self.role(1 - killed).as_deref() == Some("master"));
        self.nodes[killed] = self.spawn(killed);
        wait_until(|| self.role(killed).as_deref() == Some("standby"));
    }

    /// A path in the directory of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file and answers its path.
    pub fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A command that talks to the nodes.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.env("BATON_SERVER", self.servers.join(","));
        command
    }

    /// Runs a command that talks to the nodes.
    pub fn run(&self, args: &[&str]) -> Answer {
        answer(self.command(args).output().unwrap())
    }

    /// Waits until a node has ended.
    pub fn wait(&mut self, index: usize) -> ExitStatus {
        wait_for_end(&mut self.nodes[index])
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Sends a signal to a process.
pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits until a process has ended by itself.
pub fn wait_for_end(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until(|| {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// Looks until something is so.
pub fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come about in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a directory has nothing in it.
pub fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}
