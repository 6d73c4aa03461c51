//! `baton store`: what concerns the store as a whole.

mod backup;
mod convert;
mod query;
mod restore;
mod salvage;
mod verify;

use clap::Subcommand;

/// Ask, back up, restore or convert the store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    Query(query::QueryArgs),
    Backup(backup::BackupArgs),
    Restore(restore::RestoreArgs),
    Verify(verify::VerifyArgs),
    Salvage(salvage::SalvageArgs),
    Convert(convert::ConvertArgs),
}

/// Runs it.
pub fn run(command: StoreCommand) -> anyhow::Result<()> {
    match command {
        StoreCommand::Query(args) => query::run(args),
        StoreCommand::Backup(args) => backup::run(&args),
        StoreCommand::Restore(args) => restore::run(&args),
        StoreCommand::Verify(args) => verify::run(&args),
        StoreCommand::Salvage(args) => salvage::run(&args),
        StoreCommand::Convert(args) => convert::run(&args),
    }
}
