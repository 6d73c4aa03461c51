//! What segments and packs hold by themselves, where neither a checkpoint nor the beginning of the journal can be read.
//!
//! The state before the first segment that is left is lost. What can be said without it: messages are where the heads of
//! publishes have them, in segments and in packs; topics and groups are those that the remaining records create. A topic
//! whose creation is gone gets a name that says so. A group or a route whose creation is gone is lost, and a message
//! that was trimmed or settled by a record that is gone is there again: nobody loses a message by that.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::file_id::FileId;
use super::folder::Folder;
use super::image::FileImage;
use super::pack::{Pack, PackHead, PackRun};
use super::places::{Places, run_bytes};
use super::replayed_segment::ReplayedSegment;
use super::segment::{ENTRIES_START, Position, SegmentId};
use super::walk::{self, Depth, Step, Walk, published};
use super::{FOLDER, io_error};
use crate::disk;
use crate::model::id::{Epoch, GroupId, Offset, OffsetRange, Sequence, TopicId};
use crate::model::ranges::RangeSet;
use crate::model::record::Record;
use crate::model::settings::TopicSettings;
use crate::model::snapshot::{Snapshot, SnapshotError, TopicState};
use crate::model::topic_kind::TopicKind;
use crate::store::codec::{Head, PublishedHead};
use crate::store::image::Image;
use crate::store::manifest::Manifest;
use crate::store::survey::{Damage, Lost};
use crate::store::{StoreError, orphans};

/// Files that an error names at most.
const FILES_NAMED_MAX: usize = 5;

/// What segments and packs hold by themselves, where the state cannot be read for `error`.
///
/// # Errors
/// Where they hold nothing.
pub(super) fn look(
    dir: &Path,
    manifest: &Manifest,
    error: StoreError,
) -> Result<(Box<dyn Image>, Vec<Damage>), StoreError> {
    let Some(gleaned) = glean(dir, manifest)? else { return Err(without_state(dir, error)) };
    let journal = dir.join(FOLDER);
    let damage = Damage::of(dir, &error);
    let what = format!(
        "{}; no checkpoint can be read and the journal does not go back to its beginning, so what is there was put \
         together from segments and packs: messages that were settled may be there again",
        damage.what
    );
    let mut damages = vec![Damage { what, lost: Lost::Unknown, ..damage }];
    let lost = |what| Damage { path: journal.clone(), position: None, what, lost: Lost::Unknown };
    damages.extend(gleaned.lost.into_iter().map(lost));
    Ok((Box::new(FileImage::gleaned(&journal, gleaned.places, gleaned.snapshot)), damages))
}

