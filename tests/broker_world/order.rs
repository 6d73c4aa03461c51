//! What the model knows of consumers: who is active, who has which key, and in which order messages may come.

use std::collections::{BTreeMap, BTreeSet};

use batonmq::model::id::{GroupId, SessionId};
use batonmq::model::settings::Policy;
use batonmq::protocol::request::Handle;
use batonmq::protocol::response::Activity;

use super::World;

pub type Who = (SessionId, Handle);

/// A consumer as its group knows it.
#[derive(Clone, Debug)]
pub struct Member {
    pub group: GroupId,
    pub priority: u8,
    /// Number among all that have joined.
    pub number: u64,
    pub role: Option<Activity>,
}

/// Consumers, and what was promised to them.
#[derive(Default)]
pub struct Order {
    pub members: BTreeMap<Who, Member>,
    pub joined: u64,
    /// The policy that each group had when it was last looked at, and its active consumer.
    policies: BTreeMap<GroupId, (Policy, Option<Who>)>,
    /// What was in flight when an order began or ended; nothing else is handed out before it has come back.
    changing: BTreeMap<GroupId, BTreeSet<(GroupId, u64)>>,
    /// Who got the last message with a key, and how many consumers had joined then.
    owners: BTreeMap<(GroupId, Vec<u8>), (Who, u64)>,
}

fn keeps_order(policy: Policy) -> bool {
    matches!(policy, Policy::Exclusive | Policy::Key)
}

impl World {
    pub fn joined(&mut self, who: Who, group: GroupId, priority: u8) {
        self.order.joined += 1;
        let member = Member { group, priority, number: self.order.joined, role: None };
        self.order.members.insert(who, member);
        self.elect(group);
    }

    pub fn forget_named(&mut self, who: Who) {
        self.named.retain(|(session, handle, _)| (*session, *handle) != who);
    }

    pub fn left(&mut self, who: Who) {
        self.forget_named(who);
        if let Some(member) = self.order.members.remove(&who) {
            self.elect(member.group);
        }
    }

    /// Looks at the policy of a group, and who is active.
    pub fn elect(&mut self, group: GroupId) {
        let policy = self.settings(group).policy;
        let (before, mut active) = self.order.policies.get(&group).copied().unwrap_or((policy, None));
        if before != policy {
            active = None;
            if keeps_order(before) || keeps_order(policy) {
                let parts = self.parts(group);
                let held = parts.iter().flat_map(|part| {
                    let held = self.groups[part].iter().filter(|(_, known)| known.holder.is_some());
                    held.map(|(offset, _)| (*part, *offset))
                });
                let held: Vec<(GroupId, u64)> = held.collect();
                self.order.changing.entry(group).or_default().extend(held);
            }
        }
        if policy != Policy::Exclusive {
            active = None;
        } else if active.is_none_or(|active| self.order.members.get(&active).is_none_or(|m| m.group != group))
        {
            let of_group = self.order.members.iter().filter(|(_, member)| member.group == group);
            let first =
                of_group.min_by_key(|(_, member)| (std::cmp::Reverse(member.priority), member.number));
            active = first.map(|(who, _)| *who);
        }
        self.order.policies.insert(group, (policy, active));
    }

    /// What every consumer must have been told when a cycle ends.
    pub fn check_roles(&self) {
        for (who, member) in &self.order.members {
            if !self.fold.groups.contains_key(&member.group) {
                continue;
            }
            let (policy, active) = self.order.policies[&member.group];
            if policy == Policy::Exclusive {
                let expected = if active == Some(*who) { Activity::Active } else { Activity::Waiting };
                assert_eq!(member.role, Some(expected), "{who:?} of {active:?}");
            } else {
                assert_ne!(member.role, Some(Activity::Waiting), "{who:?} waits for nothing");
            }
        }
    }

    /// Whether a message may be handed out now, to this consumer.
    pub fn check_order(&mut self, who: Who, group: GroupId, part: GroupId, offset: u64) {
        if let Some(changing) = self.order.changing.get_mut(&group) {
            let groups = &self.groups;
            changing.retain(|(part, offset)| {
                groups
                    .get(part)
                    .and_then(|known| known.get(offset))
                    .is_some_and(|known| known.holder.is_some())
            });
            assert!(changing.is_empty(), "handed out while the policy changes: {changing:?}");
        }
        match self.order.policies[&group] {
            (Policy::Exclusive, active) => {
                assert_eq!(active, Some(who), "handed to the active one");
                let before = self.waiting_before(part, offset, None);
                assert!(before.is_empty(), "handed out before others: {part} {offset} {before:?}");
            }
            (Policy::Key, _) => self.check_key(who, group, part, offset),
            _ => {}
        }
    }

    fn check_key(&mut self, who: Who, group: GroupId, part: GroupId, offset: u64) {
        let topic = self.fold.groups[&part].topic;
        let Some(key) = self.store[&topic][&offset].message.key.clone() else { return };
        let before = self.waiting_before(part, offset, Some(&key));
        assert!(before.is_empty(), "handed out before others of its key: {part} {offset} {before:?}");
        for (other, known) in &self.groups[&part] {
            let same =
                self.store[&topic].get(other).is_some_and(|stored| stored.message.key == Some(key.clone()));
            assert!(!same || known.holder.is_none(), "two of a key at a time: {offset} and {other}");
        }
        let member = self.order.members[&who].clone();
        let of_group = self.order.members.values().filter(|other| other.group == group);
        let highest = of_group.map(|other| other.priority).max();
        assert_eq!(Some(member.priority), highest, "keys go to the highest priority");
        let joined = self.order.joined;
        let owner = self.order.owners.insert((group, key.to_vec()), (who, joined));
        let stayed = |owner: &Member, then: u64| {
            owner.group == group && owner.number <= then && Some(owner.priority) == highest
        };
        if let Some((owner, then)) = owner
            && owner != who
            && self.order.members.get(&owner).is_some_and(|owner| stayed(owner, then))
        {
            assert!(member.number > then, "a key moves to who has come, or from who has gone");
        }
    }

    /// Messages of a part, with this key or all, that are before one, not settled, and in nobody's hands.
    fn waiting_before(&self, part: GroupId, offset: u64, key: Option<&[u8]>) -> Vec<u64> {
        let state = &self.fold.groups[&part];
        let settings = &self.fold.groups[&self.whole(part)].settings;
        let stored = self.store[&state.topic].range(..offset);
        let with_key = stored.filter(|(_, stored)| key.is_none() || stored.message.key.as_deref() == key);
        let waiting = with_key.filter(|(other, stored)| {
            let known = self.groups[&part].get(other).cloned().unwrap_or_default();
            let over = stored.message.expires_at.is_some_and(|at| at <= self.now);
            let dies =
                known.rejected || (settings.max_attempts > 0 && known.attempts >= settings.max_attempts);
            // What dies keeps its key busy until it is moved, and nothing else.
            let held = known.holder.is_some() && key.is_none();
            !(self.is_settled(part, **other) || over || held || (dies && key.is_none()))
        });
        waiting.map(|(other, _)| *other).collect()
    }
}
