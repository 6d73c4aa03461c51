//! `baton store check`, alone and in company, on good storage and on bad; and what nodes make of its results.
//!
//! Needs root, `/dev/fuse` and `bindfs`; without them it fails.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Output};

use batonmq::protocol::response::Role;
use cli_support::{Answer, Pair, command, run};
use fuser::Errno;
use serde_json::Value;
use support::faulty::FaultyDisk;
use support::faulty::faults::{Effect, Fault, Lasting, Operation};
use support::mount::{DEFAULT, FORGETFUL, Mount, SmallDisk};
use support::pair::Node;
use tempfile::TempDir;

/// The directory is unfit.
const UNFIT: i32 = 5;
/// Doubts are left.
const DOUBTFUL: i32 = 6;
/// The check came to no result.
const FAILED: i32 = 1;
/// The command line is wrong.
const WRONG: i32 = 2;

/// A directory on a disk of this host, and not in its memory.
fn on_disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The JSON of a check that ended with `code`.
fn report(answer: &Answer, code: i32) -> Value {
    let said = String::from_utf8_lossy(&answer.stdout);
    assert_eq!(answer.code, Some(code), "{said}{}", answer.stderr);
    serde_json::from_str(&said).unwrap()
}

fn codes(report: &Value) -> BTreeSet<&str> {
    report["findings"].as_array().unwrap().iter().map(|finding| finding["code"].as_str().unwrap()).collect()
}

/// The text of the finding with this code.
fn finding<'a>(report: &'a Value, code: &str) -> &'a str {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["code"] == code);
    found.unwrap_or_else(|| panic!("no {code} in {report}"))["text"].as_str().unwrap()
}

fn alone(dir: &Path, flags: &[&str]) -> Answer {
    run(&[&["store", "check", text(dir), "--json"], flags].concat())
}

/// A checker that listens, and where.
struct Second {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    address: String,
}

impl Second {
    fn start(dir: &Path) -> Self {
        let mut child =
            command(&["store", "check", text(dir), "--json", "--listen", "127.0.0.1:0"]).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on ").expect(&line).split(';').next().unwrap().to_owned();
        Self { child, stderr, address }
    }

    fn finish(mut self) -> Answer {
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr).unwrap();
        let Output { status, stdout, .. } = self.child.wait_with_output().unwrap();
        Answer { code: status.code(), stdout, stderr }
    }
}

/// Two checkers on two views of one directory; what each has answered, the one that asks first.
fn together(views: [&Path; 2], flags: &[&str]) -> [Answer; 2] {
    let second = Second::start(views[1]);
    let lead = alone(views[0], &[&["--peer", &second.address], flags].concat());
    [lead, second.finish()]
}

/// The names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn a_directory_on_a_disk_of_this_host_is_fit_as_far_as_one_host_can_tell() {
    let dir = on_disk();
    let direct = report(&alone(dir.path(), &["--fence-read", "direct"]), 0);
    assert!(
        finding(&direct, "reads-fresh").starts_with("a direct read, and a reopen too, gives"),
        "{direct}"
    );
    let found = report(&alone(dir.path(), &[]), 0);
    assert_eq!((&found["verdict"], &found["scope"]), (&"fit".into(), &"one-host".into()), "{found}");
    for code in [
        "local-file-system",
        "space",
        "sync",
        "locks-exclude",
        "lock-release",
        "creation-exclusive",
        "links-exclusive",
        "reads-fresh",
    ] {
        finding(&found, code);
    }
    assert!(found["measured"]["syncs"][0]["median_ns"].as_u64().unwrap() > 0);
    assert!(found["measured"]["lock_release_us"].as_u64().is_some());
    assert_eq!(names(dir.path()), [".baton-check.json"], "nothing but the result is left");

    let said = run(&["store", "check", text(dir.path())]).ok();
    assert!(said.lines().next().unwrap().ends_with(" is fit, as far as one host can tell"), "{said}");
    assert!(said.contains("\n  good   locks exclude on "), "{said}");
    // A node may make its store there, and has nothing to complain of.
    let logs = on_disk();
    let mut node = Node::new("a", dir.path(), "file", logs.path()).set("BATON_CREATE_STORE", true);
    node.start();
    tokio::runtime::Runtime::new().unwrap().block_on(node.wait_for(Role::Master));
    assert!(!node.log().contains("WARN"), "{}", node.log());
}

#[test]
fn two_checkers_on_one_mount_say_that_nothing_is_said_about_two_hosts() {
    let dir = on_disk();
    let answers = together([dir.path(), dir.path()], &[]);
    let [lead, second] = answers.each_ref().map(|answer| report(answer, 0));
    assert_eq!(lead, second, "both say the same");
    assert_eq!(lead["scope"], "one-host");
    assert!(finding(&lead, "one-host").contains("run one on each"));
    assert!(finding(&lead, "locks-exclude").contains("(second) does not get"), "{lead}");
    assert_eq!(names(dir.path()), [".baton-check.json"]);
}

