//! Consuming: everything comes, settled once, and nothing of a lost connection settles anything.

use std::time::Duration;

use batonmq::client::{Client, ClientError, ConsumerOptions, ProducerOptions};
use batonmq::model::id::Offset;
use batonmq::model::message::Message;
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::{Request, Settle, Settlement};
use tokio::net::TcpListener;

use crate::node::{Behaviour, Node};
use crate::{bodies, connected, numbered, soon, until};

fn group() -> ConsumerOptions {
    ConsumerOptions::new("t", "g")
}

async fn publish(client: &Client, start: usize, count: usize) {
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let topic = client.topic("t").await.unwrap();
    producer.send_batch(&topic, &numbered(start, count)).await.unwrap();
    soon(producer.flush()).await.unwrap();
}

fn settles(request: &Request) -> Option<&Settle> {
    match request {
        Request::Settle(settle) => Some(settle),
        _ => None,
    }
}

fn text(message: &Message) -> String {
    String::from_utf8(message.body.to_vec()).unwrap()
}

#[tokio::test]
async fn everything_published_is_delivered_in_order_and_settled_in_few_frames() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 5000).await;
    let mut consumer = soon(client.consumer(group())).await.unwrap();
    let mut got = Vec::new();
    while got.len() < 5000 {
        let delivery = soon(consumer.next()).await.unwrap().unwrap();
        assert_eq!(delivery.offset(), Offset(got.len() as u64));
        assert_eq!((delivery.attempt, delivery.redelivered), (1, false));
        got.push(text(&delivery.message));
        consumer.ack(&delivery);
    }
    assert_eq!(got, bodies(0, 5000));
    assert_eq!(soon(consumer.flush()).await.unwrap(), 5000);
    let world = world.lock().unwrap();
    assert_eq!(world.settled("t").len(), 5000);
    let frames = world.count_frames(|request| settles(request).is_some());
    assert!(frames < 100, "{frames} settle frames");
}

#[tokio::test]
async fn an_ack_leaves_by_itself_while_the_application_works() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 2).await;
    let mut consumer = client.consumer(group()).await.unwrap();
    let delivery = soon(consumer.next()).await.unwrap().unwrap();
    consumer.ack(&delivery);
    until(|| world.lock().unwrap().settled("t") == [0]).await;
}

#[tokio::test]
async fn batches_take_what_is_there() {
    let (_world, _node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 10).await;
    let mut consumer = client.consumer(group()).await.unwrap();
    let mut got = 0;
    while got < 10 {
        let batch = soon(consumer.next_batch(4)).await.unwrap();
        assert!((1..=4).contains(&batch.len()));
        got += batch.len();
        consumer.ack_up_to(&batch[batch.len() - 1]);
    }
    assert!(consumer.try_next().is_none());
    assert_eq!(soon(consumer.flush()).await.unwrap(), 10);
}

#[tokio::test]
async fn a_small_prefetch_does_not_stall() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 50).await;
    let mut consumer = client.consumer(ConsumerOptions { prefetch: 1, ..group() }).await.unwrap();
    for _ in 0..50 {
        let delivery = soon(consumer.next()).await.unwrap().unwrap();
        consumer.ack(&delivery);
    }
    soon(consumer.flush()).await.unwrap();
    assert_eq!(world.lock().unwrap().settled("t").len(), 50);
}

