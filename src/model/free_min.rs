//! How much of a disk is kept free.

use std::fmt;

/// What is kept free of the shared disk; nothing by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeMin {
    /// So many bytes.
    Bytes(u64),
    /// That part of the disk, below 100.
    Percent(u8),
}

impl Default for FreeMin {
    fn default() -> Self {
        Self::Bytes(0)
    }
}

impl fmt::Display for FreeMin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}
