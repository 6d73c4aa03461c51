//! The engine between a store, a guard and a client that write down what they see.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::net::TcpListener;

use super::*;
use crate::broker::Ending;
use crate::model::chunk::Chunk;
use crate::model::free_min::FreeMin;
use crate::model::id::{Epoch, Offset, Sequence, TopicId};
use crate::model::limits::QUERIES_MAX;
use crate::model::message::{Message, MessageBlock};
use crate::model::record::Record;
use crate::model::settings::{Backoff, GroupSettings, Start};
use crate::model::table::Table;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::RawFrame;
use crate::protocol::request::{Admin, AdminCommand, FindTopic, OpenProducer, Publish, Subscribe, Window};
use crate::protocol::response::{Reply, Response};
use crate::store::image::Image;
use crate::store::query::{Inspector, QueryBounds, QueryError};
use crate::store::{FenceCheck, Reader, Unreadable};

const PATIENCE: Duration = Duration::from_secs(10);

/// What the engine did, each with the bytes that the client had got by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Commit(usize),
    Check(usize),
    Maintain(usize),
    MakeSpace(usize),
    Leave(usize),
    Close(usize),
    Stage(usize),
    Unstage(usize),
}

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Fails,
    FindsNoSpace,
    Panics,
}

#[derive(Default)]
struct Script {
    calls: Vec<Call>,
    /// Looks at what the client has got.
    client: Option<TcpStream>,
    commit: Option<Fate>,
    check: Option<Fate>,
    /// A commit waits for a word from here.
    gate: Option<Receiver<()>>,
    /// A query waits for a word from here.
    query_gate: Option<Receiver<()>>,
    /// Words that the store owes: a block is staged.
    staging: Vec<Box<dyn FnOnce() + Send>>,
    upkeep_is_due: bool,
    /// What there is space for, where not for everything.
    space: Option<u64>,
    /// Blocks find no space when they are staged.
    stages_in_vain: bool,
    upkeep: Option<Fate>,
}

type Shared = Arc<Mutex<Script>>;

/// Bytes that lie in a socket and were not read.
fn lying(client: &TcpStream) -> usize {
    let mut bytes = vec![0; 1 << 16];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(client, &mut bytes[..], flags) {
        Ok((_, count)) => count,
        Err(Errno::WOULDBLOCK) => 0,
        Err(error) => panic!("{error}"),
    }
}

fn note(script: &Shared, call: fn(usize) -> Call) {
    let mut script = script.lock().unwrap();
    let got = script.client.as_ref().map_or(0, lying);
    script.calls.push(call(got));
}

struct FakeStore(Shared);

impl Store for FakeStore {
    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
        assert!(!records.is_empty());
        note(&self.0, Call::Commit);
        let (fate, gate) = {
            let mut script = self.0.lock().unwrap();
            (script.commit, script.gate.take())
        };
        if let Some(gate) = gate {
            gate.recv_timeout(PATIENCE).unwrap();
        }
        match fate {
            Some(Fate::Fails) => {
                let source = std::io::Error::other("the disk is gone");
                Err(StoreError::Io { action: "sync", path: "journal".into(), source })
            }
            Some(Fate::FindsNoSpace) => Err(StoreError::Full(records.len() as u64)),
            Some(Fate::Panics) => panic!("on purpose"),
            None => Ok(()),
        }
    }

    fn stage(&mut self, _: bytes::Bytes, staged: Box<dyn FnOnce() + Send>) {
        note(&self.0, Call::Stage);
        self.0.lock().unwrap().staging.push(staged);
    }

    fn staged_bytes(&self, block: &bytes::Bytes) -> u64 {
        if self.0.lock().unwrap().stages_in_vain { 0 } else { block.len() as u64 }
    }

    fn unstage(&mut self, _: &bytes::Bytes) -> Result<(), StoreError> {
        note(&self.0, Call::Unstage);
        Ok(())
    }

    fn space(&mut self, _: FreeMin) -> Result<u64, StoreError> {
        Ok(self.0.lock().unwrap().space.unwrap_or(u64::MAX))
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(FakeReader))
    }

    fn image(&mut self, _: &mut dyn FnMut() -> Snapshot) -> Result<Box<dyn Image>, StoreError> {
        let source = std::io::Error::other("this store has none");
        Err(StoreError::Io { action: "make an image of", path: "store".into(), source })
    }

    fn inspector(&self) -> Result<Option<Box<dyn Inspector>>, StoreError> {
        Ok(Some(Box::new(FakeInspector(Arc::clone(&self.0)))))
    }

    fn maintenance_due(&self) -> bool {
        self.0.lock().unwrap().upkeep_is_due
    }

    fn maintain(&mut self, _: &mut dyn FnMut() -> Snapshot, fence: FenceCheck<'_>) -> Result<(), StoreError> {
        fence()?;
        note(&self.0, Call::Maintain);
        let mut script = self.0.lock().unwrap();
        script.upkeep_is_due = false;
        match script.upkeep {
            Some(Fate::FindsNoSpace) => Err(StoreError::Full(1)),
            _ => Ok(()),
        }
    }

    fn make_space(&mut self, _: FenceCheck<'_>) -> Result<(), StoreError> {
        note(&self.0, Call::MakeSpace);
        Ok(())
    }

    fn leave(self: Box<Self>, fence: FenceCheck<'_>) -> Result<(), StoreError> {
        fence()?;
        note(&self.0, Call::Leave);
        Ok(())
    }

    fn close(
        self: Box<Self>,
        _: &mut dyn FnMut() -> Snapshot,
        fence: FenceCheck<'_>,
    ) -> Result<(), StoreError> {
        fence()?;
        note(&self.0, Call::Close);
        Ok(())
    }
}

