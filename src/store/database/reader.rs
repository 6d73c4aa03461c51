//! Reads messages on a connection of its own, beside the writer.
//!
//! A read is one statement, and so one short read transaction: it sees one committed state, and it never keeps a
//! checkpoint from finishing for longer than it takes. Rows become encoded messages again, byte for byte, in one
//! piece of memory.
//!
//! A large body is read from its parts into that memory, while the statement that found its message has not ended: so
//! both are of one state.
//!
//! Each row is checked against its [checksum](super::checksum). A read ends before a row that is damaged, so that
//! what is in front of it can be had, and fails where the damaged row is the first one.

use std::path::{Path, PathBuf};

use bytes::{BufMut, BytesMut};
use rusqlite::types::FromSqlError;
use rusqlite::{Connection, Row, Rows};

use super::super::{Reader, StoreError, Unreadable};
use super::bodies::LargeBody;
use super::checksum::{self, RowHead};
use super::connection::{self, Access, failed, is_damage};
use super::message::{PLAIN_HEAD, split};
use super::rows::ReadError;
use crate::model::chunk::{Chunk, Origin, Stamp};
use crate::model::id::{Offset, ProducerId, Sequence, TopicId};
use crate::model::message::{
    FLAG_DELIVER_AT, FLAG_EXPIRES_AT, FLAG_HEADERS, FLAG_KEY, FLAG_PRIORITY, MessageBlock,
};
use crate::model::time::Timestamp;

/// Messages from an offset on. Both tables before the messages give one row, so the rows come in order.
pub(super) const MESSAGES: &str = "\
    SELECT message.id, published_at, producer, sequence, message.checksum, key, headers, deliver_at, expires_at,
           message.priority, body
    FROM topic
    CROSS JOIN stretch ON stretch.topic = topic.id AND stretch.number = ?3
    CROSS JOIN message ON message.id >= (stretch.id << 32) + ?4 AND message.id < min(
        (stretch.id + 1) << 32,
        (stretch.id << 32) + ?4 + coalesce(
            (SELECT min(start_offset) FROM removed_range WHERE topic = ?1 AND start_offset > ?2) - ?2, 1 << 32
        )
    )
    WHERE topic.id = ?1 AND topic.start_offset <= ?2 AND coalesce(
        (SELECT removed_range.end_offset FROM removed_range WHERE topic = ?1 AND removed_range.start_offset <= ?2
         ORDER BY removed_range.start_offset DESC LIMIT 1),
        0
    ) <= ?2
    ORDER BY message.id";
