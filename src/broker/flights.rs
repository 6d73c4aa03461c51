//! What one consumer has in flight: ranges of offsets with their bytes and the end of their lease.
//!
//! One entry per range that was handed out together, not per message. Where a part of a range is taken out, its
//! bytes are its share of the range's bytes; the shares of all parts add up to the whole.

use std::collections::BTreeMap;

use crate::model::id::{Offset, OffsetRange};
use crate::model::time::Timestamp;

/// Messages handed out together.
#[derive(Clone, Copy, Debug)]
struct Flight {
    end: Offset,
    bytes: u64,
    deadline: Timestamp,
}

/// Everything in flight to a consumer. Ranges do not overlap.
#[derive(Debug, Default)]
pub(super) struct Flights {
    ranges: BTreeMap<Offset, Flight>,
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

    /// The ranges in flight, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = OffsetRange> + '_ {
        self.ranges.iter().map(|(&start, flight)| OffsetRange { start, end: flight.end })
    }

    /// Adds a range that is handed out. None of it is in flight yet.
    pub fn add(&mut self, range: OffsetRange, bytes: u64, deadline: Timestamp) {
        self.count += range.len();
        self.bytes += bytes;
        if let Some(mut last) = self.ranges.last_entry() {
            let last = last.get_mut();
            if last.end == range.start && last.deadline == deadline {
                last.end = range.end;
                last.bytes += bytes;
                return;
            }
        }
        self.ranges.insert(range.start, Flight { end: range.end, bytes, deadline });
    }

    /// Takes out what is in flight within `range` and shows each piece with its bytes, lowest first.
    pub fn take(&mut self, range: OffsetRange, mut piece: impl FnMut(OffsetRange, u64)) {
        if range.is_empty() || self.ranges.is_empty() {
            return;
        }
        self.split_at(range.start);
        self.split_at(range.end);
        let (count, bytes) = (&mut self.count, &mut self.bytes);
        self.ranges.extract_if(range.start..range.end, |_, _| true).for_each(|(start, flight)| {
            let taken = OffsetRange { start, end: flight.end };
            *count -= taken.len();
            *bytes -= flight.bytes;
            piece(taken, flight.bytes);
        });
    }

    /// Takes everything out.
    pub fn take_all(&mut self, piece: impl FnMut(OffsetRange, u64)) {
        self.take(OffsetRange { start: Offset(0), end: Offset(u64::MAX) }, piece);
    }

    /// Takes out what is due at `now`. Answers the earliest end of a lease that is left.
    pub fn take_expired(&mut self, now: Timestamp, mut piece: impl FnMut(OffsetRange)) -> Option<Timestamp> {
        let mut earliest: Option<Timestamp> = None;
        let (count, bytes) = (&mut self.count, &mut self.bytes);
        self.ranges.retain(|&start, flight| {
            if flight.deadline > now {
                earliest = Some(earliest.map_or(flight.deadline, |known| known.min(flight.deadline)));
                return true;
            }
            let taken = OffsetRange { start, end: flight.end };
            *count -= taken.len();
            *bytes -= flight.bytes;
            piece(taken);
            false
        });
        earliest
    }

    /// Cuts the range that holds `at` in two there.
    fn split_at(&mut self, at: Offset) {
        let Some((&start, flight)) = self.ranges.range_mut(..at).next_back() else { return };
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
        self.ranges.insert(at, back);
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
            steps in prop::collection::vec((0_u64..60, 1_u64..12, 0_u64..1_000, 0_u8..3), 1..60),
        ) {
            let mut flights = Flights::default();
            let mut naive: BTreeMap<u64, u64> = BTreeMap::new();
            let (mut put, mut got) = (0, 0);
            for (start, len, number, step) in steps {
                let range = OffsetRange::new(start, start + len);
                match step {
                    0 if naive.range(start..start + len).next().is_none() => {
                        flights.add(range, number, Timestamp(number % 5));
                        naive.extend((start..start + len).map(|offset| (offset, number % 5)));
                        put += number;
                    }
                    1 => {
                        let mut taken = Vec::new();
                        flights.take(range, |piece, bytes| {
                            taken.extend(piece.start.0..piece.end.0);
                            got += bytes;
                        });
                        let expected: Vec<u64> = naive.range(start..start + len).map(|(o, _)| *o).collect();
                        prop_assert_eq!(taken, expected);
                        naive.retain(|offset, _| !range.contains(Offset(*offset)));
                    }
                    2 => {
                        let mut taken = Vec::new();
                        let before = flights.bytes();
                        let earliest = flights.take_expired(Timestamp(number % 3), |piece| {
                            taken.extend(piece.start.0..piece.end.0);
                        });
                        got += before - flights.bytes();
                        let due = |deadline: &u64| *deadline <= number % 3;
                        let expected: Vec<u64> = naive.iter().filter(|(_, d)| due(d)).map(|(o, _)| *o).collect();
                        prop_assert_eq!(taken, expected);
                        naive.retain(|_, deadline| !due(deadline));
                        prop_assert_eq!(earliest, naive.values().min().map(|deadline| Timestamp(*deadline)));
                    }
                    _ => {}
                }
                prop_assert_eq!(flights.count(), naive.len() as u64);
                prop_assert_eq!(flights.bytes(), put - got);
                let all: Vec<u64> = flights.iter().flat_map(|r| r.start.0..r.end.0).collect();
                prop_assert_eq!(all, naive.keys().copied().collect::<Vec<_>>());
            }
            flights.take_all(|_, bytes| got += bytes);
            prop_assert_eq!((flights.count(), flights.bytes(), put), (0, 0, got));
        }
    }
}
