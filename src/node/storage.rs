//! What a node makes of the check of its shared storage: before it does anything there, and when it takes over.

use std::path::Path;

use super::{Arrival, NodeError};
use crate::check::advice::{self, Advice, at_start};
use crate::config::Config;
use crate::ha::claim::{LateWrites, Mastership};
use crate::ha::directory::Directory;
use crate::ha::view::Ended;
use crate::store::Mode;

/// Heeds what `baton store check` has left in the directory.
///
/// # Errors
/// Where the storage was found unfit, and the configuration does not say to go on nevertheless.
pub(super) fn heed(directory: &Directory, config: &Config) -> Result<(), NodeError> {
    match at_start(directory.path(), config.fence_read) {
        Ok(Advice::Nothing) => {}
        Ok(Advice::Good(text)) => tracing::info!("{text}"),
        Ok(Advice::Warn(text)) => tracing::warn!("{text}"),
        Ok(Advice::Unfit(found)) if config.allow_unfit_storage => {
            tracing::warn!(
                "going on with storage that was found unfit, as allow_unfit_storage says: {found}"
            );
        }
        Ok(Advice::Unfit(found)) => {
            return Err(NodeError::Unfit { path: directory.path().to_owned(), found });
        }
        // A node that could serve does not stay away because it does not know.
        Err(error) => tracing::warn!("the result of the check of this storage is not known: {error}"),
    }
    Ok(())
}

/// What becomes of the writes of an old master that has lost the lock, with the reason in words.
#[derive(Debug)]
pub(super) struct Late {
    writes: LateWrites,
    why: String,
}

impl Late {
    /// What is known of it in the shared directory `dir`.
    pub(super) fn of(dir: &Path, arrival: Arrival) -> Self {
        let may_arrive = |why| Self { writes: LateWrites::MayArrive, why };
        if arrival == Arrival::WithoutExclusion {
            return may_arrive("the lock could be taken while another node held it".to_owned());
        }
        match advice::late_writes(dir) {
            Ok(advice::Late::Fail(why)) => Self { writes: LateWrites::Fail, why },
            Ok(advice::Late::MayArrive(why)) => may_arrive(why),
            Err(error) => may_arrive(format!("the result of the check is not known: {error}")),
        }
    }

    /// What the store is to go by.
    pub(super) fn writes(&self) -> LateWrites {
        self.writes
    }

    /// Says whether the old master may still write to its database, where that is not plain.
    pub(super) fn tell(&self, mastership: &Mastership) {
        let Some(&(old, ended)) = mastership.lower().last() else { return };
        if mastership.mode() != Mode::Database || matches!(ended, Ended::Released | Ended::Dead) {
            return;
        }
        let why = &self.why;
        match (self.writes, ended) {
            (LateWrites::Fail, Ended::LostLock) => tracing::info!(
                epoch = %old,
                "the old master may still run, but it has lost the lock, and can write no more: {why}"
            ),
            (LateWrites::Fail, _) => tracing::info!(
                epoch = %old,
                "the old master may still write: {why}, but it had the lock of another file"
            ),
            (LateWrites::MayArrive, _) => {
                tracing::info!(epoch = %old, "the old master may still write: {why}");
            }
        }
    }
}
