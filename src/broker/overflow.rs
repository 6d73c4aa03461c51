//! Topics that are full: whose messages are refused, and who waits for room.
//!
//! A publish is taken as a whole or not at all. A topic that is not full takes what is published to it, so it may end
//! up with more than its limit by what one publish has; one that drops its oldest messages is never full. What the
//! broker itself moves - dead letters, messages whose time has come - is never refused.
//!
//! Where producers wait, nothing of theirs is kept here: their messages stay with them, and they are told when to send
//! again. The [line](super::waiting_line) is lost with the broker; whoever sends again joins anew.

use super::holdings::Holdings;
use super::machine::Broker;
use super::routes::Ways;
use super::topic::Topic;
use super::{Content, Output, refusals};
use crate::model::id::{ProducerId, TopicId};
use crate::model::message::MessageBlock;
use crate::model::settings::Overflow;
use crate::protocol::error::Refusal;
use crate::protocol::response::PublishReady;

impl Topic {
    /// What it takes before it is full.
    fn room(&self) -> Holdings {
        let settings = &self.state.settings;
        let most = match settings.overflow {
            Overflow::DropOldest => Holdings { messages: u64::MAX, bytes: u64::MAX },
            Overflow::Block | Overflow::Reject => Holdings {
                messages: settings.max_messages.unwrap_or(u64::MAX),
                bytes: settings.max_bytes.unwrap_or(u64::MAX),
            },
        };
        most.minus(self.total)
    }

    fn is_full(&self) -> bool {
        let room = self.room();
        room.messages == 0 || room.bytes == 0
    }
}

impl Broker {
    /// Checks that no topic of a publish is full, nor one that routes lead to; where one is whose producers wait, has
    /// the producer wait. Of the messages, those from the index `from` on count. `parts` are the topics with how many
    /// messages go to each, `ways` where they go from there.
    pub(super) fn check_room(
        &mut self,
        producer: ProducerId,
        parts: &[(TopicId, u32)],
        ways: &Ways,
        block: &MessageBlock,
        from: usize,
    ) -> Result<(), Refusal> {
        let mut start = 0;
        let mut ways = ways.iter();
        for &(id, count) in parts {
            let (first, end) = (from.max(start), start + count as usize);
            start = end;
            if first >= end {
                continue;
            }
            if let Some(topic) = self.topics.get_mut(&id) {
                topic.used_at = self.now;
            }
            let Some(ways) = ways.next().and_then(Option::as_ref) else {
                let wanted =
                    Holdings { messages: (end - first) as u64, bytes: block.byte_len(first, end) as u64 };
                self.check_room_in(id, producer, wanted)?;
                continue;
            };
            for way in ways {
                for &topic in &way.topics {
                    self.check_room_in(topic, producer, way.holdings)?;
                }
            }
        }
        self.producers.stop_waiting(producer);
        Ok(())
    }

    fn check_room_in(&mut self, id: TopicId, producer: ProducerId, wanted: Holdings) -> Result<(), Refusal> {
        let Some(topic) = self.topics.get_mut(&id) else { return Ok(()) };
        let settings = &topic.state.settings;
        if settings.max_messages.is_none() && settings.max_bytes.is_none() {
            return Ok(());
        }
        let waits = settings.overflow == Overflow::Block;
        let must_wait = waits && topic.line.is_behind(producer);
        let is_full = topic.is_full();
        if !is_full && !must_wait {
            return Ok(());
        }
        if is_full && topic.keeps_last_values() {
            self.last_values.make_room(id, topic.messages);
        }
        if !waits {
            return Err(refusals::topic_full(&topic.state));
        }
        topic.line.join(producer, wanted);
        self.producers.wait(producer, id);
        self.look_at_topic(id);
        let topic = self.topics.get(&id).ok_or_else(refusals::no_session)?;
        Err(refusals::topic_blocked(&topic.state))
    }

    /// Takes producers out of the lines that they have left.
    pub(super) fn tidy_lines(&mut self) {
        for (id, producer) in self.producers.take_left() {
            if let Some(topic) = self.topics.get_mut(&id) {
                topic.line.leave(producer);
                self.look_at_topic(id);
            }
        }
    }

    /// Calls producers that wait for room in a topic, as many as there is room for.
    pub(super) fn call_producers(&mut self, id: TopicId, out: &mut Output) {
        let Some(topic) = self.topics.get_mut(&id).filter(|topic| !topic.line.is_empty()) else { return };
        let called = topic.line.call(topic.room(), self.now);
        self.tell_ready(called, out);
    }

    /// Calls all producers that wait for room in a topic: it is not full any more, or is gone.
    pub(super) fn call_all_producers(&mut self, id: TopicId, out: &mut Output) {
        self.tidy_lines();
        let Some(topic) = self.topics.get_mut(&id) else { return };
        let called = topic.line.clear();
        called.iter().for_each(|producer| self.producers.stop_waiting(*producer));
        self.tell_ready(called, out);
    }

    fn tell_ready(&self, called: Vec<ProducerId>, out: &mut Output) {
        for producer in called {
            if let Some((session, handle)) = self.producers.owner(producer) {
                out.effect(session, Content::PublishReady(PublishReady { producer: handle }));
            }
        }
    }
}
