//! Upkeep between commits, one bounded step at a time: checkpoints, and the deletion of what is no longer needed.
//!
//! Everything here runs on the writer's thread, in a commit or after a check of the fence. None of it changes what
//! recovery finds, only how long that takes and how much space it needs, so a step that is lost in a crash is done
//! again.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::hooks::Wal;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode, OptionalExtension};

use super::super::StoreError;
use super::super::space::FreeSpace;
use super::bodies::Bodies;
use super::catalog::Catalog;
use super::connection::{PAGE_BYTES, growth_bytes};
use super::files;
use super::message::{first_row, split};
use super::rows;
use super::schema::STRETCH_BITS;
use super::staging::Staging;
use crate::model::id::{Epoch, Offset, OffsetRange, TopicId};

/// Bytes of a page and its frame's header in the log.
const FRAME_BYTES: u64 = PAGE_BYTES as u64 + 24;
/// The log is not let grow beyond this, whatever the settings: a takeover has to read it.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// The same while a large block is written ahead: the log fills several times a second then, and each checkpoint is a
/// wait for the commits beside it. Four short ones write as much as one that is long.
const LOG_BYTES_STAGING: u64 = 4 << 20;
/// From so many times its limit on, a checkpoint waits for the readers, so that the log is started over.
const LOG_PATIENCE: u64 = 4;
/// Bytes of zeros that one step writes ahead into the log.
const AHEAD_BYTES: u64 = 1 << 20;
/// How long a step that deletes rows should take; the number of rows is adjusted to it.
pub(super) const STEP: Duration = Duration::from_millis(3);
/// Rows that the first step deletes, and bounds for the others.
const STEP_ROWS: (u64, u64, u64) = (1_000, 16, 20_000);
/// Gives back to the file system what one step does.
const VACUUM: &str = "PRAGMA incremental_vacuum(1000)";
/// Free pages that are kept in the file for what comes next.
const KEPT_PAGES: u32 = 16_384;
/// How long nothing is tried after the disk was full.
const REST: Duration = Duration::from_secs(1);

/// What is to be done between commits.
#[derive(Debug)]
pub(super) struct Upkeep {
    log: Arc<Log>,
    /// Bytes of log between two checkpoints.
    log_bytes: u64,
    ahead: Ahead,
    step_rows: u64,
    old_files: OldFiles,
    vacuum: Vacuum,
    /// Whether pages were given back since the last checkpoint, with which the file becomes shorter.
    shrinks: bool,
    /// What stays in the file where pages are given back.
    thrift: Thrift,
    resting_until: Option<Instant>,
    /// No checkpoint is tried before: the last one found no space, and what else is done makes some.
    checkpoint_from: Option<Instant>,
}

/// What is known of the log. The writer's connection counts after each commit.
#[derive(Debug, Default)]
struct Log {
    /// Frames in it.
    frames: AtomicU64,
    /// Of these, how many were there at the last checkpoint.
    checkpointed: AtomicU64,
}

impl Log {
    fn committed(&self, frames: u64) {
        if frames < self.frames.load(Ordering::Relaxed) {
            // It was started over.
            self.checkpointed.store(0, Ordering::Relaxed);
        }
        self.frames.store(frames, Ordering::Relaxed);
    }
}

/// Whether the log is as long as it may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ahead {
    Growing,
    Done,
}

/// Whether files of older epochs may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OldFiles {
    NotLookedFor,
    Gone,
}

/// Whether there may be free pages to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vacuum {
    /// Rows were deleted since it was last looked at.
    Unknown,
    Done,
}

/// How much of what is free in the file stays there, because filling it costs less than making it longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thrift {
    /// Half of the file, or so much that it does not matter.
    KeepsSome,
    /// Nothing: the disk is nearly full, or nearly as full as it may be.
    KeepsNothing,
}

/// Whether messages may be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deletion {
    /// Nobody reads those that the state has no more.
    Allowed,
    /// An image reads them.
    Waits,
}

impl Upkeep {
    /// Upkeep of the database that `connection` writes.
    ///
    /// # Errors
    /// The database's own.
    pub(super) fn new(connection: &mut Connection, segment_bytes: u64) -> rusqlite::Result<Self> {
        let log = Arc::new(Log::default());
        let counted = Arc::clone(&log);
        connection.wal_hook(Some(move |_: &mut Wal, frames: i32| {
            counted.committed(u64::from(frames.unsigned_abs()));
            Ok(())
        }))?;
        Ok(Self {
            log,
            log_bytes: segment_bytes.min(LOG_BYTES_MAX),
            ahead: Ahead::Growing,
            step_rows: STEP_ROWS.0,
            old_files: OldFiles::NotLookedFor,
            vacuum: Vacuum::Done,
            shrinks: false,
            thrift: Thrift::KeepsSome,
            resting_until: None,
            checkpoint_from: None,
        })
    }

