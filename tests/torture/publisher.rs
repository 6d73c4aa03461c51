//! A publisher with a name: it goes on in each window where it ended in the last one, over many topics.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use batonmq::client::{Client, ClientError, Producer, ProducerOptions, Ticket, Topic, now};
use batonmq::model::id::Sequence;
use batonmq::model::message::Message;
use batonmq::model::time::Timestamp;

use crate::lanes::{Lane, TABLE};
use crate::plan::Random;
use crate::support::history::{Event, Token};
use crate::support::load::options;
use crate::workload::{Common, PUBLISHERS};
use crate::world::{Trouble, World};

/// Messages that it may have unconfirmed.
const IN_FLIGHT_MAX: u64 = 300;
/// Messages of it in a window. With that it rests.
const MESSAGES_MAX: u64 = 15_000;
/// Longest delay of a message, in milliseconds.
const DELAY_MAX_MS: u64 = 3_000;
/// Keys of each publisher in the table.
const TABLE_KEYS: u64 = 8;
/// Longest pause between two batches, in milliseconds.
const PAUSE_MAX_MS: u64 = 12;

/// What a publisher has done so far.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Messages to each lane, over all windows.
    numbers: BTreeMap<Lane, u64>,
    /// Those of the last window.
    pub window: BTreeMap<Lane, u64>,
    /// The newest value of each key.
    pub table: BTreeMap<String, String>,
    table_number: u64,
    last_stored: Sequence,
}

pub struct Publisher {
    number: u32,
    published: Published,
    common: Common,
    random: Random,
    /// What is not known to be confirmed.
    pending: VecDeque<(Ticket, Option<(Lane, u64)>)>,
}

/// The lanes by how often they are chosen; `None` is the table.
const CHOICES: [Option<Lane>; 12] = [
    Some(Lane::Load),
    Some(Lane::Load),
    Some(Lane::Load),
    Some(Lane::Load),
    Some(Lane::Input),
    Some(Lane::Input),
    Some(Lane::Input),
    Some(Lane::Lowest),
    Some(Lane::Middle),
    Some(Lane::Highest),
    Some(Lane::Later),
    None,
];

impl Publisher {
    pub fn new(number: u32, mut published: Published, common: Common, random: Random) -> Self {
        published.window.clear();
        Self { number, published, common, random, pending: VecDeque::new() }
    }

    /// Publishes until it is told to stop and everything is confirmed.
    pub async fn publish(mut self) -> Result<Published, Trouble> {
        match self.run().await {
            Ok(()) => Ok(self.published),
            Err(error) => {
                let trouble = format!("publisher {}: {error}", self.number);
                self.common.report(trouble.clone());
                Err(trouble)
            }
        }
    }

