//! What nodes say of messages, of groups and of who has what, before and after a takeover.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use batonmq::client::{Client, Consumer, ConsumerOptions, ProducerOptions};
use batonmq::model::id::Offset;
use batonmq::model::message::Message;
use batonmq::model::position::Position;
use batonmq::model::settings::{GroupSettings, Policy, Start, TopicSettings};
use batonmq::model::time::Timestamp;
use batonmq::protocol::response::{MessageState, Role};
use support::load::options;
use support::pair::{PATIENCE, two};

/// What becomes of a message whose time is over: every group is done with it, and then it goes.
const OVER: [MessageState; 2] = [MessageState::Settled, MessageState::Gone];
/// An hour: longer than any test.
const LATER: Duration = Duration::from_secs(3_600);

fn of_color(color: &'static str) -> Message {
    Message { headers: vec![("color".to_owned(), color.to_owned().into())], ..Message::new(color) }
}

async fn state(client: &Client, offset: u64, group: &str) -> (MessageState, String) {
    state_in(client, "orders", offset, group).await
}

async fn state_in(client: &Client, topic: &str, offset: u64, group: &str) -> (MessageState, String) {
    let position = Position { priority: 0, offset: Offset(offset) };
    let explanation = client.explain(topic, position, group).await.unwrap();
    (explanation.state, explanation.text)
}

/// Waits until a message has a state, as after a takeover the consumers come one by one. Answers the sentence.
async fn wait_for_state(client: &Client, offset: u64, wanted: MessageState) -> String {
    wait_for_state_in(client, "orders", offset, &[wanted]).await
}

