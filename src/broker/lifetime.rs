//! Groups that go by themselves: with their last consumer, or when they have had none for so long.
//!
//! Only time without a consumer counts, and only since the start: nobody could come while there was no node.

use std::time::Duration;

use super::machine::Broker;
use super::{Ending, Output};
use crate::model::id::GroupId;
use crate::model::settings::{EPHEMERAL_GRACE_MS, Lifetime};

impl Broker {
    /// Begins to count the time without a consumer of a group that has none, or ends the group.
    pub(super) fn note_vacancy(&mut self, id: GroupId, ending: Ending, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.ends_at = None;
        if group.members.count() > 0 {
            return;
        }
        let wait = match (group.settings.lifetime, ending) {
            (Lifetime::Durable, _) => return,
            (Lifetime::Ephemeral, Ending::Closed) => return self.delete_group(id, out),
            // Whoever was lost may be about to come back.
            (Lifetime::Ephemeral, Ending::Lost) => EPHEMERAL_GRACE_MS,
            (Lifetime::Idle(ms), _) => ms,
        };
        group.ends_at = Some(self.now.after(Duration::from_millis(wait)));
        self.cycle.mark_consumers(group);
    }

    /// Begins to count the time for the groups that were there before the start.
    pub(super) fn note_vacancies(&mut self, out: &mut Output) {
        for id in std::mem::take(&mut self.recovered) {
            self.note_vacancy(id, Ending::Lost, out);
        }
    }

    /// Whether the time of a group is over.
    pub(super) fn has_ended(&self, id: GroupId) -> bool {
        let group = self.groups.get(&id);
        group.is_some_and(|group| group.ends_at.is_some_and(|at| at <= self.now))
    }
}