    async fn run(&mut self) -> Result<(), String> {
        let text = |error: ClientError| error.to_string();
        let client = Client::connect(options(&World::servers())).await.map_err(text)?;
        let name = Some(format!("publisher-{}", self.number));
        let producer =
            ProducerOptions { name, in_flight_messages: IN_FLIGHT_MAX, ..ProducerOptions::default() };
        let producer = client.producer(producer).await.map_err(text)?;
        if producer.last_stored() != self.published.last_stored {
            let (known, told) = (self.published.last_stored, producer.last_stored());
            return Err(format!("its last message was {known:?}, and the store says {told:?}"));
        }
        let mut topics: BTreeMap<&str, Topic> = BTreeMap::new();
        for choice in CHOICES {
            let name = choice.map_or(TABLE, Lane::topic);
            topics.insert(name, client.topic(name).await.map_err(text)?);
        }
        while !self.common.stop.load(Ordering::Relaxed) {
            self.batch(&producer, &topics).await.map_err(text)?;
            self.note_confirmed(&producer);
            let pause = self.random.below(PAUSE_MAX_MS + 1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        producer.flush().await.map_err(text)?;
        self.note_confirmed(&producer);
        let failures = producer.failures();
        if let Some(failure) = failures.first() {
            return Err(format!("{} messages were refused, the first {failure:?}", failures.len()));
        }
        self.published.last_stored = producer.last_stored();
        for (lane, number) in &self.published.numbers {
            self.common.lanes.note_done(*lane, self.number, *number);
            if *lane == Lane::Input {
                self.common.lanes.note_done(Lane::Output, self.number, *number);
                self.common.lanes.note_done(Lane::Audit, self.number, *number);
            }
        }
        client.close().await;
        Ok(())
    }

    /// Some messages to one lane.
    async fn batch(
        &mut self,
        producer: &Producer,
        topics: &BTreeMap<&str, Topic>,
    ) -> Result<(), ClientError> {
        if self.published.window.values().sum::<u64>() >= MESSAGES_MAX {
            return Ok(());
        }
        let choice = CHOICES[self.random.below(CHOICES.len() as u64) as usize];
        let topic = &topics[choice.map_or(TABLE, Lane::topic)];
        for _ in 0..=self.random.below(10) {
            let (message, what) = match choice {
                Some(lane) => {
                    let (number, message) = self.message(lane);
                    (message, Some((lane, number)))
                }
                None => (self.value(), None),
            };
            let ticket = producer.publish(topic, &message).await?;
            self.pending.push_back((ticket, what));
        }
        if self.random.below(20) == 0 {
            producer.flush().await?;
        }
        Ok(())
    }

    fn message(&mut self, lane: Lane) -> (u64, Message) {
        let number = self.published.numbers.entry(lane).or_default();
        *number += 1;
        let token = Token { publisher: self.number, number: *number };
        *self.published.window.entry(lane).or_default() += 1;
        let key = Some(format!("{}-{}", self.number, token.key()).into());
        let plain = Message { key, priority: lane.priority(), ..Message::new(token.body()) };
        let message = if lane == Lane::Later {
            let due = Timestamp(now().0 + self.random.below(DELAY_MAX_MS));
            let body = format!("{} {}", token.body(), due.0);
            Message { deliver_at: Some(due), body: body.into(), ..plain }
        } else {
            // Of many sizes, some of them larger than a page.
            let size = if self.random.below(50) == 0 { 20_000 } else { self.random.below(200) as usize };
            Message { body: format!("{} {:size$}", token.body(), "").into(), ..plain }
        };
        (token.number, message)
    }

    /// A value of the table. Some keys go.
    fn value(&mut self) -> Message {
        self.published.table_number += 1;
        let key = format!("{}-{}", self.number, self.random.below(TABLE_KEYS));
        let body = if self.random.below(20) == 0 {
            self.published.table.remove(&key);
            String::new()
        } else {
            let value = self.published.table_number.to_string();
            self.published.table.insert(key.clone(), value.clone());
            value
        };
        Message { key: Some(key.into()), ..Message::new(body) }
    }

    /// Writes down what has been confirmed.
    fn note_confirmed(&mut self, producer: &Producer) {
        let up_to = producer.confirmed_up_to();
        let mut last: BTreeMap<Lane, u64> = BTreeMap::new();
        while let Some((ticket, what)) = self.pending.front()
            && *ticket <= up_to
        {
            if let Some((lane, number)) = what {
                last.insert(*lane, *number);
            }
            self.common.confirmed.fetch_add(1, Ordering::Relaxed);
            self.pending.pop_front();
        }
        for (lane, number) in last {
            let event = Event::Confirmed(Token { publisher: self.number, number });
            if lane == Lane::Input {
                // What is made of it has to come too.
                self.common.lanes.history(Lane::Output).add(event.clone());
                self.common.lanes.history(Lane::Audit).add(event.clone());
            }
            self.common.lanes.history(lane).add(event);
        }
    }
}

const _: () = assert!(PUBLISHERS as u64 * MESSAGES_MAX < 100_000, "a window is remembered");
