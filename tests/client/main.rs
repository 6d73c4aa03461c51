//! The client library against a node that misbehaves in every way a node, a network or a takeover can.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod consuming;
mod finding;
mod node;
mod publishing;
mod transactions;
mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use batonmq::client::{Client, ClientOptions};
use batonmq::model::message::Message;
use node::{Behaviour, Node};
use world::World;

/// Longest time that any step of a test may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn world() -> Arc<Mutex<World>> {
    Arc::default()
}

fn options(nodes: &[&Node]) -> ClientOptions {
    ClientOptions {
        servers: nodes.iter().map(|node| node.address.clone()).collect(),
        heartbeat: Duration::from_millis(100),
        timeout: Duration::from_secs(10),
        attempt_timeout: Duration::from_millis(300),
        ..ClientOptions::default()
    }
}

/// One node and a client that is connected to it.
async fn connected(behaviour: Behaviour) -> (Arc<Mutex<World>>, Node, Client) {
    let world = world();
    let node = Node::start(&world, behaviour).await;
    let client = Client::connect(options(&[&node])).await.unwrap();
    (world, node, client)
}

/// Bodies `start`, `start + 1` and so on.
fn numbered(start: usize, count: usize) -> Vec<Message> {
    (start..start + count).map(|number| Message::new(number.to_string())).collect()
}

fn bodies(start: usize, count: usize) -> Vec<String> {
    (start..start + count).map(|number| number.to_string()).collect()
}

async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Waits until something that another task does has come about.
async fn until(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
