//! How real nodes gain a mastership and lose it.

mod support;

use std::fs::{self, OpenOptions};
use std::io::{PipeWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use batonmq::client::{Client, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::node::EXIT_FENCED;
use batonmq::protocol::response::Role;
use rustix::process::Signal;
use support::faulty::FaultyDisk;
use support::faulty::faults::Operation;
use support::load::options;
use support::pair::{Node, PATIENCE};

const TOPIC: &str = "t";
/// Longer than what needs no waiting takes on a busy machine, and far below [`RARELY`].
const SOON: Duration = Duration::from_secs(10);
/// A poll interval that no test waits for.
const RARELY: &str = "50s";
/// Bytes of a block of the control file.
const BLOCK_BYTES: u64 = 4096;

fn pair(store: &Path, mode: &'static str, logs: &Path) -> [Node; 2] {
    ["a", "b"].map(|name| Node::new(name, store, mode, logs))
}

async fn publish(address: &str, body: &str) {
    let client = Client::connect(options(address)).await.unwrap();
    let topic = client.topic(TOPIC).await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    producer.send(&topic, &Message::new(body.to_owned())).await.unwrap();
    client.close().await;
}

/// Consumes the messages that there are, which must be these.
async fn consume(address: &str, bodies: &[&str]) {
    let client = Client::connect(options(address)).await.unwrap();
    let mut consumer = client.consumer(ConsumerOptions::new(TOPIC, "g")).await.unwrap();
    for body in bodies {
        let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(delivery.message.body, body.as_bytes());
        consumer.settler().ack(&delivery);
    }
    consumer.close().await.unwrap();
}

/// The power failed while a new master wrote its block. Both nodes then read a damaged control file and ended, at
/// every start, although the claim beside it says whose the block was.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_torn_by_a_power_failure_keeps_nobody_from_taking_over() {
    for mode in ["file", "database"] {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let mut nodes = pair(&store, mode, dir.path());
        nodes[0].start();
        nodes[0].wait_for(Role::Master).await;
        publish(&nodes[0].address, "one").await;
        nodes[0].kill();
        nodes[1].start();
        assert_eq!(nodes[1].wait_for(Role::Master).await.epoch.0, 2);
        publish(&nodes[1].address, "two").await;
        nodes[1].kill();
        let control = OpenOptions::new().write(true).open(store.join("control")).unwrap();
        control.write_all_at(&[0; 2048], BLOCK_BYTES + 2048).unwrap();

        nodes[1].start();
        assert_eq!(nodes[1].wait_for(Role::Master).await.epoch.0, 3);
        nodes[0].start();
        nodes[0].wait_for(Role::Standby).await;
        consume(&nodes[1].address, &["one", "two"]).await;
        assert!(nodes[1].log().contains("the block of an older epoch is torn"), "{}", nodes[1].log());
    }
}

/// A master whose lock file is gone, or is another one, excludes nobody any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_whose_lock_file_is_deleted_or_replaced_ends_and_the_other_one_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let lock = store.join("baton.lock");
    let mut nodes = pair(&store, "file", dir.path());
    nodes[0].start();
    nodes[0].wait_for(Role::Master).await;
    publish(&nodes[0].address, "one").await;
    fs::remove_file(&lock).unwrap();
    assert_eq!(nodes[0].wait().code(), Some(EXIT_FENCED), "{}", nodes[0].log());
    assert!(nodes[0].log().contains("baton.lock was deleted"), "{}", nodes[0].log());

    nodes[1].start();
    nodes[1].wait_for(Role::Master).await;
    nodes[0].start();
    nodes[0].wait_for(Role::Standby).await;
    publish(&nodes[1].address, "two").await;
    let other = dir.path().join("other");
    fs::write(&other, "").unwrap();
    fs::rename(&other, &lock).unwrap();
    assert_eq!(nodes[1].wait().code(), Some(EXIT_FENCED), "{}", nodes[1].log());
    assert!(nodes[1].log().contains("baton.lock was replaced"), "{}", nodes[1].log());
    assert_eq!(nodes[0].wait_for(Role::Master).await.epoch.0, 3);
    consume(&nodes[0].address, &["one", "two"]).await;
}

