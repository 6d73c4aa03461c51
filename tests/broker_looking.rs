//! Browsing a topic and peeking at what a group will get: rules, and both against a naive model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::collections::BTreeMap;

use batonmq::broker::AutoCreate;
use batonmq::model::id::{Offset, OffsetRange, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::position::Position;
use batonmq::model::settings::{Backoff, GroupSettings, Retention, TopicSettings};
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::TopicKind;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::{AdminCommand, BrowseFrom, Settlement, Window};
use batonmq::protocol::response::{Place, Reply, Standing};
use broker_world::World;
use proptest::prelude::*;

const ALL: Window = Window { messages: 1_000, bytes: u64::MAX };

/// A message as somebody sees it who looks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    position: Position,
    body: u64,
    state: Option<Standing>,
    attempt: u32,
}

/// What is asked for.
#[derive(Clone)]
struct Ask {
    group: Option<&'static str>,
    from: BrowseFrom,
    since: u64,
    filter: Option<String>,
    page: u32,
}

const WHOLE: Ask = Ask { group: None, from: BrowseFrom::Beginning, since: 0, filter: None, page: 100 };

struct Scene {
    world: World,
    topic: TopicId,
    next: u64,
    /// Answers that the last walk took.
    answers: usize,
}

impl Scene {
    fn new(limits: Limits) -> Self {
        let mut world = World::new(limits, AutoCreate::Allowed);
        world.begin(0);
        world.open(0, 0, "p");
        let topic = world.find_topic(0, "t").unwrap();
        world.finish();
        Self { world, topic, next: 1, answers: 0 }
    }

    fn publish(&mut self, messages: &[Message]) {
        let parts = vec![(self.topic, messages.len() as u32)];
        self.world.publish_messages(0, 0, self.next, parts, messages);
        self.next += messages.len() as u64;
    }

    /// Messages with these priorities, whose body is their sequence.
    fn publish_with(&mut self, priorities: &[u8]) {
        let first = self.next;
        let message = |(n, &priority): (u64, &u8)| Message {
            priority,
            key: Some(format!("k{}", n % 3).into()),
            headers: vec![("n".into(), n.to_string().into())],
            ..Message::new(n.to_string())
        };
        let messages: Vec<Message> = (first..).zip(priorities).map(message).collect();
        self.publish(&messages);
    }

    fn subscribe(&mut self, settings: GroupSettings) {
        self.world.subscribe(0, 0, "t", "g", ALL, Some(settings)).unwrap();
    }

    fn run(&mut self) {
        loop {
            self.world.answer_all();
            self.world.finish();
            let due = self.world.broker.next_timeout().is_some_and(|at| at <= self.world.now);
            if self.world.reads.is_empty() && !due {
                return;
            }
        }
    }

    fn ask(&mut self, ask: &Ask, from: BrowseFrom) -> Result<Reply, Refusal> {
        let command = AdminCommand::Browse {
            topic: "t".into(),
            group: ask.group.map(str::to_owned),
            from,
            since: Timestamp(ask.since),
            filter: ask.filter.clone(),
            messages_max: ask.page,
        };
        let request = self.world.admin(0, command);
        self.run();
        self.world.replies.iter().find(|reply| reply.1 == request).unwrap().2.clone()
    }

    /// All that is seen, answer by answer.
    fn walk(&mut self, ask: &Ask) -> Vec<Seen> {
        let (mut seen, mut from) = (Vec::new(), ask.from);
        self.answers = 0;
        loop {
            let answer = self.ask(ask, from).unwrap();
            let Reply::Browsed { priority, runs, states, next, messages, .. } = answer else {
                panic!("messages")
            };
            self.answers += 1;
            let block = MessageBlock::from_store(messages).unwrap();
            let (mut index, before) = (0, seen.len());
            for run in &runs {
                for offset in run.offset.0..run.offset.0 + u64::from(run.count) {
                    let message = block.message(index).unwrap();
                    index += 1;
                    let state = states.iter().find(|state| state.range.contains(Offset(offset)));
                    assert_eq!(state.is_some(), ask.group.is_some());
                    seen.push(Seen {
                        position: Position { priority, offset: Offset(offset) },
                        body: std::str::from_utf8(&message.body).unwrap().parse().unwrap(),
                        state: state.map(|state| state.state),
                        attempt: run.attempt,
                    });
                }
            }
            assert_eq!(index, block.count());
            assert!(seen.len() - before <= ask.page as usize);
            match next {
                Some(next) => from = BrowseFrom::Place(next),
                None => return seen,
            }
        }
    }

