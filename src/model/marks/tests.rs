//! Estimates against the exact history, and what is refused.

use proptest::prelude::*;

use super::*;

/// What was appended, message by message, and what the bounds are made of.
struct History {
    marks: Marks,
    /// For each message the bytes before it, and when it was published.
    exact: Vec<(u64, Timestamp)>,
    start: u64,
    bytes: u64,
    now: Timestamp,
    covered_bytes_max: u64,
    covered_time_max: Duration,
    block_bytes_max: u64,
    pause_max: Duration,
}

impl History {
    fn new() -> Self {
        Self {
            marks: Marks::new(),
            exact: Vec::new(),
            start: 0,
            bytes: 0,
            now: Timestamp(1_000_000),
            covered_bytes_max: 0,
            covered_time_max: Duration::ZERO,
            block_bytes_max: 0,
            pause_max: Duration::ZERO,
        }
    }

    fn end(&self) -> Offset {
        Offset(self.exact.len() as u64)
    }

    /// Appends messages of these sizes as one block, some time after the last.
    fn append(&mut self, sizes: &[u64], pause: Duration) {
        let first = self.end();
        if first.0 > 0 {
            self.pause_max = self.pause_max.max(pause);
        }
        self.now = self.now.after(pause);
        let block_bytes = sizes.iter().sum();
        for size in sizes {
            self.exact.push((self.bytes, self.now));
            self.bytes += size;
        }
        self.marks.appended(first, sizes.len() as u64, block_bytes, self.now);
        let oldest = self.marks.list[0];
        self.covered_bytes_max = self.covered_bytes_max.max(self.bytes - oldest.bytes);
        self.covered_time_max = self.covered_time_max.max(self.now.since(oldest.at));
        self.block_bytes_max = self.block_bytes_max.max(block_bytes);
    }

    fn trim(&mut self, start: u64) {
        self.start = start;
        self.marks.trim(Offset(start));
        let not_after = self.marks.list.iter().filter(|mark| mark.offset.0 <= start).count();
        assert_eq!(not_after, 1, "marks at {start} or before it");
    }

    /// What the head of this file promises.
    fn gap_bytes_max(&self) -> u64 {
        let set = (self.covered_bytes_max / 64).max(64 << 10) + self.block_bytes_max;
        set.max(self.covered_bytes_max / 16)
    }

    fn gap_time_max(&self) -> Duration {
        let set = (self.covered_time_max / 64).max(Duration::from_secs(1)) + self.pause_max;
        set.max(self.covered_time_max / 16)
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let (marks, end) = (&self.marks, self.end());
        prop_assert!(marks.list.len() <= MARKS_MAX);
        prop_assert_eq!(marks.bytes_ever(), self.bytes);
        prop_assert_eq!(marks.bytes_before(end, end), self.bytes);
        prop_assert_eq!(marks.published_about(end, end), self.now);
        for mark in marks.list.iter().filter(|mark| mark.offset.0 >= self.start) {
            let told = (marks.bytes_before(mark.offset, end), marks.published_about(mark.offset, end));
            prop_assert_eq!(told, self.exact[mark.offset.0 as usize]);
        }
        for (offset, (bytes, at)) in (0..).zip(&self.exact).skip(self.start as usize) {
            let told = marks.bytes_before(Offset(offset), end);
            prop_assert!(told.abs_diff(*bytes) <= self.gap_bytes_max(), "{offset}: {told}, not {bytes}");
            let told = marks.published_about(Offset(offset), end);
            let error = told.since(*at).max(at.since(told));
            prop_assert!(error <= self.gap_time_max(), "{offset}: {told}, not {at}");
            let from = marks.offset_about(*at, end);
            prop_assert!(from.0 == 0 || self.exact[from.0 as usize - 1].1 <= *at);
            prop_assert!(from.0 <= offset, "{from} is after {offset}");
        }
        Ok(())
    }
}

/// Blocks of one kind, one after the other.
fn phase() -> impl Strategy<Value = Vec<(Vec<u64>, Duration)>> {
    (0_u32..24, 0_u32..20).prop_flat_map(|(size_bits, pause_bits)| {
        let sizes = prop::collection::vec(0..=1_u64 << size_bits, 1..6);
        let pause = (0..=1_u64 << pause_bits).prop_map(Duration::from_millis);
        prop::collection::vec((sizes, pause), 1..150)
    })
}

