//! The database mode of the store: takeovers, recovery, and that what was committed is what is read.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use batonmq::model::chunk::Origin;
use batonmq::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, RouteId, Sequence, TopicId};
use batonmq::model::limits::QUERY_VALUE_BYTES_MAX;
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::name::Name;
use batonmq::model::record::{Published, Record, Source};
use batonmq::model::retry::{Failure, Retry, ReturnReason};
use batonmq::model::route::{Route, RouteMode};
use batonmq::model::settings::{GroupSettings, Policy, TopicSettings};
use batonmq::model::snapshot::{GroupState, Snapshot, TopicState};
use batonmq::model::table::Value;
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::store::manifest::Manifest;
use batonmq::store::query::{self, Inspector, QueryBounds, QueryError};
use batonmq::store::{Fenced, Mode, OpenOptions, Predecessor, Predecessors, Store, StoreError, database};
use bytes::Bytes;
use proptest::prelude::*;

const SEGMENT_BYTES: u64 = 128 * 1024;

fn options(dir: &Path, epoch: u64, predecessor: Predecessor) -> OpenOptions {
    let (dir, epoch) = (dir.to_owned(), Epoch(epoch));
    let predecessors = Predecessors::new((1..epoch.0).map(|lower| (Epoch(lower), predecessor)).collect());
    OpenOptions { dir, mode: Mode::Database, epoch, predecessors, segment_bytes: SEGMENT_BYTES }
}

fn open(dir: &Path, epoch: u64, predecessor: Predecessor) -> (Box<dyn Store>, Snapshot) {
    database::open(&options(dir, epoch, predecessor)).unwrap()
}

fn database(dir: &Path, epoch: u64) -> PathBuf {
    dir.join(format!("baton-{epoch:020}.db"))
}

fn log(dir: &Path, epoch: u64) -> PathBuf {
    dir.join(format!("baton-{epoch:020}.db-wal"))
}

/// Does all upkeep that is due.
fn maintain(store: &mut dyn Store) {
    while store.maintenance_due() {
        store.maintain(&mut Snapshot::default, &mut || Ok(())).unwrap();
    }
}

fn close(store: Box<dyn Store>) {
    store.close(&mut Snapshot::default, &mut || Ok(())).unwrap();
}

/// What the store must hold: the fold of the records, and every message.
#[derive(Clone, Default)]
struct Model {
    snapshot: Snapshot,
    messages: BTreeMap<(TopicId, u64), Stored>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    encoded: Bytes,
    at: Timestamp,
    origin: Option<Origin>,
}

impl Model {
    fn apply(&mut self, record: &Record) {
        self.snapshot.apply(record).unwrap();
        let Record::Published(published) = record else { return };
        let count = published.block.count() as u32;
        let origins: Vec<Option<Origin>> = published
            .source
            .origins(count)
            .flat_map(|(count, origin)| {
                (0..u64::from(count)).map(move |index| {
                    origin.map(|origin| Origin { sequence: Sequence(origin.sequence.0 + index), ..origin })
                })
            })
            .collect();
        for &(topic, first) in &published.targets {
            for ((index, encoded), origin) in published.block.iter().enumerate().zip(origins.clone()) {
                let stored = Stored { encoded, at: published.at, origin };
                self.messages.insert((topic, first.0 + index as u64), stored);
            }
        }
    }

    /// Commits the records to the store and to the model.
    fn commit(&mut self, store: &mut dyn Store, records: &[Record]) {
        store.commit(records).unwrap();
        for record in records {
            self.apply(record);
        }
    }

    /// The record that publishes to a topic at its end.
    fn publish(
        &self,
        topics: &[TopicId],
        producer: Option<ProducerId>,
        messages: &[Message],
        at: u64,
    ) -> Record {
        let targets = topics.iter().map(|topic| (*topic, self.snapshot.topics[topic].end)).collect();
        let source =
            Source::of(producer.map(|producer| Origin {
                producer,
                sequence: self.snapshot.producers[&producer].last.next(),
            }));
        let block = MessageBlock::encode(messages);
        Record::Published(Published { targets, source, at: Timestamp(at), block })
    }

    /// Reads everything back.
    fn check(&self, store: &dyn Store, bytes_max: usize) {
        let mut reader = store.reader().unwrap();
        for (&id, topic) in &self.snapshot.topics {
            if topic.start.0 > 0 {
                assert_eq!(reader.read(id, Offset(topic.start.0 - 1), bytes_max).unwrap(), None, "trimmed");
            }
            assert_eq!(reader.read(id, topic.end, bytes_max).unwrap(), None, "beyond the end");
            let mut at = topic.next_run(topic.start).start;
            while at < topic.end {
                let chunk = reader.read(id, at, bytes_max).unwrap().expect("committed");
                assert_eq!(chunk.first, at);
                assert!(chunk.block.count() == 1 || chunk.block.bytes().len() <= bytes_max);
                let stamps = chunk.stamps.iter().flat_map(|stamp| {
                    (0..stamp.count).map(|index| {
                        let origin = stamp.origin.map(|origin| Origin {
                            producer: origin.producer,
                            sequence: Sequence(origin.sequence.0 + u64::from(index)),
                        });
                        (stamp.published_at, origin)
                    })
                });
                let read: Vec<Stored> = chunk
                    .block
                    .iter()
                    .zip(stamps)
                    .map(|(encoded, (at, origin))| Stored { encoded, at, origin })
                    .collect();
                let expected: Vec<Stored> = (0..chunk.block.count() as u64)
                    .map(|index| self.messages[&(id, at.0 + index)].clone())
                    .collect();
                assert_eq!(read, expected);
                at = topic.next_run(chunk.range().end).start;
            }
        }
        assert_eq!(
            reader.read(self.snapshot.next.topic, Offset(0), bytes_max).unwrap(),
            None,
            "no such topic"
        );
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

const TOPIC: TopicId = TopicId(0);
const GROUP: GroupId = GroupId(0);
const PRODUCER: ProducerId = ProducerId(0);

/// A topic, a group on it, a producer.
fn first_records() -> Vec<Record> {
    vec![
        Record::TopicCreated {
            topic: TOPIC,
            name: name("orders"),
            kind: TopicKind::Named,
            settings: TopicSettings::default(),
        },
        Record::GroupCreated {
            group: GROUP,
            topic: TOPIC,
            name: name("billing"),
            settings: GroupSettings::default(),
            floor: Offset(0),
            part_of: None,
        },
        Record::ProducerOpened { producer: PRODUCER, name: name("shop"), at: Timestamp(1_000) },
    ]
}

fn messages(count: usize, size: usize) -> Vec<Message> {
    (0..count).map(|index| Message::new(vec![index as u8; size])).collect()
}

/// A store with a topic, a group, a producer and `count` messages, each in a commit of its own.
fn filled(dir: &Path, count: u64) -> (Box<dyn Store>, Model) {
    let (mut store, snapshot) = open(dir, 1, Predecessor::None);
    assert_eq!(snapshot, Snapshot::default());
    let mut model = Model::default();
    model.commit(&mut *store, &first_records());
    for at in 0..count {
        let record = model.publish(&[TOPIC], Some(PRODUCER), &messages(1, 100), 2_000 + at);
        model.commit(&mut *store, &[record]);
    }
    (store, model)
}

#[test]
fn everything_is_there_after_each_way_to_end_an_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut model) = filled(dir.path(), 30);
    close(store);
    assert_eq!(fs::metadata(log(dir.path(), 1)).map_or(0, |log| log.len()), 0, "a closed store has no log");
    for epoch in 2..10 {
        let predecessor = if epoch % 3 == 0 { Predecessor::MayWrite } else { Predecessor::Gone };
        let (mut store, snapshot) = open(dir.path(), epoch, predecessor);
        assert_eq!(snapshot, model.snapshot, "epoch {epoch}");
        model.check(&*store, 500);
        let record = model.publish(&[TOPIC], Some(PRODUCER), &messages(200, 300), 3_000 + epoch);
        model.commit(&mut *store, &[record]);
        if epoch % 2 == 0 {
            maintain(&mut *store);
        }
        model.check(&*store, 10_000);
        if epoch % 4 == 0 {
            close(store);
        }
    }
}

