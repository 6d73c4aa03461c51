//! Backups of the running store: an archive, handed out part by part as the client asks.
//!
//! The engine gives an image between two commits, which takes no longer than a commit; everything else happens on a
//! thread of the backup's own, which reads beside the commits and writes the archive into the parts that are asked for.
//! So a client that is slow, or goes away, holds nobody up. But while an image is alive the store keeps what is in it,
//! so there are few at a time, each belongs to a connection and ends with it, and one whose client asks for nothing
//! ends by itself.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::Engine;
use crate::model::limits::{BACKUP_IDLE_SECONDS, BACKUP_PART_BYTES, BACKUPS_MAX};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::RequestId;
use crate::protocol::response::{Reply, Response};
use crate::store::archive::{self, ArchiveError, Origin};

/// Tells the client something.
type Respond = Box<dyn Fn(Response) + Send>;

/// A question for the part that begins at this byte of the archive.
#[derive(Clone, Copy, Debug)]
struct Ask {
    request: RequestId,
    from: u64,
}

/// The backup of a connection. It ends when this is dropped.
#[derive(Debug)]
pub struct Backup {
    desk: Arc<Desk>,
    place: Arc<Place>,
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.desk.lock().client_gone = true;
        self.desk.changed.notify_one();
        // Its thread ends in a moment; whoever comes next need not wait for that.
        self.place.free();
    }
}

