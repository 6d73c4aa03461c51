//! Transactions: all of it in one cycle, or nothing. The model of `broker_world` watches.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use batonmq::broker::{AutoCreate, Command, Ending};
use batonmq::model::id::{Offset, OffsetRange, Sequence, SessionId, TopicId};
use batonmq::model::limits::{Limits, TRANSACTION_RANGES_MAX, TRANSACTION_SETTLEMENTS_MAX};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::record::Record;
use batonmq::model::settings::{GroupSettings, Overflow, Start, TopicSettings};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::*;
use batonmq::protocol::response::Reply;
use broker_world::World;

const S: SessionId = SessionId(0);

/// A world where consumer 0 of session 0 has the 4 messages of topic `in`, by a lease of 1 s. Answers topics `in`, `out`
/// and `log`. The producer of the session has used 4 numbers.
fn world() -> (World, [TopicId; 3]) {
    let mut world = World::new(Limits::default(), AutoCreate::Allowed);
    world.begin(0);
    world.open(0, 0, "p");
    let topics = ["in", "out", "log"].map(|name| world.find_topic(0, name).unwrap());
    let settings = GroupSettings { lease_ms: 1_000, ..GroupSettings::default() };
    world.subscribe(0, 0, "in", "g", Window { messages: 4, bytes: u64::MAX }, Some(settings));
    world.publish(0, 0, 1, vec![(topics[0], 4)]);
    world.finish();
    assert_eq!(world.delivered.len(), 4);
    (world, topics)
}

fn acks(start: u64, end: u64) -> (Handle, Settlement, Vec<OffsetRange>) {
    (0, Settlement::Ack, vec![OffsetRange::new(start, end)])
}

fn stored(world: &World, topic: TopicId) -> usize {
    world.store.get(&topic).map_or(0, |messages| messages.len())
}

fn last(world: &World) -> u64 {
    world.last_of(world.clients[&S].producers[&0]).unwrap().0
}

#[test]
fn messages_to_several_topics_and_settlements_are_one_commit() {
    let (mut world, [input, output, log]) = world();
    let reject = (0, Settlement::Reject { reason: Some("no".into()) }, vec![OffsetRange::new(2, 3)]);
    let nack = (0, Settlement::Nack { delay_ms: Some(5), reason: None }, vec![OffsetRange::new(3, 4)]);
    let parts = vec![(output, 2), (log, 1), (output, 1)];
    assert_eq!(world.transact(0, 0, 5, parts, vec![acks(0, 2), reject, nack]), None);
    let of_broker = world.out.records.clone();
    assert!(matches!(of_broker.last(), Some(Record::ProducerAdvanced { last: Sequence(9), .. })));
    world.finish();
    assert_eq!((stored(&world, output), stored(&world, log)), (3, 1));
    let group = &world.fold.groups.values().next().unwrap();
    assert_eq!(group.topic, input);
    assert_eq!(group.floor, Offset(3), "the dead letter is settled too");
    assert_eq!(last(&world), 9);
    // What comes next goes on behind the number of the transaction.
    world.publish(0, 0, 10, vec![(output, 1)]);
    world.finish();
}

#[test]
fn a_transaction_without_messages_takes_a_number_too() {
    let (mut world, _) = world();
    assert_eq!(world.transact(0, 0, 5, vec![], vec![acks(0, 4)]), None);
    world.finish();
    assert_eq!(last(&world), 5);
    // Sent again it changes nothing, though what it settles is settled.
    assert_eq!(world.transact(0, 0, 5, vec![], vec![acks(0, 4)]), None);
    world.finish();
    // A new connection hears of it.
    world.begin(1);
    let request = world.open(1, 0, "p");
    let answer = world.replies.iter().find(|reply| reply.1 == request).unwrap();
    assert!(matches!(answer.2, Ok(Reply::Producer { last: Sequence(5), .. })));
}

#[test]
fn nothing_is_done_where_one_offset_is_not_in_flight() {
    let (mut world, [_, output, _]) = world();
    world.settle(0, 0, Settlement::Ack, vec![OffsetRange::new(2, 3)]);
    world.finish();
    let aborted = Some(ErrorCode::TransactionAborted);
    assert_eq!(world.transact(0, 0, 5, vec![(output, 1)], vec![acks(0, 4)]), aborted, "acked before");
    assert_eq!(world.transact(0, 0, 5, vec![(output, 1)], vec![acks(3, 5)]), aborted, "never published");
    let other = (1, Settlement::Ack, vec![OffsetRange::new(0, 1)]);
    assert_eq!(world.transact(0, 0, 5, vec![(output, 1)], vec![other]), aborted, "no such consumer");
    world.finish();
    assert_eq!((last(&world), stored(&world, output)), (4, 0));
    assert_eq!(world.transact(0, 0, 5, vec![(output, 1)], vec![acks(0, 2), acks(3, 4)]), None);
    world.finish();
}

