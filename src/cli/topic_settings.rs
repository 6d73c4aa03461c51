//! Flags for the settings of a topic, and the settings for people.

use batonmq::config::value::{self, ValueError};
use batonmq::model::settings::{Overflow, Retention, TopicSettings};
use clap::{Args, ValueEnum};

use super::output::{counted, milliseconds_text};

/// What a limit is called that there is not.
const NONE: &str = "none";

/// Settings of a topic.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Settings")]
pub struct TopicSettingsArgs {
    /// When messages go, whichever comes first: acked (by all groups), age=7d, size=10GiB, count=1000, with commas
    /// between them; settled messages stay where acked is left out. keep: never
    #[arg(long, value_name = "WHEN", value_parser = retention)]
    retention: Option<Retention>,
    /// The topic is full with so many messages; none for no limit
    #[arg(long, value_name = "N", value_parser = limit)]
    max_messages: Option<Limit>,
    /// The topic is full with so many bytes of messages, about; none for no limit
    #[arg(long, value_name = "SIZE", value_parser = size_limit)]
    max_bytes: Option<Limit>,
    /// What happens when it is full
    #[arg(long, value_enum)]
    overflow: Option<OverflowName>,
    /// Of several messages with one key only the newest stays
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    last_value: Option<bool>,
    /// The topic goes with its last group
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    temporary: Option<bool>,
}

/// A limit, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<u64>);

impl TopicSettingsArgs {
    /// No flag at all.
    pub const NONE: Self = Self {
        retention: None,
        max_messages: None,
        max_bytes: None,
        overflow: None,
        last_value: None,
        temporary: None,
    };

    /// The settings with what the flags change.
    pub fn apply(&self, mut settings: TopicSettings) -> TopicSettings {
        settings.retention = self.retention.unwrap_or(settings.retention);
        settings.max_messages = self.max_messages.map_or(settings.max_messages, |limit| limit.0);
        settings.max_bytes = self.max_bytes.map_or(settings.max_bytes, |limit| limit.0);
        settings.overflow = self.overflow.map_or(settings.overflow, Overflow::from);
        settings.last_value = self.last_value.unwrap_or(settings.last_value);
        settings.temporary = self.temporary.unwrap_or(settings.temporary);
        settings
    }
}

/// What happens to messages for a topic that is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OverflowName {
    /// Their producer waits until there is room
    Block,
    /// They are refused
    Reject,
    /// The oldest messages of the topic go
    DropOldest,
}

impl From<OverflowName> for Overflow {
    fn from(name: OverflowName) -> Self {
        match name {
            OverflowName::Block => Self::Block,
            OverflowName::Reject => Self::Reject,
            OverflowName::DropOldest => Self::DropOldest,
        }
    }
}

fn retention(text: &str) -> Result<Retention, ValueError> {
    let wrong = || {
        ValueError::new(text, "keep, or acked, age=DURATION, size=SIZE and count=N with commas between them")
    };
    let mut retention = Retention { acked: false, max_age_ms: None, max_bytes: None, max_messages: None };
    if text == "keep" {
        return Ok(retention);
    }
    for part in text.split(',') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let is_new = match name {
            "acked" if value.is_empty() => !std::mem::replace(&mut retention.acked, true),
            "age" => {
                let age = value::duration(value)?.as_millis();
                let age = u64::try_from(age).unwrap_or(u64::MAX);
                retention.max_age_ms.replace(age).is_none()
            }
            "size" => retention.max_bytes.replace(value::size(value)?).is_none(),
            "count" => retention.max_messages.replace(value::integer(value)?).is_none(),
            _ => false,
        };
        if !is_new {
            return Err(wrong());
        }
    }
    Ok(retention)
}

fn limit(text: &str) -> Result<Limit, ValueError> {
    if text == NONE { Ok(Limit(None)) } else { value::integer(text).map(|max| Limit(Some(max))) }
}

fn size_limit(text: &str) -> Result<Limit, ValueError> {
    if text == NONE { Ok(Limit(None)) } else { value::size(text).map(|max| Limit(Some(max))) }
}

/// When the messages of a topic go, for people.
pub fn retention_text(retention: &Retention) -> String {
    let Retention { acked, max_age_ms, max_bytes, max_messages } = *retention;
    let parts = [
        acked.then(|| "all groups have settled them".to_owned()),
        max_age_ms.map(|age| format!("they are older than {}", milliseconds_text(age))),
        max_bytes.map(|bytes| format!("newer ones take {}", value::size_text(bytes))),
        max_messages.map(|count| format!("there are {} newer", counted(count, "message"))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "kept".to_owned() } else { format!("kept until {}", parts.join(" or ")) }
}

/// The other settings of a topic, for people: a line for each that is not the default.
pub fn lines(settings: &TopicSettings) -> Vec<String> {
    let TopicSettings { max_messages, max_bytes, overflow, last_value, paused, temporary, .. } = settings;
    let limits = [max_messages.map(|max| counted(max, "message")), max_bytes.map(value::size_text)];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    let full = match overflow {
        Overflow::Block => "its producers wait",
        Overflow::Reject => "it refuses what is published to it",
        Overflow::DropOldest => "its oldest messages go",
    };
    let full = (!limits.is_empty()).then(|| format!("full with {}: then {full}", limits.join(" or ")));
    let last_value = last_value.then(|| "only the newest message of each key stays".to_owned());
    let paused = paused.then(|| "paused: nothing of it is handed out".to_owned());
    let temporary = temporary.then(|| "temporary: it goes with its last group".to_owned());
    [full, last_value, paused, temporary].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_is_read_and_said_again() {
        for (text, said) in [
            ("acked", "kept until all groups have settled them"),
            ("keep", "kept"),
            ("age=7d", "kept until they are older than 7days"),
            ("acked,size=10GiB", "kept until all groups have settled them or newer ones take 10GiB"),
            ("count=5,age=1h", "kept until they are older than 1h or there are 5 messages newer"),
        ] {
            assert_eq!(retention_text(&retention(text).unwrap()), said);
        }
        for text in
            ["", "acked=1", "keep,acked", "age", "age=7", "count=-1", "acked,acked", "size=1 parsec", "x"]
        {
            assert!(retention(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_can_be_taken_away() {
        assert_eq!(limit("5"), Ok(Limit(Some(5))));
        assert_eq!(size_limit("none"), Ok(Limit(None)));
        assert!(limit("5KiB").is_err());
    }
}
