//! The broker under random commands, against a naive model of every message. A failure prints the commands that
//! lead to it, cut down to the smallest that do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{Offset, OffsetRange, SessionId, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::{
    Backoff, GroupSettings, Lifetime, Overflow, Policy, Retention, Start, TopicSettings,
};
use batonmq::model::time::Timestamp;
use batonmq::protocol::request::{AdminCommand, Settlement, Window};
use broker_world::{World, browse};
use proptest::prelude::*;

const TOPICS: [&str; 4] = ["a", "b", "a.dead-letter", "*"];
const GROUPS: [&str; 2] = ["g", "h"];
const PRODUCERS: [&str; 3] = ["p", "q", "r"];

/// What a session opens when it comes: a producer, and consumers of groups of topics.
#[derive(Clone, Debug)]
struct Arrival {
    producer: usize,
    consumers: Vec<(usize, usize, Window, GroupSettings, u8)>,
}

/// The name of a group of a topic. Dead letters name topic and group, and so the groups of a pattern, which have the
/// topics of others, have names of their own.
fn group_name(topic: usize, group: usize) -> String {
    if TOPICS[topic] == "*" { format!("{}-of-all", GROUPS[group]) } else { GROUPS[group].to_owned() }
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let consumer = (
        prop_oneof![3 => Just(0_usize), 1 => 1..TOPICS.len()],
        0..GROUPS.len(),
        window(),
        settings(),
        0_u8..3,
    );
    (0..PRODUCERS.len(), prop::collection::vec(consumer, 2))
        .prop_map(|(producer, consumers)| Arrival { producer, consumers })
}

fn arrive(world: &mut World, session: u64, arrival: Arrival) {
    world.begin(session);
    world.open(session, 0, PRODUCERS[arrival.producer]);
    for (handle, (topic, group, window, settings, priority)) in (0..).zip(arrival.consumers) {
        let group = group_name(topic, group);
        world.subscribe_as(session, handle, TOPICS[topic], &group, window, Some(settings), priority);
    }
}

/// One step; numbers pick among what there is.
#[derive(Clone, Debug)]
enum Step {
    Begin(u64, Arrival),
    End(u64, bool),
    Open(u64, u32, usize),
    Close(u64, u32),
    /// Session, handle, how far off the right sequence, and for each part a topic and how many messages.
    Publish(u64, u32, i64, Vec<(usize, u32)>),
    Subscribe(u64, u32, usize, usize, Window, GroupSettings, u8),
    Unsubscribe(u64, u32),
    Flow(u64, u32, Window),
    Pull(u64, u32, Window, u64),
    Settle(u64, u32, Settlement, Vec<(u64, u64)>),
    /// Session, how far off the right sequence, parts as for a publish, and for each settlement a consumer, how much of
    /// what it has, from which of it on, and whether a little more than that is settled.
    Transact(u64, i64, Vec<(usize, u32)>, Vec<(u32, Settlement, usize, usize, bool)>),
    Full(u64, bool),
    DeleteTopic(usize),
    DeleteGroup(usize, usize),
    ChangeGroup(usize, usize, GroupSettings),
    ChangeTopic(usize, TopicSettings),
    PurgeTopic(usize),
    PurgeGroup(usize, usize),
    Seek(usize, usize, Start),
    CreateGroup(usize, usize, u64),
    Browse(usize, u64, u32),
    List,
    Explain(usize, usize, u64),
    Answer(usize),
    /// Of a topic, so many messages from one on cannot be read.
    Damage(usize, usize, usize),
    Heal,
    Advance(u64),
    /// A commit takes so long.
    Stall(u64),
    Finish,
    Restart(Vec<Arrival>),
}

fn window() -> impl Strategy<Value = Window> {
    let messages = prop_oneof![2 => Just(0_u32), 5 => 1_u32..6, 2 => 6_u32..40];
    let bytes = prop_oneof![4 => Just(u64::MAX), 2 => 0_u64..300];
    (messages, bytes).prop_map(|(messages, bytes)| Window { messages, bytes })
}

