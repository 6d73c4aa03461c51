//! `baton publish`: messages from arguments, lines or files, in order, under one producer.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use batonmq::client::{Client, ClientError, Failure, Producer, ProducerOptions, Topic};
use batonmq::model::message::Message;
use batonmq::model::name::Name;
use batonmq::model::time::Timestamp;
use bytes::Bytes;
use clap::Args;
use serde::Serialize;

use super::client::ClientArgs;
use super::exit::End;
use super::output::{Progress, bytes_text, counted, grouped, print_json, print_line};
use super::value;

/// Messages handed to the client library at a time.
const BATCH_MESSAGES: usize = 1024;
/// Bytes of bodies handed over at a time; one larger body goes alone.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes read from a file of lines at a time.
const READ_BYTES: usize = 256 << 10;
/// Header with the path of the file that a message was made of.
const FILE_NAME_HEADER: &str = "file-name";

/// Publish messages.
///
/// First the bodies given as arguments, then the lines, then the files; all in their order and under one producer.
/// Ends with 0 only when every message was confirmed, that is, is on disk and safe from any single failure.
#[derive(Args, Debug)]
#[command(after_help = "\
With --producer the messages are numbered from 1 in the order of the input, and the broker remembers the last number
it has of that name. Messages up to it are skipped. A script that failed in the middle can so be run again with the
same input and the same name, and nothing is stored twice. More input may be added at the end; a name must not be
used for other input, nor by two commands at a time.

Examples:
  baton publish orders 'one order' 'another one'
  baton publish orders --lines orders.txt --producer import-2026-11-22
  journalctl -f -o cat | baton publish log --lines -
  baton publish scans --files *.pdf --header source=scanner-1")]
pub struct PublishArgs {
    /// The topic
    #[arg(value_parser = value::name)]
    topic: Name,
    /// Bodies, one message each
    #[arg(value_name = "BODY")]
    bodies: Vec<String>,
    /// Publish each line of a file, without its line end; `-` is standard input
    #[arg(long, value_name = "FILE|-")]
    lines: Option<PathBuf>,
    /// Publish each file as one message, its path in the header `file-name`
    #[arg(long, value_name = "PATH", num_args = 1..)]
    files: Vec<PathBuf>,
    /// Key of every message
    #[arg(long)]
    key: Option<String>,
    /// Header of every message; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = value::header)]
    headers: Vec<(String, Bytes)>,
    /// Deliver every message so long after it was read from the input
    #[arg(long, value_name = "TIME", value_parser = value::duration, conflicts_with = "at")]
    delay: Option<Duration>,
    /// Deliver every message at this time, UTC, by the clock of the broker
    #[arg(long, value_name = "TIME", value_parser = value::time)]
    at: Option<Timestamp>,
    /// Every message expires so long after it was read from the input: who has not got it by then never does
    #[arg(long, value_name = "TIME", value_parser = value::duration_above_zero)]
    ttl: Option<Duration>,
    /// Priority of every message, from 0 to 9: higher ones are delivered first
    #[arg(long, value_name = "0-9", value_parser = value::priority, default_value = "0")]
    priority: u8,
    /// Continue this producer: what the broker has of it already is skipped
    #[arg(long, value_name = "NAME", value_parser = value::name)]
    producer: Option<Name>,
    /// The result as JSON: topic, producer, messages, bytes, skipped, seconds
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct Published<'a> {
    topic: &'a str,
    producer: &'a str,
    messages: u64,
    bytes: u64,
    skipped: u64,
    seconds: f64,
}

/// Runs it.
pub async fn run(args: PublishArgs) -> anyhow::Result<()> {
    if args.bodies.is_empty() && args.lines.is_none() && args.files.is_empty() {
        return Err(End::Usage("nothing to publish: give BODY, --lines or --files".to_owned()).into());
    }
    let begun = Instant::now();
    let client = args.client.connect().await?;
    let topic = client.topic(args.topic.as_str()).await?;
    let name = args.producer.as_ref().map(Name::to_string);
    let producer = client.producer(ProducerOptions { name, ..ProducerOptions::default() }).await?;
    let known = (args.lines.is_none()).then_some((args.bodies.len() + args.files.len()) as u64);
    let mut publisher = Publisher {
        skip: producer.last_stored().0,
        progress: Progress::new(known, "messages"),
        body_bytes_max: body_bytes_max(&client),
        delay: args.delay,
        ttl: args.ttl,
        batch: Vec::new(),
        batch_bytes: 0,
        messages: 0,
        bytes: 0,
        skipped: 0,
        topic,
        producer,
    };
    let result = publisher.all(&args).await;
    if let Err(error) = result {
        let confirmed = publisher.confirmed(error.downcast_ref());
        let skipped = publisher.skipped;
        let messages = known.map_or(publisher.messages, |known| known - skipped);
        let earlier = if skipped > 0 { format!(", {skipped} were there already") } else { String::new() };
        return Err(error.context(format!("{confirmed} of {messages} messages were confirmed{earlier}")));
    }
    let published = Published {
        topic: args.topic.as_str(),
        producer: publisher.producer.name(),
        messages: publisher.messages,
        bytes: publisher.bytes,
        skipped: publisher.skipped,
        seconds: begun.elapsed().as_secs_f64(),
    };
    drop(publisher.progress);
    client.close().await;
    if args.json {
        return print_json(&published);
    }
    let skipped = match published.skipped {
        0 => String::new(),
        skipped => format!(", {} were there already", grouped(skipped)),
    };
    let (messages, bytes) = (counted(published.messages, "message"), bytes_text(published.bytes));
    print_line(format!("{messages} ({bytes}) published to {} and confirmed{skipped}", args.topic))
}

