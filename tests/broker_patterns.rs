//! Groups of patterns: which topics they have, from where on, and what becomes of them. The model of `broker_world`
//! watches all of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::time::Duration;

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{Offset, OffsetRange, SessionId, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::{GroupSettings, Lifetime, Policy, Start, TopicSettings};
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::TopicKind;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::*;
use batonmq::protocol::response::{GroupInfo, Reply, TopicInfo};
use broker_world::{World, browse};

const S: SessionId = SessionId(0);
const MANY: Window = Window { messages: 100, bytes: u64::MAX };

/// A world with a producer of session 0, and sessions 1 and 2 beside it.
fn world() -> World {
    world_with(Limits::default(), AutoCreate::Allowed)
}

fn world_with(limits: Limits, creation: AutoCreate) -> World {
    let mut world = World::new(limits, creation);
    (0..3).for_each(|session| world.begin(session));
    world.open(0, 0, "p");
    world.finish();
    world
}

fn publish(world: &mut World, topic: &str, messages: &[Message]) -> TopicId {
    let topic = world.find_topic(0, topic).unwrap();
    let last = world.last_of(world.clients[&S].producers[&0]).unwrap().0;
    world.publish_messages(0, 0, last + 1, vec![(topic, messages.len() as u32)], messages);
    topic
}

fn send(world: &mut World, topic: &str, count: usize) -> TopicId {
    publish(world, topic, &vec![Message::new("m"); count])
}

/// The names of the topics of what was delivered in the last cycle, with the offsets.
fn delivered(world: &World) -> Vec<(String, u64)> {
    let mut got: Vec<(String, u64)> = world
        .delivered
        .iter()
        .map(|(_, _, part, offset, _)| {
            let topic = &world.fold.topics[&world.fold.groups[part].topic];
            (topic.name.to_string(), *offset)
        })
        .collect();
    got.sort();
    got
}

fn at(topic: &str, offset: u64) -> (String, u64) {
    (topic.to_owned(), offset)
}

fn reply(world: &World, request: RequestId) -> Result<Reply, Refusal> {
    world.replies.iter().find(|reply| reply.1 == request).expect("an answer").2.clone()
}

fn last_refusal(world: &World) -> Refusal {
    world.replies.last().unwrap().2.clone().unwrap_err()
}

fn topics(world: &mut World) -> Vec<TopicInfo> {
    let request = world.admin(0, AdminCommand::ListTopics { after: None });
    let Ok(Reply::Topics { topics, .. }) = reply(world, request) else { panic!("a list") };
    topics
}

fn groups(world: &mut World, topic: &str) -> Vec<GroupInfo> {
    let request = world.admin(0, AdminCommand::ListGroups { topic: Some(topic.into()), after: None });
    let Ok(Reply::Groups { groups, .. }) = reply(world, request) else { panic!("a list") };
    groups
}

fn create(world: &mut World, topic: &str, start: Start) -> Result<Reply, Refusal> {
    let (topic, name) = (topic.into(), "g".into());
    let command = AdminCommand::CreateGroup { topic, name, settings: GroupSettings::default(), start };
    let request = world.admin(0, command);
    reply(world, request)
}

fn ack(world: &mut World, session: u64, topic: TopicId, start: u64, end: u64) -> u64 {
    world.settle_in(session, 0, topic, Settlement::Ack, vec![OffsetRange::new(start, end)])
}

#[test]
fn a_pattern_has_the_topics_there_are_and_those_made_later() {
    let mut world = world();
    let eu = send(&mut world, "orders.eu", 2);
    send(&mut world, "other", 1);
    world.subscribe(1, 0, "orders.*", "g", MANY, None).unwrap();
    world.finish();
    assert_eq!(delivered(&world), [at("orders.eu", 0), at("orders.eu", 1)]);
    let us = send(&mut world, "orders.us", 2);
    send(&mut world, "orders.us.new", 1);
    send(&mut world, "orders.us.dead-letter", 1);
    world.finish();
    assert_eq!(delivered(&world), [at("orders.us", 0), at("orders.us", 1)], "from its beginning");
    assert_eq!((ack(&mut world, 1, eu, 0, 9), ack(&mut world, 1, us, 0, 1)), (2, 1));
    world.finish();
    assert_eq!(world.fold.topics[&eu].start, Offset(2), "what all have had goes");

    let of_pattern = topics(&mut world).into_iter().find(|topic| topic.name == "orders.*").unwrap();
    assert_eq!((of_pattern.matching, of_pattern.groups, of_pattern.messages), (Some(2), 1, 0));
    for name in ["orders.*", "orders.us"] {
        let group = &groups(&mut world, name)[0];
        assert_eq!((group.topic.as_str(), group.waiting, group.in_flight), ("orders.*", 1, 1));
    }

    world.restart();
    world.begin(0);
    world.open(0, 0, "p");
    world.begin(1);
    world.subscribe(1, 0, "orders.*", "g", MANY, None).unwrap();
    send(&mut world, "orders.cn", 1);
    loop {
        world.finish();
        if world.reads.is_empty() {
            break;
        }
        world.answer_all();
    }
    let of_pattern = topics(&mut world).into_iter().find(|topic| topic.name == "orders.*").unwrap();
    assert_eq!(of_pattern.matching, Some(3));
    assert_eq!(groups(&mut world, "orders.*")[0].in_flight, 2);
}

#[test]
fn a_start_holds_for_the_topics_there_are() {
    for (start, expected) in [
        (Start::Latest, vec![at("a.new", 0), at("a.x", 3)]),
        (Start::Offset(Offset(2)), vec![at("a.new", 0), at("a.x", 2), at("a.x", 3)]),
    ] {
        let mut world = world();
        send(&mut world, "a.x", 3);
        create(&mut world, "a.*", start).unwrap();
        world.subscribe(1, 0, "a.*", "g", MANY, None).unwrap();
        send(&mut world, "a.x", 1);
        send(&mut world, "a.new", 1);
        let mut got = Vec::new();
        for _ in 0..3 {
            world.finish();
            got.extend(delivered(&world));
            world.answer_all();
        }
        got.sort();
        assert_eq!(got, expected);
    }
}

fn seek(world: &mut World, to: Start) -> RequestId {
    world.admin(0, AdminCommand::Seek { topic: "a.*".into(), name: "g".into(), to })
}

#[test]
fn a_group_is_set_to_a_place_in_all_its_topics() {
    let mut world = world();
    world.subscribe(1, 0, "a.*", "g", MANY, None).unwrap();
    for _ in 0..2 {
        let request = seek(&mut world, Start::Offset(Offset(0)));
        assert_eq!(reply(&world, request).unwrap_err().code, ErrorCode::Invalid, "others may come");
        send(&mut world, "a.x", 1);
        world.finish();
    }
    world.now = world.now.after(Duration::from_secs(1));
    send(&mut world, "a.y", 2);
    world.finish();
    let now = world.now;
    let new = [at("a.y", 0), at("a.y", 1)];
    let all = [&[at("a.x", 0), at("a.x", 1)], &new[..]].concat();
    for (to, expected) in [(Start::Earliest, &all[..]), (Start::Time(now), &new), (Start::Latest, &[])] {
        let request = seek(&mut world, to);
        world.finish();
        assert_eq!(reply(&world, request), Ok(Reply::Done));
        assert_eq!(delivered(&world), expected, "{to:?}");
        assert_eq!(groups(&mut world, "a.*")[0].waiting, expected.len() as u64);
    }
}

#[test]
fn a_pattern_and_its_topics_are_paused_and_resumed() {
    let mut world = world();
    world.subscribe(1, 0, "a.*", "g", MANY, None).unwrap();
    world.subscribe(2, 0, "a.x", "own", MANY, None).unwrap();
    send(&mut world, "a.x", 1);
    world.finish();
    let change = |world: &mut World, name: &str, paused| {
        let settings = TopicSettings { paused, ..TopicSettings::default() };
        let request = world.admin(0, AdminCommand::ChangeTopic { name: name.into(), settings });
        assert_eq!(reply(world, request), Ok(Reply::Done));
        world.finish();
        world.delivered.iter().map(|delivered| delivered.0).collect::<Vec<_>>()
    };
    let (pattern, own) = (SessionId(1), SessionId(2));
    for (name, still_served) in [("a.*", vec![own]), ("a.x", vec![])] {
        change(&mut world, name, true);
        send(&mut world, "a.x", 1);
        world.finish();
        let served: Vec<SessionId> = world.delivered.iter().map(|delivered| delivered.0).collect();
        assert_eq!(served, still_served, "{name} is paused");
        let mut served = [change(&mut world, name, false), served].concat();
        served.sort_unstable();
        assert_eq!(served, [pattern, own], "{name} is resumed");
    }
}

#[test]
fn a_topic_that_is_deleted_while_it_is_searched_is_left_out_of_a_seek() {
    let mut world = world_with(Limits { cache_bytes_max: 0, ..Limits::default() }, AutoCreate::Allowed);
    // Faster than marks are set: what is between them must be read.
    for _ in 0..3 {
        world.now = world.now.after(Duration::from_millis(300));
        for topic in ["a.x", "a.y"] {
            send(&mut world, topic, 100);
        }
        world.finish();
    }
    create(&mut world, "a.*", Start::Earliest).unwrap();
    let to = Start::Time(Timestamp(world.now.0 - 300));
    let request = seek(&mut world, to);
    world.finish();
    assert_eq!(world.reads.len(), 1, "it is searched for");
    let name = world.fold.topics[&world.reads[0].topic].name.to_string();
    world.admin(0, AdminCommand::DeleteTopic { name });
    while !world.reads.is_empty() {
        world.answer_all();
        world.finish();
    }
    assert_eq!(reply(&world, request), Ok(Reply::Done));
    assert_eq!(groups(&mut world, "a.*")[0].waiting, 200, "of the other topic");
}

#[test]
fn priorities_of_all_topics_come_too() {
    let mut world = world();
    let high = Message { priority: 9, ..Message::new("h") };
    publish(&mut world, "a.x", &[high.clone(), Message::new("l")]);
    world.subscribe(1, 0, "a.#", "g", MANY, None).unwrap();
    publish(&mut world, "a.y", &[Message::new("l"), high.clone()]);
    publish(&mut world, "a.x", &[high]);
    world.finish();
    assert_eq!(delivered(&world).len(), 5);
}

#[test]
fn what_dies_goes_to_the_dead_letters_of_its_own_topic() {
    let mut world = world();
    world.subscribe(1, 0, "a.*", "g", MANY, None).unwrap();
    let topic = send(&mut world, "a.x", 1);
    world.finish();
    world.settle_in(1, 0, topic, Settlement::Reject { reason: None }, vec![OffsetRange::new(0, 1)]);
    world.finish();
    let dead = world.fold.topics.values().find(|topic| topic.name.as_str() == "a.x.dead-letter").unwrap();
    assert_eq!(dead.end, Offset(1));
    world.subscribe(2, 0, "#.dead-letter", "d", MANY, None).unwrap();
    world.finish();
    assert_eq!(delivered(&world), [at("a.x.dead-letter", 0)]);
}

#[test]
fn nobody_publishes_to_a_pattern() {
    let mut world = world();
    world.subscribe(1, 0, "a.*", "g", MANY, None).unwrap();
    world.finish();
    assert_eq!(world.find_topic(0, "a.*"), None);
    assert_eq!(last_refusal(&world).code, ErrorCode::Invalid);
    assert_eq!(world.find_topic(0, "b.*"), None);
    let (pattern, _) = world.fold.topics.iter().find(|(_, topic)| topic.kind == TopicKind::Pattern).unwrap();
    let last = world.last_of(world.clients[&S].producers[&0]).unwrap().0;
    let publish =
        Publish { producer: 0, sequence: batonmq::model::id::Sequence(last + 1), parts: vec![(*pattern, 1)] };
    let block = batonmq::model::message::MessageBlock::encode(&[Message::new("m")]);
    world.handle(S, batonmq::broker::Command::Publish(publish, block));
    world.finish();
    assert_eq!(world.refused.last().unwrap().2, ErrorCode::Invalid);
    let name = "c.*".to_owned();
    world.admin(0, AdminCommand::CreateTopic { name, settings: TopicSettings::default() });
    assert!(last_refusal(&world).text.contains("first group"));
    world.admin(0, browse("a.*", 0, 1));
    assert_eq!(last_refusal(&world).code, ErrorCode::Invalid);
    for bad in ["a.*x", "*.%", "a b.*"] {
        assert_eq!(world.subscribe(1, 1, bad, "g", MANY, None), None, "{bad}");
        assert_eq!(last_refusal(&world).code, ErrorCode::Invalid);
    }
    world.finish();
}

#[test]
fn a_pattern_goes_with_its_last_group() {
    let mut world = world();
    send(&mut world, "a.x", 2);
    let ephemeral = GroupSettings { lifetime: Lifetime::Ephemeral, ..GroupSettings::default() };
    world.subscribe(1, 0, "a.*", "g", MANY, Some(ephemeral)).unwrap();
    create(&mut world, "a.*", Start::Earliest).unwrap_err();
    world.finish();
    assert_eq!(topics(&mut world).len(), 2);
    world.end(1, Ending::Closed);
    world.finish();
    assert_eq!(topics(&mut world).len(), 1);
    assert_eq!(world.fold.groups.len(), 0);
    create(&mut world, "a.*", Start::Earliest).unwrap();
    world.finish();
    world.admin(0, AdminCommand::DeleteTopic { name: "a.*".into() });
    world.finish();
    assert_eq!((world.fold.groups.len(), world.fold.topics.len()), (0, 1));
    // The topic's messages are its own.
    assert_eq!(topics(&mut world)[0].messages, 2);
}

/// What was in flight of a topic that is gone took the credit of its consumer for good.
#[test]
fn a_topic_that_is_deleted_takes_its_parts_with_it() {
    let mut world = world();
    let gone = send(&mut world, "a.x", 3);
    let high = Message { priority: 4, ..Message::new("h") };
    publish(&mut world, "a.x", &[high]);
    let window = Window { messages: 4, bytes: u64::MAX };
    world.subscribe(1, 0, "a.*", "g", window, None).unwrap();
    world.finish();
    assert_eq!(delivered(&world).len(), 4);
    world.admin(0, AdminCommand::DeleteTopic { name: "a.x".into() });
    send(&mut world, "a.y", 5);
    world.finish();
    assert_eq!(delivered(&world).len(), 4);
    assert!(!world.named.contains(&(SessionId(1), 0, gone)), "the consumer was told");
    assert_eq!(ack(&mut world, 1, gone, 0, 9), 0);
    let of_pattern = topics(&mut world).into_iter().find(|topic| topic.name == "a.*").unwrap();
    assert_eq!(of_pattern.matching, Some(1));
    send(&mut world, "a.x", 1);
    let again = world.find_topic(0, "a.x").unwrap();
    assert_ne!(gone, again);
    world.finish();
    assert_eq!(groups(&mut world, "a.*")[0].waiting, 6);
}

#[test]
fn a_pattern_has_so_many_topics_and_no_more() {
    let mut world = world_with(Limits { pattern_topics_max: 2, ..Limits::default() }, AutoCreate::Allowed);
    for name in ["a.x", "a.y", "b.x", "b.y", "b.z"] {
        world.find_topic(0, name).unwrap();
    }
    create(&mut world, "b.*", Start::Earliest).unwrap_err();
    assert_eq!(last_refusal(&world).code, ErrorCode::Limit);
    create(&mut world, "a.*", Start::Earliest).unwrap();
    assert_eq!(world.find_topic(0, "a.z"), None);
    assert_eq!(last_refusal(&world).code, ErrorCode::Limit);
    world.admin(0, AdminCommand::DeleteTopic { name: "a.x".into() });
    world.find_topic(0, "a.z").unwrap();
    world.finish();
}

#[test]
fn where_nothing_comes_into_being_by_use_a_pattern_is_made_by_an_administrator() {
    let mut world = world_with(Limits::default(), AutoCreate::Refused);
    assert_eq!(world.subscribe(1, 0, "a.*", "g", MANY, None), None);
    assert_eq!(last_refusal(&world).code, ErrorCode::UnknownTopic);
    create(&mut world, "a.*", Start::Earliest).unwrap();
    assert!(world.subscribe(1, 0, "a.*", "g", MANY, None).is_some());
    assert_eq!(world.subscribe(1, 1, "a.*", "h", MANY, None), None);
    assert_eq!(last_refusal(&world).code, ErrorCode::UnknownGroup);
    world.finish();
}

#[test]
fn policies_hold_for_all_topics_of_a_pattern() {
    let mut world = world();
    let settings = GroupSettings { policy: Policy::Key, ..GroupSettings::default() };
    for session in [1, 2] {
        world.subscribe(session, 0, "a.*", "g", MANY, Some(settings.clone())).unwrap();
    }
    let keyed: Vec<Message> =
        (0..8).map(|key| Message { key: Some(format!("k{key}").into()), ..Message::new("m") }).collect();
    for topic in ["a.x", "a.y", "a.z"] {
        publish(&mut world, topic, &keyed);
    }
    world.finish();
    let mut by_key = vec![std::collections::BTreeSet::new(); 8];
    for (session, _, _, offset, _) in &world.delivered {
        by_key[*offset as usize].insert(*session);
    }
    assert_eq!(world.delivered.len(), 24);
    assert!(by_key.iter().all(|sessions| sessions.len() == 1), "{by_key:?}");
}
