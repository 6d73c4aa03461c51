//! A file of messages that were copied into it, topic by topic: its name, its head, how it is made.
//!
//! Packs are what remains of old segments, and what a store that is filled begins with. A pack is written once and
//! counts only where a [`Packed`] entry of the journal, or a checkpoint, says what is in it; one that neither names
//! is a leftover. It is never replayed.
//!
//! # Format, version 1
//!
//! ```text
//! journal/<epoch, 20 digits>-<number, 6 digits>.pack
//!       0  "batonpak"
//!       8  u32  CRC32C of bytes 12 to 64
//!      12  u32  version
//!      16  u64  epoch
//!      24  u32  number of the pack in its epoch, from 1
//!      28  u32  seed of the pack, chosen at random: where its chain of checksums starts
//!      32       zeros
//!    4096       entries, the last one the index
//! ```
//!
//! Numbers are little-endian. Entries are those of a segment, with the epoch, number and seed of the pack; everything
//! before each is taken to be synced. Every head of a commit is a publish, which says when and from whom the messages
//! came, and not that they are what comes next from their producer; the offsets of a topic ascend through the file. The file is made under the name with `.new` behind it, synced and renamed; only that of a single block has its
//! name before it is whole.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::entry::{self, ENTRY_HEAD_BYTES, EntryHead, Kind, Marks};
use super::file_id::FileId;
use super::index::SegmentIndex;
use super::places::run_bytes;
use super::segment::{ENTRIES_START, Position, u32_at, u64_at};
use super::{damaged, io_error, is_full, random_seed};
use crate::disk::{self, File, Opening};
use crate::model::chunk::{Chunk, Stamp};
use crate::model::id::{Epoch, Offset, OffsetRange, TopicId};
use crate::model::record::Source;
use crate::model::time::Timestamp;
use crate::store::StoreError;
use crate::store::codec::{self, Elsewhere, PublishedHead};
use crate::store::manifest::sync_dir;

/// Version of the format that is written.
pub const PACK_VERSION: u32 = 1;
/// Bytes of messages after which an entry of a pack is written.
pub const PACK_ENTRY_BYTES: u64 = 256 << 10;
/// Bytes after which what is written of a pack is synced: a commit that is synced at that moment may wait for it.
pub const PACK_SYNC_BYTES: u64 = 4 << 20;

const MAGIC: &[u8; 8] = b"batonpak";

/// The head of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackHead {
    /// Which pack it is.
    pub id: FileId,
    /// Its seed.
    pub seed: u32,
}

impl PackHead {
    /// The head of a pack that is begun in the folder `journal`.
    #[must_use]
    pub fn new(journal: &Path, id: FileId) -> Self {
        Self { id, seed: random_seed(journal) }
    }

    /// The first bytes of the file.
    #[must_use]
    pub fn encode(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[12..16].copy_from_slice(&PACK_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.epoch.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.id.number.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.seed.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the head of the pack `id` from its file.
    ///
    /// # Errors
    /// Where it cannot be read, or is not the head of that pack.
    pub fn read(file: &File, path: &Path, id: FileId) -> Result<Self, StoreError> {
        let mut bytes = [0; 64];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(damaged(path, 0, "the head of the pack is cut off"));
            }
            read => read.map_err(io_error("read", path))?,
        }
        if &bytes[..8] != MAGIC {
            return Err(damaged(path, 0, "not a pack of a journal"));
        }
        if u32_at(&bytes, 8) != crc32c::crc32c(&bytes[12..]) {
            return Err(damaged(path, 8, "bad checksum of the head of the pack"));
        }
        let version = u32_at(&bytes, 12);
        if version > PACK_VERSION {
            let path = path.to_owned();
            return Err(StoreError::NewerFormat { path, found: version, known: PACK_VERSION });
        }
        if FileId::pack(Epoch(u64_at(&bytes, 16)), u32_at(&bytes, 24)) != id {
            return Err(damaged(path, 16, "the head is that of another pack"));
        }
        Ok(Self { id, seed: u32_at(&bytes, 28) })
    }

    /// What its entries have in common.
    #[must_use]
    pub const fn marks(&self) -> Marks {
        Marks { segment: self.id.marked(), seed: self.seed }
    }
}

/// Consecutive messages of a topic in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRun {
    /// Their offsets.
    pub range: OffsetRange,
    /// What they take, in bytes.
    pub bytes: u64,
}

/// A pack that is complete and durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Which pack.
    pub id: FileId,
    /// Where its index is, in bytes of the file.
    pub index: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// What it has of each topic, lowest first.
    pub runs: Vec<(TopicId, Vec<PackRun>)>,
}

