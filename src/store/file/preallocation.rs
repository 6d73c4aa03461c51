//! Prepares the next segment in the background, so that a commit finds blocks that are written already.
//!
//! At most one segment is prepared ahead, by one thread. Where it is not ready when it is needed, the commit waits
//! for it or makes it itself. A full disk is not an error here but a state: it lasts until a later attempt succeeds.
//! A segment is made smaller where that makes it fit, and never of the last bytes of the disk: [`FREE_BYTES`] for acks
//! and for the next master, and what the next checkpoints take, since only they let go what was settled.

use std::path::{Path, PathBuf};

use super::journal::FIRST_SEGMENT_BYTES;
use super::segment::{SegmentHead, write_zeros};
use super::{io_error, is_full};
use crate::disk::helper::{Helper, Stage};
use crate::disk::{self, File};
use crate::store::StoreError;

/// Bytes of the disk that messages never take, besides those for checkpoints.
pub const FREE_BYTES: u64 = 4 << 20;
/// A segment that does not fit is tried at so many fractions of its size, each half of the one before.
const HALVINGS: u32 = 4;

/// A segment that is ready for entries.
#[derive(Debug)]
pub struct Prepared {
    /// Its head.
    pub head: SegmentHead,
    /// The file.
    pub file: File,
    /// Its bytes.
    pub bytes: u64,
}

/// A segment that is wanted: its head, its bytes, and those of the disk that are left alone.
type Request = (SegmentHead, u64, u64);

/// The thread that prepares segments, and what it has prepared.
#[derive(Debug)]
pub struct Preallocation {
    journal: PathBuf,
    thread: Helper<Request, Result<Prepared, StoreError>>,
    state: State,
    /// What the last attempt found.
    disk: Disk,
}

#[derive(Debug)]
enum State {
    Idle,
    Asked,
    Ready(Prepared),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    HasSpace,
    Full,
}

impl Preallocation {
    /// Starts the thread. It ends some time after this is dropped, or within [`end`](Self::end).
    ///
    /// # Errors
    /// Where there can be no further thread.
    pub fn start(journal: &Path) -> Result<Self, StoreError> {
        let folder = journal.to_owned();
        let work = move |(head, bytes, free_bytes): Request| prepare(head, &folder, bytes, free_bytes);
        let thread =
            Helper::start(journal, "preallocation", work).map_err(io_error("start a thread for", journal))?;
        let (journal, state, disk) = (journal.to_owned(), State::Idle, Disk::HasSpace);
        Ok(Self { journal, thread, state, disk })
    }

    /// Waits until what was asked for is done and the thread has ended: once the epoch is released, nothing of it may
    /// still be written.
    pub fn end(self) {
        // What the thread could not do is not needed any more.
        let _ = self.thread.end();
    }

    /// Asks for the next segment, unless it is there or was asked for. `free_bytes` of the disk are left alone.
    pub fn ask(&mut self, head: SegmentHead, bytes: u64, free_bytes: u64) {
        if matches!(self.state, State::Idle) && self.thread.give((head, bytes, free_bytes)).is_ok() {
            self.state = State::Asked;
        }
    }

    /// Whether the disk was too full for the next segment when it was last tried, and no attempt since has ended.
    ///
    /// # Errors
    /// Where preparing it failed in another way.
    pub fn is_full(&mut self) -> Result<bool, StoreError> {
        if matches!(self.state, State::Asked) {
            match self.thread.stage() {
                Stage::Answered => self.take_answer()?,
                Stage::Gone => self.state = State::Idle,
                Stage::Idle | Stage::UnderWay => {}
            }
        }
        Ok(self.disk == Disk::Full)
    }

    /// Bytes of the next segment, as far as it is there.
    pub const fn ready_bytes(&self) -> u64 {
        match &self.state {
            State::Ready(prepared) => prepared.bytes,
            State::Idle | State::Asked => 0,
        }
    }

