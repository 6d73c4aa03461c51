//! What a group has handed out in vain in one topic and will hand out again, or bury.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::{Offset, OffsetRange};
use crate::model::ranges::RangeSet;
use crate::model::retry::{Retry, ReturnReason};
use crate::model::settings::GroupSettings;
use crate::model::time::Timestamp;

/// What waits for a point of time.
#[derive(Debug, Default)]
pub(super) struct Due {
    by_time: BTreeSet<(Timestamp, Offset)>,
    by_offset: BTreeMap<Offset, Timestamp>,
}

impl Due {
    pub fn len(&self) -> usize {
        self.by_time.len()
    }

    /// When the first of them is due.
    pub fn next_at(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(due_at, _)| *due_at)
    }

    /// The lowest of them, whenever it is due.
    pub fn lowest(&self) -> Option<Offset> {
        self.by_offset.first_key_value().map(|(offset, _)| *offset)
    }

    pub fn insert(&mut self, due_at: Timestamp, offset: Offset) {
        self.by_time.insert((due_at, offset));
        self.by_offset.insert(offset, due_at);
    }

    /// Takes out one that is due.
    pub fn pop(&mut self, now: Timestamp) -> Option<Offset> {
        let (_, offset) = self.by_time.first().filter(|(due_at, _)| *due_at <= now).copied()?;
        self.remove(offset);
        Some(offset)
    }

    pub fn remove(&mut self, offset: Offset) {
        if let Some(due_at) = self.by_offset.remove(&offset) {
            self.by_time.remove(&(due_at, offset));
        }
    }

    /// Those within a range, lowest first.
    pub fn within(&self, range: OffsetRange) -> impl Iterator<Item = Offset> + '_ {
        let end = range.end.max(range.start);
        self.by_offset.range(range.start..end).map(|(offset, _)| *offset)
    }
}

/// What waits for another attempt. A message is in one of the three places at most.
#[derive(Debug, Default)]
pub(super) struct Redelivery {
    /// To be handed out as soon as someone has credit.
    pub ready: RangeSet,
    ready_count: u64,
    /// To be handed out from a point of time on.
    pub due: Due,
    /// To be moved to the dead letters.
    pub dying: BTreeSet<Offset>,
}

impl Redelivery {
    /// Messages that wait, in whatever way.
    pub fn count(&self) -> u64 {
        self.ready_count + (self.due.len() + self.dying.len()) as u64
    }

    /// Has a range handed out as soon as possible. None of it is ready yet.
    pub fn make_ready(&mut self, range: OffsetRange) {
        self.ready_count += range.len();
        self.ready.insert(range);
    }

    /// Takes a range out of what is ready. All of it is.
    pub fn take_ready(&mut self, range: OffsetRange) {
        self.ready_count -= range.len();
        self.ready.remove(range);
    }

    /// The lowest message that waits to be handed out again, for its time or for somebody to take it.
    pub fn lowest(&self) -> Option<Offset> {
        let ready = self.ready.range_from(Offset(0)).map(|range| range.start);
        [ready, self.due.lowest()].into_iter().flatten().min()
    }

    /// Puts messages that came back where they wait.
    pub fn put(&mut self, range: OffsetRange, retry: &Retry, dead: Dead, now: Timestamp) {
        let offsets = (range.start.0..range.end.0).map(Offset);
        if dead == Dead::Yes {
            self.dying.extend(offsets);
        } else if retry.due_at <= now {
            self.make_ready(range);
        } else {
            offsets.for_each(|offset| self.due.insert(retry.due_at, offset));
        }
    }

    /// Forgets what waits within a range.
    pub fn forget(&mut self, range: OffsetRange) {
        self.forget_each(&[range]);
    }

    /// Forgets what waits within ranges, which are in order and apart.
    pub fn forget_each(&mut self, ranges: &[OffsetRange]) {
        if self.count() == 0 {
            return;
        }
        for &range in ranges {
            while let Some(ready) = self.ready.range_from(range.start)
                && ready.start < range.end
            {
                self.take_ready(OffsetRange {
                    start: ready.start.max(range.start),
                    end: ready.end.min(range.end),
                });
            }
            let due: Vec<Offset> = self.due.within(range).collect();
            due.into_iter().for_each(|offset| self.due.remove(offset));
            let dying: Vec<Offset> =
                self.dying.range(range.start..range.end.max(range.start)).copied().collect();
            dying.iter().for_each(|offset| {
                self.dying.remove(offset);
            });
        }
    }
}

/// Whether a message goes to the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dead {
    Yes,
    No,
}

impl Dead {
    /// Whether a message that came back does. `mortal` is whether dead letters of the group have a place to go.
    pub fn after(retry: &Retry, mortal: bool, settings: &GroupSettings) -> Self {
        let over = retry
            .last_failure()
            .is_some_and(|failure| matches!(failure.reason, ReturnReason::Rejected | ReturnReason::Expired));
        let too_often = settings.max_attempts != 0 && retry.failed >= settings.max_attempts;
        if mortal && (over || too_often) { Self::Yes } else { Self::No }
    }
}
