//! What a new master makes of the journal: the state, where the messages are, and what it accepts of whom.
//!
//! Order of steps, each for a reason:
//!
//! 1. List the folder, then read the newest manifest. An epoch makes its first segment after its manifest is
//!    durable, so every segment in the list belongs to an epoch whose manifest was there when it was looked for. (A
//!    journal that is being filled has its segment before its manifest; nobody may open it meanwhile.)
//! 2. Take the newest checkpoint whose position that manifest accepts.
//! 3. Apply what follows: of the epochs below the manifest's what it accepts, of its own epoch everything up to the
//!    last valid entry. Whatever of that could be in memory only is synced, so that nothing is accepted that a power
//!    loss could take back.
//! 4. Write the manifest of the own epoch, with all that.
//!
//! The head of each epoch's segments names the position that it continues; one that does not fit is damage. Nothing
//! of another epoch is written, shortened or removed here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::checkpoint::{CheckpointBody, CheckpointId};
use super::entry::ENTRY_ALIGNMENT;
use super::folder::Folder;
use super::pack::Pack;
use super::places::Places;
use super::replayed_segment::{Pass, ReplayedSegment, SegmentEnd};
use super::segment::{Position, SegmentId};
use super::walk::{self, Depth, Step, Walk};
use super::{damaged, io_error};
use crate::disk;
use crate::model::id::{Epoch, OffsetRange};
use crate::model::snapshot::{Snapshot, SnapshotError};
use crate::store::codec::{Head, PublishedHead};
use crate::store::manifest::{Manifest, Sealed};
use crate::store::{Fenced, Mode, OpenOptions, StoreError};

/// What was recovered.
#[derive(Debug)]
pub struct Recovered {
    /// The state.
    pub snapshot: Snapshot,
    /// Where the messages are.
    pub places: Places,
    /// The end of the journal.
    pub end: Position,
    /// The checkpoint that was used, and its position.
    pub checkpoint: Option<(CheckpointId, Position)>,
    /// Bytes of its file.
    pub checkpoint_bytes: u64,
    /// Bytes of entries that were read after the checkpoint.
    pub tail_bytes: u64,
    /// The manifest of the own epoch, not yet written.
    pub manifest: Manifest,
    /// The damage at which a salvage has ended.
    pub cut_off: Option<StoreError>,
}

/// What a recovery is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// What counts is going to be fixed, so it must be whole and on the disk.
    TakeOver,
    /// It is going to be read. Damage that it need not see is left to the reads.
    Look,
    /// As much of it as there is is going to be read.
    Salvage,
}

/// How much of an epoch counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepted {
    Nothing,
    UpTo(Position),
    WhatIsValid,
}

struct Recovery {
    purpose: Purpose,
    journal: PathBuf,
    folder: Folder,
    newest: Option<Manifest>,
    snapshot: Snapshot,
    places: Places,
    end: Position,
    tail_bytes: u64,
}

/// Reads the journal, for the epoch that takes it over. Changes nothing, but makes durable what it accepts.
///
/// # Errors
/// Where it is damaged or incomplete, or a higher epoch has been there.
pub fn recover(options: &OpenOptions) -> Result<Recovered, StoreError> {
    read(&options.dir, options.epoch, None, Purpose::TakeOver)
}

/// Reads the journal that `manifest` names and nobody serves. Changes nothing at all. Messages may be missing or
/// damaged: where what is in front of them is whole, that is found when they are read.
///
/// # Errors
/// Where it is damaged where it must be replayed.
pub fn look(dir: &Path, manifest: &Manifest) -> Result<Recovered, StoreError> {
    let mut recovered = read(dir, Epoch(u64::MAX), Some(manifest), Purpose::Look)?;
    recovered.places.end_writing();
    Ok(recovered)
}

/// As [`look`], of a journal that may be damaged: what is behind the first damage that cannot be passed over does not
/// count. Answers that too.
///
/// # Errors
/// Where nothing can be read.
pub fn look_at_what_is_left(
    dir: &Path,
    manifest: &Manifest,
) -> Result<(Recovered, Option<StoreError>), StoreError> {
    let mut recovered = read(dir, Epoch(u64::MAX), Some(manifest), Purpose::Salvage)?;
    recovered.places.end_writing();
    let damage = recovered.cut_off.take();
    Ok((recovered, damage))
}

