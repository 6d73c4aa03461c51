//! `baton completions` and `baton man`: what a package installs beside the program.

use std::io;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, exit};

/// Write completions for a shell to standard output.
#[derive(Args, Debug)]
#[command(after_help = "\
The package installs them for bash, fish and zsh.

Example:
  baton completions bash > /etc/bash_completion.d/baton")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write a manual page of each command into a folder.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The folder; it exists
    dir: PathBuf,
}

/// Runs `baton completions`.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "baton", &mut script);
    match io::Write::write_all(&mut io::stdout(), &script) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(exit::End::OutputClosed.into()),
        written => Ok(written?),
    }
}

/// Runs `baton man`.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    clap_mangen::generate_to(Cli::command(), &args.dir)
        .with_context(|| format!("cannot write manual pages into {}", args.dir.display()))
}