/// Whether an offset must be there.
const EXPECTED: &str = "\
    SELECT start_offset <= ?2 AND ?2 < end_offset AND coalesce(
        (SELECT removed_range.end_offset FROM removed_range WHERE topic = ?1 AND removed_range.start_offset <= ?2
         ORDER BY removed_range.start_offset DESC LIMIT 1),
        0
    ) <= ?2
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
        &self,
        topic: TopicId,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Option<(BytesMut, Vec<Stamp>)>, StoreError> {
        let (number, low) = split(from.0);
        let database = failed("read messages");
        let mut statement = self.connection.prepare_cached(MESSAGES).map_err(&database)?;
        let parameters = (topic.0, from.0 as i64, number as i64, low);
        let rows = statement.query(parameters).map_err(&database)?;
        let capacity = self.last_bytes.max(CAPACITY.0).min(bytes_max).min(CAPACITY.1);
        gather(&self.connection, rows, (topic, from), bytes_max, capacity, &self.path)
    }

    fn expects(&self, topic: TopicId, offset: Offset) -> rusqlite::Result<bool> {
        let mut statement = self.connection.prepare_cached(EXPECTED)?;
        let mut rows = statement.query((topic.0, offset.0 as i64))?;
        rows.next()?.map_or(Ok(false), |row| row.get(0))
    }

    fn chunk(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, StoreError> {
        let mut found = self.scan(topic, from, bytes_max)?;
        if found.is_none() && self.expects(topic, from).map_err(failed("read a topic"))? {
            // Committed between the two statements, unless it is still not there.
            found = self.scan(topic, from, bytes_max)?;
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

    fn damaged(&self, topic: TopicId, offset: Offset, what: &str) -> StoreError {
        damaged(&self.path, topic, offset, what)
    }
}

/// A message that is not what was stored.
pub(super) fn damaged(path: &Path, topic: TopicId, offset: Offset, what: &str) -> StoreError {
    let what = format!("topic {topic}, message {offset}: {what}");
    StoreError::Damaged { path: path.to_owned(), position: 0, what }
}

/// Puts together what consecutive rows of a connection have, whose columns are those of [`MESSAGES`]: the messages of a
/// topic from an offset on. `None` where the first row is not that of the offset.
///
/// # Errors
/// Where the first message cannot be read or is damaged.
pub(super) fn gather(
    connection: &Connection,
    mut rows: Rows<'_>,
    (topic, from): (TopicId, Offset),
    bytes_max: usize,
    capacity: usize,
    path: &Path,
) -> Result<Option<(BytesMut, Vec<Stamp>)>, StoreError> {
    let database = failed("read messages");
    let (_, low) = split(from.0);
    let mut bytes = BytesMut::with_capacity(capacity);
    let mut stamps: Vec<Stamp> = Vec::new();
    let mut expected = None;
    let mut offset = from;
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(_) if !stamps.is_empty() => break,
            Err(error) if !is_damage(&error) => return Err(database(error)),
            Err(error) => return Err(damaged(path, topic, offset, &error.to_string())),
        };
        let id: i64 = row.get(0).map_err(&database)?;
        let consecutive = match expected {
            None => id & ((1 << super::schema::STRETCH_BITS) - 1) == low,
            Some(expected) => id == expected,
        };
        if !consecutive {
            break;
        }
        let (published_at, origin) = match append(connection, row, (topic, offset), &mut bytes, bytes_max) {
            Ok(Appended::Stamped(published_at, origin)) => (published_at, origin),
            Ok(Appended::DoesNotFit) => break,
            Err(_) if !stamps.is_empty() => break,
            Err(RowError::Database(error)) if !is_damage(&error) => return Err(database(error)),
            Err(error) => return Err(damaged(path, topic, offset, &error.to_string())),
        };
        expected = Some(id + 1);
        offset = offset.next();
        match stamps.last_mut() {
            Some(last) if continues(last, published_at, origin) => last.count += 1,
            _ => stamps.push(Stamp { count: 1, published_at, origin }),
        }
    }
    Ok((!stamps.is_empty()).then_some((bytes, stamps)))
}

impl Reader for DatabaseReader {
    fn read(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, Unreadable> {
        self.chunk(topic, from, bytes_max).map_err(|error| {
            // Asked again, it is read again. What pages are kept all the same does no more harm than before.
            let _ = self.connection.release_memory();
            Unreadable::of_one(from, error)
        })
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

/// What became of a row.
enum Appended {
    /// Its message is behind the others.
    Stamped(Timestamp, Option<Origin>),
    /// It has no room, and is not the first one.
    DoesNotFit,
}

/// Why a row is not the one that was written.
#[derive(Debug, thiserror::Error)]
enum RowError {
    /// A column has a value of another type.
    #[error("a column of its row has another type: {0}")]
    Type(#[from] FromSqlError),
    /// A value is outside what a message can have.
    #[error("the {0} of its row is not one that a message can have")]
    Value(&'static str),
    /// The row has no body, and its large body is not there.
    #[error("{0}")]
    Body(String),
    /// The parts of its large body cannot be read.
    #[error("a part of its body: {0}")]
    Database(rusqlite::Error),
    /// The checksum does not fit.
    #[error(
        "its row, or what says where it stands, was changed: its checksum is {stored:#010x} and would be {found:#010x}"
    )]
    Checksum {
        /// What stands in the row.
        stored: i32,
        /// What the rest of the row has.
        found: i32,
    },
}

/// Where the body of a message is.
enum Body<'a> {
    InRow(&'a [u8]),
    Large(LargeBody),
}

impl Body<'_> {
    fn len(&self) -> usize {
        match self {
            Self::InRow(bytes) => bytes.len(),
            Self::Large(large) => large.bytes(),
        }
    }

    fn append_to(&self, connection: &Connection, out: &mut BytesMut) -> Result<(), RowError> {
        match self {
            Self::InRow(bytes) => out.put_slice(bytes),
            Self::Large(large) => large.append_to(connection, out)?,
        }
        Ok(())
    }
}

impl From<ReadError> for RowError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Database(error) => Self::Database(error),
            ReadError::Damaged(what) => Self::Body(what),
        }
    }
}

