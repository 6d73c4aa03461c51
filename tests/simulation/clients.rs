//! Clients: producers that send again what was not confirmed, and consumers that ack. They are connected to whoever
//! answers as master, an old one too, as long as that is of no lower epoch than they have seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use batonmq::broker::{Command, Ending};
use batonmq::engine::{Memory, Outbox};
use batonmq::model::id::{Offset, OffsetRange, ProducerId, Sequence, SessionId, TopicId};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::settings::Start;
use batonmq::protocol::frame::RawFrame;
use batonmq::protocol::request::{FindTopic, OpenProducer, Publish, Settle, Settlement, Subscribe, Window};
use batonmq::protocol::response::{Deliver, Reply, Response};
use bytes::{Bytes, BytesMut};

use crate::chance::Chance;
use crate::history::{GROUP, History, KEPT, MessageId, QUEUE, body, identify};
use crate::setting::{MS, Setting};
use crate::tally::Tally;

/// Messages that a producer sends before the first of them is confirmed.
const WINDOW: u64 = 24;
/// The largest message where there are large ones: some are staged, and some just not.
const LARGE_BYTES: u64 = 6 << 20;
/// Messages that a consumer may have.
const CREDIT: u32 = 32;

/// A node that takes commands.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    pub process: u64,
    pub epoch: u64,
}

/// What clients note of what they are told.
pub struct Notes<'a> {
    pub history: &'a mut History,
    pub tally: &'a mut Tally,
    /// The first thing that must not be.
    pub wrong: &'a mut Option<String>,
}

#[derive(Debug)]
struct Connection {
    node: Node,
    session: SessionId,
    /// Where the node sends to.
    outbox: Arc<Outbox>,
    /// When the client was last told something.
    heard_at: u64,
    /// How long it stays without being told anything.
    patience: u64,
}

#[derive(Debug, Default)]
struct Producer {
    connection: Option<Connection>,
    epoch_seen: u64,
    id: Option<ProducerId>,
    /// The topics of messages that stay and that go, on this connection.
    topics: [Option<TopicId>; 2],
    is_open: bool,
    /// The number that is sent next.
    next: u64,
    /// The highest number that was ever sent.
    last: u64,
}

#[derive(Debug, Default)]
struct Consumer {
    connection: Option<Connection>,
    epoch_seen: u64,
    topic: TopicId,
    generation: u32,
    holds: Vec<(u64, MessageId)>,
    acks: BTreeMap<u32, Vec<MessageId>>,
    next_request: u32,
}

/// All clients.
#[derive(Debug)]
pub struct Clients {
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    sessions: u64,
    kept_percent: u64,
    body_bytes: u64,
    has_large: bool,
    seed: u64,
    /// Producers publish nothing more.
    pub is_over: bool,
}

impl Clients {
    pub fn new(setting: &Setting, seed: u64) -> Self {
        let (kept_percent, body_bytes) = (setting.kept_percent, setting.body_bytes);
        let producers = (0..2).map(|_| Producer { next: 1, ..Producer::default() }).collect();
        let consumers = (0..2).map(|_| Consumer::default()).collect();
        Self {
            producers,
            consumers,
            sessions: 0,
            kept_percent,
            body_bytes,
            has_large: setting.has_large,
            seed,
            is_over: false,
        }
    }

    /// What one message is like, the same each time it is sent: whether it stays, and its bytes.
    fn kind(&self, id: MessageId) -> (bool, u64) {
        let mut chance = Chance::new(self.seed ^ (id.1 << 8) ^ id.0 as u64);
        let bytes = if self.has_large && chance.one_in(60) { LARGE_BYTES } else { self.body_bytes };
        (chance.percent(self.kept_percent), chance.between(bytes / 2, bytes))
    }

    /// What the clients of a node want in its next cycle. Some connect for that, and some go elsewhere.
    pub fn commands(
        &mut self,
        node: Node,
        now: u64,
        chance: &mut Chance,
        history: &mut History,
    ) -> Vec<(SessionId, Command)> {
        let mut commands = Vec::new();
        for index in 0..self.producers.len() {
            self.produce(index, node, now, chance, history, &mut commands);
        }
        for index in 0..self.consumers.len() {
            self.consume(index, node, now, chance, history, &mut commands);
        }
        commands
    }