fn settings() -> impl Strategy<Value = GroupSettings> {
    let backoff = (0_u64..200, prop_oneof![Just(100_u32), Just(200)], 0_u64..1_000, 0_u32..=100);
    let policy = prop_oneof![
        2 => Just(Policy::RoundRobin),
        2 => Just(Policy::Fair),
        3 => Just(Policy::Exclusive),
        4 => Just(Policy::Key),
    ];
    let lifetime = prop_oneof![
        12 => Just(Lifetime::Durable),
        1 => Just(Lifetime::Ephemeral),
        1 => (1_000_u64..4_000).prop_map(Lifetime::Idle),
    ];
    let paused = prop_oneof![9 => Just(false), 1 => Just(true)];
    let values = (policy, lifetime, 100_u64..2_000, 0_u32..4, backoff, paused);
    values.prop_map(|(policy, lifetime, lease_ms, max_attempts, backoff, paused)| GroupSettings {
        paused,
        policy,
        lifetime,
        lease_ms,
        max_attempts,
        backoff: Backoff {
            initial_ms: backoff.0,
            multiplier_percent: backoff.1,
            maximum_ms: backoff.0 + backoff.2,
            jitter_percent: backoff.3,
        },
        ..GroupSettings::default()
    })
}

fn topic_settings() -> impl Strategy<Value = TopicSettings> {
    let few = || prop_oneof![2 => Just(None), 1 => (1_u64..30).prop_map(Some)];
    // Up to about as many, for most are of 30 bytes or so.
    let small = || prop_oneof![2 => Just(None), 1 => (1_u64..900).prop_map(Some)];
    let age = prop_oneof![2 => Just(None), 1 => (1_000_u64..5_000).prop_map(Some)];
    let overflow = prop_oneof![Just(Overflow::Block), Just(Overflow::Reject), Just(Overflow::DropOldest)];
    let flags = (any::<bool>(), 0_u8..8);
    let values = (age, (few(), small()), (few(), small()), overflow, flags);
    values.prop_map(|(max_age_ms, kept, full, overflow, flags)| {
        let acked = flags.0 || (max_age_ms, kept) == (None, (None, None));
        TopicSettings {
            retention: Retention { acked, max_age_ms, max_messages: kept.0, max_bytes: kept.1 },
            max_messages: full.0,
            max_bytes: full.1,
            overflow: if full == (None, None) { Overflow::Block } else { overflow },
            paused: flags.1 == 0,
            temporary: flags.1 == 1,
            ..TopicSettings::default()
        }
    })
}

fn place() -> impl Strategy<Value = Start> {
    prop_oneof![
        Just(Start::Earliest),
        Just(Start::Latest),
        (0_u64..60).prop_map(|offset| Start::Offset(Offset(offset))),
        (1_000_000_u64..1_010_000).prop_map(|at| Start::Time(Timestamp(at))),
    ]
}