#[test]
fn a_crash_image_has_every_commit_that_returned() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = filled(dir.path(), 0);
    for round in 0..60 {
        let record = model.publish(&[TOPIC], Some(PRODUCER), &messages(1 + round % 7, 900), 2_000);
        model.commit(&mut *store, &[record]);
        if round % 3 == 0 && store.maintenance_due() {
            store.maintain(&mut Snapshot::default, &mut || Ok(())).unwrap();
        }
        let image = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), image.path());
        let (recovered, snapshot) = open(image.path(), 2, Predecessor::Gone);
        assert_eq!(snapshot, model.snapshot);
        model.check(&*recovered, 20_000);
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A paused master comes back after it was taken over: what it then writes and checkpoints must not reach its
/// successor, nor the other way round.
#[test]
fn late_writes_of_the_old_master_do_not_reach_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut old, mut old_model) = filled(dir.path(), 40);
    let mut model = old_model.clone();
    let (mut new, snapshot) = open(dir.path(), 2, Predecessor::MayWrite);
    assert_eq!(snapshot, model.snapshot);
    for round in 0..20 {
        let late = old_model.publish(&[TOPIC], None, &messages(60, 800), 5_000 + round);
        old_model.commit(&mut *old, &[late]);
        maintain(&mut *old);
        let record = model.publish(&[TOPIC], Some(PRODUCER), &messages(50, 700), 6_000 + round);
        model.commit(&mut *new, &[record]);
        maintain(&mut *new);
        model.check(&*new, 100_000);
    }
    drop(old);
    drop(new);
    let (store, snapshot) = open(dir.path(), 3, Predecessor::MayWrite);
    assert_eq!(snapshot, model.snapshot);
    model.check(&*store, 100_000);
}

#[test]
fn files_of_older_epochs_are_removed_only_after_the_fence_was_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (old, mut model) = filled(dir.path(), 5);
    let (mut new, _) = open(dir.path(), 2, Predecessor::MayWrite);
    let leftover = database(dir.path(), 0);
    let other = dir.path().join("baton-notes.db");
    fs::write(&leftover, "a copy that was never finished").unwrap();
    fs::write(&other, "not ours").unwrap();
    let record = model.publish(&[TOPIC], None, &messages(3, 10), 9_000);
    model.commit(&mut *new, &[record]);
    let fenced = new.maintain(&mut Snapshot::default, &mut || Err(Fenced::Superseded(Epoch(3))));
    assert!(matches!(fenced, Err(StoreError::Fenced(Fenced::Superseded(Epoch(3))))));
    assert!(
        database(dir.path(), 1).exists() && leftover.exists(),
        "nothing is removed by a master that lost"
    );
    assert!(new.commit(&first_records()).is_err(), "a store that has failed does nothing more");
    drop(new);
    let manifests = || fs::read_dir(dir.path().join("manifest")).unwrap().count();
    assert_eq!(manifests(), 2);
    let (mut new, snapshot) = open(dir.path(), 3, Predecessor::Gone);
    assert_eq!(snapshot, model.snapshot);
    maintain(&mut *new);
    assert_eq!(manifests(), 1, "one is left behind by no takeover");
    assert!(!database(dir.path(), 1).exists() && !log(dir.path(), 1).exists() && !leftover.exists());
    assert!(database(dir.path(), 2).exists() && other.exists());
    drop(old);
    model.check(&*new, 1_000);
}

#[test]
fn a_missing_database_is_not_made_anew() {
    for predecessor in [Predecessor::None, Predecessor::Gone, Predecessor::MayWrite] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = filled(dir.path(), 1);
        close(store);
        fs::remove_file(database(dir.path(), 1)).unwrap();
        let refused = database::open(&options(dir.path(), 2, predecessor)).err();
        assert!(matches!(&refused, Some(StoreError::Missing { path }) if *path == database(dir.path(), 1)));
        assert!(!database(dir.path(), 1).exists() && !database(dir.path(), 2).exists());
        assert_eq!(Manifest::newest(dir.path(), Epoch(2)).unwrap().unwrap().epoch, Epoch(1));
    }
}

/// A small database that was closed cleanly has no log, and so was no larger than a new one with its log: a new store
/// was made, and the old one removed.
#[test]
fn a_store_whose_manifest_is_lost_is_not_made_anew() {
    for (count, ends) in
        [0, 1, 5, 20, 40].into_iter().flat_map(|count| [(count, "closed"), (count, "killed")])
    {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = filled(dir.path(), count);
        if ends == "closed" {
            maintain(&mut *store);
            close(store);
        } else {
            drop(store);
        }
        fs::remove_dir_all(dir.path().join("manifest")).unwrap();
        let refused = database::open(&options(dir.path(), 2, Predecessor::Gone)).err();
        assert!(matches!(refused, Some(StoreError::Missing { .. })), "{count} {ends}: {refused:?}");
        assert!(database(dir.path(), 1).exists());
    }
}

/// The first master ever died before it wrote its manifest: nothing was stored, and the next one begins anew.
#[test]
fn a_database_that_was_never_served_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path(), 1, Predecessor::None);
    drop(store);
    fs::remove_dir_all(dir.path().join("manifest")).unwrap();
    let (mut store, snapshot) = open(dir.path(), 2, Predecessor::MayWrite);
    assert_eq!(snapshot, Snapshot::default());
    maintain(&mut *store);
    assert!(!database(dir.path(), 1).exists());
}

