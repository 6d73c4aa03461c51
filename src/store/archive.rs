//! A whole store as a stream of bytes: what a backup is when it is no directory.
//!
//! An archive does not depend on the mode. It is written front to back and read front to back, so it fits through a
//! pipe. Whoever reads one knows at its end whether it was whole; until then nothing of it counts.
//!
//! # Format, version 1
//!
//! Numbers are little-endian, checksums are CRC32C.
//!
//! ```text
//! head        0   8  magic "BATONARC"
//!             8   4  version
//!            12   4  checksum of the bytes 0..12
//! section     0   1  kind
//!             1   4  bytes of the content, at most 1 GiB
//!             5      content
//!             .   4  checksum of kind, length and content
//! ```
//!
//! Sections, in this order, and nothing behind them:
//!
//! ```text
//! 1 origin     once; JSON, one object: Origin
//! 2 state      at least once; together the encoded snapshot (see `store::codec`), cut anywhere
//! 3 messages   any number; consecutive messages of one topic, in the order of `store::course`
//!               0   4  topic
//!               4   8  offset of the first
//!              12   4  number of stamps
//!              16  29  each stamp: u32 messages, u64 published_at, u8 1 with an origin, else 0, u64 producer,
//!                      u64 sequence (0 without an origin)
//!               .      the encoded messages, one behind the other: see `model::message`
//! 4 end        once; the encoded Digest, then the checksum of all bytes before this section
//! ```
//!
//! An archive comes from outside: checksums tell of accidents, and whoever means harm writes right ones. So nothing in
//! it is believed: memory grows with the bytes that are there, and what contradicts itself is damage.

use std::io::{self, ErrorKind, Read, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError, ENCODED_BYTES_MAX};
use super::course::Course;
use super::digest::Digest;
use super::image::{Image, walk};
use super::{Mode, StoreError};
use crate::model::chunk::{Chunk, Origin as MessageOrigin, Stamp};
use crate::model::id::{Offset, ProducerId, Sequence, TopicId};
use crate::model::message::MessageBlock;
use crate::model::snapshot::Snapshot;
use crate::model::time::Timestamp;

/// Version of the format that is written.
pub const ARCHIVE_VERSION: u32 = 1;
/// The most bytes of a section's content: more than the largest message needs.
pub const SECTION_BYTES_MAX: usize = 1 << 30;

const MAGIC: &[u8; 8] = b"BATONARC";
const HEAD_BYTES: usize = 16;
const SECTION_HEAD_BYTES: usize = 5;
const STAMP_BYTES: usize = 29;
/// Bytes of the state in one section.
const STATE_PART_BYTES: usize = 1 << 20;

/// The kinds of sections.
mod kind {
    pub(super) const ORIGIN: u8 = 1;
    pub(super) const STATE: u8 = 2;
    pub(super) const MESSAGES: u8 = 3;
    pub(super) const END: u8 = 4;
}

/// Which store an archive is of. For people: a restored store has an identity of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Identity of the store; empty where it is not known.
    pub store_id: String,
    /// Its mode, which a restored store has where no other one is asked for.
    pub mode: Mode,
    /// When the archive was begun, milliseconds since 1970 by the clock of whoever made it.
    pub made_at: Timestamp,
}

/// What is wrong with an archive. Nothing of it counts then.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("the archive cannot be read: {0}")]
    Read(io::Error),
    /// It cannot be written.
    #[error("the archive cannot be written: {0}")]
    Write(io::Error),
    /// It does not begin like one.
    #[error("this is no archive of a store; `baton store backup -` writes one")]
    NotOne,
    /// A newer version wrote it.
    #[error("the archive has format {0}, this version knows up to {ARCHIVE_VERSION}: use the newer baton")]
    Newer(u32),
    /// Bytes are not what was written.
    #[error(
        "the archive is damaged at byte {position}: {what}; use another copy or another backup, nothing of this one counts"
    )]
    Damaged {
        /// Where the section begins that is wrong.
        position: u64,
        /// What is wrong.
        what: String,
    },
    /// It ends too early.
    #[error(
        "the archive ends at byte {0}, and more should follow: it was cut off; use another copy or another backup, nothing of this one counts"
    )]
    CutOff(u64),
    /// The store that is read or filled.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state has no encoded form.
    #[error("the state: {0}")]
    Codec(#[from] CodecError),
}

