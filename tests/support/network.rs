//! Hosts as network namespaces, joined by a bridge in a namespace of its own: nothing of this machine's network is
//! touched. They share its disk, so any folder is a shared one.
//!
//! Needs root and `ip` (Debian's `iproute2`); without them it fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::pair::PATIENCE;

/// What the names of all namespaces begin with; the number of the process that made them follows.
const PREFIX: &str = "baton-test-";
/// The interface of each host.
pub const INTERFACE: &str = "eth0";

static MADE: AtomicU32 = AtomicU32::new(0);

/// A network of hosts.
pub struct Network {
    bridge: String,
    /// Their names without the prefix of this network, in the order of their addresses: 192.0.2.1, 192.0.2.2 ...
    hosts: Vec<String>,
}

impl Network {
    /// One with these hosts.
    pub fn new(hosts: &[&str]) -> Self {
        let missing = "this test makes network namespaces: it needs root and iproute2; \
                       as root: apt-get install -y --no-install-recommends iproute2";
        assert!(rustix::process::geteuid().is_root(), "{missing}");
        remove_left_over();
        let tag = format!("{PREFIX}{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let network = Self {
            bridge: format!("{tag}-net"),
            hosts: hosts.iter().map(|host| format!("{tag}-{host}")).collect(),
        };
        assert!(Command::new("ip").arg("-V").stdout(Stdio::null()).status().is_ok(), "{missing}");
        let bridge = &network.bridge;
        ip(&format!("netns add {bridge}"));
        ip(&format!("-n {bridge} link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"));
        ip(&format!("-n {bridge} link set br0 up"));
        for (number, host) in (1..).zip(&network.hosts) {
            ip(&format!("netns add {host}"));
            ip(&format!("-n {host} link set lo up"));
            ip(&format!("-n {bridge} link add port{number} type veth peer name {INTERFACE} netns {host}"));
            ip(&format!("-n {bridge} link set port{number} master br0 up"));
            ip(&format!("-n {host} addr add 192.0.2.{number}/24 dev {INTERFACE}"));
            ip(&format!("-n {host} addr add 2001:db8::{number}/64 dev {INTERFACE} nodad"));
            ip(&format!("-n {host} link set {INTERFACE} up"));
        }
        network
    }

    /// The namespace of a host.
    fn namespace(&self, host: &str) -> &str {
        let end = format!("-{host}");
        self.hosts.iter().find(|name| name.ends_with(&end)).expect("a host of this network")
    }

    /// What a host calls itself to others, in IPv4.
    pub fn ip_of(&self, host: &str) -> String {
        let index = self.hosts.iter().position(|name| name == self.namespace(host)).unwrap();
        format!("192.0.2.{}", index + 1)
    }

    /// A command that runs on a host.
    pub fn on(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace(host), program]);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("BATON_") {
                command.env_remove(variable);
            }
        }
        command.stdin(Stdio::null());
        command
    }

    /// A command of Baton's that runs on a host: whether it ended with 0, and what it said.
    pub fn baton(&self, host: &str, args: &[&str]) -> (bool, String) {
        let output = self.on(host, env!("CARGO_BIN_EXE_baton")).args(args).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// What `ip` says on a host.
    pub fn ip(&self, host: &str, args: &str) -> String {
        ip(&format!("-n {} {args}", self.namespace(host)))
    }

    /// The Ethernet address of a host.
    pub fn mac(&self, host: &str) -> String {
        let shown: Value =
            serde_json::from_str(&self.ip(host, &format!("-j link show {INTERFACE}"))).unwrap();
        shown[0]["address"].as_str().unwrap().to_owned()
    }

    /// Whether a host has an address.
    pub fn has(&self, host: &str, address: &str) -> bool {
        let with_length = format!(" {address}/");
        self.ip(host, &format!("addr show dev {INTERFACE}")).contains(&with_length)
    }

    /// Where a host believes an address to be, by its neighbour table.
    pub fn neighbour(&self, host: &str, address: &str) -> Option<String> {
        let shown: Value = serde_json::from_str(&self.ip(host, &format!("-j neigh show {address}"))).unwrap();
        Some(shown.get(0)?.get("lladdr")?.as_str()?.to_owned())
    }

    /// Does something on a thread that is on a host.
    pub fn run<T: Send + 'static>(
        &self,
        host: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = File::open(Path::new("/run/netns").join(self.namespace(host))).unwrap();
        std::thread::spawn(move || {
            use std::os::fd::AsFd;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in self.hosts.iter().chain([&self.bridge]) {
            let _ = Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status();
        }
    }
}

/// Removes what tests have left that were killed.
fn remove_left_over() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {args}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Looks until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: it does not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process on a host, with its log; killed when dropped.
pub struct Process {
    pub name: String,
    log: PathBuf,
    child: Option<Child>,
    /// Bytes of the log that are from earlier processes of this name.
    log_start: u64,
}

impl Process {
    /// Starts one whose log is a file in `logs`.
    pub fn start(name: &str, command: &mut Command, logs: &Path) -> Self {
        let log = logs.join(format!("{name}.log"));
        let log_start = fs::metadata(&log).map_or(0, |log| log.len());
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { name: name.to_owned(), log, child: Some(child), log_start }
    }

    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap();
        String::from_utf8_lossy(&bytes[self.log_start as usize..]).into_owned()
    }

    /// Waits until it says something.
    pub fn wait_for(&mut self, said: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(said) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let goes_on = ended.is_none() && Instant::now() < deadline;
            assert!(
                goes_on || self.log().contains(said),
                "{} does not say {said:?} ({ended:?}):\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
