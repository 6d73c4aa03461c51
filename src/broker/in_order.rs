//! Handing out under `exclusive`: the messages of a part in the order of their offsets, whatever has become of them.
//!
//! What waits to be handed out again goes before everything behind it, and until its time has come nothing behind it
//! goes. What dies is out of the order.

use super::handing_out::{Dispatch, Log};
use super::part::Part;
use crate::model::id::{Offset, OffsetRange};

impl Dispatch<'_> {
    /// Hands out what is next of a part, until something must be waited for.
    pub fn hand_out_in_order(&mut self, part: &mut Part, log: Log<'_>) {
        while self.budget > 0 && self.may_hand_out() {
            let moved = match part.redelivery.lowest() {
                Some(offset) if offset < part.cursor => self.redeliver_next(part, log, offset),
                lowest => {
                    let before = part.cursor;
                    self.hand_out_new(part, log, lowest.unwrap_or(log.end).min(log.end));
                    // What waits and stands at the cursor is behind it from now on.
                    let at_retry = lowest == Some(part.cursor) && part.unsettled_before(log.end).is_none();
                    at_retry || part.cursor > before
                }
            };
            if !moved {
                return;
            }
        }
    }

    /// Hands out the lowest message that waits to be handed out again, and those after it that are ready too. Answers
    /// whether something was done with it.
    fn redeliver_next(&mut self, part: &mut Part, log: Log<'_>, offset: Offset) -> bool {
        let Some(ready) = part.redelivery.ready.range_at(offset) else { return false };
        let Some(chunk) = log.cached.and_then(|cached| cached.at(offset)) else {
            self.want_retry(part, offset, ready.end);
            return false;
        };
        self.redeliver_run(part, log, chunk, OffsetRange { start: offset, end: ready.end }) > offset
    }
}
