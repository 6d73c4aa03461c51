//! Publishers and consumers that write down what they see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use batonmq::client::{
    Client, ClientError, ClientOptions, Consumer, ConsumerOptions, Delivery, ProducerOptions,
};
use batonmq::model::message::Message;
use batonmq::model::settings::{Backoff, GroupSettings, Policy};
use tokio::task::JoinHandle;

use super::blunt::Blunt;
use super::history::{Event, Groups, History, Token};
use super::pair::PATIENCE;

pub const TOPIC: &str = "load";
/// Read by one consumer.
pub const SOLO: &str = "solo";
/// Shared by three consumers that fail now and then.
pub const SHARED: &str = "shared";
pub const GROUPS: Groups = Groups { ordered: &[SOLO], keyed: &[], alone: &[], shared: &[SHARED] };

/// Longer than storage hangs here. A lease goes on while the storage keeps a delivery from leaving: where it has run out
/// by then, the message comes once more, although the ack of the first delivery is good for it.
const LEASE: Duration = Duration::from_secs(20);
const PUBLISHERS: u32 = 3;
const SHARERS: u32 = 3;
/// Messages between two waits of a publisher for a confirm.
pub const BATCH: u64 = 20;

/// Publishers and consumers at work.
pub struct Load {
    pub history: History,
    servers: String,
    stop: Arc<AtomicBool>,
    /// Messages confirmed so far, over all publishers.
    pub confirmed: Arc<AtomicU64>,
    /// Set where a publisher finds that messages are gone that had been confirmed.
    went_back: Arc<AtomicBool>,
    publishers: Vec<JoinHandle<u64>>,
    consumers: Vec<JoinHandle<()>>,
    /// Tells the consumers to end.
    done: tokio::sync::watch::Sender<bool>,
}

/// How soon clients leave a node that is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    /// All of them as soon as a takeover could be over.
    Quick,
    /// The first publisher and the first sharer stay for seconds: they are still there when a paused master wakes
    /// up, and would take its word for a confirm.
    Mixed,
}

/// Heartbeat of clients that stay with a silent node.
pub const PATIENT_HEARTBEAT: Duration = Duration::from_secs(5);

pub fn options(servers: &str) -> ClientOptions {
    ClientOptions {
        heartbeat: Duration::from_millis(200),
        timeout: PATIENCE,
        ..ClientOptions::servers(servers)
    }
}

impl Load {
    /// Starts the load. `body_bytes` is the size to which bodies are filled up.
    pub async fn start(servers: &str, body_bytes: usize) -> Self {
        Self::start_with(servers, body_bytes, Temper::Quick).await
    }

    /// Starts a load whose clients are of this temper.
    pub async fn start_with(servers: &str, body_bytes: usize, temper: Temper) -> Self {
        let (history, stop) = (History::default(), Arc::new(AtomicBool::new(false)));
        let (confirmed, went_back) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (done, _) = tokio::sync::watch::channel(false);
        let admin = Client::connect(options(servers)).await.unwrap();
        for (group, policy) in [(SOLO, Policy::RoundRobin), (SHARED, Policy::Fair)] {
            let backoff =
                Backoff { initial_ms: 0, multiplier_percent: 100, maximum_ms: 0, jitter_percent: 0 };
            let settings = GroupSettings {
                policy,
                max_attempts: 0,
                lease_ms: LEASE.as_millis() as u64,
                backoff,
                ..GroupSettings::default()
            };
            admin.topic(TOPIC).await.unwrap();
            admin.create_group(TOPIC, group, settings, Default::default()).await.unwrap();
        }
        let mut consumers = vec![spawn_consumer(options(servers), &history, SOLO, 0, &done)];
        let tempered = |number: u32| {
            let options = options(servers);
            if number == 0 && temper == Temper::Mixed {
                ClientOptions { heartbeat: PATIENT_HEARTBEAT, ..options }
            } else {
                options
            }
        };
        let sharers = (0..SHARERS).map(|n| spawn_consumer(tempered(n), &history, SHARED, n, &done));
        consumers.extend(sharers);
        let blunt = Blunt::new(
            PUBLISHERS,
            body_bytes,
            servers,
            history.clone(),
            stop.clone(),
            confirmed.clone(),
            went_back.clone(),
        );
        let publishers = (0..PUBLISHERS)
            .map(|publisher| {
                let load = Publisher {
                    publisher,
                    body_bytes,
                    options: tempered(publisher),
                    history: history.clone(),
                    stop: stop.clone(),
                    confirmed: confirmed.clone(),
                    went_back: went_back.clone(),
                };
                tokio::spawn(load.publish())
            })
            .chain([tokio::spawn(blunt.publish())])
            .collect();
        let servers = servers.to_owned();
        Self { history, servers, stop, confirmed, went_back, publishers, consumers, done }
    }

    /// Whether a publisher has found that messages are gone that had been confirmed. What follows shows nothing more:
    /// the history has it, and the checker says which.
    pub fn has_gone_back(&self) -> bool {
        self.went_back.load(Ordering::Relaxed)
    }

    /// Waits until `count` more messages have been confirmed.
    pub async fn confirmed_more(&self, count: u64) {
        let target = self.confirmed.load(Ordering::Relaxed) + count;
        let waiting = async {
            while self.confirmed.load(Ordering::Relaxed) < target && !self.has_gone_back() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "publishing does not go on");
    }

