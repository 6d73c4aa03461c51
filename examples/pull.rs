//! Asks for messages in batches, at a pace of its own, and settles each batch before the next.
//!
//! ```sh
//! cargo run --release --example pull -- 127.0.0.1:7470 numbers archive
//! ```

use std::time::Duration;

use batonmq::client::{Client, ClientError, ClientOptions, ConsumerOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(servers), Some(topic), Some(group)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        anyhow::bail!("usage: pull HOST:PORT[,HOST:PORT] TOPIC GROUP");
    };
    let client = Client::connect(ClientOptions::servers(&servers)).await?;
    let mut consumer = client.pull_consumer(ConsumerOptions::new(topic, group)).await?;
    loop {
        let batch = consumer.pull(500, 1 << 20, Duration::from_secs(5)).await?;
        let Some(last) = batch.last() else { break };
        for delivery in &batch {
            println!("{}: {} bytes", delivery.offset(), delivery.message.body.len());
        }
        consumer.ack_up_to(last);
        match consumer.flush().await {
            Ok(_) => {}
            // Also where the connection was lost after the pull: the batch comes again.
            Err(error @ ClientError::SettlementsLost { .. }) => eprintln!("{error}"),
            Err(error) => return Err(error.into()),
        }
    }
    consumer.close().await?;
    client.close().await;
    Ok(())
}
