//! Rows of messages: how a block becomes rows.
//!
//! This is the hot path of a commit. Messages with nothing but a small body, which is most of them, go in by many
//! rows a statement that share time, producer and the first id and sequence; the others one by one. Two parameters a
//! message in place of eleven, and one statement for 64, is what brings the eleven columns to the speed of two. A large
//! body goes to [its own tables](super::bodies).

use rusqlite::{CachedStatement, Connection};

use super::bodies::{Bodies, LARGE_BYTES_MIN};
use super::checksum::{self, RowHead};
use super::schema::STRETCH_BITS;
use super::staging::Staging;
use crate::model::chunk::Origin;
use crate::model::id::{Offset, Sequence, TopicId};
use crate::model::message::{MessageError, Parts};
use crate::model::record::Published;

/// Rows of the largest and of the middle statement.
const ROWS: [usize; 2] = [64, 8];
/// Largest encoded message that is inserted with others: statements keep a copy of what they were given last.
const SMALL_BYTES_MAX: usize = 2048;
/// Encoded messages above this are not left behind in a statement.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// Bytes before the body of a message without other fields: length and flags.
pub(super) const PLAIN_HEAD: usize = 5;

const ONE: &str = "INSERT INTO message (id, published_at, producer, sequence, checksum, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const FULL: &str = "INSERT INTO message (id, published_at, producer, sequence, checksum, body, key, headers, \
                    deliver_at, expires_at, priority) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";

/// Why messages could not be inserted.
#[derive(Debug)]
pub(super) enum InsertError {
    /// The database's answer.
    Database(rusqlite::Error),
    /// The block is not one of valid messages.
    Message(MessageError),
}

impl From<rusqlite::Error> for InsertError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

/// Where consecutive messages go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Their topic.
    pub(super) topic: TopicId,
    /// Offset of the first.
    pub(super) first: Offset,
    /// Row id of the first.
    pub(super) row: i64,
}

/// The statements that insert messages.
#[derive(Debug)]
pub(super) struct Inserts {
    many: [String; 2],
}

impl Inserts {
    /// The statements' texts.
    pub(super) fn new() -> Self {
        Self { many: ROWS.map(many_rows) }
    }

    /// Inserts the messages `from..to` of a block at `target`.
    ///
    /// # Errors
    /// See [`InsertError`].
    pub(super) fn insert(
        &self,
        connection: &Connection,
        published: &Published,
        (from, to): (usize, usize),
        target: Target,
        bodies: &mut Bodies,
        staging: &Staging,
    ) -> Result<(), InsertError> {
        let mut first = 0;
        for (count, origin) in published.source.origins(published.block.count() as u32) {
            let end = first + count as usize;
            let (start, stop) = (first.max(from), end.min(to));
            if start < stop {
                let at_start = |origin: Origin| Origin {
                    sequence: Sequence(origin.sequence.0 + (start - first) as u64),
                    ..origin
                };
                let (origin, skipped) = (origin.map(at_start), start - from);
                let target = Target {
                    first: Offset(target.first.0 + skipped as u64),
                    row: target.row + skipped as i64,
                    ..target
                };
                self.insert_of(connection, published, origin, (start, stop), target, bodies, staging)?;
            }
            first = end;
        }
        Ok(())
    }

    /// Inserts the messages `from..to` of a block, the first of which has this origin, and the others follow.
    #[allow(clippy::too_many_arguments, reason = "what insert has, and the origin")]
    fn insert_of(
        &self,
        connection: &Connection,
        published: &Published,
        origin: Option<Origin>,
        (from, to): (usize, usize),
        target: Target,
        bodies: &mut Bodies,
        staging: &Staging,
    ) -> Result<(), InsertError> {
        let block = &published.block;
        let bytes = block.bytes().as_ref();
        let encoded = |index: usize| &bytes[block.position(index)..block.position(index + 1)];
        let insert = |index: usize| Insert {
            id: target.row + (index - from) as i64,
            head: RowHead {
                topic: target.topic,
                offset: Offset(target.first.0 + (index - from) as u64),
                published_at: published.at.0 as i64,
                producer: origin.map(|origin| origin.producer.0 as i64),
                sequence: origin.map(|origin| (origin.sequence.0 + (index - from) as u64) as i64),
            },
            encoded: encoded(index),
        };
        let mut at = from;
        while at < to {
            let run = (at..to).take(ROWS[0]).take_while(|&index| is_small(encoded(index))).count();
            if let Some(kind) = ROWS.iter().position(|&rows| run >= rows) {
                let mut statement = connection.prepare_cached(&self.many[kind])?;
                insert(at).bind(&mut statement)?;
                for row in 0..ROWS[kind] {
                    insert(at + row).bind_plain(&mut statement, FIRST_PLAIN + 2 * row)?;
                }
                statement.raw_execute()?;
                at += ROWS[kind];
            } else if run > 0 {
                let mut statement = connection.prepare_cached(ONE)?;
                for index in at..at + run {
                    let insert = insert(index);
                    insert.bind(&mut statement)?;
                    insert.bind_plain(&mut statement, FIRST_PLAIN)?;
                    statement.raw_execute()?;
                }
                at += run;
            } else {
                insert(at).insert_full(connection, at, bodies, staging)?;
                at += 1;
            }
        }
        Ok(())
    }
}

