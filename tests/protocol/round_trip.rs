//! What is encoded is decoded, for every frame with any values; one behind the other in one stream.

use batonmq::model::chunk::Origin;
use batonmq::model::id::{Epoch, GroupId, Offset, OffsetRange, ProducerId, Sequence, TopicId};
use batonmq::model::limits::LISTED_MAX;
use batonmq::model::name::Name;
use batonmq::model::position::Position;
use batonmq::model::retry::{Failure, ReturnReason};
use batonmq::model::route::RouteMode;
use batonmq::model::settings::{Backoff, GroupSettings, Lifetime, Policy, Start, TopicSettings};
use batonmq::model::table::{Real, Table, Value};
use batonmq::model::time::Timestamp;
use batonmq::model::version::VersionRange;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::frame::RawFrame;
use batonmq::protocol::request::{
    Admin, AdminCommand, BrowseFrom, CloseProducer, FindTopic, Flow, Hello, OpenProducer, Publish, Pull,
    Purpose, ReplayTo, Request, Settle, Settlement, Subscribe, Transact, TransactSettle, Unsubscribe, Window,
};
use batonmq::protocol::response::{
    Activity, Confirm, ConsumerClosed, ConsumerRecalled, ConsumerRole, ConsumerTopic, ConsumerTopicGone,
    Deliver, Explanation, FailureRun, FloatingStatus, GroupInfo, Heartbeat, MessageState, NodeStatus,
    NotMaster, Place, PublishReady, PublishRefused, Replayed, Reply, Response, Role, RouteInfo, Run,
    SlotInfo, Standing, StateRun, TopicInfo, Welcome,
};
use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    ".{0,12}"
}

fn octets() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

fn offset() -> impl Strategy<Value = Offset> {
    any::<u64>().prop_map(Offset)
}

fn window() -> impl Strategy<Value = Window> {
    (any::<u32>(), any::<u64>()).prop_map(|(messages, bytes)| Window { messages, bytes })
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![
        Just(Start::Earliest),
        Just(Start::Latest),
        offset().prop_map(Start::Offset),
        any::<u64>().prop_map(|at| Start::Time(Timestamp(at)))
    ]
}

fn replay_to() -> impl Strategy<Value = ReplayTo> {
    prop_oneof![Just(ReplayTo::Group), Just(ReplayTo::AllGroups), text().prop_map(ReplayTo::Topic)]
}

fn settings() -> impl Strategy<Value = GroupSettings> {
    let backoff = (any::<u64>(), any::<u32>(), any::<u64>(), any::<u32>()).prop_map(|(a, b, c, d)| Backoff {
        initial_ms: a,
        multiplier_percent: b,
        maximum_ms: c,
        jitter_percent: d,
    });
    let policies = [Policy::RoundRobin, Policy::Fair, Policy::Exclusive, Policy::Key];
    let policy = prop::sample::select(policies.to_vec());
    let lifetime = prop_oneof![
        Just(Lifetime::Durable),
        Just(Lifetime::Ephemeral),
        any::<u64>().prop_map(Lifetime::Idle)
    ];
    let more = (any::<bool>(), option::of(text()), any::<u32>(), lifetime, any::<bool>());
    let name = option::of("[a-z][a-z.]{0,9}".prop_map(|text| Name::new(&text).unwrap()));
    (policy, any::<u64>(), any::<u32>(), backoff, name, more).prop_map(
        |(policy, lease_ms, max_attempts, backoff, dead_letter, more)| GroupSettings {
            policy,
            lease_ms,
            max_attempts,
            backoff,
            dead_letter,
            dead_letter_expired: more.0,
            filter: more.1,
            priority_share: more.2,
            lifetime: more.3,
            paused: more.4,
        },
    )
}

