//! Messages with a priority.

use std::collections::{BTreeMap, VecDeque};

use batonmq::model::limits::Limits;
use batonmq::model::message::Message;
use batonmq::model::settings::{GroupSettings, Policy};
use batonmq::protocol::request::Window;
use proptest::prelude::*;

use crate::scene::{ALL, Scene, at_once};

#[test]
fn higher_priorities_come_first_and_lower_ones_do_not_starve() {
    let settings = GroupSettings { priority_share: 4, ..at_once() };
    let mut scene = Scene::new(Limits::default(), settings);
    let message = |priority: u8, n: u32| Message { priority, ..Message::new(format!("{priority}-{n}")) };
    let messages: Vec<Message> = (0..6).flat_map(|n| [message(0, n), message(9, n), message(5, n)]).collect();
    scene.publish(&messages);
    scene.run();
    scene.consume(Window { messages: 1, bytes: u64::MAX });
    let mut order = scene.run();
    while order.len() < 18 {
        scene.ack_all();
        order.extend(scene.run());
    }
    let expected = [
        "9-0", "9-1", "9-2", "5-0", "9-3", "9-4", "9-5", "0-0", "5-1", "5-2", "5-3", "0-1", "5-4", "5-5",
        "0-2", "0-3", "0-4", "0-5",
    ];
    assert_eq!(order, expected);
}

#[test]
fn lower_priorities_take_turns() {
    let settings = GroupSettings { priority_share: 3, ..at_once() };
    let mut scene = Scene::new(Limits::default(), settings);
    let message = |priority: u8| Message { priority, ..Message::new(priority.to_string()) };
    let messages: Vec<Message> = (0..48).map(|n| message(9 - n % 4 * 3)).collect();
    scene.publish(&messages);
    scene.run();
    scene.consume(Window { messages: 18, bytes: u64::MAX });
    let come = scene.run().concat();
    assert_eq!(come, ["996", "993", "990", "996", "993", "990"].concat());
}

/// After a takeover all of it has to be read, and what was read first came first, whatever its priority.
#[test]
fn a_lower_priority_does_not_overtake_a_higher_one_that_is_being_read() {
    let mut scene = Scene::new(Limits::default(), at_once());
    scene.consume(Window { messages: 0, bytes: 0 });
    let message = |priority: u8| Message { priority, ..Message::new(priority.to_string()) };
    scene.publish(&[message(0), message(5), message(9)]);
    scene.run();
    scene.restart();
    scene.consume(ALL);
    let mut come = Vec::new();
    loop {
        scene.world.finish();
        come.extend(scene.delivered().into_iter().map(|(_, _, body)| body));
        // The lowest priority is read first: its topic has the lowest number.
        let reads = scene.world.reads.iter().enumerate();
        let Some((lowest, _)) = reads.min_by_key(|(_, read)| read.topic) else { break };
        scene.world.answer(lowest);
    }
    assert_eq!(come, ["9", "5", "0"]);
}

/// A lower priority that had to be read first lost its turn to the next one, and when it had been read its turn was over:
/// with less memory than one read of each priority takes, nothing was handed out any more.
#[test]
fn priorities_are_handed_out_with_next_to_no_memory() {
    let limits = Limits { cache_bytes_max: 1 << 10, ..Limits::default() };
    let settings = GroupSettings { priority_share: 2, ..at_once() };
    let mut scene = Scene::new(limits, settings.clone());
    let count = 100;
    let messages: Vec<Message> =
        (0..count).map(|n| Message { priority: (n % 10) as u8, ..Message::new(n.to_string()) }).collect();
    messages.chunks(7).for_each(|some| scene.publish(some));
    scene.world.finish();
    scene.restart();
    for handle in 0..3 {
        let group = format!("g{handle}");
        let settings = GroupSettings { priority_share: 2 + 49 * handle, ..settings.clone() };
        scene.world.subscribe(0, handle, "t", &group, ALL, Some(settings)).unwrap();
    }
    let mut come = 0;
    for _ in 0..10 * count {
        scene.world.answer_all();
        scene.world.finish();
        come += scene.world.delivered.len();
        if come == 3 * count {
            return;
        }
    }
    panic!("{come} have come");
}

/// What waits of each priority, and whose turn it is, as it is promised.
#[derive(Default)]
struct Turns {
    waiting: BTreeMap<u8, VecDeque<String>>,
    /// Messages of the highest priority in a row while lower ones wait.
    in_a_row: u32,
    /// Messages of other lower priorities since this one had one, while it waits.
    passed_over: BTreeMap<u8, u32>,
}

impl Turns {
    fn come(&mut self, body: &str, share: u32) {
        let highest = *self.waiting.last_key_value().expect("something waits").0;
        let lower_wait = self.waiting.len() > 1;
        let (&priority, queue) = self
            .waiting
            .iter_mut()
            .find(|(_, queue)| queue[0] == body)
            .expect("it is the next of its priority");
        queue.pop_front();
        if priority < highest {
            assert!(self.in_a_row + 1 >= share, "{priority} before {highest}, out of turn");
            self.in_a_row = 0;
            for other in self.waiting.keys().filter(|other| **other < highest && **other != priority) {
                let passed_over = self.passed_over.entry(*other).or_default();
                *passed_over += 1;
                // There are eight other lower priorities, and each may have come anew since.
                assert!(*passed_over <= 8, "{other} starves");
            }
        } else if lower_wait {
            self.in_a_row += 1;
            assert!(self.in_a_row < share, "what is lower than {highest} starves");
        } else {
            self.in_a_row = 0;
        }
        self.passed_over.remove(&priority);
        self.waiting.retain(|_, queue| !queue.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_highest_priority_comes_first_but_for_the_share_of_the_lower_ones(
        steps in prop::collection::vec((prop::collection::vec(0_u8..=9, 0..40), 0_u32..30), 1..12),
        share in 2_u32..12,
        policy in prop_oneof![Just(Policy::RoundRobin), Just(Policy::Fair), Just(Policy::Exclusive)],
    ) {
        let settings = GroupSettings { priority_share: share, policy, ..at_once() };
        let mut scene = Scene::new(Limits::default(), settings);
        scene.consume(Window { messages: 0, bytes: 0 });
        let (mut turns, mut count) = (Turns::default(), 0);
        for (priorities, taken) in steps.into_iter().chain([(Vec::new(), 1_000)]) {
            let messages: Vec<Message> = priorities
                .into_iter()
                .map(|priority| {
                    count += 1;
                    turns.waiting.entry(priority).or_default().push_back(count.to_string());
                    Message { priority, ..Message::new(count.to_string()) }
                })
                .collect();
            if !messages.is_empty() {
                scene.publish(&messages);
                scene.run();
            }
            scene.world.flow(0, 0, Window { messages: taken, bytes: u64::MAX });
            scene.run().iter().for_each(|body| turns.come(body, share));
            scene.world.flow(0, 0, Window { messages: 0, bytes: 0 });
            scene.ack_all();
            prop_assert!(scene.run().is_empty());
        }
        prop_assert!(turns.waiting.is_empty());
    }
}
