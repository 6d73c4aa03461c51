//! Large blocks that are written ahead of the commits that will hold them, each into a pack of its own.
//!
//! A thread writes and syncs them, beside the commits. The commit of a block then has only the heads of its pack to
//! write, and names the pack in its own entry; readers find the messages as in any other pack. A block that no commit
//! takes leaves nothing behind, and one that found no space is written by its commit.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::block_pack::BlockPack;
use super::file_id::FileId;
use super::pack::Pack;
use super::{Shared, io_error};
use crate::disk::helper::{Helper, Stage};
use crate::model::id::Epoch;
use crate::model::record::{Published, Record};
use crate::store::StoreError;
use crate::store::codec::Elsewhere;

/// Whom to tell that a block is written.
type Word = Box<dyn FnOnce() + Send>;

/// A block on its way from the thread to its commit.
#[derive(Debug)]
struct Staged {
    block: Bytes,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Written; which messages it has is not known yet.
    Written(BlockPack),
    /// A commit is under way that has it, or was tried and is tried again.
    Complete(Pack, u32),
}

/// A record whose messages are in a pack of their own.
#[derive(Clone, Debug)]
pub struct Complete {
    /// Index of the record in its commit.
    pub index: usize,
    /// What the commit says of the pack.
    pub elsewhere: Elsewhere,
    /// CRC32C of the messages.
    pub checksum: u32,
    /// The pack.
    pub pack: Pack,
}

/// A block that is to be written.
struct Job {
    block: Bytes,
    pack: FileId,
    staged: Word,
}

#[derive(Debug, Default)]
struct Results {
    staged: Vec<Staged>,
    /// What went wrong; the store goes no further.
    failure: Option<StoreError>,
}

/// The thread, and what it has written.
#[derive(Debug)]
pub struct Staging {
    epoch: Epoch,
    results: Arc<Mutex<Results>>,
    /// Its answers say nothing: what it writes is among the results before `staged` is called.
    thread: Helper<Job, ()>,
}

impl Staging {
    /// Starts the thread. It ends some time after this is dropped, or within [`end`](Self::end).
    ///
    /// # Errors
    /// Where there can be no further thread.
    pub fn start(shared: &Shared, epoch: Epoch) -> Result<Self, StoreError> {
        let results = Arc::new(Mutex::new(Results::default()));
        let (journal, noted) = (shared.journal.clone(), Arc::clone(&results));
        let work = move |Job { block, pack, staged }: Job| {
            // Written before anything is locked: commits look at the results meanwhile.
            let written = BlockPack::write(&journal, pack, &block);
            note(&mut lock(&noted), block, written);
            staged();
        };
        let thread = Helper::start(&shared.journal, "staging", work)
            .map_err(io_error("start a thread for", &shared.journal))?;
        Ok(Self { epoch, results, thread })
    }

    /// Has a block written. As many may wait as there are sessions: each has one at a time.
    pub fn stage(&self, shared: &Shared, block: Bytes, staged: Word) {
        let job = Job { block, pack: shared.new_pack(self.epoch), staged };
        if let Err(refused) = self.thread.give(job) {
            // The thread is gone, which the next call tells; nobody is to wait for it.
            (refused.staged)();
        }
    }

    /// Refuses to go on where something has failed; the error is told once.
    ///
    /// # Errors
    /// Where something has failed.
    pub fn check(&self, journal: &Path) -> Result<(), StoreError> {
        if let Some(failure) = lock(&self.results).failure.take() {
            return Err(failure);
        }
        while self.thread.try_take().is_some() {}
        if self.thread.stage() == Stage::Gone {
            let gone = std::io::Error::other("the thread that writes large messages is gone");
            return Err(io_error("go on with", journal)(gone));
        }
        Ok(())
    }

    /// Completes the packs of those records whose blocks were staged, in the order of the records.
    ///
    /// # Errors
    /// [`StoreError::Full`] where there is no space, with nothing changed; other errors are final.
    pub fn complete(&self, records: &[Record]) -> Result<Vec<Complete>, StoreError> {
        // Taken out meanwhile: the thread is not to wait for what is written here.
        let mut staged = std::mem::take(&mut lock(&self.results).staged);
        if staged.is_empty() {
            return Ok(Vec::new());
        }
        let complete = complete_among(&mut staged, records);
        lock(&self.results).staged.append(&mut staged);
        complete
    }

