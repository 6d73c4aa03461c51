//! Encoded messages from outside: what passes the check is decoded, and encoded again it is the same bytes.
//!
//! ```sh
//! cargo +nightly fuzz run messages
//! ```
#![no_main]

use batonmq::model::limits::Limits;
use batonmq::model::message::{Message, MessageBlock};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Message::decode(&Bytes::copy_from_slice(bytes));
    let Ok(block) = MessageBlock::parse(Bytes::copy_from_slice(bytes), &Limits::default()) else {
        return;
    };
    let messages: Vec<_> =
        (0..block.count()).map(|index| block.message(index).expect("what was parsed is decoded")).collect();
    assert_eq!(MessageBlock::encode(&messages).bytes(), block.bytes());
});
