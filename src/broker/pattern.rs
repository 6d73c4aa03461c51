//! Groups of patterns: their topics are all those whose names match, the ones that are made later too.
//!
//! A pattern is a topic of its own kind. It has groups and no messages; each of its groups has a part in every topic
//! that it stands for, and in the lanes of that. It is made with its first group and goes with its last one.

use super::dead_letter::DEAD_LETTER_SUFFIX;
use super::machine::{AutoCreate, Broker};
use super::topic::Topic;
use super::{Output, refusals};
use crate::model::id::{GroupId, TopicId};
use crate::model::name::Name;
use crate::model::pattern;
use crate::model::settings::{GroupSettings, Start, TopicSettings};
use crate::model::topic_kind::TopicKind;
use crate::protocol::error::{ErrorCode, Refusal};

/// Whether a pattern stands for a topic of this name. Dead letters are meant only by a pattern that ends as their
/// names do: who wants all orders does not want those that failed once more.
pub(super) fn stands_for(pattern: &Name, name: &Name) -> bool {
    let (pattern, name) = (pattern.as_str(), name.as_str());
    let meant = !name.ends_with(DEAD_LETTER_SUFFIX) || pattern.ends_with(DEAD_LETTER_SUFFIX);
    meant && pattern::matches(pattern, name)
}

impl Broker {
    /// Makes a group of a topic or a pattern that somebody uses by its name; a topic is made too if it may be, a
    /// pattern always. There is no such group yet, and the settings were checked.
    pub(super) fn create_group_on_use(
        &mut self,
        topic: &str,
        name: Name,
        settings: GroupSettings,
        start: Start,
        out: &mut Output,
    ) -> Result<GroupId, Refusal> {
        let topic = match self.topic_names.get(topic) {
            Some(topic) => *topic,
            None if pattern::is_pattern(topic) => {
                let pattern = Name::pattern(topic).map_err(|error| refusals::invalid(&error))?;
                self.create_pattern(pattern, out)?
            }
            None => self.topic_on_use(topic, out)?,
        };
        self.create_group(topic, name, settings, start, out)
    }

    /// Makes a pattern, for a group that can be made.
    fn create_pattern(&mut self, name: Name, out: &mut Output) -> Result<TopicId, Refusal> {
        self.check_group_room()?;
        let max = self.limits.pattern_topics_max;
        let count = self.topics_of(&name).len() as u64;
        if count > max {
            let text = format!(
                "pattern {name} stands for {count} topics: the limit pattern_topics_max is {max}; use several \
                 narrower patterns"
            );
            return Err(Refusal::new(ErrorCode::Limit, text));
        }
        let id = self.create_topic_of_kind(TopicKind::Pattern, name, TopicSettings::default(), out)?;
        self.patterns.insert(id, count);
        Ok(id)
    }

    /// Lets a group that was made for a pattern have the messages of all topics that the pattern stands for.
    pub(super) fn add_topics_of_pattern(
        &mut self,
        group: GroupId,
        id: TopicId,
        start: Start,
        out: &mut Output,
    ) {
        let Some(pattern) = self.topics.get(&id).map(|topic| topic.state.name.clone()) else { return };
        for topic in self.topics_of(&pattern) {
            self.add_group_part_with_lanes(group, topic, start, out);
        }
    }

    /// Whether topics of these names may be made, all of them.
    pub(super) fn check_pattern_room(&self, names: &[&Name]) -> Result<(), Refusal> {
        let max = self.limits.pattern_topics_max;
        for (id, count) in &self.patterns {
            let Some(pattern) = self.topics.get(id).map(|pattern| &pattern.state.name) else { continue };
            let mut added = names.iter().filter(|name| stands_for(pattern, name));
            let room = max.saturating_sub(*count) as usize;
            if let Some(name) = added.nth(room) {
                let text = format!(
                    "topic {name} would be one too many of pattern {pattern}, whose groups may have {max} topics: \
                     the limit pattern_topics_max is reached"
                );
                return Err(Refusal::new(ErrorCode::Limit, text));
            }
        }
        Ok(())
    }

    /// Lets the groups of all patterns that stand for a topic have its messages. It was just made.
    pub(super) fn add_to_patterns(&mut self, id: TopicId, name: &Name, out: &mut Output) {
        for pattern in self.patterns_of(name) {
            *self.patterns.entry(pattern).or_default() += 1;
            let groups = self.topics.get(&pattern).into_iter().flat_map(|topic| topic.groups.values());
            for group in groups.copied().collect::<Vec<GroupId>>() {
                self.add_group_part(group, id, Start::Earliest, out);
            }
        }
    }

    /// A topic is gone.
    pub(super) fn remove_from_patterns(&mut self, name: &Name) {
        for pattern in self.patterns_of(name) {
            if let Some(count) = self.patterns.get_mut(&pattern) {
                *count -= 1;
            }
        }
    }

    /// Counts the topics of all patterns. The groups are there.
    pub(super) fn recover_patterns(&mut self) {
        let patterns = self.topics.iter().filter(|(_, topic)| topic.state.kind == TopicKind::Pattern);
        let counts = patterns.map(|(id, topic)| {
            // All groups of a pattern have the same topics.
            let group = topic.groups.values().next().and_then(|group| self.groups.get(group));
            let topics = group.into_iter().flat_map(|group| group.parts.keys());
            (*id, topics.filter(|topic| self.is_named(**topic)).count() as u64)
        });
        self.patterns = counts.collect();
    }

    fn is_named(&self, id: TopicId) -> bool {
        self.topics.get(&id).is_some_and(Topic::takes_messages)
    }

    /// The topics that a pattern stands for.
    fn topics_of(&self, pattern: &Name) -> Vec<TopicId> {
        let named = self.topic_names.iter().filter(|(_, id)| self.is_named(**id));
        named.filter(|(name, _)| stands_for(pattern, name)).map(|(_, id)| *id).collect()
    }

    fn patterns_of(&self, name: &Name) -> Vec<TopicId> {
        let matching = self
            .patterns
            .keys()
            .filter(|id| self.topics.get(id).is_some_and(|pattern| stands_for(&pattern.state.name, name)));
        matching.copied().collect()
    }

    /// The group that somebody subscribes, where it exists or may be made.
    pub(super) fn group_on_use(&self, topic: &str, name: &Name) -> Result<Option<GroupId>, Refusal> {
        let known = self.topic_names.get(topic).and_then(|topic| self.topics.get(topic));
        match (known.and_then(|topic| topic.groups.get(name)), self.creation) {
            (Some(group), _) => Ok(Some(*group)),
            (None, AutoCreate::Allowed) => Ok(None),
            (None, AutoCreate::Refused) if known.is_none() => Err(refusals::unknown_topic(topic)),
            (None, AutoCreate::Refused) => Err(refusals::unknown_group(topic, name.as_str())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_are_meant_by_their_name_only() {
        for (pattern, name, meant) in [
            ("orders.*", "orders.eu", true),
            ("orders.*", "orders.dead-letter", false),
            ("orders.#", "orders.eu.dead-letter", false),
            ("#", "dead-letter", true),
            ("#.dead-letter", "orders.eu.dead-letter", true),
            ("orders.*.dead-letter", "orders.eu.dead-letter", true),
            ("orders.*.dead-letter", "orders.eu", false),
        ] {
            let (pattern, name) = (Name::pattern(pattern).unwrap(), Name::new(name).unwrap());
            assert_eq!(stands_for(&pattern, &name), meant, "{pattern} {name}");
        }
    }
}
