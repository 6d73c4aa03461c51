//! What can be wrong with a configuration, and where it came from.
//!
//! Every error stops the start of the node: a configuration is right as a whole or not used.

use std::fmt;
use std::path::PathBuf;

use super::value::ValueError;
use crate::ha::block::ADDRESS_BYTES_MAX;

/// Where a setting was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: the built-in value.
    BuiltIn,
    /// In the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// In this environment variable.
    Environment(String),
    /// With this flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => f.write_str(variable),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that there is not.
    #[error("{origin}: there is no setting {key:?}{}", did_you_mean(.nearest.as_deref()))]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The key, its table in front.
        key: String,
        /// The key that was probably meant.
        nearest: Option<String>,
    },
    /// A value that is none for its key.
    #[error("{origin}: {key}: {source}")]
    Value {
        /// Where.
        origin: Origin,
        /// The key, its table in front.
        key: String,
        /// What is wrong with the value.
        source: ValueError,
    },
    /// Values that cannot be used, alone or together.
    #[error("{origin}: {key}: {problem}")]
    Contradiction {
        /// Where the key was set.
        origin: Origin,
        /// The key to look at first, its table in front.
        key: String,
        /// What is wrong, and what to do.
        problem: Box<Problem>,
    },
    /// A variable is not UTF-8.
    #[error("{0}: the value is not UTF-8")]
    NotText(String),
    /// The name of the host is not a name for a node.
    #[error("the name of this host cannot be the name of the node: {0}; set `node` or --node")]
    Hostname(#[source] crate::model::name::NameError),
}

/// A value that cannot be used, alone or with the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A number or time is outside of its bounds.
    #[error("{found} is out of bounds; set it from {min} to {max}")]
    OutOfBounds {
        /// The value.
        found: String,
        /// The lowest that is allowed.
        min: String,
        /// The highest that is allowed.
        max: String,
    },
    /// There is no address to listen on.
    #[error("there is no address to listen on; name at least one, such as \"127.0.0.1:7470\"")]
    NothingToListenOn,
    /// Two addresses cannot be listened on together.
    #[error("{0} and {1} overlap; leave one of them out")]
    SameAddress(std::net::SocketAddr, std::net::SocketAddr),
    /// Clients beyond this host would be let in without saying who they are.
    #[error(
        "{0} can be reached from other hosts, and clients are not asked who they are; set allow_anonymous = true \
         if the network is trusted, or listen on 127.0.0.1"
    )]
    OpenToAll(std::net::SocketAddr),
    /// The address for clients does not fit into the control file.
    #[error("it has {0} bytes, at most {ADDRESS_BYTES_MAX} are possible")]
    AddressTooLong(usize),
    /// Clients cannot connect to the address they are told.
    #[error("clients cannot connect to {0}; set `advertise` to the address under which they reach this node")]
    NoAddressForClients(String),
    /// The largest message would not fit into the largest frame.
    #[error(
        "{body} cannot travel in a frame of {frame}: key, headers and the frame's head need {around} beside it; \
         raise limits.frame_bytes_max to {needed} or lower limits.body_bytes_max"
    )]
    BodyBeyondFrame {
        /// The largest body.
        body: String,
        /// The largest frame.
        frame: String,
        /// What is needed beside the body.
        around: String,
        /// A frame that is large enough.
        needed: String,
    },
    /// The first wait is longer than the longest.
    #[error(
        "the first wait {initial} is longer than group_defaults.backoff_maximum {maximum}; lower it or raise that"
    )]
    BackoffBeyondMaximum {
        /// The first wait.
        initial: String,
        /// The longest wait.
        maximum: String,
    },
    /// The process may not have as many files open as its connections need.
    #[error(
        "{connections} connections need {needed} open files and the process may have {most}; raise that (LimitNOFILE= \
         of the service, or ulimit -n){}",
        or_lower(*.fitting)
    )]
    FilesTooFew {
        /// The connections.
        connections: u64,
        /// The files that they and the node need.
        needed: u64,
        /// The files that the process may have open.
        most: u64,
        /// The connections for which that is enough.
        fitting: Option<u64>,
    },
    /// There are floating addresses, and no interface to have them.
    #[error("there are floating addresses; name the interface that is to have them, such as \"eth0\"")]
    NoInterface,
    /// One floating address is named twice.
    #[error("{0} stands there twice; leave one of them out")]
    TwiceTheSame(std::net::IpAddr),
    /// Nobody would be served at a floating address.
    #[error("nobody would be served at {0}; listen on all addresses, with listen = \"0.0.0.0\" or \"[::]\"")]
    NotListenedOn(std::net::IpAddr),
    /// The address of a node is one that both nodes share.
    #[error(
        "{0} is a floating address, which the two nodes share; set it to one that leads to this node alone"
    )]
    SharedByBoth(std::net::IpAddr),
    /// The path of the store is empty.
    #[error("the path is empty; name the directory that both nodes share")]
    NoStore,
}

fn or_lower(fitting: Option<u64>) -> String {
    fitting.map(|connections| format!(" or lower it to {connections}")).unwrap_or_default()
}

fn did_you_mean(nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean {nearest:?}?"),
        None => "; systemd/baton.toml has all there are".to_owned(),
    }
}
