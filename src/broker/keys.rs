//! What a part knows of keys while its group hands out by key: which keys are busy, and what is parked behind them.
//!
//! A key is busy from the hand-over of one of its messages until that message is settled, so also while it waits for
//! another attempt or for its place in the dead letters. Messages that the cursor finds behind a busy key, or whose
//! consumer has no credit, are parked: of each its offset and the hash of its key are kept, no more. Nothing of this
//! is durable: what is parked is not settled, and the cursor finds it again after a start.
//!
//! What may go next, the first that is parked of each key that is not busy and what is to be tried again, is offered.
//! Offers stand by the consumer that they are for, so that what others cannot take is never gone through. An offer
//! may be out of date; who takes it up must look.

use std::collections::{BTreeMap, BTreeSet};

use super::assignment::{Assignment, KeyHash};
use super::turns::Slot;
use crate::model::id::{Offset, OffsetRange};

/// Stands in offers for whoever has credit. No consumer has this place: each takes memory, and that ends before.
const ANYBODY: Slot = Slot::MAX;

/// A message that may be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// The consumer that it is for; `None` for whoever has credit.
    pub to: Option<Slot>,
    pub offset: Offset,
    /// Its key, where it has one.
    pub key: Option<KeyHash>,
}

/// Busy keys and parked messages of a part.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// Messages that keep their key busy.
    held: BTreeMap<Offset, KeyHash>,
    /// The keys that are busy.
    busy: BTreeSet<KeyHash>,
    parked: BTreeMap<Offset, KeyHash>,
    /// What is parked, key by key.
    lines: BTreeSet<(KeyHash, Offset)>,
    /// Offers that do not stand by a consumer yet.
    fresh: Vec<(Option<KeyHash>, Offset)>,
    offers: BTreeMap<(Slot, Offset), Option<KeyHash>>,
    /// Version of the assignment by which the offers stand.
    version: u64,
}

impl Keys {
    /// Messages that are parked.
    pub fn parked_count(&self) -> u64 {
        self.parked.len() as u64
    }

    /// The message that a parked one waits for; looks through all that keep a key busy.
    pub fn before(&self, offset: Offset) -> Option<Offset> {
        let key = *self.parked.get(&offset)?;
        let busy = self.held.iter().find(|(_, held)| **held == key).map(|(at, _)| *at);
        busy.or_else(|| self.first_in_line(key).filter(|first| *first < offset))
    }

    /// The key of a message that the cursor has passed and that is not settled; `None` where it has none.
    pub fn key_of(&self, offset: Offset) -> Option<KeyHash> {
        self.held.get(&offset).or_else(|| self.parked.get(&offset)).copied()
    }

    /// Whether there may be something to hand out.
    pub fn has_offers(&self) -> bool {
        !self.fresh.is_empty() || !self.offers.is_empty()
    }

    /// Whether a message with this key may go, with none before it.
    pub fn is_free(&self, key: KeyHash) -> bool {
        !self.busy.contains(&key) && self.first_in_line(key).is_none()
    }

    /// A message keeps its key busy from now on.
    pub fn hold(&mut self, offset: Offset, key: KeyHash) {
        self.held.insert(offset, key);
        self.busy.insert(key);
    }

    /// Parks a message; those of its key that are parked are before it.
    pub fn park(&mut self, offset: Offset, key: KeyHash) {
        let first = self.is_free(key);
        self.parked.insert(offset, key);
        self.lines.insert((key, offset));
        if first {
            self.fresh.push((Some(key), offset));
        }
    }

    /// Takes a message out of its line. Unless its key is held for it at once, the next one is offered.
    pub fn unpark(&mut self, offset: Offset) {
        if let Some(key) = self.parked.remove(&offset) {
            self.lines.remove(&(key, offset));
            self.offer_next(key);
        }
    }

    /// Takes a parked message out of its line; it keeps its key busy from now on.
    pub fn hold_parked(&mut self, offset: Offset) {
        if let Some(key) = self.parked.remove(&offset) {
            self.lines.remove(&(key, offset));
            self.hold(offset, key);
        }
    }

    /// Offers a message that is to be tried again.
    pub fn offer_again(&mut self, offset: Offset) {
        self.fresh.push((self.key_of(offset), offset));
    }

    /// Messages are settled: their keys are free for the next ones.
    pub fn settled(&mut self, range: OffsetRange) {
        if range.is_empty() || (self.held.is_empty() && self.parked.is_empty()) {
            return;
        }
        let held: Vec<KeyHash> =
            self.held.extract_if(range.start..range.end, |_, _| true).map(|(_, key)| key).collect();
        for key in held {
            self.busy.remove(&key);
            self.offer_next(key);
        }
        self.unpark_within(range);
    }

    /// Takes what is parked within a range out of its lines.
    pub fn unpark_within(&mut self, range: OffsetRange) {
        let parked: Vec<Offset> = self.parked.range(range.start..range.end).map(|(at, _)| *at).collect();
        parked.into_iter().for_each(|offset| self.unpark(offset));
    }

    /// Whether a message is parked.
    pub fn is_parked(&self, offset: Offset) -> bool {
        self.parked.contains_key(&offset)
    }

    /// Whether a message is parked, and the next of its key.
    pub fn is_first(&self, offset: Offset) -> bool {
        self.parked
            .get(&offset)
            .is_some_and(|key| !self.busy.contains(key) && self.first_in_line(*key) == Some(offset))
    }

    /// Puts every offer to the consumer that it is for now.
    pub fn sort_offers(&mut self, assignment: &Assignment) {
        if self.version != assignment.version() {
            self.version = assignment.version();
            let moved = std::mem::take(&mut self.offers);
            self.fresh.extend(moved.into_iter().map(|((_, offset), key)| (key, offset)));
        }
        for (key, offset) in self.fresh.drain(..) {
            let owner = key.and_then(|key| assignment.owner(key));
            self.offers.insert((owner.unwrap_or(ANYBODY), offset), key);
        }
    }

    /// The first offer to a consumer behind `from`, or to anybody behind them; the lowest offset first.
    pub fn next_offer(&self, from: (Slot, Offset)) -> Option<Offer> {
        let (&(slot, offset), &key) = self.offers.range(from..).next()?;
        Some(Offer { to: (slot != ANYBODY).then_some(slot), offset, key })
    }

    /// Takes an offer back.
    pub fn withdraw(&mut self, offer: Offer) {
        self.offers.remove(&place(offer));
    }

    fn first_in_line(&self, key: KeyHash) -> Option<Offset> {
        let line = (key, Offset(0))..=(key, Offset(u64::MAX));
        self.lines.range(line).next().map(|(_, offset)| *offset)
    }

    fn offer_next(&mut self, key: KeyHash) {
        if !self.busy.contains(&key)
            && let Some(next) = self.first_in_line(key)
        {
            self.fresh.push((Some(key), next));
        }
    }
}

/// Where an offer stands.
pub(super) fn place(offer: Offer) -> (Slot, Offset) {
    (offer.to.unwrap_or(ANYBODY), offer.offset)
}

/// Behind all offers to the consumer that one is for; `None` behind those to anybody.
pub(super) fn behind(offer: Offer) -> Option<(Slot, Offset)> {
    offer.to.map(|slot| (slot + 1, Offset(0)))
}
