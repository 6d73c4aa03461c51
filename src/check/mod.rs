//! Is a directory fit to be shared by the two nodes of a pair?
//!
//! Two *sides* find that out: the *lead* asks, the *second* does as it is asked, on the other host or, where there is
//! none yet, on a thread of the same process. They talk over a connection of their own, and try out in a folder of
//! their own what a node relies on.
//!
//! * [`mount`], [`space`]: what the system says about the file system; [`options`] judges it.
//! * [`locking`], [`creating`], [`coherence`], [`sync`]: tests of a second or two.
//! * [`late_write`]: what becomes of the writes of a host that was cut off; only together with an operator.
//! * [`lead`], [`second`], [`worker`], [`protocol`], [`peer`]: who asks what of whom.
//! * [`finding`], [`report`]: what came of it.
//! * [`remembered`], [`advice`]: the result that stays in the directory, and what it means for a node that starts.
//!
//! Never touches a file of the store: a check may run beside nodes that serve. It has [`probes::FOLDER`] while it runs
//! and [`remembered::FILE`] afterwards; both begin with a dot, so that a directory with them alone is an empty one.

pub mod advice;
pub mod coherence;
pub mod creating;
pub mod finding;
pub mod late_write;
pub mod lead;
pub mod locking;
pub mod mount;
pub mod options;
pub mod peer;
pub mod probes;
pub mod protocol;
pub mod remembered;
pub mod report;
pub mod second;
pub mod space;
pub mod sync;
pub mod worker;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::ha::identity::IdentityError;
use crate::ha::lock::LockError;
use peer::PeerError;

/// Why a check came to no result. Nothing is known then, neither good nor bad.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The directory is not there.
    #[error("{} is not a directory: is the shared file system mounted? Make the directory first", .0.display())]
    NoDirectory(PathBuf),
    /// The directory cannot be written to.
    #[error(
        "cannot make a folder in {}: {source}; run this as the user of the nodes, where it is not mounted read-only",
        path.display()
    )]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{action} {}: {source}{}", path.display(), what_to_do(source))]
    Io {
        /// What was tried, as in "open".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The system does not say how the directory is mounted.
    #[error("{}: the system does not say how it is mounted; is /proc mounted?", .0.display())]
    NoMount(PathBuf),
    /// A lock failed where it had worked before.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// This process cannot say who it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The other side is gone, or speaks otherwise.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The other side could not do its part.
    #[error("the other checker: {0}")]
    Elsewhere(String),
    /// The two sides look at different directories.
    #[error(
        "{0} does not have what {1} has just written: do both name the same directory, and is it mounted on both?"
    )]
    OtherDirectory(String, String),
    /// The process that holds a lock did not start.
    #[error("the process that holds a lock for the check did not start: {0}")]
    Holder(String),
    /// A thread of the check has panicked: a bug.
    #[error("a thread of the check has panicked")]
    Panicked,
}

/// What to do about an error of a system call, with a semicolon before it.
fn what_to_do(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "; make space on the shared disk, for the store too"
        }
        ErrorKind::PermissionDenied => "; run this as the user of the nodes, who must own the directory",
        _ => "",
    }
}

/// An error of a system call on `path`.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckError + use<> {
    let path = path.to_owned();
    move |source| CheckError::Io { action, path, source }
}

/// A time for people: three digits at most, and a unit.
fn time_text(time: std::time::Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        1.0.. => format!("{seconds:.1} s"),
        1e-3.. => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.0} us", seconds * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_have_a_unit_that_suits_them() {
        for (micros, text) in [(3, "3 us"), (1_500, "1.5 ms"), (2_340_000, "2.3 s"), (90_000_000, "90.0 s")] {
            assert_eq!(time_text(Duration::from_micros(micros)), text);
        }
    }
}