/// A delivery of a lost connection may have gone to another consumer by now. Settling it on the new connection
/// would settle that hand-over; and whoever settles it must hear that it has had no effect.
#[tokio::test]
async fn an_ack_of_a_lost_connection_settles_nothing_and_is_reported_as_lost() {
    let (world, node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 3).await;
    let mut consumer = client.consumer(group()).await.unwrap();
    let old = soon(consumer.next()).await.unwrap().unwrap();
    let address = node.address.clone();
    node.kill().await;
    until(|| client.master().is_none()).await;
    consumer.ack(&old);
    let error = soon(consumer.flush()).await.unwrap_err();
    assert!(matches!(error, ClientError::SettlementsLost { count: 1 }), "{error}");
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, Behaviour::default());
    let again = soon(consumer.next()).await.unwrap().unwrap();
    assert_eq!(again.offset(), Offset(0), "a buffered delivery of the old connection was handed out");
    assert!(again.redelivered);
    consumer.ack(&old);
    consumer.ack_up_to(&old);
    consumer.extend(&old);
    let error = soon(consumer.flush()).await.unwrap_err();
    assert!(matches!(error, ClientError::SettlementsLost { count: 2 }), "{error}");
    assert!(world.lock().unwrap().frames.iter().filter_map(settles).next().is_none());
    consumer.ack(&again);
    assert_eq!(soon(consumer.flush()).await.unwrap(), 1);
    assert_eq!(world.lock().unwrap().settled("t"), [0]);
}

#[tokio::test]
async fn settlements_lost_with_their_connection_are_reported_once() {
    let (world, node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 3).await;
    let mut consumer = client.consumer(group()).await.unwrap();
    let first = soon(consumer.next()).await.unwrap().unwrap();
    let second = soon(consumer.next()).await.unwrap().unwrap();
    node.set(|behaviour| behaviour.silent = true);
    consumer.ack(&first);
    consumer.ack(&second);
    until(|| world.lock().unwrap().count_frames(|request| settles(request).is_some()) > 0).await;
    let address = node.address.clone();
    node.kill().await;
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, Behaviour::default());
    let error = soon(consumer.flush()).await.unwrap_err();
    assert!(matches!(error, ClientError::SettlementsLost { count: 2 }), "{error}");
    let third = soon(consumer.next()).await.unwrap().unwrap();
    assert_eq!(third.offset(), Offset(2), "the settlement had been stored, only its answer was lost");
    assert_eq!(soon(consumer.flush()).await.unwrap(), 0);
}

#[tokio::test]
async fn connections_that_break_all_the_time_lose_no_message() {
    let (world, node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 200).await;
    node.set(|behaviour| behaviour.drop_after_frames = Some(6));
    let mut consumer = soon(client.consumer(ConsumerOptions { prefetch: 7, ..group() })).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    while world.lock().unwrap().settled.values().next().is_none_or(|settled| settled.len() < 200) {
        let batch = match tokio::time::timeout(Duration::from_millis(200), consumer.next_batch(3)).await {
            Ok(batch) => batch.unwrap(),
            Err(_) => continue,
        };
        for delivery in &batch {
            seen.insert(delivery.offset());
            consumer.ack(delivery);
        }
        let _ = soon(consumer.flush()).await;
    }
    assert_eq!(seen.len(), 200);
}

#[tokio::test]
async fn every_way_to_settle_reaches_the_node_in_order() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 5).await;
    let mut consumer = client.consumer(group()).await.unwrap();
    let mut deliveries = Vec::new();
    while deliveries.len() < 5 {
        deliveries.extend(soon(consumer.next_batch(5)).await.unwrap());
    }
    let settler = consumer.settler();
    settler.extend(&deliveries[0]);
    settler.nack(&deliveries[0], Some(Duration::from_secs(2)));
    settler.nack(&deliveries[1], None);
    settler.release(&deliveries[2]);
    settler.reject(&deliveries[3]);
    settler.ack(&deliveries[4]);
    soon(settler.flush()).await.unwrap();
    let world = world.lock().unwrap();
    let kinds: Vec<_> =
        world.frames.iter().filter_map(settles).map(|settle| settle.settlement.clone()).collect();
    let expected = [
        Settlement::Extend,
        Settlement::Nack { delay_ms: Some(2000), reason: None },
        Settlement::Nack { delay_ms: None, reason: None },
        Settlement::Release,
        Settlement::Reject { reason: None },
        Settlement::Ack,
    ];
    assert_eq!(kinds, expected);
}

