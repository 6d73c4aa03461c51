//! Taking one encoded message apart, without copying anything of it.

use super::MessageError;
use crate::model::limits::{
    HEADER_COUNT_MAX, HEADER_NAME_BYTES_MAX, KEY_BYTES_MAX, NODE_HEADER_COUNT_MAX, PRIORITY_MAX,
};
use crate::model::time::Timestamp;

pub(crate) const FLAG_KEY: u8 = 1;
pub(crate) const FLAG_HEADERS: u8 = 2;
pub(crate) const FLAG_DELIVER_AT: u8 = 4;
pub(crate) const FLAG_EXPIRES_AT: u8 = 8;
pub(crate) const FLAG_PRIORITY: u8 = 16;
/// The fields that bind a message to a time or a rank.
pub(super) const FLAGS_SCHEDULE: u8 = FLAG_DELIVER_AT | FLAG_EXPIRES_AT | FLAG_PRIORITY;
const FLAGS_KNOWN: u8 = FLAG_KEY | FLAG_HEADERS | FLAGS_SCHEDULE;

/// The fields of one encoded message, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// See [`Message::key`](super::Message::key).
    pub key: Option<&'a [u8]>,
    /// The encoded headers without their count; empty where there are none.
    pub headers_encoded: &'a [u8],
    /// See [`Message::deliver_at`](super::Message::deliver_at).
    pub deliver_at: Option<Timestamp>,
    /// See [`Message::expires_at`](super::Message::expires_at).
    pub expires_at: Option<Timestamp>,
    /// See [`Message::priority`](super::Message::priority).
    pub priority: u8,
    /// See [`Message::body`](super::Message::body).
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
