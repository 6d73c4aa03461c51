//! One commit: records become rows in one transaction.
//!
//! Messages and what is created or deleted is written as the records come. Progress - ends of topics, last
//! sequences of producers, floors and settled ranges of groups - is folded in memory first and written once at the
//! end, so that a commit of a thousand acks changes as few rows as one of a single ack. Does not begin or end the
//! transaction, and knows nothing of syncs and checkpoints.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, Params};

use super::catalog::{Catalog, Place};
use super::message::{InsertError, Inserts, Target, first_row, split};
use super::rows;
use super::schema::STRETCH_BITS;
use super::staging::Staging;
use crate::model::id::{GroupId, Offset, OffsetRange, ProducerId, TopicId};
use crate::model::message::MessageError;
use crate::model::ranges::RangeSet;
use crate::model::record::{Published, Record};
use crate::model::snapshot::{GroupState, SnapshotError};

/// Why the records were not written. The transaction is still open, and the catalog is not to be used.
#[derive(Debug)]
pub(super) enum CommitError {
    /// The database's answer.
    Database(rusqlite::Error),
    /// A record does not fit the state.
    Record(SnapshotError),
    /// A block is not one of valid messages.
    Message(MessageError),
}

impl From<rusqlite::Error> for CommitError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl From<SnapshotError> for CommitError {
    fn from(error: SnapshotError) -> Self {
        Self::Record(error)
    }
}

impl From<InsertError> for CommitError {
    fn from(error: InsertError) -> Self {
        match error {
            InsertError::Database(error) => Self::Database(error),
            InsertError::Message(error) => Self::Message(error),
        }
    }
}

/// What is written at the end of the commit.
#[derive(Debug, Default)]
struct Touched {
    topics: BTreeSet<TopicId>,
    producers: BTreeSet<ProducerId>,
    /// For each group: where a settled range may have come, gone or changed.
    groups: BTreeMap<GroupId, BTreeSet<u64>>,
    /// Whether a number of the whole store has changed: an id that is next, a count, or the store time without a
    /// message in a topic that is still there.
    meta: bool,
}

/// Writes the records and folds them into the catalog.
///
/// # Errors
/// See [`CommitError`].
pub(super) fn write(
    connection: &Connection,
    catalog: &mut Catalog,
    inserts: &Inserts,
    staging: &Staging,
    records: &[Record],
) -> Result<(), CommitError> {
    let mut commit = Commit { connection, catalog, inserts, staging, touched: Touched::default() };
    for record in records {
        commit.record(record)?;
    }
    commit.finish()
}

struct Commit<'a> {
    connection: &'a Connection,
    catalog: &'a mut Catalog,
    inserts: &'a Inserts,
    staging: &'a Staging,
    touched: Touched,
}

