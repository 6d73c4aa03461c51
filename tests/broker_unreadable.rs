//! What becomes of messages that the store cannot read, and of the others: who needs one waits for it, and nobody else.
//! The random tests of the broker damage and mend messages too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use batonmq::broker::AutoCreate;
use batonmq::model::id::{Offset, OffsetRange, SessionId, TopicId};
use batonmq::model::limits::{LAST_VALUE_TOMBSTONE_MS, Limits, UNREADABLE_RANGES_MAX};
use batonmq::model::message::Message;
use batonmq::model::settings::{Backoff, GroupSettings, Policy, Retention, Start, TopicSettings};
use batonmq::model::time::Timestamp;
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::{AdminCommand, ReplayTo, RequestId, Settlement, Window};
use batonmq::protocol::response::{MessageState, Reply};
use broker_world::{World, browse};

const ALL: Window = Window { messages: 10_000, bytes: u64::MAX };

/// The longest wait until something is asked for again.
const LONGEST_MS: u64 = 64_000;

/// A world with topic `t`, so many messages in it, and no memory for them.
fn world(count: u32) -> (World, TopicId) {
    world_with(0, count)
}

fn world_with(cache_bytes_max: u64, count: u32) -> (World, TopicId) {
    let limits = Limits { cache_bytes_max, in_flight_max: 100_000, ..Limits::default() };
    let mut world = World::new(limits, AutoCreate::Allowed);
    world.begin(0);
    world.open(0, 0, "p");
    let topic = world.find_topic(0, "t").unwrap();
    world.finish();
    if count > 0 {
        publish(&mut world, topic, (0..count).map(|at| Message::new(format!("m{at}"))).collect());
    }
    (world, topic)
}

/// A world with a topic that keeps last values.
fn world_of_last_values() -> (World, TopicId) {
    let (mut world, _) = world(0);
    let retention = Retention { acked: false, ..Retention::default() };
    let settings = TopicSettings { retention, last_value: true, ..TopicSettings::default() };
    world.admin(0, AdminCommand::CreateTopic { name: "values".into(), settings });
    let topic = world.find_topic(0, "values").unwrap();
    (world, topic)
}

fn publish(world: &mut World, topic: TopicId, messages: Vec<Message>) {
    let last = world.last_of(world.clients[&SessionId(0)].producers[&0]).unwrap().0;
    world.publish_messages(0, 0, last + 1, vec![(topic, messages.len() as u32)], &messages);
    world.finish();
}

/// Ends cycles until nothing is left to be done now. Answers the offsets that were delivered.
fn run(world: &mut World) -> Vec<u64> {
    let mut offsets = Vec::new();
    for _ in 0..10_000 {
        world.answer_all();
        world.finish();
        offsets.extend(world.delivered.iter().map(|delivery| delivery.3));
        let due = world.broker.next_timeout().is_some_and(|at| at <= world.now);
        if world.reads.is_empty() && !due {
            return offsets;
        }
    }
    panic!("it never rests");
}

fn advance(world: &mut World, ms: u64) -> Vec<u64> {
    world.now = Timestamp(world.now.0 + ms);
    run(world)
}

fn consume(world: &mut World, handle: u32, group: &str, policy: Policy) {
    let backoff = Backoff { initial_ms: 10, multiplier_percent: 100, maximum_ms: 10, jitter_percent: 0 };
    let settings = GroupSettings { policy, backoff, lease_ms: 10_000_000, ..GroupSettings::default() };
    world.subscribe(0, handle, "t", group, ALL, Some(settings)).unwrap();
}

fn damage(world: &mut World, topic: TopicId, offsets: impl IntoIterator<Item = u64>) {
    world.unread.extend(offsets.into_iter().map(|offset| (topic, offset)));
    world.was_unread.extend(&world.unread);
}

fn answer(world: &World, request: RequestId) -> Result<Reply, batonmq::protocol::error::Refusal> {
    world.replies.iter().find(|reply| reply.1 == request).expect("an answer").2.clone()
}

fn explained(world: &mut World, group: &str, offset: u64) -> (MessageState, String) {
    let explanation = world.explain("t", group, offset).unwrap();
    (explanation.state, explanation.text)
}

