//! Conversion of a store from one mode to another.
//!
//! It has an epoch of its own, as everything that writes does:
//!
//! 1. The store that counts is read from beginning to end and filled into files of the other mode, named by this
//!    epoch.
//! 2. These are read again from beginning to end. They must have the same [digest](super::digest).
//! 3. The manifest of this epoch names the mode and the files. That is the switch: before it the old store counts and
//!    nothing of it was touched, after it the converted one does.
//! 4. The old files are removed, or put away.
//!
//! Killed before the switch, the next epoch finds the old store and files of a mode that no manifest names; killed
//! after it, the converted store and the files of the old one. So the same rule [clears](clear) both: files of the
//! mode that the newest manifest does not name are of no use.
//!
//! # What is put away
//!
//! `kept-<mode>-<epoch, 20 digits>/` has the old store with its manifest, so that it can be looked at and restored like
//! a backup. It is made with the manifest before the switch, and with the number of the converting epoch: so whoever
//! clears knows that the files are to be kept, also where the converting process was killed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::digest::Digest;
use super::image::{self, Image, walk};
use super::manifest::{Manifest, sync_dir};
use super::{FenceCheck, Fenced, Mode, OpenOptions, StoreError, database, file};
use crate::disk;
use crate::model::id::Epoch;
use crate::model::snapshot::Snapshot;

/// What becomes of the old store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Old {
    /// It goes once the converted one counts.
    #[default]
    Removed,
    /// It is put away in the shared directory.
    Kept,
}

/// How far copying or comparing a whole store has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Messages that are copied.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Messages that are compared with the original.
    pub compared: u64,
    /// Messages in all.
    pub of: u64,
}

impl Done {
    /// Nothing yet of what a store with this state has.
    #[must_use]
    pub fn nothing_of(snapshot: &Snapshot) -> Self {
        let counts = snapshot.topics.values().map(|topic| topic.message_count());
        // An archive may claim any number.
        Self { of: counts.fold(0, u64::saturating_add), ..Self::default() }
    }

    /// Messages that are done with: one that is copied and not yet compared counts half.
    #[must_use]
    pub const fn finished(&self) -> u64 {
        self.messages.midpoint(self.compared)
    }

    /// How much that is of all, in percent.
    #[must_use]
    pub fn percent(&self) -> u64 {
        if self.of == 0 {
            100
        } else {
            u64::try_from(u128::from(self.finished()) * 100 / u128::from(self.of)).unwrap_or(100)
        }
    }
}

/// Told how far it is, again and again; asks the fence, where there is one, and says whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(Done) -> Result<(), Fenced>;

/// Converts the store in `options.dir`, as the newest manifest `from` has it, to `options.mode`. When it returns the
/// converted store counts, and the old files are gone or put away.
///
/// Nobody may write to the old store: its last master has released its epoch or is dead.
///
/// # Errors
/// Where the old store cannot be read or is damaged, the new one cannot be written or differs, or the fence is broken.
/// The old one counts then, unless the error came after the switch; [`clear`] puts that right as well.
pub fn convert(
    options: &OpenOptions,
    from: &Manifest,
    old: Old,
    watch: Watch<'_>,
) -> Result<Digest, StoreError> {
    let dir = &options.dir;
    let started = Instant::now();
    // What an earlier attempt has left would be in the way.
    clear(dir, options.epoch, &mut || watch(Done::default()))?;
    if old == Old::Kept {
        prepare_to_keep(dir, options.epoch, from)?;
    }
    let mut original = image::look(dir, from)?;
    let mut done = Done::nothing_of(original.snapshot());
    watch(done)?;
    tracing::info!(from = %from.mode, to = %options.mode, messages = done.of, "converting the store");
    let mut fill = image::fill(options, original.snapshot())?;
    let mut digest = Digest::begin(original.snapshot()).map_err(state_error(dir))?;
    walk(original.as_mut(), |topic, chunk| {
        fill.add(topic, chunk)?;
        digest.add(topic, chunk);
        done.messages += chunk.block.count() as u64;
        done.bytes += chunk.block.bytes().len() as u64;
        Ok::<_, StoreError>(watch(done)?)
    })?;
    drop(original);
    let manifest = fill.finish()?;
    watch(done)?;
    compare(&digest, image::look(dir, &manifest)?.as_mut(), &mut done, watch)?;
    manifest.write(dir)?;
    let took = started.elapsed();
    tracing::info!(to = %options.mode, messages = digest.messages(), bytes = digest.bytes(), ?took, "store converted");
    clear(dir, options.epoch, &mut || watch(done))?;
    Ok(digest)
}

