//! What of a store can be read, and what cannot: for stores that are, or may be, damaged.
//!
//! A survey reads everything that counts: the state, every message that is still there, and what the mode keeps
//! beside them. Where something cannot be read it goes on behind it. Messages that are settled and wait to be removed
//! are not read: nobody misses them.
//!
//! What can be read makes a whole store again: lost messages are like messages that were removed, and settled for
//! every group, because nobody will ever get them.

use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::image::{Image, READ_BYTES};
use super::manifest::Manifest;
use super::{Mode, StoreError, database, file};
use crate::model::chunk::Chunk;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::marks::Marks;
use crate::model::snapshot::Snapshot;

/// How much shorter a read becomes when it fails, until it is for one message alone.
const SHORTER: usize = 32;

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in it, in bytes, where that is known.
    pub position: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What cannot be read for it.
    pub lost: Lost,
}

/// What is lost with something that is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Nothing that counts.
    Nothing,
    /// These messages.
    Messages(TopicId, OffsetRange),
    /// More than can be told.
    Unknown,
}

impl Lost {
    /// The messages, where it is known which.
    #[must_use]
    pub const fn messages(self) -> Option<(TopicId, OffsetRange)> {
        match self {
            Self::Messages(topic, range) => Some((topic, range)),
            Self::Nothing | Self::Unknown => None,
        }
    }
}

impl Damage {
    /// What an error tells, in a file of the store in `dir`.
    #[must_use]
    pub fn of(dir: &Path, error: &StoreError) -> Self {
        let (path, position, what) = match error {
            StoreError::Damaged { path, position, what } => {
                // A database does not say where: it has pages, and rows anywhere in them.
                (path.clone(), (*position > 0).then_some(*position), what.clone())
            }
            StoreError::Missing { path } => (path.clone(), None, "the file is missing".to_owned()),
            StoreError::Io { path, source, action } => {
                (path.clone(), None, format!("it cannot be used ({action}): {source}"))
            }
            StoreError::Inconsistent { path, source } => (path.clone(), None, source.to_string()),
            other => (dir.to_owned(), None, other.to_string()),
        };
        Self { path, position, what, lost: Lost::Nothing }
    }
}

/// What was found.
#[derive(Default)]
pub struct Survey {
    /// What cannot be read, or is not as it was written.
    pub damages: Vec<Damage>,
    /// What can be read.
    pub digest: Digest,
    /// The state as far as it can be read, without the messages that are lost.
    pub snapshot: Snapshot,
    /// What there is to read from; `None` where the state itself cannot be read.
    pub image: Option<Box<dyn Image>>,
}

/// Reads everything in the store that `manifest` names and nobody serves. `watch` is told how many messages were read.
///
/// # Errors
/// Only where nothing can be told at all: the files are of a newer format, or belong to another process.
pub fn survey(dir: &Path, manifest: &Manifest, watch: &mut dyn FnMut(u64)) -> Result<Survey, StoreError> {
    let mut damages = match manifest.mode {
        Mode::Database => database::inspect_files(dir, manifest)?,
        Mode::File => file::inspect_files(dir)?,
    };
    let looked = match manifest.mode {
        Mode::Database => database::look_at_what_is_left(dir, manifest),
        Mode::File => file::look_at_what_is_left(dir, manifest),
    };
    let (mut image, lost) = match looked {
        Ok(looked) => looked,
        Err(error @ (StoreError::NewerFormat { .. } | StoreError::NoRights { .. })) => return Err(error),
        Err(error) => {
            damages.push(Damage::of(dir, &error));
            return Ok(Survey { damages, ..Survey::default() });
        }
    };
    damages.extend(lost);
    let mut snapshot = image.snapshot().clone();
    let mut digest = Digest::default();
    let mut read = 0;
    let topics: Vec<TopicId> = snapshot.topics.keys().copied().collect();
    for topic in topics {
        let before = damages.len();
        let mut marks = Marks::new();
        let mut take = |chunk: &Chunk| {
            mark(&mut marks, chunk);
            digest.add(topic, chunk);
            read += chunk.block.count() as u64;
            watch(read);
        };
        read_topic(dir, image.as_mut(), topic, &mut damages, &mut take);
        if let Some(state) = snapshot.topics.get_mut(&topic)
            && state.marks == Marks::new()
        {
            // They are lost, or never were.
            state.marks = marks;
        }
        for damage in &damages[before..] {
            if let Lost::Messages(topic, range) = damage.lost {
                lose(&mut snapshot, topic, range);
            }
        }
    }
    Ok(Survey { damages, digest, snapshot, image: Some(image) })
}

