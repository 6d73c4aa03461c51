//! The worst shared disk there is: two mounts of one folder whose locks do not exclude and whose caches are stale, a
//! node on each. Only the fence is left to keep every confirmed message.
//!
//! `BATON_ROUNDS=200 cargo test --test worst_disk a_paused_master -- --nocapture` goes through more rounds than each run
//! of all tests does, and says what came of them.
//!
//! Needs root, `/dev/fuse` and `bindfs`; without them it fails.

mod support;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use batonmq::disk;
use batonmq::model::id::Epoch;
use batonmq::node::EXIT_FENCED;
use batonmq::protocol::response::Role;
use rustix::process::Signal;
use support::history::{Violation, check};
use support::load::{GROUPS, Load, PATIENT_HEARTBEAT, Temper};
use support::mount::{DEFAULT, FORGETFUL, Mount, SLOW};
use support::pair::{Node, PATIENCE};

/// Says how many rounds of pausing the master there are to be, for each mode.
const ROUNDS_VARIABLE: &str = "BATON_ROUNDS";
/// Rounds where nothing is said.
const ROUNDS: u64 = 40;
/// For so many rounds of pausing one of killing, after them: the death is certain, so that a database is recovered in
/// place.
const PAUSES_PER_KILL: u64 = 8;
/// How long two healthy nodes are watched.
const WATCHED: Duration = Duration::from_secs(4);
/// Bytes of a message.
const BODY_BYTES: usize = 400;
/// Bytes of a database that take seconds to copy through a slow mount.
const SLOWLY_COPIED_BYTES: u64 = 8 << 20;
/// How long a master that wakes up may take to find that it is none any more.
const WAKING_MAX: Duration = Duration::from_secs(5);

/// Two mounts of one folder, and a node on each.
struct WorstDisk {
    // The order matters: the nodes end, then the mounts, then the folder.
    nodes: [Node; 2],
    mounts: [Mount; 2],
    _dir: tempfile::TempDir,
}

impl WorstDisk {
    /// The mounts keep what these options say.
    fn new(mode: &'static str, options: [&str; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounts = mounts(dir.path(), options);
        let node = |name: &str, mount: &Mount| {
            // Small segments, so that checkpoints and removals go on all the time.
            Node::new(name, &mount.path.join("store"), mode, dir.path())
                .set("BATON_SEGMENT_BYTES", 128 << 10)
                // A master may be silent for three of these: a checkpoint of a busy machine can take longer than usual.
                .set("BATON_POLL_INTERVAL", "250ms")
                .set("BATON_HEARTBEAT", format!("{}ms", PATIENT_HEARTBEAT.as_millis()))
                .set("BATON_LOG", "info,batonmq::store=debug")
        };
        let nodes = [node("a", &mounts[0]), node("b", &mounts[1])];
        Self { nodes, mounts, _dir: dir }
    }

    /// Starts both nodes, the first one as master, and a load.
    async fn start(&mut self) -> Load {
        self.nodes[0].start();
        self.nodes[0].wait_for(Role::Master).await;
        self.nodes[1].start();
        self.nodes[1].wait_for(Role::Standby).await;
        Load::start_with(&self.servers(), BODY_BYTES, Temper::Mixed).await
    }

    /// Ends both nodes, and looks through the store that they leave; what is said where it is damaged.
    fn verify(&mut self) -> Result<(), String> {
        self.nodes.iter_mut().for_each(Node::kill);
        let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
        let output = command.args(["store", "verify", "--store"]).arg(&self.nodes[0].store).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }

    fn servers(&self) -> String {
        format!("{},{}", self.nodes[0].address, self.nodes[1].address)
    }

    fn logs(&self) -> String {
        let log = |node: &Node| format!("--- {}\n{}", node.name, tail(&node.log(), 60));
        self.nodes.iter().map(log).collect()
    }
}

/// Two mounts of one folder in `dir`.
fn mounts(dir: &Path, options: [&str; 2]) -> [Mount; 2] {
    let real = dir.join("real");
    fs::create_dir(&real).unwrap();
    let mount = |name: &str, options| Mount::new(&real, &dir.join(name), options);
    [mount("mount-a", options[0]), mount("mount-b", options[1])]
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n") + "\n"
}

