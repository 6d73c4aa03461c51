//! Dead letters that are replayed or dropped: in one of both places at any time. The model of `broker_world` watches.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{Offset, OffsetRange, Sequence, TopicId};
use batonmq::model::limits::{LETTERS_MAX, Limits, REPLAYS_MAX};
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::*;
use batonmq::protocol::response::{Replayed, Reply};
use broker_world::World;

/// A world where the messages of topic `t`, numbers 0, 1 and so on, are all rejected. Answers `t` and its dead letters.
fn world(limits: Limits, count: u32) -> (World, TopicId, TopicId) {
    let mut world = World::new(limits, AutoCreate::Allowed);
    world.begin(0);
    world.open(0, 0, "p");
    let topic = world.find_topic(0, "t").unwrap();
    world.subscribe(0, 0, "t", "g", Window { messages: count, bytes: u64::MAX }, None);
    world.publish(0, 0, 1, vec![(topic, count)]);
    world.finish();
    let all = vec![OffsetRange::new(0, u64::from(count))];
    world.settle(0, 0, Settlement::Reject { reason: Some("no".into()) }, all);
    settle_down(&mut world);
    world.unsubscribe(0, 0);
    world.finish();
    let dead = world.find_topic(0, "t.dead-letter").unwrap();
    assert_eq!(world.store[&dead].len(), count as usize);
    (world, topic, dead)
}

fn settle_down(world: &mut World) {
    for _ in 0..200 {
        world.finish();
        world.answer_all();
    }
    world.finish();
}

fn ask(world: &mut World, topic: TopicId, offsets: &[u64], to: Option<&str>) -> RequestId {
    world.taken_out.extend(offsets.iter().map(|offset| (topic, *offset)));
    let offsets = offsets.iter().copied().map(Offset).collect();
    world.admin(0, AdminCommand::ReplayDeadLetters { topic, offsets, to: to.map(str::to_owned) })
}

fn drop_messages(world: &mut World, topic: TopicId, offsets: &[u64]) -> RequestId {
    world.taken_out.extend(offsets.iter().map(|offset| (topic, *offset)));
    let offsets = offsets.iter().copied().map(Offset).collect();
    world.admin(0, AdminCommand::DropMessages { topic, offsets })
}

fn answer(world: &World, request: RequestId) -> Option<Result<Reply, Refusal>> {
    world.replies.iter().find(|reply| reply.1 == request).map(|reply| reply.2.clone())
}

fn replayed(world: &World, request: RequestId) -> Replayed {
    match answer(world, request) {
        Some(Ok(Reply::Replayed(replayed))) => replayed,
        other => panic!("{other:?}"),
    }
}

/// Offsets and bodies of what is in a topic.
fn contents(world: &World, topic: TopicId) -> Vec<(u64, String)> {
    let stored = world.store.get(&topic).into_iter().flatten();
    let text = |body: &[u8]| String::from_utf8(body.to_vec()).unwrap();
    stored.map(|(offset, stored)| (*offset, text(&stored.message.body))).collect()
}

#[test]
fn replayed_letters_are_back_where_they_came_from_with_their_history() {
    let (mut world, topic, dead) = world(Limits::default(), 5);
    let bodies: Vec<String> = contents(&world, dead).into_iter().map(|(_, body)| body).collect();
    let before = world.fold.topics[&topic].end.0;
    let request = ask(&mut world, dead, &[3, 1, 3], None);
    world.finish();
    assert_eq!(replayed(&world, request), Replayed { replayed: 2, ..Replayed::default() });
    let back = [(before, bodies[1].clone()), (before + 1, bodies[3].clone())];
    assert_eq!(contents(&world, topic), back);
    let left: Vec<u64> = contents(&world, dead).iter().map(|(offset, _)| *offset).collect();
    assert_eq!(left, [0, 2, 4]);
    let stored = &world.store[&topic][&before];
    assert_eq!(stored.origin.unwrap().sequence, Sequence(2), "it keeps its origin");
    assert_eq!(stored.message.header("baton.dead.topic"), None);
    let history = stored.message.header("baton.dead.history").unwrap().to_vec();
    assert!(
        String::from_utf8(history).unwrap().contains(" topic=t offset=1 group=g attempts=1 reason=rejected ")
    );
    // Asked again, as by a client that lost the answer, nothing happens twice.
    let again = ask(&mut world, dead, &[1, 3], None);
    world.finish();
    assert_eq!(replayed(&world, again), Replayed { gone: 2, ..Replayed::default() });
    assert_eq!(contents(&world, topic).len(), 2);
}