    /// Space that upkeep may need though the disk is full: for the log, and for the checkpoint of it.
    pub(super) const fn reserve_bytes(&self) -> u64 {
        2 * self.log_bytes
    }

    /// From now on keeps so much of what is free in the file.
    pub(super) fn be(&mut self, thrift: Thrift) {
        if self.thrift != thrift {
            (self.thrift, self.vacuum) = (thrift, Vacuum::Unknown);
        }
    }

    /// Whether there is something to do.
    pub(super) fn due(&self, catalog: &Catalog, staging: &Staging, deletion: Deletion) -> bool {
        let may_delete = deletion == Deletion::Allowed;
        let due = self.checkpoint_due(staging)
            || self.ahead == Ahead::Growing
            || self.old_files == OldFiles::NotLookedFor
            || self.vacuum == Vacuum::Unknown
            || may_delete && !catalog.trimmed.is_empty()
            || may_delete && !catalog.removed.is_empty()
            || may_delete && !catalog.orphans.is_empty()
            || staging.unheld(&catalog.bodies).is_some();
        due && self.resting_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Does nothing more for a while: the disk is full.
    pub(super) fn rest(&mut self) {
        self.resting_until = Some(Instant::now() + REST);
    }

    /// Deletes trimmed messages of one topic in the transaction of a commit, which costs no sync and no look at the
    /// fence of its own. What is more than a step takes is left to [`step`](Self::step).
    ///
    /// # Errors
    /// The database's own.
    pub(super) fn ride_along(
        &mut self,
        connection: &Connection,
        catalog: &mut Catalog,
    ) -> rusqlite::Result<()> {
        match catalog.trimmed.first() {
            Some(&topic) if self.thrift == Thrift::KeepsSome => {
                self.timed(|rows| clear_topic(connection, catalog, topic, rows))
            }
            _ => Ok(()),
        }
    }

    /// Whether the log is long enough to be written back.
    pub(super) fn checkpoint_due(&self, staging: &Staging) -> bool {
        let limit = if staging.is_pending() { self.log_bytes.min(LOG_BYTES_STAGING) } else { self.log_bytes };
        let frames = self.log.frames.load(Ordering::Relaxed);
        let since = frames.saturating_sub(self.log.checkpointed.load(Ordering::Relaxed));
        // Where space is short, what was given back is not left in the file until the log is full.
        let shrinks = self.shrinks && self.thrift == Thrift::KeepsNothing && self.vacuum == Vacuum::Done;
        (since * FRAME_BYTES > limit || shrinks)
            && self.checkpoint_from.is_none_or(|from| Instant::now() >= from)
    }

    /// Does one step. The fence was checked.
    ///
    /// # Errors
    /// See [`StepError`].
    pub(super) fn step(
        &mut self,
        connection: &Connection,
        catalog: &mut Catalog,
        staging: &Staging,
        database: &Path,
        epoch: Epoch,
        deletion: Deletion,
    ) -> Result<(), StepError> {
        self.resting_until = None;
        let may_delete = deletion == Deletion::Allowed;
        if self.checkpoint_due(staging) {
            // Taken back where it succeeds; longer than the rest, so that deleting gets its turn.
            self.checkpoint_from = Some(Instant::now() + 2 * REST);
            self.checkpoint(connection, database)?;
            self.checkpoint_from = None;
        } else if may_delete && let Some(&topic) = catalog.trimmed.first() {
            self.timed(|rows| {
                let transaction = connection.unchecked_transaction()?;
                clear_topic(&transaction, catalog, topic, rows)?;
                transaction.commit()
            })?;
        } else if may_delete && !catalog.removed.is_empty() {
            self.timed(|rows| clear_ranges(connection, catalog, rows))?;
        } else if may_delete && let Some(&stretch) = catalog.orphans.last() {
            if self.timed(|rows| clear_stretch(connection, catalog, stretch, rows))? == Left::Nothing {
                catalog.orphans.pop();
            }
        } else if let Some(body) = staging.unheld(&catalog.bodies) {
            // Images need none of these: what they read has a message.
            catalog.bodies.delete(connection, body)?;
            self.vacuum = Vacuum::Unknown;
        } else if self.vacuum == Vacuum::Unknown {
            self.vacuum = give_back(connection, self.thrift)?;
            self.shrinks |= self.vacuum == Vacuum::Unknown;
        } else if self.ahead == Ahead::Growing {
            self.ahead = write_ahead(&files::log(database), self.log_bytes)?;
        } else if self.old_files == OldFiles::NotLookedFor {
            files::remove_old(database, epoch)?;
            self.old_files = OldFiles::Gone;
        }
        Ok(())
    }

    fn checkpoint(&mut self, connection: &Connection, database: &Path) -> Result<(), StepError> {
        if self.thrift == Thrift::KeepsNothing {
            let growth = growth_bytes(connection, database)?;
            // Trying would take what is left, which acks need for the log.
            if growth > 0 && growth >= FreeSpace::around(database.parent().unwrap_or(database)).bytes()? {
                return Err(StepError::Store(StoreError::Full(growth)));
            }
        }
        let frames = self.log.frames.load(Ordering::Relaxed);
        let too_long = frames * FRAME_BYTES > LOG_PATIENCE * self.log_bytes;
        let mode = if too_long { CheckpointMode::RESTART } else { CheckpointMode::PASSIVE };
        tracing::debug!(frames, waits = too_long, "checkpoint begins");
        let written = connection.wal_checkpoint_v2(Some(c"main"), mode);
        tracing::debug!("checkpoint ends");
        match written {
            Err(error) if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) => Err(error.into()),
            _ => {
                // What a reader still needs stays in the log: the next checkpoint takes it along.
                self.log.checkpointed.store(frames, Ordering::Relaxed);
                self.shrinks = false;
                Ok(())
            }
        }
    }

