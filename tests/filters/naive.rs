//! Random conditions and messages, and what a condition is by the book: one rule after the other, everything copied,
//! numbers as `f64`, which has every number that occurs here.

use std::cmp::Ordering;
use std::fmt;

use batonmq::model::message::Message;
use proptest::prelude::*;

const HEADERS: [&str; 4] = ["a", "b", "x-c", "missing"];
const VALUES: [&str; 14] =
    ["", "0", "1", "2", "3", "-1", "1.5", "2.0", "02", "ab", "abba", "true", "FALSE", "b\u{f6}"];
const NUMBERS: [&str; 8] = ["0", "1", "2", "3", "1.5", ".5", "2e0", "-1"];
const COMPARISONS: [&str; 6] = ["=", "<>", "<", "<=", ">", ">="];

#[derive(Clone, Debug)]
pub enum Term {
    Text(String),
    Number(&'static str),
    Header(&'static str),
    Key,
    Priority,
    Size,
    Negated(Box<Term>),
    Calculated(Box<Term>, char, Box<Term>),
}

#[derive(Clone, Debug)]
pub enum Condition {
    Constant(bool),
    Flag(Term),
    Compare(Term, &'static str, Term),
    In(Term, Vec<Term>),
    Like(Term, String),
    Between(Term, Term, Term),
    IsNull(Term),
    Not(Box<Condition>),
    And(Vec<Condition>),
    Or(Vec<Condition>),
}

/// A value for one message. What is raw came with it and is read as what it is compared with.
#[derive(Clone, PartialEq)]
enum Value {
    Text(String),
    Number(f64),
    Raw(String),
}

pub fn message() -> impl Strategy<Value = Message> {
    let value = || prop::option::weighted(0.8, prop::sample::select(&VALUES[..]));
    ([value(), value(), value()], value(), 0_u8..4, 0_usize..4, any::<bool>()).prop_map(
        |(values, key, priority, size, binary)| {
            let named = HEADERS.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?)));
            let mut headers: Vec<_> = named.map(|(name, value)| (name.to_owned(), value.into())).collect();
            if binary && let Some((_, value)) = headers.first_mut() {
                *value = vec![0xc3].into();
            }
            // Only the first of a name counts.
            headers.extend(headers.first().cloned().map(|(name, _)| (name, "1".into())));
            let key = key.map(Into::into);
            Message { key, headers, priority, body: vec![0; size].into(), ..Message::default() }
        },
    )
}

fn raw() -> impl Strategy<Value = Term> {
    prop_oneof![6 => prop::sample::select(&HEADERS[..]).prop_map(Term::Header), 1 => Just(Term::Key)]
}

fn text() -> impl Strategy<Value = Term> {
    prop_oneof![prop::sample::select(&VALUES[..]).prop_map(str::to_owned), "[ab']{0,2}"].prop_map(Term::Text)
}

fn constant() -> impl Strategy<Value = Term> {
    prop::sample::select(&NUMBERS[..]).prop_map(Term::Number)
}

fn number() -> impl Strategy<Value = Term> {
    let leaf = prop_oneof![2 => constant(), 4 => raw(), 1 => Just(Term::Priority), 1 => Just(Term::Size)];
    leaf.prop_recursive(3, 8, 2, |inner| {
        let pair = (inner.clone(), prop::sample::select(&['+', '-', '*', '/'][..]), inner.clone());
        prop_oneof![
            1 => inner.prop_map(|term| Term::Negated(term.into())),
            3 => pair.prop_map(|(left, operator, right)| Term::Calculated(left.into(), operator, right.into())),
        ]
    })
}

pub fn condition() -> impl Strategy<Value = Condition> {
    let comparison = || prop::sample::select(&COMPARISONS[..]);
    let compare = |(left, comparison, right)| Condition::Compare(left, comparison, right);
    let between = |(value, low, high)| Condition::Between(value, low, high);
    let leaf = prop_oneof![
        any::<bool>().prop_map(Condition::Constant),
        raw().prop_map(Condition::Flag),
        (number(), comparison(), number()).prop_map(compare),
        (raw(), comparison(), text()).prop_map(compare),
        (text(), comparison(), raw()).prop_map(compare),
        (number(), number(), number()).prop_map(between),
        (raw(), text(), text()).prop_map(between),
        (raw(), prop::collection::vec(prop_oneof![text(), constant()], 1..5))
            .prop_map(|(value, list)| Condition::In(value, list)),
        (number(), prop::collection::vec(constant(), 1..5))
            .prop_map(|(value, list)| Condition::In(value, list)),
        (raw(), "[ab1ö%_]{0,4}").prop_map(|(value, pattern)| Condition::Like(value, pattern)),
        raw().prop_map(Condition::IsNull),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let some = prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            inner.prop_map(|condition| Condition::Not(condition.into())),
            some.clone().prop_map(Condition::And),
            some.prop_map(Condition::Or),
        ]
    })
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "'{}'", text.replace('\'', "''")),
            Self::Number(number) => write!(f, "{number}"),
            Self::Header(name) => write!(f, "{name}"),
            Self::Key => write!(f, "@key"),
            Self::Priority => write!(f, "@priority"),
            Self::Size => write!(f, "@size"),
            Self::Negated(term) => write!(f, "-{term}"),
            Self::Calculated(left, operator, right) => write!(f, "({left} {operator} {right})"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |f: &mut fmt::Formatter<'_>, conditions: &[Self], word: &str| {
            let conditions: Vec<_> = conditions.iter().map(|condition| format!("({condition})")).collect();
            write!(f, "{}", conditions.join(word))
        };
        match self {
            Self::Constant(constant) => write!(f, "{constant}"),
            Self::Flag(term) => write!(f, "{term}"),
            Self::Compare(left, comparison, right) => write!(f, "{left} {comparison} {right}"),
            Self::In(term, list) => {
                let list: Vec<_> = list.iter().map(Term::to_string).collect();
                write!(f, "{term} IN ({})", list.join(", "))
            }
            Self::Like(term, pattern) => write!(f, "{term} LIKE '{pattern}'"),
            Self::Between(value, low, high) => write!(f, "{value} BETWEEN {low} AND {high}"),
            Self::IsNull(term) => write!(f, "{term} IS NULL"),
            Self::Not(condition) => write!(f, "NOT ({condition})"),
            Self::And(conditions) => listed(f, conditions, " AND "),
            Self::Or(conditions) => listed(f, conditions, " OR "),
        }
    }
}

