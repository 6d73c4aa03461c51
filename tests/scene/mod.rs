//! A store in a temporary directory beside a naive model of what it must hold.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod random;
pub mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use batonmq::model::chunk::Origin;
use batonmq::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, Sequence, TopicId};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::name::Name;
use batonmq::model::record::{Published, Record, Source};
use batonmq::model::route::Route;
use batonmq::model::settings::{GroupSettings, TopicSettings};
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::TopicKind;
use batonmq::store::{Mode, OpenOptions, Predecessor, Predecessors, Reader, Store, StoreError};
use bytes::Bytes;

/// How long upkeep may take altogether.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a mode of the store is opened.
pub type Open = fn(&OpenOptions) -> Result<(Box<dyn Store>, Snapshot), StoreError>;

/// A message as the model has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub encoded: Bytes,
    pub at: Timestamp,
    pub origin: Option<Origin>,
}

/// What must be in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub snapshot: Snapshot,
    pub topics: BTreeMap<TopicId, Vec<Stored>>,
}

impl Model {
    pub fn apply(&mut self, records: &[Record]) {
        for record in records {
            self.snapshot.apply(record).unwrap();
            match record {
                Record::TopicCreated { topic, .. } => {
                    self.topics.insert(*topic, Vec::new());
                }
                Record::TopicDeleted { topic } => {
                    self.topics.remove(topic);
                }
                Record::Published(published) => {
                    for (topic, _) in &published.targets {
                        let origins = origins(&published.source, published.block.count());
                        let messages = published.block.iter().zip(origins);
                        let stored =
                            messages.map(|(encoded, origin)| Stored { encoded, at: published.at, origin });
                        self.topics.get_mut(topic).unwrap().extend(stored);
                    }
                }
                _ => {}
            }
        }
    }

    fn has(&self, topic: TopicId, offset: Offset) -> bool {
        self.snapshot.topics.get(&topic).is_some_and(|state| {
            state.start <= offset && offset < state.end && !state.removed.contains(offset)
        })
    }

    /// Reads once and compares. Answers how many messages there were.
    pub fn check_read(&self, reader: &mut dyn Reader, topic: TopicId, from: Offset, bytes_max: usize) -> u64 {
        let chunk = reader.read(topic, from, bytes_max).unwrap();
        let there = self.has(topic, from);
        let Some(chunk) = chunk else {
            assert!(!there, "topic {topic} offset {from} is not there");
            return 0;
        };
        assert!(there, "topic {topic} offset {from} should not be there");
        assert_eq!(chunk.first, from);
        let count = chunk.block.count();
        assert!(count > 0);
        let bytes = chunk.block.bytes().len();
        assert!(bytes <= bytes_max || count == 1, "{count} messages, {bytes} bytes, {bytes_max} allowed");
        let mut stamps = chunk.stamps.iter().flat_map(|stamp| {
            (0..u64::from(stamp.count)).map(move |index| {
                let origin = stamp
                    .origin
                    .map(|origin| Origin { sequence: Sequence(origin.sequence.0 + index), ..origin });
                (stamp.published_at, origin)
            })
        });
        let expected = &self.topics[&topic][from.0 as usize..];
        for (index, expected) in expected.iter().take(count).enumerate() {
            let (at, origin) = stamps.next().unwrap();
            assert!(self.has(topic, Offset(from.0 + index as u64)), "topic {topic}, {index} after {from}");
            let found = Stored { encoded: chunk.block.slice(index, index + 1), at, origin };
            assert_eq!(&found, expected, "topic {topic} offset {}", from.0 + index as u64);
        }
        assert!(stamps.next().is_none());
        assert!(expected.len() >= count);
        count as u64
    }

    /// Reads everything in reads of `bytes_max`, and around the edges.
    pub fn check_everything(&self, reader: &mut dyn Reader, bytes_max: usize) {
        for (&topic, state) in &self.snapshot.topics {
            let mut next = state.start;
            while next < state.end {
                next.0 += self.check_read(reader, topic, next, bytes_max).max(1);
            }
            self.check_read(reader, topic, state.end, bytes_max);
            if state.start.0 > 0 {
                self.check_read(reader, topic, Offset(state.start.0 - 1), bytes_max);
            }
        }
        self.check_read(reader, self.snapshot.next.topic, Offset(0), bytes_max);
    }
}

/// The origin of each message.
pub fn origins(source: &Source, count: usize) -> Vec<Option<Origin>> {
    let runs: Vec<(u32, Option<Origin>)> = match source {
        Source::Broker => vec![(count as u32, None)],
        Source::Producer(origin) => vec![(count as u32, Some(*origin))],
        Source::Mixed(runs) => runs.clone(),
    };
    let each = |(count, origin): (u32, Option<Origin>)| {
        let at = |index: u32| {
            origin.map(|origin| Origin { sequence: Sequence(origin.sequence.0 + u64::from(index)), ..origin })
        };
        (0..count).map(at).collect::<Vec<_>>()
    };
    let origins: Vec<_> = runs.into_iter().flat_map(each).collect();
    assert_eq!(origins.len(), count);
    origins
}