/// Where the client's question waits for the thread: one at a time.
#[derive(Debug, Default)]
struct Desk {
    state: Mutex<Asked>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Asked {
    waiting: Option<Ask>,
    client_gone: bool,
    /// Nothing is answered any more.
    ended: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next question.
    fn wait(&self) -> io::Result<Ask> {
        let idle = Duration::from_secs(BACKUP_IDLE_SECONDS);
        let nothing = |asked: &mut Asked| asked.waiting.is_none() && !asked.client_gone;
        let waited = self.changed.wait_timeout_while(self.lock(), idle, nothing);
        let (mut asked, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if asked.client_gone {
            return Err(io::Error::new(ErrorKind::BrokenPipe, "the client is gone"));
        }
        asked
            .waiting
            .take()
            .ok_or_else(|| io::Error::new(ErrorKind::TimedOut, "the client has asked for nothing more"))
    }

    /// Ends the answers. A question that has just come is answered by whoever ends them.
    fn end(&self) -> Option<Ask> {
        let mut asked = self.lock();
        asked.ended = true;
        asked.waiting.take()
    }
}

/// The place of a backup among those of the engine.
#[derive(Debug)]
struct Place {
    running: Arc<AtomicU64>,
    freed: AtomicBool,
}

impl Place {
    fn take(running: &Arc<AtomicU64>) -> Option<Arc<Self>> {
        let more = |count: u64| (count < BACKUPS_MAX as u64).then_some(count + 1);
        running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Arc::new(Self { running: Arc::clone(running), freed: AtomicBool::new(false) }))
    }

    /// Gives it back, once, whoever of connection and thread ends first.
    fn free(&self) {
        if !self.freed.swap(true, Ordering::Relaxed) {
            self.running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Backup {
    /// Begins a backup; `running` counts those of the engine. Nothing is read before it is [asked](Self::ask).
    ///
    /// # Errors
    /// Where there are as many as there may be.
    pub(super) fn begin(
        engine: Engine,
        origin: Origin,
        running: &Arc<AtomicU64>,
        respond: Respond,
    ) -> Result<Self, Refusal> {
        let too_many = || {
            let text =
                format!("{BACKUPS_MAX} backups are under way, as many as there may be: wait for one to end");
            Refusal::new(ErrorCode::Limit, text)
        };
        let place = Place::take(running).ok_or_else(too_many)?;
        let desk = Arc::<Desk>::default();
        let backup = Self { desk: Arc::clone(&desk), place: Arc::clone(&place) };
        let spawned = thread::Builder::new().name("backup".into()).spawn(move || {
            produce(&engine, &origin, Parts { desk, respond, part: Vec::new(), sent: 0 });
            place.free();
        });
        match spawned {
            Ok(_) => Ok(backup),
            Err(error) => {
                Err(Refusal::new(ErrorCode::Limit, format!("no thread can be started for a backup: {error}")))
            }
        }
    }

    /// Asks for the part that begins at the byte `from`. The answer comes when it is there.
    ///
    /// # Errors
    /// Where the backup has ended, or the client does not wait for its answers.
    pub fn ask(&self, request: RequestId, from: u64) -> Result<(), Refusal> {
        let mut asked = self.desk.lock();
        if asked.ended {
            return Err(none_under_way());
        }
        if asked.waiting.is_some() {
            let text = "ask for the next part when the one before has come";
            return Err(Refusal::new(ErrorCode::Invalid, text));
        }
        asked.waiting = Some(Ask { request, from });
        self.desk.changed.notify_one();
        Ok(())
    }
}

/// What a client hears that goes on with a backup which is not there.
#[must_use]
pub fn none_under_way() -> Refusal {
    let text = "no backup is under way on this connection, or it has ended: begin a new one, from byte 0";
    Refusal::new(ErrorCode::Invalid, text)
}

/// How the writing of an archive has ended.
enum Ended {
    Whole,
    /// The client did not want the rest.
    Early,
}

fn produce(engine: &Engine, origin: &Origin, mut parts: Parts) {
    let image = engine.image();
    let written = image.map_err(|error| error.to_string()).and_then(|mut image| {
        tracing::info!("a backup begins");
        match archive::write(image.as_mut(), origin, &mut parts) {
            Ok(digest) => {
                tracing::info!(messages = digest.messages(), bytes = digest.bytes(), "a backup is complete");
                Ok(Ended::Whole)
            }
            Err(ArchiveError::Write(error)) => {
                tracing::info!(%error, "a backup has ended early");
                Ok(Ended::Early)
            }
            Err(error) => Err(error.to_string()),
        }
    });
    match written {
        Ok(Ended::Whole) => parts.end(),
        Ok(Ended::Early) => {}
        Err(text) => {
            tracing::warn!(error = text, "a backup has failed");
            parts.fail(&text);
        }
    }
}

/// Which part of an archive it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// One that is full; another one follows.
    Full,
    Last,
}

/// The archive, cut into the parts that the client asks for.
struct Parts {
    desk: Arc<Desk>,
    respond: Respond,
    part: Vec<u8>,
    /// Bytes in the parts before.
    sent: u64,
}

impl Parts {
    /// Waits until the client wants the next part.
    fn wait(&self) -> io::Result<Ask> {
        let ask = self.desk.wait()?;
        if ask.from != self.sent {
            let text = format!("the next part begins at byte {}, not {}", self.sent, ask.from);
            self.refuse(ask.request, Refusal::new(ErrorCode::Invalid, text.clone()));
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        Ok(ask)
    }

    fn send(&mut self, which: Part) -> io::Result<()> {
        let ask = self.wait()?;
        let bytes = Bytes::from(std::mem::take(&mut self.part));
        self.sent += bytes.len() as u64;
        (self.respond)(Response::Reply(
            ask.request,
            Ok(Reply::BackupPart { last: which == Part::Last, bytes }),
        ));
        Ok(())
    }

    /// Hands out the last part.
    fn end(&mut self) {
        if let Err(error) = self.send(Part::Last) {
            tracing::debug!(%error, "the last part of a backup was not asked for");
        }
    }

    fn fail(&self, text: &str) {
        if let Ok(ask) = self.wait() {
            self.refuse(ask.request, Refusal::new(ErrorCode::BackupFailed, text));
        }
    }

    fn refuse(&self, request: RequestId, refusal: Refusal) {
        (self.respond)(Response::Reply(request, Err(refusal)));
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if let Some(ask) = self.desk.end() {
            self.refuse(ask.request, none_under_way());
        }
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.part.len() == BACKUP_PART_BYTES {
            self.send(Part::Full)?;
        }
        let taken = bytes.len().min(BACKUP_PART_BYTES - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// What an image keeps on the disk is kept no longer than until its client is gone: not for all the time that one
    /// who is there may take.
    #[test]
    fn whoever_waits_for_a_client_that_goes_is_told_at_once() {
        let desk = Arc::<Desk>::default();
        let running = Arc::<AtomicU64>::default();
        let place = Place::take(&running).unwrap();
        let backup = Backup { desk: Arc::clone(&desk), place };
        let begun = Instant::now();
        let waiting = thread::spawn(move || desk.wait());
        drop(backup);
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert!(begun.elapsed() < Duration::from_secs(BACKUP_IDLE_SECONDS));
        assert_eq!(running.load(Ordering::Relaxed), 0);
    }
}