/// A lease that is over is noticed a little later: until then the delivery counts as in flight, though it will be
/// handed out again whatever its consumer does.
#[test]
fn a_lease_that_is_over_aborts_though_nobody_has_noticed() {
    let (mut world, [_, output, _]) = world();
    world.now.0 += 999;
    world.settle(0, 0, Settlement::Extend, vec![OffsetRange::new(0, 1)]);
    world.now.0 += 1;
    let aborted = Some(ErrorCode::TransactionAborted);
    assert_eq!(world.transact(0, 0, 5, vec![(output, 1)], vec![acks(1, 2)]), aborted);
    assert_eq!(world.transact(0, 0, 5, vec![(output, 1)], vec![acks(0, 1)]), None);
    world.finish();
}

#[test]
fn what_another_consumer_has_by_now_is_not_settled() {
    let (mut world, [_, output, _]) = world();
    world.begin(1);
    world.subscribe(1, 0, "in", "g", Window { messages: 9, bytes: u64::MAX }, None);
    world.settle(0, 0, Settlement::Release, vec![OffsetRange::new(0, 4)]);
    world.flow(0, 0, Window { messages: 0, bytes: 0 });
    world.finish();
    assert!(
        world.delivered.iter().all(|delivered| delivered.0 == SessionId(1)) && world.delivered.len() == 4
    );
    let aborted = Some(ErrorCode::TransactionAborted);
    assert_eq!(world.transact(0, 0, 5, vec![(output, 1)], vec![acks(0, 1)]), aborted);
    world.finish();
}

/// The same consumer gets the same messages again, and a transaction with the first hand-over is on its way.
#[test]
fn a_transaction_with_what_was_recalled_is_aborted_though_it_has_come_again() {
    let (mut world, [input, output, _]) = world();
    world.admin(0, AdminCommand::Seek { topic: "in".into(), name: "g".into(), to: Start::Earliest });
    world.finish();
    assert_eq!(world.delivered.len(), 4, "all of it came again");
    let transact = |generation| {
        let publish = Publish { producer: 0, sequence: Sequence(5), parts: vec![(output, 1)] };
        let (settlement, ranges) = (Settlement::Ack, vec![OffsetRange::new(0, 4)]);
        let settle = TransactSettle { consumer: 0, topic: input, generation, settlement, ranges };
        let block = MessageBlock::encode(&[Message::new("made")]);
        Command::Transact(Transact { publish, settlements: vec![settle] }, block)
    };
    world.handle(S, transact(0));
    world.finish();
    assert_eq!(world.refused.last().unwrap().2, ErrorCode::TransactionAborted);
    assert_eq!((last(&world), stored(&world, output)), (4, 0));
    assert_eq!(world.transact(0, 0, 5, vec![(output, 1)], vec![acks(0, 4)]), None, "what came again may be");
    world.finish();
}

#[test]
fn a_zombie_commits_nothing_once_its_producer_was_opened_elsewhere() {
    let (mut world, [_, output, _]) = world();
    world.begin(1);
    world.open(1, 0, "p");
    let replaced = Some(ErrorCode::ProducerReplaced);
    assert_eq!(world.transact(0, 0, 5, vec![(output, 1)], vec![acks(0, 4)]), replaced);
    world.finish();
    assert_eq!(stored(&world, output), 0);
}

#[test]
fn a_session_that_ends_leaves_nothing_of_its_transactions() {
    let (mut world, [_, output, _]) = world();
    world.end(0, Ending::Lost);
    assert!(world.transact(0, 0, 5, vec![(output, 1)], vec![acks(0, 4)]).is_some());
    world.finish();
    assert_eq!(stored(&world, output), 0);
}

#[test]
fn a_topic_that_is_gone_or_a_full_store_refuses_all_of_it() {
    let (mut world, [input, output, log]) = world();
    let name = "log".to_owned();
    world.admin(0, AdminCommand::DeleteTopic { name });
    let refused = world.transact(0, 0, 5, vec![(output, 1), (log, 1)], vec![acks(0, 4)]);
    assert_eq!(refused, Some(ErrorCode::Deleted));
    world.finish();
    world.broker.begin_cycle(100);
    let publish = Publish { producer: 0, sequence: Sequence(5), parts: vec![(output, 1)] };
    let settlements = vec![TransactSettle {
        consumer: 0,
        topic: input,
        generation: 0,
        settlement: Settlement::Ack,
        ranges: vec![OffsetRange::new(0, 4)],
    }];
    let block = MessageBlock::encode(&[Message::new("x")]);
    world.handle(S, Command::Transact(Transact { publish, settlements }, block));
    world.finish();
    let refusal = world.refused.last().unwrap();
    assert_eq!((refusal.2, refusal.3), (ErrorCode::StoreFull, Sequence(5)));
    world.broker.begin_cycle(u64::MAX);
    assert_eq!(world.transact(0, 0, 5, vec![(output, 1)], vec![acks(0, 4)]), None);
    world.finish();
}

