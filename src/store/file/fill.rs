//! Makes a journal that holds just one state and its messages, with no records to replay.
//!
//! The messages go into packs. Then come an empty segment, where recovery finds that nothing follows, and two
//! checkpoints of the same content, because all there is to know of the store is in them. Without either of them
//! recovery refuses the store: the segment says that it continues something that it does not find.

use std::path::PathBuf;

use super::checkpoint::{CheckpointBody, CheckpointId};
use super::file_id::FileId;
use super::journal::SMALLEST_BYTES;
use super::pack::PackWriter;
use super::places::Places;
use super::segment::{ENTRIES_START, Position, SegmentHead, SegmentId};
use super::{io_error, random_seed};
use crate::disk;
use crate::model::chunk::Chunk;
use crate::model::id::{Epoch, Offset, OffsetRange, TopicId};
use crate::model::snapshot::{Snapshot, SnapshotError};
use crate::store::image::Fill;
use crate::store::manifest::{Manifest, sync_dir};
use crate::store::{Mode, OpenOptions, StoreError};

/// How many checkpoints there are of the same content.
const CHECKPOINT_COUNT: u32 = 2;

/// A journal that is being made.
#[derive(Debug)]
pub struct FileFill {
    journal: PathBuf,
    epoch: Epoch,
    pack_bytes_max: u64,
    snapshot: Snapshot,
    places: Places,
    /// The pack that is being written.
    writer: Option<PackWriter>,
    pack_count: u32,
    /// What comes next lies at or behind this.
    next: (TopicId, Offset),
}

/// Begins a journal in `options.dir` for `options.epoch`, in packs of about `options.segment_bytes`.
///
/// # Errors
/// Where it cannot be written.
pub fn fill(options: &OpenOptions, snapshot: &Snapshot) -> Result<Box<dyn Fill>, StoreError> {
    let journal = options.dir.join("journal");
    disk::ensure_folder(&journal).map_err(io_error("create", &journal))?;
    sync_dir(&options.dir)?;
    Ok(Box::new(FileFill {
        journal,
        epoch: options.epoch,
        pack_bytes_max: options.segment_bytes,
        snapshot: snapshot.clone(),
        places: Places::default(),
        writer: None,
        pack_count: 0,
        next: (TopicId(0), Offset(0)),
    }))
}

impl FileFill {
    fn finish_pack(&mut self) -> Result<(), StoreError> {
        if let Some(writer) = self.writer.take() {
            self.places.add_pack(&writer.finish()?);
        }
        Ok(())
    }

    /// Refuses messages that the snapshot does not have, or that come out of order.
    fn check(&self, topic: TopicId, range: OffsetRange) -> Result<(), SnapshotError> {
        let unknown = SnapshotError::Unknown { kind: "topic", id: u64::from(topic.0) };
        let state = self.snapshot.topics.get(&topic).ok_or(unknown)?;
        let expected = if topic > self.next.0 { state.start } else { self.next.1 };
        if topic < self.next.0 || range.start < expected {
            return Err(SnapshotError::OffsetGap { topic, first: range.start, expected });
        }
        if range.is_empty() || state.next_run(range.start).start != range.start {
            let (start, end) = (state.start, state.end);
            return Err(SnapshotError::NotThere { topic, range, start, end });
        }
        let run = state.next_run(range.start);
        if range.end > run.end {
            return Err(SnapshotError::NotThere { topic, range, start: run.start, end: run.end });
        }
        Ok(())
    }

    fn wrong(&self) -> impl FnOnce(SnapshotError) -> StoreError {
        let path = self.journal.clone();
        move |source| StoreError::Inconsistent { path, source }
    }
}

impl Fill for FileFill {
    fn add(&mut self, topic: TopicId, chunk: &Chunk) -> Result<(), StoreError> {
        self.check(topic, chunk.range()).map_err(self.wrong())?;
        self.next = (topic, chunk.range().end);
        let bytes = chunk.block.bytes().len() as u64;
        if self.writer.as_ref().is_some_and(|writer| writer.bytes() + bytes > self.pack_bytes_max) {
            self.finish_pack()?;
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                self.pack_count += 1;
                none.insert(PackWriter::create(&self.journal, FileId::pack(self.epoch, self.pack_count))?)
            }
        };
        writer.add(topic, chunk)
    }

    fn finish(mut self: Box<Self>) -> Result<Manifest, StoreError> {
        self.finish_pack()?;
        if let Some((topic, expected)) = self.places.first_gap(&self.snapshot) {
            let first = self.snapshot.topics.get(&topic).map_or(expected, |state| state.end);
            return Err(self.wrong()(SnapshotError::OffsetGap { topic, first, expected }));
        }
        let id = SegmentId { epoch: self.epoch, number: 1 };
        let continues = Position { segment: SegmentId { number: 0, ..id }, at: 0 };
        let head = SegmentHead { id, seed: random_seed(&self.journal), continues };
        head.create(&self.journal, SMALLEST_BYTES, 0)?;
        self.places.open_segment(id, ENTRIES_START, SMALLEST_BYTES);
        let body = CheckpointBody {
            position: Position::start_of(id),
            chain: head.seed,
            places: self.places.keep(),
            snapshot: self.snapshot,
        };
        for number in 1..=CHECKPOINT_COUNT {
            body.write(&self.journal, CheckpointId { epoch: self.epoch, number })?;
        }
        Ok(Manifest { epoch: self.epoch, mode: Mode::File, sealed: Vec::new(), database: None })
    }
}
