//! One rule of the broker after the other, each as a claim. The model of `broker_world` watches all of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use batonmq::broker::{AutoCreate, Command, Ending};
use batonmq::model::id::{Offset, OffsetRange, ProducerId, Sequence, SessionId, TopicId};
use batonmq::model::limits::{Limits, PUBLISH_PARTS_MAX};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::settings::{Backoff, GroupSettings, Policy, Retention, Start, TopicSettings};
use batonmq::model::time::Timestamp;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::*;
use batonmq::protocol::response::Reply;
use broker_world::{World, browse};

const S: SessionId = SessionId(0);

/// A world with a producer of session 0 (handle 0) and the topic `t`.
fn world() -> (World, TopicId) {
    world_with(Limits::default())
}

fn world_with(limits: Limits) -> (World, TopicId) {
    let mut world = World::new(limits, AutoCreate::Allowed);
    world.begin(0);
    world.open(0, 0, "p");
    let topic = world.find_topic(0, "t").unwrap();
    world.finish();
    (world, topic)
}

/// Publishes `count` messages as what comes next for the producer of session 0.
fn publish(world: &mut World, topic: TopicId, count: u32) {
    let id = world.clients[&S].producers[&0];
    let last = world.last_of(id).unwrap().0;
    world.publish(0, 0, last + 1, vec![(topic, count)]);
}

fn messages(messages: u32) -> Window {
    Window { messages, bytes: u64::MAX }
}

fn at_once() -> GroupSettings {
    let backoff = Backoff { initial_ms: 0, multiplier_percent: 100, maximum_ms: 0, jitter_percent: 0 };
    GroupSettings { backoff, ..GroupSettings::default() }
}

fn range(start: u64, end: u64) -> Vec<OffsetRange> {
    vec![OffsetRange::new(start, end)]
}

/// Who got which offsets in the last cycle.
fn delivered(world: &World) -> Vec<(u32, u64)> {
    world.delivered.iter().map(|(_, handle, _, offset, _)| (*handle, *offset)).collect()
}

fn answer(world: &World, request: RequestId) -> Result<Reply, Refusal> {
    world.replies.iter().find(|reply| reply.1 == request).expect("an answer").2.clone()
}

fn code(world: &World, request: RequestId) -> ErrorCode {
    answer(world, request).unwrap_err().code
}

fn last_code(world: &World) -> ErrorCode {
    world.replies.last().unwrap().2.clone().unwrap_err().code
}

/// What the broker thinks of a group: in flight, retries, waiting.
fn group_numbers(world: &mut World, name: &str) -> (u64, u64, u64) {
    let request = world.admin(0, AdminCommand::ListGroups { topic: None, after: None });
    let Ok(Reply::Groups { groups, .. }) = answer(world, request) else { panic!("a list") };
    let group = groups.iter().find(|group| group.name == name).expect("the group");
    (group.in_flight, group.retries, group.waiting)
}

#[test]
fn what_is_published_is_handed_out_in_the_same_cycle() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(10), None);
    publish(&mut world, topic, 3);
    world.finish();
    assert_eq!(delivered(&world), [(0, 0), (0, 1), (0, 2)]);
}

#[test]
fn every_group_gets_every_message_and_its_consumers_share_them() {
    let (mut world, topic) = world();
    for (handle, group) in [(0, "g"), (1, "g"), (2, "h")] {
        world.subscribe(0, handle, "t", group, messages(10), None);
    }
    publish(&mut world, topic, 4);
    world.finish();
    let mut got = delivered(&world);
    got.sort_unstable();
    assert_eq!(got, [(0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)]);
}

/// One message that nobody acked kept everything behind it, for good.
#[test]
fn what_all_groups_have_settled_is_removed_behind_a_message_that_waits() {
    let (mut world, topic) = world_with(Limits { pinned_bytes_max: 1 << 10, ..Limits::default() });
    world.subscribe(0, 0, "t", "g", messages(100), None);
    world.subscribe(0, 1, "t", "h", messages(100), None);
    publish(&mut world, topic, 100);
    world.finish();
    let removed = |world: &World| world.fold.topics[&topic].removed.iter().collect::<Vec<_>>();
    world.settle(0, 0, Settlement::Ack, range(1, 100));
    world.finish();
    assert_eq!(removed(&world), [], "the other group has settled nothing");
    world.settle(0, 1, Settlement::Ack, range(1, 60));
    world.finish();
    assert_eq!(removed(&world), range(1, 60));
    world.settle(0, 1, Settlement::Ack, range(60, 99));
    world.finish();
    assert_eq!(removed(&world), range(1, 99));
    assert_eq!(world.broker.counts().messages, 2);

    // A group that begins now has what is there, for the first time.
    world.subscribe(0, 2, "t", "late", messages(100), None);
    world.finish();
    let new: Vec<(u64, bool)> = world.delivered.iter().map(|delivery| (delivery.3, delivery.4)).collect();
    assert_eq!(new, [(0, true), (99, true)], "offsets, and that they are new to the group");
    assert_eq!(group_numbers(&mut world, "late"), (2, 0, 2));
    let late = &world.fold.groups.values().find(|group| group.name.as_str() == "late").unwrap();
    assert_eq!((late.floor, late.settled.iter().collect::<Vec<_>>()), (Offset(0), range(1, 99)));
    world.restart();
    world.begin(0);
    world.subscribe(0, 0, "t", "h", messages(100), None);
    world.finish();
    while !world.reads.is_empty() {
        world.answer_all();
        world.finish();
    }
    assert_eq!(group_numbers(&mut world, "h"), (2, 0, 2));
}

/// What only a group that is gone had not settled stayed until others had settled as much again.
#[test]
fn what_a_deleted_group_alone_had_not_settled_is_removed() {
    let (mut world, topic) = world_with(Limits { pinned_bytes_max: 1 << 10, ..Limits::default() });
    world.subscribe(0, 0, "t", "g", messages(100), None);
    world.subscribe(0, 1, "t", "h", messages(100), None);
    publish(&mut world, topic, 100);
    world.finish();
    world.settle(0, 0, Settlement::Ack, [range(0, 10), range(20, 90)].concat());
    world.finish();
    let delete = AdminCommand::DeleteGroup { topic: "t".into(), name: "h".into() };
    world.admin(0, delete);
    world.finish();
    // The start goes along, so that it stays at a message that is there.
    let state = &world.fold.topics[&topic];
    assert_eq!((state.start, state.removed.iter().collect::<Vec<_>>()), (Offset(10), range(20, 90)));
}

/// More than one record holds was left where nobody settled anything afterwards.
#[test]
fn what_is_removed_goes_on_by_itself() {
    let (mut world, topic) = world_with(Limits { pinned_bytes_max: 1 << 10, ..Limits::default() });
    world.subscribe(0, 0, "t", "g", messages(10_000), None);
    publish(&mut world, topic, 10_000);
    world.finish();
    world.settle(0, 0, Settlement::Ack, (0..4_500).map(|at| OffsetRange::one(Offset(2 * at + 1))).collect());
    world.finish();
    let removed = |world: &World| world.fold.topics[&topic].removed.range_count();
    assert_eq!(removed(&world), 4_096);
    assert_eq!(world.broker.next_timeout(), Some(world.now), "it asks for another cycle");
    world.finish();
    assert_eq!(removed(&world), 4_500);
    assert_ne!(world.broker.next_timeout(), Some(world.now));
}

