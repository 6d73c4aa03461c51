//! One attempt to connect to a node: socket, preface, greeting. Knows nothing of other nodes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};

use super::error::AttemptError;
use crate::model::id::Epoch;
use crate::protocol::error::{DecodeError, ErrorCode, Refusal};
use crate::protocol::frame::RawFrame;
use crate::protocol::preface::{self, PREFACE_BYTES};
use crate::protocol::request::{Hello, Purpose, Request};
use crate::protocol::response::{NotMaster, Response, Welcome};

/// Longest frame that a node may send before its `Welcome`.
const GREETING_BYTES_MAX: u64 = 64 << 10;

/// What the client says of itself.
#[derive(Clone, Debug)]
pub(super) struct Greeting {
    pub(super) name: String,
    pub(super) heartbeat: Duration,
    pub(super) epoch_seen: Epoch,
}

/// How a node answered the greeting.
#[derive(Debug)]
pub(super) enum Answer {
    Welcome(Welcome),
    NotMaster(NotMaster),
}

/// A connection whose greeting is done.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) address: String,
    pub(super) stream: TcpStream,
    pub(super) answer: Answer,
    /// What came behind the answer.
    pub(super) input: BytesMut,
}

/// Connects to a node, which is called `address`, and greets it, in at most `within`.
///
/// # Errors
/// Where nobody is there, or nobody who speaks this protocol, or the node refuses.
pub(super) async fn greet(
    address: &str,
    to: impl ToSocketAddrs,
    greeting: &Greeting,
    within: Duration,
) -> Result<Greeted, AttemptError> {
    match tokio::time::timeout(within, greet_patiently(address, to, greeting)).await {
        Ok(result) => result,
        Err(_) => Err(AttemptError::Silent { address: address.to_owned(), within }),
    }
}

async fn greet_patiently(
    address: &str,
    to: impl ToSocketAddrs,
    greeting: &Greeting,
) -> Result<Greeted, AttemptError> {
    let failed = |action| {
        move |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                AttemptError::Hangup { address: address.to_owned() }
            }
            _ => AttemptError::Io { address: address.to_owned(), action, source: Arc::new(source) },
        }
    };
    let mut stream = TcpStream::connect(to).await.map_err(|source| AttemptError::Io {
        address: address.to_owned(),
        action: "connect",
        source: Arc::new(source),
    })?;
    stream.set_nodelay(true).map_err(failed("set TCP_NODELAY"))?;
    socket2::SockRef::from(&stream)
        .set_tcp_user_timeout(Some(greeting.heartbeat * 3))
        .map_err(failed("set TCP_USER_TIMEOUT"))?;

    let hello = Hello {
        purpose: Purpose::Client,
        client: greeting.name.clone(),
        epoch_seen: greeting.epoch_seen,
        heartbeat_ms: u32::try_from(greeting.heartbeat.as_millis()).unwrap_or(u32::MAX),
        auth_mechanism: "anonymous".to_owned(),
        auth_data: Vec::new(),
    };
    // This client speaks one version only, so that its first frame need not wait for the node's choice.
    let mut output = BytesMut::from(&preface::client()[..]);
    Request::Hello(hello).encode(&mut output);
    stream.write_all(&output).await.map_err(failed("write"))?;

    let mut answer = [0; PREFACE_BYTES];
    stream.read_exact(&mut answer).await.map_err(failed("read"))?;
    let not_baton = |source| AttemptError::NotBaton { address: address.to_owned(), source };
    if let Err(highest) = preface::chosen(answer).map_err(not_baton)? {
        return Err(AttemptError::Version { address: address.to_owned(), highest });
    }
    let mut input = BytesMut::with_capacity(4 << 10);
    loop {
        while let Some(frame) = RawFrame::cut(&mut input, GREETING_BYTES_MAX).map_err(not_baton)? {
            let answer = match Response::decode(&frame).map_err(not_baton)? {
                Response::Welcome(welcome) => Answer::Welcome(welcome),
                Response::NotMaster(not_master) => Answer::NotMaster(not_master),
                Response::Heartbeat(_) => continue,
                Response::Failed(refusal) | Response::Goodbye(refusal) => {
                    return Err(AttemptError::Refused { address: address.to_owned(), refusal });
                }
                _ => return Err(not_baton(DecodeError::UnknownKind(frame.kind))),
            };
            return Ok(Greeted { address: address.to_owned(), stream, answer, input });
        }
        if stream.read_buf(&mut input).await.map_err(failed("read"))? == 0 {
            return Err(AttemptError::Hangup { address: address.to_owned() });
        }
    }
}

/// What a client does about a node that greets it as a master: `None` if it may be used.
pub(super) fn objection(
    address: &str,
    welcome: &Welcome,
    seen: Epoch,
    store_id: Option<&str>,
) -> Option<AttemptError> {
    let address = || address.to_owned();
    if welcome.epoch < seen {
        return Some(AttemptError::OldEpoch { address: address(), epoch: welcome.epoch, seen });
    }
    match store_id {
        Some(expected) if expected != welcome.store_id => Some(AttemptError::OtherStore {
            address: address(),
            found: welcome.store_id.clone(),
            expected: expected.to_owned(),
        }),
        _ if welcome.frame_bytes_max == 0 => Some(AttemptError::Refused {
            address: address(),
            refusal: Refusal::new(ErrorCode::Protocol, "the node takes no frames: frame_bytes_max is 0"),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::protocol::response::Role;

    /// What is not acknowledged for as long as silence may last ends the connection, whoever looks at it.
    #[tokio::test]
    async fn the_system_gives_up_what_is_not_acknowledged_for_three_heartbeats() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let node = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut preface = [0; PREFACE_BYTES];
            socket.read_exact(&mut preface).await.unwrap();
            let mut output = BytesMut::from(&preface::answer(preface).unwrap().0[..]);
            Response::NotMaster(NotMaster { role: Role::Standby, master: None }).encode(&mut output);
            socket.write_all(&output).await.unwrap();
            socket
        };
        let heartbeat = Duration::from_millis(700);
        let greeting = Greeting { name: "test".to_owned(), heartbeat, epoch_seen: Epoch(0) };
        let greet = greet("a", address, &greeting, Duration::from_secs(20));
        let (greeted, _socket) = tokio::join!(greet, node);
        let stream = greeted.unwrap().stream;
        let timeout = socket2::SockRef::from(&stream).tcp_user_timeout().unwrap();
        assert_eq!(timeout, Some(Duration::from_millis(2_100)));
        assert!(stream.nodelay().unwrap());
    }
}