/// Reads the journal that `manifest` names, or the newest one.
fn read(
    dir: &Path,
    epoch: Epoch,
    manifest: Option<&Manifest>,
    purpose: Purpose,
) -> Result<Recovered, StoreError> {
    let journal = dir.join("journal");
    let folder = Folder::list(&journal)?;
    let newest = match manifest {
        Some(manifest) => Some(manifest.clone()),
        None => Manifest::newest(dir, epoch)?,
    };
    check_epochs(dir, epoch, &folder, newest.as_ref())?;
    let mut recovery = Recovery {
        purpose,
        journal,
        folder,
        newest,
        snapshot: Snapshot::default(),
        places: Places::default(),
        end: Position::default(),
        tail_bytes: 0,
    };
    let checkpoint = recovery.restore_checkpoint()?;
    let checkpoint_bytes = match checkpoint {
        Some((id, ..)) => {
            let path = id.path(&recovery.journal);
            disk::length_at(&path).map_err(io_error("look at", &path))?
        }
        None => 0,
    };
    let mut sealed = BTreeMap::new();
    let cut_off = match recovery.apply_all(checkpoint, &mut sealed) {
        // Where not even the beginning could be applied, a store without any topic would be passed off as what is left.
        Err(error) if purpose == Purpose::Salvage && recovery.snapshot != Snapshot::default() => Some(error),
        applied => applied.map(|()| None)?,
    };
    recovery.places.trim_all(&recovery.snapshot);
    if purpose == Purpose::TakeOver {
        recovery.check_complete()?;
        recovery.sync_names()?;
    }
    let manifest = recovery.manifest(epoch, &sealed);
    Ok(Recovered {
        snapshot: recovery.snapshot,
        places: recovery.places,
        end: recovery.end,
        checkpoint: checkpoint.map(|(id, position, _)| (id, position)),
        checkpoint_bytes,
        tail_bytes: recovery.tail_bytes,
        manifest,
        cut_off,
    })
}

/// Refuses a folder that does not go with the newest manifest.
fn check_epochs(
    dir: &Path,
    epoch: Epoch,
    folder: &Folder,
    newest: Option<&Manifest>,
) -> Result<(), StoreError> {
    let highest = folder.segments.last().map_or(Epoch(0), |segment| segment.epoch);
    let manifest_epoch = newest.map_or(Epoch(0), |manifest| manifest.epoch);
    let taken = highest.max(manifest_epoch);
    if taken >= epoch {
        return Err(Fenced::Superseded(taken).into());
    }
    let manifests = dir.join("manifest");
    if highest > manifest_epoch {
        return Err(StoreError::Missing { path: manifests.join(format!("{:020}", highest.0)) });
    }
    newest.map_or(Ok(()), |manifest| Ok(manifest.check_mode(Mode::File)?))
}

impl Recovery {
    fn accepted(&self, epoch: Epoch) -> Accepted {
        let Some(manifest) = self.newest.as_ref() else { return Accepted::Nothing };
        if epoch == manifest.epoch {
            return Accepted::WhatIsValid;
        }
        match manifest.sealed.iter().find(|sealed| sealed.epoch == epoch) {
            Some(&Sealed { segment, bytes, .. }) if segment > 0 => {
                Accepted::UpTo(Position { segment: SegmentId { epoch, number: segment }, at: bytes })
            }
            _ => Accepted::Nothing,
        }
    }

    /// The epochs after `epoch` of which something may count, in their order.
    fn epochs_after(&self, epoch: Epoch) -> Vec<Epoch> {
        let sealed =
            self.newest.iter().flat_map(|manifest| manifest.sealed.iter().map(|sealed| sealed.epoch));
        let newest = self.newest.as_ref().map(|manifest| manifest.epoch);
        let all: BTreeSet<Epoch> = sealed.chain(newest).filter(|&other| other > epoch).collect();
        all.into_iter().filter(|&epoch| self.accepted(epoch) != Accepted::Nothing).collect()
    }

    /// Takes the newest checkpoint that is valid and accepted. Answers it with the position and chain to go on from.
    fn restore_checkpoint(&mut self) -> Result<Option<(CheckpointId, Position, u32)>, StoreError> {
        for &id in self.folder.checkpoints.iter().rev() {
            let accepted = self.accepted(id.epoch);
            if accepted == Accepted::Nothing {
                continue;
            }
            let Some(body) = CheckpointBody::read(&self.journal, id)? else {
                tracing::warn!(
                    "{} is not valid, the checkpoint before it is used",
                    id.path(&self.journal).display()
                );
                continue;
            };
            if matches!(accepted, Accepted::UpTo(end) if body.position > end) {
                continue;
            }
            self.snapshot = body.snapshot;
            self.places = Places::restore(body.places);
            self.end = body.position;
            return Ok(Some((id, body.position, body.chain)));
        }
        Ok(None)
    }

