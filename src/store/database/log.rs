//! The write-ahead log of a database, read without the database: where its commits end, and whether one is lost.
//!
//! The database recovers a log up to the last commit before the first frame that is not valid, and does not look at
//! what is behind. That is right for a commit that was cut off, and silently loses commits where a frame in the
//! middle was damaged. Each commit is synced before the next one is begun, so a commit behind the one that has the
//! bad frame shows that this one was durable once.
//!
//! The header is synced before the first frame is written, and lies in one sector. So one that is not valid is damage
//! unless there are only zeros behind it.
//!
//! One kind of damage looks like a commit that was cut off: where the commit mark before the very last commit lost
//! several bits, or all of its sector, the last two commits are like one whose end is there and whose middle is not.

use std::fs::OpenOptions;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use super::super::StoreError;
use super::frame::{Checksum, Frame, HEADER_BYTES, Header};
use crate::disk;

/// Bytes of the log that are read at a time.
pub(super) const READ_BYTES: usize = 1 << 20;

/// What is committed in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Committed {
    /// The salts of the log; `None` where it has nothing.
    salts: Option<[u8; 8]>,
    /// Where the last commit ends, in bytes; 0 where there is none.
    end: u64,
}

/// What a pass through a log found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Scan {
    committed: Committed,
    /// Where commits that were durable once begin to be unreadable.
    lost: Option<u64>,
}

/// Checks that the database will find every commit of a log. One that is not there holds nothing. Nobody but a master
/// that has lost its epoch may write to the log meanwhile.
///
/// # Errors
/// [`StoreError::Damaged`] where a commit that was synced cannot be read, or the log cannot be read.
pub(super) fn check(log: &Path) -> Result<Committed, StoreError> {
    let mut looked_again = None;
    loop {
        let scan = scan(log)?;
        let Some(position) = scan.lost else { return Ok(scan.committed) };
        // A master that is slow to notice that it has lost may have written here after it was read, and then behind
        // it. Read afresh, what was synced before that is there, or it is damaged.
        if looked_again == Some(scan) {
            let what = "a commit of the log cannot be read, and there are others behind it".to_owned();
            return Err(StoreError::Damaged { path: log.to_owned(), position, what });
        }
        looked_again = Some(scan);
    }
}

/// Cuts a copy of a log where its commits end, so that nothing that the copy's owner appends lies before remains of
/// something else. What counts is `checked`, which was found before the copy was made: commits behind that are late.
///
/// # Errors
/// [`StoreError::Damaged`] where less was copied, or the copy cannot be read, cut or synced.
pub(super) fn cut(copy: &Path, checked: &Committed) -> Result<(), StoreError> {
    let found = scan(copy)?.committed;
    if found.salts == checked.salts && found.end < checked.end {
        let what = "the copy of the log has fewer commits than the log".to_owned();
        return Err(StoreError::Damaged { path: copy.to_owned(), position: found.end, what });
    }
    OpenOptions::new()
        .write(true)
        .open(copy)
        .and_then(|file| {
            file.set_len(found.end)?;
            file.sync_all()
        })
        .map_err(io("cut", copy))
}

fn scan(log: &Path) -> Result<Scan, StoreError> {
    let file = match disk::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Scan::default()),
        Err(source) => return Err(io("open", log)(source)),
    };
    let mut input = BufReader::with_capacity(READ_BYTES, file);
    scan_bytes(&mut input).map_err(io("read", log))
}

