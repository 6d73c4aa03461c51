//! Commands that publish, consume and settle, against a node that runs.

mod cli_support;

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use cli_support::{Pair, signal, wait_for_end, wait_until};
use rustix::process::Signal;

fn consume(pair: &Pair, count: &str, more: &[&str]) -> cli_support::Answer {
    let args = [&["consume", "t", "--group", "g", "--count", count, "--idle-timeout", "20s"], more].concat();
    pair.run(&args)
}

#[test]
fn what_was_published_is_consumed_one_body_a_line() {
    let pair = Pair::single();
    let said = pair.run(&["publish", "t", "first", "second"]).ok();
    assert_eq!(said, "2 messages (11 B) published to t and confirmed\n");
    assert_eq!(consume(&pair, "2", &[]).ok(), "first\nsecond\n");
    assert_eq!(pair.run(&["publish", "t", "x"]).ok(), "1 message (1 B) published to t and confirmed\n");
}

#[test]
fn an_idle_consumer_ends_and_has_nothing_to_say() {
    let pair = Pair::single();
    let answer = pair.run(&["consume", "t", "--group", "g", "--count", "1", "--idle-timeout", "50ms"]);
    assert_eq!((answer.stderr.clone(), answer.ok()), (String::new(), String::new()));
}

/// A script that drains a group took the end of the broker for the end of its messages: the command ended with 0.
#[test]
fn a_consumer_whose_broker_is_gone_is_not_idle() {
    let mut pair = Pair::single();
    pair.run(&["publish", "t", "a", "b"]).ok();
    let args = ["consume", "t", "--group", "g", "--prefetch", "1", "--idle-timeout", "1s", "--timeout", "2s"];
    let mut consuming = pair.command(&args).spawn().unwrap();
    let mut output = BufReader::new(consuming.stdout.take().unwrap());
    for expected in ["a\n", "b\n"] {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
    }
    pair.nodes[0].kill().unwrap();
    assert_eq!(wait_for_end(&mut consuming).code(), Some(3));
    let mut said = String::new();
    consuming.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("no master found at "), "{said}");
}

#[test]
fn every_group_gets_every_message_and_a_group_begins_where_it_is_told() {
    let pair = Pair::single();
    pair.run(&["topic", "create", "t"]).ok();
    pair.run(&["group", "create", "t", "all"]).ok();
    pair.run(&["publish", "t", "0", "1", "2"]).ok();
    let begins = |group, from, count| {
        let args =
            ["consume", "t", "--group", group, "--from", from, "--count", count, "--idle-timeout", "20s"];
        pair.run(&args).ok()
    };
    let nothing = |group, from| {
        pair.run(&["consume", "t", "--group", group, "--from", from, "--idle-timeout", "100ms"]).ok()
    };
    assert_eq!(begins("first", "earliest", "3"), "0\n1\n2\n");
    assert_eq!(begins("late", "2", "1"), "2\n");
    assert_eq!(nothing("new", "latest"), "");
    assert_eq!(nothing("first", "earliest"), "", "a group that exists goes on where it was");
    assert_eq!(begins("all", "latest", "3"), "0\n1\n2\n");
}

#[test]
fn lines_are_published_as_they_are() {
    let pair = Pair::single();
    let lines = pair.file("lines", b"one\n\ntwo\r\n \xff\nno end");
    pair.run(&["publish", "t", "--lines", &lines]).ok();
    let answer = consume(&pair, "5", &[]);
    assert_eq!(answer.stdout, b"one\n\ntwo\r\n \xff\nno end\n");
}

