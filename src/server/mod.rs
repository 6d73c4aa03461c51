//! The edge towards clients: listeners, connections, and what a node that is not master answers.
//!
//! A connection is one task. It reads frames, checks them and hands them to the engine in batches; what comes back
//! goes through the connection's [`Outbox`](crate::engine::Outbox). Nothing here decides anything about messages,
//! and nothing here touches the store.

mod connection;
mod fence_age;
mod greeting;
mod input;
mod places;
mod standby;
#[cfg(test)]
mod tests;
pub mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch as state};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use connection::STALLED_MIN;
pub use fence_age::FENCE_AGE_MAX;
pub use greeting::HANDSHAKE_MAX;

use fence_age::FenceAge;
use places::Places;
use watch::Progress;

use crate::address::Holdings;
use crate::config::floating::FloatingAddress;
use crate::engine::{Engine, Memory};
use crate::model::id::{Epoch, SessionId};
use crate::model::limits::Limits;
use crate::model::mode::Mode;
use crate::model::settings::GroupSettings;
use crate::model::version::{FORMAT_WRITTEN, FORMATS_READ};
use crate::protocol::VERSIONS;
use crate::protocol::response::{FloatingStatus, NodeStatus, Role};

/// Connections that the system holds until they are accepted.
const BACKLOG: u32 = 4096;
/// How long to wait before accepting again after the system had no resources for it.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Program and version, as it is told to clients.
pub const SERVER: &str = concat!("baton ", env!("CARGO_PKG_VERSION"));

/// What the node is at the moment.
#[derive(Clone)]
pub struct Standing {
    /// Its role.
    pub role: Role,
    /// Its epoch; of a standby, that of the master it knows.
    pub epoch: Epoch,
    /// Address of the master, where it is known.
    pub master: Option<String>,
    /// Mode of the store, where it is known.
    pub mode: Mode,
    /// Identity of the store; empty where there is none yet.
    pub store_id: String,
    /// Since when.
    pub since: Instant,
    /// How the recovery of a node that has claimed gets on.
    pub recovery: Option<Arc<Progress>>,
    /// The engine of a master.
    pub engine: Option<Engine>,
    /// The floating addresses, and whether they are here.
    pub holdings: Arc<Holdings>,
}

/// What the connections of a node have in common.
pub struct Server {
    /// Name of the node.
    pub node: String,
    /// The limits.
    pub limits: Limits,
    /// Heartbeat that the node asks for where the client asks for a longer one.
    pub heartbeat: Duration,
    /// Settings of groups that come into being by being used without any.
    pub group_defaults: GroupSettings,
    /// What the node is.
    pub standing: state::Receiver<Standing>,
    /// Told when a client asks for a switchover.
    pub switchover: Notify,
    /// Ends all connections.
    pub shutdown: CancellationToken,
    /// Connections of the other node that follow this one as master.
    followers: AtomicU64,
    next_session: AtomicU64,
    places: Places,
    /// What all connections hold together.
    memory: Arc<Memory>,
    fence_age: FenceAge,
    /// The standby's looks at the lock.
    looks: Progress,
    /// How long ago the last of them may be.
    look_age_max: Duration,
}

impl Server {
    /// What the connections of a node need. A master serves clients while its last check of the fence is younger than
    /// `fence_age_max`.
    #[must_use]
    pub fn new(
        node: String,
        limits: Limits,
        heartbeat: Duration,
        fence_age_max: Duration,
        group_defaults: GroupSettings,
        standing: state::Receiver<Standing>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            places: Places::new(limits.connections_max),
            memory: Memory::new(limits.memory_bytes_max),
            fence_age: FenceAge::new(fence_age_max),
            looks: Progress::new(),
            look_age_max: fence_age_max,
            limits,
            heartbeat,
            group_defaults,
            standing,
            switchover: Notify::new(),
            shutdown,
            followers: AtomicU64::new(0),
            next_session: AtomicU64::new(1),
        })
    }

    /// Serves a listener until the shutdown; then waits for its connections to have said what they had to.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        let connections = TaskTracker::new();
        let accepting = async {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        // Behind accepting, so that no listener keeps a place from the others while nobody comes.
                        let place = self.places.socket().await;
                        let server = Arc::clone(&self);
                        connections.spawn(server.serve(stream, peer, place));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accepting => {}
            () = self.shutdown.cancelled() => {}
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        if let Err(error) = connection::run(&self, stream, place).await {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }

    fn session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// What the node is to clients: a master that cannot make sure of its mastership is none.
    pub(crate) fn standing_now(&self) -> Standing {
        let mut standing = self.standing.borrow().clone();
        if standing.role == Role::Master
            && let Some(age) = standing.engine.as_ref().and_then(|engine| self.fence_age.passed(engine))
        {
            standing.role = Role::Recovering;
            standing.master = None;
            standing.since = Instant::now().checked_sub(age).unwrap_or(standing.since);
        }
        standing
    }

    /// How long ago a master has last made sure that it is one.
    pub(crate) fn fence_age(&self) -> Option<Duration> {
        self.standing.borrow().engine.as_ref().map(|engine| engine.vitals().fence_age())
    }

    /// Whether this is a master that cannot make sure that it still is one.
    pub(crate) fn is_out_of_touch(&self) -> bool {
        let standing = self.standing_now();
        standing.role == Role::Recovering && standing.engine.is_some()
    }

    /// Notes that the standby has looked at the lock, beginning at `at`.
    pub(crate) fn looked(&self, at: Instant) {
        self.looks.made(at);
    }

    /// For how long a standby has not been able to look at the lock, where that is too long.
    pub(crate) fn unattended(&self) -> Option<Duration> {
        Some(self.looks.fence_age()).filter(|age| *age >= self.look_age_max)
    }

    /// What there is to know of the node.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let standing = self.standing_now();
        let counts = standing.engine.as_ref().map(|engine| engine.vitals().counts()).unwrap_or_default();
        NodeStatus {
            node: self.node.clone(),
            role: standing.role,
            epoch: standing.epoch,
            mode: standing.mode.to_string(),
            store_id: standing.store_id,
            master: standing.master,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role_seconds: standing.since.elapsed().as_secs(),
            connections: self.places.admitted(),
            topics: counts.topics,
            groups: counts.groups,
            messages: counts.messages,
            delayed: counts.delayed,
            addresses: standing.holdings.iter().map(floating_status).collect(),
            protocol: VERSIONS,
            store_formats: FORMATS_READ,
            store_format: FORMAT_WRITTEN,
            unreadable: counts.unreadable,
        }
    }
}

fn floating_status((address, here): (FloatingAddress, bool)) -> FloatingStatus {
    FloatingStatus { address: address.to_string(), here }
}

/// Binds a listener.
///
/// # Errors
/// Where the address is not this host's or is taken.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
