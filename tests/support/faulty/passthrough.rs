//! The file system: everything is done to the files behind it, after the faults were asked.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::faults::{Effect, Faults, Operation};

/// Kinds of locks, as the kernel numbers them.
mod kind_of_lock {
    pub const SHARED: i32 = 0;
    pub const NONE: i32 = 2;
}

/// Nothing that was said is kept by the kernel.
const NOT_KEPT: Duration = Duration::ZERO;

/// Who keeps the locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locks {
    /// The kernel, for each mount.
    OfTheMount,
    /// Whoever keeps those of the files behind it.
    OfTheFiles,
}

pub struct Passthrough {
    faults: Arc<Faults>,
    locks: Locks,
    files: Mutex<Files>,
}

/// The files that the kernel knows.
struct Files {
    /// Where each of them is; a removed one is nowhere.
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    open: HashMap<u64, Open>,
    /// What would be undone where a sync fails, for each file, latest last.
    unsynced: HashMap<u64, Vec<Undo>>,
    /// What stale reads go on reading, by file and place.
    stale: HashMap<(u64, u64), Vec<u8>>,
    /// The last number that was given to a file or an open one.
    last: u64,
}

#[derive(Clone)]
struct Open {
    number: u64,
    file: Arc<File>,
}

/// How a file was before a change.
struct Undo {
    length: u64,
    at: u64,
    bytes: Vec<u8>,
}

impl Passthrough {
    pub fn new(real: &Path, faults: Arc<Faults>, locks: Locks) -> Self {
        let files = Files {
            paths: HashMap::from([(INodeNo::ROOT.0, real.to_owned())]),
            numbers: HashMap::from([(real.to_owned(), INodeNo::ROOT.0)]),
            open: HashMap::new(),
            unsynced: HashMap::new(),
            stale: HashMap::new(),
            last: INodeNo::ROOT.0,
        };
        Self { faults, locks, files: Mutex::new(files) }
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap()
    }

