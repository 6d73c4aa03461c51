//! The configuration as an operator meets it: files, variables and flags in, settings or an error out.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::error::ConfigError;
use super::key::Key;
use super::load::{Loaded, Sources, load};
use super::*;
use crate::model::limits::LIMITS;

fn sources(file: Option<&Path>) -> Sources {
    Sources { file: file.map(Path::to_owned), hostname: "host-a".to_owned(), ..Sources::default() }
}

fn from_text(text: &str) -> Result<Loaded, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("baton.toml");
    fs::write(&path, text).unwrap();
    load(&sources(Some(&path)))
}

/// The error for a file with this text, without the directory of the file.
fn error_of(text: &str) -> String {
    let error = from_text(text).expect_err(text).to_string();
    error.split_once("baton.toml").map_or(error.clone(), |(_, rest)| format!("baton.toml{rest}"))
}

fn flag(name: &'static str, key: &str, text: &str) -> (&'static str, Key, Vec<String>) {
    (name, Key::find("", key).unwrap(), vec![text.to_owned()])
}

/// `systemd/baton.toml` with every setting that is commented out taken in.
fn shipped_file() -> (String, usize) {
    let text = include_str!("../../systemd/baton.toml");
    let mut count = 0;
    let lines: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.is_empty() && !setting.starts_with([' ', '#']) => {
                count += usize::from(setting.contains(" = "));
                setting
            }
            _ => line,
        })
        .collect();
    (lines.join("\n"), count)
}

#[test]
fn without_a_file_a_node_of_this_host_may_make_its_store() {
    let loaded = load(&sources(None)).unwrap();
    let node = Name::new("host-a").unwrap();
    assert_eq!(loaded.config, Config { create_store: true, ..Config::new(node) });
    assert_eq!(loaded.config.store, Path::new("./baton-data"));
    assert_eq!(loaded.config.listen[0].to_string(), "127.0.0.1:7470");
    assert_eq!(loaded.log, LogSettings::default());
}

#[test]
fn with_a_file_a_missing_store_is_not_created() {
    assert!(!from_text("").unwrap().config.create_store);
}

#[test]
fn the_shipped_file_is_valid_as_it_is_and_changes_nothing() {
    let shipped = from_text(include_str!("../../systemd/baton.toml")).unwrap();
    assert_eq!(shipped, from_text("").unwrap());
}

#[test]
fn the_shipped_file_has_every_key_with_its_default() {
    let (text, count) = shipped_file();
    let loaded = from_text(&text).unwrap();
    let expected = Config {
        mode: Some(Mode::Database),
        advertise: Some("broker-a:7470".to_owned()),
        store_id: "019ab5c2-7d1e-7a44-9c0f-3f1b2a6d5e88".parse().ok(),
        group_defaults: GroupSettings {
            dead_letter: Some(Name::new("dead-letters").unwrap()),
            ..GroupSettings::default()
        },
        ..Config::new(Name::new("broker-a").unwrap())
    };
    assert_eq!(
        loaded,
        Loaded { config: expected, log: LogSettings::default(), lowered: None, misspelt: Vec::new() }
    );
    let missing: Vec<String> = Key::all()
        .filter(|key| !text.lines().any(|line| line.starts_with(&format!("{} = ", key.place().1))))
        .map(|key| key.name())
        .collect();
    assert_eq!(missing, Vec::<String>::new());
    for row in LIMITS {
        assert!(text.contains(&format!("# When it is reached: {}.\n", row.when_hit)), "{}", row.name);
    }
    assert_eq!(count, Key::all().count());
}

#[test]
fn flags_override_variables_and_variables_override_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("baton.toml");
    fs::write(&path, "node = \"file\"\nstore = \"/file\"\nmode = \"database\"\n[limits]\ntopics_max = 5\n")
        .unwrap();
    let variables = [
        ("BATON_NODE", "variable"),
        ("BATON_STORE", "/variable"),
        ("BATON_LISTEN", "127.0.0.1:1, [::1]:2"),
        ("BATON_LIMITS_TOPICS_MAX", "7"),
        ("BATON_GROUP_DEFAULTS_LEASE", "5s"),
        ("BATON_PORT_7470_TCP_ADDR", "ignored"),
    ];
    let loaded = load(&Sources {
        environment: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        flags: vec![flag("--node", "node", "flag"), flag("--mode", "mode", "file")],
        ..sources(Some(&path))
    })
    .unwrap()
    .config;
    assert_eq!(loaded.node.as_str(), "flag");
    assert_eq!(loaded.store, Path::new("/variable"));
    assert_eq!(loaded.mode, Some(Mode::File));
    assert_eq!(loaded.listen.len(), 2);
    assert_eq!(loaded.limits.topics_max, 7);
    assert_eq!(loaded.group_defaults.lease_ms, 5_000);
}

