//! What is done to names of the shared disk: making, renaming, removing, and making that durable.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::file::{Attributes, File, Kind, Opening};
use super::mount;

/// Makes a folder.
///
/// # Errors
/// The system's own, [`ErrorKind::AlreadyExists`] among them.
pub fn create_folder(path: &Path) -> io::Result<()> {
    match mount::of(path) {
        None => fs::create_dir(path),
        Some(mount) => mount.create_folder(path),
    }
}

/// Makes a folder where there is none.
///
/// # Errors
/// The system's own.
pub fn ensure_folder(path: &Path) -> io::Result<()> {
    match create_folder(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && is_folder(path)? => Ok(()),
        made => made,
    }
}

/// Gives a file another name, in place of whatever had that.
///
/// # Errors
/// The system's own.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match mount::of(from) {
        None => fs::rename(from, to),
        Some(mount) => mount.rename(from, to),
    }
}

/// Removes a file.
///
/// # Errors
/// The system's own, [`ErrorKind::NotFound`] among them.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match mount::of(path) {
        None => fs::remove_file(path),
        Some(mount) => mount.remove_file(path),
    }
}

/// Makes the names in a folder durable.
///
/// # Errors
/// Where it cannot be opened or synced.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path, Opening::Read)?.sync_all()
}

/// Whether a path leads to a folder.
///
/// # Errors
/// The system's own, [`ErrorKind::NotFound`] among them.
pub fn is_folder(path: &Path) -> io::Result<bool> {
    match mount::of(path) {
        None => Ok(fs::metadata(path)?.is_dir()),
        Some(mount) => Ok(mount.attributes(path)?.kind == Kind::Folder),
    }
}

/// Device and inode of what has this name; a link is not followed.
///
/// # Errors
/// The system's own, [`ErrorKind::NotFound`] among them.
pub fn identity_at(path: &Path) -> io::Result<(u64, u64)> {
    match mount::of(path) {
        None => Ok(Attributes::of(&fs::symlink_metadata(path)?).identity),
        Some(mount) => Ok(mount.attributes(path)?.identity),
    }
}

/// The path from the root, without links.
///
/// # Errors
/// The system's own.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    match mount::of(path) {
        None => fs::canonicalize(path),
        Some(_) => Ok(path.to_owned()),
    }
}

/// Checks that this process may use a name in this way, as far as that shows without doing so. One that is not there
/// is in nobody's way.
///
/// # Errors
/// The system's own.
pub fn check_access(path: &Path, wanted: Access) -> io::Result<()> {
    if mount::of(path).is_some() {
        // Everything of it may be used, or the attempt says so.
        return Ok(());
    }
    match rustix::fs::access(path, wanted) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
