//! The broker under random commands against a naive model of what waits for a time.

use std::collections::{BTreeMap, BTreeSet};

use batonmq::broker::Ending;
use batonmq::model::id::{Offset, OffsetRange, SessionId};
use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::GroupSettings;
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::protocol::request::{AdminCommand, Handle, Settlement, Window};
use batonmq::protocol::response::Reply;
use proptest::prelude::*;

use crate::scene::{ALL, Scene, at_once};

/// What a message has beside its body: priority, delay, time to live.
type Traits = (u8, u64, u64);

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<Traits>),
    Ack(Handle, u64, u64),
    Nack(Handle, u64, u64),
    Window(u32),
    Advance(u64),
    /// Time goes on while there is next to no space.
    Full(u64),
    Answer,
    /// Of a topic or slot, so many messages from one on cannot be read.
    Damage(usize, usize, usize),
    Heal,
    Finish,
    Cancel(usize),
    /// The second group begins, or its consumer comes back.
    Join,
    Lost,
    Delete,
    Purge,
    Restart,
    /// The process ends in the middle of a cycle.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let delay =
        prop_oneof![3 => Just(0), 2 => 1_u64..5_000, 1 => 5_000_u64..200_000, 1 => 200_000_u64..9_000_000];
    let ttl = prop_oneof![3 => Just(0), 2 => 1_u64..5_000, 1 => 5_000_u64..9_000_000];
    let priority = prop_oneof![2 => Just(0_u8), 1 => 1_u8..=9];
    let time = || prop_oneof![1_u64..100, 100_u64..5_000, 5_000_u64..400_000];
    prop_oneof![
        12 => prop::collection::vec((priority, delay, ttl), 1..8).prop_map(Step::Publish),
        8 => (0..2_u32, 0_u64..30, 1_u64..20).prop_map(|(of, start, len)| Step::Ack(of, start, len)),
        3 => (0..2_u32, 0_u64..30, 1_u64..6).prop_map(|(of, start, len)| Step::Nack(of, start, len)),
        2 => (0_u32..10).prop_map(Step::Window),
        6 => time().prop_map(Step::Advance),
        1 => time().prop_map(Step::Full),
        6 => Just(Step::Answer),
        3 => (0_usize..20, 0_usize..30, 1_usize..6).prop_map(|(t, from, count)| Step::Damage(t, from, count)),
        1 => Just(Step::Heal),
        12 => Just(Step::Finish),
        2 => (0_usize..40).prop_map(Step::Cancel),
        2 => Just(Step::Join),
        2 => Just(Step::Lost),
        1 => Just(Step::Delete),
        1 => Just(Step::Purge),
        3 => Just(Step::Restart),
        3 => Just(Step::Crash),
    ]
}

/// What a run is checked with.
#[derive(Clone, Debug)]
struct Plan {
    known: u64,
    cache: u64,
    settled_ranges: u64,
    buried: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let known = prop_oneof![Just(1_u64), Just(4), Just(16), Just(100_000)];
    let cache = prop_oneof![Just(1_u64 << 10), Just(1 << 20)];
    let settled_ranges = prop_oneof![Just(4_u64), Just(100_000)];
    (known, cache, settled_ranges, any::<bool>()).prop_map(|(known, cache, settled_ranges, buried)| Plan {
        known,
        cache,
        settled_ranges,
        buried,
    })
}

/// A random run: two groups, of which the second begins later and has dead letters.
struct Run {
    scene: Scene,
    plan: Plan,
    published: BTreeMap<String, Promise>,
    count: usize,
    /// Published in this cycle.
    unfinished: Vec<String>,
    seen: BTreeSet<String>,
    joined: bool,
}

/// When a message is to come.
#[derive(Clone, Copy, Debug)]
struct Promise {
    may_expire: bool,
}

impl Run {
    fn new(plan: Plan) -> Self {
        let settings = GroupSettings {
            dead_letter_expired: plan.buried,
            lease_ms: 3_600_000,
            max_attempts: 0,
            ..at_once()
        };
        let limits = Limits {
            scheduled_known_max: plan.known,
            cache_bytes_max: plan.cache,
            settled_ranges_max: plan.settled_ranges,
            pinned_bytes_max: 64,
            ..Limits::default()
        };
        let mut scene = Scene::new(limits, settings);
        scene.consume(ALL);
        scene.run();
        Self {
            scene,
            plan,
            published: BTreeMap::new(),
            count: 0,
            unfinished: Vec::new(),
            seen: BTreeSet::new(),
            joined: false,
        }
    }

