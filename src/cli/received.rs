//! How messages that were received are written: their bodies, or all of them as JSON.
//!
//! In JSON, bytes that are valid UTF-8 are a text, and others an object `{"base64": "..."}`. A header that occurs
//! once has its value, one that occurs more often a list of its values.

use std::collections::BTreeMap;

use batonmq::client::Delivery;
use batonmq::model::message::Message;
use batonmq::model::retry::Failure;
use clap::ValueEnum;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::output::Output;

/// Form of a message on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The body as it is, and a line end
    Raw,
    /// One JSON object a line: topic, offset, priority, attempt, delivery, redelivered, failure, published_at, key, headers, body
    Json,
}

#[derive(serde::Serialize)]
struct Received<'a> {
    topic: &'a str,
    offset: u64,
    priority: u8,
    attempt: u32,
    delivery: u32,
    redelivered: bool,
    failure: Option<LastFailure<'a>>,
    published_at: String,
    #[serde(flatten)]
    content: Content<'a>,
}

/// How the last attempt failed.
#[derive(serde::Serialize)]
struct LastFailure<'a> {
    at: String,
    reason: &'static str,
    text: Option<&'a str>,
}

impl<'a> LastFailure<'a> {
    fn new(failure: &'a Failure) -> Self {
        Self { at: failure.at.to_string(), reason: failure.reason.word(), text: failure.text.as_deref() }
    }
}

/// Key, headers and body of a message.
#[derive(serde::Serialize)]
pub struct Content<'a> {
    key: Option<Text<'a>>,
    headers: Headers<'a>,
    body: Text<'a>,
}

impl<'a> Content<'a> {
    /// Those of `message`.
    pub fn new(message: &'a Message) -> Self {
        Self {
            key: message.key.as_ref().map(|key| Text(key)),
            headers: Headers(message),
            body: Text(&message.body),
        }
    }
}

/// Writes a delivery.
pub fn write(output: &mut Output, topic: &str, delivery: &Delivery, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Raw => {
            output.bytes(&delivery.message.body)?;
            output.bytes(b"\n")
        }
        Format::Json => output.json(&Received {
            topic,
            offset: delivery.offset().0,
            priority: delivery.message.priority,
            attempt: delivery.attempt,
            delivery: delivery.number,
            redelivered: delivery.redelivered,
            failure: delivery.failure.as_ref().map(LastFailure::new),
            published_at: delivery.published_at.to_string(),
            content: Content::new(&delivery.message),
        }),
    }
}

/// Bytes as JSON.
pub struct Text<'a>(pub &'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &base64(self.0))?;
                map.end()
            }
        }
    }
}

struct Headers<'a>(&'a Message);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut by_name: BTreeMap<&str, Vec<Text<'_>>> = BTreeMap::new();
        for (name, value) in &self.0.headers {
            by_name.entry(name).or_default().push(Text(value));
        }
        let mut map = serializer.serialize_map(Some(by_name.len()))?;
        for (name, values) in &by_name {
            match values.as_slice() {
                [value] => map.serialize_entry(name, value)?,
                values => map.serialize_entry(name, values)?,
            }
        }
        map.end()
    }
}

/// Base64 with the standard alphabet and padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= group.len() { char::from(ALPHABET[digit]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn what_is_no_text_is_base64_and_repeated_headers_are_lists() {
        let message = Message {
            key: Some(vec![0xff].into()),
            headers: vec![("a".into(), "1".into()), ("b".into(), "x".into()), ("a".into(), "2".into())],
            ..Message::new("body \"1\"")
        };
        let json = serde_json::to_string(&Content::new(&message)).unwrap();
        assert_eq!(
            json,
            r#"{"key":{"base64":"/w=="},"headers":{"a":["1","2"],"b":"x"},"body":"body \"1\""}"#
        );
    }
}
