//! One pass: a stretch of a topic whose keys are known, and what has become of each.
//!
//! First the stretch itself is read, then everything behind it that may have one of its keys; what is published
//! meanwhile is looked at as it comes. So whatever is [`newest`](Pass::newest) at any moment, once the first part is
//! over and the second is, is the newest message of its key, and stays it until the pass is told otherwise.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher, Hasher};

use crate::broker::cache::CachedChunk;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::message::{MessageBlock, Parts};
use crate::model::time::Timestamp;

/// The header with the time at which a value was published that was moved since.
pub(super) const PUBLISHED_AT: &str = "baton.published-at";

/// A key, as a pass knows it. Two keys with one hash would be taken for one, and a value would be lost: with 128 bits,
/// a thousand million keys have two of that kind once in 10^20 topics. The hash never leaves the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KeyHash([u64; 2]);

impl KeyHash {
    fn of(key: &[u8]) -> Self {
        Self([0, 1].map(|half| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u8(half);
            hasher.write(key);
            hasher.finish()
        }))
    }
}

/// Hashes what is a hash already.
#[derive(Debug, Default)]
pub(super) struct Taken(u64);

impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Whatever comes last decides; both halves of a key's hash are as good.
        if let Some(half) = bytes.last_chunk() {
            self.0 = u64::from_le_bytes(*half);
        }
    }

    fn write_usize(&mut self, _: usize) {}
}

/// What is to be known of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub key: KeyHash,
    /// Whether it says that its key is gone.
    pub is_tombstone: bool,
    /// When it was published first.
    pub published_at: Timestamp,
}

impl Value {
    /// Reads an encoded message; `None` where it has no key.
    pub fn read(encoded: &[u8], stored_at: Timestamp) -> Option<Self> {
        let parts = Parts::read(encoded, 0).ok()?;
        let key = KeyHash::of(parts.key?);
        let is_tombstone = parts.body.is_empty();
        let published_at = if is_tombstone { published_at(&parts).unwrap_or(stored_at) } else { stored_at };
        Some(Self { key, is_tombstone, published_at })
    }
}

/// When a message that was moved was published first.
fn published_at(parts: &Parts<'_>) -> Option<Timestamp> {
    let (_, value) = parts.headers().find(|(name, _)| *name == PUBLISHED_AT)?;
    let time = humantime::parse_rfc3339(std::str::from_utf8(value).ok()?).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok().map(Timestamp)
}

/// A message and the next one that has its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Superseded {
    pub old: Offset,
    pub by: Offset,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The stretch is being read.
    Stretch,
    /// What is behind it is being read, up to there.
    Rest { to: Offset },
    /// What there are newer ones of is dropped.
    Drop,
    /// The newest ones are moved to the end of the topic, all others dropped.
    Move,
}

/// A pass under way.
#[derive(Debug)]
pub(super) struct Pass {
    pub topic: TopicId,
    /// The stretch; its end is lowered where it has too many keys.
    pub stretch: OffsetRange,
    pub phase: Phase,
    /// The next message to look at.
    pub at: Offset,
    /// Messages that cannot be read, whose keys are not known, end here.
    pub blind_to: Offset,
    /// The newest message of each key of the stretch, where that is in the stretch.
    newest: HashMap<KeyHash, Offset, BuildHasherDefault<Taken>>,
    /// Messages that there are newer ones of, and that are not dropped yet. Not kept where all are moved.
    pub superseded: Vec<Superseded>,
    /// Those of the newest that say that their key is gone, and have said so for long.
    tombstones: Vec<(Offset, KeyHash)>,
    /// When the oldest of the other tombstones was published.
    pub young_since: Option<Timestamp>,
    /// What was read last.
    pub chunk: Option<CachedChunk>,
    /// The read under way.
    pub reading: Option<Offset>,
    /// Nothing is done before this: a read was in vain, or there is no space.
    pub not_before: Option<Timestamp>,
    /// Messages that were looked at.
    pub seen: u64,
}

impl Pass {
    pub fn new(topic: TopicId, stretch: OffsetRange) -> Self {
        Self {
            topic,
            stretch,
            phase: Phase::Stretch,
            at: stretch.start,
            blind_to: Offset(0),
            newest: HashMap::default(),
            superseded: Vec::new(),
            tombstones: Vec::new(),
            young_since: None,
            chunk: None,
            reading: None,
            not_before: None,
            seen: 0,
        }
    }

    /// Keys whose newest message is known to be in the stretch.
    pub fn key_count(&self) -> usize {
        self.newest.len()
    }

    /// Whether this is the newest message of its key.
    pub fn is_newest(&self, offset: Offset, key: KeyHash) -> bool {
        self.newest.get(&key) == Some(&offset)
    }

    /// Takes note of a message of the stretch. Tombstones that were published by `old_before` are old.
    pub fn see(&mut self, offset: Offset, value: Value, old_before: Timestamp, keeps: Keeps) {
        if let Some(old) = self.newest.insert(value.key, offset) {
            self.supersede(old, offset, keeps);
        }
        if value.is_tombstone && value.published_at <= old_before {
            self.tombstones.push((offset, value.key));
        } else if value.is_tombstone {
            self.young_since = self.young_since.into_iter().chain([value.published_at]).min();
        }
    }

    /// Takes note of a message behind the stretch.
    pub fn see_newer(&mut self, offset: Offset, key: KeyHash, keeps: Keeps) {
        if let Some(old) = self.newest.remove(&key) {
            self.supersede(old, offset, keeps);
        }
    }

    /// Takes note of messages that are being published.
    pub fn see_published(&mut self, first: Offset, block: &MessageBlock, keeps: Keeps) {
        if self.phase == Phase::Stretch {
            // They are behind what is still to be read.
            return;
        }
        for index in 0..block.count() {
            if let Some(value) = Value::read(block.encoded(index), Timestamp(0)) {
                self.see_newer(Offset(first.0 + index as u64), value.key, keeps);
            }
        }
    }

    fn supersede(&mut self, old: Offset, by: Offset, keeps: Keeps) {
        if keeps == Keeps::Superseded {
            self.superseded.push(Superseded { old, by });
        }
    }

    /// Forgets a key: its message has been dealt with.
    pub fn forget(&mut self, key: KeyHash) {
        self.newest.remove(&key);
    }

    /// The next old tombstones that are still the newest of their key, at most `max`, in the order of offsets.
    pub fn take_tombstones(&mut self, max: usize) -> Vec<OffsetRange> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((offset, key)) = self.tombstones.pop()
        {
            if self.is_newest(offset, key) {
                taken.push(OffsetRange::one(offset));
                self.forget(key);
            }
        }
        taken.reverse();
        taken
    }

    /// The next messages to be dropped, at most `max`, in the order of offsets.
    pub fn take_superseded(&mut self, max: usize) -> Vec<Superseded> {
        let rest = self.superseded.len().saturating_sub(max);
        let mut taken = self.superseded.split_off(rest);
        taken.sort_unstable();
        taken
    }
}

/// Whether a pass keeps note of what there are newer ones of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    Superseded,
    Newest,
}