/// Where locks do not exclude, a node that was overtaken between its claim and its second look ended with 1, as if it
/// could not start.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_overtaken_while_it_claims_ends_as_one_that_has_lost() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(dir.path());
    let mut quick = Node::new("quick", &disk.real.join("store"), "file", dir.path());
    quick.start();
    quick.wait_for(Role::Master).await;
    quick.signal(Signal::TERM);
    assert!(quick.wait().success(), "{}", quick.log());

    let mut slow = Node::new("slow", &disk.path.join("store"), "file", dir.path());
    let stall = disk.faults.stall(Operation::Write, "control");
    slow.start();
    let deadline = Instant::now() + PATIENCE;
    while disk.faults.hits().is_empty() {
        assert!(Instant::now() < deadline, "{}", slow.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    quick.start();
    assert_eq!(quick.wait_for(Role::Master).await.epoch.0, 3);
    drop(stall);
    assert_eq!(slow.wait().code(), Some(EXIT_FENCED), "{}", slow.log());
    assert!(slow.log().contains("epoch 2 is lost: epoch 3 was claimed"), "{}", slow.log());
    publish(&quick.address, "one").await;
}

/// Fills a pipe that nobody reads.
fn fill(pipe: &PipeWriter) {
    let flags = rustix::fs::fcntl_getfl(pipe).unwrap();
    rustix::fs::fcntl_setfl(pipe, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut full = pipe;
    for bytes in [4096, 1] {
        while full.write(&vec![b'x'; bytes]).is_ok() {}
    }
    rustix::fs::fcntl_setfl(pipe, flags).unwrap();
}

/// A master that had lost wanted to say so first, to somebody who read nothing: it stayed alive and kept the lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_has_lost_ends_though_nobody_reads_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut node = Node::new("a", &store, "file", dir.path()).set("BATON_LOG", "error");
    let (_reader, writer) = std::io::pipe().unwrap();
    fill(&writer);
    node.start_with_log(writer);
    node.wait_for(Role::Master).await;
    fs::remove_file(store.join("baton.lock")).unwrap();
    let ended = node.wait_within(SOON).expect("it ends");
    assert_eq!(ended.code(), Some(EXIT_FENCED));
}

/// It asked for signs of life more often than a master sends them, took it for gone, and wrote that into its log three
/// hundred times a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_polls_all_the_time_follows_the_master_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut nodes = pair(&store, "file", dir.path()).map(|node| node.set("BATON_POLL_INTERVAL", "1ms"));
    nodes[0].start();
    nodes[0].wait_for(Role::Master).await;
    nodes[1].start();
    nodes[1].wait_for_log("following the master");
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(300) {
        nodes[1].wait_for(Role::Standby).await;
    }
    // A busy host may make it miss one.
    let followed = nodes[1].log().matches("following the master").count();
    assert!(followed <= 3, "{followed} times:\n{}", nodes[1].log());
}

/// The standby polls the lock at once when the master is gone, however rarely it polls otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_polls_rarely_takes_over_at_once_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut nodes = pair(&store, "file", dir.path()).map(|node| node.set("BATON_POLL_INTERVAL", RARELY));
    nodes[0].start();
    nodes[0].wait_for(Role::Master).await;
    for (round, way) in ["kill", "stop", "switchover"].into_iter().enumerate() {
        let (master, standby) = (round % 2, (round + 1) % 2);
        nodes[standby].start();
        nodes[standby].wait_for(Role::Standby).await;
        nodes[standby].wait_for_log("following the master");
        let started = Instant::now();
        match way {
            "kill" => nodes[master].kill(),
            "stop" => nodes[master].signal(Signal::TERM),
            _ => {
                let client = Client::connect(options(&nodes[master].address)).await.unwrap();
                client.switchover().await.unwrap();
            }
        }
        nodes[standby].wait_for(Role::Master).await;
        assert!(started.elapsed() < SOON, "{way}: {:?}\n{}", started.elapsed(), nodes[standby].log());
        if way != "kill" {
            assert!(nodes[master].wait().success(), "{}", nodes[master].log());
        }
    }
}
