//! Nodes as processes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use batonmq::client::status_of;
use batonmq::protocol::response::{NodeStatus, Role};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A node: how it is started, and its process while it runs.
pub struct Node {
    pub name: String,
    pub address: String,
    /// Where it listens, if that is not its address.
    listen: Option<String>,
    pub store: PathBuf,
    /// What it is asked to make of the store when it starts.
    pub mode: &'static str,
    /// The program that it runs.
    pub program: PathBuf,
    log: PathBuf,
    /// What starts the program, as the last of its arguments and in its own place.
    wrapper: Vec<String>,
    settings: Vec<(&'static str, String)>,
    open_files_max: Option<u64>,
    process: Option<Child>,
    /// Bytes of the log that are from earlier processes of this node.
    log_start: u64,
}

/// Two nodes with their store and logs in `dir`, set up by `set`: the first is master, the other stands by. And the
/// addresses of both, as clients are given them.
pub async fn two(mode: &'static str, dir: &Path, set: impl Fn(Node) -> Node) -> ([Node; 2], String) {
    let store = dir.join("store");
    let mut nodes = ["a", "b"].map(|name| set(Node::new(name, &store, mode, dir)));
    nodes[0].start();
    nodes[0].wait_for(Role::Master).await;
    nodes[1].start();
    nodes[1].wait_for(Role::Standby).await;
    let servers = format!("{},{}", nodes[0].address, nodes[1].address);
    (nodes, servers)
}

/// An address of this host that is free at the moment.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Node {
    /// A node that is not started yet. Its log is a file in `logs`.
    pub fn new(name: &str, store: &Path, mode: &'static str, logs: &Path) -> Self {
        let log = logs.join(format!("{name}.log"));
        let (name, address, store) = (name.to_owned(), free_address(), store.to_owned());
        Self {
            name,
            address,
            listen: None,
            store,
            mode,
            program: env!("CARGO_BIN_EXE_baton").into(),
            log,
            wrapper: Vec::new(),
            settings: Vec::new(),
            open_files_max: None,
            process: None,
            log_start: 0,
        }
    }

    /// Sets a setting by its variable of the environment.
    pub fn set(mut self, variable: &'static str, value: impl ToString) -> Self {
        self.settings.push((variable, value.to_string()));
        self
    }

    /// Serves at this address, of wherever this command puts a program.
    pub fn within(mut self, wrapper: &[&str], address: &str) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        address.clone_into(&mut self.address);
        self
    }

    /// Listens here, and is reached at its address all the same.
    pub fn listening(mut self, listen: &str) -> Self {
        self.listen = Some(listen.to_owned());
        self
    }

    /// Lets the process have no more than so many files open.
    pub fn with_open_files(mut self, max: u64) -> Self {
        self.open_files_max = Some(max);
        self
    }

    pub fn start(&mut self) {
        self.log_start = fs::metadata(&self.log).map_or(0, |log| log.len());
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        self.start_with_log(log);
    }

    /// Starts it with its log going elsewhere.
    pub fn start_with_log(&mut self, log: impl Into<Stdio>) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let child = self
            .program()
            .args(["serve", "--node", &self.name, "--mode", self.mode])
            .args(["--listen", self.listen.as_ref().unwrap_or(&self.address)])
            .arg("--store")
            .arg(&self.store)
            .envs(self.settings.iter().map(|(variable, value)| (variable, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
    }

    fn program(&self) -> Command {
        // A shell becomes the program, as a wrapper does: its number is that of the node.
        let limit = self.open_files_max.map(|max| format!("ulimit -n {max} && exec \"$0\" \"$@\""));
        let shell = limit.iter().flat_map(|limit| ["sh", "-c", limit]);
        let words = self.wrapper.iter().map(String::as_str).chain(shell).map(OsStr::new);
        let mut words = words.chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().expect("the program at least"));
        command.args(words);
        command
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("a node that runs").id()
    }

    /// Stops the process where it is, and waits until none of its threads runs any more.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        let deadline = Instant::now() + PATIENCE;
        while !self.is_paused() {
            assert!(Instant::now() < deadline, "{} does not pause", self.name);
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn is_paused(&self) -> bool {
        let pid = self.process.as_ref().expect("a node that runs").id();
        let state = |thread: std::io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        };
        // A process that has ended has no thread that runs.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        threads.filter_map(state).all(|state| matches!(state, 'T' | 'Z' | 'X'))
    }

    /// Lets a paused process go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.process.as_ref().expect("a node that runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Kills the process and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.wait_within(PATIENCE);
        status.unwrap_or_else(|| panic!("{} does not end:\n{}", self.name, self.log()))
    }

    /// Waits until the process has ended; `None` where it has not by then.
    pub fn wait_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.process.as_mut().expect("a node that runs").try_wait().unwrap() {
                self.process = None;
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub async fn status(&self) -> Option<NodeStatus> {
        status_of(&self.address, Duration::from_secs(1)).await.ok()
    }

    /// Waits until the node has a role.
    pub async fn wait_for(&mut self, role: Role) -> NodeStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.status().await.filter(|status| status.role == role) {
                return status;
            }
            assert!(self.runs(), "{} has ended:\n{}", self.name, self.log());
            assert!(Instant::now() < deadline, "{} does not become {role}:\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the process that was started last has said something in its log.
    pub fn wait_for_log(&self, said: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.recent_log().contains(said) {
            assert!(Instant::now() < deadline, "{} never says {said:?}:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The log of the process that was started last.
    pub fn recent_log(&self) -> String {
        let mut text = String::new();
        let mut log = File::open(&self.log).unwrap();
        log.seek(SeekFrom::Start(self.log_start)).and_then(|_| log.read_to_string(&mut text)).unwrap();
        text
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
