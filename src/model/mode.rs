//! Where a store keeps its records.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where the records are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A SQL database.
    #[default]
    Database,
    /// An append-only journal in segments.
    File,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Database => "database",
            Self::File => "file",
        })
    }
}