/// Writes all that an image has. Answers what that is.
///
/// # Errors
/// Where the image cannot be read, or the archive not be written.
pub fn write(image: &mut dyn Image, origin: &Origin, out: &mut dyn Write) -> Result<Digest, ArchiveError> {
    let mut writer = Writer { out, sum: 0 };
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend(MAGIC);
    head.extend(ARCHIVE_VERSION.to_le_bytes());
    head.extend(crc32c::crc32c(&head).to_le_bytes());
    writer.put(&head)?;
    let origin = serde_json::to_vec(origin).map_err(|error| ArchiveError::Write(error.into()))?;
    writer.section(kind::ORIGIN, &[&origin])?;
    let mut state = Vec::new();
    codec::encode(image.snapshot(), &mut state)?;
    for part in state.chunks(STATE_PART_BYTES) {
        writer.section(kind::STATE, &[part])?;
    }
    drop(state);
    let mut digest = Digest::begin(image.snapshot())?;
    walk(image, |topic, chunk| {
        digest.add(topic, chunk);
        writer.section(kind::MESSAGES, &[&message_head(topic, chunk), chunk.block.bytes()])
    })?;
    let mut end = Vec::new();
    codec::encode(&digest, &mut end)?;
    end.extend(writer.sum.to_le_bytes());
    writer.section(kind::END, &[&end])?;
    writer.out.flush().map_err(ArchiveError::Write)?;
    Ok(digest)
}

/// What stands before the encoded messages of a chunk.
fn message_head(topic: TopicId, chunk: &Chunk) -> Vec<u8> {
    let mut head = Vec::with_capacity(16 + STAMP_BYTES * chunk.stamps.len());
    head.extend(topic.0.to_le_bytes());
    head.extend(chunk.first.0.to_le_bytes());
    // A block has fewer messages than 32 bits can count, and a stamp is of at least one.
    head.extend((chunk.stamps.len() as u32).to_le_bytes());
    for stamp in &chunk.stamps {
        head.extend(stamp.count.to_le_bytes());
        head.extend(stamp.published_at.0.to_le_bytes());
        head.push(u8::from(stamp.origin.is_some()));
        let origin = stamp.origin.map_or((0, 0), |origin| (origin.producer.0, origin.sequence.0));
        head.extend(origin.0.to_le_bytes());
        head.extend(origin.1.to_le_bytes());
    }
    head
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    /// Checksum of everything so far.
    sum: u32,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        self.out.write_all(bytes).map_err(ArchiveError::Write)
    }

    fn section(&mut self, kind: u8, content: &[&[u8]]) -> Result<(), ArchiveError> {
        let len: usize = content.iter().map(|part| part.len()).sum();
        if len > SECTION_BYTES_MAX {
            return Err(CodecError::TooLarge(len).into());
        }
        let mut head = [kind; SECTION_HEAD_BYTES];
        head[1..].copy_from_slice(&(len as u32).to_le_bytes());
        let mut sum = crc32c::crc32c(&head);
        self.put(&head)?;
        for part in content {
            sum = crc32c::crc32c_append(sum, part);
            self.put(part)?;
        }
        self.put(&sum.to_le_bytes())
    }
}

/// An archive that is being read.
pub struct Reader<R> {
    input: R,
    /// Bytes that were read.
    position: u64,
    /// Checksum of them.
    sum: u32,
    origin: Origin,
    snapshot: Snapshot,
    course: Course,
    digest: Digest,
    /// The section of messages that follows the state, or the end.
    ahead: Option<Section>,
}

/// A section whose checksum is right.
struct Section {
    kind: u8,
    content: Bytes,
    /// Where it begins.
    position: u64,
    /// Checksum of all bytes before it.
    sum_before: u32,
}

