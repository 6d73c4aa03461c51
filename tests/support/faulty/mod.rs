//! A disk with faults: a mount of a folder through which the n-th read, write, sync, rename, creation, removal or lock
//! fails, is cut short, is stale, or waits.
//!
//! After a sync that failed, what was written to the file since its last good sync is gone, as it is where a disk has
//! failed under the cache of the system: a second sync would say yes to nothing. Nothing is cached by the kernel, so
//! what one process writes another one reads.
//!
//! The mount is served by threads of the test. It needs root and `/dev/fuse`, and no library of the system.

pub mod faults;
mod passthrough;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption};

use faults::Faults;
use passthrough::{Locks, Passthrough};

/// Threads that answer. One that waits in a fault must not keep the others from answering.
const THREADS: usize = 4;

/// A mount that lasts as long as this.
pub struct FaultyDisk {
    /// Where the files lie, without faults.
    pub real: PathBuf,
    /// Where they are seen through the mount.
    pub path: PathBuf,
    pub faults: Arc<Faults>,
    session: Option<BackgroundSession>,
}

impl FaultyDisk {
    /// A mount in `dir`, and its files beside it.
    pub fn new(dir: &Path) -> Self {
        let real = dir.join("real");
        std::fs::create_dir(&real).unwrap();
        Self::of(&real, &dir.join("faulty"))
    }

    /// A mount at `path`, which is made, of the files in `real`. Of several mounts, locks exclude only within each.
    pub fn of(real: &Path, path: &Path) -> Self {
        Self::with(Locks::OfTheMount, real, path)
    }

    /// A mount at `path`, which is made, of the files in `real`. Its locks are those of the files: they exclude other mounts,
    /// and may fail.
    pub fn with_locks_of_the_files(real: &Path, path: &Path) -> Self {
        Self::with(Locks::OfTheFiles, real, path)
    }

    fn with(locks: Locks, real: &Path, path: &Path) -> Self {
        let (real, path) = (real.to_owned(), path.to_owned());
        std::fs::create_dir(&path).unwrap();
        let faults = Arc::new(Faults::default());
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("faulty".into()), MountOption::NoAtime];
        config.n_threads = Some(THREADS);
        let disk = Passthrough::new(&real, Arc::clone(&faults), locks);
        let session = fuser::spawn_mount(disk, &path, &config).unwrap_or_else(|error| {
            panic!("a FUSE file system cannot be mounted: {error}; this test needs root and /dev/fuse")
        });
        Self { real, path, faults, session: Some(session) }
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.faults.clear();
        // Lazily, so that it also goes where a process still has something open in it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        drop(self.session.take());
    }
}
