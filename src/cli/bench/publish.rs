//! `baton bench publish`: how many messages are confirmed in a second, and how long a confirm takes.

use clap::Args;
use serde::Serialize;

use super::load::{Clock, LoadArgs, connect, publish};
use super::measure::{Processors, Report};
use crate::cli::output::{print_json, print_line};

/// Measure publishing: latency_us is from publishing to the confirm
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  baton bench publish --messages 1000000 --in-flight 1000
  baton bench publish --messages 10000 --in-flight 1 --size 1024 --json")]
pub struct PublishArgs {
    /// Messages in all
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), default_value_t = 200_000)]
    messages: u64,
    /// Messages that may be unconfirmed on a connection; 1 is one at a time
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000), default_value_t = 1000)]
    in_flight: u64,
    /// Topics, new ones, to which the messages go in turn
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000), default_value_t = 1, conflicts_with = "topic")]
    topics: u32,
    /// Connections
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000), default_value_t = 1)]
    connections: u32,
    #[command(flatten)]
    load: LoadArgs,
}

impl PublishArgs {
    /// Whether there is never more than one message on its way.
    pub fn one_at_a_time(&self) -> bool {
        self.in_flight == 1 && self.connections == 1
    }
}

#[derive(Serialize)]
struct PublishReport<'a> {
    bench: &'static str,
    topic: &'a str,
    topics: u32,
    size: usize,
    in_flight: u64,
    connections: u32,
    #[serde(flatten)]
    report: Report,
}

/// Runs it.
pub async fn run(args: PublishArgs) -> anyhow::Result<()> {
    let topic = args.load.topic()?.repeated(args.topics)?;
    let clients = connect(&args.load.client, args.connections).await?;
    let processors = Processors::begin(args.load.server_pid)?;
    let (in_flight, size) = (args.in_flight, args.load.size);
    let loaded = publish(&clients, &topic.names(), args.messages, in_flight, size, Clock::new()).await?;
    let report = PublishReport {
        bench: "publish",
        topic: topic.name.as_str(),
        topics: args.topics,
        size: args.load.size,
        in_flight: args.in_flight,
        connections: args.connections,
        report: Report::new(args.messages, args.load.size as u64, loaded.took)
            .latencies(&loaded.latencies)
            .cpu(&processors),
    };
    if let Some(client) = clients.first() {
        topic.remove(client).await?;
    }
    if args.load.json {
        return print_json(&report);
    }
    print_line(format!(
        "{} bytes, {} in flight on {} connections, to {} topics",
        report.size, report.in_flight, report.connections, report.topics
    ))?;
    print_line(report.report.text("publish to confirm"))
}
