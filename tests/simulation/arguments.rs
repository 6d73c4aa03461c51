//! What the simulation is told on its command line.

use clap::{Parser, ValueEnum};

use crate::setting::Fault;

/// Two nodes over a shared disk that is simulated, under a scheduler that a seed decides.
///
/// A seed that has failed fails again, in the same way.
#[derive(Clone, Debug, Parser)]
#[command(name = "simulation")]
pub struct Arguments {
    /// How many seeds; without it as many as take a few seconds
    #[arg(long)]
    pub seeds: Option<u64>,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Only these faults
    #[arg(long, value_enum, value_delimiter = ',')]
    pub faults: Vec<Fault>,
    /// Go on after a failure
    #[arg(long)]
    pub keep_going: bool,
    /// Show all events of each seed
    #[arg(long)]
    pub trace: bool,
    /// Threads; without it one for each processor
    #[arg(long)]
    pub threads: Option<usize>,
    /// Run only if this is a part of the name of the test, as other tests do
    pub filter: Option<String>,
    /// As other tests have it; without meaning here
    #[arg(long)]
    pub nocapture: bool,
}

impl Arguments {
    pub fn faults(&self) -> Vec<Fault> {
        if self.faults.is_empty() { Fault::value_variants().to_vec() } else { self.faults.clone() }
    }
}
