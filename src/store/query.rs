//! Queries of a person about a store: what may be asked, and what can go wrong.
//!
//! A query is a text in a language of the store's own, of which only this layer knows which it is. It reads and never
//! changes anything. Whoever asks bounds the answer: what is larger, or takes longer, is refused and not cut short,
//! because half an answer is a wrong one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::manifest::Manifest;
use super::{Mode, StoreError, database};
use crate::model::id::Epoch;
use crate::model::table::Table;

/// Answers queries about a store, one at a time, on any thread.
pub trait Inspector: Send {
    /// Answers the query as of one moment.
    ///
    /// # Errors
    /// See [`QueryError`]; another query may follow each.
    fn query(&mut self, text: &str, bounds: &QueryBounds) -> Result<Table, QueryError>;
}

/// How far a query may go.
#[derive(Clone, Debug)]
pub struct QueryBounds {
    /// Rows of the answer.
    pub rows_max: usize,
    /// Bytes of the answer, in memory.
    pub bytes_max: usize,
    /// How long it may run.
    pub time_max: Option<Duration>,
    /// Set by whoever wants it to end.
    pub stop: Arc<AtomicBool>,
}

impl QueryBounds {
    /// Says, again and again, whether a query that begins now is to be given up.
    pub(super) fn giving_up(&self) -> impl FnMut() -> bool + Send + 'static {
        let (stop, until) = (Arc::clone(&self.stop), self.time_max.map(|time| Instant::now() + time));
        move || stop.load(Ordering::Relaxed) || until.is_some_and(|until| Instant::now() >= until)
    }
}

/// Why a query is not answered.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The text holds no statement.
    #[error("there is nothing to answer: give one SELECT")]
    Empty,
    /// The text holds more than one statement.
    #[error("give one statement: something follows the first one")]
    Several,
    /// It would do something else than read.
    #[error(
        "a query only reads tables and views, with SELECT, WITH or VALUES; it was given up before it did anything"
    )]
    NotReading,
    /// The text cannot be understood.
    #[error("{message}{}", at(text, *position))]
    Text {
        /// What is wrong, in the words of the store.
        message: String,
        /// The query.
        text: String,
        /// Where in it, in bytes, where that is known.
        position: Option<usize>,
    },
    /// It was understood, and answering it failed.
    #[error("the query failed: {0}")]
    Failed(String),
    /// The answer has too many rows.
    #[error("the answer has more than {0} rows: add LIMIT, or count instead of listing")]
    Rows(usize),
    /// The answer is too long.
    #[error("the answer has more than {0} bytes: add LIMIT, or ask for fewer columns")]
    Bytes(usize),
    /// A value on the way to the answer is too long.
    #[error("a value is longer than {0} bytes: ask for its length, or leave messages as large as that out")]
    Value(usize),
    /// It takes too long.
    #[error("no answer within {0:?}: ask about fewer messages, with WHERE, or query a backup")]
    Time(Duration),
    /// Whoever asked does not want to know any more, or the node stops.
    #[error("the query was stopped")]
    Stopped,
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Characters of the query that are shown from where something is wrong.
const SHOWN_CHARS: usize = 30;

/// Where something is wrong in a query, for people: the character, from 1, and what stands there.
fn at(text: &str, position: Option<usize>) -> String {
    let Some((before, rest)) = position.and_then(|position| text.split_at_checked(position)) else {
        return String::new();
    };
    let number = before.chars().count() + 1;
    let shown: String = rest.chars().take(SHOWN_CHARS).collect();
    if shown.is_empty() {
        format!(", at its end (character {number})")
    } else {
        format!(", at character {number}: {shown}")
    }
}

/// Opens the store in a shared directory to be asked, without an epoch, and without changing a byte of it. `None` in a
/// mode that cannot be asked, or where there is no store yet.
///
/// The caller holds the lock for as long as it asks, so that no master begins meanwhile. What is asked about is what
/// the newest manifest names. A master that lost its lock on another host, and does not know it yet, may still write
/// there: then a query may fail, or see what nobody will ever be told was stored.
///
/// # Errors
/// Where the store is missing, damaged, of a newer format, or cannot be opened.
pub fn inspect(dir: &Path) -> Result<Option<Box<dyn Inspector>>, StoreError> {
    let Some(manifest) = Manifest::newest(dir, Epoch(u64::MAX))? else { return Ok(None) };
    match manifest.mode {
        Mode::Database => database::inspect(dir, &manifest).map(Some),
        Mode::File => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_told_in_characters_with_what_stands_there() {
        let text = "SELECT 'é' FORM backlog";
        let told = |position| at(text, position);
        assert_eq!(told(text.find("FORM")), ", at character 12: FORM backlog");
        assert_eq!(told(Some(text.len())), ", at its end (character 24)");
        assert_eq!(told(None), "");
        assert_eq!(told(Some(9)), "", "not between two characters");
        assert_eq!(told(Some(1_000)), "");
    }
}