/// One bit flipped in the middle of the log ended its recovery there: a takeover came up without the commits behind
/// it, and said nothing.
#[test]
fn a_damaged_frame_before_other_commits_is_named_and_nothing_is_changed() {
    for predecessor in [Predecessor::Gone, Predecessor::MayWrite] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = filled(dir.path(), 50);
        drop(store);
        let mut bytes = fs::read(log(dir.path(), 1)).unwrap();
        let at = bytes.len() * 6 / 10;
        bytes[at] ^= 1;
        fs::write(log(dir.path(), 1), &bytes).unwrap();
        let refused = database::open(&options(dir.path(), 2, predecessor)).err();
        let frame = 32 + (at as u64 - 32) / 4120 * 4120;
        match refused {
            Some(StoreError::Damaged { path, position, .. }) => {
                assert_eq!((path, position), (log(dir.path(), 1), frame));
            }
            other => panic!("{other:?}"),
        }
        assert!(fs::read(log(dir.path(), 1)).unwrap() == bytes);
        assert!(!database(dir.path(), 2).exists());
    }
}

/// The log is copied with what a torn commit left behind its end. The next commits lay before that, and once one of
/// them was torn too, the remains looked like a commit behind it.
#[test]
fn a_torn_commit_is_cut_and_its_remains_do_not_matter_later() {
    for predecessor in [Predecessor::Gone, Predecessor::MayWrite] {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, model) = filled(dir.path(), 10);
        let start = fs::metadata(log(dir.path(), 1)).unwrap().len();
        let torn = model.publish(&[TOPIC], None, &messages(30, 900), 4_000);
        store.commit(&[torn]).unwrap();
        drop(store);
        let tear = |path: &Path, at: u64| {
            let mut bytes = fs::read(path).unwrap();
            bytes[at as usize] ^= 1;
            fs::write(path, bytes).unwrap();
        };
        tear(&log(dir.path(), 1), start + 100);
        let (mut store, snapshot) = open(dir.path(), 2, predecessor);
        assert_eq!(snapshot, model.snapshot);
        let kept = if predecessor == Predecessor::Gone { 1 } else { 2 };
        let record = model.publish(&[TOPIC], None, &messages(1, 10), 5_000);
        store.commit(&[record]).unwrap();
        drop(store);
        let first = if kept == 1 { 32 } else { start };
        tear(&log(dir.path(), kept), first + 100);
        let (store, snapshot) = open(dir.path(), 3, predecessor);
        assert_eq!(snapshot, model.snapshot);
        model.check(&*store, 10_000);
    }
}

#[test]
fn a_newer_format_is_refused_before_anything_is_changed() {
    for predecessor in [Predecessor::Gone, Predecessor::MayWrite] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = filled(dir.path(), 1);
        close(store);
        let connection = rusqlite::Connection::open(database(dir.path(), 1)).unwrap();
        connection.pragma_update(None, "user_version", database::FORMAT + 1).unwrap();
        drop(connection);
        let before = fs::read(database(dir.path(), 1)).unwrap();
        let refused = database::open(&options(dir.path(), 2, predecessor)).err();
        let newer = database::FORMAT + 1;
        assert!(matches!(refused, Some(StoreError::NewerFormat { found, .. }) if found == newer));
        assert_eq!(fs::read(database(dir.path(), 1)).unwrap(), before);
        assert_eq!(Manifest::newest(dir.path(), Epoch(2)).unwrap().unwrap().epoch, Epoch(1));
    }
}

#[test]
fn a_file_of_another_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = filled(dir.path(), 1);
    close(store);
    let connection = rusqlite::Connection::open(database(dir.path(), 1)).unwrap();
    connection.pragma_update(None, "application_id", 7).unwrap();
    drop(connection);
    let refused = database::open(&options(dir.path(), 2, Predecessor::Gone)).err();
    assert!(matches!(refused, Some(StoreError::Damaged { .. })));
}

#[test]
fn dropping_the_store_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut model) = filled(dir.path(), 20);
    let content = || (fs::read(database(dir.path(), 1)).unwrap(), fs::read(log(dir.path(), 1)).unwrap());
    let before = content();
    drop(store);
    assert!(content() == before, "a master that lost its lock must be able to end without a write");

    let (mut store, _) = open(dir.path(), 2, Predecessor::Gone);
    let record = model.publish(&[TOPIC], None, &messages(3, 10), 9_000);
    model.commit(&mut *store, &[record]);
    let reader = store.reader().unwrap();
    let before = content();
    drop(store);
    drop(reader);
    assert!(content() == before, "nor when a reader is closed last");
}

#[test]
fn closing_checks_the_fence_before_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = filled(dir.path(), 20);
    let content = || (fs::read(database(dir.path(), 1)).unwrap(), fs::read(log(dir.path(), 1)).unwrap());
    let before = content();
    let fenced = store.close(&mut Snapshot::default, &mut || Err(Fenced::Superseded(Epoch(2))));
    assert!(matches!(fenced, Err(StoreError::Fenced(_))));
    assert!(content() == before);
}

const CHILD: &str = "BATON_TEST_DATABASE_DIR";

/// Not a test of its own: it is what the second process of the next test runs.
#[test]
fn second_process() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let refused = database::open(&options(Path::new(&dir), 2, Predecessor::Gone)).err();
    let Some(StoreError::Database { message, .. }) = refused else { panic!("not refused: {refused:?}") };
    assert!(message.contains("another process has the database open"), "{message}");
    println!("refused as it should be");
}

#[test]
fn another_process_cannot_open_a_database_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = filled(dir.path(), 3);
    // A reader that comes and goes must not take the writer's lock with it.
    drop(store.reader().unwrap());
    maintain(&mut *store);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "second_process", "--nocapture"])
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("refused as it should be"), "{said}");
    let record = model.publish(&[TOPIC], None, &messages(3, 10), 9_000);
    model.commit(&mut *store, &[record]);
    model.check(&*store, 1_000);
}

#[test]
fn offsets_are_never_reused_though_all_messages_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = filled(dir.path(), 30);
    let settled = Record::Settled { group: GROUP, ranges: vec![OffsetRange::new(0, 30)] };
    model.commit(&mut *store, &[settled, Record::Trimmed { topic: TOPIC, start: Offset(30) }]);
    maintain(&mut *store);
    close(store);
    let connection = rusqlite::Connection::open(database(dir.path(), 1)).unwrap();
    let rows: u64 =
        connection.query_row("SELECT count(*) FROM message", [], |row| row.get::<_, u32>(0)).unwrap().into();
    assert_eq!(rows, 0, "trimmed messages are deleted");
    drop(connection);
    let (mut store, snapshot) = open(dir.path(), 2, Predecessor::Gone);
    assert_eq!(snapshot, model.snapshot);
    assert_eq!(snapshot.topics[&TOPIC].end, Offset(30));
    let record = model.publish(&[TOPIC], None, &messages(2, 10), 9_000);
    model.commit(&mut *store, &[record]);
    model.check(&*store, 1_000);
}

