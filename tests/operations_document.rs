//! `docs/operations.md` says what the program says: its times are those of the code, and what it quotes from the log is
//! written there. That commands do what it says is tried by hand; how long takeovers take by `lost_hosts` and others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use batonmq::address::keeper::{HAND_OVER_MAX, LIFETIME};
use batonmq::client::ClientOptions;
use batonmq::config::load::{Sources, load};
use batonmq::server::{FENCE_AGE_MAX, STALLED_MIN};

const DOCUMENT: &str = include_str!("../docs/operations.md");
/// What differs from one time to the next in what is quoted.
const DIFFERS: char = '…';
/// Words that commands begin with.
const COMMANDS: [&str; 12] = [
    "baton",
    "ceph",
    "cp",
    "echo",
    "findmnt",
    "fuser",
    "journalctl",
    "kill",
    "rm",
    "runuser",
    "systemctl",
    "umount",
];
/// What the system says, or others.
const NOT_OURS: [&str; 4] = [
    "Input/output error",
    "connect: Connection refused",
    "code=exited, status=…",
    "failed with result 'dependency'",
];

/// What stands below a heading of the second level.
fn section(heading: &str) -> &'static str {
    let begin = DOCUMENT.find(&format!("\n## {heading}\n")).unwrap() + 1;
    let rest = &DOCUMENT[begin..];
    &rest[..rest.find("\n## ").unwrap()]
}

fn text(time: Duration) -> String {
    match time.as_millis() {
        ms if ms < 1000 && ms % 500 != 0 => format!("{ms} ms"),
        ms => format!("{} s", ms as f64 / 1000.0),
    }
}

#[test]
fn the_times_are_those_of_the_code() {
    let config = load(&Sources { hostname: "a".to_owned(), ..Sources::default() }).unwrap().config;
    let client = ClientOptions::default();
    let unit = include_str!("../systemd/baton.service");
    let watchdog = unit.lines().find_map(|line| line.strip_prefix("WatchdogSec=")).unwrap();
    let longest = client.backoff.maximum * 3 / 2;
    let repeated = client.attempt_timeout - Duration::from_secs(1) + longest;
    let times = section("How long it takes");
    for (row, shipped) in [
        ("`poll_interval`", text(config.poll_interval)),
        ("`ClientOptions::heartbeat`", format!("{}; {}", text(config.heartbeat), text(client.heartbeat))),
        ("*c*, ", format!("{} ms", longest.as_millis())),
        ("*a*, ", text(repeated)),
        ("no sign of the fence", format!("{}, and *p*", text(FENCE_AGE_MAX))),
        ("`WatchdogSec=`", watchdog.replace('s', " s")),
        ("`drain_timeout`", text(config.drain_timeout)),
        ("where nobody extends it", text(LIFETIME)),
        ("behind a stop", text(HAND_OVER_MAX)),
        ("`announce_interval`", text(config.address.announce_interval)),
        ("`--timeout`", text(client.timeout)),
    ] {
        let found = times.lines().find(|line| line.starts_with('|') && line.contains(row)).expect(row);
        let last = found.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        assert_eq!(last, shipped, "{found}");
    }
    assert!(times.contains(&format!("at the node {}", text(STALLED_MIN))));
    assert!(times.contains("10 ms for the first second, then doubled up to 500 ms"));
    let backoff = client.backoff;
    assert_eq!([backoff.first, backoff.eager, backoff.maximum].map(|time| time.as_millis()), [10, 1000, 500]);
}

/// All of the sources, with what is written over several lines in one.
fn source(folder: &Path, all: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source(&path, all);
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines().map(str::trim_start) {
            match line.strip_suffix('\\') {
                Some(begun) => all.push_str(begun),
                None => *all += &format!("{line}\n"),
            }
        }
    }
}

/// What is quoted as said by a node or a command: the lines of text blocks, and what stands in tables and sentences.
fn quotes(section: &str) -> Vec<&str> {
    let mut quotes = Vec::new();
    for (number, part) in section.split("```").enumerate() {
        if number % 2 == 1 {
            quotes.extend(part.strip_prefix("text\n").into_iter().flat_map(str::lines));
        } else {
            let spans = part.split('`').skip(1).step_by(2);
            quotes.extend(spans.filter(|span| {
                let first = span.split(' ').next().unwrap_or_default();
                span.contains(' ') && !COMMANDS.contains(&first) && !NOT_OURS.contains(span)
            }));
        }
    }
    quotes
}

#[test]
fn what_is_quoted_is_what_is_said() {
    let mut all = String::new();
    source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    let quotes = quotes(section("What to do when"));
    assert!(quotes.len() > 25, "{quotes:?}");
    let pieces = quotes.iter().flat_map(|quote| quote.split(DIFFERS)).map(str::trim);
    let nowhere: Vec<&str> = pieces.filter(|piece| piece.len() > 3 && !all.contains(piece)).collect();
    assert!(nowhere.is_empty(), "quoted, and said nowhere: {nowhere:#?}");
}
