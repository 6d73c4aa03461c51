//! `baton store dump`: the messages of a store that no node serves, or of a backup, for people and programs.

use std::path::PathBuf;

use anyhow::Context;
use batonmq::model::chunk::{Chunk, Origin};
use batonmq::model::id::{Offset, Sequence};
use batonmq::model::message::Message;
use batonmq::model::name::Name;
use batonmq::model::position::Position;
use batonmq::model::snapshot::{Snapshot, TopicState};
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::offline::OfflineError;
use clap::Args;
use serde::Serialize;

use super::restore::open;
use crate::cli::output::{Output, bytes_text};
use crate::cli::received::Content;
use crate::cli::value;

/// Characters of a body that are shown to people.
const SHOWN_CHARS: usize = 80;

/// Print the messages of a store that no node serves, of a backup, or of an archive.
///
/// Topic after topic, each priority of one in its order, whether they are settled or not; what all groups have settled
/// may be gone. The offset of a message with a priority has that before it, as in 9:17. One that is to be delivered later
/// has no offset yet. Nothing is changed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  baton store dump /backups/monday --topic orders --from 1000 --count 10
  baton store dump - --json < monday.baton | jq .body")]
pub struct DumpArgs {
    /// The directory of a store or a backup, an archive, or - for an archive on standard input
    #[arg(value_name = "BACKUP")]
    from_store: PathBuf,
    /// Only this topic
    #[arg(long, value_parser = value::name)]
    topic: Option<Name>,
    /// Only messages from this offset on, in each topic and priority
    #[arg(long, value_name = "OFFSET", default_value = "0")]
    from: u64,
    /// At most so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// One JSON object a line: topic, offset, published_at, producer, sequence, priority, deliver_at, expires_at, key, headers, body
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Dumped<'a> {
    topic: &'a str,
    /// Of those with its priority; one that is to be delivered later has none.
    offset: Option<u64>,
    published_at: String,
    producer: Option<String>,
    sequence: Option<u64>,
    priority: u8,
    deliver_at: Option<String>,
    expires_at: Option<String>,
    #[serde(flatten)]
    content: Content<'a>,
}

/// What ends a dump.
enum End {
    /// All that was asked for is written.
    Enough,
    Failed(anyhow::Error),
}

impl From<batonmq::store::archive::ArchiveError> for End {
    fn from(error: batonmq::store::archive::ArchiveError) -> Self {
        Self::Failed(OfflineError::from(error).into())
    }
}

/// Runs it.
pub fn run(args: &DumpArgs) -> anyhow::Result<()> {
    let origin = open(&args.from_store)?;
    let snapshot = origin.source.snapshot().clone();
    if let Some(topic) = &args.topic
        && !snapshot.topics.values().any(|state| state.name == *topic)
    {
        anyhow::bail!("there is no topic {topic} in {}", args.from_store.display());
    }
    let mut output = Output::new();
    let mut left = args.count.unwrap_or(u64::MAX);
    let dumped = origin.source.read(|topic, chunk| {
        if left == 0 {
            return Err(End::Enough);
        }
        let state = &snapshot.topics[&topic];
        if args.topic.as_ref().is_some_and(|wanted| state.name != *wanted) {
            return Ok(());
        }
        // Notes of messages that will expire are no messages.
        if matches!(state.kind, TopicKind::Slot { waiting: Waiting::Expiring, .. }) {
            return Ok(());
        }
        write(&mut output, args, &snapshot, state, chunk, &mut left).map_err(End::Failed)
    });
    match dumped {
        Ok(_) | Err(End::Enough) => output.flush(),
        Err(End::Failed(error)) => {
            // What was readable is told before what is not.
            output.flush()?;
            Err(error)
        }
    }
}

fn write(
    output: &mut Output,
    args: &DumpArgs,
    snapshot: &Snapshot,
    topic: &TopicState,
    chunk: &Chunk,
    left: &mut u64,
) -> anyhow::Result<()> {
    let (name, is_placed) = (&topic.name, !matches!(topic.kind, TopicKind::Slot { .. }));
    let mut index = 0;
    for stamp in &chunk.stamps {
        for number in 0..u64::from(stamp.count) {
            let offset = Offset(chunk.first.0 + index as u64);
            let at = index;
            index += 1;
            let from = if is_placed { offset } else { Offset(0) };
            if from.0 < args.from || *left == 0 {
                continue;
            }
            *left -= 1;
            let message = chunk.block.message(at).with_context(|| format!("message {offset} of {name}"))?;
            let origin = stamp
                .origin
                .map(|origin| Origin { sequence: Sequence(origin.sequence.0 + number), ..origin });
            let producer = origin.map(|origin| {
                let known = snapshot.producers.get(&origin.producer);
                known.map_or_else(|| origin.producer.to_string(), |producer| producer.name.to_string())
            });
            if args.json {
                output.json(&Dumped {
                    topic: name.as_str(),
                    offset: is_placed.then_some(offset.0),
                    published_at: stamp.published_at.to_string(),
                    producer,
                    sequence: origin.map(|origin| origin.sequence.0),
                    priority: message.priority,
                    deliver_at: message.deliver_at.map(|at: Timestamp| at.to_string()),
                    expires_at: message.expires_at.map(|at: Timestamp| at.to_string()),
                    content: Content::new(&message),
                })?;
            } else {
                let producer = producer.unwrap_or_else(|| "-".to_owned());
                let position = Position { priority: topic.kind.priority(), offset };
                let position = if is_placed { position.to_string() } else { "-".to_owned() };
                output.line(format_args!(
                    "{name} {position}  {}  {producer}  {}",
                    stamp.published_at,
                    body_text(&message)
                ))?;
            }
        }
    }
    Ok(())
}

/// The beginning of a body, or how long one is that is no text.
fn body_text(message: &Message) -> String {
    match std::str::from_utf8(&message.body) {
        Ok(text) => {
            let mut shown: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
            if text.chars().nth(SHOWN_CHARS).is_some() {
                shown.push_str("...");
            }
            shown
        }
        Err(_) => bytes_text(message.body.len() as u64),
    }
}
