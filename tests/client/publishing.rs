//! Publishing: what is confirmed is stored once and in order, whatever happens to connections.

use std::collections::HashSet;
use std::time::Duration;

use batonmq::client::{Client, ClientError, ClientOptions, Producer, ProducerOptions, Ticket, Topic};
use batonmq::model::message::Message;
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::Request;
use tokio::net::TcpListener;

use crate::node::{Behaviour, Node};
use crate::{bodies, connected, numbered, options, soon, until, world};

async fn producer(client: &Client) -> (Producer, Topic) {
    let producer = soon(client.producer(ProducerOptions::default())).await.unwrap();
    (producer, soon(client.topic("t")).await.unwrap())
}

fn is_publish(request: &Request) -> bool {
    matches!(request, Request::Publish(..))
}

#[tokio::test]
async fn what_is_published_is_stored_in_order_and_in_few_frames() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    let messages = numbered(0, 20_000);
    let last = soon(producer.send_batch(&topic, &messages)).await.unwrap();
    assert_eq!(last, Ticket(20_000));
    soon(producer.confirmed(last)).await.unwrap();
    let world = world.lock().unwrap();
    assert_eq!(world.bodies("t"), bodies(0, 20_000));
    let frames = world.count_frames(is_publish);
    assert!(frames < 200, "{frames} frames");
}

#[tokio::test]
async fn a_single_message_is_sent_without_company() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    for message in numbered(0, 50) {
        soon(producer.send(&topic, &message)).await.unwrap();
    }
    assert_eq!(world.lock().unwrap().bodies("t"), bodies(0, 50));
}

/// Each of many tasks that sent at the same time forced a frame of its own.
#[tokio::test]
async fn sends_of_many_tasks_share_frames() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    let mut tasks = tokio::task::JoinSet::new();
    for message in numbered(0, 200) {
        let (producer, topic) = (producer.clone(), topic.clone());
        tasks.spawn(async move { producer.send(&topic, &message).await });
    }
    while let Some(sent) = soon(tasks.join_next()).await {
        sent.unwrap().unwrap();
    }
    let world = world.lock().unwrap();
    assert_eq!(world.bodies("t").len(), 200);
    let frames = world.count_frames(is_publish);
    assert!(frames <= 4, "{frames} frames");
}

/// What waited for company while the node worked on an earlier frame leaves when that is refused or put off, too.
#[tokio::test]
async fn a_send_that_waited_for_company_is_not_forgotten() {
    let (world, _node, client) = connected(Behaviour { full: 2, ..Behaviour::default() }).await;
    let (producer, topic) = producer(&client).await;
    for body in ["bad", "0"] {
        producer.publish(&topic, &Message::new(body)).await.unwrap();
    }
    let (first, second) = (Message::new("1"), Message::new("2"));
    let sent = async { tokio::join!(producer.send(&topic, &first), producer.send(&topic, &second)) };
    let (first, second) = soon(sent).await;
    first.unwrap();
    second.unwrap();
    assert_eq!(world.lock().unwrap().bodies("t"), bodies(0, 3));
}

#[tokio::test]
async fn publishing_without_waiting_reaches_the_node_by_itself() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    producer.publish(&topic, &Message::new("0")).await.unwrap();
    until(|| world.lock().unwrap().bodies("t") == ["0"]).await;
}

#[tokio::test]
async fn connections_that_break_neither_lose_nor_repeat_nor_reorder() {
    for frames in [4, 5, 7, 12] {
        let behaviour = Behaviour { drop_after_frames: Some(frames), ..Behaviour::default() };
        let (world, _node, client) = connected(behaviour).await;
        let (producer, topic) = producer(&client).await;
        for (round, message) in numbered(0, 200).iter().enumerate() {
            producer.publish(&topic, message).await.unwrap();
            if round % 5 == 4 {
                soon(producer.flush()).await.unwrap();
            }
        }
        soon(producer.flush()).await.unwrap();
        assert_eq!(world.lock().unwrap().bodies("t"), bodies(0, 200), "with {frames} frames a connection");
    }
}

#[tokio::test]
async fn many_tasks_share_a_producer_over_broken_connections() {
    let behaviour = Behaviour { drop_after_frames: Some(20), ..Behaviour::default() };
    let (world, _node, client) = connected(behaviour).await;
    let (producer, topic) = producer(&client).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..50 {
        let (producer, topic) = (producer.clone(), topic.clone());
        tasks.spawn(async move {
            for number in 0..10 {
                producer.send(&topic, &Message::new(format!("{task}-{number}"))).await.unwrap();
            }
        });
    }
    soon(async { while tasks.join_next().await.transpose().unwrap().is_some() {} }).await;
    let stored = world.lock().unwrap().bodies("t");
    assert_eq!(stored.len(), 500);
    assert_eq!(stored.iter().collect::<HashSet<_>>().len(), 500);
}

