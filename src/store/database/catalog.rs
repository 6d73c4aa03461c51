//! What the writer knows of the database without asking it: the fold of all committed records, and where each
//! topic's messages lie.
//!
//! The [rows](super::rows) of catalog and progress are written from this state, so what is on disk is by construction
//! what [`Snapshot::apply`] makes of the records. Loading reads every table but the messages: its time depends on what
//! exists and is in flight, not on the backlog.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{Connection, Row};
use serde::de::DeserializeOwned;

use super::super::StoreError;
use super::bodies::Bodies;
use super::connection::failed;
use super::rows::{self, ReadError, Tolerance};
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
    /// Store time when the topic last got a message.
    pub(super) stored_at: Timestamp,
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
        let Self { snapshot, .. } = &mut catalog;
        let Snapshot { topics, groups, producers, next, .. } = snapshot;
        groups.retain(|id, group| {
            let kept = topics.contains_key(&group.topic);
            if !kept {
                noted.push(format!("group {id} ({}) is lost with its topic {}", group.name, group.topic));
            }
            kept
        });
        // Where the numbers of the whole store are lost, an id that was given and is gone may be given again.
        next.topic = next.topic.max(topics.keys().next_back().map_or(TopicId(0), |id| id.next()));
        next.group = next.group.max(groups.keys().next_back().map_or(GroupId(0), |id| id.next()));
        next.producer = next.producer.max(producers.keys().next_back().map_or(ProducerId(0), |id| id.next()));
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
            snapshot.time = snapshot.time.max(Timestamp(number(row, 7)?));
            let counts = [snapshot.topics.len(), snapshot.groups.len(), snapshot.producers.len()];
            for ((column, what), count) in
                [(4, "topics"), (5, "groups"), (6, "producers")].into_iter().zip(counts)
            {
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
        rows::TOPIC.each(connection, tolerance, |row| {
            let id = TopicId(small(row, 0)?);
            let (start, end) = (Offset(number(row, 3)?), Offset(number(row, 5)?));
            let (cleared, stored_at) = (Offset(number(row, 4)?), Timestamp(number(row, 6)?));
            if cleared < start {
                self.trimmed.insert(id);
            }
            let (name, settings) = (name(row, 1)?, json(row, 2)?);
            let state = TopicState { start, end, ..TopicState::new(name, settings) };
            self.snapshot.topics.insert(id, state);
            self.places.insert(id, Place { cleared, stored_at, stretches: Vec::new() });
            self.snapshot.time = self.snapshot.time.max(stored_at);
            Ok(())
        })?;
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
                settings: json(row, 3)?,
                floor: Offset(number(row, 4)?),
                settled: RangeSet::new(),
                retries: BTreeMap::new(),
                handed_out: Offset(number(row, 5)?),
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
            let reason = reason_of(&text(row, 4)?).ok_or("unknown reason")?;
            let (attempts, due_at) = (small(row, 2)?, Timestamp(number(row, 3)?));
            group.retries.insert(Offset(number(row, 1)?), Retry { attempts, due_at, reason });
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

fn text(row: &Row<'_>, column: usize) -> Result<String, String> {
    row.get(column).map_err(|error| error.to_string())
}

fn name(row: &Row<'_>, column: usize) -> Result<Name, String> {
    Name::new(&text(row, column)?).map_err(|error| error.to_string())
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, String> {
    serde_json::from_str(&text(row, column)?).map_err(|error| format!("column {column}: {error}"))
}
