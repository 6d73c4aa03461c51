//! Consumers, each with a habit, and the transformer that consumes and produces in one transaction.

use std::sync::atomic::Ordering;
use std::time::Duration;

use batonmq::client::{
    Client, ClientError, ConsumerOptions, Delivery, Producer, ProducerOptions, PullConsumer, Settler, Topic,
    now,
};
use batonmq::model::message::Message;
use batonmq::model::settings::Policy;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::lanes::Lane;
use crate::plan::Random;
use crate::support::history::{Event, Token};
use crate::support::load::{PATIENT_HEARTBEAT, options};
use crate::workload::Common;
use crate::world::World;

/// Messages that a consumer has in flight.
const PREFETCH: u32 = 60;
/// Messages that it takes at a time.
const BATCH: usize = 40;
/// Messages of a transaction.
const TRANSACTION: usize = 7;
/// How long it waits for a message before it looks whether it is to end.
const WAIT: Duration = Duration::from_millis(50);
/// How far two clocks that show the same may differ, in milliseconds: each is rounded, and so are steps.
const ROUNDING_MS: u64 = 5;
/// Batches after which a consumer that comes and goes goes, at most.
const STAY_MAX: u64 = 60;

/// What a consumer does with what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// It is alone, acks, and writes down which acks were confirmed.
    Steady,
    /// The same, and it asks for each batch.
    Pull,
    /// It acks.
    Staying,
    /// It acks; now and then it leaves, and joins again.
    Coming,
    /// It acks most, and gives back, rejects and forgets some.
    Careless,
    /// It publishes what it gets to two topics, and acks, in one transaction.
    Transforming,
}

/// A consumer's place.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    pub topic: &'static str,
    pub group: &'static str,
    pub policy: Policy,
    pub habit: Habit,
}

impl Seat {
    pub const fn new(topic: &'static str, group: &'static str, policy: Policy, habit: Habit) -> Self {
        Self { topic, group, policy, habit }
    }
}

pub fn spawn(seat: Seat, common: Common, random: Random, done: watch::Receiver<bool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut consuming = Consuming { seat, common, random, done };
        if let Err(error) = consuming.run().await {
            let Seat { topic, group, .. } = seat;
            consuming.common.report(format!("a consumer of {topic}/{group}: {error}"));
        }
    })
}

struct Consuming {
    seat: Seat,
    common: Common,
    random: Random,
    done: watch::Receiver<bool>,
}

/// What a transformer makes its messages with.
struct Making {
    producer: Producer,
    output: Topic,
    audit: Topic,
}

