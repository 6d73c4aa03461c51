//! A map from offsets to values kept as ranges: what whole stretches of a topic have in common.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::id::{Offset, OffsetRange};

/// A map from offsets to values. Memory and time depend on the number of runs, not on the number of offsets.
///
/// A run is a range of offsets with one value. Runs are not empty and do not overlap, and two that touch have
/// different values. So two maps that hold the same are equal and are written alike, however each came about.
///
/// Written as a map: the start of each run, with its end and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RangeMap<V> {
    runs: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self { runs: BTreeMap::new() }
    }
}

/// Refuses what is no such map: to go through a run that ends before it starts would never end.
impl<'de, V: Eq + Deserialize<'de>> Deserialize<'de> for RangeMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let runs = BTreeMap::<u64, (u64, V)>::deserialize(deserializer)?;
        let follows =
            runs.iter().skip(1).zip(runs.values()).all(|((start, (_, value)), (end_before, before))| {
                end_before < start || (end_before == start && before != value)
            });
        if !follows || runs.iter().any(|(start, (end, _))| end <= start) {
            return Err(D::Error::custom("runs that are empty, overlap or touch one of the same value"));
        }
        Ok(Self { runs })
    }
}

impl<V: Clone + Eq> RangeMap<V> {
    /// The empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self { runs: BTreeMap::new() }
    }

    /// Number of runs.
    #[must_use]
    pub fn range_count(&self) -> usize {
        self.runs.len()
    }

    /// Number of offsets that have a value.
    #[must_use]
    pub fn offset_count(&self) -> u64 {
        self.iter().map(|(run, _)| run.len()).sum()
    }

    /// Whether no offset has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The value of `offset`.
    #[must_use]
    pub fn get(&self, offset: Offset) -> Option<&V> {
        self.run_at(offset).map(|(_, value)| value)
    }

    /// The run that holds `offset`.
    #[must_use]
    pub fn run_at(&self, offset: Offset) -> Option<(OffsetRange, &V)> {
        self.runs.range(..=offset.0).next_back().map(run).filter(|(run, _)| run.contains(offset))
    }

    /// The first run that ends after `offset`.
    #[must_use]
    pub fn run_from(&self, offset: Offset) -> Option<(OffsetRange, &V)> {
        self.run_at(offset).or_else(|| self.runs.range(offset.0..).next().map(run))
    }

    /// The lowest run.
    #[must_use]
    pub fn first(&self) -> Option<(OffsetRange, &V)> {
        self.runs.first_key_value().map(run)
    }

    /// The highest run.
    #[must_use]
    pub fn last(&self) -> Option<(OffsetRange, &V)> {
        self.runs.last_key_value().map(run)
    }

    /// The runs, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (OffsetRange, &V)> + '_ {
        self.runs.iter().map(run)
    }

    /// The parts of the runs that lie within `range`, lowest first.
    pub fn within(&self, range: OffsetRange) -> impl DoubleEndedIterator<Item = (OffsetRange, &V)> + '_ {
        let from = self.run_at(range.start).map_or(range.start, |(run, _)| run.start);
        let to = if range.is_empty() { from } else { range.end };
        self.runs.range(from.0..to.0).map(run).map(move |(run, value)| {
            (OffsetRange { start: run.start.max(range.start), end: run.end.min(range.end) }, value)
        })
    }

    /// Gives every offset of `range` this value, in place of the one it had.
    pub fn insert(&mut self, range: OffsetRange, value: V) {
        if range.is_empty() {
            return;
        }
        self.remove(range);
        let (mut start, mut end) = (range.start.0, range.end.0);
        if let Some((&before, (before_end, held))) = self.runs.range(..start).next_back()
            && *before_end == start
            && *held == value
        {
            start = before;
        }
        if let Some((after_end, held)) = self.runs.get(&end)
            && *held == value
        {
            let after_end = *after_end;
            self.runs.remove(&end);
            end = after_end;
        }
        self.runs.insert(start, (end, value));
    }

    /// Takes every offset of `range` out.
    pub fn remove(&mut self, range: OffsetRange) {
        if range.is_empty() {
            return;
        }
        let (from, to) = (range.start.0, range.end.0);
        if let Some((_, (end, value))) = self.runs.range_mut(..from).next_back()
            && *end > from
        {
            let held_to = std::mem::replace(end, from);
            if held_to > to {
                let value = value.clone();
                self.runs.insert(to, (held_to, value));
            }
        }
        while let Some((&start, _)) = self.runs.range(from..to).next() {
            if let Some((end, value)) = self.runs.remove(&start)
                && end > to
            {
                self.runs.insert(to, (end, value));
            }
        }
    }

    /// Takes every offset below `floor` out.
    pub fn remove_below(&mut self, floor: Offset) {
        self.remove(OffsetRange { start: Offset(0), end: floor });
    }
}

