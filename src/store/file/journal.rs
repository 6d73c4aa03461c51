//! The end of the journal, where commits go.
//!
//! One commit is one entry, one vectored write into blocks that are there already, and one sync. An entry never
//! crosses a segment; one that is larger than a segment gets a segment of its own size. A segment always keeps room
//! for its index. The first write or sync that fails is final, but for a write that finds no space: on a file system
//! that copies what is overwritten, this can happen in blocks that are there. What such a write leaves behind is a torn
//! tail, never synced and followed by nothing, so the next attempt overwrites it in its place.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::entry::{self, ENTRY_HEAD_BYTES, EntryHead, Kind};
use super::pack::Packed;
use super::preallocation::{FREE_BYTES, Preallocation, Prepared};
use super::segment::{ENTRIES_START, Position, Reach, SegmentHead, SegmentId};
use super::staging::Complete;
use super::{Shared, io_error, is_full};
use crate::disk::File;
use crate::model::free_min::FreeMin;
use crate::model::id::OffsetRange;
use crate::model::record::Record;
use crate::store::space::FreeSpace;
use crate::store::{StoreError, codec};

/// Bytes of the first segment of an epoch, made before the epoch can serve. Each later one is
/// [`SEGMENT_GROWTH`] times as large, up to what is configured.
pub const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// See [`FIRST_SEGMENT_BYTES`].
pub const SEGMENT_GROWTH: u64 = 4;
/// Bytes that the heads of a commit take beside its messages, and what else is in it. One with larger heads may need
/// another segment.
const HEADS_BYTES: u64 = 64 << 10;
/// Bytes of the smallest segment.
pub const SMALLEST_BYTES: u64 = 16 * ENTRIES_START;

/// The writing end.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    preallocation: Preallocation,
    segment_bytes: u64,
    head: SegmentHead,
    path: PathBuf,
    file: File,
    capacity: u64,
    at: u64,
    chain: u32,
    synced: Position,
    reach: Reach,
    /// Head and heads of the entry that is being written; kept for its memory.
    front: Vec<u8>,
    free: FreeSpace,
    /// Bytes of the disk that messages never take.
    kept_bytes: u64,
    failed: bool,
}

