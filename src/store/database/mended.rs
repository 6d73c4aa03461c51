//! A copy of a damaged database whose log can be read to its end, for salvage only.
//!
//! The database stops at the first frame of a log that is not valid, and one changed byte there hides all commits behind
//! it. In the copy every frame up to the last whole commit has a right checksum, the damaged ones too: so at most the
//! pages of these are wrong, unless later frames have them again. What counts in wrong pages does not pass for right,
//! since every row has a checksum of its own.
//!
//! The copy lies in the folder for temporary files, and is removed when it is dropped: nothing is written to the damaged
//! store.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::super::StoreError;
use super::frame::{FRAME_HEADER_BYTES, Frame, HEADER_BYTES, Header};
use super::{connection, files};
use crate::disk;

/// A copy of a database and its log.
#[derive(Debug)]
pub(super) struct Mended {
    folder: PathBuf,
}

impl Mended {
    /// Copies the database at `path`, with its log mended. `None` where the log has no whole commit.
    ///
    /// # Errors
    /// Where it cannot be read, or there is no space for the copy.
    pub(super) fn of(path: &Path) -> Result<Option<Self>, StoreError> {
        let log = files::log(path);
        let (header, frames) = frames_to_take(&log).map_err(io("read", &log))?;
        let Some(header) = header.filter(|_| frames > 0) else { return Ok(None) };
        let folder = std::env::temp_dir().join(format!("baton-mended-{}", Uuid::now_v7()));
        fs::create_dir(&folder).map_err(io("create", &folder))?;
        let mended = Self { folder };
        let database = mended.database();
        fs::copy(path, &database).map_err(io("copy to", &database))?;
        let copy = files::log(&database);
        write(&log, &copy, &header, frames).map_err(io("write to", &copy))?;
        Ok(Some(mended))
    }

    /// The copied database.
    pub(super) fn database(&self) -> PathBuf {
        self.folder.join("mended.db")
    }
}

impl Drop for Mended {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "a temporary copy cannot be removed");
        }
    }
}

/// Reads the header of a log, made anew where it is damaged.
fn header(input: &mut impl Read) -> std::io::Result<(Option<Header>, Vec<u8>)> {
    let mut bytes = [0; HEADER_BYTES];
    input.read_exact(&mut bytes)?;
    let decoded = Header::decode(&bytes);
    let mut first = vec![
        0;
        decoded.map_or(FRAME_HEADER_BYTES + connection::PAGE_BYTES as usize, |known| known
            .frame_bytes())
    ];
    input.read_exact(&mut first)?;
    Ok((decoded.or_else(|| Header::of_frame(&first, connection::PAGE_BYTES)), first))
}

/// How many frames there are up to the last one that ends a commit and is valid behind the one before it.
fn frames_to_take(log: &Path) -> std::io::Result<(Option<Header>, u64)> {
    let mut input = BufReader::with_capacity(super::log::READ_BYTES, disk::open(log)?);
    let (header, mut bytes) = match header(&mut input) {
        Ok((Some(header), first)) => (header, first),
        Ok((None, _)) => return Ok((None, 0)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok((None, 0)),
        Err(error) => return Err(error),
    };
    let (mut taken, mut number) = (0, 0);
    let mut continued = [header.checksum; 2];
    loop {
        number += 1;
        let frame = Frame { header: &header, bytes: &bytes };
        let valid = continued.iter().find(|&&before| frame.is_valid(before));
        if valid.is_some() && frame.mark() != [0; 4] {
            taken = number;
        }
        // Where the checksum of a damaged frame is what is damaged, the next one continues what it should be.
        continued = [frame.stored_checksum(), frame.checksum(continued[0])];
        if !super::log::fill(&mut input, &mut bytes)? {
            return Ok((Some(header), taken));
        }
    }
}

/// Writes the first frames of a log with right checksums.
fn write(log: &Path, copy: &Path, header: &Header, frames: u64) -> std::io::Result<()> {
    let mut input = BufReader::with_capacity(super::log::READ_BYTES, disk::open(log)?);
    input.read_exact(&mut [0; HEADER_BYTES])?;
    let mut output = BufWriter::with_capacity(super::log::READ_BYTES, File::create(copy)?);
    output.write_all(&header.encode())?;
    let mut bytes = vec![0; header.frame_bytes()];
    let mut before = header.encoded_checksum();
    for _ in 0..frames {
        input.read_exact(&mut bytes)?;
        // One that names no page would end the log.
        if bytes[..4] != [0; 4] {
            before = header.sum(&mut bytes, before);
            output.write_all(&bytes)?;
        }
    }
    output.flush()
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}
