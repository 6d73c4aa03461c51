//! What a run has come to: counts, and what must not be.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lanes::Found;
use crate::plan::Fault;
use crate::world::Trouble;

/// Violations that are shown.
const SHOWN_MAX: usize = 10;

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Faults that struck.
    pub faults: BTreeMap<Fault, u64>,
    pub windows: u64,
    pub confirmed: u64,
    pub delivered: u64,
    /// Events that were checked.
    pub events: u64,
    /// Rejected messages, as far as it was confirmed, that had to come to the dead letters.
    pub dead_letters: u64,
    pub takeovers: u64,
    /// Nodes that ended because they had handed over or were told to.
    pub clean_ends: u64,
    /// Nodes that ended because they had lost their mastership, lock or storage.
    pub fenced_ends: u64,
    /// Nodes that ended because there was no space to take over.
    pub refused_ends: u64,
    /// Of the disk, at the end of a window.
    pub used_mebibytes_max: u64,
}

/// Why a run has failed.
pub struct Failure {
    /// Something went wrong, in words.
    pub trouble: Option<Trouble>,
    /// What clients saw and must not.
    pub found: Vec<Found>,
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self { trouble: Some(trouble), found: Vec::new() }
    }
}

/// A run in one mode.
pub struct Verdict {
    pub mode: &'static str,
    pub seed: u64,
    pub took: Duration,
    pub tally: Tally,
    /// Faults that could not strike, and why.
    pub left_out: Vec<(Fault, &'static str)>,
    pub failure: Option<Failure>,
    /// Where the store and the logs are kept.
    pub kept: Option<String>,
}

impl Verdict {
    fn problems(&self) -> Vec<String> {
        let Some(Failure { trouble, found }) = &self.failure else { return Vec::new() };
        let said = |found: &Found| {
            let around: Vec<String> = found.around.iter().map(|event| format!("\n      {event:?}")).collect();
            format!("{:?}: {:?}{}", found.lane, found.violation, around.concat())
        };
        let mut problems: Vec<String> = trouble.iter().cloned().collect();
        problems.extend(found.iter().take(SHOWN_MAX).map(said));
        if found.len() > SHOWN_MAX {
            problems.push(format!("and {} more", found.len() - SHOWN_MAX));
        }
        problems
    }

    /// For people.
    pub fn text(&self) -> String {
        let Tally {
            windows,
            confirmed,
            delivered,
            events,
            dead_letters,
            takeovers,
            clean_ends,
            fenced_ends,
            used_mebibytes_max: used,
            refused_ends,
            ..
        } = self.tally;
        let mut lines = vec![format!(
            "{} mode, seed {}: {}",
            self.mode,
            self.seed,
            if self.failure.is_none() { "clean" } else { "FAILED" }
        )];
        lines.push(format!(
            "  {} s, {windows} windows, {takeovers} takeovers, at most {used} MiB in use",
            self.took.as_secs()
        ));
        lines.push(format!(
            "  {confirmed} messages confirmed, {delivered} delivered, {dead_letters} dead letters, {events} events \
             checked"
        ));
        lines.push(format!(
            "  {fenced_ends} nodes ended without their mastership, {clean_ends} because they were told to, {refused_ends} for \
             want of space"
        ));
        let faults: Vec<String> =
            self.tally.faults.iter().map(|(fault, count)| format!("{} {count}", fault.name())).collect();
        lines.push(format!("  faults: {}", faults.join(", ")));
        for (fault, why) in &self.left_out {
            lines.push(format!("  left out: {}: {why}", fault.name()));
        }
        lines.extend(self.problems().iter().map(|problem| format!("  {problem}")));
        if let Some(kept) = &self.kept {
            lines.push(format!("  store and logs are kept in {kept}"));
        }
        lines.join("\n")
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let faults: BTreeMap<String, u64> =
            self.tally.faults.iter().map(|(fault, count)| (fault.name(), *count)).collect();
        let left_out: BTreeMap<String, &str> =
            self.left_out.iter().map(|(fault, why)| (fault.name(), *why)).collect();
        json!({
            "mode": self.mode,
            "seed": self.seed,
            "clean": self.failure.is_none(),
            "seconds": self.took.as_secs_f64(),
            "windows": self.tally.windows,
            "confirmed": self.tally.confirmed,
            "delivered": self.tally.delivered,
            "events": self.tally.events,
            "dead_letters": self.tally.dead_letters,
            "takeovers": self.tally.takeovers,
            "clean_ends": self.tally.clean_ends,
            "fenced_ends": self.tally.fenced_ends,
            "refused_ends": self.tally.refused_ends,
            "used_mebibytes_max": self.tally.used_mebibytes_max,
            "faults": faults,
            "left_out": left_out,
            "problems": self.problems(),
            "kept": self.kept,
        })
    }
}