#[test]
fn floating_addresses_are_one_or_a_list() {
    let with = |address: &str| {
        let text = format!(
            "listen = '[::]'\nallow_anonymous = true\nadvertise = 'a'\nadmin = '0.0.0.0'\n[address]\n\
             interface = 'eth0'\nannounce_interval = '1s'\naddress = {address}"
        );
        from_text(&text).unwrap().config
    };
    let shown = |config: Config| -> Vec<String> {
        config.address.addresses.iter().map(ToString::to_string).collect()
    };
    assert_eq!(shown(with("'192.0.2.10'")), ["192.0.2.10/32"]);
    assert_eq!(shown(with("['192.0.2.10/24', '2001:db8::10/64']")), ["192.0.2.10/24", "2001:db8::10/64"]);
    assert_eq!(shown(with("[]")), Vec::<String>::new());
    let config = with("''");
    assert_eq!(
        (config.address.announce_interval, config.address.interface.as_str()),
        (Duration::from_secs(1), "eth0")
    );
    assert_eq!(config.admin.unwrap().to_string(), "0.0.0.0:7471");
}

#[test]
fn values_are_read_with_their_units() {
    let text = "poll_interval = '250ms'\nlisten = ['127.0.0.1:1', '127.0.0.1:2']\nsegment_bytes = '1MiB'\n\
                [limits]\nbody_bytes_max = '1MiB'\nproducer_idle_seconds = '1h'\nheader_bytes_max = 0x1000\n\
                [group_defaults]\nbackoff_multiplier = 1.5\nbackoff_jitter = 0\npolicy = 'fair'";
    let config = from_text(text).unwrap().config;
    assert_eq!(config.poll_interval, Duration::from_millis(250));
    assert_eq!(config.segment_bytes, 1 << 20);
    assert_eq!(config.limits.producer_idle_seconds, 3_600);
    assert_eq!(config.limits.header_bytes_max, 4_096);
    assert_eq!(config.group_defaults.backoff.multiplier_percent, 150);
    assert_eq!(config.group_defaults.policy, crate::model::settings::Policy::Fair);
}

#[test]
fn an_unknown_key_is_answered_with_its_line_and_the_right_one() {
    for (text, error) in [
        (
            "mode = 'file'\n\npol_interval = '1s'",
            "baton.toml:3: there is no setting \"pol_interval\"; did you mean \"poll_interval\"?",
        ),
        (
            "[limits]\nbody_max = 5",
            "baton.toml:2: there is no setting \"limits.body_max\"; did you mean \"limits.body_bytes_max\"?",
        ),
        (
            "[limit]\ntopics_max = 5",
            "baton.toml:2: there is no setting \"limit.topics_max\"; did you mean \"limits.topics_max\"?",
        ),
        (
            "topics_max = 5",
            "baton.toml:1: there is no setting \"topics_max\"; did you mean \"limits.topics_max\"?",
        ),
        (
            "[colours]\nbackground = 5",
            "baton.toml:2: there is no setting \"colours.background\"; systemd/baton.toml has all there are",
        ),
    ] {
        assert_eq!(error_of(text), error);
    }
}

#[test]
fn a_wrong_value_is_answered_with_its_line_and_what_it_should_be() {
    for (text, error) in [
        (
            "poll_interval = 100",
            "baton.toml:1: poll_interval: \"100\" is not a duration with a unit, such as 100ms, 30s or 5m",
        ),
        ("mode = 'sqlite'", "baton.toml:1: mode: \"sqlite\" is not one of database, file"),
        (
            "\nmode = ['file', 'file']",
            "baton.toml:2: mode: \"file, file\" is not one value; it is not a list",
        ),
        ("[limits]\ntopics_max = -1", "baton.toml:2: limits.topics_max: \"-1\" is not a whole number"),
        ("auto_create = 'yes'", "baton.toml:1: auto_create: \"yes\" is not true or false"),
        (
            "listen = 'localhost:7470'",
            "baton.toml:1: listen: \"localhost:7470\" is not an address IP:PORT, such as 127.0.0.1:7470 or [::1]:7470",
        ),
        ("node = 1979-05-27", "baton.toml:1: node: \"datetime\" is not a text, a number, or true or false"),
    ] {
        assert_eq!(error_of(text), error);
    }
    assert!(error_of("node = 'a b'").contains("character ' ' is not allowed"));
    assert!(error_of("a = 1\nb = ").starts_with("baton.toml:2: "));
    assert!(error_of("node = 'a'\nnode = 'b'").starts_with("baton.toml:2: "));
}