#[test]
fn a_group_gets_what_was_replayed_and_it_can_die_again() {
    let (mut world, topic, dead) = world(Limits::default(), 1);
    ask(&mut world, dead, &[0], None);
    world.subscribe(0, 1, "t", "g", Window { messages: 9, bytes: u64::MAX }, None);
    world.finish();
    assert_eq!(world.delivered.iter().map(|delivered| delivered.3).collect::<Vec<_>>(), [1]);
    world.settle(0, 1, Settlement::Reject { reason: None }, vec![OffsetRange::new(1, 2)]);
    settle_down(&mut world);
    assert_eq!(contents(&world, topic), []);
    let letter = &world.store[&dead][&1].message;
    assert_eq!(letter.header("baton.dead.offset").unwrap(), "1");
    let history = String::from_utf8(letter.header("baton.dead.history").unwrap().to_vec()).unwrap();
    assert_eq!(history.lines().count(), 1, "{history}");
}

#[test]
fn letters_go_to_another_topic_where_that_is_wanted() {
    let (mut world, topic, dead) = world(Limits::default(), 3);
    let request = ask(&mut world, dead, &[0, 2], Some("elsewhere"));
    world.finish();
    assert_eq!(replayed(&world, request).replayed, 2);
    let elsewhere = world.find_topic(0, "elsewhere").unwrap();
    assert_eq!((contents(&world, elsewhere).len(), contents(&world, topic).len()), (2, 0));
    let wrong = ask(&mut world, dead, &[1], Some("no topic!"));
    assert_eq!(answer(&world, wrong).unwrap().unwrap_err().code, ErrorCode::Invalid);
}

/// More than a cycle replays, none of it in memory, and the node dies after each cycle.
#[test]
fn each_letter_is_in_one_of_both_places_whenever_the_node_dies() {
    let limits = Limits { cache_bytes_max: 0, ..Limits::default() };
    let (mut world, topic, dead) = world(limits, 700);
    let all: Vec<u64> = (0..700).collect();
    let mut rounds = 0;
    while !contents(&world, dead).is_empty() {
        ask(&mut world, dead, &all, None);
        world.finish();
        world.answer_all();
        world.finish();
        let (back, left) = (contents(&world, topic), contents(&world, dead));
        assert_eq!(back.len() + left.len(), 700);
        assert!(
            left.len() >= 700_usize.saturating_sub(256 * (rounds + 1)),
            "a bounded part of it in a cycle"
        );
        world.restart();
        world.begin(0);
        rounds += 1;
    }
    assert!((3..20).contains(&rounds), "{rounds}");
    let numbers: Vec<u64> = contents(&world, topic)
        .iter()
        .map(|(_, body)| body.rsplit_once(':').unwrap().1.trim().parse().unwrap())
        .collect();
    assert_eq!(numbers, (1..=700).collect::<Vec<_>>(), "once each, in their order");
    assert_eq!(world.fold.topics[&dead].start, Offset(700));
}

