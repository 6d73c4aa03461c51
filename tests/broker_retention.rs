//! What topics keep, where groups go on, and who is handed nothing: rules of the broker, each as a claim. The model of
//! `broker_world` watches all of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::time::Duration;

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{GroupId, Offset, OffsetRange, SessionId, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::{
    AGE_MS_MIN, GroupSettings, Overflow, Retention, Start, TEMPORARY_IDLE_MS, TopicSettings,
};
use batonmq::model::time::Timestamp;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::*;
use batonmq::protocol::response::Reply;
use broker_world::World;

const S: SessionId = SessionId(0);
const KEEP: Retention = Retention { acked: false, max_age_ms: None, max_bytes: None, max_messages: None };

/// A world with a producer of session 0 and the topic `t` with these settings.
fn world(settings: TopicSettings) -> (World, TopicId) {
    world_with(Limits::default(), settings)
}

fn world_with(limits: Limits, settings: TopicSettings) -> (World, TopicId) {
    let mut world = World::new(limits, AutoCreate::Allowed);
    world.begin(0);
    world.open(0, 0, "p");
    let request = world.admin(0, AdminCommand::CreateTopic { name: "t".into(), settings });
    assert_eq!(answer(&world, request), Ok(Reply::Done));
    let topic = world.find_topic(0, "t").unwrap();
    world.finish();
    (world, topic)
}

fn kept(retention: Retention) -> TopicSettings {
    TopicSettings { retention, ..TopicSettings::default() }
}

fn publish_all(world: &mut World, topic: TopicId, messages: &[Message]) {
    let id = world.clients[&S].producers[&0];
    let next = world.last_of(id).unwrap().0 + 1;
    assert_eq!(world.try_publish(0, 0, next, messages, vec![(topic, messages.len() as u32)]), None);
}

fn publish(world: &mut World, topic: TopicId, count: usize) {
    publish_all(world, topic, &vec![Message::new("body"); count]);
}

fn window(messages: u32) -> Window {
    Window { messages, bytes: u64::MAX }
}

fn at_once() -> GroupSettings {
    let mut settings = GroupSettings::default();
    settings.backoff.initial_ms = 0;
    settings
}

fn range(start: u64, end: u64) -> Vec<OffsetRange> {
    vec![OffsetRange::new(start, end)]
}

fn answer(world: &World, request: RequestId) -> Result<Reply, Refusal> {
    world.replies.iter().find(|reply| reply.1 == request).expect("an answer").2.clone()
}

fn delivered(world: &World) -> Vec<u64> {
    world.delivered.iter().map(|(_, _, _, offset, _)| *offset).collect()
}

fn start_of(world: &World, topic: TopicId) -> u64 {
    world.fold.topics[&topic].start.0
}

/// Goes on until nothing is to be read and nothing is left to do at this time.
fn settle_down(world: &mut World) {
    for _ in 0..1_000 {
        world.answer_all();
        world.finish();
        let busy = world.broker.next_timeout().is_some_and(|at| at <= world.now);
        if world.reads.is_empty() && !busy {
            return;
        }
    }
    panic!("it never comes to rest");
}

fn pass(world: &mut World, time: Duration) {
    world.finish();
    world.now = world.now.after(time);
    settle_down(world);
}

fn change_topic(world: &mut World, settings: TopicSettings) {
    let request = world.admin(0, AdminCommand::ChangeTopic { name: "t".into(), settings });
    assert_eq!(answer(world, request), Ok(Reply::Done));
}

fn change_group(world: &mut World, settings: GroupSettings) {
    let (topic, name) = ("t".into(), "g".into());
    let request = world.admin(0, AdminCommand::ChangeGroup { topic, name, settings });
    assert_eq!(answer(world, request), Ok(Reply::Done));
}

fn seek(world: &mut World, to: Start) -> RequestId {
    world.admin(0, AdminCommand::Seek { topic: "t".into(), name: "g".into(), to })
}

fn floor(world: &World, group: GroupId) -> u64 {
    world.fold.groups[&group].floor.0
}

#[test]
fn settled_messages_stay_where_they_are_kept() {
    let (mut world, topic) = world(kept(KEEP));
    let group = world.subscribe(0, 0, "t", "g", window(1_000), None).unwrap();
    publish(&mut world, topic, 600);
    world.finish();
    world.settle(0, 0, Settlement::Ack, range(0, 600));
    world.finish();
    settle_down(&mut world);
    assert_eq!((start_of(&world, topic), floor(&world, group)), (0, 600));
    world.subscribe(0, 1, "t", "late", window(1_000), None).unwrap();
    settle_down(&mut world);
    assert_eq!(delivered(&world).len(), 600, "a later group gets all of them");
    world.settle(0, 1, Settlement::Ack, range(0, 600));
    world.finish();
    change_topic(&mut world, TopicSettings::default());
    settle_down(&mut world);
    assert_eq!(start_of(&world, topic), 600, "and they go when they are not kept any more");
}

#[test]
fn the_oldest_go_when_there_are_too_many_settled_or_not() {
    let (mut world, topic) = world(kept(Retention { max_messages: Some(10), ..KEEP }));
    let group = world.subscribe(0, 0, "t", "g", window(3), Some(at_once())).unwrap();
    publish(&mut world, topic, 12);
    world.finish();
    assert_eq!(delivered(&world), [2, 3, 4], "what is gone is handed out to nobody");
    publish(&mut world, topic, 20);
    world.finish();
    assert_eq!((start_of(&world, topic), floor(&world, group)), (22, 2));
    assert_eq!(world.broker.counts().messages, 10);
    // In flight they stay with their consumer.
    assert_eq!(world.settle(0, 0, Settlement::Ack, range(2, 3)), 1);
    world.settle(0, 0, Settlement::Nack { delay_ms: None, reason: None }, range(3, 4));
    world.settle(0, 0, Settlement::Release, range(4, 5));
    world.finish();
    assert_eq!(delivered(&world), [22, 23, 24], "and do not come again");
    world.finish();
    assert_eq!(floor(&world, group), 22);
}

#[test]
fn what_is_gone_while_it_was_in_flight_does_not_come_after_a_restart() {
    let (mut world, topic) = world(kept(Retention { max_messages: Some(5), ..KEEP }));
    let group = world.subscribe(0, 0, "t", "g", window(3), Some(at_once())).unwrap();
    publish(&mut world, topic, 5);
    world.finish();
    publish(&mut world, topic, 5);
    world.finish();
    assert_eq!(floor(&world, group), 0);
    world.restart();
    world.finish();
    assert_eq!(floor(&world, group), 5, "nobody need ask for it");
    world.begin(0);
    world.subscribe(0, 0, "t", "g", window(3), None).unwrap();
    world.finish();
    settle_down(&mut world);
    assert_eq!((floor(&world, group), start_of(&world, topic)), (5, 5));
    let held: Vec<u64> =
        world.groups[&group].iter().filter(|(_, known)| known.holder.is_some()).map(|(at, _)| *at).collect();
    assert_eq!(held, [5, 6, 7]);
}

#[test]
fn a_lease_of_a_message_that_is_gone_ends_with_it() {
    let (mut world, topic) = world(kept(Retention { max_messages: Some(2), ..KEEP }));
    let group = world.subscribe(0, 0, "t", "g", window(2), Some(at_once())).unwrap();
    publish(&mut world, topic, 2);
    world.finish();
    publish(&mut world, topic, 2);
    world.finish();
    pass(&mut world, Duration::from_secs(60));
    assert_eq!(floor(&world, group), 2);
    assert_eq!(delivered(&world), [2, 3]);
}

#[test]
fn the_oldest_go_when_they_take_too_much_and_the_newest_stays() {
    let (mut world, topic) = world(kept(Retention { max_bytes: Some(1 << 20), ..KEEP }));
    for _ in 0..64 {
        publish_all(&mut world, topic, &vec![Message::new(vec![0; 1 << 10]); 64]);
        world.finish();
    }
    let (_, bytes) = world.held_by(topic);
    assert!((900 << 10..1_200 << 10).contains(&bytes), "{bytes}");
    publish_all(&mut world, topic, &[Message::new(vec![0; 3 << 20])]);
    world.finish();
    assert_eq!(world.held_by(topic).0, 1);
}

/// What was gone from the middle counted among what went: a topic kept more than it may until the next publish.
#[test]
fn what_is_gone_already_makes_no_room_a_second_time() {
    let message = Message::new("body");
    let size = message.encoded_len() as u64;
    let limits = Limits { pinned_bytes_max: 1, ..Limits::default() };
    let retention = Retention { max_bytes: Some(10 * size), ..Retention::default() };
    let (mut world, topic) = world_with(limits, kept(retention));
    world.subscribe(0, 0, "t", "g", window(1_000), None).unwrap();
    publish(&mut world, topic, 10);
    world.finish();
    world.settle(0, 0, Settlement::Ack, range(1, 5));
    settle_down(&mut world);
    assert_eq!(world.held_by(topic), (6, 6 * size));
    publish(&mut world, topic, 10);
    settle_down(&mut world);
    assert_eq!(world.held_by(topic), (10, 10 * size));
}

/// A block of a burst has one mark; without a search its messages went when the next burst was too old.
#[test]
fn a_message_goes_when_it_is_too_old_and_not_before() {
    const AGE_MS: u64 = 64_000;
    let limits = Limits { cache_bytes_max: 1 << 20, ..Limits::default() };
    let (mut world, topic) = world_with(limits, kept(Retention { max_age_ms: Some(AGE_MS), ..KEEP }));
    world.subscribe(0, 0, "t", "g", window(0), None).unwrap();
    let began = world.now.0;
    // Faster than marks are set, and then a pause.
    for at in [0, 300, 600, 50_000, 50_400] {
        world.now = Timestamp(began + at);
        publish(&mut world, topic, 100);
        world.finish();
    }
    let step = AGE_MS / 64 + 1;
    for (time, expected) in [
        (AGE_MS, 0),
        (AGE_MS + step, 100),
        (AGE_MS + 600 + 2 * step, 300),
        (AGE_MS + 50_000, 300),
        (AGE_MS + 50_000 + step, 400),
        (AGE_MS + 50_400 + 2 * step, 500),
    ] {
        while let Some(at) = world.broker.next_timeout().filter(|at| at.0 <= began + time) {
            world.now = world.now.max(at);
            settle_down(&mut world);
        }
        world.now = Timestamp(began + time);
        settle_down(&mut world);
        let start = start_of(&world, topic);
        assert!(start >= expected, "{time}: {start}, not {expected}");
    }
    assert_eq!(world.broker.counts().messages, 0);
    assert_eq!(
        world.broker.next_timeout().filter(|at| at.0 < began + 200_000),
        None,
        "nothing is left to do"
    );
}

#[test]
fn an_idle_topic_ages_after_a_restart_too() {
    let (mut world, topic) = world(kept(Retention { max_age_ms: Some(AGE_MS_MIN), acked: true, ..KEEP }));
    publish(&mut world, topic, 3);
    world.finish();
    world.restart();
    world.finish();
    let at = world.broker.next_timeout().expect("it is looked at by itself");
    assert!(at.0 <= world.now.0 + AGE_MS_MIN + 1_001);
    world.now = at;
    settle_down(&mut world);
    pass(&mut world, Duration::from_secs(2));
    assert_eq!(world.broker.counts().messages, 0);
}

#[test]
fn what_may_be_older_by_now_stays_though_it_was_searched_for() {
    const AGE_MS: u64 = 64_000;
    let aging = |max_age_ms| kept(Retention { max_age_ms, ..KEEP });
    for later in [Some(10 * AGE_MS), None] {
        let limits = Limits { cache_bytes_max: 0, ..Limits::default() };
        let (mut world, topic) = world_with(limits, aging(Some(AGE_MS)));
        let began = world.now.0;
        // Faster than marks are set: what is between them must be read.
        for at in [0, 300, 600] {
            world.now = Timestamp(began + at);
            publish(&mut world, topic, 100);
            world.finish();
        }
        world.now = Timestamp(began + AGE_MS + 302);
        world.finish();
        assert_eq!(world.reads.len(), 1, "it is searched for");
        change_topic(&mut world, aging(later));
        settle_down(&mut world);
        assert_eq!(start_of(&world, topic), 0, "{later:?}");
        change_topic(&mut world, aging(Some(AGE_MS)));
        settle_down(&mut world);
        assert_eq!(start_of(&world, topic), 200, "{later:?}");
    }
}

/// Topics with one message each, called `t0` and so on.
fn many_topics(count: u32, settings: &TopicSettings, cache_bytes_max: u64) -> World {
    let mut world = World::new(Limits { cache_bytes_max, ..Limits::default() }, AutoCreate::Allowed);
    world.begin(0);
    world.open(0, 0, "p");
    for number in 0..count {
        let name = format!("t{number}");
        world.admin(0, AdminCommand::CreateTopic { name, settings: settings.clone() });
    }
    world.finish();
    world
}

/// After a start all topics were looked at in the first commit, however many there were.
#[test]
fn a_start_with_many_topics_looks_at_few_of_them_in_one_cycle() {
    const TOPICS: u32 = 600;
    let aging = kept(Retention { max_age_ms: Some(AGE_MS_MIN), ..KEEP });
    let mut world = many_topics(TOPICS, &aging, 1 << 20);
    for topic in world.topics_now() {
        publish(&mut world, topic, 1);
    }
    world.finish();
    world.restart();
    world.now = world.now.after(Duration::from_secs(3600));
    let mut left = u64::from(TOPICS);
    while left > 0 {
        world.finish();
        let gone = left - world.broker.counts().messages;
        assert!((1..=256).contains(&gone), "{gone} topics in one cycle");
        left -= gone;
        assert!(left == 0 || world.broker.next_timeout().is_some_and(|at| at <= world.now));
        world.answer_all();
    }
}

/// Retention may have something to look for in each of ten thousand topics.
#[test]
fn a_seek_does_not_wait_until_all_topics_have_been_searched_for_what_is_too_old() {
    const AGE_MS: u64 = 64_000;
    let aging = kept(Retention { max_age_ms: Some(AGE_MS), ..KEEP });
    let mut world = many_topics(20, &aging, 0);
    let began = world.now.0;
    // Faster than marks are set: what is between them must be read.
    for at in [0, 300, 600] {
        world.now = Timestamp(began + at);
        for topic in world.topics_now() {
            publish(&mut world, topic, 100);
        }
        world.finish();
    }
    world.admin(
        0,
        AdminCommand::CreateGroup {
            topic: "t7".into(),
            name: "g".into(),
            settings: GroupSettings::default(),
            start: Start::Earliest,
        },
    );
    world.now = Timestamp(began + AGE_MS + 302);
    world.finish();
    assert_eq!(world.reads.len(), 4, "the others wait in line");
    let to = Start::Time(Timestamp(began + 300));
    let request = world.admin(0, AdminCommand::Seek { topic: "t7".into(), name: "g".into(), to });
    let answered = |world: &World| world.replies.iter().any(|reply| reply.1 == request);
    let mut answers = 0;
    while !answered(&world) {
        answers += 1;
        world.answer(0);
        world.finish();
        assert!(answers < 90, "the seek waits for the others");
    }
    assert_eq!(answer(&world, request), Ok(Reply::Done));
    let before = world.broker.counts().messages;
    settle_down(&mut world);
    assert!(world.broker.counts().messages < before, "there was more to look for");
}

/// Searches that are over without a read leave the line so many in a cycle, and nothing else may come to go on with.
#[test]
fn searches_in_line_go_on_by_themselves() {
    const TOPICS: u32 = 300;
    const AGE_MS: u64 = 64_000;
    let mut world = many_topics(TOPICS, &kept(Retention { max_age_ms: Some(AGE_MS), ..KEEP }), 0);
    let began = world.now.0;
    // Faster than marks are set: what is between them must be read.
    for at in [0, 300, 600] {
        world.now = Timestamp(began + at);
        for topic in world.topics_now() {
            publish(&mut world, topic, 2);
        }
        world.finish();
    }
    world.now = Timestamp(began + AGE_MS + 302);
    for _ in 0..2 {
        world.finish();
    }
    let searched: Vec<TopicId> = world.reads.iter().map(|read| read.topic).collect();
    assert_eq!(searched.len(), 4, "the others wait in line");
    let last = *world.topics_now().last().unwrap();
    for topic in world.topics_now() {
        if topic != last && !searched.contains(&topic) {
            let name = world.fold.topics[&topic].name.to_string();
            world.purged.insert(topic);
            world.admin(0, AdminCommand::PurgeTopic { name });
        }
    }
    settle_down(&mut world);
    assert_eq!(start_of(&world, last), 4);
}

/// The group was deleted while its place was searched for, and the answer was that it stands there.
#[test]
fn a_seek_of_a_group_that_is_gone_meanwhile_says_so() {
    let mut world = many_topics(1, &kept(KEEP), 0);
    let topic = world.find_topic(0, "t0").unwrap();
    for _ in 0..3 {
        world.now = world.now.after(Duration::from_millis(300));
        publish(&mut world, topic, 100);
        world.finish();
    }
    let (topic, name) = ("t0".to_owned(), "g".to_owned());
    let (settings, start) = (GroupSettings::default(), Start::Earliest);
    world.admin(0, AdminCommand::CreateGroup { topic: topic.clone(), name: name.clone(), settings, start });
    let to = Start::Time(Timestamp(world.now.0 - 300));
    let request = world.admin(0, AdminCommand::Seek { topic: topic.clone(), name: name.clone(), to });
    world.finish();
    assert_eq!(world.reads.len(), 1, "it is searched for");
    world.admin(0, AdminCommand::DeleteGroup { topic, name });
    settle_down(&mut world);
    assert_eq!(answer(&world, request).unwrap_err().code, ErrorCode::Deleted);
}

#[test]
fn as_soon_as_one_criterion_says_so() {
    let retention =
        Retention { acked: true, max_age_ms: Some(10_000), max_bytes: None, max_messages: Some(300) };
    let (mut world, topic) = world(kept(retention));
    world.subscribe(0, 0, "t", "g", window(1_000), None).unwrap();
    publish(&mut world, topic, 400);
    world.finish();
    assert_eq!(start_of(&world, topic), 100);
    world.settle(0, 0, Settlement::Ack, range(0, 399));
    world.finish();
    assert_eq!(start_of(&world, topic), 399);
    pass(&mut world, Duration::from_millis(12_000));
    assert_eq!(start_of(&world, topic), 400);
}

#[test]
fn the_lowest_priority_goes_first() {
    let (mut world, topic) = world(kept(Retention { max_messages: Some(10), ..KEEP }));
    let message = |priority| Message { priority, ..Message::new("body") };
    publish_all(&mut world, topic, &[vec![message(5); 6], vec![message(0); 6]].concat());
    world.finish();
    let lane = *world.fold.topics.iter().find(|(_, state)| state.kind.priority() == 5).unwrap().0;
    let left = |world: &World| [topic, lane].map(|log| world.fold.topics[&log].message_count());
    assert_eq!(left(&world), [4, 6]);
    publish_all(&mut world, topic, &vec![message(5); 7]);
    world.finish();
    assert_eq!(left(&world), [0, 10]);
}

#[test]
fn what_waits_for_its_time_counts_and_does_not_go() {
    let (mut world, topic) = world(kept(Retention { max_messages: Some(5), ..KEEP }));
    let later =
        Message { deliver_at: Some(world.now.after(Duration::from_secs(60))), ..Message::new("later") };
    publish_all(&mut world, topic, &vec![later; 3]);
    publish(&mut world, topic, 4);
    world.finish();
    settle_down(&mut world);
    assert_eq!(world.fold.topics[&topic].message_count(), 2);
    assert_eq!(world.held_by(topic).0, 5);
}

#[test]
fn contradictions_are_refused() {
    let (mut world, _) = world(TopicSettings::default());
    let default = TopicSettings::default();
    for (settings, word) in [
        (kept(Retention { max_age_ms: Some(AGE_MS_MIN - 1), ..KEEP }), "retention"),
        (kept(Retention { max_messages: Some(0), ..KEEP }), "at least 1"),
        (TopicSettings { max_bytes: Some(0), ..default.clone() }, "at least 1"),
        (TopicSettings { overflow: Overflow::Reject, ..default.clone() }, "max_messages"),
        (TopicSettings { overflow: Overflow::DropOldest, ..default.clone() }, "max_messages"),
        (TopicSettings { max_messages: Some(1), ..kept(KEEP) }, "for good"),
        (TopicSettings { last_value: true, ..default }, "retention.acked = false"),
    ] {
        for command in [
            AdminCommand::CreateTopic { name: "u".into(), settings: settings.clone() },
            AdminCommand::ChangeTopic { name: "t".into(), settings },
        ] {
            let request = world.admin(0, command);
            let refusal = answer(&world, request).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::Invalid);
            assert!(refusal.text.contains(word), "{}", refusal.text);
        }
    }
    world.finish();
    assert_eq!(world.broker.counts().topics, 1);
}

