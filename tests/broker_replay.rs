//! Dead letters that are replayed or dropped: in one of both places at any time, and replayed for the group in which they
//! died unless somebody wants more. The model of `broker_world` watches.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker_world;

use std::collections::BTreeMap;

use batonmq::broker::{AutoCreate, Ending};
use batonmq::model::id::{Offset, OffsetRange, Sequence, SessionId, TopicId};
use batonmq::model::limits::{LETTERS_MAX, Limits, REPLAYS_MAX};
use batonmq::model::message::Message;
use batonmq::model::settings::{GroupSettings, Retention, Start, TopicSettings};
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::*;
use batonmq::protocol::response::{Replayed, Reply};
use broker_world::World;
use proptest::prelude::*;

/// A world where the messages of topic `t`, numbers 0, 1 and so on, are all rejected. Answers `t` and its dead letters.
fn world(limits: Limits, count: u32) -> (World, TopicId, TopicId) {
    let mut world = World::new(limits, AutoCreate::Allowed);
    world.begin(0);
    world.open(0, 0, "p");
    let topic = world.find_topic(0, "t").unwrap();
    world.subscribe(0, 0, "t", "g", Window { messages: count, bytes: u64::MAX }, None);
    world.publish(0, 0, 1, vec![(topic, count)]);
    world.finish();
    let all = vec![OffsetRange::new(0, u64::from(count))];
    world.settle(0, 0, Settlement::Reject { reason: Some("no".into()) }, all);
    settle_down(&mut world);
    world.unsubscribe(0, 0);
    world.finish();
    let dead = world.find_topic(0, "t.dead-letter").unwrap();
    assert_eq!(world.store[&dead].len(), count as usize);
    (world, topic, dead)
}

/// Ends cycles until nothing is left to be done now.
fn settle_down(world: &mut World) {
    loop {
        world.finish();
        let due = world.broker.next_timeout().is_some_and(|at| at <= world.now);
        if world.reads.is_empty() && !due {
            return;
        }
        world.answer_all();
    }
}

fn ask(world: &mut World, topic: TopicId, offsets: &[u64], to: ReplayTo) -> RequestId {
    world.taken_out.extend(offsets.iter().map(|offset| (topic, *offset)));
    world.replays_to_group = to == ReplayTo::Group;
    let offsets = offsets.iter().copied().map(Offset).collect();
    world.admin(0, AdminCommand::ReplayDeadLetters { topic, offsets, to })
}

fn drop_messages(world: &mut World, topic: TopicId, offsets: &[u64]) -> RequestId {
    world.taken_out.extend(offsets.iter().map(|offset| (topic, *offset)));
    let offsets = offsets.iter().copied().map(Offset).collect();
    world.admin(0, AdminCommand::DropMessages { topic, offsets })
}

fn answer(world: &World, request: RequestId) -> Option<Result<Reply, Refusal>> {
    world.replies.iter().find(|reply| reply.1 == request).map(|reply| reply.2.clone())
}

fn replayed(world: &World, request: RequestId) -> Replayed {
    match answer(world, request) {
        Some(Ok(Reply::Replayed(replayed))) => replayed,
        other => panic!("{other:?}"),
    }
}

/// Offsets and bodies of what is in a topic.
fn contents(world: &World, topic: TopicId) -> Vec<(u64, String)> {
    let stored = world.store.get(&topic).into_iter().flatten();
    let text = |body: &[u8]| String::from_utf8(body.to_vec()).unwrap();
    stored.map(|(offset, stored)| (*offset, text(&stored.message.body))).collect()
}