    fn produce(
        &mut self,
        index: usize,
        node: Node,
        now: u64,
        chance: &mut Chance,
        history: &mut History,
        commands: &mut Vec<(SessionId, Command)>,
    ) {
        let (sessions, producer) = (&mut self.sessions, &mut self.producers[index]);
        let seen = producer.epoch_seen;
        let session = match connect(&mut producer.connection, seen, node, now, chance, sessions, commands) {
            Connected::Not => return,
            Connected::Already(session) => session,
            Connected::New(session) => {
                producer.epoch_seen = node.epoch;
                (producer.is_open, producer.topics) = (false, [None; 2]);
                let open =
                    OpenProducer { request: 1, producer: 1, name: format!("p{index}"), resume: producer.id };
                commands.push((session, Command::OpenProducer(open)));
                for (request, name) in [(2, KEPT), (3, QUEUE)] {
                    let name = name.to_owned();
                    commands.push((session, Command::FindTopic(FindTopic { request, name })));
                }
                return;
            }
        };
        let &mut Producer { is_open: true, topics: [Some(kept), Some(queue)], next, last, .. } = producer
        else {
            return;
        };
        let confirmed = history.confirmed.get(&index).copied().unwrap_or(0);
        let end = if self.is_over { last } else { confirmed + WINDOW };
        if next > end || chance.one_in(3) {
            return;
        }
        let numbers = next..=end.min(next + chance.below(6));
        let mut parts: Vec<(TopicId, u32)> = Vec::new();
        let mut messages = Vec::new();
        for number in numbers.clone() {
            let (stays, bytes) = self.kind((index, number));
            let topic = if stays { kept } else { queue };
            if stays {
                history.kept.insert((index, number));
            }
            match parts.last_mut() {
                Some((last, count)) if *last == topic => *count += 1,
                _ => parts.push((topic, 1)),
            }
            messages.push(Message::new(body((index, number), bytes)));
        }
        let publish = Publish { producer: 1, sequence: Sequence(next), parts };
        commands.push((session, Command::Publish(publish, MessageBlock::encode(&messages))));
        let producer = &mut self.producers[index];
        producer.next = numbers.end() + 1;
        producer.last = last.max(*numbers.end());
    }

    fn consume(
        &mut self,
        index: usize,
        node: Node,
        now: u64,
        chance: &mut Chance,
        history: &mut History,
        commands: &mut Vec<(SessionId, Command)>,
    ) {
        let (sessions, consumer) = (&mut self.sessions, &mut self.consumers[index]);
        let seen = consumer.epoch_seen;
        let session = match connect(&mut consumer.connection, seen, node, now, chance, sessions, commands) {
            Connected::Not => return,
            Connected::Already(session) => session,
            Connected::New(session) => {
                *consumer = Consumer {
                    connection: consumer.connection.take(),
                    epoch_seen: node.epoch,
                    next_request: 2,
                    ..Consumer::default()
                };
                let subscribe = Subscribe {
                    request: 1,
                    consumer: 1,
                    topic: QUEUE.to_owned(),
                    group: GROUP.to_owned(),
                    start: Start::Earliest,
                    priority: 0,
                    settings: None,
                    window: Window { messages: CREDIT, bytes: 1 << 20 },
                };
                commands.push((session, Command::Subscribe(subscribe)));
                return;
            }
        };
        if consumer.holds.is_empty() || chance.one_in(3) {
            return;
        }
        let count = chance.between(1, consumer.holds.len() as u64) as usize;
        let acked: Vec<(u64, MessageId)> = if chance.one_in(2) {
            consumer.holds.drain(..count).collect()
        } else {
            let (now, later) =
                std::mem::take(&mut consumer.holds).into_iter().partition(|_| chance.one_in(2));
            consumer.holds = later;
            now
        };
        if acked.is_empty() {
            return;
        }
        history.ack_sent.extend(acked.iter().map(|(_, id)| *id));
        let offsets: BTreeSet<u64> = acked.iter().map(|(offset, _)| *offset).collect();
        let request = consumer.next_request;
        consumer.next_request += 1;
        let settle = Settle {
            request,
            consumer: 1,
            topic: consumer.topic,
            generation: consumer.generation,
            settlement: Settlement::Ack,
            ranges: offsets.iter().map(|&offset| OffsetRange::new(offset, offset + 1)).collect(),
        };
        consumer.acks.insert(request, acked.into_iter().map(|(_, id)| id).collect());
        commands.push((session, Command::Settle(settle)));
    }

