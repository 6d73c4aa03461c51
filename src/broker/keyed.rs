//! Handing out under `key`: messages with the same key to the same consumer, one at a time.
//!
//! First what [was parked or came back](super::keys) and may go now, each to the consumer of its key; then what is
//! new. New messages that cannot go yet are parked, so that those of other keys need not wait for them.

use super::assignment::KeyHash;
use super::cache::CachedChunk;
use super::consumer::Redelivered;
use super::handing_out::{Dispatch, Log};
use super::keys::{Keys, Offer, behind, place};
use super::part::Part;
use super::sieve::Verdict;
use super::turns::Slot;
use crate::model::id::{Offset, OffsetRange};
use crate::model::message::Parts;

/// What has become of a message at the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The cursor is behind it.
    Passed,
    /// Nobody can take it now.
    Stuck,
}

impl Dispatch<'_> {
    /// Hands out what may go of a part.
    pub fn hand_out_by_key(&mut self, part: &mut Part, log: Log<'_>) {
        self.hand_out_offers(part, log);
        self.hand_out_new_by_key(part, log);
        // What the cursor has passed may have been offered.
        self.hand_out_offers(part, log);
    }

    /// Hands out what is offered, to everybody who can take it.
    fn hand_out_offers(&mut self, part: &mut Part, log: Log<'_>) {
        if let Some(keys) = &mut part.keys {
            keys.sort_offers(self.members.assignment());
        }
        let mut from = (0, Offset(0));
        while self.budget > 0
            && self.may_hand_out()
            && let Some(offer) = part.keys.as_ref().and_then(|keys| keys.next_offer(from))
        {
            let Some(slot) = self.taker(offer.to) else {
                match behind(offer) {
                    Some(next) => from = next,
                    None => return,
                }
                continue;
            };
            if !may_go(part, offer.offset) {
                withdraw(part, offer);
                continue;
            }
            let Some(chunk) = log.cached.and_then(|cached| cached.at(offer.offset)) else {
                if !self.want_retry(part, offer.offset, offer.offset.next()) {
                    return;
                }
                from = place(Offer { offset: offer.offset.next(), ..offer });
                continue;
            };
            self.take_up(part, log, chunk, slot, offer);
        }
    }

    /// Hands out one message that was offered, or does what else is to be done with it.
    fn take_up(&mut self, part: &mut Part, log: Log<'_>, chunk: &CachedChunk, slot: Slot, offer: Offer) {
        let range = OffsetRange::one(offer.offset);
        let again = part.redelivery.ready.contains(offer.offset);
        let (verdict, _) = self.sieve.run(chunk, range.start, range.end, 1);
        if verdict == Verdict::HandOut {
            let may_be_known = again || offer.offset < part.known_from;
            let redelivered = if may_be_known { Redelivered::Yes } else { Redelivered::No };
            let (retry, _) = part.retry_run(range.start, range.end);
            if self.hand_to(slot, log, chunk, range, retry, redelivered) == 0 {
                return;
            }
            part.note_handed_out(range.end);
        }
        withdraw(part, offer);
        if again {
            part.redelivery.take_ready(range);
        }
        if let Some(keys) = part.keys.as_mut().filter(|keys| keys.is_parked(offer.offset)) {
            self.parks_left += 1;
            match verdict {
                Verdict::HandOut => keys.hold_parked(offer.offset),
                Verdict::Settle | Verdict::Expire => keys.unpark(offer.offset),
            }
        }
        if verdict != Verdict::HandOut {
            self.pass_over(part, log, range, verdict);
        }
    }

    /// Hands out or parks what the cursor comes by. Where no more can be parked it stays where it is: looking whether
    /// the next one could go would mean reading it again and again.
    fn hand_out_new_by_key(&mut self, part: &mut Part, log: Log<'_>) {
        'chunks: while part.cursor < log.end && self.may_step(part) {
            if part.skip_settled() {
                continue;
            }
            let Some(chunk) = log.cached.and_then(|cached| cached.at(part.cursor)) else {
                self.want_at_cursor(part, part.cursor);
                return;
            };
            let end = chunk.end().min(log.end);
            while part.cursor < end && self.may_step(part) {
                if self.step(part, log, chunk) == Step::Stuck {
                    break 'chunks;
                }
                if part.skip_settled() {
                    break;
                }
            }
        }
        self.read_ahead_if_served(part, log);
    }

    fn may_step(&self, part: &Part) -> bool {
        self.parks_left > 0 && self.may_go_on(part)
    }

    /// Does what is to be done with the message at the cursor, which is in the chunk and not settled.
    fn step(&mut self, part: &mut Part, log: Log<'_>, chunk: &CachedChunk) -> Step {
        let offset = part.cursor;
        let range = OffsetRange::one(offset);
        let key = key_of(chunk, offset);
        if offset < part.fresh_from && part.state.retries.get(offset).is_some() {
            self.pass_retry(part, offset, key);
            return Step::Passed;
        }
        let (verdict, _) = self.sieve.run(chunk, offset, range.end, 1);
        if verdict != Verdict::HandOut {
            self.pass_over(part, log, range, verdict);
            part.cursor = range.end;
            return Step::Passed;
        }
        let redelivered = if offset < part.known_from { Redelivered::Yes } else { Redelivered::No };
        let owner = key.map(|key| self.members.assignment().owner(key));
        let free = key.is_none_or(|key| part.keys.as_ref().is_some_and(|keys| keys.is_free(key)));
        while free && let Some(slot) = self.taker(owner.flatten()) {
            if self.hand_to(slot, log, chunk, range, None, redelivered) == 0 {
                continue;
            }
            if let (Some(key), Some(keys)) = (key, &mut part.keys) {
                keys.hold(offset, key);
            }
            part.note_handed_out(range.end);
            part.cursor = range.end;
            return Step::Passed;
        }
        let (Some(key), Some(keys)) = (key, &mut part.keys) else { return Step::Stuck };
        keys.park(offset, key);
        part.cursor = range.end;
        self.parks_left = self.parks_left.saturating_sub(1);
        self.count_pass(log.topic);
        Step::Passed
    }

    /// Notes a message that waits for another attempt, or for its place in the dead letters, and was handed out by a
    /// broker before this one, or by another policy: its key is busy.
    fn pass_retry(&mut self, part: &mut Part, offset: Offset, key: Option<KeyHash>) {
        let ready = part.redelivery.ready.contains(offset);
        if let Some(keys) = &mut part.keys {
            match key {
                // By another policy several of one key may have been handed out.
                Some(key) if !keys.is_free(key) => keys.park(offset, key),
                Some(key) => keys.hold(offset, key),
                None => {}
            }
            if ready {
                keys.offer_again(offset);
            }
        }
        part.cursor = offset.next();
        self.count_pass(part.topic());
    }

    /// Who takes a message that is for one consumer, or for anybody.
    fn taker(&self, to: Option<Slot>) -> Option<Slot> {
        match to {
            Some(slot) => self.members.can_take(slot).then_some(slot),
            None => self.members.turns.next().map(|(turn, _)| turn.slot),
        }
    }

    /// Notes that the cursor has passed a message that was not handed out.
    fn count_pass(&mut self, topic: crate::model::id::TopicId) {
        self.passes_left = self.passes_left.saturating_sub(1);
        if self.passes_left == 0 {
            self.passed.push(topic);
        }
    }
}

/// Whether what was offered may still be handed out. A parked message whose turn has come and that waits for another
/// attempt keeps its key busy until then.
fn may_go(part: &mut Part, offset: Offset) -> bool {
    let again = part.redelivery.ready.contains(offset);
    let Some(keys) = &mut part.keys else { return again };
    if !keys.is_parked(offset) {
        return again;
    }
    if !keys.is_first(offset) {
        return false;
    }
    let waits = !again && part.state.retries.get(offset).is_some();
    if waits {
        keys.hold_parked(offset);
    }
    !waits
}

fn withdraw(part: &mut Part, offer: Offer) {
    if let Some(keys) = &mut part.keys {
        Keys::withdraw(keys, offer);
    }
}

/// The key of a message of a chunk. What cannot be read has none: a store may hold what a later version wrote.
fn key_of(chunk: &CachedChunk, offset: Offset) -> Option<KeyHash> {
    let index = (offset.0 - chunk.first.0) as usize;
    let parts = Parts::read(chunk.block.encoded(index), index).ok()?;
    parts.key.map(KeyHash::of)
}
