//! The program of a build as its users run it: to publish, to consume, to ask, to check a store.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// Runs a program to its end, with lines on its standard input. Answers what it wrote; it must succeed.
fn run(program: &Path, args: &[&str], lines: &str) -> String {
    let mut child = spawn(program, args);
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{} {args:?}: {status}: {said}", program.display());
    String::from_utf8(stdout).unwrap()
}

fn spawn(program: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// A client of some build, of a pair of nodes.
pub struct Cli<'a> {
    pub program: &'a Path,
    pub servers: &'a str,
}

impl Cli<'_> {
    fn run(&self, args: &[&str], lines: &str) -> String {
        run(self.program, &[args, &["--server", self.servers]].concat(), lines)
    }

    /// Publishes lines, all of which must be confirmed.
    pub fn publish(&self, topic: &str, lines: &str) {
        self.run(&["publish", topic, "--lines", "-"], lines);
    }

    /// Consumes so many messages, one a line.
    pub fn consume(&self, topic: &str, count: usize) -> Vec<String> {
        let args = ["consume", topic, "--group", "g", "--count", &count.to_string()];
        self.run(&args, "").lines().map(str::to_owned).collect()
    }

    /// What the nodes say of themselves: one object for each.
    pub fn status(&self) -> Vec<serde_json::Value> {
        let answered = self.run(&["status", "--json"], "");
        answered.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn switch_over(&self) {
        self.run(&["switchover"], "");
    }

    /// Begins to publish numbers, a line each, for as long as the answer is not ended.
    pub fn start_publishing(&self, topic: &str) -> Counting {
        let child = spawn(self.program, &["publish", topic, "--lines", "-", "--server", self.servers]);
        Counting { child, count: 0 }
    }
}

/// A client that publishes numbers through everything that happens.
pub struct Counting {
    child: Child,
    count: usize,
}

impl Counting {
    /// Publishes some more.
    pub fn go_on(&mut self) {
        let input = self.child.stdin.as_mut().unwrap();
        for _ in 0..100 {
            writeln!(input, "{}", self.count).unwrap();
            self.count += 1;
        }
        input.flush().unwrap();
    }

    /// Ends it; everything must be confirmed. Answers how many it has published.
    pub fn end(self) -> usize {
        let Output { status, stderr, .. } = self.child.wait_with_output().unwrap();
        assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
        self.count
    }
}

/// Reads everything in a store that no node serves, with the program of some build: nothing may be damaged.
pub fn verify(program: &Path, store: &Path) {
    run(program, &["store", "verify", "--store", store.to_str().unwrap()], "");
}

/// Checks that these are the numbers from 0 on, each once and in order.
pub fn assert_counted(lines: &[String], count: usize) {
    let numbers: Vec<usize> = lines.iter().map(|line| line.parse().unwrap()).collect();
    let missing: BTreeSet<usize> = (0..count).filter(|number| !numbers.contains(number)).collect();
    assert!(numbers.iter().copied().eq(0..count), "missing: {missing:?}, came: {}", numbers.len());
}