#[tokio::test]
async fn a_delivery_of_another_consumer_is_not_settled() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 1).await;
    let mut consumer = client.consumer(group()).await.unwrap();
    let delivery = soon(consumer.next()).await.unwrap().unwrap();
    let other = client.consumer(group()).await.unwrap();
    other.ack(&delivery);
    assert_eq!(soon(other.flush()).await.unwrap(), 0);
    assert!(world.lock().unwrap().settled.is_empty());
}

#[tokio::test]
async fn a_consumer_that_may_not_join_yet_joins_a_moment_later() {
    let refusing = Behaviour { refuse_subscribe_once: Some(ErrorCode::Draining), ..Behaviour::default() };
    let (_world, _node, client) = connected(refusing).await;
    publish(&client, 0, 1).await;
    let mut consumer = soon(client.consumer(group())).await.unwrap();
    assert_eq!(soon(consumer.next()).await.unwrap().unwrap().offset(), Offset(0));
}

/// A limit that was met when all clients came back after a takeover ended the consumer.
#[tokio::test]
async fn a_consumer_that_meets_a_limit_when_it_comes_back_joins_later() {
    let (world, node, client) = connected(Behaviour::default()).await;
    let mut consumer = soon(client.consumer(group())).await.unwrap();
    let address = node.address.clone();
    node.kill().await;
    let limited = || Behaviour { refuse_subscribe_once: Some(ErrorCode::Limit), ..Behaviour::default() };
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, limited());
    publish(&client, 0, 1).await;
    assert_eq!(soon(consumer.next()).await.unwrap().unwrap().offset(), Offset(0));
    let (_world, _node, client) = connected(limited()).await;
    let first = soon(client.consumer(group())).await;
    assert!(matches!(first, Err(ClientError::ConsumerEnded { .. })), "a new one is told at once");
}

#[tokio::test]
async fn a_consumer_that_the_node_ends_says_why() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let mut consumer = client.consumer(group()).await.unwrap();
    world.lock().unwrap().close_consumers();
    let error = soon(consumer.next()).await.unwrap_err();
    let ClientError::ConsumerEnded { refusal, .. } = &error else { panic!("{error}") };
    assert_eq!(refusal.code, ErrorCode::Deleted);
    assert_eq!(error.to_string(), "consumer of group g on topic t has ended: the group was deleted");
}

#[tokio::test]
async fn closing_gives_back_what_is_not_settled() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 2).await;
    let mut consumer = client.consumer(group()).await.unwrap();
    let first = soon(consumer.next()).await.unwrap().unwrap();
    consumer.ack(&first);
    soon(consumer.close()).await.unwrap();
    assert_eq!(world.lock().unwrap().settled("t"), [0]);
    let mut next = client.consumer(group()).await.unwrap();
    assert_eq!(soon(next.next()).await.unwrap().unwrap().offset(), Offset(1));
    drop(next);
    let mut last = client.consumer(group()).await.unwrap();
    assert_eq!(soon(last.next()).await.unwrap().unwrap().offset(), Offset(1));
}

/// The client closed its socket while deliveries were on their way. That reset the connection, and the node never read
/// the last acknowledgement, nor the goodbye.
#[tokio::test]
async fn what_was_settled_before_the_client_closes_reaches_a_node_that_is_slow_to_read() {
    let (world, node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 1).await;
    let mut consumer = client.consumer(group()).await.unwrap();
    let delivery = soon(consumer.next()).await.unwrap().unwrap();
    node.set(|behaviour| behaviour.deaf = true);
    let some_beats = || {
        let enough = world.lock().unwrap().beats + 3;
        let world = world.clone();
        until(move || world.lock().unwrap().beats >= enough)
    };
    some_beats().await;
    consumer.ack(&delivery);
    let closing = tokio::spawn(client.close());
    some_beats().await;
    node.set(|behaviour| behaviour.deaf = false);
    soon(closing).await.unwrap();
    until(|| world.lock().unwrap().settled.values().flatten().copied().eq([0])).await;
    until(|| world.lock().unwrap().frames.contains(&Request::Goodbye)).await;
}

