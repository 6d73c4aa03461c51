//! The rules by which groups share their messages in order: one active consumer, one consumer for each key. And how
//! long groups live. The model of `broker_world` watches all of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{Offset, OffsetRange, SessionId, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::{
    Backoff, EPHEMERAL_GRACE_MS, GroupSettings, IDLE_MS_MIN, Lifetime, Policy, Start,
};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::*;
use batonmq::protocol::response::{Activity, GroupInfo, Reply};
use broker_world::World;

const S: SessionId = SessionId(0);

/// A world with a producer of session 0 (handle 0) and the topic `t`, with sessions 1 to 3 beside it.
fn world() -> (World, TopicId) {
    world_with(Limits::default())
}

fn world_with(limits: Limits) -> (World, TopicId) {
    let mut world = World::new(limits, AutoCreate::Allowed);
    (0..4).for_each(|session| world.begin(session));
    world.open(0, 0, "p");
    let topic = world.find_topic(0, "t").unwrap();
    world.finish();
    (world, topic)
}

fn of(policy: Policy) -> GroupSettings {
    let backoff = Backoff { initial_ms: 500, multiplier_percent: 100, maximum_ms: 500, jitter_percent: 0 };
    GroupSettings { policy, backoff, ..GroupSettings::default() }
}

fn messages(messages: u32) -> Window {
    Window { messages, bytes: u64::MAX }
}

/// Subscribes session and handle to the group `g` of `t`.
fn join(world: &mut World, session: u64, handle: u32, window: u32, settings: &GroupSettings, priority: u8) {
    let settings = Some(settings.clone());
    world.subscribe_as(session, handle, "t", "g", messages(window), settings, priority).unwrap();
}

/// Publishes a message for each key; of an empty one, a message without.
fn publish(world: &mut World, topic: TopicId, keys: &[&str]) {
    let id = world.clients[&S].producers[&0];
    let last = world.last_of(id).unwrap().0;
    let message = |(at, key): (usize, &&str)| Message {
        key: (!key.is_empty()).then(|| key.to_string().into()),
        ..Message::new(format!("{}", last + at as u64))
    };
    let messages: Vec<Message> = keys.iter().enumerate().map(message).collect();
    world.publish_messages(0, 0, last + 1, vec![(topic, keys.len() as u32)], &messages);
}

fn range(start: u64, end: u64) -> Vec<OffsetRange> {
    vec![OffsetRange::new(start, end)]
}

fn one(offset: u64) -> Vec<OffsetRange> {
    range(offset, offset + 1)
}

/// Which session got which offsets in the last cycle.
fn delivered(world: &World) -> Vec<(u64, u64)> {
    world.delivered.iter().map(|(session, _, _, offset, _)| (session.0, *offset)).collect()
}

fn offsets(world: &World) -> Vec<u64> {
    world.delivered.iter().map(|delivery| delivery.3).collect()
}

fn role(world: &World, session: u64) -> Option<Activity> {
    world.order.members[&(SessionId(session), 0)].role
}

fn group(world: &mut World, name: &str) -> Option<GroupInfo> {
    let request = world.admin(0, AdminCommand::ListGroups { topic: None, after: None });
    let answer = world.replies.iter().find(|reply| reply.1 == request).expect("an answer").2.clone();
    let Ok(Reply::Groups { groups, .. }) = answer else { panic!("a list") };
    groups.into_iter().find(|group| group.name == name)
}

fn change(world: &mut World, settings: GroupSettings) {
    world.admin(0, AdminCommand::ChangeGroup { topic: "t".into(), name: "g".into(), settings });
}

fn last_code(world: &World) -> ErrorCode {
    world.replies.last().unwrap().2.clone().unwrap_err().code
}

