//! What there is to know of a topic, its groups and their consumers, for an operator.

use super::consumer::Consumer;
use super::group::Group;
use super::machine::Broker;
use super::rate::Rate;
use crate::model::id::{Offset, TopicId};
use crate::model::limits::DESCRIBED_MAX;
use crate::model::snapshot::TopicState;
use crate::protocol::response::{ConsumerDescription, GroupDescription, Reply, TopicDescription};

impl Broker {
    /// Describes a topic. What was settled in this cycle was made known before.
    pub(super) fn describe_topic(&self, id: TopicId) -> Option<Reply> {
        let topic = self.topics.get(&id)?;
        let lanes =
            topic.lanes.iter().rev().filter_map(|(priority, lane)| {
                Some((*priority, self.topics.get(lane)?.state.message_count()))
            });
        let logs = topic.lanes.values().chain([&id]).filter_map(|log| self.topics.get(log));
        let published = logs.clone().map(|log| self.per_kilosecond(log.published)).sum();
        let mut left = DESCRIBED_MAX;
        // Those of patterns that stand for it are among them.
        let groups = topic.holders.iter().filter_map(|id| self.groups.get(id)).filter_map(|group| {
            left = left.checked_sub(1)?;
            self.describe_group(group, &mut left)
        });
        Some(Reply::Description(Box::new(TopicDescription {
            topic: self.topic_info(id)?,
            bytes: logs.clone().map(|log| live_bytes(&log.state)).sum(),
            lanes: lanes.collect(),
            oldest_age_ms: logs.filter_map(|log| self.age_ms(&log.state, log.state.start)).max(),
            published_per_kilosecond: published,
            groups: groups.collect(),
        })))
    }

    fn describe_group(&self, group: &Group, left: &mut usize) -> Option<GroupDescription> {
        let lags = group.parts.iter().filter_map(|(topic, part)| {
            let topic = &self.topics.get(topic)?.state;
            self.age_ms(topic, topic.next_run(part.state.floor).start)
        });
        let consumers =
            group.members.iter().take(*left).map(|(_, consumer)| self.describe_consumer(consumer));
        let consumers: Vec<ConsumerDescription> = consumers.collect();
        *left -= consumers.len();
        Some(GroupDescription {
            group: self.group_info(group)?,
            lag_ms: lags.max(),
            delivered_per_kilosecond: self.per_kilosecond(group.delivered),
            acked_per_kilosecond: self.per_kilosecond(group.acked),
            consumers,
        })
    }

    fn describe_consumer(&self, consumer: &Consumer) -> ConsumerDescription {
        let client = self.sessions.get(&consumer.session).map(|session| session.client.clone());
        ConsumerDescription {
            client: client.unwrap_or_default(),
            connection: consumer.session.0,
            consumer: consumer.handle,
            priority: consumer.priority,
            in_flight: consumer.flights.count(),
            window: consumer.window,
            pulls: consumer.pulls.len() as u32,
            last_ack_at: consumer.last_ack_at,
            activity: consumer.told,
        }
    }

    /// How long ago a message was published, about; `None` where it is not there.
    fn age_ms(&self, topic: &TopicState, offset: Offset) -> Option<u64> {
        let there = offset < topic.end;
        there.then(|| self.now.since(topic.marks.published_about(offset, topic.end)).as_millis() as u64)
    }

    fn per_kilosecond(&self, rate: Rate) -> u64 {
        (rate.per_second(self.now) * 1000.0) as u64
    }
}

/// Bytes of the messages that are there, about.
pub(super) fn live_bytes(topic: &TopicState) -> u64 {
    let all = topic.marks.bytes_ever().saturating_sub(topic.marks.bytes_before(topic.start, topic.end));
    let count = topic.end.0 - topic.start.0;
    let there = topic.message_count();
    // What was removed from the middle is taken to be as large as what is left.
    (u128::from(all) * u128::from(there) / u128::from(count.max(1))) as u64
}
