//! Transactions end to end: through the client library, on a pair of real processes, with the master killed in the
//! middle. All of it is there after a takeover, or nothing, and the client knows which.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::time::Duration;

use batonmq::client::{
    Client, ClientError, Consumer, ConsumerOptions, Delivery, Producer, ProducerOptions, Topic,
};
use batonmq::model::id::Offset;
use batonmq::model::message::Message;
use batonmq::model::retry::ReturnReason;
use batonmq::model::settings::{Backoff, GroupSettings, Start};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::response::Role;
use support::load::options;
use support::pair::{Node, PATIENCE, two};
use tokio::time::timeout;

const OUTPUTS: [&str; 3] = ["bills", "parcels", "audit"];

/// A pair of nodes with messages in `orders`, and who takes them.
struct Scene {
    nodes: [Node; 2],
    client: Client,
    producer: Producer,
    consumer: Consumer,
    outputs: Vec<Topic>,
}

impl Scene {
    /// Starts them, with as many orders: 0, 1 and so on.
    async fn start(mode: &'static str, dir: &Path, orders: usize) -> Self {
        let (nodes, servers) = two(mode, dir, |node| node).await;
        let client = Client::connect(options(&servers)).await.unwrap();
        let backoff = Backoff { initial_ms: 0, maximum_ms: 0, ..Backoff::default() };
        let settings = GroupSettings { backoff, ..GroupSettings::default() };
        client.create_topic("orders", Default::default()).await.unwrap();
        client.create_group("orders", "g", settings, Start::Earliest).await.unwrap();
        let producer = client.producer(ProducerOptions::default()).await.unwrap();
        let mut outputs = Vec::new();
        for name in OUTPUTS {
            outputs.push(client.topic(name).await.unwrap());
        }
        let messages: Vec<Message> = (0..orders).map(|number| Message::new(number.to_string())).collect();
        producer.send_batch(&client.topic("orders").await.unwrap(), &messages).await.unwrap();
        producer.flush().await.unwrap();
        let consumer = client.consumer(ConsumerOptions::new("orders", "g")).await.unwrap();
        Self { nodes, client, producer, consumer, outputs }
    }

    async fn take_over(&mut self) {
        self.nodes[0].kill();
        self.nodes[1].wait_for(Role::Master).await;
    }

    /// The next deliveries, in the order of their bodies.
    async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let next = timeout(PATIENCE, self.consumer.next()).await.expect("something comes");
            taken.push(next.unwrap().unwrap());
        }
        taken.sort_by(|one, other| one.message.body.cmp(&other.message.body));
        taken
    }

    /// What is in each of the outputs, in order.
    async fn made(&self) -> Vec<Vec<String>> {
        let mut made = Vec::new();
        for topic in OUTPUTS {
            made.push(self.bodies(topic).await);
        }
        made
    }

    async fn bodies(&self, topic: &str) -> Vec<String> {
        let mut bodies: Vec<String> = Vec::new();
        let mut from = Offset(0);
        loop {
            let page = self.client.browse(topic, from, 100).await.unwrap();
            let Some(last) = page.last() else { return bodies };
            from = last.offset.next();
            bodies.extend(page.iter().map(|browsed| text(&browsed.message)));
        }
    }
}

fn text(message: &Message) -> String {
    String::from_utf8(message.body.to_vec()).unwrap()
}

/// What is told of a delivery: its body, the numbers of the attempt and of the hand-over, and what failed before.
fn told(delivery: &Delivery) -> (String, u32, u32, Option<(ReturnReason, String)>) {
    let failure = delivery.failure.as_ref();
    let failure = failure.map(|failure| (failure.reason, failure.text.as_deref().unwrap_or_default().into()));
    (text(&delivery.message), delivery.attempt, delivery.number, failure)
}

