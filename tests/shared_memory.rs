//! Many connections that together want more memory than a node has for them: none is stuck, and whoever wants little is
//! not held up.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use batonmq::client::{Client, ClientOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::protocol::response::Role;
use support::pair::{Node, PATIENCE};

/// The smallest bound that can be set.
const MEMORY_BYTES: u64 = 16 << 20;
/// Clients that publish messages larger than their share.
const CLIENTS: u64 = 8;
const BODY_BYTES: usize = 5 << 20;

async fn connect(address: &str) -> Client {
    let servers = vec![address.to_owned()];
    Client::connect(ClientOptions { servers, timeout: PATIENCE, ..ClientOptions::default() }).await.unwrap()
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
