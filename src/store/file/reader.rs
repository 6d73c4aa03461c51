//! Reads committed messages beside the thread that commits.
//!
//! A read finds the file of the first message, a place in it through the index or where the last read of that
//! topic ended, and walks the entries from there. It checks the head of every entry it walks over, the checksum of
//! its heads, and the checksum of every block it takes messages from; not the chain, and not blocks it passes over.
//!
//! It reads nothing beyond what was committed when the read began. Blocks are copied once, into the chunk; a block
//! that alone makes a chunk and was read by itself is not copied. A block of which only a part was taken is kept for the
//! next read of that topic, up to [`KEPT_BYTES_MAX`] over all topics.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::entry::{ENTRY_HEAD_BYTES, EntryHead, Kind};
use super::file_id::FileId;
use super::index::SegmentIndex;
use super::open_files::OpenFile;
use super::parts::Parts;
use super::places::{Found, IndexPlace};
use super::segment::{ENTRIES_START, Position};
use super::walk::{Depth, Step, Walk, published};
use super::window::{WINDOW_BYTES_MAX, Window};
use super::{Shared, damaged, io_error};
use crate::model::chunk::Chunk;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::message::MessageBlock;
use crate::store::codec::{self, Head, PublishedHead};
use crate::store::{Reader, StoreError, Unreadable};

/// Bytes of blocks that a reader keeps because only a part of them fitted into a read.
pub const KEPT_BYTES_MAX: usize = 16 << 20;
/// Topics of which a reader remembers where it was.
pub const CURSORS_MAX: usize = 4096;

/// Reads of up to this size are made through the window, larger ones for themselves.
const WINDOW_BLOCK_BYTES: u32 = (WINDOW_BYTES_MAX / 4) as u32;

/// A reader.
#[derive(Debug)]
pub struct FileReader {
    shared: Arc<Shared>,
    window: Window,
    window_file: FileId,
    cursors: HashMap<TopicId, Cursor>,
    kept_bytes: usize,
}

/// A block of which only a part was taken, and the offset of its first message.
type Begun = (Offset, MessageBlock, PublishedHead);

/// Where the read after the last one of a topic begins.
#[derive(Debug)]
struct Cursor {
    next: Offset,
    /// The entry that has the message, or one before it: the file, and where in it.
    entry: (FileId, u64),
    /// The block that has it.
    block: Option<Begun>,
}

/// What a read has taken, and where it goes on.
struct Taken {
    parts: Parts,
    /// The message that is next.
    next: Offset,
    /// The entry that has it, or one before it.
    at: u64,
    /// The block that has it.
    block: Option<Begun>,
}

impl Taken {
    /// Whether more is there before `end`, and fits.
    fn has_room(&self, end: Offset, bytes_max: usize) -> bool {
        let fits = self.parts.count == 0 || self.parts.byte_len() < bytes_max;
        self.next < end && fits && self.block.is_none()
    }
}

impl Cursor {
    fn kept_bytes(&self) -> usize {
        self.block.as_ref().map_or(0, |(_, block, _)| block.bytes().len())
    }
}

