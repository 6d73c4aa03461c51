//! What recovery makes of a journal that was cut, flipped, zeroed, or written to late.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use batonmq::disk;
use batonmq::model::id::{Epoch, Offset, TopicId};
use batonmq::model::record::Record;
use batonmq::model::snapshot::Snapshot;
use batonmq::store::file::checkpoint::{CheckpointBody, CheckpointId};
use batonmq::store::file::entry::EntryHead;
use batonmq::store::file::recovery::recover;
use batonmq::store::file::segment::{ENTRIES_START, Position, SegmentHead, SegmentId};
use batonmq::store::manifest::Manifest;
use batonmq::store::{Fenced, Mode, OpenOptions, Predecessor, StoreError, file};
use scene::{Scene, bodies, published};

const SEGMENT: u64 = 64 << 10;

/// A small journal, the state after each commit, and where each commit's entry begins.
struct Image {
    scene: Scene,
    states: Vec<Snapshot>,
    entries: Vec<(PathBuf, u64)>,
    /// Where the bytes of each entry end, before the zeros that fill it up.
    ends: Vec<u64>,
    /// Where the next entry would begin.
    end: u64,
}

/// One epoch with `commits` commits of about `bytes` each.
fn image(commits: u64, bytes: usize) -> Image {
    image_of(SEGMENT, &vec![bytes; commits as usize - 1])
}

/// One epoch with a topic, and a commit of about each of these sizes.
fn image_of(segment_bytes: u64, sizes: &[usize]) -> Image {
    let mut scene = Scene::new(file::open, Mode::File, segment_bytes);
    let mut states = vec![scene.model.snapshot.clone()];
    let topic = scene.create_topic();
    states.push(scene.model.snapshot.clone());
    for (round, bytes) in sizes.iter().enumerate() {
        scene.publish(&[topic], &bodies(2, bytes / 2, round as u64 + 1));
        states.push(scene.model.snapshot.clone());
    }
    drop(scene.store.take());
    scene.epoch = scene.epoch.next();
    let (mut entries, mut ends) = (Vec::new(), Vec::new());
    let mut end = 0;
    for number in 1.. {
        let path = segment_path(scene.dir.path(), 1, number);
        let Ok(segment) = disk::open(&path) else { break };
        let id = SegmentId { epoch: Epoch(1), number };
        let head = SegmentHead::read(&segment, &path, id).unwrap();
        let mut at = ENTRIES_START;
        let mut bytes = [0; 64];
        while segment.read_exact_at(&mut bytes, at).is_ok() {
            let Some((entry, _)) = EntryHead::decode(&bytes, head.seed, Position { segment: id, at }) else {
                break;
            };
            entries.push((path.clone(), at));
            ends.push(entry.blocks_at() + entry.blocks_bytes);
            at = entry.end();
        }
        end = if at > ENTRIES_START { at } else { end };
    }
    Image { scene, states, entries, ends, end }
}

fn segment_path(dir: &Path, epoch: u64, number: u32) -> PathBuf {
    SegmentId { epoch: Epoch(epoch), number }.path(&dir.join("journal"))
}

impl Image {
    fn recover(&self) -> Result<Snapshot, StoreError> {
        recover(&self.scene.options(Predecessor::MayWrite)).map(|recovered| recovered.snapshot)
    }

    /// Changes a file, runs, and puts it back as it was.
    fn with<T>(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>), run: impl FnOnce() -> T) -> T {
        let good = fs::read(path).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        // In place: a file that is made anew each time is much slower to sync.
        let file = File::options().write(true).open(path).unwrap();
        let put = |bytes: &[u8]| {
            file.set_len(bytes.len() as u64).unwrap();
            file.write_all_at(bytes, 0).unwrap();
        };
        put(&bad);
        let result = run();
        put(&good);
        result
    }
}

fn assert_damaged(recovered: &Result<Snapshot, StoreError>, path: &Path, at: u64) {
    match recovered {
        Err(StoreError::Damaged { path: found, position, .. }) => {
            assert_eq!((found.as_path(), *position), (path, at));
        }
        other => panic!("{other:?} instead of damage at {at}"),
    }
}

