//! One segment that is being replayed, and how a walk through it ends.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::io_error;
use super::segment::{SegmentHead, SegmentId};
use crate::disk::{self, File};
use crate::store::StoreError;

/// What a walk through a segment came to.
pub enum Pass {
    /// The end of what counts of it.
    End(SegmentEnd),
    /// No valid entry where one was synced, and what is wrong.
    Gap(u64, &'static str),
}

/// Where the entries of a segment end.
#[derive(Clone, Copy, Debug)]
pub enum SegmentEnd {
    /// The epoch ends here.
    Last(u64),
    /// The epoch goes on in the next segment.
    Full(u64),
}

impl SegmentEnd {
    /// Where the entries end, in bytes of the segment.
    #[must_use]
    pub const fn at(&self) -> u64 {
        match self {
            Self::Last(at) | Self::Full(at) => *at,
        }
    }
}

/// A segment that is being replayed.
#[derive(Debug)]
pub struct ReplayedSegment {
    /// Its path.
    pub path: PathBuf,
    /// The file.
    pub file: File,
    /// Its head.
    pub head: SegmentHead,
    /// The chain that its next entry has; `None` where that is not known.
    pub chain: Option<u32>,
}

impl ReplayedSegment {
    /// Opens it. Where no chain is given, that of its epoch begins here.
    ///
    /// # Errors
    /// Where it is missing or cannot be read, or its head is damaged.
    pub fn open(journal: &Path, id: SegmentId, chain: Option<u32>) -> Result<Self, StoreError> {
        let path = id.path(journal);
        let file = open(&path)?;
        let head = SegmentHead::read(&file, &path, id)?;
        Ok(Self { path, file, head, chain: chain.or(Some(head.seed)) })
    }

    /// Opens the file anew: what is read from now on is what is there now.
    ///
    /// # Errors
    /// Where it is missing or cannot be opened.
    pub fn open_anew(&mut self) -> Result<(), StoreError> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Makes durable what is in it.
    ///
    /// # Errors
    /// Where it cannot be synced.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(io_error("sync", &self.path))
    }

    /// Makes the system read from the disk: after a sync that failed, memory can hold what the disk does not.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn forget_cached(&self, from: u64) -> Result<(), StoreError> {
        self.file.forget_kept(from).map_err(io_error("drop cached pages of", &self.path))
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    match disk::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(StoreError::Missing { path: path.to_owned() })
        }
        opened => opened.map_err(io_error("open", path)),
    }
}
