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
mod takeover;
mod unserved;
mod upkeep;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::wal::CheckpointMode;
use rustix::fs::Access as Rights;

use super::check::check_rights;
use super::image::{Fill, Image};
use super::manifest::{Manifest, sync_dir};
use super::query::Inspector;
use super::space::FreeSpace;
use super::survey::{Damage, Lost};
use super::{FenceCheck, Fenced, Mode, OpenOptions, Predecessor, Predecessors, Reader, Store, StoreError};
use crate::model::id::Epoch;
use crate::model::record::Record;
use crate::model::snapshot::Snapshot;
use catalog::Catalog;
use commit::CommitError;
use connection::{Access, failed, is_full};
use fill::DatabaseFill;
use image::{DatabaseImage, Pins};
use message::Inserts;
use query::DatabaseInspector;
use reader::DatabaseReader;
pub use schema::FORMAT;
use staging::Staging;
use unserved::Unserved;
use upkeep::{Deletion, StepError, Thrift, Upkeep};

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

/// A message is written twice: into the log and into the database.
const COPIES: u64 = 2;

/// Bytes that a commit is said to need at least: a few pages of the log.
const COMMIT_BYTES: u64 = 64 << 10;

/// What is done between two commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A piece of a block that is staged is written.
    Staging,
    /// What the database needs.
    Upkeep,
}

/// A store whose records are rows.
struct DatabaseStore {
    path: PathBuf,
    epoch: Epoch,
    connection: Connection,
    catalog: Catalog,
    inserts: Inserts,
    upkeep: Upkeep,
    staging: Staging,
    /// What the last step was, so that the other comes next.
    last: Step,
    space: FreeSpace,
    /// The images that may be alive.
    pins: Pins,
    /// The error after which nothing is done any more.
    failed: Option<String>,
}

impl DatabaseStore {
    fn open(options: &OpenOptions, fence: FenceCheck<'_>) -> Result<(Self, Snapshot), StoreError> {
        let OpenOptions { dir, epoch, .. } = options;
        let own = files::name(*epoch);
        let newest = Manifest::newest(dir, *epoch)?;
        if newest.as_ref().is_some_and(|manifest| manifest.epoch == *epoch) {
            return Err(Fenced::Superseded(*epoch).into());
        }
        let mut unserved = None;
        let name = match &newest {
            None => {
                let connection = connection::open(&dir.join(&own), Access::Create)?;
                schema::migrate(&connection)?;
                Catalog::begin(&connection)?;
                drop(connection);
                files::check_none_lost(&dir.join(&own), *epoch)?;
                sync_dir(dir)?;
                own
            }
            Some(manifest) => {
                let old = database_of(manifest, dir)?;
                let committed = log::check(&files::log(&dir.join(&old)))?;
                if options.predecessors.since(files::maker(&old)) == Predecessor::Gone {
                    takeover::recover(&dir.join(&old), &committed)?;
                    old
                } else {
                    unserved::remove_abandoned(dir, *epoch, &old, &options.predecessors, fence)?;
                    unserved = Some(Unserved::new(&dir.join(&own))?);
                    if let Err(error) = takeover::copy(&dir.join(&old), &dir.join(&own), fence) {
                        // A successor may have removed what was to be copied: then that is what has happened.
                        fence()?;
                        return Err(error);
                    }
                    log::cut(&files::log(&dir.join(&own)), &committed)?;
                    own
                }
            }
        };
        let path = dir.join(&name);
        let mut connection = connection::open(&path, Access::Write)?;
        schema::check(&connection, &path)?;
        schema::migrate(&connection)?;
        let catalog = Catalog::load(&connection, &path)?;
        let snapshot = catalog.snapshot.clone();
        let manifest =
            Manifest { epoch: *epoch, mode: Mode::Database, sealed: Vec::new(), database: Some(name) };
        fence()?;
        if let Some(unserved) = unserved {
            unserved.keep();
        }
        manifest.write(dir)?;
        let upkeep = Upkeep::new(&mut connection, options.segment_bytes).map_err(failed("watch the log"))?;
        let store = Self {
            path,
            epoch: *epoch,
            connection,
            catalog,
            inserts: Inserts::new(),
            upkeep,
            staging: Staging::default(),
            last: Step::Upkeep,
            space: FreeSpace::around(dir),
            pins: Pins::default(),
            failed: None,
        };
        Ok((store, snapshot))
    }

