//! Two nodes on one store.

use std::net::TcpListener;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use batonmq::client::status_of;
use batonmq::protocol::response::Role;

use crate::broker::{Failure, spawn};

/// How long a node may take to become what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at it.
const PAUSE: Duration = Duration::from_millis(5);

/// Two nodes on a store of their own; ended with it when dropped.
pub struct Pair {
    mode: &'static str,
    store: tempfile::TempDir,
    addresses: [String; 2],
    nodes: [Child; 2],
    /// Which of them serves.
    master: usize,
}

impl Pair {
    /// Starts both on a new store in `dir`, and waits until one serves and the other stands by.
    pub async fn start(dir: &Path, mode: &'static str) -> Result<Self, Failure> {
        let store = tempfile::tempdir_in(dir)?;
        let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let addresses = [listeners[0].local_addr()?.to_string(), listeners[1].local_addr()?.to_string()];
        drop(listeners);
        let first = spawn(mode, &addresses[0], store.path(), &named(0))?;
        wait_for(&addresses[0], Role::Master).await?;
        let second = spawn(mode, &addresses[1], store.path(), &named(1))?;
        wait_for(&addresses[1], Role::Standby).await?;
        Ok(Self { mode, store, addresses, nodes: [first, second], master: 0 })
    }

    /// Both addresses, as clients are given them.
    pub fn servers(&self) -> String {
        self.addresses.join(",")
    }

    /// The address of the master.
    pub fn master(&self) -> &str {
        &self.addresses[self.master]
    }

    /// Kills the master, and waits for nothing.
    pub fn kill_master(&mut self) -> Result<(), Failure> {
        self.nodes[self.master].kill()?;
        self.master = 1 - self.master;
        Ok(())
    }

    /// The master has been asked to hand over.
    pub fn master_hands_over(&mut self) {
        self.master = 1 - self.master;
    }

    /// Starts the node that has ended, or ends, as standby.
    pub async fn restore(&mut self) -> Result<(), Failure> {
        let gone = 1 - self.master;
        self.nodes[gone].wait()?;
        wait_for(&self.addresses[self.master], Role::Master).await?;
        self.nodes[gone] = spawn(self.mode, &self.addresses[gone], self.store.path(), &named(gone))?;
        wait_for(&self.addresses[gone], Role::Standby).await
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // One that has ended already is fine too.
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn named(number: usize) -> Vec<(&'static str, String)> {
    vec![("BATON_NODE", format!("node-{number}"))]
}

async fn wait_for(address: &str, role: Role) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = status_of(address, PATIENCE).await;
        if status.is_ok_and(|status| status.role == role) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{address} does not become {role}").into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
