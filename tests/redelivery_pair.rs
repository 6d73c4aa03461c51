//! What comes back, pulls, turns and lifetimes of groups, end to end: through the client library, on a pair of real
//! processes, with the master killed in the middle.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use batonmq::client::{
    Browsed, Client, ClientError, Consumer, ConsumerOptions, Delivery, ProducerOptions, PullConsumer,
};
use batonmq::model::id::Offset;
use batonmq::model::message::Message;
use batonmq::model::position::Position;
use batonmq::model::retry::ReturnReason;
use batonmq::model::settings::{Backoff, GroupSettings, Lifetime, Policy};
use batonmq::protocol::response::{MessageState, Role};
use support::load::options;
use support::pair::{Node, PATIENCE, two};
use tokio::time::timeout;

const HOUR: Duration = Duration::from_secs(3600);
/// A lease that the test waits for.
const LEASE_MS: u64 = 2_000;

struct Scene {
    nodes: [Node; 2],
    client: Client,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn start(mode: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (nodes, servers) = two(mode, dir.path(), |node| node).await;
        let client = Client::connect(options(&servers)).await.unwrap();
        Self { nodes, client, _dir: dir }
    }

    async fn take_over(&mut self) {
        self.nodes[0].kill();
        self.nodes[1].wait_for(Role::Master).await;
    }

    async fn publish(&self, topic: &str, bodies: &[&str]) {
        let topic = self.client.topic(topic).await.unwrap();
        let producer = self.client.producer(ProducerOptions::default()).await.unwrap();
        for body in bodies {
            producer.publish(&topic, &Message::new((*body).to_owned())).await.unwrap();
        }
        producer.flush().await.unwrap();
    }

    async fn join(
        &self,
        group: &str,
        settings: Option<GroupSettings>,
        prefetch: u32,
        priority: u8,
    ) -> Consumer {
        let options = ConsumerOptions { settings, prefetch, priority, ..ConsumerOptions::new("t", group) };
        self.client.consumer(options).await.unwrap()
    }

    /// Checks that a message of the topic waits for credit in the group `g`.
    async fn has_no_credit_left(&self, offset: u64) {
        let position = Position { priority: 0, offset: Offset(offset) };
        let explanation = self.client.explain("t", position, "g").await.unwrap();
        assert_eq!(explanation.state, MessageState::NoCredit, "{}", explanation.text);
    }

    async fn groups(&self) -> Vec<String> {
        let groups = self.client.groups(Some("t")).await.unwrap();
        groups.into_iter().map(|group| group.name).collect()
    }
}

fn body(delivery: &Delivery) -> &str {
    std::str::from_utf8(&delivery.message.body).unwrap()
}

/// The next `count` deliveries, in the order of their bodies.
async fn take(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = timeout(PATIENCE, consumer.next()).await.expect("something comes");
        taken.push(next.unwrap().unwrap());
    }
    taken.sort_by(|one, other| one.message.body.cmp(&other.message.body));
    taken
}

/// What is told of a delivery: its body, the numbers of the attempt and of the hand-over, and what failed before.
fn told(delivery: &Delivery) -> (&str, u32, u32, Option<(ReturnReason, &str)>) {
    let failure = delivery.failure.as_ref();
    let failure = failure.map(|failure| (failure.reason, failure.text.as_deref().unwrap_or_default()));
    (body(delivery), delivery.attempt, delivery.number, failure)
}

