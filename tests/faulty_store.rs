//! A store on a disk whose n-th write or sync fails, for every n of a scenario, in both modes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use batonmq::model::free_min::FreeMin;
use batonmq::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, TopicId};
use batonmq::model::record::Record;
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::store::{Mode, OpenOptions, Predecessor, Predecessors, Store, StoreError, database, file};
use fuser::Errno;
use scene::{Model, Open, bodies, group_created, producer_opened, published, topic_created};
use support::faulty::FaultyDisk;
use support::faulty::faults::{Effect, Fault, Lasting, Operation};
use support::mount::SmallDisk;

const BOTH: [(Open, Mode); 2] = [(database::open, Mode::Database), (file::open, Mode::File)];

/// So small that segments end and checkpoints are due within a few commits. The database writes by the page, so it has
/// less to write.
const fn segment_bytes(mode: Mode) -> usize {
    match mode {
        Mode::Database => 16 << 10,
        Mode::File => 64 << 10,
    }
}

fn options(dir: &Path, mode: Mode, epoch: u64, predecessor: Predecessor) -> OpenOptions {
    OpenOptions {
        dir: dir.to_owned(),
        mode,
        epoch: Epoch(epoch),
        predecessors: Predecessors::new((1..epoch).map(|lower| (Epoch(lower), predecessor)).collect()),
        segment_bytes: segment_bytes(mode) as u64,
    }
}

/// What is done to a store, one after the other.
enum Step {
    /// What is committed, by the state before it and the bytes of a segment.
    Commit(fn(&Snapshot, usize) -> Vec<Record>),
    /// Upkeep until nothing is due.
    Maintain,
}

const LOG: TopicId = TopicId(0);
const OTHER: TopicId = TopicId(1);
const GROUP: GroupId = GroupId(0);

fn publish(snapshot: &Snapshot, count: usize, len: usize) -> Vec<Record> {
    let mark = snapshot.topics[&LOG].end.0;
    vec![published(snapshot, &[LOG], Some(ProducerId(0)), &bodies(count, len, mark))]
}

fn settle(snapshot: &Snapshot, kept: u64) -> Vec<Record> {
    let (from, to) = (snapshot.groups[&GROUP].floor, Offset(snapshot.topics[&LOG].end.0 - kept));
    let ranges = vec![OffsetRange { start: from, end: to }];
    vec![Record::Settled { group: GROUP, ranges }, Record::Trimmed { topic: LOG, start: to }]
}

/// Records of most kinds; segments that end, die and are removed; checkpoints; a log that starts over.
const SCENARIO: &[Step] = &[
    Step::Commit(|snapshot, _| vec![topic_created(snapshot)]),
    Step::Commit(|snapshot, _| {
        vec![topic_created(snapshot), group_created(snapshot, LOG), producer_opened(snapshot, Timestamp(1))]
    }),
    Step::Commit(|snapshot, _| publish(snapshot, 5, 100)),
    Step::Commit(|snapshot, _| vec![published(snapshot, &[LOG, OTHER], None, &bodies(2, 3_000, 9))]),
    Step::Commit(|snapshot, segment| publish(snapshot, 1, segment / 2)),
    Step::Commit(|snapshot, _| settle(snapshot, 3)),
    Step::Commit(|snapshot, segment| publish(snapshot, 2, segment / 4)),
    Step::Maintain,
    Step::Commit(|snapshot, segment| publish(snapshot, 1, segment / 2 * 3)),
    Step::Commit(|snapshot, _| settle(snapshot, 1)),
    Step::Maintain,
    Step::Commit(|snapshot, _| publish(snapshot, 1, 10)),
    Step::Commit(|_, _| vec![Record::TopicDeleted { topic: OTHER }]),
    Step::Commit(|snapshot, segment| publish(snapshot, 3, segment / 4)),
    Step::Maintain,
    Step::Commit(|snapshot, _| settle(snapshot, 1)),
    Step::Commit(|snapshot, _| publish(snapshot, 1, 20)),
];

/// A store in a folder of a faulty disk, and what its clients may know.
struct Run<'a> {
    disk: &'a FaultyDisk,
    name: String,
    mode: Mode,
    open: Open,
    confirmed: Model,
    /// As if the commit that failed had been confirmed: it may count, and may not.
    unsure: Option<Model>,
    /// The bytes of each commit that found no space.
    refusals: Vec<u64>,
    /// The first error that was final.
    error: Option<StoreError>,
}

