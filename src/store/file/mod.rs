//! The file mode of the store: one append-only journal for all topics.
//!
//! # Layout
//!
//! ```text
//! journal/<epoch>-<number>.log         segments: entries, one for each commit, then the segment's index
//! journal/<epoch>-<number>.pack        packs: messages that were copied out of older files, then the pack's index
//! journal/checkpoint-<epoch>-<number>  the state at one position, the two newest are kept
//! journal/*.new                        files that are being made
//! manifest/<epoch>                     what that epoch accepts of the epochs before it
//! ```
//!
//! Each file's format stands at the head of the module that owns it. An epoch writes only to files of its own name,
//! so late bytes of a master that was thought dead land where nobody looks, whatever
//! [`Predecessor`](super::Predecessor) says. Memory and recovery depend on the number of topics and segments, and
//! on what was committed since the last checkpoint, not on the backlog.
//!
//! A few messages that stay in old files are copied forward into packs, so that the files can go.

pub mod block_pack;
pub mod checkpoint;
pub mod compaction;
pub mod entry;
pub mod file_id;
pub mod files;
pub mod fill;
pub mod folder;
mod gleaning;
pub mod image;
pub mod index;
pub mod journal;
mod lineage;
pub mod open_files;
pub mod pack;
pub mod packing;
pub mod parts;
pub mod places;
pub mod preallocation;
pub mod reader;
pub mod recovery;
pub mod removal;
pub mod replayed_segment;
pub mod segment;
pub mod staging;
pub mod upkeep;
pub mod walk;
pub mod window;
pub mod worker;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use self::checkpoint::CheckpointBody;
use self::file_id::FileId;
pub use self::fill::fill;
use self::folder::Folder;
use self::image::FileImage;
pub use self::image::look;
use self::index::SegmentIndex;
use self::journal::Journal;
use self::open_files::OpenFiles;
use self::pack::PackHead;
use self::places::Places;
use self::reader::FileReader;
use self::segment::{SegmentHead, SegmentId};
use self::staging::Staging;
use self::upkeep::{Pressure, Upkeep};
use self::worker::{Progress, Worker};
use super::image::Image;
use super::manifest::{Manifest, sync_dir};
use super::survey::{Damage, Lost};
use super::{FenceCheck, Fenced, OpenOptions, Reader, Store, StoreError};
use crate::disk;
use crate::model::free_min::FreeMin;
use crate::model::id::Epoch;
use crate::model::record::Record;
use crate::model::snapshot::Snapshot;

/// The folder of the file mode in the shared directory.
pub const FOLDER: &str = "journal";
/// Bytes of segment indexes that all readers together keep in memory.
pub const INDEX_CACHE_BYTES: u64 = 16 << 20;

/// Indexes that they keep at most, however small: looking for one passes over those that were used later.
pub const INDEXES_MAX: usize = 1024;

/// Checks that this version can read the newest files of the journal in a shared directory. Changes nothing.
///
/// # Errors
/// Where one is of a newer format, or cannot be read.
pub(super) fn check(dir: &Path) -> Result<(), StoreError> {
    let journal = dir.join("journal");
    let folder = Folder::list(&journal)?;
    if let Some(&newest) = folder.segments.last() {
        let path = newest.path(&journal);
        let file = disk::open(&path).map_err(io_error("open", &path))?;
        SegmentHead::read(&file, &path, newest)?;
    }
    if let Some(&newest) = folder.packs.last() {
        let path = newest.path(&journal);
        let file = disk::open(&path).map_err(io_error("open", &path))?;
        match PackHead::read(&file, &path, newest) {
            // It may be one that does not count; one that does is missed where it is read.
            Err(StoreError::Damaged { .. }) => {}
            read => drop(read?),
        }
    }
    folder.checkpoints.last().map_or(Ok(()), |newest| CheckpointBody::check_format(&journal, *newest))
}