/// Lets reads come and time pass until nothing moves; acks everything. Answers who got what, in this order.
fn drain(world: &mut World) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    for _ in 0..1_000 {
        world.finish();
        let got = delivered(world);
        for (session, handle, _, offset, _) in world.delivered.clone() {
            world.settle(session.0, handle, Settlement::Ack, one(offset));
        }
        if got.is_empty() && world.reads.is_empty() {
            match world.broker.next_timeout() {
                Some(at) if world.broker.counts().retries > 0 => world.now = world.now.max(at),
                _ => return all,
            }
        }
        world.answer_all();
        all.extend(got);
    }
    panic!("never drained: {all:?}");
}

#[test]
fn one_consumer_is_active_and_the_next_takes_over_at_once() {
    let (mut world, topic) = world();
    let settings = of(Policy::Exclusive);
    for (session, handle, priority) in [(1, 0, 0), (3, 0, 1), (2, 0, 3), (2, 1, 3)] {
        join(&mut world, session, handle, 2, &settings, priority);
    }
    publish(&mut world, topic, &[""; 6]);
    world.finish();
    assert_eq!(delivered(&world), [(1, 0), (1, 1)], "who is active stays so, whoever comes");
    let (active, waiting) = (Some(Activity::Active), Some(Activity::Waiting));
    assert_eq!([1, 2, 3].map(|session| role(&world, session)), [active, waiting, waiting]);

    world.end(1, Ending::Lost);
    world.finish();
    assert_eq!(delivered(&world), [(2, 0), (2, 1)], "what was in flight goes first, without a wait");
    assert_eq!(
        [2, 3].map(|session| role(&world, session)),
        [active, waiting],
        "the highest priority is next"
    );
    assert_eq!(world.settle(2, 0, Settlement::Ack, range(0, 2)), 2);
    world.finish();
    world.unsubscribe(2, 0);
    world.finish();
    assert_eq!(delivered(&world), [(2, 2), (2, 3)], "of one priority the one that joined first");
    world.end(2, Ending::Closed);
    world.finish();
    assert_eq!(delivered(&world), [(3, 2), (3, 3)]);
    assert_eq!(role(&world, 3), active);
}

#[test]
fn nothing_goes_past_a_message_that_waits_for_its_retry() {
    let (mut world, topic) = world();
    join(&mut world, 1, 0, 3, &of(Policy::Exclusive), 0);
    publish(&mut world, topic, &[""; 8]);
    world.finish();
    world.settle(1, 0, Settlement::Nack { delay_ms: None, reason: None }, one(1));
    world.settle(1, 0, Settlement::Ack, one(0));
    world.settle(1, 0, Settlement::Release, one(2));
    world.finish();
    assert_eq!(delivered(&world), [], "not even what was released");
    world.now.0 += 499;
    world.finish();
    assert_eq!(delivered(&world), []);
    world.now.0 += 1;
    world.finish();
    assert_eq!(offsets(&world), [1, 2, 3]);
    world.settle(1, 0, Settlement::Reject { reason: None }, one(1));
    world.finish();
    assert_eq!(offsets(&world), [4], "what is dead holds nothing up");
}

#[test]
fn order_is_kept_over_a_restart() {
    let (mut world, topic) =
        world_with(Limits { retries_max: 1, settled_ranges_max: 16, ..Limits::default() });
    join(&mut world, 1, 0, 5, &of(Policy::Exclusive), 0);
    publish(&mut world, topic, &[""; 8]);
    world.finish();
    world.settle(1, 0, Settlement::Ack, one(2));
    for offset in [1, 3] {
        world.settle(1, 0, Settlement::Nack { delay_ms: Some(5_000), reason: None }, one(offset));
    }
    world.finish();
    world.restart();
    world.begin(1);
    join(&mut world, 1, 0, 1, &of(Policy::Exclusive), 0);
    let got: Vec<u64> = drain(&mut world).into_iter().map(|(_, offset)| offset).collect();
    assert_eq!(got, [0, 1, 3, 4, 5, 6, 7]);
}