/// Deleting a large topic takes many steps; a node that dies in between goes on where it was.
#[test]
fn messages_of_a_deleted_topic_are_reclaimed_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = filled(dir.path(), 0);
    for _ in 0..30 {
        let record = model.publish(&[TOPIC], None, &messages(1_000, 20), 2_000);
        model.commit(&mut *store, &[record]);
    }
    maintain(&mut *store);
    let records = [Record::GroupDeleted { group: GROUP }, Record::TopicDeleted { topic: TOPIC }];
    model.commit(&mut *store, &records);
    for epoch in 2..4 {
        store.maintain(&mut Snapshot::default, &mut || Ok(())).unwrap();
        assert!(store.maintenance_due());
        drop(store);
        let snapshot;
        (store, snapshot) = open(dir.path(), epoch, Predecessor::Gone);
        assert_eq!(snapshot, model.snapshot);
    }
    maintain(&mut *store);
    close(store);
    let connection = rusqlite::Connection::open(database(dir.path(), 1)).unwrap();
    let rows = |table| {
        connection
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, u32>(0))
            .unwrap()
    };
    assert_eq!((rows("message"), rows("stretch"), rows("topic")), (0, 0, 0));
}

/// A topic's row ids are split into stretches of 2^32 offsets; this one is near the end of its first.
#[test]
fn a_topic_grows_beyond_its_first_stretch() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut model) = filled(dir.path(), 0);
    close(store);
    let near = (1_u64 << 32) - 70;
    let connection = rusqlite::Connection::open(database(dir.path(), 1)).unwrap();
    let settings: String = connection.query_row("SELECT settings FROM topic", [], |row| row.get(0)).unwrap();
    let number = |number: u64| number.to_le_bytes().to_vec();
    let text = |text: &str| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let null = u32::MAX.to_le_bytes().to_vec();
    let row = [text("topic"), number(0), text("orders"), text("named")].into_iter().chain(vec![null; 5]);
    let row = row.chain([text(&settings), number(near), number(near), number(near), number(0), number(0)]);
    let row: Vec<u8> = row.flatten().collect();
    let sql = "UPDATE topic SET start_offset = ?1, cleared_offset = ?1, end_offset = ?1, checksum = ?2";
    connection.execute(sql, (near as i64, crc32c::crc32c(&row).cast_signed())).unwrap();
    drop(connection);
    for state in model.snapshot.topics.values_mut() {
        (state.start, state.end) = (Offset(near), Offset(near));
    }
    let (mut store, snapshot) = open(dir.path(), 2, Predecessor::Gone);
    assert_eq!(snapshot, model.snapshot);
    for _ in 0..5 {
        let record = model.publish(&[TOPIC], Some(PRODUCER), &messages(33, 10), 9_000);
        model.commit(&mut *store, &[record]);
    }
    model.check(&*store, 400);
    let start = Offset(near + 100);
    model.commit(&mut *store, &[Record::Trimmed { topic: TOPIC, start }]);
    maintain(&mut *store);
    drop(store);
    let (mut store, snapshot) = open(dir.path(), 3, Predecessor::Gone);
    assert_eq!(snapshot, model.snapshot);
    let record = model.publish(&[TOPIC], Some(PRODUCER), &messages(33, 10), 9_000);
    model.commit(&mut *store, &[record]);
    model.check(&*store, 400);
}

#[test]
fn the_log_does_not_grow_under_steady_load() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = filled(dir.path(), 0);
    let mut longest = 0;
    for round in 0..300 {
        let record = model.publish(&[TOPIC], Some(PRODUCER), &messages(20, 500), 2_000 + round);
        model.commit(&mut *store, &[record]);
        maintain(&mut *store);
        longest = longest.max(fs::metadata(log(dir.path(), 1)).unwrap().len());
    }
    assert!(longest < 2 * SEGMENT_BYTES, "{longest} bytes of log after 3 MB of messages");
    model.check(&*store, 10_000);
}

/// After some large messages at once the log took half a gigabyte for as long as the master served.
#[test]
fn the_log_is_cut_after_a_commit_that_made_it_long() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = filled(dir.path(), 1);
    let large = messages(700, 100 << 10);
    let publish = model.publish(&[TOPIC], None, &large, 1);
    model.commit(&mut *store, &[publish]);
    let bytes = || fs::metadata(log(dir.path(), 1)).unwrap().len();
    assert!(bytes() > 68 << 20, "{}", bytes());
    for _ in 0..3 {
        maintain(&mut *store);
        let publish = model.publish(&[TOPIC], None, &messages(1, 10), 1);
        model.commit(&mut *store, &[publish]);
    }
    assert!(bytes() <= 64 << 20, "{}", bytes());
}

/// A reader that is in the middle of a read keeps a checkpoint from finishing. It must not keep the log growing.
#[test]
fn the_log_does_not_grow_under_constant_reading() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = filled(dir.path(), 50);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (mut reader, stop) = (store.reader().unwrap(), &stop);
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(reader.read(TOPIC, Offset(0), 100_000).unwrap().is_some());
                }
            });
        }
        let mut longest = 0;
        for round in 0..300 {
            let record = model.publish(&[TOPIC], Some(PRODUCER), &messages(20, 500), 2_000 + round);
            model.commit(&mut *store, &[record]);
            maintain(&mut *store);
            longest = longest.max(fs::metadata(log(dir.path(), 1)).unwrap().len());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(longest < 8 * SEGMENT_BYTES, "{longest} bytes of log");
    });
}

#[test]
fn a_person_can_ask_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = filled(dir.path(), 10);
    let settled = Record::Settled {
        group: GROUP,
        ranges: vec![OffsetRange::new(0, 2), OffsetRange::new(4, 5), OffsetRange::new(7, 9)],
    };
    model.commit(&mut *store, &[settled]);
    close(store);
    let connection = rusqlite::Connection::open(database(dir.path(), 1)).unwrap();
    let sql = "SELECT topic, consumer_group, waiting, oldest_since FROM backlog";
    let row: (String, String, u32, String) = connection
        .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .unwrap();
    assert_eq!(row, ("orders".into(), "billing".into(), 5, "1970-01-01T00:00:02.002Z".into()));
    let sql = "SELECT message_offset, producer, sequence, body_bytes FROM messages WHERE topic = 'orders'";
    let row: (u32, String, u32, u32) = connection
        .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .unwrap();
    assert_eq!(row, (0, "shop".into(), 1, 100));
}

/// All rows of an answer, with bars between the values.
fn rows(connection: &rusqlite::Connection, sql: &str) -> Vec<String> {
    use rusqlite::types::Value as V;
    let mut statement = connection.prepare(sql).unwrap();
    let count = statement.column_count();
    let text = |value: V| match value {
        V::Null => "-".to_owned(),
        V::Integer(number) => number.to_string(),
        V::Text(text) => text,
        other => format!("{other:?}"),
    };
    let row = |row: &rusqlite::Row<'_>| {
        (0..count).map(|column| row.get(column).map(text)).collect::<rusqlite::Result<Vec<_>>>()
    };
    statement.query_map([], row).unwrap().map(|row| row.unwrap().join("|")).collect()
}

