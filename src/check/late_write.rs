//! What becomes of the writes of a host that was cut off from the storage, or paused, and lost its lock meanwhile?
//!
//! The second writes a number, ever higher, into two files: one is locked, and is written through the descriptor that has
//! the lock; the other is not. The operator cuts the storage off from its host, or pauses it. The lead waits for the
//! lock, notes the numbers, and writes that it has it; the operator lets the other host go on. When the second sees
//! what the lead wrote, it has lost the lock, and writes a few times more. What has become of the files then says to
//! which class of late writes the storage belongs. The files count, not what the second was told: a write that was
//! refused and arrived all the same has arrived.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::finding::Finding;
use super::lead::{ANSWER_MAX, Lead, Saying, Who};
use super::locking::Locks;
use super::peer::PeerError;
use super::protocol::{Answer, Ask};
use super::{CheckError, time_text};
use crate::disk;
use crate::ha::fence::FenceRead;
use crate::ha::lock::FileLock;

/// The file that is written without a lock.
const FREE: &str = "late-free";
/// The file whose lock the writer has.
const LOCKED: &str = "late-locked";
/// The file by which the lead says that it has the lock.
const TAKEN: &str = "late-taken";
/// Writes after the lock is known to be lost.
const LATE_ROUNDS: u32 = 5;
/// Time between two looks at the lock.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Time between two writes: so long that nothing is under way to the host when it is cut off. A server that waits for an
/// answer finds out sooner that a host is lost than one that has nothing to say to it.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);
/// A host whose last write was seen no longer ago is not cut off.
const SEEN_WITHIN: Duration = Duration::from_millis(1_500);

/// What becomes of late writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// None of them arrives.
    A,
    /// Those through a descriptor that had the lock do not arrive, others do.
    B,
    /// They arrive.
    C,
}

/// What the writer has been told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The highest number that it tried to write.
    pub number: u64,
    /// The last error of a write to the file without a lock.
    pub free_error: Option<String>,
    /// The last error of a write to the locked file.
    pub locked_error: Option<String>,
    /// Whether it has seen that the lock was taken; otherwise its time was over.
    pub saw_taken: bool,
}

/// The writer: its files are open, and its lock is held.
#[derive(Debug)]
pub struct Writer<'a> {
    folder: &'a Path,
    free: disk::File,
    lock: FileLock,
    written: Written,
}

impl<'a> Writer<'a> {
    /// Opens the files, and writes once.
    ///
    /// # Errors
    /// Where that fails, or another one has the lock.
    pub fn begin(folder: &'a Path) -> Result<Self, CheckError> {
        let io = |name: &str| super::io_error("write", &folder.join(name));
        let free = File::create_new(folder.join(FREE)).map_err(io(FREE))?.into();
        File::create_new(folder.join(LOCKED)).map_err(io(LOCKED))?;
        let lock = FileLock::attempt(&folder.join(LOCKED))?;
        let lock = lock.ok_or_else(|| io(LOCKED)(io::ErrorKind::WouldBlock.into()))?;
        let written = Written { number: 0, free_error: None, locked_error: None, saw_taken: false };
        let mut writer = Self { folder, free, lock, written };
        writer.write();
        match writer.written.free_error.take().or(writer.written.locked_error.take()) {
            None => Ok(writer),
            Some(error) => Err(io(LOCKED)(io::Error::other(error))),
        }
    }

    fn write(&mut self) {
        self.written.number += 1;
        let bytes = self.written.number.to_le_bytes();
        let write = |file: &disk::File| file.write_all_at(&bytes, 0).and_then(|()| file.sync_data());
        for (file, error) in
            [(&self.free, &mut self.written.free_error), (self.lock.file(), &mut self.written.locked_error)]
        {
            if let Err(refused) = write(file) {
                *error = Some(refused.to_string());
            }
        }
    }

    /// Writes until it sees that the lock was taken, and then a few times more; no longer than `within`.
    #[must_use]
    pub fn run(mut self, within: Duration) -> Written {
        let began = Instant::now();
        while !self.written.saw_taken && began.elapsed() < within {
            std::thread::sleep(WRITE_INTERVAL);
            self.write();
            // What cannot be listed is not seen.
            self.written.saw_taken =
                disk::names(self.folder).is_ok_and(|names| names.iter().any(|n| n == TAKEN));
        }
        for _ in 0..LATE_ROUNDS {
            self.write();
        }
        self.written
    }
}