#[test]
fn a_message_that_must_be_read_is_waited_for_in_order() {
    let (mut world, topic) = world_with(Limits { cache_bytes_max: 0, ..Limits::default() });
    join(&mut world, 1, 0, 3, &of(Policy::Exclusive), 0);
    publish(&mut world, topic, &[""; 4]);
    drain_some(&mut world);
    world.settle(1, 0, Settlement::Release, one(0));
    world.settle(1, 0, Settlement::Release, one(1));
    let got: Vec<u64> = drain(&mut world).into_iter().map(|(_, offset)| offset).collect();
    assert_eq!(got, [0, 1, 3], "2 is with its consumer");
}

/// Lets reads come until nothing moves.
fn drain_some(world: &mut World) {
    loop {
        world.finish();
        if world.reads.is_empty() {
            return;
        }
        world.answer_all();
    }
}

#[test]
fn a_change_of_policy_lets_what_is_in_flight_come_to_an_end() {
    let (mut world, topic) = world();
    for session in [1, 2] {
        join(&mut world, session, 0, 2, &of(Policy::Fair), 0);
    }
    publish(&mut world, topic, &["a", "b", "a", "b", "a", "b", "a", "b"]);
    world.finish();
    assert_eq!(delivered(&world).len(), 4);
    assert_eq!(role(&world, 1), None);
    change(&mut world, of(Policy::Exclusive));
    world.finish();
    assert_eq!(
        [1, 2].map(|session| role(&world, session)),
        [Some(Activity::Active), Some(Activity::Waiting)]
    );
    world.settle(1, 0, Settlement::Ack, range(0, 9));
    world.finish();
    assert_eq!(delivered(&world), [], "the other one holds some");
    world.settle(2, 0, Settlement::Release, range(0, 9));
    world.finish();
    let first: Vec<(u64, u64)> = delivered(&world);
    assert_eq!(first.len(), 2);
    change(&mut world, of(Policy::Key));
    world.finish();
    assert_eq!([1, 2].map(|session| role(&world, session)), [Some(Activity::Active); 2]);
    world.settle(1, 0, Settlement::Nack { delay_ms: None, reason: None }, range(0, 9));
    change(&mut world, of(Policy::RoundRobin));
    let mut got: Vec<u64> = drain(&mut world).into_iter().map(|(_, offset)| offset).collect();
    got.sort_unstable();
    assert_eq!(got.len(), 6);
    got.dedup();
    assert_eq!(got.len(), 6, "each once");
}

#[test]
fn a_waiting_consumer_that_pulls_is_answered_in_vain() {
    let (mut world, topic) = world();
    for session in [1, 2] {
        join(&mut world, session, 0, 0, &of(Policy::Exclusive), 0);
    }
    publish(&mut world, topic, &[""; 3]);
    world.pull(2, 0, messages(2), 100);
    world.finish();
    assert_eq!(delivered(&world), []);
    world.now.0 += 100;
    world.finish();
    assert!(world.clients[&SessionId(2)].pulls.is_empty());
    world.pull(1, 0, messages(2), 100);
    world.finish();
    assert_eq!(delivered(&world), [(1, 0), (1, 1)]);
}

#[test]
fn of_each_key_one_message_goes_at_a_time_and_the_others_flow_on() {
    let (mut world, topic) = world();
    join(&mut world, 1, 0, 10, &of(Policy::Key), 0);
    publish(&mut world, topic, &["a", "a", "b", "", "a", "", "b"]);
    world.finish();
    assert_eq!(offsets(&world), [0, 2, 3, 5]);
    assert_eq!(group(&mut world, "g").unwrap().parked, 3);
    world.settle(1, 0, Settlement::Nack { delay_ms: None, reason: None }, one(0));
    world.settle(1, 0, Settlement::Ack, one(2));
    world.finish();
    assert_eq!(offsets(&world), [6], "a waits for its retry, b goes on");
    world.now.0 += 500;
    world.finish();
    assert_eq!(offsets(&world), [0]);
    world.settle(1, 0, Settlement::Reject { reason: None }, one(0));
    world.finish();
    assert_eq!(offsets(&world), [1], "what is dead frees its key");
    world.settle(1, 0, Settlement::Ack, range(1, 7));
    world.finish();
    assert_eq!(offsets(&world), [4]);
    assert_eq!(group(&mut world, "g").unwrap().parked, 0);
}

