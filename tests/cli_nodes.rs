//! Commands about nodes, topics and groups, and what wrong input gets.

mod cli_support;

use cli_support::{Pair, command, free_address, is_empty, run, run_with_input, signal, wait_for_end};
use rustix::process::Signal;

const STATUS_KEYS: [&str; 20] = [
    "addresses",
    "agrees",
    "connections",
    "delayed",
    "epoch",
    "groups",
    "master",
    "messages",
    "mode",
    "node",
    "protocol",
    "role",
    "role_seconds",
    "server",
    "store_format",
    "store_formats",
    "store_id",
    "topics",
    "unreadable",
    "version",
];

#[test]
fn status_tells_master_from_standby() {
    let pair = Pair::both();
    let nodes = pair.run(&["status", "--json"]).json();
    for (node, (name, role)) in nodes.iter().zip([("a", "master"), ("b", "standby")]) {
        assert_eq!((&node["node"], &node["role"]), (&name.into(), &role.into()));
        let keys: Vec<&String> = node.as_object().unwrap().keys().collect();
        assert_eq!(keys, STATUS_KEYS);
        assert_eq!((&node["mode"], &node["epoch"]), (&"file".into(), &1.into()));
        assert_eq!(node["store_id"], nodes[0]["store_id"]);
        assert_eq!(node["master"], pair.servers[0].as_str());
    }
    let table = pair.run(&["status"]).ok();
    assert!(table.starts_with("SERVER") && table.contains(" standby "), "{table}");
    assert!(table.ends_with("and each reads what the others write\n"), "{table}");
}

#[test]
fn status_tells_which_node_does_not_answer() {
    let pair = Pair::single();
    let nobody = free_address();
    let servers = format!("{nobody},{}", pair.servers[0]);
    let nodes = run(&["status", "--json", "--server", &servers]).json();
    assert_eq!(nodes[0]["server"], nobody.as_str());
    assert!(nodes[0]["error"].as_str().unwrap().contains("refused"), "{}", nodes[0]);
    assert_eq!(nodes[1]["role"], "master");
    let said = run(&["status", "--server", &nobody]).failed(3);
    assert!(said.contains("no node has answered"), "{said}");
}

/// A master without a standby handed over to nobody and ended.
#[test]
fn a_switchover_without_a_standby_is_refused_and_the_master_goes_on() {
    let mut pair = Pair::single();
    let said = pair.run(&["switchover"]).failed(1);
    assert!(said.contains("no standby follows this node"), "{said}");
    pair.run(&["publish", "t", "x"]).ok();
    assert!(pair.nodes[0].try_wait().unwrap().is_none());
}

#[test]
fn a_switchover_makes_the_other_node_master() {
    let mut pair = Pair::both();
    pair.run(&["publish", "t", "x"]).ok();
    let switched = pair.run(&["switchover", "--json"]).json().remove(0);
    assert_eq!((&switched["from"], &switched["to"]), (&"a".into(), &"b".into()));
    assert_eq!(switched["epoch"], 2);
    assert!(pair.wait(0).success());
    let consumed = pair.run(&["consume", "t", "--group", "g", "--count", "1"]).ok();
    assert_eq!(consumed, "x\n");
}

#[test]
fn a_node_that_is_told_to_stop_ends_with_0() {
    for with in [Signal::TERM, Signal::INT] {
        let mut pair = Pair::single();
        signal(&pair.nodes[0], with);
        assert_eq!(pair.wait(0).code(), Some(0));
    }
}

