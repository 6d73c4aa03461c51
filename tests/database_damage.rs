//! Damage in a database: what another hand changed in it is noticed, named, and never delivered.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use batonmq::model::chunk::Origin;
use batonmq::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, RouteId, Sequence, TopicId};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::name::Name;
use batonmq::model::record::{Published, Record, Source};
use batonmq::model::retry::{Failure, Retry, ReturnReason};
use batonmq::model::route::{Route, RouteMode};
use batonmq::model::settings::{GroupSettings, TopicSettings};
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::store::{Mode, OpenOptions, Predecessor, Predecessors, Store, StoreError, database};
use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::types::Value;

const TOPIC: TopicId = TopicId(0);
const OTHER: TopicId = TopicId(1);
const COUNT: u64 = 20;

fn open(dir: &Path, epoch: u64) -> Result<(Box<dyn Store>, Snapshot), StoreError> {
    let (dir, epoch) = (dir.to_owned(), Epoch(epoch));
    let ends = (1..epoch.0).map(|lower| (Epoch(lower), Predecessor::Gone)).collect();
    let predecessors = Predecessors::new(ends);
    database::open(&OpenOptions { dir, mode: Mode::Database, epoch, predecessors, segment_bytes: 1 << 20 })
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A message that has everything.
fn full() -> Message {
    Message {
        key: Some(Bytes::from_static(b"key")),
        headers: vec![("name".into(), Bytes::from_static(b"value"))],
        deliver_at: Some(Timestamp(7)),
        expires_at: Some(Timestamp(9)),
        priority: 3,
        body: Bytes::from_static(b"body"),
    }
}

/// A closed store with two topics, each with the same messages: every other one has everything.
struct Scene {
    dir: tempfile::TempDir,
    epoch: u64,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open(dir.path(), 1).unwrap();
        let producer = ProducerId(0);
        let mut records = vec![Record::ProducerOpened { producer, name: name("shop"), at: Timestamp(1_000) }];
        let messages: Vec<Message> =
            (0..COUNT).map(|n| if n % 2 == 0 { full() } else { Message::new(vec![n as u8; 9]) }).collect();
        for topic in [TOPIC, OTHER] {
            let name = name(&format!("t{topic}"));
            let (kind, settings) = (TopicKind::Named, TopicSettings::default());
            records.push(Record::TopicCreated { topic, name, kind, settings });
            records.push(Record::Published(Published {
                targets: vec![(topic, Offset(0))],
                source: Source::Producer(Origin {
                    producer,
                    sequence: Sequence(1 + COUNT * u64::from(topic.0)),
                }),
                at: Timestamp(2_000),
                block: MessageBlock::encode(&messages),
            }));
        }
        store.commit(&records).unwrap();
        store.close(&mut Snapshot::default, &mut || Ok(())).unwrap();
        Self { dir, epoch: 1 }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(format!("baton-{:020}.db", 1))
    }

    /// Changes the closed store as another program would.
    fn change(&self, work: impl FnOnce(&Connection)) {
        let connection = Connection::open(self.path()).unwrap();
        work(&connection);
        connection.close().unwrap();
    }

    /// Opens the store as the next master and reads the messages of a topic, up to an error.
    fn read(&mut self, topic: TopicId) -> (u64, Option<StoreError>) {
        self.epoch += 1;
        let (store, _) = open(self.dir.path(), self.epoch).unwrap();
        let mut reader = store.reader().unwrap();
        let mut at = Offset(0);
        let end = loop {
            match reader.read(topic, at, 1 << 20) {
                Ok(Some(chunk)) => at = chunk.range().end,
                Ok(None) => break None,
                Err(unread) => {
                    assert_eq!(unread.range, OffsetRange::one(at));
                    break Some(unread.error);
                }
            }
        };
        drop(reader);
        store.close(&mut Snapshot::default, &mut || Ok(())).unwrap();
        (at.0, end)
    }

    /// Checks that message `offset` of `topic` is named as damaged, and that the ones before it can be read.
    fn finds(&mut self, topic: TopicId, offset: u64, what: &str) {
        let path = self.path();
        let (read, error) = self.read(topic);
        let Some(StoreError::Damaged { path: found, what: text, .. }) = error else {
            panic!("{what}: {read} messages read, then {error:?}");
        };
        assert_eq!((found, read), (path, offset), "{what}");
        assert!(text.contains(&format!("topic {topic}, message {offset}: ")), "{what}: {text}");
    }
}

/// Row id of a message: the first topic has the first stretch.
fn row(topic: TopicId, offset: u64) -> i64 {
    ((i64::from(topic.0) + 1) << 32) + offset as i64
}

