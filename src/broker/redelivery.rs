//! What a group has handed out in vain in one topic and will hand out again, or bury.

use std::collections::BTreeSet;

use crate::model::id::{Offset, OffsetRange};
use crate::model::ranges::RangeSet;
use crate::model::retry::{Retry, ReturnReason};
use crate::model::settings::GroupSettings;
use crate::model::time::Timestamp;

/// What waits for another attempt. A message is in one of the three places at most.
#[derive(Debug, Default)]
pub(super) struct Redelivery {
    /// To be handed out as soon as someone has credit.
    pub ready: RangeSet,
    ready_count: u64,
    /// To be handed out from a point of time on.
    pub due: BTreeSet<(Timestamp, Offset)>,
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

    /// Makes ready what is due.
    pub fn advance(&mut self, now: Timestamp) {
        while let Some(&(due_at, offset)) = self.due.first() {
            if due_at > now {
                break;
            }
            self.due.pop_first();
            self.make_ready(OffsetRange::one(offset));
        }
    }

    /// Puts messages that came back where they wait.
    pub fn put(&mut self, range: OffsetRange, retry: &Retry, dead: Dead, now: Timestamp) {
        let offsets = (range.start.0..range.end.0).map(Offset);
        if dead == Dead::Yes {
            self.dying.extend(offsets);
        } else if retry.due_at <= now {
            self.make_ready(range);
        } else {
            self.due.extend(offsets.map(|offset| (retry.due_at, offset)));
        }
    }

    /// Forgets what waits within a range.
    pub fn forget(&mut self, range: OffsetRange) {
        while let Some(ready) = self.ready.range_from(range.start)
            && ready.start < range.end
        {
            self.take_ready(OffsetRange {
                start: ready.start.max(range.start),
                end: ready.end.min(range.end),
            });
        }
        self.due.retain(|(_, offset)| !range.contains(*offset));
        self.dying.retain(|offset| !range.contains(*offset));
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
