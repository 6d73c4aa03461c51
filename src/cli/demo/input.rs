//! What the demonstration publishes: lines of real text and real files of this machine.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Where texts are looked for; the lines of the files in it are published.
const TEXT_FOLDERS: [&str; 2] = ["/usr/share/common-licenses", "/usr/share/dict"];
/// Lines published at most.
const LINES_MAX: usize = 50_000;
/// The text where the machine has none.
const OWN_TEXT: &str = include_str!("../../../README.md");
/// Where files are looked for.
const FILE_FOLDERS: [&str; 3] = ["/usr/share/doc", "/usr/share/man", "/usr/share"];
/// Bytes of files published at most.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// Largest file taken.
const FILE_MAX: u64 = 8 << 20;
/// Files looked at, at most.
const FILES_MAX: usize = 20_000;
/// Pieces of the program itself: bodies of megabytes wherever the demonstration runs.
const PIECE_BYTES: usize = 2 << 20;
const PIECES_MAX: usize = 4;

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A line of text.
    Line,
    /// A file.
    File,
}

/// One message.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it goes.
    pub kind: Kind,
    /// What it is.
    pub body: Bytes,
}

/// What is published, lines and files mixed.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// The messages, in the order in which they are published.
    pub items: Vec<Item>,
    /// Where the lines are from.
    pub lines_from: String,
    /// Where the files are from.
    pub files_from: String,
}

impl Input {
    /// Reads what is there. Never fails: the program itself is always there.
    pub fn read() -> Self {
        let (lines_from, lines) = lines();
        let (files_from, mut files) = files();
        if let Some(program) = std::env::current_exe().ok().and_then(|path| fs::read(path).ok()) {
            let program = Bytes::from(program);
            let pieces = (0..program.len()).step_by(PIECE_BYTES).take(PIECES_MAX);
            files.extend(pieces.map(|at| program.slice(at..program.len().min(at + PIECE_BYTES))));
        }
        Self { items: mix(lines, files), lines_from, files_from }
    }

    /// How many messages there are of a kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.items.iter().filter(|item| item.kind == kind).count() as u64
    }

    /// Bytes of all bodies.
    pub fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.body.len() as u64).sum()
    }

    /// Bytes of the largest body.
    pub fn largest(&self) -> u64 {
        self.items.iter().map(|item| item.body.len() as u64).max().unwrap_or(0)
    }
}

/// Both, each in its order and spread evenly over the whole.
fn mix(lines: Vec<Bytes>, files: Vec<Bytes>) -> Vec<Item> {
    let (line_count, file_count) = (lines.len(), files.len());
    let spread = |bodies: Vec<Bytes>, count: usize, kind| {
        bodies.into_iter().enumerate().map(move |(index, body)| {
            let place = (index as u64 * 1_000_000) / count.max(1) as u64;
            (place, Item { kind, body })
        })
    };
    let mut all: Vec<(u64, Item)> = spread(lines, line_count, Kind::Line).collect();
    all.extend(spread(files, file_count, Kind::File));
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, item)| item).collect()
}

fn lines() -> (String, Vec<Bytes>) {
    for folder in TEXT_FOLDERS {
        let mut lines = Vec::new();
        for path in files_below(Path::new(folder)) {
            let text = Bytes::from(fs::read(path).unwrap_or_default());
            lines.extend(text.split(|byte| *byte == b'\n').map(|line| text.slice_ref(line)));
        }
        if lines.len() >= 1000 {
            lines.truncate(LINES_MAX);
            return (folder.to_owned(), lines);
        }
    }
    (
        "the read-me of this program".to_owned(),
        OWN_TEXT.lines().map(|line| Bytes::from_static(line.as_bytes())).collect(),
    )
}

fn files() -> (String, Vec<Bytes>) {
    let mut best = ("this program alone".to_owned(), Vec::new());
    for folder in FILE_FOLDERS {
        let (mut files, mut bytes) = (Vec::new(), 0);
        for path in files_below(Path::new(folder)) {
            let fits = fs::metadata(&path)
                .is_ok_and(|meta| meta.len() <= FILE_MAX && bytes + meta.len() <= FILE_BYTES_MAX);
            if let Some(body) = fits.then(|| fs::read(&path).ok()).flatten() {
                bytes += body.len() as u64;
                files.push(Bytes::from(body));
            }
        }
        if files.len() >= 100 {
            return (folder.to_owned(), files);
        }
        if files.len() > best.1.len() {
            best = (folder.to_owned(), files);
        }
    }
    best
}

/// Regular files below a folder, in the order of their paths; no links are followed.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
        if files.len() >= FILES_MAX {
            break;
        }
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_something_large_and_something_small() {
        let input = Input::read();
        assert!(input.count(Kind::Line) > 10 && input.count(Kind::File) > 0);
        assert!(input.largest() >= 1 << 20 && input.bytes() < 512 << 20);
    }

    #[test]
    fn lines_and_files_are_spread_over_the_whole() {
        let items = mix(vec![Bytes::from("line"); 100], vec![Bytes::from("file"); 4]);
        let places: Vec<usize> = (0..items.len()).filter(|index| items[*index].kind == Kind::File).collect();
        assert_eq!(items.len(), 104);
        assert!(places[0] <= 1 && (24..30).contains(&places[1]) && places[3] < 90, "{places:?}");
    }
}
