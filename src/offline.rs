//! Work on stores that no node serves: looking at one, converting one, making one.
//!
//! Whoever works on a store holds its lock, so that no node begins to serve it meanwhile; what writes claims an epoch
//! as a master does. A store that is made is none until it is complete: its files come first and its control file
//! last, and a directory that has files and no control file is refused by every node.
//!
//! Knows nothing of connections and clients. Nothing here runs in a node that serves.

mod verification;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;
pub use verification::{Surveyed, verify};

use crate::ha::block::Address;
use crate::ha::claim::{Candidate, ClaimError, FIRST_EPOCH, ReleaseError, claim, found};
use crate::ha::control::{ControlError, EPOCH_MAX};
use crate::ha::directory::{Create, Directory, DirectoryError, status};
use crate::ha::fence::{FenceError, FenceRead};
use crate::ha::identity::{Identity, IdentityError};
use crate::ha::lock::{LockAttempt, LockError, ReadLock, ReadLockAttempt, StoreLock};
use crate::ha::view::{Ended, View};
use crate::model::id::Epoch;
use crate::model::name::{Name, NameError};
use crate::model::time::Timestamp;
use crate::store::archive::{ArchiveError, Reader};
use crate::store::check::check_begun;
pub use crate::store::conversion::Done;
use crate::store::conversion::{self, Old, Watch};
use crate::store::digest::Digest;
use crate::store::image::{self, Fill, Image};
use crate::store::manifest::Manifest;
use crate::store::source::Source;
pub use crate::store::survey::{Damage, Lost};
use crate::store::{Fenced, Mode, OpenOptions, Predecessors, StoreError};

/// Bytes of a segment, or of a log between checkpoints, while a store is made.
const SEGMENT_BYTES: u64 = 64 << 20;
/// The name of whoever works on a store that no node serves, in the control file.
const NODE: &str = "baton-store";

