//! The folder in which a check works, `.baton-check/<run>` in the shared directory, and what is left there by checks that
//! were killed.
//!
//! The lead makes it and removes it. Who it is stands in the file `lead`; a later check on the same host removes the
//! folders of leads that are certainly dead, and those of unknown ones when they are older than any check takes. The
//! file `token` proves to the lead that the second sees the same directory, and to the second that its peer may
//! write there.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{CheckError, io_error};
use crate::disk;
use crate::ha::identity::Identity;
use crate::model::name::Name;

/// Name of the folder for all checks.
pub const FOLDER: &str = ".baton-check";
/// After so long a check is over, whoever made it: longer than the waits for an operator can be made.
const OLD: Duration = Duration::from_secs(6 * 3600);
/// Time between two looks for something that another host has just written.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long removing the folder is tried. A file that is still open, here or on the other side, stays in it under another
/// name on FUSE and NFS until it is closed, which these learn of a moment later.
const REMOVED_WITHIN: Duration = Duration::from_secs(1);
/// How long a mount may take to show a folder that another host has just made.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// A folder of a check. The lead's is removed when this is dropped.
#[derive(Debug)]
pub struct Probes {
    folder: PathBuf,
    token: Uuid,
    keep: Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// The folder is removed.
    No,
    /// It is the other side's to remove.
    Yes,
}

/// The process of a lead, as it stands in its folder.
#[derive(Serialize, Deserialize)]
struct Process {
    boot: Uuid,
    pid_namespace: u64,
    time_namespace: u64,
    pid: u32,
    started: u64,
}

impl Probes {
    /// Makes the folder of a run in the shared directory `store`, and removes what others have left.
    ///
    /// # Errors
    /// Where the directory cannot be written to.
    pub fn begin(store: &Path, run: Uuid) -> Result<Self, CheckError> {
        let all = store.join(FOLDER);
        let folder = all.join(run.to_string());
        fs::create_dir_all(&folder)
            .map_err(|source| CheckError::NotWritable { path: store.to_owned(), source })?;
        let probes = Self { folder, token: Uuid::now_v7(), keep: Keep::No };
        let me = Identity::of_this_process(host_name())?;
        let lead = Process {
            boot: me.boot,
            pid_namespace: me.pid_namespace,
            time_namespace: me.time_namespace,
            pid: me.pid,
            started: me.started,
        };
        let lead =
            serde_json::to_vec(&lead).map_err(|error| io_error("write", &probes.folder)(error.into()))?;
        probes.write("lead", &lead)?;
        probes.write("token", probes.token.to_string().as_bytes())?;
        probes.remove_left(&all).map_err(io_error("clean up", &all))?;
        Ok(probes)
    }

    /// Finds the folder that the other side has made for a run.
    ///
    /// # Errors
    /// Where it is not there: the other side names another directory.
    pub fn join(store: &Path, run: Uuid) -> Result<Self, CheckError> {
        let folder = store.join(FOLDER).join(run.to_string());
        let path = folder.join("token");
        let began = Instant::now();
        loop {
            let token = disk::read(&path).map(|bytes| Uuid::try_parse_ascii(&bytes).ok());
            match token {
                Ok(Some(token)) => return Ok(Self { folder, token, keep: Keep::Yes }),
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error("read", &path)(error));
                }
                // Not there yet, or not whole yet.
                Ok(None) | Err(_) if began.elapsed() < SEEN_WITHIN => std::thread::sleep(LOOK_INTERVAL),
                Ok(None) | Err(_) => {
                    let missing = io::Error::new(
                        ErrorKind::NotFound,
                        "the other checker's folder is not here; do both name the same directory, and is it \
                         mounted on both?",
                    );
                    return Err(io_error("find", &folder)(missing));
                }
            }
        }
    }

    /// What only one who sees the folder knows.
    #[must_use]
    pub fn token(&self) -> Uuid {
        self.token
    }

    /// Where a file of the check is.
    #[must_use]
    pub fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.folder.join(name.as_ref())
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file of the check, durably.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CheckError> {
        let path = self.path(name);
        let written = fs::write(&path, bytes).and_then(|()| fs::File::open(&path)?.sync_all());
        written.map_err(io_error("write", &path))
    }

    fn remove_left(&self, all: &Path) -> io::Result<()> {
        let now = fs::metadata(&self.folder)?.modified()?;
        for entry in fs::read_dir(all)? {
            let path = entry?.path();
            if path != self.folder && is_left(&path, now) {
                // Another check may be doing the same.
                match fs::remove_dir_all(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Whether a folder is of a check that is over; `now` is by the clock of the file system.
fn is_left(path: &Path, now: SystemTime) -> bool {
    let lead =
        fs::read(path.join("lead")).ok().and_then(|bytes| serde_json::from_slice::<Process>(&bytes).ok());
    let is_dead = lead.is_some_and(|lead| {
        let process = Identity {
            node: host_name(),
            incarnation: Uuid::nil(),
            boot: lead.boot,
            pid_namespace: lead.pid_namespace,
            time_namespace: lead.time_namespace,
            pid: lead.pid,
            started: lead.started,
        };
        process.is_dead_here()
    });
    let made = fs::metadata(path).and_then(|folder| folder.modified());
    is_dead || made.is_ok_and(|made| now.duration_since(made).is_ok_and(|age| age > OLD))
}

/// The name of this host; what is no name for a node is replaced.
#[must_use]
pub fn host_name() -> Name {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Name::new(&name).unwrap_or_else(|_| Name::new("host").expect("a word of letters is a name"))
}

impl Drop for Probes {
    fn drop(&mut self) {
        if self.keep == Keep::No {
            let began = Instant::now();
            while let Err(error) = fs::remove_dir_all(&self.folder) {
                // What cannot be removed is removed by a later check.
                if error.kind() != ErrorKind::DirectoryNotEmpty || began.elapsed() > REMOVED_WITHIN {
                    break;
                }
                std::thread::sleep(LOOK_INTERVAL);
            }
            if let Some(all) = self.folder.parent() {
                let _ = fs::remove_dir(all);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_sees_what_the_lead_has_made_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let run = Uuid::now_v7();
        let lead = Probes::begin(dir.path(), run).unwrap();
        let second = Probes::join(dir.path(), run).unwrap();
        assert_eq!((lead.token(), lead.path("x")), (second.token(), second.path("x")));
        drop(second);
        assert!(lead.path("token").exists(), "it is the lead's to remove");
        drop(lead);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_dead_check_left_is_removed_and_that_of_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let living = Probes::begin(dir.path(), Uuid::now_v7()).unwrap();
        let [dead, foreign] = ["dead", "foreign"].map(|name| dir.path().join(FOLDER).join(name));
        let text = fs::read_to_string(living.path("lead")).unwrap();
        let me: Process = serde_json::from_str(&text).unwrap();
        for (path, lead) in [
            (&dead, Process { started: me.started - 1, ..serde_json::from_str(&text).unwrap() }),
            (&foreign, Process { boot: Uuid::nil(), ..me }),
        ] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("lead"), serde_json::to_vec(&lead).unwrap()).unwrap();
        }
        drop(Probes::begin(dir.path(), Uuid::now_v7()).unwrap());
        assert_eq!((dead.exists(), foreign.exists(), living.folder().exists()), (false, true, true));
        let folder = fs::File::open(&foreign).unwrap();
        folder.set_modified(SystemTime::now() - OLD - Duration::from_secs(60)).unwrap();
        drop(Probes::begin(dir.path(), Uuid::now_v7()).unwrap());
        assert!(!foreign.exists(), "older than any check takes");
    }
}
