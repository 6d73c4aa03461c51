//! The first words of a connection: prefaces, the client's hello, and why it may not come in.
//!
//! Whoever is not let in is told why and what to do, in the protocol where it speaks it, and the connection lingers
//! until it has had a chance to read that. Nothing here knows an engine.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;

use super::connection::ConnectionError;
use super::input::{Input, InputError};
use super::places::{Admitted, Places};
use crate::protocol::error::{DecodeError, ErrorCode, Refusal};
use crate::protocol::preface::{self, PREFACE_BYTES};
use crate::protocol::request::{Hello, Request};
use crate::protocol::response::Response;

/// Longest frame before a client has been let in, and on a standby.
pub(super) const FIRST_FRAME_BYTES_MAX: u64 = 64 << 10;
/// How long a client may take for preface and first frame. Less where connections crowd.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// The only way so far for a client to say who it is: not at all.
const ANONYMOUS: &str = "anonymous";
/// Characters of a text of the client's that are shown back to it.
const SHOWN_MAX: usize = 32;
/// How requests of the protocol begin that people try first.
const HTTP_METHODS: [&[u8]; 7] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"CONNECT "];

/// Exchanges prefaces, reads the first frame and lets the client in where there is room. An error was told to the
/// client where that is possible.
pub(super) async fn greet<'a>(
    input: &mut Input,
    write: &mut OwnedWriteHalf,
    places: &'a Places,
) -> Result<(Hello, Admitted<'a>), ConnectionError> {
    let first = input.exact::<PREFACE_BYTES>().await?;
    let (answer, version) = match preface::answer(first) {
        Ok(answer) => answer,
        Err(error) => {
            if HTTP_METHODS.iter().any(|method| first.starts_with(&method[..method.len().min(PREFACE_BYTES)]))
            {
                write.write_all(http_answer().as_bytes()).await?;
            }
            return Err(error.into());
        }
    };
    write.write_all(&answer).await?;
    if version.is_none() {
        // The answer has said it: frames of another version would make no sense.
        return Err(ConnectionError::Version(first[5], first[6]));
    }
    let first = match input.frame(FIRST_FRAME_BYTES_MAX).await {
        Err(InputError::Decode(error)) => return Err(refuse(write, protocol_refusal(&error)).await),
        first => first?,
    };
    let refusal = match Request::decode(&first) {
        Ok(Request::Hello(hello)) => match admit(&hello, places) {
            Ok(admitted) => return Ok((hello, admitted)),
            Err(refusal) => refusal,
        },
        Ok(_) => Refusal::new(ErrorCode::Protocol, "the first frame must be a hello"),
        Err(error) => protocol_refusal(&error),
    };
    Err(refuse(write, refusal).await)
}

fn admit<'a>(hello: &Hello, places: &'a Places) -> Result<Admitted<'a>, Refusal> {
    if hello.auth_mechanism != ANONYMOUS {
        let shown: String = hello.auth_mechanism.chars().take(SHOWN_MAX).collect();
        let text = format!("authentication {shown:?} is not offered; use {ANONYMOUS:?}");
        return Err(Refusal::new(ErrorCode::Unauthorized, text));
    }
    places.admit(hello.purpose).ok_or_else(|| {
        let text = "the node has as many connections as connections_max allows; close some or raise it";
        Refusal::new(ErrorCode::TooManyConnections, text)
    })
}

/// What somebody hears who takes the port for a web server, a health check for example.
fn http_answer() -> String {
    let text = "this port speaks Baton's own protocol, not HTTP; `baton status --server HOST:PORT` asks it\n";
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    )
}

/// Sends a frame, waiting for the socket.
pub(super) async fn send(write: &mut OwnedWriteHalf, response: &Response) -> std::io::Result<()> {
    let mut bytes = BytesMut::new();
    response.encode(&mut bytes);
    write.write_all_buf(&mut bytes).await
}

/// Tells the client why the connection ends.
async fn refuse(write: &mut OwnedWriteHalf, refusal: Refusal) -> ConnectionError {
    match send(write, &Response::Failed(refusal.clone())).await {
        Ok(()) => ConnectionError::Refused(refusal),
        Err(error) => error.into(),
    }
}

/// What a client is told whose bytes make no sense.
pub(super) fn protocol_refusal(error: &DecodeError) -> Refusal {
    match error {
        DecodeError::FrameTooLarge { .. } => Refusal::new(
            ErrorCode::FrameTooLarge,
            format!("{error} (frame_bytes_max; before the hello {FIRST_FRAME_BYTES_MAX})"),
        ),
        _ => Refusal::new(ErrorCode::Protocol, error.to_string()),
    }
}
