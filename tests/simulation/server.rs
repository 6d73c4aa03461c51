//! The disk itself: what all hosts share.
//!
//! A name that is made, given or removed is there at once for everybody, and lasts through a loss of power only once its
//! folder was synced. Bytes are there once a host has sent them, which it does when it syncs, or some time.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use batonmq::disk::LockKind;
use batonmq::disk::file::{Attributes, Kind};

use crate::chance::Chance;

/// What parts of a file reach the disk independently of each other.
pub const BLOCK: u64 = 512;

pub type Inode = u64;

/// Bytes of a checkpoint that say what it is: one of a newer format is refused, and not passed over.
const HEAD_BYTES: u64 = 16;

/// A file or folder.
#[derive(Debug)]
pub struct Stored {
    pub kind: Kind,
    pub bytes: Vec<u8>,
    pub links: u64,
    /// The host that has written last.
    pub writer: usize,
    /// What stood where bytes have arrived that nobody has synced, oldest first.
    unsynced: Vec<(u64, Vec<u8>)>,
}

/// A change of names that is not durable yet.
#[derive(Clone, Debug)]
enum Change {
    Made(PathBuf),
    Removed(PathBuf, Inode),
    /// What had the second name before.
    Renamed(PathBuf, PathBuf, Option<Inode>),
}

impl Change {
    fn names(&self) -> [&Path; 2] {
        match self {
            Self::Made(path) | Self::Removed(path, _) => [path, path],
            Self::Renamed(from, to, _) => [from, to],
        }
    }

    fn shares_a_name(&self, other: &Self) -> bool {
        self.names().iter().any(|name| other.names().contains(name))
    }
}

#[derive(Debug)]
struct Logged {
    change: Change,
    by: usize,
    /// Another host has seen it: it is on the disk in some way.
    seen: bool,
}

/// A change of names that is asked for.
#[derive(Clone, Debug)]
pub enum NameChange {
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

/// Bytes of one block that were written.
#[derive(Clone, Debug)]
pub struct Piece {
    pub inode: Inode,
    pub at: u64,
    pub bytes: Vec<u8>,
}

/// Something that a host has sent and that arrives after its end.
#[derive(Debug)]
pub enum Late {
    Piece(Piece, usize),
    Names(NameChange, usize),
}

/// A lock that somebody has.
#[derive(Debug)]
pub struct Lock {
    pub kind: LockKind,
    pub host: usize,
    pub handle: u64,
}

#[derive(Debug, Default)]
pub struct Server {
    stored: BTreeMap<Inode, Stored>,
    names: BTreeMap<PathBuf, Inode>,
    /// By folder, oldest first.
    unsynced: BTreeMap<PathBuf, Vec<Logged>>,
    pub locks: BTreeMap<Inode, Vec<Lock>>,
    /// Checkpoints that were damaged.
    damaged: BTreeSet<Inode>,
    pub late: Vec<Late>,
    next: Inode,
    /// Bytes that another program has not taken.
    pub capacity: u64,
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

impl Server {
    pub fn new(capacity: u64) -> Self {
        let mut server = Self { capacity, next: 1, ..Self::default() };
        server.put(Path::new(""), Kind::Folder);
        server
    }

    fn put(&mut self, path: &Path, kind: Kind) -> Inode {
        let inode = self.next;
        self.next += 1;
        self.stored
            .insert(inode, Stored { kind, bytes: Vec::new(), links: 1, writer: 0, unsynced: Vec::new() });
        self.names.insert(path.to_owned(), inode);
        inode
    }

    pub fn find(&self, path: &Path) -> Option<Inode> {
        self.names.get(path).copied()
    }

    pub fn stored(&self, inode: Inode) -> &Stored {
        &self.stored[&inode]
    }

    pub fn attributes(&self, inode: Inode) -> Attributes {
        let Stored { kind, bytes, links, .. } = self.stored(inode);
        let length = bytes.len() as u64;
        Attributes { kind: *kind, length, links: *links, identity: (1, inode), changed_at: 1 }
    }

