//! `baton bench latency`: how long a message takes from the publisher to a consumer.
//!
//! One at a time, or at a fixed rate. At a rate the messages are published by a thread of its own that sleeps until
//! each is due, since timers of the runtime are too coarse; what could not be published when it was due counts from
//! when it was due.

use std::time::{Duration, Instant};

use anyhow::Context;
use batonmq::client::{Client, Consumer, ConsumerOptions, Producer, ProducerOptions, Topic};
use batonmq::model::message::Message;
use clap::Args;
use serde::Serialize;
use tokio::runtime::Handle;

use super::load::{Clock, LoadArgs, connect, message, unique};
use super::measure::{Latencies, Latency, Processors, Report};
use crate::cli::output::{Progress, print_json, print_line};

/// Deliveries taken over at a time.
const BATCH_MESSAGES: usize = 256;
/// Delays of the publishing thread that are its own, not the broker's.
const OWN_DELAY_MAX: Duration = Duration::from_millis(1);

/// Measure a message's way: latency_us is from publishing to the consumer
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  baton bench latency --messages 10000
  baton bench latency --messages 50000 --rate 5000 --json")]
pub struct LatencyArgs {
    /// Messages in all
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), default_value_t = 5_000)]
    messages: u64,
    /// So many a second; without it, one at a time: the next when the last is confirmed and consumed
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    #[command(flatten)]
    load: LoadArgs,
}

impl LatencyArgs {
    /// Whether there is never more than one message on its way.
    pub fn one_at_a_time(&self) -> bool {
        self.rate.is_none()
    }
}

#[derive(Serialize)]
struct LatencyReport<'a> {
    bench: &'static str,
    topic: &'a str,
    size: usize,
    rate: Option<u32>,
    /// From publishing to the confirm; only where they go one at a time.
    confirm_us: Option<Latency>,
    #[serde(flatten)]
    report: Report,
}

/// Runs it.
pub async fn run(args: LatencyArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.load.size >= 8, "--size must be at least 8: the time is in the body");
    let topic = args.load.topic()?;
    let clients = connect(&args.load.client, 2).await?;
    let [publisher, subscriber] = clients.as_slice() else {
        anyhow::bail!("two connections were asked for");
    };
    let group = format!("bench-{}", unique());
    let options = ConsumerOptions {
        start: batonmq::model::settings::Start::Latest,
        ..ConsumerOptions::new(topic.name.as_str(), group.as_str())
    };
    let mut way = Way {
        topic: publisher.topic(topic.name.as_str()).await?,
        producer: publisher.producer(ProducerOptions::default()).await?,
        consumer: subscriber.consumer(options).await?,
        message: message(args.load.size),
        patience: args.load.client.timeout,
        delivered: Latencies::new(),
    };
    let processors = Processors::begin(args.load.server_pid)?;
    let begun = Instant::now();
    let confirmed = match args.rate {
        None => Some(way.one_by_one(args.messages).await?),
        Some(rate) => way.at_rate(args.messages, rate).await.map(|()| None)?,
    };
    let report = LatencyReport {
        bench: "latency",
        topic: topic.name.as_str(),
        size: args.load.size,
        rate: args.rate,
        confirm_us: confirmed.map(|latencies| latencies.summary()),
        report: Report::new(args.messages, args.load.size as u64, begun.elapsed())
            .latencies(&way.delivered)
            .cpu(&processors),
    };
    way.consumer.close().await?;
    clean(publisher, &topic, &group).await?;
    if args.load.json {
        return print_json(&report);
    }
    print_line(report.report.text("publish to consumer"))?;
    match &report.confirm_us {
        Some(confirmed) => print_line(format!("publish to confirm: {confirmed}")),
        None => Ok(()),
    }
}

async fn clean(client: &Client, topic: &super::load::TestTopic, group: &str) -> anyhow::Result<()> {
    client.delete_group(topic.name.as_str(), group).await?;
    topic.remove(client).await
}

/// The way of a message.
struct Way {
    topic: Topic,
    producer: Producer,
    consumer: Consumer,
    message: Message,
    patience: Duration,
    delivered: Latencies,
}

impl Way {
    /// Answers the latencies of the confirms.
    async fn one_by_one(&mut self, messages: u64) -> anyhow::Result<Latencies> {
        let progress = Progress::new(Some(messages), "messages");
        let mut confirmed = Latencies::new();
        for _ in 0..messages {
            let begun = Instant::now();
            let send = async {
                self.producer.send(&self.topic, &self.message).await?;
                confirmed.record(begun.elapsed());
                anyhow::Ok(())
            };
            let receive = async {
                let delivery = tokio::time::timeout(self.patience, self.consumer.next()).await;
                let delivery =
                    delivery.context("a message never came")??.context("the connection was closed")?;
                self.delivered.record(begun.elapsed());
                self.consumer.ack(&delivery);
                anyhow::Ok(())
            };
            tokio::try_join!(send, receive)?;
            progress.add(1);
        }
        self.consumer.flush().await?;
        Ok(confirmed)
    }

    async fn at_rate(&mut self, messages: u64, rate: u32) -> anyhow::Result<()> {
        let progress = Progress::new(Some(messages), "messages");
        let clock = Clock::new();
        let pace = Pace {
            producer: self.producer.clone(),
            topic: self.topic.clone(),
            message: self.message.clone(),
            clock,
        };
        let runtime = Handle::current();
        let publishing = tokio::task::spawn_blocking(move || runtime.block_on(pace.publish(messages, rate)));
        let mut left = messages;
        while left > 0 {
            let batch = tokio::time::timeout(self.patience, self.consumer.next_batch(BATCH_MESSAGES)).await;
            let batch = batch.with_context(|| format!("{left} messages never came"))??;
            for delivery in &batch {
                if let Some(age) = clock.age(&delivery.message.body) {
                    self.delivered.record(age);
                }
                self.consumer.ack(delivery);
            }
            left = left.saturating_sub(batch.len() as u64);
            progress.at(messages - left);
        }
        publishing.await??;
        self.consumer.flush().await?;
        Ok(())
    }
}

/// Publishes at a fixed rate.
struct Pace {
    producer: Producer,
    topic: Topic,
    message: Message,
    clock: Clock,
}

impl Pace {
    /// Blocks its thread between messages.
    async fn publish(&self, messages: u64, rate: u32) -> anyhow::Result<()> {
        let begun = Instant::now();
        for number in 0..messages {
            let due = begun
                + Duration::from_secs(1) * u32::try_from(number / u64::from(rate)).unwrap_or(u32::MAX)
                + Duration::from_secs(1) / rate * u32::try_from(number % u64::from(rate)).unwrap_or(0);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let now = Instant::now();
            let at = if now.saturating_duration_since(due) > OWN_DELAY_MAX { due } else { now };
            self.producer.publish(&self.topic, &self.clock.stamped(&self.message, at)).await?;
        }
        Ok(self.producer.flush().await?)
    }
}
