//! `baton dead-letter`: look at, replay and remove the messages that failed for good.
//!
//! A dead-letter topic is a topic like any other. Listing browses it, without any effect. Replay and purge work
//! through it as the group `baton.dead-letter`, which never gives up on a message: a letter is settled there when it
//! has been replayed and that is confirmed, or purged. Settled letters go when every other group of the dead-letter
//! topic has had them as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use batonmq::client::{Browsed, Client, ConsumerOptions, Delivery, ProducerOptions, PullConsumer, Topic};
use batonmq::model::id::Offset;
use batonmq::model::message::Message;
use batonmq::model::name::Name;
use batonmq::model::settings::{GroupSettings, Start};
use batonmq::protocol::response::TopicInfo;
use bytes::Bytes;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::client::ClientArgs;
use super::group::dead_letter_topic;
use super::output::{Output, Progress, Table, counted, grouped, print_json, print_line};
use super::received::Content;
use super::value;

/// The group under which letters are replayed and purged.
const GROUP: &str = "baton.dead-letter";
/// How long the group may hold a letter.
const LEASE_MS: u64 = 600_000;
/// What names of dead-letter topics end with where nothing else is configured.
const SUFFIX: &str = ".dead-letter";
/// Letters read or taken at a time.
const BATCH: u32 = 500;
/// Bytes of letters taken at a time; one larger letter comes alone.
const BATCH_BYTES: u64 = 16 << 20;
/// How long to wait for letters that the group has not been handed.
const PULL_WAIT: Duration = Duration::from_secs(1);
/// Header of a replayed message: the dead-letter topic and the offset there.
const REPLAY_HEADER: &str = "baton.replay.of";

const TOPIC_HEADER: &str = "baton.dead.topic";
const GROUP_HEADER: &str = "baton.dead.group";
const ATTEMPTS_HEADER: &str = "baton.dead.attempts";
const REASON_HEADER: &str = "baton.dead.reason";
const DIED_HEADER: &str = "baton.dead.at";
const OFFSET_HEADER: &str = "baton.dead.offset";

/// Look at, replay and remove messages that failed for good.
#[derive(Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// The dead letters of a topic
    List(ListArgs),
    /// One dead letter with its headers and its body
    Show(ShowArgs),
    /// Publish dead letters to the topic they came from, once more
    #[command(after_help = "\
A letter is published first, and removed when that is confirmed: none is lost. Where replay is killed in between, or
meets a takeover, the letters of the moment are published again by the next one. Such a message can be told by its
header `baton.replay.of`, the dead-letter topic and the offset there. Every group of the topic gets a replayed message,
not only the one that had failed. It keeps the headers that tell its history.

Examples:
  baton dead-letter replay orders
  baton dead-letter replay orders --group billing
  baton dead-letter replay orders --offset 17")]
    Replay(WorkArgs),
    /// Remove dead letters for good
    Purge(WorkArgs),
}

/// What letters are meant.
#[derive(Args, Debug)]
pub struct SelectArgs {
    /// The topic the letters came from, or a dead-letter topic
    #[arg(value_parser = value::name)]
    topic: Name,
    /// Only letters of this group
    #[arg(long, value_parser = value::name)]
    group: Option<Name>,
    #[command(flatten)]
    client: ClientArgs,
}

/// For a list.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// One JSON object a line for each letter, without key and body
    #[arg(long)]
    json: bool,
}

/// For one letter.
#[derive(Args, Debug)]
pub struct ShowArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Its offset in the dead-letter topic
    offset: u64,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// For work on letters.
#[derive(Args, Debug)]
pub struct WorkArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Only the letter at this offset of the dead-letter topic
    #[arg(long)]
    offset: Option<u64>,
    /// The result as JSON: letters
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub async fn run(command: DeadLetterCommand) -> anyhow::Result<()> {
    match command {
        DeadLetterCommand::List(args) => list(&args).await,
        DeadLetterCommand::Show(args) => show(&args).await,
        DeadLetterCommand::Replay(args) => work(&args, Work::Replay).await,
        DeadLetterCommand::Purge(args) => work(&args, Work::Purge).await,
    }
}

/// Which letters are meant, and where they are.
struct Selection {
    /// The dead-letter topics to look into.
    places: Vec<TopicInfo>,
    /// The topic the letters came from; `None` for any.
    origin: Option<Name>,
    group: Option<Name>,
}

