//! Why a message is, or is not, being delivered, and what there is to know of a topic: each answer in its situation.
//! That the answers are true whatever happens is checked by `broker_properties`, by the same model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{Offset, OffsetRange, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::position::Position;
use batonmq::model::settings::{Backoff, GroupSettings, Policy, Retention, TopicSettings};
use batonmq::model::time::Timestamp;
use batonmq::protocol::request::{AdminCommand, Settlement, Window};
use batonmq::protocol::response::{Activity, MessageState, Reply, TopicDescription};
use broker_world::World;

fn few(messages: u32) -> Window {
    Window { messages, bytes: u64::MAX }
}

fn range(start: u64, end: u64) -> Vec<OffsetRange> {
    vec![OffsetRange::new(start, end)]
}

/// A topic `t` with a producer, and a group `g` of it that has one consumer, of session 1, with this window.
fn world(settings: GroupSettings, window: Window, limits: Limits) -> (World, TopicId) {
    let mut world = World::new(limits, AutoCreate::Allowed);
    world.begin(0);
    world.begin(1);
    world.open(0, 0, "p");
    let topic = world.find_topic(0, "t").unwrap();
    world.subscribe(1, 0, "t", "g", window, Some(settings));
    world.finish();
    (world, topic)
}

fn simple(window: Window) -> (World, TopicId) {
    world(GroupSettings::default(), window, Limits::default())
}

fn publish(world: &mut World, topic: TopicId, messages: &[Message]) {
    let last = world.last_of(world.owners.keys().next().copied().unwrap()).unwrap();
    world.publish_messages(0, 0, last.0 + 1, vec![(topic, messages.len() as u32)], messages);
    world.finish();
}

fn bodies(count: u64) -> Vec<Message> {
    (0..count).map(|index| Message::new(format!("m{index}"))).collect()
}