/// Checks that there is a segment of an epoch that had one: its last one stays for as long as its manifest is the newest.
///
/// # Errors
/// [`StoreError::Missing`], and where the folder cannot be listed.
pub(super) fn check_begun(dir: &Path, epoch: Epoch) -> Result<(), StoreError> {
    let journal = dir.join(FOLDER);
    let first = SegmentId { epoch, number: 1 };
    let has_segments =
        Folder::list(&journal)?.segments.range(first..).next().is_some_and(|id| id.epoch == epoch);
    if has_segments { Ok(()) } else { Err(StoreError::Missing { path: first.path(&journal) }) }
}

/// What is wrong in the files of a journal beside its messages: see [`survey`](super::survey).
///
/// # Errors
/// Where one is of a newer format.
pub fn inspect_files(dir: &Path) -> Result<Vec<Damage>, StoreError> {
    let journal = dir.join(FOLDER);
    let mut damages = Vec::new();
    for id in Folder::list(&journal)?.checkpoints {
        let damage = match CheckpointBody::read(&journal, id) {
            Ok(Some(_)) => continue,
            Ok(None) => Damage {
                path: id.path(&journal),
                position: None,
                what: "the checkpoint is not what was written".to_owned(),
                lost: Lost::Nothing,
            },
            Err(error @ StoreError::NewerFormat { .. }) => return Err(error),
            Err(error) => Damage::of(dir, &error),
        };
        damages.push(damage);
    }
    Ok(damages)
}

/// What counts of a journal whose manifest cannot be read: see [`guess`](super::guess). `None` where there is nothing.
///
/// # Errors
/// Where the folder cannot be read, or a file is of a newer format.
pub(super) fn guess(dir: &Path, older: Option<&Manifest>) -> Result<Option<Manifest>, StoreError> {
    lineage::guess(dir, older)
}

/// What is left in a journal that may be damaged, and what is not: see [`survey`](super::survey).
///
/// # Errors
/// Where nothing can be read.
pub fn look_at_what_is_left(
    dir: &Path,
    manifest: &Manifest,
) -> Result<(Box<dyn Image>, Vec<Damage>), StoreError> {
    let (image, cut_off) = match image::look_at_what_is_left(dir, manifest) {
        Ok(looked) => looked,
        Err(error) => return gleaning::look(dir, manifest, error),
    };
    let damage = |error: StoreError| {
        let damage = Damage::of(dir, &error);
        let what = format!("{}; what was committed behind it is lost", damage.what);
        Damage { what, lost: Lost::Unknown, ..damage }
    };
    Ok((Box::new(image), cut_off.map(damage).into_iter().collect()))
}

/// Recovers the journal in `options.dir`, writes the manifest of the epoch, and makes its first segment.
///
/// # Errors
/// Where the journal is damaged or incomplete, a higher epoch exists, or the files cannot be read and written.
pub fn open(options: &OpenOptions) -> Result<(Box<dyn Store>, Snapshot), StoreError> {
    let (store, snapshot) = open_file(options)?;
    Ok((Box::new(store), snapshot))
}

fn open_file(options: &OpenOptions) -> Result<(FileStore, Snapshot), StoreError> {
    let journal = options.dir.join("journal");
    let recovered = recovery::recover(options)?;
    recovered.manifest.write(&options.dir)?;
    match Manifest::newest(&options.dir, options.epoch)? {
        Some(manifest) if manifest == recovered.manifest => {}
        _ => return Err(Fenced::Superseded(options.epoch).into()),
    }
    disk::ensure_folder(&journal).map_err(io_error("create", &journal))?;
    sync_dir(&options.dir)?;
    let id = SegmentId { epoch: options.epoch, number: 1 };
    let head = SegmentHead { id, seed: random_seed(&journal), continues: recovered.end };
    let shared = Arc::new(Shared::new(journal, recovered.places));
    let upkeep = Upkeep::new(options, recovered.checkpoint, recovered.checkpoint_bytes, recovered.tail_bytes);
    let journal = Journal::start(Arc::clone(&shared), head, options.segment_bytes, upkeep.reserve_bytes())?;
    let worker = Worker::start(&shared)?;
    let staging = Staging::start(&shared, options.epoch)?;
    Ok((FileStore { shared, journal, upkeep, worker, staging }, recovered.snapshot))
}

