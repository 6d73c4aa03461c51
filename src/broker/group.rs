//! A consumer group: its settings, its consumers, and what it has of each topic.
//!
//! Most groups have one topic and one part. A group of a topic with priorities has a part for each priority, one of a
//! pattern a part for each topic that matches. All parts share the consumers and their credit.
//!
//! Deciding who gets what is in `dispatch`, what comes back is in `settle`.

use std::collections::{BTreeMap, BTreeSet};

use super::Effect;
use super::lineup::Lineup;
use super::members::Members;
use super::part::Part;
use super::rate::Rate;
use super::turns::Slot;
use crate::model::filter::Filter;
use crate::model::id::{GroupId, OffsetRange, TopicId};
use crate::model::settings::GroupSettings;
use crate::model::time::Timestamp;

/// A consumer group.
#[derive(Debug)]
pub(super) struct Group {
    pub id: GroupId,
    /// The topic that it is a group of.
    pub topic: TopicId,
    /// As in the state of the part with its own topic.
    pub settings: GroupSettings,
    /// The filter of the settings.
    pub filter: Option<Filter>,
    pub members: Members,
    /// What it has of each topic, its own first of all.
    pub parts: BTreeMap<TopicId, Part>,
    /// Parts that something happened to in this cycle.
    pub touched: Vec<TopicId>,
    /// Parts that may have something to hand out.
    pub lineup: Lineup,
    /// When parts are to be looked at by themselves.
    wakes: BTreeSet<(Timestamp, TopicId)>,
    /// Messages that wait for another attempt, over all parts.
    pub retries: u64,
    /// Messages handed out, and acknowledged.
    pub delivered: Rate,
    pub acked: Rate,
    /// Messages that are parked behind a key, over all parts.
    pub parked: u64,
    /// When it goes by itself, unless a consumer comes before.
    pub ends_at: Option<Timestamp>,
    /// No lease ends before this.
    pub lease_check: Option<Timestamp>,
    /// When the broker will look at the group by itself.
    pub timer: Option<Timestamp>,
    /// Whether it is on the list of groups to look at in this cycle.
    pub dirty: bool,
    /// Whether it is in line to hand out.
    pub in_line: bool,
    /// What of this group is in the totals of the broker: in flight, waiting for another attempt.
    pub counted: (u64, u64),
}

impl Group {
    /// A group of which `part` is what it has of its own topic.
    pub fn new(part: Part) -> Self {
        let (id, topic, settings) = (part.id, part.topic(), part.state.settings.clone());
        let mut group = Self {
            id,
            topic,
            members: Members::new(settings.policy),
            filter: compiled(&settings),
            settings,
            parts: BTreeMap::new(),
            touched: Vec::new(),
            lineup: Lineup::default(),
            wakes: BTreeSet::new(),
            retries: 0,
            delivered: Rate::default(),
            acked: Rate::default(),
            parked: 0,
            ends_at: None,
            lease_check: None,
            timer: None,
            dirty: false,
            in_line: false,
            counted: (0, 0),
        };
        group.add_part(part);
        group
    }

    /// Has the messages of one more topic.
    pub fn add_part(&mut self, mut part: Part) {
        part.rewind(self.members.policy());
        self.parts.insert(part.topic(), part);
    }

    /// Begins to hand out by another policy, where what was handed out by the one before has come to an end.
    pub fn change_policy(&mut self) {
        if !self.members.has_changed() {
            return;
        }
        let topics: Vec<TopicId> = self.parts.keys().copied().collect();
        for topic in topics {
            if let Some(part) = self.parts.get_mut(&topic) {
                part.rewind(self.members.policy());
            }
            self.touch(topic);
        }
    }

    /// Has other settings from now on.
    pub fn set_settings(&mut self, settings: GroupSettings) {
        self.members.set_policy(settings.policy);
        self.filter = compiled(&settings);
        if let Some(part) = self.parts.get_mut(&self.topic) {
            part.state.settings = settings.clone();
        }
        self.settings = settings;
    }

    /// What it has of its own topic.
    pub fn main(&self) -> Option<&Part> {
        self.parts.get(&self.topic)
    }

    /// Notes that something happened to what it has of a topic.
    pub fn touch(&mut self, topic: TopicId) {
        if let Some(part) = self.parts.get_mut(&topic)
            && !std::mem::replace(&mut part.touched, true)
        {
            self.touched.push(topic);
        }
    }