fn run<'a, V>((&start, (end, value)): (&'a u64, &'a (u64, V))) -> (OffsetRange, &'a V) {
    (OffsetRange::new(start, *end), value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A set of ranges with one that ended before it started kept its reader busy for ever; a map of them is read by
    /// the same kind of loop. A run in two parts would make two maps differ that hold the same.
    #[test]
    fn what_is_no_map_of_ranges_is_not_read() {
        for (text, valid) in [
            ("{}", true),
            ("{\"1\":[2,7],\"3\":[9,7]}", true),
            ("{\"1\":[3,7],\"3\":[9,8]}", true),
            ("{\"1\":[3,7],\"3\":[9,7]}", false),
            ("{\"5\":[3,7]}", false),
            ("{\"5\":[5,7]}", false),
            ("{\"1\":[4,7],\"3\":[9,8]}", false),
            ("{\"1\":[9,7],\"3\":[4,8]}", false),
        ] {
            let read = serde_json::from_str::<RangeMap<u8>>(text);
            assert_eq!(read.is_ok(), valid, "{text}");
            if let Ok(read) = read {
                assert_eq!(serde_json::to_string(&read).unwrap(), text);
            }
        }
    }

    #[test]
    fn runs_reach_to_the_last_offsets() {
        let mut map = RangeMap::new();
        map.insert(OffsetRange::new(0, u64::MAX), 'a');
        map.insert(OffsetRange::new(u64::MAX - 1, u64::MAX), 'b');
        assert_eq!(map.offset_count(), u64::MAX);
        assert_eq!(map.get(Offset(u64::MAX - 1)), Some(&'b'));
        assert_eq!(map.get(Offset(u64::MAX)), None);
        assert_eq!(map.run_from(Offset(u64::MAX)), None);
        map.remove_below(Offset(u64::MAX));
        assert!(map.is_empty());
    }

    /// The runs of `naive`, found offset by offset.
    fn runs_of(naive: &BTreeMap<u64, u8>) -> Vec<(OffsetRange, u8)> {
        let mut runs: Vec<(OffsetRange, u8)> = Vec::new();
        for (&offset, &value) in naive {
            match runs.last_mut() {
                Some((run, held)) if run.end.0 == offset && *held == value => run.end.0 += 1,
                _ => runs.push((OffsetRange::one(Offset(offset)), value)),
            }
        }
        runs
    }

    fn owned((run, value): (OffsetRange, &u8)) -> (OffsetRange, u8) {
        (run, *value)
    }

    proptest! {
        #[test]
        fn a_range_map_is_a_map_of_offsets(
            steps in prop::collection::vec((0_u64..60, 0_u64..12, 0_u8..3, 0_u8..6), 1..60),
            probe in (0_u64..60, 0_u64..20),
        ) {
            let mut map = RangeMap::new();
            let mut naive = BTreeMap::new();
            for (start, len, value, step) in steps {
                let range = OffsetRange::new(start, start + len);
                match step {
                    0 => {
                        map.remove(range);
                        naive.retain(|&offset, _| !range.contains(Offset(offset)));
                    }
                    1 => {
                        map.remove_below(Offset(len));
                        naive.retain(|&offset, _| offset >= len);
                    }
                    _ => {
                        map.insert(range, value);
                        naive.extend((start..start + len).map(|offset| (offset, value)));
                    }
                }
                prop_assert_eq!(map.iter().map(owned).collect::<Vec<_>>(), runs_of(&naive));
            }
            let runs = runs_of(&naive);
            prop_assert_eq!(map.range_count(), runs.len());
            prop_assert_eq!(map.offset_count(), naive.len() as u64);
            prop_assert_eq!(map.is_empty(), naive.is_empty());
            prop_assert_eq!(map.first().map(owned), runs.first().copied());
            prop_assert_eq!(map.last().map(owned), runs.last().copied());
            for at in (0..80).map(Offset) {
                prop_assert_eq!(map.get(at), naive.get(&at.0));
                let holding = runs.iter().find(|(run, _)| run.contains(at));
                prop_assert_eq!(map.run_at(at).map(owned), holding.copied());
                let following = runs.iter().find(|(run, _)| run.end > at);
                prop_assert_eq!(map.run_from(at).map(owned), following.copied());
            }
            let inside = OffsetRange::new(probe.0, probe.0 + probe.1);
            naive.retain(|&offset, _| inside.contains(Offset(offset)));
            prop_assert_eq!(map.within(inside).map(owned).collect::<Vec<_>>(), runs_of(&naive));
            let backwards = OffsetRange::new(probe.0, probe.0.saturating_sub(probe.1));
            prop_assert_eq!(map.within(backwards).count(), 0);

            let text = serde_json::to_string(&map).unwrap();
            prop_assert_eq!(serde_json::from_str::<RangeMap<u8>>(&text).unwrap(), map);
        }
    }
}
