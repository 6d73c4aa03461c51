//! Topics with retention and limits on a pair of real processes, through the client library: what is kept, who waits,
//! and where groups go on, with the master killed in the middle.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use batonmq::client::{
    Client, ClientError, ClientOptions, Consumer, ConsumerOptions, Producer, ProducerOptions,
};
use batonmq::model::id::Offset;
use batonmq::model::message::Message;
use batonmq::model::settings::{GroupSettings, Overflow, Retention, Start, TopicSettings};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::response::Role;
use support::pair::{Node, PATIENCE};

const KEEP: Retention = Retention { acked: false, max_age_ms: None, max_bytes: None, max_messages: None };

/// A pair, its first node master.
struct Pair {
    nodes: [Node; 2],
    master: usize,
}

impl Pair {
    async fn start(dir: &Path, mode: &'static str) -> Self {
        let store = dir.join("store");
        let node = |name| Node::new(name, &store, mode, dir).set("BATON_POLL_INTERVAL", "10ms");
        let mut nodes = [node("a"), node("b")];
        nodes[0].start();
        nodes[0].wait_for(Role::Master).await;
        nodes[1].start();
        nodes[1].wait_for(Role::Standby).await;
        Self { nodes, master: 0 }
    }

    async fn client(&self, timeout: Duration) -> Client {
        let servers = self.nodes.iter().map(|node| node.address.clone()).collect();
        Client::connect(ClientOptions { servers, timeout, ..ClientOptions::default() }).await.unwrap()
    }

    /// Kills the master; the other node takes over.
    async fn take_over(&mut self) {
        self.nodes[self.master].kill();
        self.master = 1 - self.master;
        self.nodes[self.master].wait_for(Role::Master).await;
    }
}

async fn producer(client: &Client) -> Producer {
    client.producer(ProducerOptions::default()).await.unwrap()
}

async fn consumer(client: &Client, topic: &str, prefetch: u32) -> Consumer {
    let options = ConsumerOptions { prefetch, ..ConsumerOptions::new(topic, "g") };
    client.consumer(options).await.unwrap()
}

fn body(number: u64) -> Message {
    Message::new(number.to_string())
}

fn number(message: &Message) -> u64 {
    std::str::from_utf8(&message.body).unwrap().parse().unwrap()
}

async fn publish(client: &Client, topic: &str, numbers: std::ops::Range<u64>) {
    let (producer, topic) = (producer(client).await, client.topic(topic).await.unwrap());
    let messages: Vec<Message> = numbers.map(body).collect();
    producer.send_batch(&topic, &messages).await.unwrap();
    producer.flush().await.unwrap();
}

/// The next `count` messages, acked.
async fn consume(consumer: &mut Consumer, count: usize) -> Vec<u64> {
    let mut got = Vec::new();
    while got.len() < count {
        let delivery =
            tokio::time::timeout(PATIENCE, consumer.next()).await.expect("a message").unwrap().unwrap();
        got.push(number(&delivery.message));
        consumer.ack(&delivery);
    }
    consumer.flush().await.unwrap();
    got
}

async fn messages(client: &Client, topic: &str) -> u64 {
    client.topics().await.unwrap().into_iter().find(|info| info.name == topic).unwrap().messages
}