#[test]
fn contradictions_are_answered_with_what_to_do() {
    for (text, error) in [
        ("listen = '0.0.0.0:7470'", "set allow_anonymous = true"),
        ("listen = '[::]:7470'\nadvertise = 'a:1'", "set allow_anonymous = true"),
        (
            "listen = '0.0.0.0:7470'\nallow_anonymous = true",
            "baton.toml:1: listen: clients cannot connect to 0.0.0.0:7470",
        ),
        ("advertise = '0.0.0.0:7470'", "set `advertise` to the address under which they reach this node"),
        ("listen = '127.0.0.1:0'\nadvertise = 'a'", "baton.toml:2: advertise: clients cannot connect to a:0"),
        ("listen = []", "there is no address to listen on"),
        ("admin = '127.0.0.1:7470'", "baton.toml:1: admin: 127.0.0.1:7470 and 127.0.0.1:7470 overlap"),
        (
            "[address]\naddress = '192.0.2.10'",
            "address.interface: there are floating addresses; name the interface",
        ),
        (
            "[address]\naddress = '192.0.2.10'\ninterface = 'eth0'",
            "baton.toml:2: address.address: nobody would be served at 192.0.2.10; listen on all addresses",
        ),
        (
            "listen = '0.0.0.0'\nallow_anonymous = true\nadvertise = 'a'\n[address]\naddress = '2001:db8::10'\n\
             interface = 'eth0'",
            "nobody would be served at 2001:db8::10",
        ),
        (
            "listen = '0.0.0.0'\nallow_anonymous = true\nadvertise = '192.0.2.10'\n[address]\n\
             address = '192.0.2.10/24'\ninterface = 'eth0'",
            "baton.toml:3: advertise: 192.0.2.10 is a floating address, which the two nodes share",
        ),
        (
            "listen = '[::]'\nallow_anonymous = true\nadvertise = 'a'\n[address]\ninterface = 'eth0'\n\
             address = ['192.0.2.10/24', '192.0.2.10/32']",
            "address.address: 192.0.2.10 stands there twice",
        ),
        ("[address]\nannounce_interval = '1ms'", "1ms is out of bounds; set it from 100ms to 1h"),
        ("listen = ['127.0.0.1:7470', '127.0.0.1:7470']", "127.0.0.1:7470 and 127.0.0.1:7470 overlap"),
        ("listen = ['0.0.0.0:7470', '127.0.0.1:7470']", "leave one of them out"),
        ("store = ''", "the path is empty"),
        ("poll_interval = '0s'", "baton.toml:1: poll_interval: 0s is out of bounds; set it from 1ms to 1m"),
        ("heartbeat = '9ms'", "heartbeat: 9ms is out of bounds; set it from 10ms to 1m"),
        ("segment_bytes = 5", "segment_bytes: 5 is out of bounds; set it from 64KiB to 4GiB"),
        (
            "[limits]\ntopics_max = 0",
            "baton.toml:2: limits.topics_max: 0 is out of bounds; set it from 1 to 16000000",
        ),
        (
            "[limits]\nbody_bytes_max = '70MiB'\nframe_bytes_max = '70MiB'",
            "raise limits.frame_bytes_max to 71MiB",
        ),
        ("[limits]\nheader_bytes_max = '1MiB'\nframe_bytes_max = '64MiB'", "or lower limits.body_bytes_max"),
        (
            "[group_defaults]\nbackoff_initial = '2m'",
            "the first wait 2m is longer than group_defaults.backoff_maximum 1m",
        ),
        ("[group_defaults]\nbackoff_jitter = 1.5", "1.50 is out of bounds; set it from 0.00 to 1.00"),
        (
            "[group_defaults]\nlease = '99ms'",
            "group_defaults.lease: 99ms is out of bounds; set it from 100ms to 30days",
        ),
        ("[group_defaults]\nbackoff_maximum = '31d'", "26m 24s is out of bounds; set it from 0s to 30days"),
        (
            "[group_defaults]\nbackoff_multiplier = 100.01",
            "100.01 is out of bounds; set it from 1.00 to 100.00",
        ),
    ] {
        let found = error_of(text);
        assert!(found.contains(error), "{text}: {found}");
    }
}

