//! One file or folder of the shared disk that is open.
//!
//! Reads and writes name their place; only [`Read`] goes on from where it was. What this does and how it fails is what
//! the system's calls do, or those of a [`mount`] where the path leads to one.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};

use super::mount::{self, MountedFile};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// To be read; folders too.
    Read,
    /// To be read past the page cache.
    ReadDirect,
    /// To be written.
    Write,
    /// To be read and written.
    ReadWrite,
    /// To be written, and made where there is none.
    Make,
    /// To be written, from the beginning: made, or emptied.
    Replace,
    /// To be written, made now: an error where the name is there, even where several hosts try at once.
    New,
}

impl Opening {
    fn options(self) -> fs::OpenOptions {
        let mut options = fs::OpenOptions::new();
        match self {
            Self::Read => options.read(true),
            Self::ReadDirect => options.read(true).custom_flags(OFlags::DIRECT.bits() as i32),
            Self::Write => options.write(true),
            Self::ReadWrite => options.read(true).write(true),
            Self::Make => options.write(true).create(true).truncate(false),
            Self::Replace => options.write(true).create(true).truncate(true),
            Self::New => options.write(true).create_new(true),
        };
        options
    }
}

/// Whom a lock keeps away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Everybody.
    Exclusive,
    /// Those who want it for themselves.
    Shared,
}

/// What is at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// Something else.
    Other,
}

/// What a file system knows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub length: u64,
    /// The names that it has.
    pub links: u64,
    /// Device and inode: what tells it from every other file.
    pub identity: (u64, u64),
    /// When its attributes were changed last, in nanoseconds since 1970, by the clock of the file system.
    pub changed_at: u64,
}

impl Attributes {
    pub(super) fn of(found: &fs::Metadata) -> Self {
        let kind = match found.file_type() {
            kind if kind.is_file() => Kind::File,
            kind if kind.is_dir() => Kind::Folder,
            _ => Kind::Other,
        };
        let nanoseconds = found.ctime().saturating_mul(1_000_000_000).saturating_add(found.ctime_nsec());
        Self {
            kind,
            length: found.len(),
            links: found.nlink(),
            identity: (found.dev(), found.ino()),
            changed_at: u64::try_from(nanoseconds).unwrap_or(0),
        }
    }
}

/// An open file or folder.
#[derive(Debug)]
pub struct File(Inner);

#[derive(Debug)]
enum Inner {
    System(fs::File),
    /// The second is where [`Read`] goes on.
    Mounted(Box<dyn MountedFile>, u64),
}

impl From<fs::File> for File {
    fn from(file: fs::File) -> Self {
        Self(Inner::System(file))
    }
}

impl File {
    /// Opens it.
    ///
    /// # Errors
    /// The system's own.
    pub fn open(path: &Path, opening: Opening) -> io::Result<Self> {
        match mount::of(path) {
            None => opening.options().open(path).map(Self::from),
            Some(mount) => Ok(Self(Inner::Mounted(mount.open(path, opening)?, 0))),
        }
    }

