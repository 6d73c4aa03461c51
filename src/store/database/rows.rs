//! Rows of the catalog and of progress: every table but those of messages and of parts of bodies.
//!
//! A row is written whole, from what the writer has in memory, and with its [checksum](super::checksum): so a row that
//! was damaged on disk is never carried on under a right checksum. Loading checks each one; which message has which
//! large body is not loaded, and is checked by who looks for it.

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Row};
use serde::Serialize;

use super::catalog::{Catalog, Place};
use super::checksum::OfRow;
use super::connection::is_damage;
use crate::model::id::{GroupId, OffsetRange, ProducerId, RouteId, TopicId};
use crate::model::marks::Marks;
use crate::model::retry::Retry;
use crate::model::route::{Route, RouteMode};
use crate::model::snapshot::{GroupState, ProducerState, TopicState};
use crate::model::topic_kind::{TopicKind, Waiting};

/// A table: how a row of it is written, and how all are read. The columns are in the order of the schema, the last
/// one is the checksum.
pub(super) struct Table {
    name: &'static str,
    put: &'static str,
    /// Selects all rows, or those of a range.
    pub(super) all: &'static str,
}

pub(super) const META: Table = Table {
    name: "meta",
    put: "INSERT OR REPLACE INTO meta VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    all: "SELECT id, next_topic, next_group, next_producer, next_route, topics, groups, producers, routes, time, \
          checksum FROM meta",
};
pub(super) const TOPIC: Table = Table {
    name: "topic",
    put: "INSERT OR REPLACE INTO topic VALUES \
          (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    all: "SELECT id, name, kind, part_of, priority, waiting, due_from, due_until, settings, start_offset, \
          cleared_offset, end_offset, stored_at, stored_bytes, checksum FROM topic",
};
pub(super) const TOPIC_MARKS: Table = Table {
    name: "topic_marks",
    put: "INSERT OR REPLACE INTO topic_marks VALUES (?1, ?2, ?3)",
    all: "SELECT topic, marks, checksum FROM topic_marks",
};
pub(super) const REMOVED: Table = Table {
    name: "removed_range",
    put: "INSERT INTO removed_range VALUES (?1, ?2, ?3, ?4)",
    all: "SELECT topic, start_offset, end_offset, checksum FROM removed_range",
};
pub(super) const STRETCH: Table = Table {
    name: "stretch",
    put: "INSERT INTO stretch VALUES (?1, ?2, ?3, ?4)",
    all: "SELECT id, topic, number, checksum FROM stretch ORDER BY topic, number",
};
pub(super) const GROUP: Table = Table {
    name: "consumer_group",
    put: "INSERT OR REPLACE INTO consumer_group VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    all: "SELECT id, topic, name, part_of, settings, floor_offset, handed_out, checksum FROM consumer_group",
};
pub(super) const SETTLED: Table = Table {
    name: "settled_range",
    put: "INSERT OR REPLACE INTO settled_range VALUES (?1, ?2, ?3, ?4)",
    all: "SELECT group_id, start_offset, end_offset, checksum FROM settled_range",
};
pub(super) const RETRY: Table = Table {
    name: "retry",
    put: "INSERT OR REPLACE INTO retry VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    all: "SELECT group_id, start_offset, end_offset, handed_out, failed, due_at, failures, checksum FROM retry",
};
pub(super) const PRODUCER: Table = Table {
    name: "producer",
    put: "INSERT OR REPLACE INTO producer VALUES (?1, ?2, ?3, ?4, ?5)",
    all: "SELECT id, name, last_sequence, seen_at, checksum FROM producer",
};
pub(super) const ROUTE: Table = Table {
    name: "route",
    put: "INSERT OR REPLACE INTO route VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    all: "SELECT id, name, from_topic, to_topics, filter, mode, checksum FROM route",
};
pub(super) const LARGE_BODY: Table = Table {
    name: "large_body",
    put: "INSERT INTO large_body VALUES (?1, ?2, ?3, ?4)",
    all: "SELECT message, body, bytes, checksum FROM large_body WHERE message >= ?1 AND message < ?2",
};
pub(super) const UNUSED_BODY: Table = Table {
    name: "unused_body",
    put: "INSERT INTO unused_body VALUES (?1, ?2)",
    all: "SELECT body, checksum FROM unused_body",
};

/// Why rows could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The database's answer.
    Database(rusqlite::Error),
    /// A row is not what was written.
    Damaged(String),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

/// What becomes of damage.
#[derive(Debug)]
pub(super) enum Tolerance {
    /// The first one ends everything.
    Nothing,
    /// It is noted and passed over.
    Noted(Vec<String>),
}

impl Tolerance {
    /// Notes damage, or ends with it.
    ///
    /// # Errors
    /// The damage, where none is tolerated.
    pub(super) fn damage(&mut self, what: String) -> Result<(), ReadError> {
        match self {
            Self::Nothing => Err(ReadError::Damaged(what)),
            Self::Noted(noted) => {
                noted.push(what);
                Ok(())
            }
        }
    }
}

