//! What a slow consumer costs: one that is ten times as fast as the other, `fair` against `round-robin`.
//!
//! The ideal is the time in which both together, none of them ever idle, get through all messages, or in which these
//! are published where that takes longer. Printed is the time until all were settled as a ratio of it. What a
//! consumer does with a message is to let time pass, so the figures depend little on the machine.
//!
//! `cargo bench --bench fairness` takes about a minute.

mod broker;

use std::time::Duration;

use batonmq::client::{Client, ClientOptions, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::settings::{GroupSettings, Policy};
use broker::{Broker, Failure};
use tokio::time::{Instant, sleep_until};

/// Messages of one run.
const MESSAGES: u32 = 1100;
/// How long the consumers are busy with a message.
const WORK: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(20)];
/// At what part of what both can do together messages come, where they come bit by bit.
const LOAD: f64 = 0.8;
/// Messages that a consumer may have.
const PREFETCH: [u32; 2] = [10, 100];

/// When the messages come.
#[derive(Clone, Copy, Debug)]
enum Arrival {
    /// All are there.
    Backlog,
    /// Bit by bit, a little slower than they can be worked at.
    Paced,
}

fn main() -> Result<(), Failure> {
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    let dir = std::env::temp_dir();
    let broker = Broker::start(&dir, "file")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("| messages | prefetch | policy | seconds | ideal | ratio |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for arrival in [Arrival::Backlog, Arrival::Paced] {
        for prefetch in PREFETCH {
            for policy in [Policy::Fair, Policy::RoundRobin] {
                let seconds = runtime.block_on(run(&broker.address, arrival, prefetch, policy))?;
                let ideal = ideal(arrival);
                let ratio = seconds / ideal;
                println!(
                    "| {arrival:?} | {prefetch} | {policy:?} | {seconds:.2} | {ideal:.2} | {ratio:.2} |"
                );
            }
        }
    }
    Ok(())
}

/// Messages a second that both consumers get through together.
fn capacity() -> f64 {
    WORK.iter().map(|work| 1.0 / work.as_secs_f64()).sum()
}

fn ideal(arrival: Arrival) -> f64 {
    let load = match arrival {
        Arrival::Backlog => 1.0,
        Arrival::Paced => LOAD,
    };
    f64::from(MESSAGES) / (capacity() * load)
}

/// Seconds until all messages were settled.
async fn run(server: &str, arrival: Arrival, prefetch: u32, policy: Policy) -> Result<f64, Failure> {
    let client = Client::connect(ClientOptions::servers(server)).await?;
    let name = format!("{arrival:?}-{prefetch}-{policy:?}");
    if matches!(arrival, Arrival::Backlog) {
        publish(&client, &name, Duration::ZERO).await?;
    }
    let settings = GroupSettings { policy, ..GroupSettings::default() };
    let options =
        ConsumerOptions { settings: Some(settings), prefetch, ..ConsumerOptions::new(name.as_str(), "g") };
    let (settled, mut all_settled) = tokio::sync::watch::channel(0_u32);
    let started = Instant::now();
    for work in WORK {
        // A consumer of a connection of its own, as in a process of its own.
        let client = Client::connect(ClientOptions::servers(server)).await?;
        let mut consumer = client.consumer(options.clone()).await?;
        let settled = settled.clone();
        tokio::spawn(async move {
            let mut free_at = Instant::now();
            loop {
                let delivery = match consumer.try_next() {
                    // A timer that was late is no time at work.
                    Some(delivery) => delivery,
                    None => {
                        let Ok(Some(delivery)) = consumer.next().await else { break };
                        free_at = free_at.max(Instant::now());
                        delivery
                    }
                };
                free_at += work;
                sleep_until(free_at).await;
                consumer.ack(&delivery);
                settled.send_modify(|count| *count += 1);
            }
            drop(client);
        });
    }
    if matches!(arrival, Arrival::Paced) {
        publish(&client, &name, Duration::from_secs_f64(1.0 / (capacity() * LOAD))).await?;
    }
    all_settled.wait_for(|count| *count == MESSAGES).await?;
    let seconds = started.elapsed().as_secs_f64();
    client.delete_topic(&name).await?;
    client.close().await;
    Ok(seconds)
}

/// Publishes the messages, one in so long.
async fn publish(client: &Client, topic: &str, pace: Duration) -> Result<(), Failure> {
    let topic = client.topic(topic).await?;
    let producer = client.producer(ProducerOptions::default()).await?;
    let mut at = Instant::now();
    for number in 0..MESSAGES {
        sleep_until(at).await;
        producer.publish(&topic, &Message::new(number.to_string())).await?;
        at += pace;
    }
    producer.flush().await?;
    Ok(())
}