#[test]
fn a_temporary_topic_goes_with_its_last_group() {
    let (mut world, topic) = world(TopicSettings { temporary: true, ..TopicSettings::default() });
    world.subscribe(0, 0, "t", "g", window(1), None);
    world.subscribe(0, 1, "t", "h", window(1), None);
    publish(&mut world, topic, 3);
    pass(&mut world, Duration::from_millis(2 * TEMPORARY_IDLE_MS));
    world.admin(0, AdminCommand::DeleteGroup { topic: "t".into(), name: "g".into() });
    world.finish();
    assert!(world.fold.topics.contains_key(&topic));
    world.admin(0, AdminCommand::DeleteGroup { topic: "t".into(), name: "h".into() });
    world.finish();
    settle_down(&mut world);
    assert!(!world.fold.topics.contains_key(&topic));
    assert_eq!(world.broker.counts().messages, 0);
}

#[test]
fn a_temporary_topic_without_a_group_goes_when_nobody_uses_it() {
    let (mut world, topic) = world(TopicSettings { temporary: true, ..TopicSettings::default() });
    pass(&mut world, Duration::from_millis(TEMPORARY_IDLE_MS - 1));
    publish(&mut world, topic, 1);
    pass(&mut world, Duration::from_millis(TEMPORARY_IDLE_MS - 1));
    assert!(world.fold.topics.contains_key(&topic));
    world.restart();
    world.finish();
    pass(&mut world, Duration::from_millis(TEMPORARY_IDLE_MS - 1));
    assert!(world.fold.topics.contains_key(&topic), "after a start the time begins anew");
    pass(&mut world, Duration::from_millis(1));
    assert!(!world.fold.topics.contains_key(&topic));
}

