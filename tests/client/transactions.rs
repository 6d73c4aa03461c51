//! Transactions: all of it or nothing, and the client always learns which.

use std::time::Duration;

use batonmq::client::{Client, ClientError, Consumer, ConsumerOptions, Producer, ProducerOptions, Topic};
use batonmq::model::message::Message;
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::{Request, Settle, Settlement, TransactSettle};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::node::{Behaviour, Node};
use crate::{bodies, connected, numbered, soon, until};

/// A producer, a consumer of `in` where the messages 0, 1 and so on are, and the topic `out`.
async fn transformer(client: &Client, messages: usize) -> (Producer, Consumer, Topic) {
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let input = client.topic("in").await.unwrap();
    producer.send_batch(&input, &numbered(0, messages)).await.unwrap();
    soon(producer.flush()).await.unwrap();
    let consumer = client.consumer(ConsumerOptions::new("in", "g")).await.unwrap();
    (producer, consumer, client.topic("out").await.unwrap())
}

fn settlements(request: &Request) -> Option<&[TransactSettle]> {
    match request {
        Request::Transact(transact, _) => Some(&transact.settlements),
        _ => None,
    }
}

fn releases(request: &Request) -> bool {
    matches!(request, Request::Settle(Settle { settlement: Settlement::Release, .. }))
}

fn refusal(result: Result<(), ClientError>) -> ErrorCode {
    match result {
        Err(ClientError::TransactionAborted(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_consumed_and_produced_is_committed_together_and_in_the_order_of_publishing() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, mut consumer, output) = transformer(&client, 10).await;
    producer.publish(&output, &Message::new("before")).await.unwrap();
    let mut transaction = producer.transaction();
    for _ in 0..10 {
        let delivery = soon(consumer.next()).await.unwrap().unwrap();
        transaction.send(&output, &delivery.message).unwrap();
        transaction.ack(&consumer, &delivery).unwrap();
    }
    soon(transaction.commit()).await.unwrap();
    soon(producer.send(&output, &Message::new("behind"))).await.unwrap();
    let expected = [vec!["before".into()], bodies(0, 10), vec!["behind".into()]].concat();
    {
        let world = world.lock().unwrap();
        assert_eq!(world.bodies("out"), expected);
        assert_eq!(world.settled("in"), (0..10).collect::<Vec<_>>());
        let frames: Vec<_> = world.frames.iter().filter_map(settlements).collect();
        assert_eq!((frames.len(), frames[0].len(), frames[0][0].ranges.len()), (1, 1, 1));
    }
    soon(transaction.commit()).await.expect("said again");
    let over = transaction.send(&output, &Message::new("late"));
    assert!(matches!(over, Err(ClientError::TransactionOver)));
}

#[tokio::test]
async fn a_transaction_that_is_dropped_or_late_gives_its_deliveries_back() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, mut consumer, output) = transformer(&client, 2).await;
    let first = soon(consumer.next()).await.unwrap().unwrap();
    let mut dropped = producer.transaction();
    dropped.send(&output, &first.message).unwrap();
    dropped.ack(&consumer, &first).unwrap();
    dropped.rollback();
    until(|| world.lock().unwrap().count_frames(releases) == 1).await;
    let second = soon(consumer.next()).await.unwrap().unwrap();
    let within = Duration::from_millis(20);
    let mut late = producer.transaction_within(within);
    late.ack(&consumer, &second).unwrap();
    until(|| world.lock().unwrap().count_frames(releases) == 2).await;
    let error = soon(late.commit()).await.unwrap_err();
    assert!(matches!(error, ClientError::TransactionTimedOut { within: said } if said == within));
    assert!(matches!(late.ack(&consumer, &second), Err(ClientError::TransactionTimedOut { .. })));
    let world = world.lock().unwrap();
    assert_eq!(world.count_frames(|request| settlements(request).is_some()), 0);
    assert_eq!((world.bodies("out"), world.settled("in")), (vec![], vec![]));
}

