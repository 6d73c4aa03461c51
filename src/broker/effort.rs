//! How much filters may be asked within a cycle.
//!
//! A message that is made for it keeps a filter that is made for it busy for milliseconds. Whoever asks filters for
//! many messages does so within an effort, and leaves the rest to a later cycle.

use crate::model::filter::Filter;
use crate::model::message::Parts;

/// What is left of the work that may be done. The message that uses it up is still asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effort(u64);

impl Effort {
    /// About 2 milliseconds: some 10,000 messages with a few headers and a usual filter.
    pub const CYCLE: Self = Self(30_000_000);

    /// Whether nothing is left.
    pub fn is_spent(self) -> bool {
        self.0 == 0
    }

    /// Whether the filter matches the message.
    pub fn matches(&mut self, filter: &Filter, message: &Parts<'_>) -> bool {
        self.0 = self.0.saturating_sub(filter.effort(message));
        filter.matches(message)
    }
}
