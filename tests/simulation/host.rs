//! What one host knows of the disk and has not sent to it: the memory of its mount.
//!
//! What is kept and what uncovers it is as the head of `src/disk/mod.rs` says.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::chance::Chance;
use crate::server::{BLOCK, Inode, Late, Piece, Server};
use crate::setting::Caches;

/// Bytes that are kept of a file as one.
const PAGE: u64 = 4096;

/// Bytes of one block that were written and not sent.
#[derive(Debug)]
struct Dirty {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

/// What becomes of what a host has not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Lost,
    Sent,
    Late,
}

#[derive(Debug, Default)]
pub struct Host {
    dirty: BTreeMap<(Inode, u64), Dirty>,
    lengths: BTreeMap<Inode, (u64, u64)>,
    pages: BTreeMap<(Inode, u64), Vec<u8>>,
    names: BTreeMap<PathBuf, (Option<Inode>, u64)>,
    listings: BTreeMap<PathBuf, (Vec<OsString>, u64)>,
    /// Which it is.
    id: usize,
    /// Whether anything is kept that others may change.
    keeps: bool,
    /// How long names, listings and attributes are.
    kept_us: u64,
    /// Nothing on it goes on before.
    pub paused_until: u64,
    /// Since when the disk has not heard of it.
    pub silent_since: Option<u64>,
    /// The process that runs on it.
    pub process: Option<u64>,
}

impl Host {
    pub fn new(id: usize, caches: Caches) -> Self {
        let (keeps, kept_us) = match caches {
            Caches::Coherent => (false, 0),
            Caches::Stale(time) => (true, time),
        };
        Self { id, keeps, kept_us, ..Self::default() }
    }

    /// The length of a file, as the host knows it.
    pub fn length(&mut self, server: &Server, inode: Inode, now: u64) -> u64 {
        let known = self.lengths.get(&inode).filter(|(_, at)| self.keeps && now < at + self.kept_us);
        let known = known.map(|(length, _)| *length);
        known.unwrap_or_else(|| self.length_afresh(server, inode, now))
    }

    /// The length of a file, as the disk knows it, with what this host has not sent.
    pub fn length_afresh(&mut self, server: &Server, inode: Inode, now: u64) -> u64 {
        let own = self.dirty.range((inode, 0)..=(inode, u64::MAX)).next_back();
        let own = own.map_or(0, |((_, block), dirty)| block * BLOCK + dirty.to as u64);
        let length = (server.stored(inode).bytes.len() as u64).max(own);
        self.lengths.insert(inode, (length, now));
        length
    }

    pub fn set_length(&mut self, inode: Inode, bytes: u64, now: u64) {
        let first = bytes.div_ceil(BLOCK);
        self.dirty.retain(|(of, block), _| *of != inode || *block < first);
        self.lengths.insert(inode, (bytes, now));
        self.pages.retain(|(of, _), _| *of != inode);
    }

    pub fn read(&mut self, server: &Server, inode: Inode, at: u64, buffer: &mut [u8]) {
        let bytes = &server.stored(inode).bytes;
        let end = at + buffer.len() as u64;
        for page in at / PAGE..end.div_ceil(PAGE) {
            let (start, stop) = ((page * PAGE).max(at), ((page + 1) * PAGE).min(end));
            let into = &mut buffer[(start - at) as usize..(stop - at) as usize];
            let within = (start - page * PAGE) as usize;
            if self.keeps {
                self.pages.entry((inode, page)).or_insert_with(|| page_of(bytes, page));
            }
            // What a failed sync has left in memory is seen there until another host writes.
            let is_right = self.keeps || server.stored(inode).writer == self.id;
            match self.pages.get(&(inode, page)).filter(|_| is_right) {
                Some(kept) => into.copy_from_slice(&kept[within..within + into.len()]),
                None => copy_from(bytes, start, into),
            }
        }
        for (&(_, block), dirty) in self.dirty.range((inode, at / BLOCK)..(inode, end.div_ceil(BLOCK))) {
            let (from, to) = (block * BLOCK + dirty.from as u64, block * BLOCK + dirty.to as u64);
            let (start, stop) = (from.max(at), to.min(end));
            if start < stop {
                let within = (start - block * BLOCK) as usize..(stop - block * BLOCK) as usize;
                buffer[(start - at) as usize..(stop - at) as usize].copy_from_slice(&dirty.bytes[within]);
            }
        }
    }

    pub fn write(&mut self, server: &Server, inode: Inode, at: u64, bytes: &[u8], now: u64) {
        let length = self.length(server, inode, now);
        let end = at + bytes.len() as u64;
        let mut start = at;
        while start < end {
            let block = start / BLOCK;
            let stop = ((block + 1) * BLOCK).min(end);
            let (from, to) = ((start - block * BLOCK) as usize, (stop - block * BLOCK) as usize);
            if let std::collections::btree_map::Entry::Vacant(none) = self.dirty.entry((inode, block)) {
                none.insert(Dirty { bytes: vec![0; BLOCK as usize], from, to });
            } else if !self.dirty[&(inode, block)].touches(from, to) {
                // What lies between two writes to a block is what the host read there.
                let mut whole = vec![0; BLOCK as usize];
                self.read(server, inode, block * BLOCK, &mut whole);
                self.dirty.get_mut(&(inode, block)).expect("it is there").bytes = whole;
            }
            let dirty = self.dirty.get_mut(&(inode, block)).expect("it is there");
            dirty.bytes[from..to].copy_from_slice(&bytes[(start - at) as usize..(stop - at) as usize]);
            (dirty.from, dirty.to) = (dirty.from.min(from), dirty.to.max(to));
            start = stop;
        }
        self.lengths.insert(inode, (length.max(end), now));
    }

