//! Messages with a priority, a time to be delivered at, a time at which they expire: rules, and the broker under random
//! commands against a naive model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::collections::{BTreeMap, BTreeSet};

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{OffsetRange, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::{Backoff, GroupSettings};
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::TopicKind;
use batonmq::protocol::request::{Settlement, Window};
use broker_world::World;
use proptest::prelude::*;

const ALL: Window = Window { messages: 1_000, bytes: u64::MAX };

/// A world with a producer, topic `t` and a consumer of its group `g`.
struct Scene {
    world: World,
    topic: TopicId,
    next: u64,
    settings: GroupSettings,
}

impl Scene {
    fn new(limits: Limits, settings: GroupSettings) -> Self {
        let mut world = World::new(limits, AutoCreate::Allowed);
        world.begin(0);
        world.open(0, 0, "p");
        let topic = world.find_topic(0, "t").unwrap();
        world.finish();
        Self { world, topic, next: 1, settings }
    }

    fn consume(&mut self, window: Window) {
        self.world.subscribe(0, 0, "t", "g", window, Some(self.settings.clone())).unwrap();
    }

    fn publish(&mut self, messages: &[Message]) {
        let parts = vec![(self.topic, messages.len() as u32)];
        self.world.publish_messages(0, 0, self.next, parts, messages);
        self.next += messages.len() as u64;
    }

    /// Ends the cycle, and others until nothing is left to be done now. Answers the bodies that were delivered.
    fn run(&mut self) -> Vec<String> {
        let mut bodies = Vec::new();
        loop {
            self.world.answer_all();
            self.world.finish();
            bodies.extend(self.delivered().into_iter().map(|(_, _, body)| body));
            let due = self.world.broker.next_timeout().is_some_and(|at| at <= self.world.now);
            if self.world.reads.is_empty() && !due {
                return bodies;
            }
        }
    }

    /// What the last cycle has delivered: topic, offset and body.
    fn delivered(&self) -> Vec<(TopicId, u64, String)> {
        let delivered = self.world.delivered.iter().map(|&(_, _, part, offset, _)| {
            let topic = self.world.fold.groups[&part].topic;
            let body = self.world.store[&topic][&offset].message.body.to_vec();
            (topic, offset, String::from_utf8(body).unwrap())
        });
        delivered.collect()
    }

    fn advance(&mut self, ms: u64) -> Vec<String> {
        self.world.now = Timestamp(self.world.now.0 + ms);
        self.run()
    }

    fn restart(&mut self) {
        self.world.restart();
        self.world.begin(0);
        self.world.open(0, 0, "p");
    }

    fn slots(&self) -> usize {
        let slots = self.world.fold.topics.values();
        slots.filter(|topic| matches!(topic.kind, TopicKind::Slot { .. })).count()
    }

    fn ack_all(&mut self) {
        for topic in self.world.topics_now() {
            if self.world.part(batonmq::model::id::GroupId(0), topic).is_some() {
                self.world.settle_in(0, 0, topic, Settlement::Ack, vec![OffsetRange::new(0, u64::MAX)]);
            }
        }
    }
}

fn after(now: Timestamp, ms: u64) -> Option<Timestamp> {
    Some(Timestamp(now.0 + ms))
}

fn at_once() -> GroupSettings {
    let backoff = Backoff { initial_ms: 0, maximum_ms: 0, ..Backoff::default() };
    GroupSettings { backoff, ..GroupSettings::default() }
}

#[test]
fn a_delayed_message_comes_when_it_is_due_and_in_the_order_of_times() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(ALL);
    let now = scene.world.now;
    let delayed = |name: &str, ms| Message { deliver_at: after(now, ms), ..Message::new(name.to_owned()) };
    scene.publish(&[delayed("c", 500), Message::new("a"), delayed("d", 7_200_000), delayed("b", 100)]);
    assert_eq!(scene.run(), ["a"]);
    assert_eq!(scene.advance(99), [""; 0]);
    assert_eq!(scene.advance(1), ["b"]);
    assert_eq!(scene.advance(10_000), ["c"]);
    scene.ack_all();
    assert_eq!(scene.advance(7_200_000 - 10_101), [""; 0]);
    assert_eq!(scene.advance(1), ["d"]);
    scene.run();
    assert_eq!(scene.slots(), 1, "the one for what is due soon stays");
}

#[test]
fn what_waits_for_a_time_is_found_again_after_a_restart() {
    let mut scene = Scene::new(Limits::default(), at_once());
    let now = scene.world.now;
    let delayed = |name: &str, ms| Message { deliver_at: after(now, ms), ..Message::new(name.to_owned()) };
    scene.publish(&[delayed("near", 500), delayed("far", 86_400_000)]);
    scene.run();
    scene.restart();
    scene.consume(ALL);
    assert_eq!(scene.advance(500), ["near"]);
    scene.ack_all();
    scene.run();
    scene.restart();
    scene.consume(ALL);
    assert_eq!(scene.advance(86_399_499), [""; 0]);
    assert_eq!(scene.advance(1), ["far"]);
}