fn settlement() -> impl Strategy<Value = Settlement> {
    prop_oneof![
        5 => Just(Settlement::Ack),
        1 => Just(Settlement::Nack { delay_ms: None, reason: None }),
        1 => (0_u64..500).prop_map(|delay| Settlement::Nack { delay_ms: Some(delay), reason: Some("no".into()) }),
        1 => Just(Settlement::Release),
        1 => Just(Settlement::Reject { reason: None }),
        1 => Just(Settlement::Extend),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let session = || 0_u64..3;
    let handle = || prop_oneof![9 => 0_u32..2, 1 => Just(2)];
    let producer = || prop_oneof![9 => Just(0_u32), 1 => 1_u32..3];
    let topic = || prop_oneof![3 => Just(0_usize), 1 => 1..TOPICS.len()];
    let group = || 0_usize..GROUPS.len();
    let off = prop_oneof![8 => Just(0_i64), 1 => -12_i64..0, 1 => 1_i64..3];
    let parts = prop::collection::vec((topic(), 1_u32..12), 1..3);
    let off_transaction = prop_oneof![8 => Just(0_i64), 1 => -6_i64..0, 1 => 1_i64..3];
    let transacted = prop::collection::vec((topic(), 1_u32..6), 0..3);
    let held = prop::collection::vec(
        (handle(), settlement(), 0_usize..6, 0_usize..4, prop_oneof![9 => Just(false), 1 => Just(true)]),
        0..3,
    );
    let ranges = prop::collection::vec((0_u64..60, prop_oneof![1_u64..8, Just(1_000)]), 1..3);
    prop_oneof![
        3 => (session(), arrival()).prop_map(|(s, a)| Step::Begin(s, a)),
        1 => (session(), any::<bool>()).prop_map(|(s, lost)| Step::End(s, lost)),
        2 => (session(), producer(), 0..PRODUCERS.len()).prop_map(|(s, h, p)| Step::Open(s, h, p)),
        1 => (session(), producer()).prop_map(|(s, h)| Step::Close(s, h)),
        12 => (session(), producer(), off, parts).prop_map(|(s, h, o, p)| Step::Publish(s, h, o, p)),
        2 => (session(), handle(), topic(), group(), window(), settings(), 0_u8..3)
            .prop_map(|(s, h, t, g, w, set, p)| Step::Subscribe(s, h, t, g, w, set, p)),
        1 => (session(), handle()).prop_map(|(s, h)| Step::Unsubscribe(s, h)),
        2 => (session(), handle(), window()).prop_map(|(s, h, w)| Step::Flow(s, h, w)),
        3 => (session(), handle(), window(), prop_oneof![Just(0), 1_u64..3_000])
            .prop_map(|(s, h, w, wait)| Step::Pull(s, h, w, wait)),
        12 => (session(), handle(), settlement(), ranges).prop_map(|(s, h, k, r)| Step::Settle(s, h, k, r)),
        8 => (session(), off_transaction, transacted, held).prop_map(|(s, o, p, h)| Step::Transact(s, o, p, h)),
        2 => (session(), any::<bool>()).prop_map(|(s, full)| Step::Full(s, full)),
        2 => prop_oneof![
            1 => (0..TOPICS.len()).prop_map(Step::DeleteTopic),
            1 => (topic(), group()).prop_map(|(t, g)| Step::DeleteGroup(t, g)),
            6 => (topic(), group(), settings()).prop_map(|(t, g, s)| Step::ChangeGroup(t, g, s)),
            2 => (topic(), group(), 0_u64..40).prop_map(|(t, g, o)| Step::CreateGroup(t, g, o)),
            6 => (topic(), topic_settings()).prop_map(|(t, s)| Step::ChangeTopic(t, s)),
            1 => topic().prop_map(Step::PurgeTopic),
            1 => (topic(), group()).prop_map(|(t, g)| Step::PurgeGroup(t, g)),
            4 => (topic(), group(), place()).prop_map(|(t, g, p)| Step::Seek(t, g, p)),
        ],
        1 => (topic(), 0_u64..50, 0_u32..20).prop_map(|(t, o, m)| Step::Browse(t, o, m)),
        1 => Just(Step::List),
        2 => (topic(), group(), 0_u64..60).prop_map(|(t, g, o)| Step::Explain(t, g, o)),
        8 => (0_usize..4).prop_map(Step::Answer),
        2 => (0_usize..6, 0_usize..60, 1_usize..9).prop_map(|(t, from, count)| Step::Damage(t, from, count)),
        1 => Just(Step::Heal),
        4 => prop_oneof![0_u64..20, 20_u64..3_000].prop_map(Step::Advance),
        1 => (100_u64..5_000).prop_map(Step::Stall),
        14 => Just(Step::Finish),
        1 => prop::collection::vec(arrival(), 3).prop_map(Step::Restart),
    ]
}

fn limits(cache_bytes_max: u64) -> Limits {
    Limits {
        cache_bytes_max,
        in_flight_max: 25,
        retries_max: 12,
        parked_max: 7,
        settled_ranges_max: 6,
        pinned_bytes_max: 64,
        pulls_waiting_max: 2,
        producers_max: 3,
        prefetch_max: 30,
        consumers_per_connection_max: 2,
        ..Limits::default()
    }
}

/// Bytes that a cycle hands out: all there are, one message, or a few.
fn output() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(u64::MAX), 1 => Just(0), 1 => 1_u64..500]
}

