//! The signals that ask a command for a clean end: SIGINT and SIGTERM.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::End;

/// Listens for the signals, in place of their ending the process.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Begins to listen.
    pub fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for one and answers the end that it asks for.
    pub async fn next(&mut self) -> End {
        tokio::select! {
            _ = self.interrupt.recv() => End::Signal(2),
            _ = self.terminate.recv() => End::Signal(15),
        }
    }
}