/// Number of the first parameter that is not shared by the rows of a statement.
const FIRST_PLAIN: usize = 5;

/// A row to be inserted.
struct Insert<'a> {
    id: i64,
    head: RowHead,
    encoded: &'a [u8],
}

impl Insert<'_> {
    /// Binds what every message has beside its content.
    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<()> {
        statement.raw_bind_parameter(1, self.id)?;
        statement.raw_bind_parameter(2, self.head.published_at)?;
        statement.raw_bind_parameter(3, self.head.producer)?;
        statement.raw_bind_parameter(4, self.head.sequence)
    }

    /// Binds the checksum as parameter `at` and the body as the next one, for a message that has nothing else.
    fn bind_plain(&self, statement: &mut CachedStatement<'_>, at: usize) -> rusqlite::Result<()> {
        statement.raw_bind_parameter(at, checksum::of_message(&self.head, self.encoded))?;
        statement.raw_bind_parameter(at + 1, &self.encoded[PLAIN_HEAD..])
    }

    fn insert_full(
        &self,
        connection: &Connection,
        index: usize,
        bodies: &mut Bodies,
        staging: &Staging,
    ) -> Result<(), InsertError> {
        let encoded = self.encoded;
        let parts = Parts::read(encoded, index).map_err(InsertError::Message)?;
        let is_large = parts.body.len() >= LARGE_BYTES_MIN;
        let written = if is_large { staging.find(parts.body) } else { None };
        // Another target of the same publish may have taken it.
        let checksum = if let Some(written) = written.filter(|written| bodies.is_unused(written.id)) {
            bodies.take(connection, self.id, written.id, parts.body.len())?;
            checksum::of_summed(&self.head, written.sum, encoded.len())
        } else {
            if is_large {
                bodies.write(connection, self.id, parts.body)?;
            }
            checksum::of_message(&self.head, encoded)
        };
        let mut statement = connection.prepare_cached(FULL)?;
        self.bind(&mut statement)?;
        statement.raw_bind_parameter(5, checksum)?;
        statement.raw_bind_parameter(6, (!is_large).then_some(parts.body))?;
        statement.raw_bind_parameter(7, parts.key)?;
        statement.raw_bind_parameter(8, headers(encoded, &parts))?;
        statement.raw_bind_parameter(9, parts.deliver_at.map(|at| at.0 as i64))?;
        statement.raw_bind_parameter(10, parts.expires_at.map(|at| at.0 as i64))?;
        statement.raw_bind_parameter(11, (parts.priority > 0).then_some(parts.priority))?;
        statement.raw_execute()?;
        if encoded.len() > KEPT_BYTES_MAX {
            statement.clear_bindings();
        }
        Ok(())
    }
}

/// The encoded headers with their count, which stands right before them.
fn headers<'a>(encoded: &'a [u8], parts: &Parts<'_>) -> Option<&'a [u8]> {
    let at = PLAIN_HEAD + parts.key.map_or(0, |key| 2 + key.len());
    (!parts.headers_encoded.is_empty()).then(|| &encoded[at..at + 2 + parts.headers_encoded.len()])
}

fn is_small(encoded: &[u8]) -> bool {
    encoded.len() <= SMALL_BYTES_MAX && encoded[PLAIN_HEAD - 1] == 0
}

/// An insert of `rows` consecutive messages: ?1 id and ?4 sequence of the first, ?5 and on checksums and bodies.
fn many_rows(rows: usize) -> String {
    let value = |row: usize| {
        let checksum = FIRST_PLAIN + 2 * row;
        format!("(?1 + {row}, ?2, ?3, ?4 + {row}, ?{checksum}, ?{})", checksum + 1)
    };
    let values: Vec<String> = (0..rows).map(value).collect();
    let columns = "id, published_at, producer, sequence, checksum, body";
    format!("INSERT INTO message ({columns}) VALUES {}", values.join(", "))
}

/// Where the message at `offset` lies: number of the stretch, and the low bits of the row id.
pub(super) const fn split(offset: u64) -> (u64, i64) {
    (offset >> STRETCH_BITS, (offset & ((1 << STRETCH_BITS) - 1)) as i64)
}

/// Row id of the first message of a stretch.
pub(super) const fn first_row(stretch: i64) -> i64 {
    stretch << STRETCH_BITS
}