#[test]
fn replayed_letters_are_back_where_they_came_from_with_their_history() {
    let (mut world, topic, dead) = world(Limits::default(), 5);
    let bodies: Vec<String> = contents(&world, dead).into_iter().map(|(_, body)| body).collect();
    let before = world.fold.topics[&topic].end.0;
    let request = ask(&mut world, dead, &[3, 1, 3], ReplayTo::Group);
    world.finish();
    assert_eq!(replayed(&world, request), Replayed { replayed: 2, ..Replayed::default() });
    let back = [(before, bodies[1].clone()), (before + 1, bodies[3].clone())];
    assert_eq!(contents(&world, topic), back);
    let left: Vec<u64> = contents(&world, dead).iter().map(|(offset, _)| *offset).collect();
    assert_eq!(left, [0, 2, 4]);
    let stored = &world.store[&topic][&before];
    assert_eq!(stored.origin.unwrap().sequence, Sequence(2), "it keeps its origin");
    assert_eq!(stored.message.header("baton.dead.topic"), None);
    let history = stored.message.header("baton.dead.history").unwrap().to_vec();
    assert!(
        String::from_utf8(history).unwrap().contains(" topic=t offset=1 group=g attempts=1 reason=rejected ")
    );
    // Asked again, as by a client that lost the answer, nothing happens twice.
    let again = ask(&mut world, dead, &[1, 3], ReplayTo::Group);
    world.finish();
    assert_eq!(replayed(&world, again), Replayed { gone: 2, ..Replayed::default() });
    assert_eq!(contents(&world, topic).len(), 2);
}

#[test]
fn a_group_gets_what_was_replayed_and_it_can_die_again() {
    let (mut world, topic, dead) = world(Limits::default(), 1);
    ask(&mut world, dead, &[0], ReplayTo::Group);
    world.subscribe(0, 1, "t", "g", Window { messages: 9, bytes: u64::MAX }, None);
    world.finish();
    assert_eq!(world.delivered.iter().map(|delivered| delivered.3).collect::<Vec<_>>(), [1]);
    world.settle(0, 1, Settlement::Reject { reason: None }, vec![OffsetRange::new(1, 2)]);
    settle_down(&mut world);
    assert_eq!(contents(&world, topic), []);
    let letter = &world.store[&dead][&1].message;
    assert_eq!(letter.header("baton.dead.offset").unwrap(), "1");
    let history = String::from_utf8(letter.header("baton.dead.history").unwrap().to_vec()).unwrap();
    assert_eq!(history.lines().count(), 1, "{history}");
}

#[test]
fn letters_go_to_another_topic_where_that_is_wanted() {
    let (mut world, topic, dead) = world(Limits::default(), 3);
    let request = ask(&mut world, dead, &[0, 2], ReplayTo::Topic("elsewhere".into()));
    world.finish();
    assert_eq!(replayed(&world, request).replayed, 2);
    let elsewhere = world.find_topic(0, "elsewhere").unwrap();
    assert_eq!((contents(&world, elsewhere).len(), contents(&world, topic).len()), (2, 0));
    let wrong = ask(&mut world, dead, &[1], ReplayTo::Topic("no topic!".into()));
    assert_eq!(answer(&world, wrong).unwrap().unwrap_err().code, ErrorCode::Invalid);
}

/// More than a cycle replays, none of it in memory, and the node dies after each cycle.
#[test]
fn each_letter_is_in_one_of_both_places_whenever_the_node_dies() {
    let limits = Limits { cache_bytes_max: 0, ..Limits::default() };
    let (mut world, topic, dead) = world(limits, 700);
    let all: Vec<u64> = (0..700).collect();
    let mut rounds = 0;
    while !contents(&world, dead).is_empty() {
        ask(&mut world, dead, &all, ReplayTo::Group);
        world.finish();
        world.answer_all();
        world.finish();
        let (back, left) = (contents(&world, topic), contents(&world, dead));
        assert_eq!(back.len() + left.len(), 700);
        assert!(
            left.len() >= 700_usize.saturating_sub(256 * (rounds + 1)),
            "a bounded part of it in a cycle"
        );
        world.restart();
        world.begin(0);
        rounds += 1;
    }
    assert!((3..20).contains(&rounds), "{rounds}");
    let numbers: Vec<u64> = contents(&world, topic)
        .iter()
        .map(|(_, body)| body.rsplit_once(':').unwrap().1.trim().parse().unwrap())
        .collect();
    assert_eq!(numbers, (1..=700).collect::<Vec<_>>(), "once each, in their order");
    assert_eq!(world.fold.topics[&dead].start, Offset(700));
}

