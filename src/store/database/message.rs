//! Rows of messages: how a block becomes rows.
//!
//! This is the hot path of a commit. Messages with nothing but a small body, which is most of them, go in by many
//! rows a statement that share time, producer and the first id and sequence; the others one by one. One parameter a
//! message in place of ten, and one statement for 64, is what brings the ten columns to the speed of two.

use rusqlite::{CachedStatement, Connection};

use super::schema::STRETCH_BITS;
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

const ONE: &str =
    "INSERT INTO message (id, published_at, producer, sequence, body) VALUES (?1, ?2, ?3, ?4, ?5)";
const FULL: &str = "INSERT INTO message (id, published_at, producer, sequence, body, key, headers, deliver_at, \
                    expires_at, priority) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

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

    /// Inserts the messages `from..to` of a block, the first under `id`.
    ///
    /// # Errors
    /// See [`InsertError`].
    pub(super) fn insert(
        &self,
        connection: &Connection,
        published: &Published,
        (from, to): (usize, usize),
        id: i64,
    ) -> Result<(), InsertError> {
        let block = &published.block;
        let bytes = block.bytes().as_ref();
        let encoded = |index: usize| &bytes[block.position(index)..block.position(index + 1)];
        let head = |index: usize| Head {
            id: id + (index - from) as i64,
            published_at: published.at.0 as i64,
            producer: published.origin.map(|origin| origin.producer.0 as i64),
            sequence: published.origin.map(|origin| (origin.sequence.0 + index as u64) as i64),
        };
        let mut at = from;
        while at < to {
            let run = (at..to).take(ROWS[0]).take_while(|&index| is_small(encoded(index))).count();
            if let Some(kind) = ROWS.iter().position(|&rows| run >= rows) {
                let mut statement = connection.prepare_cached(&self.many[kind])?;
                head(at).bind(&mut statement)?;
                for row in 0..ROWS[kind] {
                    statement.raw_bind_parameter(5 + row, &encoded(at + row)[PLAIN_HEAD..])?;
                }
                statement.raw_execute()?;
                at += ROWS[kind];
            } else if run > 0 {
                let mut statement = connection.prepare_cached(ONE)?;
                for index in at..at + run {
                    head(index).bind(&mut statement)?;
                    statement.raw_bind_parameter(5, &encoded(index)[PLAIN_HEAD..])?;
                    statement.raw_execute()?;
                }
                at += run;
            } else {
                insert_full(connection, &head(at), encoded(at), at)?;
                at += 1;
            }
        }
        Ok(())
    }
}

/// What every message has beside its content.
struct Head {
    id: i64,
    published_at: i64,
    producer: Option<i64>,
    sequence: Option<i64>,
}

impl Head {
    fn bind(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<()> {
        statement.raw_bind_parameter(1, self.id)?;
        statement.raw_bind_parameter(2, self.published_at)?;
        statement.raw_bind_parameter(3, self.producer)?;
        statement.raw_bind_parameter(4, self.sequence)
    }
}

fn insert_full(
    connection: &Connection,
    head: &Head,
    encoded: &[u8],
    index: usize,
) -> Result<(), InsertError> {
    let parts = Parts::read(encoded, index).map_err(InsertError::Message)?;
    let mut statement = connection.prepare_cached(FULL)?;
    head.bind(&mut statement)?;
    statement.raw_bind_parameter(5, parts.body)?;
    statement.raw_bind_parameter(6, parts.key)?;
    statement.raw_bind_parameter(7, headers(encoded, &parts))?;
    statement.raw_bind_parameter(8, parts.deliver_at.map(|at| at.0 as i64))?;
    statement.raw_bind_parameter(9, parts.expires_at.map(|at| at.0 as i64))?;
    statement.raw_bind_parameter(10, (parts.priority > 0).then_some(parts.priority))?;
    statement.raw_execute()?;
    if encoded.len() > KEPT_BYTES_MAX {
        statement.clear_bindings();
    }
    Ok(())
}

/// The encoded headers with their count, which stands right before them.
fn headers<'a>(encoded: &'a [u8], parts: &Parts<'_>) -> Option<&'a [u8]> {
    let at = PLAIN_HEAD + parts.key.map_or(0, |key| 2 + key.len());
    (!parts.headers_encoded.is_empty()).then(|| &encoded[at..at + 2 + parts.headers_encoded.len()])
}

fn is_small(encoded: &[u8]) -> bool {
    encoded.len() <= SMALL_BYTES_MAX && encoded[PLAIN_HEAD - 1] == 0
}

/// An insert of `rows` consecutive messages: ?1 id and ?4 sequence of the first, ?5 and on the bodies.
fn many_rows(rows: usize) -> String {
    let values: Vec<String> =
        (0..rows).map(|row| format!("(?1 + {row}, ?2, ?3, ?4 + {row}, ?{})", 5 + row)).collect();
    format!("INSERT INTO message (id, published_at, producer, sequence, body) VALUES {}", values.join(", "))
}

/// Where the message at `offset` lies: number of the stretch, and the low bits of the row id.
pub(super) const fn split(offset: u64) -> (u64, i64) {
    (offset >> STRETCH_BITS, (offset & ((1 << STRETCH_BITS) - 1)) as i64)
}

/// Row id of the first message of a stretch.
pub(super) const fn first_row(stretch: i64) -> i64 {
    stretch << STRETCH_BITS
}
