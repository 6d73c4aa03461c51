//! How fast the database mode is, beside a plain loop over the same database library with the same pragmas.
//!
//! `cargo bench --bench store_database [-- DIR]`: batches of 128-byte messages against inserts of (id, body), in
//! turns, so that a disturbance hits both; a scan of a cold backlog; deletion; memory; the copy that a takeover makes
//! where the old master may still write.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use batonmq::model::chunk::Origin;
use batonmq::model::id::{Epoch, Offset, ProducerId, Sequence, TopicId};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::name::Name;
use batonmq::model::record::{Published, Record, Source};
use batonmq::model::settings::TopicSettings;
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::TopicKind;
use batonmq::store::{Mode, OpenOptions, Predecessor, Predecessors, Store, database};
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, OpenFlags};

const SEGMENT_BYTES: u64 = 64 << 20;
const TOPIC: TopicId = TopicId(0);

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let dir = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let dir = dir.map_or_else(std::env::temp_dir, PathBuf::from);
    let work = |name: &str| -> Result<PathBuf, Failure> {
        let path = dir.join(format!("baton-bench-{}-{name}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(path)
    };
    println!("idle memory: {}", memory()?);
    for (batch, commits, rounds) in [(1, 2_000, 5), (500, 400, 7), (1_000, 200, 7)] {
        let (ours, plain) = (work("ours")?, work("plain")?);
        compare(&ours, &plain, batch, commits, rounds)?;
        std::fs::remove_dir_all(ours)?;
        std::fs::remove_dir_all(plain)?;
    }
    for (size, count) in [(128, 1_000_000), (1_024, 1_000_000)] {
        let path = work("scan")?;
        scan_and_delete(&path, size, count)?;
        std::fs::remove_dir_all(path)?;
    }
    let path = work("copy")?;
    copy(&path)?;
    std::fs::remove_dir_all(path)?;
    Ok(())
}

/// Takes a database over by copying it.
fn copy(path: &Path) -> Result<(), Failure> {
    let mut publisher = Publisher::open(path, 1_024, 1_000)?;
    for _ in 0..1_000 {
        publisher.publish()?;
        maintain(&mut *publisher.store)?;
    }
    drop(publisher);
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        bytes += entry?.metadata()?.len();
    }
    let started = Instant::now();
    drop(database::open(&options(path, 2, Predecessor::MayWrite))?);
    let (took, gib) = (started.elapsed(), bytes as f64 / f64::from(1 << 30));
    println!("takeover by copy: {gib:.2} GiB in {took:?}, {:.2} s per GiB", took.as_secs_f64() / gib);
    Ok(())
}

/// Runs both in turns and prints medians over the rounds.
fn compare(ours: &Path, plain: &Path, batch: usize, commits: usize, rounds: usize) -> Result<(), Failure> {
    let mut store = Publisher::open(ours, 128, batch)?;
    let mut connection = plain_connection(&plain.join("plain.db"))?;
    let (mut next, mut log_bytes) = (0, 0);
    maintain(&mut *store.store)?;
    let (mut ratios, mut our_rates, mut plain_rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut our_times, mut plain_times) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let started = Instant::now();
        for _ in 0..commits {
            our_times.push(store.publish()?);
            maintain(&mut *store.store)?;
        }
        let our_rate = (batch * commits) as f64 / started.elapsed().as_secs_f64();
        let started = Instant::now();
        for _ in 0..commits {
            plain_times.push(plain_insert(&mut connection, batch, &mut next)?);
            log_bytes += batch as u64 * 145 + 4_096;
            if log_bytes > 16 << 20 {
                log_bytes = 0;
                connection.wal_checkpoint_v2(Some(c"main"), CheckpointMode::PASSIVE)?;
            }
        }
        let plain_rate = (batch * commits) as f64 / started.elapsed().as_secs_f64();
        ratios.push(our_rate / plain_rate);
        our_rates.push(our_rate);
        plain_rates.push(plain_rate);
    }
    println!(
        "batch {batch:4}: {:7.0} msg/s, plain {:7.0} rows/s, ratio {:.2}; commit p50 {:?} p99 {:?}, plain p50 {:?} p99 {:?}",
        median(&mut our_rates),
        median(&mut plain_rates),
        median(&mut ratios),
        percentile(&mut our_times, 50),
        percentile(&mut our_times, 99),
        percentile(&mut plain_times, 50),
        percentile(&mut plain_times, 99),
    );
    Ok(())
}

