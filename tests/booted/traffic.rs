//! Somebody who publishes numbers, and somebody who consumes them, as long as it is wanted.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::wait_until;
use crate::lab::{Lab, done};

/// Time between two messages.
const PACE: Duration = Duration::from_millis(2);

/// Two clients that reach the pair in one way.
pub struct Traffic {
    topic: &'static str,
    servers: String,
    publishing: Child,
    consuming: Child,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writing: JoinHandle<()>,
    /// One more than the highest number that was received.
    received: Arc<AtomicU64>,
    /// The longest time between two messages since somebody asked, in milliseconds.
    longest: Arc<AtomicU64>,
    receiving: JoinHandle<()>,
}

impl Traffic {
    /// Begins it, by these addresses.
    pub fn start(lab: &Lab, topic: &'static str, servers: &str) -> Self {
        // For the end: what the other group is done with stays for it.
        done(&mut lab.client(servers, &["topic", "create", topic]));
        done(&mut lab.client(servers, &["group", "create", topic, "all"]));
        let args = ["publish", topic, "--lines", "-", "--timeout", "90s"];
        let mut publishing = lab.client(servers, &args).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = publishing.stdin.take().unwrap();
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let writing = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                writeln!(input, "{}", count.load(Ordering::Acquire)).unwrap();
                count.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(PACE);
            }
        });
        let args = ["consume", topic, "--group", "live", "--from", "earliest", "--timeout", "90s"];
        let mut consuming = lab.client(servers, &args).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(consuming.stdout.take().unwrap());
        let (received, longest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (highest, gap) = (Arc::clone(&received), Arc::clone(&longest));
        let receiving = std::thread::spawn(move || {
            let mut last = Instant::now();
            for line in output.lines() {
                let number: u64 = line.unwrap().parse().unwrap();
                gap.fetch_max(last.elapsed().as_millis() as u64, Ordering::AcqRel);
                last = Instant::now();
                highest.fetch_max(number + 1, Ordering::AcqRel);
            }
        });
        let servers = servers.to_owned();
        Self { topic, servers, publishing, consuming, stop, written, writing, received, longest, receiving }
    }

    /// Waits until something is consumed that is not even published yet, and says how long nothing came before.
    pub fn goes_on(&self, after: &str) {
        let enough = self.written.load(Ordering::Acquire) + 50;
        let what = format!("messages of {} after {after}", self.topic);
        wait_until(&what, || self.received.load(Ordering::Acquire) >= enough);
        println!("{after}, {}: nothing came for {} ms", self.topic, self.longest.swap(0, Ordering::AcqRel));
    }

    /// Lets it come to its end: everything is confirmed, and is there once and in order.
    pub fn finish(mut self, lab: &Lab) {
        self.stop.store(true, Ordering::Release);
        self.writing.join().unwrap();
        assert!(self.publishing.wait().unwrap().success(), "{}: not everything is confirmed", self.topic);
        self.consuming.kill().unwrap();
        self.consuming.wait().unwrap();
        self.receiving.join().unwrap();
        let count = self.written.load(Ordering::Acquire);
        let counted = count.to_string();
        let args = ["consume", self.topic, "--group", "all", "--count", &counted, "--idle-timeout", "20s"];
        let consumed = done(&mut lab.client(&self.servers, &args));
        let expected: String = (0..count).map(|number| format!("{number}\n")).collect();
        assert!(String::from_utf8_lossy(&consumed.stdout) == expected, "{}: {}", self.topic, lab.logs());
    }
}
