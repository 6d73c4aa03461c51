//! Routes: rules, and the broker under random commands against a naive fan-out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::collections::{BTreeMap, BTreeSet};

use batonmq::broker::{AutoCreate, Command};
use batonmq::model::chunk::Origin;
use batonmq::model::id::OffsetRange;
use batonmq::model::id::{Sequence, SessionId, TopicId};
use batonmq::model::limits::{Limits, ROUTE_STEPS_MAX, ROUTE_TARGETS_MAX};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::record::{Published, Record, Source};
use batonmq::model::route::RouteMode;
use batonmq::model::settings::{GroupSettings, Overflow, Retention, TopicSettings};
use batonmq::model::time::Timestamp;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::{AdminCommand, Publish, Settlement, Window};
use batonmq::protocol::response::{Reply, RouteInfo};
use broker_world::{Stored, World};
use proptest::prelude::*;

fn route(name: &str, from: &str, to: &[&str], filter: Option<&str>, mode: RouteMode) -> RouteInfo {
    let to = to.iter().map(|&topic| topic.to_owned()).collect();
    RouteInfo { name: name.into(), from: from.into(), to, filter: filter.map(str::to_owned), mode }
}

fn copy(name: &str, from: &str, to: &[&str]) -> RouteInfo {
    route(name, from, to, None, RouteMode::Copy)
}

fn message(n: u64) -> Message {
    Message { headers: vec![("n".into(), n.to_string().into())], ..Message::new(n.to_string()) }
}

/// A world with a producer and a topic `t`.
struct Scene {
    world: World,
    next: u64,
}

impl Scene {
    fn new(limits: Limits) -> Self {
        let mut world = World::new(limits, AutoCreate::Allowed);
        world.begin(0);
        world.open(0, 0, "p");
        world.find_topic(0, "t").unwrap();
        world.finish();
        Self { world, next: 1 }
    }

    fn admin(&mut self, command: AdminCommand) -> Result<Reply, Refusal> {
        let request = self.world.admin(0, command);
        self.world.replies.iter().find(|reply| reply.1 == request).unwrap().2.clone()
    }

    fn create(&mut self, route: RouteInfo) -> Result<Reply, Refusal> {
        self.admin(AdminCommand::CreateRoute { route })
    }

    fn refused(&mut self, route: RouteInfo) -> (ErrorCode, String) {
        let refusal = self.create(route).unwrap_err();
        (refusal.code, refusal.text)
    }

    fn routes(&mut self) -> Vec<RouteInfo> {
        match self.admin(AdminCommand::ListRoutes { after: None }) {
            Ok(Reply::Routes { routes, more: false }) => routes,
            other => panic!("routes: {other:?}"),
        }
    }

    fn topic(&mut self, name: &str) -> TopicId {
        self.world.find_topic(0, name).unwrap()
    }

    fn publish_messages(&mut self, topic: &str, messages: &[Message]) {
        let topic = self.topic(topic);
        self.world.publish_messages(0, 0, self.next, vec![(topic, messages.len() as u32)], messages);
        self.next += messages.len() as u64;
    }

    fn publish(&mut self, topic: &str, numbers: impl IntoIterator<Item = u64>) {
        let messages: Vec<Message> = numbers.into_iter().map(message).collect();
        self.publish_messages(topic, &messages);
    }

    /// The publishes that this cycle has put out so far.
    fn published(&self) -> Vec<&Published> {
        let records = self.world.out.records.iter();
        records
            .filter_map(|record| match record {
                Record::Published(published) => Some(published),
                _ => None,
            })
            .collect()
    }

    fn stored(&self, name: &str) -> Vec<&Stored> {
        let mut topics = self.world.fold.topics.iter();
        let topic = topics.find(|(_, topic)| topic.name.as_str() == name && topic.kind.part_of().is_none());
        let stored = topic.and_then(|(id, _)| self.world.store.get(id));
        stored.into_iter().flat_map(BTreeMap::values).collect()
    }

    /// The bodies in a topic.
    fn bodies(&self, name: &str) -> Vec<u64> {
        let stored = self.stored(name).into_iter();
        stored.map(|stored| std::str::from_utf8(&stored.message.body).unwrap().parse().unwrap()).collect()
    }
}

