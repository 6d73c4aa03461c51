//! Finding the master, and finding it again.

use std::time::{Duration, Instant};

use batonmq::client::{
    AttemptError, Client, ClientError, ClientOptions, ConsumerOptions, ProducerOptions, ReconnectBackoff,
    status_of,
};
use batonmq::model::id::Epoch;
use batonmq::model::message::Message;
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::Request;
use batonmq::protocol::response::Role;
use tokio::net::TcpListener;

use crate::node::{Behaviour, Node};
use crate::{connected, options, soon, until, world};

fn standby(master: Option<&Node>) -> Behaviour {
    Behaviour { not_master: Some(master.map(|node| node.address.clone())), ..Behaviour::default() }
}

#[tokio::test]
async fn a_standby_leads_to_the_master_that_it_names() {
    let world = world();
    let master = Node::start(&world, Behaviour::default()).await;
    let other = Node::start(&world, standby(Some(&master))).await;
    let client = soon(Client::connect(options(&[&other]))).await.unwrap();
    assert_eq!(client.master().unwrap().address, master.address);
}

#[tokio::test]
async fn the_master_is_found_among_nodes_that_are_not() {
    let world = world();
    let mute = Node::start(&world, Behaviour { mute: true, ..Behaviour::default() }).await;
    let other = Node::start(&world, standby(None)).await;
    let master = Node::start(&world, Behaviour::default()).await;
    // Longer than this test waits: it passes only if the mute node holds nobody up.
    let attempt_timeout = Duration::from_secs(3600);
    let options = ClientOptions { attempt_timeout, ..options(&[&mute, &other, &master]) };
    let client = soon(Client::connect(options)).await.unwrap();
    assert_eq!(client.master().unwrap().address, master.address);
}

#[tokio::test]
async fn a_node_of_a_lower_epoch_is_refused() {
    let world = world();
    let new = Node::start(&world, Behaviour { epoch: 7, ..Behaviour::default() }).await;
    let old = Node::start(&world, Behaviour { epoch: 6, ..standby(None) }).await;
    let client = soon(Client::connect(options(&[&new, &old]))).await.unwrap();
    assert_eq!(client.master().unwrap().welcome.epoch, Epoch(7));
    old.set(|behaviour| behaviour.not_master = None);
    new.kill().await;
    until(|| client.master().is_none()).await;
    let found = tokio::time::timeout(Duration::from_millis(300), client.status()).await;
    assert!(found.is_err(), "the node of epoch 6 was used after epoch 7 was seen");
    old.set(|behaviour| behaviour.epoch = 8);
    assert_eq!(soon(client.status()).await.unwrap().epoch, Epoch(8));
}

/// What was seen over all connections counts, and nothing of what a client has reaches such a node.
#[tokio::test]
async fn nothing_of_a_client_reaches_a_node_of_an_epoch_below_any_that_it_has_seen() {
    let (world, old_world) = (world(), world());
    let first = Node::start(&world, Behaviour { epoch: 7, ..Behaviour::default() }).await;
    let second = Node::start(&world, Behaviour { epoch: 9, ..standby(None) }).await;
    let old = Node::start(&old_world, Behaviour { epoch: 8, ..standby(None) }).await;
    let client = soon(Client::connect(options(&[&first, &second, &old]))).await.unwrap();
    let topic = soon(client.topic("t")).await.unwrap();
    let producer = soon(client.producer(ProducerOptions::default())).await.unwrap();
    let _consumer = soon(client.consumer(ConsumerOptions::new("t", "g"))).await.unwrap();
    let _puller = soon(client.pull_consumer(ConsumerOptions::new("u", "g"))).await.unwrap();
    first.kill().await;
    second.set(|behaviour| behaviour.not_master = None);
    assert_eq!(soon(client.master_after(Epoch(7))).await.unwrap().welcome.epoch, Epoch(9));
    soon(producer.send(&topic, &Message::new("seen by epoch 9"))).await.unwrap();

    old.set(|behaviour| behaviour.not_master = None);
    second.kill().await;
    let attempts = old_world.lock().unwrap().connected_at.len();
    let sending = tokio::spawn(async move { producer.send(&topic, &Message::new("not for epoch 8")).await });
    until(|| old_world.lock().unwrap().connected_at.len() > attempts + 3).await;
    assert!(client.master().is_none(), "the node of epoch 8 was used after epoch 9 was seen");
    let is_hello = |frame: &Request| matches!(frame, Request::Hello(hello) if hello.epoch_seen == Epoch(9));
    let after: Vec<_> = old_world.lock().unwrap().frames.iter().rev().take(3).cloned().collect();
    assert!(after.iter().all(is_hello), "{after:?}");
    sending.abort();
    old.set(|behaviour| behaviour.epoch = 10);
    assert_eq!(soon(client.master_after(Epoch(9))).await.unwrap().welcome.epoch, Epoch(10));
}

