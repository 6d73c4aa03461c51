//! `baton store`: what concerns the store as a whole.

mod convert;

use clap::Subcommand;

/// Convert the store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    Convert(convert::ConvertArgs),
}

/// Runs it.
pub fn run(command: StoreCommand) -> anyhow::Result<()> {
    match command {
        StoreCommand::Convert(args) => convert::run(&args),
    }
}