#[tokio::test]
async fn a_stored_message_whose_confirm_was_lost_is_not_stored_again() {
    let (world, node, client) =
        connected(Behaviour { withhold_confirms: true, ..Behaviour::default() }).await;
    let (producer, topic) = producer(&client).await;
    let address = node.address.clone();
    let last = producer.send_batch(&topic, &numbered(0, 3)).await.unwrap();
    until(|| world.lock().unwrap().bodies("t").len() == 3).await;
    node.kill().await;
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, Behaviour::default());
    soon(producer.confirmed(last)).await.unwrap();
    let world = world.lock().unwrap();
    assert_eq!(world.bodies("t"), bodies(0, 3));
    assert_eq!(world.count_frames(is_publish), 1, "what the node said it has was sent again");
}

/// For 50 ms neither node is master, as in a takeover; the client must keep trying both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_goes_on_where_the_other_node_takes_over() {
    let world = world();
    let first = Node::start(&world, Behaviour::default()).await;
    let mut other =
        Some(Node::start(&world, Behaviour { not_master: Some(None), ..Behaviour::default() }).await);
    let client = Client::connect(options(&[&first, other.as_ref().unwrap()])).await.unwrap();
    let (producer, topic) = producer(&client).await;
    soon(producer.send(&topic, &Message::new("0"))).await.unwrap();
    first.kill().await;
    let serving = tokio::spawn({
        let other = other.take().unwrap();
        async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            other.set(|behaviour| {
                behaviour.not_master = None;
                behaviour.epoch = 2;
            });
            other
        }
    });
    soon(producer.send(&topic, &Message::new("1"))).await.unwrap();
    drop(serving.await);
    assert_eq!(world.lock().unwrap().bodies("t"), bodies(0, 2));
}

#[tokio::test]
async fn only_the_message_that_is_refused_fails() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    let mut messages = numbered(0, 1000);
    for at in [0, 500, 501, 999] {
        messages[at] = Message::new("bad");
    }
    let last = soon(producer.send_batch(&topic, &messages)).await.unwrap();
    let Err(ClientError::MessagesRefused(failures)) = soon(producer.confirmed(last)).await else {
        panic!("nothing was refused");
    };
    let failed: Vec<_> = failures.iter().map(|failure| (failure.first.0, failure.last.0)).collect();
    assert_eq!(failed, [(1, 1), (501, 501), (502, 502), (1000, 1000)]);
    assert!(failures.iter().all(|failure| failure.refusal.code == ErrorCode::Invalid));
    let mut expected = bodies(0, 1000);
    expected.retain(|body| !["0", "500", "501", "999"].contains(&body.as_str()));
    assert_eq!(world.lock().unwrap().bodies("t"), expected);
    soon(producer.flush()).await.unwrap();
}

#[tokio::test]
async fn a_refusal_reaches_the_task_that_sent_the_message_and_no_other() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (producer, topic) = (producer.clone(), topic.clone());
        let body = if number % 10 == 3 { "bad".to_owned() } else { number.to_string() };
        tasks.spawn(async move { (body.clone(), producer.send(&topic, &Message::new(body)).await) });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        let (body, result) = done.unwrap();
        assert_eq!(result.is_err(), body == "bad", "{body}: {result:?}");
    }
    assert_eq!(world.lock().unwrap().bodies("t").len(), 90);
    assert!(producer.failures().is_empty());
}

