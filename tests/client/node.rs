//! A node made for tests: speaks protocol version 1, keeps its store in memory, and misbehaves on demand. Like a real
//! one it leaves a client from which it has heard nothing for three heartbeats.
//!
//! Several nodes may share one [`World`], as a pair shares its disk.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use batonmq::model::chunk::Origin;
use batonmq::model::id::{Epoch, GroupId, Offset, ProducerId, Sequence};
use batonmq::model::limits::Limits;
use batonmq::model::message::MessageBlock;
use batonmq::model::time::Timestamp;
use batonmq::model::version::{FORMAT_WRITTEN, FORMATS_READ};
use batonmq::protocol::VERSIONS;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::frame::RawFrame;
use batonmq::protocol::preface;
use batonmq::protocol::request::{
    AdminCommand, Publish, Request, Settlement, Subscribe, Transact, TransactSettle,
};
use batonmq::protocol::response::{
    Confirm, Heartbeat, NodeStatus, NotMaster, PublishRefused, Reply, Response, Role, Welcome,
};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::world::{Member, Stored, World};

/// How a node behaves. May be changed while it runs.
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub epoch: u64,
    pub store_id: &'static str,
    /// `Some` for a node that is not master: where it says the master is.
    pub not_master: Option<Option<String>>,
    /// Says nothing at all, not even its preface.
    pub mute: bool,
    /// Sends no heartbeats and no answers after the greeting.
    pub silent: bool,
    /// Reads nothing more from its connections.
    pub deaf: bool,
    /// Keeps confirms for itself.
    pub withhold_confirms: bool,
    /// Closes a connection after so many frames, with whatever it was about to answer.
    pub drop_after_frames: Option<usize>,
    /// Writes so many bytes at a time.
    pub write_bytes: usize,
    /// Refuses so many publish frames as if the store were full.
    pub full: usize,
    /// Body of messages that are refused for good.
    pub refuse_body: &'static [u8],
    /// Refuses every publish with this.
    pub refuse_all: Option<ErrorCode>,
    /// Refuses so many publish frames as if they did not follow the last one.
    pub confused: usize,
    /// Refuses with this, once, to open a producer.
    pub refuse_open_once: Option<ErrorCode>,
    /// Refuses with this, once, to let a consumer join.
    pub refuse_subscribe_once: Option<ErrorCode>,
    /// Refuses to open producers again with this.
    pub refuse_resume: Option<ErrorCode>,
    /// Refuses every connection with this.
    pub refuse_connection: Option<ErrorCode>,
    /// Sends bytes that are no frame after the greeting.
    pub garbage: bool,
    pub frame_bytes_max: u64,
    /// How long ago it says it made sure that it is master.
    pub fence_age_ms: u32,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            epoch: 1,
            store_id: "store",
            not_master: None,
            mute: false,
            silent: false,
            deaf: false,
            withhold_confirms: false,
            drop_after_frames: None,
            write_bytes: usize::MAX,
            full: 0,
            refuse_body: b"bad",
            refuse_all: None,
            confused: 0,
            refuse_open_once: None,
            refuse_subscribe_once: None,
            refuse_resume: None,
            refuse_connection: None,
            garbage: false,
            frame_bytes_max: 72 << 20,
            fence_age_ms: 0,
        }
    }
}

/// A running node. Dropping it kills it: listener and connections are gone at once.
pub struct Node {
    pub address: String,
    pub behaviour: Arc<Mutex<Behaviour>>,
    tasks: JoinSet<()>,
}

impl Node {
    pub async fn start(world: &Arc<Mutex<World>>, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, world, behaviour)
    }

    /// A node that takes over an address.
    pub fn on(listener: TcpListener, world: &Arc<Mutex<World>>, behaviour: Behaviour) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        let behaviour = Arc::new(Mutex::new(behaviour));
        let (world, shared) = (world.clone(), behaviour.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, world.clone(), shared.clone()));
            }
        });
        Self { address, behaviour, tasks }
    }

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// Ends listener and connections and waits until they are gone.
    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Takes a connection out of the world however it ends.
struct Connected {
    world: Arc<Mutex<World>>,
    number: u64,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut world = self.world.lock().unwrap();
        world.open_connections -= 1;
        world.end(self.number);
    }
}