#[tokio::test]
async fn a_node_of_another_store_is_refused() {
    let world = world();
    let ours = Node::start(&world, Behaviour::default()).await;
    let theirs = Node::start(&world, Behaviour { store_id: "other", epoch: 9, ..standby(None) }).await;
    let servers = options(&[&ours, &theirs]);
    let client =
        Client::connect(ClientOptions { timeout: Duration::from_millis(300), ..servers }).await.unwrap();
    theirs.set(|behaviour| behaviour.not_master = None);
    let address = ours.address.clone();
    ours.kill().await;
    until(|| client.master().is_none()).await;
    let error = soon(client.status()).await.unwrap_err();
    assert!(matches!(error, ClientError::NoMaster { .. }), "{error}");
    let listener = TcpListener::bind(&address).await.unwrap();
    let _back = Node::on(listener, &world, Behaviour { epoch: 2, ..Behaviour::default() });
    assert_eq!(soon(client.status()).await.unwrap().epoch, Epoch(2));
}

#[tokio::test]
async fn without_a_master_the_error_says_where_it_was_looked_for_and_why_it_failed() {
    let world = world();
    let other = Node::start(&world, standby(None)).await;
    let options = ClientOptions { timeout: Duration::from_millis(200), ..options(&[&other]) };
    let error = soon(Client::connect(options)).await.unwrap_err();
    let address = &other.address;
    let expected =
        format!("no master found at {address} within 200ms: last error: {address}: is standby, not master");
    assert_eq!(error.to_string(), expected);
}

/// The error named the one address where nobody was, and not what the node at the other had said.
#[tokio::test]
async fn without_a_master_the_error_says_what_was_met_at_each_address() {
    let world = world();
    let nobody = Node::start(&world, Behaviour::default()).await;
    let other = Node::start(&world, standby(None)).await;
    let options = ClientOptions { timeout: Duration::from_millis(200), ..options(&[&nobody, &other]) };
    let addresses = [nobody.address.clone(), other.address.clone()];
    nobody.kill().await;
    let error = soon(Client::connect(options)).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{}: connect: Connection refused", addresses[0])), "{error}");
    assert!(error.contains(&format!("{}: is standby, not master", addresses[1])), "{error}");
}

/// A refusal that lasts was tried again for the whole timeout.
#[tokio::test]
async fn connecting_ends_at_once_where_every_node_refuses_for_good() {
    let world = world();
    let refusing = || Behaviour { refuse_connection: Some(ErrorCode::Unauthorized), ..Behaviour::default() };
    let (one, other) = (Node::start(&world, refusing()).await, Node::start(&world, refusing()).await);
    let endless = ClientOptions { timeout: Duration::from_secs(3600), ..options(&[&one, &other]) };
    let error = soon(Client::connect(endless.clone())).await.unwrap_err();
    assert!(matches!(error, ClientError::Unusable(_)), "{error}");
    for node in [&one, &other] {
        assert!(error.to_string().contains(&format!("{}: not you", node.address)), "{error}");
    }
    // One that may still become master is worth the wait.
    other.set(|behaviour| *behaviour = standby(None));
    let connecting = tokio::spawn(Client::connect(endless));
    let attempts = world.lock().unwrap().connected_at.len();
    until(|| world.lock().unwrap().connected_at.len() > attempts + 4).await;
    other.set(|behaviour| behaviour.not_master = None);
    soon(connecting).await.unwrap().unwrap();
}

#[tokio::test]
async fn options_that_make_no_sense_are_named() {
    let none = ClientOptions { servers: Vec::new(), ..ClientOptions::default() };
    assert!(matches!(Client::start(none), Err(ClientError::Option { option: "servers", .. })));
    let no_port = ClientOptions::servers("localhost");
    assert!(matches!(Client::start(no_port), Err(ClientError::Option { option: "servers", .. })));
    assert_eq!(ClientOptions::servers("a:1, b:2,").servers, ["a:1", "b:2"]);
    let at_once = ReconnectBackoff { first: Duration::ZERO, ..ReconnectBackoff::default() };
    let crossed = ReconnectBackoff { first: Duration::from_secs(1), ..ReconnectBackoff::default() };
    let endless = ReconnectBackoff { maximum: Duration::MAX, ..ReconnectBackoff::default() };
    for backoff in [at_once, crossed, endless] {
        let options = ClientOptions { backoff, ..ClientOptions::default() };
        assert!(matches!(Client::start(options), Err(ClientError::Option { option: "backoff", .. })));
    }
}