    /// Sends what was written to a file, durably.
    pub fn send_all(&mut self, server: &mut Server, inode: Inode) {
        while let Some((&key, _)) = self.dirty.range((inode, 0)..=(inode, u64::MAX)).next() {
            self.settle(server, key, Fate::Sent);
        }
        server.sync(inode);
    }

    /// Sends one block of a file by chance. Answers whether there was one.
    pub fn send_one_of(&mut self, server: &mut Server, inode: Inode, chance: &mut Chance) -> bool {
        let count = self.dirty.range((inode, 0)..=(inode, u64::MAX)).count() as u64;
        if count == 0 {
            return false;
        }
        let index = chance.below(count) as usize;
        let key = self.dirty.range((inode, 0)..=(inode, u64::MAX)).nth(index).map(|(&key, _)| key);
        key.into_iter().for_each(|key| self.settle(server, key, Fate::Sent));
        true
    }

    /// A sync fails: what was to be sent arrives or not, and the host takes it for sent.
    pub fn fail_to_send(&mut self, server: &mut Server, inode: Inode, chance: &mut Chance) {
        let blocks: Vec<_> = self.dirty.range((inode, 0)..=(inode, u64::MAX)).map(|(&key, _)| key).collect();
        for key in blocks {
            let page = key.1 * BLOCK / PAGE;
            let mut kept = vec![0; PAGE as usize];
            self.read(server, inode, page * PAGE, &mut kept);
            self.pages.insert((inode, page), kept);
            let fate = if chance.one_in(2) { Fate::Sent } else { Fate::Lost };
            self.settle(server, key, fate);
        }
    }

    /// Sends one block by chance. Answers whether there was one.
    pub fn send_some(&mut self, server: &mut Server, chance: &mut Chance) -> bool {
        if self.dirty.is_empty() {
            return false;
        }
        let index = chance.below(self.dirty.len() as u64) as usize;
        let key = self.dirty.keys().nth(index).copied();
        key.into_iter().for_each(|key| self.settle(server, key, Fate::Sent));
        true
    }

    fn settle(&mut self, server: &mut Server, key: (Inode, u64), fate: Fate) {
        let Some(Dirty { bytes, from, to }) = self.dirty.remove(&key) else { return };
        let piece = Piece { inode: key.0, at: key.1 * BLOCK + from as u64, bytes: bytes[from..to].to_vec() };
        match fate {
            Fate::Lost => {}
            Fate::Late => server.late.push(Late::Piece(piece, self.id)),
            Fate::Sent => {
                if let Some(kept) = self.pages.get_mut(&(key.0, piece.at / PAGE)) {
                    let within = (piece.at % PAGE) as usize;
                    kept[within..within + piece.bytes.len()].copy_from_slice(&piece.bytes);
                }
                server.write(&piece, self.id);
            }
        }
    }

    /// The host loses its memory: of each block that it has not sent it is drawn what becomes of it.
    pub fn forget_all(&mut self, server: &mut Server, chance: &mut Chance, fates: &[Fate]) {
        while let Some((&key, _)) = self.dirty.iter().next() {
            let fate = chance.pick(fates);
            self.settle(server, key, fate);
        }
        self.lengths.clear();
        self.pages.clear();
        self.names.clear();
        self.listings.clear();
    }

    /// A file is opened: what is kept of its bytes is dropped.
    pub fn open(&mut self, inode: Inode) {
        if self.keeps {
            self.pages.retain(|(of, _), _| *of != inode);
        }
    }

    /// What is kept of a file from `from` on is dropped.
    pub fn forget(&mut self, inode: Inode, from: u64) {
        self.pages.retain(|(of, page), _| *of != inode || (page + 1) * PAGE <= from);
    }

    /// What a name leads to, as the host knows it.
    pub fn find(&mut self, server: &Server, path: &Path, now: u64) -> Option<Inode> {
        match self.names.get(path) {
            Some((kept, at)) if self.keeps && now < at + self.kept_us => *kept,
            _ => self.find_afresh(server, path, now),
        }
    }

    pub fn find_afresh(&mut self, server: &Server, path: &Path, now: u64) -> Option<Inode> {
        let found = server.find(path);
        self.names.insert(path.to_owned(), (found, now));
        found
    }

    /// The host has changed what a name leads to.
    pub fn changed(&mut self, server: &Server, path: &Path, now: u64) {
        self.find_afresh(server, path, now);
        if let Some(folder) = path.parent() {
            self.listings.remove(folder);
        }
    }

    /// The names in a folder, as the host knows them.
    pub fn list(&mut self, server: &mut Server, folder: &Path, by: usize, now: u64) -> Vec<OsString> {
        if let Some((kept, at)) = self.listings.get(folder)
            && self.keeps
            && now < at + self.kept_us
        {
            return kept.clone();
        }
        let names = server.list(folder, by);
        self.listings.insert(folder.to_owned(), (names.clone(), now));
        names
    }

    /// The attributes of a folder were asked for: a listing of it that is kept is not right any more.
    pub fn forget_listing(&mut self, path: &Path) {
        self.listings.remove(path);
    }
}

impl Dirty {
    fn touches(&self, from: usize, to: usize) -> bool {
        from <= self.to && self.from <= to
    }
}

fn page_of(bytes: &[u8], page: u64) -> Vec<u8> {
    let mut kept = vec![0; PAGE as usize];
    copy_from(bytes, page * PAGE, &mut kept);
    kept
}

/// Copies bytes of a file; zeros behind its end.
fn copy_from(bytes: &[u8], at: u64, into: &mut [u8]) {
    let from = bytes.get(at as usize..).unwrap_or_default();
    let count = from.len().min(into.len());
    into[..count].copy_from_slice(&from[..count]);
    into[count..].fill(0);
}
