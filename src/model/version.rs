//! Versions that something knows: of the wire protocol, or of the format of a store.
//!
//! The format of a store is known here because both `ha`, which writes its number, and `store` go by it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// All versions from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The lowest.
    pub min: u32,
    /// The highest, which is in it.
    pub max: u32,
}

impl VersionRange {
    /// Whether it has this version.
    #[must_use]
    pub const fn contains(self, version: u32) -> bool {
        self.min <= version && version <= self.max
    }

    /// The highest version that both have.
    #[must_use]
    pub fn highest_in_common(self, other: Self) -> Option<u32> {
        let highest = self.max.min(other.max);
        (self.contains(highest) && other.contains(highest)).then_some(highest)
    }
}

impl fmt::Display for VersionRange {
    /// As `1`, or `1-3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, max } = self;
        if min == max { f.pad(&min.to_string()) } else { f.pad(&format!("{min}-{max}")) }
    }
}

/// The formats of a store that this version reads. A store has one format as a whole, whose number stands in each block of
/// `control`; it is raised when that of any file is. A node that meets one beyond these leaves the store alone, before it
/// has claimed anything.
pub const FORMATS_READ: VersionRange = VersionRange { min: 1, max: 1 };
/// The format that this version writes.
pub const FORMAT_WRITTEN: u32 = 1;

const _: () = assert!(FORMATS_READ.contains(FORMAT_WRITTEN), "what is written can be read");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_meet_at_the_highest_version_of_both() {
        let range = |min, max| VersionRange { min, max };
        for (one, other, expected) in [
            (range(1, 1), range(1, 1), Some(1)),
            (range(1, 3), range(2, 5), Some(3)),
            (range(1, 3), range(3, 3), Some(3)),
            (range(1, 2), range(3, 4), None),
        ] {
            assert_eq!(one.highest_in_common(other), expected);
            assert_eq!(other.highest_in_common(one), expected);
        }
        assert_eq!((range(1, 1).to_string(), range(1, 3).to_string()), ("1".into(), "1-3".into()));
        assert!(range(1, 3).contains(3) && !range(1, 3).contains(4) && !range(1, 3).contains(0));
    }
}
