//! Two hosts as network namespaces on a bridge. The clients are at the bridge.
//!
//! Nothing has a name outside: a namespace lasts as long as the process that holds it, and that ends with its input.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use batonmq::protocol::CLIENT_PORT;

/// Names of the hosts, and of the nodes on them.
pub const HOSTS: [&str; 2] = ["a", "b"];

const BRIDGE: &str = "bridge";

pub struct Network {
    holders: [Child; 2],
}

/// Whether a link carries something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Up,
    Down,
}

/// What connects a host with the bridge.
fn link_of(host: usize) -> String {
    format!("to-{}", HOSTS[host])
}

fn ip(args: &[&str]) {
    run(Command::new("ip").args(args));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; install iproute2"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Network {
    /// Makes it in the namespace of this process, which nobody else is in.
    pub fn new() -> Self {
        ip(&["link", "set", "lo", "up"]);
        ip(&["link", "add", BRIDGE, "type", "bridge"]);
        ip(&["addr", "add", "10.77.0.100/24", "dev", BRIDGE]);
        ip(&["link", "set", BRIDGE, "up"]);
        Self { holders: [0, 1].map(Self::host) }
    }

    /// Makes a host, and connects it.
    fn host(index: usize) -> Child {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "no network namespace: this needs root");
        let (link, process) = (link_of(index), holder.id().to_string());
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &process]);
        ip(&["link", "set", &link, "master", BRIDGE, "up"]);
        let inside = |args: &[&str]| {
            run(Command::new("nsenter").args([&format!("--net=/proc/{process}/ns/net"), "ip"]).args(args));
        };
        inside(&["link", "set", "lo", "up"]);
        inside(&["addr", "add", &format!("10.77.0.{}/24", index + 1), "dev", "eth0"]);
        inside(&["link", "set", "eth0", "up"]);
        holder
    }

    /// What runs a program on a host, in its own place.
    pub fn wrapper(&self, host: usize) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", self.holders[host].id())]
    }

    /// Where the node of a host serves.
    pub fn address(host: usize) -> String {
        format!("10.77.0.{}:{CLIENT_PORT}", host + 1)
    }

    /// Cuts a host off, or joins it again.
    pub fn set(&self, host: usize, link: Link) {
        let to = if link == Link::Up { "up" } else { "down" };
        ip(&["link", "set", &link_of(host), to]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // At once, and not some time after the namespaces: the next run has the same names.
        for link in [link_of(0), link_of(1), BRIDGE.to_owned()] {
            let _ = Command::new("ip").args(["link", "delete", &link]).status();
        }
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}
