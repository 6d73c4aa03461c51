//! Topics that are full: who is refused, who waits, and who is called. Rules of the broker, each as a claim.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::time::Duration;

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{OffsetRange, SessionId, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::{GroupSettings, Overflow, TopicSettings};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::*;
use broker_world::World;
use proptest::prelude::*;

fn full(max_messages: u64, overflow: Overflow) -> TopicSettings {
    TopicSettings { max_messages: Some(max_messages), overflow, ..TopicSettings::default() }
}

/// A world with the topic `t` and producers 1 to 4, each of a session of its own, and a consumer of session 0.
fn world(settings: TopicSettings) -> (World, TopicId) {
    let mut world = World::new(Limits::default(), AutoCreate::Allowed);
    world.begin(0);
    world.admin(0, AdminCommand::CreateTopic { name: "t".into(), settings });
    let topic = world.find_topic(0, "t").unwrap();
    arrive(&mut world);
    (world, topic)
}

fn arrive(world: &mut World) {
    world.begin(0);
    world.subscribe(0, 0, "t", "g", Window { messages: 1_000, bytes: u64::MAX }, None);
    for session in 1..=4 {
        world.begin(session);
        world.open(session, 1, &format!("p{session}"));
    }
    world.finish();
}

fn publish(world: &mut World, session: u64, topic: TopicId, count: usize) -> Option<ErrorCode> {
    publish_all(world, session, &[(topic, count)], &Message::new("body"))
}

fn publish_all(
    world: &mut World,
    session: u64,
    parts: &[(TopicId, usize)],
    message: &Message,
) -> Option<ErrorCode> {
    let producer = world.clients[&SessionId(session)].producers[&1];
    let next = world.last_of(producer).unwrap().0 + 1;
    let count = parts.iter().map(|(_, count)| count).sum();
    let parts = parts.iter().map(|(topic, count)| (*topic, *count as u32)).collect();
    world.try_publish(session, 1, next, &vec![message.clone(); count], parts)
}

/// Settles the oldest messages up to an offset.
fn consume(world: &mut World, end: u64) {
    world.settle(0, 0, Settlement::Ack, vec![OffsetRange::new(0, end)]);
    rest(world);
}

fn rest(world: &mut World) {
    loop {
        world.finish();
        world.answer_all();
        if world.broker.next_timeout().is_none_or(|at| at > world.now) {
            return;
        }
    }
}

/// The sessions that were told that there is room, since this was last asked.
fn ready(world: &mut World) -> Vec<u64> {
    std::mem::take(&mut world.ready).into_iter().map(|(session, _)| session.0).collect()
}

const BLOCKED: Option<ErrorCode> = Some(ErrorCode::TopicBlocked);
const FULL: Option<ErrorCode> = Some(ErrorCode::TopicFull);

#[test]
fn a_full_topic_refuses_and_others_go_on() {
    let (mut world, topic) = world(full(3, Overflow::Reject));
    let other = world.find_topic(0, "other").unwrap();
    assert_eq!(publish(&mut world, 1, topic, 2), None);
    assert_eq!(publish(&mut world, 2, topic, 5), None, "what finds it not full is taken whole");
    assert_eq!(publish(&mut world, 1, topic, 1), FULL);
    assert_eq!(publish(&mut world, 1, other, 1), None);
    assert_eq!(publish_all(&mut world, 1, &[(other, 1), (topic, 1)], &Message::new("both")), FULL);
    rest(&mut world);
    assert_eq!(world.fold.topics[&other].message_count(), 1, "all or nothing");
    let text = world.replies.len();
    consume(&mut world, 7);
    assert!(world.replies.len() > text);
    assert_eq!(publish(&mut world, 1, topic, 1), None);
    assert!(ready(&mut world).is_empty(), "nobody waits");
    world.finish();
}

#[test]
fn a_limit_in_bytes_holds_about() {
    let settings =
        TopicSettings { max_bytes: Some(100_000), overflow: Overflow::Reject, ..TopicSettings::default() };
    let (mut world, topic) = world(settings);
    let message = Message::new(vec![0; 1_000]);
    let taken =
        (0..200).take_while(|_| publish_all(&mut world, 1, &[(topic, 1)], &message).is_none()).count();
    assert!((90..=110).contains(&taken), "{taken}");
    world.finish();
}

#[test]
fn a_topic_that_drops_its_oldest_takes_everything() {
    let (mut world, topic) = world(full(3, Overflow::DropOldest));
    for _ in 0..5 {
        assert_eq!(publish(&mut world, 1, topic, 2), None);
        world.finish();
    }
    rest(&mut world);
    assert_eq!(world.fold.topics[&topic].start.0, 7);
}

#[test]
fn producers_of_a_full_topic_wait_and_as_many_are_called_as_there_is_room_for() {
    let (mut world, topic) = world(full(4, Overflow::Block));
    assert_eq!(publish(&mut world, 1, topic, 4), None);
    for session in 1..=4 {
        assert_eq!(publish(&mut world, session, topic, 2), BLOCKED);
    }
    rest(&mut world);
    assert!(ready(&mut world).is_empty());
    consume(&mut world, 1);
    assert!(ready(&mut world).is_empty(), "messages go in steps, or all there is");
    consume(&mut world, 4);
    assert_eq!(ready(&mut world), [1, 2]);
    assert_eq!(publish(&mut world, 3, topic, 2), BLOCKED, "the room is kept for who was called");
    assert_eq!(publish(&mut world, 2, topic, 2), None);
    assert_eq!(publish(&mut world, 1, topic, 2), None);
    rest(&mut world);
    consume(&mut world, 8);
    assert_eq!(ready(&mut world), [3, 4], "whoever asks again keeps its place");
    assert_eq!(publish(&mut world, 1, topic, 2), None, "nobody waits behind them");
    world.finish();
}

#[test]
fn who_does_not_use_the_room_gives_it_to_the_next() {
    let (mut world, topic) = world(full(1, Overflow::Block));
    assert_eq!(publish(&mut world, 1, topic, 1), None);
    for session in 2..=4 {
        assert_eq!(publish(&mut world, session, topic, 1), BLOCKED);
    }
    rest(&mut world);
    world.end(2, Ending::Lost);
    rest(&mut world);
    consume(&mut world, 1);
    assert_eq!(ready(&mut world), [3], "who has left is passed over");
    world.now = world.broker.next_timeout().unwrap();
    rest(&mut world);
    assert_eq!(ready(&mut world), [4]);
    assert_eq!(publish(&mut world, 4, topic, 1), None);
    assert_eq!(publish(&mut world, 3, topic, 1), BLOCKED);
    rest(&mut world);
    world.close_producer(3, 1);
    consume(&mut world, 2);
    assert!(ready(&mut world).is_empty());
}

#[test]
fn room_that_was_kept_for_who_has_left_is_given_away_at_once() {
    let (mut world, topic) = world(full(1, Overflow::Block));
    assert_eq!(publish(&mut world, 1, topic, 1), None);
    for session in 2..=4 {
        assert_eq!(publish(&mut world, session, topic, 1), BLOCKED);
    }
    rest(&mut world);
    consume(&mut world, 1);
    assert_eq!(ready(&mut world), [2]);
    world.end(2, Ending::Lost);
    world.finish();
    assert_eq!(ready(&mut world), [3]);
    world.close_producer(3, 1);
    world.finish();
    assert_eq!(ready(&mut world), [4]);
}

#[test]
fn waiting_producers_go_on_when_the_limit_or_the_topic_goes() {
    let (mut world, topic) = world(full(1, Overflow::Block));
    assert_eq!(publish(&mut world, 1, topic, 1), None);
    assert_eq!(publish(&mut world, 2, topic, 1), BLOCKED);
    assert_eq!(publish(&mut world, 3, topic, 1), BLOCKED);
    rest(&mut world);
    let change = |world: &mut World, settings| {
        world.admin(0, AdminCommand::ChangeTopic { name: "t".into(), settings });
        rest(world);
    };
    change(&mut world, full(2, Overflow::Block));
    assert_eq!(ready(&mut world), [2]);
    assert_eq!(publish(&mut world, 2, topic, 1), None);
    change(&mut world, full(2, Overflow::Reject));
    assert_eq!(ready(&mut world), [3]);
    assert_eq!(publish(&mut world, 3, topic, 1), FULL);
    change(&mut world, full(2, Overflow::Block));
    assert_eq!(publish(&mut world, 4, topic, 1), BLOCKED);
    world.admin(0, AdminCommand::DeleteTopic { name: "t".into() });
    rest(&mut world);
    assert_eq!(ready(&mut world), [4]);
    assert_eq!(publish(&mut world, 4, topic, 1), Some(ErrorCode::Deleted));
    world.finish();
}

#[test]
fn what_waits_for_its_time_counts() {
    let (mut world, topic) = world(full(2, Overflow::Reject));
    let later =
        Message { deliver_at: Some(world.now.after(Duration::from_secs(60))), ..Message::new("later") };
    assert_eq!(publish_all(&mut world, 1, &[(topic, 2)], &later), None);
    assert_eq!(publish(&mut world, 1, topic, 1), FULL);
    world.finish();
    world.now = world.now.after(Duration::from_secs(61));
    rest(&mut world);
    assert_eq!(publish(&mut world, 1, topic, 1), FULL, "it is moved all the same, and counts once");
    consume(&mut world, 2);
    assert_eq!(publish(&mut world, 1, topic, 1), None);
    world.finish();
}

#[test]
fn dead_letters_are_never_refused() {
    let (mut world, topic) = world(TopicSettings::default());
    let settings = full(1, Overflow::Reject);
    world.admin(0, AdminCommand::CreateTopic { name: "t.dead-letter".into(), settings });
    publish(&mut world, 1, topic, 3);
    world.finish();
    world.settle(0, 0, Settlement::Reject { reason: None }, vec![OffsetRange::new(0, 3)]);
    rest(&mut world);
    assert_eq!(world.dead.len(), 3);
}

/// Producers and a consumer go on at random with a small topic: nobody waits for good.
#[test]
fn nobody_waits_for_good() {
    for seed in 0..40_u64 {
        let (mut world, topic) = world(full(3, Overflow::Block));
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut published = [0; 5];
        let mut waiting = [false; 5];
        for _ in 0..400 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let session = 1 + random % 4;
            if random.is_multiple_of(3) {
                let end = world.fold.topics[&topic].end.0;
                consume(&mut world, end);
            } else if !waiting[session as usize] {
                let count = 1 + (random >> 8) as usize % 3;
                match publish(&mut world, session, topic, count) {
                    None => published[session as usize] += count,
                    Some(code) => {
                        assert_eq!(code, ErrorCode::TopicBlocked, "seed {seed}");
                        waiting[session as usize] = true;
                    }
                }
                rest(&mut world);
            }
            for session in ready(&mut world) {
                assert!(std::mem::take(&mut waiting[session as usize]), "seed {seed}: called in vain");
            }
            let (held, _) = world.held_by(topic);
            assert!(held <= 5, "seed {seed}: {held} messages");
        }
        let end = world.fold.topics[&topic].end.0;
        consume(&mut world, end);
        for _ in 0..8 {
            for session in ready(&mut world) {
                assert_eq!(publish(&mut world, session, topic, 1), None, "seed {seed}");
                waiting[session as usize] = false;
            }
            rest(&mut world);
            // Who was called before and does not want the room any more.
            world.now = world.now.after(Duration::from_secs(3));
            let end = world.fold.topics[&topic].end.0;
            consume(&mut world, end);
        }
        assert_eq!(waiting, [false; 5], "seed {seed}: {published:?}");
    }
}