/// Publishes messages of which some have keys, the same few again and again. All are of one size: bytes in flight are
/// counted exactly then.
fn publish(world: &mut World, session: u64, handle: u32, sequence: u64, parts: Vec<(TopicId, u32)>) {
    let count: u32 = parts.iter().map(|part| part.1).sum();
    let message = |sequence: u64| {
        let body = format!("{session:>8}:{handle:>4}:{sequence:>6}");
        match sequence % 4 {
            // In place of the key and its length.
            0 => Message::new(format!("{body}   ")),
            _ => Message {
                key: Some(vec![b'a' + (sequence * sequence % 5) as u8].into()),
                ..Message::new(body)
            },
        }
    };
    let messages: Vec<Message> = (sequence..sequence + u64::from(count)).map(message).collect();
    world.publish_messages(session, handle, sequence, parts, &messages);
}

/// Settles in the topic of a consumer, or in all topics where it has several.
fn settle(world: &mut World, session: u64, handle: u32, kind: &Settlement, ranges: &[OffsetRange]) {
    let own = world.clients.get(&SessionId(session)).and_then(|client| client.topics.get(&handle)).copied();
    let of_pattern = own.and_then(|own| world.fold.topics.get(&own)).is_some_and(|own| own.name.is_pattern());
    let topics: Vec<TopicId> = match own {
        Some(_) if of_pattern => world.fold.topics.keys().copied().collect(),
        own => vec![own.unwrap_or_default()],
    };
    for topic in topics {
        world.settle_in(session, handle, topic, kind.clone(), ranges.to_vec());
    }
}

