//! Which messages a group does not get: those that its filter does not match, and those whose time is over.

use super::cache::CachedChunk;
use crate::model::filter::Filter;
use crate::model::id::Offset;
use crate::model::message::Parts;
use crate::model::time::Timestamp;

/// What becomes of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They are handed out.
    HandOut,
    /// They are settled: the group does not want them.
    Settle,
    /// They are settled or dead-lettered: their time is over.
    Expire,
}

/// What a group looks at before it hands messages out.
#[derive(Clone, Copy)]
pub(super) struct Sieve<'a> {
    pub filter: Option<&'a Filter>,
    pub now: Timestamp,
}

impl Sieve<'_> {
    /// What becomes of the message of a chunk at `start`, and up to where, at most `end`, the same of the others.
    pub fn run(&self, chunk: &CachedChunk, start: Offset, end: Offset) -> (Verdict, Offset) {
        if self.filter.is_none() && !chunk.block.is_scheduled() {
            return (Verdict::HandOut, end);
        }
        let verdict = self.verdict(chunk, start);
        let mut at = start.next();
        while at < end && self.verdict(chunk, at) == verdict {
            at = at.next();
        }
        (verdict, at)
    }

    fn verdict(&self, chunk: &CachedChunk, offset: Offset) -> Verdict {
        let index = (offset.0 - chunk.first.0) as usize;
        let encoded = chunk.block.encoded(index);
        if self.filter.is_none() && !chunk.block.may_expire(index) {
            return Verdict::HandOut;
        }
        // A message that cannot be read goes as it is: a store may hold what a later version wrote.
        let Ok(parts) = Parts::read(encoded, index) else { return Verdict::HandOut };
        if parts.expires_at.is_some_and(|at| at <= self.now) {
            Verdict::Expire
        } else if self.filter.is_none_or(|filter| filter.matches(&parts)) {
            Verdict::HandOut
        } else {
            Verdict::Settle
        }
    }
}