#[test]
fn a_slow_consumer_never_holds_more_than_its_prefetch_while_another_idles() {
    let (mut world, topic) = world();
    let settings = GroupSettings { policy: Policy::Fair, ..GroupSettings::default() };
    world.subscribe(0, 0, "t", "g", messages(4), Some(settings.clone()));
    world.subscribe(0, 1, "t", "g", messages(4), Some(settings));
    let mut fast = 0;
    for _ in 0..20 {
        publish(&mut world, topic, 4);
        world.finish();
        while delivered(&world).iter().any(|(handle, _)| *handle == 1) {
            fast += delivered(&world).iter().filter(|(handle, _)| *handle == 1).count();
            world.settle(0, 1, Settlement::Ack, range(0, u64::MAX));
            world.finish();
        }
    }
    assert_eq!(fast, 76, "all but what the slow one holds");
}

#[test]
fn one_message_is_handed_out_however_large_but_only_where_nothing_else_is_held() {
    let size = Message::new("       0:   0:     1").encoded_len() as u64;
    for bytes in [1, size + 1] {
        let (mut world, topic) = world();
        world.subscribe(0, 0, "t", "g", Window { messages: 10, bytes }, None);
        publish(&mut world, topic, 3);
        world.finish();
        assert_eq!(delivered(&world), [(0, 0)]);
        world.finish();
        assert_eq!(delivered(&world), []);
        world.settle(0, 0, Settlement::Ack, range(0, 1));
        world.finish();
        assert_eq!(delivered(&world), [(0, 1)], "settling gives the credit back");
    }
}

#[test]
fn a_consumer_for_whom_a_message_is_too_large_lets_others_have_it() {
    let (mut world, topic) = world();
    let size = Message::new("       0:   0:     1").encoded_len() as u64;
    world.subscribe(0, 0, "t", "g", Window { messages: 10, bytes: size + size / 2 }, None);
    world.subscribe(0, 1, "t", "g", Window { messages: 10, bytes: 3 * size }, None);
    publish(&mut world, topic, 5);
    world.finish();
    assert_eq!(delivered(&world), [(0, 0), (1, 1), (1, 2), (1, 3)]);
    world.flow(0, 0, Window { messages: 10, bytes: 2 * size });
    world.finish();
    assert_eq!(delivered(&world), [(0, 4)]);
}

#[test]
fn a_session_that_cannot_take_more_gets_nothing_until_it_can() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(10), None);
    world.full(0, true);
    world.subscribe(0, 1, "t", "g", messages(10), None);
    publish(&mut world, topic, 2);
    world.finish();
    assert_eq!(delivered(&world), []);
    world.full(0, false);
    world.finish();
    assert_eq!(delivered(&world), [(0, 0), (1, 1)]);
}

#[test]
fn settling_touches_only_what_is_in_flight_to_that_consumer() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(2), None);
    world.subscribe(0, 1, "t", "g", messages(2), None);
    publish(&mut world, topic, 4);
    world.finish();
    assert_eq!(world.settle(0, 0, Settlement::Ack, range(0, 4)), 2);
    assert_eq!(world.settle(0, 0, Settlement::Ack, range(0, 4)), 0);
    let odd = vec![OffsetRange::new(9, 3), OffsetRange::new(0, 0), OffsetRange::new(0, u64::MAX)];
    assert_eq!(world.settle(0, 1, Settlement::Ack, odd), 2);
    world.finish();
    assert_eq!(world.fold.topics[&topic].start, Offset(4));
}

#[test]
fn a_nack_waits_for_its_delay_and_counts_as_an_attempt() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(5), None);
    publish(&mut world, topic, 2);
    world.finish();
    world.settle(0, 0, Settlement::Nack { delay_ms: Some(70), reason: None }, range(0, 1));
    world.finish();
    assert_eq!(delivered(&world), []);
    assert_eq!(world.broker.next_timeout(), Some(Timestamp(world.now.0 + 70)));
    world.now.0 += 69;
    world.finish();
    assert_eq!(delivered(&world), []);
    world.now.0 += 1;
    world.finish();
    assert_eq!(delivered(&world), [(0, 0)]);
}

#[test]
fn what_is_released_is_handed_out_at_once_and_before_new_messages() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(3), None);
    publish(&mut world, topic, 6);
    world.finish();
    world.settle(0, 0, Settlement::Release, range(1, 3));
    world.settle(0, 0, Settlement::Ack, range(0, 1));
    world.finish();
    assert_eq!(delivered(&world), [(0, 1), (0, 2), (0, 3)]);
    let retries = world.fold.groups.values().flat_map(|group| group.retries.iter());
    let counts: Vec<(OffsetRange, u32, u32)> =
        retries.map(|(range, retry)| (range, retry.handed_out, retry.failed)).collect();
    assert_eq!(counts, [(OffsetRange::new(1, 3), 1, 0)], "handed out, not failed");
}

#[test]
fn a_lease_that_ends_gives_the_message_back_and_keeps_the_consumer() {
    let (mut world, topic) = world();
    let settings = GroupSettings { lease_ms: 1_000, ..at_once() };
    let group = world.subscribe(0, 0, "t", "g", messages(2), Some(settings)).unwrap();
    publish(&mut world, topic, 2);
    world.finish();
    world.now.0 += 600;
    world.settle(0, 0, Settlement::Extend, range(1, 2));
    world.finish();
    world.now.0 += 400;
    world.finish();
    assert_eq!(delivered(&world), [(0, 0)], "handed out again, to the same consumer");
    world.now.0 += 600 + 32;
    world.finish();
    assert_eq!(delivered(&world), [(0, 1)], "the extended one later");
    assert_eq!(world.groups[&group][&0].attempts, 1);
}

/// Messages went out again right behind a commit that had taken longer than their lease, some of them acked by then.
#[test]
fn no_lease_runs_while_a_commit_takes_long() {
    let (mut world, topic) = world();
    let settings = GroupSettings { lease_ms: 1_000, ..at_once() };
    let group = world.subscribe(0, 0, "t", "g", messages(2), Some(settings)).unwrap();
    publish(&mut world, topic, 2);
    world.finish();
    world.now.0 += 600;
    world.finish();
    world.stand_still(60_000);
    world.finish();
    assert_eq!(delivered(&world), []);
    world.settle(0, 0, Settlement::Ack, range(0, 1));
    world.now.0 += 400;
    world.finish();
    assert_eq!(delivered(&world), [(0, 1)], "what was left of the lease is over");
    assert_eq!(world.groups[&group][&1].attempts, 1);
}

