//! Groups with filters: rules, and the broker under random commands against a naive model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::collections::BTreeMap;

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{GroupId, Offset, OffsetRange, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::{GroupSettings, Start};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::{AdminCommand, Settlement, Window};
use batonmq::protocol::response::Reply;
use broker_world::World;
use proptest::prelude::*;

const ALL: Window = Window { messages: 1_000, bytes: u64::MAX };

/// The number that a message has in its header `n`.
fn number(message: &Message) -> u64 {
    std::str::from_utf8(message.header("n").unwrap()).unwrap().parse().unwrap()
}

type Closure = fn(&Message) -> bool;

/// The filters of these tests, each with what it is.
const FILTERS: [(&str, Closure); 4] = [
    ("n > 4", |message| number(message) > 4),
    ("n IN (1, 3, 5, 7)", |message| [1, 3, 5, 7].contains(&number(message))),
    ("@key = 'a' OR n = 0", |message| message.key.as_deref() == Some(b"a") || number(message) == 0),
    ("n IS NULL", |_| false),
];

fn message(n: u64) -> Message {
    let key = n.is_multiple_of(3).then(|| "a".into());
    Message { key, headers: vec![("n".into(), n.to_string().into())], ..Message::new("body") }
}

fn with_filter(filter: &str) -> GroupSettings {
    GroupSettings { filter: Some(filter.into()), ..GroupSettings::default() }
}

/// A world with a producer and a topic `t`.
struct Scene {
    world: World,
    topic: TopicId,
    next: u64,
}

impl Scene {
    fn new(limits: Limits) -> Self {
        let mut world = World::new(limits, AutoCreate::Allowed);
        world.filters = FILTERS.map(|(text, closure)| (text.to_owned(), closure)).into();
        world.begin(0);
        world.open(0, 0, "p");
        let topic = world.find_topic(0, "t").unwrap();
        world.finish();
        Self { world, topic, next: 1 }
    }

    fn create_group(&mut self, group: &str, settings: GroupSettings) -> GroupId {
        let (topic, name, start) = ("t".into(), group.into(), Start::Earliest);
        self.world.admin(0, AdminCommand::CreateGroup { topic, name, settings, start });
        self.world.finish();
        self.group(group)
    }

    fn group(&self, name: &str) -> GroupId {
        let mut groups = self.world.fold.groups.iter();
        *groups.find(|(_, group)| group.name.as_str() == name && group.part_of.is_none()).unwrap().0
    }

    fn publish(&mut self, numbers: impl IntoIterator<Item = u64>) {
        let messages: Vec<Message> = numbers.into_iter().map(message).collect();
        self.publish_messages(&messages);
    }

    fn publish_messages(&mut self, messages: &[Message]) {
        let parts = vec![(self.topic, messages.len() as u32)];
        self.world.publish_messages(0, 0, self.next, parts, messages);
        self.next += messages.len() as u64;
    }

    /// Ends cycles until nothing is left to be done now. Answers the offsets that were delivered.
    fn run(&mut self) -> Vec<u64> {
        let mut offsets = Vec::new();
        loop {
            self.world.answer_all();
            self.world.finish();
            offsets.extend(self.world.delivered.iter().map(|delivery| delivery.3));
            let due = self.world.broker.next_timeout().is_some_and(|at| at <= self.world.now);
            if self.world.reads.is_empty() && !due {
                return offsets;
            }
        }
    }

    /// The floor of a group, and what is settled above it.
    fn settled(&self, group: GroupId) -> (u64, Vec<(u64, u64)>) {
        let state = &self.world.fold.groups[&group];
        (state.floor.0, state.settled.iter().map(|range| (range.start.0, range.end.0)).collect())
    }

    fn change(&mut self, group: &str, settings: GroupSettings) -> Result<Reply, ErrorCode> {
        let (topic, name) = ("t".into(), group.into());
        let request = self.world.admin(0, AdminCommand::ChangeGroup { topic, name, settings });
        let answer = self.world.replies.iter().find(|reply| reply.1 == request).unwrap().2.clone();
        answer.map_err(|refusal| refusal.code)
    }
}

#[test]
fn only_what_matches_is_handed_out() {
    let mut scene = Scene::new(Limits::default());
    scene.world.subscribe(0, 0, "t", "g", ALL, Some(with_filter("n > 4")));
    scene.publish(0..10);
    assert_eq!(scene.run(), [5, 6, 7, 8, 9]);
    scene.world.settle(0, 0, Settlement::Ack, vec![OffsetRange::new(0, 10)]);
    scene.run();
    assert_eq!(scene.world.fold.topics[&scene.topic].start, Offset(10), "nothing is left");
}

/// What a group did not want stayed on the disk until somebody consumed.
#[test]
fn what_does_not_match_is_settled_though_nobody_consumes() {
    let mut scene = Scene::new(Limits { pinned_bytes_max: 1, ..Limits::default() });
    let group = scene.create_group("g", with_filter("n IN (1, 3, 5, 7)"));
    scene.publish([0, 2, 3, 4, 4, 5, 6]);
    scene.run();
    assert_eq!(scene.settled(group), (2, vec![(3, 5), (6, 7)]));
    let topic = &scene.world.fold.topics[&scene.topic];
    assert_eq!((topic.start, topic.message_count()), (Offset(2), 2), "and gone");
    // Whoever comes then gets the rest, after a restart too.
    scene.world.restart();
    scene.world.begin(0);
    scene.world.open(0, 0, "p");
    scene.world.subscribe(0, 0, "t", "g", ALL, None);
    assert_eq!(scene.run(), [2, 5]);
}

#[test]
fn what_is_judged_while_a_consumer_has_no_credit_is_passed_over_when_it_has() {
    let mut scene = Scene::new(Limits::default());
    scene.world.subscribe(
        0,
        0,
        "t",
        "g",
        Window { messages: 1, bytes: u64::MAX },
        Some(with_filter("n > 4")),
    );
    scene.publish([9, 1, 8, 2, 7]);
    assert_eq!(scene.run(), [0]);
    assert_eq!(scene.settled(scene.group("g")), (0, vec![(1, 2), (3, 4)]));
    scene.publish([3, 6]);
    assert!(scene.run().is_empty());
    scene.world.flow(0, 0, ALL);
    assert_eq!(scene.run(), [2, 4, 6]);
}

#[test]
fn judging_stops_where_a_group_has_many_settled_ranges() {
    let mut scene = Scene::new(Limits { settled_ranges_max: 16, ..Limits::default() });
    let group = scene.create_group("g", with_filter("n > 4"));
    scene.publish((0..100).map(|index| if index % 2 == 0 { 9 } else { 0 }));
    scene.run();
    assert_eq!(scene.settled(group).1.len(), 8);
    // Consuming goes on all the same.
    scene.world.subscribe(0, 0, "t", "g", ALL, None);
    let mut got = Vec::new();
    for _ in 0..100 {
        let offsets = scene.run();
        let ranges = offsets.iter().map(|offset| OffsetRange::new(*offset, offset + 1)).collect();
        got.extend(offsets);
        scene.world.settle(0, 0, Settlement::Ack, ranges);
    }
    assert_eq!(got, (0..100).step_by(2).collect::<Vec<u64>>());
}

/// A filter and messages that are made for it kept the broker busy for seconds in one cycle.
#[test]
fn a_filter_that_takes_long_is_asked_a_few_times_in_a_cycle() {
    let mut scene = Scene::new(Limits::default());
    // Never true, and looks through all headers for each of its values.
    let filter = vec!["missing = 'x'"; 120].join(" OR ");
    scene.world.filters.insert(filter.clone(), |_| false);
    let group = scene.create_group("g", with_filter(&filter));
    let headers: Vec<_> = (0..256).map(|n| (format!("header-{n:03}"), "value".into())).collect();
    let costly = Message { headers, ..Message::new("body") };
    scene.publish_messages(&vec![costly; 100]);
    scene.world.finish();
    scene.world.finish();
    let judged = scene.settled(group).0;
    assert!((1..20).contains(&judged), "{judged} of 100 were asked about");
    // The others are asked about when somebody consumes, a few in each cycle as well.
    scene.world.subscribe(0, 0, "t", "g", ALL, None);
    let mut cycles = 0;
    while scene.settled(group).0 < 100 {
        let before = scene.settled(group).0;
        scene.world.finish();
        assert!(scene.settled(group).0 - before < 20);
        assert!(scene.world.broker.next_timeout() == Some(scene.world.now) || scene.settled(group).0 == 100);
        cycles += 1;
    }
    assert!(cycles > 5, "{cycles}");
}

/// One message was handed out at a time, and all behind it were asked about each time.
#[test]
fn filters_are_not_asked_about_what_nobody_takes() {
    let mut scene = Scene::new(Limits::default());
    let filter = format!("{} OR n < 1000", vec!["missing = 'x'"; 20].join(" OR "));
    scene.world.filters.insert(filter.clone(), |_| true);
    let one = Window { messages: 1, bytes: u64::MAX };
    scene.world.subscribe(0, 0, "t", "g", one, Some(with_filter(&filter)));
    let mut costly = message(1);
    costly.headers.push(("long".into(), vec![b'x'; 30_000].into()));
    scene.publish_messages(&vec![costly; 20]);
    let mut got = scene.run();
    for _ in 0..20 {
        let all = vec![OffsetRange::new(0, 20)];
        scene.world.settle(0, 0, Settlement::Ack, all);
        scene.world.finish();
        got.extend(scene.world.delivered.iter().map(|delivery| delivery.3));
        assert_ne!(scene.world.broker.next_timeout(), Some(scene.world.now), "asked about more than one");
    }
    assert_eq!(got, (0..20).collect::<Vec<u64>>());
}

#[test]
fn a_filter_judges_each_priority() {
    let mut scene = Scene::new(Limits::default());
    let group = scene.create_group("g", with_filter("n > 4"));
    let urgent = |n| Message { priority: 5, ..message(n) };
    scene.publish_messages(&[message(1), urgent(2), urgent(9), message(8)]);
    scene.run();
    let parts: Vec<GroupId> = scene.world.parts(group);
    let settled: Vec<_> = parts.iter().map(|part| scene.settled(*part).0).collect();
    assert_eq!(settled, [1, 1]);
    scene.world.subscribe(0, 0, "t", "g", ALL, None);
    assert_eq!(scene.run(), [1, 1]);
}

#[test]
fn a_changed_filter_holds_for_what_is_not_settled() {
    let mut scene = Scene::new(Limits::default());
    let group = scene.create_group("g", with_filter("n > 4"));
    scene.publish([9, 1, 7]);
    scene.run();
    // What was settled stays settled; what waited is asked about again when its turn comes.
    assert_eq!(scene.change("g", with_filter("n IN (1, 3, 5, 7)")), Ok(Reply::Done));
    scene.world.subscribe(0, 0, "t", "g", ALL, None);
    assert_eq!(scene.run(), [2]);
    assert_eq!(scene.settled(group), (2, vec![]));
    assert_eq!(scene.change("g", GroupSettings::default()), Ok(Reply::Done));
    scene.publish([0]);
    assert_eq!(scene.run(), [3]);
}

#[test]
fn what_is_in_flight_or_waits_is_asked_about_when_it_comes_back() {
    let mut scene = Scene::new(Limits::default());
    scene.world.subscribe(0, 0, "t", "g", ALL, Some(with_filter("n > 4")));
    scene.publish([9, 5]);
    assert_eq!(scene.run(), [0, 1]);
    assert_eq!(scene.change("g", with_filter("n IN (1, 3, 5, 7)")), Ok(Reply::Done));
    scene.world.settle(0, 0, Settlement::Release, vec![OffsetRange::new(0, 2)]);
    assert_eq!(scene.run(), [1]);
    assert_eq!(scene.settled(scene.group("g")), (1, vec![]));
}

#[test]
fn a_filter_that_is_wrong_is_refused_with_its_place_and_nothing_is_made() {
    let mut scene = Scene::new(Limits::default());
    let wrong = with_filter("n > = 4");
    assert_eq!(scene.world.subscribe(0, 0, "new", "g", ALL, Some(wrong.clone())), None);
    let (_, _, refused) = scene.world.replies.last().unwrap();
    let refusal = refused.clone().unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Invalid);
    assert!(
        refusal.text.starts_with("the filter is wrong at column 5: expected a value"),
        "{}",
        refusal.text
    );
    scene.world.finish();
    assert_eq!(scene.world.fold.topics.len(), 1, "no topic was made");
    let group = scene.create_group("g", with_filter("n > 4"));
    assert_eq!(scene.change("g", wrong), Err(ErrorCode::Invalid));
    scene.world.finish();
    assert_eq!(scene.world.fold.groups[&group].settings, with_filter("n > 4"));
}

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<u64>),
    Consume(u32, usize, u32),
    Leave(u32),
    Settle(u32, Settlement, u64, u64),
    Change(usize, Option<usize>),
    Answer,
    Finish,
    Wait(u64),
    Restart,
}