impl Pack {
    /// The pack of a publish whose messages are elsewhere, committed in `epoch`.
    #[must_use]
    pub fn of(head: &PublishedHead, place: Elsewhere, epoch: Epoch) -> Self {
        let run = |first: Offset| PackRun {
            range: OffsetRange::new(first.0, first.0 + u64::from(head.count)),
            bytes: run_bytes(u64::from(head.bytes)),
        };
        let mut runs: Vec<(TopicId, Vec<PackRun>)> =
            head.targets.iter().map(|&(topic, first)| (topic, vec![run(first)])).collect();
        runs.sort_unstable_by_key(|(topic, _)| *topic);
        Self { id: FileId::pack(epoch, place.pack), index: place.index, bytes: place.bytes, runs }
    }
}

/// That messages were copied into a pack: the heads of an entry of that kind, in `bincode`.
///
/// Messages of the pack that are in one of these files are in the pack from here on; the others were trimmed or removed
/// while they were copied, and stay gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// The pack.
    pub pack: Pack,
    /// Where the messages were, in order.
    pub replaced: Vec<FileId>,
}

/// The name of a pack that is being made.
#[must_use]
pub fn temporary(journal: &Path, id: FileId) -> PathBuf {
    id.path(journal).with_extension("pack.new")
}

/// A pack that is being made. One that is dropped leaves its file under the name `.new`.
#[derive(Debug)]
pub struct PackWriter {
    journal: PathBuf,
    head: PackHead,
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    /// Where the next entry begins.
    at: u64,
    synced: u64,
    chain: u32,
    index: SegmentIndex,
    runs: BTreeMap<TopicId, Vec<PackRun>>,
    /// Head and heads of the next entry.
    front: Vec<u8>,
    blocks: Vec<Bytes>,
    blocks_bytes: u64,
}

impl PackWriter {
    /// Begins a pack in the folder `journal`, which exists.
    ///
    /// # Errors
    /// [`StoreError::Full`] where there is no space, with nothing left behind.
    pub fn create(journal: &Path, id: FileId) -> Result<Self, StoreError> {
        let head = PackHead::new(journal, id);
        let path = id.path(journal);
        let temporary = temporary(journal, id);
        let made = File::open(&temporary, Opening::Replace).and_then(|file| {
            file.write_all_at(&head.encode(), 0)?;
            Ok(file)
        });
        let file = made.map_err(|error| refuse(error, &temporary, ENTRIES_START))?;
        Ok(Self {
            journal: journal.to_owned(),
            head,
            path,
            temporary,
            file,
            at: ENTRIES_START,
            synced: ENTRIES_START,
            chain: head.seed,
            index: SegmentIndex::default(),
            runs: BTreeMap::new(),
            front: vec![0; ENTRY_HEAD_BYTES],
            blocks: Vec::new(),
            blocks_bytes: 0,
        })
    }

    /// Adds messages. They lie behind those that the pack has of the topic already.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    ///
    /// # Panics
    /// Where they do not lie behind those.
    pub fn add(&mut self, topic: TopicId, chunk: &Chunk) -> Result<(), StoreError> {
        let mut first = 0;
        for stamps in chunk.stamps.chunk_by(|one, next| one.published_at == next.published_at) {
            let end = first + stamps.iter().map(|stamp| stamp.count as usize).sum::<usize>();
            let range = OffsetRange::new(chunk.first.0 + first as u64, chunk.first.0 + end as u64);
            self.add_part(topic, range, stamps, chunk.block.slice(first, end))?;
            first = end;
        }
        Ok(())
    }

    /// Adds messages that were published at one time.
    fn add_part(
        &mut self,
        topic: TopicId,
        range: OffsetRange,
        stamps: &[Stamp],
        block: Bytes,
    ) -> Result<(), StoreError> {
        let source = match stamps {
            [stamp] => Source::of(stamp.origin),
            _ => Source::Mixed(stamps.iter().map(|stamp| (stamp.count, stamp.origin)).collect()),
        };
        let head = PublishedHead {
            targets: vec![(topic, range.start)],
            source,
            at: stamps.first().map_or(Timestamp(0), |stamp| stamp.published_at),
            count: range.len() as u32,
            bytes: block.len() as u32,
            checksum: crc32c::crc32c(&block),
        };
        codec::encode_published(&head, &mut self.front)
            .map_err(|error| io_error("encode messages for", &self.path)(io::Error::other(error)))?;
        self.index.add(topic, range, self.at, u64::from(head.bytes));
        let bytes = run_bytes(u64::from(head.bytes));
        let runs = self.runs.entry(topic).or_default();
        match runs.last_mut() {
            Some(last) if last.range.end == range.start => {
                last.range.end = range.end;
                last.bytes += bytes;
            }
            last => {
                assert!(last.is_none_or(|last| last.range.end < range.start), "offsets ascend in a pack");
                runs.push(PackRun { range, bytes });
            }
        }
        self.blocks_bytes += block.len() as u64;
        self.blocks.push(block);
        if self.blocks_bytes + self.front.len() as u64 >= PACK_ENTRY_BYTES {
            self.flush(Kind::Commit)?;
        }
        Ok(())
    }

