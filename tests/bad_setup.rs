//! Nodes that are set up wrong, and stores that they must not touch. Each is refused with its exit code and a text
//! that says what to do, before an epoch is claimed; a healthy master does not notice.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use batonmq::client::{Client, ConsumerOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::offline::{self, Lost};
use batonmq::protocol::response::Role;
use batonmq::store::Mode;
use batonmq::store::conversion::Old;
use rustix::fs::Uid;
use rustix::process::Signal;
use support::load::options;
use support::mount::{Mount, SmallDisk};
use support::pair::{Node, PATIENCE};

/// The configuration is wrong.
const WRONG: i32 = 2;
/// The node cannot start.
const FAILED: i32 = 1;

/// Name and content of every file below a directory.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Starts a node that must not start; its log must have these parts in its last line.
fn is_refused(mut node: Node, code: i32, parts: &[&str]) {
    node.start();
    let status = node.wait();
    let log = node.log();
    let last = log.lines().last().unwrap_or_default();
    assert_eq!(status.code(), Some(code), "{parts:?}: {log}");
    assert!(last.starts_with("baton: "), "{log}");
    for part in parts {
        assert!(last.contains(part), "{part:?} is not in: {log}");
    }
    println!("{code}: {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_set_up_wrong_does_not_start_and_unseats_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut master = Node::new("a", &store, "file", dir.path());
    master.start();
    let healthy = master.wait_for(Role::Master).await;
    let mut number = 0;
    let mut node = |store: &Path| {
        number += 1;
        Node::new(&format!("b{number}"), store, "file", dir.path())
    };
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let before = contents(&store.join("epochs"));

    let contradiction = node(&store).set("BATON_LIMITS_BODY_BYTES_MAX", "500MiB");
    is_refused(
        contradiction,
        WRONG,
        &["BATON_LIMITS_BODY_BYTES_MAX: ", "raise limits.frame_bytes_max to 501MiB"],
    );
    let beyond = node(&store).set("BATON_LIMITS_FRAME_BYTES_MAX", "5");
    is_refused(beyond, WRONG, &["limits.frame_bytes_max: 5 is out of bounds; set it from 8MiB to 1GiB"]);
    for (text, parts) in [
        ("\npoll_intervall = '1s'", &["wrong.toml:2: ", "did you mean \"poll_interval\"?"][..]),
        ("heartbeat = 5", &["wrong.toml:1: heartbeat: \"5\" is not a duration with a unit"]),
        ("store_id = 'mine'", &["wrong.toml:1: store_id: \"mine\" is not the id of a store"]),
        ("node = [", &["wrong.toml:1: "]),
    ] {
        let path = file("wrong.toml", text);
        is_refused(node(&store).set("BATON_CONFIG", path), WRONG, parts);
    }
    is_refused(
        node(&store).set("BATON_CONFIG", "/nowhere/baton.toml"),
        WRONG,
        &["cannot read", "/nowhere/baton.toml"],
    );
    let nowhere = node(&store).set("BATON_ADVERTISE", "0.0.0.0:7470");
    is_refused(nowhere, WRONG, &["set `advertise` to the address under which they reach this node"]);
    let long = node(&store).set("BATON_ADVERTISE", format!("{}:1", "x".repeat(300)));
    is_refused(long, WRONG, &["BATON_ADVERTISE: advertise: it has 302 bytes, at most 255"]);

    let mut same = node(&store);
    same.address.clone_from(&master.address);
    is_refused(same, FAILED, &["cannot listen on 127.0.0.1:", "another process listens there", "`listen`"]);

    let missing = dir.path().join("missing");
    let unmounted = node(&missing).set("BATON_CREATE_STORE", false);
    is_refused(
        unmounted,
        FAILED,
        &["/missing does not exist: is the shared file system mounted?", "create_store = true"],
    );
    let deep = node(&missing.join("deep"));
    is_refused(deep, FAILED, &["/missing/deep cannot be made (", "the rest must exist"]);
    assert!(!missing.exists());

    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let expecting = node(&empty).set("BATON_CREATE_STORE", false);
    is_refused(
        expecting,
        FAILED,
        &["/empty holds no store: is the shared file system mounted?", "create_store = true"],
    );
    assert!(contents(&empty).is_empty());

    let photos = dir.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("me.jpeg"), b"me").unwrap();
    is_refused(node(&photos), FAILED, &["/photos holds \"me.jpeg\" but no store: use an empty directory"]);
    is_refused(
        node(&photos.join("me.jpeg")),
        FAILED,
        &["me.jpeg is not a directory: `store` names the directory"],
    );
    assert_eq!(contents(&photos).len(), 1);

    let other = node(&store).set("BATON_STORE_ID", "019ab5c2-7d1e-7a44-9c0f-3f1b2a6d5e88");
    is_refused(other, FAILED, &["holds the store ", &healthy.store_id, "not 019ab5c2-", "`store_id`"]);
    let view = Mount::new(&store, &dir.path().join("view"), "ro");
    is_refused(node(&view.path), FAILED, &["cannot write in ", "/view", "is it mounted read-only"]);

    // Root without its capabilities is a user like any other.
    let someone = Uid::from_raw(65534);
    let theirs = dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).unwrap();
    rustix::fs::chown(&theirs, Some(someone), None).unwrap();
    let stranger = node(&theirs);
    let address = stranger.address.clone();
    let stranger = stranger.within(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"], &address);
    is_refused(
        stranger,
        FAILED,
        &["cannot read ", "/theirs: Permission denied", "runs as user 0, who must own"],
    );
    rustix::fs::chown(&theirs, Some(Uid::ROOT), None).unwrap();
    assert!(contents(&theirs).is_empty());

    let still = master.wait_for(Role::Master).await;
    assert_eq!((still.epoch, still.store_id), (healthy.epoch, healthy.store_id.clone()));
    assert_eq!(contents(&store.join("epochs")), before);
    // The right id is no obstacle.
    let mut standby = node(&store).set("BATON_STORE_ID", &healthy.store_id);
    standby.start();
    standby.wait_for(Role::Standby).await;
}