/// What the test has shown.
#[derive(Debug)]
pub struct Tested {
    /// In words.
    pub findings: Vec<Finding>,
    /// The class; `None` where that stayed open.
    pub class: Option<Class>,
}

/// Tries it, together with an operator who is told what to do by `say`. Where locks lie, nothing needs to be cut off: the
/// lead has the lock at once, and every write is late. Each of the two waits for the operator is no longer than
/// `patience`.
///
/// # Errors
/// Where it comes to no result.
pub fn test(
    lead: &mut Lead,
    locks: Locks,
    patience: Duration,
    say: &mut dyn FnMut(Saying<'_>),
) -> Result<Tested, CheckError> {
    let within_ms = u64::try_from(2 * patience.as_millis()).unwrap_or(u64::MAX);
    lead.ask(Who::Second, Ask::WriteLate { within_ms })?;
    let host = lead.name(Who::Second).to_owned();
    let wait = time_text(patience);
    if locks == Locks::Exclude {
        say(Saying::Operator(&format!(
            "now cut {host} off from the storage (not from this host), or pause it as a whole, and leave it so; this \
             checker waits up to {wait} for its lock"
        )));
    }
    let taken = take(lead, patience)?;
    let before = numbers(lead)?;
    lead.write(TAKEN, b"")?;
    say(Saying::Operator(&match (locks, taken.lasted) {
        (Locks::Lie | Locks::Fail, _) => {
            format!("locks do not exclude, so every write of {host} is late; let it go on")
        }
        (Locks::Exclude, Some(lasted)) => format!(
            "the lock of {host} was free {} after its last write; now let {host} go on, with its storage",
            time_text(lasted)
        ),
        (Locks::Exclude, None) if taken.silent_for < SEEN_WITHIN => {
            format!("{host} has written all the time: it was not cut off within {wait}")
        }
        (Locks::Exclude, None) => {
            format!("the lock of {host} did not come free within {wait}; let {host} go on, with its storage")
        }
    }));
    // The writer ends by itself after both waits, whether it sees anything or not.
    let written = match lead.hear(2 * patience + ANSWER_MAX) {
        Ok(Answer::Written(written)) => written,
        Ok(_) => return Err(PeerError::OutOfOrder.into()),
        Err(CheckError::Peer(PeerError::Silent(_) | PeerError::Gone | PeerError::Io(_))) => {
            let text =
                format!("the checker on {host} did not come back; what becomes of late writes stays open");
            return Ok(Tested { findings: vec![Finding::doubt("late-writes-unknown", text)], class: None });
        }
        Err(error) => return Err(error),
    };
    let after = numbers(lead)?;
    let mut findings = Vec::new();
    if taken.lasted.is_none() && taken.silent_for < SEEN_WITHIN {
        let text = format!(
            "{host} has written all the time: it was not cut off from the storage within {wait}, so nothing is said about \
             its lock and its late writes; check again, with more time (--timeout), and cut it off when it is said"
        );
        return Ok(Tested { findings: vec![Finding::doubt("not-cut-off", text)], class: None });
    }
    let Some(lasted) = taken.lasted else {
        let text = format!(
            "the lock of {host} was not free after {wait}: where that host is lost, no takeover comes about"
        );
        findings.push(Finding::unfit("lost-host-keeps-lock", text));
        return Ok(Tested { findings, class: None });
    };
    if locks == Locks::Exclude {
        let lasted = time_text(lasted);
        let text =
            format!("the lock of a host that is lost is free after {lasted}; a takeover waits as long");
        findings.push(Finding::note("lost-host-lock", text));
    }
    if !written.saw_taken {
        let error =
            written.locked_error.map(|error| format!(" (its last error: {error})")).unwrap_or_default();
        let text = format!(
            "{host} did not see the directory again in time{error}; what becomes of late writes stays open. Where its storage \
             was back, it was shut out for good, as class A would have it; mount it anew there"
        );
        findings.push(Finding::doubt("late-writes-unknown", text));
        return Ok(Tested { findings, class: None });
    }
    let (class, finding) = judge(before, after, &written, &host);
    findings.push(finding);
    Ok(Tested { findings, class: Some(class) })
}

/// The highest numbers in the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    free: u64,
    locked: u64,
}

