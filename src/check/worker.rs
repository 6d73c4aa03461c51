//! Does what is asked, on this side: for the lead when it asks itself, for the second when it is asked.

use std::path::Path;

use super::locking::{Locker, Program};
use super::mount::Mount;
use super::options::LostLocks;
use super::peer::PeerError;
use super::probes::{Probes, host_name};
use super::protocol::{Answer, Ask, Side};
use super::space::Space;
use super::{CheckError, coherence, creating, io_error, sync};
use crate::ha::identity::Here;

/// Who this side is, and what the system says about the shared directory.
///
/// # Errors
/// Where it is no directory, or the system does not say.
pub fn look(store: &Path) -> Result<Side, CheckError> {
    if !store.is_dir() {
        return Err(CheckError::NoDirectory(store.to_owned()));
    }
    let stat = rustix::fs::stat(store).map_err(|errno| io_error("look at", store)(errno.into()))?;
    Ok(Side {
        host: host_name().to_string(),
        boot: Here::look()?.boot(),
        device: stat.st_dev,
        mount: Mount::of(store)?,
        space: Space::of(store)?,
        lost_locks: LostLocks::of_this_host(),
    })
}

/// A side at work.
#[derive(Debug)]
pub struct Worker {
    /// Closes its file before the folder goes.
    locker: Locker,
    probes: Probes,
}

impl Worker {
    /// One that works in this folder.
    #[must_use]
    pub fn new(probes: Probes, program: Program) -> Self {
        Self { locker: Locker::new(probes.folder(), program), probes }
    }

    /// The folder.
    #[must_use]
    pub fn probes(&self) -> &Probes {
        &self.probes
    }

    /// Does it.
    ///
    /// # Errors
    /// Where it cannot be done, or is not for a worker.
    pub fn answer(&mut self, ask: &Ask) -> Result<Answer, CheckError> {
        let folder = self.probes.folder();
        let failed = |action| io_error(action, folder);
        Ok(match *ask {
            Ask::Lock => Answer::Locked(self.locker.attempt().map_err(|error| error.to_string())),
            Ask::AwaitLock => Answer::Awaited(self.locker.wait()?),
            Ask::Unlock => {
                self.locker.let_go();
                Answer::Done
            }
            Ask::Hold => {
                self.locker.hold()?;
                Answer::Done
            }
            Ask::Kill => {
                self.locker.kill()?;
                Answer::Done
            }
            Ask::Race(kind) => Answer::Raced(creating::race(folder, kind).map_err(|error| error.to_string())),
            Ask::Put { place, number } => {
                coherence::put(folder, place, number).map_err(failed("write a block in"))?;
                Answer::Done
            }
            Ask::Get { place, number, read } => {
                Answer::Block(coherence::get(folder, place, number, read).map_err(failed("read a block in"))?)
            }
            Ask::Name(number) => {
                coherence::name(folder, number).map_err(failed("make a file in"))?;
                Answer::Done
            }
            Ask::IsNamed(number) => {
                Answer::IsNamed(coherence::is_named(folder, number).map_err(failed("list"))?)
            }
            Ask::Sync => {
                // Of each side its own: they measure at different times in one folder.
                let name = format!("sync-{}", uuid::Uuid::now_v7());
                Answer::Times(sync::measure(folder, &name).map_err(failed("write and sync in"))?)
            }
            Ask::Meet { .. } | Ask::WriteLate { .. } | Ask::End(_) => {
                return Err(PeerError::OutOfOrder.into());
            }
        })
    }
}