impl Reader for FileReader {
    fn read(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, Unreadable> {
        let of_first = |error| Unreadable::of_one(from, error);
        loop {
            let Some(found) = self.shared.places().find(topic, from) else { return Ok(None) };
            let Some(file) = self.file(found.file).map_err(of_first)? else {
                // Its messages were trimmed or copied since they were found; or it is missing.
                self.refuse_missing(found.file).map_err(of_first)?;
                continue;
            };
            let read = self.read_from(topic, from, bytes_max, found, &file, None);
            if read.is_err() {
                // Asked again, it is read again.
                self.window.clear();
            }
            return read.map(Some);
        }
    }
}

impl FileReader {
    /// A reader that has read nothing.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            window: Window::default(),
            window_file: FileId::default(),
            cursors: HashMap::new(),
            kept_bytes: 0,
        }
    }

    /// As [`read`](Reader::read), but only where the message is in `file`. The walk begins at the entry `start`, or where
    /// the index says.
    ///
    /// # Errors
    /// As for [`read`](Reader::read).
    pub fn read_in(
        &mut self,
        file: FileId,
        topic: TopicId,
        from: Offset,
        bytes_max: usize,
        start: Option<u64>,
    ) -> Result<Option<Chunk>, StoreError> {
        let found = self.shared.places().find(topic, from).filter(|found| found.file == file);
        let Some(found) = found else { return Ok(None) };
        match self.file(file)? {
            Some(open) => Ok(self.read_from(topic, from, bytes_max, found, &open, start).map(Some)?),
            None => self.refuse_missing(file).map(|()| None),
        }
    }

    /// The index of a file that is not being written, which is not kept for others. `None` where the file is gone.
    ///
    /// # Errors
    /// Where it cannot be read, or made anew.
    pub fn index_of(&mut self, file: FileId) -> Result<Option<Arc<SegmentIndex>>, StoreError> {
        let Some(place) = self.shared.places().files().get(file) else { return Ok(None) };
        match self.file(file)? {
            Some(open) => {
                let limit = place.index.unwrap_or(place.end);
                let kept = self.shared.indexes().find(file);
                kept.map_or_else(|| self.make_index(&open, place.index, limit), Ok).map(Some)
            }
            None => self.refuse_missing(file).map(|()| None),
        }
    }

    /// A file that is not there is missing where it still holds something.
    fn refuse_missing(&self, file: FileId) -> Result<(), StoreError> {
        let place = self.shared.places().files().get(file);
        if place.is_some_and(|place| place.held > 0) {
            return Err(StoreError::Missing { path: file.path(&self.shared.journal) });
        }
        Ok(())
    }

    /// Opens a file. `None` where it is gone.
    fn file(&mut self, id: FileId) -> Result<Option<Arc<OpenFile>>, StoreError> {
        let opened = self.shared.open.open(&self.shared.journal, id)?;
        if self.shared.places().files().get(id).is_none() {
            // Removed meanwhile, perhaps before it was opened: nobody would close it.
            self.shared.open.close(id);
            return Ok(None);
        }
        if self.window_file != id {
            self.window_file = id;
            self.window.clear();
        }
        Ok(opened)
    }

    /// Reads from a file, up to what cannot be read there.
    fn read_from(
        &mut self,
        topic: TopicId,
        from: Offset,
        bytes_max: usize,
        found: Found,
        file: &OpenFile,
        start: Option<u64>,
    ) -> Result<Chunk, Unreadable> {
        let of_first = |error| Unreadable::of_one(from, error);
        let cursor = self.take_cursor(topic);
        let cursor = cursor.filter(|cursor| cursor.next <= from && cursor.entry.0 == found.file);
        // Offsets ascend in a file: what lies before the message is before it in the file, too.
        let passed = cursor.as_ref().map_or(0, |cursor| cursor.entry.1);
        let mut taken = Taken { parts: Parts::default(), next: from, at: passed, block: None };
        match cursor {
            Some(Cursor { entry, block: Some((first, block, head)), .. })
                if from.0 < first.0 + u64::from(head.count) =>
            {
                let range = OffsetRange::new(first.0, first.0 + u64::from(head.count));
                let wanted = OffsetRange { start: from, end: found.end.min(range.end) };
                taken.next.0 += taken.parts.take_part(&block, &head, first, wanted, bytes_max);
                if taken.next < range.end {
                    self.keep_cursor(
                        topic,
                        Cursor { next: taken.next, entry, block: Some((first, block, head)) },
                    );
                    return taken.parts.finish(from, &file.path, entry.1).map_err(of_first);
                }
            }
            Some(cursor) if cursor.next == from => {}
            _ => {
                let start = match start {
                    Some(start) => start,
                    None => self.start_of_walk(topic, from, found, file).map_err(of_first)?,
                };
                taken.at = start.max(passed);
            }
        }
        while taken.has_room(found.end, bytes_max) {
            match self.take_entry(topic, found, file, bytes_max, &mut taken) {
                Ok(()) => {}
                Err(error) if taken.parts.count == 0 => return Err(error),
                // Whoever asks for that message is told.
                Err(_) => return taken.parts.finish(from, &file.path, taken.at).map_err(of_first),
            }
        }
        let Taken { parts, next, at, block } = taken;
        self.keep_cursor(topic, Cursor { next, entry: (found.file, at), block });
        parts.finish(from, &file.path, at).map_err(of_first)
    }

    /// Takes what is wanted and fits of the entry that is next, and goes on to the next one where nothing is left.
    fn take_entry(
        &mut self,
        topic: TopicId,
        found: Found,
        file: &OpenFile,
        bytes_max: usize,
        taken: &mut Taken,
    ) -> Result<(), Unreadable> {
        let next = taken.next;
        let read = self.entry(file, taken.at, found.limit);
        let (entry, heads) = read.map_err(|error| Unreadable::of_one(next, error))?;
        let mut block_at = entry.blocks_at();
        for head in published(&heads) {
            let range = target_range(head, topic).filter(|range| range.contains(taken.next));
            if let Some(range) = range.filter(|_| taken.next < found.end) {
                let of_block = |error| Unreadable { range, error };
                let room = bytes_max.saturating_sub(taken.parts.byte_len());
                let is_wanted = range.start == taken.next && range.end <= found.end;
                if is_wanted && head.bytes as usize <= room {
                    if taken.parts.count == 0 && range.end < found.end {
                        taken.parts.pieces.reserve(bytes_max.min(WINDOW_BLOCK_BYTES as usize));
                    }
                    self.take_whole(file, block_at, found.limit, head, &mut taken.parts).map_err(of_block)?;
                    taken.parts.add(head, 0, u64::from(head.count));
                    taken.next = range.end;
                } else {
                    let bytes = self.block(file, block_at, found.limit, head).map_err(of_block)?;
                    let whole = decode_block(file, block_at, head, bytes).map_err(of_block)?;
                    let wanted = OffsetRange { start: taken.next, end: found.end.min(range.end) };
                    taken.next.0 += taken.parts.take_part(&whole, head, range.start, wanted, bytes_max);
                    if taken.next < range.end {
                        taken.block = Some((range.start, whole, head.clone()));
                        break;
                    }
                }
            }
            block_at += u64::from(head.bytes);
        }
        // Where the run ends, the entry may have more of the topic behind a gap.
        let mut ranges = published(&heads).filter_map(|head| target_range(head, topic));
        let is_passed = ranges.all(|range| range.end <= taken.next);
        if taken.block.is_none() && (is_passed || taken.next < found.end) {
            taken.at = entry.end();
        }
        Ok(())
    }

    fn take_cursor(&mut self, topic: TopicId) -> Option<Cursor> {
        let cursor = self.cursors.remove(&topic)?;
        self.kept_bytes -= cursor.kept_bytes();
        Some(cursor)
    }

    fn keep_cursor(&mut self, topic: TopicId, cursor: Cursor) {
        if self.cursors.len() >= CURSORS_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            self.cursors.clear();
            self.kept_bytes = 0;
        }
        self.kept_bytes += cursor.kept_bytes();
        self.cursors.insert(topic, cursor);
    }

    /// The entry to begin with for a message that was not read up to.
    fn start_of_walk(
        &mut self,
        topic: TopicId,
        from: Offset,
        found: Found,
        file: &OpenFile,
    ) -> Result<u64, StoreError> {
        let index_at = match found.index {
            IndexPlace::Memory(at) => return Ok(at),
            IndexPlace::Entry(at) => Some(at),
            IndexPlace::None => None,
        };
        self.index(file, index_at, found.limit)?.find(topic, from).ok_or_else(|| {
            damaged(
                &file.path,
                index_at.unwrap_or(0),
                format!("message {from} of topic {topic} is not in the index"),
            )
        })
    }

    /// The index of a file, kept for the next read.
    fn index(
        &mut self,
        file: &OpenFile,
        index_at: Option<u64>,
        limit: u64,
    ) -> Result<Arc<SegmentIndex>, StoreError> {
        if let Some(index) = self.shared.indexes().find(file.id) {
            return Ok(index);
        }
        let index = self.make_index(file, index_at, limit)?;
        self.shared.keep_index(file.id, Arc::clone(&index));
        Ok(index)
    }

    /// The index of a file, which is at `index_at` in it, or made anew of what lies before `limit`.
    fn make_index(
        &mut self,
        file: &OpenFile,
        index_at: Option<u64>,
        limit: u64,
    ) -> Result<Arc<SegmentIndex>, StoreError> {
        Ok(Arc::new(match index_at {
            Some(at) => self.load_index(file, at).or_else(|error| {
                if !matches!(error, StoreError::Damaged { .. }) {
                    return Err(error);
                }
                tracing::warn!(%error, "the messages may still be whole: the index is made anew");
                build_index(file, limit)
            })?,
            None => build_index(file, limit)?,
        }))
    }

    fn load_index(&mut self, file: &OpenFile, at: u64) -> Result<SegmentIndex, StoreError> {
        let (head, heads) = self.raw_entry(file, at, u64::MAX)?;
        if head.kind != Kind::Index {
            return Err(damaged(&file.path, at, "the index of the file is not where it should be"));
        }
        SegmentIndex::decode(heads).map_err(|error| damaged(&file.path, at, error.to_string()))
    }

    fn entry(&mut self, file: &OpenFile, at: u64, limit: u64) -> Result<(EntryHead, Vec<Head>), StoreError> {
        if at >= limit {
            return Err(damaged(&file.path, at, "messages that the index has are not in the file"));
        }
        let (head, heads) = self.raw_entry(file, at, limit)?;
        if head.kind != Kind::Commit {
            return Ok((head, Vec::new()));
        }
        let heads = codec::decode_heads(heads).map_err(|error| damaged(&file.path, at, error.to_string()))?;
        Ok((head, heads))
    }

    /// The head of an entry and its checked heads.
    fn raw_entry(&mut self, file: &OpenFile, at: u64, limit: u64) -> Result<(EntryHead, &[u8]), StoreError> {
        let position = Position { segment: file.marks.segment, at };
        let bytes = read(&mut self.window, file, at, ENTRY_HEAD_BYTES, limit)?;
        let (head, _) = EntryHead::decode(bytes, file.marks.seed, position)
            .ok_or_else(|| damaged(&file.path, at, "no valid entry"))?;
        let (heads_at, len) = (at + ENTRY_HEAD_BYTES as u64, head.heads_bytes as usize);
        let heads = read(&mut self.window, file, heads_at, len, limit)?;
        if heads.len() < len || crc32c::crc32c(heads) != head.heads_checksum {
            return Err(damaged(&file.path, heads_at, "bad checksum of the records of an entry"));
        }
        Ok((head, heads))
    }

    /// Adds a block to the chunk, without copying it where it is large and the first.
    fn take_whole(
        &mut self,
        file: &OpenFile,
        at: u64,
        limit: u64,
        head: &PublishedHead,
        parts: &mut Parts,
    ) -> Result<(), StoreError> {
        if let Some(whole) = parts.whole.take() {
            parts.pieces.extend_from_slice(&whole);
        }
        if head.bytes > WINDOW_BLOCK_BYTES {
            let bytes = self.block(file, at, limit, head)?;
            if parts.pieces.is_empty() {
                parts.whole = Some(bytes);
            } else {
                parts.pieces.extend_from_slice(&bytes);
            }
            return Ok(());
        }
        let bytes = read(&mut self.window, file, at, head.bytes as usize, limit)?;
        check_block(file, at, head, bytes)?;
        parts.pieces.extend_from_slice(bytes);
        Ok(())
    }

    /// A block in memory of its own.
    fn block(
        &mut self,
        file: &OpenFile,
        at: u64,
        limit: u64,
        head: &PublishedHead,
    ) -> Result<Bytes, StoreError> {
        let bytes = if head.bytes > WINDOW_BLOCK_BYTES {
            Bytes::from(read_alone(file, at, head.bytes as usize)?)
        } else {
            Bytes::copy_from_slice(read(&mut self.window, file, at, head.bytes as usize, limit)?)
        };
        check_block(file, at, head, &bytes)?;
        Ok(bytes)
    }
}