/// Anything a caller may say, sensible or not.
fn odd_number() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..20, 0_u64..1 << 20, any::<u64>(), Just(u64::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn estimates_are_within_a_gap_of_the_truth(
        phases in prop::collection::vec((phase(), 0_u64..=100), 1..6),
    ) {
        let mut history = History::new();
        for (blocks, kept_percent) in phases {
            for (sizes, pause) in &blocks {
                history.append(sizes, *pause);
            }
            history.check()?;
            let (start, end) = (history.start, history.end().0);
            history.trim(end - (end - start) * kept_percent / 100);
            history.check()?;
        }
    }

    #[test]
    fn what_is_trimmed_changes_no_other_estimate(
        blocks in phase(), starts in (0_u64..500, 0_u64..500), bytes in 0_u64..1 << 24,
    ) {
        let mut history = History::new();
        for (sizes, pause) in &blocks {
            history.append(sizes, *pause);
        }
        let (whole, end) = (&history.marks, history.end());
        let start = Offset(starts.0.max(starts.1).min(end.0));
        let mut trimmed = whole.clone();
        trimmed.trim(start);
        let mut twice = whole.clone();
        twice.trim(Offset(starts.0.min(starts.1)));
        twice.trim(start);
        prop_assert_eq!(&twice, &trimmed);
        for offset in (start.0..=end.0).map(Offset) {
            prop_assert_eq!(trimmed.bytes_before(offset, end), whole.bytes_before(offset, end));
            prop_assert_eq!(trimmed.published_about(offset, end), whole.published_about(offset, end));
        }
        let left = (trimmed.offset_with_bytes_left(bytes, end), whole.offset_with_bytes_left(bytes, end));
        prop_assert_eq!(left.0.max(start), left.1.max(start));
        let text = serde_json::to_string(&trimmed).unwrap();
        prop_assert_eq!(serde_json::from_str::<Marks>(&text).unwrap(), trimmed);
    }

    #[test]
    fn no_smaller_offset_has_so_few_bytes_left(blocks in phase(), part in 0_u64..=1000) {
        let mut history = History::new();
        for (sizes, pause) in &blocks {
            history.append(sizes, *pause);
        }
        let (marks, end) = (&history.marks, history.end());
        let bytes = history.bytes * part / 1000;
        let left = |offset| history.bytes - marks.bytes_before(Offset(offset), end);
        let answer = marks.offset_with_bytes_left(bytes, end).0;
        prop_assert!(left(answer) <= bytes);
        prop_assert!(answer == 0 || left(answer - 1) > bytes);
    }

    #[test]
    fn estimates_are_monotonic_whatever_was_said(
        blocks in prop::collection::vec((odd_number(), odd_number(), odd_number(), odd_number()), 0..100),
        start in odd_number(),
        asked in (odd_number(), odd_number()),
        ends in (odd_number(), odd_number()),
    ) {
        let mut marks = Marks::new();
        for (first, count, bytes, at) in blocks {
            marks.appended(Offset(first), count, bytes, Timestamp(at));
        }
        marks.trim(Offset(start));
        let (low, high) = (asked.0.min(asked.1), asked.0.max(asked.1));
        let (end, later) = (Offset(ends.0.min(ends.1)), Offset(ends.0.max(ends.1)));
        let bytes = |offset, end| marks.bytes_before(Offset(offset), end);
        prop_assert!(bytes(low, end) <= bytes(high, end) && bytes(low, later) <= bytes(low, end));
        let at = |offset, end| marks.published_about(Offset(offset), end);
        prop_assert!(at(low, end) <= at(high, end) && at(low, later) <= at(low, end));
        let left = |bytes, end| marks.offset_with_bytes_left(bytes, end);
        prop_assert!(left(low, end) >= left(high, end) && left(low, later) >= left(low, end));
        prop_assert!(left(low, end) <= end);
        let from = |time, end| marks.offset_about(Timestamp(time), end);
        prop_assert!(from(low, end) <= from(high, end) && from(low, later) >= from(low, end));
        prop_assert!(from(high, end) <= end);
        let text = serde_json::to_string(&marks).unwrap();
        prop_assert_eq!(serde_json::from_str::<Marks>(&text).unwrap(), marks);
    }
}

/// With every second mark forgotten whenever there are too many, the marks that time adds would wear away those
/// that tell about a burst long ago, until half of all bytes lie between two marks.
#[test]
fn a_burst_is_still_told_apart_after_a_long_trickle() {
    let mut history = History::new();
    for _ in 0..1000 {
        history.append(&[1 << 20], Duration::from_millis(1));
    }
    for _ in 0..20_000 {
        history.append(&[10], Duration::from_secs(60));
    }
    history.check().unwrap();
}