    /// Waits for the answer to what was asked for.
    fn take_answer(&mut self) -> Result<(), StoreError> {
        let Some(answer) = self.thread.take() else {
            self.state = State::Idle;
            return Ok(());
        };
        (self.state, self.disk) = match answer {
            Ok(prepared) => (State::Ready(prepared), Disk::HasSpace),
            Err(StoreError::Full(_)) => (State::Idle, Disk::Full),
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// The next segment: at least `bytes_min` long, `bytes` where it is made only now. `free_bytes` of the disk are
    /// left alone.
    ///
    /// # Errors
    /// [`StoreError::Full`] where there is no space, and then nothing has changed; other errors are final.
    pub fn take(
        &mut self,
        head: SegmentHead,
        bytes: u64,
        bytes_min: u64,
        free_bytes: u64,
    ) -> Result<Prepared, StoreError> {
        if matches!(self.state, State::Asked) {
            self.take_answer()?;
        }
        if let State::Ready(prepared) = std::mem::replace(&mut self.state, State::Idle) {
            return self.grow(prepared, bytes_min, free_bytes);
        }
        for bytes in [bytes.max(bytes_min), bytes_min] {
            match head.create(&self.journal, bytes, free_bytes) {
                Err(StoreError::Full(_)) => {}
                made => return made.map(|file| Prepared { head, file, bytes }),
            }
        }
        self.disk = Disk::Full;
        Err(StoreError::Full(bytes_min))
    }

    /// Takes back a segment that was taken and not begun.
    pub fn give_back(&mut self, prepared: Prepared) {
        self.state = State::Ready(prepared);
    }

    /// Makes a prepared segment longer for a commit that is larger than it. Nobody else uses it yet.
    fn grow(
        &mut self,
        mut prepared: Prepared,
        bytes_min: u64,
        free_bytes: u64,
    ) -> Result<Prepared, StoreError> {
        if prepared.bytes >= bytes_min {
            return Ok(prepared);
        }
        let path = prepared.head.id.path(&self.journal);
        let free = disk::free(&self.journal).map_err(io_error("ask for the free space of", &self.journal))?;
        if free < (bytes_min - prepared.bytes).saturating_add(free_bytes) {
            self.give_back(prepared);
            return Err(StoreError::Full(bytes_min));
        }
        let grown =
            write_zeros(&prepared.file, prepared.bytes, bytes_min).and_then(|()| prepared.file.sync_all());
        match grown {
            Ok(()) => {
                prepared.bytes = bytes_min;
                Ok(prepared)
            }
            Err(error) if is_full(&error) => {
                // What it did get is needed by others.
                prepared.file.set_len(prepared.bytes).map_err(io_error("shorten", &path))?;
                self.give_back(prepared);
                Err(StoreError::Full(bytes_min))
            }
            Err(error) => Err(io_error("prepare", &path)(error)),
        }
    }
}

fn prepare(head: SegmentHead, journal: &Path, bytes: u64, free_bytes: u64) -> Result<Prepared, StoreError> {
    for halvings in 0..=HALVINGS {
        let bytes = (bytes >> halvings).max(bytes.min(FIRST_SEGMENT_BYTES));
        match head.create(journal, bytes, free_bytes) {
            Err(StoreError::Full(_)) => {}
            made => return made.map(|file| Prepared { head, file, bytes }),
        }
    }
    Err(StoreError::Full(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::{first_options, open_file};
    use crate::model::id::{Offset, TopicId};
    use crate::model::message::{Message, MessageBlock};
    use crate::model::name::Name;
    use crate::model::record::{Published, Record, Source};
    use crate::model::settings::TopicSettings;
    use crate::model::snapshot::Snapshot;
    use crate::model::time::Timestamp;
    use crate::model::topic_kind::TopicKind;
    use crate::store::Store;

    /// A master released its epoch while its thread still wrote a segment of 64 MiB, as if nothing of it could still
    /// be written.
    #[test]
    fn closing_ends_with_nothing_being_prepared() {
        let dir = tempfile::tempdir().unwrap();
        let options = first_options(dir.path(), 64 << 20);
        let (mut store, _) = open_file(&options).unwrap();
        let (topic, name) = (TopicId(0), Name::new("t").unwrap());
        store
            .commit(&[Record::TopicCreated {
                topic,
                name,
                kind: TopicKind::Named,
                settings: TopicSettings::default(),
            }])
            .unwrap();
        let block = MessageBlock::encode([&Message::new(vec![7; 900 << 10])]);
        for offset in 0..6 {
            let (targets, block) = (vec![(topic, Offset(offset))], block.clone());
            let published = Published { targets, source: Source::Broker, at: Timestamp(1), block };
            store.commit(&[Record::Published(published)]).unwrap();
        }
        let next = store.journal.segment().next().path(&dir.path().join("journal"));
        Box::new(store).close(&mut Snapshot::default, &mut || Ok(())).unwrap();
        assert!(next.exists() && !next.with_extension("new").exists());
    }
}
