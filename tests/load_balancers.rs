//! The configurations of `docs/examples` for who has keepalived or HAProxy, with real ones, over a kill of the master.
//!
//! The hosts are network namespaces: needs root, `ip` (iproute2), haproxy, keepalived and curl; without them it fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use rustix::process::Signal;
use support::network::{Network, Process, until};
use support::publisher::Publisher;

const FLOATING: &str = "192.0.2.10";
const HAPROXY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/haproxy.cfg");
const KEEPALIVED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/keepalived.conf");

/// A node on a host, as both configurations want it.
fn start(network: &Network, host: &str, dir: &Path) -> Process {
    let mut command = network.on(host, env!("CARGO_BIN_EXE_baton"));
    command.args([
        "serve",
        "--node",
        host,
        "--mode",
        "file",
        "--listen",
        "[::]:7470",
        "--admin",
        "[::]:7471",
    ]);
    command.arg("--store").arg(dir.join("store"));
    command.env("BATON_ADVERTISE", network.ip_of(host)).env("BATON_ALLOW_ANONYMOUS", "true");
    Process::start(host, &mut command, dir)
}

/// A program of Debian's on a host.
fn program(network: &Network, host: &str, name: &str) -> std::process::Command {
    let path = Path::new("/usr/sbin").join(name);
    assert!(
        path.exists(),
        "this test needs {name}; as root: apt-get install -y --no-install-recommends {name}"
    );
    network.on(host, path.to_str().unwrap())
}

#[test]
fn haproxy_leads_clients_to_the_primary() {
    let (network, dir) = (Network::new(&["a", "b", "c", "proxy"]), tempfile::tempdir().unwrap());
    let mut a = start(&network, "a", dir.path());
    a.wait_for("node::master: master");
    let mut b = start(&network, "b", dir.path());
    b.wait_for("following the master");
    let mut haproxy = program(&network, "proxy", "haproxy");
    let mut haproxy = Process::start("haproxy", haproxy.args(["-db", "-f", HAPROXY]), dir.path());
    let publisher = Publisher::start(&network, "c", &network.ip_of("proxy"));
    a.signal(Signal::KILL);
    publisher.goes_on();
    b.wait_for("node::master: master");
    let mut a = start(&network, "a", dir.path());
    a.wait_for("following the master");
    b.signal(Signal::TERM);
    assert!(b.wait().success(), "{}", b.log());
    publisher.goes_on();
    println!("HAProxy: longest time between two confirms, over a kill and a stop: {:?}", publisher.finish());
    haproxy.signal(Signal::USR1);
    haproxy.wait();
}

#[test]
fn keepalived_has_the_address_where_the_primary_is() {
    let (network, dir) = (Network::new(&["a", "b", "c"]), tempfile::tempdir().unwrap());
    let mut a = start(&network, "a", dir.path());
    a.wait_for("node::master: master");
    let mut b = start(&network, "b", dir.path());
    b.wait_for("following the master");
    let keepalived = ["a", "b"].map(|host| {
        let mut command = program(&network, host, "keepalived");
        command.args(["--vrrp", "--dont-fork", "--log-console", "--log-detail", "--use-file", KEEPALIVED]);
        for (flag, file) in [("--pid", "keepalived"), ("--vrrp_pid", "vrrp")] {
            command.arg(flag).arg(dir.path().join(format!("{host}-{file}.pid")));
        }
        Process::start(&format!("keepalived-{host}"), &mut command, dir.path())
    });
    let is_at = |host: &str| ["192.0.2.10", "2001:db8::10"].map(|address| network.has(host, address));
    until("the host of the primary has the address", || is_at("a") == [true, true]);
    assert_eq!(is_at("b"), [false, false]);
    let publisher = Publisher::start(&network, "c", FLOATING);
    a.signal(Signal::KILL);
    publisher.goes_on();
    until("the address has moved", || (is_at("a"), is_at("b")) == ([false, false], [true, true]));
    b.wait_for("node::master: master");
    // The node that comes back does not take it.
    let mut a = start(&network, "a", dir.path());
    a.wait_for("following the master");
    publisher.goes_on();
    assert_eq!((is_at("a"), is_at("b")), ([false, false], [true, true]));
    println!("keepalived: longest time between two confirms, over a kill: {:?}", publisher.finish());
    for mut keepalived in keepalived {
        for trouble in ["Unknown keyword", "WARNING", "SECURITY VIOLATION"] {
            assert!(!keepalived.log().contains(trouble), "{}", keepalived.log());
        }
        // It ends its children itself.
        keepalived.signal(Signal::TERM);
        keepalived.wait();
    }
}
