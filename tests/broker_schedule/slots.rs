//! What waits for a time lies in slots, and takes space.

use std::collections::BTreeSet;

use batonmq::model::id::{Offset, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::time::Timestamp;
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::AdminCommand;
use batonmq::protocol::response::Reply;

use crate::scene::{ALL, Scene, after, at_once};

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

/// Two topics fire in one cycle; what the first one takes of the space the second one does not have.
#[test]
fn what_is_fired_takes_of_the_space_that_there_is() {
    let mut scene = Scene::new(Limits::default(), at_once());
    let other = scene.world.find_topic(0, "u").unwrap();
    let deliver_at = after(scene.world.now, 500);
    let message = Message { deliver_at, ..Message::new(vec![b'x'; 10_000]) };
    scene.publish(std::slice::from_ref(&message));
    scene.world.publish_messages(0, 0, scene.next, vec![(other, 1)], &[message]);
    scene.run();
    let counts = |scene: &Scene| (scene.world.broker.counts().messages, scene.world.broker.counts().delayed);
    assert_eq!(counts(&scene), (0, 2));
    scene.world.now = after(scene.world.now, 600).unwrap();
    scene.world.broker.begin_cycle(15_000);
    scene.world.finish();
    assert_eq!(counts(&scene), (1, 1), "there is space for one");
    scene.world.broker.begin_cycle(u64::MAX);
    scene.advance(1_000);
    assert_eq!(counts(&scene), (2, 0));
}

/// Of a slot that is moved into finer ones no more goes than there is space for.
#[test]
fn what_is_moved_takes_of_the_space_that_there_is() {
    let limits = Limits { scheduled_known_max: 16, ..Limits::default() };
    let mut scene = Scene::new(limits, at_once());
    let now = scene.world.now;
    // More than are known one by one, in one slot that is as wide as they are far away.
    let delayed =
        |n: u64| Message { deliver_at: after(now, 7_200_000 + n), ..Message::new(vec![b'x'; 1_000]) };
    scene.publish(&(0..40).map(delayed).collect::<Vec<_>>());
    scene.run();
    let [(slot, 40)] = scene.listed()[..] else { panic!("one slot: {:?}", scene.listed()) };
    scene.world.now = after(now, 7_100_000).unwrap();
    let left = |scene: &Scene| scene.world.store.get(&TopicId(slot)).map_or(0, |stored| stored.len());
    for _ in 0..3 {
        scene.world.broker.begin_cycle(5_000);
        scene.world.answer_all();
        let before = left(&scene);
        scene.world.finish();
        let moved = before - left(&scene);
        assert!(moved <= 4, "there is space for four: {moved}");
    }
    scene.world.broker.begin_cycle(u64::MAX);
    scene.advance(1_000);
    assert_eq!((left(&scene), scene.world.broker.counts().delayed), (0, 40));
}