    fn bodies(&mut self, ask: &Ask) -> Vec<u64> {
        self.walk(ask).into_iter().map(|seen| seen.body).collect()
    }
}

#[test]
fn a_topic_is_seen_in_the_order_of_positions() {
    for cache_bytes_max in [0, 1 << 20] {
        let mut scene = Scene::new(Limits { cache_bytes_max, ..Limits::default() });
        scene.publish_with(&[0, 9, 0, 4, 9, 0]);
        scene.run();
        for page in [1, 2, 100] {
            assert_eq!(scene.bodies(&Ask { page, ..WHOLE }), [1, 3, 6, 4, 2, 5]);
        }
        let from = |text: &str| BrowseFrom::Position(text.parse().unwrap());
        for (text, expected) in [
            ("1", vec![3, 6, 4, 2, 5]),
            ("3", vec![4, 2, 5]),
            ("4:7", vec![2, 5]),
            ("5:9", vec![2, 5]),
            ("9:1", vec![5]),
            ("9:2", vec![]),
        ] {
            assert_eq!(scene.bodies(&Ask { from: from(text), ..WHOLE }), expected, "from {text}");
        }
    }
}

#[test]
fn a_filter_is_asked_about_every_message() {
    let mut scene = Scene::new(Limits { cache_bytes_max: 0, ..Limits::default() });
    scene.publish_with(&[0, 9, 0, 4, 9, 0]);
    scene.run();
    let filtered = |text: &str| Ask { filter: Some(text.into()), page: 1, ..WHOLE };
    assert_eq!(scene.bodies(&filtered("n > 2")), [3, 6, 4, 5]);
    assert_eq!(scene.bodies(&filtered("@key = 'k2'")), [2, 5]);
    assert!(scene.bodies(&filtered("n > 9")).is_empty());
    let refusal = scene.ask(&filtered("n >"), BrowseFrom::Beginning).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Invalid);
    assert!(refusal.text.contains("column 4"), "{}", refusal.text);
}

/// Looking through a large topic for what is rare would take a cycle of minutes.
#[test]
fn looking_for_what_is_rare_goes_in_bounded_steps() {
    let mut scene = Scene::new(Limits::default());
    let headers: Vec<_> = (0..256).map(|n| (format!("header-{n:03}"), "value".into())).collect();
    let costly = |n: u64| Message { headers: headers.clone(), ..Message::new(n.to_string()) };
    let messages: Vec<Message> = (0..200).map(costly).collect();
    scene.publish(&messages);
    scene.run();
    let filter = vec!["missing = 'x'"; 120].join(" OR ");
    let seen = scene.walk(&Ask { filter: Some(format!("{filter} OR @size = 1")), ..WHOLE });
    assert_eq!(seen.len(), 10);
    assert!((10..200).contains(&scene.answers), "{} answers", scene.answers);
}

#[test]
fn a_time_begins_with_the_first_message_published_then_or_later() {
    for cache_bytes_max in [0, 1 << 20] {
        let mut scene = Scene::new(Limits { cache_bytes_max, ..Limits::default() });
        let begin = scene.world.now.0;
        for _ in 0..100 {
            scene.publish_with(&[0, 3]);
            scene.run();
            scene.world.now.0 += 700;
        }
        for (since, first) in [
            (0, 0),
            (begin, 0),
            (begin + 1, 1),
            (begin + 700, 1),
            (begin + 69_300, 99),
            (begin + 69_301, 100),
        ] {
            let expected: Vec<u64> =
                [1, 2].into_iter().flat_map(|lane| (first..100).map(move |n| 2 * n + lane)).collect();
            assert_eq!(scene.bodies(&Ask { since, page: 7, ..WHOLE }), expected, "since {since}");
        }
    }
}