/// A lease that was made shorter and then extended ended when the old one would have: the group was next looked at
/// for the deadlines that it had handed out. Found by the property test.
#[test]
fn an_extension_under_a_shortened_lease_ends_with_the_new_one() {
    let (mut world, topic) = world();
    let settings = GroupSettings { lease_ms: 10_000, ..at_once() };
    world.subscribe(0, 0, "t", "g", messages(2), Some(settings.clone()));
    publish(&mut world, topic, 2);
    world.finish();
    let (topic, name) = ("t".into(), "g".into());
    let settings = GroupSettings { lease_ms: 1_000, ..settings };
    world.admin(0, AdminCommand::ChangeGroup { topic, name, settings });
    world.settle(0, 0, Settlement::Extend, range(1, 2));
    world.finish();
    world.now.0 += 1_000;
    world.finish();
    assert_eq!(delivered(&world), [(0, 1)]);
}

#[test]
fn a_lost_consumer_counts_as_an_attempt_and_a_closed_one_does_not() {
    for (ending, attempts) in [(Ending::Lost, 1), (Ending::Closed, 0)] {
        let (mut world, topic) = world();
        world.begin(1);
        let group = world.subscribe(1, 0, "t", "g", messages(3), Some(at_once())).unwrap();
        world.subscribe(0, 7, "t", "g", messages(0), None);
        publish(&mut world, topic, 3);
        world.finish();
        world.end(1, ending);
        world.flow(0, 7, messages(9));
        world.finish();
        assert_eq!(delivered(&world), [(7, 0), (7, 1), (7, 2)]);
        assert_eq!(world.groups[&group][&1].attempts, attempts);
    }
}

/// A message that killed its consumers went through all of its attempts as fast as they started again.
#[test]
fn what_a_lost_consumer_had_or_a_lease_held_waits_for_the_back_off() {
    let backoff =
        Backoff { initial_ms: 5_000, multiplier_percent: 100, maximum_ms: 5_000, jitter_percent: 0 };
    let settings = GroupSettings { backoff, lease_ms: 1_000, ..GroupSettings::default() };
    let (mut world, topic) = world();
    world.begin(1);
    world.subscribe(1, 0, "t", "g", messages(1), Some(settings));
    world.subscribe(0, 7, "t", "g", messages(1), None);
    publish(&mut world, topic, 2);
    world.finish();
    world.end(1, Ending::Lost);
    world.finish();
    world.now.0 += 1_000;
    world.finish();
    assert_eq!(delivered(&world), [], "one was lost, the lease of the other has ended");
    world.now.0 += 4_000;
    world.finish();
    assert_eq!(delivered(&world), [(7, 0)]);
    world.flow(0, 7, messages(2));
    world.now.0 += 1_000;
    world.finish();
    assert!(delivered(&world).contains(&(7, 1)), "{:?}", delivered(&world));
}

#[test]
fn the_last_attempt_ends_in_the_dead_letters_in_one_commit() {
    let mut world = World::new(Limits::default(), AutoCreate::Refused);
    world.begin(0);
    world.open(0, 0, "p");
    let settings = GroupSettings { max_attempts: 2, ..at_once() };
    world.admin(0, AdminCommand::CreateTopic { name: "t".into(), settings: TopicSettings::default() });
    let (topic, name) = ("t".into(), "g".into());
    world.admin(0, AdminCommand::CreateGroup { topic, name, settings, start: Start::Earliest });
    world.subscribe(0, 0, "t", "g", messages(5), None);
    let topic = world.find_topic(0, "t").unwrap();
    publish(&mut world, topic, 2);
    world.finish();
    world.settle(0, 0, Settlement::Nack { delay_ms: None, reason: None }, range(0, 1));
    world.finish();
    assert_eq!(delivered(&world), [(0, 0)]);
    world.settle(0, 0, Settlement::Nack { delay_ms: None, reason: None }, range(0, 1));
    world.finish();
    // That the copy and the settlement are of one cycle is checked by the world.
    assert_eq!(world.dead.len(), 1);
    let (dead, state) = world.fold.topics.iter().find(|(_, t)| t.name.as_str() == "t.dead-letter").unwrap();
    assert_eq!(state.end, Offset(1));
    assert_eq!(world.store[dead][&0].message.header("baton.dead.reason").unwrap(), "nacked");
    assert_eq!(world.fold.topics[&topic].start, Offset(0), "one message is still in flight");
}

#[test]
fn a_rejected_message_dies_at_once_even_where_attempts_are_not_limited() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(5), Some(GroupSettings { max_attempts: 0, ..at_once() }));
    publish(&mut world, topic, 3);
    world.finish();
    world.settle(0, 0, Settlement::Reject { reason: None }, range(1, 2));
    world.finish();
    assert_eq!(world.dead.iter().map(|(_, offset)| *offset).collect::<Vec<_>>(), [1]);
}

#[test]
fn what_dies_out_of_memory_is_read_first_and_dies_after_a_restart_too() {
    let limits = Limits { cache_bytes_max: 0, ..Limits::default() };
    let (mut world, topic) = world_with(limits);
    world.subscribe(0, 0, "t", "g", messages(5), Some(at_once()));
    publish(&mut world, topic, 3);
    world.finish();
    world.settle(0, 0, Settlement::Reject { reason: None }, range(0, 3));
    world.finish();
    assert!(world.dead.is_empty() && !world.reads.is_empty());
    world.restart();
    world.finish();
    assert!(world.dead.is_empty() && !world.reads.is_empty());
    world.answer_all();
    world.finish();
    assert_eq!(world.dead.len(), 3);
}

#[test]
fn a_message_waits_while_there_is_no_room_for_its_dead_letter_topic() {
    let (mut world, topic) = world_with(Limits { topics_max: 2, ..Limits::default() });
    world.find_topic(0, "other").unwrap();
    world.subscribe(0, 0, "t", "g", messages(5), Some(at_once()));
    publish(&mut world, topic, 1);
    world.finish();
    world.settle(0, 0, Settlement::Reject { reason: None }, range(0, 1));
    world.finish();
    assert!(world.dead.is_empty());
    assert_eq!(group_numbers(&mut world, "g"), (0, 1, 1));
    world.admin(0, AdminCommand::DeleteTopic { name: "other".into() });
    world.now = world.broker.next_timeout().unwrap();
    world.finish();
    assert_eq!(world.dead.len(), 1);
}

#[test]
fn a_publish_beyond_the_space_is_refused_and_stored_once_there_is_space() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(5), None);
    let block = MessageBlock::encode(&[Message::new(vec![0; 10_000]), Message::new("small")]);
    let publish_both = |world: &mut World| {
        let parts = vec![(topic, 2)];
        world.handle(
            S,
            Command::Publish(Publish { producer: 0, sequence: Sequence(1), parts }, block.clone()),
        );
    };
    world.broker.begin_cycle(10_000);
    publish_both(&mut world);
    world.finish();
    assert_eq!(world.refused, [(S, 0, ErrorCode::StoreFull, Sequence(1))]);
    assert!(world.store.get(&topic).is_none_or(|stored| stored.is_empty()), "neither of both is stored");
    world.broker.begin_cycle(25_000);
    publish(&mut world, topic, 2);
    world.finish();
    assert_eq!(delivered(&world), [(0, 0), (0, 1)]);
    assert_eq!(world.refused.len(), 1);
}

