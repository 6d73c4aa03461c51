//! One client connection, from its first byte to its last.

use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::MissedTickBehavior;

use super::greeting::{greet, protocol_refusal, send};
use super::input::{Filled, Input, InputError};
use super::{SERVER, Server, standby, watch};
use crate::broker::dead_letter::check_target;
use crate::broker::{Command, Ending};
use crate::engine::{Backup, Budget, Engine, Outbox, Sent, Turn, none_under_way};
use crate::model::id::{Epoch, SessionId};
use crate::model::limits::QUERY_BYTES_MAX;
use crate::model::message::{MessageBlock, MessageError};
use crate::protocol::error::{DecodeError, ErrorCode, Refusal};
use crate::protocol::frame::RawFrame;
use crate::protocol::request::{Admin, AdminCommand, Purpose, Request, RequestId};
use crate::protocol::response::{Heartbeat, Reply, Response, Role, Welcome};

/// Shortest heartbeat that a client can ask for.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);
/// Heartbeats that may be missed before a connection counts as lost.
const HEARTBEATS_MISSED_MAX: u32 = 3;
/// How long a client may take nothing of what is sent to it, at least; more where heartbeats are rarer.
pub const STALLED_MIN: Duration = Duration::from_secs(5);
/// How long a client that goes, or is sent away, may take to read what there is for it.
pub(super) const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// Characters of the name of a client that are kept.
const CLIENT_CHARS_MAX: usize = 64;
/// Reads in a row before what was read is handed to the engine.
const READS_PER_BATCH: usize = 4;
/// What the commands of a batch cost together, in bytes, until it is handed to the engine. The last may go over it.
const BATCH_BYTES: u64 = 1 << 20;
/// What a question for the status costs, in bytes: about its answer.
const STATUS_COST: u64 = 512;
/// What a list or a look at messages costs, in bytes: about the longest answer.
const ANSWER_COST: u64 = 1 << 20;
/// What a query costs, in bytes: the longest answer.
const QUERY_COST: u64 = QUERY_BYTES_MAX as u64;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// Nothing more comes from the client.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The connection broke while something was sent.
    #[error("the connection broke: {0}")]
    Output(#[from] std::io::Error),
    /// The client did something that ends the connection, and was told so.
    #[error("{0}")]
    Refused(Refusal),
    /// The client speaks other versions, and was told so.
    #[error("no protocol version in common: the client speaks {0} to {1}")]
    Version(u8, u8),
    /// Preface or first frame did not come in time.
    #[error("no handshake within {0:?}")]
    Handshake(Duration),
}

impl From<DecodeError> for ConnectionError {
    fn from(error: DecodeError) -> Self {
        Self::Input(error.into())
    }
}