#[test]
fn nothing_changes_by_looking() {
    let mut scene = Scene::new(Limits::default());
    scene.subscribe(GroupSettings::default());
    scene.publish_with(&[0, 5, 0]);
    scene.run();
    let before = scene.world.fold.clone();
    scene.walk(&WHOLE);
    scene.walk(&Ask { group: Some("g"), ..WHOLE });
    assert_eq!(scene.world.fold, before);
}

#[test]
fn a_peek_shows_what_is_to_become_of_each_message() {
    let mut scene = Scene::new(Limits::default());
    let backoff = Backoff { initial_ms: 5_000, jitter_percent: 0, ..Backoff::default() };
    scene.subscribe(GroupSettings { backoff, ..GroupSettings::default() });
    scene.publish_with(&[0, 0, 0, 0, 9]);
    scene.run();
    scene.world.flow(0, 0, Window { messages: 0, bytes: 0 });
    let settle = |scene: &mut Scene, settlement, offset| {
        scene.world.settle_in(0, 0, scene.topic, settlement, vec![OffsetRange::new(offset, offset + 1)]);
    };
    settle(&mut scene, Settlement::Ack, 1);
    settle(&mut scene, Settlement::Nack { delay_ms: None, reason: Some("no".into()) }, 2);
    settle(&mut scene, Settlement::Release, 3);
    scene.publish_with(&[0]);
    scene.run();
    let due_at = Timestamp(scene.world.now.0 + 5_000);
    let seen = scene.walk(&Ask { group: Some("g"), page: 2, ..WHOLE });
    let expected = [
        (5, Standing::InFlight, 1),
        (1, Standing::InFlight, 1),
        (3, Standing::Returned { due_at }, 2),
        (4, Standing::Waiting, 1),
        (6, Standing::Waiting, 1),
    ];
    let got: Vec<_> = seen.iter().map(|seen| (seen.body, seen.state.unwrap(), seen.attempt)).collect();
    assert_eq!(got, expected);
    // With its failures.
    let answer = scene.ask(
        &Ask { group: Some("g"), ..WHOLE },
        BrowseFrom::Place(Place { topic: scene.topic, offset: Offset(2) }),
    );
    let Ok(Reply::Browsed { failures, .. }) = answer else { panic!("messages") };
    assert_eq!(failures[0].range, OffsetRange::new(2, 3));
    assert_eq!(failures[0].failure.text.as_deref(), Some("no"));
    // Once it is due, it waits for a consumer.
    scene.world.now = due_at;
    assert_eq!(scene.walk(&Ask { group: Some("g"), ..WHOLE })[2].state, Some(Standing::Waiting));
}

#[test]
fn a_peek_leaves_out_what_the_group_will_not_get() {
    let mut scene = Scene::new(Limits::default());
    scene.world.filters.insert("n > 2".into(), |message| message.header("n").unwrap()[..] > b"2"[..]);
    // Nothing was asked about what was there before.
    scene.publish_with(&[0; 4]);
    let expired = Message { expires_at: Some(Timestamp(scene.world.now.0 + 10)), ..Message::new("7") };
    scene.publish(&[Message { headers: vec![("n".into(), "7".into())], ..expired }]);
    scene.run();
    let settings = GroupSettings { filter: Some("n > 2".into()), ..GroupSettings::default() };
    scene.world.subscribe(0, 0, "t", "g", Window { messages: 0, bytes: 0 }, Some(settings)).unwrap();
    assert_eq!(scene.bodies(&Ask { group: Some("g"), ..WHOLE }), [3, 4, 7]);
    scene.world.now.0 += 10;
    assert_eq!(scene.bodies(&Ask { group: Some("g"), ..WHOLE }), [3, 4]);
    assert_eq!(scene.bodies(&Ask { group: Some("g"), filter: Some("n = 4".into()), ..WHOLE }), [4]);
}

#[test]
fn a_peek_shows_what_a_consumer_has_whatever_has_become_of_it() {
    let mut scene = Scene::new(Limits::default());
    let expires_at = Some(Timestamp(scene.world.now.0 + 10));
    scene.subscribe(GroupSettings::default());
    scene.world.flow(0, 0, Window { messages: 1, bytes: u64::MAX });
    scene.publish(&[1, 2].map(|n| Message { expires_at, ..Message::new(n.to_string()) }));
    scene.run();
    let peek = Ask { group: Some("g"), ..WHOLE };
    assert_eq!(scene.bodies(&peek), [1, 2]);
    scene.world.now.0 += 10;
    let seen = scene.walk(&peek);
    assert_eq!(
        seen.iter().map(|seen| (seen.body, seen.state)).collect::<Vec<_>>(),
        [(1, Some(Standing::InFlight))]
    );
}

