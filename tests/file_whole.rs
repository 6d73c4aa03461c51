//! Whole journals: images of living and dead ones, and journals that are filled from them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;

use std::fs;
use std::path::Path;

use batonmq::model::chunk::Chunk;
use batonmq::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, TopicId};
use batonmq::model::record::Record;
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::store::file::checkpoint::CheckpointId;
use batonmq::store::image::Image;
use batonmq::store::manifest::Manifest;
use batonmq::store::{Mode, OpenOptions, Predecessor, Predecessors, Reader, StoreError, Unreadable, file};
use scene::whole::files;
use scene::{
    Model, Scene, bodies, copy_dir, group_created, middle, producer_opened, published, topic_created,
};

const SEGMENT: u64 = 64 << 10;

/// Lets the model read an image as it reads a store.
struct Reading(Box<dyn Image>);

impl Reader for Reading {
    fn read(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, Unreadable> {
        self.0.read(topic, from, bytes_max).map_err(|error| Unreadable::of_one(from, error))
    }
}

fn look(dir: &Path) -> Result<Box<dyn Image>, StoreError> {
    let newest = Manifest::newest(dir, Epoch(u64::MAX))?;
    file::look(dir, &newest.ok_or_else(|| StoreError::Missing { path: dir.to_owned() })?)
}

fn check(image: Box<dyn Image>, model: &Model, bytes_max: usize) -> Box<dyn Image> {
    assert_eq!(image.snapshot(), &model.snapshot);
    let mut reading = Reading(image);
    model.check_everything(&mut reading, bytes_max);
    reading.0
}

fn image_of(scene: &mut Scene) -> Box<dyn Image> {
    let snapshot = scene.model.snapshot.clone();
    scene.store().image(&mut || snapshot.clone()).unwrap()
}

/// A journal with gaps, groups and producers, in several segments and epochs.
fn furnished() -> Scene {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    let topics: Vec<TopicId> = (0..4).map(|_| scene.create_topic()).collect();
    let records = [
        group_created(&scene.model.snapshot, topics[0]),
        producer_opened(&scene.model.snapshot, Timestamp(5)),
    ];
    scene.commit(&records);
    for round in 0..60 {
        let targets = &topics[round % 2..round % 3 + 1];
        let producer = (round % 3 > 0).then_some(ProducerId(0));
        let record =
            published(&scene.model.snapshot, targets, producer, &bodies(1 + round % 9, 900, round as u64));
        scene.commit(&[record]);
        if round % 25 == 20 {
            scene.crash();
        }
        if round % 11 == 0 {
            scene.maintain();
        }
    }
    let ranges = (0..8).flat_map(|at| middle(&scene.model.snapshot, topics[0], 20 + 7 * at, 4)).collect();
    scene.commit(&[
        Record::Removed { topic: topics[0], ranges },
        Record::Trimmed { topic: topics[0], start: Offset(9) },
        Record::Settled { group: GroupId(0), ranges: vec![OffsetRange::new(0, 9)] },
        Record::TopicDeleted { topic: topics[3] },
    ]);
    scene
}

/// A journal of its own with what the image has, under the epoch.
fn filled(image: &mut dyn Image, epoch: Epoch) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fill(image, dir.path(), epoch);
    dir
}

fn fill(image: &mut dyn Image, dir: &Path, epoch: Epoch) {
    let options = OpenOptions {
        dir: dir.to_owned(),
        mode: Mode::File,
        epoch,
        predecessors: Predecessors::default(),
        segment_bytes: SEGMENT,
    };
    let snapshot = image.snapshot().clone();
    let mut fill = file::fill(&options, &snapshot).unwrap();
    for (&topic, state) in &snapshot.topics {
        let mut run = state.next_run(state.start);
        while !run.is_empty() {
            let chunk = image.read(topic, run.start, 5000).unwrap().unwrap();
            fill.add(topic, &chunk).unwrap();
            run = state.next_run(chunk.range().end);
        }
    }
    fill.finish().unwrap().write(dir).unwrap();
}

