//! Mounts: shared disks that are no file system of the system.
//!
//! A simulation installs one under a path that the system need not have. From then on every thread of the process that
//! uses a path below it gets to the mount, as with a mount of the system, and nothing else is told of it: not who opens
//! a file, and not which thread does. Two nodes that share a disk have one mount each.
//!
//! A mount also has what must not come from elsewhere if it is to decide everything that happens on it: time, chance,
//! and the threads that work on it beside others.
//!
//! Where none is installed, all of this costs one load of an atomic for each file that is opened.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use super::file::{Attributes, LockKind, Opening};

/// A disk as one host sees it. All of it may be called on any thread, and may wait as long as a disk may.
pub trait Mount: Debug + Send + Sync {
    /// Opens a file or folder. What it answers may be from memory, as with any mount of a shared disk.
    ///
    /// # Errors
    /// As those of the system.
    fn open(&self, path: &Path, opening: Opening) -> io::Result<Box<dyn MountedFile>>;

    /// The names in a folder, from memory where nobody has asked for its attributes afresh.
    ///
    /// # Errors
    /// As those of the system.
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>>;

    /// What is known of a name. What it answers may be from memory.
    ///
    /// # Errors
    /// As those of the system.
    fn attributes(&self, path: &Path) -> io::Result<Attributes>;

    /// Makes a folder.
    ///
    /// # Errors
    /// As those of the system.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name, in place of whatever had that.
    ///
    /// # Errors
    /// As those of the system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes the name of a file.
    ///
    /// # Errors
    /// As those of the system.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Bytes that are free, and all of them.
    ///
    /// # Errors
    /// As those of the system.
    fn free_and_size(&self) -> io::Result<(u64, u64)>;

    /// The time.
    fn now(&self) -> Instant;

    /// The time by the clock of the host.
    fn wall(&self) -> SystemTime;

    /// Waits for so long.
    fn pause(&self, time: Duration);

    /// A number by chance.
    fn chance(&self) -> u64;

    /// Starts a thread that works on this disk.
    ///
    /// # Errors
    /// Where there can be no further thread.
    fn start(&self, name: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()>;

    /// Waits until something is so that another thread of this disk brings about.
    fn wait(&self, is_so: Arc<dyn Fn() -> bool + Send + Sync>);
}

/// A file or folder of a mount that is open. Closed when it is dropped, which also lets its lock go.
pub trait MountedFile: Debug + Send + Sync {
    /// Reads up to as many bytes as the buffer has, from `at` on; 0 at the end of the file as it is known.
    ///
    /// # Errors
    /// As those of the system.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes the pieces one behind the other from `at` on, and answers how many bytes it wrote.
    ///
    /// # Errors
    /// As those of the system.
    fn write_at(&self, pieces: &[IoSlice<'_>], at: u64) -> io::Result<usize>;

    /// Makes what was written durable; of a folder, its names.
    ///
    /// # Errors
    /// As those of the system.
    fn sync(&self) -> io::Result<()>;

    /// Makes the file as long as that.
    ///
    /// # Errors
    /// As those of the system.
    fn set_length(&self, bytes: u64) -> io::Result<()>;

    /// What the disk itself knows of the file; reads go by that from now on.
    ///
    /// # Errors
    /// As those of the system.
    fn attributes_afresh(&self) -> io::Result<Attributes>;

    /// One attempt to lock it. `false` where somebody else's lock is in the way.
    ///
    /// # Errors
    /// As those of the system.
    fn try_lock(&self, kind: LockKind) -> io::Result<bool>;

    /// Drops what is kept in memory of the file from `from` on and needs no write.
    ///
    /// # Errors
    /// As those of the system.
    fn forget_kept(&self, from: u64) -> io::Result<()>;
}

/// How many are installed: what is asked for each path.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static MOUNTS: RwLock<Vec<(PathBuf, Arc<dyn Mount>)>> = RwLock::new(Vec::new());

/// A mount that is installed, until this is dropped.
#[derive(Debug)]
pub struct Installed {
    path: PathBuf,
}

/// Installs a mount at a path. Threads that are started from now on find it there.
///
/// # Panics
/// Where there is one at that path.
#[must_use]
pub fn install(path: &Path, mount: Arc<dyn Mount>) -> Installed {
    let mut mounts = MOUNTS.write().unwrap_or_else(PoisonError::into_inner);
    assert!(mounts.iter().all(|(other, _)| other != path), "{} has a mount", path.display());
    mounts.push((path.to_owned(), mount));
    COUNT.store(mounts.len(), Ordering::Release);
    Installed { path: path.to_owned() }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let mut mounts = MOUNTS.write().unwrap_or_else(PoisonError::into_inner);
        mounts.retain(|(path, _)| *path != self.path);
        COUNT.store(mounts.len(), Ordering::Release);
    }
}

/// The mount that a path leads to; `None` where the system has it.
#[inline]
pub(super) fn of(path: &Path) -> Option<Arc<dyn Mount>> {
    if COUNT.load(Ordering::Acquire) == 0 { None } else { find(path) }
}

#[cold]
fn find(path: &Path) -> Option<Arc<dyn Mount>> {
    let mounts = MOUNTS.read().unwrap_or_else(PoisonError::into_inner);
    mounts.iter().find(|(at, _)| path.starts_with(at)).map(|(_, mount)| Arc::clone(mount))
}