#[test]
fn a_group_set_back_gets_everything_that_is_still_there_again() {
    let (mut world, topic) = world(kept(KEEP));
    let group = world.subscribe(0, 0, "t", "g", window(4), Some(at_once())).unwrap();
    publish(&mut world, topic, 10);
    world.finish();
    world.settle(0, 0, Settlement::Ack, range(0, 2));
    world.settle(0, 0, Settlement::Nack { delay_ms: Some(60_000), reason: None }, range(2, 3));
    world.finish();
    assert_eq!(delivered(&world), [4, 5, 6]);
    let request = seek(&mut world, Start::Offset(Offset(1)));
    world.finish();
    assert_eq!(answer(&world, request), Ok(Reply::Done));
    assert_eq!((floor(&world, group), delivered(&world)), (1, vec![1, 2, 3, 4]));
    seek(&mut world, Start::Latest);
    world.finish();
    assert_eq!((floor(&world, group), delivered(&world)), (10, vec![]));
    seek(&mut world, Start::Earliest);
    world.finish();
    assert_eq!((floor(&world, group), delivered(&world)), (0, vec![0, 1, 2, 3]));
}

/// The same consumer gets the same message again, and an ack of the first hand-over is on its way.
#[test]
fn what_is_said_of_a_recalled_delivery_does_nothing() {
    let (mut world, topic) = world(kept(KEEP));
    let group = world.subscribe(0, 0, "t", "g", window(4), None).unwrap();
    publish(&mut world, topic, 4);
    world.finish();
    seek(&mut world, Start::Earliest);
    // The client has not heard of it yet.
    let late = world.clients[&S].generations.clone();
    world.clients.get_mut(&S).unwrap().generations.clear();
    for settlement in
        [Settlement::Ack, Settlement::Release, Settlement::Extend, Settlement::Reject { reason: None }]
    {
        let request = world.request();
        let settle = Settle { request, consumer: 0, topic, generation: 0, settlement, ranges: range(0, 4) };
        world.handle(S, batonmq::broker::Command::Settle(settle));
    }
    world.finish();
    assert_eq!((floor(&world, group), delivered(&world)), (0, vec![0, 1, 2, 3]));
    world.clients.get_mut(&S).unwrap().generations = late;
    assert_eq!(world.settle(0, 0, Settlement::Ack, range(0, 4)), 4);
    world.finish();
    assert_eq!(floor(&world, group), 4);
}