    /// The files, where a fault does not say otherwise.
    fn unless_struck(&self, operation: Operation, path: &Path) -> io::Result<MutexGuard<'_, Files>> {
        match self.faults.strike(operation, path) {
            Some(Effect::Fails(number)) => Err(error(number)),
            Some(Effect::IsShort | Effect::IsStale | Effect::Stalls) | None => Ok(self.files()),
        }
    }

    fn write_to(&self, handle: FileHandle, at: u64, data: &[u8]) -> io::Result<usize> {
        let (open, path) = self.files().opened(handle)?;
        let count = match self.faults.strike(Operation::Write, &path) {
            Some(Effect::Fails(number)) => return Err(error(number)),
            Some(Effect::IsShort) => data.len().div_ceil(2),
            Some(Effect::IsStale | Effect::Stalls) | None => data.len(),
        };
        let mut files = self.files();
        files.remember(&open, at, count as u64)?;
        open.file.write_all_at(&data[..count], at)?;
        Ok(count)
    }

    fn read_from(&self, handle: FileHandle, at: u64, size: u32) -> io::Result<Vec<u8>> {
        let (open, path) = self.files().opened(handle)?;
        let struck = self.faults.strike(Operation::Read, &path);
        let mut bytes = vec![0; size as usize];
        let mut count = 0;
        while count < bytes.len() {
            match open.file.read_at(&mut bytes[count..], at + count as u64)? {
                0 => break,
                more => count += more,
            }
        }
        bytes.truncate(count);
        match struck {
            Some(Effect::Fails(number)) => Err(error(number)),
            Some(Effect::IsStale) => Ok(self.files().stale.entry((open.number, at)).or_insert(bytes).clone()),
            Some(Effect::IsShort | Effect::Stalls) | None => Ok(bytes),
        }
    }

    fn sync(&self, handle: FileHandle) -> io::Result<()> {
        let (open, path) = self.files().opened(handle)?;
        let synced = self.unless_struck(Operation::Sync, &path).map(drop);
        let unsynced = self.files().unsynced.remove(&open.number).unwrap_or_default();
        if synced.is_err() {
            for undo in unsynced.iter().rev() {
                open.file.write_all_at(&undo.bytes, undo.at)?;
                open.file.set_len(undo.length)?;
            }
        }
        synced
    }

    /// Only for locks that do not wait.
    fn lock(&self, handle: FileHandle, kind: i32) -> io::Result<()> {
        let (open, path) = self.files().opened(handle)?;
        let operation = match kind {
            kind_of_lock::NONE => FlockOperation::Unlock,
            kind_of_lock::SHARED => FlockOperation::NonBlockingLockShared,
            _ => FlockOperation::NonBlockingLockExclusive,
        };
        if operation != FlockOperation::Unlock {
            drop(self.unless_struck(Operation::Lock, &path)?);
        }
        Ok(flock(&open.file, operation)?)
    }

    fn sync_folder(&self, folder: INodeNo) -> io::Result<()> {
        let path = self.files().path(folder)?;
        self.unless_struck(Operation::Sync, &path).map(drop)
    }

    fn create_in(&self, parent: INodeNo, name: &OsStr, mode: u32, flags: i32) -> io::Result<(FileAttr, u64)> {
        let path = self.files().path(parent)?.join(name);
        let mut files = self.unless_struck(Operation::Create, &path)?;
        let exclusive = OFlags::from_bits_retain(flags as u32).contains(OFlags::EXCL);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).create_new(exclusive).mode(mode);
        let file = options.open(&path)?;
        let number = files.number(&path);
        Ok((attributes(number, &file.metadata()?), files.keep(number, file)))
    }

    fn open_at(&self, number: INodeNo) -> io::Result<u64> {
        let mut files = self.files();
        let path = files.path(number)?;
        // Read and write, whatever was asked for: the kernel has checked that, and what is undone must be read.
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(files.keep(number.0, file))
    }

    fn resize(&self, number: INodeNo, size: Option<u64>, mode: Option<u32>) -> io::Result<FileAttr> {
        let mut files = self.files();
        if let Some(size) = size {
            let open = match files.opened_as(number.0) {
                Some(open) => open,
                None => {
                    let file = File::options().read(true).write(true).open(files.path(number)?)?;
                    Open { number: number.0, file: Arc::new(file) }
                }
            };
            let length = open.file.metadata()?.len();
            files.remember(&open, size.min(length), length.saturating_sub(size))?;
            open.file.set_len(size)?;
        }
        if let Some(mode) = mode {
            fs::set_permissions(files.path(number)?, fs::Permissions::from_mode(mode))?;
        }
        files.attributes(number)
    }

    fn rename_to(&self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr)) -> io::Result<()> {
        let (from, to) = {
            let files = self.files();
            (files.path(from.0)?.join(from.1), files.path(to.0)?.join(to.1))
        };
        let mut files = self.unless_struck(Operation::Rename, &to)?;
        fs::rename(&from, &to)?;
        files.forget(&to);
        if let Some(number) = files.numbers.remove(&from) {
            files.paths.insert(number, to.clone());
            files.numbers.insert(to, number);
        }
        Ok(())
    }

    fn remove(
        &self,
        parent: INodeNo,
        name: &OsStr,
        remove: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let path = self.files().path(parent)?.join(name);
        let mut files = self.unless_struck(Operation::Remove, &path)?;
        remove(&path)?;
        files.forget(&path);
        Ok(())
    }
}

impl Files {
    fn path(&self, number: INodeNo) -> io::Result<PathBuf> {
        self.paths.get(&number.0).cloned().ok_or_else(|| error(Errno::ENOENT))
    }

    /// The number of the file at `path`, which exists.
    fn number(&mut self, path: &Path) -> u64 {
        if let Some(&number) = self.numbers.get(path) {
            return number;
        }
        self.last += 1;
        self.paths.insert(self.last, path.to_owned());
        self.numbers.insert(path.to_owned(), self.last);
        self.last
    }

    /// A file is no more what a name leads to.
    fn forget(&mut self, path: &Path) {
        if let Some(number) = self.numbers.remove(path) {
            self.paths.remove(&number);
        }
    }

    fn keep(&mut self, number: u64, file: File) -> u64 {
        self.last += 1;
        self.open.insert(self.last, Open { number, file: Arc::new(file) });
        self.last
    }

    fn opened(&self, handle: FileHandle) -> io::Result<(Open, PathBuf)> {
        let open = self.open.get(&handle.0).cloned().ok_or_else(|| error(Errno::EBADF))?;
        let path = self.paths.get(&open.number).cloned().unwrap_or_default();
        Ok((open, path))
    }

    fn opened_as(&self, number: u64) -> Option<Open> {
        self.open.values().find(|open| open.number == number).cloned()
    }

    /// Keeps what a change of `count` bytes from `at` on overwrites.
    fn remember(&mut self, open: &Open, at: u64, count: u64) -> io::Result<()> {
        let length = open.file.metadata()?.len();
        let mut bytes = vec![0; count.min(length.saturating_sub(at)) as usize];
        open.file.read_exact_at(&mut bytes, at)?;
        self.unsynced.entry(open.number).or_default().push(Undo { length, at, bytes });
        Ok(())
    }