#[test]
fn what_a_consumer_of_the_dead_letters_holds_stays_with_it() {
    let (mut world, topic, dead) = world(Limits::default(), 4);
    world.subscribe(0, 1, "t.dead-letter", "people", Window { messages: 2, bytes: u64::MAX }, None);
    world.subscribe(0, 2, "t.dead-letter", "others", Window { messages: 0, bytes: 0 }, None);
    world.finish();
    assert_eq!(world.delivered.len(), 2);
    let request = ask(&mut world, dead, &[0, 1, 2, 3], ReplayTo::Group);
    world.finish();
    assert_eq!(replayed(&world, request), Replayed { replayed: 2, held: 2, ..Replayed::default() });
    assert_eq!(contents(&world, topic).len(), 2);
    let dropped = drop_messages(&mut world, dead, &[0, 1, 2]);
    assert_eq!(answer(&world, dropped), Some(Ok(Reply::Dropped { count: 0 })));
    world.finish();
    world.settle(0, 1, Settlement::Ack, vec![OffsetRange::new(0, 1)]);
    world.settle(0, 1, Settlement::Release, vec![OffsetRange::new(1, 2)]);
    world.flow(0, 1, Window { messages: 0, bytes: 0 });
    world.finish();
    let dropped = drop_messages(&mut world, dead, &[0, 1, 2, 3]);
    assert_eq!(
        answer(&world, dropped),
        Some(Ok(Reply::Dropped { count: 2 })),
        "not what it acked before alone"
    );
    world.finish();
    assert_eq!(contents(&world, dead), []);
    world.flow(0, 1, Window { messages: 9, bytes: u64::MAX });
    world.flow(0, 2, Window { messages: 9, bytes: u64::MAX });
    world.finish();
    assert_eq!(world.delivered, [], "what is taken out is not handed out any more");
}

#[test]
fn what_has_no_home_and_what_is_not_there_stays_or_is_passed_over() {
    let (mut world, topic, dead) = world(Limits::default(), 2);
    world.publish(0, 0, 3, vec![(dead, 1)]);
    world.finish();
    let request = ask(&mut world, dead, &[2, 9], ReplayTo::Group);
    world.finish();
    assert_eq!(replayed(&world, request), Replayed { homeless: 1, gone: 1, ..Replayed::default() });
    world.begin(1);
    let many = vec![0; LETTERS_MAX + 1];
    let request = ask(&mut world, dead, &many, ReplayTo::Group);
    assert_eq!(answer(&world, request).unwrap().unwrap_err().code, ErrorCode::Invalid);
    let request = drop_messages(&mut world, TopicId(99), &[0]);
    assert_eq!(answer(&world, request).unwrap().unwrap_err().code, ErrorCode::UnknownTopic);
    // Its origin is gone, and its group with it: it is made again for all groups, where using a topic makes it.
    world.admin(0, AdminCommand::DeleteTopic { name: "t".into() });
    world.finish();
    let request = ask(&mut world, dead, &[0], ReplayTo::Group);
    world.finish();
    assert_eq!(replayed(&world, request), Replayed { groupless: 1, ..Replayed::default() });
    assert_eq!(world.topic_named("t"), None);
    let request = ask(&mut world, dead, &[0], ReplayTo::AllGroups);
    world.finish();
    assert_eq!(replayed(&world, request).replayed, 1);
    let again = world.find_topic(0, "t").unwrap();
    assert_ne!(again, topic);
    assert_eq!(contents(&world, again).len(), 1);
}

#[test]
fn a_full_store_leaves_the_letters_where_they_are() {
    let (mut world, topic, dead) = world(Limits::default(), 2);
    world.broker.begin_cycle(100);
    let request = ask(&mut world, dead, &[0, 1], ReplayTo::Group);
    world.finish();
    assert_eq!(answer(&world, request).unwrap().unwrap_err().code, ErrorCode::StoreFull);
    assert_eq!((contents(&world, dead).len(), contents(&world, topic).len()), (2, 0));
}