#[tokio::test]
async fn a_refused_transaction_says_why_gives_back_and_leaves_the_producer_as_it_was() {
    let (world, node, client) = connected(Behaviour::default()).await;
    let (producer, mut consumer, output) = transformer(&client, 2).await;
    let delivery = soon(consumer.next()).await.unwrap().unwrap();
    let mut transaction = producer.transaction();
    transaction.send(&output, &delivery.message).unwrap();
    transaction.ack(&consumer, &delivery).unwrap();
    node.set(|behaviour| behaviour.full = 1);
    let asked = Instant::now();
    assert_eq!(refusal(soon(transaction.commit()).await), ErrorCode::StoreFull);
    assert!(asked.elapsed() > Duration::from_millis(400), "a full store is not asked without a pause");
    until(|| world.lock().unwrap().count_frames(releases) == 1).await;
    assert_eq!(producer.failures(), [], "it is told by the commit and nowhere else");
    soon(producer.send(&output, &Message::new("next"))).await.unwrap();
    // Acked beside the transaction, it is not in flight any more.
    let delivery = soon(consumer.next()).await.unwrap().unwrap();
    consumer.ack(&delivery);
    soon(consumer.flush()).await.unwrap();
    let mut transaction = producer.transaction();
    transaction.ack(&consumer, &delivery).unwrap();
    assert_eq!(refusal(soon(transaction.commit()).await), ErrorCode::TransactionAborted);
    assert_eq!(world.lock().unwrap().bodies("out"), ["next"]);
}

/// A topic that was deleted is looked up again by the next transaction.
#[tokio::test]
async fn a_topic_that_is_gone_aborts_once() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, _consumer, output) = transformer(&client, 0).await;
    world.lock().unwrap().delete_topic("out");
    for expected in [Some(ErrorCode::UnknownTopic), None] {
        let mut transaction = producer.transaction();
        transaction.send(&output, &Message::new("x")).unwrap();
        let committed = soon(transaction.commit()).await;
        match expected {
            Some(code) => assert_eq!(refusal(committed), code),
            None => committed.unwrap(),
        }
    }
    assert_eq!(world.lock().unwrap().bodies("out"), ["x"]);
}

/// The connection is lost before the node has taken the commit, or after it has and before it has said so.
#[tokio::test]
async fn the_outcome_of_a_commit_is_known_whenever_the_connection_is_lost() {
    for stored in [false, true] {
        let (world, node, client) = connected(Behaviour::default()).await;
        let (producer, mut consumer, output) = transformer(&client, 1).await;
        let delivery = soon(consumer.next()).await.unwrap().unwrap();
        let mut transaction = producer.transaction();
        transaction.send(&output, &delivery.message).unwrap();
        transaction.ack(&consumer, &delivery).unwrap();
        if stored {
            node.set(|behaviour| behaviour.withhold_confirms = true);
        } else {
            node.set(|behaviour| behaviour.deaf = true);
        }
        let address = node.address.clone();
        let commit = tokio::spawn(async move { (transaction.commit().await, transaction) });
        if stored {
            until(|| world.lock().unwrap().bodies("out") == ["0"]).await;
        }
        node.kill().await;
        let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, Behaviour::default());
        let (outcome, _transaction) = soon(commit).await.unwrap();
        if stored {
            outcome.unwrap();
        } else {
            assert_eq!(refusal(outcome), ErrorCode::TransactionAborted);
            let again = soon(consumer.next()).await.unwrap().unwrap();
            assert!(again.redelivered);
            let mut transaction = producer.transaction();
            transaction.send(&output, &again.message).unwrap();
            transaction.ack(&consumer, &again).unwrap();
            soon(transaction.commit()).await.unwrap();
        }
        assert_eq!(world.lock().unwrap().bodies("out"), ["0"]);
        assert_eq!(world.lock().unwrap().settled("in"), [0]);
        soon(consumer.flush()).await.expect("no settlement of its own was lost");
    }
}

