//! A node that may have few files open, and more connections than that. Whoever connects beyond the limit waits or is
//! told so; the node keeps the files that it needs to stay master.

mod support;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use batonmq::protocol::error::ErrorCode;
use batonmq::protocol::request::Purpose;
use batonmq::protocol::response::{Response, Role};
use support::neighbour::Neighbour;
use support::pair::Node;
use support::raw::{Raw, hello};

/// Files that the process may have open, and the clients that it then lets in.
const OPEN_FILES: u64 = 200;
const CLIENTS: usize = 38;
/// What is answered at once takes less than a client has to say its first words while others crowd.
const AT_ONCE: Duration = Duration::from_millis(900);

/// Connections were accepted until no file was left; the next check of the fence could not open the control file, and
/// the master ended, and then the other node.
#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_open_files_do_not_end_a_master() {
    for mode in ["file", "database"] {
        let dir = tempfile::tempdir().unwrap();
        let mut node =
            Node::new("a", &dir.path().join("store"), mode, dir.path()).with_open_files(OPEN_FILES);
        node.start();
        node.wait_for(Role::Master).await;
        assert!(node.log().contains("connections_max is lowered from its default"), "{}", node.log());
        let mut neighbour = Neighbour::new(&node.address).await;

        let silent: Vec<TcpStream> =
            (0..2 * OPEN_FILES).map(|_| TcpStream::connect(&node.address).unwrap()).collect();
        for _ in 0..50 {
            neighbour.is_undisturbed("more sockets than files").await;
        }
        drop(silent);

        // One is the neighbour's.
        let _clients: Vec<Raw> = (1..CLIENTS).map(|_| Raw::client(&node.address)).collect();
        let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(&node.address).unwrap()).collect();
        for _ in 0..10 {
            let started = Instant::now();
            let mut more = Raw::greeted(&node.address);
            more.send(&hello(Purpose::Client));
            match more.next() {
                Some(Response::Failed(refusal)) => {
                    assert_eq!(refusal.code, ErrorCode::TooManyConnections, "{refusal}");
                }
                other => panic!("{other:?}"),
            }
            assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
        }
        neighbour.is_undisturbed("more clients than allowed").await;
        drop((silent, _clients));
        neighbour.finish().await;
    }
}
