//! `baton store verify`: reads everything in a store that no node serves, and lists what is damaged.

use std::path::PathBuf;

use anyhow::bail;
use batonmq::model::snapshot::Snapshot;
use batonmq::offline::{self, Damage, Surveyed};
use clap::Args;
use serde::Serialize;

use crate::cli::output::{Output, Progress, bytes_text, counted};

/// Read everything in a store that no node serves, and list each damage: where it is, and which messages it touches.
///
/// Also for backups in a directory. Every checksum of what counts is checked; in a database the database's own check
/// runs too. Nothing is changed. Ends with 0 where all is as it was written, with 1 where something is not.
#[derive(Args, Debug)]
#[command(after_help = "\
Example, with both nodes stopped:
  baton store verify --store /srv/baton")]
pub struct VerifyArgs {
    /// The shared directory, or a backup
    #[arg(long, env = "BATON_STORE", value_name = "DIR", default_value = "./baton-data")]
    store: PathBuf,
    /// One JSON object: messages, bytes, and damages, each with file, position, what, topic, first and end offset
    #[arg(long)]
    json: bool,
}

/// A damage, for programs.
#[derive(Serialize)]
struct DamageView<'a> {
    file: String,
    position: Option<u64>,
    what: &'a str,
    topic: Option<&'a str>,
    first: Option<u64>,
    end: Option<u64>,
}

impl<'a> DamageView<'a> {
    fn new(damage: &'a Damage, snapshot: &'a Snapshot) -> Self {
        let topic = damage.lost.messages().and_then(|(topic, _)| snapshot.topics.get(&topic));
        Self {
            file: damage.path.display().to_string(),
            position: damage.position,
            what: &damage.what,
            topic: topic.map(|topic| topic.name.as_str()),
            first: damage.lost.messages().map(|(_, range)| range.start.0),
            end: damage.lost.messages().map(|(_, range)| range.end.0),
        }
    }

    fn text(&self) -> String {
        let at = self.position.map(|position| format!(", byte {position}")).unwrap_or_default();
        let mut text = format!("{}{at}: {}", self.file, self.what);
        if let (Some(first), Some(end)) = (self.first, self.end) {
            let topic = self.topic.unwrap_or("a topic that is lost");
            text += &format!("; lost: {} of {topic}, from offset {first}", counted(end - first, "message"));
        }
        text
    }
}

#[derive(Serialize)]
struct Verified<'a> {
    messages: u64,
    bytes: u64,
    damages: Vec<DamageView<'a>>,
}

/// Reads everything, with progress on a terminal.
pub fn survey(store: &std::path::Path) -> anyhow::Result<Surveyed> {
    let progress = Progress::new(None, "messages");
    Ok(offline::verify(store, &mut |read| progress.at(read))?)
}

/// Writes what was found.
pub fn tell(surveyed: &Surveyed, output: &mut Output) -> anyhow::Result<()> {
    let survey = &surveyed.survey;
    for damage in &survey.damages {
        output.line(DamageView::new(damage, &survey.snapshot).text())?;
    }
    let (messages, bytes) = (survey.digest.messages(), survey.digest.bytes());
    output.line(format_args!("readable: {}, {}", counted(messages, "message"), bytes_text(bytes)))
}

/// Runs it.
pub fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let surveyed = survey(&args.store)?;
    let survey = &surveyed.survey;
    let mut output = Output::new();
    if args.json {
        let damages = survey.damages.iter().map(|damage| DamageView::new(damage, &survey.snapshot)).collect();
        let (messages, bytes) = (survey.digest.messages(), survey.digest.bytes());
        output.json(&Verified { messages, bytes, damages })?;
    } else {
        tell(&surveyed, &mut output)?;
    }
    output.flush()?;
    match survey.damages.len() as u64 {
        0 => Ok(()),
        count => bail!(
            "{} found in {}; restore a backup, or copy what is left with `baton store salvage`",
            counted(count, "damage"),
            args.store.display()
        ),
    }
}