#[test]
fn what_one_publish_takes_of_the_space_the_next_does_not_have() {
    let (mut world, topic) = world();
    world.broker.begin_cycle(3_000);
    for sequence in 1..=2 {
        let block = MessageBlock::encode(&[Message::new(vec![0; 2_000])]);
        let publish = Publish { producer: 0, sequence: Sequence(sequence), parts: vec![(topic, 1)] };
        world.handle(S, Command::Publish(publish, block));
    }
    assert_eq!(world.out.records.len(), 1, "{:?}", world.out.records);
}

#[test]
fn a_dying_message_waits_while_there_is_no_space_for_its_copy() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(5), Some(at_once()));
    publish(&mut world, topic, 1);
    world.finish();
    world.broker.begin_cycle(100);
    world.settle(0, 0, Settlement::Reject { reason: None }, range(0, 1));
    world.finish();
    assert!(world.dead.is_empty());
    assert_eq!(group_numbers(&mut world, "g"), (0, 1, 1));
    world.broker.begin_cycle(10_000);
    world.now = world.broker.next_timeout().unwrap();
    world.finish();
    assert_eq!(world.dead.len(), 1);
}

#[test]
fn nothing_dies_in_a_dead_letter_topic_it_is_tried_again() {
    let mut world = World::new(Limits::default(), AutoCreate::Allowed);
    world.begin(0);
    world.open(0, 0, "p");
    let topic = world.find_topic(0, "t.dead-letter").unwrap();
    let settings = GroupSettings { max_attempts: 1, ..at_once() };
    world.subscribe(0, 0, "t.dead-letter", "g", messages(5), Some(settings));
    publish(&mut world, topic, 1);
    for settlement in [
        Settlement::Nack { delay_ms: None, reason: None },
        Settlement::Reject { reason: None },
        Settlement::Reject { reason: None },
    ] {
        world.finish();
        assert_eq!(delivered(&world), [(0, 0)]);
        world.settle(0, 0, settlement, range(0, 1));
    }
    world.finish();
    world.restart();
    world.begin(0);
    world.subscribe(0, 0, "t.dead-letter", "g", messages(5), None);
    world.finish();
    world.answer_all();
    world.finish();
    assert_eq!(delivered(&world), [(0, 0)]);
    assert!(world.dead.is_empty());
}

#[test]
fn lower_max_attempts_hold_for_what_waits_and_higher_ones_spare_it() {
    let limits = Limits { cache_bytes_max: 0, ..Limits::default() };
    let (mut world, topic) = world_with(limits);
    let change = |max_attempts| AdminCommand::ChangeGroup {
        topic: "t".into(),
        name: "g".into(),
        settings: GroupSettings { max_attempts, ..GroupSettings::default() },
    };
    world.subscribe(0, 0, "t", "g", messages(5), None);
    publish(&mut world, topic, 1);
    world.finish();
    world.settle(0, 0, Settlement::Nack { delay_ms: Some(50), reason: None }, range(0, 1));
    world.admin(0, change(1));
    world.finish();
    assert_eq!(world.reads.len(), 1, "it is dying");
    world.admin(0, change(3));
    world.answer_all();
    world.now.0 += 50;
    world.finish();
    assert_eq!(delivered(&world), [(0, 0)]);
    assert!(world.dead.is_empty());
}

#[test]
fn a_resend_is_stored_once_and_confirmed_again_after_a_restart_too() {
    let (mut world, topic) = world();
    world.publish(0, 0, 1, vec![(topic, 5)]);
    world.publish(0, 0, 1, vec![(topic, 5)]);
    world.finish();
    world.restart();
    world.begin(3);
    let request = world.open(3, 9, "p");
    assert_eq!(answer(&world, request), Ok(Reply::Producer { id: ProducerId(0), last: Sequence(5) }));
    world.publish(3, 9, 2, vec![(topic, 3)]);
    world.publish(3, 9, 4, vec![(topic, 4)]);
    world.finish();
    assert_eq!(world.fold.topics[&topic].end, Offset(7));
    assert_eq!(world.fold.producers[&ProducerId(0)].last, Sequence(7));
}

#[test]
fn a_gap_is_refused_with_the_sequence_that_is_expected_behind_the_confirm_of_what_came_before() {
    let (mut world, topic) = world();
    world.publish(0, 0, 1, vec![(topic, 5)]);
    // The world checks that the confirm of 5 is not behind the refusal.
    world.publish(0, 0, 8, vec![(topic, 1)]);
    assert_eq!(world.refused, [(S, 0, ErrorCode::OutOfSequence, Sequence(6))]);
    world.publish(0, 0, 6, vec![(topic, 1)]);
    world.finish();
    assert_eq!(world.fold.topics[&topic].end, Offset(6));
}

#[test]
fn whoever_opens_a_producer_last_has_it() {
    let (mut world, topic) = world();
    world.begin(1);
    publish(&mut world, topic, 1);
    world.open(1, 4, "p");
    world.publish(0, 0, 2, vec![(topic, 1)]);
    assert_eq!(world.refused[0].2, ErrorCode::ProducerReplaced);
    world.publish(1, 4, 2, vec![(topic, 1)]);
    world.end(0, Ending::Lost);
    world.publish(1, 4, 3, vec![(topic, 1)]);
    world.finish();
    assert_eq!(world.fold.topics[&topic].end, Offset(3));
}

#[test]
fn a_producer_that_is_not_known_any_more_is_not_resumed() {
    let (mut world, _) = world();
    let resume = |world: &mut World, name: &str, id| {
        let request = world.request();
        let (name, resume) = (name.to_owned(), Some(ProducerId(id)));
        world.handle(S, Command::OpenProducer(OpenProducer { request, producer: 5, name, resume }));
        world.finish();
        answer(world, request)
    };
    assert_eq!(resume(&mut world, "q", 0).unwrap_err().code, ErrorCode::ProducerExpired);
    assert_eq!(resume(&mut world, "p", 1).unwrap_err().code, ErrorCode::ProducerExpired);
    assert_eq!(resume(&mut world, "p", 0), Ok(Reply::Producer { id: ProducerId(0), last: Sequence(0) }));
}

#[test]
fn producers_expire_when_they_are_idle_and_never_while_they_are_open() {
    let limits = Limits { producer_idle_seconds: 3_600, ..Limits::default() };
    let (mut world, _) = world_with(limits);
    world.open(0, 1, "q");
    world.finish();
    world.close_producer(0, 1);
    world.finish();
    world.now.0 += 3_600_000 - 1;
    world.finish();
    assert_eq!(world.fold.producers.len(), 2);
    assert_eq!(world.broker.next_timeout(), Some(Timestamp(world.now.0 + 1)));
    world.now.0 += 1;
    world.finish();
    let names: Vec<&str> = world.fold.producers.values().map(|producer| producer.name.as_str()).collect();
    assert_eq!(names, ["p"]);
    // After a restart those that were open long ago have time to come back.
    world.now.0 += 3_600_000;
    world.restart();
    world.finish();
    assert_eq!(world.fold.producers.len(), 1);
    world.now.0 += 600_000;
    world.finish();
    assert_eq!(world.fold.producers.len(), 0);
}

