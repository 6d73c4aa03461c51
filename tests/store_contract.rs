//! What every mode of the store must do. Each mode goes through with one line at the end.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use batonmq::model::chunk::Origin;
use batonmq::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, RouteId, Sequence, TopicId};
use batonmq::model::name::Name;
use batonmq::model::record::{Record, Source};
use batonmq::model::retry::{Failure, Retry, ReturnReason};
use batonmq::model::route::{Route, RouteMode};
use batonmq::model::settings::{GroupSettings, TopicSettings};
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::store::{Fenced, Mode, Predecessor, StoreError};
use proptest::prelude::*;
use scene::random::random_records;
use scene::{
    Open, Scene, bodies, deletion, group_created, part_created, producer_opened, published, topic_created,
};

const SEGMENT: u64 = 128 << 10;

fn new_store_is_empty(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    scene.check_everything(1000);
    scene.crash();
    scene.restart();
    scene.check_everything(1000);
}

fn every_record_survives_crash_and_restart(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    let records = vec![
        group_created(&scene.model.snapshot, topic),
        producer_opened(&scene.model.snapshot, Timestamp(5)),
    ];
    scene.commit(&records);
    let (group, producer) = (GroupId(0), ProducerId(0));
    let publish = published(&scene.model.snapshot, &[topic], Some(producer), &bodies(20, 30, 1));
    scene.commit(&[publish]);
    let settings = GroupSettings { max_attempts: 3, ..GroupSettings::default() };
    let failure =
        Failure { at: Timestamp(90), reason: ReturnReason::LeaseExpired, text: Some("slow".into()) };
    let retry = Retry::default().failed(failure, Timestamp(99));
    let other = retry.released(Timestamp(100));
    let limits = TopicSettings { max_messages: Some(1_000), ..TopicSettings::default() };
    let mut lane = topic_created(&scene.model.snapshot);
    if let Record::TopicCreated { kind, .. } = &mut lane {
        *kind = TopicKind::Lane { of: topic, priority: 4 };
    }
    let slot = Record::TopicCreated {
        topic: TopicId(2),
        name: Name::new("topic-0").unwrap(),
        kind: TopicKind::Slot {
            of: topic,
            waiting: Waiting::Delayed,
            from: Timestamp(1_024),
            until: Timestamp(2_048),
        },
        settings: TopicSettings::default(),
    };
    let (name, to) = (Name::new("pass-on").unwrap(), vec![TopicId(1)]);
    let rule = Route { name, from: topic, to, filter: None, mode: RouteMode::Move };
    let later = vec![
        Record::HandedOut { group, end: Offset(15) },
        Record::Settled { group, ranges: vec![OffsetRange::new(0, 3), OffsetRange::new(5, 6)] },
        Record::Returned { group, range: OffsetRange::new(7, 12), retry },
        Record::Returned { group, range: OffsetRange::new(8, 10), retry: other },
        Record::Settled { group, ranges: vec![OffsetRange::new(9, 11)] },
        Record::GroupChanged { group, settings },
        Record::TopicChanged { topic, settings: limits },
        lane,
        slot,
        Record::SlotMoved { slot: TopicId(2), from: Timestamp(2_048), until: Timestamp(3_072) },
        Record::RouteCreated { route: RouteId(0), rule },
        Record::ProducerAdvanced { producer, last: Sequence(40), at: Timestamp(1_000) },
        Record::GroupSought { group, floor: Offset(2) },
        Record::Removed { topic, ranges: vec![OffsetRange::new(5, 6), OffsetRange::new(10, 20)] },
        Record::Trimmed { topic, start: Offset(3) },
        Record::ProducerExpired { producer },
        Record::RouteDeleted { route: RouteId(0) },
    ];
    for record in later {
        scene.commit(&[record]);
        scene.crash();
        scene.restart();
        scene.check_everything(100);
    }
    let deletion = deletion(&scene.model.snapshot, topic);
    assert_eq!(deletion.len(), 4, "the group, the lane, the slot and the topic");
    scene.commit(&deletion);
    scene.crash();
    scene.restart();
    scene.check_everything(100);
}