#[test]
fn requests_wait_in_a_bounded_line_and_go_with_their_session() {
    let limits = Limits { cache_bytes_max: 0, ..Limits::default() };
    let (mut world, topic, dead) = world(limits, 2);
    let requests: Vec<RequestId> =
        (0..=REPLAYS_MAX).map(|_| ask(&mut world, dead, &[0], ReplayTo::Group)).collect();
    assert_eq!(answer(&world, requests[REPLAYS_MAX]).unwrap().unwrap_err().code, ErrorCode::Limit);
    world.finish();
    assert_eq!(world.reads.len(), 1, "one thing is read at a time");
    world.end(0, Ending::Lost);
    settle_down(&mut world);
    assert_eq!((contents(&world, dead).len(), contents(&world, topic).len()), (2, 0));
    world.begin(0);
    let request = ask(&mut world, dead, &[0, 1], ReplayTo::Group);
    settle_down(&mut world);
    assert_eq!(replayed(&world, request).replayed, 2);
}

/// Less than there often is: what is behind it is judged when it is published.
const FEW: Window = Window { messages: 3, bytes: u64::MAX };

fn change_group(world: &mut World, name: &str, settings: GroupSettings) {
    let (topic, name) = ("t".into(), name.into());
    world.admin(0, AdminCommand::ChangeGroup { topic, name, settings });
}

#[test]
fn what_the_filter_of_its_group_does_not_match_any_more_stays() {
    let (mut world, topic, dead) = world(Limits::default(), 2);
    let filter = Some("x = 'y'".to_owned());
    change_group(&mut world, "g", GroupSettings { filter, ..GroupSettings::default() });
    let request = ask(&mut world, dead, &[0, 1], ReplayTo::Group);
    world.finish();
    assert_eq!(replayed(&world, request), Replayed { unwanted: 2, ..Replayed::default() });
    change_group(&mut world, "g", GroupSettings::default());
    let request = ask(&mut world, dead, &[0, 1], ReplayTo::Group);
    world.finish();
    assert_eq!((replayed(&world, request).replayed, contents(&world, topic).len()), (2, 2));
}

/// A letter for one group would be the newest of its key for all, and take the place of what others still need.
#[test]
fn a_topic_of_last_values_gets_letters_for_all_groups_only() {
    let (mut world, topic, dead) = world(Limits::default(), 1);
    let kept = TopicSettings { last_value: true, ..TopicSettings::default() };
    let retention = Retention { acked: false, ..kept.retention };
    let settings = TopicSettings { retention, ..kept };
    world.admin(0, AdminCommand::ChangeTopic { name: "t".into(), settings });
    world.finish();
    let request = ask(&mut world, dead, &[0], ReplayTo::Group);
    world.finish();
    assert_eq!(replayed(&world, request), Replayed { last_values: 1, ..Replayed::default() });
    let request = ask(&mut world, dead, &[0], ReplayTo::AllGroups);
    world.finish();
    assert_eq!((replayed(&world, request).replayed, contents(&world, topic).len()), (1, 1));
}

#[test]
fn a_group_that_has_too_many_gaps_gets_no_more_of_them() {
    let (mut world, topic, dead) = world(Limits { settled_ranges_max: 16, ..Limits::default() }, 12);
    world.subscribe(0, 1, "t", "other", Window { messages: 0, bytes: 0 }, None);
    world.finish();
    let mut request = 0;
    for letter in 0..9 {
        world.publish(0, 0, 13 + letter, vec![(topic, 1)]);
        request = ask(&mut world, dead, &[letter], ReplayTo::Group);
        world.finish();
    }
    let refusal = answer(&world, request).unwrap().unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Limit);
    assert!(refusal.text.contains("group other has 8 gaps"), "{}", refusal.text);
    assert_eq!(contents(&world, dead).len(), 4);
    let request = ask(&mut world, dead, &[8], ReplayTo::AllGroups);
    world.finish();
    assert_eq!(replayed(&world, request).replayed, 1);
}

/// A group as a naive model has it: what it is to get how often, and has acked.
#[derive(Default)]
struct Model {
    is_there: bool,
    owed: BTreeMap<String, u64>,
    acked: BTreeMap<String, u64>,
}

/// Two groups of a topic, the second one with a filter, and one of a pattern with the name of the first one.
const GROUPS: [(&str, &str); 3] = [("t", "a"), ("t", "b"), ("#", "a")];
const FILTER: &str = "x = 'y'";

