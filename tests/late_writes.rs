//! What a takeover in database mode makes of what `baton store check --cut` has found out about late writes. The nodes are
//! in pid namespaces of their own: none of them can know whether another one is dead.
//!
//! Needs root, `unshare`, `/dev/fuse` and `bindfs`; without them it fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use batonmq::protocol::response::Role;
use serde_json::{Value, json};
use support::load::Load;
use support::mount::Mount;
use support::pair::{Node, free_address, two};

/// What a takeover says that copies.
const COPIES: &str = "copying its database";
/// What one says that does not.
const IN_PLACE: &str = "database recovered in place";
/// Bytes of a message.
const BODY_BYTES: usize = 100;

/// A folder on a disk of this host, and not in its memory: that would be unfit.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// As on another host.
fn apart(node: Node) -> Node {
    node.within(&["unshare", "--pid", "--fork", "--kill-child", "--"], &free_address())
}

/// Checks a directory, and has the check have found out what becomes of late writes.
fn remember(dir: &Path, class: &str) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_baton")).args(["store", "check"]).arg(dir).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let path = dir.join(".baton-check.json");
    let mut remembered: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    remembered["results"][0]["scope"] = json!("cut");
    remembered["results"][0]["late_writes"] = json!(class);
    fs::write(&path, remembered.to_string()).unwrap();
}

/// Kills a master under load; the log of the node that takes over. Nothing is lost, whatever it does.
async fn log_of_the_successor(nodes: &mut [Node; 2], servers: &str, before: impl FnOnce()) -> String {
    let load = Load::start(servers, BODY_BYTES).await;
    load.confirmed_more(500).await;
    before();
    nodes[0].kill();
    nodes[1].wait_for(Role::Master).await;
    let log = nodes[1].log();
    load.confirmed_more(100).await;
    let events = load.finish().await;
    assert_eq!(support::history::check(&events, &support::load::GROUPS), []);
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_late_write_arrives_a_database_is_recovered_in_place() {
    let dir = on_disk();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    remember(&store, "a");
    let (mut nodes, servers) = two("database", dir.path(), apart).await;
    let log = log_of_the_successor(&mut nodes, &servers, || ()).await;
    assert!(log.contains(IN_PLACE) && !log.contains(COPIES), "{log}");
    let said = "the old master may still run, but it has lost the lock, and can write no more: the check found that no \
                late write arrives on this storage (class A)";
    assert!(log.contains(said), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_late_writes_may_arrive_a_database_is_copied() {
    for (class, said) in [
        (None, "what becomes of late writes was never found out, by `baton store check` with --cut"),
        (Some("b"), "the check found that some late writes arrive (class B)"),
    ] {
        let dir = on_disk();
        let store = dir.path().join("store");
        fs::create_dir(&store).unwrap();
        if let Some(class) = class {
            remember(&store, class);
        }
        let (mut nodes, servers) = two("database", dir.path(), apart).await;
        let log = log_of_the_successor(&mut nodes, &servers, || ()).await;
        assert!(log.contains(COPIES) && !log.contains(IN_PLACE), "{log}");
        assert!(log.contains(&format!("the old master may still write: {said}")), "{log}");
    }
}

/// What was found out of one mount says nothing of another one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_another_mount_does_not_count() {
    let dir = on_disk();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    remember(&store, "a");
    let view = Mount::new(&store, &dir.path().join("view"), support::mount::DEFAULT);
    let (mut nodes, servers) = two("database", dir.path(), |mut node| {
        node.store = view.path.clone();
        apart(node)
    })
    .await;
    let log = log_of_the_successor(&mut nodes, &servers, || ()).await;
    assert!(log.contains(COPIES) && !log.contains(IN_PLACE), "{log}");
    let said =
        "the old master may still write: this storage was checked with --cut, but mounted otherwise than now";
    assert!(log.contains(said), "{log}");
}

/// Whoever has the lock of the file that was there before has lost nothing, and may write for a while.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_file_that_was_replaced_proves_nothing_about_the_old_master() {
    let dir = on_disk();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    remember(&store, "a");
    let (mut nodes, servers) = two("database", dir.path(), apart).await;
    let other = dir.path().join("other");
    fs::write(&other, "").unwrap();
    let replace = || fs::rename(&other, store.join("baton.lock")).unwrap();
    let log = log_of_the_successor(&mut nodes, &servers, replace).await;
    assert!(log.contains(COPIES) && !log.contains(IN_PLACE), "{log}");
    // A standby that is quick finds the lock free while the master still answers.
    let said = ["but it had the lock of another file", "the lock could be taken while another node held it"];
    assert!(said.iter().any(|said| log.contains(said)), "{log}");
}

/// A lock that excludes nobody cannot be lost, whatever a check has found.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_excludes_nobody_proves_nothing_about_the_old_master() {
    let dir = on_disk();
    let real = dir.path().join("real");
    fs::create_dir(&real).unwrap();
    let views = ["a", "b"]
        .map(|name| Mount::new(&real, &dir.path().join(format!("view-{name}")), support::mount::FORGETFUL));
    let store = |view: &Mount| view.path.join("store");
    fs::create_dir(store(&views[0])).unwrap();
    remember(&store(&views[0]), "a");
    let (mut nodes, servers) = two("database", dir.path(), |mut node| {
        node.store = store(&views[usize::from(node.name == "b")]);
        apart(node)
    })
    .await;
    nodes[1].wait_for_log("locks do not lock");
    let log = log_of_the_successor(&mut nodes, &servers, || ()).await;
    assert!(log.contains(COPIES) && !log.contains(IN_PLACE), "{log}");
    assert!(log.contains("the old master may still write: the lock could be taken while"), "{log}");
}