/// A folder, and two views of it that do not exclude each other.
fn two_views(dir: &Path) -> [Mount; 2] {
    let real = dir.join("real");
    fs::create_dir(&real).unwrap();
    [Mount::new(&real, &dir.join("a"), DEFAULT), Mount::new(&real, &dir.join("b"), FORGETFUL)]
}

#[test]
fn locks_that_do_not_exclude_are_found_and_keep_a_node_from_starting() {
    let dir = on_disk();
    let views = two_views(dir.path());
    let [one, other] = views.each_ref().map(|view| view.path.clone());
    // Each view for itself is coherent.
    let apart = report(&alone(&one, &[]), 0);
    assert_eq!(apart["scope"], "one-host");
    let serve = |number: u32, allow: bool| {
        let node = Node::new(&format!("n{number}"), &one, "file", dir.path());
        let mut node = node.set("BATON_CREATE_STORE", true).set("BATON_ALLOW_UNFIT_STORAGE", allow);
        node.start();
        node
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut node = serve(1, false);
    runtime.block_on(node.wait_for(Role::Master));
    assert!(node.log().contains("was checked on one host alone; run `baton store check"), "{}", node.log());
    node.kill();

    let answers = together([&one, &other], &[]);
    // On FUSE a file that is open when it is removed stays under another name, and its folder could not be removed.
    assert!(!dir.path().join("real/.baton-check").exists());
    let [lead, second] = answers.each_ref().map(|answer| report(answer, UNFIT));
    assert_eq!((&lead, &lead["verdict"], &lead["scope"]), (&second, &"unfit".into(), &"two-hosts".into()));
    assert!(finding(&lead, "locks-do-not-exclude").contains("got a lock that"), "{lead}");
    let found = codes(&lead);
    assert!(found.is_superset(&["one-kernel", "creation-exclusive", "reads-fresh"].into()), "{lead}");
    assert!(!found.contains("lock-release"), "a lock that excludes nobody is never released: {lead}");

    let mut node = serve(2, false);
    assert_eq!(node.wait().code(), Some(FAILED), "{}", node.log());
    let log = node.log();
    let said = log.lines().last().unwrap();
    for part in
        ["found the storage of ", " unfit: locks do not exclude", "baton store check ", "allow_unfit_storage"]
    {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let mut node = serve(3, true);
    runtime.block_on(node.wait_for(Role::Master));
    assert!(node.log().contains("going on with storage that was found unfit"), "{}", node.log());
    node.kill();
    // What one view shows alone does not take back what two have shown.
    report(&alone(&one, &[]), 0);
    assert_eq!(serve(4, false).wait().code(), Some(FAILED));
    // It is of that mount: another way to the directory is another storage.
    let mut direct = Node::new("n5", &dir.path().join("real"), "file", dir.path());
    direct.start();
    runtime.block_on(direct.wait_for(Role::Master));
}

#[test]
fn storage_that_was_never_checked_is_warned_of_once() {
    let dir = on_disk();
    let [view, _] = two_views(dir.path());
    let mut node = Node::new("a", &view.path, "file", dir.path()).set("BATON_CREATE_STORE", true);
    node.start();
    tokio::runtime::Runtime::new().unwrap().block_on(node.wait_for(Role::Master));
    assert_eq!(node.log().matches("was never checked; run `baton store check ").count(), 1, "{}", node.log());
}

fn plan(disk: &FaultyDisk, operation: Operation, effect: Effect, path: &'static str, nth: u64) {
    disk.faults.plan(Fault { operation, effect, lasting: Lasting::Always, path, nth });
}

#[test]
fn a_stale_read_is_found() {
    let dir = on_disk();
    let disk = FaultyDisk::new(dir.path());
    // Its syncs do nothing, which may or may not be quick enough to be seen.
    let good: Value = serde_json::from_slice(&alone(&disk.path, &[]).stdout).unwrap();
    assert!(codes(&good).is_superset(&["reads-fresh", "no-links", "unknown-file-system"].into()), "{good}");
    plan(&disk, Operation::Read, Effect::IsStale, "overwritten", 1);
    let stale = report(&alone(&disk.path, &[]), UNFIT);
    let said = finding(&stale, "stale-read");
    assert!(said.contains(" times after ") && said.contains("(overwritten)"), "{said}");
    assert!(
        said.contains(": a takeover may read an old state of the store. Mount it so that nothing is kept"),
        "{said}"
    );
    assert!(!disk.faults.hits().is_empty());
}

/// A mount whose lock service is not running, and one that gives no lock away.
#[test]
fn locks_that_fail_are_found_and_keep_a_node_from_starting() {
    let dir = on_disk();
    let real = dir.path().join("real");
    fs::create_dir(&real).unwrap();
    let disk = FaultyDisk::with_locks_of_the_files(&real, &dir.path().join("faulty"));
    let good: Value = serde_json::from_slice(&alone(&disk.path, &[]).stdout).unwrap();
    assert!(codes(&good).is_superset(&["locks-exclude", "lock-release"].into()), "{good}");
    for (errno, said) in [
        (Errno::ENOLCK, "No locks available (os error 37); is the lock service of the file system running"),
        (Errno::EAGAIN, "does not get a lock that nobody holds"),
    ] {
        plan(&disk, Operation::Lock, Effect::Fails(errno), "lock", 1);
        let found = report(&alone(&disk.path, &[]), UNFIT);
        assert!(finding(&found, "locks-fail").contains(said), "{found}");
        assert!(!codes(&found).contains("lock-release"), "{found}");
        assert!(codes(&found).contains("reads-fresh"), "the rest is tried all the same: {found}");
    }
    disk.faults.clear();
    let serve = || {
        let node = Node::new("a", &disk.path, "file", dir.path());
        let mut node = node.set("BATON_CREATE_STORE", true);
        node.start();
        node
    };
    let mut node = serve();
    assert_eq!(node.wait().code(), Some(FAILED), "{}", node.log());
    assert!(node.log().contains(" unfit: "), "{}", node.log());
    // Mended, and checked again.
    alone(&disk.path, &[]);
    let mut node = serve();
    tokio::runtime::Runtime::new().unwrap().block_on(node.wait_for(Role::Master));
}

#[test]
fn a_sync_that_is_too_fast_is_found_and_so_is_a_disk_in_memory() {
    let dir = on_disk();
    let disk = SmallDisk::new(&dir.path().join("disk"), 16);
    let found = report(&alone(&disk.path, &[]), UNFIT);
    assert!(finding(&found, "sync-too-fast").contains("too fast for a disk"), "{found}");
    assert!(codes(&found).is_superset(&["memory-file-system", "little-space"].into()), "{found}");
}

#[test]
fn late_writes_are_told_by_what_has_arrived() {
    // The locks of the two views do not exclude, so the lead has the lock at once, and every write is late.
    for (path, nth, class) in [("late-none", 1, "c"), ("late-locked", 2, "b"), ("late-", 3, "a")] {
        let dir = on_disk();
        let disk = FaultyDisk::new(dir.path());
        plan(&disk, Operation::Write, Effect::Fails(Errno::EIO), path, nth);
        let answers = together([&disk.real, &disk.path], &["--cut", "--timeout", "20s"]);
        let [lead, _] = answers.each_ref().map(|answer| report(answer, UNFIT));
        assert_eq!((&lead["late_writes"], &lead["scope"]), (&class.into(), &"cut".into()), "{lead}");
        for (answer, said) in
            [(&answers[0], "every write of "), (&answers[1], "this host is the one to be cut off")]
        {
            assert!(answer.stderr.contains(said), "{}", answer.stderr);
        }
        assert!(!codes(&lead).contains("lost-host-lock"), "it was never had by one alone: {lead}");
    }
}

/// An operator who did not cut anything off was told that the storage is unfit, and no node started on it any more.
#[test]
fn a_host_that_was_not_cut_off_says_nothing_about_the_storage() {
    let dir = on_disk();
    let answers = together([dir.path(), dir.path()], &["--cut", "--timeout", "2s"]);
    let [lead, _] = answers.each_ref().map(|answer| report(answer, DOUBTFUL));
    assert!(finding(&lead, "not-cut-off").contains("check again, with more time"), "{lead}");
    assert_eq!((&lead["scope"], &lead["late_writes"]), (&"one-host".into(), &Value::Null));
}

#[test]
fn a_check_beside_a_master_touches_nothing_of_it() {
    let pair = Pair::single();
    let store = pair.dir.path().join("store");
    let lock = || {
        let lock = fs::metadata(store.join("baton.lock")).unwrap();
        (lock.ino(), lock.len(), lock.mtime_nsec())
    };
    let (before, names_before) = (lock(), names(&store));
    let answer = alone(&store, &[]);
    assert!(!codes(&serde_json::from_slice(&answer.stdout).unwrap()).contains("locks-fail"), "{answer:?}");
    assert_eq!(lock(), before);
    assert_eq!(names(&store), [&[".baton-check.json".to_owned()][..], &names_before].concat());
    let status = run(&["status", "--json", "--server", &pair.servers[0]]).json().remove(0);
    assert_eq!((&status["role"], &status["epoch"]), (&"master".into(), &1.into()));
}

/// What a killed check had left was never removed.
#[test]
fn what_a_killed_check_has_left_goes_with_the_next_one() {
    let dir = on_disk();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut lead = command(&["store", "check", text(dir.path()), "--peer", &address]).spawn().unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(b"{\"baton_check\":1}\n").unwrap();
    let mut lines = BufReader::new(peer).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "{\"baton_check\":1}");
    assert!(lines.next().unwrap().unwrap().contains("\"meet\""));
    lead.kill().unwrap();
    lead.wait().unwrap();
    assert_eq!(names(&dir.path().join(".baton-check")).len(), 1);
    report(&alone(dir.path(), &[]), 0);
    assert_eq!(names(dir.path()), [".baton-check.json"]);
}

/// Root checked with a mask of its own, the nodes could not read that the storage is unfit, and started with a warning.
#[test]
fn whoever_checks_the_nodes_can_read_the_result() {
    let dir = on_disk();
    let mut masked = std::process::Command::new("sh");
    masked.args([
        "-c",
        "umask 077 && exec \"$0\" store check \"$1\"",
        env!("CARGO_BIN_EXE_baton"),
        text(dir.path()),
    ]);
    assert!(masked.output().unwrap().status.success());
    let mode = fs::metadata(dir.path().join(".baton-check.json")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o644);
}

/// Takes what is free.
fn fill(disk: &Path) {
    let mut ballast = fs::File::create(disk.join("ballast")).unwrap();
    for bytes in [&[7; 4096][..], &[7]] {
        while ballast.write_all(bytes).is_ok() {}
    }
}

#[test]
fn what_cannot_be_checked_says_what_to_do() {
    let dir = on_disk();
    let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
    let said = alone(&one, &[]).failed(FAILED);
    assert!(said.contains("/one is not a directory: is the shared file system mounted?"), "{said}");
    for folder in [&one, &other] {
        fs::create_dir(folder).unwrap();
    }
    let view = Mount::new(&one, &dir.path().join("view"), "ro");
    let said = alone(&view.path, &[]).failed(FAILED);
    assert!(said.contains("run this as the user of the nodes, where it is not mounted read-only"), "{said}");
    let full = SmallDisk::new(&dir.path().join("full"), 1);
    fill(&full.path);
    let said = alone(&full.path, &[]).failed(FAILED);
    assert!(said.contains("make space on the shared disk"), "{said}");
    let path = text(&one);
    for flags in [
        &["--cut"][..],
        &["--listen", "127.0.0.1:0", "--peer", "a:1"],
        &["--timeout", "0s"],
        &["--timeout", "2h"],
    ] {
        run(&[&["store", "check", path], flags].concat()).failed(WRONG);
    }
    let nobody = cli_support::free_address();
    let said = alone(&one, &["--peer", &nobody, "--timeout", "300ms"]).failed(3);
    assert!(said.contains("start it there with --listen"), "{said}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let said = run(&["store", "check", path, "--listen", &address]).failed(FAILED);
    assert!(said.contains("cannot listen on ") && said.contains("choose another port"), "{said}");
    // An address of the documentation, which no host has.
    let said = run(&["store", "check", path, "--listen", "192.0.2.1:7472"]).failed(FAILED);
    assert!(said.contains("it is not an address of this host: --listen takes one of its own"), "{said}");
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let _ = peer.read(&mut [0; 64]);
    });
    let said = alone(&one, &["--peer", &address]).failed(FAILED);
    assert!(said.contains("what is at the other end is no checker"), "{said}");
    server.join().unwrap();

    let answers = together([&one, &other], &[]);
    for answer in answers {
        let said = answer.failed(FAILED);
        assert!(said.contains("do both name the same directory, and is it mounted on both?"), "{said}");
    }
    assert!(names(&one).is_empty() && names(&other).is_empty(), "no result, and nothing left");
}

/// The codes that the check can find, as they stand in its source.
fn codes_of_the_source() -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let text: String = text.split_whitespace().collect();
        for level in ["good", "note", "doubt", "unfit"] {
            let made = [
                format!("Finding::{level}(\""),
                format!("Level::{}{},\"", &level[..1].to_uppercase(), &level[1..]),
            ];
            for made in made {
                codes
                    .extend(text.split(&made).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
            }
        }
    }
    codes
}

#[test]
fn the_document_has_every_code_and_no_other() {
    let text = include_str!("../docs/operations.md");
    let table = text.split("| code | level |").nth(1).unwrap().split("\n\n").next().unwrap();
    let listed: BTreeSet<String> =
        table.lines().skip(2).map(|row| row.split('`').nth(1).unwrap().to_owned()).collect();
    let codes = codes_of_the_source();
    assert!(codes.len() > 40, "{codes:?}");
    assert_eq!(listed, codes);
}
