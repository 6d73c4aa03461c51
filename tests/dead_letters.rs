//! Dead letters are replayed exactly once, for the group in which they died, however often the masters are killed meanwhile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use batonmq::client::{Client, ConsumerOptions, ProducerOptions};
use batonmq::model::id::Offset;
use batonmq::model::limits::LETTERS_MAX;
use batonmq::model::message::Message;
use batonmq::protocol::request::ReplayTo;
use batonmq::protocol::response::{Role, TopicInfo};
use support::load::options;
use support::pair::{PATIENCE, two};

const LETTERS: u64 = 3_000;
/// Masters killed while letters are replayed.
const KILLS: usize = 4;

async fn topic(client: &Client, name: &str) -> TopicInfo {
    client.topics().await.unwrap().into_iter().find(|topic| topic.name == name).unwrap()
}

/// The bodies in a topic and how often each is there.
async fn bodies(client: &Client, name: &str) -> BTreeMap<Vec<u8>, u64> {
    let mut bodies = BTreeMap::new();
    let mut from = Offset(0);
    loop {
        let page = client.browse(name, from, 1_000).await.unwrap();
        let Some(last) = page.last() else { return bodies };
        from = last.offset.next();
        for browsed in page {
            *bodies.entry(browsed.message.body.to_vec()).or_default() += 1;
        }
    }
}

async fn letters_are_replayed_once(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let (mut nodes, servers) = two(mode, dir.path(), |node| node).await;
    let client = Client::connect(options(&servers)).await.unwrap();
    let orders = client.topic("orders").await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let messages: Vec<Message> = (0..LETTERS).map(|number| Message::new(format!("order {number}"))).collect();
    producer.send_batch(&orders, &messages).await.unwrap();
    producer.flush().await.unwrap();
    let mut consumer = client.consumer(ConsumerOptions::new("orders", "billing")).await.unwrap();
    let mut audit = client.consumer(ConsumerOptions::new("orders", "audit")).await.unwrap();
    for _ in 0..LETTERS {
        let delivery = audit.next().await.unwrap().unwrap();
        audit.ack(&delivery);
    }
    audit.flush().await.unwrap();
    for _ in 0..LETTERS {
        let delivery = consumer.next().await.unwrap().unwrap();
        consumer.reject_because(&delivery, "no such customer");
    }
    consumer.flush().await.unwrap();
    let buried = async {
        while client
            .topics()
            .await
            .unwrap()
            .iter()
            .all(|topic| topic.name != "orders.dead-letter" || topic.messages < LETTERS)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, buried).await.expect("everything dies");
    consumer.close().await.unwrap();
    let dead = topic(&client, "orders.dead-letter").await;
    let replaying = {
        let client = client.clone();
        tokio::spawn(async move {
            let offsets: Vec<Offset> = (dead.start.0..dead.end.0).map(Offset).collect();
            for some in offsets.chunks(LETTERS_MAX / 10) {
                let done =
                    client.replay_dead_letters(dead.topic, some.to_vec(), ReplayTo::Group).await.unwrap();
                assert_eq!(done.replayed + done.gone, some.len() as u64, "{done:?}");
            }
        })
    };
    let (mut master, mut kills) = (0, 0);
    while kills < KILLS && !replaying.is_finished() {
        nodes[master].kill();
        nodes[1 - master].wait_for(Role::Master).await;
        nodes[master].start();
        nodes[master].wait_for(Role::Standby).await;
        master = 1 - master;
        kills += 1;
    }
    tokio::time::timeout(PATIENCE, replaying).await.unwrap().unwrap();
    println!("{mode}: {kills} kills while letters were replayed");
    assert!(kills > 0);
    assert_eq!(bodies(&client, "orders.dead-letter").await, BTreeMap::new());
    let expected = messages.iter().map(|message| (message.body.to_vec(), 1));
    assert_eq!(bodies(&client, "orders").await, expected.clone().collect());
    let mut billed = BTreeMap::new();
    let mut consumer = client.consumer(ConsumerOptions::new("orders", "billing")).await.unwrap();
    for _ in 0..LETTERS {
        let delivery = consumer.next().await.unwrap().unwrap();
        *billed.entry(delivery.message.body.to_vec()).or_default() += 1;
        consumer.ack(&delivery);
    }
    consumer.flush().await.unwrap();
    assert_eq!(billed, expected.collect::<BTreeMap<_, u64>>());
    let waiting = client.groups(Some("orders")).await.unwrap().into_iter().map(|group| group.waiting);
    assert_eq!(waiting.collect::<Vec<_>>(), [0, 0]);
    // What comes next to the group that had no part in it is what is published next.
    producer.send(&orders, &Message::new("next")).await.unwrap();
    assert_eq!(audit.next().await.unwrap().unwrap().message.body, "next");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_replayed_once_in_file_mode() {
    letters_are_replayed_once("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_replayed_once_in_database_mode() {
    letters_are_replayed_once("database").await;
}
