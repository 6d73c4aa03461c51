//! The order in which a store's messages are walked through: topic after topic, each from its start to its end, with
//! gaps where the snapshot has them.
//!
//! Whoever reads a whole store and whoever fills one goes this way, so that what is missing, doubled or misplaced is
//! noticed by both. Holds no messages.

use std::collections::BTreeMap;

use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::ranges::RangeSet;
use crate::model::snapshot::{Snapshot, SnapshotError, TopicState};

/// How far a walk through the messages of a snapshot has come.
#[derive(Clone, Debug)]
pub struct Course {
    /// What is left of each topic, the lowest topic first. None of them is empty.
    left: BTreeMap<TopicId, Left>,
}

/// What is left of a topic.
#[derive(Clone, Debug)]
struct Left {
    next: Offset,
    end: Offset,
    removed: RangeSet,
}

impl Left {
    /// The messages up to the first gap.
    fn run(&self) -> Option<OffsetRange> {
        self.removed.gaps(OffsetRange { start: self.next, end: self.end }).next()
    }
}

impl Course {
    /// The way through all messages of a snapshot.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let left =
            |topic: &TopicState| Left { next: topic.start, end: topic.end, removed: topic.removed.clone() };
        let all = snapshot.topics.iter().map(|(id, topic)| (*id, left(topic)));
        Self { left: all.filter(|(_, left)| left.run().is_some()).collect() }
    }

    /// The topic that comes next, and its consecutive messages from where the walk is; `None` at the end.
    #[must_use]
    pub fn next(&self) -> Option<(TopicId, OffsetRange)> {
        let (topic, left) = self.left.first_key_value()?;
        Some((*topic, left.run()?))
    }

    /// Goes on behind these messages of `topic`.
    ///
    /// # Errors
    /// Where they are not those that come next.
    pub fn pass(&mut self, topic: TopicId, range: OffsetRange) -> Result<(), SnapshotError> {
        let Some((next, run)) = self.next() else {
            return Err(SnapshotError::Unknown { kind: "topic", id: u64::from(topic.0) });
        };
        if topic != next || range.start != run.start {
            let (topic, first) = (topic, range.start);
            return Err(SnapshotError::OffsetGap { topic, first, expected: run.start });
        }
        if range.end > run.end {
            return Err(SnapshotError::NotThere { topic, range, start: run.start, end: run.end });
        }
        let Some(left) = self.left.get_mut(&topic) else { return Ok(()) };
        left.next = range.end;
        left.removed.remove_below(range.end);
        if left.run().is_none() {
            self.left.remove(&topic);
        }
        Ok(())
    }

    /// Checks that all was passed.
    ///
    /// # Errors
    /// What comes next.
    pub fn end(&self) -> Result<(), SnapshotError> {
        match self.next() {
            None => Ok(()),
            Some((topic, run)) => {
                let end = self.left.get(&topic).map_or(run.end, |left| left.end);
                Err(SnapshotError::OffsetGap { topic, first: end, expected: run.start })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::name::Name;
    use crate::model::settings::TopicSettings;
    use crate::model::topic_kind::TopicKind;

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (id, start, end) in [(1, 2, 10), (4, 7, 7), (5, 0, 1)] {
            let name = Name::new(&format!("t{id}")).unwrap();
            let mut topic = TopicState::new(name, TopicKind::Named, TopicSettings::default());
            (topic.start, topic.end) = (Offset(start), Offset(end));
            snapshot.topics.insert(TopicId(id), topic);
        }
        if let Some(topic) = snapshot.topics.get_mut(&TopicId(1)) {
            topic.removed.insert(OffsetRange::new(4, 6));
        }
        snapshot
    }

    #[test]
    fn topics_come_in_order_with_the_gaps_of_the_snapshot() {
        let mut course = Course::new(&snapshot());
        let mut passed = Vec::new();
        while let Some((topic, run)) = course.next() {
            assert!(course.end().is_err());
            course.pass(topic, run).unwrap();
            passed.push((topic.0, run.start.0, run.end.0));
        }
        assert_eq!(passed, [(1, 2, 4), (1, 6, 10), (5, 0, 1)]);
        course.end().unwrap();
    }

    #[test]
    fn what_is_missing_doubled_or_misplaced_is_refused() {
        let mut course = Course::new(&snapshot());
        for (topic, start, end) in [(5, 0, 1), (1, 3, 4), (1, 2, 5), (4, 7, 8), (9, 0, 1)] {
            assert!(course.pass(TopicId(topic), OffsetRange::new(start, end)).is_err(), "{topic} {start}");
        }
        course.pass(TopicId(1), OffsetRange::new(2, 3)).unwrap();
        assert!(course.pass(TopicId(1), OffsetRange::new(2, 3)).is_err());
    }
}