/// The client applied the new limit of what the node takes to what the node sends. Each delivery of the message ended
/// the connection and counted as an attempt, until the message was a dead letter.
#[tokio::test]
async fn a_message_that_was_stored_under_higher_limits_is_delivered() {
    let (world, node, client) = connected(Behaviour::default()).await;
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let topic = client.topic("t").await.unwrap();
    soon(producer.send(&topic, &Message::new("x".repeat(2 << 20)))).await.unwrap();
    let address = node.address.clone();
    node.kill().await;
    let smaller = Behaviour { frame_bytes_max: 1 << 20, ..Behaviour::default() };
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, smaller);
    let mut consumer = soon(client.consumer(group())).await.unwrap();
    let delivery = soon(consumer.next()).await.unwrap().unwrap();
    assert_eq!((delivery.message.body.len(), delivery.attempt), (2 << 20, 1));
}

/// The subscription of a future that was dropped while it waited for the node lived on: it took messages that nobody
/// settled, over every reconnect.
#[tokio::test]
async fn a_consumer_that_is_dropped_while_it_joins_leaves_the_group() {
    let (world, node, client) = connected(Behaviour { silent: true, ..Behaviour::default() }).await;
    let asked = || world.lock().unwrap().count_frames(|request| matches!(request, Request::Subscribe(_)));
    let pushed = tokio::spawn({
        let client = client.clone();
        async move { client.consumer(group()).await }
    });
    until(|| asked() >= 1).await;
    pushed.abort();
    let pulled = tokio::spawn({
        let client = client.clone();
        async move { client.pull_consumer(group()).await }
    });
    until(|| asked() >= 2).await;
    pulled.abort();
    until(|| world.lock().unwrap().consumer_count() == 0).await;
    let address = node.address.clone();
    node.kill().await;
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, Behaviour::default());
    soon(client.status()).await.unwrap();
    assert_eq!(world.lock().unwrap().consumer_count(), 0, "it joined again after the reconnect");
}

