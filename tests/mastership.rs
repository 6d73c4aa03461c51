//! How real nodes gain a mastership and lose it.

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use batonmq::client::{Client, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::protocol::response::Role;
use support::load::options;
use support::pair::{Node, PATIENCE};

const TOPIC: &str = "t";
/// Bytes of a block of the control file.
const BLOCK_BYTES: u64 = 4096;

fn pair(store: &Path, mode: &'static str, logs: &Path) -> [Node; 2] {
    ["a", "b"].map(|name| Node::new(name, store, mode, logs))
}

async fn publish(address: &str, body: &str) {
    let client = Client::connect(options(address)).await.unwrap();
    let topic = client.topic(TOPIC).await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    producer.send(&topic, &Message::new(body.to_owned())).await.unwrap();
    client.close().await;
}

/// Consumes the messages that there are, which must be these.
async fn consume(address: &str, bodies: &[&str]) {
    let client = Client::connect(options(address)).await.unwrap();
    let mut consumer = client.consumer(ConsumerOptions::new(TOPIC, "g")).await.unwrap();
    for body in bodies {
        let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(delivery.message.body, body.as_bytes());
        consumer.settler().ack(&delivery);
    }
    consumer.close().await.unwrap();
}

/// The power failed while a new master wrote its block. Both nodes then read a damaged control file and ended, at
/// every start, although the claim beside it says whose the block was.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_torn_by_a_power_failure_keeps_nobody_from_taking_over() {
    for mode in ["file", "database"] {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let mut nodes = pair(&store, mode, dir.path());
        nodes[0].start();
        nodes[0].wait_for(Role::Master).await;
        publish(&nodes[0].address, "one").await;
        nodes[0].kill();
        nodes[1].start();
        assert_eq!(nodes[1].wait_for(Role::Master).await.epoch.0, 2);
        publish(&nodes[1].address, "two").await;
        nodes[1].kill();
        let control = OpenOptions::new().write(true).open(store.join("control")).unwrap();
        control.write_all_at(&[0; 2048], BLOCK_BYTES + 2048).unwrap();

        nodes[1].start();
        assert_eq!(nodes[1].wait_for(Role::Master).await.epoch.0, 3);
        nodes[0].start();
        nodes[0].wait_for(Role::Standby).await;
        consume(&nodes[1].address, &["one", "two"]).await;
        assert!(nodes[1].log().contains("the block of an older epoch is torn"), "{}", nodes[1].log());
    }
}
