//! Topics that keep the newest message of each key: rules, and the broker under random commands against a naive model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::collections::{BTreeMap, BTreeSet};

use batonmq::broker::{AutoCreate, Command, Ending};
use batonmq::model::id::{GroupId, OffsetRange, Sequence, SessionId, TopicId};
use batonmq::model::limits::{LAST_VALUE_FRESH_MIN, LAST_VALUE_FRESH_MS, LAST_VALUE_TOMBSTONE_MS, Limits};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::settings::{GroupSettings, Overflow, Policy, Retention, TopicSettings};
use batonmq::model::time::Timestamp;
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::{AdminCommand, Publish, Settlement, Window};
use broker_world::World;
use proptest::prelude::*;

const ALL: Window = Window { messages: 1_000, bytes: u64::MAX };
const NONE: Window = Window { messages: 0, bytes: 0 };

fn settings() -> TopicSettings {
    let retention = Retention { acked: false, ..Retention::default() };
    TopicSettings { retention, last_value: true, ..TopicSettings::default() }
}

fn value(key: &str, body: impl Into<String>) -> Message {
    Message { key: Some(key.to_owned().into()), ..Message::new(body.into()) }
}

/// A world with a producer and the topic `t`, which keeps last values.
struct Scene {
    world: World,
    topic: TopicId,
    next: u64,
}

impl Scene {
    fn new(limits: Limits) -> Self {
        Self::with(limits, settings())
    }

    fn with(limits: Limits, settings: TopicSettings) -> Self {
        let mut world = World::new(limits, AutoCreate::Allowed);
        world.begin(0);
        world.open(0, 0, "p");
        world.admin(0, AdminCommand::CreateTopic { name: "t".into(), settings });
        let topic = world.find_topic(0, "t").unwrap();
        world.finish();
        Self { world, topic, next: 1 }
    }

    fn publish(&mut self, messages: &[Message]) {
        let parts = vec![(self.topic, messages.len() as u32)];
        self.world.publish_messages(0, 0, self.next, parts, messages);
        self.next += messages.len() as u64;
    }

    /// Ends the cycle, and others until nothing is left to be done now. Answers what was delivered.
    fn run(&mut self) -> Vec<String> {
        let mut bodies = Vec::new();
        for _ in 0..100_000 {
            self.world.answer_all();
            self.world.finish();
            for &(_, _, _, offset, _) in &self.world.delivered {
                let body = self.world.store[&self.topic][&offset].message.body.to_vec();
                bodies.push(String::from_utf8(body).unwrap());
            }
            let due = self.world.broker.next_timeout().is_some_and(|at| at <= self.world.now);
            if self.world.reads.is_empty() && !due {
                return bodies;
            }
        }
        panic!("it never ends");
    }

    fn advance(&mut self, ms: u64) -> Vec<String> {
        let mut bodies = self.run();
        self.world.now = Timestamp(self.world.now.0 + ms);
        bodies.extend(self.run());
        bodies
    }

    /// Lets as much time pass as a clean topic takes at most, some times.
    fn settle_down(&mut self) {
        for _ in 0..8 {
            self.advance(2 * LAST_VALUE_FRESH_MS);
        }
    }

    fn restart(&mut self) {
        self.world.restart();
        self.world.begin(0);
        self.world.open(0, 0, "p");
    }

    fn ack_all(&mut self) {
        let (all, topic) = (vec![OffsetRange::new(0, u64::MAX)], self.topic);
        self.world.settle_in(0, 0, topic, Settlement::Ack, all);
    }

    /// What is there, in its order.
    fn there(&self) -> Vec<String> {
        let messages = self.world.store.get(&self.topic).into_iter().flat_map(|messages| messages.values());
        messages.map(|stored| String::from_utf8(stored.message.body.to_vec()).unwrap()).collect()
    }

    fn range_count(&self) -> usize {
        self.world.fold.topics[&self.topic].removed.range_count()
    }