fn refusal() -> impl Strategy<Value = Refusal> {
    (any::<u16>().prop_map(ErrorCode::from), text()).prop_map(|(code, text)| Refusal { code, text })
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let origin = option::of((any::<u64>(), any::<u64>()));
    let run = (offset(), any::<u32>(), any::<u32>(), any::<bool>(), any::<u64>(), origin).prop_map(
        |(offset, count, attempt, redelivered, at, origin)| Run {
            offset,
            count,
            attempt,
            delivery: attempt ^ 1,
            redelivered,
            published_at: Timestamp(at),
            origin: origin.map(|(producer, sequence)| Origin {
                producer: ProducerId(producer),
                sequence: Sequence(sequence),
            }),
        },
    );
    vec(run, 0..4)
}

fn failures() -> impl Strategy<Value = Vec<FailureRun>> {
    let reasons = [ReturnReason::Nacked, ReturnReason::LeaseExpired, ReturnReason::Rejected];
    let failed =
        (offset(), offset(), any::<u64>(), prop::sample::select(reasons.to_vec()), option::of(text()))
            .prop_map(|(start, end, at, reason, text)| FailureRun {
                range: OffsetRange { start, end },
                failure: Failure { at: Timestamp(at), reason, text: text.map(Into::into) },
            });
    vec(failed, 0..3)
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Master), Just(Role::Standby), Just(Role::Recovering)]
}

fn settlement() -> impl Strategy<Value = Settlement> {
    prop_oneof![
        Just(Settlement::Ack),
        (option::of(any::<u64>()), option::of(text()))
            .prop_map(|(delay_ms, reason)| Settlement::Nack { delay_ms, reason }),
        Just(Settlement::Release),
        option::of(text()).prop_map(|reason| Settlement::Reject { reason }),
        Just(Settlement::Extend),
    ]
}