    /// Runs `work`; any error but a full disk is the last thing that happens to the store.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if let Some(message) = &self.failed {
            let message = format!("the store has failed before: {message}");
            return Err(StoreError::Database { action: "go on", message });
        }
        let done = work(self);
        if let Err(error) = &done
            && !matches!(error, StoreError::Full(_))
        {
            self.failed = Some(error.to_string());
        }
        done
    }

    fn commit_records(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let bytes = self.published_bytes(records);
        self.space.spend(COPIES * bytes);
        self.run("BEGIN IMMEDIATE").map_err(failed("begin a commit"))?;
        let written =
            commit::write(&self.connection, &mut self.catalog, &self.inserts, &self.staging, records);
        let written = written.and_then(|()| {
            if self.deletion() == Deletion::Allowed {
                self.upkeep.ride_along(&self.connection, &mut self.catalog)?;
            }
            Ok(self.run("COMMIT")?)
        });
        written.or_else(|error| match error {
            CommitError::Database(error) if is_full(&error, &self.path) => {
                self.roll_back()?;
                Err(StoreError::Full(bytes.max(COMMIT_BYTES)))
            }
            CommitError::Database(error) => Err(failed("commit")(error)),
            CommitError::Record(source) => Err(StoreError::Inconsistent { path: self.path.clone(), source }),
            CommitError::Message(error) => {
                Err(StoreError::Database { action: "insert messages", message: error.to_string() })
            }
        })
    }

    /// Bytes of the messages in the records, once for each topic they go to, less what is written ahead.
    fn published_bytes(&self, records: &[Record]) -> u64 {
        let bytes = |record: &Record| match record {
            Record::Published(published) => {
                let block = published.block.bytes();
                let all = block.len() as u64 * published.targets.len() as u64;
                all.saturating_sub(self.staging.bytes_of(block))
            }
            _ => 0,
        };
        records.iter().map(bytes).sum()
    }

    /// Takes everything back that the transaction did, in the file and in memory.
    fn roll_back(&mut self) -> Result<(), StoreError> {
        if !self.connection.is_autocommit() {
            self.run("ROLLBACK").map_err(failed("roll back"))?;
        }
        self.catalog = Catalog::load(&self.connection, &self.path)?;
        Ok(())
    }

    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.raw_execute().map(|_| ())
    }

    /// Whether messages that the state has no more may be deleted: not while an image may still read them.
    fn deletion(&self) -> Deletion {
        if self.pins.are_held() { Deletion::Waits } else { Deletion::Allowed }
    }

    /// The next step, if there is one. A checkpoint goes before everything, so that the log keeps its bounds; else what
    /// is written ahead and what is cleared away take turns.
    fn next_step(&self) -> Option<Step> {
        let upkeep = self.upkeep_due();
        let first = upkeep && (self.last == Step::Staging || self.upkeep.checkpoint_due(&self.staging));
        match (upkeep, self.staging.is_pending()) {
            (_, true) if !first => Some(Step::Staging),
            (true, _) => Some(Step::Upkeep),
            (false, _) => None,
        }
    }

    fn upkeep_due(&self) -> bool {
        self.upkeep.due(&self.catalog, &self.staging, self.deletion())
    }

    fn step(&mut self, step: Step) -> Result<(), StoreError> {
        self.last = step;
        match step {
            Step::Staging => self.stage_a_piece(),
            Step::Upkeep => self.keep_up(),
        }
    }

    /// Writes a piece of a block ahead. A block for which there is no space is left to its commit, or refused by then.
    fn stage_a_piece(&mut self) -> Result<(), StoreError> {
        match self.staging.step(&self.connection, &mut self.catalog.bodies) {
            Ok(bytes) => {
                self.space.spend(COPIES * bytes);
                Ok(())
            }
            Err(error) if is_full(&error, &self.path) => {
                self.roll_back()?;
                self.staging.give_up();
                Ok(())
            }
            Err(error) => Err(failed("write a message ahead")(error)),
        }
    }

    fn keep_up(&mut self) -> Result<(), StoreError> {
        let deletion = self.deletion();
        let Self { connection, catalog, upkeep, staging, path, epoch, .. } = self;
        let step = upkeep.step(connection, catalog, staging, path, *epoch, deletion);
        let is_full = match &step {
            Err(StepError::Store(error)) => matches!(error, StoreError::Full(_)),
            Err(StepError::Database(error)) => is_full(error, path),
            Ok(()) => false,
        };
        match step {
            Ok(()) => Ok(()),
            Err(_) if is_full => {
                tracing::warn!("no space left for the upkeep of the database: free some on the shared disk");
                upkeep.rest();
                self.roll_back()
            }
            Err(StepError::Store(error)) => Err(error),
            Err(StepError::Database(error)) => Err(failed("upkeep")(error)),
        }
    }
}

