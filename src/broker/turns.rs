//! Whose turn it is among the consumers of a group that have credit.
//!
//! One order serves all policies: highest priority first, then lowest rank, and among equals the one that was served
//! least recently. Under `round-robin` every rank is the same; under `fair` it is what the consumer has in flight. Who
//! has no credit is not in the order, however many they are.

use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Place of a consumer in its group's table.
pub(super) type Slot = u32;

/// What a consumer's turn depends on. The lowest is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// Its priority.
    pub priority: Reverse<u8>,
    /// What the policy says.
    pub rank: u64,
    /// Number of the last hand-over to it within its group.
    pub served: u64,
    /// The consumer.
    pub slot: Slot,
}

/// The consumers with credit, in the order of their turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    order: BTreeSet<Turn>,
}

impl Turns {
    /// Whether nobody has credit.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whose turn it is, and who comes after.
    pub fn next(&self) -> Option<(Turn, Option<Turn>)> {
        let mut order = self.order.iter();
        order.next().map(|turn| (*turn, order.next().copied()))
    }

    /// Replaces the turn of a consumer.
    pub fn replace(&mut self, old: Option<Turn>, new: Option<Turn>) {
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.order.remove(&old);
        }
        if let Some(new) = new {
            self.order.insert(new);
        }
    }
}