fn command() -> impl Strategy<Value = AdminCommand> {
    prop_oneof![
        Just(AdminCommand::Status),
        Just(AdminCommand::Switchover),
        option::of(text()).prop_map(|after| AdminCommand::ListTopics { after }),
        text().prop_map(|name| AdminCommand::CreateTopic { name, settings: TopicSettings::default() }),
        text().prop_map(|name| AdminCommand::DeleteTopic { name }),
        (option::of(text()), option::of(any::<u32>().prop_map(GroupId)))
            .prop_map(|(topic, after)| AdminCommand::ListGroups { topic, after }),
        (text(), text(), settings(), start()).prop_map(|(topic, name, settings, start)| {
            AdminCommand::CreateGroup { topic, name, settings, start }
        }),
        (text(), text()).prop_map(|(topic, name)| AdminCommand::DeleteGroup { topic, name }),
        (text(), text(), settings()).prop_map(|(topic, name, settings)| AdminCommand::ChangeGroup {
            topic,
            name,
            settings
        }),
        browse(),
        option::of(text()).prop_map(|after| AdminCommand::ListRoutes { after }),
        route().prop_map(|route| AdminCommand::CreateRoute { route }),
        text().prop_map(|name| AdminCommand::DeleteRoute { name }),
        text().prop_map(|text| AdminCommand::Query { text }),
        any::<u64>().prop_map(|from| AdminCommand::Backup { from }),
        text().prop_map(|topic| AdminCommand::ListSlots { topic }),
        (any::<u32>(), offset(), any::<u32>()).prop_map(|(slot, from, messages_max)| {
            AdminCommand::BrowseSlot { slot: TopicId(slot), from, messages_max }
        }),
        (text(), vec((any::<u32>().prop_map(TopicId), offset()), 0..4))
            .prop_map(|(topic, messages)| AdminCommand::CancelDelayed { topic, messages }),
        text().prop_map(|topic| AdminCommand::DescribeTopic { topic }),
        (text(), any::<u8>(), offset(), text()).prop_map(|(topic, priority, offset, group)| {
            AdminCommand::Explain { topic, position: Position { priority, offset }, group }
        }),
        text().prop_map(|name| AdminCommand::ChangeTopic { name, settings: TopicSettings::default() }),
        text().prop_map(|name| AdminCommand::PurgeTopic { name }),
        (text(), text()).prop_map(|(topic, name)| AdminCommand::PurgeGroup { topic, name }),
        (text(), text(), start()).prop_map(|(topic, name, to)| AdminCommand::Seek { topic, name, to }),
        (any::<u32>().prop_map(TopicId), vec(offset(), 0..4), replay_to())
            .prop_map(|(topic, offsets, to)| AdminCommand::ReplayDeadLetters { topic, offsets, to }),
        (any::<u32>().prop_map(TopicId), vec(offset(), 0..4))
            .prop_map(|(topic, offsets)| AdminCommand::DropMessages { topic, offsets }),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let purpose = prop_oneof![Just(Purpose::Client), Just(Purpose::Watch)];
    let ranges = vec((offset(), offset()).prop_map(|(start, end)| OffsetRange { start, end }), 0..5);
    let parts = vec((any::<u32>().prop_map(TopicId), any::<u32>()), 0..4);
    let more_parts = vec((any::<u32>().prop_map(TopicId), any::<u32>()), 0..4);
    let some = vec((offset(), offset()).prop_map(|(start, end)| OffsetRange { start, end }), 0..5);
    let settlements = vec(
        (any::<u32>(), any::<u32>().prop_map(TopicId), settlement(), some).prop_map(
            |(consumer, topic, settlement, ranges)| TransactSettle {
                consumer,
                topic,
                generation: 7,
                settlement,
                ranges,
            },
        ),
        0..3,
    );
    prop_oneof![
        (purpose, text(), any::<u64>(), any::<u32>(), text(), octets()).prop_map(
            |(purpose, client, epoch, heartbeat_ms, auth_mechanism, auth_data)| {
                let epoch_seen = Epoch(epoch);
                Request::Hello(Hello { purpose, client, epoch_seen, heartbeat_ms, auth_mechanism, auth_data })
            }
        ),
        Just(Request::Heartbeat),
        Just(Request::Goodbye),
        (any::<u32>(), any::<u32>(), text(), option::of(any::<u64>())).prop_map(
            |(request, producer, name, resume)| {
                let resume = resume.map(ProducerId);
                Request::OpenProducer(OpenProducer { request, producer, name, resume })
            }
        ),
        (any::<u32>(), any::<u64>(), parts, octets()).prop_map(|(producer, sequence, parts, messages)| {
            let sequence = Sequence(sequence);
            Request::Publish(Publish { producer, sequence, parts }, Bytes::from(messages))
        }),
        (any::<u32>(), any::<u64>(), more_parts, settlements, octets()).prop_map(
            |(producer, sequence, parts, settlements, messages)| {
                let publish = Publish { producer, sequence: Sequence(sequence), parts };
                Request::Transact(Transact { publish, settlements }, Bytes::from(messages))
            }
        ),
        any::<u32>().prop_map(|producer| Request::CloseProducer(CloseProducer { producer })),
        (any::<u32>(), any::<u32>(), text(), text(), start(), any::<u8>(), option::of(settings()), window())
            .prop_map(|(request, consumer, topic, group, start, priority, settings, window)| {
                let subscribe =
                    Subscribe { request, consumer, topic, group, start, priority, settings, window };
                Request::Subscribe(subscribe)
            }),
        (any::<u32>(), window()).prop_map(|(consumer, window)| Request::Flow(Flow { consumer, window })),
        (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), settlement(), ranges).prop_map(
            |(request, consumer, topic, generation, settlement, ranges)| {
                let topic = TopicId(topic);
                Request::Settle(Settle { request, consumer, topic, generation, settlement, ranges })
            }
        ),
        (any::<u32>(), any::<u32>())
            .prop_map(|(request, consumer)| Request::Unsubscribe(Unsubscribe { request, consumer })),
        (any::<u32>(), any::<u32>(), window(), any::<u64>()).prop_map(
            |(request, consumer, window, wait_ms)| {
                Request::Pull(Pull { request, consumer, window, wait_ms })
            }
        ),
        (any::<u32>(), text()).prop_map(|(request, name)| Request::FindTopic(FindTopic { request, name })),
        (any::<u32>(), command()).prop_map(|(request, command)| Request::Admin(Admin { request, command })),
    ]
}

