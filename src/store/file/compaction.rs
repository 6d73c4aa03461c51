//! Which files are emptied, by copying what they still hold into a pack, and when.
//!
//! A file is a candidate when it is *sparse*: a pack of what it holds would be less than half as large. Work begins
//! when packing all candidates would give back a segment, or anything where space is short. So in the files that are
//! not being written, what nobody needs is at most as much as what they hold, one segment, and what waits to be
//! removed. A pack is at most as large as a segment, but for a single file that holds more. The emptiest files come
//! first: they give back most for what is copied.
//!
//! Packs smaller than a part of a segment go along with every pack that is made, or each of them would stay with its
//! few messages for as long as one of these does.
//!
//! Copying takes space before it gives any back. It leaves alone what a full disk keeps for acks and checkpoints, but
//! for a part; where even the emptiest candidate does not fit into that, it waits.

use std::time::{Duration, Instant};

use super::file_id::FileId;
use super::files::{Copies, FilePlace, PACK_BYTES_MIN};
use super::journal::{Journal, SMALLEST_BYTES};
use super::packing::{Outcome, Packing};
use super::preallocation::FREE_BYTES;
use super::upkeep::Pressure;
use super::{Shared, io_error, remove};
use crate::disk;
use crate::model::id::Epoch;
use crate::store::StoreError;

/// Files that one pack is made of.
pub const PACKED_FILES_MAX: usize = 64;
/// A pack that is smaller than this part of a segment goes along with the next one.
pub const SMALL_PACK_FRACTION: u64 = 4;
/// Bytes of the disk that copying leaves alone.
pub const UNPACKED_BYTES: u64 = FREE_BYTES / 2;
/// How long copying waits where there was no space for it, or nothing to be copied.
pub const COMPACTION_WAIT: Duration = Duration::from_secs(10);

/// When the next pack is made, and of what.
#[derive(Debug)]
pub struct Compaction {
    epoch: Epoch,
    segment_bytes: u64,
    not_before: Option<Instant>,
}

impl Compaction {
    /// Nothing is packed yet in this epoch.
    #[must_use]
    pub fn new(epoch: Epoch, segment_bytes: u64) -> Self {
        Self { epoch, segment_bytes: segment_bytes.max(SMALLEST_BYTES), not_before: None }
    }

    /// Whether a pack is to be made now.
    #[must_use]
    pub fn is_due(&self, shared: &Shared, pressure: Pressure) -> bool {
        let garbage = shared.places().files().sparse_garbage();
        let enough = match pressure {
            Pressure::Low => self.segment_bytes,
            Pressure::High => 1,
        };
        garbage >= enough && self.not_before.is_none_or(|not_before| not_before <= Instant::now())
    }

    /// What is to be packed. `None` where that has to wait.
    ///
    /// # Errors
    /// Where the system does not say how much space there is.
    pub fn choose(&mut self, shared: &Shared) -> Result<Option<Packing>, StoreError> {
        let free =
            disk::free(&shared.journal).map_err(io_error("ask for the free space of", &shared.journal))?;
        let space = free.saturating_sub(UNPACKED_BYTES);
        let places = shared.places();
        let is_free = |file: &FileId| !shared.pins.hold(*file);
        let mut sparse: Vec<(FileId, FilePlace)> =
            places.files().sparse().filter(|(file, _)| is_free(file)).collect();
        sparse.sort_unstable_by_key(|(_, place)| place.held);
        let mut bytes = PACK_BYTES_MIN;
        let mut files = Vec::new();
        for (file, place) in sparse {
            let with = bytes + place.held;
            let is_enough = with > self.segment_bytes || files.len() == PACKED_FILES_MAX;
            if with > space || (is_enough && !files.is_empty()) {
                break;
            }
            bytes = with;
            files.push(file);
        }
        if files.is_empty() {
            tracing::debug!("no file can be packed now: an image needs it, or there is no space");
            self.wait();
            return Ok(None);
        }
        let mut along = Vec::new();
        for (file, place) in places.files().iter() {
            let with = bytes + place.held;
            let is_small = place.bytes < self.segment_bytes / SMALL_PACK_FRACTION;
            let can_go = place.held > 0 && place.copies == Copies::Possible && is_free(&file);
            let is_taken = file.segment().is_some() || files.contains(&file);
            if is_small && can_go && !is_taken && with <= space.min(self.segment_bytes) {
                bytes = with;
                along.push(file);
            }
            if files.len() + along.len() >= PACKED_FILES_MAX {
                break;
            }
        }
        let pack = shared.new_pack(self.epoch);
        Ok(Some(Packing { pack, files, along, bytes_max: self.segment_bytes, space }))
    }

    /// Makes a pack count that was made. Answers the bytes that the journal grew by.
    ///
    /// # Errors
    /// Where the journal cannot be written, or a pack that does not count not be removed.
    pub fn note(
        &mut self,
        pack: FileId,
        outcome: Outcome,
        shared: &Shared,
        journal: &mut Journal,
    ) -> Result<u64, StoreError> {
        match outcome {
            Outcome::Packed(packed) => match journal.pack(&packed) {
                Ok(bytes) => {
                    let (count, size) = (packed.replaced.len(), packed.pack.bytes);
                    tracing::debug!("what {count} files held is in a pack of {size} bytes");
                    return Ok(bytes);
                }
                Err(StoreError::Full(_)) => {
                    remove(&pack.path(&shared.journal))?;
                    self.wait();
                }
                Err(error) => return Err(error),
            },
            Outcome::Nothing | Outcome::Full => self.wait(),
            Outcome::Unreadable(file, error) => {
                tracing::warn!(%error, "its file cannot be made smaller");
                shared.places_mut().exempt(file);
            }
            Outcome::Stopped => {}
        }
        Ok(0)
    }

    fn wait(&mut self) {
        self.not_before = Some(Instant::now() + COMPACTION_WAIT);
    }
}
