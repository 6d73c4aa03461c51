//! What the results of checks mean for a node that starts, and for one that takes over.
//!
//! A result counts only for the mount that it is of. Of those that count, an unfit one decides, whatever else was
//! checked; otherwise the one that checked most. Where nothing was checked, that is said for file systems that two
//! hosts may share, and not for a local one, where it would be said to everybody who tries Baton out.

use std::path::Path;

use super::CheckError;
use super::finding::Level;
use super::late_write;
use super::mount::{Class, Mount};
use super::remembered::{self, FILE};
use super::report::{Report, Scope, Verdict};
use crate::ha::fence::FenceRead;

/// What a node is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing needs to be said.
    Nothing,
    /// To go on; what was found is good.
    Good(String),
    /// To go on, and to warn.
    Warn(String),
    /// Not to go on.
    Unfit(String),
}

/// What becomes of the writes of a host that has lost the lock, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Late {
    /// None of them arrives.
    Fail(String),
    /// They may arrive, as far as it is known.
    MayArrive(String),
}

/// What becomes of late writes in the shared directory `store`.
///
/// That none arrives is believed only where nothing speaks against it: a check of two hosts with a cut found it, both
/// of them had the directory mounted as it is now, and no check of this mount left a doubt. An old master whose host
/// has it mounted otherwise is not noticed; the documentation says that both are to mount it in the same way.
///
/// # Errors
/// Where the system does not say how it is mounted.
pub fn late_writes(store: &Path) -> Result<Late, CheckError> {
    let mount = Mount::of(store)?;
    Ok(match remembered::read(store) {
        Ok(results) => late_writes_of(&mount, &results),
        Err(error) => Late::MayArrive(format!("the result of the check of this storage, {FILE}, {error}")),
    })
}

fn late_writes_of(mount: &Mount, results: &[Report]) -> Late {
    let may_arrive = |why: &str| Late::MayArrive(why.to_owned());
    let with_cut = results.iter().filter(|report| report.scope == Scope::Cut && report.late_writes.is_some());
    let mut with_cut = with_cut.peekable();
    if with_cut.peek().is_none() {
        return may_arrive(
            "what becomes of late writes was never found out, by `baton store check` with --cut",
        );
    }
    let Some(report) = with_cut.find(|report| report.is_of_none_but(mount)) else {
        return may_arrive("this storage was checked with --cut, but mounted otherwise than now");
    };
    if results.iter().any(|report| report.is_of(mount) && report.verdict != Verdict::Fit) {
        return may_arrive("a check of this storage left doubts");
    }
    match report.late_writes {
        Some(late_write::Class::A) => {
            Late::Fail("the check found that no late write arrives on this storage (class A)".to_owned())
        }
        Some(late_write::Class::B) => may_arrive("the check found that some late writes arrive (class B)"),
        Some(late_write::Class::C) | None => may_arrive("the check found that late writes arrive (class C)"),
    }
}

/// What to do with the shared directory `store`, whose fence is read like this.
///
/// # Errors
/// Where the system does not say how it is mounted.
pub fn at_start(store: &Path, read: FenceRead) -> Result<Advice, CheckError> {
    let mount = Mount::of(store)?;
    let again =
        format!("run `baton store check {}`, on both hosts with --listen and --peer", store.display());
    let results = match remembered::read(store) {
        Ok(results) => results,
        Err(error) => {
            return Ok(Advice::Warn(format!(
                "the result of the check of this storage, {FILE}, {error}; {again}"
            )));
        }
    };
    Ok(of(&mount, &results, read, &again))
}

