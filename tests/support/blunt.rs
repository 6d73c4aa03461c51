//! A publisher that speaks the protocol itself and is as simple as one may be: after every reconnect it sends again
//! what it does not know to be confirmed, and a batch that it does, whatever the node says it has. Nothing of it may
//! be stored twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use batonmq::model::id::{Epoch, ProducerId, Sequence, TopicId};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::frame::RawFrame;
use batonmq::protocol::preface::{self, PREFACE_BYTES};
use batonmq::protocol::request::{FindTopic, Hello, OpenProducer, Publish, Purpose, Request};
use batonmq::protocol::response::{Reply, Response};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::history::{Event, History, Token};
use super::load::{BATCH, TOPIC};

/// Messages that may be unconfirmed.
const IN_FLIGHT_MAX: u64 = 200;
/// Silence after which it goes to another node.
const SILENCE_MAX: Duration = Duration::from_millis(600);
/// Its handle of its producer.
const PRODUCER: u32 = 1;

/// The publisher. Its state outlives its connections.
pub struct Blunt {
    pub publisher: u32,
    pub body_bytes: usize,
    pub servers: Vec<String>,
    pub history: History,
    pub stop: Arc<AtomicBool>,
    /// Counts what is confirmed, together with others.
    pub confirmed_by_all: Arc<AtomicU64>,
    /// Set where confirmed messages are gone.
    pub went_back: Arc<AtomicBool>,
    /// Between two batches.
    pub pause: Duration,
    made: u64,
    confirmed: u64,
    id: Option<ProducerId>,
    epoch_seen: Epoch,
}

/// An open connection.
struct Link {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
    topic: TopicId,
}

impl Blunt {
    pub fn new(
        publisher: u32,
        body_bytes: usize,
        servers: &str,
        history: History,
        stop: Arc<AtomicBool>,
        confirmed_by_all: Arc<AtomicU64>,
        went_back: Arc<AtomicBool>,
    ) -> Self {
        let servers = servers.split(',').map(str::to_owned).collect();
        let pause = Duration::from_millis(1);
        let (made, confirmed, id, epoch_seen) = (0, 0, None, Epoch(0));
        Self {
            publisher,
            body_bytes,
            servers,
            history,
            stop,
            confirmed_by_all,
            went_back,
            pause,
            made,
            confirmed,
            id,
            epoch_seen,
        }
    }

    /// Publishes until it is told to stop and all is confirmed, or is lost. Answers how many messages that were.
    pub async fn publish(mut self) -> u64 {
        for server in self.servers.clone().iter().cycle() {
            if let Some(mut link) = self.connect(server).await
                && self.use_link(&mut link).await.is_some()
            {
                break;
            }
            if self.went_back.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.made
    }

    /// Publishes over one connection. `None` where that is lost.
    async fn use_link(&mut self, link: &mut Link) -> Option<()> {
        let mut sent = self.confirmed.saturating_sub(BATCH);
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            if stopping && self.confirmed == self.made && sent == self.made {
                return Some(());
            }
            if sent == self.made && self.made < self.confirmed + IN_FLIGHT_MAX && !stopping {
                self.made += BATCH;
            }
            if sent < self.made {
                let end = self.made.min(sent + BATCH);
                self.put(link, sent + 1, end);
                sent = end;
                link.stream.write_all_buf(&mut link.output).await.ok()?;
                // What has arrived meanwhile is read; nothing is waited for while there is more to be sent.
                if sent < self.made || self.made < self.confirmed + IN_FLIGHT_MAX {
                    while let Ok(response) = tokio::time::timeout(Duration::ZERO, link.next()).await {
                        self.handle(response?)?;
                    }
                    tokio::time::sleep(self.pause).await;
                    continue;
                }
            }
            let response = tokio::time::timeout(SILENCE_MAX, link.next()).await.ok()??;
            self.handle(response)?;
        }
    }

