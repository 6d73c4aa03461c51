//! What a journal holds at one commit: of a store that is served, and of one that nobody serves.
//!
//! An image has its own copy of where the messages are, and files open for itself. While one of a living store is
//! there, the store removes none of the files that the image reads; what is trimmed, removed or copied out of them
//! stays in them. Nothing is copied to make an image but places.

use std::path::Path;
use std::sync::Arc;

use super::file_id::FileId;
use super::places::Places;
use super::reader::FileReader;
use super::{Shared, damaged, recovery};
use crate::model::chunk::Chunk;
use crate::model::id::{Offset, TopicId};
use crate::model::snapshot::Snapshot;
use crate::store::image::Image;
use crate::store::manifest::Manifest;
use crate::store::{Reader, StoreError};

/// Files of a store that is served, which are not removed while this is there.
#[derive(Debug)]
pub struct Pinned {
    store: Arc<Shared>,
    files: Vec<FileId>,
}

impl Pinned {
    /// Keeps these files from being removed.
    #[must_use]
    pub fn new(store: &Arc<Shared>, files: Vec<FileId>) -> Self {
        store.places_mut().pin(&files);
        Self { store: Arc::clone(store), files }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.store.places_mut().unpin(&self.files);
    }
}

/// What a journal held at one commit.
#[derive(Debug)]
pub struct FileImage {
    snapshot: Snapshot,
    reader: FileReader,
    shared: Arc<Shared>,
    /// Of a store that is served.
    _pinned: Option<Pinned>,
}

impl FileImage {
    /// What a store that is served holds now, with this state.
    #[must_use]
    pub fn of(store: &Arc<Shared>, snapshot: Snapshot) -> Self {
        let places = store.places().clone();
        let needed = places.files().iter().filter(|(_, place)| place.held > 0).map(|(file, _)| file);
        let pinned = Pinned::new(store, needed.collect());
        Self::new(&store.journal, places, snapshot, Some(pinned))
    }

    /// What was put together from segments and packs.
    pub(super) fn gleaned(journal: &Path, places: Places, snapshot: Snapshot) -> Self {
        Self::new(journal, places, snapshot, None)
    }

    fn new(journal: &Path, places: Places, snapshot: Snapshot, pinned: Option<Pinned>) -> Self {
        let shared = Arc::new(Shared::new(journal.to_owned(), places));
        Self { snapshot, reader: FileReader::new(Arc::clone(&shared)), shared, _pinned: pinned }
    }
}

/// What the journal in a shared directory holds that `manifest` names and nobody serves. Changes nothing, not by a byte.
///
/// A message that is damaged or whose file is missing is an error where it is read.
///
/// # Errors
/// Where it is damaged where it must be replayed, or of a newer format.
pub fn look(dir: &Path, manifest: &Manifest) -> Result<Box<dyn Image>, StoreError> {
    let recovered = recovery::look(dir, manifest)?;
    Ok(Box::new(FileImage::new(&dir.join("journal"), recovered.places, recovered.snapshot, None)))
}

/// As [`look`], of a journal that may be damaged, with the damage behind which nothing counts.
///
/// # Errors
/// Where nothing can be read.
pub(super) fn look_at_what_is_left(
    dir: &Path,
    manifest: &Manifest,
) -> Result<(FileImage, Option<StoreError>), StoreError> {
    let (recovered, cut_off) = recovery::look_at_what_is_left(dir, manifest)?;
    let image = FileImage::new(&dir.join("journal"), recovered.places, recovered.snapshot, None);
    Ok((image, cut_off))
}

impl Image for FileImage {
    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn read(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, StoreError> {
        let chunk = self.reader.read(topic, from, bytes_max)?;
        let state = self.snapshot.topics.get(&topic);
        if chunk.is_none() && state.and_then(|state| state.run_at(from)).is_some() {
            return Err(damaged(
                &self.shared.journal,
                0,
                format!("message {from} of topic {topic} is nowhere"),
            ));
        }
        Ok(chunk)
    }
}
