//! Large bodies in a database: written ahead in parts, read whole, and deleted with their messages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::TryRecvError;

use batonmq::model::id::{Epoch, Offset, OffsetRange, TopicId};
use batonmq::model::record::Record;
use batonmq::model::table::Value;
use batonmq::store::manifest::Manifest;
use batonmq::store::query::QueryBounds;
use batonmq::store::{Fenced, Mode, Predecessor, StoreError, database};
use rusqlite::Connection;
use scene::{Scene, bodies, published};

const SEGMENT: u64 = 1 << 20;
const MIB: usize = 1 << 20;

fn scene() -> (Scene, TopicId) {
    let mut scene = Scene::new(database::open, Mode::Database, SEGMENT);
    let topic = scene.create_topic();
    (scene, topic)
}

fn large(scene: &Scene, topic: TopicId, len: usize) -> Record {
    published(&scene.model.snapshot, &[topic], None, &bodies(1, len, len as u64))
}

fn file(scene: &Scene) -> PathBuf {
    let manifest = Manifest::newest(scene.dir.path(), Epoch(u64::MAX)).unwrap().unwrap();
    scene.dir.path().join(manifest.database.unwrap())
}

/// Rows of messages with large bodies, of parts and of unused bodies in the closed store, which is opened again.
fn rows(scene: &mut Scene) -> [u32; 3] {
    let snapshot = scene.model.snapshot.clone();
    scene.store.take().unwrap().close(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
    let connection = Connection::open(file(scene)).unwrap();
    let rows = ["large_body", "body_part", "unused_body"].map(|table| {
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    });
    let sql = "SELECT count(*) FROM body_part WHERE id >> 16 NOT IN (SELECT body FROM large_body)
               AND id >> 16 NOT IN (SELECT body FROM unused_body)";
    let lost: u32 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
    connection.close().unwrap();
    assert_eq!(lost, 0, "parts that nobody knows of");
    scene.reopen(Predecessor::Gone);
    rows
}

#[test]
fn bodies_of_every_size_come_back_and_go_with_their_messages() {
    let (mut scene, topic) = scene();
    let other = scene.create_topic();
    let sizes = [256 << 10, (256 << 10) - 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 17, 5 * MIB];
    for size in sizes {
        let record = large(&scene, topic, size);
        scene.commit(&[record]);
        scene.publish(&[topic, other], &bodies(2, 300 << 10, size as u64));
    }
    for bytes_max in [1, 400 << 10, 2 * MIB, 64 * MIB] {
        scene.check_everything(bytes_max);
    }
    assert_eq!(rows(&mut scene), [6 + 4 * 7, 1 + 1 + 1 + 2 + 4 + 5 + 4 * 7, 0]);
    let ranges = vec![OffsetRange::new(9, 13), OffsetRange::new(18, 20)];
    scene.commit(&[Record::Removed { topic, ranges }]);
    scene.commit(&[Record::Trimmed { topic, start: Offset(4) }]);
    scene.check_everything(64 * MIB);
    scene.maintain();
    scene.check_everything(64 * MIB);
    // Of the first four messages, one is just too small to be large.
    assert_eq!(rows(&mut scene)[0], 34 - 3 - 6);
    scene.commit(&[Record::TopicDeleted { topic }]);
    scene.maintain();
    scene.check_everything(64 * MIB);
    assert_eq!(rows(&mut scene), [14, 14, 0]);
    let start = scene.model.snapshot.topics[&other].end;
    scene.commit(&[Record::Trimmed { topic: other, start }]);
    scene.maintain();
    assert_eq!(rows(&mut scene), [0, 0, 0]);
}

#[test]
fn a_body_is_written_ahead_once_and_taken_by_one_message() {
    let (mut scene, topic) = scene();
    let other = scene.create_topic();
    let record = large(&scene, topic, 5 * MIB);
    scene.stage(&record);
    scene.commit(std::slice::from_ref(&record));
    scene.unstage(&record);
    scene.maintain();
    assert_eq!(rows(&mut scene), [1, 5, 0]);
    let both = published(&scene.model.snapshot, &[topic, other], None, &bodies(1, 5 * MIB, 7));
    scene.stage(&both);
    scene.commit(std::slice::from_ref(&both));
    scene.unstage(&both);
    scene.maintain();
    assert_eq!(rows(&mut scene), [3, 15, 0], "each topic trims its own");
    scene.check_everything(64 * MIB);
}

#[test]
fn what_no_commit_takes_is_deleted_and_found_after_a_crash() {
    for predecessor in [Predecessor::Gone, Predecessor::MayWrite] {
        let (mut scene, topic) = scene();
        scene.publish(&[topic], &bodies(3, 100, 1));
        let record = large(&scene, topic, 8 * MIB);
        let staged = scene.begin_to_stage(&record);
        for _ in 0..9 {
            scene.maintain_once();
        }
        assert_eq!(staged.try_recv(), Err(TryRecvError::Empty), "it takes more steps than that");
        scene.unstage(&record);
        scene.maintain();
        assert_eq!(rows(&mut scene), [0, 0, 0], "its session ended before it was written");
        scene.stage(&record);
        scene.unstage(&record);
        scene.maintain();
        assert_eq!(rows(&mut scene), [0, 0, 0], "nobody took it");
        let staged = scene.begin_to_stage(&record);
        for _ in 0..9 {
            scene.maintain_once();
        }
        assert_eq!(staged.try_recv(), Err(TryRecvError::Empty));
        // A crash; or the old master may still write, and the new one works on a copy.
        drop(scene.reopen(predecessor));
        let [of_messages, parts, unused] = rows(&mut scene);
        assert!(of_messages == 0 && parts > 0 && unused == 1, "{of_messages} {parts} {unused}");
        scene.maintain();
        scene.check_everything(1000);
        assert_eq!(rows(&mut scene), [0, 0, 0], "the next master has found it");
    }
}

/// A block of 64 MiB went through a log that was bounded at 16 MiB, and everything else waited for it.
#[test]
fn the_log_keeps_its_bounds_and_others_commit_between_the_pieces() {
    let (mut scene, topic) = scene();
    let log = || file(&scene).with_extension("db-wal");
    let log = log();
    let record = published(&scene.model.snapshot, &[topic], None, &bodies(1, 24 * MIB, 1));
    let staged = scene.begin_to_stage(&record);
    let (mut longest, mut commits) = (0, 0);
    while staged.try_recv().is_err() {
        scene.maintain_once();
        scene.publish(&[topic], &bodies(1, 10, commits));
        commits += 1;
        longest = longest.max(fs::metadata(&log).unwrap().len());
    }
    assert!(commits > 24, "{commits}");
    assert!(longest < 3 * SEGMENT, "{longest} bytes of log");
    let Record::Published(mut late) = record.clone() else { panic!("it is a publish") };
    late.targets = vec![(topic, scene.model.snapshot.topics[&topic].end)];
    scene.commit(&[Record::Published(late)]);
    scene.unstage(&record);
    let longest = fs::metadata(&log).unwrap().len();
    assert!(longest < 3 * SEGMENT, "{longest} bytes of log after the commit");
    scene.check_everything(64 * MIB);
}

#[test]
fn the_fence_is_asked_before_each_piece() {
    let (mut scene, topic) = scene();
    scene.maintain();
    let record = large(&scene, topic, 8 * MIB);
    let staged = scene.begin_to_stage(&record);
    scene.maintain_once();
    let content = |scene: &Scene| fs::read(file(scene).with_extension("db-wal")).unwrap();
    let before = content(&scene);
    let snapshot = scene.model.snapshot.clone();
    let mut fence = || Err(Fenced::Superseded(Epoch(77)));
    let refused = scene.store().maintain(&mut || snapshot.clone(), &mut fence);
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    assert!(content(&scene) == before && !scene.store().maintenance_due());
    assert_eq!(staged.try_recv(), Err(TryRecvError::Empty));
}

/// While a commit is held for want of space, nothing but what makes some may be written.
#[test]
fn nothing_is_written_ahead_while_a_commit_is_held() {
    let (mut scene, topic) = scene();
    scene.maintain();
    let record = large(&scene, topic, 8 * MIB);
    let staged = scene.begin_to_stage(&record);
    assert!(scene.store().maintenance_due());
    let before = fs::read(file(&scene).with_extension("db-wal")).unwrap();
    for _ in 0..20 {
        scene.store().make_space(&mut || Ok(())).unwrap();
    }
    assert!(fs::read(file(&scene).with_extension("db-wal")).unwrap() == before);
    scene.wait_until_staged(&staged);
}

#[test]
fn an_image_reads_large_bodies_that_are_trimmed_meanwhile() {
    let (mut scene, topic) = scene();
    scene.publish(&[topic], &bodies(3, 2 * MIB, 1));
    let snapshot = scene.model.snapshot.clone();
    let mut image = scene.store().image(&mut || snapshot.clone()).unwrap();
    scene.commit(&[Record::Trimmed { topic, start: Offset(3) }]);
    // Staged in vain: no image needs it.
    let record = large(&scene, topic, 4 * MIB);
    scene.stage(&record);
    scene.unstage(&record);
    scene.maintain();
    for (at, stored) in scene.model.topics[&topic].iter().enumerate() {
        let chunk = image.read(topic, Offset(at as u64), MIB).unwrap().unwrap();
        assert!(chunk.block.bytes() == &stored.encoded);
    }
    drop(image);
    scene.maintain();
    assert_eq!(rows(&mut scene), [0, 0, 0]);
}

#[test]
fn a_person_sees_large_bodies_like_others() {
    let (mut scene, topic) = scene();
    scene.publish(&[topic], &bodies(1, 100, 1));
    let record = large(&scene, topic, 3 * MIB + 5);
    scene.commit(&[record]);
    let bounds = QueryBounds { rows_max: 10, bytes_max: MIB, time_max: None, stop: Default::default() };
    let mut inspector = scene.store().inspector().unwrap().unwrap();
    let sizes = inspector.query("SELECT body_bytes FROM messages WHERE topic = 'topic-0'", &bounds).unwrap();
    assert_eq!(sizes.rows, [[Value::Integer(100)], [Value::Integer(3 * MIB as i64 + 5)]]);
    drop(inspector);
    rows(&mut scene);
    drop(scene.store.take());
    let connection = Connection::open(file(&scene)).unwrap();
    let read = |offset: u32| -> Vec<u8> {
        let sql = "SELECT body FROM messages WHERE topic = 'topic-0' AND message_offset = ?1";
        connection.query_row(sql, [offset], |row| row.get(0)).unwrap()
    };
    for (offset, stored) in scene.model.topics[&topic].iter().enumerate() {
        assert!(read(offset as u32) == stored.encoded[5..]);
    }
}
