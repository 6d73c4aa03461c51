//! Whole stores: what one holds at one moment, and making one that holds just that.
//!
//! Backups, conversions between the modes, and everything that looks at a store nobody serves go through here, so
//! none of them knows how a mode keeps its records. An image is read by the message, topic after topic; a new store
//! is filled in that same order.

use std::path::Path;

use super::course::Course;
use super::manifest::Manifest;
use super::{Mode, OpenOptions, StoreError, database, file};
use crate::model::chunk::Chunk;
use crate::model::id::{Offset, TopicId};
use crate::model::snapshot::{Snapshot, SnapshotError};

/// What a store held at one commit. It stays readable until it is dropped, whatever is committed, trimmed and removed
/// meanwhile; what it needs is kept on the disk for as long.
pub trait Image: Send {
    /// The state.
    fn snapshot(&self) -> &Snapshot;

    /// Messages of `topic` from offset `from` on: consecutive, the first one at `from`, up to `bytes_max` bytes of
    /// encoded messages but at least one message. `None` where the snapshot has no message there.
    ///
    /// # Errors
    /// Where the store cannot be read or is damaged there; other messages may still be readable.
    fn read(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, StoreError>;
}

/// A store that is being made. It counts only once it is finished; one that is dropped leaves files of its epoch that
/// no manifest names.
pub trait Fill: Send {
    /// Adds messages that the snapshot has: topics in the order of their ids, each from its start to its end, with gaps
    /// only where the snapshot has them.
    ///
    /// # Errors
    /// Where they cannot be written. [`StoreError::Full`] where there is no space: the store is then of no use.
    fn add(&mut self, topic: TopicId, chunk: &Chunk) -> Result<(), StoreError>;

    /// Makes everything durable. What is left to do is to [write](Manifest::write) the manifest that
    /// this answers: from then on the new store counts, and none before it.
    ///
    /// # Errors
    /// Where something cannot be written, or the snapshot has messages that were not added.
    fn finish(self: Box<Self>) -> Result<Manifest, StoreError>;
}

/// Bytes of messages that are read at a time.
pub const READ_BYTES: usize = 1 << 20;

/// What the store in `dir` holds that `manifest` names: one that nobody serves. Changes nothing, not by a byte.
///
/// # Errors
/// Where it is missing, damaged or of a newer format, or belongs to another process.
pub fn look(dir: &Path, manifest: &Manifest) -> Result<Box<dyn Image>, StoreError> {
    match manifest.mode {
        Mode::Database => database::look(dir, manifest),
        Mode::File => file::look(dir, manifest),
    }
}

/// Begins a new store in the mode and for the epoch of `options`, with this state and its messages still to come.
///
/// # Errors
/// Where it cannot be written.
pub fn fill(options: &OpenOptions, snapshot: &Snapshot) -> Result<Box<dyn Fill>, StoreError> {
    match options.mode {
        Mode::Database => database::fill(options, snapshot),
        Mode::File => file::fill(options, snapshot),
    }
}

/// Hands all messages of an image to `take`, in the order in which a store is [filled](Fill::add).
///
/// # Errors
/// That of the first read that fails, or of `take`.
pub fn walk<E: From<StoreError>>(
    image: &mut dyn Image,
    mut take: impl FnMut(TopicId, &Chunk) -> Result<(), E>,
) -> Result<(), E> {
    let mut course = Course::new(image.snapshot());
    while let Some((topic, run)) = course.next() {
        let missing = || StoreError::Inconsistent {
            path: "the store".into(),
            source: SnapshotError::NotThere { topic, range: run, start: run.start, end: run.start },
        };
        let chunk = image.read(topic, run.start, READ_BYTES)?.ok_or_else(missing)?;
        let wrong = |source| StoreError::Inconsistent { path: "the store".into(), source };
        course.pass(topic, chunk.range()).map_err(wrong)?;
        take(topic, &chunk)?;
    }
    Ok(())
}
