//! Hosts whose clocks differ, or are set: what is said of times in docs/semantics.md holds all the same.
//!
//! `libfaketime` shifts the clocks; without it these fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use batonmq::client::{Client, Consumer, ConsumerOptions, Delivery, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::time::Timestamp;
use batonmq::protocol::response::Role;
use support::clock::{Clock, installed};
use support::load::options;
use support::pair::{Node, PATIENCE};

const MODES: [&str; 2] = ["file", "database"];
/// By how much clocks are off, in seconds.
const FAR: i64 = 2 * 3600;
/// Before it messages do not expire, and delayed ones do not come: sooner than a clock that is off says.
const HALF_HOUR_MS: u64 = 1_800_000;

/// A node that goes by a clock.
fn node(name: &str, mode: &'static str, dir: &Path, clock: &Clock) -> Node {
    let node = Node::new(name, &dir.join("store"), mode, dir);
    clock.prompt_environment().fold(node, |node, (variable, value)| node.set(variable, value))
}

async fn publish(client: &Client, messages: &[Message]) {
    let topic = client.topic("t").await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    producer.send_batch(&topic, messages).await.unwrap();
    producer.flush().await.unwrap();
}

/// One that expires in half an hour, one that is to come then, and one without a time.
async fn publish_all(client: &Client) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let then = Some(Timestamp(u64::try_from(now).unwrap() + HALF_HOUR_MS));
    let expiring = Message { expires_at: then, ..Message::new("expiring") };
    let delayed = Message { deliver_at: then, ..Message::new("delayed") };
    publish(client, &[expiring, delayed, Message::new("plain")]).await;
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("a message comes in time");
    next.unwrap().expect("the consumer goes on")
}

/// What was [published](publish_all) before is there, and neither too early nor too late; and what is published from now
/// on has a time that is no earlier.
async fn times_hold(client: &Client) {
    let mut consumer = client.consumer(ConsumerOptions::new("t", "g")).await.unwrap();
    let mut published_at = Timestamp(0);
    for body in ["expiring", "plain", "later"] {
        if body == "later" {
            publish(client, &[Message::new(body)]).await;
        }
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.message.body, body);
        assert!(delivery.published_at >= published_at, "{body}: the time of the store went back");
        published_at = delivery.published_at;
        consumer.settler().ack(&delivery);
    }
    let waiting: u64 = client.slots("t").await.unwrap().iter().map(|slot| slot.messages).sum();
    assert_eq!(waiting, 1, "the delayed message is still delayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_expires_nothing_and_turns_no_time_back() {
    for mode in MODES {
        for step in [FAR, -FAR] {
            let dir = tempfile::tempdir().unwrap();
            let clock = Clock::new(&installed(), dir.path(), "a");
            let mut a = node("a", mode, dir.path(), &clock);
            a.start();
            a.wait_for(Role::Master).await;
            let client = Client::connect(options(&a.address)).await.unwrap();
            publish_all(&client).await;
            clock.set(step);
            times_hold(&client).await;
        }
    }
}

/// A successor whose clock was ahead let messages expire that had been confirmed a moment before.
#[tokio::test(flavor = "multi_thread")]
async fn a_successor_goes_on_from_the_time_of_its_master_wherever_its_own_clock_is() {
    for (mode, off) in MODES.into_iter().flat_map(|mode| [(mode, FAR), (mode, -FAR)]) {
        let dir = tempfile::tempdir().unwrap();
        let clocks = ["a", "b"].map(|host| Clock::new(&installed(), dir.path(), host));
        clocks[1].set(off);
        let mut a = node("a", mode, dir.path(), &clocks[0]);
        let mut b = node("b", mode, dir.path(), &clocks[1]);
        a.start();
        a.wait_for(Role::Master).await;
        b.start();
        b.wait_for(Role::Standby).await;
        b.wait_for_log("following the master");
        let client = Client::connect(options(&format!("{},{}", a.address, b.address))).await.unwrap();
        publish_all(&client).await;
        a.kill();
        b.wait_for(Role::Master).await;
        times_hold(&client).await;
        let warned = b.log().contains("ahead of that of the master before; it is believed in 300s");
        assert_eq!(warned, off > 0, "{}", b.log());
    }
}