    fn attributes(&self, number: INodeNo) -> io::Result<FileAttr> {
        let metadata = match self.opened_as(number.0) {
            // It may have no name any more.
            Some(open) => open.file.metadata()?,
            None => fs::symlink_metadata(self.path(number)?)?,
        };
        Ok(attributes(number.0, &metadata))
    }
}

fn error(number: Errno) -> io::Error {
    io::Error::from_raw_os_error(number.code())
}

fn attributes(number: u64, of: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| {
        SystemTime::UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanos.max(0) as u32)
    };
    FileAttr {
        ino: INodeNo(number),
        size: of.len(),
        blocks: of.blocks(),
        atime: time(of.atime(), of.atime_nsec()),
        mtime: time(of.mtime(), of.mtime_nsec()),
        ctime: time(of.ctime(), of.ctime_nsec()),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind_of(of.file_type()),
        perm: (of.mode() & 0o7777) as u16,
        nlink: of.nlink() as u32,
        uid: of.uid(),
        gid: of.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn kind_of(of: fs::FileType) -> FileType {
    assert!(!of.is_fifo() && !of.is_socket(), "a store has files and folders alone");
    if of.is_dir() { FileType::Directory } else { FileType::RegularFile }
}

macro_rules! answer {
    ($done:expr, $reply:ident, |$value:pat_param| $say:expr) => {
        match $done {
            Ok($value) => $say,
            Err(error) => $reply.error(Errno::from(error)),
        }
    };
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        match self.locks {
            Locks::OfTheMount => Ok(()),
            Locks::OfTheFiles => config
                .add_capabilities(InitFlags::FUSE_FLOCK_LOCKS)
                .map_err(|_| io::Error::other("this kernel does not ask for locks")),
        }
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        kind: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        answer!(self.lock(handle, kind), reply, |()| reply.ok());
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = || {
            let mut files = self.files();
            let path = files.path(parent)?.join(name);
            fs::symlink_metadata(&path)?;
            let number = files.number(&path);
            files.attributes(INodeNo(number))
        };
        answer!(found(), reply, |found| reply.entry(&NOT_KEPT, &found, Generation(0)));
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(self.files().attributes(number), reply, |found| reply.attr(&NOT_KEPT, &found));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer!(self.resize(number, size, mode), reply, |found| reply.attr(&NOT_KEPT, &found));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = || {
            let mut files = self.files();
            let path = files.path(parent)?.join(name);
            fs::create_dir(&path)?;
            let number = files.number(&path);
            files.attributes(INodeNo(number))
        };
        answer!(made(), reply, |made| reply.entry(&NOT_KEPT, &made, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(self.remove(parent, name, |path| fs::remove_file(path)), reply, |()| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(self.remove(parent, name, |path| fs::remove_dir(path)), reply, |()| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(self.rename_to((parent, name), (newparent, newname)), reply, |()| reply.ok());
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        answer!(self.open_at(number), reply, |handle| {
            reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
        });
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        answer!(self.create_in(parent, name, mode, flags), reply, |(made, handle)| {
            let direct = FopenFlags::FOPEN_DIRECT_IO;
            reply.created(&NOT_KEPT, &made, Generation(0), FileHandle(handle), direct);
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(self.read_from(handle, offset, size), reply, |bytes| reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(self.write_to(handle, offset, data), reply, |count| reply.written(count as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files().open.remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(self.sync(handle), reply, |()| reply.ok());
    }

    fn fsyncdir(&self, _: &Request, folder: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(self.sync_folder(folder), reply, |()| reply.ok());
    }

    fn readdir(&self, _: &Request, folder: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = || {
            let mut files = self.files();
            let path = files.path(folder)?;
            let mut listed: Vec<(u64, FileType, _)> = Vec::new();
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                listed.push((files.number(&entry.path()), kind_of(entry.file_type()?), entry.file_name()));
            }
            // In an order that is the same each time that it goes on.
            listed.sort_by(|a, b| a.2.cmp(&b.2));
            Ok::<_, io::Error>(listed)
        };
        answer!(listed(), reply, |listed| {
            for (index, (number, kind, name)) in listed.into_iter().enumerate().skip(offset as usize) {
                if reply.add(INodeNo(number), index as u64 + 1, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let asked = || {
            let path = self.files().path(INodeNo::ROOT)?;
            Ok::<_, io::Error>(rustix::fs::statvfs(&path)?)
        };
        answer!(asked(), reply, |stat| reply.statfs(
            stat.f_blocks,
            stat.f_bfree,
            stat.f_bavail,
            stat.f_files,
            stat.f_ffree,
            stat.f_bsize as u32,
            stat.f_namemax as u32,
            stat.f_frsize as u32,
        ));
    }
}
