//! How long does a write with a sync take, and is that too good to be true?
//!
//! A sync that is quicker than any disk or network can be has not reached one. One that is slow enough proves nothing: a
//! disk with a volatile cache that ignores flushes looks like a good one until the power fails.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::finding::Finding;
use super::mount::Class;
use super::time_text;

/// Bytes of a write, as of a small commit.
const WRITE_BYTES: usize = 4096;
/// Bytes of the file; it is written before, as a segment is, so that the syncs have no new blocks to note.
const FILE_BYTES: u64 = 64 << 10;
/// Writes that are measured at most.
const ROUNDS_MAX: usize = 100;
/// How long is measured at most.
const TIME_MAX: Duration = Duration::from_secs(2);
/// A disk of one host that is written to and flushed needs more than this: the quickest NVMe disks take about 15 us.
const LOCAL_MIN: Duration = Duration::from_micros(8);
/// A server is asked for this over a network, and answers when its disk has it: neither is quicker.
const SHARED_MIN: Duration = Duration::from_micros(40);
/// Beyond it clients notice: each confirm waits for one.
const SLOW: Duration = Duration::from_millis(100);

/// How long writes of 4 KiB with a sync took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// How many were measured.
    pub count: u64,
    /// Half of them took no longer, in nanoseconds.
    pub median_ns: u64,
    /// 99 % of them took no longer.
    pub p99_ns: u64,
    /// None took longer.
    pub longest_ns: u64,
}

/// Measures it with a file called `name` in `folder`.
///
/// # Errors
/// Where a write or a sync fails.
pub fn measure(folder: &Path, name: &str) -> io::Result<Times> {
    let file = File::create_new(folder.join(name))?;
    file.write_all_at(&vec![0; FILE_BYTES as usize], 0)?;
    file.sync_all()?;
    let block = [0x5A; WRITE_BYTES];
    let (began, mut times) = (Instant::now(), Vec::with_capacity(ROUNDS_MAX));
    while times.len() < ROUNDS_MAX && (times.is_empty() || began.elapsed() < TIME_MAX) {
        let position = (times.len() * WRITE_BYTES) as u64 % FILE_BYTES;
        let written_at = Instant::now();
        file.write_all_at(&block, position)?;
        file.sync_data()?;
        times.push(u64::try_from(written_at.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    Ok(Times { count: times.len() as u64, median_ns: at(50), p99_ns: at(99), longest_ns: at(100) })
}

/// What the times mean on a file system of this class.
#[must_use]
pub fn judge(times: Times, class: Class, host: &str) -> Finding {
    let [median, p99] = [times.median_ns, times.p99_ns].map(Duration::from_nanos);
    let text = format!(
        "4 KiB written and synced on {host}: {} in the median, {} at the 99th percentile",
        time_text(median),
        time_text(p99)
    );
    let least = match class {
        Class::Local | Class::Memory => LOCAL_MIN,
        Class::Shared | Class::Unknown => SHARED_MIN,
    };
    if median < least {
        return Finding::doubt(
            "sync-too-fast",
            format!(
                "{text}: that is too fast for a disk{}. What was confirmed may be lost when the power fails; look for \
                 syncs that are switched off: an export with async, a cache mode of the virtual machine like unsafe, a \
                 disk that ignores flushes",
                if least == SHARED_MIN { " behind a network" } else { "" }
            ),
        );
    }
    if p99 > SLOW {
        return Finding::note("sync-slow", format!("{text}; each confirm waits for one"));
    }
    Finding::good("sync", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_is_too_good_to_be_true_is_a_reason_for_doubt() {
        let code = |median: u64, p99: u64, class| {
            let times = Times { count: 1, median_ns: median * 1000, p99_ns: p99 * 1000, longest_ns: 0 };
            judge(times, class, "a").code.into_owned()
        };
        assert_eq!(code(3, 50, Class::Local), "sync-too-fast");
        assert_eq!(code(3, 50, Class::Memory), "sync-too-fast");
        assert_eq!(code(20, 50, Class::Local), "sync");
        assert_eq!(code(20, 50, Class::Shared), "sync-too-fast");
        assert_eq!(code(20, 50, Class::Unknown), "sync-too-fast");
        assert_eq!(code(200, 5_000, Class::Shared), "sync");
        assert_eq!(code(9_000, 500_000, Class::Shared), "sync-slow");
    }

    #[test]
    fn something_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let times = measure(dir.path(), "sync").unwrap();
        assert!((1..=ROUNDS_MAX as u64).contains(&times.count));
        assert!(0 < times.median_ns && times.median_ns <= times.p99_ns && times.p99_ns <= times.longest_ns);
    }
}
