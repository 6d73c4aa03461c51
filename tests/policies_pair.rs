//! How groups share their messages, end to end: through the client library, on a pair of real processes, with the
//! master killed in the middle.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use batonmq::client::{Activity, Client, ClientError, Consumer, ConsumerOptions, Delivery, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::settings::{GroupSettings, Lifetime, Policy};
use batonmq::protocol::response::Role;
use support::load::options;
use support::pair::{Node, PATIENCE};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const KEYS: u64 = 7;
/// Messages that are published, half of them before the kill.
const MESSAGES: u64 = 600;

/// What consumers have been handed, in the order of time: topic, number of the message, and who got it.
type Seen = Arc<Mutex<Vec<(Arc<str>, u64, u32)>>>;

struct Scene {
    nodes: [Node; 2],
    servers: String,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn start(mode: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let node = |name| Node::new(name, &store, mode, dir.path());
        let mut nodes = [node("a"), node("b")];
        nodes[0].start();
        nodes[0].wait_for(Role::Master).await;
        nodes[1].start();
        nodes[1].wait_for(Role::Standby).await;
        let servers = format!("{},{}", nodes[0].address, nodes[1].address);
        Self { nodes, servers, _dir: dir }
    }

    async fn client(&self) -> Client {
        Client::connect(options(&self.servers)).await.unwrap()
    }

    async fn take_over(&mut self) {
        self.nodes[0].kill();
        self.nodes[1].wait_for(Role::Master).await;
    }
}

fn of(policy: Policy) -> Option<GroupSettings> {
    Some(GroupSettings { policy, max_attempts: 0, ..GroupSettings::default() })
}

fn joining(topic: &str, group: &str, settings: Option<GroupSettings>, prefetch: u32) -> ConsumerOptions {
    ConsumerOptions { settings, prefetch, ..ConsumerOptions::new(topic, group) }
}

fn number(delivery: &Delivery) -> u64 {
    std::str::from_utf8(&delivery.message.body).unwrap().parse().unwrap()
}

/// Writes down and settles what comes, until the consumer is told to end; answers it.
fn consume(
    mut consumer: Consumer,
    name: u32,
    seen: &Seen,
) -> (JoinHandle<Consumer>, Arc<tokio::sync::Notify>) {
    let (seen, end) = (seen.clone(), Arc::new(tokio::sync::Notify::new()));
    let told = end.clone();
    let task = tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = consumer.next() => next,
                () = told.notified() => return consumer,
            };
            let delivery = next.unwrap().unwrap();
            let topic = consumer.topic_of(&delivery);
            seen.lock().unwrap().push((topic, number(&delivery), name));
            consumer.ack(&delivery);
        }
    });
    (task, end)
}

/// Ends a consumer. What it settled on a connection that was lost may have come again.
async fn close(task: JoinHandle<Consumer>) {
    let closed = task.await.unwrap().close().await;
    assert!(matches!(closed, Ok(()) | Err(ClientError::SettlementsLost { .. })), "{closed:?}");
}

/// Publishes numbered messages to a topic, and waits until they are confirmed.
async fn publish(client: &Client, topic: &str, numbers: std::ops::Range<u64>) {
    let topic = client.topic(topic).await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    for number in numbers {
        let key = Some(format!("key-{}", number % KEYS).into());
        producer.publish(&topic, &Message { key, ..Message::new(number.to_string()) }).await.unwrap();
    }
    producer.flush().await.unwrap();
}

