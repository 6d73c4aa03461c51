//! The binary form of records: what the journal writes for a commit, without the messages.
//!
//! The only place of the store that knows `bincode`. Messages are not in here: a publish has the length, count and
//! checksum of its block, and the block itself stands raw behind the heads.
//!
//! # Format, version 1
//!
//! The heads of a commit stand one behind the other. Each is a tag byte (see [`tag`]) and the fields of the record
//! in the order of its definition, in `bincode` 2 `standard()`: little-endian variable-length numbers. The fields of
//! a publish are: targets, source, at, count of messages, bytes of the block, CRC32C of the block. Tags are never
//! reordered and never reused. A publish whose messages are in a pack of their own has the pack's number, index and
//! bytes behind these. Heads are valid if and only if every byte is used; zeros behind the last one mean nothing.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::id::{Offset, TopicId};
use crate::model::message::MessageBlock;
use crate::model::record::{Published, Record, Source};
use crate::model::time::Timestamp;

/// Largest piece that is encoded or decoded, in bytes.
pub const ENCODED_BYTES_MAX: usize = 1 << 30;
/// What one encoded byte may count as when it is decoded: `bincode` counts each number at its full size, and one of
/// 8 bytes may be encoded in a single one.
const DECODED_RATIO: usize = 8;

/// What fits into this many encoded bytes is decoded with a limit of its own: a text that claims to be long is
/// allocated before it is read.
const SMALL_BYTES: usize = 64 << 10;
/// As [`SMALL_BYTES`].
const MEDIUM_BYTES: usize = 8 << 20;

type Config<const LIMIT: usize> = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<LIMIT>,
>;

const fn config<const LIMIT: usize>() -> Config<LIMIT> {
    bincode::config::standard().with_limit::<LIMIT>()
}

const CONFIG: Config<{ DECODED_RATIO * ENCODED_BYTES_MAX }> = config();

/// The tags of records.
pub mod tag {
    #![allow(missing_docs, reason = "each is named after its record")]
    pub const NOTHING: u8 = 0;
    pub const TOPIC_CREATED: u8 = 1;
    pub const TOPIC_DELETED: u8 = 2;
    pub const GROUP_CREATED: u8 = 3;
    pub const GROUP_CHANGED: u8 = 4;
    pub const GROUP_DELETED: u8 = 5;
    pub const PRODUCER_OPENED: u8 = 6;
    pub const PRODUCER_EXPIRED: u8 = 7;
    pub const PUBLISHED: u8 = 8;
    pub const SETTLED: u8 = 9;
    pub const RETURNED: u8 = 10;
    pub const HANDED_OUT: u8 = 11;
    pub const TRIMMED: u8 = 12;
    pub const REMOVED: u8 = 13;
    pub const PUBLISHED_ELSEWHERE: u8 = 14;
    pub const TOPIC_CHANGED: u8 = 15;
    pub const GROUP_SOUGHT: u8 = 16;
    pub const PRODUCER_ADVANCED: u8 = 17;
    pub const ROUTE_CREATED: u8 = 18;
    pub const ROUTE_DELETED: u8 = 19;
    pub const SLOT_MOVED: u8 = 20;
}

/// Why something cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A tag that this version does not know.
    #[error("unknown record tag {0}")]
    Tag(u8),
    /// The encoded form is not what it should be.
    #[error("cannot decode: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// A value has no encoded form.
    #[error("cannot encode: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// Bytes are left over.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// The encoded form is larger than [`ENCODED_BYTES_MAX`].
    #[error("{0} encoded bytes are too many")]
    TooLarge(usize),
}

/// A record as the journal has it: its messages are elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// A record without messages.
    Change(Record),
    /// A publish.
    Published(PublishedHead),
    /// A publish whose messages are in a pack of their own.
    Elsewhere(PublishedHead, Elsewhere),
}

/// The pack that holds the messages of a publish, and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Its number in the epoch of the commit.
    pub pack: u32,
    /// Where its index is, in bytes of the file.
    pub index: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// A [`Published`] whose messages are elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedHead {
    /// See [`Published::targets`].
    pub targets: Vec<(TopicId, Offset)>,
    /// See [`Published::source`]; in a pack the messages need not be what comes next from their producer.
    pub source: Source,
    /// See [`Published::at`].
    pub at: Timestamp,
    /// Number of messages.
    pub count: u32,
    /// Bytes of the messages.
    pub bytes: u32,
    /// CRC32C of these bytes.
    pub checksum: u32,
}

