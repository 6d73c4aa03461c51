//! An older build of our own: a commit of this repository's history, built once and kept in `target/older`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The subject of the commit that is built. A number would not stay the same where commits are moved.
const SUBJECT: &str = include_str!("older").trim_ascii();

/// Builds the older commit, unless it is built already, and answers the program; in words what is missing.
pub fn build() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let commit = commit(root)?;
    let place = root.join("target/older").join(&commit);
    let sources = place.join("sources");
    if !sources.exists() {
        unpack(root, &commit, &sources)?;
    }
    eprintln!("older build: {commit}, {SUBJECT}");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--bin", "baton", "--target-dir"])
        .arg(place.join("target"))
        .current_dir(&sources)
        .status();
    match built {
        Ok(status) if status.success() => Ok(place.join("target/debug/baton")),
        _ => Err(format!("the older build does not compile: run `cargo build` in {}", sources.display())),
    }
}

/// The number of the commit.
fn commit(root: &Path) -> Result<String, String> {
    let log = Command::new("git").args(["log", "--format=%H %s"]).current_dir(root).output();
    let log = log.map_err(|error| format!("git cannot be run: {error}"))?;
    let found = String::from_utf8_lossy(&log.stdout)
        .lines()
        .find_map(|line| line.split_once(' ').filter(|(_, subject)| *subject == SUBJECT))
        .map(|(commit, _)| commit.to_owned());
    found.ok_or_else(|| {
        format!(
            "the history has no commit \"{SUBJECT}\", which is the older build: fetch all of it (git fetch --unshallow), \
             or name an older build with --older"
        )
    })
}

/// Puts the sources of a commit into a folder, all of them or none.
fn unpack(root: &Path, commit: &str, sources: &Path) -> Result<(), String> {
    let half = sources.with_extension("half");
    let failed = |error: std::io::Error| format!("{}: {error}", half.display());
    if half.exists() {
        fs::remove_dir_all(&half).map_err(failed)?;
    }
    fs::create_dir_all(&half).map_err(failed)?;
    let mut archive = Command::new("git")
        .args(["archive", commit])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let sources_of = archive.stdout.take().expect("it is piped");
    let unpacked = Command::new("tar").args(["-x", "-C"]).arg(&half).stdin(sources_of).status();
    let archived = archive.wait().map_err(failed)?;
    if !archived.success() || !unpacked.map_err(failed)?.success() {
        return Err(format!("the sources of {commit} cannot be unpacked into {}", half.display()));
    }
    fs::rename(&half, sources).map_err(failed)
}