#[test]
fn beyond_the_limit_the_producer_idle_longest_goes_unless_all_are_open() {
    let (mut world, _) = world_with(Limits { producers_max: 2, ..Limits::default() });
    world.open(0, 1, "q");
    let refused = world.open(0, 2, "r");
    assert_eq!(code(&world, refused), ErrorCode::Limit);
    assert!(answer(&world, refused).unwrap_err().text.contains("producers_max"));
    world.now.0 += 1;
    world.close_producer(0, 0);
    world.open(0, 2, "r");
    world.finish();
    let names: Vec<&str> = world.fold.producers.values().map(|producer| producer.name.as_str()).collect();
    assert_eq!(names, ["q", "r"]);
}

/// A node whose defaults for new groups were out of bounds refused every consumer, of groups that had settings of their
/// own as well.
#[test]
fn settings_are_checked_only_where_they_become_those_of_a_group() {
    let (mut world, _) = world();
    world.subscribe(0, 0, "t", "g", messages(1), None);
    let wrong = GroupSettings { lease_ms: 1, ..GroupSettings::default() };
    assert!(world.subscribe(0, 1, "t", "g", messages(1), Some(wrong.clone())).is_some());
    for topic in ["t", "u"] {
        assert_eq!(world.subscribe(0, 2, topic, "h", messages(1), Some(wrong.clone())), None);
        assert_eq!(last_code(&world), ErrorCode::Invalid);
    }
    world.finish();
    assert_eq!((world.fold.topics.len(), world.fold.groups.len()), (1, 1), "something was created");
}

/// After a takeover nobody is open yet. The first new producer took the place of a slow one that was still on its way
/// back, whose unconfirmed messages then nobody could send again.
#[test]
fn after_a_start_a_new_producer_takes_nobodys_place_who_may_come_back() {
    let (mut world, _) = world_with(Limits { producers_max: 2, ..Limits::default() });
    world.open(0, 1, "q");
    world.finish();
    world.restart();
    world.begin(0);
    let refused = world.open(0, 2, "new");
    assert_eq!(code(&world, refused), ErrorCode::Limit);
    assert!(answer(&world, refused).unwrap_err().text.contains("producers_max"));
    let resume = OpenProducer { request: 900, producer: 3, name: "p".into(), resume: Some(ProducerId(0)) };
    world.handle(S, Command::OpenProducer(resume));
    world.finish();
    assert!(answer(&world, 900).is_ok(), "{:?}", answer(&world, 900));
    // One that has come back and goes needs no time any more.
    world.now.0 += 1;
    world.handle(S, Command::CloseProducer(CloseProducer { producer: 3 }));
    let opened = world.open(0, 4, "new");
    assert!(answer(&world, opened).is_ok());
    let refused = world.open(0, 5, "newer");
    assert_eq!(code(&world, refused), ErrorCode::Limit);
    world.now.0 += 600_000;
    let opened = world.open(0, 6, "newer");
    assert!(answer(&world, opened).is_ok());
    world.finish();
    let names: Vec<&str> = world.fold.producers.values().map(|producer| producer.name.as_str()).collect();
    assert_eq!(names, ["new", "newer"]);
}

#[test]
fn a_publish_that_makes_no_sense_is_refused_whole() {
    let (mut world, topic) = world();
    let block = |count: usize| MessageBlock::encode(&vec![Message::new("x"); count]);
    let publish = |sequence, parts| Publish { producer: 0, sequence: Sequence(sequence), parts };
    let cases = [
        (publish(1, vec![(topic, 2)]), block(3)),
        (publish(1, vec![(topic, 2), (topic, 0)]), block(2)),
        (publish(1, vec![]), block(0)),
        (publish(0, vec![(topic, 1)]), block(1)),
        (publish(u64::MAX, vec![(topic, 1)]), block(1)),
        (publish(1, vec![(topic, u32::MAX), (topic, u32::MAX)]), block(2)),
        (publish(1, vec![(topic, 1), (TopicId(99), 1)]), block(2)),
        // Each part is stored for itself: a frame of some megabytes kept everybody else waiting for seconds.
        (publish(1, vec![(topic, 1); PUBLISH_PARTS_MAX + 1]), block(PUBLISH_PARTS_MAX + 1)),
        (Publish { producer: 77, ..publish(1, vec![(topic, 1)]) }, block(1)),
    ];
    for (head, block) in cases {
        world.handle(S, Command::Publish(head, block));
    }
    let unfit = Refusal::new(ErrorCode::MessageTooLarge, "too large");
    world.handle(S, Command::PublishUnfit(publish(1, vec![(topic, 1)]), unfit));
    world.finish();
    let codes: Vec<ErrorCode> = world.refused.iter().map(|refused| refused.2).collect();
    let mut expected = vec![ErrorCode::Invalid; 8];
    expected[6] = ErrorCode::UnknownTopic;
    expected.extend([ErrorCode::UnknownHandle, ErrorCode::MessageTooLarge]);
    assert_eq!(codes, expected);
    assert_eq!(world.fold.topics[&topic].end, Offset(0));
}

#[test]
fn parts_of_one_publish_go_to_their_topics_and_a_topic_may_come_twice() {
    let (mut world, topic) = world();
    let other = world.find_topic(0, "other").unwrap();
    world.publish(0, 0, 1, vec![(topic, 2), (other, 1), (topic, 3)]);
    world.finish();
    assert_eq!(world.fold.topics[&topic].end, Offset(5));
    assert_eq!(world.store[&topic][&2].origin.unwrap().sequence, Sequence(4));
    assert_eq!(world.store[&other][&0].origin.unwrap().sequence, Sequence(3));
}

#[test]
fn a_pull_is_answered_at_once_with_what_is_there_or_when_something_comes_or_in_vain() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(0), None);
    let pulled = |world: &World| match world.replies.last() {
        Some((_, _, Ok(Reply::Pulled { count }))) => *count,
        other => panic!("a pull is answered: {other:?}"),
    };
    publish(&mut world, topic, 3);
    world.pull(0, 0, messages(2), 1_000);
    world.finish();
    assert_eq!((delivered(&world).len(), pulled(&world)), (2, 2));
    world.pull(0, 0, messages(2), 1_000);
    world.finish();
    assert_eq!((delivered(&world).len(), pulled(&world)), (1, 1));
    let before = world.replies.len();
    world.pull(0, 0, messages(2), 1_000);
    world.pull(0, 0, messages(2), 50);
    world.finish();
    assert_eq!(world.replies.len(), before, "both wait");
    world.now = world.broker.next_timeout().unwrap();
    world.finish();
    assert_eq!((world.replies.len(), pulled(&world)), (before + 1, 0), "the second one in vain");
    publish(&mut world, topic, 1);
    world.finish();
    assert_eq!((delivered(&world).len(), pulled(&world)), (1, 1));
    world.pull(0, 0, messages(2), 0);
    world.finish();
    assert_eq!(pulled(&world), 0);
}

