//! What comes back: settlements of consumers, leases that end, consumers that go.
//!
//! Only what is in flight to the consumer that settles counts; the rest of its ranges is passed over, so settling
//! twice or too late does no harm. A return that counts as an attempt is recorded; one that does not is not.

use std::time::Duration;

use super::group::{Group, is_dead};
use super::machine::Broker;
use super::turns::Slot;
use super::{Content, Ending, Output, dead_letter, refusals};
use crate::model::id::{GroupId, Offset, OffsetRange, SessionId};
use crate::model::record::{Record, Retry, ReturnReason};
use crate::model::settings::Backoff;
use crate::model::time::Timestamp;
use crate::protocol::request::{Settle, Settlement};
use crate::protocol::response::Reply;

/// How much later than its end a lease is noticed at most, as a part of the lease.
const LEASE_CHECKS: u32 = 32;
/// How much later than its end a lease is noticed at most.
const LEASE_CHECK_MAX: Duration = Duration::from_secs(1);

impl Broker {
    pub(super) fn settle(&mut self, session: SessionId, request: &Settle, out: &mut Output) {
        let found = self.sessions.get(&session).and_then(|state| state.consumers.get(&request.consumer));
        let settled = match found.copied() {
            Some((group, slot)) => Ok(self.settle_ranges(group, slot, request, out)),
            None => Err(refusals::unknown_handle("consumer", request.consumer)),
        };
        if request.request != 0 {
            let reply = settled.map(|count| Reply::Settled { count });
            out.effect(session, Content::Reply(request.request, reply));
        }
    }

    fn settle_ranges(&mut self, id: GroupId, slot: Slot, request: &Settle, out: &mut Output) -> u64 {
        let now = self.now;
        let Some(group) = self.groups.get_mut(&id) else { return 0 };
        let mut pieces = Vec::new();
        let count = match request.settlement {
            Settlement::Ack => group.ack(slot, &request.ranges),
            Settlement::Extend => group.extend(slot, &request.ranges, now),
            _ => group.take_back(slot, &request.ranges, &mut pieces),
        };
        match request.settlement {
            Settlement::Ack | Settlement::Extend => {}
            Settlement::Release => pieces.into_iter().for_each(|piece| group.redelivery.make_ready(piece)),
            Settlement::Nack { delay_ms } => {
                let wait = delay_ms.map(Duration::from_millis);
                self.give_back(id, &pieces, ReturnReason::Nacked, wait, out);
            }
            Settlement::Reject => self.give_back(id, &pieces, ReturnReason::Rejected, None, out),
        }
        if count > 0
            && let Some(group) = self.groups.get_mut(&id)
        {
            if let Some(consumer) = group.consumer_mut(slot) {
                consumer.stuck = false;
            }
            group.refresh(slot);
            self.cycle.mark(group);
        }
        count
    }

    /// Takes a consumer out of its group; what is in flight to it goes back.
    pub(super) fn remove_consumer(&mut self, id: GroupId, slot: Slot, ending: Ending, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(mut consumer) = group.leave(slot) else { return };
        self.totals.consumers -= 1;
        for pull in &consumer.pulls {
            self.pull_timers.remove(&(pull.until, pull.id));
        }
        let mut pieces = Vec::new();
        consumer.flights.take_all(|piece, _| pieces.push(piece));
        self.cycle.mark(group);
        match ending {
            Ending::Closed => pieces.into_iter().for_each(|piece| group.redelivery.make_ready(piece)),
            Ending::Lost => self.give_back(id, &pieces, ReturnReason::ConsumerLost, None, out),
        }
    }

    /// Does what is due in a group by time: leases that have ended.
    pub(super) fn wake(&mut self, id: GroupId, out: &mut Output) {
        let now = self.now;
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.lease_check.is_none_or(|at| at > now) {
            return;
        }
        let mut pieces = Vec::new();
        let earliest = group.take_expired(now, &mut pieces);
        let late = (group.state.settings.lease() / LEASE_CHECKS).min(LEASE_CHECK_MAX);
        group.lease_check = earliest.map(|earliest| earliest.max(now.after(late)));
        self.give_back(id, &pieces, ReturnReason::LeaseExpired, None, out);
    }

    /// Counts an attempt that failed for each message of the pieces, and has them handed out again after `wait`, or
    /// the back-off of the group, or buried.
    fn give_back(
        &mut self,
        id: GroupId,
        pieces: &[OffsetRange],
        reason: ReturnReason,
        wait: Option<Duration>,
        out: &mut Output,
    ) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(topic) = self.topics.get(&group.state.topic) else { return };
        let mortal = dead_letter::target(&topic.state.name, &group.state.settings).is_some();
        for piece in pieces {
            let mut at = piece.start;
            while at < piece.end {
                let (attempts, end) = group.attempts_run(at, piece.end);
                let range = OffsetRange { start: at, end };
                let attempts = attempts.saturating_add(1);
                let wait = wait.unwrap_or_else(|| backoff(&group.state.settings.backoff, at, attempts));
                let retry = Retry { attempts, due_at: self.now.after(wait), reason };
                out.records.push(Record::Returned { group: id, range, retry });
                group.take_in(range, retry, mortal, self.now);
                at = end;
            }
        }
        if !group.redelivery.dying.is_empty() {
            self.dying_groups.insert(id);
        }
    }
}