/// The model checks besides that what comes late is not said to be redelivered.
#[test]
fn a_group_without_an_order_gets_the_others_at_once_and_the_message_when_it_can_be_read() {
    for policy in [Policy::RoundRobin, Policy::Fair] {
        let (mut world, topic) = world(10);
        damage(&mut world, topic, [3, 4]);
        consume(&mut world, 0, "g", policy);
        assert_eq!(run(&mut world), [0, 1, 2, 5, 6, 7, 8, 9]);
        assert_eq!(world.broker.counts().unreadable, 2);
        let (state, text) = explained(&mut world, "g", 4);
        assert_eq!(state, MessageState::Unreadable);
        assert!(text.starts_with("it cannot be read since ") && text.ends_with(": damaged"), "{text}");

        world.settle(0, 0, Settlement::Ack, vec![OffsetRange::new(0, 10)]);
        assert!(advance(&mut world, 100_000).is_empty());
        world.heal();
        assert_eq!(advance(&mut world, LONGEST_MS), [3, 4]);
        world.settle(0, 0, Settlement::Ack, vec![OffsetRange::new(3, 5)]);
        run(&mut world);
        assert_eq!(world.fold.topics[&topic].start, Offset(10));
        assert_eq!(world.broker.counts().unreadable, 0);
    }
}

#[test]
fn a_group_that_keeps_an_order_waits_and_others_do_not() {
    for policy in [Policy::Exclusive, Policy::Key] {
        let (mut world, topic) = world(10);
        damage(&mut world, topic, [3]);
        consume(&mut world, 0, "ordered", policy);
        assert_eq!(run(&mut world), [0, 1, 2]);
        let (state, text) = explained(&mut world, "ordered", 7);
        assert_eq!(state, MessageState::Waiting);
        assert_eq!(text, "message 3 comes first and cannot be read, and the group keeps the order");
        assert_eq!(explained(&mut world, "ordered", 3).0, MessageState::Unreadable);

        // One that is behind it already, and shares what is read.
        let (name, start) = ("behind".to_owned(), Start::Offset(Offset(4)));
        let settings = GroupSettings::default();
        world.admin(0, AdminCommand::CreateGroup { topic: "t".into(), name, settings, start });
        world.subscribe(0, 1, "t", "behind", ALL, None).unwrap();
        assert_eq!(run(&mut world), [4, 5, 6, 7, 8, 9]);

        world.heal();
        assert_eq!(advance(&mut world, LONGEST_MS), [3, 4, 5, 6, 7, 8, 9]);
    }
}

/// It is asked for again after a second, then after twice as long each time: not in each cycle, and not never.
#[test]
fn what_cannot_be_read_is_asked_for_again_and_again_but_not_often() {
    let (mut world, topic) = world(3);
    damage(&mut world, topic, [1]);
    consume(&mut world, 0, "g", Policy::Exclusive);
    assert_eq!(run(&mut world), [0]);
    let mut asked = Vec::new();
    let start = world.now.0;
    while world.now.0 - start < 200_000 {
        let next = world.broker.next_timeout().unwrap();
        assert!(next > world.now);
        world.now = next;
        world.finish();
        asked.extend(world.reads.iter().map(|_| (world.now.0 - start) / 1_000));
        run(&mut world);
    }
    assert_eq!(asked, [1, 3, 7, 15, 31, 63, 127, 191, 255]);
}

/// Whoever reads a message finds out that it can be read: nobody waits any longer then.
#[test]
fn a_question_that_can_be_answered_ends_the_wait_of_all() {
    let (mut world, topic) = world(3);
    damage(&mut world, topic, [1]);
    consume(&mut world, 0, "g", Policy::Exclusive);
    run(&mut world);
    advance(&mut world, 1_000);
    world.heal();
    explained(&mut world, "g", 1);
    assert_eq!(run(&mut world), [1, 2]);
}