#[test]
fn a_route_copies_what_matches_in_the_commit_of_the_publish() {
    let mut scene = Scene::new(Limits::default());
    scene.create(route("r", "t", &["a", "b"], Some("n >= 2"), RouteMode::Copy)).unwrap();
    scene.publish("t", [1, 2, 0, 3]);
    scene.world.finish();
    assert_eq!(scene.bodies("t"), [1, 2, 0, 3]);
    assert_eq!((scene.bodies("a"), scene.bodies("b")), (vec![2, 3], vec![2, 3]));
    let origins = |name| -> Vec<u64> {
        scene.stored(name).iter().map(|stored| stored.origin.unwrap().sequence.0).collect()
    };
    assert_eq!((origins("t"), origins("a")), (vec![1, 2, 3, 4], vec![2, 4]), "who published it is known");
}

#[test]
fn a_route_without_a_filter_shares_the_messages_in_one_record() {
    let mut scene = Scene::new(Limits::default());
    scene.create(copy("r", "t", &["a", "b"])).unwrap();
    scene.world.finish();
    scene.publish("t", [1, 2]);
    let published = scene.published();
    assert_eq!(published.len(), 1);
    assert_eq!(published[0].targets.len(), 3);
    assert!(matches!(published[0].source, Source::Producer(Origin { sequence: Sequence(1), .. })));
    scene.world.finish();
    assert_eq!(scene.bodies("b"), [1, 2]);
}

#[test]
fn a_route_that_moves_leaves_what_does_not_match() {
    let mut scene = Scene::new(Limits::default());
    scene.create(route("r", "t", &["a"], Some("n > 1"), RouteMode::Move)).unwrap();
    scene.publish("t", [1, 2, 3]);
    scene.publish("t", [5]);
    scene.publish("t", [0]);
    scene.world.finish();
    assert_eq!((scene.bodies("t"), scene.bodies("a")), (vec![1, 0], vec![2, 3, 5]));
    let last = scene.world.fold.producers.values().next().unwrap().last;
    assert_eq!(last, Sequence(5), "the sequence goes on");
}

/// A resend of what was moved elsewhere found nothing of it in its topic.
#[test]
fn what_was_routed_is_not_stored_twice_when_it_is_sent_again() {
    let mut scene = Scene::new(Limits::default());
    scene.create(route("r", "t", &["a"], Some("n > 1"), RouteMode::Move)).unwrap();
    scene.publish("t", [1, 2, 3]);
    scene.world.finish();
    scene.world.restart();
    scene.world.begin(0);
    scene.world.open(0, 0, "p");
    let topic = scene.topic("t");
    let messages: Vec<Message> = [1, 2, 3, 4, 0].map(message).to_vec();
    scene.world.publish_messages(0, 0, 1, vec![(topic, 5)], &messages);
    scene.world.finish();
    assert_eq!((scene.bodies("t"), scene.bodies("a")), (vec![1, 0], vec![2, 3, 4]));
}

#[test]
fn chains_pass_messages_on_within_one_publish() {
    let mut scene = Scene::new(Limits::default());
    scene.create(route("first", "t", &["a"], Some("n > 1"), RouteMode::Copy)).unwrap();
    scene.create(route("second", "a", &["b", "c"], Some("n > 2"), RouteMode::Move)).unwrap();
    scene.publish("t", 0..5);
    scene.world.finish();
    let bodies = ["t", "a", "b", "c"].map(|topic| scene.bodies(topic));
    assert_eq!(bodies, [vec![0, 1, 2, 3, 4], vec![2], vec![3, 4], vec![3, 4]]);
}