/// A store in file mode.
#[derive(Debug)]
pub struct FileStore {
    shared: Arc<Shared>,
    journal: Journal,
    upkeep: Upkeep,
    worker: Worker,
    staging: Staging,
}

impl FileStore {
    /// Refuses to go on where something failed before, in the background too; that error is told once.
    fn check(&mut self) -> Result<(), StoreError> {
        self.journal.check()?;
        if let Some(failed) = self.worker.failure() {
            self.journal.fail();
            return Err(failed);
        }
        let staging = self.staging.check(&self.shared.journal);
        if staging.is_err() {
            self.journal.fail();
        }
        staging
    }
}

impl Store for FileStore {
    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.check()?;
        if records.is_empty() {
            return Ok(());
        }
        let committed =
            self.staging.complete(records).and_then(|complete| self.journal.commit(records, &complete));
        if !matches!(committed, Ok(_) | Err(StoreError::Full(_))) {
            self.journal.fail();
        }
        self.upkeep.committed(committed?);
        Ok(())
    }

    fn stage(&mut self, block: Bytes, staged: Box<dyn FnOnce() + Send>) {
        self.staging.stage(&self.shared, block, staged);
    }

    fn staged_bytes(&self, block: &Bytes) -> u64 {
        self.staging.bytes_of(block)
    }

    fn unstage(&mut self, block: &Bytes) -> Result<(), StoreError> {
        self.check()?;
        self.staging.forget(block)
    }

    fn space(&mut self, free_min: FreeMin) -> Result<u64, StoreError> {
        let space = self.journal.space(self.upkeep.reserve_bytes(), free_min)?;
        self.upkeep.be_under(if space == 0 { Pressure::High } else { Pressure::Low });
        Ok(space)
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(FileReader::new(Arc::clone(&self.shared))))
    }

    fn image(&mut self, snapshot: &mut dyn FnMut() -> Snapshot) -> Result<Box<dyn Image>, StoreError> {
        self.check()?;
        Ok(Box::new(FileImage::of(&self.shared, snapshot())))
    }

    fn maintenance_due(&self) -> bool {
        self.upkeep.is_due(&self.worker, &self.shared)
    }

    fn maintenance_under_way(&self) -> bool {
        self.worker.progress() == Progress::UnderWay
    }

    fn maintain(
        &mut self,
        snapshot: &mut dyn FnMut() -> Snapshot,
        fence: FenceCheck<'_>,
    ) -> Result<(), StoreError> {
        self.check()?;
        let Self { shared, journal, upkeep, worker, .. } = self;
        let done = fence()
            .map_err(StoreError::from)
            .and_then(|()| upkeep.step(worker, shared, journal, snapshot, fence));
        if done.is_err() {
            journal.fail();
        }
        done
    }

    fn make_space(&mut self, fence: FenceCheck<'_>) -> Result<(), StoreError> {
        self.check()?;
        let Self { shared, journal, upkeep, worker, .. } = self;
        let done = upkeep.make_space(worker, shared, journal, fence);
        if done.is_err() {
            journal.fail();
        }
        done
    }

    fn leave(mut self: Box<Self>, fence: FenceCheck<'_>) -> Result<(), StoreError> {
        self.check()?;
        fence()?;
        let Self { journal, worker, staging, .. } = *self;
        staging.end();
        // What the thread has done counts for nothing that the next epoch does not find by itself.
        worker.end()?;
        journal.end_preparing();
        Ok(())
    }

    fn close(
        mut self: Box<Self>,
        snapshot: &mut dyn FnMut() -> Snapshot,
        fence: FenceCheck<'_>,
    ) -> Result<(), StoreError> {
        self.check()?;
        fence()?;
        let Self { shared, mut journal, upkeep, worker, staging } = *self;
        staging.end();
        upkeep.close(worker, &shared, &mut journal, snapshot, fence)?;
        journal.end_preparing();
        Ok(())
    }
}