/// The line of a topic that blocks, with the bytes that each session wants to publish.
#[derive(Default)]
struct Line {
    waiting: Vec<(u64, u64)>,
    called: Vec<(u64, u64)>,
}

impl Line {
    /// Whether a publish is taken. Otherwise its session waits.
    fn takes(&mut self, session: u64, wanted: u64, is_full: bool) -> bool {
        let called = self.called.len();
        self.called.retain(|(who, _)| *who != session);
        let was_called = self.called.len() < called;
        if !is_full && (was_called || self.waiting.is_empty()) {
            return true;
        }
        match self.waiting.iter_mut().find(|(who, _)| *who == session) {
            Some(place) => place.1 = wanted,
            None => self.waiting.insert(if was_called { 0 } else { self.waiting.len() }, (session, wanted)),
        }
        false
    }

    /// Who is called when there is room for so many bytes.
    fn call(&mut self, room: u64) -> Vec<u64> {
        let kept = self.called.iter().map(|(_, wanted)| wanted).sum();
        let (mut room, mut now) = (room.saturating_sub(kept), Vec::new());
        while room > 0 && !self.waiting.is_empty() {
            let next = self.waiting.remove(0);
            room = room.saturating_sub(next.1);
            now.push(next.0);
            self.called.push(next);
        }
        now
    }
}

