//! Views of one folder through mounts of their own, as two hosts have them of a shared disk; and a disk that is small.
//!
//! Through `bindfs`, locks do not exclude across two mounts, each mount keeps attributes and names for a while, and a
//! descriptor held open reads old pages. An exclusive creation excludes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::pair::PATIENCE;

/// What a mount keeps, as options of `bindfs`. Its defaults: attributes and names that are there for a second.
pub const DEFAULT: &str = "";
/// The same said aloud, and for a second also that a name is not there.
pub const FORGETFUL: &str = "attr_timeout=1,entry_timeout=1,negative_timeout=1";

/// A mount that lasts as long as this.
pub struct Mount {
    pub path: PathBuf,
    process: Child,
}

/// Bytes a second that can be read, as an option of `bindfs`: what is much to read takes long.
pub const SLOW: &str = "--read-rate=2M";

impl Mount {
    /// Mounts the folder `real` at `path`, which is made.
    pub fn new(real: &Path, path: &Path, options: &str) -> Self {
        let missing = |what: &str| -> ! {
            panic!(
                "{what}: this test needs root, /dev/fuse and bindfs; \
                 as root: apt-get install -y --no-install-recommends bindfs fuse3"
            )
        };
        if !rustix::process::geteuid().is_root() {
            missing("not root");
        }
        if !Path::new("/dev/fuse").exists() {
            missing("no /dev/fuse");
        }
        fs::create_dir(path).unwrap();
        let device = fs::metadata(path).unwrap().dev();
        let mut command = Command::new("bindfs");
        command.arg("-f");
        match options {
            "" => {}
            flag if flag.starts_with("--") => drop(command.arg(flag)),
            options => drop(command.args(["-o", options])),
        }
        command.args([real, path]).stdin(Stdio::null());
        let process = command.spawn().unwrap_or_else(|error| missing(&format!("bindfs: {error}")));
        let mut mount = Self { path: path.to_owned(), process };
        let deadline = Instant::now() + PATIENCE;
        while fs::metadata(path).unwrap().dev() == device {
            let ended = mount.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "bindfs does not mount: {ended:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        mount
    }

    /// Lets everything wait that is asked of the mount, until what this answers is dropped.
    pub fn hang(&self) -> Hang {
        let process = Pid::from_child(&self.process);
        kill_process(process, Signal::STOP).unwrap();
        Hang(process)
    }
}

/// A mount that does not answer. Not even a process that is killed ends while it waits for it.
pub struct Hang(Pid);

impl Drop for Hang {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// A small file system in memory that lasts as long as this.
pub struct SmallDisk {
    pub path: PathBuf,
}

impl SmallDisk {
    /// One of `mebibytes` at `path`, which is made.
    pub fn new(path: &Path, mebibytes: u32) -> Self {
        fs::create_dir(path).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]).arg(path);
        assert!(
            command.status().unwrap().success(),
            "a small file system cannot be mounted: this test needs root"
        );
        Self { path: path.to_owned() }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, so that it also goes where a process still has something open in it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, so that it also goes where a process still has something open in it.
        let unmounted = Command::new("fusermount3").args(["-u", "-z"]).arg(&self.path).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while unmounted.is_ok() && Instant::now() < deadline {
            if matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Without its process, the mount is gone as well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
