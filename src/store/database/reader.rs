//! Reads messages on a connection of its own, beside the writer.
//!
//! A read is one statement, and so one short read transaction: it sees one committed state, and it never keeps a
//! checkpoint from finishing for longer than it takes. Rows become encoded messages again, byte for byte, in one
//! piece of memory.

use std::path::{Path, PathBuf};

use bytes::{BufMut, BytesMut};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::super::{Reader, StoreError};
use super::connection::{self, Access, failed};
use super::message::{PLAIN_HEAD, split};
use crate::model::chunk::{Chunk, Origin, Stamp};
use crate::model::id::{Offset, ProducerId, Sequence, TopicId};
use crate::model::message::{
    FLAG_DELIVER_AT, FLAG_EXPIRES_AT, FLAG_HEADERS, FLAG_KEY, FLAG_PRIORITY, MessageBlock,
};
use crate::model::time::Timestamp;

/// Messages from an offset on. Both tables before the messages give one row, so the rows come in order.
pub(super) const MESSAGES: &str = "\
    SELECT message.id, published_at, producer, sequence, body, key, headers, deliver_at, expires_at, priority
    FROM topic
    CROSS JOIN stretch ON stretch.topic = topic.id AND stretch.number = ?3
    CROSS JOIN message ON message.id >= (stretch.id << 32) + ?4 AND message.id < min(
        (stretch.id + 1) << 32,
        (stretch.id << 32) + ?4 + coalesce(
            (SELECT min(start_offset) FROM removed_range WHERE topic = ?1 AND start_offset > ?2) - ?2, 1 << 32
        )
    )
    WHERE topic.id = ?1 AND topic.start_offset <= ?2 AND NOT EXISTS (
        SELECT 1 FROM removed_range WHERE topic = ?1 AND start_offset <= ?2 AND removed_range.end_offset > ?2
    )
    ORDER BY message.id";
/// Whether an offset must be there.
const EXPECTED: &str = "\
    SELECT start_offset <= ?2 AND ?2 < end_offset AND NOT EXISTS (
        SELECT 1 FROM removed_range WHERE topic = ?1 AND start_offset <= ?2 AND ?2 < removed_range.end_offset
    )
    FROM topic WHERE id = ?1";
/// Smallest and largest memory that is set aside before a read.
const CAPACITY: (usize, usize) = (4 * 1024, 4 * 1024 * 1024);

/// A connection that reads.
#[derive(Debug)]
pub(super) struct DatabaseReader {
    connection: Connection,
    path: PathBuf,
    /// Bytes of the last chunk: the next one is probably as large.
    last_bytes: usize,
}

impl DatabaseReader {
    /// Opens a connection for reading.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = connection::open(path, Access::Read)?;
        Ok(Self { connection, path: path.to_owned(), last_bytes: 0 })
    }

    fn scan(
        &mut self,
        topic: TopicId,
        from: Offset,
        bytes_max: usize,
    ) -> rusqlite::Result<Option<(BytesMut, Vec<Stamp>)>> {
        let (number, low) = split(from.0);
        let mut statement = self.connection.prepare_cached(MESSAGES)?;
        let mut rows = statement.query((topic.0, from.0 as i64, number as i64, low))?;
        let capacity = self.last_bytes.max(CAPACITY.0).min(bytes_max).min(CAPACITY.1);
        let mut bytes = BytesMut::with_capacity(capacity);
        let mut stamps: Vec<Stamp> = Vec::new();
        let mut expected = None;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let consecutive = match expected {
                None => id & ((1 << super::schema::STRETCH_BITS) - 1) == low,
                Some(expected) => id == expected,
            };
            if !consecutive || !append(row, &mut bytes, bytes_max)? {
                break;
            }
            expected = Some(id + 1);
            let published_at = Timestamp(row.get::<_, i64>(1)? as u64);
            let origin = match row.get_ref(2)? {
                ValueRef::Null => None,
                producer => Some(Origin {
                    producer: ProducerId(producer.as_i64()? as u64),
                    sequence: Sequence(row.get::<_, i64>(3)? as u64),
                }),
            };
            match stamps.last_mut() {
                Some(last) if continues(last, published_at, origin) => last.count += 1,
                _ => stamps.push(Stamp { count: 1, published_at, origin }),
            }
        }
        Ok((!stamps.is_empty()).then_some((bytes, stamps)))
    }

    fn expects(&self, topic: TopicId, offset: Offset) -> rusqlite::Result<bool> {
        let mut statement = self.connection.prepare_cached(EXPECTED)?;
        let mut rows = statement.query((topic.0, offset.0 as i64))?;
        rows.next()?.map_or(Ok(false), |row| row.get(0))
    }

    fn damaged(&self, topic: TopicId, offset: Offset, what: &str) -> StoreError {
        let what = format!("topic {topic}, message {offset}: {what}");
        StoreError::Damaged { path: self.path.clone(), position: 0, what }
    }
}