/// A clone that flushed took the refusal before the task that had sent the message woke up, and that task was told
/// that its message is durable.
#[tokio::test]
async fn a_refusal_reaches_the_task_that_sent_the_message_though_others_ask_for_all() {
    let (_world, _node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    for _ in 0..20 {
        let before = producer.last_ticket();
        // Waits for the same answer, and is woken first.
        let flushing = tokio::spawn({
            let producer = producer.clone();
            async move { producer.confirmed(Ticket(before.0 + 1)).await }
        });
        tokio::task::yield_now().await;
        let sent = soon(producer.send(&topic, &Message::new("bad"))).await;
        assert!(matches!(sent, Err(ClientError::MessagesRefused(_))), "{sent:?}");
        soon(flushing).await.unwrap().unwrap();
    }
    assert!(producer.failures().is_empty());
}

/// Nobody would hear of a refusal that is kept for a task that has stopped waiting.
#[tokio::test]
async fn the_refusal_of_a_dropped_send_is_reported_to_the_next_flush() {
    let (_world, node, client) = connected(Behaviour { full: usize::MAX, ..Behaviour::default() }).await;
    let (producer, topic) = producer(&client).await;
    let refused = Message::new("bad");
    let sent = tokio::time::timeout(Duration::from_millis(50), producer.send(&topic, &refused)).await;
    assert!(sent.is_err());
    node.set(|behaviour| behaviour.full = 0);
    let Err(ClientError::MessagesRefused(failures)) = soon(producer.flush()).await else {
        panic!("nothing was refused");
    };
    assert_eq!((failures[0].first, failures[0].last), (Ticket(1), Ticket(1)));
}

#[tokio::test]
async fn what_the_node_puts_off_is_tried_again() {
    let (world, node, client) = connected(Behaviour { full: 3, ..Behaviour::default() }).await;
    let (producer, topic) = producer(&client).await;
    let last = producer.send_batch(&topic, &numbered(0, 10)).await.unwrap();
    soon(producer.confirmed(last)).await.unwrap();
    assert_eq!(world.lock().unwrap().bodies("t"), bodies(0, 10));
    assert_eq!(node.behaviour.lock().unwrap().full, 0);
}

/// A refusal as out of sequence that no earlier one explains: both sides disagree, and only the node can say where to
/// go on.
#[tokio::test]
async fn a_node_that_disagrees_about_the_sequence_is_asked_where_to_go_on() {
    let (world, node, client) = connected(Behaviour { confused: 1, ..Behaviour::default() }).await;
    let (producer, topic) = producer(&client).await;
    soon(producer.send_batch(&topic, &numbered(0, 3))).await.unwrap();
    soon(producer.flush()).await.unwrap();
    node.set(|behaviour| behaviour.confused = 1);
    soon(producer.send(&topic, &Message::new("3"))).await.unwrap();
    let world = world.lock().unwrap();
    assert_eq!(world.bodies("t"), bodies(0, 4));
    let opened = world.count_frames(|request| matches!(request, Request::OpenProducer(_)));
    assert_eq!(opened, 3, "once at first and once after each refusal");
}

#[tokio::test]
async fn a_producer_that_the_node_does_not_open_yet_is_opened_a_moment_later() {
    let refusing = Behaviour { refuse_open_once: Some(ErrorCode::Draining), ..Behaviour::default() };
    let (world, _node, client) = connected(refusing).await;
    let (producer, topic) = producer(&client).await;
    soon(producer.send(&topic, &Message::new("0"))).await.unwrap();
    assert_eq!(world.lock().unwrap().bodies("t"), ["0"]);
}

/// While clients come back after a takeover, the node may have more connections of them than it will in a moment. A
/// producer that met a limit then had ended, with unconfirmed messages.
#[tokio::test]
async fn a_producer_that_meets_a_limit_when_it_comes_back_goes_on_later() {
    let (world, node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    soon(producer.send(&topic, &Message::new("0"))).await.unwrap();
    let address = node.address.clone();
    node.kill().await;
    let limited = || Behaviour { refuse_open_once: Some(ErrorCode::Limit), ..Behaviour::default() };
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, limited());
    soon(producer.send(&topic, &Message::new("1"))).await.unwrap();
    assert_eq!(world.lock().unwrap().bodies("t"), bodies(0, 2));
    let (_world, _node, client) = connected(limited()).await;
    let first = soon(client.producer(ProducerOptions::default())).await;
    assert!(matches!(first, Err(ClientError::ProducerEnded { .. })), "a new one is told at once");
}

#[tokio::test]
async fn a_call_that_gets_nowhere_says_why_and_may_be_made_again() {
    let world = world();
    let node = Node::start(&world, Behaviour { full: usize::MAX, ..Behaviour::default() }).await;
    let options = ClientOptions { timeout: Duration::from_millis(200), ..options(&[&node]) };
    let client = Client::connect(options).await.unwrap();
    let (producer, topic) = producer(&client).await;
    let error = soon(producer.send(&topic, &Message::new("0"))).await.unwrap_err();
    let expected = "messages 1 to 1 are not confirmed and nothing moved for 200ms; they are still being tried: the store is full";
    assert_eq!(error.to_string(), expected);
    node.set(|behaviour| behaviour.full = 0);
    // The wait after the last refusal may be longer than what the client is set to.
    soon(async { while producer.flush().await.is_err() {} }).await;
    assert_eq!(world.lock().unwrap().bodies("t"), ["0"]);
}

#[tokio::test]
async fn publishing_waits_when_as_much_is_in_flight_as_may_be() {
    let (world, node, client) =
        connected(Behaviour { withhold_confirms: true, ..Behaviour::default() }).await;
    let limits = ProducerOptions { in_flight_messages: 10, ..ProducerOptions::default() };
    let producer = client.producer(limits).await.unwrap();
    let topic = client.topic("t").await.unwrap();
    let messages = numbered(0, 30);
    {
        let mut publishing = std::pin::pin!(producer.send_batch(&topic, &messages));
        let early = tokio::time::timeout(Duration::from_millis(100), publishing.as_mut()).await;
        assert!(early.is_err(), "more than 10 messages were taken");
        assert_eq!(producer.last_ticket(), Ticket(10));
        node.set(|behaviour| behaviour.withhold_confirms = false);
        let address = node.address.clone();
        node.kill().await;
        let back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, Behaviour::default());
        soon(publishing).await.unwrap();
        soon(producer.flush()).await.unwrap();
        drop(back);
    }
    assert_eq!(world.lock().unwrap().bodies("t"), bodies(0, 30));
}

