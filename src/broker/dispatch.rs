//! Handing out: first what waits for another attempt, in the order of offsets, then what is new. Policies that keep
//! an order do it in ways of their own: [`exclusive`](super::in_order), [`key`](super::keyed).
//!
//! Whose turn it is says [`Turns`](super::turns::Turns); as much as that allows is handed out in one piece, by
//! [`Dispatch`].
//!
//! A cycle hands out about as much as there is memory for, and the next one goes on with those whose turn did not come:
//! only between cycles it is seen who takes what it gets, and how much all connections hold together.

use std::collections::BTreeMap;

use super::flights::Lease;
use super::group::Group;
use super::handing_out::{Dispatch, Log};
use super::machine::Broker;
use super::sieve::Sieve;
use super::topic::Topic;
use super::{Output, dead_letter};
use crate::model::id::{GroupId, TopicId};
use crate::model::record::Record;
use crate::model::settings::Policy;

/// Messages that a group passes over in one cycle.
const PASSED_PER_CYCLE: u64 = 64 << 10;

impl Broker {
    /// Makes what was settled in this cycle known.
    pub(super) fn make_settled_known(&mut self, id: GroupId, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut moved_floors = Vec::new();
        for topic_id in &group.touched {
            let Some(part) = group.parts.get_mut(topic_id) else { continue };
            let before = part.state.floor;
            let Some(record) = part.flush_settled() else { continue };
            let moved = part.state.floor > before;
            if let Some(topic) = self.topics.get_mut(topic_id) {
                topic.garbage.settled(&record);
                if (moved && before <= topic.floor) || topic.garbage.may_be_much(self.limits.pinned_bytes_max)
                {
                    moved_floors.push(*topic_id);
                }
            }
            out.records.push(record);
        }
        for topic in moved_floors {
            self.check_floor(topic);
        }
    }

    /// Takes note of what became of a group in this cycle. Puts it in line if somebody may take what it has.
    pub(super) fn look_at_group(&mut self, id: GroupId, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.dirty = false;
        group.members.tell_roles(&mut out.effects);
        group.change_policy();
        for topic in std::mem::take(&mut group.touched) {
            let Some(part) = group.parts.get_mut(&topic) else { continue };
            part.touched = false;
            part.advance(self.now);
            if part.wants.not_before.is_some_and(|at| at <= self.now) {
                part.wants.not_before = None;
            }
            if !is_paused(&self.topics, group.topic, topic)
                && self.topics.get(&topic).is_some_and(|topic| part.has_more(topic.state.end))
            {
                group.lineup.enter(&mut part.place, part.priority, topic);
            }
            group.note(topic);
        }
        let may_be_taken = !group.members.turns.is_empty() || !group.members.overdue.is_empty();
        if may_be_taken {
            self.line_up(id);
        }
        self.note(id);
    }

    /// Puts a group at the end of the line, unless it is there.
    fn line_up(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !std::mem::replace(&mut group.in_line, true) {
            self.cycle.line.push_back(id);
        }
    }

    /// Hands out what the groups in line can hand out, one after the other. Those that come behind as much as a cycle
    /// hands out are the first ones in the next cycle; the one that came to it may have more, and is the last.
    pub(super) fn dispatch(&mut self, out: &mut Output) {
        self.cycle.bytes_left = self.room_for_output.max(1);
        while self.cycle.bytes_left > 0
            && let Some(group) = self.cycle.line.pop_front()
        {
            self.hand_out(group, out);
            self.note(group);
            if self.cycle.bytes_left == 0 {
                self.line_up(group);
            }
        }
    }

