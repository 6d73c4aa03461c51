//! Whole stores: images of living and dead ones, new ones that are filled from them, archives.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;

use std::fs;
use std::path::Path;

use batonmq::model::id::{Epoch, GroupId, Offset, OffsetRange, TopicId};
use batonmq::model::marks::Marks;
use batonmq::model::record::Record;
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::TopicKind;
use batonmq::store::archive::{self, ArchiveError};
use batonmq::store::digest::Digest;
use batonmq::store::image::{self, Image};
use batonmq::store::manifest::Manifest;
use batonmq::store::survey::{Readable, survey};
use batonmq::store::{Mode, OpenOptions, Predecessor};
use proptest::prelude::*;
use scene::random::random_records;
use scene::whole::{
    MODES, check, close, digest, files, full_messages, furnished, look, opener, options, scene,
};
use scene::{Scene, bodies, copy_dir};

fn image_of(scene: &mut Scene) -> Box<dyn Image> {
    let snapshot = scene.model.snapshot.clone();
    scene.store().image(&mut || snapshot.clone()).unwrap()
}

#[test]
fn an_image_stays_as_it_was_whatever_is_committed_after_it() {
    for mode in MODES {
        let mut scene = furnished(mode);
        let then = scene.model.clone();
        let image = image_of(&mut scene);
        let (first, second) = (TopicId(0), TopicId(1));
        let end = scene.model.snapshot.topics[&first].end;
        scene.publish(&[first], &bodies(50, 300, 7));
        scene.commit(&[Record::Trimmed { topic: first, start: Offset(end.0 + 10) }]);
        let ranges = vec![OffsetRange::new(end.0 + 20, end.0 + 30)];
        scene.commit(&[Record::Removed { topic: first, ranges }, Record::TopicDeleted { topic: second }]);
        for round in 0..20 {
            scene.publish(&[first], &bodies(20, 300, round));
            scene.maintain();
        }
        check(image, &then, 2000);
        scene.maintain();
        scene.check_everything(1000);
        scene.crash();
        scene.check_everything(1000);
    }
}

#[test]
fn what_an_image_held_back_goes_when_it_is_dropped() {
    let mut scene = furnished(Mode::Database);
    let image = image_of(&mut scene);
    let end = scene.model.snapshot.topics[&TopicId(0)].end;
    scene.commit(&[Record::Trimmed { topic: TopicId(0), start: end }]);
    scene.maintain();
    assert!(!scene.store().maintenance_due(), "nothing spins while an image is alive");
    drop(image);
    assert!(scene.store().maintenance_due());
    scene.maintain();
    scene.crash();
    scene.check_everything(1000);
}

#[test]
fn a_store_that_is_closed_ends_its_images() {
    let mut scene = furnished(Mode::Database);
    let mut image = image_of(&mut scene);
    close(&mut scene);
    assert!(image.read(TopicId(0), Offset(100), 1000).is_err());
    scene.reopen(Predecessor::Gone);
    scene.check_everything(1000);
}

#[test]
fn looking_at_a_dead_store_sees_all_and_changes_nothing() {
    for mode in MODES {
        let mut crashed = furnished(mode);
        drop(crashed.store.take());
        let mut closed = furnished(mode);
        close(&mut closed);
        for scene in [crashed, closed] {
            let dir = tempfile::tempdir().unwrap();
            // A name with what means something in an address.
            let store = dir.path().join("a %3f?b#c");
            copy_dir(scene.dir.path(), &store);
            let before = files(&store);
            check(look(&store), &scene.model, 1500);
            assert!(files(&store) == before, "{mode}: something was changed");
        }
    }
}

/// Fills a new store with what an image has, and answers its digest once it counts.
fn fill(image: &mut dyn Image, options: &OpenOptions) -> Digest {
    let mut fill = image::fill(options, image.snapshot()).unwrap();
    image::walk(image, |topic, chunk| fill.add(topic, chunk)).unwrap();
    fill.finish().unwrap().write(&options.dir).unwrap();
    digest(look(&options.dir).as_mut())
}