fn matches(message: &Message) -> bool {
    message.header("x").is_some_and(|value| value == "y")
}

struct Scene {
    world: World,
    topic: TopicId,
    published: u64,
    models: [Model; 3],
}

impl Scene {
    fn new(limits: Limits) -> Self {
        let mut world = World::new(limits, AutoCreate::Allowed);
        world.filters = BTreeMap::from([(FILTER.to_owned(), matches as fn(&Message) -> bool)]);
        world.begin(0);
        let topic = world.find_topic(0, "t").unwrap();
        let mut scene = Self { world, topic, published: 0, models: Default::default() };
        (0..3).for_each(|index| scene.make(index));
        scene.begin();
        scene
    }

    /// A producer, and a consumer in each group, which is the session behind the number of the group.
    fn begin(&mut self) {
        self.world.open(0, 0, "p");
        for (index, (topic, group)) in GROUPS.into_iter().enumerate() {
            self.world.begin(index as u64 + 1);
            if self.models[index].is_there {
                self.world.subscribe(index as u64 + 1, 0, topic, group, FEW, None).unwrap();
            }
        }
        settle_down(&mut self.world);
    }

    fn make(&mut self, index: usize) {
        let (topic, name) = GROUPS[index];
        let filter = (index == 1).then(|| FILTER.to_owned());
        let settings = GroupSettings { filter, ..GroupSettings::default() };
        let (topic, name) = (topic.to_owned(), name.to_owned());
        self.world.admin(0, AdminCommand::CreateGroup { topic, name, settings, start: Start::Latest });
        self.models[index] = Model { is_there: true, ..Model::default() };
    }

    fn owe(&mut self, index: usize, message: &Message) {
        let body = String::from_utf8(message.body.to_vec()).unwrap();
        if self.models[index].is_there && (index != 1 || matches(message)) {
            *self.models[index].owed.entry(body).or_default() += 1;
        }
    }

    fn publish(&mut self, count: u64, priority: u8, is_wanted: bool) {
        let header = is_wanted.then(|| ("x".to_owned(), "y".into()));
        let message = |index| Message {
            priority,
            headers: header.clone().into_iter().collect(),
            ..Message::new(format!("m{index}"))
        };
        let messages: Vec<Message> = (self.published..self.published + count).map(message).collect();
        let parts = vec![(self.topic, count as u32)];
        self.world.publish_messages(0, 0, self.published + 1, parts, &messages);
        self.published += count;
        for message in &messages {
            (0..3).for_each(|index| self.owe(index, message));
        }
        self.world.finish();
    }

    /// What the consumer of a group has in flight: topics and offsets.
    fn held(&self, index: usize) -> Vec<(TopicId, u64)> {
        let session = SessionId(index as u64 + 1);
        let Some(group) = self.world.clients[&session].consumers.get(&0) else { return Vec::new() };
        let parts = self.world.parts(*group).into_iter();
        let held = parts.flat_map(|part| {
            let topic = self.world.fold.groups[&part].topic;
            let held = self.world.groups[&part].iter().filter(|(_, known)| known.holder.is_some());
            held.map(move |(offset, _)| (topic, *offset)).collect::<Vec<_>>()
        });
        held.collect()
    }

    fn settle(&mut self, index: usize, most: usize, settlement: &Settlement) {
        for (topic, offset) in self.held(index).into_iter().take(most) {
            let body = self.world.store[&topic][&offset].message.body.to_vec();
            let body = String::from_utf8(body).unwrap();
            let range = vec![OffsetRange::new(offset, offset + 1)];
            self.world.settle_in(index as u64 + 1, 0, topic, settlement.clone(), range);
            if *settlement == Settlement::Ack {
                *self.models[index].acked.entry(body).or_default() += 1;
            } else {
                *self.models[index].owed.get_mut(&body).unwrap() -= 1;
                self.models[index].owed.retain(|_, count| *count > 0);
            }
        }
        settle_down(&mut self.world);
    }

