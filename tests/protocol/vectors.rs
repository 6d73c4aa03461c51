//! One frame of every kind, with every variant of every enum in it at least once. Their bytes stand in
//! `docs/protocol.md`.

use batonmq::model::chunk::Origin;
use batonmq::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, Sequence, TopicId};
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::position::Position;
use batonmq::model::retry::{Failure, ReturnReason};
use batonmq::model::route::RouteMode;
use batonmq::model::settings::{
    Backoff, GroupSettings, Lifetime, Overflow, Policy, Retention, Start, TopicSettings,
};
use batonmq::model::table::{Real, Table, Value};
use batonmq::model::time::Timestamp;
use batonmq::model::version::VersionRange;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::{
    Admin, AdminCommand, BrowseFrom, CloseProducer, FindTopic, Flow, Hello, OpenProducer, Publish, Pull,
    Purpose, ReplayTo, Request, Settle, Settlement, Subscribe, Transact, TransactSettle, Unsubscribe, Window,
};
use batonmq::protocol::response::{
    Activity, Confirm, ConsumerClosed, ConsumerDescription, ConsumerRecalled, ConsumerRole, ConsumerTopic,
    ConsumerTopicGone, Deliver, Explanation, FailureRun, FloatingStatus, GroupDescription, GroupInfo,
    Heartbeat, MessageState, NodeStatus, NotMaster, Place, PublishReady, PublishRefused, Replayed, Reply,
    Response, Role, RouteInfo, Run, SlotInfo, Standing, StateRun, TopicDescription, TopicInfo, Welcome,
};
use bytes::Bytes;

/// A message with every field, and one with nothing but a body.
pub fn messages() -> Bytes {
    let full = Message {
        key: Some("k".into()),
        headers: vec![("h".into(), "v".into())],
        deliver_at: Some(Timestamp(1)),
        expires_at: Some(Timestamp(2)),
        priority: 3,
        body: "body".into(),
    };
    MessageBlock::encode([&full, &Message::new("x")]).bytes().clone()
}

fn settings() -> GroupSettings {
    GroupSettings {
        policy: Policy::Fair,
        lease_ms: 30_000,
        max_attempts: 16,
        backoff: Backoff {
            initial_ms: 1_000,
            multiplier_percent: 200,
            maximum_ms: 60_000,
            jitter_percent: 20,
        },
        dead_letter: Some("dead".parse().unwrap()),
        dead_letter_expired: true,
        filter: Some("a > 1".into()),
        priority_share: 100,
        lifetime: Lifetime::Idle(60_000),
        paused: false,
    }
}

fn topic_settings() -> TopicSettings {
    TopicSettings {
        retention: Retention { max_age_ms: Some(86_400_000), ..Retention::default() },
        max_messages: Some(1_000_000),
        overflow: Overflow::Reject,
        ..TopicSettings::default()
    }
}

fn run() -> Run {
    Run {
        offset: Offset(300),
        count: 2,
        attempt: 1,
        delivery: 1,
        redelivered: false,
        published_at: Timestamp(1_700_000_000_000),
        origin: Some(Origin { producer: ProducerId(5), sequence: Sequence(70_000) }),
    }
}

fn topic_info() -> TopicInfo {
    TopicInfo {
        topic: TopicId(4),
        name: "t".into(),
        settings: topic_settings(),
        start: Offset(1),
        end: Offset(300),
        messages: 200,
        delayed: 3,
        groups: 1,
        matching: Some(3),
    }
}

fn group_info() -> GroupInfo {
    GroupInfo {
        group: GroupId(6),
        name: "g".into(),
        topic: "t".into(),
        settings: settings(),
        floor: Offset(1),
        waiting: 299,
        in_flight: 2,
        retries: 0,
        parked: 4,
        consumers: 1,
    }
}

fn description() -> TopicDescription {
    let consumer = ConsumerDescription {
        client: "c at 127.0.0.1:9".into(),
        connection: 8,
        consumer: 2,
        priority: 1,
        in_flight: 2,
        window: Window { messages: 1_000, bytes: 8 << 20 },
        pulls: 0,
        last_ack_at: Some(Timestamp(1_700_000_000_000)),
        activity: Some(Activity::Active),
    };
    TopicDescription {
        topic: topic_info(),
        bytes: 70_000,
        lanes: vec![(9, 20)],
        oldest_age_ms: Some(60_000),
        published_per_kilosecond: 1_500,
        groups: vec![GroupDescription {
            group: group_info(),
            lag_ms: Some(60_000),
            delivered_per_kilosecond: 1_500,
            acked_per_kilosecond: 1_000,
            consumers: vec![consumer],
        }],
    }
}