    /// Deletes rows, as many as fit into the time of a step, judged by the last one.
    fn timed<T>(&mut self, delete: impl FnOnce(u64) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let started = Instant::now();
        let done = delete(self.step_rows)?;
        let took = started.elapsed();
        let rows = if took > STEP {
            self.step_rows / 2
        } else if took < STEP / 2 {
            self.step_rows * 2
        } else {
            self.step_rows
        };
        self.step_rows = rows.clamp(STEP_ROWS.1, STEP_ROWS.2);
        self.vacuum = Vacuum::Unknown;
        Ok(done)
    }
}

/// Why a step failed.
#[derive(Debug)]
pub(super) enum StepError {
    /// The database's answer.
    Database(rusqlite::Error),
    /// A file beside the database.
    Store(StoreError),
}

impl From<rusqlite::Error> for StepError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What is left of a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Something,
    Nothing,
}

/// Deletes up to `rows` messages of a living topic that are below its start, within a transaction. Where that fails,
/// the catalog is not to be used.
fn clear_topic(
    connection: &Connection,
    catalog: &mut Catalog,
    topic: TopicId,
    rows: u64,
) -> rusqlite::Result<()> {
    let Catalog { snapshot, places, bodies, .. } = catalog;
    let (Some(state), Some(place)) = (snapshot.topics.get(&topic), places.get_mut(&topic)) else {
        catalog.trimmed.remove(&topic);
        return Ok(());
    };
    let (number, low) = split(place.cleared.0);
    let stretch_end = Offset((number + 1) << STRETCH_BITS);
    let to = state.start.min(Offset(place.cleared.0.saturating_add(rows))).min(stretch_end);
    let stretch = place.stretches.iter().position(|&(of, _)| of == number);
    if let Some(at) = stretch {
        let first = first_row(place.stretches[at].1) + low;
        delete_rows(connection, bodies, first, first + (to.0.saturating_sub(place.cleared.0)) as i64)?;
        if to == stretch_end {
            let mut delete = connection.prepare_cached("DELETE FROM stretch WHERE id = ?1")?;
            delete.execute((place.stretches[at].1,))?;
        }
    }
    place.cleared = to;
    rows::put_topic(connection, topic, state, place)?;
    if to == stretch_end {
        place.stretches.retain(|&(of, _)| of != number);
    }
    if to >= state.start {
        catalog.trimmed.remove(&topic);
    }
    Ok(())
}

/// Deletes up to `rows` messages of ranges in the middle of topics, all in one transaction: there may be as many ranges
/// as messages. Where that fails, the catalog is not to be used.
fn clear_ranges(connection: &Connection, catalog: &mut Catalog, mut rows: u64) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    while rows > 0
        && let Some((topic, range)) = catalog.removed.pop()
    {
        let left = clear_range(&transaction, catalog, topic, range, rows)?;
        rows = rows.saturating_sub(range.len() - left.map_or(0, OffsetRange::len));
        catalog.removed.extend(left.map(|left| (topic, left)));
    }
    transaction.commit()
}

