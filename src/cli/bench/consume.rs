//! `baton bench consume`: how fast a backlog is drained, with every message acked.

use std::time::{Duration, Instant};

use anyhow::Context;
use batonmq::client::{Client, Consumer, ConsumerOptions, Settler};
use clap::Args;
use serde::Serialize;

use super::load::{Clock, LoadArgs, connect, join_all, publish, unique};
use super::measure::{Latencies, Processors, Report};
use crate::cli::output::{Progress, print_json, print_line};

/// Deliveries taken over at a time.
const BATCH_MESSAGES: usize = 1024;
/// Messages in flight while the backlog is made.
const FILL_IN_FLIGHT: u64 = 10_000;
/// Wait between two measurements of an ack.
const SAMPLE_EVERY: Duration = Duration::from_millis(2);

/// Measure consuming a backlog: latency_us is from an ack to its confirm
///
/// Without --topic the backlog is made first, which is not measured. With --topic, a new group of it starts at the
/// earliest message and drains so many.
#[derive(Args, Debug)]
pub struct ConsumeArgs {
    /// Messages in all
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), default_value_t = 200_000)]
    messages: u64,
    /// Messages that may be here and not settled, for each connection
    #[arg(long, alias = "prefetch", value_parser = clap::value_parser!(u32).range(1..), default_value_t = 10_000)]
    in_flight: u32,
    /// Connections, with a consumer each, all in one group
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000), default_value_t = 1)]
    connections: u32,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Serialize)]
struct ConsumeReport<'a> {
    bench: &'static str,
    topic: &'a str,
    size: usize,
    in_flight: u32,
    connections: u32,
    #[serde(flatten)]
    report: Report,
}

/// Runs it.
pub async fn run(args: ConsumeArgs) -> anyhow::Result<()> {
    let topic = args.load.topic()?;
    let clients = connect(&args.load.client, args.connections).await?;
    if args.load.topic.is_none() {
        let one = clients.get(..1).unwrap_or_default();
        publish(one, &topic.names(), args.messages, FILL_IN_FLIGHT, args.load.size, Clock::new()).await?;
    }
    let group = format!("bench-{}", unique());
    let options = ConsumerOptions {
        prefetch: args.in_flight,
        prefetch_bytes: u64::MAX,
        ..ConsumerOptions::new(topic.name.as_str(), group.as_str())
    };
    let processors = Processors::begin(args.load.server_pid)?;
    let drained = drain(&clients, &options, args.messages, args.load.client.timeout).await?;
    let report = ConsumeReport {
        bench: "consume",
        topic: topic.name.as_str(),
        size: args.load.size,
        in_flight: args.in_flight,
        connections: args.connections,
        report: Report::new(args.messages, drained.bytes / args.messages.max(1), drained.took)
            .latencies(&drained.latencies)
            .cpu(&processors),
    };
    if let Some(client) = clients.first() {
        client.delete_group(topic.name.as_str(), &group).await?;
        topic.remove(client).await?;
    }
    if args.load.json {
        return print_json(&report);
    }
    print_line(format!("{} in flight on {} connections", report.in_flight, report.connections))?;
    print_line(report.report.text("ack to its confirm"))
}

struct Drained {
    took: Duration,
    bytes: u64,
    latencies: Latencies,
}

/// Consumes `messages` over `clients`, which take them from each other.
async fn drain(
    clients: &[Client],
    options: &ConsumerOptions,
    messages: u64,
    patience: Duration,
) -> anyhow::Result<Drained> {
    let progress = Progress::new(Some(messages), "messages consumed");
    let left = std::cell::Cell::new(messages);
    let begun = Instant::now();
    let mut consumers = Vec::new();
    for client in clients {
        consumers.push(client.consumer(options.clone()).await?);
    }
    let settler = consumers.first().map(Consumer::settler).context("no connection")?;
    let done = tokio::sync::Notify::new();
    let draining = async {
        let drains =
            consumers.iter_mut().map(|consumer| drain_one(consumer, &left, &done, patience, &progress));
        join_all(drains).await.into_iter().collect::<anyhow::Result<Vec<_>>>()
    };
    let mut latencies = Latencies::new();
    let drained = tokio::select! {
        drained = draining => drained?,
        error = sample(&settler, &mut latencies) => return Err(error),
    };
    for consumer in consumers {
        consumer.close().await?;
    }
    let took = begun.elapsed();
    let bytes = drained.iter().map(|(bytes, _)| bytes).sum();
    drained.iter().for_each(|(_, last_ack)| latencies.record(*last_ack));
    Ok(Drained { took, bytes, latencies })
}

/// Consumes until none is left; answers the bytes of its bodies, and how long the last acks took.
async fn drain_one(
    consumer: &mut Consumer,
    left: &std::cell::Cell<u64>,
    done: &tokio::sync::Notify,
    patience: Duration,
    progress: &Progress,
) -> anyhow::Result<(u64, Duration)> {
    let mut bytes = 0;
    while left.get() > 0 {
        let batch = tokio::select! {
            batch = tokio::time::timeout(patience, consumer.next_batch(BATCH_MESSAGES)) => batch,
            () = done.notified() => break,
        };
        let batch = batch.with_context(|| {
            format!("nothing came for {patience:?}, and {} messages are missing", left.get())
        })??;
        for delivery in &batch {
            bytes += delivery.message.body.len() as u64;
            consumer.ack(delivery);
        }
        left.set(left.get().saturating_sub(batch.len() as u64));
        progress.add(batch.len() as u64);
    }
    done.notify_waiters();
    let begun = Instant::now();
    consumer.flush().await?;
    Ok((bytes, begun.elapsed()))
}

/// Measures acks until it is dropped.
async fn sample(settler: &Settler, latencies: &mut Latencies) -> anyhow::Error {
    loop {
        let begun = Instant::now();
        match settler.flush().await {
            Ok(0) => {}
            Ok(_) => latencies.record(begun.elapsed()),
            Err(error) => return error.into(),
        }
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
}