/// A topic with a lane and with what waits for a time, a pattern with a group that has a part of the topic, a route.
fn furnished(dir: &Path) -> rusqlite::Connection {
    let (mut store, mut model) = filled(dir, 10);
    let [lane, delayed, expiring, pattern, copies] = [1, 2, 3, 4, 5].map(TopicId);
    let (from, until) = (Timestamp(60_000), Timestamp(120_000));
    let created = |topic: TopicId, text: Name, kind| Record::TopicCreated {
        topic,
        name: text,
        kind,
        settings: TopicSettings::default(),
    };
    let part = |group: u32, topic, of: Option<u32>, text| Record::GroupCreated {
        group: GroupId(group),
        topic,
        name: name(text),
        settings: GroupSettings::default(),
        floor: Offset(0),
        part_of: of.map(GroupId),
    };
    let slot = |waiting| TopicKind::Slot { of: TOPIC, waiting, from, until };
    let rule = |to| Route {
        name: name("copy-all"),
        from: TOPIC,
        to,
        filter: Some("a = 1".to_owned()),
        mode: RouteMode::Move,
    };
    let records = [
        created(lane, name("orders"), TopicKind::Lane { of: TOPIC, priority: 7 }),
        created(delayed, name("orders"), slot(Waiting::Delayed)),
        created(expiring, name("orders"), slot(Waiting::Expiring)),
        created(pattern, Name::pattern("*.#").unwrap(), TopicKind::Pattern),
        created(copies, name("copies"), TopicKind::Named),
        part(1, lane, Some(0), "billing"),
        part(2, pattern, None, "audit"),
        part(3, TOPIC, Some(2), "audit"),
        part(4, lane, Some(2), "audit"),
        Record::RouteCreated { route: RouteId(0), rule: rule(vec![copies, pattern]) },
    ];
    model.commit(&mut *store, &records);
    let mut urgent = messages(4, 10);
    urgent.iter_mut().for_each(|message| message.priority = 7);
    let mut later = messages(3, 10);
    later.iter_mut().for_each(|message| message.deliver_at = Some(Timestamp(61_000)));
    for (topic, messages, at) in
        [(lane, urgent, 1_500), (delayed, later, 3_000), (expiring, messages(5, 10), 4_000)]
    {
        let record = model.publish(&[topic], None, &messages, at);
        model.commit(&mut *store, &[record]);
    }
    let failure =
        |text: &str| Failure { at: Timestamp(5_000), reason: ReturnReason::Nacked, text: Some(text.into()) };
    let retry = Retry::default().failed(failure("first"), Timestamp(6_000));
    let untouched = Retry::default().released(Timestamp(6_500));
    let retry = retry.released(Timestamp(6_500)).failed(failure("no \"way\""), Timestamp(7_000));
    let settled = |group: u32, start, end| {
        let ranges = vec![OffsetRange::new(start, end)];
        Record::Settled { group: GroupId(group), ranges }
    };
    let records = [
        settled(0, 0, 3),
        settled(1, 1, 2),
        settled(3, 0, 10),
        settled(4, 0, 1),
        Record::Returned { group: GroupId(1), range: OffsetRange::new(2, 4), retry },
        Record::Returned { group: GroupId(0), range: OffsetRange::new(5, 6), retry: untouched },
    ];
    model.commit(&mut *store, &records);
    close(store);
    rusqlite::Connection::open(database(dir, 1)).unwrap()
}

#[test]
fn a_person_sees_topics_and_groups_and_not_what_they_are_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let connection = furnished(dir.path());
    let time = |at: &str| format!("1970-01-01T00:0{at}Z");
    let (first, lane_at) = (time("0:02.000"), time("0:01.500"));
    let sql = "SELECT topic, kind, messages, delayed, consumer_groups, oldest_since, last_published_at,
                      held_back_by, start_offset, end_offset
               FROM topics ORDER BY topic";
    let expected = [
        "*.#|pattern|0|0|1|-|-|audit|0|0".to_owned(),
        "copies|named|0|0|0|-|-|-|0|0".to_owned(),
        format!("orders|named|14|3|2|{lane_at}|{}|billing|0|10", time("0:03.000")),
    ];
    assert_eq!(rows(&connection, sql), expected);
    let sql = "SELECT topic, consumer_group, waiting, retrying, oldest_since, oldest_offset
               FROM backlog ORDER BY consumer_group";
    let expected = [format!("*.#|audit|3|0|{lane_at}|-"), format!("orders|billing|10|2|{lane_at}|3")];
    assert_eq!(rows(&connection, sql), expected);
    let sql = "SELECT priority, count(*), min(message_offset), max(message_offset), min(published_at)
               FROM messages WHERE topic = 'orders' GROUP BY priority";
    assert_eq!(rows(&connection, sql), [format!("0|10|0|9|{first}"), format!("7|4|0|3|{lane_at}")]);
    let sql = "SELECT topic, deliver_at, count(*) FROM delayed GROUP BY topic, deliver_at";
    assert_eq!(rows(&connection, sql), [format!("orders|{}|3", time("1:01.000"))]);
    let sql = "SELECT * FROM scheduled ORDER BY waiting";
    let window = format!("{}|{}", time("1:00.000"), time("2:00.000"));
    let expected = [format!("orders|delayed|{window}|3"), format!("orders|expiring|{window}|5")];
    assert_eq!(rows(&connection, sql), expected);
    let sql =
        "SELECT topic, priority, consumer_group, start_offset, end_offset, messages, handed_out, failed,
                      reason, said, due_at, json_array_length(failures)
               FROM retries ORDER BY priority";
    let expected = [
        format!("orders|0|billing|5|6|1|1|0|-|-|{}|0", time("0:06.500")),
        format!("orders|7|billing|2|4|2|3|2|nacked|no \"way\"|{}|2", time("0:07.000")),
    ];
    assert_eq!(rows(&connection, sql), expected);
    let sql = "SELECT * FROM routes ORDER BY to_topic";
    assert_eq!(
        rows(&connection, sql),
        ["copy-all|orders|*.#|a = 1|move", "copy-all|orders|copies|a = 1|move"]
    );
}

