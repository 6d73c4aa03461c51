//! What the nodes of a test have in common, as a pair has its disk: what is stored, who is connected, what was said.
//!
//! One group per topic; deliveries in order of offset; what is in flight on a connection goes back when that ends.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use batonmq::model::chunk::Origin;
use batonmq::model::id::{Offset, ProducerId, TopicId};
use batonmq::model::time::Timestamp;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::Request;
use batonmq::protocol::response::{ConsumerClosed, Deliver, Reply, Response, Run};
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

/// What the nodes of a pair have in common.
#[derive(Debug, Default)]
pub struct World {
    pub topics: HashMap<String, TopicId>,
    pub stored: BTreeMap<TopicId, Vec<Stored>>,
    pub settled: BTreeMap<TopicId, BTreeSet<u64>>,
    pub attempts: BTreeMap<(TopicId, u64), u32>,
    pub producers: HashMap<String, ProducerId>,
    pub last: HashMap<ProducerId, u64>,
    pub owners: HashMap<ProducerId, (u64, u32)>,
    pub consumers: Vec<Member>,
    pub next_topic: u32,
    pub next_connection: u64,
    pub open_connections: usize,
    pub frames: Vec<Request>,
    /// When each connection began.
    pub connected_at: Vec<Instant>,
    /// Heartbeats sent, over all connections.
    pub beats: usize,
}

#[derive(Clone, Debug)]
pub struct Stored {
    pub message: Bytes,
    pub origin: Origin,
}

#[derive(Debug)]
pub struct Member {
    pub connection: u64,
    pub handle: u32,
    pub topic: TopicId,
    pub window: u32,
    pub flight: BTreeSet<u64>,
    pub out: mpsc::UnboundedSender<Response>,
    pub pulls: Vec<(u32, u32)>,
}

impl World {
    /// Bodies of what is stored in a topic.
    pub fn bodies(&self, topic: &str) -> Vec<String> {
        let Some(id) = self.topics.get(topic) else { return Vec::new() };
        let stored = self.stored.get(id).map(Vec::as_slice).unwrap_or_default();
        stored.iter().map(|stored| String::from_utf8(stored.message[5..].to_vec()).unwrap()).collect()
    }

    pub fn settled(&self, topic: &str) -> Vec<u64> {
        self.settled.get(&self.topics[topic]).into_iter().flatten().copied().collect()
    }

    pub fn count_frames(&self, is: impl Fn(&Request) -> bool) -> usize {
        self.frames.iter().filter(|frame| is(frame)).count()
    }

    /// Consumers that have joined and not left.
    pub fn consumer_count(&self) -> usize {
        self.consumers.len()
    }

    /// Deletes a topic, so that its id means nothing any more.
    pub fn delete_topic(&mut self, name: &str) {
        let id = self.topics.remove(name).unwrap();
        self.stored.remove(&id);
    }

    /// Forgets what every producer has stored.
    pub fn forget_producers(&mut self) {
        self.producers.clear();
        self.last.clear();
    }

    /// Ends every consumer.
    pub fn close_consumers(&mut self) {
        for member in self.consumers.drain(..) {
            let refusal = Refusal::new(ErrorCode::Deleted, "the group was deleted");
            let closed = ConsumerClosed { consumer: member.handle, refusal };
            let _ = member.out.send(Response::ConsumerClosed(closed));
        }
    }

    pub fn topic(&mut self, name: &str) -> TopicId {
        if let Some(id) = self.topics.get(name) {
            return *id;
        }
        self.next_topic += 1;
        let id = TopicId(self.next_topic);
        self.topics.insert(name.to_owned(), id);
        self.stored.insert(id, Vec::new());
        id
    }

    pub fn end(&mut self, connection: u64) {
        self.consumers.retain(|member| member.connection != connection);
        self.owners.retain(|_, owner| owner.0 != connection);
        self.hand_out();
    }

    pub fn hand_out(&mut self) {
        for index in 0..self.consumers.len() {
            let topic = self.consumers[index].topic;
            let taken: BTreeSet<u64> = self
                .consumers
                .iter()
                .filter(|member| member.topic == topic)
                .flat_map(|member| member.flight.iter().copied())
                .chain(self.settled.get(&topic).into_iter().flatten().copied())
                .collect();
            let Some(stored) = self.stored.get(&topic) else { continue };
            let waiting: Vec<u64> = (0..stored.len() as u64).filter(|at| !taken.contains(at)).collect();
            let member = &mut self.consumers[index];
            let (request, credit) = match member.pulls.first() {
                Some(&(request, max)) => (request, max),
                None => (0, member.window.saturating_sub(member.flight.len() as u32)),
            };
            let offsets: Vec<u64> = waiting.into_iter().take(credit as usize).collect();
            if offsets.is_empty() {
                continue;
            }
            let mut runs = Vec::new();
            let mut messages = BytesMut::new();
            for at in &offsets {
                let attempt = self.attempts.entry((topic, *at)).or_default();
                *attempt += 1;
                let stored = &stored[*at as usize];
                runs.push(Run {
                    offset: Offset(*at),
                    count: 1,
                    attempt: *attempt,
                    delivery: *attempt,
                    redelivered: *attempt > 1,
                    published_at: Timestamp(1),
                    origin: Some(stored.origin),
                });
                messages.extend_from_slice(&stored.message);
            }
            member.flight.extend(&offsets);
            let deliver = Deliver { consumer: member.handle, topic, request, runs, failures: Vec::new() };
            let _ = member.out.send(Response::Deliver(deliver, messages.freeze()));
            if request != 0 {
                member.pulls.remove(0);
                let count = offsets.len() as u32;
                let _ = member.out.send(Response::Reply(request, Ok(Reply::Pulled { count })));
            }
        }
    }
}