#[test]
fn a_time_is_found_exactly_with_messages_read_where_they_are_not_in_memory() {
    let limits = Limits { cache_bytes_max: 1 << 20, ..Limits::default() };
    let (mut world, topic) = world_with(limits, kept(KEEP));
    let group = world.subscribe(0, 0, "t", "g", window(0), None).unwrap();
    let began = world.now.0;
    for at in 0..200 {
        world.now = Timestamp(began + 10 * at);
        publish_all(&mut world, topic, &vec![Message::new(vec![0; 200]); 100]);
        world.finish();
    }
    for at in [0, 1, 10, 55, 777, 1_234, 1_989, 1_990, 1_991, 9_999] {
        let request = seek(&mut world, Start::Time(Timestamp(began + at)));
        world.finish();
        let mut rounds = 0;
        while world.replies.iter().all(|reply| reply.1 != request) {
            assert!(world.reads.iter().filter(|read| read.bytes_max == 1).count() <= 1, "one read at a time");
            settle_down(&mut world);
            rounds += 1;
            assert!(rounds < 64);
        }
        assert_eq!(answer(&world, request), Ok(Reply::Done));
        assert_eq!(floor(&world, group), (at.div_ceil(10) * 100).min(20_000), "{at}");
    }
}

#[test]
fn a_search_goes_on_where_its_message_is_gone_meanwhile() {
    let limits = Limits { cache_bytes_max: 0, ..Limits::default() };
    let (mut world, topic) = world_with(limits, kept(Retention { max_messages: Some(300), ..KEEP }));
    let group = world.subscribe(0, 0, "t", "g", window(0), None).unwrap();
    for _ in 0..3 {
        world.now = world.now.after(Duration::from_millis(300));
        publish(&mut world, topic, 100);
        world.finish();
    }
    let now = world.now;
    let request = seek(&mut world, Start::Time(now));
    world.finish();
    let read = world.reads[0].from.0;
    publish(&mut world, topic, 250);
    world.finish();
    assert!(read < start_of(&world, topic), "{read} is gone");
    settle_down(&mut world);
    assert_eq!(answer(&world, request), Ok(Reply::Done));
    assert_eq!(floor(&world, group), 250);
}

