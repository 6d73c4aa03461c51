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
        "priority",
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
    pair.run(&["publish", "t", "y"]).ok();
    consume(&pair, "1", &["--then", "nack", "--nack-delay", "1h"]).ok();
    let peeked = pair.run(&["peek", "t", "--group", "g", "--json"]).json();
    assert_eq!(peeked[0]["state"], "returned");
    consume(&pair, "1", &["--nack-delay", "1h"]).failed(2);
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
fn a_dead_letter_goes_back_to_its_group_or_to_all() {
    let pair = Pair::single();
    let consumed = |group: &str| {
        let flags = ["consume", "t", "--group", group, "--count", "9", "--idle-timeout", "200ms"];
        pair.run(&flags).ok()
    };
    pair.run(&["topic", "create", "t"]).ok();
    for group in ["g", "other"] {
        pair.run(&["group", "create", "t", group]).ok();
    }
    pair.run(&["publish", "t", "a"]).ok();
    assert_eq!(consumed("other"), "a\n");
    let kill = || {
        consume(&pair, "1", &["--then", "reject"]).ok();
        wait_until(|| pair.run(&["dead-letter", "list", "t", "--json"]).json().len() == 1);
    };
    kill();
    assert_eq!(pair.run(&["dead-letter", "replay", "t"]).ok(), "1 dead letter replayed\n");
    kill();
    assert_eq!(consumed("other"), "");
    pair.run(&["group", "delete", "t", "g"]).ok();
    let refused = pair.run(&["dead-letter", "replay", "t"]).ok();
    assert!(
        refused.starts_with("0 dead letters replayed; 1 kept: the group in which they died is gone"),
        "{refused}"
    );
    pair.run(&["dead-letter", "replay", "t", "--all-groups", "--to", "u"]).failed(2);
    assert_eq!(pair.run(&["dead-letter", "replay", "t", "--all-groups"]).ok(), "1 dead letter replayed\n");
    assert_eq!(consumed("other"), "a\n");
}

/// Letters of a group of a pattern that names a topic for them were not found by the topic that they came from.
#[test]
fn dead_letters_of_a_pattern_are_found_by_the_topic_they_came_from() {
    let pair = Pair::single();
    pair.run(&["group", "create", "t.#", "g", "--dead-letter", "lost"]).ok();
    pair.run(&["publish", "t.eu", "a"]).ok();
    pair.run(&["consume", "t.#", "--group", "g", "--count", "1", "--then", "reject"]).ok();
    let list = || pair.run(&["dead-letter", "list", "t.eu", "--json"]).json();
    wait_until(|| list().len() == 1);
    assert_eq!((&list()[0]["pattern"], &list()[0]["group"]), (&"t.#".into(), &"g".into()));
    let shown = pair.run(&["dead-letter", "show", "t.eu", "0"]).ok();
    assert!(shown.contains("from: topic t.eu, offset 0, group g of pattern t.#\n"), "{shown}");
    assert_eq!(pair.run(&["dead-letter", "replay", "t.eu"]).ok(), "1 dead letter replayed\n");
    assert_eq!(pair.run(&["consume", "t.#", "--group", "g", "--count", "1"]).ok(), "a\n");
}

/// A group whose letters went where it reads itself got them again, for ever.
#[test]
fn a_group_is_not_told_to_send_dead_letters_to_itself() {
    let pair = Pair::single();
    for (topic, dead_letter) in [("jobs", "jobs"), ("o.#", "o.graves")] {
        let said = pair.run(&["group", "create", topic, "g", "--dead-letter", dead_letter]).failed(1);
        assert!(said.contains("the group would get them again"), "{said}");
    }
    pair.run(&["topic", "create", "jobs"]).ok();
    pair.run(&["group", "create", "jobs", "g"]).ok();
    let said = pair.run(&["group", "set", "jobs", "g", "--dead-letter", "jobs"]).failed(1);
    assert!(said.contains("the group would get them again"), "{said}");
}

