//! `baton store restore`: makes a store of a backup.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use batonmq::offline::{self, Made, Origin};
use batonmq::store::digest::Digest;
use batonmq::store::{Mode, archive};
use clap::Args;
use serde::Serialize;

use super::convert::StoreMode;
use crate::cli::output::{Progress, bytes_text, counted, print_json, print_line};

/// Bytes of an archive that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// Make a store of a backup: messages, groups, producers, everything as it was.
///
/// The backup is a directory or an archive that `backup` has made, or what a conversion has put away. The store gets a
/// new identity, so that no node takes it for the old one: a `store_id` in the configuration must be changed. Nothing
/// that exists is overwritten; what was restored is compared with the backup before it is a store.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  baton store restore /backups/monday /srv/baton
  gunzip < monday.baton.gz | baton store restore - /srv/baton --mode file")]
pub struct RestoreArgs {
    /// The backup: a directory, an archive, or - for an archive on standard input
    #[arg(value_name = "BACKUP")]
    from: PathBuf,
    /// The directory of the new store, missing or empty
    #[arg(value_name = "DIR")]
    to: PathBuf,
    /// What the new store is [default: what the original was]
    #[arg(long, value_name = "MODE")]
    mode: Option<StoreMode>,
    /// The result as JSON: store_id, mode, messages, bytes
    #[arg(long)]
    json: bool,
}

/// What was made, for programs.
#[derive(Serialize)]
pub struct Restored {
    store_id: String,
    mode: Mode,
    messages: u64,
    bytes: u64,
}

impl Restored {
    /// That which was made.
    pub fn new(made: &Made) -> Self {
        Self {
            store_id: made.store_id.to_string(),
            mode: made.mode,
            messages: made.digest.messages(),
            bytes: made.digest.bytes(),
        }
    }

    /// That which is in an archive, with the identity of its original.
    pub fn archived(origin: &archive::Origin, digest: &Digest) -> Self {
        let (messages, bytes) = (digest.messages(), digest.bytes());
        Self { store_id: origin.store_id.clone(), mode: origin.mode, messages, bytes }
    }
}

/// What was made, for people.
pub fn made_text(to: &Path, made: &Made) -> String {
    format!(
        "{} is a store in {} mode: {}, {}, store_id {}",
        to.display(),
        made.mode,
        counted(made.digest.messages(), "message"),
        bytes_text(made.digest.bytes()),
        made.store_id
    )
}

/// Opens a backup: a directory, an archive, or `-` for one on standard input.
pub fn open(from: &Path) -> anyhow::Result<Origin> {
    if from == Path::new("-") {
        return archive(Box::new(io::stdin()));
    }
    let found = std::fs::metadata(from).with_context(|| format!("cannot look at {}", from.display()))?;
    if found.is_dir() {
        return Ok(Origin::directory(from)?);
    }
    let file = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    archive(Box::new(file)).with_context(|| from.display().to_string())
}

fn archive(input: Box<dyn Read>) -> anyhow::Result<Origin> {
    Ok(Origin::archive(Box::new(BufReader::with_capacity(READ_BYTES, input)))?)
}

/// Runs it.
pub fn run(args: &RestoreArgs) -> anyhow::Result<()> {
    let origin = open(&args.from)?;
    let mut progress = None;
    let made = offline::make(origin, &args.to, args.mode.map(Into::into), &mut |done| {
        if done.of > 0 {
            progress.get_or_insert_with(|| Progress::new(Some(done.of), "messages")).at(done.finished());
        }
    })?;
    drop(progress);
    if args.json {
        return print_json(&Restored::new(&made));
    }
    print_line(made_text(&args.to, &made))
}