    fn refused(&mut self, messages: &[Message]) -> ErrorCode {
        let (producer, count) = (0, messages.len() as u32);
        let publish = Publish { producer, sequence: Sequence(self.next), parts: vec![(self.topic, count)] };
        self.world.handle(SessionId(0), Command::Publish(publish, MessageBlock::encode(messages)));
        self.world.finish();
        self.world.refused.pop().unwrap().2
    }
}

#[test]
fn only_the_newest_of_each_key_stays() {
    let mut scene = Scene::new(Limits::default());
    scene.publish(&[value("a", "1"), value("b", "2"), value("a", "3"), value("c", "4"), value("b", "5")]);
    scene.run();
    assert_eq!(scene.there(), ["1", "2", "3", "4", "5"], "not at once");
    scene.advance(LAST_VALUE_FRESH_MS);
    assert_eq!(scene.there(), ["3", "4", "5"]);
    scene.publish(&[value("c", "6")]);
    scene.advance(LAST_VALUE_FRESH_MS);
    assert_eq!(scene.there(), ["3", "5", "6"]);
    assert_eq!(scene.world.broker.next_timeout(), None, "nothing is left to be done");
}

#[test]
fn many_messages_are_reason_enough_to_clean_at_once() {
    let mut scene = Scene::new(Limits::default());
    for n in 0..LAST_VALUE_FRESH_MIN - 1 {
        scene.publish(&[value("a", n.to_string())]);
    }
    scene.run();
    assert_eq!(scene.there().len() as u64, LAST_VALUE_FRESH_MIN - 1);
    scene.publish(&[value("a", "last")]);
    scene.run();
    assert_eq!(scene.there(), ["last"]);
}

#[test]
fn a_message_without_a_key_or_bound_to_a_time_is_refused_with_all_of_its_publish() {
    let mut scene = Scene::new(Limits::default());
    let good = value("a", "1");
    let now = scene.world.now;
    let later = Some(Timestamp(now.0 + 1_000));
    for bad in [
        Message::new("no key"),
        Message { priority: 1, ..good.clone() },
        Message { deliver_at: later, ..good.clone() },
        Message { expires_at: later, ..good.clone() },
    ] {
        assert_eq!(scene.refused(&[good.clone(), bad]), ErrorCode::Invalid);
    }
    assert_eq!(scene.there(), [""; 0]);
    scene.publish(&[value("", "an empty key is a key")]);
    scene.run();
    assert_eq!(scene.there().len(), 1);
}

/// Producers of a topic that was full of what there is a newer one of waited for a minute, and its clients gave up before.
#[test]
fn a_full_topic_is_cleaned_at_once_where_that_makes_room() {
    for overflow in [Overflow::Block, Overflow::Reject] {
        let settings = TopicSettings { max_messages: Some(3), overflow, ..settings() };
        let mut scene = Scene::with(Limits::default(), settings);
        scene.publish(&[value("a", "1"), value("b", "2"), value("a", "3")]);
        scene.run();
        assert_eq!(scene.there().len(), 3, "nobody needs room");
        let refused =
            [ErrorCode::TopicBlocked, ErrorCode::TopicFull][usize::from(overflow == Overflow::Reject)];
        assert_eq!(scene.refused(&[value("c", "4")]), refused);
        scene.run();
        assert_eq!(scene.there(), ["2", "3"]);
        assert_eq!(scene.world.ready.len(), usize::from(overflow == Overflow::Block));
        scene.publish(&[value("c", "4")]);
        // It holds nothing that could go.
        assert_eq!(scene.refused(&[value("d", "5")]), refused);
        scene.run();
        assert_eq!(scene.there(), ["2", "3", "4"]);
    }
}

