//! Disk space that a few live messages would pin: that it is given back, and that nothing is lost on the way.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;

use std::fs;
use std::path::{Path, PathBuf};

use batonmq::model::id::{Epoch, Offset, OffsetRange, TopicId};
use batonmq::model::record::Record;
use batonmq::store::{Mode, Predecessor, StoreError, file};
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