const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

#[test]
fn keys_without_credit_hold_nobody_up() {
    let (mut world, topic) = world();
    for session in [1, 2] {
        join(&mut world, session, 0, 1, &of(Policy::Key), 0);
    }
    let mut got = [0; 3];
    for _ in 0..10 {
        publish(&mut world, topic, &KEYS);
        world.finish();
        loop {
            let of_two: Vec<u64> =
                delivered(&world).iter().filter(|(session, _)| *session == 2).map(|(_, at)| *at).collect();
            for (session, _) in delivered(&world) {
                got[session as usize] += 1;
            }
            if of_two.is_empty() {
                break;
            }
            of_two.iter().for_each(|offset| {
                world.settle(2, 0, Settlement::Ack, one(*offset));
            });
            world.finish();
        }
    }
    assert_eq!(got[1], 1, "it never settled");
    assert!(got[2] >= 20, "the other got all of its keys: {got:?}");
    assert_eq!(group(&mut world, "g").unwrap().parked, 80 - got[1] - got[2]);
}

#[test]
fn only_keys_that_move_wait_for_what_is_in_flight() {
    let (mut world, topic) = world();
    join(&mut world, 1, 0, 100, &of(Policy::Key), 0);
    publish(&mut world, topic, &KEYS);
    world.finish();
    assert_eq!(delivered(&world).len(), 8);
    join(&mut world, 2, 0, 100, &of(Policy::Key), 0);
    publish(&mut world, topic, &KEYS);
    world.finish();
    assert_eq!(delivered(&world), [], "every key is busy");
    for offset in 0..8 {
        world.settle(1, 0, Settlement::Ack, one(offset));
        world.finish();
        assert_eq!(offsets(&world), [offset + 8], "and waits for its own message only");
    }
    // The model sees to it that each went to the right one.
    let moved = world.groups.values().flat_map(|known| known.values());
    let moved = moved.filter(|known| known.holder == Some((SessionId(2), 0))).count();
    assert!((1..8).contains(&moved), "some have moved: {moved}");
    world.end(2, Ending::Lost);
    world.finish();
    world.now.0 += 500;
    world.finish();
    assert_eq!(delivered(&world).len(), moved, "and come back");
}

#[test]
fn keys_go_to_consumers_of_the_highest_priority() {
    let (mut world, topic) = world();
    join(&mut world, 1, 0, 100, &of(Policy::Key), 0);
    join(&mut world, 2, 0, 100, &of(Policy::Key), 5);
    publish(&mut world, topic, &KEYS);
    world.finish();
    assert!(delivered(&world).iter().all(|(session, _)| *session == 2));
    world.unsubscribe(2, 0);
    world.finish();
    assert_eq!(delivered(&world).len(), 8, "the other is there for when it goes");
    assert!(delivered(&world).iter().all(|(session, _)| *session == 1));
}

#[test]
fn a_group_goes_no_further_than_so_many_parked_messages() {
    let (mut world, topic) = world_with(Limits { parked_max: 3, ..Limits::default() });
    join(&mut world, 1, 0, 100, &of(Policy::Key), 0);
    publish(&mut world, topic, &["a", "a", "a", "a", "a", "b"]);
    world.finish();
    assert_eq!(offsets(&world), [0]);
    assert_eq!(group(&mut world, "g").unwrap().parked, 3);
    world.settle(1, 0, Settlement::Ack, one(0));
    world.finish();
    assert_eq!(offsets(&world), [1], "there is room for one more, and no further");
    assert_eq!(group(&mut world, "g").unwrap().parked, 3);
    world.settle(1, 0, Settlement::Ack, range(0, 9));
    let got: Vec<u64> = drain(&mut world).into_iter().map(|(_, offset)| offset).collect();
    assert_eq!(got, [2, 5, 3, 4]);
}

