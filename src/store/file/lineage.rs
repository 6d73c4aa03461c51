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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn segment(dir: &Path, id: SegmentId, continues: Position) {
        let head = SegmentHead { id, seed: 7, continues };
        fs::create_dir_all(dir.join(FOLDER)).unwrap();
        fs::write(id.path(&dir.join(FOLDER)), head.encode()).unwrap();
    }

    fn first(epoch: u64) -> SegmentId {
        SegmentId { epoch: Epoch(epoch), number: 1 }
    }

    #[test]
    fn an_epoch_counts_up_to_where_a_later_one_continues_it_and_not_at_all_where_none_does() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(guess(dir.path(), None).unwrap(), None);
        segment(dir.path(), first(1), Position::default());
        segment(dir.path(), first(2), Position { segment: first(1), at: 5_000 });
        // Nobody continues epoch 2: epoch 3 never saw it.
        segment(dir.path(), first(3), Position { segment: first(1), at: 6_000 });
        let sealed = vec![Sealed { epoch: Epoch(1), segment: 1, bytes: 6_000 }];
        let wanted = Manifest { epoch: Epoch(3), mode: Mode::File, sealed, database: None };
        assert_eq!(guess(dir.path(), None).unwrap(), Some(wanted));
    }

    #[test]
    fn an_older_manifest_says_what_no_segment_says_any_more() {
        let dir = tempfile::tempdir().unwrap();
        segment(dir.path(), first(5).next(), Position::default());
        segment(dir.path(), first(7), Position { segment: first(5).next(), at: 4_096 });
        let known = Sealed { epoch: Epoch(4), segment: 9, bytes: 8_192 };
        let older = Manifest { epoch: Epoch(5), mode: Mode::File, sealed: vec![known], database: None };
        let found = guess(dir.path(), Some(&older)).unwrap().unwrap();
        assert_eq!(found.epoch, Epoch(7));
        assert_eq!(found.sealed, [known, Sealed { epoch: Epoch(5), segment: 2, bytes: 4_096 }]);
        let newer = Manifest { epoch: Epoch(8), ..older };
        assert_eq!(guess(dir.path(), Some(&newer)).unwrap(), Some(newer));
    }
}
