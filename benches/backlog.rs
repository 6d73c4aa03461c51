//! What a large backlog costs: memory, recovery, disk, speed.
//!
//! `cargo bench --bench backlog [-- [--messages N] [--mode MODE] [--dir DIR] [TABLE...]]` prints the tables that are
//! named, or all: `memory`, `recovery`, `topics`, `cold`, `disk`, `pinned`, `checkpoints`, `delayed`, `expiring`,
//! `priorities`, `values`. N is the size of the largest backlog, 10 million by default, which takes 3 GB in DIR. Every table ends
//! by itself.

mod broker;
mod consuming;
mod values;
mod waiting;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use batonmq::client::{Client, ClientOptions, ProducerOptions, ReconnectBackoff, now};
use batonmq::model::message::Message;
use batonmq::model::time::Timestamp;
use broker::{Broker, Failure, MODES, median, number, rate, run};
use consuming::{Habit, consume};

const TABLES: [&str; 11] = [
    "memory",
    "recovery",
    "topics",
    "cold",
    "disk",
    "pinned",
    "checkpoints",
    "delayed",
    "expiring",
    "priorities",
    "values",
];
/// Starts of which the median is told.
const RECOVERIES: usize = 5;
/// How long the space of settled messages is waited for.
const RECLAIM_WAIT: Duration = Duration::from_secs(60);
/// The time within which messages come due, or expire.
const SPREAD_MS: u64 = 60_000;
/// The first of them is due so many times later than publishing as many without a time takes, and this on top.
const PUBLISHING_FACTOR: f64 = 3.0;
const PUBLISHING_MS: u64 = 2_000;

/// Prints the rows of a table for a mode.
type Rows = fn(&Plan, &'static str) -> Result<(), Failure>;

struct Plan {
    messages: u64,
    dir: PathBuf,
    runtime: tokio::runtime::Runtime,
}

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut plan = Plan { messages: 10_000_000, dir: std::env::temp_dir(), runtime };
    let (mut tables, mut modes) = (Vec::new(), MODES.to_vec());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--bench" => {}
            "--messages" => plan.messages = value()?.parse()?,
            "--mode" => {
                let wanted = value()?;
                modes.retain(|mode| **mode == wanted);
            }
            "--dir" => plan.dir = value()?.into(),
            table => {
                tables.push(TABLES.into_iter().find(|known| *known == table).ok_or_else(|| {
                    format!("unknown argument {table}; the tables are {}", TABLES.join(", "))
                })?)
            }
        }
    }
    for table in if tables.is_empty() { TABLES.to_vec() } else { tables } {
        let (head, rows): (&str, Rows) = match table {
            "memory" => {
                ("| mode | 3 groups, what happens | messages | RSS MiB at most | RSS MiB after |", memory)
            }
            "recovery" => ("| mode | backlog | start to first confirm, median ms | worst ms |", recovery),
            "topics" => ("| mode | topics | publish /s | CPU us a message: broker |", topics),
            "cold" => ("| mode | backlog | publish /s | drained after a restart /s | ratio |", cold),
            "disk" => ("| mode | bytes of a body | bytes on disk a message | ratio |", disk),
            "pinned" => ("| mode | messages | MiB on disk | all but one settled: MiB |", pinned),
            "values" => (
                "| mode | only the newest | keys | publish /s | RSS MiB at most | messages left | s | MiB on disk |",
                last_values,
            ),
            "checkpoints" => ("| mode | log or segment | confirm p50 us | p99 us | p99.9 us |", checkpoints),
            "delayed" => (
                "| mode | due | plain publish /s | publish /s | RSS MiB at most: publishing | coming | MiB on disk | late \
                 p50 ms | p99 ms | max ms | come /s |",
                delayed,
            ),
            "expiring" => (
                "| mode | end | plain publish /s | publish /s | RSS MiB at most: publishing | expiring | MiB on disk | \
                 late p50 ms | p99 ms | max ms | expire /s |",
                expiring,
            ),
            _ => (
                "| mode | priorities | publish /s | drained /s | RSS MiB at most: publishing | draining | MiB on disk |",
                priorities,
            ),
        };
        println!("\n{table}\n\n{head}\n|{}", " --- |".repeat(head.matches('|').count() - 1));
        for mode in &modes {
            rows(&plan, mode)?;
        }
    }
    Ok(())
}