impl Selection {
    async fn find(client: &Client, args: &SelectArgs) -> anyhow::Result<Self> {
        let topics = client.topics().await?;
        let groups = client.groups(None).await?;
        let of_group = |topic: &str, dead_letter: Option<&Name>| dead_letter_topic(topic, dead_letter);
        let all: BTreeSet<String> =
            groups.iter().map(|group| of_group(&group.topic, group.settings.dead_letter.as_ref())).collect();
        let mut of_topic: BTreeSet<String> = groups
            .iter()
            .filter(|group| group.topic == args.topic.as_str())
            .map(|group| of_group(&group.topic, group.settings.dead_letter.as_ref()))
            .collect();
        of_topic.insert(of_group(args.topic.as_str(), None));
        let exists = topics.iter().any(|topic| topic.name == args.topic.as_str());
        let is_place = args.topic.as_str().ends_with(SUFFIX) || all.contains(args.topic.as_str());
        let (wanted, origin) = if exists && is_place {
            (BTreeSet::from([args.topic.to_string()]), None)
        } else {
            (of_topic, Some(args.topic.clone()))
        };
        let places: Vec<TopicInfo> =
            topics.into_iter().filter(|topic| wanted.contains(&topic.name)).collect();
        anyhow::ensure!(exists || !places.is_empty(), "there is no topic {}", args.topic);
        Ok(Self { places, origin, group: args.group.clone() })
    }

    /// Whether the letter is meant. What is no letter never is.
    fn takes(&self, message: &Message) -> bool {
        let is = |header, wanted: &Option<Name>| match (message.header(header), wanted) {
            (Some(value), Some(wanted)) => value == wanted.as_str().as_bytes(),
            (Some(_), None) => true,
            (None, _) => false,
        };
        is(TOPIC_HEADER, &self.origin) && is(GROUP_HEADER, &self.group)
    }
}

/// A letter in a list.
#[derive(Serialize)]
struct Letter<'a> {
    dead_letter_topic: &'a str,
    offset: u64,
    topic: String,
    origin_offset: Option<u64>,
    group: String,
    attempts: Option<u32>,
    reason: String,
    died_at: String,
    bytes: usize,
}

impl<'a> Letter<'a> {
    fn new(place: &'a str, letter: &Browsed) -> Self {
        let message = &letter.message;
        Self {
            dead_letter_topic: place,
            offset: letter.offset.0,
            topic: header_text(message, TOPIC_HEADER),
            origin_offset: header_text(message, OFFSET_HEADER).parse().ok(),
            group: header_text(message, GROUP_HEADER),
            attempts: header_text(message, ATTEMPTS_HEADER).parse().ok(),
            reason: header_text(message, REASON_HEADER),
            died_at: header_text(message, DIED_HEADER),
            bytes: message.body.len(),
        }
    }
}

fn header_text(message: &Message, name: &str) -> String {
    message.header(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let client = args.select.client.connect().await?;
    let selection = Selection::find(&client, &args.select).await?;
    let mut left = args.limit;
    let mut output = Output::new();
    let mut table = Table::new(&["offset", "topic", "group", "attempts", "reason", "died at", "bytes"]);
    for place in &selection.places {
        let mut from = place.start;
        while left > 0 {
            let page = client.browse(&place.name, from, BATCH).await?;
            let Some(last) = page.last() else { break };
            from = last.offset.next();
            for letter in page.iter().filter(|letter| selection.takes(&letter.message)).take(left) {
                left -= 1;
                let view = Letter::new(&place.name, letter);
                if args.json {
                    output.json(&view)?;
                    continue;
                }
                let attempts = view.attempts.map_or_else(|| "-".to_owned(), |count| count.to_string());
                let bytes = grouped(view.bytes as u64);
                let offset = view.offset.to_string();
                table.row([offset, view.topic, view.group, attempts, view.reason, view.died_at, bytes]);
            }
        }
    }
    client.close().await;
    if !args.json {
        table.print(&mut output)?;
    }
    output.flush()
}

async fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let client = args.select.client.connect().await?;
    let selection = Selection::find(&client, &args.select).await?;
    let mut found = None;
    for place in &selection.places {
        let page = client.browse(&place.name, Offset(args.offset), 1).await?;
        let letter = page.into_iter().find(|letter| letter.offset.0 == args.offset);
        found = found.or(letter.filter(|letter| selection.takes(&letter.message)));
    }
    client.close().await;
    let letter = found.with_context(|| {
        format!("there is no dead letter at offset {} for {}", args.offset, args.select.topic)
    })?;
    let mut output = Output::new();
    if args.json {
        output.json(&Content::new(&letter.message))?;
        return output.flush();
    }
    if let Some(key) = &letter.message.key {
        output.line(format_args!("key: {}", String::from_utf8_lossy(key)))?;
    }
    for (name, value) in &letter.message.headers {
        output.line(format_args!("{name}: {}", String::from_utf8_lossy(value)))?;
    }
    output.line("")?;
    output.bytes(&letter.message.body)?;
    output.line("")?;
    output.flush()
}

