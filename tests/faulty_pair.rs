//! A pair of real processes on a disk with faults, under load: a sync that fails, that waits, and a disk that is full.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use batonmq::node::EXIT_FENCED;
use batonmq::protocol::response::Role;
use fuser::Errno;
use rustix::process::Signal;
use support::faulty::FaultyDisk;
use support::faulty::faults::{Effect, Fault, Lasting, Operation};
use support::history::check;
use support::load::{GROUPS, Load};
use support::pair::Node;

/// Failing syncs, for each mode.
const ROUNDS: u64 = 4;
/// How long a node whose disk has failed may take to end.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How long a fault may take to be met under load.
const FAULT_WAIT: Duration = Duration::from_secs(30);
/// How often both nodes are asked what they are while nothing gets on.
const LOOKS: u32 = 20;

/// What the log says where a commit finds no space.
const NO_SPACE: &str = "no space left on the shared disk";

/// The files into which commits go.
const fn commits_of(mode: &str) -> &'static str {
    match mode.as_bytes() {
        b"file" => ".log",
        _ => ".db-wal",
    }
}

/// Two nodes on one faulty disk, the first of them master, and load.
struct Scene {
    nodes: [Node; 2],
    load: Load,
    mode: &'static str,
    disk: FaultyDisk,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new(mode: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(dir.path());
        let store = disk.path.join("store");
        let node = |name| {
            Node::new(name, &store, mode, dir.path())
                .set("BATON_SEGMENT_BYTES", 1 << 20)
                .set("BATON_DRAIN_TIMEOUT", "1s")
        };
        let mut nodes = [node("a"), node("b")];
        nodes[0].start();
        nodes[0].wait_for(Role::Master).await;
        nodes[1].start();
        nodes[1].wait_for(Role::Standby).await;
        let load = Load::start(&format!("{},{}", nodes[0].address, nodes[1].address), 100).await;
        load.confirmed_more(500).await;
        Self { nodes, load, mode, disk, _dir: dir }
    }

    /// From now on no commit finds space.
    fn fill(&self) {
        let (effect, lasting) = (Effect::Fails(Errno::ENOSPC), Lasting::Always);
        let path = commits_of(self.mode);
        self.disk.faults.plan(Fault { operation: Operation::Write, effect, lasting, path, nth: 1 });
    }

    /// Asks both nodes again and again: the first is master of this epoch, the other one waits, and after a while no
    /// confirm comes that was on its way.
    async fn nothing_gets_on(&mut self, epoch: u64) {
        let mut confirmed = Vec::new();
        for _ in 0..LOOKS {
            let master = self.nodes[0].wait_for(Role::Master).await;
            assert_eq!(master.epoch.0, epoch, "{}", self.nodes[0].log());
            self.nodes[1].wait_for(Role::Standby).await;
            confirmed.push(self.load.confirmed.load(Ordering::Relaxed));
        }
        let (_, late) = confirmed.split_at(confirmed.len() / 2);
        assert!(late.iter().all(|count| *count == late[0]), "{confirmed:?}");
    }

    async fn finish(self) {
        let violations = check(&self.load.finish().await, &GROUPS);
        assert_eq!(violations, []);
    }
}

/// A sync that fails has lost what it was for. A second one would say yes to nothing.
async fn a_failed_sync_makes_the_standby_master(mode: &'static str) {
    let mut scene = Scene::new(mode).await;
    for round in 0..ROUNDS {
        let (effect, lasting) = (Effect::Fails(Errno::EIO), Lasting::Once);
        let path = commits_of(mode);
        let nth = 1 + round * 7;
        scene.disk.faults.plan(Fault { operation: Operation::Sync, effect, lasting, path, nth });
        let master = (round % 2) as usize;
        let begun = std::time::Instant::now();
        while scene.disk.faults.hits().is_empty() {
            assert!(begun.elapsed() < FAULT_WAIT, "nothing is synced");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ended = scene.nodes[master].wait_within(AT_ONCE);
        let ended = ended.unwrap_or_else(|| panic!("it lives on:\n{}", scene.nodes[master].log()));
        assert_eq!(ended.code(), Some(EXIT_FENCED), "{}", scene.nodes[master].log());
        scene.nodes[1 - master].wait_for(Role::Master).await;
        scene.nodes[master].start();
        scene.nodes[master].wait_for(Role::Standby).await;
        scene.load.confirmed_more(300).await;
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_makes_the_standby_master_in_file_mode() {
    a_failed_sync_makes_the_standby_master("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_makes_the_standby_master_in_database_mode() {
    a_failed_sync_makes_the_standby_master("database").await;
}

async fn a_sync_that_waits_changes_no_master(mode: &'static str) {
    let mut scene = Scene::new(mode).await;
    let epoch = scene.nodes[0].wait_for(Role::Master).await.epoch.0;
    let faults = Arc::clone(&scene.disk.faults);
    let stall = faults.stall(Operation::Sync, commits_of(mode));
    while faults.hits().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    scene.nothing_gets_on(epoch).await;
    drop(stall);
    scene.load.confirmed_more(500).await;
    assert_eq!(scene.nodes[0].wait_for(Role::Master).await.epoch.0, epoch);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_waits_changes_no_master_in_file_mode() {
    a_sync_that_waits_changes_no_master("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_waits_changes_no_master_in_database_mode() {
    a_sync_that_waits_changes_no_master("database").await;
}

/// Where another program had taken what was left for settling, the master ended, and after it each next one.
async fn a_full_disk_holds_everything_and_ends_nobody(mode: &'static str) {
    let mut scene = Scene::new(mode).await;
    let epoch = scene.nodes[0].wait_for(Role::Master).await.epoch.0;
    scene.fill();
    scene.nodes[0].wait_for_log(NO_SPACE);
    scene.nothing_gets_on(epoch).await;
    let warnings = scene.nodes[0].recent_log().matches(NO_SPACE).count();
    assert_eq!(warnings, 1, "it is said once and not ten times a second");
    scene.disk.faults.clear();
    scene.load.confirmed_more(500).await;
    assert_eq!(scene.nodes[0].wait_for(Role::Master).await.epoch.0, epoch);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_everything_and_ends_nobody_in_file_mode() {
    a_full_disk_holds_everything_and_ends_nobody("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_everything_and_ends_nobody_in_database_mode() {
    a_full_disk_holds_everything_and_ends_nobody("database").await;
}

/// What is held was told to nobody: a node that is stopped drops it, and hands over what was confirmed.
async fn a_node_is_stopped_on_a_full_disk(mode: &'static str) {
    let mut scene = Scene::new(mode).await;
    scene.nodes[1].signal(Signal::TERM);
    assert!(scene.nodes[1].wait().success());
    scene.fill();
    scene.nodes[0].wait_for_log(NO_SPACE);
    scene.nodes[0].signal(Signal::TERM);
    assert!(scene.nodes[0].wait().success(), "{}", scene.nodes[0].log());
    assert!(scene.nodes[0].log().contains("mastership released"), "{}", scene.nodes[0].log());
    scene.disk.faults.clear();
    scene.nodes[1].start();
    scene.load.confirmed_more(500).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_stopped_on_a_full_disk_in_file_mode() {
    a_node_is_stopped_on_a_full_disk("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_stopped_on_a_full_disk_in_database_mode() {
    a_node_is_stopped_on_a_full_disk("database").await;
}