/// A timeout of `Duration::MAX` panicked in the first call.
#[tokio::test]
async fn a_timeout_may_be_as_long_as_it_can_be() {
    let world = world();
    let node = Node::start(&world, Behaviour::default()).await;
    let endless =
        ClientOptions { timeout: Duration::MAX, attempt_timeout: Duration::MAX, ..options(&[&node]) };
    let client = soon(Client::connect(endless)).await.unwrap();
    let producer = soon(client.producer(ProducerOptions::default())).await.unwrap();
    let topic = soon(client.topic("t")).await.unwrap();
    let mut consumer = soon(client.pull_consumer(ConsumerOptions::new("t", "g"))).await.unwrap();
    soon(producer.send(&topic, &Message::new("0"))).await.unwrap();
    assert_eq!(soon(consumer.pull(1, 1 << 20, Duration::MAX)).await.unwrap().len(), 1);
    soon(client.switchover()).await.unwrap();
    node.kill().await;
    let waiting = tokio::time::timeout(Duration::from_millis(50), consumer.pull(1, 1 << 20, Duration::MAX));
    assert!(waiting.await.is_err());
}

/// Where the task of the client was gone without having said so, with a panic or its runtime, calls waited for ever.
#[test]
fn a_client_whose_task_is_gone_is_closed() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (own, other) = (runtime(), runtime());
    let (_world, _node, client) = other.block_on(async {
        let world = world();
        let node = Node::start(&world, Behaviour::default()).await;
        let servers = options(&[&node]);
        let client = own.spawn(async move { Client::connect(servers).await.unwrap() }).await.unwrap();
        (world, node, client)
    });
    let waiting = other.spawn({
        let client = client.clone();
        async move { client.master_after(Epoch(1)).await }
    });
    own.shutdown_background();
    other.block_on(async {
        assert!(matches!(soon(waiting).await.unwrap(), Err(ClientError::Closed)));
        assert!(matches!(soon(client.status()).await, Err(ClientError::Closed)));
        soon(client.close()).await;
    });
}

#[tokio::test]
async fn a_node_that_falls_silent_is_left() {
    let (world, node, client) = connected(Behaviour::default()).await;
    let second = Node::start(&world, standby(None)).await;
    drop(client);
    let client = Client::connect(options(&[&node, &second])).await.unwrap();
    let began = Instant::now();
    node.set(|behaviour| {
        behaviour.silent = true;
        behaviour.mute = true;
    });
    second.set(|behaviour| {
        behaviour.not_master = None;
        behaviour.epoch = 2;
    });
    let master = soon(client.master_after(Epoch(1))).await.unwrap();
    assert_eq!(master.address, second.address);
    // Three heartbeats of 100 ms, less what had passed of the first.
    assert!(began.elapsed().as_millis() >= 200, "{:?}", began.elapsed());
}

/// A master whose storage hangs goes on sending heartbeats. A publisher stayed with it though the other node had taken
/// over.
#[tokio::test]
async fn a_master_whose_storage_hangs_is_left_for_the_one_that_took_over() {
    let world = world();
    let hanging = Node::start(&world, Behaviour::default()).await;
    let other = Node::start(&world, standby(None)).await;
    let client = Client::connect(options(&[&hanging, &other])).await.unwrap();
    let before = client.master().unwrap();
    hanging.set(|behaviour| behaviour.fence_age_ms = 12_000);
    let enough = world.lock().unwrap().beats + 5;
    until(|| world.lock().unwrap().beats >= enough).await;
    assert!(std::sync::Arc::ptr_eq(&client.master().unwrap(), &before), "a stall that passes is no reason");
    other.set(|behaviour| {
        behaviour.not_master = None;
        behaviour.epoch = 2;
    });
    hanging.set(|behaviour| behaviour.fence_age_ms = 16_000);
    assert_eq!(soon(client.master_after(Epoch(1))).await.unwrap().address, other.address);
}

/// The node leaves a client from which it hears nothing for three heartbeats. The client sends two in the time of one.
#[tokio::test]
async fn a_connection_without_traffic_stays() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let before = client.master().unwrap();
    let heartbeats = || world.lock().unwrap().count_frames(|request| matches!(request, Request::Heartbeat));
    until(|| heartbeats() >= 12).await;
    assert!(std::sync::Arc::ptr_eq(&client.master().unwrap(), &before), "it was reconnected");
}

