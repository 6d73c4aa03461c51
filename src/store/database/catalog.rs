//! What the writer knows of the database without asking it: the fold of all committed records, and where each
//! topic's messages lie.
//!
//! The [rows](super::rows) of catalog and progress are written from this state, so what is on disk is by construction
//! what [`Snapshot::apply`] makes of the records. Loading reads every table but the messages: its time depends on what
//! exists and is in flight, not on the backlog.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::types::FromSql;
use rusqlite::{Connection, Row};
use serde::de::DeserializeOwned;

use super::super::{StoreError, orphans};
use super::bodies::Bodies;
use super::connection::failed;
use super::rows::{self, ReadError, Tolerance};
use crate::model::id::{GroupId, Offset, OffsetRange, ProducerId, RouteId, Sequence, TopicId};
use crate::model::marks::{Mark, Marks};
use crate::model::name::Name;
use crate::model::range_map::RangeMap;
use crate::model::ranges::RangeSet;
use crate::model::retry::Retry;
use crate::model::route::{Route, RouteMode};
use crate::model::snapshot::{GroupState, ProducerState, Snapshot, TopicState};
use crate::model::time::Timestamp;
use crate::model::topic_kind::{TopicKind, Waiting};

/// Where the messages of a living topic lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Rows of offsets below are deleted.
    pub(super) cleared: Offset,
    /// Which of its marks are written.
    pub(super) marks: MarksWritten,
    /// Number and id of each stretch, lowest first; the last one is appended to.
    pub(super) stretches: Vec<(u64, i64)>,
}

/// Which marks of a topic are written: how many, and the last one. They differ whenever others do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MarksWritten(usize, Option<Mark>);

impl MarksWritten {
    /// What says that these are.
    pub(super) fn of(marks: &Marks) -> Self {
        Self(marks.list().len(), marks.list().last().copied())
    }
}

/// The writer's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Catalog {
    /// The fold of all committed records.
    pub(super) snapshot: Snapshot,
    /// Places of the living topics.
    pub(super) places: BTreeMap<TopicId, Place>,
    /// Living topics with rows below their start.
    pub(super) trimmed: BTreeSet<TopicId>,
    /// Ranges in the middle of topics whose rows are to be deleted.
    pub(super) removed: Vec<(TopicId, OffsetRange)>,
    /// Stretches whose topic is gone; their messages are to be deleted.
    pub(super) orphans: Vec<i64>,
    /// Id of the next stretch: above all that are there.
    pub(super) next_stretch: i64,
    /// Large bodies.
    pub(super) bodies: Bodies,
}

impl Catalog {
    /// Writes the state of a store in which nothing is yet, as [`load`](Self::load) wants to find it.
    ///
    /// # Errors
    /// The database's own.
    pub(super) fn begin(connection: &Connection) -> Result<(), StoreError> {
        rows::put_meta(connection, &Self::default()).map_err(failed("write the first row"))
    }

    /// Reads the state from the database.
    ///
    /// # Errors
    /// The database's own, and [`StoreError::Damaged`] where a row is not what was written, or is missing.
    pub(super) fn load(connection: &Connection, path: &Path) -> Result<Self, StoreError> {
        let mut catalog = Self { next_stretch: 1, ..Self::default() };
        catalog.read(connection, &mut Tolerance::Nothing).map_err(|error| match error {
            ReadError::Damaged(what) => StoreError::Damaged { path: path.to_owned(), position: 0, what },
            ReadError::Database(error) => failed("read the catalog")(error),
        })?;
        Ok(catalog)
    }

    /// Reads what is left of the state in a database that is damaged. Answers what is not.
    ///
    /// # Errors
    /// The database's own, where it cannot be read at all.
    pub(super) fn load_what_is_left(
        connection: &Connection,
        path: &Path,
    ) -> Result<(Self, Vec<String>), StoreError> {
        let mut catalog = Self { next_stretch: 1, ..Self::default() };
        let mut tolerance = Tolerance::Noted(Vec::new());
        catalog.read(connection, &mut tolerance).map_err(|error| match error {
            ReadError::Damaged(what) => StoreError::Damaged { path: path.to_owned(), position: 0, what },
            ReadError::Database(error) => failed("read the catalog")(error),
        })?;
        let Tolerance::Noted(mut noted) = tolerance else { return Ok((catalog, Vec::new())) };
        noted.extend(orphans::settle(&mut catalog.snapshot));
        Ok((catalog, noted))
    }