fn a_publish_reaches_every_target(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topics: Vec<TopicId> = (0..3).map(|_| scene.create_topic()).collect();
    for round in 0..50 {
        scene.publish(&topics[round % 3..], &bodies(7, 50, round as u64));
        scene.publish(&[topics[round % 3], topics[(round + 1) % 3]], &bodies(2, 500, round as u64));
    }
    for bytes_max in [0, 60, 1000, 1 << 20] {
        scene.check_everything(bytes_max);
    }
    scene.crash();
    scene.check_everything(3000);
}

/// What a message with a priority does: its topic gets a lane, its group a part of that, and the messages that were picked
/// out of a publish have the origins that they had.
fn a_topic_and_its_parts_come_and_go_in_one_commit(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let snapshot = &mut scene.model.snapshot.clone();
    let mut records = Vec::new();
    let mut add = |snapshot: &mut batonmq::model::snapshot::Snapshot, record: Record| {
        snapshot.apply(&record).unwrap();
        records.push(record);
    };
    let (topic, lane) = (TopicId(0), TopicId(1));
    add(snapshot, producer_opened(snapshot, Timestamp(5)));
    add(snapshot, topic_created(snapshot));
    add(snapshot, group_created(snapshot, topic));
    let Record::TopicCreated { topic: id, settings, .. } = topic_created(snapshot) else { unreachable!() };
    let (name, kind) = (snapshot.topics[&topic].name.clone(), TopicKind::Lane { of: topic, priority: 9 });
    add(snapshot, Record::TopicCreated { topic: id, name, kind, settings });
    add(snapshot, part_created(snapshot, lane, GroupId(0)));
    let origin = |sequence| Some(Origin { producer: ProducerId(0), sequence: Sequence(sequence) });
    for (target, origins) in [
        (topic, vec![(2, origin(1)), (70, origin(4)), (1, None)]),
        (lane, vec![(1, origin(3)), (9, origin(74))]),
    ] {
        let count = origins.iter().map(|(count, _)| *count as usize).sum();
        let mut record = published(snapshot, &[target], None, &bodies(count, 50, u64::from(target.0)));
        if let Record::Published(published) = &mut record {
            published.source = Source::Mixed(origins);
        }
        add(snapshot, record);
    }
    let at = snapshot.time;
    add(snapshot, Record::ProducerAdvanced { producer: ProducerId(0), last: Sequence(82), at });
    scene.commit(&records);
    for bytes_max in [1, 300, 1 << 20] {
        scene.check_everything(bytes_max);
    }
    scene.crash();
    scene.check_everything(200);
    let next = published(&scene.model.snapshot, &[topic], Some(ProducerId(0)), &bodies(3, 50, 7));
    scene.commit(&[next]);
    scene.restart();
    scene.check_everything(200);
    // What is live of a segment is copied into packs, piece by piece.
    let filler = scene.create_topic();
    for round in 0..30 {
        scene.publish(&[filler], &bodies(100, 100, round));
    }
    let start = scene.model.snapshot.topics[&filler].end;
    scene.commit(&[Record::Trimmed { topic: filler, start }]);
    scene.maintain();
    scene.check_everything(200);
    scene.crash();
    scene.check_everything(1 << 20);
    let deletion = deletion(&scene.model.snapshot, topic);
    assert_eq!(deletion.len(), 4, "two parts of the group, the lane and the topic");
    scene.commit(&deletion);
    scene.crash();
    scene.check_everything(1000);
}

fn interleaved_topics_are_kept_apart(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topics: Vec<TopicId> = (0..40).map(|_| scene.create_topic()).collect();
    for round in 0..1500_u64 {
        let topic = topics[(round * round % 40) as usize];
        scene.publish(&[topic], &bodies(1 + round as usize % 3, 100 + round as usize % 200, round));
    }
    scene.check_everything(1000);
    let mut reader = scene.store().reader().unwrap();
    for step in 0..2000_u64 {
        let topic = topics[(step * 7 % 40) as usize];
        let end = scene.model.snapshot.topics[&topic].end.0;
        scene.model.check_read(
            reader.as_mut(),
            topic,
            Offset(step * 31 % (end + 1)),
            (step * 97 % 5000) as usize,
        );
    }
    scene.crash();
    scene.check_everything(10_000);
}

