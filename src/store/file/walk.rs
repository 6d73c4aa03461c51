//! Goes through the entries of one file, one after the other, and checks them.
//!
//! Checks everything that makes an entry valid, the blocks included, which pass through a buffer and are not kept.
//! Decides nothing: it says where the first bad entry is, and whether there is a valid one behind it.

use std::path::{Path, PathBuf};

use super::entry::{ENTRY_ALIGNMENT, ENTRY_HEAD_BYTES, EntryHead, Kind, Marks};
use super::pack::Packed;
use super::segment::{ENTRIES_START, Position, Reach, SegmentHead};
use super::window::{WINDOW_BYTES_MAX, Window};
use super::{damaged, io_error};
use crate::disk::File;
use crate::store::StoreError;
use crate::store::codec::{self, Head, PublishedHead};

/// Whether the blocks are read and checked too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Everything is.
    Blocks,
    /// Only what is in front of the blocks is.
    Heads,
}

/// What a walk comes to next.
#[derive(Debug)]
pub enum Step {
    /// A commit.
    Commit(EntryHead, Vec<Head>),
    /// The index at the end of the file.
    Index(EntryHead),
    /// Messages were copied into a pack.
    Packed(Packed),
    /// Something that is not a valid entry: the end of what was written, or damage.
    Bad(&'static str),
}

/// A walk through a segment or a pack.
#[derive(Debug)]
pub struct Walk<'a> {
    file: &'a File,
    path: PathBuf,
    marks: Marks,
    /// Where the next entry is.
    at: u64,
    /// The chain that the next entry must have; `None` where that is not known.
    chain: Option<u32>,
    window: Window,
}

impl<'a> Walk<'a> {
    /// Starts at the entry at `at`, which must have `chain`.
    #[must_use]
    pub fn new(file: &'a File, path: &Path, marks: Marks, at: u64, chain: Option<u32>) -> Self {
        Self { file, path: path.to_owned(), marks, at, chain, window: Window::default() }
    }

    /// Where the walk stands: behind the last valid entry.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// The chain that the next entry must have.
    #[must_use]
    pub const fn chain(&self) -> Option<u32> {
        self.chain
    }

    /// The next entry, checked as deep as is said. The walk stays where it is when that is bad.
    ///
    /// # Errors
    /// Where the file cannot be read, or an entry with the right checksums makes no sense.
    pub fn step(&mut self, depth: Depth) -> Result<Step, StoreError> {
        let position = Position { segment: self.marks.segment, at: self.at };
        let bytes = read(&mut self.window, self.file, &self.path, self.at, ENTRY_HEAD_BYTES)?;
        let Some((head, sum)) = EntryHead::decode(bytes, self.marks.seed, position) else {
            return Ok(Step::Bad("no valid entry"));
        };
        if self.chain.is_some_and(|chain| chain != head.chain) {
            return Ok(Step::Bad("the entry does not follow the one before it"));
        }
        let heads_at = self.at + ENTRY_HEAD_BYTES as u64;
        let Some(heads) = self.heads(heads_at, head.heads_bytes as usize, head.heads_checksum)? else {
            return Ok(Step::Bad("bad checksum of the records of an entry"));
        };
        let step = match head.kind {
            Kind::Index => Step::Index(head),
            Kind::Packed => Step::Packed(
                codec::decode(&heads).map_err(|error| damaged(&self.path, heads_at, error.to_string()))?,
            ),
            Kind::Commit => {
                let heads = codec::decode_heads(&heads)
                    .map_err(|error| damaged(&self.path, heads_at, error.to_string()))?;
                if depth == Depth::Blocks
                    && let Some(bad) = self.check_blocks(&head, &heads)?
                {
                    return Ok(bad);
                }
                Step::Commit(head, heads)
            }
        };
        self.at = head.end();
        self.chain = Some(sum);
        Ok(step)
    }

    fn heads(&mut self, at: u64, len: usize, checksum: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let mut heads = Vec::new();
        while heads.len() < len {
            let now = (len - heads.len()).min(WINDOW_BYTES_MAX);
            let bytes = read(&mut self.window, self.file, &self.path, at + heads.len() as u64, now)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            heads.extend_from_slice(bytes);
        }
        Ok((crc32c::crc32c(&heads) == checksum).then_some(heads))
    }

    /// Answers what is wrong with the blocks.
    fn check_blocks(&mut self, head: &EntryHead, heads: &[Head]) -> Result<Option<Step>, StoreError> {
        let mut at = head.blocks_at();
        for published in published(heads) {
            let mut sum = 0;
            let end = at + u64::from(published.bytes);
            while at < end {
                let now = (end - at).min(WINDOW_BYTES_MAX as u64) as usize;
                let bytes = read(&mut self.window, self.file, &self.path, at, now)?;
                if bytes.is_empty() {
                    return Ok(Some(Step::Bad("the file ends within an entry")));
                }
                sum = crc32c::crc32c_append(sum, bytes);
                at += bytes.len() as u64;
            }
            if sum != published.checksum {
                return Ok(Some(Step::Bad("bad checksum of the messages of an entry")));
            }
        }
        let lengths_agree = at == head.blocks_at() + head.blocks_bytes;
        Ok((!lengths_agree).then_some(Step::Bad("the lengths of an entry do not add up")))
    }
}

/// Whether a segment has the head of a valid entry behind `after`, which may be in an earlier segment. Whatever is
/// bad at `after` was synced, then.
///
/// # Errors
/// Where the file cannot be read.
pub fn is_followed(file: &File, path: &Path, head: SegmentHead, after: Position) -> Result<bool, StoreError> {
    let reach = Reach::read(file, head.seed).map_err(io_error("read", path))?;
    let mut window = Window::default();
    let mut at = if after.segment == head.id { after.at + ENTRY_ALIGNMENT } else { ENTRIES_START };
    while at < reach {
        let bytes = read(&mut window, file, path, at, WINDOW_BYTES_MAX)?;
        for start in (0..bytes.len().saturating_sub(ENTRY_HEAD_BYTES - 1)).step_by(ENTRY_ALIGNMENT as usize) {
            let position = Position { segment: head.id, at: at + start as u64 };
            let entry = EntryHead::decode(&bytes[start..], head.seed, position);
            if entry.is_some_and(|(entry, _)| entry.synced > after) {
                return Ok(true);
            }
        }
        if bytes.len() < WINDOW_BYTES_MAX {
            break;
        }
        at += (WINDOW_BYTES_MAX - ENTRY_HEAD_BYTES) as u64;
    }
    Ok(false)
}

/// The publishes among the heads of an entry, in their order.
pub fn published(heads: &[Head]) -> impl Iterator<Item = &PublishedHead> {
    heads.iter().filter_map(|head| match head {
        Head::Published(published) => Some(published),
        Head::Change(_) | Head::Elsewhere(..) => None,
    })
}

fn read<'w>(
    window: &'w mut Window,
    file: &File,
    path: &Path,
    at: u64,
    len: usize,
) -> Result<&'w [u8], StoreError> {
    window.bytes(file, at, len, u64::MAX).map_err(io_error("read", path))
}