fn keyed(keys: &[&'static str]) -> Vec<Message> {
    keys.iter().map(|key| Message { key: Some((*key).into()), ..Message::new(*key) }).collect()
}

/// What is said of a message of priority 0, in a word, and where it stands in a sentence.
fn explained(world: &mut World, offset: u64) -> (MessageState, String) {
    let explanation = world.explain("t", "g", offset).unwrap();
    (explanation.state, explanation.text)
}

fn set_group(world: &mut World, change: impl FnOnce(&mut GroupSettings)) {
    let group = *world.groups_now().first().unwrap();
    let mut settings = world.settings(group);
    change(&mut settings);
    world.admin(0, AdminCommand::ChangeGroup { topic: "t".into(), name: "g".into(), settings });
    world.finish();
}

fn describe(world: &mut World) -> TopicDescription {
    let request = world.admin(0, AdminCommand::DescribeTopic { topic: "t".into() });
    let reply = world.replies.iter().find(|reply| reply.1 == request).unwrap();
    match reply.2.clone().unwrap() {
        Reply::Description(description) => *description,
        other => panic!("no description: {other:?}"),
    }
}

#[test]
fn from_its_publish_to_its_end_a_message_is_explained() {
    let (mut world, topic) = simple(few(1));
    assert_eq!(
        explained(&mut world, 0),
        (MessageState::NotPublished, "there is no such message yet: the next one gets offset 0".into())
    );
    publish(&mut world, topic, &bodies(3));
    let (state, text) = explained(&mut world, 0);
    assert_eq!(state, MessageState::InFlight);
    assert!(
        text.contains(" has it since 1970-01-01T00:16:40.000Z; its lease ends at 1970-01-01T00:17:10.000Z"),
        "{text}"
    );
    assert_eq!(explained(&mut world, 1).0, MessageState::NoCredit);
    world.settle(1, 0, Settlement::Ack, range(0, 1));
    world.finish();
    let (state, text) = explained(&mut world, 0);
    assert_eq!((state, text.as_str()), (MessageState::Settled, "it is settled: the group is done with it"));
    assert_eq!(explained(&mut world, 1).0, MessageState::InFlight);
    world.end(1, Ending::Closed);
    world.finish();
    let (state, text) = explained(&mut world, 2);
    assert_eq!((state, text.as_str()), (MessageState::NoCredit, "no consumer of the group is connected"));
    world.purged.insert(topic);
    world.admin(0, AdminCommand::PurgeTopic { name: "t".into() });
    world.finish();
    assert_eq!(explained(&mut world, 2).0, MessageState::Gone);
}

#[test]
fn a_lease_that_is_extended_keeps_since_when_the_message_is_in_flight() {
    let (mut world, topic) = simple(few(5));
    publish(&mut world, topic, &bodies(2));
    world.now.0 += 7_000;
    world.settle(1, 0, Settlement::Extend, vec![OffsetRange::new(0, 1), OffsetRange::new(0, 1)]);
    world.finish();
    let (_, text) = explained(&mut world, 0);
    assert!(
        text.ends_with("since 1970-01-01T00:16:40.000Z; its lease ends at 1970-01-01T00:17:17.000Z"),
        "{text}"
    );
    let (_, text) = explained(&mut world, 1);
    assert!(
        text.ends_with("since 1970-01-01T00:16:40.000Z; its lease ends at 1970-01-01T00:17:10.000Z"),
        "{text}"
    );
}

#[test]
fn what_waits_for_another_attempt_says_until_when_and_what_was_wrong() {
    let (mut world, topic) = simple(few(5));
    publish(&mut world, topic, &bodies(1));
    let nack = Settlement::Nack { delay_ms: Some(5_000), reason: Some("no stock".into()) };
    world.settle(1, 0, nack, range(0, 1));
    world.finish();
    let (state, text) = explained(&mut world, 0);
    assert_eq!(state, MessageState::Delayed);
    let expected = "it waits for its next attempt, which is due at 1970-01-01T00:16:45.000Z: handed out 1 times, \
                    failed 1, the last time nacked (no stock) at 1970-01-01T00:16:40.000Z";
    assert_eq!(text, expected);
    world.restart();
    world.begin(1);
    let (state, text) = explained(&mut world, 0);
    assert_eq!((state, text.as_str()), (MessageState::Delayed, expected), "after a takeover too");
}

#[test]
fn what_pauses_it_is_named() {
    let (mut world, topic) = simple(few(0));
    publish(&mut world, topic, &bodies(1));
    set_group(&mut world, |settings| settings.paused = true);
    let (state, text) = explained(&mut world, 0);
    assert_eq!((state, text.contains("baton group resume")), (MessageState::Paused, true), "{text}");
    let settings = TopicSettings { paused: true, ..TopicSettings::default() };
    world.admin(0, AdminCommand::ChangeTopic { name: "t".into(), settings });
    world.finish();
    let (state, text) = explained(&mut world, 0);
    assert_eq!((state, text.contains("the topic t is paused")), (MessageState::Paused, true), "{text}");
}

/// A group of a pattern that was paused said that its message was the next to be handed out.
#[test]
fn what_pauses_a_pattern_is_named() {
    let (mut world, topic) = simple(few(0));
    world.subscribe(1, 1, "*", "of-all", few(5), None);
    let settings = TopicSettings { paused: true, ..TopicSettings::default() };
    world.admin(0, AdminCommand::ChangeTopic { name: "*".into(), settings });
    publish(&mut world, topic, &bodies(1));
    let explanation = world.explain("t", "of-all", 0).unwrap();
    assert_eq!(explanation.state, MessageState::Paused);
    assert!(explanation.text.contains("the topic * is paused"), "{}", explanation.text);
}

#[test]
fn what_the_filter_does_not_match_is_filtered_though_it_is_settled() {
    let settings = GroupSettings { filter: Some("color = 'red'".into()), ..GroupSettings::default() };
    let (mut world, topic) = world(settings, few(5), Limits { cache_bytes_max: 0, ..Limits::default() });
    world.filters.insert("color = 'red'".into(), |message| {
        message.header("color").is_some_and(|color| color == "red")
    });
    let of_color = |color: &str| Message {
        headers: vec![("color".to_owned(), color.to_owned().into())],
        ..Message::new("m")
    };
    publish(&mut world, topic, &[of_color("blue"), of_color("red"), of_color("blue")]);
    let filtered =
        (MessageState::Filtered, "the filter of the group does not match it: color = 'red'".to_owned());
    for offset in [0, 2] {
        let explanation = world.explain("t", "g", offset).unwrap();
        assert_eq!((explanation.state, explanation.text), filtered.clone());
    }
    assert_eq!(explained(&mut world, 1).0, MessageState::InFlight);
}

#[test]
fn what_has_expired_says_when() {
    let (mut world, topic) = simple(few(0));
    let at = Timestamp(world.now.0 + 1_000);
    publish(&mut world, topic, &[Message { expires_at: Some(at), ..Message::new("m") }]);
    assert_eq!(explained(&mut world, 0).0, MessageState::NoCredit);
    set_group(&mut world, |settings| settings.paused = true);
    world.now = at;
    let explanation = world.explain("t", "g", 0).unwrap();
    assert_eq!(explanation.state, MessageState::Gone, "nobody is to have it");
}

/// What had expired before anybody got it was said to be done with.
#[test]
fn what_has_expired_in_a_topic_that_keeps_it_is_not_called_done() {
    let (mut world, _) = simple(few(2));
    let retention = Retention { acked: false, ..Retention::default() };
    let kept = TopicSettings { retention, ..TopicSettings::default() };
    world.admin(1, AdminCommand::ChangeTopic { name: "t".into(), settings: kept });
    world.finish();
    let topic = world.topic_named("t").unwrap();
    let at = Timestamp(world.now.0 + 1_000);
    let expiring = Message { expires_at: Some(at), ..Message::new("m") };
    set_group(&mut world, |settings| settings.paused = true);
    publish(&mut world, topic, &[expiring, Message::new("stays")]);
    world.now = at;
    set_group(&mut world, |settings| settings.paused = false);
    world.finish();
    let (state, text) = explained(&mut world, 0);
    assert_eq!(state, MessageState::Settled);
    assert!(text.ends_with(&format!("before it expired at {at}, or it expired first")), "{text}");
    assert_eq!(explained(&mut world, 1).0, MessageState::InFlight);
}

#[test]
fn behind_a_key_the_message_that_comes_first_is_named() {
    let settings = GroupSettings { policy: Policy::Key, ..GroupSettings::default() };
    let (mut world, topic) = world(settings, few(2), Limits::default());
    publish(&mut world, topic, &keyed(&["a", "a", "b", "c", "c"]));
    let (state, text) = explained(&mut world, 1);
    assert_eq!(
        (state, text.as_str()),
        (MessageState::BehindKey, "message 0 with the same key comes first, and is not settled")
    );
    assert_eq!(explained(&mut world, 3).0, MessageState::NoCredit);
}

#[test]
fn the_consumer_of_a_key_that_can_take_no_more_is_named() {
    let settings = GroupSettings { policy: Policy::Key, ..GroupSettings::default() };
    let (mut world, topic) = world(settings, few(1), Limits::default());
    world.subscribe(1, 1, "t", "g", few(100), None);
    publish(&mut world, topic, &keyed(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]));
    let explained: Vec<_> = (0..10).map(|offset| explained(&mut world, offset)).collect();
    let of_first = (
        MessageState::NoCredit,
        "consumer 0 of connection 1, to which its key goes, can take no more".to_owned(),
    );
    let waiting = explained.iter().filter(|explanation| **explanation == of_first).count();
    let in_flight = explained.iter().filter(|(state, _)| *state == MessageState::InFlight).count();
    assert_eq!(waiting + in_flight, 10, "{explained:?}");
    assert!(waiting > 0, "{explained:?}");
}

