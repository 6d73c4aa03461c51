//! The two tasks of a client: one that keeps a connection to the master and reads it, one that writes what did not
//! go out at once.
//!
//! The reading task is the only one that begins and ends connections. It hands answers to whoever waits for them
//! directly. Input is bounded by the windows of the consumers and by the answers asked for, so it never stops
//! reading and always hears the heartbeats.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::error::{AttemptError, ClientError, LastAttempts};
use super::handshake::{Greeted, Greeting};
use super::link::{Session, Written};
use super::options::READ_BYTES;
use super::seek::{CameTo, Outlook, Pace, Seek};
use super::shared::{Master, Shared, Waiting, locked, out_of_place};
use crate::model::limits::{FRAME_BYTES_HIGHEST, Limits};
use crate::protocol::error::{DecodeError, ErrorCode, Refusal};
use crate::protocol::frame::RawFrame;
use crate::protocol::request::Request;
use crate::protocol::response::{Response, Welcome};

/// How long a node may take to read everything up to the goodbye and to close the connection.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);
/// Heartbeats that a client agrees to.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);
const HEARTBEAT_MAX: Duration = Duration::from_secs(3600);
/// Silence for so many heartbeats is a lost connection.
const HEARTBEATS_MISSED_MAX: u32 = 3;

/// A master that has not made sure of its mastership for so long is left. A stall of the storage of 10 s is to be sat
/// out, and the heartbeat that tells of it has been on its way.
const FENCE_AGE_MAX: Duration = Duration::from_secs(15);

/// Why a connection ended.
#[derive(Debug)]
enum Loss {
    /// The application closed the client.
    Closed,
    Error(AttemptError),
}

/// Keeps a connection to the master until the client is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let writer = tokio::spawn(write_rest(shared.clone()));
    let _ending = Ending { shared: shared.clone(), writer };
    let mut session = 0;
    let mut store_id = None;
    let mut last_resort = None;
    let mut pace = Pace::default();
    loop {
        let seek = Seek {
            options: &shared.options,
            greeting: Greeting {
                name: shared.options.name.clone(),
                heartbeat: shared.options.heartbeat,
                epoch_seen: shared.epoch_seen(),
            },
            store_id: store_id.clone(),
            last_resort: last_resort.take(),
            first_wait: pace.wait(),
        };
        let (greeted, welcome) = tokio::select! {
            found = seek.master(|error, outlook| shared.note(error, outlook)) => found,
            () = shared.closing.notified() => break,
        };
        session += 1;
        store_id.get_or_insert_with(|| welcome.store_id.clone());
        let (loss, came_to) = serve(&shared, session, greeted, welcome).await;
        end(&shared);
        pace.note(came_to, &shared.options.backoff);
        match loss {
            Loss::Closed => break,
            Loss::Error(error) => {
                tracing::debug!(%error, "connection lost");
                if let AttemptError::FenceAge { address, .. } = &error {
                    last_resort = Some(address.clone());
                }
                shared.note(error, Outlook::Open);
            }
        }
    }
}

/// Tells everybody that the client is closed, however the driver ends: with a panic or its runtime, too, nobody may
/// wait for what cannot come.
struct Ending {
    shared: Arc<Shared>,
    writer: JoinHandle<()>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.writer.abort();
        end(&self.shared);
        self.shared.connection.send_modify(|connection| connection.closed = true);
        let (producers, consumers) = {
            let registry = locked(&self.shared.registry);
            let producers: Vec<_> = registry.producers.values().cloned().collect();
            (producers, registry.consumers.values().cloned().collect::<Vec<_>>())
        };
        producers.iter().for_each(|producer| producer.client_closed());
        consumers.iter().for_each(|consumer| consumer.client_closed());
    }
}

