//! A consumer that takes a backlog and settles it in one way or another.

use std::collections::VecDeque;

use batonmq::client::{Client, ClientError, ConsumerOptions, Delivery};

/// Deliveries taken at a time.
const BATCH: usize = 1024;
/// Every so many messages are nacked at their first attempt by an untidy consumer.
const NACKED_ONE_IN: u64 = 100;
/// Every so many messages are acked this many batches late by an untidy consumer.
const LATE_ONE_IN: u64 = 10;
const LATE_BATCHES: usize = 4;

/// How a consumer settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Acks everything as it comes.
    InOrder,
    /// Acks each batch from its end, some messages batches later, and nacks some once.
    Untidy,
    /// Acks everything but the first message of the topic.
    AllButTheFirst,
}

/// Consumes until `messages` of topic `t` were acked, or all but the first.
pub async fn consume(client: &Client, group: &str, messages: u64, habit: Habit) -> Result<(), ClientError> {
    let options =
        ConsumerOptions { prefetch: 20_000, prefetch_bytes: u64::MAX, ..ConsumerOptions::new("t", group) };
    let mut consumer = client.consumer(options).await?;
    let settler = consumer.settler();
    let mut left = if habit == Habit::AllButTheFirst { messages - 1 } else { messages };
    let mut late: VecDeque<Vec<Delivery>> = VecDeque::new();
    while left > 0 {
        let waits_for_late = (late.iter().map(Vec::len).sum::<usize>() as u64) >= left;
        if late.len() > LATE_BATCHES || waits_for_late {
            for delivery in late.pop_front().unwrap_or_default() {
                settler.ack(&delivery);
                left -= 1;
            }
            continue;
        }
        let mut batch = consumer.next_batch(BATCH).await?;
        if habit == Habit::Untidy {
            batch.reverse();
        }
        let mut put_off = Vec::new();
        for delivery in batch {
            let offset = delivery.offset().0;
            match habit {
                Habit::AllButTheFirst if offset == 0 => continue,
                Habit::Untidy if offset % NACKED_ONE_IN == 0 && delivery.attempt == 1 => {
                    settler.nack(&delivery, Some(std::time::Duration::from_millis(200)));
                    continue;
                }
                Habit::Untidy if offset % LATE_ONE_IN == 1 => {
                    put_off.push(delivery);
                    continue;
                }
                _ => {}
            }
            settler.ack(&delivery);
            left -= 1;
        }
        if !put_off.is_empty() {
            late.push_back(put_off);
        }
    }
    settler.flush().await?;
    consumer.close().await
}