#[test]
fn behind_a_retry_of_an_exclusive_group_the_message_that_comes_first_is_named() {
    let backoff =
        Backoff { initial_ms: 1_000, multiplier_percent: 100, maximum_ms: 1_000, jitter_percent: 0 };
    let settings = GroupSettings { policy: Policy::Exclusive, backoff, ..GroupSettings::default() };
    let (mut world, topic) = world(settings, few(1), Limits::default());
    publish(&mut world, topic, &bodies(3));
    world.settle(1, 0, Settlement::Nack { delay_ms: None, reason: None }, range(0, 1));
    world.finish();
    let (state, text) = explained(&mut world, 2);
    assert_eq!(state, MessageState::Waiting);
    assert_eq!(text, "message 0 waits for another attempt, and an exclusive group keeps the order");
}

#[test]
fn a_limit_that_is_reached_is_named() {
    let limits = Limits { in_flight_max: 2, ..Limits::default() };
    let (mut world, topic) = world(GroupSettings::default(), few(10), limits);
    publish(&mut world, topic, &bodies(3));
    let (state, text) = explained(&mut world, 2);
    assert_eq!(state, MessageState::Limited);
    assert_eq!(text, "the group has 2 messages in flight, the limit in_flight_max");
}

#[test]
fn a_message_of_a_priority_is_named_by_it() {
    let (mut world, topic) = simple(few(1));
    let urgent = Message { priority: 9, ..Message::new("urgent") };
    publish(&mut world, topic, &[Message::new("m"), urgent.clone(), urgent]);
    let position = |priority, offset| Position { priority, offset: Offset(offset) };
    let mut ask = |position| {
        let asked = AdminCommand::Explain { topic: "t".into(), position, group: "g".into() };
        let request = world.admin(0, asked);
        let reply = world.replies.iter().find(|reply| reply.1 == request).unwrap();
        match reply.2.clone().unwrap() {
            Reply::Explanation(explanation) => (explanation.state, explanation.text),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(position(9, 0)).0, MessageState::InFlight);
    assert_eq!(ask(position(9, 1)).0, MessageState::NoCredit);
    let (state, text) = ask(position(4, 0));
    assert_eq!(
        (state, text.as_str()),
        (MessageState::NotPublished, "no message of priority 4 was ever published to the topic")
    );
}

#[test]
fn a_delayed_message_that_has_no_offset_yet_is_hinted_at() {
    let (mut world, topic) = simple(few(1));
    let deliver_at = Some(Timestamp(world.now.0 + 60_000));
    publish(&mut world, topic, &[Message { deliver_at, ..Message::new("later") }]);
    let (state, text) = explained(&mut world, 0);
    assert_eq!(state, MessageState::NotPublished);
    assert!(
        text.ends_with("; 1 messages of the topic wait for their time, and get an offset then"),
        "{text}"
    );
}

#[test]
fn a_description_tells_depth_rates_lag_and_who_has_what() {
    let (mut world, topic) = simple(few(2));
    let urgent = Message { priority: 9, ..Message::new("urgent") };
    publish(&mut world, topic, &[bodies(4), vec![urgent]].concat());
    world.now.0 += 3_000;
    world.settle(1, 0, Settlement::Ack, range(0, 1));
    world.finish();
    let described = describe(&mut world);
    assert_eq!(described.lanes, [(9, 1)]);
    assert_eq!(described.topic.delayed, 0);
    assert_eq!(described.oldest_age_ms, Some(3_000));
    let [group] = &described.groups[..] else { panic!("one group: {described:?}") };
    assert_eq!(group.lag_ms, Some(3_000));
    let [consumer] = &group.consumers[..] else { panic!("one consumer: {group:?}") };
    assert_eq!((consumer.connection, consumer.consumer, consumer.in_flight), (1, 0, 2));
    assert_eq!(consumer.last_ack_at, Some(world.now));
    // Rates are those of the last ten seconds that are over.
    world.now = Timestamp(1_010_000);
    world.finish();
    let described = describe(&mut world);
    assert_eq!(described.published_per_kilosecond, 500);
    assert_eq!(described.groups[0].acked_per_kilosecond, 100);
    assert_eq!(described.groups[0].delivered_per_kilosecond, 300);
}

#[test]
fn a_description_tells_who_of_an_exclusive_group_is_active() {
    let settings = GroupSettings { policy: Policy::Exclusive, ..GroupSettings::default() };
    let (mut world, _) = world(settings, few(1), Limits::default());
    world.subscribe(1, 1, "t", "g", few(1), None);
    world.finish();
    let described = describe(&mut world);
    let activities: Vec<_> = described.groups[0].consumers.iter().map(|consumer| consumer.activity).collect();
    assert_eq!(activities, [Some(Activity::Active), Some(Activity::Waiting)]);
}
