//! Input that was made to do harm, or was cut or changed on the way: an error or "not yet", never a panic, and no
//! memory for what is only claimed.

use batonmq::model::limits::Limits;
use batonmq::model::message::{Message, MessageBlock, MessageError};
use batonmq::protocol::error::DecodeError;
use batonmq::protocol::frame::RawFrame;
use batonmq::protocol::request::Request;
use batonmq::protocol::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use crate::vectors::{messages, requests, responses};

/// A frame with this kind and payload.
fn frame(kind: u8, payload: &[u8]) -> RawFrame {
    RawFrame { kind, payload: Bytes::copy_from_slice(payload) }
}

/// Every frame of the vectors, cut out of the stream.
fn golden() -> Vec<RawFrame> {
    let mut stream = BytesMut::new();
    requests().iter().for_each(|request| request.encode(&mut stream));
    responses().iter().for_each(|response| response.encode(&mut stream));
    let mut frames = Vec::new();
    while let Some(frame) = RawFrame::cut(&mut stream, 1 << 20).unwrap() {
        frames.push(frame);
    }
    assert!(stream.is_empty());
    frames
}

fn decode(frame: &RawFrame) -> Result<(), DecodeError> {
    if frame.kind < 0x80 { Request::decode(frame).map(drop) } else { Response::decode(frame).map(drop) }
}

/// A varint of eight bytes: the marker 253 and the number.
fn long(number: u64) -> Vec<u8> {
    let mut bytes = vec![253];
    bytes.put_u64_le(number);
    bytes
}

#[test]
fn a_frame_cut_short_is_waited_for() {
    for frame in golden() {
        let mut whole = BytesMut::new();
        whole.put_u32_le(frame.payload.len() as u32 + 1);
        whole.put_u8(frame.kind);
        whole.put_slice(&frame.payload);
        for len in 0..whole.len() {
            let mut input = BytesMut::from(&whole[..len]);
            assert_eq!(RawFrame::cut(&mut input, 1 << 20), Ok(None));
            assert_eq!(input, whole[..len], "nothing is taken before the frame is whole");
        }
        assert_eq!(RawFrame::cut(&mut whole, 1 << 20), Ok(Some(frame)));
    }
}

/// Bytes of the time in the vector of a `Welcome`.
const WELCOME_TIME_BYTES: usize = 9;

#[test]
fn a_frame_whose_length_lies_is_refused() {
    for golden in golden() {
        let browsed = golden.kind == 0x90 && golden.payload.starts_with(&[7, 0, 9]);
        let part = golden.kind == 0x90 && golden.payload.starts_with(&[7, 0, 11]);
        let carries_messages = matches!(golden.kind, 0x11 | 0x13 | 0xa0) || browsed || part;
        for len in 0..golden.payload.len() {
            let short = RawFrame { kind: golden.kind, payload: golden.payload.slice(..len) };
            match decode(&short) {
                Err(DecodeError::Head { .. }) => {}
                // The head is whole, the messages are not: their own check finds that.
                Ok(()) if carries_messages => {}
                // An older node does not send it.
                Ok(()) if golden.kind == 0x81 && golden.payload.len() - len <= WELCOME_TIME_BYTES => {}
                other => panic!("{short:?}: {other:?}"),
            }
        }
        let grows = matches!(golden.kind, 0x01 | 0x81 | 0x82);
        let mut long = golden.payload.to_vec();
        long.push(0);
        match decode(&frame(golden.kind, &long)) {
            Err(DecodeError::Trailing { count: 1, .. }) => {}
            Ok(()) if carries_messages || grows => {}
            other => panic!("{golden:?}: {other:?}"),
        }
    }
}

/// Whoever writes a client read names of types of the decoder.
#[test]
fn what_is_wrong_with_a_head_is_said_in_words() {
    for golden in golden() {
        for at in 0..golden.payload.len() {
            for byte in [0, 0x7f, 0xfa, 0xfd, 0xff] {
                let mut payload = golden.payload.to_vec();
                payload[at] = byte;
                if let Err(error) = decode(&frame(golden.kind, &payload)) {
                    let text = error.to_string();
                    assert!(!text.contains(" { ") && !text.contains("::"), "{text}");
                }
            }
        }
    }
}

#[test]
fn messages_cut_short_are_refused() {
    let all = messages();
    let first = 4 + u32::from_le_bytes(*all.first_chunk().unwrap()) as usize;
    for len in (1..all.len()).filter(|len| *len != first) {
        let parsed = MessageBlock::parse(all.slice(..len), &Limits::default());
        assert!(parsed.is_err(), "{len} bytes");
    }
}

#[test]
fn a_frame_longer_than_agreed_is_refused_before_it_is_read() {
    let mut input = BytesMut::from(&[0, 0, 0, 4][..]);
    let refused = RawFrame::cut(&mut input, 1 << 20);
    assert_eq!(refused, Err(DecodeError::FrameTooLarge { len: 1 << 26, max: 1 << 20 }));
    assert!(input.capacity() < 1 << 20, "memory was taken for a length that was only claimed");
    let mut empty = BytesMut::from(&[0, 0, 0, 0][..]);
    assert_eq!(RawFrame::cut(&mut empty, 1 << 20), Err(DecodeError::Empty));
}

