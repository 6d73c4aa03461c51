//! Which files are emptied, by copying what they still hold into a pack, and when.
//!
//! A file is a candidate when it is *sparse*: a pack of what it holds would be less than half as large. Work begins
//! when packing all candidates would give back a segment, or anything where space is short. So in the files that are
//! not being written, what nobody needs is at most as much as what they hold, one segment, and what waits to be
//! removed. A pack is at most as large as a segment, but for a single file that holds more. The emptiest files come
//! first: they give back most for what is copied.
//!
//! Packs smaller than a part of a segment go along with every pack that is made, or each of them would stay with its
//! few messages for as long as one of these does.
//!
//! Copying takes space before it gives any back. It leaves alone what a full disk keeps for acks and checkpoints, but
//! for a part; where even the emptiest candidate does not fit into that, it waits.

use std::time::{Duration, Instant};

use super::file_id::FileId;
use super::files::{Copies, FilePlace, PACK_BYTES_MIN};
use super::journal::{Journal, SMALLEST_BYTES};
use super::packing::{Outcome, Packing};
use super::preallocation::FREE_BYTES;
use super::upkeep::Pressure;
use super::{Shared, io_error, remove};
use crate::disk;
use crate::model::id::Epoch;
use crate::store::StoreError;

/// Files that one pack is made of.
pub const PACKED_FILES_MAX: usize = 64;
/// A pack that is smaller than this part of a segment goes along with the next one.
pub const SMALL_PACK_FRACTION: u64 = 4;
/// Bytes of the disk that copying leaves alone.
pub const UNPACKED_BYTES: u64 = FREE_BYTES / 2;
/// How long copying waits where there was no space for it, or nothing to be copied.
pub const COMPACTION_WAIT: Duration = Duration::from_secs(10);

/// When the next pack is made, and of what.
#[derive(Debug)]
pub struct Compaction {
    epoch: Epoch,
    segment_bytes: u64,
    not_before: Option<Instant>,
}

impl Compaction {
    /// Nothing is packed yet in this epoch.
    #[must_use]
    pub fn new(epoch: Epoch, segment_bytes: u64) -> Self {
        Self { epoch, segment_bytes: segment_bytes.max(SMALLEST_BYTES), not_before: None }
    }

    /// Whether a pack is to be made now.
    #[must_use]
    pub fn is_due(&self, shared: &Shared, pressure: Pressure) -> bool {
        let garbage = shared.places().files().sparse_garbage();
        let enough = match pressure {
            Pressure::Low => self.segment_bytes,
            Pressure::High => 1,
        };
        garbage >= enough
            && self.not_before.is_none_or(|not_before| not_before <= disk::world::now(&shared.journal))
    }

    /// What is to be packed. `None` where that has to wait.
    ///
    /// # Errors
    /// Where the system does not say how much space there is.
    pub fn choose(&mut self, shared: &Shared) -> Result<Option<Packing>, StoreError> {
        let free =
            disk::free(&shared.journal).map_err(io_error("ask for the free space of", &shared.journal))?;
        let space = free.saturating_sub(UNPACKED_BYTES);
        let places = shared.places();
        let mut sparse: Vec<(FileId, FilePlace)> = places.files().sparse().collect();
        sparse.sort_unstable_by_key(|(_, place)| place.held);
        let mut bytes = PACK_BYTES_MIN;
        let mut files = Vec::new();
        for (file, place) in sparse {
            let with = bytes + place.held;
            let is_enough = with > self.segment_bytes || files.len() == PACKED_FILES_MAX;
            if with > space || (is_enough && !files.is_empty()) {
                break;
            }
            bytes = with;
            files.push(file);
        }
        if files.is_empty() {
            tracing::debug!("no file can be packed now: there is no space");
            self.wait(shared);
            return Ok(None);
        }
        let mut along = Vec::new();
        for (file, place) in places.files().iter() {
            let with = bytes + place.held;
            let is_small = place.bytes < self.segment_bytes / SMALL_PACK_FRACTION;
            let can_go =
                place.held > 0 && place.copies == Copies::Possible && !places.files().is_pinned(file);
            let is_taken = file.segment().is_some() || files.contains(&file);
            if is_small && can_go && !is_taken && with <= space.min(self.segment_bytes) {
                bytes = with;
                along.push(file);
            }
            if files.len() + along.len() >= PACKED_FILES_MAX {
                break;
            }
        }
        let pack = shared.new_pack(self.epoch);
        Ok(Some(Packing { pack, files, along, bytes_max: self.segment_bytes, space }))
    }