#[test]
fn journal_cut_anywhere_gives_the_commits_before_the_cut() {
    let image = image(6, 30);
    let path = segment_path(image.scene.dir.path(), 1, 1);
    assert_eq!(image.entries.len(), 6);
    for cut in image.entries[4].1..=image.end + 8 {
        let whole = image.ends.iter().filter(|end| **end <= cut).count();
        let recovered = image.with(&path, |bytes| bytes.truncate(cut as usize), || image.recover());
        assert!(recovered.unwrap() == image.states[whole], "cut at {cut}");
        let zeroed = image.with(&path, |bytes| bytes[cut as usize..].fill(0), || image.recover());
        assert!(zeroed.unwrap() == image.states[whole], "zeros from {cut}");
    }
}

#[test]
fn flipped_byte_is_cut_in_the_last_entry_and_damage_before() {
    let image = image(5, 60);
    let path = segment_path(image.scene.dir.path(), 1, 1);
    for (index, (_, start)) in image.entries.iter().enumerate().skip(2) {
        let end = image.entries.get(index + 1).map_or(image.end, |(_, at)| *at);
        for at in *start..end {
            let recovered = image.with(&path, |bytes| bytes[at as usize] ^= 0x10, || image.recover());
            if at >= image.ends[index] {
                assert_eq!(recovered.unwrap(), image.states[5], "the zeros at {at} do not count");
            } else if index == 4 {
                assert_eq!(recovered.unwrap(), image.states[4], "byte {at}");
            } else {
                assert_damaged(&recovered, &path, *start);
            }
        }
    }
}

#[test]
fn zeroed_entries_before_a_valid_one_are_damage() {
    let image = image(6, 200);
    let path = segment_path(image.scene.dir.path(), 1, 1);
    for first in 0..5 {
        for last in first..5 {
            let (from, to) = (image.entries[first].1, image.entries[last + 1].1);
            let zero = |bytes: &mut Vec<u8>| bytes[from as usize..to as usize].fill(0);
            assert_damaged(&image.with(&path, zero, || image.recover()), &path, from);
        }
    }
}

#[test]
fn damage_in_a_large_entry_is_seen_by_the_entry_behind_it() {
    let image = image_of(64 << 20, &[300 << 10, 6 << 20, 300 << 10, 6 << 20, 6 << 20, 10]);
    let in_one_segment =
        image.entries.windows(2).filter(|two| two[0].0 == two[1].0 && two[1].1 - two[0].1 > 5 << 20);
    assert!(in_one_segment.count() >= 2, "a large entry and the next one are in one segment");
    let (_, before) = image.entries.split_last().unwrap();
    for (path, at) in before {
        let zero = |bytes: &mut Vec<u8>| bytes[*at as usize..*at as usize + 64].fill(0);
        assert_damaged(&image.with(path, zero, || image.recover()), path, *at);
    }
}

/// An entry with right checksums that does not belong there, such as one that a write of long ago left behind.
#[test]
fn entry_that_does_not_follow_the_one_before_is_not_valid() {
    let image = image(5, 60);
    let path = segment_path(image.scene.dir.path(), 1, 1);
    let id = SegmentId { epoch: Epoch(1), number: 1 };
    let seed = SegmentHead::read(&disk::open(&path).unwrap(), &path, id).unwrap().seed;
    for index in [3, 4] {
        let at = image.entries[index].1;
        let change = |bytes: &mut Vec<u8>| {
            let place = at as usize..at as usize + 64;
            let (entry, _) =
                EntryHead::decode(&bytes[place.clone()], seed, Position { segment: id, at }).unwrap();
            let (head, _) = EntryHead { chain: entry.chain ^ 1, ..entry }.encode(seed);
            bytes[place].copy_from_slice(&head);
        };
        let recovered = image.with(&path, change, || image.recover());
        if index == 4 {
            assert_eq!(recovered.unwrap(), image.states[4]);
        } else {
            assert_damaged(&recovered, &path, at);
        }
    }
}

#[test]
fn epoch_that_continues_another_place_than_the_manifest_says_is_damage() {
    let mut image = image(5, 60);
    image.scene.model.snapshot = image.states[5].clone();
    image.scene.epoch = Epoch(1);
    image.scene.crash();
    let mut manifest = Manifest::newest(image.scene.dir.path(), Epoch(2)).unwrap().unwrap();
    drop(image.scene.store.take());
    image.scene.epoch = Epoch(3);
    assert_eq!(image.recover().unwrap(), image.states[5]);
    manifest.sealed[0].bytes = image.entries[4].1;
    manifest.write(image.scene.dir.path()).unwrap();
    assert_damaged(&image.recover(), &segment_path(image.scene.dir.path(), 2, 1), 32);
}

