//! Random histories: what is committed next, from three numbers.

use batonmq::model::chunk::Origin;
use batonmq::model::id::{Offset, OffsetRange, ProducerId, Sequence, TopicId};
use batonmq::model::name::Name;
use batonmq::model::record::{Record, Source};
use batonmq::model::retry::{Failure, Retry, ReturnReason};
use batonmq::model::route::{Route, RouteMode};
use batonmq::model::settings::{GroupSettings, TopicSettings};
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};

use super::{
    Model, bodies, deletion, group_created, middle, part_created, producer_opened, published, topic_created,
    unsettled,
};

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
        0 => Some(vec![topic_of_a_kind(snapshot, topic, b)]),
        1 => {
            topic.map(|topic| {
                let whole = groups.iter().filter(|id| snapshot.groups[id].part_of.is_none());
                let whole = whole.copied().nth(b % 4).filter(|_| b % 3 == 0);
                vec![whole.map_or_else(
                    || group_created(snapshot, topic),
                    |whole| part_created(snapshot, topic, whole),
                )]
            })
        }
        2 => match producer.filter(|_| b % 2 == 0) {
            None => Some(vec![producer_opened(snapshot, Timestamp(b as u64))]),
            Some(producer) => Some(vec![advanced(snapshot, producer, b)]),
        },
        3..=8 => topic.map(|_| {
            let start = a % topics.len();
            let targets = &topics[start..topics.len().min(start + 1 + b % 3)];
            let (count, next) = (1 + b % 40, producer.filter(|_| b % 2 == 0));
            let mut record = published(snapshot, targets, next, &bodies(count, b % 700, (a * b) as u64));
            let advanced = producer.filter(|_| a % 2 == 0).map(|producer| advanced(snapshot, producer, b));
            match (&mut record, producer) {
                (Record::Published(published), _) if b % 5 == 1 => {
                    published.source = mixed(producer, count as u32, a);
                    advanced.into_iter().chain([record]).collect()
                }
                _ => vec![record],
            }
        }),
        9..=11 => group.and_then(|group| {
            let open = unsettled(snapshot, group);
            let start = (open.start.0 + (b % 3) as u64).min(open.end.0);
            let ranges = vec![OffsetRange::new(start, (start + 1 + b as u64 % 20).min(open.end.0))];
            (!ranges[0].is_empty()).then(|| vec![Record::Settled { group, ranges }])
        }),
        12 => group.and_then(|group| {
            let open = unsettled(snapshot, group);
            let start = open.start.0 + (b % 12) as u64;
            let range = OffsetRange::new(start, (start + 1 + b as u64 % 5).min(open.end.0));
            (!range.is_empty()).then(|| vec![Record::Returned { group, range, retry: retry(a % 4) }])
        }),
        13 if b % 4 == 0 => group.map(|group| {
            let topic = &snapshot.topics[&snapshot.groups[&group].topic];
            let floor = Offset(topic.start.0 + (topic.end.0 - topic.start.0) * (b as u64 % 11) / 10);
            vec![Record::GroupSought { group, floor }]
        }),
        13 if b % 4 == 1 => group.zip(topic).map(|(group, topic)| {
            let settings = GroupSettings { filter: Some(format!("a = {b}")), ..GroupSettings::default() };
            let limits = TopicSettings { max_bytes: Some(b as u64), ..TopicSettings::default() };
            vec![Record::GroupChanged { group, settings }, Record::TopicChanged { topic, settings: limits }]
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
        16 if b % 4 == 1 => {
            let slots = snapshot.topics.iter().filter(|(_, state)| {
                matches!(state.kind, TopicKind::Slot { .. }) && state.start == state.end
            });
            let slots: Vec<TopicId> = slots.map(|(id, _)| *id).collect();
            let (from, until) = (Timestamp(b as u64), Timestamp(3 * b as u64));
            pick(slots.len()).map(|at| vec![Record::SlotMoved { slot: slots[at], from, until }])
        }
        16 if b % 4 == 0 => topic.map(|topic| deletion(snapshot, topic)),
        17 if b % 4 == 0 => producer.map(|producer| vec![Record::ProducerExpired { producer }]),
        17 if b % 4 == 1 => topic.map(|from| {
            let to: Vec<TopicId> = topics.iter().copied().filter(|&to| to != from).take(1 + b % 3).collect();
            let (route, mode) =
                (snapshot.next.route, if b % 3 == 0 { RouteMode::Copy } else { RouteMode::Move });
            let name = Name::new(&format!("route-{route}")).unwrap();
            let filter = (b % 2 == 0).then(|| format!("a = {b}"));
            vec![Record::RouteCreated { route, rule: Route { name, from, to, filter, mode } }]
        }),
        17 if b % 4 == 2 => snapshot.routes.keys().next().map(|&route| vec![Record::RouteDeleted { route }]),
        _ => None,
    };
    records.unwrap_or_default()
}

/// A topic of any kind: where there is one that is no part, this may be a part of it.
fn topic_of_a_kind(snapshot: &Snapshot, of: Option<TopicId>, b: usize) -> Record {
    let (from, until) = (Timestamp(b as u64), Timestamp(2 * b as u64));
    let slot = |of, waiting| TopicKind::Slot { of, waiting, from, until };
    let of = of.filter(|of| snapshot.topics[of].kind.part_of().is_none());
    let made = match (b % 6, of) {
        (1, _) => TopicKind::Pattern,
        (2, Some(of)) => TopicKind::Lane { of, priority: 1 + (b % 9) as u8 },
        (3, Some(of)) => slot(of, Waiting::Delayed),
        (4, Some(of)) => slot(of, Waiting::Expiring),
        _ => TopicKind::Named,
    };
    let Record::TopicCreated { topic, name, settings, .. } = topic_created(snapshot) else { unreachable!() };
    let name = match made {
        TopicKind::Pattern => Name::pattern(&format!("{name}.#")).unwrap(),
        _ => of.filter(|_| made.part_of().is_some()).map_or(name, |of| snapshot.topics[&of].name.clone()),
    };
    Record::TopicCreated { topic, name, kind: made, settings }
}

fn advanced(snapshot: &Snapshot, producer: ProducerId, by: usize) -> Record {
    let last = Sequence(snapshot.producers[&producer].last.0 + by as u64 % 9);
    Record::ProducerAdvanced { producer, last, at: Timestamp(snapshot.time.0 + by as u64 % 2) }
}

/// Messages of which some come from the broker, some from a producer, and some from one that is forgotten.
fn mixed(producer: Option<ProducerId>, count: u32, a: usize) -> Source {
    let mut runs = Vec::new();
    let mut left = count;
    while left > 0 {
        let run = left.min(1 + (a + runs.len()) as u32 % 4);
        left -= run;
        let sequence = Sequence(u64::from(count - left) * 3);
        runs.push((
            run,
            match (a + runs.len()) % 3 {
                0 => None,
                1 => Some(Origin { producer: ProducerId(1 << 40), sequence }),
                _ => producer.map(|producer| Origin { producer, sequence }),
            },
        ));
    }
    Source::Mixed(runs)
}

/// One of a few, so that ranges meet that have the same.
fn retry(which: usize) -> Retry {
    let failed = |text: Option<&str>| Failure {
        at: Timestamp(which as u64),
        reason: ReturnReason::Nacked,
        text: text.map(Into::into),
    };
    let once = Retry::default().failed(failed(Some("no \"way\"")), Timestamp(7));
    match which {
        0 => Retry::default().released(Timestamp(9)),
        1 => once,
        _ => once.failed(failed(None), Timestamp(8)),
    }
}
