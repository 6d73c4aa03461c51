//! `baton store convert`: changes the mode of a store that no node serves.

use std::path::PathBuf;

use batonmq::offline;
use batonmq::store::Mode;
use batonmq::store::conversion::Old;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cli::output::{Progress, bytes_text, counted, print_json, print_line};

/// Convert a store that no node serves to another mode: a database to a journal, or back.
///
/// Everything is carried over: messages with their offsets, groups with what they have settled, retries, producers with
/// their sequences. The old store counts until the new one is complete and was compared with it; where this is killed,
/// run it again or start a node. A node that starts converts too, if its `mode` says so and the last one ended cleanly.
#[derive(Args, Debug)]
#[command(after_help = "\
Example, with both nodes stopped:
  baton store convert --store /srv/baton --to file")]
pub struct ConvertArgs {
    /// The shared directory
    #[arg(long, env = "BATON_STORE", value_name = "DIR", default_value = "./baton-data")]
    store: PathBuf,
    /// What the store is to be
    #[arg(long, value_name = "MODE")]
    to: StoreMode,
    /// Put the old store away, into a folder of the directory called kept-MODE-NUMBER, instead of removing it
    #[arg(long)]
    keep: bool,
    /// The result as JSON: mode, messages, bytes
    #[arg(long)]
    json: bool,
}

/// What a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreMode {
    /// A SQL database, made to be read by people.
    Database,
    /// A journal, faster.
    File,
}

impl From<StoreMode> for Mode {
    fn from(mode: StoreMode) -> Self {
        match mode {
            StoreMode::Database => Self::Database,
            StoreMode::File => Self::File,
        }
    }
}

#[derive(Serialize)]
struct Converted {
    mode: Mode,
    messages: u64,
    bytes: u64,
}

/// Runs it.
pub fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    let to = args.to.into();
    let old = if args.keep { Old::Kept } else { Old::Removed };
    let mut progress = None;
    let digest = offline::convert(&args.store, to, old, &mut |done| {
        // Before it is known how much there is, there is nothing to show.
        if done.of > 0 {
            progress.get_or_insert_with(|| Progress::new(Some(done.of), "messages")).at(done.finished());
        }
    })?;
    drop(progress);
    let converted = Converted { mode: to, messages: digest.messages(), bytes: digest.bytes() };
    if args.json {
        return print_json(&converted);
    }
    print_line(format!(
        "the store is in {to} mode now: {}, {}",
        counted(converted.messages, "message"),
        bytes_text(converted.bytes)
    ))
}
