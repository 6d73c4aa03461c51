//! Topics with retention and limits on a pair of real processes, through the client library: what is kept, who waits,
//! where groups go on and what is paused, with the master killed in the middle.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use batonmq::client::{
    BrowseOptions, Client, ClientError, ClientOptions, Consumer, ConsumerOptions, Producer, ProducerOptions,
};
use batonmq::model::id::Offset;
use batonmq::model::message::Message;
use batonmq::model::settings::{GroupSettings, Overflow, Retention, Start, TopicSettings};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::response::{GroupInfo, Role};
use support::pair::{Node, PATIENCE, two};

const KEEP: Retention = Retention { acked: false, max_age_ms: None, max_bytes: None, max_messages: None };

/// A pair, its first node master.
struct Pair {
    nodes: [Node; 2],
    master: usize,
}

impl Pair {
    async fn start(dir: &Path, mode: &'static str) -> Self {
        let (nodes, _) = two(mode, dir, |node| node.set("BATON_POLL_INTERVAL", "10ms")).await;
        Self { nodes, master: 0 }
    }

    async fn client(&self, timeout: Duration) -> Client {
        let servers = self.nodes.iter().map(|node| node.address.clone()).collect();
        Client::connect(ClientOptions { servers, timeout, ..ClientOptions::default() }).await.unwrap()
    }

    /// Kills the master. The other node takes over, and the killed one follows it.
    async fn take_over(&mut self) {
        let killed = self.master;
        self.nodes[killed].kill();
        self.master = 1 - killed;
        self.nodes[self.master].wait_for(Role::Master).await;
        self.nodes[killed].start();
        self.nodes[killed].wait_for(Role::Standby).await;
    }
}

async fn producer(client: &Client) -> Producer {
    client.producer(ProducerOptions::default()).await.unwrap()
}

async fn consumer(client: &Client, topic: &str, group: &str, prefetch: u32) -> Consumer {
    let options = ConsumerOptions { prefetch, ..ConsumerOptions::new(topic, group) };
    client.consumer(options).await.unwrap()
}

fn body(number: u64) -> Message {
    Message::new(number.to_string())
}

/// One of the size that all of them have.
fn padded_body(number: u64) -> Message {
    Message::new(format!("{number:0100}"))
}

/// One of about 64 KiB.
fn large_body(number: u64) -> Message {
    Message::new(format!("{number:065535}"))
}

fn number(message: &Message) -> u64 {
    std::str::from_utf8(&message.body).unwrap().parse().unwrap()
}

async fn publish(client: &Client, topic: &str, numbers: Range<u64>) {
    publish_all(client, topic, numbers.map(body).collect()).await;
}

async fn publish_all(client: &Client, topic: &str, messages: Vec<Message>) {
    let (producer, topic) = (producer(client).await, client.topic(topic).await.unwrap());
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
    let both = Retention { max_messages: Some(50), ..young };
    for (topic, retention) in [("counted", counted), ("young", young), ("both", both), ("kept", KEEP)] {
        client.create_topic(topic, TopicSettings { retention, ..TopicSettings::default() }).await.unwrap();
        client.create_group(topic, "g", GroupSettings::default(), Start::Earliest).await.unwrap();
        publish(&client, topic, 0..200).await;
    }
    let mut first = consumer(&client, "counted", "g", 10).await;
    assert_eq!(consume(&mut first, 5).await, (150..155).collect::<Vec<_>>());
    let mut all = consumer(&client, "kept", "g", 1_000).await;
    assert_eq!(consume(&mut all, 200).await, (0..200).collect::<Vec<_>>());
    comes_to(&client, "young", 0).await;
    publish(&client, "young", 200..210).await;
    pair.take_over().await;
    comes_to(&client, "young", 0).await;
    publish(&client, "counted", 200..240).await;
    publish(&client, "young", 210..220).await;
    publish(&client, "both", 200..260).await;
    assert!(messages(&client, "both").await <= 50);
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
    comes_to(&client, "both", 0).await;
    client.close().await;
}

