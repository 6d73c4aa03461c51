//! The results that stay in the shared directory, for the nodes that start on it.
//!
//! `.baton-check.json` is one JSON object of at most [`BYTES_MAX`] bytes: `{"format":1,"results":[..]}`, each result a
//! [`Report`] as `baton store check --json` writes it. A result replaces those that checked no more than it did, and
//! those of other mounts; so a check on one host does not take away what was found out on two. The file is replaced as
//! a whole, under a name of its own; whoever reads it sees the old or the new one.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::probes::Probes;
use super::report::Report;
use super::{CheckError, io_error};
use crate::disk;

/// Name of the file, in the shared directory.
pub const FILE: &str = ".baton-check.json";
/// The format that is written.
const FORMAT: u32 = 1;
/// A file that is longer is not of a check: three results have about a tenth of that.
pub const BYTES_MAX: u64 = 1 << 20;
/// Name under which it is written, in the folder of the check.
const NEW: &str = "results";
/// Its mode: there is nothing in it that anybody may not know.
const READABLE: u32 = 0o644;

/// Why nothing is known about a directory that has such a file.
#[derive(Debug, thiserror::Error)]
pub enum RememberedError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is too long.
    #[error("has more than {BYTES_MAX} bytes")]
    TooLong,
    /// It is not what a check writes.
    #[error("is not what a check writes: {0}")]
    Damaged(#[from] serde_json::Error),
    /// It was written by a newer version.
    #[error("has format {0}, and this version knows up to {FORMAT}")]
    Newer(u32),
}

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    results: Vec<&'a Report>,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Deserialize)]
struct Results {
    results: Vec<Report>,
}

/// The results in the shared directory `store`; none where there is no file.
///
/// # Errors
/// Where there is a file that says nothing.
pub fn read(store: &Path) -> Result<Vec<Report>, RememberedError> {
    let path = store.join(FILE);
    let length = match disk::length_at(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        length => length?,
    };
    if length > BYTES_MAX {
        return Err(RememberedError::TooLong);
    }
    let bytes = disk::read(&path)?;
    let Format { format } = serde_json::from_slice(&bytes)?;
    if format > FORMAT {
        return Err(RememberedError::Newer(format));
    }
    let Results { results } = serde_json::from_slice(&bytes)?;
    Ok(results)
}

/// Adds a result.
///
/// # Errors
/// Where it cannot be written.
pub fn add(store: &Path, probes: &Probes, report: &Report) -> Result<(), CheckError> {
    // What says nothing is replaced.
    let before = read(store).unwrap_or_default();
    let kept = before
        .iter()
        .filter(|old| old.scope > report.scope && report.sides.iter().any(|side| old.is_of(&side.mount)));
    let written = Written { format: FORMAT, results: kept.chain([report]).collect() };
    let path = store.join(FILE);
    let bytes = serde_json::to_vec(&written).map_err(|error| io_error("write", &path)(error.into()))?;
    probes.write(NEW, &bytes)?;
    // Whoever checks, root with a mask of its own too: a node that cannot read the result starts with a warning, where it
    // may be one that keeps it from starting. Some file systems have no modes.
    let _ = fs::set_permissions(probes.path(NEW), fs::Permissions::from_mode(READABLE));
    fs::rename(probes.path(NEW), &path)
        .and_then(|()| fs::File::open(store)?.sync_all())
        .map_err(io_error("write", &path))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::finding::Finding;
    use super::super::report::Scope;
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn a_result_replaces_those_that_checked_no_more_and_those_of_other_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let add = |scope, kind: &str| {
            let probes = Probes::begin(dir.path(), Uuid::now_v7()).unwrap();
            super::add(dir.path(), &probes, &sample(scope, kind, vec![])).unwrap();
            drop(probes);
            read(dir.path()).unwrap().iter().map(|report| report.scope).collect::<Vec<_>>()
        };
        assert_eq!(read(dir.path()).unwrap(), []);
        assert_eq!(add(Scope::OneHost, "nfs4"), [Scope::OneHost]);
        assert_eq!(add(Scope::Cut, "nfs4"), [Scope::Cut]);
        assert_eq!(add(Scope::TwoHosts, "nfs4"), [Scope::Cut, Scope::TwoHosts]);
        assert_eq!(add(Scope::OneHost, "nfs4"), [Scope::Cut, Scope::TwoHosts, Scope::OneHost]);
        assert_eq!(add(Scope::TwoHosts, "nfs4"), [Scope::Cut, Scope::TwoHosts]);
        assert_eq!(add(Scope::OneHost, "ceph"), [Scope::OneHost]);
        let names = disk::names(dir.path()).unwrap();
        assert_eq!(names, [FILE], "nothing else is left");
    }

    #[test]
    fn the_form_is_the_same_in_each_version() {
        let mut report = sample(Scope::TwoHosts, "nfs4", vec![Finding::doubt("soft-mount", "a: soft")]);
        report.measured.lock_release_us = Some(1_500);
        report.late_writes = Some(super::super::late_write::Class::B);
        let text = serde_json::to_string(&Written { format: FORMAT, results: vec![&report] }).unwrap();
        let golden = concat!(
            r#"{"format":1,"results":[{"verdict":"doubtful","scope":"two-hosts","checked_at":1795651200000,"#,
            r#""run":"00000000-0000-0000-0000-000000000000","fence_read":"reopen","sides":[{"host":"a","#,
            r#""boot":"00000000-0000-0000-0000-000000000000","device":7,"mount":{"kind":"nfs4","#,
            r#""source":"server:/export","id":0,"point":"/srv","options":["hard","rw"]},"#,
            r#""space":{"bytes":100,"free_bytes":50,"free_files":null},"lost_locks":"fail"}],"#,
            r#""measured":{"syncs":[],"lock_release_us":1500},"late_writes":"b","#,
            r#""findings":[{"code":"soft-mount","level":"doubt","text":"a: soft"}]}]}"#,
        );
        assert_eq!(text, golden);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), golden).unwrap();
        assert_eq!(read(dir.path()).unwrap(), [report]);
    }

    #[test]
    fn a_file_that_says_nothing_is_told_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        for (text, expected) in [
            ("{\"format\":2,\"results\":7}", "has format 2"),
            ("{\"format\":1}", "is not what a check writes"),
            ("", "is not what a check writes"),
            (" ".repeat(BYTES_MAX as usize + 1).as_str(), "has more than"),
        ] {
            fs::write(&path, text).unwrap();
            let error = read(dir.path()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let probes = Probes::begin(dir.path(), Uuid::now_v7()).unwrap();
        add(dir.path(), &probes, &sample(Scope::OneHost, "nfs4", vec![])).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 1);
    }
}