/// Settlements that are reported lost come again, and everything else is an error.
fn unless_lost<T>(result: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ClientError::SettlementsLost { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Consuming {
    async fn run(&mut self) -> Result<(), ClientError> {
        let mut options = options(&World::servers());
        if self.random.below(3) == 0 {
            // It stays with a node that is silent, and is still there when that wakes up.
            options.heartbeat = PATIENT_HEARTBEAT;
        }
        let client = Client::connect(options).await?;
        let making = if self.seat.habit == Habit::Transforming {
            let (output, audit) =
                (client.topic(Lane::Output.topic()).await?, client.topic(Lane::Audit.topic()).await?);
            Some(Making { producer: client.producer(ProducerOptions::default()).await?, output, audit })
        } else {
            None
        };
        let seat =
            ConsumerOptions { prefetch: PREFETCH, ..ConsumerOptions::new(self.seat.topic, self.seat.group) };
        if self.seat.habit == Habit::Pull {
            let mut consumer = client.pull_consumer(seat).await?;
            self.pull(&mut consumer).await?;
            return unless_lost(consumer.close().await).map(drop);
        }
        while !*self.done.borrow() {
            let mut consumer = client.consumer(seat.clone()).await?;
            let stay =
                if self.seat.habit == Habit::Coming { 1 + self.random.below(STAY_MAX) } else { u64::MAX };
            let mut batches = 0;
            while batches < stay {
                let size = if making.is_some() { TRANSACTION } else { BATCH };
                let Ok(batch) = timeout(WAIT, consumer.next_batch(size)).await else {
                    if *self.done.borrow() {
                        break;
                    }
                    continue;
                };
                let Some(batch) = unless_lost(batch)? else { continue };
                batches += 1;
                self.note(&batch);
                match &making {
                    Some(making) => self.transform(&consumer.settler(), making, &batch).await?,
                    None => self.settle(&consumer.settler(), &batch).await?,
                }
            }
            unless_lost(consumer.close().await)?;
        }
        client.close().await;
        Ok(())
    }

    async fn pull(&mut self, consumer: &mut PullConsumer) -> Result<(), ClientError> {
        while !*self.done.borrow() {
            let batch = consumer.pull(BATCH as u32, 1 << 20, WAIT).await;
            let Some(batch) = unless_lost(batch)? else { continue };
            self.note(&batch);
            self.settle(&consumer.settler(), &batch).await?;
        }
        Ok(())
    }

    /// Writes down what came.
    fn note(&self, batch: &[Delivery]) {
        let (group, came) = (self.seat.group, now().0);
        self.common.delivered.fetch_add(batch.len() as u64, Ordering::Relaxed);
        for delivery in batch {
            let Some(lane) = Lane::of(self.seat.topic, delivery.message.priority) else {
                self.common.report(format!("a message of an unknown priority: {delivery:?}"));
                continue;
            };
            let history = self.common.lanes.history(lane);
            let token = Token::parse(&delivery.message.body);
            if lane == Lane::Later {
                let due = due(&delivery.message).unwrap_or_default();
                let ahead = self.common.ahead.load(Ordering::Relaxed) + ROUNDING_MS;
                let early = due.saturating_sub(came + ahead);
                if early > 0 {
                    history.add(Event::Early { group, token, milliseconds: early });
                }
            }
            history.add(Event::Delivered { group, offset: delivery.offset(), token });
        }
    }

    async fn settle(&mut self, settler: &Settler, batch: &[Delivery]) -> Result<(), ClientError> {
        let (mut acked, mut rejected, mut settled) = (Vec::new(), Vec::new(), 0);
        for delivery in batch {
            let chance = if self.seat.habit == Habit::Careless { self.random.below(200) } else { u64::MAX };
            settled += u64::from(chance != 12);
            match chance {
                0..=4 => settler.nack(delivery, Some(Duration::ZERO)),
                5..=8 => settler.release(delivery),
                9..=11 => {
                    settler.reject(delivery);
                    rejected.push(Token::parse(&delivery.message.body));
                }
                12 => {}
                _ => {
                    settler.ack(delivery);
                    acked.push(delivery);
                }
            }
        }
        let group = self.seat.group;
        if batch.is_empty() || !matches!(self.seat.habit, Habit::Steady | Habit::Pull | Habit::Careless) {
            return Ok(());
        }
        // Only a count that is right says that each of them was still this consumer's.
        if unless_lost(settler.flush().await)? != Some(settled) {
            return Ok(());
        }
        for token in rejected {
            self.common.lanes.history(Lane::Dead).add(Event::Stored(token));
        }
        if self.seat.habit != Habit::Careless {
            for delivery in acked {
                let Some(lane) = Lane::of(self.seat.topic, delivery.message.priority) else { continue };
                self.common.lanes.history(lane).add(Event::Acked { group, offset: delivery.offset() });
            }
        }
        Ok(())
    }

    async fn transform(
        &self,
        settler: &Settler,
        making: &Making,
        batch: &[Delivery],
    ) -> Result<(), ClientError> {
        let mut transaction = making.producer.transaction();
        for delivery in batch {
            let made = Message::new(delivery.message.body.clone());
            transaction.send(&making.output, &made)?;
            transaction.send(&making.audit, &made)?;
            transaction.ack(settler, delivery)?;
        }
        loop {
            match transaction.commit().await {
                Ok(()) | Err(ClientError::TransactionAborted(_)) => return Ok(()),
                Err(ClientError::Unconfirmed { .. } | ClientError::NoMaster { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// When a message is due, as its publisher wrote into it.
fn due(message: &Message) -> Option<u64> {
    std::str::from_utf8(&message.body).ok()?.split(' ').nth(1)?.parse().ok()
}