/// The largest body that the node takes.
fn body_bytes_max(client: &Client) -> u64 {
    client.master().map_or(u64::MAX, |master| master.welcome.body_bytes_max)
}

struct Publisher {
    topic: Topic,
    producer: Producer,
    progress: Progress,
    body_bytes_max: u64,
    /// Messages of the input that the broker has already and that are still to come.
    skip: u64,
    delay: Option<Duration>,
    ttl: Option<Duration>,
    batch: Vec<Message>,
    batch_bytes: usize,
    /// Messages of the input so far, but for those that the broker had already, and the bytes of their bodies.
    messages: u64,
    bytes: u64,
    skipped: u64,
}

impl Publisher {
    async fn all(&mut self, args: &PublishArgs) -> anyhow::Result<()> {
        let message = Message {
            key: args.key.as_ref().map(|key| Bytes::copy_from_slice(key.as_bytes())),
            headers: args.headers.clone(),
            deliver_at: args.at,
            priority: args.priority,
            ..Message::default()
        };
        for body in &args.bodies {
            self.add(Message { body: Bytes::copy_from_slice(body.as_bytes()), ..message.clone() }).await?;
        }
        if let Some(path) = &args.lines {
            self.lines(path, &message).await?;
        }
        for path in &args.files {
            self.file(path, &message).await?;
        }
        self.send().await?;
        self.producer.flush().await?;
        if self.skip > 0 {
            let had = self.skip + self.skipped;
            let name = self.producer.name();
            tracing::warn!(
                "producer {name} has {had} messages in the broker, the input only {}",
                self.skipped
            );
        }
        Ok(())
    }

    /// How many messages are stored, when publishing has ended with `error`.
    fn confirmed(&self, error: Option<&ClientError>) -> u64 {
        // Decided is more than stored: the refusals that the error has, and those that nobody has asked for.
        let decided = self.producer.confirmed_up_to().0;
        let told = match error {
            Some(ClientError::MessagesRefused(failures)) => failures.as_slice(),
            _ => &[],
        };
        let refused = told.iter().chain(&self.producer.failures()).map(Failure::count).sum();
        decided.saturating_sub(refused)
    }

    async fn lines(&mut self, path: &Path, message: &Message) -> anyhow::Result<()> {
        let input: Box<dyn Read> = match path.to_str() {
            Some("-") => Box::new(std::io::stdin().lock()),
            _ => Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?),
        };
        let mut input = BufReader::with_capacity(READ_BYTES, input);
        loop {
            let mut line = Vec::new();
            let read =
                input.by_ref().take(self.body_bytes_max.saturating_add(2)).read_until(b'\n', &mut line);
            if read.with_context(|| format!("cannot read {}", path.display()))? == 0 {
                return Ok(());
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            self.add(Message { body: line.into(), ..message.clone() }).await?;
            if input.buffer().is_empty() {
                // The next read may wait for whoever writes the lines: these need not.
                self.send().await?;
            }
        }
    }

    async fn file(&mut self, path: &Path, message: &Message) -> anyhow::Result<()> {
        if self.skip > 0 {
            return self.add(Message::default()).await;
        }
        let read = || {
            let mut body = Vec::new();
            File::open(path)?.take(self.body_bytes_max.saturating_add(1)).read_to_end(&mut body).map(|_| body)
        };
        let body = read().with_context(|| format!("cannot read {}", path.display()))?;
        let mut message = Message { body: body.into(), ..message.clone() };
        let name = Bytes::copy_from_slice(path.as_os_str().as_encoded_bytes());
        message.headers.push((FILE_NAME_HEADER.to_owned(), name));
        self.add(message).await.with_context(|| format!("file {}", path.display()))
    }

    async fn add(&mut self, mut message: Message) -> anyhow::Result<()> {
        if self.skip > 0 {
            self.skip -= 1;
            self.skipped += 1;
            self.progress.add(1);
            return Ok(());
        }
        if self.delay.is_some() || self.ttl.is_some() {
            let now = batonmq::client::now();
            message.deliver_at = self.delay.map(|delay| now.after(delay)).or(message.deliver_at);
            message.expires_at = self.ttl.map(|ttl| now.after(ttl));
        }
        self.messages += 1;
        self.bytes += message.body.len() as u64;
        self.batch_bytes += message.body.len();
        self.batch.push(message);
        if self.batch.len() >= BATCH_MESSAGES || self.batch_bytes >= BATCH_BYTES {
            self.send().await?;
        }
        Ok(())
    }

    async fn send(&mut self) -> anyhow::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        match self.producer.send_batch(&self.topic, &self.batch).await {
            Ok(_) => {}
            Err(ClientError::Message(error)) => {
                // What comes before the message in question is published; nothing after it will be.
                let number = self.skipped + self.producer.last_ticket().0 + 1;
                self.producer.flush().await?;
                // Its number is that within what was checked, which is this message alone.
                let text = error.to_string();
                let what = text.split_once(": ").map_or(text.as_str(), |(_, what)| what);
                anyhow::bail!("message {number} of the input: {what}");
            }
            Err(error) => return Err(error.into()),
        }
        self.batch.clear();
        self.batch_bytes = 0;
        self.progress.at(self.skipped + self.producer.confirmed_up_to().0);
        Ok(())
    }
}
