//! What of a store that nobody serves can be read: the control file, the manifest, and all that counts.
//!
//! Goes on behind whatever is damaged. Where the manifest cannot be read, it goes by what the files say themselves.

use std::path::Path;

use super::{OfflineError, Origin, read_lock};
use crate::ha::control::{ControlError, EPOCH_MAX, position_of};
use crate::ha::lock::ReadLock;
use crate::ha::view::View;
use crate::model::id::Epoch;
use crate::store::check::check_begun;
use crate::store::manifest::Manifest;
use crate::store::source::Source;
use crate::store::survey::{Damage, Lost, Readable, Survey, survey};
use crate::store::{Mode, StoreError, guess};

/// What of a store, a backup, or what a conversion has put away can be read, and what cannot. Nothing of it is changed.
///
/// # Errors
/// Where it is served, there is none, or nothing can be told at all.
pub fn verify(dir: &Path, watch: &mut dyn FnMut(u64)) -> Result<Surveyed, OfflineError> {
    let lock = read_lock(dir)?;
    let control = inspect_control(dir)?;
    let mut damages = control.damages;
    let (readable, unreadable) = Manifest::newest_readable(dir)?;
    let manifest = match readable {
        Some(manifest) if unreadable.is_empty() => {
            damages.extend(missing_from_the_beginning(dir, Some(&manifest), control.begun)?);
            Some(manifest)
        }
        None if unreadable.is_empty() && damages.is_empty() && control.claimed == Claimed::Never => {
            return Err(OfflineError::NoStore(dir.to_owned()));
        }
        older => {
            if older.is_none() && unreadable.is_empty() {
                damages
                    .push(guess::without_manifest(dir, &StoreError::Missing { path: dir.join("manifest") }));
            }
            damages.extend(unreadable.iter().map(|error| guess::without_manifest(dir, error)));
            let guessed = guess::guess(dir, older.as_ref(), control.mode)?;
            damages.extend(guessed.iter().map(|manifest| guess::caution(dir, manifest)));
            guessed
        }
    };
    let Some(manifest) = manifest else {
        damages.extend(missing_from_the_beginning(dir, None, control.begun)?);
        let mode = control.mode.unwrap_or_default();
        return Ok(Surveyed { survey: Survey { damages, ..Survey::default() }, mode, lock });
    };
    // What a conversion has put away has neither lock nor control file.
    if control.mode.is_none() && damages.is_empty() && lock.is_some() {
        let what = "it names no store, so no node serves what is here; all of it can be salvaged".to_owned();
        damages.push(Damage { path: dir.join("control"), position: None, what, lost: Lost::Nothing });
    }
    let mut survey = survey(dir, &manifest, watch)?;
    damages.append(&mut survey.damages);
    survey.damages = damages;
    Ok(Surveyed { survey, mode: manifest.mode, lock })
}

/// What is gone that the last epoch had made which has begun. Other files may show nothing of it.
fn missing_from_the_beginning(
    dir: &Path,
    manifest: Option<&Manifest>,
    begun: Epoch,
) -> Result<Option<Damage>, StoreError> {
    let error = match check_begun(dir, manifest, begun) {
        Err(error @ StoreError::Missing { .. }) => error,
        other => return other.map(|()| None),
    };
    let what = format!(
        "the file is missing; epoch {begun} had made it before it confirmed anything, so what it has confirmed since is lost"
    );
    Ok(Some(Damage { what, lost: Lost::Unknown, ..Damage::of(dir, &error) }))
}

/// Whether an epoch was ever claimed, by the control file and the claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claimed {
    Once,
    Never,
}

/// What the control file says.
struct Controlled {
    /// The mode that the last epoch names which served a store.
    mode: Option<Mode>,
    claimed: Claimed,
    /// The highest epoch that has begun; 0 where none is known to have.
    begun: Epoch,
    damages: Vec<Damage>,
}

/// Reads the control file, and what is wrong in it. An older block that is torn is no damage: its master died while it
/// wrote it, and a later one has taken that into account.
///
/// # Errors
/// Where it was written by a newer version.
fn inspect_control(dir: &Path) -> Result<Controlled, OfflineError> {
    match View::of(dir) {
        Ok(view) => {
            let newest = view.torn().iter().find(|&&torn| view.block(torn.next()).is_none());
            let torn = newest.map(|epoch| {
                let what = format!(
                    "the block of epoch {epoch} is not what was written: it counts as one that was not released"
                );
                let position = Some(position_of(*epoch));
                Damage { path: dir.join("control"), position, what, lost: Lost::Nothing }
            });
            let claimed = if view.highest() > Epoch(0) { Claimed::Once } else { Claimed::Never };
            let mode = view.store_below(EPOCH_MAX.next()).map(|(_, mode)| mode);
            let begun = view.begun_below(EPOCH_MAX.next());
            Ok(Controlled { mode, claimed, begun, damages: torn.into_iter().collect() })
        }
        Err(ControlError::Damaged { path, position, what }) => {
            let what = format!("{what}; no node serves the store, `baton store salvage` can do without");
            let damage = Damage { path, position: Some(position), what, lost: Lost::Nothing };
            Ok(Controlled { mode: None, claimed: Claimed::Once, begun: Epoch(0), damages: vec![damage] })
        }
        Err(error) => Err(error.into()),
    }
}

/// A store that was surveyed. Nobody serves it for as long as this lives.
pub struct Surveyed {
    /// What was found.
    pub survey: Survey,
    /// The mode of the store.
    pub mode: Mode,
    lock: Option<ReadLock>,
}

impl Surveyed {
    /// What can be read, to make another store of it; `None` where the state itself cannot be read.
    #[must_use]
    pub fn into_origin(self) -> Option<Origin> {
        let readable = Readable::of(self.survey)?;
        Some(Origin { source: Source::Image(Box::new(readable)), mode: self.mode, lock: self.lock })
    }
}