/// What is done with letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Replay,
    Purge,
}

#[derive(Serialize)]
struct Worked {
    letters: u64,
}

async fn work(args: &WorkArgs, work: Work) -> anyhow::Result<()> {
    let client = args.select.client.connect().await?;
    let selection = Selection::find(&client, &args.select).await?;
    let mut letters = 0;
    for place in &selection.places {
        letters += work_through(&client, place, &selection, args.offset, work).await?;
    }
    client.close().await;
    if args.json {
        return print_json(&Worked { letters });
    }
    let done = if work == Work::Replay { "replayed and confirmed" } else { "removed" };
    print_line(format!("{} {done}", counted(letters, "dead letter")))
}

/// Works through the letters that are there now; what dies meanwhile is left for the next time.
async fn work_through(
    client: &Client,
    place: &TopicInfo,
    selection: &Selection,
    only: Option<u64>,
    work: Work,
) -> anyhow::Result<u64> {
    let settings = GroupSettings { max_attempts: 0, lease_ms: LEASE_MS, ..GroupSettings::default() };
    let options = ConsumerOptions {
        start: Start::Earliest,
        settings: Some(settings),
        ..ConsumerOptions::new(place.name.as_str(), GROUP)
    };
    let mut consumer = client.pull_consumer(options).await?;
    let progress = Progress::new(None, "letters");
    let mut replayer = Replayer { client, producer: None, topics: BTreeMap::new() };
    let mut count = 0;
    loop {
        let batch = consumer.pull(BATCH, BATCH_BYTES, PULL_WAIT).await?;
        let behind = batch.iter().any(|letter| letter.offset() >= place.end);
        let found_all = batch.is_empty() || behind;
        // What is not meant stays in flight until the end, so that it does not come again.
        let meant: Vec<Delivery> = batch
            .into_iter()
            .filter(|letter| letter.offset() < place.end && selection.takes(&letter.message))
            .filter(|letter| only.is_none_or(|only| letter.offset().0 == only))
            .collect();
        if work == Work::Replay {
            replayer.publish(&place.name, &meant).await?;
        }
        count += settle(&consumer, &meant).await?;
        progress.at(count);
        if found_all || (only.is_some() && !meant.is_empty()) {
            break;
        }
    }
    consumer.close().await?;
    Ok(count)
}

async fn settle(consumer: &PullConsumer, letters: &[Delivery]) -> anyhow::Result<u64> {
    letters.iter().for_each(|letter| consumer.ack(letter));
    let settled = consumer.flush().await.context("letters may be replayed again by the next replay")?;
    anyhow::ensure!(
        settled >= letters.len() as u64,
        "{} could not be settled in time and will be replayed again by the next replay",
        counted(letters.len() as u64 - settled, "letter")
    );
    Ok(settled)
}

/// Publishes letters to the topics they came from.
struct Replayer<'a> {
    client: &'a Client,
    producer: Option<batonmq::client::Producer>,
    topics: BTreeMap<String, Topic>,
}

impl Replayer<'_> {
    /// Publishes the letters; when it returns all of them are confirmed.
    async fn publish(&mut self, place: &str, letters: &[Delivery]) -> anyhow::Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let producer = match &self.producer {
            Some(producer) => producer.clone(),
            None => self.client.producer(ProducerOptions::default()).await?,
        };
        self.producer = Some(producer.clone());
        for letter in letters {
            let origin = header_text(&letter.message, TOPIC_HEADER);
            let topic = match self.topics.get(&origin) {
                Some(topic) => topic.clone(),
                None => self.client.topic(&origin).await?,
            };
            self.topics.insert(origin, topic.clone());
            let offset = letter.offset();
            producer
                .publish(&topic, &replayed(place, letter))
                .await
                .with_context(|| format!("letter {offset} of {place} cannot be replayed"))?;
        }
        producer.flush().await?;
        Ok(())
    }
}

/// The message that is published for a letter.
fn replayed(place: &str, letter: &Delivery) -> Message {
    let mut message = letter.message.clone();
    message.headers.retain(|(name, _)| name != REPLAY_HEADER);
    let of = format!("{place}:{}", letter.offset());
    message.headers.push((REPLAY_HEADER.to_owned(), Bytes::from(of)));
    // The times of the first life are over.
    message.deliver_at = None;
    message.expires_at = None;
    message
}