async fn serve(stream: TcpStream, world: Arc<Mutex<World>>, behaviour: Arc<Mutex<Behaviour>>) {
    let connected = {
        let mut locked = world.lock().unwrap();
        locked.next_connection += 1;
        locked.open_connections += 1;
        locked.connected_at.push(Instant::now());
        Connected { world: world.clone(), number: locked.next_connection }
    };
    stream.set_nodelay(true).unwrap();
    let _ = talk(stream, connected.number, &world, &behaviour).await;
}

async fn talk(
    mut stream: TcpStream,
    number: u64,
    world: &Arc<Mutex<World>>,
    behaviour: &Arc<Mutex<Behaviour>>,
) -> std::io::Result<()> {
    if behaviour.lock().unwrap().mute {
        std::future::pending::<()>().await;
    }
    let mut client = [0; preface::PREFACE_BYTES];
    stream.read_exact(&mut client).await?;
    let (answer, _) = preface::answer(client).unwrap();
    stream.write_all(&answer).await?;
    let (out, mut outgoing) = mpsc::unbounded_channel();
    let mut input = BytesMut::new();
    let mut frames = 0;
    let mut parting = false;
    let mut beat = tokio::time::interval(Duration::from_millis(20));
    let mut heartbeat = None;
    let mut heard_at = Instant::now();
    loop {
        while let Some(frame) = RawFrame::cut(&mut input, 100 << 20).unwrap() {
            frames += 1;
            let request = Request::decode(&frame).unwrap();
            let behaviour = &mut *behaviour.lock().unwrap();
            let world = &mut *world.lock().unwrap();
            world.frames.push(request.clone());
            parting |= request == Request::Goodbye;
            if let Request::Hello(hello) = &request {
                heartbeat = Some(Duration::from_millis(u64::from(hello.heartbeat_ms)));
            }
            handle(number, world, behaviour, request, &out);
            world.hand_out();
            if behaviour.drop_after_frames.is_some_and(|max| frames >= max) {
                return Ok(());
            }
        }
        if parting && outgoing.is_empty() {
            return Ok(());
        }
        let deaf = behaviour.lock().unwrap().deaf;
        tokio::select! {
            read = stream.read_buf(&mut input), if !deaf => {
                if read? == 0 {
                    return Ok(());
                }
                heard_at = Instant::now();
            }
            Some(response) = outgoing.recv() => {
                let current = behaviour.lock().unwrap().clone();
                if current.silent && !matches!(response, Response::Welcome(_)) {
                    continue;
                }
                if matches!(response, Response::Confirm(_)) && current.withhold_confirms {
                    continue;
                }
                let mut bytes = BytesMut::new();
                response.encode(&mut bytes);
                if current.garbage && matches!(response, Response::Welcome(_)) {
                    bytes.extend_from_slice(&[3, 0, 0, 0, 0x7f, 1, 2]);
                }
                for piece in bytes.chunks(current.write_bytes) {
                    stream.write_all(piece).await?;
                    if current.write_bytes != usize::MAX {
                        tokio::task::yield_now().await;
                    }
                }
                if matches!(response, Response::Heartbeat(_)) {
                    world.lock().unwrap().beats += 1;
                }
            }
            _ = beat.tick() => if let Some(heartbeat) = heartbeat {
                if !deaf && heard_at.elapsed() > heartbeat * 3 {
                    return Ok(());
                }
                let behaviour = behaviour.lock().unwrap();
                let (epoch, fence_age_ms) = (Epoch(behaviour.epoch), behaviour.fence_age_ms);
                let _ = out.send(Response::Heartbeat(Heartbeat { epoch, fence_age_ms }));
            },
        }
    }
}

