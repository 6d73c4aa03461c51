//! Large messages of the file mode, each in a pack of its own that the entry of its commit names: that none is lost, or
//! read wrong, in silence.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;

use std::fs;
use std::path::PathBuf;

use batonmq::model::id::{Offset, TopicId};
use batonmq::store::{Mode, Predecessor, StoreError, file};
use scene::{Scene, bodies, published};

const SEGMENT: u64 = 64 << 10;

/// A dead store with messages in a pack of their own, between others; and that pack.
fn staged() -> (Scene, TopicId, PathBuf) {
    let mut scene = Scene::new(file::open, Mode::File, SEGMENT);
    let topic = scene.create_topic();
    scene.publish(&[topic], &bodies(1, 100, 1));
    let record = published(&scene.model.snapshot, &[topic], None, &bodies(2, 100_000, 2));
    scene.stage(&record);
    scene.commit(std::slice::from_ref(&record));
    scene.unstage(&record);
    scene.publish(&[topic], &bodies(1, 100, 3));
    drop(scene.store.take());
    let pack = scene.dir.path().join(format!("journal/{:020}-{:06}.pack", 1, 1));
    assert!(pack.exists());
    (scene, topic, pack)
}

/// Whether a checkpoint knows of the pack or the journal names it.
fn cases() -> impl Iterator<Item = (Scene, TopicId, PathBuf)> {
    (0..2).map(|restarts| {
        let (mut scene, topic, pack) = staged();
        for _ in 0..restarts {
            scene.reopen(Predecessor::Gone);
            scene.restart();
            drop(scene.store.take());
        }
        (scene, topic, pack)
    })
}

#[test]
fn a_staged_block_that_is_lost_or_cut_is_missed() {
    for (mut scene, _, pack) in cases() {
        let good = fs::read(&pack).unwrap();
        scene.epoch = scene.epoch.next();
        let open = |scene: &Scene| file::open(&scene.options(Predecessor::Gone)).map(|_| ());
        fs::remove_file(&pack).unwrap();
        match open(&scene) {
            Err(StoreError::Missing { path }) => assert_eq!(path, pack),
            other => panic!("{other:?}"),
        }
        // Behind it, some of what is kept for the index may be left.
        for cut in [0, 64, 4096, 8192, 8192 + 200_000] {
            fs::write(&pack, &good[..cut]).unwrap();
            match open(&scene) {
                Err(StoreError::Damaged { path, position, .. }) => {
                    assert_eq!((path, position), (pack.clone(), cut as u64));
                }
                other => panic!("{other:?}"),
            }
        }
        fs::write(&pack, &good).unwrap();
        scene.reopen(Predecessor::Gone);
        scene.check_everything(1 << 20);
    }
}

/// A changed byte in the head of the pack, in what is in front of the block, in the block or in the index: what is read is
/// right, or it is said to be damaged, and the messages around it are there.
#[test]
fn a_changed_byte_of_a_staged_block_is_never_delivered() {
    for (mut scene, topic, pack) in cases() {
        let good = fs::read(&pack).unwrap();
        let front = (0..64).step_by(9).chain((4_096..4_160).step_by(11)).chain(4_160..4_180).chain([8_191]);
        let block = [8_192, 8_300, 108_200, 208_191];
        let index = (208_192..208_192 + 72).step_by(13);
        let (mut right, mut damaged) = (0, 0);
        for at in front.chain(block).chain(index) {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&pack, &bytes).unwrap();
            scene.reopen(Predecessor::Gone);
            let mut reader = scene.store().reader().unwrap();
            for offset in [0, 3] {
                scene.model.check_read(reader.as_mut(), topic, Offset(offset), 1);
            }
            match reader.read(topic, Offset(1), 1).map_err(StoreError::from) {
                Ok(_) => {
                    scene.model.check_read(reader.as_mut(), topic, Offset(1), 1 << 20);
                    right += 1;
                }
                Err(StoreError::Damaged { path, .. } | StoreError::NewerFormat { path, .. }) => {
                    assert_eq!(path, pack, "byte {at}");
                    damaged += 1;
                }
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        assert!(right > 0 && damaged > 15, "{right} {damaged}");
        fs::write(&pack, &good).unwrap();
        scene.reopen(Predecessor::Gone);
        scene.check_everything(1 << 20);
    }
}
