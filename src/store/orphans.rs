//! Parts of a damaged state that have lost what they are parts of, for salvage only.
//!
//! Messages that can still be read are kept, whatever they were a part of: a topic of their own has them then. What says
//! nothing without the whole goes: the notes of a topic that is lost, what is left of a group, and routes of topics that
//! are.

use std::collections::BTreeSet;

use crate::model::id::TopicId;
use crate::model::name::Name;
use crate::model::snapshot::Snapshot;
use crate::model::topic_kind::{TopicKind, Waiting};

/// The name of a topic whose own is lost.
#[must_use]
pub fn salvaged_name(topic: TopicId) -> Name {
    Name::new(&format!("salvaged-topic-{topic}")).expect("letters, dashes and digits are a name")
}

/// Makes a state whole in which anything may be missing. Answers what it has come to.
#[must_use]
pub fn settle(snapshot: &mut Snapshot) -> Vec<String> {
    let mut noted = Vec::new();
    let freed = free_topics(snapshot, &mut noted);
    drop_groups(snapshot, &freed, &mut noted);
    let Snapshot { topics, groups, producers, routes, next, .. } = snapshot;
    routes.retain(|_, route| {
        let lost = [&route.from].into_iter().chain(&route.to).find(|topic| !topics.contains_key(topic));
        if let Some(lost) = lost {
            noted.push(format!("route {} is lost with topic {lost}", route.name));
        }
        lost.is_none()
    });
    // Where the numbers of the whole store are lost, an id that was given and is gone may be given again.
    let above = |id: u32| id.saturating_add(1);
    next.topic.0 = next.topic.0.max(topics.keys().next_back().map_or(0, |id| above(id.0)));
    next.group.0 = next.group.0.max(groups.keys().next_back().map_or(0, |id| above(id.0)));
    next.route.0 = next.route.0.max(routes.keys().next_back().map_or(0, |id| above(id.0)));
    let producer = producers.keys().next_back().map_or(0, |id| id.0.saturating_add(1));
    next.producer.0 = next.producer.0.max(producer);
    noted
}

/// Makes topics of their own of the parts of topics that are lost. Answers which.
fn free_topics(snapshot: &mut Snapshot, noted: &mut Vec<String>) -> BTreeSet<TopicId> {
    let whole = |id: TopicId| snapshot.topics.get(&id).is_some_and(|topic| topic.kind.part_of().is_none());
    let parts = snapshot.topics.iter().filter_map(|(id, topic)| Some((*id, topic.kind.part_of()?)));
    let orphans: Vec<(TopicId, TopicId)> = parts.filter(|&(_, of)| !whole(of)).collect();
    let mut freed = BTreeSet::new();
    for (id, of) in orphans {
        let Some(topic) = snapshot.topics.get_mut(&id) else { continue };
        // Notes are not messages: nobody is to get them.
        if matches!(topic.kind, TopicKind::Slot { waiting: Waiting::Expiring, .. }) {
            snapshot.topics.remove(&id);
            continue;
        }
        let name = salvaged_name(id);
        noted.push(format!(
            "topic {of} ({}) is lost, but for a part of its messages: {name} has them",
            topic.name
        ));
        (topic.name, topic.kind) = (name, TopicKind::Named);
        freed.insert(id);
    }
    freed
}

/// Takes out the groups whose topic is lost, and the parts of groups that are. A part of a topic that is on its own by
/// now is a group of it.
fn drop_groups(snapshot: &mut Snapshot, freed: &BTreeSet<TopicId>, noted: &mut Vec<String>) {
    let Snapshot { topics, groups, .. } = snapshot;
    groups.retain(|id, group| {
        let kept = topics.contains_key(&group.topic);
        if !kept && group.part_of.is_none() {
            noted.push(format!("group {id} ({}) is lost with its topic {}", group.name, group.topic));
        }
        kept
    });
    let whole: BTreeSet<_> =
        groups.iter().filter(|(_, group)| group.part_of.is_none()).map(|(id, _)| *id).collect();
    groups.retain(|id, group| {
        if freed.contains(&group.topic) {
            group.part_of = None;
        }
        let lost = group.part_of.filter(|of| !whole.contains(of));
        if let Some(of) = lost {
            noted.push(format!("group {id} is lost: it is a part of group {of} ({}), which is", group.name));
        }
        lost.is_none()
    });
}
