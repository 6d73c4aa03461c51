//! Two hosts, a shared disk and a floating address that follows the master, as a client on a third host meets it.
//!
//! The hosts are network namespaces: needs root, `ip` (iproute2) and curl, and bindfs for a pause; without them it fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use batonmq::address::keeper::LIFETIME;
use batonmq::node::EXIT_FENCED;
use rustix::process::Signal;
use support::faulty::FaultyDisk;
use support::faulty::faults::Operation;
use support::mount::{FORGETFUL, Mount};
use support::network::{INTERFACE, Network, Process, until};
use support::publisher::Publisher;

const V4: &str = "192.0.2.10";
const V6: &str = "2001:db8::10";
/// How soon the neighbours know of a change: before they would ask anew by themselves.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);

/// A pair on hosts `a` and `b`, a client on host `c`, and a stranger on host `d`.
struct Scene {
    network: Network,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { network: Network::new(&["a", "b", "c", "d"]), dir: tempfile::tempdir().unwrap() }
    }

    /// The configuration of a node, with what its `[address]` has.
    fn config(&self, host: &str, store: &Path, address: &str) -> PathBuf {
        let path = self.dir.path().join(format!("{host}.toml"));
        let text = format!(
            "node = '{host}'\nstore = '{}'\ncreate_store = true\nmode = 'file'\nlisten = '[::]:7470'\n\
             advertise = '{}'\nallow_anonymous = true\nadmin = '127.0.0.1'\n[address]\n{address}\n",
            store.display(),
            self.network.ip_of(host)
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a node with both floating addresses.
    fn start(&self, host: &str) -> Process {
        self.start_on(host, &self.dir.path().join("store"))
    }

    fn start_on(&self, host: &str, store: &Path) -> Process {
        let address =
            format!("address = ['{V4}/24', '{V6}']\ninterface = '{INTERFACE}'\nannounce_interval = '1s'");
        self.start_with(&self.config(host, store, &address), host)
    }

    fn start_with(&self, config: &Path, host: &str) -> Process {
        // Without any right but those that the documentation gives it.
        let rights = "-all,+net_admin,+net_raw";
        let mut command = self.network.on(host, "setpriv");
        command.args(["--bounding-set", rights, "--inh-caps", rights, env!("CARGO_BIN_EXE_baton")]);
        Process::start(host, command.args(["serve", "--config"]).arg(config), self.dir.path())
    }

    /// Removes what a killed node has left on a host, and answers what is said.
    fn clear_up(&self, host: &str, wait: &str) -> String {
        let config = self.dir.path().join(format!("{host}.toml"));
        let args = ["address", "remove", "--config", config.to_str().unwrap(), "--wait", wait];
        let (ok, said) = self.network.baton(host, &args);
        assert!(ok, "{said}");
        said
    }

    fn has(&self, host: &str) -> [bool; 2] {
        [V4, V6].map(|address| self.network.has(host, address))
    }

    /// How long the host keeps what it has as a loan.
    fn loans(&self, host: &str) -> Vec<Duration> {
        let output =
            self.network.on(host, "ip").args(["address", "show", "dev", INTERFACE]).output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        let left = shown.split("valid_lft ").filter_map(|after| after.split_once("sec ")?.0.parse().ok());
        left.map(Duration::from_secs).collect()
    }

    /// The client knows where the addresses are, soon, and by being told.
    fn client_is_told(&self, host: &str) {
        let (mac, since) = (self.network.mac(host), Instant::now());
        for address in [V4, V6] {
            while self.network.neighbour("c", address).as_deref() != Some(mac.as_str()) {
                assert!(
                    since.elapsed() < KNOWN_WITHIN,
                    "the client believes {address} to be at {:?}, and it is at {mac}",
                    self.network.neighbour("c", address)
                );
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

#[test]
fn clients_go_on_at_the_floating_address_whatever_becomes_of_the_master() {
    let scene = Scene::new();
    let mut a = scene.start("a");
    a.wait_for("floating address added");
    until("both are added", || scene.has("a") == [true, true]);
    let mut b = scene.start("b");
    b.wait_for("following the master");
    assert_eq!(scene.has("b"), [false, false]);
    let publishers = [V4, V6].map(|address| Publisher::start(&scene.network, "c", address));
    let go_on = || publishers.iter().for_each(Publisher::goes_on);
    scene.client_is_told("a");
    let (_, status) = scene.network.baton("a", &["status"]);
    assert!(status.contains(&format!("{V4}/24 {V6}/128")), "{status}");
    let (_, status) = scene.network.baton("b", &["status"]);
    assert!(status.contains(&format!("({V4}/24) ({V6}/128)")), "{status}");

    // Killed, and what the service manager runs then.
    a.signal(Signal::KILL);
    a.wait();
    let removed = scene.clear_up("a", "10s");
    assert_eq!(removed, format!("{V4}/24 removed from {INTERFACE}\n{V6}/128 removed from {INTERFACE}\n"));
    assert_eq!((scene.has("a"), scene.has("b")), ([false, false], [true, true]));
    scene.client_is_told("b");
    go_on();
    assert_eq!(scene.clear_up("a", "10s"), "", "where nothing is left there is nothing to say");

    // Stopped.
    let mut a = scene.start("a");
    a.wait_for("following the master");
    b.signal(Signal::TERM);
    assert!(b.wait().success(), "{}", b.log());
    b.wait_for("floating address removed");
    assert_eq!((scene.has("a"), scene.has("b")), ([true, true], [false, false]));
    scene.client_is_told("a");
    go_on();

    // Told to hand over.
    let mut b = scene.start("b");
    b.wait_for("following the master");
    let server = format!("{V4}:7470");
    let (ok, said) = scene.network.baton("c", &["switchover", "--server", &server]);
    assert!(ok, "{said}");
    assert!(a.wait().success(), "{}", a.log());
    assert_eq!((scene.has("a"), scene.has("b")), ([false, false], [true, true]));
    scene.client_is_told("b");
    go_on();

    // A command of a client, as people use it.
    let server = format!("[{V6}]:7470");
    let (ok, said) = scene.network.baton("c", &["publish", "other", "x", "--server", &server]);
    assert!(ok, "{said}");
    let longest = publishers.map(Publisher::finish);
    println!(
        "floating address: longest time between two confirms, over a kill, a stop and a switchover: {longest:?}"
    );
    let trouble = ["cannot be kept", "says that it has", "was gone", "cannot make sure"];
    for (log, said) in [a.log(), b.log()].iter().flat_map(|log| trouble.map(|said| (log.clone(), said))) {
        assert!(!log.contains(said), "{log}");
    }
}

/// Nobody removes it, and nobody extends it.
#[test]
fn what_a_killed_master_leaves_goes_with_the_next_start_and_else_by_itself() {
    let scene = Scene::new();
    let mut a = scene.start("a");
    until("both are added", || scene.has("a") == [true, true]);
    let said = scene.clear_up("a", "0s");
    assert_eq!(said.matches("stays: another process of this host has").count(), 2, "{said}");
    assert_eq!(scene.has("a"), [true, true]);
    a.signal(Signal::KILL);
    a.wait();
    assert_eq!(scene.has("a"), [true, true]);

    let mut b = scene.start("b");
    b.wait_for("floating address added");
    let mut a = scene.start("a");
    a.wait_for("following the master");
    assert_eq!(
        a.log().matches("a process that was killed had left a floating address").count(),
        2,
        "{}",
        a.log()
    );
    assert_eq!(scene.has("a"), [false, false]);

    drop(a);
    b.signal(Signal::KILL);
    b.wait();
    until("the lifetime is over", || scene.has("b") == [false, false]);
}

#[test]
fn an_address_that_a_stranger_has_is_said_and_taken_over() {
    let scene = Scene::new();
    scene.network.ip("d", &format!("addr add {V4}/24 dev {INTERFACE}"));
    scene.network.ip("d", &format!("addr add {V6}/64 dev {INTERFACE} nodad"));
    let mut a = scene.start("a");
    until("both are added", || scene.has("a") == [true, true]);
    let said = format!(
        "the host with the Ethernet address {} says that it has the floating address",
        scene.network.mac("d")
    );
    let publishers = [V4, V6].map(|address| Publisher::start(&scene.network, "c", address));
    scene.client_is_told("a");
    a.wait_for("still has the floating address: it is taken over from it");
    // When the loan of the last master has run out.
    a.wait_for(&said);
    publishers.iter().for_each(Publisher::goes_on);
    publishers.into_iter().for_each(Publisher::end);
}

#[test]
fn an_interface_that_goes_down_or_loses_the_address_has_it_again_by_itself() {
    let scene = Scene::new();
    let mut a = scene.start("a");
    until("both are added", || scene.has("a") == [true, true]);
    let publisher = Publisher::start(&scene.network, "c", V4);
    scene.network.ip("a", &format!("addr del {V4}/24 dev {INTERFACE}"));
    a.wait_for("a floating address was gone: added again");
    publisher.goes_on();
    scene.network.ip("a", &format!("link set {INTERFACE} down"));
    scene.network.ip("a", &format!("link set {INTERFACE} up"));
    until("both are there again", || scene.has("a") == [true, true]);
    publisher.goes_on();
    scene.network.ip("a", &format!("link set {INTERFACE} name other"));
    a.wait_for("a floating address cannot be kept; the node serves, and tries again each second");
    assert!(a.log().contains("there is no interface eth0; there are "), "{}", a.log());
    scene.network.ip("a", &format!("link set other name {INTERFACE}"));
    a.wait_for("the floating addresses can be kept again");
    publisher.end();
}

/// A master `a` with the addresses and a standby `b`, on a disk whose locks do not lock.
fn pair_without_locks(scene: &Scene) -> ([Mount; 2], [Process; 2]) {
    let real = scene.dir.path().join("real");
    fs::create_dir(&real).unwrap();
    let mounts = ["a", "b"].map(|host| Mount::new(&real, &scene.dir.path().join(host), FORGETFUL));
    let a = scene.start_on("a", &mounts[0].path.join("store"));
    until("both are added", || scene.has("a") == [true, true]);
    let mut b = scene.start_on("b", &mounts[1].path.join("store"));
    b.wait_for("following the master");
    (mounts, [a, b])
}

/// The kernel of a paused master goes on answering for the address.
#[test]
fn a_paused_master_does_not_keep_the_address_from_the_other_one() {
    let scene = Scene::new();
    let (_mounts, [mut a, mut b]) = pair_without_locks(&scene);
    let publishers = [V4, V6].map(|address| Publisher::start(&scene.network, "c", address));

    a.signal(Signal::STOP);
    b.wait_for("floating address added");
    assert_eq!(scene.has("a"), [true, true]);
    scene.client_is_told("b");
    publishers.iter().for_each(Publisher::goes_on);
    // Both answer whoever asks. What the neighbours are told again corrects the wrong answers.
    scene.network.ip("c", &format!("neigh flush dev {INTERFACE}"));
    publishers.iter().for_each(Publisher::goes_on);
    b.wait_for("still has the floating address: it is taken over from it");

    until("nobody extends the loan", || scene.has("a") == [false, false]);
    a.signal(Signal::CONT);
    assert_eq!(a.wait().code(), Some(EXIT_FENCED), "{}", a.log());
    assert_eq!((scene.has("a"), scene.has("b")), ([false, false], [true, true]));
    scene.client_is_told("b");
    publishers.into_iter().for_each(Publisher::end);
}

/// A master that woke up after a takeover extended the loan once before it ended: its kernel answered for the address up to
/// ten seconds longer, and the new master warned of a stranger.
#[test]
fn a_paused_master_that_wakes_up_extends_no_loan() {
    let scene = Scene::new();
    let (_mounts, [mut a, mut b]) = pair_without_locks(&scene);
    a.signal(Signal::STOP);
    b.wait_for("floating address added");
    until("half of the loan is over", || scene.loans("a").iter().all(|left| *left <= LIFETIME / 2));
    a.signal(Signal::CONT);
    assert_eq!(a.wait().code(), Some(EXIT_FENCED), "{}", a.log());
    let loans = scene.loans("a");
    assert!(loans.len() == 2 && loans.iter().all(|left| *left <= LIFETIME / 2), "{loans:?}");
}

/// Its clients are sent away at the same time. Were it to keep the address and to announce it, it would fight for it with
/// a master that does serve.
#[test]
fn a_master_whose_storage_hangs_gives_the_address_away_until_it_answers() {
    let scene = Scene::new();
    let disk = FaultyDisk::new(scene.dir.path());
    let mut a = scene.start_on("a", &disk.path.join("store"));
    until("both are added", || scene.has("a") == [true, true]);
    let stall = disk.faults.stall(Operation::Sync, ".log");
    let mut publish = scene.network.on("c", env!("CARGO_BIN_EXE_baton"));
    publish.args(["publish", "t", "x", "--server", &format!("{V4}:7470"), "--timeout", "60s"]);
    let mut publish = Process::start("publish", &mut publish, scene.dir.path());
    until("the storage has hung for long enough", || scene.has("a") == [false, false]);
    a.wait_for("the node cannot make sure that it is still master: its floating addresses go until it can");
    let health = scene.network.on("a", "curl").args(["-s", "http://127.0.0.1:7471/health/primary"]).output();
    let health = String::from_utf8(health.unwrap().stdout).unwrap();
    assert!(health.contains("the storage does not answer: the last check of the fence is 1"), "{health}");
    drop(stall);
    until("both are there again", || scene.has("a") == [true, true]);
    assert!(publish.wait().success(), "{}", publish.log());
}

#[test]
fn a_node_that_cannot_have_the_address_says_why_and_claims_nothing() {
    let scene = Scene::new();
    let store = scene.dir.path().join("store");
    let eth0 = format!("interface = '{INTERFACE}'\naddress = ");
    let refused = |scene: &Scene, address: &str, prefix: &[&str], code: i32, said: &str| {
        let config = scene.config("a", &store, address);
        let mut command = match prefix {
            [] => scene.network.on("a", env!("CARGO_BIN_EXE_baton")),
            [program, args @ ..] => {
                let mut command = scene.network.on("a", program);
                command.args(args).arg(env!("CARGO_BIN_EXE_baton"));
                command
            }
        };
        let mut a = Process::start("a", command.args(["serve", "--config"]).arg(config), scene.dir.path());
        assert_eq!(a.wait().code(), Some(code), "{}", a.log());
        assert!(a.log().contains(said), "{said:?} is not in: {}", a.log());
        assert!(!store.join("epochs").join("1").exists(), "{said}: an epoch was claimed");
    };
    let interface = "there is no interface eth7; there are ";
    refused(&scene, &format!("interface = 'eth7'\naddress = '{V4}'"), &[], 1, interface);
    let ethernet = "lo is no Ethernet interface";
    refused(&scene, &format!("interface = 'lo'\naddress = '{V4}'"), &[], 1, ethernet);
    refused(&scene, &format!("{eth0}'{V4}/33'"), &[], 2, "is not a prefix of 8 to 32 bits");
    refused(&scene, &format!("{eth0}'192.0.2.1/24'"), &[], 2, "which the two nodes share");
    refused(&scene, &format!("address = '{V4}'"), &[], 2, "name the interface that is to have them");
    for right in ["net_admin", "net_raw"] {
        let without = format!("-{right}");
        let missing = format!("the process lacks CAP_{}", right.to_uppercase());
        let prefix = ["setpriv", "--bounding-set", &without, "--inh-caps", &without];
        refused(&scene, &format!("{eth0}['{V4}', '{V6}']"), &prefix, 1, &missing);
    }
    scene.network.ip("a", &format!("addr add {V4}/24 dev {INTERFACE}"));
    let configured = "is an address of eth0 already, and Baton has not added it";
    refused(&scene, &format!("{eth0}'{V4}/24'"), &[], 1, configured);
    assert!(scene.network.has("a", V4));
    assert!(scene.clear_up("a", "0s").contains(configured));
    assert!(scene.network.has("a", V4));
}