const COUNT: u64 = 50;

/// A store with messages that two masters have left cleanly.
async fn left_store(dir: &Path, mode: &'static str) -> PathBuf {
    let store = dir.join(format!("store-{mode}"));
    for _ in 0..2 {
        let mut node = Node::new(&format!("before-{mode}"), &store, mode, dir);
        node.start();
        node.wait_for(Role::Master).await;
        let client = Client::connect(options(&node.address)).await.unwrap();
        let topic = client.topic("t").await.unwrap();
        let producer = client.producer(ProducerOptions::default()).await.unwrap();
        for number in 0..COUNT {
            producer.publish(&topic, &Message::new(number.to_string())).await.unwrap();
        }
        producer.flush().await.unwrap();
        node.signal(Signal::TERM);
        assert!(node.wait().success(), "{}", node.log());
    }
    store
}

fn newest(folder: &Path, wanted: impl Fn(&str) -> bool) -> PathBuf {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    folder.join(names.filter(|name| wanted(name)).max().expect("there is one"))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Raises the version in the file's own way, checksum included.
type Raise = fn(&mut [u8]);

fn raise_control(bytes: &mut [u8]) {
    change_newest_block(bytes, 8, &2_u32.to_le_bytes());
}

fn change_newest_block(bytes: &mut [u8], at: usize, value: &[u8]) {
    let block = bytes.len() - 4096;
    put(bytes, block + at, value);
    let sum = crc32c::crc32c(&bytes[block..block + 4092]);
    put(bytes, block + 4092, &sum.to_le_bytes());
}

fn raise_manifest(bytes: &mut [u8]) {
    put(bytes, 0, b"baton-manifest 2 ");
}

fn raise_segment(bytes: &mut [u8]) {
    put(bytes, 12, &2_u32.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[12..64]);
    put(bytes, 8, &sum.to_le_bytes());
}

fn raise_checkpoint(bytes: &mut [u8]) {
    put(bytes, 12, &2_u32.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[12..]);
    put(bytes, 8, &sum.to_le_bytes());
}

fn raise_database(bytes: &mut [u8]) {
    put(bytes, 60, &99_u32.to_be_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_newer_format_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for mode in ["file", "database"] {
        let store = left_store(dir.path(), mode).await;
        let mut files: Vec<(PathBuf, Raise, &str)> = vec![
            (store.join("control"), raise_control, "control: format 2"),
            (newest(&store.join("manifest"), |_| true), raise_manifest, ": format 2"),
        ];
        if mode == "file" {
            let journal = store.join("journal");
            files.push((newest(&journal, |name| name.ends_with(".log")), raise_segment, ".log: format 2"));
            let checkpoint =
                newest(&journal, |name| name.starts_with("checkpoint-") && !name.ends_with(".new"));
            files.push((checkpoint, raise_checkpoint, ": format 2"));
        } else {
            files.push((newest(&store, |name| name.ends_with(".db")), raise_database, ".db: format 99"));
        }
        for (number, (path, raise, part)) in files.into_iter().enumerate() {
            let good = fs::read(&path).unwrap();
            let mut newer = good.clone();
            raise(&mut newer);
            assert_ne!(newer, good);
            fs::write(&path, &newer).unwrap();
            let before = contents(&store);
            let node = Node::new(&format!("old-{mode}-{number}"), &store, mode, dir.path());
            is_refused(
                node,
                FAILED,
                &[part, "this version knows up to 1; run the newer baton on both nodes"],
            );
            let after = contents(&store);
            assert!(after == before, "{}: {:?}", path.display(), after.keys().collect::<Vec<_>>());
            fs::write(&path, &good).unwrap();
        }
        if mode == "database" {
            // What the manifest names must be there; nothing is made in its place.
            let database = newest(&store, |name| name.ends_with(".db"));
            fs::rename(&database, dir.path().join("aside")).unwrap();
            let node = Node::new("without", &store, mode, dir.path());
            is_refused(node, FAILED, &[".db is missing: is the right file system mounted?"]);
            fs::rename(dir.path().join("aside"), &database).unwrap();
        }
        let epochs = contents(&store.join("epochs")).len();
        assert_eq!(epochs, 2, "an epoch was claimed in vain");

        let mut node = Node::new(&format!("after-{mode}"), &store, mode, dir.path());
        node.start();
        assert_eq!(node.wait_for(Role::Master).await.epoch.0, 3);
        let client = Client::connect(options(&node.address)).await.unwrap();
        let mut consumer = client.consumer(ConsumerOptions::new("t", "g")).await.unwrap();
        for number in (0..COUNT).chain(0..COUNT) {
            let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(delivery.message.body, number.to_string());
            consumer.settler().ack(&delivery);
        }
        consumer.close().await.unwrap();
    }
}

/// A part of a store that is moved away, put back when this goes.
struct Aside {
    part: PathBuf,
    place: PathBuf,
}

impl Aside {
    fn put(part: PathBuf) -> Self {
        let place =
            part.parent().and_then(Path::parent).unwrap().join("aside").join(part.file_name().unwrap());
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::rename(&part, &place).unwrap();
        Self { part, place }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Where the test has failed, a node may have made it anew.
        let _ = fs::rename(&self.place, &self.part);
    }
}

/// Nothing said that an epoch had had a journal. Where that was gone, and no older one was sealed, the next master
/// came up with an empty store, and everything that was confirmed was lost without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_which_nothing_is_left_but_its_epochs_is_refused_before_a_claim() {
    let dir = tempfile::tempdir().unwrap();
    for (mode, converted) in [("file", false), ("database", false), ("database", true)] {
        let logs = dir.path().join(format!("{mode}-{converted}"));
        fs::create_dir(&logs).unwrap();
        let store = logs.join("store");
        let mut node = Node::new("a", &store, mode, &logs);
        node.start();
        node.wait_for(Role::Master).await;
        let client = Client::connect(options(&node.address)).await.unwrap();
        let topic = client.topic("t").await.unwrap();
        let producer = client.producer(ProducerOptions::default()).await.unwrap();
        producer.send(&topic, &Message::new("confirmed")).await.unwrap();
        node.kill();
        if converted {
            offline::convert(&store, Mode::File, Old::Removed, &mut |_| {}).unwrap();
        }
        let (mode, epoch) = if converted { ("file", 2) } else { (mode, 1) };
        let manifest = format!("/manifest/{epoch:020}");
        let lost = match mode {
            "file" => vec![
                (vec![store.join("journal")], format!("/journal/{epoch:020}-000001.log")),
                (vec![store.join("journal"), store.join("manifest")], manifest),
            ],
            _ => {
                let mut all = vec![store.join("manifest")];
                let files = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
                all.extend(files.filter(|path| path.display().to_string().contains(".db")));
                vec![(all, manifest)]
            }
        };
        for (parts, named) in lost {
            let _aside: Vec<Aside> = parts.into_iter().map(Aside::put).collect();
            let before = contents(&store);
            let text = format!("{named} is missing: is the right file system mounted?");
            is_refused(Node::new("b", &store, mode, &logs), FAILED, &[&text, "`baton store verify`"]);
            assert!(contents(&store) == before, "something was claimed or written");
            let found = offline::verify(&store, &mut |_| {}).unwrap().survey.damages;
            let damage =
                found.iter().find(|damage| damage.path.ends_with(&named[1..])).expect("it is listed");
            assert_eq!(damage.lost, Lost::Unknown, "{found:?}");
            assert!(offline::look(&store).is_err());
        }
        // All of it is there again.
        let mut node = Node::new("b", &store, mode, &logs);
        node.start();
        node.wait_for(Role::Master).await;
        let client = Client::connect(options(&node.address)).await.unwrap();
        let mut consumer = client.consumer(ConsumerOptions::new("t", "g")).await.unwrap();
        let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(delivery.message.body, "confirmed");
    }
}

/// A part of a store that may not be written to was found after the claim: the good master was unseated, and nobody
/// served.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_which_a_part_cannot_be_written_is_refused_before_a_claim() {
    let dir = tempfile::tempdir().unwrap();
    for (mode, part) in [("file", "journal"), ("file", "manifest"), ("database", "manifest")] {
        let logs = dir.path().join(format!("{mode}-{part}"));
        fs::create_dir(&logs).unwrap();
        let store = left_store(&logs, mode).await;
        let aside = logs.join("aside");
        fs::rename(store.join(part), &aside).unwrap();
        let _view = Mount::new(&aside, &store.join(part), "ro");
        let before = contents(&store);
        let text = format!("/{part} cannot be read and written");
        is_refused(Node::new("b", &store, mode, &logs), FAILED, &[&text, "is it mounted read-only"]);
        assert!(contents(&store) == before, "something was claimed or written");
    }
}

