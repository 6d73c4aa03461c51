//! The words of the domain: messages, names, offsets, settings, records, filters, limits.
//!
//! Plain data and pure functions. Knows nothing of connections, files, clocks or tasks; every other layer may use it.

pub mod chunk;
pub mod filter;
pub mod free_min;
pub mod header;
pub mod id;
pub mod limits;
pub mod marks;
pub mod message;
pub mod mode;
pub mod name;
pub mod pattern;
pub mod position;
pub mod predecessor;
pub mod range_map;
pub mod ranges;
pub mod record;
pub mod retry;
pub mod route;
pub mod settings;
pub mod snapshot;
pub mod table;
pub mod time;
pub mod topic_kind;
pub mod version;