impl Plan {
    fn client(&self, broker: &Broker) -> Result<Client, Failure> {
        self.runtime.block_on(self.connect(broker))
    }

    async fn connect(&self, broker: &Broker) -> Result<Client, Failure> {
        let second = Duration::from_secs(1);
        let wait = Duration::from_millis(1);
        let backoff = ReconnectBackoff { first: wait, eager: 60 * second, maximum: wait };
        let options =
            ClientOptions { timeout: 120 * second, backoff, ..ClientOptions::servers(&broker.address) };
        Ok(Client::connect(options).await?)
    }

    /// Publishes so many messages of 128 bytes to the topic `t`.
    fn fill(&self, broker: &Broker, messages: u64) -> Result<f64, Failure> {
        if messages == 0 {
            return Ok(0.0);
        }
        let count = messages.to_string();
        rate(&broker.bench(&["publish", "--topic", "t", "--in-flight", "10000", "--messages", &count])?)
    }
}

/// A broker with the topic `t` and these groups of it.
fn with_groups(dir: &Path, mode: &'static str, groups: &[&str]) -> Result<Broker, Failure> {
    let broker = Broker::start(dir, mode)?;
    run(&["topic", "create", "t", "--server", &broker.address])?;
    for group in groups {
        run(&["group", "create", "t", group, "--server", &broker.address])?;
    }
    Ok(broker)
}

fn memory(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    let groups = ["a", "b", "c"];
    let broker = with_groups(&plan.dir, mode, &groups)?;
    let row = |what: &str, messages: u64| -> Result<(), Failure> {
        let (highest, now) = (broker.memory("VmHWM")?, broker.memory("VmRSS")?);
        println!("| {mode} | {what} | {messages} | {highest:.0} | {now:.0} |");
        Ok(broker.forget_highest_memory()?)
    };
    row("nothing yet", 0)?;
    plan.fill(&broker, plan.messages)?;
    row("written", plan.messages)?;
    std::thread::sleep(Duration::from_secs(5));
    row("at rest for 5 s", plan.messages)?;
    let client = plan.client(&broker)?;
    let habits = [
        ("a consumed, acked in order", Habit::InOrder),
        ("b consumed, acked out of order, 1 % nacked once", Habit::Untidy),
        ("c consumed the same way, the backlog goes", Habit::Untidy),
    ];
    for (group, (what, habit)) in groups.into_iter().zip(habits) {
        plan.runtime.block_on(consume(&client, group, plan.messages, habit))?;
        row(what, plan.messages)?;
    }
    Ok(())
}

fn recovery(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    let mut backlogs = vec![0, 10_000, 1_000_000, plan.messages];
    backlogs.retain(|backlog| *backlog <= plan.messages);
    backlogs.dedup();
    for backlog in backlogs {
        let mut broker = with_groups(&plan.dir, mode, &["a", "b", "c"])?;
        plan.fill(&broker, backlog)?;
        let mut took = Vec::new();
        for _ in 0..RECOVERIES {
            plan.kill_while_writing(&mut broker)?;
            let started = Instant::now();
            broker.spawn_again()?;
            let client = plan.client(&broker)?;
            plan.runtime.block_on(async {
                let topic = client.topic("t").await?;
                client.producer(ProducerOptions::default()).await?.send(&topic, &Message::new("x")).await
            })?;
            took.push(started.elapsed().as_secs_f64() * 1e3);
        }
        let worst = took.iter().copied().fold(0.0, f64::max);
        println!("| {mode} | {backlog} | {:.0} | {worst:.0} |", median(took));
    }
    Ok(())
}

impl Plan {
    /// Kills the broker after some of what a publisher keeps in flight was confirmed.
    fn kill_while_writing(&self, broker: &mut Broker) -> Result<(), Failure> {
        let client = self.client(broker)?;
        self.runtime.block_on(async {
            let topic = client.topic("t").await?;
            let producer = client.producer(ProducerOptions::default()).await?;
            let message = Message::new(vec![7; 128]);
            for _ in 0..20 {
                producer.send_batch(&topic, std::iter::repeat_n(&message, 500)).await?;
            }
            broker.kill()?;
            Ok::<_, Failure>(())
        })
    }
}

