//! `baton address`: the floating addresses of this host, behind a node that was killed.

use std::path::PathBuf;
use std::time::Duration;

use batonmq::address::left_over::{Cleared, clear};
use batonmq::config::load::load;
use clap::{Args, Subcommand};

use super::output::print_line;
use super::serve::sources_of;
use super::value;

/// Clear up the floating addresses of this host.
#[derive(Debug, Subcommand)]
pub enum AddressCommand {
    Remove(RemoveArgs),
}

/// Remove the floating addresses that a killed node has left on this host.
///
/// For ExecStopPost= of the service. Does and says nothing where none is left, and removes nothing while a node of this
/// host runs that has them in its hands. What Baton has not added stays. An address that is left goes by itself within
/// ten seconds.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Configuration file of the node [env: BATON_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long to wait for the other node to announce the addresses, so that clients are answered meanwhile
    #[arg(long, value_name = "DURATION", value_parser = value::duration, default_value = "1s")]
    wait: Duration,
}

/// Runs it.
pub fn run(command: AddressCommand) -> anyhow::Result<()> {
    let AddressCommand::Remove(args) = command;
    let settings = load(&sources_of(args.config))?.config.address;
    for cleared in clear(&settings, args.wait)? {
        match cleared {
            Cleared::Removed(address) => {
                print_line(format!("{address} removed from {}", settings.interface))?
            }
            Cleared::Stays(address, why) => print_line(format!("{address} stays: {why}"))?,
            // After each clean stop, when the node itself has said that it removed them.
            Cleared::NotHere(_) => {}
        }
    }
    Ok(())
}