/// The count of a topic held what was removed from its middle, and an answer took as long as there are removed ranges
/// for each message.
#[test]
fn what_is_removed_from_the_middle_is_not_counted_and_costs_no_look_at_each_range() {
    const RANGES: u64 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = filled(dir.path(), 0);
    let record = model.publish(&[TOPIC], Some(PRODUCER), &messages(2 * RANGES as usize, 10), 2_000);
    model.commit(&mut *store, &[record]);
    let every_second = || (1..RANGES).map(|at| OffsetRange::one(Offset(2 * at)));
    let settled = Record::Settled { group: GROUP, ranges: every_second().collect() };
    let removed = Record::Removed { topic: TOPIC, ranges: every_second().collect() };
    model.commit(&mut *store, &[settled, removed]);
    let mut inspector = store.inspector().unwrap().unwrap();
    let mut number = |sql: &str| inspector.query(sql, &bounds()).unwrap().rows[0][0].clone();
    let there = Value::Integer(RANGES as i64 + 1);
    assert_eq!(number("SELECT messages FROM topics"), there);
    assert_eq!(number("SELECT waiting FROM backlog"), there);
    // One look at each range for each message would be 400 million.
    assert_eq!(number("SELECT count(*) FROM messages"), there);
    let mut reader = store.reader().unwrap();
    for at in RANGES - 2_000..RANGES {
        assert!(reader.read(TOPIC, Offset(2 * at), 100).unwrap().is_none());
        let chunk = reader.read(TOPIC, Offset(2 * at + 1), 100).unwrap().unwrap();
        assert_eq!(chunk.block.count(), 1);
    }
    drop((inspector, reader));
    // A step for each range would be a sync for each.
    let mut steps = 0;
    while store.maintenance_due() {
        store.maintain(&mut Snapshot::default, &mut || Ok(())).unwrap();
        steps += 1;
    }
    assert!(steps < RANGES / 10, "{steps} steps of upkeep");
    close(store);
    let connection = rusqlite::Connection::open(database(dir.path(), 1)).unwrap();
    let rows = connection.query_row("SELECT count(*) FROM message", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(rows, RANGES as i64 + 1);
}

fn bounds() -> QueryBounds {
    QueryBounds { rows_max: 100, bytes_max: 1 << 20, time_max: None, stop: Arc::default() }
}

fn count(inspector: &mut dyn Inspector) -> Value {
    inspector.query("SELECT count(*) FROM messages", &bounds()).unwrap().rows[0][0].clone()
}

/// A copy that a takeover has begun, or the database of an older epoch, is not the store.
#[test]
fn a_dead_store_is_asked_by_its_newest_manifest() {
    let dir = tempfile::tempdir().unwrap();
    assert!(query::inspect(dir.path()).unwrap().is_none());
    let (mut old, model) = filled(dir.path(), 10);
    let mut new_model = model.clone();
    let (mut new, _) = open(dir.path(), 2, Predecessor::MayWrite);
    let record = new_model.publish(&[TOPIC], None, &messages(3, 10), 9_000);
    new_model.commit(&mut *new, &[record]);
    let late = model.publish(&[TOPIC], None, &messages(50, 10), 9_000);
    old.commit(&[late]).unwrap();
    drop((old, new));
    fs::copy(database(dir.path(), 1), database(dir.path(), 3)).unwrap();
    let mut inspector = query::inspect(dir.path()).unwrap().unwrap();
    assert_eq!(count(&mut *inspector), Value::Integer(13));
}

#[test]
fn a_query_sees_what_is_committed_beside_it_and_bodies_of_any_size_can_be_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut model) = filled(dir.path(), 10);
    let mut inspector = store.inspector().unwrap().unwrap();
    assert_eq!(count(&mut *inspector), Value::Integer(10));
    let large = QUERY_VALUE_BYTES_MAX + 1;
    let record = model.publish(&[TOPIC], None, &messages(1, large), 9_000);
    model.commit(&mut *store, &[record]);
    assert_eq!(count(&mut *inspector), Value::Integer(11));
    let sql = "SELECT max(body_bytes), count(key) FROM messages";
    let table = inspector.query(sql, &bounds()).unwrap();
    assert_eq!(table.rows, [[Value::Integer(large as i64), Value::Integer(0)]]);
    let body = inspector.query("SELECT body FROM messages WHERE body_bytes > 1000", &bounds());
    assert!(matches!(body, Err(QueryError::Value(QUERY_VALUE_BYTES_MAX))), "{body:?}");
    let stopped = QueryBounds { stop: Arc::new(AtomicBool::new(true)), ..bounds() };
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    assert!(matches!(inspector.query(endless, &stopped), Err(QueryError::Stopped)));
    drop(inspector);
    close(store);
}

/// What is asked walks the messages of a topic by their keys, and looks at no others.
#[test]
fn the_views_use_the_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = filled(dir.path(), 10);
    let mut inspector = store.inspector().unwrap().unwrap();
    for view in ["messages", "delayed", "topics", "scheduled", "backlog", "retries"] {
        let sql = format!("EXPLAIN QUERY PLAN SELECT * FROM {view} WHERE topic = 'orders' LIMIT 10");
        let plan = format!("{:?}", inspector.query(&sql, &bounds()).unwrap().rows);
        for table in ["message", "stretch", "settled_range"] {
            assert!(!plan.contains(&format!("SCAN {table}")), "{view}: {plan}");
        }
        // What a topic or a group consists of is summed up; messages are never sorted.
        let sums_up = ["topics", "backlog"].contains(&view);
        assert!(sums_up || !plan.contains("TEMP B-TREE"), "{view}: {plan}");
    }
}

/// Turns random numbers into records that fit the model.
struct Making<'a> {
    model: &'a mut Model,
    numbers: std::vec::IntoIter<u64>,
}

