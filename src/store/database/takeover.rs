//! How a new master gets at the database of the one before it.
//!
//! Where nothing of the old master can still be written, the database is used in place: its write-ahead log is
//! checkpointed and a new one begun. Where the old master may still write, its files are only read, and copied to
//! files named by the new epoch, so that whatever it still writes lands where nobody looks.
//!
//! # The copy
//!
//! The old master may append to its log, checkpoint the log into the database, and start the log over, all while it
//! is being copied. The copy counts if and only if the log was not started over between a first reading of it, the
//! copying of the database, and the end of a second reading: then every page that a checkpoint changed under the
//! copy is in the second reading, which is the one that is kept, and replaying it makes the copy whole. A log that
//! was started over has a new header, because its salts are changed before its first frame is written. A log that
//! is gone or empty cannot become full and empty again in between, because only [`close`](super::super::Store::close)
//! empties one, and it has checked the fence, which this epoch's claim has broken.
//!
//! Each reading is [fresh](crate::disk): a descriptor or an attribute from before may hide the newest bytes.
//!
//! A copy may take minutes. The fence is asked after each step of it, and the files of a copy that comes to nothing
//! are [removed](super::unserved::Unserved).

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::wal::CheckpointMode;

use super::super::manifest::sync_dir;
use super::super::space::FreeSpace;
use super::super::{FenceCheck, Predecessors, StoreError};
use super::connection::{self, Access, failed, growth_bytes, is_full};
use super::frame::{FRAME_HEADER_BYTES, HEADER_BYTES, Header};
use super::log::Committed;
use super::{files, schema, unserved};
use crate::disk;
use crate::model::id::Epoch;

/// Bytes that are copied between two checks of the fence.
const COPY_STEP_BYTES: u64 = 4 << 20;
/// Bytes that must be free beyond those of a copy: for what the old master still appends, and for the new manifest.
const COPY_SPARE_BYTES: u64 = 4 << 20;
/// Milliseconds for each MiB of a copy, about: a guess for the log.
const COPY_MS_PER_MIB: u64 = 2;
/// Bytes compared at a time.
const COMPARED: usize = 256 * 1024;

/// Makes an old database that nobody else can write ready for a new epoch: everything that was committed is in the
/// database file, and its write-ahead log is a new file. On a full disk the log is kept, cut where its commits end,
/// so that there is a master that can drain it. Step `Recover` of `tests/ha_model`.
///
/// # Errors
/// Where it is missing, damaged, of a newer format, or cannot be written.
pub(super) fn recover(path: &Path, committed: &Committed) -> Result<(), StoreError> {
    let started = Instant::now();
    let log = files::log(path);
    // The database asks for lengths in its own way, and reads no further than what it is told.
    files::length(path)?.ok_or_else(|| StoreError::Missing { path: path.to_owned() })?;
    files::length(&log)?;
    let connection = connection::open(path, Access::Write)?;
    schema::check(&connection, path)?;
    let written_back = write_back(&connection, path)?;
    connection.close().map_err(|(_, error)| failed("close after the checkpoint")(error))?;
    match written_back {
        WrittenBack::All => {
            // An empty log holds nothing. A new file in its place takes no bytes that were sent to the old one.
            match fs::remove_file(&log) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("remove", &log)(error)),
                _ => {}
            }
            if let Some(dir) = path.parent() {
                sync_dir(dir)?;
            }
        }
        WrittenBack::DiskIsFull => {
            tracing::warn!(log = %log.display(), "the disk is full: the log is kept, it is written back later");
            super::log::cut(&log, committed)?;
        }
    }
    tracing::info!(database = %path.display(), took = ?started.elapsed(), "database recovered in place");
    Ok(())
}

/// How much of a log could be written into its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WrittenBack {
    All,
    DiskIsFull,
}

