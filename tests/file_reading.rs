//! What a reader makes of a sealed segment that was damaged since it was written.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;

use std::fs;
use std::path::{Path, PathBuf};

use batonmq::disk::{File, Opening};
use batonmq::model::id::{Epoch, Offset, OffsetRange, TopicId};
use batonmq::store::file::entry::{ENTRY_HEAD_BYTES, EntryHead, Kind};
use batonmq::store::file::segment::{ENTRIES_START, Position, SegmentHead, SegmentId};
use batonmq::store::{Mode, Predecessor, StoreError, Unreadable, file};
use scene::{Scene, bodies};

const FIRST: SegmentId = SegmentId { epoch: Epoch(1), number: 1 };

/// A store whose first segment is full and lies before its checkpoint, so that opening it does not read that.
struct Sealed {
    scene: Scene,
    topic: TopicId,
    path: PathBuf,
    entries: Vec<EntryHead>,
}

fn sealed(bodies_bytes: usize) -> Sealed {
    let mut scene = Scene::new(file::open, Mode::File, 1 << 20);
    let topic = scene.create_topic();
    let path = FIRST.path(&scene.dir.path().join("journal"));
    let mut entries = Vec::new();
    for round in 0.. {
        scene.publish(&[topic], &bodies(2, bodies_bytes, round));
        entries = entries_of_first(&path);
        if entries.last().is_some_and(|entry: &EntryHead| entry.kind == Kind::Index) {
            break;
        }
    }
    scene.restart();
    Sealed { scene, topic, path, entries }
}

fn entries_of_first(path: &Path) -> Vec<EntryHead> {
    let file = File::open(path, Opening::Read).unwrap();
    let seed = SegmentHead::read(&file, path, FIRST).unwrap().seed;
    let mut entries: Vec<EntryHead> = Vec::new();
    loop {
        let at = entries.last().map_or(ENTRIES_START, EntryHead::end);
        let mut bytes = [0; ENTRY_HEAD_BYTES];
        let read = file.read_exact_at(&mut bytes, at);
        match read.ok().and_then(|()| EntryHead::decode(&bytes, seed, Position { segment: FIRST, at })) {
            Some((entry, _)) => entries.push(entry),
            None => return entries,
        }
    }
}

impl Sealed {
    /// Changes a byte of the first segment and goes on with a store that has not read it.
    fn flip(&mut self, at: u64) {
        let mut bytes = fs::read(&self.path).unwrap();
        bytes[at as usize] ^= 0x20;
        fs::write(&self.path, bytes).unwrap();
        self.scene.reopen(Predecessor::Gone);
    }
}

/// A message that has changed on the disk is never delivered, whichever way it is read: with others through the
/// window, by itself where it is large, or in part.
#[test]
fn changed_message_is_named_and_not_delivered() {
    for (body_bytes, bytes_max) in [(2_000, 1 << 20), (2_000, 10), (200_000, 1 << 20), (200_000, 10)] {
        let mut sealed = sealed(body_bytes);
        let entry = sealed.entries[2];
        assert!(entry.blocks_bytes as usize > 2 * body_bytes);
        sealed.flip(entry.blocks_at() + entry.blocks_bytes / 2);
        let mut reader = sealed.scene.store().reader().unwrap();
        let before = reader.read(sealed.topic, Offset(0), 10).unwrap().unwrap();
        assert_eq!(before.block.count(), 1);
        match reader.read(sealed.topic, Offset(2), bytes_max) {
            Err(Unreadable { range, error: StoreError::Damaged { path, position, .. } }) => {
                assert_eq!((path, position), (sealed.path, entry.blocks_at()));
                assert!(range.contains(Offset(2)) && range.len() > 1, "{range:?}: all of the block");
                let whole = reader.read(sealed.topic, range.end, bytes_max).unwrap();
                assert_eq!(whole.map(|chunk| chunk.first), Some(range.end), "what is behind it is read");
                let before = reader.read(sealed.topic, Offset(0), 1 << 20).unwrap().unwrap();
                assert_eq!(before.range(), OffsetRange { start: Offset(0), end: range.start });
            }
            other => panic!("{other:?}"),
        }
    }
}

/// One bad byte in the index of a segment ended the process, and each next one, though every message was whole.
#[test]
fn segment_whose_index_is_damaged_is_read_without_it() {
    let index = sealed(2_000).entries.last().copied().unwrap();
    for at in [index.position.at, index.position.at + ENTRY_HEAD_BYTES as u64 + 1] {
        let mut sealed = sealed(2_000);
        sealed.flip(at);
        sealed.scene.check_everything(10_000);
    }
}
