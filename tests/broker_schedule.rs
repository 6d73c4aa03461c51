//! Messages with a priority, a time to be delivered at, a time at which they expire: rules, and the broker under random
//! commands against a naive model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{Offset, OffsetRange, SessionId, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::{Backoff, GroupSettings, Policy};
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::{AdminCommand, Handle, Settlement, Window};
use batonmq::protocol::response::Reply;
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

    /// Slots that are not over.
    fn slots(&self) -> usize {
        let (world, slots) = (&self.world, self.world.fold.topics.keys());
        slots.filter(|topic| world.is_slot(**topic) && !world.is_over(**topic)).count()
    }

    /// What is answered to a request.
    fn ask(&mut self, command: AdminCommand) -> Result<Reply, Refusal> {
        let request = self.world.admin(0, command);
        self.run();
        self.world.replies.iter().find(|reply| reply.1 == request).unwrap().2.clone()
    }

    /// The slots that clients see, and how many messages are in each.
    fn listed(&mut self) -> Vec<(u32, u64)> {
        let Ok(Reply::Slots { slots }) = self.ask(AdminCommand::ListSlots { topic: "t".into() }) else {
            panic!("slots are listed");
        };
        slots.iter().map(|slot| (slot.slot.0, slot.messages)).collect()
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
fn lower_priorities_take_turns() {
    let settings = GroupSettings { priority_share: 3, ..at_once() };
    let mut scene = Scene::new(Limits::default(), settings);
    let message = |priority: u8| Message { priority, ..Message::new(priority.to_string()) };
    let messages: Vec<Message> = (0..48).map(|n| message(9 - n % 4 * 3)).collect();
    scene.publish(&messages);
    scene.run();
    scene.consume(Window { messages: 18, bytes: u64::MAX });
    let come = scene.run().concat();
    assert_eq!(come, ["996", "993", "990", "996", "993", "990"].concat());
}

/// After a takeover all of it has to be read, and what was read first came first, whatever its priority.
#[test]
fn a_lower_priority_does_not_overtake_a_higher_one_that_is_being_read() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(Window { messages: 0, bytes: 0 });
    let message = |priority: u8| Message { priority, ..Message::new(priority.to_string()) };
    scene.publish(&[message(0), message(5), message(9)]);
    scene.run();
    scene.restart();
    scene.consume(ALL);
    let mut come = Vec::new();
    loop {
        scene.world.finish();
        come.extend(scene.delivered().into_iter().map(|(_, _, body)| body));
        // The lowest priority is read first: its topic has the lowest number.
        let reads = scene.world.reads.iter().enumerate();
        let Some((lowest, _)) = reads.min_by_key(|(_, read)| read.topic) else { break };
        scene.world.answer(lowest);
    }
    assert_eq!(come, ["9", "5", "0"]);
}

/// A lower priority that had to be read first lost its turn to the next one, and when it had been read its turn was over:
/// with less memory than one read of each priority takes, nothing was handed out any more.
#[test]
fn priorities_are_handed_out_with_next_to_no_memory() {
    let limits = Limits { cache_bytes_max: 1 << 10, ..Limits::default() };
    let settings = GroupSettings { priority_share: 2, ..at_once() };
    let mut scene = Scene::new(limits, settings.clone());
    let count = 100;
    let messages: Vec<Message> =
        (0..count).map(|n| Message { priority: (n % 10) as u8, ..Message::new(n.to_string()) }).collect();
    messages.chunks(7).for_each(|some| scene.publish(some));
    scene.world.finish();
    scene.restart();
    for handle in 0..3 {
        let group = format!("g{handle}");
        let settings = GroupSettings { priority_share: 2 + 49 * handle, ..settings.clone() };
        scene.world.subscribe(0, handle, "t", &group, ALL, Some(settings)).unwrap();
    }
    let mut come = 0;
    for _ in 0..10 * count {
        scene.world.answer_all();
        scene.world.finish();
        come += scene.world.delivered.len();
        if come == 3 * count {
            return;
        }
    }
    panic!("{come} have come");
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
fn what_does_not_expire_stays_between_what_expires_together() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(Window { messages: 0, bytes: 0 });
    let expires_at = after(scene.world.now, 1_000);
    let expiring = || Message { expires_at, ..Message::new("over") };
    scene.publish(&[expiring(), Message::new("a"), expiring(), expiring(), Message::new("b")]);
    scene.run();
    scene.advance(1_000);
    scene.world.flow(0, 0, ALL);
    assert_eq!(scene.run(), ["a", "b"]);
}

#[test]
fn what_expires_goes_from_every_group_and_comes_back_to_none() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(ALL);
    let none = Window { messages: 0, bytes: 0 };
    scene.world.subscribe(0, 1, "t", "h", none, Some(at_once())).unwrap();
    let now = scene.world.now;
    scene.publish(&[Message { expires_at: after(now, 1_000), ..Message::new("a") }]);
    assert_eq!(scene.run(), ["a"]);
    let nack = Settlement::Nack { delay_ms: Some(5_000), reason: None };
    scene.world.settle(0, 0, nack, vec![OffsetRange::new(0, 1)]);
    scene.run();
    assert_eq!(scene.world.broker.counts().retries, 1);
    scene.advance(1_000);
    assert_eq!(scene.world.broker.counts().retries, 0, "it waits for no other attempt");
    let floors: Vec<Offset> = scene.world.fold.groups.values().map(|group| group.floor).collect();
    assert_eq!(floors, [Offset(1); 2]);
    assert_eq!(scene.advance(10_000), [""; 0]);
}

