//! What a node tells about its health over HTTP, as load balancers and check scripts ask for it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use batonmq::model::limits::ADMIN_CONNECTIONS_MAX;
use batonmq::protocol::response::Role;
use rustix::process::Signal;
use serde_json::Value;
use support::pair::{Node, PATIENCE, free_address};

/// A node with an admin address.
fn node(name: &str, dir: &Path) -> (Node, String) {
    let admin = free_address();
    (Node::new(name, &dir.join("store"), "file", dir).set("BATON_ADMIN", &admin), admin)
}

fn connect(admin: &str) -> TcpStream {
    let stream = TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Code, head and body of the answer to a request.
fn ask(admin: &str, request: &str) -> (u16, String, String) {
    let mut stream = connect(admin);
    write!(stream, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect(&text);
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect(head);
    (code, head.to_owned(), body.to_owned())
}

/// Code and body of `/health/...`.
fn health(admin: &str, question: &str) -> (u16, Value) {
    let (code, _, body) = ask(admin, &format!("GET /health/{question}"));
    (code, serde_json::from_str(&body).expect(&body))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_is_the_master_and_changes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let [(mut a, admin_a), (mut b, admin_b)] = ["a", "b"].map(|name| node(name, dir.path()));
    a.start();
    a.wait_for(Role::Master).await;
    b.start();
    b.wait_for(Role::Standby).await;
    for (admin, name, role, primary) in [(&admin_a, "a", "master", 200), (&admin_b, "b", "standby", 503)] {
        for (question, expected) in [("live", 200), ("ready", 200), ("primary", primary)] {
            let (code, body) = health(admin, question);
            assert_eq!((code, &body["node"], &body["role"]), (expected, &name.into(), &role.into()));
            assert_eq!(body.get("reason").is_none(), code == 200, "{body}");
        }
    }
    let (_, body) = health(&admin_b, "primary");
    assert_eq!(
        (&body["epoch"], body["reason"].as_str()),
        (&1.into(), Some(&*format!("it is the standby of {}", a.address)))
    );
    a.signal(Signal::KILL);
    a.wait();
    b.wait_for(Role::Master).await;
    let (code, body) = health(&admin_b, "primary");
    assert_eq!((code, &body["epoch"]), (200, &2.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_health_is_told_and_only_to_those_who_read() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, admin) = node("a", dir.path());
    a.start();
    a.wait_for(Role::Master).await;
    let (code, head, body) = ask(&admin, "HEAD /health/primary");
    assert_eq!((code, body.as_str()), (200, ""));
    assert!(
        head.contains("content-type: application/json") && head.contains("cache-control: no-store"),
        "{head}"
    );
    for (request, code) in
        [("GET /", 404), ("GET /health", 404), ("POST /health/live", 405), ("GET /health/live/x", 404)]
    {
        assert_eq!(ask(&admin, request).0, code, "{request}");
    }
    let long = format!("GET /health/live?{}", "x".repeat(64 << 10));
    let mut stream = connect(&admin);
    // It may be cut off while it is still talking.
    let _ = write!(stream, "{long} HTTP/1.1\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

/// Open connections, silent or in the middle of a request, do not hold up the end of a node, nor its clients.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_ends_although_somebody_keeps_asking() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, admin) = node("a", dir.path());
    a.start();
    a.wait_for(Role::Master).await;
    let mut asking: Vec<TcpStream> = (0..2 * ADMIN_CONNECTIONS_MAX).map(|_| connect(&admin)).collect();
    for stream in asking.iter_mut().step_by(2) {
        stream.write_all(b"GET /health/live HTTP/1.1\r\nhost").unwrap();
    }
    a.wait_for(Role::Master).await;
    a.signal(Signal::TERM);
    assert_eq!(a.wait().code(), Some(0), "{}", a.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_address_that_is_taken_is_named_before_anything_is_claimed() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut a = Node::new("a", &dir.path().join("store"), "file", dir.path()).set("BATON_ADMIN", address);
    a.start();
    assert_eq!(a.wait().code(), Some(1));
    let log = a.log();
    assert!(
        log.contains(&format!("cannot listen on {address}")) && log.contains("another address with `admin`"),
        "{log}"
    );
    assert!(!dir.path().join("store").exists());
}
