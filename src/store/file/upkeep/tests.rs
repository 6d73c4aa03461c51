//! What is due when, over many commits.

use super::*;
use crate::model::id::{Offset, TopicId};
use crate::model::message::{Message, MessageBlock};
use crate::model::name::Name;
use crate::model::record::{Published, Record, Source};
use crate::model::settings::TopicSettings;
use crate::model::time::Timestamp;
use crate::model::topic_kind::TopicKind;
use crate::store::file::FileStore;
use crate::store::file::open_file;
use crate::store::file::segment::SegmentId;
use crate::store::{Fenced, Mode, OpenOptions, Predecessors, Store};

const TOPIC: TopicId = TopicId(0);

/// A store with so many topics that a checkpoint is larger than a segment, and what it has committed.
struct Scene {
    dir: tempfile::TempDir,
    store: FileStore,
    snapshot: Snapshot,
    end: u64,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = OpenOptions {
            dir: dir.path().to_owned(),
            mode: Mode::File,
            epoch: Epoch(1),
            predecessors: Predecessors::default(),
            segment_bytes: 64 << 10,
        };
        let (store, snapshot) = open_file(&options).unwrap();
        let mut scene = Self { dir, store, snapshot, end: 0 };
        let created: Vec<Record> = (0..4_000)
            .map(|topic| Record::TopicCreated {
                topic: TopicId(topic),
                name: Name::new(&format!("a-topic-with-a-long-name-{topic}")).unwrap(),
                kind: TopicKind::Named,
                settings: TopicSettings::default(),
            })
            .collect();
        scene.commit(&created);
        scene
    }

    fn commit(&mut self, records: &[Record]) {
        self.store.commit(records).unwrap();
        records.iter().for_each(|record| self.snapshot.apply(record).unwrap());
    }

    /// Publishes and trims a quarter of a segment.
    fn publish(&mut self) {
        let block = MessageBlock::encode([&Message::new(vec![7; 16 << 10])]);
        let targets = vec![(TOPIC, Offset(self.end))];
        self.end += 1;
        let published = Published { targets, source: Source::Broker, at: Timestamp(1), block };
        let trimmed = Record::Trimmed { topic: TOPIC, start: Offset(self.end) };
        self.commit(&[Record::Published(published), trimmed]);
    }

    fn maintain(&mut self) {
        loop {
            if self.store.maintenance_under_way() {
                std::thread::yield_now();
            } else if self.store.maintenance_due() {
                self.store.maintain(&mut || self.snapshot.clone(), &mut || Ok(())).unwrap();
            } else {
                break;
            }
        }
    }

    fn checkpoint_count(&self) -> u64 {
        u64::from(self.store.upkeep.next - 1)
    }

    /// Names in the journal, but of what is still being made.
    fn finished_files(&self) -> BTreeSet<PathBuf> {
        let names = std::fs::read_dir(self.dir.path().join("journal")).unwrap();
        let paths = names.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_none_or(|extension| extension != "new")).collect()
    }

    fn first_is_there(&self) -> bool {
        SegmentId { epoch: Epoch(1), number: 1 }.path(&self.dir.path().join("journal")).exists()
    }
}

/// Each segment that died had two checkpoints written at once, however large they were for what it had held.
#[test]
fn removing_segments_does_not_cost_more_than_was_committed() {
    let mut scene = Scene::new();
    let begun = scene.store.journal.end().0;
    for _ in 0..200 {
        scene.publish();
        scene.maintain();
    }
    assert!(begun.segment < scene.store.journal.segment());
    let checkpoint_bytes = scene.store.upkeep.checkpoint_bytes;
    assert!(checkpoint_bytes > 64 << 10, "{checkpoint_bytes}");
    let allowed = 200 * (17 << 10) / (CHECKPOINT_RATIO * checkpoint_bytes);
    assert!(scene.checkpoint_count() <= allowed + 2, "{} of {allowed}", scene.checkpoint_count());
    assert!(!scene.first_is_there());
}