#[test]
fn without_a_master_a_command_gives_up_after_its_timeout() {
    let nobody = free_address();
    for args in [&["publish", "t", "x"][..], &["consume", "t", "--group", "g"], &["topic", "list"]] {
        let said = run(&[args, &["--server", &nobody, "--timeout", "200ms"]].concat()).failed(3);
        assert!(said.starts_with("baton: no master found at "), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn what_is_no_command_is_refused_with_2() {
    for args in [
        &["publish", "t"][..],
        &["publish", "no name", "x"],
        &["publish", "t", "x", "--header", "novalue"],
        &["publish", "t", "x", "--server", "a:0"],
        &["publish", "t", "x", "--timeout", "0s"],
        &["consume", "t"],
        &["consume", "t", "--group", "g", "--from", "yesterday"],
        &["consume", "t", "--group", "g", "--count", "0"],
        &["consume", "t", "--group", "g", "--idle-timeout", "5"],
        &["group", "set", "t", "g"],
        &["group", "create", "t", "g", "--backoff-initial", "2h"],
        &["serve", "--mode", "sqlite"],
        &["serve", "--log", "nonsense=nonsense=nonsense"],
        &["bench"],
        &[],
    ] {
        let said = run(args).failed(2);
        assert!(!said.is_empty(), "{args:?}");
    }
}

#[test]
fn flags_of_what_is_not_built_yet_are_not_offered() {
    run(&["store", "check"]).failed(2);
}

#[test]
fn every_command_has_help() {
    let help = run(&["--help"]).ok();
    assert!(help.contains("Exit codes:"), "{help}");
    for args in [
        &["demo"][..],
        &["serve"],
        &["publish"],
        &["consume"],
        &["pull"],
        &["request"],
        &["reply"],
        &["status"],
        &["switchover"],
        &["address", "remove"],
        &["topic", "list"],
        &["topic", "create"],
        &["topic", "delete"],
        &["topic", "describe"],
        &["group", "list"],
        &["group", "create"],
        &["group", "delete"],
        &["group", "set"],
        &["group", "describe"],
        &["dead-letter", "list"],
        &["dead-letter", "show"],
        &["dead-letter", "replay"],
        &["dead-letter", "purge"],
        &["bench", "publish"],
        &["bench", "consume"],
        &["bench", "latency"],
        &["bench", "fanout"],
        &["bench", "disk"],
    ] {
        assert!(help.contains(args[0]), "{}", args[0]);
        assert!(run(&[args, &["--help"]].concat()).ok().contains("Usage: "), "{args:?}");
    }
}

#[test]
fn a_wrong_configuration_keeps_a_node_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("baton.toml");
    let serve = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let mut command =
            command(&["serve", "--config", file.to_str().unwrap(), "--listen", &free_address()]);
        run_with_input(command.current_dir(dir.path()), b"").failed(2)
    };
    let said = serve("mode = 'file'\npol_interval = '1s'\n");
    assert!(
        said.ends_with(
            "baton.toml:2: there is no setting \"pol_interval\"; did you mean \"poll_interval\"?\n"
        ),
        "{said}"
    );
    let said = serve("listen = '0.0.0.0:1'\nheartbeat = '1ms'");
    assert!(said.contains("baton.toml:2: heartbeat: 1ms is out of bounds"), "{said}");
    std::fs::remove_file(&file).unwrap();
    assert!(is_empty(dir.path()), "nothing was made");
}

#[test]
fn with_a_file_a_store_that_is_not_there_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let (file, store) = (dir.path().join("baton.toml"), dir.path().join("store"));
    std::fs::write(&file, format!("store = {:?}\n", store.to_str().unwrap())).unwrap();
    let said = run(&["serve", "--config", file.to_str().unwrap(), "--listen", &free_address()]).failed(1);
    assert!(said.contains(store.to_str().unwrap()), "{said}");
    assert!(!store.exists());
}

#[test]
fn a_second_node_on_one_address_says_so() {
    let pair = Pair::single();
    let store = pair.path("other");
    let said = run(&["serve", "--store", store.to_str().unwrap(), "--listen", &pair.servers[0]]).failed(1);
    assert!(said.contains(&format!("cannot listen on {}", pair.servers[0])), "{said}");
    assert_eq!(said.matches("Address already in use").count(), 1, "{said}");
}

/// The variable was passed over without a word, and the node ran with another setting than its operator believed.
#[test]
fn a_variable_with_a_slip_in_its_name_is_warned_of() {
    let pair = Pair::single();
    let store = pair.path("other");
    let args = ["serve", "--store", store.to_str().unwrap(), "--listen", &pair.servers[0]];
    let said = run_with_input(command(&args).env("BATON_POLL_INTERVALL", "1s"), b"").failed(1);
    assert!(
        said.contains("the variable BATON_POLL_INTERVALL sets nothing; did you mean BATON_POLL_INTERVAL?"),
        "{said}"
    );
}