/// Notes how a topic grew by what is left of it.
fn mark(marks: &mut Marks, chunk: &Chunk) {
    let mut first = 0;
    for stamp in &chunk.stamps {
        let end = first + stamp.count as usize;
        let bytes = chunk.block.position(end) - chunk.block.position(first);
        let offset = Offset(chunk.first.0 + first as u64);
        marks.appended(offset, u64::from(stamp.count), bytes as u64, stamp.published_at);
        first = end;
    }
}

/// Reads that become shorter where they fail: a long one may fail for what is far behind its first message.
#[derive(Debug)]
struct Nearing {
    bytes_max: usize,
}

impl Default for Nearing {
    fn default() -> Self {
        Self { bytes_max: READ_BYTES }
    }
}

impl Nearing {
    /// As [`Image::read`]; an error is one of the first message.
    fn read(
        &mut self,
        image: &mut dyn Image,
        topic: TopicId,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Option<Chunk>, StoreError> {
        loop {
            match image.read(topic, from, bytes_max.min(self.bytes_max)) {
                Err(_) if self.bytes_max > 1 => self.bytes_max = (self.bytes_max / SHORTER).max(1),
                Err(error) => return Err(error),
                answer => {
                    self.bytes_max = READ_BYTES.min(self.bytes_max * 2);
                    return answer;
                }
            }
        }
    }
}

/// Reads a topic from its start to its end; what cannot be read is passed over, message by message.
fn read_topic(
    dir: &Path,
    image: &mut dyn Image,
    topic: TopicId,
    damages: &mut Vec<Damage>,
    take: &mut dyn FnMut(&Chunk),
) {
    let Some(state) = image.snapshot().topics.get(&topic).cloned() else { return };
    let first = damages.len();
    let mut at = state.start;
    let mut nearing = Nearing::default();
    loop {
        let run = state.next_run(at);
        if run.is_empty() {
            return;
        }
        match nearing.read(image, topic, run.start, READ_BYTES) {
            Ok(Some(chunk)) if chunk.range().end > run.start => {
                take(&chunk);
                at = chunk.range().end;
            }
            answer => {
                at = run.start.next();
                let damage = match answer {
                    Err(error) => Damage::of(dir, &error),
                    Ok(_) => Damage {
                        path: dir.to_owned(),
                        position: None,
                        what: format!("message {} of topic {topic} is nowhere", run.start),
                        lost: Lost::Nothing,
                    },
                };
                note(damages, first, damage, topic, OffsetRange { start: run.start, end: at });
            }
        }
    }
}

/// Notes that a message is lost: with the one before it, where one cause has taken both.
fn note(damages: &mut Vec<Damage>, first: usize, damage: Damage, topic: TopicId, range: OffsetRange) {
    let last = damages.get_mut(first..).and_then(<[Damage]>::last_mut);
    if let Some(last) = last
        && (&last.path, last.position) == (&damage.path, damage.position)
        && let Lost::Messages(_, lost) = &mut last.lost
        && lost.end == range.start
    {
        lost.end = range.end;
        return;
    }
    damages.push(Damage { lost: Lost::Messages(topic, range), ..damage });
}

/// Takes messages that are lost out of the state.
fn lose(snapshot: &mut Snapshot, topic: TopicId, range: OffsetRange) {
    for group in snapshot.groups.values_mut().filter(|group| group.topic == topic) {
        let unsettled = OffsetRange { start: group.floor.max(range.start), end: range.end };
        if !unsettled.is_empty() {
            group.settle(unsettled);
        }
    }
    if let Some(state) = snapshot.topics.get_mut(&topic) {
        if state.next_run(state.start).start == range.start {
            state.trim(range.end.max(state.start));
        } else {
            state.removed.insert(range);
        }
    }
}

/// What can be read of a damaged store, as an image of a whole one.
pub struct Readable {
    snapshot: Snapshot,
    image: Box<dyn Image>,
    nearing: Nearing,
}

impl Readable {
    /// What a survey has found; `None` where the state itself cannot be read.
    #[must_use]
    pub fn of(survey: Survey) -> Option<Self> {
        Some(Self { snapshot: survey.snapshot, image: survey.image?, nearing: Nearing::default() })
    }
}

impl Image for Readable {
    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn read(&mut self, topic: TopicId, from: Offset, bytes_max: usize) -> Result<Option<Chunk>, StoreError> {
        let state = self.snapshot.topics.get(&topic);
        let Some(run) = state.and_then(|state| state.run_at(from)) else { return Ok(None) };
        let chunk = self.nearing.read(self.image.as_mut(), topic, from, bytes_max)?;
        Ok(chunk.map(|chunk| chunk.up_to(run.end)))
    }
}
