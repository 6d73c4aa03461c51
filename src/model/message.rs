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

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::header::is_set_by_node;
use super::limits::{
    HEADER_COUNT_MAX, HEADER_NAME_BYTES_MAX, KEY_BYTES_MAX, Limits, NODE_HEADER_COUNT_MAX, PRIORITY_MAX,
};
use super::time::Timestamp;

pub(crate) const FLAG_KEY: u8 = 1;
pub(crate) const FLAG_HEADERS: u8 = 2;
pub(crate) const FLAG_DELIVER_AT: u8 = 4;
pub(crate) const FLAG_EXPIRES_AT: u8 = 8;
pub(crate) const FLAG_PRIORITY: u8 = 16;
/// The fields that bind a message to a time or a rank.
const FLAGS_SCHEDULE: u8 = FLAG_DELIVER_AT | FLAG_EXPIRES_AT | FLAG_PRIORITY;
const FLAGS_KNOWN: u8 = FLAG_KEY | FLAG_HEADERS | FLAGS_SCHEDULE;

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

/// The fields of one encoded message, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// See [`Message::key`].
    pub key: Option<&'a [u8]>,
    /// The encoded headers without their count; empty where there are none.
    pub headers_encoded: &'a [u8],
    /// See [`Message::deliver_at`].
    pub deliver_at: Option<Timestamp>,
    /// See [`Message::expires_at`].
    pub expires_at: Option<Timestamp>,
    /// See [`Message::priority`].
    pub priority: u8,
    /// See [`Message::body`].
    pub body: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Takes one encoded message, its length in front, apart. `index` goes into the error.
    ///
    /// # Errors
    /// What makes the bytes not a valid encoded message.
    pub fn read(encoded: &'a [u8], index: usize) -> Result<Self, MessageError> {
        let mut input = Input { rest: encoded, index };
        let len = input.u32("length")? as usize;
        if len != input.rest.len() {
            return Err(MessageError::Truncated { index, field: "length" });
        }
        let flags = input.u8("flags")?;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(MessageError::UnknownFlags { index, flags });
        }
        let mut parts = Self {
            key: None,
            headers_encoded: &[],
            deliver_at: None,
            expires_at: None,
            priority: 0,
            body: &[],
        };
        if flags & FLAG_KEY != 0 {
            let len = input.u16("key")? as usize;
            input.at_most("key", len, KEY_BYTES_MAX)?;
            parts.key = Some(input.take(len, "key")?);
        }
        if flags & FLAG_HEADERS != 0 {
            parts.headers_encoded = input.headers()?;
        }
        if flags & FLAG_DELIVER_AT != 0 {
            parts.deliver_at = Some(Timestamp(input.u64("deliver_at")?));
        }
        if flags & FLAG_EXPIRES_AT != 0 {
            parts.expires_at = Some(Timestamp(input.u64("expires_at")?));
        }
        if flags & FLAG_PRIORITY != 0 {
            parts.priority = input.u8("priority")?;
            if !(1..=PRIORITY_MAX).contains(&parts.priority) {
                return Err(MessageError::Invalid { index, field: "priority" });
            }
        }
        parts.body = input.rest;
        Ok(parts)
    }

    /// The headers, in their order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let mut input = Input { rest: self.headers_encoded, index: 0 };
        std::iter::from_fn(move || input.header().ok().flatten())
    }
}