#[test]
fn without_a_file_the_store_is_made_where_the_command_stands() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let mut node = command(&["serve", "--listen", &address]).current_dir(dir.path()).spawn().unwrap();
    cli_support::wait_until(|| {
        let answer = run(&["status", "--json", "--server", &address]);
        answer.code == Some(0) && answer.json()[0]["role"] == "master"
    });
    signal(&node, Signal::TERM);
    assert!(wait_for_end(&mut node).success());
    assert!(dir.path().join("baton-data").join("control").exists());
}

#[test]
fn topics_are_made_listed_described_and_deleted() {
    let pair = Pair::single();
    pair.run(&["topic", "create", "orders"]).ok();
    pair.run(&["topic", "create", "orders"]).ok();
    pair.run(&["publish", "orders", "a", "b"]).ok();
    pair.run(&["publish", "bills", "c"]).ok();
    let topics = pair.run(&["topic", "list", "--json"]).json();
    assert_eq!((&topics[0]["topic"], &topics[1]["topic"]), (&"bills".into(), &"orders".into()));
    assert_eq!((&topics[1]["messages"], &topics[1]["end"]), (&2.into(), &2.into()));
    pair.run(&["group", "create", "orders", "g", "--policy", "fair"]).ok();
    let orders = pair.run(&["topic", "describe", "orders", "--json"]).json().remove(0);
    assert_eq!((&orders["groups"], &orders["group_list"][0]["waiting"]), (&1.into(), &2.into()));
    let described = pair.run(&["topic", "describe", "orders"]).ok();
    assert!(described.lines().any(|line| line.starts_with("g ") && line.contains(" fair ")), "{described}");
    pair.run(&["topic", "delete", "orders"]).ok();
    pair.run(&["topic", "delete", "orders"]).failed(1);
    pair.run(&["topic", "describe", "orders"]).failed(1);
    assert_eq!(
        pair.run(&["topic", "list"]).ok(),
        "TOPIC  MESSAGES  DELAYED  START  END  GROUPS\nbills         1        0      0    1       0\n"
    );
}

#[test]
fn groups_are_made_changed_described_and_deleted() {
    let pair = Pair::single();
    pair.run(&["topic", "create", "t"]).ok();
    let create = ["group", "create", "t", "g", "--lease", "1m", "--max-attempts", "3", "--dead-letter", "d"];
    pair.run(&create).ok();
    pair.run(&["group", "set", "t", "g", "--policy", "fair", "--backoff-multiplier", "1.5"]).ok();
    let group = pair.run(&["group", "describe", "t", "g", "--json"]).json().remove(0);
    let settings = &group["settings"];
    assert_eq!((&settings["policy"], &settings["lease_ms"]), (&"fair".into(), &60_000.into()));
    assert_eq!((&settings["max_attempts"], &settings["dead_letter"]), (&3.into(), &"d".into()));
    assert_eq!(settings["backoff"]["multiplier_percent"], 150);
    let text = pair.run(&["group", "describe", "t", "g"]).ok();
    assert!(text.contains("attempts: 3, then to d"), "{text}");
    assert_eq!(pair.run(&["group", "list", "t", "--json"]).json()[0], group);
    assert!(
        pair.run(&["group", "set", "t", "x", "--lease", "1s"]).failed(1).contains("topic t has no group x")
    );
    pair.run(&["group", "delete", "t", "g"]).ok();
    assert_eq!(pair.run(&["group", "list", "--json"]).json().len(), 0);
}

#[test]
fn the_log_goes_to_standard_error_in_the_form_that_is_asked_for() {
    let nobody = free_address();
    let mut command = command(&["serve", "--store", "/nowhere/store", "--listen", &nobody]);
    command.env("BATON_LOG_FORMAT", "xml");
    let said = run_with_input(&mut command, b"").failed(2);
    assert!(said.contains("BATON_LOG_FORMAT: log_format: \"xml\" is not one of text, json"), "{said}");
    let mut command = cli_support::command(&["topic", "list", "--server", &nobody]);
    command.env("BATON_LOG_FORMAT", "xml");
    assert!(run_with_input(&mut command, b"").failed(2).contains("is not one of text, json"));
}