#[test]
fn what_was_parked_is_found_again_after_a_restart() {
    let limits = Limits { retries_max: 1, parked_max: 5, cache_bytes_max: 0, ..Limits::default() };
    let (mut world, topic) = world_with(limits);
    join(&mut world, 1, 0, 100, &of(Policy::Key), 0);
    publish(&mut world, topic, &["a", "b", "a", "", "b", "a", "c"]);
    drain_some(&mut world);
    world.settle(1, 0, Settlement::Ack, [one(3), one(6)].concat());
    for offset in [0, 1] {
        world.settle(1, 0, Settlement::Nack { delay_ms: Some(5_000), reason: None }, one(offset));
    }
    world.finish();
    world.restart();
    world.begin(1);
    join(&mut world, 1, 0, 100, &of(Policy::Key), 0);
    drain_some(&mut world);
    assert_eq!(delivered(&world), [], "both keys wait for their retry");
    let got: Vec<u64> = drain(&mut world).into_iter().map(|(_, offset)| offset).collect();
    let of_key =
        |offsets: &[u64]| got.iter().copied().filter(|at| offsets.contains(at)).collect::<Vec<u64>>();
    assert_eq!(of_key(&[0, 2, 5]), [0, 2, 5]);
    assert_eq!(of_key(&[1, 4]), [1, 4]);
    assert_eq!(got.len(), 5);
}

/// Keys that were busy when their group was set to another place stayed so for good.
#[test]
fn a_group_that_is_set_back_goes_through_its_keys_again() {
    let (mut world, topic) = world();
    join(&mut world, 1, 0, 100, &of(Policy::Key), 0);
    publish(&mut world, topic, &["a", "a", "b", "a"]);
    world.finish();
    assert_eq!(offsets(&world), [0, 2]);
    world.admin(0, AdminCommand::Seek { topic: "t".into(), name: "g".into(), to: Start::Earliest });
    let got: Vec<u64> = drain(&mut world).into_iter().map(|(_, offset)| offset).collect();
    assert_eq!(got, [0, 2, 1, 3]);
}

#[test]
fn what_has_expired_frees_its_place_in_line() {
    let (mut world, topic) = world();
    join(&mut world, 1, 0, 100, &of(Policy::Key), 0);
    let now = world.now;
    let message = |ms: Option<u64>| Message {
        key: Some("a".into()),
        expires_at: ms.map(|ms| batonmq::model::time::Timestamp(now.0 + ms)),
        ..Message::new("x")
    };
    let list = [message(None), message(Some(100)), message(Some(10_000)), message(None)];
    world.publish_messages(0, 0, 1, vec![(topic, 4)], &list);
    world.finish();
    assert_eq!(offsets(&world), [0]);
    world.now.0 += 200;
    world.settle(1, 0, Settlement::Ack, one(0));
    let got: Vec<u64> = drain(&mut world).into_iter().map(|(_, offset)| offset).collect();
    assert_eq!(got, [2, 3]);
}

#[test]
fn a_window_in_bytes_holds_under_every_policy() {
    for policy in [Policy::RoundRobin, Policy::Fair, Policy::Exclusive, Policy::Key] {
        let (mut world, topic) = world();
        let size = Message { key: Some("a".into()), ..Message::new("0") }.encoded_len() as u64;
        let window = Window { messages: 100, bytes: 2 * size + 1 };
        world.subscribe(1, 0, "t", "g", window, Some(of(policy)));
        publish(&mut world, topic, &KEYS);
        world.finish();
        assert_eq!(delivered(&world).len(), 2, "{policy:?}");
        assert_eq!(drain(&mut world).len(), 0, "nothing without settling");
        for (_, handle, _, offset, _) in world
            .groups
            .values()
            .flat_map(|known| {
                known.iter().filter_map(|(at, known)| known.holder.map(|(s, h)| (s, h, (), *at, ())))
            })
            .collect::<Vec<_>>()
        {
            world.settle(1, handle, Settlement::Ack, one(offset));
        }
        assert_eq!(drain(&mut world).len(), 6, "{policy:?}");
        let large = Window { messages: 100, bytes: 1 };
        world.flow(1, 0, large);
        publish(&mut world, topic, &KEYS[..2]);
        assert_eq!(drain(&mut world).len(), 2, "one larger message goes alone");
    }
}

