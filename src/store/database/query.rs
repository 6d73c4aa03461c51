//! Queries on a connection of their own that can do nothing but read.
//!
//! Three locks on the same door: the connection refuses to write, each statement is looked at while it is compiled and
//! refused for anything but reading tables and calling functions, and it must say of itself that it only reads.
//!
//! A query is one statement, and so one read transaction. While it runs, no checkpoint can pass the state that it
//! sees: the write-ahead log grows by whatever is committed meanwhile. Whoever asks beside a writer must bound its
//! time. What is to be sorted or grouped beyond the cache goes to temporary files, so that memory is bounded too:
//! functions that gather all rows of a group in memory, whatever a value may have, cannot be called.
//!
//! A query is given up between two steps of the database's machine, and a function is one step: how long that takes is
//! bounded by the lengths of values and patterns.

use std::path::Path;
use std::sync::atomic::Ordering;

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, ErrorCode, Statement};

use super::super::StoreError;
use super::super::manifest::Manifest;
use super::super::query::{Inspector, QueryBounds, QueryError};
use super::connection::{self, Access, failed, is_damage};
use super::{database_of, files, log, schema};
use crate::model::limits::{QUERY_COLUMNS_MAX, QUERY_VALUE_BYTES_MAX};
use crate::model::table::{Real, Table, Value};

/// Steps of the database's machine between two looks at whether a query is to be given up: about a microsecond, unless
/// they call functions on long values.
const STEPS: i32 = 100;
/// Bytes of the pattern of LIKE and GLOB: one may be compared at each place of a value, in one step.
const PATTERN_BYTES_MAX: usize = 256;
/// Functions that cannot be called: what loads code, and what gathers a group in memory without bound.
const REFUSED_FUNCTIONS: [&str; 5] =
    ["load_extension", "json_group_array", "jsonb_group_array", "json_group_object", "jsonb_group_object"];

/// A connection that answers queries.
#[derive(Debug)]
pub(super) struct DatabaseInspector {
    connection: Connection,
}

impl DatabaseInspector {
    /// One beside the writer of this process.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub(super) fn beside_writer(path: &Path) -> Result<Self, StoreError> {
        Self::new(connection::open(path, Access::Read)?)
    }

    /// One on a database that nobody has open. Nothing of its files is changed: what is only in the log is found
    /// there, and stays there.
    ///
    /// # Errors
    /// Where it is missing, damaged, of a newer format, or cannot be opened.
    pub(super) fn alone(dir: &Path, manifest: &Manifest) -> Result<Self, StoreError> {
        let path = dir.join(database_of(manifest, dir)?);
        files::length(&path)?.ok_or_else(|| StoreError::Missing { path: path.clone() })?;
        schema::check_head(&path)?;
        let log = files::log(&path);
        // Else what is answered might be what once was.
        log::check(&log)?;
        // Opening the log where there is none would make one.
        let access = if files::length(&log)?.is_some() { Access::Write } else { Access::Frozen };
        let connection = connection::open(&path, access)?;
        schema::check(&connection, &path)?;
        Self::new(connection)
    }

    fn new(mut connection: Connection) -> Result<Self, StoreError> {
        connection
            .execute_batch("PRAGMA query_only = 1; PRAGMA trusted_schema = 0; PRAGMA temp_store = file;")
            .map_err(failed("make the connection only read"))?;
        let limit = |limit, max: usize| {
            let max = i32::try_from(max).unwrap_or(i32::MAX);
            connection.set_limit(limit, max).map(|_| ()).map_err(failed("limit the connection"))
        };
        limit(Limit::SQLITE_LIMIT_LENGTH, QUERY_VALUE_BYTES_MAX)?;
        limit(Limit::SQLITE_LIMIT_COLUMN, QUERY_COLUMNS_MAX)?;
        limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, PATTERN_BYTES_MAX)?;
        limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        connection.authorizer(Some(may)).map_err(failed("guard the connection"))?;
        Ok(Self { connection })
    }

    fn answer(&self, text: &str, bounds: &QueryBounds) -> Result<Table, QueryError> {
        let told = |error| told(error, bounds);
        let mut statement = self.connection.prepare(text).map_err(told)?;
        if !statement.readonly() {
            return Err(QueryError::NotReading);
        }
        if statement.column_count() == 0 {
            return Err(QueryError::Empty);
        }
        rows(&mut statement, bounds, told)
    }
}

impl Inspector for DatabaseInspector {
    fn query(&mut self, text: &str, bounds: &QueryBounds) -> Result<Table, QueryError> {
        let watch = |error| QueryError::Store(failed("watch a query")(error));
        self.connection.progress_handler(STEPS, Some(bounds.giving_up())).map_err(watch)?;
        let answer = self.answer(text, bounds);
        self.connection.progress_handler(0, None::<fn() -> bool>).map_err(watch)?;
        answer
    }
}

/// Whether a part of a statement may be compiled.
fn may(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => Authorization::Allow,
        AuthAction::Function { function_name }
            if !REFUSED_FUNCTIONS.iter().any(|refused| function_name.eq_ignore_ascii_case(refused)) =>
        {
            Authorization::Allow
        }
        _ => Authorization::Deny,
    }
}

fn rows(
    statement: &mut Statement<'_>,
    bounds: &QueryBounds,
    told: impl Fn(Error) -> QueryError,
) -> Result<Table, QueryError> {
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut table = Table { columns, rows: Vec::new() };
    let mut bytes: usize = table.columns.iter().map(|name| size_of::<String>() + name.len()).sum();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().map_err(&told)? {
        if table.rows.len() == bounds.rows_max {
            return Err(QueryError::Rows(bounds.rows_max));
        }
        let mut values = Vec::with_capacity(table.columns.len());
        bytes += size_of::<Vec<Value>>();
        for column in 0..table.columns.len() {
            let value = value(row.get_ref(column).map_err(&told)?);
            bytes += value.bytes();
            if bytes > bounds.bytes_max {
                return Err(QueryError::Bytes(bounds.bytes_max));
            }
            values.push(value);
        }
        table.rows.push(values);
    }
    Ok(table)
}

fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(number) => Value::Real(Real(number)),
        // A text that is none comes from a cast of bytes.
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Bytes(text.to_vec()),
        },
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
    }
}

/// What the database's error says to whoever asked.
fn told(error: Error, bounds: &QueryBounds) -> QueryError {
    match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => match bounds.time_max {
            Some(time) if !bounds.stop.load(Ordering::Relaxed) => QueryError::Time(time),
            _ => QueryError::Stopped,
        },
        Some(ErrorCode::AuthorizationForStatementDenied | ErrorCode::ReadOnly) => QueryError::NotReading,
        Some(ErrorCode::TooBig) => QueryError::Value(QUERY_VALUE_BYTES_MAX),
        _ if is_damage(&error) => failed("answer a query")(error).into(),
        _ => match error {
            Error::MultipleStatement => QueryError::Several,
            Error::SqlInputError { msg, sql, offset, .. } => {
                QueryError::Text { message: msg, text: sql, position: usize::try_from(offset).ok() }
            }
            Error::SqliteFailure(_, Some(message)) => QueryError::Failed(message),
            error => QueryError::Failed(error.to_string()),
        },
    }
}