fn write_back(connection: &Connection, path: &Path) -> Result<WrittenBack, StoreError> {
    let action = "checkpoint the old log";
    let growth = growth_bytes(connection, path).map_err(failed("count the pages"))?;
    // Trying would take what is left, which the new master needs to begin.
    if growth > 0 && growth >= FreeSpace::around(path.parent().unwrap_or(path)).bytes()? {
        return Ok(WrittenBack::DiskIsFull);
    }
    match connection.wal_checkpoint_v2(Some(c"main"), CheckpointMode::TRUNCATE) {
        Ok((frames, done)) if frames == done => Ok(WrittenBack::All),
        Ok((frames, done)) => {
            let message = format!("{done} of {frames} frames of the old log could be written back");
            Err(StoreError::Database { action, message })
        }
        Err(error) if is_full(&error, path) => Ok(WrittenBack::DiskIsFull),
        Err(error) => Err(failed(action)(error)),
    }
}

/// Checks that there is space for a copy of the database called `name`. Bytes of abandoned copies count as free.
///
/// # Errors
/// [`StoreError::NoSpaceToCopy`], or where the files cannot be looked at.
pub(super) fn check_space(dir: &Path, name: &str, predecessors: &Predecessors) -> Result<(), StoreError> {
    let path = dir.join(name);
    let length = |path: &Path| Ok::<_, StoreError>(files::length(path)?.unwrap_or(0));
    // Two readings of the log are there at once.
    let needed = length(&path)? + 2 * length(&files::log(&path))? + COPY_SPARE_BYTES;
    let mut free = disk::free(dir).map_err(io("look for space in", dir))?;
    for abandoned in unserved::abandoned(dir, Epoch(u64::MAX), name, predecessors)? {
        free += length(&abandoned)?;
    }
    if free < needed { Err(StoreError::NoSpaceToCopy { path, needed, free }) } else { Ok(()) }
}

/// Copies the database `old` that somebody may still write to `new`; when it returns the copy is durable, and the
/// fence has held since its last read. On an error a part of it may be there. Step `Copy` of `tests/ha_model`, which has
/// a model of its own for the order of the readings.
///
/// # Errors
/// Where the fence is broken, the old one is missing or cannot be read, or the new one cannot be written.
pub(super) fn copy(old: &Path, new: &Path, fence: FenceCheck<'_>) -> Result<(), StoreError> {
    copy_watched(old, new, fence, &mut |_| {})?;
    Ok(fence()?)
}

/// The steps of a copy after which the old master may do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    FirstLog,
    Database,
    SecondLog,
}

fn copy_watched(
    old: &Path,
    new: &Path,
    fence: FenceCheck<'_>,
    after: &mut dyn FnMut(Step),
) -> Result<(), StoreError> {
    let started = Instant::now();
    let (old_log, new_log) = (files::log(old), files::log(new));
    let earlier_log = files::earlier_log(new);
    let bytes = files::length(old)?.ok_or_else(|| StoreError::Missing { path: old.to_owned() })?;
    let log_bytes = files::length(&old_log)?.unwrap_or(0);
    tracing::info!(
        from = %old.display(),
        to = %new.display(),
        bytes = bytes + log_bytes,
        about = ?Duration::from_millis((bytes + log_bytes) / (1 << 20) * COPY_MS_PER_MIB),
        "the old master may still write: copying its database"
    );
    copy_log(&old_log, &new_log, fence)?;
    after(Step::FirstLog);
    loop {
        fs::rename(&new_log, &earlier_log).map_err(io("rename", &new_log))?;
        copy_file(disk::Copying::begin(old, new).map_err(io("copy", old))?, old, fence)?;
        after(Step::Database);
        copy_log(&old_log, &new_log, fence)?;
        after(Step::SecondLog);
        if continues(&earlier_log, &new_log, &old_log)? {
            break;
        }
        tracing::warn!(from = %old.display(), "the old master has started its log over: copying again");
    }
    fs::remove_file(&earlier_log).map_err(io("remove", &earlier_log))?;
    for path in [new, &new_log] {
        File::open(path).and_then(|file| file.sync_all()).map_err(io("sync", path))?;
    }
    if let Some(dir) = new.parent() {
        sync_dir(dir)?;
    }
    tracing::info!(to = %new.display(), took = ?started.elapsed(), "database copied");
    Ok(())
}

