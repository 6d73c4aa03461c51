//! Hosts on two networks, one to the clients and one to the storage. The clients are at the bridge of the first.
//!
//! A host has a network namespace that lasts as long as this, and a *system* in it: namespaces for processes, mounts
//! and its name, which end with its first process. So all processes of a host can be killed at once, and its kernel
//! still answers; and its links can be cut.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// To the clients, and between the hosts.
    Clients,
    /// To the storage.
    Storage,
}

impl Wire {
    const ALL: [Self; 2] = [Self::Clients, Self::Storage];

    const fn name(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Storage => "storage",
        }
    }

    /// The interface of a host that leads there.
    pub const fn interface(self) -> &'static str {
        match self {
            Self::Clients => "eth0",
            Self::Storage => "eth1",
        }
    }

    /// The address of the host with this number there.
    pub fn address(self, number: u8) -> String {
        match self {
            Self::Clients => format!("10.77.0.{number}"),
            Self::Storage => format!("10.78.0.{number}"),
        }
    }
}

/// Number of the clients' host, which is this process.
const CLIENTS_NUMBER: u8 = 100;

/// Makes both networks in the namespace of this process, which nobody else is in.
pub fn make_networks() {
    ip(&["link", "set", "lo", "up"]);
    for wire in Wire::ALL {
        ip(&["link", "add", wire.name(), "type", "bridge"]);
        ip(&["link", "set", wire.name(), "up"]);
    }
    let address = format!("{}/24", Wire::Clients.address(CLIENTS_NUMBER));
    ip(&["addr", "add", &address, "dev", Wire::Clients.name()]);
}

/// Whether a link carries something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Up,
    Down,
}

pub struct Host {
    pub name: &'static str,
    pub number: u8,
    /// Holds the network.
    network: Child,
    system: Child,
    /// The first process of the system, as seen from here.
    init: u32,
    /// Has its number.
    init_file: PathBuf,
}

impl Host {
    /// One that is up. `dir` is for a file of its own.
    pub fn new(name: &'static str, number: u8, wires: &[Wire], dir: &Path) -> Self {
        let mut unshare = Command::new("unshare");
        let network = held(unshare.args(["--net", "sh", "-c", "echo ready; exec cat"]));
        let holder = network.id().to_string();
        for wire in wires {
            let link = link_of(name, *wire);
            let peer = ["peer", "name", wire.interface(), "netns", &holder];
            ip(&[&["link", "add", &link, "type", "veth"], &peer[..]].concat());
            ip(&["link", "set", &link, "master", wire.name(), "up"]);
            let address = format!("{}/24", wire.address(number));
            let inside = |args: &[&str]| {
                run(Command::new("nsenter").args([&format!("--net=/proc/{holder}/ns/net"), "ip"]).args(args));
            };
            inside(&["link", "set", "lo", "up"]);
            inside(&["addr", "add", &address, "dev", wire.interface()]);
            inside(&["link", "set", wire.interface(), "up"]);
        }
        let init_file = dir.join(format!("init-{name}"));
        let (system, init) = boot(name, &network, &init_file);
        Self { name, number, network, system, init, init_file }
    }

    /// Kills all of its processes. Its kernel goes on.
    pub fn kill(&mut self) {
        // With the first process of a namespace the kernel kills all others.
        kill_process(pid(self.init), Signal::KILL).unwrap();
        self.system.wait().unwrap();
    }

    /// Starts it anew after it was killed: nothing is mounted.
    pub fn boot(&mut self) {
        (self.system, self.init) = boot(self.name, &self.network, &self.init_file);
    }

    /// Cuts a link of it, or joins it again.
    pub fn set(&self, wire: Wire, link: Link) {
        let to = if link == Link::Up { "up" } else { "down" };
        ip(&["link", "set", &link_of(self.name, wire), to]);
    }

    /// What runs a program on the host, whichever system it has by then. The program is a child of what this starts.
    pub fn wrapper(&self) -> [String; 3] {
        let enter = "exec nsenter --net --mount --pid --uts --target";
        let script = format!("{enter} \"$(cat '{}')\" -- \"$0\" \"$@\"", self.init_file.display());
        ["sh".to_owned(), "-c".to_owned(), script]
    }

    /// A command that runs on the host.
    pub fn command(&self, program: &str) -> Command {
        let [shell, flag, script] = self.wrapper();
        let mut command = Command::new(shell);
        command.args([flag, script, program.to_owned()]).stdin(Stdio::null());
        command
    }

    /// Runs a command on the host that must succeed; what it says.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        run(self.command(program).args(args))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in [&mut self.system, &mut self.network] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The other end of a link, at the bridge.
fn link_of(host: &str, wire: Wire) -> String {
    format!("{}-{host}", wire.name())
}

/// Starts a system in a network; its first process, which does nothing.
fn boot(name: &str, network: &Child, init_file: &Path) -> (Child, u32) {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", network.id()));
    command.args(["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]);
    // It complains when its first process is killed.
    command.stderr(Stdio::null());
    let system = held(command.args(["sh", "-c", "hostname \"$0\" && echo ready && exec cat", name]));
    let init = child_of(system.id()).expect("it has just spoken");
    fs::write(init_file, init.to_string()).unwrap();
    (system, init)
}

/// The process that a process has started, as seen from here.
pub fn child_of(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

pub fn pid(number: u32) -> Pid {
    i32::try_from(number).ok().and_then(Pid::from_raw).expect("the number of a process")
}

/// Starts what says that it is ready, and then waits for the end of its input.
fn held(command: &mut Command) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "{command:?}: no namespaces; this needs root");
    child
}

fn ip(args: &[&str]) {
    run(Command::new("ip").args(args));
}

/// Runs a command that must succeed; what it says.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    said
}