/// Without settlements it belongs to no connection.
#[tokio::test]
async fn a_transaction_that_only_publishes_survives_the_connection() {
    let (world, node, client) =
        connected(Behaviour { withhold_confirms: true, ..Behaviour::default() }).await;
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let topics = [client.topic("a").await.unwrap(), client.topic("b").await.unwrap()];
    node.set(|behaviour| behaviour.deaf = true);
    let mut transaction = producer.transaction();
    for (topic, message) in topics.iter().zip(numbered(0, 2)) {
        transaction.send(topic, &message).unwrap();
    }
    let address = node.address.clone();
    let commit = tokio::spawn(async move { transaction.commit().await });
    tokio::task::yield_now().await;
    node.kill().await;
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, Behaviour::default());
    soon(commit).await.unwrap().unwrap();
    let world = world.lock().unwrap();
    assert_eq!((world.bodies("a"), world.bodies("b")), (vec!["0".into()], vec!["1".into()]));
}

#[tokio::test]
async fn a_commit_that_was_dropped_can_be_waited_for_again() {
    let (world, node, client) = connected(Behaviour::default()).await;
    let (producer, _consumer, output) = transformer(&client, 0).await;
    node.set(|behaviour| behaviour.withhold_confirms = true);
    let mut transaction = producer.transaction();
    transaction.send(&output, &Message::new("x")).unwrap();
    tokio::select! {
        _ = transaction.commit() => panic!("nothing was confirmed"),
        () = until(|| world.lock().unwrap().bodies("out") == ["x"]) => {}
    }
    assert!(matches!(transaction.send(&output, &Message::new("y")), Err(ClientError::TransactionOver)));
    let address = node.address.clone();
    node.kill().await;
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, Behaviour::default());
    soon(transaction.commit()).await.unwrap();
    assert_eq!(world.lock().unwrap().bodies("out"), ["x"]);
}

/// Only then nobody can tell: the node has forgotten the producer that the number belongs to.
#[tokio::test]
async fn only_a_producer_that_expired_leaves_the_outcome_open() {
    let (world, node, client) = connected(Behaviour::default()).await;
    let (producer, _consumer, output) = transformer(&client, 1).await;
    node.set(|behaviour| behaviour.withhold_confirms = true);
    let mut transaction = producer.transaction();
    transaction.send(&output, &Message::new("x")).unwrap();
    let commit = tokio::spawn(async move { transaction.commit().await });
    until(|| world.lock().unwrap().bodies("out") == ["x"]).await;
    let address = node.address.clone();
    node.kill().await;
    let expired = Behaviour { refuse_resume: Some(ErrorCode::ProducerExpired), ..Behaviour::default() };
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, expired);
    let error = soon(commit).await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::ProducerEnded { unknown: 2, .. }), "{error}");
}

#[tokio::test]
async fn what_is_too_much_or_of_somebody_else_never_leaves() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, mut consumer, output) = transformer(&client, 2).await;
    let mut transaction = producer.transaction();
    transaction.send(&output, &Message::new(vec![0; 60 << 10])).unwrap();
    let error = transaction.send(&output, &Message::new(vec![0; 5 << 10])).unwrap_err();
    assert!(matches!(error, ClientError::TransactionTooLarge { max, .. } if max == 64 << 10), "{error}");
    soon(transaction.commit()).await.expect("it stayed as it was");
    let other = client.consumer(ConsumerOptions::new("other", "g")).await.unwrap();
    let delivery = soon(consumer.next()).await.unwrap().unwrap();
    let mut transaction = producer.transaction();
    transaction.ack(&other, &delivery).unwrap();
    assert_eq!(refusal(soon(transaction.commit()).await), ErrorCode::TransactionAborted);
    assert!(world.lock().unwrap().settled("in").is_empty());
}
