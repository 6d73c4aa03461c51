//! Routes: rules that pass messages of one topic on to others.

use serde::{Deserialize, Serialize};

use super::id::TopicId;
use super::name::Name;

/// What becomes of a message that a route passes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteMode {
    /// Its topic gets it too.
    #[default]
    Copy,
    /// Its topic does not.
    Move,
}

/// A rule that passes messages of one topic on to others, in the commit in which they are published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its name; no other route has it.
    pub name: Name,
    /// The topic to which messages are published.
    pub from: TopicId,
    /// The topics that get them; at least one, none twice, and not the one they come from.
    pub to: Vec<TopicId>,
    /// Which messages, an [expression](super::filter); all where there is none.
    pub filter: Option<String>,
    /// What becomes of them in their own topic.
    pub mode: RouteMode,
}