fn refusal(code: ErrorCode) -> Refusal {
    Refusal::new(code, "why")
}

fn settle(settlement: Settlement, ranges: Vec<OffsetRange>) -> Request {
    Request::Settle(Settle { request: 9, consumer: 2, topic: TopicId(4), generation: 1, settlement, ranges })
}

fn subscribe(start: Start, settings: Option<GroupSettings>) -> Request {
    let window = Window { messages: 1_000, bytes: 8 << 20 };
    let (topic, group) = ("t".into(), "g".into());
    let (request, consumer, priority) = (8, 2, 0);
    Request::Subscribe(Subscribe { request, consumer, topic, group, start, priority, settings, window })
}

fn admin(command: AdminCommand) -> Request {
    Request::Admin(Admin { request: 7, command })
}

fn reply(reply: Reply) -> Response {
    Response::Reply(7, Ok(reply))
}

fn place() -> Place {
    Place { topic: TopicId(4), offset: Offset(300) }
}

fn route(mode: RouteMode, filter: Option<String>) -> RouteInfo {
    RouteInfo { name: "r".into(), from: "t".into(), to: vec!["a".into(), "b".into()], filter, mode }
}

fn browse(group: Option<String>, from: BrowseFrom, filter: Option<String>) -> Request {
    let (topic, since, messages_max) = ("t".into(), Timestamp(0), 10);
    admin(AdminCommand::Browse { topic, group, from, since, filter, messages_max })
}

fn browsed(runs: Vec<Run>, states: Vec<StateRun>, next: Option<Place>) -> Reply {
    let (topic, priority, failures) = ("t".into(), 9, Vec::new());
    Reply::Browsed { topic, priority, runs, states, failures, next, messages: messages() }
}