    /// Bytes of a block that are written.
    #[must_use]
    pub fn bytes_of(&self, block: &Bytes) -> u64 {
        let results = lock(&self.results);
        let staged = results.staged.iter().find(|staged| is_at(&staged.block, block));
        staged.map_or(0, |staged| staged.block.len() as u64)
    }

    /// Forgets a block: its commit is durable, or there will be none.
    ///
    /// # Errors
    /// Where the file of one that has no commit cannot be removed.
    pub fn forget(&self, block: &Bytes) -> Result<(), StoreError> {
        let forgotten = {
            let mut results = lock(&self.results);
            let at = results.staged.iter().position(|staged| is_at(&staged.block, block));
            at.map(|at| results.staged.swap_remove(at).place)
        };
        match forgotten {
            Some(Place::Written(written)) => written.abandon(),
            Some(Place::Complete(..)) | None => Ok(()),
        }
    }

    /// Waits until the thread has ended: once the epoch is released, nothing of it may still be written.
    pub fn end(self) {
        // What the thread could not do is not needed any more.
        let _ = self.thread.end();
    }
}

/// Completes the packs of those records whose blocks are among those that were staged.
fn complete_among(all: &mut Vec<Staged>, records: &[Record]) -> Result<Vec<Complete>, StoreError> {
    let mut complete = Vec::new();
    for (index, record) in records.iter().enumerate() {
        let Record::Published(published) = record else { continue };
        let Some(at) = all.iter().position(|staged| is_same(&staged.block, published)) else {
            continue;
        };
        let Staged { block, place } = all.swap_remove(at);
        let (pack, checksum) = match place {
            Place::Written(written) => {
                let checksum = written.checksum();
                let Some(pack) = written.finish(published)? else { continue };
                (pack, checksum)
            }
            Place::Complete(pack, checksum) => (pack, checksum),
        };
        let place = Place::Complete(pack.clone(), checksum);
        all.push(Staged { block, place });
        let elsewhere = Elsewhere { pack: pack.id.number, index: pack.index, bytes: pack.bytes };
        complete.push(Complete { index, elsewhere, checksum, pack });
    }
    Ok(complete)
}

fn note(results: &mut Results, block: Bytes, written: Result<BlockPack, StoreError>) {
    match written {
        Ok(written) => results.staged.push(Staged { block, place: Place::Written(written) }),
        Err(StoreError::Full(_)) => {}
        Err(error) => results.failure = Some(error),
    }
}

fn is_same(block: &Bytes, published: &Published) -> bool {
    is_at(block, published.block.bytes())
}

/// Whether both are the same memory. A block that is staged is held, so nothing else can lie there meanwhile.
fn is_at(one: &Bytes, other: &Bytes) -> bool {
    one.as_ptr() == other.as_ptr() && one.len() == other.len()
}

fn lock(results: &Mutex<Results>) -> MutexGuard<'_, Results> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use rustix::fs::{FileType, Mode};

    use super::super::{first_options, open_file};
    use super::*;
    use crate::model::id::ProducerId;
    use crate::store::Store;

    /// The results were locked while a block was written, so that every commit waited for the whole of a large message:
    /// what staging is there to prevent.
    #[test]
    fn commits_do_not_wait_for_a_block_that_is_being_written() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open_file(&first_options(dir.path(), 1 << 20)).unwrap();
        // Whoever opens this to write waits until somebody reads it.
        let path = FileId::pack(Epoch(1), 1).path(&dir.path().join("journal"));
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let (staged, is_staged) = channel();
        store.stage(Bytes::from_static(b"block"), Box::new(move || staged.send(()).unwrap()));
        let (committed, commits) = channel();
        let committing = std::thread::spawn(move || {
            let record = Record::ProducerExpired { producer: ProducerId(1) };
            for _ in 0..100 {
                store.commit(std::slice::from_ref(&record)).unwrap();
            }
            committed.send(()).unwrap();
        });
        let in_time = commits.recv_timeout(Duration::from_secs(10));
        assert!(is_staged.try_recv().is_err(), "it is still being written");
        drop(File::open(&path).unwrap());
        committing.join().unwrap();
        in_time.unwrap();
    }
}
