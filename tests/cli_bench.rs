//! Benchmarks measure something, report the keys that scripts rely on, and clean up; the demonstration passes.

mod cli_support;

use cli_support::{Pair, is_empty, run, signal, wait_for_end, wait_until};
use rustix::process::Signal;
use serde_json::Value;

const KEYS: [&str; 5] = ["messages", "seconds", "messages_per_second", "megabytes_per_second", "latency_us"];

fn check(report: &Value, messages: u64) {
    for key in KEYS {
        assert!(report.get(key).is_some(), "{key}: {report}");
    }
    assert_eq!(report["messages"], messages);
    let latency = |quantile: &str| report["latency_us"][quantile].as_f64().unwrap();
    assert!(latency("p50") > 0.0 && latency("p50") <= latency("p99"), "{report}");
    assert!(latency("p99") <= latency("p999") && latency("p999") <= latency("max"), "{report}");
    let rate = report["messages_per_second"].as_f64().unwrap() * report["seconds"].as_f64().unwrap();
    assert!((rate / messages as f64 - 1.0).abs() < 0.05, "{report}");
}

fn bench(pair: &Pair, args: &[&str]) -> Value {
    let pid = pair.nodes[0].id().to_string();
    pair.run(&[&["bench"], args, &["--json", "--server-pid", &pid]].concat()).json().remove(0)
}

#[test]
fn every_benchmark_reports_what_scripts_rely_on_and_leaves_nothing() {
    let pair = Pair::single();
    for in_flight in ["1", "100"] {
        let report =
            bench(&pair, &["publish", "--messages", "500", "--size", "64", "--in-flight", in_flight]);
        check(&report, 500);
        assert!(report["cpu_us_per_message"]["client"].as_f64().unwrap() > 0.0, "{report}");
        assert!(report["cpu_us_per_message"]["broker"].is_number(), "{report}");
    }
    check(&bench(&pair, &["publish", "--messages", "1001", "--connections", "3"]), 1001);
    check(&bench(&pair, &["consume", "--messages", "3000", "--connections", "2"]), 3000);
    let one_by_one = bench(&pair, &["latency", "--messages", "100"]);
    check(&one_by_one, 100);
    assert!(one_by_one["confirm_us"]["p50"].as_f64().unwrap() > 0.0);
    check(&bench(&pair, &["latency", "--messages", "200", "--rate", "1000"]), 200);
    let fanout = bench(&pair, &["fanout", "--messages", "2000", "--groups", "3"]);
    check(&fanout, 2000);
    assert_eq!(fanout["deliveries"], 6000);
    assert_eq!(pair.run(&["topic", "list", "--json"]).json(), Vec::<Value>::new());
}

#[test]
fn a_topic_that_was_named_is_left_and_can_be_drained() {
    let pair = Pair::single();
    bench(&pair, &["publish", "--topic", "mine", "--messages", "700"]);
    let report = bench(&pair, &["consume", "--topic", "mine", "--messages", "700"]);
    check(&report, 700);
    assert_eq!(report["topic"], "mine");
    let topics = pair.run(&["topic", "list", "--json"]).json();
    assert_eq!((&topics[0]["topic"], &topics[0]["end"]), (&"mine".into(), &700.into()));
}

#[test]
fn the_disk_is_measured_in_both_modes_and_nothing_is_left_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for mode in ["file", "database"] {
        let args =
            ["bench", "disk", "--mode", mode, "--batch", "50", "--messages", "1000", "--dir", path, "--json"];
        let report = run(&args).json().remove(0);
        check(&report, 1000);
        assert_eq!((&report["syncs"], &report["mode"]), (&20.into(), &mode.into()));
        assert!(is_empty(dir.path()));
    }
    let said = run(&["bench", "disk", "--dir", "/nowhere"]).failed(1);
    assert!(said.contains("cannot create /nowhere/baton-bench-disk-"), "{said}");
    run(&["bench", "disk", "--size", "64MiB"]).failed(1);
}

#[test]
fn a_process_that_is_not_there_is_no_broker() {
    let pair = Pair::single();
    let said = pair.run(&["bench", "publish", "--server-pid", "4000000000"]).failed(1);
    assert!(said.contains("--server-pid 4000000000: cannot read its processor time"), "{said}");
}

#[test]
fn the_demonstration_loses_nothing_in_either_mode_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = cli_support::command(&["demo", "--json"]);
    let report = cli_support::run_with_input(command.env("TMPDIR", dir.path()), b"").json().remove(0);
    assert_eq!(report["ok"], true);
    for (run, mode) in report["runs"].as_array().unwrap().iter().zip(["database", "file"]) {
        assert_eq!(run["mode"], mode);
        let (all, before) =
            (run["messages"].as_u64().unwrap(), run["confirmed_before_kill"].as_u64().unwrap());
        assert!(before > 0 && before < all, "{run}");
        assert!(run["takeover_ms"].as_f64().unwrap() > 0.0, "{run}");
    }
    assert!(is_empty(dir.path()));
}

/// A demonstration that was interrupted left hundreds of megabytes in the directory for temporary files.
#[test]
fn an_interrupted_demonstration_leaves_nothing() {
    for (with, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = cli_support::command(&["demo", "--json"]);
        let mut showing = command.env("TMPDIR", dir.path()).spawn().unwrap();
        wait_until(|| !is_empty(dir.path()));
        signal(&showing, with);
        assert_eq!(wait_for_end(&mut showing).code(), Some(code));
        assert!(is_empty(dir.path()));
    }
}
