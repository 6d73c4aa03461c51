//! A disk that is full: publishing is refused, consuming goes on, and publishing goes on once there is space.
//!
//! The disk is a small `ext4` file system in a file, mounted through a loop device, so the tests need root. Where there
//! is no loop device to be had, it is a `tmpfs`, and standard error says so.

mod cli_support;
mod scene;

use std::ffi::OsStr;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use batonmq::model::free_min::FreeMin;
use batonmq::model::id::{Epoch, OffsetRange};
use batonmq::model::record::Record;
use batonmq::store::{Mode, Predecessor, file};
use cli_support::{PATIENCE, command, free_address, run, signal, wait_for_end, wait_until};
use rustix::process::Signal;
use scene::{Model, Scene, bodies};

/// Bytes of the disk: more than what either mode keeps for draining.
const DISK_BYTES: u64 = 96 << 20;
/// Messages published: together they are larger than the disk.
const MESSAGES: u64 = 2_000;
/// Bytes of a body.
const BODY_BYTES: usize = 64 << 10;

/// Bytes that another program leaves free: enough to claim an epoch, and for the smallest segment.
const LEFT_BYTES: u64 = 256 << 10;

/// A small disk.
struct Disk(PathBuf);

impl Disk {
    /// One at `path`, which is made.
    fn mount(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        let disk = Self(path);
        if let Err(why) = disk.mount_image() {
            eprintln!("no ext4 on a loop device ({why}): the disk is a tmpfs, which shows less");
            let size = format!("size={DISK_BYTES}");
            let mount = ["-t", "tmpfs", "-o", &size, "tmpfs"].map(OsStr::new);
            done(Command::new("mount").args(mount).arg(&disk.0))
                .expect("this test mounts a file system: it needs root");
        }
        disk
    }