/// The fence held when a checkpoint began, and no longer when it was written: what could go then is what the next
/// master reads.
#[test]
fn a_mastership_that_is_lost_during_a_checkpoint_removes_nothing() {
    let mut scene = Scene::new();
    for _ in 0..200 {
        scene.publish();
        while scene.store.maintenance_under_way() || scene.store.maintenance_due() {
            if scene.store.maintenance_under_way() {
                std::thread::yield_now();
                continue;
            }
            let before = scene.finished_files();
            let mut answers = [Ok(())].into_iter();
            let mut fence = || answers.next().unwrap_or(Err(Fenced::Superseded(Epoch(2))));
            let done = scene.store.maintain(&mut || scene.snapshot.clone(), &mut fence);
            let after = scene.finished_files();
            assert!(before.is_subset(&after), "removed unasked: {:?}", before.difference(&after));
            if let Err(error) = done {
                assert!(matches!(error, StoreError::Fenced(_)), "{error}");
                return;
            }
        }
    }
    panic!("nothing was to be removed");
}

#[test]
fn segments_go_though_little_is_committed_once_they_have_waited_or_the_space_is_needed() {
    for waits in [true, false] {
        let mut scene = Scene::new();
        scene.maintain();
        for _ in 0..8 {
            scene.publish();
        }
        scene.maintain();
        assert!(scene.first_is_there());
        for _ in 0..2 {
            if waits {
                scene.store.upkeep.written_at -= REMOVAL_WAIT;
            } else {
                scene.store.upkeep.be_under(Pressure::High);
            }
            scene.maintain();
        }
        assert!(!scene.first_is_there());
        assert!(!scene.store.maintenance_due());
    }
}

/// The first file that an image needs was taken for the only one that could go, so that no checkpoint was written for
/// the others: while a backup was taken, a full disk stayed full.
#[test]
fn files_that_an_image_needs_do_not_keep_others() {
    let mut scene = Scene::new();
    let path = |scene: &Scene| scene.store.journal.segment().path(&scene.dir.path().join("journal"));
    let block = MessageBlock::encode([&Message::new(vec![7; 16 << 10])]);
    let targets = vec![(TOPIC, Offset(0))];
    scene.end = 1;
    scene.commit(&[Record::Published(Published {
        targets,
        source: Source::Broker,
        at: Timestamp(1),
        block,
    })]);
    let needed = path(&scene);
    let image = scene.store.image(&mut Snapshot::default).unwrap();
    scene.store.upkeep.be_under(Pressure::High);
    let mut other = needed.clone();
    for _ in 0..2 {
        other = path(&scene);
        for _ in 0..8 {
            scene.publish();
        }
        scene.maintain();
    }
    assert_eq!((needed.exists(), other.exists()), (true, false));
    drop(image);
    scene.maintain();
    assert!(!needed.exists());
}

/// A checkpoint that had found no space was tried again only once more was committed. Where all was settled and nothing
/// could be published for want of space, that was never.
#[test]
fn a_checkpoint_that_found_no_space_is_tried_again_though_nothing_is_committed() {
    let mut scene = Scene::new();
    scene.maintain();
    for _ in 0..8 {
        scene.publish();
    }
    scene.store.upkeep.be_under(Pressure::High);
    let FileStore { shared, journal, upkeep, .. } = &mut scene.store;
    upkeep.note(Done::NoSpaceForCheckpoint(1), shared, journal).unwrap();
    scene.maintain();
    assert!(scene.first_is_there());
    scene.store.upkeep.refused_at = scene.store.upkeep.refused_at.map(|at| at - REMOVAL_WAIT);
    scene.maintain();
    assert!(!scene.first_is_there());
}

/// What is committed while a checkpoint is written is not in it: it would be replayed on top of itself.
#[test]
fn a_checkpoint_is_of_the_moment_when_it_began() {
    let mut scene = Scene::new();
    scene.publish();
    let snapshot = scene.snapshot.clone();
    let FileStore { shared, journal, upkeep, .. } = &mut scene.store;
    let (places, position) = (shared.places().keep(), journal.end().0);
    let job = upkeep.checkpoint(shared, journal, &mut || snapshot.clone());
    let block = MessageBlock::encode([&Message::new(vec![7; 16 << 10])]);
    let targets = vec![(TOPIC, Offset(scene.end))];
    scene.commit(&[Record::Published(Published {
        targets,
        source: Source::Broker,
        at: Timestamp(1),
        block,
    })]);
    job.run(&scene.store.shared, &AtomicBool::new(false)).unwrap();
    let id = CheckpointId { epoch: Epoch(1), number: 1 };
    let body = CheckpointBody::read(&scene.dir.path().join("journal"), id).unwrap().unwrap();
    assert_eq!((body.position, body.places, body.snapshot), (position, places, snapshot));
}
