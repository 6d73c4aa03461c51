//! `baton schedule`: look at and cancel messages that are to be delivered later.

use std::collections::BTreeMap;

use batonmq::client::{Browsed, Client, ClientError};
use batonmq::model::filter::Filter;
use batonmq::model::id::{Offset, TopicId};
use batonmq::model::limits::CANCELLED_MAX;
use batonmq::model::name::Name;
use batonmq::protocol::error::ErrorCode;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::client::ClientArgs;
use super::exit::End;
use super::filter;
use super::output::{Output, Table, counted, grouped, print_json, print_line};
use super::received::Content;
use super::value;

/// Characters of a body that a table shows.
const SHOWN_CHARS: usize = 40;
/// Messages read at a time.
const BATCH: u32 = 1000;
/// How often the slots are gone through while there are new ones: a message moves a few times before it is due.
const PASSES_MAX: usize = 8;

/// Look at and cancel messages that are to be delivered later.
#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// The delayed messages of a topic; those that are due first come first, about
    List(ListArgs),
    /// Drop delayed messages for good
    #[command(after_help = "\
A message is named as the list names it. It may have another number once its time comes near: one that is not found is
not cancelled, and the number of those that were is said.

Examples:
  baton schedule cancel reminders 17:3 17:5
  baton schedule cancel reminders --filter \"@key = 'order-4711'\"")]
    Cancel(CancelArgs),
}

/// For a list.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// The topic
    #[arg(value_parser = value::name)]
    topic: Name,
    /// Only messages for which this is true, as in `price > 100`
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u64,
    /// One JSON object a line for each message
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// For cancelling.
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// The topic
    #[arg(value_parser = value::name)]
    topic: Name,
    /// The messages, as the list names them
    #[arg(value_name = "SLOT:OFFSET", value_parser = id)]
    messages: Vec<(TopicId, Offset)>,
    /// All messages for which this is true, as in `@key = 'order-4711'`
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "messages")]
    filter: Option<String>,
    /// The result as JSON: cancelled
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct Delayed<'a> {
    id: String,
    due_at: String,
    expires_at: Option<String>,
    priority: u8,
    published_at: String,
    #[serde(flatten)]
    content: Content<'a>,
}

#[derive(Serialize)]
struct Cancelled {
    cancelled: u64,
}

/// Runs it.
pub async fn run(command: ScheduleCommand) -> anyhow::Result<()> {
    match command {
        ScheduleCommand::List(args) => list(&args).await,
        ScheduleCommand::Cancel(args) => cancel(&args).await,
    }
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let filter = filter::parse(args.filter.as_deref())?;
    let client = args.client.connect().await?;
    let mut output = Output::new();
    let mut table = Table::new(&["id", "due", "priority", "key", "body"]);
    let mut shown = 0;
    each(&client, &args.topic, filter.as_ref(), |slot, browsed| {
        let (message, id) = (&browsed.message, format!("{slot}:{}", browsed.offset));
        let due_at = message.deliver_at.unwrap_or_default().to_string();
        if args.json {
            output.json(&Delayed {
                id,
                due_at,
                expires_at: message.expires_at.map(|at| at.to_string()),
                priority: message.priority,
                published_at: browsed.published_at.to_string(),
                content: Content::new(message),
            })?;
        } else {
            let key = message.key.as_ref().map_or_else(String::new, |key| shown_of(key));
            table.row([id, due_at, message.priority.to_string(), key, shown_of(&message.body)]);
        }
        shown += 1;
        Ok(shown < args.limit)
    })
    .await?;
    client.close().await;
    if !args.json {
        table.print(&mut output)?;
    }
    output.flush()
}

async fn cancel(args: &CancelArgs) -> anyhow::Result<()> {
    let filter = filter::parse(args.filter.as_deref())?;
    if args.messages.is_empty() && filter.is_none() {
        return Err(End::Usage("nothing to cancel: give SLOT:OFFSET or --filter".to_owned()).into());
    }
    let client = args.client.connect().await?;
    let mut messages = args.messages.clone();
    if filter.is_some() {
        each(&client, &args.topic, filter.as_ref(), |slot, browsed| {
            messages.push((slot, browsed.offset));
            Ok(true)
        })
        .await?;
    }
    let mut cancelled = 0;
    for some in messages.chunks(CANCELLED_MAX) {
        cancelled += client.cancel_delayed(args.topic.as_str(), some.to_vec()).await?;
    }
    client.close().await;
    if args.json {
        return print_json(&Cancelled { cancelled });
    }
    let missing = messages.len() as u64 - cancelled;
    let missing = match missing {
        0 => String::new(),
        missing => {
            format!("; {} not there any more: see `baton schedule list {}`", grouped(missing), args.topic)
        }
    };
    print_line(format!("{} cancelled{missing}", counted(cancelled, "message")))
}

/// The beginning of bytes, as far as they are a text that fits into a line.
pub fn shown_of(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN_CHARS)]);
    let shown: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARS).collect();
    if shown.len() < bytes.len() { format!("{shown}...") } else { shown }
}

/// Shows every delayed message of a topic that the filter matches, as long as that answers true. One that moves to
/// another slot meanwhile is shown there, perhaps once more.
async fn each(
    client: &Client,
    topic: &Name,
    filter: Option<&Filter>,
    mut show: impl FnMut(TopicId, &Browsed) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut read_to: BTreeMap<TopicId, Offset> = BTreeMap::new();
    for _ in 0..PASSES_MAX {
        let mut is_news = false;
        for slot in client.slots(topic.as_str()).await? {
            let mut from = read_to.get(&slot.slot).map_or(slot.start, |read_to| slot.start.max(*read_to));
            is_news |= from < slot.end;
            while from < slot.end {
                let read = match client.browse_slot(slot.slot, from, BATCH).await {
                    Ok(read) => read,
                    // Its time has come: what was in it is in the topic, or in slots of the next pass.
                    Err(ClientError::Refused(refusal)) if refusal.code == ErrorCode::Deleted => break,
                    Err(error) => return Err(error.into()),
                };
                let Some(last) = read.last() else { break };
                from = last.offset.next();
                for browsed in &read {
                    if filter::matches(filter, &browsed.message)? && !show(slot.slot, browsed)? {
                        return Ok(());
                    }
                }
            }
            read_to.insert(slot.slot, from.max(slot.end));
        }
        if !is_news {
            break;
        }
    }
    Ok(())
}

/// A delayed message, `SLOT:OFFSET`.
fn id(text: &str) -> Result<(TopicId, Offset), batonmq::config::value::ValueError> {
    let parts =
        text.split_once(':').and_then(|(slot, offset)| Some((slot.parse().ok()?, offset.parse().ok()?)));
    parts.map(|(slot, offset)| (TopicId(slot), Offset(offset))).ok_or_else(|| {
        batonmq::config::value::ValueError::new(text, "a delayed message SLOT:OFFSET such as 17:3")
    })
}
