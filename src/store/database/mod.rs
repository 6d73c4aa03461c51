//! The database mode: records as rows of an SQLite database, readable by a person.
//!
//! One file, `baton-<epoch, 20 digits>.db`, named by the epoch that made it and in the newest manifest; no other one
//! counts. The schema is in `sql/`. One connection writes and checkpoints, on the thread that owns the store; each
//! reader has its own. The name of the database stays below this module.
//!
//! It is one file, and not a bounded hot one beside sealed ones that never change, though a takeover would then copy
//! less and trimming would remove files. A commit over several attached databases is not atomic while they have
//! write-ahead logs, so sealing would need a protocol of its own between the files, its crashes included. What is not
//! settled would have to be copied out of sealed files, or one message would hold a file back for ever: that is the
//! file mode, which has it. Queries, readers, images and `sqlite3` on a backup would need to find all files and join
//! them, and one file with tables to be read by a person is what this mode is for. The copy is only needed where an old
//! master may still write; whoever cannot wait for it takes the file mode.
//!
//! Invariants: a file is named in a durable manifest before anything is committed to it; a file that a manifest
//! names is never created; nothing is written once the fence is known to be broken, nor when the store is dropped
//! without [`close`](Store::close).

mod bodies;
mod catalog;
mod checksum;
mod commit;
mod connection;
mod files;
mod fill;
mod frame;
mod image;
mod log;
mod mended;
mod message;
mod query;
mod reader;
mod rows;
mod schema;
mod staging;
mod store;
mod takeover;
mod unserved;
mod upkeep;

use std::path::Path;

use rustix::fs::Access as Rights;

use super::check::check_rights;
use super::image::{Fill, Image};
use super::manifest::Manifest;
use super::query::Inspector;
use super::survey::{Damage, Lost};
use super::{FenceCheck, Mode, OpenOptions, Predecessor, Predecessors, Store, StoreError};
use crate::model::id::Epoch;
use crate::model::snapshot::Snapshot;
use fill::DatabaseFill;
use image::DatabaseImage;
use query::DatabaseInspector;
pub use schema::FORMAT;
use store::DatabaseStore;

/// Opens the store for the epoch, as its new master: takes the database of the newest manifest over, or makes a new
/// one where there is no manifest.
///
/// # Errors
/// Where the database is missing, damaged or of a newer format, belongs to another process, or cannot be written.
pub fn open(options: &OpenOptions) -> Result<(Box<dyn Store>, Snapshot), StoreError> {
    open_fenced(options, &mut || Ok(()))
}

/// As [`open`], while others may claim: the fence is asked before each step that writes, and after what takes long.
///
/// # Errors
/// As for [`open`], and where the fence is broken.
pub fn open_fenced(
    options: &OpenOptions,
    fence: FenceCheck<'_>,
) -> Result<(Box<dyn Store>, Snapshot), StoreError> {
    let (store, snapshot) = DatabaseStore::open(options, fence)?;
    Ok((Box::new(store), snapshot))
}

/// Begins a new database in which a store is made: see [`fill`](super::image::fill).
///
/// # Errors
/// Where it cannot be written.
pub fn fill(options: &OpenOptions, snapshot: &Snapshot) -> Result<Box<dyn Fill>, StoreError> {
    Ok(Box::new(DatabaseFill::begin(options, snapshot)?))
}

/// What a database holds that nobody serves: see [`look`](super::image::look).
///
/// # Errors
/// Where it is missing, damaged or of a newer format, or belongs to another process.
pub fn look(dir: &Path, manifest: &Manifest) -> Result<Box<dyn Image>, StoreError> {
    Ok(Box::new(DatabaseImage::look(&dir.join(database_of(manifest, dir)?))?))
}

/// What is wrong in the files of a database: see [`survey`](super::survey).
///
/// # Errors
/// Where it is of a newer format, or belongs to another process.
pub fn inspect_files(dir: &Path, manifest: &Manifest) -> Result<Vec<Damage>, StoreError> {
    image::inspect_files(&dir.join(database_of(manifest, dir)?))
}