#[test]
fn what_waits_for_another_attempt_or_dies_holds_up_no_other() {
    let (mut world, topic) = world(6);
    consume(&mut world, 0, "g", Policy::RoundRobin);
    assert_eq!(run(&mut world), [0, 1, 2, 3, 4, 5]);
    damage(&mut world, topic, [1, 4]);
    let nack = Settlement::Nack { delay_ms: Some(10), reason: None };
    world.settle(0, 0, nack, vec![OffsetRange::new(0, 3)]);
    world.settle(0, 0, Settlement::Reject { reason: None }, vec![OffsetRange::new(3, 6)]);
    let mut again = run(&mut world);
    again.extend(advance(&mut world, 10));
    assert_eq!(again, [0, 2]);
    let dead = world.find_topic(0, "t.dead-letter").unwrap();
    assert_eq!(world.store[&dead].len(), 2, "the letters of the others are there");
    world.heal();
    assert_eq!(advance(&mut world, LONGEST_MS), [1]);
    assert_eq!(world.store[&dead].len(), 3);
}

/// One that came back was asked for in each cycle, without a pause.
#[test]
fn what_came_back_and_cannot_be_read_is_not_asked_for_all_the_time() {
    for policy in [Policy::Exclusive, Policy::Key, Policy::Fair] {
        let (mut world, topic) = world(2);
        consume(&mut world, 0, "g", policy);
        assert_eq!(run(&mut world), [0, 1]);
        damage(&mut world, topic, [0]);
        let nack = Settlement::Nack { delay_ms: Some(10), reason: None };
        world.settle(0, 0, nack, vec![OffsetRange::one(Offset(0))]);
        run(&mut world);
        assert!(advance(&mut world, 10).is_empty());
        assert!(world.broker.next_timeout().is_none_or(|at| at.0 >= world.now.0 + 1_000));
        world.heal();
        assert_eq!(advance(&mut world, LONGEST_MS), [0]);
    }
}

/// A part of a slot that could not be read held up all that was to be delivered later, in every topic.
#[test]
fn a_delayed_message_that_cannot_be_read_holds_up_no_other() {
    let (mut world, topic) = world_with(1 << 20, 0);
    consume(&mut world, 0, "g", Policy::RoundRobin);
    let deliver_at = Some(Timestamp(world.now.0 + 500));
    publish(
        &mut world,
        topic,
        (0..5).map(|at| Message { deliver_at, ..Message::new(at.to_string()) }).collect(),
    );
    run(&mut world);
    let slot = *world.store.iter().find(|(id, stored)| world.is_slot(**id) && stored.len() == 5).unwrap().0;
    damage(&mut world, slot, [0, 3]);
    // A broker that has seen none of them.
    world.restart();
    world.begin(0);
    world.open(0, 0, "p");
    consume(&mut world, 0, "g", Policy::RoundRobin);
    run(&mut world);
    assert_eq!(advance(&mut world, 500).len(), 3);
    assert_eq!(world.broker.counts().delayed, 2);
    world.heal();
    assert_eq!(advance(&mut world, LONGEST_MS).len(), 2);
    assert_eq!(world.broker.counts().delayed, 0);
}

