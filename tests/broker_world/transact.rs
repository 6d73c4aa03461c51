//! Transactions in the world: what is to come of one is told before the broker is asked.

use std::collections::BTreeSet;

use batonmq::broker::Command;
use batonmq::model::id::{Offset, OffsetRange, Sequence, SessionId, TopicId};
use batonmq::model::message::MessageBlock;
use batonmq::model::retry::ReturnReason;
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::{Handle, Publish, Settlement, Transact, TransactSettle};

use super::{World, told_apart};

impl World {
    /// Publishes and settles in one. Answers the code of its refusal, if it was refused.
    pub fn transact(
        &mut self,
        session: u64,
        handle: Handle,
        sequence: u64,
        parts: Vec<(TopicId, u32)>,
        settles: Vec<(Handle, Settlement, Vec<OffsetRange>)>,
    ) -> Option<ErrorCode> {
        let session = SessionId(session);
        let count: u32 = parts.iter().map(|part| part.1).sum();
        let expected = self.foretold(session, handle, sequence, &parts, &settles);
        let settlements = settles
            .iter()
            .map(|(consumer, settlement, ranges)| TransactSettle {
                consumer: *consumer,
                topic: self.topic_of(session, *consumer),
                generation: self.generation_of(session, *consumer),
                settlement: settlement.clone(),
                ranges: ranges.clone(),
            })
            .collect();
        // As large as those that are published with a key: bytes in flight are counted exactly then.
        let mut messages = told_apart(session, handle, sequence, count);
        messages.iter_mut().for_each(|message| message.body = [&message.body[..], b"   "].concat().into());
        let block = MessageBlock::encode(&messages);
        let publish = Publish { producer: handle, sequence: Sequence(sequence), parts: parts.clone() };
        self.collect_replies();
        let (records, refused) = (self.out.records.len(), self.refused.len());
        self.handle(session, Command::Transact(Transact { publish, settlements }, block));
        self.collect_replies();
        let refused = self.refused[refused..].first().map(|refusal| refusal.2);
        match expected {
            Foretold::Refused(code) => {
                assert_eq!(self.out.records.len(), records, "of what is refused nothing is done");
                assert!(refused.is_some(), "refused");
                assert!(code.is_none() || refused == code, "{refused:?}, not {code:?}");
            }
            Foretold::Known => {
                assert_eq!((self.out.records.len(), refused), (records, None));
                self.confirms.insert((session, handle), Sequence(sequence + u64::from(count)));
            }
            Foretold::Done if refused.is_some_and(|code| self.is_held_up(&parts, code)) => {
                assert_eq!(self.out.records.len(), records, "of what is refused nothing is done");
            }
            Foretold::Done => {
                assert_eq!(refused, None);
                self.confirms.insert((session, handle), Sequence(sequence + u64::from(count)));
                settles.into_iter().for_each(|settle| self.settled_in_transaction(session, settle));
            }
        }
        refused
    }

    /// What a consumer has in flight.
    pub fn held_by_consumer(&self, session: u64, consumer: Handle) -> Vec<u64> {
        let holder = Some((SessionId(session), consumer));
        let client = self.clients.get(&SessionId(session));
        let group = client.and_then(|client| client.consumers.get(&consumer));
        let messages = group.and_then(|group| self.groups.get(group)).into_iter().flatten();
        messages.filter(|(_, known)| known.holder == holder).map(|(offset, _)| *offset).collect()
    }

    fn topic_of(&self, session: SessionId, consumer: Handle) -> TopicId {
        let client = self.clients.get(&session);
        client.and_then(|client| client.topics.get(&consumer)).copied().unwrap_or_default()
    }

    fn generation_of(&self, session: SessionId, consumer: Handle) -> u32 {
        let key = (consumer, self.topic_of(session, consumer));
        let known = self.clients.get(&session).and_then(|client| client.generations.get(&key));
        known.copied().unwrap_or(0)
    }

    fn foretold(
        &self,
        session: SessionId,
        handle: Handle,
        sequence: u64,
        parts: &[(TopicId, u32)],
        settles: &[(Handle, Settlement, Vec<OffsetRange>)],
    ) -> Foretold {
        let client = self.clients.get(&session);
        let id = client.and_then(|client| client.producers.get(&handle)).copied();
        let owned = id.filter(|id| self.owners.get(id) == Some(&(session, handle)));
        let Some(last) = owned.and_then(|id| self.last_of(id)) else { return Foretold::Refused(None) };
        let mut seen = BTreeSet::new();
        let offsets = settles.iter().flat_map(|(consumer, _, ranges)| {
            ranges.iter().flat_map(move |range| (range.start.0..range.end.0).map(move |at| (*consumer, at)))
        });
        let twice = offsets.filter(|offset| !seen.insert(*offset)).count() > 0;
        let kind =
            |settle: &(Handle, Settlement, _)| matches!(settle.1, Settlement::Extend | Settlement::Release);
        if twice || settles.iter().any(kind) {
            return Foretold::Refused(Some(ErrorCode::Invalid));
        }
        let own = sequence + parts.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
        if own <= last.0 {
            return Foretold::Known;
        }
        if sequence != last.0 + 1 {
            return Foretold::Refused(Some(ErrorCode::OutOfSequence));
        }
        let held = |consumer: Handle, offset: u64| {
            let group = client.and_then(|client| client.consumers.get(&consumer));
            let known = group.and_then(|group| self.groups[group].get(&offset));
            known.is_some_and(|known| known.holder == Some((session, consumer)) && known.deadline > self.now)
        };
        if !seen.iter().all(|(consumer, offset)| held(*consumer, *offset)) {
            return Foretold::Refused(Some(ErrorCode::TransactionAborted));
        }
        let consumers = client.map(|client| &client.consumers);
        if settles.iter().any(|settle| consumers.is_none_or(|known| !known.contains_key(&settle.0))) {
            return Foretold::Refused(Some(ErrorCode::TransactionAborted));
        }
        let topics = self.topics_now();
        if parts.iter().any(|(topic, _)| !topics.contains(topic)) {
            return Foretold::Refused(None);
        }
        Foretold::Done
    }

    fn settled_in_transaction(
        &mut self,
        session: SessionId,
        (consumer, settlement, ranges): (Handle, Settlement, Vec<OffsetRange>),
    ) {
        let group = self.clients[&session].consumers[&consumer];
        for (offset, known) in self.groups.get_mut(&group).unwrap() {
            if !ranges.iter().any(|range| range.contains(Offset(*offset))) {
                continue;
            }
            known.holder = None;
            let back = match settlement {
                Settlement::Ack => {
                    self.acked.insert((group, *offset));
                    continue;
                }
                Settlement::Nack { delay_ms, .. } => (Some(ReturnReason::Nacked), delay_ms),
                _ => (Some(ReturnReason::Rejected), None),
            };
            self.returned.insert((group, *offset), back);
        }
    }
}

/// What is to come of a transaction.
enum Foretold {
    Done,
    /// It was carried out before.
    Known,
    Refused(Option<ErrorCode>),
}