fn infos() -> impl Strategy<Value = Reply> {
    let status = (text(), role(), any::<u64>(), text(), option::of(text()), vec(any::<u64>(), 6)).prop_map(
        |(node, role, epoch, mode, master, numbers)| {
            Reply::Status(Box::new(NodeStatus {
                node,
                role,
                epoch: Epoch(epoch),
                store_id: mode.clone(),
                version: mode.clone(),
                mode,
                master,
                role_seconds: numbers[0],
                connections: numbers[1],
                topics: numbers[2],
                groups: numbers[3],
                messages: numbers[4],
                delayed: numbers[5],
                addresses: vec![FloatingStatus { address: "a".into(), here: numbers[5] % 2 == 0 }],
                protocol: VersionRange { min: numbers[0] as u32, max: numbers[1] as u32 },
                store_formats: VersionRange { min: numbers[2] as u32, max: numbers[3] as u32 },
                store_format: numbers[4] as u32,
                unreadable: numbers[3],
            }))
        },
    );
    let topic = (
        any::<u32>(),
        text(),
        offset(),
        offset(),
        vec(any::<u64>(), 2),
        any::<u32>(),
        option::of(any::<u64>()),
    )
        .prop_map(|(topic, name, start, end, numbers, groups, matching)| TopicInfo {
            topic: TopicId(topic),
            name,
            settings: TopicSettings::default(),
            start,
            end,
            messages: numbers[0],
            delayed: numbers[1],
            groups,
            matching,
        });
    let group = (any::<u32>(), text(), text(), settings(), offset(), vec(any::<u64>(), 4), any::<u32>())
        .prop_map(|(group, name, topic, settings, floor, numbers, consumers)| GroupInfo {
            group: GroupId(group),
            name,
            topic,
            settings,
            floor,
            waiting: numbers[0],
            in_flight: numbers[1],
            retries: numbers[2],
            parked: numbers[3],
            consumers,
        });
    let topics = (vec(topic, 0..3), any::<bool>()).prop_map(|(topics, more)| Reply::Topics { topics, more });
    let groups = (vec(group, 0..3), any::<bool>()).prop_map(|(groups, more)| Reply::Groups { groups, more });
    prop_oneof![status, topics, groups]
}

fn place() -> impl Strategy<Value = Place> {
    (any::<u32>(), offset()).prop_map(|(topic, offset)| Place { topic: TopicId(topic), offset })
}

fn route() -> impl Strategy<Value = RouteInfo> {
    let mode = prop_oneof![Just(RouteMode::Copy), Just(RouteMode::Move)];
    let names = (text(), text(), vec(text(), 0..3));
    (names, option::of(text()), mode).prop_map(|((name, from, to), filter, mode)| RouteInfo {
        name,
        from,
        to,
        filter,
        mode,
    })
}

fn browse() -> impl Strategy<Value = AdminCommand> {
    let from = prop_oneof![
        Just(BrowseFrom::Beginning),
        (any::<u8>(), offset())
            .prop_map(|(priority, offset)| BrowseFrom::Position(Position { priority, offset })),
        place().prop_map(BrowseFrom::Place),
        (any::<u8>(), any::<u64>()).prop_map(|(priority, count)| BrowseFrom::Newest { priority, count }),
    ];
    let which = (text(), option::of(text()), option::of(text()));
    (which, from, any::<u64>(), any::<u32>()).prop_map(
        |((topic, group, filter), from, since, messages_max)| AdminCommand::Browse {
            topic,
            group,
            from,
            since: Timestamp(since),
            filter,
            messages_max,
        },
    )
}

