//! Threads that read messages from the store beside the engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use super::inbox::{Inbox, Input};
use crate::broker::Read;
use crate::store::{Reader, Store, StoreError};

/// Threads that read. A topic is always read by the same one, so that it stays at its place.
const READER_COUNT: usize = 2;

/// The readers of a store.
///
/// The broker has a bounded number of reads under way, so the channels are bounded by it.
pub(super) struct Reading {
    readers: Vec<(Sender<Read>, JoinHandle<()>)>,
}

impl Reading {
    /// Starts the threads.
    pub(super) fn start(store: &dyn Store, inbox: &Arc<Inbox>) -> Result<Self, StoreError> {
        let mut readers = Vec::with_capacity(READER_COUNT);
        for number in 0..READER_COUNT {
            let (sender, reads) = channel::<Read>();
            let mut reader: Box<dyn Reader> = store.reader()?;
            let inbox = Arc::clone(inbox);
            let thread = thread::Builder::new()
                .name(format!("reader-{number}"))
                .spawn(move || {
                    for read in reads {
                        let answer = catch_unwind(AssertUnwindSafe(|| {
                            reader.read(read.topic, read.from, read.bytes_max)
                        }));
                        let answer = answer.unwrap_or_else(|_| Err(panicked()));
                        inbox.put(Input::Loaded(read, answer));
                    }
                })
                .map_err(|source| StoreError::Io {
                    action: "start a thread for",
                    path: "reader".into(),
                    source,
                })?;
            readers.push((sender, thread));
        }
        Ok(Self { readers })
    }

    /// Has something read; the answer comes into the inbox.
    pub(super) fn start_read(&self, read: Read) {
        let (reader, _) = &self.readers[read.topic.0 as usize % self.readers.len()];
        // A reader ends only with this.
        let _ = reader.send(read);
    }

    /// Ends the threads, so that nothing of this process has the store open when it is closed.
    pub(super) fn stop(self) {
        for (sender, thread) in self.readers {
            drop(sender);
            // One that has panicked has closed its reader all the same.
            let _ = thread.join();
        }
    }
}

/// What a reader that panics answers with: a bug, after which the engine must not go on as if nothing were.
fn panicked() -> StoreError {
    let source = std::io::Error::other("the reader has panicked");
    StoreError::Io { action: "read messages of", path: "the store".into(), source }
}
