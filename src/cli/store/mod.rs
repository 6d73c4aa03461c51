//! `baton store`: what concerns the store as a whole.

mod convert;
mod query;

use clap::Subcommand;

/// Ask or convert the store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    Query(query::QueryArgs),
    Convert(convert::ConvertArgs),
}

/// Runs it.
pub fn run(command: StoreCommand) -> anyhow::Result<()> {
    match command {
        StoreCommand::Query(args) => query::run(args),
        StoreCommand::Convert(args) => convert::run(&args),
    }
}
