//! The program `baton`: reads the command line, calls the subcommand, answers with an exit code.

#![warn(clippy::unwrap_used)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::exit::code(cli::Cli::read().run())
}
