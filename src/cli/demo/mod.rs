//! `baton demo`: the main job, before the eyes of whoever asks: a pair, a kill in the middle, nothing lost.
//!
//! Real processes, real files, real text. What is claimed is checked: every message is compared byte by byte, and any
//! difference ends it with code 1.

mod input;
mod pair;
mod received;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use batonmq::client::{Client, ClientOptions, Producer, ProducerOptions, Ticket, Topic};
use batonmq::model::message::Message;
use batonmq::store::Mode;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde::Serialize;

use self::input::{Input, Kind};
use self::pair::Pair;
use self::received::consume;
use super::output::{Progress, bytes_text, grouped, print_json, print_line};
use super::signals::Signals;

/// The group that consumes.
const GROUP: &str = "demo";
/// Header with the number of a message in the input.
const NUMBER_HEADER: &str = "demo-number";
/// How long one mode may take in all.
const RUN_MAX: Duration = Duration::from_secs(14);

/// Show the main job: a pair, a kill in the middle, everything is there.
///
/// Starts two nodes on one temporary store, publishes lines of text and files of this machine, kills the master with
/// SIGKILL in the middle, consumes everything through the other node, compares every byte, and tells how long the
/// takeover took as the publisher saw it. For both modes of the store; ends within 30 seconds; leaves nothing behind.
/// Ends with 1 where anything is lost, changed, out of order or stored twice.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Only this mode
    #[arg(long, value_enum)]
    mode: Option<DemoMode>,
    /// One JSON object: ok, and runs with mode, messages, bytes, takeover_ms, delivered_again, seconds
    #[arg(long)]
    json: bool,
}

/// A mode of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DemoMode {
    /// A database.
    Database,
    /// A journal.
    File,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    runs: Vec<Run>,
}

#[derive(Serialize)]
struct Run {
    mode: Mode,
    messages: u64,
    bytes: u64,
    confirmed_before_kill: u64,
    takeover_ms: f64,
    delivered_again: u64,
    seconds: f64,
}

/// Runs it. A signal ends it like everything else: the nodes end and their store goes.
pub async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    tokio::select! {
        shown = show(args) => shown,
        end = signals.next() => Err(end.into()),
    }
}

async fn show(args: DemoArgs) -> anyhow::Result<()> {
    let modes = match args.mode {
        Some(DemoMode::Database) => vec![Mode::Database],
        Some(DemoMode::File) => vec![Mode::File],
        None => vec![Mode::Database, Mode::File],
    };
    let say = Narrator { silent: args.json };
    let input = Arc::new(Input::read());
    say.line(format!(
        "{} lines from {}, {} files from {}: {}, the largest {}",
        grouped(input.count(Kind::Line)),
        input.lines_from,
        grouped(input.count(Kind::File)),
        input.files_from,
        bytes_text(input.bytes()),
        bytes_text(input.largest()),
    ))?;
    let mut runs = Vec::new();
    for mode in modes {
        say.line(format!("\nmode {mode}"))?;
        let mut pair = Pair::start(mode).await?;
        let run = tokio::time::timeout(RUN_MAX, one(mode, &input, &mut pair, &say)).await;
        let run =
            run.with_context(|| format!("mode {mode} took longer than {RUN_MAX:?}")).and_then(|run| run);
        runs.push(run.with_context(|| format!("mode {mode} failed; the nodes said last:\n{}", pair.logs()))?);
    }
    if args.json {
        return print_json(&Report { ok: true, runs });
    }
    say.line("\nNothing was lost, changed, out of order or stored twice.".to_owned())
}

