//! The files that hold messages, and how much of each is still needed.
//!
//! What a file holds is counted in the bytes that its messages would take in a pack. A run that was split has its bytes
//! shared out by the number of messages, so where large and small ones are mixed this is an estimate; the bytes of a
//! pack are counted anew when it is made.
//!
//! A file is *dead* when it holds nothing, and *sparse* when a pack of what it holds would be less than half as large.
//! The segment that is being written is neither, and neither is a file that is *pinned*: an image reads it, so it cannot
//! go. So whoever looks for files that can go finds them at once, however many are kept for an image.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::file_id::FileId;

/// Bytes of a pack that has next to nothing in it.
pub const PACK_BYTES_MIN: u64 = 8 << 10;

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePlace {
    /// Where its committed entries end.
    pub end: u64,
    /// Where its index is, once it is full.
    pub index: Option<u64>,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// Bytes of the messages that it holds; 0 only where it holds none.
    #[serde(skip)]
    pub held: u64,
    /// Whether what it holds cannot be copied.
    #[serde(skip)]
    pub copies: Copies,
}

/// Whether messages can be copied out of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// Nothing is known that is in the way.
    #[default]
    Possible,
    /// Some of them are damaged.
    Impossible,
}

impl FilePlace {
    /// A file that ends there and takes so many bytes of the disk, with nothing in it.
    #[must_use]
    pub const fn new(end: u64, index: Option<u64>, bytes: u64) -> Self {
        Self { end, index, bytes, held: 0, copies: Copies::Possible }
    }

    const fn is_sparse(&self) -> bool {
        matches!(self.copies, Copies::Possible)
            && self.held > 0
            && self.bytes > 2 * (self.held + PACK_BYTES_MIN)
    }

    /// Bytes that a pack of what it holds would save.
    #[must_use]
    pub const fn garbage(&self) -> u64 {
        self.bytes.saturating_sub(self.held)
    }
}

/// The files of a store.
#[derive(Clone, Debug, Default)]
pub struct Files {
    all: BTreeMap<FileId, FilePlace>,
    dead: BTreeSet<FileId>,
    sparse: BTreeSet<FileId>,
    /// Bytes that packing all sparse files would save.
    sparse_garbage: u64,
    /// The files that images read, with the number of images.
    pinned: BTreeMap<FileId, usize>,
    active: FileId,
}

impl Files {
    /// Adds a file without messages.
    pub fn add(&mut self, file: FileId, place: FilePlace) {
        self.all.insert(file, FilePlace { held: 0, ..place });
        if file != self.active {
            self.dead.insert(file);
        }
    }

    /// From now on this file is the one that is written.
    pub fn activate(&mut self, file: FileId) {
        let before = std::mem::replace(&mut self.active, file);
        for file in [before, file] {
            self.change(file, |_| {});
        }
    }

    /// The file that is written.
    #[must_use]
    pub const fn active(&self) -> FileId {
        self.active
    }

    /// Changes what is known of a file, if it is one of the store.
    pub fn change(&mut self, file: FileId, change: impl FnOnce(&mut FilePlace)) {
        let Some(place) = self.all.get_mut(&file) else { return };
        if self.sparse.contains(&file) {
            self.sparse_garbage -= place.garbage();
        }
        change(place);
        let can_go = file != self.active && !self.pinned.contains_key(&file);
        note(&mut self.dead, file, can_go && place.held == 0);
        if note(&mut self.sparse, file, can_go && place.is_sparse()) {
            self.sparse_garbage += place.garbage();
        }
    }

    /// The file holds this much more.
    pub fn hold(&mut self, file: FileId, bytes: u64) {
        self.change(file, |place| place.held += bytes);
    }

    /// The file holds this much less.
    pub fn release(&mut self, file: FileId, bytes: u64) {
        self.change(file, |place| place.held -= bytes);
    }

    /// An image reads the file from now on.
    pub fn pin(&mut self, file: FileId) {
        *self.pinned.entry(file).or_default() += 1;
        self.change(file, |_| {});
    }

