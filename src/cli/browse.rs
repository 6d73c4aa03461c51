//! `baton browse`: the messages of a topic, without any effect on it.

use batonmq::client::{BrowseOptions, Browsed};
use batonmq::model::name::Name;
use batonmq::protocol::request::BrowseFrom;
use clap::Args;
use serde::Serialize;

use super::client::ClientArgs;
use super::output::Output;
use super::received::{Content, Format};
use super::selection::SelectionArgs;
use super::value::{self, From};

/// Messages asked for at a time.
const BATCH: u32 = 1000;

/// Write messages of a topic to standard output, without any effect on it.
///
/// No group is needed, and none is touched. Ends behind the last message that is there. With --last, those that were
/// published last come, oldest first.
#[derive(Args, Debug)]
#[command(after_help = "\
Messages without a priority come first, then those of each priority, with offsets of their own: 9:17 is offset 17 of
priority 9. A filter looks at every message of the topic, a mebibyte at a time; nothing is held for it in the node.

Examples:
  baton browse orders --count 10
  baton browse orders --last 10
  baton browse orders --from 2026-11-26T12:00:00Z --key customer-7
  baton browse orders --filter \"region = 'eu' AND price >= 100\" --format json | jq .body")]
pub struct BrowseArgs {
    /// The topic
    #[arg(value_parser = value::name)]
    topic: Name,
    /// Where to begin: earliest, an offset, or a time, with the first message published then or later
    #[arg(long, value_name = "WHERE", value_parser = value::from, default_value = "earliest")]
    from: From,
    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// The newest messages, so many of all priorities; with a filter, of those that match
    #[arg(long, value_name = "N", conflicts_with_all = ["from", "count"],
        value_parser = clap::value_parser!(u64).range(1..))]
    last: Option<u64>,
    /// What to write of a message
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    client: ClientArgs,
}

/// A message in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    topic: &'a str,
    offset: u64,
    priority: u8,
    published_at: String,
    #[serde(flatten)]
    content: Content<'a>,
}

impl<'a> Shown<'a> {
    fn new(message: &'a Browsed) -> Self {
        Self {
            topic: &message.topic,
            offset: message.offset.0,
            priority: message.priority,
            published_at: message.published_at.to_string(),
            content: Content::new(&message.message),
        }
    }
}

/// Runs it.
pub async fn run(args: BrowseArgs) -> anyhow::Result<()> {
    let mut options =
        BrowseOptions { filter: args.selection.filter()?, ..BrowseOptions::new(args.topic.as_str()) };
    match args.from {
        From::Earliest => {}
        From::Position(position) => options.from = BrowseFrom::Position(position),
        From::Time(since) => options.since = since,
    }
    let client = args.client.connect().await?;
    if let Some(last) = args.last {
        let newest = client.browse_newest(&options, last).await?;
        client.close().await;
        return write(&newest, args.format);
    }
    let mut browser = client.browser(options);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let batch = browser.next_batch(u32::try_from(left).unwrap_or(BATCH).min(BATCH)).await?;
        if batch.is_empty() {
            break;
        }
        left -= batch.len() as u64;
        write(&batch, args.format)?;
    }
    client.close().await;
    Ok(())
}

fn write(messages: &[Browsed], format: Format) -> anyhow::Result<()> {
    let mut output = Output::new();
    for message in messages {
        match format {
            Format::Raw => {
                output.bytes(&message.message.body)?;
                output.bytes(b"\n")?;
            }
            Format::Json => output.json(&Shown::new(message))?,
        }
    }
    output.flush()
}
