//! docs/failures.md names the test that shows each line: they are all there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The sources below a folder, by the name of the file, or of the folder of one that is called `main.rs` or `mod.rs`.
fn sources(dir: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let stem = path.file_stem().unwrap();
            let named = if stem == "main" || stem == "mod" { dir.file_name().unwrap() } else { stem };
            found
                .entry(named.to_str().unwrap().to_owned())
                .or_default()
                .push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// The tests that a text names, `file::function`.
fn named(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter_map(|quoted| quoted.split_once("::")).collect()
}

#[test]
fn every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeMap::new();
    sources(&root.join("tests"), &mut found);
    sources(&root.join("src"), &mut found);
    let is_there = |(file, function): &(&str, &str)| {
        found.get(*file).is_some_and(|source| source.contains(&format!("fn {function}(")))
    };
    let document = fs::read_to_string(root.join("docs/failures.md")).unwrap();
    let missing: Vec<_> = named(&document).into_iter().filter(|test| !is_there(test)).collect();
    assert_eq!(missing, []);
    assert!(named(&document).len() > 30 && !is_there(&("pair", "nothing_is_lost")));
    // A line without a test promises what nobody has seen.
    for line in document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
        let is_head = line.ends_with("| shown by |");
        assert!(is_head || !named(line).is_empty(), "{line}");
    }
}