async fn a_topic_keeps_about_as_many_bytes_as_it_is_told(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(dir.path(), mode).await;
    let client = pair.client(PATIENCE).await;
    let retention = Retention { max_bytes: Some(1 << 20), ..KEEP };
    client.create_topic("sized", TopicSettings { retention, ..TopicSettings::default() }).await.unwrap();
    client.create_group("sized", "g", GroupSettings::default(), Start::Earliest).await.unwrap();
    // About 16 of 64 KiB each.
    let about = 14..=18;
    publish_all(&client, "sized", (0..40).map(large_body).collect()).await;
    let kept = messages(&client, "sized").await;
    assert!(about.contains(&kept), "{kept}");
    pair.take_over().await;
    assert_eq!(messages(&client, "sized").await, kept);
    publish_all(&client, "sized", (40..50).map(large_body).collect()).await;
    let kept = messages(&client, "sized").await;
    assert!(about.contains(&kept), "{kept}");
    let mut consumer = consumer(&client, "sized", "g", 5).await;
    assert_eq!(consume(&mut consumer, kept as usize).await, (50 - kept..50).collect::<Vec<_>>());
    client.close().await;
}

async fn a_full_topic_holds_its_producers_up_and_loses_nothing(mode: &'static str) {
    let settings = TopicSettings { max_messages: Some(8), ..TopicSettings::default() };
    producers_wait_for_room_for_eight(mode, settings).await;
}

/// All messages are of one size: a limit in bytes is kept exactly then.
async fn a_topic_full_of_bytes_holds_its_producers_up_and_loses_nothing(mode: &'static str) {
    let max_bytes = Some(8 * padded_body(0).encoded_len() as u64);
    producers_wait_for_room_for_eight(mode, TopicSettings { max_bytes, ..TopicSettings::default() }).await;
}

/// Producers publish to a topic that has room for so many of their messages, with a takeover in the middle.
async fn producers_wait_for_room_for_eight(mode: &'static str, settings: TopicSettings) {
    const COUNT: u64 = 60;
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(dir.path(), mode).await;
    let client = pair.client(PATIENCE).await;
    client.create_topic("small", settings).await.unwrap();
    client.create_group("small", "g", GroupSettings::default(), Start::Earliest).await.unwrap();
    let senders: Vec<_> = (0..3)
        .map(|sender| {
            let client = client.clone();
            tokio::spawn(async move {
                let (producer, topic) = (producer(&client).await, client.topic("small").await.unwrap());
                for at in 0..COUNT {
                    producer.send(&topic, &padded_body(sender * 1_000 + at)).await.unwrap();
                }
            })
        })
        .collect();
    comes_to(&client, "small", 8).await;
    // Another topic over the same connection goes on.
    publish(&client, "other", 0..100).await;
    let mut consumer = consumer(&client, "small", "g", 4).await;
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
    let mut pair = Pair::start(dir.path(), mode).await;
    let client = pair.client(PATIENCE).await;
    let full = |overflow| TopicSettings { max_messages: Some(5), overflow, ..TopicSettings::default() };
    client.create_topic("t", full(Overflow::Reject)).await.unwrap();
    publish(&client, "t", 0..5).await;
    let (one, topic) = (producer(&client).await, client.topic("t").await.unwrap());
    for _ in 0..2 {
        match one.send(&topic, &body(5)).await {
            Err(ClientError::MessagesRefused(failures)) => {
                let refusal = &failures[0].refusal;
                assert_eq!(refusal.code, ErrorCode::TopicFull);
                assert!(refusal.text.contains("max_messages is 5"), "{}", refusal.text);
            }
            other => panic!("{other:?}"),
        }
        pair.take_over().await;
    }
    client.change_topic("t", full(Overflow::DropOldest)).await.unwrap();
    one.send(&topic, &body(6)).await.unwrap();
    pair.take_over().await;
    for number in 7..9 {
        one.send(&topic, &body(number)).await.unwrap();
    }
    let (mut browser, mut left) = (client.browser(BrowseOptions::new("t")), Vec::new());
    while left.len() < 5 {
        left.extend(browser.next_batch(100).await.unwrap().iter().map(|browsed| number(&browsed.message)));
    }
    assert_eq!(left, [3, 4, 6, 7, 8]);
    client.change_topic("t", full(Overflow::Block)).await.unwrap();
    let impatient = pair.client(Duration::from_millis(500)).await;
    let one = producer(&impatient).await;
    match one.send(&topic, &body(9)).await {
        Err(ClientError::Unconfirmed { refusal: Some(refusal), .. }) => {
            assert_eq!(refusal.code, ErrorCode::TopicBlocked);
        }
        other => panic!("{other:?}"),
    }
    client.change_topic("t", TopicSettings::default()).await.unwrap();
    one.flush().await.unwrap();
    assert_eq!(messages(&client, "t").await, 6, "what waited is published when there is room");
    impatient.close().await;
    client.close().await;
}

