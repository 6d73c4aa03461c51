//! The format of the database: the numbered migrations in `sql/` and the runner that applies them.
//!
//! The format of a file is its `user_version`, the number of migrations it has had. A newer file is refused before
//! anything of it is changed; a file of another program is refused by its `application_id`.

use std::io::{ErrorKind, Read};
use std::path::Path;

use rusqlite::Connection;

use super::super::StoreError;
use super::connection::failed;
use crate::disk;

/// Bits of a message's row id that are the low bits of its offset; the others are the id of its stretch.
pub(super) const STRETCH_BITS: u32 = 32;
/// `application_id` of a store.
const APPLICATION_ID: i64 = 0x4241_544E;
/// How the file of a database begins.
const HEAD_MAGIC: &[u8] = b"SQLite format 3\0";
/// Bytes from the beginning of the file to the end of its `user_version`.
const HEAD_BYTES: usize = 64;
/// All migrations, oldest first. Each runs in a transaction of its own and is never changed after a release.
const MIGRATIONS: [&str; 1] = [include_str!("../../../sql/0001_schema.sql")];

/// The format that this version writes.
pub const FORMAT: u32 = MIGRATIONS.len() as u32;

/// Refuses what this version cannot serve: newer formats and files of other programs. Changes nothing.
///
/// # Errors
/// [`StoreError::NewerFormat`], [`StoreError::Damaged`], or the database's own.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed("read the format"))?;
    let application: i64 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(failed("read the application id"))?;
    if application != APPLICATION_ID {
        let what = format!("application id {application:#x}, a store has {APPLICATION_ID:#x}");
        return Err(StoreError::Damaged { path: path.to_owned(), position: 68, what });
    }
    if found > FORMAT {
        return Err(StoreError::NewerFormat { path: path.to_owned(), found, known: FORMAT });
    }
    Ok(())
}

/// As [`check`], from the first bytes of a file that no connection of this process has open. A file that has none yet
/// is all in its log, and [`check`] finds what it is.
///
/// # Errors
/// [`StoreError::Missing`], [`StoreError::NewerFormat`], or the system's own.
pub(super) fn check_head(path: &Path) -> Result<(), StoreError> {
    let io = |action| {
        let path = path.to_owned();
        move |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => StoreError::Missing { path },
            _ => StoreError::Io { action, path, source },
        }
    };
    let mut head = [0; HEAD_BYTES];
    match disk::open(path).map_err(io("open"))?.read_exact(&mut head) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
        read => read.map_err(io("read"))?,
    }
    let [.., a, b, c, d] = head;
    let found = u32::from_be_bytes([a, b, c, d]);
    if head.starts_with(HEAD_MAGIC) && found > FORMAT {
        return Err(StoreError::NewerFormat { path: path.to_owned(), found, known: FORMAT });
    }
    Ok(())
}

/// Brings the database to [`FORMAT`].
///
/// # Errors
/// The database's own.
pub(super) fn migrate(connection: &Connection) -> Result<(), StoreError> {
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed("read the format"))?;
    for (number, migration) in (1..=FORMAT).zip(MIGRATIONS).skip(found as usize) {
        let batch = format!("BEGIN IMMEDIATE;\n{migration}\nPRAGMA user_version = {number};\nCOMMIT;");
        connection.execute_batch(&batch).map_err(failed("migrate the schema"))?;
    }
    Ok(())
}