    /// `None` where the connection is over.
    fn handle(&mut self, response: Response) -> Option<()> {
        match response {
            Response::Confirm(confirm) if confirm.sequence.0 > self.confirmed => {
                let token = Token { publisher: self.publisher, number: confirm.sequence.0 };
                self.history.add(Event::Confirmed(token));
                self.confirmed_by_all.fetch_add(confirm.sequence.0 - self.confirmed, Ordering::Relaxed);
                self.confirmed = confirm.sequence.0;
            }
            // Later, over another connection.
            Response::PublishRefused(refused) if refused.refusal.code == ErrorCode::StoreFull => return None,
            Response::PublishRefused(refused) => panic!("{refused:?}"),
            Response::Goodbye(_) | Response::Failed(_) => return None,
            _ => {}
        }
        Some(())
    }

    /// Messages `first` to `last` in one frame.
    fn put(&self, link: &mut Link, first: u64, last: u64) {
        let message = |number| {
            let token = Token { publisher: self.publisher, number };
            let key = Some(format!("{}-{}", self.publisher, token.key()).into());
            Message { key, ..Message::new(format!("{:<width$}", token.body(), width = self.body_bytes)) }
        };
        let block = MessageBlock::encode(&(first..=last).map(message).collect::<Vec<_>>());
        let publish = Publish {
            producer: PRODUCER,
            sequence: Sequence(first),
            parts: vec![(link.topic, block.count() as u32)],
        };
        Request::Publish(publish, block.bytes().clone()).encode(&mut link.output);
    }

    async fn connect(&mut self, server: &str) -> Option<Link> {
        tokio::time::timeout(SILENCE_MAX, self.greet(server)).await.ok().flatten()
    }

    async fn greet(&mut self, server: &str) -> Option<Link> {
        let stream = TcpStream::connect(server).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let output = BytesMut::from(&preface::client()[..]);
        let mut link = Link { stream, input: BytesMut::new(), output, topic: TopicId(0) };
        let hello = Hello {
            purpose: Purpose::Client,
            client: "blunt".to_owned(),
            epoch_seen: self.epoch_seen,
            heartbeat_ms: 200,
            auth_mechanism: "anonymous".to_owned(),
            auth_data: Vec::new(),
        };
        Request::Hello(hello).encode(&mut link.output);
        link.stream.write_all_buf(&mut link.output).await.ok()?;
        let mut answer = [0; PREFACE_BYTES];
        link.stream.read_exact(&mut answer).await.ok()?;
        preface::chosen(answer).ok()?.ok()?;
        let Response::Welcome(welcome) = link.next().await? else { return None };
        self.epoch_seen = self.epoch_seen.max(welcome.epoch);
        let name = format!("blunt-{}", self.publisher);
        let open = OpenProducer { request: 1, producer: PRODUCER, name, resume: self.id };
        Request::OpenProducer(open).encode(&mut link.output);
        Request::FindTopic(FindTopic { request: 2, name: TOPIC.to_owned() }).encode(&mut link.output);
        link.stream.write_all_buf(&mut link.output).await.ok()?;
        loop {
            match link.next().await? {
                Response::Reply(1, Ok(Reply::Producer { id, last })) => {
                    self.id = Some(id);
                    if last.0 < self.confirmed {
                        self.note_that_it_went_back();
                        return None;
                    }
                }
                Response::Reply(2, Ok(Reply::Topic { id })) => {
                    link.topic = id;
                    return Some(link);
                }
                Response::Reply(_, Err(refusal)) => {
                    // The store does not know the producer any more.
                    if refusal.code == ErrorCode::ProducerExpired {
                        self.note_that_it_went_back();
                    }
                    return None;
                }
                Response::Goodbye(_) | Response::Failed(_) => return None,
                _ => {}
            }
        }
    }

    fn note_that_it_went_back(&self) {
        self.history.add(Event::WentBack { publisher: self.publisher });
        self.went_back.store(true, Ordering::Relaxed);
    }
}

impl Link {
    /// The next frame; `None` where the connection ends. Cancel-safe.
    async fn next(&mut self) -> Option<Response> {
        loop {
            if let Some(frame) = RawFrame::cut(&mut self.input, u64::MAX).expect("frames of the protocol") {
                return Some(Response::decode(&frame).expect("a frame of the protocol"));
            }
            if self.stream.read_buf(&mut self.input).await.ok()? == 0 {
                return None;
            }
        }
    }
}