impl Journal {
    /// Makes the first segment of an epoch. Messages leave alone `checkpoint_bytes` of the disk, which the next checkpoints
    /// take.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn start(
        shared: Arc<Shared>,
        head: SegmentHead,
        segment_bytes: u64,
        checkpoint_bytes: u64,
    ) -> Result<Self, StoreError> {
        let kept_bytes = FREE_BYTES.saturating_add(checkpoint_bytes);
        let segment_bytes = segment_bytes.max(SMALLEST_BYTES);
        let capacity = segment_bytes.min(FIRST_SEGMENT_BYTES);
        let (file, capacity) = match head.create(&shared.journal, capacity, 0) {
            // A full disk must not keep a master from taking over and draining it.
            Err(StoreError::Full(_)) => (head.create(&shared.journal, SMALLEST_BYTES, 0)?, SMALLEST_BYTES),
            made => (made?, capacity),
        };
        let mut preallocation = Preallocation::start(&shared.journal)?;
        shared.places_mut().open_segment(head.id, ENTRIES_START, capacity);
        let free = FreeSpace::around(&shared.journal);
        let next = SegmentHead { id: head.id.next(), ..head };
        preallocation.ask(next, planned_bytes(segment_bytes, capacity), kept_bytes);
        Ok(Self {
            path: head.id.path(&shared.journal),
            shared,
            preallocation,
            segment_bytes,
            head,
            file,
            capacity,
            at: ENTRIES_START,
            chain: head.seed,
            synced: Position::start_of(head.id),
            reach: Reach::default(),
            front: Vec::new(),
            free,
            kept_bytes,
            failed: false,
        })
    }

    /// The end of what is committed, and the chain that follows.
    #[must_use]
    pub const fn end(&self) -> (Position, u32) {
        (Position { segment: self.head.id, at: self.at }, self.chain)
    }

    /// The segment that is being written.
    #[must_use]
    pub const fn segment(&self) -> SegmentId {
        self.head.id
    }

    /// Ends with nothing being written in the background any more.
    pub fn end_preparing(self) {
        self.preallocation.end();
    }

    /// Refuses further use.
    pub const fn fail(&mut self) {
        self.failed = true;
    }

    /// Refuses the call where something failed before.
    ///
    /// # Errors
    /// Where something failed before.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.failed {
            let before = std::io::Error::other("a write or sync failed before; nothing is tried again");
            return Err(io_error("go on with", &self.path)(before));
        }
        Ok(())
    }

    /// Bytes of messages for which the next commit finds space, beside what is to stay free. From now on messages leave
    /// alone what the next checkpoints take, too.
    ///
    /// # Errors
    /// Where the system does not say, or the next segment could not be made for another reason than space.
    pub fn space(&mut self, checkpoint_bytes: u64, free_min: FreeMin) -> Result<u64, StoreError> {
        self.check()?;
        self.kept_bytes = FREE_BYTES.saturating_add(checkpoint_bytes);
        let space = self.look_for_space();
        let above = self.free.bytes_above(free_min);
        self.failed = space.is_err() || above.is_err();
        Ok(space?.min(above?))
    }

    fn look_for_space(&mut self) -> Result<u64, StoreError> {
        if self.preallocation.is_full()? {
            // What is left of this segment is for acks, which are what makes space.
            self.ask_for_next();
            return Ok(0);
        }
        // Twice what messages never take: the next segment leaves that much alone, and the one after it.
        let behind = self.free.bytes()?.saturating_sub(self.kept_bytes.saturating_mul(2));
        let index_bytes = self.shared.places().active_index().entry_bytes_max(0);
        let here = self.capacity.saturating_sub(self.at + index_bytes + HEADS_BYTES);
        let next = self.preallocation.ready_bytes().saturating_sub(ENTRIES_START + index_bytes + HEADS_BYTES);
        Ok(here.max(next).max(behind))
    }

    /// Makes the records durable; the messages of those that were `staged` are already, and stand in order. Answers the
    /// bytes that the journal grew by.
    ///
    /// # Errors
    /// As for [`Store::commit`](crate::store::Store::commit).
    pub fn commit(&mut self, records: &[Record], staged: &[Complete]) -> Result<u64, StoreError> {
        self.check()?;
        let committed = self.try_commit(records, staged);
        if !matches!(committed, Ok(_) | Err(StoreError::Full(_))) {
            self.failed = true;
        }
        committed
    }

    fn try_commit(&mut self, records: &[Record], staged: &[Complete]) -> Result<u64, StoreError> {
        self.front.clear();
        self.front.resize(ENTRY_HEAD_BYTES, 0);
        let elsewhere: Vec<_> =
            staged.iter().map(|staged| (staged.index, staged.elsewhere, staged.checksum)).collect();
        let blocks = codec::encode_records(records, &elsewhere, &mut self.front)
            .map_err(|error| io_error("encode a commit for", &self.path)(std::io::Error::other(error)))?;
        let blocks_bytes = blocks.iter().map(|block| block.len() as u64).sum::<u64>();
        let entry_bytes = self.front.len() as u64 + blocks_bytes;
        let target_count: usize = records
            .iter()
            .map(|record| if let Record::Published(published) = record { published.targets.len() } else { 0 })
            .sum();
        let free_bytes = if blocks.is_empty() { 0 } else { self.kept_bytes };
        self.make_room(entry_bytes, target_count as u64, free_bytes)?;
        let at = self.at;
        self.append(Kind::Commit, &blocks, blocks_bytes)?;
        self.publish(records, staged, at);
        Ok(self.at - at)
    }

    /// Makes a pack count: what was copied into it is there from now on. Answers the bytes that the journal grew by.
    ///
    /// # Errors
    /// As for [`commit`](Self::commit).
    pub fn pack(&mut self, packed: &Packed) -> Result<u64, StoreError> {
        self.check()?;
        let committed = self.try_pack(packed);
        if !matches!(committed, Ok(_) | Err(StoreError::Full(_))) {
            self.failed = true;
        }
        committed
    }

    fn try_pack(&mut self, packed: &Packed) -> Result<u64, StoreError> {
        self.front.clear();
        self.front.resize(ENTRY_HEAD_BYTES, 0);
        codec::encode(packed, &mut self.front)
            .map_err(|error| io_error("encode a pack for", &self.path)(std::io::Error::other(error)))?;
        self.make_room(self.front.len() as u64, 0, 0)?;
        let at = self.at;
        self.append(Kind::Packed, &[], 0)?;
        let mut places = self.shared.places_mut();
        places.extend(self.at);
        places.pack(packed);
        Ok(self.at - at)
    }

    /// Lets readers see what was committed in the entry at `at`, and in packs.
    fn publish(&self, records: &[Record], staged: &[Complete], at: u64) {
        let mut places = self.shared.places_mut();
        places.extend(self.at);
        let mut staged = staged.iter().peekable();
        for (index, record) in records.iter().enumerate() {
            match record {
                Record::Published(published) => {
                    if let Some(Complete { pack, .. }) = staged.next_if(|staged| staged.index == index) {
                        places.add_pack(pack);
                        continue;
                    }
                    let (count, bytes) =
                        (published.block.count() as u64, published.block.bytes().len() as u64);
                    for &(topic, first) in &published.targets {
                        places.publish(topic, OffsetRange::new(first.0, first.0 + count), at, bytes);
                    }
                }
                Record::Trimmed { topic, start } => places.trim(*topic, *start),
                Record::Removed { topic, ranges } => places.remove(*topic, ranges.iter().copied()),
                Record::TopicDeleted { topic } => places.delete(*topic),
                _ => {}
            }
        }
    }

    /// Goes to the next segment where the entry and then the index do not fit into this one.
    fn make_room(&mut self, entry_bytes: u64, target_count: u64, free_bytes: u64) -> Result<(), StoreError> {
        let padded = entry_bytes + entry::ENTRY_ALIGNMENT;
        let index_bytes = self.shared.places().active_index().entry_bytes_max(target_count);
        if self.at + padded + index_bytes <= self.capacity {
            return Ok(());
        }
        let bytes_min = ENTRIES_START + padded + super::SegmentIndex::default().entry_bytes_max(target_count);
        let next = SegmentHead { id: self.head.id.next(), ..self.head };
        let planned = planned_bytes(self.segment_bytes, self.capacity);
        let prepared = self.preallocation.take(next, planned, bytes_min, free_bytes)?;
        if let Err(error) = self.seal() {
            self.preallocation.give_back(prepared);
            return Err(error);
        }
        self.begin(prepared);
        self.ask_for_next();
        Ok(())
    }

    /// Ends this segment with its index. The entry that made it necessary is in `front` and is kept.
    fn seal(&mut self) -> Result<(), StoreError> {
        let mut front = vec![0; ENTRY_HEAD_BYTES];
        self.shared
            .places()
            .active_index()
            .encode(&mut front)
            .map_err(|error| io_error("encode the index of", &self.path)(std::io::Error::other(error)))?;
        std::mem::swap(&mut front, &mut self.front);
        let at = self.at;
        self.append(Kind::Index, &[], 0)?;
        std::mem::swap(&mut front, &mut self.front);
        let index = self.shared.places_mut().seal(at, self.at);
        self.shared.keep_index(self.head.id.into(), Arc::new(index));
        Ok(())
    }

    fn begin(&mut self, prepared: Prepared) {
        self.shared.places_mut().open_segment(prepared.head.id, ENTRIES_START, prepared.bytes);
        self.path = prepared.head.id.path(&self.shared.journal);
        (self.head, self.file, self.capacity) = (prepared.head, prepared.file, prepared.bytes);
        (self.at, self.reach) = (ENTRIES_START, Reach::default());
    }

    fn ask_for_next(&mut self) {
        let next = SegmentHead { id: self.head.id.next(), ..self.head };
        let planned = planned_bytes(self.segment_bytes, self.capacity);
        self.free.spend(planned);
        self.preallocation.ask(next, planned, self.kept_bytes);
    }

    /// Writes and syncs the entry whose heads are in `front`, behind room for its head, behind the last one. Steps `Append` and
    /// `Sync` of `tests/ha_model`.
    fn append(&mut self, kind: Kind, blocks: &[&Bytes], blocks_bytes: u64) -> Result<(), StoreError> {
        let heads = &self.front[ENTRY_HEAD_BYTES..];
        let head = EntryHead {
            kind,
            position: Position { segment: self.head.id, at: self.at },
            chain: self.chain,
            synced: self.synced,
            heads_checksum: crc32c::crc32c(heads),
            heads_bytes: heads.len() as u32,
            blocks_bytes,
        };
        let (bytes, chain) = head.encode(self.head.seed);
        self.front[..ENTRY_HEAD_BYTES].copy_from_slice(&bytes);
        let end = head.end();
        // The entry comes last: one that found no space must not be whole, or it would count though it was refused.
        self.reach
            .cover(&self.file, self.head.seed, end)
            .and_then(|()| entry::write(&self.file, self.at, &self.front, blocks))
            .map_err(|error| match error {
                error if is_full(&error) => StoreError::Full(end - self.at),
                error => io_error("write to", &self.path)(error),
            })?;
        // No error of a sync is that of a full disk: what was to be synced may be gone from memory too.
        self.file.sync_data().map_err(io_error("sync", &self.path))?;
        self.reach.synced();
        self.at = end;
        self.chain = chain;
        self.synced = Position { segment: self.head.id, at: end };
        Ok(())
    }
}

