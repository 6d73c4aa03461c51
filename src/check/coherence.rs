//! Does one side read what the other has just synced? A file opened anew is how the fence reads, on which everything
//! rests, and how a takeover reads what the old master wrote: a block that was appended, as the control file grows; one
//! that was overwritten, as in a database; and a name that was just made, in a listing. Where the fence is set to read
//! past the page cache, that is tried too; the store is read by reopening all the same.
//!
//! Before each write the reader reads, so that its mount has something old to keep.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::finding::Finding;
use super::lead::{Lead, Who};
use super::peer::PeerError;
use super::protocol::{Answer, Ask};
use super::{CheckError, time_text};
use crate::disk;
use crate::ha::block::BLOCK_BYTES;
use crate::ha::fence::FenceRead;

/// Blocks that each side writes in each place.
const ROUNDS: u64 = 25;
/// How long an old block is looked at again, to say when the mount lets go of it: longer than most keep anything.
const STALE_MAX: Duration = Duration::from_secs(3);
/// Time between two of these looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Where a block is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Over the one before.
    Overwritten,
    /// Behind the one before.
    Appended,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Overwritten => "overwritten",
            Self::Appended => "appended",
        }
    }

    fn position(self, number: u64) -> u64 {
        match self {
            Self::Overwritten => 0,
            Self::Appended => number.saturating_sub(1).saturating_mul(BLOCK_BYTES as u64),
        }
    }
}

/// Writes the block with this number, and syncs it.
///
/// # Errors
/// Where that fails.
pub fn put(folder: &Path, place: Place, number: u64) -> io::Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(folder.join(place.name()))?;
    let block = number.to_le_bytes().repeat(BLOCK_BYTES / size_of::<u64>());
    file.write_all_at(&block, place.position(number))?;
    file.sync_data()
}

/// Reads afresh the block that has or ought to have this number. `None` where it is not there, or not whole.
///
/// # Errors
/// Where it cannot be read in this way.
pub fn get(folder: &Path, place: Place, number: u64, read: FenceRead) -> io::Result<Option<u64>> {
    let block = match read.block(&folder.join(place.name()), place.position(number)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        block => block?,
    };
    let mut words = block.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    let first = words.next();
    Ok(first.filter(|first| block.len() == BLOCK_BYTES && words.all(|word| word == *first)))
}

/// Makes the name with this number.
///
/// # Errors
/// Where that fails.
pub fn name(folder: &Path, number: u64) -> io::Result<()> {
    File::create_new(folder.join(format!("name-{number}")))?;
    File::open(folder)?.sync_all()
}

/// Whether the name with this number is listed and found.
///
/// # Errors
/// Where the folder cannot be listed.
pub fn is_named(folder: &Path, number: u64) -> io::Result<bool> {
    let name = format!("name-{number}");
    // To let the mount keep that there is no such file, which a listing must see through.
    let _ = fs::metadata(folder.join(&name));
    Ok(disk::names(folder)?.iter().any(|listed| *listed == *name))
}

/// Tries it in both directions.
///
/// # Errors
/// Where it comes to no result.
pub fn test(lead: &mut Lead) -> Result<Vec<Finding>, CheckError> {
    let mut series = vec![(Place::Overwritten, FenceRead::Reopen), (Place::Appended, FenceRead::Reopen)];
    if lead.read() == FenceRead::Direct {
        series.push((Place::Appended, FenceRead::Direct));
    }
    let (mut findings, mut first) = (Vec::new(), 1);
    for (writer, reader) in [(Who::Lead, Who::Second), (Who::Second, Who::Lead)] {
        for &(place, read) in &series {
            findings.extend(Blocks { writer, reader, place, read }.test(lead, first)?);
            first += ROUNDS + 1;
        }
        findings.extend(names(lead, writer, reader, first)?);
        first += ROUNDS;
    }
    if findings.is_empty() {
        let way = match lead.read() {
            FenceRead::Reopen => "a reopen",
            FenceRead::Direct => "a direct read, and a reopen too,",
        };
        let count = 2 * (series.len() as u64 + 1) * ROUNDS;
        let text = format!("{way} gives what was just written: {count} of {count} blocks and names");
        let text = if lead.is_alone() { text + ", on one host" } else { text + ", in both directions" };
        findings.push(Finding::good("reads-fresh", text));
    }
    Ok(findings)
}

/// Names that one side makes and the other one lists, from the number `first` on.
fn names(lead: &mut Lead, writer: Who, reader: Who, first: u64) -> Result<Option<Finding>, CheckError> {
    let mut missed = 0;
    for number in first..first + ROUNDS {
        ask_named(lead, reader, number)?;
        lead.ask(writer, Ask::Name(number))?;
        missed += u64::from(!ask_named(lead, reader, number)?);
    }
    Ok((missed > 0).then(|| {
        let (writer, reader) = (lead.name(writer), lead.name(reader));
        Finding::unfit(
            "stale-listing",
            format!(
                "{reader} did not see {missed} of {ROUNDS} names that {writer} had just made: a new master might not see \
                 what an old one has made; make the mount keep no names"
            ),
        )
    }))
}