async fn a_topic_full_of_bytes_refuses_or_drops_as_it_is_told(mode: &'static str) {
    // Full with 16 of 64 KiB and a little more each, and one that drops its oldest holds 15 of them.
    const MAX_BYTES: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(dir.path(), mode).await;
    let client = pair.client(PATIENCE).await;
    let full = |overflow| TopicSettings { max_bytes: Some(MAX_BYTES), overflow, ..TopicSettings::default() };
    client.create_topic("t", full(Overflow::Reject)).await.unwrap();
    let (one, topic) = (producer(&client).await, client.topic("t").await.unwrap());
    for number in 0..16 {
        one.send(&topic, &large_body(number)).await.unwrap();
    }
    for _ in 0..2 {
        match one.send(&topic, &body(16)).await {
            Err(ClientError::MessagesRefused(failures)) => {
                let refusal = &failures[0].refusal;
                assert_eq!(refusal.code, ErrorCode::TopicFull);
                assert!(refusal.text.contains("max_bytes is 1048576"), "{}", refusal.text);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(messages(&client, "t").await, 16);
        pair.take_over().await;
    }
    client.change_topic("t", full(Overflow::DropOldest)).await.unwrap();
    one.send(&topic, &large_body(17)).await.unwrap();
    pair.take_over().await;
    for number in 18..20 {
        one.send(&topic, &large_body(number)).await.unwrap();
    }
    let (mut browser, mut left) = (client.browser(BrowseOptions::new("t")), Vec::new());
    while left.len() < 15 {
        left.extend(browser.next_batch(100).await.unwrap().iter().map(|browsed| number(&browsed.message)));
    }
    assert_eq!(left, (4..16).chain(17..20).collect::<Vec<_>>());
    assert_eq!(messages(&client, "t").await, 15);
    client.change_topic("t", full(Overflow::Block)).await.unwrap();
    one.send(&topic, &large_body(20)).await.unwrap();
    let impatient = pair.client(Duration::from_millis(500)).await;
    let waiting = producer(&impatient).await;
    match waiting.send(&topic, &body(21)).await {
        Err(ClientError::Unconfirmed { refusal: Some(refusal), .. }) => {
            assert_eq!(refusal.code, ErrorCode::TopicBlocked);
        }
        other => panic!("{other:?}"),
    }
    pair.take_over().await;
    let mut consumer = consumer(&client, "t", "g", 4).await;
    assert_eq!(consume(&mut consumer, 17).await, (4..16).chain(17..22).collect::<Vec<_>>());
    waiting.flush().await.unwrap();
    impatient.close().await;
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
    let mut consumer = consumer(&client, "log", "g", 20).await;
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

async fn where_a_group_was_sent_it_goes_on_after_a_takeover(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(dir.path(), mode).await;
    let client = pair.client(PATIENCE).await;
    for topic in ["log", "emptied"] {
        let settings = TopicSettings { retention: KEEP, ..TopicSettings::default() };
        client.create_topic(topic, settings).await.unwrap();
    }
    for group in ["offset", "time", "again", "purged"] {
        client.create_group("log", group, GroupSettings::default(), Start::Earliest).await.unwrap();
    }
    publish(&client, "log", 0..10).await;
    let published_at = client.browse("log", Offset(9), 1).await.unwrap()[0].published_at;
    tokio::time::sleep(Duration::from_millis(20)).await;
    publish(&client, "log", 10..20).await;
    publish(&client, "emptied", 0..30).await;
    let mut again = consumer(&client, "log", "again", 20).await;
    consume(&mut again, 20).await;
    again.close().await.unwrap();
    client.seek("log", "again", Start::Earliest).await.unwrap();
    client.seek("log", "offset", Start::Offset(Offset(7))).await.unwrap();
    let time = published_at.after(Duration::from_millis(1));
    client.seek("log", "time", Start::Time(time)).await.unwrap();
    assert_eq!(client.purge_group("log", "purged").await.unwrap(), 20);
    client.create_group("emptied", "g", GroupSettings::default(), Start::Earliest).await.unwrap();
    assert_eq!(client.purge_topic("emptied").await.unwrap(), 30);
    pair.take_over().await;
    publish(&client, "log", 20..21).await;
    publish(&client, "emptied", 30..31).await;
    let places = [
        ("log", "again", 0..21),
        ("log", "offset", 7..21),
        ("log", "time", 10..21),
        ("log", "purged", 20..21),
        ("emptied", "g", 30..31),
    ];
    for (topic, group, expected) in places {
        let mut consumer = consumer(&client, topic, group, 100).await;
        let expected: Vec<u64> = expected.collect();
        assert_eq!(consume(&mut consumer, expected.len()).await, expected, "{group}");
        assert!(consumer.try_next().is_none(), "{group}");
    }
    assert_eq!(messages(&client, "emptied").await, 1);
    client.close().await;
}

async fn what_is_paused_stays_so_and_goes_on_after_takeovers(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(dir.path(), mode).await;
    let client = pair.client(PATIENCE).await;
    let paused_group = GroupSettings { paused: true, ..GroupSettings::default() };
    let paused_topic = TopicSettings { paused: true, ..TopicSettings::default() };
    client.create_topic("paused", paused_topic).await.unwrap();
    client.create_topic("other", TopicSettings::default()).await.unwrap();
    client.create_group("paused", "g", GroupSettings::default(), Start::Earliest).await.unwrap();
    client.create_group("other", "g", paused_group, Start::Earliest).await.unwrap();
    let mut of_paused = consumer(&client, "paused", "g", 100).await;
    let mut paused = consumer(&client, "other", "g", 100).await;
    let mut running = consumer(&client, "other", "h", 100).await;
    for numbers in [0..10, 10..20] {
        publish(&client, "paused", numbers.clone()).await;
        publish(&client, "other", numbers.clone()).await;
        assert_eq!(consume(&mut running, 10).await, numbers.collect::<Vec<_>>());
        pair.take_over().await;
    }
    for topic in ["paused", "other"] {
        let group = group_with_consumer(&client, topic).await;
        assert_eq!((group.waiting, group.in_flight), (20, 0), "{topic}");
    }
    client.change_topic("paused", TopicSettings::default()).await.unwrap();
    client.change_group("other", "g", GroupSettings::default()).await.unwrap();
    pair.take_over().await;
    for consumer in [&mut of_paused, &mut paused] {
        assert_eq!(consume(consumer, 20).await, (0..20).collect::<Vec<_>>());
    }
    client.close().await;
}

/// The group `g` of a topic as soon as its consumer is back.
async fn group_with_consumer(client: &Client, topic: &str) -> GroupInfo {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let groups = client.groups(Some(topic)).await.unwrap();
        let group = groups.into_iter().find(|group| group.name == "g").unwrap();
        if group.consumers == 1 {
            return group;
        }
        assert!(Instant::now() < deadline, "the consumer of {topic} does not come back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
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
    a_topic_full_of_bytes_holds_its_producers_up_and_loses_nothing,
    a_topic_full_of_bytes_refuses_or_drops_as_it_is_told,
    a_topic_keeps_about_as_many_bytes_as_it_is_told,
    groups_go_where_they_are_sent,
    what_is_paused_stays_so_and_goes_on_after_takeovers,
    where_a_group_was_sent_it_goes_on_after_a_takeover
);
