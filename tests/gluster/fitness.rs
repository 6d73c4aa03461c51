//! `baton store check` on both hosts at once.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::hosts::{Host, Link, Wire};

const PORT: u16 = 7472;
/// How long the lead waits for the lock of a host that is cut off, and for that to be back.
const TIMEOUT: &str = "60s";

/// Whether a host is cut off from its storage in the course of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Yes,
    No,
}

fn checker(host: &Host, dir: &Path, args: &[&str]) -> Child {
    let mut command = host.command(env!("CARGO_BIN_EXE_baton"));
    command.args(["store", "check"]).arg(dir).args(["--json", "--timeout", TIMEOUT]).args(args);
    start(&mut command)
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What two hosts find out about a directory, and the exit code of both. The second one is cut off where that is wanted.
pub fn check(hosts: [&Host; 2], dir: &Path, cut: Cut) -> (Value, i32) {
    let address = format!("{}:{PORT}", Wire::Clients.address(hosts[1].number));
    let mut second = checker(hosts[1], dir, &["--listen", &address]);
    let mut said = BufReader::new(second.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.starts_with("listening on "), "{line}");
    // Read to its end, so that it never waits for a reader.
    let listening = std::thread::spawn(move || {
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        rest
    });
    let flags: &[&str] = if cut == Cut::Yes { &["--cut"] } else { &[] };
    let mut lead = checker(hosts[0], dir, &[&["--peer", &address], flags].concat());
    let mut said_by_lead = String::new();
    for line in BufReader::new(lead.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains("now cut ") {
            hosts[1].set(Wire::Storage, Link::Down);
        } else if line.contains("go on") {
            hosts[1].set(Wire::Storage, Link::Up);
        }
        said_by_lead += &(line + "\n");
    }
    let ended = [lead, second].map(|child| child.wait_with_output().unwrap());
    let said_by_second = listening.join().unwrap();
    let [found, other] = ended.each_ref().map(|output| {
        serde_json::from_slice::<Value>(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {said_by_lead}\n{said_by_second}"))
    });
    assert_eq!(found, other, "both say the same");
    let codes = ended.map(|output| output.status.code().unwrap());
    assert_eq!(codes[0], codes[1]);
    (found, codes[0])
}

/// The text of a finding.
pub fn finding<'a>(found: &'a Value, code: &str) -> Option<&'a str> {
    let findings = found["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["code"] == code)?["text"].as_str()
}
