//! `baton store salvage`: copies what is readable of a damaged store to a new one.

use std::path::PathBuf;

use anyhow::Context;
use batonmq::offline::{self, Lost};
use clap::Args;

use super::restore::{Restored, made_text};
use super::verify;
use crate::cli::exit::End;
use crate::cli::output::{Output, Progress, print_json, print_line};

/// Copy what is readable of a damaged store to a new one, and list what is not.
///
/// Messages that are lost are gone from their topics, and settled for every group; everything else is as it was, as far
/// as it can be read. The damaged store is never written to. Restore a backup instead where there is one that is recent
/// enough. Ends with 0 where everything could be read, with 4 where the new store is made and something is lost.
#[derive(Args, Debug)]
#[command(after_help = "\
Example, with both nodes stopped:
  baton store salvage /srv/baton /srv/baton-salvaged")]
pub struct SalvageArgs {
    /// The directory of the damaged store, or of a backup
    #[arg(value_name = "DIR")]
    from: PathBuf,
    /// The directory of the new store, missing or empty
    #[arg(value_name = "NEW")]
    to: PathBuf,
    /// The result as JSON: store_id, mode, messages, bytes; what is lost is on standard error
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &SalvageArgs) -> anyhow::Result<()> {
    let surveyed = verify::survey(&args.from)?;
    let mut output = Output::new();
    if args.json {
        for damage in &surveyed.survey.damages {
            tracing::warn!(file = %damage.path.display(), damage.what, lost = ?damage.lost, "damaged");
        }
    } else {
        verify::tell(&surveyed, &mut output)?;
        output.flush()?;
    }
    drop(output);
    let is_lost = surveyed.survey.damages.iter().any(|damage| damage.lost != Lost::Nothing);
    let from = args.from.display();
    let origin = surveyed.into_origin().with_context(|| {
        format!(
            "nothing in {from} says which topics there were, so there is nothing to salvage: restore a backup"
        )
    })?;
    let mut progress = None;
    let made = offline::make(origin, &args.to, None, &mut |done| {
        if done.of > 0 {
            progress.get_or_insert_with(|| Progress::new(Some(done.of), "messages")).at(done.finished());
        }
    })?;
    drop(progress);
    if args.json {
        print_json(&Restored::new(&made))?;
    } else {
        print_line(made_text(&args.to, &made))?;
    }
    if is_lost {
        return Err(End::Lost(format!("{} is made without what is lost in {from}", args.to.display())).into());
    }
    Ok(())
}
