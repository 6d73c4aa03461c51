//! Names of the topics that deliveries of a consumer are from: those that its pattern stands for, and those of priorities.
//!
//! Topics come and go. What is gone is remembered for deliveries that the application still has, and not for ever: memory
//! depends on the topics there are, and not on those there have been.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::id::TopicId;

/// Names of former topics that are kept.
const FORMER_MAX: usize = 1024;

/// Which topics a consumer has been told the names of.
#[derive(Debug, Default)]
pub(super) struct TopicNames {
    /// Those of which more may come on this connection.
    present: HashMap<TopicId, Arc<str>>,
    /// Those that are gone, and those of the connection before.
    former: HashMap<TopicId, Arc<str>>,
}

impl TopicNames {
    /// Messages of a topic will come.
    pub(super) fn named(&mut self, topic: TopicId, name: Arc<str>) {
        self.present.insert(topic, name);
    }

    /// No more messages of a topic will come.
    pub(super) fn gone(&mut self, topic: TopicId) {
        let Some(name) = self.present.remove(&topic) else { return };
        if self.former.len() >= FORMER_MAX {
            self.former.clear();
        }
        self.former.insert(topic, name);
    }

    /// The connection is gone: the next one names its topics anew.
    pub(super) fn lost(&mut self) {
        if !self.present.is_empty() {
            self.former = std::mem::take(&mut self.present);
        }
    }

    /// Whether messages of a topic may come on this connection.
    pub(super) fn has(&self, topic: TopicId) -> bool {
        self.present.contains_key(&topic)
    }

    /// The name of a topic, where it is known.
    pub(super) fn get(&self, topic: TopicId) -> Option<&Arc<str>> {
        self.present.get(&topic).or_else(|| self.former.get(&topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each topic that a pattern ever stood for the name was kept for as long as the consumer lived.
    #[test]
    fn names_of_topics_that_are_gone_are_not_kept_for_ever() {
        let mut names = TopicNames::default();
        names.named(TopicId(0), "stays".into());
        for number in 1..=10 * FORMER_MAX as u32 {
            let topic = TopicId(number);
            names.named(topic, number.to_string().into());
            names.gone(topic);
            assert!(!names.has(topic));
            assert_eq!(names.get(topic).map(AsRef::as_ref), Some(number.to_string().as_str()));
            assert!(names.present.len() + names.former.len() <= 1 + FORMER_MAX);
        }
        assert!(names.has(TopicId(0)));
    }

    #[test]
    fn what_an_earlier_connection_has_delivered_keeps_its_name() {
        let mut names = TopicNames::default();
        names.named(TopicId(1), "a".into());
        names.lost();
        names.lost();
        assert!(!names.has(TopicId(1)));
        assert_eq!(names.get(TopicId(1)).map(AsRef::as_ref), Some("a"));
        names.named(TopicId(2), "b".into());
        names.lost();
        assert_eq!(names.get(TopicId(1)), None);
    }
}