/// Waits until a topic has so many messages.
async fn comes_to(client: &Client, topic: &str, count: u64) {
    let deadline = Instant::now() + PATIENCE;
    while messages(client, topic).await != count {
        assert!(Instant::now() < deadline, "{topic} never has {count} messages");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn topics_keep_what_they_are_to_keep(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(dir.path(), mode).await;
    let client = pair.client(PATIENCE).await;
    let counted = Retention { max_messages: Some(50), ..KEEP };
    let young = Retention { max_age_ms: Some(1_000), ..KEEP };
    for (topic, retention) in [("counted", counted), ("young", young), ("kept", KEEP)] {
        client.create_topic(topic, TopicSettings { retention, ..TopicSettings::default() }).await.unwrap();
        client.create_group(topic, "g", GroupSettings::default(), Start::Earliest).await.unwrap();
        publish(&client, topic, 0..200).await;
    }
    let mut first = consumer(&client, "counted", 10).await;
    assert_eq!(consume(&mut first, 5).await, (150..155).collect::<Vec<_>>());
    let mut all = consumer(&client, "kept", 1_000).await;
    assert_eq!(consume(&mut all, 200).await, (0..200).collect::<Vec<_>>());
    comes_to(&client, "young", 0).await;
    pair.take_over().await;
    publish(&client, "counted", 200..240).await;
    publish(&client, "young", 200..210).await;
    assert_eq!(messages(&client, "counted").await, 50);
    assert_eq!(messages(&client, "kept").await, 200, "settled messages stay");
    // What was in flight at the kill may come once more before it goes, and nothing else of what is gone.
    let mut got = Vec::new();
    while got.last() != Some(&239) {
        got.extend(consume(&mut first, 1).await);
    }
    let kept = got.split_off(got.iter().position(|number| *number >= 190).unwrap());
    assert!(got.iter().all(|number| (155..165).contains(number)), "{got:?}");
    assert_eq!(kept, (190..240).collect::<Vec<_>>());
    comes_to(&client, "young", 0).await;
    client.close().await;
}

async fn a_full_topic_holds_its_producers_up_and_loses_nothing(mode: &'static str) {
    const COUNT: u64 = 60;
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(dir.path(), mode).await;
    let client = pair.client(PATIENCE).await;
    let settings = TopicSettings { max_messages: Some(8), ..TopicSettings::default() };
    client.create_topic("small", settings).await.unwrap();
    client.create_group("small", "g", GroupSettings::default(), Start::Earliest).await.unwrap();
    let senders: Vec<_> = (0..3)
        .map(|sender| {
            let client = client.clone();
            tokio::spawn(async move {
                let (producer, topic) = (producer(&client).await, client.topic("small").await.unwrap());
                for at in 0..COUNT {
                    producer.send(&topic, &body(sender * 1_000 + at)).await.unwrap();
                }
            })
        })
        .collect();
    comes_to(&client, "small", 8).await;
    // Another topic over the same connection goes on.
    publish(&client, "other", 0..100).await;
    let mut consumer = consumer(&client, "small", 4).await;
    let mut got = Vec::new();
    for round in 0..(3 * COUNT / 12) {
        if round == 5 {
            pair.take_over().await;
        }
        assert!(messages(&client, "small").await <= 8, "no more than may be, one message at a time");
        let mut batch = Vec::new();
        while batch.len() < 12 {
            let delivery =
                tokio::time::timeout(PATIENCE, consumer.next()).await.expect("nobody waits for good");
            let delivery = delivery.unwrap().unwrap();
            batch.push(number(&delivery.message));
            consumer.ack(&delivery);
        }
        got.extend(batch);
        // Settlements of a lost connection come again.
        let _ = consumer.flush().await;
    }
    for sender in senders {
        while !sender.is_finished() {
            tokio::select! {
                delivery = consumer.next() => {
                    let delivery = delivery.unwrap().unwrap();
                    got.push(number(&delivery.message));
                    consumer.ack(&delivery);
                }
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
        sender.await.unwrap();
    }
    while let Ok(delivery) = tokio::time::timeout(Duration::from_millis(300), consumer.next()).await {
        got.push(number(&delivery.unwrap().unwrap().message));
    }
    for sender in 0..3 {
        let mut of_sender: Vec<u64> = got.iter().copied().filter(|number| number / 1_000 == sender).collect();
        of_sender.sort_unstable();
        of_sender.dedup();
        assert_eq!(of_sender, (sender * 1_000..sender * 1_000 + COUNT).collect::<Vec<_>>(), "{mode}");
    }
    client.close().await;
}

async fn a_full_topic_refuses_or_drops_as_it_is_told(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::start(dir.path(), mode).await;
    let client = pair.client(Duration::from_millis(500)).await;
    let full = |overflow| TopicSettings { max_messages: Some(5), overflow, ..TopicSettings::default() };
    client.create_topic("t", full(Overflow::Reject)).await.unwrap();
    publish(&client, "t", 0..5).await;
    let (one, topic) = (producer(&client).await, client.topic("t").await.unwrap());
    match one.send(&topic, &body(5)).await {
        Err(ClientError::MessagesRefused(failures)) => {
            assert_eq!(failures[0].refusal.code, ErrorCode::TopicFull);
            assert!(failures[0].refusal.text.contains("max_messages is 5"), "{}", failures[0].refusal.text);
        }
        other => panic!("{other:?}"),
    }
    client.change_topic("t", full(Overflow::DropOldest)).await.unwrap();
    one.send(&topic, &body(6)).await.unwrap();
    assert_eq!(messages(&client, "t").await, 5);
    client.change_topic("t", full(Overflow::Block)).await.unwrap();
    match one.send(&topic, &body(7)).await {
        Err(ClientError::Unconfirmed { refusal: Some(refusal), .. }) => {
            assert_eq!(refusal.code, ErrorCode::TopicBlocked);
        }
        other => panic!("{other:?}"),
    }
    client.change_topic("t", TopicSettings::default()).await.unwrap();
    one.flush().await.unwrap();
    assert_eq!(messages(&client, "t").await, 6, "what waited is published when there is room");
    client.close().await;
}

async fn groups_go_where_they_are_sent(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(dir.path(), mode).await;
    let client = pair.client(PATIENCE).await;
    client.create_topic("log", TopicSettings { retention: KEEP, ..TopicSettings::default() }).await.unwrap();
    publish(&client, "log", 0..10).await;
    // Later than the last of these, and not later than the first of those.
    let published_at = client.browse("log", Offset(9), 1).await.unwrap()[0].published_at;
    tokio::time::sleep(Duration::from_millis(20)).await;
    publish(&client, "log", 10..20).await;
    let mut consumer = consumer(&client, "log", 20).await;
    assert_eq!(consume(&mut consumer, 3).await, [0, 1, 2]);
    // The client holds more, and has taken it over from the reader.
    let stale = consumer.next().await.unwrap().unwrap();
    client.seek("log", "g", Start::Time(published_at.after(Duration::from_millis(1)))).await.unwrap();
    consumer.ack(&stale);
    assert_eq!(consume(&mut consumer, 2).await, [10, 11]);
    client.seek("log", "g", Start::Earliest).await.unwrap();
    assert_eq!(consume(&mut consumer, 5).await, [0, 1, 2, 3, 4], "also what was acked too late");
    pair.take_over().await;
    assert_eq!(consume(&mut consumer, 2).await, [5, 6]);
    client.seek("log", "g", Start::Offset(Offset(18))).await.unwrap();
    assert_eq!(consume(&mut consumer, 2).await, [18, 19]);
    let paused = GroupSettings { paused: true, ..GroupSettings::default() };
    client.change_group("log", "g", paused).await.unwrap();
    client.seek("log", "g", Start::Earliest).await.unwrap();
    pair.nodes[1 - pair.master].start();
    pair.nodes[1 - pair.master].wait_for(Role::Standby).await;
    pair.take_over().await;
    publish(&client, "log", 20..21).await;
    assert!(consumer.try_next().is_none(), "paused over a takeover");
    assert_eq!(client.purge_group("log", "g").await.unwrap(), 21);
    client.change_group("log", "g", GroupSettings::default()).await.unwrap();
    publish(&client, "log", 21..22).await;
    assert_eq!(consume(&mut consumer, 1).await, [21]);
    assert_eq!(client.purge_topic("log").await.unwrap(), 22);
    assert_eq!(messages(&client, "log").await, 0);
    client.close().await;
}

macro_rules! in_both_modes {
    ($($name:ident),*) => {
        mod database {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name("database").await; })*
        }
        mod file {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name("file").await; })*
        }
    };
}

in_both_modes!(
    topics_keep_what_they_are_to_keep,
    a_full_topic_holds_its_producers_up_and_loses_nothing,
    a_full_topic_refuses_or_drops_as_it_is_told,
    groups_go_where_they_are_sent
);