/// A reader over one encoded message.
struct Input<'a> {
    rest: &'a [u8],
    index: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], MessageError> {
        let (taken, rest) =
            self.rest.split_at_checked(len).ok_or(MessageError::Truncated { index: self.index, field })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], MessageError> {
        let (taken, rest) =
            self.rest.split_first_chunk().ok_or(MessageError::Truncated { index: self.index, field })?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, MessageError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, MessageError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, MessageError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, MessageError> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn at_most(&self, field: &'static str, len: usize, max: usize) -> Result<(), MessageError> {
        if len <= max {
            return Ok(());
        }
        Err(MessageError::TooLarge { index: self.index, field, len: len as u64, max: max as u64 })
    }

    /// Passes over the headers and answers their encoded form without the count.
    fn headers(&mut self) -> Result<&'a [u8], MessageError> {
        let count = self.u16("header count")? as usize;
        self.at_most("header count", count, HEADER_COUNT_MAX + NODE_HEADER_COUNT_MAX)?;
        if count == 0 {
            return Err(MessageError::Invalid { index: self.index, field: "header count" });
        }
        let all = self.rest;
        for _ in 0..count {
            if self.header()?.is_none() {
                return Err(MessageError::Truncated { index: self.index, field: "header" });
            }
        }
        Ok(&all[..all.len() - self.rest.len()])
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<(&'a str, &'a [u8])>, MessageError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let len = self.u16("header name")? as usize;
        if len == 0 || len > HEADER_NAME_BYTES_MAX {
            return Err(MessageError::Invalid { index: self.index, field: "header name" });
        }
        let name = self.take(len, "header name")?;
        let name = std::str::from_utf8(name)
            .map_err(|_| MessageError::Invalid { index: self.index, field: "header name" })?;
        let len = self.u32("header value")? as usize;
        Ok(Some((name, self.take(len, "header value")?)))
    }
}

/// Of the memory that a block keeps alive, the part that it has itself where it is worth to keep as it is.
const OWN_FRACTION: usize = 4;

/// Encoded messages, one behind the other in one piece of memory, known to be valid. Cloning shares the memory.
#[derive(Clone, Debug)]
pub struct MessageBlock {
    bytes: Bytes,
    /// Bytes of the memory that they are in, with what else is there: as long as a block lives, all of it is held.
    held: usize,
    /// Where each message ends, counted from the start of the block.
    ends: Arc<[u32]>,
    /// Whether a message has `deliver_at`, `expires_at` or a priority.
    scheduled: bool,
}

/// Blocks are the same where their messages are.
impl PartialEq for MessageBlock {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for MessageBlock {}

impl MessageBlock {
    /// Checks bytes that somebody publishes and makes them a block.
    ///
    /// # Errors
    /// The first message that is not valid, passes a limit or has a header that only the node sets.
    pub fn parse(bytes: Bytes, limits: &Limits) -> Result<Self, MessageError> {
        Self::split(bytes, |encoded, index| {
            // The common message, a body and nothing else, needs no closer look.
            let too_large = encoded.len() as u64 > limits.body_bytes_max;
            if encoded.get(4) == Some(&0) && !too_large {
                return Ok(());
            }
            let parts = Parts::read(encoded, index)?;
            // As a publisher counts them: the lengths between them are not theirs.
            let (mut header_count, mut header_bytes) = (0, 0);
            for (name, value) in parts.headers() {
                if is_set_by_node(name) {
                    return Err(MessageError::Reserved { index, name: name.to_owned() });
                }
                header_count += 1;
                header_bytes += name.len() + value.len();
            }
            for (field, len, max) in [
                ("header count", header_count, HEADER_COUNT_MAX as u64),
                ("headers", header_bytes, limits.header_bytes_max),
                ("body", parts.body.len(), limits.body_bytes_max),
            ] {
                if len as u64 > max {
                    return Err(MessageError::TooLarge { index, field, len: len as u64, max });
                }
            }
            Ok(())
        })
    }

    /// Makes bytes that the process itself stored, and whose checksum was right, a block.
    ///
    /// # Errors
    /// Where the lengths do not add up: the store was written by something else.
    pub fn from_store(bytes: Bytes) -> Result<Self, MessageError> {
        Self::split(bytes, |_, _| Ok(()))
    }