/// What one group has not settled may keep all that is behind it, as long as another one needs that.
#[test]
fn what_nobody_needs_after_a_seek_is_removed() {
    for start in [Start::Latest, Start::Offset(Offset(100))] {
        let limits = Limits { pinned_bytes_max: 1_000, ..Limits::default() };
        let (mut world, topic) = world_with(limits, TopicSettings::default());
        world.subscribe(0, 0, "t", "g", window(0), None).unwrap();
        world.subscribe(0, 1, "t", "slow", window(100), None).unwrap();
        publish(&mut world, topic, 100);
        world.finish();
        world.settle(0, 1, Settlement::Ack, range(1, 100));
        settle_down(&mut world);
        assert_eq!(world.broker.counts().messages, 100);
        seek(&mut world, start);
        settle_down(&mut world);
        assert_eq!(world.broker.counts().messages, 1);
    }
}

#[test]
fn what_was_settled_in_the_middle_goes_when_it_is_not_to_be_kept_any_more() {
    let limits = Limits { pinned_bytes_max: 1_000, ..Limits::default() };
    let (mut world, topic) = world_with(limits, kept(KEEP));
    world.subscribe(0, 0, "t", "g", window(100), None).unwrap();
    publish(&mut world, topic, 100);
    world.finish();
    world.settle(0, 0, Settlement::Ack, range(1, 100));
    settle_down(&mut world);
    assert_eq!(world.broker.counts().messages, 100);
    change_topic(&mut world, TopicSettings::default());
    settle_down(&mut world);
    assert_eq!(world.broker.counts().messages, 1);
}