/// A pull that had no bytes left was only complete when the cycle ended, and the next one of the consumer waited for
/// something else to happen.
#[test]
fn what_a_pull_leaves_is_for_the_next_one_at_once() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(1), None);
    publish(&mut world, topic, 5);
    for _ in 0..2 {
        world.pull(0, 0, Window { messages: 9, bytes: 1 }, 1_000);
    }
    world.finish();
    assert_eq!(delivered(&world), [(0, 0), (0, 1)], "one whatever its size for each pull");
    world.settle(0, 0, Settlement::Ack, range(0, 2));
    world.finish();
    assert_eq!(delivered(&world), [(0, 2)], "and then within the window");
}

#[test]
fn a_pull_without_a_wait_gets_what_must_be_read_first() {
    let (mut world, topic) = world_with(Limits { cache_bytes_max: 0, ..Limits::default() });
    publish(&mut world, topic, 3);
    world.finish();
    world.subscribe(0, 0, "t", "g", messages(0), None);
    world.pull(0, 0, messages(2), 0);
    world.finish();
    let before = world.replies.len();
    world.answer_all();
    world.finish();
    assert_eq!(world.replies.len(), before + 1);
    assert_eq!(delivered(&world), [(0, 0), (0, 1)]);
}

/// A group that waited for a read of another one, which was in vain because retention had dropped where it began, took
/// that for a read error and waited before it asked again.
#[test]
fn who_waited_for_a_read_of_what_is_dropped_asks_again_at_once() {
    let (mut world, topic) = world_with(Limits { cache_bytes_max: 0, ..Limits::default() });
    world.subscribe(0, 0, "t", "g", messages(0), None);
    world.subscribe(0, 1, "t", "h", messages(0), None);
    publish(&mut world, topic, 10);
    world.finish();
    let to = Start::Offset(Offset(6));
    world.admin(0, AdminCommand::Seek { topic: "t".into(), name: "h".into(), to });
    world.finish();
    world.answer_all();
    world.flow(0, 0, messages(1));
    world.flow(0, 1, messages(1));
    world.finish();
    assert_eq!(world.reads.len(), 1, "both wait for one read");
    let retention = Retention { max_messages: Some(5), ..Retention::default() };
    let settings = TopicSettings { retention, ..TopicSettings::default() };
    world.admin(0, AdminCommand::ChangeTopic { name: "t".into(), settings });
    world.finish();
    assert_eq!(world.fold.topics[&topic].start, Offset(5));
    for _ in 0..2 {
        world.answer_all();
        world.finish();
    }
    let mut got = delivered(&world);
    got.sort_unstable();
    assert_eq!(got, [(0, 5), (1, 6)]);
}

/// A policy that keeps an order goes through everything again, and a seek after that forgot what had been handed out.
#[test]
fn after_a_seek_what_another_policy_handed_out_is_marked_as_redelivered() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(5), Some(at_once()));
    publish(&mut world, topic, 2);
    world.finish();
    world.unsubscribe(0, 0);
    let settings = GroupSettings { policy: Policy::Exclusive, ..at_once() };
    world.admin(0, AdminCommand::ChangeGroup { topic: "t".into(), name: "g".into(), settings });
    world.finish();
    world.admin(0, AdminCommand::Seek { topic: "t".into(), name: "g".into(), to: Start::Earliest });
    world.finish();
    // The model knows that they were handed out, and must be told so.
    world.subscribe(0, 0, "t", "g", messages(5), None);
    world.finish();
    assert_eq!(delivered(&world), [(0, 0), (0, 1)]);
}

#[test]
fn pulls_beyond_the_limit_are_answered_with_what_is_there() {
    let (mut world, _) = world_with(Limits { pulls_waiting_max: 2, ..Limits::default() });
    world.subscribe(0, 0, "t", "g", messages(0), None);
    let before = world.replies.len();
    for _ in 0..5 {
        world.pull(0, 0, messages(2), 10_000);
    }
    world.finish();
    assert_eq!(world.replies.len(), before + 3);
    world.unsubscribe(0, 0);
    world.finish();
    assert_eq!(world.replies.len(), before + 6, "those that waited, and that it is done");
    assert!(world.broker.next_timeout().is_none());
}

#[test]
fn the_limit_in_flight_holds_over_all_consumers_of_a_group() {
    let (mut world, topic) = world_with(Limits { in_flight_max: 7, ..Limits::default() });
    world.subscribe(0, 0, "t", "g", messages(100), None);
    world.subscribe(0, 1, "t", "g", messages(100), None);
    publish(&mut world, topic, 20);
    world.finish();
    assert_eq!(delivered(&world).len(), 7);
    world.settle(0, 0, Settlement::Ack, range(0, 3));
    world.finish();
    assert_eq!(delivered(&world).len(), 2);
}

#[test]
fn a_group_full_of_retries_hands_out_nothing_new_until_they_have_drained() {
    let (mut world, topic) = world_with(Limits { retries_max: 3, ..Limits::default() });
    world.subscribe(0, 0, "t", "g", messages(3), None);
    publish(&mut world, topic, 10);
    world.finish();
    world.settle(0, 0, Settlement::Nack { delay_ms: Some(100), reason: None }, range(0, 3));
    world.finish();
    assert_eq!(delivered(&world), []);
    world.now.0 += 100;
    world.finish();
    assert_eq!(delivered(&world), [(0, 0), (0, 1), (0, 2)]);
    world.settle(0, 0, Settlement::Ack, range(0, 3));
    world.finish();
    assert_eq!(delivered(&world), [(0, 3), (0, 4), (0, 5)]);
}

#[test]
fn a_group_with_too_many_gaps_waits_for_its_oldest_message() {
    let (mut world, topic) = world_with(Limits { settled_ranges_max: 2, ..Limits::default() });
    world.subscribe(0, 0, "t", "g", messages(6), None);
    publish(&mut world, topic, 20);
    world.finish();
    world.settle(0, 0, Settlement::Ack, vec![OffsetRange::new(1, 2), OffsetRange::new(3, 4)]);
    world.finish();
    assert_eq!(delivered(&world), []);
    world.settle(0, 0, Settlement::Ack, range(0, 1));
    world.finish();
    assert_eq!(delivered(&world), [(0, 6), (0, 7), (0, 8)]);
}

/// Found by random restarts: with as many gaps as a group may have, nothing new was handed out after a start, and the
/// oldest message, handed out before it and not counted, was taken for new.
#[test]
fn after_a_restart_a_group_with_too_many_gaps_begins_with_its_oldest_message() {
    let (mut world, topic) = world_with(Limits { settled_ranges_max: 2, ..Limits::default() });
    world.subscribe(0, 0, "t", "g", messages(6), None);
    publish(&mut world, topic, 20);
    world.finish();
    world.settle(0, 0, Settlement::Ack, vec![OffsetRange::new(1, 2), OffsetRange::new(3, 4)]);
    world.finish();
    world.restart();
    world.begin(0);
    world.subscribe(0, 0, "t", "g", messages(6), None);
    world.finish();
    world.answer_all();
    world.finish();
    assert_eq!(delivered(&world), [(0, 0)]);
    world.settle(0, 0, Settlement::Ack, range(0, 1));
    world.finish();
    assert_eq!(delivered(&world).first(), Some(&(0, 2)));
}

