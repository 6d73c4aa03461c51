//! Threads that read messages from the store beside the engine.
//!
//! While a commit takes long the engine takes nothing, and a read brings at least one message whatever its size. So
//! what is read and not taken is bounded, over all readers: beyond it they wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::inbox::{Inbox, Input};
use crate::broker::Read;
use crate::disk::helper::Helper;
use crate::model::chunk::Chunk;
use crate::model::limits::LOADED_BYTES_MAX;
use crate::store::{Reader, Store, StoreError, Unreadable};

/// Threads that read. A topic is always read by the same one, so that it stays at its place.
const READERS: [&str; 2] = ["reader-0", "reader-1"];

/// What came of a read; a reader that panics answers with the outer error.
pub(super) type Answer = Result<Result<Option<Chunk>, Unreadable>, StoreError>;

/// The readers of a store.
///
/// The broker has a bounded number of reads under way, so what waits for them is bounded by it.
pub(super) struct Reading {
    /// Their answers say nothing: what they have read goes to the inbox.
    readers: Vec<Helper<Read, ()>>,
    gate: Arc<Gate>,
}

/// Holds readers back while the engine has not taken what they have read.
#[derive(Debug, Default)]
struct Gate {
    passed: Mutex<Passed>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Passed {
    /// Bytes read and not taken.
    bytes: u64,
    /// Nobody takes anything any more.
    closed: bool,
}

/// What was read and not taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Loaded {
    gate: Arc<Gate>,
    bytes: u64,
}

impl Passed {
    fn is_full(&self) -> bool {
        self.bytes >= LOADED_BYTES_MAX && !self.closed
    }
}

impl Gate {
    /// Waits until something may be read. `None` where nothing is wanted any more.
    fn wait(&self) -> Option<()> {
        let passed = self.changed.wait_while(self.lock(), |passed| passed.is_full());
        let passed = passed.unwrap_or_else(PoisonError::into_inner);
        (!passed.closed).then_some(())
    }

    fn pass(self: &Arc<Self>, answer: &Answer) -> Loaded {
        let chunk = answer.as_ref().ok().and_then(|read| read.as_ref().ok()?.as_ref());
        let bytes = chunk.map_or(0, |chunk| chunk.block.bytes().len() as u64);
        self.lock().bytes += bytes;
        Loaded { gate: Arc::clone(self), bytes }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Passed> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.gate.lock().bytes -= self.bytes;
            self.gate.changed.notify_all();
        }
    }
}

impl Reading {
    /// Starts the threads, for the store at `place`.
    pub(super) fn start(store: &dyn Store, place: &Path, inbox: &Arc<Inbox>) -> Result<Self, StoreError> {
        let mut readers = Vec::with_capacity(READERS.len());
        let gate = Arc::new(Gate::default());
        for name in READERS {
            let mut reader: Box<dyn Reader> = store.reader()?;
            let (inbox, gate) = (Arc::clone(inbox), Arc::clone(&gate));
            let work = move |read: Read| {
                if gate.wait().is_none() {
                    return;
                }
                let answer =
                    catch_unwind(AssertUnwindSafe(|| reader.read(read.topic, read.from, read.bytes_max)));
                let answer = answer.map_err(|_| panicked());
                let loaded = gate.pass(&answer);
                inbox.put(Input::Loaded(read, answer, loaded));
            };
            readers.push(Helper::start(place, name, work).map_err(|source| StoreError::Io {
                action: "start a thread for",
                path: name.into(),
                source,
            })?);
        }
        Ok(Self { readers, gate })
    }

    /// Has something read; the answer comes into the inbox.
    pub(super) fn start_read(&self, read: Read) {
        let reader = &self.readers[read.topic.0 as usize % self.readers.len()];
        // A reader ends only with this.
        let _ = reader.give(read);
    }

    /// Ends the threads, so that nothing of this process has the store open when it is closed.
    pub(super) fn stop(self) {
        self.gate.close();
        for reader in self.readers {
            // One that has panicked has closed its reader all the same.
            let _ = reader.end();
        }
    }
}

/// What a reader that panics answers with: a bug, after which the engine must not go on as if nothing were.
fn panicked() -> StoreError {
    let source = std::io::Error::other("the reader has panicked");
    StoreError::Io { action: "read messages of", path: "the store".into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Offset;
    use crate::model::message::{Message, MessageBlock};
    use std::thread;

    fn answer(bytes: usize) -> Answer {
        let block = MessageBlock::encode(&[Message::new(vec![0; bytes])]);
        Ok(Ok(Some(Chunk { first: Offset(0), block, stamps: Vec::new() })))
    }

    #[test]
    fn a_reader_waits_until_what_it_read_was_taken() {
        let gate = Arc::new(Gate::default());
        let small = gate.pass(&answer(10));
        assert!(gate.wait().is_some());
        let large = gate.pass(&answer(LOADED_BYTES_MAX as usize));
        let waiting = Arc::clone(&gate);
        let waiter = thread::spawn(move || waiting.wait());
        drop(small);
        assert!(gate.lock().is_full() && !waiter.is_finished());
        drop(large);
        assert!(waiter.join().unwrap().is_some());
        assert_eq!(gate.lock().bytes, 0);
    }

    #[test]
    fn nobody_waits_at_a_gate_that_is_closed() {
        let gate = Arc::new(Gate::default());
        let _large = gate.pass(&answer(LOADED_BYTES_MAX as usize));
        let waiting = Arc::clone(&gate);
        let waiter = thread::spawn(move || waiting.wait());
        gate.close();
        assert!(waiter.join().unwrap().is_none());
    }
}
