//! A node, and clients that do what no client should. Whatever they do ends their own connection or is refused with
//! the right code; a well-behaved client on another connection goes on, after each of them, and loses nothing.

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use batonmq::client::{Client, ConsumerOptions};
use batonmq::model::id::{ProducerId, TopicId};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::settings::GroupSettings;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::preface;
use batonmq::protocol::request::{
    AdminCommand, BrowseFrom, OpenProducer, Pull, Purpose, Request, Settlement, Unsubscribe,
};
use batonmq::protocol::response::{Reply, Response, Role};
use batonmq::server::{HANDSHAKE_MAX, STALLED_MIN};
use bytes::Bytes;
use rustix::process::Signal;
use support::neighbour::Neighbour;
use support::pair::{Node, PATIENCE};
use support::raw::{
    Raw, admin, encoded, find, frame, hello, open, publish, publish_bytes, settle, subscribe, window,
};
use tempfile::TempDir;

/// A master on a store of its own.
struct Scene {
    node: Node,
    neighbour: Neighbour,
    _dir: TempDir,
}

impl Scene {
    async fn new(settings: &[(&'static str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::new("a", &dir.path().join("store"), "file", dir.path());
        for (variable, value) in settings {
            node = node.set(variable, value);
        }
        node.start();
        node.wait_for(Role::Master).await;
        let neighbour = Neighbour::new(&node.address).await;
        Self { node, neighbour, _dir: dir }
    }

    async fn ends(self) {
        self.neighbour.finish().await;
    }

    fn rss_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that it ever had.
    fn peak_rss_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.node.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

/// Heartbeats so rare that a client which sends none is not missed in a test.
const SILENCE_ALLOWED: (&str, &str) = ("BATON_HEARTBEAT", "1m");

/// What a rude client is told last.
fn last_word(raw: &mut Raw) -> Option<Refusal> {
    match raw.rest().pop() {
        Some(Response::Failed(refusal)) => Some(refusal),
        None => None,
        other => panic!("{other:?}"),
    }
}

/// The variable-length number 2^60.
const HUGE: [u8; 9] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0x10];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_of_the_protocol_is_not_let_in() {
    let mut scene = Scene::new(&[SILENCE_ALLOWED]).await;
    let address = scene.node.address.clone();
    for (what, bytes, answer) in [
        ("another protocol", &b"SSH-2.0-"[..], &b""[..]),
        ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b""),
        ("a preface without its end", b"BATON\x01\x01\0", b""),
        ("HTTP", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        ("HTTP that puts", b"PUT /x HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        ("a newer version", b"BATON\x02\x09\n", b"BATON\x00\x01\n"),
        ("versions the wrong way round", b"BATON\x09\x01\n", b"BATON\x00\x01\n"),
    ] {
        let mut raw = Raw::dial(&address);
        raw.write(bytes);
        let mut got = Vec::new();
        raw.socket.read_to_end(&mut got).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(got.starts_with(answer) && got.is_empty() == answer.is_empty(), "{what}: {got:?}");
        scene.neighbour.is_undisturbed(what).await;
    }
    let mut stranger = hello(Purpose::Client);
    if let Request::Hello(hello) = &mut stranger {
        hello.auth_mechanism = "plain".repeat(5_000);
    }
    for (what, bytes, code) in [
        ("no hello", encoded(&Request::Heartbeat).to_vec(), ErrorCode::Protocol),
        ("4 GiB", vec![0xff; 4], ErrorCode::FrameTooLarge),
        ("more than a first frame may have", vec![1, 0, 1, 0, 1], ErrorCode::FrameTooLarge),
        ("nothing", vec![0; 4], ErrorCode::Protocol),
        ("half a hello", frame(0x01, &[0, 5]), ErrorCode::Protocol),
        ("an unknown purpose", frame(0x01, &[7, 0, 0, 0, 0, 0]), ErrorCode::Protocol),
        ("another authentication", encoded(&stranger).to_vec(), ErrorCode::Unauthorized),
    ] {
        let mut raw = Raw::greeted(&address);
        raw.write(&bytes);
        let refusal = last_word(&mut raw).unwrap_or_else(|| panic!("{what}: no word"));
        assert_eq!(refusal.code, code, "{what}: {refusal}");
        assert!(refusal.text.len() < 200, "{what}: {refusal}");
        scene.neighbour.is_undisturbed(what).await;
    }
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_makes_no_sense_ends_its_connection_alone() {
    let mut scene = Scene::new(&[SILENCE_ALLOWED]).await;
    let address = scene.node.address.clone();
    let topic = Raw::client(&address).topic("t");
    let in_message =
        |bytes: &[u8]| encoded(&publish_bytes(topic, 1, 1, Bytes::copy_from_slice(bytes))).to_vec();
    let huge = |kind, before: &[u8]| frame(kind, &[before, &HUGE].concat());
    let mut behind = encoded(&find("x")).to_vec();
    behind.push(0);
    behind[0] += 1;
    for (what, bytes, code) in [
        ("a frame of 4 GiB", vec![0xff, 0xff, 0xff, 0xff, 0x11], ErrorCode::FrameTooLarge),
        ("a frame above the limit", vec![1, 0, 0x80, 0x04, 0x11], ErrorCode::FrameTooLarge),
        ("a frame of nothing", vec![0; 4], ErrorCode::Protocol),
        ("an unknown kind", frame(0x7f, b"x"), ErrorCode::Protocol),
        ("a frame of a node", frame(0x83, &[1, 1]), ErrorCode::Protocol),
        ("a second hello", encoded(&hello(Purpose::Client)).to_vec(), ErrorCode::Protocol),
        ("half a head", frame(0x22, &[1]), ErrorCode::Protocol),
        ("something behind a head", behind, ErrorCode::Protocol),
        ("2^60 ranges", huge(0x22, &[1, 1, 0]), ErrorCode::Protocol),
        ("2^60 parts", huge(0x11, &[1, 1]), ErrorCode::Protocol),
        ("a name of 2^60 bytes", huge(0x30, &[1]), ErrorCode::Protocol),
        ("a number too large for its type", huge(0x21, &[]), ErrorCode::Protocol),
        ("an unknown settlement", frame(0x22, &[1, 1, 9, 0]), ErrorCode::Protocol),
        ("an unknown command", frame(0x31, &[1, 99]), ErrorCode::Protocol),
        ("a name that is not UTF-8", frame(0x30, &[1, 2, 0xff, 0xfe]), ErrorCode::Protocol),
        ("a message longer than its frame", in_message(&[9, 0, 0, 0, 0]), ErrorCode::Protocol),
        ("a message of 4 GiB", in_message(&[0xff, 0xff, 0xff, 0xff, 0, 0]), ErrorCode::Protocol),
        ("a message of nothing", in_message(&[0, 0, 0, 0]), ErrorCode::Protocol),
        ("half a length", in_message(&[1, 0]), ErrorCode::Protocol),
        ("an unknown flag", in_message(&[2, 0, 0, 0, 0x80, 1]), ErrorCode::Protocol),
        ("a key beyond its message", in_message(&[4, 0, 0, 0, 1, 9, 0, 1]), ErrorCode::Protocol),
        ("a header beyond its message", in_message(&[6, 0, 0, 0, 2, 1, 0, 9, 0, 1]), ErrorCode::Protocol),
    ] {
        let mut raw = Raw::client(&address);
        raw.open_producer(1, "rude");
        raw.write(&bytes);
        // Still talking when the answer comes.
        raw.write(&encoded(&Request::Heartbeat).repeat(1_000));
        let refusal = last_word(&mut raw).unwrap_or_else(|| panic!("{what}: no word"));
        assert_eq!(refusal.code, code, "{what}: {refusal}");
        scene.neighbour.is_undisturbed(what).await;
    }
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_anywhere_leaves_nothing_behind() {
    let mut scene = Scene::new(&[SILENCE_ALLOWED]).await;
    let address = scene.node.address.clone();
    let topic = Raw::client(&address).topic("t");
    let whole = encoded(&publish(topic, 1, &[Message::new("one"), Message::new("two")]));
    for len in 0..whole.len() {
        let mut raw = Raw::client(&address);
        raw.open_producer(1, &format!("p{len}"));
        raw.write(&whole[..len]);
    }
    for len in 0..8 {
        Raw::dial(&address).write(&preface::client()[..len]);
    }
    scene.neighbour.is_undisturbed("broken connections").await;
    let info = Client::connect(support::load::options(&address)).await.unwrap().topics().await.unwrap();
    assert_eq!(info.iter().find(|info| info.name == "t").unwrap().end.0, 0, "half a frame was taken");
    let deadline = Instant::now() + PATIENCE;
    while scene.node.status().await.unwrap().connections > 3 {
        assert!(Instant::now() < deadline, "connections are left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_makes_no_sense_is_refused_and_the_connection_goes_on() {
    let mut scene = Scene::new(&[SILENCE_ALLOWED, ("BATON_LIMITS_BODY_BYTES_MAX", "1MiB")]).await;
    let mut raw = Raw::client(&scene.node.address);
    let topic = raw.topic("t");
    raw.open_producer(1, "rude");
    raw.subscribe(1, "t", "g", window(10));
    let long = "x".repeat(10_000);
    let pull = |consumer| Request::Pull(Pull { request: 905, consumer, window: window(1), wait_ms: 0 });
    let resumed =
        OpenProducer { request: 901, producer: 2, name: "rude".into(), resume: Some(ProducerId(77)) };
    let short_lease = GroupSettings { lease_ms: 1, ..GroupSettings::default() };
    let create_group = |topic: &str, settings| AdminCommand::CreateGroup {
        topic: topic.into(),
        name: "h".into(),
        settings,
        start: Default::default(),
    };
    let delete_group = |name: &str| AdminCommand::DeleteGroup { topic: "t".into(), name: name.into() };
    for (what, request, number, code) in [
        ("a topic of 10 kB", find(&long), 900, ErrorCode::Invalid),
        ("a topic without a name", find(""), 900, ErrorCode::Invalid),
        ("a space", find("a b"), 900, ErrorCode::Invalid),
        ("an umlaut", find("größe"), 900, ErrorCode::Invalid),
        ("a zero", find("a\0b"), 900, ErrorCode::Invalid),
        ("a path", find("../../etc/passwd"), 900, ErrorCode::Invalid),
        ("SQL", find("t'; drop table topic; --"), 900, ErrorCode::Invalid),
        ("a producer of 10 kB", open(2, &long), 901, ErrorCode::Invalid),
        ("a producer's number twice", open(1, "other"), 901, ErrorCode::Invalid),
        ("a producer nobody knows", Request::OpenProducer(resumed), 901, ErrorCode::ProducerExpired),
        ("a consumer's number twice", subscribe(1, "t", "g", window(1)), 902, ErrorCode::Invalid),
        ("a group of 10 kB", subscribe(2, "t", &long, window(1)), 902, ErrorCode::Invalid),
        ("acks of nobody", settle(9, topic, Settlement::Ack, &[(0, 1)]), 903, ErrorCode::UnknownHandle),
        ("a pull of nobody", pull(9), 905, ErrorCode::UnknownHandle),
        (
            "the end of nobody",
            Request::Unsubscribe(Unsubscribe { request: 906, consumer: 9 }),
            906,
            ErrorCode::UnknownHandle,
        ),
        ("a lease of 1 ms", admin(create_group("t", short_lease)), 904, ErrorCode::Invalid),
        (
            "a group of no topic",
            admin(create_group("u", GroupSettings::default())),
            904,
            ErrorCode::UnknownTopic,
        ),
        (
            "deleting nothing",
            admin(AdminCommand::DeleteTopic { name: "u".into() }),
            904,
            ErrorCode::UnknownTopic,
        ),
        ("deleting 10 kB", admin(AdminCommand::DeleteTopic { name: long.clone() }), 904, ErrorCode::Invalid),
        ("deleting no group", admin(delete_group("u")), 904, ErrorCode::UnknownGroup),
        ("deleting a group of 10 kB", admin(delete_group(&long)), 904, ErrorCode::Invalid),
    ] {
        let refusal = raw.ask(&request, number).unwrap_err();
        assert_eq!(refusal.code, code, "{what}: {refusal}");
        assert!(refusal.text.len() < 500, "{what}: {refusal}");
        scene.neighbour.is_undisturbed(what).await;
    }
    // What is settled or given credit without being there is passed over: it may have gone a moment ago.
    let settled = raw.ask(&settle(1, topic, Settlement::Ack, &[(0, u64::MAX), (5, 3), (7, 7)]), 903);
    assert_eq!(settled, Ok(Reply::Settled { count: 0 }));

    let headers = |count: usize, len: usize| Message {
        headers: vec![("h".into(), vec![0; len].into()); count],
        ..Message::default()
    };
    let wild = |bytes: &[u8]| publish_bytes(topic, 1, 1, Bytes::copy_from_slice(bytes));
    let fine = [Message::new("x")];
    let one = MessageBlock::encode(&fine).bytes().clone();
    let keyed = Message { key: Some(vec![0; 4_097].into()), ..Message::default() };
    let gap = publish(topic, 3, &fine);
    let mut stranger = publish(topic, 1, &fine);
    if let Request::Publish(head, _) = &mut stranger {
        head.producer = 9;
    }
    for (what, request, code, part) in [
        ("a producer that is not open", stranger, ErrorCode::UnknownHandle, "9"),
        ("a topic that is not there", publish(TopicId(9), 1, &fine), ErrorCode::UnknownTopic, "9"),
        ("2 messages that are 1", publish_bytes(topic, 1, 2, one.clone()), ErrorCode::Invalid, "2 messages"),
        ("4 billion messages", publish_bytes(topic, 1, u32::MAX, one), ErrorCode::Invalid, "4294967295"),
        ("no message", publish(topic, 1, &[]), ErrorCode::Invalid, "without a message"),
        ("a gap", gap, ErrorCode::OutOfSequence, "1 comes next"),
        ("sequence 0", publish(topic, 0, &fine), ErrorCode::Invalid, "begin with 1"),
        ("the last sequence", publish(topic, u64::MAX, &fine), ErrorCode::Invalid, "too high"),
        ("a priority of 10", wild(&[2, 0, 0, 0, 16, 10]), ErrorCode::Invalid, "priority"),
        (
            "a header without a name",
            wild(&[9, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0]),
            ErrorCode::Invalid,
            "header",
        ),
        (
            "a body above its limit",
            publish(topic, 1, &[Message::new(vec![0; (1 << 20) + 1])]),
            ErrorCode::MessageTooLarge,
            "body_bytes_max is 1048576",
        ),
        (
            "headers above their limit",
            publish(topic, 1, &[headers(2, 32 << 10)]),
            ErrorCode::MessageTooLarge,
            "header_bytes_max is 65536",
        ),
        ("257 headers", publish(topic, 1, &[headers(257, 0)]), ErrorCode::MessageTooLarge, "256"),
        ("a key of 4097 bytes", publish(topic, 1, &[keyed]), ErrorCode::MessageTooLarge, "4096"),
    ] {
        raw.send(&request);
        match raw.next() {
            Some(Response::PublishRefused(refused)) => {
                assert_eq!(refused.refusal.code, code, "{what}: {}", refused.refusal);
                assert!(refused.refusal.text.contains(part), "{what}: {}", refused.refusal);
            }
            other => panic!("{what}: {other:?}"),
        }
        scene.neighbour.is_undisturbed(what).await;
    }
    raw.send(&publish(topic, 1, &fine));
    raw.settle_down();
    assert_eq!(raw.delivered(1).len(), 1, "after all that, one message was published");
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_on_what_there_may_be_are_named_when_they_are_reached() {
    let mut scene = Scene::new(&[
        SILENCE_ALLOWED,
        ("BATON_LIMITS_TOPICS_MAX", "3"),
        ("BATON_LIMITS_GROUPS_MAX", "3"),
        ("BATON_LIMITS_CONSUMERS_PER_CONNECTION_MAX", "2"),
        ("BATON_LIMITS_PRODUCERS_PER_CONNECTION_MAX", "10"),
        ("BATON_LIMITS_PRODUCERS_MAX", "16"),
    ])
    .await;
    let address = scene.node.address.clone();
    let mut raw = Raw::client(&address);
    let limit = |answer: Result<Reply, Refusal>, name: &str| {
        let refusal = answer.unwrap_err();
        assert!(refusal.code == ErrorCode::Limit && refusal.text.contains(name), "{refusal:?}");
    };
    raw.topic("t1");
    raw.topic("t2");
    limit(raw.ask(&find("t3"), 900), "topics_max");
    limit(raw.ask(&subscribe(1, "t3", "g", window(1)), 902), "topics_max");
    scene.neighbour.is_undisturbed("topics_max").await;

    raw.subscribe(1, "t1", "g", window(1));
    raw.subscribe(2, "t1", "g", window(1));
    limit(raw.ask(&subscribe(3, "t1", "g", window(1)), 902), "consumers_per_connection_max");
    let mut other = Raw::client(&address);
    other.subscribe(1, "t1", "h", window(1));
    limit(other.ask(&subscribe(2, "t1", "i", window(1)), 902), "groups_max");
    scene.neighbour.is_undisturbed("groups_max").await;

    for number in 1..=10 {
        raw.open_producer(number, &format!("r{number}"));
    }
    limit(raw.ask(&open(11, "r11"), 901), "producers_per_connection_max");
    for number in 1..=5 {
        other.open_producer(number, &format!("o{number}"));
    }
    limit(other.ask(&open(6, "o6"), 901), "producers_max");
    scene.neighbour.is_undisturbed("producers_max").await;
    // One that is idle gives its place.
    drop(raw);
    let mut deadline = 0;
    while let Err(refusal) = other.ask(&open(6, "o6"), 901) {
        assert!(refusal.code == ErrorCode::Limit && deadline < 10_000, "{refusal:?}");
        deadline += 1;
    }
    scene.neighbour.is_undisturbed("a forgotten producer").await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_on_what_is_handed_out_hold_it_back() {
    let mut scene = Scene::new(&[
        SILENCE_ALLOWED,
        ("BATON_LIMITS_PREFETCH_MAX", "10"),
        ("BATON_LIMITS_IN_FLIGHT_MAX", "15"),
        ("BATON_LIMITS_RETRIES_MAX", "5"),
        ("BATON_LIMITS_PULLS_WAITING_MAX", "2"),
        ("BATON_LIMITS_CACHE_BYTES_MAX", "1MiB"),
    ])
    .await;
    let address = scene.node.address.clone();
    let mut raw = Raw::client(&address);
    let topic = raw.topic("t");
    raw.open_producer(1, "p");
    for group in ["flight", "retries"] {
        raw.subscribe(1, "t", group, window(0));
        raw.ask(&Request::Unsubscribe(Unsubscribe { request: 906, consumer: 1 }), 906).unwrap();
    }
    // More than the cache holds: 100 messages of 100 KiB.
    for sequence in 1..=100 {
        raw.send(&publish(topic, sequence, &[Message::new(vec![1; 100 << 10])]));
    }
    scene.neighbour.is_undisturbed("more than the cache").await;

    raw.subscribe(1, "t", "flight", window(1_000));
    raw.settle_down();
    wait_for(&mut raw, 1, 10);
    raw.subscribe(2, "t", "flight", window(1_000));
    wait_for(&mut raw, 2, 5);
    raw.settle_down();
    assert_eq!((raw.delivered(1).len(), raw.delivered(2).len()), (10, 5), "prefetch_max, in_flight_max");
    scene.neighbour.is_undisturbed("in_flight_max").await;

    raw.subscribe(3, "t", "retries", window(10));
    wait_for(&mut raw, 3, 10);
    let later = Settlement::Nack { delay_ms: Some(3_600_000), reason: None };
    raw.ask(&settle(3, topic, later, &[(0, 5)]), 903).unwrap();
    raw.settle_down();
    assert_eq!(raw.delivered(3).len(), 10, "retries_max");
    scene.neighbour.is_undisturbed("retries_max").await;

    raw.topic("empty");
    raw.subscribe(5, "empty", "pulls", window(0));
    let pull = |request| Request::Pull(Pull { request, consumer: 5, window: window(1), wait_ms: 3_600_000 });
    raw.send(&pull(1));
    raw.send(&pull(2));
    assert_eq!(raw.ask(&pull(3), 3), Ok(Reply::Pulled { count: 0 }), "pulls_waiting_max");
    scene.neighbour.is_undisturbed("pulls_waiting_max").await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_too_many_gaps_waits_for_its_oldest_messages() {
    let mut scene = Scene::new(&[SILENCE_ALLOWED, ("BATON_LIMITS_SETTLED_RANGES_MAX", "16")]).await;
    let mut raw = Raw::client(&scene.node.address);
    let topic = raw.topic("t");
    raw.open_producer(1, "p");
    raw.subscribe(1, "t", "g", window(40));
    raw.send(&publish(topic, 1, &vec![Message::new("x"); 100]));
    wait_for(&mut raw, 1, 40);
    let odd: Vec<(u64, u64)> = (0..20).map(|n| (2 * n + 1, 2 * n + 2)).collect();
    assert_eq!(raw.ask(&settle(1, topic, Settlement::Ack, &odd), 903), Ok(Reply::Settled { count: 20 }));
    raw.settle_down();
    assert_eq!(raw.delivered(1).len(), 40, "settled_ranges_max");
    scene.neighbour.is_undisturbed("settled_ranges_max").await;
    raw.ask(&settle(1, topic, Settlement::Ack, &[(0, 40)]), 903).unwrap();
    wait_for(&mut raw, 1, 80);
    scene.ends().await;
}

/// Waits until a consumer was delivered as many messages.
fn wait_for(raw: &mut Raw, consumer: u32, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while raw.delivered(consumer).len() < count {
        assert!(Instant::now() < deadline, "{} of {count} delivered", raw.delivered(consumer).len());
        raw.settle_down();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_are_told_so_and_the_other_node_still_watches() {
    let mut scene = Scene::new(&[SILENCE_ALLOWED, ("BATON_LIMITS_CONNECTIONS_MAX", "8")]).await;
    let address = scene.node.address.clone();
    // One is the neighbour's.
    let mut held: Vec<Raw> = (0..7).map(|_| Raw::client(&address)).collect();
    let mut more = Raw::greeted(&address);
    more.send(&hello(Purpose::Client));
    let refusal = last_word(&mut more).unwrap();
    assert_eq!(refusal.code, ErrorCode::TooManyConnections);
    assert!(refusal.text.contains("connections_max"), "{refusal}");
    scene.neighbour.is_undisturbed("connections_max").await;
    let mut watch = Raw::greeted(&address);
    watch.send(&hello(Purpose::Watch));
    assert!(matches!(watch.next(), Some(Response::Welcome(_))));
    drop(watch);
    held.pop();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut raw = Raw::greeted(&address);
        raw.send(&hello(Purpose::Client));
        match raw.next() {
            Some(Response::Welcome(_)) => break,
            Some(Response::Failed(refusal)) => assert_eq!(refusal.code, ErrorCode::TooManyConnections),
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "the place of a connection that ended is not free");
    }
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_not_waited_for() {
    let mut scene = Scene::new(&[("BATON_HEARTBEAT", "100ms")]).await;
    let address = scene.node.address.clone();
    let started = Instant::now();
    let mut silent: Vec<Raw> = [&b""[..], b"BATO", b"BATON\x01\x01\n", b"BATON\x01\x01\n\x10\0"]
        .map(|words| {
            let mut raw = Raw::dial(&address);
            raw.write(words);
            raw
        })
        .into();
    // One that was let in and then says nothing more is told why it goes.
    let mut lost = Raw::client(&address);
    let refusal = last_word(&mut lost).unwrap();
    assert_eq!(refusal.code, ErrorCode::HeartbeatMissed, "{refusal}");
    assert!(started.elapsed() < HANDSHAKE_MAX, "heartbeats are not missed in time");
    scene.neighbour.is_undisturbed("the silent").await;
    for raw in &mut silent {
        let mut rest = Vec::new();
        // Where there was a preface, there is an answer to it.
        raw.socket.read_to_end(&mut rest).unwrap();
        assert!(rest.len() <= 8);
        assert!(started.elapsed() >= HANDSHAKE_MAX - Duration::from_millis(500), "not given its time");
    }
    scene.neighbour.is_undisturbed("the silent").await;
    scene.ends().await;
}

/// A consumer that never reads: what waits for it is bounded, and after a while it is given up and what it had in
/// flight goes to others.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_does_not_read_costs_little_and_loses_its_messages() {
    const COUNT: u64 = 200;
    let mut scene = Scene::new(&[("BATON_LIMITS_OUTPUT_BYTES_MAX", "1MiB")]).await;
    let address = scene.node.address.clone();
    let mut deaf = Raw::client(&address);
    deaf.topic("big");
    deaf.subscribe(1, "big", "g", window(100_000));
    let before = scene.rss_bytes();
    let mut publisher = Raw::client(&address);
    let topic = publisher.topic("big");
    publisher.open_producer(1, "p");
    for sequence in 1..=COUNT {
        publisher.send(&publish(topic, sequence, &[Message::new(vec![9; 1 << 20])]));
        if sequence % 20 == 0 {
            publisher.settle_down();
            scene.neighbour.is_undisturbed("a deaf consumer").await;
        }
    }
    let grown = scene.rss_bytes().saturating_sub(before);
    assert!(grown < 100 << 20, "{grown} bytes for a client that does not read");
    // Given up by now, or in a moment: its messages come to another consumer of its group.
    let client = Client::connect(support::load::options(&address)).await.unwrap();
    let options = ConsumerOptions { prefetch: 10, ..ConsumerOptions::new("big", "g") };
    let mut consumer = client.consumer(options).await.unwrap();
    let started = Instant::now();
    for _ in 0..COUNT {
        let waiting = tokio::time::timeout(STALLED_MIN * 3, consumer.next()).await;
        let delivery = waiting.expect("the deaf one keeps its messages").unwrap().unwrap();
        consumer.settler().ack(&delivery);
    }
    println!("all messages after {:?}, memory grown by {} KiB", started.elapsed(), grown >> 10);
    consumer.close().await.unwrap();
    scene.neighbour.is_undisturbed("a deaf consumer that was given up").await;
    scene.ends().await;
}

/// Somebody who publishes and asks without ever reading stops itself.
#[tokio::test(flavor = "multi_thread")]
async fn floods_stop_themselves_and_what_was_confirmed_is_there() {
    let limits = [
        SILENCE_ALLOWED,
        ("BATON_LIMITS_OUTPUT_BYTES_MAX", "64KiB"),
        ("BATON_LIMITS_UNPROCESSED_BYTES_MAX", "1MiB"),
        ("BATON_LIMITS_COMMIT_BYTES_MAX", "64KiB"),
    ];
    let mut scene = Scene::new(&limits).await;
    let address = scene.node.address.clone();
    let mut raw = Raw::client(&address);
    let topic = raw.topic("flood");
    raw.open_producer(1, "p");
    let before = scene.rss_bytes();
    let mut published = 0;
    for _ in 0..20 {
        let mut bytes = Vec::new();
        for _ in 0..500 {
            published += 1;
            bytes.extend_from_slice(&encoded(&publish(topic, published, &[Message::new(vec![1; 100])])));
        }
        raw.write(&bytes);
        scene.neighbour.is_undisturbed("a flood of messages").await;
    }
    let confirmed = loop {
        match raw.next() {
            Some(Response::Confirm(confirm)) if confirm.sequence.0 == published => break confirm.sequence.0,
            Some(Response::Confirm(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    let client = Client::connect(support::load::options(&address)).await.unwrap();
    let info = client.topics().await.unwrap().into_iter().find(|info| info.name == "flood").unwrap();
    assert_eq!(info.end.0, confirmed);

    for (what, question) in [
        ("a flood of questions for the status", admin(AdminCommand::Status)),
        ("a flood of questions for all topics", admin(support::raw::list_topics())),
        ("a flood of questions for messages", browse()),
        ("a flood of names", find("no name")),
    ] {
        let mut raw = Raw::client(&address);
        let sent = write_until_it_blocks(&mut raw, &encoded(&question).repeat(1_000));
        scene.neighbour.is_undisturbed(what).await;
        let grown = scene.rss_bytes().saturating_sub(before);
        assert!(grown < 150 << 20, "{what}: {grown} bytes after {sent} sent");
    }
    scene.ends().await;
}

fn browse() -> Request {
    admin(AdminCommand::Browse {
        topic: "flood".into(),
        group: None,
        from: BrowseFrom::Beginning,
        since: Default::default(),
        filter: None,
        messages_max: 10_000,
    })
}

/// Each browse of a large message took its size twice, for as long as its client did not read: some hundred bytes of
/// questions took gigabytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_browses_for_a_large_message_takes_little_and_ends_with_its_clients() {
    const BODY: usize = 19 << 20;
    let mut scene = Scene::new(&[SILENCE_ALLOWED]).await;
    let address = scene.node.address.clone();
    let mut raw = Raw::client(&address);
    let topic = raw.topic("flood");
    raw.open_producer(1, "p");
    raw.send(&publish(topic, 1, &[Message::new(vec![9; BODY])]));
    raw.settle_down();
    let before = scene.peak_rss_bytes();
    let deaf: Vec<Raw> = (0..60)
        .map(|_| {
            let mut raw = Raw::client(&address);
            raw.write(&encoded(&browse()).repeat(10));
            raw
        })
        .collect();
    // Until they have all that they are given.
    let mut grown = 0;
    loop {
        for _ in 0..10 {
            scene.neighbour.is_undisturbed("a flood of browses").await;
        }
        let more = scene.peak_rss_bytes() - before;
        if more == grown {
            break;
        }
        grown = more;
    }
    assert!(grown < 250 << 20, "{grown} bytes for clients that do not read");
    drop(deaf);
    let client = Client::connect(support::load::options(&address)).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let browsed = loop {
        match client.browse("flood", Default::default(), 10).await {
            Ok(browsed) => break browsed,
            Err(error) => assert!(error.to_string().contains("browses_max"), "{error}"),
        }
        assert!(Instant::now() < deadline, "those who wait stay though they are gone");
    };
    assert_eq!(browsed[0].message.body.len(), BODY);
    scene.ends().await;
}

/// Writes until nothing was taken for a while. Answers how many bytes were.
fn write_until_it_blocks(raw: &mut Raw, bytes: &[u8]) -> usize {
    raw.socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0;
    loop {
        match raw.socket.write(bytes) {
            // Half a question may have been written: it goes on from there.
            Ok(count) if count < bytes.len() => {
                sent += count;
                match raw.socket.write_all(&bytes[count..]) {
                    Ok(()) => sent += bytes.len() - count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return sent,
                    Err(error) => panic!("{error}"),
                }
            }
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return sent,
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 1 << 30, "a client that does not read is read from without end");
    }
}

/// Whoever did not read what there was for him kept the process alive: its last words were waited for without end.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_does_not_keep_a_node_from_ending() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    // With heartbeats so rare, the system would wait for minutes.
    let (variable, rare) = SILENCE_ALLOWED;
    let mut nodes = ["a", "b"].map(|name| Node::new(name, &store, "file", dir.path()).set(variable, rare));
    for (node, role) in nodes.iter_mut().zip([Role::Master, Role::Standby]) {
        node.start();
        node.wait_for(role).await;
    }
    let mut rude = Vec::new();
    for (node, role) in nodes.iter().zip([Role::Master, Role::Standby]) {
        let mut raw = Raw::greeted(&node.address);
        raw.send(&hello(Purpose::Client));
        assert!(matches!(
            (raw.next(), role),
            (Some(Response::Welcome(_)), Role::Master) | (Some(Response::NotMaster(_)), Role::Standby)
        ));
        write_until_it_blocks(&mut raw, &encoded(&admin(AdminCommand::Status)).repeat(1_000));
        rude.push(raw);
    }
    for node in nodes.iter_mut().rev() {
        let started = Instant::now();
        node.signal(Signal::TERM);
        assert!(node.wait().success(), "{}", node.log());
        assert!(started.elapsed() < Duration::from_secs(8), "it took {:?}", started.elapsed());
    }
}

/// A list of all topics had no end: with some ten thousand topics no client could read it.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_topics_and_groups_are_listed_and_a_large_message_is_browsed() {
    const COUNT: usize = 2_500;
    let mut scene = Scene::new(&[SILENCE_ALLOWED]).await;
    let mut raw = Raw::client(&scene.node.address);
    for number in 0..COUNT {
        raw.send(&subscribe(number as u32, &format!("{}{number:05}", "t".repeat(200)), "g", window(0)));
    }
    for _ in 0..COUNT {
        raw.answer(902).unwrap();
    }
    let client = Client::connect(support::load::options(&scene.node.address)).await.unwrap();
    let topics = client.topics().await.unwrap();
    assert_eq!(topics.len(), COUNT + 1);
    assert!(topics.windows(2).all(|pair| pair[0].name < pair[1].name));
    let groups = client.groups(None).await.unwrap();
    assert_eq!(groups.len(), COUNT + 1);
    assert!(groups.windows(2).all(|pair| pair[0].group < pair[1].group));
    scene.neighbour.is_undisturbed("long lists").await;

    let topic = raw.topic("large");
    raw.open_producer(1, "p");
    let body = vec![5; 20 << 20];
    raw.send(&publish(topic, 1, &[Message::new(body.clone())]));
    raw.settle_down();
    let browsed = client.browse("large", Default::default(), 10).await.unwrap();
    assert!(browsed.len() == 1 && browsed[0].message.body == body);
    scene.ends().await;
}

/// Two messages of almost the size of a frame came in one frame that was larger than the client takes.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_messages_are_delivered_and_in_frames_that_clients_take() {
    let mut scene = Scene::new(&[
        SILENCE_ALLOWED,
        ("BATON_LIMITS_FRAME_BYTES_MAX", "8MiB"),
        ("BATON_LIMITS_BODY_BYTES_MAX", "7800KiB"),
        ("BATON_LIMITS_CACHE_BYTES_MAX", "64MiB"),
    ])
    .await;
    let mut raw = Raw::client(&scene.node.address);
    let topic = raw.topic("large");
    raw.open_producer(1, "p");
    let client = Client::connect(support::load::options(&scene.node.address)).await.unwrap();
    let options = ConsumerOptions { prefetch_bytes: 1 << 30, ..ConsumerOptions::new("large", "g") };
    let sizes = [1_000_000, 7_800 << 10, 5, 1_000, 7_800 << 10];
    for (sequence, size) in (1..).zip(sizes) {
        raw.send(&publish(topic, sequence, &[Message::new(vec![3; size])]));
    }
    // All of them are in memory now, to be handed out at once.
    raw.settle_down();
    let mut consumer = client.consumer(options).await.unwrap();
    for size in sizes {
        let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
        assert_eq!((delivery.message.body.len(), delivery.attempt), (size, 1));
        consumer.settler().ack(&delivery);
    }
    consumer.close().await.unwrap();
    scene.neighbour.is_undisturbed("large messages").await;
    scene.ends().await;
}
