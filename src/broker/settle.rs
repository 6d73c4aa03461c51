//! What comes back: settlements of consumers, leases that end, consumers that go.
//!
//! Only what is in flight to the consumer that settles counts; the rest of its ranges is passed over, so settling
//! twice or too late does no harm. A return that counts as an attempt is recorded; one that does not is not.

use std::sync::Arc;
use std::time::Duration;

use super::group::Group;
use super::machine::Broker;
use super::redelivery::Dead;
use super::turns::Slot;
use super::{Content, Ending, Output, dead_letter, refusals};
use crate::model::id::{GroupId, Offset, OffsetRange, SessionId, TopicId};
use crate::model::limits::REASON_BYTES_MAX;
use crate::model::ranges::RangeSet;
use crate::model::record::Record;
use crate::model::retry::{Failure, ReturnReason};
use crate::model::settings::{Backoff, Policy};
use crate::model::time::Timestamp;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{Settle, Settlement};
use crate::protocol::response::Reply;

/// What a settlement does, checked.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Ack,
    Extend,
    Return(Return),
}

impl Action {
    /// What a settlement does.
    pub fn of(settlement: &Settlement) -> Result<Self, Refusal> {
        Ok(match settlement {
            Settlement::Ack => Self::Ack,
            Settlement::Extend => Self::Extend,
            Settlement::Release => Self::Return(Return::Released),
            Settlement::Nack { delay_ms, reason } => Self::Return(Return::Failed {
                reason: ReturnReason::Nacked,
                text: checked_reason(reason.as_deref())?,
                wait: delay_ms.map(Duration::from_millis),
            }),
            Settlement::Reject { reason } => Self::Return(Return::Failed {
                reason: ReturnReason::Rejected,
                text: checked_reason(reason.as_deref())?,
                wait: None,
            }),
        })
    }
}

/// How deliveries come back.
#[derive(Clone, Debug)]
pub(super) enum Return {
    /// Untouched.
    Released,
    /// As a failed attempt. The next one comes after the wait, or the back-off of the group.
    Failed { reason: ReturnReason, text: Option<Arc<str>>, wait: Option<Duration> },
}

impl Return {
    fn failed(reason: ReturnReason) -> Self {
        Self::Failed { reason, text: None, wait: None }
    }
}

/// How much later than its end a lease is noticed at most, as a part of the lease.
const LEASE_CHECKS: u32 = 32;
/// How much later than its end a lease is noticed at most.
const LEASE_CHECK_MAX: Duration = Duration::from_secs(1);

impl Broker {
    pub(super) fn settle(&mut self, session: SessionId, request: &Settle, out: &mut Output) {
        let settled = self.try_settle(session, request, out);
        if request.request != 0 {
            let reply = settled.map(|count| Reply::Settled { count });
            out.effect(session, Content::Reply(request.request, reply));
        }
    }

    fn try_settle(&mut self, session: SessionId, request: &Settle, out: &mut Output) -> Result<u64, Refusal> {
        let found = self.sessions.get(&session).and_then(|state| state.consumers.get(&request.consumer));
        let &(id, slot) = found.ok_or_else(|| refusals::unknown_handle("consumer", request.consumer))?;
        let action = Action::of(&request.settlement)?;
        let member = self.groups.get(&id).and_then(|group| group.members.get(slot));
        // What is settled here may be of a hand-over that was recalled, and be with the consumer once more.
        if member.is_none_or(|consumer| consumer.generation(request.topic) != request.generation) {
            return Ok(0);
        }
        Ok(self.act((id, slot), request.topic, &action, &request.ranges, out))
    }

    /// Does with what a consumer has in flight of a topic within `ranges` what it wants. Answers how many messages that
    /// are.
    pub(super) fn act(
        &mut self,
        (id, slot): (GroupId, Slot),
        topic: TopicId,
        action: &Action,
        ranges: &[OffsetRange],
        out: &mut Output,
    ) -> u64 {
        let now = self.now;
        let Some(group) = self.groups.get_mut(&id) else { return 0 };
        let count = match action {
            Action::Ack => group.ack(slot, topic, ranges, now),
            Action::Extend => group.extend(slot, topic, ranges, now),
            Action::Return(back) => {
                let pieces = group.take_back(slot, topic, ranges);
                self.give_back(id, topic, &pieces, back, out);
                pieces.iter().map(|piece| piece.len()).sum()
            }
        };
        if count > 0
            && let Some(group) = self.groups.get_mut(&id)
        {
            if let Some(consumer) = group.members.get_mut(slot) {
                consumer.stuck = false;
            }
            group.members.refresh(slot);
            self.cycle.mark(group, topic);
        }
        count
    }

    /// Takes a consumer out of its group; what is in flight to it goes back.
    pub(super) fn remove_consumer(&mut self, id: GroupId, slot: Slot, ending: Ending, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(mut consumer) = group.members.leave(slot) else { return };
        self.totals.consumers -= 1;
        for pull in &consumer.pulls {
            self.pull_timers.remove(&(pull.until, pull.id));
        }
        let mut pieces = Vec::new();
        consumer.flights.take_all(|topic, piece| pieces.push((topic, piece)));
        self.cycle.mark_consumers(group);
        self.note_vacancy(id, ending, out);
        let back = match ending {
            Ending::Closed => Return::Released,
            Ending::Lost => Return::failed(ReturnReason::ConsumerLost),
        };
        for (topic, piece) in pieces {
            self.give_back(id, topic, &[piece], &back, out);
        }
    }

