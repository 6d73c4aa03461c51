//! The client library: publishes, consumes and administers over one connection that it keeps to whichever node is
//! master.
//!
//! * [`Client`]: the connection. Finds the master among several addresses, reconnects, refuses a node whose
//!   mastership is over.
//! * [`Producer`]: publishes. A confirmed message is durable; an unconfirmed one is sent again after a reconnect and
//!   stored once.
//! * [`Consumer`], [`PullConsumer`]: get the messages of a group, and settle them. Delivery is at least once.
//! * [`Browser`]: looks at messages without any effect, and at what a group will get.
//! * [`Requester`], [`Responder`]: requests and their replies, each a message.
//! * [`Transaction`]: messages and settlements that are carried out together or not at all.
//! * [`admin`]: topics, groups, routes, status, switchover.
//!
//! Needs a tokio runtime with time and I/O. All futures may be dropped at any time; each method says what that means.
//! Every buffer is bounded: what is unconfirmed by [`ProducerOptions`], what has been delivered by
//! [`ConsumerOptions`], the rest by the constants in [`options`].
//!
//! Knows nothing of the broker, the engine or the store; only the protocol and the model.
//!
//! ```no_run
//! use batonmq::client::{Client, ClientOptions, ConsumerOptions, ProducerOptions};
//! use batonmq::model::message::Message;
//!
//! # async fn example() -> Result<(), batonmq::client::ClientError> {
//! let client = Client::connect(ClientOptions::servers("10.0.0.1:7470,10.0.0.2:7470")).await?;
//!
//! let topic = client.topic("orders").await?;
//! let producer = client.producer(ProducerOptions::default()).await?;
//! producer.send(&topic, &Message::new("one order")).await?; // durable from here on
//!
//! let mut consumer = client.consumer(ConsumerOptions::new("orders", "billing")).await?;
//! while let Some(delivery) = consumer.next().await? {
//!     println!("{:?}", delivery.message.body);
//!     consumer.ack(&delivery);
//! }
//! # Ok(())
//! # }
//! ```

pub mod admin;
pub mod browser;
pub mod consumer;
mod consumer_core;
pub mod delivery;
mod driver;
pub mod error;
mod handshake;
mod link;
pub mod options;
mod outbox;
pub mod producer;
mod producer_core;
pub mod requester;
pub mod responder;
mod seek;
mod settlements;
mod shared;
pub mod table;
pub mod topic;
mod topic_names;
pub mod transaction;
mod wait;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use admin::{Backup, status_of};
pub use browser::{BrowseOptions, Browser};
pub use consumer::{Consumer, PullConsumer, Settler, Subscription};
pub use delivery::{Browsed, Delivery, DeliveryId};
pub use error::{AttemptError, ClientError, Failure, LastAttempts};
pub use options::{ClientOptions, ConsumerOptions, ProducerOptions, ReconnectBackoff};
pub use producer::{Producer, Ticket};
pub use requester::Requester;
pub use responder::{Answered, Replier, Responder};
pub use shared::Master;
pub use topic::Topic;
pub use transaction::Transaction;

pub use crate::protocol::response::Activity;

use crate::model::id::Epoch;
use crate::model::name::Name;
use crate::model::time::Timestamp;
use shared::{Shared, locked};

/// The time by the clock of this host, for `deliver_at` and `expires_at` of messages. The node goes by its own.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A connection to the pair. Cheap to clone; clones share the connection.
///
/// The connection ends when the last clone and the last producer and consumer made from it are gone.
#[derive(Clone, Debug)]
pub struct Client {
    alive: Alive,
}

/// Keeps the tasks of a client alive.
#[derive(Clone, Debug)]
struct Alive(Arc<CloseWhenDropped>);

#[derive(Debug)]
struct CloseWhenDropped(Arc<Shared>);

impl Drop for CloseWhenDropped {
    fn drop(&mut self) {
        self.0.closing.notify_one();
    }
}

impl std::ops::Deref for Alive {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0.0
    }
}

impl Client {
    /// Connects to whichever of the servers is master.
    ///
    /// If the future is dropped, so is the client.
    ///
    /// # Errors
    /// Where an option makes no sense, or no master is found within the timeout; at once where all nodes refuse this
    /// client in a way that lasts, such as another version of the protocol.
    pub async fn connect(options: ClientOptions) -> Result<Self, ClientError> {
        let client = Self::start(options)?;
        driver::first_connection(&client.alive).await?;
        Ok(client)
    }

