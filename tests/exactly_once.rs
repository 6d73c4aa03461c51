//! Consume, transform, produce: exactly once, whoever is killed at whatever moment.
//!
//! A transformer, a process of its own, takes messages of one topic and publishes what it makes of them to another, in
//! transactions. In each gap of its work it is killed, or the master is, or both. In the end the output must be what the
//! input makes, once each.
//!
//! Its connections go through a proxy that can keep the answers of the nodes for itself, so that a commit is stored and
//! its client does not know.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use batonmq::client::{Client, ClientError, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::settings::{Backoff, GroupSettings};
use batonmq::protocol::response::Role;
use rustix::process::Signal;
use support::load::options;
use support::pair::{Node, PATIENCE, two};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Messages of the input for each round.
const PER_ROUND: u64 = 30;
/// Messages of a transaction.
const BATCH: usize = 7;
/// Tells this program to be a transformer, on these servers.
const SERVERS: &str = "BATON_TEST_TRANSFORMER";
/// The gap in which it stops the first time it comes there.
const GAP: &str = "BATON_TEST_GAP";

/// Where a transformer can stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gap {
    /// It has messages and has done nothing with them.
    Received,
    /// Everything is in the transaction, and nothing has left.
    Produced,
    /// The commit has left and the master has not taken it.
    Sent,
    /// The commit is stored and its answer has not come.
    Stored,
    /// The answer has come.
    Answered,
}

const GAPS: [Gap; 5] = [Gap::Received, Gap::Produced, Gap::Sent, Gap::Stored, Gap::Answered];

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victims {
    Master,
    Transformer,
    Both,
    /// Nobody: the master is told to stop, and hands over.
    Nobody,
}

/// What the transformer makes of a message.
fn transformed(body: &[u8]) -> Message {
    Message::new([b"made of ", body].concat())
}

/// The transformer's own program: this test, called again. Without its variable it is nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transformer() {
    let Ok(servers) = std::env::var(SERVERS) else { return };
    let gap = std::env::var(GAP).unwrap();
    let client = Client::connect(options(&servers)).await.unwrap();
    let output = client.topic("out").await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let consumer =
        ConsumerOptions { prefetch: 2 * BATCH as u32, ..ConsumerOptions::new("in", "transformers") };
    let mut consumer = client.consumer(consumer).await.unwrap();
    let mut stops = Some(gap);
    let mut stop = |here: Gap| {
        if stops.as_deref() == Some(&format!("{here:?}")) {
            stops = None;
            say("stopped");
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).unwrap();
        }
    };
    loop {
        let batch = consumer.next_batch(BATCH).await.unwrap();
        stop(Gap::Received);
        let mut transaction = producer.transaction();
        for delivery in &batch {
            transaction.send(&output, &transformed(&delivery.message.body)).unwrap();
            transaction.ack(&consumer, delivery).unwrap();
        }
        stop(Gap::Produced);
        stop(Gap::Sent);
        stop(Gap::Stored);
        let committed = {
            let commit = transaction.commit();
            tokio::pin!(commit);
            tokio::select! {
                biased;
                committed = &mut commit => committed,
                // The frame has been handed to the system by the first poll.
                () = std::future::ready(()) => {
                    say("sent");
                    commit.await
                }
            }
        };
        stop(Gap::Answered);
        match committed {
            Ok(()) | Err(ClientError::TransactionAborted(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Says something to whoever runs the transformer.
fn say(word: &str) {
    println!("\ntransformer: {word}");
    std::io::stdout().flush().unwrap();
}

/// A transformer that runs.
struct Transformer {
    process: Child,
    said: std::sync::mpsc::Receiver<String>,
}

impl Transformer {
    fn start(servers: &str, gap: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "transformer", "--nocapture"])
            .env(SERVERS, servers)
            .env(GAP, gap)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(word) = line.strip_prefix("transformer: ") {
                    let _ = sender.send(word.to_owned());
                }
            }
        });
        Self { process, said }
    }

    /// Waits until it says this.
    async fn says(&self, word: &str) {
        let waiting = async {
            loop {
                match self.said.try_recv() {
                    Ok(said) if said == word => return,
                    Ok(_) => {}
                    Err(std::sync::mpsc::TryRecvError::Empty) => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Err(error) => panic!("the transformer has ended before it said {word:?}: {error}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("it never says {word:?}"));
    }

    fn go_on(&mut self) {
        self.process.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

impl Drop for Transformer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Stands before a node. While answers are held nothing comes from the node; what was held never arrives.
async fn proxy(node: String, held: watch::Receiver<bool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (node, held) = (node.clone(), held.clone());
            tokio::spawn(async move {
                // Where the node does not listen the client finds its connection closed.
                let Ok(node) = TcpStream::connect(&node).await else { return };
                let _ = (client.set_nodelay(true), node.set_nodelay(true));
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_node, mut to_node) = node.into_split();
                tokio::select! {
                    _ = tokio::io::copy(&mut from_client, &mut to_node) => {}
                    _ = answers(&mut from_node, &mut to_client, held) => {}
                }
            });
        }
    });
    address
}

async fn answers(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut held: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let count = tokio::select! {
            biased;
            () = becomes(&mut held, true) => None,
            count = from.read(&mut bytes) => Some(count?),
        };
        let Some(count) = count else {
            becomes(&mut held, false).await;
            return Ok(());
        };
        if count == 0 {
            return Ok(());
        }
        to.write_all(&bytes[..count]).await?;
    }
}

