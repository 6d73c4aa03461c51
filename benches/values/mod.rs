//! A topic whose keys are updated at random, with and without keeping the newest of each only.

use std::path::Path;
use std::time::{Duration, Instant};

use batonmq::client::{Client, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::settings::{Retention, TopicSettings};

use super::broker::{Broker, Failure};

/// How often each key is updated, on average.
const UPDATES: u64 = 3;
/// Messages that are sent together.
const BATCH: u64 = 500;
/// How long it is waited for the last superseded message to go.
const CLEANED_WITHIN: Duration = Duration::from_secs(400);

/// What it cost.
pub struct Cost {
    pub published_per_second: f64,
    pub memory_mib: f64,
    pub left: u64,
    pub cleaned_seconds: f64,
    pub disk_bytes: u64,
}

/// Publishes to `keys` keys of a new topic and waits until it is clean, if it keeps last values.
pub async fn update(
    dir: &Path,
    mode: &'static str,
    keys: u64,
    last_value: bool,
    connect: impl AsyncFnOnce(&Broker) -> Result<Client, Failure>,
) -> Result<Cost, Failure> {
    let broker = Broker::start(dir, mode)?;
    let client = connect(&broker).await?;
    let retention = Retention { acked: false, ..Retention::default() };
    client.create_topic("t", TopicSettings { retention, last_value, ..TopicSettings::default() }).await?;
    let topic = client.topic("t").await?;
    let producer = client.producer(ProducerOptions::default()).await?;
    let (started, mut seed) = (Instant::now(), 1);
    for _ in 0..keys * UPDATES / BATCH {
        let batch: Vec<Message> = (0..BATCH).map(|_| value(&mut seed, keys)).collect();
        producer.send_batch(&topic, &batch).await?;
    }
    producer.flush().await?;
    let published_per_second = (keys * UPDATES) as f64 / started.elapsed().as_secs_f64();
    let published = Instant::now();
    let left = loop {
        let left = client.topics().await?.first().map_or(0, |topic| topic.messages);
        if !last_value || left <= keys || published.elapsed() > CLEANED_WITHIN {
            break left;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let cleaned_seconds = published.elapsed().as_secs_f64();
    // What is not needed any more is given back by and by.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (memory_mib, disk_bytes) = (broker.memory("VmHWM")?, broker.disk_bytes()?);
    Ok(Cost { published_per_second, memory_mib, left, cleaned_seconds, disk_bytes })
}

/// The next value of some key: 128 bytes.
fn value(seed: &mut u64, keys: u64) -> Message {
    // The steps of splitmix64.
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let key = format!("key-{}", (x ^ (x >> 31)) % keys);
    Message { key: Some(key.into()), ..Message::new(vec![7; 128]) }
}
