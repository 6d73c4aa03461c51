//! The end of the process at once, when its mastership or its store has failed under it: nothing is flushed,
//! checkpointed or removed, and the lock goes with the process.
//!
//! Nothing may hold that up, since until then the lock keeps the other node waiting. So the last word for the log is
//! said by a thread of its own: whoever reads standard error may be slow or stuck. The system's `_exit` cannot be
//! called without `unsafe`; [`std::process::exit`] also runs what C libraries have registered for the end, which is
//! not ours to know. Where that does not come to its end, the process kills itself.

use std::process::exit;
use std::sync::mpsc;
use std::thread::{self, Builder};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// Exit code of a process that ends because its mastership or its store failed under it.
pub const EXIT_FENCED: i32 = 3;

/// How long the last word may take: enough on a busy host, where an operator would else find an end without a reason,
/// and little in a takeover.
const LAST_WORD_MAX: Duration = Duration::from_millis(50);
/// How long the end may take before the process is killed. It then has no exit code.
const EXIT_MAX: Duration = Duration::from_millis(200);

/// Ends the process with [`EXIT_FENCED`].
pub(super) fn end_process(error: &dyn std::error::Error) -> ! {
    // Where there is no thread to be had, the end goes without it.
    let _ = Builder::new().spawn(|| {
        thread::sleep(EXIT_MAX);
        kill_process(getpid(), Signal::KILL)
    });
    let (said, heard) = mpsc::channel();
    let error = error.to_string();
    let speaker = Builder::new().spawn(move || {
        tracing::error!(
            error,
            "the mastership or the store has failed: ending at once, so that the other node can take over"
        );
        // Nobody listens where it took too long.
        let _ = said.send(());
    });
    if speaker.is_ok() {
        let _ = heard.recv_timeout(LAST_WORD_MAX);
    }
    exit(EXIT_FENCED)
}