/// Where one of the two stands still its share is no reason to keep a mark, nor to lose one.
#[test]
fn either_bytes_or_time_may_stand_still() {
    for (size, pause_ms) in [(100 << 10, 0), (0, 5000)] {
        let mut history = History::new();
        for _ in 0..1000 {
            history.append(&[size], Duration::from_millis(pause_ms));
        }
        history.check().unwrap();
        let gaps = history.marks.list.windows(2);
        let widest = gaps.map(|pair| pair[1].offset.0 - pair[0].offset.0).max();
        assert!(widest <= Some(1000 / 32), "{widest:?} of 1000 messages between two marks");
    }
}

#[test]
fn a_mark_is_set_where_enough_was_added() {
    let set_after = |history: &History, bytes, pause| {
        let mut marks = history.marks.clone();
        let (before, end) = (marks.list.len(), history.end());
        marks.appended(end, 1, bytes, history.now);
        marks.appended(end.next(), 1, 0, history.now.after(Duration::from_millis(pause)));
        marks.list.len() > before
    };
    let mut history = History::new();
    history.append(&[0], Duration::ZERO);
    for (bytes, pause, set) in [(65_535, 999, false), (65_536, 0, true), (0, 1000, true)] {
        assert_eq!(set_after(&history, bytes, pause), set, "{bytes} bytes and {pause} ms after a first mark");
    }
    history.append(&[640 << 20], Duration::from_secs(640));
    history.append(&[0], Duration::ZERO);
    for (bytes, pause, set) in [(9 << 20, 9_000, false), (11 << 20, 0, true), (0, 11_000, true)] {
        assert_eq!(
            set_after(&history, bytes, pause),
            set,
            "{bytes} bytes and {pause} ms after 640 MiB in 640 s"
        );
    }
    history.trim(history.end().0);
    assert!(set_after(&history, 65_536, 0), "what was trimmed counts");
}

#[test]
fn a_block_in_two_parts_may_leave_a_mark_more() {
    let (mut whole, mut parts) = (Marks::new(), Marks::new());
    whole.appended(Offset(0), 20, 200 << 10, Timestamp(5));
    parts.appended(Offset(0), 10, 100 << 10, Timestamp(5));
    parts.appended(Offset(10), 10, 100 << 10, Timestamp(5));
    assert_eq!((whole.list.len(), parts.list.len()), (1, 2));
    assert_eq!(whole.bytes_ever(), parts.bytes_ever());
}

#[test]
fn marks_out_of_order_are_not_read() {
    let mut marks = Marks::new();
    marks.appended(Offset(0), 2, 100_000, Timestamp(5));
    marks.appended(Offset(2), 0, 100_000, Timestamp(6));
    marks.appended(Offset(2), 3, 30, Timestamp(7));
    let text = r#"{"m":[{"o":0,"t":5,"b":0},{"o":2,"t":7,"b":100000}],"b":100030,"t":7}"#;
    assert_eq!(serde_json::to_string(&marks).unwrap(), text);
    assert_eq!(serde_json::from_str::<Marks>(text).unwrap(), marks);
    assert_eq!(serde_json::from_str::<Marks>(r#"{"m":[],"b":0,"t":0}"#).unwrap(), Marks::new());
    let many: Vec<String> = (0..65).map(|o| format!(r#"{{"o":{o},"t":0,"b":0}}"#)).collect();
    for refused in [
        r#"{"m":[],"b":1,"t":0}"#,
        r#"{"m":[],"b":0,"t":1}"#,
        r#"{"m":[{"o":0,"t":5,"b":9}],"b":8,"t":5}"#,
        r#"{"m":[{"o":0,"t":5,"b":0}],"b":8,"t":4}"#,
        r#"{"m":[{"o":2,"t":5,"b":0},{"o":2,"t":5,"b":0}],"b":8,"t":5}"#,
        r#"{"m":[{"o":2,"t":5,"b":0},{"o":3,"t":4,"b":0}],"b":8,"t":5}"#,
        r#"{"m":[{"o":2,"t":5,"b":1},{"o":3,"t":5,"b":0}],"b":8,"t":5}"#,
        &format!(r#"{{"m":[{}],"b":0,"t":0}}"#, many.join(",")),
    ] {
        assert!(serde_json::from_str::<Marks>(refused).is_err(), "{refused}");
    }
}
