//! What is left on the shared disk, looked at now and then.
//!
//! A look is a round trip on some shared file systems, so not every commit takes one: what is spent in between is
//! subtracted. What other programs write meanwhile is seen at the next look, so this is a watermark and no promise.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::StoreError;
use crate::disk;
use crate::model::free_min::FreeMin;

/// The next look comes at the latest after this time,
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// or when this part of what was free is spent.
const LOOK_FRACTION: u64 = 8;

/// The free space of the file system that holds a directory.
#[derive(Debug)]
pub struct FreeSpace {
    dir: PathBuf,
    looked_at: Option<Instant>,
    free: u64,
    /// Bytes of the whole file system.
    size: u64,
    until_look: u64,
}

impl FreeSpace {
    /// The free space around `dir`, not looked at yet.
    #[must_use]
    pub fn around(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), looked_at: None, free: 0, size: 0, until_look: 0 }
    }

    /// Bytes that are free.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn bytes(&mut self) -> Result<u64, StoreError> {
        let now = disk::world::now(&self.dir);
        if self.until_look == 0
            || self.looked_at.is_none_or(|at| now.saturating_duration_since(at) > LOOK_INTERVAL)
        {
            let known = disk::free_and_size(&self.dir);
            (self.free, self.size) = known.map_err(|source| StoreError::Io {
                action: "ask for the free space of",
                path: self.dir.clone(),
                source,
            })?;
            self.until_look = self.free / LOOK_FRACTION;
            self.looked_at = Some(now);
        }
        Ok(self.free)
    }

    /// Bytes that are free beside those that are to stay free.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn bytes_above(&mut self, min: FreeMin) -> Result<u64, StoreError> {
        let free = self.bytes()?;
        let kept = match min {
            FreeMin::Bytes(bytes) => bytes,
            FreeMin::Percent(percent) => self.size / 100 * u64::from(percent),
        };
        Ok(free.saturating_sub(kept))
    }

    /// Notes that so many bytes were written.
    pub const fn spend(&mut self, bytes: u64) {
        self.free = self.free.saturating_sub(bytes);
        self.until_look = self.until_look.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_is_subtracted_until_the_next_look() {
        let dir = tempfile::tempdir().unwrap();
        let mut space = FreeSpace::around(dir.path());
        let free = space.bytes().unwrap();
        assert!(free > 0);
        space.spend(1);
        // A machine so slow that a second has passed has looked again.
        let elapsed = space.looked_at.unwrap().elapsed();
        assert!(space.bytes().unwrap() == free - 1 || elapsed > LOOK_INTERVAL / 2);
        space.spend(u64::MAX);
        assert_eq!(space.free, 0);
        assert!(space.bytes().unwrap() > 0, "looked at again");
    }

    #[test]
    fn what_is_kept_free_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut space = FreeSpace::around(dir.path());
        let mut above = |min| space.bytes_above(min).unwrap();
        let all = above(FreeMin::default());
        assert!(above(FreeMin::Bytes(all / 2)).abs_diff(all / 2) < all / 4);
        assert_eq!(above(FreeMin::Bytes(u64::MAX)), 0);
        assert_eq!(above(FreeMin::Percent(99)), 0);
    }
}