/// The offsets that the messages of a publish have in a topic.
fn target_range(head: &PublishedHead, topic: TopicId) -> Option<OffsetRange> {
    let (_, first) = head.targets.iter().find(|(target, _)| *target == topic)?;
    Some(OffsetRange::new(first.0, first.0 + u64::from(head.count)))
}

fn decode_block(
    file: &OpenFile,
    at: u64,
    head: &PublishedHead,
    bytes: Bytes,
) -> Result<MessageBlock, StoreError> {
    MessageBlock::from_store(bytes)
        .ok()
        .filter(|block| block.count() == head.count as usize)
        .ok_or_else(|| damaged(&file.path, at, "the messages of an entry are not as many as its records say"))
}

fn check_block(file: &OpenFile, at: u64, head: &PublishedHead, bytes: &[u8]) -> Result<(), StoreError> {
    if bytes.len() == head.bytes as usize && crc32c::crc32c(bytes) == head.checksum {
        return Ok(());
    }
    Err(damaged(&file.path, at, "bad checksum of the messages of an entry"))
}

/// The index of a file that has none, or a damaged one: what is committed of it is walked.
fn build_index(file: &OpenFile, limit: u64) -> Result<SegmentIndex, StoreError> {
    let mut index = SegmentIndex::default();
    let mut walk = Walk::new(&file.file, &file.path, file.marks, ENTRIES_START, None);
    while walk.at() < limit {
        let at = walk.at();
        match walk.step(Depth::Heads)? {
            Step::Commit(_, heads) => {
                for head in published(&heads) {
                    for &(topic, first) in &head.targets {
                        let range = OffsetRange::new(first.0, first.0 + u64::from(head.count));
                        index.add(topic, range, at, u64::from(head.bytes));
                    }
                }
            }
            Step::Packed(_) => {}
            Step::Index(_) => break,
            Step::Bad(what) => return Err(damaged(&file.path, at, what)),
        }
    }
    Ok(index)
}

fn read<'w>(
    window: &'w mut Window,
    file: &OpenFile,
    at: u64,
    len: usize,
    limit: u64,
) -> Result<&'w [u8], StoreError> {
    window.bytes(&file.file, at, len, limit).map_err(io_error("read", &file.path))
}

fn read_alone(file: &OpenFile, at: u64, len: usize) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0; len];
    file.file.read_exact_at(&mut bytes, at).map_err(io_error("read", &file.path))?;
    Ok(bytes)
}