#[test]
fn consumers_of_a_higher_priority_get_messages_first_while_they_have_credit() {
    for policy in [Policy::RoundRobin, Policy::Fair, Policy::Key] {
        let (mut world, topic) = world();
        for (session, priority) in [(1, 0), (2, 7), (3, 7)] {
            join(&mut world, session, 0, 2, &of(policy), priority);
        }
        publish(&mut world, topic, &[""; 5]);
        world.finish();
        let mut got: Vec<u64> = delivered(&world).into_iter().map(|(session, _)| session).collect();
        got.sort_unstable();
        assert_eq!(got, [1, 2, 2, 3, 3], "{policy:?}");
    }
}

fn living(lifetime: Lifetime) -> GroupSettings {
    GroupSettings { lifetime, ..GroupSettings::default() }
}

#[test]
fn an_ephemeral_group_goes_with_its_last_consumer() {
    let (mut world, topic) = world();
    for session in [1, 2] {
        join(&mut world, session, 0, 1, &living(Lifetime::Ephemeral), 0);
    }
    publish(&mut world, topic, &["", "", ""]);
    world.finish();
    world.unsubscribe(1, 0);
    world.finish();
    assert!(group(&mut world, "g").is_some());
    world.end(2, Ending::Closed);
    world.finish();
    assert!(group(&mut world, "g").is_none());

    // The connection of the last one was lost: it may come back.
    join(&mut world, 1, 0, 1, &living(Lifetime::Ephemeral), 0);
    world.finish();
    world.end(1, Ending::Lost);
    world.finish();
    world.now.0 += EPHEMERAL_GRACE_MS - 1;
    world.finish();
    world.begin(1);
    join(&mut world, 1, 0, 1, &living(Lifetime::Ephemeral), 0);
    world.now.0 += EPHEMERAL_GRACE_MS;
    world.finish();
    assert!(group(&mut world, "g").is_some());
    world.end(1, Ending::Lost);
    world.finish();
    assert!(world.broker.next_timeout().unwrap().0 <= world.now.0 + EPHEMERAL_GRACE_MS);
    world.now.0 += EPHEMERAL_GRACE_MS;
    world.finish();
    assert!(group(&mut world, "g").is_none());
}

#[test]
fn a_group_goes_when_it_was_idle_for_long_enough_since_the_start() {
    let (mut world, topic) = world();
    world.admin(
        0,
        AdminCommand::CreateGroup {
            topic: "t".into(),
            name: "g".into(),
            settings: living(Lifetime::Idle(5_000)),
            start: Start::Earliest,
        },
    );
    publish(&mut world, topic, &["", ""]);
    world.finish();
    world.now.0 += 4_999;
    world.finish();
    world.restart();
    world.begin(0);
    world.now.0 += 1_000_000;
    world.finish();
    assert!(group(&mut world, "g").is_some(), "the time counts anew");
    world.begin(1);
    join(&mut world, 1, 0, 0, &GroupSettings::default(), 0);
    world.now.0 += 6_000;
    world.finish();
    assert!(group(&mut world, "g").is_some(), "not while it has a consumer");
    world.unsubscribe(1, 0);
    world.finish();
    change(&mut world, living(Lifetime::Idle(10_000)));
    world.finish();
    world.now.0 += 9_999;
    world.finish();
    assert!(group(&mut world, "g").is_some());
    world.now.0 += 1;
    world.finish();
    assert!(group(&mut world, "g").is_none());
}

#[test]
fn a_lifetime_that_is_too_short_is_refused() {
    let (mut world, _) = world();
    let settings = living(Lifetime::Idle(IDLE_MS_MIN - 1));
    assert!(world.subscribe(1, 0, "t", "g", messages(1), Some(settings)).is_none());
    assert_eq!(last_code(&world), ErrorCode::Invalid);
    let state = &world.fold.topics.values().next().unwrap();
    assert_eq!(state.end, Offset(0));
}
