//! What one consumer has in flight: ranges of offsets of topics, with their bytes and their lease.
//!
//! One entry per range that was handed out together, not per message. Where a part of a range is taken out, its
//! bytes are its share of the range's bytes; the shares of all parts add up to the whole.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::time::Timestamp;

/// The time for which a consumer has messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// When they were handed out.
    pub since: Timestamp,
    /// When they are taken back, unless it is extended.
    pub until: Timestamp,
}

/// Messages handed out together.
#[derive(Clone, Copy, Debug)]
struct Flight {
    end: Offset,
    bytes: u64,
    lease: Lease,
}

/// Everything in flight to a consumer. Ranges do not overlap.
#[derive(Debug, Default)]
pub(super) struct Flights {
    ranges: BTreeMap<(TopicId, Offset), Flight>,
    count: u64,
    bytes: u64,
}

impl Flights {
    /// Messages in flight.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The lease of a message that is in flight.
    pub fn lease(&self, topic: TopicId, offset: Offset) -> Option<Lease> {
        let (&(of, _), flight) = self.ranges.range(..=(topic, offset)).next_back()?;
        (of == topic && offset < flight.end).then_some(flight.lease)
    }

    /// The ranges of a topic that are in flight, lowest first.
    pub fn of(&self, topic: TopicId) -> impl Iterator<Item = OffsetRange> + '_ {
        let ranges = self.ranges.range((topic, Offset(0))..=(topic, Offset(u64::MAX)));
        ranges.map(|(&(_, start), flight)| OffsetRange { start, end: flight.end })
    }

    /// The ranges of a topic that are in flight and begin below `end`, lowest first.
    pub fn below(&self, topic: TopicId, end: Offset) -> impl Iterator<Item = OffsetRange> + '_ {
        let ranges = self.ranges.range((topic, Offset(0))..(topic, end));
        ranges.map(|(&(_, start), flight)| OffsetRange { start, end: flight.end })
    }

    /// Adds a range that is handed out. None of it is in flight yet.
    pub fn add(&mut self, topic: TopicId, range: OffsetRange, bytes: u64, lease: Lease) {
        self.count += range.len();
        self.bytes += bytes;
        if let Some(mut last) = self.ranges.last_entry()
            && last.key().0 == topic
        {
            let last = last.get_mut();
            if last.end == range.start && last.lease == lease {
                last.end = range.end;
                last.bytes += bytes;
                return;
            }
        }
        self.ranges.insert((topic, range.start), Flight { end: range.end, bytes, lease });
    }

    /// Takes out what is in flight of a topic within `range` and shows each piece with its bytes, lowest first.
    pub fn take(&mut self, topic: TopicId, range: OffsetRange, mut piece: impl FnMut(OffsetRange, u64)) {
        if range.is_empty() || self.ranges.is_empty() {
            return;
        }
        self.split_at(topic, range.start);
        self.split_at(topic, range.end);
        let (count, bytes) = (&mut self.count, &mut self.bytes);
        let within = (topic, range.start)..(topic, range.end);
        self.ranges.extract_if(within, |_, _| true).for_each(|((_, start), flight)| {
            let taken = OffsetRange { start, end: flight.end };
            *count -= taken.len();
            *bytes -= flight.bytes;
            piece(taken, flight.bytes);
        });
    }

    /// Has the lease of what is in flight of a topic within `range` end at `until`. Answers how many messages that are.
    pub fn extend(&mut self, topic: TopicId, range: OffsetRange, until: Timestamp) -> u64 {
        if range.is_empty() {
            return 0;
        }
        self.split_at(topic, range.start);
        self.split_at(topic, range.end);
        let within = self.ranges.range_mut((topic, range.start)..(topic, range.end));
        within.fold(0, |count, (&(_, start), flight)| {
            flight.lease.until = until;
            count + flight.end.0 - start.0
        })
    }

    /// Has every lease end so much later.
    pub fn postpone(&mut self, by: Duration) {
        for flight in self.ranges.values_mut() {
            flight.lease.until = flight.lease.until.after(by);
        }
    }

    /// Whether all of a range of a topic is in flight, by leases that end after `now`. Where not, answers the first
    /// offset that is not.
    pub fn first_missing(&self, topic: TopicId, range: OffsetRange, now: Timestamp) -> Option<Offset> {
        let mut at = range.start;
        while at < range.end {
            let before = self.ranges.range((topic, Offset(0))..=(topic, at)).next_back();
            match before {
                Some((_, flight)) if flight.end > at && flight.lease.until > now => at = flight.end,
                _ => return Some(at),
            }
        }
        None
    }

    /// Takes everything out, topic by topic, lowest first.
    pub fn take_all(&mut self, mut piece: impl FnMut(TopicId, OffsetRange)) {
        (self.count, self.bytes) = (0, 0);
        for ((topic, start), flight) in std::mem::take(&mut self.ranges) {
            piece(topic, OffsetRange { start, end: flight.end });
        }
    }

    /// Takes out what is due at `now`. Answers the earliest end of a lease that is left.
    pub fn take_expired(
        &mut self,
        now: Timestamp,
        mut piece: impl FnMut(TopicId, OffsetRange),
    ) -> Option<Timestamp> {
        let mut earliest: Option<Timestamp> = None;
        let (count, bytes) = (&mut self.count, &mut self.bytes);
        self.ranges.retain(|&(topic, start), flight| {
            if flight.lease.until > now {
                earliest = Some(earliest.map_or(flight.lease.until, |known| known.min(flight.lease.until)));
                return true;
            }
            let taken = OffsetRange { start, end: flight.end };
            *count -= taken.len();
            *bytes -= flight.bytes;
            piece(topic, taken);
            false
        });
        earliest
    }

    /// Cuts the range of a topic that holds `at` in two there.
    fn split_at(&mut self, topic: TopicId, at: Offset) {
        let before = (topic, Offset(0))..(topic, at);
        let Some((&(_, start), flight)) = self.ranges.range_mut(before).next_back() else { return };
        if flight.end <= at {
            return;
        }
        let all = u128::from(flight.end.0 - start.0);
        let front = u128::from(flight.bytes) * u128::from(at.0 - start.0) / all;
        // Not more than `flight.bytes`, as `at` lies within the range.
        let front = front as u64;
        let back = Flight { bytes: flight.bytes - front, ..*flight };
        flight.end = at;
        flight.bytes = front;
        self.ranges.insert((topic, at), back);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    use super::*;

    proptest! {
        #[test]
        fn what_is_taken_is_what_was_in_flight(
            steps in prop::collection::vec((0_u32..2, 0_u64..60, 1_u64..12, 0_u64..1_000, 0_u8..4), 1..60),
        ) {
            let mut flights = Flights::default();
            let mut naive: BTreeMap<(u32, u64), u64> = BTreeMap::new();
            let (mut put, mut got) = (0, 0);
            for (of, start, len, number, step) in steps {
                let (topic, range) = (TopicId(of), OffsetRange::new(start, start + len));
                let within = (of, start)..(of, start + len);
                match step {
                    0 if naive.range(within.clone()).next().is_none() => {
                        let lease = Lease { since: Timestamp(number), until: Timestamp(number % 5) };
                        flights.add(topic, range, number, lease);
                        naive.extend((start..start + len).map(|offset| ((of, offset), number % 5)));
                        put += number;
                    }
                    1 => {
                        let mut taken = Vec::new();
                        flights.take(topic, range, |piece, bytes| {
                            taken.extend(piece.start.0..piece.end.0);
                            got += bytes;
                        });
                        let expected: Vec<u64> = naive.range(within.clone()).map(|((_, o), _)| *o).collect();
                        prop_assert_eq!(taken, expected);
                        naive.retain(|at, _| !within.contains(at));
                    }
                    2 => {
                        let mut taken = Vec::new();
                        let before = flights.bytes();
                        let earliest = flights.take_expired(Timestamp(number % 3), |topic, piece| {
                            taken.extend((piece.start.0..piece.end.0).map(|offset| (topic.0, offset)));
                        });
                        got += before - flights.bytes();
                        let due = |deadline: &u64| *deadline <= number % 3;
                        let expected: Vec<(u32, u64)> =
                            naive.iter().filter(|(_, deadline)| due(deadline)).map(|(at, _)| *at).collect();
                        prop_assert_eq!(taken, expected);
                        naive.retain(|_, deadline| !due(deadline));
                        prop_assert_eq!(earliest, naive.values().min().map(|deadline| Timestamp(*deadline)));
                    }
                    3 => {
                        let extended = flights.extend(topic, range, Timestamp(number % 5));
                        let mut count = 0;
                        for (_, until) in naive.range_mut(within) {
                            *until = number % 5;
                            count += 1;
                        }
                        prop_assert_eq!(extended, count);
                    }
                    _ => {}
                }
                prop_assert_eq!(flights.count(), naive.len() as u64);
                prop_assert_eq!(flights.bytes(), put - got);
                let all: Vec<(u32, u64)> = (0..2)
                    .flat_map(|of| {
                        flights.of(TopicId(of)).flat_map(|r| r.start.0..r.end.0).map(move |o| (of, o)).collect::<Vec<_>>()
                    })
                    .collect();
                prop_assert_eq!(all, naive.keys().copied().collect::<Vec<_>>());
            }
            let mut left = Vec::new();
            flights.take_all(|topic, piece| left.extend((piece.start.0..piece.end.0).map(|o| (topic.0, o))));
            prop_assert_eq!(left, naive.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!((flights.count(), flights.bytes()), (0, 0));
        }
    }
}
