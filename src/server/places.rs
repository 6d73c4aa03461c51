//! How many connections there may be: sockets that are accepted, and clients that are let in.
//!
//! A socket takes a place before anybody knows whose it is. Beyond the clients that may be let in there are places for
//! the other node's watch, and a few in which a client can say who it is and be told that there are too many. Where
//! those are taken as well nothing more is accepted: each socket is an open file, and a node that has none left
//! cannot check its fence. Which client is let in is decided when it has said who it is, so that one that says
//! nothing never takes a client's place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::greeting::HANDSHAKE_MAX;
use crate::model::limits::{GREETINGS_MAX, WATCHES_MAX};
use crate::protocol::request::Purpose;

/// How long a client may take for preface and first frame while the last places for that are being taken.
const HANDSHAKE_CROWDED_MAX: Duration = Duration::from_secs(1);

/// The places of a node.
pub(super) struct Places {
    sockets: Arc<Semaphore>,
    connections_max: u64,
    admitted: AtomicU64,
}

impl Places {
    pub(super) fn new(connections_max: u64) -> Self {
        let sockets = connections_max + WATCHES_MAX + GREETINGS_MAX;
        let sockets = usize::try_from(sockets).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { sockets: Arc::new(Semaphore::new(sockets)), connections_max, admitted: AtomicU64::new(0) }
    }

    /// A place for a socket; waits until there is one. Cancel-safe: it only loses its place in the line.
    pub(super) async fn socket(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.sockets).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// How long the socket that has just got a place may take to say whose it is.
    pub(super) fn handshake_max(&self) -> Duration {
        let crowded = (self.sockets.available_permits() as u64) < GREETINGS_MAX;
        if crowded { HANDSHAKE_CROWDED_MAX } else { HANDSHAKE_MAX }
    }

    /// Lets a client in, if there is room for one of its kind.
    pub(super) fn admit(&self, purpose: Purpose) -> Option<Admitted<'_>> {
        let max = match purpose {
            Purpose::Client => self.connections_max,
            Purpose::Watch => self.connections_max + WATCHES_MAX,
        };
        let more = |count: u64| (count < max).then_some(count + 1);
        self.admitted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Admitted(&self.admitted))
    }

    /// Places for sockets that nobody has.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.sockets.available_permits()
    }

    /// Clients that are let in.
    pub(super) fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }
}

/// A client that is let in, until this is dropped.
pub(super) struct Admitted<'a>(&'a AtomicU64);

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_node_may_watch_beyond_the_clients() {
        let places = Places::new(2);
        let clients = [(); 2].map(|()| places.admit(Purpose::Client).unwrap());
        assert!(places.admit(Purpose::Client).is_none());
        let watches = [(); WATCHES_MAX as usize].map(|()| places.admit(Purpose::Watch).unwrap());
        assert!(places.admit(Purpose::Watch).is_none());
        assert_eq!(places.admitted(), 4);
        drop(watches);
        assert!(places.admit(Purpose::Client).is_none());
        drop(clients);
        assert_eq!(places.admitted(), 0);
        assert!(places.admit(Purpose::Client).is_some());
    }

    #[tokio::test]
    async fn the_last_places_are_for_those_who_come_to_the_point() {
        let places = Places::new(4);
        let mut held = Vec::new();
        for _ in 0..4 + WATCHES_MAX {
            held.push(places.socket().await);
            assert_eq!(places.handshake_max(), HANDSHAKE_MAX);
        }
        for _ in 0..GREETINGS_MAX {
            held.push(places.socket().await);
            assert_eq!(places.handshake_max(), HANDSHAKE_CROWDED_MAX);
        }
        assert_eq!(places.free(), 0, "a further one does not wait");
        held.pop();
        held.push(places.socket().await);
    }
}