fn topics(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    for count in ["1", "100", "10000"] {
        let broker = Broker::start(&plan.dir, mode)?;
        let report =
            broker.bench(&["publish", "--topics", count, "--messages", "1000000", "--in-flight", "10000"])?;
        let cpu = number(&report, &["cpu_us_per_message", "broker"])?;
        println!("| {mode} | {count} | {:.0} | {cpu:.2} |", rate(&report)?);
    }
    Ok(())
}

fn cold(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    let messages = plan.messages / 2;
    let mut broker = with_groups(&plan.dir, mode, &[])?;
    let written = plan.fill(&broker, messages)?;
    broker.kill()?;
    broker.spawn_again()?;
    let count = messages.to_string();
    let report = broker.bench(&["consume", "--topic", "t", "--messages", &count])?;
    let drained = rate(&report)?;
    println!("| {mode} | {messages} | {written:.0} | {drained:.0} | {:.2} |", drained / written);
    Ok(())
}

fn disk(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    for (size, messages) in
        [("16", 4_000_000.0), ("128", 4_000_000.0), ("1024", 1_000_000.0), ("65536", 20_000.0)]
    {
        let broker = with_groups(&plan.dir, mode, &["a"])?;
        let count = messages.to_string();
        broker.bench(&[
            "publish",
            "--topic",
            "t",
            "--in-flight",
            "10000",
            "--messages",
            &count,
            "--size",
            size,
        ])?;
        let bytes = broker.disk_bytes()? as f64 / messages;
        println!("| {mode} | {size} | {bytes:.0} | {:.2} |", bytes / size.parse::<f64>()?);
    }
    Ok(())
}

fn pinned(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    let broker = with_groups(&plan.dir, mode, &["a"])?;
    plan.fill(&broker, plan.messages)?;
    let full = broker.disk_bytes()?;
    let client = plan.client(&broker)?;
    plan.runtime.block_on(consume(&client, "a", plan.messages, Habit::AllButTheFirst))?;
    let (begun, mut left) = (Instant::now(), full);
    while begun.elapsed() < RECLAIM_WAIT {
        std::thread::sleep(Duration::from_secs(1));
        left = left.min(broker.disk_bytes()?);
    }
    println!("| {mode} | {} | {:.0} | {:.0} |", plan.messages, mib(full), mib(left));
    Ok(())
}

fn checkpoints(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    for bytes in ["1MiB", "4MiB", "16MiB", "64MiB"] {
        let options = vec![("BATON_SEGMENT_BYTES", bytes.to_owned())];
        let broker = Broker::start_with(&plan.dir, mode, options)?;
        let report =
            broker.bench(&["latency", "--messages", "200000", "--rate", "10000", "--size", "1024"])?;
        let of = |name| number(&report, &["latency_us", name]);
        println!("| {mode} | {bytes} | {:.0} | {:.0} | {:.0} |", of("p50")?, of("p99")?, of("p999")?);
    }
    Ok(())
}

/// Milliseconds from now on after which publishing is certainly over, going by how fast plain messages are published.
fn publishing_over(messages: u64, plain: f64) -> Timestamp {
    let publishing = (messages as f64 / plain * PUBLISHING_FACTOR * 1e3) as u64;
    Timestamp(now().0 + publishing + PUBLISHING_MS)
}

/// How fast messages without a time are published to a node of its own.
fn plain_publish(plan: &Plan, mode: &'static str) -> Result<f64, Failure> {
    let broker = with_groups(&plan.dir, mode, &["g"])?;
    let client = plan.client(&broker)?;
    Ok(plan.runtime.block_on(waiting::publish(&client, "t", plan.messages, |_| waiting::message()))?)
}