/// Begins a connection, reads it until it ends, and answers why it did and what it came to.
async fn serve(shared: &Arc<Shared>, session: Session, greeted: Greeted, welcome: Welcome) -> (Loss, CameTo) {
    let heartbeat =
        Duration::from_millis(u64::from(welcome.heartbeat_ms)).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
    let stream = Arc::new(greeted.stream);
    let limits = Limits {
        frame_bytes_max: welcome.frame_bytes_max,
        body_bytes_max: welcome.body_bytes_max,
        header_bytes_max: welcome.header_bytes_max,
        transaction_bytes_max: welcome.transaction_bytes_max,
        ..Limits::default()
    };
    shared.see_epoch(welcome.epoch);
    tracing::debug!(address = %greeted.address, node = %welcome.node, epoch = %welcome.epoch, "connected");
    let master = Arc::new(Master { address: greeted.address, welcome, limits });
    locked(&shared.link).begin(session, stream.clone());
    resume(shared, session);
    shared.connection.send_modify(|connection| {
        connection.session = session;
        connection.master = Some(master.clone());
        connection.since = Instant::now();
        connection.last = LastAttempts::default();
        connection.outlook = Outlook::Open;
    });
    let began = Instant::now();
    let (input, came_to) = (greeted.input, CameTo::Nothing);
    let mut reader = Reader { shared, session, master, stream, heartbeat, input, came_to };
    let loss = tokio::select! {
        loss = reader.read() => loss,
        () = shared.closing.notified() => {
            say_goodbye(shared, &reader.stream, reader.input).await;
            return (Loss::Closed, CameTo::Something);
        }
    };
    let lasted = began.elapsed() >= shared.options.backoff.eager;
    (loss, if lasted { CameTo::Something } else { reader.came_to })
}

/// Asks the node to open again what is open in this client.
fn resume(shared: &Arc<Shared>, session: Session) {
    let (producers, consumers) = {
        let registry = locked(&shared.registry);
        let producers: Vec<_> = registry.producers.values().cloned().collect();
        (producers, registry.consumers.values().cloned().collect::<Vec<_>>())
    };
    for producer in producers {
        producer.reopen(shared, session);
    }
    for consumer in consumers {
        consumer.subscribe(shared, session);
    }
}

/// Ends the connection for everybody who used it.
fn end(shared: &Shared) {
    locked(&shared.link).end();
    let (requests, producers, consumers) = {
        let mut registry = locked(&shared.registry);
        let requests = registry.forget_requests();
        let producers: Vec<_> = registry.producers.values().cloned().collect();
        (requests, producers, registry.consumers.values().cloned().collect::<Vec<_>>())
    };
    producers.iter().for_each(|producer| producer.lost());
    consumers.iter().for_each(|consumer| consumer.lost());
    shared.connection.send_modify(|connection| {
        connection.session = 0;
        connection.master = None;
        connection.since = Instant::now();
    });
    // Last: whoever waits for an answer finds everything else in order when it wakes.
    drop(requests);
}

