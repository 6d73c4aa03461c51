//! Reads frames off a socket: as many as there are, with one buffer that exists only while something comes.

use std::cell::RefCell;
use std::io::{self, ErrorKind};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

use crate::protocol::error::DecodeError;
use crate::protocol::frame::RawFrame;

/// Most that is read in one call while a connection sends little at a time.
const SCRATCH_BYTES: usize = 16 << 10;
/// Most that is read in one call while it sends much. The room grows towards this while reads fill it.
const READ_BYTES_MAX: usize = 256 << 10;

thread_local! {
    /// Where small reads go first. Used within one call, never across an await.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into());
}

/// What a read has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// Nothing: there was nothing to read.
    Nothing,
    /// Everything there was.
    Part,
    /// As much as there was room for; there may be more.
    Room,
}

/// Why nothing more comes.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    /// The client closed the connection.
    #[error("closed by the client")]
    Closed,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// What came is not of this protocol.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The receiving side of a connection.
pub(super) struct Input {
    socket: OwnedReadHalf,
    buffer: BytesMut,
    /// Bytes of the memory that the buffer is in, and what was cut off it.
    held: usize,
    room: usize,
}

impl Input {
    pub(super) fn new(socket: OwnedReadHalf) -> Self {
        Self { socket, buffer: BytesMut::new(), held: 0, room: SCRATCH_BYTES }
    }

    /// Reads exactly `N` bytes, before the first frame. Not cancel-safe.
    pub(super) async fn exact<const N: usize>(&mut self) -> Result<[u8; N], InputError> {
        let mut bytes = [0; N];
        match self.socket.read_exact(&mut bytes).await {
            Ok(_) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(InputError::Closed),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the next frame. Cancel-safe: what was read stays in the buffer.
    pub(super) async fn frame(&mut self, bytes_max: u64) -> Result<RawFrame, InputError> {
        loop {
            if let Some(frame) = self.cut(bytes_max)? {
                return Ok(frame);
            }
            self.readable().await?;
            self.fill()?;
        }
    }

    /// Reads and forgets until the client closes the connection. Cancel-safe.
    pub(super) async fn discard(&mut self) {
        loop {
            self.buffer.clear();
            if self.readable().await.is_err() || self.fill().is_err() {
                return;
            }
        }
    }

    /// The socket, to set its options.
    pub(super) fn socket(&self) -> &TcpStream {
        self.socket.as_ref()
    }

    /// Whether [`cut`](Self::cut) would answer a frame, or an error, without anything being read.
    pub(super) fn has_frame(&self) -> bool {
        self.buffer.first_chunk().is_some_and(|len| {
            let len = u32::from_le_bytes(*len) as usize;
            len == 0 || self.buffer.len() >= len.saturating_add(4)
        })
    }

    /// Bytes that were read and not cut off as frames.
    pub(super) fn unfinished(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes of the memory that the last frame is in, together with others.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Waits until something can be read. Cancel-safe.
    pub(super) async fn readable(&self) -> Result<(), InputError> {
        Ok(self.socket.readable().await?)
    }

    /// Reads what is there, in one call.
    pub(super) fn fill(&mut self) -> Result<Filled, InputError> {
        let read = if self.room <= SCRATCH_BYTES { self.fill_by_copy() } else { self.fill_in_place() };
        let (read, room) = match read {
            Ok((0, _)) => return Err(InputError::Closed),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Filled::Nothing),
            Err(error) => return Err(error.into()),
        };
        if read == room {
            self.room = (self.room * 2).min(READ_BYTES_MAX);
            return Ok(Filled::Room);
        }
        if read < self.room / 4 {
            self.room = (self.room / 2).max(SCRATCH_BYTES);
        }
        Ok(Filled::Part)
    }

    /// For connections that send little at a time: a message may stay in memory for long, and must not keep a large
    /// buffer there with it. Answers bytes read and room for them.
    fn fill_by_copy(&mut self) -> io::Result<(usize, usize)> {
        SCRATCH.with_borrow_mut(|scratch| {
            let read = self.socket.try_read(scratch)?;
            self.reserve(read);
            self.buffer.extend_from_slice(&scratch[..read]);
            Ok((read, SCRATCH_BYTES))
        })
    }

    /// Makes room in the buffer. Where it gets other memory by that, or all of its memory back, what it can hold grows.
    fn reserve(&mut self, bytes: usize) {
        let before = self.buffer.capacity();
        self.buffer.reserve(bytes);
        if self.buffer.capacity() > before {
            self.held = self.buffer.capacity();
        }
    }

    /// For connections that send much at a time.
    fn fill_in_place(&mut self) -> io::Result<(usize, usize)> {
        if self.buffer.capacity() - self.buffer.len() < SCRATCH_BYTES {
            self.reserve(self.room);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        Ok((self.socket.try_read_buf(&mut self.buffer)?, room))
    }

    /// Cuts the next whole frame off what was read. Gives the buffer back when it is empty, so that an idle
    /// connection holds none.
    pub(super) fn cut(&mut self, bytes_max: u64) -> Result<Option<RawFrame>, InputError> {
        let frame = RawFrame::cut(&mut self.buffer, bytes_max)?;
        if frame.is_none() && self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Ok(frame)
    }
}