/// Why nothing was done, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// A node has the lock.
    #[error("{} is locked: a node serves this store; stop both nodes, or let this command ask the master with --server where it can", .0.display())]
    Served(PathBuf),
    /// An archive is named where a directory is needed.
    #[error(
        "{} is a file: of a backup in an archive every checksum is checked when it is read, by \
         `baton store restore {} NEW`, or by `baton store dump {}`", .0.display(), .0.display(), .0.display()
    )]
    IsFile(PathBuf),
    /// There is no store in the directory.
    #[error("{} holds no store: name the shared directory, or that of a backup", .0.display())]
    NoStore(PathBuf),
    /// A store is to be made where there is one.
    #[error("{} holds a store already, and nothing is overwritten: name a directory that is missing or empty", .0.display())]
    Exists(PathBuf),
    /// A store is to be made where there is something else.
    #[error(
        "{} holds {name:?}, and nothing is overwritten: name a directory that is missing or empty, or empty this one if \
         that is left of an attempt that was broken off",
        path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the names in it.
        name: String,
    },
    /// The last master may still write.
    #[error(
        "epoch {0} may still be alive on another host: run this there, or start the nodes and stop them cleanly first"
    )]
    MayWrite(Epoch),
    /// The store has the mode already.
    #[error("the store is in {0} mode already")]
    HasMode(Mode),
    /// There is too little space. Nothing was done.
    #[error("this takes {needed} bytes of free space, and {free} are free in {}; make space and try again", dir.display())]
    NoSpace {
        /// Where.
        dir: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The space has run out while a store was made. What was made of it is removed.
    #[error("no space left in {}: make space there and try again, nothing of the new store is left", .0.display())]
    Full(PathBuf),
    /// The directory is not to be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The lock cannot be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The control file cannot be used.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No epoch could be claimed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The epoch could not be released.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// This process cannot be told apart from others.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// A store that is looked at. Nobody serves it for as long as this lives.
pub struct Looked {
    /// What it holds.
    pub image: Box<dyn Image>,
    /// What counts.
    pub manifest: Manifest,
    /// Its identity; empty where the directory does not say, as one that was put away by a conversion.
    pub store_id: String,
    lock: Option<ReadLock>,
}

/// Looks at a store, a backup, or what a conversion has put away. Nothing of it is changed.
///
/// # Errors
/// Where it is served, there is none, or it is damaged.
pub fn look(dir: &Path) -> Result<Looked, OfflineError> {
    let (lock, manifest) = hold(dir)?;
    check_begun(dir, Some(&manifest), View::of(dir)?.begun_below(EPOCH_MAX.next()))?;
    let store_id = status(dir)?.map(|block| block.store_id.to_string()).unwrap_or_default();
    let image = image::look(dir, &manifest)?;
    Ok(Looked { image, manifest, store_id, lock })
}

/// Locks a store that is to be looked at, where it has a lock, and answers what counts in it. Nothing is written: it
/// may be on storage that is read-only.
///
/// # Errors
/// Where it is served, or there is none.
pub fn hold(dir: &Path) -> Result<(Option<ReadLock>, Manifest), OfflineError> {
    let lock = read_lock(dir)?;
    let newest = Manifest::newest(dir, Epoch(u64::MAX))?;
    let manifest = newest.ok_or_else(|| OfflineError::NoStore(dir.to_owned()))?;
    Ok((lock, manifest))
}

fn read_lock(dir: &Path) -> Result<Option<ReadLock>, OfflineError> {
    if dir.is_file() {
        return Err(OfflineError::IsFile(dir.to_owned()));
    }
    match ReadLock::attempt(dir)? {
        ReadLockAttempt::Acquired(lock) => Ok(Some(lock)),
        // What a conversion has put away has none, and nobody can serve it.
        ReadLockAttempt::NoFile => Ok(None),
        ReadLockAttempt::Held => Err(OfflineError::Served(dir.to_owned())),
    }
}

fn locked(directory: &Directory) -> Result<StoreLock, OfflineError> {
    match directory.try_lock()? {
        LockAttempt::Acquired(lock) => Ok(lock),
        LockAttempt::Held => Err(OfflineError::Served(directory.path().to_owned())),
    }
}

fn candidate(mode: Mode) -> Result<Candidate, OfflineError> {
    let identity = Identity::of_this_process(Name::new(NODE)?)?;
    Ok(Candidate { identity, address: Address::default(), mode })
}

/// Converts a store to another mode, in an epoch of its own. `watch` is told how far it is.
///
/// # Errors
/// Where it is served, its last master may still write, there is too little space, or the conversion fails. The old
/// store counts then.
pub fn convert(dir: &Path, to: Mode, old: Old, watch: &mut dyn FnMut(Done)) -> Result<Digest, OfflineError> {
    let directory = Directory::open(dir, Create::Refused, None)?;
    let lock = locked(&directory)?;
    let dir = directory.path();
    let newest = Manifest::newest(dir, Epoch(u64::MAX))?;
    let newest = newest.ok_or_else(|| OfflineError::NoStore(dir.to_owned()))?;
    if newest.mode == to {
        return Err(OfflineError::HasMode(to));
    }
    check_space(dir, conversion::bytes_needed(dir, &newest)?)?;
    let view = View::of(dir)?;
    check_begun(dir, Some(&newest), view.begun_below(EPOCH_MAX.next()))?;
    let alive = view.ends_below(Epoch(u64::MAX), None)?.into_iter().find(|&(epoch, ended)| {
        // Those before it have ended, or it would not have released what it took over from them.
        epoch >= newest.epoch && ended == Ended::Unknown
    });
    if let Some((epoch, _)) = alive {
        return Err(OfflineError::MayWrite(epoch));
    }
    let mut mastership = claim(lock, candidate(to)?)?;
    let options = OpenOptions {
        dir: dir.to_owned(),
        mode: to,
        epoch: mastership.epoch(),
        predecessors: mastership.predecessors(),
        segment_bytes: SEGMENT_BYTES,
    };
    let mut fence = mastership.fence(FenceRead::default());
    let mut fenced = |done| {
        watch(done);
        fence.check().map_err(|error| match error {
            FenceError::Superseded(epoch) => Fenced::Superseded(epoch),
            other => Fenced::Unknown(other.to_string()),
        })
    };
    let digest = conversion::convert(&options, &newest, old, &mut fenced)?;
    mastership.begin(to, FenceRead::default())?;
    mastership.release(FenceRead::default())?;
    Ok(digest)
}

fn check_space(dir: &Path, needed: u64) -> Result<(), OfflineError> {
    let free = crate::disk::free(dir).map_err(|source| StoreError::Io {
        action: "look for space in",
        path: dir.to_owned(),
        source,
    })?;
    if free < needed { Err(OfflineError::NoSpace { dir: dir.to_owned(), needed, free }) } else { Ok(()) }
}

/// Where a store comes from that is made.
pub struct Origin {
    /// What it holds.
    pub source: Source,
    /// The mode that the original has.
    pub mode: Mode,
    /// The original's lock, where it is looked at.
    lock: Option<ReadLock>,
}

impl Origin {
    /// A store that nobody serves, a backup in a directory, or what a conversion has put away.
    ///
    /// # Errors
    /// As for [`look`].
    pub fn directory(dir: &Path) -> Result<Self, OfflineError> {
        let Looked { image, manifest, lock, .. } = look(dir)?;
        Ok(Self { source: Source::Image(image), mode: manifest.mode, lock })
    }

    /// An archive.
    ///
    /// # Errors
    /// Where its beginning is not that of one.
    pub fn archive(input: Box<dyn Read>) -> Result<Self, OfflineError> {
        let reader = Reader::open(input)?;
        let mode = reader.origin().mode;
        Ok(Self { source: Source::Archive(Box::new(reader)), mode, lock: None })
    }
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// Identity of the store, a new one.
    pub store_id: Uuid,
    /// Its mode.
    pub mode: Mode,
    /// What it holds.
    pub digest: Digest,
}

/// Makes a store of what `origin` holds in `dir`, which is made if it is missing and otherwise must be empty. Everything
/// is compared with the original before the store is one.
///
/// # Errors
/// Where there is something in the directory, the original cannot be read or is damaged, or the store cannot be written.
/// What was made is removed then.
pub fn make(
    origin: Origin,
    dir: &Path,
    mode: Option<Mode>,
    watch: &mut dyn FnMut(Done),
) -> Result<Made, OfflineError> {
    make_of(origin, dir, mode, watch).map_err(|error| match error {
        OfflineError::Store(error) if error.is_lack_of_space() => OfflineError::Full(dir.to_owned()),
        other => other,
    })
}

fn make_of(
    origin: Origin,
    dir: &Path,
    mode: Option<Mode>,
    watch: &mut dyn FnMut(Done),
) -> Result<Made, OfflineError> {
    let Origin { source, mode: original_mode, lock } = origin;
    let mode = mode.unwrap_or(original_mode);
    let mut done = Done::nothing_of(source.snapshot());
    let mut making = Making::begin(dir, mode, source.snapshot())?;
    let digest = source.read(|topic, chunk| {
        making.add(topic, chunk)?;
        done.messages += chunk.block.count() as u64;
        done.bytes += chunk.block.bytes().len() as u64;
        watch(done);
        Ok::<_, OfflineError>(())
    })?;
    drop(lock);
    let store_id = making.finish(&digest, &mut done, &mut |done| {
        watch(done);
        Ok(())
    })?;
    Ok(Made { store_id, mode, digest })
}

/// A store that is being made in a directory that was empty. Where it comes to nothing, what was made is removed.
pub struct Making {
    lock: StoreLock,
    mode: Mode,
    fill: Option<Box<dyn Fill>>,
    finished: Finished,
}

/// Whether the files are those of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finished {
    Not,
    Whole,
}

