//! Slots whose time comes near: what is in them is known one by one from then on, or moved into finer slots.

use std::collections::BTreeMap;

use super::super::Output;
use super::super::cache::CachedChunk;
use super::super::machine::Broker;
use super::super::placing::Picked;
use super::super::topic::appended_bytes;
use super::window::Window;
use super::{TRY_AGAIN_MS, due};
use crate::model::chunk::Origin;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::record::Source;
use crate::model::time::Timestamp;
use crate::model::topic_kind::Waiting;

/// Messages of slots that are looked at in one cycle.
const READ_PER_CYCLE: usize = 4096;

/// A slot with more than there is room for is looked at again after so many milliseconds at least, and at most.
const LOOK_AGAIN_MS: [u64; 2] = [50, 250];

/// What became of the messages of a slot that were looked at.
enum Progress {
    /// The slot is read to its end.
    End,
    /// More is in memory.
    More,
    /// It goes on when something else has happened: a read was answered, what is due was fired, there is space.
    Waits,
    /// There is no room to know the next one, which is due then, and no finer slot: they wait a little.
    Later(Timestamp),
}

/// What is to be done with a message of a slot.
enum Step {
    Know,
    Move(Window),
    /// It is due, and what is due before it is fired first.
    Wait,
    Later,
}

impl Broker {
    /// Goes on with the slots whose time has come, those with the earliest windows first.
    pub(super) fn open_slots(&mut self, waiting: Waiting, out: &mut Output) {
        let now = self.now;
        while let Some(&(at, slot)) = self.schedule.agenda(waiting).opening.first()
            && at <= now
        {
            self.schedule.agenda(waiting).opening.pop_first();
            let start = self.topics.get(&slot).map(|topic| topic.state.start);
            if let Some(state) = self.schedule.slots.get_mut(&slot) {
                state.opens_at = None;
                state.read_to = state.read_to.or(start);
                let from = state.window.from;
                self.schedule.agenda(waiting).reading.insert((from, slot));
            }
        }
        let mut left = READ_PER_CYCLE;
        let reading: Vec<_> = self.schedule.agenda(waiting).reading.iter().copied().collect();
        for (from, slot) in reading {
            loop {
                match self.read_slot(slot, &mut left, out) {
                    Progress::More if left > 0 => continue,
                    Progress::More => self.work_left = true,
                    Progress::Waits => {}
                    Progress::End => {
                        self.schedule.agenda(waiting).reading.remove(&(from, slot));
                        self.delete_if_over(slot, out);
                    }
                    Progress::Later(due) => {
                        let [least, most] = LOOK_AGAIN_MS.map(|ms| Timestamp(now.0.saturating_add(ms)));
                        self.schedule.close_until(slot, due.clamp(least, most));
                    }
                }
                break;
            }
            if left == 0 || !self.schedule.agenda(waiting).may_go_on(now) {
                break;
            }
        }
    }

