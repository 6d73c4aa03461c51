//! The side that asks: it makes the folder, does its own part of each test, and puts together what came of it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::finding::Finding;
use super::locking::{Locks, Program};
use super::mount::Class;
use super::peer::{Link, PeerError};
use super::probes::Probes;
use super::protocol::{Answer, Ask, Side};
use super::report::{Measured, Report, Scope, Verdict};
use super::worker::{Worker, look};
use super::{CheckError, coherence, creating, late_write, locking, options, remembered, second, sync};
use crate::ha::fence::FenceRead;
use crate::model::time::Timestamp;

/// An answer takes no longer, where the storage answers: several times the longest wait for a lock.
pub const ANSWER_MAX: Duration = Duration::from_secs(120);

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// This one.
    Lead,
    /// The other one.
    Second,
}

/// What is said while a check is on its way.
#[derive(Clone, Copy, Debug)]
pub enum Saying<'a> {
    /// What is being tried.
    Step(&'a str),
    /// What a person has to do now.
    Operator(&'a str),
}

/// What is checked, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The shared directory.
    pub store: PathBuf,
    /// How the nodes read the fence.
    pub read: FenceRead,
    /// The program that holds locks.
    pub program: Program,
    /// With the test of late writes: how long to wait for the operator, each time. `None` for without.
    pub cut: Option<Duration>,
}

/// How far apart the two sides are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Apart {
    /// Two threads of one process.
    Alone,
    /// Two processes on one mount.
    OneMount,
    /// Two mounts on one host: two clients of the file system, and one kernel.
    TwoMounts,
    /// Two hosts.
    TwoHosts,
}

/// The lead, while it tests.
#[derive(Debug)]
pub struct Lead {
    worker: Worker,
    link: Link,
    read: FenceRead,
    apart: Apart,
    names: [String; 2],
}

impl Lead {
    /// What a side is called.
    #[must_use]
    pub fn name(&self, who: Who) -> &str {
        match who {
            Who::Lead => &self.names[0],
            Who::Second => &self.names[1],
        }
    }

    /// Whether there is no other host, nor a process that may be on one.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.apart == Apart::Alone
    }

    /// How fresh reads are read.
    #[must_use]
    pub fn read(&self) -> FenceRead {
        self.read
    }

    /// Where a file of the check is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.worker.probes().path(name)
    }

    /// Writes a file of the check, durably.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CheckError> {
        self.worker.probes().write(name, bytes)
    }

    /// Lets a side do something.
    ///
    /// # Errors
    /// Where it could not.
    pub fn ask(&mut self, who: Who, ask: Ask) -> Result<Answer, CheckError> {
        match who {
            Who::Lead => self.worker.answer(&ask),
            Who::Second => {
                self.link.send(&ask)?;
                self.hear(ANSWER_MAX)
            }
        }
    }

    /// Lets both do the same at the same time.
    ///
    /// # Errors
    /// Where one of them could not.
    pub fn ask_both(&mut self, ask: Ask) -> Result<(Answer, Answer), CheckError> {
        self.link.send(&ask)?;
        let mine = self.worker.answer(&ask);
        let other = self.hear(ANSWER_MAX);
        Ok((mine?, other?))
    }

    /// Waits for an answer of the second.
    ///
    /// # Errors
    /// Where there is none, or it could not do what was asked.
    pub fn hear(&mut self, patience: Duration) -> Result<Answer, CheckError> {
        match self.link.receive(patience)? {
            Answer::Failed(text) => Err(CheckError::Elsewhere(text)),
            answer => Ok(answer),
        }
    }
}