fn take(world: &mut World, topics: &mut BTreeMap<usize, TopicId>, step: Step) {
    match step {
        Step::Begin(s, arrival) => arrive(world, s, arrival),
        Step::End(s, lost) => world.end(s, if lost { Ending::Lost } else { Ending::Closed }),
        Step::Open(s, h, name) if world.clients.contains_key(&SessionId(s)) => {
            world.open(s, h, PRODUCERS[name]);
        }
        Step::Close(s, h) if world.clients.contains_key(&SessionId(s)) => world.close_producer(s, h),
        Step::Publish(s, h, off, parts) if world.clients.contains_key(&SessionId(s)) => {
            let parts = parts
                .into_iter()
                .map(|(topic, count)| {
                    if let Some(id) = world.find_topic(s, TOPICS[topic]) {
                        // Now and then the id is one from before the topic was deleted.
                        topics.entry(topic).or_insert(id);
                        if count % 4 != 0 {
                            topics.insert(topic, id);
                        }
                    }
                    (topics.get(&topic).copied().unwrap_or(TopicId(9)), count)
                })
                .collect();
            let id = world.clients[&SessionId(s)].producers.get(&h).copied();
            let last = id.and_then(|id| world.last_of(id)).map_or(0, |last| last.0);
            let sequence = (last as i64 + 1 + off).max(1) as u64;
            publish(world, s, h, sequence, parts);
        }
        Step::Subscribe(s, h, topic, group, window, settings, priority) => {
            let group = group_name(topic, group);
            world.subscribe_as(s, h, TOPICS[topic], &group, window, Some(settings), priority);
        }
        Step::Unsubscribe(s, h) => world.unsubscribe(s, h),
        Step::Flow(s, h, window) => world.flow(s, h, capped(world, window)),
        Step::Pull(s, h, window, wait) => world.pull(s, h, window, wait),
        Step::Settle(s, h, kind, ranges) => {
            let ranges: Vec<OffsetRange> =
                ranges.into_iter().map(|(start, len)| OffsetRange::new(start, start + len)).collect();
            settle(world, s, h, &kind, &ranges);
        }
        Step::Transact(s, off, parts, settles) if world.clients.contains_key(&SessionId(s)) => {
            let parts = parts
                .into_iter()
                .map(|(topic, count)| (topics.get(&topic).copied().unwrap_or(TopicId(9)), count))
                .collect();
            let id = world.clients[&SessionId(s)].producers.get(&0).copied();
            let last = id.and_then(|id| world.last_of(id)).map_or(0, |last| last.0);
            let sequence = (last as i64 + 1 + off).max(1) as u64;
            let settles = settles
                .into_iter()
                .map(|(consumer, kind, count, from, more)| {
                    let held = world.held_by_consumer(s, consumer);
                    let taken = held.into_iter().skip(from).take(count);
                    let mut ranges: Vec<OffsetRange> =
                        taken.map(|offset| OffsetRange::new(offset, offset + 1)).collect();
                    if more {
                        ranges.push(OffsetRange::new(count as u64, count as u64 + 2));
                    }
                    (consumer, kind, ranges)
                })
                .collect();
            world.transact(s, 0, sequence, parts, settles);
        }
        Step::Full(s, full) => world.full(s, full),
        Step::DeleteTopic(topic) => {
            world.admin(0, AdminCommand::DeleteTopic { name: TOPICS[topic].into() });
        }
        Step::DeleteGroup(topic, group) => {
            let (topic, name) = (TOPICS[topic].into(), group_name(topic, group));
            world.admin(0, AdminCommand::DeleteGroup { topic, name });
        }
        Step::ChangeGroup(topic, group, settings) => {
            let (topic, name) = (TOPICS[topic].into(), group_name(topic, group));
            world.admin(0, AdminCommand::ChangeGroup { topic, name, settings });
        }
        Step::ChangeTopic(topic, settings) => {
            world.admin(0, AdminCommand::ChangeTopic { name: TOPICS[topic].into(), settings });
        }
        Step::PurgeTopic(topic) => {
            let id = world.topic_named(TOPICS[topic]);
            world.purged.extend(id);
            world.admin(0, AdminCommand::PurgeTopic { name: TOPICS[topic].into() });
        }
        Step::PurgeGroup(topic, group) => {
            let (topic, name) = (TOPICS[topic].into(), group_name(topic, group));
            world.admin(0, AdminCommand::PurgeGroup { topic, name });
        }
        Step::Seek(topic, group, to) => {
            let (topic, name) = (TOPICS[topic].into(), group_name(topic, group));
            world.admin(0, AdminCommand::Seek { topic, name, to });
        }
        Step::CreateGroup(topic, group, from) => {
            let (topic, name) = (TOPICS[topic].into(), group_name(topic, group));
            let start = Start::Offset(batonmq::model::id::Offset(from));
            let settings = GroupSettings::default();
            world
                .admin(0, AdminCommand::CreateTopic { name: "b".into(), settings: TopicSettings::default() });
            world.admin(0, AdminCommand::CreateGroup { topic, name, settings, start });
        }
        Step::Browse(topic, from, messages_max) => {
            world.admin(0, browse(TOPICS[topic], from, messages_max));
        }
        Step::List => {
            world.admin(0, AdminCommand::ListTopics { after: None });
            world.admin(0, AdminCommand::ListGroups { topic: None, after: None });
        }
        Step::Explain(topic, group, offset) => {
            for name in [GROUPS[group].to_owned(), format!("{}-of-all", GROUPS[group])] {
                world.explain(TOPICS[topic], &name, offset);
            }
        }
        Step::Answer(index) if index < world.reads.len() => world.answer(index),
        Step::Damage(topic, from, count) => world.damage(topic, from, count),
        Step::Heal => world.heal(),
        Step::Advance(ms) => {
            world.finish();
            world.now.0 += ms;
        }
        Step::Stall(ms) => {
            world.finish();
            world.stand_still(ms);
        }
        Step::Finish => world.finish(),
        Step::Restart(arrivals) => {
            world.finish();
            world.restart();
            for (session, arrival) in (0..).zip(arrivals) {
                arrive(world, session, arrival);
            }
        }
        _ => {}
    }
}