impl Making<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        self.numbers.next().unwrap_or(0) % limit.max(1)
    }

    fn one<T: Copy>(&mut self, of: Vec<T>) -> Option<T> {
        let at = self.below(of.len() as u64) as usize;
        of.get(at).copied()
    }

    fn topic(&mut self) -> Option<TopicId> {
        self.one(self.model.snapshot.topics.keys().copied().collect())
    }

    fn group(&mut self) -> Option<GroupId> {
        self.one(self.model.snapshot.groups.keys().copied().collect())
    }

    fn range(&mut self, start: u64, end: u64) -> OffsetRange {
        let from = start + self.below(end.saturating_sub(start));
        OffsetRange::new(from, (from + 1 + self.below(8)).min(end.max(from)))
    }

    fn message(&mut self) -> Message {
        let size = match self.below(100) {
            0..5 => 5_000,
            5..9 => 70_000,
            9 => 260_000 + self.below(3) as usize * 900_000,
            _ => self.below(40) as usize,
        };
        let mut message = Message::new(vec![size as u8; size]);
        if self.below(4) == 0 {
            message.key = (self.below(2) == 0).then(|| vec![1; self.below(3) as usize].into());
            for _ in 0..self.below(3) {
                message.headers.push(("kind".into(), vec![2; self.below(9) as usize].into()));
            }
            message.deliver_at = (self.below(2) == 0).then(|| Timestamp(self.below(u64::MAX)));
            message.expires_at = (self.below(2) == 0).then(|| Timestamp(u64::MAX - self.below(9)));
            message.priority = self.below(10) as u8;
        }
        message
    }

    fn publish(&mut self) -> Option<Record> {
        let mut topics: Vec<TopicId> = (0..=self.below(3)).filter_map(|_| self.topic()).collect();
        topics.sort_unstable();
        topics.dedup();
        let producer = self.one(self.model.snapshot.producers.keys().copied().collect());
        let producer = if self.below(3) == 0 { None } else { producer };
        let count = if self.below(6) == 0 { 150 } else { 1 + self.below(12) };
        let messages: Vec<Message> = (0..count).map(|_| self.message()).collect();
        let at = 1_000 + self.below(500);
        (!topics.is_empty()).then(|| self.model.publish(&topics, producer, &messages, at))
    }

    fn settle(&mut self) -> Option<Record> {
        let group = self.group()?;
        let state = self.model.snapshot.groups[&group].clone();
        let end = self.model.snapshot.topics[&state.topic].end.0;
        let mut taken = state.settled.clone();
        let mut ranges = Vec::new();
        for _ in 0..=self.below(4) {
            let from = if self.below(4) == 0 { state.floor.0 } else { state.floor.0 + self.below(25) };
            let range = OffsetRange::new(from.min(end), (from + 1 + self.below(6)).min(end));
            let gaps: Vec<OffsetRange> = taken.gaps(range).collect();
            for gap in gaps {
                taken.insert(gap);
                ranges.push(gap);
            }
        }
        (!ranges.is_empty()).then_some(Record::Settled { group, ranges })
    }

    fn give_back(&mut self) -> Option<Record> {
        let group = self.group()?;
        let state = self.model.snapshot.groups[&group].clone();
        let end = self.model.snapshot.topics[&state.topic].end.0;
        let range = self.range(state.floor.0, end.min(state.floor.0 + 30));
        let range = state.settled.gaps(range).next()?;
        let reasons = vec![
            ReturnReason::Nacked,
            ReturnReason::LeaseExpired,
            ReturnReason::ConsumerLost,
            ReturnReason::Rejected,
        ];
        let failure = Failure {
            at: Timestamp(self.below(9_999)),
            reason: self.one(reasons)?,
            text: (self.below(2) == 0).then(|| "it \"said\"\n'no'".into()),
        };
        // Often what another range has, so that ranges grow together.
        let known = state.retries.iter().map(|(_, retry)| retry.clone()).nth(self.below(4) as usize);
        let retry = known.unwrap_or_default();
        let retry = match self.below(4) {
            0 => retry.released(Timestamp(self.below(9_999))),
            1 => retry.failed(failure, Timestamp(self.below(9_999))),
            _ if retry.handed_out > 0 => retry,
            _ => retry.released(Timestamp(5)),
        };
        Some(Record::Returned { group, range, retry })
    }

    /// A topic of any kind, or a part of a topic that is none.
    fn create_topic(&mut self) -> Record {
        let topic = self.model.snapshot.next.topic;
        let whole = self.model.snapshot.topics.iter().filter(|(_, state)| state.kind.part_of().is_none());
        let of = self.one(whole.map(|(id, _)| *id).collect());
        let (from, until) = (Timestamp(self.below(u64::MAX)), Timestamp(self.below(u64::MAX)));
        let kind = match (self.below(6), of) {
            (0, Some(of)) => TopicKind::Lane { of, priority: 1 + self.below(9) as u8 },
            (1, Some(of)) => TopicKind::Slot { of, waiting: Waiting::Delayed, from, until },
            (2, Some(of)) => TopicKind::Slot { of, waiting: Waiting::Expiring, from, until },
            (3, _) => TopicKind::Pattern,
            _ => TopicKind::Named,
        };
        let name = match kind {
            TopicKind::Pattern => Name::pattern(&format!("topic.{topic}.*")).unwrap(),
            _ => name(&format!("topic-{topic}")),
        };
        Record::TopicCreated { topic, name, kind, settings: TopicSettings::default() }
    }

    fn move_slot(&mut self) -> Option<Record> {
        let (from, until) = (Timestamp(self.below(u64::MAX)), Timestamp(self.below(u64::MAX)));
        let slots =
            self.model.snapshot.topics.iter().filter(|(_, state)| {
                matches!(state.kind, TopicKind::Slot { .. }) && state.start == state.end
            });
        let slot = self.one(slots.map(|(id, _)| *id).collect())?;
        Some(Record::SlotMoved { slot, from, until })
    }

    fn create_group(&mut self) -> Option<Record> {
        let (topic, group) = (self.topic()?, self.model.snapshot.next.group);
        let whole = self.model.snapshot.groups.iter().filter(|(_, state)| state.part_of.is_none());
        let part_of = self.one(whole.map(|(id, _)| *id).collect()).filter(|_| self.below(3) == 0);
        let settings = GroupSettings { dead_letter: Some(name("dead")), ..GroupSettings::default() };
        let (name, floor) = (name(&format!("group-{group}")), self.model.snapshot.topics[&topic].start);
        Some(Record::GroupCreated { group, topic, name, settings, floor, part_of })
    }

    fn seek(&mut self) -> Option<Record> {
        let group = self.group()?;
        let topic = &self.model.snapshot.topics[&self.model.snapshot.groups[&group].topic];
        let (start, end) = (topic.start.0, topic.end.0);
        Some(Record::GroupSought { group, floor: Offset(start + self.below(end - start + 1)) })
    }

    fn advance(&mut self) -> Option<Record> {
        let producer = self.one(self.model.snapshot.producers.keys().copied().collect())?;
        let last = Sequence(self.model.snapshot.producers[&producer].last.0 + self.below(9));
        Some(Record::ProducerAdvanced { producer, last, at: Timestamp(900 + self.below(3_000)) })
    }

    fn route(&mut self) -> Option<Record> {
        let from = self.topic()?;
        let to = self.model.snapshot.topics.keys().copied().filter(|&to| to != from).take(3).collect();
        let (route, rest) = (self.model.snapshot.next.route, self.below(4));
        let rule = Route {
            name: name(&format!("route-{route}")),
            from,
            to,
            filter: (rest % 2 == 0).then(|| "kind = 'a'".to_owned()),
            mode: if rest < 2 { RouteMode::Copy } else { RouteMode::Move },
        };
        Some(Record::RouteCreated { route, rule })
    }

    /// Some messages of a publish came from elsewhere, in runs of any length.
    fn mix(&mut self, record: &mut Record) {
        let Record::Published(published) = record else { return };
        let (mut left, mut runs) = (published.block.count() as u32, Vec::new());
        while left > 0 {
            let longest = if self.below(3) == 0 { 100 } else { 4 };
            let count = 1 + self.below(longest) as u32;
            let count = count.min(left);
            left -= count;
            let (producer, sequence) = (ProducerId(self.below(3)), Sequence(self.below(1_000)));
            runs.push((count, (self.below(3) > 0).then_some(Origin { producer, sequence })));
        }
        published.source = Source::Mixed(runs);
    }

    /// Deletes a topic with its parts, or a group with its parts: the parts first.
    fn delete(&mut self, topic: Option<TopicId>, group: Option<GroupId>) -> Vec<Record> {
        let Snapshot { topics, groups, .. } = &self.model.snapshot;
        let parts = topics.iter().filter(|(_, state)| topic.is_some() && state.kind.part_of() == topic);
        let gone: Vec<TopicId> = parts.map(|(id, _)| *id).chain(topic).collect();
        let whole: Vec<GroupId> = groups
            .iter()
            .filter(|(id, state)| gone.contains(&state.topic) || Some(**id) == group)
            .map(|(id, _)| *id)
            .collect();
        let part = |state: &GroupState| state.part_of.is_some_and(|of| whole.contains(&of));
        let parts: Vec<GroupId> = groups.iter().filter(|(_, state)| part(state)).map(|(id, _)| *id).collect();
        let whole = whole.iter().filter(|id| !parts.contains(id));
        let groups = parts.iter().chain(whole).map(|&group| Record::GroupDeleted { group });
        groups.chain(gone.into_iter().map(|topic| Record::TopicDeleted { topic })).collect()
    }

    /// Applies what it makes.
    fn records(&mut self) -> Vec<Record> {
        let next = self.model.snapshot.next;
        let made = match self.below(36) {
            0 | 28 => Some(self.create_topic()),
            1 => self.create_group(),
            2 => Some(Record::ProducerOpened {
                producer: next.producer,
                name: name(&format!("producer-{}", next.producer)),
                at: Timestamp(self.below(3_000)),
            }),
            3 => {
                let group = self.group();
                let records = self.delete(None, group);
                return self.apply(records);
            }
            4 => self.group().map(|group| Record::GroupChanged {
                group,
                settings: GroupSettings { policy: Policy::Fair, ..GroupSettings::default() },
            }),
            5 => self
                .one(self.model.snapshot.producers.keys().copied().collect())
                .map(|producer| Record::ProducerExpired { producer }),
            6 => self.group().map(|group| {
                let state = &self.model.snapshot.groups[&group];
                Record::HandedOut { group, end: self.model.snapshot.topics[&state.topic].end }
            }),
            7 | 8 => self.topic().map(|topic| {
                let (start, end) = {
                    let state = &self.model.snapshot.topics[&topic];
                    (state.start.0, state.end.0)
                };
                Record::Trimmed { topic, start: Offset(start + self.below(end - start + 1)) }
            }),
            26 | 27 => self.topic().and_then(|topic| {
                let (state, from) = (self.model.snapshot.topics[&topic].clone(), self.below(40));
                let start = (state.start.0 + from).min(state.end.0);
                let range = OffsetRange::new(start, (start + 1 + self.below(30)).min(state.end.0));
                let ranges: Vec<OffsetRange> = state.removed.gaps(range).collect();
                (!ranges.is_empty()).then_some(Record::Removed { topic, ranges })
            }),
            9 => match self.topic().filter(|_| self.below(4) == 0) {
                Some(topic) => {
                    let records = self.delete(Some(topic), None);
                    return self.apply(records);
                }
                None => None,
            },
            10..=12 => self.settle(),
            13 | 29..=31 => self.give_back(),
            14..=17 => self.publish(),
            18 => self.publish().map(|mut record| {
                self.mix(&mut record);
                record
            }),
            32 => self.seek(),
            33 => self.advance(),
            34 => match self.below(2) {
                0 => self.route(),
                _ => self
                    .one(self.model.snapshot.routes.keys().copied().collect())
                    .map(|route: RouteId| Record::RouteDeleted { route }),
            },
            35 => self.topic().map(|topic| Record::TopicChanged {
                topic,
                settings: TopicSettings { paused: true, ..TopicSettings::default() },
            }),
            19 => self.move_slot(),
            _ => self.settle(),
        };
        self.apply(made.into_iter().collect())
    }

    fn apply(&mut self, records: Vec<Record>) -> Vec<Record> {
        records.iter().for_each(|record| self.model.apply(record));
        records
    }
}

