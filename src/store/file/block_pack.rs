//! A pack of one block that is written before it is known which messages it holds.
//!
//! The block stands at its place from the beginning, under the name that the pack will have: nothing names it yet. What
//! is in front of it and behind it is written when the block is committed, into blocks that are there already, so that
//! one sync is all that this takes.
//!
//! # Format, version 1 of packs
//!
//! ```text
//!       0  head of the pack
//!    4096  entry: head, then the head of the publish, which may have several targets, and zeros up to the block
//!    8192      block
//!          entry: the index, then zeros
//! ```

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::entry::{ENTRY_ALIGNMENT, ENTRY_HEAD_BYTES, EntryHead, Kind};
use super::file_id::FileId;
use super::index::SegmentIndex;
use super::io_error;
use super::pack::{Pack, PackHead, refuse};
use super::preallocation::FREE_BYTES;
use super::segment::{ENTRIES_START, Position};
use crate::disk::{self, File, Opening};
use crate::model::id::OffsetRange;
use crate::model::record::Published;
use crate::store::StoreError;
use crate::store::codec::{self, Elsewhere, PublishedHead};
use crate::store::manifest::sync_dir;

/// Where the block begins.
const BLOCK_AT: u64 = 2 * ENTRIES_START;
/// Bytes in front of the block that belong to its entry.
const FRONT_BYTES: usize = (BLOCK_AT - ENTRIES_START) as usize;
/// Bytes behind the block that are kept for the index.
const BACK_BYTES: usize = ENTRIES_START as usize;
/// Bytes of the block after which what is written is synced: a commit that is synced at that moment waits for it.
const SYNC_BYTES: usize = 1 << 20;

/// A pack whose block is on the disk.
#[derive(Debug)]
pub struct BlockPack {
    head: PackHead,
    path: PathBuf,
    file: File,
    block_bytes: u64,
    checksum: u32,
}

impl BlockPack {
    /// Writes a block into a new file in the folder `journal`; when it returns the block is durable.
    ///
    /// # Errors
    /// [`StoreError::Full`] where there is no space but what is kept for other things, with nothing left behind.
    pub fn write(journal: &Path, id: FileId, block: &Bytes) -> Result<Self, StoreError> {
        let path = id.path(journal);
        let bytes = BLOCK_AT + block.len() as u64 + BACK_BYTES as u64;
        let free = disk::free(journal).map_err(io_error("ask for the free space of", journal))?;
        if free < bytes.saturating_add(FREE_BYTES) {
            return Err(StoreError::Full(bytes));
        }
        let head = PackHead::new(journal, id);
        let mut front = vec![0; BLOCK_AT as usize];
        front[..64].copy_from_slice(&head.encode());
        let written = File::open(&path, Opening::Replace).and_then(|file| {
            file.write_all_at(&front, 0)?;
            let mut at = BLOCK_AT;
            for piece in block.chunks(SYNC_BYTES) {
                file.write_all_at(piece, at)?;
                file.sync_data()?;
                at += piece.len() as u64;
            }
            file.write_all_at(&[0; BACK_BYTES], at)?;
            file.sync_all()?;
            Ok(file)
        });
        let file = written.map_err(|error| refuse(error, &path, bytes))?;
        sync_dir(journal)?;
        Ok(Self { head, path, file, block_bytes: block.len() as u64, checksum: crc32c::crc32c(block) })
    }

    /// CRC32C of the block.
    #[must_use]
    pub const fn checksum(&self) -> u32 {
        self.checksum
    }

