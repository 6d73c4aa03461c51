//! Browsing costs little, whatever it asks for: a question has a few bytes, and its answer may be the largest message.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use batonmq::broker::{AutoCreate, Broker, Browsed, Command, Content, Output, Read};
use batonmq::model::chunk::{Chunk, Stamp};
use batonmq::model::id::{Sequence, SessionId};
use batonmq::model::limits::{
    BROWSE_READS_MAX, BROWSED_BYTES_MAX, BROWSES_MAX, BROWSES_PER_CONNECTION_MAX, Limits,
};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::{Admin, AdminCommand, BrowseFrom, OpenProducer, Publish};
use batonmq::protocol::response::Reply;

const NOW: Timestamp = Timestamp(1);
/// Topics, each with one message, and nothing of them in memory.
const TOPICS: u32 = 12;

/// A broker, and a store in which every message is this one.
struct Scene {
    broker: Broker,
    block: MessageBlock,
    out: Output,
}

impl Scene {
    fn new(body_bytes: usize) -> Self {
        let limits = Limits { cache_bytes_max: 0, ..Limits::default() };
        let broker = Broker::new(Snapshot::default(), limits, AutoCreate::Allowed);
        let block = MessageBlock::encode(&[Message::new(vec![7; body_bytes])]);
        let mut scene = Self { broker, block, out: Output::default() };
        scene.handle(0, Command::Begin);
        scene.handle(
            0,
            Command::OpenProducer(OpenProducer { request: 1, producer: 1, name: "p".into(), resume: None }),
        );
        for topic in 0..TOPICS {
            let command = AdminCommand::CreateTopic { name: name(topic), settings: Default::default() };
            scene.handle(0, Command::Admin(Admin { request: 1, command }));
        }
        let topics: Vec<_> = scene.broker.snapshot().topics.into_keys().collect();
        for (sequence, topic) in (1..).zip(topics) {
            let head = Publish { producer: 1, sequence: Sequence(sequence), parts: vec![(topic, 1)] };
            scene.handle(0, Command::Publish(head, scene.block.clone()));
            scene.finish();
        }
        scene
    }

    fn handle(&mut self, session: u64, command: Command) {
        self.broker.handle(NOW, SessionId(session), command, &mut self.out);
    }

    fn browse(&mut self, session: u64, topic: u32) {
        let command = AdminCommand::Browse {
            topic: name(topic),
            group: None,
            from: BrowseFrom::Beginning,
            since: Timestamp(0),
            filter: None,
            messages_max: 10,
        };
        self.handle(session, Command::Begin);
        self.handle(session, Command::Admin(Admin { request: 2, command }));
    }

    /// Ends the cycle. Answers what it reads, and who gets which answer.
    fn finish(&mut self) -> (Vec<Read>, Vec<(SessionId, Browsed)>, Vec<ErrorCode>) {
        self.broker.finish(NOW, &mut self.out);
        let (mut answers, mut refused) = (Vec::new(), Vec::new());
        for effect in std::mem::take(&mut self.out.effects) {
            match effect.content {
                Content::Browsed(browsed) => answers.push((effect.session, browsed)),
                Content::Reply(_, Err(refusal)) => refused.push(refusal.code),
                Content::Reply(_, Ok(Reply::Done | Reply::Producer { .. })) | Content::Confirm(_) => {}
                other => panic!("{other:?}"),
            }
        }
        (std::mem::take(&mut self.out.reads), answers, refused)
    }

    fn load(&mut self, read: Read) {
        let stamps = vec![Stamp { count: 1, published_at: NOW, origin: None }];
        let chunk = Chunk { first: read.from, block: self.block.clone(), stamps };
        self.broker.loaded(NOW, read, Some(chunk), &mut self.out);
    }
}

fn name(topic: u32) -> String {
    format!("t{topic:02}")
}

/// Each of the clients that waited for one read got a copy of its own, and each browse read at once: some hundred
/// bytes of questions took gigabytes.
#[test]
fn few_browses_read_at_a_time_and_answers_share_what_was_read() {
    let mut scene = Scene::new(3 << 20);
    for session in 1..=10 {
        scene.browse(session, 0);
    }
    for topic in 1..TOPICS {
        scene.browse(u64::from(100 + topic), topic);
    }
    let (mut reads, mut answers) = (scene.finish().0, Vec::new());
    while !reads.is_empty() {
        assert!(reads.len() <= BROWSE_READS_MAX);
        scene.load(reads.remove(0));
        let (more, answered, _) = scene.finish();
        reads.extend(more);
        answers.extend(answered);
    }
    assert_eq!(answers.len(), 10 + TOPICS as usize - 1);
    for (_, browsed) in &answers {
        assert_eq!(browsed.messages.concat(), scene.block.bytes().as_ref());
        assert_eq!(browsed.messages[0].as_ptr(), scene.block.bytes().as_ptr(), "a copy");
    }
}

/// What is not taken stays in memory for as long as its client likes.
#[test]
fn nothing_is_read_while_clients_hold_much_and_do_not_take_it() {
    const BODY: usize = 40 << 20;
    let mut scene = Scene::new(BODY);
    for topic in 0..TOPICS {
        scene.browse(u64::from(1 + topic), topic);
    }
    let (mut reads, mut holders) = (scene.finish().0, Vec::new());
    while let Some(read) = reads.pop() {
        scene.load(read);
        let (more, answers, _) = scene.finish();
        reads.extend(more);
        for (session, _) in answers {
            scene.handle(session.0, Command::OutputFull);
            holders.push(session.0);
        }
    }
    let held = holders.len() * BODY;
    assert!(held >= BROWSED_BYTES_MAX, "{held}");
    assert!(held <= BROWSED_BYTES_MAX + BROWSE_READS_MAX * BODY, "{held}");
    assert!(scene.finish().0.is_empty());
    assert_eq!(scene.broker.next_timeout(), None, "there is nothing to do until somebody reads or goes");
    // One reads what it has, another goes: others get their turn.
    scene.handle(holders[0], Command::OutputReady);
    scene.handle(holders[1], Command::End(batonmq::broker::Ending::Lost));
    assert!(!scene.finish().0.is_empty());
}

/// A client that takes its answers at once waits for nobody.
#[test]
fn answers_that_are_taken_make_room_at_once() {
    let mut scene = Scene::new(40 << 20);
    for topic in 0..TOPICS {
        scene.browse(1, topic);
    }
    let (mut reads, mut answers) = (scene.finish().0, 0);
    for _ in 0..4 * TOPICS {
        if let Some(read) = reads.pop() {
            scene.load(read);
        }
        let (more, answered, _) = scene.finish();
        reads.extend(more);
        answers += answered.len();
        assert!(!reads.is_empty() || answers == TOPICS as usize || scene.broker.next_timeout() == Some(NOW));
    }
    assert_eq!(answers, TOPICS as usize);
}

#[test]
fn browses_that_wait_are_few_for_each_connection_and_in_all() {
    let mut scene = Scene::new(10);
    for _ in 0..=BROWSES_PER_CONNECTION_MAX {
        scene.browse(1, 0);
    }
    let (_, _, refused) = scene.finish();
    assert_eq!(refused, [ErrorCode::Limit]);
    for session in 2..200 {
        scene.browse(session, 1);
    }
    let (_, _, refused) = scene.finish();
    assert_eq!(refused.len(), 198 + BROWSES_PER_CONNECTION_MAX - BROWSES_MAX);
}
