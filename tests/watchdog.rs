//! The service manager hears that a node is alive from whoever does what the node is there for: as standby the one that
//! looks at the lock, as master the thread that commits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use batonmq::protocol::response::Role;
use support::faulty::FaultyDisk;
use support::faulty::faults::Operation;
use support::load::{GROUPS, Load};
use support::pair::{Node, PATIENCE};

/// After how long of silence the service manager takes the node for dead.
const LIMIT: Duration = Duration::from_millis(200);
/// How often the one that does not hang is heard meanwhile: for two of the limits.
const FEEDS: u32 = 8;

/// The end of the service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// Waits until it hears this.
    fn wait_for(&self, said: &str) {
        let mut bytes = [0; 4096];
        loop {
            let count = self.0.recv(&mut bytes).unwrap_or_else(|_| panic!("{said} is not said"));
            if std::str::from_utf8(&bytes[..count]).unwrap().contains(said) {
                return;
            }
        }
    }

    /// What has been said and not been heard yet.
    fn heard(&self) -> Vec<String> {
        self.0.set_nonblocking(true).unwrap();
        let mut bytes = [0; 4096];
        let heard = std::iter::from_fn(|| {
            let count = self.0.recv(&mut bytes).ok()?;
            Some(String::from_utf8(bytes[..count].to_vec()).unwrap())
        });
        let heard = heard.collect();
        self.0.set_nonblocking(false).unwrap();
        heard
    }
}

async fn a_master_whose_commit_hangs_falls_silent(mode: &'static str, commits: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(dir.path());
    let store = disk.path.join("store");
    let managers = ["a", "b"].map(|name| Manager::new(&dir.path().join(format!("{name}.notify"))));
    let mut nodes = ["a", "b"].map(|name| {
        Node::new(name, &store, mode, dir.path())
            .set("NOTIFY_SOCKET", dir.path().join(format!("{name}.notify")).display())
            .set("WATCHDOG_USEC", LIMIT.as_micros())
            .set("BATON_POLL_INTERVAL", "20ms")
    });
    nodes[0].start();
    managers[0].wait_for("STATUS=master");
    managers[0].wait_for("WATCHDOG=1");
    nodes[1].start();
    managers[1].wait_for("READY=1");
    managers[1].wait_for("WATCHDOG=1");
    let load = Load::start(&format!("{},{}", nodes[0].address, nodes[1].address), 100).await;
    load.confirmed_more(100).await;
    let faults = Arc::clone(&disk.faults);
    let stall = faults.stall(Operation::Sync, commits);
    while faults.hits().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // What it said before it hung.
    managers[0].heard();
    managers[1].heard();
    for _ in 0..FEEDS {
        managers[1].wait_for("WATCHDOG=1");
        // Its other threads answer.
        nodes[0].wait_for(Role::Master).await;
    }
    assert_eq!(managers[0].heard(), Vec::<String>::new(), "nothing is said for a thread that hangs");
    drop(stall);
    managers[0].wait_for("WATCHDOG=1");
    load.confirmed_more(100).await;
    let violations = support::history::check(&load.finish().await, &GROUPS);
    assert_eq!(violations, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_whose_commit_hangs_falls_silent_in_file_mode() {
    a_master_whose_commit_hangs_falls_silent("file", ".log").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_whose_commit_hangs_falls_silent_in_database_mode() {
    a_master_whose_commit_hangs_falls_silent("database", ".db-wal").await;
}