/// Sends what waits and says goodbye; then reads until the node closes.
///
/// What is read now means nothing any more, but a socket that is closed with unread bytes is reset, and a reset takes
/// what the node has not read with it: the last settlements, and the goodbye that keeps attempts from being counted.
async fn say_goodbye(shared: &Arc<Shared>, stream: &TcpStream, mut input: BytesMut) {
    let consumers: Vec<_> = locked(&shared.registry).consumers.values().cloned().collect();
    let producers: Vec<_> = locked(&shared.registry).producers.values().cloned().collect();
    producers.iter().for_each(|producer| producer.put_all(shared));
    consumers.iter().for_each(|consumer| consumer.send_settlements(shared));
    locked(&shared.link).put(&Request::Goodbye);
    let write = async {
        while locked(&shared.link).write() == Written::Blocked {
            if stream.writable().await.is_err() {
                return;
            }
        }
    };
    let read = async {
        while stream.readable().await.is_ok() {
            input.clear();
            input.reserve(READ_BYTES);
            match stream.try_read_buf(&mut input) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    // A node that does neither read nor close finds the connection closed instead.
    let _ = tokio::time::timeout(GOODBYE_WAIT, async { tokio::join!(write, read) }).await;
}

/// Reads one connection.
struct Reader<'a> {
    shared: &'a Arc<Shared>,
    session: Session,
    master: Arc<Master>,
    stream: Arc<TcpStream>,
    heartbeat: Duration,
    input: BytesMut,
    came_to: CameTo,
}

impl Reader<'_> {
    async fn read(&mut self) -> Loss {
        let mut heard_at = Instant::now();
        let mut beat = tokio::time::interval(self.heartbeat / 2);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            match self.handle_input() {
                Ok(()) => {}
                Err(error) => return Loss::Error(error),
            }
            tokio::select! {
                biased;
                ready = self.stream.readable() => {
                    if let Err(error) = ready {
                        return Loss::Error(self.io(error));
                    }
                    if self.input.capacity() - self.input.len() < READ_BYTES / 4 {
                        self.input.reserve(READ_BYTES);
                    }
                    match self.stream.try_read_buf(&mut self.input) {
                        Ok(0) => return Loss::Error(AttemptError::Hangup { address: self.address() }),
                        Ok(_) => heard_at = Instant::now(),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Loss::Error(self.io(error)),
                    }
                }
                _ = beat.tick() => {
                    let silent = heard_at.elapsed();
                    if silent > self.heartbeat * HEARTBEATS_MISSED_MAX {
                        return Loss::Error(AttemptError::Silent { address: self.address(), within: silent });
                    }
                    if !locked(&self.shared.link).take_wrote() {
                        self.shared.send(self.session, &Request::Heartbeat);
                    }
                }
            }
        }
    }

    /// Hands out every frame that is whole.
    ///
    /// The limits in the welcome are for what goes to the node: a message that was stored under higher ones comes in
    /// a frame that is longer. Memory is taken for what has arrived, not for what a frame says of its length.
    fn handle_input(&mut self) -> Result<(), AttemptError> {
        loop {
            let frame =
                RawFrame::cut(&mut self.input, FRAME_BYTES_HIGHEST).map_err(|error| self.not_baton(error))?;
            let Some(frame) = frame else { return Ok(()) };
            let response = Response::decode(&frame).map_err(|error| self.not_baton(error))?;
            self.handle(response)?;
        }
    }

    fn handle(&mut self, response: Response) -> Result<(), AttemptError> {
        if !matches!(response, Response::Heartbeat(_) | Response::Goodbye(_) | Response::Failed(_)) {
            self.came_to = CameTo::Something;
        }
        match response {
            Response::Confirm(confirm) => {
                let producer = locked(&self.shared.registry).producers.get(&confirm.producer).cloned();
                if let Some(producer) = producer {
                    producer.confirm(confirm.sequence);
                }
            }
            Response::Deliver(head, messages) => {
                let consumer = locked(&self.shared.registry).consumers.get(&head.consumer).cloned();
                if let Some(consumer) = consumer {
                    consumer.deliver(self.session, &head, messages).map_err(|error| {
                        self.not_baton(DecodeError::Head { kind: 0xa0, what: error.to_string() })
                    })?;
                }
            }
            Response::Reply(request, answer) => self.answer(request, answer),
            Response::PublishRefused(refused) => {
                let producer = locked(&self.shared.registry).producers.get(&refused.producer).cloned();
                if let Some(producer) = producer {
                    producer.refused(self.shared, refused);
                }
            }
            Response::PublishReady(ready) => {
                let producer = locked(&self.shared.registry).producers.get(&ready.producer).cloned();
                if let Some(producer) = producer {
                    producer.ready(self.shared, self.session);
                }
            }
            Response::ConsumerClosed(closed) => {
                let consumer = locked(&self.shared.registry).consumers.get(&closed.consumer).cloned();
                if let Some(consumer) = consumer {
                    consumer.closed_by_node(closed.refusal);
                }
            }
            Response::ConsumerTopic(named) => {
                let consumer = locked(&self.shared.registry).consumers.get(&named.consumer).cloned();
                if let Some(consumer) = consumer {
                    consumer.topic_named(self.session, named);
                }
            }
            Response::ConsumerTopicGone(gone) => {
                let consumer = locked(&self.shared.registry).consumers.get(&gone.consumer).cloned();
                if let Some(consumer) = consumer {
                    consumer.topic_gone(self.session, gone.topic);
                }
            }
            Response::ConsumerRole(role) => {
                let consumer = locked(&self.shared.registry).consumers.get(&role.consumer).cloned();
                if let Some(consumer) = consumer {
                    consumer.role_changed(self.session, role.activity);
                }
            }
            Response::ConsumerRecalled(recalled) => {
                let consumer = locked(&self.shared.registry).consumers.get(&recalled.consumer).cloned();
                if let Some(consumer) = consumer {
                    consumer.recalled(self.session, recalled);
                }
            }
            Response::Heartbeat(heartbeat) => {
                self.shared.see_epoch(heartbeat.epoch);
                let age = Duration::from_millis(u64::from(heartbeat.fence_age_ms));
                if age > FENCE_AGE_MAX {
                    return Err(AttemptError::FenceAge { address: self.address(), age });
                }
            }
            Response::Goodbye(refusal) | Response::Failed(refusal) => {
                return Err(AttemptError::Refused { address: self.address(), refusal });
            }
            other @ (Response::Welcome(_) | Response::NotMaster(_)) => {
                let text = format!("the node sent {} in the middle of a connection", out_of_place(&other));
                let refusal = Refusal::new(ErrorCode::Protocol, text);
                return Err(AttemptError::Refused { address: self.address(), refusal });
            }
        }
        Ok(())
    }

    fn answer(&self, request: u32, answer: Result<crate::protocol::response::Reply, Refusal>) {
        let waiting = locked(&self.shared.registry).answered(request);
        match waiting {
            // Whoever asked may have stopped waiting.
            Some(Waiting::Call(sender)) => drop(sender.send(answer)),
            Some(Waiting::Producer(producer)) => {
                producer.answered(self.shared, self.session, &self.master.limits, answer);
            }
            Some(Waiting::Consumer(consumer)) => consumer.answered(self.shared, self.session, answer),
            Some(Waiting::Settlement(consumer, calls)) => consumer.settled(self.session, calls, &answer),
            None => {}
        }
    }

    fn address(&self) -> String {
        self.master.address.clone()
    }

    fn not_baton(&self, source: DecodeError) -> AttemptError {
        AttemptError::NotBaton { address: self.address(), source }
    }

    fn io(&self, source: std::io::Error) -> AttemptError {
        AttemptError::Io { address: self.address(), action: "read", source: Arc::new(source) }
    }
}

