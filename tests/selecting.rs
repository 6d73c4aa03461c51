//! Filters, routes, browsing and peeking, through the client library and with masters that are killed meanwhile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use batonmq::client::{BrowseOptions, Client, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::route::RouteMode;
use batonmq::model::settings::{GroupSettings, Start, TopicSettings};
use batonmq::protocol::response::{Role, RouteInfo, Standing};
use support::load::options;
use support::pair::{Node, two};

/// Messages that are published, and those after which the master is killed.
const MESSAGES: u64 = 3_000;
const KILLS: [u64; 2] = [700, 2_000];

const REGIONS: [&str; 3] = ["eu", "us", "asia"];

fn message(n: u64) -> Message {
    let headers = [("region", REGIONS[(n % 3) as usize].to_owned()), ("n", n.to_string())];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.into())).to_vec();
    let priority = if n.is_multiple_of(10) { 7 } else { 0 };
    Message { headers, priority, ..Message::new(n.to_string()) }
}

fn number(message: &Message) -> u64 {
    std::str::from_utf8(&message.body).unwrap().parse().unwrap()
}

fn route(name: &str, from: &str, to: &[&str], filter: Option<&str>, mode: RouteMode) -> RouteInfo {
    let to = to.iter().map(|&topic| topic.to_owned()).collect();
    RouteInfo { name: name.into(), from: from.into(), to, filter: filter.map(str::to_owned), mode }
}

/// A pair of nodes, one of which is master.
struct Pair {
    nodes: [Node; 2],
    master: usize,
}

impl Pair {
    async fn start(mode: &'static str, dir: &Path) -> Self {
        let (nodes, _) = two(mode, dir, |node| node).await;
        Self { nodes, master: 0 }
    }

    async fn client(&self) -> Client {
        Client::connect(options(&format!("{},{}", self.nodes[0].address, self.nodes[1].address)))
            .await
            .unwrap()
    }

    /// Kills the master. The other one takes over, and a standby follows it.
    async fn kill_master(&mut self) {
        self.nodes[self.master].kill();
        self.nodes[1 - self.master].wait_for(Role::Master).await;
        self.nodes[self.master].start();
        self.nodes[self.master].wait_for(Role::Standby).await;
        self.master = 1 - self.master;
    }
}

/// The numbers of all messages that are seen, in their order.
async fn browse(client: &Client, options: BrowseOptions) -> Vec<u64> {
    let (mut browser, mut seen) = (client.browser(options), Vec::new());
    loop {
        let batch = browser.next_batch(500).await.unwrap();
        if batch.is_empty() {
            return seen;
        }
        seen.extend(batch.iter().map(|browsed| number(&browsed.message)));
    }
}

/// Those of the numbers that have a place: without priority first.
fn by_position(numbers: impl Fn(u64) -> bool) -> Vec<u64> {
    let all = || (0..MESSAGES).filter(|n| numbers(*n));
    all().filter(|n| n % 10 != 0).chain(all().filter(|n| n % 10 == 0)).collect()
}

async fn each_message_goes_where_it_belongs(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(mode, dir.path()).await;
    let client = pair.client().await;
    client.create_topic("orders", TopicSettings::default()).await.unwrap();
    let filter = GroupSettings { filter: Some("region = 'eu'".into()), ..GroupSettings::default() };
    client.create_group("orders", "eu", filter, Start::Earliest).await.unwrap();
    let routes = [
        route("audit", "orders", &["audit"], None, RouteMode::Copy),
        route("large", "us", &["large", "larger"], Some("n >= 2000"), RouteMode::Copy),
        route("us", "orders", &["us"], Some("region = 'us'"), RouteMode::Move),
    ];
    for index in [0, 2, 1] {
        client.create_route(routes[index].clone()).await.unwrap();
    }

    let topic = client.topic("orders").await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    for n in 0..MESSAGES {
        if KILLS.contains(&n) {
            // Whatever is on its way is sent again to the next master.
            pair.kill_master().await;
        }
        producer.publish(&topic, &message(n)).await.unwrap();
    }
    producer.flush().await.unwrap();
    assert_eq!(client.routes().await.unwrap(), routes);

    let everything = |topic| browse(&client, BrowseOptions::new(topic));
    assert_eq!(everything("audit").await, by_position(|_| true), "each once and in order");
    assert_eq!(everything("us").await, by_position(|n| n % 3 == 1));
    assert_eq!(everything("large").await, by_position(|n| n % 3 == 1 && n >= 2_000));
    assert_eq!(everything("larger").await, everything("large").await);
    // Of the topic with the group only what that wants is left, but what was published just before a kill.
    let left: BTreeSet<u64> = everything("orders").await.into_iter().collect();
    assert!(left.iter().all(|n| n % 3 != 1), "what was moved is not there");
    assert!((0..MESSAGES).filter(|n| n % 3 == 0).all(|n| left.contains(&n)));
    let filtered =
        BrowseOptions { filter: Some("n < 20 AND region = 'us'".into()), ..BrowseOptions::new("audit") };
    assert_eq!(browse(&client, filtered).await, [1, 4, 7, 13, 16, 19, 10]);

    let peek = || BrowseOptions { group: Some("eu".into()), ..BrowseOptions::new("orders") };
    let mut expected = by_position(|n| n % 3 == 0);
    let urgent = expected.iter().filter(|n| *n % 10 == 0).count();
    expected.rotate_right(urgent);
    assert_eq!(browse(&client, peek()).await, expected, "the highest priority first");

    let mut consumer = client.consumer(ConsumerOptions::new("orders", "eu")).await.unwrap();
    let mut got = BTreeSet::new();
    while got.len() < expected.len() {
        let batch = consumer.next_batch(100).await.unwrap();
        if got.len() < 300 && got.len() + batch.len() >= 300 {
            let seen = client.browser(peek()).next_batch(1).await.unwrap();
            assert_eq!(seen[0].state, Some(Standing::InFlight));
            pair.kill_master().await;
        }
        for delivery in &batch {
            got.insert(number(&delivery.message));
            consumer.ack(delivery);
        }
    }
    assert_eq!(got, expected.into_iter().collect());
    consumer.close().await.unwrap_or_default();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_goes_where_it_belongs_in_file_mode() {
    each_message_goes_where_it_belongs("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_goes_where_it_belongs_in_database_mode() {
    each_message_goes_where_it_belongs("database").await;
}
