//! What refuses a store before an epoch is claimed: files of a format from the future, files that are missing or may not
//! be written, and no space for what a takeover makes.
//!
//! Only looks, at a few small places: the newest manifest, the head of the newest segment and checkpoint, the head of
//! the database. A damaged store is found by its recovery, which reads all that counts.

use std::path::Path;

use rustix::fs::Access;

use super::manifest::Manifest;
use super::{Mode, Predecessors, StoreError, database, file};
use crate::disk;
use crate::model::id::Epoch;

/// Bytes that every new master takes: its claim, its manifest, and the smallest segment or the first pages of the log.
const TAKEOVER_BYTES: u64 = 128 << 10;

/// Checks that this version can take over the store in a shared directory, if there is one, from masters that have
/// ended as `predecessors` says. Changes nothing. The caller holds the lock, and no store of this process is open.
///
/// # Errors
/// Where a file is of a newer format, is missing, or cannot be read or written, or there is too little space.
pub fn check(dir: &Path, predecessors: &Predecessors) -> Result<(), StoreError> {
    for folder in ["manifest", "journal"] {
        check_rights(&dir.join(folder), Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?;
    }
    let free = disk::free(dir).map_err(|source| StoreError::Io {
        action: "ask for the free space of",
        path: dir.to_owned(),
        source,
    })?;
    if free < TAKEOVER_BYTES {
        return Err(StoreError::NoSpaceToBegin { path: dir.to_owned(), needed: TAKEOVER_BYTES, free });
    }
    let newest = Manifest::newest(dir, Epoch(u64::MAX))?;
    check_begun(dir, newest.as_ref(), predecessors.begun())?;
    let Some(manifest) = newest else { return Ok(()) };
    match manifest.mode {
        Mode::Database => database::check(dir, &manifest, predecessors),
        Mode::File => file::check(dir),
    }
}

/// Refuses a store of which all is gone that a master had made before it confirmed anything: `begun` is the highest
/// epoch that is known to have begun, and `newest` the newest manifest, read after that was known.
///
/// A takeover that died between its manifest and its first segment has confirmed nothing and is none of these.
///
/// # Errors
/// [`StoreError::Missing`], and where the journal cannot be listed.
pub fn check_begun(dir: &Path, newest: Option<&Manifest>, begun: Epoch) -> Result<(), StoreError> {
    match newest {
        _ if begun == Epoch(0) => Ok(()),
        Some(newest) if newest.epoch > begun => Ok(()),
        Some(newest) if newest.epoch == begun => match newest.mode {
            Mode::File => file::check_begun(dir, begun),
            // The manifest names the database.
            Mode::Database => Ok(()),
        },
        _ => Err(StoreError::Missing { path: Manifest::path(dir, begun) }),
    }
}

/// Checks that this process may use a file or folder in this way, as far as that shows without doing so. One that is
/// not there is in nobody's way.
///
/// # Errors
/// [`StoreError::NoRights`].
pub(super) fn check_rights(path: &Path, wanted: Access) -> Result<(), StoreError> {
    disk::check_access(path, wanted).map_err(|source| StoreError::NoRights { path: path.to_owned(), source })
}
