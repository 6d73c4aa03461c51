//! What a newer build adds, an older one passes over.

use batonmq::protocol::frame::RawFrame;
use batonmq::protocol::request::Request;
use batonmq::protocol::response::{NodeStatus, Reply, Response};
use bytes::{Bytes, BytesMut};

use crate::vectors::{requests, responses};

/// What a newer build adds to a struct: a number, a text, and a list.
const MORE: &[u8] = &[7, 3, b'n', b'e', b'w', 2, 1, 1];

/// The payload of a response.
fn payload(response: &Response) -> (u8, Vec<u8>) {
    let mut bytes = BytesMut::new();
    response.encode(&mut bytes);
    (bytes[4], bytes[5..].to_vec())
}

fn decode(kind: u8, payload: &[u8]) -> Option<Response> {
    Response::decode(&RawFrame { kind, payload: Bytes::copy_from_slice(payload) }).ok()
}

/// The bytes with [`MORE`] at the end of a struct. Its length stands at the first place; or that of the struct around it,
/// and its own at the next place in there.
fn grown(bytes: &[u8], places: &[usize]) -> Vec<u8> {
    let (at, within) = places.split_first().expect("there is a place");
    let length = usize::from(bytes[*at]);
    let inner = &bytes[at + 1..][..length];
    let inner = if within.is_empty() { [inner, MORE].concat() } else { grown(inner, within) };
    let length =
        u8::try_from(inner.len()).ok().filter(|length| *length < 251).expect("it fits into one byte");
    [&bytes[..*at], &[length], &inner, &bytes[at + 1 + usize::from(bytes[*at])..]].concat()
}

#[test]
fn what_is_added_to_an_answer_is_passed_over() {
    let mut answers = 0;
    for response in responses() {
        let Response::Reply(_, Ok(reply)) = &response else { continue };
        let structs: &[&[usize]] = match reply {
            // Behind the request, the result and the number of the reply.
            Reply::Status(_) | Reply::Explanation(_) | Reply::Replayed(_) => &[&[3]],
            // With the topic that comes first in it.
            Reply::Description(_) => &[&[3], &[3, 0]],
            // The first of a list.
            Reply::Topics { .. } | Reply::Groups { .. } | Reply::Routes { .. } | Reply::Slots { .. } => {
                &[&[4]]
            }
            _ => continue,
        };
        let (kind, whole) = payload(&response);
        for places in structs {
            assert_eq!(decode(kind, &grown(&whole, places)), Some(response.clone()), "at {places:?}");
            answers += 1;
        }
    }
    assert_eq!(answers, 9);
}

#[test]
fn what_is_added_to_a_greeting_is_passed_over() {
    let mut bytes = BytesMut::new();
    let hello = requests().into_iter().find(|request| matches!(request, Request::Hello(_))).unwrap();
    hello.encode(&mut bytes);
    let payload = [&bytes[5..], MORE].concat();
    assert_eq!(Request::decode(&RawFrame { kind: bytes[4], payload: payload.into() }), Ok(hello));
    for response in responses() {
        if matches!(response, Response::Welcome(_) | Response::NotMaster(_)) {
            let (kind, whole) = self::payload(&response);
            assert_eq!(decode(kind, &[&whole, MORE].concat()), Some(response));
        }
    }
}

/// What was added since is missing where the sender is older: here the last field, of one byte.
#[test]
fn what_an_older_build_does_not_send_is_zero() {
    let is_one = |response: &&Response| {
        matches!(response, Response::Reply(_, Ok(Reply::Status(_) | Reply::Replayed(_))))
    };
    let mut answers = 0;
    for response in responses().iter().filter(is_one) {
        let (kind, whole) = payload(response);
        let length = whole[3];
        let older = [&whole[..3], &[length - 1], &whole[4..3 + usize::from(length)]].concat();
        match decode(kind, &older) {
            Some(Response::Reply(_, Ok(Reply::Status(status)))) => assert_eq!(status.unreadable, 0),
            Some(Response::Reply(_, Ok(Reply::Replayed(replayed)))) => assert_eq!(replayed.unreadable, 0),
            other => panic!("{other:?}"),
        }
        answers += 1;
    }
    assert_eq!(answers, 2);
}

#[test]
fn what_is_wrong_in_a_form_for_people_is_not_taken_for_missing() {
    let status = responses().into_iter().find_map(|response| match response {
        Response::Reply(_, Ok(Reply::Status(status))) => Some(status),
        _ => None,
    });
    let mut json = serde_json::to_value(status.unwrap()).unwrap();
    json["unreadable"] = "many".into();
    assert!(serde_json::from_value::<NodeStatus>(json.clone()).is_err());
    json.as_object_mut().unwrap().remove("unreadable");
    assert_eq!(serde_json::from_value::<NodeStatus>(json).unwrap().unreadable, 0);
}

#[test]
fn what_is_known_must_be_there() {
    let (kind, whole) = payload(
        responses()
            .iter()
            .find(|response| matches!(response, Response::Reply(_, Ok(Reply::Status(_)))))
            .unwrap(),
    );
    // The last field, of one byte, was added.
    for length in 0..whole[3] - 1 {
        let shorter = [&whole[..3], &[length], &whole[4..4 + usize::from(length)]].concat();
        assert_eq!(decode(kind, &shorter), None, "{length}");
    }
}