async fn becomes(held: &mut watch::Receiver<bool>, wanted: bool) {
    let _ = held.wait_for(|held| *held == wanted).await;
}

struct Stage {
    nodes: [Node; 2],
    /// Straight to the nodes.
    client: Client,
    /// The servers of transformers.
    servers: String,
    held: watch::Sender<bool>,
}

impl Stage {
    async fn set(mode: &'static str, dir: &std::path::Path) -> Self {
        let (nodes, direct) = two(mode, dir, |node| node).await;
        let client = Client::connect(options(&direct)).await.unwrap();
        for topic in ["in", "out"] {
            client.topic(topic).await.unwrap();
        }
        let backoff = Backoff { initial_ms: 0, multiplier_percent: 100, maximum_ms: 0, jitter_percent: 0 };
        let settings = GroupSettings { max_attempts: 0, backoff, ..GroupSettings::default() };
        client.create_group("in", "transformers", settings, Default::default()).await.unwrap();
        let (held, hearing) = watch::channel(false);
        let first = proxy(nodes[0].address.clone(), hearing.clone()).await;
        let second = proxy(nodes[1].address.clone(), hearing).await;
        Self { nodes, client, servers: format!("{first},{second}"), held }
    }

    /// Messages in the output.
    async fn made(&self) -> u64 {
        self.client.topics().await.unwrap().iter().find(|topic| topic.name == "out").unwrap().end.0
    }

