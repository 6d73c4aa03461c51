//! The consumers of a group: their places, whose turn it is, and what each of them is by the policy: the active one,
//! or the one for certain keys.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::assignment::{Assignment, Candidate};
use super::consumer::Consumer;
use super::flights::Lease;
use super::turns::{Slot, Turn, Turns};
use super::{Content, Effect};
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::settings::Policy;
use crate::protocol::response::{Activity, ConsumerRole};

/// The consumers of a group.
#[derive(Debug, Default)]
pub(super) struct Members {
    consumers: Vec<Option<Consumer>>,
    vacant: Vec<Slot>,
    /// All of them, those of the highest priority first, and among these the one that joined first.
    ranks: BTreeSet<(Reverse<u8>, u64, Slot)>,
    /// Consumers that have joined so far.
    joined: u64,
    policy: Policy,
    /// Something is in flight that was handed out under another policy, of which order does not allow more for now.
    changing: bool,
    /// Under `exclusive` the one that gets messages.
    active: Option<Slot>,
    /// Under `key` who gets which.
    assignment: Assignment,
    /// Those whose role may be another than they know.
    untold: BTreeSet<Slot>,
    pub turns: Turns,
    /// Hand-overs so far.
    pub served: u64,
    /// Messages in flight to all of them.
    pub in_flight: u64,
    pub pulls_waiting: u64,
    /// Pulls whose time is over, by their number.
    pub overdue: BTreeMap<u64, Slot>,
}

