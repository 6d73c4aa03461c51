//! What came of a check: everything it found, and the verdict.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::finding::{Finding, Level};
use super::late_write::Class;
use super::mount::Mount;
use super::protocol::Side;
use super::sync::Times;
use crate::ha::fence::FenceRead;
use crate::model::time::Timestamp;

/// Whether the directory is fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is, as far as it was checked.
    Fit,
    /// There is a reason for doubt.
    Doubtful,
    /// It is not.
    Unfit,
}

impl Verdict {
    /// The worst finding decides.
    #[must_use]
    pub fn of(findings: &[Finding]) -> Self {
        match findings.iter().map(|finding| finding.level).max() {
            None | Some(Level::Good | Level::Note) => Self::Fit,
            Some(Level::Doubt) => Self::Doubtful,
            Some(Level::Unfit) => Self::Unfit,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fit => "fit",
            Self::Doubtful => "doubtful",
            Self::Unfit => "unfit",
        })
    }
}

/// How much was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// What shows on one mount.
    OneHost,
    /// What shows on two.
    TwoHosts,
    /// And what becomes of the late writes of a host that was cut off.
    Cut,
}

/// Figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// How long a write with a sync takes, of each side.
    pub syncs: Vec<Times>,
    /// The longest time after which the lock of a killed process was free, in microseconds.
    pub lock_release_us: Option<u64>,
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In a word.
    pub verdict: Verdict,
    /// How much was checked.
    pub scope: Scope,
    /// When, by the clock of the lead.
    pub checked_at: Timestamp,
    /// Names the run.
    pub run: Uuid,
    /// The way of reading that was checked.
    pub fence_read: FenceRead,
    /// The sides, the lead first; one where there was no second.
    pub sides: Vec<Side>,
    /// Figures.
    pub measured: Measured,
    /// What becomes of late writes; `None` where that was not tried or stayed open.
    pub late_writes: Option<Class>,
    /// Everything that was found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether one of its sides had the directory mounted like this.
    #[must_use]
    pub fn is_of(&self, mount: &Mount) -> bool {
        self.sides.iter().any(|side| side.mount.is_like(mount))
    }

    /// Whether all of its sides, of which there is one at least, had the directory mounted like this.
    #[must_use]
    pub fn is_of_none_but(&self, mount: &Mount) -> bool {
        self.is_of(mount) && self.sides.iter().all(|side| side.mount.is_like(mount))
    }

    /// The texts of the findings of one level.
    pub fn texts(&self, level: Level) -> impl Iterator<Item = &str> {
        self.findings.iter().filter(move |found| found.level == level).map(|found| found.text.as_str())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::mount::tests::sample as mount;
    use super::super::options::LostLocks;
    use super::super::space::Space;
    use super::*;

    /// A report of this scope about a mount of this type.
    pub fn sample(scope: Scope, kind: &str, findings: Vec<Finding>) -> Report {
        let side = Side {
            host: "a".to_owned(),
            boot: Uuid::nil(),
            device: 7,
            mount: mount(kind, &["hard", "rw"]),
            space: Space { bytes: 100, free_bytes: 50, free_files: None },
            lost_locks: LostLocks::Fail,
        };
        Report {
            verdict: Verdict::of(&findings),
            scope,
            checked_at: Timestamp(1_795_651_200_000),
            run: Uuid::nil(),
            fence_read: FenceRead::Reopen,
            sides: vec![side],
            measured: Measured::default(),
            late_writes: None,
            findings,
        }
    }

    #[test]
    fn the_worst_finding_decides() {
        let [good, note] = [Finding::good("a", "a"), Finding::note("b", "b")];
        let [doubt, unfit] = [Finding::doubt("c", "c"), Finding::unfit("d", "d")];
        assert_eq!(Verdict::of(&[]), Verdict::Fit);
        assert_eq!(Verdict::of(&[good.clone(), note.clone()]), Verdict::Fit);
        assert_eq!(Verdict::of(&[doubt.clone(), note]), Verdict::Doubtful);
        assert_eq!(Verdict::of(&[doubt, unfit, good]), Verdict::Unfit);
    }
}
