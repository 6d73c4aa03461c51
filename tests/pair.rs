//! A pair of real processes under load: kills, restarts, hand-overs. The history that the clients saw must be one
//! that may be.

mod support;

use std::time::{Duration, Instant};

use batonmq::protocol::response::Role;
use rustix::process::Signal;
use support::history::check;
use support::load::{GROUPS, Load};
use support::pair::{Node, PATIENCE};

/// Rounds of killing the master, for each mode.
const ROUNDS: u64 = 50;

/// A number that looks random, from a seed; the same on every run.
fn scatter(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

async fn master_of(nodes: &mut [Node; 2]) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "no master:\n{}\n{}", nodes[0].log(), nodes[1].log());
        for (index, node) in nodes.iter().enumerate() {
            if node.status().await.is_some_and(|status| status.role == Role::Master) {
                return index;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn killed_masters_lose_nothing(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    // Small segments, so that rotation, checkpoints and reclaim happen all the time.
    let node = |name| Node::new(name, &store, mode, dir.path()).set("BATON_SEGMENT_BYTES", 1 << 20);
    let mut nodes = [node("a"), node("b")];
    nodes[0].start();
    nodes[0].wait_for(Role::Master).await;
    nodes[1].start();
    nodes[1].wait_for(Role::Standby).await;
    let servers = format!("{},{}", nodes[0].address, nodes[1].address);
    let load = Load::start(&servers, 100).await;
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut kills = 0;
    for round in 0..ROUNDS {
        load.confirmed_more(1 + scatter(seed ^ round) % 2_000).await;
        if load.has_gone_back() {
            break;
        }
        kills += 1;
        let master = master_of(&mut nodes).await;
        nodes[master].kill();
        if round % 2 == 0 {
            nodes[1 - master].wait_for(Role::Master).await;
        }
        // Where it is started at once, it may get the lock itself.
        nodes[master].start();
        let master = master_of(&mut nodes).await;
        nodes[1 - master].wait_for(Role::Standby).await;
    }
    let events = load.finish().await;
    let violations = check(&events, &GROUPS);
    println!("{mode}: {kills} kills, {} events", events.len());
    assert!(
        violations.is_empty(),
        "seed {seed}: {} violations: {:?}",
        violations.len(),
        &violations[..violations.len().min(10)]
    );
    assert_eq!(kills, ROUNDS, "seed {seed}: fewer rounds show less");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_masters_lose_nothing_in_file_mode() {
    killed_masters_lose_nothing("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_masters_lose_nothing_in_database_mode() {
    killed_masters_lose_nothing("database").await;
}

async fn a_stopped_master_hands_over(mode: &'static str, how: &str) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut nodes = ["a", "b"].map(|name| Node::new(name, &store, mode, dir.path()));
    for node in &mut nodes {
        node.start();
    }
    let servers = format!("{},{}", nodes[0].address, nodes[1].address);
    let load = Load::start(&servers, 20).await;
    for _ in 0..5 {
        load.confirmed_more(500).await;
        let master = master_of(&mut nodes).await;
        if how == "signal" {
            nodes[master].signal(Signal::TERM);
        } else {
            let client = batonmq::client::Client::connect(support::load::options(&servers)).await.unwrap();
            client.switchover().await.unwrap();
        }
        assert!(nodes[master].wait().success(), "{}", nodes[master].log());
        nodes[1 - master].wait_for(Role::Master).await;
        nodes[master].start();
        nodes[master].wait_for(Role::Standby).await;
    }
    let events = load.finish().await;
    assert_eq!(check(&events, &GROUPS), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_master_hands_over_in_file_mode() {
    a_stopped_master_hands_over("file", "signal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_master_hands_over_in_database_mode() {
    a_stopped_master_hands_over("database", "signal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_loses_nothing_in_both_modes() {
    a_stopped_master_hands_over("file", "switchover").await;
    a_stopped_master_hands_over("database", "switchover").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_start_at_once_exactly_one_becomes_master() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let store = dir.path().join(format!("store-{round}"));
        let mode = if round % 2 == 0 { "file" } else { "database" };
        let mut nodes = ["a", "b"].map(|name| Node::new(name, &store, mode, dir.path()));
        for node in &mut nodes {
            node.start();
        }
        let master = master_of(&mut nodes).await;
        let status = nodes[master].wait_for(Role::Master).await;
        assert_eq!(status.epoch.0, 1);
        let told = async {
            while nodes[1 - master].wait_for(Role::Standby).await.master.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("the standby learns who is master");
        let other = nodes[1 - master].wait_for(Role::Standby).await;
        assert_eq!(other.master.as_deref(), Some(nodes[master].address.as_str()));
    }
}
