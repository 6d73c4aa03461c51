//! Requests and replies over a takeover: every request gets its reply, and one only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use batonmq::client::{Answered, Client, ClientError, ConsumerOptions, Requester, Responder, Topic};
use batonmq::model::header::{CORRELATION_ID, REPLY_TO, REPLY_TOPIC_PREFIX};
use batonmq::model::message::Message;
use batonmq::model::settings::{Backoff, GroupSettings, Retention, TopicSettings};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::response::Role;
use support::load::options;
use support::pair::{Node, PATIENCE, two};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Requests that are under way at a time.
const REQUESTS: u64 = 200;

async fn pair(mode: &'static str, dir: &std::path::Path) -> [Node; 2] {
    let (nodes, _) = two(mode, dir, |node| node).await;
    nodes
}

fn responders() -> ConsumerOptions {
    let backoff = Backoff { initial_ms: 0, multiplier_percent: 100, maximum_ms: 0, jitter_percent: 0 };
    let settings = GroupSettings { max_attempts: 0, backoff, ..GroupSettings::default() };
    ConsumerOptions { settings: Some(settings), ..ConsumerOptions::new("ask", "responders") }
}

/// Answers what comes, twice as large.
async fn answer(mut responder: Responder) {
    loop {
        let request = responder.next().await.unwrap().unwrap();
        let number: u64 = std::str::from_utf8(&request.message.body).unwrap().parse().unwrap();
        match responder.reply(&request, Message::new((2 * number).to_string())).await {
            Ok(answered) => assert_eq!(answered, Answered::Sent),
            Err(ClientError::TransactionAborted(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn ask(requester: Requester, topic: Topic, number: u64) -> (u64, String) {
    let reply = requester.request(&topic, &Message::new(number.to_string()), PATIENCE).await.unwrap();
    (number, String::from_utf8(reply.body.to_vec()).unwrap())
}

async fn every_request_gets_its_reply_over_a_takeover(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = pair(mode, dir.path()).await;
    let servers = format!("{},{}", nodes[0].address, nodes[1].address);
    let (asking, answering) = (
        Client::connect(options(&servers)).await.unwrap(),
        Client::connect(options(&servers)).await.unwrap(),
    );
    let topic = asking.topic("ask").await.unwrap();
    let requester = asking.requester().await.unwrap();
    let mut work = JoinSet::new();
    for _ in 0..2 {
        let responder = answering.responder(responders()).await.unwrap();
        work.spawn(answer(responder));
    }
    let mut asked = JoinSet::new();
    (0..REQUESTS).for_each(|number| drop(asked.spawn(ask(requester.clone(), topic.clone(), number))));
    let mut replies = BTreeMap::new();
    while let Some(reply) = asked.join_next().await {
        let (number, text) = reply.unwrap();
        replies.insert(number, text);
        // Some are answered, and most are not.
        if replies.len() == 5 {
            nodes[0].kill();
        }
    }
    let expected: BTreeMap<u64, String> =
        (0..REQUESTS).map(|number| (number, (2 * number).to_string())).collect();
    assert_eq!(replies, expected);
    assert_eq!(nodes[1].wait_for(Role::Master).await.role, Role::Master);
    // Each was answered by one reply in the store, whatever had to be done again.
    let topics = asking.topics().await.unwrap();
    let to = topics.iter().find(|topic| topic.name == requester.reply_to()).unwrap();
    assert_eq!(to.end.0, REQUESTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_gets_its_reply_over_a_takeover_in_file_mode() {
    every_request_gets_its_reply_over_a_takeover("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_gets_its_reply_over_a_takeover_in_database_mode() {
    every_request_gets_its_reply_over_a_takeover("database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_nobody_wants_has_nowhere_to_go_and_the_request_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new("a", &dir.path().join("store"), "file", dir.path());
    node.start();
    node.wait_for(Role::Master).await;
    let client = Client::connect(options(&node.address)).await.unwrap();
    let topic = client.topic("ask").await.unwrap();
    let mut responder = client.responder(responders()).await.unwrap();
    // Nobody answers in time.
    let requester = client.requester().await.unwrap();
    let within = Duration::from_millis(50);
    let error = requester.request(&topic, &Message::new("1"), within).await.unwrap_err();
    assert!(matches!(error, ClientError::NoReply { within: said } if said == within), "{error}");
    let request = responder.next().await.unwrap().unwrap();
    assert_eq!(request.message.header(REPLY_TO).unwrap(), requester.reply_to());
    // What is late reaches nobody, and does no harm.
    assert_eq!(responder.reply(&request, Message::new("2")).await.unwrap(), Answered::Sent);
    // Without a topic for the reply, or with one that nobody has made, the request is acked alone.
    let producer = client.producer(Default::default()).await.unwrap();
    let gone = format!("{REPLY_TOPIC_PREFIX}gone");
    for headers in [vec![], vec![(REPLY_TO.to_owned(), gone.clone().into())]] {
        producer.send(&topic, &Message { headers, ..Message::new("3") }).await.unwrap();
        let request = responder.next().await.unwrap().unwrap();
        assert_eq!(responder.reply(&request, Message::new("6")).await.unwrap(), Answered::Unwanted);
    }
    let refused = client.topic(&gone).await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused(refusal) if refusal.code == ErrorCode::UnknownTopic));
    let group = &client.groups(Some("ask")).await.unwrap()[0];
    assert_eq!((group.waiting, group.retries), (0, 0));
    assert!(client.topics().await.unwrap().iter().all(|topic| topic.name != gone));
}

/// A request that named a topic which refuses its reply was delivered again at once and without end: whoever may publish a
/// request kept all responders busy.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_reply_is_refused_for_good_is_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new("a", &dir.path().join("store"), "file", dir.path());
    node.start();
    node.wait_for(Role::Master).await;
    let client = Client::connect(options(&node.address)).await.unwrap();
    let retention = Retention { acked: false, ..Retention::default() };
    let table = TopicSettings { last_value: true, retention, ..TopicSettings::default() };
    client.create_topic("table", table).await.unwrap();
    let topic = client.topic("ask").await.unwrap();
    let mut responder = client.responder(responders()).await.unwrap();
    let producer = client.producer(Default::default()).await.unwrap();
    // Neither needs a lookup to be refused, nor finds a topic.
    let wishes =
        [("table", None), ("not a name", Some(Answered::Unwanted)), ("any.*", Some(Answered::Unwanted))];
    for (reply_to, expected) in wishes {
        let headers = vec![(REPLY_TO.to_owned(), reply_to.into())];
        producer.send(&topic, &Message { headers, ..Message::new(reply_to) }).await.unwrap();
        let request = responder.next().await.unwrap().unwrap();
        assert_eq!(request.message.body, reply_to, "the one before does not come again");
        match (responder.reply(&request, Message::new("no key")).await, expected) {
            (Ok(answered), Some(expected)) => assert_eq!(answered, expected),
            (Err(ClientError::TransactionAborted(refusal)), None) => {
                assert_eq!(refusal.code, ErrorCode::Invalid);
            }
            (other, _) => panic!("{reply_to}: {other:?}"),
        }
    }
    let letters = ConsumerOptions::new("ask.dead-letter", "letters");
    let mut letters = client.consumer(letters).await.unwrap();
    let letter = timeout(PATIENCE, letters.next()).await.unwrap().unwrap().unwrap().message;
    assert_eq!(letter.body, "table");
    let failures = String::from_utf8(letter.header("baton.dead.failures").unwrap().to_vec()).unwrap();
    assert!(failures.contains("rejected its reply was refused: message 0: topic table keeps"), "{failures}");
    let group = &client.groups(Some("ask")).await.unwrap()[0];
    assert_eq!((group.waiting, group.retries, group.in_flight), (0, 0, 0));
}

/// Replies are told apart by their correlation id, however they come.
#[tokio::test(flavor = "multi_thread")]
async fn replies_come_in_any_order_and_what_was_not_asked_for_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new("a", &dir.path().join("store"), "file", dir.path());
    node.start();
    node.wait_for(Role::Master).await;
    let client = Client::connect(options(&node.address)).await.unwrap();
    let topic = client.topic("ask").await.unwrap();
    let mut responder = client.responder(responders()).await.unwrap();
    let requester = Arc::new(client.requester().await.unwrap());
    let mut asked = JoinSet::new();
    (0..3).for_each(|number| drop(asked.spawn(ask((*requester).clone(), topic.clone(), number))));
    let mut requests = Vec::new();
    while requests.len() < 3 {
        requests.push(responder.next().await.unwrap().unwrap());
    }
    let producer = client.producer(Default::default()).await.unwrap();
    let replies = client.topic(requester.reply_to()).await.unwrap();
    for id in ["nonsense", "", "0192:1"] {
        let headers = vec![(CORRELATION_ID.to_owned(), id.into())];
        producer.send(&replies, &Message { headers, ..Message::new("no") }).await.unwrap();
    }
    let replier = responder.replier();
    for request in requests.iter().rev() {
        replier.reply(request, Message::new(request.message.body.clone())).await.unwrap();
        // Answered once more it is not with the responder any more.
        let again = replier.reply(request, Message::new("twice")).await;
        assert!(matches!(again, Err(ClientError::TransactionAborted(_))));
    }
    while let Some(reply) = asked.join_next().await {
        let (number, text) = reply.unwrap();
        assert_eq!(text, number.to_string());
    }
}