#[test]
fn a_topic_whose_settled_messages_go_cannot_keep_last_values() {
    let mut world = World::new(Limits::default(), AutoCreate::Allowed);
    world.begin(0);
    let settings = TopicSettings { last_value: true, ..TopicSettings::default() };
    world.admin(0, AdminCommand::CreateTopic { name: "t".into(), settings });
    let (_, _, reply) = world.replies.pop().unwrap();
    let refusal = reply.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Invalid);
    assert!(refusal.text.contains("retention.acked = false"), "{}", refusal.text);
}

/// A tombstone had the next round put off until a day later, whatever was published meanwhile.
#[test]
fn a_tombstone_puts_nothing_off() {
    let mut scene = Scene::new(Limits::default());
    scene.publish(&[value("a", "")]);
    scene.advance(LAST_VALUE_FRESH_MS);
    scene.publish(&[value("a", "1")]);
    scene.advance(2 * LAST_VALUE_FRESH_MS);
    assert_eq!(scene.there(), ["1"]);
}

#[test]
fn what_was_consumed_stays_and_a_group_that_comes_late_gets_it() {
    let mut scene = Scene::new(Limits::default());
    scene.world.subscribe(0, 0, "t", "g", ALL, None).unwrap();
    scene.publish(&[value("a", "1"), value("a", "2"), value("b", "3")]);
    assert_eq!(scene.run(), ["1", "2", "3"]);
    scene.ack_all();
    scene.advance(LAST_VALUE_FRESH_MS);
    assert_eq!(scene.there(), ["2", "3"]);
    scene.world.subscribe(0, 1, "t", "late", ALL, None).unwrap();
    assert_eq!(scene.run(), ["2", "3"]);
}

#[test]
fn what_somebody_has_in_flight_stays_until_it_is_settled() {
    let mut scene = Scene::new(Limits::default());
    scene.world.subscribe(0, 0, "t", "g", Window { messages: 1, ..ALL }, None).unwrap();
    scene.publish(&[value("a", "1"), value("a", "2"), value("a", "3")]);
    assert_eq!(scene.run(), ["1"]);
    for _ in 0..4 {
        scene.world.settle(0, 0, Settlement::Extend, vec![OffsetRange::new(0, 1)]);
        scene.advance(20_000);
    }
    assert_eq!(scene.there(), ["1", "3"]);
    scene.ack_all();
    assert_eq!(scene.run(), ["3"]);
    scene.ack_all();
    scene.advance(2 * LAST_VALUE_FRESH_MS);
    assert_eq!(scene.there(), ["3"]);
}

#[test]
fn what_had_to_stay_is_found_again_however_far_behind_it_the_newer_one_is() {
    let mut scene = Scene::new(Limits { last_value_keys_max: 16, ..Limits::default() });
    scene.world.subscribe(0, 0, "t", "g", Window { messages: 1, ..ALL }, None).unwrap();
    let others = (0..40).map(|n| value(&n.to_string(), n.to_string()));
    let messages: Vec<Message> =
        [value("a", "old")].into_iter().chain(others).chain([value("a", "new")]).collect();
    scene.publish(&messages);
    assert_eq!(scene.run(), ["old"]);
    for _ in 0..4 {
        scene.world.settle(0, 0, Settlement::Extend, vec![OffsetRange::new(0, 1)]);
        scene.advance(20_000);
    }
    assert_eq!(scene.there().len(), 42);
    scene.ack_all();
    scene.world.unsubscribe(0, 0);
    scene.settle_down();
    assert_eq!(scene.there().len(), 41);
    assert!(!scene.there().contains(&"old".to_owned()));
}

#[test]
fn what_waits_for_another_attempt_gives_way_to_a_newer_one() {
    let mut scene = Scene::new(Limits::default());
    scene.world.subscribe(0, 0, "t", "g", ALL, None).unwrap();
    scene.publish(&[value("a", "1"), value("b", "2")]);
    assert_eq!(scene.run(), ["1", "2"]);
    let nack = Settlement::Nack { delay_ms: Some(10 * LAST_VALUE_FRESH_MS), reason: None };
    scene.world.settle(0, 0, nack, vec![OffsetRange::new(0, 2)]);
    scene.publish(&[value("a", "3")]);
    assert_eq!(scene.run(), ["3"]);
    scene.ack_all();
    scene.advance(LAST_VALUE_FRESH_MS);
    assert_eq!(scene.there(), ["2", "3"]);
    assert_eq!(scene.advance(9 * LAST_VALUE_FRESH_MS), ["2"]);
}