/// Bytes of the segment after one of `capacity` bytes.
fn planned_bytes(segment_bytes: u64, capacity: u64) -> u64 {
    segment_bytes.min(capacity.saturating_mul(SEGMENT_GROWTH))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{first_options, open_file};
    use super::*;
    use crate::disk::Opening;
    use crate::model::id::{Epoch, TopicId};
    use crate::model::name::Name;
    use crate::model::settings::TopicSettings;
    use crate::model::snapshot::Snapshot;
    use crate::model::topic_kind::TopicKind;
    use crate::store::{OpenOptions, Store};

    fn created(topic: u32) -> [Record; 1] {
        let name = Name::new(&format!("topic-{topic}")).unwrap();
        [Record::TopicCreated {
            topic: TopicId(topic),
            name,
            kind: TopicKind::Named,
            settings: TopicSettings::default(),
        }]
    }

    #[test]
    fn the_first_failed_write_is_final() {
        let dir = tempfile::tempdir().unwrap();
        let options = first_options(dir.path(), 1 << 20);
        let (mut store, _) = open_file(&options).unwrap();
        store.commit(&created(0)).unwrap();
        let path = store.journal.path.clone();
        let writable = std::mem::replace(&mut store.journal.file, File::open(&path, Opening::Read).unwrap());
        assert!(matches!(store.commit(&created(1)), Err(StoreError::Io { action: "write to", .. })));
        store.journal.file = writable;
        let before = std::fs::read(&path).unwrap();
        assert!(store.commit(&created(1)).is_err());
        assert!(store.commit(&[]).is_err());
        assert!(store.maintain(&mut Snapshot::default, &mut || Ok(())).is_err());
        assert!(Box::new(store).close(&mut Snapshot::default, &mut || Ok(())).is_err());
        assert!(std::fs::read(&path).unwrap() == before, "nothing is written after a failed write");
        let names = std::fs::read_dir(dir.path().join("journal")).unwrap();
        let checkpoints = names
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("checkpoint"));
        assert_eq!(checkpoints.count(), 0);
        let (_, snapshot) = open_file(&OpenOptions { epoch: Epoch(2), ..options }).unwrap();
        assert_eq!(snapshot.topics.len(), 1);
    }

    /// On a file system that copies what is overwritten, a write into blocks that are there can find no space.
    #[test]
    fn a_write_that_finds_no_space_leaves_the_journal_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let options = first_options(dir.path(), 1);
        let (mut store, mut expected) = open_file(&options).unwrap();
        let mut sealed_count = 0;
        for topic in 0..900 {
            let (segment, end) = (store.journal.segment(), store.journal.end());
            let full = File::open(Path::new("/dev/full"), Opening::Write).unwrap();
            let file = std::mem::replace(&mut store.journal.file, full);
            for _ in 0..2 {
                let refused = store.commit(&created(topic));
                assert!(matches!(refused, Err(StoreError::Full(64..))), "{refused:?}");
                assert_eq!(store.journal.end(), end);
            }
            let next_is_kept = store.journal.preallocation.ready_bytes() > 0;
            store.journal.file = file;
            store.commit(&created(topic)).unwrap();
            expected.apply(&created(topic)[0]).unwrap();
            if store.journal.segment() != segment {
                sealed_count += 1;
                assert!(next_is_kept, "the disk may have no space for another one");
            }
        }
        assert_eq!(sealed_count, 1);
        drop(store);
        let (_, snapshot) = open_file(&OpenOptions { epoch: Epoch(2), ..options }).unwrap();
        assert_eq!(snapshot, expected);
    }

    /// A checkpoint that was larger than what is kept free found no space on a full disk, and without it nothing that was
    /// settled could go.
    #[test]
    fn messages_leave_alone_what_the_next_checkpoints_take() {
        let dir = tempfile::tempdir().unwrap();
        let options = first_options(dir.path(), 1);
        let (mut store, _) = open_file(&options).unwrap();
        assert!(store.journal.space(0, FreeMin::default()).unwrap() > SMALLEST_BYTES);
        for topic in 0..2_000 {
            store.commit(&created(topic)).unwrap();
            // More than any disk has.
            if store.journal.space(1 << 60, FreeMin::default()).unwrap() == 0 {
                return;
            }
        }
        panic!("segments are made of what is for checkpoints");
    }

    /// A master that took over a disk that was just full gave messages what the old one had kept for checkpoints.
    #[test]
    fn a_takeover_goes_on_keeping_what_checkpoints_take() {
        let dir = tempfile::tempdir().unwrap();
        let options = first_options(dir.path(), 1);
        let (mut store, mut snapshot) = open_file(&options).unwrap();
        assert_eq!(store.journal.kept_bytes, FREE_BYTES);
        for topic in 0..500 {
            store.commit(&created(topic)).unwrap();
            snapshot.apply(&created(topic)[0]).unwrap();
        }
        Box::new(store).close(&mut || snapshot.clone(), &mut || Ok(())).unwrap();
        let (mut store, _) = open_file(&OpenOptions { epoch: Epoch(2), ..options }).unwrap();
        let kept_bytes = store.journal.kept_bytes;
        assert!(kept_bytes > FREE_BYTES + 2 * 500 * 8, "{kept_bytes}");
        store.space(FreeMin::default()).unwrap();
        assert_eq!(store.journal.kept_bytes, kept_bytes);
    }
}