#[test]
fn an_offset_is_no_place_where_messages_have_priorities() {
    let (mut world, topic) = world(kept(KEEP));
    world.subscribe(0, 0, "t", "g", window(100), None).unwrap();
    let message = |priority| Message { priority, ..Message::new("body") };
    publish_all(&mut world, topic, &[message(0), message(9), message(0), message(9)]);
    world.finish();
    let request = seek(&mut world, Start::Offset(Offset(1)));
    assert_eq!(answer(&world, request).unwrap_err().code, ErrorCode::Invalid);
    let request = seek(&mut world, Start::Latest);
    world.finish();
    assert_eq!(answer(&world, request), Ok(Reply::Done));
    assert_eq!(world.broker.counts().in_flight, 0);
    let now = world.now;
    let request = seek(&mut world, Start::Time(now));
    world.finish();
    assert_eq!(answer(&world, request), Ok(Reply::Done));
    assert_eq!(delivered(&world).len(), 4);
}

#[test]
fn a_purged_group_is_done_with_everything() {
    let (mut world, topic) = world(kept(KEEP));
    let group = world.subscribe(0, 0, "t", "g", window(3), Some(at_once())).unwrap();
    let other = world.subscribe(0, 1, "t", "h", window(3), None).unwrap();
    publish(&mut world, topic, 10);
    world.finish();
    world.settle(0, 0, Settlement::Ack, range(1, 2));
    world.settle(0, 0, Settlement::Reject { reason: None }, range(2, 3));
    let request = world.admin(0, AdminCommand::PurgeGroup { topic: "t".into(), name: "g".into() });
    world.finish();
    assert_eq!(answer(&world, request), Ok(Reply::Dropped { count: 9 }));
    assert_eq!((floor(&world, group), floor(&world, other)), (10, 0));
    assert_eq!(world.fold.topics[&topic].message_count(), 10);
    publish(&mut world, topic, 1);
    world.finish();
    assert!(world.delivered.iter().any(|(_, handle, _, offset, _)| (*handle, *offset) == (0, 10)));
}