    fn read(&mut self, connection: &Connection, tolerance: &mut Tolerance) -> Result<(), ReadError> {
        self.read_topics(connection, tolerance)?;
        self.read_groups(connection, tolerance)?;
        rows::PRODUCER.each(connection, tolerance, |row| {
            let (name, last) = (name(row, 1)?, Sequence(number(row, 2)?));
            let state = ProducerState { name, last, seen_at: Timestamp(number(row, 3)?) };
            self.snapshot.producers.insert(ProducerId(number(row, 0)?), state);
            Ok(())
        })?;
        rows::ROUTE.each(connection, tolerance, |row| {
            let route = Route {
                name: name(row, 1)?,
                from: TopicId(small(row, 2)?),
                to: json(row, 3)?,
                filter: optional(row, 4)?,
                mode: word(row, 5, [RouteMode::Copy, RouteMode::Move], rows::mode_word)?,
            };
            self.snapshot.routes.insert(RouteId(small(row, 0)?), route);
            Ok(())
        })?;
        self.bodies = Bodies::load(connection, tolerance)?;
        self.read_meta(connection, tolerance)
    }

    /// Reads the numbers of the whole store. A row that is lost has no checksum that could tell: the counts do, of
    /// what messages would be lost with.
    fn read_meta(&mut self, connection: &Connection, tolerance: &mut Tolerance) -> Result<(), ReadError> {
        let snapshot = &mut self.snapshot;
        let mut found = 0;
        rows::META.each(connection, tolerance, |row| {
            found += 1;
            snapshot.next.topic = TopicId(small(row, 1)?);
            snapshot.next.group = GroupId(small(row, 2)?);
            snapshot.next.producer = ProducerId(number(row, 3)?);
            snapshot.next.route = RouteId(small(row, 4)?);
            snapshot.time = snapshot.time.max(Timestamp(number(row, 9)?));
            let counts = [
                (5, "topics", snapshot.topics.len()),
                (6, "groups", snapshot.groups.len()),
                (7, "producers", snapshot.producers.len()),
                (8, "routes", snapshot.routes.len()),
            ];
            for (column, what, count) in counts {
                let written = number(row, column)?;
                if written != count as u64 {
                    return Err(format!("{written} {what} were written, {count} are there"));
                }
            }
            Ok(())
        })?;
        if found == 1 { Ok(()) } else { tolerance.damage(format!("table meta has {found} rows, not 1")) }
    }

    fn read_topics(&mut self, connection: &Connection, tolerance: &mut Tolerance) -> Result<(), ReadError> {
        let mut unmarked = BTreeMap::new();
        rows::TOPIC.each(connection, tolerance, |row| {
            let id = TopicId(small(row, 0)?);
            let (start, end) = (Offset(number(row, 9)?), Offset(number(row, 11)?));
            let cleared = Offset(number(row, 10)?);
            let (stored_at, stored_bytes) = (Timestamp(number(row, 12)?), number(row, 13)?);
            let (name, kind, settings) = (name(row, 1)?, kind(row, 2)?, json(row, 8)?);
            if cleared < start {
                self.trimmed.insert(id);
            }
            let state = TopicState { start, end, ..TopicState::new(name, kind, settings) };
            self.snapshot.topics.insert(id, state);
            self.places.insert(id, Place { cleared, ..Place::default() });
            self.snapshot.time = self.snapshot.time.max(stored_at);
            if stored_bytes > 0 {
                unmarked.insert(id, (stored_bytes, stored_at));
            }
            Ok(())
        })?;
        rows::TOPIC_MARKS.each(connection, tolerance, |row| {
            let id = TopicId(small(row, 0)?);
            let (bytes, last_at) =
                unmarked.get(&id).copied().ok_or("there is no such topic, or it is empty")?;
            let marks = Marks::of(json(row, 1)?, bytes, last_at).map_err(|error| error.to_string())?;
            unmarked.remove(&id);
            if let (Some(topic), Some(place)) = (self.snapshot.topics.get_mut(&id), self.places.get_mut(&id))
            {
                place.marks = MarksWritten::of(&marks);
                topic.marks = marks;
            }
            Ok(())
        })?;
        for id in unmarked.into_keys() {
            tolerance.damage(format!("table topic_marks: the row of {id} is missing"))?;
        }
        let topics = &mut self.snapshot.topics;
        rows::REMOVED.each(connection, tolerance, |row| {
            let id = TopicId(small(row, 0)?);
            let topic = topics.get_mut(&id).ok_or("there is no such topic")?;
            let range = OffsetRange::new(number(row, 1)?, number(row, 2)?);
            let overlap = topic.removed.range_from(range.start).is_some_and(|next| next.start < range.end);
            if range.start < topic.start || range.end > topic.end || range.is_empty() || overlap {
                return Err(format!("the removed range {range} does not fit"));
            }
            topic.removed.insert(range);
            // Whether its rows are deleted already is not known.
            self.removed.push((id, range));
            Ok(())
        })?;
        rows::STRETCH.each(connection, tolerance, |row| {
            let id = signed(row, 0)?;
            self.next_stretch = self.next_stretch.max(id + 1);
            match self.places.get_mut(&TopicId(small(row, 1)?)) {
                Some(place) => place.stretches.push((number(row, 2)?, id)),
                None => self.orphans.push(id),
            }
            Ok(())
        })
    }