/// Other values that a column may have after damage.
fn damaged(value: &Value) -> Vec<Value> {
    match value {
        Value::Null => vec![Value::Integer(0), Value::Blob(Vec::new())],
        Value::Integer(number) => (0..63).map(|bit| Value::Integer(number ^ (1 << bit))).collect(),
        Value::Blob(bytes) => {
            let flipped = |at: usize| {
                let mut bytes = bytes.clone();
                bytes[at] ^= 0x10;
                Value::Blob(bytes)
            };
            let mut values: Vec<Value> = (0..bytes.len()).map(flipped).collect();
            values.push(Value::Blob(bytes[1..].to_vec()));
            values.push(Value::Blob([&bytes[..], &[0]].concat()));
            values.push(Value::Blob(Vec::new()));
            values
        }
        other => panic!("no column of messages is {other:?}"),
    }
}

#[test]
fn a_change_in_any_column_of_a_message_is_named() {
    let columns = [
        "published_at",
        "producer",
        "sequence",
        "checksum",
        "key",
        "headers",
        "deliver_at",
        "expires_at",
        "priority",
        "body",
    ];
    let mut scene = Scene::new();
    for offset in [6, 7] {
        for column in columns {
            let mut value = Value::Null;
            scene.change(|connection| {
                let sql = format!("SELECT {column} FROM message WHERE id = ?1");
                value = connection.query_row(&sql, [row(TOPIC, offset)], |row| row.get(0)).unwrap();
            });
            let mut others = damaged(&value);
            if value != Value::Null && !["published_at", "checksum", "body"].contains(&column) {
                others.push(Value::Null);
            }
            // Opening a store takes long beside looking at a row: a few bits of each column are enough.
            let step = others.len().div_ceil(6);
            let mut changed = 0;
            for other in others.into_iter().step_by(step) {
                let set = |value: &Value| {
                    let sql = format!("UPDATE message SET {column} = ?2 WHERE id = ?1");
                    let connection = Connection::open(scene.path()).unwrap();
                    // A column of the other type is refused by the table, as damage would not be.
                    let set = connection.execute(&sql, (row(TOPIC, offset), value));
                    connection.close().unwrap();
                    set.is_ok()
                };
                if set(&other) {
                    changed += 1;
                    scene.finds(TOPIC, offset, &format!("{column} from {value:?} to {other:?}"));
                    let connection = Connection::open(scene.path()).unwrap();
                    let sql = format!("UPDATE message SET {column} = ?2 WHERE id = ?1");
                    connection.execute(&sql, (row(TOPIC, offset), &value)).unwrap();
                    connection.close().unwrap();
                }
            }
            assert!(changed > 0, "{column}");
        }
    }
    assert_eq!(scene.read(TOPIC).0, COUNT, "every change was taken back");
}

