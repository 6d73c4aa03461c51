//! A message and its encoded form, which is the same on the wire, in the journal and in memory.
//!
//! Messages travel as a [`MessageBlock`]: encoded messages one behind the other in one piece of memory, checked
//! once when it enters the process and from then on copied by reference. Nothing here knows topics or offsets.
//!
//! # Encoded message, version 1
//!
//! ```text
//! u32   length of what follows
//! u8    flags: 1 key, 2 headers, 4 deliver_at, 8 expires_at, 16 priority; the other bits are 0
//! key         u16 length, bytes
//! headers     u16 count, then for each: u16 length and UTF-8 name, u32 length and value
//! deliver_at  u64 milliseconds since 1970
//! expires_at  u64 milliseconds since 1970
//! priority    u8, 1 to 9
//! body        the rest
//! ```
//!
//! Numbers are little-endian; a field is there if and only if its flag is set. An encoded message is valid if and
//! only if every length stays inside the message, names are UTF-8 of 1 to 255 bytes, unknown flags are 0 and the
//! limits of [`Limits`] hold. In one that is published no header is one that [only the node sets](is_set_by_node).

use bytes::{BufMut, Bytes, BytesMut};

mod block;
mod parts;

pub use block::MessageBlock;
pub use parts::Parts;
pub(crate) use parts::{FLAG_DELIVER_AT, FLAG_EXPIRES_AT, FLAG_HEADERS, FLAG_KEY, FLAG_PRIORITY};

use super::header::is_set_by_node;
use super::limits::{HEADER_COUNT_MAX, HEADER_NAME_BYTES_MAX, KEY_BYTES_MAX, Limits, PRIORITY_MAX};
use super::time::Timestamp;

/// Why bytes are not a valid encoded message, or a message cannot be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// A length points beyond the end.
    #[error("message {index}: {field} reaches beyond the end of the message")]
    Truncated {
        /// Position of the message in its block, from 0.
        index: usize,
        /// The field that does not fit.
        field: &'static str,
    },
    /// A flag that this version does not know.
    #[error("message {index}: unknown flags {flags:#04x}")]
    UnknownFlags {
        /// Position of the message in its block, from 0.
        index: usize,
        /// The flags found.
        flags: u8,
    },
    /// A field has a value that is not allowed.
    #[error("message {index}: {field} is not valid")]
    Invalid {
        /// Position of the message in its block, from 0.
        index: usize,
        /// The field in question.
        field: &'static str,
    },
    /// A header that only the node sets, in a message that is published.
    #[error(
        "message {index}: header {name:?} is set by the node and by nobody else: leave it out, or give it a name that \
         does not begin with \"baton.\""
    )]
    Reserved {
        /// Position of the message in its block, from 0.
        index: usize,
        /// The name of the header.
        name: String,
    },
    /// A field is larger than its limit.
    #[error("message {index}: {field} has {len}, the limit{} is {max}", limit_of(field))]
    TooLarge {
        /// Position of the message in its block, from 0.
        index: usize,
        /// The field in question.
        field: &'static str,
        /// Its size.
        len: u64,
        /// The limit.
        max: u64,
    },
}

/// The name of the limit of a field, where it can be changed, with a space before it.
fn limit_of(field: &str) -> &'static str {
    match field {
        "body" => " body_bytes_max",
        "headers" => " header_bytes_max",
        _ => "",
    }
}

/// A message as an application sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Messages of one key stay in order under the policy `key`; the last value per key in compacted topics.
    pub key: Option<Bytes>,
    /// Names and values, in the order given. A name may occur more than once.
    pub headers: Vec<(String, Bytes)>,
    /// Not handed out before this point of store time.
    pub deliver_at: Option<Timestamp>,
    /// Not handed out from this point of store time on.
    pub expires_at: Option<Timestamp>,
    /// 0 (lowest, default) to 9.
    pub priority: u8,
    /// The content. Opaque.
    pub body: Bytes,
}