    /// Touches the parts that are to be looked at by now.
    pub fn wake_parts(&mut self, now: Timestamp) {
        while let Some(&(at, topic)) = self.wakes.first()
            && at <= now
        {
            self.wakes.pop_first();
            if let Some(part) = self.parts.get_mut(&topic) {
                part.wake = None;
            }
            self.touch(topic);
        }
    }

    /// Notes what has become of a part: when it must be looked at, and what of it waits.
    pub fn note(&mut self, topic: TopicId) {
        let Some(part) = self.parts.get_mut(&topic) else { return };
        let wake = part.next_wake();
        if wake != part.wake {
            if let Some(wake) = part.wake {
                self.wakes.remove(&(wake, topic));
            }
            self.wakes.extend(wake.map(|wake| (wake, topic)));
            part.wake = wake;
        }
        let counted = (part.redelivery.count(), part.parked_count());
        self.retries = self.retries + counted.0 - part.counted.0;
        self.parked = self.parked + counted.1 - part.counted.1;
        part.counted = counted;
    }

    /// Forgets what it has of a topic.
    pub fn remove_part(&mut self, topic: TopicId) -> Option<Part> {
        let mut part = self.parts.remove(&topic)?;
        self.lineup.leave(&mut part.place);
        self.touched.retain(|touched| *touched != topic);
        if let Some(wake) = part.wake {
            self.wakes.remove(&(wake, topic));
        }
        self.retries -= part.counted.0;
        self.parked -= part.counted.1;
        Some(part)
    }

    /// What `consumer` has in flight of a topic within `ranges` is settled. Answers how many messages that are.
    pub fn ack(&mut self, slot: Slot, topic: TopicId, ranges: &[OffsetRange], now: Timestamp) -> u64 {
        let Some(part) = self.parts.get_mut(&topic) else { return 0 };
        let Some(consumer) = self.members.get_mut(slot) else { return 0 };
        let before = consumer.flights.count();
        for range in ranges {
            consumer.flights.take(topic, *range, |piece, _| part.settle(piece));
        }
        let count = before - consumer.flights.count();
        consumer.last_ack_at = if count > 0 { Some(now) } else { consumer.last_ack_at };
        self.members.in_flight -= count;
        self.acked.add(now, count);
        count
    }

    /// Settles what a part has of `range` and is not in flight. Answers the pieces.
    pub fn settle_unheld(&mut self, topic: TopicId, range: OffsetRange) -> Vec<OffsetRange> {
        let Some(part) = self.parts.get_mut(&topic) else { return Vec::new() };
        let flights = self.members.iter().flat_map(|(_, consumer)| consumer.flights.of(topic));
        let pieces = part.settle_unheld(range, flights);
        self.touch(topic);
        pieces
    }

    /// Is done with what it has of a range of a topic that is gone; what is in flight comes back first.
    pub fn drop_below(&mut self, topic: TopicId, range: OffsetRange) {
        let Some(part) = self.parts.get_mut(&topic) else { return };
        let flights = self.members.iter().flat_map(|(_, consumer)| consumer.flights.below(topic, range.end));
        part.drop_below(range, flights);
    }

    /// Takes out of flight all that consumers have of a topic: it is not theirs any more. Tells them so.
    pub fn recall(&mut self, topic: TopicId, effects: &mut Vec<Effect>) {
        let mut recalled = Vec::new();
        for (slot, consumer) in self.members.iter_mut() {
            let before = consumer.flights.count();
            consumer.flights.take(topic, OffsetRange::ALL, |_, _| {});
            let taken = before - consumer.flights.count();
            if taken > 0 {
                consumer.stuck = false;
                effects.push(consumer.recalled(topic));
                recalled.push((slot, taken));
            }
        }
        for (slot, taken) in recalled {
            self.members.in_flight -= taken;
            self.members.refresh(slot);
        }
    }

    /// Has the leases looked at by `deadline` at the latest.
    pub fn check_leases_by(&mut self, deadline: Timestamp) {
        self.lease_check = Some(self.lease_check.map_or(deadline, |check| check.min(deadline)));
    }

    /// When the group must be looked at though nothing happens to it.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let part = self.wakes.first().map(|(at, _)| *at);
        [self.lease_check, part, self.ends_at].into_iter().flatten().min()
    }
}

/// The filter of settings that were checked.
fn compiled(settings: &GroupSettings) -> Option<Filter> {
    Filter::parse(settings.filter.as_deref()?).ok()
}