#[test]
fn a_tombstone_goes_after_a_day_and_not_before_what_it_is_about() {
    let mut scene = Scene::new(Limits::default());
    scene.publish(&[value("a", "1"), value("b", "2"), value("a", "")]);
    scene.advance(LAST_VALUE_FRESH_MS);
    assert_eq!(scene.there(), ["2", ""]);
    scene.advance(LAST_VALUE_TOMBSTONE_MS - 2 * LAST_VALUE_FRESH_MS);
    assert_eq!(scene.there(), ["2", ""]);
    scene.advance(2 * LAST_VALUE_FRESH_MS);
    assert_eq!(scene.there(), ["2"]);
    assert_eq!(scene.world.broker.next_timeout(), None);
}

/// With the tombstone gone, a message that somebody had in flight would have been the newest of its key again.
#[test]
fn a_tombstone_stays_as_long_as_something_older_does() {
    let mut scene = Scene::new(Limits::default());
    scene.world.subscribe(0, 0, "t", "g", Window { messages: 1, ..ALL }, None).unwrap();
    scene.publish(&[value("a", "1"), value("a", "")]);
    assert_eq!(scene.run(), ["1"]);
    let hold = |scene: &mut Scene| {
        scene.world.settle(0, 0, Settlement::Extend, vec![OffsetRange::new(0, 1)]);
        scene.advance(20_000);
    };
    (0..4).for_each(|_| hold(&mut scene));
    assert_eq!(scene.there(), ["1", ""]);
    scene.ack_all();
    scene.run();
    scene.world.unsubscribe(0, 0);
    scene.settle_down();
    assert_eq!(scene.there(), [""]);
    scene.advance(LAST_VALUE_TOMBSTONE_MS + LAST_VALUE_FRESH_MS);
    assert_eq!(scene.there(), [""; 0]);
}

#[test]
fn a_topic_that_is_made_one_later_is_cleaned_and_leaves_what_has_no_key() {
    let retention = Retention { acked: false, ..Retention::default() };
    let plain = TopicSettings { retention, ..TopicSettings::default() };
    let mut scene = Scene::with(Limits::default(), plain);
    scene.publish(&[value("a", "1"), Message::new("no key"), value("a", "2")]);
    scene.settle_down();
    assert_eq!(scene.there(), ["1", "no key", "2"]);
    scene.world.admin(0, AdminCommand::ChangeTopic { name: "t".into(), settings: settings() });
    scene.settle_down();
    assert_eq!(scene.there(), ["no key", "2"]);
    let retention = settings().retention;
    let plain = TopicSettings { retention, ..TopicSettings::default() };
    scene.world.admin(0, AdminCommand::ChangeTopic { name: "t".into(), settings: plain });
    scene.publish(&[value("a", "3")]);
    scene.settle_down();
    assert_eq!(scene.there(), ["no key", "2", "3"]);
}

