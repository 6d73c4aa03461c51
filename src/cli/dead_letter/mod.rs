//! `baton dead-letter`: look at, replay and remove the messages that failed for good.
//!
//! A dead-letter topic is a topic like any other. Listing browses it, without any effect. Replay and purge name the
//! letters that are meant to the node by their offsets; each letter is replayed in one commit.

mod letter;
mod selection;
mod work;

use anyhow::Context;
use batonmq::model::id::Offset;
use clap::{Args, Subcommand};

use super::output::{Output, Table};
pub use letter::Letter;
use letter::{HEAD, Whole};
use selection::{SelectArgs, Selection};
use work::{ReplayArgs, Work, WorkArgs};

/// Look at, replay and remove messages that failed for good.
#[derive(Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// The dead letters of a topic
    #[command(after_help = "\
Examples:
  baton dead-letter list orders --group billing --reason rejected
  baton dead-letter list orders --older-than 1d --json
  baton dead-letter list orders --filter \"price > 100 AND customer IS NOT NULL\"")]
    List(ListArgs),
    /// One dead letter with its headers and its body
    Show(ShowArgs),
    /// Give dead letters back to the group in which they died, once more
    #[command(after_help = "\
A letter is published and taken out of the dead letters in one commit: wherever replay or a node is killed, it is in one
of both places, and replay may simply be run again. It keeps key, headers and body; of what made it dead a line remains
in its header `baton.dead.history`. It goes to the topic it came from, and there only to the group in which it died: for
the other groups it is settled. With --all-groups every group gets it, and with --to every group of another topic.

Examples:
  baton dead-letter replay orders --group billing --dry-run
  baton dead-letter replay orders --reason lease-expired --limit 100
  baton dead-letter replay orders --older-than 1d --all-groups
  baton dead-letter replay orders --offset 17 --to orders.check")]
    Replay(ReplayArgs),
    /// Remove dead letters for good
    Purge(WorkArgs),
}

/// For a list.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u64,
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

/// Runs it.
pub async fn run(command: DeadLetterCommand) -> anyhow::Result<()> {
    match command {
        DeadLetterCommand::List(args) => list(&args).await,
        DeadLetterCommand::Show(args) => show(&args).await,
        DeadLetterCommand::Replay(args) => work::run(&args.work, &Work::Replay(args.to())).await,
        DeadLetterCommand::Purge(args) => work::run(&args, &Work::Purge).await,
    }
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let selection = Selection::new(&args.select)?;
    let client = args.select.client.connect().await?;
    let mut output = Output::new();
    let mut table = Table::new(&HEAD);
    let mut left = args.limit;
    let places = selection.places(&client, &args.select).await?;
    for place in &places {
        let mut pages = selection.pages(&client, place, left);
        while let Some(page) = pages.next().await? {
            left -= page.len() as u64;
            for browsed in &page {
                let letter = Letter::new(&place.name, browsed);
                if args.json { output.json(&letter)? } else { table.row(letter.row()) }
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
    let selection = Selection::new(&args.select)?;
    let client = args.select.client.connect().await?;
    let mut found = None;
    let places = selection.places(&client, &args.select).await?;
    for place in places {
        let page = client.browse(&place.name, Offset(args.offset), 1).await?;
        for browsed in page.into_iter().filter(|browsed| browsed.offset.0 == args.offset) {
            if selection.takes(&place.name, &browsed)? {
                found = Some((place.name.clone(), browsed));
            }
        }
    }
    client.close().await;
    let (place, browsed) = found.with_context(|| {
        format!("there is no dead letter at offset {} for {}", args.offset, args.select.topic)
    })?;
    let mut output = Output::new();
    let letter = Letter::new(&place, &browsed);
    if args.json {
        output.json(&Whole::new(letter, &browsed.message))?;
        return output.flush();
    }
    letter.print(&mut output)?;
    if let Some(key) = &browsed.message.key {
        output.line(format_args!("key: {}", String::from_utf8_lossy(key)))?;
    }
    for (name, value) in browsed.message.headers.iter().filter(|(name, _)| !Letter::tells(name)) {
        output.line(format_args!("{name}: {}", String::from_utf8_lossy(value)))?;
    }
    output.line("")?;
    output.bytes(&browsed.message.body)?;
    output.line("")?;
    output.flush()
}
