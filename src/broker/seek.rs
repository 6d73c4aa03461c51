//! Setting a group to another place, which is also how what it has not settled is purged.
//!
//! A place is one offset for each topic that the group gets messages from. Where it is given as a time, the offsets are
//! [searched for](super::time_search), one topic after the other, and the group is set to all of them in one commit.
//! What consumers have in flight is recalled: it is not theirs any more, and what they say of it does nothing.

use std::collections::BTreeMap;

use super::machine::Broker;
use super::time_search::{Found, Purpose};
use super::{Content, Output, refusals};
use crate::model::id::{GroupId, Offset, SessionId, TopicId};
use crate::model::limits::SEEKS_MAX;
use crate::model::record::Record;
use crate::model::settings::Start;
use crate::model::time::Timestamp;
use crate::model::topic_kind::TopicKind;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::RequestId;
use crate::protocol::response::Reply;

/// A seek whose offsets are being searched for.
#[derive(Debug)]
struct Seek {
    session: SessionId,
    request: RequestId,
    group: GroupId,
    time: Timestamp,
    /// Topics that are still to be searched.
    left: Vec<TopicId>,
    found: Vec<(TopicId, Offset)>,
}

/// Seeks that are under way.
#[derive(Debug, Default)]
pub(super) struct Seeks {
    by_number: BTreeMap<u64, Seek>,
    next: u64,
}

impl Broker {
    /// Sets a group to another place. Answers the request now or when the place is found.
    pub(super) fn seek(
        &mut self,
        asked: (SessionId, RequestId),
        group: GroupId,
        to: Start,
        out: &mut Output,
    ) {
        let (session, request) = asked;
        let answer = match to {
            Start::Time(time) => match self.begin_seek(asked, group, time) {
                Ok(number) => {
                    self.go_on_seeking(number, out);
                    return;
                }
                Err(refusal) => Err(refusal),
            },
            to => self.places(group, to).map(|places| {
                self.set_places(group, &places, out);
                Reply::Done
            }),
        };
        out.effect(session, Content::Reply(request, answer));
    }

    /// Settles all that a group has not settled. Answers how many messages that are.
    pub(super) fn purge_group(&mut self, id: GroupId, out: &mut Output) -> Result<Reply, Refusal> {
        self.make_settled_known(id, out);
        let messages = self.groups.get(&id).map_or(0, |group| self.waiting_of(group));
        let places = self.places(id, Start::Latest)?;
        self.set_places(id, &places, out);
        Ok(Reply::Dropped { count: messages })
    }

    /// The offsets of a place that is no time.
    fn places(&self, id: GroupId, to: Start) -> Result<Vec<(TopicId, Offset)>, Refusal> {
        let Some(group) = self.groups.get(&id) else { return Ok(Vec::new()) };
        let own = self.topics.get(&group.topic).map(|topic| topic.state.kind);
        if matches!(to, Start::Offset(_)) && (group.parts.len() > 1 || own == Some(TopicKind::Pattern)) {
            let text = "the group gets messages of several topics or priorities, and each has offsets of its own: \
                        seek to a time";
            return Err(Refusal::new(ErrorCode::Invalid, text));
        }
        let place = |topic: &TopicId| {
            let state = &self.topics.get(topic)?.state;
            let offset = match to {
                Start::Latest => state.end,
                Start::Offset(offset) => offset,
                Start::Earliest | Start::Time(_) => state.start,
            };
            Some((*topic, offset))
        };
        Ok(group.parts.keys().filter_map(place).collect())
    }

    fn begin_seek(
        &mut self,
        (session, request): (SessionId, RequestId),
        group: GroupId,
        time: Timestamp,
    ) -> Result<u64, Refusal> {
        if self.seeks.by_number.len() >= SEEKS_MAX {
            return Err(refusals::limit("seeks_max", SEEKS_MAX as u64, "seeks to a time under way"));
        }
        let left =
            self.groups.get(&group).into_iter().flat_map(|group| group.parts.keys().copied()).collect();
        let number = self.seeks.next;
        self.seeks.next += 1;
        let seek = Seek { session, request, group, time, left, found: Vec::new() };
        self.seeks.by_number.insert(number, seek);
        Ok(number)
    }

    /// Searches for what is left of a seek. When all is found, the group is set to it.
    fn go_on_seeking(&mut self, number: u64, out: &mut Output) {
        while let Some(seek) = self.seeks.by_number.get_mut(&number) {
            let Some(topic) = seek.left.pop() else {
                if let Some(seek) = self.seeks.by_number.remove(&number) {
                    let answer = if self.groups.contains_key(&seek.group) {
                        self.set_places(seek.group, &seek.found, out);
                        Ok(Reply::Done)
                    } else {
                        Err(Refusal::new(ErrorCode::Deleted, "the group was deleted"))
                    };
                    out.effect(seek.session, Content::Reply(seek.request, answer));
                }
                return;
            };
            let time = seek.time;
            let Some(found) = self.search_time(topic, time, Purpose::Seek(number), out) else { return };
            self.note_place(number, topic, found, out);
        }
    }

    /// A search of a seek is over.
    pub(super) fn found_place(&mut self, number: u64, topic: TopicId, found: Found, out: &mut Output) {
        self.note_place(number, topic, found, out);
        self.go_on_seeking(number, out);
    }

    fn note_place(&mut self, number: u64, topic: TopicId, found: Found, out: &mut Output) {
        let Some(seek) = self.seeks.by_number.get_mut(&number) else { return };
        match found {
            Found::At(offset, _) => seek.found.push((topic, offset)),
            // The group will not have it any more.
            Found::Nothing if !self.topics.contains_key(&topic) => {}
            Found::Nothing => {
                if let Some(seek) = self.seeks.by_number.remove(&number) {
                    let text = "a message could not be read now, and the group stays where it is; ask again";
                    let refusal = Refusal::new(ErrorCode::Unreadable, text);
                    out.effect(seek.session, Content::Reply(seek.request, Err(refusal)));
                }
            }
        }
    }

    /// Sets a group to an offset in each of these topics.
    fn set_places(&mut self, id: GroupId, places: &[(TopicId, Offset)], out: &mut Output) {
        // What was settled before it is a fact of the place before.
        self.make_settled_known(id, out);
        for &(topic_id, offset) in places {
            let Some(group) = self.groups.get_mut(&id) else { return };
            let Some(topic) = self.topics.get_mut(&topic_id) else { continue };
            if !group.parts.contains_key(&topic_id) {
                continue;
            }
            group.recall(topic_id, &mut out.effects);
            let Some(part) = group.parts.get_mut(&topic_id) else { continue };
            let floor = offset.clamp(topic.state.start, topic.state.end);
            part.seek(floor, &topic.state.removed, topic.state.end);
            out.records.push(Record::GroupSought { group: part.id, floor });
            topic.garbage.group_gone();
            self.cycle.mark(group, topic_id);
            self.check_floor(topic_id);
        }
    }
}
