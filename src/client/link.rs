//! The outgoing half of the current connection: what waits for the socket, and writing it.
//!
//! Whoever has something to send puts it here and may write it at once, in its own task: there is no hop to a
//! writer on the way of a single message. What the socket does not take is left to the client's writer task.
//! Small frames are collected in one piece of memory, message bodies are written from where they are.
//!
//! Bounded: publish frames by the in-flight limits of their producers, of whose memory they share; everything else
//! by [`OUTPUT_BYTES_MAX`](super::options::OUTPUT_BYTES_MAX) and by the number of calls that wait for an answer.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::consumer_core::ConsumerCore;
use super::outbox::Head;
use super::producer_core::ProducerCore;
use crate::protocol::request::{Request, put_publish, put_transact};

/// Bodies below this size are copied behind their head: cheaper than a piece of their own in the write.
const COPY_BYTES_MAX: usize = 16 << 10;
/// Pieces of one write.
const SLICES_MAX: usize = 64;
/// Size from which collected small frames make a piece of their own.
const TAIL_BYTES: usize = 256 << 10;

/// Number of a connection within the life of the client; 0 for none.
pub(super) type Session = u32;

/// What became of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing is left.
    All,
    /// The socket takes no more for now.
    Blocked,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) session: Session,
    stream: Option<Arc<TcpStream>>,
    queue: VecDeque<Bytes>,
    tail: BytesMut,
    queued_bytes: usize,
    wrote_since_beat: bool,
    /// Producers with messages in their open chunk.
    pub(super) producers: Vec<Arc<ProducerCore>>,
    /// Consumers with settlements that wait.
    pub(super) consumers: Vec<Arc<ConsumerCore>>,
    /// When the settlements are to be sent.
    pub(super) settle_at: Option<Instant>,
}

impl Link {
    /// Begins a connection.
    pub(super) fn begin(&mut self, session: Session, stream: Arc<TcpStream>) {
        *self = Self { session, stream: Some(stream), ..Self::default() };
    }

    /// Ends the connection: what was not written is dropped, the socket is shut down.
    pub(super) fn end(&mut self) {
        self.shutdown();
        *self = Self::default();
    }

    /// Makes reader and writer of the socket notice that the connection is over.
    pub(super) fn shutdown(&mut self) {
        if let Some(stream) = &self.stream {
            // A socket that is not connected any more needs no shutdown.
            let _ = socket2::SockRef::from(&**stream).shutdown(std::net::Shutdown::Both);
        }
        self.queue.clear();
        self.tail.clear();
        self.queued_bytes = 0;
    }

    /// The socket, for the task that waits until it takes more.
    pub(super) fn stream(&self) -> Option<Arc<TcpStream>> {
        self.stream.clone()
    }

    /// Bytes that wait.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Whether anything was written since this was asked last.
    pub(super) fn take_wrote(&mut self) -> bool {
        std::mem::take(&mut self.wrote_since_beat)
    }

    /// Puts a frame without messages into the queue.
    pub(super) fn put(&mut self, request: &Request) {
        let before = self.tail.len();
        request.encode(&mut self.tail);
        self.queued_bytes += self.tail.len() - before;
        self.cut_tail(TAIL_BYTES);
    }

    /// Puts a frame with messages into the queue.
    pub(super) fn put_messages(&mut self, head: &Head, messages: Bytes) {
        let before = self.tail.len();
        match head {
            Head::Publish(head) => put_publish(&mut self.tail, head, messages.len()),
            Head::Transact(head) => put_transact(&mut self.tail, head, messages.len()),
        }
        if messages.len() < COPY_BYTES_MAX {
            self.tail.extend_from_slice(&messages);
            self.queued_bytes += self.tail.len() - before;
            self.cut_tail(TAIL_BYTES);
        } else {
            self.queued_bytes += self.tail.len() - before + messages.len();
            self.cut_tail(0);
            self.queue.push_back(messages);
        }
    }

    fn cut_tail(&mut self, bytes_min: usize) {
        if self.tail.len() > bytes_min {
            self.queue.push_back(self.tail.split().freeze());
        }
    }

    /// Writes as much as the socket takes without waiting. Where it has failed, the reader will notice.
    pub(super) fn write(&mut self) -> Written {
        self.cut_tail(0);
        let Some(stream) = self.stream.clone() else {
            return Written::All;
        };
        while !self.queue.is_empty() {
            let result = if self.queue.len() == 1 {
                stream.try_write(&self.queue[0])
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = self.queue.len().min(SLICES_MAX);
                for (slice, bytes) in slices.iter_mut().zip(&self.queue) {
                    *slice = IoSlice::new(bytes);
                }
                stream.try_write_vectored(&slices[..count])
            };
            match result {
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Written::Blocked,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.shutdown(),
            }
        }
        Written::All
    }

    fn advance(&mut self, mut written: usize) {
        self.wrote_since_beat = true;
        self.queued_bytes -= written;
        while let Some(front) = self.queue.front_mut() {
            if front.len() > written {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.queue.pop_front();
        }
    }
}