/// Serves a connection, which has this place.
pub(super) async fn run(
    server: &Arc<Server>,
    stream: TcpStream,
    place: OwnedSemaphorePermit,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(STALLED_MIN))?;
    let peer = stream.peer_addr().ok();
    let (read, mut write) = stream.into_split();
    let mut input = Input::new(read);
    let handshake_max = server.places.handshake_max();
    let greeting = tokio::time::timeout(handshake_max, greet(&mut input, &mut write, &server.places));
    let greeted = tokio::select! {
        greeted = greeting => greeted.unwrap_or(Err(ConnectionError::Handshake(handshake_max))),
        () = server.shutdown.cancelled() => return Ok(()),
    };
    let (hello, _admitted) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            linger(server, input).await;
            return Err(error);
        }
    };
    let heartbeat =
        Duration::from_millis(u64::from(hello.heartbeat_ms)).clamp(HEARTBEAT_MIN, server.heartbeat);
    let standing = match hello.purpose {
        Purpose::Client => server.standing_now(),
        // It judges by the age of the fence check itself, and one that is sent away only comes again.
        Purpose::Watch => server.standing.borrow().clone(),
    };
    let Some(engine) =
        standing.engine.filter(|_| standing.role == Role::Master && hello.epoch_seen <= standing.epoch)
    else {
        return standby::run(server, hello.purpose, heartbeat, input, write).await;
    };
    // A peer that has vanished acknowledges nothing. So does one that does not read, once the buffers between are full.
    let stalled = STALLED_MIN.max(heartbeat * HEARTBEATS_MISSED_MAX);
    SockRef::from(write.as_ref()).set_tcp_user_timeout(Some(stalled))?;
    let welcome = Welcome {
        epoch: standing.epoch,
        node: server.node.clone(),
        store_id: standing.store_id,
        server: SERVER.to_owned(),
        heartbeat_ms: u32::try_from(heartbeat.as_millis()).unwrap_or(u32::MAX),
        frame_bytes_max: server.limits.frame_bytes_max,
        body_bytes_max: server.limits.body_bytes_max,
        header_bytes_max: server.limits.header_bytes_max,
        transaction_bytes_max: server.limits.transaction_bytes_max,
        time: engine.vitals().time(),
    };
    send(&mut write, &Response::Welcome(welcome)).await?;
    if hello.purpose == Purpose::Watch {
        return watch::run(server, standing.role, input, write, heartbeat).await;
    }
    let output_bytes_max = usize::try_from(server.limits.output_bytes_max).unwrap_or(usize::MAX);
    let client: String = hello.client.chars().filter(|c| !c.is_control()).take(CLIENT_CHARS_MAX).collect();
    let client = peer.map_or_else(|| client.clone(), |peer| format!("{client} at {peer}"));
    let connection = Connection {
        server: Arc::clone(server),
        client,
        engine,
        epoch: standing.epoch,
        session: server.session(),
        outbox: Arc::new(Outbox::new(write, output_bytes_max, &server.memory).with_place(place)),
        budget: Budget::new(server.limits.unprocessed_bytes_max, &server.memory),
        turn: None,
        heard_at: Instant::now(),
        backup: None,
    };
    connection.serve(input, heartbeat).await
}

/// Shows a client that nothing more comes, and gives one that was sent away the time to read why: closing with bytes
/// unread would reset the connection, and what was said might be lost.
async fn linger(server: &Server, mut input: Input) {
    // One that is not connected any more needs nothing of this.
    let _ = SockRef::from(input.socket()).shutdown(Shutdown::Write);
    tokio::select! {
        () = input.discard() => {}
        () = tokio::time::sleep(FAREWELL_MAX) => {}
        () = server.shutdown.cancelled() => {}
    }
}

/// What a client wants, gathered for the engine.
#[derive(Default)]
struct Batch {
    commands: Vec<Command>,
    /// What they cost: about the memory that they and their answers take.
    bytes: u64,
}

/// About the memory that a request and its answer take.
fn cost(frame: &RawFrame, request: &Request) -> u64 {
    let answer = match request {
        Request::Admin(Admin { command: AdminCommand::Status, .. }) => STATUS_COST,
        Request::Admin(Admin {
            command:
                AdminCommand::ListTopics { .. }
                | AdminCommand::ListGroups { .. }
                | AdminCommand::ListRoutes { .. }
                | AdminCommand::Browse { .. }
                | AdminCommand::BrowseSlot { .. }
                | AdminCommand::DescribeTopic { .. }
                | AdminCommand::ListSlots { .. }
                | AdminCommand::Backup { .. },
            ..
        }) => ANSWER_COST,
        Request::Admin(Admin { command: AdminCommand::Query { .. }, .. }) => QUERY_COST,
        _ => 0,
    };
    // A list takes several times the memory that its frame has.
    let list = match request {
        Request::Publish(publish, _) => size_of_val(publish.parts.as_slice()),
        Request::Transact(transact, _) => {
            let ranges = transact.settlements.iter().map(|settle| size_of_val(settle.ranges.as_slice()));
            size_of_val(transact.publish.parts.as_slice())
                + size_of_val(transact.settlements.as_slice())
                + ranges.sum::<usize>()
        }
        Request::Settle(settle) => size_of_val(settle.ranges.as_slice()),
        Request::Admin(Admin { command: AdminCommand::CancelDelayed { messages, .. }, .. }) => {
            size_of_val(messages.as_slice())
        }
        Request::Admin(Admin {
            command:
                AdminCommand::ReplayDeadLetters { offsets, .. } | AdminCommand::DropMessages { offsets, .. },
            ..
        }) => size_of_val(offsets.as_slice()),
        _ => 0,
    };
    (frame.payload.len() + size_of::<Command>() + list) as u64 + answer
}

