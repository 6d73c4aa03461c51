//! What is done with whole stores on the command line, and by nodes that start: conversion, backup, and looking at
//! stores that nobody serves.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use cli_support::{Answer, command, free_address, run, signal, wait_for_end, wait_until};
use rustix::process::Signal;
use tempfile::TempDir;

/// A directory for a store and others, and the nodes on it.
struct World {
    dir: TempDir,
    servers: [String; 2],
    nodes: Vec<Child>,
}

impl World {
    fn new() -> Self {
        let servers = [free_address(), free_address()];
        Self { dir: tempfile::tempdir().unwrap(), servers, nodes: Vec::new() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn store(&self) -> String {
        self.path("store")
    }

    /// Starts a node and waits until it has `role`.
    fn start(&mut self, number: usize, mode: &str, role: &str) {
        self.start_on(number, &self.store(), &[("BATON_MODE", mode)]);
        self.wait_for(number, role);
    }

    fn start_on(&mut self, number: usize, store: &str, environment: &[(&str, &str)]) {
        let name = ["a", "b"][number];
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path(number)).unwrap();
        let mut node =
            command(&["serve", "--node", name, "--store", store, "--listen", &self.servers[number]]);
        node.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(log);
        self.nodes.push(node.spawn().unwrap());
    }

    fn wait_for(&self, number: usize, role: &str) {
        wait_until(|| {
            let answer = run(&["status", "--json", "--server", &self.servers[number]]);
            answer.code == Some(0) && answer.json()[0]["role"] == role
        });
    }

    fn log_path(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("{number}.log"))
    }

    fn log(&self, number: usize) -> String {
        std::fs::read_to_string(self.log_path(number)).unwrap()
    }