    /// Where a node sends to for a session.
    pub fn outbox(&self, session: SessionId) -> Option<Arc<Outbox>> {
        let mut connections = self.connections();
        let connection = connections.find(|connection| connection.session == session)?;
        Some(Arc::clone(&connection.outbox))
    }

    fn connections(&self) -> impl Iterator<Item = &Connection> {
        let producers = self.producers.iter().filter_map(|producer| producer.connection.as_ref());
        producers.chain(self.consumers.iter().filter_map(|consumer| consumer.connection.as_ref()))
    }

    /// Clients read what a process has sent to them.
    pub fn hear(&mut self, process: u64, now: u64, notes: &mut Notes<'_>) {
        let connections = self.connections().filter(|connection| connection.node.process == process);
        let sent: Vec<(SessionId, Vec<u8>)> =
            connections.map(|connection| (connection.session, connection.outbox.take_kept())).collect();
        for (session, bytes) in sent {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = RawFrame::cut(&mut input, u64::MAX) {
                match Response::decode(&frame) {
                    Ok(response) => self.told(session, response, now, notes),
                    Err(error) => drop(notes.wrong.get_or_insert(format!("a frame makes no sense: {error}"))),
                }
            }
        }
    }

    /// Whoever is told nothing goes elsewhere from now on.
    pub fn lose_patience(&mut self) {
        let producers = self.producers.iter_mut().map(|producer| &mut producer.connection);
        let consumers = self.consumers.iter_mut().map(|consumer| &mut consumer.connection);
        for connection in producers.chain(consumers).flatten() {
            connection.patience = 0;
        }
    }

    /// A process has ended: its connections break.
    pub fn lose(&mut self, process: u64) {
        let producers = self.producers.iter_mut().map(|producer| &mut producer.connection);
        let consumers = self.consumers.iter_mut().map(|consumer| &mut consumer.connection);
        for connection in producers.chain(consumers) {
            connection.take_if(|connection| connection.node.process == process);
        }
    }

    /// A client is told something.
    fn told(&mut self, session: SessionId, response: Response, now: u64, notes: &mut Notes<'_>) {
        let is_of = |connection: &Option<Connection>| {
            connection.as_ref().is_some_and(|connection| connection.session == session)
        };
        if let Some(index) = self.producers.iter().position(|producer| is_of(&producer.connection)) {
            heard(&mut self.producers[index].connection, now);
            self.tell_producer(index, response, notes);
        } else if let Some(index) = self.consumers.iter().position(|consumer| is_of(&consumer.connection)) {
            heard(&mut self.consumers[index].connection, now);
            self.tell_consumer(index, response, notes);
        }
    }

    fn tell_producer(&mut self, index: usize, response: Response, notes: &mut Notes<'_>) {
        let producer = &mut self.producers[index];
        let confirmed = match response {
            Response::Reply(1, Ok(Reply::Producer { id, last })) => {
                let before = notes.history.confirmed.get(&index).copied().unwrap_or(0);
                if last.0 < before {
                    let what =
                        format!("producer {index} was confirmed {before}, and the store has {}", last.0);
                    notes.wrong.get_or_insert(what);
                }
                (producer.id, producer.is_open) = (Some(id), true);
                // Some go on behind what is stored, and some send again all that was not confirmed.
                if last.0 % 2 == 0 {
                    producer.next = before + 1;
                    return;
                }
                producer.next = last.0 + 1;
                last.0
            }
            Response::Reply(request @ 2..=3, Ok(Reply::Topic { id })) => {
                producer.topics[request as usize - 2] = Some(id);
                return;
            }
            Response::Confirm(confirm) => confirm.sequence.0,
            Response::PublishRefused(refused) => {
                producer.next = refused.expected.0;
                return;
            }
            Response::Goodbye(_) => {
                producer.connection = None;
                return;
            }
            Response::Reply(_, Err(_)) => {
                // A producer that was never durable is not known to the next master.
                (producer.id, producer.connection) = (None, None);
                return;
            }
            _ => return,
        };
        let known = notes.history.confirmed.entry(index).or_default();
        notes.tally.confirmed += confirmed.saturating_sub(*known);
        *known = confirmed.max(*known);
        producer.next = producer.next.max(confirmed + 1);
    }

