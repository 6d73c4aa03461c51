//! A connection to a node that is not master: it learns where the master is, and may ask for the status.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;

use super::Server;
use super::connection::{ConnectionError, FAREWELL_MAX};
use super::greeting::FIRST_FRAME_BYTES_MAX;
use super::input::Input;
use super::watch;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{Admin, AdminCommand, Purpose, Request};
use crate::protocol::response::{NotMaster, Reply, Response, Role};

/// How long such a connection may stay without asking for anything.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Answers `NotMaster`, then requests for the status, until the client has enough. The other node gets signs of life
/// where this one recovers.
pub(super) async fn run(
    server: &Server,
    purpose: Purpose,
    heartbeat: Duration,
    mut input: Input,
    mut socket: OwnedWriteHalf,
) -> Result<(), ConnectionError> {
    let (role, master) = {
        let standing = server.standing_now();
        // A master answers so only to a client that has seen a higher epoch: it must look elsewhere.
        let role = if standing.role == Role::Master { Role::Recovering } else { standing.role };
        let master = if standing.role == Role::Standby { standing.master } else { None };
        (role, master)
    };
    let mut output = BytesMut::new();
    Response::NotMaster(NotMaster { role, master }).encode(&mut output);
    if purpose == Purpose::Watch && role == Role::Recovering {
        socket.write_all_buf(&mut output).await?;
        return watch::run(server, role, input, socket, heartbeat).await;
    }
    loop {
        // One that asks and does not read ends here as well.
        let asked = async {
            socket.write_all_buf(&mut output).await?;
            Ok::<_, ConnectionError>(input.frame(FIRST_FRAME_BYTES_MAX).await?)
        };
        let frame = tokio::select! {
            frame = asked => frame?,
            () = tokio::time::sleep(IDLE_MAX) => return Ok(()),
            () = server.shutdown.cancelled() => return Ok(()),
        };
        match Request::decode(&frame)? {
            Request::Admin(Admin { request, command: AdminCommand::Status }) => {
                Response::Reply(request, Ok(Reply::Status(Box::new(server.status())))).encode(&mut output);
            }
            Request::Heartbeat => {}
            Request::Goodbye => return Ok(()),
            Request::Admin(Admin { request, .. }) => {
                let refusal =
                    Refusal::new(ErrorCode::NotMaster, "this node is not master; ask the other one");
                Response::Reply(request, Err(refusal)).encode(&mut output);
            }
            _ => {
                let refusal =
                    Refusal::new(ErrorCode::NotMaster, "this node is not master; connect to the other one");
                Response::Failed(refusal).encode(&mut output);
                let _ = tokio::time::timeout(FAREWELL_MAX, socket.write_all_buf(&mut output)).await;
                return Ok(());
            }
        }
    }
}
