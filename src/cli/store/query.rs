//! `baton store query`: SQL that only reads, answered by the master or from the files of a dead store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use batonmq::ha::directory::{Create, Directory};
use batonmq::ha::lock::LockAttempt;
use batonmq::model::limits::{QUERY_BYTES_MAX, QUERY_ROWS_MAX};
use batonmq::model::table::{Table, Value};
use batonmq::store::query::{QueryBounds, inspect};
use clap::Args;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::super::client::{self, ClientArgs};
use super::super::output::{self, Output};
use super::super::received::Text;

/// Characters of a value that are shown in a table.
const SHOWN_CHARS: usize = 80;

/// Ask a store in database mode with SQL; nothing is changed.
///
/// The master answers, as of one moment, beside its work. Where no node runs, --store asks the files instead: they stay
/// as they are, and while it runs no node can become master. The views messages, delayed, topics, backlog, scheduled,
/// retries, routes and producers are made to be asked; docs/queries.md has examples.
///
/// In a table a value is cut after 80 characters, bytes that are no text are shown as x'00ff', and NULL is empty. With
/// --json nothing is cut, bytes that are no text are {\"base64\": \"...\"}, and a number that JSON does not have is null.
#[derive(Args, Debug)]
#[command(after_help = "\
An answer of more than 10 000 rows or 4 MiB, or that takes the master more than 5 seconds, is refused: add LIMIT.

Examples:
  baton store query \"SELECT * FROM backlog ORDER BY waiting DESC\"
  baton store query --json \"SELECT message_offset, body FROM messages WHERE topic = 'orders' LIMIT 10\"
  baton store query --store /srv/baton \"SELECT * FROM topics\"")]
pub struct QueryArgs {
    /// One SELECT
    sql: String,
    /// The directory of a store without a running node, to be asked in place of --server
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// One JSON object a line for each row
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Runs it.
pub fn run(args: QueryArgs) -> anyhow::Result<()> {
    if let Some(dir) = &args.store {
        let table = ask_files(dir, &args.sql)?;
        return print(&table, args.json);
    }
    client::block_on(async {
        let client = args.client.connect().await?;
        let table = client.query(&args.sql).await?;
        client.close().await;
        print(&table, args.json)
    })
}

/// Asks a store that no node uses, and keeps nodes from it meanwhile.
fn ask_files(dir: &Path, sql: &str) -> anyhow::Result<Table> {
    let directory = Directory::open(dir, Create::Refused, None)?;
    let lock = match directory.try_lock()? {
        LockAttempt::Acquired(lock) => lock,
        LockAttempt::Held => {
            bail!("a node has the store in {}: ask it with --server, or stop it first", dir.display())
        }
    };
    let Some(mut inspector) = inspect(directory.path())? else {
        bail!(
            "the store in {} cannot be queried: it is in file mode, or nothing was stored yet",
            dir.display()
        )
    };
    let bounds = QueryBounds {
        rows_max: QUERY_ROWS_MAX,
        bytes_max: QUERY_BYTES_MAX,
        // Nobody waits for the log to be written back, and a signal ends it.
        time_max: None,
        stop: Arc::new(AtomicBool::new(false)),
    };
    let table = inspector.query(sql, &bounds)?;
    // The lock goes last: until then the files must not change.
    drop(inspector);
    drop(lock);
    Ok(table)
}

fn print(table: &Table, json: bool) -> anyhow::Result<()> {
    let mut output = Output::new();
    if json {
        let mut names = BTreeSet::new();
        if let Some(twice) = table.columns.iter().find(|name| !names.insert(name.as_str())) {
            bail!(
                "two columns are called {twice}: name one of them with AS, so that a JSON object can have both"
            );
        }
        for row in &table.rows {
            output.json(&Object { columns: &table.columns, row }).context("write a row")?;
        }
    } else {
        let mut shown = output::Table::new(&table.columns);
        for row in &table.rows {
            shown.row(row.iter().map(cell));
        }
        shown.print(&mut output)?;
    }
    output.flush()
}

/// A row as JSON, its columns in their order.
struct Object<'a> {
    columns: &'a [String],
    row: &'a [Value],
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        for (column, value) in self.columns.iter().zip(self.row) {
            map.serialize_key(column)?;
            match value {
                Value::Null => map.serialize_value(&()),
                Value::Integer(number) => map.serialize_value(number),
                Value::Real(number) => map.serialize_value(&number.0),
                Value::Text(text) => map.serialize_value(text),
                Value::Bytes(bytes) => map.serialize_value(&Text(bytes)),
            }?;
        }
        map.end()
    }
}

/// A value in a table: one line, not too long.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.0.to_string(),
        Value::Text(text) => one_line(text),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => one_line(text),
            Err(_) => {
                // Two digits for each; the rest would be cut anyway.
                let digits: String =
                    bytes.iter().take(SHOWN_CHARS).map(|byte| format!("{byte:02x}")).collect();
                one_line(&format!("x'{digits}'"))
            }
        },
    }
}

fn one_line(text: &str) -> String {
    let mut line = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == SHOWN_CHARS {
            line += "...";
            break;
        }
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use batonmq::model::table::Real;

    use super::*;

    #[test]
    fn a_cell_is_one_line_and_not_too_long() {
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        for (value, shown) in [
            (Value::Null, ""),
            (Value::Integer(-7), "-7"),
            (Value::Real(Real(0.5)), "0.5"),
            (Value::Text("a\nb\u{1b}[0m é".into()), "a\\nb\\u{1b}[0m é"),
            (bytes(b"text"), "text"),
            (bytes(b"\xff\0"), "x'ff00'"),
        ] {
            assert_eq!(cell(&value), shown);
        }
        assert_eq!(cell(&Value::Text("é".repeat(80))), "é".repeat(80));
        assert_eq!(cell(&Value::Text("é".repeat(81))), "é".repeat(80) + "...");
        assert_eq!(cell(&bytes(&[0xff; 1_000])).len(), 83);
    }

    #[test]
    fn a_row_in_json_has_its_columns_in_order() {
        let columns = ["z", "a", "b", "c", "d"].map(str::to_owned);
        let row = [
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Real(Real(f64::INFINITY)),
            Value::Bytes(vec![0xff]),
            Value::Bytes(b"x".to_vec()),
        ];
        let json = serde_json::to_string(&Object { columns: &columns, row: &row }).unwrap();
        let wanted = r#"{"z":null,"a":-9223372036854775808,"b":null,"c":{"base64":"/w=="},"d":"x"}"#;
        assert_eq!(json, wanted);
    }
}
