//! What the writer knows of the database without asking it: the fold of all committed records, and where each
//! topic's messages lie.
//!
//! The rows of catalog and progress are written from this state, so what is on disk is by construction what
//! [`Snapshot::apply`] makes of the records. Loading reads every table but the messages: its time depends on what
//! exists and is in flight, not on the backlog.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{Connection, Row};
use serde::de::DeserializeOwned;

use super::super::StoreError;
use super::connection::failed;
use crate::model::id::{GroupId, Offset, OffsetRange, ProducerId, Sequence, TopicId};
use crate::model::name::Name;
use crate::model::ranges::RangeSet;
use crate::model::record::{Retry, ReturnReason};
use crate::model::snapshot::{GroupState, ProducerState, Snapshot, TopicState};
use crate::model::time::Timestamp;

/// Where the messages of a living topic lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Rows of offsets below are deleted.
    pub(super) cleared: Offset,
    /// Number and id of each stretch, lowest first; the last one is appended to.
    pub(super) stretches: Vec<(u64, i64)>,
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
}

impl Catalog {
    /// Reads the state from the database.
    ///
    /// # Errors
    /// The database's own, and [`StoreError::Damaged`] where a row makes no sense.
    pub(super) fn load(connection: &Connection, path: &Path) -> Result<Self, StoreError> {
        let mut catalog = Self { next_stretch: 1, ..Self::default() };
        let read = catalog.read(connection);
        read.map_err(|error| match error {
            rusqlite::Error::FromSqlConversionFailure(column, _, cause) => StoreError::Damaged {
                path: path.to_owned(),
                position: 0,
                what: format!("a row of the catalog, column {column}: {cause}"),
            },
            error => failed("read the catalog")(error),
        })?;
        Ok(catalog)
    }

    fn read(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.read_topics(connection)?;
        self.read_groups(connection)?;
        each(connection, "SELECT id, name, last_sequence, seen_at FROM producer", |row| {
            let (name, last) = (name(row, 1)?, Sequence(number(row, 2)?));
            let state = ProducerState { name, last, seen_at: Timestamp(number(row, 3)?) };
            self.snapshot.producers.insert(ProducerId(number(row, 0)?), state);
            Ok(())
        })?;
        let snapshot = &mut self.snapshot;
        each(connection, "SELECT name, value FROM meta", |row| {
            match row.get_ref(0)?.as_str()? {
                "next_topic" => snapshot.next.topic = TopicId(row.get(1)?),
                "next_group" => snapshot.next.group = GroupId(row.get(1)?),
                "next_producer" => snapshot.next.producer = ProducerId(number(row, 1)?),
                "time" => snapshot.time = snapshot.time.max(Timestamp(number(row, 1)?)),
                other => return Err(broken(0, format!("unknown name {other:?}"))),
            }
            Ok(())
        })
    }

    fn read_topics(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "SELECT id, name, settings, start_offset, end_offset, cleared_offset, stored_at FROM topic";
        each(connection, sql, |row| {
            let id = TopicId(row.get(0)?);
            let (start, end) = (Offset(number(row, 3)?), Offset(number(row, 4)?));
            let cleared = Offset(number(row, 5)?);
            if cleared < start {
                self.trimmed.insert(id);
            }
            let (name, settings) = (name(row, 1)?, json(row, 2)?);
            let state = TopicState { start, end, ..TopicState::new(name, settings) };
            self.snapshot.topics.insert(id, state);
            self.places.insert(id, Place { cleared, stretches: Vec::new() });
            self.snapshot.time = self.snapshot.time.max(Timestamp(number(row, 6)?));
            Ok(())
        })?;
        let topics = &mut self.snapshot.topics;
        each(connection, "SELECT topic, start_offset, end_offset FROM removed_range", |row| {
            let id = TopicId(row.get(0)?);
            let topic = topics.get_mut(&id).ok_or_else(|| broken(0, format!("topic {id} does not exist")))?;
            let range = OffsetRange::new(number(row, 1)?, number(row, 2)?);
            let overlap = topic.removed.range_from(range.start).is_some_and(|next| next.start < range.end);
            if range.start < topic.start || range.end > topic.end || range.is_empty() || overlap {
                return Err(broken(1, format!("removed range {range} of topic {id} does not fit")));
            }
            topic.removed.insert(range);
            // Whether its rows are deleted already is not known.
            self.removed.push((id, range));
            Ok(())
        })?;
        each(connection, "SELECT id, topic, number FROM stretch ORDER BY topic, number", |row| {
            let id: i64 = row.get(0)?;
            self.next_stretch = self.next_stretch.max(id + 1);
            match self.places.get_mut(&TopicId(row.get(1)?)) {
                Some(place) => place.stretches.push((number(row, 2)?, id)),
                None => self.orphans.push(id),
            }
            Ok(())
        })
    }

    fn read_groups(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let groups = &mut self.snapshot.groups;
        let sql = "SELECT id, topic, name, settings, floor_offset, handed_out FROM consumer_group";
        each(connection, sql, |row| {
            let state = GroupState {
                topic: TopicId(row.get(1)?),
                name: name(row, 2)?,
                settings: json(row, 3)?,
                floor: Offset(number(row, 4)?),
                settled: RangeSet::new(),
                retries: BTreeMap::new(),
                handed_out: Offset(number(row, 5)?),
            };
            groups.insert(GroupId(row.get(0)?), state);
            Ok(())
        })?;
        let stray = |id: GroupId| broken(0, format!("group {id} does not exist"));
        each(connection, "SELECT group_id, start_offset, end_offset FROM settled_range", |row| {
            let id = GroupId(row.get(0)?);
            let group = groups.get_mut(&id).ok_or_else(|| stray(id))?;
            let range = OffsetRange::new(number(row, 1)?, number(row, 2)?);
            if range.start <= group.floor || range.is_empty() || group.settled.insert(range) != range {
                return Err(broken(1, format!("settled range {range} of group {id} does not stand alone")));
            }
            Ok(())
        })?;
        let sql = "SELECT group_id, message_offset, attempts, due_at, reason FROM retry";
        each(connection, sql, |row| {
            let id = GroupId(row.get(0)?);
            let group = groups.get_mut(&id).ok_or_else(|| stray(id))?;
            let reason = reason_of(row.get_ref(4)?.as_str()?).ok_or_else(|| broken(4, "unknown reason"))?;
            let due_at = Timestamp(number(row, 3)?);
            group.retries.insert(Offset(number(row, 1)?), Retry { attempts: row.get(2)?, due_at, reason });
            Ok(())
        })
    }
}

/// The text that stands for `reason` in the database.
pub(super) const fn reason_text(reason: ReturnReason) -> &'static str {
    match reason {
        ReturnReason::Nacked => "nacked",
        ReturnReason::LeaseExpired => "lease-expired",
        ReturnReason::ConsumerLost => "consumer-lost",
        ReturnReason::Rejected => "rejected",
    }
}

fn reason_of(text: &str) -> Option<ReturnReason> {
    [ReturnReason::Nacked, ReturnReason::LeaseExpired, ReturnReason::ConsumerLost, ReturnReason::Rejected]
        .into_iter()
        .find(|&reason| reason_text(reason) == text)
}

fn each(
    connection: &Connection,
    sql: &str,
    mut take: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        take(row)?;
    }
    Ok(())
}

/// An unsigned number: the database keeps the same 64 bits as a signed one.
fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|value| value as u64)
}

fn name(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    Name::new(row.get_ref(column)?.as_str()?).map_err(|error| broken(column, error))
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|error| broken(column, error))
}

fn broken(column: usize, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, cause.into())
}
