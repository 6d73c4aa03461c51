//! `docs/protocol.md` and the code say the same. `BATON_BLESS=1 cargo test --test protocol` writes its test vectors
//! anew.

use std::fmt::Write;

use batonmq::model::settings::{
    JITTER_PERCENT_MAX, LEASE_MS_MIN, MULTIPLIER_PERCENT_MAX, MULTIPLIER_PERCENT_MIN, WAIT_MS_MAX,
};
use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::frame::RawFrame;
use batonmq::protocol::preface;
use batonmq::protocol::request::Request;
use batonmq::protocol::response::Response;
use bytes::BytesMut;

use crate::vectors::{requests, responses};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> BytesMut {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// What stands between the markers of a section.
fn section<'a>(document: &'a str, name: &str) -> &'a str {
    let begin = format!("<!-- {name} -->\n");
    let end = format!("<!-- end of {name} -->");
    let (_, rest) = document.split_once(&begin).expect("the section begins");
    rest.split_once(&end).expect("the section ends").0
}

/// The vectors of a section: what is encoded, and the bytes.
fn vectors(name: &str) -> Vec<(&'static str, &'static str)> {
    let lines: Vec<_> =
        section(DOCUMENT, name).lines().filter(|line| !line.is_empty() && !line.starts_with("```")).collect();
    lines.chunks(2).map(|pair| (pair[0], pair[1].trim())).collect()
}

/// The three sections with vectors, as they must be.
fn expected() -> [(&'static str, String); 3] {
    let (node, _) = preface::answer(preface::client()).unwrap();
    let prefaces = [
        ("client, speaks version 1 to 1".to_owned(), BytesMut::from(&preface::client()[..])),
        ("node, chose version 1, speaks up to 1".to_owned(), BytesMut::from(&node[..])),
    ];
    let requests: Vec<_> =
        requests().iter().map(|request| (format!("{request:?}"), encoded(request))).collect();
    let responses: Vec<_> = responses()
        .iter()
        .map(|response| {
            let mut bytes = BytesMut::new();
            response.encode(&mut bytes);
            (format!("{response:?}"), bytes)
        })
        .collect();
    let text = |frames: &[(String, BytesMut)]| {
        let lines: Vec<_> =
            frames.iter().map(|(value, bytes)| format!("{value}\n  {}", hex(bytes))).collect();
        format!("```text\n{}\n```\n", lines.join("\n"))
    };
    [("prefaces", text(&prefaces)), ("requests", text(&requests)), ("responses", text(&responses))]
}

#[test]
fn the_bounds_of_group_settings_are_those_of_the_code() {
    for (setting, least, most) in [
        ("lease_ms", LEASE_MS_MIN, format!("{WAIT_MS_MAX} (30 days)")),
        ("maximum_ms", 0, format!("{WAIT_MS_MAX} (30 days)")),
        ("multiplier_percent", MULTIPLIER_PERCENT_MIN.into(), MULTIPLIER_PERCENT_MAX.to_string()),
        ("jitter_percent", 0, JITTER_PERCENT_MAX.to_string()),
    ] {
        let row = format!("| `{setting}` | {least} | {most} |\n");
        assert!(DOCUMENT.contains(&row), "{row}");
    }
}

#[test]
fn every_frame_has_the_bytes_of_the_document() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md");
    let mut document = std::fs::read_to_string(path).unwrap();
    let bless = std::env::var_os("BATON_BLESS").is_some();
    for (name, expected) in expected() {
        if bless {
            let begin = document.find(&format!("<!-- {name} -->\n")).unwrap() + name.len() + 10;
            let end = document.find(&format!("<!-- end of {name} -->")).unwrap();
            document.replace_range(begin..end, &expected);
        }
        assert_eq!(
            section(&document, name),
            expected,
            "bytes on the wire have changed, or docs/protocol.md has; BATON_BLESS=1 writes section {name} anew"
        );
    }
    if bless {
        std::fs::write(path, document).unwrap();
    }
}

#[test]
fn the_bytes_of_the_document_are_understood() {
    for ((_, bytes), request) in vectors("requests").into_iter().zip(requests()) {
        let frame = RawFrame::cut(&mut unhex(bytes), u64::MAX).unwrap().unwrap();
        assert_eq!(Request::decode(&frame), Ok(request));
    }
    for ((_, bytes), response) in vectors("responses").into_iter().zip(responses()) {
        let frame = RawFrame::cut(&mut unhex(bytes), u64::MAX).unwrap().unwrap();
        assert_eq!(Response::decode(&frame), Ok(response));
    }
}

fn encoded(request: &Request) -> BytesMut {
    let mut bytes = BytesMut::new();
    request.encode(&mut bytes);
    bytes
}

#[test]
fn every_error_code_stands_in_the_document_with_its_number() {
    let rows: Vec<Vec<&str>> = section(DOCUMENT, "error codes")
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| number") && !line.starts_with("| ---"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    for row in &rows {
        let number: u16 = row[1].parse().unwrap();
        assert_eq!(format!("`{}`", ErrorCode::from(number)), row[2], "{number}");
    }
    let known =
        (1..=u16::MAX).take_while(|number| !matches!(ErrorCode::from(*number), ErrorCode::Other(_))).count();
    assert_eq!(rows.len(), known);
}

#[test]
fn every_number_of_an_error_code_is_its_own() {
    for number in 0..=u16::MAX {
        assert_eq!(u16::from(ErrorCode::from(number)), number);
    }
}

#[test]
fn every_kind_of_frame_stands_in_the_document() {
    let mut kinds: Vec<u8> = requests().iter().map(|request| encoded(request)[4]).collect();
    for response in responses() {
        let mut bytes = BytesMut::new();
        response.encode(&mut bytes);
        kinds.push(bytes[4]);
    }
    kinds.dedup();
    for kind in kinds {
        assert!(DOCUMENT.contains(&format!("(`0x{kind:02x}`)")), "{kind:#04x}");
    }
}