impl Making {
    /// Begins a store in `dir`, which is made if it is missing, with this state.
    ///
    /// # Errors
    /// Where there is something in the directory already, or it cannot be written.
    pub fn begin(
        dir: &Path,
        mode: Mode,
        snapshot: &crate::model::snapshot::Snapshot,
    ) -> Result<Self, OfflineError> {
        let directory = Directory::open(dir, Create::Allowed, None).map_err(|error| match error {
            DirectoryError::NotEmpty { path, name } => OfflineError::NotEmpty { path, name },
            other => other.into(),
        })?;
        if status(dir)?.is_some() {
            return Err(OfflineError::Exists(directory.path().to_owned()));
        }
        let lock = locked(&directory)?;
        let mut making = Self { lock, mode, fill: None, finished: Finished::Not };
        making.fill = Some(image::fill(&making.options(), snapshot)?);
        Ok(making)
    }

    fn dir(&self) -> &Path {
        self.lock.directory().path()
    }

    fn options(&self) -> OpenOptions {
        OpenOptions {
            dir: self.dir().to_owned(),
            mode: self.mode,
            epoch: FIRST_EPOCH,
            predecessors: Predecessors::default(),
            segment_bytes: SEGMENT_BYTES,
        }
    }

    /// Adds messages: see [`Fill::add`].
    ///
    /// # Errors
    /// As for [`Fill::add`].
    pub fn add(
        &mut self,
        topic: crate::model::id::TopicId,
        chunk: &crate::model::chunk::Chunk,
    ) -> Result<(), StoreError> {
        self.fill.as_mut().map_or(Ok(()), |fill| fill.add(topic, chunk))
    }

    /// Reads what was made, compares it with what it was made of, and makes it a store. Answers its identity.
    ///
    /// # Errors
    /// Where it differs, or cannot be read or written.
    pub fn finish(
        mut self,
        original: &Digest,
        done: &mut Done,
        watch: Watch<'_>,
    ) -> Result<Uuid, OfflineError> {
        let Some(fill) = self.fill.take() else { return Err(OfflineError::NoStore(self.dir().to_owned())) };
        let manifest = fill.finish()?;
        conversion::compare(original, image::look(self.dir(), &manifest)?.as_mut(), done, watch)?;
        manifest.write(self.dir())?;
        let id = found(&self.lock, candidate(self.mode)?)?;
        self.finished = Finished::Whole;
        Ok(id)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if self.finished == Finished::Whole {
            return;
        }
        self.fill = None;
        let dir = self.dir().to_owned();
        // It was empty before, but for what no store looks at.
        let made = conversion::files_of(&dir, self.mode).unwrap_or_default();
        for path in made.into_iter().chain([dir.join("manifest")]) {
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if let Err(error) = removed
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "what was made cannot be removed");
            }
        }
    }
}

/// The time by this host's clock, for people.
#[must_use]
pub fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
