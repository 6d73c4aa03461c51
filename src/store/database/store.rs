//! The store of a master in database mode: commits, upkeep and staging, in turns, on the thread that owns it.
//!
//! One connection writes everything. After the first error that is none of space nothing more is done. How the
//! database is found and taken over stands in the modules beside it.

use std::path::PathBuf;

use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::wal::CheckpointMode;

use super::super::image::Image;
use super::super::manifest::{Manifest, sync_dir};
use super::super::query::Inspector;
use super::super::space::FreeSpace;
use super::super::{FenceCheck, Fenced, Mode, OpenOptions, Predecessor, Reader, Store, StoreError};
use super::catalog::Catalog;
use super::commit::{self, CommitError};
use super::connection::{self, Access, failed, is_full};
use super::image::{DatabaseImage, Pins};
use super::message::Inserts;
use super::query::DatabaseInspector;
use super::reader::DatabaseReader;
use super::staging::Staging;
use super::unserved::{self, Unserved};
use super::upkeep::{Deletion, StepError, Thrift, Upkeep};
use super::{database_of, files, log, schema, takeover};
use crate::model::free_min::FreeMin;
use crate::model::id::Epoch;
use crate::model::record::Record;
use crate::model::snapshot::Snapshot;

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
pub(super) struct DatabaseStore {
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
    /// Takes the database of the newest manifest over, or makes a new one.
    ///
    /// # Errors
    /// As for [`open_fenced`](super::open_fenced).
    pub(super) fn open(options: &OpenOptions, fence: FenceCheck<'_>) -> Result<(Self, Snapshot), StoreError> {
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
                manifest.check_mode(Mode::Database)?;
                let old = database_of(manifest, dir)?;
                let committed = log::check(&files::log(&dir.join(&old)))?;
                if options.predecessors.since(files::maker(&old)) == Predecessor::Gone {
                    takeover::recover(&dir.join(&old), &committed)?;
                    old
                } else {
                    unserved::remove_abandoned(dir, *epoch, &old, &options.predecessors, fence)?;
                    unserved = Some(Unserved::new(&dir.join(&own))?);
                    takeover::copy(&dir.join(&old), &dir.join(&own), fence)?;
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
        // Step `CheckManifest` of `tests/ha_model`.
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

    /// Steps `Append` and `Sync` of `tests/ha_model`.
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

    fn space(&mut self, free_min: FreeMin) -> Result<u64, StoreError> {
        let free = self.guarded(|store| store.space.bytes())?;
        let above = self.guarded(|store| store.space.bytes_above(free_min))?;
        let reserve = self.upkeep.reserve_bytes();
        let is_short = free < 2 * reserve || above < reserve;
        self.upkeep.be(if is_short { Thrift::KeepsNothing } else { Thrift::KeepsSome });
        Ok(free.saturating_sub(reserve).min(above) / COPIES)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::Predecessors;
    use super::super::{bodies, reader};
    use super::*;
    use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
    use crate::model::limits::{KEY_BYTES_MAX, LIMITS};
    use crate::model::message::{Message, MessageBlock};
    use crate::model::name::Name;
    use crate::model::record::{Published, Source};
    use crate::model::settings::{GroupSettings, TopicSettings};
    use crate::model::time::Timestamp;
    use crate::model::topic_kind::TopicKind;

    fn published(first: u64, count: usize) -> Record {
        Record::Published(Published {
            targets: vec![(TopicId(0), Offset(first))],
            source: Source::Broker,
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
            Record::TopicCreated {
                topic: TopicId(0),
                name: name("t"),
                kind: TopicKind::Named,
                settings: TopicSettings::default(),
            },
            Record::GroupCreated {
                group: GroupId(0),
                topic: TopicId(0),
                name: name("g"),
                settings: GroupSettings::default(),
                floor: Offset(0),
                part_of: None,
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
            source: Source::Broker,
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
        let (reserve, space) = (store.upkeep.reserve_bytes(), store.space(FreeMin::default()).unwrap());
        assert_eq!(space, (free - reserve) / 2);
        store.commit(&[published(0, 10)]).unwrap();
        assert!(store.space(FreeMin::default()).unwrap() < space);
        store.space.spend(u64::MAX / 4);
        assert!(store.space(FreeMin::default()).unwrap() > 0, "looked at again");
    }

    /// The file became shorter with the next checkpoint only, which nobody's commits brought about any more.
    #[test]
    fn a_drained_database_gives_back_what_is_to_stay_free() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = opened(dir.path());
        let maintain = |store: &mut DatabaseStore| {
            while store.maintenance_due() {
                store.maintain(&mut Snapshot::default, &mut || Ok(())).unwrap();
            }
        };
        for first in (0..5_000).step_by(1_000) {
            store.commit(&[published(first, 1_000)]).unwrap();
        }
        store.connection.wal_checkpoint_v2(Some(c"main"), CheckpointMode::PASSIVE).unwrap();
        let path = store.path.clone();
        let length = || std::fs::metadata(&path).unwrap().len();
        let full = length();
        assert!(full > 5_000_000, "{full}");
        store
            .commit(&[settled(0, 5_000), Record::Trimmed { topic: TopicId(0), start: Offset(5_000) }])
            .unwrap();
        maintain(&mut store);
        assert_eq!((row_count(&store), length()), (0, full), "it is kept for what comes next");
        assert_eq!(store.space(FreeMin::Percent(99)).unwrap(), 0);
        maintain(&mut store);
        assert!(length() < full / 4, "{} of {full} bytes", length());
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