/// Steps with a topic that is limited in bytes: a publish of a session with messages of these sizes, so many of the
/// oldest settled, or a restart.
#[derive(Clone, Debug)]
enum Step {
    Publish(u64, Vec<usize>),
    Consume(u64),
    Restart,
}

fn steps(size: impl Strategy<Value = usize> + Clone) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1_u64..=4, prop::collection::vec(size, 1..4)).prop_map(|(who, sizes)| Step::Publish(who, sizes)),
        3 => (0_u64..12).prop_map(Step::Consume),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

/// Takes the steps, each until the broker rests, and checks what comes of them: who is refused, who is called, and what
/// is held. The world checks what goes.
fn check_bytes(max: u64, overflow: Overflow, steps: Vec<Step>) {
    let (mut world, topic) =
        world(TopicSettings { max_bytes: Some(max), overflow, ..TopicSettings::default() });
    let mut line = Line::default();
    for step in steps {
        match step {
            Step::Publish(session, sizes) => {
                let producer = world.clients[&SessionId(session)].producers[&1];
                let next = world.last_of(producer).unwrap().0 + 1;
                let messages: Vec<Message> =
                    sizes.into_iter().map(|size| Message::new(vec![0; size])).collect();
                let wanted = messages.iter().map(|message| message.encoded_len() as u64).sum();
                let (before, slack) = (world.held_by(topic), world.bytes_slack(topic));
                let parts = vec![(topic, messages.len() as u32)];
                let refused = world.try_publish(session, 1, next, &messages, parts);
                let about_full = before.1.abs_diff(max) < slack;
                let is_full = if about_full { refused.is_some() } else { before.1 >= max };
                let expected = match overflow {
                    Overflow::DropOldest => None,
                    Overflow::Reject => FULL.filter(|_| is_full),
                    Overflow::Block => BLOCKED.filter(|_| !line.takes(session, wanted, is_full)),
                };
                assert_eq!(refused, expected, "{} bytes of {max}, give or take {slack}", before.1);
                rest(&mut world);
                if overflow != Overflow::DropOldest {
                    let taken = if refused.is_none() { wanted } else { 0 };
                    assert_eq!(world.held_by(topic).1, before.1 + taken, "taken whole, and nothing goes");
                }
            }
            Step::Consume(count) => {
                let start = world.fold.topics[&topic].start.0;
                consume(&mut world, start + count);
            }
            Step::Restart => {
                world.restart();
                arrive(&mut world);
                rest(&mut world);
                line = Line::default();
            }
        }
        let room = max.saturating_sub(world.held_by(topic).1);
        assert_eq!(ready(&mut world), line.call(room), "called for {room} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Where all messages have one size it is known to the byte, with every overflow.
    #[test]
    fn a_topic_is_full_with_so_many_bytes(
        size in 0_usize..2_000,
        messages in 1_u64..15,
        off in 0_u64..40,
        overflow in prop_oneof![Just(Overflow::Block), Just(Overflow::Reject), Just(Overflow::DropOldest)],
        steps in steps(Just(0)),
    ) {
        let sized = |step| match step {
            Step::Publish(who, sizes) => Step::Publish(who, vec![size; sizes.len()]),
            step => step,
        };
        let max = messages * Message::new(vec![0; size]).encoded_len() as u64 + off;
        check_bytes(max, overflow, steps.into_iter().map(sized).collect());
    }

    /// Where they differ it is known about, and what is too much goes all the same.
    #[test]
    fn a_topic_of_all_sizes_is_full_with_about_so_many_bytes(
        max in (100_u64 << 10)..(400 << 10),
        overflow in prop_oneof![Just(Overflow::Reject), Just(Overflow::DropOldest)],
        steps in steps(0_usize..(40 << 10)),
    ) {
        check_bytes(max, overflow, steps);
    }
}

#[test]
fn a_group_that_is_slow_in_one_topic_holds_up_no_other() {
    let (mut world, topic) = world(full(1, Overflow::Block));
    world.subscribe(
        0,
        1,
        "other",
        "g",
        Window { messages: 9, bytes: u64::MAX },
        Some(GroupSettings::default()),
    );
    let other = world.find_topic(0, "other").unwrap();
    assert_eq!(publish(&mut world, 1, topic, 1), None);
    world.open(1, 2, "beside-p1");
    assert_eq!(publish(&mut world, 1, topic, 1), BLOCKED);
    let sent = world.try_publish(1, 2, 1, &[Message::new("body")], vec![(other, 1)]);
    assert_eq!(sent, None);
    world.finish();
    assert_eq!(world.delivered.iter().filter(|delivered| delivered.1 == 1).count(), 1);
}

#[test]
fn what_is_sent_again_needs_no_room() {
    let (mut world, topic) = world(full(5, Overflow::Reject));
    let other = world.find_topic(0, "other").unwrap();
    let send = |world: &mut World, parts: &[(TopicId, u32)]| {
        let count = parts.iter().map(|(_, count)| *count as usize).sum();
        world.try_publish(1, 1, 1, &vec![Message::new("body"); count], parts.to_vec())
    };
    assert_eq!(send(&mut world, &[(topic, 5), (other, 1)]), None);
    world.finish();
    // The producer has not heard of it, and has more for the other topic by now.
    assert_eq!(send(&mut world, &[(topic, 5), (other, 3)]), None);
    world.finish();
    assert_eq!((world.held_by(topic).0, world.held_by(other).0), (5, 3));
    assert_eq!(send(&mut world, &[(topic, 5), (other, 3), (topic, 1)]), Some(ErrorCode::TopicFull));
}

/// Each consumer was handed all that was in memory before anybody looked whether it takes it. Where there is memory
/// for it, it is.
#[test]
fn a_cycle_hands_out_so_much_and_the_next_one_goes_on() {
    const GROUPS: u32 = 6;
    const BATCHES: u64 = 30;
    let message = Message::new(vec![7; 1 << 10]);
    let message_bytes = message.encoded_len() as u64;
    let (mut world, topic) = world(TopicSettings::default());
    let window = |messages| Window { messages, bytes: u64::MAX };
    world.flow(0, 0, window(0));
    for group in 1..=GROUPS {
        world.subscribe(0, group, "t", &format!("g{group}"), window(0), None).unwrap();
    }
    for _ in 0..BATCHES {
        assert_eq!(publish_all(&mut world, 1, &[(topic, 100)], &message), None);
        world.finish();
    }
    (1..=GROUPS).for_each(|group| world.flow(0, group, window(100_000)));
    let mut left = u64::from(GROUPS) * BATCHES * 100;
    let mut served = vec![0; GROUPS as usize];
    for messages in [0, 1, 99, 2_000].into_iter().cycle().take(12) {
        world.output_max = messages * message_bytes;
        world.finish();
        assert_eq!(world.delivered.len() as u64, messages.max(1));
        left -= world.delivered.len() as u64;
        world.delivered.iter().for_each(|delivered| served[delivered.1 as usize - 1] += 1);
        assert!(world.broker.next_timeout().is_some_and(|at| at <= world.now), "it goes on");
    }
    // Each has had its turn before somebody has a second one.
    assert!(served.iter().all(|served| *served > 0), "{served:?}");
    world.output_max = u64::MAX;
    world.finish();
    assert_eq!(world.delivered.len() as u64, left);
    world.finish();
    assert!(world.broker.next_timeout().is_none_or(|at| at > world.now), "it rests");
}

/// A pull that waits for nothing was answered with nothing, where another one of its group had got all that the cycle
/// hands out.
#[test]
fn a_pull_that_does_not_wait_gets_something_of_the_next_cycle() {
    let (mut world, topic) = world(TopicSettings::default());
    let window = |messages| Window { messages, bytes: u64::MAX };
    world.flow(0, 0, window(0));
    for consumer in 1..=3 {
        world.subscribe(0, consumer, "t", "g", window(0), None).unwrap();
    }
    assert_eq!(publish_all(&mut world, 1, &[(topic, 9)], &Message::new(vec![7; 1 << 10])), None);
    world.finish();
    world.output_max = 0;
    for consumer in 1..=3 {
        world.pull(0, consumer, window(1), 0);
    }
    let mut served = Vec::new();
    for _ in 0..3 {
        world.finish();
        served.extend(world.delivered.iter().map(|delivered| delivered.1));
    }
    served.sort_unstable();
    assert_eq!(served, [1, 2, 3]);
}
