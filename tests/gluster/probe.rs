//! A client that publishes one message after the other at the floating address, and measures how long it waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use batonmq::client::{Client, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::settings::GroupSettings;
use tokio::task::JoinHandle;

use crate::support::load::options;
use crate::support::pair::PATIENCE;

const TOPIC: &str = "probe";
/// A group that reads nothing, so that there are messages in the store when it is looked through.
const IDLE: &str = "idle";

/// Times between two confirms.
#[derive(Clone, Copy, Debug)]
struct Gaps {
    last: Instant,
    longest: Duration,
}

impl Gaps {
    fn confirmed(&mut self) {
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
    }
}

pub struct Probe {
    gaps: Arc<Mutex<Gaps>>,
    stop: Arc<AtomicBool>,
    publishing: JoinHandle<u64>,
}

impl Probe {
    pub fn start(server: &str) -> Self {
        let gaps = Arc::new(Mutex::new(Gaps { last: Instant::now(), longest: Duration::ZERO }));
        let stop = Arc::new(AtomicBool::new(false));
        let publishing = tokio::spawn(publish(server.to_owned(), gaps.clone(), stop.clone()));
        Self { gaps, stop, publishing }
    }

    /// The longest time between two confirms since this was asked last. Waits for another one.
    pub async fn longest(&self) -> Duration {
        let asked_at = Instant::now();
        let confirmed = async {
            while self.gaps.lock().unwrap().last <= asked_at {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, confirmed).await.is_ok(), "nothing is confirmed any more");
        std::mem::take(&mut self.gaps.lock().unwrap().longest)
    }

    /// Ends it: all of its messages are there once, in order. Answers how many.
    pub async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.publishing.await.unwrap()
    }
}

async fn publish(server: String, gaps: Arc<Mutex<Gaps>>, stop: Arc<AtomicBool>) -> u64 {
    let client = Client::connect(options(&server)).await.unwrap();
    let topic = client.topic(TOPIC).await.unwrap();
    client.create_group(TOPIC, IDLE, GroupSettings::default(), Default::default()).await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let mut sent = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        producer.send(&topic, &Message::new(sent.to_string())).await.unwrap();
        sent += 1;
        gaps.lock().unwrap().confirmed();
    }
    let mut consumer = client.consumer(ConsumerOptions::new(TOPIC, "all")).await.unwrap();
    for expected in 0..sent {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
        let delivery =
            next.unwrap_or_else(|_| panic!("{expected} of {sent} does not come")).unwrap().unwrap();
        assert_eq!(delivery.message.body, expected.to_string().as_bytes());
        consumer.ack(&delivery);
    }
    sent
}