fn scan_and_delete(path: &Path, size: usize, count: usize) -> Result<(), Failure> {
    let mut publisher = Publisher::open(path, size, 1_000)?;
    for _ in 0..count / 1_000 {
        publisher.publish()?;
        maintain(&mut *publisher.store)?;
    }
    println!("{count} messages of {size} bytes wait: {}", memory()?);
    publisher.store.close(&mut Snapshot::default, &mut || Ok(()))?;
    // Without the page cache where that can be asked for.
    let dropped = std::fs::write("/proc/sys/vm/drop_caches", "1").is_ok();
    let started = Instant::now();
    let options = options(path, 2, Predecessor::Gone);
    let (mut store, _) = database::open(&options)?;
    let opening = started.elapsed();
    let mut reader = store.reader()?;
    let (mut at, started) = (Offset(0), Instant::now());
    while let Some(chunk) = reader.read(TOPIC, at, 256 * 1_024)? {
        at = chunk.range().end;
    }
    let rate = at.0 as f64 / started.elapsed().as_secs_f64();
    println!(
        "{size} bytes: opened in {opening:?}, scanned {rate:.0} msg/s (page cache dropped: {dropped}), {}",
        memory()?
    );
    store.commit(&[Record::Trimmed { topic: TOPIC, start: at }])?;
    let started = Instant::now();
    maintain(&mut *store)?;
    println!(
        "{size} bytes: deleted {:.0} msg/s, {}",
        at.0 as f64 / started.elapsed().as_secs_f64(),
        memory()?
    );
    Ok(())
}

/// A store that gets one batch after the other from one producer.
struct Publisher {
    store: Box<dyn Store>,
    block: MessageBlock,
    next: u64,
}

impl Publisher {
    fn open(dir: &Path, size: usize, batch: usize) -> Result<Self, Failure> {
        let (mut store, _) = database::open(&options(dir, 1, Predecessor::None))?;
        let (topic, producer) = (Name::new("bench")?, Name::new("bench")?);
        store.commit(&[
            Record::TopicCreated {
                topic: TOPIC,
                name: topic,
                kind: TopicKind::Named,
                settings: TopicSettings::default(),
            },
            Record::ProducerOpened { producer: ProducerId(0), name: producer, at: Timestamp(1) },
        ])?;
        let block = MessageBlock::encode(&vec![Message::new(vec![7; size]); batch]);
        Ok(Self { store, block, next: 0 })
    }

    fn publish(&mut self) -> Result<Duration, Failure> {
        let record = Record::Published(Published {
            targets: vec![(TOPIC, Offset(self.next))],
            source: Source::Producer(Origin { producer: ProducerId(0), sequence: Sequence(self.next + 1) }),
            at: Timestamp(1_790_000_000_000 + self.next),
            block: self.block.clone(),
        });
        let started = Instant::now();
        self.store.commit(&[record])?;
        self.next += self.block.count() as u64;
        Ok(started.elapsed())
    }
}

fn options(dir: &Path, epoch: u64, predecessor: Predecessor) -> OpenOptions {
    let (dir, epoch) = (dir.to_owned(), Epoch(epoch));
    let predecessors = Predecessors::new((1..epoch.0).map(|lower| (Epoch(lower), predecessor)).collect());
    OpenOptions { dir, mode: Mode::Database, epoch, predecessors, segment_bytes: SEGMENT_BYTES }
}

fn maintain(store: &mut dyn Store) -> Result<(), Failure> {
    while store.maintenance_due() {
        store.maintain(&mut Snapshot::default, &mut || Ok(()))?;
    }
    Ok(())
}

fn plain_connection(path: &Path) -> Result<Connection, Failure> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags_and_vfs(path, flags, c"unix-excl")?;
    connection.execute_batch(
        "PRAGMA page_size = 4096; PRAGMA auto_vacuum = incremental; PRAGMA journal_mode = wal;
         PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA temp_store = memory;
         PRAGMA cache_size = -2048;
         CREATE TABLE plain (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    )?;
    Ok(connection)
}

fn plain_insert(connection: &mut Connection, batch: usize, next: &mut i64) -> Result<Duration, Failure> {
    let body = [7_u8; 128];
    let started = Instant::now();
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare_cached("INSERT INTO plain (id, body) VALUES (?1, ?2)")?;
        for _ in 0..batch {
            *next += 1;
            insert.execute((*next, &body[..]))?;
        }
    }
    transaction.commit()?;
    Ok(started.elapsed())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// Memory of this process, now and at most.
fn memory() -> Result<String, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = |name| status.lines().find(|line: &&str| line.starts_with(name)).unwrap_or_default();
    Ok(format!("{} {}", line("VmRSS"), line("VmHWM")).split_whitespace().collect::<Vec<_>>().join(" "))
}