/// Appends the message at `offset` of `topic`, which `row` should be, in its encoded form. On an error nothing is
/// appended.
fn append(
    connection: &Connection,
    row: &Row<'_>,
    (topic, offset): (TopicId, Offset),
    bytes: &mut BytesMut,
    bytes_max: usize,
) -> Result<Appended, RowError> {
    let column = |index| row.get_ref(index).map_err(|_| RowError::Value("number of columns"));
    let head = RowHead {
        topic,
        offset,
        published_at: column(1)?.as_i64()?,
        producer: column(2)?.as_i64_or_null()?,
        sequence: column(3)?.as_i64_or_null()?,
    };
    let stored = i32::try_from(column(4)?.as_i64()?).map_err(|_| RowError::Value("checksum"))?;
    let key = column(5)?.as_blob_or_null()?;
    let key_len = u16::try_from(key.map_or(0, <[u8]>::len)).map_err(|_| RowError::Value("key"))?;
    let headers = column(6)?.as_blob_or_null()?;
    let deliver_at = column(7)?.as_i64_or_null()?;
    let expires_at = column(8)?.as_i64_or_null()?;
    let priority = column(9)?.as_i64_or_null()?.map(u8::try_from);
    let priority = priority.transpose().map_err(|_| RowError::Value("priority"))?;
    let body = match column(10)?.as_blob_or_null()? {
        Some(body) => Body::InRow(body),
        None => Body::Large(LargeBody::find(connection, column(0)?.as_i64()?)?),
    };
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
    let start = bytes.len();
    if start > 0 && start + len > bytes_max {
        return Ok(Appended::DoesNotFit);
    }
    bytes.reserve(len);
    bytes.put_u32_le((len - 4) as u32);
    bytes.put_u8(flags);
    if let Some(key) = key {
        bytes.put_u16_le(key_len);
        bytes.put_slice(key);
    }
    bytes.put_slice(headers.unwrap_or_default());
    for time in [deliver_at, expires_at].into_iter().flatten() {
        bytes.put_i64_le(time);
    }
    if let Some(priority) = priority {
        bytes.put_u8(priority);
    }
    if let Err(error) = body.append_to(connection, bytes) {
        bytes.truncate(start);
        return Err(error);
    }
    let found = checksum::of_message(&head, &bytes[start..]);
    if found != stored {
        bytes.truncate(start);
        return Err(RowError::Checksum { stored, found });
    }
    let origin = head.producer.zip(head.sequence).map(|(producer, sequence)| Origin {
        producer: ProducerId(producer as u64),
        sequence: Sequence(sequence as u64),
    });
    Ok(Appended::Stamped(Timestamp(head.published_at as u64), origin))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bytes::Bytes;

    use super::super::super::{Mode, OpenOptions, Predecessors, Store};
    use super::super::files;
    use super::super::store::DatabaseStore;
    use super::*;
    use crate::model::id::Epoch;
    use crate::model::message::Message;
    use crate::model::name::Name;
    use crate::model::record::{Published, Record, Source};
    use crate::model::settings::TopicSettings;
    use crate::model::snapshot::Snapshot;
    use crate::model::topic_kind::TopicKind;

    const TOPIC: TopicId = TopicId(0);

    /// Makes a closed store with these messages in one topic.
    fn stored(dir: &Path, messages: &[Message]) -> PathBuf {
        let options = OpenOptions {
            dir: dir.to_owned(),
            mode: Mode::Database,
            epoch: Epoch(1),
            predecessors: Predecessors::default(),
            segment_bytes: 1 << 20,
        };
        let (mut store, _) = DatabaseStore::open(&options, &mut || Ok(())).unwrap();
        let name = Name::new("t").unwrap();
        let created = Record::TopicCreated {
            topic: TOPIC,
            name,
            kind: TopicKind::Named,
            settings: TopicSettings::default(),
        };
        let producer = ProducerId(0);
        let opened = Record::ProducerOpened { producer, name: Name::new("p").unwrap(), at: Timestamp(1_000) };
        let published = Record::Published(Published {
            targets: vec![(TOPIC, Offset(0))],
            source: Source::Producer(Origin { producer, sequence: Sequence(1) }),
            at: Timestamp(0x1122_3344_5566),
            block: MessageBlock::encode(messages),
        });
        store.commit(&[created, opened, published]).unwrap();
        Box::new(store).close(&mut Snapshot::default, &mut || Ok(())).unwrap();
        dir.join(files::name(Epoch(1)))
    }

    /// Everything that can be read, up to an error.
    fn read_all(database: &Path, count: u64) -> Vec<(Bytes, Timestamp, Option<Origin>)> {
        // It keeps the index of the log in memory, as the writer of a store does.
        let Ok(_writer) = connection::open(database, Access::Write) else { return Vec::new() };
        let Ok(mut reader) = DatabaseReader::open(database) else { return Vec::new() };
        let (mut all, mut at) = (Vec::new(), Offset(0));
        while at.0 < count {
            match reader.read(TOPIC, at, 300) {
                Ok(Some(chunk)) => {
                    assert_eq!(chunk.stamps.len(), 1);
                    for (index, encoded) in chunk.block.iter().enumerate() {
                        let stamp = chunk.stamps[0];
                        let origin = stamp.origin.map(|origin| Origin {
                            sequence: Sequence(origin.sequence.0 + index as u64),
                            ..origin
                        });
                        all.push((encoded, stamp.published_at, origin));
                    }
                    at = chunk.range().end;
                }
                Ok(None) => panic!("message {at} is missing and nobody is told"),
                Err(_) => break,
            }
        }
        all
    }

    /// A read that the storage failed at a later message said that the first one cannot be read, and so did each read of
    /// those between them.
    #[test]
    fn a_read_that_fails_later_on_brings_what_is_before() {
        let dir = tempfile::tempdir().unwrap();
        let messages: Vec<Message> = (0..12).map(|n| Message::new(vec![n; 40])).collect();
        let database = stored(dir.path(), &messages);
        let _writer = connection::open(&database, Access::Write).unwrap();
        let mut counts = Vec::new();
        for steps in 1.. {
            let mut reader = DatabaseReader::open(&database).unwrap();
            let mut left = steps;
            let fails = move || {
                left -= 1;
                left == 0
            };
            reader.connection.progress_handler(1, Some(fails)).unwrap();
            let read = reader.read(TOPIC, Offset(0), 1 << 20);
            counts.push(read.map_or(0, |chunk| chunk.unwrap().block.count()));
            if counts.last() == Some(&messages.len()) {
                break;
            }
        }
        counts.dedup();
        assert_eq!(counts, (0..=messages.len()).collect::<Vec<_>>());
    }

    /// A flipped bit in the body of a message was delivered as if that were what had been published.
    #[test]
    fn a_flipped_bit_in_a_page_of_messages_is_never_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let full = Message {
            key: Some(Bytes::from_static(b"key")),
            headers: vec![("name".into(), Bytes::from_static(b"value"))],
            deliver_at: Some(Timestamp(7)),
            expires_at: Some(Timestamp(9)),
            priority: 3,
            body: Bytes::from_static(b"a body to be found"),
        };
        let messages: Vec<Message> =
            (0..12).map(|n| if n % 3 == 0 { full.clone() } else { Message::new(vec![n; 40]) }).collect();
        let database = stored(dir.path(), &messages);
        let good = fs::read(&database).unwrap();
        let count = messages.len() as u64;
        let whole = read_all(&database, count);
        assert_eq!(whole.len(), messages.len());
        let body = full.body.as_ref();
        let at = good.windows(body.len()).position(|window| window == body).unwrap();
        let page_bytes = connection::PAGE_BYTES as usize;
        let page = at / page_bytes * page_bytes;
        let mut damaged = 0;
        for at in page..page + page_bytes {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&database, &bad).unwrap();
            let read = read_all(&database, count);
            assert_eq!(read, whole[..read.len()], "byte {at}");
            damaged += usize::from(read.len() < whole.len());
        }
        assert!(damaged > 500, "only {damaged} bytes of the page matter");
    }
}