    /// Applies what counts of all epochs behind a checkpoint. Notes how far each counts.
    fn apply_all(
        &mut self,
        checkpoint: Option<(CheckpointId, Position, u32)>,
        sealed: &mut BTreeMap<Epoch, Sealed>,
    ) -> Result<(), StoreError> {
        if let Some((id, position, chain)) = checkpoint {
            sealed.insert(id.epoch, self.apply_epoch(id.epoch, Some((position, chain)))?);
        }
        for epoch in self.epochs_after(self.end.segment.epoch) {
            sealed.insert(epoch, self.apply_epoch(epoch, None)?);
        }
        Ok(())
    }

    /// Applies what counts of an epoch: all of it, or what is behind a checkpoint. Answers how far it counts. Step
    /// `ApplyEpoch` of `tests/ha_model`, for the epoch that wrote the newest manifest.
    fn apply_epoch(&mut self, epoch: Epoch, from: Option<(Position, u32)>) -> Result<Sealed, StoreError> {
        let accepted = self.accepted(epoch);
        let first = SegmentId { epoch, number: 1 };
        let has_segments = self.folder.segments.range(first..).next().is_some_and(|next| next.epoch == epoch);
        if !has_segments && accepted == Accepted::WhatIsValid && from.is_none() {
            return Ok(Sealed { epoch, segment: 0, bytes: 0 });
        }
        let (start, mut chain) = match from {
            Some((position, chain)) => (position, Some(chain)),
            None => (Position::start_of(first), None),
        };
        let mut position = start;
        let mut is_start = from.is_none();
        loop {
            let mut segment = ReplayedSegment::open(&self.journal, position.segment, chain)?;
            let (path, head) = (segment.path.clone(), segment.head);
            if is_start && head.continues != self.end {
                let what =
                    format!("epoch {epoch} continues {:?}, but {:?} was found", head.continues, self.end);
                return Err(damaged(&path, 32, what));
            }
            is_start = false;
            if from.is_none_or(|(from, _)| from.segment != position.segment) {
                let bytes = segment.file.length().map_err(io_error("look at", &path))?;
                self.places.open_segment(position.segment, position.at, bytes);
            } else {
                self.places.continue_segment(position.segment);
            }
            let end = self.apply_segment(&mut segment, position.at, accepted)?;
            self.tail_bytes += end.at() - position.at;
            position.at = end.at();
            self.end = position;
            chain = segment.chain;
            match end {
                SegmentEnd::Last(at) => {
                    return Ok(Sealed { epoch, segment: position.segment.number, bytes: at });
                }
                SegmentEnd::Full(_) => position = Position::start_of(position.segment.next()),
            }
        }
    }

    fn apply_segment(
        &mut self,
        segment: &mut ReplayedSegment,
        from: u64,
        accepted: Accepted,
    ) -> Result<SegmentEnd, StoreError> {
        let is_fixed = accepted == Accepted::WhatIsValid && self.purpose == Purpose::TakeOver;
        if is_fixed {
            segment.sync()?;
            segment.forget_cached(from)?;
        }
        let mut from = from;
        let mut looked_again_at = None;
        let end = loop {
            match self.walk_segment(segment, from, accepted)? {
                Pass::End(end) => break end,
                // A master that is slow to notice that it has lost may have written here after it was read, and then
                // behind it. Read afresh, what was synced before the one behind is there, or it is damaged.
                Pass::Gap(at, _) if accepted == Accepted::WhatIsValid && looked_again_at != Some(at) => {
                    segment.open_anew()?;
                    (from, looked_again_at) = (at, Some(at));
                }
                Pass::Gap(at, what) => return Err(damaged(&segment.path, at, what)),
            }
        };
        if is_fixed {
            segment.sync()?;
        }
        Ok(end)
    }

    /// Applies the entries of a segment from `from` on, up to its end or a gap.
    fn walk_segment(
        &mut self,
        segment: &mut ReplayedSegment,
        from: u64,
        accepted: Accepted,
    ) -> Result<Pass, StoreError> {
        let id = segment.head.id;
        let mut walk = Walk::new(&segment.file, &segment.path, segment.head.marks(), from, segment.chain);
        let pass = loop {
            let at = walk.at();
            let here = Position { segment: id, at };
            match accepted {
                Accepted::UpTo(end) if here == end => break Pass::End(SegmentEnd::Last(at)),
                Accepted::UpTo(end) if here > end => {
                    return Err(damaged(&segment.path, end.at, "the manifest ends within an entry"));
                }
                _ => {}
            }
            match self.step(&mut walk, segment, accepted)? {
                Step::Commit(entry, heads) => {
                    self.apply_heads(&segment.path, entry.position, heads)?;
                    self.places.extend(walk.at());
                }
                Step::Packed(packed) => {
                    self.places.pack(&packed);
                    self.places.extend(walk.at());
                }
                Step::Index(_) => {
                    self.places.seal(at, walk.at());
                    break Pass::End(SegmentEnd::Full(walk.at()));
                }
                Step::Bad(what) => {
                    let synced = match accepted {
                        Accepted::UpTo(_) => true,
                        _ => self.is_followed(segment, here)?,
                    };
                    break if synced { Pass::Gap(at, what) } else { Pass::End(SegmentEnd::Last(at)) };
                }
            }
        };
        segment.chain = walk.chain();
        Ok(pass)
    }