#[test]
fn a_cold_backlog_streams_with_one_read_at_a_time_and_one_ahead() {
    let limits = Limits { cache_bytes_max: 1 << 20, ..Limits::default() };
    let (mut world, topic) = world_with(limits.clone());
    world.checks_bytes = false;
    for _ in 0..40 {
        publish(&mut world, topic, 500);
        world.finish();
    }
    world.restart();
    world.begin(0);
    world.subscribe(0, 0, "t", "g", messages(3_000), None);
    world.begin(1);
    world.subscribe(1, 0, "t", "h", messages(3_000), None);
    let mut got = 0;
    for _ in 0..60 {
        world.finish();
        assert!(world.reads.len() <= 1, "groups at one place share a read: {:?}", world.reads);
        got += world.delivered.len();
        for session in [0, 1] {
            world.settle(session, 0, Settlement::Ack, range(0, u64::MAX));
        }
        world.answer_all();
    }
    assert_eq!(got, 40_000);
}

#[test]
fn a_read_in_vain_is_asked_again_a_little_later() {
    let (mut world, topic) = world_with(Limits { cache_bytes_max: 0, ..Limits::default() });
    publish(&mut world, topic, 3);
    world.finish();
    world.subscribe(0, 0, "t", "g", messages(5), None);
    world.finish();
    let read = world.reads.remove(0);
    world.broker.loaded(world.now, read, None, &mut world.out);
    world.finish();
    assert!(world.reads.is_empty());
    let later = world.broker.next_timeout().unwrap();
    assert!(later > world.now);
    world.now = later;
    world.finish();
    assert_eq!(world.reads, [read]);
    world.answer_all();
    world.finish();
    assert_eq!(delivered(&world).len(), 3);
}

#[test]
fn messages_go_when_all_groups_are_done_and_stay_while_there_is_no_group() {
    let (mut world, topic) = world();
    publish(&mut world, topic, 600);
    world.finish();
    assert_eq!(world.fold.topics[&topic].start, Offset(0));
    world.subscribe(0, 0, "t", "g", messages(1_000), None);
    world.subscribe(0, 1, "t", "h", messages(1_000), None);
    world.finish();
    world.settle(0, 0, Settlement::Ack, range(0, 500));
    world.finish();
    assert_eq!(world.fold.topics[&topic].start, Offset(0), "the other group is not done");
    world.settle(0, 1, Settlement::Ack, range(0, 100));
    world.finish();
    assert_eq!(world.fold.topics[&topic].start, Offset(0), "not worth a record yet");
    world.settle(0, 1, Settlement::Ack, range(0, 300));
    world.finish();
    assert_eq!(world.fold.topics[&topic].start, Offset(300));
    world.admin(0, AdminCommand::DeleteGroup { topic: "t".into(), name: "h".into() });
    world.finish();
    assert_eq!(world.fold.topics[&topic].start, Offset(300), "200 more are not worth a record");
    world.settle(0, 0, Settlement::Ack, range(0, 600));
    world.finish();
    assert_eq!(world.fold.topics[&topic].start, Offset(600));
}

#[test]
fn a_group_begins_where_it_was_told_to_within_what_is_there() {
    let (mut world, topic) = world();
    publish(&mut world, topic, 10);
    let create = |name: &str, start| AdminCommand::CreateGroup {
        topic: "t".into(),
        name: name.into(),
        settings: GroupSettings::default(),
        start,
    };
    world.admin(0, create("a", Start::Earliest));
    world.admin(0, create("b", Start::Latest));
    world.admin(0, create("c", Start::Offset(Offset(4))));
    world.admin(0, create("d", Start::Offset(Offset(400))));
    world.finish();
    let floors: Vec<u64> = world.fold.groups.values().map(|group| group.floor.0).collect();
    assert_eq!(floors, [0, 10, 4, 10]);
}

#[test]
fn a_deleted_topic_takes_its_groups_along_and_tells_their_consumers() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(5), None);
    world.pull(0, 0, messages(5), 5_000);
    world.finish();
    world.admin(0, AdminCommand::DeleteTopic { name: "t".into() });
    assert!(world.replies.iter().any(|reply| reply.2.as_ref().is_err_and(|r| r.code == ErrorCode::Deleted)));
    world.publish(0, 0, 1, vec![(topic, 1)]);
    assert_eq!(world.refused[0].2, ErrorCode::Deleted);
    world.finish();
    assert!(world.fold.topics.is_empty() && world.fold.groups.is_empty());
    assert!(world.broker.next_timeout().is_none());
    let again = world.find_topic(0, "t").unwrap();
    assert_ne!(again, topic, "a number is never used again");
    world.finish();
}

#[test]
fn creating_what_exists_is_no_error_unless_it_differs() {
    let (mut world, _) = world();
    let topic = || AdminCommand::CreateTopic { name: "t".into(), settings: TopicSettings::default() };
    let first = world.admin(0, topic());
    assert_eq!(answer(&world, first), Ok(Reply::Done));
    let group = |lease_ms| AdminCommand::CreateGroup {
        topic: "t".into(),
        name: "g".into(),
        settings: GroupSettings { lease_ms, ..GroupSettings::default() },
        start: Start::Earliest,
    };
    let answers = [group(500), group(500), group(501)].map(|command| world.admin(0, command));
    assert_eq!(answer(&world, answers[0]), Ok(Reply::Done));
    assert_eq!(answer(&world, answers[1]), Ok(Reply::Done));
    assert_eq!(code(&world, answers[2]), ErrorCode::AlreadyExists);
    world.finish();
}

#[test]
fn nothing_is_created_by_using_it_where_that_is_refused() {
    let mut world = World::new(Limits::default(), AutoCreate::Refused);
    world.begin(0);
    assert_eq!(world.find_topic(0, "t"), None);
    assert_eq!(last_code(&world), ErrorCode::UnknownTopic);
    world.admin(0, AdminCommand::CreateTopic { name: "t".into(), settings: TopicSettings::default() });
    assert_eq!(world.subscribe(0, 0, "t", "g", messages(1), None), None);
    assert_eq!(last_code(&world), ErrorCode::UnknownGroup);
    world.finish();
    assert!(world.fold.groups.is_empty());
}

