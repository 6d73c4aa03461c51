//! Sessions: what a connection has open, and what becomes of it when the connection ends or cannot take more.

use std::collections::BTreeMap;

use super::machine::Broker;
use super::turns::Slot;
use super::{Ending, Output};
use crate::model::id::{GroupId, ProducerId, SessionId};
use crate::protocol::request::Handle;

/// A client connection.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// The producers it opened. One that somebody else has opened since stays here until it is closed.
    pub producers: BTreeMap<Handle, ProducerId>,
    /// Its consumers.
    pub consumers: BTreeMap<Handle, (GroupId, Slot)>,
    /// It cannot take more for now.
    pub paused: bool,
    /// Who is behind it, for people.
    pub client: String,
}

impl Broker {
    pub(super) fn begin_session(&mut self, session: SessionId) {
        self.sessions.entry(session).or_default();
    }

    pub(super) fn introduce_session(&mut self, session: SessionId, client: String) {
        if let Some(state) = self.sessions.get_mut(&session) {
            state.client = client;
        }
    }

    pub(super) fn end_session(&mut self, session: SessionId, ending: Ending, out: &mut Output) {
        let Some(state) = self.sessions.remove(&session) else { return };
        self.browses.end_session(session);
        self.replays.end_session(session);
        for (handle, id) in state.producers {
            self.producers.close(id, (session, handle), self.now, out);
        }
        for (group, slot) in state.consumers.into_values() {
            self.remove_consumer(group, slot, ending, out);
        }
    }

    /// Holds the consumers of a session, or lets them go on.
    pub(super) fn pause_session(&mut self, session: SessionId, paused: bool) {
        let Some(state) = self.sessions.get_mut(&session) else { return };
        if state.paused == paused {
            return;
        }
        state.paused = paused;
        let consumers: Vec<(GroupId, Slot)> = state.consumers.values().copied().collect();
        for (id, slot) in consumers {
            if let Some(group) = self.groups.get_mut(&id)
                && let Some(consumer) = group.members.get_mut(slot)
            {
                consumer.paused = paused;
                group.members.refresh(slot);
                self.cycle.mark_consumers(group);
            }
        }
    }
}