/// The window as the broker takes it.
fn capped(world: &World, window: Window) -> Window {
    Window { messages: window.messages.min(world.limits.prefetch_max as u32), ..window }
}

/// Settles everything there is, with time passing only as the broker asks for it.
fn drain(world: &mut World) {
    world.heal();
    world.finish();
    for session in world.clients.keys().copied().collect::<Vec<_>>() {
        world.end(session.0, Ending::Closed);
    }
    world.finish();
    let groups: Vec<(String, String)> = world
        .fold
        .groups
        .values()
        .filter(|group| group.part_of.is_none())
        .map(|group| (world.fold.topics[&group.topic].name.to_string(), group.name.to_string()))
        .collect();
    world.begin(100);
    world.begin(101);
    for name in TOPICS {
        let settings = TopicSettings::default();
        world.admin(100, AdminCommand::ChangeTopic { name: name.into(), settings });
    }
    for (topic, name) in groups.clone() {
        let group = world.fold.groups.values().find(|group| {
            group.name.as_str() == name && world.fold.topics[&group.topic].name.as_str() == topic
        });
        let settings = GroupSettings { paused: false, ..group.unwrap().settings.clone() };
        world.admin(100, AdminCommand::ChangeGroup { topic, name, settings });
    }
    let window = Window { messages: 20, bytes: u64::MAX };
    for (index, (topic, group)) in groups.iter().enumerate() {
        let session = 100 + index as u64 / 2;
        world.begin(session);
        world.subscribe(session, index as u32, topic, group, window, None);
    }
    let mut idle = 0;
    for _ in 0..2_000 {
        world.finish();
        let delivered = std::mem::take(&mut world.delivered);
        let busy = !delivered.is_empty() || !world.reads.is_empty();
        for (session, handle, part, offset, _) in delivered {
            let topic = world.fold.groups[&part].topic;
            let range = vec![OffsetRange::new(offset, offset + 1)];
            world.settle_in(session.0, handle, topic, Settlement::Ack, range);
        }
        world.answer_all();
        idle = if busy { 0 } else { idle + 1 };
        let done = world.fold.groups.values().all(|group| {
            let end = world.fold.topics[&group.topic].end;
            group.floor == end && group.settled.is_empty() && group.retries.is_empty()
        });
        if done && idle > 1 {
            let counts = world.broker.counts();
            assert_eq!((counts.in_flight, counts.retries), (0, 0));
            for (id, topic) in &world.fold.topics {
                let has_group = world.fold.groups.values().any(|group| group.topic == *id);
                assert!(!has_group || topic.start == topic.end, "what all have had is dropped");
            }
            return;
        }
        if !busy && let Some(timeout) = world.broker.next_timeout() {
            world.now = world.now.max(timeout);
        }
        assert!(idle < 100, "nothing moves any more: {:?}", world.fold.groups);
    }
    panic!("not drained: {:?}", world.fold.groups);
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(300))]

    /// No record that does not fit, the snapshot is the fold, no message lost, stored twice, settled twice, in two
    /// hands or handed out after it was settled; counted and timed as it should be; and in the end all is settled.
    #[test]
    fn whatever_happens_every_message_is_delivered_and_settled_once(
        cache_bytes_max in prop_oneof![1 => Just(0_u64), 1 => Just(800), 2 => Just(4_000), 1 => Just(1 << 20)],
        output in output(),
        arrivals in prop::collection::vec(arrival(), 3),
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let mut world = World::new(limits(cache_bytes_max), AutoCreate::Allowed);
        world.output_max = output;
        let mut topics = BTreeMap::new();
        for (session, arrival) in (0..).zip(arrivals) {
            arrive(&mut world, session, arrival);
        }
        for step in steps {
            take(&mut world, &mut topics, step);
        }
        drain(&mut world);
    }
}