/// What the broker itself moves is refused nowhere: a letter without a key stays, also where all values are moved, and one
/// with a key is the newest of it.
#[test]
fn dead_letters_come_into_a_table_with_a_key_or_without() {
    let mut scene = Scene::new(few_gaps());
    let topic = scene.world.find_topic(0, "jobs").unwrap();
    let dead_letter = Some("t".parse().unwrap());
    let settings = GroupSettings { dead_letter, ..GroupSettings::default() };
    scene.world.subscribe(0, 0, "jobs", "g", ALL, Some(settings)).unwrap();
    scene.publish(&[value("a", "old")]);
    let dying = [Message::new("no key"), value("a", "new")];
    scene.world.publish_messages(0, 0, scene.next, vec![(topic, 2)], &dying);
    scene.next += 2;
    scene.world.finish();
    let letters = |scene: &Scene| {
        let mut there = scene.there();
        there.retain(|body| !body.chars().any(|digit| digit.is_ascii_digit()));
        there
    };
    let all = vec![OffsetRange::new(0, 2)];
    scene.world.settle_in(0, 0, topic, Settlement::Reject { reason: None }, all);
    scene.settle_down();
    assert_eq!(letters(&scene), ["no key", "new"]);
    let before = scene.world.store[&scene.topic].keys().next().copied();
    full_of_gaps(&mut scene, 200);
    assert!(scene.world.store[&scene.topic].keys().next().copied() > before, "all of it was moved");
    let left: BTreeSet<String> = letters(&scene).into_iter().collect();
    assert_eq!(left, ["new", "no key"].map(str::to_owned).into());
}

#[test]
fn a_topic_of_more_keys_than_are_known_at_a_time_is_cleaned_whole() {
    let mut scene = Scene::new(Limits { last_value_keys_max: 16, ..Limits::default() });
    for round in 0..5 {
        let keys = (0..100).map(|n| (n * 37 + round * 11) % 100);
        let messages: Vec<Message> = keys.map(|n| value(&n.to_string(), format!("{n} {round}"))).collect();
        scene.publish(&messages);
    }
    scene.settle_down();
    let there: BTreeSet<String> = scene.there().into_iter().collect();
    assert_eq!(there, (0..100).map(|n| format!("{n} 4")).collect());
    assert_eq!(scene.there().len(), 100);
}

/// A table of `keys` keys of which every second was updated, and the gaps are too many.
fn full_of_gaps(scene: &mut Scene, keys: u64) {
    let all: Vec<Message> = (0..keys).map(|n| value(&n.to_string(), format!("{n} old"))).collect();
    scene.publish(&all);
    scene.settle_down();
    let some: Vec<Message> =
        (0..keys).step_by(2).map(|n| value(&n.to_string(), format!("{n} new"))).collect();
    scene.publish(&some);
    scene.settle_down();
}

fn few_gaps() -> Limits {
    Limits { settled_ranges_max: 32, last_value_keys_max: 16, ..Limits::default() }
}

#[test]
fn too_many_gaps_go_by_moving() {
    let mut scene = Scene::new(few_gaps());
    full_of_gaps(&mut scene, 200);
    assert!(scene.range_count() <= 16, "{}", scene.range_count());
    let there: BTreeSet<String> = scene.there().into_iter().collect();
    let expected = (0..200).map(|n| format!("{n} {}", if n % 2 == 0 { "new" } else { "old" }));
    assert_eq!(there, expected.collect());
    assert_eq!(scene.there().len(), 200);
}

/// An old value was moved behind the newest of its key, which could not be read: it was the newest then, and the other
/// went once it could be read.
#[test]
fn nothing_is_moved_over_a_message_that_cannot_be_read() {
    let mut scene = Scene::new(Limits { cache_bytes_max: 0, ..few_gaps() });
    let old: Vec<Message> = (0..200).map(|n| value(&n.to_string(), format!("{n} old"))).collect();
    scene.publish(&[&[value("k", "k old")], &old[..], &[value("k", "k new")]].concat());
    scene.world.unread.insert((scene.topic, 201));
    for round in ["newer", "newest"] {
        let some = (0..200).step_by(2).map(|n| value(&n.to_string(), format!("{n} {round}")));
        scene.publish(&some.collect::<Vec<_>>());
        scene.settle_down();
        assert!(scene.range_count() <= 32, "{}", scene.range_count());
    }
    let there = scene.there();
    let place = |body: &str| there.iter().position(|found| found == body);
    assert!(place("k old") < place("k new") && place("k new").is_some(), "{there:?}");
    assert!(place("0 newer").is_none() && place("0 newest").is_some(), "what is behind it is clean");
    let end = scene.world.fold.topics[&scene.topic].end;
    scene.settle_down();
    assert_eq!(scene.world.fold.topics[&scene.topic].end, end, "nothing is moved again and again");
    scene.world.heal();
    scene.settle_down();
    let there: BTreeSet<String> = scene.there().into_iter().collect();
    let expected = (0..200).map(|n| format!("{n} {}", if n % 2 == 0 { "newest" } else { "old" }));
    assert_eq!(there, expected.chain(["k new".to_owned()]).collect());
    assert!(scene.range_count() <= 16, "{}", scene.range_count());
}