    fn mount_image(&self) -> Result<(), String> {
        let image = self.0.with_extension("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(DISK_BYTES)).unwrap();
        // No block is kept for root, which the tests are.
        done(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-J", "size=4"]).arg(&image))?;
        done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&self.0))
    }
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {said}")) }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, so that it also goes where a process still has something open in it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Another program, that takes every block as soon as it is free, until this is dropped.
struct Hog {
    file: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hog {
    /// Starts it. When this returns it has taken everything once.
    fn start(file: PathBuf) -> Self {
        let (full, is_full) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (file.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut file = std::fs::File::create(&path).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                for bytes in [1 << 20, 64 << 10, 4 << 10, 512] {
                    let refused = loop {
                        if let Err(error) = file.write_all(&vec![7; bytes]) {
                            break error;
                        }
                    };
                    assert_eq!(refused.kind(), ErrorKind::StorageFull);
                }
                file.sync_all().unwrap();
                // Only the first time is waited for.
                let _ = full.send(());
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        is_full.recv_timeout(PATIENCE).unwrap();
        Self { file, stop, thread: Some(thread) }
    }
}

impl Hog {
    /// Takes nothing more, and gives nothing back. Answers the bytes that it has taken.
    fn stop(mut self) -> u64 {
        self.end();
        std::fs::metadata(std::mem::take(&mut self.file)).unwrap().len()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// A node, killed when dropped.
struct Node(Child, String);

impl Node {
    fn start(store: &Path, mode: &str, log: &Path) -> Self {
        Self::start_with(&[], store, mode, log)
    }

    fn start_with(settings: &[(&str, &str)], store: &Path, mode: &str, log: &Path) -> Self {
        let address = free_address();
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let node = command(&["serve", "--listen", &address, "--mode", mode, "--store"])
            .arg(store)
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        run(&["topic", "list", "--server", &address]).ok();
        Self(node, address)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_full_disk_is_drained_and_filled_again(mode: &str) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(dir.path().join("disk"));
    let lines = dir.path().join("lines");
    let padding = "x".repeat(BODY_BYTES - 4);
    let text: String = (0..MESSAGES).map(|number| format!("{number:04}{padding}\n")).collect();
    std::fs::write(&lines, text).unwrap();
    let (lines, store) = (lines.to_str().unwrap(), disk.0.join("store"));
    let mut node = Node::start(&store, mode, &dir.path().join("log"));
    let server = node.1.clone();
    let baton = |args: &[&str]| run(&[args, &["--server", &server]].concat());
    let publish = |timeout: &str| {
        baton(&["publish", "t", "--lines", lines, "--producer", "p", "--timeout", timeout, "--json"])
    };
    let waiting = || baton(&["group", "list", "--json"]).json()[0]["waiting"].as_u64().unwrap();
    baton(&["topic", "create", "t"]).ok();
    baton(&["group", "create", "t", "g"]).ok();

    let refused = publish("1s").failed(3);
    assert!(refused.contains("no space left"), "{refused}");
    let stored = waiting();
    assert!(stored > 100, "{stored} messages of {BODY_BYTES} bytes on a disk of {DISK_BYTES}");

    let count = stored.to_string();
    let consumed = baton(&["consume", "t", "--group", "g", "--count", &count]).ok();
    let numbers: Vec<&str> = consumed.lines().map(|line| &line[..4]).collect();
    let expected: Vec<String> = (0..stored).map(|number| format!("{number:04}")).collect();
    assert_eq!(numbers, expected, "what was confirmed came, in order");
    // Its reader empties the disk while it goes on: nothing else makes the node accept the rest.
    let reader = &mut command(&["consume", "t", "--group", "g", "--server", &server]);
    let mut reader = reader.stdout(Stdio::null()).spawn().unwrap();
    let published = publish("30s").json().remove(0);
    assert_eq!(published["messages"].as_u64().unwrap() + published["skipped"].as_u64().unwrap(), MESSAGES);
    wait_until(|| waiting() == 0);
    signal(&reader, Signal::TERM);
    wait_for_end(&mut reader);
    assert!(node.0.try_wait().unwrap().is_none(), "the node is still the one that it was");
    signal(&node.0, Signal::TERM);
    assert!(wait_for_end(&mut node.0).success());
}

#[test]
fn a_full_disk_is_drained_and_filled_again_in_file_mode() {
    a_full_disk_is_drained_and_filled_again("file");
}

#[test]
fn a_full_disk_is_drained_and_filled_again_in_database_mode() {
    a_full_disk_is_drained_and_filled_again("database");
}

/// A log that could not be written back on a disk that others had filled kept every node from becoming master, and
/// the attempt took what was left.
fn a_full_disk_is_taken_over(mode: &str) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(dir.path().join("disk"));
    let body = dir.path().join("body");
    std::fs::write(&body, vec![b'x'; BODY_BYTES]).unwrap();
    let (body, store) = (body.to_str().unwrap(), disk.0.join("store"));
    let mut first = Node::start(&store, mode, &dir.path().join("log"));
    run(&["topic", "create", "t", "--server", &first.1]).ok();
    run(&["group", "create", "t", "g", "--server", &first.1]).ok();
    let files = [&["publish", "t", "--server", &first.1, "--files"][..], &[body; 300]].concat();
    run(&files).ok();
    first.0.kill().unwrap();
    first.0.wait().unwrap();

    let claims = || std::fs::read_dir(store.join("epochs")).unwrap().count();
    let (ballast, before) = (disk.0.join("ballast"), claims());
    let taken = Hog::start(ballast.clone()).stop();
    let address = free_address();
    let serve = ["serve", "--listen", &address, "--mode", mode, "--store", store.to_str().unwrap()];
    let refused = run(&serve).failed(1);
    assert!(refused.contains("make space on the shared disk"), "{refused}");
    assert_eq!(claims(), before, "a node that cannot serve claims nothing");
    std::fs::File::options().write(true).open(&ballast).unwrap().set_len(taken - LEFT_BYTES).unwrap();
    let mut second = Node::start(&store, mode, &dir.path().join("log"));
    let consumed_bytes = |count: &str| {
        let consume = ["consume", "t", "--group", "g", "--count", count, "--server", &second.1];
        run(&consume).ok().len()
    };
    assert_eq!(consumed_bytes("1"), BODY_BYTES + 1);
    std::fs::remove_file(ballast).unwrap();
    assert_eq!(consumed_bytes("299"), 299 * (BODY_BYTES + 1));
    wait_until(|| run(&["publish", "t", "again", "--timeout", "1s", "--server", &second.1]).code == Some(0));
    signal(&second.0, Signal::TERM);
    assert!(wait_for_end(&mut second.0).success());
}

#[test]
fn a_full_disk_is_taken_over_in_file_mode() {
    a_full_disk_is_taken_over("file");
}

#[test]
fn a_full_disk_is_taken_over_in_database_mode() {
    a_full_disk_is_taken_over("database");
}

/// All that was settled on a full disk was pinned by a message of each segment, and the copies of these need space
/// themselves.
#[test]
fn a_full_disk_is_emptied_though_each_segment_has_a_message_left() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(dir.path().join("disk"));
    let mut scene = Scene {
        dir: tempfile::tempdir_in(&disk.0).unwrap(),
        open: file::open,
        mode: Mode::File,
        epoch: Epoch(0),
        segment_bytes: 4 << 20,
        store: None,
        model: Model::default(),
    };
    scene.reopen(Predecessor::None);
    let topic = scene.create_topic();
    let mut round = 0;
    while scene.store().space(FreeMin::default()).unwrap() > 1 << 20 {
        scene.publish(&[topic], &bodies(10, BODY_BYTES, round));
        round += 1;
    }
    assert!(round > 50, "{round}");
    let end = scene.model.snapshot.topics[&topic].end.0;
    let ranges = (0..end).step_by(40).map(|at| OffsetRange::new(at, (at + 39).min(end))).collect();
    scene.commit(&[Record::Removed { topic, ranges }]);
    let is_empty = |scene: &mut Scene| scene.store().space(FreeMin::default()).unwrap() > DISK_BYTES / 2;
    let started = std::time::Instant::now();
    while !is_empty(&mut scene) {
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "the space does not come back");
        scene.maintain();
    }
    scene.check_everything(1 << 20);
    scene.crash();
    scene.check_everything(1 << 20);
}

/// An ack that found no space, because another program had taken what was left for it, ended the master, and after it
/// each next one.
fn another_program_takes_everything(mode: &str) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(dir.path().join("disk"));
    let (lines, log) = (dir.path().join("lines"), dir.path().join("log"));
    let padding = "x".repeat(BODY_BYTES - 4);
    let text: String = (0..MESSAGES).map(|number| format!("{number:04}{padding}\n")).collect();
    std::fs::write(&lines, text).unwrap();
    let (lines, store) = (lines.to_str().unwrap(), disk.0.join("store"));
    let mut node = Node::start(&store, mode, &log);
    let baton = |node: &Node, args: &[&str]| run(&[args, &["--server", &node.1]].concat());
    let publish = |node: &Node, timeout: &str| {
        baton(node, &["publish", "t", "--lines", lines, "--producer", "p", "--timeout", timeout, "--json"])
    };
    let waiting =
        |node: &Node| baton(node, &["group", "list", "--json"]).json()[0]["waiting"].as_u64().unwrap();
    baton(&node, &["topic", "create", "t"]).ok();
    baton(&node, &["group", "create", "t", "g"]).ok();
    publish(&node, "1s").failed(3);
    let stored = waiting(&node);

    let hog = Hog::start(disk.0.join("ballast"));
    let count = (stored / 2).to_string();
    baton(&node, &["consume", "t", "--group", "g", "--prefetch", "1", "--count", &count]).ok();
    assert!(node.0.try_wait().unwrap().is_none(), "{}", std::fs::read_to_string(&log).unwrap());
    node.0.kill().unwrap();
    node.0.wait().unwrap();
    drop(hog);
    let mut node = Node::start(&store, mode, &log);
    let left = waiting(&node);
    assert!(0 < left && left < stored, "{left} of {stored}");
    let read = dir.path().join("read");
    let reader = &mut command(&["consume", "t", "--group", "g", "--server", &node.1]);
    let mut reader = reader.stdout(std::fs::File::create(&read).unwrap()).spawn().unwrap();
    let published = publish(&node, "30s").json().remove(0);
    assert_eq!(published["messages"].as_u64().unwrap() + published["skipped"].as_u64().unwrap(), MESSAGES);
    wait_until(|| waiting(&node) == 0);
    signal(&reader, Signal::TERM);
    wait_for_end(&mut reader);
    // What was in flight when the node was killed may have come before: it comes again.
    let read = std::fs::read_to_string(&read).unwrap();
    let numbers: Vec<u64> = read.lines().map(|line| line[..4].parse().unwrap()).collect();
    let first = numbers[0];
    assert_eq!(
        numbers,
        (first..MESSAGES).collect::<Vec<_>>(),
        "everything that was not acked came, in order"
    );
    assert!((1..=stored / 2).contains(&first), "{first}: what was acked does not come again");
    signal(&node.0, Signal::TERM);
    assert!(wait_for_end(&mut node.0).success());
}

#[test]
fn another_program_takes_everything_in_file_mode() {
    another_program_takes_everything("file");
}

#[test]
fn another_program_takes_everything_in_database_mode() {
    another_program_takes_everything("database");
}

/// Below the watermark only publishing stops, whoever has taken the space, and with every master; it goes on by itself.
fn a_part_of_the_disk_is_kept_free(mode: &str) {
    const SETTINGS: [(&str, &str); 2] = [("BATON_DISK_FREE_MIN", "60%"), ("BATON_SEGMENT_BYTES", "4MiB")];
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(dir.path().join("disk"));
    let (body, log) = (dir.path().join("body"), dir.path().join("log"));
    std::fs::write(&body, vec![b'x'; BODY_BYTES]).unwrap();
    let (body, store) = (body.to_str().unwrap(), disk.0.join("store"));
    let mut node = Node::start_with(&SETTINGS, &store, mode, &log);
    let baton = |node: &Node, args: &[&str]| run(&[args, &["--server", &node.1]].concat());
    let waiting = |node: &Node| -> u64 {
        baton(node, &["group", "list", "--json"]).json()[0]["waiting"].as_u64().unwrap()
    };
    let many = [&["publish", "t", "--timeout", "1s", "--files"][..], &[body; 1_000]].concat();
    let one = ["publish", "t", "--timeout", "1s", "message"];
    baton(&node, &["topic", "create", "t"]).ok();
    baton(&node, &["group", "create", "t", "g"]).ok();

    let refused = baton(&node, &many).failed(3);
    assert!(refused.contains("no space left"), "{refused}");
    let stored = waiting(&node);
    let kept = DISK_BYTES / 100 * 60;
    assert!(stored > 50 && stored * (BODY_BYTES as u64) < DISK_BYTES - kept, "{stored} messages");
    // What is written ahead, and one commit, may go below.
    let free = batonmq::disk::free(&disk.0).unwrap();
    assert!(free > kept - (12 << 20), "{free} bytes free, not about {kept}");
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("or lower disk_free_min"), "{said}");
    node.0.kill().unwrap();
    node.0.wait().unwrap();
    let mut node = Node::start_with(&SETTINGS, &store, mode, &log);
    // A log that was written back may have made some room.
    baton(&node, &many).failed(3);
    let count = waiting(&node).to_string();
    baton(&node, &["consume", "t", "--group", "g", "--count", &count]).ok();
    assert_eq!(waiting(&node), 0, "consuming goes on");
    wait_until(|| baton(&node, &one).code == Some(0));

    let ballast = disk.0.join("ballast");
    let free = batonmq::disk::free(&disk.0).unwrap();
    std::fs::write(&ballast, vec![7; (free - kept / 2) as usize]).unwrap();
    wait_until(|| baton(&node, &one).code == Some(3));
    baton(&node, &["consume", "t", "--group", "g", "--count", "1"]).ok();
    std::fs::remove_file(&ballast).unwrap();
    wait_until(|| baton(&node, &one).code == Some(0));
    signal(&node.0, Signal::TERM);
    assert!(wait_for_end(&mut node.0).success());
}

#[test]
fn a_part_of_the_disk_is_kept_free_in_file_mode() {
    a_part_of_the_disk_is_kept_free("file");
}

#[test]
fn a_part_of_the_disk_is_kept_free_in_database_mode() {
    a_part_of_the_disk_is_kept_free("database");
}
