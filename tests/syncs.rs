//! That whatever must survive a power loss is synced, in the right order, and that the fence is checked in between:
//! seen in the system calls of a node. What is read back says nothing of that, since it comes from memory.
//!
//! Needs `strace` and the right to trace a child.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod trace;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use batonmq::model::id::{Epoch, TopicId};
use batonmq::model::name::Name;
use batonmq::model::record::Record;
use batonmq::model::settings::TopicSettings;
use batonmq::model::topic_kind::TopicKind;
use batonmq::store::{Mode, OpenOptions, Predecessor, Predecessors, STAGED_BYTES_MIN, Store, database};
use cli_support::{command, free_address, run, wait_for_end, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use trace::{Call, TRACED};

const NEEDS: &str = "this test runs a node under strace: install strace, and allow ptrace (in a container: \
                     --cap-add SYS_PTRACE)";

/// A node under `strace`.
struct Traced {
    strace: Child,
    server: String,
    trace: PathBuf,
}

impl Traced {
    fn start(dir: &Path, mode: &str, number: u32) -> Self {
        let (trace, server) = (dir.join(format!("trace-{number}")), free_address());
        let log = std::fs::File::create(dir.join(format!("log-{number}"))).unwrap();
        let node = command(&["serve", "--listen", &server, "--mode", mode]);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-s", "5000", "-e", TRACED, "-o"]).arg(&trace);
        strace.arg(node.get_program()).args(node.get_args()).arg("--store").arg(dir.join("store"));
        strace
            .env_clear()
            .env("BATON_SEGMENT_BYTES", "64KiB")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut traced = Self { strace: strace.spawn().expect(NEEDS), server, trace };
        wait_until(|| {
            assert!(traced.strace.try_wait().unwrap().is_none(), "{NEEDS}");
            run(&["topic", "list", "--server", &traced.server]).code == Some(0)
        });
        traced
    }

    fn baton(&self, args: &[&str]) {
        run(&[args, &["--server", &self.server]].concat()).ok();
    }

    /// The node itself; `None` once it has ended.
    fn node(&self) -> Option<Pid> {
        let id = self.strace.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        Pid::from_raw(children.trim().parse().ok()?)
    }

    /// Ends the node with a signal. Answers what it did.
    fn end(mut self, signal: Signal) -> Vec<Call> {
        kill_process(self.node().unwrap(), signal).unwrap();
        wait_for_end(&mut self.strace);
        trace::read(&self.trace)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // What it traces would outlive it.
        if let Some(node) = self.node() {
            let _ = kill_process(node, Signal::KILL);
        }
        let _ = self.strace.wait();
    }
}

/// What is there before a node starts.
fn names(folder: &Path) -> BTreeSet<PathBuf> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        names.extend(self::names(&path));
        names.insert(path);
    }
    names
}

/// Records that were never synced, or confirmed before they were, were found by no test: all of them read what the
/// system still had in memory.
fn everything_is_synced_before_it_counts(mode: &str) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let filler = dir.path().join("filler");
    std::fs::write(&filler, vec![b'x'; 48 << 10]).unwrap();
    let small = dir.path().join("small");
    std::fs::write(&small, vec![b'z'; 16 << 10]).unwrap();
    let (filler, small) = (filler.to_str().unwrap(), small.to_str().unwrap());

    let node = Traced::start(dir.path(), mode, 1);
    node.baton(&["topic", "create", "t"]);
    node.baton(&["group", "create", "t", "g"]);
    node.baton(&["publish", "t", "first-marker"]);
    // Several segments, checkpoints and removals, and of each segment something that stays.
    node.baton(&["topic", "create", "kept"]);
    for _ in 0..6 {
        node.baton(&["publish", "t", "--files", filler]);
        node.baton(&["publish", "kept", "x"]);
    }
    node.baton(&["consume", "t", "--group", "g", "--count", "7"]);
    if mode == "file" {
        wait_until(|| names(&store).iter().any(|path| path.extension().is_some_and(|end| end == "pack")));
        std::fs::write(filler, vec![b'y'; STAGED_BYTES_MIN as usize]).unwrap();
        node.baton(&["publish", "t", "--files", filler]);
        // What the pack replaces goes while commits go on.
        let first = store.join("journal").join(format!("{:020}-{:06}.log", 1, 2));
        wait_until(|| {
            node.baton(&["publish", "t", "--files", small]);
            !first.exists()
        });
    }
    node.baton(&["publish", "t", "second-marker"]);
    let calls = node.end(Signal::KILL);
    if mode == "file" {
        check_packs(&calls);
    }
    check_all(&calls, &store, &BTreeSet::new(), mode);
    for marker in ["first-marker", "second-marker"] {
        check_confirm(&calls, &store, marker);
    }

    let before = names(&store);
    let node = Traced::start(dir.path(), mode, 2);
    node.baton(&["publish", "t", "third-marker"]);
    let calls = node.end(Signal::TERM);
    check_all(&calls, &store, &before, mode);
    check_confirm(&calls, &store, "third-marker");
    if mode == "file" {
        check_recovery(&calls, &before);
    }
    let released = calls.iter().rfind(|call| call.file_name() == "control" && call.is_write());
    assert!(released.is_some(), "the release is written");
}

