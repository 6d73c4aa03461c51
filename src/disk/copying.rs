//! A copy of a file that is made step by step, so that something can be done in between.

use std::io::{self, Read};
use std::path::Path;

use super::file::{File, Opening};
use super::open;

/// Bytes that are read at once where the system does not copy by itself.
const PIECE_BYTES: usize = 1 << 20;

/// A copy that is being made.
#[derive(Debug)]
pub struct Copying {
    source: File,
    copy: File,
    /// Bytes that are copied.
    at: u64,
}

impl Copying {
    /// Begins to copy the file `from` to `to`, which is made or overwritten.
    ///
    /// # Errors
    /// As for [`open`](super::open), or where the copy cannot be made.
    pub fn begin(from: &Path, to: &Path) -> io::Result<Self> {
        let mut source = open(from)?;
        let mut copy = File::open(to, Opening::Replace)?;
        if let Some((source, copy)) = source.both_of_system(&mut copy) {
            copy.set_permissions(source.metadata()?.permissions())?;
        }
        Ok(Self { source, copy, at: 0 })
    }

    /// Copies up to `bytes_max` bytes more and makes them durable, so that no step waits for what others wrote.
    /// Answers how many bytes that were; 0 at the end of the file.
    ///
    /// # Errors
    /// Where the file cannot be read, or the copy cannot be written.
    pub fn step(&mut self, bytes_max: u64) -> io::Result<u64> {
        let bytes = match self.source.both_of_system(&mut self.copy) {
            Some((mut source, mut copy)) => io::copy(&mut Read::take(&mut source, bytes_max), &mut copy)?,
            None => self.copy_pieces(bytes_max)?,
        };
        if bytes > 0 {
            self.copy.sync_data()?;
        }
        Ok(bytes)
    }

    fn copy_pieces(&mut self, bytes_max: u64) -> io::Result<u64> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut copied = 0;
        while copied < bytes_max {
            let wanted = usize::try_from(bytes_max - copied).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let read = self.source.read(&mut piece[..wanted])?;
            if read == 0 {
                break;
            }
            self.copy.write_all_at(&piece[..read], self.at)?;
            (self.at, copied) = (self.at + read as u64, copied + read as u64);
        }
        Ok(copied)
    }
}
