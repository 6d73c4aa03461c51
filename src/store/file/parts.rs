//! A chunk that is being put together from blocks and parts of blocks.

use std::path::Path;

use bytes::Bytes;

use super::damaged;
use crate::model::chunk::{Chunk, Origin, Stamp};
use crate::model::id::{Offset, OffsetRange, Sequence};
use crate::model::message::MessageBlock;
use crate::store::StoreError;
use crate::store::codec::PublishedHead;

/// What there is of a chunk.
#[derive(Debug, Default)]
pub struct Parts {
    /// Messages that were copied into it.
    pub pieces: Vec<u8>,
    /// The only block that there is, not copied.
    pub whole: Option<Bytes>,
    stamps: Vec<Stamp>,
    /// How many messages there are.
    pub count: u64,
}

impl Parts {
    /// Bytes of messages so far.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.pieces.len() + self.whole.as_ref().map_or(0, Bytes::len)
    }

    /// Notes that messages of a publish were added: `count` of them, behind the `skipped` first ones.
    pub fn add(&mut self, head: &PublishedHead, skipped: u64, count: u64) {
        let (wanted, mut passed) = (skipped..skipped + count, 0);
        for (in_a_row, origin) in head.source.origins(head.count) {
            let (first, end) = (wanted.start.max(passed), wanted.end.min(passed + u64::from(in_a_row)));
            if first < end {
                let at_first = |origin: Origin| Origin {
                    sequence: Sequence(origin.sequence.0 + (first - passed)),
                    ..origin
                };
                let (count, origin) = ((end - first) as u32, origin.map(at_first));
                self.stamps.push(Stamp { count, published_at: head.at, origin });
            }
            passed += u64::from(in_a_row);
        }
        self.count += count;
    }

    /// Adds the wanted messages of a block, as many as fit; one at least where there is none yet. Answers how many.
    pub fn take_part(
        &mut self,
        block: &MessageBlock,
        head: &PublishedHead,
        first: Offset,
        wanted: OffsetRange,
        bytes_max: usize,
    ) -> u64 {
        let (start, end_max) = ((wanted.start.0 - first.0) as usize, (wanted.end.0 - first.0) as usize);
        let room = bytes_max.saturating_sub(self.byte_len());
        let mut end = if self.count == 0 { start + 1 } else { start };
        while end < end_max.min(block.count()) && block.byte_len(start, end + 1) <= room {
            end += 1;
        }
        if end > start {
            if let Some(whole) = self.whole.take() {
                self.pieces.extend_from_slice(&whole);
            }
            self.pieces.extend_from_slice(&block.bytes()[block.position(start)..block.position(end)]);
            self.add(head, start as u64, (end - start) as u64);
        }
        (end - start) as u64
    }

    /// Makes the chunk; the last messages came from `at` in the file.
    ///
    /// # Errors
    /// Where the blocks do not have as many messages as their heads say.
    pub fn finish(self, first: Offset, path: &Path, at: u64) -> Result<Chunk, StoreError> {
        let (count, stamps) = (self.count, self.stamps);
        let bytes = self.whole.unwrap_or_else(|| self.pieces.into_boxed_slice().into());
        let block =
            MessageBlock::from_store(bytes).ok().filter(|block| block.count() as u64 == count).ok_or_else(
                || damaged(path, at, "the messages of an entry are not as many as its records say"),
            )?;
        Ok(Chunk { first, block, stamps })
    }
}
