//! Commands that set what topics keep, purge and pause them, and send groups to other places, against a node that runs.

mod cli_support;

use cli_support::Pair;

/// What a group gets of the topic `t` within a moment.
fn consumed(pair: &Pair, group: &str) -> String {
    pair.run(&["consume", "t", "--group", group, "--idle-timeout", "200ms"]).ok()
}

#[test]
fn a_topic_keeps_what_its_flags_say() {
    let pair = Pair::single();
    let create =
        ["topic", "create", "t", "--retention", "count=3", "--max-messages", "10", "--overflow", "reject"];
    pair.run(&create).ok();
    pair.run(&create).ok();
    pair.run(&["publish", "t", "0", "1", "2", "3", "4"]).ok();
    assert_eq!(consumed(&pair, "g"), "2\n3\n4\n");
    assert_eq!(consumed(&pair, "late"), "2\n3\n4\n", "settled messages stay");
    let shown = pair.run(&["topic", "describe", "t"]).ok();
    assert!(shown.contains("kept until there are 3 messages newer"), "{shown}");
    assert!(shown.contains("full with 10 messages: then it refuses what is published to it"), "{shown}");
    pair.run(&["topic", "set", "t", "--retention", "keep", "--max-messages", "3"]).ok();
    let said = pair.run(&["publish", "t", "5"]).failed(1);
    assert!(said.contains("topic t is full: max_messages is 3"), "{said}");
    pair.run(&["topic", "set", "t", "--max-messages", "none", "--overflow", "block"]).ok();
    pair.run(&["publish", "t", "5"]).ok();
    let settings = &pair.run(&["topic", "list", "--json"]).json()[0]["settings"];
    assert_eq!((&settings["max_messages"], &settings["overflow"]), (&().into(), &"block".into()));
}

#[test]
fn what_makes_no_sense_is_said() {
    let pair = Pair::single();
    for (args, code, expected) in [
        (&["topic", "create", "t", "--overflow", "drop-oldest"][..], 1, "set max_messages or max_bytes"),
        (&["topic", "create", "t", "--retention", "age=5ms"], 1, "a retention of 5 ms"),
        (&["topic", "create", "t", "--retention", "weekly"], 2, "keep, or acked, age=DURATION"),
        (&["topic", "set", "t"], 2, "name at least one setting"),
        (&["topic", "purge", "t"], 1, "there is no topic \"t\""),
        (&["group", "seek", "t", "g", "--to", "yesterday"], 2, "earliest, latest, an offset"),
    ] {
        let said = pair.run(args).failed(code);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}

#[test]
fn a_group_goes_where_it_is_sent() {
    let pair = Pair::single();
    pair.run(&["topic", "create", "t", "--retention", "keep"]).ok();
    pair.run(&["publish", "t", "0", "1", "2", "3"]).ok();
    assert_eq!(consumed(&pair, "g"), "0\n1\n2\n3\n");
    for (to, expected) in
        [("earliest", "0\n1\n2\n3\n"), ("2", "2\n3\n"), ("latest", ""), ("2026-01-01", "0\n1\n2\n3\n")]
    {
        pair.run(&["group", "seek", "t", "g", "--to", to]).ok();
        assert_eq!(consumed(&pair, "g"), expected, "{to}");
    }
    pair.run(&["group", "seek", "t", "g", "--to", "1"]).ok();
    assert_eq!(pair.run(&["group", "purge", "t", "g"]).ok(), "3 messages settled\n");
    assert_eq!(consumed(&pair, "g"), "");
    assert_eq!(pair.run(&["topic", "purge", "t"]).ok(), "4 messages dropped\n");
    assert_eq!(pair.run(&["topic", "purge", "t"]).ok(), "0 messages dropped\n");
}

#[test]
fn what_is_paused_goes_on_when_it_is_resumed() {
    let pair = Pair::single();
    pair.run(&["publish", "t", "0"]).ok();
    pair.run(&["group", "create", "t", "g"]).ok();
    for (kind, names) in [("topic", &["t"][..]), ("group", &["t", "g"])] {
        pair.run(&[&[kind, "pause"], names].concat()).ok();
        assert_eq!(consumed(&pair, "g"), "", "{kind}");
        let shown = pair.run(&[&[kind, "describe"], names].concat()).ok();
        assert!(shown.contains("paused: nothing"), "{shown}");
        pair.run(&[&[kind, "resume"], names].concat()).ok();
        assert_eq!(consumed(&pair, "g"), "0\n", "{kind}");
        pair.run(&["publish", "t", "0"]).ok();
    }
}