struct FakeReader;

impl Reader for FakeReader {
    fn read(&mut self, _: TopicId, _: Offset, _: usize) -> Result<Option<Chunk>, Unreadable> {
        Ok(None)
    }
}

struct FakeInspector(Shared);

impl Inspector for FakeInspector {
    fn query(&mut self, text: &str, _: &QueryBounds) -> Result<Table, QueryError> {
        let gate = self.0.lock().unwrap().query_gate.take();
        if let Some(gate) = gate {
            gate.recv_timeout(PATIENCE).unwrap();
        }
        assert_ne!(text, "panic", "on purpose");
        Ok(Table { columns: vec![text.to_owned()], rows: Vec::new() })
    }
}

struct FakeGuard(Shared);

impl Guard for FakeGuard {
    fn check(&mut self) -> Result<(), Fenced> {
        note(&self.0, Call::Check);
        match self.0.lock().unwrap().check {
            Some(Fate::Fails) => Err(Fenced::Superseded(Epoch(9))),
            _ => Ok(()),
        }
    }

    fn check_lock(&mut self) -> Result<(), Fenced> {
        self.check()
    }
}

/// An engine and one client of it.
struct Scene {
    engine: Engine,
    script: Shared,
    ended: Receiver<Result<(), EngineError>>,
    budget: Arc<Budget>,
    sessions: u64,
}

struct Client {
    session: SessionId,
    outbox: Arc<Outbox>,
    socket: TcpStream,
    input: BytesMut,
}

impl Scene {
    fn new() -> Self {
        let script = Shared::default();
        let parts = Parts {
            store: Box::new(FakeStore(Arc::clone(&script))),
            snapshot: Snapshot::default(),
            place: "/".into(),
            seen: None,
            guard: Box::new(FakeGuard(Arc::clone(&script))),
            // So long that the guard is asked for effects alone.
            poll_interval: Duration::from_secs(3600),
            limits: Limits::default(),
            auto_create: AutoCreate::Allowed,
            free_min: FreeMin::default(),
        };
        let (sender, ended): (Sender<_>, _) = channel();
        let engine = Engine::start(parts, move |end| sender.send(end).unwrap()).unwrap();
        Self { engine, script, ended, budget: Budget::new(1 << 20, &Memory::new(u64::MAX)), sessions: 0 }
    }