#[test]
fn standard_input_is_published_line_by_line_while_it_is_written() {
    let pair = Pair::single();
    let mut publishing =
        pair.command(&["publish", "t", "--lines", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = publishing.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"now\n").unwrap();
    // The pipe stays open: the line must come out all the same.
    assert_eq!(consume(&pair, "1", &[]).ok(), "now\n");
    drop(input);
    assert!(wait_for_end(&mut publishing).success());
}

#[test]
fn a_file_is_a_message_with_its_path() {
    let pair = Pair::single();
    let (text, bytes) = (pair.file("text", b"a text"), pair.file("bytes", &[0, 159, 146, 150]));
    let args = ["publish", "t", "--key", "k", "--header", "a=b=c", "--files", &text, &bytes];
    pair.run(&args).ok();
    let messages = consume(&pair, "2", &["--format", "json"]).json();
    let keys: Vec<&String> = messages[0].as_object().unwrap().keys().collect();
    let mut expected = [
        "topic",
        "offset",
        "attempt",
        "delivery",
        "redelivered",
        "failure",
        "published_at",
        "key",
        "headers",
        "body",
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(messages[0]["body"], "a text");
    assert_eq!(messages[0]["key"], "k");
    assert_eq!(messages[0]["headers"], serde_json::json!({"a": "b=c", "file-name": text}));
    assert_eq!((&messages[0]["topic"], &messages[0]["attempt"]), (&"t".into(), &1.into()));
    assert_eq!(messages[1]["body"], serde_json::json!({"base64": "AJ+Slg=="}));
    assert_eq!(messages[1]["offset"], 1);
}

#[test]
fn a_producer_that_is_run_again_stores_nothing_twice() {
    let pair = Pair::single();
    let first = pair.file("first", b"1\n2\n3\n");
    let longer = pair.file("longer", b"1\n2\n3\n4\n5\n");
    let publish = |file: &str| {
        pair.run(&["publish", "t", "--lines", file, "--producer", "import", "--json"]).json().remove(0)
    };
    let counts = |answer: serde_json::Value| (answer["messages"].as_u64(), answer["skipped"].as_u64());
    assert_eq!(counts(publish(&first)), (Some(3), Some(0)));
    assert_eq!(counts(publish(&first)), (Some(0), Some(3)));
    assert_eq!(counts(publish(&longer)), (Some(2), Some(3)));
    assert_eq!(consume(&pair, "5", &[]).ok(), "1\n2\n3\n4\n5\n");
    assert_eq!(pair.run(&["topic", "describe", "t", "--json"]).json()[0]["end"], 5);
}

#[test]
fn a_body_beyond_the_limit_is_refused_and_what_comes_before_it_is_stored() {
    let pair = Pair::single();
    let large = pair.path("large");
    std::fs::File::create(&large).unwrap().set_len((64 << 20) + 1).unwrap();
    let small = pair.file("small", b"small");
    let answer = pair.run(&["publish", "t", "body", "--files", &small, large.to_str().unwrap(), &small]);
    let said = answer.failed(1);
    assert!(said.contains("2 of 4 messages were confirmed: "), "{said}");
    assert!(
        said.contains("message 3 of the input: body has 67108865, the limit body_bytes_max is 67108864"),
        "{said}"
    );
    assert_eq!(consume(&pair, "2", &[]).ok(), "body\nsmall\n");
}

/// Refused messages were counted as confirmed: all of six, with the topic deleted under the fourth.
#[test]
fn messages_that_are_refused_are_not_counted_as_confirmed() {
    let pair = Pair::single();
    let mut publishing =
        pair.command(&["publish", "t", "--lines", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = publishing.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"1\n2\n").unwrap();
    wait_until(|| {
        let topics = pair.run(&["topic", "list", "--json"]).json();
        topics.first().is_some_and(|topic| topic["end"] == 2)
    });
    pair.run(&["topic", "delete", "t"]).ok();
    std::io::Write::write_all(&mut input, b"3\n4\n5\n").unwrap();
    drop(input);
    assert_eq!(wait_for_end(&mut publishing).code(), Some(1));
    let mut said = String::new();
    publishing.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("baton: 2 of 5 messages were confirmed: 3 messages were refused"), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let pair = Pair::single();
    let said = pair.run(&["publish", "t", "--files", "/nowhere/at-all"]).failed(1);
    assert!(said.contains("cannot read /nowhere/at-all: No such file"), "{said}");
    let said = pair.run(&["publish", "t", "--lines", "/nowhere/at-all"]).failed(1);
    assert!(said.contains("cannot open /nowhere/at-all"), "{said}");
}

#[test]
fn a_nacked_message_comes_again_and_is_counted() {
    let pair = Pair::single();
    pair.run(&["group", "create", "t", "g", "--backoff-initial", "10ms"]).failed(1);
    pair.run(&["topic", "create", "t"]).ok();
    pair.run(&["group", "create", "t", "g", "--backoff-initial", "10ms"]).ok();
    pair.run(&["publish", "t", "x"]).ok();
    let attempts = |then| {
        let message = consume(&pair, "1", &["--format", "json", "--then", then]).json().remove(0);
        message["attempt"].as_u64().unwrap()
    };
    assert_eq!(attempts("nack"), 1);
    assert_eq!(attempts("release"), 2);
    assert_eq!(attempts("nothing"), 2);
    assert_eq!(attempts("ack"), 2);
    let nothing = ["consume", "t", "--group", "g", "--idle-timeout", "100ms"];
    assert_eq!(pair.run(&nothing).ok(), "");
}

#[test]
fn dead_letters_are_listed_shown_replayed_and_purged() {
    let pair = Pair::single();
    pair.run(&["publish", "t", "a", "b", "c"]).ok();
    consume(&pair, "3", &["--then", "reject"]).ok();
    let list = || pair.run(&["dead-letter", "list", "t", "--json"]).json();
    wait_until(|| list().len() == 3);
    let letter = &list()[0];
    assert_eq!(letter["dead_letter_topic"], "t.dead-letter");
    assert_eq!((&letter["topic"], &letter["group"]), (&"t".into(), &"g".into()));
    assert_eq!(
        (&letter["offset"], &letter["origin_offset"], &letter["reason"]),
        (&0.into(), &"0".into(), &"rejected".into())
    );
    assert_eq!(pair.run(&["dead-letter", "list", "t.dead-letter", "--json"]).json(), list());
    let shown = pair.run(&["dead-letter", "show", "t", "1"]).ok();
    assert!(shown.contains("from: topic t, offset 1, group g\n") && shown.ends_with("\n\nb\n"), "{shown}");
    pair.run(&["dead-letter", "show", "t", "7"]).failed(1);

    let dry = pair.run(&["dead-letter", "replay", "t", "--dry-run"]).ok();
    assert!(dry.ends_with("3 dead letters meant; nothing was done\n"), "{dry}");
    let one = pair.run(&["dead-letter", "replay", "t", "--offset", "1", "--json"]).json();
    assert_eq!((&one[0]["letters"], &one[0]["gone"]), (&1.into(), &0.into()));
    assert_eq!(list().len(), 2);
    let message = consume(&pair, "1", &["--format", "json"]).json().remove(0);
    assert_eq!(message["body"], "b");
    let headers = message["headers"].as_object().unwrap();
    assert_eq!(headers.keys().collect::<Vec<_>>(), ["baton.dead.history"]);

    assert_eq!(pair.run(&["dead-letter", "purge", "t", "--group", "other"]).ok(), "0 dead letters removed\n");
    assert_eq!(pair.run(&["dead-letter", "replay", "t"]).ok(), "2 dead letters replayed\n");
    assert_eq!(consume(&pair, "2", &["--then", "reject"]).ok(), "a\nc\n");
    wait_until(|| list().len() == 2);
    assert_eq!(list()[0]["history"].as_array().unwrap().len(), 1);
    assert_eq!(pair.run(&["dead-letter", "purge", "t"]).ok(), "2 dead letters removed\n");
    assert_eq!(list().len(), 0);
    assert_eq!(pair.run(&["dead-letter", "replay", "t"]).ok(), "0 dead letters replayed\n");
}

#[test]
fn dead_letters_are_picked_by_what_they_are() {
    let pair = Pair::single();
    for (key, price) in [("k1", "5"), ("k2", "50"), ("k3", "500")] {
        pair.run(&["publish", "t", "--key", key, "--header", &format!("price={price}"), key]).ok();
    }
    consume(&pair, "2", &["--then", "reject", "--reason", "no such customer"]).ok();
    pair.run(&["group", "set", "t", "g", "--max-attempts", "1"]).ok();
    consume(&pair, "1", &["--then", "nack", "--reason", "later"]).ok();
    let list = |flags: &[&str]| -> Vec<String> {
        let letters = pair.run(&[&["dead-letter", "list", "t", "--json"], flags].concat()).json();
        letters.iter().map(|letter| letter["origin_offset"].as_str().unwrap().to_owned()).collect()
    };
    wait_until(|| list(&[]).len() == 3);
    assert_eq!(list(&["--reason", "nacked"]), ["2"]);
    assert_eq!(list(&["--reason", "rejected"]), ["0", "1"]);
    assert_eq!(list(&["--key", "k2"]), ["1"]);
    assert_eq!(list(&["--filter", "price >= 50"]), ["1", "2"]);
    assert_eq!(list(&["--filter", "price >= 50", "--limit", "1"]), ["1"]);
    assert_eq!((list(&["--older-than", "1h"]).len(), list(&["--newer-than", "1h"]).len()), (0, 3));
    let said = pair.run(&["dead-letter", "list", "t", "--filter", "price >"]).failed(2);
    assert!(said.contains('^'), "{said}");
    let letter = pair.run(&["dead-letter", "show", "t", "0", "--json"]).json().remove(0);
    assert_eq!(
        (&letter["key"], &letter["attempts"], &letter["deliveries"]),
        (&"k1".into(), &1.into(), &1.into())
    );
    let failure = &letter["failures"][0];
    assert_eq!((&failure["reason"], &failure["text"]), (&"rejected".into(), &"no such customer".into()));
    assert!(failure["at"].as_str().unwrap().ends_with('Z'));
    let done = pair.run(&["dead-letter", "replay", "t", "--key", "k2", "--to", "elsewhere"]).ok();
    assert_eq!(done, "1 dead letter replayed\n");
    let elsewhere = pair.run(&["consume", "elsewhere", "--group", "g", "--count", "1"]).ok();
    assert_eq!(elsewhere, "k2\n");
    assert_eq!(list(&[]), ["0", "2"]);
    assert_eq!(
        pair.run(&["dead-letter", "purge", "t", "--reason", "nacked"]).ok(),
        "1 dead letter removed\n"
    );
    assert_eq!(list(&[]), ["0"]);
}

#[test]
fn a_consumer_sees_how_the_last_attempt_failed() {
    let pair = Pair::single();
    pair.run(&["publish", "t", "a"]).ok();
    consume(&pair, "1", &["--then", "nack", "--reason", "the database is down"]).ok();
    let message = consume(&pair, "1", &["--format", "json"]).json().remove(0);
    assert_eq!((&message["attempt"], &message["delivery"]), (&2.into(), &2.into()));
    let failure = &message["failure"];
    assert_eq!((&failure["reason"], &failure["text"]), (&"nacked".into(), &"the database is down".into()));
    pair.run(&["consume", "t", "--group", "g", "--reason", "x"]).failed(2);
}

#[test]
fn no_dead_letter_command_touches_a_topic_that_holds_none() {
    let pair = Pair::single();
    pair.run(&["publish", "t", "a"]).ok();
    assert_eq!(pair.run(&["dead-letter", "purge", "t"]).ok(), "0 dead letters removed\n");
    assert_eq!(consume(&pair, "1", &[]).ok(), "a\n");
    let said = pair.run(&["dead-letter", "purge", "nowhere"]).failed(1);
    assert!(said.contains("there is no topic nowhere"), "{said}");
}

#[test]
fn pull_asks_once() {
    let pair = Pair::single();
    pair.run(&["publish", "t", "a", "b", "c"]).ok();
    let pull = |more: &[&str]| pair.run(&[&["pull", "t", "--group", "g"], more].concat()).ok();
    assert_eq!(pull(&["--wait", "5s"]), "a\n");
    assert_eq!(pull(&["--wait", "5s", "--max", "10"]), "b\nc\n");
    assert_eq!(pull(&["--wait", "50ms", "--max", "10"]), "");
}

#[test]
fn a_reader_that_goes_away_ends_the_command_without_a_word() {
    let pair = Pair::single();
    let lines: String = (0..20_000).map(|number| format!("line {number} of many\n")).collect();
    let file = pair.file("lines", lines.as_bytes());
    pair.run(&["publish", "t", "--lines", &file]).ok();
    let mut consuming = pair.command(&["consume", "t", "--group", "g"]).spawn().unwrap();
    let mut first = String::new();
    let mut output = BufReader::with_capacity(64, consuming.stdout.take().unwrap());
    output.read_line(&mut first).unwrap();
    drop(output);
    assert!(wait_for_end(&mut consuming).success());
    let mut said = String::new();
    consuming.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((first.as_str(), said.as_str()), ("line 0 of many\n", ""));
}

#[test]
fn a_consumer_that_is_stopped_gives_back_what_it_has() {
    let pair = Pair::single();
    pair.run(&["publish", "t", "a", "b"]).ok();
    let args = ["consume", "t", "--group", "g", "--work", "1h"];
    let mut consuming = pair.command(&args).spawn().unwrap();
    let mut first = String::new();
    let mut output = BufReader::new(consuming.stdout.take().unwrap());
    output.read_line(&mut first).unwrap();
    assert_eq!(first, "a\n");
    signal(&consuming, Signal::INT);
    assert_eq!(wait_for_end(&mut consuming).code(), Some(130));
    // Long before any lease is over, and not counted as attempts.
    let again = consume(&pair, "2", &["--format", "json"]).json();
    assert!(again.iter().all(|message| message["attempt"] == 1), "{again:?}");
}

#[test]
fn a_slow_reader_does_not_cost_the_consumer_its_connection() {
    let pair = Pair::single();
    let lines: String = (0..50_000).map(|number| format!("{number:0>100}\n")).collect();
    let file = pair.file("lines", lines.as_bytes());
    pair.run(&["publish", "t", "--lines", &file]).ok();
    let args = ["consume", "t", "--group", "g", "--count", "50000"];
    let mut consuming = pair.command(&args).spawn().unwrap();
    let mut output = consuming.stdout.take().unwrap();
    // Longer than three heartbeats: the pipe is full and the command waits for it.
    std::thread::sleep(std::time::Duration::from_secs(4));
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, lines);
    assert!(wait_for_end(&mut consuming).success());
}

#[test]
fn a_request_gets_its_reply_or_says_that_none_came() {
    let pair = Pair::single();
    let none = pair.run(&["request", "ask", "anybody?", "--timeout", "300ms"]).failed(3);
    assert!(none.contains("no reply within"), "{none}");
    let mut replier = pair
        .command(&["reply", "ask", "--group", "g", "--count", "3"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(pair.run(&["request", "ask", "are you there?"]).ok(), "are you there?\n");
    let json = pair.run(&["request", "ask", "x", "--key", "k", "--format", "json"]).json();
    assert_eq!(json[0]["body"], "x");
    assert!(json[0]["headers"]["baton.correlation-id"].is_string());
    assert!(wait_for_end(&mut replier).success());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut replier.stdout.take().unwrap(), &mut said).unwrap();
    assert_eq!(said, "anybody?\nare you there?\nx\n", "the first one was answered too late");
}
