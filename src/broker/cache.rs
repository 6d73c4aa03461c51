//! Messages held in memory for delivery: the newest ones as they are published, and what was read from the store.
//!
//! Bounded in bytes over all topics; the chunk that came in first goes first, whatever it holds. It is only ever a
//! copy: what is not here is read again. Chunks of a topic do not overlap. One that is a small part of the memory that
//! it came in gets memory of its own, so that the bound is about what is held and not only about what is counted.

use std::collections::{BTreeMap, VecDeque};

use crate::model::chunk::{Chunk, Origin, Stamp};
use crate::model::id::{Offset, Sequence, TopicId};
use crate::model::message::MessageBlock;
use crate::model::time::Timestamp;

/// What a chunk costs beside its messages, roughly, in bytes.
const CHUNK_COST: u64 = 256;

/// What the messages of a chunk have in common, by the index of the first message it holds for.
#[derive(Clone, Debug)]
enum Stamps {
    One(Stamp),
    Many(Vec<(u32, Stamp)>),
}

impl Stamps {
    fn new(stamps: &[Stamp]) -> Self {
        if let [stamp] = stamps {
            return Self::One(*stamp);
        }
        let mut start = 0;
        Self::Many(
            stamps
                .iter()
                .map(|stamp| {
                    let entry = (start, *stamp);
                    start += stamp.count;
                    entry
                })
                .collect(),
        )
    }

    /// The stamp that holds for message `index`, and the index it begins with.
    fn at(&self, index: u32) -> (u32, Stamp) {
        match self {
            Self::One(stamp) => (0, *stamp),
            Self::Many(stamps) => {
                let after = stamps.partition_point(|(start, _)| *start <= index);
                stamps[after.saturating_sub(1)]
            }
        }
    }

    fn cost(&self) -> u64 {
        match self {
            Self::One(_) => 0,
            Self::Many(stamps) => (stamps.len() * size_of::<(u32, Stamp)>()) as u64,
        }
    }
}

/// Where messages come from: the same for `count` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// For how many messages it holds.
    pub count: u32,
    /// When they were accepted.
    pub published_at: Timestamp,
    /// Origin of the first one; the others follow in sequence.
    pub origin: Option<Origin>,
}

/// Consecutive messages in memory.
#[derive(Clone, Debug)]
pub(super) struct CachedChunk {
    /// Offset of the first message.
    pub first: Offset,
    /// The messages.
    pub block: MessageBlock,
    stamps: Stamps,
    /// Index in the stamps of the first message: not 0 where the front was cut off.
    cut: u32,
    age: u64,
}

impl CachedChunk {
    /// What was read, for a look at it.
    pub fn of(chunk: &Chunk) -> Self {
        let (first, block, stamps) = (chunk.first, chunk.block.clone(), Stamps::new(&chunk.stamps));
        Self { first, block, stamps, cut: 0, age: 0 }
    }

    /// Whether a message is among them.
    pub fn holds(&self, offset: Offset) -> bool {
        self.first <= offset && offset < self.end()
    }

    /// First offset behind the chunk.
    pub fn end(&self) -> Offset {
        Offset(self.first.0 + self.block.count() as u64)
    }

    /// Where the messages from index `index` on come from.
    pub fn source(&self, index: usize) -> Source {
        let index = self.cut + index as u32;
        let (start, stamp) = self.stamps.at(index);
        let passed = index - start;
        let origin = stamp
            .origin
            .map(|origin| Origin { sequence: Sequence(origin.sequence.0 + u64::from(passed)), ..origin });
        Source { count: stamp.count.saturating_sub(passed).max(1), published_at: stamp.published_at, origin }
    }

    fn cost(&self) -> u64 {
        self.block.bytes().len() as u64 + 4 * self.block.count() as u64 + self.stamps.cost() + CHUNK_COST
    }

    fn cut_front(&mut self, first: Offset) {
        let count = (first.0 - self.first.0) as usize;
        self.block = self.block.skip(count);
        self.cut += count as u32;
        self.first = first;
    }

    fn cut_back(&mut self, end: Offset) {
        self.block = self.block.part(0, (end.0 - self.first.0) as usize);
    }
}