    async fn client(&mut self, output_bytes_max: usize) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (read, write) = listener.accept().await.unwrap().0.into_split();
        drop(read);
        let outbox = Arc::new(Outbox::new(write, output_bytes_max, &Memory::new(u64::MAX)));
        let running = Arc::clone(&outbox);
        tokio::spawn(async move { running.run(|| {}).await });
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.engine.begin(session, Arc::clone(&outbox));
        Client { session, outbox, socket, input: BytesMut::new() }
    }

    /// Has the calls look at what this client has got.
    fn watch(&self, client: &Client) {
        let socket = client.socket.try_clone().unwrap();
        self.script.lock().unwrap().client = Some(socket);
    }

    fn submit(&self, client: &Client, commands: Vec<Command>) {
        self.engine.submit(client.session, commands, 1, &self.budget);
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.script.lock().unwrap().calls)
    }

    fn end(&self) -> Result<(), EngineError> {
        self.ended.recv_timeout(PATIENCE).expect("the engine does not end")
    }
}

impl Client {
    fn next(&mut self) -> Response {
        loop {
            if let Some(frame) = RawFrame::cut(&mut self.input, u64::MAX).unwrap() {
                return Response::decode(&frame).unwrap();
            }
            let mut bytes = vec![0; 1 << 16];
            let count = self.socket.read(&mut bytes).expect("nothing comes");
            assert!(count > 0, "the connection was closed");
            self.input.extend_from_slice(&bytes[..count]);
        }
    }
}

fn open() -> Command {
    Command::OpenProducer(OpenProducer { request: 1, producer: 1, name: "p".into(), resume: None })
}

fn create() -> Command {
    let command = AdminCommand::CreateTopic { name: "t".into(), settings: Default::default() };
    Command::Admin(Admin { request: 2, command })
}

fn publish(sequence: u64, count: u32, len: usize) -> Command {
    let messages: Vec<Message> = (0..count).map(|_| Message::new(vec![7; len])).collect();
    let head = Publish { producer: 1, sequence: Sequence(sequence), parts: vec![(TopicId(0), count)] };
    Command::Publish(head, MessageBlock::encode(&messages))
}

fn query(request: u32, text: &str) -> Command {
    Command::Admin(Admin { request, command: AdminCommand::Query { text: text.into() } })
}

fn find() -> Command {
    Command::FindTopic(FindTopic { request: 3, name: "t".into() })
}

/// A scene whose first client has opened a producer, and read everything. No commit is under way: one of before, noted
/// late, was taken for that of the first publish, and an engine that answered before it committed was never found.
async fn publishing() -> (Scene, Client) {
    let mut scene = Scene::new();
    let mut client = scene.client(1 << 20).await;
    scene.submit(&client, vec![open(), create()]);
    assert!(matches!(client.next(), Response::Reply(1, Ok(Reply::Producer { .. }))));
    assert!(matches!(client.next(), Response::Reply(2, Ok(Reply::Done))));
    scene.submit(&client, vec![find()]);
    assert!(matches!(client.next(), Response::Reply(3, Ok(Reply::Topic { .. }))));
    scene.calls();
    (scene, client)
}

