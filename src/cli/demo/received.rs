//! What came out, held against what went in.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use batonmq::client::{Client, ClientError, ConsumerOptions, Delivery};

use super::input::{Input, Kind};
use super::{GROUP, NUMBER_HEADER, topic_of};

/// Deliveries taken over at a time.
const BATCH_MESSAGES: usize = 512;
/// How long nothing may come before the rest counts as lost.
const PATIENCE: Duration = Duration::from_secs(8);

/// What has come of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// Messages that have come at least once, with the right bytes.
    pub messages: u64,
    /// Deliveries beyond the first of a message.
    pub again: u64,
}

/// Consumes everything of one kind, compares it with the input and acks it.
pub async fn consume(client: Client, input: Arc<Input>, kind: Kind) -> anyhow::Result<Received> {
    let options = ConsumerOptions { prefetch_bytes: 32 << 20, ..ConsumerOptions::new(topic_of(kind), GROUP) };
    let mut consumer = client.consumer(options).await?;
    let expected = input.count(kind);
    let mut seen = vec![false; input.items.len()];
    let mut received = Received::default();
    let mut last = None;
    while received.messages < expected {
        let missing = expected - received.messages;
        let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(BATCH_MESSAGES)).await;
        let batch =
            batch.with_context(|| format!("LOST: {missing} messages of {} never came", topic_of(kind)))??;
        for delivery in &batch {
            let number = check(&input, kind, delivery)?;
            if std::mem::replace(&mut seen[number], true) {
                received.again += 1;
            } else {
                let in_order = last.is_none_or(|last| last < number);
                anyhow::ensure!(in_order, "OUT OF ORDER: message {number} came first after {last:?}");
                last = Some(number);
                received.messages += 1;
            }
            consumer.ack(delivery);
        }
    }
    match consumer.close().await {
        // Acks that went down with the old master: their messages came again, and were acked again.
        Ok(()) | Err(ClientError::SettlementsLost { .. }) => Ok(received),
        Err(error) => Err(error.into()),
    }
}

/// The number of a message, if it is the message of that number.
fn check(input: &Input, kind: Kind, delivery: &Delivery) -> anyhow::Result<usize> {
    let header = delivery.message.header(NUMBER_HEADER).map(|value| String::from_utf8_lossy(value));
    let number = header.and_then(|number| number.parse::<usize>().ok());
    let item = number.and_then(|number| Some((number, input.items.get(number)?)));
    match item {
        Some((number, item)) if item.kind == kind && item.body == delivery.message.body => Ok(number),
        Some((number, _)) => anyhow::bail!("WRONG: message {number} has other bytes than were published"),
        None => anyhow::bail!("WRONG: offset {} was never published", delivery.offset()),
    }
}
