//! Reads of a file through one buffer that follows a walk forward.
//!
//! A jump begins with a small read; each read that goes on where the last one ended is twice as large, up to
//! [`WINDOW_BYTES_MAX`]. Nothing beyond the limit of the caller is ever read, since bytes there may still change.

use std::io;

use crate::disk::File;

/// Largest read that is made ahead.
pub const WINDOW_BYTES_MAX: usize = 1 << 20;

const WINDOW_BYTES_MIN: usize = 32 << 10;

/// A piece of a file in memory.
#[derive(Debug, Default)]
pub struct Window {
    buffer: Vec<u8>,
    start: u64,
    len: usize,
    ahead: usize,
}

impl Window {
    /// Forgets what was read: the next bytes are those of another file.
    pub fn clear(&mut self) {
        (self.start, self.len, self.ahead) = (0, 0, 0);
    }

    /// `len` bytes from `at` on; fewer where the file or `limit` ends before.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn bytes(&mut self, file: &File, at: u64, len: usize, limit: u64) -> io::Result<&[u8]> {
        let have_end = self.start + self.len as u64;
        let inside = self.start <= at && at + len as u64 <= have_end;
        if !inside {
            let sequential = self.len > 0 && self.start <= at && at <= have_end;
            self.ahead = if sequential { self.ahead * 2 } else { 0 };
            self.ahead = self.ahead.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
            let room = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
            self.fill(file, at, self.ahead.max(len).min(room))?;
        }
        let from = (at - self.start) as usize;
        Ok(&self.buffer[from..self.len.min(from + len)])
    }

    fn fill(&mut self, file: &File, at: u64, len: usize) -> io::Result<()> {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        (self.start, self.len) = (at, 0);
        while self.len < len {
            match file.read_at(&mut self.buffer[self.len..len], at + self.len as u64) {
                Ok(0) => break,
                Ok(read) => self.len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
