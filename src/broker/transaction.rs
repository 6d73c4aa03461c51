//! Transactions: messages to several topics and settlements of several consumers, all of them in one commit or none.
//!
//! The client collects; the node sees a transaction only when it is complete, and keeps nothing of it before or
//! after. So there is nothing to roll back here, and nothing that a client that goes away could leave behind.
//!
//! A transaction is carried out if and only if everything in it can be: its topics are there, there is space, and each
//! offset that it settles is in flight to the consumer that settles it, by a lease that has not ended. That makes
//! consuming and producing exactly once: whoever got the message again in the meantime is the one who can settle it.
//! It takes a number of its producer's sequence for itself, behind those of its messages, so that the last sequence of
//! the producer tells whether it was carried out, also where it has no message.

use super::machine::Broker;
use super::producer::check_publish;
use super::settle::Action;
use super::turns::Slot;
use super::{Output, refusals};
use crate::model::id::{GroupId, Offset, OffsetRange, ProducerId, Sequence, SessionId, TopicId};
use crate::model::limits::{TRANSACTION_RANGES_MAX, TRANSACTION_SETTLEMENTS_MAX};
use crate::model::message::MessageBlock;
use crate::model::record::Record;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{Handle, Settlement, Transact, TransactSettle};

/// A settlement that can be carried out.
struct Settling<'a> {
    consumer: (GroupId, Slot),
    topic: TopicId,
    action: Action,
    ranges: &'a [OffsetRange],
}

impl Broker {
    pub(super) fn transact(
        &mut self,
        session: SessionId,
        transact: &Transact,
        block: MessageBlock,
        out: &mut Output,
    ) {
        if let Err(refusal) = self.try_transact(session, transact, &block, out) {
            self.refuse_publish(session, &transact.publish, refusal, out);
        }
    }

    fn try_transact(
        &mut self,
        session: SessionId,
        transact: &Transact,
        block: &MessageBlock,
        out: &mut Output,
    ) -> Result<(), Refusal> {
        let publish = &transact.publish;
        let id = self.producer_of(session, publish.producer)?;
        let own = check_publish(publish, block)?.next();
        check_settlements(&transact.settlements)?;
        match self.known_of(id, publish.sequence, own)? {
            0 => {}
            known if known > block.count() => {
                self.confirm_later(id);
                return Ok(());
            }
            // The numbers are those of something else: a transaction is never there in part.
            _ => {
                let text = format!("a transaction from {} on, but that number is used", publish.sequence);
                return Err(Refusal::new(ErrorCode::OutOfSequence, text));
            }
        }
        let settlings = self.settlings(session, &transact.settlements)?;
        if !block.is_empty() {
            let ways = self.admit(id, &publish.parts, block, 0)?;
            self.store_parts(id, publish, block, 0, ways, out);
        }
        for settling in settlings {
            let Settling { consumer, topic, action, ranges } = settling;
            self.act(consumer, topic, &action, ranges, out);
        }
        self.advance(id, own, out);
        self.confirm_later(id);
        Ok(())
    }

    /// Takes the number of a transaction for it.
    fn advance(&mut self, id: ProducerId, last: Sequence, out: &mut Output) {
        let Some(producer) = self.producers.by_id.get_mut(&id) else { return };
        (producer.state.last, producer.state.seen_at) = (last, self.now);
        self.time = self.time.max(self.now);
        out.records.push(Record::ProducerAdvanced { producer: id, last, at: self.now });
    }

    /// What settlements do, if all of it can be done.
    fn settlings<'a>(
        &self,
        session: SessionId,
        settlements: &'a [TransactSettle],
    ) -> Result<Vec<Settling<'a>>, Refusal> {
        let state = self.sessions.get(&session).ok_or_else(refusals::no_session)?;
        settlements
            .iter()
            .map(|settle| {
                let TransactSettle { consumer: handle, topic, generation, ranges, .. } = settle;
                let Some(&consumer) = state.consumers.get(handle) else {
                    return Err(aborted(format!("the connection has no consumer {handle} any more")));
                };
                let (group, slot) = consumer;
                let member = self.groups.get(&group).and_then(|group| group.members.get(slot));
                // Of a hand-over that was recalled nothing is settled, though the consumer may have it once more.
                let member = member.filter(|member| member.generation(*topic) == *generation);
                for &range in ranges {
                    let missing = member.map_or(Some(range.start), |member| {
                        member.flights.first_missing(*topic, range, self.now)
                    });
                    if let Some(missing) = missing {
                        return Err(not_in_flight(*handle, *topic, missing));
                    }
                }
                Ok(Settling { consumer, topic: *topic, action: Action::of(&settle.settlement)?, ranges })
            })
            .collect()
    }
}

/// A transaction that is not carried out.
fn aborted(why: String) -> Refusal {
    Refusal::new(ErrorCode::TransactionAborted, format!("{why}: nothing of the transaction was carried out"))
}

fn not_in_flight(consumer: Handle, topic: TopicId, offset: Offset) -> Refusal {
    aborted(format!(
        "offset {offset} of topic {topic} is not in flight to consumer {consumer}, or its lease is over; it will be or \
         was handed out again"
    ))
}

/// Checks what does not depend on any state.
fn check_settlements(settlements: &[TransactSettle]) -> Result<(), Refusal> {
    let invalid = |text: &str| Err(refusals::invalid(&text));
    if settlements.len() > TRANSACTION_SETTLEMENTS_MAX {
        let text = format!(
            "a transaction with {} settlements, the limit is {TRANSACTION_SETTLEMENTS_MAX}",
            settlements.len()
        );
        return Err(Refusal::new(ErrorCode::Limit, text));
    }
    let count: usize = settlements.iter().map(|settle| settle.ranges.len()).sum();
    if count > TRANSACTION_RANGES_MAX {
        let text = format!(
            "a transaction that settles {count} ranges of offsets, the limit is {TRANSACTION_RANGES_MAX}"
        );
        return Err(Refusal::new(ErrorCode::Limit, text));
    }
    if settlements.iter().any(|settle| matches!(settle.settlement, Settlement::Extend | Settlement::Release))
    {
        return invalid("a transaction acks, nacks and rejects; extend and release beside it");
    }
    let ranges = settlements.iter().flat_map(|settle| {
        settle.ranges.iter().map(|range| (settle.consumer, settle.topic, range.start, range.end))
    });
    let mut ranges: Vec<(Handle, TopicId, Offset, Offset)> = ranges.collect();
    ranges.sort_unstable();
    if ranges.iter().any(|(.., start, end)| start >= end) {
        return invalid("a transaction that settles a range without an offset");
    }
    let overlap = ranges.windows(2).any(|pair| match pair {
        [(a, b, _, end), (c, d, start, _)] => (a, b) == (c, d) && start < end,
        _ => false,
    });
    if overlap {
        return invalid("a transaction that settles an offset twice");
    }
    Ok(())
}