#[test]
fn each_topic_schedules_for_itself() {
    let mut scene = Scene::new(Limits::default());
    scene.create(copy("r", "t", &["a"])).unwrap();
    let later = Timestamp(scene.world.now.0 + 5_000);
    let delayed = Message { deliver_at: Some(later), ..message(1) };
    let urgent = Message { priority: 9, ..message(2) };
    scene.publish_messages("t", &[delayed, urgent, message(3)]);
    scene.world.finish();
    assert_eq!((scene.bodies("t"), scene.bodies("a")), (vec![3], vec![3]));
    // A route that is made meanwhile does not get what was published before it.
    scene.create(copy("late", "t", &["b"])).unwrap();
    scene.world.finish();
    scene.world.now = later;
    for _ in 0..5 {
        scene.world.answer_all();
        scene.world.finish();
    }
    assert_eq!((scene.bodies("t"), scene.bodies("a"), scene.bodies("b")), (vec![3, 1], vec![3, 1], vec![]));
    let lanes = scene.world.fold.topics.values().filter(|topic| topic.kind.priority() == 9);
    assert_eq!(lanes.map(|lane| lane.message_count()).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn dead_letters_are_not_passed_on() {
    let mut scene = Scene::new(Limits::default());
    scene.create(copy("r", "t", &["t.dead-letter"])).unwrap();
    scene.create(copy("s", "t.dead-letter", &["more"])).unwrap();
    let window = Window { messages: 10, bytes: u64::MAX };
    let settings = GroupSettings { max_attempts: 1, ..GroupSettings::default() };
    scene.world.subscribe(0, 0, "t", "g", window, Some(settings));
    scene.publish("t", [7]);
    scene.world.finish();
    assert_eq!(scene.bodies("more"), [7], "what is published by a producer is, along the chain");
    scene.world.settle(0, 0, Settlement::Reject { reason: None }, vec![OffsetRange::new(0, 1)]);
    for _ in 0..3 {
        scene.world.finish();
    }
    assert_eq!((scene.bodies("t.dead-letter"), scene.bodies("more")), (vec![7, 7], vec![7]));
}

#[test]
fn groups_of_targets_get_messages_at_once() {
    let mut scene = Scene::new(Limits::default());
    scene.create(route("r", "t", &["a"], Some("n = 1"), RouteMode::Move)).unwrap();
    let window = Window { messages: 10, bytes: u64::MAX };
    scene.world.subscribe(0, 0, "a", "g", window, None);
    scene.publish("t", [1, 2]);
    scene.world.finish();
    assert_eq!(scene.world.delivered.len(), 1);
}

#[test]
fn a_route_is_made_once_and_stays_after_a_restart() {
    let mut scene = Scene::new(Limits::default());
    let info = route("r", "t", &["a"], Some("n = 1"), RouteMode::Move);
    assert_eq!(scene.create(info.clone()), Ok(Reply::Done));
    assert_eq!(scene.create(info.clone()), Ok(Reply::Done), "as it is");
    let (code, text) = scene.refused(copy("r", "t", &["a"]));
    assert_eq!(code, ErrorCode::AlreadyExists);
    assert!(text.contains("delete it first"), "{text}");
    scene.world.finish();
    scene.world.restart();
    scene.world.begin(0);
    scene.world.open(0, 0, "p");
    assert_eq!(scene.routes(), [info]);
    scene.publish("t", [1, 2]);
    scene.world.finish();
    assert_eq!((scene.bodies("t"), scene.bodies("a")), (vec![2], vec![1]));
    assert_eq!(scene.admin(AdminCommand::DeleteRoute { name: "r".into() }), Ok(Reply::Done));
    let again = scene.admin(AdminCommand::DeleteRoute { name: "r".into() });
    assert_eq!(again.unwrap_err().code, ErrorCode::UnknownRoute);
    scene.publish("t", [1]);
    scene.world.finish();
    assert_eq!(scene.bodies("t"), [2, 1]);
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_made() {
    let mut scene = Scene::new(Limits { topics_max: 3, ..Limits::default() });
    let many: Vec<String> = (0..=ROUTE_TARGETS_MAX).map(|n| format!("a{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let copies = RouteMode::Copy;
    for (wrong, code, text) in [
        (copy("r", "t", &[]), ErrorCode::Invalid, "leads nowhere"),
        (copy("r", "t", &["a", "t"]), ErrorCode::Invalid, "to itself"),
        (copy("r", "t", &["a", "a"]), ErrorCode::Invalid, "twice"),
        (copy("r", "t", &["a", "b b"]), ErrorCode::Invalid, "name"),
        (copy("r r", "t", &["a"]), ErrorCode::Invalid, "name"),
        (copy("r", "t", &["a.*"]), ErrorCode::Invalid, "is not allowed"),
        (copy("r", "missing", &["a"]), ErrorCode::UnknownTopic, "create it first"),
        (copy("r", "t", &many), ErrorCode::Limit, "the limit is 64"),
        (copy("r", "t", &["a", "b", "c"]), ErrorCode::Limit, "topics_max"),
        (route("r", "t", &["a"], Some("n >"), copies), ErrorCode::Invalid, "column 4"),
    ] {
        let (got, said) = scene.refused(wrong);
        assert_eq!(got, code, "{said}");
        assert!(said.contains(text), "{said}");
    }
    scene.world.finish();
    assert_eq!((scene.world.fold.topics.len(), scene.world.fold.routes.len()), (1, 0));
}

/// The topics before the one too many were made, and the route was not.
#[test]
fn a_route_to_more_topics_than_a_pattern_may_have_makes_none_of_them() {
    let mut scene = Scene::new(Limits { pattern_topics_max: 2, ..Limits::default() });
    let window = Window { messages: 10, bytes: u64::MAX };
    scene.world.subscribe(0, 0, "a.*", "g", window, None).unwrap();
    scene.topic("a.x");
    let (code, text) = scene.refused(copy("r", "t", &["a.y", "b.y", "a.z"]));
    assert_eq!(code, ErrorCode::Limit);
    assert!(text.contains("topic a.z would be one too many of pattern a.*"), "{text}");
    scene.world.finish();
    assert_eq!((scene.world.fold.topics.len(), scene.world.fold.routes.len()), (3, 0));
    scene.create(copy("r", "t", &["a.y", "b.y"])).unwrap();
}

#[test]
fn circles_are_refused_by_the_way_they_would_go() {
    let mut scene = Scene::new(Limits::default());
    scene.create(copy("a", "t", &["x"])).unwrap();
    scene.create(copy("b", "x", &["y"])).unwrap();
    let (code, text) = scene.refused(copy("c", "y", &["new", "t"]));
    assert_eq!(
        (code, text.as_str()),
        (ErrorCode::Invalid, "messages would go round in a circle: y -> t -> x -> y")
    );
    let mut last = "y".to_owned();
    for step in 0..ROUTE_STEPS_MAX - 2 {
        let next = format!("s{step}");
        scene.create(copy(&next, &last, &[&next])).unwrap();
        last = next;
    }
    let (code, text) = scene.refused(copy("too-long", &last, &["end"]));
    assert_eq!(code, ErrorCode::Limit);
    assert!(text.contains("9 routes one behind the other, the limit is 8"), "{text}");
    scene.world.finish();
}

#[test]
fn there_are_so_many_routes() {
    let mut scene = Scene::new(Limits { routes_max: 1, ..Limits::default() });
    scene.create(copy("a", "t", &["x"])).unwrap();
    let (code, text) = scene.refused(copy("b", "t", &["y"]));
    assert_eq!(code, ErrorCode::Limit);
    assert!(text.contains("routes_max"), "{text}");
}

#[test]
fn a_deleted_topic_takes_its_routes_along_and_others_lead_to_what_is_left() {
    let mut scene = Scene::new(Limits::default());
    scene.create(copy("both", "t", &["a", "b"])).unwrap();
    scene.create(copy("only", "t", &["a"])).unwrap();
    scene.create(copy("behind", "a", &["c"])).unwrap();
    scene.world.finish();
    scene.admin(AdminCommand::DeleteTopic { name: "a".into() }).unwrap();
    scene.world.finish();
    assert_eq!(scene.routes(), [copy("both", "t", &["b"])]);
    scene.publish("t", [1]);
    scene.world.finish();
    assert_eq!(scene.bodies("b"), [1]);
    scene.admin(AdminCommand::DeleteTopic { name: "t".into() }).unwrap();
    scene.world.finish();
    assert_eq!(scene.routes(), []);
}

/// A full target would have got the messages all the same, without end.
#[test]
fn a_publish_is_refused_or_waits_as_a_whole_where_a_target_is_full() {
    for (overflow, code) in
        [(Overflow::Reject, ErrorCode::TopicFull), (Overflow::Block, ErrorCode::TopicBlocked)]
    {
        let mut scene = Scene::new(Limits::default());
        scene.create(copy("r", "t", &["b", "a"])).unwrap();
        let settings = TopicSettings { max_messages: Some(2), overflow, ..TopicSettings::default() };
        scene.admin(AdminCommand::ChangeTopic { name: "a".into(), settings }).unwrap();
        scene.world.finish();
        let topic = scene.topic("t");
        let publish =
            |sequence| Publish { producer: 0, sequence: Sequence(sequence), parts: vec![(topic, 2)] };
        let block = MessageBlock::encode(&[message(1), message(2)]);
        scene.world.handle(SessionId(0), Command::Publish(publish(1), block.clone()));
        assert_eq!(scene.published().len(), 1);
        scene.world.handle(SessionId(0), Command::Publish(publish(3), block));
        assert_eq!(scene.published().len(), 1);
        scene.world.finish();
        assert_eq!(scene.world.refused.last().unwrap().2, code);
        assert_eq!(["t", "a", "b"].map(|name| scene.bodies(name).len()), [2; 3]);
    }
}

/// Of a publish to a topic with a route to a table, messages that the route does not take were refused beside one that it
/// takes, and taken without it.
#[test]
fn what_a_route_does_not_take_needs_no_key_for_the_table_that_it_leads_to() {
    let mut scene = Scene::new(Limits::default());
    let retention = Retention { acked: false, ..Retention::default() };
    let settings = TopicSettings { last_value: true, retention, ..TopicSettings::default() };
    scene.admin(AdminCommand::CreateTopic { name: "table".into(), settings }).unwrap();
    scene.create(route("r", "t", &["table"], Some("n < 5"), RouteMode::Copy)).unwrap();
    let with_key = |n| Message { key: Some("k".into()), ..message(n) };
    scene.publish_messages("t", &[message(7), with_key(1), message(8)]);
    scene.world.finish();
    assert_eq!((scene.bodies("t"), scene.bodies("table")), (vec![7, 1, 8], vec![1]));
    let topic = scene.topic("t");
    let publish = Publish { producer: 0, sequence: Sequence(4), parts: vec![(topic, 3)] };
    let block = MessageBlock::encode(&[with_key(2), message(9), message(3)]);
    scene.world.handle(SessionId(0), Command::Publish(publish, block));
    scene.world.finish();
    assert_eq!(scene.world.refused.last().unwrap().2, ErrorCode::Invalid);
    assert_eq!((scene.bodies("t").len(), scene.bodies("table").len()), (3, 1));
}

#[test]
fn a_publish_whose_copies_have_no_space_is_refused_as_a_whole() {
    let mut scene = Scene::new(Limits::default());
    scene.create(copy("r", "t", &["a", "b", "c", "d"])).unwrap();
    scene.world.finish();
    let topic = scene.topic("t");
    let block = MessageBlock::encode(&[Message::new(vec![7; 1_000])]);
    let publish = |sequence| Publish { producer: 0, sequence: Sequence(sequence), parts: vec![(topic, 1)] };
    scene.world.broker.begin_cycle(4_000);
    scene.world.handle(SessionId(0), Command::Publish(publish(1), block.clone()));
    assert!(scene.published().is_empty());
    scene.world.broker.begin_cycle(10_000);
    scene.world.handle(SessionId(0), Command::Publish(publish(1), block));
    assert_eq!(scene.published().len(), 1);
    scene.world.broker.begin_cycle(u64::MAX);
    scene.world.finish();
    assert_eq!(scene.world.refused.last().unwrap().2, ErrorCode::StoreFull);
    assert_eq!(scene.world.broker.counts().messages, 5);
}

type Closure = fn(u64) -> bool;

/// What a route of the model takes.
const FILTERS: [(&str, Closure); 3] =
    [("n < 5", |n| n < 5), ("n IN (0, 2, 4, 6, 8)", |n| n % 2 == 0), ("n > 9", |_| false)];
const TOPICS: [&str; 5] = ["t", "u", "v", "w", "x"];

#[derive(Clone, Debug)]
enum Step {
    Create(usize, usize, Vec<usize>, Option<usize>, bool),
    DeleteRoute(usize),
    DeleteTopic(usize),
    Publish(Vec<(usize, Vec<u64>)>),
    Finish,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let topic = || 0..TOPICS.len();
    let to = prop::collection::vec(topic(), 1..3);
    let filter = prop::option::weighted(0.7, 0..FILTERS.len());
    let parts = prop::collection::vec((topic(), prop::collection::vec(0_u64..10, 1..8)), 1..3);
    prop_oneof![
        4 => (0_usize..6, topic(), to, filter, any::<bool>())
            .prop_map(|(name, from, to, filter, moves)| Step::Create(name, from, to, filter, moves)),
        1 => (0_usize..6).prop_map(Step::DeleteRoute),
        1 => topic().prop_map(Step::DeleteTopic),
        8 => parts.prop_map(Step::Publish),
        3 => Just(Step::Finish),
        1 => Just(Step::Restart),
    ]
}

/// The routes as the model has them, and what is in the topics by them.
#[derive(Default)]
struct Naive {
    routes: BTreeMap<String, RouteInfo>,
    topics: BTreeMap<String, Vec<u64>>,
}

impl Naive {
    fn takes(route: &RouteInfo, n: u64) -> bool {
        let filter =
            route.filter.as_deref().map(|text| FILTERS.iter().find(|(known, _)| *known == text).unwrap());
        filter.is_none_or(|(_, closure)| closure(n))
    }

    /// Where a message that is published to a topic stays.
    fn stays(&self, topic: &str, n: u64) -> BTreeSet<String> {
        let (mut arrived, mut next) = (BTreeSet::new(), vec![topic.to_owned()]);
        while let Some(at) = next.pop() {
            for route in self.routes.values().filter(|route| route.from == at && Self::takes(route, n)) {
                next.extend(route.to.iter().filter(|to| !arrived.contains(*to)).cloned());
            }
            arrived.insert(at);
        }
        let moved = |at: &String| {
            let mut routes = self.routes.values();
            routes.any(|route| route.from == *at && route.mode == RouteMode::Move && Self::takes(route, n))
        };
        arrived.into_iter().filter(|at| !moved(at)).collect()
    }

    fn publish(&mut self, topic: &str, n: u64) {
        for at in self.stays(topic, n) {
            self.topics.entry(at).or_default().push(n);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every topic has what the model says, in the order in which it was published, and no record does not fit.
    #[test]
    fn messages_go_where_a_naive_fan_out_takes_them(steps in prop::collection::vec(step(), 1..60)) {
        let mut scene = Scene::new(Limits::default());
        let mut naive = Naive::default();
        for step in steps {
            match step {
                Step::Create(name, from, to, filter, moves) => {
                    let to: Vec<&str> = to.into_iter().map(|topic| TOPICS[topic]).collect();
                    let mode = if moves { RouteMode::Move } else { RouteMode::Copy };
                    let filter = filter.map(|filter| FILTERS[filter].0);
                    let info = route(&format!("r{name}"), TOPICS[from], &to, filter, mode);
                    let known = naive.routes.contains_key(&info.name);
                    if scene.create(info.clone()).is_ok() && !known {
                        naive.routes.insert(info.name.clone(), info);
                    }
                }
                Step::DeleteRoute(name) => {
                    let name = format!("r{name}");
                    let deleted = scene.admin(AdminCommand::DeleteRoute { name: name.clone() });
                    prop_assert_eq!(deleted.is_ok(), naive.routes.remove(&name).is_some());
                }
                Step::DeleteTopic(topic) => {
                    let topic = TOPICS[topic].to_owned();
                    let _ = scene.admin(AdminCommand::DeleteTopic { name: topic.clone() });
                    naive.topics.remove(&topic);
                    naive.routes.values_mut().for_each(|route| route.to.retain(|to| *to != topic));
                    naive.routes.retain(|_, route| route.from != topic && !route.to.is_empty());
                }
                Step::Publish(parts) => {
                    let ids: Vec<TopicId> =
                        parts.iter().map(|(topic, _)| scene.topic(TOPICS[*topic])).collect();
                    let messages: Vec<Message> =
                        parts.iter().flat_map(|(_, numbers)| numbers.iter().copied().map(message)).collect();
                    let counts = parts.iter().map(|(_, numbers)| numbers.len() as u32);
                    let heads = ids.into_iter().zip(counts).collect();
                    scene.world.publish_messages(0, 0, scene.next, heads, &messages);
                    scene.next += messages.len() as u64;
                    for (topic, numbers) in parts {
                        numbers.into_iter().for_each(|n| naive.publish(TOPICS[topic], n));
                    }
                }
                Step::Finish => scene.world.finish(),
                Step::Restart => {
                    scene.world.finish();
                    scene.world.restart();
                    scene.world.begin(0);
                    scene.world.open(0, 0, "p");
                }
            }
            prop_assert_eq!(scene.routes(), naive.routes.values().cloned().collect::<Vec<_>>());
        }
        scene.world.finish();
        for topic in TOPICS {
            let expected = naive.topics.remove(topic).unwrap_or_default();
            prop_assert_eq!(scene.bodies(topic), expected, "{}", topic);
        }
    }
}
