//! What a check has found, in one sentence, and how bad it is.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is as Baton needs it.
    Good,
    /// It is worth knowing, and no reason for doubt.
    Note,
    /// It may be wrong, and cannot be proved; or it is wrong in a way that only costs time.
    Doubt,
    /// Baton must not run on it.
    Unfit,
}

impl Level {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Doubt => "doubt",
            Self::Unfit => "unfit",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A word for programs, such as `locks-do-not-exclude`; `docs/operations.md` has them all.
    pub code: Cow<'static, str>,
    /// How bad it is.
    pub level: Level,
    /// A sentence for people: what is so, and what to do about it.
    pub text: String,
}

impl Finding {
    /// Something at this level.
    pub fn new(level: Level, code: &'static str, text: impl Into<String>) -> Self {
        Self { code: code.into(), level, text: text.into() }
    }

    /// Something that is as it should be.
    pub fn good(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Good, code, text)
    }

    /// Something that is worth knowing.
    pub fn note(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Note, code, text)
    }

    /// A reason for doubt.
    pub fn doubt(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Doubt, code, text)
    }

    /// A reason not to use the directory.
    pub fn unfit(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Unfit, code, text)
    }
}
