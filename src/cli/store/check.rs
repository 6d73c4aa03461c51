//! `baton store check`: is a directory fit to be shared by the two nodes?

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use batonmq::check::finding::{Finding, Level};
use batonmq::check::late_write::Class;
use batonmq::check::lead::{self, Options, Saying};
use batonmq::check::locking::{self, Program};
use batonmq::check::peer::Link;
use batonmq::check::report::{Report, Scope, Verdict};
use batonmq::check::second;
use batonmq::ha::fence::FenceRead;
use clap::{Args, ValueEnum};

use crate::cli::exit::End;
use crate::cli::output::Output;
use crate::cli::value;

/// Longest `--timeout`: a check with all its waits is over before the next one takes its folder for left behind.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// How long the other checker may take to greet.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Time between two attempts to reach a checker that does not listen yet.
const CONNECT_INTERVAL: Duration = Duration::from_millis(100);

/// Is this directory fit to be shared by the two nodes? Run it on one host for the basics, on both at once for the rest.
///
/// Tries out locks, their release when a process is killed, exclusive creation, fresh reads, syncs, and looks at space,
/// type and options of the mount. Touches no file of a store, and may run beside nodes that serve. The result stays in
/// the directory: a node does not start on storage that was found unfit.
#[derive(Args, Debug)]
#[command(after_help = "\
Ends with 0 where the directory is fit, with 5 where it is unfit, with 6 where doubts are left, with 1 where it could
not be checked, and with 3 where no other checker came within --timeout. docs/operations.md says what each finding means, and what to expect of which file system.

Examples:
  baton store check /srv/baton                                on one host
  baton store check /srv/baton --listen 10.0.0.1:7472         on one host, and at the same time
  baton store check /srv/baton --peer 10.0.0.1:7472           on the other one
  baton store check /srv/baton --peer 10.0.0.1:7472 --cut     and what becomes of late writes: says what to do when")]
pub struct CheckArgs {
    /// The shared directory; it need not hold a store
    #[arg(value_name = "DIR")]
    store: PathBuf,
    /// Wait here for the checker on the other host, and do what it asks
    #[arg(long, value_name = "IP:PORT", conflicts_with_all = ["peer", "cut", "fence_read"])]
    listen: Option<SocketAddr>,
    /// Check together with the checker that listens there
    #[arg(long, value_name = "HOST:PORT", value_parser = value::server)]
    peer: Option<String>,
    /// Also find out what becomes of the writes of a host that was cut off: the one that listens
    #[arg(long, requires = "peer")]
    cut: bool,
    /// How fresh reads are read: as fence_read is set for the nodes
    #[arg(long, value_enum, default_value_t = Read::Reopen)]
    fence_read: Read,
    /// How long to wait for the other checker, and with --cut each time for you; at most 1h
    #[arg(long, value_name = "DURATION", value_parser = value::duration_above_zero, default_value = "10m")]
    timeout: Duration,
    /// One JSON object: verdict, scope, sides, figures, and findings, each with code, level, text
    #[arg(long)]
    json: bool,
}

/// How the fence is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Read {
    /// Opens the file anew.
    Reopen,
    /// Opens it anew and reads past the page cache.
    Direct,
}

/// Holds a lock until its input ends; a part of `baton store check`.
#[derive(Args, Debug)]
pub struct HoldLockArgs {
    /// The file to lock
    path: PathBuf,
}

/// Name of the subcommand that holds a lock.
pub const HOLD_LOCK: &str = "hold-lock";

/// Holds the lock.
pub fn hold_lock(args: &HoldLockArgs) -> anyhow::Result<()> {
    Ok(locking::hold(&args.path, std::io::stdin().lock(), std::io::stdout().lock())?)
}

