//! Commands about how groups share messages, how long they live, and which topics they have.

mod cli_support;

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, ChildStdout};

use cli_support::{Pair, signal, wait_for_end};
use rustix::process::Signal;

/// A `baton consume` that goes on until it is stopped.
struct Consuming {
    process: Child,
    output: BufReader<ChildStdout>,
    said: BufReader<ChildStderr>,
}

impl Consuming {
    fn start(pair: &Pair, args: &[&str]) -> Self {
        let mut process = pair.command(&[&["consume"], args].concat()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let said = BufReader::new(process.stderr.take().unwrap());
        Self { process, output, said }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    fn said(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line
    }

    fn stop(mut self) {
        signal(&self.process, Signal::TERM);
        wait_for_end(&mut self.process);
    }
}

impl Drop for Consuming {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_consumer_of_an_exclusive_group_says_whether_it_is_active() {
    let pair = Pair::single();
    let args = ["t", "--group", "g", "--policy", "exclusive"];
    let mut first = Consuming::start(&pair, &args);
    assert_eq!(first.said(), "active: the messages come here\n");
    let mut second = Consuming::start(&pair, &args);
    assert_eq!(second.said(), "waiting: another consumer is active\n");
    pair.run(&["publish", "t", "a"]).ok();
    assert_eq!(first.line(), "a\n");
    first.stop();
    assert_eq!(second.said(), "active: the messages come here\n");
    pair.run(&["publish", "t", "b"]).ok();
    assert_eq!(second.line(), "b\n");
    second.stop();
}

#[test]
fn messages_of_a_pattern_say_where_they_are_from() {
    let pair = Pair::single();
    pair.run(&["publish", "orders.eu", "1"]).ok();
    let mut consuming =
        Consuming::start(&pair, &["orders.*", "--group", "g", "--ephemeral", "--format", "json"]);
    let mut next = || {
        let message: serde_json::Value = serde_json::from_str(&consuming.line()).unwrap();
        format!("{}: {}", message["topic"].as_str().unwrap(), message["body"].as_str().unwrap())
    };
    assert_eq!(next(), "orders.eu: 1");
    pair.run(&["publish", "orders.us", "2"]).ok();
    assert_eq!(next(), "orders.us: 2");

    let topics = pair.run(&["topic", "list", "--json"]).json();
    let of_pattern = topics.iter().find(|topic| topic["topic"] == "orders.*").unwrap();
    assert_eq!((&of_pattern["matching"], &of_pattern["groups"]), (&2.into(), &1.into()));
    let groups = pair.run(&["group", "list", "orders.us", "--json"]).json();
    assert_eq!((&groups[0]["topic"], &groups[0]["group"]), (&"orders.*".into(), &"g".into()));
    let described = pair.run(&["topic", "describe", "orders.*"]).ok();
    assert!(described.contains("a pattern, stands for 2 topics"), "{described}");
    let described = pair.run(&["topic", "describe", "orders.eu"]).ok();
    assert!(described.contains("g of orders.*"), "{described}");
    let said = pair.run(&["publish", "orders.*", "x"]).failed(2);
    assert!(said.contains("orders.*"), "{said}");
    consuming.stop();
    let names: Vec<serde_json::Value> = pair
        .run(&["topic", "list", "--json"])
        .json()
        .into_iter()
        .map(|topic| topic["topic"].clone())
        .collect();
    assert_eq!(names, ["orders.eu", "orders.us"], "the pattern went with its last consumer");
}

#[test]
fn lifetime_and_policy_of_a_group_are_set_and_shown() {
    let pair = Pair::single();
    let create = ["group", "create", "a.#", "g", "--policy", "key", "--lifetime", "idle=30m"];
    pair.run(&create).ok();
    let shown = pair.run(&["group", "describe", "a.#", "g"]).ok();
    for expected in ["key", "it goes after 30m without a consumer", "dead letters of the message's own topic"]
    {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    pair.run(&["group", "set", "a.#", "g", "--policy", "exclusive", "--lifetime", "durable"]).ok();
    let group = &pair.run(&["group", "describe", "a.#", "g", "--json"]).json()[0];
    assert_eq!(group["settings"]["policy"], "exclusive");
    assert_eq!(group["settings"]["lifetime"], "durable");
    let said = pair.run(&["group", "set", "a.#", "g", "--lifetime", "idle=10ms"]).failed(1);
    assert!(said.contains("at least 1000 ms"), "{said}");
    let said = pair.run(&["group", "set", "a.#", "g", "--lifetime", "forever"]).failed(2);
    assert!(said.contains("idle=DURATION"), "{said}");
    pair.run(&["group", "delete", "a.#", "g"]).ok();
    assert!(pair.run(&["topic", "list", "--json"]).json().is_empty());
}

#[test]
fn messages_with_a_key_go_one_at_a_time() {
    let pair = Pair::single();
    let keyed = |key, body| pair.run(&["publish", "t", "--key", key, body]).ok();
    for (key, body) in [("a", "a1"), ("a", "a2"), ("b", "b1")] {
        keyed(key, body);
    }
    let mut holding = Consuming::start(&pair, &["t", "--group", "g", "--policy", "key", "--then", "nothing"]);
    assert_eq!([holding.line(), holding.line()], ["a1\n", "b1\n"]);
    let group = &pair.run(&["group", "list", "--json"]).json()[0];
    assert_eq!((&group["in_flight"], &group["parked"]), (&2.into(), &1.into()));
    let said = pair.run(&["explain", "t", "1", "--group", "g"]).ok();
    assert!(said.contains("message 0 with the same key comes first"), "{said}");
    holding.stop();
}

#[test]
fn a_consumer_of_a_higher_priority_comes_first() {
    let pair = Pair::single();
    let low = Consuming::start(&pair, &["t", "--group", "g", "--policy", "fair"]);
    let mut high = Consuming::start(
        &pair,
        &["t", "--group", "g", "--priority", "9", "--prefetch", "1", "--prefetch-bytes", "1KiB"],
    );
    // They are there when the group says so.
    cli_support::wait_until(|| {
        pair.run(&["group", "list", "--json"]).json().first().is_some_and(|group| group["consumers"] == 2)
    });
    for body in ["1", "2", "3"] {
        pair.run(&["publish", "t", body]).ok();
        assert_eq!(high.line(), format!("{body}\n"));
    }
    high.stop();
    low.stop();
}