impl<'a> Run<'a> {
    /// A folder of its own for a store, on a disk with a fault.
    fn new(disk: &'a FaultyDisk, (open, mode): (Open, Mode), fault: Fault) -> Self {
        let name =
            format!("{mode}-{:?}-{:?}-{:?}-{}", fault.operation, fault.effect, fault.lasting, fault.nth);
        let name = name.replace(['(', ')', ' '], "");
        std::fs::create_dir(disk.path.join(&name)).unwrap();
        disk.faults.plan(fault);
        let (confirmed, unsure) = (Model::default(), None);
        Self { disk, name, mode, open, confirmed, unsure, refusals: Vec::new(), error: None }
    }

    /// Goes through the scenario, up to the first error but that of a full disk.
    fn go(&mut self) {
        let options = options(&self.disk.path.join(&self.name), self.mode, 1, Predecessor::None);
        self.error = match (self.open)(&options) {
            Ok((mut store, _)) => match self.steps(store.as_mut()) {
                Ok(()) => {
                    let snapshot = self.confirmed.snapshot.clone();
                    store.close(&mut || snapshot.clone(), &mut || Ok(())).err()
                }
                Err(error) => {
                    self.nothing_succeeds_any_more(store.as_mut());
                    Some(error)
                }
            },
            Err(error) => Some(error),
        };
        self.disk.faults.clear();
    }