fn check_all(calls: &[Call], store: &Path, before: &BTreeSet<PathBuf>, mode: &str) {
    check_renames(calls);
    check_new_names(calls, store, before);
    check_control(calls, store);
    check_removals(calls, store);
    let renamed = |part: &str| {
        calls.iter().any(|call| call.is_rename() && call.target().to_string_lossy().contains(part))
    };
    assert!(renamed("/manifest/"));
    if mode == "file" {
        assert!(renamed("/journal/checkpoint-") && renamed("-000001.log"));
    } else {
        check_checkpoints(calls);
    }
}

/// Between the write of a message and the next thing that its thread tells a client, the file is synced and then the
/// fence checked. Heartbeats come from other threads, at any moment.
fn check_confirm(calls: &[Call], store: &Path, marker: &str) {
    let is_record =
        |call: &&Call| call.is_write() && call.path.starts_with(store) && call.arguments.contains(marker);
    let written = calls.iter().find(is_record).expect(marker);
    let clients: BTreeSet<&Path> =
        calls.iter().filter(|call| call.name == "accept4").map(|call| call.path.as_path()).collect();
    let told = calls.iter().find(|call| {
        call.is_send()
            && call.thread == written.thread
            && clients.contains(call.path.as_path())
            && call.start > written.end
    });
    let told = told.expect("the client is told").start;
    let last =
        calls.iter().rfind(|call| call.is_write() && call.path == written.path && call.start < told).unwrap();
    let synced = calls.iter().find(|call| call.is_sync() && call.path == last.path && call.start > last.end);
    let synced =
        synced.filter(|synced| synced.end < told).unwrap_or_else(|| panic!("{marker} is confirmed unsynced"));
    let fence = store.join("control");
    let checked = calls
        .iter()
        .any(|call| call.is_open() && call.path == fence && call.start > synced.end && call.end < told);
    assert!(checked, "{marker} is confirmed without a check of the fence after the sync");
}

/// A file is synced before it gets its name, and the name before the thread syncs anything else.
fn check_renames(calls: &[Call]) {
    for rename in calls.iter().filter(|call| call.is_rename()) {
        let last = calls
            .iter()
            .rfind(|call| call.is_write() && call.path == rename.path && call.start < rename.start);
        let last = last.unwrap_or_else(|| panic!("{rename:?} of an empty file"));
        let synced = calls.iter().any(|call| {
            call.is_sync() && call.path == rename.path && call.start > last.end && call.end < rename.start
        });
        assert!(synced, "{} is renamed before it is synced", rename.path.display());
        if !is_last(calls, rename) {
            assert_eq!(
                next_sync(calls, rename),
                rename.target().parent(),
                "after the rename of {:?}",
                rename.path
            );
        }
    }
}

/// Whether the node was killed before the thread of a call went on.
fn is_last(calls: &[Call], last: &Call) -> bool {
    !calls.iter().any(|call| call.thread == last.thread && call.start > last.end)
}

/// What the thread of a call syncs next.
fn next_sync<'a>(calls: &'a [Call], after: &Call) -> Option<&'a Path> {
    let next =
        calls.iter().find(|call| call.is_sync() && call.thread == after.thread && call.start > after.end);
    next.map(|next| next.path.as_path())
}