/// A bit that flipped in the floor of a group lost messages for it; one in the end of a topic gave out offsets twice.
#[test]
fn a_change_in_any_other_table_is_refused_before_a_master_serves() {
    let mut scene = Scene::new();
    let (mut store, _) = open(scene.dir.path(), 2).unwrap();
    scene.epoch = 2;
    let group = GroupId(0);
    let settled = vec![OffsetRange::new(0, 2), OffsetRange::new(3, 5)];
    let failure = Failure { at: Timestamp(8_000), reason: ReturnReason::Nacked, text: None };
    let retry = Retry::default().failed(failure, Timestamp(9_000));
    let slot = TopicKind::Slot {
        of: TOPIC,
        waiting: Waiting::Delayed,
        from: Timestamp(1_000),
        until: Timestamp(2_000),
    };
    let part = |topic: u32, kind| Record::TopicCreated {
        topic: TopicId(topic),
        name: name("t0"),
        kind,
        settings: TopicSettings::default(),
    };
    let rule = Route {
        name: name("pass-on"),
        from: TOPIC,
        to: vec![OTHER],
        filter: Some("a = 1".to_owned()),
        mode: RouteMode::Copy,
    };
    let created = |id: u32, part_of| Record::GroupCreated {
        group: GroupId(id),
        topic: TOPIC,
        name: name("g"),
        settings: GroupSettings::default(),
        floor: Offset(0),
        part_of,
    };
    store
        .commit(&[
            created(0, None),
            created(1, Some(GroupId(0))),
            part(2, TopicKind::Lane { of: TOPIC, priority: 3 }),
            part(3, slot),
            Record::RouteCreated { route: RouteId(0), rule },
            Record::Settled { group, ranges: settled },
            Record::Returned { group, range: OffsetRange::new(7, 8), retry },
        ])
        .unwrap();
    store.close(&mut Snapshot::default, &mut || Ok(())).unwrap();
    let before = std::fs::read(scene.path()).unwrap();
    let refused = |scene: &mut Scene, what: &str, table: &str| {
        scene.epoch += 1;
        match open(scene.dir.path(), scene.epoch) {
            Err(StoreError::Damaged { path, what: text, .. }) => {
                assert_eq!(path, scene.path(), "{what}");
                assert!(text.contains(&format!("table {table}")), "{what}: {text}");
            }
            Err(error) => panic!("{what}: {error}"),
            Ok(_) => panic!("{what}: nobody noticed"),
        }
        std::fs::write(scene.path(), &before).unwrap();
    };
    for (table, row) in [
        ("meta", 0),
        ("topic", 1),
        ("topic", 2),
        ("topic", 3),
        ("topic_marks", 1),
        ("stretch", 1),
        ("consumer_group", 0),
        ("consumer_group", 1),
        ("settled_range", 0),
        ("retry", 0),
        ("producer", 0),
        ("route", 0),
    ] {
        let (mut columns, mut key) = (Vec::new(), String::new());
        scene.change(|connection| {
            let sql = format!("SELECT name, type FROM pragma_table_info('{table}')");
            let mut statement = connection.prepare(&sql).unwrap();
            let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            columns = found.map(Result::unwrap).collect::<Vec<(String, String)>>();
            key = format!("WHERE {} = {row}", columns[0].0);
        });
        for (column, kind) in columns {
            let other = match kind.as_str() {
                "TEXT" => format!("coalesce({column} || ' ', 'x')"),
                _ => format!("coalesce({column} + 64, 7)"),
            };
            let mut changes = vec![other];
            scene.change(|connection| {
                let sql = format!("SELECT {column} IS NULL FROM {table} {key}");
                let is_null: bool = connection.query_row(&sql, [], |row| row.get(0)).unwrap();
                let nullable = "SELECT \"notnull\" + pk = 0 FROM pragma_table_info(?1) WHERE name = ?2";
                let nullable: bool =
                    connection.query_row(nullable, [table, &column], |row| row.get(0)).unwrap();
                changes.extend((nullable && !is_null).then(|| "NULL".to_owned()));
            });
            for other in changes {
                scene.change(|connection| {
                    let sql = format!("UPDATE {table} SET {column} = {other} {key}");
                    assert_eq!(connection.execute(&sql, []).unwrap(), 1, "{sql}");
                });
                refused(&mut scene, &format!("{table}.{column} = {other}"), table);
            }
        }
    }
    scene.change(|connection| {
        connection.execute("INSERT INTO unused_body VALUES (7, 7)", []).unwrap();
    });
    refused(&mut scene, "unused_body", "unused_body");
    for table in ["meta", "topic", "topic_marks", "consumer_group", "producer", "route"] {
        scene.change(|connection| {
            connection.execute(&format!("DELETE FROM {table}"), []).unwrap();
        });
        // Of what belongs to a row that is gone, the other one may be met first.
        let met = match table {
            "consumer_group" => "settled_range",
            "topic" | "topic_marks" => "topic_marks",
            _ => "meta",
        };
        refused(&mut scene, &format!("an empty {table}"), met);
    }
    scene.epoch += 1;
    open(scene.dir.path(), scene.epoch).unwrap();
}

#[test]
fn rows_that_stand_in_each_others_place_are_named() {
    let mut scene = Scene::new();
    let swap = |scene: &Scene, one: i64, other: i64| {
        scene.change(|connection| {
            for (from, to) in [(one, -1), (other, one), (-1, other)] {
                connection.execute("UPDATE message SET id = ?2 WHERE id = ?1", (from, to)).unwrap();
            }
        });
    };
    swap(&scene, row(TOPIC, 4), row(TOPIC, 8));
    scene.finds(TOPIC, 4, "two of a topic");
    swap(&scene, row(TOPIC, 4), row(TOPIC, 8));
    swap(&scene, row(TOPIC, 5), row(OTHER, 5));
    scene.finds(TOPIC, 5, "of two topics, in the first");
    scene.finds(OTHER, 5, "of two topics, in the second");
    swap(&scene, row(TOPIC, 5), row(OTHER, 5));
    scene.change(|connection| {
        let sql = "DELETE FROM message WHERE id = ?1";
        connection.execute(sql, [row(OTHER, 9)]).unwrap();
    });
    assert_eq!(scene.read(TOPIC).0, COUNT);
    scene.finds(OTHER, 9, "a row that is gone");
}

