//! What of one kind is due soon, known one by one, and what is being done to know more.
//!
//! How much is known is bounded. What is due already may go over the bound by a little: it is fired next, so it takes
//! no room for long, and must not wait behind what is due later.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::{Offset, TopicId};
use crate::model::time::Timestamp;

/// What is known of a message or note: when it is due, its slot, its place there.
pub(super) type Known = (Timestamp, TopicId, Offset);

/// Messages that may be known beyond the bound, because they are due.
const DUE_RESERVE: usize = 4096;
/// Bytes that are being read at a time, about: a quarter of the smallest useful cache, so that it is used before it goes.
const READING_BYTES_MAX: usize = 4 << 20;
/// What a read of one message counts as. What is due in a large slot is read one by one, so many must be under way.
const READ_COST_MIN: usize = 4 << 10;
/// Offsets behind the first one of a read that it will probably bring too.
pub(super) const NEAR: u64 = 64;

/// What of one kind is due soon.
#[derive(Debug)]
pub(super) struct Agenda {
    known: BTreeSet<Known>,
    known_max: usize,
    /// When slots are to be opened, or looked at again.
    pub opening: BTreeSet<(Timestamp, TopicId)>,
    /// Slots that are open and not read to their end, by the beginning of their windows.
    pub reading: BTreeSet<(Timestamp, TopicId)>,
    /// Reads under way, with what they count as.
    wants: BTreeMap<(TopicId, Offset), usize>,
    reading_bytes: usize,
    /// After a lack of space or a read in vain: nothing is done before this.
    not_before: Option<Timestamp>,
}

impl Agenda {
    pub fn new(known_max: u64) -> Self {
        Self {
            known: BTreeSet::new(),
            known_max: usize::try_from(known_max).unwrap_or(usize::MAX),
            opening: BTreeSet::new(),
            reading: BTreeSet::new(),
            wants: BTreeMap::new(),
            reading_bytes: 0,
            not_before: None,
        }
    }

    /// How many more can be known.
    pub fn room(&self) -> usize {
        self.known_max.saturating_sub(self.known.len())
    }

    /// Whether one more can be known that is due already.
    pub fn has_room_for_due(&self) -> bool {
        self.known.len() < self.known_max.saturating_add(DUE_RESERVE)
    }

    /// Messages of a slot above which they are moved on into finer ones rather than known one by one: they would take
    /// much of the room, and what is due would have to be read from all over the slot.
    pub fn few(&self) -> u64 {
        (self.known_max / 4) as u64
    }

    pub fn learn(&mut self, known: Known) {
        self.known.insert(known);
    }

    pub fn forget(&mut self, known: &Known) {
        self.known.remove(known);
    }

    /// What is due by `now`, in the order of its times, at most `count_max`.
    pub fn due(&self, now: Timestamp, count_max: usize) -> Vec<Known> {
        self.known.iter().take(count_max).take_while(|(at, ..)| *at <= now).copied().collect()
    }

    /// Notes that the message at `offset` is wanted, with what follows it up to so many bytes. Answers whether it has to
    /// be read for that: it is not on its way yet, and not too much is.
    pub fn want(&mut self, slot: TopicId, offset: Offset, bytes: usize) -> bool {
        let near = Offset(offset.0.saturating_sub(NEAR));
        let comes = self
            .wants
            .range((slot, near)..=(slot, offset))
            .any(|((_, from), cost)| *from == offset || *cost > READ_COST_MIN);
        if comes || self.reading_bytes >= READING_BYTES_MAX {
            return false;
        }
        let cost = bytes.max(READ_COST_MIN);
        self.reading_bytes += cost;
        self.wants.insert((slot, offset), cost);
        true
    }

    /// A read was answered.
    pub fn loaded(&mut self, slot: TopicId, from: Offset) {
        if let Some(cost) = self.wants.remove(&(slot, from)) {
            self.reading_bytes -= cost;
        }
    }

    /// Does nothing for so many milliseconds.
    pub fn put_off(&mut self, now: Timestamp, wait_ms: u64) {
        self.not_before = Some(Timestamp(now.0.saturating_add(wait_ms)));
    }

    /// Whether something may be done now.
    pub fn may_go_on(&mut self, now: Timestamp) -> bool {
        if self.not_before.is_some_and(|at| at > now) {
            return false;
        }
        self.not_before = None;
        true
    }

    /// Whether something is due that waits for nothing else.
    pub fn is_behind(&self, now: Timestamp) -> bool {
        self.not_before.is_none()
            && self.wants.is_empty()
            && self.known.first().is_some_and(|(at, ..)| *at <= now)
    }

    /// When something is to be done though nothing happens.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        // While something is read, it is gone on with when that has come.
        let known = self.known.first().filter(|_| self.wants.is_empty()).map(|(at, ..)| *at);
        let opening = self.opening.first().map(|(at, _)| *at);
        let next = known.into_iter().chain(opening).min()?;
        Some(self.not_before.map_or(next, |not_before| next.max(not_before)))
    }
}
