//! What a database holds at one commit: of a store that is served, and of one that nobody serves.
//!
//! An image of a store that is served holds no read transaction: that would keep checkpoints from finishing, and the
//! log would grow for as long as a backup takes. Instead it keeps its own state and where each topic's messages lie,
//! and reads rows by short statements that ask nothing else; while it is alive the writer deletes no message. What
//! the writer trims, removes or deletes with a topic meanwhile stays in its rows until then.
//!
//! A database that nobody serves is opened without changing a byte. With a log that holds something it is opened as a
//! writer opens it, which keeps the index of the log in memory, and is told to refuse every write; without one it is
//! opened as a file that never changes, which also works on storage that is read-only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rusqlite::Connection;

use super::super::StoreError;
use super::super::image::Image;
use super::super::survey::{Damage, Lost};
use super::catalog::Catalog;
use super::connection::{self, Access, failed};
use super::mended::Mended;
use super::message::{first_row, split};
use super::reader::{damaged, gather};
use super::schema::STRETCH_BITS;
use super::{files, log, schema};
use crate::model::chunk::Chunk;
use crate::model::id::{Offset, TopicId};
use crate::model::message::MessageBlock;
use crate::model::snapshot::Snapshot;

/// Rows of messages, whatever the tables beside them say by now.
const ROWS: &str = "\
    SELECT id, published_at, producer, sequence, checksum, key, headers, deliver_at, expires_at, priority, body
    FROM message WHERE id >= ?1 AND id < ?2 ORDER BY id";

/// What becomes of a log that cannot be read across its damage.
const LOG_CUT: &str = "what was committed from the damage of the log on is lost";

/// The connection of an image. It is taken away when the store is closed.
#[derive(Debug)]
struct Tap(Mutex<Option<Connection>>);

impl Tap {
    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The images of a store that may be alive.
#[derive(Debug, Default)]
pub(super) struct Pins(Vec<Weak<Tap>>);

impl Pins {
    /// Whether one of them is alive.
    pub(super) fn are_held(&self) -> bool {
        self.0.iter().any(|pin| pin.strong_count() > 0)
    }

    /// Ends them: each closes its connection, when the statement that it is in has ended.
    pub(super) fn end(&mut self) {
        for tap in self.0.drain(..).filter_map(|pin| pin.upgrade()) {
            tap.lock().take();
        }
    }

    fn add(&mut self, tap: &Arc<Tap>) {
        self.0.retain(|pin| pin.strong_count() > 0);
        self.0.push(Arc::downgrade(tap));
    }
}

/// What a database holds at one commit.
#[derive(Debug)]
pub(super) struct DatabaseImage {
    tap: Arc<Tap>,
    path: PathBuf,
    snapshot: Snapshot,
    /// Number and id of the stretches of each topic.
    stretches: BTreeMap<TopicId, Vec<(u64, i64)>>,
    /// Where it is read from, if that is a copy.
    mended: Option<Mended>,
}

impl DatabaseImage {
    /// What the database of a store that is served holds, whose writer has this catalog.
    ///
    /// # Errors
    /// Where no connection can be had.
    pub(super) fn of(path: &Path, catalog: &Catalog, pins: &mut Pins) -> Result<Self, StoreError> {
        let image = Self::new(connection::open(path, Access::Read)?, path, catalog);
        pins.add(&image.tap);
        Ok(image)
    }

    /// What a database holds that nobody serves.
    ///
    /// # Errors
    /// Where it is missing, damaged or of a newer format, or belongs to another process.
    pub(super) fn look(path: &Path) -> Result<Self, StoreError> {
        log::check(&files::log(path))?;
        let connection = open_alone(path)?;
        schema::check(&connection, path)?;
        let catalog = Catalog::load(&connection, path)?;
        Ok(Self::new(connection, path, &catalog))
    }

    /// What is left in a database that may be damaged, and what is not.
    ///
    /// # Errors
    /// Where it cannot be read at all.
    pub(super) fn look_at_what_is_left(path: &Path) -> Result<(Self, Vec<String>), StoreError> {
        if log::check(&files::log(path)).is_ok() {
            return Self::open_what_is_left(path, path);
        }
        let mended = Mended::of(path).and_then(|mended| {
            let Some(mended) = mended else { return Ok(None) };
            let (mut image, lost) = Self::open_what_is_left(&mended.database(), path)?;
            image.mended = Some(mended);
            Ok(Some((image, lost)))
        });
        let (opened, how) = match mended {
            Ok(Some(opened)) => {
                (opened, "the log was read across its damage: what has a wrong checksum since is lost")
            }
            Ok(None) => (Self::open_what_is_left(path, path)?, LOG_CUT),
            Err(error) => {
                tracing::warn!(%error, "the log cannot be read across its damage");
                (Self::open_what_is_left(path, path)?, LOG_CUT)
            }
        };
        let (image, mut lost) = opened;
        lost.insert(0, how.to_owned());
        Ok((image, lost))
    }

    /// Opens the database `file`, which is that at `path` or a copy of it.
    fn open_what_is_left(file: &Path, path: &Path) -> Result<(Self, Vec<String>), StoreError> {
        let connection = open_alone(file)?;
        schema::check(&connection, path)?;
        let (catalog, lost) = Catalog::load_what_is_left(&connection, path)?;
        Ok((Self::new(connection, path, &catalog), lost))
    }