/// What it means that neither a checkpoint nor the beginning of the journal can be read for `error`: names the files that
/// may still have messages.
fn without_state(dir: &Path, error: StoreError) -> StoreError {
    if matches!(error, StoreError::NewerFormat { .. } | StoreError::NoRights { .. }) {
        return error;
    }
    let journal = dir.join(FOLDER);
    let Ok(folder) = Folder::list(&journal) else { return error };
    let segments = folder.segments.iter().map(|&segment| FileId::from(segment));
    let files: Vec<_> = segments.chain(folder.packs).map(|file| file.path(&journal)).collect();
    let named: Vec<_> = files.iter().take(FILES_NAMED_MAX).map(|path| path.display().to_string()).collect();
    let more = match files.len().saturating_sub(FILES_NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let what = format!(
        "no checkpoint can be read, and the journal cannot be replayed from its beginning ({}), so nothing says which \
         topics and groups there were: all messages in {}{more} are lost to `baton store salvage`",
        Damage::of(dir, &error).what,
        named.join(", ")
    );
    StoreError::Damaged { path: journal, position: 0, what }
}

/// What was found.
struct Gleaned {
    snapshot: Snapshot,
    places: Places,
    /// What is lost or made up.
    lost: Vec<String>,
}

/// Reads what `manifest` has count. `None` where there are no messages.
///
/// # Errors
/// Where the folder cannot be listed, or a file is of a newer format.
fn glean(dir: &Path, manifest: &Manifest) -> Result<Option<Gleaned>, StoreError> {
    let journal = dir.join(FOLDER);
    let folder = Folder::list(&journal)?;
    let mut gleaning = Gleaning { journal, ..Gleaning::default() };
    for &id in &folder.segments {
        if let Some(end) = end_of(manifest, id.epoch) {
            let read = gleaning.segment(id, end);
            gleaning.note(id.path(&gleaning.journal), read)?;
        }
    }
    for &id in folder.packs.iter().filter(|id| end_of(manifest, id.epoch).is_some()) {
        let read = gleaning.pack(id);
        gleaning.note(id.path(&gleaning.journal), read)?;
    }
    Ok(gleaning.finish())
}

/// Where what counts of an epoch ends; `None` where nothing of it does.
fn end_of(manifest: &Manifest, epoch: Epoch) -> Option<Position> {
    if epoch == manifest.epoch {
        return Some(Position { segment: SegmentId { epoch, number: u32::MAX }, at: u64::MAX });
    }
    let sealed = manifest.sealed.iter().find(|sealed| sealed.epoch == epoch && sealed.segment > 0)?;
    Some(Position { segment: SegmentId { epoch, number: sealed.segment }, at: sealed.bytes })
}

#[derive(Default)]
struct Gleaning {
    journal: PathBuf,
    snapshot: Snapshot,
    places: Places,
    /// Where messages were found.
    held: BTreeMap<TopicId, RangeSet>,
    /// What records say is gone.
    gone: BTreeMap<TopicId, RangeSet>,
    deleted: BTreeSet<TopicId>,
    made_up: BTreeSet<TopicId>,
    /// Groups that records name and none creates.
    unknown: BTreeSet<GroupId>,
    lost: Vec<String>,
}

impl Gleaning {
    fn note(&mut self, path: PathBuf, read: Result<(), StoreError>) -> Result<(), StoreError> {
        match read {
            Err(error @ (StoreError::NewerFormat { .. } | StoreError::NoRights { .. })) => Err(error),
            Err(error) => {
                self.lost.push(format!("{} was read only in part: {error}", path.display()));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn segment(&mut self, id: SegmentId, end: Position) -> Result<(), StoreError> {
        let segment = ReplayedSegment::open(&self.journal, id, None)?;
        let bytes = segment.file.length().map_err(io_error("look at", &segment.path))?;
        self.places.open_segment(id, ENTRIES_START, bytes);
        let mut walk = Walk::new(&segment.file, &segment.path, segment.head.marks(), ENTRIES_START, None);
        loop {
            let at = walk.at();
            if (Position { segment: id, at }) >= end {
                return Ok(());
            }
            // Blocks are checked when they are copied.
            match walk.step(Depth::Heads)? {
                Step::Commit(entry, heads) => {
                    for head in heads {
                        self.head(entry.position.at, head)?;
                    }
                    self.places.extend(walk.at());
                }
                Step::Packed(_) => self.places.extend(walk.at()),
                Step::Index(_) => {
                    self.places.seal(at, walk.at());
                    return Ok(());
                }
                Step::Bad(what) => {
                    // Otherwise it is where the epoch ended.
                    let here = Position { segment: id, at };
                    if end.at != u64::MAX
                        || walk::is_followed(&segment.file, &segment.path, segment.head, here)?
                    {
                        let path = segment.path.display();
                        self.lost.push(format!("{path}, byte {at}: {what}; what is behind it there is lost"));
                    }
                    return Ok(());
                }
            }
        }
    }

    fn head(&mut self, at: u64, head: Head) -> Result<(), StoreError> {
        match head {
            Head::Change(record) => self.change(&record),
            Head::Published(head) => {
                for (topic, range) in targets(&head) {
                    self.topic(topic, range)?;
                    if self.gaps(topic, range).first() == Some(&range) {
                        self.held.entry(topic).or_default().insert(range);
                        self.places.publish(topic, range, at, u64::from(head.bytes));
                    }
                }
                self.origin(&head);
            }
            // Its messages are found in the pack.
            Head::Elsewhere(head, _) => {
                for (topic, range) in targets(&head) {
                    self.topic(topic, range)?;
                }
                self.origin(&head);
            }
        }
        Ok(())
    }

    /// Notes that a topic had these messages.
    fn topic(&mut self, topic: TopicId, range: OffsetRange) -> Result<(), StoreError> {
        if self.deleted.contains(&topic) {
            return Ok(());
        }
        if let Entry::Vacant(vacant) = self.snapshot.topics.entry(topic) {
            let (name, settings) = (orphans::salvaged_name(topic), TopicSettings::default());
            vacant.insert(TopicState::new(name, TopicKind::Named, settings));
            self.made_up.insert(topic);
            self.snapshot.next.topic = self.snapshot.next.topic.max(topic.next());
        }
        if let Some(state) = self.snapshot.topics.get_mut(&topic) {
            state.end = state.end.max(range.end);
        }
        Ok(())
    }

    /// What of a range was not found yet.
    fn gaps(&self, topic: TopicId, range: OffsetRange) -> Vec<OffsetRange> {
        self.held.get(&topic).map_or_else(|| vec![range], |held| held.gaps(range).collect())
    }

    fn origin(&mut self, head: &PublishedHead) {
        self.snapshot.time = self.snapshot.time.max(head.at);
        for (count, origin) in head.source.origins(head.count) {
            let Some(origin) = origin else { continue };
            self.snapshot.next.producer = self.snapshot.next.producer.max(origin.producer.next());
            if let Some(state) = self.snapshot.producers.get_mut(&origin.producer) {
                let last = Sequence(origin.sequence.0 + u64::from(count).saturating_sub(1));
                state.last = state.last.max(last);
                state.seen_at = state.seen_at.max(head.at);
            }
        }
    }

    fn change(&mut self, record: &Record) {
        let next = &mut self.snapshot.next;
        match record {
            Record::TopicCreated { topic, .. } => next.topic = *topic,
            Record::GroupCreated { group, .. } => next.group = *group,
            Record::ProducerOpened { producer, .. } => next.producer = *producer,
            Record::RouteCreated { route, .. } => next.route = *route,
            Record::TopicDeleted { topic } => {
                self.deleted.insert(*topic);
            }
            Record::Trimmed { topic, start } => {
                self.gone.entry(*topic).or_default().insert(OffsetRange { start: Offset(0), end: *start });
                return;
            }
            Record::Removed { topic, ranges } => {
                let gone = self.gone.entry(*topic).or_default();
                for &range in ranges {
                    gone.insert(range);
                }
                return;
            }
            _ => {}
        }
        match (self.snapshot.apply(record), record) {
            // What it is a part of is not known yet, or lost.
            (Err(_), Record::TopicCreated { topic, name, kind, settings }) => {
                let state = TopicState::new(name.clone(), *kind, settings.clone());
                self.snapshot.topics.insert(*topic, state);
                self.snapshot.next.topic = self.snapshot.next.topic.max(topic.next());
            }
            (Err(_), Record::RouteCreated { route, rule }) => {
                self.snapshot.routes.insert(*route, rule.clone());
                self.snapshot.next.route = self.snapshot.next.route.max(route.next());
            }
            (
                Err(SnapshotError::Unknown { kind: "group", .. }),
                Record::Settled { group, .. }
                | Record::Returned { group, .. }
                | Record::HandedOut { group, .. }
                | Record::GroupChanged { group, .. }
                | Record::GroupSought { group, .. },
            )
            | (Err(_), Record::GroupCreated { group, .. }) => {
                self.unknown.insert(*group);
                self.snapshot.next.group = self.snapshot.next.group.max(group.next());
            }
            // Whether it was empty then is known when all records have been read.
            (Err(SnapshotError::NoEmptySlot { .. }), Record::SlotMoved { slot, from, until }) => {
                if let Some(state) = self.snapshot.topics.get_mut(slot) {
                    state.kind = state.kind.moved_to(*from, *until).unwrap_or(state.kind);
                }
            }
            // What is deleted without having been known is gone either way.
            _ => {}
        }
    }

    fn pack(&mut self, id: FileId) -> Result<(), StoreError> {
        let path = id.path(&self.journal);
        let file = disk::open(&path).map_err(io_error("open", &path))?;
        let bytes = file.length().map_err(io_error("look at", &path))?;
        let head = PackHead::read(&file, &path, id)?;
        let mut walk = Walk::new(&file, &path, head.marks(), ENTRIES_START, None);
        let mut runs: BTreeMap<TopicId, Vec<PackRun>> = BTreeMap::new();
        loop {
            let index = walk.at();
            match walk.step(Depth::Heads)? {
                Step::Commit(_, heads) => {
                    for head in published(&heads) {
                        for (topic, range) in targets(head) {
                            let bytes = run_bytes(u64::from(head.bytes));
                            runs.entry(topic).or_default().push(PackRun { range, bytes });
                        }
                    }
                }
                Step::Index(_) => return self.add_pack(id, index, bytes, runs),
                // A leftover, which never counted, or damage.
                Step::Packed(_) | Step::Bad(_) => {
                    self.lost.push(format!("{} has no index, so it does not count", path.display()));
                    return Ok(());
                }
            }
        }
    }

    /// Adds those messages of a pack that were not found in a segment.
    fn add_pack(
        &mut self,
        id: FileId,
        index: u64,
        bytes: u64,
        runs: BTreeMap<TopicId, Vec<PackRun>>,
    ) -> Result<(), StoreError> {
        let mut found = Vec::new();
        for (topic, copies) in runs {
            let mut kept = Vec::new();
            for copy in copies {
                self.topic(topic, copy.range)?;
                for range in self.gaps(topic, copy.range) {
                    self.held.entry(topic).or_default().insert(range);
                    kept.push(PackRun { range, bytes: copy.bytes * range.len() / copy.range.len().max(1) });
                }
            }
            found.push((topic, kept));
        }
        self.places.add_pack(&Pack { id, index, bytes, runs: found });
        Ok(())
    }

    fn finish(mut self) -> Option<Gleaned> {
        if self.held.is_empty() {
            return None;
        }
        self.places.end_writing();
        for (&id, state) in &mut self.snapshot.topics {
            let mut held = self.held.remove(&id).unwrap_or_default();
            let gone = self.gone.remove(&id).unwrap_or_default();
            gone.iter().for_each(|range| held.remove(range));
            state.start = held.iter().next().map_or(state.end, |first| first.start);
            let all = OffsetRange { start: state.start, end: state.end };
            for range in held.gaps(all) {
                state.removed.insert(range);
            }
            let below = OffsetRange { start: Offset(0), end: state.start };
            for group in self.snapshot.groups.values_mut().filter(|group| group.topic == id) {
                for range in state.removed.iter().chain([below]) {
                    let unsettled = OffsetRange { start: group.floor.max(range.start), end: range.end };
                    if !unsettled.is_empty() {
                        group.settle(unsettled);
                    }
                }
            }
        }
        let lost = orphans::settle(&mut self.snapshot);
        self.lost.extend(lost);
        let made_up = self.made_up.iter().filter(|topic| self.snapshot.topics.contains_key(topic));
        self.lost.extend(made_up.map(|topic| {
            format!(
                "name, settings and groups of topic {topic} are lost: it is called salvaged-topic-{topic}"
            )
        }));
        let groups =
            self.unknown.iter().map(|group| format!("group {group} is lost with what it had settled"));
        self.lost.extend(groups);
        Some(Gleaned { snapshot: self.snapshot, places: self.places, lost: self.lost })
    }
}

fn targets(head: &PublishedHead) -> impl Iterator<Item = (TopicId, OffsetRange)> + '_ {
    let count = u64::from(head.count);
    head.targets.iter().map(move |&(topic, first)| (topic, OffsetRange::new(first.0, first.0 + count)))
}
