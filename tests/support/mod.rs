//! What tests of whole nodes have in common: processes, load, and the checker of histories.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod blunt;
pub mod clock;
pub mod faulty;
pub mod history;
pub mod load;
pub mod mount;
pub mod namespaces;
pub mod neighbour;
pub mod network;
pub mod pair;
pub mod publisher;
pub mod raw;
