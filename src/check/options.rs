//! Judges the type of a file system and the options of its mount, for what Baton needs. What can be tried out is
//! tried out elsewhere; here is what does not show in a test of two seconds.

use std::fs;

use serde::{Deserialize, Serialize};

use super::finding::{Finding, Level};
use super::mount::{Class, Mount};

/// Whether the NFS client of this host goes on with files whose lock it has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LostLocks {
    /// Reads and writes of such a file fail.
    Fail,
    /// The lock is taken anew, and writes go on as if nothing had been.
    Recovered,
}

impl LostLocks {
    /// How the module for NFS is set; as it is by default where that cannot be found out.
    #[must_use]
    pub fn of_this_host() -> Self {
        match fs::read_to_string("/sys/module/nfs/parameters/recover_lost_locks") {
            Ok(text) if matches!(text.trim(), "Y" | "1") => Self::Recovered,
            _ => Self::Fail,
        }
    }
}

/// What there is to say about a mount of `host`.
#[must_use]
pub fn judge(mount: &Mount, host: &str, lost_locks: LostLocks) -> Vec<Finding> {
    let Mount { kind, source, point, .. } = mount;
    let text = format!("{host} has {source} as {kind} at {point}");
    let mut findings = vec![match mount.class() {
        Class::Shared => Finding::good("file-system", text),
        Class::Local => Finding::note(
            "local-file-system",
            format!(
                "{text}: that is for one host at a time; two nodes on this host can share it, two hosts cannot"
            ),
        ),
        Class::Memory => Finding::unfit(
            "memory-file-system",
            format!("{text}: what is in memory is gone when the host is; use a disk"),
        ),
        Class::Unknown => Finding::note(
            "unknown-file-system",
            format!("{text}: nothing is known of this type; only what was tried out counts"),
        ),
    }];
    let mut say =
        |level, code, said: String| findings.push(Finding::new(level, code, format!("{host}: {said}")));
    if mount.has("ro") {
        say(Level::Unfit, "read-only", "mounted read-only: remount it with rw".to_owned());
    }
    match kind.as_str() {
        "nfs" | "nfs4" => {
            nfs(mount, &mut say);
            if lost_locks == LostLocks::Recovered {
                say(
                    Level::Doubt,
                    "recover-lost-locks",
                    "the module nfs is set to recover_lost_locks=1: after a pause writes go on through a lock that \
                     another host has had; set it to 0"
                        .to_owned(),
                );
            }
        }
        "ceph" if mount.value("recover_session") == Some("clean") => say(
            Level::Doubt,
            "recover-session",
            "mounted with recover_session=clean: a client that was evicted goes on without its locks; mount with \
             recover_session=no"
                .to_owned(),
        ),
        "gfs2" | "ocfs2" if mount.has("localflocks") => say(
            Level::Unfit,
            "local-locks",
            "mounted with localflocks: locks hold on this host alone; mount without it".to_owned(),
        ),
        "gfs2" if mount.value("lockproto") == Some("lock_nolock") => say(
            Level::Unfit,
            "local-locks",
            "mounted with lockproto=lock_nolock: for one host alone; mount with lock_dlm".to_owned(),
        ),
        "cifs" | "smb3" if mount.has("nobrl") => say(
            Level::Unfit,
            "local-locks",
            "mounted with nobrl: locks hold on this host alone; mount without it".to_owned(),
        ),
        "9p" if matches!(mount.value("cache"), Some("loose" | "fscache" | "mmap")) => say(
            Level::Doubt,
            "loose-cache",
            "mounted with a cache that nobody invalidates; mount with cache=none".to_owned(),
        ),
        _ => {}
    }
    if mount.has("nobarrier") || mount.value("barrier") == Some("0") {
        say(
            Level::Doubt,
            "no-barriers",
            "mounted without barriers: what was synced may be lost when the power fails; mount without nobarrier"
                .to_owned(),
        );
    }
    findings
}