#[tokio::test]
async fn a_message_larger_than_all_that_may_be_in_flight_goes_alone() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let limits = ProducerOptions { in_flight_bytes: 100, ..ProducerOptions::default() };
    let producer = client.producer(limits).await.unwrap();
    let topic = client.topic("t").await.unwrap();
    let messages = [Message::new("x".repeat(3 << 20)), Message::new("y".repeat(3 << 20))];
    soon(producer.send_batch(&topic, &messages)).await.unwrap();
    soon(producer.flush()).await.unwrap();
    assert_eq!(world.lock().unwrap().bodies("t").len(), 2);
}

#[tokio::test]
async fn a_dropped_send_neither_loses_its_message_nor_harms_others() {
    let (world, node, client) =
        connected(Behaviour { withhold_confirms: true, ..Behaviour::default() }).await;
    let (producer, topic) = producer(&client).await;
    let message = Message::new("0");
    let sent = tokio::time::timeout(Duration::from_millis(50), producer.send(&topic, &message)).await;
    assert!(sent.is_err());
    node.set(|behaviour| behaviour.withhold_confirms = false);
    soon(producer.send(&topic, &Message::new("1"))).await.unwrap();
    assert_eq!(world.lock().unwrap().bodies("t"), bodies(0, 2));
}

#[tokio::test]
async fn messages_to_a_deleted_topic_fail_and_the_next_one_finds_it_anew() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    let other = client.topic("other").await.unwrap();
    world.lock().unwrap().delete_topic("t");
    producer.send_batch(&other, &numbered(0, 2)).await.unwrap();
    producer.send_batch(&topic, &numbered(0, 5)).await.unwrap();
    producer.send_batch(&other, &numbered(2, 2)).await.unwrap();
    let Err(ClientError::MessagesRefused(failures)) = soon(producer.flush()).await else {
        panic!("nothing was refused");
    };
    assert_eq!((failures.len(), failures[0].first, failures[0].last), (1, Ticket(3), Ticket(7)));
    assert_eq!(world.lock().unwrap().bodies("other"), bodies(0, 4));
    soon(producer.send(&topic, &Message::new("again"))).await.unwrap();
    assert_eq!(world.lock().unwrap().bodies("t"), ["again"]);
}

#[tokio::test]
async fn a_producer_that_the_node_forgot_ends_and_says_what_is_not_known() {
    let (world, node, client) =
        connected(Behaviour { withhold_confirms: true, ..Behaviour::default() }).await;
    let (producer, topic) = producer(&client).await;
    producer.send_batch(&topic, &numbered(0, 4)).await.unwrap();
    let address = node.address.clone();
    node.kill().await;
    let forgetful = Behaviour { refuse_resume: Some(ErrorCode::ProducerExpired), ..Behaviour::default() };
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, forgetful);
    let error = soon(producer.flush()).await.unwrap_err();
    assert!(matches!(error, ClientError::ProducerEnded { unknown: 4, .. }), "{error}");
    let next = soon(producer.publish(&topic, &Message::new("x"))).await;
    assert!(matches!(next, Err(ClientError::ProducerEnded { .. })));
}