#[test]
fn a_purged_topic_is_empty_for_all_its_groups() {
    let (mut world, topic) = world(kept(KEEP));
    let group = world.subscribe(0, 0, "t", "g", window(3), None).unwrap();
    world.subscribe(0, 1, "t", "h", window(2), None).unwrap();
    let message = |priority| Message { priority, ..Message::new("body") };
    let later =
        Message { deliver_at: Some(world.now.after(Duration::from_secs(60))), ..Message::new("later") };
    let soon = Message { expires_at: Some(world.now.after(Duration::from_secs(60))), ..Message::new("soon") };
    publish_all(&mut world, topic, &[vec![message(0); 5], vec![message(4); 5], vec![later, soon]].concat());
    world.finish();
    settle_down(&mut world);
    let request = world.admin(0, AdminCommand::PurgeTopic { name: "t".into() });
    world.purged.insert(topic);
    world.finish();
    assert_eq!(answer(&world, request), Ok(Reply::Dropped { count: 12 }));
    let counts = world.broker.counts();
    assert_eq!((counts.messages, counts.in_flight), (0, 0));
    assert_eq!(floor(&world, group), 6);
    pass(&mut world, Duration::from_secs(61));
    publish(&mut world, topic, 1);
    world.finish();
    assert_eq!(delivered(&world), [6, 6]);
}

