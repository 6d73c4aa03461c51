//! Manifests: what a new master fixes about all epochs before its own, before it opens the store.
//!
//! # Format, version 1
//!
//! ```text
//! manifest/<epoch, 20 digits>
//!     line 1   baton-manifest <version> <CRC32C of the rest, 8 hex digits>
//!     rest     JSON, one object: Manifest
//! ```
//!
//! A manifest is written under another name, synced, renamed and the directory synced; so one that exists is whole,
//! and one whose checksum is wrong is damage. Readers follow only the manifest of the highest epoch: a master that
//! was thought dead may still write one for a lower epoch, and nobody looks at it. A manifest of a higher epoch than
//! the reader's means that the reader has lost.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Fenced, Mode, StoreError};
use crate::disk::{self, File, Opening};
use crate::model::id::Epoch;

/// Version of the format that is written.
pub const MANIFEST_VERSION: u32 = 1;

/// How much of one older epoch's journal counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The epoch.
    pub epoch: Epoch,
    /// Number of its last segment that counts.
    pub segment: u32,
    /// Bytes of that segment that count; 0 with segment 0 means that nothing of the epoch counts.
    pub bytes: u64,
}

/// What counts of the epochs before `epoch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The epoch that wrote this.
    pub epoch: Epoch,
    /// The mode of the store.
    pub mode: Mode,
    /// File mode: every lower epoch that may still have files, lowest first. Nothing counts of one that is not here.
    pub sealed: Vec<Sealed>,
    /// Database mode: the name of the file that counts, in the shared directory.
    pub database: Option<String>,
}

impl Manifest {
    /// The manifest of the highest epoch below or at `epoch`; `None` where there is none. Step `ReadManifest` of
    /// `tests/ha_model`.
    ///
    /// # Errors
    /// Where the directory or the file cannot be read, the file is damaged or newer, or there is a manifest of a
    /// higher epoch.
    pub fn newest(dir: &Path, epoch: Epoch) -> Result<Option<Self>, StoreError> {
        let mut gone = None;
        loop {
            let found = match Self::epochs(dir)?.last() {
                None => return Ok(None),
                Some(&found) if found > epoch => return Err(Fenced::Superseded(found).into()),
                Some(&found) => found,
            };
            match Self::read(dir, found) {
                // Removed since the folder was listed, by an epoch whose manifest is there by now.
                Err(error) if is_missing(&error) && gone != Some(found) => gone = Some(found),
                read => return read.map(Some),
            }
        }
    }

    /// The newest manifest that can be read, and what is wrong with each newer one. Not for whoever is to serve the
    /// store: what an older one says counts no longer.
    ///
    /// # Errors
    /// Where the directory or a file cannot be read, or a file is newer.
    pub fn newest_readable(dir: &Path) -> Result<(Option<Self>, Vec<StoreError>), StoreError> {
        let mut unreadable = Vec::new();
        for &epoch in Self::epochs(dir)?.iter().rev() {
            match Self::read(dir, epoch) {
                Ok(manifest) => return Ok((Some(manifest), unreadable)),
                Err(error @ StoreError::Damaged { .. }) => unreadable.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok((None, unreadable))
    }

    /// The epochs that have a manifest, lowest first.
    fn epochs(dir: &Path) -> Result<Vec<Epoch>, StoreError> {
        let folder = dir.join("manifest");
        let names = match disk::names(&folder) {
            Ok(names) => names,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StoreError::Io { action: "list", path: folder, source }),
        };
        let number = |name: &OsString| name.to_str().filter(|name| name.len() == 20)?.parse().ok();
        let mut epochs: Vec<_> = names.iter().filter_map(number).map(Epoch).collect();
        epochs.sort_unstable();
        Ok(epochs)
    }

    /// The manifests of lower epochs than `epoch`, and what was left of making one. They may go once the own one is
    /// durable and the fence was checked after that: nobody reads an older one from then on.
    ///
    /// # Errors
    /// Where the directory cannot be listed.
    pub fn older(dir: &Path, epoch: Epoch) -> Result<Vec<PathBuf>, StoreError> {
        let folder = dir.join("manifest");
        let names = disk::names(&folder).map_err(|source| StoreError::Io {
            action: "list",
            path: folder.clone(),
            source,
        })?;
        let is_older = |name: &&OsString| {
            let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
            let number = stem.filter(|stem| stem.len() == 20).and_then(|stem| stem.parse().ok());
            number.is_some_and(|found| Epoch(found) < epoch)
        };
        Ok(names.iter().filter(is_older).map(|name| folder.join(name)).collect())
    }

    /// Whether an epoch that has claimed a store of this mode finds it to be that still.
    ///
    /// # Errors
    /// Where an epoch that was thought to be over has converted it since.
    pub fn check_mode(&self, claimed: Mode) -> Result<(), Fenced> {
        if self.mode == claimed { Ok(()) } else { Err(Fenced::Converted { by: self.epoch, to: self.mode }) }
    }

    fn read(dir: &Path, epoch: Epoch) -> Result<Self, StoreError> {
        let path = Self::path(dir, epoch);
        let text = disk::read(&path).map_err(|source| StoreError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let damaged =
            |what: &str| StoreError::Damaged { path: path.clone(), position: 0, what: what.to_owned() };
        let line_end = text.iter().position(|&byte| byte == b'\n').ok_or_else(|| damaged("no first line"))?;
        let (line, rest) = (String::from_utf8_lossy(&text[..line_end]).into_owned(), &text[line_end + 1..]);
        let mut words = line.split(' ');
        if words.next() != Some("baton-manifest") {
            return Err(damaged("not a manifest"));
        }
        let version: u32 =
            words.next().and_then(|word| word.parse().ok()).ok_or_else(|| damaged("no version"))?;
        if version == 0 {
            return Err(damaged("version 0 was never written"));
        }
        if version > MANIFEST_VERSION {
            return Err(StoreError::NewerFormat { path, found: version, known: MANIFEST_VERSION });
        }
        let sum = words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
        if sum != Some(crc32c::crc32c(rest)) {
            return Err(damaged("bad checksum"));
        }
        let manifest: Self = serde_json::from_slice(rest).map_err(|error| damaged(&error.to_string()))?;
        if manifest.epoch != epoch {
            return Err(damaged("the epoch inside is not that of the file's name"));
        }
        Ok(manifest)
    }

    /// Writes the manifest; when it returns it is durable. Step `WriteManifest` of `tests/ha_model`.
    ///
    /// # Errors
    /// Where it cannot be written; the process must end.
    pub fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let folder = dir.join("manifest");
        let path = Self::path(dir, self.epoch);
        let temporary = path.with_extension("new");
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { action, path, source }
        };
        disk::ensure_folder(&folder).map_err(io("create", &folder))?;
        sync_dir(dir)?;
        let json = serde_json::to_vec_pretty(self).map_err(|error| StoreError::Io {
            action: "encode",
            path: path.clone(),
            source: error.into(),
        })?;
        let head = format!("baton-manifest {MANIFEST_VERSION} {:08x}\n", crc32c::crc32c(&json));
        let file = File::open(&temporary, Opening::Replace).map_err(io("create", &temporary))?;
        file.write_all_at(head.as_bytes(), 0).map_err(io("write to", &temporary))?;
        file.write_all_at(&json, head.len() as u64).map_err(io("write to", &temporary))?;
        file.sync_all().map_err(io("sync", &temporary))?;
        disk::rename(&temporary, &path).map_err(io("rename to", &path))?;
        sync_dir(&folder)
    }

