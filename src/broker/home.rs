//! Where a dead letter goes when it is replayed: to which topic, and whether to one of its groups only.
//!
//! A topic has its messages for all its groups. So a letter for one of them is a message that the others have settled in
//! the commit in which it is published, as if they had had it and acked it: which they have, of the message that died.

use std::collections::BTreeMap;

use super::Output;
use super::dead_letter::Revived;
use super::effort::Effort;
use super::machine::Broker;
use super::topic::Topic;
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::message::{MessageBlock, Parts};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::ReplayTo;
use crate::protocol::response::Replayed;

/// Where a letter goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Home {
    pub topic: TopicId,
    /// The group that gets it, where not all do.
    pub group: Option<GroupId>,
}

/// Why a letter stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    Homeless,
    Groupless,
    Unwanted,
    LastValue,
}

impl Stay {
    /// Counts a letter that stays.
    pub fn count(self, done: &mut Replayed) {
        match self {
            Self::Homeless => done.homeless += 1,
            Self::Groupless => done.groupless += 1,
            Self::Unwanted => done.unwanted += 1,
            Self::LastValue => done.last_values += 1,
        }
    }
}

impl Broker {
    /// Where a letter of the topic `from` goes.
    pub(super) fn home(
        &mut self,
        from: TopicId,
        letter: &Revived,
        to: &ReplayTo,
        effort: &mut Effort,
        out: &mut Output,
    ) -> Result<Home, Stay> {
        let home = match to {
            ReplayTo::Group => self.home_of_group(letter, effort, out)?,
            ReplayTo::AllGroups => self.home_for_all(&letter.topic, out)?,
            ReplayTo::Topic(name) => self.home_for_all(name, out)?,
        };
        if home.topic == from { Err(Stay::Homeless) } else { Ok(home) }
    }

    fn home_for_all(&mut self, topic: &str, out: &mut Output) -> Result<Home, Stay> {
        let topic = self.topic_on_use(topic, out).map_err(|_| Stay::Homeless)?;
        Ok(Home { topic, group: None })
    }

    fn home_of_group(
        &mut self,
        letter: &Revived,
        effort: &mut Effort,
        out: &mut Output,
    ) -> Result<Home, Stay> {
        // No topic is made for a group that is gone.
        let own = self.topic_names.get(letter.pattern.as_ref().unwrap_or(&letter.topic).as_str());
        let own = own.and_then(|own| self.topics.get(own));
        let group = letter.group.as_deref().and_then(|name| own?.groups.get(name).copied());
        let group = group.ok_or(Stay::Groupless)?;
        let home = Home { group: Some(group), ..self.home_for_all(&letter.topic, out)? };
        let topic = self.topics.get(&home.topic).filter(|topic| topic.holders.contains(&group));
        // A copy for one group would be the newest of its key for all: they would never get the one that was.
        if topic.ok_or(Stay::Groupless)?.keeps_last_values() {
            return Err(Stay::LastValue);
        }
        if self.wants(group, letter, effort) { Ok(home) } else { Err(Stay::Unwanted) }
    }

    /// Whether a letter matches the filter of a group. If it does not, the group would have it settled unseen.
    fn wants(&self, group: GroupId, letter: &Revived, effort: &mut Effort) -> bool {
        let Some(filter) = self.groups.get(&group).and_then(|group| group.filter.as_ref()) else {
            return true;
        };
        let block = MessageBlock::encode(std::slice::from_ref(&letter.message));
        Parts::read(block.encoded(0), 0).map_or(true, |parts| effort.matches(filter, &parts))
    }

    /// Whether each group of a topic but one can have more settled out of its turn.
    pub(super) fn check_gaps(&self, home: Home) -> Result<(), Refusal> {
        let (Some(only), Some(topic)) = (home.group, self.topics.get(&home.topic)) else { return Ok(()) };
        let max = self.limits.settled_ranges_max / 2;
        for group in topic.holders.iter().filter(|id| **id != only).filter_map(|id| self.groups.get(id)) {
            let parts = [home.topic].into_iter().chain(topic.lanes.values().copied());
            let gaps = parts.filter_map(|part| group.parts.get(&part)).map(|part| part.settled_range_count());
            if let Some(gaps) = gaps.max().filter(|gaps| *gaps as u64 >= max)
                && let Some(main) = group.main()
            {
                let text = format!(
                    "group {} has {gaps} gaps behind messages that are not settled, half of the limit \
                     settled_ranges_max: it cannot have letters for other groups settled; have it consume what is \
                     oldest, or replay for all groups",
                    main.state.name
                );
                return Err(Refusal::new(ErrorCode::Limit, text));
            }
        }
        Ok(())
    }

    /// Where a topic and its lanes end.
    pub(super) fn ends_of(&self, topic: TopicId) -> BTreeMap<TopicId, Offset> {
        let lanes = self.topics.get(&topic).into_iter().flat_map(|topic| topic.lanes.values().copied());
        let ends = [topic].into_iter().chain(lanes).filter_map(|id| {
            let topic: &Topic = self.topics.get(&id)?;
            Some((id, topic.state.end))
        });
        ends.collect()
    }

    /// Settles what a topic and its lanes have since they ended at `ends` for every group but the one that gets it.
    pub(super) fn settle_for_others(&mut self, home: Home, ends: &BTreeMap<TopicId, Offset>) {
        let Some(only) = home.group else { return };
        for (id, end) in self.ends_of(home.topic) {
            let range = OffsetRange { start: ends.get(&id).copied().unwrap_or(Offset(0)), end };
            let holders = self.topics.get(&id).into_iter().flat_map(|topic| &topic.holders);
            for holder in holders.filter(|holder| **holder != only && !range.is_empty()) {
                let Some(group) = self.groups.get_mut(holder) else { continue };
                let Some(part) = group.parts.get_mut(&id) else { continue };
                part.settle(range);
                part.fresh_from = part.fresh_from.max(range.end);
                self.cycle.mark(group, id);
            }
        }
    }
}
