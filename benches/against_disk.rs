//! How near the broker comes to what the disk allows, workload by workload, in both modes.
//!
//! `cargo bench --bench against_disk [-- [--rounds N] [DIR]]`: each round starts a broker on a new store in DIR and
//! takes every figure beside the plain loop of `baton bench disk`, so that a disturbance hits both. Printed are
//! medians over the rounds: of the figures, and of the ratios of each round. It ends by itself.

mod broker;

use std::path::{Path, PathBuf};

use broker::{Broker, Failure, MODES, median, number, rate};
use serde_json::Value;

/// One line of the table: a figure, and what it is held against.
struct Line {
    work: &'static str,
    unit: &'static str,
    figure: f64,
    beside: &'static str,
    other: f64,
    cpu_us: String,
}

fn main() -> Result<(), Failure> {
    let (mut rounds, mut dir) = (3_usize, std::env::temp_dir());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            "--rounds" => rounds = arguments.next().ok_or("--rounds needs a number")?.parse()?,
            path if !path.starts_with('-') => dir = PathBuf::from(path),
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    println!("| mode | work | figure | beside it | | ratio | CPU us a message: client, broker |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for mode in MODES {
        let taken: Vec<Vec<Line>> = (0..rounds).map(|_| round(&dir, mode)).collect::<Result<_, _>>()?;
        for index in 0..taken[0].len() {
            let lines: Vec<&Line> = taken.iter().map(|round| &round[index]).collect();
            let of = |figure: fn(&Line) -> f64| median(lines.iter().map(|line| figure(line)).collect());
            let Line { work, unit, beside, cpu_us, .. } = lines[0];
            let (figure, other) = (of(|line| line.figure), of(|line| line.other));
            let ratio = of(|line| line.figure / line.other);
            println!(
                "| {mode} | {work} | {figure:.0} {unit} | {beside} | {other:.0} | {ratio:.2} | {cpu_us} |"
            );
        }
    }
    Ok(())
}

/// Every figure once, on a new store for each kind of work: what one leaves behind does not disturb the next.
fn round(dir: &Path, mode: &'static str) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    let mut publish_rate = 0.0;
    for (size, work) in
        [("128", "publish, 1000 in flight, 128 B"), ("1024", "publish, 1000 in flight, 1 KiB")]
    {
        let broker = Broker::start(dir, mode)?;
        let disk = broker.disk(&["--mode", mode, "--batch", "500", "--size", size])?;
        let ours =
            broker.bench(&["publish", "--messages", "1000000", "--in-flight", "1000", "--size", size])?;
        if size == "128" {
            publish_rate = rate(&ours)?;
        }
        lines.push(Line::rates(work, &ours, "disk at batch 500", rate(&disk)?)?);
    }
    let broker = Broker::start(dir, mode)?;
    let disk = broker.disk(&["--mode", "file", "--batch", "1"])?;
    let ours = broker.bench(&["publish", "--messages", "10000", "--in-flight", "1"])?;
    lines.push(Line {
        work: "publish one at a time, p50 of the confirm",
        unit: "us",
        figure: number(&ours, &["latency_us", "p50"])?,
        beside: "write and fdatasync, p50",
        other: number(&disk, &["latency_us", "p50"])?,
        cpu_us: cpu(&ours),
    });
    let broker = Broker::start(dir, mode)?;
    let ours = broker.bench(&["fanout", "--groups", "1", "--messages", "1000000"])?;
    lines.push(Line::rates("end to end with acks, 128 B", &ours, "publish", publish_rate)?);
    let broker = Broker::start(dir, mode)?;
    let ours = broker.bench(&["consume", "--messages", "1000000"])?;
    lines.push(Line::rates("drain a backlog of 1 million with acks", &ours, "publish", publish_rate)?);
    let broker = Broker::start(dir, mode)?;
    let ours = broker.bench(&["fanout", "--groups", "10", "--messages", "200000", "--size", "1024"])?;
    let mut fanout = Line::rates("10 groups, 1 KiB, deliveries", &ours, "publish", publish_rate)?;
    fanout.figure *= 10.0;
    lines.push(fanout);
    let broker = Broker::start(dir, mode)?;
    let ours = broker.bench(&["latency", "--messages", "25000", "--rate", "5000"])?;
    lines.push(Line {
        work: "end to end at 5,000/s, p50",
        unit: "us",
        figure: number(&ours, &["latency_us", "p50"])?,
        beside: "its p99",
        other: number(&ours, &["latency_us", "p99"])?,
        cpu_us: cpu(&ours),
    });
    Ok(lines)
}

impl Line {
    fn rates(work: &'static str, report: &Value, beside: &'static str, other: f64) -> Result<Self, Failure> {
        Ok(Self { work, unit: "/s", figure: rate(report)?, beside, other, cpu_us: cpu(report) })
    }
}

fn cpu(report: &Value) -> String {
    let of = |side: &str| report["cpu_us_per_message"][side].as_f64().unwrap_or(f64::NAN);
    format!("{:.2}, {:.2}", of("client"), of("broker"))
}