    /// Reads up to as many bytes as the buffer has, from `at` on; 0 at the end.
    ///
    /// # Errors
    /// The system's own.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        match &self.0 {
            Inner::System(file) => file.read_at(buffer, at),
            Inner::Mounted(file, _) => file.read_at(buffer, at),
        }
    }

    /// Fills the buffer with the bytes from `at` on.
    ///
    /// # Errors
    /// [`ErrorKind::UnexpectedEof`] where the file ends before, or the system's own.
    pub fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_at(&mut buffer[filled..], at + filled as u64) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the pieces one behind the other from `at` on, in one call. Answers how many bytes that wrote.
    ///
    /// # Errors
    /// The system's own.
    pub fn write_pieces_at(&self, pieces: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        match &self.0 {
            Inner::System(file) => Ok(rustix::io::pwritev(file, pieces, at)?),
            Inner::Mounted(file, _) => file.write_at(pieces, at),
        }
    }

    /// Writes all of these bytes at `at`.
    ///
    /// # Errors
    /// The system's own; how much was written is not known then.
    pub fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let file = match &self.0 {
            Inner::System(file) => return file.write_all_at(bytes, at),
            Inner::Mounted(file, _) => file,
        };
        let mut written = 0;
        while written < bytes.len() {
            match file.write_at(&[IoSlice::new(&bytes[written..])], at + written as u64)? {
                0 => return Err(ErrorKind::WriteZero.into()),
                more => written += more,
            }
        }
        Ok(())
    }

    /// Makes the bytes durable, and its length.
    ///
    /// # Errors
    /// The system's own. What was to be made durable may be gone then.
    pub fn sync_data(&self) -> io::Result<()> {
        match &self.0 {
            Inner::System(file) => file.sync_data(),
            Inner::Mounted(file, _) => file.sync(),
        }
    }

    /// Makes everything about it durable; of a folder, its names.
    ///
    /// # Errors
    /// As for [`sync_data`](Self::sync_data).
    pub fn sync_all(&self) -> io::Result<()> {
        match &self.0 {
            Inner::System(file) => file.sync_all(),
            Inner::Mounted(file, _) => file.sync(),
        }
    }

    /// Makes the file as long as that.
    ///
    /// # Errors
    /// The system's own.
    pub fn set_len(&self, bytes: u64) -> io::Result<()> {
        match &self.0 {
            Inner::System(file) => file.set_len(bytes),
            Inner::Mounted(file, _) => file.set_length(bytes),
        }
    }

    /// Its length as the file system itself has it; reads go up to there from now on.
    ///
    /// # Errors
    /// Where the file system cannot be asked.
    pub fn length(&self) -> io::Result<u64> {
        match &self.0 {
            Inner::System(file) => {
                let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
                Ok(rustix::fs::statx(file, c"", flags, StatxFlags::SIZE)?.stx_size)
            }
            Inner::Mounted(file, _) => Ok(file.attributes_afresh()?.length),
        }
    }

    /// Asks the file system itself about it, and answers whether the file still has a name; a folder has one.
    ///
    /// # Errors
    /// Where the file system cannot be asked.
    pub(super) fn has_name(&self) -> io::Result<bool> {
        let (is_file, links) = match &self.0 {
            Inner::System(file) => {
                let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
                let mask = StatxFlags::SIZE | StatxFlags::NLINK | StatxFlags::TYPE;
                let found = match rustix::fs::statx(file, c"", flags, mask) {
                    Err(rustix::io::Errno::STALE) => return Ok(false),
                    found => found?,
                };
                let kind = FileType::from_raw_mode(found.stx_mode.into());
                (kind == FileType::RegularFile, u64::from(found.stx_nlink))
            }
            Inner::Mounted(file, _) => {
                let found = file.attributes_afresh()?;
                (found.kind == Kind::File, found.links)
            }
        };
        Ok(!is_file || links > 0)
    }

    /// What is known of it, by whatever name it has now.
    ///
    /// # Errors
    /// The system's own.
    pub fn attributes(&self) -> io::Result<Attributes> {
        match &self.0 {
            Inner::System(file) => Ok(Attributes::of(&file.metadata()?)),
            Inner::Mounted(file, _) => file.attributes_afresh(),
        }
    }

    /// One attempt to lock it; never waits. `false` where somebody else's lock is in the way. It is let go when the file
    /// is closed.
    ///
    /// # Errors
    /// Where it is not known whether the lock is free.
    pub fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        let file = match &self.0 {
            Inner::System(file) => file,
            Inner::Mounted(file, _) => return file.try_lock(kind),
        };
        // By their full names: `File` has methods of the same names of its own.
        let locked = match kind {
            LockKind::Exclusive => fs2::FileExt::try_lock_exclusive(file),
            LockKind::Shared => fs2::FileExt::try_lock_shared(file),
        };
        match locked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the system read from the disk what it keeps in memory from `from` on.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn forget_kept(&self, from: u64) -> io::Result<()> {
        match &self.0 {
            Inner::System(file) => Ok(rustix::fs::fadvise(file, from, None, rustix::fs::Advice::DontNeed)?),
            Inner::Mounted(file, _) => file.forget_kept(from),
        }
    }

    /// Both files where both are the system's, for a copy that the system makes by itself.
    pub(super) fn both_of_system<'a>(
        &'a mut self,
        other: &'a mut Self,
    ) -> Option<(&'a fs::File, &'a fs::File)> {
        match (&self.0, &other.0) {
            (Inner::System(one), Inner::System(other)) => Some((one, other)),
            _ => None,
        }
    }
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::System(file) => file.read(buffer),
            Inner::Mounted(file, at) => {
                let read = file.read_at(buffer, *at)?;
                *at += read as u64;
                Ok(read)
            }
        }
    }
}