/// A message that was gone while a consumer had it was forgotten by a purge, and held the group back for good.
/// A topic for dead letters came into being, and there were none for it.
#[test]
fn nothing_is_made_for_what_was_dying_and_is_dropped() {
    let purge = AdminCommand::PurgeTopic { name: "t".into() };
    let purge_group = AdminCommand::PurgeGroup { topic: "t".into(), name: "g".into() };
    let seek = AdminCommand::Seek { topic: "t".into(), name: "g".into(), to: Start::Earliest };
    for command in [purge, purge_group, seek] {
        let (mut world, topic) = world(kept(KEEP));
        world.subscribe(0, 0, "t", "g", window(3), Some(at_once())).unwrap();
        publish(&mut world, topic, 3);
        world.finish();
        world.settle(0, 0, Settlement::Reject { reason: None }, range(0, 2));
        world.purged.extend(matches!(command, AdminCommand::PurgeTopic { .. }).then_some(topic));
        world.admin(0, command);
        settle_down(&mut world);
        assert_eq!(Vec::from_iter(world.topics_now()), [topic]);
        assert_eq!(world.broker.counts().retries, 0);
    }
}

#[test]
fn a_purge_settles_what_was_gone_already_and_in_flight() {
    let (mut world, topic) = world(kept(Retention { max_messages: Some(1), ..KEEP }));
    let group = world.subscribe(0, 0, "t", "g", window(1), None).unwrap();
    publish(&mut world, topic, 1);
    world.finish();
    publish(&mut world, topic, 1);
    world.finish();
    assert_eq!(floor(&world, group), 0);
    world.purged.insert(topic);
    world.admin(0, AdminCommand::PurgeTopic { name: "t".into() });
    world.finish();
    assert_eq!((floor(&world, group), world.broker.counts().in_flight), (2, 0));
}

#[test]
fn a_paused_group_gets_nothing_and_goes_on_where_it_was() {
    let (mut world, topic) = world(TopicSettings::default());
    world.subscribe(0, 0, "t", "g", window(2), Some(at_once())).unwrap();
    world.subscribe(0, 1, "t", "h", window(2), None).unwrap();
    publish(&mut world, topic, 1);
    world.finish();
    change_group(&mut world, GroupSettings { paused: true, ..at_once() });
    publish(&mut world, topic, 1);
    assert_eq!(world.settle(0, 0, Settlement::Nack { delay_ms: Some(0), reason: None }, range(0, 1)), 1);
    world.finish();
    assert_eq!(world.delivered.iter().map(|delivered| delivered.1).collect::<Vec<_>>(), [1]);
    world.pull(0, 0, window(1), 5_000);
    world.finish();
    assert_eq!(world.clients[&S].pulls.len(), 1, "a pull waits");
    pass(&mut world, Duration::from_secs(5));
    assert_eq!(world.clients[&S].pulls.len(), 0, "until its time is over");
    change_group(&mut world, at_once());
    world.finish();
    assert_eq!(delivered(&world), [0, 1]);
}

#[test]
fn nothing_of_a_paused_topic_is_handed_out_to_any_group_after_a_restart_too() {
    let (mut world, topic) = world(TopicSettings::default());
    let message = |priority| Message { priority, ..Message::new("body") };
    change_topic(&mut world, TopicSettings { paused: true, ..TopicSettings::default() });
    for (handle, group) in [(0, "g"), (1, "h")] {
        world.subscribe(0, handle, "t", group, window(9), None).unwrap();
    }
    publish_all(&mut world, topic, &[message(0), message(3)]);
    world.finish();
    assert!(delivered(&world).is_empty());
    world.restart();
    world.begin(0);
    world.subscribe(0, 0, "t", "g", window(9), None).unwrap();
    world.finish();
    settle_down(&mut world);
    assert_eq!(world.broker.counts().in_flight, 0);
    change_topic(&mut world, TopicSettings::default());
    world.finish();
    settle_down(&mut world);
    assert_eq!(world.broker.counts().in_flight, 2);
    world.end(0, Ending::Closed);
    world.finish();
}