impl Store for DatabaseStore {
    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        self.guarded(|store| store.commit_records(records))
    }

    fn stage(&mut self, block: Bytes, staged: Box<dyn FnOnce() + Send>) {
        self.staging.stage(block, staged);
    }

    fn staged_bytes(&self, block: &Bytes) -> u64 {
        self.staging.bytes_of(block)
    }

    fn unstage(&mut self, block: &Bytes) -> Result<(), StoreError> {
        self.staging.forget(block);
        Ok(())
    }

    fn space(&mut self) -> Result<u64, StoreError> {
        let free = self.guarded(|store| store.space.bytes())?;
        let reserve = self.upkeep.reserve_bytes();
        self.upkeep.be(if free < 2 * reserve { Thrift::KeepsNothing } else { Thrift::KeepsSome });
        Ok(free.saturating_sub(reserve) / COPIES)
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(DatabaseReader::open(&self.path)?))
    }

    fn image(&mut self, _snapshot: &mut dyn FnMut() -> Snapshot) -> Result<Box<dyn Image>, StoreError> {
        if let Some(message) = &self.failed {
            let message = format!("the store has failed before: {message}");
            return Err(StoreError::Database { action: "make an image", message });
        }
        Ok(Box::new(DatabaseImage::of(&self.path, &self.catalog, &mut self.pins)?))
    }

    fn inspector(&self) -> Result<Option<Box<dyn Inspector>>, StoreError> {
        Ok(Some(Box::new(DatabaseInspector::beside_writer(&self.path)?)))
    }

    fn maintenance_due(&self) -> bool {
        self.failed.is_none() && self.next_step().is_some()
    }

    fn maintain(
        &mut self,
        _snapshot: &mut dyn FnMut() -> Snapshot,
        fence: FenceCheck<'_>,
    ) -> Result<(), StoreError> {
        self.guarded(|store| {
            let Some(step) = store.next_step() else { return Ok(()) };
            fence()?;
            store.step(step)
        })
    }

    fn make_space(&mut self, fence: FenceCheck<'_>) -> Result<(), StoreError> {
        // The store folds by itself what is committed: no upkeep needs the state of the caller.
        self.guarded(|store| {
            if store.upkeep_due() {
                fence()?;
                store.step(Step::Upkeep)?;
            }
            Ok(())
        })
    }

    fn leave(self: Box<Self>, fence: FenceCheck<'_>) -> Result<(), StoreError> {
        self.close(&mut Snapshot::default, fence)
    }

    fn close(
        mut self: Box<Self>,
        _snapshot: &mut dyn FnMut() -> Snapshot,
        fence: FenceCheck<'_>,
    ) -> Result<(), StoreError> {
        self.guarded(|_| Ok(fence()?))?;
        self.pins.end();
        match self.connection.wal_checkpoint_v2(Some(c"main"), CheckpointMode::TRUNCATE) {
            Ok(_) => {}
            Err(error)
                if is_full(&error, &self.path)
                    || error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) =>
            {
                tracing::warn!(%error, "the log stays: the next master writes it back");
            }
            Err(error) => return Err(failed("checkpoint at the end")(error)),
        }
        self.connection.close().map_err(|(_, error)| failed("close")(error))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
    use crate::model::limits::{KEY_BYTES_MAX, LIMITS};
    use crate::model::message::{Message, MessageBlock};
    use crate::model::name::Name;
    use crate::model::record::Published;
    use crate::model::settings::{GroupSettings, TopicSettings};
    use crate::model::time::Timestamp;

    fn published(first: u64, count: usize) -> Record {
        Record::Published(Published {
            targets: vec![(TopicId(0), Offset(first))],
            origin: None,
            at: Timestamp(7),
            block: MessageBlock::encode(&vec![Message::new(vec![7; 1_000]); count]),
        })
    }

    fn settled(start: u64, end: u64) -> Record {
        Record::Settled { group: GroupId(0), ranges: vec![OffsetRange::new(start, end)] }
    }

    fn opened(dir: &Path) -> DatabaseStore {
        let options = OpenOptions {
            dir: dir.to_owned(),
            mode: Mode::Database,
            epoch: Epoch(1),
            predecessors: Predecessors::default(),
            segment_bytes: 1 << 20,
        };
        let (mut store, _) = DatabaseStore::open(&options, &mut || Ok(())).unwrap();
        let name = |text| Name::new(text).unwrap();
        let records = [
            Record::TopicCreated { topic: TopicId(0), name: name("t"), settings: TopicSettings::default() },
            Record::GroupCreated {
                group: GroupId(0),
                topic: TopicId(0),
                name: name("g"),
                settings: GroupSettings::default(),
                floor: Offset(0),
            },
        ];
        store.commit(&records).unwrap();
        store
    }

    #[test]
    fn a_full_disk_refuses_a_commit_whole_and_the_store_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = opened(dir.path());
        store.commit(&[published(0, 10)]).unwrap();
        let set_pages_max =
            |store: &DatabaseStore, pages: u32| store.connection.pragma_update(None, "max_page_count", pages);
        set_pages_max(&store, 1).unwrap();
        let before = store.catalog.clone();
        for _ in 0..3 {
            let refused = store.commit(&[settled(0, 3), published(10, 500)]);
            assert!(matches!(refused, Err(StoreError::Full(502_500))), "{refused:?}");
            assert_eq!(store.catalog, before, "nothing of it is remembered");
        }
        store.commit(&[settled(0, 2)]).unwrap();
        let chunk = store.reader().unwrap().read(TopicId(0), Offset(0), 1 << 20).unwrap().unwrap();
        assert_eq!(chunk.block.count(), 10, "nothing of it is stored");
        set_pages_max(&store, 1 << 20).unwrap();
        store.commit(&[settled(2, 3), published(10, 500)]).unwrap();
        assert_eq!(Catalog::load(&store.connection, &store.path).unwrap(), store.catalog);
    }

    /// Has a block staged, and answers where the word comes that it is.
    fn stage(store: &mut DatabaseStore, block: &Bytes) -> std::sync::mpsc::Receiver<()> {
        let (sender, staged) = std::sync::mpsc::channel();
        store.stage(block.clone(), Box::new(move || sender.send(()).unwrap()));
        staged
    }

    #[test]
    fn a_full_disk_takes_back_what_was_written_ahead_and_lets_the_commit_come() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = opened(dir.path());
        let maintain = |store: &mut DatabaseStore| {
            store.maintain(&mut Snapshot::default, &mut || Ok(())).unwrap();
        };
        while store.maintenance_due() {
            maintain(&mut store);
        }
        let block = MessageBlock::encode(&[Message::new(vec![7; 5 << 20]), Message::new(vec![8; 300_000])]);
        let published = Record::Published(Published {
            targets: vec![(TopicId(0), Offset(0))],
            origin: None,
            at: Timestamp(7),
            block: block.clone(),
        });
        let staged = stage(&mut store, block.bytes());
        maintain(&mut store);
        let pages: u32 = store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        store.connection.pragma_update(None, "max_page_count", pages).unwrap();
        for _ in 0..4 {
            maintain(&mut store);
        }
        assert_eq!(staged.try_recv(), Ok(()), "nobody waits for a word that does not come");
        while store.maintenance_due() {
            maintain(&mut store);
        }
        let count = |store: &DatabaseStore, table: &str| -> u32 {
            let sql = format!("SELECT count(*) FROM {table}");
            store.connection.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!(["body_part", "unused_body"].map(|table| count(&store, table)), [0, 0]);
        assert!(matches!(store.commit(std::slice::from_ref(&published)), Err(StoreError::Full(_))));
        store.unstage(block.bytes()).unwrap();

        // There is space again, but not for the commit: it finds what was written when it is tried once more.
        store.connection.pragma_update(None, "max_page_count", 1 << 20).unwrap();
        let staged = stage(&mut store, block.bytes());
        while staged.try_recv().is_err() {
            maintain(&mut store);
        }
        let bodies = store.catalog.bodies.clone();
        let free: u32 = store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        store.connection.pragma_update(None, "max_page_count", free).unwrap();
        let other = self::published(2, 5_000);
        let refused = store.commit(&[published.clone(), other]);
        assert!(matches!(refused, Err(StoreError::Full(5_025_000))), "{refused:?}");
        assert_eq!(store.catalog.bodies, bodies, "it is unused again, and still there");
        store.connection.pragma_update(None, "max_page_count", 1 << 20).unwrap();
        store.commit(&[published]).unwrap();
        store.unstage(block.bytes()).unwrap();
        assert_eq!(["body_part", "unused_body"].map(|table| count(&store, table)), [6, 0]);
        let chunk = store.reader().unwrap().read(TopicId(0), Offset(0), 64 << 20).unwrap().unwrap();
        assert_eq!(chunk.block.bytes(), block.bytes());
        assert_eq!(Catalog::load(&store.connection, &store.path).unwrap(), store.catalog);
    }

    fn row_count(store: &DatabaseStore) -> u32 {
        store.connection.query_row("SELECT count(*) FROM message", [], |row| row.get(0)).unwrap()
    }

    /// Each cycle that trimmed something paid for a second transaction, with its sync and its look at the fence.
    #[test]
    fn what_a_commit_trims_is_deleted_in_the_same_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = opened(dir.path());
        store.commit(&[published(0, 10)]).unwrap();
        let trimmed = |start| Record::Trimmed { topic: TopicId(0), start: Offset(start) };
        store.commit(&[settled(0, 7), trimmed(7)]).unwrap();
        assert_eq!((row_count(&store), store.catalog.trimmed.len()), (3, 0));
        assert_eq!(Catalog::load(&store.connection, &store.path).unwrap(), store.catalog);
        store.upkeep.be(Thrift::KeepsNothing);
        store.commit(&[settled(7, 9), trimmed(9)]).unwrap();
        assert_eq!(
            (row_count(&store), store.catalog.trimmed.len()),
            (3, 1),
            "a full disk is not made fuller"
        );
        while store.maintenance_due() {
            store.maintain(&mut Snapshot::default, &mut || Ok(())).unwrap();
        }
        assert_eq!((row_count(&store), store.catalog.trimmed.len()), (1, 0));
        assert_eq!(Catalog::load(&store.connection, &store.path).unwrap(), store.catalog);
    }

    #[test]
    fn what_draining_needs_is_not_for_messages() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = opened(dir.path());
        let free = store.space.bytes().unwrap();
        let (reserve, space) = (store.upkeep.reserve_bytes(), store.space().unwrap());
        assert_eq!(space, (free - reserve) / 2);
        store.commit(&[published(0, 10)]).unwrap();
        assert!(store.space().unwrap() < space);
        store.space.spend(u64::MAX / 4);
        assert!(store.space().unwrap() > 0, "looked at again");
    }

    #[test]
    fn records_that_do_not_fit_end_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = opened(dir.path());
        assert!(matches!(store.commit(&[published(5, 1)]), Err(StoreError::Inconsistent { .. })));
        assert!(matches!(store.commit(&[published(0, 1)]), Err(StoreError::Database { .. })));
        assert!(!store.maintenance_due());
    }

    /// A message that the configuration allowed but no row can hold ended the master, and after it each next one. The view
    /// of messages puts a body together again as one value.
    #[test]
    fn the_largest_message_that_can_be_configured_fits_into_a_row() {
        let max = |name| LIMITS.iter().find(|row| row.name == name).unwrap().max;
        // What stands beside the body: the key, the headers, those that the node adds, and numbers.
        let beside = KEY_BYTES_MAX as u64 + 2 * max("header_bytes_max");
        let row_bytes = max("body_bytes_max") + beside;
        let dir = tempfile::tempdir().unwrap();
        let store = opened(dir.path());
        let length = |bytes: u64| {
            store
                .connection
                .query_row("SELECT length(zeroblob(?1))", [bytes as i64], |row| row.get::<_, i64>(0))
        };
        assert_eq!(length(row_bytes).unwrap(), row_bytes as i64);
        assert!(length(1_000_000_001).is_err(), "the database has another limit than was thought");
        assert!(max("body_bytes_max") <= bodies::BODY_BYTES_MAX, "its parts can be numbered");
    }

    /// The readers' statement must walk the messages in order: a sort would read all of them for each read.
    #[test]
    fn reading_sorts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = opened(dir.path());
        let sql = format!("EXPLAIN QUERY PLAN {}", reader::MESSAGES);
        let mut statement = store.connection.prepare(&sql).unwrap();
        let plan: Vec<String> =
            statement.query_map((0, 0, 0, 0), |row| row.get(3)).unwrap().map(Result::unwrap).collect();
        let expected = ["SEARCH", "SCALAR SUBQUERY"];
        let searches = |step: &String| expected.iter().any(|expected| step.starts_with(expected));
        assert!(plan.iter().all(searches), "{plan:?}");
    }
}
