//! Connections to the database file: how every one of them is opened, and what the database's errors mean.
//!
//! Every connection uses the `unix-excl` file layer: the first one locks all other processes out for as long as any
//! is open, and the index of the write-ahead log lies on the heap, shared by the connections of this process. No
//! connection writes anything when it is closed: a master that has lost must be able to end without a checkpoint.
//!
//! Nothing else in the process may open the database file while a connection lives. Closing any descriptor of it
//! would drop the locks, because POSIX locks belong to the process and not to the descriptor.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::ffi::SQLITE_IOERR_WRITE;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::super::StoreError;
use super::files;

/// Bytes of a page. 4096, 8192 and 16384 store 128-byte messages equally fast in batches; a commit of one message
/// writes whole pages, so the smallest has the shortest confirm.
pub(super) const PAGE_BYTES: u32 = 4096;
/// KiB of pages that the writer keeps: the right edges of the trees it appends to, and a commit before it spills.
const WRITER_CACHE_KIB: u32 = 2048;
/// KiB of pages that a reader keeps. It reads forwards, so it needs few.
const READER_CACHE_KIB: u32 = 512;
/// Bytes of a block of the usual file systems.
const BLOCK_BYTES: usize = 4096;
/// What the log is cut to when it is started over: one commit may have made it longer.
const LOG_KEPT_BYTES: u64 = 64 << 20;
/// Statements that stay prepared, per connection; more than there are.
const STATEMENTS: usize = 64;
/// How long a connection waits for another one of this process: a checkpoint for the readers to finish.
const WAIT: Duration = Duration::from_millis(200);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Make a new file.
    Create,
    /// The one writer of a file that exists.
    Write,
    /// A reader beside the writer.
    Read,
    /// The only one, of a file that nobody may write and that has no log.
    Frozen,
}

/// Opens a connection. Changes nothing in a file that exists.
///
/// # Errors
/// [`StoreError::Missing`] where a file that is not to be created does not exist, else the database's own.
pub(super) fn open(path: &Path, access: Access) -> Result<Connection, StoreError> {
    let exists = path.try_exists().map_err(|source| StoreError::Io {
        action: "look for",
        path: path.to_owned(),
        source,
    })?;
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX
        | match access {
            Access::Create => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
            Access::Write => OpenFlags::SQLITE_OPEN_READ_WRITE,
            Access::Read => OpenFlags::SQLITE_OPEN_READ_ONLY,
            Access::Frozen => OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI,
        };
    match (access, exists) {
        (Access::Create, true) => {
            let source = std::io::ErrorKind::AlreadyExists.into();
            return Err(StoreError::Io { action: "create", path: path.to_owned(), source });
        }
        (Access::Write | Access::Read | Access::Frozen, false) => {
            return Err(StoreError::Missing { path: path.to_owned() });
        }
        (Access::Create, false) | (Access::Write | Access::Read | Access::Frozen, true) => {}
    }
    let frozen = (access == Access::Frozen).then(|| frozen_name(path));
    let name = frozen.as_deref().map_or(path, Path::new);
    let connection =
        Connection::open_with_flags_and_vfs(name, flags, c"unix-excl").map_err(failed("open"))?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(failed("switch off the checkpoint at close"))?;
    connection.busy_timeout(Duration::ZERO).map_err(failed("set the waiting time"))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    if access == Access::Create {
        let batch = format!("PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = incremental;");
        connection.execute_batch(&batch).map_err(failed("lay out the file"))?;
    }
    configure(&connection, access)?;
    connection.busy_timeout(WAIT).map_err(failed("set the waiting time"))?;
    Ok(connection)
}

/// How the database is told that nobody writes a file: it then neither locks it nor makes a log beside it.
fn frozen_name(path: &Path) -> String {
    let mut name = String::from("file:");
    for &byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name += &format!("%{byte:02X}");
        }
    }
    name + "?immutable=1"
}

fn configure(connection: &Connection, access: Access) -> Result<(), StoreError> {
    let question = if access == Access::Create { "PRAGMA journal_mode = wal" } else { "PRAGMA journal_mode" };
    let mode = journal_mode(connection, question).map_err(failed("lock, or read the mode"))?;
    // What is frozen has no log, and counts as one that needs none.
    let wanted = if access == Access::Frozen { "delete" } else { "wal" };
    if mode != wanted {
        let message = format!("the journal mode is {mode}, it must be {wanted}");
        return Err(StoreError::Database { action: "open", message });
    }
    let cache = if access == Access::Read { READER_CACHE_KIB } else { WRITER_CACHE_KIB };
    let batch = format!(
        "PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = FULL; PRAGMA temp_store = memory; \
         PRAGMA cache_size = -{cache}; PRAGMA journal_size_limit = {LOG_KEPT_BYTES};"
    );
    connection.execute_batch(&batch).map_err(failed("set the pragmas"))?;
    let synchronous: i64 = connection
        .pragma_query_value(None, "synchronous", |row| row.get(0))
        .map_err(failed("read the pragmas"))?;
    if synchronous != 2 {
        let message = format!("synchronous is {synchronous}, it must be 2 (full)");
        return Err(StoreError::Database { action: "open", message });
    }
    Ok(())
}

/// Asks for the journal mode, or for a change of it. The answer comes before a change is committed, so the statement is
/// run to its end: only that says whether it was.
fn journal_mode(connection: &Connection, question: &str) -> rusqlite::Result<String> {
    let mut statement = connection.prepare(question)?;
    let mut rows = statement.query([])?;
    let mode = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?.get(0)?;
    while rows.next()?.is_some() {}
    Ok(mode)
}

/// Bytes that the file of a database is longer once its log is written back: pages that lie in the file already need no
/// space.
///
/// # Errors
/// The database's own; a file that cannot be looked at counts as empty.
pub(super) fn growth_bytes(connection: &Connection, path: &Path) -> rusqlite::Result<u64> {
    let pages: u32 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    // Its attributes only: nobody else may open the file.
    let length = std::fs::metadata(path).map_or(0, |file| file.len());
    Ok((u64::from(pages) * u64::from(PAGE_BYTES)).saturating_sub(length))
}

/// Makes the database's error one of the store.
pub(super) fn failed(action: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |error| {
        let message = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                let message = format!("{message} (another process has the database open: end it first)");
                StoreError::Database { action, message }
            }
            _ if is_damage(&error) => StoreError::DatabaseDamaged { action, message },
            _ => StoreError::Database { action, message },
        }
    }
}

/// Whether the file is not what the database has written.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Whether there was no space left. The database tells a quota that is used up from no other failed write: where one
/// failed, the log is tried for another block.
pub(super) fn is_full(error: &rusqlite::Error, database: &Path) -> bool {
    let Some(error) = error.sqlite_error() else { return false };
    error.code == ErrorCode::DiskFull
        || (error.extended_code == SQLITE_IOERR_WRITE && is_quota_used_up(&files::log(database)))
}

/// Whether the log may not become longer. A block of zeros at its end is no part of it, and is overwritten in time.
fn is_quota_used_up(log: &Path) -> bool {
    let appended =
        File::options().append(true).open(log).and_then(|mut log| log.write_all(&[0; BLOCK_BYTES]));
    appended.is_err_and(|error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
}
