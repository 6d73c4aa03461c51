//! Conditions and values of a filter, and what they are for one message.
//!
//! The parser has seen to it that the values of a condition are comparable and that the tree is not deep. Nothing
//! here allocates, and nothing fails: what cannot be computed is UNKNOWN.

use std::cmp::Ordering;

use super::number::{Number, Operator};
use super::pattern::Pattern;
use crate::model::message::Parts;

/// Whether a condition is true; `None` is SQL's UNKNOWN.
pub(super) type Truth = Option<bool>;

#[derive(Debug)]
pub(super) enum Condition {
    /// A value that says itself whether it is true: a header that is `true` or `false`.
    Flag(Value),
    Not(Box<Condition>),
    /// AND over all of them. One level of the tree, however many there are.
    All(Vec<Condition>),
    /// OR over all of them.
    Any(Vec<Condition>),
    Compare(Value, Comparison, Value),
    Between {
        value: Value,
        low: Value,
        high: Value,
    },
    In(Value, List),
    Like(Value, Pattern),
    IsNull(Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug)]
pub(super) enum Value {
    Text(Box<str>),
    Number(Number),
    Boolean(bool),
    /// The first header of this name.
    Header(Box<str>),
    Key,
    Priority,
    Size,
    Negated(Box<Value>),
    /// A first value and what is done to it, from left to right. One level of the tree, however many there are.
    Arithmetic(Box<Value>, Vec<(Operator, Value)>),
}

/// What a value is known to be before there is a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    Boolean,
    /// A text of the message, which is read as what it is compared with.
    Untyped,
}

/// The values of IN. They are sorted before they are searched.
#[derive(Debug, Default)]
pub(super) struct List {
    pub texts: Vec<Box<str>>,
    pub numbers: Vec<Number>,
}

/// A value for one message.
#[derive(Clone, Copy)]
enum Read<'a> {
    Text(&'a str),
    Number(Number),
    Boolean(bool),
    Untyped(&'a str),
}

impl Condition {
    pub fn truth(&self, message: &Parts<'_>) -> Truth {
        match self {
            Self::Flag(value) => value.read(message)?.boolean(),
            Self::Not(condition) => condition.truth(message).map(|truth| !truth),
            Self::All(conditions) => fold(conditions, message, false),
            Self::Any(conditions) => fold(conditions, message, true),
            Self::Compare(left, comparison, right) => {
                left.read(message)?.compare(right.read(message)?).map(|order| comparison.holds(order))
            }
            Self::Between { value, low, high } => {
                let value = value.read(message)?;
                let above = low.read(message).and_then(|low| value.compare(low)).map(Ordering::is_ge);
                let below = high.read(message).and_then(|high| value.compare(high)).map(Ordering::is_le);
                match (above, below) {
                    (Some(false), _) | (_, Some(false)) => Some(false),
                    (Some(true), Some(true)) => Some(true),
                    _ => None,
                }
            }
            Self::In(value, list) => list.contains(value.read(message)?),
            Self::Like(value, pattern) => value.read(message)?.text().map(|text| pattern.matches(text)),
            Self::IsNull(value) => Some(value.is_missing(message)),
        }
    }
}

/// The first condition that is `decisive` decides; where none is, one that is UNKNOWN makes the whole UNKNOWN.
fn fold(conditions: &[Condition], message: &Parts<'_>, decisive: bool) -> Truth {
    let mut truth = Some(!decisive);
    for condition in conditions {
        match condition.truth(message) {
            Some(decided) if decided == decisive => return Some(decisive),
            Some(_) => {}
            None => truth = None,
        }
    }
    truth
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::Unequal => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Value {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Text(_) => Kind::Text,
            Self::Boolean(_) => Kind::Boolean,
            Self::Header(_) | Self::Key => Kind::Untyped,
            Self::Number(_) | Self::Priority | Self::Size | Self::Negated(_) | Self::Arithmetic(..) => {
                Kind::Number
            }
        }
    }

    fn read<'a>(&'a self, message: &Parts<'a>) -> Option<Read<'a>> {
        match self {
            Self::Text(text) => Some(Read::Text(text)),
            Self::Number(number) => Some(Read::Number(*number)),
            Self::Boolean(boolean) => Some(Read::Boolean(*boolean)),
            Self::Header(name) => untyped(header(message, name)?),
            Self::Key => untyped(message.key?),
            Self::Priority => Some(Read::Number(Number::Whole(message.priority.into()))),
            Self::Size => Some(Read::Number(Number::Whole(message.body.len() as i128))),
            Self::Negated(value) => Some(Read::Number(value.read(message)?.number()?.negated())),
            Self::Arithmetic(first, steps) => {
                let mut result = first.read(message)?.number()?;
                for (operator, value) in steps {
                    result = result.calculate(*operator, value.read(message)?.number()?)?;
                }
                Some(Read::Number(result))
            }
        }
    }

    fn is_missing(&self, message: &Parts<'_>) -> bool {
        match self {
            Self::Header(name) => header(message, name).is_none(),
            Self::Key => message.key.is_none(),
            _ => false,
        }
    }
}

fn header<'a>(message: &Parts<'a>, name: &str) -> Option<&'a [u8]> {
    message.headers().find(|(header, _)| *header == name).map(|(_, value)| value)
}

fn untyped(bytes: &[u8]) -> Option<Read<'_>> {
    std::str::from_utf8(bytes).ok().map(Read::Untyped)
}

impl Kind {
    /// With its article, for an error.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Number => "a number",
            Self::Boolean => "TRUE or FALSE",
            Self::Untyped => "a header",
        }
    }
}

impl<'a> Read<'a> {
    fn compare(self, right: Self) -> Option<Ordering> {
        match (self, right) {
            (Self::Number(_), _) | (_, Self::Number(_)) => Some(self.number()?.cmp(&right.number()?)),
            (Self::Boolean(_), _) | (_, Self::Boolean(_)) => Some(self.boolean()?.cmp(&right.boolean()?)),
            (Self::Untyped(left), Self::Untyped(right)) => {
                match (Number::parse(left), Number::parse(right)) {
                    (Some(left), Some(right)) => Some(left.cmp(&right)),
                    _ => Some(left.cmp(right)),
                }
            }
            _ => Some(self.text()?.cmp(right.text()?)),
        }
    }

    fn number(self) -> Option<Number> {
        match self {
            Self::Number(number) => Some(number),
            Self::Untyped(text) => Number::parse(text),
            Self::Text(_) | Self::Boolean(_) => None,
        }
    }

    fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) | Self::Untyped(text) => Some(text),
            Self::Number(_) | Self::Boolean(_) => None,
        }
    }

    fn boolean(self) -> Truth {
        match self {
            Self::Boolean(boolean) => Some(boolean),
            Self::Untyped(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Self::Untyped(text) if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        }
    }
}

impl List {
    pub fn len(&self) -> usize {
        self.texts.len() + self.numbers.len()
    }

    pub fn sorted(mut self) -> Self {
        self.texts.sort_unstable();
        self.numbers.sort_unstable();
        self
    }

    /// OR over comparisons with each value.
    fn contains(&self, value: Read<'_>) -> Truth {
        if let Some(text) = value.text()
            && self.texts.binary_search_by(|listed| (**listed).cmp(text)).is_ok()
        {
            return Some(true);
        }
        if self.numbers.is_empty() {
            return Some(false);
        }
        Some(self.numbers.binary_search(&value.number()?).is_ok())
    }
}