#[test]
fn what_is_moved_is_not_delivered_again_to_a_group_that_was_done_with_it() {
    let mut scene = Scene::new(few_gaps());
    scene.world.subscribe(0, 0, "t", "g", ALL, None).unwrap();
    let all: Vec<Message> = (0..200).map(|n| value(&n.to_string(), format!("{n} old"))).collect();
    scene.publish(&all);
    assert_eq!(scene.run().len(), 200);
    scene.ack_all();
    let some: Vec<Message> = (0..200).step_by(2).map(|n| value(&n.to_string(), format!("{n} new"))).collect();
    scene.publish(&some);
    assert_eq!(scene.run().len(), 100);
    scene.ack_all();
    for _ in 0..8 {
        assert_eq!(scene.advance(2 * LAST_VALUE_FRESH_MS), [""; 0]);
    }
    let moved = scene.world.store[&scene.topic].values();
    let moved: Vec<_> =
        moved.filter(|stored| stored.message.header("baton.published-at").is_some()).collect();
    assert!(moved.len() > 50, "{} were moved", moved.len());
    assert!(moved.iter().all(|stored| World::first_published_at(stored) < stored.published_at));
    assert!(moved.iter().all(|stored| stored.origin.is_some()));
    scene.world.subscribe(0, 1, "t", "late", ALL, None).unwrap();
    assert_eq!(scene.run().len(), 200);
}

#[test]
fn what_is_published_while_others_are_moved_is_the_newest_of_its_key() {
    let mut scene = Scene::new(Limits { cache_bytes_max: 1_500, ..few_gaps() });
    let keys = 200_u64;
    for round in 0..2 {
        let some = (0..keys).step_by(1 + round);
        scene.publish(&some.map(|n| value(&n.to_string(), "0")).collect::<Vec<_>>());
        scene.run();
    }
    scene.world.now = Timestamp(scene.world.now.0 + LAST_VALUE_FRESH_MS);
    for n in 1_u64..2_000 {
        let key = (n * 37 % keys).to_string();
        scene.publish(&[value(&key, n.to_string())]);
        scene.world.finish();
        if !scene.world.reads.is_empty() {
            scene.world.answer(0);
        }
        let newest = scene.world.store[&scene.topic]
            .values()
            .rfind(|stored| stored.message.key.as_deref() == Some(key.as_bytes()));
        assert_eq!(newest.unwrap().message.body, n.to_string());
        let older = (n.saturating_sub(3)).max(1);
        let key = (older * 37 % keys).to_string();
        let newest = scene.world.store[&scene.topic]
            .values()
            .rfind(|stored| stored.message.key.as_deref() == Some(key.as_bytes()));
        assert_eq!(newest.unwrap().message.body, older.to_string(), "three cycles later");
    }
    let (end, published) = (scene.world.fold.topics[&scene.topic].end.0, scene.next - 1);
    assert!(end > published + 20, "{} were moved", end - published);
    scene.settle_down();
    assert_eq!(scene.there().len() as u64, keys);
    let expected: BTreeSet<String> = (1_800..2_000).map(|n: u64| n.to_string()).collect();
    assert_eq!(scene.there().into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn without_space_nothing_is_moved_and_nothing_lost() {
    let mut scene = Scene::new(few_gaps());
    let all: Vec<Message> = (0..200).map(|n| value(&n.to_string(), "old")).collect();
    scene.publish(&all);
    scene.settle_down();
    let some: Vec<Message> = (0..200).step_by(2).map(|n| value(&n.to_string(), "new")).collect();
    scene.publish(&some);
    scene.run();
    scene.world.broker.begin_cycle(100);
    scene.settle_down();
    let newest = scene.there().len();
    assert!(newest > 200, "{newest}: some are there twice");
    scene.world.broker.begin_cycle(u64::MAX);
    scene.settle_down();
    assert_eq!(scene.there().len(), 200);
}

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<(u8, bool)>),
    Window(u8, u32),
    Settle(u8, u8, u64, u64),
    Cycle,
    Answer(bool),
    /// So many messages from one on cannot be read.
    Damage(usize, usize),
    Heal,
    Advance(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec((0_u8..40, prop::bool::weighted(0.1)), 1..40).prop_map(Step::Publish),
        2 => (0_u8..2, 0_u32..20).prop_map(|(consumer, window)| Step::Window(consumer, window)),
        4 => (0_u8..2, 0_u8..4, 0_u64..60, 1_u64..60)
            .prop_map(|(consumer, how, back, count)| Step::Settle(consumer, how, back, count)),
        6 => Just(Step::Cycle),
        4 => any::<bool>().prop_map(Step::Answer),
        1 => (0_usize..100, 1_usize..9).prop_map(|(from, count)| Step::Damage(from, count)),
        1 => Just(Step::Heal),
        4 => prop_oneof![0_u64..1_000, 30_000_u64..200_000, Just(LAST_VALUE_TOMBSTONE_MS)].prop_map(Step::Advance),
        1 => Just(Step::Restart),
    ]
}