/// Every frame from the client.
pub fn requests() -> Vec<Request> {
    let (topic, name) = ("t".to_owned(), "g".to_owned());
    let hello = |purpose| {
        Request::Hello(Hello {
            purpose,
            client: "c".into(),
            epoch_seen: Epoch(3),
            heartbeat_ms: 1_000,
            auth_mechanism: "anonymous".into(),
            auth_data: vec![1, 2],
        })
    };
    let open =
        |resume| Request::OpenProducer(OpenProducer { request: 6, producer: 1, name: "p".into(), resume });
    let publish =
        Publish { producer: 1, sequence: Sequence(251), parts: vec![(TopicId(4), 1), (TopicId(300), 1)] };
    let settlement = |settlement| TransactSettle {
        consumer: 2,
        topic: TopicId(4),
        generation: 0,
        settlement,
        ranges: vec![OffsetRange::new(1, 2), OffsetRange::new(5, 300)],
    };
    let transact = Transact {
        publish: publish.clone(),
        settlements: vec![
            settlement(Settlement::Ack),
            settlement(Settlement::Reject { reason: Some("why".into()) }),
        ],
    };
    let nothing = Publish { producer: 1, sequence: Sequence(254), parts: Vec::new() };
    let (from, to) = (Offset(0), Offset(251));
    vec![
        hello(Purpose::Client),
        hello(Purpose::Watch),
        Request::Heartbeat,
        Request::Goodbye,
        open(None),
        open(Some(ProducerId(5))),
        Request::Publish(publish, messages()),
        Request::Transact(transact, messages()),
        Request::Transact(Transact { publish: nothing, settlements: Vec::new() }, Bytes::new()),
        Request::CloseProducer(CloseProducer { producer: 1 }),
        subscribe(Start::Earliest, None),
        subscribe(Start::Latest, Some(settings())),
        subscribe(Start::Offset(Offset(u64::MAX)), None),
        subscribe(Start::Time(Timestamp(1_700_000_000_000)), None),
        Request::Flow(Flow { consumer: 2, window: Window { messages: 65_536, bytes: 1 << 40 } }),
        settle(Settlement::Ack, vec![OffsetRange { start: from, end: to }, OffsetRange::new(300, 301)]),
        settle(Settlement::Nack { delay_ms: None, reason: None }, vec![OffsetRange::new(1, 2)]),
        settle(
            Settlement::Nack { delay_ms: Some(500), reason: Some("why".into()) },
            vec![OffsetRange::new(1, 2)],
        ),
        settle(Settlement::Release, vec![OffsetRange::new(1, 2)]),
        settle(Settlement::Reject { reason: None }, vec![OffsetRange::new(1, 2)]),
        settle(Settlement::Extend, vec![OffsetRange::new(1, 2)]),
        Request::Unsubscribe(Unsubscribe { request: 10, consumer: 2 }),
        Request::Pull(Pull {
            request: 11,
            consumer: 2,
            window: Window { messages: 10, bytes: 1 << 20 },
            wait_ms: 5_000,
        }),
        Request::FindTopic(FindTopic { request: 12, name: topic.clone() }),
        admin(AdminCommand::Status),
        admin(AdminCommand::Switchover),
        admin(AdminCommand::ListTopics { after: None }),
        admin(AdminCommand::ListTopics { after: Some(topic.clone()) }),
        admin(AdminCommand::CreateTopic { name: topic.clone(), settings: topic_settings() }),
        admin(AdminCommand::DeleteTopic { name: topic.clone() }),
        admin(AdminCommand::ListGroups { topic: None, after: Some(GroupId(300)) }),
        admin(AdminCommand::ListGroups { topic: Some(topic.clone()), after: None }),
        admin(AdminCommand::CreateGroup {
            topic: topic.clone(),
            name: name.clone(),
            settings: GroupSettings { policy: Policy::RoundRobin, dead_letter: None, ..settings() },
            start: Start::Earliest,
        }),
        admin(AdminCommand::DeleteGroup { topic: topic.clone(), name: name.clone() }),
        admin(AdminCommand::ChangeGroup { topic: topic.clone(), name, settings: settings() }),
        browse(None, BrowseFrom::Beginning, None),
        browse(None, BrowseFrom::Position(Position { priority: 9, offset: Offset(2) }), Some("a > 1".into())),
        browse(Some("g".into()), BrowseFrom::Place(place()), None),
        browse(None, BrowseFrom::Newest { priority: 9, count: 300 }, None),
        admin(AdminCommand::Query { text: "SELECT 1".into() }),
        admin(AdminCommand::Backup { from: 1 << 20 }),
        admin(AdminCommand::ListSlots { topic: "t".into() }),
        admin(AdminCommand::BrowseSlot { slot: TopicId(5), from: Offset(2), messages_max: 10 }),
        admin(AdminCommand::CancelDelayed { topic: "t".into(), messages: vec![(TopicId(5), Offset(2))] }),
        admin(AdminCommand::DescribeTopic { topic: "t".into() }),
        admin(AdminCommand::Explain {
            topic: "t".into(),
            position: Position { priority: 9, offset: Offset(17) },
            group: "g".into(),
        }),
        admin(AdminCommand::ChangeTopic { name: "t".into(), settings: topic_settings() }),
        admin(AdminCommand::PurgeTopic { name: "t".into() }),
        admin(AdminCommand::PurgeGroup { topic: "t".into(), name: "g".into() }),
        admin(AdminCommand::Seek { topic: "t".into(), name: "g".into(), to: Start::Offset(Offset(2)) }),
        admin(AdminCommand::ReplayDeadLetters {
            topic: TopicId(4),
            offsets: vec![Offset(2)],
            to: ReplayTo::Group,
        }),
        admin(AdminCommand::ReplayDeadLetters {
            topic: TopicId(4),
            offsets: vec![Offset(2)],
            to: ReplayTo::AllGroups,
        }),
        admin(AdminCommand::ReplayDeadLetters {
            topic: TopicId(4),
            offsets: vec![Offset(2), Offset(300)],
            to: ReplayTo::Topic("t".into()),
        }),
        admin(AdminCommand::DropMessages { topic: TopicId(4), offsets: vec![Offset(2)] }),
        admin(AdminCommand::ListRoutes { after: Some("r".into()) }),
        admin(AdminCommand::CreateRoute { route: route(RouteMode::Copy, None) }),
        admin(AdminCommand::CreateRoute { route: route(RouteMode::Move, Some("a > 1".into())) }),
        admin(AdminCommand::DeleteRoute { name: "r".into() }),
    ]
}

