//! Messages that wait for a time or behind others: published, and how late they come.

use std::time::Instant;

use batonmq::client::{Client, ClientError, ConsumerOptions, ProducerOptions, now};
use batonmq::model::message::Message;
use batonmq::model::time::Timestamp;
use hdrhistogram::Histogram;

/// Messages handed over or taken at a time.
const BATCH: usize = 1024;
/// Bytes of a body.
const BODY_BYTES: usize = 128;

/// A number that looks random, the same on every run.
pub fn scatter(number: u64) -> u64 {
    let mut hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// A message of 128 bytes.
pub fn message() -> Message {
    Message::new(vec![7; BODY_BYTES])
}

/// Publishes so many messages. Answers how many a second were confirmed.
pub async fn publish(
    client: &Client,
    topic: &str,
    count: u64,
    mut make: impl FnMut(u64) -> Message,
) -> Result<f64, ClientError> {
    let topic = client.topic(topic).await?;
    let producer = client.producer(ProducerOptions::default()).await?;
    let begun = Instant::now();
    let mut batch = Vec::with_capacity(BATCH);
    for number in 0..count {
        batch.push(make(number));
        if batch.len() == BATCH || number + 1 == count {
            producer.send_batch(&topic, &batch).await?;
            batch.clear();
        }
    }
    producer.flush().await?;
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// How messages came to a consumer.
pub struct Arrivals {
    /// Milliseconds from when each was due.
    pub late: Histogram<u64>,
    /// When the last one came.
    pub last: Timestamp,
    /// Messages a second, from the first one on.
    pub per_second: f64,
}

/// Consumes and acks so many messages of group `g`.
pub async fn consume(client: &Client, topic: &str, count: u64) -> Result<Arrivals, ClientError> {
    let options =
        ConsumerOptions { prefetch: 20_000, prefetch_bytes: u64::MAX, ..ConsumerOptions::new(topic, "g") };
    let mut consumer = client.consumer(options).await?;
    let settler = consumer.settler();
    let mut late =
        Histogram::<u64>::new_with_max(3_600_000, 3).unwrap_or_else(|_| unreachable!("fixed bounds"));
    let (mut begun, mut left) = (None, count);
    while left > 0 {
        let batch = consumer.next_batch(BATCH).await?;
        begun.get_or_insert_with(Instant::now);
        let time = now();
        left -= batch.len() as u64;
        for delivery in batch {
            let due = delivery.message.deliver_at.unwrap_or(time);
            late.saturating_record(time.since(due).as_millis() as u64);
            settler.ack(&delivery);
        }
    }
    let took = begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
    let last = now();
    settler.flush().await?;
    consumer.close().await?;
    Ok(Arrivals { late, last, per_second: count as f64 / took })
}

/// Watches how many messages of group `g` are left, whose times are `ends`, until none is. Answers how late they were
/// gone, in milliseconds, and how many a second went.
pub async fn watch_expiry(
    client: &Client,
    topic: &str,
    mut ends: Vec<Timestamp>,
) -> Result<(Histogram<u64>, f64), ClientError> {
    ends.sort_unstable();
    let mut late =
        Histogram::<u64>::new_with_max(3_600_000, 3).unwrap_or_else(|_| unreachable!("fixed bounds"));
    let (mut gone, mut begun) = (0, None);
    while gone < ends.len() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let groups = client.groups(Some(topic)).await?;
        let time = now();
        let waiting = groups.iter().find(|group| group.name == "g").map_or(0, |group| group.waiting);
        let end = ends.len() - waiting as usize;
        if end > gone {
            begun.get_or_insert_with(Instant::now);
        }
        for due in &ends[gone..end.max(gone)] {
            late.saturating_record(time.since(*due).as_millis() as u64);
        }
        gone = gone.max(end);
    }
    let took = begun.map_or(0.0, |begun: Instant| begun.elapsed().as_secs_f64());
    Ok((late, ends.len() as f64 / took))
}