/// Waits until a message has one of these states.
async fn wait_for_state_in(client: &Client, topic: &str, offset: u64, wanted: &[MessageState]) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (state, text) = state_in(client, topic, offset, "billing").await;
        if wanted.contains(&state) {
            return text;
        }
        assert!(Instant::now() < deadline, "{offset} never becomes {wanted:?}, it is {state:?}: {text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What `baton explain` says.
fn explained_by_command(servers: &str, offset: &str) -> String {
    explained_by_command_in(servers, "orders", offset, "billing")
}

fn explained_by_command_in(servers: &str, topic: &str, offset: &str, group: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command.args(["explain", topic, offset, "--group", group, "--server", servers]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What holds whoever is master. Of the messages 0 waits for another attempt, 1 is dead, 2 is settled, 3 is not wanted,
/// 4 is in flight, and 5 waits for credit.
async fn check(client: &Client, servers: &str) {
    let text = wait_for_state(client, 4, MessageState::InFlight).await;
    assert!(text.contains("billing-worker") && text.contains(" has it since "), "{text}");
    let (delayed, text) = state(client, 0, "billing").await;
    assert_eq!(delayed, MessageState::Delayed, "{text}");
    assert!(text.contains("handed out 1 times, failed 1, the last time nacked (no stock) at "), "{text}");
    let text = explained_by_command(servers, "1");
    assert!(text.starts_with("dead: it is dead letter 0 of orders.dead-letter since "), "{text}");
    assert!(text.ends_with(": rejected (no such customer), failed 1 times\n"), "{text}");
    assert_eq!(state(client, 2, "billing").await.0, MessageState::Settled);
    assert!(explained_by_command(servers, "2").starts_with("settled: "));
    let (filtered, text) = state(client, 3, "billing").await;
    assert_eq!((filtered, text.contains("color <> 'blue'")), (MessageState::Filtered, true), "{text}");
    let (starved, text) = state(client, 5, "billing").await;
    assert_eq!((starved, text.contains("none of the 1 consumers")), (MessageState::NoCredit, true), "{text}");
    assert_eq!(state(client, 0, "nobody").await.0, MessageState::NoCredit);
    assert_eq!(state(client, 6, "billing").await.0, MessageState::NotPublished);
    let described = client.describe_topic("orders").await.unwrap();
    let billing = described.groups.iter().find(|group| group.group.name == "billing").unwrap();
    assert_eq!((billing.consumers.len(), billing.consumers[0].in_flight), (1, 1), "{billing:?}");
    assert!(billing.consumers[0].client.contains("billing-worker"), "{billing:?}");
    assert!(billing.lag_ms.is_some() && described.oldest_age_ms.is_some(), "{described:?}");
}

async fn consumer(servers: &str) -> Consumer {
    let mut worker = options(servers);
    worker.name = "billing-worker".into();
    let client = Client::connect(worker).await.unwrap();
    let settings = GroupSettings {
        filter: Some("color <> 'blue'".into()),
        lease_ms: LATER.as_millis() as u64,
        ..GroupSettings::default()
    };
    let options = ConsumerOptions {
        settings: Some(settings),
        prefetch: 1,
        ..ConsumerOptions::new("orders", "billing")
    };
    client.consumer(options).await.unwrap()
}

async fn what_becomes_of_messages_is_explained(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let (mut nodes, servers) = two(mode, dir.path(), |node| node).await;
    let client = Client::connect(options(&servers)).await.unwrap();
    let orders = client.topic("orders").await.unwrap();
    // Keeps everything in the topic.
    client.create_group("orders", "nobody", GroupSettings::default(), Start::Earliest).await.unwrap();
    let mut consumer = consumer(&servers).await;
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let colors = ["red", "red", "red", "blue", "red", "red"];
    producer.send_batch(&orders, &colors.map(of_color)).await.unwrap();
    producer.flush().await.unwrap();
    for offset in [0, 1, 2, 4] {
        let delivery = consumer.next().await.unwrap().unwrap();
        assert_eq!(delivery.offset(), Offset(offset));
        match offset {
            0 => consumer.nack_because(&delivery, Some(LATER), "no stock"),
            1 => consumer.reject_because(&delivery, "no such customer"),
            2 => consumer.ack(&delivery),
            _ => {}
        }
    }
    consumer.flush().await.unwrap();
    check(&client, &servers).await;
    nodes[0].kill();
    nodes[1].wait_for(Role::Master).await;
    check(&client, &servers).await;
    let paused = TopicSettings { paused: true, ..TopicSettings::default() };
    client.change_topic("orders", paused).await.unwrap();
    assert_eq!(state(&client, 5, "billing").await.0, MessageState::Paused);
    nodes[0].start();
    nodes[0].wait_for(Role::Standby).await;
    nodes[1].kill();
    nodes[0].wait_for(Role::Master).await;
    assert_eq!(state(&client, 5, "billing").await.0, MessageState::Paused);
}

fn from_now(time: Duration) -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from((now + time).as_millis()).unwrap())
}

/// Of the messages 0 and 1 with one key the first is in flight. 2 expires at once, and 3 while there is no master.
async fn what_is_behind_a_key_and_what_expired_is_explained(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let (mut nodes, servers) = two(mode, dir.path(), |node| node).await;
    let client = Client::connect(options(&servers)).await.unwrap();
    let topic = client.topic("keyed").await.unwrap();
    let burying = GroupSettings { dead_letter_expired: true, ..GroupSettings::default() };
    client.create_group("keyed", "burying", burying, Start::Earliest).await.unwrap();
    let settings =
        GroupSettings { policy: Policy::Key, lease_ms: LATER.as_millis() as u64, ..GroupSettings::default() };
    let options = ConsumerOptions { settings: Some(settings), ..ConsumerOptions::new("keyed", "billing") };
    let mut consumer = client.consumer(options).await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let keyed = |expires_at| Message { key: Some("k".into()), expires_at, ..Message::new("m") };
    let messages = [
        keyed(None),
        keyed(None),
        keyed(Some(from_now(Duration::from_millis(100)))),
        keyed(Some(from_now(Duration::from_secs(2)))),
    ];
    producer.send_batch(&topic, &messages).await.unwrap();
    producer.flush().await.unwrap();
    assert_eq!(consumer.next().await.unwrap().unwrap().offset(), Offset(0));
    let behind = "message 0 with the same key comes first, and is not settled";
    let (later, text) = state_in(&client, "keyed", 3, "billing").await;
    assert!(later == MessageState::BehindKey || OVER.contains(&later), "{text}");
    for master in 0..2 {
        let text = wait_for_state_in(&client, "keyed", 0, &[MessageState::InFlight]).await;
        assert!(text.contains(" has it since "), "{text}");
        assert_eq!(wait_for_state_in(&client, "keyed", 1, &[MessageState::BehindKey]).await, behind);
        let said = explained_by_command_in(&servers, "keyed", "1", "billing");
        assert_eq!(said, format!("behind-key: {behind}\n"));
        wait_for_state_in(&client, "keyed", 2, &OVER).await;
        let said = explained_by_command_in(&servers, "keyed", "2", "burying");
        assert!(said.starts_with("dead: it is dead letter 0 of keyed.dead-letter since "), "{said}");
        assert!(said.contains(": expired"), "{said}");
        if master == 0 {
            nodes[0].kill();
            nodes[1].wait_for(Role::Master).await;
        }
    }
    wait_for_state_in(&client, "keyed", 3, &OVER).await;
    let again = consumer.next().await.unwrap().unwrap();
    assert_eq!(again.offset(), Offset(0));
    consumer.ack(&again);
    wait_for_state_in(&client, "keyed", 1, &[MessageState::InFlight]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_messages_is_explained_in_file_mode() {
    what_becomes_of_messages_is_explained("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_messages_is_explained_in_database_mode() {
    what_becomes_of_messages_is_explained("database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_behind_a_key_and_what_expired_is_explained_in_file_mode() {
    what_is_behind_a_key_and_what_expired_is_explained("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_behind_a_key_and_what_expired_is_explained_in_database_mode() {
    what_is_behind_a_key_and_what_expired_is_explained("database").await;
}