impl Group {
    /// Takes out of flight what is within the ranges.
    fn take_back(&mut self, slot: Slot, ranges: &[OffsetRange], pieces: &mut Vec<OffsetRange>) -> u64 {
        let Some(consumer) = self.consumer_mut(slot) else { return 0 };
        let before = consumer.flights.count();
        for range in ranges {
            consumer.flights.take(*range, |piece, _| pieces.push(piece));
        }
        let count = before - consumer.flights.count();
        self.in_flight -= count;
        count
    }

    /// Starts the lease of what is within the ranges anew.
    fn extend(&mut self, slot: Slot, ranges: &[OffsetRange], now: Timestamp) -> u64 {
        let deadline = now.after(self.state.settings.lease());
        let Some(consumer) = self.consumer_mut(slot) else { return 0 };
        // Ranges may overlap: all are taken out before any is put back.
        let mut pieces = Vec::new();
        for range in ranges {
            consumer.flights.take(*range, |piece, bytes| pieces.push((piece, bytes)));
        }
        pieces.sort_unstable();
        let count = pieces.iter().map(|(piece, _)| piece.len()).sum();
        for (piece, bytes) in pieces {
            consumer.flights.add(piece, bytes, deadline);
        }
        // The lease may have been made shorter since the others were handed out.
        if count > 0 {
            self.check_leases_by(deadline);
        }
        count
    }

    /// Takes out of flight whatever is due. Answers the earliest end of a lease that is left.
    fn take_expired(&mut self, now: Timestamp, pieces: &mut Vec<OffsetRange>) -> Option<Timestamp> {
        let mut earliest: Option<Timestamp> = None;
        let mut expired = Vec::new();
        let mut taken = 0;
        for (slot, consumer) in self.consumers_mut() {
            let before = consumer.flights.count();
            let left = consumer.flights.take_expired(now, |piece| pieces.push(piece));
            earliest = earliest.into_iter().chain(left).min();
            if consumer.flights.count() < before {
                taken += before - consumer.flights.count();
                consumer.stuck = false;
                expired.push(slot);
            }
        }
        self.in_flight -= taken;
        for slot in expired {
            self.refresh(slot);
        }
        earliest
    }

    /// Notes a failed attempt of a range and puts it where it waits.
    fn take_in(&mut self, range: OffsetRange, retry: Retry, mortal: bool, now: Timestamp) {
        let dead = mortal && is_dead(&retry, self.state.settings.max_attempts);
        let offsets = (range.start.0..range.end.0).map(Offset);
        for offset in offsets.clone() {
            self.state.retries.insert(offset, retry);
        }
        if dead {
            self.redelivery.dying.extend(offsets);
        } else if retry.due_at <= now {
            self.redelivery.make_ready(range);
        } else {
            self.redelivery.due.extend(offsets.map(|offset| (retry.due_at, offset)));
        }
    }
}

/// The wait before the next attempt, changed by chance. The chance is a hash of the offset and the attempts, so that
/// the same inputs give the same waits; messages that come back together as a range wait together.
fn backoff(backoff: &Backoff, offset: Offset, attempts: u32) -> Duration {
    let wait = backoff.wait_ms(attempts);
    let jitter = u128::from(backoff.jitter_percent.min(100));
    let span = ((u128::from(wait) * jitter / 100) as u64).min(u64::MAX / 2);
    if span == 0 {
        return Duration::from_millis(wait);
    }
    // The mixing steps of splitmix64.
    let mut hash = offset.0.wrapping_add(u64::from(attempts) << 48).wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    // In 0..=2 * span: the range is as wide as the jitter in both directions.
    let change = (u128::from(hash >> 32) * (2 * u128::from(span) + 1)) >> 32;
    Duration::from_millis((wait - span).saturating_add(u64::try_from(change).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_percentage_and_uses_it() {
        let settings =
            Backoff { initial_ms: 1_000, multiplier_percent: 100, maximum_ms: 1_000, jitter_percent: 20 };
        let waits: Vec<u128> =
            (0..1_000).map(|offset| backoff(&settings, Offset(offset), 1).as_millis()).collect();
        assert!(waits.iter().all(|wait| (800..=1_200).contains(wait)));
        assert!(waits.iter().any(|wait| *wait < 840) && waits.iter().any(|wait| *wait > 1_160));
        assert_ne!(backoff(&settings, Offset(1), 1), backoff(&settings, Offset(1), 2));
        let endless = Backoff { initial_ms: u64::MAX, maximum_ms: u64::MAX, jitter_percent: 100, ..settings };
        let _ = backoff(&endless, Offset(u64::MAX), u32::MAX);
    }
}