impl Commit<'_> {
    fn record(&mut self, record: &Record) -> Result<(), CommitError> {
        if let Record::Settled { group, ranges } = record {
            return self.settle(*group, ranges, record);
        }
        self.catalog.snapshot.apply(record)?;
        match record {
            Record::Published(published) => self.publish(published)?,
            Record::Settled { .. } => {}
            Record::HandedOut { group, .. } => {
                self.touched.groups.entry(*group).or_default();
            }
            Record::Trimmed { topic, start } => {
                let cut = self.removed_end(*topic, *start)?;
                let sql = "DELETE FROM removed_range WHERE topic = ?1 AND start_offset < ?2";
                self.run(sql, (topic.0, start.0 as i64))?;
                if let Some(end) = cut {
                    rows::put_removed(self.connection, *topic, OffsetRange { start: *start, end })?;
                }
                self.touched.topics.insert(*topic);
                self.catalog.trimmed.insert(*topic);
            }
            Record::Removed { topic, ranges } => {
                for range in ranges {
                    rows::put_removed(self.connection, *topic, *range)?;
                    self.catalog.removed.push((*topic, *range));
                }
            }
            Record::Returned { group, range, retry } => {
                for offset in range.start.0..range.end.0 {
                    rows::put_retry(self.connection, *group, Offset(offset), retry)?;
                }
            }
            Record::TopicCreated { topic, .. } => {
                self.touched.topics.insert(*topic);
                self.catalog.places.insert(*topic, Place::default());
                self.touched.meta = true;
            }
            Record::TopicDeleted { topic } => {
                self.run("DELETE FROM removed_range WHERE topic = ?1", (topic.0,))?;
                self.run("DELETE FROM topic WHERE id = ?1", (topic.0,))?;
                let place = self.catalog.places.remove(topic).unwrap_or_default();
                self.catalog.trimmed.remove(topic);
                self.catalog.orphans.extend(place.stretches.iter().map(|&(_, id)| id));
                self.touched.meta = true;
            }
            Record::GroupCreated { group, .. } => {
                // What is removed from the topic is settled from the start, and may have raised the floor.
                let settled = self.catalog.snapshot.groups.get(group).map(|group| &group.settled);
                let starts =
                    settled.into_iter().flat_map(RangeSet::iter).map(|range| range.start.0).collect();
                self.touched.groups.insert(*group, starts);
                self.touched.meta = true;
            }
            Record::GroupChanged { group, .. } => {
                self.touched.groups.entry(*group).or_default();
            }
            Record::GroupDeleted { group } => {
                self.run("DELETE FROM settled_range WHERE group_id = ?1", (group.0,))?;
                self.run("DELETE FROM retry WHERE group_id = ?1", (group.0,))?;
                self.run("DELETE FROM consumer_group WHERE id = ?1", (group.0,))?;
                self.touched.meta = true;
            }
            Record::ProducerOpened { producer, .. } => {
                self.touched.producers.insert(*producer);
                self.touched.meta = true;
            }
            Record::ProducerExpired { producer } => {
                self.run("DELETE FROM producer WHERE id = ?1", (producer.0 as i64,))?;
                self.touched.meta = true;
            }
        }
        Ok(())
    }

    /// Where the removed range ends that begins before `offset` and ends behind it.
    fn removed_end(&self, topic: TopicId, offset: Offset) -> rusqlite::Result<Option<Offset>> {
        let sql =
            "SELECT end_offset FROM removed_range WHERE topic = ?1 AND start_offset < ?2 AND end_offset > ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let end = statement.query_row((topic.0, offset.0 as i64), |row| row.get::<_, i64>(0)).optional()?;
        Ok(end.map(|end| Offset(end as u64)))
    }

    fn publish(&mut self, published: &Published) -> Result<(), CommitError> {
        let count = published.block.count();
        for &(topic, first) in &published.targets {
            self.touched.topics.insert(topic);
            self.catalog.places.entry(topic).or_default().stored_at = self.catalog.snapshot.time;
            let mut from = 0;
            while from < count {
                let offset = first.0 + from as u64;
                let (number, low) = split(offset);
                let row = first_row(self.stretch(topic, number)?) + low;
                let room = (1 << STRETCH_BITS) - low as u64;
                let to = count.min(from.saturating_add(usize::try_from(room).unwrap_or(usize::MAX)));
                let target = Target { topic, first: Offset(offset), row };
                let bodies = &mut self.catalog.bodies;
                self.inserts.insert(self.connection, published, (from, to), target, bodies, self.staging)?;
                from = to;
            }
        }
        if let Some(origin) = published.origin {
            self.touched.producers.insert(origin.producer);
        }
        Ok(())
    }

    /// Id of a topic's stretch; makes it where it is not there yet.
    fn stretch(&mut self, topic: TopicId, number: u64) -> Result<i64, CommitError> {
        let place = self.catalog.places.entry(topic).or_default();
        if let Some(&(last, id)) = place.stretches.last()
            && last == number
        {
            return Ok(id);
        }
        let id = self.catalog.next_stretch;
        self.catalog.next_stretch += 1;
        place.stretches.push((number, id));
        rows::put_stretch(self.connection, id, topic, number)?;
        Ok(id)
    }

    fn settle(&mut self, id: GroupId, ranges: &[OffsetRange], record: &Record) -> Result<(), CommitError> {
        let starts = self.touched.groups.entry(id).or_default();
        if let Some(group) = self.catalog.snapshot.groups.get(&id) {
            for range in ranges {
                touched_starts(group, *range, starts);
                if group.retries.range(range.start..range.end.max(range.start)).next().is_some() {
                    let sql = "DELETE FROM retry \
                               WHERE group_id = ?1 AND message_offset >= ?2 AND message_offset < ?3";
                    let parameters = (id.0, range.start.0 as i64, range.end.0 as i64);
                    self.connection.prepare_cached(sql)?.execute(parameters)?;
                }
            }
        }
        self.catalog.snapshot.apply(record)?;
        // Ranges that one settled range of this record made and a later one took in need no row: what is there at
        // the end of the commit is looked up then. But one more place can hold a merged range.
        if let Some(group) = self.catalog.snapshot.groups.get(&id) {
            starts.extend(
                ranges.iter().filter_map(|range| group.settled.range_at(range.start)).map(|r| r.start.0),
            );
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), CommitError> {
        let touched = std::mem::take(&mut self.touched);
        let Catalog { snapshot, places, .. } = &*self.catalog;
        for id in touched.topics {
            if let (Some(topic), Some(place)) = (snapshot.topics.get(&id), places.get(&id)) {
                rows::put_topic(self.connection, id, topic, place)?;
            }
        }
        for id in touched.producers {
            if let Some(producer) = snapshot.producers.get(&id) {
                rows::put_producer(self.connection, id, producer)?;
            }
        }
        for (id, starts) in touched.groups {
            if let Some(group) = snapshot.groups.get(&id) {
                rows::put_group(self.connection, id, group)?;
                self.write_settled(id, group, &starts)?;
            }
        }
        if touched.meta {
            rows::put_meta(self.connection, self.catalog)?;
        }
        Ok(())
    }

    fn write_settled(&self, id: GroupId, group: &GroupState, starts: &BTreeSet<u64>) -> rusqlite::Result<()> {
        for &start in starts {
            match group.settled.range_at(Offset(start)) {
                Some(range) if range.start.0 == start => rows::put_settled(self.connection, id, range)?,
                _ => {
                    let sql = "DELETE FROM settled_range WHERE group_id = ?1 AND start_offset = ?2";
                    self.run(sql, (id.0, start as i64))?;
                }
            }
        }
        Ok(())
    }

    fn run(&self, sql: &str, parameters: impl Params) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute(parameters).map(|_| ())
    }
}

/// Adds where the ranges begin that `range` will take in, and where it begins itself.
fn touched_starts(group: &GroupState, range: OffsetRange, starts: &mut BTreeSet<u64>) {
    let mut at = Offset(range.start.0.saturating_sub(1));
    while let Some(held) = group.settled.range_from(at) {
        if held.start > range.end {
            break;
        }
        starts.insert(held.start.0);
        at = held.end;
    }
}