    /// A host has looked at a name.
    pub fn seen(&mut self, path: &Path, by: usize) {
        let Some(log) = self.unsynced.get_mut(&folder_of(path)) else { return };
        for logged in log {
            logged.seen |= logged.by != by && logged.change.names().contains(&path);
        }
    }

    pub fn list(&mut self, folder: &Path, by: usize) -> Vec<OsString> {
        for logged in self.unsynced.get_mut(folder).into_iter().flatten() {
            logged.seen |= logged.by != by;
        }
        let inside = self.names.keys().filter(|path| path.parent() == Some(folder));
        inside.filter_map(|path| path.file_name().map(OsString::from)).collect()
    }

    pub fn make(&mut self, path: &Path, kind: Kind, by: usize) -> io::Result<Inode> {
        if self.find(path).is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if self.find(&folder_of(path)).is_none() {
            return Err(ErrorKind::NotFound.into());
        }
        let inode = self.put(path, kind);
        self.log(path, Change::Made(path.to_owned()), by);
        Ok(inode)
    }

    pub fn change(&mut self, change: &NameChange, by: usize) -> io::Result<()> {
        match change {
            NameChange::Remove(path) => {
                let inode = self.names.remove(path).ok_or(ErrorKind::NotFound)?;
                self.unlink(inode);
                self.log(path, Change::Removed(path.clone(), inode), by);
            }
            NameChange::Rename(from, to) => {
                let inode = self.names.remove(from).ok_or(ErrorKind::NotFound)?;
                let replaced = self.names.insert(to.clone(), inode);
                if let Some(replaced) = replaced {
                    self.unlink(replaced);
                }
                self.log(from, Change::Renamed(from.clone(), to.clone(), replaced), by);
            }
        }
        Ok(())
    }

    fn unlink(&mut self, inode: Inode) {
        self.stored.get_mut(&inode).expect("it had a name").links -= 1;
    }

    fn log(&mut self, path: &Path, change: Change, by: usize) {
        let logged = Logged { change, by, seen: false };
        self.unsynced.entry(folder_of(path)).or_default().push(logged);
    }

    /// The names in a folder are durable.
    pub fn sync_folder(&mut self, inode: Inode) {
        let names = &self.names;
        self.unsynced.retain(|folder, _| names.get(folder) != Some(&inode));
    }

    /// A host has lost power: of its changes of names, each that nobody has seen may be gone.
    pub fn lose_names_of(&mut self, host: usize, chance: &mut Chance) {
        self.lose(chance, |logged| logged.by == host && !logged.seen);
    }

    /// The disk has lost power: each change of names may be gone.
    pub fn lose_names(&mut self, chance: &mut Chance) {
        self.lose(chance, |_| true);
        self.unsynced.clear();
    }

    /// Undoes changes, the last ones first; none of a name that a later one has to do with which stays.
    fn lose(&mut self, chance: &mut Chance, may_go: impl Fn(&Logged) -> bool) {
        // Inner folders first: what is in a folder goes before the folder.
        let mut folders: Vec<PathBuf> = self.unsynced.keys().cloned().collect();
        folders.sort_by_key(|folder| std::cmp::Reverse(folder.components().count()));
        for folder in folders {
            let mut stays: Vec<Logged> = Vec::new();
            let mut log = self.unsynced.remove(&folder).unwrap_or_default();
            while let Some(logged) = log.pop() {
                let is_free = !stays.iter().any(|later| later.change.shares_a_name(&logged.change));
                if is_free && may_go(&logged) && chance.percent(60) {
                    self.undo(logged.change);
                } else {
                    stays.push(logged);
                }
            }
            stays.reverse();
            self.unsynced.insert(folder, stays);
        }
    }

