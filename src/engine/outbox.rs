//! What waits to be sent to one connection, and the short way past the queue.
//!
//! The engine writes to the socket itself while the socket takes everything: a confirm then costs no switch to
//! another thread. What the socket does not take is queued, and the connection's own task sends it. The queue is
//! bounded by the engine, which hands out nothing more to a connection whose outbox is [full](Outbox::is_full), and
//! by the connection's task, which then reads no more requests. What waits there is in memory of its own: a message
//! may be a small part of what it was read or published with, and a client that reads slowly would hold all of that.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::memory::{Holding, Memory};

/// Pieces handed to the system in one call.
const PIECES_PER_WRITE: usize = 64;
/// Pieces of at least so many bytes wait where they are: they are no small part of what a read brings.
const SHARED_BYTES_MIN: usize = 64 << 10;
/// Calls in a row by the connection's task, which the engine has to wait for if it wants to send meanwhile.
const WRITES_PER_TURN: usize = 4;

/// Output of one connection.
#[derive(Debug)]
pub struct Outbox {
    way: Way,
    queue: Mutex<Queue>,
    /// Something was queued, or the outbox was closed.
    changed: Notify,
    /// The outbox is not full any more.
    drained: Notify,
    bytes_max: usize,
    /// The bytes of the queue.
    held: Holding,
    /// Given back with the socket: the engine may hold that longer than the connection's task.
    _place: Option<OwnedSemaphorePermit>,
}

/// Where the output goes.
#[derive(Debug)]
enum Way {
    Socket(OwnedWriteHalf),
    /// It is kept here until somebody takes it.
    Kept(Mutex<Vec<u8>>),
}

