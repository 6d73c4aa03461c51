//! Baton: a message broker for two hosts and one shared disk.
//!
//! The layers, each using only those below it; `docs/architecture.md` says what each deliberately does not know.
//!
//! * [`node`]: the role of a process, standby to master to end.
//! * [`check`]: whether a directory is fit to be shared.
//! * [`offline`]: work on stores that no node serves.
//! * [`server`]: listeners and connections.
//! * [`address`]: floating addresses, which follow the master.
//! * [`admin`]: HTTP for operators and their monitoring.
//! * [`client`]: the client library. Start here to publish and consume.
//! * [`engine`]: the one owner of broker and store: group commit, fence, effects.
//! * [`broker`]: topics, groups, consumers and producers, as a pure state machine.
//! * [`store`]: durable records, in a file journal or a database.
//! * [`ha`]: lock, epochs, control file, fence.
//! * [`disk`]: the door to the shared disk, and fresh reads of what another host may just have written.
//! * [`protocol`]: the wire protocol.
//! * [`config`]: the settings of a node.
//! * [`model`]: messages, names, offsets, settings, records, filters, limits.

#![warn(clippy::unwrap_used)]

pub mod address;
pub mod admin;
pub mod broker;
pub mod check;
pub mod client;
pub mod config;
pub mod disk;
pub mod engine;
pub mod ha;
pub mod model;
pub mod node;
pub mod offline;
pub mod protocol;
pub mod server;
pub mod store;
