//! What counts of a journal whose manifest cannot be read, by the heads of its segments.
//!
//! The head of an epoch's first segment names the position that the epoch continues. So each epoch says where the one
//! before it ended, as its manifest did; only the end of the last one is not named, and all of it counts that is valid.
//! Where a first segment is gone, a checkpoint that is at least as new as that holds what is older.

use std::collections::BTreeMap;
use std::path::Path;

use super::folder::Folder;
use super::segment::{Position, SegmentHead, SegmentId};
use super::{FOLDER, io_error};
use crate::disk;
use crate::model::id::Epoch;
use crate::store::manifest::{Manifest, Sealed};
use crate::store::{Mode, StoreError};

/// What counts, as the segments and an older manifest say. `None` where there is no journal.
///
/// # Errors
/// Where the folder cannot be listed, or a segment is of a newer format.
pub(super) fn guess(dir: &Path, older: Option<&Manifest>) -> Result<Option<Manifest>, StoreError> {
    let journal = dir.join(FOLDER);
    let folder = Folder::list(&journal)?;
    let older = older.filter(|older| older.mode == Mode::File);
    let Some(newest) = folder.segments.last().map(|segment| segment.epoch) else { return Ok(older.cloned()) };
    if let Some(older) = older
        && older.epoch >= newest
    {
        return Ok(Some(older.clone()));
    }
    let known = older.into_iter().flat_map(|older| &older.sealed);
    let mut sealed: BTreeMap<Epoch, Sealed> = known.map(|&sealed| (sealed.epoch, sealed)).collect();
    let mut epoch = newest;
    while let Some(end) = continued(&journal, &folder, epoch)? {
        epoch = end.segment.epoch;
        sealed.insert(epoch, Sealed { epoch, segment: end.segment.number, bytes: end.at });
    }
    let sealed = sealed.into_values().collect();
    Ok(Some(Manifest { epoch: newest, mode: Mode::File, sealed, database: None }))
}

/// The position in an older epoch that `epoch` continues; `None` where it says none.
fn continued(journal: &Path, folder: &Folder, epoch: Epoch) -> Result<Option<Position>, StoreError> {
    let first = SegmentId { epoch, number: 1 };
    if !folder.segments.contains(&first) {
        return Ok(None);
    }
    let path = first.path(journal);
    let file = disk::open(&path).map_err(io_error("open", &path))?;
    match SegmentHead::read(&file, &path, first) {
        // A journal that was empty, or was filled, continues nothing.
        Ok(head) => Ok(Some(head.continues).filter(|end| (Epoch(1)..epoch).contains(&end.segment.epoch))),
        // The recovery meets it again, and says so.
        Err(StoreError::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
