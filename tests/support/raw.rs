//! A client that says what it likes: frames, or bytes that are none, over a plain socket.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use batonmq::model::id::{Epoch, Offset, OffsetRange, Sequence, TopicId};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::protocol::error::Refusal;
use batonmq::protocol::frame::RawFrame;
use batonmq::protocol::preface;
use batonmq::protocol::request::{
    Admin, AdminCommand, FindTopic, Hello, OpenProducer, Publish, Purpose, Request, Settle, Settlement,
    Subscribe, Window,
};
use batonmq::protocol::response::{Deliver, Reply, Response};
use bytes::{Bytes, BytesMut};

use super::pair::PATIENCE;

/// A connection without manners.
pub struct Raw {
    pub socket: TcpStream,
    input: BytesMut,
    /// What came while something else was waited for.
    pub passed: Vec<Response>,
}

impl Raw {
    /// A connection on which nothing was said yet.
    pub fn dial(address: &str) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { socket, input: BytesMut::new(), passed: Vec::new() }
    }

    /// A connection on which prefaces were exchanged.
    pub fn greeted(address: &str) -> Self {
        let mut raw = Self::dial(address);
        raw.write(&preface::client());
        let mut answer = [0; 8];
        raw.socket.read_exact(&mut answer).unwrap();
        assert_eq!(preface::chosen(answer), Ok(Ok(1)));
        raw
    }

    /// A connection that was let in. It sends no heartbeats by itself, and need not for a minute.
    pub fn client(address: &str) -> Self {
        let mut raw = Self::greeted(address);
        raw.send(&hello(Purpose::Client));
        assert!(matches!(raw.next(), Some(Response::Welcome(_))));
        raw
    }

    pub fn write(&mut self, bytes: &[u8]) {
        // The node may have closed the connection in the middle of it.
        if let Err(error) = self.socket.write_all(bytes) {
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        }
    }

    pub fn send(&mut self, request: &Request) {
        self.write(&encoded(request));
    }

    /// The next frame but heartbeats; `None` at the end of the connection.
    pub fn next(&mut self) -> Option<Response> {
        loop {
            if let Some(frame) = RawFrame::cut(&mut self.input, u64::MAX).unwrap() {
                match Response::decode(&frame).unwrap() {
                    Response::Heartbeat(_) => continue,
                    response => return Some(response),
                }
            }
            let mut bytes = vec![0; 1 << 18];
            match self.socket.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("neither an answer nor the end: {error}"),
            }
        }
    }

    /// Everything until the connection ends.
    pub fn rest(&mut self) -> Vec<Response> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Asks and waits for the answer; what comes before it is put aside.
    pub fn ask(&mut self, request: &Request, number: u32) -> Result<Reply, Refusal> {
        self.send(request);
        self.answer(number)
    }

    pub fn answer(&mut self, number: u32) -> Result<Reply, Refusal> {
        loop {
            match self.next().expect("the connection ended instead of an answer") {
                Response::Reply(request, answer) if request == number => return answer,
                Response::Failed(refusal) => panic!("the connection was ended: {refusal:?}"),
                other => self.passed.push(other),
            }
        }
    }

    /// Waits until the engine has done what was asked before: what it puts out comes in the order of its cycles.
    pub fn settle_down(&mut self) {
        for _ in 0..2 {
            self.ask(&Request::Admin(Admin { request: 999, command: list_topics() }), 999).unwrap();
        }
    }

    /// Messages delivered so far to a consumer.
    pub fn delivered(&self, consumer: u32) -> Vec<Offset> {
        let deliveries = self.passed.iter().filter_map(|response| match response {
            Response::Deliver(deliver, _) if deliver.consumer == consumer => Some(deliver),
            _ => None,
        });
        deliveries.flat_map(offsets).collect()
    }

    pub fn topic(&mut self, name: &str) -> TopicId {
        match self.ask(&find(name), 900) {
            Ok(Reply::Topic { id }) => id,
            other => panic!("{other:?}"),
        }
    }

    pub fn open_producer(&mut self, handle: u32, name: &str) {
        self.ask(&open(handle, name), 901).unwrap();
    }

    pub fn subscribe(&mut self, handle: u32, topic: &str, group: &str, window: Window) {
        self.ask(&subscribe(handle, topic, group, window), 902).unwrap();
    }
}

pub fn offsets(deliver: &Deliver) -> Vec<Offset> {
    deliver
        .runs
        .iter()
        .flat_map(|run| run.offset.0..run.offset.0 + u64::from(run.count))
        .map(Offset)
        .collect()
}

pub fn encoded(request: &Request) -> BytesMut {
    let mut bytes = BytesMut::new();
    request.encode(&mut bytes);
    bytes
}

/// A frame of any kind with any bytes.
pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32 + 1).to_le_bytes().to_vec();
    bytes.push(kind);
    bytes.extend_from_slice(payload);
    bytes
}

pub fn hello(purpose: Purpose) -> Request {
    Request::Hello(Hello {
        purpose,
        client: "a rude one".into(),
        epoch_seen: Epoch(0),
        heartbeat_ms: 60_000,
        auth_mechanism: "anonymous".into(),
        auth_data: Vec::new(),
    })
}

pub fn find(name: &str) -> Request {
    Request::FindTopic(FindTopic { request: 900, name: name.into() })
}

pub fn open(producer: u32, name: &str) -> Request {
    Request::OpenProducer(OpenProducer { request: 901, producer, name: name.into(), resume: None })
}

pub fn window(messages: u32) -> Window {
    Window { messages, bytes: u64::MAX }
}

pub fn subscribe(consumer: u32, topic: &str, group: &str, window: Window) -> Request {
    Request::Subscribe(Subscribe {
        request: 902,
        consumer,
        topic: topic.into(),
        group: group.into(),
        start: Default::default(),
        priority: 0,
        settings: None,
        window,
    })
}

pub fn settle(consumer: u32, topic: TopicId, settlement: Settlement, ranges: &[(u64, u64)]) -> Request {
    let ranges = ranges.iter().map(|(start, end)| OffsetRange::new(*start, *end)).collect();
    Request::Settle(Settle { request: 903, consumer, topic, generation: 0, settlement, ranges })
}

pub fn list_topics() -> AdminCommand {
    AdminCommand::ListTopics { after: None }
}

pub fn admin(command: AdminCommand) -> Request {
    Request::Admin(Admin { request: 904, command })
}

pub fn publish(topic: TopicId, sequence: u64, messages: &[Message]) -> Request {
    publish_bytes(topic, sequence, messages.len() as u32, MessageBlock::encode(messages).bytes().clone())
}

pub fn publish_bytes(topic: TopicId, sequence: u64, count: u32, messages: Bytes) -> Request {
    let head = Publish { producer: 1, sequence: Sequence(sequence), parts: vec![(topic, count)] };
    Request::Publish(head, messages)
}