/// Waits until something holds of what was seen.
async fn until(seen: &Seen, what: &str, holds: impl Fn(&[(Arc<str>, u64, u32)]) -> bool) {
    let waiting = async {
        while !holds(&seen.lock().unwrap()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = timeout(PATIENCE, waiting).await;
    assert!(
        waited.is_ok(),
        "never {what}: {:?}",
        seen.lock().unwrap().iter().rev().take(5).collect::<Vec<_>>()
    );
}

fn distinct(seen: &[(Arc<str>, u64, u32)]) -> usize {
    seen.iter().map(|(topic, number, _)| (topic, *number)).collect::<std::collections::BTreeSet<_>>().len()
}

/// Whether the numbers come in steps, each the one before again, where a takeover made it come twice, or the next.
fn check_steps(numbers: impl Iterator<Item = u64>, step: u64, again: u64) {
    let mut highest: Option<u64> = None;
    for number in numbers {
        let next = highest.map_or(number, |highest| highest + step);
        assert!(number <= next, "{number} came before {next}");
        assert!(number + again * step >= next, "{number} came again when {next} was next");
        highest = Some(number.max(highest.unwrap_or(0)));
    }
}

async fn exclusive_keeps_order(mode: &'static str) {
    let mut scene = Scene::start(mode).await;
    let (first, second) = (scene.client().await, scene.client().await);
    let seen = Seen::default();
    let active = first.consumer(joining("t", "g", of(Policy::Exclusive), 20)).await.unwrap();
    assert_eq!(active.activity_after(None).await.unwrap(), Some(Activity::Active));
    let waiting = second.consumer(joining("t", "g", None, 20)).await.unwrap();
    assert_eq!(waiting.activity_after(None).await.unwrap(), Some(Activity::Waiting));
    let roles = [active.settler(), waiting.settler()];
    let (one, end_one) = consume(active, 1, &seen);
    let (two, end_two) = consume(waiting, 2, &seen);
    publish(&second, "t", 0..MESSAGES / 2).await;
    until(&seen, "half", |seen| distinct(seen) as u64 >= MESSAGES / 4).await;
    scene.take_over().await;
    publish(&second, "t", MESSAGES / 2..MESSAGES).await;
    until(&seen, "all", |seen| distinct(seen) as u64 == MESSAGES).await;
    // Whoever came back first is active now; when it goes the other one is, at once.
    let activities = || roles.each_ref().map(|role| role.activity());
    let settled = async {
        while !matches!(
            activities(),
            [Some(Activity::Active), Some(Activity::Waiting)]
                | [Some(Activity::Waiting), Some(Activity::Active)]
        ) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, settled).await.unwrap();
    let (going, end, staying, last_end, name) = match activities() {
        [Some(Activity::Active), _] => (one, end_one, two, end_two, 2),
        _ => (two, end_two, one, end_one, 1),
    };
    end.notify_one();
    close(going).await;
    assert_eq!(
        timeout(PATIENCE, roles[name - 1].activity_after(Some(Activity::Waiting))).await.unwrap().unwrap(),
        Some(Activity::Active)
    );
    publish(&second, "t", MESSAGES..MESSAGES + 10).await;
    until(&seen, "the rest", |seen| distinct(seen) as u64 == MESSAGES + 10).await;
    last_end.notify_one();
    close(staying).await;
    let seen = seen.lock().unwrap();
    check_steps(seen.iter().map(|(_, number, _)| *number), 1, 21);
    assert!(seen.iter().rev().take(10).all(|(_, _, who)| *who as usize == name));
}

async fn keys_keep_their_order(mode: &'static str) {
    let mut scene = Scene::start(mode).await;
    let (first, second) = (scene.client().await, scene.client().await);
    let seen = Seen::default();
    let join = |client: &Client| {
        let client = client.clone();
        async move { client.consumer(joining("t", "g", of(Policy::Key), 50)).await.unwrap() }
    };
    let mut tasks = vec![consume(join(&first).await, 1, &seen), consume(join(&second).await, 2, &seen)];
    publish(&second, "t", 0..MESSAGES / 2).await;
    until(&seen, "half", |seen| distinct(seen) as u64 >= MESSAGES / 4).await;
    tasks.push(consume(join(&first).await, 3, &seen));
    scene.take_over().await;
    publish(&second, "t", MESSAGES / 2..MESSAGES).await;
    until(&seen, "all", |seen| distinct(seen) as u64 == MESSAGES).await;
    for (task, end) in tasks {
        end.notify_one();
        close(task).await;
    }
    let mut by_key: BTreeMap<u64, Vec<(u64, u32)>> = BTreeMap::new();
    for (_, number, who) in seen.lock().unwrap().iter() {
        by_key.entry(number % KEYS).or_default().push((*number, *who));
    }
    assert_eq!(by_key.len() as u64, KEYS);
    for of_key in by_key.values() {
        check_steps(of_key.iter().map(|(number, _)| *number), KEYS, 1);
    }
    let consumers: std::collections::BTreeSet<u32> = by_key.values().flatten().map(|(_, who)| *who).collect();
    assert!(consumers.len() > 1, "the keys were shared");
}

async fn a_pattern_goes_on(mode: &'static str) {
    let mut scene = Scene::start(mode).await;
    let client = scene.client().await;
    let seen = Seen::default();
    publish(&client, "orders.eu", 0..50).await;
    let settings = GroupSettings { lifetime: Lifetime::Ephemeral, ..GroupSettings::default() };
    let consumer = client.consumer(joining("orders.*", "g", Some(settings), 50)).await.unwrap();
    let (task, end) = consume(consumer, 1, &seen);
    publish(&client, "orders.us", 0..50).await;
    publish(&client, "other", 0..5).await;
    until(&seen, "those of two topics", |seen| distinct(seen) == 100).await;
    scene.take_over().await;
    for topic in ["orders.eu", "orders.cn"] {
        publish(&client, topic, 50..100).await;
    }
    until(&seen, "those of three topics", |seen| distinct(seen) == 200).await;
    let names: std::collections::BTreeSet<Arc<str>> =
        seen.lock().unwrap().iter().map(|(topic, _, _)| topic.clone()).collect();
    assert_eq!(names.iter().map(|name| &**name).collect::<Vec<_>>(), ["orders.cn", "orders.eu", "orders.us"]);
    assert!(client.topic("orders.*").await.is_err(), "nobody publishes to a pattern");
    end.notify_one();
    close(task).await;
    let topics = client.topics().await.unwrap();
    assert!(topics.iter().all(|topic| topic.name != "orders.*"), "it went with its last consumer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_exclusive_keeps_order() {
    exclusive_keeps_order("file").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_exclusive_keeps_order() {
    exclusive_keeps_order("database").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_keys_keep_their_order() {
    keys_keep_their_order("file").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_keys_keep_their_order() {
    keys_keep_their_order("database").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_a_pattern_goes_on() {
    a_pattern_goes_on("file").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_a_pattern_goes_on() {
    a_pattern_goes_on("database").await;
}