impl Section {
    fn damaged(&self, what: impl Into<String>) -> ArchiveError {
        ArchiveError::Damaged { position: self.position, what: what.into() }
    }
}

impl<R: Read> Reader<R> {
    /// Begins to read: origin and state.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub fn open(input: R) -> Result<Self, ArchiveError> {
        let snapshot = Snapshot::default();
        let mut reader = Self {
            input,
            position: 0,
            sum: 0,
            origin: Origin { store_id: String::new(), mode: Mode::default(), made_at: Timestamp(0) },
            course: Course::new(&snapshot),
            digest: Digest::default(),
            snapshot,
            ahead: None,
        };
        reader.head()?;
        let section = reader.section()?;
        if section.kind != kind::ORIGIN {
            return Err(section.damaged("it does not begin with its origin"));
        }
        reader.origin =
            serde_json::from_slice(&section.content).map_err(|error| section.damaged(error.to_string()))?;
        let mut state = Vec::new();
        let behind = loop {
            let section = reader.section()?;
            if section.kind != kind::STATE {
                break section;
            }
            if state.len() + section.content.len() > ENCODED_BYTES_MAX {
                return Err(section.damaged("the state is larger than any can be"));
            }
            state.extend_from_slice(&section.content);
        };
        reader.snapshot =
            codec::decode(&state).map_err(|error| behind.damaged(format!("the state before it: {error}")))?;
        if let Some(what) = contradiction(&reader.snapshot) {
            return Err(behind.damaged(format!("the state before it: {what}")));
        }
        reader.course = Course::new(&reader.snapshot);
        reader.digest = Digest::begin(&reader.snapshot)?;
        reader.ahead = Some(behind);
        Ok(reader)
    }

    /// Which store it is of.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The state.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The next messages; `None` where the archive has ended and was whole.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub fn next_messages(&mut self) -> Result<Option<(TopicId, Chunk)>, ArchiveError> {
        let section = match self.ahead.take() {
            Some(section) => section,
            None => self.section()?,
        };
        match section.kind {
            kind::MESSAGES => {
                let (topic, chunk) = messages(&section)?;
                self.course.pass(topic, chunk.range()).map_err(|error| section.damaged(error.to_string()))?;
                self.digest.add(topic, &chunk);
                Ok(Some((topic, chunk)))
            }
            kind::END => self.end(&section).map(|()| None),
            other => Err(section.damaged(format!("a section of kind {other} has no business here"))),
        }
    }

    /// What was read; to be asked for at the end.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    fn end(&mut self, section: &Section) -> Result<(), ArchiveError> {
        let Some((digest, sum)) = section.content.split_last_chunk() else {
            return Err(section.damaged("the end is too short"));
        };
        let digest: Digest = codec::decode(digest).map_err(|error| section.damaged(error.to_string()))?;
        self.course.end().map_err(|error| section.damaged(error.to_string()))?;
        if u32::from_le_bytes(*sum) != section.sum_before {
            return Err(section.damaged("the checksum over all is not that of what was read"));
        }
        if let Some(difference) = digest.difference(&self.digest) {
            return Err(section.damaged(difference));
        }
        let behind = self.input.read(&mut [0]).map_err(ArchiveError::Read)?;
        if behind > 0 {
            let what = "something follows behind its end".to_owned();
            return Err(ArchiveError::Damaged { position: self.position, what });
        }
        Ok(())
    }

    fn head(&mut self) -> Result<(), ArchiveError> {
        let mut head = [0; HEAD_BYTES];
        match self.fill(&mut head) {
            Err(ArchiveError::CutOff(_)) if !head.starts_with(MAGIC) => return Err(ArchiveError::NotOne),
            filled => filled?,
        }
        let [magic @ .., a, b, c, d, e, f, g, h] = head;
        if &magic != MAGIC {
            return Err(ArchiveError::NotOne);
        }
        let version = u32::from_le_bytes([a, b, c, d]);
        if u32::from_le_bytes([e, f, g, h]) != crc32c::crc32c(&head[..12]) {
            return Err(ArchiveError::Damaged { position: 0, what: "bad checksum of the head".to_owned() });
        }
        match version {
            ARCHIVE_VERSION => Ok(()),
            0 => {
                let what = "version 0 was never written".to_owned();
                Err(ArchiveError::Damaged { position: 8, what })
            }
            newer => Err(ArchiveError::Newer(newer)),
        }
    }

    fn section(&mut self) -> Result<Section, ArchiveError> {
        let (position, sum_before) = (self.position, self.sum);
        let damaged = |what: &str| ArchiveError::Damaged { position, what: what.to_owned() };
        let mut head = [0; SECTION_HEAD_BYTES];
        self.fill(&mut head)?;
        let [kind, len @ ..] = head;
        let len = u32::from_le_bytes(len) as usize;
        if len > SECTION_BYTES_MAX {
            return Err(damaged("a section is longer than any can be"));
        }
        // Memory grows with what is there, whatever the length says.
        let mut content = Vec::with_capacity(len.min(2 * STATE_PART_BYTES));
        let read = (&mut self.input).take(len as u64).read_to_end(&mut content);
        self.position += content.len() as u64;
        if read.map_err(ArchiveError::Read)? < len {
            return Err(ArchiveError::CutOff(self.position));
        }
        self.sum = crc32c::crc32c_append(self.sum, &content);
        let found = crc32c::crc32c_append(crc32c::crc32c(&head), &content);
        let mut sum = [0; 4];
        self.fill(&mut sum)?;
        if u32::from_le_bytes(sum) != found {
            return Err(damaged("bad checksum"));
        }
        Ok(Section { kind, content: content.into(), position, sum_before })
    }

    fn fill(&mut self, piece: &mut [u8]) -> Result<(), ArchiveError> {
        let mut filled = 0;
        while filled < piece.len() {
            match self.input.read(&mut piece[filled..]) {
                Ok(0) => return Err(ArchiveError::CutOff(self.position + filled as u64)),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Read(error)),
            }
        }
        self.position += filled as u64;
        self.sum = crc32c::crc32c_append(self.sum, piece);
        Ok(())
    }
}

