//! A dead letter as people and programs see it: where it comes from, and what has happened to it.

use batonmq::client::Browsed;
use batonmq::model::message::Message;
use serde::Serialize;

use crate::cli::output::{Output, grouped};
use crate::cli::received::Content;

/// The topic that a letter comes from. What has it is a letter.
pub const TOPIC: &str = "baton.dead.topic";
/// The group in which it died.
pub const GROUP: &str = "baton.dead.group";
/// What ended its last attempt.
pub const REASON: &str = "baton.dead.reason";
/// When it died.
pub const DIED_AT: &str = "baton.dead.at";
const PATTERN: &str = "baton.dead.pattern";
const OFFSET: &str = "baton.dead.offset";
const ATTEMPTS: &str = "baton.dead.attempts";
const DELIVERIES: &str = "baton.dead.deliveries";
const PUBLISHED_AT: &str = "baton.dead.published-at";
const FAILURES: &str = "baton.dead.failures";
const HISTORY: &str = "baton.dead.history";

/// The head of a table of letters.
pub const HEAD: [&str; 8] = ["offset", "topic", "group", "attempts", "reason", "died at", "bytes", "said"];
/// Characters of what a consumer said that a table shows.
const SAID_CHARS: usize = 40;

/// The text of a header; empty where there is none.
pub fn text(message: &Message, name: &str) -> String {
    message.header(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

/// One attempt that failed.
#[derive(Serialize)]
struct Attempt {
    at: String,
    reason: String,
    /// What the consumer said.
    text: Option<String>,
}

/// What is told of a letter.
#[derive(Serialize)]
pub struct Letter<'a> {
    dead_letter_topic: &'a str,
    offset: u64,
    topic: String,
    /// Its place there: an offset, or priority and offset.
    origin_offset: String,
    group: String,
    /// The pattern that the group is a group of, where it is none of the topic itself.
    pattern: Option<String>,
    /// Attempts that failed.
    attempts: Option<u32>,
    /// How often it was handed out.
    deliveries: Option<u32>,
    reason: String,
    published_at: String,
    died_at: String,
    bytes: usize,
    /// The last attempts, the oldest first.
    failures: Vec<Attempt>,
    /// A line for each earlier death.
    history: Vec<String>,
}

impl<'a> Letter<'a> {
    /// What is told of a letter in the dead-letter topic `place`.
    pub fn new(place: &'a str, browsed: &Browsed) -> Self {
        let text = |name| text(&browsed.message, name);
        let attempt = |line: &str| {
            let mut words = line.splitn(3, ' ').map(str::to_owned);
            let mut word = || words.next().unwrap_or_default();
            Attempt { at: word(), reason: word(), text: words.next() }
        };
        Self {
            dead_letter_topic: place,
            offset: browsed.offset.0,
            topic: text(TOPIC),
            origin_offset: text(OFFSET),
            group: text(GROUP),
            pattern: browsed.message.header(PATTERN).map(|_| text(PATTERN)),
            attempts: text(ATTEMPTS).parse().ok(),
            deliveries: text(DELIVERIES).parse().ok(),
            reason: text(REASON),
            published_at: text(PUBLISHED_AT),
            died_at: text(DIED_AT),
            bytes: browsed.message.body.len(),
            failures: text(FAILURES).lines().map(attempt).collect(),
            history: text(HISTORY).lines().map(str::to_owned).collect(),
        }
    }

    /// Whether a header is among what it tells.
    pub fn tells(header: &str) -> bool {
        header.starts_with("baton.dead.")
    }

    /// Where it is and why, in a sentence.
    pub fn sentence(&self) -> String {
        let Self { dead_letter_topic, offset, reason, died_at, .. } = self;
        let attempts = number(self.attempts);
        let said = self.failures.last().and_then(|failure| failure.text.as_deref());
        let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
        format!(
            "it is dead letter {offset} of {dead_letter_topic} since {died_at}: {reason}{said}, failed {attempts} times"
        )
    }

    /// Its row in a table.
    pub fn row(self) -> [String; 8] {
        let said = self.failures.last().and_then(|failure| failure.text.clone()).unwrap_or_default();
        let short: String = said.chars().take(SAID_CHARS).collect();
        let said = if short.len() < said.len() { format!("{short}...") } else { said };
        let bytes = grouped(self.bytes as u64);
        let attempts = number(self.attempts);
        [self.offset.to_string(), self.topic, self.group, attempts, self.reason, self.died_at, bytes, said]
    }

    /// Writes it for people.
    pub fn print(&self, output: &mut Output) -> anyhow::Result<()> {
        let Self { dead_letter_topic, offset, topic, origin_offset, group, reason, .. } = self;
        output.line(format_args!("dead letter: {dead_letter_topic} {offset}"))?;
        let pattern =
            self.pattern.as_ref().map_or_else(String::new, |pattern| format!(" of pattern {pattern}"));
        output.line(format_args!("from: topic {topic}, offset {origin_offset}, group {group}{pattern}"))?;
        output.line(format_args!("published at: {}", self.published_at))?;
        output.line(format_args!("died at: {}", self.died_at))?;
        let (attempts, deliveries) = (number(self.attempts), number(self.deliveries));
        output.line(format_args!("reason: {reason}, failed attempts {attempts}, handed out {deliveries}"))?;
        for Attempt { at, reason, text } in &self.failures {
            let said = text.as_ref().map_or_else(String::new, |text| format!(": {text}"));
            output.line(format_args!("failed at: {at} {reason}{said}"))?;
        }
        self.history.iter().try_for_each(|line| output.line(format_args!("died before: {line}")))
    }
}

fn number(number: Option<u32>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// A letter with its message.
#[derive(Serialize)]
pub struct Whole<'a> {
    #[serde(flatten)]
    letter: Letter<'a>,
    #[serde(flatten)]
    content: Content<'a>,
}

impl<'a> Whole<'a> {
    /// The letter that `message` is.
    pub fn new(letter: Letter<'a>, message: &'a Message) -> Self {
        Self { letter, content: Content::new(message) }
    }
}