/// Goes through every mode and back: what is there is what was there, and a master can go on with it.
fn goes_round(scene: &mut Scene) {
    drop(scene.store.take());
    let mut image = look(scene.dir.path());
    let original = digest(image.as_mut());
    let mut dirs = Vec::new();
    for to in [Mode::Database, Mode::File, Mode::File, Mode::Database] {
        let dir = tempfile::tempdir().unwrap();
        let filled = fill(image.as_mut(), &options(dir.path(), to, 3));
        assert_eq!(original.difference(&filled), None, "{to}");
        drop(image);
        check(look(dir.path()), &scene.model, 900);
        let (mut store, snapshot) = opener(to)(&options(dir.path(), to, 4)).unwrap();
        assert_eq!(snapshot, scene.model.snapshot);
        scene.model.check_everything(store.reader().unwrap().as_mut(), 1200);
        for _ in 0..100 {
            if !store.maintenance_due() {
                break;
            }
            store.maintain(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
        }
        store.close(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
        image = look(dir.path());
        dirs.push(dir);
    }
}

#[test]
fn a_store_is_the_same_in_every_mode() {
    for mode in MODES {
        goes_round(&mut furnished(mode));
        goes_round(&mut scene(mode));
    }
}

#[test]
fn random_stores_are_the_same_in_every_mode() {
    let steps = prop::collection::vec((0_u8..28, any::<u16>(), any::<u16>()), 1..120);
    let config = ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in steps, mode in prop::sample::select(&MODES[..]))| {
        let mut scene = scene(mode);
        for step in steps {
            let records = match step {
                (26, a, _) if scene.model.snapshot.topics.contains_key(&TopicId(u32::from(a) % 4)) => {
                    let producer = scene.model.snapshot.producers.keys().next().copied();
                    vec![full_messages(&scene.model, TopicId(u32::from(a) % 4), producer)]
                }
                (27, _, _) => {
                    scene.maintain();
                    Vec::new()
                }
                step => random_records(&scene.model, step),
            };
            scene.commit(&records);
        }
        goes_round(&mut scene);
    });
}

#[test]
fn messages_that_do_not_come_in_order_are_not_taken() {
    for mode in MODES {
        let mut scene = furnished(mode);
        drop(scene.store.take());
        let mut image = look(scene.dir.path());
        let dir = tempfile::tempdir().unwrap();
        let mut fill = image::fill(&options(dir.path(), mode, 3), image.snapshot()).unwrap();
        let second = image.read(TopicId(0), Offset(101), 100).unwrap().unwrap();
        let added = fill.add(TopicId(0), &second);
        assert!(added.is_err() || fill.finish().is_err(), "{mode}: the first is missing");
        let dir = tempfile::tempdir().unwrap();
        let mut fill = image::fill(&options(dir.path(), mode, 3), image.snapshot()).unwrap();
        let first = image.read(TopicId(0), Offset(100), 100).unwrap().unwrap();
        fill.add(TopicId(0), &first).unwrap();
        assert!(fill.finish().is_err(), "{mode}: most are missing");
    }
}

#[test]
fn an_archive_has_the_whole_store() {
    let mut scene = furnished(Mode::Database);
    let mut image = image_of(&mut scene);
    let origin = archive::Origin { store_id: "s".to_owned(), mode: Mode::Database, made_at: Timestamp(1) };
    let mut bytes = Vec::new();
    let written = archive::write(image.as_mut(), &origin, &mut bytes).unwrap();
    assert_eq!(written, digest(image.as_mut()));
    let mut reader = archive::Reader::open(bytes.as_slice()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path(), Mode::Database, 1);
    let mut fill = image::fill(&options, reader.snapshot()).unwrap();
    while let Some((topic, chunk)) = reader.next_messages().unwrap() {
        fill.add(topic, &chunk).unwrap();
    }
    assert_eq!(reader.digest(), &written);
    fill.finish().unwrap().write(dir.path()).unwrap();
    check(look(dir.path()), &scene.model, 1000);
    assert!(matches!(
        archive::Reader::open(&bytes[..bytes.len() / 2])
            .map(|mut reader| while let Ok(Some(_)) = reader.next_messages() {}),
        Ok(()) | Err(ArchiveError::CutOff(_))
    ));
}

/// What of a damaged store can be read, and what is told of the rest; an archive of it can be read, and a master goes on
/// with a store that is made of that.
fn salvaged(dir: &Path) -> (Snapshot, Vec<String>) {
    let manifest = Manifest::newest(dir, Epoch(u64::MAX)).unwrap().unwrap();
    let mut found = survey(dir, &manifest, &mut |_| {}).unwrap();
    let told = found.damages.drain(..).map(|damage| damage.what).collect();
    let mut readable = Readable::of(found).unwrap();
    let origin = archive::Origin { store_id: String::new(), mode: manifest.mode, made_at: Timestamp(1) };
    let mut bytes = Vec::new();
    archive::write(&mut readable, &origin, &mut bytes).unwrap();
    let mut reader = archive::Reader::open(bytes.as_slice()).unwrap();
    let snapshot = reader.snapshot().clone();
    for mode in MODES {
        let copy = tempfile::tempdir().unwrap();
        let mut fill = image::fill(&options(copy.path(), mode, 1), &snapshot).unwrap();
        while let Some((topic, chunk)) = reader.next_messages().unwrap() {
            fill.add(topic, &chunk).unwrap();
        }
        fill.finish().unwrap().write(copy.path()).unwrap();
        let (_, recovered) = opener(mode)(&options(copy.path(), mode, 2)).unwrap();
        assert_eq!(recovered, snapshot);
        reader = archive::Reader::open(bytes.as_slice()).unwrap();
    }
    (snapshot, told)
}

