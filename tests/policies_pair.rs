//! How groups share their messages, end to end: through the client library, on a pair of real processes, with the
//! master killed in the middle.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use batonmq::client::{Activity, Client, ClientError, Consumer, ConsumerOptions, Delivery, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::retry::ReturnReason;
use batonmq::model::settings::{GroupSettings, Lifetime, Policy};
use batonmq::protocol::response::Role;
use support::load::options;
use support::pair::{Node, PATIENCE, two};
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
        let (nodes, servers) = two(mode, dir.path(), |node| node).await;
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
async fn publish(client: &Client, topic: &str, numbers: Range<u64>) {
    publish_keyed(client, topic, numbers, KEYS).await;
}

/// Publishes numbered messages with so many keys, in turn.
async fn publish_keyed(client: &Client, topic: &str, numbers: Range<u64>, keys: u64) {
    let topic = client.topic(topic).await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    for number in numbers {
        let key = Some(format!("key-{}", number % keys).into());
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
    seen.iter().map(|(topic, number, _)| (topic, *number)).collect::<BTreeSet<_>>().len()
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
    let consumers: BTreeSet<u32> = by_key.values().flatten().map(|(_, who)| *who).collect();
    assert!(consumers.len() > 1, "the keys were shared");
}

/// The next deliveries to a consumer, in the order in which they come.
async fn take(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = timeout(PATIENCE, consumer.next()).await.expect("something comes");
        taken.push(next.unwrap().unwrap());
    }
    taken
}

fn numbers(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(number).collect()
}

/// Waits until a consumer is the active one.
async fn becomes_active(consumer: &Consumer) {
    let waiting = async {
        let mut known = consumer.activity();
        while known != Some(Activity::Active) {
            known = consumer.activity_after(known).await.unwrap();
        }
    };
    timeout(PATIENCE, waiting).await.expect("it becomes the active one");
}

/// What is given back comes again before anything behind it: to the one who had it, to the next one where the
/// connection of the first is lost, and after a takeover.
async fn exclusive_keeps_order_of_what_failed(mode: &'static str) {
    let mut scene = Scene::start(mode).await;
    // A program of its own: when it ends it says goodbye to nobody.
    let program = tokio::runtime::Runtime::new().unwrap();
    let servers = scene.servers.clone();
    let joined = program.spawn(async move {
        let client = Client::connect(options(&servers)).await.unwrap();
        client.consumer(joining("t", "g", of(Policy::Exclusive), 3)).await.unwrap()
    });
    let mut active = joined.await.unwrap();
    let client = scene.client().await;
    let mut next = client.consumer(joining("t", "g", None, 3)).await.unwrap();
    assert_eq!(next.activity_after(None).await.unwrap(), Some(Activity::Waiting));
    publish(&client, "t", 0..6).await;
    let first = take(&mut active, 3).await;
    assert_eq!(numbers(&first), [0, 1, 2]);
    active.nack_because(&first[0], Some(Duration::from_millis(50)), "one");
    active.flush().await.unwrap();
    active.ack(&first[1]);
    let second = take(&mut active, 2).await;
    assert_eq!(numbers(&second), [0, 3], "nothing new before what was nacked");
    assert_eq!((second[0].attempt, second[0].failure.as_ref().unwrap().text.as_deref()), (2, Some("one")));

    program.shutdown_background();
    becomes_active(&next).await;
    let third = take(&mut next, 3).await;
    assert_eq!(numbers(&third), [0, 2, 3], "what the lost one had, in order");
    assert_eq!(third.iter().map(|delivery| delivery.attempt).collect::<Vec<_>>(), [3, 2, 2]);
    let lost = |delivery: &Delivery| delivery.failure.as_ref().unwrap().reason == ReturnReason::ConsumerLost;
    assert!(third.iter().all(lost), "{third:?}");
    next.nack_because(&third[1], Some(Duration::from_millis(500)), "two");
    next.flush().await.unwrap();
    next.ack(&third[0]);
    next.flush().await.unwrap();

    scene.take_over().await;
    let rest = take(&mut next, 3).await;
    assert_eq!(numbers(&rest), [2, 3, 4], "what was in flight does not overtake what was nacked");
    assert_eq!((rest[0].attempt, rest[0].failure.as_ref().unwrap().text.as_deref()), (3, Some("two")));
    rest.iter().for_each(|delivery| next.ack(delivery));
    assert_eq!(numbers(&take(&mut next, 1).await), [5]);
}

