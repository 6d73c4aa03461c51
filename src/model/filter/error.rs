//! Why a text is not a filter: what is wrong, where, and what would be right.

use crate::model::limits::{
    FILTER_BYTES_MAX, FILTER_DEPTH_MAX, FILTER_LIST_MAX, FILTER_NODES_MAX, FILTER_PATTERN_RUN_MAX,
    HEADER_NAME_BYTES_MAX,
};

/// Why a text is not a filter, and where. In one line with the column; [`picture`](Self::picture) shows the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct FilterError {
    problem: FilterProblem,
    position: usize,
    column: usize,
    excerpt: String,
    caret: usize,
}

/// What is wrong with a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterProblem {
    /// More than [`FILTER_BYTES_MAX`]; the value is what it has.
    #[error("the filter has {0} bytes, the limit is {FILTER_BYTES_MAX}")]
    TooLong(usize),
    /// Nested deeper than [`FILTER_DEPTH_MAX`].
    #[error(
        "parentheses, NOT and signs are more than {FILTER_DEPTH_MAX} deep; leave out those that change nothing"
    )]
    TooDeep,
    /// More than [`FILTER_NODES_MAX`].
    #[error(
        "the filter has more than {FILTER_NODES_MAX} values outside lists; write x IN (1, 2) for x = 1 OR x = 2"
    )]
    TooLarge,
    /// More than [`FILTER_LIST_MAX`].
    #[error("the list has more than {FILTER_LIST_MAX} values; use a second IN, with OR between them")]
    ListTooLong,
    /// Something else must stand here.
    #[error("expected {wanted}, found {found}")]
    Expected {
        /// What may stand here, with examples.
        wanted: &'static str,
        /// What stands here.
        found: String,
    },
    /// A word or sign of another language.
    #[error("{found} is not known here, write {instead}")]
    Foreign {
        /// What stands here.
        found: &'static str,
        /// What means the same in a filter.
        instead: &'static str,
    },
    /// A character that can only stand inside quotes.
    #[error("character {0:?} can stand only in quotes: 'text' or \"header name\"")]
    Character(char),
    /// A quote without its other end.
    #[error("the quote that opens here is not closed; a quote in a text is written twice, as in 'it''s'")]
    QuoteOpen,
    /// A name between double quotes that no header can have; the value is its length in bytes.
    #[error("a header name has 1 to {HEADER_NAME_BYTES_MAX} bytes, this one has {0}")]
    HeaderName(usize),
    /// A property that messages do not have.
    #[error(
        "@{0} is not known: there are @key, @priority and @size; a header of this name is written \"@{0}\""
    )]
    Property(String),
    /// A number with something behind it that does not belong to it.
    #[error(
        "{0:?} is not a number; a text is written 'text', a header whose name begins with a digit \"7th\""
    )]
    Number(String),
    /// A number that is not kept exactly.
    #[error("number {0} is too large; whole numbers have at most 38 digits, decimal ones are below 1.8e308")]
    NumberTooLarge(String),
    /// Values that are never comparable.
    #[error("{right} cannot be compared with {left}; numbers stand without quotes, texts in single quotes")]
    Incomparable {
        /// What stands on the left.
        left: &'static str,
        /// What stands on the right.
        right: &'static str,
    },
    /// TRUE or FALSE with an operator that orders.
    #[error("TRUE and FALSE have no order; compare them with = or <>")]
    Unordered,
    /// A value where a condition must stand.
    #[error("{0} is no condition; write a comparison, as in color = 'blue'")]
    NotACondition(&'static str),
    /// A condition where a value must stand.
    #[error("a condition is no value; connect conditions with AND and OR")]
    NotAValue,
    /// Arithmetic with something else.
    #[error("{0} is no number; calculate with headers and numbers")]
    NotANumber(&'static str),
    /// LIKE on something else.
    #[error("{0} is no text; use LIKE with a header or @key")]
    NotAText(&'static str),
    /// IS NULL of something that is always there.
    #[error("only a header or @key can be missing; write IS NULL behind its name")]
    NeverNull,
    /// An escape that is not one character.
    #[error("ESCAPE takes one character in quotes, as in ESCAPE '!'")]
    EscapeLength,
    /// An escape in a pattern in front of something that has no meaning of its own.
    #[error("in this pattern {0:?} must be followed by %, _ or itself")]
    Escape(char),
    /// More than [`FILTER_PATTERN_RUN_MAX`].
    #[error(
        "between two % of a pattern stand at most {FILTER_PATTERN_RUN_MAX} characters where _ is among them; use a second LIKE"
    )]
    PatternRunTooLong,
}

/// Characters of a long filter that [`FilterError::picture`] shows before the place and behind it.
const EXCERPT_BEFORE: usize = 48;
const EXCERPT_BEHIND: usize = 24;

impl FilterError {
    /// `position` is in bytes, where a character of `text` begins or at its end.
    pub(super) fn new(text: &str, position: usize, problem: FilterProblem) -> Self {
        let (before, behind) = text.split_at(position);
        let column = 1 + before.chars().count();
        let skipped = (column - 1).saturating_sub(EXCERPT_BEFORE);
        let mut excerpt = String::from(if skipped > 0 { "..." } else { "" });
        let caret = excerpt.len() + column - 1 - skipped;
        // A line break or a tab would move the caret away from its place.
        let shown = before.chars().skip(skipped).chain(behind.chars().take(EXCERPT_BEHIND));
        excerpt.extend(shown.map(|character| if character.is_control() { ' ' } else { character }));
        if behind.chars().nth(EXCERPT_BEHIND).is_some() {
            excerpt.push_str("...");
        }
        Self { problem, position, column, excerpt, caret }
    }

    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> &FilterProblem {
        &self.problem
    }

    /// Where, in bytes from 0.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Where, in characters from 1.
    #[must_use]
    pub fn column(&self) -> usize {
        self.column
    }

    /// Two lines: the filter around the place, and below it a caret at the place with what is wrong.
    ///
    /// ```text
    /// orders > = 3
    ///          ^ expected a value, such as price, 'text' or 3, found "="
    /// ```
    #[must_use]
    pub fn picture(&self) -> String {
        format!("{}\n{}^ {}", self.excerpt, " ".repeat(self.caret), self.problem)
    }
}