    fn steps(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        for step in SCENARIO {
            let snapshot = self.confirmed.snapshot.clone();
            match step {
                Step::Commit(records) => {
                    store.space(FreeMin::default())?;
                    self.commit(store, &records(&snapshot, segment_bytes(self.mode)))?;
                }
                Step::Maintain => {
                    let mut steps = 0;
                    while store.maintenance_due() {
                        steps += 1;
                        assert!(steps < 1_000, "{}: maintenance never ends", self.name);
                        store.maintain(&mut || snapshot.clone(), &mut || Ok(()))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Commits, and tries again where there is no space, as the engine does.
    fn commit(&mut self, store: &mut dyn Store, records: &[Record]) -> Result<(), StoreError> {
        let mut after = self.confirmed.clone();
        after.apply(records);
        self.unsure = Some(after.clone());
        loop {
            match store.commit(records) {
                Err(StoreError::Full(bytes)) => {
                    assert!(bytes > 0);
                    if self.refusals.is_empty() {
                        self.check(store);
                    }
                    self.refusals.push(bytes);
                    store.make_space(&mut || Ok(()))?;
                    if self.refusals.len() == 2 {
                        self.disk.faults.clear();
                    }
                    assert!(self.refusals.len() < 20, "{}: there is space and it is not found", self.name);
                }
                committed => break committed?,
            }
        }
        (self.confirmed, self.unsure) = (after, None);
        Ok(())
    }

    fn nothing_succeeds_any_more(&self, store: &mut dyn Store) {
        self.disk.faults.clear();
        let snapshot = self.confirmed.snapshot.clone();
        let records = [topic_created(&snapshot)];
        for _ in 0..2 {
            assert!(store.commit(&records).is_err(), "{}: a commit after the error", self.name);
            assert!(store.space(FreeMin::default()).is_err(), "{}: space after the error", self.name);
            if store.maintenance_due() {
                let maintained = store.maintain(&mut || snapshot.clone(), &mut || Ok(()));
                assert!(maintained.is_err(), "{}: upkeep after the error", self.name);
            }
        }
    }

    /// The store holds what was confirmed, and nothing else.
    fn check(&self, store: &dyn Store) {
        self.confirmed.check_everything(store.reader().unwrap().as_mut(), 16 << 10);
    }

    /// Opens the store as the next master does, on the disk without faults: it has everything that was confirmed, and
    /// of a commit that was not, all or nothing.
    fn recover(&self, predecessor: Predecessor) {
        let options = options(&self.disk.real.join(&self.name), self.mode, 2, predecessor);
        let (mut store, snapshot) = (self.open)(&options).unwrap_or_else(|error| {
            panic!("{}: {error}, after {:?}, hit {:?}", self.name, self.error, self.disk.faults.hits());
        });
        let found = match &self.unsure {
            Some(unsure) if snapshot == unsure.snapshot => unsure,
            _ => &self.confirmed,
        };
        assert_eq!(snapshot, found.snapshot, "{}: after {:?}", self.name, self.error);
        let mut model = found.clone();
        let records = [topic_created(&model.snapshot)];
        store.commit(&records).unwrap();
        model.apply(&records);
        model.check_everything(store.reader().unwrap().as_mut(), 16 << 10);
        store.close(&mut || model.snapshot.clone(), &mut || Ok(())).unwrap();
        // A thread of the first store may still be at work there. What is left goes with the disk.
        let _ = std::fs::remove_dir_all(self.disk.real.join(&self.name));
    }

    /// Whether the fault hit only what need not be noticed: a segment that was being made ahead, or the folder when its
    /// name was synced, where nobody needed it; or the folder when the database synced it, which this leaves to others.
    fn only_hit_what_may_fail(&self) -> bool {
        let folder = self.disk.real.join(&self.name);
        let journal = folder.join("journal");
        self.disk.faults.hits().iter().all(|path| {
            let is_segment = !path.to_string_lossy().contains("checkpoint-");
            (self.mode == Mode::Database && *path == folder)
                || (is_segment && path.parent() == Some(&journal) && is_being_made(path))
                || (*path == journal && ends_with_an_unused_segment(&journal))
        })
    }
}

/// Whether the last segment has no entry.
fn ends_with_an_unused_segment(journal: &Path) -> bool {
    let paths = std::fs::read_dir(journal).unwrap().map(|entry| entry.unwrap().path());
    let last = paths.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max();
    last.is_some_and(|last| std::fs::read(last).unwrap()[4096..].iter().all(|byte| *byte == 0))
}

/// One whose rename was hit is known by the name that it did not get.
fn is_being_made(path: &Path) -> bool {
    let ends_with = |end: &str| path.extension().is_some_and(|extension| extension == end);
    ends_with("new") || (ends_with("log") && !path.exists())
}

/// How many operations of a kind the scenario has.
fn count(disk: &FaultyDisk, mode: (Open, Mode), operation: Operation) -> u64 {
    let effect = Effect::IsShort;
    let fault = Fault { operation, effect, lasting: Lasting::Once, path: "", nth: u64::MAX };
    let mut run = Run::new(disk, mode, fault);
    run.go();
    let counted = disk.faults.counted();
    assert!(run.error.is_none(), "{:?}", run.error);
    run.recover(Predecessor::Gone);
    counted
}

/// Runs the scenario with each of its operations of a kind failing in this way.
fn each(operation: Operation, effect: Effect, lasting: Lasting, check: impl Fn(&Run<'_>)) {
    each_of((operation, 1), effect, lasting, check);
}

/// As [`each`] with only each so many-th of them.
fn each_of(
    (operation, step): (Operation, usize),
    effect: Effect,
    lasting: Lasting,
    check: impl Fn(&Run<'_>),
) {
    let dir = tempfile::tempdir().unwrap();
    // In memory: what a sync costs is not the question here.
    let memory = SmallDisk::new(&dir.path().join("memory"), 256);
    let disk = FaultyDisk::new(&memory.path);
    for mode in BOTH {
        let count = count(&disk, mode, operation);
        let planned: Vec<u64> = (1..=count).step_by(step).collect();
        let (mut hit, runs) = (0, planned.len());
        for nth in planned {
            let mut run = Run::new(&disk, mode, Fault { operation, effect, lasting, path: "", nth });
            run.go();
            if !disk.faults.hits().is_empty() {
                hit += 1;
                check(&run);
            }
            // What of the old master may still be written is another question; both ways of recovering must do.
            run.recover(if nth % 2 == 0 { Predecessor::Gone } else { Predecessor::MayWrite });
        }
        println!("{}: {count} operations, {hit} of {runs} were hit", mode.1);
        // A thread beside the commits makes the number of one run another than that of the next.
        assert!(hit + 10 > runs, "{hit} of {runs} were hit");
    }
}

fn ends_the_store(run: &Run<'_>) {
    assert!(
        run.error.is_some() || run.only_hit_what_may_fail(),
        "{}: nobody noticed what hit {:?}",
        run.name,
        run.disk.faults.hits()
    );
    assert!(run.refusals.is_empty(), "{}: no disk is full", run.name);
}

fn goes_on(run: &Run<'_>) {
    // A node that finds no space before it serves does not become master, and the next one begins where it did.
    let has_begun = run.confirmed != Model::default();
    assert!(run.error.is_none() || !has_begun, "{}: {:?}", run.name, run.error);
}

/// Without this, a second sync would make everything good, and nothing here would show anything.
#[test]
fn a_failed_sync_of_this_disk_loses_what_was_written_since_the_last_good_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(dir.path());
    let file = File::options().create_new(true).read(true).write(true).open(disk.path.join("f")).unwrap();
    file.write_all_at(b"synced", 0).unwrap();
    file.sync_data().unwrap();
    let (operation, effect) = (Operation::Sync, Effect::Fails(Errno::EIO));
    disk.faults.plan(Fault { operation, effect, lasting: Lasting::Once, path: "", nth: 1 });
    file.write_all_at(b"lost", 0).unwrap();
    file.write_all_at(b"too", 4_000).unwrap();
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(Errno::EIO.code()));
    file.sync_data().unwrap();
    for path in [&disk.path, &disk.real] {
        assert_eq!(std::fs::read(path.join("f")).unwrap(), b"synced");
    }
}

#[test]
fn a_failed_write_ends_the_store_and_the_next_master_has_everything() {
    each(Operation::Write, Effect::Fails(Errno::EIO), Lasting::Once, ends_the_store);
}

#[test]
fn a_failed_sync_ends_the_store_and_the_next_master_has_everything() {
    each(Operation::Sync, Effect::Fails(Errno::EIO), Lasting::Once, ends_the_store);
}

/// What was to be synced may be gone from memory then: to say that the disk is full and try again would confirm what
/// is nowhere. A file that nothing is in yet is no loss: it is made again, or made longer again.
#[test]
fn a_sync_that_finds_no_space_ends_the_store_too() {
    each(Operation::Sync, Effect::Fails(Errno::ENOSPC), Lasting::Once, |run| {
        let made_again = run.disk.faults.hits().iter().all(|path| is_being_made(path));
        let made_longer = run.refusals.iter().any(|&bytes| bytes > segment_bytes(run.mode) as u64);
        let is_harmless = made_again || made_longer || run.only_hit_what_may_fail();
        assert!(run.error.is_some() || is_harmless, "{}", run.name);
    });
}

#[test]
fn a_write_that_finds_no_space_is_tried_again() {
    each_of((Operation::Write, 5), Effect::Fails(Errno::ENOSPC), Lasting::Once, goes_on);
}

#[test]
fn a_disk_that_is_full_for_a_while_loses_nothing() {
    each(Operation::Write, Effect::Fails(Errno::ENOSPC), Lasting::Always, goes_on);
}

/// What raises the reach of a segment was written behind the entry: where only that found no space, the entry was whole.
/// A commit that was refused counted then, and so did a pack that had been removed because it was refused: the store
/// missed it and did not open any more.
#[test]
fn what_was_refused_for_want_of_space_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(dir.path());
    let mut refused = 0;
    for nth in 1.. {
        let folder = disk.path.join(nth.to_string());
        std::fs::create_dir(&folder).unwrap();
        let options = |epoch, predecessor| OpenOptions {
            segment_bytes: 16 << 20,
            ..options(&folder, Mode::File, epoch, predecessor)
        };
        let (mut store, mut snapshot) = file::open(&options(1, Predecessor::None)).unwrap();
        let (operation, effect) = (Operation::Write, Effect::Fails(Errno::ENOSPC));
        // The second segment is the first that is large enough for a reach of its own.
        disk.faults.plan(Fault { operation, effect, lasting: Lasting::Once, path: "000002.log", nth });
        let records = vec![topic_created(&snapshot), producer_opened(&snapshot, Timestamp(1))];
        store.commit(&records).unwrap();
        records.iter().for_each(|record| snapshot.apply(record).unwrap());
        let refusal = (0..6).find_map(|_| {
            let records = publish(&snapshot, 1, 600 << 10);
            let refusal = store.commit(&records).err();
            if refusal.is_none() {
                records.iter().for_each(|record| snapshot.apply(record).unwrap());
            }
            refusal
        });
        disk.faults.clear();
        drop(store);
        let Some(refusal) = refusal else { break };
        assert!(matches!(refusal, StoreError::Full(_)), "{refusal}");
        let (_, recovered) = file::open(&options(2, Predecessor::MayWrite)).unwrap();
        assert_eq!(recovered, snapshot, "the {nth}. write");
        refused += 1;
    }
    assert!(refused > 5, "{refused}");
}

#[test]
fn a_quota_that_is_used_up_for_a_while_loses_nothing() {
    each_of((Operation::Write, 5), Effect::Fails(Errno::EDQUOT), Lasting::Always, goes_on);
}

#[test]
fn a_write_that_is_cut_short_is_finished() {
    each_of((Operation::Write, 5), Effect::IsShort, Lasting::Once, |run| {
        assert!(run.error.is_none(), "{}: {:?}", run.name, run.error);
    });
}

#[test]
fn a_failed_rename_creation_or_removal_ends_the_store_and_the_next_master_has_everything() {
    for operation in [Operation::Rename, Operation::Create, Operation::Remove] {
        each(operation, Effect::Fails(Errno::EIO), Lasting::Once, ends_the_store);
    }
}
