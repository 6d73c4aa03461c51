//! Many connections that together want more memory than a node has for them: none is stuck, and whoever wants little is
//! not held up.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::net::Shutdown;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use batonmq::client::{Client, ClientOptions, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::settings::{GroupSettings, Overflow, Start, TopicSettings};
use batonmq::protocol::response::{Response, Role};
use support::pair::{Node, PATIENCE};
use support::raw::{Raw, offsets, subscribe, window};

/// The smallest bound that can be set.
const MEMORY_BYTES: u64 = 16 << 20;
/// Clients that publish messages larger than their share.
const CLIENTS: u64 = 8;
const BODY_BYTES: usize = 5 << 20;
/// Bytes that a message has whose topic does not keep it.
const PASSING_BYTES: usize = 60 << 10;

async fn connect(address: &str) -> Client {
    let servers = vec![address.to_owned()];
    Client::connect(ClientOptions { servers, timeout: PATIENCE, ..ClientOptions::default() }).await.unwrap()
}

/// Bytes of memory that a node has now.
fn resident_bytes(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_frames_of_many_connections_come_through_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new("a", &dir.path().join("store"), "file", dir.path())
        .set("BATON_LIMITS_MEMORY_BYTES_MAX", MEMORY_BYTES);
    node.start();
    node.wait_for(Role::Master).await;
    let address = node.address.clone();
    let large: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let address = address.clone();
            tokio::spawn(async move {
                let client = connect(&address).await;
                let (producer, topic) = (
                    client.producer(ProducerOptions::default()).await.unwrap(),
                    client.topic("large").await.unwrap(),
                );
                let message = Message::new(vec![7; BODY_BYTES]);
                for _ in 0..2 {
                    producer.publish(&topic, &message).await.unwrap();
                }
                producer.flush().await.unwrap();
                client.close().await;
            })
        })
        .collect();
    let client = connect(&address).await;
    let (producer, topic) =
        (client.producer(ProducerOptions::default()).await.unwrap(), client.topic("small").await.unwrap());
    let mut slowest = Duration::ZERO;
    while large.iter().any(|task| !task.is_finished()) {
        let began = Instant::now();
        producer.send(&topic, &Message::new("small")).await.unwrap();
        slowest = slowest.max(began.elapsed());
    }
    for task in large {
        task.await.unwrap();
    }
    println!("the slowest small message took {slowest:?}");
    let topics = client.topics().await.unwrap();
    let messages = topics.iter().find(|topic| topic.name == "large").unwrap().messages;
    assert_eq!(messages, 2 * CLIENTS);
    client.close().await;
}

/// Small messages that nobody had consumed were held for delivery, a few bytes each, and with each of them the whole
/// memory that it had been read into together with large ones, which were long gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_message_does_not_hold_the_memory_of_what_came_with_it() {
    const ROUNDS: u32 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new("a", &dir.path().join("store"), "file", dir.path());
    node.start();
    node.wait_for(Role::Master).await;
    let client = connect(&node.address).await;
    let passing =
        TopicSettings { max_messages: Some(1), overflow: Overflow::DropOldest, ..TopicSettings::default() };
    client.create_topic("passing", passing).await.unwrap();
    // In frames of its own the small message comes by the same buffer, and otherwise in the same frame.
    let mut producers = Vec::new();
    for _ in 0..2 {
        producers.push(client.producer(ProducerOptions::default()).await.unwrap());
    }
    let [passing, kept] = [client.topic("passing").await.unwrap(), client.topic("kept").await.unwrap()];
    let large = Message::new(vec![7; PASSING_BYTES]);
    for round in 0..ROUNDS as usize {
        for _ in 0..3 {
            producers[0].publish(&passing, &large).await.unwrap();
        }
        producers[round % 2].publish(&kept, &Message::new("kept")).await.unwrap();
    }
    for producer in producers {
        producer.flush().await.unwrap();
    }
    let resident = resident_bytes(&node);
    let published = u64::from(ROUNDS) * 3 * PASSING_BYTES as u64;
    assert!(resident < published / 3, "{resident} bytes of memory after {published} that are gone");
    client.close().await;
}

/// Clients that take nothing of what they want hold no more than there is for all, and whoever reads gets everything
/// meanwhile. All that was in memory was handed to each of them before anybody looked at how much that is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_share_what_there_is_and_slow_nobody_down() {
    const SLOW: usize = 12;
    const MESSAGES: usize = 12_000;
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new("a", &dir.path().join("store"), "file", dir.path())
        .set("BATON_LIMITS_MEMORY_BYTES_MAX", MEMORY_BYTES)
        // Who takes nothing for three of them is disconnected.
        .set("BATON_HEARTBEAT", "20s");
    node.start();
    node.wait_for(Role::Master).await;
    let client = connect(&node.address).await;
    let (producer, topic) =
        (client.producer(ProducerOptions::default()).await.unwrap(), client.topic("feed").await.unwrap());
    for group in 0..SLOW {
        let group = format!("slow-{group}");
        client.create_group("feed", &group, GroupSettings::default(), Start::Earliest).await.unwrap();
    }
    let mut fast = client.consumer(ConsumerOptions::new("feed", "fast")).await.unwrap();
    // They fit into the cache, so that nobody has to wait for a read.
    let messages: Vec<Message> =
        (0..MESSAGES).map(|number| Message::new(format!("{number:01000}"))).collect();
    producer.send_batch(&topic, &messages).await.unwrap();
    let before = resident_bytes(&node);
    // Two of a group take turns, so that what each of them holds is in memory of its own.
    let mut slow: Vec<Raw> = (0..2 * SLOW).map(|_| Raw::client(&node.address)).collect();
    for (number, raw) in slow.iter_mut().enumerate() {
        raw.send(&subscribe(1, "feed", &format!("slow-{}", number % SLOW), window(u32::MAX)));
    }
    for message in &messages {
        let delivery =
            tokio::time::timeout(PATIENCE, fast.next()).await.expect("a message").unwrap().unwrap();
        assert_eq!(delivery.message.body, message.body);
        fast.ack(&delivery);
    }
    producer.send(&topic, &Message::new("last")).await.unwrap();
    let grown = resident_bytes(&node).saturating_sub(before);
    assert!(grown < 4 * MEMORY_BYTES, "{grown} bytes more for {} clients that do not read", 2 * SLOW);
    // Those of one group read on, and get everything between them.
    let (sender, arrived) = channel();
    let readers: Vec<_> = slow.iter().step_by(SLOW).map(|raw| raw.socket.try_clone().unwrap()).collect();
    for mut raw in slow.into_iter().step_by(SLOW) {
        let sender = sender.clone();
        std::thread::spawn(move || {
            while let Some(response) = raw.next() {
                if let Response::Deliver(deliver, _) = response {
                    let _ = sender.send(offsets(&deliver));
                }
            }
        });
    }
    let mut got = BTreeSet::new();
    while got.len() <= MESSAGES {
        for offset in arrived.recv_timeout(PATIENCE).expect("the rest") {
            assert!(got.insert(offset), "{offset} came twice");
        }
    }
    readers.iter().for_each(|socket| socket.shutdown(Shutdown::Both).unwrap());
    client.close().await;
}
