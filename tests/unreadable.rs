//! A message is damaged on the disk while the nodes are down: it is held and named, everything else is served, by one
//! master as by the next, until it can be read again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use batonmq::client::{
    BrowseOptions, Client, ClientError, Consumer, ConsumerOptions, ProducerOptions, Topic,
};
use batonmq::model::id::Offset;
use batonmq::model::message::Message;
use batonmq::model::position::Position;
use batonmq::model::settings::{GroupSettings, Policy, Start};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::BrowseFrom;
use batonmq::protocol::response::{MessageState, Role};
use rustix::process::Signal;
use support::load::options;
use support::pair::{Node, PATIENCE, two};

/// So long that a page of a database has few of them: what is written to the page of one would take its damage along.
fn body(number: usize) -> String {
    format!("this is message {number:03} of all{}", "-".repeat(1_500))
}

/// Changes a byte in every place of the store where this message is; changes it back the second time. Answers the files.
fn flip(store: &Path, number: usize) -> Vec<PathBuf> {
    let (body, mut flipped) = (body(number), Vec::new());
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // What is left in the log of a database that was closed is in the database.
            if path.extension().is_some_and(|extension| extension == "db-wal") {
                continue;
            }
            // The node removes files meanwhile.
            let Ok(bytes) = fs::read(&path) else { continue };
            // The first byte of its text is the one that changes.
            let is_there = |text: &[u8]| text[0] & !0x20 == b'T' && text[1..] == body.as_bytes()[1..];
            for at in (0..=bytes.len().saturating_sub(body.len())).filter(|at| bytes.len() >= at + body.len())
            {
                if is_there(&bytes[at..at + body.len()]) {
                    let file = OpenOptions::new().write(true).open(&path).unwrap();
                    file.write_all_at(&[bytes[at] ^ 0x20], at as u64).unwrap();
                    flipped.push(path.clone());
                }
            }
        }
    }
    flipped
}

async fn consumer(client: &Client, group: &str, policy: Policy) -> Consumer {
    let settings = GroupSettings { policy, ..GroupSettings::default() };
    let options = ConsumerOptions { settings: Some(settings), ..ConsumerOptions::new("orders", group) };
    client.consumer(options).await.unwrap()
}

/// The next messages of a consumer, which acks them.
async fn next(consumer: &mut Consumer, count: usize) -> Vec<u64> {
    let mut offsets = Vec::new();
    for _ in 0..count {
        let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await;
        let delivery = delivery.unwrap_or_else(|_| panic!("only {offsets:?} came")).unwrap().unwrap();
        assert_eq!(delivery.message.body, body(delivery.offset().0 as usize));
        offsets.push(delivery.offset().0);
        consumer.ack(&delivery);
    }
    consumer.flush().await.unwrap();
    offsets
}

async fn publish(client: &Client, topic: &Topic, numbers: std::ops::Range<usize>) {
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    for number in numbers {
        producer.send(topic, &Message::new(body(number))).await.unwrap();
        producer.flush().await.unwrap();
    }
}

/// What the master says of message 3 of a group.
async fn check_named(node: &mut Node, client: &Client, file: &Path) {
    let name = file.file_name().unwrap().to_str().unwrap();
    node.wait_for_log("message 3 of topic orders cannot be read, and whoever needs that waits: ");
    let position = Position { priority: 0, offset: Offset(3) };
    let explained = client.explain("orders", position, "ordered").await.unwrap();
    assert_eq!(explained.state, MessageState::Unreadable);
    assert!(explained.text.contains(name) && explained.text.contains("damaged"), "{}", explained.text);
    assert!(explained.text.contains("`baton store verify`"), "{}", explained.text);
    assert_eq!(node.status().await.unwrap().unreadable, 1);
    let mut status = Command::new(env!("CARGO_BIN_EXE_baton"));
    let told = status.args(["status", "--server", &node.address]).output().unwrap().stdout;
    let told = String::from_utf8(told).unwrap();
    let said = format!("{}: 1 message cannot be read; its log names them", node.name);
    assert!(told.contains(&said), "{told}");
    let from = BrowseFrom::Position(position);
    let mut browser = client.browser(BrowseOptions { from, ..BrowseOptions::new("orders") });
    let Err(ClientError::Refused(refusal)) = browser.next_batch(10).await else {
        panic!("it can be browsed")
    };
    assert_eq!(refusal.code, ErrorCode::Unreadable);
}

fn stop(node: &mut Node) {
    node.signal(Signal::TERM);
    assert!(node.wait().success());
}

async fn a_damaged_message_is_held_and_the_rest_is_served(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let (mut nodes, servers) = two(mode, dir.path(), |node| node).await;
    let client = Client::connect(options(&servers)).await.unwrap();
    let orders = client.topic("orders").await.unwrap();
    publish(&client, &orders, 0..8).await;
    // Keeps everything in the topic.
    client.create_group("orders", "nobody", GroupSettings::default(), Start::Earliest).await.unwrap();
    client.close().await;
    for node in nodes.iter_mut().rev() {
        stop(node);
    }
    // The next master begins the log of a database anew: nothing is read from there any more.
    nodes[0].start();
    nodes[0].wait_for(Role::Master).await;
    stop(&mut nodes[0]);
    let store = dir.path().join("store");
    let files = flip(&store, 3);
    assert_eq!(files.len(), 1, "{files:?}");

    nodes[0].start();
    nodes[0].wait_for(Role::Master).await;
    nodes[1].start();
    nodes[1].wait_for(Role::Standby).await;
    let client = Client::connect(options(&servers)).await.unwrap();
    let mut shared = consumer(&client, "shared", Policy::RoundRobin).await;
    let mut ordered = consumer(&client, "ordered", Policy::Exclusive).await;
    assert_eq!(next(&mut shared, 7).await, [0, 1, 2, 4, 5, 6, 7]);
    assert_eq!(next(&mut ordered, 3).await, [0, 1, 2]);
    check_named(&mut nodes[0], &client, &files[0]).await;
    nodes[0].kill();
    nodes[1].wait_for(Role::Master).await;
    publish(&client, &orders, 8..9).await;
    assert_eq!(next(&mut shared, 1).await, [8]);
    check_named(&mut nodes[1], &client, &files[0]).await;

    assert_eq!(flip(&store, 3), files);
    assert_eq!(next(&mut shared, 1).await, [3]);
    assert_eq!(next(&mut ordered, 6).await, [3, 4, 5, 6, 7, 8]);
    assert_eq!(nodes[1].status().await.unwrap().unreadable, 0);
    assert!(nodes[1].runs());
    client.close().await;
}

#[tokio::test]
async fn a_damaged_message_is_held_and_the_rest_is_served_in_file_mode() {
    a_damaged_message_is_held_and_the_rest_is_served("file").await;
}

#[tokio::test]
async fn a_damaged_message_is_held_and_the_rest_is_served_in_database_mode() {
    a_damaged_message_is_held_and_the_rest_is_served("database").await;
}