#[test]
fn an_image_stays_as_it_was_and_keeps_what_it_needs() {
    let mut scene = furnished();
    let then = scene.model.clone();
    let image = image_of(&mut scene);
    let first = TopicId(0);
    let end = scene.model.snapshot.topics[&first].end;
    scene.publish(&[first], &bodies(50, 300, 7));
    let ranges = vec![OffsetRange::new(end.0 + 20, end.0 + 30)];
    scene.commit(&[
        Record::Trimmed { topic: first, start: Offset(end.0 + 10) },
        Record::Removed { topic: first, ranges },
        Record::TopicDeleted { topic: TopicId(1) },
        Record::Trimmed { topic: TopicId(2), start: then.snapshot.topics[&TopicId(2)].end },
    ]);
    for round in 0..60 {
        scene.publish(&[first], &bodies(20, 300, round));
        scene.maintain();
    }
    let segment = scene.dir.path().join(format!("journal/{:020}-{:06}.log", 1, 1));
    assert!(segment.exists());
    let image = check(image, &then, 2000);
    drop(image);
    scene.maintain();
    assert!(!segment.exists());
    scene.check_everything(1000);
}

#[test]
fn looking_at_a_journal_sees_all_and_changes_nothing() {
    for ending in ["killed", "closed"] {
        let mut scene = furnished();
        if ending == "closed" {
            scene.restart();
        }
        drop(scene.store.take());
        let dir = tempfile::tempdir().unwrap();
        copy_dir(scene.dir.path(), &dir.path().join("store"));
        let store = dir.path().join("store");
        let before = files(&store);
        check(look(&store).unwrap(), &scene.model, 3000);
        assert!(files(&store) == before);
    }
}

/// What is behind the last checkpoint is replayed. Its messages are not needed for that, so damage in one of them is
/// nothing that hides all the others.
#[test]
fn a_damaged_message_is_an_error_of_its_read_alone() {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    let topic = scene.create_topic();
    for round in 0..5 {
        scene.publish(&[topic], &[vec![b'a' + round; 500]]);
    }
    drop(scene.store.take());
    let path = scene.dir.path().join(format!("journal/{:020}-{:06}.log", 1, 1));
    let good = fs::read(&path).unwrap();
    let position = |round: u8| good.windows(400).position(|bytes| *bytes == [b'a' + round; 400]).unwrap();
    let mut bad = good.clone();
    bad[position(2)] ^= 1;
    fs::write(&path, &bad).unwrap();
    let mut image = look(scene.dir.path()).unwrap();
    assert_eq!(*image.snapshot(), scene.model.snapshot);
    let whole: Vec<bool> = (0..5).map(|at| image.read(topic, Offset(at), 1).is_ok()).collect();
    assert_eq!(whole, [true, true, false, true, true]);
    // The last one may have been torn: it does not count.
    let mut torn = good.clone();
    torn[position(4)] ^= 1;
    fs::write(&path, &torn).unwrap();
    assert_eq!(look(scene.dir.path()).unwrap().snapshot().topics[&topic].end, Offset(4));
}

/// What is put together from segments knows at its end only what was gone when a slot was used again.
#[test]
fn a_slot_that_was_used_again_is_put_together_from_segments() {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    let before = scene.create_topic();
    for round in 0..70 {
        scene.publish(&[before], &bodies(1, 1_000, round));
    }
    let of = scene.create_topic();
    let Record::TopicCreated { topic: slot, name, settings, .. } = topic_created(&scene.model.snapshot)
    else {
        unreachable!()
    };
    let from_to = |from, until| TopicKind::Slot {
        of,
        waiting: Waiting::Delayed,
        from: Timestamp(from),
        until: Timestamp(until),
    };
    scene.commit(&[Record::TopicCreated { topic: slot, name, settings, kind: from_to(1, 2) }]);
    scene.publish(&[slot], &bodies(5, 10, 0));
    scene.commit(&[
        Record::Trimmed { topic: slot, start: Offset(5) },
        Record::SlotMoved { slot, from: Timestamp(3), until: Timestamp(4) },
    ]);
    scene.publish(&[slot], &bodies(2, 10, 1));
    drop(scene.store.take());
    let dir = scene.dir.path();
    for entry in fs::read_dir(dir.join("journal")).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        let name = name.to_str().unwrap();
        if name.starts_with("checkpoint") || name.ends_with("-000001.log") {
            fs::remove_file(path).unwrap();
        }
    }
    let manifest = Manifest::newest(dir, Epoch(u64::MAX)).unwrap().unwrap();
    let (image, _) = file::look_at_what_is_left(dir, &manifest).unwrap();
    let state = &image.snapshot().topics[&slot];
    assert_eq!((state.kind, state.start, state.end), (from_to(3, 4), Offset(5), Offset(7)));
}

