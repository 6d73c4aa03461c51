//! What a node makes of the check of its shared storage, before it does anything there.

use super::NodeError;
use crate::check::advice::{Advice, at_start};
use crate::config::Config;
use crate::ha::directory::Directory;

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
