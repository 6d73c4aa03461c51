//! A database that is being made from what another store holds.
//!
//! All of it is one transaction without a journal and without syncs, which writes each page about once. That is safe
//! because the file does not count before a manifest names it: where filling does not come to its end, the file is
//! removed, by this process or by the next master. When it does, the file is synced before anybody is told.
//!
//! What is written is handed to the disk now and then, so that the sync at the end is short.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::super::course::Course;
use super::super::image::Fill;
use super::super::manifest::{Manifest, sync_dir};
use super::super::{Mode, OpenOptions, StoreError};
use super::bodies::Bodies;
use super::catalog::{Catalog, Place};
use super::connection::{self, Access, failed, is_full};
use super::message::{InsertError, Inserts, Target, first_row, split};
use super::schema::{self, STRETCH_BITS};
use super::staging::Staging;
use super::unserved::Unserved;
use super::{files, rows};
use crate::model::chunk::Chunk;
use crate::model::id::{Epoch, Offset, TopicId};
use crate::model::record::{Published, Source};
use crate::model::snapshot::Snapshot;

/// Bytes of messages after which what was written is handed to the disk.
const SYNC_BYTES: u64 = 64 << 20;

/// A database that is being made.
pub(super) struct DatabaseFill {
    connection: Connection,
    /// For syncs. Open for as long as the connection: closing it would drop the locks of that.
    file: File,
    path: PathBuf,
    epoch: Epoch,
    inserts: Inserts,
    bodies: Bodies,
    course: Course,
    /// The stretch that is being filled: topic, number and id.
    stretch: Option<(TopicId, u64, i64)>,
    unsynced: u64,
    unserved: Unserved,
}

impl DatabaseFill {
    /// Begins a database for the epoch, with all of the state.
    ///
    /// # Errors
    /// Where it is there already, or cannot be written.
    pub(super) fn begin(options: &OpenOptions, snapshot: &Snapshot) -> Result<Self, StoreError> {
        let path = options.dir.join(files::name(options.epoch));
        let unserved = Unserved::new(&path)?;
        let connection = connection::open(&path, Access::Create)?;
        schema::migrate(&connection)?;
        for pragma in ["journal_mode = off", "synchronous = off"] {
            connection.execute_batch(&format!("PRAGMA {pragma}")).map_err(failed("set the pragmas"))?;
        }
        let file = File::open(&path).map_err(io("open", &path))?;
        let fill = Self {
            connection,
            file,
            epoch: options.epoch,
            inserts: Inserts::new(),
            bodies: Bodies::default(),
            course: Course::new(snapshot),
            stretch: None,
            unsynced: 0,
            unserved,
            path,
        };
        fill.connection.execute_batch("BEGIN IMMEDIATE").map_err(failed("begin to fill"))?;
        write_state(&fill.connection, snapshot).map_err(|error| fill.failed("write the state", error, 0))?;
        Ok(fill)
    }

    fn failed(&self, action: &'static str, error: rusqlite::Error, bytes: u64) -> StoreError {
        if is_full(&error, &self.path) { StoreError::Full(bytes) } else { failed(action)(error) }
    }

    /// Inserts messages that have time and origin in common, the first at `first`.
    fn insert(&mut self, topic: TopicId, first: Offset, published: &Published) -> Result<(), InsertError> {
        let count = published.block.count();
        let mut from = 0;
        while from < count {
            let offset = Offset(first.0 + from as u64);
            let (number, low) = split(offset.0);
            let row = first_row(self.stretch(topic, number)?) + low;
            let room = (1 << STRETCH_BITS) - low as u64;
            let to = count.min(from.saturating_add(usize::try_from(room).unwrap_or(usize::MAX)));
            let target = Target { topic, first: offset, row };
            let (bodies, staging) = (&mut self.bodies, Staging::default());
            self.inserts.insert(&self.connection, published, (from, to), target, bodies, &staging)?;
            from = to;
        }
        Ok(())
    }

    /// Id of a topic's stretch; makes it where it is not there yet.
    fn stretch(&mut self, topic: TopicId, number: u64) -> rusqlite::Result<i64> {
        let id = match self.stretch {
            Some((of, at, id)) if (of, at) == (topic, number) => return Ok(id),
            Some((_, _, last)) => last + 1,
            None => 1,
        };
        rows::put_stretch(&self.connection, id, topic, number)?;
        self.stretch = Some((topic, number, id));
        Ok(id)
    }
}

impl Fill for DatabaseFill {
    fn add(&mut self, topic: TopicId, chunk: &Chunk) -> Result<(), StoreError> {
        let wrong = |source| StoreError::Inconsistent { path: self.path.clone(), source };
        self.course.pass(topic, chunk.range()).map_err(wrong)?;
        let bytes = chunk.block.bytes().len() as u64;
        let mut at = 0;
        for stamp in &chunk.stamps {
            let to = at + stamp.count as usize;
            let published = Published {
                targets: Vec::new(),
                source: Source::of(stamp.origin),
                at: stamp.published_at,
                block: chunk.block.part(at, to),
            };
            self.insert(topic, Offset(chunk.first.0 + at as u64), &published).map_err(
                |error| match error {
                    InsertError::Database(error) => self.failed("insert messages", error, bytes),
                    InsertError::Message(error) => {
                        StoreError::Database { action: "insert messages", message: error.to_string() }
                    }
                },
            )?;
            at = to;
        }
        self.unsynced += bytes;
        if self.unsynced > SYNC_BYTES {
            self.file.sync_data().map_err(io("sync", &self.path))?;
            self.unsynced = 0;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Manifest, StoreError> {
        let wrong = |source| StoreError::Inconsistent { path: self.path.clone(), source };
        self.course.end().map_err(wrong)?;
        let ended = self.connection.execute_batch("COMMIT; PRAGMA journal_mode = wal;");
        ended.map_err(|error| self.failed("end filling", error, 0))?;
        let Self { connection, file, path, epoch, unserved, .. } = *self;
        connection.close().map_err(|(_, error)| failed("close")(error))?;
        // It is empty: the last commit was made without one.
        let log = files::log(&path);
        match fs::remove_file(&log) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("remove", &log)(error)),
            _ => {}
        }
        file.sync_all().map_err(io("sync", &path))?;
        sync_dir(path.parent().unwrap_or(&path))?;
        unserved.keep();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Manifest { epoch, mode: Mode::Database, sealed: Vec::new(), database: name })
    }
}

/// Writes every table but those of messages and their places.
fn write_state(connection: &Connection, snapshot: &Snapshot) -> rusqlite::Result<()> {
    rows::put_meta(connection, &Catalog { snapshot: snapshot.clone(), ..Catalog::default() })?;
    for (id, topic) in &snapshot.topics {
        rows::put_topic(connection, *id, topic, &Place { cleared: topic.start, ..Place::default() })?;
        if !topic.marks.list().is_empty() {
            rows::put_marks(connection, *id, &topic.marks)?;
        }
        for range in topic.removed.iter() {
            rows::put_removed(connection, *id, range)?;
        }
    }
    for (id, group) in &snapshot.groups {
        rows::put_group(connection, *id, group)?;
        for range in group.settled.iter() {
            rows::put_settled(connection, *id, range)?;
        }
        for (range, retry) in group.retries.iter() {
            rows::put_retry(connection, *id, range, retry)?;
        }
    }
    for (id, producer) in &snapshot.producers {
        rows::put_producer(connection, *id, producer)?;
    }
    for (id, route) in &snapshot.routes {
        rows::put_route(connection, *id, route)?;
    }
    Ok(())
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}
