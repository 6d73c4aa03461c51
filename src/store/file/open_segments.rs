//! Segments that the readers have open, the same for all of them.
//!
//! What one reader has opened the next one finds open. A segment that is removed is closed here at once: the space
//! of a removed file comes back only when nobody has it open any more.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::io_error;
use super::segment::{SegmentHead, SegmentId};
use crate::disk;
use crate::store::StoreError;

/// Segments that stay open.
pub const OPEN_SEGMENTS_MAX: usize = 16;

/// A segment that is open for reading.
#[derive(Debug)]
pub struct OpenSegment {
    /// The file.
    pub file: File,
    /// Its path.
    pub path: PathBuf,
    /// Its head.
    pub head: SegmentHead,
}

/// The segments that are open for reading.
#[derive(Debug, Default)]
pub struct OpenSegments {
    /// Last used first.
    segments: Mutex<Vec<Arc<OpenSegment>>>,
}

impl OpenSegments {
    /// A segment, opened if it is not open. `None` where it is gone.
    ///
    /// # Errors
    /// Where it cannot be opened, or its head is damaged.
    pub fn open(&self, journal: &Path, id: SegmentId) -> Result<Option<Arc<OpenSegment>>, StoreError> {
        if let Some(open) = self.find(id) {
            return Ok(Some(open));
        }
        let path = id.path(journal);
        let file = match disk::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io_error("open", &path))?,
        };
        let head = SegmentHead::read(&file, &path, id)?;
        let open = Arc::new(OpenSegment { file, path, head });
        let mut segments = self.lock();
        segments.insert(0, Arc::clone(&open));
        segments.truncate(OPEN_SEGMENTS_MAX);
        Ok(Some(open))
    }

    /// Closes a segment, as soon as no read of it is under way.
    pub fn close(&self, id: SegmentId) {
        self.lock().retain(|open| open.head.id != id);
    }

    fn find(&self, id: SegmentId) -> Option<Arc<OpenSegment>> {
        let mut segments = self.lock();
        let at = segments.iter().position(|open| open.head.id == id)?;
        segments[..=at].rotate_right(1);
        segments.first().map(Arc::clone)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<OpenSegment>>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::Position;
    use super::*;
    use crate::model::id::Epoch;

    fn segment(number: u32) -> SegmentId {
        SegmentId { epoch: Epoch(1), number }
    }

    #[test]
    fn a_segment_stays_open_until_it_is_closed_or_many_others_were_opened() {
        let dir = tempfile::tempdir().unwrap();
        let count = OPEN_SEGMENTS_MAX as u32 + 1;
        for number in 1..=count {
            let head =
                SegmentHead { id: segment(number), seed: 7, continues: Position::start_of(segment(1)) };
            head.create(dir.path(), 8192, 0).unwrap();
        }
        let open = OpenSegments::default();
        let is_open = |number| open.lock().iter().any(|open| open.head.id == segment(number));
        for number in 1..count {
            assert!(open.open(dir.path(), segment(number)).unwrap().is_some());
        }
        assert!(open.open(dir.path(), segment(1)).unwrap().is_some());
        open.open(dir.path(), segment(count)).unwrap();
        assert!(is_open(1) && !is_open(2), "the one used longest ago goes");
        open.close(segment(1));
        assert!(!is_open(1));
        assert!(open.open(dir.path(), segment(count + 1)).unwrap().is_none(), "there is no such file");
    }
}
