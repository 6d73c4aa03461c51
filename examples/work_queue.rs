//! A pool of workers on one group: each message is worked on by one of them, and again later where that fails.
//!
//! ```sh
//! cargo run --release --example work_queue -- 127.0.0.1:7470 numbers workers
//! ```

use std::sync::Arc;
use std::time::Duration;

use batonmq::client::{Client, ClientOptions, ConsumerOptions, Delivery};
use tokio::sync::Semaphore;

/// Messages worked on at the same time.
const WORKERS: usize = 8;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(servers), Some(topic), Some(group)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        anyhow::bail!("usage: work_queue HOST:PORT[,HOST:PORT] TOPIC GROUP");
    };
    let client = Client::connect(ClientOptions::servers(&servers)).await?;
    // The node hands out no more than this; while all workers are busy, other processes of the group get the rest.
    let options = ConsumerOptions { prefetch: WORKERS as u32, ..ConsumerOptions::new(topic, group) };
    let mut consumer = client.consumer(options).await?;
    let free = Arc::new(Semaphore::new(WORKERS));

    loop {
        let delivery = tokio::select! {
            delivery = consumer.next() => delivery?,
            _ = tokio::signal::ctrl_c() => break,
        };
        let Some(delivery) = delivery else { break };
        let permit = free.clone().acquire_owned().await?;
        let settler = consumer.settler();
        tokio::spawn(async move {
            match work(&delivery).await {
                Ok(()) => settler.ack(&delivery),
                // Again after the back-off of the group; after its last attempt, to the dead-letter topic.
                Err(error) => {
                    eprintln!("message {}: {error}", delivery.offset());
                    settler.nack(&delivery, None);
                }
            }
            drop(permit);
        });
    }
    // Let the workers finish: what is not settled when the consumer is closed goes to others.
    let _all = free.acquire_many(WORKERS as u32).await?;
    consumer.close().await?;
    client.close().await;
    Ok(())
}

async fn work(delivery: &Delivery) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_millis(10)).await;
    let text = std::str::from_utf8(&delivery.message.body)?;
    println!("{text}");
    Ok(())
}
