//! Which process is it, and is it provably dead?
//!
//! A process is named by the boot of its kernel, its pid namespace, its pid and its start time, and by a random
//! incarnation made when it starts. The configured node name is for people: two nodes that were given the same name
//! are still two incarnations, and only one of them can own an epoch.
//!
//! "Dead" is said only where it is certain: the same boot, the same pid namespace (containers share a boot id but not
//! their pids), and the pid is gone, a zombie without threads, or belongs to a process with another start time.
//! Everything else is "perhaps alive", above all a process of another host.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use uuid::Uuid;

use crate::model::name::Name;

/// Why a process cannot say who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of `/proc` cannot be read.
    #[error("read {}: {source}; is /proc mounted?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of `/proc` has a form that is not known.
    #[error("{}: unexpected text {text:?}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
}

/// A process, told apart from every other one that ever ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The configured name of the node; for people, proves nothing.
    pub node: Name,
    /// Made when the process starts; no two processes share one.
    pub incarnation: Uuid,
    /// The boot of the kernel that it runs on.
    pub boot: Uuid,
    /// Inode number of its pid namespace.
    pub pid_namespace: u64,
    /// Inode number of its time namespace, in which `started` is counted; 0 where the kernel has none.
    pub time_namespace: u64,
    /// Its pid, as seen within its pid namespace.
    pub pid: u32,
    /// When it started: clock ticks since the boot.
    pub started: u64,
}

impl Identity {
    /// Who this process is, with a new incarnation.
    ///
    /// # Errors
    /// Where `/proc` is not as expected.
    pub fn of_this_process(node: Name) -> Result<Self, IdentityError> {
        let path = Path::new("/proc/self/stat");
        let text = read(path)?;
        let stat = Stat::parse(&text).ok_or_else(|| IdentityError::Parse { path: path.to_owned(), text })?;
        let Here { boot, pid_namespace, time_namespace } = Here::look()?;
        Ok(Self {
            node,
            incarnation: Uuid::now_v7(),
            boot,
            pid_namespace,
            time_namespace,
            pid: std::process::id(),
            started: stat.started,
        })
    }

    /// Whether the process is certainly dead, as seen from this process. `false` means "perhaps alive".
    #[must_use]
    pub fn is_dead_here(&self) -> bool {
        Here::look().is_ok_and(|here| here.knows_dead(self))
    }
}

/// The place that this process looks from: it can judge processes of the same place only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Here {
    boot: Uuid,
    pid_namespace: u64,
    time_namespace: u64,
}

impl Here {
    /// Looks where this process is.
    ///
    /// # Errors
    /// Where `/proc` is not as expected.
    pub fn look() -> Result<Self, IdentityError> {
        Ok(Self {
            boot: boot_id()?,
            pid_namespace: namespace("/proc/self/ns/pid")?,
            time_namespace: time_namespace()?,
        })
    }

    /// The boot of the kernel.
    #[must_use]
    pub fn boot(&self) -> Uuid {
        self.boot
    }

    /// Whether `process` is certainly dead. `false` means "perhaps alive".
    #[must_use]
    pub fn knows_dead(&self, process: &Identity) -> bool {
        if self.boot != process.boot || self.pid_namespace != process.pid_namespace {
            return false;
        }
        let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
            return false;
        };
        // Not by looking into /proc: mounted with `hidepid` it hides living processes of other users.
        if test_kill_process(pid) == Err(Errno::SRCH) {
            return true;
        }
        let path = format!("/proc/{}/stat", process.pid);
        let Some(stat) = fs::read_to_string(path).ok().and_then(|text| Stat::parse(&text)) else {
            return false;
        };
        let same_clock = self.time_namespace == process.time_namespace;
        stat.is_over || (same_clock && stat.started != process.started)
    }
}

/// What is needed of `/proc/<pid>/stat`.
struct Stat {
    /// All threads are gone; only the entry in the process table is left for the parent to fetch.
    is_over: bool,
    started: u64,
}

