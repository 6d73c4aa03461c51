//! `baton bench disk`: what the disk itself allows, to measure the broker against.
//!
//! Appends the bytes of batches of messages in one plain loop, synced batch by batch: to a file written with zeros
//! before, or as rows of a database with nothing around it. Does not use the stores of Baton, on purpose; the only
//! place outside of them that names a database.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use batonmq::store::Mode;
use clap::Args;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use super::measure::{Bound, Latencies, Noise, Report};
use crate::cli::output::{Progress, print_json, print_line};
use crate::cli::value;

/// Bytes of an encoded message besides its body.
const MESSAGE_HEAD_BYTES: usize = 5;
/// The file is as long as this at most; at its end the loop begins again at its start.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Measures what the disk itself allows.
#[derive(Args, Debug)]
#[command(after_help = "Example: what a store in /srv/baton could reach at best\n  \
    baton bench disk --dir /srv/baton --batch 500 --json")]
pub struct DiskArgs {
    /// Bytes of a body
    #[arg(long, value_parser = value::size, default_value = "128")]
    size: usize,
    /// Messages synced together
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000), default_value_t = 500)]
    batch: u64,
    /// Stop after so many messages [default: only the time counts]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
    /// Stop after so many seconds
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3600), default_value_t = 5)]
    seconds: u64,
    /// Where to write; the files are removed at the end
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// `file`: append to a file. `database`: insert rows
    #[arg(long, value_enum, default_value_t = Medium::File)]
    mode: Medium,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

/// What is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Medium {
    /// A file.
    File,
    /// A database.
    Database,
}

#[derive(Serialize)]
struct DiskReport {
    bench: &'static str,
    mode: Mode,
    size: usize,
    batch: u64,
    batch_bytes: usize,
    syncs: u64,
    #[serde(flatten)]
    report: Report,
}

/// Runs it.
pub fn run(args: &DiskArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        (args.size + MESSAGE_HEAD_BYTES) as u64 * args.batch <= FILE_BYTES_MAX,
        "a batch of {} messages of {} bytes is too much; lower --batch or --size",
        args.batch,
        args.size
    );
    let scratch = Scratch::new(&args.dir)?;
    let measured = match args.mode {
        Medium::File => file(args, &scratch)?,
        Medium::Database => database(args, &scratch)?,
    };
    let report = DiskReport {
        bench: "disk",
        mode: if args.mode == Medium::File { Mode::File } else { Mode::Database },
        size: args.size,
        batch: args.batch,
        batch_bytes: measured.batch_bytes,
        syncs: measured.syncs,
        report: Report::new(measured.syncs * args.batch, args.size as u64, measured.took)
            .latencies(&measured.latencies),
    };
    if args.json {
        return print_json(&report);
    }
    print_line(format!("{} synced {} at a time, mode {}", report.size, report.batch, report.mode))?;
    print_line(report.report.text("one batch, written and synced"))
}

struct Measured {
    batch_bytes: usize,
    syncs: u64,
    took: Duration,
    latencies: Latencies,
}

/// Calls `batch` until the bound is reached and measures each call.
fn measure(
    args: &DiskArgs,
    batch_bytes: usize,
    mut batch: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    let progress = Progress::new(args.messages, "messages");
    let begun = Instant::now();
    let bound = Bound {
        messages: args.messages.unwrap_or(u64::MAX),
        end_at: begun + Duration::from_secs(args.seconds),
    };
    let (mut syncs, mut latencies) = (0, Latencies::new());
    while !bound.reached(syncs * args.batch) {
        let batch_begun = Instant::now();
        batch(syncs)?;
        latencies.record(batch_begun.elapsed());
        syncs += 1;
        if syncs % 64 == 0 {
            progress.at(syncs * args.batch);
        }
    }
    Ok(Measured { batch_bytes, syncs, took: begun.elapsed(), latencies })
}

fn file(args: &DiskArgs, scratch: &Scratch) -> anyhow::Result<Measured> {
    let bytes = Noise::new().bytes((args.size + MESSAGE_HEAD_BYTES) * args.batch as usize);
    let batches_in_file = FILE_BYTES_MAX / bytes.len() as u64;
    let wanted = args.messages.map_or(u64::MAX, |messages| messages.div_ceil(args.batch));
    let path = scratch.0.join("journal");
    let file = zeroed(&path, bytes.len() as u64 * batches_in_file.min(wanted).max(1))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let slots = batches_in_file.min(wanted).max(1);
    measure(args, bytes.len(), |number| {
        file.write_all_at(&bytes, (number % slots) * bytes.len() as u64)
            .and_then(|()| file.sync_data())
            .with_context(|| format!("cannot write {}", path.display()))
    })
}

/// A new file of `len` zeros, durable.
fn zeroed(path: &Path, len: u64) -> std::io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..piece as usize], at)?;
        at += piece;
    }
    file.sync_all()?;
    Ok(file)
}

fn database(args: &DiskArgs, scratch: &Scratch) -> anyhow::Result<Measured> {
    let path = scratch.0.join("database");
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = Connection::open_with_flags_and_vfs(&path, flags, c"unix-excl")
        .with_context(|| format!("cannot open {}", path.display()))?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE messages (id INTEGER PRIMARY KEY, body BLOB)",
    )?;
    let body = Noise::new().bytes(args.size);
    measure(args, args.size * args.batch as usize, |_| {
        let transaction = connection.transaction()?;
        let mut insert = transaction.prepare_cached("INSERT INTO messages (body) VALUES (?1)")?;
        for _ in 0..args.batch {
            insert.execute([&body])?;
        }
        drop(insert);
        transaction.commit()?;
        Ok(())
    })
}

/// A directory that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(format!("baton-bench-disk-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to its owner, who sees it by its name.
        let _ = fs::remove_dir_all(&self.0);
    }
}
