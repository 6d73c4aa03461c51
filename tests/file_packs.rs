//! Disk space that a few live messages would pin: that it is given back, and that nothing is lost on the way.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;

use std::fs;
use std::path::PathBuf;

use batonmq::model::id::{Epoch, Offset, OffsetRange, TopicId};
use batonmq::model::record::Record;
use batonmq::store::file::recovery::recover;
use batonmq::store::manifest::Manifest;
use batonmq::store::{Mode, Predecessor, StoreError, Unreadable, file};
use scene::{Scene, bodies, copy_dir};

const SEGMENT: u64 = 64 << 10;
/// Messages of each segment, about.
const PER_SEGMENT: u64 = 50;

/// Publishes about so many segments, and settles all of it but the last message of every `spared`.
fn scene(segment_count: u64, spared: u64) -> (Scene, TopicId) {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    let topic = scene.create_topic();
    extend(&mut scene, topic, segment_count, spared);
    (scene, topic)
}

fn extend(scene: &mut Scene, topic: TopicId, segment_count: u64, spared: u64) {
    let start = scene.model.snapshot.topics[&topic].end.0;
    for round in 0..segment_count * PER_SEGMENT / 10 {
        scene.publish(&[topic], &bodies(10, 1200, start + round));
    }
    let end = scene.model.snapshot.topics[&topic].end.0;
    let gone =
        (start..end).step_by(spared as usize).map(|at| OffsetRange::new(at, (at + spared - 1).min(end)));
    scene.commit(&[Record::Removed { topic, ranges: gone.collect() }]);
}

fn paths(scene: &Scene, extension: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(scene.dir.path().join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        names.filter(|path| path.extension().is_some_and(|end| end == extension)).collect();
    paths.sort();
    paths
}

fn bytes(paths: &[PathBuf]) -> u64 {
    paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum()
}

/// Commits until nothing that waits for checkpoints waits any more.
fn settle(scene: &mut Scene) {
    let topic = scene.create_topic();
    for round in 0..30 {
        scene.publish(&[topic], &bodies(10, 1200, round));
        let start = scene.model.snapshot.topics[&topic].end;
        scene.commit(&[Record::Trimmed { topic, start }]);
        scene.maintain();
    }
}

#[test]
fn a_few_messages_do_not_pin_the_disk() {
    let (mut scene, topic) = scene(60, PER_SEGMENT);
    assert!(paths(&scene, "log").len() > 50);
    scene.check_everything(3000);
    settle(&mut scene);
    let live = 60 * 1300;
    let packs = paths(&scene, "pack");
    assert!(!packs.is_empty() && packs.len() < 5, "{packs:?}");
    assert!(bytes(&packs) < 2 * live, "{}", bytes(&packs));
    let segments = paths(&scene, "log");
    assert!(bytes(&segments) < live + 8 * SEGMENT, "{segments:?}");
    scene.check_everything(3000);
    scene.check_everything(1);
    scene.restart();
    scene.check_everything(1000);
    scene.crash();
    scene.check_everything(1000);
    // Packs are emptied like segments.
    let end = scene.model.snapshot.topics[&topic].end;
    scene.commit(&[Record::Trimmed { topic, start: Offset(end.0 - 100) }]);
    settle(&mut scene);
    assert!(bytes(&paths(&scene, "pack")) < SEGMENT, "{:?}", paths(&scene, "pack"));
    scene.crash();
    scene.check_everything(1000);
}

#[test]
fn packs_do_not_become_many() {
    let (mut scene, topic) = scene(4, PER_SEGMENT);
    for _ in 0..30 {
        extend(&mut scene, topic, 4, PER_SEGMENT);
        scene.maintain();
    }
    assert!(paths(&scene, "pack").len() <= 12, "{:?}", paths(&scene, "pack"));
    assert!(paths(&scene, "log").len() <= 16, "{:?}", paths(&scene, "log"));
    scene.check_everything(1000);
    scene.crash();
    scene.check_everything(1000);
}

/// Whatever stays behind, and for however long, copying writes no more than was published: a file is copied only when more
/// than half of it is gone, and small packs that go along are soon large.
#[test]
fn copying_writes_no_more_than_was_published() {
    type Stays = fn(u64, u64) -> bool;
    let patterns: [(&str, Stays); 5] = [
        ("every 50th, for ever", |at, _| at % 50 == 0),
        ("every third, for ever", |at, _| at % 3 == 0),
        ("every second, and of these half after each round", |at, age| at % (2 << age.min(20)) == 0),
        ("whole segments in turn, for some rounds", |at, age| at / 50 % 3 == 0 && age < 5),
        ("all but a few, which then go from everywhere", |at, age| at % 5 >= age),
    ];
    for (name, stays) in patterns {
        let (mut scene, topic) = scene(0, 1);
        let mut copied = 0;
        let mut seen = Vec::new();
        let rounds = 8;
        for round in 0..rounds {
            for part in 0..PER_SEGMENT * 4 / 10 {
                // Large and small ones.
                let len = if part % 7 == 3 { 4_800 } else { 600 };
                scene.publish(&[topic], &bodies(10, len, round * 1_000 + part));
            }
            let per_round = PER_SEGMENT * 4;
            let gone = live(&scene, topic).into_iter().filter(|range| {
                let at = range.start.0;
                !stays(at, round - at / per_round)
            });
            let gone = Record::Removed { topic, ranges: gone.collect() };
            scene.commit(&[gone]);
            while step(&mut scene) || scene.store().maintenance_under_way() {
                for pack in paths(&scene, "pack") {
                    if !seen.contains(&pack) {
                        copied += fs::metadata(&pack).map_or(0, |pack| pack.len());
                        seen.push(pack);
                    }
                }
            }
        }
        let published: u64 = rounds * PER_SEGMENT * 4 / 10 * (3 * 48_000 + 17 * 6_000) / 20;
        println!("{name}: {copied} bytes copied, {published} published, {} packs", seen.len());
        assert!(copied < published, "{name}: {copied} of {published}, {} packs", seen.len());
        scene.check_everything(3000);
    }
}

/// A copy of the store as it is on the disk, for the next epoch to recover.
fn image_of(scene: &Scene) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["journal", "manifest"] {
        copy_dir(&scene.dir.path().join(folder), &dir.path().join(folder));
    }
    let (epoch, model) = (scene.epoch, scene.model.clone());
    Scene { dir, open: file::open, mode: Mode::File, epoch, segment_bytes: SEGMENT, store: None, model }
}