fn of(mount: &Mount, results: &[Report], read: FenceRead, again: &str) -> Advice {
    let counting: Vec<&Report> = results.iter().filter(|report| report.is_of(mount)).collect();
    let listed = |report: &Report, level| report.texts(level).collect::<Vec<_>>().join("; ");
    if let Some(report) = counting.iter().find(|report| report.verdict == Verdict::Unfit) {
        return Advice::Unfit(listed(report, Level::Unfit));
    }
    let is_shared = matches!(mount.class(), Class::Shared | Class::Unknown);
    let Some(report) = counting.iter().max_by_key(|report| report.scope) else {
        return match (is_shared, results.is_empty()) {
            (false, _) => Advice::Nothing,
            (true, true) => Advice::Warn(format!("this storage ({}) was never checked; {again}", mount.kind)),
            (true, false) => Advice::Warn(format!(
                "this storage ({}) was checked, but mounted otherwise than now; {again}",
                mount.kind
            )),
        };
    };
    if let Some(report) = counting.iter().find(|report| report.verdict == Verdict::Doubtful) {
        return Advice::Warn(format!(
            "the check of this storage left doubts: {}",
            listed(report, Level::Doubt)
        ));
    }
    // A check of direct reads is one of reopening too.
    if read == FenceRead::Direct && report.fence_read == FenceRead::Reopen {
        let text = "fence_read is set to direct, and this storage was checked without that";
        return Advice::Warn(format!("{text}; {again}, and with --fence-read direct"));
    }
    if is_shared && report.scope == Scope::OneHost {
        return Advice::Warn(format!("this storage ({}) was checked on one host alone; {again}", mount.kind));
    }
    Advice::Good(format!("the check found this storage ({}) fit", mount.kind))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Finding;
    use super::super::mount::tests::sample as mount;
    use super::super::report::tests::sample;
    use super::*;

    fn advice(results: &[Report], kind: &str, options: &[&str], read: FenceRead) -> Advice {
        of(&mount(kind, options), results, read, "check it")
    }

    const OPTIONS: [&str; 2] = ["hard", "rw"];

    fn says(results: &[Report], expected: &str) {
        match advice(results, "nfs4", &OPTIONS, FenceRead::Reopen) {
            Advice::Warn(text) => assert!(text.contains(expected), "{text}"),
            other => panic!("{expected}: {other:?}"),
        }
    }

    #[test]
    fn a_node_on_shared_storage_wants_a_check_on_two_hosts_without_doubts() {
        let good = || vec![Finding::good("sync", "good")];
        says(&[], "never checked; check it");
        says(&[sample(Scope::OneHost, "nfs4", good())], "on one host alone; check it");
        says(&[sample(Scope::TwoHosts, "nfs4", vec![Finding::doubt("x", "hm")])], "left doubts: hm");
        says(&[sample(Scope::TwoHosts, "ceph", good())], "mounted otherwise than now");
        let fit = [sample(Scope::OneHost, "nfs4", good()), sample(Scope::TwoHosts, "nfs4", good())];
        let of = |options: &[&str], read| advice(&fit, "nfs4", options, read);
        assert!(matches!(of(&OPTIONS, FenceRead::Reopen), Advice::Good(_)));
        assert!(matches!(of(&OPTIONS, FenceRead::Direct), Advice::Warn(_)));
        let directly = [Report { fence_read: FenceRead::Direct, ..fit[1].clone() }];
        for read in [FenceRead::Reopen, FenceRead::Direct] {
            assert!(matches!(advice(&directly, "nfs4", &OPTIONS, read), Advice::Good(_)));
        }
        assert!(matches!(of(&["rw", "soft"], FenceRead::Reopen), Advice::Warn(_)));
    }

    #[test]
    fn an_unfit_result_decides_where_it_is_of_this_mount() {
        let unfit = || vec![Finding::unfit("x", "no"), Finding::unfit("y", "never")];
        let results = [sample(Scope::TwoHosts, "nfs4", vec![]), sample(Scope::OneHost, "nfs4", unfit())];
        let of = |kind| advice(&results, kind, &OPTIONS, FenceRead::Reopen);
        assert_eq!(of("nfs4"), Advice::Unfit("no; never".to_owned()));
        assert!(matches!(of("ceph"), Advice::Warn(_)), "another mount");
        assert_eq!(of("ext4"), Advice::Nothing);
    }

    #[test]
    fn that_late_writes_fail_is_believed_only_where_nothing_speaks_against_it() {
        use late_write::Class::{A, B, C};
        let cut =
            |class, findings| Report { late_writes: Some(class), ..sample(Scope::Cut, "nfs4", findings) };
        let fail = |results: &[Report], kind| match late_writes_of(&mount(kind, &OPTIONS), results) {
            Late::Fail(_) => true,
            Late::MayArrive(why) => {
                assert!(!why.is_empty());
                false
            }
        };
        assert!(fail(&[cut(A, vec![])], "nfs4"));
        assert!(fail(&[cut(A, vec![]), sample(Scope::OneHost, "nfs4", vec![])], "nfs4"));
        assert!(!fail(&[], "nfs4"));
        assert!(!fail(&[sample(Scope::TwoHosts, "nfs4", vec![])], "nfs4"));
        for class in [B, C] {
            assert!(!fail(&[cut(class, vec![])], "nfs4"), "{class:?}");
        }
        assert!(!fail(&[cut(A, vec![])], "ceph"), "another mount");
        assert!(!fail(&[Report { scope: Scope::OneHost, ..cut(A, vec![]) }], "nfs4"), "one mount alone");
        assert!(!fail(&[Report { sides: vec![], ..cut(A, vec![]) }], "nfs4"), "of no mount at all");
        let mut apart = cut(A, vec![]);
        apart.sides.push(sample(Scope::Cut, "ceph", vec![]).sides.remove(0));
        assert!(!fail(&[apart], "nfs4"), "the other host had it mounted otherwise");
        for finding in [Finding::doubt("x", "hm"), Finding::unfit("x", "no")] {
            assert!(!fail(&[cut(A, vec![finding.clone()])], "nfs4"));
            assert!(!fail(&[cut(A, vec![]), sample(Scope::TwoHosts, "nfs4", vec![finding])], "nfs4"));
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "x").unwrap();
        assert!(matches!(late_writes(dir.path()).unwrap(), Late::MayArrive(_)));
    }

    #[test]
    fn a_local_file_system_is_passed_over_in_silence() {
        assert_eq!(advice(&[], "ext4", &OPTIONS, FenceRead::Reopen), Advice::Nothing);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "x").unwrap();
        assert!(matches!(at_start(dir.path(), FenceRead::Reopen).unwrap(), Advice::Warn(_)));
    }
}
