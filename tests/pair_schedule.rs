//! Delayed, expiring and prioritised messages over the client library and real processes: what waits for its time or
//! its turn while the master is killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use batonmq::client::{Browsed, Client, Consumer, ConsumerOptions, Delivery, ProducerOptions, Topic, now};
use batonmq::model::id::{Offset, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::GroupSettings;
use batonmq::model::time::Timestamp;
use batonmq::protocol::response::Role;
use support::load::options;
use support::pair::{Node, PATIENCE, two};

const DELAYED: u64 = 2_000;
/// The first is due so long after it was published; the others follow a millisecond apart.
const FIRST_DUE_MS: u64 = 500;
const CANCELLED: u64 = 50;
const EXPIRING: u64 = 200;
const TTL_MS: u64 = 2_000;
const PRIORITISED: u64 = 300;
/// Of so many messages one is of a lower priority.
const SHARE: u32 = 10;
/// How far the clock of the node may be ahead of that of its host: milliseconds are counted from its start.
const EARLY_MS: u64 = 2;
/// How late a message may be, once there is a master that serves.
const LATE_MS: u64 = 1_000;

fn numbered(number: u64) -> Message {
    Message::new(number.to_string())
}

fn number(message: &Message) -> u64 {
    std::str::from_utf8(&message.body).unwrap().parse().unwrap()
}

fn at(now: Timestamp, ms: u64) -> Option<Timestamp> {
    Some(Timestamp(now.0 + ms))
}

async fn publish(client: &Client, topic: &Topic, messages: &[Message]) {
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    producer.send_batch(topic, messages).await.unwrap();
    producer.flush().await.unwrap();
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("a message comes in time");
    next.unwrap().expect("the consumer goes on")
}

/// What is to be delivered later, with its names.
async fn scheduled(client: &Client, topic: &str) -> Vec<((TopicId, Offset), Message)> {
    let mut found = Vec::new();
    for slot in client.slots(topic).await.unwrap() {
        assert!(slot.messages > 0, "slots are listed while there is something in them");
        let mut from = slot.start;
        loop {
            let read = client.browse_slot(slot.slot, from, 1_000).await.unwrap();
            let Some(last) = read.last() else { break };
            from = last.offset.next();
            let named = |browsed: Browsed| ((slot.slot, browsed.offset), browsed.message);
            found.extend(read.into_iter().map(named));
        }
    }
    found
}

/// Cancels whatever has the key.
async fn cancel(client: &Client, topic: &str, key: &str) -> u64 {
    let of_key = |message: &Message| message.key.as_deref() == Some(key.as_bytes());
    let found = scheduled(client, topic).await.into_iter().filter(|(_, message)| of_key(message));
    client.cancel_delayed(topic, found.map(|(name, _)| name).collect()).await.unwrap()
}

/// A master and a standby.
async fn start(mode: &'static str, dir: &Path, known_max: u64) -> ([Node; 2], Client) {
    let (nodes, servers) = two(mode, dir, |node| {
        node.set("BATON_SEGMENT_BYTES", 1 << 20).set("BATON_LIMITS_SCHEDULED_KNOWN_MAX", known_max)
    })
    .await;
    let client = Client::connect(options(&servers)).await.unwrap();
    (nodes, client)
}

/// Consumes until all that was published has come. Answers when each came first.
async fn consume_delayed(client: Client) -> BTreeMap<u64, (Timestamp, Timestamp)> {
    let mut consumer = client.consumer(ConsumerOptions::new("delayed", "g")).await.unwrap();
    let (mut come, mut places) = (BTreeMap::new(), BTreeSet::new());
    while (come.len() as u64) < DELAYED {
        let delivery = next(&mut consumer).await;
        consumer.settler().ack(&delivery);
        let (message, time) = (&delivery.message, now());
        let due = message.deliver_at.unwrap();
        assert!(message.key.is_none(), "{} was cancelled", number(message));
        assert!(due.0 <= time.0 + EARLY_MS, "{} came {} ms too early", number(message), due.0 - time.0);
        if places.insert((delivery.id.topic(), delivery.offset())) {
            let before = come.insert(number(message), (due, time));
            assert!(before.is_none(), "{} was stored twice", number(message));
        } else {
            assert!(delivery.redelivered || delivery.number > 1, "delivered twice without a word");
        }
    }
    come
}

/// What is left to be handed out of each priority, and when a lower one was last preferred.
#[derive(Default)]
struct Priorities {
    left: BTreeMap<u8, u64>,
    since_lower: u32,
    handed_out: u32,
}

impl Priorities {
    /// One was handed out. `share` is the bound on how long lower ones wait.
    fn hand_out(&mut self, priority: u8, share: u32) {
        let highest = *self.left.last_key_value().unwrap().0;
        let lower_wait = self.left.len() > 1;
        *self.left.get_mut(&priority).unwrap() -= 1;
        self.left.retain(|_, left| *left > 0);
        self.handed_out += 1;
        if priority < highest {
            assert!(self.since_lower + 1 >= SHARE, "{priority} before {highest} out of turn");
            self.since_lower = 0;
        } else if lower_wait {
            self.since_lower += 1;
            assert!(self.since_lower < share, "lower priorities starve");
        }
    }
}

async fn takeover_keeps_times_and_turns(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let (mut nodes, client) = start(mode, dir.path(), Limits::default().scheduled_known_max).await;
    let settings =
        GroupSettings { dead_letter_expired: true, priority_share: SHARE, ..GroupSettings::default() };
    let mut topics = Vec::new();
    for name in ["delayed", "expiring", "prioritised"] {
        topics.push(client.topic(name).await.unwrap());
        client.create_group(name, "g", settings.clone(), Default::default()).await.unwrap();
    }

    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let priority = |number: u64| ((seed + number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as u8 % 10;
    let prioritised: Vec<Message> =
        (0..PRIORITISED).map(|n| Message { priority: priority(n), ..numbered(n) }).collect();
    publish(&client, &topics[2], &prioritised).await;
    let begun = now();
    let expiring = (0..2 * EXPIRING).map(|n| Message {
        expires_at: at(begun, TTL_MS).filter(|_| n % 2 == 0),
        priority: (n % 3) as u8,
        ..numbered(n)
    });
    publish(&client, &topics[1], &expiring.collect::<Vec<_>>()).await;
    let delayed = (0..DELAYED).map(|n| Message {
        deliver_at: at(begun, FIRST_DUE_MS + (n * 7) % DELAYED),
        priority: (n % 2) as u8,
        ..numbered(n)
    });
    // Some will have been due by the end, some never.
    let cancelled = (0..CANCELLED).map(|n| Message {
        key: Some("cancelled".into()),
        deliver_at: at(begun, FIRST_DUE_MS + DELAYED / 2 + n * 10_000),
        ..numbered(DELAYED + n)
    });
    publish(&client, &topics[0], &delayed.chain(cancelled).collect::<Vec<_>>()).await;
    assert_eq!(cancel(&client, "delayed", "cancelled").await, CANCELLED);
    let consuming = tokio::spawn(consume_delayed(client.clone()));

    let mut turns = Priorities::default();
    prioritised.iter().for_each(|message| *turns.left.entry(message.priority).or_default() += 1);
    let one = ConsumerOptions { prefetch: 1, ..ConsumerOptions::new("prioritised", "g") };
    let mut consumer = client.consumer(one).await.unwrap();
    let mut seen = BTreeSet::new();
    // The master is killed in the middle of what is due, and before anything expires.
    while (seen.len() as u64) < PRIORITISED / 3 || now() < at(begun, FIRST_DUE_MS + DELAYED / 4).unwrap() {
        if (seen.len() as u64) < PRIORITISED / 3 {
            let delivery = next(&mut consumer).await;
            turns.hand_out(delivery.message.priority, SHARE);
            assert!(seen.insert(number(&delivery.message)), "once");
            consumer.settler().ack(&delivery);
            consumer.settler().flush().await.unwrap();
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    nodes[0].kill();
    nodes[1].wait_for(Role::Master).await;
    let serving = now();
    nodes[0].start();

    while (seen.len() as u64) < PRIORITISED {
        let delivery = next(&mut consumer).await;
        // What was in flight when the master was killed comes again, and the new one counts anew.
        if seen.insert(number(&delivery.message)) {
            turns.hand_out(delivery.message.priority, 2 * SHARE);
        } else {
            turns.since_lower += 1;
        }
        consumer.settler().ack(&delivery);
    }
    assert!(turns.left.is_empty() && u64::from(turns.handed_out) == PRIORITISED);

    let come = tokio::time::timeout(PATIENCE, consuming).await.expect("all come in time").unwrap();
    let late = come.values().map(|(due, time)| time.since(*due.max(&serving)).as_millis() as u64).max();
    println!("{mode}: {late:?} ms late at most, takeover after {:?}", serving.since(begun));
    assert!(late.is_some_and(|late| late <= LATE_MS), "{late:?} ms late");
    let slots = client.slots("delayed").await.unwrap();
    assert_eq!(slots.iter().map(|slot| slot.messages).sum::<u64>(), 0, "nothing waits any more: {slots:?}");

    let mut dead = client.consumer(ConsumerOptions::new("expiring.dead-letter", "g")).await.unwrap();
    let mut numbers = BTreeSet::new();
    while (numbers.len() as u64) < EXPIRING {
        let delivery = next(&mut dead).await;
        assert_eq!(delivery.message.header("baton.dead.reason").unwrap(), "expired");
        assert!(numbers.insert(number(&delivery.message)) || delivery.redelivered, "dead once");
        dead.settler().ack(&delivery);
    }
    assert!(numbers.iter().all(|number| number % 2 == 0));
    let mut living = client.consumer(ConsumerOptions::new("expiring", "g")).await.unwrap();
    let mut numbers = BTreeSet::new();
    while (numbers.len() as u64) < EXPIRING {
        let delivery = next(&mut living).await;
        assert!(number(&delivery.message) % 2 == 1, "it has expired");
        numbers.insert(number(&delivery.message));
        living.settler().ack(&delivery);
    }
    let topics = client.topics().await.unwrap();
    let letters = topics.iter().find(|topic| topic.name == "expiring.dead-letter").unwrap();
    assert_eq!(letters.end.0, EXPIRING, "each is dead once");
}

/// Few are known one by one: what is due soon goes through many slots, and those that are over are used again.
async fn takeover_keeps_the_schedule_and_drops_what_has_expired(mode: &'static str) {
    const FAR: u64 = 200;
    const SOON: u64 = 400;
    const KNOWN_MAX: u64 = 64;
    let dir = tempfile::tempdir().unwrap();
    let (mut nodes, client) = start(mode, dir.path(), KNOWN_MAX).await;
    let (topic, short) = (client.topic("reminders").await.unwrap(), client.topic("short").await.unwrap());
    for name in ["reminders", "short"] {
        client.create_group(name, "g", GroupSettings::default(), Default::default()).await.unwrap();
    }
    let begun = now();
    let expiring = (0..EXPIRING).map(|n| Message {
        expires_at: at(begun, TTL_MS).filter(|_| n % 2 == 0),
        priority: (n % 3) as u8,
        ..numbered(n)
    });
    publish(&client, &short, &expiring.collect::<Vec<_>>()).await;
    let far: Vec<Message> = (0..FAR)
        .map(|n| Message {
            deliver_at: at(begun, 3_600_000 + n * 100),
            key: Some(format!("key-{}", n % 4).into()),
            priority: (n % 10) as u8,
            ..numbered(n)
        })
        .collect();
    publish(&client, &topic, &far).await;
    let soon = |from: u64| {
        let due = move |n| FIRST_DUE_MS + (n - from) * 10;
        (from..from + SOON)
            .map(|n| Message { deliver_at: at(now(), due(n)), ..numbered(n) })
            .collect::<Vec<Message>>()
    };
    publish(&client, &topic, &soon(FAR)).await;
    assert_eq!(cancel(&client, "reminders", "key-0").await, FAR / 4);

    let mut consumer = client.consumer(ConsumerOptions::new("reminders", "g")).await.unwrap();
    let (mut come, mut places) = (BTreeSet::new(), BTreeSet::new());
    let mut killed = false;
    while (come.len() as u64) < 2 * SOON {
        if !killed && come.len() as u64 == SOON / 4 {
            nodes[0].kill();
            nodes[1].wait_for(Role::Master).await;
            killed = true;
            publish(&client, &topic, &soon(FAR + SOON)).await;
        }
        let delivery = next(&mut consumer).await;
        assert!(delivery.message.deliver_at.unwrap().0 <= now().0 + EARLY_MS, "too early");
        if places.insert((delivery.id.topic(), delivery.offset())) {
            assert!(come.insert(number(&delivery.message)), "stored twice");
        }
        consumer.settler().ack(&delivery);
    }
    assert!(come.into_iter().eq(FAR..FAR + 2 * SOON));

    let listed = scheduled(&client, "reminders").await;
    let by_number: BTreeMap<u64, &Message> =
        listed.iter().map(|(_, message)| (number(message), message)).collect();
    let left: Vec<&Message> = far.iter().filter(|message| !number(message).is_multiple_of(4)).collect();
    assert_eq!((listed.len(), by_number.into_values().collect::<Vec<_>>()), (left.len(), left));
    assert_eq!(cancel(&client, "reminders", "key-0").await, 0, "cancelled for good");
    assert_eq!(cancel(&client, "reminders", "key-1").await, FAR / 4);
    let described = client.describe_topic("reminders").await.unwrap();
    assert_eq!(described.topic.delayed, FAR / 2);

    // Nobody has consumed these: they go by themselves.
    let expired = async {
        while client.groups(Some("short")).await.unwrap()[0].waiting > EXPIRING / 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, expired).await.expect("what has expired goes");
    let mut consumer = client.consumer(ConsumerOptions::new("short", "g")).await.unwrap();
    let mut living = BTreeSet::new();
    while (living.len() as u64) < EXPIRING / 2 {
        let delivery = next(&mut consumer).await;
        living.insert(number(&delivery.message));
        consumer.settler().ack(&delivery);
    }
    assert!(living.into_iter().eq((0..EXPIRING).filter(|n| n % 2 == 1)));
    let topics = client.topics().await.unwrap();
    assert!(topics.iter().all(|topic| topic.name != "short.dead-letter"), "dropped, and not dead-lettered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_keeps_the_schedule_and_drops_what_has_expired_in_file_mode() {
    takeover_keeps_the_schedule_and_drops_what_has_expired("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_keeps_the_schedule_and_drops_what_has_expired_in_database_mode() {
    takeover_keeps_the_schedule_and_drops_what_has_expired("database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_keeps_times_and_turns_in_file_mode() {
    takeover_keeps_times_and_turns("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_keeps_times_and_turns_in_database_mode() {
    takeover_keeps_times_and_turns("database").await;
}