/// Waits until what was in flight to a connection that is gone has come back to the consumer.
async fn joined_again(consumer: &Consumer, before: Instant) {
    let waiting = async {
        while consumer.settler().subscribed_for().is_none_or(|since| since > before.elapsed()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("the consumer joins again");
}

async fn what_came_back_is_counted(mode: &'static str) {
    let mut scene = Scene::start(mode).await;
    let backoff =
        Backoff { initial_ms: 20, multiplier_percent: 200, maximum_ms: 1_000, ..Backoff::default() };
    let settings = GroupSettings { max_attempts: 3, lease_ms: LEASE_MS, backoff, ..GroupSettings::default() };
    let mut consumer = scene.join("g", Some(settings), 10, 0).await;
    let bodies = ["acked", "kept", "later", "nacked", "rejected", "released"];
    scene.publish("t", &bodies).await;
    let first = take(&mut consumer, 6).await;
    assert_eq!(first.iter().map(body).collect::<Vec<_>>(), bodies);
    assert!(first.iter().all(|delivery| (delivery.attempt, delivery.number) == (1, 1)));
    let [acked, _, later, nacked, rejected, released] = &first[..] else { panic!("six") };
    consumer.ack(acked);
    consumer.nack(later, Some(HOUR));
    consumer.nack_because(nacked, Some(Duration::ZERO), "one");
    consumer.reject_because(rejected, "never");
    consumer.release(released);
    consumer.flush().await.unwrap();
    let second = take(&mut consumer, 2).await;
    assert_eq!(told(&second[0]), ("nacked", 2, 2, Some((ReturnReason::Nacked, "one"))));
    assert_eq!(told(&second[1]), ("released", 1, 2, None));
    consumer.nack_because(&second[0], None, "two");
    consumer.flush().await.unwrap();

    scene.take_over().await;
    // What was in flight is counted as no attempt, and marked; what had come back is known.
    let third = take(&mut consumer, 3).await;
    assert_eq!(told(&third[0]), ("kept", 1, 1, None));
    let [_, nacked, released] = &third[..] else { panic!("three") };
    // It may have been handed out again between the flush and the kill.
    assert_eq!((nacked.attempt, nacked.number), (3, 3));
    assert_eq!(told(nacked).3, Some((ReturnReason::Nacked, "two")));
    assert_eq!(told(released), ("released", 1, 2, None));
    assert!(third.iter().all(|delivery| delivery.redelivered));
    consumer.nack_because(nacked, None, "three");
    consumer.ack(released);
    consumer.flush().await.unwrap();
    let fourth = take(&mut consumer, 1).await;
    assert_eq!(told(&fourth[0]), ("kept", 2, 2, Some((ReturnReason::LeaseExpired, ""))));
    // A lease that is extended does not end, however often its time is over.
    let until = Instant::now() + Duration::from_millis(LEASE_MS * 3 / 2);
    while Instant::now() < until {
        consumer.extend(&fourth[0]);
        consumer.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(LEASE_MS / 10)).await;
    }
    assert_eq!(consumer.try_next(), None);
    consumer.ack(&fourth[0]);
    assert_eq!(consumer.flush().await.unwrap(), 1, "the ack counts");

    let mut letters: Vec<Browsed> = Vec::new();
    loop {
        let from = letters.last().map_or(Offset(0), |letter| letter.offset.next());
        let page = scene.client.browse("t.dead-letter", from, 9).await.unwrap();
        if page.is_empty() {
            break;
        }
        letters.extend(page);
    }
    let header = |index: usize, name: &str| {
        let value = letters[index].message.header(name).unwrap();
        std::str::from_utf8(value).unwrap().to_owned()
    };
    let bodies: Vec<&[u8]> = letters.iter().map(|letter| &letter.message.body[..]).collect();
    assert_eq!(bodies, [&b"rejected"[..], b"nacked"]);
    assert_eq!(
        (header(0, "baton.dead.reason"), header(0, "baton.dead.attempts")),
        ("rejected".into(), "1".into())
    );
    assert_eq!(
        (header(1, "baton.dead.reason"), header(1, "baton.dead.attempts")),
        ("nacked".into(), "3".into())
    );
    let said: Vec<String> = header(1, "baton.dead.failures")
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap().into())
        .collect();
    assert_eq!(said, ["one", "two", "three"]);
    let group = scene.client.groups(Some("t")).await.unwrap().remove(0);
    assert_eq!((group.waiting, group.in_flight, group.retries), (1, 0, 1), "one waits for an hour");
}

/// Nothing is there to be pulled before the kill: the pull waits for the next master, and what is published there.
async fn a_pull_waits_for_the_next_master(mode: &'static str) {
    let mut scene = Scene::start(mode).await;
    let mut puller = scene.client.pull_consumer(ConsumerOptions::new("t", "g")).await.unwrap();
    assert_eq!(puller.pull(10, u64::MAX, Duration::from_millis(20)).await.unwrap(), []);
    let pull = |mut puller: PullConsumer| async move {
        let pulled = puller.pull(10, u64::MAX, PATIENCE).await.unwrap();
        (puller, pulled)
    };
    let waiting = tokio::spawn(pull(puller));
    scene.take_over().await;
    scene.publish("t", &["0", "1", "2", "3"]).await;
    let (mut puller, pulled) = waiting.await.unwrap();
    // What was there when the first came: the four were published together or one by one.
    let mut got: Vec<String> = pulled.iter().map(|delivery| body(delivery).to_owned()).collect();
    puller.settler().ack(pulled.last().unwrap());
    while got.len() < 4 {
        let more = puller.pull(1, u64::MAX, PATIENCE).await.unwrap();
        assert_eq!(more.len(), 1, "no more than was asked for");
        got.extend(more.iter().map(|delivery| body(delivery).to_owned()));
    }
    assert_eq!(got, ["0", "1", "2", "3"]);
    let large = "x".repeat(1_000);
    scene.publish("t", &[large.as_str(); 4]).await;
    assert_eq!(puller.pull(10, 2_500, PATIENCE).await.unwrap().len(), 2, "no more bytes than asked for");
    assert_eq!(puller.pull(10, 10, PATIENCE).await.unwrap().len(), 1, "a larger one goes alone");
}