/// One run in one mode.
async fn one(mode: Mode, input: &Arc<Input>, pair: &mut Pair, say: &Narrator) -> anyhow::Result<Run> {
    let begun = Instant::now();
    say.line(format!("  two nodes serve {}: a is master, b stands by", pair.dir().display()))?;
    let options = ClientOptions { servers: pair.servers(), timeout: RUN_MAX, ..ClientOptions::default() };
    let client = Client::connect(options.clone()).await?;
    let consumers = [Kind::Line, Kind::File].map(|kind| {
        let (options, input) = (options.clone(), input.clone());
        tokio::spawn(async move { consume(Client::connect(options).await?, input, kind).await })
    });
    let producer = client.producer(ProducerOptions::default()).await?;
    let publishing = tokio::spawn(publish(client.clone(), producer.clone(), input.clone()));
    let watching = tokio::spawn(longest_gap(producer.clone(), input.items.len() as u64));
    producer.confirmed(Ticket(input.items.len() as u64 / 2)).await?;
    let confirmed_before_kill = producer.confirmed_up_to().0;
    pair.kill("a")?;
    say.line(format!("  {} messages confirmed: a killed with SIGKILL", grouped(confirmed_before_kill)))?;
    publishing.await??;
    let gap = watching.await??;
    let takeover_ms = (gap.as_secs_f64() * 1e6).round() / 1e3;
    let node = client.master().map(|master| master.welcome.node.clone()).unwrap_or_default();
    say.line(format!("  {node} took over; the publisher waited {takeover_ms:.0} ms for a confirm, at most"))?;
    let mut delivered_again = 0;
    for consumer in consumers {
        delivered_again += consumer.await??.again;
    }
    stored_once(&client, input).await?;
    let messages = input.items.len() as u64;
    say.line(format!(
        "  all {} messages came out as they went in, {} of them again after the takeover",
        grouped(messages),
        grouped(delivered_again)
    ))?;
    client.close().await;
    pair.stop("b").await?;
    let seconds = (begun.elapsed().as_secs_f64() * 1e3).round() / 1e3;
    say.line(format!("  {seconds:.1} s"))?;
    Ok(Run {
        mode,
        messages,
        bytes: input.bytes(),
        confirmed_before_kill,
        takeover_ms,
        delivered_again,
        seconds,
    })
}

/// The topic of a kind.
fn topic_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Line => "lines",
        Kind::File => "files",
    }
}

/// Publishes the input in its order and waits until all of it is confirmed.
async fn publish(client: Client, producer: Producer, input: Arc<Input>) -> anyhow::Result<()> {
    let topics: [Topic; 2] =
        [client.topic(topic_of(Kind::Line)).await?, client.topic(topic_of(Kind::File)).await?];
    let progress = Progress::new(Some(input.items.len() as u64), "messages published");
    for (number, item) in input.items.iter().enumerate() {
        let message = Message {
            headers: vec![(NUMBER_HEADER.to_owned(), Bytes::from(number.to_string()))],
            ..Message::new(item.body.clone())
        };
        producer.publish(&topics[item.kind as usize], &message).await?;
        progress.at(producer.confirmed_up_to().0);
    }
    Ok(producer.flush().await?)
}

/// The longest time between two confirms while there was something to confirm.
async fn longest_gap(producer: Producer, messages: u64) -> anyhow::Result<Duration> {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    let mut confirmed = producer.confirmed_up_to();
    while confirmed.0 < messages {
        producer.confirmed(Ticket(confirmed.0 + 1)).await?;
        confirmed = producer.confirmed_up_to();
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    Ok(longest)
}

/// Checks that the topics have had exactly as many messages as were published.
async fn stored_once(client: &Client, input: &Input) -> anyhow::Result<()> {
    let topics = client.topics().await?;
    for kind in [Kind::Line, Kind::File] {
        let name = topic_of(kind);
        let stored = topics.iter().find(|topic| topic.name == name).map_or(0, |topic| topic.end.0);
        let published = input.count(kind);
        anyhow::ensure!(
            stored == published,
            "STORED TWICE: {stored} messages in {name}, {published} published"
        );
    }
    Ok(())
}

/// Tells the story, unless only the result is wanted.
struct Narrator {
    silent: bool,
}

impl Narrator {
    fn line(&self, text: String) -> anyhow::Result<()> {
        if self.silent { Ok(()) } else { print_line(text) }
    }
}