/// Every frame to the client.
pub fn responses() -> Vec<Response> {
    let not_master = |role, master| Response::NotMaster(NotMaster { role, master });
    let deliver =
        |request, runs, failures| Deliver { consumer: 2, topic: TopicId(4), request, runs, failures };
    let failure = Failure { at: Timestamp(9), reason: ReturnReason::Nacked, text: Some("why".into()) };
    vec![
        Response::Welcome(Welcome {
            epoch: Epoch(3),
            node: "a".into(),
            store_id: "s".into(),
            server: "baton".into(),
            heartbeat_ms: 1_000,
            frame_bytes_max: 72 << 20,
            body_bytes_max: 64 << 20,
            header_bytes_max: 64 << 10,
            transaction_bytes_max: 16 << 20,
            time: Timestamp(1_700_000_000_000),
        }),
        not_master(Role::Standby, Some("b:7470".into())),
        not_master(Role::Recovering, None),
        Response::Heartbeat(Heartbeat { epoch: Epoch(3), fence_age_ms: 12 }),
        Response::Goodbye(refusal(ErrorCode::Draining)),
        Response::Failed(refusal(ErrorCode::HeartbeatMissed)),
        Response::Reply(7, Err(refusal(ErrorCode::NotMaster))),
        Response::Reply(7, Err(refusal(ErrorCode::Other(1_000)))),
        reply(Reply::Done),
        reply(Reply::Producer { id: ProducerId(5), last: Sequence(250) }),
        reply(Reply::Subscribed { group: GroupId(6), topic: TopicId(4), settings: settings() }),
        reply(Reply::Settled { count: 251 }),
        reply(Reply::Pulled { count: 2 }),
        reply(Reply::Topic { id: TopicId(4) }),
        reply(Reply::Status(Box::new(NodeStatus {
            node: "a".into(),
            role: Role::Master,
            epoch: Epoch(3),
            mode: "file".into(),
            store_id: "s".into(),
            master: None,
            version: "v".into(),
            role_seconds: 60,
            connections: 1,
            topics: 2,
            groups: 3,
            messages: 70_000,
            delayed: 5,
            addresses: vec![FloatingStatus { address: "192.0.2.10/24".into(), here: true }],
            protocol: VersionRange { min: 1, max: 2 },
            store_formats: VersionRange { min: 3, max: 5 },
            store_format: 4,
            unreadable: 9,
        }))),
        reply(Reply::Topics { more: true, topics: vec![topic_info()] }),
        reply(Reply::Groups { more: false, groups: vec![group_info()] }),
        reply(browsed(vec![Run { attempt: 0, delivery: 0, origin: None, ..run() }], Vec::new(), None)),
        reply(browsed(
            vec![run()],
            [
                Standing::Waiting,
                Standing::InFlight,
                Standing::Returned { due_at: Timestamp(1_700_000_000_500) },
                Standing::Dying,
            ]
            .map(|state| StateRun { range: OffsetRange::new(300, 302), state })
            .to_vec(),
            Some(place()),
        )),
        reply(Reply::Table(Table {
            columns: vec!["a".into(), "b".into(), "c".into()],
            rows: vec![
                vec![Value::Null, Value::Integer(-2), Value::Integer(300)],
                vec![Value::Real(Real(1.5)), Value::Text("t".into()), Value::Bytes(vec![0, 255])],
            ],
        })),
        reply(Reply::BackupPart { last: true, bytes: Bytes::from_static(b"BATONARC") }),
        reply(Reply::Slots {
            slots: vec![SlotInfo {
                slot: TopicId(5),
                from: Timestamp(1_024),
                until: Timestamp(2_048),
                start: Offset(1),
                end: Offset(3),
                messages: 2,
            }],
        }),
        reply(Reply::Dropped { count: 1 }),
        reply(Reply::Description(Box::new(description()))),
        reply(Reply::Explanation(Explanation { state: MessageState::NoCredit, text: "why".into() })),
        reply(Reply::Replayed(Replayed {
            replayed: 300,
            gone: 1,
            held: 2,
            homeless: 3,
            groupless: 4,
            unwanted: 5,
            last_values: 6,
            unreadable: 7,
        })),
        reply(Reply::Routes { routes: vec![route(RouteMode::Copy, None)], more: false }),
        Response::Confirm(Confirm { producer: 1, sequence: Sequence(252) }),
        Response::PublishRefused(PublishRefused {
            producer: 1,
            sequence: Sequence(253),
            expected: Sequence(253),
            refusal: refusal(ErrorCode::StoreFull),
        }),
        Response::PublishReady(PublishReady { producer: 1 }),
        Response::Deliver(deliver(0, vec![run()], Vec::new()), messages()),
        Response::Deliver(
            deliver(
                11,
                vec![
                    Run { count: 1, ..run() },
                    Run { count: 1, attempt: 2, delivery: 3, redelivered: true, origin: None, ..run() },
                ],
                vec![FailureRun { range: OffsetRange::new(300, 301), failure }],
            ),
            messages(),
        ),
        Response::ConsumerClosed(ConsumerClosed { consumer: 2, refusal: refusal(ErrorCode::Deleted) }),
        Response::ConsumerTopic(ConsumerTopic {
            consumer: 2,
            topic: TopicId(5),
            name: "t".into(),
            priority: 9,
        }),
        Response::ConsumerRole(ConsumerRole { consumer: 2, activity: Activity::Waiting }),
        Response::ConsumerRecalled(ConsumerRecalled { consumer: 2, topic: TopicId(4), generation: 1 }),
        Response::ConsumerTopicGone(ConsumerTopicGone { consumer: 2, topic: TopicId(5) }),
    ]
}