    /// Looks at the next messages of a slot that are in memory, or has them read.
    fn read_slot(&mut self, slot: TopicId, left: &mut usize, out: &mut Output) -> Progress {
        let now = self.now;
        let Some(topic) = self.topics.get(&slot) else { return Progress::End };
        let Some(state) = self.schedule.slots.get(&slot) else { return Progress::End };
        let (of, waiting, window) = (state.of, state.waiting, state.window);
        let (count, end) = (topic.state.message_count(), topic.state.end);
        let run = topic.state.next_run(state.read_to.unwrap_or_default());
        if run.is_empty() {
            if let Some(state) = self.schedule.slots.get_mut(&slot) {
                state.read_to = Some(end);
            }
            return Progress::End;
        }
        if !window.is_coarse() && window.from > now && self.schedule.agenda(waiting).room() == 0 {
            return Progress::Later(window.from);
        }
        let Some(chunk) = self.cache.topic(slot).and_then(|cached| cached.at(run.start)) else {
            if let Some(end) = self.unreadable.held_to(slot, run.start, now) {
                // What is behind it is not held up; see `look_again`.
                if let Some(state) = self.schedule.slots.get_mut(&slot) {
                    state.read_to = Some(end.min(run.end));
                }
                return Progress::More;
            }
            if self.schedule.agenda(waiting).may_read() {
                self.read_scheduled(waiting, slot, run, out);
            }
            return Progress::Waits;
        };
        let end = run.end.min(chunk.end());
        let index_of = |offset: Offset| (offset.0 - chunk.first.0) as usize;
        let agenda = self.schedule.agenda(waiting);
        let is_large = window != Window::NEAR && window.is_coarse() && count > agenda.few() as u64;
        let mut moved: BTreeMap<Window, Picked> = BTreeMap::new();
        let mut at = run.start;
        let mut progress = Progress::More;
        let mut space = self.space;
        while at < end && *left > 0 {
            let encoded = chunk.block.encoded(index_of(at));
            let due = due(encoded);
            let agenda = self.schedule.agenda(waiting);
            let step = if due <= now {
                if agenda.has_room_for_due() { Step::Know } else { Step::Wait }
            } else if !window.is_coarse() {
                if agenda.room() > 0 { Step::Know } else { Step::Later }
            } else if !is_large && agenda.room_for_later() > 0 {
                Step::Know
            } else {
                // Seen from before the window it would be the same again.
                Step::Move(Window::of(now.max(window.from), due))
            };
            match step {
                Step::Know => agenda.learn((due, slot, at)),
                Step::Move(window) => match space.checked_sub(appended_bytes(encoded.len())) {
                    Some(left) => {
                        space = left;
                        moved.entry(window).or_default().add(index_of(at), None);
                    }
                    None => {
                        agenda.put_off(now, TRY_AGAIN_MS);
                        progress = Progress::Waits;
                        break;
                    }
                },
                Step::Wait => {
                    progress = Progress::Waits;
                    break;
                }
                Step::Later => {
                    progress = Progress::Later(due);
                    break;
                }
            }
            *left -= 1;
            at = at.next();
        }
        self.space = space;
        let (first, block) = (chunk.first, chunk.block.clone());
        let origins = if moved.is_empty() { Vec::new() } else { origins_of(chunk) };
        if let Some(state) = self.schedule.slots.get_mut(&slot) {
            state.read_to = Some(at);
        }
        let mut dropped = Vec::new();
        for (window, picked) in moved {
            let source = Source::Mixed(picked.origins(&origins));
            let ranges = picked.runs().iter();
            dropped.extend(
                ranges.map(|&(start, end)| OffsetRange::new(first.0 + start as u64, first.0 + end as u64)),
            );
            self.put_scheduled(of, waiting, window, picked.block(&block), source, out);
        }
        self.drop_messages(slot, dropped, out);
        progress
    }

    /// Is done with a slot that is empty once nothing is put into it any more. The one for what is due soon stays.
    pub(super) fn delete_if_over(&mut self, slot: TopicId, out: &mut Output) {
        let Some(state) = self.schedule.slots.get(&slot) else { return };
        let is_empty = self.topics.get(&slot).is_some_and(|topic| topic.state.message_count() == 0);
        if !is_empty || state.window == Window::NEAR {
            return;
        }
        let closes_at: Timestamp = state.window.closes_at();
        if closes_at <= self.now {
            self.retire_slot(slot, out);
        } else {
            self.schedule.close_until(slot, closes_at);
        }
    }
}

/// The origins of the messages of a chunk, from its first on.
fn origins_of(chunk: &CachedChunk) -> Vec<(u32, Option<Origin>)> {
    let count = chunk.block.count();
    let (mut origins, mut index) = (Vec::new(), 0);
    while index < count {
        let source = chunk.source(index);
        let run = (source.count as usize).min(count - index);
        origins.push((run as u32, source.origin));
        index += run;
    }
    origins
}
