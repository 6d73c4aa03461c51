//! Archives from outside: whatever they say, reading one ends, and what is read fits the state that came before.
//!
//! The checksums of sections are made right first: otherwise nothing would come past them.
//!
//! ```sh
//! cargo +nightly fuzz run archives
//! ```
#![no_main]

use batonmq::store::archive::Reader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let mut archive = b"BATONARC\x01\0\0\0".to_vec();
    archive.extend(crc32c::crc32c(&archive).to_le_bytes());
    section(&mut archive, 1, br#"{"store_id":"","mode":"file","made_at":0}"#);
    // Kind and length of a section, then its content, and so on.
    let mut rest = content;
    while let [kind, low, high, behind @ ..] = rest {
        let (content, behind) = behind.split_at(behind.len().min(u16::from_le_bytes([*low, *high]).into()));
        section(&mut archive, kind % 5, content);
        rest = behind;
    }
    let Ok(mut reader) = Reader::open(archive.as_slice()) else { return };
    while let Ok(Some((topic, chunk))) = reader.next_messages() {
        assert!(chunk.range().end <= reader.snapshot().topics[&topic].end);
    }
});

fn section(archive: &mut Vec<u8>, kind: u8, content: &[u8]) {
    let start = archive.len();
    archive.push(kind);
    archive.extend((content.len() as u32).to_le_bytes());
    archive.extend(content);
    let sum = crc32c::crc32c(&archive[start..]);
    archive.extend(sum.to_le_bytes());
}
