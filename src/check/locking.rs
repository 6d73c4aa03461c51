//! Do locks exclude, on this host and across hosts, and when is the lock of a killed process free?
//!
//! The locks are of the same kind as that of the node. A process that is killed is one of our own program that does
//! nothing but hold a lock. What becomes of the lock of a *host* that is lost does not show here; that takes an
//! operator, and is part of [`late_write`](super::late_write).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::finding::Finding;
use super::lead::{Lead, Who};
use super::protocol::{Answer, Ask};
use super::{CheckError, time_text};
use crate::ha::lock::{FileLock, LockError};

/// A lock that is not free so long after its holder was killed does not come free by itself.
pub const RELEASE_MAX: Duration = Duration::from_secs(20);
/// A lock that is free sooner does not make takeovers longer than they are anyway.
const RELEASE_GOOD: Duration = Duration::from_secs(1);
/// Time between two attempts at a lock that is not free yet.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(1);
/// Name of the file that is locked.
const FILE: &str = "lock";
/// What a holder says when it holds the lock.
const HELD: &str = "held";

/// The program that holds a lock until it is killed; the path of the file follows the arguments.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// What makes it call [`hold`].
    pub arguments: Vec<OsString>,
}

/// Holds the lock of the file at `path` until `until` ends, and says so on `said`. What a [`Program`] does.
///
/// # Errors
/// Where the lock cannot be had.
pub fn hold(path: &Path, mut until: impl Read, mut said: impl Write) -> Result<(), LockError> {
    let failed = |action| {
        let path = path.to_owned();
        move |source| LockError::Io { action, path, source }
    };
    let lock = FileLock::attempt(path)?;
    let lock = lock.ok_or_else(|| failed("lock")(io::ErrorKind::WouldBlock.into()))?;
    writeln!(said, "{HELD}").and_then(|()| said.flush()).map_err(failed("tell of the lock of"))?;
    until.read_to_end(&mut Vec::new()).map_err(failed("hold the lock of"))?;
    drop(lock);
    Ok(())
}

/// A process that holds a lock. It ends with this, or when this process ends.
#[derive(Debug)]
struct Holder(Child);

impl Holder {
    fn start(program: &Program, path: &Path) -> Result<Self, CheckError> {
        let failed = |error: &dyn std::fmt::Display| CheckError::Holder(error.to_string());
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = Self(command.spawn().map_err(|error| failed(&error))?);
        let mut line = String::new();
        if let Some(stdout) = holder.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|error| failed(&error))?;
        }
        if line.trim_end() == HELD { Ok(holder) } else { Err(failed(&"it did not get the lock")) }
    }

    fn kill(&mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It has ended already, or it ends by the end of its input.
        let _ = self.kill();
    }
}

/// What one side has of the lock.
#[derive(Debug)]
pub struct Locker {
    path: PathBuf,
    program: Program,
    lock: Option<FileLock>,
    holder: Option<Holder>,
}

impl Locker {
    /// Nothing yet, in the folder of a check.
    #[must_use]
    pub fn new(folder: &Path, program: Program) -> Self {
        Self { path: folder.join(FILE), program, lock: None, holder: None }
    }

    /// Tries once, and keeps the lock.
    ///
    /// # Errors
    /// Where it is not known whether it is free.
    pub fn attempt(&mut self) -> Result<bool, LockError> {
        self.lock = FileLock::attempt(&self.path)?;
        Ok(self.lock.is_some())
    }

    /// Lets it go.
    pub fn let_go(&mut self) {
        self.lock = None;
        self.holder = None;
    }

    /// Takes it as soon as it is free; `false` where that is too long.
    ///
    /// # Errors
    /// Where it is not known whether it is free.
    pub fn wait(&mut self) -> Result<bool, LockError> {
        let began = Instant::now();
        while !self.attempt()? {
            if began.elapsed() > RELEASE_MAX {
                return Ok(false);
            }
            std::thread::sleep(ATTEMPT_INTERVAL);
        }
        Ok(true)
    }

    /// Lets a process hold it.
    ///
    /// # Errors
    /// Where it does not.
    pub fn hold(&mut self) -> Result<(), CheckError> {
        self.holder = Some(Holder::start(&self.program, &self.path)?);
        Ok(())
    }

    /// Kills that process.
    ///
    /// # Errors
    /// Where it cannot be killed.
    pub fn kill(&mut self) -> Result<(), CheckError> {
        match &mut self.holder {
            Some(holder) => holder.kill().map_err(|error| CheckError::Holder(error.to_string())),
            None => Ok(()),
        }
    }
}

/// Whether locks keep their word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locks {
    /// What one side has locked the other one does not get.
    Exclude,
    /// It does.
    Lie,
    /// A side cannot lock at all.
    Fail,
}

/// What the test has shown.
#[derive(Debug)]
pub struct Tested {
    /// Whether locks exclude.
    pub locks: Locks,
    /// In words.
    pub findings: Vec<Finding>,
    /// The longest time after which the lock of a killed process was free; `None` where that was not tried.
    pub release: Option<Duration>,
}

impl Tested {
    fn only(locks: Locks, finding: Finding) -> Self {
        Self { locks, findings: vec![finding], release: None }
    }
}