#[test]
fn settings_that_make_no_sense_are_refused_with_the_reason() {
    let (mut world, _) = world();
    let backoff = Backoff::default();
    let cases = [
        GroupSettings { lease_ms: 99, ..GroupSettings::default() },
        GroupSettings { lease_ms: u64::MAX, ..GroupSettings::default() },
        GroupSettings { backoff: Backoff { multiplier_percent: 99, ..backoff }, ..GroupSettings::default() },
        GroupSettings { backoff: Backoff { jitter_percent: 101, ..backoff }, ..GroupSettings::default() },
        GroupSettings { backoff: Backoff { initial_ms: 70_000, ..backoff }, ..GroupSettings::default() },
        GroupSettings { backoff: Backoff { maximum_ms: u64::MAX, ..backoff }, ..GroupSettings::default() },
    ];
    for settings in cases {
        assert_eq!(world.subscribe(0, 0, "new", "g", messages(1), Some(settings)), None);
        assert_eq!(last_code(&world), ErrorCode::Invalid);
    }
    world.finish();
    assert_eq!(world.fold.topics.len(), 1, "nothing was created on the way");
}

#[test]
fn handles_and_sessions_that_are_wrong_are_refused_and_do_no_harm() {
    let (mut world, topic) = world();
    world.subscribe(0, 0, "t", "g", messages(1), None);
    let twice = world.open(0, 0, "q");
    assert_eq!(code(&world, twice), ErrorCode::Invalid);
    assert_eq!(world.subscribe(0, 0, "t", "h", messages(1), None), None);
    assert_eq!(last_code(&world), ErrorCode::Invalid);
    world.pull(0, 9, messages(1), 0);
    world.unsubscribe(0, 9);
    world.flow(0, 9, messages(1));
    world.handle(S, Command::CloseProducer(CloseProducer { producer: 9 }));
    let nobody = SessionId(42);
    world.handle(nobody, Command::End(Ending::Lost));
    world.handle(nobody, Command::OutputFull);
    for request in 900..903 {
        let command = match request {
            900 => Command::Unsubscribe(Unsubscribe { request, consumer: 0 }),
            901 => {
                let name = "p".into();
                Command::OpenProducer(OpenProducer { request, producer: 0, name, resume: None })
            }
            _ => Command::Pull(Pull { request, consumer: 0, window: messages(1), wait_ms: 0 }),
        };
        world.handle(nobody, command);
    }
    world.finish();
    for request in 900..903 {
        assert!(answer(&world, request).is_err());
    }
    let status = world.admin(0, AdminCommand::Status);
    assert_eq!(code(&world, status), ErrorCode::Invalid);
    publish(&mut world, topic, 1);
    world.finish();
    assert_eq!(delivered(&world), [(0, 0)]);
}

#[test]
fn limits_are_named_when_they_are_hit() {
    let limits = Limits {
        topics_max: 1,
        groups_max: 1,
        producers_per_connection_max: 1,
        consumers_per_connection_max: 1,
        ..Limits::default()
    };
    let (mut world, _) = world_with(limits);
    let text = |world: &World| {
        let refusal = world.replies.last().unwrap().2.clone().unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Limit);
        refusal.text
    };
    assert_eq!(world.find_topic(0, "u"), None);
    assert!(text(&world).contains("topics_max"));
    world.open(0, 1, "q");
    assert!(text(&world).contains("producers_per_connection_max"));
    world.subscribe(0, 0, "t", "g", messages(1), None);
    world.subscribe(0, 1, "t", "g", messages(1), None);
    assert!(text(&world).contains("consumers_per_connection_max"));
    world.begin(1);
    world.subscribe(1, 1, "t", "h", messages(1), None);
    assert!(text(&world).contains("groups_max"));
    world.finish();
}

#[test]
fn browsing_shows_messages_from_memory_or_store_and_changes_nothing() {
    for cache_bytes_max in [0, 1 << 20] {
        let (mut world, topic) = world_with(Limits { cache_bytes_max, ..Limits::default() });
        publish(&mut world, topic, 3);
        publish(&mut world, topic, 3);
        world.finish();
        let before = world.fold.clone();
        let requests =
            [browse("t", 1, 4), browse("t", 99, 4), browse("t", 0, 0)].map(|command| world.admin(0, command));
        world.finish();
        world.answer_all();
        world.finish();
        let count = |request| match answer(&world, request) {
            Ok(Reply::Browsed { runs, messages, .. }) => {
                let block = MessageBlock::parse(messages.clone(), &Limits::default()).unwrap();
                let offsets: Vec<u64> =
                    runs.iter().flat_map(|run| run.offset.0..run.offset.0 + u64::from(run.count)).collect();
                assert_eq!(block.count(), offsets.len());
                offsets
            }
            other => panic!("messages: {other:?}"),
        };
        assert_eq!(count(requests[0]), [1, 2, 3, 4]);
        assert_eq!((count(requests[1]).len(), count(requests[2]).len()), (0, 0));
        assert_eq!(world.fold, before);
    }
}

#[test]
fn a_million_messages_and_a_slow_consumer_stay_within_the_limits() {
    let limits = Limits { cache_bytes_max: 1 << 20, in_flight_max: 1_000, ..Limits::default() };
    let mut broker = batonmq::broker::Broker::new(
        batonmq::model::snapshot::Snapshot::default(),
        limits.clone(),
        AutoCreate::Allowed,
    );
    let mut out = batonmq::broker::Output::default();
    let now = Timestamp(1);
    let open = OpenProducer { request: 1, producer: 0, name: "p".into(), resume: None };
    let subscribe = Subscribe {
        request: 2,
        consumer: 0,
        topic: "t".into(),
        group: "g".into(),
        start: Start::Earliest,
        priority: 0,
        settings: Some(at_once()),
        window: messages(100_000),
    };
    for command in [Command::Begin, Command::OpenProducer(open), Command::Subscribe(subscribe)] {
        broker.handle(now, S, command, &mut out);
    }
    let block = MessageBlock::encode(&vec![Message::new("some words"); 1_000]);
    for round in 0..1_000 {
        let (sequence, parts) = (Sequence(round * 1_000 + 1), vec![(TopicId(0), 1_000)]);
        broker.handle(
            now,
            S,
            Command::Publish(Publish { producer: 0, sequence, parts }, block.clone()),
            &mut out,
        );
        // The consumer is slow, and fails at every second message.
        let settle = |settlement, at| {
            let ranges = vec![OffsetRange::new(at, at + 1)];
            Command::Settle(Settle {
                request: 0,
                consumer: 0,
                topic: TopicId(0),
                generation: 0,
                settlement,
                ranges,
            })
        };
        broker.handle(
            now,
            S,
            settle(Settlement::Nack { delay_ms: Some(60_000), reason: None }, 2 * round),
            &mut out,
        );
        broker.handle(now, S, settle(Settlement::Ack, 2 * round + 1), &mut out);
        broker.finish(now, &mut out);
        out.records.clear();
        out.effects.clear();
        out.reads.clear();
        let counts = broker.counts();
        assert!(counts.cache_bytes <= limits.cache_bytes_max);
        assert!(counts.in_flight <= limits.in_flight_max);
        assert!(counts.retries <= 1_000);
        assert!(broker.snapshot().groups.values().all(|group| group.settled.range_count() <= 1_001));
    }
    assert_eq!(broker.counts().messages, 1_000_000);
}
