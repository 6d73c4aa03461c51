//! A node: waits for the lock as standby, serves as master, and ends. There is no way back: a node that was master
//! ends its process, and the service manager starts a clean standby.
//!
//! ```text
//! standby --lock--> recovering --claim, seal, recover--> master --drain, release--> end
//!                        |                                  |
//!                        +--anything goes wrong--> end <----+--fence, lock, write or sync fails--> end at once
//! ```
//!
//! A node that is told to stop does so in each of these states, also where the storage does not answer: as standby and
//! while it recovers at once, as master when the drain has had its time.
//!
//! One that is overtaken before it serves, where locks do not exclude, ends with [`EXIT_FENCED`] as well: nothing is
//! wrong with it.
//!
//! A node that finds the lock free when it starts, and a store that was released and has another mode than configured,
//! converts it in an epoch before the one in which it serves. A standby that takes over never does.
//!
//! Everything that can refuse (directory, rights, format, addresses) is checked before an epoch is claimed, so that
//! a node that cannot serve never unseats one that does.

mod converting;
mod ending;
mod guard;
mod master;
mod service_manager;
mod standby;
mod storage;
mod watch;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::watch as state;
use tokio_util::sync::CancellationToken;

pub use ending::EXIT_FENCED;

use crate::address::keeper::{Confidence, Keeper};
use crate::address::{AddressError, Holdings};
use crate::admin;
use crate::config::Config;
use crate::engine::EngineError;
use crate::ha::block::Address;
use crate::ha::claim::{ClaimError, ReleaseError};
use crate::ha::control::ControlError;
use crate::ha::directory::{Create, Directory, DirectoryError};
use crate::ha::fence::FenceError;
use crate::ha::identity::{Identity, IdentityError};
use crate::ha::lock::{LockError, StoreLock};
use crate::model::id::Epoch;
use crate::model::time::Sighting;
use crate::protocol::response::Role;
use crate::server::{FENCE_AGE_MAX, Server, Standing, bind};
use crate::store::StoreError;

/// How old the last check of the fence may be for a node to announce its floating address; so many of its intervals,
/// where they are longer.
const FRESH_MAX: Duration = Duration::from_secs(1);
const FRESH_POLLS: u32 = 3;

/// Why a node does not start or does not go on. The process must end.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}{}", what_to_do(source, setting))]
    Listen {
        /// The setting that names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The shared directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The storage was found unfit.
    #[error(
        "the check found the storage of {} unfit: {found}; mend it and run `baton store check {}` again, on both hosts \
         with --listen and --peer, or set allow_unfit_storage = true to go on nevertheless",
        path.display(),
        path.display()
    )]
    Unfit {
        /// The shared directory.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// The lock cannot be had, for another reason than that another process holds it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The control file cannot be used.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The process cannot be told apart from others.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No epoch could be claimed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine cannot be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The mastership could not be released: the other node will take over as after a crash.
    #[error("mastership not released: {0}")]
    Release(#[from] ReleaseError),
    /// An epoch that is recovered could not say so: the other node will take over as after a crash.
    #[error("epoch {0} does not begin: {1}")]
    Begin(Epoch, ReleaseError),
    /// The configuration names an address for clients that is too long.
    #[error("advertise: {0}")]
    Advertise(#[from] crate::ha::block::AddressTooLong),
    /// A floating address cannot be had.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A drain does not come to its end: the storage does not answer.
    #[error(
        "the drain is not over after {0:?}: the epoch is not released, and the other node takes over as after a crash"
    )]
    Drain(Duration),
    /// A thread that worked on the store has panicked: a bug.
    #[error("a thread of the node has panicked")]
    Panicked,
}

impl NodeError {
    /// Whether the store is damaged: another attempt would find the same, and claim an epoch for it.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_damage())
    }

    /// Whether another node has overtaken this one while it took over: nothing is wrong with it or with the store, and
    /// it is a clean standby when it is started again.
    #[must_use]
    pub const fn is_overtaken(&self) -> bool {
        matches!(
            self,
            Self::Claim(ClaimError::Lost { .. } | ClaimError::Contended)
                | Self::Store(StoreError::Fenced(_))
                | Self::Release(ReleaseError::Fence(FenceError::Superseded(_)))
                | Self::Begin(_, ReleaseError::Fence(FenceError::Superseded(_)))
        )
    }
}

/// What to do about an address that cannot be listened on, with a semicolon before it.
fn what_to_do(error: &std::io::Error, setting: &str) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => {
            format!("; another process listens there: end it, or choose another address with `{setting}`")
        }
        ErrorKind::AddrNotAvailable => format!("; it is not an address of this host: correct `{setting}`"),
        ErrorKind::PermissionDenied => format!("; choose a port above 1023 with `{setting}`"),
        _ => String::new(),
    }
}