const GROUPS: [&str; 3] = ["g", "h", "plain"];

fn step() -> impl Strategy<Value = Step> {
    let settlement = prop_oneof![
        4 => Just(Settlement::Ack),
        1 => Just(Settlement::Nack { delay_ms: Some(50), reason: None }),
        1 => Just(Settlement::Release),
    ];
    prop_oneof![
        6 => prop::collection::vec(0_u64..10, 1..20).prop_map(Step::Publish),
        2 => (0_u32..3, 0_usize..3, 1_u32..20).prop_map(|(h, g, w)| Step::Consume(h, g, w)),
        1 => (0_u32..3).prop_map(Step::Leave),
        6 => (0_u32..3, settlement, 0_u64..60, 1_u64..30).prop_map(|(h, s, from, n)| Step::Settle(h, s, from, n)),
        1 => (0_usize..2, prop::option::of(0..FILTERS.len())).prop_map(|(g, f)| Step::Change(g, f)),
        3 => Just(Step::Answer),
        6 => Just(Step::Finish),
        1 => (1_u64..200).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

fn settings(filter: Option<usize>) -> GroupSettings {
    let filter = filter.map(|index| FILTERS[index].0.to_owned());
    GroupSettings { filter, max_attempts: 0, lease_ms: 1_000_000, ..GroupSettings::default() }
}

fn take(scene: &mut Scene, step: Step) {
    match step {
        Step::Publish(numbers) => scene.publish(numbers),
        Step::Consume(handle, group, window) => {
            let window = Window { messages: window, bytes: u64::MAX };
            scene.world.subscribe(0, handle, "t", GROUPS[group], window, None);
        }
        Step::Leave(handle) => scene.world.unsubscribe(0, handle),
        Step::Settle(handle, settlement, from, count) => {
            scene.world.settle(0, handle, settlement, vec![OffsetRange::new(from, from + count)]);
        }
        Step::Change(group, filter) => {
            assert_eq!(scene.change(GROUPS[group], settings(filter)), Ok(Reply::Done));
        }
        Step::Answer => scene.world.answer_all(),
        Step::Finish => scene.world.finish(),
        Step::Wait(ms) => {
            scene.world.finish();
            scene.world.now.0 += ms;
        }
        Step::Restart => {
            scene.world.finish();
            scene.world.restart();
            scene.world.begin(0);
            scene.world.open(0, 0, "p");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A group gets what matches its filter, once, and everything else is settled for it and gone; whatever happens.
    #[test]
    fn every_group_gets_what_matches_and_nothing_else(
        cache_bytes_max in prop_oneof![Just(0_u64), Just(800), Just(1 << 20)],
        filters in (0..FILTERS.len(), 0..FILTERS.len()),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let limits = Limits { cache_bytes_max, settled_ranges_max: 16, pinned_bytes_max: 64, ..Limits::default() };
        let mut scene = Scene::new(limits);
        scene.create_group("g", settings(Some(filters.0)));
        scene.create_group("h", settings(Some(filters.1)));
        scene.create_group("plain", settings(None));
        for step in steps {
            take(&mut scene, step);
        }
        scene.world.finish();
        scene.world.end(0, Ending::Closed);
        scene.world.finish();
        scene.world.begin(1);
        let groups: BTreeMap<u32, &str> = (0..).zip(GROUPS).collect();
        for (handle, group) in &groups {
            scene.world.subscribe(1, *handle, "t", group, ALL, None);
        }
        let is_done = |scene: &Scene| {
            let end = scene.world.fold.topics[&scene.topic].end;
            scene.world.fold.groups.values().all(|group| group.floor == end)
        };
        for _ in 0..400 {
            scene.run();
            if is_done(&scene) {
                break;
            }
            for handle in groups.keys() {
                scene.world.settle(1, *handle, Settlement::Ack, vec![OffsetRange::new(0, 10_000)]);
            }
            scene.world.now.0 += 10;
        }
        let topic = &scene.world.fold.topics[&scene.topic];
        for group in scene.world.fold.groups.values() {
            prop_assert_eq!(group.floor, topic.end, "all is settled");
        }
        prop_assert_eq!(topic.start, topic.end, "and gone");
    }
}