#[test]
fn what_a_consumer_of_the_dead_letters_holds_stays_with_it() {
    let (mut world, topic, dead) = world(Limits::default(), 4);
    world.subscribe(0, 1, "t.dead-letter", "people", Window { messages: 2, bytes: u64::MAX }, None);
    world.subscribe(0, 2, "t.dead-letter", "others", Window { messages: 0, bytes: 0 }, None);
    world.finish();
    assert_eq!(world.delivered.len(), 2);
    let request = ask(&mut world, dead, &[0, 1, 2, 3], None);
    world.finish();
    assert_eq!(replayed(&world, request), Replayed { replayed: 2, held: 2, ..Replayed::default() });
    assert_eq!(contents(&world, topic).len(), 2);
    let dropped = drop_messages(&mut world, dead, &[0, 1, 2]);
    assert_eq!(answer(&world, dropped), Some(Ok(Reply::Dropped { count: 0 })));
    world.finish();
    world.settle(0, 1, Settlement::Ack, vec![OffsetRange::new(0, 1)]);
    world.settle(0, 1, Settlement::Release, vec![OffsetRange::new(1, 2)]);
    world.flow(0, 1, Window { messages: 0, bytes: 0 });
    world.finish();
    let dropped = drop_messages(&mut world, dead, &[0, 1, 2, 3]);
    assert_eq!(
        answer(&world, dropped),
        Some(Ok(Reply::Dropped { count: 2 })),
        "not what it acked before alone"
    );
    world.finish();
    assert_eq!(contents(&world, dead), []);
    world.flow(0, 1, Window { messages: 9, bytes: u64::MAX });
    world.flow(0, 2, Window { messages: 9, bytes: u64::MAX });
    world.finish();
    assert_eq!(world.delivered, [], "what is taken out is not handed out any more");
}

#[test]
fn what_has_no_home_and_what_is_not_there_stays_or_is_passed_over() {
    let (mut world, topic, dead) = world(Limits::default(), 2);
    world.publish(0, 0, 3, vec![(dead, 1)]);
    world.finish();
    let request = ask(&mut world, dead, &[2, 9], None);
    world.finish();
    assert_eq!(replayed(&world, request), Replayed { homeless: 1, gone: 1, ..Replayed::default() });
    world.begin(1);
    let many = vec![0; LETTERS_MAX + 1];
    let request = ask(&mut world, dead, &many, None);
    assert_eq!(answer(&world, request).unwrap().unwrap_err().code, ErrorCode::Invalid);
    let request = drop_messages(&mut world, TopicId(99), &[0]);
    assert_eq!(answer(&world, request).unwrap().unwrap_err().code, ErrorCode::UnknownTopic);
    // Its origin is gone: it is made again where using a topic makes it.
    world.admin(0, AdminCommand::DeleteTopic { name: "t".into() });
    world.finish();
    let request = ask(&mut world, dead, &[0], None);
    world.finish();
    assert_eq!(replayed(&world, request).replayed, 1);
    let again = world.find_topic(0, "t").unwrap();
    assert_ne!(again, topic);
    assert_eq!(contents(&world, again).len(), 1);
}

#[test]
fn a_full_store_leaves_the_letters_where_they_are() {
    let (mut world, topic, dead) = world(Limits::default(), 2);
    world.broker.begin_cycle(100);
    let request = ask(&mut world, dead, &[0, 1], None);
    world.finish();
    assert_eq!(answer(&world, request).unwrap().unwrap_err().code, ErrorCode::StoreFull);
    assert_eq!((contents(&world, dead).len(), contents(&world, topic).len()), (2, 0));
}

#[test]
fn requests_wait_in_a_bounded_line_and_go_with_their_session() {
    let limits = Limits { cache_bytes_max: 0, ..Limits::default() };
    let (mut world, topic, dead) = world(limits, 2);
    let requests: Vec<RequestId> = (0..=REPLAYS_MAX).map(|_| ask(&mut world, dead, &[0], None)).collect();
    assert_eq!(answer(&world, requests[REPLAYS_MAX]).unwrap().unwrap_err().code, ErrorCode::Limit);
    world.finish();
    assert_eq!(world.reads.len(), 1, "one thing is read at a time");
    world.end(0, Ending::Lost);
    settle_down(&mut world);
    assert_eq!((contents(&world, dead).len(), contents(&world, topic).len()), (2, 0));
    world.begin(0);
    let request = ask(&mut world, dead, &[0, 1], None);
    settle_down(&mut world);
    assert_eq!(replayed(&world, request).replayed, 2);
}
