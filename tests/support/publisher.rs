//! A client on a host of a test's network that publishes one message after the other, and measures how long it waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use batonmq::client::{Client, ClientOptions, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;

use super::load::options;
use super::network::{Network, until};
use super::pair::PATIENCE;

/// A client on a host that publishes one message after the other, each when the last one is confirmed.
pub struct Publisher {
    confirmed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Publisher {
    /// One on `host`, of an address without a port, or several with commas between them.
    pub fn start(network: &Network, host: &str, addresses: &str) -> Self {
        Self::start_with(network, host, addresses, options("").heartbeat)
    }

    /// One that asks for this heartbeat.
    pub fn start_with(network: &Network, host: &str, addresses: &str, heartbeat: Duration) -> Self {
        let with_port = |address: &str| match address.contains(':') {
            true => format!("[{address}]:7470"),
            false => format!("{address}:7470"),
        };
        let server = addresses.split(',').map(with_port).collect::<Vec<_>>().join(",");
        let topic = format!("of-{}", addresses.replace([':', ','], "-"));
        let (confirmed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&confirmed), Arc::clone(&stop));
        let thread = network.run(host, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let options = ClientOptions { heartbeat, ..options(&server) };
            runtime.block_on(publish(options, &topic, &count, &stopped))
        });
        let publisher = Self { confirmed, stop, thread };
        publisher.goes_on();
        publisher
    }

    /// Some more messages are confirmed.
    pub fn goes_on(&self) {
        let before = self.confirmed.load(Ordering::Relaxed);
        until("messages are confirmed", || self.confirmed.load(Ordering::Relaxed) > before + 20);
    }

    /// Ends it: all of its messages are there once, in order. Answers the longest time between two confirms.
    pub fn finish(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }

    /// As [`finish`](Self::finish), where the time does not matter.
    pub fn end(self) {
        self.finish();
    }
}

async fn publish(options: ClientOptions, topic: &str, count: &AtomicU64, stop: &AtomicBool) -> Duration {
    let client = Client::connect(options).await.unwrap();
    let handle = client.topic(topic).await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let (mut sent, mut longest, mut last) = (0_u64, Duration::ZERO, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        producer.send(&handle, &Message::new(sent.to_string())).await.unwrap();
        sent += 1;
        count.store(sent, Ordering::Relaxed);
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    let mut consumer = client.consumer(ConsumerOptions::new(topic, "g")).await.unwrap();
    for expected in 0..sent {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
        let delivery =
            next.unwrap_or_else(|_| panic!("{expected} of {sent} does not come")).unwrap().unwrap();
        assert_eq!(delivery.message.body, expected.to_string().as_bytes(), "{topic}");
        consumer.settler().ack(&delivery);
    }
    longest
}