fn browsed() -> impl Strategy<Value = Reply> {
    let state = prop_oneof![
        Just(Standing::Waiting),
        Just(Standing::InFlight),
        any::<u64>().prop_map(|at| Standing::Returned { due_at: Timestamp(at) }),
        Just(Standing::Dying),
    ];
    let states = vec((any::<u64>(), any::<u64>(), state), 0..3).prop_map(|states| {
        let run = |(start, end, state)| StateRun {
            range: OffsetRange { start: Offset(start), end: Offset(end) },
            state,
        };
        states.into_iter().map(run).collect()
    });
    let what = (text(), any::<u8>(), runs(), option::of(place()), octets());
    (what, states).prop_map(|((topic, priority, runs, next, messages), states)| Reply::Browsed {
        topic,
        priority,
        runs,
        states,
        failures: Vec::new(),
        next,
        messages: messages.into(),
    })
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        Just(Reply::Done),
        (any::<u64>(), any::<u64>())
            .prop_map(|(id, last)| Reply::Producer { id: ProducerId(id), last: Sequence(last) }),
        (any::<u32>(), any::<u32>(), settings()).prop_map(|(group, topic, settings)| Reply::Subscribed {
            group: GroupId(group),
            topic: TopicId(topic),
            settings
        }),
        any::<u64>().prop_map(|count| Reply::Settled { count }),
        any::<u32>().prop_map(|count| Reply::Pulled { count }),
        any::<u32>().prop_map(|id| Reply::Topic { id: TopicId(id) }),
        infos(),
        browsed(),
        (vec(route(), 0..3), any::<bool>()).prop_map(|(routes, more)| Reply::Routes { routes, more }),
        (any::<bool>(), octets()).prop_map(|(last, bytes)| Reply::BackupPart { last, bytes: bytes.into() }),
        vec((any::<u32>(), any::<u64>(), any::<u64>(), offset(), offset(), any::<u64>()), 0..3).prop_map(
            |slots| {
                let slots = slots.into_iter().map(|(slot, from, until, start, end, messages)| SlotInfo {
                    slot: TopicId(slot),
                    from: Timestamp(from),
                    until: Timestamp(until),
                    start,
                    end,
                    messages,
                });
                Reply::Slots { slots: slots.collect() }
            }
        ),
        any::<u64>().prop_map(|count| Reply::Dropped { count }),
        text().prop_map(|text| { Reply::Explanation(Explanation { state: MessageState::BehindKey, text }) }),
        any::<[u64; 8]>().prop_map(|counts| {
            let [replayed, gone, held, homeless, groupless, unwanted, last_values, unreadable] = counts;
            Reply::Replayed(Replayed {
                replayed,
                gone,
                held,
                homeless,
                groupless,
                unwanted,
                last_values,
                unreadable,
            })
        }),
        (vec(text(), 0..4), vec(vec(value(), 0..4), 0..4))
            .prop_map(|(columns, rows)| Reply::Table(Table { columns, rows })),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::Integer),
        any::<u64>().prop_map(|bits| Value::Real(Real(f64::from_bits(bits)))),
        text().prop_map(Value::Text),
        octets().prop_map(Value::Bytes),
    ]
}