/// The name of each new file and folder is durable before its thread renames something, or writes to `control`.
fn check_new_names(calls: &[Call], store: &Path, before: &BTreeSet<PathBuf>) {
    let mut known = before.clone();
    for made in calls {
        let is_new = made.name == "mkdir" || (made.is_open() && made.arguments.contains("O_CREAT"));
        let is_passing = [".new", "-journal", "baton.lock"].iter().any(|end| made.file_name().ends_with(end));
        if !is_new
            || is_passing
            || !made.path.starts_with(store)
            || made.path == store
            || !known.insert(made.path.clone())
        {
            continue;
        }
        let folder = made.path.parent().unwrap();
        let later = |call: &&Call| call.thread == made.thread && call.start > made.end;
        let is_passing = |call: &Call| call.target().to_string_lossy().ends_with("-earlier");
        let counts = calls.iter().filter(later).find(|call| {
            (call.is_rename() && !is_passing(call)) || (call.is_write() && call.path == store.join("control"))
        });
        let Some(counts) = counts else { continue };
        let synced = calls.iter().any(|call| {
            call.is_sync() && call.path == folder && call.start > made.end && call.end < counts.start
        });
        assert!(synced, "the name {} is not synced before it counts", made.path.display());
    }
}

/// Messages were copied into a pack; and a large one has a pack of its own, which is durable with its name before the
/// journal says that it counts.
fn check_packs(calls: &[Call]) {
    let is_pack = |path: &Path| path.extension().is_some_and(|end| end == "pack");
    assert!(calls.iter().any(|call| call.is_rename() && is_pack(&call.target())), "nothing is packed");
    let mut count = 0;
    for made in calls.iter().filter(|call| call.is_open() && is_pack(&call.path)) {
        if !made.arguments.contains("O_CREAT") {
            continue;
        }
        let last = calls.iter().rfind(|call| call.is_write() && call.path == made.path).unwrap();
        let commit = calls.iter().find(|call| {
            call.is_write() && call.start > last.end && call.path.extension().is_some_and(|end| end == "log")
        });
        let commit = commit.expect("the commit of the large message");
        let is_synced = |path: &Path, after: &Call| {
            calls.iter().any(|call| {
                call.is_sync() && call.path == path && call.start > after.end && call.end < commit.start
            })
        };
        assert!(is_synced(&made.path, last), "{} counts before it is synced", made.path.display());
        let folder = made.path.parent().unwrap();
        assert!(is_synced(folder, made), "{} counts before its name is synced", made.path.display());
        count += 1;
    }
    assert!(count > 0, "nothing is staged");
}

/// Claims and blocks of `control` are synced by whoever wrote them, at once.
fn check_control(calls: &[Call], store: &Path) {
    let is_claim = |path: &Path| path == store.join("control") || path.starts_with(store.join("epochs"));
    for write in calls.iter().filter(|call| call.is_write() && is_claim(&call.path)) {
        assert_eq!(next_sync(calls, write), Some(write.path.as_path()), "after {:?} was written", write.path);
    }
}

/// What is removed from the journal, and an old log, stays removed. A pack that is given up half-way need not: the next
/// epoch removes it.
fn check_removals(calls: &[Call], store: &Path) {
    for unlink in calls.iter().filter(|call| call.name == "unlink" && !call.file_name().ends_with(".new")) {
        let folder = unlink.path.parent().unwrap();
        let stays = folder == store.join("journal") || unlink.file_name().ends_with("-wal");
        if stays && !is_last(calls, unlink) {
            let next = calls.iter().find(|call| {
                call.thread == unlink.thread
                    && call.start > unlink.end
                    && call.name != "unlink"
                    && !call.is_open()
            });
            assert!(
                next.is_some_and(|next| next.is_sync() && next.path == folder),
                "after {:?}: {next:?}",
                unlink.path
            );
        }
    }
}

/// The log is synced before any of it is written into the database, and the database before the log is given up.
fn check_checkpoints(calls: &[Call]) {
    let mut checkpoint_count = 0;
    let is_clean = |suffix: &str, at: &Call| {
        let last = calls
            .iter()
            .rfind(|call| call.is_write() && call.file_name().ends_with(suffix) && call.start < at.start);
        last.is_none_or(|last| {
            calls.iter().any(|call| {
                call.is_sync() && call.path == last.path && call.start > last.end && call.end < at.start
            })
        })
    };
    for call in calls.iter().filter(|call| call.is_write() || call.name == "unlink") {
        let name = call.file_name();
        if name.ends_with(".db") {
            assert!(is_clean(".db-wal", call), "{call:?}");
            checkpoint_count += 1;
        } else if name.ends_with(".db-wal")
            && (call.name != "pwrite64" || call.arguments.ends_with(", 32, 0"))
            && call.name != "write"
        {
            assert!(is_clean(".db", call), "{call:?}");
        }
    }
    assert!(checkpoint_count > 0);
}

