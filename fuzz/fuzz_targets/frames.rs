//! A stream of bytes as a node and as a client read it: cut into frames, every frame decoded both ways. What is
//! decoded is encoded again and must come out the same.
//!
//! ```sh
//! cargo +nightly fuzz run frames
//! ```
#![no_main]

use batonmq::model::limits::Limits;
use batonmq::model::message::{Message, MessageBlock};
use batonmq::protocol::frame::RawFrame;
use batonmq::protocol::request::Request;
use batonmq::protocol::response::Response;
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;

const FRAME_BYTES_MAX: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let mut input = BytesMut::from(bytes);
    while let Ok(Some(frame)) = RawFrame::cut(&mut input, FRAME_BYTES_MAX) {
        if let Ok(request) = Request::decode(&frame) {
            let again = recut(|out| request.encode(out));
            assert_eq!(Request::decode(&again).as_ref(), Ok(&request));
            if let Request::Publish(_, messages) = request {
                read_messages(messages);
            }
        }
        if let Ok(response) = Response::decode(&frame) {
            let again = recut(|out| response.encode(out));
            assert_eq!(Response::decode(&again).as_ref(), Ok(&response));
            if let Response::Deliver(_, messages) = response {
                read_messages(messages);
            }
        }
    }
});

fn recut(encode: impl FnOnce(&mut BytesMut)) -> RawFrame {
    let mut stream = BytesMut::new();
    encode(&mut stream);
    let frame = RawFrame::cut(&mut stream, u64::MAX).expect("own frames are valid");
    assert!(stream.is_empty());
    frame.expect("own frames are whole")
}

fn read_messages(messages: Bytes) {
    if let Ok(block) = MessageBlock::parse(messages, &Limits::default()) {
        for message in block.iter() {
            Message::decode(&message).expect("what was parsed is decoded");
        }
    }
}
