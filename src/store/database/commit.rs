//! One commit: records become rows in one transaction.
//!
//! Messages and what is created or deleted is written as the records come. Progress - ends of topics, last
//! sequences of producers, floors and settled ranges of groups - is folded in memory first and written once at the
//! end, so that a commit of a thousand acks changes as few rows as one of a single ack. Does not begin or end the
//! transaction, and knows nothing of syncs and checkpoints.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, Params};

use super::catalog::{Catalog, Place, reason_text};
use super::message::{InsertError, Inserts, Target, first_row, split};
use super::schema::STRETCH_BITS;
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
    /// Settings that have no text form.
    Settings(serde_json::Error),
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

impl From<serde_json::Error> for CommitError {
    fn from(error: serde_json::Error) -> Self {
        Self::Settings(error)
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
    /// Whether something other than a topic's row has to carry the store time.
    time: bool,
    next: bool,
}

/// Writes the records and folds them into the catalog.
///
/// # Errors
/// See [`CommitError`].
pub(super) fn write(
    connection: &Connection,
    catalog: &mut Catalog,
    inserts: &Inserts,
    records: &[Record],
) -> Result<(), CommitError> {
    let mut commit = Commit { connection, catalog, inserts, touched: Touched::default() };
    for record in records {
        commit.record(record)?;
    }
    commit.finish()
}

struct Commit<'a> {
    connection: &'a Connection,
    catalog: &'a mut Catalog,
    inserts: &'a Inserts,
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
                let sql = "DELETE FROM removed_range WHERE topic = ?1 AND end_offset <= ?2";
                self.run(sql, (topic.0, start.0 as i64))?;
                let sql = "UPDATE removed_range SET start_offset = ?2 WHERE topic = ?1 AND start_offset < ?2";
                self.run(sql, (topic.0, start.0 as i64))?;
                self.touched.topics.insert(*topic);
                self.catalog.trimmed.insert(*topic);
            }
            Record::Removed { topic, ranges } => {
                let sql = "INSERT INTO removed_range (topic, start_offset, end_offset) VALUES (?1, ?2, ?3)";
                for range in ranges {
                    self.run(sql, (topic.0, range.start.0 as i64, range.end.0 as i64))?;
                    self.catalog.removed.push((*topic, *range));
                }
            }
            Record::Returned { group, range, retry } => {
                let sql = "INSERT OR REPLACE INTO retry (group_id, message_offset, attempts, due_at, reason) \
                           VALUES (?1, ?2, ?3, ?4, ?5)";
                let (due_at, reason) = (retry.due_at.0 as i64, reason_text(retry.reason));
                for offset in range.start.0..range.end.0 {
                    self.run(sql, (group.0, offset as i64, retry.attempts, due_at, reason))?;
                }
            }
            Record::TopicCreated { topic, name, settings } => {
                let sql = "INSERT INTO topic (id, name, settings, start_offset, cleared_offset, end_offset, \
                           stored_at) VALUES (?1, ?2, ?3, 0, 0, 0, 0)";
                self.run(sql, (topic.0, name.as_str(), serde_json::to_string(settings)?))?;
                self.catalog.places.insert(*topic, Place::default());
                self.touched.next = true;
            }
            Record::TopicDeleted { topic } => {
                self.run("DELETE FROM removed_range WHERE topic = ?1", (topic.0,))?;
                self.run("DELETE FROM topic WHERE id = ?1", (topic.0,))?;
                let place = self.catalog.places.remove(topic).unwrap_or_default();
                self.catalog.trimmed.remove(topic);
                self.catalog.orphans.extend(place.stretches.iter().map(|&(_, id)| id));
                self.touched.time = true;
            }
            Record::GroupCreated { group, topic, name, settings, floor } => {
                let sql = "INSERT INTO consumer_group (id, topic, name, settings, floor_offset, handed_out) \
                           VALUES (?1, ?2, ?3, ?4, ?5, ?5)";
                let settings = serde_json::to_string(settings)?;
                self.run(sql, (group.0, topic.0, name.as_str(), settings, floor.0 as i64))?;
                // What is removed from the topic is settled from the start, and may have raised the floor.
                let settled = self.catalog.snapshot.groups.get(group).map(|group| &group.settled);
                let starts =
                    settled.into_iter().flat_map(RangeSet::iter).map(|range| range.start.0).collect();
                self.touched.groups.insert(*group, starts);
                self.touched.next = true;
            }
            Record::GroupChanged { group, settings } => {
                let sql = "UPDATE consumer_group SET settings = ?2 WHERE id = ?1";
                self.run(sql, (group.0, serde_json::to_string(settings)?))?;
            }
            Record::GroupDeleted { group } => {
                self.run("DELETE FROM settled_range WHERE group_id = ?1", (group.0,))?;
                self.run("DELETE FROM retry WHERE group_id = ?1", (group.0,))?;
                self.run("DELETE FROM consumer_group WHERE id = ?1", (group.0,))?;
            }
            Record::ProducerOpened { producer, name, at } => {
                let sql = "INSERT INTO producer (id, name, last_sequence, seen_at) VALUES (?1, ?2, 0, ?3)";
                self.run(sql, (producer.0 as i64, name.as_str(), at.0 as i64))?;
                self.touched.next = true;
                self.touched.time = true;
            }
            Record::ProducerExpired { producer } => {
                self.run("DELETE FROM producer WHERE id = ?1", (producer.0 as i64,))?;
            }
        }
        Ok(())
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
                self.inserts.insert(self.connection, published, (from, to), target)?;
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
        let sql = "INSERT INTO stretch (id, topic, number) VALUES (?1, ?2, ?3)";
        self.run(sql, (id, topic.0, number as i64))?;
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
        for id in touched.topics {
            let Some(topic) = self.catalog.snapshot.topics.get(&id) else { continue };
            let sql = "UPDATE topic SET start_offset = ?2, end_offset = ?3, stored_at = ?4 WHERE id = ?1";
            let time = self.catalog.snapshot.time.0 as i64;
            self.run(sql, (id.0, topic.start.0 as i64, topic.end.0 as i64, time))?;
        }
        for id in touched.producers {
            let Some(producer) = self.catalog.snapshot.producers.get(&id) else { continue };
            let sql = "UPDATE producer SET last_sequence = ?2, seen_at = ?3 WHERE id = ?1";
            self.run(sql, (id.0 as i64, producer.last.0 as i64, producer.seen_at.0 as i64))?;
        }
        for (id, starts) in touched.groups {
            let Some(group) = self.catalog.snapshot.groups.get(&id) else { continue };
            let sql = "UPDATE consumer_group SET floor_offset = ?2, handed_out = ?3 WHERE id = ?1";
            self.run(sql, (id.0, group.floor.0 as i64, group.handed_out.0 as i64))?;
            self.write_settled(id, group, &starts)?;
        }
        let snapshot = &self.catalog.snapshot;
        if touched.next {
            let sql = "UPDATE meta SET value = CASE name WHEN 'next_topic' THEN ?1 WHEN 'next_group' THEN ?2 \
                       ELSE ?3 END WHERE name IN ('next_topic', 'next_group', 'next_producer')";
            let next = snapshot.next;
            self.run(sql, (next.topic.0, next.group.0, next.producer.0 as i64))?;
        }
        if touched.time {
            self.run("UPDATE meta SET value = ?1 WHERE name = 'time'", (snapshot.time.0 as i64,))?;
        }
        Ok(())
    }

    fn write_settled(&self, id: GroupId, group: &GroupState, starts: &BTreeSet<u64>) -> rusqlite::Result<()> {
        for &start in starts {
            match group.settled.range_at(Offset(start)) {
                Some(range) if range.start.0 == start => {
                    let sql = "INSERT OR REPLACE INTO settled_range (group_id, start_offset, end_offset) \
                               VALUES (?1, ?2, ?3)";
                    self.run(sql, (id.0, start as i64, range.end.0 as i64))?;
                }
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
