//! The shared disk: the one door through which `ha` and the file store get to it, and how to read afresh what another
//! host may just have written.
//!
//! [`mod@file`] and [`naming`] are what the system's calls do, [`world`] the time and the chance that go with it,
//! [`helper`] the threads that work on it beside others. A [`mount`] can take the place of the system, for a simulation. The
//! database has a door of its own, that of its library, and uses what is here for all else.
//!
//! # Reading afresh
//!
//! A mount of a shared disk may keep what it knows for a while, a second where nothing else is said. What that hides,
//! measured with two FUSE mounts of one folder, and what uncovers it:
//!
//! | kept | hides, even from a file that is opened anew | uncovered by |
//! | --- | --- | --- |
//! | the attributes of a file | what was appended: every read ends at the old length | asking for the length with `AT_STATX_FORCE_SYNC` |
//! | the names in a folder | new names in a listing | asking for the attributes of the folder in that way |
//! | that there is no such name | a file or folder that is there by now | only time, or the exclusive creation of the name |
//! | the pages of a file | what was overwritten | opening it anew; a descriptor from before reads old bytes |
//!
//! So [`open`], [`read`] and [`names`] open anew, ask the file system itself, and take a name for missing only if the
//! folder, listed afresh, does not have it. What has not been read from elsewhere before needs nothing of this.

mod copying;
pub mod file;
pub mod helper;
#[cfg(test)]
pub(crate) mod hooked;
pub mod mount;
pub mod naming;
pub mod world;

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

pub use copying::Copying;
pub use file::{File, LockKind, Opening};
pub use naming::{
    absolute, check_access, create_folder, ensure_folder, identity_at, is_folder, remove_file, rename,
    sync_folder,
};

/// How often a name may be listed and yet not be found: for ten seconds, longer than mounts usually keep it. Attempts are
/// counted, and not the time that they take: a host that stands still for long in between has tried no more often.
const STALE_ATTEMPTS_MAX: u32 = 1000;
/// Time between two attempts to open such a name.
const STALE_STEP: Duration = Duration::from_millis(10);

/// Opens a file or folder to read what is there now.
///
/// # Errors
/// Where it cannot be opened. [`ErrorKind::NotFound`] means that it is not there.
pub fn open(path: &Path) -> io::Result<File> {
    open_within(path, STALE_ATTEMPTS_MAX)
}

fn open_within(path: &Path, attempts_max: u32) -> io::Result<File> {
    for _ in 0..attempts_max {
        let error = match open_once(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => error,
            opened => return opened,
        };
        if !is_listed(path)? {
            return Err(error);
        }
        world::pause(path, STALE_STEP);
    }
    let text = "the folder has this name, but it cannot be opened";
    Err(io::Error::new(ErrorKind::StaleNetworkFileHandle, text))
}

/// Opens it, and makes the mount fetch its attributes. A file that was deleted, and whose name the mount still keeps,
/// is not found.
fn open_once(path: &Path) -> io::Result<File> {
    let file = File::open(path, Opening::Read)?;
    if file.has_name()? { Ok(file) } else { Err(ErrorKind::NotFound.into()) }
}

fn is_listed(path: &Path) -> io::Result<bool> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    match names(folder) {
        Ok(names) => Ok(names.iter().any(|listed| listed == name)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The names in a folder.
///
/// # Errors
/// Where it cannot be listed. [`ErrorKind::NotFound`] means that it is not there.
pub fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    // The attributes tell the mount whether the listing that it keeps is still right.
    open(folder)?;
    match mount::of(folder) {
        None => fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect(),
        Some(mount) => mount.list(folder),
    }
}

/// The length of the file at `path`. The file may then be opened by other means, as a database does: the mount knows
/// its name and its length.
///
/// # Errors
/// As for [`open`].
pub fn length_at(path: &Path) -> io::Result<u64> {
    open(path)?.length()
}

/// All bytes of a file.
///
/// # Errors
/// As for [`open`], or where it cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes that are free in the file system of `folder`, for this process's user.
///
/// # Errors
/// Where the file system cannot be asked.
pub fn free(folder: &Path) -> io::Result<u64> {
    free_and_size(folder).map(|(free, _)| free)
}

/// Bytes that are free in the file system of `folder`, as [`free`] answers them, and all of its bytes.
///
/// # Errors
/// Where the file system cannot be asked.
pub fn free_and_size(folder: &Path) -> io::Result<(u64, u64)> {
    if let Some(mount) = mount::of(folder) {
        return mount.free_and_size();
    }
    let stat = rustix::fs::statvfs(folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok((bytes(stat.f_bavail), bytes(stat.f_blocks)))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_missing_name_is_not_found_at_once_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let started = Instant::now();
        for name in ["a", "a/b", "a/b/c"] {
            let path = dir.path().join(name);
            assert_eq!(open(&path).unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(names(&path).unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(length_at(&path).unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::NotFound);
            let copying = Copying::begin(&path, &dir.path().join("copy"));
            assert_eq!(copying.unwrap_err().kind(), ErrorKind::NotFound);
        }
        assert!(started.elapsed() < STALE_ATTEMPTS_MAX * STALE_STEP);
        assert_eq!(names(dir.path()).unwrap().len(), 0, "a copy of nothing makes nothing");
    }

    #[test]
    fn what_is_there_is_read_and_copied() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        for bytes in [b"first".as_slice(), b"and a longer one", b""] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(read(&path).unwrap(), bytes);
            assert_eq!(length_at(&path).unwrap(), bytes.len() as u64);
            let mut copying = Copying::begin(&path, &other).unwrap();
            let steps = std::iter::from_fn(|| Some(copying.step(4).unwrap()).filter(|&bytes| bytes > 0));
            assert_eq!(steps.sum::<u64>(), bytes.len() as u64);
            assert_eq!(fs::read(&other).unwrap(), bytes);
        }
        let mut found = names(dir.path()).unwrap();
        found.sort();
        assert_eq!(found, ["a", "b"]);
    }

    /// A mount that keeps names may go on opening a file that another host has deleted.
    #[test]
    fn a_name_that_is_listed_and_never_found_is_trouble_and_not_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        let error = open_within(&path, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StaleNetworkFileHandle);
    }

    /// A host that stood still for longer than the attempts may take, between one of them and its look at the clock, took
    /// that for a name that can never be opened, and its node ended.
    #[test]
    fn a_host_that_stands_still_has_tried_no_more_often() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("store");
        fs::create_dir(&folder).unwrap();
        let mut attempts = 0;
        let late = move |mount: &hooked::Hooked, path: &Path| {
            attempts += u32::from(path.ends_with("late"));
            if path.ends_with("late") && attempts == 1 {
                fs::write(path, "there by now").unwrap();
                mount.stand_still(STALE_ATTEMPTS_MAX * STALE_STEP * 2);
                return Err(ErrorKind::NotFound.into());
            }
            Ok(())
        };
        let (path, _installed) = hooked::Hooked::mount(&folder, Box::new(late));
        assert_eq!(read(&path.join("late")).unwrap(), b"there by now");
    }
}
