//! Copies live messages out of old files into a pack, so that the files can go.
//!
//! Reads through a reader of its own, beside all others, and holds one piece of at most [`PIECE_BYTES`] in memory, or
//! one message. What is trimmed or removed meanwhile may be copied and does not come back: the pack says only where
//! messages are that are still there when it is committed.
//!
//! A file whose live messages are many runs is emptied in several packs. The other files, small packs that are taken
//! along so that there are not more and more of them, go into this pack whole or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Shared;
use super::file_id::FileId;
use super::pack::{PackWriter, Packed, temporary};
use super::reader::FileReader;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::store::StoreError;

/// Runs of messages that one pack moves: so many are changed in memory at once, between two commits.
pub const PACK_RUNS_MAX: usize = 4096;
/// Bytes of messages that are read at a time.
pub const PIECE_BYTES: usize = 1 << 20;

/// Runs that are looked at while commits wait.
const LOOK_STEPS: usize = 1024;

/// What is to be copied.
#[derive(Debug)]
pub struct Packing {
    /// The pack that is to be made.
    pub pack: FileId,
    /// Files that are to be emptied.
    pub files: Vec<FileId>,
    /// Small packs that go along.
    pub along: Vec<FileId>,
    /// No more is copied once the pack has so many bytes.
    pub bytes_max: u64,
    /// The pack is given up where it would need more bytes of the disk.
    pub space: u64,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// A pack that is durable and does not count yet.
    Packed(Packed),
    /// There was nothing left to be copied.
    Nothing,
    /// There was too little space, and nothing is left of it.
    Full,
    /// Messages of this file cannot be read. Nothing is left of the pack.
    Unreadable(FileId, StoreError),
    /// It was told to stop. Nothing is left of it.
    Stopped,
}

/// Consecutive messages of a file.
#[derive(Clone, Copy, Debug)]
struct Piece {
    topic: TopicId,
    range: OffsetRange,
    file: FileId,
    /// The entry to begin with.
    at: u64,
}

/// Why copying ends early.
enum Trouble {
    Outcome(Outcome),
    Error(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full(_) => Self::Outcome(Outcome::Full),
            error => Self::Error(error),
        }
    }
}

impl Packing {
    /// Copies them.
    ///
    /// # Errors
    /// Where a file cannot be read or written for another reason than damage or space.
    pub fn run(&self, shared: &Arc<Shared>, stop: &AtomicBool) -> Result<Outcome, StoreError> {
        let outcome = match self.copy(shared, stop) {
            Ok(outcome) | Err(Trouble::Outcome(outcome)) => outcome,
            Err(Trouble::Error(error)) => return Err(error),
        };
        if !matches!(outcome, Outcome::Packed(_)) {
            super::remove(&temporary(&shared.journal, self.pack))?;
        }
        Ok(outcome)
    }

    fn copy(&self, shared: &Arc<Shared>, stop: &AtomicBool) -> Result<Outcome, Trouble> {
        let mut reader = FileReader::new(Arc::clone(shared));
        let pieces = self.pieces(shared, &mut reader)?;
        if pieces.is_empty() {
            return Ok(Outcome::Nothing);
        }
        let mut writer = PackWriter::create(&shared.journal, self.pack)?;
        for piece in &pieces {
            let mut from = piece.range.start;
            while let Some(next) = first_held(shared, piece, from) {
                if stop.load(Ordering::Relaxed) {
                    return Ok(Outcome::Stopped);
                }
                let hint = (next == piece.range.start).then_some(piece.at);
                let chunk = reader
                    .read_in(piece.file, piece.topic, next, PIECE_BYTES, hint)
                    .map_err(|error| unreadable(piece.file, error))?;
                // It may be gone since it was looked for.
                from = chunk.as_ref().map_or(next.next(), |chunk| chunk.range().end);
                if let Some(chunk) = chunk {
                    writer.add(piece.topic, &chunk)?;
                }
                if writer.bytes() > self.space {
                    return Ok(Outcome::Full);
                }
            }
            if writer.bytes() > self.bytes_max {
                break;
            }
        }
        if writer.run_count() == 0 {
            return Ok(Outcome::Nothing);
        }
        let mut replaced: Vec<FileId> = self.files.iter().chain(&self.along).copied().collect();
        replaced.sort_unstable();
        Ok(Outcome::Packed(Packed { pack: writer.finish()?, replaced }))
    }

    /// What the files hold, in the order of the pack.
    fn pieces(&self, shared: &Shared, reader: &mut FileReader) -> Result<Vec<Piece>, Trouble> {
        let mut pieces = Vec::new();
        for &file in &self.files {
            self.add_pieces(shared, reader, file, &mut pieces)?;
        }
        for &file in &self.along {
            let before = pieces.len();
            self.add_pieces(shared, reader, file, &mut pieces)?;
            if pieces.len() >= PACK_RUNS_MAX {
                pieces.truncate(before);
                break;
            }
        }
        pieces.sort_unstable_by_key(|piece| (piece.topic, piece.range.start));
        Ok(pieces)
    }

    fn add_pieces(
        &self,
        shared: &Shared,
        reader: &mut FileReader,
        file: FileId,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Trouble> {
        let index = reader.index_of(file).map_err(|error| unreadable(file, error))?;
        let Some(index) = index else { return Ok(()) };
        for (topic, span) in index.topics() {
            let mut from = Some(span.start);
            while let Some(start) = from
                && pieces.len() < PACK_RUNS_MAX
            {
                let range = OffsetRange { start, end: span.end };
                let (held, next) = shared.places().held_by(file, topic, range, LOOK_STEPS);
                pieces.extend(held.into_iter().filter_map(|range| {
                    Some(Piece { topic, range, file, at: index.find(topic, range.start)? })
                }));
                from = next;
            }
        }
        Ok(())
    }
}

/// The first message of a piece, from `from` on, that is still where it was.
fn first_held(shared: &Shared, piece: &Piece, from: Offset) -> Option<Offset> {
    let mut from = Some(from);
    while let Some(start) = from {
        let range = OffsetRange { start, end: piece.range.end };
        let (held, next) = shared.places().held_by(piece.file, piece.topic, range, LOOK_STEPS);
        if let Some(held) = held.first() {
            return Some(held.start);
        }
        from = next;
    }
    None
}

fn unreadable(file: FileId, error: StoreError) -> Trouble {
    match error {
        // Only reading is told here: what cannot be read now stays where it is.
        StoreError::Damaged { .. } | StoreError::Missing { .. } | StoreError::Io { .. } => {
            Trouble::Outcome(Outcome::Unreadable(file, error))
        }
        error => Trouble::Error(error),
    }
}