/// A store and its model.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub open: Open,
    pub mode: Mode,
    pub epoch: Epoch,
    pub segment_bytes: u64,
    pub store: Option<Box<dyn Store>>,
    pub model: Model,
}

impl Scene {
    /// A new store.
    pub fn new(open: Open, mode: Mode, segment_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (epoch, model) = (Epoch(0), Model::default());
        let mut scene = Self { dir, open, mode, epoch, segment_bytes, store: None, model };
        scene.reopen(Predecessor::None);
        scene
    }

    pub fn options(&self, predecessor: Predecessor) -> OpenOptions {
        let (dir, mode, epoch) = (self.dir.path().to_owned(), self.mode, self.epoch);
        let predecessors = Predecessors::new((1..epoch.0).map(|lower| (Epoch(lower), predecessor)).collect());
        OpenOptions { dir, mode, epoch, predecessors, segment_bytes: self.segment_bytes }
    }

    /// Opens the store in the next epoch, and compares its state. Answers the store that was open.
    pub fn reopen(&mut self, predecessor: Predecessor) -> Option<Box<dyn Store>> {
        self.epoch = self.epoch.next();
        let (store, snapshot) = (self.open)(&self.options(predecessor)).unwrap();
        assert_eq!(snapshot, self.model.snapshot);
        self.store.replace(store)
    }

    /// Goes on in the next epoch without closing, as after a kill.
    pub fn crash(&mut self) {
        drop(self.store.take());
        self.reopen(Predecessor::Gone);
    }