/// A takeover that must copy the database claimed first and found the disk full afterwards. It left what it had copied,
/// so that the next attempts failed the sooner, and each used up an epoch.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_for_whose_copy_there_is_no_space_is_left_alone_until_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(&dir.path().join("disk"), 32);
    let store = disk.path.join("store");
    let mut node = Node::new("a", &store, "database", dir.path()).set("BATON_SEGMENT_BYTES", 1 << 20);
    node.start();
    node.wait_for(Role::Master).await;
    let client = Client::connect(options(&node.address)).await.unwrap();
    let topic = client.topic("t").await.unwrap();
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    for _ in 0..COUNT {
        producer.publish(&topic, &Message::new(vec![7; 100 << 10])).await.unwrap();
    }
    producer.flush().await.unwrap();
    node.kill();
    // As if it ran on another host, of which nothing is known.
    let mut control = fs::read(store.join("control")).unwrap();
    change_newest_block(&mut control, 56, &[1; 16]);
    fs::write(store.join("control"), control).unwrap();
    let ballast = disk.path.join("ballast");
    fs::write(&ballast, vec![0; 20 << 20]).unwrap();

    let before = contents(&store);
    for name in ["b", "c"] {
        let node = Node::new(name, &store, "database", dir.path());
        is_refused(
            node,
            FAILED,
            &[
                "its old master may still write, so the database must be copied",
                "make space on the shared disk",
            ],
        );
        assert!(contents(&store) == before, "something was claimed or written");
    }
    fs::remove_file(&ballast).unwrap();
    node.start();
    assert_eq!(node.wait_for(Role::Master).await.epoch.0, 2);
    let client = Client::connect(options(&node.address)).await.unwrap();
    assert_eq!(client.topics().await.unwrap()[0].end.0, COUNT);
}