/// Tries it in both directions.
///
/// # Errors
/// Where it comes to no result.
pub fn test(lead: &mut Lead) -> Result<Tested, CheckError> {
    let path = lead.path(FILE);
    File::create(&path).and_then(|file| file.sync_all()).map_err(super::io_error("make", &path))?;
    for (holder, other) in [(Who::Lead, Who::Second), (Who::Second, Who::Lead)] {
        match attempt(lead, holder)? {
            Ok(true) => {}
            Ok(false) => {
                let text = format!("{} does not get a lock that nobody holds", lead.name(holder));
                return Ok(Tested::only(Locks::Fail, Finding::unfit("locks-fail", text)));
            }
            Err(error) => return Ok(Tested::only(Locks::Fail, fail(lead, holder, &error))),
        }
        match attempt(lead, other)? {
            Ok(false) => {}
            Ok(true) => return Ok(Tested::only(Locks::Lie, lie(lead, holder, other))),
            Err(error) => return Ok(Tested::only(Locks::Fail, fail(lead, other, &error))),
        }
        for side in [other, holder] {
            lead.ask(side, Ask::Unlock)?;
        }
        // The next holder finds it free, however long the file system takes to tell.
        lead.ask(other, Ask::AwaitLock)?;
        lead.ask(other, Ask::Unlock)?;
    }
    let [one, other] = [lead.name(Who::Lead), lead.name(Who::Second)];
    let text = if lead.is_alone() {
        format!("locks exclude on {one}; whether they exclude another host shows with --listen and --peer")
    } else {
        format!("locks exclude: what {one} has locked {other} does not get, nor the other way round")
    };
    let mut tested = Tested::only(Locks::Exclude, Finding::good("locks-exclude", text));
    release(lead, &mut tested)?;
    Ok(tested)
}

/// How long the lock of a killed process stays.
fn release(lead: &mut Lead, tested: &mut Tested) -> Result<(), CheckError> {
    let mut texts = Vec::new();
    let mut longest = Duration::ZERO;
    for (holder, other) in [(Who::Lead, Who::Lead), (Who::Lead, Who::Second), (Who::Second, Who::Lead)] {
        lead.ask(holder, Ask::Hold)?;
        lead.ask(holder, Ask::Kill)?;
        let killed_at = Instant::now();
        let Answer::Awaited(freed) = lead.ask(other, Ask::AwaitLock)? else {
            return Err(super::peer::PeerError::OutOfOrder.into());
        };
        let took = killed_at.elapsed();
        let waiting = lead.name(other).to_owned();
        if !freed {
            let dead = lead.name(holder);
            tested.findings.push(Finding::unfit(
                "lock-not-released",
                format!(
                    "{waiting} did not get the lock of a process that was killed on {dead}, not within {}; no takeover \
                     would come about",
                    time_text(RELEASE_MAX)
                ),
            ));
            return Ok(());
        }
        for side in [other, holder] {
            lead.ask(side, Ask::Unlock)?;
        }
        longest = longest.max(took);
        texts.push(format!("{} on {waiting}", time_text(took)));
        if lead.is_alone() {
            break;
        }
    }
    let text = format!("the lock of a killed process is free after {}", texts.join(", "));
    tested.findings.push(if longest <= RELEASE_GOOD {
        Finding::good("lock-release", text)
    } else {
        Finding::doubt("lock-release-slow", format!("{text}; each takeover waits as long"))
    });
    tested.release = Some(longest);
    Ok(())
}

fn attempt(lead: &mut Lead, who: Who) -> Result<Result<bool, String>, CheckError> {
    match lead.ask(who, Ask::Lock)? {
        Answer::Locked(locked) => Ok(locked),
        _ => Err(super::peer::PeerError::OutOfOrder.into()),
    }
}

fn fail(lead: &Lead, who: Who, error: &str) -> Finding {
    Finding::unfit(
        "locks-fail",
        format!(
            "{} cannot lock: {error}; is the lock service of the file system running, and locking not switched off?",
            lead.name(who)
        ),
    )
}

fn lie(lead: &Lead, holder: Who, other: Who) -> Finding {
    let (holder, other) = (lead.name(holder), lead.name(other));
    Finding::unfit(
        "locks-do-not-exclude",
        format!(
            "locks do not exclude: {other} got a lock that {holder} held. Both nodes would take themselves for the \
             master, and only the fence would be left between them; use a file system whose flock holds on all hosts, \
             mounted without options that keep locks on one"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_holds_until_its_input_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        File::create(&path).unwrap();
        let (input, mut writer) = io::pipe().unwrap();
        let (mut reader, output) = io::pipe().unwrap();
        let thread = std::thread::spawn({
            let path = path.clone();
            move || hold(&path, input, output)
        });
        let mut said = [0; 5];
        reader.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"held\n");
        assert!(FileLock::attempt(&path).unwrap().is_none());
        assert!(hold(&path, io::empty(), io::sink()).is_err(), "another one holds it");
        writer.write_all(b"x").unwrap();
        drop(writer);
        thread.join().unwrap().unwrap();
        assert!(FileLock::attempt(&path).unwrap().is_some());
    }
}