    /// Goes on in the next epoch after closing.
    pub fn restart(&mut self) {
        let snapshot = self.model.snapshot.clone();
        self.store.take().unwrap().close(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
        self.reopen(Predecessor::Gone);
    }

    pub fn store(&mut self) -> &mut dyn Store {
        self.store.as_mut().unwrap().as_mut()
    }

    pub fn commit(&mut self, records: &[Record]) {
        self.store().commit(records).unwrap();
        self.model.apply(records);
    }

    /// Maintains until nothing is due and nothing under way.
    pub fn maintain(&mut self) {
        let snapshot = self.model.snapshot.clone();
        let started = Instant::now();
        for step in 0.. {
            assert!(step < 1000 && started.elapsed() < PATIENCE, "maintenance never ends");
            while self.store().maintenance_under_way() && started.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            if !self.store().maintenance_due() {
                return;
            }
            self.store().maintain(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
        }
    }

    pub fn check_everything(&mut self, bytes_max: usize) {
        let mut reader = self.store().reader().unwrap();
        self.model.check_everything(reader.as_mut(), bytes_max);
    }

    pub fn create_topic(&mut self) -> TopicId {
        let record = topic_created(&self.model.snapshot);
        self.commit(&[record]);
        TopicId(self.model.snapshot.next.topic.0 - 1)
    }

    /// Has the block of a publish staged, and waits until it is.
    pub fn stage(&mut self, record: &Record) {
        let staged = self.begin_to_stage(record);
        self.wait_until_staged(&staged);
    }

    /// Has the block of a publish staged, and answers where the word comes that it is.
    pub fn begin_to_stage(&mut self, record: &Record) -> Receiver<()> {
        let Record::Published(published) = record else { panic!("only a publish has a block") };
        let (sender, staged) = channel();
        let word = Box::new(move || {
            // Nobody waits for the word of a block that is forgotten.
            let _ = sender.send(());
        });
        self.store().stage(published.block.bytes().clone(), word);
        staged
    }

    /// Waits for the word that a block is staged, and does the upkeep that this may take.
    pub fn wait_until_staged(&mut self, staged: &Receiver<()>) {
        let started = Instant::now();
        loop {
            match staged.try_recv() {
                Ok(()) => return,
                Err(TryRecvError::Empty) => assert!(started.elapsed() < PATIENCE, "the block is not staged"),
                Err(TryRecvError::Disconnected) => panic!("the word is lost"),
            }
            if self.store().maintenance_due() {
                self.maintain_once();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// One step of upkeep.
    pub fn maintain_once(&mut self) {
        let snapshot = self.model.snapshot.clone();
        self.store().maintain(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
    }

    /// Forgets the block of a publish that was staged.
    pub fn unstage(&mut self, record: &Record) {
        let Record::Published(published) = record else { panic!("only a publish has a block") };
        self.store().unstage(published.block.bytes()).unwrap();
    }

    /// Publishes bodies to topics in one commit.
    pub fn publish(&mut self, topics: &[TopicId], bodies: &[Vec<u8>]) {
        let record = published(&self.model.snapshot, topics, None, bodies);
        self.commit(&[record]);
    }
}

pub fn topic_created(snapshot: &Snapshot) -> Record {
    let topic = snapshot.next.topic;
    let name = Name::new(&format!("topic-{topic}")).unwrap();
    Record::TopicCreated { topic, name, kind: TopicKind::Named, settings: TopicSettings::default() }
}

pub fn group_created(snapshot: &Snapshot, topic: TopicId) -> Record {
    let (group, floor) = (snapshot.next.group, snapshot.topics[&topic].start);
    let name = Name::new(&format!("group-{group}")).unwrap();
    Record::GroupCreated { group, topic, name, settings: GroupSettings::default(), floor, part_of: None }
}

/// What a group has of another topic.
pub fn part_created(snapshot: &Snapshot, topic: TopicId, whole: GroupId) -> Record {
    let state = &snapshot.groups[&whole];
    Record::GroupCreated {
        group: snapshot.next.group,
        topic,
        name: state.name.clone(),
        settings: state.settings.clone(),
        floor: snapshot.topics[&topic].start,
        part_of: Some(whole),
    }
}

/// All that goes with a topic, parts before what they are parts of.
pub fn deletion(snapshot: &Snapshot, topic: TopicId) -> Vec<Record> {
    let parts = snapshot.topics.iter().filter(|(_, state)| state.kind.part_of() == Some(topic));
    let topics: Vec<TopicId> = parts.map(|(id, _)| *id).chain([topic]).collect();
    let of_topics = snapshot.groups.iter().filter(|(_, state)| topics.contains(&state.topic));
    let whole: BTreeSet<GroupId> = of_topics.map(|(id, _)| *id).collect();
    let parts =
        snapshot.groups.iter().filter(|(_, state)| state.part_of.is_some_and(|of| whole.contains(&of)));
    let parts: BTreeSet<GroupId> = parts.map(|(id, _)| *id).collect();
    let groups = parts.iter().chain(whole.difference(&parts)).map(|&group| Record::GroupDeleted { group });
    let named = |rule: &Route| topics.iter().any(|topic| rule.from == *topic || rule.to.contains(topic));
    let routes = snapshot.routes.iter().filter(|(_, rule)| named(rule));
    let routes = routes.map(|(&route, _)| Record::RouteDeleted { route });
    groups.chain(routes).chain(topics.iter().map(|&topic| Record::TopicDeleted { topic })).collect()
}

pub fn producer_opened(snapshot: &Snapshot, at: Timestamp) -> Record {
    let producer = snapshot.next.producer;
    Record::ProducerOpened { producer, name: Name::new(&format!("producer-{producer}")).unwrap(), at }
}

pub fn published(
    snapshot: &Snapshot,
    topics: &[TopicId],
    producer: Option<ProducerId>,
    bodies: &[Vec<u8>],
) -> Record {
    let targets = topics.iter().map(|topic| (*topic, snapshot.topics[topic].end)).collect();
    let source = next_of(snapshot, producer);
    let messages: Vec<Message> = bodies.iter().map(|body| Message::new(body.clone())).collect();
    let at = Timestamp(snapshot.time.0 + 1);
    Record::Published(Published { targets, source, at, block: MessageBlock::encode(&messages) })
}

/// What comes next from a producer, or from the broker.
pub fn next_of(snapshot: &Snapshot, producer: Option<ProducerId>) -> Source {
    Source::of(
        producer.map(|producer| Origin { producer, sequence: snapshot.producers[&producer].last.next() }),
    )
}

/// The first offset of the group that nothing was ever settled above.
pub fn unsettled(snapshot: &Snapshot, group: GroupId) -> OffsetRange {
    let state = &snapshot.groups[&group];
    let start = state.settled.iter().last().map_or(state.floor, |range| range.end);
    OffsetRange { start, end: snapshot.topics[&state.topic].end }
}

/// Up to `len` messages in the middle of a topic, from `from` messages behind the start on: those that are there.
pub fn middle(snapshot: &Snapshot, topic: TopicId, from: u64, len: u64) -> Vec<OffsetRange> {
    let state = &snapshot.topics[&topic];
    let start = state.start.0 + from;
    let range = OffsetRange::new(start.min(state.end.0), (start + len).min(state.end.0));
    state.removed.gaps(range).collect()
}

/// Bodies that differ from each other.
pub fn bodies(count: usize, len: usize, mark: u64) -> Vec<Vec<u8>> {
    (0..count as u64)
        .map(|index| {
            let mut state = mark.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index;
            (0..len)
                .map(|_| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                })
                .collect()
        })
        .collect()
}

/// A copy of a directory.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target: PathBuf = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            match std::fs::copy(entry.path(), target) {
                // The next segment, which was being made, has its name by now.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}
