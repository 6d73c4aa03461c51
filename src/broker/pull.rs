//! Pulls: credit for one answer. Waiting costs nothing: a pull is a consumer with credit and an entry in one list
//! of times.

use std::time::Duration;

use super::consumer::Pull as Waiting;
use super::machine::Broker;
use super::{Content, Output, refusals};
use crate::model::id::SessionId;
use crate::protocol::request::Pull;
use crate::protocol::response::Reply;

impl Broker {
    pub(super) fn pull(&mut self, session: SessionId, request: &Pull, out: &mut Output) {
        let found = self.sessions.get(&session).and_then(|state| state.consumers.get(&request.consumer));
        let Some(&(id, slot)) = found else {
            let refusal = refusals::unknown_handle("consumer", request.consumer);
            out.effect(session, Content::Reply(request.request, Err(refusal)));
            return;
        };
        let window = self.capped(request.window);
        let Some(group) = self.groups.get_mut(&id) else { return };
        if window.messages == 0 {
            out.effect(session, Content::Reply(request.request, Ok(Reply::Pulled { count: 0 })));
            return;
        }
        // One too many is answered when the cycle ends, with what there is.
        let waits = request.wait_ms > 0 && group.members.pulls_waiting < self.limits.pulls_waiting_max;
        let wait = Duration::from_millis(if waits { request.wait_ms } else { 0 });
        let (number, until) = (self.next_pull, self.now.after(wait));
        let Some(consumer) = group.members.get_mut(slot) else { return };
        self.next_pull += 1;
        consumer.pulls.push_back(Waiting {
            id: number,
            request: request.request,
            window,
            until,
            got: 0,
            got_bytes: 0,
        });
        group.members.pulls_waiting += 1;
        if waits {
            self.pull_timers.insert((until, number), (id, slot));
        } else {
            group.members.overdue.insert(number, slot);
        }
        group.members.refresh(slot);
        self.cycle.mark_consumers(group);
    }
}