fn bodies_of_megabytes_are_stored(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    for round in 0..4 {
        scene.publish(&[topic], &bodies(1, 3 << 20, round));
        scene.publish(&[topic], &bodies(3, 100, round));
        scene.publish(&[topic], &bodies(5, 700 << 10, round));
    }
    for bytes_max in [1, 1 << 20, 16 << 20] {
        scene.check_everything(bytes_max);
    }
    scene.crash();
    scene.check_everything(1 << 20);
    scene.restart();
    scene.check_everything(4 << 20);
}

fn blocks_that_were_staged_are_committed_like_others(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topics = [scene.create_topic(), scene.create_topic()];
    for round in 0..4 {
        // Both, and between two others; one of them goes to two topics.
        let snapshot = &mut scene.model.snapshot.clone();
        let mut records = Vec::new();
        for (targets, count, len) in [
            (&topics[..1], 3, 100),
            (&topics[..], 1, 5 << 20),
            (&topics[1..], 2, 3 << 20),
            (&topics[..], 2, 10),
        ] {
            let record = published(snapshot, targets, None, &bodies(count, len, round));
            snapshot.apply(&record).unwrap();
            records.push(record);
        }
        records[1..3].iter().for_each(|record| scene.stage(record));
        scene.commit(&records);
        records[1..3].iter().for_each(|record| scene.unstage(record));
        for bytes_max in [1, 4 << 20, 64 << 20] {
            scene.check_everything(bytes_max);
        }
    }
    scene.crash();
    scene.check_everything(1 << 20);
    scene.maintain();
    scene.restart();
    let start = scene.model.snapshot.topics[&topics[0]].end;
    scene.commit(&[Record::Trimmed { topic: topics[0], start }]);
    scene.check_everything(64 << 20);
    scene.crash();
    scene.check_everything(64 << 20);
    scene.maintain();
    scene.check_everything(64 << 20);
}

fn commits_go_on_while_blocks_are_staged(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    let large = |count, len, mark| {
        let snapshot = &scene.model.snapshot;
        published(snapshot, &[topic], None, &bodies(count, len, mark))
    };
    let records = [large(1, 9 << 20, 1), large(2, 2 << 20, 2), large(1, 5 << 20, 3), large(40, 128 << 10, 4)];
    let words: Vec<_> = records.iter().map(|record| scene.begin_to_stage(record)).collect();
    for mark in 0..10 {
        scene.publish(&[topic], &bodies(1, 100, mark));
        if scene.store().maintenance_due() {
            scene.maintain_once();
        }
    }
    scene.check_everything(1000);
    // The session of one has ended; of another one only the second message is not stored yet.
    scene.unstage(&records[0]);
    for (index, record) in records.iter().enumerate().skip(1) {
        scene.wait_until_staged(&words[index]);
        let Record::Published(published) = record else { panic!("it is a publish") };
        let mut published = published.clone();
        published.targets = vec![(topic, scene.model.snapshot.topics[&topic].end)];
        published.block = published.block.skip(usize::from(index == 1));
        scene.commit(&[Record::Published(published)]);
        scene.unstage(record);
    }
    scene.check_everything(64 << 20);
    scene.maintain();
    scene.restart();
    scene.check_everything(1000);
}