#[test]
fn a_replay_leaves_what_cannot_be_read_and_says_so() {
    let (mut world, _) = world(5);
    consume(&mut world, 0, "g", Policy::RoundRobin);
    run(&mut world);
    world.settle(0, 0, Settlement::Reject { reason: None }, vec![OffsetRange::new(0, 5)]);
    run(&mut world);
    let dead = world.find_topic(0, "t.dead-letter").unwrap();
    damage(&mut world, dead, [1, 2]);
    world.taken_out.extend((0..5).map(|offset| (dead, offset)));
    let offsets = (0..5).map(Offset).collect();
    let request =
        world.admin(0, AdminCommand::ReplayDeadLetters { topic: dead, offsets, to: ReplayTo::AllGroups });
    run(&mut world);
    let Ok(Reply::Replayed(replayed)) = answer(&world, request) else { panic!("an answer") };
    assert_eq!((replayed.replayed, replayed.unreadable), (3, 2));
    assert_eq!(world.store[&dead].keys().copied().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_browse_says_what_cannot_be_read_and_goes_on_behind_it() {
    let (mut world, topic) = world(5);
    damage(&mut world, topic, [2]);
    let request = world.admin(0, browse("t", 2, 10));
    run(&mut world);
    let refusal = answer(&world, request).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unreadable);
    assert_eq!(refusal.text, "offset 2 cannot be read, go on behind it: damaged");
    let request = world.admin(0, browse("t", 3, 10));
    run(&mut world);
    assert!(matches!(answer(&world, request), Ok(Reply::Browsed { .. })));
}

/// A seek to a time gave up, and retention by age never dropped anything again.
#[test]
fn a_search_for_a_time_goes_by_messages_that_can_be_read() {
    let (mut world, topic) = world(0);
    consume(&mut world, 0, "g", Policy::RoundRobin);
    for at in 0..40 {
        publish(&mut world, topic, vec![Message::new(at.to_string())]);
        // So close together that no mark tells them apart.
        world.now.0 += 1;
    }
    run(&mut world);
    world.settle(0, 0, Settlement::Release, vec![OffsetRange::new(0, 40)]);
    run(&mut world);
    let to = world.store[&topic][&30].published_at;
    damage(&mut world, topic, 12..28);
    let (topic_name, name) = ("t".to_owned(), "g".to_owned());
    world.unsubscribe(0, 0);
    run(&mut world);
    let request = world.admin(0, AdminCommand::Seek { topic: topic_name, name, to: Start::Time(to) });
    run(&mut world);
    assert!(answer(&world, request).is_ok(), "{:?}", answer(&world, request));
    let part = world.fold.groups.values().find(|group| group.topic == topic).unwrap();
    assert!(part.floor.0 <= 30, "nothing that was asked for is passed over: {}", part.floor);
}

#[test]
fn last_values_are_kept_clean_around_what_cannot_be_read() {
    let (mut world, topic) = world_of_last_values();
    let value = |at: u32| Message { key: Some((at % 10).to_string().into()), ..Message::new(at.to_string()) };
    publish(&mut world, topic, (0..200).map(value).collect());
    damage(&mut world, topic, [40, 41]);
    for _ in 0..20 {
        advance(&mut world, LONGEST_MS);
    }
    let there: Vec<u64> = world.store[&topic].keys().copied().collect();
    assert_eq!(there, [vec![40, 41], (190..200).collect()].concat());
    world.heal();
    publish(&mut world, topic, (200..400).map(value).collect());
    for _ in 0..20 {
        advance(&mut world, LONGEST_MS);
    }
    assert_eq!(world.store[&topic].len(), 10, "what can be read again is no exception");
}

/// The value before a tombstone may be there and unreadable: without the tombstone it would be the newest of its key.
#[test]
fn a_tombstone_stays_as_long_as_an_older_value_may_be_unreadable() {
    let (mut world, topic) = world_of_last_values();
    let value = |body: &'static str| Message { key: Some("k".into()), ..Message::new(body) };
    publish(&mut world, topic, vec![value("old"), value("")]);
    damage(&mut world, topic, [0]);
    for _ in 0..8 {
        advance(&mut world, LAST_VALUE_TOMBSTONE_MS);
    }
    assert_eq!(world.store[&topic].keys().copied().collect::<Vec<_>>(), [0, 1]);
    world.heal();
    for _ in 0..8 {
        advance(&mut world, LAST_VALUE_TOMBSTONE_MS);
    }
    assert_eq!(world.store[&topic].len(), 0);
}

/// The model checks that no message is in two hands.
#[test]
fn a_group_whose_policy_changes_has_what_was_put_aside_once() {
    for policy in [Policy::Exclusive, Policy::Key] {
        let (mut world, topic) = world(6);
        damage(&mut world, topic, [2, 3]);
        consume(&mut world, 0, "g", Policy::RoundRobin);
        assert_eq!(run(&mut world), [0, 1, 4, 5]);
        let (topic_name, name) = ("t".to_owned(), "g".to_owned());
        let settings = GroupSettings { policy, lease_ms: 10_000_000, ..GroupSettings::default() };
        world.admin(0, AdminCommand::ChangeGroup { topic: topic_name, name, settings });
        world.settle(0, 0, Settlement::Ack, vec![OffsetRange::new(0, 6)]);
        run(&mut world);
        world.heal();
        assert_eq!(advance(&mut world, LONGEST_MS), [2, 3]);
    }
}

/// The model checks at a restart that what was handed out is marked as such.
#[test]
fn what_comes_late_is_known_to_have_been_handed_out() {
    let (mut world, topic) = world(1);
    damage(&mut world, topic, [0]);
    consume(&mut world, 0, "g", Policy::RoundRobin);
    assert!(run(&mut world).is_empty());
    world.heal();
    assert_eq!(advance(&mut world, LONGEST_MS), [0]);
    world.restart();
    world.begin(0);
    consume(&mut world, 0, "g", Policy::RoundRobin);
    assert_eq!(run(&mut world), [0]);
}

#[test]
fn more_than_can_be_remembered_is_asked_for_at_short_intervals() {
    let ranges = UNREADABLE_RANGES_MAX as u64;
    let (mut world, topic) = world(2 * ranges as u32 + 20);
    damage(&mut world, topic, (0..ranges + 5).map(|at| 2 * at));
    consume(&mut world, 0, "g", Policy::RoundRobin);
    let got = run(&mut world);
    assert_eq!(got.len() as u64, ranges, "it stands before the first that has no place");
    assert_eq!(world.broker.counts().unreadable, ranges);
    let next = world.broker.next_timeout().unwrap();
    assert!(next.0 - world.now.0 <= 100);
    world.heal();
    assert_eq!((got.len() + advance(&mut world, LONGEST_MS).len()) as u64, 2 * ranges + 20);
}

/// As an operator gives up a message: a group that waits at it goes on behind it, one that has had all others is purged.
#[test]
fn a_message_can_be_given_up() {
    let (mut world, topic) = world(6);
    damage(&mut world, topic, [2]);
    consume(&mut world, 0, "ordered", Policy::Exclusive);
    consume(&mut world, 1, "shared", Policy::RoundRobin);
    run(&mut world);
    for handle in 0..2 {
        world.settle(0, handle, Settlement::Ack, vec![OffsetRange::new(0, 6)]);
    }
    run(&mut world);
    world.unsubscribe(0, 0);
    let (name, to) = ("ordered".to_owned(), Start::Offset(Offset(3)));
    world.admin(0, AdminCommand::Seek { topic: "t".into(), name, to });
    run(&mut world);
    consume(&mut world, 0, "ordered", Policy::Exclusive);
    assert_eq!(run(&mut world), [3, 4, 5]);
    world.settle(0, 0, Settlement::Ack, vec![OffsetRange::new(3, 6)]);
    world.admin(0, AdminCommand::PurgeGroup { topic: "t".into(), name: "shared".into() });
    run(&mut world);
    assert_eq!(world.fold.topics[&topic].start, Offset(6), "all are done with it");
    advance(&mut world, LONGEST_MS);
    assert_eq!(world.broker.counts().unreadable, 0);
}

#[test]
fn what_is_dropped_is_not_counted_for_ever() {
    let (mut world, topic) = world(4);
    damage(&mut world, topic, [1]);
    consume(&mut world, 0, "g", Policy::Exclusive);
    run(&mut world);
    assert_eq!(world.broker.counts().unreadable, 1);
    world.purged.insert(topic);
    world.admin(0, AdminCommand::PurgeTopic { name: "t".into() });
    advance(&mut world, LONGEST_MS);
    assert_eq!(world.broker.counts().unreadable, 0);
}

/// A message that was taken out ahead of a group was asked for again and again, without a pause, and the group never
/// came to what is behind it. What cannot be read is no exception.
#[test]
fn what_is_taken_out_ahead_of_a_group_does_not_hold_it_up() {
    for (cache_bytes_max, unreadable) in [(1 << 20, None), (0, None), (0, Some(4..9))] {
        let (mut world, topic) = world_with(cache_bytes_max, 10);
        let (name, start) = ("g".to_owned(), Start::Earliest);
        let settings = GroupSettings { lease_ms: 10_000_000, ..GroupSettings::default() };
        world.admin(0, AdminCommand::CreateGroup { topic: "t".into(), name, settings, start });
        damage(&mut world, topic, unreadable.into_iter().flatten());
        world.taken_out.extend([5, 6, 8].map(|offset| (topic, offset)));
        let offsets = [5, 6, 8].map(Offset).to_vec();
        world.admin(0, AdminCommand::DropMessages { topic, offsets });
        run(&mut world);
        world.subscribe(0, 0, "t", "g", ALL, None).unwrap();
        let mut got = run(&mut world);
        world.heal();
        got.extend(advance(&mut world, LONGEST_MS));
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3, 4, 7, 9]);
        world.settle(0, 0, Settlement::Ack, vec![OffsetRange::new(0, 10)]);
        advance(&mut world, LONGEST_MS);
        assert_eq!((world.broker.counts().retries, world.broker.counts().unreadable), (0, 0));
    }
}