/// Runs it.
pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    if args.timeout > TIMEOUT_MAX {
        return Err(
            End::Usage(format!("--timeout is at most {}", humantime::format_duration(TIMEOUT_MAX))).into()
        );
    }
    let store = lead::resolve(&args.store)?;
    let program = Program {
        path: std::env::current_exe().context("cannot find this program, which holds locks for the check")?,
        arguments: vec!["store".into(), HOLD_LOCK.into()],
    };
    let report = match &args.listen {
        Some(address) => {
            let link = accepted(*address, args.timeout)?;
            second::serve(link, &store, &program, &mut say)?
        }
        None => {
            let options = Options {
                store,
                read: match args.fence_read {
                    Read::Reopen => FenceRead::Reopen,
                    Read::Direct => FenceRead::Direct,
                },
                program,
                cut: args.cut.then_some(args.timeout),
            };
            match &args.peer {
                Some(peer) => lead::check_with(&options, connected(peer, args.timeout)?, &mut say)?,
                None => lead::check_alone(&options, &mut say)?,
            }
        }
    };
    let mut output = Output::new();
    if args.json {
        output.json(&report)?;
    } else {
        tell(&args.store, &report, &mut output)?;
    }
    output.flush()?;
    match report.verdict {
        Verdict::Fit => Ok(()),
        Verdict::Doubtful => Err(End::Doubtful.into()),
        Verdict::Unfit => Err(End::Unfit.into()),
    }
}

/// Waits for the other checker to connect. One that is something else is passed over.
fn accepted(address: SocketAddr, patience: Duration) -> anyhow::Result<Link> {
    let listener = TcpListener::bind(address)
        .map_err(|error| anyhow::anyhow!("cannot listen on {address}: {error}{}", what_to_do(&error)))?;
    let local = listener.local_addr().unwrap_or(address);
    write_to_stderr(&format!("listening on {local}; now run the other checker with --peer"));
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false)?;
                match Link::over(stream, GREETING_MAX) {
                    Ok(link) => return Ok(link),
                    Err(error) => write_to_stderr(&format!("{from}: {error}")),
                }
            }
            Err(_) => std::thread::sleep(CONNECT_INTERVAL),
        }
    }
    Err(End::TimedOut(format!("no other checker has connected within {patience:?}")).into())
}

/// What to do about an address that cannot be listened on, with a semicolon before it.
fn what_to_do(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "; another process listens there: choose another port, for --peer too",
        ErrorKind::AddrNotAvailable => {
            "; it is not an address of this host: --listen takes one of its own, which --peer on the other host names"
        }
        ErrorKind::PermissionDenied => "; choose a port above 1023",
        _ => "",
    }
}

/// Connects to the other checker, which may not listen yet.
fn connected(peer: &str, patience: Duration) -> anyhow::Result<Link> {
    let deadline = Instant::now() + patience;
    loop {
        let addresses = peer.to_socket_addrs().with_context(|| format!("cannot find {peer}"))?;
        let mut refused = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, GREETING_MAX) {
                Ok(stream) => return Ok(Link::over(stream, GREETING_MAX)?),
                Err(error) => refused = Some(error),
            }
        }
        if Instant::now() >= deadline {
            let why = refused.map(|error| format!(": {error}")).unwrap_or_default();
            let text = format!(
                "no checker listens on {peer} within {patience:?}{why}; start it there with --listen"
            );
            return Err(End::TimedOut(text).into());
        }
        std::thread::sleep(CONNECT_INTERVAL);
    }
}

fn say(saying: Saying<'_>) {
    match saying {
        Saying::Step(step) if std::io::stderr().is_terminal() => write_to_stderr(&format!("checking {step}")),
        Saying::Step(_) => {}
        Saying::Operator(text) => write_to_stderr(text),
    }
}

fn write_to_stderr(text: &str) {
    // Where nobody can be told, the result is all the same.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn tell(store: &Path, report: &Report, output: &mut Output) -> anyhow::Result<()> {
    let far = match (report.scope, report.late_writes) {
        (Scope::OneHost, _) => "as far as one host can tell",
        (Scope::TwoHosts, _) => "seen from two mounts",
        (Scope::Cut, Some(Class::A)) => "seen from two mounts; late writes: class A, none arrives",
        (Scope::Cut, Some(Class::B)) => {
            "seen from two mounts; late writes: class B, those with a lock do not arrive"
        }
        (Scope::Cut, _) => "seen from two mounts; late writes: class C, they arrive",
    };
    output.line(format_args!("{} is {}, {far}", store.display(), report.verdict))?;
    let mut findings: Vec<&Finding> = report.findings.iter().collect();
    // The worst first; of one level in the order in which they were found.
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    for finding in findings {
        // A part of it may come from the other host.
        let text: String = finding.text.chars().filter(|c| !c.is_control()).collect();
        let word = match finding.level {
            Level::Unfit => "UNFIT",
            level => level.word(),
        };
        output.line(format_args!("  {word:<5}  {text}"))?;
    }
    Ok(())
}