    /// Where the manifest of `epoch` is.
    pub(super) fn path(dir: &Path, epoch: Epoch) -> PathBuf {
        dir.join("manifest").join(format!("{:020}", epoch.0))
    }
}

fn is_missing(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Where the directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    disk::sync_folder(dir).map_err(|source| StoreError::Io { action: "sync", path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn manifest(epoch: u64) -> Manifest {
        let sealed = vec![Sealed { epoch: Epoch(1), segment: 0, bytes: 77 }];
        Manifest { epoch: Epoch(epoch), mode: Mode::File, sealed, database: None }
    }

    #[test]
    fn a_manifest_has_these_bytes() {
        let dir = tempfile::tempdir().unwrap();
        manifest(2).write(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("manifest/00000000000000000002")).unwrap();
        let json = r#"{
  "epoch": 2,
  "mode": "file",
  "sealed": [
    {
      "epoch": 1,
      "segment": 0,
      "bytes": 77
    }
  ],
  "database": null
}"#;
        assert_eq!(text, format!("baton-manifest 1 {:08x}\n{json}", crc32c::crc32c(json.as_bytes())));
    }

    #[test]
    fn the_newest_manifest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::newest(dir.path(), Epoch(9)).unwrap(), None);
        for epoch in [2, 10, 3] {
            manifest(epoch).write(dir.path()).unwrap();
        }
        assert_eq!(Manifest::newest(dir.path(), Epoch(10)).unwrap(), Some(manifest(10)));
        assert!(matches!(
            Manifest::newest(dir.path(), Epoch(9)),
            Err(StoreError::Fenced(Fenced::Superseded(Epoch(10))))
        ));
    }

    #[test]
    fn a_changed_byte_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        manifest(2).write(dir.path()).unwrap();
        let path = Manifest::path(dir.path(), Epoch(2));
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let read = Manifest::newest(dir.path(), Epoch(2));
            assert!(matches!(read, Err(StoreError::Damaged { .. } | StoreError::NewerFormat { .. })), "{at}");
        }
    }

    /// The one that was listed was removed before it was read, since a newer one was there: a node that only looked ended
    /// with a file that cannot be found.
    #[test]
    fn a_manifest_that_goes_while_it_is_looked_for_has_made_way_for_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("store");
        fs::create_dir(&folder).unwrap();
        manifest(1).write(&folder).unwrap();
        let store = folder.clone();
        let meanwhile = move |_: &disk::hooked::Hooked, path: &Path| {
            if *path == Manifest::path(&store, Epoch(1)) && path.exists() {
                manifest(2).write(&store).unwrap();
                fs::remove_file(path).unwrap();
            }
            Ok(())
        };
        let (path, _installed) = disk::hooked::Hooked::mount(&folder, Box::new(meanwhile));
        assert_eq!(Manifest::newest(&path, Epoch(9)).unwrap(), Some(manifest(2)));
    }
}