/// Letters of a topic were lost sight of once another group sent its own there.
#[test]
fn dead_letters_of_a_topic_are_found_though_others_lie_in_it() {
    let pair = Pair::single();
    pair.run(&["publish", "work", "p"]).ok();
    pair.run(&["consume", "work", "--group", "w", "--count", "1", "--then", "reject"]).ok();
    pair.run(&["publish", "in", "a"]).ok();
    pair.run(&["group", "create", "in", "g", "--dead-letter", "work"]).ok();
    pair.run(&["consume", "in", "--group", "g", "--count", "1", "--then", "reject"]).ok();
    let list = || pair.run(&["dead-letter", "list", "work", "--json"]).json();
    wait_until(|| list().len() == 2);
    assert_eq!(pair.run(&["dead-letter", "replay", "work"]).ok(), "2 dead letters replayed\n");
    assert_eq!(pair.run(&["consume", "in", "--group", "g", "--count", "1"]).ok(), "a\n");
    assert_eq!(pair.run(&["consume", "work", "--group", "w", "--count", "1"]).ok(), "p\n");
}

/// Letters lie in the order in which they died, and have their priority again when they are replayed.
#[test]
fn a_dead_letter_has_its_priority_again_when_it_is_replayed() {
    let pair = Pair::single();
    let reject = || pair.run(&["consume", "p", "--group", "g", "--count", "1", "--then", "reject"]).ok();
    pair.run(&["publish", "p", "b"]).ok();
    reject();
    pair.run(&["publish", "p", "a", "--priority", "9"]).ok();
    reject();
    wait_until(|| pair.run(&["dead-letter", "list", "p", "--json"]).json().len() == 2);
    let browsed = pair.run(&["browse", "p.dead-letter", "--format", "json"]).json();
    let seen: Vec<_> = browsed.iter().map(|letter| (&letter["body"], &letter["priority"])).collect();
    assert_eq!(seen, [(&"b".into(), &0.into()), (&"a".into(), &0.into())]);
    assert_eq!(pair.run(&["dead-letter", "replay", "p"]).ok(), "2 dead letters replayed\n");
    let again = pair.run(&["consume", "p", "--group", "g", "--count", "2", "--format", "json"]).json();
    let seen: Vec<_> = again.iter().map(|message| (&message["body"], &message["priority"])).collect();
    assert_eq!(seen, [(&"a".into(), &9.into()), (&"b".into(), &0.into())]);
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
    pair.run(&["publish", "t", "large", "d"]).ok();
    assert_eq!(pull(&["--wait", "5s", "--max", "10", "--max-bytes", "1"]), "large\n");
    assert_eq!(pull(&["--wait", "5s", "--max", "10", "--max-bytes", "1KiB"]), "d\n");
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
fn delayed_messages_are_listed_cancelled_and_delivered_when_they_are_due() {
    let pair = Pair::database();
    pair.run(&["publish", "t", "--delay", "1h", "--key", "k", "--priority", "7", "kept", "dropped"]).ok();
    pair.run(&["publish", "t", "--at", "2999-01-01 00:00:00", "--ttl", "1h", "far"]).ok();
    pair.run(&["publish", "t", "--delay", "300ms", "soon"]).ok();
    let list = |more: &[&str]| pair.run(&[&["schedule", "list", "t", "--json"], more].concat()).json();
    assert_eq!(consume(&pair, "1", &[]).ok(), "soon\n");
    let all = list(&[]);
    let bodies: Vec<&str> = all.iter().map(|message| message["body"].as_str().unwrap()).collect();
    assert_eq!(bodies, ["kept", "dropped", "far"]);
    assert_eq!((&all[0]["priority"], &all[0]["key"]), (&7.into(), &"k".into()));
    assert!(all[2]["due_at"].as_str().unwrap().starts_with("2999-01-01"), "{all:?}");
    assert!(all[2]["expires_at"].is_string() && all[0]["expires_at"].is_null());
    assert_eq!(list(&["--limit", "1"]).len(), 1);
    assert_eq!(list(&["--filter", "@key = 'k'"]).len(), 2);
    let topic = pair.run(&["topic", "list", "--json"]).json().remove(0);
    assert_eq!((&topic["messages"], &topic["delayed"]), (&0.into(), &3.into()));
    let described = pair.run(&["topic", "describe", "t"]).ok();
    assert!(described.contains("3 messages to be delivered later\n"), "{described}");
    let table = pair.run(&["schedule", "list", "t"]).ok();
    assert!(table.lines().count() >= 4 && table.contains("kept"), "{table}");

    let id = all[1]["id"].as_str().unwrap();
    assert_eq!(pair.run(&["schedule", "cancel", "t", id]).ok(), "1 message cancelled\n");
    let again = pair.run(&["schedule", "cancel", "t", id]).ok();
    assert!(again.starts_with("0 messages cancelled; 1 not there any more"), "{again}");
    let by_filter = pair.run(&["schedule", "cancel", "t", "--filter", "@key = 'k'", "--json"]).json();
    assert_eq!(by_filter[0]["cancelled"], 1);
    assert_eq!(list(&[]).len(), 1);
    let wrong = pair.run(&["schedule", "cancel", "t", "7"]).failed(2);
    assert!(wrong.contains("SLOT:OFFSET"), "{wrong}");
    let nothing = pair.run(&["schedule", "cancel", "t"]).failed(2);
    assert!(nothing.contains("nothing to cancel"), "{nothing}");
    pair.run(&["schedule", "list", "none"]).failed(1);
}

#[test]
fn higher_priorities_come_first_and_what_has_expired_goes_to_the_dead_letters() {
    let pair = Pair::single();
    pair.run(&["topic", "create", "t"]).ok();
    pair.run(&["group", "create", "t", "g", "--dead-letter-expired", "true", "--priority-share", "2"]).ok();
    let described = pair.run(&["group", "describe", "t", "g"]).ok();
    assert!(described.contains("messages that expire: go to the dead letters\n"), "{described}");
    assert!(
        described.contains("lower priorities: one message in 2, while higher ones wait\n"),
        "{described}"
    );
    pair.run(&["publish", "t", "--ttl", "1ms", "gone"]).ok();
    pair.run(&["publish", "t", "low", "low too"]).ok();
    pair.run(&["publish", "t", "--priority", "9", "high", "high too", "high as well"]).ok();
    wait_until(|| pair.run(&["dead-letter", "list", "t", "--json"]).json().len() == 1);
    let listed = pair.run(&["topic", "list"]).ok();
    assert!(listed.lines().any(|line| line.split_whitespace().take(3).eq(["t", "5", "0"])), "{listed}");
    let described = pair.run(&["topic", "describe", "t"]).ok();
    assert!(described.contains("t: 5 messages ") && described.contains("3 of 9, 2 of 0\n"), "{described}");
    let order = "high\nlow\nhigh too\nlow too\nhigh as well\n";
    assert_eq!(consume(&pair, "5", &["--prefetch", "1"]).ok(), order);
    let letter = pair.run(&["dead-letter", "list", "t", "--json"]).json().remove(0);
    assert_eq!(letter["reason"], "expired");
    assert!(pair.run(&["dead-letter", "show", "t", "0"]).ok().ends_with("\n\ngone\n"));
    for (flag, value) in
        [("--priority", "10"), ("--ttl", "0s"), ("--at", "tomorrow"), ("--delay", "soon"), ("--delay", "-1s")]
    {
        let flag = format!("{flag}={value}");
        pair.run(&["publish", "t", "x", &flag]).failed(2);
    }
    pair.run(&["publish", "t", "x", "--delay", "1s", "--at", "2999-01-01 00:00:00"]).failed(2);
    pair.run(&["group", "set", "t", "g", "--priority-share", "1"]).failed(2);
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

#[test]
fn a_group_with_a_filter_gets_what_matches() {
    let pair = Pair::single();
    pair.run(&["topic", "create", "t"]).ok();
    pair.run(&["group", "create", "t", "g", "--filter", "region = 'eu'"]).ok();
    let publish = |region: &str, body: &str| {
        pair.run(&["publish", "t", "--header", &format!("region={region}"), body]).ok();
    };
    publish("us", "1");
    publish("eu", "2");
    assert_eq!(consume(&pair, "1", &[]).ok(), "2\n");
    assert!(pair.run(&["group", "describe", "t", "g"]).ok().contains("filter: region = 'eu'\n"));
    pair.run(&["group", "set", "t", "g", "--filter", "region = 'us'"]).ok();
    let settings = pair.run(&["group", "describe", "t", "g", "--json"]).json().remove(0);
    assert_eq!(settings["settings"]["filter"], "region = 'us'");
    publish("eu", "3");
    publish("us", "4");
    assert_eq!(consume(&pair, "1", &[]).ok(), "4\n");
    pair.run(&["group", "set", "t", "g", "--no-filter"]).ok();
    publish("asia", "5");
    let answer = consume(&pair, "1", &["--filter", "region = 'eu'"]);
    assert!(answer.stderr.contains("keeps its settings"), "{}", answer.stderr);
    assert_eq!(answer.ok(), "5\n");
    let new = |idle| {
        let args = ["consume", "t", "--group", "new", "--filter", "region = 'asia'", "--count", "1"];
        pair.run(&[&args[..], &["--idle-timeout", idle]].concat()).ok()
    };
    assert_eq!(new("50ms"), "");
    publish("us", "6");
    publish("asia", "7");
    assert_eq!(new("20s"), "7\n");
}

#[test]
fn a_filter_that_is_wrong_is_shown_before_anything_is_done() {
    for command in [
        &["group", "create", "t", "g"][..],
        &["group", "set", "t", "g"],
        &["consume", "t", "--group", "g"],
        &["browse", "t"],
        &["peek", "t", "--group", "g"],
        &["route", "create", "r", "--from", "t", "--to", "u"],
    ] {
        let said = cli_support::run(&[command, &["--filter", "orders > = 3"]].concat()).failed(2);
        let picture = "orders > = 3\n         ^ expected a value, such as price, 'text' or 3, found \"=\"\n";
        assert!(said.contains(picture), "{said}");
    }
}

#[test]
fn routes_are_made_listed_and_deleted() {
    let pair = Pair::single();
    let said = pair.run(&["route", "create", "r", "--from", "t", "--to", "a,b"]).failed(1);
    assert!(said.contains("there is no topic \"t\"; create it first"), "{said}");
    pair.run(&["topic", "create", "t"]).ok();
    pair.run(&["route", "create", "r", "--from", "t", "--to", "a,b"]).ok();
    pair.run(&["route", "create", "r", "--from", "t", "--to", "a,b"]).ok();
    pair.run(&["route", "create", "s", "--from", "t", "--to", "c", "--filter", "@key = 'k'", "--move"]).ok();
    let routes = pair.run(&["route", "list", "--json"]).json();
    assert_eq!(
        routes,
        [
            serde_json::json!({"route": "r", "from": "t", "to": ["a", "b"], "filter": null, "mode": "copy"}),
            serde_json::json!({"route": "s", "from": "t", "to": ["c"], "filter": "@key = 'k'", "mode": "move"}),
        ]
    );
    let table = pair.run(&["route", "list"]).ok();
    assert_eq!(table.lines().next_back(), Some("s      t     c    move  @key = 'k'"));
    pair.run(&["publish", "t", "--key", "k", "1"]).ok();
    pair.run(&["publish", "t", "2"]).ok();
    let bodies = |topic| pair.run(&["browse", topic]).ok();
    assert_eq!(["t", "a", "b", "c"].map(bodies), ["2\n", "1\n2\n", "1\n2\n", "1\n"]);
    pair.run(&["route", "delete", "s"]).ok();
    let said = pair.run(&["route", "delete", "s"]).failed(1);
    assert!(said.contains("there is no route \"s\""), "{said}");
    let said = pair.run(&["route", "create", "back", "--from", "a", "--to", "t"]).failed(1);
    assert!(said.contains("in a circle: a -> t -> a"), "{said}");
}

#[test]
fn a_topic_is_browsed_by_position_time_key_and_header() {
    let pair = Pair::single();
    pair.run(&["publish", "t", "--key", "a", "--header", "h=it's", "0", "1"]).ok();
    pair.run(&["publish", "t", "--key", "b", "--priority", "9", "2"]).ok();
    pair.run(&["publish", "t", "3"]).ok();
    let browse = |more: &[&str]| pair.run(&[&["browse", "t"], more].concat()).ok();
    assert_eq!(browse(&[]), "0\n1\n3\n2\n");
    assert_eq!(browse(&["--count", "2"]), "0\n1\n");
    assert_eq!(browse(&["--from", "2"]), "3\n2\n");
    assert_eq!(browse(&["--from", "9:0"]), "2\n");
    assert_eq!(browse(&["--key", "b"]), "2\n");
    assert_eq!(browse(&["--header", "h=it's", "--from", "1"]), "1\n");
    assert_eq!(browse(&["--key", "a", "--filter", "h = 'x'"]), "");
    let messages = pair.run(&["browse", "t", "--from", "9:0", "--format", "json"]).json();
    assert_eq!((&messages[0]["offset"], &messages[0]["priority"]), (&0.into(), &9.into()));
    assert_eq!((&messages[0]["body"], &messages[0]["key"]), (&"2".into(), &"b".into()));
    let published_at = messages[0]["published_at"].as_str().unwrap().to_owned();
    assert!(browse(&["--from", &published_at]).ends_with("2\n"));
    assert_eq!(browse(&["--from", "2100-01-01"]), "");
    assert_eq!(browse(&["--last", "1"]), "3\n");
    assert_eq!(browse(&["--last", "3"]), "1\n2\n3\n", "in the order of their times");
    assert_eq!(browse(&["--last", "100"]), "0\n1\n2\n3\n");
    assert_eq!(browse(&["--last", "1", "--key", "a"]), "1\n", "it is looked for further and further back");
    assert_eq!(browse(&["--last", "2", "--filter", "@key IS NOT NULL"]), "1\n2\n");
    pair.run(&["browse", "t", "--last", "1", "--count", "1"]).failed(2);
    pair.run(&["browse", "t", "--last", "0"]).failed(2);
    let said = pair.run(&["browse", "missing", "--last", "1"]).failed(1);
    assert!(said.contains("there is no topic \"missing\""), "{said}");
    let said = pair.run(&["browse", "t", "--from", "yesterday"]).failed(2);
    assert!(said.contains("or a time such as"), "{said}");
    let said = pair.run(&["browse", "missing"]).failed(1);
    assert!(said.contains("there is no topic \"missing\""), "{said}");
    assert_eq!(pair.run(&["group", "list", "t", "--json"]).ok(), "", "no group was made");
}

#[test]
fn a_peek_says_what_is_to_become_of_messages() {
    let pair = Pair::single();
    pair.run(&["topic", "create", "t"]).ok();
    pair.run(&["group", "create", "t", "g", "--backoff-initial", "1h", "--backoff-maximum", "1h"]).ok();
    pair.run(&["publish", "t", "--key", "k", "first", "second"]).ok();
    consume(&pair, "1", &["--then", "nack"]).ok();
    let peek = |more: &[&str]| pair.run(&[&["peek", "t", "--group", "g"], more].concat());
    let seen = peek(&["--json"]).json();
    let states: Vec<_> = seen.iter().map(|seen| (&seen["state"], &seen["attempt"], &seen["body"])).collect();
    assert_eq!(
        states,
        [(&"returned".into(), &2.into(), &"first".into()), (&"waiting".into(), &1.into(), &"second".into())]
    );
    assert_eq!(seen[0]["failure"]["reason"], "nacked");
    assert!(seen[0]["due_at"].is_string() && seen[1]["due_at"].is_null());
    let table = peek(&["--count", "1"]).ok();
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[1].starts_with("t           0  returned  2"), "{table}");
    assert!(rows[1].ends_with("nacked"), "{table}");
    pair.run(&["group", "create", "o.*", "g"]).ok();
    pair.run(&["publish", "o.a", "of a pattern"]).ok();
    let seen = pair.run(&["peek", "o.*", "--group", "g", "--json"]).json();
    assert_eq!((&seen[0]["topic"], &seen[0]["body"]), (&"o.a".into(), &"of a pattern".into()));
    let said = pair.run(&["peek", "t", "--group", "missing"]).failed(1);
    assert!(said.contains("has no group \"missing\""), "{said}");
}
