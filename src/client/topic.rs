//! A topic as producers name it: its name and the number that stands for it on the wire.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::id::TopicId;
use crate::model::name::Name;

/// Set beside the id while the id is not valid any more: the topic was deleted.
const GONE: u64 = 1 << 32;

/// A topic to publish to. Made by [`Client::topic`](super::Client::topic); cheap to clone.
///
/// Where the topic turns out to be deleted, the next message published to it looks it up again by its name.
#[derive(Clone, Debug)]
pub struct Topic(pub(super) Arc<TopicCore>);

#[derive(Debug)]
pub(super) struct TopicCore {
    name: Name,
    /// Its id, and [`GONE`].
    id: AtomicU64,
}

impl Topic {
    pub(super) fn new(name: Name, id: TopicId) -> Self {
        Self(Arc::new(TopicCore { name, id: AtomicU64::new(u64::from(id.0)) }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name.as_str()
    }

    /// Whether this is the same handle.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn full_name(&self) -> &Name {
        &self.0.name
    }

    /// Its id, if that is known.
    pub(super) fn id(&self) -> Option<TopicId> {
        let id = self.0.id.load(Ordering::Relaxed);
        (id & GONE == 0).then_some(TopicId(id as u32))
    }

    pub(super) fn found(&self, id: TopicId) {
        self.0.id.store(u64::from(id.0), Ordering::Relaxed);
    }
}

impl TopicCore {
    /// The node does not know this id any more.
    pub(super) fn gone(&self, id: TopicId) {
        let known = u64::from(id.0);
        // Where it was looked up again meanwhile, the new id stays.
        let _ = self.id.compare_exchange(known, known | GONE, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.name.fmt(f)
    }
}