/// Every gap takes memory: with very many of them the rest is passed over when its turn comes.
#[test]
fn what_expires_makes_no_more_gaps_than_there_may_be() {
    const GAPS_MAX: u64 = 8;
    let limits = Limits { settled_ranges_max: GAPS_MAX, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    scene.consume(Window { messages: 0, bytes: 0 });
    let now = scene.world.now;
    let expiring = |n: u64| Message { expires_at: after(now, 1_000 + 10 * n), ..Message::new("over") };
    for n in 0..20 {
        scene.publish(&[expiring(n), Message::new(n.to_string())]);
        scene.run();
    }
    for _ in 0..30 {
        scene.advance(50);
    }
    let group = &scene.world.fold.groups[&batonmq::model::id::GroupId(0)];
    let gaps = group.settled.range_count() as u64;
    assert!((1..=GAPS_MAX).contains(&gaps), "{gaps} gaps");
    scene.world.flow(0, 0, ALL);
    assert!(scene.run().into_iter().eq((0..20).map(|n| n.to_string())));
}

#[test]
fn what_is_due_later_does_not_overtake_what_has_to_be_read() {
    let limits = Limits { cache_bytes_max: 1 << 20, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    scene.consume(ALL);
    let now = scene.world.now;
    let delayed = |name: &str, ms| Message { deliver_at: after(now, ms), ..Message::new(name.to_owned()) };
    scene.publish(&[delayed("first", 500)]);
    // It is not in memory any more when its time comes.
    let filling: Vec<Message> = (0..80).map(|_| Message::new(vec![b'x'; 16_000])).collect();
    scene.publish(&filling);
    assert_eq!(scene.run().len(), 80);
    scene.ack_all();
    scene.publish(&[delayed("second", 600)]);
    scene.world.finish();
    scene.world.now = Timestamp(now.0 + 600);
    for _ in 0..5 {
        scene.world.finish();
        assert_eq!(scene.delivered(), []);
    }
    assert!(!scene.world.reads.is_empty());
    let come = scene.run();
    assert_eq!(come, ["first", "second"]);
}

#[test]
fn nothing_but_delayed_messages_of_the_topic_is_cancelled() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(ALL);
    scene.world.find_topic(0, "other").unwrap();
    let now = scene.world.now;
    let expires_at = after(now, 100_000);
    scene.publish(&[
        Message { deliver_at: after(now, 50_000), ..Message::new("waits") },
        Message { expires_at, ..Message::new("there") },
    ]);
    scene.run();
    let places: Vec<(TopicId, Offset)> = scene.world.store.keys().map(|topic| (*topic, Offset(0))).collect();
    assert_eq!(places.len(), 3, "the message, the note and the one that waits");
    let cancel = |topic: &str| AdminCommand::CancelDelayed { topic: topic.into(), messages: places.clone() };
    assert_eq!(scene.ask(cancel("other")), Ok(Reply::Dropped { count: 0 }));
    assert_eq!(scene.ask(cancel("t")), Ok(Reply::Dropped { count: 1 }));
    assert!(scene.world.store.values().filter(|stored| !stored.is_empty()).count() == 2);
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
    scene.world.admin(0, AdminCommand::DeleteTopic { name: "t".into() });
    scene.run();
    assert!(scene.world.fold.topics.is_empty() && scene.world.fold.groups.is_empty());
    assert_eq!(scene.advance(20_000_000), [""; 0]);
}

#[test]
fn a_purged_topic_forgets_what_waits_for_it_and_goes_on() {
    let limits = Limits { scheduled_known_max: 1, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    scene.consume(ALL);
    let delayed = |name: &str, at: u64| Message {
        deliver_at: Some(Timestamp(at)),
        expires_at: Some(Timestamp(at + 50_000)),
        ..Message::new(name.to_owned())
    };
    let now = scene.world.now.0;
    scene.publish(&[delayed("a", now + 5_000), delayed("b", now + 7_000), delayed("c", now + 9_000)]);
    scene.run();
    assert_eq!(scene.advance(7_000), ["a", "b"]);
    scene.world.purged.insert(scene.topic);
    let purge = AdminCommand::PurgeTopic { name: "t".into() };
    assert_eq!(scene.ask(purge), Ok(Reply::Dropped { count: 3 }));
    assert_eq!(scene.slots(), 0);
    let again: Vec<Message> = (0..9).map(|n| delayed("d", now + 20_000 + n * 1_500)).collect();
    scene.publish(&again);
    scene.run();
    assert_eq!(scene.advance(40_000), ["d"; 9]);
}

/// The message was due now and lay in a slot of its own, while what was known was full of what was due later: it waited
/// for that.
#[test]
fn what_is_due_does_not_wait_for_room_that_later_messages_take() {
    let limits = Limits { scheduled_known_max: 16, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    scene.consume(ALL);
    let now = scene.world.now;
    let delayed = |name: &str, ms| Message { deliver_at: after(now, ms), ..Message::new(name.to_owned()) };
    let later: Vec<Message> = (0..16).map(|_| delayed("later", 59_000)).collect();
    scene.publish(&later);
    scene.run();
    scene.publish(&[delayed("soon", 5_000)]);
    scene.run();
    assert_eq!(scene.advance(4_999), [""; 0]);
    assert_eq!(scene.advance(50), ["soon"]);
}

/// Messages for which there was no room were looked at when the first of them was due; one that came then and was due
/// sooner waited with them.
#[test]
fn what_is_due_sooner_does_not_wait_with_what_came_before() {
    let limits = Limits { scheduled_known_max: 1, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    scene.consume(ALL);
    let now = scene.world.now;
    let delayed = |name: &str, ms| Message { deliver_at: after(now, ms), ..Message::new(name.to_owned()) };
    scene.publish(&[delayed("later", 30_000), delayed("later", 30_000)]);
    scene.publish(&[delayed("soon", 1)]);
    scene.run();
    assert_eq!(scene.advance(51), ["soon"]);
}

/// A slot that was emptied within its second was deleted at once, and the next message of that second made another one:
/// each took an id that is never used again.
#[test]
fn a_second_takes_one_slot_though_it_is_emptied_in_between() {
    let limits = Limits { scheduled_known_max: 1, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    scene.consume(ALL);
    let second = scene.world.now.0.next_multiple_of(1 << 10) + (1 << 10);
    let delayed = |name: &str, ms: u64| Message {
        deliver_at: Some(Timestamp(second.saturating_add_signed(ms as i64 - 1_000))),
        ..Message::new(name.to_owned())
    };
    scene.publish(&[delayed("fills", 900)]);
    scene.run();
    scene.publish(&[delayed("first", 1_005)]);
    scene.run();
    let ids = scene.world.fold.next.topic;
    scene.world.now = Timestamp(second - 100);
    assert_eq!(scene.run(), ["fills"]);
    assert_eq!(scene.advance(105), ["first"]);
    scene.publish(&[delayed("fills again", 1_900)]);
    scene.run();
    scene.publish(&[delayed("second", 1_500)]);
    scene.run();
    assert_eq!(scene.world.fold.next.topic, ids);
    assert_eq!(scene.advance(500), ["second"]);
    assert_eq!(scene.advance(1 << 10), ["fills again"]);
    assert_eq!(scene.slots(), 1, "the one for what is due soon");
}

/// While more waited than could be known, every second took another id of a topic, which is never used again: a store
/// with many topics had used up all of them in less than a year.
#[test]
fn slots_that_are_over_are_used_again() {
    let limits = Limits { scheduled_known_max: 1, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    scene.consume(ALL);
    let (mut come, mut ids) = (Vec::new(), 0);
    for second in 0..400_u64 {
        let now = scene.world.now;
        let message = |name, ms| Message {
            deliver_at: after(now, ms),
            expires_at: after(now, ms + 1_000 * (1 + second % 30)),
            ..Message::new(format!("{second}-{name}"))
        };
        scene.publish(&[message("a", 3_000), message("b", 10_000), message("c", 200_000)]);
        scene.run();
        come.extend(scene.advance(1_024));
        scene.ack_all();
        scene.run();
        if second % 150 == 149 {
            scene.restart();
            scene.consume(ALL);
        }
        if second == 300 {
            ids = scene.world.fold.next.topic.0;
        }
    }
    assert_eq!(scene.world.fold.next.topic.0, ids, "no more are needed after a while");
    assert!(ids < 150, "{ids} ids of topics");
    let once: BTreeSet<&String> = come.iter().collect();
    assert_eq!(once.len(), come.len(), "nothing comes twice");
    let is_due = |published: u64, ms: u64| published * 1_024 + ms <= 400 * 1_024;
    let due = (0..400).flat_map(|second| [3_000, 10_000, 200_000].map(|ms| is_due(second, ms)));
    assert_eq!(come.len(), due.filter(|is_due| *is_due).count());
}

/// A slot that is used again for what is due soon was read to its end first, of which there is nothing.
#[test]
fn what_comes_into_an_empty_slot_is_not_read() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(ALL);
    let now = scene.world.now;
    scene.publish(&[Message { deliver_at: after(now, 100_000), ..Message::new("far") }]);
    scene.run();
    assert_eq!(scene.advance(100_000), ["far"]);
    scene.run();
    scene.publish(&[Message { deliver_at: after(now, 101_000), ..Message::new("near") }]);
    scene.world.finish();
    let slots = scene.world.store.keys().filter(|topic| scene.world.is_slot(**topic));
    assert_eq!(slots.count(), 1, "it is the same one");
    scene.world.now = Timestamp(now.0 + 101_000);
    scene.world.finish();
    assert_eq!((scene.world.delivered.len(), scene.world.reads.len()), (1, 0));
}

/// What is empty is no news to anybody: slots that wait to be filled, and slots that are kept to be used again.
#[test]
fn slots_are_listed_and_shown_while_there_is_something_in_them() {
    let limits = Limits { scheduled_known_max: 1, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    scene.consume(ALL);
    let now = scene.world.now;
    let delayed = |name: &str, ms| Message { deliver_at: after(now, ms), ..Message::new(name.to_owned()) };
    for message in [delayed("near", 1_000), delayed("soon", 5_000), delayed("later", 500_000)] {
        scene.publish(&[message]);
        scene.run();
    }
    let soon = TopicId(2);
    assert_eq!(scene.listed(), [(1, 1), (2, 1), (3, 1)]);
    assert_eq!(scene.advance(1_000), ["near"]);
    assert_eq!(scene.listed(), [(2, 1), (3, 1)], "the one for what is due soon is empty and stays");
    let cancel = AdminCommand::CancelDelayed { topic: "t".into(), messages: vec![(soon, Offset(0))] };
    assert_eq!(scene.ask(cancel), Ok(Reply::Dropped { count: 1 }));
    assert_eq!(scene.listed(), [(3, 1)], "nothing is in it, and its time has not come");
    let show = |from| AdminCommand::BrowseSlot { slot: soon, from: Offset(from), messages_max: 10 };
    let shown = |answer| matches!(answer, Ok(Reply::Browsed { runs, .. }) if !runs.is_empty());
    assert!(scene.ask(show(0)).is_ok_and(|answer| !shown(Ok(answer))));
    scene.advance(10_000);
    assert_eq!(scene.ask(show(0)).unwrap_err().code, ErrorCode::Deleted, "it is over");
    // It is used again, and an old name is none of what is in it by then.
    let again = delayed("again", 600_000);
    scene.publish(&[again]);
    scene.run();
    assert_eq!(scene.listed(), [(3, 1), (2, 1)]);
    let cancel = AdminCommand::CancelDelayed { topic: "t".into(), messages: vec![(soon, Offset(0))] };
    assert_eq!(scene.ask(cancel), Ok(Reply::Dropped { count: 0 }));
    assert!(shown(scene.ask(show(1))));
}

/// What was due lay all over its slot, and was read when it was due: what was behind it waited for each read in turn.
#[test]
fn what_is_due_soon_is_read_before_its_time() {
    let limits = Limits { cache_bytes_max: 1 << 20, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    scene.consume(ALL);
    let now = scene.world.now;
    let messages: Vec<Message> = (0..500_u64)
        .map(|n| Message {
            deliver_at: after(now, 10_000 + n * 37 % 500),
            ..Message::new(vec![b'y'; n as usize % 200])
        })
        .collect();
    messages.chunks(50).for_each(|some| scene.publish(some));
    // They are not in memory any more when their time comes near.
    let filling: Vec<Message> = (0..80).map(|_| Message::new(vec![b'x'; 16_000])).collect();
    scene.publish(&filling);
    assert_eq!(scene.run().len(), 80);
    scene.ack_all();
    scene.advance(9_000);
    scene.world.finish();
    let (mut come, mut reads) = (0, 0);
    while scene.world.now < after(now, 10_500).unwrap() {
        let wakes = scene.world.broker.next_timeout().unwrap();
        scene.world.now = wakes.max(scene.world.now);
        scene.world.finish();
        let delivered = scene.world.delivered.len();
        come += delivered;
        let due = messages.iter().filter(|message| message.deliver_at <= Some(scene.world.now)).count();
        assert_eq!(come, due, "nothing that is due has to be read first");
        reads += scene.world.reads.len();
        scene.world.answer_all();
    }
    assert!((1..=50).contains(&reads), "what lies close together is read together: {reads}");
}

/// Where a message cannot be read for a while, it was asked for again and again without a pause.
#[test]
fn what_was_read_in_vain_is_not_read_again_at_once() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(ALL);
    let deliver_at = after(scene.world.now, 500);
    scene.publish(&[Message { deliver_at, ..Message::new("a") }]);
    scene.run();
    scene.restart();
    scene.consume(ALL);
    scene.world.finish();
    let read = scene.world.reads.pop().unwrap();
    scene.world.broker.loaded(scene.world.now, read, None, &mut scene.world.out);
    for _ in 0..3 {
        scene.world.finish();
        assert!(scene.world.reads.is_empty());
    }
    assert_eq!(scene.advance(500), ["a"]);
}

/// Those of priority 0 alone were counted for a topic, and notes of messages that expire counted as messages of the node.
#[test]
fn messages_are_counted_over_all_priorities_delayed_ones_apart_and_notes_never() {
    let mut scene = Scene::new(Limits::default(), at_once());
    let now = scene.world.now;
    let message = |priority, deliver_at, expires_at| Message {
        priority,
        deliver_at: after(now, deliver_at),
        expires_at: after(now, expires_at),
        ..Message::new("x")
    };
    scene.publish(&[
        message(0, 0, 1_000),
        message(9, 0, 2_000),
        message(5, 0, 3_000),
        message(9, 500, 90_000),
        message(0, 500_000, 1_000_000),
    ]);
    scene.run();
    for (ms, messages, delayed) in [(0, 3, 2), (500, 4, 1), (1_500, 2, 1), (499_000, 1, 0)] {
        scene.advance(ms);
        let request = scene.world.admin(0, AdminCommand::ListTopics { after: None });
        let replies = &scene.world.replies;
        let Ok(Reply::Topics { topics, .. }) = &replies.iter().find(|reply| reply.1 == request).unwrap().2
        else {
            panic!("topics are listed");
        };
        assert_eq!((topics[0].messages, topics[0].delayed), (messages, delayed), "after {ms} ms");
        let counts = scene.world.broker.counts();
        assert_eq!((counts.messages, counts.delayed), (messages, delayed), "after {ms} ms");
    }
}

/// Messages were moved into finer slots though there was no space for them.
#[test]
fn without_space_nothing_is_moved_or_fired_and_nothing_is_lost() {
    let limits = Limits { scheduled_known_max: 16, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    scene.consume(ALL);
    let now = scene.world.now;
    let delayed = |ms| Message { deliver_at: after(now, ms), ..Message::new("x") };
    scene.publish(&(0..100).map(|n| delayed(600_000 + n * 100)).collect::<Vec<_>>());
    scene.run();
    let delayed = scene.world.broker.counts().delayed;
    scene.world.broker.begin_cycle(100);
    scene.world.now = Timestamp(now.0 + 700_000);
    let mut appended = 0;
    for _ in 0..5 {
        scene.world.answer_all();
        scene.world.finish();
        appended += scene.world.delivered.len();
    }
    assert_eq!((appended, scene.world.broker.counts().delayed), (0, delayed));
    let wakes = scene.world.broker.next_timeout().unwrap();
    assert!(wakes.0 > scene.world.now.0 + 500, "it is not tried again and again");
    scene.world.broker.begin_cycle(u64::MAX);
    assert_eq!(scene.advance(1_000).len(), 100);
}

/// A group whose dead letters have no place left the notes of all others waiting.
#[test]
fn dead_letters_that_cannot_be_written_hold_up_nothing_else() {
    let settings = GroupSettings { dead_letter_expired: true, ..at_once() };
    let limits = Limits { topics_max: 1, ..Limits::default() };
    let mut scene = Scene::new(limits, settings);
    scene.consume(Window { messages: 0, bytes: 0 });
    let expires_at = after(scene.world.now, 100);
    let messages: Vec<Message> =
        (0..10_000).map(|n| Message { expires_at, ..Message::new(n.to_string()) }).collect();
    for some in messages.chunks(1_000) {
        scene.publish(some);
    }
    scene.run();
    scene.world.now = Timestamp(scene.world.now.0 + 100);
    for _ in 0..20 {
        scene.world.answer_all();
        scene.world.finish();
        scene.world.now = Timestamp(scene.world.now.0 + 10);
    }
    let wakes = scene.world.broker.next_timeout().unwrap();
    assert!(wakes.0 > scene.world.now.0 + 500, "it is not tried again and again");
    let retries = scene.world.broker.counts().retries;
    assert!((4_096..=4_096 + 1_000).contains(&retries), "no more die at a time than may: {retries}");
}

/// What expires beyond what may die at a time is looked at again, though nobody consumes.
#[test]
fn all_that_expires_at_once_is_dead_lettered() {
    const COUNT: usize = 10_000;
    let settings = GroupSettings { dead_letter_expired: true, ..at_once() };
    let mut scene = Scene::new(Limits::default(), settings);
    scene.consume(Window { messages: 0, bytes: 0 });
    let expires_at = after(scene.world.now, 100);
    let messages: Vec<Message> = (0..COUNT).map(|_| Message { expires_at, ..Message::new("x") }).collect();
    messages.chunks(1_000).for_each(|some| scene.publish(some));
    scene.run();
    for _ in 0..50 {
        scene.advance(20);
    }
    let dead = scene.world.find_topic(0, "t.dead-letter").unwrap();
    assert_eq!(scene.world.store[&dead].len(), COUNT);
    let notes = scene.world.store.iter().filter(|(topic, _)| scene.world.is_slot(**topic));
    assert_eq!(notes.map(|(_, stored)| stored.len()).sum::<usize>(), 0, "notes are left");
}

#[test]
fn many_messages_that_are_due_at_once_all_come_and_in_their_order() {
    const COUNT: usize = 6_000;
    for known in [100, 100_000] {
        let limits = Limits { scheduled_known_max: known, in_flight_max: 10_000, ..Limits::default() };
        let mut scene = Scene::new(limits, at_once());
        scene.consume(Window { messages: 10_000, bytes: u64::MAX });
        let deliver_at = after(scene.world.now, 200_000);
        let bodies: Vec<String> = (0..COUNT).map(|n| n.to_string()).collect();
        for some in bodies.chunks(500) {
            let messages: Vec<Message> =
                some.iter().map(|body| Message { deliver_at, ..Message::new(body.clone()) }).collect();
            scene.publish(&messages);
        }
        scene.run();
        assert_eq!(scene.advance(199_999), [""; 0]);
        let mut come = scene.advance(1);
        assert!(come.len() >= COUNT.min(known as usize));
        come.extend(scene.advance(50));
        assert!(come == bodies, "{known}: {} have come", come.len());
        let sequences =
            scene.world.store[&scene.topic].values().map(|stored| stored.origin.unwrap().sequence.0);
        assert!(sequences.eq(1..=COUNT as u64), "each is still known as what its producer has sent");
        assert!(scene.slots() <= 1);
    }
}

#[test]
fn no_time_is_too_far_or_too_long_ago() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(ALL);
    let message = |name: &str, deliver_at, expires_at| Message {
        deliver_at: Some(Timestamp(deliver_at)),
        expires_at: Some(Timestamp(expires_at)),
        ..Message::new(name.to_owned())
    };
    scene.publish(&[
        message("now", 0, u64::MAX),
        message("over", 0, 0),
        message("never", u64::MAX, u64::MAX),
        message("nor this", u64::MAX - 1, 5),
        message("in a year", scene.world.now.0 + 31_536_000_000, u64::MAX),
    ]);
    assert_eq!(scene.run(), ["now"]);
    scene.restart();
    scene.consume(ALL);
    assert_eq!(scene.run(), ["now"]);
    scene.ack_all();
    assert_eq!(scene.advance(31_535_999_999), [""; 0]);
    assert_eq!(scene.advance(1), ["in a year"]);
    assert!(scene.world.broker.next_timeout().is_none_or(|at| at > scene.world.now));
}

/// What a message has beside its body: priority, delay, time to live.
type Traits = (u8, u64, u64);

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<Traits>),
    Ack(Handle, u64, u64),
    Nack(Handle, u64, u64),
    Window(u32),
    Advance(u64),
    /// Time goes on while there is next to no space.
    Full(u64),
    Answer,
    Finish,
    Cancel(usize),
    /// The second group begins, or its consumer comes back.
    Join,
    Lost,
    Delete,
    Purge,
    Restart,
    /// The process ends in the middle of a cycle.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let delay =
        prop_oneof![3 => Just(0), 2 => 1_u64..5_000, 1 => 5_000_u64..200_000, 1 => 200_000_u64..9_000_000];
    let ttl = prop_oneof![3 => Just(0), 2 => 1_u64..5_000, 1 => 5_000_u64..9_000_000];
    let priority = prop_oneof![2 => Just(0_u8), 1 => 1_u8..=9];
    let time = || prop_oneof![1_u64..100, 100_u64..5_000, 5_000_u64..400_000];
    prop_oneof![
        12 => prop::collection::vec((priority, delay, ttl), 1..8).prop_map(Step::Publish),
        8 => (0..2_u32, 0_u64..30, 1_u64..20).prop_map(|(of, start, len)| Step::Ack(of, start, len)),
        3 => (0..2_u32, 0_u64..30, 1_u64..6).prop_map(|(of, start, len)| Step::Nack(of, start, len)),
        2 => (0_u32..10).prop_map(Step::Window),
        6 => time().prop_map(Step::Advance),
        1 => time().prop_map(Step::Full),
        6 => Just(Step::Answer),
        12 => Just(Step::Finish),
        2 => (0_usize..40).prop_map(Step::Cancel),
        2 => Just(Step::Join),
        2 => Just(Step::Lost),
        1 => Just(Step::Delete),
        1 => Just(Step::Purge),
        3 => Just(Step::Restart),
        3 => Just(Step::Crash),
    ]
}

/// What a run is checked with.
#[derive(Clone, Debug)]
struct Plan {
    known: u64,
    cache: u64,
    settled_ranges: u64,
    buried: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let known = prop_oneof![Just(1_u64), Just(4), Just(16), Just(100_000)];
    let cache = prop_oneof![Just(1_u64 << 10), Just(1 << 20)];
    let settled_ranges = prop_oneof![Just(4_u64), Just(100_000)];
    (known, cache, settled_ranges, any::<bool>()).prop_map(|(known, cache, settled_ranges, buried)| Plan {
        known,
        cache,
        settled_ranges,
        buried,
    })
}

/// A random run: two groups, of which the second begins later and has dead letters.
struct Run {
    scene: Scene,
    plan: Plan,
    published: BTreeMap<String, Promise>,
    count: usize,
    /// Published in this cycle.
    unfinished: Vec<String>,
    seen: BTreeSet<String>,
    joined: bool,
}

/// When a message is to come.
#[derive(Clone, Copy, Debug)]
struct Promise {
    may_expire: bool,
}

impl Run {
    fn new(plan: Plan) -> Self {
        let settings = GroupSettings {
            dead_letter_expired: plan.buried,
            lease_ms: 3_600_000,
            max_attempts: 0,
            ..at_once()
        };
        let limits = Limits {
            scheduled_known_max: plan.known,
            cache_bytes_max: plan.cache,
            settled_ranges_max: plan.settled_ranges,
            pinned_bytes_max: 64,
            ..Limits::default()
        };
        let mut scene = Scene::new(limits, settings);
        scene.consume(ALL);
        scene.run();
        Self {
            scene,
            plan,
            published: BTreeMap::new(),
            count: 0,
            unfinished: Vec::new(),
            seen: BTreeSet::new(),
            joined: false,
        }
    }

    fn finish(&mut self) {
        self.scene.world.finish();
        self.unfinished.clear();
        self.seen.extend(self.scene.delivered().into_iter().map(|(_, _, body)| body));
        self.check_places();
    }

    /// No message is in two places, and none that is to come is in none before somebody has had it.
    fn check_places(&self) {
        let world = &self.scene.world;
        let mut places = BTreeSet::new();
        for (topic, stored) in &world.store {
            let state = &world.fold.topics[topic];
            let is_note = matches!(state.kind, TopicKind::Slot { waiting: Waiting::Expiring, .. });
            if is_note || state.name.as_str() != "t" {
                continue;
            }
            for stored in stored.values() {
                let body = String::from_utf8(stored.message.body.to_vec()).unwrap();
                assert!(places.insert(body.clone()), "{body} is in two places");
            }
        }
        for (body, promise) in &self.published {
            let gone = self.seen.contains(body) || promise.may_expire;
            assert!(gone || places.contains(body), "{body} is lost");
        }
    }

    /// Works until nothing is left to be done now, which must come to an end. Nothing that is due waits then.
    fn settle_down(&mut self) {
        for round in 0.. {
            assert!(round < 500, "it never rests");
            self.scene.world.answer_all();
            self.finish();
            let world = &self.scene.world;
            let due = world.broker.next_timeout().is_some_and(|at| at <= world.now);
            if world.reads.is_empty() && !due {
                break;
            }
        }
        self.scene.world.note_spares();
        let world = &self.scene.world;
        let late_max = if self.plan.known == 100_000 { 0 } else { 1 << 10 };
        for (topic, stored) in world.store.iter().filter(|(topic, _)| world.is_slot(**topic)) {
            for (offset, stored) in stored {
                let due = stored.message.deliver_at.unwrap();
                assert!(due.0 + late_max > world.now.0, "{topic}:{offset} is late: {due}");
            }
        }
    }

    fn join(&mut self) {
        let settings = GroupSettings { max_attempts: 2, priority_share: 2, ..self.scene.settings.clone() };
        let world = &mut self.scene.world;
        self.joined |= world.subscribe(0, 1, "t", "h", ALL, Some(settings)).is_some();
    }

    fn come_back(&mut self) {
        self.scene.world.begin(0);
        self.scene.world.open(0, 0, "p");
        self.scene.consume(ALL);
        if self.joined {
            self.join();
        }
    }

    fn publish(&mut self, traits: Vec<Traits>) {
        let now = self.scene.world.now;
        let mut messages = Vec::new();
        for (priority, delay, ttl) in traits {
            let body = format!("m{}", self.count);
            self.count += 1;
            let deliver_at = (delay > 0).then(|| Timestamp(now.0 + delay));
            let expires_at = (ttl > 0).then(|| Timestamp(now.0 + ttl));
            self.published.insert(body.clone(), Promise { may_expire: ttl > 0 });
            self.unfinished.push(body.clone());
            messages.push(Message { priority, deliver_at, expires_at, ..Message::new(body) });
        }
        self.scene.publish(&messages);
    }

    fn settle(&mut self, handle: Handle, settlement: &Settlement, range: OffsetRange) {
        let world = &mut self.scene.world;
        let client = world.clients.get(&SessionId(0));
        let Some(&group) = client.and_then(|client| client.consumers.get(&handle)) else { return };
        for topic in world.topics_now() {
            if world.part(group, topic).is_some() {
                world.settle_in(0, handle, topic, settlement.clone(), vec![range]);
            }
        }
    }

    fn cancel(&mut self, index: usize) {
        let world = &self.scene.world;
        let delayed = world.store.iter().filter(|(topic, _)| {
            let kind = world.fold.topics[topic].kind;
            matches!(kind, TopicKind::Slot { waiting: Waiting::Delayed, .. })
        });
        let mut places = delayed.flat_map(|(topic, stored)| stored.iter().map(move |at| (*topic, at)));
        let Some((slot, (&offset, stored))) = places.nth(index) else { return };
        self.published.remove(std::str::from_utf8(&stored.message.body).unwrap());
        let messages = vec![(slot, Offset(offset)); 2];
        let cancel = AdminCommand::CancelDelayed { topic: "t".into(), messages };
        let request = self.scene.world.admin(0, cancel);
        let replies = &self.scene.world.replies;
        let answer = &replies.iter().rev().find(|reply| reply.1 == request).unwrap().2;
        assert_eq!(*answer, Ok(Reply::Dropped { count: 1 }));
        self.finish();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish(traits) => self.publish(traits),
            Step::Ack(handle, start, len) => {
                self.settle(handle, &Settlement::Ack, OffsetRange::new(start, start + len));
            }
            Step::Nack(handle, start, len) => {
                let nack = Settlement::Nack { delay_ms: Some(50), reason: None };
                self.settle(handle, &nack, OffsetRange::new(start, start + len));
            }
            Step::Window(messages) => self.scene.world.flow(0, 0, Window { messages, bytes: u64::MAX }),
            Step::Advance(ms) => {
                self.settle_down();
                self.scene.world.now.0 += ms;
                self.settle_down();
            }
            Step::Full(ms) => {
                self.finish();
                self.scene.world.broker.begin_cycle(150);
                self.scene.world.now.0 += ms;
                for _ in 0..3 {
                    self.scene.world.answer_all();
                    self.finish();
                }
                self.scene.world.broker.begin_cycle(u64::MAX);
                self.scene.world.now.0 += 1_000;
                self.settle_down();
            }
            Step::Answer if !self.scene.world.reads.is_empty() => self.scene.world.answer(0),
            Step::Answer => {}
            Step::Finish => self.finish(),
            Step::Cancel(index) => {
                self.finish();
                self.cancel(index);
            }
            Step::Join => self.join(),
            Step::Lost => {
                self.scene.world.end(0, Ending::Lost);
                self.finish();
                self.come_back();
            }
            Step::Delete => {
                self.finish();
                self.published.clear();
                self.scene.world.admin(0, AdminCommand::DeleteTopic { name: "t".into() });
                self.joined = false;
                self.scene.topic = self.scene.world.find_topic(0, "t").unwrap();
                self.scene.consume(ALL);
                self.finish();
            }
            Step::Purge => {
                self.finish();
                self.published.clear();
                self.scene.world.purged.insert(self.scene.topic);
                self.scene.world.admin(0, AdminCommand::PurgeTopic { name: "t".into() });
                self.finish();
            }
            Step::Restart => {
                self.scene.world.answer_all();
                self.finish();
                self.restart();
            }
            Step::Crash => self.restart(),
        }
    }

    fn restart(&mut self) {
        self.published.retain(|body, _| !self.unfinished.contains(body));
        self.unfinished.clear();
        self.scene.world.restart();
        self.come_back();
        let producer = self.scene.world.clients[&SessionId(0)].producers[&0];
        self.scene.next = self.scene.world.last_of(producer).unwrap().next().0;
    }

    /// In the end all that has not expired has been delivered, and nothing waits any more.
    fn end(mut self) {
        self.scene.world.flow(0, 0, ALL);
        for _ in 0..300 {
            self.settle_down();
            let all = OffsetRange::new(0, u64::MAX);
            (0..2).for_each(|handle| self.settle(handle, &Settlement::Ack, all));
            self.settle_down();
            let Some(next) = self.scene.world.broker.next_timeout() else { break };
            self.scene.world.now = Timestamp(next.0.max(self.scene.world.now.0 + 1));
        }
        let world = &self.scene.world;
        for (topic, stored) in &world.store {
            assert!(!world.is_slot(*topic) || stored.is_empty(), "left in slot {topic}");
        }
        assert!(self.scene.slots() <= 2, "slots are left");
        for (body, promise) in &self.published {
            assert!(self.seen.contains(body) || promise.may_expire, "{body} was never delivered");
        }
        let waiting = world.fold.groups.values().filter(|group| {
            let topic = &world.fold.topics[&group.topic];
            topic.name.as_str() == "t" && group.floor < topic.end
        });
        assert_eq!(waiting.count(), 0, "left in the topic");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_waits_for_a_time_comes_when_it_is_due_and_not_when_it_is_over(
        steps in prop::collection::vec(step(), 1..80),
        plan in plan(),
    ) {
        let mut run = Run::new(plan);
        steps.into_iter().for_each(|step| run.step(step));
        run.end();
    }
}

/// What waits of each priority, and whose turn it is, as it is promised.
#[derive(Default)]
struct Turns {
    waiting: BTreeMap<u8, VecDeque<String>>,
    /// Messages of the highest priority in a row while lower ones wait.
    in_a_row: u32,
    /// Messages of other lower priorities since this one had one, while it waits.
    passed_over: BTreeMap<u8, u32>,
}

impl Turns {
    fn come(&mut self, body: &str, share: u32) {
        let highest = *self.waiting.last_key_value().expect("something waits").0;
        let lower_wait = self.waiting.len() > 1;
        let (&priority, queue) = self
            .waiting
            .iter_mut()
            .find(|(_, queue)| queue[0] == body)
            .expect("it is the next of its priority");
        queue.pop_front();
        if priority < highest {
            assert!(self.in_a_row + 1 >= share, "{priority} before {highest}, out of turn");
            self.in_a_row = 0;
            for other in self.waiting.keys().filter(|other| **other < highest && **other != priority) {
                let passed_over = self.passed_over.entry(*other).or_default();
                *passed_over += 1;
                // There are eight other lower priorities, and each may have come anew since.
                assert!(*passed_over <= 8, "{other} starves");
            }
        } else if lower_wait {
            self.in_a_row += 1;
            assert!(self.in_a_row < share, "what is lower than {highest} starves");
        } else {
            self.in_a_row = 0;
        }
        self.passed_over.remove(&priority);
        self.waiting.retain(|_, queue| !queue.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_highest_priority_comes_first_but_for_the_share_of_the_lower_ones(
        steps in prop::collection::vec((prop::collection::vec(0_u8..=9, 0..40), 0_u32..30), 1..12),
        share in 2_u32..12,
        policy in prop_oneof![Just(Policy::RoundRobin), Just(Policy::Fair), Just(Policy::Exclusive)],
    ) {
        let settings = GroupSettings { priority_share: share, policy, ..at_once() };
        let mut scene = Scene::new(Limits::default(), settings);
        scene.consume(Window { messages: 0, bytes: 0 });
        let (mut turns, mut count) = (Turns::default(), 0);
        for (priorities, taken) in steps.into_iter().chain([(Vec::new(), 1_000)]) {
            let messages: Vec<Message> = priorities
                .into_iter()
                .map(|priority| {
                    count += 1;
                    turns.waiting.entry(priority).or_default().push_back(count.to_string());
                    Message { priority, ..Message::new(count.to_string()) }
                })
                .collect();
            if !messages.is_empty() {
                scene.publish(&messages);
                scene.run();
            }
            scene.world.flow(0, 0, Window { messages: taken, bytes: u64::MAX });
            scene.run().iter().for_each(|body| turns.come(body, share));
            scene.world.flow(0, 0, Window { messages: 0, bytes: 0 });
            scene.ack_all();
            prop_assert!(scene.run().is_empty());
        }
        prop_assert!(turns.waiting.is_empty());
    }
}
