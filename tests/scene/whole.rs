//! Whole stores: with something of everything in them, looked at, summed up.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use batonmq::model::chunk::{Chunk, Origin};
use batonmq::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, RouteId, Sequence, TopicId};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::name::Name;
use batonmq::model::record::{Published, Record, Source};
use batonmq::model::retry::{Failure, Retry, ReturnReason};
use batonmq::model::route::{Route, RouteMode};
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::store::digest::Digest;
use batonmq::store::image::{self, Image};
use batonmq::store::manifest::Manifest;
use batonmq::store::{Mode, OpenOptions, Predecessor, Predecessors, Reader, StoreError, Unreadable};

use super::{
    Model, Open, Scene, bodies, group_created, next_of, part_created, producer_opened, published,
    topic_created,
};

pub const MODES: [Mode; 2] = [Mode::Database, Mode::File];

pub fn opener(mode: Mode) -> Open {
    match mode {
        Mode::Database => batonmq::store::database::open,
        Mode::File => batonmq::store::file::open,
    }
}

pub fn scene(mode: Mode) -> Scene {
    Scene::new(opener(mode), mode, 64 << 10)
}

/// Lets the model read an image as it reads a store.
pub struct Reading(pub Box<dyn Image>);

impl Reader for Reading {
    fn read(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, Unreadable> {
        self.0.read(topic, from, bytes_max).map_err(|error| Unreadable::of_one(from, error))
    }
}

pub fn check(image: Box<dyn Image>, model: &Model, bytes_max: usize) {
    assert_eq!(image.snapshot(), &model.snapshot);
    model.check_everything(&mut Reading(image), bytes_max);
}

pub fn look(dir: &Path) -> Box<dyn Image> {
    let manifest = Manifest::newest(dir, Epoch(u64::MAX)).unwrap().unwrap();
    image::look(dir, &manifest).unwrap()
}

pub fn digest(image: &mut dyn Image) -> Digest {
    let mut digest = Digest::begin(image.snapshot()).unwrap();
    image::walk(image, |topic, chunk| {
        digest.add(topic, chunk);
        Ok::<_, StoreError>(())
    })
    .unwrap();
    digest
}

/// Messages with everything that one can have.
pub fn full_messages(model: &Model, topic: TopicId, producer: Option<ProducerId>) -> Record {
    let snapshot = &model.snapshot;
    let full = |n: u8| Message {
        key: Some(vec![n; 1 + usize::from(n)].into()),
        headers: vec![("name".into(), vec![n].into()), ("empty".into(), Vec::new().into())],
        deliver_at: n.is_multiple_of(2).then_some(Timestamp(u64::from(n) << 40)),
        expires_at: n.is_multiple_of(3).then_some(Timestamp(u64::from(n) << 41)),
        priority: n % 10,
        ..Message::new(vec![n; usize::from(n) * 3])
    };
    let messages: Vec<Message> = (0..20).map(full).collect();
    Record::Published(Published {
        targets: vec![(topic, snapshot.topics[&topic].end)],
        source: next_of(snapshot, producer),
        at: Timestamp(snapshot.time.0 + 1),
        block: MessageBlock::encode(&messages),
    })
}

/// A store with something of everything in it.
pub fn furnished(mode: Mode) -> Scene {
    let mut scene = scene(mode);
    let topics: Vec<TopicId> = (0..3).map(|_| scene.create_topic()).collect();
    let records = [
        group_created(&scene.model.snapshot, topics[0]),
        producer_opened(&scene.model.snapshot, Timestamp(5)),
    ];
    scene.commit(&records);
    for round in 0..30 {
        let producer = (round % 3 > 0).then_some(ProducerId(0));
        let record = published(&scene.model.snapshot, &topics[..2], producer, &bodies(9, 200, round));
        scene.commit(&[record]);
        let record = full_messages(&scene.model, topics[round as usize % 2], producer);
        scene.commit(&[record]);
    }
    // Its body lies apart in a database.
    scene.publish(&topics[1..2], &bodies(1, 300 << 10, 7));
    let failure = Failure { at: Timestamp(9), reason: ReturnReason::LeaseExpired, text: Some("slow".into()) };
    let retry = Retry::default().failed(failure, Timestamp(99));
    let parts = parts(&scene.model, topics[0]);
    scene.commit(&parts);
    scene.commit(&[
        Record::Trimmed { topic: topics[0], start: Offset(100) },
        Record::Removed {
            topic: topics[0],
            ranges: vec![OffsetRange::new(120, 150), OffsetRange::new(151, 160)],
        },
        Record::Settled {
            group: GroupId(0),
            ranges: vec![OffsetRange::new(0, 110), OffsetRange::new(112, 113), OffsetRange::new(200, 230)],
        },
        Record::Returned { group: GroupId(0), range: OffsetRange::new(113, 116), retry },
        Record::HandedOut { group: GroupId(0), end: Offset(240) },
    ]);
    scene
}

/// A lane, slots of both kinds with messages, the part of a group, and a route: all in one commit.
fn parts(model: &Model, of: TopicId) -> Vec<Record> {
    let snapshot = &mut model.snapshot.clone();
    let mut records = Vec::new();
    let mut add = |snapshot: &mut Snapshot, record: Record| {
        snapshot.apply(&record).unwrap();
        records.push(record);
    };
    let slot =
        |waiting| TopicKind::Slot { of, waiting, from: Timestamp(3_600_000), until: Timestamp(7_200_000) };
    let kinds = [TopicKind::Lane { of, priority: 7 }, slot(Waiting::Delayed), slot(Waiting::Expiring)];
    for part in kinds {
        let mut created = topic_created(snapshot);
        let id = snapshot.next.topic;
        if let Record::TopicCreated { name, kind, .. } = &mut created {
            (*name, *kind) = (snapshot.topics[&of].name.clone(), part);
        }
        add(snapshot, created);
        let mut appended = published(snapshot, &[id], None, &bodies(6, 40, 1));
        if let Record::Published(published) = &mut appended {
            let origin = |sequence| Some(Origin { producer: ProducerId(0), sequence: Sequence(sequence) });
            published.source = Source::Mixed(vec![(1, origin(4)), (2, None), (3, origin(8))]);
        }
        add(snapshot, appended);
        if matches!(part, TopicKind::Lane { .. }) {
            add(snapshot, part_created(snapshot, id, GroupId(0)));
        }
    }
    let name = Name::new("pass-on").unwrap();
    let rule =
        Route { name, from: of, to: vec![TopicId(1)], filter: Some("a = 1".into()), mode: RouteMode::Copy };
    add(snapshot, Record::RouteCreated { route: RouteId(0), rule });
    let last = Sequence(snapshot.producers[&ProducerId(0)].last.0 + 20);
    let at = Timestamp(snapshot.time.0 + 1);
    add(snapshot, Record::ProducerAdvanced { producer: ProducerId(0), last, at });
    records
}

pub fn close(scene: &mut Scene) {
    let snapshot = scene.model.snapshot.clone();
    scene.store.take().unwrap().close(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
}

/// Path, content and time of change of all there is.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        if path.is_dir() {
            found.extend(files(&path));
            found.insert(path, (Vec::new(), changed));
        } else {
            let content = fs::read(&path).unwrap();
            found.insert(path, (content, changed));
        }
    }
    found
}

/// What an epoch after others that are gone is opened with.
pub fn options(dir: &Path, mode: Mode, epoch: u64) -> OpenOptions {
    let ends = (1..epoch).map(|lower| (Epoch(lower), Predecessor::Gone));
    OpenOptions {
        dir: dir.to_owned(),
        mode,
        epoch: Epoch(epoch),
        predecessors: Predecessors::new(ends.collect()),
        segment_bytes: 64 << 10,
    }
}
