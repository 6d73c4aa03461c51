//! `baton peek`: what a group will get next, without any effect on it.

use batonmq::client::{BrowseOptions, Browsed};
use batonmq::model::name::Name;
use batonmq::protocol::response::Standing;
use clap::Args;
use serde::Serialize;

use super::client::ClientArgs;
use super::output::{Output, Table, grouped};
use super::received::{Content, Text};
use super::selection::SelectionArgs;
use super::value;

/// Messages asked for at a time.
const BATCH: u32 = 1000;
/// Characters of a key or a reason in a table.
const CELL_CHARS_MAX: usize = 40;

/// Show what a group has not settled: what it will get, and what is to become of it.
///
/// The highest priority comes first; what waits for another attempt stands where it was published. What the filter of
/// the group does not match and what has expired is left out.
#[derive(Args, Debug)]
#[command(after_help = "\
States: waiting (for a consumer), in-flight (a consumer has it), returned (an attempt failed; it waits until the time
shown), dying (on its way to the dead letters).

Examples:
  baton peek orders --group billing
  baton peek orders --group billing --key customer-7 --json")]
pub struct PeekArgs {
    /// The topic, or a pattern of topics as in 'orders.*'
    #[arg(value_parser = value::topic)]
    topic: Name,
    /// The group
    #[arg(long, value_parser = value::name)]
    group: Name,
    /// At most so many messages
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// One JSON object a line for each message, with key, headers and body
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    client: ClientArgs,
}

/// A message in JSON.
#[derive(Serialize)]
struct Seen<'a> {
    topic: &'a str,
    offset: u64,
    priority: u8,
    state: &'static str,
    due_at: Option<String>,
    attempt: u32,
    failure: Option<FailureView<'a>>,
    published_at: String,
    #[serde(flatten)]
    content: Content<'a>,
}

/// How the last attempt failed.
#[derive(Serialize)]
struct FailureView<'a> {
    at: String,
    reason: &'static str,
    text: Option<&'a str>,
}

/// The word for a state, and the time that it lasts to where there is one.
fn state(message: &Browsed) -> (&'static str, Option<String>) {
    match message.state {
        Some(Standing::InFlight) => ("in-flight", None),
        Some(Standing::Returned { due_at }) => ("returned", Some(due_at.to_string())),
        Some(Standing::Dying) => ("dying", None),
        Some(Standing::Waiting) | None => ("waiting", None),
    }
}

/// Runs it.
pub async fn run(args: PeekArgs) -> anyhow::Result<()> {
    let options = BrowseOptions {
        group: Some(args.group.to_string()),
        filter: args.selection.filter()?,
        ..BrowseOptions::new(args.topic.as_str())
    };
    let client = args.client.connect().await?;
    let mut browser = client.browser(options);
    let mut left = args.count;
    let mut output = Output::new();
    let mut table =
        Table::new(&["topic", "offset", "state", "until", "attempt", "published", "key", "bytes", "failure"]);
    while left > 0 {
        let batch = browser.next_batch(u32::try_from(left).unwrap_or(BATCH).min(BATCH)).await?;
        if batch.is_empty() {
            break;
        }
        left -= batch.len() as u64;
        for message in &batch {
            if args.json {
                write_json(&mut output, message)?;
            } else {
                table.row(row(message));
            }
        }
    }
    client.close().await;
    if !args.json {
        table.print(&mut output)?;
    }
    output.flush()
}

fn write_json(output: &mut Output, message: &Browsed) -> anyhow::Result<()> {
    let (state, due_at) = state(message);
    let failure = message.failure.as_ref().map(|failure| FailureView {
        at: failure.at.to_string(),
        reason: failure.reason.word(),
        text: failure.text.as_deref(),
    });
    output.json(&Seen {
        topic: &message.topic,
        offset: message.offset.0,
        priority: message.priority,
        state,
        due_at,
        attempt: message.attempt,
        failure,
        published_at: message.published_at.to_string(),
        content: Content::new(&message.message),
    })
}

fn row(message: &Browsed) -> [String; 9] {
    let (state, until) = state(message);
    let failure = message.failure.as_ref().map(|failure| match &failure.text {
        Some(text) => format!("{}: {text}", failure.reason.word()),
        None => failure.reason.word().to_owned(),
    });
    let key = message.message.key.as_ref().map(|key| {
        // As in JSON, without the quotes: a text, or what stands for bytes that are none.
        let text = serde_json::to_string(&Text(key)).unwrap_or_default();
        text.trim_matches('"').to_owned()
    });
    [
        message.topic.clone(),
        message.position().to_string(),
        state.to_owned(),
        until.unwrap_or_default(),
        message.attempt.to_string(),
        message.published_at.to_string(),
        cell(key.unwrap_or_default()),
        grouped(message.message.body.len() as u64),
        cell(failure.unwrap_or_default()),
    ]
}

/// A text that fits into a line.
fn cell(text: String) -> String {
    let line = text.replace(char::is_control, " ");
    match line.char_indices().nth(CELL_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
