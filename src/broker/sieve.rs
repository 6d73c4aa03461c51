//! Which messages a group does not get: those that its filter does not match, and those whose time is over.

use super::cache::CachedChunk;
use super::effort::Effort;
use crate::model::filter::Filter;
use crate::model::id::Offset;
use crate::model::message::Parts;
use crate::model::time::Timestamp;

/// Messages that are looked at for one hand-over: whoever has credit for one must not cost a look at all of a chunk.
const HANDED_OUT_TOGETHER: u64 = 256;

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
pub(super) struct Sieve<'a> {
    pub filter: Option<&'a Filter>,
    pub now: Timestamp,
    /// What the filter may still be asked.
    pub effort: Effort,
}

impl<'a> Sieve<'a> {
    pub fn new(filter: Option<&'a Filter>, now: Timestamp) -> Self {
        Self { filter, now, effort: Effort::CYCLE }
    }

    /// Whether anything but handing out may become of messages of a chunk.
    pub fn looks_at(&self, chunk: &CachedChunk) -> bool {
        self.filter.is_some() || chunk.block.is_scheduled()
    }

    /// What becomes of the message of a chunk at `start`, and up to where, at most `end`, the same of the others, as
    /// far as the effort goes. Of those that are handed out `most` are looked at: what nobody takes now would only
    /// be looked at again.
    pub fn run(&mut self, chunk: &CachedChunk, start: Offset, end: Offset, most: u64) -> (Verdict, Offset) {
        let verdict = self.verdict(chunk, start);
        let end = match verdict {
            Verdict::HandOut => end.min(Offset(start.0.saturating_add(most.clamp(1, HANDED_OUT_TOGETHER)))),
            Verdict::Settle | Verdict::Expire => end,
        };
        let mut at = start.next();
        while at < end && !self.effort.is_spent() && self.verdict(chunk, at) == verdict {
            at = at.next();
        }
        (verdict, at)
    }

    fn verdict(&mut self, chunk: &CachedChunk, offset: Offset) -> Verdict {
        let index = (offset.0 - chunk.first.0) as usize;
        let encoded = chunk.block.encoded(index);
        if self.filter.is_none() && !chunk.block.may_expire(index) {
            return Verdict::HandOut;
        }
        // A message that cannot be read goes as it is: a store may hold what a later version wrote.
        let Ok(parts) = Parts::read(encoded, index) else { return Verdict::HandOut };
        if parts.expires_at.is_some_and(|at| at <= self.now) {
            Verdict::Expire
        } else if self.filter.is_none_or(|filter| self.effort.matches(filter, &parts)) {
            Verdict::HandOut
        } else {
            Verdict::Settle
        }
    }
}
