//! The wire protocol: golden bytes, its document, and input that is not what it should be.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod document;
mod growing;
mod hostile;
mod round_trip;
mod vectors;