fn scan_bytes(input: &mut impl Read) -> std::io::Result<Scan> {
    let mut header = [0; HEADER_BYTES];
    if !fill(input, &mut header)? {
        return Ok(Scan::default());
    }
    let Some(header) = Header::decode(&header) else {
        let lost = has_bytes(input)?.then_some(0);
        return Ok(Scan { lost, ..Scan::default() });
    };
    let mut scan = Scan { committed: Committed { salts: Some(header.salts), end: 0 }, lost: None };
    let mut frame = vec![0; header.frame_bytes()];
    let (mut at, mut before) = (HEADER_BYTES as u64, header.checksum);
    while fill(input, &mut frame)? {
        let frame = Frame { header: &header, bytes: &frame };
        if !frame.is_valid(before) {
            if is_lost(frame, before, input)? {
                scan.lost = Some(at);
            }
            return Ok(scan);
        }
        at += header.frame_bytes() as u64;
        if frame.mark() != [0; 4] {
            scan.committed.end = at;
        }
        before = frame.stored_checksum();
    }
    Ok(scan)
}

/// Whether the commit that `bad` is in, which follows a frame with the checksum `before`, was synced: whether a later
/// commit is in the rest of the log.
fn is_lost(bad: Frame<'_>, before: Checksum, input: &mut impl Read) -> std::io::Result<bool> {
    // The end of the commit that `bad` is in shows nothing.
    let mut ends_left = if bad.ended_commit(before) { 1 } else { 2 };
    // Where the checksum of the bad frame is what is bad, the next one continues what it should be.
    let mut continued = [bad.stored_checksum(), bad.checksum(before)];
    let mut next = vec![0; bad.bytes.len()];
    while fill(input, &mut next)? {
        let frame = Frame { header: bad.header, bytes: &next };
        if frame.mark() != [0; 4] && continued.iter().any(|&before| frame.is_valid(before)) {
            ends_left -= 1;
            if ends_left == 0 {
                return Ok(true);
            }
        }
        continued = [frame.stored_checksum(); 2];
    }
    Ok(false)
}

