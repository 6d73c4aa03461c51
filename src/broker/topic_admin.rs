//! What an administrator does with a topic: making it, changing its settings, purging it.

use super::Output;
use super::machine::{Broker, Counts};
use super::refusals;
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::name::Name;
use crate::model::pattern::is_pattern;
use crate::model::record::Record;
use crate::model::settings::{AGE_MS_MAX, AGE_MS_MIN, Overflow, TopicSettings};
use crate::model::topic_kind::TopicKind;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::response::Reply;

impl Broker {
    pub(super) fn create_topic_asked(
        &mut self,
        name: &str,
        settings: TopicSettings,
        out: &mut Output,
    ) -> Result<Reply, Refusal> {
        if is_pattern(name) {
            let text = format!("{name} is a pattern: it is made with its first group");
            return Err(Refusal::new(ErrorCode::Invalid, text));
        }
        let name = Name::new(name).map_err(|error| refusals::invalid(&error))?;
        match self.topic_names.get(&name).and_then(|id| self.topics.get(id)) {
            Some(topic) if topic.state.settings == settings => Ok(Reply::Done),
            Some(_) => {
                let text = format!("topic {name} exists with other settings; change it instead");
                Err(Refusal::new(ErrorCode::AlreadyExists, text))
            }
            None => {
                check_topic_settings(&settings)?;
                self.create_topic(name, settings, out).map(|_| Reply::Done)
            }
        }
    }

    pub(super) fn change_topic(
        &mut self,
        name: &str,
        settings: TopicSettings,
        out: &mut Output,
    ) -> Result<Reply, Refusal> {
        let id = self.topic_named(name)?;
        let Some(topic) = self.topics.get_mut(&id) else { return Ok(Reply::Done) };
        if topic.state.settings == settings {
            return Ok(Reply::Done);
        }
        check_topic_settings(&settings)?;
        let of_pattern = TopicSettings { paused: settings.paused, ..TopicSettings::default() };
        if topic.state.kind == TopicKind::Pattern && settings != of_pattern {
            let text = format!("{name} is a pattern and has no messages: it can be paused, and nothing else");
            return Err(Refusal::new(ErrorCode::Invalid, text));
        }
        out.records.push(Record::TopicChanged { topic: id, settings: settings.clone() });
        let before = std::mem::replace(&mut topic.state.settings, settings.clone());
        topic.next_look = None;
        self.recount_all(id);
        self.look_at_topic(id);
        self.note_values(id);
        if settings.overflow != Overflow::Block {
            self.call_all_producers(id, out);
        }
        for log in self.logs_of(id) {
            if settings.retention.acked && !before.retention.acked {
                // What was settled meanwhile goes now.
                if let Some(log) = self.topics.get_mut(&log) {
                    log.garbage.group_gone();
                }
                self.check_floor(log);
            }
            if before.paused && !settings.paused {
                self.mark_holders(log);
            }
        }
        if before.paused && !settings.paused {
            self.mark_groups(id);
        }
        Ok(Reply::Done)
    }

    /// Has every group that gets the messages of a topic look at it.
    fn mark_holders(&mut self, id: TopicId) {
        let Self { topics, groups, cycle, .. } = self;
        let holders = topics.get(&id).into_iter().flat_map(|topic| &topic.holders);
        for holder in holders {
            if let Some(group) = groups.get_mut(holder) {
                cycle.mark(group, id);
            }
        }
    }

    /// Has the groups of a topic look at all that they have, of other topics too where it is a pattern.
    fn mark_groups(&mut self, id: TopicId) {
        let Self { topics, groups, cycle, .. } = self;
        for group in topics.get(&id).into_iter().flat_map(|topic| topic.groups.values()) {
            let Some(group) = groups.get_mut(group) else { continue };
            let parts: Vec<TopicId> = group.parts.keys().copied().collect();
            parts.into_iter().for_each(|part| cycle.mark(group, part));
        }
    }

    /// Drops all messages of a topic, those that wait for their time included. What consumers have in flight of them is
    /// recalled.
    pub(super) fn purge_topic(&mut self, name: &str, out: &mut Output) -> Result<Reply, Refusal> {
        let id = self.topic_named(name)?;
        let Some(topic) = self.topics.get(&id) else { return Ok(Reply::Dropped { count: 0 }) };
        if topic.state.kind == TopicKind::Pattern {
            let text =
                format!("{name} is a pattern and has no messages: purge the topics that it stands for");
            return Err(Refusal::new(ErrorCode::Invalid, text));
        }
        let there = |counts: &Counts| counts.messages + counts.delayed;
        let before = there(&self.totals);
        let slots: Vec<TopicId> = topic.slots.iter().copied().collect();
        for log in self.logs_of(id) {
            let Some(topic) = self.topics.get(&log) else { continue };
            let gone = OffsetRange { start: Offset(0), end: topic.state.start };
            let holders: Vec<GroupId> = topic.holders.iter().copied().collect();
            for holder in holders {
                self.make_settled_known(holder, out);
                if let Some(group) = self.groups.get_mut(&holder) {
                    group.recall(log, &mut out.effects);
                    // What was gone already while it was in flight does not come back any more.
                    group.drop_below(log, gone);
                    self.cycle.mark(group, log);
                }
            }
            self.cut(log, Offset(u64::MAX), out);
        }
        slots.into_iter().for_each(|slot| self.delete_topic_part(slot, out));
        Ok(Reply::Dropped { count: before - there(&self.totals) })
    }
}

/// Checks the settings that a topic is to have.
pub(super) fn check_topic_settings(settings: &TopicSettings) -> Result<(), Refusal> {
    let retention = &settings.retention;
    let limited = settings.max_messages.is_some() || settings.max_bytes.is_some();
    let goes = retention.acked
        || retention.max_age_ms.is_some()
        || retention.max_bytes.is_some()
        || retention.max_messages.is_some()
        || settings.last_value;
    let zero = [
        ("a retention of", retention.max_messages, "messages"),
        ("a retention of", retention.max_bytes, "bytes"),
        ("a limit of", settings.max_messages, "messages"),
        ("a limit of", settings.max_bytes, "bytes"),
    ];
    let zero = zero.into_iter().find(|(_, value, _)| *value == Some(0));
    let wrong = if let Some((what, _, unit)) = zero {
        format!(
            "{what} 0 {unit}: it must be at least 1; leave it out for no limit, pause the topic to stop it"
        )
    } else if let Some(age) = retention.max_age_ms.filter(|age| !(AGE_MS_MIN..=AGE_MS_MAX).contains(age)) {
        format!("a retention of {age} ms: it must be {AGE_MS_MIN} to {AGE_MS_MAX} ms")
    } else if settings.overflow != Overflow::Block && !limited {
        "a topic that is never full has no overflow: set max_messages or max_bytes, or leave the overflow out"
            .to_owned()
    } else if limited && !goes && settings.overflow == Overflow::Block {
        "a topic that keeps everything and is full would block its producers for good: let messages go when they \
         are settled or old, or choose another overflow"
            .to_owned()
    } else if settings.last_value && retention.acked {
        "a topic that keeps the newest message of each key would lose what every group has settled: let it keep \
         settled messages (retention.acked = false)"
            .to_owned()
    } else {
        return Ok(());
    };
    Err(Refusal::new(ErrorCode::Invalid, wrong))
}