    fn read_groups(&mut self, connection: &Connection, tolerance: &mut Tolerance) -> Result<(), ReadError> {
        let groups = &mut self.snapshot.groups;
        rows::GROUP.each(connection, tolerance, |row| {
            let state = GroupState {
                topic: TopicId(small(row, 1)?),
                name: name(row, 2)?,
                part_of: optional(row, 3)?.map(GroupId),
                settings: json(row, 4)?,
                floor: Offset(number(row, 5)?),
                settled: RangeSet::new(),
                retries: RangeMap::new(),
                handed_out: Offset(number(row, 6)?),
            };
            groups.insert(GroupId(small(row, 0)?), state);
            Ok(())
        })?;
        let stray = || "there is no such group".to_owned();
        rows::SETTLED.each(connection, tolerance, |row| {
            let group = groups.get_mut(&GroupId(small(row, 0)?)).ok_or_else(stray)?;
            let range = OffsetRange::new(number(row, 1)?, number(row, 2)?);
            if range.start <= group.floor || range.is_empty() || group.settled.insert(range) != range {
                return Err(format!("the settled range {range} does not stand alone"));
            }
            Ok(())
        })?;
        rows::RETRY.each(connection, tolerance, |row| {
            let group = groups.get_mut(&GroupId(small(row, 0)?)).ok_or_else(stray)?;
            let range = OffsetRange::new(number(row, 1)?, number(row, 2)?);
            let retry = Retry {
                handed_out: small(row, 3)?,
                failed: small(row, 4)?,
                due_at: Timestamp(number(row, 5)?),
                failures: json(row, 6)?,
            };
            if range.is_empty() || group.retries.within(range).next().is_some() {
                return Err(format!("the range {range} does not fit"));
            }
            group.retries.insert(range, retry);
            if group.retries.run_at(range.start).is_none_or(|(run, _)| run != range) {
                return Err(format!("the range {range} does not stand alone"));
            }
            Ok(())
        })
    }
}

fn signed(row: &Row<'_>, column: usize) -> Result<i64, String> {
    row.get(column).map_err(|error| error.to_string())
}

/// An unsigned number: the database keeps the same 64 bits as a signed one.
fn number(row: &Row<'_>, column: usize) -> Result<u64, String> {
    signed(row, column).map(i64::cast_unsigned)
}

fn small(row: &Row<'_>, column: usize) -> Result<u32, String> {
    row.get(column).map_err(|error| error.to_string())
}

/// A value, where there is one.
fn optional<T: FromSql>(row: &Row<'_>, column: usize) -> Result<Option<T>, String> {
    row.get(column).map_err(|error| error.to_string())
}

/// What a word stands for.
fn word<T: Copy, const N: usize>(
    row: &Row<'_>,
    column: usize,
    all: [T; N],
    word: impl Fn(T) -> &'static str,
) -> Result<T, String> {
    let text = text(row, column)?;
    all.into_iter()
        .find(|&one| word(one) == text)
        .ok_or_else(|| format!("column {column}: unknown word {text}"))
}

/// What a topic is: the columns from `column` on.
fn kind(row: &Row<'_>, column: usize) -> Result<TopicKind, String> {
    let of = optional(row, column + 1)?.map(TopicId);
    let priority: Option<u8> = optional(row, column + 2)?;
    let kind = text(row, column)?;
    Ok(match (kind.as_str(), of) {
        ("named", None) => TopicKind::Named,
        ("pattern", None) => TopicKind::Pattern,
        ("lane", Some(of)) => TopicKind::Lane { of, priority: priority.ok_or("a lane without priority")? },
        ("slot", Some(of)) => TopicKind::Slot {
            of,
            waiting: word(row, column + 3, [Waiting::Delayed, Waiting::Expiring], rows::waiting_word)?,
            from: Timestamp(number(row, column + 4)?),
            until: Timestamp(number(row, column + 5)?),
        },
        _ => return Err(format!("column {column}: a {kind} is none, or a part of nothing")),
    })
}

fn text(row: &Row<'_>, column: usize) -> Result<String, String> {
    row.get(column).map_err(|error| error.to_string())
}

fn name(row: &Row<'_>, column: usize) -> Result<Name, String> {
    Name::try_from(text(row, column)?).map_err(|error| error.to_string())
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, String> {
    serde_json::from_str(&text(row, column)?).map_err(|error| format!("column {column}: {error}"))
}