    fn new(connection: Connection, path: &Path, catalog: &Catalog) -> Self {
        let places = catalog.places.iter();
        Self {
            tap: Arc::new(Tap(Mutex::new(Some(connection)))),
            path: path.to_owned(),
            snapshot: catalog.snapshot.clone(),
            stretches: places.map(|(topic, place)| (*topic, place.stretches.clone())).collect(),
            mended: None,
        }
    }

    fn stretch(&self, topic: TopicId, number: u64) -> Option<i64> {
        let stretches = self.stretches.get(&topic)?;
        stretches.iter().find(|&&(of, _)| of == number).map(|&(_, id)| id)
    }
}

/// Opens a database that nobody serves to read it, without changing a byte.
///
/// # Errors
/// Where it is missing, or belongs to another process.
pub(super) fn open_alone(path: &Path) -> Result<Connection, StoreError> {
    files::length(path)?.ok_or_else(|| StoreError::Missing { path: path.to_owned() })?;
    schema::check_head(path)?;
    // Opening the log where there is none would make one, and where nothing can be written a log that is empty is no
    // reason to fail.
    let has_log = files::length(&files::log(path))?.is_some_and(|bytes| bytes > 0);
    let access = if has_log { Access::Write } else { Access::Frozen };
    let connection = connection::open(path, access)?;
    connection.pragma_update(None, "query_only", true).map_err(failed("refuse writes"))?;
    Ok(connection)
}

/// Lines of the database's own check that are told: one broken page may make a hundred.
const CHECK_LINES_MAX: usize = 5;

/// What is told of the lines of the database's own check.
fn told_of(mut lines: Vec<String>) -> impl Iterator<Item = String> {
    lines.retain(|line| line != "ok");
    let more = lines.len().saturating_sub(CHECK_LINES_MAX);
    lines.truncate(CHECK_LINES_MAX);
    let rest = (more > 0).then(|| format!("and {more} more such lines of the database's own check"));
    lines.into_iter().chain(rest)
}

/// What the database itself finds wrong in its file, and what is wrong with its log.
///
/// # Errors
/// Where it is of a newer format, or belongs to another process.
pub(super) fn inspect_files(path: &Path) -> Result<Vec<Damage>, StoreError> {
    let mut damages = Vec::new();
    let dir = path.parent().unwrap_or(path);
    if let Err(error) = log::check(&files::log(path)) {
        let damage = Damage::of(dir, &error);
        damages.push(Damage { lost: Lost::Unknown, ..damage });
    }
    let checked = open_alone(path).and_then(|connection| {
        let action = "check the database";
        let mut statement = connection.prepare("PRAGMA integrity_check").map_err(failed(action))?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0)).map_err(failed(action))?;
        lines.collect::<rusqlite::Result<Vec<String>>>().map_err(failed(action))
    });
    match checked {
        Ok(lines) => damages.extend(told_of(lines).map(|what| Damage {
            path: path.to_owned(),
            position: None,
            what,
            lost: Lost::Nothing,
        })),
        Err(error @ (StoreError::NewerFormat { .. } | StoreError::NoRights { .. })) => return Err(error),
        Err(error) => {
            let damage = Damage::of(dir, &error);
            damages.push(Damage { path: path.to_owned(), ..damage });
        }
    }
    Ok(damages)
}

impl Image for DatabaseImage {
    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn read(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, StoreError> {
        let state = self.snapshot.topics.get(&topic);
        let Some(run) = state.and_then(|state| state.run_at(from)) else { return Ok(None) };
        let missing = || damaged(&self.path, topic, from, "its row is missing");
        let (number, low) = split(from.0);
        let first = first_row(self.stretch(topic, number).ok_or_else(missing)?) + low;
        let count = (run.end.0 - from.0).min((1 << STRETCH_BITS) - low as u64);
        let tap = self.tap.lock();
        let Some(connection) = tap.as_ref() else {
            let message = "the store was closed meanwhile: begin again at the next master".to_owned();
            return Err(StoreError::Database { action: "read an image", message });
        };
        let database = failed("read messages");
        let mut statement = connection.prepare_cached(ROWS).map_err(&database)?;
        let rows = statement.query((first, first + count as i64)).map_err(&database)?;
        let (bytes, stamps) =
            gather(connection, rows, (topic, from), bytes_max, bytes_max, &self.path)?.ok_or_else(missing)?;
        let block = MessageBlock::from_store(bytes.freeze())
            .map_err(|error| damaged(&self.path, topic, from, &error.to_string()))?;
        Ok(Some(Chunk { first: from, block, stamps }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One broken page filled the terminal with the database's own lines, and the messages that it touched were not seen.
    #[test]
    fn a_handful_of_the_databases_own_lines_is_told() {
        let lines = |count: usize| (0..count).map(|line| line.to_string()).collect::<Vec<_>>();
        assert_eq!(told_of(vec!["ok".to_owned()]).count(), 0);
        assert_eq!(told_of(lines(5)).collect::<Vec<_>>(), lines(5));
        let told: Vec<_> = told_of(lines(40)).collect();
        assert_eq!(told[..5], lines(5));
        assert_eq!(told[5..], ["and 35 more such lines of the database's own check"]);
    }
}