/// Checks what can be checked on one host.
///
/// # Errors
/// Where it comes to no result.
pub fn check_alone(options: &Options, say: &mut dyn FnMut(Saying<'_>)) -> Result<Report, CheckError> {
    let store = options.store.clone();
    let (mine, other) = UnixStream::pair().map_err(PeerError::Io)?;
    let program = options.program.clone();
    let second = thread::spawn(move || {
        let link = Link::within(other, ANSWER_MAX)?;
        second::serve(link, &store, &program, &mut |_| {}).map(drop)
    });
    let link = Link::within(mine, ANSWER_MAX)?;
    let report = run(options, link, Company::Alone, say);
    let served = second.join().map_err(|_| CheckError::Panicked)?;
    let report = report?;
    served.map(|()| report)
}

/// Checks together with a second at the other end of `link`.
///
/// # Errors
/// Where it comes to no result.
pub fn check_with(
    options: &Options,
    link: Link,
    say: &mut dyn FnMut(Saying<'_>),
) -> Result<Report, CheckError> {
    run(options, link, Company::Peer, say)
}

/// Where the second is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    Alone,
    Peer,
}

fn run(
    options: &Options,
    link: Link,
    company: Company,
    say: &mut dyn FnMut(Saying<'_>),
) -> Result<Report, CheckError> {
    let mine = look(&options.store)?;
    let run = Uuid::now_v7();
    let (mut lead, other) = meet(options, link, company, &mine, run)?;
    let mut findings = judge_sides(&lead, &mine, &other);
    let mut measured = Measured::default();
    say(Saying::Step("syncs"));
    for (who, side) in [(Who::Lead, &mine), (Who::Second, &other)] {
        let Answer::Times(times) = lead.ask(who, Ask::Sync)? else {
            return Err(PeerError::OutOfOrder.into());
        };
        findings.push(sync::judge(times, side.mount.class(), lead.name(who)));
        measured.syncs.push(times);
        if lead.is_alone() {
            break;
        }
    }
    say(Saying::Step("locks"));
    let locks = locking::test(&mut lead)?;
    findings.extend(locks.findings);
    measured.lock_release_us =
        locks.release.map(|release| u64::try_from(release.as_micros()).unwrap_or(u64::MAX));
    say(Saying::Step("exclusive creation"));
    findings.extend(creating::test(&mut lead)?);
    say(Saying::Step("fresh reads"));
    findings.extend(coherence::test(&mut lead)?);
    let mut late_writes = None;
    // Without locks there is nobody who could lose one.
    if let Some(patience) = options.cut.filter(|_| locks.locks != Locks::Fail) {
        say(Saying::Step("late writes"));
        let tested = late_write::test(&mut lead, locks.locks, patience, say)?;
        findings.extend(tested.findings);
        late_writes = tested.class;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let report = Report {
        verdict: Verdict::of(&findings),
        scope: match (lead.apart, late_writes) {
            (Apart::Alone | Apart::OneMount, _) => Scope::OneHost,
            (_, None) => Scope::TwoHosts,
            (_, Some(_)) => Scope::Cut,
        },
        checked_at: Timestamp(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        run,
        fence_read: options.read,
        sides: if lead.is_alone() { vec![mine] } else { vec![mine, other] },
        measured,
        late_writes,
        findings,
    };
    remembered::add(&options.store, lead.worker.probes(), &report)?;
    lead.ask(Who::Second, Ask::End(Box::new(report.clone())))?;
    Ok(report)
}

/// Makes the folder, and finds out who the other side is and that it sees it.
fn meet(
    options: &Options,
    mut link: Link,
    company: Company,
    mine: &Side,
    run: Uuid,
) -> Result<(Lead, Side), CheckError> {
    let probes = Probes::begin(&options.store, run)?;
    link.send(&Ask::Meet { run })?;
    let (mut other, token) = match link.receive(ANSWER_MAX)? {
        Answer::Met { side, token } => (*side, token),
        Answer::Failed(text) => return Err(CheckError::Elsewhere(text)),
        _ => return Err(PeerError::OutOfOrder.into()),
    };
    // It comes from elsewhere and is shown on a terminal.
    other.host.retain(|c| !c.is_control());
    if token != probes.token() {
        return Err(CheckError::OtherDirectory(other.host, mine.host.clone()));
    }
    let apart = match company {
        Company::Alone => Apart::Alone,
        Company::Peer if mine.boot != other.boot => Apart::TwoHosts,
        Company::Peer if mine.device != other.device => Apart::TwoMounts,
        Company::Peer => Apart::OneMount,
    };
    let names = match apart {
        Apart::TwoHosts if mine.host != other.host => [mine.host.clone(), other.host.clone()],
        Apart::TwoHosts | Apart::TwoMounts => {
            [mine, &other].map(|side| format!("{} ({})", side.host, side.mount.point))
        }
        Apart::OneMount => [format!("{} (first)", mine.host), format!("{} (second)", mine.host)],
        Apart::Alone => [mine.host.clone(), mine.host.clone()],
    };
    let worker = Worker::new(probes, options.program.clone());
    Ok((Lead { worker, link, read: options.read, apart, names }, other))
}

/// What the two sides say of themselves.
fn judge_sides(lead: &Lead, mine: &Side, other: &Side) -> Vec<Finding> {
    let mut findings = options::judge(&mine.mount, lead.name(Who::Lead), mine.lost_locks);
    if !lead.is_alone() {
        findings.extend(options::judge(&other.mount, lead.name(Who::Second), other.lost_locks));
    }
    let local = |side: &Side| matches!(side.mount.class(), Class::Local | Class::Memory);
    match lead.apart {
        Apart::Alone => {}
        Apart::OneMount => findings.push(Finding::note(
            "one-host",
            "both checkers run on one host and one mount: nothing is said about two hosts; run one on each",
        )),
        Apart::TwoMounts => findings.push(Finding::note(
            "one-kernel",
            "both checkers run on one host, on two mounts: two clients of the file system, but one kernel",
        )),
        Apart::TwoHosts if local(mine) && local(other) => findings.push(Finding::unfit(
            "not-shared",
            format!(
                "{} is for one host at a time: mounted by two it is destroyed, whatever the tests say. Unmount one at \
                 once, check it, and use a file system made for several hosts",
                mine.mount.kind
            ),
        )),
        Apart::TwoHosts if mine.mount.kind != other.mount.kind => findings.push(Finding::doubt(
            "mounts-differ",
            format!(
                "one host has it as {}, the other one as {}: locks may hold on one side alone; mount it in the same way on \
                 both, also where one of them is the server",
                mine.mount.kind, other.mount.kind
            ),
        )),
        Apart::TwoHosts => {}
    }
    findings.push(mine.space.judge());
    findings
}

/// The directory, in full, so that both sides and later nodes name the same one.
///
/// # Errors
/// Where it is no directory.
pub fn resolve(store: &Path) -> Result<PathBuf, CheckError> {
    match store.canonicalize() {
        Ok(path) if path.is_dir() => Ok(path),
        Ok(_) | Err(_) => Err(CheckError::NoDirectory(store.to_owned())),
    }
}