#[test]
fn a_peek_begins_where_the_group_is_and_says_what_may_have_been_handed_out() {
    let mut scene = Scene::new(Limits::default());
    let retention = Retention { acked: false, ..Retention::default() };
    let settings = TopicSettings { retention, ..TopicSettings::default() };
    scene.world.admin(0, AdminCommand::ChangeTopic { name: "t".into(), settings });
    scene.subscribe(GroupSettings::default());
    scene.world.flow(0, 0, Window { messages: 3, bytes: u64::MAX });
    scene.publish_with(&[0; 6]);
    scene.run();
    scene.world.settle_in(0, 0, scene.topic, Settlement::Ack, vec![OffsetRange::new(0, 2)]);
    scene.run();
    let peek = Ask { group: Some("g"), ..WHOLE };
    assert_eq!((scene.bodies(&WHOLE), scene.bodies(&peek)), (vec![1, 2, 3, 4, 5, 6], vec![3, 4, 5, 6]));
    scene.world.restart();
    scene.world.begin(0);
    scene.world.open(0, 0, "p");
    scene.publish_with(&[0]);
    let mut redelivered = Vec::new();
    for first in [2, 6] {
        let from = BrowseFrom::Place(Place { topic: scene.topic, offset: Offset(first) });
        let Ok(Reply::Browsed { runs, .. }) = scene.ask(&peek, from) else { panic!("messages") };
        redelivered.push(runs[0].redelivered);
    }
    assert_eq!(redelivered, [true, false]);
}

#[test]
fn what_cannot_be_seen_is_refused() {
    let mut scene = Scene::new(Limits::default());
    scene.publish_with(&[0]);
    let other = scene.world.find_topic(0, "other").unwrap();
    scene.subscribe(GroupSettings::default());
    let place = BrowseFrom::Place(Place { topic: other, offset: Offset(0) });
    for (ask, from, code) in [
        (WHOLE, place, ErrorCode::Deleted),
        (Ask { group: Some("g"), ..WHOLE }, place, ErrorCode::Deleted),
        (Ask { group: Some("missing"), ..WHOLE }, BrowseFrom::Beginning, ErrorCode::UnknownGroup),
        (Ask { group: Some("g"), ..WHOLE }, BrowseFrom::Position(Offset(1).into()), ErrorCode::Invalid),
        (Ask { group: Some("g"), ..WHOLE }, BrowseFrom::Newest { priority: 0, count: 1 }, ErrorCode::Invalid),
    ] {
        assert_eq!(scene.ask(&ask, from).unwrap_err().code, code);
    }
}