/// The parts of topic 0 in a store that has something of everything.
const LANE: TopicId = TopicId(3);
const DELAYED: TopicId = TopicId(4);
const EXPIRING: TopicId = TopicId(5);

#[test]
fn messages_of_parts_are_salvaged_from_a_database_that_has_lost_their_topic() {
    let mut scene = furnished(Mode::Database);
    close(&mut scene);
    let database = Manifest::newest(scene.dir.path(), Epoch(9)).unwrap().unwrap().database.unwrap();
    let connection = rusqlite::Connection::open(scene.dir.path().join(database)).unwrap();
    connection.execute("UPDATE topic SET end_offset = 1 WHERE id = 0", []).unwrap();
    drop(connection);
    let (found, told) = salvaged(scene.dir.path());
    let was = &scene.model.snapshot;
    for part in [LANE, DELAYED] {
        let state = &found.topics[&part];
        assert_eq!((state.kind, state.message_count()), (TopicKind::Named, 6));
        assert_eq!(
            (state.name.to_string(), &state.marks),
            (format!("salvaged-topic-{part}"), &was.topics[&part].marks)
        );
        assert!(told.iter().any(|what| what.contains(state.name.as_str())), "{told:?}");
    }
    assert!(!found.topics.contains_key(&EXPIRING), "notes are no messages");
    assert!(!found.groups.contains_key(&GroupId(0)));
    let part = &found.groups[&GroupId(1)];
    assert_eq!((part.topic, part.part_of, part.floor), (LANE, None, was.groups[&GroupId(1)].floor));
    assert!(found.routes.is_empty() && told.iter().any(|what| what.contains("route pass-on")), "{told:?}");
    assert_eq!(found.next, was.next);
}

#[test]
fn a_part_of_a_group_that_is_lost_is_lost_with_it() {
    let mut scene = furnished(Mode::Database);
    close(&mut scene);
    let database = Manifest::newest(scene.dir.path(), Epoch(9)).unwrap().unwrap().database.unwrap();
    let connection = rusqlite::Connection::open(scene.dir.path().join(database)).unwrap();
    connection.execute("UPDATE consumer_group SET floor_offset = 1 WHERE id = 0", []).unwrap();
    drop(connection);
    let (found, told) = salvaged(scene.dir.path());
    assert_eq!(found.topics, scene.model.snapshot.topics);
    assert!(found.groups.is_empty(), "{:?}", found.groups);
    assert!(told.iter().any(|what| what.contains("a part of group 0 (group-0)")), "{told:?}");
}

/// Marks that are lost are set anew, by what is left: without them a topic would have no size and no age.
#[test]
fn a_database_that_has_lost_its_marks_gets_others() {
    let mut scene = furnished(Mode::Database);
    close(&mut scene);
    let database = Manifest::newest(scene.dir.path(), Epoch(9)).unwrap().unwrap().database.unwrap();
    let connection = rusqlite::Connection::open(scene.dir.path().join(database)).unwrap();
    connection.execute("DELETE FROM topic_marks WHERE topic = 1", []).unwrap();
    drop(connection);
    let (found, told) = salvaged(scene.dir.path());
    assert!(told.iter().any(|what| what.contains("topic_marks")), "{told:?}");
    let (marks, was) = (&found.topics[&TopicId(1)].marks, &scene.model.snapshot.topics[&TopicId(1)].marks);
    assert_eq!((marks.bytes_ever(), marks.last_at()), (was.bytes_ever(), was.last_at()));
}

/// The segment that has made the topic and its groups is gone, with the checkpoints: its parts were made by later ones.
#[test]
fn parts_are_salvaged_from_a_journal_that_has_lost_its_beginning() {
    let mut scene = furnished(Mode::File);
    drop(scene.store.take());
    for (path, _) in files(&scene.dir.path().join("journal")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("checkpoint") || name.ends_with("-000001.log") {
            fs::remove_file(&path).unwrap();
        }
    }
    let (found, told) = salvaged(scene.dir.path());
    let was = &scene.model.snapshot;
    assert_eq!(found.topics[&TopicId(0)].name.as_str(), "salvaged-topic-0", "{told:?}");
    for part in [LANE, DELAYED, EXPIRING] {
        let state = &found.topics[&part];
        assert_eq!((state.kind, state.message_count()), (was.topics[&part].kind, 6));
    }
    assert!(found.groups.is_empty() && told.iter().any(|what| what.contains("group 1")), "{told:?}");
    assert_eq!(found.routes, was.routes);
    assert!(found.topics.values().all(|topic| topic.message_count() == 0 || topic.marks != Marks::new()));
    assert!(found.next.topic >= was.next.topic && found.next.producer >= was.next.producer);
}