/// Each message of a file that is gone or of a damaged page is found by itself: they took a place each, and when all
/// places were taken the group stood still.
#[test]
fn many_messages_side_by_side_take_one_place() {
    let count = UNREADABLE_RANGES_MAX as u64 + 100;
    let (mut world, topic) = world(count as u32 + 5);
    world.tells_singly = true;
    damage(&mut world, topic, 2..count);
    consume(&mut world, 0, "g", Policy::RoundRobin);
    let there = [vec![0, 1], (count..count + 5).collect()].concat();
    assert_eq!(run(&mut world), there);
    assert_eq!(world.broker.counts().unreadable, count - 2);
    // One of them is for good.
    world.unread = [(topic, 2)].into();
    let mut late = Vec::new();
    for _ in 0..4 {
        late.extend(advance(&mut world, LONGEST_MS));
    }
    assert_eq!(late, (3..count).collect::<Vec<_>>());
    assert_eq!(world.broker.counts().unreadable, 1);
}

/// What is too old is known by the time at which what is behind it was published: a message need not be read to go.
#[test]
fn what_cannot_be_read_goes_by_age_like_all_others() {
    let (mut world, _) = world(0);
    let retention = Retention { acked: false, max_age_ms: Some(60_000), ..Retention::default() };
    let settings = TopicSettings { retention, ..TopicSettings::default() };
    world.admin(0, AdminCommand::CreateTopic { name: "young".into(), settings });
    let topic = world.find_topic(0, "young").unwrap();
    for at in 0..300 {
        publish(&mut world, topic, vec![Message::new(at.to_string())]);
        world.now.0 += 1_000;
        if at == 0 {
            damage(&mut world, topic, [0]);
        }
        run(&mut world);
    }
    let there = world.store[&topic].len();
    assert!(there < 80, "{there} messages of the last minute");
    damage(&mut world, topic, 0..300);
    advance(&mut world, 200_000);
    assert_eq!(world.store[&topic].len(), 0);
}