#[test]
fn damage_at_the_end_of_a_full_segment_is_seen_by_the_next() {
    let image = image(30, 8000);
    let first = segment_path(image.scene.dir.path(), 1, 1);
    let second = segment_path(image.scene.dir.path(), 1, 2);
    let in_first: Vec<u64> =
        image.entries.iter().filter(|(path, _)| *path == first).map(|(_, at)| *at).collect();
    assert!(image.entries.iter().any(|(path, _)| *path == second));
    for &at in &in_first[in_first.len() - 2..] {
        let recovered = image.with(&first, |bytes| bytes[at as usize + 70] ^= 1, || image.recover());
        assert_damaged(&recovered, &first, at);
        let recovered = image.with(&first, |bytes| bytes.truncate(at as usize), || image.recover());
        assert_damaged(&recovered, &first, at);
    }
}

#[test]
fn torn_first_entry_of_a_segment_is_cut() {
    for commits in 8..40 {
        let image = image(commits, 8000);
        let (path, at) = image.entries.last().unwrap();
        if *at != ENTRIES_START || path.to_string_lossy().ends_with("-000001.log") {
            continue;
        }
        let recovered = image.with(path, |bytes| bytes[*at as usize + 70] ^= 1, || image.recover());
        assert_eq!(recovered.unwrap(), image.states[commits as usize - 1]);
        return;
    }
    panic!("no number of commits ends with the first entry of a segment");
}

#[test]
fn missing_segment_is_named() {
    let image = image(40, 8000);
    let path = segment_path(image.scene.dir.path(), 1, 2);
    let elsewhere = image.scene.dir.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    match image.recover() {
        Err(StoreError::Missing { path: missing }) => assert_eq!(missing, path),
        other => panic!("{other:?}"),
    }
    fs::rename(&elsewhere, &path).unwrap();
    assert_eq!(image.recover().unwrap(), *image.states.last().unwrap());
}

#[test]
fn segment_before_the_checkpoint_must_be_there_while_it_has_messages() {
    let (mut scene, _, _) = with_checkpoints();
    drop(scene.store.take());
    scene.epoch = Epoch(2);
    let recovered = || recover(&scene.options(Predecessor::Gone)).map(|recovered| recovered.snapshot);
    let path = segment_path(scene.dir.path(), 1, 1);
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..5000]).unwrap();
    assert_damaged(&recovered(), &path, 5000);
    fs::remove_file(&path).unwrap();
    assert!(matches!(recovered(), Err(StoreError::Missing { path: missing }) if missing == path));
    fs::write(&path, &good).unwrap();
    assert_eq!(recovered().unwrap(), scene.model.snapshot);
}

#[test]
fn journal_without_its_manifest_is_refused() {
    let image = image(3, 100);
    fs::remove_dir_all(image.scene.dir.path().join("manifest")).unwrap();
    assert!(matches!(image.recover(), Err(StoreError::Missing { .. })));
}

#[test]
fn damage_in_what_a_manifest_accepted_is_never_cut() {
    let mut image = image(5, 60);
    image.scene.model.snapshot = image.states[5].clone();
    image.scene.epoch = Epoch(1);
    image.scene.crash();
    drop(image.scene.store.take());
    image.scene.epoch = Epoch(3);
    let (path, at) = image.entries[4].clone();
    for position in at..at + 120 {
        let recovered = image.with(&path, |bytes| bytes[position as usize] ^= 0x80, || image.recover());
        assert_damaged(&recovered, &path, at);
    }
    let recovered = image.with(&path, |bytes| bytes.truncate(image.end as usize - 9), || image.recover());
    assert_damaged(&recovered, &path, at);
}

#[test]
fn damaged_segment_head_is_reported() {
    let image = image(3, 60);
    let path = segment_path(image.scene.dir.path(), 1, 1);
    for at in 0..64 {
        let recovered = image.with(&path, |bytes| bytes[at] ^= 4, || image.recover());
        assert!(
            matches!(recovered, Err(StoreError::Damaged { .. } | StoreError::NewerFormat { .. })),
            "{at}"
        );
    }
}