#[test]
fn higher_priorities_come_first_and_lower_ones_do_not_starve() {
    let settings = GroupSettings { priority_share: 4, ..at_once() };
    let mut scene = Scene::new(Limits::default(), settings);
    let message = |priority: u8, n: u32| Message { priority, ..Message::new(format!("{priority}-{n}")) };
    let messages: Vec<Message> = (0..6).flat_map(|n| [message(0, n), message(9, n), message(5, n)]).collect();
    scene.publish(&messages);
    scene.run();
    scene.consume(Window { messages: 1, bytes: u64::MAX });
    let mut order = scene.run();
    while order.len() < 18 {
        scene.ack_all();
        order.extend(scene.run());
    }
    let expected = [
        "9-0", "9-1", "9-2", "5-0", "9-3", "9-4", "9-5", "0-0", "5-1", "5-2", "5-3", "0-1", "5-4", "5-5",
        "0-2", "0-3", "0-4", "0-5",
    ];
    assert_eq!(order, expected);
}

#[test]
fn expired_messages_go_wherever_they_stand_without_a_consumer_too() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(Window { messages: 0, bytes: 0 });
    let now = scene.world.now;
    let expiring = |name: &str, ms| Message { expires_at: after(now, ms), ..Message::new(name.to_owned()) };
    scene.publish(&[Message::new("a"), expiring("b", 1_000), Message::new("c"), expiring("d", 100_000)]);
    scene.run();
    scene.advance(1_000);
    let group = &scene.world.fold.groups[&batonmq::model::id::GroupId(0)];
    let settled: Vec<OffsetRange> = group.settled.iter().collect();
    assert_eq!(settled, [OffsetRange::new(1, 2)]);
    scene.world.flow(0, 0, ALL);
    assert_eq!(scene.run(), ["a", "c", "d"]);
}

#[test]
fn what_expires_in_a_topic_without_groups_is_dropped() {
    let mut scene = Scene::new(Limits::default(), at_once());
    let expires_at = after(scene.world.now, 1_000);
    scene.publish(&[Message::new("a"), Message { expires_at, ..Message::new("b") }]);
    scene.run();
    scene.advance(1_000);
    assert_eq!(scene.world.broker.counts().messages, 1);
}

#[test]
fn expired_messages_are_dead_lettered_where_that_is_asked_for() {
    let settings = GroupSettings { dead_letter_expired: true, ..at_once() };
    let mut scene = Scene::new(Limits::default(), settings);
    scene.consume(Window { messages: 1, bytes: u64::MAX });
    let expires_at = after(scene.world.now, 1_000);
    let expiring = |name: &str| Message { expires_at, ..Message::new(name.to_owned()) };
    scene.publish(&[expiring("in flight"), expiring("waiting"), Message::new("stays")]);
    scene.run();
    scene.advance(1_000);
    let dead = scene.world.find_topic(0, "t.dead-letter").unwrap();
    let bodies = |scene: &Scene| -> Vec<String> {
        let stored = scene.world.store.get(&dead).into_iter().flat_map(BTreeMap::values);
        stored.map(|stored| String::from_utf8(stored.message.body.to_vec()).unwrap()).collect()
    };
    assert_eq!(bodies(&scene), ["waiting"]);
    let header = scene.world.store[&dead][&0].message.header("baton.dead.reason").unwrap().clone();
    assert_eq!(header, "expired");
    assert_eq!(scene.world.store[&dead][&0].message.expires_at, None);
    scene.world.settle(0, 0, Settlement::Nack { delay_ms: None, reason: None }, vec![OffsetRange::new(0, 1)]);
    assert_eq!(scene.run(), ["stays"]);
    assert_eq!(bodies(&scene), ["waiting", "in flight"]);
}

#[test]
fn a_deleted_topic_takes_along_what_waits_for_it() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(ALL);
    let now = scene.world.now;
    let message = |ms| Message { priority: 3, deliver_at: after(now, ms), ..Message::new("x") };
    scene.publish(&[message(0), message(10), message(10_000_000)]);
    scene.run();
    scene.world.admin(0, batonmq::protocol::request::AdminCommand::DeleteTopic { name: "t".into() });
    scene.run();
    assert!(scene.world.fold.topics.is_empty() && scene.world.fold.groups.is_empty());
    assert_eq!(scene.advance(20_000_000), [""; 0]);
}