/// The block of a publish.
fn block(record: &Record) -> Option<Bytes> {
    match record {
        Record::Published(published) => Some(published.block.bytes().clone()),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_store_holds_the_fold_of_its_records(
        steps in prop::collection::vec((0_u8..12, prop::collection::vec(any::<u64>(), 40)), 1..60),
        bytes_max in 1_usize..20_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut epoch = 1;
        let (mut store, _) = open(dir.path(), epoch, Predecessor::None);
        let mut model = Model::default();
        for record in first_records() {
            model.apply(&record);
        }
        let mut records = first_records();
        for (what, numbers) in steps {
            let mut making = Making { model: &mut model, numbers: numbers.into_iter() };
            records.extend(making.records());
            if what > 5 {
                let staged: Vec<Bytes> = records.iter().filter(|_| what % 2 == 0).filter_map(block).collect();
                for block in &staged {
                    store.stage(block.clone(), Box::new(|| {}));
                }
                // As many steps as it takes, or not all of them.
                for _ in 0..what * 2 {
                    store.maintain(&mut Snapshot::default, &mut || Ok(())).unwrap();
                }
                store.commit(&records).unwrap();
                for block in &staged {
                    store.unstage(block).unwrap();
                }
                records.clear();
            }
            match what {
                6 => maintain(&mut *store),
                7 if store.maintenance_due() => {
                    store.maintain(&mut Snapshot::default, &mut || Ok(())).unwrap();
                }
                8 => model.check(&*store, bytes_max),
                9..=11 => {
                    epoch += 1;
                    if what == 9 {
                        close(store);
                    } else {
                        drop(store);
                    }
                    let ended = if what == 11 { Predecessor::MayWrite } else { Predecessor::Gone };
                    let snapshot;
                    (store, snapshot) = open(dir.path(), epoch, ended);
                    prop_assert_eq!(&snapshot, &model.snapshot);
                    model.check(&*store, bytes_max);
                }
                _ => {}
            }
        }
        store.commit(&records).unwrap();
        maintain(&mut *store);
        model.check(&*store, bytes_max);
        drop(store);
        let file = Manifest::newest(dir.path(), Epoch(epoch)).unwrap().unwrap().database.unwrap();
        let connection = rusqlite::Connection::open(dir.path().join(file)).unwrap();
        let rows: i64 = connection.query_row("SELECT count(*) FROM message", [], |row| row.get(0)).unwrap();
        let living = model.snapshot.topics.values().map(TopicState::message_count).sum::<u64>();
        prop_assert_eq!(rows as u64, living, "what was trimmed or deleted is reclaimed");
        let sql = "SELECT count(*) FROM body_part WHERE id >> 16 NOT IN (
                       SELECT large_body.body FROM large_body JOIN message ON message.id = large_body.message
                   )";
        let parts: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
        let rest: i64 = connection
            .query_row("SELECT (SELECT count(*) FROM large_body WHERE message NOT IN (SELECT id FROM message))
                        + (SELECT count(*) FROM unused_body)", [], |row| row.get(0))
            .unwrap();
        prop_assert_eq!((parts, rest), (0, 0), "nothing stays of what was staged in vain or is gone");
    }
}