/// The session of a large message may end, or the message turn out to be stored already.
fn a_block_that_was_staged_in_vain_leaves_nothing(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    scene.publish(&[topic], &bodies(3, 100, 1));
    let record = published(&scene.model.snapshot, &[topic], None, &bodies(1, 5 << 20, 1));
    let in_vain = |scene: &mut Scene| {
        scene.stage(&record);
        scene.unstage(&record);
        scene.maintain();
        bytes_of(&files(scene.dir.path()))
    };
    // A store may keep the space for what comes next, once.
    let before = in_vain(&mut scene);
    for _ in 0..3 {
        let after = in_vain(&mut scene);
        assert!(after < before + (1 << 20), "{before} and {after} bytes");
    }
    scene.stage(&record);
    scene.crash();
    scene.publish(&[topic], &bodies(3, 100, 2));
    scene.maintain();
    scene.check_everything(1000);
    let names: Vec<_> = all_files(scene.dir.path());
    assert!(bytes_of(&files(scene.dir.path())) < before + (2 << 20), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("pack")), "{names:?}");
}

fn bytes_of(files: &BTreeMap<PathBuf, Vec<u8>>) -> usize {
    files.values().map(Vec::len).sum()
}

fn all_files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { all_files(&path) } else { vec![path.display().to_string()] })
        .collect()
}

fn a_commit_of_thousands_of_records_is_whole(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    let mut model = scene.model.clone();
    let mut records = Vec::new();
    for round in 0..3000 {
        let record = published(&model.snapshot, &[topic], None, &bodies(1, 20, round));
        model.apply(std::slice::from_ref(&record));
        records.push(record);
    }
    scene.commit(&records);
    scene.check_everything(2000);
    scene.crash();
    scene.check_everything(100_000);
}

fn epochs_that_wrote_nothing_change_nothing(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    for round in 0..12 {
        scene.publish(&[topic], &bodies(10, 100, round));
        for _ in 0..round % 4 {
            // Claimed and died before it opened anything: its number is never used.
            scene.epoch = scene.epoch.next();
        }
        if round % 3 == 0 {
            scene.restart();
            scene.restart();
        }
        scene.crash();
        scene.crash();
        scene.check_everything(500);
    }
}

fn an_epoch_is_opened_once_and_never_below_another(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    scene.crash();
    drop(scene.store.take());
    for epoch in [1, 2] {
        scene.epoch = Epoch(epoch);
        let refused = (scene.open)(&scene.options(Predecessor::Gone)).map(|_| ());
        assert!(matches!(refused, Err(StoreError::Fenced(Fenced::Superseded(Epoch(2))))), "{refused:?}");
    }
}

fn trimmed_messages_are_gone_and_the_rest_stays(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let (slow, fast) = (scene.create_topic(), scene.create_topic());
    for round in 0..60 {
        scene.publish(&[fast], &bodies(100, 100, round));
        scene.publish(&[slow], &bodies(1, 100, round));
        let end = scene.model.snapshot.topics[&fast].end;
        scene.commit(&[Record::Trimmed { topic: fast, start: Offset(end.0.saturating_sub(150)) }]);
        if round % 20 == 19 {
            scene.commit(&[Record::Trimmed { topic: slow, start: Offset(round - 5) }]);
        }
        scene.maintain();
        if round % 7 == 0 {
            scene.crash();
        }
        scene.check_everything(5000);
    }
    scene.restart();
    scene.commit(&[Record::TopicDeleted { topic: fast }]);
    scene.maintain();
    scene.check_everything(5000);
    scene.restart();
    scene.check_everything(5000);
}

fn a_reader_sees_what_is_committed_while_more_is(open: Open, mode: Mode) {
    const ROUNDS: u64 = 400;
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    let mut reader = scene.store().reader().unwrap();
    let committed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let committed = &committed;
        let reading = scope.spawn(move || {
            let (mut next, mut seen) = (0, Vec::new());
            while next < ROUNDS * 10 {
                let known = committed.load(Ordering::Acquire);
                match reader.read(topic, Offset(next), 4000).unwrap() {
                    Some(chunk) => {
                        seen.extend(chunk.block.iter());
                        next += chunk.block.count() as u64;
                    }
                    None => {
                        assert!(next >= known, "{next} of {known} is not there");
                        std::thread::yield_now();
                    }
                }
            }
            seen
        });
        for round in 0..ROUNDS {
            scene.publish(&[topic], &bodies(10, 100, round));
            committed.store((round + 1) * 10, Ordering::Release);
            scene.maintain();
        }
        let seen = reading.join().unwrap();
        let expected: Vec<_> =
            scene.model.topics[&topic].iter().map(|stored| stored.encoded.clone()).collect();
        assert!(seen == expected);
    });
}