/// Writes what the tasks that had something to say did not write themselves.
async fn write_rest(shared: Arc<Shared>) {
    loop {
        let settle_at = locked(&shared.link).settle_at;
        match settle_at {
            Some(at) => tokio::select! {
                () = shared.writer.notified() => {}
                () = tokio::time::sleep_until(at) => {}
            },
            None => shared.writer.notified().await,
        }
        // Others that are ready to run may have something to add to the same write.
        tokio::task::yield_now().await;
        loop {
            let (written, stream) = {
                let mut link = locked(&shared.link);
                (link.write(), link.stream())
            };
            if written == Written::All {
                break;
            }
            // Ended with the connection; a lost one is shut down, which makes it writable.
            if let Some(stream) = stream
                && stream.writable().await.is_err()
            {
                break;
            }
        }
        let (producers, consumers) = {
            let mut link = locked(&shared.link);
            let due = link.settle_at.is_some_and(|at| at <= Instant::now());
            let consumers = if due { std::mem::take(&mut link.consumers) } else { Vec::new() };
            if due {
                link.settle_at = None;
            }
            (std::mem::take(&mut link.producers), consumers)
        };
        producers.iter().for_each(|producer| producer.put_all(&shared));
        consumers.iter().for_each(|consumer| consumer.send_settlements(&shared));
        shared.write();
    }
}

/// What the client says when it was asked to connect and there is nobody.
pub(super) async fn first_connection(shared: &Shared) -> Result<(), ClientError> {
    tokio::select! {
        connected = shared.connected(0, shared.deadline()) => connected.map(|_| ()),
        error = shared.unusable() => Err(error),
    }
}
