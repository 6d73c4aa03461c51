//! What is kept free on the shared disk: below it publishes are refused, and consuming goes on.
//!
//! The store keeps enough for itself in any case. This is for others who need the disk, and for an operator who wants
//! to hear of it in time. It is looked at now and then, and is no promise.

use std::path::{Path, PathBuf};

use crate::disk;
use crate::model::free_min::FreeMin;
use crate::model::record::{Published, Record};
use crate::store::StoreError;
use crate::store::space::FreeSpace;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Watermark {
    dir: PathBuf,
    min: FreeMin,
    /// None where nothing is kept free.
    free: Option<FreeSpace>,
}

impl Watermark {
    pub fn new(dir: &Path, min: FreeMin) -> Self {
        let free = (min != FreeMin::default()).then(|| FreeSpace::around(dir));
        Self { dir: dir.to_owned(), min, free }
    }

    /// Of `space`, what may be used for messages.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn below(&mut self, space: u64) -> Result<u64, StoreError> {
        let Some(free) = &mut self.free else { return Ok(space) };
        let kept = match self.min {
            FreeMin::Bytes(bytes) => bytes,
            FreeMin::Percent(percent) => {
                let size = disk::size(&self.dir).map_err(|source| StoreError::Io {
                    action: "ask for the size of the disk of",
                    path: self.dir.clone(),
                    source,
                })?;
                size / 100 * u64::from(percent)
            }
        };
        Ok(space.min(free.bytes()?.saturating_sub(kept)))
    }

    /// Notes what was written.
    pub fn spend(&mut self, records: &[Record]) {
        let Some(free) = &mut self.free else { return };
        for record in records {
            if let Record::Published(Published { block, .. }) = record {
                free.spend(block.bytes().len() as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_free_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let below = |min| Watermark::new(dir.path(), min).below(1_000).unwrap();
        assert_eq!(below(FreeMin::default()), 1_000);
        assert_eq!(below(FreeMin::Bytes(1)), 1_000);
        assert_eq!(below(FreeMin::Bytes(u64::MAX)), 0);
        assert_eq!(below(FreeMin::Percent(99)), 0);
    }
}