/// Copies a log; one that is not there is like an empty one.
fn copy_log(from: &Path, to: &Path, fence: FenceCheck<'_>) -> Result<(), StoreError> {
    match disk::Copying::begin(from, to) {
        Ok(copying) => copy_file(copying, from, fence),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            File::create(to).map(|_| ()).map_err(io("create", to))
        }
        Err(source) => Err(io("copy", from)(source)),
    }
}

/// Copies the rest of the file `from`, as long as the fence holds.
fn copy_file(mut copying: disk::Copying, from: &Path, fence: FenceCheck<'_>) -> Result<(), StoreError> {
    while copying.step(COPY_STEP_BYTES).map_err(io("copy", from))? > 0 {
        fence()?;
    }
    Ok(())
}

/// Whether the log was not started over, nor begun, from the reading `earlier` until now, which is after the reading
/// `later`.
fn continues(earlier: &Path, later: &Path, log: &Path) -> Result<bool, StoreError> {
    let start = header(earlier)?;
    if header(later)? != start || header(log)? != start {
        return Ok(false);
    }
    same_start(earlier, later, frames_end(earlier)?)
}

/// The header of a log; fewer bytes where it has none yet.
fn header(log: &Path) -> Result<Vec<u8>, StoreError> {
    let file = match disk::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io("open", log)(source)),
    };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    file.take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(io("read", log))?;
    Ok(header)
}

/// Where the frames end that were written since the log was last started over: behind them are old ones, with other
/// salts, or zeros.
fn frames_end(log: &Path) -> Result<u64, StoreError> {
    let bytes = header(log)?;
    // Zeros that were written ahead have no header, and are not walked through.
    let Some(header) = bytes.first_chunk().and_then(Header::decode) else { return Ok(bytes.len() as u64) };
    let frame = header.frame_bytes() as u64;
    let mut file = File::open(log).map_err(io("open", log))?;
    let len = files::length(log)?.unwrap_or(0);
    let mut end = HEADER_BYTES as u64;
    while end + frame <= len {
        let mut head = [0; FRAME_HEADER_BYTES];
        file.seek(SeekFrom::Start(end)).and_then(|_| file.read_exact(&mut head)).map_err(io("read", log))?;
        if !header.has_salts_of(&head) {
            break;
        }
        end += frame;
    }
    Ok(end)
}

