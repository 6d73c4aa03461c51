//! Large bodies: they lie in parts beside the rows of messages.
//!
//! A row of 64 MiB would be copied by the database several times at once, and nothing else is committed while it is
//! written. Parts are small enough to be written one after the other, each in a transaction of its own, before the
//! message that they belong to is committed: see [`staging`](super::staging). A message that was not staged is written
//! in the same form within its commit, so there is one way to read and to delete it.
//!
//! A body belongs to one message, or it is *unused* and stands in a table that says so: it is being written ahead, or
//! its message is gone. Each change between the two is in the transaction of what causes it, so a crash leaves no parts
//! that nobody knows of. What is unused and not being written is deleted in bounded steps.
//!
//! The checksum of a message covers its body wherever that lies, so a part that is missing, changed or another's does
//! not have it. What says where the parts are has a checksum of its own, because it is also what deletes them.

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::BytesMut;
use rusqlite::{Connection, ErrorCode, MAIN_DB};

use super::rows::{self, LARGE_BODY, ReadError, Tolerance};
use super::upkeep::STEP;

/// Bytes from which a body lies in parts. Far above most messages, which are one row; and small enough that what is not
/// staged of a large block is.
pub(super) const LARGE_BYTES_MIN: usize = 256 << 10;
/// Bytes of a part but the last. A commit beside waits for one part: its bytes and one sync.
pub(super) const PART_BYTES: usize = 1 << 20;
/// Bits of a part's row id that are its number in the body.
const PART_BITS: u32 = 16;
/// Bytes of the largest body whose parts can be numbered.
#[cfg(test)]
pub(super) const BODY_BYTES_MAX: u64 = (PART_BYTES as u64) << PART_BITS;

/// Row id of the first part of a body.
const fn first_part(body: i64) -> i64 {
    body << PART_BITS
}

/// What the writer knows of bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bodies {
    /// Id of the next one: above all that have parts.
    next: i64,
    /// Bodies that no message has.
    unused: BTreeSet<i64>,
}

impl Default for Bodies {
    fn default() -> Self {
        Self { next: 1, unused: BTreeSet::new() }
    }
}

impl Bodies {
    /// Reads which bodies are unused, and which ids.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub(super) fn load(connection: &Connection, tolerance: &mut Tolerance) -> Result<Self, ReadError> {
        let mut unused = BTreeSet::new();
        rows::UNUSED_BODY.each(connection, tolerance, |row| {
            unused.insert(row.get(0).map_err(|error| error.to_string())?);
            Ok(())
        })?;
        let last_part: Option<i64> =
            connection.query_row("SELECT max(id) FROM body_part", [], |row| row.get(0))?;
        let last = last_part.map(|part| part >> PART_BITS).into_iter().chain(unused.last().copied()).max();
        Ok(Self { next: last.unwrap_or(0) + 1, unused })
    }

    /// Whether no message has this body.
    pub(super) fn is_unused(&self, body: i64) -> bool {
        self.unused.contains(&body)
    }

    /// Those that no message has.
    pub(super) fn unused(&self) -> impl Iterator<Item = i64> + '_ {
        self.unused.iter().copied()
    }

    /// Begins a body that is unused until a message [takes](Self::take) it. Answers its id.
    ///
    /// # Errors
    /// The database's own.
    pub(super) fn begin(&mut self, connection: &Connection) -> rusqlite::Result<i64> {
        let body = self.next;
        self.next += 1;
        self.set_unused(connection, body)?;
        Ok(body)
    }

    /// Has the message of this row have a body that is unused and complete.
    ///
    /// # Errors
    /// The database's own.
    pub(super) fn take(
        &mut self,
        connection: &Connection,
        row: i64,
        body: i64,
        bytes: usize,
    ) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM unused_body WHERE body = ?1")?.execute((body,))?;
        self.unused.remove(&body);
        rows::put_large_body(connection, row, body, bytes)
    }

    /// Writes a body that the message of this row has.
    ///
    /// # Errors
    /// The database's own.
    pub(super) fn write(&mut self, connection: &Connection, row: i64, bytes: &[u8]) -> rusqlite::Result<()> {
        let body = self.next;
        self.next += 1;
        for (part, number) in bytes.chunks(PART_BYTES).zip(0..) {
            write_part(connection, body, number, part)?;
        }
        rows::put_large_body(connection, row, body, bytes.len())
    }

    /// Has those of the messages with rows from `first` on, below `end`, have no body any more: their rows are deleted.
    ///
    /// # Errors
    /// The database's own.
    pub(super) fn give_up(
        &mut self,
        connection: &Connection,
        (first, end): (i64, i64),
    ) -> rusqlite::Result<()> {
        let mut given_up = Vec::new();
        let mut statement = connection.prepare_cached(LARGE_BODY.all)?;
        let mut found = statement.query((first, end))?;
        while let Some(row) = found.next()? {
            match LARGE_BODY.check(row) {
                Ok(()) => given_up.push(row.get(1)?),
                // The body that it names may be that of another message.
                Err(what) => {
                    let row: i64 = row.get(0)?;
                    tracing::warn!(
                        row,
                        what,
                        "a row of table large_body is damaged: the parts it stands for stay"
                    );
                }
            }
        }
        drop(found);
        if given_up.is_empty() {
            return Ok(());
        }
        let sql = "DELETE FROM large_body WHERE message >= ?1 AND message < ?2";
        connection.prepare_cached(sql)?.execute((first, end))?;
        for body in given_up {
            self.set_unused(connection, body)?;
        }
        Ok(())
    }

    fn set_unused(&mut self, connection: &Connection, body: i64) -> rusqlite::Result<()> {
        rows::put_unused_body(connection, body)?;
        self.unused.insert(body);
        Ok(())
    }

    /// Deletes parts of a body that is unused, for about the time of a step, and with the last one the body.
    ///
    /// # Errors
    /// The database's own.
    pub(super) fn delete(&mut self, connection: &Connection, body: i64) -> rusqlite::Result<()> {
        let started = Instant::now();
        let transaction = connection.unchecked_transaction()?;
        {
            let sql =
                "DELETE FROM body_part WHERE id = (SELECT max(id) FROM body_part WHERE id >= ?1 AND id < ?2)";
            let mut delete = transaction.prepare_cached(sql)?;
            while delete.execute((first_part(body), first_part(body + 1)))? > 0 {
                if started.elapsed() > STEP {
                    drop(delete);
                    return transaction.commit();
                }
            }
            transaction.prepare_cached("DELETE FROM unused_body WHERE body = ?1")?.execute((body,))?;
        }
        transaction.commit()?;
        self.unused.remove(&body);
        Ok(())
    }
}

