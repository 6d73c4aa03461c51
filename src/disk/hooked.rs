//! A mount for tests: the folder of the system that it leads to, with a word of the test before each file is opened.

use std::ffi::OsString;
use std::fmt::{self, Debug, Formatter};
use std::fs;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::file::{Attributes, File, LockKind, Opening};
use super::mount::{Installed, Mount, MountedFile, install};

/// What the test does before a file of the folder is opened; an error is what the opening comes to.
type Hook = Box<dyn FnMut(&Hooked, &Path) -> io::Result<()> + Send>;

pub(crate) struct Hooked {
    folder: PathBuf,
    path: PathBuf,
    hook: Mutex<Hook>,
    now: Mutex<Instant>,
}

impl Hooked {
    /// Mounts a folder beside itself, under the name that it has with `.mounted` behind it. Answers that path, which
    /// leads there as long as the other value lives.
    pub fn mount(folder: &Path, hook: Hook) -> (PathBuf, Installed) {
        let path = folder.with_extension("mounted");
        let (hook, now) = (Mutex::new(hook), Mutex::new(Instant::now()));
        let mount = Self { folder: folder.to_owned(), path: path.clone(), hook, now };
        let installed = install(&path, Arc::new(mount));
        (path, installed)
    }

    /// Lets the host stand still for so long.
    pub fn stand_still(&self, time: Duration) {
        *self.now.lock().unwrap() += time;
    }

    fn behind(&self, path: &Path) -> PathBuf {
        self.folder.join(path.strip_prefix(&self.path).unwrap())
    }
}

impl Debug for Hooked {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl Mount for Hooked {
    fn open(&self, path: &Path, opening: Opening) -> io::Result<Box<dyn MountedFile>> {
        let path = self.behind(path);
        (self.hook.lock().unwrap())(self, &path)?;
        Ok(Box::new(Behind(File::open(&path, opening)?)))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        super::names(&self.behind(folder))
    }

    fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        Ok(Attributes::of(&fs::symlink_metadata(self.behind(path))?))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(self.behind(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.behind(from), self.behind(to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(self.behind(path))
    }

    fn free_and_size(&self) -> io::Result<(u64, u64)> {
        super::free_and_size(&self.folder)
    }

    fn now(&self) -> Instant {
        *self.now.lock().unwrap()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn pause(&self, time: Duration) {
        self.stand_still(time);
    }

    fn chance(&self) -> u64 {
        4
    }

    fn start(&self, _: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        std::thread::spawn(work);
        Ok(())
    }

    fn wait(&self, is_so: Arc<dyn Fn() -> bool + Send + Sync>) {
        while !is_so() {
            std::thread::yield_now();
        }
    }
}

/// A file of the folder.
#[derive(Debug)]
struct Behind(File);

impl MountedFile for Behind {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(buffer, at)
    }

    fn write_at(&self, pieces: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        self.0.write_pieces_at(pieces, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn attributes_afresh(&self) -> io::Result<Attributes> {
        self.0.attributes()
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        self.0.try_lock(kind)
    }

    fn forget_kept(&self, from: u64) -> io::Result<()> {
        self.0.forget_kept(from)
    }
}