    fn finish(&mut self) {
        self.scene.world.finish();
        self.unfinished.clear();
        self.seen.extend(self.scene.delivered().into_iter().map(|(_, _, body)| body));
        self.check_places();
    }

    /// No message is in two places, and none that is to come is in none before somebody has had it.
    fn check_places(&self) {
        let world = &self.scene.world;
        let mut places = BTreeSet::new();
        for (topic, stored) in &world.store {
            let state = &world.fold.topics[topic];
            let is_note = matches!(state.kind, TopicKind::Slot { waiting: Waiting::Expiring, .. });
            if is_note || state.name.as_str() != "t" {
                continue;
            }
            for stored in stored.values() {
                let body = String::from_utf8(stored.message.body.to_vec()).unwrap();
                assert!(places.insert(body.clone()), "{body} is in two places");
            }
        }
        for (body, promise) in &self.published {
            let gone = self.seen.contains(body) || promise.may_expire;
            assert!(gone || places.contains(body), "{body} is lost");
        }
    }

    /// Works until nothing is left to be done now, which must come to an end. Nothing that is due waits then.
    fn settle_down(&mut self) {
        for round in 0.. {
            assert!(round < 500, "it never rests");
            self.scene.world.answer_all();
            self.finish();
            let world = &self.scene.world;
            let due = world.broker.next_timeout().is_some_and(|at| at <= world.now);
            if world.reads.is_empty() && !due {
                break;
            }
        }
        self.scene.world.note_spares();
        let world = &self.scene.world;
        let late_max = if self.plan.known == 100_000 { 0 } else { 1 << 10 };
        for (topic, stored) in world.store.iter().filter(|(topic, _)| world.is_slot(**topic)) {
            for (offset, stored) in stored {
                if world.was_unread.contains(&(*topic, *offset)) {
                    continue;
                }
                let due = stored.message.deliver_at.unwrap();
                assert!(due.0 + late_max > world.now.0, "{topic}:{offset} is late: {due}");
            }
        }
    }

    fn join(&mut self) {
        let settings = GroupSettings { max_attempts: 2, priority_share: 2, ..self.scene.settings.clone() };
        let world = &mut self.scene.world;
        self.joined |= world.subscribe(0, 1, "t", "h", ALL, Some(settings)).is_some();
    }

    fn come_back(&mut self) {
        self.scene.world.begin(0);
        self.scene.world.open(0, 0, "p");
        self.scene.consume(ALL);
        if self.joined {
            self.join();
        }
    }

    fn publish(&mut self, traits: Vec<Traits>) {
        let now = self.scene.world.now;
        let mut messages = Vec::new();
        for (priority, delay, ttl) in traits {
            let body = format!("m{}", self.count);
            self.count += 1;
            let deliver_at = (delay > 0).then(|| Timestamp(now.0 + delay));
            let expires_at = (ttl > 0).then(|| Timestamp(now.0 + ttl));
            self.published.insert(body.clone(), Promise { may_expire: ttl > 0 });
            self.unfinished.push(body.clone());
            messages.push(Message { priority, deliver_at, expires_at, ..Message::new(body) });
        }
        self.scene.publish(&messages);
    }

    fn settle(&mut self, handle: Handle, settlement: &Settlement, range: OffsetRange) {
        let world = &mut self.scene.world;
        let client = world.clients.get(&SessionId(0));
        let Some(&group) = client.and_then(|client| client.consumers.get(&handle)) else { return };
        for topic in world.topics_now() {
            if world.part(group, topic).is_some() {
                world.settle_in(0, handle, topic, settlement.clone(), vec![range]);
            }
        }
    }