    /// Makes a pack count that was made. Answers the bytes that the journal grew by.
    ///
    /// # Errors
    /// Where the journal cannot be written, or a pack that does not count not be removed.
    pub fn note(
        &mut self,
        pack: FileId,
        outcome: Outcome,
        shared: &Shared,
        journal: &mut Journal,
    ) -> Result<u64, StoreError> {
        match outcome {
            Outcome::Packed(packed) => match journal.pack(&packed) {
                Ok(bytes) => {
                    let (count, size) = (packed.replaced.len(), packed.pack.bytes);
                    tracing::debug!("what {count} files held is in a pack of {size} bytes");
                    return Ok(bytes);
                }
                Err(StoreError::Full(_)) => {
                    remove(&pack.path(&shared.journal))?;
                    self.wait(shared);
                }
                Err(error) => return Err(error),
            },
            Outcome::Nothing | Outcome::Full => self.wait(shared),
            Outcome::Unreadable(file, error) => {
                tracing::warn!(%error, "its file cannot be made smaller");
                shared.places_mut().exempt(file);
            }
            Outcome::Stopped => {}
        }
        Ok(0)
    }

    fn wait(&mut self, shared: &Shared) {
        self.not_before = Some(disk::world::now(&shared.journal) + COMPACTION_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::image::Pinned;
    use super::super::{FileStore, first_options, open_file};
    use super::*;
    use crate::model::id::{Offset, OffsetRange, TopicId};
    use crate::model::message::{Message, MessageBlock};
    use crate::model::name::Name;
    use crate::model::record::{Published, Record, Source};
    use crate::model::settings::TopicSettings;
    use crate::model::time::Timestamp;
    use crate::model::topic_kind::TopicKind;
    use crate::store::Store;

    const TOPIC: TopicId = TopicId(0);
    const SEGMENT: u64 = 64 << 10;

    /// A store with so many full segments, of each of which one message is left.
    fn store(segment_count: u64) -> (tempfile::TempDir, FileStore) {
        let dir = tempfile::tempdir().unwrap();
        let options = first_options(dir.path(), SEGMENT);
        let (mut store, _) = open_file(&options).unwrap();
        let (name, settings) = (Name::new("t").unwrap(), TopicSettings::default());
        store
            .commit(&[Record::TopicCreated { topic: TOPIC, name, kind: TopicKind::Named, settings }])
            .unwrap();
        let block = MessageBlock::encode(&vec![Message::new(vec![7; 1000]); 58]);
        for round in 0..=segment_count {
            let targets = vec![(TOPIC, Offset(round * 58))];
            let published =
                Published { targets, source: Source::Broker, at: Timestamp(1), block: block.clone() };
            let ranges = vec![OffsetRange::new(round * 58, round * 58 + 57)];
            store.commit(&[Record::Published(published)]).unwrap();
            store.commit(&[Record::Removed { topic: TOPIC, ranges }]).unwrap();
        }
        (dir, store)
    }

    #[test]
    fn garbage_of_a_segment_is_collected_and_less_where_space_is_short() {
        for (segment_count, pressure, is_due) in [
            (1, Pressure::Low, false),
            (1, Pressure::High, true),
            (2, Pressure::Low, true),
            (0, Pressure::High, false),
        ] {
            let (_dir, store) = store(segment_count);
            let compaction = Compaction::new(Epoch(1), SEGMENT);
            assert_eq!(compaction.is_due(&store.shared, pressure), is_due, "{segment_count} {pressure:?}");
        }
    }

    #[test]
    fn a_pack_that_finds_no_space_or_is_stopped_leaves_nothing() {
        let (dir, store) = store(8);
        let packing = || Compaction::new(Epoch(1), SEGMENT).choose(&store.shared).unwrap().unwrap();
        assert_eq!(packing().files.len(), 8);
        let full = Packing { space: 100, ..packing() };
        let outcome = full.run(&store.shared, &AtomicBool::new(false)).unwrap();
        assert!(matches!(outcome, Outcome::Full), "{outcome:?}");
        let outcome = packing().run(&store.shared, &AtomicBool::new(true)).unwrap();
        assert!(matches!(outcome, Outcome::Stopped), "{outcome:?}");
        let names = std::fs::read_dir(dir.path().join("journal")).unwrap();
        let is_pack = |name: String| name.contains(".pack");
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| is_pack(name.clone())).count(), 0);
        let outcome = packing().run(&store.shared, &AtomicBool::new(false)).unwrap();
        let Outcome::Packed(packed) = outcome else { panic!("{outcome:?}") };
        let expected: Vec<u64> = (0..8).map(|at| at * 58 + 57).collect();
        let runs = packed.pack.runs[0].1.iter();
        assert_eq!(runs.map(|run| run.range.start.0).collect::<Vec<_>>(), expected);
    }

