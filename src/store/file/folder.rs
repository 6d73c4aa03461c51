//! What is in the folder `journal`, by name.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::checkpoint::CheckpointId;
use super::file_id::FileId;
use super::io_error;
use super::segment::SegmentId;
use crate::disk;
use crate::model::id::Epoch;
use crate::store::StoreError;

/// The files of the folder. Names that the journal never gives are not in it.
#[derive(Debug, Default)]
pub struct Folder {
    /// Segments.
    pub segments: BTreeSet<SegmentId>,
    /// Packs.
    pub packs: BTreeSet<FileId>,
    /// Checkpoints.
    pub checkpoints: BTreeSet<CheckpointId>,
    /// Files that were not finished, with the epochs that began them.
    pub unfinished: Vec<(Epoch, PathBuf)>,
}

impl Folder {
    /// Lists the folder; it is empty where it does not exist. Step `ListFolder` of `tests/ha_model`.
    ///
    /// # Errors
    /// Where it cannot be listed.
    pub fn list(journal: &Path) -> Result<Self, StoreError> {
        let mut folder = Self::default();
        let names = match disk::names(journal) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(folder),
            names => names.map_err(io_error("list", journal))?,
        };
        for name in names {
            let Some(name) = name.to_str() else { continue };
            if let Some(stem) = name.strip_suffix(".new") {
                let epoch = SegmentId::parse(stem)
                    .map(|segment| segment.epoch)
                    .or_else(|| FileId::parse_pack(stem).map(|pack| pack.epoch))
                    .or_else(|| CheckpointId::parse(stem).map(|checkpoint| checkpoint.epoch));
                folder.unfinished.extend(epoch.map(|epoch| (epoch, journal.join(name))));
            } else if let Some(stem) = name.strip_suffix(".log") {
                folder.segments.extend(SegmentId::parse(stem));
            } else if let Some(pack) = FileId::parse_pack(name) {
                folder.packs.insert(pack);
            } else {
                folder.checkpoints.extend(CheckpointId::parse(name));
            }
        }
        Ok(folder)
    }

    /// The epochs that have a file here.
    #[must_use]
    pub fn epochs(&self) -> BTreeSet<Epoch> {
        let segments = self.segments.iter().map(|segment| segment.epoch);
        let packs = self.packs.iter().map(|pack| pack.epoch);
        let checkpoints = self.checkpoints.iter().map(|checkpoint| checkpoint.epoch);
        let unfinished = self.unfinished.iter().map(|(epoch, _)| *epoch);
        segments.chain(packs).chain(checkpoints).chain(unfinished).collect()
    }
}
