//! Files that the readers have open, the same for all of them.
//!
//! What one reader has opened the next one finds open. A file that is removed is closed here at once: the space
//! of a removed file comes back only when nobody has it open any more.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::entry::Marks;
use super::file_id::{FileId, FileKind};
use super::io_error;
use super::pack::PackHead;
use super::segment::SegmentHead;
use crate::disk::{self, File};
use crate::store::StoreError;

/// Files that stay open.
pub const OPEN_FILES_MAX: usize = 16;

/// A file that is open for reading.
#[derive(Debug)]
pub struct OpenFile {
    /// The file.
    pub file: File,
    /// Its path.
    pub path: PathBuf,
    /// Which file it is.
    pub id: FileId,
    /// What its entries have in common.
    pub marks: Marks,
}

/// The files that are open for reading.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// Last used first.
    files: Mutex<Vec<Arc<OpenFile>>>,
}

impl OpenFiles {
    /// A file, opened if it is not open. `None` where it is gone.
    ///
    /// # Errors
    /// Where it cannot be opened, or its head is damaged.
    pub fn open(&self, journal: &Path, id: FileId) -> Result<Option<Arc<OpenFile>>, StoreError> {
        if let Some(open) = self.find(id) {
            return Ok(Some(open));
        }
        let path = id.path(journal);
        let file = match disk::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io_error("open", &path))?,
        };
        let marks = match id.kind {
            FileKind::Segment => SegmentHead::read(&file, &path, id.marked())?.marks(),
            FileKind::Pack => PackHead::read(&file, &path, id)?.marks(),
        };
        let open = Arc::new(OpenFile { file, path, id, marks });
        let mut files = self.lock();
        files.insert(0, Arc::clone(&open));
        files.truncate(OPEN_FILES_MAX);
        Ok(Some(open))
    }

    /// Closes a file, as soon as no read of it is under way.
    pub fn close(&self, id: FileId) {
        self.lock().retain(|open| open.id != id);
    }

    fn find(&self, id: FileId) -> Option<Arc<OpenFile>> {
        let mut files = self.lock();
        let at = files.iter().position(|open| open.id == id)?;
        files[..=at].rotate_right(1);
        files.first().map(Arc::clone)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<OpenFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::{Position, SegmentId};
    use super::*;
    use crate::model::id::Epoch;

    fn segment(number: u32) -> FileId {
        SegmentId { epoch: Epoch(1), number }.into()
    }

    #[test]
    fn a_file_stays_open_until_it_is_closed_or_many_others_were_opened() {
        let dir = tempfile::tempdir().unwrap();
        let count = OPEN_FILES_MAX as u32 + 1;
        for number in 1..=count {
            let id = segment(number).marked();
            let head = SegmentHead { id, seed: 7, continues: Position::start_of(id) };
            head.create(dir.path(), 8192, 0).unwrap();
        }
        let open = OpenFiles::default();
        let is_open = |number| open.lock().iter().any(|open| open.id == segment(number));
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