    /// The next entry. Whoever only looks passes over messages that are damaged, if they once were whole.
    fn step(
        &self,
        walk: &mut Walk<'_>,
        segment: &ReplayedSegment,
        accepted: Accepted,
    ) -> Result<Step, StoreError> {
        let here = Position { segment: segment.head.id, at: walk.at() };
        match walk.step(Depth::Blocks)? {
            Step::Bad(what) if self.purpose != Purpose::TakeOver => {
                let was_whole = matches!(accepted, Accepted::UpTo(_)) || self.is_followed(segment, here)?;
                if was_whole { walk.step(Depth::Heads) } else { Ok(Step::Bad(what)) }
            }
            step => Ok(step),
        }
    }

    /// Whether the journal has an entry of the same epoch behind `after`.
    fn is_followed(&self, segment: &ReplayedSegment, after: Position) -> Result<bool, StoreError> {
        if walk::is_followed(&segment.file, &segment.path, segment.head, after)? {
            return Ok(true);
        }
        let later = self.folder.segments.range(after.segment.next()..);
        for &id in later.take_while(|later| later.epoch == after.segment.epoch) {
            let later = ReplayedSegment::open(&self.journal, id, None)?;
            if walk::is_followed(&later.file, &later.path, later.head, after)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn apply_heads(&mut self, path: &Path, position: Position, heads: Vec<Head>) -> Result<(), StoreError> {
        for head in heads {
            let applied = match head {
                Head::Change(record) => self.snapshot.apply(&record),
                Head::Published(head) => {
                    for &(topic, first) in &head.targets {
                        let range = OffsetRange::new(first.0, first.0 + u64::from(head.count));
                        self.places.publish(topic, range, position.at, u64::from(head.bytes));
                    }
                    self.publish(&head)
                }
                Head::Elsewhere(head, place) => {
                    self.places.add_pack(&Pack::of(&head, place, position.segment.epoch));
                    self.publish(&head)
                }
            };
            applied.map_err(|source| StoreError::Inconsistent { path: path.to_owned(), source })?;
        }
        Ok(())
    }

    fn publish(&mut self, head: &PublishedHead) -> Result<(), SnapshotError> {
        let PublishedHead { targets, source, at, count, bytes, .. } = head;
        self.snapshot.apply_published(targets, source, *at, u64::from(*count), u64::from(*bytes))
    }

    /// Makes the names durable of all that is accepted: whoever gave one may have died, or stand still, before it did so.
    /// A manifest that names a file which a power loss then takes back would be that of a store that cannot be opened.
    fn sync_names(&self) -> Result<(), StoreError> {
        match disk::sync_folder(&self.journal) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("sync", &self.journal)(error)),
            _ => Ok(()),
        }
    }

    /// Refuses a journal where a file that is still needed is missing or too short, or where messages are.
    fn check_complete(&self) -> Result<(), StoreError> {
        for (file, place) in self.places.files().iter().filter(|(_, place)| place.held > 0) {
            let path = file.path(&self.journal);
            match disk::length_at(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Err(StoreError::Missing { path });
                }
                Err(error) => return Err(io_error("look at", &path)(error)),
                // The last entry is whole even where the zeros behind it are not there.
                Ok(length) if length + ENTRY_ALIGNMENT <= place.end => {
                    return Err(damaged(&path, length, "the file ends before its last entry"));
                }
                Ok(_) => {}
            }
        }
        match self.places.first_gap(&self.snapshot) {
            Some((topic, offset)) => {
                Err(damaged(&self.journal, 0, format!("message {offset} of topic {topic} is nowhere")))
            }
            None => Ok(()),
        }
    }

    fn manifest(&self, epoch: Epoch, scanned: &BTreeMap<Epoch, Sealed>) -> Manifest {
        let epochs = self.folder.epochs().into_iter().filter(|&other| other < epoch);
        let seal = |epoch| match (self.accepted(epoch), scanned.get(&epoch)) {
            (Accepted::WhatIsValid, Some(&sealed)) => sealed,
            (Accepted::UpTo(end), _) => Sealed { epoch, segment: end.segment.number, bytes: end.at },
            _ => Sealed { epoch, segment: 0, bytes: 0 },
        };
        Manifest { epoch, mode: Mode::File, sealed: epochs.map(seal).collect(), database: None }
    }
}

#[cfg(test)]
mod tests;