/// A part of a large body stands in no row of a message; nothing but the message's checksum tells what it must be.
#[test]
fn a_large_body_is_delivered_only_as_it_was_written() {
    const PART: usize = 1 << 20;
    let mut scene = Scene::new();
    let (mut store, _) = open(scene.dir.path(), 2).unwrap();
    scene.epoch = 2;
    let body = |mark: u8| (0..2 * PART + 99).map(|at| (at / 1000) as u8 ^ mark).collect::<Vec<u8>>();
    let messages = [Message::new(body(1)), Message { body: body(2).into(), ..full() }, Message::new("last")];
    let published = Published {
        targets: vec![(TOPIC, Offset(COUNT))],
        source: Source::Broker,
        at: Timestamp(3_000),
        block: MessageBlock::encode(&messages),
    };
    store.commit(&[Record::Published(published)]).unwrap();
    store.close(&mut Snapshot::default, &mut || Ok(())).unwrap();
    assert_eq!(scene.read(TOPIC).0, COUNT + 3);
    let before = std::fs::read(scene.path()).unwrap();
    let (first, second) = (row(TOPIC, COUNT), row(TOPIC, COUNT + 1));
    let taken = |row: i64, body: i64| {
        // The row of another message, with the checksum that belongs to it.
        let cells = [row, body, (2 * PART + 99) as i64].map(i64::to_le_bytes).concat();
        let bytes = [&10_u32.to_le_bytes()[..], b"large_body", &cells].concat();
        let sum = crc32c::crc32c(&bytes).cast_signed();
        format!("UPDATE large_body SET body = {body}, checksum = {sum} WHERE message = {row}")
    };
    let part = |body: i64, number: i64| (body << 16) + number;
    let swap = |one: i64, other: i64| {
        [(one, -1), (other, one), (-1, other)]
            .map(|(from, to)| format!("UPDATE body_part SET id = {to} WHERE id = {from};"))
            .concat()
    };
    for (offset, id, body) in [(COUNT, first, 1), (COUNT + 1, second, 2)] {
        let mut changes = vec![
            format!("DELETE FROM large_body WHERE message = {id}"),
            format!("UPDATE large_body SET body = 3 - body WHERE message = {id}"),
            format!("UPDATE large_body SET bytes = bytes - 1 WHERE message = {id}"),
            format!("UPDATE large_body SET checksum = checksum + 1 WHERE message = {id}"),
            format!("UPDATE large_body SET message = 77 WHERE message = {id}"),
            format!("UPDATE message SET body = x'' WHERE id = {id}"),
            taken(id, 3 - body),
            taken(id, 7),
            swap(part(body, 0), part(body, 1)),
        ];
        for number in 0..3 {
            let id = part(body, number);
            changes.push(format!("DELETE FROM body_part WHERE id = {id}"));
            for bytes in [
                "substr(bytes, 1, 50) || x'00' || substr(bytes, 52)",
                "substr(bytes, 1, length(bytes) - 1)",
                "bytes || x'00'",
                "x''",
            ] {
                changes.push(format!("UPDATE body_part SET bytes = CAST({bytes} AS BLOB) WHERE id = {id}"));
            }
        }
        for sql in changes {
            scene.change(|connection| connection.execute_batch(&sql).unwrap());
            scene.finds(TOPIC, offset, &sql);
            std::fs::write(scene.path(), &before).unwrap();
        }
    }
    scene.change(|connection| connection.execute_batch(&swap(part(1, 1), part(2, 1))).unwrap());
    scene.finds(TOPIC, COUNT, "parts of two bodies");
    std::fs::write(scene.path(), &before).unwrap();
    assert_eq!(scene.read(TOPIC).0, COUNT + 3);
}

/// What belongs to a message that goes is found by a row which may be damaged: it must not delete what another has.
#[test]
fn a_damaged_row_deletes_no_body_of_another_message() {
    let mut scene = Scene::new();
    let (mut store, _) = open(scene.dir.path(), 2).unwrap();
    scene.epoch = 2;
    let published = |first: u64| {
        Record::Published(Published {
            targets: vec![(TOPIC, Offset(first))],
            source: Source::Broker,
            at: Timestamp(3_000),
            block: MessageBlock::encode(&[Message::new(vec![first as u8; 300_000])]),
        })
    };
    store.commit(&[published(COUNT), published(COUNT + 1)]).unwrap();
    store.close(&mut Snapshot::default, &mut || Ok(())).unwrap();
    scene.change(|connection| {
        let sql = "UPDATE large_body SET body = 2 WHERE message = ?1";
        assert_eq!(connection.execute(sql, [row(TOPIC, COUNT)]).unwrap(), 1);
    });
    let (mut store, _) = open(scene.dir.path(), 3).unwrap();
    scene.epoch = 3;
    store.commit(&[Record::Trimmed { topic: TOPIC, start: Offset(COUNT + 1) }]).unwrap();
    while store.maintenance_due() {
        store.maintain(&mut Snapshot::default, &mut || Ok(())).unwrap();
    }
    let chunk = store.reader().unwrap().read(TOPIC, Offset(COUNT + 1), 1 << 20).unwrap().unwrap();
    assert_eq!(chunk.block.message(0).unwrap().body, vec![(COUNT + 1) as u8; 300_000]);
}