impl Way {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.try_write_vectored(slices),
            Self::Kept(kept) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                slices.iter().for_each(|slice| kept.extend_from_slice(slice));
                Ok(slices.iter().map(|slice| slice.len()).sum())
            }
        }
    }

    async fn writable(&self) {
        if let Self::Socket(socket) = self {
            // A failed socket shows itself in the next write.
            let _ = socket.writable().await;
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// Whether the engine was told that the outbox is full, and not yet that it is ready.
    full: bool,
    closing: Closing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Closing {
    #[default]
    Open,
    /// Close when everything is sent.
    WhenSent,
    /// The socket has failed or the connection has ended: drop everything.
    Dead,
}

/// What became of a [send](Outbox::send).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way; more may follow.
    Ready,
    /// It is on its way, and the outbox has just become full. Said once: whoever is told must tell the broker.
    Full,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// Nothing is left, or the socket has failed.
    All,
    /// The socket takes no more for now.
    Blocked,
    /// The socket may take more.
    Some,
}

impl Outbox {
    /// The outbox of a connection that shares `memory` with others, full at `bytes_max` bytes that the socket has not
    /// taken, or at its share while memory is scarce.
    #[must_use]
    pub fn new(socket: OwnedWriteHalf, bytes_max: usize, memory: &Arc<Memory>) -> Self {
        Self::on(Way::Socket(socket), bytes_max, memory)
    }

    /// An outbox without a connection: what is sent is kept until it is [taken](Self::take_kept). It is never full.
    #[must_use]
    pub fn keeping(memory: &Arc<Memory>) -> Self {
        Self::on(Way::Kept(Mutex::default()), usize::MAX, memory)
    }

    /// What was sent and is kept. Nothing where the output goes to a socket.
    #[must_use]
    pub fn take_kept(&self) -> Vec<u8> {
        match &self.way {
            Way::Socket(_) => Vec::new(),
            Way::Kept(kept) => std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn on(way: Way, bytes_max: usize, memory: &Arc<Memory>) -> Self {
        Self {
            way,
            queue: Mutex::default(),
            changed: Notify::new(),
            drained: Notify::new(),
            bytes_max,
            held: Holding::of(memory),
            _place: None,
        }
    }

    /// Keeps the place that was taken for the socket until the socket is closed.
    #[must_use]
    pub fn with_place(self, place: OwnedSemaphorePermit) -> Self {
        Self { _place: Some(place), ..self }
    }

    /// Sends the pieces behind everything sent before. Never waits. Empties `pieces`.
    pub fn send(&self, pieces: &mut Vec<Bytes>) -> Sent {
        let mut queue = self.lock();
        if queue.closing != Closing::Open {
            pieces.clear();
            return Sent::Ready;
        }
        let was_idle = queue.pieces.is_empty();
        let waited = queue.pieces.len();
        queue.bytes += pieces.iter().map(Bytes::len).sum::<usize>();
        queue.pieces.extend(pieces.drain(..));
        if was_idle {
            self.write(&mut queue, usize::MAX);
        }
        self.held.set(queue.bytes as u64);
        if queue.pieces.is_empty() {
            return Sent::Ready;
        }
        queue.keep_from(waited);
        if was_idle {
            self.changed.notify_one();
        }
        if queue.bytes > self.bound() && !queue.full {
            queue.full = true;
            return Sent::Full;
        }
        Sent::Ready
    }

    /// Sends what is queued as the socket takes it. Answers when the outbox was closed and everything is sent, or
    /// the socket failed. `ready` is called each time a full outbox has drained.
    pub async fn run(&self, ready: impl Fn()) {
        loop {
            let changed = self.changed.notified();
            let (written, closing) = {
                let mut queue = self.lock();
                let written = self.write(&mut queue, WRITES_PER_TURN);
                self.held.set(queue.bytes as u64);
                if queue.full && queue.bytes <= self.bound() / 2 {
                    queue.full = false;
                    self.drained.notify_waiters();
                    ready();
                }
                (written, queue.closing)
            };
            match (closing, written) {
                (Closing::Dead, _) | (Closing::WhenSent, Written::All) => return,
                (Closing::Open, Written::All) => changed.await,
                (_, Written::Some) => tokio::task::yield_now().await,
                (_, Written::Blocked) => {
                    tokio::select! {
                        () = self.way.writable() => {}
                        () = changed => {}
                    }
                }
            }
        }
    }

    /// Waits while the outbox is full. Cancel-safe: it changes nothing.
    pub async fn available(&self) {
        loop {
            let drained = self.drained.notified();
            if !self.lock().full {
                return;
            }
            drained.await;
        }
    }

    /// Whether nothing more should be handed out to the connection.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lock().full
    }

    /// What may be sent by all that share the memory.
    #[must_use]
    pub(super) fn room(&self) -> u64 {
        self.held.memory().room()
    }

    /// Whether the socket has taken everything so far.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.lock().pieces.is_empty()
    }

    /// Bytes that the socket has not taken.
    #[cfg(test)]
    pub(super) fn queued_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Ends the outbox when everything in it is sent.
    pub fn close_when_sent(&self) {
        let mut queue = self.lock();
        if queue.closing == Closing::Open {
            queue.closing = Closing::WhenSent;
        }
        drop(queue);
        self.changed.notify_one();
    }

    /// Ends the outbox at once and drops what is in it.
    pub fn close(&self) {
        self.die(&mut self.lock());
    }

    /// Bytes at which it is full.
    fn bound(&self) -> usize {
        usize::try_from(self.held.memory().bound(self.bytes_max as u64)).unwrap_or(usize::MAX)
    }

    /// Drops everything, and wakes whoever waits for the outbox.
    fn die(&self, queue: &mut Queue) {
        *queue = Queue { closing: Closing::Dead, ..Queue::default() };
        self.held.set(0);
        self.drained.notify_waiters();
        self.changed.notify_one();
    }

    /// Writes until the socket takes no more or the queue is empty, in at most so many calls.
    fn write(&self, queue: &mut Queue, calls_max: usize) -> Written {
        for _ in 0..calls_max {
            if queue.pieces.is_empty() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); PIECES_PER_WRITE];
            let count = queue.pieces.len().min(PIECES_PER_WRITE);
            for (slice, piece) in slices.iter_mut().zip(&queue.pieces) {
                *slice = IoSlice::new(piece);
            }
            match self.way.try_write(&slices[..count]) {
                Ok(written) if written > 0 => queue.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Written::Blocked,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => self.die(queue),
            }
        }
        if queue.pieces.is_empty() { Written::All } else { Written::Some }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Gives the pieces from this one on memory of their own, where they may be a small part of another one.
    fn keep_from(&mut self, index: usize) {
        for piece in self.pieces.range_mut(index..) {
            if piece.len() < SHARED_BYTES_MIN {
                *piece = Bytes::copy_from_slice(piece);
            }
        }
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(piece) = self.pieces.front_mut() {
            if piece.len() > written {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);
    const BYTES_MAX: usize = 1 << 20;

    /// An outbox and the client that it sends to.
    async fn connected() -> (Arc<Outbox>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, client) = tokio::join!(listener.accept(), client);
        let (read, write) = accepted.unwrap().0.into_split();
        // The reading half would end the connection for good when it is dropped with the writing one.
        drop(read);
        (Arc::new(Outbox::new(write, BYTES_MAX, &Memory::new(u64::MAX))), client.unwrap())
    }

    fn piece(number: usize, len: usize) -> Bytes {
        (0..len).map(|at| (number * 31 + at) as u8).collect::<Vec<_>>().into()
    }

    /// Sends pieces until the outbox says that it is full; answers all bytes sent.
    fn fill(outbox: &Outbox) -> Vec<u8> {
        let mut sent = Vec::new();
        for number in 0.. {
            let pieces = [piece(number, 70_000), piece(number + 1, 3)];
            pieces.iter().for_each(|piece| sent.extend_from_slice(piece));
            if outbox.send(&mut pieces.to_vec()) == Sent::Full {
                break;
            }
            assert!(sent.len() < 1 << 30, "never full");
        }
        sent
    }

    fn running(outbox: &Arc<Outbox>) -> (tokio::task::JoinHandle<()>, Arc<AtomicUsize>) {
        let (outbox, ready) = (Arc::clone(outbox), Arc::new(AtomicUsize::new(0)));
        let told = Arc::clone(&ready);
        let ready_now = move || {
            told.fetch_add(1, Ordering::SeqCst);
        };
        (tokio::spawn(async move { outbox.run(ready_now).await }), ready)
    }

    async fn in_time<T>(waiting: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, waiting).await.expect("this takes too long")
    }

    #[test]
    fn a_queue_forgets_exactly_what_was_written() {
        let all: Vec<u8> = (0..100).collect();
        for written in 0..=all.len() {
            let pieces = [&all[..1], &all[1..40], &all[40..41], &all[41..]];
            let mut queue =
                Queue { pieces: pieces.map(Bytes::copy_from_slice).into(), bytes: 100, ..Queue::default() };
            queue.advance(written);
            let left: Vec<u8> = queue.pieces.iter().flatten().copied().collect();
            assert_eq!((left, queue.bytes), (all[written..].to_vec(), 100 - written));
            assert!(queue.pieces.iter().all(|piece| !piece.is_empty()));
        }
    }

    #[tokio::test]
    async fn what_the_socket_takes_needs_nobody_to_send_it() {
        let (outbox, mut client) = connected().await;
        assert_eq!(outbox.send(&mut vec![piece(1, 10), piece(2, 20)]), Sent::Ready);
        assert!(outbox.is_idle());
        let mut read = [0; 30];
        in_time(client.read_exact(&mut read)).await.unwrap();
        assert_eq!(read[..10], piece(1, 10));
        assert_eq!(read[10..], piece(2, 20));
    }

    #[tokio::test]
    async fn a_full_outbox_says_so_once_and_is_ready_once_it_has_drained() {
        let (outbox, mut client) = connected().await;
        let (run, ready) = running(&outbox);
        for round in 1..=3 {
            let mut sent = fill(&outbox);
            assert!(outbox.is_full() && !outbox.is_idle());
            // Told once, whoever sends the next.
            sent.extend_from_slice(&piece(7, 9));
            assert_eq!(outbox.send(&mut vec![piece(7, 9)]), Sent::Ready);
            let mut read = vec![0; sent.len()];
            in_time(async { tokio::join!(client.read_exact(&mut read), outbox.available()) })
                .await
                .0
                .unwrap();
            assert!(read == sent, "what came is not what was sent");
            assert!(!outbox.is_full());
            assert_eq!(ready.load(Ordering::SeqCst), round);
        }
        outbox.close_when_sent();
        in_time(run).await.unwrap();
    }

    /// A slow consumer of every hundredth message held all of them, and was counted for its own.
    #[tokio::test]
    async fn what_waits_for_a_slow_client_holds_no_other_memory() {
        let (outbox, mut client) = connected().await;
        let (run, _) = running(&outbox);
        let chunks: Vec<Bytes> = (0..64).map(|number| piece(number, 256 << 10)).collect();
        let mut sent = fill(&outbox);
        for chunk in &chunks {
            sent.extend_from_slice(&chunk[5_000..9_000]);
            outbox.send(&mut vec![chunk.slice(5_000..9_000)]);
        }
        assert!(!outbox.is_idle() && chunks.iter().all(Bytes::is_unique));
        let mut read = vec![0; sent.len()];
        in_time(client.read_exact(&mut read)).await.unwrap();
        assert!(read == sent, "what came is not what was sent");
        outbox.close_when_sent();
        in_time(run).await.unwrap();
    }

    #[tokio::test]
    async fn an_outbox_that_closes_sends_what_it_has_and_takes_nothing_more() {
        let (outbox, mut client) = connected().await;
        let (run, _) = running(&outbox);
        let sent = fill(&outbox);
        outbox.close_when_sent();
        assert_eq!(outbox.send(&mut vec![piece(1, 5)]), Sent::Ready);
        let mut read = vec![0; sent.len()];
        in_time(client.read_exact(&mut read)).await.unwrap();
        assert!(read == sent);
        in_time(run).await.unwrap();
        drop(outbox);
        assert_eq!(in_time(client.read(&mut [0; 9])).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_closed_outbox_lets_everybody_go_who_waits_for_it() {
        let (outbox, _client) = connected().await;
        let (run, ready) = running(&outbox);
        fill(&outbox);
        let waiting = Arc::clone(&outbox);
        let available = tokio::spawn(async move { waiting.available().await });
        outbox.close();
        in_time(run).await.unwrap();
        in_time(available).await.unwrap();
        assert!(outbox.is_idle() && !outbox.is_full());
        assert_eq!(ready.load(Ordering::SeqCst), 0);
    }

    /// The engine met the broken socket first and the connection's task slept on: nothing had told it.
    #[tokio::test]
    async fn a_socket_that_fails_under_a_send_ends_the_outbox() {
        let (outbox, client) = connected().await;
        let (run, _) = running(&outbox);
        // Until the socket takes what is sent at once, and nothing is left for the other task.
        let direct = async {
            outbox.send(&mut vec![piece(1, 100)]);
            while !outbox.is_idle() {
                tokio::task::yield_now().await;
            }
            tokio::task::yield_now().await;
        };
        in_time(direct).await;
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        // Nothing else runs meanwhile.
        let deadline = std::time::Instant::now() + PATIENCE;
        while outbox.lock().closing != Closing::Dead {
            assert!(std::time::Instant::now() < deadline, "the socket does not fail");
            assert_eq!(outbox.send(&mut vec![piece(1, 100)]), Sent::Ready);
        }
        in_time(run).await.unwrap();
        assert!(outbox.is_idle());
    }
}
