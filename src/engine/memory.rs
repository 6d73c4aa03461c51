//! Memory that connections hold together: what the engine has not taken of them, and what they have not taken of it.
//!
//! Each connection has bounds of its own; those of many connections together may be more than a node should use. While
//! all of them together hold as much as they may, memory is *scarce*: then a connection that holds more than its share
//! is neither read nor handed out to, until it holds less. Whoever holds little goes on, so nobody waits for a slow one.
//! A frame that is larger than a share is read by one connection at a time, since none of many could be read to its end
//! otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

/// Bytes that may be handed out together in any case: a share of very many connections is so small that the commits
/// would cost more than what they hand out.
const ROOM_BYTES_MIN: u64 = 64 << 10;

/// What all connections of a node hold.
#[derive(Debug)]
pub struct Memory {
    used: AtomicU64,
    connections: AtomicU64,
    max: u64,
    /// The right to read more than a share while memory is scarce.
    pub(super) turn: Arc<Semaphore>,
}

impl Memory {
    /// Memory of `max` bytes.
    #[must_use]
    pub fn new(max: u64) -> Arc<Self> {
        let turn = Arc::new(Semaphore::new(1));
        Arc::new(Self { used: AtomicU64::new(0), connections: AtomicU64::new(0), max, turn })
    }

    /// Bytes that are held.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Whether as much is held as may be.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        self.used() >= self.max
    }

    /// What may be handed out together before it is looked at again who holds how much: what is left, or a share where
    /// that is more, so that nobody gets much more than a share at once.
    pub(super) fn room(&self) -> u64 {
        self.max.saturating_sub(self.used()).max(self.share()).max(ROOM_BYTES_MIN)
    }

    fn share(&self) -> u64 {
        self.max / self.connections.load(Ordering::Acquire).max(1)
    }

    /// What one connection may hold that is bounded by `max` itself.
    pub(super) fn bound(&self, max: u64) -> u64 {
        if self.is_scarce() { max.min(self.share()) } else { max }
    }
}

/// What one connection holds, in one direction. Given back when dropped.
#[derive(Debug)]
pub(super) struct Holding {
    memory: Arc<Memory>,
    bytes: AtomicU64,
    counts_connection: bool,
}

impl Holding {
    /// Nothing yet, of a connection that is counted by another one.
    pub fn of(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), bytes: AtomicU64::new(0), counts_connection: false }
    }

    /// Nothing yet, of a connection that is counted from now on.
    pub fn of_connection(memory: &Arc<Memory>) -> Self {
        memory.connections.fetch_add(1, Ordering::AcqRel);
        let mut holding = Self::of(memory);
        holding.counts_connection = true;
        holding
    }

    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Holds so many bytes more.
    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.memory.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Holds so many bytes less, which it has.
    pub fn take(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.memory.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Holds exactly so many bytes. Not to be called by two threads at a time.
    pub fn set(&self, bytes: u64) {
        let before = self.bytes();
        if bytes > before {
            self.add(bytes - before);
        } else {
            self.take(before - bytes);
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.set(0);
        if self.counts_connection {
            self.memory.connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_holds_only_while_memory_is_scarce() {
        let memory = Memory::new(100);
        let [one, other] = [Holding::of_connection(&memory), Holding::of_connection(&memory)];
        one.add(90);
        assert_eq!((memory.is_scarce(), memory.bound(80)), (false, 80));
        other.set(10);
        assert_eq!((memory.is_scarce(), memory.bound(80), memory.bound(20)), (true, 50, 20));
        one.take(1);
        assert_eq!(memory.bound(80), 80);
        drop(one);
        assert_eq!(memory.used(), 10);
        other.set(200);
        assert_eq!(memory.bound(400), 100, "alone it may have all");
        drop(other);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn there_is_room_for_what_is_left_or_a_share_and_for_a_little_in_any_case() {
        let memory = Memory::new(100 << 20);
        let connections: Vec<_> = (0..4).map(|_| Holding::of_connection(&memory)).collect();
        connections[0].set(30 << 20);
        assert_eq!(memory.room(), 70 << 20);
        connections[0].set(90 << 20);
        assert_eq!(memory.room(), 25 << 20);
        connections[0].set(200 << 20);
        assert_eq!(memory.room(), 25 << 20);
        let many: Vec<_> = (0..10_000).map(|_| Holding::of_connection(&memory)).collect();
        assert_eq!(memory.room(), 64 << 10);
        drop(many);
        assert_eq!(memory.room(), 25 << 20);
    }
}