    /// Bytes that the pack would have without its index if it were finished now.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.at + self.front.len() as u64 + self.blocks_bytes
    }

    /// Runs of messages so far.
    #[must_use]
    pub fn run_count(&self) -> usize {
        self.runs.values().map(Vec::len).sum()
    }

    /// Writes the rest and the index. When it returns, the pack and its name are durable.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub fn finish(mut self) -> Result<Pack, StoreError> {
        if !self.blocks.is_empty() {
            self.flush(Kind::Commit)?;
        }
        let index = self.at;
        self.index
            .encode(&mut self.front)
            .map_err(|error| io_error("encode the index of", &self.path)(io::Error::other(error)))?;
        self.flush(Kind::Index)?;
        let finished = self
            .file
            .set_len(self.at)
            .and_then(|()| self.file.sync_all())
            .and_then(|()| disk::rename(&self.temporary, &self.path));
        finished.map_err(|error| refuse(error, &self.temporary, self.at))?;
        sync_dir(&self.journal)?;
        Ok(Pack { id: self.head.id, index, bytes: self.at, runs: self.runs.into_iter().collect() })
    }

    /// Writes the entry whose heads and blocks have gathered.
    fn flush(&mut self, kind: Kind) -> Result<(), StoreError> {
        let position = Position { segment: self.head.id.marked(), at: self.at };
        let heads = &self.front[ENTRY_HEAD_BYTES..];
        let head = EntryHead {
            kind,
            position,
            chain: self.chain,
            synced: position,
            heads_checksum: crc32c::crc32c(heads),
            heads_bytes: heads.len() as u32,
            blocks_bytes: self.blocks_bytes,
        };
        let (bytes, chain) = head.encode(self.head.seed);
        self.front[..ENTRY_HEAD_BYTES].copy_from_slice(&bytes);
        let blocks: Vec<&Bytes> = self.blocks.iter().collect();
        let end = head.end();
        let written = entry::write(&self.file, self.at, &self.front, &blocks).and_then(|()| {
            if end - self.synced >= PACK_SYNC_BYTES {
                self.file.sync_data()?;
                self.synced = end;
            }
            Ok(())
        });
        written.map_err(|error| refuse(error, &self.temporary, end))?;
        (self.at, self.chain) = (end, chain);
        self.front.truncate(ENTRY_HEAD_BYTES);
        self.blocks.clear();
        self.blocks_bytes = 0;
        Ok(())
    }
}

