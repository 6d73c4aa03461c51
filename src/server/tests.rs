//! The server before an engine whose storage hangs.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Condvar, Mutex};

use bytes::BytesMut;
use tokio::task::JoinHandle;

use super::*;
use crate::broker::AutoCreate;
use crate::engine::{Guard, Parts};
use crate::model::chunk::Chunk;
use crate::model::free_min::FreeMin;
use crate::model::id::{Offset, TopicId};
use crate::model::record::Record;
use crate::model::snapshot::Snapshot;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::RawFrame;
use crate::protocol::preface;
use crate::protocol::request::{Admin, AdminCommand, Hello, Purpose, Request};
use crate::protocol::response::{NotMaster, Reply, Response};
use crate::store::image::Image;
use crate::store::{FenceCheck, Fenced, Reader, Store, StoreError, Unreadable};

const PATIENCE: Duration = Duration::from_secs(10);

/// A store that keeps nothing.
struct NoStore;

impl Store for NoStore {
    fn commit(&mut self, _: &[Record]) -> Result<(), StoreError> {
        Ok(())
    }

    fn stage(&mut self, _: bytes::Bytes, staged: Box<dyn FnOnce() + Send>) {
        staged();
    }

    fn staged_bytes(&self, _: &bytes::Bytes) -> u64 {
        0
    }

    fn unstage(&mut self, _: &bytes::Bytes) -> Result<(), StoreError> {
        Ok(())
    }

    fn space(&mut self, _: FreeMin) -> Result<u64, StoreError> {
        Ok(u64::MAX)
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(Self))
    }

    fn image(&mut self, _: &mut dyn FnMut() -> Snapshot) -> Result<Box<dyn Image>, StoreError> {
        let source = std::io::Error::other("this store has none");
        Err(StoreError::Io { action: "make an image of", path: "store".into(), source })
    }

    fn maintenance_due(&self) -> bool {
        false
    }

    fn maintain(&mut self, _: &mut dyn FnMut() -> Snapshot, _: FenceCheck<'_>) -> Result<(), StoreError> {
        Ok(())
    }

    fn make_space(&mut self, _: FenceCheck<'_>) -> Result<(), StoreError> {
        Ok(())
    }

    fn leave(self: Box<Self>, _: FenceCheck<'_>) -> Result<(), StoreError> {
        Ok(())
    }

    fn close(self: Box<Self>, _: &mut dyn FnMut() -> Snapshot, _: FenceCheck<'_>) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Reader for NoStore {
    fn read(&mut self, _: TopicId, _: Offset, _: usize) -> Result<Option<Chunk>, Unreadable> {
        Ok(None)
    }
}

/// A storage that hangs when it is told to.
#[derive(Clone, Default)]
struct Hanging(Arc<(Mutex<Storage>, Condvar)>);

#[derive(Default)]
struct Storage {
    hangs: bool,
    /// Somebody waits for it.
    waited_for: bool,
}

impl Hanging {
    fn set(&self, hangs: bool) {
        self.0.0.lock().unwrap().hangs = hangs;
        self.0.1.notify_all();
    }

    fn is_waited_for(&self) -> bool {
        self.0.0.lock().unwrap().waited_for
    }
}

impl Guard for Hanging {
    fn check(&mut self) -> Result<(), Fenced> {
        let mut storage = self.0.0.lock().unwrap();
        storage.waited_for = storage.hangs;
        drop(self.0.1.wait_timeout_while(storage, PATIENCE, |storage| storage.hangs).unwrap());
        Ok(())
    }

    fn check_lock(&mut self) -> Result<(), Fenced> {
        self.check()
    }
}

/// A client of the server, and what it has read and not looked at.
struct Client(TcpStream, BytesMut);

impl Client {
    fn connect(address: SocketAddr, purpose: Purpose) -> Self {
        Self::connect_having_seen(Epoch(0), address, purpose)
    }

    fn connect_having_seen(epoch_seen: Epoch, address: SocketAddr, purpose: Purpose) -> Self {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&preface::client()).unwrap();
        let hello = Hello {
            purpose,
            client: "test".to_owned(),
            epoch_seen,
            // None is sent, and nothing is to be heard but what matters.
            heartbeat_ms: 60_000,
            auth_mechanism: "anonymous".to_owned(),
            auth_data: Vec::new(),
        };
        socket.read_exact(&mut [0; 8]).unwrap();
        let mut client = Self(socket, BytesMut::new());
        client.send(&Request::Hello(hello));
        client
    }

    fn send(&mut self, request: &Request) {
        let mut bytes = BytesMut::new();
        request.encode(&mut bytes);
        self.0.write_all(&bytes).unwrap();
    }

    /// The next frame but heartbeats; `None` at the end of the connection.
    fn next(&mut self) -> Option<Response> {
        loop {
            if let Some(frame) = RawFrame::cut(&mut self.1, u64::MAX).unwrap() {
                match Response::decode(&frame).unwrap() {
                    Response::Heartbeat(_) => continue,
                    response => return Some(response),
                }
            }
            let mut bytes = [0; 4096];
            let count = self.0.read(&mut bytes).expect("neither a frame nor the end");
            if count == 0 {
                return None;
            }
            self.1.extend_from_slice(&bytes[..count]);
        }
    }

    fn role(&mut self) -> Role {
        self.send(&Request::Admin(Admin { request: 1, command: AdminCommand::Status }));
        match self.next() {
            Some(Response::Reply(1, Ok(Reply::Status(status)))) => status.role,
            other => panic!("{other:?}"),
        }
    }
}