#[test]
fn an_error_names_the_flag_or_variable_that_made_it() {
    let wrong = Sources { flags: vec![flag("--mode", "mode", "x")], ..sources(None) };
    assert!(load(&wrong).unwrap_err().to_string().starts_with("--mode: mode: \"x\" is not"));
    let environment = vec![("BATON_LISTEN".to_owned(), "0.0.0.0:1".to_owned())];
    let open = Sources { environment, ..sources(None) };
    assert!(
        load(&open).unwrap_err().to_string().starts_with("BATON_LISTEN: listen: 0.0.0.0:1 can be reached")
    );
}

/// The default was ten times what most systems let a process have open, and a node without a file left ends.
#[test]
fn connections_fit_into_the_open_files_or_the_node_does_not_start() {
    let within = |text: &str, open_files_max| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("baton.toml");
        fs::write(&path, text).unwrap();
        let loaded = load(&Sources { open_files_max, ..sources(Some(&path)) });
        loaded.map_err(|error| error.to_string())
    };
    let configured = "[limits]\nconnections_max = 10000";
    for (text, most) in [("", None), ("", Some(10_162)), (configured, None), (configured, Some(10_162))] {
        let loaded = within(text, most).unwrap();
        assert_eq!((loaded.config.limits.connections_max, loaded.lowered), (10_000, None), "{text} {most:?}");
    }
    let loaded = within("", Some(1024)).unwrap();
    assert_eq!(loaded.config.limits.connections_max, 862);
    assert!(loaded.config.limits.open_files() <= 1024);
    let lowered = loaded.lowered.unwrap().to_string();
    assert!(lowered.contains("from its default 10000 to 862") && lowered.contains("raise that to 10162"));
    let error = within(configured, Some(1024)).unwrap_err();
    assert!(
        error.ends_with(
            "baton.toml:2: limits.connections_max: 10000 connections need 10162 open files and the process may have \
             1024; raise that (LimitNOFILE= of the service, or ulimit -n) or lower it to 862"
        ),
        "{error}"
    );
    let error = within("", Some(100)).unwrap_err();
    assert!(
        error.starts_with("default: limits.connections_max: ") && error.ends_with("ulimit -n)"),
        "{error}"
    );
    assert_eq!(within("", Some(166)).unwrap().config.limits.connections_max, 4);
}

#[test]
fn a_host_whose_name_is_no_name_is_told_to_name_the_node() {
    let nameless = Sources { hostname: "größe".to_owned(), ..sources(None) };
    assert!(load(&nameless).unwrap_err().to_string().contains("set `node` or --node"));
    assert!(load(&Sources { flags: vec![flag("--node", "node", "a")], ..nameless }).is_ok());
}

/// A node on another port than 7470 sent its clients to 7470, where the other node may listen.
#[test]
fn an_address_for_clients_without_a_port_has_that_of_the_first_listen() {
    for (advertise, address) in [
        ("127.0.0.1", "127.0.0.1:27501"),
        ("broker-a", "broker-a:27501"),
        ("::1", "[::1]:27501"),
        ("broker-a:7", "broker-a:7"),
    ] {
        for text in [
            format!("advertise = '{advertise}'\nlisten = ['127.0.0.1:27501', '127.0.0.1:2']"),
            format!("listen = '127.0.0.1:27501'\nadvertise = '{advertise}'"),
        ] {
            assert_eq!(from_text(&text).unwrap().config.advertise.as_deref(), Some(address), "{text}");
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = load(&sources(Some(Path::new("/nowhere/baton.toml")))).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the configuration /nowhere/baton.toml: "), "{error}");
}

#[test]
fn listening_beyond_loopback_is_possible_when_it_is_meant() {
    let text = "listen = '0.0.0.0:7470'\nallow_anonymous = true\nadvertise = 'broker-a'";
    assert_eq!(from_text(text).unwrap().config.advertise.as_deref(), Some("broker-a:7470"));
    let ports = "listen = ['127.0.0.1:0', '127.0.0.1:0', '[::1]:7470', '127.0.0.1:7470']";
    assert!(from_text(ports).is_ok());
}