/// Every search began at once, so that a client came back thousands of times a second to a node that let it in and dropped
/// it.
#[tokio::test]
async fn a_node_that_lets_clients_in_and_drops_them_is_not_stormed() {
    let world = world();
    let node = Node::start(&world, Behaviour { garbage: true, ..Behaviour::default() }).await;
    let wait = Duration::from_millis(40);
    let backoff = ReconnectBackoff { first: wait, eager: Duration::from_secs(3600), maximum: wait };
    let client = Client::start(ClientOptions { backoff, ..options(&[&node]) }).unwrap();
    until(|| world.lock().unwrap().connected_at.len() > 5).await;
    let between = |pair: &[Instant]| pair[1] - pair[0];
    let waits: Vec<Duration> = world.lock().unwrap().connected_at.windows(2).map(between).collect();
    assert!(waits.iter().all(|between| *between >= wait / 2), "{waits:?}");
    node.set(|behaviour| behaviour.garbage = false);
    soon(client.status()).await.unwrap();
}

/// Clients that lost the same node must not come back in step: some wait is shorter than what is set.
#[tokio::test]
async fn waits_between_attempts_are_changed_by_chance() {
    let world = world();
    let node = Node::start(&world, standby(None)).await;
    let wait = Duration::from_millis(40);
    let backoff = ReconnectBackoff { first: wait, eager: Duration::from_secs(3600), maximum: wait };
    let _client = Client::start(ClientOptions { backoff, ..options(&[&node]) }).unwrap();
    until(|| {
        let connected_at = &world.lock().unwrap().connected_at;
        connected_at.windows(2).any(|pair| pair[1] - pair[0] < wait * 9 / 10)
    })
    .await;
}

#[tokio::test]
async fn answers_torn_into_single_bytes_are_understood() {
    let (_world, node, client) = connected(Behaviour { write_bytes: 1, ..Behaviour::default() }).await;
    let status = soon(client.status()).await.unwrap();
    assert_eq!((status.node.as_str(), status.role), ("node", Role::Master));
    drop(node);
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_connection_and_not_the_client() {
    let world = world();
    let node = Node::start(&world, Behaviour { garbage: true, ..Behaviour::default() }).await;
    let client = Client::start(options(&[&node])).unwrap();
    until(|| world.lock().unwrap().frames.len() > 3).await;
    node.set(|behaviour| behaviour.garbage = false);
    soon(client.status()).await.unwrap();
}

#[tokio::test]
async fn what_does_not_speak_the_protocol_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n").await;
        }
    });
    let error = soon(status_of(&address, Duration::from_secs(5))).await.unwrap_err();
    assert!(matches!(error, ClientError::Attempt(AttemptError::NotBaton { .. })), "{error}");
}

#[tokio::test]
async fn a_standby_tells_its_status() {
    let world = world();
    let node = Node::start(&world, standby(None)).await;
    let status = soon(status_of(&node.address, Duration::from_secs(5))).await.unwrap();
    assert_eq!(status.role, Role::Standby);
}

#[tokio::test]
async fn the_connection_ends_with_the_last_handle() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let topic = client.topic("t").await.unwrap();
    drop(client);
    soon(producer.send(&topic, &Message::new("still here"))).await.unwrap();
    drop(producer);
    until(|| world.lock().unwrap().open_connections == 0).await;
    assert_eq!(world.lock().unwrap().bodies("t"), ["still here"]);
}

#[tokio::test]
async fn a_closed_client_says_goodbye_and_answers_closed() {
    let (world, _node, client) = connected(Behaviour::default()).await;
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    let topic = client.topic("t").await.unwrap();
    let clone = client.clone();
    soon(client.close()).await;
    until(|| world.lock().unwrap().open_connections == 0).await;
    let last = world.lock().unwrap().frames.last().cloned();
    assert_eq!(last, Some(Request::Goodbye));
    assert!(matches!(soon(clone.status()).await, Err(ClientError::Closed)));
    let sent = soon(producer.send(&topic, &Message::new("x"))).await;
    assert!(matches!(sent, Err(ClientError::Closed)), "{sent:?}");
}

#[tokio::test]
async fn a_request_that_may_be_repeated_survives_the_loss_of_the_connection() {
    let (_world, node, client) = connected(Behaviour { silent: true, ..Behaviour::default() }).await;
    let address = node.address.clone();
    let world = _world;
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.topics().await }
    });
    until(|| world.lock().unwrap().frames.len() >= 2).await;
    node.kill().await;
    let _back = Node::on(TcpListener::bind(&address).await.unwrap(), &world, Behaviour::default());
    assert!(soon(asked).await.unwrap().unwrap().is_empty());
}

#[tokio::test]
async fn a_refusal_of_a_request_reaches_the_caller() {
    let (_world, _node, client) = connected(Behaviour::default()).await;
    let error = soon(client.delete_topic("nothing")).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no topic nothing");
    assert!(matches!(client.topic("not a name").await, Err(ClientError::Name(_))));
    assert!(matches!(client.topic(&"x".repeat(10_000)).await, Err(ClientError::Name(_))));
}
