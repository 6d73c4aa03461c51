//! What the torture is told on its command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::plan::Fault;

/// Publishers, consumers and transactions on a pair of nodes, faults, and a checker of what clients saw.
///
/// The seed decides the faults, their order and their length, and what publishers and consumers choose. Real processes
/// run, so two runs with one seed are alike and not the same.
#[derive(Clone, Debug, Parser)]
#[command(name = "torture")]
pub struct Arguments {
    /// How long, in minutes, for each mode; what has begun is brought to its end
    #[arg(long, default_value = "1", value_parser = duration)]
    pub minutes: Duration,
    /// Mode of the store in the beginning
    #[arg(long, value_enum, default_value_t = Modes::Both)]
    pub mode: Modes,
    /// The same number, the same plan; without it one is made up
    #[arg(long)]
    pub seed: Option<u64>,
    /// Only these faults; all without it
    #[arg(long, value_enum, value_delimiter = ',')]
    pub faults: Vec<Fault>,
    /// Another build of baton with the same protocol and formats, which the nodes run in turn with this one
    #[arg(long, value_name = "PATH")]
    pub other: Option<PathBuf>,
    /// Seconds of faults after which everything is drained and checked
    #[arg(long, default_value_t = 25)]
    pub window: u64,
    /// The verdict as JSON
    #[arg(long)]
    pub json: bool,
}

fn duration(minutes: &str) -> Result<Duration, String> {
    let minutes: f64 = minutes.parse().map_err(|_| "not a number of minutes".to_owned())?;
    Duration::try_from_secs_f64(minutes * 60.0).map_err(|error| error.to_string())
}

/// Modes, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Modes {
    File,
    Database,
    Both,
}

impl Modes {
    pub const fn list(self) -> &'static [&'static str] {
        match self {
            Self::File => &["file"],
            Self::Database => &["database"],
            Self::Both => &["file", "database"],
        }
    }
}
