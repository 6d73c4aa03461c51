//! Replaying and removing dead letters.

use batonmq::client::{Browsed, Client};
use batonmq::model::id::Offset;
use batonmq::model::name::Name;
use batonmq::protocol::request::ReplayTo;
use batonmq::protocol::response::{Replayed, TopicInfo};
use clap::Args;
use serde::Serialize;

use super::letter::{HEAD, Letter};
use super::selection::{SelectArgs, Selection};
use crate::cli::output::{Output, Progress, Table, counted, grouped, print_json, print_line};
use crate::cli::value;

/// For work on letters.
#[derive(Args, Debug)]
pub struct WorkArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Only the letter at this offset of the dead-letter topic; may be given several times
    #[arg(long)]
    offset: Vec<u64>,
    /// At most so many, the oldest first
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    limit: u64,
    /// Only show which letters are meant
    #[arg(long)]
    dry_run: bool,
    /// The result as JSON: how many letters that were, and how many stay for what reason
    #[arg(long)]
    json: bool,
}

/// For replaying.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    #[command(flatten)]
    pub work: WorkArgs,
    /// To all groups of the topic they came from, rather than to the one in which they died
    #[arg(long)]
    all_groups: bool,
    /// To all groups of this topic rather than the one they came from
    #[arg(long, value_name = "TOPIC", value_parser = value::name, conflicts_with = "all_groups")]
    to: Option<Name>,
}

impl ReplayArgs {
    /// Where the letters go.
    pub fn to(&self) -> ReplayTo {
        match &self.to {
            Some(topic) => ReplayTo::Topic(topic.to_string()),
            None if self.all_groups => ReplayTo::AllGroups,
            None => ReplayTo::Group,
        }
    }
}

/// What is done with letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    Replay(ReplayTo),
    Purge,
}

/// What became of them.
#[derive(Default, Serialize)]
struct Worked {
    letters: u64,
    gone: u64,
    held: u64,
    homeless: u64,
    groupless: u64,
    unwanted: u64,
    last_values: u64,
    unreadable: u64,
}

impl Worked {
    fn add(&mut self, replayed: Replayed) {
        self.letters += replayed.replayed;
        self.gone += replayed.gone;
        self.held += replayed.held;
        self.homeless += replayed.homeless;
        self.groupless += replayed.groupless;
        self.unwanted += replayed.unwanted;
        self.last_values += replayed.last_values;
        self.unreadable += replayed.unreadable;
    }

    /// What is to be said of letters that are still there or were not there any more.
    fn rest(&self) -> String {
        let said = [
            (self.gone, "gone meanwhile, perhaps by an earlier try of this command"),
            (self.held, "kept: with a consumer of the dead-letter topic"),
            (self.homeless, "kept: the topic they came from is gone, give another with --to"),
            (
                self.groupless,
                "kept: the group in which they died is gone, make it again or give --all-groups",
            ),
            (self.unwanted, "kept: the filter of the group in which they died does not match them any more"),
            (
                self.last_values,
                "kept: their topic keeps last values, and each would be the newest of its key for \
                                every group; give --all-groups if that is meant",
            ),
            (self.unreadable, "kept: the store cannot read them, the log of the node says why"),
        ];
        let said = said.into_iter().filter(|(count, _)| *count > 0);
        said.map(|(count, what)| format!("; {} {what}", grouped(count))).collect()
    }
}

/// Runs it.
pub async fn run(args: &WorkArgs, work: &Work) -> anyhow::Result<()> {
    let mut selection = Selection::new(&args.select)?;
    selection.offsets = args.offset.iter().copied().collect();
    let client = args.select.client.connect().await?;
    let places = selection.places(&client, &args.select).await?;
    if args.dry_run {
        show(args, &client, &selection, &places).await?;
        client.close().await;
        return Ok(());
    }
    let progress = Progress::new(None, "letters");
    let (mut worked, mut left) = (Worked::default(), args.limit);
    for place in &places {
        let mut pages = selection.pages(&client, place, left);
        while let Some(page) = pages.next().await? {
            left -= page.len() as u64;
            if !page.is_empty() {
                worked.add(work_on(&client, place, &page, work).await?);
                progress.at(worked.letters);
            }
        }
    }
    drop(progress);
    client.close().await;
    if args.json {
        return print_json(&worked);
    }
    let done = if *work == Work::Purge { "removed" } else { "replayed" };
    print_line(format!("{} {done}{}", counted(worked.letters, "dead letter"), worked.rest()))
}

async fn work_on(
    client: &Client,
    place: &TopicInfo,
    letters: &[Browsed],
    work: &Work,
) -> anyhow::Result<Replayed> {
    let offsets: Vec<Offset> = letters.iter().map(|letter| letter.offset).collect();
    match work {
        Work::Replay(to) => Ok(client.replay_dead_letters(place.topic, offsets, to.clone()).await?),
        Work::Purge => {
            let dropped = client.drop_messages(place.topic, offsets).await?;
            Ok(Replayed { replayed: dropped, held: letters.len() as u64 - dropped, ..Replayed::default() })
        }
    }
}

/// Shows which letters are meant.
async fn show(
    args: &WorkArgs,
    client: &Client,
    selection: &Selection,
    places: &[TopicInfo],
) -> anyhow::Result<()> {
    let mut output = Output::new();
    let mut table = Table::new(&HEAD);
    let mut count = 0;
    for place in places {
        let mut pages = selection.pages(client, place, args.limit - count);
        while let Some(page) = pages.next().await? {
            count += page.len() as u64;
            for browsed in &page {
                let letter = Letter::new(&place.name, browsed);
                if args.json { output.json(&letter)? } else { table.row(letter.row()) }
            }
        }
    }
    if !args.json {
        table.print(&mut output)?;
        output.line(format_args!("{} meant; nothing was done", counted(count, "dead letter")))?;
    }
    output.flush()
}
