//! Two hosts and a real shared file system: a GlusterFS volume that each of them mounts. Clients are on a third host and
//! know the floating address alone.
//!
//!     cargo test --locked --test gluster -- --rounds 1 --mode both
//!
//! First `baton store check` on both hosts: the volume as it comes is unfit, and no node starts on it; set up as
//! docs/operations.md has it, it is fit. Then under load, in each mode: all processes of the master's host are killed,
//! its links are cut, all or one, the nodes change places. What clients saw is checked, and the store is looked through.
//!
//! It runs in namespaces of its own for processes, mounts and the network, and so do the hosts in it: whatever happens
//! to it, nothing of it stays but the folder of a run that has failed. Needs root, iproute2, and glusterfs-server and
//! glusterfs-client of Debian.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fitness;
mod host_loss;
mod hosts;
mod probe;
#[path = "../support/mod.rs"]
mod support;
mod volume;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use fitness::{Cut, check, finding};
use host_loss::{Outcome, Scene};
use hosts::{Host, Wire, make_networks};
use support::namespaces::enter;
use support::pair::Node;
use volume::{MOUNT_OPTION, OPTIONS, VOLUME, Volume, Way};

/// Exit code of a check that finds a directory unfit.
const UNFIT: i32 = 5;
/// Exit code of a program that was interrupted.
const INTERRUPTED: i32 = 130;
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// A pair on two hosts that share a GlusterFS volume: is the volume fit, and what do clients see when a host is lost?
#[derive(Clone, Debug, Parser)]
#[command(name = "gluster")]
struct Arguments {
    /// Mode of the store
    #[arg(long, value_enum, default_value_t = Modes::Both)]
    mode: Modes,
    /// How often everything happens, in each mode
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Keep the logs also where nothing was found
    #[arg(long)]
    keep: bool,
}

/// Modes, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Modes {
    File,
    Database,
    Both,
}

impl Modes {
    const fn list(self) -> &'static [&'static str] {
        match self {
            Self::File => &["file"],
            Self::Database => &["database"],
            Self::Both => &["file", "database"],
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(failure) = enter() {
        return failure;
    }
    // On a disk, as a volume is.
    let dir = tempfile::Builder::new().prefix("gluster-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let kept = dir.path().to_owned();
    let ran = std::panic::catch_unwind(|| run(&arguments, dir.path()));
    let clean = ran.is_ok_and(|outcomes| outcomes.iter().all(|outcome| outcome.violations.is_empty()));
    if !clean || arguments.keep {
        volume::keep_logs(&kept);
        let _ = dir.keep();
        eprintln!("logs are kept in {}", kept.display());
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(arguments: &Arguments, dir: &Path) -> Vec<Outcome> {
    is_documented();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let whole = dir.to_owned();
    runtime.spawn(async move {
        tokio::signal::ctrl_c().await.unwrap();
        let _ = fs::remove_dir_all(whole);
        // All others end with this process.
        std::process::exit(INTERRUPTED);
    });
    make_networks();
    let volume = Volume::new(dir);
    let point = dir.join("shared");
    fs::create_dir(&point).unwrap();
    let wires = [Wire::Clients, Wire::Storage];
    let mut hosts = [("a", 1), ("b", 2)].map(|(name, number)| Host::new(name, number, &wires, dir));
    unfit_as_it_comes(&hosts, &volume, &point, dir);
    volume.make_fit();
    for host in &hosts {
        volume.mount(host, &point, Way::Direct);
    }
    let mut outcomes = Vec::new();
    for (mode, cut) in arguments.mode.list().iter().zip([Cut::Yes, Cut::No]) {
        let store = folder(&hosts[0], &point, mode);
        fit(&hosts, &store, cut);
        let logs = dir.join(format!("logs-{mode}"));
        fs::create_dir(&logs).unwrap();
        let scene = Scene::new(&mut hosts, &volume, &point, mode, &store, &logs);
        outcomes.push(runtime.block_on(scene.run(arguments.rounds)));
    }
    println!("{}", table(&outcomes));
    outcomes
}

/// What is done here to the volume is what operators are told to do.
fn is_documented() {
    for (option, value) in OPTIONS {
        let said = format!("gluster volume set {VOLUME} {option} {value}\n");
        assert!(OPERATIONS.contains(&said), "docs/operations.md does not have {said}");
    }
    assert!(OPERATIONS.contains(&format!("mount -t glusterfs -o {MOUNT_OPTION} ")));
}

/// A folder of the volume.
fn folder(host: &Host, point: &Path, name: &str) -> PathBuf {
    let path = point.join(name);
    host.run("mkdir", &[path.to_str().unwrap()]);
    path
}

/// The caches of its clients keep old blocks: the check finds that, and a node heeds it.
fn unfit_as_it_comes(hosts: &[Host; 2], volume: &Volume, point: &Path, dir: &Path) {
    for host in hosts {
        volume.mount(host, point, Way::AsItComes);
    }
    let store = folder(&hosts[0], point, "as-it-comes");
    let (found, code) = check(hosts.each_ref(), &store, Cut::No);
    assert_eq!((code, finding(&found, "stale-read").is_some()), (UNFIT, true), "{found}");
    let mut node = Node::new("a", &store, "file", dir)
        .within(&hosts[0].wrapper().each_ref().map(String::as_str), "127.0.0.1:7470")
        .set("BATON_CREATE_STORE", true);
    node.start();
    let ended = node.wait();
    assert!(!ended.success() && node.log().contains("unfit: "), "{}", node.log());
    eprintln!("  as it comes it is unfit, and no node starts on it");
    for host in hosts {
        volume.unmount(host, point);
    }
}

/// Set up as documented it is fit.
fn fit(hosts: &[Host; 2], store: &Path, cut: Cut) {
    let (found, code) = check(hosts.each_ref(), store, cut);
    assert_eq!(code, 0, "{found}");
    assert_eq!(found["scope"], if cut == Cut::Yes { "cut" } else { "two-hosts" }, "{found}");
    let said = |code| finding(&found, code);
    let with_cut = [said("lost-host-lock"), said("late-writes-of-free-files-arrive")];
    assert!(cut == Cut::No || with_cut.iter().all(Option::is_some), "{found}");
    // A busy disk may be called a slow one.
    let told = [said("sync"), said("sync-slow"), said("lock-release")].into_iter().chain(with_cut);
    told.flatten().for_each(|text| eprintln!("  {text}"));
}

/// What clients saw, for people.
fn table(outcomes: &[Outcome]) -> String {
    let mut lines = vec![
        "| mode | what happens to the master's host | longest time between two confirms | confirmed meanwhile |"
            .to_owned(),
        "| --- | --- | --- | --- |".to_owned(),
    ];
    for Outcome { mode, seen, .. } in outcomes {
        lines.extend(seen.iter().map(|seen| {
            format!("| {mode} | {} | {:.2?} | {} |", seen.fault.name(), seen.longest, seen.confirmed)
        }));
    }
    for Outcome { mode, confirmed, violations, .. } in outcomes {
        lines.push(format!("{mode} mode: {confirmed} messages confirmed, {} violations", violations.len()));
        lines.extend(violations.iter().take(10).map(|violation| format!("  {violation:?}")));
    }
    lines.join("\n")
}