    /// A sector that could not be read ended the master though nobody had asked for its messages, and each master after
    /// it.
    #[test]
    fn a_file_that_cannot_be_read_is_left_alone() {
        let (dir, mut store) = store(8);
        let mut compaction = Compaction::new(Epoch(1), SEGMENT);
        let packing = compaction.choose(&store.shared).unwrap().unwrap();
        let (file, path) = (packing.files[0], packing.files[0].path(&dir.path().join("journal")));
        store.shared.open.close(file);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let outcome = packing.run(&store.shared, &AtomicBool::new(false)).unwrap();
        assert!(
            matches!(&outcome, Outcome::Unreadable(of, StoreError::Io { .. }) if *of == file),
            "{outcome:?}"
        );
        let shared = Arc::clone(&store.shared);
        compaction.note(FileId::pack(Epoch(1), 1), outcome, &shared, &mut store.journal).unwrap();
        let packing = compaction.choose(&store.shared).unwrap().unwrap();
        assert!(packing.files.len() == 7 && !packing.files.contains(&file));
    }

    /// What an image reads cannot go: a copy of it would only take more space.
    #[test]
    fn files_that_an_image_needs_are_not_packed() {
        let (_dir, store) = store(8);
        let mut compaction = Compaction::new(Epoch(1), SEGMENT);
        let needed = store.shared.places().files().sparse().map(|(file, _)| file).collect();
        let pinned = Pinned::new(&store.shared, needed);
        assert!(!compaction.is_due(&store.shared, Pressure::High), "it does not spin");
        drop(pinned);
        assert!(compaction.is_due(&store.shared, Pressure::Low));
        assert!(compaction.choose(&store.shared).unwrap().is_some());
    }

    /// A file with more runs than one pack moves is emptied step by step, and every message can be read. All of them
    /// are in one block, which was read and taken apart anew for each.
    #[test]
    fn many_runs_are_moved_in_several_packs() {
        let (_dir, mut store) = store(0);
        let mut next = 58;
        let runs = 3 * super::super::packing::PACK_RUNS_MAX as u64;
        let block = MessageBlock::encode(&vec![Message::new(vec![1; 10]); 3 * runs as usize]);
        let targets = vec![(TOPIC, Offset(next))];
        let published = Published { targets, source: Source::Broker, at: Timestamp(1), block };
        let gone = (0..runs).map(|at| OffsetRange::new(58 + at * 3, 58 + at * 3 + 2)).collect();
        let records = [Record::Published(published), Record::Removed { topic: TOPIC, ranges: gone }];
        store.commit(&records).unwrap();
        next += 3 * runs;
        let targets = vec![(TOPIC, Offset(next))];
        let block = MessageBlock::encode(&[Message::new(vec![1; 60_000])]);
        store
            .commit(&[Record::Published(Published {
                targets,
                source: Source::Broker,
                at: Timestamp(1),
                block,
            })])
            .unwrap();
        let mut pack_count = 0;
        let mut compaction = Compaction::new(Epoch(1), SEGMENT);
        while let Some(packing) = compaction.choose(&store.shared).unwrap() {
            let outcome = packing.run(&store.shared, &AtomicBool::new(false)).unwrap();
            if matches!(outcome, Outcome::Nothing) {
                break;
            }
            let shared = Arc::clone(&store.shared);
            compaction.note(packing.pack, outcome, &shared, &mut store.journal).unwrap();
            pack_count += 1;
            assert!(pack_count < 10, "it never ends");
        }
        assert!(pack_count >= 3, "{pack_count}");
        let mut reader = store.reader().unwrap();
        for at in (0..runs).step_by(97) {
            let offset = Offset(58 + at * 3 + 2);
            assert_eq!(reader.read(TOPIC, offset, 1).unwrap().unwrap().first, offset);
            assert!(reader.read(TOPIC, Offset(offset.0 - 1), 1).unwrap().is_none());
        }
    }
}