fn listen(address: SocketAddr, setting: &'static str) -> Result<TcpListener, NodeError> {
    bind(address).map_err(|source| NodeError::Listen { setting, address, source })
}

/// How a node came by the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    /// It was free when the node started.
    FoundFree,
    /// Another node had it before.
    TookOver,
    /// It could be had while another node was master and well: here it excludes nobody.
    WithoutExclusion,
}

/// What a node begins with that has acquired the lock.
struct Acquired {
    lock: StoreLock,
    arrival: Arrival,
    /// The store time of the master that it has followed.
    seen: Option<Sighting>,
}

/// A node that is ready to run.
struct Node {
    config: Config,
    directory: Directory,
    /// Where clients and the other node reach this one.
    address: String,
    /// The same, as it stands in the control file.
    advertised: Address,
    /// This process.
    identity: Identity,
    standing: state::Sender<Standing>,
    server: Arc<Server>,
    /// The floating addresses, where there are any.
    keeper: Option<Keeper>,
    shutdown: CancellationToken,
}

/// Runs a node until `shutdown` or a switchover, or until something fails. A master whose fence or store fails ends
/// the whole process at once, with [`EXIT_FENCED`].
///
/// # Errors
/// Why it cannot start or go on.
pub async fn run(mut config: Config, shutdown: CancellationToken) -> Result<(), NodeError> {
    if let Some(interval) = service_manager::watchdog_interval() {
        // A node looks, and with that says that it is alive, once in each poll interval.
        config.poll_interval = config.poll_interval.min(interval);
    }
    let mut listeners = Vec::new();
    for &address in &config.listen {
        listeners.push(listen(address, "listen")?);
    }
    let admin_listener = config.admin.map(|address| listen(address, "admin")).transpose()?;
    let address = match (&config.advertise, listeners.first().and_then(|first| first.local_addr().ok())) {
        (Some(address), _) => address.clone(),
        (None, Some(address)) => address.to_string(),
        (None, None) => String::new(),
    };
    let (advertised, identity) = (Address::new(&address)?, Identity::of_this_process(config.node.clone())?);
    let holdings = Arc::new(Holdings::new(&config.address.addresses));
    let first = Standing {
        role: Role::Standby,
        epoch: Epoch(0),
        master: None,
        mode: config.mode.unwrap_or_default(),
        store_id: String::new(),
        since: Instant::now(),
        recovery: None,
        engine: None,
        holdings: Arc::clone(&holdings),
    };
    let (standing, watched) = state::channel(first);
    let end_connections = CancellationToken::new();
    let server = Server::new(
        config.node.to_string(),
        config.limits.clone(),
        config.heartbeat,
        FENCE_AGE_MAX + config.poll_interval,
        config.group_defaults.clone(),
        watched,
        end_connections.clone(),
    );
    let keeper = if config.address.addresses.is_empty() {
        None
    } else {
        let (server, fresh_max) = (Arc::clone(&server), FRESH_MAX.max(config.poll_interval * FRESH_POLLS));
        let confidence = move || match server.fence_age() {
            _ if server.is_out_of_touch() => Confidence::Lost,
            Some(age) if age > fresh_max => Confidence::Stale,
            _ => Confidence::Fresh,
        };
        Some(Keeper::start(config.address.clone(), holdings, confidence)?)
    };
    // Last, because it may make something: the directory and the lock file.
    let create = if config.create_store { Create::Allowed } else { Create::Refused };
    let directory = Directory::open(&config.store, create, config.store_id)?;
    storage::heed(&directory, &config)?;
    let mut serving: Vec<_> = listeners
        .into_iter()
        .map(|listener: TcpListener| {
            if let Ok(address) = listener.local_addr() {
                tracing::info!(%address, "listening");
            }
            tokio::spawn(Arc::clone(&server).run(listener))
        })
        .collect();
    if let Some(listener) = admin_listener {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "health is told");
        }
        serving.push(tokio::spawn(admin::run(listener, Arc::clone(&server), end_connections.clone())));
    }
    let node = Node { config, directory, address, advertised, identity, standing, server, keeper, shutdown };
    let result = node.run().await;
    service_manager::tell(&[NotifyState::Stopping]);
    end_connections.cancel();
    for listener in serving {
        // A listener's task ends only by being told to, just now.
        let _ = listener.await;
    }
    result
}

impl Node {
    async fn run(&self) -> Result<(), NodeError> {
        let Some(acquired) = self.stand_by().await? else {
            tracing::info!("stopped while standby");
            return Ok(());
        };
        self.serve(acquired).await
    }

    /// Changes what the node is, for everybody to see.
    fn set_standing(&self, change: impl FnOnce(&mut Standing)) {
        self.standing.send_modify(|standing| {
            let before = standing.role;
            change(standing);
            if standing.role != before {
                standing.since = Instant::now();
            }
        });
    }
}