fn nfs(mount: &Mount, say: &mut impl FnMut(Level, &'static str, String)) {
    if mount.value("vers").is_some_and(|version| version.starts_with(['2', '3'])) {
        say(
            Level::Unfit,
            "nfs-version",
            "mounted as NFS 3: the lock of a host that is lost stays until that host is back; mount with vers=4.1 or \
             later"
                .to_owned(),
        );
    }
    if mount.has("nolock") {
        say(
            Level::Unfit,
            "local-locks",
            "mounted with nolock: locks hold on this host alone; mount without it".to_owned(),
        );
    }
    if let Some(kept @ ("all" | "flock")) = mount.value("local_lock") {
        say(
            Level::Unfit,
            "local-locks",
            format!(
                "mounted with local_lock={kept}: locks hold on this host alone; mount with local_lock=none"
            ),
        );
    }
    if let Some(soft) = ["soft", "softerr"].into_iter().find(|soft| mount.has(soft)) {
        say(
            Level::Doubt,
            "soft-mount",
            format!(
                "mounted with {soft}: a server that is slow for a while becomes a write that has failed, and ends the \
                 master; mount with hard"
            ),
        );
    }
    if mount.has("nocto") {
        say(
            Level::Doubt,
            "no-close-to-open",
            "mounted with nocto: opening a file does not fetch what another host has written; mount without it"
                .to_owned(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::mount::tests::sample;
    use super::*;

    #[test]
    fn each_option_that_breaks_something_is_named_with_what_to_do() {
        use Level::{Doubt, Good, Note, Unfit};
        for (kind, options, expected) in [
            ("nfs4", &["vers=4.2", "hard", "local_lock=none"][..], &[("file-system", Good)][..]),
            ("nfs4", &["vers=4.2", "local_lock=posix"], &[("file-system", Good)]),
            ("nfs", &["vers=3", "nolock"], &[("nfs-version", Unfit), ("local-locks", Unfit)]),
            (
                "nfs4",
                &["vers=4.1", "local_lock=flock", "soft"],
                &[("local-locks", Unfit), ("soft-mount", Doubt)],
            ),
            (
                "nfs4",
                &["vers=4.1", "softerr", "nocto"],
                &[("soft-mount", Doubt), ("no-close-to-open", Doubt)],
            ),
            ("ceph", &["recover_session=clean"], &[("recover-session", Doubt)]),
            ("ceph", &["recover_session=no"], &[("file-system", Good)]),
            ("gfs2", &["localflocks"], &[("local-locks", Unfit)]),
            ("gfs2", &["lockproto=lock_nolock"], &[("local-locks", Unfit)]),
            ("ocfs2", &["localflocks"], &[("local-locks", Unfit)]),
            ("cifs", &["nobrl"], &[("local-locks", Unfit)]),
            ("9p", &["cache=loose"], &[("loose-cache", Doubt)]),
            ("ext4", &["nobarrier"], &[("local-file-system", Note), ("no-barriers", Doubt)]),
            ("xfs", &["ro"], &[("local-file-system", Note), ("read-only", Unfit)]),
            ("tmpfs", &[], &[("memory-file-system", Unfit)]),
            ("fuse.sshfs", &[], &[("unknown-file-system", Note)]),
        ] {
            let findings = judge(&sample(kind, options), "a", LostLocks::Fail);
            let found: Vec<_> = findings.iter().map(|found| (found.code.as_ref(), found.level)).collect();
            assert!(found.ends_with(expected), "{kind} {options:?}: {found:?}");
            assert_eq!(found.len(), expected.len() + usize::from(found[0] != expected[0]), "{found:?}");
            let bad =
                findings.iter().filter(|found| found.level >= Doubt && found.code != "memory-file-system");
            assert!(
                bad.into_iter()
                    .all(|found| found.text.contains("mount with") || found.text.contains("remount")),
                "{findings:?}"
            );
        }
    }

    #[test]
    fn a_client_that_goes_on_without_its_lock_is_a_reason_for_doubt_with_nfs_alone() {
        let of = |kind| judge(&sample(kind, &[]), "a", LostLocks::Recovered).len();
        assert_eq!((of("nfs4"), of("ext4")), (2, 1));
    }
}
