//! Consumes, transforms and produces, exactly once: what comes of a message is stored with its ack or not at all.
//!
//! `cargo run --example transform -- ORDERS-TOPIC INVOICES-TOPIC`, with a node on this host.

use batonmq::client::{Client, ClientError, ClientOptions, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let mut args = std::env::args().skip(1);
    let (Some(input), Some(output)) = (args.next(), args.next()) else {
        eprintln!("usage: transform INPUT OUTPUT");
        return Ok(());
    };
    let client = Client::connect(ClientOptions::default()).await?;
    let output = client.topic(&output).await?;
    let producer = client.producer(ProducerOptions::default()).await?;
    let mut consumer = client.consumer(ConsumerOptions::new(input, "transformers")).await?;
    loop {
        let batch = consumer.next_batch(100).await?;
        if batch.is_empty() {
            return Ok(());
        }
        let mut transaction = producer.transaction();
        for delivery in &batch {
            let body = [b"made of ", &delivery.message.body[..]].concat();
            transaction.send(&output, &Message::new(body))?;
            transaction.ack(&consumer, delivery)?;
        }
        match transaction.commit().await {
            Ok(()) => {}
            // Nothing of it is stored. What it was made of is delivered again, here or to another consumer.
            Err(ClientError::TransactionAborted(refusal)) => eprintln!("once more: {refusal}"),
            Err(error) => return Err(error),
        }
    }
}