/// Reads a copy from beginning to end, and checks that it has all that the original has.
///
/// # Errors
/// [`StoreError::Differs`], or where it cannot be read.
pub fn compare(
    original: &Digest,
    copy: &mut dyn Image,
    done: &mut Done,
    watch: Watch<'_>,
) -> Result<(), StoreError> {
    let mut digest = Digest::begin(copy.snapshot()).map_err(state_error(Path::new("the copy")))?;
    walk(copy, |topic, chunk| {
        digest.add(topic, chunk);
        done.compared += chunk.block.count() as u64;
        Ok::<_, StoreError>(watch(*done)?)
    })?;
    original.difference(&digest).map_or(Ok(()), |what| Err(StoreError::Differs(what)))
}

fn state_error(path: &Path) -> impl Fn(super::codec::CodecError) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Io {
        action: "encode the state of",
        path: path.clone(),
        source: std::io::Error::other(error),
    }
}

/// Clears away what a conversion has left: files of the mode that the newest manifest does not name. To be called by
/// an epoch that is claimed, before it opens the store. Does nothing where there is none.
///
/// Files go by their names, which have the epoch that wrote them, and only those that were there before the fence was
/// checked: a process that is paused behind the check, and resumed when a later epoch has converted the store back,
/// finds nothing of that to remove. So a folder goes only once it is empty.
///
/// # Errors
/// Where the fence is broken, or files cannot be removed or put away.
pub fn clear(dir: &Path, epoch: Epoch, fence: FenceCheck<'_>) -> Result<(), StoreError> {
    let Some(newest) = Manifest::newest(dir, epoch)? else { return Ok(()) };
    for came_to_nothing in kept(dir)?.into_iter().filter(|kept| kept.epoch > newest.epoch) {
        fence()?;
        remove(&came_to_nothing.path)?;
    }
    let other = other(newest.mode);
    let useless = files_of(dir, other)?;
    if useless.is_empty() {
        return Ok(());
    }
    let mut files = Vec::new();
    let (folders, single): (Vec<_>, Vec<_>) = useless.into_iter().partition(|path| path.is_dir());
    files.extend(single);
    for folder in &folders {
        let names = disk::names(folder).map_err(io("list", folder))?;
        files.extend(names.iter().map(|name| folder.join(name)));
    }
    fence()?;
    // Whoever wrote the manifest may have died before its name was durable, and these files are what counts without it.
    sync_dir(&dir.join("manifest"))?;
    let place = kept(dir)?.into_iter().find(|kept| (kept.mode, kept.epoch) == (other, newest.epoch));
    match &place {
        Some(kept) => put_away(dir, &folders, &files, &kept.path)?,
        None => {
            tracing::info!(mode = %other, files = files.len(), "removing what is of the other mode");
            files.iter().try_for_each(|path| remove(path))?;
        }
    }
    for folder in &folders {
        match fs::remove_dir(folder) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                return Err(io("remove", folder)(error));
            }
            _ => {}
        }
    }
    sync_dir(dir)
}