impl Term {
    fn value(&self, message: &Message) -> Option<Value> {
        let raw = |bytes: &[u8]| Some(Value::Raw(String::from_utf8(bytes.to_vec()).ok()?));
        match self {
            Self::Text(text) => Some(Value::Text(text.clone())),
            Self::Number(number) => number.parse().ok().map(Value::Number),
            Self::Header(name) => raw(message.header(name)?),
            Self::Key => raw(message.key.as_ref()?),
            Self::Priority => Some(Value::Number(message.priority.into())),
            Self::Size => Some(Value::Number(message.body.len() as f64)),
            Self::Negated(term) => Some(Value::Number(-term.value(message)?.number()?)),
            Self::Calculated(left, operator, right) => {
                let [left, right] = [left.value(message)?.number()?, right.value(message)?.number()?];
                let result = match operator {
                    '+' => left + right,
                    '-' => left - right,
                    '*' => left * right,
                    _ => left / right,
                };
                result.is_finite().then_some(Value::Number(result))
            }
        }
    }

    fn compare(&self, comparison: &str, other: &Self, message: &Message) -> Option<bool> {
        let order = match (self.value(message)?, other.value(message)?) {
            (left @ Value::Number(_), right) | (left, right @ Value::Number(_)) => {
                left.number()?.partial_cmp(&right.number()?)?
            }
            (Value::Raw(left), Value::Raw(right)) => {
                match (Value::Raw(left.clone()).number(), Value::Raw(right.clone()).number()) {
                    (Some(left), Some(right)) => left.partial_cmp(&right)?,
                    _ => left.cmp(&right),
                }
            }
            (Value::Text(left) | Value::Raw(left), Value::Text(right) | Value::Raw(right)) => {
                left.cmp(&right)
            }
        };
        Some(match comparison {
            "=" => order == Ordering::Equal,
            "<>" => order != Ordering::Equal,
            "<" => order == Ordering::Less,
            "<=" => order != Ordering::Greater,
            ">" => order == Ordering::Greater,
            _ => order != Ordering::Less,
        })
    }
}

impl Value {
    fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Raw(text) => text.parse().ok(),
            Self::Text(_) => None,
        }
    }
}

impl Condition {
    /// TRUE, FALSE or UNKNOWN.
    pub fn truth(&self, message: &Message) -> Option<bool> {
        match self {
            Self::Constant(constant) => Some(*constant),
            Self::Flag(term) => match term.value(message)? {
                Value::Raw(text) => text.to_lowercase().parse().ok(),
                _ => None,
            },
            Self::Compare(left, comparison, right) => left.compare(comparison, right, message),
            Self::In(term, list) => {
                or(list.iter().map(|element| term.compare("=", element, message)).collect())
            }
            Self::Like(term, pattern) => match term.value(message)? {
                Value::Raw(text) => {
                    let [text, pattern] = [&text, pattern].map(|text| text.chars().collect::<Vec<_>>());
                    Some(like(&text, &pattern))
                }
                _ => None,
            },
            Self::Between(value, low, high) => {
                and(vec![value.compare(">=", low, message), value.compare("<=", high, message)])
            }
            Self::IsNull(Term::Header(name)) => Some(message.header(name).is_none()),
            Self::IsNull(_) => Some(message.key.is_none()),
            Self::Not(condition) => condition.truth(message).map(|truth| !truth),
            Self::And(conditions) => {
                and(conditions.iter().map(|condition| condition.truth(message)).collect())
            }
            Self::Or(conditions) => or(conditions.iter().map(|condition| condition.truth(message)).collect()),
        }
    }
}

fn and(truths: Vec<Option<bool>>) -> Option<bool> {
    if truths.contains(&Some(false)) {
        return Some(false);
    }
    if truths.contains(&None) { None } else { Some(true) }
}

fn or(truths: Vec<Option<bool>>) -> Option<bool> {
    and(truths.into_iter().map(|truth| truth.map(|truth| !truth)).collect()).map(|truth| !truth)
}

fn like(text: &[char], pattern: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['%', rest @ ..] => (0..=text.len()).any(|skipped| like(&text[skipped..], rest)),
        [piece, rest @ ..] => {
            text.first().is_some_and(|character| *piece == '_' || piece == character)
                && like(&text[1..], rest)
        }
    }
}