fn handle(
    number: u64,
    world: &mut World,
    behaviour: &mut Behaviour,
    request: Request,
    out: &mpsc::UnboundedSender<Response>,
) {
    let reply = |request, result| {
        let _ = out.send(Response::Reply(request, result));
    };
    match request {
        Request::Hello(hello) => {
            if let Some(code) = behaviour.refuse_connection {
                let _ = out.send(Response::Failed(Refusal::new(code, "not you")));
                return;
            }
            let _ = out.send(match &behaviour.not_master {
                Some(master) => {
                    Response::NotMaster(NotMaster { role: Role::Standby, master: master.clone() })
                }
                None => Response::Welcome(Welcome {
                    epoch: Epoch(behaviour.epoch),
                    node: "node".into(),
                    store_id: behaviour.store_id.into(),
                    server: "test".into(),
                    heartbeat_ms: hello.heartbeat_ms,
                    frame_bytes_max: behaviour.frame_bytes_max,
                    body_bytes_max: 64 << 20,
                    header_bytes_max: 64 << 10,
                    transaction_bytes_max: 64 << 10,
                    time: Timestamp(1),
                }),
            });
        }
        Request::OpenProducer(open) => {
            if let Some(code) = behaviour.refuse_resume
                && open.resume.is_some()
            {
                return reply(open.request, Err(Refusal::new(code, "no such producer any more")));
            }
            if let Some(code) = behaviour.refuse_open_once.take() {
                return reply(open.request, Err(Refusal::new(code, "not now")));
            }
            let count = world.producers.len() as u64;
            let id = *world.producers.entry(open.name).or_insert(ProducerId(count));
            world.owners.insert(id, (number, open.producer));
            let last = Sequence(*world.last.entry(id).or_default());
            reply(open.request, Ok(Reply::Producer { id, last }));
        }
        Request::Publish(head, messages) => publish(number, world, behaviour, &head, None, messages, out),
        Request::Transact(Transact { publish: head, settlements }, messages) => {
            publish(number, world, behaviour, &head, Some(&settlements), messages, out);
        }
        Request::CloseProducer(close) => {
            world.owners.retain(|_, owner| *owner != (number, close.producer));
        }
        Request::Subscribe(subscribe) => {
            if let Some(code) = behaviour.refuse_subscribe_once.take() {
                return reply(subscribe.request, Err(Refusal::new(code, "not now")));
            }
            join(number, world, subscribe, out);
        }
        Request::Settle(settle) => {
            let settled = match world
                .consumers
                .iter_mut()
                .find(|m| (m.connection, m.handle) == (number, settle.consumer))
            {
                Some(member) => {
                    let (inside, outside): (BTreeSet<u64>, BTreeSet<u64>) = member
                        .flight
                        .iter()
                        .partition(|at| settle.ranges.iter().any(|range| range.contains(Offset(**at))));
                    let count = inside.len() as u64;
                    if settle.settlement != Settlement::Extend {
                        member.flight = outside;
                    }
                    if matches!(settle.settlement, Settlement::Ack | Settlement::Reject { .. }) {
                        world.settled.entry(member.topic).or_default().extend(inside);
                    }
                    Ok(Reply::Settled { count })
                }
                None => Err(Refusal::new(ErrorCode::UnknownHandle, "no such consumer")),
            };
            reply(settle.request, settled);
        }
        Request::Unsubscribe(unsubscribe) => {
            world
                .consumers
                .retain(|member| (member.connection, member.handle) != (number, unsubscribe.consumer));
            reply(unsubscribe.request, Ok(Reply::Done));
        }
        Request::Pull(pull) => {
            let member = world
                .consumers
                .iter_mut()
                .find(|m| (m.connection, m.handle) == (number, pull.consumer))
                .unwrap();
            if pull.wait_ms == 0 {
                reply(pull.request, Ok(Reply::Pulled { count: 0 }));
            } else {
                member.pulls.push((pull.request, pull.window.messages));
            }
        }
        Request::FindTopic(find) => {
            let id = world.topic(&find.name);
            reply(find.request, Ok(Reply::Topic { id }));
        }
        Request::Admin(admin) => match admin.command {
            AdminCommand::Status => reply(admin.request, Ok(Reply::Status(Box::new(status(behaviour))))),
            AdminCommand::DeleteTopic { name } => {
                let text = format!("there is no topic {name}");
                reply(admin.request, Err(Refusal::new(ErrorCode::UnknownTopic, text)));
            }
            AdminCommand::ListTopics { .. } => {
                reply(admin.request, Ok(Reply::Topics { topics: Vec::new(), more: false }));
            }
            _ => reply(admin.request, Ok(Reply::Done)),
        },
        Request::Heartbeat | Request::Goodbye | Request::Flow(_) => {}
    }
}

fn join(number: u64, world: &mut World, subscribe: Subscribe, out: &mpsc::UnboundedSender<Response>) {
    let topic = world.topic(&subscribe.topic);
    world.consumers.push(Member {
        connection: number,
        handle: subscribe.consumer,
        topic,
        window: subscribe.window.messages,
        flight: BTreeSet::new(),
        out: out.clone(),
        pulls: Vec::new(),
    });
    let settings = subscribe.settings.unwrap_or_default();
    let joined = Reply::Subscribed { group: GroupId(1), topic, settings };
    let _ = out.send(Response::Reply(subscribe.request, Ok(joined)));
}