/// A publisher that was idle for longer than the node remembers producers had ended, though everything it had sent was
/// confirmed.
#[tokio::test]
async fn a_producer_that_the_node_forgot_with_nothing_unconfirmed_goes_on() {
    let (world, node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    soon(producer.send(&topic, &Message::new("0"))).await.unwrap();
    let address = node.address.clone();
    node.kill().await;
    until(|| client.master().is_none()).await;
    // Published while there is no connection: it cannot be stored.
    let ticket = soon(producer.publish(&topic, &Message::new("1"))).await.unwrap();
    world.lock().unwrap().forget_producers();
    let forgetful = Behaviour { refuse_resume: Some(ErrorCode::ProducerExpired), ..Behaviour::default() };
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, forgetful);
    soon(producer.confirmed(ticket)).await.unwrap();
    soon(producer.send(&topic, &Message::new("2"))).await.unwrap();
    assert_eq!(world.lock().unwrap().bodies("t"), bodies(0, 3));
}

#[tokio::test]
async fn a_producer_whose_name_another_took_ends() {
    let (_world, node, client) = connected(Behaviour::default()).await;
    let named = ProducerOptions { name: Some("p".into()), ..ProducerOptions::default() };
    let mine = client.producer(named.clone()).await.unwrap();
    let topic = client.topic("t").await.unwrap();
    soon(mine.send(&topic, &Message::new("0"))).await.unwrap();
    let other = Client::connect(options(&[&node])).await.unwrap();
    let theirs = other.producer(named).await.unwrap();
    let error = soon(mine.send(&topic, &Message::new("1"))).await.unwrap_err();
    let ClientError::ProducerEnded { refusal, .. } = error else { panic!("{error}") };
    assert_eq!(refusal.code, ErrorCode::ProducerReplaced);
    soon(theirs.send(&topic, &Message::new("2"))).await.unwrap();
}

#[tokio::test]
async fn a_store_that_went_back_is_noticed() {
    let (world, node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    soon(producer.send_batch(&topic, &numbered(0, 3))).await.unwrap();
    soon(producer.flush()).await.unwrap();
    let address = node.address.clone();
    node.kill().await;
    let older = crate::world();
    drop(world);
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &older, Behaviour::default());
    let error = soon(async {
        loop {
            match producer.send(&topic, &Message::new("x")).await {
                Ok(()) => {}
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(matches!(error, ClientError::StoreWentBack { stored: 0, confirmed: 3, .. }), "{error}");
}

#[tokio::test]
async fn a_message_beyond_a_limit_is_refused_before_it_is_sent() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    let long = Message { key: Some(vec![0; 5000].into()), ..Message::default() };
    assert!(matches!(producer.publish(&topic, &long).await, Err(ClientError::Message(_))));
    soon(producer.send(&topic, &Message::new("0"))).await.unwrap();
    assert_eq!(world.lock().unwrap().bodies("t"), ["0"]);
}

/// The messages of a batch before one that passes a limit lay in the client until something else was published.
#[tokio::test]
async fn the_messages_before_one_beyond_a_limit_are_sent() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let (producer, topic) = producer(&client).await;
    let long = Message { key: Some(vec![0; 5000].into()), ..Message::default() };
    let batch = [Message::new("0"), Message::new("1"), long, Message::new("3")];
    let error = soon(producer.send_batch(&topic, &batch)).await.unwrap_err();
    assert!(matches!(error, ClientError::Message(_)), "{error}");
    until(|| world.lock().unwrap().bodies("t") == bodies(0, 2)).await;
    assert_eq!(producer.last_ticket(), Ticket(2));
}

#[tokio::test]
async fn a_message_that_no_frame_of_the_new_master_holds_fails_and_the_others_do_not() {
    let world = world();
    let node =
        Node::start(&world, Behaviour { withhold_confirms: true, silent: false, ..Behaviour::default() })
            .await;
    let client = Client::connect(options(&[&node])).await.unwrap();
    let (producer, topic) = producer(&client).await;
    node.set(|behaviour| behaviour.refuse_all = Some(ErrorCode::StoreFull));
    let large = Message::new("x".repeat(2 << 20));
    let messages = [Message::new("0"), large, Message::new("1")];
    producer.send_batch(&topic, &messages).await.unwrap();
    let address = node.address.clone();
    node.kill().await;
    let smaller = Behaviour { frame_bytes_max: 1 << 20, ..Behaviour::default() };
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, smaller);
    let Err(ClientError::MessagesRefused(failures)) = soon(producer.flush()).await else {
        panic!("nothing was refused");
    };
    assert_eq!((failures[0].first, failures[0].last), (Ticket(2), Ticket(2)));
    assert_eq!(world.lock().unwrap().bodies("t"), bodies(0, 2));
}
