//! Free space of a file system, in bytes and in files.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::finding::Finding;
use super::{CheckError, io_error};

/// With less free space a store does not get far: two segments of the default size, the next one, which is made ahead
/// of its use, and one to copy into.
pub const FREE_BYTES_MIN: u64 = 256 << 20;
/// With fewer free inodes segments, packs and claims of epochs cannot be made for long.
pub const FREE_FILES_MIN: u64 = 1_000;

/// Space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// All of it.
    pub bytes: u64,
    /// What this user may still write.
    pub free_bytes: u64,
    /// Files that may still be made; `None` where the file system has no such limit.
    pub free_files: Option<u64>,
}

impl Space {
    /// The space for the directory `dir`.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn of(dir: &Path) -> Result<Self, CheckError> {
        let stat = rustix::fs::statvfs(dir).map_err(|errno| io_error("look at", dir)(errno.into()))?;
        Ok(Self {
            bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            free_files: (stat.f_files > 0).then_some(stat.f_favail),
        })
    }

    /// Whether it is enough.
    #[must_use]
    pub fn judge(self) -> Finding {
        let Self { bytes, free_bytes, free_files } = self;
        let mebibytes = |bytes: u64| format!("{} MiB", bytes >> 20);
        if free_bytes < FREE_BYTES_MIN {
            let (free, wanted) = (mebibytes(free_bytes), mebibytes(FREE_BYTES_MIN));
            return Finding::doubt(
                "little-space",
                format!("only {free} are free; make it {wanted} at least"),
            );
        }
        if let Some(files) = free_files.filter(|files| *files < FREE_FILES_MIN) {
            let text = format!("only {files} files can still be made; make more inodes, or remove files");
            return Finding::doubt("few-files", text);
        }
        Finding::good("space", format!("{} of {} are free", mebibytes(free_bytes), mebibytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_and_too_few_files_are_reasons_for_doubt() {
        let space = Space { bytes: 1 << 30, free_bytes: FREE_BYTES_MIN, free_files: None };
        let code = |space: Space| space.judge().code.into_owned();
        assert_eq!(code(space), "space");
        assert_eq!(code(Space { free_files: Some(FREE_FILES_MIN), ..space }), "space");
        assert_eq!(code(Space { free_files: Some(FREE_FILES_MIN - 1), ..space }), "few-files");
        assert_eq!(code(Space { free_bytes: FREE_BYTES_MIN - 1, ..space }), "little-space");
        Space::of(tempfile::tempdir().unwrap().path()).unwrap();
    }
}