    /// Does what is due in a group by time: leases that have ended, parts that are to be looked at.
    pub(super) fn wake(&mut self, id: GroupId, out: &mut Output) {
        let now = self.now;
        if self.has_ended(id) {
            return self.delete_group(id, out);
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.wake_parts(now);
        if group.lease_check.is_none_or(|at| at > now) {
            return;
        }
        let mut pieces = Vec::new();
        let earliest = group.take_expired(now, &mut pieces);
        let late = (group.settings.lease() / LEASE_CHECKS).min(LEASE_CHECK_MAX);
        group.lease_check = earliest.map(|earliest| earliest.max(now.after(late)));
        for (topic, piece) in pieces {
            self.give_back(id, topic, &[piece], &Return::failed(ReturnReason::LeaseExpired), out);
        }
    }

    /// Nothing could be heard or said for so long, because a commit took it: leases do not run meanwhile. Deliveries
    /// of that commit were still on their way, and nobody could say anything about the others.
    pub fn stood_still(&mut self, time: Duration) {
        for group in self.groups.values_mut() {
            group.members.iter_mut().for_each(|(_, consumer)| consumer.flights.postpone(time));
        }
    }

    /// Notes how messages came back, and has them handed out again when their time comes, or buried.
    fn give_back(
        &mut self,
        id: GroupId,
        topic_id: TopicId,
        pieces: &[OffsetRange],
        back: &Return,
        out: &mut Output,
    ) {
        let now = self.now;
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(topic) = self.topics.get(&topic_id) else { return };
        let mortal = dead_letter::target(&topic.state.name, &group.settings).is_some();
        let Some(part) = group.parts.get_mut(&topic_id) else { return };
        let start = topic.state.start;
        for piece in pieces {
            // What is gone from the topic is not handed out again.
            let gone = OffsetRange { start: piece.start, end: piece.end.min(start) };
            if gone.start < gone.end {
                part.settle(gone);
            }
            let mut at = piece.start.max(start);
            while at < piece.end {
                let (known, end) = part.retry_run(at, piece.end);
                let range = OffsetRange { start: at, end };
                let known = known.cloned().unwrap_or_default();
                let retry = match back {
                    Return::Released => known.released(now),
                    Return::Failed { reason, text, wait } => {
                        let attempts = known.failed.saturating_add(1);
                        let wait = match (reason, group.settings.policy) {
                            // The next consumer takes over at once.
                            (ReturnReason::ConsumerLost, Policy::Exclusive) => Duration::ZERO,
                            _ => wait.unwrap_or_else(|| backoff(&group.settings.backoff, at, attempts)),
                        };
                        let failure = Failure { at: now, reason: *reason, text: text.clone() };
                        known.failed(failure, now.after(wait))
                    }
                };
                let dead = Dead::after(&retry, mortal, &group.settings);
                part.put_back(range, &retry, dead, now);
                part.state.retries.insert(range, retry.clone());
                out.records.push(Record::Returned { group: part.id, range, retry });
                at = end;
            }
        }
        if !part.redelivery.dying.is_empty() {
            self.dying.insert((id, topic_id));
        }
        self.cycle.mark(group, topic_id);
    }
}

/// What a consumer says about a message that it gives back.
fn checked_reason(reason: Option<&str>) -> Result<Option<Arc<str>>, Refusal> {
    match reason {
        Some(text) if text.len() > REASON_BYTES_MAX => {
            let text = format!("a reason of {} bytes, the limit is {REASON_BYTES_MAX}", text.len());
            Err(Refusal::new(ErrorCode::Invalid, text))
        }
        Some("") | None => Ok(None),
        Some(text) => Ok(Some(text.into())),
    }
}

impl Group {
    /// Takes out of flight what of a topic is within the ranges.
    fn take_back(&mut self, slot: Slot, topic: TopicId, ranges: &[OffsetRange]) -> Vec<OffsetRange> {
        let mut pieces = Vec::new();
        let Some(consumer) = self.members.get_mut(slot) else { return pieces };
        let before = consumer.flights.count();
        for range in ranges {
            consumer.flights.take(topic, *range, |piece, _| pieces.push(piece));
        }
        self.members.in_flight -= before - consumer.flights.count();
        pieces
    }

    /// Starts the lease of what of a topic is within the ranges anew.
    fn extend(&mut self, slot: Slot, topic: TopicId, ranges: &[OffsetRange], now: Timestamp) -> u64 {
        let until = now.after(self.settings.lease());
        let Some(consumer) = self.members.get_mut(slot) else { return 0 };
        // Ranges may overlap: each message is counted once.
        let mut distinct = RangeSet::new();
        for range in ranges {
            distinct.insert(*range);
        }
        let count = distinct.iter().map(|range| consumer.flights.extend(topic, range, until)).sum();
        // The lease may have been made shorter since the others were handed out.
        if count > 0 {
            self.check_leases_by(until);
        }
        count
    }

    /// Takes out of flight whatever is due. Answers the earliest end of a lease that is left.
    fn take_expired(
        &mut self,
        now: Timestamp,
        pieces: &mut Vec<(TopicId, OffsetRange)>,
    ) -> Option<Timestamp> {
        let mut earliest: Option<Timestamp> = None;
        let mut expired = Vec::new();
        let mut taken = 0;
        for (slot, consumer) in self.members.iter_mut() {
            let before = consumer.flights.count();
            let left = consumer.flights.take_expired(now, |topic, piece| pieces.push((topic, piece)));
            earliest = earliest.into_iter().chain(left).min();
            if consumer.flights.count() < before {
                taken += before - consumer.flights.count();
                consumer.stuck = false;
                expired.push(slot);
            }
        }
        self.members.in_flight -= taken;
        for slot in expired {
            self.members.refresh(slot);
        }
        earliest
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