/// Deletes up to `rows` messages of a range in the middle of a topic, within a transaction. Answers what is left of the
/// range.
fn clear_range(
    connection: &Connection,
    catalog: &mut Catalog,
    topic: TopicId,
    range: OffsetRange,
    rows: u64,
) -> rusqlite::Result<Option<OffsetRange>> {
    // Below that it is cleared, or will be, with what is before it.
    let Some(start) = catalog.snapshot.topics.get(&topic).map(|state| state.start) else { return Ok(None) };
    let range = OffsetRange { start: range.start.max(start), end: range.end };
    if range.is_empty() {
        return Ok(None);
    }
    let (number, low) = split(range.start.0);
    let end = Offset(range.end.0.min(range.start.0.saturating_add(rows)).min((number + 1) << STRETCH_BITS));
    let place = catalog.places.get(&topic);
    if let Some(&(_, id)) = place.and_then(|place| place.stretches.iter().find(|&&(of, _)| of == number)) {
        let first = first_row(id) + low;
        delete_rows(connection, &mut catalog.bodies, first, first + (end.0 - range.start.0) as i64)?;
    }
    Ok((end < range.end).then_some(OffsetRange { start: end, end: range.end }))
}

/// Deletes up to `rows` messages of a stretch whose topic is gone, and the stretch when it is empty.
fn clear_stretch(
    connection: &Connection,
    catalog: &mut Catalog,
    stretch: i64,
    rows: u64,
) -> rusqlite::Result<Left> {
    let (start, end) = (first_row(stretch), first_row(stretch + 1));
    let transaction = connection.unchecked_transaction()?;
    let first: Option<i64> = transaction
        .prepare_cached("SELECT id FROM message WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT 1")?
        .query_row((start, end), |row| row.get(0))
        .optional()?;
    let left = match first {
        Some(first) => {
            delete_rows(&transaction, &mut catalog.bodies, first, end.min(first + rows as i64))?;
            Left::Something
        }
        None => {
            transaction.prepare_cached("DELETE FROM stretch WHERE id = ?1")?.execute((stretch,))?;
            Left::Nothing
        }
    };
    transaction.commit()?;
    Ok(left)
}

/// Deletes the rows of messages, within a transaction; their large bodies are unused from then on.
fn delete_rows(
    connection: &Connection,
    bodies: &mut Bodies,
    first: i64,
    end: i64,
) -> rusqlite::Result<usize> {
    bodies.give_up(connection, (first, end))?;
    connection.prepare_cached("DELETE FROM message WHERE id >= ?1 AND id < ?2")?.execute((first, end))
}

/// Gives free pages back to the file system: where more than half of a large file is free, or all there are.
fn give_back(connection: &Connection, thrift: Thrift) -> rusqlite::Result<Vacuum> {
    let count = |name| connection.pragma_query_value(None, name, |row| row.get::<_, u32>(0));
    let (free, pages) = (count("freelist_count")?, count("page_count")?);
    let kept = match thrift {
        Thrift::KeepsSome => KEPT_PAGES.max(pages / 2),
        Thrift::KeepsNothing => 0,
    };
    if free <= kept {
        return Ok(Vacuum::Done);
    }
    // It answers with an empty row for each page, and stops where nobody asks for the next.
    let mut statement = connection.prepare_cached(VACUUM)?;
    let mut rows = statement.raw_query();
    while rows.next()?.is_some() {}
    Ok(Vacuum::Unknown)
}

/// Writes zeros into the part of the log that is not in use yet, so that commits overwrite blocks that are there: a
/// sync of a file that grows costs half as much again. Zeros are no frames, so recovery ends before them. The
/// writer's connection appends to the log on this very thread, so nobody else writes meanwhile.
fn write_ahead(log: &Path, log_bytes: u64) -> Result<Ahead, StoreError> {
    let io = |action| move |source| StoreError::Io { action, path: log.to_owned(), source };
    let mut file = match OpenOptions::new().write(true).open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Ahead::Done),
        Err(source) => return Err(io("open")(source)),
    };
    let from = file.metadata().map_err(io("look at"))?.len();
    let to = log_bytes.min(from + AHEAD_BYTES);
    if to <= from {
        return Ok(Ahead::Done);
    }
    let wrote = file
        .seek(SeekFrom::Start(from))
        .and_then(|_| file.write_all(&vec![0; (to - from) as usize]))
        .and_then(|()| file.sync_data());
    match wrote {
        Ok(()) => Ok(Ahead::Growing),
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            Ok(Ahead::Done)
        }
        Err(source) => Err(io("write ahead in")(source)),
    }
}