/// What in a state cannot be, and whoever goes on with it relies on.
fn contradiction(snapshot: &Snapshot) -> Option<String> {
    let Snapshot { topics, groups, producers, routes, next, .. } = snapshot;
    if let Some((id, group)) = groups.iter().find(|(_, group)| !topics.contains_key(&group.topic)) {
        return Some(format!("group {id} is of topic {}, which is not there", group.topic));
    }
    // A part of a part is none.
    let is_whole = |of| topics.get(&of).is_some_and(|topic| topic.kind.part_of().is_none());
    let parts = topics.iter().filter_map(|(id, topic)| Some((id, topic.kind.part_of()?)));
    if let Some((id, of)) = parts.into_iter().find(|&(_, of)| !is_whole(of)) {
        return Some(format!("topic {id} is a part of topic {of}, which is not there or no whole one"));
    }
    let is_whole = |of| groups.get(&of).is_some_and(|group| group.part_of.is_none());
    let parts = groups.iter().filter_map(|(id, group)| Some((id, group.part_of?)));
    if let Some((id, of)) = parts.into_iter().find(|&(_, of)| !is_whole(of)) {
        return Some(format!("group {id} is a part of group {of}, which is not there or no whole one"));
    }
    let named =
        routes.iter().flat_map(|(id, route)| route.to.iter().chain([&route.from]).map(move |of| (id, of)));
    if let Some((id, of)) = named.into_iter().find(|(_, of)| !topics.contains_key(of)) {
        return Some(format!("route {id} names topic {of}, which is not there"));
    }
    // An id that is given once more would replace what has it.
    let highest = [
        ("topic", topics.keys().next_back().map(|id| u64::from(id.0)), u64::from(next.topic.0)),
        ("group", groups.keys().next_back().map(|id| u64::from(id.0)), u64::from(next.group.0)),
        ("producer", producers.keys().next_back().map(|id| id.0), next.producer.0),
        ("route", routes.keys().next_back().map(|id| u64::from(id.0)), u64::from(next.route.0)),
    ];
    let given =
        highest.into_iter().find(|&(_, highest, next)| highest.is_some_and(|highest| highest >= next));
    given.map(|(what, ..)| format!("the next {what} would get an id that is given"))
}

