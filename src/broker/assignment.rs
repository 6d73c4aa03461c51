//! Which consumer of a group gets the messages with which keys.
//!
//! Keys fall into buckets by a hash, and each bucket goes to the consumer that has the highest weight for it
//! (rendezvous hashing): when a consumer comes, only the buckets that it gets move, and when one goes, only those
//! that it had. Only consumers of the highest priority there is have buckets; the others wait for these to go.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::turns::Slot;

/// Buckets of keys. Of more consumers than that, some get no keys.
const BUCKETS: usize = 1024;
/// Bits of a hash that do not say its bucket.
const SHIFT: u32 = u64::BITS - BUCKETS.ilog2();

/// What is kept of a key. Keys of one hash are taken for the same: they wait for each other, and that is all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyHash(u64);

impl KeyHash {
    /// The hash of a key; the same in every run of this program, and nowhere stored.
    pub fn of(key: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        Self(hasher.finish())
    }

    const fn bucket(self) -> usize {
        (self.0 >> SHIFT) as usize
    }
}

/// A consumer that may have buckets: a number that no other one of its group has, and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub number: u64,
    pub slot: Slot,
}

impl Candidate {
    /// What decides whether it gets a bucket. No two candidates have the same.
    fn weight(self, bucket: usize) -> (u64, u64) {
        // The mixing steps of splitmix64.
        let mut hash = self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(bucket as u64);
        hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (hash ^ (hash >> 31), self.number)
    }
}

/// The consumer of each bucket.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    /// By bucket; empty where nobody has any.
    owners: Vec<Candidate>,
    /// Number of times that buckets have moved.
    version: u64,
}

impl Assignment {
    /// Changes whenever a bucket has another consumer.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Who gets the messages with this key.
    pub fn owner(&self, key: KeyHash) -> Option<Slot> {
        self.owners.get(key.bucket()).map(|owner| owner.slot)
    }

    /// Shares all buckets among these.
    pub fn assign(&mut self, candidates: &[Candidate]) {
        self.version += 1;
        self.owners = (0..BUCKETS).filter_map(|bucket| heaviest(candidates, bucket)).collect();
    }

    /// One more comes to those that have buckets.
    pub fn join(&mut self, candidate: Candidate) {
        self.version += 1;
        for (bucket, owner) in self.owners.iter_mut().enumerate() {
            if candidate.weight(bucket) > owner.weight(bucket) {
                *owner = candidate;
            }
        }
    }

    /// One of those that have buckets goes; the others are there.
    pub fn leave(&mut self, slot: Slot, others: &[Candidate]) {
        if others.is_empty() {
            return self.assign(others);
        }
        self.version += 1;
        for (bucket, owner) in self.owners.iter_mut().enumerate().filter(|(_, owner)| owner.slot == slot) {
            if let Some(heir) = heaviest(others, bucket) {
                *owner = heir;
            }
        }
    }
}

fn heaviest(candidates: &[Candidate], bucket: usize) -> Option<Candidate> {
    candidates.iter().copied().max_by_key(|candidate| candidate.weight(bucket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(numbers: std::ops::Range<u64>) -> Vec<Candidate> {
        numbers.map(|number| Candidate { number, slot: number as Slot }).collect()
    }

    fn slots(assignment: &Assignment) -> Vec<Slot> {
        assignment.owners.iter().map(|owner| owner.slot).collect()
    }

    #[test]
    fn only_what_must_move_does() {
        let mut assignment = Assignment::default();
        assignment.assign(&candidates(0..4));
        let before = slots(&assignment);
        assignment.join(Candidate { number: 4, slot: 4 });
        let with = slots(&assignment);
        let moved = before.iter().zip(&with).filter(|(before, after)| before != after);
        assert!(moved.clone().all(|(_, after)| *after == 4));
        assert!((BUCKETS / 8..BUCKETS / 3).contains(&moved.count()), "about a fifth");
        let mut at_once = Assignment::default();
        at_once.assign(&candidates(0..5));
        assert_eq!(slots(&at_once), with, "the order of coming does not matter");
        assignment.leave(4, &candidates(0..4));
        assert_eq!(slots(&assignment), before);
    }

    #[test]
    fn consumers_get_about_the_same_number_of_keys() {
        let mut assignment = Assignment::default();
        assignment.assign(&candidates(10..18));
        let mut counts = [0; 8];
        for key in 0..8_000 {
            let owner = assignment.owner(KeyHash::of(format!("customer-{key}").as_bytes())).unwrap();
            counts[owner as usize - 10] += 1;
        }
        assert!(counts.iter().all(|count| (700..1_300).contains(count)), "{counts:?}");
    }

    #[test]
    fn without_consumers_nobody_has_a_key() {
        let mut assignment = Assignment::default();
        assert_eq!(assignment.owner(KeyHash::of(b"k")), None);
        assignment.assign(&candidates(0..1));
        assert_eq!(assignment.owner(KeyHash::of(b"k")), Some(0));
        assignment.leave(0, &[]);
        assert_eq!(assignment.owner(KeyHash::of(b"k")), None);
    }
}
