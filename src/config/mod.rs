//! Validated settings of a node: what `serve` runs with.
//!
//! A setting comes from, each overriding the one before: the built-in value, the file, the environment variable
//! (`BATON_` and the key in capitals), the flag. A [`Config`] that [`load`](load::load) answers is free of
//! contradictions. The file with every key and its meaning is `systemd/baton.toml`.
//!
//! * [`value`]: what the texts of settings mean.
//! * [`key`]: every key there is, and where its value goes.
//! * [`load`]: the layers, one over the other.
//! * [`check`]: what does not fit together.
//! * [`floating`]: floating addresses.
//! * [`error`]: what can be wrong, and where.

pub mod check;
pub mod error;
pub mod floating;
pub mod key;
pub mod load;
pub mod value;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use self::floating::FloatingSettings;
use crate::ha::fence::FenceRead;
use crate::model::free_min::FreeMin;
use crate::model::limits::Limits;
use crate::model::mode::Mode;
use crate::model::name::Name;
use crate::model::settings::GroupSettings;
use crate::protocol::CLIENT_PORT;

/// Settings of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this node. The two nodes of a pair have different names.
    pub node: Name,
    /// The shared directory.
    pub store: PathBuf,
    /// Mode that the store is to have: one that exists and has another one is converted, on the conditions that
    /// `systemd/baton.toml` names. `None` where one that exists keeps its own, and a new one is a database.
    pub mode: Option<Mode>,
    /// Whether a store that was converted stays beside the new one.
    pub keep_converted: KeepConverted,
    /// Whether a store may be created where there is none.
    pub create_store: bool,
    /// Identity of the store that must be there; with it no store is ever created.
    pub store_id: Option<Uuid>,
    /// Whether the node starts on storage that `baton store check` has found unfit.
    pub allow_unfit_storage: bool,
    /// Addresses on which clients are served.
    pub listen: Vec<SocketAddr>,
    /// The address under which clients and the other node reach this one; `None` for the first of `listen`.
    pub advertise: Option<String>,
    /// Address on which health is told over HTTP.
    pub admin: Option<SocketAddr>,
    /// Whether clients may connect without saying who they are.
    pub allow_anonymous: bool,
    /// How often the standby tries the lock, and an idle master checks the fence.
    pub poll_interval: Duration,
    /// Heartbeat that the node asks for where the client asks for a longer one.
    pub heartbeat: Duration,
    /// How long a drain waits for what is in flight.
    pub drain_timeout: Duration,
    /// Whether topics and groups come into being by being used.
    pub auto_create: bool,
    /// Settings of groups that come into being by being used without any.
    pub group_defaults: GroupSettings,
    /// Bytes of a journal segment; bytes of the write-ahead log between two checkpoints.
    pub segment_bytes: u64,
    /// What is kept free on the disk of the shared directory: with less, publishes are refused.
    pub disk_free_min: FreeMin,
    /// The floating addresses.
    pub address: FloatingSettings,
    /// How the fence is read.
    pub fence_read: FenceRead,
    /// The limits.
    pub limits: Limits,
}

impl Config {
    /// The built-in values for a node called `node`: a store in `./baton-data`, reached from this host alone.
    #[must_use]
    pub fn new(node: Name) -> Self {
        Self {
            node,
            store: PathBuf::from("./baton-data"),
            mode: None,
            keep_converted: KeepConverted::No,
            create_store: false,
            store_id: None,
            allow_unfit_storage: false,
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, CLIENT_PORT))],
            advertise: None,
            admin: None,
            allow_anonymous: false,
            poll_interval: Duration::from_millis(100),
            heartbeat: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(10),
            auto_create: true,
            group_defaults: GroupSettings::default(),
            segment_bytes: 64 << 20,
            disk_free_min: FreeMin::default(),
            address: FloatingSettings::default(),
            fence_read: FenceRead::default(),
            limits: Limits::default(),
        }
    }
}

/// Whether a store that was converted stays beside the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeepConverted {
    /// It is removed once the new one is complete and was compared with it.
    #[default]
    No,
    /// It stays, in a folder of the shared directory.
    Yes,
}

/// How the log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// What is logged: a level, or directives such as `info,batonmq::broker=debug`.
    pub filter: String,
    /// One line of text or one JSON object per event.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Form of a log event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object in a line.
    Json,
}

#[cfg(test)]
mod tests;