fn confirmed(client: &mut Client) -> u64 {
    match client.next() {
        Response::Confirm(confirm) => confirm.sequence.0,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_before_the_commit_and_a_check_that_follows_it() {
    let (scene, mut client) = publishing().await;
    scene.watch(&client);
    for sequence in 1..=3 {
        scene.submit(&client, vec![publish(sequence, 1, 10)]);
        assert_eq!(confirmed(&mut client), sequence);
        assert_eq!(scene.calls(), [Call::Commit(0), Call::Check(0)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_changes_nothing_is_checked_too() {
    let (scene, mut client) = publishing().await;
    scene.submit(&client, vec![publish(1, 1, 10)]);
    assert_eq!(confirmed(&mut client), 1);
    scene.calls();
    scene.watch(&client);
    scene.submit(&client, vec![publish(1, 1, 10)]);
    assert_eq!(confirmed(&mut client), 1, "a resend is confirmed again");
    assert_eq!(scene.calls(), [Call::Check(0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_ends_the_engine_with_nothing_sent() {
    let (scene, client) = publishing().await;
    scene.watch(&client);
    scene.script.lock().unwrap().commit = Some(Fate::Fails);
    scene.submit(&client, vec![publish(1, 1, 10)]);
    assert!(matches!(scene.end(), Err(EngineError::Store(StoreError::Io { action: "sync", .. }))));
    assert_eq!(scene.calls(), [Call::Commit(0)], "no check, no close");
    assert_eq!(lying(&client.socket), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_says_no_ends_the_engine_with_nothing_sent() {
    let (scene, client) = publishing().await;
    scene.watch(&client);
    scene.script.lock().unwrap().check = Some(Fate::Fails);
    scene.submit(&client, vec![publish(1, 1, 10)]);
    assert!(matches!(scene.end(), Err(EngineError::Fenced(Fenced::Superseded(Epoch(9))))));
    assert_eq!(scene.calls(), [Call::Commit(0), Call::Check(0)], "no close");
    assert_eq!(lying(&client.socket), 0);
}

/// A query sees what is committed, whether or not somebody else has taken over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_a_query_leaves_after_a_check_only() {
    let (scene, mut client) = publishing().await;
    scene.watch(&client);
    scene.submit(&client, vec![query(8, "a")]);
    assert!(matches!(client.next(), Response::Reply(8, Ok(Reply::Table(table))) if table.columns == ["a"]));
    assert_eq!(scene.calls(), [Call::Check(0)]);
    scene.script.lock().unwrap().check = Some(Fate::Fails);
    scene.submit(&client, vec![query(9, "b")]);
    assert!(matches!(scene.end(), Err(EngineError::Fenced(_))));
    assert_eq!(lying(&client.socket), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_wait_in_a_line_of_bounded_length_and_outlive_a_panic() {
    let (scene, mut client) = publishing().await;
    let (open_gate, gate) = channel();
    scene.script.lock().unwrap().query_gate = Some(gate);
    let max = QUERIES_MAX as u32;
    for request in 10..=10 + max {
        scene.submit(&client, vec![query(request, "panic")]);
    }
    match client.next() {
        Response::Reply(request, Err(refusal)) if request == 10 + max => {
            assert_eq!(refusal.code, ErrorCode::Limit);
        }
        other => panic!("{other:?}"),
    }
    scene.submit(&client, vec![publish(1, 1, 10)]);
    assert_eq!(confirmed(&mut client), 1, "a query is in nobody's way");
    open_gate.send(()).unwrap();
    for request in 10..10 + max {
        match client.next() {
            Response::Reply(answered, Err(refusal)) if answered == request => {
                assert!(refusal.text.contains("please report it"), "{refusal}");
            }
            other => panic!("{other:?}"),
        }
    }
    scene.submit(&client, vec![query(99, "a")]);
    assert!(matches!(client.next(), Response::Reply(99, Ok(Reply::Table(_)))));
}

/// A checkpoint writes and removes files by itself, so it must ask by itself. Here nothing else asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_says_no_ends_the_engine_before_its_upkeep() {
    let (scene, client) = publishing().await;
    {
        let mut script = scene.script.lock().unwrap();
        (script.check, script.upkeep_is_due) = (Some(Fate::Fails), true);
    }
    scene.submit(&client, vec![Command::OutputReady]);
    assert!(matches!(scene.end(), Err(EngineError::Store(StoreError::Fenced(_)))));
    assert_eq!(scene.calls(), [Call::Check(0)], "no upkeep, no close");
}

/// The close writes as well: whoever finds only at the end of a drain that the mastership is lost leaves the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_says_no_at_the_end_of_a_drain_keeps_the_store_from_being_closed() {
    let (scene, _client) = publishing().await;
    scene.script.lock().unwrap().check = Some(Fate::Fails);
    scene.engine.drain(Instant::now());
    assert!(matches!(scene.end(), Err(EngineError::Store(StoreError::Fenced(_)))));
    assert_eq!(scene.calls(), [Call::Check(0)], "no close");
}

impl Scene {
    /// Waits until a commit has been tried `count` times more. Answers the calls meanwhile.
    fn tried_again(&self, count: usize) -> Vec<Call> {
        let deadline = Instant::now() + PATIENCE;
        let mut calls = Vec::new();
        while calls.iter().filter(|call| matches!(call, Call::Commit(_))).count() < count {
            assert!(Instant::now() < deadline, "the commit is not tried again: {calls:?}");
            std::thread::sleep(Duration::from_millis(1));
            calls.extend(self.calls());
        }
        calls
    }
}

/// An ack that found no space on the disk, because another program had taken what was left for it, ended the master,
/// and after it each next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_finds_no_space_is_held_and_nothing_leaves_until_there_is() {
    let (scene, mut client) = publishing().await;
    scene.watch(&client);
    scene.script.lock().unwrap().upkeep_is_due = true;
    scene.script.lock().unwrap().commit = Some(Fate::FindsNoSpace);
    scene.submit(&client, vec![publish(1, 1, 10)]);
    let calls = scene.tried_again(3);
    let expected = [Call::Commit(0), Call::Check(0), Call::MakeSpace(0)];
    let round = calls.iter().skip_while(|call| !matches!(call, Call::Commit(_))).take(6).copied();
    assert_eq!(round.collect::<Vec<_>>(), [expected, expected].concat(), "no upkeep but what makes space");
    assert_eq!(lying(&client.socket), 0);
    scene.submit(&client, vec![publish(2, 1, 10)]);
    scene.script.lock().unwrap().commit = None;
    while confirmed(&mut client) < 2 {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_commit_ends_with_the_mastership() {
    let (scene, client) = publishing().await;
    scene.watch(&client);
    scene.script.lock().unwrap().commit = Some(Fate::FindsNoSpace);
    scene.submit(&client, vec![publish(1, 1, 10)]);
    scene.tried_again(2);
    scene.script.lock().unwrap().check = Some(Fate::Fails);
    assert!(matches!(scene.end(), Err(EngineError::Fenced(Fenced::Superseded(Epoch(9))))));
    assert_eq!(lying(&client.socket), 0);
}

/// The state of the broker is ahead of the store then: it must not be written as if it were committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_of_a_held_commit_ends_in_time_and_leaves_the_store_without_it() {
    let (scene, mut client) = publishing().await;
    scene.script.lock().unwrap().commit = Some(Fate::FindsNoSpace);
    scene.submit(&client, vec![publish(1, 1, 10)]);
    scene.tried_again(2);
    scene.engine.drain(Instant::now() + Duration::from_millis(300));
    let calls = scene.tried_again(2);
    assert!(!calls.iter().any(|call| matches!(call, Call::Leave(_))), "it waits as long as it may");
    scene.end().unwrap();
    assert!(matches!(scene.calls()[..], [.., Call::Commit(_), Call::Check(_), Call::Leave(_)]));
    match client.next() {
        Response::Goodbye(refusal) => assert_eq!(refusal.code, ErrorCode::Draining),
        other => panic!("{other:?}"),
    }
}

/// A thread that panicked left a master that held the lock, answered heartbeats and did nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_ends_the_engine() {
    let (scene, client) = publishing().await;
    scene.script.lock().unwrap().commit = Some(Fate::Panics);
    scene.submit(&client, vec![publish(1, 1, 10)]);
    assert!(matches!(scene.end(), Err(EngineError::Panicked)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_has_arrived_and_closes_the_store_last() {
    let (scene, mut client) = publishing().await;
    let (open_gate, gate) = channel();
    scene.script.lock().unwrap().gate = Some(gate);
    scene.submit(&client, vec![publish(1, 1, 10)]);
    // Whether the first one is in its commit by now or not, these come behind it.
    scene.submit(&client, vec![publish(2, 1, 10)]);
    scene.engine.drain(Instant::now());
    scene.submit(&client, vec![publish(3, 1, 10)]);
    open_gate.send(()).unwrap();
    scene.end().unwrap();
    let calls = scene.calls();
    assert!(matches!(calls[..], [.., Call::Check(_), Call::Close(_)]), "{calls:?}");
    let mut last = 0;
    let goodbye = loop {
        match client.next() {
            Response::Confirm(confirm) => last = confirm.sequence.0,
            Response::Goodbye(refusal) => break refusal,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((last, goodbye.code), (3, ErrorCode::Draining));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_goodbye_gets_the_answers_to_what_it_asked_before() {
    let (scene, mut client) = publishing().await;
    scene.submit(&client, vec![publish(1, 1, 10), Command::End(Ending::Closed)]);
    assert_eq!(confirmed(&mut client), 1);
}

/// The word that an outbox is ready could be overtaken by its becoming full again: it was handed out to without
/// bounds from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_session_gets_nothing_more_though_it_was_said_to_be_ready() {
    let (mut scene, mut publisher) = publishing().await;
    let consumer = scene.client(64 << 10).await;
    let subscribe = Subscribe {
        request: 3,
        consumer: 1,
        topic: "t".into(),
        group: "g".into(),
        start: Default::default(),
        priority: 0,
        settings: None,
        window: Window { messages: 100_000, bytes: u64::MAX },
    };
    scene.submit(&consumer, vec![Command::Subscribe(subscribe)]);
    let mut sequence = 1;
    while !consumer.outbox.is_full() {
        scene.submit(&publisher, vec![publish(sequence, 8, 64 << 10)]);
        sequence += 8;
        assert_eq!(confirmed(&mut publisher), sequence - 1);
    }
    let queued = consumer.outbox.queued_bytes();
    for _ in 0..3 {
        scene.submit(&consumer, vec![Command::OutputReady]);
        scene.submit(&publisher, vec![publish(sequence, 8, 64 << 10)]);
        sequence += 8;
        assert_eq!(confirmed(&mut publisher), sequence - 1);
        // The confirm of a cycle may overtake its deliveries: one cycle more.
        scene.submit(&publisher, vec![publish(sequence, 1, 1)]);
        sequence += 1;
        assert_eq!(confirmed(&mut publisher), sequence - 1);
    }
    assert_eq!(consumer.outbox.queued_bytes(), queued);
}

impl Scene {
    /// Waits until the engine has asked the store to stage something.
    fn staging(&self) -> Box<dyn FnOnce() + Send> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(staged) = self.script.lock().unwrap().staging.pop() {
                return staged;
            }
            assert!(Instant::now() < deadline, "nothing is staged");
            std::thread::yield_now();
        }
    }
}

/// The sync of one large message held everybody up for as long as that took.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_publish_is_staged_and_only_its_own_session_waits() {
    let (mut scene, mut large) = publishing().await;
    let mut small = scene.client(1 << 20).await;
    let (megabytes, other) =
        (5 << 20, OpenProducer { request: 1, producer: 1, name: "q".into(), resume: None });
    scene.submit(&small, vec![Command::OpenProducer(other)]);
    assert!(matches!(small.next(), Response::Reply(1, Ok(_))));
    scene.submit(&large, vec![publish(1, 1, 10), publish(2, 1, megabytes), publish(3, 1, megabytes), find()]);
    let first = scene.staging();
    scene.submit(&large, vec![publish(4, 1, 10)]);
    assert_eq!(confirmed(&mut large), 1);
    scene.submit(&small, vec![publish(1, 1, 10)]);
    assert_eq!(confirmed(&mut small), 1, "nobody else waits");
    assert_eq!(lying(&large.socket), 0);
    scene.calls();
    first();
    assert_eq!(confirmed(&mut large), 2);
    let second = scene.staging();
    assert_eq!(scene.calls(), [Call::Stage(0), Call::Commit(0), Call::Unstage(0), Call::Check(0)]);
    second();
    assert!(matches!(large.next(), Response::Reply(3, Ok(_))), "in the order in which it was asked");
    while confirmed(&mut large) < 4 {}
}

/// An engine that ended by itself as after a drain left a node that kept the lock and served nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_space_without_a_drain_is_not_the_end_of_one() {
    let (scene, client) = publishing().await;
    {
        let mut script = scene.script.lock().unwrap();
        (script.upkeep_is_due, script.upkeep) = (true, Some(Fate::FindsNoSpace));
    }
    scene.submit(&client, vec![publish(1, 1, 10)]);
    assert!(matches!(scene.end(), Err(EngineError::Store(StoreError::Full(1)))));
}

/// However many large publishes became ready at once were one commit: gigabytes, where the store writes nothing ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_publishes_that_are_ready_at_once_are_commits_of_their_own() {
    let (mut scene, mut first) = publishing().await;
    scene.script.lock().unwrap().stages_in_vain = true;
    let mut second = scene.client(1 << 20).await;
    let other = OpenProducer { request: 1, producer: 1, name: "q".into(), resume: None };
    scene.submit(&second, vec![Command::OpenProducer(other)]);
    assert!(matches!(second.next(), Response::Reply(1, Ok(_))));
    scene.submit(&first, vec![publish(1, 1, 5 << 20)]);
    let one = scene.staging();
    scene.submit(&second, vec![publish(1, 1, 5 << 20)]);
    let two = scene.staging();
    // Both become ready while a commit is under way.
    let (open_gate, gate) = channel();
    scene.script.lock().unwrap().gate = Some(gate);
    let mut third = scene.client(1 << 20).await;
    let other = OpenProducer { request: 1, producer: 1, name: "r".into(), resume: None };
    scene.calls();
    scene.submit(&third, vec![Command::OpenProducer(other)]);
    let deadline = Instant::now() + PATIENCE;
    while !scene.script.lock().unwrap().calls.contains(&Call::Commit(0)) {
        assert!(Instant::now() < deadline, "nothing is committed");
        std::thread::yield_now();
    }
    one();
    two();
    open_gate.send(()).unwrap();
    assert!(matches!(third.next(), Response::Reply(1, Ok(_))));
    assert_eq!((confirmed(&mut first), confirmed(&mut second)), (1, 1));
    let commits = scene.calls().iter().filter(|call| matches!(call, Call::Commit(_))).count();
    assert_eq!(commits, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_block_at_the_end_of_a_drain_is_committed_as_it_is() {
    let (scene, mut client) = publishing().await;
    scene.submit(&client, vec![publish(1, 1, 5 << 20), publish(2, 1, 10)]);
    let _never_called = scene.staging();
    scene.submit(&client, vec![publish(3, 1, 5 << 20)]);
    scene.engine.drain(Instant::now());
    scene.end().unwrap();
    assert_eq!(scene.calls().iter().filter(|call| matches!(call, Call::Stage(_))).count(), 1);
    while confirmed(&mut client) < 3 {}
}

/// A block that was on the disk already was counted once more: with space for six large messages, one was taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_staged_needs_no_space_again() {
    let (scene, mut client) = publishing().await;
    scene.script.lock().unwrap().space = Some(6 << 20);
    scene.submit(&client, vec![publish(1, 1, 5 << 20)]);
    let staged = scene.staging();
    scene.script.lock().unwrap().space = Some(1 << 20);
    staged();
    assert_eq!(confirmed(&mut client), 1);
    scene.script.lock().unwrap().space = Some(6 << 20);
    scene.script.lock().unwrap().stages_in_vain = true;
    scene.submit(&client, vec![publish(2, 1, 5 << 20)]);
    let staged = scene.staging();
    scene.script.lock().unwrap().space = Some(1 << 20);
    staged();
    match client.next() {
        Response::PublishRefused(refused) => assert_eq!(refused.refusal.code, ErrorCode::StoreFull),
        other => panic!("{other:?}"),
    }
}

/// What was handed out in a commit that took longer than the lease was handed out again at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_runs_while_a_commit_takes_long() {
    let (scene, mut client) = publishing().await;
    // Longer than anything else here takes.
    let lease = Duration::from_secs(2);
    let at_once = Backoff { initial_ms: 0, maximum_ms: 0, ..Backoff::default() };
    let settings =
        GroupSettings { lease_ms: lease.as_millis() as u64, backoff: at_once, ..GroupSettings::default() };
    let subscribe = Subscribe {
        request: 5,
        consumer: 1,
        topic: "t".into(),
        group: "g".into(),
        start: Start::Earliest,
        priority: 0,
        settings: Some(settings),
        window: Window { messages: 10, bytes: 1 << 20 },
    };
    scene.submit(&client, vec![Command::Subscribe(subscribe)]);
    assert!(matches!(client.next(), Response::Reply(5, Ok(_))));
    let (open_gate, gate) = channel();
    scene.script.lock().unwrap().gate = Some(gate);
    scene.submit(&client, vec![publish(1, 1, 10)]);
    // It is the commit that takes this long.
    std::thread::sleep(lease + lease / 10);
    open_gate.send(()).unwrap();
    let mut delivered = 0;
    for _ in 0..2 {
        match client.next() {
            Response::Deliver(..) => delivered += 1,
            Response::Confirm(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(delivered, 1);
    for _ in 0..2 {
        scene.submit(&client, vec![find()]);
        let next = client.next();
        assert!(matches!(next, Response::Reply(3, _)), "its lease has just begun: {next:?}");
    }
}
