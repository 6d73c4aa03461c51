//! What benchmarks report: rates, latencies, and what they cost the processors.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::cli::output::{bytes_text, counted, grouped};

/// Longest latency that is told apart from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(600);
/// Ticks of `/proc/<pid>/stat` in a second: fixed by the interface of Linux, whatever the kernel's own clock does.
const TICKS_PER_SECOND: u64 = 100;

/// Latencies, with three digits each.
#[derive(Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        let max = u64::try_from(LATENCY_MAX.as_nanos()).unwrap_or(u64::MAX);
        Self(Histogram::new_with_bounds(1, max, 3).expect("1 is below the maximum and 3 digits are possible"))
    }

    /// Takes one in; whatever is longer than ten minutes counts as that.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Takes all of `other` in.
    pub fn merge(&mut self, other: &Self) {
        // Both have the same bounds, so that adding cannot fail.
        let _ = self.0.add(&other.0);
    }

    /// The latencies that are reported.
    pub fn summary(&self) -> Latency {
        let us = |nanoseconds: u64| (nanoseconds / 100) as f64 / 10.0;
        let at = |quantile| us(self.0.value_at_quantile(quantile));
        Latency { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: us(self.0.max()) }
    }
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50, p99, p999, max } = self;
        write!(f, "p50 {p50} us, p99 {p99} us, p99.9 {p999} us, max {max} us")
    }
}

/// Processor time of this process, and of the broker where its process is known.
#[derive(Debug)]
pub struct Processors {
    broker: Option<u32>,
    client_at: Duration,
    broker_at: Option<Duration>,
}

impl Processors {
    /// Begins to measure. `broker` is the process id of the broker, where it is known.
    ///
    /// # Errors
    /// Where there is no such process on this host.
    pub fn begin(broker: Option<u32>) -> anyhow::Result<Self> {
        let broker_at = broker.map(of_process).transpose()?;
        Ok(Self { broker, client_at: of_this_process(), broker_at })
    }

    /// What `messages` have cost since the beginning.
    pub fn per_message(&self, messages: u64) -> Cpu {
        let share = |time: Duration| (time.as_secs_f64() * 1e9 / messages.max(1) as f64).round() / 1000.0;
        let broker_now = self.broker.and_then(|pid| of_process(pid).ok());
        Cpu {
            client: share(of_this_process().saturating_sub(self.client_at)),
            broker: broker_now.zip(self.broker_at).map(|(now, then)| share(now.saturating_sub(then))),
        }
    }
}

/// Microseconds of processor time per message.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cpu {
    client: f64,
    broker: Option<f64>,
}

fn of_this_process() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn of_process(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_err(|error| anyhow::anyhow!("--server-pid {pid}: cannot read its processor time: {error}"))?;
    // The second field, the name of the program, is in brackets and may contain anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// What every benchmark reports.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Messages that count.
    pub messages: u64,
    /// How long they took.
    pub seconds: f64,
    /// Messages in a second.
    pub messages_per_second: f64,
    /// Bytes of bodies in a second, in units of a million bytes.
    pub megabytes_per_second: f64,
    /// Latencies; the benchmark says of what.
    pub latency_us: Option<Latency>,
    /// Processor time.
    pub cpu_us_per_message: Option<Cpu>,
}

impl Report {
    /// A report on `messages` of `size` bytes since `begun`.
    pub fn new(messages: u64, size: u64, took: Duration) -> Self {
        let seconds = took.as_secs_f64().max(1e-9);
        let rate = messages as f64 / seconds;
        Self {
            messages,
            seconds: (seconds * 1e6).round() / 1e6,
            messages_per_second: rate.round(),
            megabytes_per_second: (rate * size as f64 / 1e4).round() / 100.0,
            latency_us: None,
            cpu_us_per_message: None,
        }
    }

    /// The report with latencies.
    pub fn latencies(self, latencies: &Latencies) -> Self {
        Self { latency_us: Some(latencies.summary()), ..self }
    }

    /// The report with the cost.
    pub fn cpu(self, processors: &Processors) -> Self {
        let cpu = Some(processors.per_message(self.messages));
        Self { cpu_us_per_message: cpu, ..self }
    }

    /// The report for people; `what` is what the latencies are of.
    pub fn text(&self, what: &str) -> String {
        let mut text = format!(
            "{} in {:.2} s: {} messages/s, {}/s",
            counted(self.messages, "message"),
            self.seconds,
            grouped(self.messages_per_second as u64),
            bytes_text((self.megabytes_per_second * 1e6) as u64),
        );
        if let Some(latency) = &self.latency_us {
            text += &format!("\n{what}: {latency}");
        }
        if let Some(cpu) = &self.cpu_us_per_message {
            text += &format!("\nprocessor time per message: client {} us", cpu.client);
            if let Some(broker) = cpu.broker {
                text += &format!(", broker {broker} us");
            }
        }
        text
    }
}

/// A source of bytes that no file system compresses, the same in every run.
#[derive(Debug)]
pub struct Noise(u64);

impl Noise {
    /// The beginning.
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend_from_slice(&self.0.to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// When a bounded loop ends.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// After so many messages.
    pub messages: u64,
    /// At this time.
    pub end_at: Instant,
}

impl Bound {
    /// Whether `done` messages are enough, or it is time.
    pub fn reached(&self, done: u64) -> bool {
        done >= self.messages || Instant::now() >= self.end_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut latencies = Latencies::new();
        (1..=1000).for_each(|us| latencies.record(Duration::from_micros(us)));
        let Latency { p50, p99, max, .. } = latencies.summary();
        assert!((499.0..=502.0).contains(&p50) && (989.0..=992.0).contains(&p99) && max >= 1000.0);
    }

    #[test]
    fn processor_time_of_a_process_is_read() {
        let own = of_process(std::process::id()).unwrap();
        assert!(own <= of_this_process() + Duration::from_millis(20));
        assert!(Processors::begin(Some(u32::MAX)).is_err());
    }

    #[test]
    fn a_report_has_rates() {
        let report = Report::new(500, 1000, Duration::from_millis(250));
        assert_eq!((report.messages_per_second, report.megabytes_per_second), (2000.0, 2.0));
    }
}
