//! A world with one topic and one group, and what is to be said about it.

use batonmq::broker::AutoCreate;
use batonmq::model::id::{GroupId, OffsetRange, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::{Backoff, GroupSettings};
use batonmq::model::time::Timestamp;
use batonmq::protocol::error::Refusal;
use batonmq::protocol::request::{AdminCommand, Settlement, Window};
use batonmq::protocol::response::Reply;

use crate::broker_world::World;

pub const ALL: Window = Window { messages: 1_000, bytes: u64::MAX };

/// A world with a producer, topic `t` and a consumer of its group `g`.
pub struct Scene {
    pub world: World,
    pub topic: TopicId,
    pub next: u64,
    pub settings: GroupSettings,
}

impl Scene {
    pub fn new(limits: Limits, settings: GroupSettings) -> Self {
        let mut world = World::new(limits, AutoCreate::Allowed);
        world.begin(0);
        world.open(0, 0, "p");
        let topic = world.find_topic(0, "t").unwrap();
        world.finish();
        Self { world, topic, next: 1, settings }
    }

    pub fn consume(&mut self, window: Window) {
        self.world.subscribe(0, 0, "t", "g", window, Some(self.settings.clone())).unwrap();
    }

    pub fn publish(&mut self, messages: &[Message]) {
        let parts = vec![(self.topic, messages.len() as u32)];
        self.world.publish_messages(0, 0, self.next, parts, messages);
        self.next += messages.len() as u64;
    }

    /// Ends the cycle, and others until nothing is left to be done now. Answers the bodies that were delivered.
    pub fn run(&mut self) -> Vec<String> {
        let mut bodies = Vec::new();
        loop {
            self.world.answer_all();
            self.world.finish();
            bodies.extend(self.delivered().into_iter().map(|(_, _, body)| body));
            let due = self.world.broker.next_timeout().is_some_and(|at| at <= self.world.now);
            if self.world.reads.is_empty() && !due {
                return bodies;
            }
        }
    }

    /// What the last cycle has delivered: topic, offset and body.
    pub fn delivered(&self) -> Vec<(TopicId, u64, String)> {
        let delivered = self.world.delivered.iter().map(|&(_, _, part, offset, _)| {
            let topic = self.world.fold.groups[&part].topic;
            let body = self.world.store[&topic][&offset].message.body.to_vec();
            (topic, offset, String::from_utf8(body).unwrap())
        });
        delivered.collect()
    }

    pub fn advance(&mut self, ms: u64) -> Vec<String> {
        self.world.now = Timestamp(self.world.now.0 + ms);
        self.run()
    }

    pub fn restart(&mut self) {
        self.world.restart();
        self.world.begin(0);
        self.world.open(0, 0, "p");
    }

    /// Slots that are not over.
    pub fn slots(&self) -> usize {
        let (world, slots) = (&self.world, self.world.fold.topics.keys());
        slots.filter(|topic| world.is_slot(**topic) && !world.is_over(**topic)).count()
    }

    /// What is answered to a request.
    pub fn ask(&mut self, command: AdminCommand) -> Result<Reply, Refusal> {
        let request = self.world.admin(0, command);
        self.run();
        self.world.replies.iter().find(|reply| reply.1 == request).unwrap().2.clone()
    }

    /// The slots that clients see, and how many messages are in each.
    pub fn listed(&mut self) -> Vec<(u32, u64)> {
        let Ok(Reply::Slots { slots }) = self.ask(AdminCommand::ListSlots { topic: "t".into() }) else {
            panic!("slots are listed");
        };
        slots.iter().map(|slot| (slot.slot.0, slot.messages)).collect()
    }

    pub fn ack_all(&mut self) {
        for topic in self.world.topics_now() {
            if self.world.part(GroupId(0), topic).is_some() {
                self.world.settle_in(0, 0, topic, Settlement::Ack, vec![OffsetRange::new(0, u64::MAX)]);
            }
        }
    }
}

pub fn after(now: Timestamp, ms: u64) -> Option<Timestamp> {
    Some(Timestamp(now.0 + ms))
}

pub fn at_once() -> GroupSettings {
    let backoff = Backoff { initial_ms: 0, maximum_ms: 0, ..Backoff::default() };
    GroupSettings { backoff, ..GroupSettings::default() }
}
