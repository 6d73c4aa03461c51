//! Filters from outside: a text is refused at a place inside it, or read as a filter that every message answers, and
//! never together with its opposite.
//!
//! An ASCII byte is itself and every other one a word of the language: the fuzzer would find few of them.
//!
//! ```sh
//! cargo +nightly fuzz run filters
//! ```
#![no_main]

use batonmq::model::filter::Filter;
use batonmq::model::message::{Message, MessageBlock, Parts};
use libfuzzer_sys::fuzz_target;

const WORDS: [&str; 32] = [
    " AND ",
    " OR ",
    "NOT ",
    " IN (",
    " LIKE '",
    " ESCAPE '",
    " IS NULL",
    " IS NOT NULL",
    " BETWEEN ",
    " TRUE ",
    " FALSE ",
    "@key",
    "@priority",
    "@size",
    " number ",
    " decimal ",
    " flag ",
    " text ",
    "\"binary\"",
    "''",
    "<>",
    "<=",
    ">=",
    " - ",
    "170141183460469231731687303715884105727",
    "9007199254740993",
    "1.5e308",
    "0.1",
    "%",
    "_",
    "ö",
    "\u{3000}",
];

fuzz_target!(|bytes: &[u8]| {
    let mut text = String::new();
    for &byte in bytes {
        if byte.is_ascii() {
            text.push(byte.into());
        } else {
            text.push_str(WORDS[usize::from(byte) % WORDS.len()]);
        }
    }
    let filter = match Filter::parse(&text) {
        Ok(filter) => filter,
        Err(error) => {
            assert_eq!(error.column(), 1 + text[..error.position()].chars().count());
            assert_eq!(error.picture().matches('\n').count(), 1);
            return;
        }
    };
    assert_eq!(filter.as_str(), text);
    let headers = [
        ("number", "9007199254740993".into()),
        ("decimal", "-0.5".into()),
        ("flag", "true".into()),
        ("text", text.clone().into()),
        ("a", "aöa".into()),
        ("binary", vec![0xc3].into()),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
    let message = Message { key: Some("a".into()), headers, priority: 4, ..Message::new("body") };
    // The opposite may be one too deep.
    let opposite = Filter::parse(&format!("NOT ({text})"));
    for encoded in MessageBlock::encode([&message, &Message::default()]).iter() {
        let message = Parts::read(&encoded, 0).expect("own messages are valid");
        let both = filter.matches(&message) && opposite.as_ref().is_ok_and(|filter| filter.matches(&message));
        assert!(!both, "{filter}");
    }
});
