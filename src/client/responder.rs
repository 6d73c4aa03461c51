//! Replies: a responder gets the requests of a group and answers them. Reply and ack of the request are one
//! transaction, so each request that is acked has had exactly one reply, over a takeover too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::Client;
use super::consumer::{Consumer, Settler};
use super::delivery::Delivery;
use super::error::ClientError;
use super::options::{ConsumerOptions, ProducerOptions};
use super::producer::Producer;
use super::shared::locked;
use super::topic::Topic;
use super::wait::{PUT_OFF_MAX, by_chance};
use crate::model::header::{CORRELATION_ID, REPLY_TO};
use crate::model::message::Message;
use crate::protocol::error::ErrorCode;

/// Reply topics whose numbers are remembered.
const TOPICS_KEPT: usize = 1000;

/// Gets requests. Made by [`Client::responder`](super::Client::responder). What it dereferences to settles requests that
/// are not to be answered, nacks them for example.
#[derive(Debug)]
pub struct Responder {
    consumer: Consumer,
    replier: Replier,
}

/// Answers the requests of one responder, from any task. Clones belong to the same responder.
#[derive(Clone, Debug)]
pub struct Replier {
    client: Client,
    producer: Producer,
    settler: Settler,
    topics: Arc<Mutex<HashMap<String, Topic>>>,
}

impl Responder {
    pub(super) async fn open(client: &Client, options: ConsumerOptions) -> Result<Self, ClientError> {
        let producer = client.producer(ProducerOptions::default()).await?;
        let consumer = client.consumer(options).await?;
        let (client, settler) = (client.clone(), consumer.settler());
        Ok(Self { consumer, replier: Replier { client, producer, settler, topics: Arc::default() } })
    }

    /// The next request; `None` when the client was closed.
    ///
    /// If the future is dropped, no request is lost.
    ///
    /// # Errors
    /// As [`Consumer::next`].
    pub async fn next(&mut self) -> Result<Option<Delivery>, ClientError> {
        self.consumer.next().await
    }

    /// Answers a request; see [`Replier::reply`].
    ///
    /// # Errors
    /// As [`Replier::reply`].
    pub async fn reply(&self, request: &Delivery, reply: Message) -> Result<Answered, ClientError> {
        self.replier.reply(request, reply).await
    }

    /// A handle that answers requests from other tasks.
    #[must_use]
    pub fn replier(&self) -> Replier {
        self.replier.clone()
    }

    /// Ends the responder; see [`Consumer::close`].
    ///
    /// # Errors
    /// As [`Consumer::close`].
    pub async fn close(self) -> Result<(), ClientError> {
        self.consumer.close().await
    }
}

impl std::ops::Deref for Responder {
    type Target = Settler;

    fn deref(&self) -> &Settler {
        &self.consumer
    }
}

/// What became of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It is stored where the requester wants it.
    Sent,
    /// Nobody wants it: the request names no topic for it, or one that is gone.
    Unwanted,
}

impl Replier {
    /// Publishes the reply to where the request wants it, and acks the request, both in one commit. A request whose reply
    /// nobody wants any more is acked alone.
    ///
    /// If the future is dropped, the request may be answered or not; where it is not, it is delivered again.
    ///
    /// # Errors
    /// [`ClientError::TransactionAborted`] where the request was not answered. If it is not with this responder any more,
    /// or there is no room for the reply at the moment, it is delivered again to one of its group; the latter is told
    /// after a second. If the topic of the reply will never take it, the request is rejected, with that as the reason: it
    /// goes to the dead letters. [`ClientError::Message`] where the reply passes a limit: the request is as it was. As
    /// [`Transaction::commit`] otherwise.
    ///
    /// [`Transaction::commit`]: super::Transaction::commit
    pub async fn reply(&self, request: &Delivery, mut reply: Message) -> Result<Answered, ClientError> {
        reply.headers.retain(|(name, _)| name != CORRELATION_ID);
        let id = request.message.headers.iter().find(|(name, _)| name == CORRELATION_ID);
        reply.headers.extend(id.cloned());
        let refusal = loop {
            match self.try_reply(request, &reply).await {
                Err(ClientError::TransactionAborted(refusal) | ClientError::Refused(refusal)) => {
                    if !matches!(refusal.code, ErrorCode::UnknownTopic | ErrorCode::Deleted) {
                        break refusal;
                    }
                    // The topic went at this very moment: it is looked for again.
                }
                answered => return answered,
            }
        };
        match refusal.code {
            ErrorCode::TransactionAborted => {}
            ErrorCode::StoreFull | ErrorCode::TopicFull => self.settler.release(request),
            // The topic of the reply cannot be made for now.
            ErrorCode::Limit => {
                tokio::time::sleep(by_chance(PUT_OFF_MAX)).await;
                self.settler.release(request);
            }
            _ => {
                self.settler.reject_because(request, &format!("its reply was refused: {}", refusal.text));
            }
        }
        Err(ClientError::TransactionAborted(refusal))
    }

    async fn try_reply(&self, request: &Delivery, reply: &Message) -> Result<Answered, ClientError> {
        let topic = match request.message.header(REPLY_TO) {
            Some(name) => self.topic(&String::from_utf8_lossy(name)).await?,
            None => None,
        };
        let mut transaction = self.producer.transaction().keeping_deliveries();
        if let Some(topic) = &topic {
            transaction.send(topic, reply)?;
        }
        transaction.ack(&self.settler, request)?;
        transaction.commit().await?;
        Ok(if topic.is_some() { Answered::Sent } else { Answered::Unwanted })
    }

    /// A reply topic; `None` where there is none of that name.
    async fn topic(&self, name: &str) -> Result<Option<Topic>, ClientError> {
        if let Some(topic) = locked(&self.topics).get(name).filter(|topic| topic.id().is_some()) {
            return Ok(Some(topic.clone()));
        }
        match self.client.topic(name).await {
            Ok(topic) => {
                let mut topics = locked(&self.topics);
                if topics.len() >= TOPICS_KEPT {
                    topics.clear();
                }
                topics.insert(name.to_owned(), topic.clone());
                Ok(Some(topic))
            }
            Err(ClientError::Name(_)) => Ok(None),
            Err(ClientError::Refused(refusal)) if refusal.code == ErrorCode::UnknownTopic => Ok(None),
            Err(error) => Err(error),
        }
    }
}