    fn cancel(&mut self, index: usize) {
        let world = &self.scene.world;
        let delayed = world.store.iter().filter(|(topic, _)| {
            let kind = world.fold.topics[topic].kind;
            matches!(kind, TopicKind::Slot { waiting: Waiting::Delayed, .. })
        });
        let mut places = delayed.flat_map(|(topic, stored)| stored.iter().map(move |at| (*topic, at)));
        let Some((slot, (&offset, stored))) = places.nth(index) else { return };
        self.published.remove(std::str::from_utf8(&stored.message.body).unwrap());
        let messages = vec![(slot, Offset(offset)); 2];
        let cancel = AdminCommand::CancelDelayed { topic: "t".into(), messages };
        let request = self.scene.world.admin(0, cancel);
        let replies = &self.scene.world.replies;
        let answer = &replies.iter().rev().find(|reply| reply.1 == request).unwrap().2;
        assert_eq!(*answer, Ok(Reply::Dropped { count: 1 }));
        self.finish();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish(traits) => self.publish(traits),
            Step::Ack(handle, start, len) => {
                self.settle(handle, &Settlement::Ack, OffsetRange::new(start, start + len));
            }
            Step::Nack(handle, start, len) => {
                let nack = Settlement::Nack { delay_ms: Some(50), reason: None };
                self.settle(handle, &nack, OffsetRange::new(start, start + len));
            }
            Step::Window(messages) => self.scene.world.flow(0, 0, Window { messages, bytes: u64::MAX }),
            Step::Advance(ms) => {
                self.settle_down();
                self.scene.world.now.0 += ms;
                self.settle_down();
            }
            Step::Full(ms) => {
                self.finish();
                self.scene.world.broker.begin_cycle(150);
                self.scene.world.now.0 += ms;
                for _ in 0..3 {
                    self.scene.world.answer_all();
                    self.finish();
                }
                self.scene.world.broker.begin_cycle(u64::MAX);
                self.scene.world.now.0 += 1_000;
                self.settle_down();
            }
            Step::Answer if !self.scene.world.reads.is_empty() => self.scene.world.answer(0),
            Step::Answer => {}
            Step::Damage(topic, from, count) => self.scene.world.damage(topic, from, count),
            Step::Heal => self.scene.world.heal(),
            Step::Finish => self.finish(),
            Step::Cancel(index) => {
                self.finish();
                self.cancel(index);
            }
            Step::Join => self.join(),
            Step::Lost => {
                self.scene.world.end(0, Ending::Lost);
                self.finish();
                self.come_back();
            }
            Step::Delete => {
                self.finish();
                self.published.clear();
                self.scene.world.admin(0, AdminCommand::DeleteTopic { name: "t".into() });
                self.joined = false;
                self.scene.topic = self.scene.world.find_topic(0, "t").unwrap();
                self.scene.consume(ALL);
                self.finish();
            }
            Step::Purge => {
                self.finish();
                self.published.clear();
                self.scene.world.purged.insert(self.scene.topic);
                self.scene.world.admin(0, AdminCommand::PurgeTopic { name: "t".into() });
                self.finish();
            }
            Step::Restart => {
                self.scene.world.answer_all();
                self.finish();
                self.restart();
            }
            Step::Crash => self.restart(),
        }
    }

    fn restart(&mut self) {
        self.published.retain(|body, _| !self.unfinished.contains(body));
        self.unfinished.clear();
        self.scene.world.restart();
        self.come_back();
        let producer = self.scene.world.clients[&SessionId(0)].producers[&0];
        self.scene.next = self.scene.world.last_of(producer).unwrap().next().0;
    }

    /// In the end all that has not expired has been delivered, and nothing waits any more.
    fn end(mut self) {
        self.scene.world.heal();
        self.scene.world.flow(0, 0, ALL);
        for _ in 0..300 {
            self.settle_down();
            let all = OffsetRange::new(0, u64::MAX);
            (0..2).for_each(|handle| self.settle(handle, &Settlement::Ack, all));
            self.settle_down();
            let Some(next) = self.scene.world.broker.next_timeout() else { break };
            self.scene.world.now = Timestamp(next.0.max(self.scene.world.now.0 + 1));
        }
        let world = &self.scene.world;
        for (topic, stored) in &world.store {
            assert!(!world.is_slot(*topic) || stored.is_empty(), "left in slot {topic}");
        }
        assert!(self.scene.slots() <= 2, "slots are left");
        for (body, promise) in &self.published {
            assert!(self.seen.contains(body) || promise.may_expire, "{body} was never delivered");
        }
        let waiting = world.fold.groups.values().filter(|group| {
            let topic = &world.fold.topics[&group.topic];
            topic.name.as_str() == "t" && group.floor < topic.end
        });
        assert_eq!(waiting.count(), 0, "left in the topic");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_waits_for_a_time_comes_when_it_is_due_and_not_when_it_is_over(
        steps in prop::collection::vec(step(), 1..80),
        plan in plan(),
    ) {
        let mut run = Run::new(plan);
        steps.into_iter().for_each(|step| run.step(step));
        run.end();
    }
}