impl Table {
    /// Hands every row to `take`, once its checksum is known to be right. What `take` finds wrong is damage.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub(super) fn each(
        &self,
        connection: &Connection,
        tolerance: &mut Tolerance,
        mut take: impl FnMut(&Row<'_>) -> Result<(), String>,
    ) -> Result<(), ReadError> {
        let mut statement = connection.prepare(self.all)?;
        let mut rows = statement.raw_query();
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => return Ok(()),
                Err(error) if is_damage(&error) => {
                    return tolerance.damage(format!("table {}: {error}", self.name));
                }
                Err(error) => return Err(error.into()),
            };
            if let Err(what) = self.check(row).and_then(|()| take(row)) {
                let first = row.get::<_, Value>(0);
                let id = first.map_or_else(|_| "?".to_owned(), |value| text(&value));
                tolerance.damage(format!("table {}, a row of {id}: {what}", self.name))?;
            }
        }
    }

    /// Checks a row against its checksum.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(&self, row: &Row<'_>) -> Result<(), String> {
        let count = row.as_ref().column_count();
        let mut sum = OfRow::begin(self.name);
        for column in 0..count - 1 {
            sum = match row.get_ref(column).map_err(|error| error.to_string())? {
                ValueRef::Null => sum.null(),
                ValueRef::Integer(number) => sum.number(number),
                ValueRef::Text(text) => {
                    sum.text(std::str::from_utf8(text).map_err(|error| error.to_string())?)
                }
                other => return Err(format!("column {column} is of type {}", other.data_type())),
            };
        }
        let (stored, found) = (row.get::<_, i32>(count - 1).map_err(|error| error.to_string())?, sum.end());
        if stored == found {
            return Ok(());
        }
        Err(format!("it was changed: its checksum is {stored:#010x} and would be {found:#010x}"))
    }

    fn put(&self, connection: &Connection, cells: &[Cell<'_>]) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(self.put)?;
        let mut sum = OfRow::begin(self.name);
        for (cell, parameter) in cells.iter().zip(1..) {
            match *cell {
                Cell::Nothing => {
                    sum = sum.null();
                    statement.raw_bind_parameter(parameter, rusqlite::types::Null)?;
                }
                Cell::Number(number) => {
                    sum = sum.number(number);
                    statement.raw_bind_parameter(parameter, number)?;
                }
                Cell::Text(text) => {
                    sum = sum.text(text);
                    statement.raw_bind_parameter(parameter, text)?;
                }
            }
        }
        statement.raw_bind_parameter(cells.len() + 1, sum.end())?;
        statement.raw_execute().map(|_| ())
    }
}

/// A value of a row. The database keeps the 64 bits of an unsigned number as a signed one.
enum Cell<'a> {
    Nothing,
    Number(i64),
    Text(&'a str),
}

impl From<u64> for Cell<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number.cast_signed())
    }
}

impl From<u32> for Cell<'_> {
    fn from(number: u32) -> Self {
        Self::Number(i64::from(number))
    }
}

impl<'a> From<&'a str> for Cell<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a, T: Into<Cell<'a>>> From<Option<T>> for Cell<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nothing, Into::into)
    }
}

/// Writes the numbers of the whole store.
pub(super) fn put_meta(connection: &Connection, catalog: &Catalog) -> rusqlite::Result<()> {
    let snapshot = &catalog.snapshot;
    let (next, count) = (snapshot.next, |len: usize| len as u64);
    let cells = [
        0_u32.into(),
        next.topic.0.into(),
        next.group.0.into(),
        next.producer.0.into(),
        next.route.0.into(),
        count(snapshot.topics.len()).into(),
        count(snapshot.groups.len()).into(),
        count(snapshot.producers.len()).into(),
        count(snapshot.routes.len()).into(),
        snapshot.time.0.into(),
    ];
    META.put(connection, &cells)
}

/// Writes a topic, without its marks and what is removed from it.
pub(super) fn put_topic(
    connection: &Connection,
    id: TopicId,
    topic: &TopicState,
    place: &Place,
) -> rusqlite::Result<()> {
    let settings = json(&topic.settings)?;
    let (due_from, due_until, waiting) = match topic.kind {
        TopicKind::Slot { waiting, from, until, .. } => (Some(from.0), Some(until.0), Some(waiting)),
        TopicKind::Named | TopicKind::Pattern | TopicKind::Lane { .. } => (None, None, None),
    };
    let priority = match topic.kind {
        TopicKind::Lane { priority, .. } => Some(u32::from(priority)),
        _ => None,
    };
    let cells = [
        id.0.into(),
        topic.name.as_str().into(),
        kind_word(topic.kind).into(),
        topic.kind.part_of().map(|of| of.0).into(),
        priority.into(),
        waiting.map(waiting_word).into(),
        due_from.into(),
        due_until.into(),
        settings.as_str().into(),
        topic.start.0.into(),
        place.cleared.0.into(),
        topic.end.0.into(),
        topic.marks.last_at().0.into(),
        topic.marks.bytes_ever().into(),
    ];
    TOPIC.put(connection, &cells)
}

