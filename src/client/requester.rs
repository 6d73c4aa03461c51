//! Requests: messages that want a reply. A requester has a topic for its replies, which goes with it, and any number of
//! requests under way.
//!
//! Requests and replies are messages like any other: durable, and delivered over a takeover. A reply is acked when it
//! has been matched with its request; one that nobody waits for any more is acked and forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::Client;
use super::consumer::Consumer;
use super::delivery::Delivery;
use super::error::ClientError;
use super::options::{ConsumerOptions, ProducerOptions};
use super::producer::Producer;
use super::shared::locked;
use super::topic::Topic;
use crate::model::header::{CORRELATION_ID, REPLY_TO, REPLY_TOPIC_PREFIX};
use crate::model::message::Message;
use crate::model::settings::{GroupSettings, Lifetime, Start, TopicSettings};
use crate::protocol::error::ErrorCode;

/// Name of the group of a requester on its topic.
const GROUP: &str = "requester";

/// Sends requests and gets their replies. Made by [`Client::requester`](super::Client::requester); clones are the same
/// requester. Whatever is late when the last one is dropped is lost.
#[derive(Clone, Debug)]
pub struct Requester(Arc<Open>);

#[derive(Debug)]
struct Open {
    producer: Producer,
    name: String,
    reply_to: String,
    waiting: Arc<Mutex<Waiting>>,
    receiver: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

/// The requests under way.
#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    by_number: HashMap<u64, oneshot::Sender<Message>>,
    /// Why no replies come any more.
    ended: Option<ClientError>,
}

impl Requester {
    pub(super) async fn open(client: &Client) -> Result<Self, ClientError> {
        let name = uuid::Uuid::now_v7().to_string();
        let reply_to = format!("{REPLY_TOPIC_PREFIX}{name}");
        let settings = TopicSettings { temporary: true, ..TopicSettings::default() };
        client.create_topic(&reply_to, settings).await?;
        let consumer = join(client, &reply_to).await?;
        let producer = client.producer(ProducerOptions::default()).await?;
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let receiver = tokio::spawn(receive(consumer, name.clone(), Arc::clone(&waiting))).abort_handle();
        Ok(Self(Arc::new(Open { producer, name, reply_to, waiting, receiver })))
    }

    /// The topic to which its replies come.
    #[must_use]
    pub fn reply_to(&self) -> &str {
        &self.0.reply_to
    }

    /// Sends a request and waits for its reply, at most for `within`. Many requests may wait at a time; replies come in
    /// any order. The headers for correlation and reply are those of the requester.
    ///
    /// If the future is dropped, the request may be answered all the same; the reply is forgotten.
    ///
    /// # Errors
    /// [`ClientError::NoReply`] where none came in time; as [`Producer::send`] where the request was not stored;
    /// [`ClientError::ConsumerEnded`] where the topic for the replies is gone, after an outage for example: another
    /// requester is to be made.
    pub async fn request(
        &self,
        topic: &Topic,
        message: &Message,
        within: Duration,
    ) -> Result<Message, ClientError> {
        let (request, reply) = self.begin()?;
        let mut message = message.clone();
        message.headers.retain(|(name, _)| name != CORRELATION_ID && name != REPLY_TO);
        let correlation_id = format!("{}:{}", self.0.name, request.number);
        message.headers.push((CORRELATION_ID.to_owned(), Bytes::from(correlation_id)));
        message.headers.push((REPLY_TO.to_owned(), Bytes::from(self.0.reply_to.clone())));
        let answered = async {
            self.0.producer.send(topic, &message).await?;
            reply.await.map_err(|_| self.ended())
        };
        timeout(within, answered).await.unwrap_or(Err(ClientError::NoReply { within }))
    }

    /// Takes a number for a request.
    fn begin(&self) -> Result<(Request<'_>, oneshot::Receiver<Message>), ClientError> {
        let (sender, reply) = oneshot::channel();
        let mut waiting = locked(&self.0.waiting);
        if let Some(error) = &waiting.ended {
            return Err(error.clone());
        }
        waiting.last += 1;
        let number = waiting.last;
        waiting.by_number.insert(number, sender);
        Ok((Request { waiting: &self.0.waiting, number }, reply))
    }

    fn ended(&self) -> ClientError {
        locked(&self.0.waiting).ended.clone().unwrap_or(ClientError::Closed)
    }
}

/// A request under way; nobody waits for its reply any more when it is dropped.
struct Request<'a> {
    waiting: &'a Mutex<Waiting>,
    number: u64,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        locked(self.waiting).by_number.remove(&self.number);
    }
}

/// Joins the group of the replies. Both go with their consumer.
async fn join(client: &Client, reply_to: &str) -> Result<Consumer, ClientError> {
    let settings =
        GroupSettings { lifetime: Lifetime::Ephemeral, max_attempts: 0, ..GroupSettings::default() };
    let options =
        ConsumerOptions { settings: Some(settings.clone()), ..ConsumerOptions::new(reply_to, GROUP) };
    match client.consumer(options.clone()).await {
        // A node that makes no groups by their being used is asked to.
        Err(ClientError::Refused(refusal) | ClientError::ConsumerEnded { refusal, .. })
            if refusal.code == ErrorCode::UnknownGroup =>
        {
            client.create_group(reply_to, GROUP, settings, Start::Earliest).await?;
            client.consumer(options).await
        }
        joined => joined,
    }
}

/// Hands replies to whoever waits for them, until the consumer ends.
async fn receive(mut consumer: Consumer, name: String, waiting: Arc<Mutex<Waiting>>) {
    let error = loop {
        match consumer.next().await {
            Ok(Some(delivery)) => {
                let sender =
                    number_of(&delivery, &name).and_then(|number| locked(&waiting).by_number.remove(&number));
                consumer.ack(&delivery);
                if let Some(sender) = sender {
                    // Whoever waited may have gone.
                    let _ = sender.send(delivery.message);
                }
            }
            Ok(None) => break ClientError::Closed,
            // It goes on looking for a master.
            Err(ClientError::NoMaster { .. }) => {}
            Err(error) => break error,
        }
    };
    let mut waiting = locked(&waiting);
    waiting.ended = Some(error);
    waiting.by_number.clear();
}

/// The number of the request that a reply answers, if it is one of this requester.
fn number_of(reply: &Delivery, name: &str) -> Option<u64> {
    let id = std::str::from_utf8(reply.message.header(CORRELATION_ID)?).ok()?;
    id.strip_prefix(name)?.strip_prefix(':')?.parse().ok()
}