/// What a message has beside its body: priority, delay, time to live.
type Traits = (u8, u64, u64);

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<Traits>),
    Ack(u64, u64),
    Nack(u64, u64),
    Window(u32),
    Advance(u64),
    Answer,
    Finish,
    Lost,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let delay =
        prop_oneof![3 => Just(0), 2 => 1_u64..5_000, 1 => 5_000_u64..200_000, 1 => 200_000_u64..9_000_000];
    let ttl = prop_oneof![3 => Just(0), 2 => 1_u64..5_000, 1 => 5_000_u64..9_000_000];
    let priority = prop_oneof![2 => Just(0_u8), 1 => 1_u8..=9];
    prop_oneof![
        6 => prop::collection::vec((priority, delay, ttl), 1..8).prop_map(Step::Publish),
        5 => (0_u64..30, 1_u64..20).prop_map(|(start, len)| Step::Ack(start, len)),
        1 => (0_u64..30, 1_u64..6).prop_map(|(start, len)| Step::Nack(start, len)),
        1 => (0_u32..10).prop_map(Step::Window),
        3 => prop_oneof![1_u64..100, 100_u64..5_000, 5_000_u64..400_000].prop_map(Step::Advance),
        3 => Just(Step::Answer),
        6 => Just(Step::Finish),
        1 => Just(Step::Lost),
        1 => Just(Step::Restart),
    ]
}

fn limits(known: u64, cache: u64) -> Limits {
    Limits { scheduled_known_max: known, cache_bytes_max: cache, pinned_bytes_max: 64, ..Limits::default() }
}

fn check(steps: Vec<Step>, known: u64, cache: u64, buried: bool) {
    let settings =
        GroupSettings { dead_letter_expired: buried, lease_ms: 3_600_000, max_attempts: 0, ..at_once() };
    let mut scene = Scene::new(limits(known, cache), settings);
    scene.consume(ALL);
    scene.run();
    let mut published: BTreeMap<String, (Timestamp, Option<Timestamp>)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let note = |scene: &Scene, seen: &mut BTreeSet<String>| {
        seen.extend(scene.delivered().into_iter().map(|(_, _, body)| body));
    };
    for step in steps {
        match step {
            Step::Publish(traits) => {
                let now = scene.world.now;
                let mut messages = Vec::new();
                for (priority, delay, ttl) in traits {
                    let body = format!("m{}", published.len());
                    let deliver_at = (delay > 0).then(|| Timestamp(now.0 + delay));
                    let expires_at = (ttl > 0).then(|| Timestamp(now.0 + ttl));
                    published.insert(body.clone(), (deliver_at.unwrap_or(now), expires_at));
                    messages.push(Message { priority, deliver_at, expires_at, ..Message::new(body) });
                }
                scene.publish(&messages);
            }
            Step::Ack(start, len) | Step::Nack(start, len) => {
                let settlement = match step {
                    Step::Ack(..) => Settlement::Ack,
                    _ => Settlement::Nack { delay_ms: Some(50), reason: None },
                };
                for topic in scene.world.topics_now() {
                    if scene.world.part(batonmq::model::id::GroupId(0), topic).is_some() {
                        let ranges = vec![OffsetRange::new(start, start + len)];
                        scene.world.settle_in(0, 0, topic, settlement.clone(), ranges);
                    }
                }
            }
            Step::Window(messages) => scene.world.flow(0, 0, Window { messages, bytes: u64::MAX }),
            Step::Advance(ms) => {
                scene.world.finish();
                note(&scene, &mut seen);
                scene.world.now = Timestamp(scene.world.now.0 + ms);
            }
            Step::Answer if !scene.world.reads.is_empty() => scene.world.answer(0),
            Step::Answer => {}
            Step::Finish => {
                scene.world.finish();
                note(&scene, &mut seen);
            }
            Step::Lost => {
                scene.world.end(0, Ending::Lost);
                scene.world.finish();
                scene.world.begin(0);
                scene.world.open(0, 0, "p");
                scene.consume(ALL);
            }
            Step::Restart => {
                scene.world.answer_all();
                scene.world.finish();
                note(&scene, &mut seen);
                scene.restart();
                scene.consume(ALL);
            }
        }
    }
    // In the end all that has not expired has been delivered, and nothing waits any more.
    scene.world.flow(0, 0, ALL);
    for _ in 0..200 {
        for _ in 0..3 {
            scene.world.answer_all();
            scene.world.finish();
            note(&scene, &mut seen);
        }
        scene.ack_all();
        let Some(next) = scene.world.broker.next_timeout() else { break };
        scene.world.now = Timestamp(next.0.max(scene.world.now.0 + 1));
    }
    let in_slots: usize = scene
        .world
        .store
        .iter()
        .filter(|(topic, _)| scene.world.is_slot(**topic))
        .map(|(_, stored)| stored.len())
        .sum();
    assert_eq!(in_slots, 0, "left in slots");
    for (body, (_, expires_at)) in published {
        assert!(seen.contains(&body) || expires_at.is_some(), "{body} was never delivered");
    }
    let waiting = scene.world.fold.groups.values().filter(|group| {
        let end = scene.world.fold.topics[&group.topic].end;
        group.floor < end
    });
    assert_eq!(waiting.count(), 0, "left in the topic");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_waits_for_a_time_comes_when_it_is_due_and_not_when_it_is_over(
        steps in prop::collection::vec(step(), 1..60),
        known in prop_oneof![Just(16_u64), Just(100_000)],
        cache in prop_oneof![Just(1_u64 << 10), Just(1 << 20)],
        buried in any::<bool>(),
    ) {
        check(steps, known, cache, buried);
    }
}