fn messages(section: &Section) -> Result<(TopicId, Chunk), ArchiveError> {
    let mut input = section.content.as_ref();
    let short = || section.damaged("a section of messages is too short");
    let topic = TopicId(u32::from_le_bytes(take(&mut input).ok_or_else(short)?));
    let first = Offset(u64::from_le_bytes(take(&mut input).ok_or_else(short)?));
    let count = u32::from_le_bytes(take(&mut input).ok_or_else(short)?) as usize;
    if count > input.len() / STAMP_BYTES {
        return Err(short());
    }
    let mut stamps = Vec::with_capacity(count);
    for _ in 0..count {
        let stamp = stamp(&mut input).ok_or_else(|| section.damaged("a stamp is none"))?;
        stamps.push(stamp);
    }
    let block = MessageBlock::from_store(section.content.slice_ref(input))
        .map_err(|error| section.damaged(error.to_string()))?;
    let stamped: u64 = stamps.iter().map(|stamp| u64::from(stamp.count)).sum();
    if block.is_empty() || stamped != block.count() as u64 {
        return Err(section.damaged(format!("{stamped} stamps for {} messages", block.count())));
    }
    if first.0.checked_add(stamped).is_none() {
        return Err(section.damaged("there are no such offsets"));
    }
    Ok((topic, Chunk { first, block, stamps }))
}