/// A consumer as the rules of turns see it.
#[derive(Clone, Debug)]
struct Turn {
    priority: u8,
    window: u32,
    held: Vec<u64>,
    served: u64,
}

/// The consumer whose turn it is: of those with credit and the highest priority the one the policy puts first, and among equals the one that
/// was served least recently.
fn whose_turn(consumers: &[Turn], policy: Policy) -> Option<usize> {
    let with_credit = consumers.iter().enumerate().filter(|(_, turn)| (turn.held.len() as u32) < turn.window);
    let rank = |turn: &Turn| match policy {
        Policy::Fair => turn.held.len(),
        _ => 0,
    };
    let place = |turn: &Turn| (Reverse(turn.priority), rank(turn), turn.served);
    with_credit.min_by_key(|(index, turn)| (place(turn), *index)).map(|(index, _)| index)
}

proptest! {
    #![proptest_config(config(300))]

    /// Message by message, whatever the batches and however little a cycle hands out: who gets it is whose turn it is.
    #[test]
    fn each_message_goes_to_the_consumer_whose_turn_it_is(
        fair in any::<bool>(),
        output in output(),
        consumers in prop::collection::vec((0_u32..7, 0_u8..3), 1..5),
        steps in prop::collection::vec(
            prop_oneof![
                (1_u32..30).prop_map(|count| (0, count, 0)),
                (0_u32..4, 0_u32..6).prop_map(|(consumer, keep)| (1, consumer, keep)),
                (0_u32..4, 0_u32..7).prop_map(|(consumer, window)| (2, consumer, window)),
            ],
            1..40,
        ),
    ) {
        let policy = if fair { Policy::Fair } else { Policy::RoundRobin };
        let settings = GroupSettings { policy, lease_ms: 1_000_000, ..GroupSettings::default() };
        let mut world = World::new(Limits::default(), AutoCreate::Allowed);
        world.output_max = output;
        world.begin(0);
        world.open(0, 0, "p");
        let topic = world.find_topic(0, "t").unwrap();
        let mut model: Vec<Turn> =
            consumers.iter().map(|&(window, priority)| Turn { priority, window, held: Vec::new(), served: 0 }).collect();
        let size = |messages| Window { messages, bytes: u64::MAX };
        for (handle, (window, priority)) in (0..).zip(consumers) {
            world.subscribe_as(0, handle, "t", "g", size(window), Some(settings.clone()), priority);
        }
        let (mut end, mut next, mut turns) = (0_u64, 0_u64, 0_u64);
        for (kind, a, b) in steps {
            let consumer = a as usize % model.len();
            match kind {
                0 => {
                    world.publish(0, 0, end + 1, vec![(topic, a)]);
                    end += u64::from(a);
                }
                1 => {
                    let held = &mut model[consumer].held;
                    let acked = held.split_off(held.len().min(b as usize));
                    let ranges = acked.iter().map(|offset| OffsetRange::new(*offset, offset + 1)).collect();
                    world.settle(0, consumer as u32, Settlement::Ack, ranges);
                }
                _ => {
                    model[consumer].window = b;
                    world.flow(0, consumer as u32, size(b));
                }
            }
            let mut got = BTreeMap::new();
            loop {
                world.finish();
                got.extend(world.delivered.iter().map(|(_, handle, _, offset, _)| (*offset, *handle)));
                if world.broker.next_timeout().is_none_or(|at| at > world.now) {
                    break;
                }
            }
            let mut expected = BTreeMap::new();
            while next < end && let Some(index) = whose_turn(&model, policy) {
                turns += 1;
                model[index].held.push(next);
                model[index].served = turns;
                expected.insert(next, index as u32);
                next += 1;
            }
            prop_assert_eq!(got, expected);
        }
    }
}
