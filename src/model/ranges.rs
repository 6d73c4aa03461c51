//! A set of offsets kept as ranges: what is settled above a group's floor.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::id::{Offset, OffsetRange};

/// A set of offsets. Memory and time depend on the number of ranges, not on the number of offsets.
///
/// Ranges in it are not empty, do not overlap and do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RangeSet {
    ends: BTreeMap<u64, u64>,
}

/// Refuses what is no set of ranges: to go through one that ends before it starts would never end.
impl<'de> Deserialize<'de> for RangeSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ends = BTreeMap::<u64, u64>::deserialize(deserializer)?;
        let follows = ends.keys().skip(1).zip(ends.values()).all(|(start, end_before)| end_before < start);
        if !follows || ends.iter().any(|(start, end)| end <= start) {
            return Err(D::Error::custom("ranges that are empty, overlap or touch"));
        }
        Ok(Self { ends })
    }
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ends: BTreeMap::new() }
    }

    /// Number of ranges.
    #[must_use]
    pub fn range_count(&self) -> usize {
        self.ends.len()
    }

    /// Number of offsets.
    #[must_use]
    pub fn offset_count(&self) -> u64 {
        self.iter().map(OffsetRange::len).sum()
    }

    /// Whether no offset is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether `offset` is in the set.
    #[must_use]
    pub fn contains(&self, offset: Offset) -> bool {
        self.range_at(offset).is_some()
    }

    /// The range that holds `offset`.
    #[must_use]
    pub fn range_at(&self, offset: Offset) -> Option<OffsetRange> {
        let (&start, &end) = self.ends.range(..=offset.0).next_back()?;
        (offset.0 < end).then_some(OffsetRange::new(start, end))
    }

    /// The first range that ends after `offset`.
    #[must_use]
    pub fn range_from(&self, offset: Offset) -> Option<OffsetRange> {
        self.range_at(offset)
            .or_else(|| self.ends.range(offset.0..).next().map(|(&start, &end)| OffsetRange::new(start, end)))
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = OffsetRange> + '_ {
        self.ends.iter().map(|(&start, &end)| OffsetRange::new(start, end))
    }

    /// The ranges, highest first.
    pub fn iter_down(&self) -> impl Iterator<Item = OffsetRange> + '_ {
        self.ends.iter().rev().map(|(&start, &end)| OffsetRange::new(start, end))
    }

    /// Adds `range`, merging what it overlaps or touches. Answers the range that holds it now.
    pub fn insert(&mut self, range: OffsetRange) -> OffsetRange {
        let (mut start, mut end) = (range.start.0, range.end.0);
        if range.is_empty() {
            return range;
        }
        if let Some((&before, &before_end)) = self.ends.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.ends.range(start..=end).next() {
            self.ends.remove(&next);
            end = end.max(next_end);
        }
        self.ends.insert(start, end);
        OffsetRange::new(start, end)
    }

    /// Takes every offset of `range` out.
    pub fn remove(&mut self, range: OffsetRange) {
        if range.is_empty() {
            return;
        }
        let (from, to) = (range.start.0, range.end.0);
        if let Some((_, end)) = self.ends.range_mut(..from).next_back()
            && *end > from
        {
            let held_to = std::mem::replace(end, from);
            if held_to > to {
                self.ends.insert(to, held_to);
            }
        }
        while let Some((&start, &end)) = self.ends.range(from..to).next() {
            self.ends.remove(&start);
            if end > to {
                self.ends.insert(to, end);
            }
        }
    }

    /// Takes every offset below `floor` out.
    pub fn remove_below(&mut self, floor: Offset) {
        while let Some((&start, &end)) = self.ends.first_key_value() {
            if start >= floor.0 {
                break;
            }
            self.ends.remove(&start);
            if end > floor.0 {
                self.ends.insert(floor.0, end);
            }
        }
    }

    /// The parts of `range` that are not in the set, lowest first.
    pub fn gaps(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> + '_ {
        let mut at = range.start;
        std::iter::from_fn(move || {
            while at < range.end {
                match self.range_from(at) {
                    Some(held) if held.start <= at => at = held.end,
                    Some(held) if held.start < range.end => {
                        let gap = OffsetRange { start: at, end: held.start };
                        at = held.end;
                        return Some(gap);
                    }
                    _ => {
                        let gap = OffsetRange { start: at, end: range.end };
                        at = range.end;
                        return Some(gap);
                    }
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// An archive whose state had a range that ended before it started kept its reader busy for ever.
    #[test]
    fn what_is_no_set_of_ranges_is_not_read() {
        for (text, valid) in [
            ("{}", true),
            ("{\"1\":2,\"3\":9}", true),
            ("{\"5\":3}", false),
            ("{\"5\":5}", false),
            ("{\"1\":3,\"3\":4}", false),
            ("{\"1\":9,\"3\":4}", false),
        ] {
            assert_eq!(serde_json::from_str::<RangeSet>(text).is_ok(), valid, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_range_set_is_a_set_of_offsets(
            steps in prop::collection::vec((0_u64..60, 0_u64..12, 0_u8..4), 1..40),
            probe in (0_u64..60, 0_u64..20),
        ) {
            let mut ranges = RangeSet::new();
            let mut naive = BTreeSet::new();
            for (start, len, step) in steps {
                if step < 2 {
                    ranges.insert(OffsetRange::new(start, start + len));
                    naive.extend(start..start + len);
                } else if step == 2 {
                    ranges.remove(OffsetRange::new(start, start + len));
                    naive.retain(|&offset| offset < start || offset >= start + len);
                } else {
                    ranges.remove_below(Offset(len));
                    naive.retain(|&offset| offset >= len);
                }
                let all: Vec<u64> = ranges.iter().flat_map(|r| r.start.0..r.end.0).collect();
                prop_assert_eq!(&all, &naive.iter().copied().collect::<Vec<_>>());
                prop_assert!(ranges.iter().zip(ranges.iter().skip(1)).all(|(a, b)| a.end < b.start));
            }
            let range = OffsetRange::new(probe.0, probe.0 + probe.1);
            let gaps: Vec<u64> = ranges.gaps(range).flat_map(|r| r.start.0..r.end.0).collect();
            let expected: Vec<u64> = (range.start.0..range.end.0).filter(|o| !naive.contains(o)).collect();
            prop_assert_eq!(gaps, expected);
        }
    }
}
