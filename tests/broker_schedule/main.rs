//! Messages with a priority, a time to be delivered at, a time at which they expire: rules, and the broker under random
//! commands against a naive model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../broker_world/mod.rs"]
mod broker_world;
mod delayed;
mod expiring;
mod model;
mod priorities;
mod scene;
mod slots;
