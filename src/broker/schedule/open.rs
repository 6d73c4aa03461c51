//! Slots whose time has come: what is in them is known one by one from then on, or moved into finer slots.

use std::collections::BTreeMap;

use super::super::Output;
use super::super::cache::CachedChunk;
use super::super::machine::Broker;
use super::super::placing::Picked;
use super::super::reading::READ_BYTES;
use super::due;
use super::window::Window;
use crate::model::chunk::Origin;
use crate::model::id::{Offset, OffsetRange, TopicId};
use crate::model::record::Source;

/// Messages of slots that are looked at in one cycle.
const READ_PER_CYCLE: usize = 4096;

/// What became of the messages of a slot that were looked at.
enum Progress {
    /// The slot is read to its end.
    End,
    /// More is in memory.
    More,
    /// The next ones are being read.
    Reading,
    /// There is no room to know them, and no finer slot: they wait until all of them are due.
    Later,
}

impl Broker {
    /// Goes on with the slots whose time has come.
    pub(super) fn open_slots(&mut self, out: &mut Output) {
        while let Some(&(at, slot)) = self.schedule.opening.first()
            && at <= self.now
        {
            self.schedule.opening.pop_first();
            let start = self.topics.get(&slot).map(|topic| topic.state.start);
            if let Some(state) = self.schedule.slots.get_mut(&slot) {
                state.read_to = state.read_to.or(start);
                self.schedule.reading.insert(slot);
            }
        }
        let mut left = READ_PER_CYCLE;
        let reading: Vec<TopicId> = self.schedule.reading.iter().copied().collect();
        for slot in reading {
            loop {
                match self.read_slot(slot, &mut left, out) {
                    Progress::More if left > 0 => continue,
                    Progress::More => self.work_left = true,
                    Progress::Reading => {}
                    Progress::End => {
                        self.schedule.reading.remove(&slot);
                        self.delete_if_over(slot, out);
                    }
                    Progress::Later => {
                        self.schedule.reading.remove(&slot);
                        if let Some(state) = self.schedule.slots.get(&slot) {
                            self.schedule.opening.insert((state.window.until, slot));
                        }
                    }
                }
                break;
            }
        }
    }

    /// Looks at the next messages of a slot that are in memory, or has them read.
    fn read_slot(&mut self, slot: TopicId, left: &mut usize, out: &mut Output) -> Progress {
        let Some(topic) = self.topics.get(&slot) else { return Progress::End };
        let Some(state) = self.schedule.slots.get(&slot) else { return Progress::End };
        let (of, waiting, window) = (state.of, state.waiting, state.window);
        let run = topic.state.next_run(state.read_to.unwrap_or_default());
        if run.is_empty() {
            let end = topic.state.end;
            if let Some(state) = self.schedule.slots.get_mut(&slot) {
                state.read_to = Some(end);
            }
            return Progress::End;
        }
        let Some(chunk) = self.cache.topic(slot).and_then(|cached| cached.at(run.start)) else {
            self.want_scheduled(slot, run.start, READ_BYTES, out);
            return Progress::Reading;
        };
        let end = run.end.min(chunk.end());
        let index_of = |offset: Offset| (offset.0 - chunk.first.0) as usize;
        let mut moved: BTreeMap<Window, Picked> = BTreeMap::new();
        let mut at = run.start;
        let mut later = false;
        while at < end && *left > 0 {
            let due = due(chunk.block.encoded(index_of(at)));
            // What is due by now is fired at once, so it takes no room for long.
            if self.schedule.known.len() < self.schedule.known_max {
                self.schedule.known.insert((due, slot, at));
            } else if due <= self.now {
                break;
            } else if window.is_coarse() {
                moved.entry(Window::of(self.now, due)).or_default().add(index_of(at), None);
            } else {
                later = true;
                break;
            }
            *left -= 1;
            at = at.next();
        }
        let block = chunk.block.clone();
        let origins: Vec<(u32, Option<Origin>)> = origins_of(chunk, block.count());
        if let Some(state) = self.schedule.slots.get_mut(&slot) {
            state.read_to = Some(at);
        }
        let first = chunk.first;
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
        if later {
            Progress::Later
        } else if at == run.start {
            // What is due comes first.
            Progress::Reading
        } else {
            Progress::More
        }
    }

    /// Has messages of a slot read, with what follows them up to so many bytes.
    pub(super) fn want_scheduled(&mut self, slot: TopicId, from: Offset, bytes: usize, out: &mut Output) {
        if self.schedule.wants.insert((slot, from)) {
            self.reads.want_for_schedule(slot, from, bytes, &mut out.reads);
        }
    }

    /// Deletes a slot that is empty and whose time has come. The one for what is due soon stays.
    pub(super) fn delete_if_over(&mut self, slot: TopicId, out: &mut Output) {
        let Some(state) = self.schedule.slots.get(&slot) else { return };
        let is_empty = self.topics.get(&slot).is_some_and(|topic| topic.state.message_count() == 0);
        if is_empty && state.window != Window::NEAR {
            self.schedule.remove_slot(slot);
            self.delete_topic_part(slot, out);
        }
    }
}

/// The origins of the messages of a chunk, from its first on.
fn origins_of(chunk: &CachedChunk, count: usize) -> Vec<(u32, Option<Origin>)> {
    let (mut origins, mut index) = (Vec::new(), 0);
    while index < count {
        let source = chunk.source(index);
        let run = (source.count as usize).min(count - index);
        origins.push((run as u32, source.origin));
        index += run;
    }
    origins
}