    /// Starts to look for a master and does not wait for it; the calls on the client do.
    ///
    /// # Errors
    /// Where an option makes no sense.
    ///
    /// # Panics
    /// Where there is no tokio runtime.
    pub fn start(options: ClientOptions) -> Result<Self, ClientError> {
        options.check()?;
        let shared = Arc::new(Shared::new(options));
        tokio::spawn(driver::run(shared.clone()));
        Ok(Self { alive: Alive(Arc::new(CloseWhenDropped(shared))) })
    }

    /// Looks a topic up, to publish to it. Where the node allows it, a topic that does not exist is made.
    ///
    /// If the future is dropped, the topic may be made all the same.
    ///
    /// # Errors
    /// Where the name is not one, the topic neither exists nor may be made, or there is no master.
    pub async fn topic(&self, name: &str) -> Result<Topic, ClientError> {
        let name = Name::new(name)?;
        let id = self.alive.find_topic(&name).await?;
        let topic = Topic::new(name, id);
        locked(&self.alive.registry).remember_topic(id, &topic.0);
        Ok(topic)
    }

    /// Opens a producer.
    ///
    /// If the future is dropped, the producer is closed again.
    ///
    /// # Errors
    /// Where an option makes no sense, the node refuses, or there is no master.
    pub async fn producer(&self, options: ProducerOptions) -> Result<Producer, ClientError> {
        Producer::open(self.alive.clone(), options).await
    }

    /// Joins a group as a consumer to which messages are pushed.
    ///
    /// If the future is dropped, the group is left again.
    ///
    /// # Errors
    /// Where an option makes no sense, the node refuses, or there is no master.
    pub async fn consumer(&self, options: ConsumerOptions) -> Result<Consumer, ClientError> {
        Consumer::open(self.alive.clone(), options).await
    }

    /// Joins a group as a consumer that asks for messages. The prefetch in the options has no effect.
    ///
    /// If the future is dropped, the group is left again.
    ///
    /// # Errors
    /// Where an option makes no sense, the node refuses, or there is no master.
    pub async fn pull_consumer(&self, options: ConsumerOptions) -> Result<PullConsumer, ClientError> {
        PullConsumer::open(self.alive.clone(), options).await
    }

    /// Makes what is needed to send requests and get their replies: a temporary topic for the replies, and a consumer of
    /// it.
    ///
    /// If the future is dropped, what was made goes by itself.
    ///
    /// # Errors
    /// Where the node refuses, or there is no master.
    pub async fn requester(&self) -> Result<Requester, ClientError> {
        Requester::open(self).await
    }

    /// Joins a group as one that answers requests.
    ///
    /// If the future is dropped, the group is left again.
    ///
    /// # Errors
    /// As [`consumer`](Self::consumer).
    pub async fn responder(&self, options: ConsumerOptions) -> Result<Responder, ClientError> {
        Responder::open(self, options).await
    }

    /// The master that the client is connected to; `None` while it is looking for one.
    #[must_use]
    pub fn master(&self) -> Option<Arc<Master>> {
        self.alive.connection.borrow().master.clone()
    }

    /// Waits until the client is connected to a master of an epoch above `epoch`, for example after a switchover.
    ///
    /// If the future is dropped, nothing happens.
    ///
    /// # Errors
    /// Where that did not come about within the timeout of the client.
    pub async fn master_after(&self, epoch: Epoch) -> Result<Arc<Master>, ClientError> {
        let deadline = self.alive.deadline();
        let mut session = 0;
        loop {
            let (found, master) = self.alive.connected(session, deadline).await?;
            if master.welcome.epoch > epoch {
                return Ok(master);
            }
            session = found;
        }
    }

    /// Says goodbye and ends the connection, for all clones and everything made from them; waits until the node has
    /// read everything, at most two seconds. Settlements that wait are sent, deliveries go back uncounted; messages
    /// that are not confirmed may or may not be stored, so flush the producers first.
    ///
    /// If the future is dropped, the client closes all the same.
    pub async fn close(self) {
        let mut watch = self.alive.connection.subscribe();
        self.alive.closing.notify_one();
        // The sender lives as long as this client does.
        let _ = watch.wait_for(|connection| connection.closed).await;
    }
}