#[test]
fn whoever_looks_while_it_is_deleted_is_told() {
    for group in [None, Some("g")] {
        let mut scene = Scene::new(Limits { cache_bytes_max: 0, ..Limits::default() });
        scene.publish_with(&[0]);
        scene.run();
        scene.world.subscribe(0, 0, "t", "g", Window { messages: 0, bytes: 0 }, None).unwrap();
        let command = AdminCommand::Browse {
            topic: "t".into(),
            group: group.map(str::to_owned),
            from: BrowseFrom::Beginning,
            since: Timestamp(0),
            filter: None,
            messages_max: 1,
        };
        let request = scene.world.admin(0, command);
        scene.world.finish();
        assert_eq!(scene.world.reads.len(), 1);
        scene.world.admin(0, AdminCommand::DeleteTopic { name: "t".into() });
        scene.run();
        let answer = scene.world.replies.iter().find(|reply| reply.1 == request).unwrap().2.clone();
        assert_eq!(answer.unwrap_err().code, ErrorCode::Deleted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in memory and however large the answers are: what is seen is what is there, and what a group has
    /// not settled, in order.
    #[test]
    fn what_is_seen_is_what_is_there(
        cache_bytes_max in prop_oneof![Just(0_u64), Just(900), Just(1 << 20)],
        batches in prop::collection::vec(prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => 1_u8..=9], 1..12), 1..12),
        acked in prop::collection::vec((0_u8..10, 0_u64..60, 1_u64..20), 0..8),
        released in prop::collection::vec((0_u64..60, 1_u64..20), 0..3),
        page in 1_u32..20,
        at_least in 0_u64..80,
        from in (0_u8..10, 0_u64..30),
    ) {
        let limits = Limits { cache_bytes_max, pinned_bytes_max: 1, ..Limits::default() };
        let mut scene = Scene::new(limits);
        scene.subscribe(GroupSettings::default());
        for batch in batches {
            scene.publish_with(&batch);
            scene.run();
        }
        scene.world.flow(0, 0, Window { messages: 0, bytes: 0 });
        let lanes: BTreeMap<u8, TopicId> = scene
            .world
            .fold
            .topics
            .iter()
            .filter(|(id, topic)| **id == scene.topic || matches!(topic.kind, TopicKind::Lane { .. }))
            .map(|(id, topic)| (topic.kind.priority(), *id))
            .collect();
        let settle = |scene: &mut Scene, priority: u8, settlement, start, len| {
            if let Some(topic) = lanes.get(&priority) {
                scene.world.settle_in(0, 0, *topic, settlement, vec![OffsetRange::new(start, start + len)]);
            }
        };
        for (priority, start, len) in acked {
            settle(&mut scene, priority, Settlement::Ack, start, len);
            scene.run();
        }
        for (start, len) in released {
            settle(&mut scene, 0, Settlement::Release, start, len);
        }
        scene.run();
        let body = |message: &Message| -> u64 { std::str::from_utf8(&message.body).unwrap().parse().unwrap() };
        let mut there: Vec<(Position, u64)> = Vec::new();
        let mut unsettled: Vec<(Position, u64, bool)> = Vec::new();
        for (&priority, topic) in &lanes {
            let group = *scene.world.fold.groups.iter().find(|(_, group)| group.topic == *topic).unwrap().0;
            for (&offset, stored) in scene.world.store.get(topic).into_iter().flatten() {
                let position = Position { priority, offset: Offset(offset) };
                there.push((position, body(&stored.message)));
                if !scene.world.is_settled(group, offset) {
                    let known = scene.world.groups[&group].get(&offset);
                    let held = known.is_some_and(|known| known.holder.is_some());
                    unsettled.push((position, body(&stored.message), held));
                }
            }
        }
        let seen = scene.walk(&Ask { page, ..WHOLE });
        let seen: Vec<(Position, u64)> = seen.into_iter().map(|seen| (seen.position, seen.body)).collect();
        prop_assert_eq!(&seen, &there);
        let from = Position { priority: from.0, offset: Offset(from.1) };
        let filter = Some(format!("n >= {at_least}"));
        let seen = scene.bodies(&Ask { from: BrowseFrom::Position(from), filter, page, ..WHOLE });
        let wanted = there.iter().filter(|(position, body)| *position >= from && *body >= at_least);
        prop_assert_eq!(seen, wanted.map(|(_, body)| *body).collect::<Vec<u64>>());
        let (priority, count) = (from.priority, u64::from(page));
        let seen = scene.walk(&Ask { from: BrowseFrom::Newest { priority, count }, page, ..WHOLE });
        let seen: Vec<(Position, u64)> = seen.into_iter().map(|seen| (seen.position, seen.body)).collect();
        let wanted: Vec<_> = there.iter().filter(|(position, _)| position.priority >= priority).copied().collect();
        let first = lanes.keys().find(|lane| **lane >= priority);
        let of_first = wanted.iter().filter(|(position, _)| Some(&position.priority) == first).count();
        prop_assert_eq!(&seen, &wanted[of_first.saturating_sub(count as usize)..]);
        unsettled.sort_by_key(|(position, ..)| (9 - position.priority, position.offset));
        let seen = scene.walk(&Ask { group: Some("g"), page, ..WHOLE });
        let seen: Vec<_> = seen
            .into_iter()
            .map(|seen| (seen.position, seen.body, seen.state == Some(Standing::InFlight)))
            .collect();
        prop_assert_eq!(seen, unsettled);
    }
}
