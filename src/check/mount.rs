//! How a directory is mounted: the type of its file system, where it comes from, with which options.
//!
//! Reads `/proc/self/mountinfo`, by the number of the mount that the kernel gives for the directory: a path would lie
//! where mounts lie over each other. Judges nothing; that is [`options`](super::options).

use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags};
use serde::{Deserialize, Serialize};

use super::{CheckError, io_error};

/// What kind of file system a type is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// On a disk of one host. Mounted by two at once it is destroyed.
    Local,
    /// In the memory of one host.
    Memory,
    /// Made to be used by several hosts at once.
    Shared,
    /// Nothing is known of it: FUSE, and whatever else is not listed here.
    Unknown,
}

const LOCAL: [&str; 13] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "jfs", "reiserfs", "overlay", "vfat",
    "exfat",
];
const MEMORY: [&str; 3] = ["tmpfs", "ramfs", "devtmpfs"];
const SHARED: [&str; 15] = [
    "nfs",
    "nfs4",
    "ceph",
    "fuse.ceph",
    "fuse.ceph-fuse",
    "fuse.glusterfs",
    "gfs2",
    "ocfs2",
    "cifs",
    "smb3",
    "lustre",
    "gpfs",
    "beegfs",
    "9p",
    "virtiofs",
];

/// How a directory is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Type of the file system, as in `nfs4`.
    pub kind: String,
    /// Where it comes from: a device, or `server:/path`.
    pub source: String,
    /// Identity of the file system where the kernel knows one, or 0.
    pub id: u64,
    /// Where it is mounted.
    pub point: String,
    /// Options of the mount and of the file system, each once, in order.
    pub options: Vec<String>,
}

impl Mount {
    /// How the directory `dir` is mounted.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn of(dir: &Path) -> Result<Self, CheckError> {
        let flags = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(CWD, dir, AtFlags::empty(), flags)
            .map_err(|errno| io_error("look at", dir)(errno.into()))?;
        let path = Path::new("/proc/self/mountinfo");
        let table = fs::read_to_string(path).map_err(io_error("read", path))?;
        let found = table.lines().find_map(|line| Self::parse(line, stat.stx_mnt_id));
        let mount = found.ok_or_else(|| CheckError::NoMount(dir.to_owned()))?;
        let id = rustix::fs::statvfs(dir).map_err(|errno| io_error("look at", dir)(errno.into()))?.f_fsid;
        Ok(Self { id, ..mount })
    }

    /// A line of the table, where it is of the mount with this number.
    fn parse(line: &str, number: u64) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        if mount.next()?.parse() != Ok(number) {
            return None;
        }
        // Behind its parent, its device and its root.
        let (point, of_mount) = (mount.nth(3)?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let (kind, source) = (file_system.next()?, file_system.next()?);
        let mut options: Vec<String> =
            of_mount.split(',').chain(file_system.next()?.split(',')).map(unescaped).collect();
        options.sort();
        options.dedup();
        Some(Self {
            kind: kind.to_owned(),
            source: unescaped(source),
            id: 0,
            point: unescaped(point),
            options,
        })
    }

    /// What kind of file system it is.
    #[must_use]
    pub fn class(&self) -> Class {
        let kind = self.kind.as_str();
        if LOCAL.contains(&kind) {
            Class::Local
        } else if MEMORY.contains(&kind) {
            Class::Memory
        } else if SHARED.contains(&kind) {
            Class::Shared
        } else {
            Class::Unknown
        }
    }

    /// Whether it has an option, as in `nolock`.
    #[must_use]
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|have| have == option)
    }

    /// The value of an option, as in `local_lock=none`.
    #[must_use]
    pub fn value(&self, option: &str) -> Option<&str> {
        self.options.iter().find_map(|have| have.strip_prefix(option)?.strip_prefix('='))
    }

    /// Whether what was found out about `self` holds for `other`: the same file system, and mounted in the same way
    /// as far as locks, caches and errors go.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let identity = |mount: &Self| (mount.kind.clone(), mount.source.clone(), mount.id);
        identity(self) == identity(other) && self.decisive().eq(other.decisive())
    }

    /// The options that the results of a check depend on.
    fn decisive(&self) -> impl Iterator<Item = &String> {
        self.options.iter().filter(|option| {
            let name = option.split('=').next().unwrap_or_default();
            DECISIVE.contains(&name)
        })
    }
}

/// Names of the options that the results of a check depend on.
const DECISIVE: [&str; 23] = [
    "vers",
    "nolock",
    "lock",
    "local_lock",
    "soft",
    "softerr",
    "hard",
    "nocto",
    "noac",
    "lookupcache",
    "sync",
    "recover_session",
    "localflocks",
    "lockproto",
    "nobrl",
    "cache",
    "nobarrier",
    "barrier",
    "data",
    "writeback",
    "dax",
    "ro",
    "rw",
];

/// The table writes spaces, tabs, line ends and backslashes as three octal digits behind a backslash.
fn unescaped(text: &str) -> String {
    let mut pieces = text.split('\\');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(&piece[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(piece);
            }
        }
    }
    plain
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A mount of this type with these options.
    pub fn sample(kind: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: "server:/export".to_owned(),
            id: 0,
            point: "/srv".to_owned(),
            options: options.iter().map(ToString::to_string).collect(),
        }
    }

    const NFS: &str = "36 35 0:52 / /srv/my\\040disk rw,noatime shared:1 - nfs4 server:/a\\040b \
                       rw,vers=4.2,hard,local_lock=none,clientaddr=10.0.0.1,addr=10.0.0.2";

    #[test]
    fn a_line_of_the_table_is_read_with_its_spaces() {
        assert_eq!(Mount::parse(NFS, 35), None, "of another mount");
        let mount = Mount::parse(NFS, 36).unwrap();
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("nfs4", "server:/a b"));
        assert_eq!((mount.point.as_str(), mount.class()), ("/srv/my disk", Class::Shared));
        assert!(mount.has("hard") && mount.has("noatime") && !mount.has("soft"));
        assert_eq!((mount.value("local_lock"), mount.value("local")), (Some("none"), None));
        let plain = "22 27 0:21 / / rw - ext4 /dev/vda rw";
        assert_eq!(Mount::parse(plain, 22).unwrap().class(), Class::Local);
        assert_eq!(Mount::parse("22 27 0:21 /", 22), None);
    }

    #[test]
    fn the_directory_of_a_test_is_mounted_somewhere() {
        let dir = tempfile::tempdir().unwrap();
        let mount = Mount::of(dir.path()).unwrap();
        assert!(dir.path().starts_with(&mount.point), "{mount:?}");
        assert!(mount.is_like(&Mount::of(dir.path()).unwrap()));
        assert!(Mount::of(&dir.path().join("x")).is_err());
    }

    #[test]
    fn what_was_found_out_holds_as_long_as_locks_and_caches_are_as_they_were() {
        let mount = sample("nfs4", &["rw", "hard", "addr=10.0.0.2"]);
        assert!(mount.is_like(&sample("nfs4", &["rw", "hard", "addr=10.0.0.3", "rsize=1024"])));
        assert!(!mount.is_like(&sample("nfs4", &["rw", "soft", "addr=10.0.0.2"])));
        assert!(!mount.is_like(&sample("nfs", &["rw", "hard"])));
        assert!(!mount.is_like(&Mount { source: "other:/export".to_owned(), ..mount.clone() }));
        assert!(!mount.is_like(&Mount { id: 7, ..mount.clone() }));
    }
}