/// A note is put off while too many messages die, which they do for long where they cannot be read. Its slot is looked
/// through again meanwhile, because of another note.
#[test]
fn a_note_that_was_put_off_and_is_come_by_again_is_done_with_once() {
    // More than die of a group at a time.
    let many = 5_000;
    let (mut world, topic) = world_with(1 << 22, 0);
    let settings =
        GroupSettings { dead_letter_expired: true, lease_ms: 10_000_000, ..GroupSettings::default() };
    let (name, start) = ("g".to_owned(), Start::Earliest);
    world.admin(0, AdminCommand::CreateGroup { topic: "t".into(), name, settings, start });
    let expires_at = Some(Timestamp(world.now.0 + 500));
    let expiring = |at: u32| Message { expires_at, ..Message::new(at.to_string()) };
    publish(&mut world, topic, vec![expiring(0)]);
    publish(&mut world, topic, (0..many).map(expiring).collect());
    run(&mut world);
    let slot = *world.store.iter().find(|(id, stored)| world.is_slot(**id) && stored.len() == 2).unwrap().0;
    damage(&mut world, topic, 1..=u64::from(many));
    damage(&mut world, slot, [0]);
    world.restart();
    world.begin(0);
    run(&mut world);
    world.now.0 += 500;
    for _ in 0..200 {
        world.answer_all();
        world.finish();
        world.now.0 += 20;
    }
    world.heal();
    for _ in 0..4_000 {
        world.answer_all();
        world.finish();
        world.now.0 += 20;
    }
    assert!(world.store[&topic].is_empty() && world.store[&slot].is_empty());
}