/// What a takeover reads of the last master's journal is synced before, since memory may have more than the disk, and
/// after, since it is accepted.
fn check_recovery(calls: &[Call], before: &BTreeSet<PathBuf>) {
    let accepted = calls.iter().find(|call| call.is_rename()).unwrap();
    let mut read_count = 0;
    for path in before.iter().filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
        let of = || calls.iter().filter(|call| call.path == **path && call.start < accepted.start);
        let Some(dropped) = of().find(|call| call.name == "fadvise64") else { continue };
        let last_read = of().rfind(|call| call.name == "pread64").unwrap();
        assert!(of().any(|call| call.is_sync() && call.end < dropped.start), "{}", path.display());
        assert!(of().any(|call| call.is_sync() && call.start > last_read.end), "{}", path.display());
        read_count += 1;
    }
    assert!(read_count > 0);
}

#[test]
fn everything_is_synced_before_it_counts_in_file_mode() {
    everything_is_synced_before_it_counts("file");
}

#[test]
fn everything_is_synced_before_it_counts_in_database_mode() {
    everything_is_synced_before_it_counts("database");
}

const CHILD: &str = "BATON_TEST_SYNCS_DIR";

fn open_database(dir: &Path, epoch: u64) -> Box<dyn Store> {
    let predecessors =
        Predecessors::new((1..epoch).map(|lower| (Epoch(lower), Predecessor::MayWrite)).collect());
    let (dir, mode, epoch) = (dir.to_owned(), Mode::Database, Epoch(epoch));
    database::open(&OpenOptions { dir, mode, epoch, predecessors, segment_bytes: 1 << 20 }).unwrap().0
}

/// Not a test of its own: it is what the traced process of the next test runs.
#[test]
fn copying_process() {
    if let Some(dir) = std::env::var_os(CHILD) {
        drop(open_database(Path::new(&dir), 2));
    }
}

#[test]
fn a_copied_database_is_synced_before_a_manifest_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, trace) = (dir.path().join("store"), dir.path().join("trace"));
    std::fs::create_dir(&store).unwrap();
    let name = Name::new("t").unwrap();
    let (kind, settings) = (TopicKind::Named, TopicSettings::default());
    let created = Record::TopicCreated { topic: TopicId(0), name, kind, settings };
    open_database(&store, 1).commit(&[created]).unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-e", TRACED, "-o"]).arg(&trace).arg(std::env::current_exe().unwrap());
    let copied = strace.args(["--exact", "copying_process"]).env(CHILD, &store).output().expect(NEEDS);
    assert!(copied.status.success(), "{NEEDS}: {copied:?}");

    let calls = trace::read(&trace);
    let named = calls
        .iter()
        .find(|call| call.is_rename() && call.target().starts_with(store.join("manifest")))
        .unwrap();
    for name in ["baton-00000000000000000002.db", "baton-00000000000000000002.db-wal"] {
        let of = || calls.iter().filter(|call| call.path == store.join(name) && call.start < named.start);
        let written = of().rfind(|call| call.is_write()).expect(name);
        assert!(of().any(|call| call.is_sync() && call.start > written.end), "{name} is not synced");
    }
    check_new_names(&calls, &store, &BTreeSet::from([store.clone()]));
}

/// A conversion that is killed between the name of its manifest and the sync of that leaves a switch that a power loss
/// takes back: the old store must not go before the next epoch has made it durable.
#[test]
fn a_switch_is_durable_before_what_it_replaced_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    Traced::start(dir.path(), "file", 1).end(Signal::TERM);
    let left = "baton-00000000000000000001.db";
    std::fs::write(store.join(left), "of the other mode").unwrap();
    let calls = Traced::start(dir.path(), "file", 2).end(Signal::KILL);
    let is_removal = |call: &&Call| call.name == "unlink" && call.arguments.contains(left);
    let removed = calls.iter().find(is_removal).expect("what is of the other mode is removed");
    let manifest = store.join("manifest");
    let synced = calls.iter().any(|call| {
        call.is_sync() && call.path == manifest && call.thread == removed.thread && call.end < removed.start
    });
    assert!(synced, "removed before the manifest was synced");
}