fn stamp(input: &mut &[u8]) -> Option<Stamp> {
    let count = u32::from_le_bytes(take(input)?);
    let published_at = Timestamp(u64::from_le_bytes(take(input)?));
    let [has_origin] = take(input)?;
    let producer = ProducerId(u64::from_le_bytes(take(input)?));
    let sequence = Sequence(u64::from_le_bytes(take(input)?));
    let origin = match has_origin {
        0 if (producer.0, sequence.0) == (0, 0) => None,
        1 => {
            // The last one of them has a number as well.
            sequence.0.checked_add(u64::from(count))?;
            Some(MessageOrigin { producer, sequence })
        }
        _ => return None,
    };
    (count > 0).then_some(Stamp { count, published_at, origin })
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = input.split_first_chunk()?;
    *input = rest;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{GroupId, RouteId};
    use crate::model::message::Message;
    use crate::model::name::Name;
    use crate::model::ranges::RangeSet;
    use crate::model::route::{Route, RouteMode};
    use crate::model::settings::{GroupSettings, TopicSettings};
    use crate::model::snapshot::{GroupState, TopicState};
    use crate::model::topic_kind::TopicKind;

    /// A store of a topic with these messages.
    struct Held {
        snapshot: Snapshot,
        chunk: Chunk,
    }

    impl Image for Held {
        fn snapshot(&self) -> &Snapshot {
            &self.snapshot
        }

        fn read(&mut self, _: TopicId, from: Offset, _: usize) -> Result<Option<Chunk>, StoreError> {
            Ok((from == self.chunk.first).then(|| self.chunk.clone()))
        }
    }

    fn held() -> Held {
        let mut snapshot = Snapshot::default();
        let mut topic = TopicState::new(Name::new("t").unwrap(), TopicKind::Named, TopicSettings::default());
        (topic.start, topic.end) = (Offset(5), Offset(7));
        snapshot.topics.insert(TopicId(1), topic);
        snapshot.next.topic = TopicId(2);
        let origin = MessageOrigin { producer: ProducerId(3), sequence: Sequence(4) };
        let stamps =
            [Some(origin), None].map(|origin| Stamp { count: 1, published_at: Timestamp(9), origin });
        let block = MessageBlock::encode(&[Message::new("x"), Message::new("yz")]);
        Held { snapshot, chunk: Chunk { first: Offset(5), block, stamps: stamps.to_vec() } }
    }

    fn origin() -> Origin {
        Origin { store_id: "s".to_owned(), mode: Mode::File, made_at: Timestamp(2) }
    }

    fn written() -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut held(), &origin(), &mut bytes).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<(TopicId, Chunk)>, ArchiveError> {
        let mut reader = Reader::open(bytes)?;
        assert_eq!((reader.origin(), reader.snapshot()), (&origin(), &held().snapshot));
        let mut all = Vec::new();
        while let Some(next) = reader.next_messages()? {
            all.push(next);
        }
        Ok(all)
    }

    #[test]
    fn an_archive_has_these_bytes() {
        let head = b"BATONARC\x01\0\0\0a=\xb4\xba".as_slice();
        let origin = b"\x01*\0\0\0{\"store_id\":\"s\",\"mode\":\"file\",\"made_at\":2}\xfb)\x9c\x88";
        let state = b"\x02\x1d\0\0\0\x01\x01\x01t\0\x01\0\0\0\0\0\0\0\0\0\x05\x07\0\0\0\0\0\0\0\x02\0\0\0\0{Z\x98\xa0";
        let place = b"\x03W\0\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0\x02\0\0\0";
        let with_origin = b"\x01\0\0\0\t\0\0\0\0\0\0\0\x01\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0";
        let without = b"\x01\0\0\0\t\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let messages = b"\x02\0\0\0\0x\x03\0\0\0\0yzE\xdct'";
        let end = b"\x04\x12\0\0\0\xfck|Z\x93\x01\x01\x02\r\xfc%\xeb\xb6\x01\xc4\t\xa6F/\xb4\x9d\t";
        let expected = [head, origin, state, place, with_origin, without, messages, end].concat();
        assert_eq!(written().escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    /// Writes what a store never holds, with right checksums.
    fn read_of(held: &mut Held) -> Result<(), ArchiveError> {
        let mut bytes = Vec::new();
        write(held, &origin(), &mut bytes).unwrap();
        let mut reader = Reader::open(bytes.as_slice())?;
        while reader.next_messages()?.is_some() {}
        Ok(())
    }

    fn is_damaged(read: Result<(), ArchiveError>, text: &str) -> bool {
        matches!(read, Err(ArchiveError::Damaged { what, .. }) if what.contains(text))
    }

    /// Right checksums are no proof of sense: numbers that wrap around ended the reader, or would have replaced a topic
    /// by the next one that is made.
    #[test]
    fn a_state_that_contradicts_itself_is_refused() {
        read_of(&mut held()).unwrap();
        let mut given = held();
        given.snapshot.next.topic = TopicId(1);
        assert!(is_damaged(read_of(&mut given), "the next topic"));
        let mut stray = held();
        let (name, settings) = (Name::new("g").unwrap(), GroupSettings::default());
        let group = GroupState::new(TopicId(7), name, settings, Offset(0), &RangeSet::new());
        stray.snapshot.groups.insert(GroupId(0), group);
        stray.snapshot.next.group = GroupId(1);
        assert!(is_damaged(read_of(&mut stray), "topic 7"));
        let part = |of| TopicKind::Lane { of: TopicId(of), priority: 1 };
        for (of, fits) in [(1, true), (2, false), (7, false)] {
            let mut parts = held();
            let topic = TopicState::new(Name::new("t").unwrap(), part(of), TopicSettings::default());
            parts.snapshot.topics.insert(TopicId(2), topic);
            parts.snapshot.next.topic = TopicId(3);
            assert_eq!(is_damaged(read_of(&mut parts), "topic 2 is a part of topic"), !fits, "{of}");
        }
        for (of, fits) in [(0, true), (1, false), (7, false)] {
            let mut parts = held();
            for (id, part_of) in [(0, None), (1, Some(GroupId(of)))] {
                let (name, settings) = (Name::new("g").unwrap(), GroupSettings::default());
                let group = GroupState::new(TopicId(1), name, settings, Offset(5), &RangeSet::new());
                parts.snapshot.groups.insert(GroupId(id), GroupState { part_of, ..group });
            }
            parts.snapshot.next.group = GroupId(2);
            assert_eq!(is_damaged(read_of(&mut parts), "group 1 is a part of group"), !fits, "{of}");
        }
        for (to, next, text) in [(1, 1, None), (7, 1, Some("topic 7")), (1, 0, Some("the next route"))] {
            let mut routes = held();
            let (name, to) = (Name::new("r").unwrap(), vec![TopicId(to)]);
            let rule = Route { name, from: TopicId(1), to, filter: None, mode: RouteMode::Copy };
            routes.snapshot.routes.insert(RouteId(0), rule);
            routes.snapshot.next.route = RouteId(next);
            let read = read_of(&mut routes);
            assert!(text.map_or(read.is_ok(), |text| is_damaged(read, text)), "{text:?}");
        }
    }

    #[test]
    fn numbers_that_wrap_around_are_refused() {
        let sections = |first: u64, sequence: u64, has_origin: u8| {
            let Held { chunk, .. } = held();
            let origin = Some(MessageOrigin { producer: ProducerId(3), sequence: Sequence(sequence) });
            let stamps = vec![Stamp { count: 2, published_at: Timestamp(9), origin }];
            let chunk = Chunk { first: Offset(first), stamps, ..chunk };
            let mut content = message_head(TopicId(1), &chunk);
            content[28] = has_origin;
            content.extend_from_slice(chunk.block.bytes());
            let section =
                Section { kind: kind::MESSAGES, content: content.into(), position: 0, sum_before: 0 };
            messages(&section).map(drop)
        };
        sections(5, 1, 1).unwrap();
        assert!(is_damaged(sections(u64::MAX, 1, 1), "no such offsets"));
        assert!(is_damaged(sections(5, u64::MAX - 1, 1), "stamp"));
        assert!(is_damaged(sections(5, 1, 2), "stamp"));
        assert!(is_damaged(sections(5, 1, 0), "stamp"));
    }

    /// Each section may be as it was written, and still not all of them be there: the sums at the end tell.
    #[test]
    fn an_end_with_other_sums_is_refused() {
        let mut bytes = written();
        // Of the end: the first byte of the checksum of the state, and the last of that over all.
        let end = bytes.len() - 18 - 4;
        for (at, text) in
            [(end + 1, "topics, groups or producers differ"), (end + 17, "the checksum over all")]
        {
            let good = bytes.clone();
            bytes[at] ^= 1;
            let sum = crc32c::crc32c(&bytes[end - SECTION_HEAD_BYTES..end + 18]).to_le_bytes();
            bytes[end + 18..].copy_from_slice(&sum);
            assert!(is_damaged(read(&bytes).map(drop), text), "{text}");
            bytes = good;
        }
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(read(&written()).unwrap(), [(TopicId(1), held().chunk)]);
    }

    #[test]
    fn wherever_an_archive_is_cut_it_is_refused() {
        let bytes = written();
        for len in 0..bytes.len() {
            match read(&bytes[..len]) {
                Err(ArchiveError::CutOff(position)) => assert_eq!(position, len as u64),
                Err(ArchiveError::NotOne) => assert!(len < 8),
                other => panic!("{len}: {other:?}"),
            }
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        let refused = read(&longer);
        assert!(
            matches!(refused, Err(ArchiveError::Damaged { position, .. }) if position == bytes.len() as u64)
        );
    }

    #[test]
    fn whatever_bit_is_flipped_the_archive_is_refused() {
        let bytes = written();
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            match read(&bad) {
                Err(ArchiveError::Damaged { position, .. }) => assert!(position <= at as u64 / 8),
                Err(ArchiveError::NotOne) => assert!(at < 64),
                // A length that was made longer.
                Err(ArchiveError::CutOff(position)) => assert_eq!(position, bytes.len() as u64),
                other => panic!("bit {at}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_newer_archive_is_refused_with_its_version() {
        let mut bytes = written();
        bytes[8] = 7;
        let sum = crc32c::crc32c(&bytes[..12]).to_le_bytes();
        bytes[12..16].copy_from_slice(&sum);
        assert!(matches!(read(&bytes), Err(ArchiveError::Newer(7))));
    }
}