/// The database that counts where no manifest can be read: see [`guess`](super::guess). `None` where there is none.
///
/// A takeover that was killed may have left a copy that is not whole, and an epoch that was never served an empty one.
/// So the newest one that is whole and holds something is taken; then the newest one that holds something.
///
/// # Errors
/// Where the directory cannot be listed, or a database is of a newer format or belongs to another process.
pub(super) fn guess(dir: &Path) -> Result<Option<Manifest>, StoreError> {
    let mut made = files::older(dir, Epoch(u64::MAX))?;
    made.retain(|(_, path)| path.extension().is_some_and(|extension| extension == "db"));
    made.sort_unstable();
    let mut best = None;
    for (epoch, path) in made.into_iter().rev() {
        let holds = match DatabaseImage::look_at_what_is_left(&path) {
            Ok((image, _)) if image.snapshot().topics.is_empty() => Holds::Nothing,
            Ok(_) if image::inspect_files(&path)?.is_empty() => Holds::All,
            Ok(_) => Holds::Something,
            Err(error @ (StoreError::NewerFormat { .. } | StoreError::NoRights { .. })) => return Err(error),
            Err(_) => Holds::Nothing,
        };
        if best.is_none_or(|(best, _)| holds > best) {
            best = Some((holds, epoch));
        }
    }
    Ok(best.map(|(_, epoch)| Manifest {
        epoch,
        mode: Mode::Database,
        sealed: Vec::new(),
        database: Some(files::name(epoch)),
    }))
}

/// How good a database is to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    Nothing,
    Something,
    All,
}

/// What is left in a database that may be damaged, and what is not: see [`survey`](super::survey).
///
/// # Errors
/// Where it cannot be read at all.
pub fn look_at_what_is_left(
    dir: &Path,
    manifest: &Manifest,
) -> Result<(Box<dyn Image>, Vec<Damage>), StoreError> {
    let path = dir.join(database_of(manifest, dir)?);
    let (image, lost) = DatabaseImage::look_at_what_is_left(&path)?;
    let damage = |what| Damage { path: path.clone(), position: None, what, lost: Lost::Unknown };
    Ok((Box::new(image), lost.into_iter().map(damage).collect()))
}

/// Whether a file of this name in the shared directory is of the database mode.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    files::epoch_of(name).is_some()
}

/// Checks that this version can take over the database that a manifest names. Changes nothing; no connection is open.
///
/// # Errors
/// Where it is missing, of a newer format, or cannot be read, or there is no space for the copy that it needs.
pub(super) fn check(dir: &Path, manifest: &Manifest, predecessors: &Predecessors) -> Result<(), StoreError> {
    let name = database_of(manifest, dir)?;
    for file in files::all_of(&dir.join(&name)) {
        check_rights(&file, Rights::READ_OK | Rights::WRITE_OK)?;
    }
    schema::check_head(&dir.join(&name))?;
    match predecessors.since(files::maker(&name)) {
        Predecessor::MayWrite => takeover::check_space(dir, &name, predecessors),
        Predecessor::None | Predecessor::Gone => Ok(()),
    }
}

/// Opens the database that a manifest names to be asked, and changes nothing of it. Nobody has it open.
///
/// # Errors
/// Where it is missing, damaged, of a newer format, or cannot be opened.
pub(super) fn inspect(dir: &Path, manifest: &Manifest) -> Result<Box<dyn Inspector>, StoreError> {
    Ok(Box::new(DatabaseInspector::alone(dir, manifest)?))
}

/// The database that counts.
fn database_of(manifest: &Manifest, dir: &Path) -> Result<String, StoreError> {
    match (manifest.mode, &manifest.database) {
        (Mode::Database, Some(name)) if !name.contains('/') => Ok(name.clone()),
        _ => Err(StoreError::Damaged {
            path: dir.join("manifest").join(format!("{:020}", manifest.epoch.0)),
            position: 0,
            what: format!("it is of a store in {} mode and names no database", manifest.mode),
        }),
    }
}