/// The old master is still there when the new one opens, and writes on.
fn late_commits_of_an_old_epoch_do_not_count(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    scene.publish(&[topic], &bodies(10, 100, 1));
    let mut late = scene.model.clone();
    let mut old = scene.reopen(Predecessor::MayWrite).unwrap();
    let mut write_late = |old: &mut dyn batonmq::store::Store, round: u64| {
        let records = [
            published(&late.snapshot, &[topic], None, &bodies(5, 4000, 1000 + round)),
            topic_created(&late.snapshot),
        ];
        if old.commit(&records).is_ok() {
            late.apply(&records);
        }
    };
    write_late(old.as_mut(), 0);
    scene.publish(&[topic], &bodies(3, 100, 2));
    for round in 1..20 {
        write_late(old.as_mut(), round);
    }
    scene.check_everything(1000);
    scene.crash();
    scene.check_everything(1000);
    // Late upkeep: the old master believes that its fence still holds.
    let _ = old.maintain(&mut || late.snapshot.clone(), &mut || Ok(()));
    scene.crash();
    scene.publish(&[topic], &bodies(3, 100, 3));
    let _ = old.close(&mut || late.snapshot.clone(), &mut || Ok(()));
    scene.crash();
    scene.check_everything(1000);
    scene.restart();
    scene.check_everything(1000);
}

fn a_broken_fence_stops_the_store(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    for round in 0..40 {
        scene.publish(&[topic], &bodies(100, 100, round));
    }
    scene.commit(&[Record::Trimmed { topic, start: Offset(3900) }]);
    let snapshot = scene.model.snapshot.clone();
    let mut refusals = 0;
    while scene.store().maintenance_due() && refusals == 0 {
        let mut fence = || Err(Fenced::Superseded(Epoch(77)));
        match scene.store().maintain(&mut || snapshot.clone(), &mut fence) {
            Err(StoreError::Fenced(Fenced::Superseded(Epoch(77)))) => refusals += 1,
            other => other.unwrap(),
        }
    }
    assert_eq!(refusals, 1, "something is removed, and never without asking");
    let after = published(&scene.model.snapshot, &[topic], None, &bodies(1, 1, 1));
    assert!(scene.store().commit(&[after]).is_err());
    scene.crash();
    scene.check_everything(10_000);
}

/// A master that had lost wrote a checkpoint before it asked the fence, and on the way out it did not ask at all where
/// nothing was to be removed.
fn upkeep_and_closing_ask_the_fence_before_they_write(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    for round in 0..40 {
        scene.publish(&[topic], &bodies(100, 100, round));
    }
    let snapshot = scene.model.snapshot.clone();
    let mut fenced = || Err(Fenced::Superseded(Epoch(77)));
    for ending in ["upkeep", "closing"] {
        let before = files(scene.dir.path());
        let refused = if ending == "closing" {
            scene.store.take().unwrap().close(&mut || snapshot.clone(), &mut fenced)
        } else {
            assert!(scene.store().maintenance_due());
            scene.store().maintain(&mut || snapshot.clone(), &mut fenced)
        };
        assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
        let after = files(scene.dir.path());
        for (path, bytes) in &before {
            assert!(after.get(path) == Some(bytes), "{} was changed", path.display());
        }
        let is_checkpoint = |path: &&PathBuf| path.to_string_lossy().contains("checkpoint");
        assert_eq!(after.keys().find(is_checkpoint), None);
        scene.crash();
    }
}