#[test]
fn numbers_that_are_used_for_something_else_are_no_transaction() {
    let (mut world, [_, output, _]) = world();
    let refused = Some(ErrorCode::OutOfSequence);
    assert_eq!(world.transact(0, 0, 3, vec![(output, 2)], vec![]), refused, "begins with what is stored");
    assert_eq!(world.transact(0, 0, 6, vec![(output, 1)], vec![]), refused, "leaves a number out");
    world.finish();
}

#[test]
fn what_makes_no_sense_or_is_too_much_is_refused() {
    let (mut world, [input, output, _]) = world();
    let invalid = Some(ErrorCode::Invalid);
    let range = |start, end| vec![OffsetRange::new(start, end)];
    let extend = (0, Settlement::Extend, range(0, 1));
    assert_eq!(world.transact(0, 0, 5, vec![], vec![extend]), invalid);
    assert_eq!(world.transact(0, 0, 5, vec![], vec![acks(0, 2), acks(1, 3)]), invalid);
    let both = (0, Settlement::Reject { reason: None }, range(0, 1));
    assert_eq!(world.transact(0, 0, 5, vec![], vec![acks(0, 1), both]), invalid);
    let mut send = |settlements: Vec<TransactSettle>, count: u32| {
        let publish = Publish { producer: 0, sequence: Sequence(5), parts: vec![(output, count)] };
        let block = MessageBlock::encode(&[Message::new("x")]);
        world.handle(S, Command::Transact(Transact { publish, settlements }, block));
        world.finish();
        world.refused.last().unwrap().2
    };
    let settle = |ranges: Vec<OffsetRange>| TransactSettle {
        consumer: 0,
        topic: input,
        generation: 0,
        settlement: Settlement::Ack,
        ranges,
    };
    assert_eq!(send(vec![settle(range(2, 2))], 1), ErrorCode::Invalid, "a range without an offset");
    assert_eq!(send(vec![], 2), ErrorCode::Invalid, "more messages promised than there are");
    let many = vec![settle(range(0, 1)); TRANSACTION_SETTLEMENTS_MAX + 1];
    assert_eq!(send(many, 1), ErrorCode::Limit);
    assert_eq!(
        send(vec![settle(vec![OffsetRange::new(0, 1); TRANSACTION_RANGES_MAX + 1])], 1),
        ErrorCode::Limit
    );
}

#[test]
fn a_full_topic_refuses_all_of_it_until_there_is_room() {
    for (overflow, code) in
        [(Overflow::Reject, ErrorCode::TopicFull), (Overflow::Block, ErrorCode::TopicBlocked)]
    {
        let (mut world, [input, output, _]) = world();
        let settings = TopicSettings { max_messages: Some(1), overflow, ..TopicSettings::default() };
        world.admin(0, AdminCommand::CreateTopic { name: "full".into(), settings });
        let full = world.find_topic(0, "full").unwrap();
        world.subscribe(0, 1, "full", "g", Window { messages: 9, bytes: u64::MAX }, None);
        world.publish(0, 0, 5, vec![(full, 1)]);
        world.finish();
        let publish = Publish { producer: 0, sequence: Sequence(6), parts: vec![(output, 1), (full, 1)] };
        let settle = TransactSettle {
            consumer: 0,
            topic: input,
            generation: 0,
            settlement: Settlement::Ack,
            ranges: vec![OffsetRange::new(0, 4)],
        };
        let block = MessageBlock::encode(&[Message::new("x"), Message::new("y")]);
        world.handle(S, Command::Transact(Transact { publish, settlements: vec![settle] }, block));
        world.finish();
        let refusal = world.refused.last().unwrap();
        assert_eq!((refusal.2, refusal.3), (code, Sequence(6)));
        assert_eq!(stored(&world, output), 0);
        world.settle(0, 1, Settlement::Ack, vec![OffsetRange::new(0, 1)]);
        world.finish();
        world.settle(0, 0, Settlement::Extend, vec![OffsetRange::new(0, 4)]);
        world.finish();
        assert_eq!(world.transact(0, 0, 6, vec![(output, 1), (full, 1)], vec![acks(0, 4)]), None);
        world.finish();
    }
}
