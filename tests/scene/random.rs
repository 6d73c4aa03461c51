//! Random histories: what is committed next, from three numbers.

use batonmq::model::id::{Offset, OffsetRange, TopicId};
use batonmq::model::record::{Record, Retry, ReturnReason};
use batonmq::model::time::Timestamp;

use super::{Model, bodies, group_created, middle, producer_opened, published, topic_created, unsettled};

/// One step of a random history. The numbers choose among what exists.
pub type Step = (u8, u16, u16);

/// What the step commits; nothing where it makes no sense.
pub fn random_records(model: &Model, (kind, a, b): Step) -> Vec<Record> {
    let snapshot = &model.snapshot;
    let (a, b) = (usize::from(a), usize::from(b));
    let topics: Vec<TopicId> = snapshot.topics.keys().copied().collect();
    let groups: Vec<_> = snapshot.groups.keys().copied().collect();
    let producers: Vec<_> = snapshot.producers.keys().copied().collect();
    let pick = |len: usize| (len > 0).then(|| a % len.max(1));
    let topic = pick(topics.len()).map(|at| topics[at]);
    let group = pick(groups.len()).map(|at| groups[at]);
    let producer = pick(producers.len()).map(|at| producers[at]);
    let records = match kind {
        0 => Some(vec![topic_created(snapshot)]),
        1 => topic.map(|topic| vec![group_created(snapshot, topic)]),
        2 => Some(vec![producer_opened(snapshot, Timestamp(b as u64))]),
        3..=8 => topic.map(|_| {
            let start = a % topics.len();
            let targets = &topics[start..topics.len().min(start + 1 + b % 3)];
            let producer = producer.filter(|_| b % 2 == 0);
            vec![published(snapshot, targets, producer, &bodies(1 + b % 40, b % 700, (a * b) as u64))]
        }),
        9..=11 => group.and_then(|group| {
            let open = unsettled(snapshot, group);
            let start = (open.start.0 + (b % 3) as u64).min(open.end.0);
            let ranges = vec![OffsetRange::new(start, (start + 1 + b as u64 % 20).min(open.end.0))];
            (!ranges[0].is_empty()).then(|| vec![Record::Settled { group, ranges }])
        }),
        12 => group.and_then(|group| {
            let open = unsettled(snapshot, group);
            let range = OffsetRange::new(open.start.0, (open.start.0 + 3).min(open.end.0));
            let retry =
                Retry { attempts: 1 + b as u32, due_at: Timestamp(a as u64), reason: ReturnReason::Nacked };
            (!range.is_empty()).then(|| vec![Record::Returned { group, range, retry }])
        }),
        13 => group.map(|group| vec![Record::HandedOut { group, end: unsettled(snapshot, group).end }]),
        14..=15 => topic.map(|topic| {
            let state = &snapshot.topics[&topic];
            let start = Offset(state.start.0 + (state.end.0 - state.start.0) * (b as u64 % 11) / 10);
            vec![Record::Trimmed { topic, start }]
        }),
        24..=25 => topic.and_then(|topic| {
            let ranges = middle(snapshot, topic, (b % 70) as u64, 1 + (a % 50) as u64);
            (!ranges.is_empty()).then(|| vec![Record::Removed { topic, ranges }])
        }),
        16 if b % 4 == 0 => topic.map(|topic| {
            let of_topic = snapshot.groups.iter().filter(|(_, state)| state.topic == topic);
            let deleted = of_topic.map(|(&group, _)| Record::GroupDeleted { group });
            deleted.chain([Record::TopicDeleted { topic }]).collect()
        }),
        17 if b % 4 == 0 => producer.map(|producer| vec![Record::ProducerExpired { producer }]),
        _ => None,
    };
    records.unwrap_or_default()
}