/// The word for what a topic is.
pub(super) const fn kind_word(kind: TopicKind) -> &'static str {
    match kind {
        TopicKind::Named => "named",
        TopicKind::Pattern => "pattern",
        TopicKind::Lane { .. } => "lane",
        TopicKind::Slot { .. } => "slot",
    }
}

/// The word for what waits in a slot.
pub(super) const fn waiting_word(waiting: Waiting) -> &'static str {
    match waiting {
        Waiting::Delayed => "delayed",
        Waiting::Expiring => "expiring",
    }
}

/// Writes the marks of a topic, but for what its own row has of them.
pub(super) fn put_marks(connection: &Connection, topic: TopicId, marks: &Marks) -> rusqlite::Result<()> {
    TOPIC_MARKS.put(connection, &[topic.0.into(), json(&marks.list())?.as_str().into()])
}

/// Writes a range that was removed from the middle of a topic.
pub(super) fn put_removed(
    connection: &Connection,
    topic: TopicId,
    range: OffsetRange,
) -> rusqlite::Result<()> {
    REMOVED.put(connection, &[topic.0.into(), range.start.0.into(), range.end.0.into()])
}

/// Writes a stretch, which is never changed.
pub(super) fn put_stretch(
    connection: &Connection,
    id: i64,
    topic: TopicId,
    number: u64,
) -> rusqlite::Result<()> {
    STRETCH.put(connection, &[Cell::Number(id), topic.0.into(), number.into()])
}

/// Writes a group, without what it has settled above its floor and its retries.
pub(super) fn put_group(connection: &Connection, id: GroupId, group: &GroupState) -> rusqlite::Result<()> {
    let settings = json(&group.settings)?;
    let cells = [
        id.0.into(),
        group.topic.0.into(),
        group.name.as_str().into(),
        group.part_of.map(|of| of.0).into(),
        settings.as_str().into(),
        group.floor.0.into(),
        group.handed_out.0.into(),
    ];
    GROUP.put(connection, &cells)
}

/// Writes a range that a group has settled above its floor.
pub(super) fn put_settled(connection: &Connection, id: GroupId, range: OffsetRange) -> rusqlite::Result<()> {
    SETTLED.put(connection, &[id.0.into(), range.start.0.into(), range.end.0.into()])
}

/// Writes what is known of messages that wait for another attempt.
pub(super) fn put_retry(
    connection: &Connection,
    id: GroupId,
    range: OffsetRange,
    retry: &Retry,
) -> rusqlite::Result<()> {
    let failures = json(&retry.failures)?;
    let cells = [
        id.0.into(),
        range.start.0.into(),
        range.end.0.into(),
        retry.handed_out.into(),
        retry.failed.into(),
        retry.due_at.0.into(),
        failures.as_str().into(),
    ];
    RETRY.put(connection, &cells)
}

/// Writes a producer.
pub(super) fn put_producer(
    connection: &Connection,
    id: ProducerId,
    producer: &ProducerState,
) -> rusqlite::Result<()> {
    let cells =
        [id.0.into(), producer.name.as_str().into(), producer.last.0.into(), producer.seen_at.0.into()];
    PRODUCER.put(connection, &cells)
}

/// Writes a route.
pub(super) fn put_route(connection: &Connection, id: RouteId, route: &Route) -> rusqlite::Result<()> {
    let to = json(&route.to)?;
    let cells = [
        id.0.into(),
        route.name.as_str().into(),
        route.from.0.into(),
        to.as_str().into(),
        route.filter.as_deref().into(),
        mode_word(route.mode).into(),
    ];
    ROUTE.put(connection, &cells)
}

/// The word for what becomes of a message that a route passes on.
pub(super) const fn mode_word(mode: RouteMode) -> &'static str {
    match mode {
        RouteMode::Copy => "copy",
        RouteMode::Move => "move",
    }
}

/// Writes that the message of a row has this body, of so many bytes.
pub(super) fn put_large_body(
    connection: &Connection,
    row: i64,
    body: i64,
    bytes: usize,
) -> rusqlite::Result<()> {
    LARGE_BODY.put(connection, &[Cell::Number(row), Cell::Number(body), (bytes as u64).into()])
}

/// Writes that no message has this body.
pub(super) fn put_unused_body(connection: &Connection, body: i64) -> rusqlite::Result<()> {
    UNUSED_BODY.put(connection, &[Cell::Number(body)])
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn text(value: &Value) -> String {
    match value {
        Value::Integer(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        other => format!("{other:?}"),
    }
}