/// Appends the heads of `records` to `out`. Answers the blocks that belong behind them, in their order: all but those
/// that are `elsewhere`, which is said with the index of the record and the checksum, lowest first.
///
/// # Errors
/// Where the heads are larger than [`ENCODED_BYTES_MAX`].
pub fn encode_records<'a>(
    records: &'a [Record],
    elsewhere: &[(usize, Elsewhere, u32)],
    out: &mut Vec<u8>,
) -> Result<Vec<&'a Bytes>, CodecError> {
    let start = out.len();
    let mut blocks = Vec::new();
    let mut elsewhere = elsewhere.iter().peekable();
    for (index, record) in records.iter().enumerate() {
        match (record, elsewhere.next_if(|(of, ..)| *of == index)) {
            (Record::Published(Published { targets, source, at, block }), Some((_, place, checksum))) => {
                let (count, len) = (block.count() as u32, block_len(block)?);
                put(out, tag::PUBLISHED_ELSEWHERE, (targets, source, at, count, len, checksum, place))?;
            }
            _ => {
                encode_record(record, out)?;
                if let Record::Published(published) = record {
                    blocks.push(published.block.bytes());
                }
            }
        }
    }
    let len = out.len() - start;
    if len > ENCODED_BYTES_MAX { Err(CodecError::TooLarge(len)) } else { Ok(blocks) }
}

fn encode_record(record: &Record, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match record {
        Record::TopicCreated { topic, name, kind, settings } => {
            put(out, tag::TOPIC_CREATED, (topic, name, kind, settings))
        }
        Record::TopicChanged { topic, settings } => put(out, tag::TOPIC_CHANGED, (topic, settings)),
        Record::SlotMoved { slot, from, until } => put(out, tag::SLOT_MOVED, (slot, from, until)),
        Record::TopicDeleted { topic } => put(out, tag::TOPIC_DELETED, topic),
        Record::GroupCreated { group, topic, name, settings, floor, part_of } => {
            put(out, tag::GROUP_CREATED, (group, topic, name, settings, floor, part_of))
        }
        Record::GroupChanged { group, settings } => put(out, tag::GROUP_CHANGED, (group, settings)),
        Record::GroupSought { group, floor } => put(out, tag::GROUP_SOUGHT, (group, floor)),
        Record::GroupDeleted { group } => put(out, tag::GROUP_DELETED, group),
        Record::ProducerOpened { producer, name, at } => put(out, tag::PRODUCER_OPENED, (producer, name, at)),
        Record::ProducerAdvanced { producer, last, at } => {
            put(out, tag::PRODUCER_ADVANCED, (producer, last, at))
        }
        Record::ProducerExpired { producer } => put(out, tag::PRODUCER_EXPIRED, producer),
        Record::Published(Published { targets, source, at, block }) => {
            let (count, len, checksum) =
                (block.count() as u32, block_len(block)?, crc32c::crc32c(block.bytes()));
            put(out, tag::PUBLISHED, (targets, source, at, count, len, checksum))
        }
        Record::Settled { group, ranges } => put(out, tag::SETTLED, (group, ranges)),
        Record::Returned { group, range, retry } => put(out, tag::RETURNED, (group, range, retry)),
        Record::HandedOut { group, end } => put(out, tag::HANDED_OUT, (group, end)),
        Record::Trimmed { topic, start } => put(out, tag::TRIMMED, (topic, start)),
        Record::Removed { topic, ranges } => put(out, tag::REMOVED, (topic, ranges)),
        Record::RouteCreated { route, rule } => put(out, tag::ROUTE_CREATED, (route, rule)),
        Record::RouteDeleted { route } => put(out, tag::ROUTE_DELETED, route),
    }
}

fn block_len(block: &MessageBlock) -> Result<u32, CodecError> {
    let len = block.bytes().len();
    u32::try_from(len).map_err(|_| CodecError::TooLarge(len))
}

/// Appends the head of messages that are written elsewhere.
///
/// # Errors
/// Where it has no encoded form.
pub fn encode_published(head: &PublishedHead, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let PublishedHead { targets, source, at, count, bytes, checksum } = head;
    put(out, tag::PUBLISHED, (targets, source, at, count, bytes, checksum))
}

