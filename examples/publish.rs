//! Publishes the lines of standard input and says how many are durable.
//!
//! ```sh
//! seq 1000000 | cargo run --release --example publish -- 127.0.0.1:7470 numbers
//! ```

use std::io::BufRead;

use batonmq::client::{Client, ClientError, ClientOptions, ProducerOptions};
use batonmq::model::message::Message;

/// Lines that are published together.
const BATCH: usize = 1000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(servers), Some(topic)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: publish HOST:PORT[,HOST:PORT] TOPIC < lines");
    };
    let client = Client::connect(ClientOptions::servers(&servers)).await?;
    let topic = client.topic(&topic).await?;
    let producer = client.producer(ProducerOptions::default()).await?;

    let mut lines = std::io::stdin().lock().lines();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        batch.clear();
        for line in lines.by_ref().take(BATCH) {
            batch.push(Message::new(line?));
        }
        if batch.is_empty() {
            break;
        }
        // Waits only while as many messages are unconfirmed as the producer may have.
        producer.send_batch(&topic, &batch).await?;
    }
    match producer.flush().await {
        Ok(()) => println!("{} messages are durable", producer.last_ticket()),
        Err(ClientError::MessagesRefused(failures)) => {
            for failure in failures {
                eprintln!("lines {} to {}: {}", failure.first, failure.last, failure.refusal);
            }
            anyhow::bail!("some lines were refused; all others are durable");
        }
        Err(error) => return Err(error.into()),
    }
    client.close().await;
    Ok(())
}