    fn undo(&mut self, change: Change) {
        match change {
            Change::Made(path) => {
                // A folder goes with all that is in it.
                let inside: Vec<PathBuf> =
                    self.names.keys().filter(|name| name.starts_with(&path)).cloned().collect();
                for name in inside {
                    if let Some(inode) = self.names.remove(&name) {
                        self.unlink(inode);
                    }
                }
                self.unsynced.retain(|folder, _| !folder.starts_with(&path));
            }
            Change::Removed(path, inode) => self.restore(path, inode),
            Change::Renamed(from, to, replaced) => {
                if let Some(inode) = self.names.remove(&to) {
                    self.names.insert(from, inode);
                }
                if let Some(replaced) = replaced {
                    self.restore(to, replaced);
                }
            }
        }
    }

    fn restore(&mut self, path: PathBuf, inode: Inode) {
        self.names.insert(path, inode);
        self.stored.get_mut(&inode).expect("no file is ever forgotten").links += 1;
    }

    /// What has arrived of a file is durable.
    pub fn sync(&mut self, inode: Inode) {
        self.stored.get_mut(&inode).expect("no file is ever forgotten").unsynced.clear();
    }

    /// The disk has lost power: each block that has arrived and that nobody has synced may be what it was before.
    pub fn lose_bytes(&mut self, chance: &mut Chance) {
        for stored in self.stored.values_mut() {
            while let Some((at, before)) = stored.unsynced.pop() {
                if chance.percent(40) {
                    let at = at as usize;
                    let end = stored.bytes.len().min(at + before.len());
                    if at < end {
                        stored.bytes[at..end].copy_from_slice(&before[..end - at]);
                    }
                }
            }
        }
    }

    /// Bytes arrive from a host. They are durable once somebody syncs the file.
    pub fn write(&mut self, piece: &Piece, by: usize) {
        let stored = self.stored.get_mut(&piece.inode).expect("no file is ever forgotten");
        let (at, end) = (piece.at as usize, piece.at as usize + piece.bytes.len());
        if stored.bytes.len() < end {
            stored.bytes.resize(end, 0);
        }
        stored.writer = by;
        stored.unsynced.push((piece.at, stored.bytes[at..end].to_vec()));
        stored.bytes[at..end].copy_from_slice(&piece.bytes);
    }

    pub fn set_length(&mut self, inode: Inode, bytes: u64) {
        let stored = self.stored.get_mut(&inode).expect("no file is ever forgotten");
        stored.bytes.resize(bytes as usize, 0);
    }

    /// Changes a byte behind the head of the newest checkpoint, where no other one that is damaged has a name. Answers its
    /// path.
    pub fn damage_checkpoint(&mut self, chance: &mut Chance) -> Option<PathBuf> {
        if !self.damaged_names().is_empty() {
            return None;
        }
        let is_checkpoint = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("checkpoint") && !name.ends_with(".new")
        };
        let (path, &inode) = self.names.iter().rev().find(|(path, _)| is_checkpoint(path))?;
        let stored = self.stored.get_mut(&inode).expect("it has a name");
        let behind_head = (stored.bytes.len() as u64).checked_sub(HEAD_BYTES).filter(|&bytes| bytes > 0)?;
        stored.bytes[(HEAD_BYTES + chance.below(behind_head)) as usize] ^= 1 << chance.below(8);
        self.damaged.insert(inode);
        Some(path.clone())
    }

    /// The names of checkpoints that were damaged.
    pub fn damaged_names(&self) -> Vec<PathBuf> {
        let damaged = self.names.iter().filter(|(_, inode)| self.damaged.contains(inode));
        damaged.map(|(path, _)| path.clone()).collect()
    }

    /// Something arrives that was sent by one who is gone.
    pub fn arrive(&mut self, late: Late) {
        match late {
            Late::Piece(piece, by) => self.write(&piece, by),
            // What it was about may be gone.
            Late::Names(change, by) => drop(self.change(&change, by)),
        }
    }

    /// Bytes that files with names take.
    pub fn used(&self) -> u64 {
        let living = self.stored.values().filter(|stored| stored.links > 0);
        living.map(|stored| stored.bytes.len() as u64).sum()
    }

    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used())
    }
}