/// The newest message of each key, and whether it is a tombstone that may be gone.
#[derive(Default)]
struct Naive {
    newest: BTreeMap<u8, (String, Timestamp)>,
}

struct Random {
    scene: Scene,
    /// That of the second group.
    policy: Policy,
    naive: Naive,
    count: u64,
    /// What each consumer has got. An older value that came back may come after a newer one.
    got: BTreeSet<(u32, u8, String)>,
}

impl Random {
    fn new(policy: Policy) -> Self {
        let limits = Limits {
            last_value_keys_max: 16,
            settled_ranges_max: 24,
            cache_bytes_max: 1_500,
            ..Limits::default()
        };
        let mut random = Self {
            scene: Scene::new(limits),
            policy,
            naive: Naive::default(),
            count: 0,
            got: BTreeSet::new(),
        };
        random.subscribe();
        random
    }

    fn subscribe(&mut self) {
        for (handle, group, policy) in [(0, "one", Policy::RoundRobin), (1, "two", self.policy)] {
            let settings = GroupSettings { policy, ..GroupSettings::default() };
            self.scene.world.subscribe(0, handle, "t", group, NONE, Some(settings)).unwrap();
        }
    }

    fn finish(&mut self) {
        let scene = &mut self.scene;
        scene.world.finish();
        for &(_, handle, _, offset, _) in &scene.world.delivered {
            let message = &scene.world.store[&scene.topic][&offset].message;
            let key: u8 = String::from_utf8(message.key.clone().unwrap().to_vec()).unwrap().parse().unwrap();
            let body = String::from_utf8(message.body.to_vec()).unwrap();
            self.got.insert((handle, key, body));
        }
        self.check_newest();
    }