/// What the rest of a connection ends with.
enum End {
    /// The client said goodbye.
    Goodbye,
    /// The node has said its last word, or shuts down.
    Finished,
    /// The node cannot make sure any more that it is master.
    OutOfTouch,
}

/// A connection whose client has been let in.
struct Connection {
    server: Arc<Server>,
    engine: Engine,
    epoch: Epoch,
    session: SessionId,
    /// Who is behind it, for people.
    client: String,
    outbox: Arc<Outbox>,
    budget: Arc<Budget>,
    /// Its right to read more than a share of scarce memory, while it has it.
    turn: Option<Turn>,
    /// When something was last read.
    heard_at: Instant,
    /// The backup that it makes.
    backup: Option<Backup>,
}

impl Connection {
    /// Serves a client.
    async fn serve(mut self, mut input: Input, heartbeat: Duration) -> Result<(), ConnectionError> {
        self.engine.begin(self.session, Arc::clone(&self.outbox));
        let introduction = Command::Introduce(std::mem::take(&mut self.client));
        self.engine.submit(self.session, vec![introduction], 0, &self.budget);
        let outbox = Arc::clone(&self.outbox);
        let ready = {
            let (engine, session, budget) = (self.engine.clone(), self.session, Arc::clone(&self.budget));
            move || engine.submit(session, vec![Command::OutputReady], 0, &budget)
        };
        let writer = outbox.run(ready);
        tokio::pin!(writer);
        let (server, engine) = (Arc::clone(&self.server), self.engine.clone());
        let out_of_touch = server.fence_age.passing(&engine);
        tokio::pin!(out_of_touch);
        let mut beat = tokio::time::interval(heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shutdown = self.server.shutdown.clone();
        let end = loop {
            // Each branch is cancel-safe: it changes nothing before it is ready.
            let step = tokio::select! {
                () = &mut writer => Ok(Some(End::Finished)),
                step = self.next(&mut input) => step,
                _ = beat.tick() => self.beat(heartbeat),
                () = &mut out_of_touch => Ok(Some(End::OutOfTouch)),
                () = shutdown.cancelled() => {
                    outbox.close_when_sent();
                    // One that does not read does not keep the node.
                    let _ = tokio::time::timeout(FAREWELL_MAX, writer).await;
                    return Ok(());
                }
            };
            match step {
                Ok(None) => {}
                Ok(Some(end)) => break Ok(end),
                Err(error) => break Err(error),
            }
        };
        let last_word = match &end {
            Err(ConnectionError::Refused(refusal)) => Some(Response::Failed(refusal.clone())),
            Ok(End::OutOfTouch) => Some(Response::Goodbye(Refusal::new(
                ErrorCode::NotMaster,
                "the storage does not answer, and the node cannot make sure that it is still master; connect to the \
                 other one",
            ))),
            _ => None,
        };
        if let Some(last_word) = last_word {
            // Before the engine hears of the end: it closes the outbox then.
            self.respond(&last_word);
            self.outbox.close_when_sent();
        }
        let ending = match end {
            Ok(End::Goodbye | End::OutOfTouch) => Ending::Closed,
            _ => Ending::Lost,
        };
        self.engine.submit(self.session, vec![Command::End(ending)], 0, &self.budget);
        if matches!(end, Ok(End::Goodbye | End::OutOfTouch) | Err(ConnectionError::Refused(_))) {
            // The engine closes the outbox behind the last answer; one that has stopped or hangs does not.
            let _ = tokio::time::timeout(FAREWELL_MAX, writer).await;
            self.outbox.close();
            linger(&self.server, input).await;
        }
        self.outbox.close();
        end.map(|_| ())
    }

    /// Reads what there is and hands it on. Cancel-safe: nothing is read before the last wait is over.
    async fn next(&mut self, input: &mut Input) -> Result<Option<End>, ConnectionError> {
        self.outbox.available().await;
        self.budget.available(&mut self.turn).await;
        if !input.has_frame() {
            input.readable().await?;
        }
        let mut batch = Batch::default();
        // What the batch before this one had no room for.
        let mut end = self.take(input, &mut batch);
        self.budget.hold_unfinished(input.unfinished());
        for _ in 0..READS_PER_BATCH {
            if !matches!(end, Ok(None)) || batch.bytes >= BATCH_BYTES {
                break;
            }
            let filled = match input.fill() {
                Ok(Filled::Nothing) => break,
                Ok(filled) => filled,
                Err(error) => {
                    end = Err(error.into());
                    break;
                }
            };
            self.heard_at = Instant::now();
            end = self.take(input, &mut batch);
            self.budget.hold_unfinished(input.unfinished());
            if filled == Filled::Part || self.server.memory.is_scarce() {
                break;
            }
        }
        if !batch.commands.is_empty() {
            self.engine.submit(self.session, batch.commands, batch.bytes, &self.budget);
        }
        end
    }

    /// Takes the frames that are whole, a batch's worth of them.
    fn take(&mut self, input: &mut Input, batch: &mut Batch) -> Result<Option<End>, ConnectionError> {
        let refused = |error: &DecodeError| ConnectionError::Refused(protocol_refusal(error));
        while batch.bytes < BATCH_BYTES {
            let frame = match input.cut(self.server.limits.frame_bytes_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(InputError::Decode(error)) => return Err(refused(&error)),
                Err(error) => return Err(error.into()),
            };
            let request = Request::decode(&frame).map_err(|error| refused(&error))?;
            batch.bytes += cost(&frame, &request);
            if let Some(end) = self.request(request, input.held(), &mut batch.commands)? {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    /// Turns a request, which is in memory of `held` bytes, into a command, or answers it here.
    fn request(
        &mut self,
        request: Request,
        held: usize,
        commands: &mut Vec<Command>,
    ) -> Result<Option<End>, ConnectionError> {
        commands.push(match request {
            Request::Publish(publish, messages) => match self.checked(messages)? {
                Ok(block) => Command::Publish(publish, block.within(held)),
                Err(refusal) => Command::PublishUnfit(publish, refusal),
            },
            Request::Transact(transact, messages) => match self.checked_within_transaction(messages)? {
                Ok(block) => Command::Transact(transact, block.within(held)),
                Err(refusal) => Command::PublishUnfit(transact.publish, refusal),
            },
            Request::Settle(settle) => Command::Settle(settle),
            Request::Flow(flow) => Command::Flow(flow),
            Request::Pull(pull) => Command::Pull(pull),
            Request::OpenProducer(open) => Command::OpenProducer(open),
            Request::CloseProducer(close) => Command::CloseProducer(close),
            Request::Subscribe(mut subscribe) => {
                if let Some(settings) = &subscribe.settings
                    && let Err(refusal) = check_target(&subscribe.topic, settings)
                {
                    self.respond(&Response::Reply(subscribe.request, Err(refusal)));
                    return Ok(None);
                }
                subscribe.settings.get_or_insert_with(|| self.server.group_defaults.clone());
                Command::Subscribe(subscribe)
            }
            Request::Unsubscribe(unsubscribe) => Command::Unsubscribe(unsubscribe),
            Request::FindTopic(find) => Command::FindTopic(find),
            Request::Admin(Admin { request, command: AdminCommand::Status }) => {
                let status = Reply::Status(Box::new(self.server.status()));
                self.respond(&Response::Reply(request, Ok(status)));
                return Ok(None);
            }
            Request::Admin(Admin { request, command: AdminCommand::Switchover }) => {
                self.respond(&Response::Reply(request, self.hand_over()));
                return Ok(None);
            }
            Request::Admin(Admin { request, command: AdminCommand::Backup { from } }) => {
                if let Err(refusal) = self.back_up(request, from) {
                    self.respond(&Response::Reply(request, Err(refusal)));
                }
                return Ok(None);
            }
            Request::Admin(admin) => Command::Admin(admin),
            Request::Heartbeat => return Ok(None),
            Request::Goodbye => return Ok(Some(End::Goodbye)),
            Request::Hello(_) => {
                let refusal = Refusal::new(ErrorCode::Protocol, "a second hello");
                return Err(ConnectionError::Refused(refusal));
            }
        });
        Ok(None)
    }

    /// Has the part of a backup sent that begins at the byte `from`.
    fn back_up(&mut self, request: RequestId, from: u64) -> Result<(), Refusal> {
        if from == 0 {
            // The one before ends first: it may have the last place.
            self.backup = None;
            let standing = self.server.standing.borrow().clone();
            let (outbox, engine) = (Arc::clone(&self.outbox), self.engine.clone());
            let (session, budget) = (self.session, Arc::clone(&self.budget));
            let respond = Box::new(move |response: Response| {
                send_through(&outbox, &engine, session, &budget, &response);
            });
            self.backup = Some(self.engine.back_up(standing.store_id, standing.mode, respond)?);
        }
        self.backup.as_ref().ok_or_else(none_under_way)?.ask(request, from)
    }

    /// Has the node hand over, where there is a standby to take over: without one nobody would serve.
    fn hand_over(&self) -> Result<Reply, Refusal> {
        if !self.server.has_follower() {
            let text = "no standby follows this node: start the other one, or stop this one with SIGTERM";
            return Err(Refusal::new(ErrorCode::NoStandby, text));
        }
        self.server.switchover.notify_one();
        Ok(Reply::Done)
    }

    /// Checks the messages of a transaction as [`checked`](Self::checked) does, and how much they are together.
    fn checked_within_transaction(
        &self,
        messages: Bytes,
    ) -> Result<Result<MessageBlock, Refusal>, ConnectionError> {
        let max = self.server.limits.transaction_bytes_max;
        if messages.len() as u64 > max {
            let text = format!(
                "a transaction with {} bytes of messages, the limit transaction_bytes_max is {max}: make it smaller",
                messages.len()
            );
            return Ok(Err(Refusal::new(ErrorCode::Limit, text)));
        }
        self.checked(messages)
    }

    /// Checks the messages of a frame here, so that the engine need not.
    fn checked(&self, messages: Bytes) -> Result<Result<MessageBlock, Refusal>, ConnectionError> {
        let (code, error) = match MessageBlock::parse(messages, &self.server.limits) {
            Ok(block) => return Ok(Ok(block)),
            Err(error @ MessageError::TooLarge { .. }) => (ErrorCode::MessageTooLarge, error),
            Err(error @ (MessageError::Invalid { .. } | MessageError::Reserved { .. })) => {
                (ErrorCode::Invalid, error)
            }
            Err(error @ (MessageError::Truncated { .. } | MessageError::UnknownFlags { .. })) => {
                return Err(ConnectionError::Refused(Refusal::new(ErrorCode::Protocol, error.to_string())));
            }
        };
        Ok(Err(Refusal::new(code, error.to_string())))
    }

    /// Sends a sign of life; ends the connection where none came for too long.
    fn beat(&mut self, heartbeat: Duration) -> Result<Option<End>, ConnectionError> {
        if self.outbox.is_full() || self.budget.is_used_up() {
            // The client is not being read from, so it cannot be heard; whether it is there at all, the system knows.
            self.heard_at = Instant::now();
        }
        if self.heard_at.elapsed() > heartbeat * HEARTBEATS_MISSED_MAX {
            let text =
                format!("nothing was heard from the client for {HEARTBEATS_MISSED_MAX} x {heartbeat:?}");
            return Err(ConnectionError::Refused(Refusal::new(ErrorCode::HeartbeatMissed, text)));
        }
        self.send_heartbeat();
        Ok(None)
    }

    /// Sends a sign of life, unless the client has not read what there is: that is one, and they would pile up.
    fn send_heartbeat(&self) {
        if !self.outbox.is_idle() {
            return;
        }
        let age = self.engine.vitals().fence_age().as_millis();
        let fence_age_ms = u32::try_from(age).unwrap_or(u32::MAX);
        self.respond(&Response::Heartbeat(Heartbeat { epoch: self.epoch, fence_age_ms }));
    }

    fn respond(&self, response: &Response) {
        send_through(&self.outbox, &self.engine, self.session, &self.budget, response);
    }
}

/// Sends something to a client past the engine.
fn send_through(
    outbox: &Outbox,
    engine: &Engine,
    session: SessionId,
    budget: &Arc<Budget>,
    response: &Response,
) {
    let mut bytes = BytesMut::new();
    response.encode(&mut bytes);
    if outbox.send(&mut vec![bytes.freeze()]) == Sent::Full {
        // Said once, and the engine would not hear of it otherwise.
        engine.submit(session, vec![Command::OutputFull], 0, budget);
    }
}