/// Whether the first `len` bytes of both files are the same.
fn same_start(one: &Path, other: &Path, len: u64) -> Result<bool, StoreError> {
    let open = |path: &Path| File::open(path).map_err(io("open", path));
    let (mut one_file, mut other_file) = (open(one)?.take(len), open(other)?.take(len));
    let (mut one_bytes, mut other_bytes) = (Vec::new(), Vec::new());
    loop {
        one_bytes.clear();
        other_bytes.clear();
        (&mut one_file).take(COMPARED as u64).read_to_end(&mut one_bytes).map_err(io("read", one))?;
        (&mut other_file).take(COMPARED as u64).read_to_end(&mut other_bytes).map_err(io("read", other))?;
        if one_bytes != other_bytes {
            return Ok(false);
        }
        if one_bytes.is_empty() {
            return Ok(true);
        }
    }
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::super::super::{Fenced, Predecessor};
    use super::super::unserved::Unserved;
    use super::*;

    /// A master that is slow to notice that it has lost: it counts up, in as many rows as it has counted.
    struct Zombie {
        connection: Connection,
        count: u32,
    }

    impl Zombie {
        fn new(path: &Path) -> Self {
            let connection = connection::open(path, Access::Create).unwrap();
            connection
                .execute_batch(
                    "CREATE TABLE row (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
                     CREATE TABLE total (count INTEGER NOT NULL);
                     INSERT INTO total VALUES (0);",
                )
                .unwrap();
            Self { connection, count: 0 }
        }

        fn commit(&mut self, rows: u32) {
            let transaction = self.connection.unchecked_transaction().unwrap();
            for _ in 0..rows {
                self.count += 1;
                // Scattered ids change many pages, so that a mixture of states is a broken tree.
                let id = (u64::from(self.count).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16) as i64;
                transaction.execute("INSERT INTO row VALUES (?1, zeroblob(700))", [id]).unwrap();
            }
            transaction.execute("UPDATE total SET count = ?1", [self.count]).unwrap();
            transaction.commit().unwrap();
        }

        fn checkpoint(&self, mode: CheckpointMode) {
            self.connection.wal_checkpoint_v2(Some(c"main"), mode).unwrap();
        }

        fn act(&mut self, action: u8) {
            match action % 5 {
                0 => {}
                1 => self.commit(3),
                2 => {
                    self.commit(20);
                    self.checkpoint(CheckpointMode::PASSIVE);
                }
                3 => {
                    self.commit(10);
                    self.checkpoint(CheckpointMode::PASSIVE);
                    self.commit(15);
                    self.checkpoint(CheckpointMode::PASSIVE);
                    self.commit(2);
                }
                _ => {
                    self.commit(12);
                    self.checkpoint(CheckpointMode::TRUNCATE);
                }
            }
        }
    }

    fn holds() -> Result<(), Fenced> {
        Ok(())
    }

    /// Opens a copy and answers what was counted in it.
    fn counted(path: &Path) -> u32 {
        let connection = connection::open(path, Access::Write).unwrap();
        let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok");
        let (rows, total): (u32, u32) = connection
            .query_row("SELECT (SELECT count(*) FROM row), count FROM total", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(rows, total, "half a commit");
        total
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn a_copy_is_whole_whatever_the_old_master_does_between_its_steps(
            before in prop::collection::vec(0_u8..5, 0..4),
            meanwhile in prop::collection::vec(0_u8..5, 0..9),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (old, new) = (dir.path().join("old.db"), dir.path().join("new.db"));
            let mut zombie = Zombie::new(&old);
            for action in before {
                zombie.act(action);
            }
            let counted_before = zombie.count;
            let mut meanwhile = meanwhile.into_iter();
            copy_watched(&old, &new, &mut holds, &mut |_| meanwhile.next().into_iter().for_each(|action| zombie.act(action)))
                .unwrap();
            let copied = counted(&new);
            prop_assert!(copied >= counted_before, "{copied} of {counted_before}");
            zombie.commit(5);
            zombie.checkpoint(CheckpointMode::TRUNCATE);
            prop_assert_eq!(counted(&new), copied);
        }
    }

    #[test]
    fn a_copy_is_whole_while_the_old_master_writes_and_checkpoints() {
        for _ in 0..12 {
            let dir = tempfile::tempdir().unwrap();
            let (old, new) = (dir.path().join("old.db"), dir.path().join("new.db"));
            let mut zombie = Zombie::new(&old);
            zombie.commit(2_000);
            let (started, counted_before) = (AtomicBool::new(false), zombie.count);
            std::thread::scope(|scope| {
                let started = &started;
                scope.spawn(move || {
                    for _ in 0..25 {
                        zombie.commit(20);
                        zombie.checkpoint(CheckpointMode::PASSIVE);
                        started.store(true, Ordering::Release);
                    }
                });
                while !started.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                copy(&old, &new, &mut holds).unwrap();
            });
            assert!(counted(&new) >= counted_before);
        }
    }

    #[test]
    fn a_log_that_was_started_over_makes_the_copy_begin_again() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old.db"), dir.path().join("new.db"));
        let mut zombie = Zombie::new(&old);
        zombie.commit(10);
        let mut databases = 0;
        copy_watched(&old, &new, &mut holds, &mut |step| {
            if step == Step::Database {
                databases += 1;
                if databases < 3 {
                    zombie.act(3);
                }
            }
        })
        .unwrap();
        assert_eq!((databases, counted(&new)), (3, zombie.count));
        assert!(!files::earlier_log(&new).exists());
    }

    /// The log that was read last must still be the one that is there: what came before it was started over may be in
    /// the copied database only in part.
    #[test]
    fn a_log_that_was_started_over_after_it_was_read_makes_the_copy_begin_again() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old.db"), dir.path().join("new.db"));
        let mut zombie = Zombie::new(&old);
        zombie.commit(10);
        let mut readings = 0;
        copy_watched(&old, &new, &mut holds, &mut |step| {
            if step == Step::SecondLog {
                readings += 1;
                if readings == 1 {
                    zombie.act(3);
                }
            }
        })
        .unwrap();
        assert_eq!((readings, counted(&new)), (3, zombie.count));
    }

    /// Frames that the old master appends while its database is copied must not cost another copy, and must be in
    /// the copied log: a checkpoint may have brought some of their pages into the copied database.
    #[test]
    fn frames_appended_meanwhile_are_taken_along() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old.db"), dir.path().join("new.db"));
        let mut zombie = Zombie::new(&old);
        zombie.commit(10);
        let mut databases = 0;
        copy_watched(&old, &new, &mut holds, &mut |step| {
            if step == Step::FirstLog {
                zombie.act(2);
            }
            databases += usize::from(step == Step::Database);
        })
        .unwrap();
        assert_eq!((databases, counted(&new)), (1, zombie.count));
    }

    /// A takeover that was superseded while it copied left its copy behind; two nodes that unseated each other in turns
    /// filled the disk with them.
    #[test]
    fn a_copy_ends_with_its_fence_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join(files::name(Epoch(1))), dir.path().join(files::name(Epoch(2))));
        let mut zombie = Zombie::new(&old);
        zombie.commit(100);
        let before = disk::names(dir.path()).unwrap().len();
        let mut checks = 0;
        loop {
            let mut left = checks;
            let mut fence = || {
                left -= 1;
                if left < 0 { Err(Fenced::Superseded(Epoch(3))) } else { Ok(()) }
            };
            let unserved = Unserved::new(&new).unwrap();
            match copy(&old, &new, &mut fence) {
                Ok(()) => break unserved.keep(),
                Err(error) => assert!(matches!(error, StoreError::Fenced(_)), "{error}"),
            }
            drop(unserved);
            assert_eq!(disk::names(dir.path()).unwrap().len(), before, "after {checks} checks");
            checks += 1;
        }
        assert!(checks >= 4, "log, database, log, and once more at the end: {checks}");
        assert_eq!(counted(&new), zombie.count);
    }

    #[test]
    fn a_copy_without_space_is_refused_unless_abandoned_ones_make_it() {
        let dir = tempfile::tempdir().unwrap();
        let (in_use, abandoned) = (files::name(Epoch(1)), files::name(Epoch(2)));
        // Files with nothing but a hole: no disk has so much space.
        let sized =
            |name: &str, bytes: u64| File::create(dir.path().join(name)).unwrap().set_len(bytes).unwrap();
        sized(&in_use, 1 << 40);
        let ends = vec![(Epoch(1), Predecessor::MayWrite), (Epoch(2), Predecessor::Gone)];
        let predecessors = Predecessors::new(ends);
        let refused = check_space(dir.path(), &in_use, &predecessors);
        let needed = (1 << 40) + COPY_SPARE_BYTES;
        assert!(
            matches!(refused, Err(StoreError::NoSpaceToCopy { needed: found, .. }) if found == needed),
            "{refused:?}"
        );
        sized(&abandoned, needed);
        check_space(dir.path(), &in_use, &predecessors).unwrap();
    }
}