impl Stat {
    /// Fields are counted from the last `)`: the second field is the command's name in parentheses, and the name may
    /// hold spaces and parentheses of its own.
    fn parse(text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        // Field numbers of proc(5) are 1-based and the first one after the name is 3, the state.
        let field = |number: usize| fields.get(number - 3).copied();
        let threads: u64 = field(20)?.parse().ok()?;
        Some(Self {
            is_over: matches!(field(3)?, "Z" | "X") && threads <= 1,
            started: field(22)?.parse().ok()?,
        })
    }
}

fn boot_id() -> Result<Uuid, IdentityError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = read(path)?;
    Uuid::try_parse(text.trim()).map_err(|_| IdentityError::Parse { path: path.to_owned(), text })
}

fn time_namespace() -> Result<u64, IdentityError> {
    match namespace("/proc/self/ns/time") {
        Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(0),
        found => found,
    }
}

/// The inode number of a namespace, as in `pid:[4026531836]`.
fn namespace(path: &str) -> Result<u64, IdentityError> {
    fs::metadata(path)
        .map(|found| found.ino())
        .map_err(|source| IdentityError::Read { path: PathBuf::from(path), source })
}

fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(|source| IdentityError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn me() -> Identity {
        Identity::of_this_process(Name::new("a").unwrap()).unwrap()
    }

    /// The identity of a process of the same boot and namespaces.
    fn of(pid: u32) -> Identity {
        let started = Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap()).unwrap().started;
        Identity { pid, started, ..me() }
    }

    #[test]
    fn this_process_is_alive_and_two_looks_agree_but_for_the_incarnation() {
        let (one, two) = (me(), me());
        assert!(!one.is_dead_here());
        assert_ne!(one.incarnation, two.incarnation);
        assert_eq!(one, Identity { incarnation: one.incarnation, ..two });
    }

    #[test]
    fn the_namespace_is_the_number_that_the_link_shows() {
        let shown = fs::read_link("/proc/self/ns/pid").unwrap();
        assert_eq!(shown.to_str().unwrap(), format!("pid:[{}]", me().pid_namespace));
    }

    #[test]
    fn a_killed_process_is_dead_before_and_after_its_parent_fetched_it() {
        let mut child = Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap();
        let identity = of(child.id());
        assert!(!identity.is_dead_here());
        child.kill().unwrap();
        // A zombie without threads: it has closed its files, but its pid is not free yet.
        let id = rustix::process::WaitId::Pid(Pid::from_raw(child.id().try_into().unwrap()).unwrap());
        let keep = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(id, keep).unwrap();
        assert!(identity.is_dead_here());
        child.wait().unwrap();
        assert!(identity.is_dead_here());
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mine = me();
        assert!(Identity { started: mine.started - 1, ..mine.clone() }.is_dead_here());
        let other_clock = mine.time_namespace + 1;
        assert!(
            !Identity { started: mine.started - 1, time_namespace: other_clock, ..mine }.is_dead_here(),
            "start times of two clocks say nothing"
        );
    }

    #[test]
    fn a_process_of_another_boot_or_container_is_never_called_dead() {
        let mut child = Command::new("true").spawn().unwrap();
        let gone = of(child.id());
        child.wait().unwrap();
        assert!(gone.is_dead_here());
        assert!(!Identity { boot: Uuid::nil(), ..gone.clone() }.is_dead_here());
        assert!(!Identity { pid_namespace: gone.pid_namespace + 1, ..gone.clone() }.is_dead_here());
        assert!(!Identity { pid: 0, ..gone.clone() }.is_dead_here());
        assert!(!Identity { pid: u32::MAX, ..gone }.is_dead_here());
    }

    #[test]
    fn a_command_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 1 18 777 20 21";
        for name in ["baton", "a b", "a) S 1 (b", ")", "", ") Z 9 9 9 (("] {
            let stat = Stat::parse(&format!("42 ({name}) {tail}")).unwrap();
            assert_eq!((stat.is_over, stat.started), (false, 777), "{name:?}");
        }
        assert!(Stat::parse(&format!("42 (a) {}", tail.replace('S', "Z"))).unwrap().is_over);
        let with_threads = tail.replace('S', "Z").replace("16 1 18", "16 3 18");
        assert!(!Stat::parse(&format!("42 (a) {with_threads}")).unwrap().is_over, "a thread still runs");
        assert!(Stat::parse("42 (a) S 1 2").is_none());
        assert!(Stat::parse("").is_none());
    }
}
