//! Producing load: what the benchmarks that publish have in common.
//!
//! One loop for each connection keeps a window of messages in flight, hands them over in batches, and measures from
//! the hand-over of a batch to the confirm of its last message. Nothing is allocated per message.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context;
use batonmq::client::{Client, Producer, ProducerOptions, Ticket, Topic};
use batonmq::model::message::Message;
use batonmq::model::name::Name;
use clap::Args;

use super::measure::{Latencies, Noise};
use crate::cli::client::ClientArgs;
use crate::cli::output::Progress;
use crate::cli::value;

/// Messages handed to the client library at a time.
const BATCH_MESSAGES_MAX: u64 = 512;

/// Flags of every benchmark that publishes or consumes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// The topic [default: a new one, deleted at the end]
    #[arg(long, value_parser = value::name)]
    pub topic: Option<Name>,
    /// Bytes of a body
    #[arg(long, value_parser = value::size, default_value = "128")]
    pub size: usize,
    /// Process id of the broker on this host, to tell its processor time
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// The result as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

impl LoadArgs {
    /// The topic, and whether it is the benchmark's own.
    pub fn topic(&self) -> Result<TestTopic, batonmq::model::name::NameError> {
        match &self.topic {
            Some(name) => Ok(TestTopic { name: name.clone(), own: false, more: Vec::new() }),
            None => {
                let name = Name::new(&format!("bench-{}", unique()))?;
                Ok(TestTopic { name, own: true, more: Vec::new() })
            }
        }
    }
}

/// A text that no other run of a benchmark has.
pub fn unique() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// The topic that is measured on, or several.
#[derive(Clone, Debug)]
pub struct TestTopic {
    /// Its name.
    pub name: Name,
    own: bool,
    more: Vec<Name>,
}

impl TestTopic {
    /// So many topics of that kind.
    pub fn repeated(mut self, count: u32) -> Result<Self, batonmq::model::name::NameError> {
        for number in 1..count {
            self.more.push(Name::new(&format!("{}-{number}", self.name))?);
        }
        Ok(self)
    }

    /// All of them.
    pub fn names(&self) -> Vec<Name> {
        std::iter::once(&self.name).chain(&self.more).cloned().collect()
    }

    /// Deletes the topics if they are the benchmark's own.
    pub async fn remove(&self, client: &Client) -> anyhow::Result<()> {
        for name in self.names().iter().filter(|_| self.own) {
            client.delete_topic(name.as_str()).await.context("cannot delete the topic of the benchmark")?;
        }
        Ok(())
    }
}

/// A message of `size` bytes, without a time.
pub fn message(size: usize) -> Message {
    let mut body = Noise::new().bytes(size);
    if let Some(place) = body.first_chunk_mut() {
        *place = [0; 8];
    }
    Message::new(body)
}

/// What one producer has to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// The message, again and again.
    pub message: Message,
    /// How often.
    pub messages: u64,
    /// How many may be unconfirmed.
    pub in_flight: u64,
    /// Since when the times in the messages count; the first message of each batch has one.
    pub clock: Clock,
}

/// Times in messages: nanoseconds since the clock began, in the first eight bytes of a body; 0 is no time.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Begins now.
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// `message` with the time `at` in its body, as far as the body has room for it.
    pub fn stamped(self, message: &Message, at: Instant) -> Message {
        let mut body = message.body.to_vec();
        let nanoseconds = u64::try_from(at.saturating_duration_since(self.0).as_nanos()).unwrap_or(0);
        if let Some(place) = body.first_chunk_mut() {
            *place = nanoseconds.max(1).to_le_bytes();
        }
        Message::new(body)
    }

    /// How long ago the time in a body was, where there is one.
    pub fn age(self, body: &[u8]) -> Option<Duration> {
        let nanoseconds = u64::from_le_bytes(*body.first_chunk()?);
        (nanoseconds > 0).then(|| self.0.elapsed().saturating_sub(Duration::from_nanos(nanoseconds)))
    }
}

impl Job {
    /// Does it over a producer of its own. Answers the latencies from publishing to the confirm.
    pub async fn run(
        &self,
        client: &Client,
        topics: &[Topic],
        progress: &Progress,
    ) -> anyhow::Result<Latencies> {
        let options =
            ProducerOptions { name: None, in_flight_messages: self.in_flight, in_flight_bytes: u64::MAX };
        let producer = client.producer(options).await?;
        if self.in_flight == 1 {
            self.one_by_one(&producer, topics, progress).await
        } else {
            self.windowed(&producer, topics, progress).await
        }
    }

