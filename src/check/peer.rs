//! The connection between the two sides: one JSON object a line, in either direction, each answered before the next.
//!
//! Lines are bounded, and each wait has an end. Each side begins with the version that it speaks, in a form that stays
//! as it is in all versions. Nothing is authenticated: a side does nothing for one that cannot show that it writes in the
//! same directory (see [`probes`](super::probes)), and even then only what [`Ask`](super::protocol::Ask) lists.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of what the two sides say to each other.
pub const VERSION: u32 = 1;
/// Bytes of a line. A report with all its findings has about a tenth of that.
pub const LINE_BYTES_MAX: usize = 128 << 10;

/// Why two sides do not understand each other.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The connection broke.
    #[error("the connection to the other checker: {0}; is it still running? Start both again")]
    Io(#[from] io::Error),
    /// The other side ended it.
    #[error("the other checker has ended; what it says about it is on its own terminal")]
    Gone,
    /// The other side said nothing for too long.
    #[error("the other checker did not answer within {0:?}; does its storage answer?")]
    Silent(Duration),
    /// A line is longer than [`LINE_BYTES_MAX`].
    #[error("what is at the other end is no checker: it sent a line of more than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// A line is not what was expected.
    #[error("what is at the other end is no checker, or of another version: {0}")]
    Unexpected(serde_json::Error),
    /// The other side has another version.
    #[error("the other checker speaks version {0}, this one {VERSION}; run the same baton on both hosts")]
    Version(u32),
    /// The other side said something else than what was asked.
    #[error("the other checker answered something else than what it was asked")]
    OutOfOrder,
}

/// The first line of either side.
#[derive(Debug, Serialize, Deserialize)]
struct Preface {
    baton_check: u32,
}

/// A connection to the other side.
#[derive(Debug)]
pub struct Link {
    reader: BufReader<Stream>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Link {
    /// A connection to a side on another host.
    ///
    /// # Errors
    /// Where it breaks, or the other end is none that speaks this version.
    pub fn over(stream: TcpStream, patience: Duration) -> Result<Self, PeerError> {
        // Questions are short and each waits for its answer.
        stream.set_nodelay(true)?;
        Self::begin(Stream::Tcp(stream), patience)
    }

    /// A connection to a side in the same process.
    ///
    /// # Errors
    /// As [`over`](Self::over).
    pub fn within(stream: UnixStream, patience: Duration) -> Result<Self, PeerError> {
        Self::begin(Stream::Unix(stream), patience)
    }

    fn begin(stream: Stream, patience: Duration) -> Result<Self, PeerError> {
        let mut link = Self { reader: BufReader::new(stream) };
        link.send(&Preface { baton_check: VERSION })?;
        match link.receive(patience)? {
            Preface { baton_check: VERSION } => Ok(link),
            Preface { baton_check } => Err(PeerError::Version(baton_check)),
        }
    }

    /// Says something.
    ///
    /// # Errors
    /// Where the connection breaks.
    pub fn send(&mut self, said: &impl Serialize) -> Result<(), PeerError> {
        let mut line = serde_json::to_vec(said).map_err(PeerError::Unexpected)?;
        line.push(b'\n');
        if line.len() > LINE_BYTES_MAX {
            return Err(PeerError::TooLong);
        }
        self.reader.get_mut().write_all(&line).map_err(gone)
    }

    /// Waits for what the other side says.
    ///
    /// # Errors
    /// Where it says nothing within `patience`, something else, or is gone.
    pub fn receive<T: DeserializeOwned>(&mut self, patience: Duration) -> Result<T, PeerError> {
        let deadline = Instant::now() + patience;
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PeerError::Silent(patience));
            }
            self.reader.get_ref().set_patience(left)?;
            let bytes = match self.reader.fill_buf() {
                Ok([]) => return Err(PeerError::Gone),
                Ok(bytes) => bytes,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(gone(error)),
            };
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(bytes.len());
            line.extend_from_slice(&bytes[..taken]);
            self.reader.consume(taken + usize::from(end.is_some()));
            if line.len() > LINE_BYTES_MAX {
                return Err(PeerError::TooLong);
            }
            if end.is_some() {
                return serde_json::from_slice(&line).map_err(PeerError::Unexpected);
            }
        }
    }
}

/// A connection that was ended from the other end is told as such.
fn gone(error: io::Error) -> PeerError {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => PeerError::Gone,
        _ => PeerError::Io(error),
    }
}

impl Stream {
    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(patience)),
            Self::Unix(stream) => stream.set_read_timeout(Some(patience)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A link, and its other end, at which it has met a checker of `version`.
    fn met(first: &str) -> (Result<Link, PeerError>, UnixStream) {
        let (mine, mut other) = UnixStream::pair().unwrap();
        other.write_all(first.as_bytes()).unwrap();
        (Link::within(mine, PATIENCE), other)
    }

    const GREETING: &str = "{\"baton_check\":1}\n";

    #[test]
    fn another_version_is_told_from_something_else() {
        assert!(met(GREETING).0.is_ok());
        let newer = "{\"baton_check\":2,\"whatever\":[]}\n";
        assert!(matches!(met(newer).0, Err(PeerError::Version(2))));
        assert!(matches!(met("HTTP/1.1 400 Bad Request\r\n").0, Err(PeerError::Unexpected(_))));
        let (mine, other) = UnixStream::pair().unwrap();
        drop(other);
        assert!(matches!(Link::within(mine, PATIENCE), Err(PeerError::Gone)));
    }

    #[test]
    fn lines_and_waits_have_an_end() {
        let (link, mut other) = met(GREETING);
        let mut link = link.unwrap();
        let writer = std::thread::spawn(move || {
            let _ = other.write_all(&vec![b' '; LINE_BYTES_MAX + 2]);
            other
        });
        assert!(matches!(link.receive::<u32>(PATIENCE), Err(PeerError::TooLong)));
        drop(link);
        drop(writer.join().unwrap());
        let (link, mut other) = met(GREETING);
        let mut link = link.unwrap();
        other.write_all(b"1").unwrap();
        let short = Duration::from_millis(20);
        assert!(matches!(link.receive::<u32>(short), Err(PeerError::Silent(_))), "no end of line");
        let long = "x".repeat(LINE_BYTES_MAX);
        assert!(matches!(link.send(&long), Err(PeerError::TooLong)));
    }
}