/// Highest memory of the broker since the last time.
fn highest_memory(broker: &Broker) -> Result<f64, Failure> {
    let highest = broker.memory("VmHWM")?;
    broker.forget_highest_memory()?;
    Ok(highest)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn delayed(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    let plain = plain_publish(plan, mode)?;
    for (due, spread) in [("within a minute", SPREAD_MS), ("at once", 1)] {
        let broker = with_groups(&plan.dir, mode, &["g"])?;
        let client = plan.client(&broker)?;
        let first = publishing_over(plan.messages, plain);
        let make = |number| Message {
            deliver_at: Some(Timestamp(first.0 + waiting::scatter(number) % spread)),
            ..waiting::message()
        };
        let published = plan.runtime.block_on(waiting::publish(&client, "t", plan.messages, make))?;
        let slack = first.since(now());
        let (publishing, disk) = (highest_memory(&broker)?, mib(broker.disk_bytes()?));
        let arrivals = plan.runtime.block_on(waiting::consume(&client, "t", plan.messages))?;
        let coming = highest_memory(&broker)?;
        let rate = plan.messages as f64 / arrivals.last.since(first).as_secs_f64();
        let late = arrivals.late;
        println!(
            "| {mode} | {due} | {plain:.0} | {published:.0} | {publishing:.0} | {coming:.0} | {disk:.0} | {} | {} | {} | \
             {rate:.0} |",
            late.value_at_quantile(0.5),
            late.value_at_quantile(0.99),
            late.max()
        );
        if slack.is_zero() {
            println!("publishing took longer than expected: some were due before it was over");
        }
    }
    Ok(())
}

fn expiring(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    let plain = plain_publish(plan, mode)?;
    for (end, buried) in [("settled", "false"), ("dead letters", "true")] {
        let broker = Broker::start(&plan.dir, mode)?;
        run(&["topic", "create", "t", "--server", &broker.address])?;
        run(&["group", "create", "t", "g", "--dead-letter-expired", buried, "--server", &broker.address])?;
        let client = plan.client(&broker)?;
        let first = publishing_over(plan.messages, plain);
        // In the order in which they are published, as with one time to live for all. At random they would leave more gaps
        // than `settled_ranges_max` allows, and the rest would wait for a consumer that passes over it.
        let at = |number| Timestamp(first.0 + number * SPREAD_MS / plan.messages);
        let make = |number| Message { expires_at: Some(at(number)), ..waiting::message() };
        let published = plan.runtime.block_on(waiting::publish(&client, "t", plan.messages, make))?;
        let (publishing, disk) = (highest_memory(&broker)?, mib(broker.disk_bytes()?));
        let ends = (0..plan.messages).map(at).collect();
        let (late, rate) = plan.runtime.block_on(waiting::watch_expiry(&client, "t", ends))?;
        let expiring = highest_memory(&broker)?;
        println!(
            "| {mode} | {end} | {plain:.0} | {published:.0} | {publishing:.0} | {expiring:.0} | {disk:.0} | {} | {} | {} | \
             {rate:.0} |",
            late.value_at_quantile(0.5),
            late.value_at_quantile(0.99),
            late.max()
        );
    }
    Ok(())
}

fn priorities(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    for (what, count) in [("one", 1), ("ten, at random", 10)] {
        let broker = with_groups(&plan.dir, mode, &["g"])?;
        let client = plan.client(&broker)?;
        let make =
            |number| Message { priority: (waiting::scatter(number) % count) as u8, ..waiting::message() };
        let published = plan.runtime.block_on(waiting::publish(&client, "t", plan.messages, make))?;
        let (publishing, disk) = (highest_memory(&broker)?, mib(broker.disk_bytes()?));
        let drained = plan.runtime.block_on(waiting::consume(&client, "t", plan.messages))?.per_second;
        let draining = highest_memory(&broker)?;
        println!(
            "| {mode} | {what} | {published:.0} | {drained:.0} | {publishing:.0} | {draining:.0} | {disk:.0} |"
        );
    }
    Ok(())
}

fn last_values(plan: &Plan, mode: &'static str) -> Result<(), Failure> {
    let (keys, mib) = (plan.messages / 10, f64::from(1 << 20));
    for last_value in [false, true] {
        let connect = async |broker: &Broker| plan.connect(broker).await;
        let cost = plan.runtime.block_on(values::update(&plan.dir, mode, keys, last_value, connect))?;
        let values::Cost { published_per_second, memory_mib, left, cleaned_seconds, disk_bytes } = cost;
        println!(
            "| {mode} | {last_value} | {keys} | {published_per_second:.0} | {memory_mib:.0} | {left} | \
             {cleaned_seconds:.0} | {:.0} |",
            disk_bytes as f64 / mib
        );
    }
    Ok(())
}