#[test]
fn kinds_that_nobody_knows_are_named() {
    for kind in [0x00, 0x0f, 0x7f, 0x80, 0xff] {
        assert_eq!(Request::decode(&frame(kind, &[])), Err(DecodeError::UnknownKind(kind)));
        assert_eq!(Response::decode(&frame(kind, &[])), Err(DecodeError::UnknownKind(kind)));
    }
    assert_eq!(Request::decode(&frame(0x81, &[])), Err(DecodeError::UnknownKind(0x81)));
}

/// Lengths that would take all memory, or overflow when multiplied by the size of an element.
#[test]
fn hostile_lengths_in_heads_are_refused() {
    let lengths = [u64::MAX, 1 << 63, (1 << 60) + 1, 1 << 60, u64::MAX / 16 + 1, 1 << 40, 1 << 32, 5 << 20];
    for length in lengths {
        let length = long(length);
        // Where the length of a list, of bytes or of a text stands first behind a few fixed bytes.
        let heads: [(u8, &[u8]); 10] = [
            (0x11, &[1, 1]),                 // publish: parts
            (0x22, &[9, 2, 0]),              // settle: ranges
            (0x01, &[0]),                    // hello: client
            (0x30, &[12]),                   // find topic: name
            (0xa0, &[2, 0]),                 // deliver: runs
            (0x90, &[7, 0, 9]),              // reply: browsed: runs
            (0x90, &[7, 0, 10]),             // reply: table: columns
            (0x90, &[7, 0, 10, 0]),          // rows
            (0x90, &[7, 0, 10, 0, 1]),       // values of a row
            (0x90, &[7, 0, 10, 0, 1, 1, 4]), // bytes
        ];
        for (kind, before) in heads {
            let payload = [before, &length, &[0; 64]].concat();
            let result = decode(&frame(kind, &payload));
            assert!(matches!(result, Err(DecodeError::Head { .. })), "{kind:#04x} {length:?}: {result:?}");
        }
        let hello = [&[0, 1, b'c', 3, 100, 1, b'a'][..], &length, &[0; 64]].concat();
        assert!(matches!(decode(&frame(0x01, &hello)), Err(DecodeError::Head { .. })));
    }
}

#[test]
fn hostile_lengths_in_messages_are_refused() {
    for bytes in [
        &b"\xff\xff\xff\xff\0"[..],
        b"\0\0\0\0",
        b"\x03\0\0\0\x01\xff\xff",
        b"\x05\0\0\0\x02\xff\xff\0\0",
        b"\x0a\0\0\0\x02\x01\0\x01\0h\xff\xff\xff\xff",
        b"\x02\0\0\0\x20x",
        b"\x02\0\0\0\x10\x0a",
    ] {
        let parsed = MessageBlock::parse(Bytes::from_static(bytes), &Limits::default());
        assert!(parsed.is_err(), "{bytes:02x?}");
    }
    let not_utf8 = Bytes::from_static(b"\x0a\0\0\0\x02\x01\0\x01\0\xff\0\0\0\0");
    let refused = MessageBlock::parse(not_utf8, &Limits::default());
    assert_eq!(refused, Err(MessageError::Invalid { index: 0, field: "header name" }));
}

#[test]
fn numbers_too_large_for_their_field_are_refused() {
    // A handle has 32 bits, a code 16.
    let close = long(1 << 32);
    assert!(matches!(decode(&frame(0x12, &close)), Err(DecodeError::Head { .. })));
    let failed = [&long(1 << 16)[..], &[0]].concat();
    assert!(matches!(decode(&frame(0x85, &failed)), Err(DecodeError::Head { .. })));
    // Variants that do not exist, a bool and an option that are neither.
    for (kind, payload) in
        [(0x22, &[9, 2, 5, 0][..]), (0x31, &[7, 99]), (0x10, &[6, 1, 1, b'p', 2]), (0x01, &[2])]
    {
        assert!(matches!(decode(&frame(kind, payload)), Err(DecodeError::Head { .. })), "{payload:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_payload_makes_a_decoder_panic(kind: u8, payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let frame = frame(kind, &payload);
        let _ = Request::decode(&frame);
        let _ = Response::decode(&frame);
    }

    #[test]
    fn no_stream_makes_the_cutter_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), max in 0_u64..400) {
        let mut input = BytesMut::from(&bytes[..]);
        while let Ok(Some(frame)) = RawFrame::cut(&mut input, max) {
            prop_assert!(frame.payload.len() as u64 <= max);
            let _ = Request::decode(&frame);
        }
    }

    #[test]
    fn a_frame_with_changed_bytes_makes_nothing_panic(
        which: prop::sample::Index,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let golden = golden();
        let chosen = which.get(&golden);
        let mut payload = chosen.payload.to_vec();
        for (at, byte) in changes {
            if !payload.is_empty() {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
        }
        let changed = frame(chosen.kind, &payload);
        if let Ok(Request::Publish(_, messages)) = Request::decode(&changed)
            && let Ok(block) = MessageBlock::parse(messages, &Limits::default())
        {
            for message in block.iter() {
                prop_assert!(Message::decode(&message).is_ok(), "what was parsed is decoded");
            }
        }
        let _ = Response::decode(&changed);
    }
}