/// What the writer and the readers of a store share.
#[derive(Debug)]
pub struct Shared {
    journal: PathBuf,
    places: RwLock<Places>,
    indexes: Mutex<IndexCache>,
    open: OpenFiles,
    /// Packs begun in this epoch.
    packs: AtomicU32,
}

impl Shared {
    fn new(journal: PathBuf, places: Places) -> Self {
        let (places, indexes) = (RwLock::new(places), Mutex::new(IndexCache::default()));
        let (open, packs) = (OpenFiles::default(), AtomicU32::new(0));
        Self { journal, places, indexes, open, packs }
    }

    /// A pack of the own epoch that there was none of.
    fn new_pack(&self, epoch: Epoch) -> FileId {
        FileId::pack(epoch, self.packs.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn places(&self) -> RwLockReadGuard<'_, Places> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn places_mut(&self) -> RwLockWriteGuard<'_, Places> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn indexes(&self) -> MutexGuard<'_, IndexCache> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_index(&self, file: FileId, index: Arc<SegmentIndex>) {
        self.indexes().insert(file, index);
    }

    fn forget(&self, file: FileId) {
        self.places_mut().forget(file);
        self.indexes().forget(file);
        self.open.close(file);
    }
}

/// Indexes of full files that were used last.
#[derive(Debug, Default)]
struct IndexCache {
    /// Last used first.
    indexes: Vec<(FileId, Arc<SegmentIndex>)>,
}

impl IndexCache {
    fn find(&mut self, file: FileId) -> Option<Arc<SegmentIndex>> {
        let at = self.indexes.iter().position(|(id, _)| *id == file)?;
        self.indexes[..=at].rotate_right(1);
        Some(Arc::clone(&self.indexes[0].1))
    }

    fn insert(&mut self, file: FileId, index: Arc<SegmentIndex>) {
        self.forget(file);
        self.indexes.insert(0, (file, index));
        let mut bytes = 0;
        let fitting = self.indexes.iter().take(INDEXES_MAX).take_while(|(_, index)| {
            bytes += index.memory_bytes();
            bytes <= INDEX_CACHE_BYTES
        });
        let kept = fitting.count().max(1);
        self.indexes.truncate(kept);
    }

    fn forget(&mut self, file: FileId) {
        self.indexes.retain(|(id, _)| *id != file);
    }
}

/// What the checksums of the entries of a file in the folder `journal` begin with, so that bytes of another file are
/// never taken for one.
fn random_seed(journal: &Path) -> u32 {
    disk::world::chance(journal) as u32
}

/// Makes a system error one of the store.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

fn damaged(path: &Path, position: u64, what: impl Into<String>) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), position, what: what.into() }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<(), StoreError> {
    match disk::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether the error says that there is no space left.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What the first epoch of a store in `dir` is opened with.
#[cfg(test)]
fn first_options(dir: &Path, segment_bytes: u64) -> OpenOptions {
    let (dir, predecessors) = (dir.to_owned(), super::Predecessors::default());
    OpenOptions { dir, mode: super::Mode::File, epoch: Epoch(1), predecessors, segment_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{OffsetRange, TopicId};

    /// Each large message has a file of its own with an index of next to no bytes. 200,000 of these were kept, and every
    /// read looked through them.
    #[test]
    fn small_indexes_are_not_kept_without_end() {
        let mut cache = IndexCache::default();
        let file = |number| FileId::pack(Epoch(1), number);
        for number in 1..=2 * INDEXES_MAX as u32 {
            let mut index = SegmentIndex::default();
            index.add(TopicId(0), OffsetRange::new(0, 1), 4096, 1 << 20);
            cache.insert(file(number), Arc::new(index));
            assert!(cache.find(file(1)).is_some(), "used last");
        }
        assert_eq!(cache.indexes.len(), INDEXES_MAX);
        assert!(cache.find(file(2)).is_none());
    }
}