/// One step of upkeep, when what is under way is done. Answers whether there was one.
fn step(scene: &mut Scene) -> bool {
    while scene.store().maintenance_under_way() {
        std::thread::yield_now();
    }
    let snapshot = scene.model.snapshot.clone();
    let is_due = scene.store().maintenance_due();
    if is_due {
        scene.store().maintain(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
    }
    is_due
}

fn checkpoints(scene: &Scene) -> Vec<PathBuf> {
    let names = fs::read_dir(scene.dir.path().join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = names.filter(|path| path.to_string_lossy().contains("checkpoint-")).collect();
    paths.sort();
    paths
}

/// The pack is written, it counts, the old files are gone: whichever step was the last one, every message is there, and
/// nothing is left behind that nobody needs. The newer of two checkpoints may be torn at that.
#[test]
fn a_store_that_is_killed_between_two_steps_of_packing_has_everything() {
    let (mut scene, topic) = scene(4, PER_SEGMENT);
    for _ in 0..2 {
        scene.maintain();
        extend(&mut scene, topic, 4, PER_SEGMENT);
    }
    let (mut uncommitted, mut counted, mut without_newest) = (0, 0, 0);
    loop {
        let goes_on = step(&mut scene);
        while scene.store().maintenance_under_way() {
            std::thread::yield_now();
        }
        let mut image = image_of(&scene);
        let kept = checkpoints(&image);
        let packs = paths(&image, "pack");
        image.reopen(Predecessor::MayWrite);
        image.check_everything(3000);
        settle(&mut image);
        image.check_everything(3000);
        let strays: Vec<_> = packs.iter().filter(|path| !path.exists()).collect();
        uncommitted += strays.len();
        counted += packs.len() - strays.len();
        if kept.len() == 2 {
            without_newest += 1;
            let mut image = image_of(&scene);
            fs::remove_file(&checkpoints(&image)[1]).unwrap();
            image.reopen(Predecessor::MayWrite);
            image.check_everything(3000);
        }
        if !goes_on {
            break;
        }
    }
    assert!(uncommitted > 0 && counted > 0 && without_newest > 0, "{uncommitted} {counted} {without_newest}");
    scene.check_everything(1000);
}

/// The messages that a topic has.
fn live(scene: &Scene, topic: TopicId) -> Vec<OffsetRange> {
    let state = &scene.model.snapshot.topics[&topic];
    let offsets = (state.start.0..state.end.0).map(Offset).filter(|&at| !state.removed.contains(at));
    offsets.map(OffsetRange::one).collect()
}

/// What is settled while it is copied stays settled, and a topic that is deleted meanwhile stays deleted.
#[test]
fn what_goes_while_it_is_packed_does_not_come_back() {
    let (mut scene, topic) = scene(12, 5);
    let other = scene.create_topic();
    extend(&mut scene, other, 12, 10);
    let mut pack_count = 0;
    for round in 0..60 {
        if !step(&mut scene) {
            extend(&mut scene, topic, 4, 5);
        }
        while scene.store().maintenance_under_way() {
            std::thread::yield_now();
        }
        let packs = paths(&scene, "pack").len();
        if packs > pack_count {
            // It is whole and does not count yet.
            let live = live(&scene, topic);
            let ranges = live.iter().skip(3).step_by(3).copied().collect();
            let trimmed = Record::Trimmed { topic, start: live[1].start };
            scene.commit(&[trimmed, Record::Removed { topic, ranges }]);
            if scene.model.snapshot.topics.contains_key(&other) {
                scene.commit(&[Record::TopicDeleted { topic: other }]);
            }
        }
        pack_count = packs;
        scene.check_everything(2000);
        if round % 7 == 6 {
            scene.crash();
            scene.check_everything(2000);
        }
    }
    assert!(!scene.model.snapshot.topics.contains_key(&other), "there was a pack");
}

/// A store with one pack, which its newest checkpoint knows where that is wanted.
fn packed(known_to_checkpoint: &str) -> (Scene, TopicId, PathBuf) {
    let (mut scene, topic) = scene(6, 7);
    scene.maintain();
    if known_to_checkpoint == "known" {
        scene.restart();
    }
    drop(scene.store.take());
    let packs = paths(&scene, "pack");
    (scene, topic, packs[0].clone())
}

#[test]
fn a_pack_that_is_lost_or_cut_is_missed() {
    for known in ["known", "replayed"] {
        let (mut scene, _, pack) = packed(known);
        let good = fs::read(&pack).unwrap();
        scene.epoch = scene.epoch.next();
        let open = |scene: &Scene| file::open(&scene.options(Predecessor::Gone)).map(|_| ());
        fs::remove_file(&pack).unwrap();
        match open(&scene) {
            Err(StoreError::Missing { path }) => assert_eq!(path, pack),
            other => panic!("{other:?}"),
        }
        for cut in [0, 10, 4096, good.len() / 2, good.len() - 8] {
            fs::write(&pack, &good[..cut]).unwrap();
            match open(&scene) {
                Err(StoreError::Damaged { path, position, .. }) => {
                    assert_eq!((path, position), (pack.clone(), cut as u64));
                }
                other => panic!("{other:?}"),
            }
        }
        // The zeros that fill up its last entry do not count.
        for cut in good.len() - 40..good.len() {
            fs::write(&pack, &good[..cut]).unwrap();
            match recover(&scene.options(Predecessor::Gone)) {
                Ok(_) => check_image(&scene),
                Err(StoreError::Damaged { path, .. }) => assert_eq!(path, pack),
                Err(other) => panic!("cut at {cut}: {other}"),
            }
        }
        fs::write(&pack, &good).unwrap();
        scene.reopen(Predecessor::Gone);
        scene.check_everything(1000);
    }
}

/// Compares what a dead store has.
fn check_image(scene: &Scene) {
    let manifest = Manifest::newest(scene.dir.path(), scene.epoch).unwrap().unwrap();
    let mut image = file::look(scene.dir.path(), &manifest).unwrap();
    for (&topic, state) in &scene.model.snapshot.topics {
        let mut next = state.next_run(state.start).start;
        while next < state.end {
            let chunk = image.read(topic, next, 4000).unwrap().unwrap();
            let stored = &scene.model.topics[&topic][next.0 as usize..];
            assert!(chunk.block.iter().zip(stored).all(|(found, stored)| found == stored.encoded));
            next = state.next_run(chunk.range().end).start;
        }
    }
}

/// A changed byte in the head, in messages or in the index: what is read is right, or it is said to be damaged.
#[test]
fn changed_byte_of_a_pack_is_never_delivered() {
    let (mut scene, topic, pack) = packed("known");
    let good = fs::read(&pack).unwrap();
    let places = (0..64).chain(4096..4096 + 100).chain(good.len() - 300..good.len()).step_by(3);
    let mut damaged = 0;
    for at in places {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&pack, &bad).unwrap();
        let manifest = Manifest::newest(scene.dir.path(), scene.epoch).unwrap().unwrap();
        let mut image = file::look(scene.dir.path(), &manifest).unwrap();
        let state = image.snapshot().topics[&topic].clone();
        let mut next = state.next_run(state.start).start;
        while next < state.end {
            match image.read(topic, next, 4000) {
                Ok(chunk) => {
                    let chunk = chunk.unwrap();
                    for (index, message) in chunk.block.iter().enumerate() {
                        let stored = &scene.model.topics[&topic][next.0 as usize + index];
                        assert!(stored.encoded == message, "byte {at}, message {next}");
                    }
                    next = state.next_run(chunk.range().end).start;
                }
                Err(StoreError::Damaged { path, .. }) => {
                    assert_eq!(path, pack);
                    damaged += 1;
                    break;
                }
                Err(StoreError::NewerFormat { .. }) => break,
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
    }
    assert!(damaged > 50, "{damaged}");
    fs::write(&pack, &good).unwrap();
    scene.reopen(Predecessor::Gone);
    scene.check_everything(1000);
}

/// A pack that was not finished, however far it was, and one that was and does not count.
#[test]
fn what_is_left_of_a_pack_that_does_not_count_is_removed() {
    let (mut scene, _, pack) = packed("known");
    let good = fs::read(&pack).unwrap();
    scene.reopen(Predecessor::Gone);
    let leftover = |number: u32, end: &str| {
        let name = format!("{:020}-{number:06}.{end}", scene.epoch.0);
        scene.dir.path().join("journal").join(name)
    };
    let leftovers: Vec<PathBuf> = (0..8)
        .map(|number| (leftover(100 + number, "pack.new"), good.len() * number as usize / 8))
        .chain([(leftover(200, "pack"), good.len()), (leftover(201, "pack"), 100)])
        .map(|(path, len)| {
            fs::write(&path, &good[..len]).unwrap();
            path
        })
        .collect();
    scene.crash();
    scene.check_everything(1000);
    scene.maintain();
    assert!(leftovers.iter().all(|path| !path.exists()));
    scene.check_everything(1000);
}

/// A master that has lost without noticing packs and removes: its packs are nobody's, and it removes nothing without
/// asking.
#[test]
fn late_packs_of_an_old_master_do_not_count() {
    let (mut scene, topic) = scene(12, 10);
    let snapshot = scene.model.snapshot.clone();
    let mut old = scene.reopen(Predecessor::MayWrite).unwrap();
    let (mut step_count, mut refused) = (0, false);
    while old.maintenance_under_way() || old.maintenance_due() {
        if old.maintenance_under_way() {
            std::thread::yield_now();
            continue;
        }
        // It has not seen the claim: its first check of each step still says yes.
        let mut answers = [Ok(())].into_iter();
        let mut fence = || answers.next().unwrap_or(Err(batonmq::store::Fenced::Superseded(Epoch(2))));
        refused = old.maintain(&mut || snapshot.clone(), &mut fence).is_err();
        step_count += 1;
        scene.check_everything(3000);
        if refused {
            break;
        }
    }
    assert!(refused && step_count > 1);
    drop(old);
    extend(&mut scene, topic, 4, 10);
    settle(&mut scene);
    scene.check_everything(3000);
    scene.crash();
    scene.check_everything(3000);
}

/// One damaged message in a file that is to be emptied: the file stays, with all that can be read of it, and nobody
/// tries again and again.
#[test]
fn a_file_with_a_damaged_message_is_left_as_it_is() {
    let (mut scene, topic) = scene(6, 25);
    let first = scene.dir.path().join(format!("journal/{:020}-{:06}.log", 1, 1));
    let mut bytes = fs::read(&first).unwrap();
    let message = &scene.model.topics[&topic][24].encoded;
    let at = bytes.windows(message.len()).position(|window| window == message).unwrap();
    bytes[at + 50] ^= 1;
    fs::write(&first, &bytes).unwrap();
    settle(&mut scene);
    assert!(!scene.store().maintenance_due());
    assert!(first.exists() && !paths(&scene, "pack").is_empty());
    let mut reader = scene.store().reader().unwrap();
    let read = reader.read(topic, Offset(24), 1);
    assert!(matches!(read, Err(Unreadable { error: StoreError::Damaged { .. }, .. })));
    let rest = scene.model.snapshot.topics[&topic].next_run(Offset(25)).start;
    scene.model.check_read(reader.as_mut(), topic, rest, 1);
}

#[test]
fn large_messages_are_packed() {
    let mut scene = Scene::new(file::open, Mode::File, 1 << 20);
    let topic = scene.create_topic();
    for round in 0..6 {
        scene.publish(&[topic], &bodies(1, 9 << 20, round));
        scene.publish(&[topic], &bodies(8, 1 << 20, round));
        let end = scene.model.snapshot.topics[&topic].end.0;
        let gone = [OffsetRange::new(end - 8, end - 5), OffsetRange::new(end - 4, end)];
        let large = OffsetRange::new(end - 9, end - 8);
        let ranges = gone.into_iter().chain((round % 2 == 0).then_some(large)).collect();
        scene.commit(&[Record::Removed { topic, ranges }]);
        scene.maintain();
    }
    assert!(!paths(&scene, "pack").is_empty());
    scene.check_everything(64 << 20);
    scene.crash();
    scene.check_everything(100);
}
