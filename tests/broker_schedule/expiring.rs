//! Messages with a time at which they expire.

use std::collections::BTreeMap;

use batonmq::model::id::{GroupId, Offset, OffsetRange};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::GroupSettings;
use batonmq::model::time::Timestamp;
use batonmq::protocol::request::{Settlement, Window};

use crate::scene::{ALL, Scene, after, at_once};

#[test]
fn expired_messages_go_wherever_they_stand_without_a_consumer_too() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(Window { messages: 0, bytes: 0 });
    let now = scene.world.now;
    let expiring = |name: &str, ms| Message { expires_at: after(now, ms), ..Message::new(name.to_owned()) };
    scene.publish(&[Message::new("a"), expiring("b", 1_000), Message::new("c"), expiring("d", 100_000)]);
    scene.run();
    scene.advance(1_000);
    let group = &scene.world.fold.groups[&GroupId(0)];
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
    let group = &scene.world.fold.groups[&GroupId(0)];
    let gaps = group.settled.range_count() as u64;
    assert!((1..=GAPS_MAX).contains(&gaps), "{gaps} gaps");
    scene.world.flow(0, 0, ALL);
    assert!(scene.run().into_iter().eq((0..20).map(|n| n.to_string())));
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
