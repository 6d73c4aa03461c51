//! Hosts that are lost without a word: no connection ends, nobody answers. How long a client then waits is bounded by
//! what docs/operations.md adds up, and a dead host holds up nobody who knows of another one.
//!
//! The hosts are network namespaces: needs root and `ip` (iproute2), and bindfs for storage that hangs; without them it
//! fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use batonmq::server::FENCE_AGE_MAX;
use rustix::process::Signal;
use support::mount::{FORGETFUL, Mount};
use support::network::{INTERFACE, Network, Process};
use support::publisher::Publisher;

/// The address that both nodes share.
const FLOATING: &str = "192.0.2.10";
/// An address that nobody has. It is the next one to the client's, 192.0.2.4: whoever looks up a name puts it first.
const NOBODY: &str = "192.0.2.5";

/// Silence for so many heartbeats is a lost connection. A client looks each half of one.
const HEARTBEATS: f64 = 3.5;
/// Polls of the standby in which it hears nothing of the master, and the one that gets the lock.
const POLLS: f64 = 4.0;
/// The longest wait between two attempts of a client.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(750);
/// How long at most, once an address is there, until a client repeats a first packet that was lost.
const PACKET_REPEATED: Duration = Duration::from_millis(1_750);
/// Claiming, recovering, announcing and connecting, on a machine with other things to do.
const WORK: Duration = Duration::from_millis(1_500);

/// A pair on hosts `a` and `b`, clients on host `c`, and a host `d` with nothing on it.
struct Scene {
    network: Network,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { network: Network::new(&["a", "b", "d", "c"]), dir: tempfile::tempdir().unwrap() }
    }

    fn start(&self, host: &str, heartbeat: &str) -> Process {
        self.start_on(host, heartbeat, &self.path("store"))
    }

    fn start_on(&self, host: &str, heartbeat: &str, store: &Path) -> Process {
        let text = format!(
            "node = '{host}'\nstore = '{}'\ncreate_store = true\nmode = 'file'\nlisten = '[::]:7470'\n\
             advertise = '{}'\nallow_anonymous = true\nheartbeat = '{heartbeat}'\n\
             [address]\naddress = '{FLOATING}'\ninterface = '{INTERFACE}'\n",
            store.display(),
            self.network.ip_of(host)
        );
        let config = self.path(&format!("{host}.toml"));
        fs::write(&config, text).unwrap();
        let mut command = self.network.on(host, env!("CARGO_BIN_EXE_baton"));
        Process::start(host, command.args(["serve", "--config"]).arg(config), self.dir.path())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A host is lost: its link first, so that nothing of its end is heard, then its node, and with that the lock.
    fn lose(&self, host: &str, node: &mut Process) {
        self.network.ip(host, &format!("link set {INTERFACE} down"));
        node.signal(Signal::KILL);
        node.wait();
    }
}

/// The lock comes free at once here; on shared storage the time until a lost host's lock is free comes on top of it.
#[test]
fn a_lost_host_is_left_within_the_heartbeats() {
    for (text, heartbeat) in [("1s", Duration::from_secs(1)), ("200ms", Duration::from_millis(200))] {
        let scene = Scene::new();
        let mut a = scene.start("a", text);
        a.wait_for("floating address added");
        let mut b = scene.start("b", text);
        b.wait_for("following the master");
        let list = format!("{},{}", scene.network.ip_of("a"), scene.network.ip_of("b"));
        let publishers = [list.as_str(), FLOATING]
            .map(|by| Publisher::start_with(&scene.network, "c", by, Duration::from_secs(1)));
        scene.lose("a", &mut a);
        publishers.iter().for_each(Publisher::goes_on);
        let [by_list, by_address] = publishers.map(Publisher::finish);
        println!("heartbeat {text}: {by_list:?} by the list, {by_address:?} by the floating address");
        let takeover = Duration::from_millis(100).mul_f64(POLLS);
        let noticed = heartbeat.mul_f64(HEARTBEATS).max(takeover);
        // Whoever notices sooner was told so by the lost host.
        assert!(by_list >= heartbeat * 2, "{by_list:?}");
        let by_list_max = noticed + BETWEEN_ATTEMPTS + WORK;
        assert!(by_list <= by_list_max, "{by_list:?} > {by_list_max:?}\n{}", b.log());
        let by_address_max = noticed + PACKET_REPEATED + WORK;
        assert!(by_address <= by_address_max, "{by_address:?} > {by_address_max:?}\n{}", b.log());
    }
}