/// A number that looks random, from a seed; the same on every run.
fn scatter(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Whether the log ends within a checkpoint.
fn is_in_checkpoint(node: &Node) -> bool {
    let log = node.recent_log();
    log.lines()
        .rev()
        .find(|line| line.contains("checkpoint "))
        .is_some_and(|line| line.contains("checkpoint begins"))
}

/// Waits for the next checkpoint to begin.
fn wait_for_checkpoint(node: &Node) {
    let count = || node.recent_log().matches("checkpoint begins").count();
    let (before, deadline) = (count(), Instant::now() + PATIENCE);
    while count() == before {
        assert!(Instant::now() < deadline, "no checkpoint begins:\n{}", node.log());
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// When a paused master wakes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    /// While the other node, which has claimed, still reads the store.
    Claimed,
    /// As soon as the other node serves.
    Serving,
    /// When the other node has confirmed something.
    Confirming,
}

impl Wake {
    /// Waits for that moment, closely.
    async fn wait(self, successor: &mut Node, load: &Load) {
        let said = match self {
            Self::Claimed => "epoch claimed",
            Self::Serving | Self::Confirming => "node::master: master epoch",
        };
        let deadline = Instant::now() + PATIENCE;
        while !successor.recent_log().contains(said) {
            assert!(Instant::now() < deadline, "it is never said that {said}:\n{}", successor.log());
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        if self == Self::Confirming {
            load.confirmed_more(100).await;
        }
    }
}

/// What has become of a round.
#[derive(Default)]
struct Tally {
    pauses: u64,
    kills: u64,
    in_checkpoint: u64,
    /// Successors that were killed before they had served for long.
    short_reigns: u64,
    /// Messages that were confirmed.
    confirmed: u64,
    /// Old masters that did not end by themselves.
    stubborn: u64,
    /// From the pause until the other node served.
    takeovers: Vec<Duration>,
}

/// A run of rounds on one disk.
struct Rounds {
    disk: WorstDisk,
    load: Load,
    seed: u64,
    /// Which node is master.
    master: usize,
    epoch: u64,
    tally: Tally,
}

impl Rounds {
    /// A number for a choice in a round; the same for the same seed.
    fn choose(&self, round: u64, choice: u64) -> u64 {
        scatter(self.seed ^ (round << 8) ^ (choice << 32))
    }

    /// Pauses the master, lets the other node take over, wakes the old master, and sees it end. At the end there are
    /// a master and a standby again.
    async fn pause(&mut self, round: u64) {
        let (master, successor) = (self.master, 1 - self.master);
        self.load.confirmed_more(1 + self.choose(round, 0) % 1_000).await;
        let status = self.disk.nodes[master].wait_for(Role::Master).await;
        assert_eq!(status.epoch, Epoch(self.epoch), "somebody claimed unasked:\n{}", self.disk.logs());
        // Within a checkpoint, or at any moment. Only in the second case does it write once more when it wakes, and
        // only a successor that dies before its own first checkpoint leaves that to the next one to be read.
        let (wakes, deaths): (&[Wake], u64) = if round % 5 < 3 {
            wait_for_checkpoint(&self.disk.nodes[master]);
            (&[Wake::Claimed, Wake::Serving, Wake::Confirming], 5)
        } else {
            (&[Wake::Claimed, Wake::Serving, Wake::Serving, Wake::Serving], 1)
        };
        let wake = wakes[self.choose(round, 2) as usize % wakes.len()];
        let dies = self.choose(round, 3).is_multiple_of(deaths);
        let nodes = &mut self.disk.nodes;
        nodes[master].pause();
        let paused_at = Instant::now();
        self.tally.pauses += 1;
        self.tally.in_checkpoint += u64::from(is_in_checkpoint(&nodes[master]));
        wake.wait(&mut nodes[successor], &self.load).await;
        nodes[master].resume();
        if dies {
            // The successor as well, perhaps before it serves: the next one takes over from both.
            self.tally.short_reigns += 1;
            nodes[successor].kill();
        }
        match nodes[master].wait_within(WAKING_MAX).map(|status| status.code()) {
            Some(code) => assert_eq!(code, Some(EXIT_FENCED), "{}", self.disk.logs()),
            None => {
                self.tally.stubborn += 1;
                nodes[master].kill();
            }
        }
        let (next, other) = if dies {
            (master, successor)
        } else {
            nodes[successor].wait_for(Role::Master).await;
            self.tally.takeovers.push(paused_at.elapsed());
            (successor, master)
        };
        self.epoch += 1 + u64::from(next == master);
        nodes[master].start();
        nodes[next].wait_for(Role::Master).await;
        if other == successor {
            nodes[successor].start();
        }
        nodes[other].wait_for(Role::Standby).await;
        self.master = next;
    }

    /// Kills the master, so that the other node knows it to be dead.
    async fn kill(&mut self, round: u64) {
        self.load.confirmed_more(1 + self.choose(round, 0) % 1_000).await;
        self.tally.kills += 1;
        let nodes = &mut self.disk.nodes;
        nodes[self.master].kill();
        nodes[1 - self.master].wait_for(Role::Master).await;
        nodes[self.master].start();
        nodes[self.master].wait_for(Role::Standby).await;
        self.master = 1 - self.master;
    }

    /// One more takeover, which must recover everything; then what was lost or stored twice, and whether the store is
    /// whole.
    async fn finish(mut self) -> (Vec<Violation>, Result<(), String>, Tally) {
        if self.load.has_gone_back() {
            // Something is lost. So that the checker can say what, there must be a master.
            for node in &mut self.disk.nodes {
                node.kill();
                node.start();
            }
        } else {
            self.disk.nodes[self.master].kill();
        }
        self.tally.confirmed = self.load.confirmed.load(Ordering::Relaxed);
        let violations = check(&self.load.finish().await, &GROUPS);
        let verified = self.disk.verify();
        (violations, verified, self.tally)
    }
}

/// How many rounds of pausing the master there are to be.
fn rounds_wanted() -> u64 {
    let Some(wanted) = std::env::var_os(ROUNDS_VARIABLE) else { return ROUNDS };
    let wanted = wanted.to_str().and_then(|wanted| wanted.parse().ok()).filter(|&rounds| rounds > 0);
    wanted.unwrap_or_else(|| panic!("{ROUNDS_VARIABLE} is a number of rounds, at least 1"))
}

async fn a_paused_master_loses_nothing(mode: &'static str) {
    let (pauses, began) = (rounds_wanted(), Instant::now());
    let kills = pauses.div_ceil(PAUSES_PER_KILL);
    let mut disk = WorstDisk::new(mode, [DEFAULT, FORGETFUL]);
    let load = disk.start().await;
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut rounds = Rounds { disk, load, seed, master: 0, epoch: 1, tally: Tally::default() };
    for round in 0..pauses + kills {
        if rounds.load.has_gone_back() {
            break;
        }
        if round < pauses {
            rounds.pause(round).await;
        } else {
            rounds.kill(round).await;
        }
    }
    let (violations, verified, mut tally) = rounds.finish().await;
    tally.takeovers.sort();
    println!(
        "{mode} mode, seed {seed}: {} rounds in {} s, {} of pausing and {} of killing the master; {} pauses fell into a \
         checkpoint; {} successors were killed too; {} takeovers from a paused one, median {:.1?}, longest {:.1?}; {} \
         messages confirmed; {} violations; store verify: {}",
        tally.pauses + tally.kills,
        began.elapsed().as_secs(),
        tally.pauses,
        tally.kills,
        tally.in_checkpoint,
        tally.short_reigns,
        tally.takeovers.len(),
        tally.takeovers.get(tally.takeovers.len() / 2).copied().unwrap_or_default(),
        tally.takeovers.last().copied().unwrap_or_default(),
        tally.confirmed,
        violations.len(),
        verified.as_ref().map_or_else(String::as_str, |()| "no damage"),
    );
    assert!(
        violations.is_empty(),
        "seed {seed}: {} violations: {:?}\n{} masters did not end",
        violations.len(),
        &violations[..violations.len().min(10)],
        tally.stubborn,
    );
    assert_eq!(verified, Ok(()), "seed {seed}");
    assert_eq!(tally.stubborn, 0, "seed {seed}: masters that went on after they had lost");
    assert_eq!((tally.pauses, tally.kills), (pauses, kills), "seed {seed}: fewer rounds show less");
    assert!(
        tally.in_checkpoint * 5 >= pauses,
        "only {} pauses fell into a checkpoint: that shows nothing",
        tally.in_checkpoint
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_master_loses_nothing_in_file_mode() {
    a_paused_master_loses_nothing("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_master_loses_nothing_in_database_mode() {
    a_paused_master_loses_nothing("database").await;
}

async fn a_healthy_master_is_left_alone(mode: &'static str) {
    let mut disk = WorstDisk::new(mode, [DEFAULT, FORGETFUL]);
    let load = disk.start().await;
    let started = Instant::now();
    while started.elapsed() < WATCHED {
        load.confirmed_more(100).await;
        for (node, role) in disk.nodes.iter_mut().zip([Role::Master, Role::Standby]) {
            let status = node.wait_for(role).await;
            assert_eq!(status.epoch, Epoch(1), "somebody claimed unasked:\n{}", node.log());
        }
    }
    let said = disk.nodes.each_ref().map(|node| node.log().matches("locks do not lock").count());
    assert_eq!(said, [0, 1], "said once by the standby, and not at each poll:\n{}", disk.logs());
    let events = load.finish().await;
    assert_eq!(check(&events, &GROUPS), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_master_is_left_alone_though_its_lock_excludes_nobody() {
    a_healthy_master_is_left_alone("file").await;
    a_healthy_master_is_left_alone("database").await;
}

/// The shared disk does not answer one node any more. Its process lives and says so at each heartbeat, so only the age of
/// its last fence check tells the other one that nobody is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_whose_storage_hangs_is_unseated_and_loses_nothing() {
    for mode in ["file", "database"] {
        let mut disk = WorstDisk::new(mode, [DEFAULT, FORGETFUL]);
        let load = disk.start().await;
        load.confirmed_more(1_000).await;
        let hang = disk.mounts[0].hang();
        assert_eq!(disk.nodes[1].wait_for(Role::Master).await.epoch, Epoch(2), "{}", disk.logs());
        load.confirmed_more(1_000).await;
        assert!(disk.nodes[0].runs(), "it has ended by itself: that shows nothing\n{}", disk.logs());
        drop(hang);
        assert_eq!(disk.nodes[0].wait().code(), Some(EXIT_FENCED), "{}", disk.logs());
        let events = load.finish().await;
        assert_eq!(check(&events, &GROUPS), [], "{mode}");
    }
}

/// Databases in the store, by the names of their files.
fn databases(store: &Path) -> Vec<String> {
    let names = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("baton-")).collect();
    names.sort();
    names
}

/// A disk in database mode whose second node takes seconds to copy what the first one has stored. The first is
/// paused, and the second copies.
async fn a_slow_takeover() -> (WorstDisk, Load) {
    let mut disk = WorstDisk::new("database", [DEFAULT, SLOW]);
    let load = disk.start().await;
    let store = disk.nodes[0].store.clone();
    let stored = || {
        let lengths = databases(&store).into_iter().map(|name| fs::metadata(store.join(name)).unwrap().len());
        lengths.sum::<u64>()
    };
    while stored() < SLOWLY_COPIED_BYTES {
        load.confirmed_more(1_000).await;
    }
    disk.nodes[0].pause();
    disk.nodes[1].wait_for(Role::Recovering).await;
    let deadline = Instant::now() + PATIENCE;
    while !databases(&store).contains(&format!("baton-{:020}.db", 2)) {
        assert!(Instant::now() < deadline, "no copy is begun:\n{}", disk.logs());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (disk, load)
}

/// A node that copied a large database said that it was not master yet, which the other one, restarted meanwhile,
/// took for no answer: it claimed, and copied, and was unseated in the same way. Nobody ever served, and each turn left
/// a copy behind until the disk was full.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_takes_long_to_recover_is_left_alone_though_its_lock_excludes_nobody() {
    let (mut disk, load) = a_slow_takeover().await;
    disk.nodes[0].resume();
    assert_eq!(disk.nodes[0].wait().code(), Some(EXIT_FENCED), "{}", disk.logs());
    disk.nodes[0].start();
    disk.nodes[0].wait_for(Role::Standby).await;
    disk.nodes[0].wait_for_log("locks do not lock");
    assert_eq!(disk.nodes[1].wait_for(Role::Recovering).await.epoch, Epoch(2), "{}", disk.logs());
    assert_eq!(disk.nodes[1].wait_for(Role::Master).await.epoch, Epoch(2), "{}", disk.logs());
    load.confirmed_more(100).await;
    assert_eq!(disk.nodes[0].wait_for(Role::Standby).await.epoch, Epoch(2), "{}", disk.logs());
    let events = load.finish().await;
    assert_eq!(check(&events, &GROUPS), []);
}

/// A node that was told to stop while it copied a database did so when it had copied all of it and served.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_that_is_told_to_stop_does_so_and_leaves_no_copy() {
    let (mut disk, load) = a_slow_takeover().await;
    let store = disk.nodes[0].store.clone();
    disk.nodes[1].signal(Signal::TERM);
    assert!(disk.nodes[1].wait().success(), "{}", disk.logs());
    assert!(!disk.nodes[1].log().contains("node::master: master epoch"), "{}", disk.logs());
    let copy = format!("baton-{:020}.db", 2);
    assert!(!databases(&store).iter().any(|name| name.starts_with(&copy)), "{:?}", databases(&store));
    disk.nodes[0].resume();
    assert_eq!(disk.nodes[0].wait().code(), Some(EXIT_FENCED), "{}", disk.logs());
    disk.nodes[0].start();
    assert_eq!(disk.nodes[0].wait_for(Role::Master).await.epoch, Epoch(3), "{}", disk.logs());
    let events = load.finish().await;
    assert_eq!(check(&events, &GROUPS), []);
}

/// A node that was unseated while it copied went on copying, and left the copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_that_is_overtaken_ends_soon_and_leaves_no_copy() {
    let (mut disk, load) = a_slow_takeover().await;
    let store = disk.nodes[0].store.clone();
    disk.nodes[1].pause();
    let copy = format!("baton-{:020}.db", 2);
    disk.nodes[0].resume();
    assert_eq!(disk.nodes[0].wait().code(), Some(EXIT_FENCED), "{}", disk.logs());
    disk.nodes[0].start();
    disk.nodes[0].wait_for(Role::Master).await;
    disk.nodes[1].resume();
    let ended = disk.nodes[1].wait();
    assert!(!ended.success() && disk.nodes[1].log().contains("epoch 3 has taken over"), "{}", disk.logs());
    assert!(!databases(&store).iter().any(|name| name.starts_with(&copy)), "{:?}", databases(&store));
    let events = load.finish().await;
    assert_eq!(check(&events, &GROUPS), []);
}

/// Both nodes named the address that they share as their own. The standby took the master for itself, did not ask
/// whether it was healthy, and unseated it.
#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_master_is_left_alone_though_both_advertise_one_address() {
    let mut disk = WorstDisk::new("file", [DEFAULT, FORGETFUL]);
    let shared = disk.nodes[0].address.clone();
    disk.nodes = disk.nodes.map(|node| node.set("BATON_ADVERTISE", &shared));
    let load = disk.start().await;
    disk.nodes[1].wait_for_log("locks do not lock");
    load.confirmed_more(1_000).await;
    assert_eq!(disk.nodes[0].wait_for(Role::Master).await.epoch, Epoch(1), "{}", disk.logs());
    let said = disk.nodes.each_ref().map(|node| node.log().matches("set `advertise` of each").count());
    assert_eq!(said, [0, 1], "{}", disk.logs());
    let events = load.finish().await;
    assert_eq!(check(&events, &GROUPS), []);
}

/// A node had looked for the folder `manifest` before there was one. The other node founded the store, confirmed, and
/// died. The first took over while its mount still kept that there is no such folder: in database mode it once made a
/// new store, and everything confirmed was gone; in file mode it would not serve.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_the_other_node_has_just_founded_is_not_founded_again() {
    for mode in ["file", "database"] {
        let keeps = "attr_timeout=3,entry_timeout=3,negative_timeout=3";
        let mut disk = WorstDisk::new(mode, [DEFAULT, keeps]);
        let store = disk.nodes[1].store.clone();
        fs::create_dir(&store).unwrap();
        disk.nodes[0].start();
        for name in ["control", "epochs", "manifest", "journal"] {
            assert!(fs::metadata(store.join(name)).is_err(), "{name} is there too early");
        }
        disk.nodes[0].wait_for(Role::Master).await;
        let load = Load::start(&disk.servers(), BODY_BYTES).await;
        load.confirmed_more(100).await;
        disk.nodes[0].kill();
        assert!(fs::metadata(store.join("manifest")).is_err(), "the mount keeps nothing: that shows nothing");
        disk.nodes[1].start();
        let events = load.finish().await;
        assert_eq!(check(&events, &GROUPS), [], "{mode}");
    }
}

/// Up to 100 bytes of a file that is opened anew, without a question for its length.
fn plain_read(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 100];
    let read = File::open(path).unwrap().read_at(&mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

/// What a mount keeps hides from a plain read, and not from a fresh one.
#[test]
fn fresh_reads_see_what_was_written_through_the_other_mount() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there] = mounts(dir.path(), [DEFAULT, FORGETFUL]);
    for (way, writer, reader) in [("there", &here.path, &there.path), ("here", &there.path, &here.path)] {
        fs::create_dir(writer.join(way)).unwrap();
        let (writer, reader) = (writer.join(way), reader.join(way));
        let name = |name: &str| reader.join(name);
        let write = |name: &str, bytes: &[u8]| fs::write(writer.join(name), bytes).unwrap();

        write("grown", b"one");
        assert_eq!(plain_read(&name("grown")), b"one");
        write("grown", b"one and two");
        assert_eq!(plain_read(&name("grown")), b"one", "the mount keeps nothing: that shows nothing");
        assert_eq!(disk::length_at(&name("grown")).unwrap(), 11);
        write("grown", b"one and two and three");
        assert_eq!(disk::read(&name("grown")).unwrap(), b"one and two and three");
        write("grown", b"one and two and three and four");
        let copy = dir.path().join("copy");
        assert_eq!(disk::Copying::begin(&name("grown"), &copy).unwrap().step(100).unwrap(), 30);
        assert_eq!(fs::read(&copy).unwrap(), b"one and two and three and four");

        assert!(fs::metadata(name("new")).is_err());
        write("new", b"bytes");
        assert_eq!(disk::read(&name("new")).unwrap(), b"bytes");

        assert!(fs::metadata(name("folder")).is_err());
        fs::create_dir(writer.join("folder")).unwrap();
        write("folder/in", b"");
        assert_eq!(disk::names(&name("folder")).unwrap(), ["in"]);
        write("folder/second", b"");
        assert_eq!(disk::names(&name("folder")).unwrap().len(), 2);

        write("replaced", b"old");
        assert_eq!(plain_read(&name("replaced")), b"old");
        fs::remove_file(writer.join("replaced")).unwrap();
        write("replaced", b"the new one");
        assert_eq!(disk::read(&name("replaced")).unwrap(), b"the new one");

        for gone in ["grown", "new", "replaced"] {
            fs::remove_file(writer.join(gone)).unwrap();
            assert_eq!(disk::open(&name(gone)).unwrap_err().kind(), ErrorKind::NotFound);
        }
    }
}