fn judge(before: Numbers, after: Numbers, written: &Written, host: &str) -> (Class, Finding) {
    let told = |error: &Option<String>| match error {
        Some(error) => format!("was told: {error}"),
        None => "was told that they are written".to_owned(),
    };
    let (free, locked) = (told(&written.free_error), told(&written.locked_error));
    match (after.free > before.free, after.locked > before.locked) {
        (_, true) => (
            Class::C,
            Finding::note(
                "late-writes-arrive",
                format!(
                    "class C: late writes of {host} arrived, even those to the file whose lock it had lost. Baton is made \
                     for that: where the old master may still live, a database is copied at a takeover"
                ),
            ),
        ),
        (true, false) => (
            Class::B,
            Finding::note(
                "late-writes-of-free-files-arrive",
                format!(
                    "class B: late writes of {host} to the file whose lock it had lost did not arrive (it {locked}), \
                     those to another one did. Baton is made for that too"
                ),
            ),
        ),
        (false, false) => (
            Class::A,
            Finding::good(
                "late-writes-fail",
                format!(
                    "class A: no late write of {host} arrived; with its lock, it {locked}; without one, it {free}. At a \
                     takeover a database is recovered in place, also where the old master may still live"
                ),
            ),
        ),
    }
}

struct Taken {
    /// From the last write that was seen until the lock was had; `None` where it was not.
    lasted: Option<Duration>,
    /// How long before the end of the wait the last write was seen.
    silent_for: Duration,
    /// Kept until the test is over.
    _lock: Option<FileLock>,
}

/// Waits for the lock, and watches meanwhile when the writing ended.
fn take(lead: &Lead, patience: Duration) -> Result<Taken, CheckError> {
    let path = lead.path(LOCKED);
    let (began, mut newest, mut moved_at) = (Instant::now(), numbers(lead)?, Instant::now());
    while began.elapsed() < patience {
        if let Some(lock) = FileLock::attempt(&path)? {
            let silent_for = moved_at.elapsed();
            return Ok(Taken { lasted: Some(silent_for), silent_for, _lock: Some(lock) });
        }
        let found = numbers(lead)?;
        if found != newest {
            (newest, moved_at) = (found, Instant::now());
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(Taken { lasted: None, silent_for: moved_at.elapsed(), _lock: None })
}

fn numbers(lead: &Lead) -> Result<Numbers, CheckError> {
    let number =
        |name: &str| number(&lead.path(name), lead.read()).map_err(super::io_error("read", &lead.path(name)));
    Ok(Numbers { free: number(FREE)?, locked: number(LOCKED)? })
}

fn number(path: &Path, read: FenceRead) -> io::Result<u64> {
    let block = read.block(path, 0)?;
    Ok(block.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_count_and_not_what_the_writer_was_told() {
        let before = Numbers { free: 5, locked: 5 };
        let told = |error: Option<&str>| Written {
            number: 10,
            free_error: error.map(str::to_owned),
            locked_error: error.map(str::to_owned),
            saw_taken: true,
        };
        for (free, locked, expected) in
            [(5, 5, Class::A), (9, 5, Class::B), (9, 9, Class::C), (5, 9, Class::C)]
        {
            for written in [told(None), told(Some("Input/output error"))] {
                assert_eq!(judge(before, Numbers { free, locked }, &written, "b").0, expected);
            }
        }
    }

    #[test]
    fn a_writer_goes_on_until_it_sees_that_its_lock_was_taken() {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::begin(dir.path()).unwrap();
        assert!(FileLock::attempt(&dir.path().join(LOCKED)).unwrap().is_none());
        File::create(dir.path().join(TAKEN)).unwrap();
        let written = writer.run(Duration::from_secs(10));
        assert_eq!((written.saw_taken, written.number), (true, 2 + u64::from(LATE_ROUNDS)));
        for name in [FREE, LOCKED] {
            assert_eq!(number(&dir.path().join(name), FenceRead::Reopen).unwrap(), written.number);
        }
        assert!(Writer::begin(dir.path()).is_err(), "once in a folder");
    }
}