    fn tell_consumer(&mut self, index: usize, response: Response, notes: &mut Notes<'_>) {
        let consumer = &mut self.consumers[index];
        match response {
            Response::Reply(1, Ok(Reply::Subscribed { topic, .. })) => consumer.topic = topic,
            Response::Reply(request, Ok(Reply::Settled { count })) => {
                let Some(acked) = consumer.acks.remove(&request) else { return };
                if count == acked.len() as u64 {
                    notes.tally.acked += count;
                    let epoch = consumer.epoch_seen;
                    notes.history.acked.extend(acked.into_iter().map(|id| (id, epoch)));
                }
            }
            Response::Reply(_, Err(_)) | Response::ConsumerClosed(_) => consumer.connection = None,
            Response::ConsumerRecalled(recalled) => {
                consumer.generation = recalled.generation;
                consumer.holds.clear();
            }
            Response::Deliver(head, messages) => consumer.take(&head, messages, notes),
            Response::Goodbye(_) => consumer.connection = None,
            _ => {}
        }
    }

    /// Whether everything that was sent is confirmed.
    pub fn all_confirmed(&self, history: &History) -> bool {
        self.producers
            .iter()
            .enumerate()
            .all(|(index, producer)| history.confirmed.get(&index).copied().unwrap_or(0) >= producer.last)
    }
}

impl Consumer {
    fn take(&mut self, head: &Deliver, messages: Bytes, notes: &mut Notes<'_>) {
        let Ok(block) = MessageBlock::from_store(messages) else {
            notes.wrong.get_or_insert("a delivery is not made of messages".to_owned());
            return;
        };
        let offsets = head.runs.iter().flat_map(|run| run.offset.0..run.offset.0 + u64::from(run.count));
        for (encoded, offset) in block.iter().zip(offsets) {
            let message = Message::decode(&encoded).ok();
            let Some(id) = message.and_then(|message| identify(&message.body)) else {
                notes.wrong.get_or_insert(format!("message {} was delivered damaged", Offset(offset)));
                return;
            };
            notes.tally.delivered += 1;
            if notes.history.acked.get(&id).is_some_and(|&epoch| epoch <= self.epoch_seen) {
                let what =
                    format!("message {} of producer {} came back after its ack was confirmed", id.1, id.0);
                notes.wrong.get_or_insert(what);
            }
            self.holds.push((offset, id));
        }
    }
}

enum Connected {
    Not,
    Already(SessionId),
    New(SessionId),
}

fn heard(connection: &mut Option<Connection>, now: u64) {
    if let Some(connection) = connection {
        connection.heard_at = now;
    }
}

/// Goes on with a connection to a node, or begins one, or breaks it off.
fn connect(
    connection: &mut Option<Connection>,
    epoch_seen: u64,
    node: Node,
    now: u64,
    chance: &mut Chance,
    sessions: &mut u64,
    commands: &mut Vec<(SessionId, Command)>,
) -> Connected {
    match connection {
        Some(known) if known.node.process == node.process => {
            let session = known.session;
            if chance.one_in(150) {
                *connection = None;
                commands.push((session, Command::End(Ending::Lost)));
                return Connected::Not;
            }
            return Connected::Already(session);
        }
        // One that says nothing is left after a while.
        Some(known) if now < known.heard_at + known.patience => return Connected::Not,
        _ => {}
    }
    if node.epoch < epoch_seen || chance.one_in(2) {
        return Connected::Not;
    }
    *sessions += 1;
    let session = SessionId(*sessions);
    let outbox = Arc::new(Outbox::keeping(&Memory::new(u64::MAX)));
    let patience = chance.pick(&[300, 3000, 60_000]) * MS;
    *connection = Some(Connection { node, session, outbox, heard_at: now, patience });
    commands.push((session, Command::Begin));
    Connected::New(session)
}
