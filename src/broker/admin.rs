//! What an administrator asks for: lists, and making, changing and deleting topics and groups.

use std::ops::Bound;

use super::browse::Browse;
use super::explain::Question;
use super::group::Group;
use super::looking::{Look, Seen};
use super::machine::Broker;
use super::part::Part;
use super::replay::Ask;
use super::subscription::check_settings;
use super::{Content, Ending, Output, dead_letter, refusals};
use crate::model::id::{GroupId, SessionId, TopicId};
use crate::model::limits::LISTED_MAX;
use crate::model::name::Name;
use crate::model::record::Record;
use crate::model::settings::{GroupSettings, Start};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{Admin, AdminCommand};
use crate::protocol::response::{GroupInfo, Place, Reply, TopicInfo};

impl Broker {
    pub(super) fn administer(&mut self, session: SessionId, request: Admin, out: &mut Output) {
        let id = request.request;
        let answer = match request.command {
            AdminCommand::Status
            | AdminCommand::Switchover
            | AdminCommand::Query { .. }
            | AdminCommand::Backup { .. } => {
                Err(Refusal::new(ErrorCode::Invalid, "the node itself answers this, not its broker"))
            }
            AdminCommand::ListTopics { after } => Ok(self.list_topics(after.as_deref())),
            AdminCommand::CreateTopic { name, settings } => self.create_topic_asked(&name, settings, out),
            AdminCommand::DeleteTopic { name } => self.topic_named(&name).map(|topic| {
                self.delete_topic(topic, out);
                Reply::Done
            }),
            AdminCommand::ListGroups { topic, after } => self.list_groups(topic.as_deref(), after, out),
            AdminCommand::CreateGroup { topic, name, settings, start } => {
                self.create_group_asked(&topic, &name, settings, start, out)
            }
            AdminCommand::DeleteGroup { topic, name } => self.group_named(&topic, &name).map(|group| {
                self.delete_group(group, out);
                Reply::Done
            }),
            AdminCommand::ChangeGroup { topic, name, settings } => {
                self.change_group(&topic, &name, settings, out)
            }
            AdminCommand::ChangeTopic { name, settings } => self.change_topic(&name, settings, out),
            AdminCommand::PurgeTopic { name } => self.purge_topic(&name, out),
            AdminCommand::PurgeGroup { topic, name } => {
                self.group_named(&topic, &name).and_then(|group| self.purge_group(group, out))
            }
            AdminCommand::Seek { topic, name, to } => match self.group_named(&topic, &name) {
                Ok(group) => {
                    self.seek((session, id), group, to, out);
                    return;
                }
                Err(refusal) => Err(refusal),
            },
            AdminCommand::Browse { topic, group, from, since, filter, messages_max } => {
                let seen = self.seen_by(&topic, group.as_deref());
                match seen.and_then(|seen| self.begin_browse(seen, from, since, filter.as_deref())) {
                    Ok(look) => {
                        self.browse(Browse { session, request: id, look, messages_max }, out);
                        return;
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            AdminCommand::DescribeTopic { topic } => self.topic_named(&topic).and_then(|topic| {
                let groups = self.topics.get(&topic).map(|topic| topic.groups.values().copied().collect());
                let groups: Vec<GroupId> = groups.unwrap_or_default();
                groups.into_iter().for_each(|group| self.make_settled_known(group, out));
                self.describe_topic(topic).ok_or_else(|| self.missing_topic(topic))
            }),
            AdminCommand::Explain { topic, position, group } => {
                let found =
                    self.topic_named(&topic).and_then(|id| Ok((id, self.group_having(&topic, &group)?)));
                match found {
                    Ok((topic, group)) => {
                        self.make_settled_known(group, out);
                        self.explain(Question { session, request: id, group, topic, position }, out);
                        return;
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            AdminCommand::ListSlots { topic } => self.topic_named(&topic).map(|topic| self.list_slots(topic)),
            AdminCommand::BrowseSlot { slot, from, messages_max } => {
                let look = Look::of(Seen::Topic(slot), Place { topic: slot, offset: from });
                self.browse_slot(Browse { session, request: id, look, messages_max }, slot, out);
                return;
            }
            AdminCommand::ReplayDeadLetters { topic, offsets, to } => {
                self.replay(session, Ask { request: id, topic, offsets, to }, out);
                return;
            }
            AdminCommand::DropMessages { topic, offsets } => self.drop_asked(topic, offsets, out),
            AdminCommand::CancelDelayed { topic, messages } => match self.topic_named(&topic) {
                Ok(topic) => self.cancel_delayed(topic, &messages, out),
                Err(refusal) => Err(refusal),
            },
            AdminCommand::ListRoutes { after } => Ok(self.list_routes(after.as_deref())),
            AdminCommand::CreateRoute { route } => self.create_route(&route, out),
            AdminCommand::DeleteRoute { name } => self.delete_route(&name, out),
        };
        out.effect(session, Content::Reply(id, answer));
    }

    pub(super) fn topic_named(&self, name: &str) -> Result<TopicId, Refusal> {
        if let Some(id) = self.topic_names.get(name) {
            return Ok(*id);
        }
        // What is no name is not repeated in the answer, however long it is.
        Name::try_from(name.to_owned()).map_err(|error| refusals::invalid(&error))?;
        Err(refusals::unknown_topic(name))
    }

    pub(super) fn group_named(&self, topic: &str, name: &str) -> Result<GroupId, Refusal> {
        let id = self.topic_named(topic)?;
        Name::new(name).map_err(|error| refusals::invalid(&error))?;
        let group = self.topics.get(&id).and_then(|topic| topic.groups.get(name));
        group.copied().ok_or_else(|| refusals::unknown_group(topic, name))
    }

    /// A group of a topic, or of a pattern that stands for it.
    fn group_having(&self, topic: &str, name: &str) -> Result<GroupId, Refusal> {
        let own = self.group_named(topic, name);
        let holders =
            self.topic_named(topic).ok().and_then(|id| self.topics.get(&id)).map(|topic| &topic.holders);
        let of_pattern = holders.into_iter().flatten().find(|id| {
            let main = self.groups.get(id).and_then(Group::main);
            main.is_some_and(|main| main.state.name.as_str() == name)
        });
        own.or_else(|refusal| of_pattern.copied().ok_or(refusal))
    }

    fn list_topics(&self, after: Option<&str>) -> Reply {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut names = self.topic_names.range::<str, _>((from, Bound::Unbounded));
        let topics = names.by_ref().take(LISTED_MAX).filter_map(|(_, id)| self.topic_info(*id)).collect();
        Reply::Topics { topics, more: names.next().is_some() }
    }

    pub(super) fn topic_info(&self, id: TopicId) -> Option<TopicInfo> {
        let topic = self.topics.get(&id)?;
        let logs = topic.lanes.values().chain([&id]).filter_map(|log| self.topics.get(log));
        Some(TopicInfo {
            topic: id,
            name: topic.state.name.to_string(),
            settings: topic.state.settings.clone(),
            start: topic.state.start,
            end: topic.state.end,
            messages: logs.map(|log| log.messages).sum(),
            delayed: self.delayed_count(topic),
            groups: topic.groups.len() as u32,
            matching: self.patterns.get(&id).copied(),
        })
    }

    fn list_groups(
        &mut self,
        topic: Option<&str>,
        after: Option<GroupId>,
        out: &mut Output,
    ) -> Result<Reply, Refusal> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut ids: Vec<GroupId> = match topic {
            Some(name) => {
                let id = self.topic_named(name)?;
                let holders = self.topics.get(&id).map(|topic| topic.holders.range((from, Bound::Unbounded)));
                holders.into_iter().flatten().copied().take(LISTED_MAX + 1).collect()
            }
            None => {
                self.groups.range((from, Bound::Unbounded)).map(|(id, _)| *id).take(LISTED_MAX + 1).collect()
            }
        };
        let more = ids.len() > LISTED_MAX;
        ids.truncate(LISTED_MAX);
        let mut groups = Vec::with_capacity(ids.len());
        for id in ids {
            // What was settled in this very cycle counts.
            self.make_settled_known(id, out);
            groups.extend(self.groups.get(&id).and_then(|group| self.group_info(group)));
        }
        Ok(Reply::Groups { groups, more })
    }

    pub(super) fn group_info(&self, group: &Group) -> Option<GroupInfo> {
        let topic = self.topics.get(&group.topic)?;
        let main = group.main()?;
        Some(GroupInfo {
            group: group.id,
            name: main.state.name.to_string(),
            topic: topic.state.name.to_string(),
            settings: group.settings.clone(),
            floor: main.state.floor,
            waiting: self.waiting_of(group),
            in_flight: group.members.in_flight,
            retries: group.parts.values().map(|part| part.redelivery.count()).sum(),
            parked: group.parts.values().map(Part::parked_count).sum(),
            consumers: group.members.count() as u32,
        })
    }

    /// Messages that a group has not settled, over all its parts.
    pub(super) fn waiting_of(&self, group: &Group) -> u64 {
        let waiting = group.parts.iter().filter_map(|(topic, part)| {
            let end = self.topics.get(topic)?.state.end;
            Some(end.0 - part.state.floor.0 - part.state.settled.offset_count())
        });
        waiting.sum()
    }

    fn create_group_asked(
        &mut self,
        topic: &str,
        name: &str,
        settings: GroupSettings,
        start: Start,
        out: &mut Output,
    ) -> Result<Reply, Refusal> {
        let name = Name::new(name).map_err(|error| refusals::invalid(&error))?;
        dead_letter::check_target(topic, &settings)?;
        let id = match self.topic_named(topic) {
            Err(_) if Name::pattern(topic).is_ok() => None,
            found => Some(found?),
        };
        let known = id.and_then(|id| self.topics.get(&id)).and_then(|topic| topic.groups.get(&name));
        match known.and_then(|id| self.groups.get(id)) {
            Some(group) if group.settings == settings => Ok(Reply::Done),
            Some(_) => {
                let text =
                    format!("group {name} of topic {topic} exists with other settings; change it instead");
                Err(Refusal::new(ErrorCode::AlreadyExists, text))
            }
            None => {
                check_settings(&settings)?;
                self.create_group_on_use(topic, name, settings, start, out).map(|_| Reply::Done)
            }
        }
    }

    fn change_group(
        &mut self,
        topic: &str,
        name: &str,
        settings: GroupSettings,
        out: &mut Output,
    ) -> Result<Reply, Refusal> {
        let id = self.group_named(topic, name)?;
        let Some(group) = self.groups.get_mut(&id) else { return Ok(Reply::Done) };
        if group.settings == settings {
            return Ok(Reply::Done);
        }
        check_settings(&settings)?;
        dead_letter::check_target(topic, &settings)?;
        out.records.push(Record::GroupChanged { group: id, settings: settings.clone() });
        group.set_settings(settings.clone());
        if group.lease_check.is_some() {
            // The next check may have been put off by a part of the old lease that is longer than the new one.
            group.check_leases_by(self.now);
        }
        let parts: Vec<TopicId> = group.parts.keys().copied().collect();
        let vacant = group.members.count() == 0;
        for topic in parts {
            let Some(part) = group.parts.get_mut(&topic) else { continue };
            let name = self.topics.get(&topic).map(|topic| &topic.state.name);
            let mortal = name.is_some_and(|name| dead_letter::target(name, &settings).is_some());
            part.sort_retries(mortal, &settings);
            if !part.redelivery.dying.is_empty() {
                self.dying.insert((id, topic));
            }
            self.cycle.mark(group, topic);
        }
        if vacant {
            self.note_vacancy(id, Ending::Lost, out);
        }
        Ok(Reply::Done)
    }
}