/// Messages go to whose turn it is, before the kill and after it.
async fn turns_are_kept(mode: &'static str, policy: Policy) {
    let mut scene = Scene::start(mode).await;
    let settings = Some(GroupSettings { policy, ..GroupSettings::default() });
    let mut low = scene.join("g", settings.clone(), 3, 1).await;
    let mut one = scene.join("g", settings.clone(), 2, 7).await;
    let mut two = scene.join("g", settings, 2, 7).await;
    let mut before = Instant::now();
    for round in 0..2 {
        scene.publish("t", &["0", "1", "2", "3", "4", "5"]).await;
        // Four for those of the higher priority, who have no more credit then; the rest for the other one.
        for consumer in [&mut one, &mut two] {
            let got = take(consumer, 2).await;
            assert!(body(&got[0]) < "4" && body(&got[1]) < "4", "round {round}: {got:?}");
            let apart = body(&got[1]).parse::<u32>().unwrap() - body(&got[0]).parse::<u32>().unwrap();
            assert_eq!(apart, 2, "they take turns, round {round}");
            got.iter().for_each(|delivery| consumer.ack(delivery));
        }
        let rest = take(&mut low, 2).await;
        assert_eq!(rest.iter().map(body).collect::<Vec<_>>(), ["4", "5"]);
        rest.iter().for_each(|delivery| low.ack(delivery));
        for consumer in [&low, &one, &two] {
            consumer.flush().await.unwrap();
        }
        if round == 0 {
            before = Instant::now();
            scene.take_over().await;
        }
        for consumer in [&low, &one, &two] {
            joined_again(consumer, before).await;
        }
    }
}

/// Who has settled what it had gets the next ones under `fair`; under `round-robin` that makes no difference.
async fn what_is_in_flight_counts_under_fair_only(mode: &'static str) {
    let mut scene = Scene::start(mode).await;
    let of = |policy| Some(GroupSettings { policy, ..GroupSettings::default() });
    let mut pairs = Vec::new();
    for (group, policy, apart) in [("fair", Policy::Fair, [2, 0]), ("turns", Policy::RoundRobin, [1, 1])] {
        let one = scene.join(group, of(policy), 9, 0).await;
        pairs.push((one, scene.join(group, None, 9, 0).await, apart));
    }
    let mut before = Instant::now();
    for round in 0..2 {
        scene.publish("t", &["0", "1", "2", "3"]).await;
        let mut kept = Vec::new();
        for (one, two, _) in &mut pairs {
            take(one, 2).await.iter().for_each(|delivery| one.ack(delivery));
            one.flush().await.unwrap();
            kept.push(take(two, 2).await);
        }
        scene.publish("t", &["4", "5"]).await;
        for ((one, two, [of_one, of_two]), kept) in pairs.iter_mut().zip(&kept) {
            let (first, second) = (take(one, *of_one).await, take(two, *of_two).await);
            let got: Vec<&str> = first.iter().chain(&second).map(body).collect();
            assert_eq!(got.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from(["4", "5"]), "{round}");
            first.iter().for_each(|delivery| one.ack(delivery));
            second.iter().chain(kept).for_each(|delivery| two.ack(delivery));
            one.flush().await.unwrap();
            two.flush().await.unwrap();
        }
        if round == 0 {
            before = Instant::now();
            scene.take_over().await;
        }
        for (one, two, _) in &pairs {
            joined_again(one, before).await;
            joined_again(two, before).await;
        }
    }
}