    /// Hands out of the parts of a group in their turn.
    fn hand_out(&mut self, id: GroupId, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.in_line = false;
        let Group { lineup, parts, members, settings, filter, .. } = group;
        let lease = Lease { since: self.now, until: self.now.after(settings.lease()) };
        let mut dispatch = Dispatch {
            now: self.now,
            limits: &self.limits,
            group: id,
            own_topic: group.topic,
            settings,
            members,
            sieve: Sieve::new(filter.as_ref(), self.now),
            reads: &mut self.reads,
            unreadable: &self.unreadable,
            records: &mut out.records,
            effects: &mut out.effects,
            read_list: &mut out.reads,
            budget: 0,
            lease,
            reading: false,
            bytes_left: &mut self.cycle.bytes_left,
            passes_left: PASSED_PER_CYCLE,
            parks_left: self.limits.parked_max.saturating_sub(group.parked),
            passed: Vec::new(),
            served: Vec::new(),
            answered: Vec::new(),
        };
        let (mut looked_at, mut put_aside) = (Vec::new(), Vec::new());
        let mut handed_out = 0;
        // The highest priority whose next message is being read: no lower one overtakes it.
        let mut awaited = 0;
        while dispatch.may_hand_out()
            && let Some((topic_id, budget)) = lineup.next(settings.priority_share)
        {
            let Some(part) = parts.get_mut(&topic_id) else { break };
            if part.priority < awaited {
                break;
            }
            let Some(topic) = self.topics.get(&topic_id) else { break };
            if is_paused(&self.topics, group.topic, topic_id) {
                lineup.leave(&mut part.place);
                continue;
            }
            let log = Log {
                topic: topic_id,
                name: topic.state.name.as_str(),
                priority: part.priority,
                end: topic.state.end,
                cached: self.cache.topic(topic_id),
                mortal: dead_letter::target(&topic.state.name, settings).is_some(),
            };
            dispatch.budget = budget;
            let mark = part.state.handed_out;
            match settings.policy {
                Policy::RoundRobin | Policy::Fair => {
                    dispatch.redeliver(part, log);
                    dispatch.hand_out_new(part, log, log.end);
                }
                Policy::Exclusive => dispatch.hand_out_in_order(part, log),
                Policy::Key => dispatch.hand_out_by_key(part, log),
            }
            dispatch.reading |= part.wants.any();
            if part.state.handed_out > mark {
                let end = part.state.handed_out;
                dispatch.records.push(Record::HandedOut { group: part.id, end });
            }
            let count = budget - dispatch.budget;
            lineup.handed(&mut part.place, count);
            handed_out += count;
            if !part.has_more(log.end) {
                lineup.leave(&mut part.place);
            } else if count == 0 {
                put_aside.extend(part.place);
                lineup.leave(&mut part.place);
                if part.wants.any() {
                    awaited = awaited.max(part.priority);
                }
            }
            looked_at.push(topic_id);
        }
        dispatch.complete_pulls();
        let is_spent = dispatch.sieve.effort.is_spent();
        let Dispatch { answered, passed, .. } = dispatch;
        for (until, pull) in answered {
            self.pull_timers.remove(&(until, pull));
        }
        for place in put_aside {
            if let Some(part) = parts.get_mut(&place.topic) {
                lineup.put_back(&mut part.place, place);
            }
        }
        if handed_out > 0 {
            group.delivered.add(self.now, handed_out);
            group.check_leases_by(lease.until);
        }
        if is_spent {
            self.cycle.mark_consumers(group);
        }
        for topic in passed {
            if !group.parts.get(&topic).is_none_or(|part| part.redelivery.dying.is_empty()) {
                self.dying.insert((id, topic));
            }
            self.cycle.mark(group, topic);
        }
        looked_at.into_iter().for_each(|topic| group.note(topic));
    }
}

/// Whether nothing is handed out of a topic to a group of the topic `own`.
fn is_paused(topics: &BTreeMap<TopicId, Topic>, own: TopicId, id: TopicId) -> bool {
    let settings = |id| topics.get(&id).map(|topic| &topic.state.settings);
    let whole = topics.get(&id).and_then(|topic| topic.state.kind.part_of()).unwrap_or(id);
    settings(whole).is_some_and(|settings| settings.paused)
        || settings(own).is_some_and(|settings| settings.paused)
}
