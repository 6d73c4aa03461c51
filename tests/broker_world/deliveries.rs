//! What the broker tells its clients, and the bounds that hold after each cycle, checked against what the model knows.

use std::collections::BTreeMap;
use std::time::Duration;

use batonmq::broker::Content;
use batonmq::model::chunk::Origin;
use batonmq::model::id::{Sequence, SessionId, TopicId};
use batonmq::model::message::MessageBlock;
use batonmq::model::snapshot::TopicState;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::protocol::response::Confirm;

use super::{Known, World};

impl World {
    pub fn check_confirm(&mut self, session: SessionId, confirm: Confirm) {
        let Some(client) = self.clients.get(&session) else { return };
        let last = client.producers.get(&confirm.producer).and_then(|id| self.last_of(*id));
        assert!(last.is_some_and(|last| confirm.sequence <= last), "what is confirmed is stored");
        if let Some(end) = self.confirms.get(&(session, confirm.producer))
            && *end <= confirm.sequence
        {
            self.confirms.remove(&(session, confirm.producer));
        }
    }

    pub fn check_effect(&mut self, session: SessionId, content: Content) {
        match content {
            Content::Deliver(delivery) => self.check_delivery(session, delivery),
            content => {
                self.out.effects.push(batonmq::broker::Effect { session, content });
                self.collect_replies();
            }
        }
    }

    pub fn check_delivery(&mut self, session: SessionId, delivery: batonmq::broker::Delivery) {
        let client = self.clients.get_mut(&session).expect("deliveries go to living sessions");
        assert!(!client.full, "nothing is handed out to a session that cannot take it");
        let group = *client.consumers.get(&delivery.consumer).expect("deliveries go to consumers");
        let holder = Some((session, delivery.consumer));
        let lease = self.fold.groups[&group].settings.lease();
        let topic = delivery.topic;
        let whole = group;
        let group = self.part(group, topic).expect("a delivery is of a topic that the group has");
        let bytes: Vec<u8> = delivery.messages.iter().flat_map(|piece| piece.to_vec()).collect();
        let block = MessageBlock::from_store(bytes.into()).unwrap();
        assert_eq!(block.count() as u32, delivery.runs.iter().map(|run| run.count).sum::<u32>());
        let mut index = 0;
        for run in &delivery.runs {
            for position in 0..u64::from(run.count) {
                let offset = run.offset.0 + position;
                assert!(!self.is_settled(group, offset), "settled and delivered: {group} {offset}");
                let stored = &self.store[&topic][&offset];
                let filter = self.fold.groups[&whole].settings.filter.as_ref();
                let filter = filter.and_then(|text| self.filters.get(text));
                assert!(filter.is_none_or(|matches| matches(&stored.message)), "unwanted: {offset}");
                assert_eq!(block.message(index).unwrap(), stored.message);
                assert!(stored.message.deliver_at.is_none_or(|at| at <= self.now), "delivered too early");
                assert!(stored.message.expires_at.is_none_or(|at| at > self.now), "delivered too late");
                assert!(!self.is_slot(topic), "what waits for a time is not delivered");
                index += 1;
                assert_eq!(run.published_at, stored.published_at);
                let origin = run
                    .origin
                    .map(|origin| Origin { sequence: Sequence(origin.sequence.0 + position), ..origin });
                assert_eq!(origin, stored.origin);
                self.check_order((session, delivery.consumer), whole, group, offset);
                let own = self.fold.groups[&whole].topic == topic;
                let named = self.named.contains(&(session, delivery.consumer, topic));
                assert!(own || named, "the topic is not known to the consumer");
                let fresh_from = self.fresh_from.get(&group).copied().unwrap_or(0);
                let known = self.groups.get_mut(&group).unwrap().entry(offset).or_default();
                assert_eq!(known.holder, None, "in flight twice: {group} {offset}");
                assert!(!self.dead.contains(&(group, offset)), "dead and delivered: {group} {offset}");
                assert!(known.due_at <= self.now, "handed out before it is due");
                assert_eq!(run.attempt, known.attempts + 1, "number of the attempt");
                assert_eq!(run.delivery, known.returns + 1, "number of the hand-over");
                let redelivered = known.handed || offset < fresh_from;
                // After a seek it may be said of what was passed over too.
                let sought = self.sought.contains(&group) && run.redelivered;
                assert!(sought || run.redelivered == redelivered, "redelivered: {offset}");
                let new = !known.handed;
                known.holder = holder;
                known.handed = true;
                known.deadline = self.now.after(lease);
                self.delivered.push((session, delivery.consumer, group, offset, new));
            }
        }
        let (count, bytes) = (block.count() as u32, block.bytes().len() as u64);
        let client = self.clients.get_mut(&session).unwrap();
        if delivery.request != 0 {
            let pull = client.pulls.get_mut(&delivery.request).expect("a pull is answered once");
            assert_eq!(pull.0, delivery.consumer);
            pull.2 += count;
            pull.3 += bytes;
            assert!(pull.2 <= pull.1.messages, "a pull gets no more messages than it asked for");
            assert!(pull.3 <= pull.1.bytes || pull.2 == 1, "a pull gets no more bytes than it asked for");
            return;
        }
        let window = client.windows[&delivery.consumer];
        let mut held: Vec<(TopicId, u64)> = Vec::new();
        for part in self.parts(whole) {
            let topic = self.fold.groups[&part].topic;
            let of_part = self.groups[&part].iter().filter(|(_, known)| known.holder == holder);
            held.extend(of_part.map(|(offset, _)| (topic, *offset)));
        }
        assert!(held.len() as u32 <= window.messages, "more messages than the window allows");
        if self.checks_bytes {
            // What is gone from the topic while it is in flight is not counted.
            let size = |(topic, offset): &(TopicId, u64)| {
                self.store[topic].get(offset).map_or(0, |stored| stored.message.encoded_len() as u64)
            };
            let bytes: u64 = held.iter().map(size).sum();
            assert!(bytes <= window.bytes || held.len() == 1, "more bytes than the window allows");
        }
    }