    async fn one_by_one(
        &self,
        producer: &Producer,
        topics: &[Topic],
        progress: &Progress,
    ) -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::new();
        for (number, topic) in (1..=self.messages).zip(topics.iter().cycle()) {
            let begun = Instant::now();
            producer.send(topic, &self.message).await?;
            latencies.record(begun.elapsed());
            if number % 256 == 0 {
                progress.add(256);
            }
        }
        Ok(latencies)
    }

    async fn windowed(
        &self,
        producer: &Producer,
        topics: &[Topic],
        progress: &Progress,
    ) -> anyhow::Result<Latencies> {
        let batch = (self.in_flight / 4).clamp(1, BATCH_MESSAGES_MAX);
        // As many messages of a batch go to one topic as are left when it is shared out to all of them.
        let share = (batch as usize).div_ceil(topics.len().max(1));
        let mut turn = topics.iter().cycle();
        let mut latencies = Latencies::new();
        let mut unconfirmed: VecDeque<(Ticket, Instant)> = VecDeque::new();
        let mut sent = 0;
        while sent < self.messages {
            let count = batch.min(self.messages - sent);
            let room_at = Ticket((sent + count).saturating_sub(self.in_flight));
            if producer.confirmed_up_to() < room_at {
                producer.confirmed(room_at).await?;
            }
            progress.add(take_confirmed(producer, &mut unconfirmed, batch, &mut latencies));
            let begun = Instant::now();
            let first = self.clock.stamped(&self.message, begun);
            let mut messages = std::iter::once(&first)
                .chain(std::iter::repeat_n(&self.message, count as usize - 1))
                .peekable();
            let mut last = producer.last_ticket();
            while messages.peek().is_some()
                && let Some(topic) = turn.next()
            {
                last = producer.send_batch(topic, messages.by_ref().take(share)).await?;
            }
            unconfirmed.push_back((last, begun));
            sent += count;
        }
        while let Some((ticket, _)) = unconfirmed.front() {
            producer.confirmed(*ticket).await?;
            progress.add(take_confirmed(producer, &mut unconfirmed, batch, &mut latencies));
        }
        Ok(latencies)
    }
}

/// Takes the latencies of the batches that are confirmed; answers how many messages those are.
fn take_confirmed(
    producer: &Producer,
    unconfirmed: &mut VecDeque<(Ticket, Instant)>,
    batch: u64,
    latencies: &mut Latencies,
) -> u64 {
    let confirmed = producer.confirmed_up_to();
    let now = Instant::now();
    let mut count = 0;
    while let Some((ticket, begun)) = unconfirmed.front()
        && *ticket <= confirmed
    {
        latencies.record(now.saturating_duration_since(*begun));
        unconfirmed.pop_front();
        count += batch;
    }
    count
}

/// What a load has done.
pub struct Loaded {
    /// From the first message to the last confirm.
    pub took: Duration,
    /// From publishing to the confirm.
    pub latencies: Latencies,
}

/// Publishes `messages` over `clients`, each its share, to the topics in turn.
pub async fn publish(
    clients: &[Client],
    topics: &[Name],
    messages: u64,
    in_flight: u64,
    size: usize,
    clock: Clock,
) -> anyhow::Result<Loaded> {
    let mut places = Vec::new();
    for client in clients {
        let mut of_client = Vec::with_capacity(topics.len());
        for topic in topics {
            of_client.push(client.topic(topic.as_str()).await?);
        }
        places.push(of_client);
    }
    let progress = Progress::new(Some(messages), "messages published");
    let begun = Instant::now();
    let count = clients.len() as u64;
    let jobs = clients.iter().zip(&places).zip(0..).map(|((client, topics), index)| {
        let share = messages / count + u64::from(index < messages % count);
        let job = Job { message: message(size), messages: share, in_flight, clock };
        let progress = &progress;
        async move { job.run(client, topics, progress).await }
    });
    let results = join_all(jobs).await;
    let took = begun.elapsed();
    let mut latencies = Latencies::new();
    for result in results {
        latencies.merge(&result?);
    }
    Ok(Loaded { took, latencies })
}

/// Runs all futures at once on this task and answers what they answer, in their order.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut waits = false;
        for (future, output) in &mut pending {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(ready) => *output = Some(ready),
                    std::task::Poll::Pending => waits = true,
                }
            }
        }
        if waits { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    pending.into_iter().filter_map(|(_, output)| output).collect()
}

/// Connects so many times.
pub async fn connect(args: &ClientArgs, connections: u32) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(args.connect().await?);
    }
    Ok(clients)
}