    /// Replays the first letters, and foretells what comes of it.
    fn replay(&mut self, most: usize, to: &ReplayTo) {
        let Some(dead) = self.world.topic_named("t.dead-letter") else { return };
        let letters = self.world.store.get(&dead).into_iter().flatten().take(most);
        let letters: Vec<(u64, Message)> =
            letters.map(|(offset, stored)| (*offset, stored.message.clone())).collect();
        let offsets: Vec<u64> = letters.iter().map(|letter| letter.0).collect();
        let request = ask(&mut self.world, dead, &offsets, to.clone());
        let mut expected = Replayed::default();
        for (_, letter) in &letters {
            let text = |name| letter.header(name).map(|value| std::str::from_utf8(value).unwrap());
            let own = (text("baton.dead.pattern").unwrap_or("t"), text("baton.dead.group").unwrap());
            let index = GROUPS.iter().position(|group| *group == own).unwrap();
            match to {
                ReplayTo::Group if !self.models[index].is_there => {
                    expected.groupless += 1;
                    continue;
                }
                ReplayTo::Group => self.owe(index, letter),
                _ => (0..3).for_each(|index| self.owe(index, letter)),
            }
            expected.replayed += 1;
        }
        settle_down(&mut self.world);
        assert_eq!(replayed(&self.world, request), expected);
    }

    /// Each group gets what it is still owed, and nothing else.
    fn end(mut self) {
        self.world.restart();
        self.world.begin(0);
        self.begin();
        for (index, group) in GROUPS.into_iter().enumerate() {
            while !self.held(index).is_empty() {
                self.settle(index, usize::MAX, &Settlement::Ack);
            }
            assert_eq!(self.models[index].acked, self.models[index].owed, "group {group:?}");
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Publish { count: u64, priority: u8, is_wanted: bool },
    Ack { group: usize, most: usize },
    Reject { group: usize, most: usize },
    Replay { most: usize, to: ReplayTo },
    Toggle { group: usize },
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let to = prop_oneof![4 => Just(ReplayTo::Group), 1 => Just(ReplayTo::AllGroups)];
    let publish = (1..5_u64, prop::sample::select(vec![0, 0, 7]), any::<bool>());
    prop_oneof![
        4 => publish
            .prop_map(|(count, priority, is_wanted)| Act::Publish { count, priority, is_wanted }),
        3 => (0..3_usize, 1..5_usize).prop_map(|(group, most)| Act::Ack { group, most }),
        4 => (0..3_usize, 1..5_usize).prop_map(|(group, most)| Act::Reject { group, most }),
        4 => (1..6_usize, to).prop_map(|(most, to)| Act::Replay { most, to }),
        1 => (0..3_usize).prop_map(|group| Act::Toggle { group }),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// A letter that is replayed goes to the group in which it died, once, and to no other; or to all, if that is meant.
    #[test]
    fn each_group_gets_what_it_is_owed(acts in prop::collection::vec(act(), 1..40), in_memory: bool) {
        let cache_bytes_max = if in_memory { Limits::default().cache_bytes_max } else { 0 };
        let mut scene = Scene::new(Limits { cache_bytes_max, ..Limits::default() });
        for act in acts {
            match act {
                Act::Publish { count, priority, is_wanted } => scene.publish(count, priority, is_wanted),
                Act::Ack { group, most } => scene.settle(group, most, &Settlement::Ack),
                Act::Reject { group, most } => {
                    scene.settle(group, most, &Settlement::Reject { reason: None });
                }
                Act::Replay { most, to } => scene.replay(most, &to),
                Act::Toggle { group } if scene.models[group].is_there => {
                    let (topic, name) = GROUPS[group];
                    let (topic, name) = (topic.to_owned(), name.to_owned());
                    scene.world.admin(0, AdminCommand::DeleteGroup { topic, name });
                    scene.models[group] = Model::default();
                    settle_down(&mut scene.world);
                }
                Act::Toggle { group } => {
                    scene.make(group);
                    let (topic, name) = GROUPS[group];
                    scene.world.subscribe(group as u64 + 1, 0, topic, name, FEW, None).unwrap();
                    settle_down(&mut scene.world);
                }
                Act::Restart => {
                    scene.world.restart();
                    scene.world.begin(0);
                    scene.begin();
                }
            }
        }
        scene.end();
    }
}