    /// An image that has read the file does not any more.
    pub fn unpin(&mut self, file: FileId) {
        let Some(count) = self.pinned.get_mut(&file) else { return };
        *count -= 1;
        if *count == 0 {
            self.pinned.remove(&file);
            self.change(file, |_| {});
        }
    }

    /// Whether an image reads the file.
    #[must_use]
    pub fn is_pinned(&self, file: FileId) -> bool {
        self.pinned.contains_key(&file)
    }

    /// Takes a file out.
    pub fn forget(&mut self, file: FileId) {
        self.change(file, |place| place.held = 0);
        self.all.remove(&file);
        self.dead.remove(&file);
    }

    /// What is known of a file.
    #[must_use]
    pub fn get(&self, file: FileId) -> Option<FilePlace> {
        self.all.get(&file).copied()
    }

    /// All files, in order.
    pub fn iter(&self) -> impl Iterator<Item = (FileId, FilePlace)> + '_ {
        self.all.iter().map(|(&id, &place)| (id, place))
    }

    /// Whether the file holds nothing.
    #[must_use]
    pub fn is_dead(&self, file: FileId) -> bool {
        self.all.get(&file).is_some_and(|place| place.held == 0)
    }

    /// The files that hold nothing any more and can go: neither written nor pinned. In order.
    pub fn dead(&self) -> impl Iterator<Item = FileId> + '_ {
        self.dead.iter().copied()
    }

    /// The sparse files, in order.
    pub fn sparse(&self) -> impl Iterator<Item = (FileId, FilePlace)> + '_ {
        self.sparse.iter().filter_map(|&file| Some((file, self.get(file)?)))
    }

    /// Bytes that packing all sparse files would save.
    #[must_use]
    pub const fn sparse_garbage(&self) -> u64 {
        self.sparse_garbage
    }
}

/// Puts a file into a set or takes it out. Answers whether it is in there now.
fn note(set: &mut BTreeSet<FileId>, file: FileId, is_in: bool) -> bool {
    if is_in {
        set.insert(file);
    } else if !set.is_empty() {
        set.remove(&file);
    }
    is_in
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Epoch;

    #[test]
    fn garbage_is_counted_once_whatever_happens_to_a_file() {
        let mut files = Files::default();
        let (first, second) = (FileId::pack(Epoch(1), 1), FileId::pack(Epoch(1), 2));
        let place = FilePlace::new(20_000, Some(19_000), 40_000);
        files.add(first, place);
        files.activate(first);
        files.hold(first, 2500);
        assert!(files.dead().next().is_none());
        files.release(first, 600);
        assert_eq!((files.sparse().count(), files.sparse_garbage()), (0, 0), "it is written");
        files.add(second, place);
        files.activate(second);
        assert_eq!(files.sparse_garbage(), 38_100);
        files.release(first, 100);
        assert_eq!(files.sparse_garbage(), 38_200);
        files.hold(first, 20_000);
        assert_eq!((files.sparse().count(), files.sparse_garbage()), (0, 0));
        files.release(first, 21_799);
        assert_eq!(files.sparse_garbage(), 39_999);
        files.release(first, 1);
        assert_eq!((files.sparse_garbage(), files.dead().collect::<Vec<_>>()), (0, vec![first]));
        files.forget(first);
        assert_eq!((files.dead().count(), files.get(first)), (0, None));
    }

    #[test]
    fn a_file_is_held_as_long_as_one_image_needs_it() {
        let mut files = Files::default();
        let all = [1, 2, 3].map(|number| FileId::pack(Epoch(1), number));
        all.iter().for_each(|&file| files.add(file, FilePlace::new(20_000, Some(19_000), 40_000)));
        files.hold(all[2], 100);
        all.iter().for_each(|&file| files.pin(file));
        files.pin(all[0]);
        assert_eq!((files.dead().count(), files.sparse().count(), files.sparse_garbage()), (0, 0, 0));
        all.iter().for_each(|&file| files.unpin(file));
        assert_eq!((files.dead().collect::<Vec<_>>(), files.sparse_garbage()), (vec![all[1]], 39_900));
        files.unpin(all[0]);
        assert_eq!((files.dead().collect::<Vec<_>>(), files.is_pinned(all[0])), (all[..2].to_vec(), false));
    }
}