    /// Ends the publishers, waits until the consumers have everything, and answers the history.
    pub async fn finish(self) -> Vec<Event> {
        self.stop.store(true, Ordering::Relaxed);
        for publisher in self.publishers {
            publisher.await.unwrap();
        }
        let admin = Client::connect(options(&self.servers)).await.unwrap();
        // The node knows when a group is done; what a group never got is found by the checker.
        let done = async {
            while admin.groups(Some(TOPIC)).await.unwrap().iter().any(|group| group.waiting > 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, done).await;
        self.done.send_replace(true);
        for consumer in self.consumers {
            consumer.await.unwrap();
        }
        for group in admin.groups(Some(TOPIC)).await.unwrap() {
            assert_eq!((group.waiting, group.in_flight), (0, 0), "group {} is not done", group.name);
        }
        self.history.events()
    }
}

struct Publisher {
    publisher: u32,
    body_bytes: usize,
    options: ClientOptions,
    history: History,
    stop: Arc<AtomicBool>,
    confirmed: Arc<AtomicU64>,
    went_back: Arc<AtomicBool>,
}

impl Publisher {
    /// Publishes until it is told to stop, and answers how many messages that were.
    async fn publish(self) -> u64 {
        let (publisher, history, went_back) = (self.publisher, self.history.clone(), self.went_back.clone());
        match self.run().await {
            Ok(published) => published,
            Err(ClientError::StoreWentBack { confirmed, .. }) => {
                history.add(Event::Confirmed(Token { publisher, number: confirmed }));
                history.add(Event::WentBack { publisher });
                went_back.store(true, Ordering::Relaxed);
                confirmed
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn run(self) -> Result<u64, ClientError> {
        let client = Client::connect(self.options.clone()).await?;
        let topic = client.topic(TOPIC).await?;
        let producer = client.producer(ProducerOptions::default()).await?;
        let (mut number, mut known) = (0, 0);
        let token = |number| Token { publisher: self.publisher, number };
        while !self.stop.load(Ordering::Relaxed) {
            for _ in 0..BATCH {
                number += 1;
                let body = format!("{:<width$}", token(number).body(), width = self.body_bytes);
                producer.publish(&topic, &Message::new(body)).await?;
            }
            // Keeps a few batches under way, so that a kill finds some at every stage.
            let ticket = producer.last_ticket();
            if number % (BATCH * 4) == 0 {
                producer.confirmed(ticket).await?;
            }
            let confirmed = producer.confirmed_up_to().0;
            if confirmed > known {
                self.history.add(Event::Confirmed(token(confirmed)));
                self.confirmed.fetch_add(confirmed - known, Ordering::Relaxed);
                known = confirmed;
            }
        }
        producer.flush().await?;
        assert!(producer.failures().is_empty());
        self.history.add(Event::Confirmed(token(number)));
        Ok(number)
    }
}

fn spawn_consumer(
    options: ClientOptions,
    history: &History,
    group: &'static str,
    number: u32,
    done: &tokio::sync::watch::Sender<bool>,
) -> JoinHandle<()> {
    let (history, done) = (history.clone(), done.subscribe());
    tokio::spawn(async move {
        let client = Client::connect(options).await.unwrap();
        let settings = ConsumerOptions { prefetch: 200, ..ConsumerOptions::new(TOPIC, group) };
        let mut consumer = client.consumer(settings).await.unwrap();
        consume(&mut consumer, &history, group, number, done).await.unwrap();
        match consumer.close().await {
            // Some connection was lost in the course of the load; its messages came again.
            Ok(()) | Err(ClientError::SettlementsLost { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    })
}

/// Consumes until it is told to end and nothing more comes.
async fn consume(
    consumer: &mut Consumer,
    history: &History,
    group: &'static str,
    number: u32,
    done: tokio::sync::watch::Receiver<bool>,
) -> Result<(), ClientError> {
    let mut round = u64::from(number);
    loop {
        let batch = tokio::time::timeout(Duration::from_millis(50), consumer.next_batch(100)).await;
        let batch = match batch {
            Ok(batch) => batch?,
            Err(_) => Vec::new(),
        };
        if batch.is_empty() {
            if *done.borrow() {
                return Ok(());
            }
            continue;
        }
        history.add_all(batch.iter().map(|delivery| delivered(group, delivery)));
        let mut acked = Vec::new();
        for delivery in &batch {
            round += 1;
            match round % 50 {
                7 if group == SHARED => consumer.nack(delivery, Some(Duration::ZERO)),
                23 if group == SHARED => consumer.release(delivery),
                _ => {
                    consumer.ack(delivery);
                    acked.push(delivery.offset());
                }
            }
        }
        if group == SOLO {
            // Only a count that is right says that each of them was still this consumer's.
            if consumer.flush().await.is_ok_and(|count| count == acked.len() as u64) {
                history.add_all(acked.into_iter().map(|offset| Event::Acked { group, offset }));
            }
        }
    }
}

fn delivered(group: &'static str, delivery: &Delivery) -> Event {
    Event::Delivered { group, offset: delivery.offset(), token: Token::parse(&delivery.message.body) }
}
