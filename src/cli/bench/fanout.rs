//! `baton bench fanout`: one publisher, several groups that each get everything, all at once.

use std::time::{Duration, Instant};

use anyhow::Context;
use batonmq::client::{Consumer, ConsumerOptions};
use clap::Args;
use serde::Serialize;

use super::load::{Clock, LoadArgs, connect, join_all, publish, unique};
use super::measure::{Latencies, Latency, Processors, Report};
use crate::cli::output::{grouped, print_json, print_line};

/// Deliveries taken over at a time.
const BATCH_MESSAGES: usize = 1024;

/// Measure one publisher and several groups: latency_us is from publishing to a consumer
///
/// With --groups 1 it is the rate from end to end: a publisher at full speed and a consumer that acks every message.
#[derive(Args, Debug)]
pub struct FanoutArgs {
    /// Messages published
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), default_value_t = 100_000)]
    messages: u64,
    /// Groups, with a consumer each
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000), default_value_t = 10)]
    groups: u32,
    /// Messages that may be unconfirmed
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..=10_000_000), default_value_t = 1000)]
    in_flight: u64,
    /// Messages that may be with a consumer and not settled
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), default_value_t = 10_000)]
    prefetch: u32,
    /// Connections of the consumers [default: one for each group]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: Option<u32>,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Serialize)]
struct FanoutReport<'a> {
    bench: &'static str,
    topic: &'a str,
    size: usize,
    groups: u32,
    in_flight: u64,
    connections: u32,
    deliveries: u64,
    deliveries_per_second: f64,
    /// From publishing to the confirm.
    confirm_us: Latency,
    #[serde(flatten)]
    report: Report,
}

/// Runs it.
pub async fn run(args: FanoutArgs) -> anyhow::Result<()> {
    let topic = args.load.topic()?;
    let connections = args.connections.unwrap_or(args.groups).min(args.groups);
    let publisher = connect(&args.load.client, 1).await?;
    let subscribers = connect(&args.load.client, connections).await?;
    let run = unique();
    let groups: Vec<String> = (0..args.groups).map(|number| format!("bench-{run}-{number}")).collect();
    let mut consumers = Vec::new();
    for (group, client) in groups.iter().zip(subscribers.iter().cycle()) {
        let options = ConsumerOptions {
            start: batonmq::model::settings::Start::Latest,
            prefetch: args.prefetch,
            ..ConsumerOptions::new(topic.name.as_str(), group.as_str())
        };
        consumers.push(client.consumer(options).await?);
    }
    let clock = Clock::new();
    let processors = Processors::begin(args.load.server_pid)?;
    let begun = Instant::now();
    let patience = args.load.client.timeout;
    let names = topic.names();
    let publishing = publish(&publisher, &names, args.messages, args.in_flight, args.load.size, clock);
    let consuming = join_all(consumers.iter_mut().map(|one| consume(one, args.messages, clock, patience)));
    let (published, consumed) = tokio::join!(publishing, consuming);
    let took = begun.elapsed();
    let published = published?;
    let mut latencies = Latencies::new();
    for one in consumed {
        latencies.merge(&one?);
    }
    let deliveries = args.messages * u64::from(args.groups);
    let report = FanoutReport {
        bench: "fanout",
        topic: topic.name.as_str(),
        size: args.load.size,
        groups: args.groups,
        in_flight: args.in_flight,
        connections,
        deliveries,
        deliveries_per_second: (deliveries as f64 / took.as_secs_f64().max(1e-9)).round(),
        confirm_us: published.latencies.summary(),
        report: Report::new(args.messages, args.load.size as u64, took)
            .latencies(&latencies)
            .cpu(&processors),
    };
    for consumer in consumers {
        consumer.close().await?;
    }
    if let Some(client) = publisher.first() {
        for group in &groups {
            client.delete_group(topic.name.as_str(), group).await?;
        }
        topic.remove(client).await?;
    }
    if args.load.json {
        return print_json(&report);
    }
    print_line(report.report.text("publish to consumer"))?;
    print_line(format!(
        "{} deliveries to {} groups: {}/s",
        grouped(deliveries),
        args.groups,
        grouped(report.deliveries_per_second as u64)
    ))?;
    print_line(format!("publish to confirm: {}", report.confirm_us))
}

/// Consumes and acks so many messages; answers how old those with a time were.
async fn consume(
    consumer: &mut Consumer,
    messages: u64,
    clock: Clock,
    patience: Duration,
) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new();
    let mut left = messages;
    while left > 0 {
        let batch = tokio::time::timeout(patience, consumer.next_batch(BATCH_MESSAGES)).await;
        let batch = batch
            .with_context(|| format!("nothing came for {patience:?}, and {left} messages are missing"))??;
        anyhow::ensure!(!batch.is_empty(), "the connection was closed");
        for delivery in &batch {
            if let Some(age) = clock.age(&delivery.message.body) {
                latencies.record(age);
            }
            consumer.ack(delivery);
        }
        left = left.saturating_sub(batch.len() as u64);
    }
    consumer.flush().await?;
    Ok(latencies)
}
