//! Blocks with large bodies that are written ahead of the commits that will hold them, a piece at a time.
//!
//! Each piece is a transaction of its own between the commits of others. The commit of such a message then only says
//! whose body it is. It finds the body by where that lies in memory, which the block here keeps as it is; so a part of
//! a block is found as well as the whole. What no commit takes is unused, and is deleted once it is not held here.
//!
//! Blocks take turns, so that a small one does not wait for a large one that came before it.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use rusqlite::Connection;

use super::bodies::{Bodies, LARGE_BYTES_MIN, PART_BYTES, write_part};
use crate::model::message::{MessageBlock, Parts};

/// Whom to tell that a block is written.
type Word = Box<dyn FnOnce() + Send>;

/// A large message of a block.
#[derive(Debug)]
struct Large {
    /// Where its encoded form lies in the block, and where its body.
    encoded: Range<usize>,
    body: Range<usize>,
    /// Its body in the database, once it is begun.
    id: Option<i64>,
    /// Bytes of the body that are written.
    written: usize,
    /// CRC32C of the encoded form up to there.
    sum: u32,
}

impl Large {
    fn is_complete(&self) -> bool {
        self.written == self.body.len()
    }
}

/// A block that is staged.
#[derive(Debug)]
struct Staged {
    block: Bytes,
    large: Vec<Large>,
}

impl Staged {
    /// `None` where no message of the block has a large body.
    fn new(block: Bytes) -> Option<Self> {
        // What is no valid block is refused by its commit.
        let messages = MessageBlock::from_store(block.clone()).ok()?;
        let mut large = Vec::new();
        for index in 0..messages.count() {
            let encoded = messages.position(index)..messages.position(index + 1);
            if encoded.len() < LARGE_BYTES_MIN {
                continue;
            }
            let body_bytes = Parts::read(&block[encoded.clone()], index).ok()?.body.len();
            if body_bytes >= LARGE_BYTES_MIN {
                let body = encoded.end - body_bytes..encoded.end;
                let sum = crc32c::crc32c(&block[encoded.start..body.start]);
                large.push(Large { encoded, body, id: None, written: 0, sum });
            }
        }
        (!large.is_empty()).then_some(Self { block, large })
    }

    /// Whether `block` is the same memory. What is staged is held, so nothing else can lie there meanwhile.
    fn is_of(&self, block: &Bytes) -> bool {
        self.block.as_ptr() == block.as_ptr() && self.block.len() == block.len()
    }
}

/// A body that was written ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WrittenBody {
    /// Its id.
    pub(super) id: i64,
    /// CRC32C of the whole encoded message.
    pub(super) sum: u32,
}

/// The blocks that are staged, and those that wait to be.
#[derive(Default)]
pub(super) struct Staging {
    waiting: VecDeque<(Staged, Word)>,
    complete: Vec<Staged>,
}

impl Staging {
    /// Has a block written by the next [steps](Self::step). `staged` is called then, or now where nothing is to be
    /// written.
    pub(super) fn stage(&mut self, block: Bytes, staged: Word) {
        match Staged::new(block) {
            Some(block) => self.waiting.push_back((block, staged)),
            None => staged(),
        }
    }

    /// Whether there is something to write.
    pub(super) fn is_pending(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes the next piece, of about a part. Answers its bytes. Where that fails nothing of it counts, and `bodies`
    /// is not to be used.
    ///
    /// # Errors
    /// The database's own.
    pub(super) fn step(&mut self, connection: &Connection, bodies: &mut Bodies) -> rusqlite::Result<u64> {
        let Some((Staged { block, large }, _)) = self.waiting.front_mut() else { return Ok(0) };
        let transaction = connection.unchecked_transaction()?;
        let mut bytes = 0;
        while let Some(next) = large.iter_mut().find(|large| !large.is_complete()) {
            let start = next.body.start + next.written;
            let piece = &block[start..next.body.end.min(start + PART_BYTES)];
            if bytes > 0 && bytes + piece.len() > PART_BYTES {
                break;
            }
            let id = match next.id {
                Some(id) => id,
                None => *next.id.insert(bodies.begin(&transaction)?),
            };
            write_part(&transaction, id, (next.written / PART_BYTES) as i64, piece)?;
            next.sum = crc32c::crc32c_append(next.sum, piece);
            next.written += piece.len();
            bytes += piece.len();
        }
        transaction.commit()?;
        if let Some((staged, word)) = self.waiting.pop_front() {
            if staged.large.iter().all(Large::is_complete) {
                self.complete.push(staged);
                word();
            } else {
                self.waiting.push_back((staged, word));
            }
        }
        Ok(bytes as u64)
    }

    /// Writes no more of the block whose piece is next: there is no space for it.
    pub(super) fn give_up(&mut self) {
        if let Some((_, word)) = self.waiting.pop_front() {
            word();
        }
    }

    /// Forgets a block.
    pub(super) fn forget(&mut self, block: &Bytes) {
        self.waiting.retain(|(staged, _)| !staged.is_of(block));
        self.complete.retain(|staged| !staged.is_of(block));
    }

    /// The body that lies at this place in memory, where it was written ahead.
    pub(super) fn find(&self, body: &[u8]) -> Option<WrittenBody> {
        self.blocks().find_map(|staged| {
            let is_it = |large: &&Large| {
                let at = &staged.block[large.body.clone()];
                large.is_complete() && at.as_ptr() == body.as_ptr() && at.len() == body.len()
            };
            let large = staged.large.iter().find(is_it)?;
            Some(WrittenBody { id: large.id?, sum: large.sum })
        })
    }

    /// Bytes of encoded messages of a block whose bodies are written ahead.
    pub(super) fn bytes_of(&self, block: &Bytes) -> u64 {
        let staged = self.blocks().find(|staged| staged.is_of(block));
        let large = staged.into_iter().flat_map(|staged| &staged.large);
        large.filter(|large| large.is_complete()).map(|large| large.encoded.len() as u64).sum()
    }

    /// A body that no message has and that is not held here.
    pub(super) fn unheld(&self, bodies: &Bodies) -> Option<i64> {
        bodies.unused().find(|&body| {
            let mut held = self.blocks().flat_map(|staged| &staged.large);
            !held.any(|large| large.id == Some(body))
        })
    }

    fn blocks(&self) -> impl Iterator<Item = &Staged> {
        self.waiting.iter().map(|(staged, _)| staged).chain(&self.complete)
    }
}