    async fn made_more_than(&self, count: u64) {
        let waiting = async {
            while self.made().await <= count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("nothing is made any more");
    }

    /// Waits until nothing of the input is left.
    async fn worked_off(&self) {
        let waiting = async {
            while self.client.groups(Some("in")).await.unwrap()[0].waiting > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the input is not worked off");
    }

    async fn master(&self) -> usize {
        for (index, node) in self.nodes.iter().enumerate() {
            if node.status().await.is_some_and(|status| status.role == Role::Master) {
                return index;
            }
        }
        panic!("no master");
    }

    /// Kills a master, has the other node take over, and starts the killed one again.
    async fn replace(&mut self, master: usize) {
        self.nodes[master].kill();
        self.held.send_replace(false);
        self.nodes[1 - master].wait_for(Role::Master).await;
        self.nodes[master].start();
        self.nodes[master].wait_for(Role::Standby).await;
    }

    async fn round(&mut self, gap: Gap, victims: Victims) {
        let master = self.master().await;
        let before = self.made().await;
        let mut transformer = Transformer::start(&self.servers, &format!("{gap:?}"));
        transformer.says("stopped").await;
        match gap {
            Gap::Received | Gap::Produced | Gap::Answered => {}
            Gap::Sent => {
                self.nodes[master].pause();
                transformer.go_on();
                transformer.says("sent").await;
            }
            Gap::Stored => {
                self.held.send_replace(true);
                transformer.go_on();
                self.made_more_than(before).await;
            }
        }
        match victims {
            Victims::Transformer => {
                transformer.kill();
                self.held.send_replace(false);
                if gap == Gap::Sent {
                    self.nodes[master].signal(Signal::CONT);
                }
            }
            Victims::Master => {
                self.replace(master).await;
                transformer.go_on();
                self.worked_off().await;
            }
            Victims::Nobody => {
                self.nodes[master].signal(Signal::TERM);
                match gap {
                    Gap::Sent => self.nodes[master].signal(Signal::CONT),
                    Gap::Stored => drop(self.held.send_replace(false)),
                    Gap::Received | Gap::Produced | Gap::Answered => {}
                }
                transformer.go_on();
                assert!(self.nodes[master].wait().success());
                self.nodes[1 - master].wait_for(Role::Master).await;
                self.nodes[master].start();
                self.nodes[master].wait_for(Role::Standby).await;
                self.worked_off().await;
            }
            Victims::Both => {
                transformer.kill();
                self.replace(master).await;
            }
        }
    }
}

async fn output_is_what_the_input_makes(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = Stage::set(mode, dir.path()).await;
    let producer = stage.client.producer(ProducerOptions::default()).await.unwrap();
    let (input, mut published) = (stage.client.topic("in").await.unwrap(), 0);
    for victims in [Victims::Master, Victims::Transformer, Victims::Both, Victims::Nobody] {
        for gap in GAPS {
            println!("{mode}: {victims:?} when {gap:?}");
            let numbers = published..published + PER_ROUND;
            let messages: Vec<Message> = numbers.map(|number| Message::new(number.to_string())).collect();
            producer.send_batch(&input, &messages).await.unwrap();
            producer.flush().await.unwrap();
            published += PER_ROUND;
            stage.round(gap, victims).await;
        }
    }
    let transformer = Transformer::start(&stage.servers, "");
    stage.worked_off().await;
    drop(transformer);
    let mut made: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut reader = stage.client.consumer(ConsumerOptions::new("out", "reader")).await.unwrap();
    for _ in 0..stage.made().await {
        let delivery = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap().unwrap();
        *made.entry(delivery.message.body.to_vec()).or_default() += 1;
    }
    let expected = (0..published).map(|number| (transformed(number.to_string().as_bytes()).body.to_vec(), 1));
    assert_eq!(made, expected.collect::<BTreeMap<_, _>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_what_the_input_makes_in_file_mode() {
    output_is_what_the_input_makes("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_what_the_input_makes_in_database_mode() {
    output_is_what_the_input_makes("database").await;
}

/// Its messages are written ahead of the commit. It keeps its place, and is whole after a kill.
async fn a_large_transaction_is_whole(mode: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = Stage::set(mode, dir.path()).await;
    let (input, output) = (stage.client.topic("in").await.unwrap(), stage.client.topic("out").await.unwrap());
    let producer = stage.client.producer(ProducerOptions::default()).await.unwrap();
    producer.send(&input, &Message::new("x")).await.unwrap();
    let mut consumer = stage.client.consumer(ConsumerOptions::new("in", "transformers")).await.unwrap();
    let delivery = consumer.next().await.unwrap().unwrap();
    let large = |byte: u8| Message::new(vec![byte; 5 << 20]);
    producer.publish(&output, &Message::new("before")).await.unwrap();
    let mut transaction = producer.transaction();
    for byte in [1, 2, 3] {
        transaction.send(&output, &large(byte)).unwrap();
    }
    transaction.ack(&consumer, &delivery).unwrap();
    transaction.commit().await.unwrap();
    producer.send(&output, &Message::new("behind")).await.unwrap();
    stage.replace(0).await;
    assert_eq!(stage.client.groups(Some("in")).await.unwrap()[0].waiting, 0);
    let mut reader = stage.client.consumer(ConsumerOptions::new("out", "reader")).await.unwrap();
    for expected in [Message::new("before"), large(1), large(2), large(3), Message::new("behind")] {
        let delivery = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap().unwrap();
        assert!(delivery.message.body == expected.body, "offset {}", delivery.offset());
        reader.ack(&delivery);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_whole_in_both_modes() {
    a_large_transaction_is_whole("file").await;
    a_large_transaction_is_whole("database").await;
}