    /// Says which messages these are. When it returns, the pack is durable. `None` where there is no room to say so, with
    /// nothing left behind: only a publish to some hundred topics at once has as much to say.
    ///
    /// # Errors
    /// [`StoreError::Full`] where there is no space, with nothing left behind.
    pub fn finish(self, published: &Published) -> Result<Option<Pack>, StoreError> {
        let Self { head, path, file, block_bytes, checksum } = self;
        let id = head.id;
        let fail = |error| io_error("encode messages for", &path)(io::Error::other(error));
        let count = published.block.count() as u32;
        let publish = PublishedHead {
            targets: published.targets.clone(),
            source: published.source.clone(),
            at: published.at,
            count,
            bytes: block_bytes as u32,
            checksum,
        };
        let mut front = vec![0; ENTRY_HEAD_BYTES];
        codec::encode_published(&publish, &mut front).map_err(fail)?;
        let range_of = |first: u64| OffsetRange::new(first, first + u64::from(count));
        let mut index = SegmentIndex::default();
        for &(topic, first) in &published.targets {
            index.add(topic, range_of(first.0), ENTRIES_START, block_bytes);
        }
        let mut back = vec![0; ENTRY_HEAD_BYTES];
        index.encode(&mut back).map_err(fail)?;
        if front.len() > FRONT_BYTES || back.len() as u64 + ENTRY_ALIGNMENT > BACK_BYTES as u64 {
            super::remove(&path)?;
            return Ok(None);
        }
        front.resize(FRONT_BYTES, codec::tag::NOTHING);
        let mut entry = EntryHead {
            kind: Kind::Commit,
            position: Position { segment: id.marked(), at: ENTRIES_START },
            chain: head.seed,
            synced: Position { segment: id.marked(), at: ENTRIES_START },
            heads_checksum: crc32c::crc32c(&front[ENTRY_HEAD_BYTES..]),
            heads_bytes: (FRONT_BYTES - ENTRY_HEAD_BYTES) as u32,
            blocks_bytes: block_bytes,
        };
        let (bytes, chain) = entry.encode(head.seed);
        front[..ENTRY_HEAD_BYTES].copy_from_slice(&bytes);
        let index_at = entry.end();
        entry.kind = Kind::Index;
        entry.position.at = index_at;
        entry.synced.at = index_at;
        entry.chain = chain;
        entry.heads_checksum = crc32c::crc32c(&back[ENTRY_HEAD_BYTES..]);
        entry.heads_bytes = (back.len() - ENTRY_HEAD_BYTES) as u32;
        entry.blocks_bytes = 0;
        back[..ENTRY_HEAD_BYTES].copy_from_slice(&entry.encode(head.seed).0);
        let end = entry.end();
        let written = file
            .write_all_at(&front, ENTRIES_START)
            .and_then(|()| file.write_all_at(&back, index_at))
            .and_then(|()| file.sync_data());
        written.map_err(|error| refuse(error, &path, end))?;
        let place = Elsewhere { pack: id.number, index: index_at, bytes: end };
        Ok(Some(Pack::of(&publish, place, id.epoch)))
    }

    /// Removes it.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub fn abandon(self) -> Result<(), StoreError> {
        super::remove(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::super::Shared;
    use super::super::places::Places;
    use super::super::reader::FileReader;
    use super::super::walk::{Depth, Step, Walk};
    use super::*;
    use crate::model::id::{Epoch, Offset, TopicId};
    use crate::model::message::{Message, MessageBlock};
    use crate::model::record::Source;
    use crate::model::time::Timestamp;
    use crate::store::Reader;

    #[test]
    fn what_is_written_before_it_is_known_where_it_belongs_is_read_as_from_any_pack() {
        let dir = tempfile::tempdir().unwrap();
        let id = FileId::pack(Epoch(3), 2);
        let block = MessageBlock::encode(&[Message::new(vec![7; 9 << 20]), Message::new("last")]);
        let written = BlockPack::write(dir.path(), id, block.bytes()).unwrap();
        let targets = vec![(TopicId(4), Offset(100)), (TopicId(2), Offset(0))];
        let published = Published { targets, source: Source::Broker, at: Timestamp(5), block: block.clone() };
        let pack = written.finish(&published).unwrap().unwrap();
        let path = id.path(dir.path());
        let file = File::open(&path, Opening::Read).unwrap();
        assert!(file.length().unwrap() >= pack.bytes);

        let head = PackHead::read(&file, &path, id).unwrap();
        let mut walk = Walk::new(&file, &path, head.marks(), ENTRIES_START, Some(head.seed));
        assert!(matches!(walk.step(Depth::Blocks).unwrap(), Step::Commit(_, heads) if heads.len() == 1));
        assert_eq!(walk.at(), pack.index);
        assert!(matches!(walk.step(Depth::Blocks).unwrap(), Step::Index(_)));
        assert_eq!(walk.at(), pack.bytes);

        let mut places = Places::default();
        places.add_pack(&pack);
        let mut reader = FileReader::new(Arc::new(Shared::new(dir.path().to_owned(), places)));
        for (topic, first) in published.targets {
            let chunk = reader.read(topic, first, 64 << 20).unwrap().unwrap();
            assert!(chunk.block.bytes() == block.bytes());
            let last = reader.read(topic, first.next(), 1).unwrap().unwrap();
            assert_eq!(last.block.message(0).unwrap().body, "last");
            assert_eq!(reader.read(topic, Offset(first.0 + 2), 1).unwrap(), None);
        }
    }

    #[test]
    fn a_block_that_belongs_nowhere_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let block = MessageBlock::encode([&Message::new("x")]);
        let write = || BlockPack::write(dir.path(), FileId::pack(Epoch(1), 1), block.bytes()).unwrap();
        write().abandon().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let targets = (0..3000).map(|topic| (TopicId(topic), Offset(0))).collect();
        let published = Published { targets, source: Source::Broker, at: Timestamp(5), block: block.clone() };
        assert!(write().finish(&published).unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