impl Message {
    /// A message with nothing but a body.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// The value of the first header called `name`.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value)
    }

    /// The message without the headers that only the node sets: so one that was delivered can be published once more,
    /// though it was a dead letter, was replayed, or was moved as the last value of its key.
    #[must_use]
    pub fn without_node_headers(mut self) -> Self {
        self.headers.retain(|(name, _)| !is_set_by_node(name));
        self
    }

    /// Bytes of the encoded form.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let key = self.key.as_ref().map_or(0, |key| 2 + key.len());
        let headers: usize = self.headers.iter().map(|(name, value)| 6 + name.len() + value.len()).sum();
        let headers = if self.headers.is_empty() { 0 } else { 2 + headers };
        let times = 8 * (usize::from(self.deliver_at.is_some()) + usize::from(self.expires_at.is_some()));
        5 + key + headers + times + usize::from(self.priority > 0) + self.body.len()
    }

    /// Checks whether the message may be published, within these limits.
    ///
    /// # Errors
    /// Names the first field that is too large or not valid; `index` is 0.
    pub fn check(&self, limits: &Limits) -> Result<(), MessageError> {
        let index = 0;
        let too_large =
            |field, len: usize, max| MessageError::TooLarge { index, field, len: len as u64, max };
        if self.key.as_ref().is_some_and(|key| key.len() > KEY_BYTES_MAX) {
            return Err(too_large("key", self.key.as_ref().map_or(0, Bytes::len), KEY_BYTES_MAX as u64));
        }
        if self.headers.len() > HEADER_COUNT_MAX {
            return Err(too_large("header count", self.headers.len(), HEADER_COUNT_MAX as u64));
        }
        let mut header_bytes = 0;
        for (name, value) in &self.headers {
            if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX {
                return Err(MessageError::Invalid { index, field: "header name" });
            }
            if is_set_by_node(name) {
                return Err(MessageError::Reserved { index, name: name.clone() });
            }
            header_bytes += name.len() + value.len();
        }
        if header_bytes as u64 > limits.header_bytes_max {
            return Err(too_large("headers", header_bytes, limits.header_bytes_max));
        }
        if self.priority > PRIORITY_MAX {
            return Err(MessageError::Invalid { index, field: "priority" });
        }
        if self.body.len() as u64 > limits.body_bytes_max {
            return Err(too_large("body", self.body.len(), limits.body_bytes_max));
        }
        Ok(())
    }

    /// Appends the encoded form. The caller has used [`check`](Self::check).
    pub fn encode(&self, out: &mut BytesMut) {
        let len = self.encoded_len();
        out.reserve(len);
        out.put_u32_le((len - 4) as u32);
        let mut flags = 0;
        for (flag, set) in [
            (FLAG_KEY, self.key.is_some()),
            (FLAG_HEADERS, !self.headers.is_empty()),
            (FLAG_DELIVER_AT, self.deliver_at.is_some()),
            (FLAG_EXPIRES_AT, self.expires_at.is_some()),
            (FLAG_PRIORITY, self.priority > 0),
        ] {
            flags |= if set { flag } else { 0 };
        }
        out.put_u8(flags);
        if let Some(key) = &self.key {
            out.put_u16_le(key.len() as u16);
            out.put_slice(key);
        }
        if !self.headers.is_empty() {
            out.put_u16_le(self.headers.len() as u16);
            for (name, value) in &self.headers {
                out.put_u16_le(name.len() as u16);
                out.put_slice(name.as_bytes());
                out.put_u32_le(value.len() as u32);
                out.put_slice(value);
            }
        }
        for time in [self.deliver_at, self.expires_at].into_iter().flatten() {
            out.put_u64_le(time.0);
        }
        if self.priority > 0 {
            out.put_u8(self.priority);
        }
        out.put_slice(&self.body);
    }

    /// Reads one encoded message of a valid block. Key, values and body share the block's memory.
    ///
    /// # Errors
    /// What makes the bytes not a valid encoded message; `index` is 0.
    pub fn decode(encoded: &Bytes) -> Result<Self, MessageError> {
        let parts = Parts::read(encoded, 0)?;
        let mut message = Self {
            key: parts.key.map(|key| encoded.slice_ref(key)),
            deliver_at: parts.deliver_at,
            expires_at: parts.expires_at,
            priority: parts.priority,
            body: encoded.slice_ref(parts.body),
            ..Self::default()
        };
        for (name, value) in parts.headers() {
            message.headers.push((name.to_owned(), encoded.slice_ref(value)));
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        let bytes = |max| prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from);
        (
            prop::option::of(bytes(20)),
            prop::collection::vec(("[a-zé-]{1,8}", bytes(12)), 0..4),
            prop::option::of(any::<u64>().prop_map(Timestamp)),
            prop::option::of(any::<u64>().prop_map(Timestamp)),
            0..=PRIORITY_MAX,
            bytes(100),
        )
            .prop_map(|(key, headers, deliver_at, expires_at, priority, body)| Message {
                key,
                headers,
                deliver_at,
                expires_at,
                priority,
                body,
            })
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(messages in prop::collection::vec(message(), 0..8)) {
            let block = MessageBlock::encode(&messages);
            let parsed = MessageBlock::parse(block.bytes().clone(), &Limits::default()).unwrap();
            prop_assert_eq!(&parsed, &block);
            prop_assert_eq!(block.bytes().len(), messages.iter().map(Message::encoded_len).sum::<usize>());
            let decoded: Vec<_> = (0..parsed.count()).map(|i| parsed.message(i).unwrap()).collect();
            prop_assert_eq!(decoded, messages);
        }

        #[test]
        fn a_part_is_what_its_messages_make(
            messages in prop::collection::vec(message(), 0..8), a in 0_usize..9, b in 0_usize..9, room in 0_u64..600,
        ) {
            let block = MessageBlock::encode(&messages);
            let (a, b) = (a.min(b).min(messages.len()), a.max(b).min(messages.len()));
            prop_assert_eq!(block.part(a, b), MessageBlock::encode(&messages[a..b]));
            let fit = block.count_within(a, b, room);
            prop_assert!(block.byte_len(a, a + fit) as u64 <= room);
            prop_assert!(a + fit == b || block.byte_len(a, a + fit + 1) as u64 > room);
            let scheduled = |m: &Message| m.deliver_at.is_some() || m.expires_at.is_some() || m.priority > 0;
            prop_assert_eq!(block.is_scheduled(), messages.iter().any(scheduled));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(block) = MessageBlock::parse(bytes.into(), &Limits::default()) {
                for index in 0..block.count() {
                    let _ = block.message(index);
                }
            }
        }

        #[test]
        fn every_truncation_is_refused_or_ends_between_messages(messages in prop::collection::vec(message(), 1..4)) {
            let block = MessageBlock::encode(&messages);
            for cut in 0..block.bytes().len() {
                let between = (0..block.count()).any(|i| block.position(i) == cut);
                let parsed = MessageBlock::parse(block.bytes().slice(..cut), &Limits::default());
                prop_assert_eq!(parsed.is_ok(), between);
            }
        }
    }

    #[test]
    fn a_message_has_these_bytes() {
        let message = Message {
            key: Some("k".into()),
            headers: vec![("h".into(), "v".into())],
            deliver_at: Some(Timestamp(1)),
            expires_at: Some(Timestamp(2)),
            priority: 3,
            body: "body".into(),
        };
        let block = MessageBlock::encode([&message]);
        let expected =
            b"\x23\0\0\0\x1f\x01\0k\x01\0\x01\0h\x01\0\0\0v\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03body";
        assert_eq!(block.bytes().as_ref(), expected);
        assert_eq!(MessageBlock::encode([&Message::new("x")]).bytes().as_ref(), b"\x02\0\0\0\0x");
    }

    #[test]
    fn what_passes_a_limit_is_named() {
        let limits = Limits { body_bytes_max: 10, header_bytes_max: 10, ..Limits::default() };
        let long = Message::new(vec![0; 11]);
        assert!(matches!(long.check(&limits), Err(MessageError::TooLarge { field: "body", len: 11, .. })));
        let refused = MessageBlock::parse(MessageBlock::encode([&long]).bytes().clone(), &limits);
        assert!(matches!(refused, Err(MessageError::TooLarge { field: "body", len: 11, .. })));
        let exact = Message::new(vec![0; 10]);
        assert!(MessageBlock::parse(MessageBlock::encode([&exact]).bytes().clone(), &limits).is_ok());
        let wide =
            |len| Message { headers: vec![("name".into(), vec![0; len].into())], ..Message::default() };
        for (len, fits) in [(6, true), (7, false)] {
            let checked = wide(len).check(&limits);
            assert_eq!(checked.is_ok(), fits);
            // The node counts as the publisher does.
            let parsed = MessageBlock::parse(MessageBlock::encode([&wide(len)]).bytes().clone(), &limits);
            assert_eq!(parsed.map(|_| ()), checked);
        }
        let error = wide(7).check(&limits).unwrap_err().to_string();
        assert_eq!(error, "message 0: headers has 11, the limit header_bytes_max is 10");
    }

    /// A publisher could make a message look like a dead letter of another topic, and have it replayed there.
    #[test]
    fn a_publisher_cannot_say_what_only_the_node_says() {
        use crate::model::header::{CORRELATION_ID, REPLY_TO};
        let with =
            |name: &str| Message { headers: vec![(name.to_owned(), "x".into())], ..Message::new("body") };
        for (name, may) in [
            (CORRELATION_ID, true),
            (REPLY_TO, true),
            ("batons", true),
            ("baton.dead.topic", false),
            ("baton.published-at", false),
            ("baton.anything", false),
        ] {
            let message = with(name);
            let refused = Err(MessageError::Reserved { index: 0, name: name.to_owned() });
            let expected = if may { Ok(()) } else { refused };
            assert_eq!(message.check(&Limits::default()), expected);
            let block = MessageBlock::encode([&message]);
            assert_eq!(MessageBlock::parse(block.bytes().clone(), &Limits::default()).map(|_| ()), expected);
            assert_eq!(message.clone().without_node_headers() == message, may);
            assert_eq!(block.message(0).unwrap(), message, "what the node has set can be read");
        }
    }

    /// The node's own headers have room of their own, which publishers could use up.
    #[test]
    fn a_publisher_has_as_many_headers_as_it_is_told() {
        let headers = |count| Message { headers: vec![("h".into(), "".into()); count], ..Message::default() };
        for (count, fits) in [(HEADER_COUNT_MAX, true), (HEADER_COUNT_MAX + 1, false)] {
            let message = headers(count);
            let block = MessageBlock::encode([&message]);
            assert_eq!(MessageBlock::parse(block.bytes().clone(), &Limits::default()).is_ok(), fits);
            assert_eq!(message.check(&Limits::default()).is_ok(), fits);
            assert_eq!(block.message(0).unwrap(), message, "what is there can be read");
        }
    }
}
