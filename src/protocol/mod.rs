//! The wire protocol, version 1: frames between a client and a node. `docs/protocol.md` is its specification.
//!
//! Pure: bytes in, values out, and back. Knows no socket, no task, no broker. Every length is checked before
//! anything is allocated for it, and no input makes it panic.
//!
//! * [`preface`]: the first bytes of a connection, magic and version.
//! * [`frame`]: where a frame ends, and the codec of its head.
//! * [`growing`]: structs to which fields may be added.
//! * [`request`]: frames from the client.
//! * [`response`]: frames to the client.
//! * [`error`]: error codes, and what is wrong with bytes.

pub mod error;
pub mod frame;
pub mod growing;
pub mod preface;
pub mod request;
pub mod response;

use crate::model::version::VersionRange;

/// Lowest version of the protocol that this library speaks.
pub const VERSION_MIN: u8 = 1;
/// Highest version of the protocol that this library speaks.
pub const VERSION_MAX: u8 = 1;
/// The versions of the protocol that this library speaks.
pub const VERSIONS: VersionRange = VersionRange { min: VERSION_MIN as u32, max: VERSION_MAX as u32 };
/// The port on which a node serves clients.
pub const CLIENT_PORT: u16 = 7470;
/// Port of the admin address, where none is named.
pub const ADMIN_PORT: u16 = 7471;