#[tokio::test]
async fn the_end_of_the_client_is_the_end_of_the_stream() {
    let (_world, _node, client) = connected(Behaviour::default()).await;
    let mut consumer = client.consumer(group()).await.unwrap();
    let waiting = tokio::spawn(async move { consumer.next().await });
    soon(client.close()).await;
    assert_eq!(soon(waiting).await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn without_a_master_waiting_for_a_delivery_comes_to_an_end() {
    let world = crate::world();
    let node = Node::start(&world, Behaviour::default()).await;
    let options =
        batonmq::client::ClientOptions { timeout: Duration::from_millis(200), ..crate::options(&[&node]) };
    let client = Client::connect(options).await.unwrap();
    let mut consumer = client.consumer(group()).await.unwrap();
    let patient = tokio::time::timeout(Duration::from_millis(400), consumer.next()).await;
    assert!(patient.is_err(), "there is a master: no reason to give up");
    node.kill().await;
    let error = soon(consumer.next()).await.unwrap_err();
    assert!(matches!(error, ClientError::NoMaster { .. }), "{error}");
}

/// Who waits for silence must be able to tell that of an empty group from that of a lost master.
#[tokio::test]
async fn a_consumer_tells_how_long_it_has_been_in_its_group_without_a_break() {
    let (_world, node, client) = connected(Behaviour::default()).await;
    let consumer = client.consumer(group()).await.unwrap();
    let at_first = consumer.subscribed_for().unwrap();
    until(|| consumer.subscribed_for().is_some_and(|time| time > at_first)).await;
    node.kill().await;
    until(|| consumer.subscribed_for().is_none()).await;
}

/// Closing waited for a master as long as the client does for anything, and then failed, though the lost connection had
/// taken the consumer with it.
#[tokio::test]
async fn without_a_master_closing_a_consumer_is_done_at_once() {
    let world = crate::world();
    let node = Node::start(&world, Behaviour::default()).await;
    let options =
        batonmq::client::ClientOptions { timeout: Duration::from_secs(3600), ..crate::options(&[&node]) };
    let client = Client::connect(options).await.unwrap();
    let pushed = client.consumer(group()).await.unwrap();
    let pulled = client.pull_consumer(group()).await.unwrap();
    node.kill().await;
    until(|| client.master().is_none()).await;
    soon(pushed.close()).await.unwrap();
    soon(pulled.close()).await.unwrap();
}

#[tokio::test]
async fn a_pull_gets_what_is_there_and_waits_for_what_is_not() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    publish(&client, 0, 5).await;
    let mut consumer = soon(client.pull_consumer(group())).await.unwrap();
    let wait = Duration::from_secs(5);
    let first = soon(consumer.pull(3, 1 << 20, wait)).await.unwrap();
    assert_eq!(first.iter().map(|delivery| text(&delivery.message)).collect::<Vec<_>>(), bodies(0, 3));
    let rest = soon(consumer.pull(10, 1 << 20, wait)).await.unwrap();
    assert_eq!(rest.len(), 2);
    assert!(soon(consumer.pull(10, 1 << 20, Duration::ZERO)).await.unwrap().is_empty());
    let (more, ()) = tokio::join!(soon(consumer.pull(10, 1 << 20, wait)), publish(&client, 5, 1));
    assert_eq!(text(&more.unwrap()[0].message), "5");
    for delivery in first.iter().chain(&rest) {
        consumer.ack(delivery);
    }
    assert_eq!(soon(consumer.flush()).await.unwrap(), 5);
    assert_eq!(world.lock().unwrap().settled("t").len(), 5);
}

#[tokio::test]
async fn what_came_for_a_dropped_pull_comes_with_the_next() {
    let (_world, _node, client) = connected(Behaviour::default()).await;
    let mut consumer = soon(client.pull_consumer(group())).await.unwrap();
    let wait = Duration::from_secs(5);
    let early = tokio::time::timeout(Duration::from_millis(50), consumer.pull(10, 1 << 20, wait)).await;
    assert!(early.is_err());
    publish(&client, 0, 1).await;
    let got = soon(consumer.pull(10, 1 << 20, wait)).await.unwrap();
    assert_eq!(text(&got[0].message), "0");
}

/// The node serves the pull that was dropped first: what comes for it must not lie in the client until the node
/// answers the later one too.
#[tokio::test]
async fn what_comes_for_a_dropped_pull_later_ends_the_wait_of_the_next() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let mut consumer = soon(client.pull_consumer(group())).await.unwrap();
    let wait = Duration::from_secs(60);
    let early = tokio::time::timeout(Duration::from_millis(50), consumer.pull(10, 1 << 20, wait)).await;
    assert!(early.is_err());
    let pulling = tokio::spawn(async move { consumer.pull(10, 1 << 20, wait).await });
    until(|| world.lock().unwrap().count_frames(|r| matches!(r, Request::Pull(_))) == 2).await;
    publish(&client, 0, 1).await;
    assert_eq!(text(&soon(pulling).await.unwrap().unwrap()[0].message), "0");
}

#[tokio::test]
async fn a_pull_goes_on_over_a_lost_connection() {
    let (world, node, client) = connected(Behaviour::default()).await;
    let mut consumer = soon(client.pull_consumer(group())).await.unwrap();
    let pulling = tokio::spawn(async move { consumer.pull(10, 1 << 20, Duration::from_secs(10)).await });
    until(|| world.lock().unwrap().count_frames(|r| matches!(r, Request::Pull(_))) == 1).await;
    let address = node.address.clone();
    node.kill().await;
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, Behaviour::default());
    publish(&client, 0, 1).await;
    assert_eq!(soon(pulling).await.unwrap().unwrap().len(), 1);
}