fn publish(
    number: u64,
    world: &mut World,
    behaviour: &mut Behaviour,
    head: &Publish,
    settlements: Option<&[TransactSettle]>,
    messages: Bytes,
    out: &mpsc::UnboundedSender<Response>,
) {
    let owner = (number, head.producer);
    let Some(id) = world.owners.iter().find(|(_, known)| **known == owner).map(|(id, _)| *id) else {
        let refusal = Refusal::new(ErrorCode::ProducerReplaced, "opened by another connection");
        let (producer, sequence) = (head.producer, head.sequence);
        let refused = PublishRefused { producer, sequence, expected: sequence, refusal };
        let _ = out.send(Response::PublishRefused(refused));
        return;
    };
    let last = world.last[&id];
    let refuse = |code, text: &str| {
        let refused = PublishRefused {
            producer: head.producer,
            sequence: head.sequence,
            expected: Sequence(last + 1),
            refusal: Refusal::new(code, text),
        };
        let _ = out.send(Response::PublishRefused(refused));
    };
    let block = MessageBlock::parse(messages, &Limits::default()).unwrap();
    let count: u64 = head.parts.iter().map(|(_, count)| u64::from(*count)).sum();
    assert_eq!(block.count() as u64, count, "the parts add up to the messages");
    if let Some(code) = behaviour.refuse_all {
        return refuse(code, "refused");
    }
    if head.sequence.0 > last + 1 {
        return refuse(ErrorCode::OutOfSequence, "out of sequence");
    }
    if behaviour.confused > 0 {
        behaviour.confused -= 1;
        return refuse(ErrorCode::OutOfSequence, "out of sequence");
    }
    if behaviour.full > 0 {
        behaviour.full -= 1;
        return refuse(ErrorCode::StoreFull, "the store is full");
    }
    let messages: Vec<Bytes> = block.iter().collect();
    let bad = !behaviour.refuse_body.is_empty();
    if bad && messages.iter().any(|message| &message[5..] == behaviour.refuse_body) {
        return refuse(ErrorCode::Invalid, "a bad message");
    }
    if head.parts.iter().any(|(topic, _)| !world.stored.contains_key(topic)) {
        return refuse(ErrorCode::UnknownTopic, "no such topic");
    }
    let count = count + u64::from(settlements.is_some());
    if head.sequence.0 + count > last + 1 {
        let settles = settlements.unwrap_or_default().iter();
        for settle in settles.clone() {
            let member =
                world.consumers.iter().find(|m| (m.connection, m.handle) == (number, settle.consumer));
            let mut offsets = settle.ranges.iter().flat_map(|range| range.start.0..range.end.0);
            if !member.is_some_and(|member| offsets.all(|at| member.flight.contains(&at))) {
                return refuse(ErrorCode::TransactionAborted, "not in flight");
            }
        }
        for settle in settles {
            let offsets = settle.ranges.iter().flat_map(|range| range.start.0..range.end.0);
            let members = world.consumers.iter_mut();
            for member in members.filter(|m| (m.connection, m.handle) == (number, settle.consumer)) {
                for at in offsets.clone() {
                    member.flight.remove(&at);
                    world.settled.entry(member.topic).or_default().insert(at);
                }
            }
        }
    }
    let topics = head.parts.iter().flat_map(|(topic, count)| (0..*count).map(|_| *topic));
    for (at, (topic, message)) in topics.zip(messages).enumerate() {
        let sequence = head.sequence.0 + at as u64;
        if sequence > last {
            let origin = Origin { producer: id, sequence: Sequence(sequence) };
            world.stored.get_mut(&topic).unwrap().push(Stored { message, origin });
        }
    }
    let end = (head.sequence.0 + count - 1).max(last);
    world.last.insert(id, end);
    let confirm = Confirm { producer: head.producer, sequence: Sequence(end) };
    let _ = out.send(Response::Confirm(confirm));
}

fn status(behaviour: &Behaviour) -> NodeStatus {
    NodeStatus {
        node: "node".into(),
        role: if behaviour.not_master.is_some() { Role::Standby } else { Role::Master },
        epoch: Epoch(behaviour.epoch),
        mode: "file".into(),
        store_id: behaviour.store_id.into(),
        master: None,
        version: "test".into(),
        role_seconds: 1,
        connections: 1,
        topics: 1,
        groups: 1,
        messages: 0,
        delayed: 0,
        addresses: Vec::new(),
        protocol: VERSIONS,
        store_formats: FORMATS_READ,
        store_format: FORMAT_WRITTEN,
        unreadable: 0,
    }
}