/// A consumer of a higher priority does not take over from the active one, and is the next one.
async fn exclusive_goes_on_by_priority(mode: &'static str) {
    let mut scene = Scene::start(mode).await;
    let client = scene.client().await;
    let mut consumers = Vec::new();
    for priority in [0, 1, 9, 5, 3] {
        let options = ConsumerOptions { priority, ..joining("t", "g", of(Policy::Exclusive), 20) };
        let consumer = client.consumer(options).await.unwrap();
        let told = consumer.activity_after(None).await.unwrap();
        let expected = if priority == 0 { Activity::Active } else { Activity::Waiting };
        assert_eq!(told, Some(expected), "priority {priority}");
        consumers.push((priority, consumer));
    }
    for round in 0..4 {
        if round == 2 {
            let before = Instant::now();
            scene.take_over().await;
            let joined_again = async {
                while consumers.iter().any(|(_, consumer)| {
                    consumer.subscribed_for().is_none_or(|since| since > before.elapsed())
                        || consumer.activity().is_none()
                }) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            timeout(PATIENCE, joined_again).await.expect("all join again");
        }
        let is_active = |consumer: &&(u8, Consumer)| consumer.1.activity() == Some(Activity::Active);
        let active: Vec<u8> = consumers.iter().filter(is_active).map(|(priority, _)| *priority).collect();
        assert_eq!(active.len(), 1, "one is active, round {round}");
        // After a takeover it is who joined first.
        let at = consumers.iter().position(|(priority, _)| *priority == active[0]).unwrap();
        let mut going = consumers.remove(at).1;
        publish(&client, "t", round..round + 1).await;
        let got = take(&mut going, 1).await;
        assert_eq!(numbers(&got), [round]);
        going.ack(&got[0]);
        going.flush().await.unwrap();
        going.close().await.unwrap();
        let next = consumers.iter().max_by_key(|(priority, _)| *priority).unwrap();
        becomes_active(&next.1).await;
    }
}

/// The keys of a consumer that leaves go to the other one, and those of the other stay. What was nacked comes before
/// what is behind it with its key, wherever its key has gone, and after a takeover.
async fn keys_move_and_keep_their_order(mode: &'static str) {
    const KEYS: u64 = 20;
    const PER_KEY: u64 = 4;
    let mut scene = Scene::start(mode).await;
    let client = scene.client().await;
    let join = || client.consumer(joining("t", "g", of(Policy::Key), 100));
    let (mut leaving, mut staying) = (join().await.unwrap(), join().await.unwrap());
    publish_keyed(&client, "t", 0..KEYS * PER_KEY, KEYS).await;
    let (mut left, mut stayed) = (Vec::new(), Vec::new());
    while left.len() + stayed.len() < KEYS as usize {
        let next = tokio::select! {
            next = leaving.next() => (next, &mut left),
            next = staying.next() => (next, &mut stayed),
            () = tokio::time::sleep(PATIENCE) => panic!("one of each key comes"),
        };
        next.1.push(next.0.unwrap().unwrap());
    }
    let heads: BTreeSet<u64> = left.iter().chain(&stayed).map(number).collect();
    assert_eq!(heads, (0..KEYS).collect(), "one of each key");
    assert!(!left.is_empty() && !stayed.is_empty(), "the keys are shared");
    let nacked = number(&left[0]);
    leaving.nack_because(&left[0], Some(Duration::ZERO), "one");
    let again = take(&mut leaving, 1).await;
    assert_eq!((number(&again[0]), again[0].attempt), (nacked, 2), "before the next one of its key");

    leaving.close().await.unwrap();
    let moved = take(&mut staying, left.len()).await;
    let sorted = |deliveries: &[Delivery]| deliveries.iter().map(number).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&moved), sorted(&left), "the messages that the other one had, and no other");
    let of_nacked = moved.iter().find(|delivery| number(delivery) == nacked).unwrap();
    assert_eq!((of_nacked.attempt, of_nacked.number), (2, 3), "it was given back, and that is no failure");
    staying.nack_because(of_nacked, Some(Duration::from_millis(500)), "two");
    staying.flush().await.unwrap();

    scene.take_over().await;
    let mut got = Vec::new();
    while got.len() < (KEYS * PER_KEY) as usize {
        let delivery = take(&mut staying, 1).await.remove(0);
        let of_nacked = number(&delivery) == nacked;
        assert_eq!(delivery.attempt, if of_nacked { 3 } else { 1 }, "{delivery:?}");
        staying.ack(&delivery);
        got.push(number(&delivery));
    }
    staying.flush().await.unwrap();
    for key in 0..KEYS {
        let of_key: Vec<u64> = got.iter().copied().filter(|number| number % KEYS == key).collect();
        assert_eq!(of_key, (0..PER_KEY).map(|at| at * KEYS + key).collect::<Vec<_>>());
    }
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
    let names: BTreeSet<Arc<str>> = seen.lock().unwrap().iter().map(|(topic, _, _)| topic.clone()).collect();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_exclusive_keeps_order_of_what_failed() {
    exclusive_keeps_order_of_what_failed("file").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_exclusive_keeps_order_of_what_failed() {
    exclusive_keeps_order_of_what_failed("database").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_exclusive_goes_on_by_priority() {
    exclusive_goes_on_by_priority("file").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_exclusive_goes_on_by_priority() {
    exclusive_goes_on_by_priority("database").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_keys_move_and_keep_their_order() {
    keys_move_and_keep_their_order("file").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_keys_move_and_keep_their_order() {
    keys_move_and_keep_their_order("database").await;
}