/// A client that is let in as by a master.
async fn welcomed(address: SocketAddr) -> Client {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut client = Client::connect(address, Purpose::Client);
        match client.next() {
            Some(Response::Welcome(_)) => return client,
            Some(Response::NotMaster(_)) => assert!(Instant::now() < deadline, "not served again"),
            other => panic!("{other:?}"),
        }
        tokio::task::yield_now().await;
    }
}

/// A server in front of an engine whose storage can hang.
struct Scene {
    hanging: Hanging,
    engine: Engine,
    server: Arc<Server>,
    address: SocketAddr,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
    _standing: state::Sender<Standing>,
}

impl Scene {
    fn new(fence_age_max: Duration) -> Self {
        let hanging = Hanging::default();
        let parts = Parts {
            store: Box::new(NoStore),
            snapshot: Snapshot::default(),
            place: "/".into(),
            seen: None,
            guard: Box::new(hanging.clone()),
            poll_interval: Duration::from_millis(5),
            limits: Limits::default(),
            auto_create: AutoCreate::Allowed,
            free_min: FreeMin::default(),
        };
        let engine = Engine::start(parts, |_| {}).unwrap();
        let (standing, watched) = state::channel(Standing {
            role: Role::Master,
            epoch: Epoch(1),
            master: Some("a:7470".to_owned()),
            mode: crate::store::Mode::File,
            store_id: "s".to_owned(),
            since: Instant::now(),
            engine: Some(engine.clone()),
            holdings: Arc::default(),
            recovery: None,
        });
        let shutdown = CancellationToken::new();
        let server = Server::new(
            "a".to_owned(),
            Limits::default(),
            // Rarer than anything here takes.
            Duration::from_secs(60),
            fence_age_max,
            GroupSettings::default(),
            watched,
            shutdown.clone(),
        );
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let running = tokio::spawn(Arc::clone(&server).run(listener));
        Self { hanging, engine, server, address, shutdown, running, _standing: standing }
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.engine.drain(Instant::now());
        tokio::time::timeout(PATIENCE, self.running).await.unwrap().unwrap();
    }
}

/// Waits until something holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

/// It has lost its mastership and does not know yet: the client may bring the news, and gets nothing from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_seen_a_higher_epoch_is_sent_elsewhere() {
    let scene = Scene::new(PATIENCE);
    for (seen, is_let_in) in [(1, true), (2, false)] {
        let mut client = Client::connect_having_seen(Epoch(seen), scene.address, Purpose::Client);
        match client.next() {
            Some(Response::Welcome(welcome)) => assert!(is_let_in && welcome.epoch == Epoch(1)),
            Some(Response::NotMaster(NotMaster { master, .. })) => assert!(!is_let_in && master.is_none()),
            other => panic!("{other:?}"),
        }
    }
    scene.end().await;
}

/// The master went on sending heartbeats while its storage hung: clients stayed with it although another node had
/// become master.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_master_whose_storage_hangs_are_sent_away_until_it_answers() {
    let scene = Scene::new(Duration::from_millis(500));
    let address = scene.address;
    let mut client = welcomed(address).await;
    let mut watch = Client::connect(address, Purpose::Watch);
    assert!(matches!(watch.next(), Some(Response::Welcome(_))));
    scene.hanging.set(true);
    match client.next() {
        Some(Response::Goodbye(refusal)) => assert_eq!(refusal.code, ErrorCode::NotMaster, "{refusal}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.next(), None);
    let mut late = Client::connect(address, Purpose::Client);
    let not_master = NotMaster { role: Role::Recovering, master: None };
    assert_eq!(late.next(), Some(Response::NotMaster(not_master)));
    assert_eq!(late.role(), Role::Recovering);
    let mut late_watch = Client::connect(address, Purpose::Watch);
    assert!(matches!(late_watch.next(), Some(Response::Welcome(_))), "it would come again and again");

    scene.hanging.set(false);
    assert_eq!(welcomed(address).await.role(), Role::Master);
    scene.shutdown.cancel();
    assert_eq!(watch.next(), None, "the other node was sent away before the end");
    scene.end().await;
}

/// A connection's task gave its place back while an engine that hung still held the socket: clients that came and went
/// took one open file after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_keeps_its_place_until_it_is_closed() {
    let scene = Scene::new(PATIENCE * 2);
    let (places, all) = (&scene.server.places, scene.server.places.free());
    let client = welcomed(scene.address).await;
    scene.hanging.set(true);
    until("the engine goes on", || scene.hanging.is_waited_for()).await;
    drop(client);
    until("the client is still let in", || places.admitted() == 0).await;
    assert_eq!(places.free(), all - 1);
    scene.hanging.set(false);
    until("the place is not free again", || places.free() == all).await;
    scene.end().await;
}
