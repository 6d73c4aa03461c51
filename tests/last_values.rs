//! Topics that keep the newest message of each key, through the client library and the command line, with the master
//! killed while they are updated and cleaned.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cli_support;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use batonmq::client::{Client, ClientError, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::settings::{Retention, TopicSettings};
use batonmq::protocol::response::Role;
use bytes::Bytes;
use support::pair::{Node, PATIENCE, two};

/// Keys of the table.
const KEYS: u64 = 100;
/// Messages published together, enough to have the topic cleaned.
const BATCH: u64 = 1_000;

fn settings() -> TopicSettings {
    let retention = Retention { acked: false, ..Retention::default() };
    TopicSettings { retention, last_value: true, ..TopicSettings::default() }
}

fn value(n: u64) -> Message {
    // Scattered over the keys, and now and then one is gone.
    let key = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let body = if n.is_multiple_of(61) { Vec::new() } else { n.to_string().into_bytes() };
    Message { key: Some(format!("key-{}", key % KEYS).into()), ..Message::new(body) }
}

async fn a_table_survives_its_master(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    // Little is known at a time, so that there are many passes, and few gaps are allowed, so that messages are moved.
    let (mut nodes, servers) = two(mode, dir.path(), |node| {
        node.set("BATON_LIMITS_LAST_VALUE_KEYS_MAX", 64).set("BATON_LIMITS_SETTLED_RANGES_MAX", 32)
    })
    .await;
    let client = Client::connect(support::load::options(&servers)).await.unwrap();
    client.create_topic("t", settings()).await.unwrap();
    let topic = client.topic("t").await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let mut consumer = client.consumer(ConsumerOptions::new("t", "g")).await.unwrap();
    let mut newest: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let mut got: BTreeSet<Bytes> = BTreeSet::new();
    let mut next = 1;
    let mut publish = async |kills: Option<&mut Node>| {
        let batch: Vec<Message> = (next..next + BATCH).map(value).collect();
        next += BATCH;
        producer.send_batch(&topic, &batch).await.unwrap();
        kills.into_iter().for_each(Node::kill);
        producer.flush().await.unwrap();
        newest.extend(batch.into_iter().map(|message| (message.key.unwrap(), message.body)));
        next
    };
    for round in 0..8 {
        publish((round == 3).then_some(&mut nodes[0])).await;
        for _ in 0..BATCH / 2 {
            let delivery = match tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap() {
                Err(ClientError::SettlementsLost { .. }) => continue,
                next => next.unwrap().unwrap(),
            };
            consumer.ack(&delivery);
            got.insert(delivery.message.body);
        }
    }
    // What somebody has in flight stays for a while.
    let closed = consumer.close().await;
    assert!(matches!(closed, Ok(()) | Err(ClientError::SettlementsLost { .. })), "{closed:?}");
    let deadline = Instant::now() + PATIENCE;
    let mut published = publish(None).await;
    for asked in 1.. {
        let left = client.topics().await.unwrap()[0].messages;
        if left == KEYS {
            break;
        }
        // What came while the topic was being cleaned may be too little by itself.
        if asked % 500 == 0 {
            published = publish(None).await;
        }
        assert!(Instant::now() < deadline, "{left} are left:\n{}", nodes[1].log());
    }
    let table = client.table("t").await.unwrap();
    let found: BTreeMap<Bytes, Bytes> =
        table.into_iter().map(|(key, browsed)| (key, browsed.message.body)).collect();
    newest.retain(|_, body| !body.is_empty());
    assert_eq!(found, newest);
    let mut consumer = client.consumer(ConsumerOptions::new("t", "g")).await.unwrap();
    let missing = |got: &BTreeSet<Bytes>| newest.values().any(|body| !got.contains(body));
    while missing(&got) {
        let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
        consumer.ack(&delivery);
        got.insert(delivery.message.body);
    }
    let info = &client.topics().await.unwrap()[0];
    assert!(info.end.0 >= published, "none was moved: {published} published, the end is {}", info.end);
    assert_eq!(nodes[1].wait_for(Role::Master).await.epoch.0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_survives_its_master_in_file_mode() {
    a_table_survives_its_master("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_survives_its_master_in_database_mode() {
    a_table_survives_its_master("database").await;
}

#[test]
fn a_topic_is_read_as_a_table() {
    let pair = cli_support::Pair::single();
    let refused = pair.run(&["topic", "create", "t", "--last-value"]).failed(1);
    assert!(refused.contains("retention.acked = false"), "{refused}");
    pair.run(&["topic", "create", "t", "--last-value", "--retention", "keep"]).ok();
    for (key, body) in [("b", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("c", "")] {
        pair.run(&["publish", "t", "--key", key, body]).ok();
    }
    let rows = pair.run(&["topic", "table", "t", "--json"]).json();
    let shown: Vec<_> = rows.iter().map(|row| (row["key"].as_str(), row["body"].as_str())).collect();
    assert_eq!(shown, [(Some("a"), Some("2")), (Some("b"), Some("3"))]);
    assert_eq!(rows[1]["offset"], 2);
    let table = pair.run(&["topic", "table", "t", "--count", "1"]).ok();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("KEY") && lines[1].starts_with('a') && lines.len() == 2, "{table}");
    assert_eq!(pair.run(&["topic", "table", "t", "--key", "b", "--json"]).json()[0]["body"], "3");
    let gone = pair.run(&["topic", "table", "t", "--key", "c"]).failed(1);
    assert_eq!(gone, "baton: topic t has no value of the key \"c\"\n");
    let refused = pair.run(&["publish", "t", "no key"]).failed(1);
    assert!(refused.contains("give it a key"), "{refused}");
    assert!(pair.run(&["topic", "table", "nothing"]).failed(1).contains("there is no topic"));
}