/// Reads the heads of one commit.
///
/// # Errors
/// Where they are not valid.
pub fn decode_heads(mut bytes: &[u8]) -> Result<Vec<Head>, CodecError> {
    let mut heads = Vec::new();
    while let Some((&tag, rest)) = bytes.split_first() {
        if tag == tag::NOTHING {
            return match bytes.iter().position(|&byte| byte != tag::NOTHING) {
                Some(at) => Err(CodecError::Trailing(bytes.len() - at)),
                None => Ok(heads),
            };
        }
        let mut input = Input { rest };
        heads.push(decode_head(tag, &mut input)?);
        bytes = input.rest;
    }
    Ok(heads)
}

fn decode_head(tag: u8, input: &mut Input<'_>) -> Result<Head, CodecError> {
    let record = match tag {
        tag::TOPIC_CREATED => {
            let (topic, name, kind, settings) = input.take()?;
            Record::TopicCreated { topic, name, kind, settings }
        }
        tag::TOPIC_CHANGED => {
            let (topic, settings) = input.take()?;
            Record::TopicChanged { topic, settings }
        }
        tag::SLOT_MOVED => {
            let (slot, from, until) = input.take()?;
            Record::SlotMoved { slot, from, until }
        }
        tag::TOPIC_DELETED => Record::TopicDeleted { topic: input.take()? },
        tag::GROUP_CREATED => {
            let (group, topic, name, settings, floor, part_of) = input.take()?;
            Record::GroupCreated { group, topic, name, settings, floor, part_of }
        }
        tag::GROUP_CHANGED => {
            let (group, settings) = input.take()?;
            Record::GroupChanged { group, settings }
        }
        tag::GROUP_SOUGHT => {
            let (group, floor) = input.take()?;
            Record::GroupSought { group, floor }
        }
        tag::GROUP_DELETED => Record::GroupDeleted { group: input.take()? },
        tag::PRODUCER_OPENED => {
            let (producer, name, at) = input.take()?;
            Record::ProducerOpened { producer, name, at }
        }
        tag::PRODUCER_ADVANCED => {
            let (producer, last, at) = input.take()?;
            Record::ProducerAdvanced { producer, last, at }
        }
        tag::PRODUCER_EXPIRED => Record::ProducerExpired { producer: input.take()? },
        tag::PUBLISHED => {
            let (targets, source, at, count, bytes, checksum) = input.take()?;
            return Ok(Head::Published(PublishedHead { targets, source, at, count, bytes, checksum }));
        }
        tag::SETTLED => {
            let (group, ranges) = input.take()?;
            Record::Settled { group, ranges }
        }
        tag::RETURNED => {
            let (group, range, retry) = input.take()?;
            Record::Returned { group, range, retry }
        }
        tag::HANDED_OUT => {
            let (group, end) = input.take()?;
            Record::HandedOut { group, end }
        }
        tag::TRIMMED => {
            let (topic, start) = input.take()?;
            Record::Trimmed { topic, start }
        }
        tag::REMOVED => {
            let (topic, ranges) = input.take()?;
            Record::Removed { topic, ranges }
        }
        tag::ROUTE_CREATED => {
            let (route, rule) = input.take()?;
            Record::RouteCreated { route, rule }
        }
        tag::ROUTE_DELETED => Record::RouteDeleted { route: input.take()? },
        tag::PUBLISHED_ELSEWHERE => {
            let (targets, source, at, count, bytes, checksum, place) = input.take()?;
            let head = PublishedHead { targets, source, at, count, bytes, checksum };
            return Ok(Head::Elsewhere(head, place));
        }
        unknown => return Err(CodecError::Tag(unknown)),
    };
    Ok(Head::Change(record))
}

/// Appends the encoded form of anything else that the store keeps, such as an index or a snapshot.
///
/// # Errors
/// Where it is larger than [`ENCODED_BYTES_MAX`].
pub fn encode(value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let len = bincode::serde::encode_into_std_write(value, out, CONFIG)?;
    if len > ENCODED_BYTES_MAX { Err(CodecError::TooLarge(len)) } else { Ok(()) }
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// Where it is not valid, or bytes are left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut input = Input { rest: bytes };
    let value = input.take()?;
    if input.rest.is_empty() { Ok(value) } else { Err(CodecError::Trailing(input.rest.len())) }
}

