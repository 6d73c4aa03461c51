//! The system calls of a process, as `strace` has written them down.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What is traced: whatever changes files and names, syncs, reads the fence, or sends.
pub const TRACED: &str = "trace=open,openat,write,writev,pwrite64,pwritev,pwritev2,pread64,ftruncate,fadvise64,fsync,\
                          fdatasync,rename,renameat,renameat2,mkdir,unlink,sendto,sendmsg,accept4,\
                          copy_file_range,sendfile";

/// A system call that succeeded.
#[derive(Clone, Debug)]
pub struct Call {
    /// The thread.
    pub thread: String,
    /// Its name.
    pub name: String,
    /// All of its arguments.
    pub arguments: String,
    /// The file: by name, of the descriptor that is written or else the first, or the socket that was accepted.
    pub path: PathBuf,
    /// Lines where it begins and ends.
    pub start: usize,
    pub end: usize,
}

impl Call {
    pub fn is_sync(&self) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync")
    }

    pub fn is_write(&self) -> bool {
        matches!(
            self.name.as_str(),
            "write"
                | "writev"
                | "pwrite64"
                | "pwritev"
                | "pwritev2"
                | "ftruncate"
                | "copy_file_range"
                | "sendfile"
        )
    }

    pub fn is_send(&self) -> bool {
        self.path.to_string_lossy().starts_with("socket:")
            && matches!(self.name.as_str(), "write" | "writev" | "sendto" | "sendmsg")
    }

    pub fn is_rename(&self) -> bool {
        self.name.starts_with("rename")
    }

    pub fn is_open(&self) -> bool {
        matches!(self.name.as_str(), "open" | "openat")
    }

    /// The new name in a rename.
    pub fn target(&self) -> PathBuf {
        let mut quoted = self.arguments.split('"').skip(1).step_by(2);
        quoted.nth(1).unwrap().into()
    }

    /// What its file is called.
    pub fn file_name(&self) -> String {
        self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }
}

/// The calls of a trace, in the order in which they began.
pub fn read(trace: &Path) -> Vec<Call> {
    let text = String::from_utf8_lossy(&std::fs::read(trace).unwrap()).into_owned();
    let mut begun: HashMap<String, (usize, String)> = HashMap::new();
    let mut calls = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some((thread, line)) = line.split_once(' ') else { continue };
        let line = line.trim_start();
        if let Some(front) = line.strip_suffix(" <unfinished ...>") {
            begun.insert(thread.to_owned(), (number, front.to_owned()));
        } else if let Some((_, rest)) =
            line.strip_prefix("<... ").and_then(|line| line.split_once(" resumed>"))
        {
            let Some((start, front)) = begun.remove(thread) else { continue };
            calls.extend(parse(thread, &(front + rest), start, number));
        } else {
            calls.extend(parse(thread, line, number, number));
        }
    }
    calls.sort_by_key(|call| call.start);
    calls
}

fn parse(thread: &str, line: &str, start: usize, end: usize) -> Option<Call> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    if result.starts_with('-') || result.starts_with('?') {
        return None;
    }
    let is_named = matches!(name, "open" | "openat" | "mkdir" | "unlink") || name.starts_with("rename");
    let described = |text: &'_ str| Some(text.split_once('<')?.1.split_once('>')?.0.to_owned());
    let path = match name {
        "accept4" => described(result)?,
        "copy_file_range" => described(arguments.split_once('>')?.1)?,
        _ if is_named => arguments.split('"').nth(1)?.to_owned(),
        _ => described(arguments)?,
    };
    let arguments = arguments.trim_end().trim_end_matches(')').to_owned();
    Some(Call { thread: thread.to_owned(), name: name.to_owned(), arguments, path: path.into(), start, end })
}