    /// The newest message of each key is there, whatever happens.
    fn check_newest(&self) {
        let world = &self.scene.world;
        let mut there: BTreeMap<u8, &str> = BTreeMap::new();
        for stored in world.store.get(&self.scene.topic).into_iter().flat_map(|messages| messages.values()) {
            let text = |bytes: &bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            let key: u8 = text(stored.message.key.as_ref().unwrap()).parse().unwrap();
            there.insert(key, std::str::from_utf8(&stored.message.body).unwrap());
        }
        for (key, (body, at)) in &self.naive.newest {
            let over = body.is_empty() && at.0 + LAST_VALUE_TOMBSTONE_MS <= world.now.0;
            match there.get(key) {
                Some(found) => assert_eq!(found, body, "key {key}"),
                None => assert!(over, "the newest of key {key} is gone: {body:?}"),
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish(values) => {
                let now = self.scene.world.now;
                let mut messages = Vec::new();
                for (key, gone) in values {
                    self.count += 1;
                    let body = if gone { String::new() } else { self.count.to_string() };
                    messages.push(value(&key.to_string(), body.clone()));
                    self.naive.newest.insert(key, (body, now));
                }
                self.scene.publish(&messages);
            }
            Step::Window(consumer, messages) => {
                self.scene.world.flow(0, u32::from(consumer), Window { messages, bytes: u64::MAX });
            }
            Step::Settle(consumer, how, back, count) => {
                let end = self.scene.world.fold.topics[&self.scene.topic].end.0;
                let start = end.saturating_sub(back);
                let settlement = match how {
                    0 | 1 => Settlement::Ack,
                    2 => Settlement::Nack { delay_ms: None, reason: None },
                    _ => Settlement::Release,
                };
                let range = if how == 0 {
                    OffsetRange::new(0, u64::MAX)
                } else {
                    OffsetRange::new(start, start + count)
                };
                self.scene.world.settle(0, u32::from(consumer), settlement, vec![range]);
            }
            Step::Cycle => self.finish(),
            Step::Answer(all) => {
                if all {
                    self.scene.world.answer_all();
                } else if !self.scene.world.reads.is_empty() {
                    self.scene.world.answer(0);
                }
            }
            Step::Damage(from, count) => self.scene.world.damage(0, from, count),
            Step::Heal => self.scene.world.heal(),
            Step::Advance(ms) => {
                self.finish();
                self.scene.world.now = Timestamp(self.scene.world.now.0 + ms);
                self.finish();
            }
            Step::Restart => {
                self.finish();
                if self.count.is_multiple_of(3) {
                    self.scene.world.end(0, Ending::Lost);
                    self.finish();
                }
                self.scene.restart();
                self.subscribe();
            }
        }
    }

    /// In the end every group has the newest value of each key, no two messages of a key are there, and few gaps.
    fn end(&mut self) {
        self.scene.world.heal();
        self.finish();
        for _ in 0..200 {
            for handle in [0, 1] {
                self.scene.world.flow(0, handle, ALL);
                self.scene.world.settle(0, handle, Settlement::Ack, vec![OffsetRange::new(0, u64::MAX)]);
            }
            self.scene.world.answer_all();
            self.finish();
            self.scene.world.now = Timestamp(self.scene.world.now.0 + 10_000);
        }
        self.scene.settle_down();
        for (key, (body, _)) in &self.naive.newest {
            for handle in [0, 1] {
                // A tombstone that was there for a day may have gone before.
                let has_got = body.is_empty() || self.got.contains(&(handle, *key, body.clone()));
                assert!(has_got, "consumer {handle}, key {key}: not {body}");
            }
        }
        let messages = self.scene.world.store.entry(self.scene.topic).or_default();
        let keys: BTreeSet<_> = messages.values().map(|stored| stored.message.key.clone()).collect();
        assert_eq!(keys.len(), messages.len(), "one message for each key");
        assert!(self.scene.range_count() <= 12, "{} gaps", self.scene.range_count());
        assert!(self.scene.world.part(GroupId(0), self.scene.topic).is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_newest_of_each_key_is_never_lost(
        policy in prop::sample::select(vec![Policy::Fair, Policy::Key, Policy::Exclusive]),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut random = Random::new(policy);
        for step in steps {
            random.step(step);
        }
        random.end();
    }
}