/// The chunks of one topic.
#[derive(Debug, Default)]
pub(super) struct TopicCache {
    chunks: BTreeMap<Offset, CachedChunk>,
}

impl TopicCache {
    /// The chunk that holds `offset`.
    pub fn at(&self, offset: Offset) -> Option<&CachedChunk> {
        let (_, chunk) = self.chunks.range(..=offset).next_back()?;
        chunk.holds(offset).then_some(chunk)
    }
}

/// The messages in memory.
#[derive(Debug)]
pub(super) struct Cache {
    topics: BTreeMap<TopicId, TopicCache>,
    /// Chunks as they came in; those that are gone are passed over.
    ages: VecDeque<(TopicId, Offset, u64)>,
    chunk_count: usize,
    next_age: u64,
    bytes: u64,
    bytes_max: u64,
}

impl Cache {
    pub fn new(bytes_max: u64) -> Self {
        Self {
            topics: BTreeMap::new(),
            ages: VecDeque::new(),
            chunk_count: 0,
            next_age: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// Bytes held, with what holding them costs.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The chunks of a topic, if it ever had one.
    pub fn topic(&self, topic: TopicId) -> Option<&TopicCache> {
        self.topics.get(&topic)
    }

    /// Takes messages in; nothing happens to the bounds until [`evict`](Self::evict).
    ///
    /// Where chunks overlap they hold the same messages: what is there stays, but a chunk within the new one goes.
    pub fn insert(&mut self, topic: TopicId, first: Offset, block: MessageBlock, stamps: &[Stamp]) {
        let age = self.next_age;
        self.next_age += 1;
        let mut chunk = CachedChunk { first, block, stamps: Stamps::new(stamps), cut: 0, age };
        let chunks = &mut self.topics.entry(topic).or_default().chunks;
        if let Some((_, before)) = chunks.range(..=first).next_back() {
            if before.end() >= chunk.end() {
                return;
            }
            if before.end() > first {
                let cut = before.end();
                chunk.cut_front(cut);
            }
        }
        while let Some((&at, next)) = chunks.range(chunk.first..chunk.end()).next() {
            if next.end() > chunk.end() {
                if at == chunk.first {
                    // The chunks before and behind have it all.
                    return;
                }
                chunk.cut_back(at);
                break;
            }
            self.bytes -= next.cost();
            self.chunk_count -= 1;
            chunks.remove(&at);
        }
        chunk.block = chunk.block.to_keep();
        self.bytes += chunk.cost();
        self.chunk_count += 1;
        self.ages.push_back((topic, chunk.first, age));
        chunks.insert(chunk.first, chunk);
    }

    /// Drops the chunks of a topic that end at or below `start`.
    pub fn trim(&mut self, topic: TopicId, start: Offset) {
        let Some(cached) = self.topics.get_mut(&topic) else { return };
        while let Some(first) = cached.chunks.first_entry() {
            if first.get().end() > start {
                break;
            }
            self.bytes -= first.get().cost();
            self.chunk_count -= 1;
            first.remove();
        }
        self.forget_stale();
    }

    /// Drops everything of a topic.
    pub fn remove_topic(&mut self, topic: TopicId) {
        let Some(cached) = self.topics.remove(&topic) else { return };
        self.bytes -= cached.chunks.values().map(CachedChunk::cost).sum::<u64>();
        self.chunk_count -= cached.chunks.len();
        self.forget_stale();
    }

    /// Drops what came in first until the rest fits.
    pub fn evict(&mut self) {
        while self.bytes > self.bytes_max {
            let Some((topic, first, age)) = self.ages.pop_front() else { break };
            let Some(cached) = self.topics.get_mut(&topic) else { continue };
            if cached.chunks.get(&first).is_some_and(|chunk| chunk.age == age)
                && let Some(chunk) = cached.chunks.remove(&first)
            {
                self.bytes -= chunk.cost();
                self.chunk_count -= 1;
            }
        }
    }

    /// Keeps the list of ages in proportion to the chunks that are there.
    fn forget_stale(&mut self) {
        if self.ages.len() < 2 * self.chunk_count + 64 {
            return;
        }
        let topics = &self.topics;
        self.ages.retain(|(topic, first, age)| {
            topics
                .get(topic)
                .and_then(|cached| cached.chunks.get(first))
                .is_some_and(|chunk| chunk.age == *age)
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::id::ProducerId;
    use crate::model::message::Message;

    const TOPIC: TopicId = TopicId(1);

    /// Messages whose body is their offset, stamped two by two.
    fn messages(first: u64, count: u64) -> (MessageBlock, Vec<Stamp>) {
        let messages: Vec<Message> =
            (first..first + count).map(|offset| Message::new(offset.to_string())).collect();
        let mut stamps = Vec::new();
        let mut at = first;
        while at < first + count {
            let run = (2 - at % 2).min(first + count - at);
            let origin = Origin { producer: ProducerId(7), sequence: Sequence(at + 1) };
            stamps.push(Stamp { count: run as u32, published_at: Timestamp(at / 2), origin: Some(origin) });
            at += run;
        }
        (MessageBlock::encode(&messages), stamps)
    }

    proptest! {
        #[test]
        fn what_is_cached_is_what_was_put_in(
            steps in prop::collection::vec((0_u64..50, 1_u64..12, any::<bool>()), 1..40),
        ) {
            let mut cache = Cache::new(3_000);
            for (first, count, trim) in steps {
                if trim {
                    cache.trim(TOPIC, Offset(first));
                } else {
                    let (block, stamps) = messages(first, count);
                    cache.insert(TOPIC, Offset(first), block, &stamps);
                    let topic = cache.topic(TOPIC).unwrap();
                    for offset in first..first + count {
                        let chunk = topic.at(Offset(offset)).unwrap();
                        let index = (offset - chunk.first.0) as usize;
                        let source = chunk.source(index);
                        prop_assert_eq!(chunk.block.message(index).unwrap(), Message::new(offset.to_string()));
                        prop_assert_eq!(source.published_at, Timestamp(offset / 2));
                        prop_assert_eq!(source.origin.unwrap().sequence, Sequence(offset + 1));
                    }
                }
                cache.evict();
                let topic = cache.topic(TOPIC);
                let chunks: Vec<&CachedChunk> =
                    topic.iter().flat_map(|topic| topic.chunks.values()).collect();
                prop_assert!(chunks.windows(2).all(|pair| pair[0].end() <= pair[1].first));
                prop_assert_eq!(chunks.iter().map(|chunk| chunk.cost()).sum::<u64>(), cache.bytes());
                prop_assert_eq!(chunks.len(), cache.chunk_count);
                prop_assert!(cache.bytes() <= 3_000);
            }
        }
    }

    /// The chunk in the middle was cut to nothing between its neighbours, and took the place of the one that begins
    /// where it would have begun: those messages were gone from memory, and the bytes no longer added up.
    #[test]
    fn a_chunk_covered_by_its_neighbours_takes_nobodys_place() {
        let mut cache = Cache::new(1 << 20);
        for (first, count) in [(37, 8), (38, 10), (43, 3)] {
            let (block, stamps) = messages(first, count);
            cache.insert(TOPIC, Offset(first), block, &stamps);
        }
        let topic = cache.topic(TOPIC).unwrap();
        assert!((37..48).all(|offset| topic.at(Offset(offset)).is_some()));
        assert_eq!(topic.chunks.len(), 2);
    }

    #[test]
    fn the_list_of_ages_stays_in_proportion_to_the_chunks() {
        let mut cache = Cache::new(1 << 20);
        let (block, stamps) = messages(0, 1);
        cache.insert(TopicId(0), Offset(0), block, &stamps);
        for offset in 0..10_000 {
            let (block, stamps) = messages(offset, 1);
            cache.insert(TOPIC, Offset(offset), block, &stamps);
            cache.trim(TOPIC, Offset(offset + 1));
        }
        assert!(cache.ages.len() < 100, "{}", cache.ages.len());
        assert!(cache.topic(TopicId(0)).unwrap().at(Offset(0)).is_some());
    }
}