/// Blocks that one side writes and the other one reads.
#[derive(Clone, Copy)]
struct Blocks {
    writer: Who,
    reader: Who,
    place: Place,
    read: FenceRead,
}

impl Blocks {
    /// Writes and reads them, with numbers from `first` on.
    fn test(self, lead: &mut Lead, first: u64) -> Result<Option<Finding>, CheckError> {
        let (writer, place) = (self.writer, self.place);
        // The file is there before anybody looks for it, as the control file is: a mount may keep for a while that a
        // name is missing, which is no stale read.
        lead.ask(writer, Ask::Put { place, number: first })?;
        let mut stale: Option<Stale> = None;
        for number in first + 1..=first + ROUNDS {
            self.is_fresh(lead, number - 1, self.read)?;
            lead.ask(writer, Ask::Put { place, number })?;
            if self.is_fresh(lead, number, self.read)? {
                continue;
            }
            match &mut stale {
                Some(stale) => stale.count += 1,
                None => stale = Some(self.watch(lead, number)?),
            }
        }
        Ok(stale.map(|stale| self.finding(lead, &stale)))
    }

    /// Looks at the first block that was not fresh until it is.
    fn watch(self, lead: &mut Lead, number: u64) -> Result<Stale, CheckError> {
        let began = Instant::now();
        let is_fresh_directly = self.is_fresh(lead, number, FenceRead::Direct).unwrap_or(false);
        while began.elapsed() < STALE_MAX && !self.is_fresh(lead, number, self.read)? {
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(Stale { count: 1, lasted: began.elapsed(), is_fresh_directly })
    }

    fn is_fresh(self, lead: &mut Lead, number: u64, read: FenceRead) -> Result<bool, CheckError> {
        match lead.ask(self.reader, Ask::Get { place: self.place, number, read })? {
            Answer::Block(found) => Ok(found == Some(number)),
            _ => Err(PeerError::OutOfOrder.into()),
        }
    }

    fn finding(self, lead: &Lead, stale: &Stale) -> Finding {
        let (writer, reader) = (lead.name(self.writer), lead.name(self.reader));
        let count = stale.count;
        let lasted = if stale.lasted < STALE_MAX {
            time_text(stale.lasted)
        } else {
            format!("more than {}", time_text(STALE_MAX))
        };
        let means = match self.place {
            Place::Overwritten => "a takeover may read an old state of the store",
            Place::Appended => "the fence does not hold",
        };
        let what_to_do = if stale.is_fresh_directly && self.read == FenceRead::Reopen {
            "A direct read is fresh, so old pages stay in the memory of the host: mount it so that none are kept, \
             GlusterFS with direct-io-mode=enable"
        } else {
            "Mount it so that nothing is kept of a file that is opened anew, or use another file system; \
             docs/operations.md says how for those it knows"
        };
        Finding::unfit(
            "stale-read",
            format!(
                "stale reads: {reader} read an old block {count} of {ROUNDS} times after {writer} had synced a newer one \
                 ({}), the first for {lasted}: {means}. {what_to_do}",
                self.place.name()
            ),
        )
    }
}

/// Reads that were not fresh.
struct Stale {
    count: u64,
    /// How long the first one stayed so.
    lasted: Duration,
    /// Whether a read past the page cache was fresh then.
    is_fresh_directly: bool,
}

fn ask_named(lead: &mut Lead, who: Who, number: u64) -> Result<bool, CheckError> {
    match lead.ask(who, Ask::IsNamed(number))? {
        Answer::IsNamed(is_named) => Ok(is_named),
        _ => Err(PeerError::OutOfOrder.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_its_number_only_if_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let get = |place, number| get(dir.path(), place, number, FenceRead::Reopen).unwrap();
        for place in [Place::Overwritten, Place::Appended] {
            assert_eq!(get(place, 1), None);
            put(dir.path(), place, 1).unwrap();
            put(dir.path(), place, 2).unwrap();
            assert_eq!(get(place, 2), Some(2));
        }
        assert_eq!((get(Place::Overwritten, 1), get(Place::Appended, 1)), (Some(2), Some(1)));
        let file = File::options().write(true).open(dir.path().join("overwritten")).unwrap();
        file.write_all_at(&[9], 4000).unwrap();
        assert_eq!(get(Place::Overwritten, 2), None, "torn");
        file.set_len(4000).unwrap();
        assert_eq!(get(Place::Overwritten, 2), None, "short");
    }

    #[test]
    fn a_name_is_listed_when_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_named(dir.path(), 1).unwrap());
        name(dir.path(), 1).unwrap();
        assert!(is_named(dir.path(), 1).unwrap() && !is_named(dir.path(), 11).unwrap());
    }
}
