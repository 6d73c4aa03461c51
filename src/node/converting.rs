//! Conversion of the store at the start of a node whose configuration asks for another mode.
//!
//! Only a node that finds the lock free when it starts converts, and only where the master before it has released its
//! epoch: then it is known what the store holds, and nobody waits for the service who did not expect to. A standby
//! that takes over serves the store as it is, planned or not, and says that its configuration differs: two nodes with
//! different configurations would convert forth and back.
//!
//! Where there is too little space the store is served as it is: a wish must not keep the service from starting.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::task::spawn_blocking;

use super::service_manager::tell;
use super::{Arrival, Node, NodeError};
use crate::config::KeepConverted;
use crate::disk;
use crate::ha::claim::Mastership;
use crate::ha::lock::StoreLock;
use crate::ha::view::Ended;
use crate::server::watch::Progress;
use crate::store::conversion::{self, Done, Old};
use crate::store::manifest::Manifest;
use crate::store::{Fenced, Mode, OpenOptions, StoreError};

/// How often it is said how far a conversion is.
const SAY_INTERVAL: Duration = Duration::from_secs(5);
/// By how much the service manager is asked to extend its patience each time.
const EXTENSION_MICROSECONDS: u32 = 60_000_000;

/// What a claimed epoch does about the mode of the store.
#[derive(Debug)]
pub(super) enum Intent {
    /// It serves the store as it is.
    Serve,
    /// It converts the store that this manifest names to this mode.
    Convert(Manifest, Mode),
}

/// What is to be done with a store that a process has claimed, which must be that of its directory. Says why where it
/// is not what the configuration asks for.
pub(super) fn intent(
    mastership: &Mastership,
    newest: Option<Manifest>,
    configured: Option<Mode>,
    arrival: Arrival,
) -> Result<Intent, StoreError> {
    let store = mastership.mode();
    let (Some(newest), Some(configured)) = (newest, configured.filter(|&configured| configured != store))
    else {
        return Ok(Intent::Serve);
    };
    let served_as_it_is = |why: &str| {
        tracing::warn!(
            %store,
            %configured,
            "the store has another mode than the configuration; it is served as it is: {why}"
        );
        Ok(Intent::Serve)
    };
    if arrival != Arrival::FoundFree {
        return served_as_it_is(
            "a standby that takes over never converts; to convert stop both nodes, the standby first, then start them",
        );
    }
    if mastership.ended(newest.epoch) != Some(Ended::Released) {
        return served_as_it_is(
            "the last master has not released it; to convert stop both nodes, the standby first, then start them",
        );
    }
    let dir = mastership.lock().directory().path();
    let needed = conversion::bytes_needed(dir, &newest)?;
    let free = free(dir)?;
    if free < needed {
        return served_as_it_is(&format!(
            "to convert it takes {needed} bytes of free space, and {free} are free on the shared disk"
        ));
    }
    Ok(Intent::Convert(newest, configured))
}

fn free(dir: &Path) -> Result<u64, StoreError> {
    disk::free(dir).map_err(|source| StoreError::Io {
        action: "look for space in",
        path: dir.to_owned(),
        source,
    })
}

/// What became of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Converted {
    To(Mode),
    /// There was no space. The store is as it was.
    Not,
}

impl Node {
    /// Converts the store in the epoch of a mastership, and releases that. Answers the lock, for the epoch that serves.
    pub(super) async fn convert(
        &self,
        mastership: Mastership,
        (from, to): (Manifest, Mode),
        progress: Arc<Progress>,
    ) -> Result<StoreLock, NodeError> {
        let options = OpenOptions {
            dir: mastership.lock().directory().path().to_owned(),
            mode: to,
            epoch: mastership.epoch(),
            predecessors: mastership.predecessors(),
            segment_bytes: self.config.segment_bytes,
        };
        let old = match self.config.keep_converted {
            KeepConverted::Yes => Old::Kept,
            KeepConverted::No => Old::Removed,
        };
        let mastership = Arc::new(mastership);
        let (mut guard, stop) = (self.guard(&mastership), self.shutdown.clone());
        let converting = spawn_blocking(move || {
            let mut said_at: Option<Instant> = None;
            let mut watch = |done: Done| {
                let started = Instant::now();
                if stop.is_cancelled() {
                    return Err(Fenced::Unknown("the node is told to stop".to_owned()));
                }
                crate::engine::Guard::check(&mut guard)?;
                progress.made(started);
                if said_at.is_none_or(|at| at.elapsed() > SAY_INTERVAL) {
                    say(done);
                    said_at = Some(Instant::now());
                }
                Ok(())
            };
            match conversion::convert(&options, &from, old, &mut watch) {
                Ok(_) => Ok(Converted::To(options.mode)),
                // Whatever was written by then: the next epoch goes by the newest manifest.
                Err(error) if error.is_lack_of_space() => {
                    tracing::warn!(
                        store = %from.mode,
                        configured = %options.mode,
                        %error,
                        "no space left on the shared disk for the conversion: the store is served as it is"
                    );
                    Ok(Converted::Not)
                }
                Err(error) => Err(error),
            }
        });
        let converted = converting.await.map_err(|_| NodeError::Panicked)??;
        let mut mastership = Arc::into_inner(mastership).ok_or(NodeError::Panicked)?;
        let read = self.config.fence_read;
        let releasing = spawn_blocking(move || {
            if let Converted::To(mode) = converted {
                mastership.begin(mode, read)?;
            }
            mastership.release_epoch(read)
        });
        Ok(releasing.await.map_err(|_| NodeError::Panicked)??)
    }
}

/// Says how far it is, in the log and to the service manager.
fn say(done: Done) {
    let percent = done.percent();
    tracing::info!(
        messages = done.finished(),
        bytes = done.bytes,
        of = done.of,
        percent,
        "converting the store"
    );
    tell(&[
        NotifyState::ExtendTimeoutUsec(EXTENSION_MICROSECONDS),
        NotifyState::Status(&format!("converting the store, {percent} %")),
    ]);
}
