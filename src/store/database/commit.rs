//! One commit: records become rows in one transaction.
//!
//! Messages and what is created or deleted is written as the records come. Progress - ends of topics, last
//! sequences of producers, floors and settled ranges of groups - is folded in memory first and written once at the
//! end, so that a commit of a thousand acks changes as few rows as one of a single ack. Does not begin or end the
//! transaction, and knows nothing of syncs and checkpoints.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, Params};

use super::catalog::{Catalog, MarksWritten, Place};
use super::message::{InsertError, Inserts, Target, first_row, split};
use super::rows;
use super::schema::STRETCH_BITS;
use super::staging::Staging;
use crate::model::id::{GroupId, Offset, OffsetRange, ProducerId, TopicId};
use crate::model::message::MessageError;
use crate::model::ranges::RangeSet;
use crate::model::record::{Published, Record, Source};
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
    groups: BTreeMap<GroupId, TouchedGroup>,
    /// Whether a number of the whole store has changed: an id that is next, a count, or the store time without a
    /// message in a topic that is still there.
    meta: bool,
}

/// Where ranges of a group may have come, gone or changed, by their starts.
#[derive(Debug, Default)]
struct TouchedGroup {
    settled: BTreeSet<u64>,
    retries: BTreeSet<u64>,
}

impl TouchedGroup {
    /// Adds what settling `range` may change.
    fn settle(&mut self, group: &GroupState, range: OffsetRange) {
        let mut at = Offset(range.start.0.saturating_sub(1));
        while let Some(held) = group.settled.range_from(at)
            && held.start <= range.end
        {
            self.settled.insert(held.start.0);
            at = held.end;
        }
        self.retries(group, range);
    }

    /// Adds what giving `range` another retry, or none, may change: the runs that it cuts or may join, and those that
    /// begin with it or behind it.
    fn retries(&mut self, group: &GroupState, range: OffsetRange) {
        let mut at = Offset(range.start.0.saturating_sub(1));
        while let Some((run, _)) = group.retries.run_from(at)
            && run.start <= range.end
        {
            self.retries.extend([run.start.0, range.end.0]);
            at = run.end;
        }
    }
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
        if let Record::Returned { group: id, range, .. } = record
            && let Some(group) = self.catalog.snapshot.groups.get(id)
        {
            let touched = self.touched.groups.entry(*id).or_default();
            touched.retries(group, *range);
            touched.retries.insert(range.start.0);
        }
        let time = self.catalog.snapshot.time;
        self.catalog.snapshot.apply(record)?;
        match record {
            Record::Published(published) => self.publish(published)?,
            Record::Settled { .. } | Record::Returned { .. } => {}
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
            Record::TopicCreated { topic, .. } => {
                self.touched.topics.insert(*topic);
                self.catalog.places.insert(*topic, Place::default());
                self.touched.meta = true;
            }
            Record::TopicChanged { topic, .. } | Record::SlotMoved { slot: topic, .. } => {
                self.touched.topics.insert(*topic);
            }
            Record::TopicDeleted { topic } => {
                self.run("DELETE FROM topic_marks WHERE topic = ?1", (topic.0,))?;
                self.run("DELETE FROM removed_range WHERE topic = ?1", (topic.0,))?;
                self.run("DELETE FROM topic WHERE id = ?1", (topic.0,))?;
                let place = self.catalog.places.remove(topic).unwrap_or_default();
                self.catalog.trimmed.remove(topic);
                self.catalog.orphans.extend(place.stretches.iter().map(|&(_, id)| id));
                self.touched.meta = true;
            }
            Record::GroupCreated { group, .. } => {
                self.begin_group(*group);
                self.touched.meta = true;
            }
            Record::GroupSought { group, .. } => {
                self.run("DELETE FROM settled_range WHERE group_id = ?1", (group.0,))?;
                self.run("DELETE FROM retry WHERE group_id = ?1", (group.0,))?;
                self.begin_group(*group);
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
            Record::ProducerAdvanced { producer, .. } => {
                self.touched.producers.insert(*producer);
                self.touched.meta |= self.catalog.snapshot.time > time;
            }
            Record::ProducerExpired { producer } => {
                self.run("DELETE FROM producer WHERE id = ?1", (producer.0 as i64,))?;
                self.touched.meta = true;
            }
            Record::RouteCreated { route, rule } => {
                rows::put_route(self.connection, *route, rule)?;
                self.touched.meta = true;
            }
            Record::RouteDeleted { route } => {
                self.run("DELETE FROM route WHERE id = ?1", (route.0,))?;
                self.touched.meta = true;
            }
        }
        Ok(())
    }

    /// Notes all that a group begins with: what is removed from its topic is settled, and may have raised its floor.
    fn begin_group(&mut self, id: GroupId) {
        let settled = self.catalog.snapshot.groups.get(&id).map(|group| &group.settled);
        let starts = settled.into_iter().flat_map(RangeSet::iter).map(|range| range.start.0);
        self.touched.groups.entry(id).or_default().settled.extend(starts);
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
        if let Source::Producer(origin) = &published.source {
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
        let touched = self.touched.groups.entry(id).or_default();
        if let Some(group) = self.catalog.snapshot.groups.get(&id) {
            ranges.iter().for_each(|range| touched.settle(group, *range));
        }
        self.catalog.snapshot.apply(record)?;
        // Ranges that one settled range of this record made and a later one took in need no row: what is there at
        // the end of the commit is looked up then. But one more place can hold a merged range.
        if let Some(group) = self.catalog.snapshot.groups.get(&id) {
            touched.settled.extend(
                ranges.iter().filter_map(|range| group.settled.range_at(range.start)).map(|r| r.start.0),
            );
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), CommitError> {
        let touched = std::mem::take(&mut self.touched);
        let Catalog { snapshot, places, .. } = &mut *self.catalog;
        for id in touched.topics {
            if let (Some(topic), Some(place)) = (snapshot.topics.get(&id), places.get_mut(&id)) {
                rows::put_topic(self.connection, id, topic, place)?;
                let marks = MarksWritten::of(&topic.marks);
                if place.marks != marks {
                    rows::put_marks(self.connection, id, &topic.marks)?;
                    place.marks = marks;
                }
            }
        }
        for id in touched.producers {
            if let Some(producer) = snapshot.producers.get(&id) {
                rows::put_producer(self.connection, id, producer)?;
            }
        }
        let Catalog { snapshot, .. } = &*self.catalog;
        for (id, touched) in touched.groups {
            if let Some(group) = snapshot.groups.get(&id) {
                rows::put_group(self.connection, id, group)?;
                self.write_settled(id, group, &touched.settled)?;
                self.write_retries(id, group, &touched.retries)?;
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

    fn write_retries(&self, id: GroupId, group: &GroupState, starts: &BTreeSet<u64>) -> rusqlite::Result<()> {
        for &start in starts {
            match group.retries.run_at(Offset(start)) {
                Some((run, retry)) if run.start.0 == start => {
                    rows::put_retry(self.connection, id, run, retry)?;
                }
                _ => {
                    let sql = "DELETE FROM retry WHERE group_id = ?1 AND start_offset = ?2";
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