fn response() -> impl Strategy<Value = Response> {
    let welcome = (any::<u64>(), text(), text(), text(), any::<u32>(), vec(any::<u64>(), 4)).prop_map(
        |(epoch, node, store_id, server, heartbeat_ms, limits)| {
            Response::Welcome(Welcome {
                epoch: Epoch(epoch),
                node,
                store_id,
                server,
                heartbeat_ms,
                frame_bytes_max: limits[0],
                body_bytes_max: limits[1],
                header_bytes_max: limits[2],
                transaction_bytes_max: limits[3],
                time: Timestamp(limits[0]),
            })
        },
    );
    prop_oneof![
        welcome,
        (role(), option::of(text()))
            .prop_map(|(role, master)| Response::NotMaster(NotMaster { role, master })),
        (any::<u64>(), any::<u32>()).prop_map(|(epoch, fence_age_ms)| {
            Response::Heartbeat(Heartbeat { epoch: Epoch(epoch), fence_age_ms })
        }),
        refusal().prop_map(Response::Goodbye),
        refusal().prop_map(Response::Failed),
        (any::<u32>(), reply()).prop_map(|(request, reply)| Response::Reply(request, Ok(reply))),
        (any::<u32>(), refusal()).prop_map(|(request, refusal)| Response::Reply(request, Err(refusal))),
        (any::<u32>(), any::<u64>()).prop_map(|(producer, sequence)| {
            Response::Confirm(Confirm { producer, sequence: Sequence(sequence) })
        }),
        (any::<u32>(), any::<u64>(), any::<u64>(), refusal()).prop_map(
            |(producer, sequence, expected, refusal)| {
                let (sequence, expected) = (Sequence(sequence), Sequence(expected));
                Response::PublishRefused(PublishRefused { producer, sequence, expected, refusal })
            }
        ),
        (any::<u32>(), any::<u32>(), any::<u32>(), runs(), failures(), octets()).prop_map(
            |(consumer, topic, request, runs, failures, messages)| {
                let topic = TopicId(topic);
                let deliver = Deliver { consumer, topic, request, runs, failures };
                Response::Deliver(deliver, Bytes::from(messages))
            }
        ),
        (any::<u32>(), any::<u32>(), text(), any::<u8>()).prop_map(|(consumer, topic, name, priority)| {
            let topic = TopicId(topic);
            Response::ConsumerTopic(ConsumerTopic { consumer, topic, name, priority })
        }),
        (any::<u32>(), any::<bool>()).prop_map(|(consumer, active)| {
            let activity = if active { Activity::Active } else { Activity::Waiting };
            Response::ConsumerRole(ConsumerRole { consumer, activity })
        }),
        (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(consumer, topic, generation)| {
            let topic = TopicId(topic);
            Response::ConsumerRecalled(ConsumerRecalled { consumer, topic, generation })
        }),
        (any::<u32>(), any::<u32>()).prop_map(|(consumer, topic)| {
            Response::ConsumerTopicGone(ConsumerTopicGone { consumer, topic: TopicId(topic) })
        }),
        any::<u32>().prop_map(|producer| Response::PublishReady(PublishReady { producer })),
        (any::<u32>(), refusal())
            .prop_map(|(consumer, refusal)| Response::ConsumerClosed(ConsumerClosed { consumer, refusal })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn requests_come_out_as_they_went_in(requests in vec(request(), 1..5)) {
        let mut stream = BytesMut::new();
        requests.iter().for_each(|request| request.encode(&mut stream));
        for request in requests {
            let frame = RawFrame::cut(&mut stream, 1 << 20).unwrap().unwrap();
            prop_assert_eq!(Request::decode(&frame), Ok(request));
        }
        prop_assert!(stream.is_empty());
    }

    #[test]
    fn responses_come_out_as_they_went_in(responses in vec(response(), 1..5)) {
        let mut stream = BytesMut::new();
        responses.iter().for_each(|response| response.encode(&mut stream));
        for response in responses {
            let frame = RawFrame::cut(&mut stream, 1 << 20).unwrap().unwrap();
            prop_assert_eq!(Response::decode(&frame), Ok(response));
        }
        prop_assert!(stream.is_empty());
    }
}

/// The longest answer to a question for all topics, and a delivery of messages that have nothing in common, are long lists: what a node may
/// send a client must read.
#[test]
fn lists_as_long_as_the_limits_allow_are_read() {
    let topic = TopicInfo {
        topic: TopicId(u32::MAX),
        name: "t".repeat(255),
        settings: TopicSettings::default(),
        start: Offset(u64::MAX),
        end: Offset(u64::MAX),
        messages: u64::MAX,
        delayed: u64::MAX,
        groups: u32::MAX,
        matching: Some(u64::MAX),
    };
    let run = Run {
        offset: Offset(u64::MAX),
        count: 1,
        attempt: u32::MAX,
        delivery: u32::MAX,
        redelivered: true,
        published_at: Timestamp(u64::MAX),
        origin: Some(Origin { producer: ProducerId(u64::MAX), sequence: Sequence(u64::MAX) }),
    };
    let deliver = Deliver {
        consumer: 1,
        topic: TopicId(1),
        request: 0,
        runs: vec![run; 200_000],
        failures: Vec::new(),
    };
    for response in [
        Response::Reply(1, Ok(Reply::Topics { topics: vec![topic; LISTED_MAX], more: true })),
        Response::Deliver(deliver, Bytes::from_static(b"messages")),
    ] {
        let mut stream = BytesMut::new();
        response.encode(&mut stream);
        let frame = RawFrame::cut(&mut stream, 72 << 20).unwrap().unwrap();
        assert!(Response::decode(&frame) == Ok(response), "the long list came out different");
    }
}