/// A store in epoch 1 with two checkpoints and commits behind each.
fn with_checkpoints() -> (Scene, TopicId, [PathBuf; 2]) {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    let topic = scene.create_topic();
    let checkpoint = |number: u32| format!("journal/checkpoint-{:020}-{number:010}", 1);
    let mut round = 0;
    while !scene.dir.path().join(checkpoint(3)).exists() {
        scene.publish(&[topic], &bodies(5, 1000, round));
        scene.maintain();
        round += 1;
    }
    scene.publish(&[topic], &bodies(5, 1000, 1_000_000));
    let paths = [checkpoint(2), checkpoint(3)].map(|name| scene.dir.path().join(name));
    assert!(paths.iter().all(|path| path.exists()), "two checkpoints are kept");
    assert!(!scene.dir.path().join(checkpoint(1)).exists(), "the oldest is removed");
    (scene, topic, paths)
}

#[test]
fn torn_checkpoint_is_passed_over_for_the_one_before() {
    let (mut scene, _, [older, newer]) = with_checkpoints();
    drop(scene.store.take());
    scene.epoch = Epoch(2);
    let used = |scene: &Scene| {
        let recovered = recover(&scene.options(Predecessor::Gone)).unwrap();
        assert_eq!(recovered.snapshot, scene.model.snapshot);
        recovered.checkpoint.map(|(id, _)| id.number)
    };
    assert_eq!(used(&scene), Some(3));
    let good = fs::read(&newer).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&newer, &bad).unwrap();
        assert_eq!(used(&scene), Some(2), "byte {at}");
        if at % 7 == 0 {
            fs::write(&newer, &good[..at]).unwrap();
            assert_eq!(used(&scene), Some(2), "cut at {at}");
        }
    }
    fs::remove_file(&older).unwrap();
    assert_eq!(used(&scene), None);
    scene.epoch = Epoch(1);
    scene.crash();
    scene.check_everything(10_000);
}

#[test]
fn without_a_checkpoint_removed_segments_are_not_taken_for_an_empty_start() {
    let (mut scene, topic, _) = with_checkpoints();
    let end = scene.model.snapshot.topics[&topic].end;
    scene.commit(&[Record::Trimmed { topic, start: Offset(end.0 - 1) }]);
    scene.maintain();
    assert!(!segment_path(scene.dir.path(), 1, 1).exists());
    scene.crash();
    scene.check_everything(1000);
    drop(scene.store.take());
    scene.epoch = scene.epoch.next();
    for entry in fs::read_dir(scene.dir.path().join("journal")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("checkpoint") {
            fs::remove_file(path).unwrap();
        }
    }
    assert!(matches!(recover(&scene.options(Predecessor::Gone)), Err(StoreError::Missing { .. })));
}

/// An old master that was stopped between its commit and its checkpoint goes on after the takeover.
#[test]
fn late_checkpoint_is_not_used() {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    let topic = scene.create_topic();
    let mut late = scene.model.clone();
    let mut old = scene.reopen(Predecessor::MayWrite).unwrap();
    let record = published(&late.snapshot, &[topic], None, &bodies(4, 100, 9));
    old.commit(std::slice::from_ref(&record)).unwrap();
    late.apply(&[record]);
    old.close(&mut || late.snapshot.clone(), &mut || Ok(())).unwrap();
    assert!(scene.dir.path().join(format!("journal/checkpoint-{:020}-{:010}", 1, 1)).exists());
    scene.crash();
    scene.publish(&[topic], &bodies(2, 100, 10));
    scene.crash();
    scene.check_everything(1000);
}

/// A takeover that died after its manifest, and one that died before: the next goes on from the same state.
#[test]
fn takeover_that_died_half_way_is_continued() {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    let topic = scene.create_topic();
    for round in 0..6 {
        scene.publish(&[topic], &bodies(3, 100, round));
        let old = scene.store.take();
        scene.epoch = scene.epoch.next();
        let recovered = recover(&scene.options(Predecessor::MayWrite)).unwrap();
        assert_eq!(recovered.snapshot, scene.model.snapshot);
        if round % 2 == 0 {
            recovered.manifest.write(scene.dir.path()).unwrap();
        }
        drop(old);
        scene.crash();
        scene.check_everything(1000);
    }
}