    fn mode(&self, number: usize) -> String {
        run(&["status", "--json", "--server", &self.servers[number]]).json()[0]["mode"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Stops the node that was started last.
    fn stop(&mut self) {
        let mut node = self.nodes.pop().unwrap();
        signal(&node, Signal::TERM);
        assert!(wait_for_end(&mut node).success());
    }

    fn kill(&mut self) {
        let mut node = self.nodes.pop().unwrap();
        node.kill().unwrap();
        node.wait().unwrap();
    }

    /// Runs a command that talks to the nodes.
    fn run(&self, args: &[&str]) -> Answer {
        let mut command = command(args);
        command.env("BATON_SERVER", self.servers.join(","));
        cli_support::run_with_input(&mut command, b"")
    }

    fn publish(&self, from: usize, to: usize) {
        let bodies: Vec<String> = (from..to).map(|number| format!("message {number}")).collect();
        let mut args = vec!["publish", "orders"];
        args.extend(bodies.iter().map(String::as_str));
        self.run(&args).ok();
    }

    fn consume(&self, group: &str, count: usize) -> Vec<String> {
        let answer = self.run(&[
            "consume",
            "orders",
            "--group",
            group,
            "--count",
            &count.to_string(),
            "--idle-timeout",
            "20s",
        ]);
        answer.ok().lines().map(str::to_owned).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn bodies(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|number| format!("message {number}")).collect()
}

#[test]
fn a_pair_that_is_started_with_another_mode_converts_its_store_and_goes_on() {
    let mut world = World::new();
    world.start(0, "file", "master");
    world.start(1, "file", "standby");
    world.publish(0, 20);
    assert_eq!(world.consume("billing", 5), bodies(0, 5));
    world.stop();
    world.stop();
    for (round, mode) in ["database", "file", "database"].into_iter().enumerate() {
        let next = 20 + 10 * round;
        world.start(0, mode, "master");
        world.start(1, mode, "standby");
        assert_eq!([world.mode(0), world.mode(1)], [mode, mode]);
        assert!(world.log(0).contains("store converted"), "{}", world.log(0));
        world.publish(next, next + 10);
        assert_eq!(world.consume("billing", 5), bodies(5 + 5 * round, 10 + 5 * round));
        world.stop();
        world.stop();
    }
    assert_eq!(
        std::fs::read_dir(world.dir.path().join("store"))
            .unwrap()
            .filter(|entry| { entry.as_ref().unwrap().file_name() == "journal" })
            .count(),
        0
    );
}

#[test]
fn a_takeover_never_converts_and_says_that_the_modes_differ() {
    let mut world = World::new();
    world.start(0, "file", "master");
    world.start(1, "database", "standby");
    world.publish(0, 5);
    world.run(&["group", "create", "orders", "later"]).ok();
    world.nodes.swap(0, 1);
    world.kill();
    world.wait_for(1, "master");
    assert_eq!(world.mode(1), "file");
    assert!(world.log(1).contains("served as it is"), "{}", world.log(1));
    // A planned one does not either, and a start after a crash neither.
    world.start(0, "database", "standby");
    world.run(&["switchover"]).ok();
    world.wait_for(0, "master");
    assert_eq!(world.mode(0), "file");
    world.kill();
    world.nodes.clear();
    world.start(0, "database", "master");
    assert_eq!(world.mode(0), "file");
    assert!(world.log(0).contains("the last master has not released it"), "{}", world.log(0));
    assert_eq!(world.consume("late", 5), bodies(0, 5));
    // Once it has ended cleanly, a start does.
    world.stop();
    world.start(0, "database", "master");
    assert_eq!(world.mode(0), "database");
    assert_eq!(world.consume("later", 5), bodies(0, 5));
}

#[test]
fn a_store_keeps_its_mode_where_none_is_asked_for() {
    let mut world = World::new();
    world.start(0, "file", "master");
    world.publish(0, 3);
    world.stop();
    let store = world.store();
    world.start_on(0, &store, &[]);
    world.wait_for(0, "master");
    assert_eq!(world.mode(0), "file");
}

#[test]
fn a_store_is_converted_on_the_command_line_while_no_node_serves_it() {
    let mut world = World::new();
    let store = world.store();
    world.start(0, "database", "master");
    world.publish(0, 10);
    let refused = run(&["store", "convert", "--store", &store, "--to", "file"]).failed(1);
    assert!(refused.contains("stop both nodes"), "{refused}");
    // Also after a kill: the process is known to be dead.
    world.kill();
    let converted = run(&["store", "convert", "--store", &store, "--to", "file", "--keep", "--json"]).json();
    assert_eq!((&converted[0]["mode"], &converted[0]["messages"]), (&"file".into(), &10.into()));
    let again = run(&["store", "convert", "--store", &store, "--to", "file"]).failed(1);
    assert!(again.contains("in file mode already"), "{again}");
    let store_path = std::path::Path::new(&store);
    assert!(store_path.join("kept-database-00000000000000000002").is_dir());
    world.start(0, "file", "master");
    assert_eq!(world.consume("billing", 10), bodies(0, 10));
    let nothing = run(&["store", "convert", "--store", &world.path("none"), "--to", "file"]).failed(1);
    assert!(
        nothing.contains("does not exist")
            || nothing.contains("no such directory")
            || nothing.contains("not")
    );
}

/// Kills a conversion again and again, each time a little later, until one comes to its end; nothing may be missing.
#[test]
fn a_conversion_that_is_killed_again_and_again_loses_nothing() {
    const COUNT: usize = 30_000;
    let mut world = World::new();
    let store = world.store();
    world.start(0, "file", "master");
    let lines = world.path("lines");
    let text: Vec<String> = (0..COUNT).map(|number| format!("{number:0200}")).collect();
    std::fs::write(&lines, text.join("\n")).unwrap();
    world.run(&["publish", "orders", "--lines", &lines]).ok();
    world.stop();
    let mut kills = 0;
    for to in ["database", "file"] {
        for wait_ms in (0..).step_by(40) {
            let began = Instant::now();
            let mut convert = command(&["store", "convert", "--store", &store, "--to", to]);
            let mut child = convert.stdout(Stdio::null()).spawn().unwrap();
            let status = loop {
                match child.try_wait().unwrap() {
                    Some(status) => break Some(status),
                    None if began.elapsed() > Duration::from_millis(wait_ms) => break None,
                    None => std::thread::yield_now(),
                }
            };
            if status.is_some_and(|status| status.success()) {
                break;
            }
            if status.is_none() {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
            }
            // One that was killed after the switch has converted all the same.
            let mut text = String::new();
            if status.is_some() {
                std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
                assert!(text.contains("already"), "{text}");
                break;
            }
            assert!(kills < 200, "it never comes to its end");
        }
    }
    assert!(kills > 2, "{kills}");
    world.start(0, "file", "master");
    let answer = world.run(&[
        "consume",
        "orders",
        "--group",
        "all",
        "--count",
        &COUNT.to_string(),
        "--idle-timeout",
        "20s",
    ]);
    let read: Vec<String> = answer.ok().lines().map(str::to_owned).collect();
    assert!(read == text, "{} messages", read.len());
}

/// Everything of a directory that must not change.
fn contents(dir: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(dir)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.clone(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_backup_of_a_running_master_is_as_of_one_moment_and_can_be_restored_in_both_modes() {
    for (mode, other) in [("file", "database"), ("database", "file")] {
        let mut world = World::new();
        world.start(0, mode, "master");
        world.publish(0, 30);
        world.run(&["group", "create", "orders", "rest"]).ok();
        assert_eq!(world.consume("billing", 10), bodies(0, 10));
        let (backup, archive) = (world.path("backup"), world.path("archive"));
        let made = world.run(&["store", "backup", &backup, "--json"]).json();
        assert_eq!((&made[0]["mode"], &made[0]["messages"]), (&mode.into(), &30.into()));
        let streamed = world.run(&["store", "backup", "-"]);
        assert!(streamed.stderr.contains("backed up"), "{streamed:?}");
        assert_eq!(streamed.code, Some(0));
        std::fs::write(&archive, &streamed.stdout).unwrap();
        // What comes later is not in them, and nothing is overwritten.
        world.publish(30, 40);
        let refused = world.run(&["store", "backup", &backup]).failed(1);
        assert!(refused.contains("backup"), "{refused}");
        world.stop();

        for (from, to, flags) in [
            (&backup, "restored-1", &[][..]),
            (&backup, "restored-2", &["--mode", other]),
            (&archive, "restored-3", &[]),
            (&archive, "restored-4", &["--mode", other]),
        ] {
            let to = world.path(to);
            let before = contents(&backup);
            let restored = run(&[&["store", "restore", from, &to, "--json"], flags].concat()).json();
            assert!(contents(&backup) == before, "the backup is only read");
            let wanted = if flags.is_empty() { mode } else { other };
            assert_eq!(restored[0]["mode"], wanted);
            assert_ne!(restored[0]["store_id"], made[0]["store_id"]);
            let again = run(&["store", "restore", from, &to]).failed(1);
            assert!(again.contains("restored-"), "{again}");
            world.start_on(0, &to, &[]);
            world.wait_for(0, "master");
            assert_eq!(world.mode(0), wanted);
            assert_eq!(world.consume("billing", 5), bodies(10, 15));
            assert_eq!(world.consume("rest", 30), bodies(0, 30));
            world.publish(50, 55);
            assert_eq!(world.consume("rest", 5), bodies(50, 55));
            world.stop();
        }
        // A backup in a directory is a store by itself.
        world.start_on(0, &backup, &[]);
        world.wait_for(0, "master");
        assert_eq!(world.consume("rest", 30), bodies(0, 30));
        world.stop();
    }
}

#[test]
fn a_store_that_no_node_serves_is_backed_up_from_its_files() {
    let mut world = World::new();
    let store = world.store();
    world.start(0, "database", "master");
    world.publish(0, 10);
    let refused = run(&["store", "backup", &world.path("b"), "--store", &store]).failed(1);
    assert!(refused.contains("a node serves this store"), "{refused}");
    assert!(!std::path::Path::new(&world.path("b")).exists());
    world.kill();
    let before = contents(&store);
    run(&["store", "backup", &world.path("b"), "--store", &store]).ok();
    let archive = run(&["store", "backup", "-", "--store", &store]);
    assert_eq!(archive.code, Some(0));
    assert!(contents(&store) == before, "what is backed up is only read");
    let mut restore = command(&["store", "restore", "-", &world.path("c")]);
    let restored = cli_support::run_with_input(&mut restore, &archive.stdout).ok();
    assert!(restored.contains("10 messages"), "{restored}");
    // Cut off or changed anywhere, nothing of it becomes a store.
    for bad in [&archive.stdout[..archive.stdout.len() - 7], &[&archive.stdout[..], b"x"].concat()] {
        let target = world.path("d");
        let mut restore = command(&["store", "restore", "-", &target]);
        let refused = cli_support::run_with_input(&mut restore, bad).failed(1);
        assert!(refused.contains("nothing of this one counts"), "{refused}");
        let left: Vec<_> =
            std::fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["baton.lock"]);
    }
    let mut restore = command(&["store", "restore", "-", &world.path("e")]);
    let refused = cli_support::run_with_input(&mut restore, b"something else altogether").failed(1);
    assert!(refused.contains("no archive"), "{refused}");
    assert!(!std::path::Path::new(&world.path("e")).exists());
    let refused = run(&["store", "restore", &world.path("nowhere"), &world.path("f")]).failed(1);
    assert!(refused.contains("nowhere"), "{refused}");
}

/// A restore that was killed leaves files that are no store: a node that finds them must not found one beside them.
#[test]
fn a_restore_that_was_killed_is_no_store() {
    let mut world = World::new();
    world.start(0, "file", "master");
    world.publish(0, 10);
    world.run(&["store", "backup", &world.path("backup")]).ok();
    world.stop();
    let target = world.path("half");
    run(&["store", "restore", &world.path("backup"), &target]).ok();
    // As it was before the last step.
    std::fs::remove_file(format!("{target}/control")).unwrap();
    std::fs::remove_dir_all(format!("{target}/epochs")).unwrap();
    world.start_on(0, &target, &[]);
    let mut node = world.nodes.pop().unwrap();
    assert_eq!(wait_for_end(&mut node).code(), Some(1));
    assert!(world.log(0).contains("journal") || !world.log(0).is_empty(), "{}", world.log(0));
    let refused = run(&["store", "restore", &world.path("backup"), &target]).failed(1);
    assert!(refused.contains("half") && refused.contains("broken off"), "{refused}");
    let refused = run(&["store", "restore", &world.path("backup"), &world.store()]).failed(1);
    assert!(refused.contains("holds a store already, and nothing is overwritten"), "{refused}");
}

/// A backup into a directory said that there was no archive, and ended with 1, when no master was there.
#[test]
fn a_backup_without_a_master_says_so_and_makes_nothing() {
    let world = World::new();
    let target = world.path("backup");
    for to in [target.as_str(), "-"] {
        let refused =
            run(&["store", "backup", to, "--server", "127.0.0.1:1", "--timeout", "100ms"]).failed(3);
        assert!(refused.contains("no master found"), "{refused}");
    }
    assert!(!std::path::Path::new(&target).exists());
}

/// A damaged manifest or control file kept `verify` from saying anything but that `verify` would list the damage, and
/// one that was missing or zeroed kept every node away from a store that `verify` called whole.
#[test]
fn damage_beside_the_records_is_listed() {
    let mut world = World::new();
    let store = world.store();
    world.start(0, "file", "master");
    world.publish(0, 10);
    world.stop();
    let manifest = format!("{store}/manifest/00000000000000000001");
    let control = format!("{store}/control");
    let flip = |path: &str, at: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let listed = |file: &str, what: &str| {
        let listed = run(&["store", "verify", "--store", &store, "--json"]);
        assert_eq!(listed.code, Some(1), "{listed:?}");
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        let damage = &listed["damages"][0];
        assert_eq!(damage["file"], file);
        assert!(damage["what"].as_str().unwrap().contains(what), "{damage}");
        listed["messages"].as_u64().unwrap()
    };
    for (path, at, what, readable) in
        [(&manifest, 60, "bad checksum", 10), (&control, 34, "counts as one that was not released", 10)]
    {
        flip(path, at);
        assert_eq!(listed(path, what), readable, "{path}");
        flip(path, at);
    }
    flip(&control, 34);
    let claim = format!("{store}/epochs/00000000000000000001");
    flip(&claim, 34);
    assert_eq!(listed(&control, "no node serves the store"), 10);
    flip(&claim, 34);
    flip(&control, 34);
    let whole = std::fs::read(&control).unwrap();
    for lost in [None, Some(vec![0; whole.len()])] {
        match lost {
            None => std::fs::remove_file(&control).unwrap(),
            Some(zeros) => std::fs::write(&control, zeros).unwrap(),
        }
        assert_eq!(listed(&control, "names no store"), 10);
        run(&["serve", "--store", &store, "--listen", &world.servers[0]]).failed(1);
    }
    std::fs::write(&control, whole).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    assert_eq!(listed(&format!("{store}/manifest"), "missing"), 10);
}

/// Without a readable manifest neither verify nor salvage did anything, though every message was there.
#[test]
fn a_store_without_a_readable_manifest_is_salvaged_by_its_files() {
    for mode in ["file", "database"] {
        let mut world = World::new();
        let store = world.store();
        world.start(0, mode, "master");
        world.publish(0, 10);
        world.kill();
        world.start(0, mode, "master");
        world.publish(10, 15);
        assert_eq!(world.consume("billing", 4), bodies(0, 4));
        world.kill();
        let newest = contents(&format!("{store}/manifest")).pop().unwrap().0;
        std::fs::write(&newest, "no manifest\n").unwrap();
        let listed = run(&["store", "verify", "--store", &store]);
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert_eq!(listed.code, Some(1), "{listed:?}");
        assert!(text.contains("not a manifest") && text.contains("was guessed"), "{text}");
        assert!(text.contains("readable: 15 messages"), "{text}");
        std::fs::remove_dir_all(format!("{store}/manifest")).unwrap();
        let salvaged = world.path("salvaged");
        let told = run(&["store", "salvage", &store, &salvaged]).ok();
        assert!(told.contains("was guessed") && told.contains(mode), "nothing is lost: {told}");
        world.start_on(0, &salvaged, &[]);
        world.wait_for(0, "master");
        assert_eq!(world.consume("billing", 11), bodies(4, 15), "{mode}");
    }
}

/// A restored journal has its state in checkpoints alone. Without them an empty store was passed off as what is left,
/// with every message in its packs.
#[test]
fn a_journal_without_checkpoints_and_beginning_is_salvaged_from_segments_and_packs() {
    let mut world = World::new();
    world.start(0, "file", "master");
    world.publish(0, 10);
    world.stop();
    let restored = world.path("restored");
    run(&["store", "restore", &world.store(), &restored]).ok();
    world.start_on(0, &restored, &[]);
    world.wait_for(0, "master");
    world.publish(10, 15);
    world.run(&["publish", "zebras", "one", "two"]).ok();
    world.run(&["group", "create", "zebras", "readers"]).ok();
    world.kill();
    for (path, _) in contents(&format!("{restored}/journal")) {
        if path.file_name().unwrap().to_str().unwrap().starts_with("checkpoint") {
            std::fs::write(path, "no checkpoint").unwrap();
        }
    }
    let listed = run(&["store", "verify", "--store", &restored]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(listed.code, Some(1), "{listed:?}");
    assert!(
        text.contains("no checkpoint can be read") && text.contains("it is called salvaged-topic-"),
        "{text}"
    );
    assert!(text.contains("readable: 17 messages"), "{text}");
    let salvaged = world.path("salvaged");
    run(&["store", "salvage", &restored, &salvaged]).failed(4);
    world.start_on(0, &salvaged, &[]);
    world.wait_for(0, "master");
    let made_up = text.split("called ").nth(1).unwrap().split_whitespace().next().unwrap();
    let consume = |topic: &str, group: &str, count: &str| {
        world.run(&["consume", topic, "--group", group, "--count", count, "--idle-timeout", "20s"]).ok()
    };
    assert_eq!(consume(made_up, "billing", "15").lines().collect::<Vec<_>>(), bodies(0, 15));
    assert_eq!(consume("zebras", "readers", "2"), "one\ntwo\n");
    world.publish(20, 21);
}

/// Where segments and packs are gone too, the list says so, and no empty store is made.
#[test]
fn a_journal_without_state_and_messages_is_refused() {
    let mut world = World::new();
    world.start(0, "file", "master");
    world.publish(0, 10);
    world.stop();
    let restored = world.path("restored");
    run(&["store", "restore", &world.store(), &restored]).ok();
    for (path, _) in contents(&format!("{restored}/journal")) {
        std::fs::write(path, "nothing of a journal").unwrap();
    }
    let listed = run(&["store", "verify", "--store", &restored]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(listed.code, Some(1), "{listed:?}");
    assert!(text.contains("no checkpoint can be read") && text.contains(".pack"), "{text}");
    let new = world.path("new");
    let refused = run(&["store", "salvage", &restored, &new]).failed(1);
    assert!(refused.contains("restore a backup"), "{refused}");
    assert!(!std::path::Path::new(&new).exists());
}

/// The journal of a young store goes back to its beginning, so it can do without its checkpoints.
#[test]
fn a_young_journal_is_salvaged_without_its_checkpoints() {
    let mut world = World::new();
    let store = world.store();
    for number in 0..3 {
        world.start(0, "file", "master");
        world.publish(number * 5, number * 5 + 5);
        world.stop();
    }
    let mut damaged = 0;
    for (path, mut bytes) in contents(&format!("{store}/journal")) {
        if path.file_name().unwrap().to_str().unwrap().starts_with("checkpoint") {
            bytes[40] ^= 1;
            std::fs::write(path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let salvaged = world.path("salvaged");
    let told = run(&["store", "salvage", &store, &salvaged]).ok();
    assert!(told.contains("readable: 15 messages"), "{told}");
}

/// One changed byte in the log of a database hid everything behind it, or all of a store that was in its log alone.
#[test]
fn a_database_is_salvaged_across_the_damage_of_its_log() {
    let mut world = World::new();
    let store = world.store();
    world.start(0, "database", "master");
    for number in 0..20 {
        world.publish(number, number + 1);
    }
    // Killed, so that all is in the log.
    world.kill();
    let (path, whole) = contents(&store)
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|e| e == "db-wal"))
        .unwrap();
    let message = whole.windows(10).position(|window| window == b"message 10").unwrap();
    // In the magic, the salts and the checksum of the header, in the first frame, and in one of a message.
    for at in [1, 18, 30, 5_000, message] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let salvaged = world.path(&format!("salvaged-{at}"));
        let before = contents(&store);
        let answer = run(&["store", "salvage", &store, &salvaged]);
        let told = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert_eq!(answer.code, Some(4), "{answer:?}");
        assert!(told.contains("read across its damage"), "{told}");
        assert!(told.contains("readable: 20 messages"), "byte {at}: {told}");
        assert!(contents(&store) == before, "the damaged store is only read");
    }
}

/// The help promised more than a stream said, and an archive that was to be verified was called no directory.
#[test]
fn a_backup_in_a_stream_is_summed_up_and_cannot_be_verified_as_a_directory() {
    let mut world = World::new();
    world.start(0, "file", "master");
    world.publish(0, 10);
    let live = world.run(&["store", "backup", "-", "--json"]);
    world.stop();
    let dead = run(&["store", "backup", "-", "--json", "--store", &world.store()]);
    for answer in [live, dead] {
        assert_eq!(answer.code, Some(0), "{answer:?}");
        let told: serde_json::Value = serde_json::from_str(&answer.stderr).unwrap();
        assert!(told["store_id"].as_str().unwrap().len() == 36, "{told}");
        assert_eq!((&told["mode"], &told["messages"]), (&"file".into(), &10.into()), "{told}");
        let archive = world.path("archive");
        std::fs::write(&archive, answer.stdout).unwrap();
        let refused = run(&["store", "verify", "--store", &archive]).failed(1);
        assert!(refused.contains(&format!("baton store restore {archive} NEW")), "{refused}");
    }
}

/// Changes a byte in every place in the files of a store that holds this text.
fn damage(store: &str, text: &str) -> usize {
    let mut damaged = 0;
    for (path, mut bytes) in contents(store) {
        let places: Vec<usize> = (0..bytes.len().saturating_sub(text.len()))
            .filter(|&at| bytes[at..].starts_with(text.as_bytes()))
            .collect();
        for &at in &places {
            bytes[at] ^= 0x20;
            damaged += 1;
        }
        if !places.is_empty() {
            std::fs::write(&path, bytes).unwrap();
        }
    }
    damaged
}

#[test]
fn damage_is_listed_with_what_it_touches_and_the_rest_is_salvaged() {
    for mode in ["file", "database"] {
        let mut world = World::new();
        let store = world.store();
        world.start(0, mode, "master");
        // Each in a commit of its own.
        for number in 0..20 {
            world.publish(number, number + 1);
        }
        assert_eq!(world.consume("billing", 4), bodies(0, 4));
        let refused = run(&["store", "verify", "--store", &store]).failed(1);
        assert!(refused.contains("a node serves this store"), "{refused}");
        world.stop();
        let whole = run(&["store", "verify", "--store", &store, "--json"]).json();
        assert_eq!(whole[0]["damages"], serde_json::json!([]), "{mode}");

        assert!(damage(&store, "message 7") > 0);
        assert!(damage(&store, "message 12") > 0);
        let before = contents(&store);
        let listed = run(&["store", "verify", "--store", &store, "--json"]);
        assert_eq!(listed.code, Some(1), "{listed:?}");
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        let lost: Vec<_> = listed["damages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|damage| {
                assert!(damage["file"].as_str().unwrap().starts_with(&store), "{damage}");
                (
                    damage["topic"].as_str().unwrap(),
                    damage["first"].as_u64().unwrap(),
                    damage["end"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(lost, [("orders", 7, 8), ("orders", 12, 13)], "{mode}");
        let text = run(&["store", "verify", "--store", &store]);
        assert!(String::from_utf8_lossy(&text.stdout).contains("lost: 1 message of orders, from offset 7"));
        assert!(text.stderr.contains("baton store salvage"), "{}", text.stderr);

        let salvaged = world.path("salvaged");
        let answer = run(&["store", "salvage", &store, &salvaged]);
        let told = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert_eq!(answer.code, Some(4), "{answer:?}");
        assert!(told.contains("from offset 12") && told.contains("is a store in"), "{told}");
        assert!(contents(&store) == before, "the damaged store is only read");
        run(&["store", "verify", "--store", &salvaged]).ok();
        world.start_on(0, &salvaged, &[]);
        world.wait_for(0, "master");
        let rest = [bodies(4, 7), bodies(8, 12), bodies(13, 20)].concat();
        assert_eq!(world.consume("billing", rest.len()), rest, "{mode}");
        world.publish(30, 31);
        assert_eq!(world.consume("billing", 1), bodies(30, 31));
        world.stop();
    }
}

/// A journal whose state cannot be replayed to its end is not served; what was before the damage is salvaged.
#[test]
fn what_was_committed_before_damage_in_a_journal_is_salvaged() {
    let mut world = World::new();
    let store = world.store();
    world.start(0, "file", "master");
    for number in 0..20 {
        world.publish(number, number + 1);
    }
    // Killed, so that all of it must be replayed.
    world.kill();
    let journal = format!("{store}/journal");
    let log = contents(&journal)
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|e| e == "log"))
        .unwrap();
    let (path, mut bytes) = log;
    // Heads stand before the messages of their entry.
    let at = bytes.windows(10).position(|window| window == b"message 10").unwrap();
    bytes[at - 40..at + 10].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    world.start_on(0, &store, &[]);
    let mut node = world.nodes.pop().unwrap();
    assert_eq!(wait_for_end(&mut node).code(), Some(4), "it is not tried again and again");
    assert!(world.log(0).contains("baton store verify"), "{}", world.log(0));
    let listed = run(&["store", "verify", "--store", &store]);
    assert_eq!(listed.code, Some(1));
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(text.contains("byte") && text.contains("what was committed behind it is lost"), "{text}");
    let salvaged = world.path("salvaged");
    run(&["store", "salvage", &store, &salvaged]).failed(4);
    world.start_on(0, &salvaged, &[]);
    world.wait_for(0, "master");
    assert_eq!(world.consume("billing", 10), bodies(0, 10));
}

/// Where a row of the catalog is damaged, what it stood for is lost, and all else is kept.
#[test]
fn what_is_left_of_a_damaged_catalog_is_salvaged() {
    let mut world = World::new();
    let store = world.store();
    world.start(0, "database", "master");
    world.publish(0, 5);
    for topic in ["zebras", "unicorns"] {
        world.run(&["publish", topic, "one", "two"]).ok();
        world.run(&["group", "create", topic, "readers"]).ok();
    }
    world.stop();
    let database =
        contents(&store).into_iter().find(|(path, _)| path.extension().is_some_and(|e| e == "db")).unwrap();
    let (path, mut bytes) = database;
    let at = bytes.windows(8).position(|window| window == b"unicorns").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let listed = run(&["store", "verify", "--store", &store]);
    assert_eq!(listed.code, Some(1));
    assert!(String::from_utf8_lossy(&listed.stdout).contains("table topic"), "{listed:?}");
    let salvaged = world.path("salvaged");
    let answer = run(&["store", "salvage", &store, &salvaged]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    let told = String::from_utf8_lossy(&answer.stdout);
    assert!(told.contains("is lost with its topic"), "{told}");
    world.start_on(0, &salvaged, &[]);
    world.wait_for(0, "master");
    assert_eq!(world.consume("billing", 5), bodies(0, 5));
    let zebras =
        world.run(&["consume", "zebras", "--group", "readers", "--count", "2", "--idle-timeout", "20s"]);
    assert_eq!(zebras.ok(), "one\ntwo\n");
}

#[test]
fn what_is_in_a_store_is_dumped_and_summed_up() {
    let mut world = World::new();
    let store = world.store();
    world.start(0, "database", "master");
    world.publish(0, 10);
    let flags = ["--key", "k", "--header", "a=b", "--producer", "shop"];
    world.run(&[&["publish", "other", "with \"quotes\""], &flags[..]].concat()).ok();
    world.run(&["group", "create", "orders", "slow"]).ok();
    assert_eq!(world.consume("fast", 6), bodies(0, 6));
    let archive = world.run(&["store", "backup", "-"]).stdout;
    let refused = run(&["store", "dump", &store]).failed(1);
    assert!(refused.contains("a node serves this store"), "{refused}");
    let served = world.run(&["store", "stats", "--json"]).json();
    let text = world.run(&["store", "stats"]).ok();
    assert!(text.contains("slow") && !text.contains(".db"), "{text}");
    world.stop();

    let dumped = run(&["store", "dump", &store, "--json"]).json();
    let of_archive =
        cli_support::run_with_input(&mut command(&["store", "dump", "-", "--json"]), &archive).json();
    assert_eq!(dumped, of_archive);
    assert_eq!(dumped.len(), 11);
    assert_eq!(
        (&dumped[3]["topic"], &dumped[3]["offset"], &dumped[3]["body"]),
        (&"orders".into(), &3.into(), &"message 3".into())
    );
    let full = &dumped[10];
    assert_eq!(
        (&full["producer"], &full["sequence"], &full["priority"]),
        (&"shop".into(), &1.into(), &0.into())
    );
    assert_eq!(
        (&full["key"], &full["headers"]["a"], &full["body"]),
        (&"k".into(), &"b".into(), &"with \"quotes\"".into())
    );
    let some = run(&["store", "dump", &store, "--topic", "orders", "--from", "4", "--count", "2"]).ok();
    let lines: Vec<&str> = some.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with("orders 4  ") && lines[1].ends_with("message 5"),
        "{some}"
    );
    let unknown = run(&["store", "dump", &store, "--topic", "nothing"]).failed(1);
    assert!(unknown.contains("there is no topic nothing"), "{unknown}");

    let stats = run(&["store", "stats", "--store", &store, "--json"]).json();
    assert_eq!((&stats[0]["mode"], &stats[0]["messages"]), (&"database".into(), &11.into()));
    assert_eq!(served[0]["file_bytes"], serde_json::Value::Null);
    let without_age = |stats: &serde_json::Value| {
        let mut topics = stats["topics"].clone();
        for topic in topics.as_array_mut().unwrap() {
            topic["oldest_age_seconds"].take();
        }
        topics
    };
    assert_eq!(without_age(&served[0]), without_age(&stats[0]), "of the master and of its files");
    let orders =
        stats[0]["topics"].as_array().unwrap().iter().find(|topic| topic["topic"] == "orders").unwrap();
    let held = &orders["held_back_by"];
    assert_eq!((&held["group"], &held["floor"], &held["messages"]), (&"slow".into(), &0.into(), &6.into()));
    assert!(held["bytes"].as_u64().unwrap() < orders["bytes"].as_u64().unwrap());
    let of_other =
        stats[0]["topics"].as_array().unwrap().iter().find(|topic| topic["topic"] == "other").unwrap();
    assert_eq!(of_other["held_back_by"], serde_json::Value::Null);
    assert!(stats[0]["file_bytes"].as_u64().unwrap() > 4096 && orders["oldest_at"].is_string());
    let text = run(&["store", "stats", "--store", &store]).ok();
    assert!(text.contains("slow") && text.contains(".db"), "{text}");
}

/// The service manager ends a node whose start takes too long, unless it hears that it gets on.
#[test]
fn the_service_manager_hears_of_a_conversion() {
    let mut world = World::new();
    world.start(0, "file", "master");
    world.publish(0, 5);
    world.stop();
    let socket = std::os::unix::net::UnixDatagram::bind(world.path("notify")).unwrap();
    socket.set_read_timeout(Some(cli_support::PATIENCE)).unwrap();
    let (store, notify) = (world.store(), world.path("notify"));
    world.start_on(0, &store, &[("BATON_MODE", "database"), ("NOTIFY_SOCKET", &notify)]);
    let mut heard = String::new();
    while !heard.contains("STATUS=master") {
        let mut bytes = [0; 4096];
        let count = socket.recv(&mut bytes).expect("it says nothing more");
        heard.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        heard.push('\n');
    }
    assert!(heard.contains("EXTEND_TIMEOUT_USEC=60000000"), "{heard}");
    assert!(heard.contains("STATUS=converting the store, "), "{heard}");
    assert_eq!(world.mode(0), "database");
}
