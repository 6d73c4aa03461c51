//! Names of the files of the database mode, and which of them are there.
//!
//! `baton-<epoch, 20 digits>.db` is made by that epoch; beside it lie its log and, while it is being copied, an
//! earlier reading of that log. Knows nothing of what is in them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::super::StoreError;
use super::super::manifest::Manifest;
use crate::disk;
use crate::model::id::Epoch;

/// What is behind the digits in the names of a database's files.
const SUFFIXES: [&str; 4] = [".db", ".db-wal", ".db-wal-earlier", ".db-journal"];

/// The name of the database that `epoch` makes.
pub(super) fn name(epoch: Epoch) -> String {
    format!("baton-{epoch:020}.db")
}

/// The epoch that made a database file, by its name. A name that does not say counts as the first: nothing older
/// may write.
pub(super) fn maker(name: &str) -> Epoch {
    epoch_of(name).unwrap_or_default()
}

/// The write-ahead log of a database.
pub(super) fn log(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// Where a log is kept that was read before its database.
pub(super) fn earlier_log(database: &Path) -> PathBuf {
    beside(database, "-wal-earlier")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The length of a file, read afresh; `None` where it is not there. Not for a database that is open in this process.
///
/// # Errors
/// Where the file cannot be looked at.
pub(super) fn length(path: &Path) -> Result<Option<u64>, StoreError> {
    match disk::length_at(path) {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { action: "look at", path: path.to_owned(), source }),
    }
}

/// Refuses to begin anew beside a database that holds something and so has lost its manifest. One that was never
/// served is as small as `own`, which was made just now: what it has is in its log, and nobody wrote that back.
///
/// # Errors
/// [`StoreError::Missing`] with the manifest that is not there.
pub(super) fn check_none_lost(own: &Path, epoch: Epoch) -> Result<(), StoreError> {
    let Some(dir) = own.parent() else { return Ok(()) };
    let bytes = |path: &Path| Ok::<_, StoreError>(length(path)?.unwrap_or(0));
    let (empty, empty_log) = (bytes(own)?, bytes(&log(own))?);
    for (maker, path) in older(dir, epoch)? {
        let is_database = path.extension().is_some_and(|extension| extension == "db");
        if is_database && (bytes(&path)? > empty || bytes(&log(&path))? > empty_log) {
            return Err(StoreError::Missing { path: dir.join("manifest").join(format!("{maker:020}")) });
        }
    }
    Ok(())
}

/// Removes the files of lower epochs but those of the database in use, and their manifests. The manifest that names it
/// is durable, and the fence was checked after it: nobody who claims an epoch from now on reads an older manifest. Step
/// `Remove` of `tests/ha_model`.
///
/// # Errors
/// Where a directory cannot be listed, or a file not be removed.
pub(super) fn remove_old(database: &Path, epoch: Epoch) -> Result<(), StoreError> {
    let Some(dir) = database.parent() else { return Ok(()) };
    let in_use = database.file_name().and_then(|name| name.to_str()).and_then(epoch_of);
    let unused = older(dir, epoch)?.into_iter().filter(|(maker, _)| in_use != Some(*maker));
    for path in unused.map(|(_, path)| path).chain(Manifest::older(dir, epoch)?) {
        tracing::info!(file = %path.display(), "removing the file of an older epoch");
        fs::remove_file(&path).map_err(|source| StoreError::Io { action: "remove", path, source })?;
    }
    Ok(())
}

/// Removes files; those that are gone already are no error.
///
/// # Errors
/// Where one cannot be removed.
pub(super) fn remove(paths: &[PathBuf]) -> Result<(), StoreError> {
    for path in paths {
        match fs::remove_file(path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(StoreError::Io { action: "remove", path: path.clone(), source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Every file that belongs to a database, the database first.
pub(super) fn all_of(database: &Path) -> Vec<PathBuf> {
    let stem = database.with_extension("");
    SUFFIXES.iter().map(|suffix| beside(&stem, suffix)).collect()
}

/// The files of databases that epochs below `epoch` have made.
///
/// # Errors
/// Where the directory cannot be listed.
pub(super) fn older(dir: &Path, epoch: Epoch) -> Result<Vec<(Epoch, PathBuf)>, StoreError> {
    let names =
        disk::names(dir).map_err(|source| StoreError::Io { action: "list", path: dir.to_owned(), source })?;
    let made = |name: &std::ffi::OsString| name.to_str().and_then(epoch_of).filter(|&maker| maker < epoch);
    Ok(names.iter().filter_map(|name| Some((made(name)?, dir.join(name)))).collect())
}

/// The epoch in the name of a database file or of one that belongs to it.
pub(super) fn epoch_of(name: &str) -> Option<Epoch> {
    let (digits, rest) = name.strip_prefix("baton-")?.split_at_checked(20)?;
    if SUFFIXES.contains(&rest) { digits.parse().ok().map(Epoch) } else { None }
}