/// A full disk leaves nothing behind.
pub(super) fn refuse(error: io::Error, path: &Path, bytes: u64) -> StoreError {
    if !is_full(&error) {
        return io_error("write to", path)(error);
    }
    match super::remove(path) {
        Ok(()) => StoreError::Full(bytes),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::super::Shared;
    use super::super::places::Places;
    use super::super::reader::FileReader;
    use super::*;
    use crate::model::chunk::Origin;
    use crate::model::id::{ProducerId, Sequence};
    use crate::model::message::{Message, MessageBlock};
    use crate::store::Reader;

    const PACK: FileId = FileId::pack(Epoch(3), 2);

    /// `count` messages, of three publishers where there are as many.
    fn chunk(first: u64, count: u32, body_bytes: usize) -> Chunk {
        let messages: Vec<Message> =
            (0..u64::from(count)).map(|n| Message::new(vec![(first + n) as u8; body_bytes])).collect();
        let counts = if count < 3 { vec![count] } else { vec![1, count - 2, 1] };
        let stamps = counts.into_iter().enumerate().map(|(at, count)| Stamp {
            count,
            published_at: Timestamp(first + at as u64),
            origin: (at == 1).then_some(Origin { producer: ProducerId(7), sequence: Sequence(first) }),
        });
        Chunk { first: Offset(first), block: MessageBlock::encode(&messages), stamps: stamps.collect() }
    }

    /// A reader of a store that has had these messages in a segment, and has them in the pack.
    fn reader(journal: &Path, pack: Pack) -> FileReader {
        let mut places = Places::default();
        let segment = PACK.marked();
        places.open_segment(segment, ENTRIES_START, 1 << 20);
        for (topic, runs) in &pack.runs {
            runs.iter().for_each(|run| places.publish(*topic, run.range, ENTRIES_START, run.bytes));
        }
        places.pack(&Packed { pack, replaced: vec![segment.into()] });
        assert!(places.files().is_dead(segment.into()));
        FileReader::new(Arc::new(Shared::new(journal.to_owned(), places)))
    }

    #[test]
    fn a_pack_begins_with_these_bytes() {
        let mut expected = [0; 64];
        expected[..8].copy_from_slice(b"batonpak");
        expected[8..16].copy_from_slice(&[192, 137, 31, 105, 1, 0, 0, 0]);
        expected[16..32].copy_from_slice(b"\x03\0\0\0\0\0\0\0\x02\0\0\0\xdd\xcc\xbb\xaa");
        assert_eq!(PackHead { id: PACK, seed: 0xaabb_ccdd }.encode(), expected);
    }

    #[test]
    fn a_packed_entry_has_these_bytes() {
        let runs = vec![(TopicId(9), vec![PackRun { range: OffsetRange::new(300, 302), bytes: 70 }])];
        let pack = Pack { id: PACK, index: 4200, bytes: 4300, runs };
        let packed = Packed { pack, replaced: vec![FileId::pack(Epoch(1), 4)] };
        let mut bytes = Vec::new();
        codec::encode(&packed, &mut bytes).unwrap();
        let expected: &[u8] =
            b"\x01\x03\x02\xfbh\x10\xfb\xcc\x10\x01\t\x01\xfb,\x01\xfb.\x01F\x01\x01\x01\x04";
        assert_eq!(bytes.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    #[test]
    fn what_was_packed_is_read_back_with_its_stamps() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = PackWriter::create(dir.path(), PACK).unwrap();
        let large = 3 << 20;
        let parts = [
            (5, chunk(0, 10, 100)),
            (5, chunk(10, 1, 100)),
            (5, chunk(700, 4000, 200)),
            (2, chunk(9, 3, large)),
            (6, chunk(1 << 40, 1, 0)),
        ];
        for (topic, chunk) in &parts {
            writer.add(TopicId(*topic), chunk).unwrap();
        }
        let bytes = writer.bytes();
        let pack = writer.finish().unwrap();
        assert!(pack.index >= bytes && pack.index < bytes + 4096, "{} {bytes}", pack.index);
        assert_eq!(fs::metadata(PACK.path(dir.path())).unwrap().len(), pack.bytes);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let ranges: Vec<(u32, Vec<OffsetRange>)> = pack
            .runs
            .iter()
            .map(|(topic, runs)| (topic.0, runs.iter().map(|run| run.range).collect()))
            .collect();
        let one = |first, end| vec![OffsetRange::new(first, end)];
        let five = vec![OffsetRange::new(0, 11), OffsetRange::new(700, 4700)];
        assert_eq!(ranges, [(2, one(9, 12)), (5, five), (6, one(1 << 40, (1 << 40) + 1))]);
        for bytes_max in [1, 5000, 100 << 20] {
            let mut reader = reader(dir.path(), pack.clone());
            for (topic, chunk) in &parts {
                let mut next = 0;
                while next < chunk.block.count() {
                    let from = Offset(chunk.first.0 + next as u64);
                    let read = reader.read(TopicId(*topic), from, bytes_max).unwrap().unwrap();
                    let count = read.block.count().min(chunk.block.count() - next);
                    assert_eq!(read.block.part(0, count), chunk.block.part(next, next + count));
                    assert_eq!(stamps(&read)[..count], stamps(chunk)[next..next + count]);
                    next += count;
                }
            }
            assert!(reader.read(TopicId(5), Offset(11), bytes_max).unwrap().is_none());
        }
    }

    /// Time and origin of each message.
    fn stamps(chunk: &Chunk) -> Vec<(Timestamp, Option<Origin>)> {
        let each = chunk.stamps.iter().flat_map(|stamp| {
            (0..u64::from(stamp.count)).map(|at| {
                let origin = stamp
                    .origin
                    .map(|origin| Origin { sequence: Sequence(origin.sequence.0 + at), ..origin });
                (stamp.published_at, origin)
            })
        });
        each.collect()
    }
}