impl Members {
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Has messages shared out in another way from now on. Where one of both ways keeps an order, nothing is handed
    /// out until what is in flight has come to an end.
    pub fn set_policy(&mut self, policy: Policy) {
        let old = std::mem::replace(&mut self.policy, policy);
        if old == policy {
            return;
        }
        self.changing |= old.keeps_order() || policy.keeps_order();
        self.active = None;
        self.elect();
        let candidates = if policy == Policy::Key { self.candidates() } else { Vec::new() };
        self.assignment.assign(&candidates);
        self.untold.extend(self.ranks.iter().map(|(_, _, slot)| *slot));
        self.refresh_all();
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Whether something is in flight that was handed out under another policy, and nothing else goes before it ends.
    pub fn is_changing(&self) -> bool {
        self.changing
    }

    /// Whether what was handed out under another policy has come to an end since this was last asked.
    pub fn has_changed(&mut self) -> bool {
        if !self.changing || self.in_flight > 0 {
            return false;
        }
        self.changing = false;
        self.refresh_all();
        true
    }

    /// Under `key`, who gets which.
    pub fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// Adds a consumer.
    pub fn join(&mut self, mut consumer: Consumer) -> Slot {
        self.joined += 1;
        consumer.number = self.joined;
        let priority = consumer.priority;
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.consumers[slot as usize] = Some(consumer);
                slot
            }
            None => {
                self.consumers.push(Some(consumer));
                (self.consumers.len() - 1) as Slot
            }
        };
        let highest = self.highest_priority();
        self.ranks.insert((Reverse(priority), self.joined, slot));
        self.untold.insert(slot);
        self.elect();
        if self.policy == Policy::Key {
            if highest == Some(priority) {
                self.assignment.join(Candidate { number: self.joined, slot });
            } else if highest < Some(priority) {
                self.assignment.assign(&self.candidates());
            }
        }
        self.refresh(slot);
        slot
    }

    /// Takes a consumer out. What it has in flight goes with it.
    pub fn leave(&mut self, slot: Slot) -> Option<Consumer> {
        let consumer = self.consumers.get_mut(slot as usize)?.take()?;
        self.vacant.push(slot);
        self.turns.replace(consumer.turn, None);
        self.pulls_waiting -= consumer.pulls.len() as u64;
        for pull in &consumer.pulls {
            self.overdue.remove(&pull.id);
        }
        self.in_flight -= consumer.flights.count();
        self.untold.remove(&slot);
        let highest = self.highest_priority();
        self.ranks.remove(&(Reverse(consumer.priority), consumer.number, slot));
        if self.active == Some(slot) {
            self.active = None;
            self.elect();
        }
        if self.policy == Policy::Key && highest == Some(consumer.priority) {
            if self.highest_priority() == highest {
                let others = self.candidates();
                self.assignment.leave(slot, &others);
            } else {
                self.assignment.assign(&self.candidates());
            }
        }
        Some(consumer)
    }

    pub fn get(&self, slot: Slot) -> Option<&Consumer> {
        self.consumers.get(slot as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Consumer> {
        self.consumers.get_mut(slot as usize)?.as_mut()
    }

    /// The consumer that has a message, and its lease.
    pub fn holder(&self, topic: TopicId, offset: Offset) -> Option<(&Consumer, Lease)> {
        self.iter().find_map(|(_, consumer)| Some((consumer, consumer.flights.lease(topic, offset)?)))
    }

    /// The consumers with their places.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Consumer)> {
        (0..).zip(&self.consumers).filter_map(|(slot, consumer)| Some((slot, consumer.as_ref()?)))
    }

    /// The consumers with their places, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Consumer)> {
        (0..).zip(&mut self.consumers).filter_map(|(slot, consumer)| Some((slot, consumer.as_mut()?)))
    }

    pub fn count(&self) -> usize {
        self.consumers.len() - self.vacant.len()
    }

    /// Whether a consumer can be handed something now: it has credit, and its role allows it.
    pub fn can_take(&self, slot: Slot) -> bool {
        self.get(slot).is_some_and(|consumer| consumer.turn.is_some())
    }

    /// Gives a consumer the turn that it should have now.
    pub fn refresh(&mut self, slot: Slot) {
        let allowed = !self.changing && (self.policy != Policy::Exclusive || self.active == Some(slot));
        let Some(consumer) = self.consumers.get_mut(slot as usize).and_then(Option::as_mut) else { return };
        let rank = match self.policy {
            Policy::Fair | Policy::Key => consumer.flights.count(),
            Policy::RoundRobin | Policy::Exclusive => 0,
        };
        let priority = Reverse(consumer.priority);
        let turn = Turn { priority, rank, served: consumer.served, slot };
        let turn = (allowed && consumer.has_credit()).then_some(turn);
        self.turns.replace(consumer.turn, turn);
        consumer.turn = turn;
    }

    /// Gives every consumer the turn that it should have now.
    pub fn refresh_all(&mut self) {
        for slot in 0..self.consumers.len() as Slot {
            self.refresh(slot);
        }
    }

    /// Tells consumers the roles that they do not know yet.
    pub fn tell_roles(&mut self, effects: &mut Vec<Effect>) {
        while let Some(slot) = self.untold.pop_first() {
            let exclusive = self.policy == Policy::Exclusive;
            let active = self.active == Some(slot);
            let Some(consumer) = self.get_mut(slot) else { continue };
            // Where the group is not exclusive any more, all get messages. Who was never told otherwise knows.
            let role = match (exclusive, active, consumer.told) {
                (true, false, _) => Activity::Waiting,
                (true, true, _) | (false, _, Some(_)) => Activity::Active,
                (false, _, None) => continue,
            };
            if consumer.told.replace(role) != Some(role) {
                let told = ConsumerRole { consumer: consumer.handle, activity: role };
                effects.push(Effect { session: consumer.session, content: Content::ConsumerRole(told) });
            }
        }
    }

    /// Takes out of all hands what is in flight of a topic that is gone, and forgets the topic. Answers to whom it was
    /// known, by their places.
    pub fn forget_topic(&mut self, topic: TopicId) -> Vec<Slot> {
        let mut knew = Vec::new();
        let mut taken = 0;
        for (slot, consumer) in self.iter_mut() {
            let before = consumer.flights.count();
            consumer.flights.take(topic, OffsetRange::ALL, |_, _| {});
            taken += before - consumer.flights.count();
            if consumer.forget_topic(topic) {
                consumer.stuck = false;
                knew.push(slot);
            }
        }
        self.in_flight -= taken;
        knew.iter().for_each(|slot| self.refresh(*slot));
        knew
    }

    fn highest_priority(&self) -> Option<u8> {
        self.ranks.first().map(|(Reverse(priority), _, _)| *priority)
    }

    /// The consumers of the highest priority there is.
    fn candidates(&self) -> Vec<Candidate> {
        let highest = self.highest_priority();
        let first = self.ranks.iter().take_while(|(Reverse(priority), _, _)| Some(*priority) == highest);
        first.map(|&(_, number, slot)| Candidate { number, slot }).collect()
    }

    /// Makes the one whose rank is the highest active where none is and one is to be.
    fn elect(&mut self) {
        if self.policy != Policy::Exclusive || self.active.is_some() {
            return;
        }
        self.active = self.ranks.first().map(|(_, _, slot)| *slot);
        if let Some(active) = self.active {
            self.untold.insert(active);
            self.refresh(active);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::SessionId;
    use crate::protocol::request::Window;

    /// Of each topic whose deliveries were ever recalled a number was kept for as long as the consumer lived.
    #[test]
    fn nothing_is_kept_of_a_topic_that_is_gone() {
        let mut members = Members::new(Policy::RoundRobin);
        let slot = members.join(Consumer::new(SessionId(1), 7, 0, Window { messages: 1, bytes: 1 }));
        let topic = TopicId(3);
        let consumer = members.get_mut(slot).unwrap();
        consumer.known_topics.insert(topic);
        consumer.recalled(topic);
        assert_eq!(consumer.generation(topic), 1);
        assert_eq!(members.forget_topic(topic), [slot]);
        assert_eq!(members.get(slot).unwrap().generation(topic), 0);
        assert_eq!(members.forget_topic(topic), [0; 0], "it is told once");
    }
}
