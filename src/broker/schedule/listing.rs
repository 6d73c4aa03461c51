//! What clients see of the schedule: which slots there are, what is in them; and how they cancel a message.

use std::collections::{BTreeMap, BTreeSet};

use super::super::browse::Browse;
use super::super::machine::Broker;
use super::super::{Content, Output, refusals};
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::limits::CANCELLED_MAX;
use crate::model::topic_kind::Waiting;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::response::{Reply, SlotInfo};

impl Broker {
    /// The slots with delayed messages of a topic. Those that are empty at the moment are left out.
    pub(in crate::broker) fn list_slots(&self, topic: TopicId) -> Reply {
        let slots = self.topics.get(&topic).into_iter().flat_map(|topic| &topic.slots);
        let mut slots: Vec<SlotInfo> = slots
            .filter_map(|&id| {
                let slot = self.schedule.slots.get(&id).filter(|slot| slot.waiting == Waiting::Delayed)?;
                let topic = &self.topics.get(&id)?.state;
                (topic.start < topic.end).then(|| SlotInfo {
                    slot: id,
                    from: slot.window.from,
                    until: slot.window.until,
                    start: topic.start,
                    end: topic.end,
                    messages: topic.message_count(),
                })
            })
            .collect();
        slots.sort_by_key(|slot| (slot.from, slot.slot));
        Reply::Slots { slots }
    }

    /// Shows what is in a slot.
    pub(in crate::broker) fn browse_slot(&mut self, browse: Browse, slot: TopicId, out: &mut Output) {
        if self.schedule.is_delayed(slot) {
            self.browse(browse, out);
            return;
        }
        let text = format!("there is no slot {slot} any more: ask for the slots of the topic again");
        let refusal = Refusal::new(ErrorCode::Deleted, text);
        out.effect(browse.session, Content::Reply(browse.request, Err(refusal)));
    }

    /// Drops delayed messages of a topic.
    pub(in crate::broker) fn cancel_delayed(
        &mut self,
        topic: TopicId,
        messages: &[(TopicId, Offset)],
        out: &mut Output,
    ) -> Result<Reply, Refusal> {
        if messages.len() > CANCELLED_MAX {
            return Err(refusals::limit("cancelled_max", CANCELLED_MAX as u64, "messages in one request"));
        }
        let mut by_slot: BTreeMap<TopicId, BTreeSet<Offset>> = BTreeMap::new();
        for &(slot, offset) in messages {
            let is_of = self.schedule.slots.get(&slot).is_some_and(|slot| slot.of == topic);
            let there = self.topics.get(&slot).is_some_and(|slot| slot.state.run_at(offset).is_some());
            if is_of && there && self.schedule.is_delayed(slot) {
                by_slot.entry(slot).or_default().insert(offset);
            }
        }
        let mut count = 0;
        for (slot, offsets) in by_slot {
            count += offsets.len() as u64;
            self.drop_messages(slot, offsets.into_iter().map(OffsetRange::one).collect(), out);
            self.delete_if_over(slot, out);
        }
        Ok(Reply::Dropped { count })
    }
}