/// A master that has lost lets go of its store in the middle of whatever it does: what was written then would be a late
/// checkpoint of somebody who is master no more.
fn a_store_that_is_dropped_writes_nothing(open: Open, mode: Mode) {
    let mut scene = Scene::new(open, mode, SEGMENT);
    let topic = scene.create_topic();
    for round in 0..40 {
        scene.publish(&[topic], &bodies(100, 100, round));
    }
    assert!(scene.store().maintenance_due());
    let before = files(scene.dir.path());
    drop(scene.store.take());
    // A segment that was being prepared may be there as well.
    let after = files(scene.dir.path());
    for (path, bytes) in &before {
        assert!(after.get(path) == Some(bytes), "{} was changed", path.display());
    }
    let is_checkpoint = |path: &&PathBuf| path.to_string_lossy().contains("checkpoint");
    assert_eq!(after.keys().find(is_checkpoint), None);
}

/// Every file but those that are still being made.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_none_or(|extension| extension != "new") {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

fn random_histories_are_kept(open: Open, mode: Mode) {
    let steps = prop::collection::vec((0_u8..26, any::<u16>(), any::<u16>()), 1..250);
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in steps)| {
        let mut scene = Scene::new(open, mode, 64 << 10);
        let mut reader = scene.store().reader().unwrap();
        let (mut pending, mut ahead) = (Vec::new(), scene.model.clone());
        for step in steps {
            match step {
                (18, a, _) => {
                    scene.model.check_everything(reader.as_mut(), usize::from(a) * 4);
                }
                (19..=20, a, b) => {
                    let topic = TopicId(u32::from(a) % (scene.model.snapshot.next.topic.0 + 1));
                    let end = scene.model.snapshot.topics.get(&topic).map_or(0, |topic| topic.end.0);
                    scene.model.check_read(reader.as_mut(), topic, Offset(u64::from(b) % (end + 1)), usize::from(a));
                }
                (21, _, _) => scene.maintain(),
                (22, a, _) if a % 3 == 0 => {
                    scene.crash();
                    reader = scene.store().reader().unwrap();
                    (pending, ahead) = (Vec::new(), scene.model.clone());
                }
                (23, a, _) if a % 3 == 0 => {
                    scene.restart();
                    reader = scene.store().reader().unwrap();
                    (pending, ahead) = (Vec::new(), scene.model.clone());
                }
                (22..=23, _, _) => scene.maintain(),
                step => {
                    let records = random_records(&ahead, step);
                    ahead.apply(&records);
                    pending.extend(records);
                    if step.2 % 3 != 0 {
                        scene.commit(&std::mem::take(&mut pending));
                    }
                }
            }
        }
        scene.commit(&std::mem::take(&mut pending));
        scene.crash();
        scene.check_everything(777);
    });
}

macro_rules! contract {
    ($name:ident, $open:expr, $mode:expr; $($claim:ident)*) => {
        mod $name {
            $(#[test]
            fn $claim() {
                super::$claim($open, $mode);
            })*
        }
    };
    ($name:ident, $open:expr, $mode:expr) => {
        contract! { $name, $open, $mode;
            new_store_is_empty
            every_record_survives_crash_and_restart
            a_publish_reaches_every_target
            a_topic_and_its_parts_come_and_go_in_one_commit
            interleaved_topics_are_kept_apart
            bodies_of_megabytes_are_stored
            blocks_that_were_staged_are_committed_like_others
            commits_go_on_while_blocks_are_staged
            a_block_that_was_staged_in_vain_leaves_nothing
            a_commit_of_thousands_of_records_is_whole
            epochs_that_wrote_nothing_change_nothing
            an_epoch_is_opened_once_and_never_below_another
            trimmed_messages_are_gone_and_the_rest_stays
            a_reader_sees_what_is_committed_while_more_is
            late_commits_of_an_old_epoch_do_not_count
            a_broken_fence_stops_the_store
            upkeep_and_closing_ask_the_fence_before_they_write
            a_store_that_is_dropped_writes_nothing
            random_histories_are_kept
        }
    };
}

contract! { file, batonmq::store::file::open, batonmq::store::Mode::File }
contract! { database, batonmq::store::database::open, batonmq::store::Mode::Database }
