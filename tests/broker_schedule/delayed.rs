//! Messages with a time to be delivered at.

use batonmq::model::id::{Offset, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::time::Timestamp;
use batonmq::protocol::request::{AdminCommand, Window};
use batonmq::protocol::response::Reply;

use crate::scene::{ALL, Scene, after, at_once};

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