#[test]
fn open_is_refused_once_a_higher_epoch_has_a_manifest() {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    scene.crash();
    let late = OpenOptions { epoch: Epoch(1), ..scene.options(Predecessor::MayWrite) };
    assert!(matches!(recover(&late), Err(StoreError::Fenced(Fenced::Superseded(Epoch(2))))));
}

/// A takeover that was slow wrote its manifest after the next one had written its own.
#[test]
fn manifest_of_a_higher_epoch_that_appears_meanwhile_ends_the_takeover() {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    drop(scene.store.take());
    let manifest = |name: &str| scene.dir.path().join("manifest").join(name);
    // What is written to this name makes the higher one appear.
    std::os::unix::fs::symlink(manifest(&format!("{:020}", 3)), manifest(&format!("{:020}.new", 2))).unwrap();
    let late = OpenOptions { epoch: Epoch(2), ..scene.options(Predecessor::MayWrite) };
    let refused = file::open(&late).err();
    assert!(matches!(refused, Some(StoreError::Fenced(Fenced::Superseded(_)))), "{refused:?}");
    assert!(!segment_path(scene.dir.path(), 2, 1).exists());
}

/// Of two checkpoints the newer one may turn out to be damaged: what lies behind the older one must still be there.
#[test]
fn older_checkpoint_is_enough_whatever_was_removed() {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    let topic = scene.create_topic();
    let mut pair_count = 0;
    for round in 0..60 {
        scene.publish(&[topic], &bodies(10, 1000, round));
        let end = scene.model.snapshot.topics[&topic].end;
        scene.commit(&[Record::Trimmed { topic, start: end }]);
        scene.maintain();
        let image = Scene {
            dir: tempfile::tempdir().unwrap(),
            epoch: Epoch(2),
            store: None,
            ..Scene::new(file::open, Mode::File, SEGMENT)
        };
        for folder in ["journal", "manifest"] {
            fs::create_dir(image.dir.path().join(folder)).unwrap();
            for entry in fs::read_dir(scene.dir.path().join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_none_or(|extension| extension != "new") {
                    fs::copy(&path, image.dir.path().join(folder).join(path.file_name().unwrap())).unwrap();
                }
            }
        }
        let checkpoints = checkpoints(image.dir.path());
        if let [.., _, newest] = checkpoints.as_slice() {
            fs::write(newest, "torn").unwrap();
            pair_count += 1;
        }
        let recovered = recover(&image.options(Predecessor::MayWrite)).unwrap();
        assert_eq!(recovered.snapshot, scene.model.snapshot);
    }
    assert!(pair_count > 5);
    assert!(!segment_path(scene.dir.path(), 1, 1).exists(), "something was removed");
}

/// Checkpoints, oldest first.
fn checkpoints(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.to_string_lossy().contains("checkpoint-")).collect();
    found.sort();
    found
}

#[test]
fn messages_that_no_segment_has_are_missed() {
    let (mut scene, topic, _) = with_checkpoints();
    drop(scene.store.take());
    scene.epoch = Epoch(2);
    let journal = scene.dir.path().join("journal");
    let id = CheckpointId { epoch: Epoch(1), number: 3 };
    let good = CheckpointBody::read(&journal, id).unwrap().unwrap();
    for gone in 0..good.places.topics[0].1.len() {
        let mut bad = good.clone();
        let run = bad.places.topics[0].1.remove(gone);
        bad.write(&journal, id).unwrap();
        let expected = format!("message {} of topic {topic} is nowhere", run.range.start);
        match recover(&scene.options(Predecessor::Gone)) {
            Err(StoreError::Damaged { what, .. }) => assert_eq!(what, expected),
            other => panic!("{:?}", other.map(|recovered| recovered.snapshot)),
        }
    }
}

#[test]
fn files_do_not_pile_up() {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    let topic = scene.create_topic();
    for round in 0..300 {
        scene.publish(&[topic], &bodies(10, 1000, round));
        let end = scene.model.snapshot.topics[&topic].end;
        scene.commit(&[Record::Trimmed { topic, start: Offset(end.0.saturating_sub(20)) }]);
        if round % 30 == 29 {
            scene.crash();
        }
        scene.maintain();
    }
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(scene.dir.path().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert!(names("journal").len() <= 8, "{:?}", names("journal"));
    assert_eq!(names("manifest").len(), 1, "{:?}", names("manifest"));
    scene.check_everything(5000);
}