/// Writes one part of a body.
///
/// # Errors
/// The database's own.
pub(super) fn write_part(
    connection: &Connection,
    body: i64,
    number: i64,
    bytes: &[u8],
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("INSERT INTO body_part (id, bytes) VALUES (?1, ?2)")?;
    statement.raw_bind_parameter(1, first_part(body) + number)?;
    statement.raw_bind_parameter(2, bytes)?;
    statement.raw_execute()?;
    // A statement keeps a copy of what it was given last.
    statement.clear_bindings();
    Ok(())
}

/// Where the body of a message lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LargeBody {
    id: i64,
    bytes: usize,
}

impl LargeBody {
    /// That of the message in a row that has no body itself.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub(super) fn find(connection: &Connection, row: i64) -> Result<Self, ReadError> {
        let mut statement = connection.prepare_cached(LARGE_BODY.all)?;
        let mut found = statement.query((row, row + 1))?;
        let row = found.next()?.ok_or_else(|| damaged("it has no body"))?;
        LARGE_BODY
            .check(row)
            .map_err(|what| ReadError::Damaged(format!("its row in table large_body: {what}")))?;
        let bytes =
            u32::try_from(row.get::<_, i64>(2)?).map_err(|_| damaged("its body has no valid length"))?;
        Ok(Self { id: row.get(1)?, bytes: bytes as usize })
    }

    /// Bytes of it.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends it, each part straight from the pages of the file. In the read transaction of a statement that is not
    /// ended yet, so that what was found is still there. On an error something may have been appended.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub(super) fn append_to(&self, connection: &Connection, out: &mut BytesMut) -> Result<(), ReadError> {
        let end = out.len() + self.bytes;
        let missing = |error: rusqlite::Error| match error.sqlite_error_code() {
            // This is how the database says that there is no such row, or that it has no bytes.
            Some(ErrorCode::Unknown) => ReadError::Damaged(format!("a part of its body: {error}")),
            _ => ReadError::Database(error),
        };
        let mut id = first_part(self.id);
        let mut part = connection.blob_open(MAIN_DB, c"body_part", c"bytes", id, true).map_err(missing)?;
        loop {
            let at = out.len();
            let to = at + part.len();
            if part.is_empty() || to > end {
                return Err(damaged("a part of its body has another length"));
            }
            out.resize(to, 0);
            part.read_at_exact(&mut out[at..], 0).map_err(missing)?;
            if to == end {
                return Ok(());
            }
            id += 1;
            part.reopen(id).map_err(missing)?;
        }
    }
}

fn damaged(what: &str) -> ReadError {
    ReadError::Damaged(what.to_owned())
}