    /// Encodes messages that have been [checked](Message::check).
    #[must_use]
    pub fn encode<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Self {
        let mut bytes = BytesMut::new();
        let mut ends = Vec::new();
        let mut scheduled = false;
        for message in messages {
            message.encode(&mut bytes);
            ends.push(bytes.len() as u32);
            scheduled |= message.deliver_at.is_some() || message.expires_at.is_some() || message.priority > 0;
        }
        Self::new(bytes.freeze(), ends.into(), scheduled)
    }

    /// A block with memory of its own.
    fn new(bytes: Bytes, ends: Arc<[u32]>, scheduled: bool) -> Self {
        Self { held: bytes.len(), bytes, ends, scheduled }
    }

    /// The same block, whose bytes are in memory of `held` bytes together with others.
    #[must_use]
    pub fn within(self, held: usize) -> Self {
        Self { held: held.max(self.bytes.len()), ..self }
    }

    /// The same block to be kept for long: in memory of its own where it is a small part of the memory that it would
    /// hold.
    #[must_use]
    pub fn to_keep(self) -> Self {
        if self.bytes.len() >= self.held / OWN_FRACTION {
            return self;
        }
        Self::new(Bytes::copy_from_slice(&self.bytes), self.ends, self.scheduled)
    }

    fn split(
        bytes: Bytes,
        mut check: impl FnMut(&[u8], usize) -> Result<(), MessageError>,
    ) -> Result<Self, MessageError> {
        let mut ends = Vec::with_capacity(Self::count_estimate(&bytes));
        let mut flags = 0;
        let mut at = 0;
        while at < bytes.len() {
            let index = ends.len();
            let rest = &bytes[at..];
            let truncated = MessageError::Truncated { index, field: "length" };
            let Some(len) = rest.first_chunk().map(|len| u32::from_le_bytes(*len) as usize) else {
                return Err(truncated);
            };
            if len == 0 || len > rest.len() - 4 {
                return Err(truncated);
            }
            check(&rest[..4 + len], index)?;
            flags |= rest[4];
            at += 4 + len;
            ends.push(u32::try_from(at).map_err(|_| MessageError::Invalid { index, field: "block" })?);
        }
        Ok(Self::new(bytes, ends.into(), flags & FLAGS_SCHEDULE != 0))
    }

    /// How many messages there would be if all were like the first: never more than the bytes allow.
    fn count_estimate(bytes: &Bytes) -> usize {
        match bytes.first_chunk().map(|len| u32::from_le_bytes(*len) as usize) {
            Some(len) if len > 0 => bytes.len() / (len + 4) + 1,
            _ => 0,
        }
    }

    /// Number of messages.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether a message of the block has `deliver_at`, `expires_at` or a priority.
    #[must_use]
    pub fn is_scheduled(&self) -> bool {
        self.scheduled
    }

    /// The encoded messages.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Where message `index` begins, in bytes from the start of the block; the block's length for `count()`.
    ///
    /// # Panics
    /// Where `index` is above [`count`](Self::count).
    #[must_use]
    pub fn position(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.ends[index - 1] as usize }
    }

    /// Bytes of the messages from `start` up to, not including, `end`.
    ///
    /// # Panics
    /// Where the indexes are not in the block.
    #[must_use]
    pub fn byte_len(&self, start: usize, end: usize) -> usize {
        self.position(end) - self.position(start)
    }

    /// The encoded message at `index`, its length in front.
    ///
    /// # Panics
    /// Where the index is not in the block.
    #[must_use]
    pub fn encoded(&self, index: usize) -> &[u8] {
        &self.bytes[self.position(index)..self.position(index + 1)]
    }

    /// Whether the message at `index` has `expires_at`.
    ///
    /// # Panics
    /// Where the index is not in the block.
    #[must_use]
    pub fn may_expire(&self, index: usize) -> bool {
        self.scheduled && self.encoded(index)[4] & FLAG_EXPIRES_AT != 0
    }

    /// The encoded messages from `start` up to, not including, `end`; shares the memory.
    ///
    /// # Panics
    /// Where the indexes are not in the block.
    #[must_use]
    pub fn slice(&self, start: usize, end: usize) -> Bytes {
        self.bytes.slice(self.position(start)..self.position(end))
    }