#[test]
fn a_filled_journal_has_just_what_the_image_had() {
    let mut scene = furnished();
    let mut image = image_of(&mut scene);
    let dir = filled(image.as_mut(), Epoch(7));
    check(look(dir.path()).unwrap(), &scene.model, 700);
    let packs = || fs::read_dir(dir.path().join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let packs: Vec<_> = packs().filter(|path| path.extension().is_some_and(|end| end == "pack")).collect();
    assert!(packs.len() > 2);
    assert!(packs.iter().all(|path| fs::metadata(path).unwrap().len() < SEGMENT + (16 << 10)));
    let mut copy = Scene { dir, epoch: Epoch(7), store: None, model: scene.model.clone(), ..furnished() };
    copy.reopen(Predecessor::Gone);
    copy.check_everything(1500);
    for round in 0..80 {
        copy.publish(&[TopicId(0)], &bodies(3, 700, round));
        copy.maintain();
    }
    copy.restart();
    copy.check_everything(4000);
    copy.crash();
    copy.check_everything(400);
    let end = copy.model.snapshot.topics[&TopicId(0)].end;
    copy.commit(&[Record::Trimmed { topic: TopicId(0), start: end }]);
    copy.maintain();
    copy.crash();
    copy.check_everything(400);
}

/// All that there is to know of a filled journal is in its checkpoints: without them it must not be taken for empty.
#[test]
fn a_filled_journal_is_nothing_without_its_checkpoints() {
    let mut scene = furnished();
    let dir = filled(image_of(&mut scene).as_mut(), Epoch(7));
    let journal = dir.path().join("journal");
    for number in [2, 1] {
        check(look(dir.path()).unwrap(), &scene.model, 10_000);
        fs::remove_file(CheckpointId { epoch: Epoch(7), number }.path(&journal)).unwrap();
    }
    let refused = look(dir.path()).map(|_| ());
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
}

#[test]
fn a_journal_that_is_filled_over_an_old_one_replaces_it() {
    let mut scene = furnished();
    let mut other = Scene::new(file::open, Mode::File, SEGMENT);
    let topic = other.create_topic();
    other.publish(&[topic], &bodies(3, 100, 9));
    drop(scene.store.take());
    scene.epoch = Epoch(9);
    fill(image_of(&mut other).as_mut(), scene.dir.path(), Epoch(9));
    scene.model = other.model.clone();
    scene.reopen(Predecessor::Gone);
    scene.check_everything(1000);
    for round in 0..80 {
        scene.publish(&[topic], &bodies(3, 700, round));
        scene.maintain();
    }
    let old = format!("{:020}-", 1);
    let names =
        fs::read_dir(scene.dir.path().join("journal")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains(&old)).collect();
    assert!(left.is_empty(), "{left:?}");
    scene.crash();
    scene.check_everything(1000);
}

#[test]
fn what_is_filled_in_must_be_what_the_snapshot_has() {
    let mut scene = furnished();
    let mut image = image_of(&mut scene);
    let snapshot = image.snapshot().clone();
    let first = TopicId(0);
    let start = snapshot.topics[&first].start;
    let chunk = |image: &mut dyn Image, from: u64| image.read(first, Offset(from), 1).unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions { dir: dir.path().to_owned(), ..scene.options(Predecessor::None) };
    let mut fill = file::fill(&options, &snapshot).unwrap();
    let good = chunk(image.as_mut(), start.0);
    let wrong = Chunk { first: Offset(start.0 - 1), ..good.clone() };
    assert!(fill.add(first, &wrong).is_err(), "before the start");
    assert!(fill.add(TopicId(77), &good).is_err(), "no such topic");
    fill.add(first, &good).unwrap();
    assert!(fill.add(first, &good).is_err(), "twice");
    let refused = fill.finish();
    assert!(matches!(refused, Err(StoreError::Inconsistent { .. })), "messages are missing: {refused:?}");
}
