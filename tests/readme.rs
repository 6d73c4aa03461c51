//! The commands of README's quick start do what it says, on ports and a store of the test.

mod cli_support;

use std::path::Path;
use std::process::{Command, Stdio};

use cli_support::{free_address, wait_for_end};

/// A command, and what README shows as its output.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    command: String,
    output: Vec<String>,
}

/// The `console` blocks, without those that build the program.
fn blocks(text: &str) -> Vec<Vec<Step>> {
    let mut blocks = Vec::new();
    for block in text.split("```console\n").skip(1) {
        let mut steps: Vec<Step> = Vec::new();
        for line in block.split("```").next().unwrap().lines() {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step { command: command.to_owned(), output: Vec::new() }),
                (None, Some(step)) => step.output.push(line.to_owned()),
                (None, None) => panic!("a block begins with a command: {line}"),
            }
        }
        if !steps.iter().any(|step| step.command.starts_with("cargo ")) {
            blocks.push(steps);
        }
    }
    blocks
}

/// Runs the steps in one shell; each that shows an output must have exactly that.
fn run(steps: &[Step], dir: &Path, replaced: &[(&str, &str)], environment: &[(&str, &str)]) {
    let mut script = String::from("trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n");
    for (index, step) in steps.iter().enumerate() {
        let command = replaced.iter().fold(step.command.clone(), |text, (old, new)| text.replace(old, new));
        match command.strip_suffix(" &") {
            Some(node) => script += &format!("{node} 2>>nodes.log &\n"),
            None if command.starts_with("export ") => script += &format!("{command}\n"),
            None => {
                script +=
                    &format!("{{ {command}\n}} >output-{index} || {{ echo 'failed: {command}'; exit 1; }}\n")
            }
        }
    }
    let mut shell = Command::new("bash");
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("BATON_") {
            shell.env_remove(variable);
        }
    }
    let program = Path::new(env!("CARGO_BIN_EXE_baton")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    shell.arg("-c").arg(&script).current_dir(dir).env("PATH", path).stdin(Stdio::null());
    shell.envs(environment.iter().copied());
    let status = wait_for_end(&mut shell.spawn().unwrap());
    let log = std::fs::read_to_string(dir.join("nodes.log")).unwrap_or_default();
    assert!(status.success(), "{script}\n{log}");
    for (index, step) in steps.iter().enumerate().filter(|(_, step)| !step.output.is_empty()) {
        let output = std::fs::read_to_string(dir.join(format!("output-{index}"))).unwrap();
        assert_eq!(output.lines().collect::<Vec<_>>(), step.output, "{}", step.command);
    }
}

#[test]
fn the_quick_start_works_as_it_stands() {
    let text = include_str!("../README.md");
    let [single, pair, ..] = &blocks(text)[..] else { panic!("one block for a node and one for a pair") };
    assert!(single.iter().any(|step| step.output == ["first", "second"]));
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    run(single, dir.path(), &[], &[("BATON_LISTEN", &address), ("BATON_SERVER", &address)]);

    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    std::fs::write(dir.path().join("orders.txt"), "one\ntwo\n").unwrap();
    let (a, b) = (free_address(), free_address());
    let store = store.to_str().unwrap();
    run(pair, dir.path(), &[("/srv/baton", store), ("127.0.0.1:7470", &a), ("127.0.0.1:7480", &b)], &[]);
}

#[test]
fn what_is_said_about_looking_after_the_store_works_as_it_stands() {
    let text = include_str!("../README.md");
    let blocks = blocks(text);
    let first = blocks.iter().position(|steps| steps[0].command.starts_with("baton store backup"));
    let [backup, offline @ ..] = &blocks[first.expect("a block for the backup")..] else { unreachable!() };
    assert!(backup.iter().all(|step| step.command.starts_with("baton store backup")), "{backup:?}");
    let dir = tempfile::tempdir().unwrap();
    let (address, store, backups) = (free_address(), dir.path().join("store"), dir.path().join("backups"));
    std::fs::create_dir(&backups).unwrap();
    let replaced = [("/srv/baton", store.to_str().unwrap()), ("/backups", backups.to_str().unwrap())];
    let serve = format!("baton serve --store {} --listen {address} &", store.display());
    let first = [serve.as_str(), "baton publish orders one two three"];
    let first = first.map(|command| Step { command: command.to_owned(), output: Vec::new() });
    let served = [&first[..], backup].concat();
    run(&served, dir.path(), &replaced, &[("BATON_SERVER", &address)]);
    assert_eq!(offline.len(), 4, "restore, convert, damage, what is in it");
    for steps in offline {
        run(steps, dir.path(), &replaced, &[]);
    }
    assert!(dir.path().join("store-salvaged").is_dir() && dir.path().join("store-as-file").is_dir());
}

#[test]
fn what_is_said_about_shared_storage_works_as_it_stands() {
    // What comes before it there is for the root of two hosts.
    let operations = include_str!("../docs/operations.md").split("### Checking it").nth(1);
    for text in [include_str!("../README.md"), operations.expect("a part about checking")] {
        let blocks = blocks(text);
        let is_about = |steps: &&Vec<Step>| steps[0].command.starts_with("baton store check");
        let about = blocks.iter().find(is_about).expect("a block about shared storage");
        // On a disk: storage in memory is found unfit.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let store = dir.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let address = free_address();
        run(about, dir.path(), &[("/srv/baton", store.to_str().unwrap()), ("10.0.0.1:7472", &address)], &[]);
    }
}

#[test]
fn what_is_said_about_dead_letters_works_as_it_stands() {
    let blocks = blocks(include_str!("../README.md"));
    let is_about =
        |steps: &&Vec<Step>| steps.iter().any(|step| step.command.starts_with("baton dead-letter"));
    let about = blocks.iter().find(is_about).expect("a block about dead letters");
    let dir = tempfile::tempdir().unwrap();
    let (address, store) = (free_address(), dir.path().join("store"));
    let serve = format!("baton serve --store {} --listen {address} &", store.display());
    let served = [&[Step { command: serve, output: Vec::new() }], &about[..]].concat();
    run(&served, dir.path(), &[], &[("BATON_SERVER", &address)]);
}
