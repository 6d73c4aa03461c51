//! Which file of the journal: a segment or a pack.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::segment::SegmentId;
use crate::model::id::Epoch;

/// What a file is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Commits were written to it.
    #[default]
    Segment,
    /// Messages were copied into it.
    Pack,
}

/// A file that holds messages. Segments come before packs, each in the order in which they were begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// What it is.
    pub kind: FileKind,
    /// The epoch that writes it.
    pub epoch: Epoch,
    /// Its number among those of its kind in the epoch, from 1.
    pub number: u32,
}

impl FileId {
    /// A pack.
    #[must_use]
    pub const fn pack(epoch: Epoch, number: u32) -> Self {
        Self { kind: FileKind::Pack, epoch, number }
    }

    /// The segment that it is, if it is one.
    #[must_use]
    pub const fn segment(self) -> Option<SegmentId> {
        match self.kind {
            FileKind::Segment => Some(self.marked()),
            FileKind::Pack => None,
        }
    }

    /// What stands in the entries of the file where those of a segment name it: epoch and number.
    #[must_use]
    pub const fn marked(self) -> SegmentId {
        SegmentId { epoch: self.epoch, number: self.number }
    }

    /// The file in the folder `journal`.
    #[must_use]
    pub fn path(self, journal: &Path) -> PathBuf {
        match self.kind {
            FileKind::Segment => self.marked().path(journal),
            FileKind::Pack => journal.join(format!("{:020}-{:06}.pack", self.epoch.0, self.number)),
        }
    }

    /// The pack that a file name stands for.
    #[must_use]
    pub fn parse_pack(name: &str) -> Option<Self> {
        let pack = SegmentId::parse(name.strip_suffix(".pack")?)?;
        Some(Self::pack(pack.epoch, pack.number))
    }
}

impl From<SegmentId> for FileId {
    fn from(segment: SegmentId) -> Self {
        Self { kind: FileKind::Segment, epoch: segment.epoch, number: segment.number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_packs_are_read_back() {
        let pack = FileId::pack(Epoch(3), 2);
        let path = pack.path(Path::new("journal"));
        assert_eq!(path, Path::new("journal/00000000000000000003-000002.pack"));
        assert_eq!(FileId::parse_pack("00000000000000000003-000002.pack"), Some(pack));
        for other in ["00000000000000000003-000002.log", "00000000000000000003-000002.pack.new", "3-2.pack"] {
            assert_eq!(FileId::parse_pack(other), None);
        }
    }
}
