//! Filters: conditions over the headers and properties of a message, in the words of SQL-92 and of JMS selectors.
//!
//! `docs/filters.md` is the language for its users. A filter is read once and then asked for every message, without
//! I/O, clock or allocation. Truth has three values, as in SQL; a message is selected only by what is TRUE.
//!
//! Filters come from outside, so the text, its depth and its size have limits, and the time for a message is in
//! proportion to the filter times the message, whatever both say.
//!
//! * `lexer`: words and signs.
//! * `parser`: the grammar, and which values can be compared.
//! * `condition`: what a condition is for a message.
//! * `number`, `pattern`: numbers, and the patterns of `LIKE`.

mod condition;
mod error;
mod lexer;
mod number;
mod parser;
mod pattern;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::error::{FilterError, FilterProblem};

use self::condition::Condition;
use super::message::Parts;

/// A condition that messages match or do not match. Cloning shares it; two are equal if their texts are.
///
/// ```
/// use batonmq::model::filter::Filter;
///
/// let filter = Filter::parse("region IN ('eu', 'us') AND NOT price < 10").unwrap();
/// assert_eq!(filter.as_str(), "region IN ('eu', 'us') AND NOT price < 10");
/// let error = Filter::parse("price = > 10").unwrap_err();
/// assert_eq!(error.to_string(), "column 9: expected a value, such as price, 'text' or 3, found \">\"");
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Filter(Arc<Parsed>);

/// What a message without key and headers costs, in bytes of headers.
const EFFORT_BASE: u64 = 64;

struct Parsed {
    text: Box<str>,
    condition: Condition,
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// Says what is wrong, where, and what would be right.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let condition = parser::parse(text)?;
        Ok(Self(Arc::new(Parsed { text: text.into(), condition })))
    }

    /// Whether the filter is TRUE for `message`, and neither FALSE nor UNKNOWN.
    #[must_use]
    pub fn matches(&self, message: &Parts<'_>) -> bool {
        self.0.condition.truth(message) == Some(true)
    }

    /// About how much work it is, at most, to ask for `message`: in proportion to the filter times what it looks at.
    /// Some 15 of these are a nanosecond.
    #[must_use]
    pub fn effort(&self, message: &Parts<'_>) -> u64 {
        let looked_at = message.key.map_or(0, <[u8]>::len) + message.headers_encoded.len();
        self.as_str().len() as u64 * (EFFORT_BASE + looked_at as u64)
    }

    /// The text that was read.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0.text
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Filter {}

impl Hash for Filter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl std::str::FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Filter {
    type Error = FilterError;

    fn try_from(text: String) -> Result<Self, FilterError> {
        Self::parse(&text)
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> Self {
        filter.as_str().to_owned()
    }
}
