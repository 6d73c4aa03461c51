//! How a command ends: the exit codes, and which error becomes which.
//!
//! Errors are written to standard error in one place, here, and only here. A closed standard output (`| head`)
//! is no error: the command ends quietly.

use std::fmt::Write as _;
use std::process::ExitCode;

use batonmq::client::ClientError;
use batonmq::config::error::ConfigError;
use batonmq::node::NodeError;

/// What the help says about exit codes.
pub const HELP: &str = "\
Exit codes:
  0    done; for publish: everything was confirmed
  1    failed; the reason is on standard error
  2    the command line or the configuration is wrong; nothing was done
  3    no master (store check: no other checker) was reached, nothing moved, or no reply came, within --timeout;
       serve: the mastership or the store was lost
  4    store salvage: the new store is made, and something is lost; serve: the store is damaged
  5    store check: the directory is unfit
  6    store check: doubts are left
  130  stopped by Ctrl-C (143: by SIGTERM) after settling what was finished";

/// An end that has an exit code of its own.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The command line asks for something that cannot be. Code 2.
    #[error("{0}")]
    Usage(String),
    /// Nothing moved for as long as it was waited. Code 3.
    #[error("{0}")]
    TimedOut(String),
    /// What was asked for is done, without what is lost. Code 4.
    #[error("{0}")]
    Lost(String),
    /// The directory was checked and is unfit, as was said. Code 5, without a word.
    #[error("unfit")]
    Unfit,
    /// The directory was checked and doubts are left, as was said. Code 6, without a word.
    #[error("doubtful")]
    Doubtful,
    /// Whoever reads standard output has gone. Code 0, without a word.
    #[error("standard output was closed")]
    OutputClosed,
    /// A signal asked for the end, and it was a clean one. 128 and the number of the signal, without a word.
    #[error("stopped by signal {0}")]
    Signal(u8),
}

/// The exit code of a result; writes the error to standard error.
pub fn code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let code = match error.downcast_ref::<End>() {
        Some(End::OutputClosed) => return ExitCode::SUCCESS,
        Some(End::Signal(number)) => return ExitCode::from(128 + number),
        Some(End::Unfit) => return ExitCode::from(5),
        Some(End::Doubtful) => return ExitCode::from(6),
        Some(End::Usage(_)) => 2,
        Some(End::TimedOut(_)) => 3,
        Some(End::Lost(_)) => 4,
        None if error.downcast_ref::<ConfigError>().is_some() => 2,
        None if error.downcast_ref::<NodeError>().is_some_and(NodeError::is_overtaken) => 3,
        None if error.downcast_ref::<NodeError>().is_some_and(NodeError::is_damage) => 4,
        None if error.downcast_ref::<ClientError>().is_some_and(timed_out) => 3,
        None => 1,
    };
    // Standard error may be closed as well; there is nobody left to tell.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text(&error).as_bytes());
    ExitCode::from(code)
}

fn timed_out(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::NoMaster { .. }
            | ClientError::NoAnswer { .. }
            | ClientError::NoReply { .. }
            | ClientError::Unconfirmed { .. }
    )
}

/// The error with its causes, leaving out a cause that the text already has at its end or before what to do about it.
fn text(error: &anyhow::Error) -> String {
    let mut text = format!("baton: {error}");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) && !text.contains(&format!(": {cause};")) {
            // Writing to a string does not fail.
            let _ = write!(text, ": {cause}");
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn causes_are_told_once() {
        let error = anyhow!("no space").context("cannot write x: no space").context("publish");
        assert_eq!(text(&error), "baton: publish: cannot write x: no space\n");
        let advised = anyhow!("no space").context("cannot write x: no space; delete something");
        assert_eq!(text(&advised), "baton: cannot write x: no space; delete something\n");
        let plain: anyhow::Result<()> = Err(anyhow!("b")).context("a");
        assert_eq!(text(&plain.unwrap_err()), "baton: a: b\n");
    }
}
