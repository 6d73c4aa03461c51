//! `baton store`: what concerns the store as a whole.

mod backup;
mod check;
mod convert;
mod dump;
mod query;
mod restore;
mod salvage;
mod stats;
mod verify;

use clap::Subcommand;

/// The store as a whole: check the storage, ask it, back it up, convert it, look for damage
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    Check(check::CheckArgs),
    #[command(name = check::HOLD_LOCK, hide = true)]
    HoldLock(check::HoldLockArgs),
    Query(query::QueryArgs),
    Backup(backup::BackupArgs),
    Restore(restore::RestoreArgs),
    Dump(dump::DumpArgs),
    Stats(stats::StatsArgs),
    Verify(verify::VerifyArgs),
    Salvage(salvage::SalvageArgs),
    Convert(convert::ConvertArgs),
}

/// Runs it.
pub fn run(command: StoreCommand) -> anyhow::Result<()> {
    match command {
        StoreCommand::Check(args) => check::run(&args),
        StoreCommand::HoldLock(args) => check::hold_lock(&args),
        StoreCommand::Query(args) => query::run(args),
        StoreCommand::Backup(args) => backup::run(&args),
        StoreCommand::Restore(args) => restore::run(&args),
        StoreCommand::Dump(args) => dump::run(&args),
        StoreCommand::Stats(args) => stats::run(&args),
        StoreCommand::Verify(args) => verify::run(&args),
        StoreCommand::Salvage(args) => salvage::run(&args),
        StoreCommand::Convert(args) => convert::run(&args),
    }
}