/// Reads a whole piece; `false` where the input ends before.
pub(super) fn fill(input: &mut impl Read, piece: &mut [u8]) -> std::io::Result<bool> {
    match input.read_exact(piece) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the rest of the input is more than zeros.
fn has_bytes(input: &mut impl Read) -> std::io::Result<bool> {
    let mut piece = [0; 4096];
    loop {
        match input.read(&mut piece) {
            Ok(0) => return Ok(false),
            Ok(read) if piece[..read].iter().any(|&byte| byte != 0) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rusqlite::Connection;
    use rusqlite::wal::CheckpointMode;

    use super::super::connection::{self, Access};
    use super::super::files;
    use super::super::frame::FRAME_HEADER_BYTES;
    use super::*;

    /// A database whose log has commits of several frames each.
    struct Scene {
        dir: tempfile::TempDir,
        connection: Connection,
        /// Where each commit ends.
        ends: Vec<usize>,
    }

    const FRAME: usize = FRAME_HEADER_BYTES + connection::PAGE_BYTES as usize;

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let connection = connection::open(&dir.path().join("a.db"), Access::Create).unwrap();
            connection.execute_batch("CREATE TABLE row (id INTEGER PRIMARY KEY, body BLOB)").unwrap();
            let mut scene = Self { dir, connection, ends: Vec::new() };
            for rows in [3, 1, 1, 4, 1, 3] {
                scene.commit(rows);
            }
            scene
        }

        fn commit(&mut self, rows: usize) {
            let transaction = self.connection.unchecked_transaction().unwrap();
            for row in 0..rows {
                let body = vec![row as u8 + 1; 3_900];
                transaction.execute("INSERT INTO row (body) VALUES (?1)", [body]).unwrap();
            }
            transaction.commit().unwrap();
            self.ends.push(self.log().len());
        }

        fn path(&self) -> PathBuf {
            files::log(&self.dir.path().join("a.db"))
        }

        fn log(&self) -> Vec<u8> {
            fs::read(self.path()).unwrap()
        }

        fn restart(&mut self) {
            self.connection.wal_checkpoint_v2(Some(c"main"), CheckpointMode::RESTART).unwrap();
            self.ends.clear();
        }
    }

    fn scanned(mut bytes: &[u8]) -> Scan {
        scan_bytes(&mut bytes).unwrap()
    }

    /// Frames up to the last commit that the database itself takes from a log.
    fn recovered_frames(scene: &Scene, log: &[u8]) -> u64 {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("b.db");
        fs::copy(scene.dir.path().join("a.db"), &database).unwrap();
        fs::write(files::log(&database), log).unwrap();
        let connection = connection::open(&database, Access::Write).unwrap();
        let (frames, _) = connection.wal_checkpoint_v2(Some(c"main"), CheckpointMode::PASSIVE).unwrap();
        u64::try_from(frames).unwrap()
    }

    fn frames(scan: &Scan) -> u64 {
        scan.committed.end.saturating_sub(HEADER_BYTES as u64) / FRAME as u64
    }

    /// One bit flipped in a log of fifty commits made the database come up with half of them, and nobody was told.
    #[test]
    fn every_changed_byte_before_the_last_commit_is_damage() {
        let scene = Scene::new();
        let good = scene.log();
        assert_eq!(scanned(&good).lost, None);
        assert_eq!(scanned(&good).committed.end as usize, good.len());
        let last_start = scene.ends[scene.ends.len() - 2];
        for at in 0..last_start {
            // All of the heads, and some of the pages.
            let (number, within) =
                (at.saturating_sub(HEADER_BYTES) / FRAME, at.saturating_sub(HEADER_BYTES) % FRAME);
            if within >= FRAME_HEADER_BYTES && at % 397 != 0 {
                continue;
            }
            for change in [0x01, 0x10, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= change;
                let start = if at < HEADER_BYTES { 0 } else { HEADER_BYTES + number * FRAME };
                assert_eq!(scanned(&bad).lost, Some(start as u64), "byte {at} changed by {change:#x}");
            }
        }
    }

    #[test]
    fn a_commit_mark_that_lost_its_only_bit_is_damage() {
        let scene = Scene::new();
        let good = scene.log();
        let mut count = 0;
        for &end in &scene.ends[..scene.ends.len() - 1] {
            let mark = end - FRAME + 4..end - FRAME + 8;
            if good[mark.clone()].iter().map(|byte| byte.count_ones()).sum::<u32>() == 1 {
                // Without the commits from the second one behind it, which show the damage whatever it says.
                let next = scene.ends.iter().position(|&other| other == end).unwrap() + 1;
                let mut bad = good[..scene.ends[next]].to_vec();
                bad[mark].fill(0);
                assert_eq!(scanned(&bad).lost, Some((end - FRAME) as u64));
                count += 1;
            }
        }
        assert!(count > 0, "no commit leaves a database of 2^n pages");
    }

    #[test]
    fn whatever_is_wrong_with_the_last_commit_alone_is_a_torn_tail() {
        let scene = Scene::new();
        let good = scene.log();
        let (start, kept) = (scene.ends[scene.ends.len() - 2], scene.ends.len() - 1);
        let torn = Scan {
            committed: Committed { end: scene.ends[kept - 1] as u64, ..scanned(&good).committed },
            lost: None,
        };
        for at in start..good.len() {
            assert_eq!(scanned(&good[..at]), torn, "cut at {at}");
            let mut bad = good.clone();
            // A mark appears by no kind of tear.
            let is_mark = (4..8).contains(&((at - start) % FRAME));
            bad[at] ^= if is_mark { good[at] } else { 0x11 };
            if bad != good && ((at - start) % FRAME < FRAME_HEADER_BYTES || at % 97 == 0) {
                assert_eq!(scanned(&bad), torn, "byte {at}");
                bad[at..].fill(0);
                bad.resize(good.len() + 3 * FRAME, 0);
                assert_eq!(scanned(&bad), torn, "zeros from {at}");
            }
        }
        for sector in (start.next_multiple_of(512)..good.len() - 512).step_by(512) {
            let mut bad = good.clone();
            bad[sector..sector + 512].fill(0);
            let scan = scanned(&bad);
            assert!(scan == torn || bad == good, "a sector of zeros at {sector}: {scan:?}");
        }
    }

    #[test]
    fn erased_sectors_are_damage_where_two_commits_follow() {
        let scene = Scene::new();
        let good = scene.log();
        for sector in (512..scene.ends[scene.ends.len() - 3]).step_by(512) {
            let mut bad = good.clone();
            bad[sector..sector + 512].fill(0);
            assert!(bad == good || scanned(&bad).lost.is_some(), "{sector}");
        }
    }

    #[test]
    fn the_database_itself_finds_the_same_commits() {
        let mut scene = Scene::new();
        for _ in 0..2 {
            let good = scene.log();
            assert_eq!(recovered_frames(&scene, &good), frames(&scanned(&good)));
            for at in (0..good.len()).step_by(2_011) {
                let mut bad = good.clone();
                bad[at] ^= 4;
                assert_eq!(recovered_frames(&scene, &bad), frames(&scanned(&bad)), "byte {at}");
                assert_eq!(recovered_frames(&scene, &good[..at]), frames(&scanned(&good[..at])), "{at}");
            }
            scene.restart();
            scene.commit(2);
        }
    }

    #[test]
    fn remains_of_earlier_frames_and_of_what_was_rolled_back_are_no_commits() {
        let mut scene = Scene::new();
        scene.restart();
        scene.commit(1);
        let transaction = scene.connection.unchecked_transaction().unwrap();
        transaction.execute("INSERT INTO row (body) VALUES (zeroblob(6000000))", []).unwrap();
        transaction.rollback().unwrap();
        let scan = scanned(&scene.log());
        assert_eq!(scan.lost, None);
        let mut torn = scene.log();
        torn[scan.committed.end as usize - 1] ^= 1;
        assert_eq!(scanned(&torn).lost, None, "the only commit may be torn, whatever lies behind it");
    }

    /// A master that was paused goes on while its successor checks the log: what it writes before and behind the place
    /// that is read is no damage.
    #[test]
    fn a_log_that_is_still_written_is_not_taken_for_damage() {
        let scene = Scene::new();
        let path = scene.path();
        let written = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(8 << 20));
        written.unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let over = &over;
            let checking = scope.spawn(move || {
                let mut ends = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    ends.push(check(&path).map(|committed| committed.end));
                }
                ends
            });
            let connection = &scene.connection;
            for _ in 0..600 {
                connection.execute("INSERT INTO row (body) VALUES (zeroblob(9000))", []).unwrap();
            }
            over.store(true, Ordering::Relaxed);
            let ends: Vec<u64> = checking.join().unwrap().into_iter().map(Result::unwrap).collect();
            assert!(ends.is_sorted() && ends.len() > 1, "{ends:?}");
        });
    }

    #[test]
    fn a_log_without_a_header_has_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(check(&path).unwrap(), Committed::default());
        for bytes in [vec![], vec![7; HEADER_BYTES - 1], vec![0; 100_000]] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(check(&path).unwrap(), Committed::default());
        }
        fs::write(&path, [7; 100]).unwrap();
        assert!(matches!(check(&path), Err(StoreError::Damaged { position: 0, .. })));
    }

    #[test]
    fn a_copy_ends_with_its_last_commit_and_has_all_that_was_checked() {
        let scene = Scene::new();
        let (good, copy) = (scene.log(), scene.dir.path().join("copy"));
        let checked = check(&scene.path()).unwrap();
        fs::write(&copy, [&good[..], &[0; 9_000]].concat()).unwrap();
        cut(&copy, &checked).unwrap();
        assert!(fs::read(&copy).unwrap() == good);
        fs::write(&copy, &good[..good.len() - 1]).unwrap();
        assert!(matches!(cut(&copy, &checked), Err(StoreError::Damaged { .. })));
        cut(&copy, &Committed { end: scene.ends[scene.ends.len() - 2] as u64, ..checked }).unwrap();
        assert_eq!(fs::read(&copy).unwrap().len(), scene.ends[scene.ends.len() - 2]);
    }
}