impl Reader for DatabaseReader {
    fn read(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, StoreError> {
        let mut found = self.scan(topic, from, bytes_max).map_err(failed("read messages"))?;
        if found.is_none() && self.expects(topic, from).map_err(failed("read a topic"))? {
            // Committed between the two statements, unless it is still not there.
            found = self.scan(topic, from, bytes_max).map_err(failed("read messages"))?;
            if found.is_none() && self.expects(topic, from).map_err(failed("read a topic"))? {
                return Err(self.damaged(topic, from, "its row is missing"));
            }
        }
        let Some((bytes, stamps)) = found else { return Ok(None) };
        self.last_bytes = bytes.len();
        let block = MessageBlock::from_store(bytes.freeze())
            .map_err(|error| self.damaged(topic, from, &error.to_string()))?;
        Ok(Some(Chunk { first: from, block, stamps }))
    }
}

/// Whether a message is the next one of those that `last` stands for.
fn continues(last: &Stamp, published_at: Timestamp, origin: Option<Origin>) -> bool {
    let next = last.origin.map(|origin| Origin {
        producer: origin.producer,
        sequence: Sequence(origin.sequence.0 + u64::from(last.count)),
    });
    last.published_at == published_at && next == origin && last.count < u32::MAX
}

/// Appends the row's message in its encoded form; `false` where it does not fit and is not the first one.
fn append(row: &Row<'_>, bytes: &mut BytesMut, bytes_max: usize) -> rusqlite::Result<bool> {
    let fits = |bytes: &BytesMut, len: usize| bytes.is_empty() || bytes.len() + len <= bytes_max;
    let body = row.get_ref(4)?.as_blob()?;
    let key = row.get_ref(5)?.as_blob_or_null()?;
    let headers = row.get_ref(6)?.as_blob_or_null()?;
    let deliver_at = row.get_ref(7)?.as_i64_or_null()?;
    let expires_at = row.get_ref(8)?.as_i64_or_null()?;
    let priority = row.get_ref(9)?.as_i64_or_null()?;
    let mut len = PLAIN_HEAD + body.len();
    let mut flags = 0;
    let mut field = |flag: u8, field_len: Option<usize>| {
        if let Some(field_len) = field_len {
            flags |= flag;
            len += field_len;
        }
    };
    field(FLAG_KEY, key.map(|key| 2 + key.len()));
    field(FLAG_HEADERS, headers.map(<[u8]>::len));
    field(FLAG_DELIVER_AT, deliver_at.map(|_| 8));
    field(FLAG_EXPIRES_AT, expires_at.map(|_| 8));
    field(FLAG_PRIORITY, priority.map(|_| 1));
    if !fits(bytes, len) {
        return Ok(false);
    }
    bytes.reserve(len);
    bytes.put_u32_le((len - 4) as u32);
    bytes.put_u8(flags);
    if let Some(key) = key {
        bytes.put_u16_le(key.len() as u16);
        bytes.put_slice(key);
    }
    bytes.put_slice(headers.unwrap_or_default());
    for time in [deliver_at, expires_at].into_iter().flatten() {
        bytes.put_i64_le(time);
    }
    if let Some(priority) = priority {
        bytes.put_u8(priority as u8);
    }
    bytes.put_slice(body);
    Ok(true)
}
