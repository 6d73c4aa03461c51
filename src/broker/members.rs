//! The consumers of a group: their places, and whose turn it is.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::consumer::Consumer;
use super::turns::{Slot, Turn, Turns};
use crate::model::id::{Offset, TopicId};
use crate::model::settings::Policy;
use crate::model::time::Timestamp;

/// The consumers of a group.
#[derive(Debug, Default)]
pub(super) struct Members {
    consumers: Vec<Option<Consumer>>,
    vacant: Vec<Slot>,
    policy: Policy,
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

    /// Has messages shared out in another way from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.refresh_all();
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Adds a consumer.
    pub fn join(&mut self, consumer: Consumer) -> Slot {
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
        Some(consumer)
    }

    pub fn get(&self, slot: Slot) -> Option<&Consumer> {
        self.consumers.get(slot as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Consumer> {
        self.consumers.get_mut(slot as usize)?.as_mut()
    }

    /// The consumer that has a message, and when its lease ends.
    pub fn holder(&self, topic: TopicId, offset: Offset) -> Option<(&Consumer, Timestamp)> {
        self.iter().find_map(|(_, consumer)| Some((consumer, consumer.flights.deadline(topic, offset)?)))
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

    /// Gives a consumer the turn that it should have now.
    pub fn refresh(&mut self, slot: Slot) {
        let Some(consumer) = self.consumers.get_mut(slot as usize).and_then(Option::as_mut) else { return };
        let rank = match self.policy {
            Policy::Fair => consumer.flights.count(),
            _ => 0,
        };
        let priority = Reverse(consumer.priority);
        let turn = Turn { priority, rank, served: consumer.served, slot };
        let turn = consumer.has_credit().then_some(turn);
        self.turns.replace(consumer.turn, turn);
        consumer.turn = turn;
    }

    /// Gives every consumer the turn that it should have now.
    pub fn refresh_all(&mut self) {
        for slot in 0..self.consumers.len() as Slot {
            self.refresh(slot);
        }
    }
}