fn put(out: &mut Vec<u8>, tag: u8, fields: impl Serialize) -> Result<(), CodecError> {
    out.push(tag);
    bincode::serde::encode_into_std_write(fields, out, CONFIG)?;
    Ok(())
}

struct Input<'a> {
    rest: &'a [u8],
}

impl Input<'_> {
    fn take<T: DeserializeOwned>(&mut self) -> Result<T, CodecError> {
        let (value, used) = match self.rest.len() {
            len if len <= SMALL_BYTES => {
                bincode::serde::decode_from_slice(self.rest, config::<{ DECODED_RATIO * SMALL_BYTES }>())
            }
            len if len <= MEDIUM_BYTES => {
                bincode::serde::decode_from_slice(self.rest, config::<{ DECODED_RATIO * MEDIUM_BYTES }>())
            }
            _ => bincode::serde::decode_from_slice(self.rest, CONFIG),
        }?;
        self.rest = &self.rest[used..];
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::chunk::Origin;
    use crate::model::id::{GroupId, OffsetRange, ProducerId, RouteId, Sequence};
    use crate::model::message::{Message, MessageBlock};
    use crate::model::name::Name;
    use crate::model::retry::{Failure, Retry, ReturnReason};
    use crate::model::route::{Route, RouteMode};
    use crate::model::settings::{GroupSettings, TopicSettings};
    use crate::model::topic_kind::{TopicKind, Waiting};

    /// One of each, with the bytes that it has in every version.
    fn golden() -> Vec<(Record, &'static [u8])> {
        let (topic, group, producer) = (TopicId(1), GroupId(2), ProducerId(3));
        let name = Name::new("ab").unwrap();
        let block = MessageBlock::encode([&Message::new("x"), &Message::new("yz")]);
        let origin = Origin { producer, sequence: Sequence(9) };
        let targets = vec![(topic, Offset(300)), (TopicId(4), Offset(0))];
        let (topic_settings, settings) = (TopicSettings::default(), GroupSettings::default());
        let text = Some("no".into());
        let failure = |at, reason, text| Failure { at: Timestamp(at), reason, text };
        let failures =
            [failure(3, ReturnReason::Rejected, text), failure(4, ReturnReason::ConsumerLost, None)];
        let retry = Retry { handed_out: 3, failed: 2, due_at: Timestamp(5), failures: failures.into() };
        let created = |kind| {
            let (name, settings) = (name.clone(), topic_settings.clone());
            Record::TopicCreated { topic, name, kind, settings }
        };
        let of = TopicId(7);
        let slot = |waiting| TopicKind::Slot { of, waiting, from: Timestamp(8), until: Timestamp(9) };
        let published = |source| {
            let (targets, block) = (targets.clone(), block.clone());
            Record::Published(Published { targets, source, at: Timestamp(6), block })
        };
        let route = |filter, mode| {
            let (from, to) = (topic, vec![TopicId(4), TopicId(5)]);
            let rule = Route { name: name.clone(), from, to, filter, mode };
            Record::RouteCreated { route: RouteId(6), rule }
        };
        vec![
            (created(TopicKind::Named), b"\x01\x01\x02ab\0\x01\0\0\0\0\0\0\0\0\0"),
            (created(TopicKind::Pattern), b"\x01\x01\x02ab\x01\x01\0\0\0\0\0\0\0\0\0"),
            (
                created(TopicKind::Lane { of, priority: 9 }),
                b"\x01\x01\x02ab\x02\x07\x09\x01\0\0\0\0\0\0\0\0\0",
            ),
            (
                created(slot(Waiting::Delayed)),
                b"\x01\x01\x02ab\x03\x07\0\x08\x09\x01\0\0\0\0\0\0\0\0\0",
            ),
            (
                created(slot(Waiting::Expiring)),
                b"\x01\x01\x02ab\x03\x07\x01\x08\x09\x01\0\0\0\0\0\0\0\0\0",
            ),
            (
                Record::TopicChanged { topic, settings: topic_settings.clone() },
                b"\x0f\x01\x01\0\0\0\0\0\0\0\0\0",
            ),
            (
                Record::SlotMoved { slot: topic, from: Timestamp(8), until: Timestamp(300) },
                b"\x14\x01\x08\xfb\x2c\x01",
            ),
            (Record::TopicDeleted { topic }, b"\x02\x01"),
            (
                Record::GroupCreated {
                    group,
                    topic,
                    name: name.clone(),
                    settings: settings.clone(),
                    floor: Offset(7),
                    part_of: Some(GroupId(1)),
                },
                b"\x03\x02\x01\x02ab\0\xfb\x30\x75\x10\xfb\xe8\x03\xc8\xfb\x60\xea\x14\0\0\0\x64\0\0\x07\x01\x01",
            ),
            (
                Record::GroupChanged { group, settings },
                b"\x04\x02\0\xfb\x30\x75\x10\xfb\xe8\x03\xc8\xfb\x60\xea\x14\0\0\0\x64\0\0",
            ),
            (Record::GroupSought { group, floor: Offset(300) }, b"\x10\x02\xfb\x2c\x01"),
            (Record::GroupDeleted { group }, b"\x05\x02"),
            (
                Record::ProducerOpened { producer, name: name.clone(), at: Timestamp(8) },
                b"\x06\x03\x02ab\x08",
            ),
            (
                Record::ProducerAdvanced { producer, last: Sequence(9), at: Timestamp(8) },
                b"\x11\x03\x09\x08",
            ),
            (Record::ProducerExpired { producer }, b"\x07\x03"),
            (
                published(Source::Producer(origin)),
                b"\x08\x02\x01\xfb\x2c\x01\x04\0\x01\x03\x09\x06\x02\x0d\xfc\xce\xf0\x22\x9f",
            ),
            (
                published(Source::Broker),
                b"\x08\x02\x01\xfb\x2c\x01\x04\0\0\x06\x02\x0d\xfc\xce\xf0\x22\x9f",
            ),
            (
                published(Source::Mixed(vec![(1, None), (1, Some(origin))])),
                b"\x08\x02\x01\xfb\x2c\x01\x04\0\x02\x02\x01\0\x01\x01\x03\x09\x06\x02\x0d\xfc\xce\xf0\x22\x9f",
            ),
            (Record::Settled { group, ranges: vec![OffsetRange::new(1, 4)] }, b"\x09\x02\x01\x01\x04"),
            (
                Record::Returned { group, range: OffsetRange::new(1, 2), retry },
                b"\x0a\x02\x01\x02\x03\x02\x05\x02\x03\x03\x01\x02no\x04\x02\0",
            ),
            (Record::HandedOut { group, end: Offset(9) }, b"\x0b\x02\x09"),
            (Record::Trimmed { topic, start: Offset(9) }, b"\x0c\x01\x09"),
            (Record::Removed { topic, ranges: vec![OffsetRange::new(2, 5)] }, b"\x0d\x01\x01\x02\x05"),
            (route(None, RouteMode::Copy), b"\x12\x06\x02ab\x01\x02\x04\x05\0\0"),
            (route(Some("a=1".to_owned()), RouteMode::Move), b"\x12\x06\x02ab\x01\x02\x04\x05\x01\x03a=1\x01"),
            (Record::RouteDeleted { route: RouteId(6) }, b"\x13\x06"),
        ]
    }

    /// A state of a few bytes in an archive could ask for 4 GiB of memory.
    #[test]
    fn a_text_is_no_longer_than_what_is_there() {
        let mut bytes = vec![0xfc];
        bytes.extend(u32::MAX.to_le_bytes());
        let refused = decode::<String>(&bytes);
        let limit = bincode::error::DecodeError::LimitExceeded;
        assert!(
            matches!(&refused, Err(CodecError::Decode(error)) if error.to_string() == limit.to_string()),
            "{refused:?}"
        );
        let text = "x".repeat(3 * SMALL_BYTES);
        let mut bytes = Vec::new();
        encode(&text, &mut bytes).unwrap();
        assert_eq!(decode::<String>(&bytes).unwrap(), text);
        let numbers: Vec<u64> = vec![1; SMALL_BYTES - 9];
        bytes.clear();
        encode(&numbers, &mut bytes).unwrap();
        assert_eq!(decode::<Vec<u64>>(&bytes).unwrap(), numbers);
    }

    #[test]
    fn records_have_these_bytes() {
        for (record, expected) in golden() {
            let mut bytes = Vec::new();
            encode_records(std::slice::from_ref(&record), &[], &mut bytes).unwrap();
            assert_eq!(bytes.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{record:?}");
        }
    }

    #[test]
    fn what_was_encoded_is_decoded_and_the_blocks_are_those_of_the_records() {
        let records: Vec<Record> = golden().into_iter().map(|(record, _)| record).collect();
        let mut bytes = Vec::new();
        let blocks = encode_records(&records, &[], &mut bytes).unwrap();
        let heads = decode_heads(&bytes).unwrap();
        let publishes = records.iter().filter(|record| matches!(record, Record::Published(_))).count();
        assert_eq!((heads.len(), blocks.len()), (records.len(), publishes));
        for (head, record) in heads.iter().zip(&records) {
            match (head, record) {
                (Head::Change(change), record) => assert_eq!(change, record),
                (Head::Published(head), Record::Published(published)) => {
                    assert_eq!(
                        (&head.targets, &head.source, head.at),
                        (&published.targets, &published.source, published.at)
                    );
                    assert_eq!((head.count, head.bytes as usize), (2, blocks[0].len()));
                    assert_eq!(head.checksum, crc32c::crc32c(blocks[0]));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// A checkpoint of 150 MB was written, could not be decoded, was taken for a torn one and passed over for one whose
    /// segments were gone.
    #[test]
    fn whatever_may_be_encoded_may_be_decoded() {
        const ENCODED_BYTES: usize = 1000;
        let config = CONFIG.with_limit::<{ DECODED_RATIO * ENCODED_BYTES }>();
        let smallest = vec![0_u64; ENCODED_BYTES - 3];
        let mut bytes = Vec::new();
        encode(&smallest, &mut bytes).unwrap();
        assert_eq!(bytes.len(), ENCODED_BYTES);
        let (read, _): (Vec<u64>, usize) = bincode::serde::decode_from_slice(&bytes, config).unwrap();
        assert_eq!(read, smallest);
    }

    #[test]
    fn a_publish_whose_messages_are_elsewhere_has_these_bytes() {
        let block = MessageBlock::encode([&Message::new("x")]);
        let targets = vec![(TopicId(1), Offset(300))];
        let (source, at) = (Source::Broker, Timestamp(6));
        let published = Published { targets: targets.clone(), source: source.clone(), at, block };
        let records = [
            Record::TopicDeleted { topic: TopicId(9) },
            Record::Published(published.clone()),
            Record::Published(published),
        ];
        let (place, checksum) = (Elsewhere { pack: 3, index: 700, bytes: 900 }, 0x0102_0304);
        let mut bytes = Vec::new();
        let blocks = encode_records(&records, &[(1, place, checksum)], &mut bytes).unwrap();
        assert_eq!(blocks.len(), 1, "that of the other publish");
        let expected =
            b"\x02\x09\x0e\x01\x01\xfb\x2c\x01\0\x06\x01\x06\xfc\x04\x03\x02\x01\x03\xfb\xbc\x02\xfb\x84\x03";
        assert_eq!(bytes[..expected.len()].escape_ascii().to_string(), expected.escape_ascii().to_string());
        let head = PublishedHead { targets, source, at, count: 1, bytes: 6, checksum };
        assert_eq!(decode_heads(&bytes).unwrap()[1], Head::Elsewhere(head, place));
    }

    #[test]
    fn truncated_and_unknown_heads_are_refused() {
        for (record, _) in golden() {
            let mut bytes = Vec::new();
            encode_records(&[record], &[], &mut bytes).unwrap();
            for cut in 1..bytes.len() {
                assert!(decode_heads(&bytes[..cut]).is_err());
            }
        }
        assert!(decode_heads(&[0, 0]).unwrap().is_empty());
        assert!(matches!(decode_heads(&[0, 3]), Err(CodecError::Trailing(1))));
        assert!(matches!(decode_heads(&[21]), Err(CodecError::Tag(21))));
        assert!(matches!(decode::<u8>(&[1, 2]), Err(CodecError::Trailing(1))));
        // A length that no memory has.
        assert!(decode_heads(b"\x09\x02\xfd\xff\xff\xff\xff\xff\xff\xff\x7f").is_err());
    }
}
