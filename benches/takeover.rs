//! What clients see of a change of master: the time from the last confirm before it to the first one after it.
//!
//! `cargo bench --bench takeover [-- [--rounds N] [--messages N] [--clients N] [--mode MODE] [--dir DIR] [TABLE...]]`
//! prints the tables that are named, or all:
//!
//! * `kill`: a publisher that waits for each confirm; the master is killed with SIGKILL. With an empty store, and with
//!   N messages waiting, 10 million by default. 300 rounds of each.
//! * `switchover`: the same where the master is asked to hand over. What the client library does not hide is an error,
//!   and ends the benchmark.
//! * `storm`: N clients, 5,000 by default, each on a connection of its own; the master is killed, and each publishes a
//!   message.
//!
//! Every table ends by itself.

mod broker;
#[path = "takeover/pair.rs"]
mod pair;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use batonmq::client::{Client, ClientOptions, Producer, ProducerOptions, Topic};
use batonmq::model::message::Message;
use broker::{Failure, MODES, run};
use pair::Pair;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;

const TABLES: [&str; 3] = ["kill", "switchover", "storm"];
/// Messages that are confirmed between two changes of master.
const BETWEEN: u32 = 20;
/// Rounds of the storm.
const STORMS: u32 = 3;

#[derive(Clone)]
struct Plan {
    rounds: usize,
    messages: u64,
    clients: u32,
    dir: PathBuf,
}

fn main() -> Result<(), Failure> {
    let mut plan = Plan { rounds: 300, messages: 10_000_000, clients: 5_000, dir: std::env::temp_dir() };
    let (mut tables, mut modes) = (Vec::new(), MODES.to_vec());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--test" => return Ok(()),
            "--bench" => {}
            "--rounds" => plan.rounds = value()?.parse()?,
            "--messages" => plan.messages = value()?.parse()?,
            "--clients" => plan.clients = value()?.parse()?,
            "--dir" => plan.dir = value()?.into(),
            "--mode" => {
                let wanted = value()?;
                modes.retain(|mode| *mode == wanted);
            }
            table => {
                let known = TABLES.iter().find(|known| **known == table);
                tables.push(*known.ok_or_else(|| format!("{table} is none of {TABLES:?}"))?);
            }
        }
    }
    if tables.is_empty() {
        tables = TABLES.to_vec();
    }
    allow_open_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        for table in tables {
            match table {
                "storm" => storm(&plan, &modes).await?,
                table => changes(&plan, &modes, table).await?,
            }
        }
        Ok(())
    })
}

/// Lets the clients of a storm have their connections.
fn allow_open_files() -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

async fn changes(plan: &Plan, modes: &[&'static str], table: &str) -> Result<(), Failure> {
    println!("\n{table}, milliseconds\n");
    println!("| mode | waiting | rounds | p50 | p90 | p99 | max |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for &mode in modes {
        for waiting in [0, plan.messages] {
            let mut pair = Pair::start(&plan.dir, mode).await?;
            if waiting > 0 {
                let (server, count) = (pair.master().to_owned(), waiting.to_string());
                run(&["bench", "publish", "--server", &server, "--topic", "backlog", "--messages", &count])?;
            }
            let gaps = gaps(&mut pair, plan.rounds, table).await?;
            let [p50, p90, p99, max] = [50, 90, 99, 100].map(|percent| quantile(&gaps, percent));
            println!("| {mode} | {waiting} | {} | {p50:.1} | {p90:.1} | {p99:.1} | {max:.1} |", plan.rounds);
        }
    }
    Ok(())
}

/// The times without a confirm, in order of length.
async fn gaps(pair: &mut Pair, rounds: usize, table: &str) -> Result<Vec<Duration>, Failure> {
    let client = Client::connect(ClientOptions::servers(&pair.servers())).await?;
    let (producer, topic) = (client.producer(ProducerOptions::default()).await?, client.topic("gap").await?);
    let mut gaps = Vec::new();
    for _ in 0..rounds {
        for _ in 0..BETWEEN {
            producer.send(&topic, &Message::new("before")).await?;
        }
        let last = Instant::now();
        if table == "kill" {
            pair.kill_master()?;
            producer.send(&topic, &Message::new("after")).await?;
            gaps.push(last.elapsed());
        } else {
            gaps.push(over_a_switchover(pair, &producer, &topic).await?);
        }
        pair.restore().await?;
    }
    client.close().await;
    gaps.sort();
    Ok(gaps)
}

/// The longest time without a confirm while the master hands over.
async fn over_a_switchover(pair: &mut Pair, producer: &Producer, topic: &Topic) -> Result<Duration, Failure> {
    let servers = pair.servers();
    let asked = tokio::task::spawn_blocking(move || {
        run(&["switchover", "--server", &servers]).map_err(|e| e.to_string())
    });
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    while !asked.is_finished() {
        producer.send(topic, &Message::new("meanwhile")).await?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    asked.await??;
    pair.master_hands_over();
    for _ in 0..BETWEEN {
        producer.send(topic, &Message::new("after")).await?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    Ok(longest)
}

fn quantile(sorted: &[Duration], percent: usize) -> f64 {
    let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted[index].as_secs_f64() * 1000.0
}

async fn storm(plan: &Plan, modes: &[&'static str]) -> Result<(), Failure> {
    println!("\nstorm, milliseconds until a message of each client is confirmed\n");
    println!("| mode | clients | round | p50 | p99 | all |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for &mode in modes {
        let mut pair = Pair::start(&plan.dir, mode).await?;
        let mut clients = connect(plan.clients, &pair.servers()).await?;
        for round in 1..=STORMS {
            pair.kill_master()?;
            let killed = Instant::now();
            let mut publishing = JoinSet::new();
            for (client, producer, topic) in clients.drain(..) {
                publishing.spawn(async move {
                    producer.send(&topic, &Message::new("after")).await?;
                    Ok::<_, batonmq::client::ClientError>(((client, producer, topic), killed.elapsed()))
                });
            }
            let mut times = Vec::new();
            while let Some(published) = publishing.join_next().await {
                let (client, time) = published??;
                clients.push(client);
                times.push(time);
            }
            times.sort();
            let [p50, p99, all] = [50, 99, 100].map(|percent| quantile(&times, percent));
            println!("| {mode} | {} | {round} | {p50:.0} | {p99:.0} | {all:.0} |", plan.clients);
            pair.restore().await?;
        }
    }
    Ok(())
}

/// So many clients, each with a producer that has published.
async fn connect(count: u32, servers: &str) -> Result<Vec<(Client, Producer, Topic)>, Failure> {
    let mut connecting = JoinSet::new();
    for _ in 0..count {
        let servers = servers.to_owned();
        connecting.spawn(async move {
            let client = Client::connect(ClientOptions::servers(&servers)).await?;
            let (producer, topic) =
                (client.producer(ProducerOptions::default()).await?, client.topic("storm").await?);
            producer.send(&topic, &Message::new("before")).await?;
            Ok::<_, batonmq::client::ClientError>((client, producer, topic))
        });
    }
    let mut clients = Vec::new();
    while let Some(connected) = connecting.join_next().await {
        clients.push(connected??);
    }
    Ok(clients)
}