fn code(committed: Result<(), ClientError>) -> ErrorCode {
    match committed {
        Err(ClientError::TransactionAborted(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    }
}

async fn all_of_it_is_there_after_a_takeover(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::start(mode, dir.path(), 5).await;
    let orders = scene.take(5).await;
    let [acked, nacked, later, rejected, kept] = &orders[..] else { panic!("five") };
    let mut transaction = scene.producer.transaction();
    for order in [acked, nacked] {
        for output in &scene.outputs {
            transaction.send(output, &order.message).unwrap();
        }
    }
    transaction.send(&scene.outputs[1], &Message::new("more")).unwrap();
    transaction.ack(&scene.consumer, acked).unwrap();
    transaction.nack(&scene.consumer, nacked, None, Some("no stock")).unwrap();
    transaction.nack(&scene.consumer, later, Some(Duration::from_secs(3_600)), None).unwrap();
    transaction.reject(&scene.consumer, rejected, Some("no such customer")).unwrap();
    // Open at the kill: what it settles goes back, and it is nothing.
    let mut open = scene.producer.transaction();
    open.send(&scene.outputs[2], &Message::new("of an open one")).unwrap();
    open.ack(&scene.consumer, kept).unwrap();
    transaction.commit().await.unwrap();

    scene.take_over().await;
    assert_eq!(code(open.commit().await), ErrorCode::TransactionAborted);
    transaction.commit().await.expect("said again");
    assert_eq!(scene.made().await, [vec!["0", "1"], vec!["0", "1", "more"], vec!["0", "1"]]);
    let again = scene.take(2).await;
    assert_eq!(told(&again[0]).0, "1");
    assert_eq!((told(&again[0]).1, told(&again[0]).3), (2, Some((ReturnReason::Nacked, "no stock".into()))));
    assert_eq!((told(&again[1]).0.as_str(), again[1].attempt, &again[1].failure), ("4", 1, &None));
    let letters = scene.client.browse("orders.dead-letter", Offset(0), 9).await.unwrap();
    let letters: Vec<_> = letters
        .iter()
        .map(|letter| (text(&letter.message), letter.message.header("baton.dead.reason").unwrap().to_vec()))
        .collect();
    assert_eq!(letters, [("3".to_owned(), b"rejected".to_vec())]);
    let group = scene.client.groups(Some("orders")).await.unwrap().remove(0);
    assert_eq!((group.waiting, group.in_flight), (3, 2), "one waits for an hour: {group:?}");
    // What has come again can be settled, in a transaction on the master that is there.
    let mut transaction = scene.producer.transaction();
    for delivery in &again {
        transaction.send(&scene.outputs[0], &delivery.message).unwrap();
        transaction.ack(&scene.consumer, delivery).unwrap();
    }
    transaction.commit().await.unwrap();
    assert_eq!(scene.made().await[0], ["0", "1", "1", "4"]);
    let group = scene.client.groups(Some("orders")).await.unwrap().remove(0);
    assert_eq!((group.waiting, group.in_flight), (1, 0), "{group:?}");
}

/// One settlement that cannot be carried out, and nothing is: no message in any topic, no other settlement.
async fn nothing_of_a_refused_one_is_there(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::start(mode, dir.path(), 3).await;
    let orders = scene.take(3).await;
    scene.consumer.ack(&orders[0]);
    scene.consumer.flush().await.unwrap();
    let mut transaction = scene.producer.transaction();
    for output in &scene.outputs {
        transaction.send(output, &Message::new("x")).unwrap();
    }
    transaction.reject(&scene.consumer, &orders[1], Some("never")).unwrap();
    transaction.nack(&scene.consumer, &orders[2], None, Some("later")).unwrap();
    transaction.ack(&scene.consumer, &orders[0]).unwrap();
    assert_eq!(code(transaction.commit().await), ErrorCode::TransactionAborted);
    let again = scene.take(2).await;
    let expected = ["1", "2"].map(|body| (body.to_owned(), 1, 2, None));
    assert_eq!(again.iter().map(told).collect::<Vec<_>>(), expected, "they were released");

    scene.take_over().await;
    assert_eq!(code(transaction.commit().await), ErrorCode::TransactionAborted, "said again");
    assert_eq!(scene.made().await, [[""; 0]; 3]);
    assert!(scene.client.topics().await.unwrap().iter().all(|topic| topic.name != "orders.dead-letter"));
    let again = scene.take(2).await;
    assert_eq!(again.iter().map(|delivery| told(delivery).0).collect::<Vec<_>>(), ["1", "2"]);
    assert!(again.iter().all(|delivery| delivery.failure.is_none()), "{again:?}");
}

/// The time of a transaction is over: its deliveries go back by themselves, before a takeover and after one.
async fn one_that_takes_too_long_is_rolled_back(mode: &'static str) {
    const WITHIN: Duration = Duration::from_millis(200);
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::start(mode, dir.path(), 1).await;
    for attempt in 0..2 {
        let order = scene.take(1).await.remove(0);
        let mut late = scene.producer.transaction_within(WITHIN);
        for output in &scene.outputs {
            late.send(output, &order.message).unwrap();
        }
        late.nack(&scene.consumer, &order, None, Some("late")).unwrap();
        let again = scene.take(1).await.remove(0);
        assert_eq!(told(&again), ("0".into(), 1, order.number + 1, None), "released, not failed");
        let committed = late.commit().await;
        assert!(
            matches!(committed, Err(ClientError::TransactionTimedOut { within }) if within == WITHIN),
            "{committed:?}"
        );
        let over = late.send(&scene.outputs[0], &order.message);
        assert!(matches!(over, Err(ClientError::TransactionTimedOut { .. })), "{over:?}");
        assert_eq!(scene.made().await, [[""; 0]; 3]);
        if attempt == 0 {
            scene.take_over().await;
        } else {
            // A commit in time counts, however late it is told.
            let mut timely = scene.producer.transaction_within(PATIENCE);
            timely.send(&scene.outputs[0], &again.message).unwrap();
            timely.ack(&scene.consumer, &again).unwrap();
            timely.commit().await.unwrap();
        }
    }
    assert_eq!(scene.made().await, [vec!["0".to_owned()], vec![], vec![]]);
    assert_eq!(scene.client.groups(Some("orders")).await.unwrap()[0].waiting, 0);
}

macro_rules! in_both_modes {
    ($($name:ident),*) => {
        mod database {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name("database").await; })*
        }
        mod file {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name("file").await; })*
        }
    };
}

in_both_modes!(
    all_of_it_is_there_after_a_takeover,
    nothing_of_a_refused_one_is_there,
    one_that_takes_too_long_is_rolled_back
);