/// The master has its lock and its storage, and stays what it is: nobody may take over from it. The standby says so,
/// and everything goes on when the link is back.
#[test]
fn a_link_that_is_cut_changes_no_master_and_the_standby_says_why() {
    let scene = Scene::new();
    let mut a = scene.start("a", "200ms");
    a.wait_for("floating address added");
    let mut b = scene.start("b", "200ms");
    b.wait_for("following the master");
    let list = format!("{},{}", scene.network.ip_of("a"), scene.network.ip_of("b"));
    let publisher = Publisher::start(&scene.network, "c", &list);
    scene.network.ip("a", &format!("link set {INTERFACE} down"));
    b.wait_for("the lock is held, and nobody answers as master");
    assert!(b.log().contains("holder=\"a\""), "{}", b.log());
    scene.network.ip("a", &format!("link set {INTERFACE} up"));
    let back = Instant::now();
    publisher.goes_on();
    assert!(back.elapsed() <= PACKET_REPEATED + WORK, "{:?}", back.elapsed());
    assert!(!b.log().contains("epoch claimed"), "{}", b.log());
    publisher.end();
}

/// Everybody hears of the end of a process from its host.
#[test]
fn a_killed_process_is_followed_at_once() {
    let scene = Scene::new();
    let mut a = scene.start("a", "1s");
    a.wait_for("floating address added");
    let mut b = scene.start("b", "1s");
    b.wait_for("following the master");
    let list = format!("{},{}", scene.network.ip_of("a"), scene.network.ip_of("b"));
    let publisher = Publisher::start_with(&scene.network, "c", &list, Duration::from_secs(1));
    a.signal(Signal::KILL);
    publisher.goes_on();
    let gap = publisher.finish();
    println!("killed: {gap:?}");
    assert!(gap <= WORK, "{gap:?}");
}

/// The other node is master soon, since the lock comes free at once here: there is none between two mounts. The clients
/// stay for as long as a stall is to be sat out.
#[test]
fn clients_leave_a_master_whose_storage_was_cut_after_fifteen_seconds() {
    let scene = Scene::new();
    fs::create_dir(scene.path("real")).unwrap();
    let mounts = ["a", "b"].map(|host| Mount::new(&scene.path("real"), &scene.path(host), FORGETFUL));
    let mut a = scene.start_on("a", "1s", &mounts[0].path.join("store"));
    a.wait_for("floating address added");
    let mut b = scene.start_on("b", "1s", &mounts[1].path.join("store"));
    b.wait_for("following the master");
    let list = format!("{},{}", scene.network.ip_of("a"), scene.network.ip_of("b"));
    let publisher = Publisher::start_with(&scene.network, "c", &list, Duration::from_secs(1));
    let _hang = mounts[0].hang();
    b.wait_for("epoch claimed epoch=2");
    publisher.goes_on();
    let gap = publisher.finish();
    println!("storage cut: {gap:?}");
    let longest = FENCE_AGE_MAX + Duration::from_millis(100) + BETWEEN_ATTEMPTS + WORK;
    assert!(gap >= FENCE_AGE_MAX - Duration::from_secs(1) && gap <= longest, "{gap:?}\n{}", a.log());
    a.wait_for("the storage does not answer: clients are sent away until it does");
}

/// All addresses of a name were tried one after the other, so that a dead one in front cost the whole time of the
/// attempt, each time, and the others never had their turn.
#[test]
fn a_name_stands_for_all_of_its_addresses_and_a_dead_one_costs_nothing() {
    let scene = Scene::new();
    let [a, b] = ["a", "b"].map(|host| scene.network.ip_of(host));
    fs::write(scene.path("hosts"), format!("{NOBODY} pair\n{a} pair\n{b} pair\n")).unwrap();
    let publish = || {
        // `ip netns exec` has given it a view of the file system of its own.
        let mut shell = scene.network.on("c", "sh");
        shell.args(["-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]).arg(scene.path("hosts"));
        shell.args([env!("CARGO_BIN_EXE_baton"), "publish", "t", "x", "--server", "pair:7470"]);
        let began = Instant::now();
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        began.elapsed()
    };
    let attempt = batonmq::client::ClientOptions::default().attempt_timeout;
    let mut node = scene.start("a", "1s");
    node.wait_for("floating address added");
    let mut other = scene.start("b", "1s");
    other.wait_for("following the master");
    let with_both = publish();
    assert!(with_both < attempt, "{with_both:?}");
    scene.lose("a", &mut node);
    other.wait_for("floating address added");
    let with_one = publish();
    assert!(with_one < attempt, "{with_one:?}");
}