    /// A commit takes so long: no lease runs meanwhile.
    pub fn stand_still(&mut self, ms: u64) {
        self.now.0 += ms;
        self.broker.stood_still(Duration::from_millis(ms));
        let held = self.groups.values_mut().flat_map(BTreeMap::values_mut);
        held.filter(|known| known.holder.is_some()).for_each(|known| known.deadline.0 += ms);
    }

    pub fn check_bounds(&self) {
        for (id, messages) in &self.groups {
            if !self.fold.groups.contains_key(id) {
                continue;
            }
            let held: Vec<&Known> = messages.values().filter(|known| known.holder.is_some()).collect();
            assert!(held.len() as u64 <= self.limits.in_flight_max);
            let late = self.fold.groups[&self.whole(*id)].settings.lease_ms / 32;
            for known in held {
                assert!(known.deadline.0 + late >= self.now.0, "a lease that has ended is noticed");
            }
        }
        let in_flight: usize =
            self.groups.values().flat_map(BTreeMap::values).filter(|known| known.holder.is_some()).count();
        let counts = self.broker.counts();
        assert_eq!(counts.in_flight, in_flight as u64);
        assert!(counts.cache_bytes <= self.limits.cache_bytes_max);
        let named = self.fold.topics.values().filter(|topic| topic.kind.part_of().is_none());
        assert_eq!(counts.topics, named.count() as u64);
        let whole = self.fold.groups.values().filter(|group| group.part_of.is_none());
        assert_eq!(counts.groups, whole.count() as u64);
        // What waits for its time is counted apart, and notes of messages are none.
        let count = |is_counted: fn(TopicKind) -> bool| -> u64 {
            let logs = self.fold.topics.values().filter(|topic| is_counted(topic.kind));
            logs.map(TopicState::message_count).sum()
        };
        assert_eq!(counts.messages, count(|kind| !matches!(kind, TopicKind::Slot { .. })));
        let delayed = |kind| matches!(kind, TopicKind::Slot { waiting: Waiting::Delayed, .. });
        assert_eq!(counts.delayed, count(delayed));
        let consumers: usize = self.clients.values().map(|client| client.consumers.len()).sum();
        assert_eq!(counts.consumers, consumers as u64);
    }
}
