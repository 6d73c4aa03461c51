//! A broker process on a new store, and what the command line tells about it: shared by the benchmarks.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::error::Error;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::{fs, io};

use serde_json::Value;

/// Whatever ends a benchmark.
pub type Failure = Box<dyn Error>;

/// Both modes.
pub const MODES: [&str; 2] = ["file", "database"];

const BATON: &str = env!("CARGO_BIN_EXE_baton");

/// A node on a store of its own, ended with its store when dropped.
pub struct Broker {
    process: Child,
    mode: &'static str,
    store: tempfile::TempDir,
    /// Where it listens.
    pub address: String,
    options: Vec<(&'static str, String)>,
}

impl Broker {
    /// Starts a node on a new store in `dir`, and waits until it serves.
    pub fn start(dir: &Path, mode: &'static str) -> Result<Self, Failure> {
        Self::start_with(dir, mode, Vec::new())
    }

    /// As [`start`](Self::start), with variables that configure it.
    pub fn start_with(
        dir: &Path,
        mode: &'static str,
        options: Vec<(&'static str, String)>,
    ) -> Result<Self, Failure> {
        let store = tempfile::tempdir_in(dir)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let process = spawn(mode, &address, store.path(), &options)?;
        let broker = Self { process, mode, store, address, options };
        run(&["topic", "list", "--server", &broker.address, "--json"])?;
        Ok(broker)
    }

    /// Kills it.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait().map(|_| ())
    }

    /// Starts it again on its store, without waiting for anything.
    pub fn spawn_again(&mut self) -> io::Result<()> {
        self.process = spawn(self.mode, &self.address, self.store.path(), &self.options)?;
        Ok(())
    }

    /// What `baton bench` measures on it.
    pub fn bench(&self, args: &[&str]) -> Result<Value, Failure> {
        let pid = self.process.id().to_string();
        report(&[&["bench"], args, &["--json", "--server", &self.address, "--server-pid", &pid]].concat())
    }

    /// What `baton bench disk` measures where its store lies.
    pub fn disk(&self, args: &[&str]) -> Result<Value, Failure> {
        let dir = self.store.path().display().to_string();
        report(&[&["bench", "disk", "--json", "--seconds", "2", "--dir", &dir], args].concat())
    }

    /// A field of the process in `/proc`, in MiB.
    pub fn memory(&self, field: &str) -> Result<f64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).ok_or("no such field")?;
        let kib: f64 = line.trim_matches(|c: char| !c.is_ascii_digit()).parse()?;
        Ok(kib / 1024.0)
    }

    /// Has the highest memory use counted anew.
    pub fn forget_highest_memory(&self) -> io::Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5")
    }

    /// Bytes of disk that the store takes.
    pub fn disk_bytes(&self) -> io::Result<u64> {
        disk_bytes(self.store.path())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // What it holds goes with it; one that has ended already is fine too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a node on the store in `dir`.
pub fn spawn(mode: &str, address: &str, dir: &Path, options: &[(&'static str, String)]) -> io::Result<Child> {
    Command::new(BATON)
        .args(["serve", "--log", "error", "--mode", mode, "--listen", address, "--store"])
        .arg(dir.join("store"))
        .envs(options.iter().map(|(name, value)| (name, value)))
        .spawn()
}

fn disk_bytes(dir: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let path: PathBuf = entry?.path();
        bytes += match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => disk_bytes(&path)?,
            Ok(found) => found.blocks() * 512,
            // It was removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(bytes)
}

/// Runs a command of `baton` that answers with JSON.
pub fn report(args: &[&str]) -> Result<Value, Failure> {
    Ok(serde_json::from_str(&run(args)?)?)
}

/// Runs a command of `baton`.
pub fn run(args: &[&str]) -> Result<String, Failure> {
    let output = Command::new(BATON).args(args).output()?;
    if !output.status.success() {
        return Err(format!("baton {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Messages a second of a report.
pub fn rate(report: &Value) -> Result<f64, Failure> {
    number(report, &["messages_per_second"])
}

/// A number of a report.
pub fn number(report: &Value, path: &[&str]) -> Result<f64, Failure> {
    let found = path.iter().fold(report, |value, key| &value[*key]);
    found.as_f64().ok_or_else(|| format!("{path:?} is missing in {report}").into())
}

/// The middle one.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
