//! A well-behaved client beside the rude ones: publishes, consumes, and must not notice them.

use std::time::Duration;

use batonmq::client::{Client, Consumer, ConsumerOptions, Producer, ProducerOptions, Topic};
use batonmq::model::message::Message;
use tokio::time::timeout;

use super::load::options;
use super::pair::PATIENCE;

pub const TOPIC: &str = "neighbour";

/// How long one message may take while others misbehave: less than any time after which the node gives up on them.
const UNDISTURBED: Duration = Duration::from_secs(3);

pub struct Neighbour {
    topic: Topic,
    producer: Producer,
    consumer: Consumer,
    sent: u64,
    client: Client,
}

impl Neighbour {
    /// Its one connection, topic, group, producer and consumer.
    pub async fn new(address: &str) -> Self {
        let client = Client::connect(options(address)).await.unwrap();
        let topic = client.topic(TOPIC).await.unwrap();
        let producer = client.producer(ProducerOptions::default()).await.unwrap();
        let consumer = client.consumer(ConsumerOptions::new(TOPIC, "g")).await.unwrap();
        Self { topic, producer, consumer, sent: 0, client }
    }

    /// Publishes and consumes one message, the next one and no other, on the connection that it has had all along.
    pub async fn is_undisturbed(&mut self, by: &str) {
        let text = self.sent.to_string();
        let message = Message::new(text.clone());
        let sending = timeout(UNDISTURBED, self.producer.send(&self.topic, &message)).await;
        sending.unwrap_or_else(|_| panic!("{by}: publishing takes too long")).unwrap();
        let coming = timeout(UNDISTURBED, self.consumer.next()).await;
        let delivery = coming.unwrap_or_else(|_| panic!("{by}: nothing comes")).unwrap().unwrap();
        assert_eq!((&delivery.message.body[..], delivery.attempt), (text.as_bytes(), 1), "{by}");
        assert_eq!(delivery.offset().0, self.sent, "{by}");
        self.consumer.settler().ack(&delivery);
        self.consumer.settler().flush().await.unwrap();
        self.sent += 1;
    }

    /// Nothing was lost, and nothing is left.
    pub async fn finish(self) {
        timeout(PATIENCE, self.consumer.close()).await.unwrap().unwrap();
        let groups = self.client.groups(Some(TOPIC)).await.unwrap();
        assert_eq!((groups[0].waiting, groups[0].floor.0), (0, self.sent));
        self.client.close().await;
    }
}