/// Of a prefetch in bytes a consumer has as many messages as fit, and a larger one alone.
async fn no_more_bytes_are_with_a_consumer_than_it_wants(mode: &'static str) {
    let mut scene = Scene::start(mode).await;
    let small: Vec<String> = (0..4).map(|number| format!("{number:01000}")).collect();
    let large = "9".repeat(10_000);
    let options = ConsumerOptions { prefetch_bytes: 2_500, ..ConsumerOptions::new("t", "g") };
    let mut consumer = scene.client.consumer(options).await.unwrap();
    let bodies: Vec<&str> = small.iter().chain([&large]).map(String::as_str).collect();
    scene.publish("t", &bodies).await;
    let first = take(&mut consumer, 2).await;
    assert_eq!(first.iter().map(body).collect::<Vec<_>>(), bodies[..2]);
    scene.has_no_credit_left(2).await;
    scene.take_over().await;
    let again = take(&mut consumer, 2).await;
    assert_eq!(again.iter().map(body).collect::<Vec<_>>(), bodies[..2], "in flight at the kill");
    scene.has_no_credit_left(2).await;
    again.iter().for_each(|delivery| consumer.ack(delivery));
    consumer.flush().await.unwrap();
    let second = take(&mut consumer, 2).await;
    assert_eq!(second.iter().map(body).collect::<Vec<_>>(), bodies[2..4]);
    consumer.ack(&second[0]);
    consumer.flush().await.unwrap();
    scene.has_no_credit_left(4).await;
    consumer.ack(&second[1]);
    assert_eq!(body(&take(&mut consumer, 1).await[0]), large);
}

async fn groups_live_as_they_should(mode: &'static str) {
    let mut scene = Scene::start(mode).await;
    let living = |lifetime| Some(GroupSettings { lifetime, ..GroupSettings::default() });
    let mut ephemeral = scene.join("ephemeral", living(Lifetime::Ephemeral), 9, 0).await;
    let idle = scene.join("idle", living(Lifetime::Idle(1_000)), 9, 0).await;
    scene.join("durable", None, 9, 0).await.close().await.unwrap();
    scene.publish("t", &["before"]).await;
    take(&mut ephemeral, 1).await.iter().for_each(|delivery| ephemeral.ack(delivery));
    ephemeral.flush().await.unwrap();
    let vacant = Instant::now();
    idle.close().await.unwrap();
    scene.take_over().await;
    scene.publish("t", &["after"]).await;
    assert_eq!(body(&take(&mut ephemeral, 1).await[0]), "after", "it goes on where it was");
    let gone = async {
        while scene.groups().await.contains(&"idle".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("an idle group goes");
    assert!(vacant.elapsed() >= Duration::from_secs(1), "not before its time");
    assert_eq!(scene.groups().await, ["ephemeral", "durable"]);
    let closed = ephemeral.close().await;
    assert!(matches!(closed, Ok(()) | Err(ClientError::SettlementsLost { .. })), "{closed:?}");
    assert_eq!(scene.groups().await, ["durable"], "it goes with its last consumer");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_back_is_counted_in_file_mode() {
    what_came_back_is_counted("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_back_is_counted_in_database_mode() {
    what_came_back_is_counted("database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_waits_for_the_next_master_in_file_mode() {
    a_pull_waits_for_the_next_master("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_waits_for_the_next_master_in_database_mode() {
    a_pull_waits_for_the_next_master("database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn round_robin_turns_are_kept_in_file_mode() {
    turns_are_kept("file", Policy::RoundRobin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn round_robin_turns_are_kept_in_database_mode() {
    turns_are_kept("database", Policy::RoundRobin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fair_turns_are_kept_in_file_mode() {
    turns_are_kept("file", Policy::Fair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fair_turns_are_kept_in_database_mode() {
    turns_are_kept("database", Policy::Fair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_counts_under_fair_only_in_file_mode() {
    what_is_in_flight_counts_under_fair_only("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_counts_under_fair_only_in_database_mode() {
    what_is_in_flight_counts_under_fair_only("database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_bytes_are_with_a_consumer_than_it_wants_in_file_mode() {
    no_more_bytes_are_with_a_consumer_than_it_wants("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_bytes_are_with_a_consumer_than_it_wants_in_database_mode() {
    no_more_bytes_are_with_a_consumer_than_it_wants("database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_live_as_they_should_in_file_mode() {
    groups_live_as_they_should("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_live_as_they_should_in_database_mode() {
    groups_live_as_they_should("database").await;
}
