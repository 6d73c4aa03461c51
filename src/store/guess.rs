//! What counts in a store whose newest manifest cannot be read: a guess from the other files, for salvage only.
//!
//! A manifest fixes how much of each older epoch counts, so that what a master writes after it has lost the store is
//! never taken. Without it that end is known only where a later epoch names it. So a guess may have more than what was
//! served, and never less of what the files have.

use std::path::Path;

use super::manifest::Manifest;
use super::survey::{Damage, Lost};
use super::{Mode, StoreError, database, file};

/// What counts, as `older`, which is not the newest manifest, and the files say; the store's mode was `mode`, where that
/// is known. `None` where there are no files of a store.
///
/// # Errors
/// Where the files cannot be listed, or are of a newer format.
pub fn guess(
    dir: &Path,
    older: Option<&Manifest>,
    mode: Option<Mode>,
) -> Result<Option<Manifest>, StoreError> {
    let likely = mode.or(older.map(|older| older.mode));
    for mode in likely.into_iter().chain([Mode::File, Mode::Database]) {
        let guessed = match mode {
            Mode::File => file::guess(dir, older)?,
            Mode::Database => database::guess(dir)?,
        };
        if guessed.is_some() {
            return Ok(guessed);
        }
    }
    Ok(None)
}

/// What it means that a manifest cannot be read.
#[must_use]
pub fn without_manifest(dir: &Path, error: &StoreError) -> Damage {
    let damage = Damage::of(dir, error);
    let what = format!(
        "{}; it says what counts of all that is here, so no node serves the store; `baton store salvage` can do without",
        damage.what
    );
    Damage { what, ..damage }
}

/// What must be known of a guess.
#[must_use]
pub fn caution(dir: &Path, guessed: &Manifest) -> Damage {
    let what = match guessed.mode {
        Mode::File => format!(
            "what counts was guessed from the journal, which ends with epoch {}: what an old master has committed after \
             it had lost the store may be among it",
            guessed.epoch
        ),
        Mode::Database => format!(
            "what counts was guessed: {} is the newest database that holds something; what an old master has committed \
             after it had lost the store may be in it",
            guessed.database.as_deref().unwrap_or_default()
        ),
    };
    Damage { path: dir.to_owned(), position: None, what, lost: Lost::Nothing }
}