    /// The block without its first `count` messages; shares the memory.
    ///
    /// # Panics
    /// Where the block has fewer messages.
    #[must_use]
    pub fn skip(&self, count: usize) -> Self {
        self.part(count, self.count())
    }

    /// The block of the messages from `start` up to, not including, `end`; shares the memory.
    ///
    /// # Panics
    /// Where the indexes are not in the block.
    #[must_use]
    pub fn part(&self, start: usize, end: usize) -> Self {
        if start == 0 && end == self.count() {
            return self.clone();
        }
        let cut = self.position(start);
        let ends: Arc<[u32]> = self.ends[start..end].iter().map(|end| end - cut as u32).collect();
        let bytes = self.slice(start, end);
        let flags_at = |index: usize| if index == 0 { 4 } else { ends[index - 1] as usize + 4 };
        let scheduled =
            self.scheduled && (0..ends.len()).any(|index| bytes[flags_at(index)] & FLAGS_SCHEDULE != 0);
        Self { bytes, held: self.held, ends, scheduled }
    }

    /// The block of the messages in these ranges of indexes, in their order; copies them.
    ///
    /// # Panics
    /// Where the indexes are not in the block.
    #[must_use]
    pub fn pick(&self, runs: &[(usize, usize)]) -> Self {
        let len = runs.iter().map(|&(start, end)| self.byte_len(start, end)).sum();
        let mut bytes = BytesMut::with_capacity(len);
        let mut ends = Vec::with_capacity(runs.iter().map(|(start, end)| end - start).sum());
        let mut flags = 0;
        for index in runs.iter().flat_map(|&(start, end)| start..end) {
            let encoded = self.encoded(index);
            bytes.put_slice(encoded);
            flags |= encoded[4];
            ends.push(bytes.len() as u32);
        }
        Self::new(bytes.freeze(), ends.into(), flags & FLAGS_SCHEDULE != 0)
    }

    /// How many messages from `start` on, and before `end`, have together at most `bytes_max` bytes.
    ///
    /// # Panics
    /// Where the indexes are not in the block.
    #[must_use]
    pub fn count_within(&self, start: usize, end: usize, bytes_max: u64) -> usize {
        let from = self.position(start) as u64;
        if self.position(end) as u64 - from <= bytes_max {
            return end - start;
        }
        self.ends[start..end].partition_point(|&end| u64::from(end) - from <= bytes_max)
    }

    /// The encoded messages, each with its length in front.
    pub fn iter(&self) -> impl Iterator<Item = Bytes> + '_ {
        (0..self.count()).map(|index| self.slice(index, index + 1))
    }

    /// Reads message `index`.
    ///
    /// # Errors
    /// Only where a block [from the store](Self::from_store) was written by something else.
    ///
    /// # Panics
    /// Where the index is not in the block.
    pub fn message(&self, index: usize) -> Result<Message, MessageError> {
        Message::decode(&self.slice(index, index + 1))
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

    #[test]
    fn a_small_part_that_is_to_be_kept_gets_memory_of_its_own() {
        let messages: Vec<Message> = (0..16).map(|number: u8| Message::new(vec![number; 100])).collect();
        let block = MessageBlock::encode(&messages);
        let (large, small) = (block.part(0, 4), block.part(3, 6));
        let address = |block: &MessageBlock| block.bytes().as_ptr();
        assert_eq!(address(&large.clone().to_keep()), address(&large));
        let kept = small.clone().to_keep();
        assert_ne!(address(&kept), address(&small));
        assert_eq!((&kept, kept.message(2).unwrap()), (&small, Message::new(vec![5; 100])));
        assert_eq!(address(&kept.clone().to_keep()), address(&kept), "it is its own now");
        assert_ne!(address(&block.clone().within(1 << 20).to_keep()), address(&block));
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
