//! A test that runs in namespaces of its own for processes, mounts and the network: whatever happens to it, nothing of it
//! stays.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Tells this program that it is in its namespaces.
const INSIDE: &str = "BATON_TEST_INSIDE";

/// Runs this program again, in namespaces of its own, in place of this one. Answers `None` in there, and an exit code
/// where it cannot.
pub fn enter() -> Option<ExitCode> {
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    let program = std::env::current_exe().unwrap();
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    eprintln!("unshare: {error}; this needs root and util-linux");
    Some(ExitCode::FAILURE)
}