/// Puts files of the shared directory `dir`, and of these folders in it, into `place`.
fn put_away(dir: &Path, folders: &[PathBuf], files: &[PathBuf], place: &Path) -> Result<(), StoreError> {
    tracing::info!(files = files.len(), to = %place.display(), "putting the old store away");
    let to = |path: &Path| place.join(path.strip_prefix(dir).unwrap_or(path));
    for folder in folders {
        match fs::create_dir(to(folder)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io("create", &to(folder))(error));
            }
            _ => {}
        }
    }
    for path in files {
        fs::rename(path, to(path)).map_err(io("rename", path))?;
    }
    for folder in folders {
        sync_dir(&to(folder))?;
    }
    sync_dir(place)
}

/// Bytes that must be free to convert the store that `manifest` names: as much again as it has, and half of that for
/// what the other mode may take more.
///
/// # Errors
/// Where its files cannot be looked at.
pub fn bytes_needed(dir: &Path, manifest: &Manifest) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for path in files_of(dir, manifest.mode)? {
        bytes += bytes_in(&path)?;
    }
    Ok(bytes + bytes / 2 + SPARE_BYTES)
}

/// Bytes beside those of the store: for the manifest, and for logs and segments that are written ahead.
const SPARE_BYTES: u64 = 16 << 20;

/// Bytes of a file, or of all files in a folder.
///
/// # Errors
/// Where it cannot be looked at.
pub fn bytes_in(path: &Path) -> Result<u64, StoreError> {
    let found = fs::symlink_metadata(path).map_err(io("look at", path))?;
    if !found.is_dir() {
        return Ok(found.len());
    }
    let names = disk::names(path).map_err(io("list", path))?;
    names.iter().map(|name| bytes_in(&path.join(name))).sum()
}

/// The files and folders of one mode in the shared directory.
///
/// # Errors
/// Where it cannot be listed.
pub fn files_of(dir: &Path, mode: Mode) -> Result<Vec<PathBuf>, StoreError> {
    let names = disk::names(dir).map_err(io("list", dir))?;
    let is_of_mode = |name: &&std::ffi::OsString| {
        name.to_str().is_some_and(|name| match mode {
            Mode::Database => database::is_file_name(name),
            Mode::File => name == file::FOLDER,
        })
    };
    let mut files: Vec<_> = names.iter().filter(is_of_mode).map(|name| dir.join(name)).collect();
    files.sort();
    Ok(files)
}

const fn other(mode: Mode) -> Mode {
    match mode {
        Mode::Database => Mode::File,
        Mode::File => Mode::Database,
    }
}

/// A place where an old store is kept.
struct Kept {
    path: PathBuf,
    mode: Mode,
    /// The epoch that converted it.
    epoch: Epoch,
}

fn kept(dir: &Path) -> Result<Vec<Kept>, StoreError> {
    let names = disk::names(dir).map_err(io("list", dir))?;
    let kept = |name: &str| {
        let (mode, digits) = name.strip_prefix("kept-")?.split_once('-')?;
        let mode = [Mode::Database, Mode::File].into_iter().find(|known| known.to_string() == mode)?;
        let epoch = (digits.len() == 20).then(|| digits.parse().ok()).flatten()?;
        Some(Kept { path: dir.join(name), mode, epoch: Epoch(epoch) })
    };
    Ok(names.iter().filter_map(|name| kept(name.to_str()?)).collect())
}

/// Makes the place where the old store is to be kept, with its manifest.
fn prepare_to_keep(dir: &Path, epoch: Epoch, from: &Manifest) -> Result<(), StoreError> {
    let place = dir.join(format!("kept-{}-{epoch:020}", from.mode));
    fs::create_dir(&place).map_err(io("create", &place))?;
    from.write(&place)?;
    sync_dir(dir)
}

fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The progress of a conversion counted each message twice, and ended with twice as many as the store had.
    #[test]
    fn a_message_that_is_copied_and_compared_counts_once() {
        let done = Done { messages: 10, compared: 0, of: 10, ..Done::default() };
        assert_eq!((done.finished(), done.percent()), (5, 50));
        let done = Done { compared: 10, ..done };
        assert_eq!((done.finished(), done.percent()), (10, 100));
    }
}
